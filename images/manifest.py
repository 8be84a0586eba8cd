"""`manifest.py IMAGE PACKED VERSION EPOCH TITLE DEVICES URL OUT`: the entry for Raspberry Pi Imager (os_list.json).

IMAGE is the medium, PACKED the downloaded file. DEVICES are Imager's names of boards, empty for an image that is not for a board.
URL is the folder of PACKED; without it the entry has only the name of the file, for a list in the same folder.

Invariant: sizes and hashes are read from the files themselves.
"""

import base64
import hashlib
import json
import sys
from datetime import datetime, timezone
from pathlib import Path

ICON = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 40 40"><rect width="40" height="40" rx="8" fill="#12343b"/>
<circle cx="12" cy="20" r="4" fill="#f5b841"/><path d="M20 12a12 12 0 0 1 0 16M26 8a18 18 0 0 1 0 24" fill="none"
stroke="#f5b841" stroke-width="3"/></svg>"""


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def entry(image: Path, packed: Path, version: str, epoch: int, title: str, devices: str, url: str) -> dict[str, object]:
    made: dict[str, object] = {
        "name": title,
        "description": f"Message broker {version}: settings are files on the card, updates are signed",
        "icon": "data:image/svg+xml;base64," + base64.b64encode(ICON.encode()).decode(),
        "url": f"{url.rstrip('/')}/{packed.name}" if url else packed.name,
        "extract_size": image.stat().st_size,
        "extract_sha256": sha256(image),
        "image_download_size": packed.stat().st_size,
        "image_download_sha256": sha256(packed),
        "release_date": datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%d"),
        # Imager's own settings (user, password, Wi-Fi) have no effect: device.toml has them.
        "init_format": "none",
    }
    if devices:
        made["devices"] = devices.split()
    return made


if __name__ == "__main__":
    if len(sys.argv) != 9:
        sys.exit(__doc__)
    image, packed, version, epoch, title, devices, url, out = sys.argv[1:]
    made = {"os_list": [entry(Path(image), Path(packed), version, int(epoch), title, devices, url)]}
    Path(out).write_text(json.dumps(made, indent=2) + "\n")
