"""The WAL directory as after a kill, copied from a running core."""

from __future__ import annotations

from pathlib import Path

TRIES = 1000


def contents(directory: Path) -> dict[str, bytes] | None:
    """The bytes of every file; None if a file was deleted meanwhile."""
    try:
        return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    except FileNotFoundError:
        return None


def as_killed(directory: Path, copy: Path) -> Path:
    """`copy` with the content of `directory` at one moment. A core thread may write, rename and remove files meanwhile:
    if two readings agree, every file was as read."""
    seen = contents(directory)
    for _ in range(TRIES):
        before, seen = seen, contents(directory)
        if seen is not None and seen == before:
            copy.mkdir()
            for name, data in seen.items():
                (copy / name).write_bytes(data)
            return copy
    raise AssertionError(f"{directory} did not stand still for two readings in {TRIES} tries")
