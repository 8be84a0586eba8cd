"""Files that are there whole or not at all, whenever the power goes.

Invariant: a reader finds the old text or the new one. What `write_file` returned from is on the medium. FAT keeps the same order:
the new file is on the medium before its name takes the old one's place.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

TEXT_BYTES_MAX = 1 << 20


def write_file(path: Path, text: str, mode: int = 0o644, group: int | None = None) -> bool:
    """Put `text` into the file, its folder made if need be; False, and nothing done, if it is there already. Raises OSError."""
    raw = text.encode()
    if _read(path) == raw:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")  # one name, so that cut writes leave one file and no litter
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    try:
        with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(raw)
            os.fchmod(file.fileno(), mode)
            if group is not None and os.geteuid() == 0:
                os.fchown(file.fileno(), -1, group)
            file.flush()
            os.fsync(file.fileno())
            os.replace(fresh, path)
            # FAT keeps where a file begins in its entry of the folder, and writes that with the file.
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    sync_folder(path.parent)
    return True


def write_for_notepad(path: Path, text: str) -> bool:
    """The same with the line ends of the computers that read the FAT partition."""
    return write_file(path, text.replace("\n", "\r\n"), 0o600)


def remove_file(path: Path) -> bool:
    """Take a file away; False if there is none. Raises OSError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    sync_folder(path.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Bring names on the medium. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _read(path: Path) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read(TEXT_BYTES_MAX)
    except OSError:
        return None
