# The interpreter in the freezer's chroot, with line editing for `blipmq connect`.
# needs: python chroot-freeze
# inputs: packaging/python/readline.sh
packaging/emulation
rm -rf "$OUT/chroot-freeze/opt/python"
cp -a "$OUT/python/opt/python" "$OUT/chroot-freeze/opt/python"
packaging/chroot "$OUT/chroot-freeze" bash -euo pipefail /source/packaging/python/readline.sh
