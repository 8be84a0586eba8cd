"""Files that are complete or absent, even after a power cut.

Invariant: a reader finds the old text or the new one. When `write_file` returns, the text is on the medium. FAT keeps
the same order: the new file is on the medium before it gets the old one's name.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

TEXT_BYTES_MAX = 1 << 20


def write_file(path: Path, text: str, mode: int = 0o644, group: int | None = None) -> bool:
    """Write `text` to the file; its folder is created if necessary. Returns False, without writing, if the file already
    has this text. Raises OSError."""
    raw = text.encode()
    if _read(path) == raw:
        return False
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f"{path.name}.new")  # one fixed name, so that interrupted writes leave at most one file
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
            # FAT stores the start of a file in its directory entry, which this writes.
            os.fsync(file.fileno())
    except BaseException:
        with contextlib.suppress(OSError):
            fresh.unlink()
        raise
    sync_folder(path.parent)
    return True


def write_for_notepad(path: Path, text: str) -> bool:
    """As write_file, with the line ends of the computers that read the FAT partition."""
    return write_file(path, text.replace("\n", "\r\n"), 0o600)


def remove_file(path: Path) -> bool:
    """Remove a file. Returns False if it does not exist. Raises OSError."""
    try:
        path.unlink()
    except FileNotFoundError:
        return False
    sync_folder(path.parent)
    return True


def sync_folder(folder: Path) -> None:
    """Sync a folder's entries to the medium. Raises OSError."""
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
