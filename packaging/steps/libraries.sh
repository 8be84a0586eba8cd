# Static zlib and OpenSSL for the target.
# needs: sources chroot-build
# inputs: packaging/python/libraries.sh
packaging/chroot "$CACHE/any/chroot-build" bash -euo pipefail /source/packaging/python/libraries.sh
