# The FAT partition: boot loader, firmware where a board needs it, and the files that a technician edits.
# needs: tools grub
# inputs: images/layout.env images/boot images/grub images/firmware images/tool EPOCH
. images/layout.env
boot=$OUT/boot
at=/cache/${OUT#"$CACHE"/}
rm -rf "$boot" "$OUT/boot.vfat"
mkdir -p "$boot/EFI/BOOT" "$boot/system"
cp -a images/boot/. "$boot/"
cp "$BASE/$PACKAGING_TARGET/grub.efi" "$boot/EFI/BOOT/$EFI_FILE"
sed "s/@CONSOLES@/$CONSOLES/" images/grub/grub.cfg >"$boot/system/grub.cfg"
images/tool sh -c "grub-editenv $at/boot/system/grubenv create &&
    grub-editenv $at/boot/system/grubenv set 'ORDER=A B' A_OK=1 A_TRY=0 B_OK=1 B_TRY=0"
if [ -n "${FIRMWARE:-}" ]; then
    (cd "$BASE/$PACKAGING_TARGET/parts" && sed 's/#.*//' "$top/images/firmware/$FIRMWARE/boot" | xargs bash -c 'cp $* "$0"' "$boot")
    cp "images/firmware/$FIRMWARE/config.txt" "$boot/"
fi

find "$boot" -exec touch --date="@$(images/epoch)" {} +
truncate -s "${BOOT_MIB}M" "$OUT/boot.vfat"
images/tool bash -euo pipefail -c "mkfs.vfat -F 32 -n BLIPMQ --invariant -i $(images/uuid "$TARGET boot" | cut -c1-8) $at/boot.vfat
    cd $at/boot
    for name in \$(LC_ALL=C ls -A); do mcopy -spmQ -i $at/boot.vfat \$name ::; done
    mdir -/ -i $at/boot.vfat ::"
