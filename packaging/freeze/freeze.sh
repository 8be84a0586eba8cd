# Runs in the freezer's chroot: the program and all it needs in one folder, as /cache/TARGET/onedir/blipmq.
set -a
. /source/packaging/versions.env
. "/source/packaging/targets/$TARGET.env"
set +a
rm -rf /build
mkdir -p /build
. /source/packaging/freeze/site.sh "/cache/$TARGET/wheels"/*.whl "/cache/$TARGET/wheel"/*.whl
mkdir /build/freeze
cp -r /source/packaging/freeze/{blipmq.spec,program.py,unpacked.py,stand_ins} /build/freeze/
cd /build/freeze
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=/build/freeze/stand_ins:/build/site "/opt/python/bin/python$PYTHON_VERSION" -m PyInstaller --noconfirm --clean \
    --distpath /build/dist --workpath /build/build blipmq.spec
find /build/dist -newermt "@$SOURCE_DATE_EPOCH" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
rm -rf "/cache/$TARGET/onedir"
mkdir -p "/cache/$TARGET/onedir"
cp -a /build/dist/blipmq "/cache/$TARGET/onedir/"
# The modules included and dropped, and the imports that caused them: for the SBOM and for debugging.
cp /build/build/blipmq/{PYZ-00.toc,COLLECT-00.toc,warn-blipmq.txt,xref-blipmq.html} "/cache/$TARGET/onedir/"
rm -rf /build
