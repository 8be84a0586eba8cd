"""`sbom.py CACHE TARGET VERSION EPOCH BINARY OUT`: contents of a binary or a wheel, as CycloneDX 1.6 JSON.

Invariant: the same binary gives the same bytes: the serial number is derived from its hash, the time is that of the commit.
"""

import hashlib
import json
import sys
import uuid
from datetime import datetime, timezone
from pathlib import Path

from components import Component, components, wheel_components


def component(part: Component) -> dict[str, object]:
    return {
        "type": "library",
        "bom-ref": part.purl,
        "name": part.name,
        "version": part.version,
        "description": part.role,
        "purl": part.purl,
        "licenses": [{"expression": part.licence}],
    }


def document(main: dict[str, object], epoch: int, identity: str) -> dict[str, object]:
    """A BOM of `main` without components. The serial number is derived from `identity`; the time is `epoch`."""
    stamp = datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, identity)}",
        "version": 1,
        "metadata": {"timestamp": stamp, "component": main},
    }


def sbom(parts: list[Component], target: str, version: str, epoch: int, binary: bytes) -> dict[str, object]:
    digest = hashlib.sha256(binary).hexdigest()
    purl = f"pkg:generic/blipmq@{version}"
    main = {
        "type": "application",
        "bom-ref": purl,
        "name": "blipmq",
        "version": version,
        "purl": purl,
        "hashes": [{"alg": "SHA-256", "content": digest}],
        "licenses": [{"expression": "BSD-3-Clause"}],
        "properties": [{"name": "blipmq:target", "value": f"linux-{target}"}],
    }
    return {
        **document(main, epoch, digest),
        "components": [component(part) for part in parts],
        "dependencies": [{"ref": purl, "dependsOn": [part.purl for part in parts]}],
    }


if __name__ == "__main__":
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    cache, target, version, epoch, binary, out = sys.argv[1:]
    parts = wheel_components(Path(cache)) if binary.endswith(".whl") else components(Path(cache), target)
    made = sbom(parts, target, version, int(epoch), Path(binary).read_bytes())
    Path(out).write_text(json.dumps(made, indent=2) + "\n")
