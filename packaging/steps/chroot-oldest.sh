# A bare system of the oldest release a binary must run on, without Python, to try binaries and packages in.
# needs:
packaging/emulation
rm -rf "$OUT/chroot-oldest"
mmdebstrap --arch="$DEBIAN_ARCH" --variant=essential --include=adduser,init-system-helpers \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='Acquire::Check-Date "false"' "$USERLAND" "$OUT/chroot-oldest" "deb $(packaging/mirror main) $USERLAND main"
[ ! -e "$OUT/chroot-oldest/usr/bin/python3" ]
