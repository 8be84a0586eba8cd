# The one-file download: the onedir behind the launcher, under both names.
# needs: freeze
# inputs: packaging/launcher
packaging/chroot "$CACHE/any/chroot-build" bash -euo pipefail /source/packaging/launcher/build.sh
python3 packaging/launcher/pack.py archive "$OUT/onedir/blipmq" "$OUT/onefile/payload"
packaging/chroot "$CACHE/any/chroot-build" zstd -19 --long=24 --no-progress --force \
    "/cache/$TARGET/onefile/payload" -o "/cache/$TARGET/onefile/payload.zst"
python3 packaging/launcher/pack.py join "$OUT/onefile/launcher" "$OUT/onefile/payload" "$OUT/onefile/payload.zst" "$OUT/onefile/blipmq"
mkdir -p "$DELIVER/linux-$TARGET"
cp "$OUT/onefile/blipmq" "$DELIVER/linux-$TARGET/blipmq"
ln -f "$DELIVER/linux-$TARGET/blipmq" "$DELIVER/linux-$TARGET/blipmq-cli"
