# The whole medium as it is flashed: partition table, FAT, both slots, and a small data partition that grows later.
# needs: slot boot
# inputs: images/layout.env images/tool
. images/layout.env
at=/cache/${OUT#"$CACHE"/}
work=$OUT/disk
rm -rf "$work" "$OUT/blipmq-$TARGET.img"
mkdir -p "$work"/{root,input,tmp}
ln "$OUT/root.squashfs" "$OUT/kernel.img" "$OUT/boot.vfat" "$work/input/"

uuid=$(images/uuid "$TARGET data")
# Made with the structures of a large file system, because the journal does not grow with the partition.
images/tool mke2fs -q -t ext4 -b 4096 -i 16384 -m 1 -J size=16 -L blipmq-data -U "$uuid" \
    -E "hash_seed=$uuid,root_owner=0:0,lazy_itable_init=0,lazy_journal_init=0" "$at/disk/input/data.ext4" "${DATA_MIB}M"

linux=0fc63daf-8483-4772-8e79-3d69d8477de4
partition() {
    cat <<CONF
  partition blipmq-$1 {
    image = "$2"
    size = ${3}M
    partition-uuid = "$(images/uuid "$TARGET partition $1")"
    partition-type-uuid = "$4"
    ${5:-}
  }
CONF
}
{
    cat <<CONF
image blipmq-$TARGET.img {
  hdimage {
    partition-table-type = "$PARTITION_TABLE"
    disk-uuid = "$(images/uuid "$TARGET disk")"
    align = 1M
  }
CONF
    partition boot boot.vfat "$BOOT_MIB" "$BOOT_TYPE" "${BOOT_OPTIONS:-}"
    for slot in a b; do
        partition "$slot-kernel" kernel.img "$KERNEL_MIB" $linux
        partition "$slot-root" root.squashfs "$ROOT_MIB" $linux
    done
    partition data data.ext4 "$DATA_MIB" $linux
    echo "}"
} >"$work/genimage.cfg"
images/tool genimage --rootpath "$at/disk/root" --inputpath "$at/disk/input" --outputpath "$at" --tmppath "$at/disk/tmp" \
    --config "$at/disk/genimage.cfg"
rm -rf "$work"
images/tool sfdisk --dump "$at/blipmq-$TARGET.img"
