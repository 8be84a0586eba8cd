# The trimmed CPython for the target; another architecture is cross compiled with the help of the native one.
# needs: libraries
# inputs: packaging/python/interpreter.sh packaging/python/Setup.local
packaging/chroot "$CACHE/any/chroot-build" bash -euo pipefail /source/packaging/python/interpreter.sh
