# Runs in the build chroot: the launcher for the target, as /cache/TARGET/onefile/launcher. Static, so that it can
# report errors on systems that cannot load the program itself.
set -a
. "/source/packaging/targets/$TARGET.env"
set +a
mkdir -p "/cache/$TARGET/onefile"
"$TRIPLET-gcc" -std=gnu11 -Os -Wall -Wextra -Werror -D_FORTIFY_SOURCE=2 -fstack-protector-strong -ffunction-sections \
    -fdata-sections -ffile-prefix-map=/source=. -static -s -Wl,--gc-sections -Wl,--build-id=none \
    -o "/cache/$TARGET/onefile/launcher" /source/packaging/launcher/launcher.c -lzstd
