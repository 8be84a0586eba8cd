# Wheels that the package index has not for this target, from source: cross compiled in the build chroot.
# needs: python wheels-fetch
# inputs: packaging/python/wheels.sh
[ -z "${FROM_SOURCE:-}" ] || packaging/chroot "$CACHE/any/chroot-build" bash -euo pipefail /source/packaging/python/wheels.sh
