# The release archive, and the SBOM of the binary in it.
# needs: onefile
# inputs: packaging/release config native/proto/blip.fbs LICENSE README.md EPOCH
version=$(packaging/version)
epoch=$(packaging/epoch)
mkdir -p "$DELIVER/release"
python3 packaging/release/archive.py "$CACHE" "$TARGET" "$version" "$epoch" "$OUT/onefile/blipmq" "$DELIVER/release/blipmq-linux-$TARGET.tar.gz"
python3 packaging/release/sbom.py "$CACHE" "$TARGET" "$version" "$epoch" "$OUT/onefile/blipmq" "$DELIVER/release/blipmq-linux-$TARGET.cdx.json"
