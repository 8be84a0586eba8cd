# Runs in the build chroot: static zlib and OpenSSL for the target, as /cache/TARGET/libraries.
#
# OpenSSL is linked into the interpreter, so that a binary carries one with current fixes instead of the old userland's;
# what TLS 1.2 and 1.3 do not need is left out, for size and for fewer things to be wrong.
set -a
. /source/packaging/versions.env
. "/source/packaging/targets/$TARGET.env"
set +a
export CC=$TRIPLET-gcc AR=$TRIPLET-gcc-ar RANLIB=$TRIPLET-gcc-ranlib
export CFLAGS="-O2 -g0 -fPIC -fstack-protector-strong -D_FORTIFY_SOURCE=2 -ffunction-sections -fdata-sections -ffile-prefix-map=/build=."
prefix=/cache/$TARGET/libraries
rm -rf "$prefix" /build
mkdir -p "$prefix" /build

cp -a "/cache/any/sources/$ZLIB_SOURCE" /build/zlib
cd /build/zlib
chmod +x configure
CHOST=$TRIPLET ./configure --static --prefix="$prefix"
make -j2 libz.a
make install

cp -a "/cache/any/sources/$OPENSSL_SOURCE" /build/openssl
cd /build/openssl
./Configure "$OPENSSL_TARGET" --prefix="$prefix" --libdir=lib --openssldir=/etc/ssl \
    no-shared no-module no-dso no-legacy no-engine no-tests no-docs no-apps no-comp no-ssl3 no-dtls no-quic no-srp \
    no-cms no-cmp no-ts no-ct no-ssl-trace no-aria no-bf no-blake2 no-camellia no-cast no-des no-ec2m no-gost no-idea \
    no-md4 no-rc2 no-rc4 no-rmd160 no-seed no-siphash no-sm2 no-sm3 no-sm4 no-whirlpool no-scrypt no-ml-dsa no-slh-dsa \
    CFLAGS="$CFLAGS"
make -j2 build_libs
make install_dev
rm -rf /build
