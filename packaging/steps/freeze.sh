# The onedir: PyInstaller in the freezer's chroot.
# needs: wheel
# inputs: packaging/freeze EPOCH
packaging/emulation
SOURCE_DATE_EPOCH=$(packaging/epoch) packaging/chroot "$OUT/chroot-freeze" bash -euo pipefail /source/packaging/freeze/freeze.sh
mkdir -p "$DELIVER/linux-$TARGET"
rm -rf "$DIST/linux-$TARGET/onedir"
cp -a "$OUT/onedir/blipmq" "$DELIVER/linux-$TARGET/onedir"
