"""`sbom.py CACHE TARGET PACKAGING_TARGET VERSION EPOCH PACKED OUT`: contents of an image, as CycloneDX 1.6 JSON.

Two sources: the components of the broker's release (packaging/release), and the build's list of Debian packages that were
installed or from which files were taken.

Invariant: the same image gives the same bytes, as with packaging/release/sbom.py.
"""

import json
import sys
from pathlib import Path
from urllib.parse import quote

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "packaging/release"))

from components import components
from sbom import sbom

# The unpacked packages whose files are in the image; the others were only dependencies.
TAKEN = {
    "busybox-static": "the initrd",
    "firmware-brcm80211": "firmware of wireless chips",
    "grub-common": "grub-editenv",
    "grub-efi-amd64-bin": "the boot loader",
    "grub-efi-arm64-bin": "the boot loader",
    "raspi-firmware": "firmware of the board",
    "u-boot-rpi": "starts the boot loader",
}
ONLY_WITH_BOARD = {"firmware-brcm80211", "raspi-firmware", "u-boot-rpi"}


def packages(path: Path) -> list[tuple[str, str, str, str]]:
    """Name, version, architecture and source of each line written by images/debian."""
    return [(name, version, arch, source) for name, version, arch, source in map(str.split, path.open())]


def deb(name: str, version: str, arch: str, source: str, role: str) -> dict[str, object]:
    purl = f"pkg:deb/debian/{name}@{quote(version, safe='~')}?arch={arch}"
    return {
        "type": "operating-system" if name == "base-files" else "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "description": role,
        "purl": purl,
        "properties": [{"name": "debian:source", "value": source}],
    }


def system(cache: Path, target: str, packaging_target: str) -> list[dict[str, object]]:
    arch = cache / "images" / packaging_target
    found = [deb(*package, "installed") for package in packages(arch / "root.packages")]
    for name, *rest in packages(arch / "parts.packages"):
        role = "the kernel" if name.startswith("linux-image-6") else TAKEN.get(name)
        if role and (name not in ONLY_WITH_BOARD or target.startswith("rpi")):
            found.append(deb(name, *rest, role))
    return found


if __name__ == "__main__":
    if len(sys.argv) != 8:
        sys.exit(__doc__)
    cache, target, packaging_target, version, epoch, packed, out = sys.argv[1:]
    made = sbom(
        components(Path(cache), packaging_target), packaging_target, version, int(epoch), Path(packed).read_bytes()
    )
    debs = system(Path(cache), target, packaging_target)
    made["components"] += debs  # type: ignore[operator]
    main = made["metadata"]["component"]  # type: ignore[index]
    main["name"] = f"blipmq-{target}"
    main["bom-ref"] = main["purl"] = f"pkg:generic/blipmq-{target}@{version}"
    main["properties"] = [{"name": "blipmq:image", "value": target}]
    refs = [component["bom-ref"] for component in made["components"]]  # type: ignore[attr-defined]
    made["dependencies"] = [{"ref": main["bom-ref"], "dependsOn": refs}]
    Path(out).write_text(json.dumps(made, indent=2) + "\n")
