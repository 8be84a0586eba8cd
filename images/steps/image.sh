# The files for download: the compressed medium, its hash, its contents (SBOM), and the entry for Raspberry Pi Imager.
# needs: disk
# inputs: images/manifest.py images/sbom.py packaging/release EPOCH VERSION =BLIPMQ_IMAGE_URL
version=$(images/version)
name=blipmq-$TARGET-$version
out=$DELIVER/images
mkdir -p "$out"
# Several threads, because one takes minutes. Blocks of a fixed size give the same result with any number of threads.
xz --keep --stdout --threads=0 --block-size=16MiB "-${BLIPMQ_XZ_LEVEL:-6}" "$OUT/blipmq-$TARGET.img" >"$out/$name.img.xz"
(cd "$out" && sha256sum "$name.img.xz" >"$name.img.xz.sha256")
python3 images/sbom.py "$CACHE" "$TARGET" "$PACKAGING_TARGET" "$version" "$(images/epoch)" "$out/$name.img.xz" "$out/$name.cdx.json"
python3 images/manifest.py "$OUT/blipmq-$TARGET.img" "$out/$name.img.xz" "$version" "$(images/epoch)" "$TITLE" "$IMAGER_DEVICES" \
    "${BLIPMQ_IMAGE_URL:-}" "$out/$name.os_list.json"
ls -l "$out"
