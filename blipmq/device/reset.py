"""Factory reset: a file `factory-reset` on the settings partition requests a new, empty data partition.

Invariant: the file is removed only after the partition has been created, so an interrupted reset is repeated at the
next start. It runs before any program opens the data partition.
"""

from __future__ import annotations

from pathlib import Path

from blipmq.device.atomic_write import remove_file, write_file
from blipmq.device.paths import Paths
from blipmq.device.system import System
from blipmq.errors import BlipMQError

DEVICE = "/dev/blipmq/data"
LABEL = "blipmq-data"
ERASE_SECONDS, MAKE_SECONDS = 120.0, 240.0


class ResetFailed(BlipMQError):
    """The data partition could not be created. The file that requested it is still there."""


def wanted(paths: Paths) -> list[Path]:
    """The files that request a reset: `factory-reset`, also with an extension that a computer added
    (factory-reset.txt)."""
    try:
        return [
            path for path in sorted(paths.boot.iterdir()) if path.stem.lower() == "factory-reset" and path.is_file()
        ]
    except OSError:
        return []


def carry_out(paths: Paths, system: System) -> bool:
    """Carry out a reset if a file requests it. Returns True if one did. Raises `ResetFailed`."""
    asking = wanted(paths)
    if not asking:
        return False
    if paths.mounted(paths.data):
        raise ResetFailed(
            "The data partition is in use. Restart the device: the reset runs before the partition is opened."
        )
    # erases the medium if it supports that; many do not
    system.run("blkdiscard", "--force", DEVICE, seconds=ERASE_SECONDS)
    made = system.run("mkfs.ext4", "-q", "-F", "-L", LABEL, "-m", "1", DEVICE, seconds=MAKE_SECONDS)
    if made.status:
        why = made.output.strip().splitlines()[-1:] or ["no reason given"]
        write_file(paths.reset_note, f"failed: {why[0][:200]}\n")
        raise ResetFailed(
            f"The data partition could not be created again: {why[0]}. The medium may be failing; try another one."
        )
    for path in [*asking, paths.new_keys]:  # the keys in that file are no longer valid
        remove_file(path)
    write_file(paths.reset_note, "done\n")
    return True
