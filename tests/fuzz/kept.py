"""The saved inputs of a target: a zip of its minimal corpus, and a file for each input that ever failed.

Invariant: the same inputs are always packed to the same bytes: sorted, dated 1980.
"""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

KEPT = Path(__file__).resolve().parent.parent / "kept" / "fuzz"


def corpus(target: str) -> list[bytes]:
    """The inputs of the minimal corpus."""
    archive = KEPT / f"{target}.zip"
    if not archive.exists():
        return []
    with zipfile.ZipFile(archive) as packed:
        return [packed.read(name) for name in sorted(packed.namelist())]


def findings(target: str) -> dict[str, bytes]:
    """The inputs that once failed, by name."""
    return {path.stem: path.read_bytes() for path in sorted((KEPT / target).glob("*.bin"))}


def pack(target: str, inputs: list[bytes]) -> Path:
    """Write the corpus; returns its path."""
    KEPT.mkdir(parents=True, exist_ok=True)
    archive = KEPT / f"{target}.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as packed:
        for data in sorted(set(inputs), key=lambda data: (len(data), data)):
            name = hashlib.sha256(data).hexdigest()[:16]
            packed.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 9)
    return archive


def unpack(target: str, directory: Path) -> list[Path]:
    """Write corpus and findings as files, plus an empty one, because libFuzzer without files would not end. Returns the
    paths."""
    directory.mkdir(parents=True, exist_ok=True)
    files = [directory / "empty"]
    files[0].write_bytes(b"")
    for number, data in enumerate(corpus(target)):
        files.append(directory / f"{number:05}")
        files[-1].write_bytes(data)
    for name, data in findings(target).items():
        files.append(directory / f"finding-{name}")
        files[-1].write_bytes(data)
    return files
