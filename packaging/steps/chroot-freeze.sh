# The freezer's chroot: the oldest userland, of the target's own architecture. PyInstaller is no cross compiler.
# needs:
packaging/emulation
mirror=$(packaging/mirror main)
rm -rf "$OUT/chroot-freeze"
mmdebstrap --arch="$DEBIAN_ARCH" --variant=minbase --include=gcc,libc6-dev,libedit-dev,binutils,libffi7 \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='Acquire::Check-Date "false"' \
    "$USERLAND" "$OUT/chroot-freeze" "deb $mirror $USERLAND main"
