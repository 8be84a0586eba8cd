"""The system's clocks as the core reads them.

Invariant: reading changes nothing. A value that the system does not provide is 0.
"""

from __future__ import annotations

from typing import NamedTuple

from blipmq._native import ffi, lib
from blipmq.native.errors import check


class Clock(NamedTuple):
    """One reading of the clocks: `bq_clock_t`."""

    boot_id: int
    """Identifies this boot of the machine; 0: unknown."""
    boot_ms: int
    """Milliseconds since the machine was booted, including suspend."""
    wall_ms: int
    """Milliseconds since 1970."""
    synchronized: int
    """1: the system reports that `wall_ms` is synchronized, for example by a time server."""
    reserved: int = 0


def read_clock() -> Clock:
    """Read the system's clocks now. Raises `CoreError`."""
    clock = ffi.new("bq_clock_t *")
    check(lib.bq_clock_read(clock), "the clocks cannot be read")
    return Clock(clock.boot_id, clock.boot_ms, clock.wall_ms, clock.synchronized)
