"""Durations and sizes on the command line, as people write them: 90s, 1.5h, 64KB, 4MiB.

Invariant: a number without a unit has the unit that the option's help names, and nothing is rounded silently: what is no
whole number of the smallest unit is refused.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable

_TIMES_MS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_SIZES = {
    "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30,
}  # fmt: skip
_NUMBER = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?) ?([a-z]*)", re.IGNORECASE | re.ASCII)


def _read(text: str, units: dict[str, int], usual: str) -> int | None:
    """The quantity in the smallest unit; None if the text is none, or no whole number of that unit."""
    found = _NUMBER.fullmatch(text)
    unit = units.get((found[2] or usual).lower()) if found else None
    if not found or not unit:
        return None
    whole, _, part = found[1].partition(".")
    value, rest = divmod(int(whole + part) * unit, 10 ** len(part))
    return None if rest else value


def milliseconds(least: int = 0, most: int = (1 << 64) - 1) -> Callable[[str], int]:
    """For an option whose plain number is in milliseconds. `least` and `most`: in milliseconds."""

    def parse(text: str) -> int:
        value = _read(text, _TIMES_MS, "ms")
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a time, such as 500 (milliseconds), 500ms, 5s, 1.5m, 24h or 7d"
                + (f", from {least} ms to {most} ms" if least or most < 1 << 63 else "")
            )
        return value

    return parse


def seconds(least_s: int = 0, most_s: int = 10**9) -> Callable[[str], int | float]:
    """For an option whose plain number is in seconds."""

    def parse(text: str) -> int | float:
        value = _read(text, _TIMES_MS, "s")
        if value is None or not least_s * 1000 <= value <= most_s * 1000:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a time, such as 5 (seconds), 500ms, 5s, 1.5m, 24h or 7d, from {least_s} s to {most_s} s"
            )
        return value / 1000 if value % 1000 else value // 1000

    return parse


def size(least: int, most: int) -> Callable[[str], int]:
    """For an option whose plain number is in bytes. KB, MB and GB are powers of 1000, KiB, MiB and GiB of 1024."""

    def parse(text: str) -> int:
        value = _read(text, _SIZES, "b")
        if value is None or not least <= value <= most:
            raise argparse.ArgumentTypeError(
                f"{text!r} is not a size, such as 512 (bytes), 64KB, 64KiB or 4MiB, from {least} to {most} bytes"
            )
        return value

    return parse
