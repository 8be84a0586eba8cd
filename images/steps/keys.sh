# Who may sign an update: the certificates named by $BLIPMQ_BUNDLE_KEYRING, or a development authority made here.
#
# The development key is made once and stays in the cache, never in the tree: whoever has the cache can update what was
# built with it.
# needs: tools
# inputs: =BLIPMQ_BUNDLE_KEYRING
# shared: yes
keys=$OUT/keys
mkdir -p "$keys"
if [ -n "${BLIPMQ_BUNDLE_KEYRING:-}" ]; then
    cp "$BLIPMQ_BUNDLE_KEYRING" "$keys/keyring.pem"
    exit
fi
if [ ! -s "$keys/development.cert.pem" ]; then
    umask 077
    rm -f "$keys"/*
    new() { openssl req -quiet -newkey rsa:3072 -nodes "$@" 2>/dev/null || openssl req -newkey rsa:3072 -nodes "$@"; }
    new -x509 -days 7300 -subj "/O=BlipMQ/CN=development authority (not for devices in the field)" \
        -keyout "$keys/authority.key.pem" -out "$keys/authority.pem"
    new -subj "/O=BlipMQ/CN=development signer" -keyout "$keys/development.key.pem" -out "$keys/request.pem"
    openssl x509 -req -in "$keys/request.pem" -CA "$keys/authority.pem" -CAkey "$keys/authority.key.pem" -days 7300 \
        -extfile <(printf 'keyUsage=digitalSignature\nextendedKeyUsage=emailProtection\n') -out "$keys/development.cert.pem"
    rm -f "$keys/request.pem"
fi
cp "$keys/authority.pem" "$keys/keyring.pem"
