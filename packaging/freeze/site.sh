# Runs in the freezer's chroot: unpack the given wheels side by side into /build/site. A wheel is a zip file, so no
# installation and no package manager under emulation are needed.
mkdir -p /build/site
for wheel in "$@"; do "/opt/python/bin/python$PYTHON_VERSION" -m zipfile -e "$wheel" /build/site; done
