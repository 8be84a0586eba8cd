"""`source_sbom.py CACHE VERSION EPOCH OUT`: the dependencies of BlipMQ, as CycloneDX 1.6 JSON: those of the source tree as
installed here, and the additional components of each binary built in CACHE.

Invariant: the contents come from the requirements of the installed package, not from a list here; the same versions and time
give the same bytes.
"""

import json
import sys
from importlib import metadata
from pathlib import Path

from components import WHEELS, Component, components
from packaging.requirements import Requirement
from sbom import component, document


def licence_of(name: str, about: metadata.PackageMetadata) -> str:
    """The SPDX expression of the package, or the one found in its licence text by hand."""
    known = about.get("License-Expression") or WHEELS.get(name.lower(), ("",))[0]
    return known or sys.exit(
        f"source_sbom: {name} states no SPDX licence: read its licence and add it to WHEELS in components.py"
    )


def requirements(package: str) -> list[str]:
    """Names of the requirements of `package` on this interpreter and system, without extras."""
    wanted = (Requirement(line) for line in metadata.requires(package) or [])
    return [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def runtime(package: str) -> dict[str, tuple[Component, list[str]]]:
    """All direct and indirect requirements of `package`: their own requirements by name."""
    found: dict[str, tuple[Component, list[str]]] = {}
    waiting = requirements(package)
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        about = metadata.metadata(name)
        purl = f"pkg:pypi/{name.lower()}@{about['Version']}"
        needs = requirements(name)
        found[name] = (
            Component(name, about["Version"], licence_of(name, about), purl, "", "a dependency of the source tree"),
            needs,
        )
        waiting += needs
    return found


def listed(part: Component, where: str) -> dict[str, object]:
    return {
        **component(part),
        "bom-ref": f"{where}:{part.purl}",
        "properties": [{"name": "blipmq:part-of", "value": where}],
    }


def main() -> None:
    cache, version, epoch, out = sys.argv[1:]
    needs = runtime("blipmq")
    purl = f"pkg:generic/blipmq@{version}"
    parts = [listed(part, "source") for part, _ in sorted(needs.values(), key=lambda need: need[0].name)]
    depends = [{"ref": purl, "dependsOn": [f"source:{needs[name][0].purl}" for name in sorted(requirements("blipmq"))]}]
    depends += [
        {"ref": f"source:{part.purl}", "dependsOn": [f"source:{needs[other][0].purl}" for other in sorted(others)]}
        for part, others in needs.values()
    ]
    for target in ("x64", "arm64", "armv7"):
        if (Path(cache) / target / "onedir").is_dir():
            parts += [listed(part, f"linux-{target}") for part in components(Path(cache), target)]
        else:
            print(
                f"    no binary for linux {target} has been built in {cache}: its parts are left out", file=sys.stderr
            )
    main_part = {"type": "application", "bom-ref": purl, "name": "blipmq", "version": version, "purl": purl}
    filled = {"components": parts, "dependencies": depends}
    made = document(main_part, int(epoch), json.dumps(filled) + epoch)
    Path(out).write_text(json.dumps({**made, **filled}, indent=2) + "\n", encoding="utf-8")
    print(f"    {out}: {len(parts)} components")


if __name__ == "__main__":
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    main()
