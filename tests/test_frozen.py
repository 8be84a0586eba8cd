"""The frozen binaries and the packages as a user gets them: copied alone into a system without Python.

Invariant: nothing is taken from the source tree or from this Python. Every test uses the output of packaging/build,
which is brought up to date first. Needs root on Debian (chroots and namespaces); each trial has its own network.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

TOP = Path(__file__).resolve().parent.parent
CACHE = Path(
    os.environ.get("BLIPMQ_BUILD_CACHE", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "blipmq")
)
DIST = Path(os.environ.get("BLIPMQ_DIST", TOP / "dist"))
RELEASE = DIST / "release"
SCHEMA = TOP / "native" / "proto" / "blip.fbs"  # every download contains it
GLIBC_NEWEST = (2, 31)
ONEFILE_BYTES_MAX = 10 * 1000 * 1000
# arm64 and armv7 run under emulation: only a selection of the tests.
SYSTEMS = [("x64", "oldest"), ("x64", "newest"), ("arm64", "oldest"), ("armv7", "oldest")]
TRIAL_SECONDS_MAX = 240
MACHINES = {"x64": "X86-64", "arm64": "AArch64", "armv7": " ARM\n"}

# The commands of a trial: start the broker and wait for its ready line, at most while it lives.
PRELUDE = """
set -eu
cd /trial
start() { "$@" >/trial/log 2>&1 & broker=$!; await ' info ready ' /trial/log; }
await() { until grep -q "$1" "$2"; do kill -0 "$broker" || { cat /trial/log; exit 90; }; sleep 0.05; done; }
finish() { kill -TERM "$broker"; wait "$broker"; }
"""
# A durable subscription that is created, left, and resumed.
DURABLE = """
resume() { cli=$1; shift; "$cli" -q sub --qos 1 --durable --client-id me plant/pump "$@"; }
subscribe() {
    "$1" -q sub --qos 1 --durable --client-id me plant/pump & subscriber=$!
    until "$1" info --format json | grep -q '"sessions": {"total": 1,'; do sleep 0.1; done
    kill "$subscriber"
    wait "$subscriber" || true
}
"""


def build(target: str, step: str, **environment: str) -> None:
    subprocess.run([TOP / "packaging/build", target, step], check=True, env={**os.environ, **environment})


class System:
    """A minimal system that one test may write to: the chroot below, an in-memory file system above it."""

    def __init__(self, root: Path, upper: Path) -> None:
        self.root = root
        self.upper = upper
        self.trial = upper / "files/trial"
        for folder in (self.trial, upper / "work", upper / "merged"):
            folder.mkdir(parents=True)

    def __repr__(self) -> str:
        return f"System({self.root})"

    def run(self, script: str, check: bool = True, setup: str = "") -> subprocess.CompletedProcess[str]:
        """Runs a shell script in the system; `setup` runs before it, outside, with $root as the top folder of the
        system."""
        enter = f"""
            ip link set lo up
            root={self.upper}/merged
            mount -t overlay overlay -o lowerdir={self.root},upperdir={self.upper}/files,workdir={self.upper}/work $root
            mount -t proc proc $root/proc
            {setup}
            exec chroot $root env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/trial sh -c "$1"
        """
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-euc", enter, "sh"]
        done = subprocess.run([*command, PRELUDE + script], text=True, capture_output=True, timeout=TRIAL_SECONDS_MAX)
        assert not check or done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture(scope="session", autouse=True)
def root_user() -> None:
    assert os.geteuid() == 0, "the trials are made in chroots, which needs root: run `make slow` as root on Debian"


@pytest.fixture
def upper(tmp_path: Path) -> Iterator[Path]:
    """A file system for the changes of one test. In memory, because an overlay cannot lie on another overlay."""
    folder = tmp_path / "upper"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "trial", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def system(target: str, age: str, upper: Path) -> System:
    build(target, f"chroot-{age}")
    return System(CACHE / target / f"chroot-{age}", upper)


def with_download(target: str, age: str, upper: Path) -> System:
    """A minimal system with the one-file download in an empty folder, under both names."""
    build(target, "onefile")
    bare = system(target, age, upper)
    for name in ("blipmq", "blipmq-cli"):
        shutil.copy(DIST / f"linux-{target}" / name, bare.trial)
    return bare


@pytest.fixture
def bare(upper: Path) -> System:
    return with_download("x64", "oldest", upper)


# ---- the one-file download -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "age"), SYSTEMS)
def test_a_single_copied_file_serves_on_a_system_without_python(target: str, age: str, upper: Path) -> None:
    done = with_download(target, age, upper).run(
        """
        ! command -v python3
        start ./blipmq start
        ./blipmq-cli -q sub -n 1 plant/pump >got &
        subscriber=$!
        until ./blipmq-cli info --format json | grep -q '"subscriptions_total": 1'; do sleep 0.1; done
        ./blipmq-cli -q pub plant/pump 'on at 60 Hz'
        wait $subscriber
        cat got
        finish
        echo "ended with $?"
        ls -A /tmp
        """
    )
    assert done.stdout == "on at 60 Hz\nended with 0\n"


@pytest.mark.parametrize(("target", "age"), SYSTEMS)
def test_messages_acknowledged_by_a_download_survive_kill_9_and_sigterm(target: str, age: str, upper: Path) -> None:
    done = with_download(target, age, upper).run(
        DURABLE
        + """
        start ./blipmq start
        subscribe ./blipmq-cli
        ./blipmq-cli -q pub --qos 1 plant/pump first
        kill -9 "$broker"
        wait "$broker" || true
        start ./blipmq start
        ./blipmq-cli -q pub --qos 1 plant/pump second
        finish
        start ./blipmq start
        resume ./blipmq-cli -n 2
        finish
        start ./blipmq start
        ./blipmq-cli -q pub --qos 1 plant/pump third
        resume ./blipmq-cli -n 1
        finish
        """
    )
    assert done.stdout == "first\nsecond\nthird\n"


def test_the_download_depends_only_on_the_c_library(bare: System) -> None:
    done = bare.run("./blipmq version", setup="rm $root/lib/*-linux-gnu/libz.so*")
    assert done.stdout.startswith("BlipMQ ")


def test_kill_9_leaves_no_process_and_the_next_start_cleans_up(bare: System) -> None:
    done = bare.run(
        """
        start ./blipmq start
        ls /tmp | wc -l
        kill -9 "$broker"
        wait "$broker" || echo "ended with $?"
        cat /proc/[0-9]*/comm | grep -c blipmq || true
        ls /tmp | wc -l
        start ./blipmq start
        ls /tmp | wc -l
        finish
        ls /tmp | wc -l
        """
    )
    assert done.stdout.split("\n")[:-1] == ["1", "ended with 137", "0", "1", "1", "0"]


def test_the_started_process_is_the_broker_itself(bare: System) -> None:
    done = bare.run(
        """
        start ./blipmq start
        grep -o "pid=[0-9]*" log | head -n 1
        echo "pid=$broker"
        finish
        """
    )
    said, started = done.stdout.split()
    assert said == started


def test_a_start_does_not_clean_up_files_of_running_brokers(bare: System) -> None:
    done = bare.run(
        """
        start ./blipmq start
        for i in 1 2 3; do ./blipmq version >/dev/null; done
        ls /tmp | wc -l
        ./blipmq-cli -q info >/dev/null && echo answers
        finish
        """
    )
    assert done.stdout == "1\nanswers\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("noexec", "programs may not run from it (mounted noexec)"),
        ("ro", "it cannot be written (Read-only file system)"),
        ("size=4m", "it has only 4 MB free"),
    ],
)
def test_an_unusable_tmpdir_gives_one_line_with_reason_and_remedy(bare: System, options: str, reason: str) -> None:
    done = bare.run(
        "TMPDIR=/mnt exec ./blipmq version",
        check=False,
        setup=f"mount -t tmpfs -o {options} none $root/mnt",
    )
    assert done.returncode == 73
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"blipmq: cannot unpack into /mnt: {reason}; set TMPDIR to a folder")


def test_without_tmpdir_a_noexec_tmp_is_replaced_by_var_tmp(bare: System) -> None:
    done = bare.run("./blipmq version", setup="mount -t tmpfs -o noexec none $root/tmp")
    assert done.stdout.startswith("BlipMQ ")


@pytest.mark.parametrize(("keep", "line"), [(-1, "is incomplete"), (-1000, "is incomplete"), (0, "is damaged")])
def test_a_damaged_download_is_reported_in_one_line(bare: System, keep: int, line: str) -> None:
    path = bare.trial / "blipmq"
    data = bytearray(path.read_bytes())
    if keep:
        data = data[:keep]
    else:
        data[-100_000] ^= 0xFF
    path.unlink()
    path.write_bytes(data)
    path.chmod(0o755)
    done = bare.run("./blipmq version; status=$?; ls -A /tmp; exit $status", check=False)
    assert done.returncode == 70
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert line in done.stderr and "download it again" in done.stderr


@pytest.mark.parametrize("target", ["x64", "arm64", "armv7"])
def test_the_download_is_small_and_its_code_needs_no_glibc_newer_than_promised(target: str) -> None:
    build(target, "onefile")
    folder = DIST / f"linux-{target}"
    assert (folder / "blipmq").stat().st_size <= ONEFILE_BYTES_MAX
    checked = 0
    for path in (folder / "onedir").rglob("*"):
        if not path.is_file() or path.read_bytes()[:4] != b"\x7fELF":
            continue
        said = subprocess.run(["readelf", "-hVW", path], text=True, capture_output=True, check=True).stdout
        assert MACHINES[target] in said, path
        wanted = [word.partition("GLIBC_")[2] for word in said.split() if word.startswith("GLIBC_2")]
        newest = max((tuple(map(int, version.split("."))) for version in wanted), default=(2, 0))
        assert newest <= GLIBC_NEWEST, f"{path} needs glibc {newest}"
        checked += 1
    assert checked >= 5


def test_building_again_gives_the_same_bytes(tmp_path: Path) -> None:
    build("x64", "archive")
    build("x64", "archive", BLIPMQ_AGAIN="wheel freeze onefile archive", BLIPMQ_DIST=str(tmp_path))
    for name in ("linux-x64/blipmq", "release/blipmq-linux-x64.tar.gz", "release/blipmq-linux-x64.cdx.json"):
        assert (
            hashlib.sha256((tmp_path / name).read_bytes()).digest()
            == hashlib.sha256((DIST / name).read_bytes()).digest()
        )


# Files that start the programs as processes, but also import the package and so are not marked as black-box tests.
ALSO_BLACK = [
    "test_server.py",
    "test_admin.py",
    "test_service.py",
    "test_crash.py",
    "test_cli_server.py",
    "test_cli_client.py",
    "test_cli_qos1.py",
    "test_cli_bench.py",
    "test_shell.py",
]


def black_box_files() -> list[str]:
    """Those marked in their first lines; new files of the suite are tested on the binaries too."""
    marked = re.compile(r"^pytestmark = .*pytest\.mark\.blackbox", re.MULTILINE)
    return sorted(path.name for path in (TOP / "tests").glob("test_*.py") if marked.search(path.read_text()))


@pytest.mark.parametrize(
    ("target", "suite", "chosen"),
    [
        # With libedit a Ctrl-C between two keys may be noticed only at the next key: docs/PACKAGING.md.
        ("x64", [*black_box_files(), *ALSO_BLACK], "not ctrl_c_gives_a_new_prompt"),
        # Under emulation the whole suite takes too long: one test of each kind, and all of QoS 1, restarts and kill -9.
        # Disk errors use a library for this machine, which an emulated program cannot load.
        ("arm64", ["test_transcripts_qos1.py", "test_transcripts.py", "test_server.py"], "not failed_sync"),
    ],
    ids=["x64", "arm64"],
)
def test_the_black_box_tests_of_the_suite_pass_against_the_download(target: str, suite: list[str], chosen: str) -> None:
    build(target, "onefile")
    build(target, "chroot-oldest")
    environment = {
        **os.environ,
        "BLIPMQ_BINARY": str(DIST / f"linux-{target}/blipmq"),
        "BLIPMQ_CLI": str(DIST / f"linux-{target}/blipmq-cli"),
        "PYTHONPATH": str(TOP / "tests"),
        # The path where qemu-user finds the C library of another architecture.
        "QEMU_LD_PREFIX": str(CACHE / target / "chroot-oldest"),
    }
    # Slow tests measure memory or take long; the same code has passed them outside the binary.
    plugins = ["-n", "auto", "-p", "frozen_programs", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", "-q", *plugins, "-m", "not slow", "-k", chosen]
    subprocess.run([*command, *(str(TOP / "tests" / name) for name in suite)], cwd=TOP, env=environment, check=True)


# ---- the release -----------------------------------------------------------------------------------------------------


def test_the_release_archive_contains_both_names_settings_and_licences(tmp_path: Path) -> None:
    build("x64", "archive")
    with tarfile.open(RELEASE / "blipmq-linux-x64.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        archive.extractall(tmp_path, filter="data")
    (folder,) = tmp_path.iterdir()
    assert {"blipmq", "blipmq-cli", "LICENSE", "THIRD-PARTY.txt", "README.md", "config/blipmq-production.toml"} <= names
    assert (folder / "blipmq").samefile(folder / "blipmq-cli")
    assert (folder / "blip.fbs").read_bytes() == SCHEMA.read_bytes()
    assert subprocess.run([folder / "blipmq", "version"], capture_output=True, check=True).stdout.startswith(b"BlipMQ ")
    bom = json.loads((RELEASE / "blipmq-linux-x64.cdx.json").read_text())
    digest = hashlib.sha256((folder / "blipmq").read_bytes()).hexdigest()
    assert bom["metadata"]["component"]["hashes"] == [{"alg": "SHA-256", "content": digest}]
    notices = (folder / "THIRD-PARTY.txt").read_text()
    for part in bom["components"]:
        assert part["version"] != "unknown"
        assert f"{part['name']} {part['version']}\n" in notices


def test_a_signed_hash_list_is_accepted_and_a_changed_one_is_refused(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    release = tmp_path / "release"
    release.mkdir()
    (release / "file").write_bytes(b"contents")
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True, capture_output=True)
    signed = {**os.environ, "BLIPMQ_SIGNING_KEY": str(key)}
    subprocess.run([TOP / "packaging/release/sign", release], check=True, env=signed, capture_output=True)
    check = "openssl pkeyutl -verify -pubin -inkey blipmq.pub -rawin -in SHA256SUMS -sigfile SHA256SUMS.sig"
    verify = f"sha256sum --check SHA256SUMS && {check}"
    assert subprocess.run(verify, shell=True, cwd=release, capture_output=True).returncode == 0
    with (release / "SHA256SUMS").open("a") as file:
        file.write("\n")
    assert subprocess.run(verify, shell=True, cwd=release, capture_output=True).returncode != 0


# ---- the Debian package ----------------------------------------------------------------------------------------------


def newer(package: Path, folder: Path) -> Path:
    """The same package with a higher version."""
    tree, out = folder / "tree", folder / "newer.deb"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = tree / "DEBIAN/control"
    lines = ["Version: 99" if line.startswith("Version:") else line for line in control.read_text().splitlines()]
    control.write_text("\n".join(lines) + "\n")
    subprocess.run(["dpkg-deb", "-b", "--root-owner-group", tree, out], check=True, capture_output=True)
    return out


@pytest.mark.parametrize("target", ["x64", "arm64"])
def test_the_debian_package_installs_upgrades_and_purges_cleanly(target: str, upper: Path, tmp_path: Path) -> None:
    build(target, "deb")
    (package,) = RELEASE.glob(f"blipmq_*_{'amd64' if target == 'x64' else 'arm64'}.deb")
    listed = subprocess.run(["dpkg-deb", "-c", package], check=True, capture_output=True, text=True).stdout
    assert "./usr/share/doc/blipmq/blip.fbs\n" in listed
    bare = system(target, "oldest", upper)
    shutil.copy(package, bare.trial / "blipmq.deb")
    shutil.copy(newer(package, tmp_path), bare.trial / "newer.deb")
    done = bare.run(
        DURABLE
        + """
        # As the unit says, without systemd.
        serve() {
            cd /var/lib/blipmq
            start setpriv --reuid blipmq --regid blipmq --clear-groups blipmq start --config /etc/blipmq/blipmq.toml
            cd /trial
        }
        dpkg -i blipmq.deb >dpkg.log 2>&1 || { cat dpkg.log; exit 1; }
        stat -c '%U %a' /var/lib/blipmq
        blipmq check --config /etc/blipmq/blipmq.toml >/dev/null && echo checked
        serve
        subscribe blipmq-cli
        blipmq-cli -q pub --qos 1 plant/pump 'from before'
        finish
        echo '# mine' >>/etc/blipmq/blipmq.toml
        dpkg -i newer.deb >dpkg.log 2>&1 || { cat dpkg.log; exit 1; }
        serve
        resume blipmq-cli -n 1
        finish
        tail -n 1 /etc/blipmq/blipmq.toml
        dpkg -r blipmq >dpkg.log 2>&1
        ls /var/lib/blipmq/data /etc/blipmq
        dpkg -P blipmq >dpkg.log 2>&1
        ls -d /var/lib/blipmq /etc/blipmq /usr/lib/blipmq 2>/dev/null || echo gone
        """
    )
    expected = """blipmq 750
checked
from before
# mine
/etc/blipmq:
blipmq.toml

/var/lib/blipmq/data:
wal
gone
"""
    assert done.stdout == expected


# ---- the container image ---------------------------------------------------------------------------------------------


def image_root(platform: str, folder: Path) -> dict[str, object]:
    """Unpacks the image of a platform as a container engine does, with every digest checked; returns its
    configuration."""
    with tarfile.open(RELEASE / "blipmq-oci.tar") as archive:
        blobs = {m.name: archive.extractfile(m).read() for m in archive.getmembers()}  # type: ignore[union-attr]

    def blob(descriptor: dict[str, str]) -> bytes:
        data = blobs["blobs/" + descriptor["digest"].replace(":", "/")]
        assert "sha256:" + hashlib.sha256(data).hexdigest() == descriptor["digest"]
        return data

    index = json.loads(blob(json.loads(blobs["index.json"])["manifests"][0]))
    (chosen,) = [m for m in index["manifests"] if f"{m['platform']['os']}/{m['platform']['architecture']}" == platform]
    manifest = json.loads(blob(chosen))
    for number, layer in enumerate(manifest["layers"]):
        path = folder.parent / f"layer{number}"
        path.write_bytes(blob(layer))
        subprocess.run(["tar", "-xzf", path, "-C", folder, "--same-owner", "--same-permissions"], check=True)
    config: dict[str, object] = json.loads(blob(manifest["config"]))["config"]
    return config


@pytest.mark.parametrize("platform", ["linux/amd64", "linux/arm64"])
def test_the_container_image_serves_read_only_without_root_and_without_a_shell(platform: str, tmp_path: Path) -> None:
    for target in ("x64", "arm64"):
        build(target, "image")
    subprocess.run([TOP / "packaging/oci/join"], check=True, env=os.environ)
    root = tmp_path / "root"
    root.mkdir()
    config = image_root(platform, root)
    assert (root / "usr/share/doc/blipmq/blip.fbs").read_bytes() == SCHEMA.read_bytes()
    assert not list(root.rglob("sh")) and not list(root.rglob("bash"))
    program = " ".join([*config["Entrypoint"], *config["Cmd"]])  # type: ignore[misc]
    health = " ".join(config["Healthcheck"]["Test"][1:])  # type: ignore[index]
    entry = config["Entrypoint"][0]  # type: ignore[index]
    user, group = str(config["User"]).split(":")
    # Started like by a container engine: devices, the user and folder of the image, only the volume is writable.
    script = f"""
        ip link set lo up
        mount --bind {root} {root}
        mount -o remount,bind,ro {root}
        mount -t proc proc {root}/proc
        mount --bind /dev {root}/dev
        mount -t tmpfs -o size=256m,uid=65532 none {root}/var/lib/blipmq
        as_user() {{ exec unshare --root={root} --wd={config["WorkingDir"]} --setgid={group} --setuid={user} "$@"; }}
        (as_user {entry} keys add probe --file /var/lib/blipmq/keys) >/dev/null 2>&1
        export BLIPMQ_AUTH__KEYS_FILE=/var/lib/blipmq/keys BLIPMQ_AUTH__ALLOW_ANONYMOUS=false
        as_user {program} >{tmp_path}/log 2>&1 & broker=$!
        until grep -q ' info ready ' {tmp_path}/log; do kill -0 $broker || {{ cat {tmp_path}/log; exit 90; }}; sleep 0.05; done
        (as_user {health}) >{tmp_path}/health && echo healthy
        kill -TERM $broker
        wait $broker
        (as_user {health}) >/dev/null 2>&1 || echo unhealthy
    """
    command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-euc", script]
    done = subprocess.run(command, text=True, capture_output=True, timeout=TRIAL_SECONDS_MAX)
    assert (done.returncode, done.stdout) == (0, "healthy\nunhealthy\n"), done.stderr


# ---- the wheels ------------------------------------------------------------------------------------------------------


def debian_version(source: str) -> str:
    versions = dict(line.split() for line in (CACHE / "any/sources/versions").read_text().splitlines())
    return versions[source]


@pytest.mark.parametrize("target", ["x64", "arm64"])
def test_the_wheel_runs_on_every_python_3_with_glibc_2_31_without_a_compiler(target: str) -> None:
    build(target, "manylinux")
    machine = {"x64": "x86_64", "arm64": "aarch64"}[target]
    (wheel,) = RELEASE.glob(f"blipmq-*_{machine}.whl")
    _, _, python, abi, platform = wheel.stem.rsplit("-", 4)
    assert (python, abi) == ("cp310", "abi3")
    for tag in platform.split("."):
        version = tag.removeprefix("manylinux_").split("_")[:2] if tag.startswith("manylinux_") else ["2", "17"]
        assert (int(version[0]), int(version[1])) <= GLIBC_NEWEST
    with zipfile.ZipFile(wheel) as archive:
        (schema,) = [name for name in archive.namelist() if name.endswith(".data/data/share/doc/blipmq/blip.fbs")]
        assert archive.read(schema) == SCHEMA.read_bytes()
        assert any(name.endswith("licenses/LICENSE.OpenSSL") for name in archive.namelist())
        modules = {name: archive.read(name) for name in archive.namelist() if name.endswith(".so")}
    assert modules.keys() == {"blipmq/_native.abi3.so", "blipmq/_tls.abi3.so"}
    version = debian_version("openssl").partition("-")[0]
    assert f"OpenSSL {version} ".encode() in modules["blipmq/_tls.abi3.so"]
    parts = {part["name"]: part["version"] for part in json.loads(Path(f"{wheel}.cdx.json").read_text())["components"]}
    assert parts == {"openssl": debian_version("openssl")}
