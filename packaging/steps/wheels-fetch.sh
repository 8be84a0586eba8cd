# Fetch the wheels a binary is made of and made with, as packaging/requirements.txt pins them.
# needs:
# inputs: packaging/requirements.txt
rm -rf "$OUT/wheels"
python3 -m pip download --no-deps --require-hashes --requirement packaging/requirements.txt --dest "$OUT/wheels" \
    --only-binary=:all: --python-version "$PYTHON_VERSION" --implementation cp --abi "cp${PYTHON_VERSION/./}" --abi abi3 --abi none \
    --platform "manylinux_2_28_$MACHINE" --platform "manylinux_2_17_$MACHINE" --platform "manylinux2014_$MACHINE" --platform any
