# Runs in the freezer's chroot: unpack the given wheels side by side into /build/site. A wheel is a zip file, so nothing
# has to be installed, and no package manager has to work under emulation.
mkdir -p /build/site
for wheel in "$@"; do "/opt/python/bin/python$PYTHON_VERSION" -m zipfile -e "$wheel" /build/site; done
