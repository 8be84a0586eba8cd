"""When the core is told what the system's clocks show: at the start, and when the wall clock was set or became synchronized.

The core judges the age of stored messages by a time line of its own (broker/timeline.h). It has to know how long the broker was
away, and only the system can tell: the same boot of the machine, or a wall clock that was right before and is right now.

Invariant: the core is told before it starts, and then only of changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from blipmq.native.clock import Clock, read_clock

STEP_MS = 1000
"""The wall clock was set if it has moved by more against the clock of the boot."""
# systemd-timesyncd makes this file when a server has answered. A service that may not look at the kernel's own flag
# (ProtectClock=yes) can still see it.
TIMESYNC_FILE = "/run/systemd/timesync/synchronized"


def system_clock() -> Clock:
    """The system's clocks; synchronized if the kernel says so, or systemd-timesyncd."""
    clock = read_clock()
    return clock._replace(synchronized=int(clock.synchronized or os.path.exists(TIMESYNC_FILE)))


class ClockWatch:
    """Tells `tell` what `read` shows. `look` is called before the core starts and once a second from then on."""

    def __init__(self, tell: Callable[[Clock], None], read: Callable[[], Clock] = system_clock) -> None:
        self._tell = tell
        self._read = read
        self._told: Clock | None = None

    def __repr__(self) -> str:
        return f"<ClockWatch told={self._told}>"

    def look(self) -> None:
        """Tell the core if this is the first time, or if something has changed."""
        clock = self._read()
        if self._told is None or _changed(self._told, clock):
            self._told = clock
            self._tell(clock)


def _changed(before: Clock, now: Clock) -> bool:
    moved = (now.wall_ms - now.boot_ms) - (before.wall_ms - before.boot_ms)
    return now.synchronized != before.synchronized or abs(moved) > STEP_MS
