# Runs in the freezer's chroot: the Python wheel of BlipMQ for the target, as /cache/TARGET/wheel/*.whl.
set -a
. /source/packaging/versions.env
. "/source/packaging/targets/$TARGET.env"
set +a
rm -rf /build
mkdir -p /build/source /build/wheel
cd /source
cp -a blipmq native pyproject.toml setup.py README.md LICENSE /build/source/
. /source/packaging/freeze/site.sh "/cache/$TARGET/wheels"/{setuptools,packaging,cffi,pycparser}-*.whl
# OpenSSL becomes a part of the module for TLS, so its licence becomes a part of the wheel.
export BLIPMQ_OPENSSL=/cache/$TARGET/libraries
cp "/cache/any/sources/$OPENSSL_SOURCE/LICENSE.txt" /build/source/LICENSE.OpenSSL
cd /build/source
find . -name '*.so' -delete
PYTHONPATH=/build/site "/opt/python/bin/python$PYTHON_VERSION" -c '
from setuptools.build_meta import build_wheel
build_wheel("/build/wheel")
'
rm -rf "/cache/$TARGET/wheel"
mkdir -p "/cache/$TARGET/wheel"
cp /build/wheel/*.whl "/cache/$TARGET/wheel/"
rm -rf /build
