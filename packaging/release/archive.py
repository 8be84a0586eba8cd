"""`archive.py CACHE TARGET VERSION EPOCH BINARY OUT`: the release archive blipmq-linux-TARGET.tar.gz.

  blipmq-VERSION/   blipmq · blipmq-cli (the same file: a hard link, each works alone) · config/ · README.md · LICENSE
                    THIRD-PARTY.txt · blip.fbs (the schema of the protocol)

Invariant: the same contents give the same bytes: names sorted, owner 0, the commit's time, no time in the gzip header.
"""

import gzip
import io
import sys
import tarfile
from pathlib import Path

from components import components, notices

TOP = Path(__file__).resolve().parent.parent.parent


def contents(cache: Path, target: str, binary: Path) -> dict[str, tuple[bytes, int]]:
    """Data and mode by name in the archive."""
    files = {
        "LICENSE": ((TOP / "LICENSE").read_bytes(), 0o644),
        "README.md": ((TOP / "README.md").read_bytes(), 0o644),
        "THIRD-PARTY.txt": (notices(components(cache, target)).encode(), 0o644),
        "blip.fbs": ((TOP / "native" / "proto" / "blip.fbs").read_bytes(), 0o644),
        "blipmq": (binary.read_bytes(), 0o755),
    }
    for path in (TOP / "config").glob("*.toml"):
        files[f"config/{path.name}"] = (path.read_bytes(), 0o644)
    return dict(sorted(files.items()))


def write(files: dict[str, tuple[bytes, int]], folder: str, epoch: int, out: Path) -> None:
    with out.open("wb") as raw, gzip.GzipFile(fileobj=raw, mode="wb", mtime=0, filename="") as packed:
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, (data, mode) in files.items():
                info = tarfile.TarInfo(f"{folder}/{name}")
                info.size, info.mode, info.mtime = len(data), mode, epoch
                archive.addfile(info, io.BytesIO(data))
            link = tarfile.TarInfo(f"{folder}/blipmq-cli")
            link.type, link.linkname, link.mode, link.mtime = tarfile.LNKTYPE, f"{folder}/blipmq", 0o755, epoch
            archive.addfile(link)


if __name__ == "__main__":
    if len(sys.argv) != 7:
        sys.exit(__doc__)
    cache, target, version, epoch, binary, out = sys.argv[1:]
    write(contents(Path(cache), target, Path(binary)), f"blipmq-{version}", int(epoch), Path(out))
