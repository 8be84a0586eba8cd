# Runs in the build chroot: a trimmed CPython for the target, installed as /cache/TARGET/python/opt/python.
#
# The modules below are linked into libpython: fewer files to load, and one place that says what a binary can do.
# Left out: graphics, databases, terminals drawing, old compressors, East Asian codecs (the wire is UTF-8), XML,
# profiling, sub-interpreters, and _hashlib, which would only repeat what the built-in hashes do.
# Profile guided optimisation is left out on purpose: it does not work across architectures, and C moves the messages.
set -a
. /source/packaging/versions.env
. "/source/packaging/targets/$TARGET.env"
set +a
left_out="_tkinter _curses _curses_panel _dbm _gdbm readline _sqlite3 _uuid _bz2 _lzma pyexpat _elementtree
    _codecs_cn _codecs_hk _codecs_iso2022 _codecs_jp _codecs_kr _codecs_tw _multibytecodec
    _lsprof _interpreters _interpchannels _interpqueues _statistics _zoneinfo cmath syslog _hashlib"
libraries=/cache/$TARGET/libraries
install=/cache/$TARGET/python
rm -rf /build "$install"
cp -a "/cache/any/sources/$PYTHON_SOURCE" /build
cp /source/packaging/python/Setup.local /build/Modules/Setup.local
cd /build

build=$(gcc -dumpmachine)
options=(--build="$build" --host="$TRIPLET")
if [ "$build" != "$TRIPLET" ]; then
    # What configure would find out by running a program on the target.
    options=(--build="$build" --host="$TRIPLET" --with-build-python="/opt/python/bin/python$PYTHON_VERSION"
        ac_cv_file__dev_ptmx=yes ac_cv_file__dev_ptc=no ac_cv_buggy_getaddrinfo=no)
fi
for module in $left_out; do options+=("py_cv_module_$module=n/a"); done

./configure --prefix=/opt/python --enable-shared --with-lto --without-ensurepip --without-static-libpython \
    --without-doc-strings --without-readline --disable-test-modules --with-openssl="$libraries" \
    --with-builtin-hashlib-hashes=md5,sha1,sha2,sha3,blake2 \
    "${options[@]}" MODULE_BUILDTYPE=static PKG_CONFIG=false \
    CC="$TRIPLET-gcc -pthread" CXX="$TRIPLET-g++" AR="$TRIPLET-gcc-ar" READELF="$TRIPLET-readelf" \
    CFLAGS="-g0 -ffile-prefix-map=/build=." CFLAGS_NODIST="-fstack-protector-strong -D_FORTIFY_SOURCE=2" CPPFLAGS="-I$libraries/include" \
    ZLIB_CFLAGS="-I$libraries/include" ZLIB_LIBS="-L$libraries/lib -lz" \
    LDFLAGS_NODIST="-Wl,-z,relro -Wl,-z,now -Wl,--gc-sections -Wl,--exclude-libs,libcrypto.a:libssl.a:libz.a -Wl,-rpath,/opt/python/lib"
# A helper of the build that is linked like the interpreter itself unless told not to: minutes for nothing.
[ "$build" != "$TRIPLET" ] || make -j2 Programs/_freeze_module PY_CORE_LDFLAGS="-fno-lto"
make -j2
make install DESTDIR="$install"
# Only the interpreter of the chroot needs to be told where its library is.
patchelf --remove-rpath "$install"/opt/python/lib/libpython*.so.*
grep -q '_ssl' Modules/config.c || { echo "the interpreter came out without TLS" >&2; exit 1; }

# The interpreter's own tests, idle, the bundled pip and the static parts are of no use to a freezer.
lib=$install/opt/python/lib/python$PYTHON_VERSION
rm -rf "$lib"/{test,idlelib,turtledemo,tkinter,ensurepip,lib2to3} "$lib"/config-*/*.a
find "$install" -name __pycache__ -prune -exec rm -rf {} +
"$TRIPLET-strip" --strip-unneeded "$install"/opt/python/lib/libpython*.so.* "$install/opt/python/bin/python$PYTHON_VERSION"
if [ "$build" = "$TRIPLET" ]; then rm -rf /opt/python; cp -a "$install/opt/python" /opt/python; fi
rm -rf /build
