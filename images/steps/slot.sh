# The parts that an update replaces: the system (squashfs) and its kernel (ext2, because the boot loader does not read zstd).
# needs: tree initrd
# inputs: images/layout.env images/tool
. images/layout.env
arch=$BASE/$PACKAGING_TARGET
at=/cache/${OUT#"$CACHE"/}
rm -rf "$OUT/root.squashfs" "$OUT/kernel.img" "$OUT/kernel"
images/tool mksquashfs "$at/tree" "$at/root.squashfs" -noappend -quiet -no-progress -comp zstd -Xcompression-level "${SQUASHFS_LEVEL:-15}" -b 128K

mkdir "$OUT/kernel"
cp "$arch"/parts/boot/vmlinuz-* "$OUT/kernel/vmlinuz"
cp "$arch/initrd.img" "$OUT/kernel/initrd.img"
find "$OUT/kernel" -exec touch --date="@$(images/epoch)" {} +
uuid=$(images/uuid "$TARGET kernel")
# Only slightly larger than its contents, to keep the update small.
size=$(($(du -sm "$OUT/kernel" | cut -f1) + 3))
images/tool mke2fs -q -t ext2 -b 4096 -m 0 -N 32 -O ^resize_inode,^dir_index,^ext_attr -L blipmq-kernel -U "$uuid" \
    -E "hash_seed=$uuid,root_owner=0:0,lazy_itable_init=0" -d "$at/kernel" "$at/kernel.img" "${size}M"
ls -l "$OUT/root.squashfs" "$OUT/kernel.img"
[ "$(stat -c %s "$OUT/root.squashfs")" -le $((ROOT_MIB << 20)) ]
[ "$(stat -c %s "$OUT/kernel.img")" -le $((KERNEL_MIB << 20)) ]
