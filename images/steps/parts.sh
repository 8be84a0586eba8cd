# Kernel, boot loader and firmware, unpacked: nothing of them is run here.
# needs:
# inputs: images/debian images/packages/parts-x64 images/packages/parts-arm64
# shared: PACKAGING_TARGET
images/debian extract "$DEBIAN_ARCH" "$OUT/parts" "images/packages/parts-$PACKAGING_TARGET"
# Nothing ran that would have made this.
ln -s usr/lib "$OUT/parts/lib"
