# The update of one target: the signed contents of a slot.
#
# $BLIPMQ_BUNDLE_CERT and $BLIPMQ_BUNDLE_KEY name certificate and private key (a file or a PKCS#11 URI), $BLIPMQ_BUNDLE_KEYRING
# the certificates to check it with. Without them the development key signs.
# needs: slot keys
# inputs: images/tool =BLIPMQ_BUNDLE_CERT =BLIPMQ_BUNDLE_KEY EPOCH VERSION
work=$OUT/bundle
at=/cache/${OUT#"$CACHE"/}
bundle=bundle-$TARGET.raucb
version=$(images/version)
rm -rf "$work" "$OUT/$bundle"
mkdir -p "$work/content" "$work/keys" "$DELIVER/images"
trap 'rm -rf "$work"' EXIT
if [ -n "${BLIPMQ_BUNDLE_KEY:-}" ]; then
    cp "${BLIPMQ_BUNDLE_CERT:?names the certificate that goes with BLIPMQ_BUNDLE_KEY}" "$work/keys/cert.pem"
    key=$BLIPMQ_BUNDLE_KEY
    if [ -f "$key" ]; then install -m 0600 "$key" "$work/keys/key.pem" && key=$at/bundle/keys/key.pem; fi
else
    [ -s "$BASE/any/keys/development.key.pem" ] ||
        { echo "images: a keyring is named, so a key is needed too: set BLIPMQ_BUNDLE_CERT and BLIPMQ_BUNDLE_KEY" >&2; exit 1; }
    echo "signed with the development key: for trying out, not for devices in the field"
    cp "$BASE/any/keys/development.cert.pem" "$work/keys/cert.pem"
    key=/cache/${BASE#"$CACHE"/}/any/keys/development.key.pem
fi
ln "$OUT/root.squashfs" "$OUT/kernel.img" "$work/content/"
cat >"$work/content/manifest.raucm" <<MANIFEST
[update]
compatible=blipmq-$TARGET
version=$version
description=$TITLE $version
build=$(date --utc --date="@$(images/epoch)" +%Y%m%d%H%M%S)

[bundle]
format=verity

[image.rootfs]
filename=root.squashfs

[image.kernel]
filename=kernel.img
MANIFEST
images/tool rauc bundle --cert="$at/bundle/keys/cert.pem" --key="$key" --keyring="/cache/${BASE#"$CACHE"/}/any/keys/keyring.pem" \
    --mksquashfs-args="-comp zstd -Xcompression-level 3" "$at/bundle/content" "$at/$bundle"
images/tool rauc info --keyring="/cache/${BASE#"$CACHE"/}/any/keys/keyring.pem" "$at/$bundle"
mv "$OUT/$bundle" "$DELIVER/images/"
(cd "$DELIVER/images" && sha256sum "$bundle" >"$bundle.sha256" && ls -l "$bundle")
