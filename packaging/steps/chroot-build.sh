# The compilers' chroot: the oldest userland a binary has to run on, with compilers for both targets.
# needs:
# shared: yes
mirror=$(packaging/mirror main)
rm -rf "$OUT/chroot-build"
mmdebstrap --arch="$(dpkg --print-architecture)" --architectures=amd64,arm64 --variant=minbase \
    --include=build-essential,crossbuild-essential-arm64,pkg-config,perl,xz-utils,zstd,patchelf \
    --include=libffi-dev:amd64,libffi-dev:arm64,libzstd-dev:amd64,libzstd-dev:arm64 \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='Acquire::Check-Date "false"' \
    "$USERLAND" "$OUT/chroot-build" "deb $mirror $USERLAND main"
