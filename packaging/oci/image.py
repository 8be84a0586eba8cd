"""Makes the container image without a container engine.

  image.py layer FOLDER EPOCH OUT                    one layer: a tar of FOLDER, owned by root except the folders of RUNS_AS
  image.py join EPOCH VERSION OUT PLATFORM=LAYER,... ...   one archive in OCI layout with an image for each platform

Invariant: the same contents give the same bytes. Blobs are named by their SHA-256, names are sorted, and times are those of the
commit, so an unchanged layer keeps its name and is not downloaded again.
"""

import gzip
import hashlib
import io
import json
import sys
import tarfile
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RUNS_AS = 65532
# The only folders that the broker writes to; the rest of the image can be mounted read-only.
WRITABLE = ("var/lib/blipmq", "tmp")
CONFIG: dict[str, Any] = {
    "User": f"{RUNS_AS}:{RUNS_AS}",
    "ExposedPorts": {"7878/tcp": {}},  # the metrics listen on the container's own loopback
    "Env": ["PATH=/usr/bin", "BLIPMQ_ADDR=127.0.0.1:7878"],
    "Entrypoint": ["/usr/bin/blipmq"],
    "Cmd": ["start", "--config", "/etc/blipmq/blipmq.toml"],
    "Volumes": {"/etc/blipmq": {}, "/var/lib/blipmq": {}},
    "WorkingDir": "/var/lib/blipmq",
    "StopSignal": "SIGTERM",
    # Needs no shell, no curl and no key. Docker reads this field; OCI does not define it, and
    # others ignore it.
    "Healthcheck": {
        "Test": ["CMD", "/usr/bin/blipmq", "health", "--config", "/etc/blipmq/blipmq.toml"],
        "Interval": 30_000_000_000,
        "Timeout": 5_000_000_000,
        "Retries": 3,
    },
}
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar+gzip"


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def packed(data: bytes) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0, filename="", compresslevel=9) as file:
        file.write(data)
    return out.getvalue()


def entry(folder: Path, path: Path, epoch: int) -> tarfile.TarInfo:
    name = path.relative_to(folder).as_posix()
    info = tarfile.TarInfo(name)
    info.mtime = epoch
    if name in WRITABLE:
        info.uid = info.gid = RUNS_AS
    if path.is_symlink():
        info.type, info.linkname = tarfile.SYMTYPE, str(path.readlink())
    elif path.is_dir():
        info.type, info.mode = tarfile.DIRTYPE, 0o1777 if name == "tmp" else 0o755
    else:
        info.size, info.mode = path.stat().st_size, 0o755 if path.stat().st_mode & 0o100 else 0o644
    return info


def layer(folder: Path, epoch: int, out: Path) -> None:
    with tarfile.open(out, "w", format=tarfile.GNU_FORMAT) as archive:
        for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).parts):
            info = entry(folder, path, epoch)
            archive.addfile(info, io.BytesIO(path.read_bytes()) if info.isreg() else None)


class Layout:
    """An OCI layout under construction: blobs by digest."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return f"Layout(blobs={len(self.blobs)}, bytes={sum(map(len, self.blobs.values()))})"

    def add(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Stores a blob and returns its descriptor."""
        digest = sha256(data)
        self.blobs[digest] = data
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def add_json(self, value: dict[str, Any], media_type: str) -> dict[str, Any]:
        return self.add(json.dumps(value, sort_keys=True).encode(), media_type)

    def write(self, index: dict[str, Any], epoch: int, out: Path) -> None:
        files = {
            "oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
            "index.json": json.dumps(index, sort_keys=True).encode(),
        }
        files |= {f"blobs/sha256/{digest.partition(':')[2]}": data for digest, data in self.blobs.items()}
        with tarfile.open(out, "w", format=tarfile.USTAR_FORMAT) as archive:
            for name, data in sorted(files.items()):
                info = tarfile.TarInfo(name)
                info.size, info.mtime, info.mode = len(data), epoch, 0o644
                archive.addfile(info, io.BytesIO(data))


def add_image(layout: Layout, platform: str, layers: list[Path], epoch: int, version: str) -> dict[str, Any]:
    system, _, architecture = platform.partition("/")
    created = datetime.fromtimestamp(epoch, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
    plain = [path.read_bytes() for path in layers]
    labels = {
        "org.opencontainers.image.title": "BlipMQ",
        "org.opencontainers.image.description": "Edge message broker",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.licenses": "BSD-3-Clause",
        "org.opencontainers.image.created": created,
    }
    config = layout.add_json(
        {
            "created": created,
            "os": system,
            "architecture": architecture,
            "config": {**CONFIG, "Labels": labels},
            "rootfs": {"type": "layers", "diff_ids": [sha256(data) for data in plain]},
            "history": [{"created": created, "created_by": "packaging/oci"} for _ in plain],
        },
        CONFIG_TYPE,
    )
    stored = [layout.add(packed(data), LAYER_TYPE) for data in plain]
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST_TYPE,
        "config": config,
        "layers": stored,
        "annotations": labels,
    }
    described = layout.add_json(manifest, MANIFEST_TYPE)
    return {**described, "platform": {"os": system, "architecture": architecture}}


def join(epoch: int, version: str, out: Path, images: list[str]) -> None:
    layout = Layout()
    manifests = []
    for image in images:
        platform, _, layers = image.partition("=")
        manifests.append(add_image(layout, platform, [Path(layer) for layer in layers.split(",")], epoch, version))
    inner = layout.add_json({"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests}, INDEX_TYPE)
    name = {
        "org.opencontainers.image.ref.name": version,
        "io.containerd.image.name": f"docker.io/library/blipmq:{version}",
    }
    index = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": [{**inner, "annotations": name}]}
    layout.write(index, epoch, out)


if __name__ == "__main__":
    if len(sys.argv) == 5 and sys.argv[1] == "layer":
        layer(Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    elif len(sys.argv) >= 6 and sys.argv[1] == "join":
        join(int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), sys.argv[5:])
    else:
        sys.exit(__doc__)
