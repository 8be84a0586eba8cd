# The Python wheel: compiled once per target against the stable ABI, used by pip and by the freezer alike.
# needs: readline wheels-fetch
# inputs: packaging/freeze/wheel.sh packaging/freeze/site.sh HEAD blipmq native pyproject.toml setup.py README.md LICENSE
packaging/emulation
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct) packaging/chroot "$OUT/chroot-freeze" bash -euo pipefail /source/packaging/freeze/wheel.sh
