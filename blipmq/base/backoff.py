"""The delay before the next attempt: exponential back-off with full jitter, so that many clients do not reconnect at
the same moment.

Invariant: a delay is at most `most_s`, and uniformly distributed between 0 and the current bound.
"""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """`random` returns floats in [0, 1). Delays are in seconds."""

    __slots__ = ("_attempts", "_first_s", "_most_s", "_random")

    def __init__(self, random: Callable[[], float], *, first_s: float = 0.2, most_s: float = 10.0) -> None:
        self._random, self._first_s, self._most_s = random, first_s, most_s
        self._attempts = 0

    def __repr__(self) -> str:
        return f"Backoff(attempts={self._attempts}, bound_s={self.bound_s})"

    @property
    def bound_s(self) -> float:
        """The upper bound of the next delay, in seconds."""
        return min(self._most_s, self._first_s * 2.0 ** min(self._attempts, 32))

    def next_s(self) -> float:
        delay_s = self._random() * self.bound_s
        self._attempts += 1
        return delay_s

    def reset(self) -> None:
        self._attempts = 0
