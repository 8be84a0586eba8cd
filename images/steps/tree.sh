# The system of one target as a folder: Debian, drivers, the broker, and the files of images/root over them.
# needs: root parts tools keys packaging/deb
# inputs: images/layout.env images/root images/rauc images/firmware images/modules images/os-release images/tool config EPOCH VERSION
. images/layout.env
epoch=$(images/epoch)
version=$(images/version)
arch=$BASE/$PACKAGING_TARGET
tree=$OUT/tree
rm -rf "$tree"
mkdir -p "$OUT"
cp -a "$arch/root" "$tree"

# No package is installed later, so remove the package manager's files, except the list of installed packages.
rm -rf "$tree"/var/{cache,log,lib/apt,backups,mail} "$tree"/etc/{apt,cron.d,cron.daily,init.d,runit,sv,ufw,logrotate.d,update-motd.d}
rm -rf "$tree"/etc/rc?.d "$tree"/etc/{passwd,group,shadow,gshadow}- "$tree"/etc/ssh/ssh_host_* "$tree/etc/.pwd.lock"
find "$tree/var/lib/dpkg" -mindepth 1 ! -name status -delete
rm -rf "$tree"/usr/share/{man,info,locale,i18n,lintian,bug,doc-base,bash-completion,zsh,fish,menu,pixmaps,common-licenses/GFDL*}
rm -rf "$tree"/usr/share/{perl5,debconf,runit,initramfs-tools,zoneinfo/right,zoneinfo/posix}
rm -rf "$tree"/usr/lib/"$TRIPLET"/{perl-base,gconv,krb5,engines-3,ossl-modules/legacy.so} "$tree"/usr/bin/perl*
rm -rf "$tree"/usr/lib/udev/{hwdb.d,hwdb.bin} "$tree"/usr/lib/systemd/catalog "$tree"/usr/lib/kernel
mkdir -p "$tree"/var/{cache,log} "$tree/var/lib/private"

# The drivers, and the program by which RAUC informs the boot loader.
release=$(ls "$arch/parts/usr/lib/modules")
modules=usr/lib/modules/$release
mkdir -p "$tree/$modules/kernel"
(cd "$arch/parts/$modules/kernel" && sed 's/#.*//' "$top/images/modules" | xargs ls -d 2>/dev/null || true) >"$OUT/modules"
grep -q '^fs/ext4$' "$OUT/modules"
tar -C "$arch/parts/$modules/kernel" --files-from="$OUT/modules" --create | tar -C "$tree/$modules/kernel" --extract
# The device runs no virtual machines.
rm -rf "$tree/$modules/kernel/arch/x86/kvm" "$tree/$modules/kernel/arch/arm64/kvm"
cp "$arch/parts/$modules"/modules.{builtin,builtin.modinfo,order} "$tree/$modules/"
images/tool depmod --basedir "/cache/${tree#"$CACHE"/}" "$release"
install -m 0755 "$arch/parts/usr/bin/grub-editenv" "$tree/usr/bin/"
if [ -n "${FIRMWARE:-}" ]; then
    (cd "$arch/parts" && sed 's/#.*//' "$top/images/firmware/$FIRMWARE/root" | xargs bash -c 'cp -a --parents $* "$0"' "$tree")
fi

# The overlay first, because it sets the number of the broker's user. The package's own scripts are then not needed.
cp -a images/root/. "$tree/"
chown -R root:root "$tree"/{boot,data} "$tree/etc/systemd" "$tree/usr/lib/blipmq-device"
images/tool systemd-sysusers --root="/cache/${tree#"$CACHE"/}"
grep -q '^blipmq:x:870:870:' "$tree/etc/passwd"
dpkg-deb --fsys-tarfile "$DIST/release/blipmq_$(packaging/version debian)_$DEBIAN_ARCH.deb" |
    tar -C "$tree" --extract --keep-directory-symlink --exclude='./usr/share/man' --exclude='./usr/share/bash-completion' \
        --exclude='./usr/share/zsh' --exclude='./usr/share/fish' --exclude='./usr/share/doc/blipmq/examples'
ln -sf ../lib/blipmq/blipmq "$tree/usr/bin/blipmq-device"
install -d "$tree/usr/share/blipmq/profiles"
install -m 0644 config/blipmq-*.toml "$tree/usr/share/blipmq/profiles/"

# Names, times, and a locked root password ("*": only SSH with a key works).
sed "s/@VERSION@/$version/; s/@TARGET@/$TARGET/" images/os-release >"$tree/usr/lib/os-release"
ln -sf ../usr/lib/os-release "$tree/etc/os-release"
rm -f "$tree/etc/machine-id" "$tree/var/lib/dbus/machine-id" "$tree/etc/hostname.dpkg-new"
install -m 0444 /dev/null "$tree/etc/machine-id"
install -m 0644 /dev/null "$tree/usr/lib/clock-epoch"
sed -i 's/^root:[^:]*:[0-9]*:/root:*:1:/' "$tree/etc/shadow"
sed -i 's/^\([^:]*:[^:]*\):[0-9]*:/\1:1:/' "$tree/etc/shadow"
install -d "$tree/etc/rauc" "$tree/boot/blipmq" "$tree/data"
sed "s/@TARGET@/$TARGET/; s/@OLDEST@/$OLDEST_BUNDLE/" images/rauc/system.conf >"$tree/etc/rauc/system.conf"
install -m 0644 "$BASE/any/keys/keyring.pem" "$tree/etc/rauc/keyring.pem"
! grep -E '^[^:]*:[^*!:]' "$tree/etc/shadow"
find "$tree" -newermt "@$epoch" -exec touch --no-dereference --date="@$epoch" {} +
du -sm "$tree" "$tree/$modules"
