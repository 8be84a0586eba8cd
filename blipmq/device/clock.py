"""The time on a machine whose clock stops, or restarts in 1970, when the power is off.

Invariant: after `restore` the clock is at least at the date of the image and at the last saved time. It is never set
back here. A time server may later set it in either direction.
"""

from __future__ import annotations

import os

from blipmq.device.atomic_write import write_file
from blipmq.device.paths import Paths
from blipmq.device.system import System

# A saved time this far after the image's date was wrong when it was saved, and would stay wrong.
YEARS_MAX_SECONDS = 20 * 365 * 86400


def build_time(paths: Paths) -> float:
    """The date of the image, in seconds since 1970; 0 if unknown."""
    for path in ("usr/lib/clock-epoch", "usr/lib/os-release"):
        try:
            return os.stat(paths.root / path).st_mtime
        except OSError:
            continue
    return 0.0


def floor(paths: Paths) -> float:
    """The earliest possible present time, in seconds since 1970."""
    built = build_time(paths)
    saved = paths.text("data/device/clock")
    seconds = int(saved) if saved.isascii() and saved.isdigit() and len(saved) < 12 else 0
    return float(seconds) if built < seconds < built + YEARS_MAX_SECONDS else built


def restore(paths: Paths, system: System) -> bool:
    """Set the clock to the floor if it is behind. Returns True if it was. Raises OSError."""
    least = floor(paths)
    if system.now() >= least:
        return False
    system.set_time(least)
    return True


def save(paths: Paths, system: System) -> bool:
    """Save the time, unless it is before the floor. Returns True if it was saved. Raises OSError."""
    now = system.now()
    if now < floor(paths):
        return False
    return write_file(paths.clock, f"{int(now)}\n", 0o600)


def is_synchronised(paths: Paths) -> bool:
    """Whether a time server has answered since the start."""
    return (paths.root / "run/systemd/timesync/synchronized").exists()
