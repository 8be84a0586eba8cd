# Kernel, boot loader and firmware, unpacked: nothing of them is run here.
# needs:
# inputs: images/debian images/packages
# shared: PACKAGING_TARGET
images/debian extract "$DEBIAN_ARCH" "$OUT/parts" "images/packages/parts-$PACKAGING_TARGET"
