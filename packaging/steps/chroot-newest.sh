# A bare system of the newest release, without Python, to try binaries and packages in.
# needs:
packaging/emulation
rm -rf "$OUT/chroot-newest"
mmdebstrap --arch="$DEBIAN_ARCH" --variant=essential --include=adduser,init-system-helpers \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Check-Valid-Until "false"' \
    --aptopt='Acquire::Check-Date "false"' "$SOURCE_RELEASE" "$OUT/chroot-newest" "deb $(packaging/mirror main) $SOURCE_RELEASE main"
[ ! -e "$OUT/chroot-newest/usr/bin/python3" ]
