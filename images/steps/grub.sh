# The boot loader as one EFI program.
# needs: tools parts
# inputs: images/tool
# shared: PACKAGING_TARGET
case $DEBIAN_ARCH in
amd64) format=x86_64-efi ;;
arm64) format=arm64-efi ;;
esac
at=/cache/${OUT#"$CACHE"/}
images/tool grub-mkimage --format="$format" --directory="$at/parts/usr/lib/grub/$format" --prefix=/system --output="$at/grub.efi" \
    part_gpt part_msdos fat ext2 normal configfile linux loadenv regexp test echo sleep reboot minicmd
ls -l "$OUT/grub.efi"
