# The initrd: busybox, one script, and the drivers it takes to reach a slot.
# needs: tools parts
# inputs: images/initrd images/tool
# shared: PACKAGING_TARGET
# The kernel's own affair, and not of the time of any commit.
export SOURCE_DATE_EPOCH=$TOOLCHAIN_EPOCH
initrd=$OUT/initrd
parts=/cache/${OUT#"$CACHE"/}/parts
release=$(ls "$OUT/parts/usr/lib/modules")
modules=$initrd/usr/lib/modules/$release
rm -rf "$initrd" "$OUT/initrd.img"
mkdir -p "$initrd"/{bin,data,dev,proc,run,sys,sysroot} "$modules"
# The kernel looks for modprobe in /sbin.
ln -s bin "$initrd/sbin"
ln -s usr/lib "$initrd/lib"
install -m 0755 images/initrd/init "$initrd/init"
install -m 0755 "$OUT/parts/usr/bin/busybox" "$initrd/bin/busybox"
for applet in cat find grep mkdir modprobe mount reboot sed sh sleep sort switch_root umount xargs; do
    ln -s busybox "$initrd/bin/$applet"
done

# With everything each of them needs; unpacked, because the initrd is packed as a whole.
images/tool depmod --basedir "$parts" "$release"
images/tool sh -c "for module in $(sed 's/#.*//' images/initrd/modules | xargs); do
    modprobe --dirname $parts --set-version $release --show-depends \$module 2>/dev/null; done || true" |
    sed -n 's/^insmod \([^ ]*\).*/\1/p' | sort -u >"$OUT/initrd.modules"
grep -q /squashfs.ko "$OUT/initrd.modules"
while read -r module; do
    xz -dc "$CACHE/${module#/cache/}" >"$modules/$(basename "$module" .xz)"
done <"$OUT/initrd.modules"
cp "$OUT/parts/usr/lib/modules/$release"/modules.{builtin,builtin.modinfo} "$modules/"
images/tool depmod --basedir "${parts%/parts}/initrd" "$release"
rm -f "$modules"/modules.*.bin "$modules"/modules.{devname,symbols,weakdep,builtin.modinfo}

find "$initrd" -exec touch --no-dereference --date="@$TOOLCHAIN_EPOCH" {} +
(cd "$initrd" && find . | LC_ALL=C sort) |
    images/tool sh -c "cd ${parts%/parts}/initrd && cpio --quiet --create --format=newc --owner=0:0 --reproducible | zstd -q -19 -T2" >"$OUT/initrd.img"
ls -l "$OUT/initrd.img"
