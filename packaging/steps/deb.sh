# The Debian package: the onedir with a systemd unit, its own user and one settings file.
# needs: freeze
# inputs: packaging/deb packaging/man packaging/completions packaging/release config native/proto/blip.fbs LICENSE EPOCH
SOURCE_DATE_EPOCH=$(packaging/epoch)
export SOURCE_DATE_EPOCH
version=$(packaging/version debian)
root=$OUT/deb
share=$root/usr/share
doc=$share/doc/blipmq
rm -rf "$root"
install -d "$root"/{DEBIAN,etc/blipmq,usr/bin,usr/lib/systemd/system} "$doc/examples" \
    "$share"/{man/man1,bash-completion/completions,zsh/vendor-completions,fish/vendor_completions.d}

cp -a "$OUT/onedir/blipmq" "$root/usr/lib/blipmq"
rm "$root/usr/lib/blipmq/_internal/libz.so.1"
ln -s ../lib/blipmq/blipmq "$root/usr/bin/blipmq"
ln -s ../lib/blipmq/blipmq "$root/usr/bin/blipmq-cli"
cp packaging/deb/blipmq.service "$root/usr/lib/systemd/system/"
cp packaging/deb/blipmq.toml "$root/etc/blipmq/"
cp config/*.toml "$doc/examples/"
cp native/proto/blip.fbs "$doc/"
# The man pages in the tree have no version and date, because they would be outdated at once. Both are added here.
today=$(date --utc --date="@$SOURCE_DATE_EPOCH" +%F)
for page in packaging/man/*.1; do
    sed "/^\.TH /s/\"\" \"BlipMQ\"/\"$today\" \"BlipMQ $version\"/" "$page" | gzip -9n >"$share/man/man1/$(basename "$page").gz"
done
for name in blipmq blipmq-cli; do
    cp "packaging/completions/$name.bash" "$share/bash-completion/completions/$name"
    cp "packaging/completions/_$name" "$share/zsh/vendor-completions/"
    cp "packaging/completions/$name.fish" "$share/fish/vendor_completions.d/"
done
python3 packaging/release/copyright.py "$CACHE" "$TARGET" "$doc"
printf 'blipmq (%s) unstable; urgency=medium\n\n  * Built from the source of this version; see CHANGELOG.md there.\n\n -- %s  %s\n' \
    "$version" "the BlipMQ authors <blipmq@example.org>" "$(date --utc --date="@$SOURCE_DATE_EPOCH" -R)" | gzip -9n >"$doc/changelog.gz"
install -D -m 0644 packaging/deb/lintian-overrides "$share/lintian/overrides/blipmq"

find "$root" -type d -exec chmod 0755 {} +
find "$root" -type f ! -path '*/DEBIAN/*' -exec chmod 0644 {} +
chmod 0755 "$root/usr/lib/blipmq/blipmq"
size=$(du -ks --exclude=DEBIAN "$root" | cut -f1)
sed "s/@VERSION@/$version/; s/@ARCH@/$DEBIAN_ARCH/; s/@SIZE@/$size/; s/@GLIBC@/$USERLAND_GLIBC/" packaging/deb/control >"$root/DEBIAN/control"
install -m 0644 packaging/deb/conffiles "$root/DEBIAN/conffiles"
install -m 0755 packaging/deb/{postinst,prerm,postrm} "$root/DEBIAN/"
(cd "$root" && find . -type f ! -path './DEBIAN/*' -printf '%P\0' | LC_ALL=C sort -z | xargs -0 md5sum) >"$root/DEBIAN/md5sums"
chmod 0644 "$root/DEBIAN/md5sums"
find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +

mkdir -p "$DELIVER/release"
dpkg-deb --build --root-owner-group -Zxz "$root" "$DELIVER/release/blipmq_${version}_$DEBIAN_ARCH.deb"
if command -v lintian >/dev/null; then lintian --fail-on error,warning "$DELIVER/release/blipmq_${version}_$DEBIAN_ARCH.deb"; fi
