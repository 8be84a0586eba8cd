"""Time on a machine whose clock stands still, or starts in 1970, when the power is off.

Invariant: after `restore` the clock shows at least the date of the image, and at least the last time written down; it is never
set back here. A time server has the last word, in either direction.
"""

from __future__ import annotations

import os

from blipmq.device.atomic_write import write_file
from blipmq.device.paths import Paths
from blipmq.device.system import System

# A time that lies so far behind the image's date was wrong when it was written down, and would stay.
YEARS_MAX_SECONDS = 20 * 365 * 86400


def build_time(paths: Paths) -> float:
    """The date of the image, seconds since 1970; 0 if it does not tell."""
    for path in ("usr/lib/clock-epoch", "usr/lib/os-release"):
        try:
            return os.stat(paths.root / path).st_mtime
        except OSError:
            continue
    return 0.0


def floor(paths: Paths) -> float:
    """No earlier than this."""
    built = build_time(paths)
    saved = paths.text("data/device/clock")
    seconds = int(saved) if saved.isascii() and saved.isdigit() and len(saved) < 12 else 0
    return float(seconds) if built < seconds < built + YEARS_MAX_SECONDS else built


def restore(paths: Paths, system: System) -> bool:
    """Set the clock to the floor if it is behind; whether it was. Raises OSError."""
    least = floor(paths)
    if system.now() >= least:
        return False
    system.set_time(least)
    return True


def save(paths: Paths, system: System) -> bool:
    """Write the time down, unless it is one that cannot be true; whether it was written. Raises OSError."""
    now = system.now()
    if now < floor(paths):
        return False
    return write_file(paths.clock, f"{int(now)}\n", 0o600)


def is_synchronised(paths: Paths) -> bool:
    """Whether a time server has answered since the start."""
    return (paths.root / "run/systemd/timesync/synchronized").exists()
