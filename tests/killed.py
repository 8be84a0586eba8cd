"""The WAL directory as a kill would leave it, taken from a core that runs."""

from __future__ import annotations

from pathlib import Path

TRIES = 1000


def contents(directory: Path) -> dict[str, bytes] | None:
    """Every file's bytes; None if a file went away meanwhile."""
    try:
        return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}
    except FileNotFoundError:
        return None


def as_killed(directory: Path, copy: Path) -> Path:
    """`copy`, with what `directory` held at one moment. A thread of the core may write, rename and remove files meanwhile:
    between two readings that agree, every file was as it was read."""
    seen = contents(directory)
    for _ in range(TRIES):
        before, seen = seen, contents(directory)
        if seen is not None and seen == before:
            copy.mkdir()
            for name, data in seen.items():
                (copy / name).write_bytes(data)
            return copy
    raise AssertionError(f"{directory} did not stand still for two readings in {TRIES} tries")
