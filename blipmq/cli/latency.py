"""Latencies in bounded memory: counts in a few hundred classes, none wider than a thirtieth of its value.

Invariant: a percentile is never below the true one, and at most a thirtieth above it.
"""

from __future__ import annotations

_STEPS_BITS = 5
_STEPS = 1 << _STEPS_BITS
_CLASSES = (64 - _STEPS_BITS + 1) * _STEPS


class Latencies:
    """Times in nanoseconds; negative ones (clocks of two machines) count as 0."""

    __slots__ = ("_counts", "count", "most_ns")

    def __init__(self) -> None:
        self._counts = [0] * _CLASSES
        self.count = 0
        self.most_ns = 0

    def __repr__(self) -> str:
        return f"Latencies(count={self.count}, most_ns={self.most_ns})"

    def add_ns(self, ns: int) -> None:
        if ns < _STEPS:
            index = max(ns, 0)
        else:
            shift = ns.bit_length() - _STEPS_BITS - 1
            index = (shift << _STEPS_BITS) + (ns >> shift)
        self._counts[index] += 1
        self.count += 1
        if ns > self.most_ns:
            self.most_ns = ns

    def percentile_ns(self, percent: float) -> int:
        """The time in nanoseconds that `percent` of all do not exceed; 0 if there are none."""
        wanted, seen = self.count * percent / 100, 0
        for index, count in enumerate(self._counts):
            seen += count
            if count and seen >= wanted:
                return min(_class_end(index), self.most_ns)
        return 0


def _class_end(index: int) -> int:
    """The longest time of a class."""
    if index < 2 * _STEPS:
        return index
    shift = (index >> _STEPS_BITS) - 1
    return ((index - (shift << _STEPS_BITS) + 1) << shift) - 1
