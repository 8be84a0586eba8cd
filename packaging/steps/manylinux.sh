# The wheel with the platform tag that its symbols allow, as auditwheel finds it, and its SBOM.
# needs: wheel
# inputs: packaging/requirements-audit.txt packaging/release EPOCH
venv=$CACHE/any/audit
if ! "$venv/bin/auditwheel" --version >/dev/null 2>&1; then
    rm -rf "$venv"
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet --disable-pip-version-check --requirement packaging/requirements-audit.txt
fi
mkdir -p "$DELIVER/release"
PATH=$venv/bin:$PATH "$venv/bin/auditwheel" show "$OUT/wheel"/*.whl
PATH=$venv/bin:$PATH "$venv/bin/auditwheel" repair --wheel-dir "$DELIVER/release" "$OUT/wheel"/*.whl
PATH=$venv/bin:$PATH "$venv/bin/auditwheel" show "$DELIVER/release"/*.whl
for wheel in "$DELIVER/release"/*.whl; do
    python3 packaging/release/sbom.py "$CACHE" "$TARGET" "$(packaging/version)" "$(packaging/epoch)" "$wheel" "$wheel.cdx.json"
done
