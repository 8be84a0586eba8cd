"""Tells the core the state of the system's clocks: at the start, and when the wall clock was set or became
synchronized.

The core measures the age of stored messages on its own time line (broker/timeline.h). It has to know how long the
broker was stopped. Only the system knows: the boot is the same, or the wall clock was correct before and is correct
now.
Invariant: the core is told before it starts, and afterwards only of changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from blipmq.native.clock import Clock, read_clock

STEP_MS = 1000
"""The wall clock was set if it has moved by more than this against the clock of the boot."""
# systemd-timesyncd creates this file when a time server has answered. A service that cannot read the kernel's flag
# (ProtectClock=yes) can still see the file.
TIMESYNC_FILE = "/run/systemd/timesync/synchronized"


def system_clock() -> Clock:
    """The system's clocks; synchronized if the kernel or systemd-timesyncd reports it."""
    clock = read_clock()
    return clock._replace(synchronized=int(clock.synchronized or os.path.exists(TIMESYNC_FILE)))


class ClockWatch:
    """Passes the result of `read` to `tell`. `look` is called before the core starts and then once a second."""

    def __init__(self, tell: Callable[[Clock], None], read: Callable[[], Clock] = system_clock) -> None:
        self._tell = tell
        self._read = read
        self._told: Clock | None = None

    def __repr__(self) -> str:
        return f"<ClockWatch told={self._told}>"

    def look(self) -> None:
        """Tell the core at the first call and after each change."""
        clock = self._read()
        if self._told is None or _changed(self._told, clock):
            self._told = clock
            self._tell(clock)


def _changed(before: Clock, now: Clock) -> bool:
    moved = (now.wall_ms - now.boot_ms) - (before.wall_ms - before.boot_ms)
    return now.synchronized != before.synchronized or abs(moved) > STEP_MS
