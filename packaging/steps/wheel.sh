# The Python wheel: compiled once per target for the stable ABI, used by pip and by the freezer.
# needs: readline wheels-build
# inputs: packaging/freeze/wheel.sh packaging/freeze/site.sh EPOCH blipmq native pyproject.toml setup.py README.md LICENSE
packaging/emulation
SOURCE_DATE_EPOCH=$(packaging/epoch) packaging/chroot "$OUT/chroot-freeze" bash -euo pipefail /source/packaging/freeze/wheel.sh
