# Runs in the build chroot: wheels of $FROM_SOURCE for the target, as /cache/TARGET/wheels/*.whl.
#
# The native interpreter builds them and takes the target's answers for its own: its compiler, flags, suffixes and headers.
set -a
. /source/packaging/versions.env
. "/source/packaging/targets/$TARGET.env"
set +a
python=/opt/python/bin/python$PYTHON_VERSION
target=/cache/$TARGET/python/opt/python
libraries=/cache/$TARGET/libraries
rm -rf /build
mkdir -p /build/answers /build/libraries /build/sources
. /source/packaging/freeze/site.sh "/cache/$TARGET/wheels"/{setuptools,packaging,pycparser}-*.whl
cp "$target/lib/python$PYTHON_VERSION"/_sysconfigdata_*.py /build/answers/
# libffi goes into the wheel, as it does in those of the index.
cp "/usr/lib/$TRIPLET/libffi_pic.a" /build/libraries/libffi.a
answers=$(basename /build/answers/_sysconfigdata_*.py .py)
export _PYTHON_SYSCONFIGDATA_NAME=$answers _PYTHON_HOST_PLATFORM=linux-$MACHINE PKG_CONFIG_LIBDIR=/usr/lib/$TRIPLET/pkgconfig
export PYTHONPATH=/build/answers:/build/site PYTHONDONTWRITEBYTECODE=1
export CC="$TRIPLET-gcc" LDSHARED="$TRIPLET-gcc -shared" SOURCE_DATE_EPOCH
export CFLAGS="-O2 -g0 -fstack-protector-strong -I$target/include/python$PYTHON_VERSION -I$libraries/include -ffile-prefix-map=/build=."
export LDFLAGS="-L/build/libraries -L$libraries/lib -Wl,-z,relro -Wl,-z,now"

for name in $FROM_SOURCE; do
    tar -xf "/cache/$TARGET/wheel-sources/$name"-*.tar.gz -C /build/sources
    cd /build/sources/"$name"-*/
    if [ -e bootloader ]; then
        # PyInstaller: start-up code with a build of its own, and Python that needs none. Its wheel is a zip file of both.
        rm -rf PyInstaller/bootloader/{Darwin,Windows}*
        (cd bootloader && "$python" ./waf configure all)
        about=${PWD##*/}.dist-info
        mkdir "$about"
        cp PKG-INFO "$about/METADATA"
        cp COPYING.txt "$about/"
        "$python" -m zipfile -c "/cache/$TARGET/wheels/${PWD##*/}-py3-none-linux_$MACHINE.whl" PyInstaller "$about"
    else
        "$python" -c 'import setuptools.build_meta, sys; setuptools.build_meta.build_wheel(sys.argv[1])' "/cache/$TARGET/wheels"
    fi
done
rm -rf /build
