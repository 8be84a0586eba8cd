# Fetch the wheels a binary is made of and made with, as packaging/requirements.txt pins them, and the sources of those in
# $FROM_SOURCE, which have none for this target. What $WITHOUT names is left out.
# needs:
# inputs: packaging/requirements.txt
rm -rf "$OUT/wheels" "$OUT/wheel-sources"
mkdir -p "$OUT/wheels" "$OUT/wheel-sources"

# The entries of requirements.txt that are (in) or are not (out) among the given names.
pick() {
    local want=$1
    shift
    awk -v want="$want" -v names=" $* " '
        /^[a-z]/ { split($0, entry, "=="); chosen = (index(names, " " entry[1] " ") ? "in" : "out") == want }
        /^#/ { next }
        chosen' packaging/requirements.txt
}

pick out ${FROM_SOURCE:-} ${WITHOUT:-} >"$OUT/wheels/requirements.txt"
python3 -m pip download --no-deps --require-hashes --requirement "$OUT/wheels/requirements.txt" --dest "$OUT/wheels" \
    --only-binary=:all: --python-version "$PYTHON_VERSION" --implementation cp --abi "cp${PYTHON_VERSION/./}" --abi abi3 --abi none \
    --platform "manylinux_2_28_$MACHINE" --platform "manylinux_2_17_$MACHINE" --platform "manylinux2014_$MACHINE" --platform any
if [ -n "${FROM_SOURCE:-}" ]; then
    pick in $FROM_SOURCE >"$OUT/wheel-sources/requirements.txt"
    python3 -m pip download --no-deps --require-hashes --requirement "$OUT/wheel-sources/requirements.txt" \
        --dest "$OUT/wheel-sources" --no-binary=:all:
fi
