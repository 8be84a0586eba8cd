# The two layers of the container image for one platform: the C library with zlib, and BlipMQ.
# needs: freeze
# inputs: packaging/oci packaging/release native/proto/blip.fbs LICENSE EPOCH
epoch=$(packaging/epoch)
mirror=$(packaging/mirror main)
security=$(packaging/mirror security)
root=$OUT/image/root
base=$OUT/image/base
program=$OUT/image/program
rm -rf "$OUT/image"
mkdir -p "$OUT/image"

# Checks signatures and unpacks without running programs, so no emulation is needed. Security fixes have priority if the mirror has them.
sources=("deb $mirror $SOURCE_RELEASE main")
[ -z "$security" ] || sources+=("deb $security $SOURCE_RELEASE-security main")
unpack() {
    mmdebstrap --arch="$DEBIAN_ARCH" --variant=extract --include=libc6,zlib1g --aptopt='APT::Install-Recommends "false"' \
        --aptopt='Acquire::Check-Valid-Until "false"' --aptopt='Acquire::Check-Date "false"' "$SOURCE_RELEASE" "$root" "$@"
}
unpack "${sources[@]}" || { rm -rf "$root"; echo "security mirror incomplete; the release alone"; unpack "${sources[0]}"; }

# Only the C library and zlib of a current release: no shell, no package manager, no certificates (the broker opens no connection).
mkdir -p "$base"/{dev,etc,proc,run,sys,tmp,usr/bin,var/lib/blipmq}
cp -a "$root"/usr/lib "$base/usr/"
if [ -d "$root/usr/lib64" ]; then cp -a "$root/usr/lib64" "$base/usr/" && ln -s usr/lib64 "$base/lib64"; fi
ln -s usr/lib "$base/lib"
rm -rf "$base"/usr/lib/{systemd,tmpfiles.d,apt,dpkg,locale} "$base"/usr/lib/"$TRIPLET"/{gconv,audit,perl-base}
for package in libc6 libgcc-s1 zlib1g; do
    install -D -m 0644 "$root/usr/share/doc/$package/copyright" "$base/usr/share/doc/$package/copyright"
done
printf 'root:x:0:0:root:/:/sbin/nologin\nblipmq:x:65532:65532:BlipMQ:/var/lib/blipmq:/sbin/nologin\n' >"$base/etc/passwd"
printf 'root:x:0:\nblipmq:x:65532:\n' >"$base/etc/group"
printf 'hosts: files dns\n' >"$base/etc/nsswitch.conf"

mkdir -p "$program"/{etc/blipmq,usr/bin,usr/lib,usr/share/doc/blipmq}
cp -a "$OUT/onedir/blipmq" "$program/usr/lib/blipmq"
rm "$program/usr/lib/blipmq/_internal/libz.so.1"
ln -s ../lib/blipmq/blipmq "$program/usr/bin/blipmq"
ln -s ../lib/blipmq/blipmq "$program/usr/bin/blipmq-cli"
cp packaging/oci/blipmq.toml "$program/etc/blipmq/"
cp native/proto/blip.fbs "$program/usr/share/doc/blipmq/"
python3 packaging/release/copyright.py "$CACHE" "$TARGET" "$program/usr/share/doc/blipmq"

python3 packaging/oci/image.py layer "$base" "$epoch" "$OUT/image/base.tar"
python3 packaging/oci/image.py layer "$program" "$epoch" "$OUT/image/program.tar"
