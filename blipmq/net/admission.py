"""Admission of TLS clients during their handshake, which the core does not see.

Invariant: the rule is that of native/net/admission.c. At most `Bounds.total` handshakes are pending, and `Bounds.each` of one
address, this machine's own excepted. At the limit the oldest one is closed, but none that the broker works on.
A test compares this module and the core with one reference model.
"""

from __future__ import annotations

from collections import Counter
from typing import Generic, NamedTuple, TypeVar

from blipmq.base.peer import place_of

T = TypeVar("T")


class Bounds(NamedTuple):
    """How many may be pending, how many of one address, and for how long."""

    total: int
    each: int
    seconds: float


class Crowded(Exception):
    """There is no place; the text says which bound is reached."""


class Pending(Generic[T]):
    """Handshakes that are not done yet, of one listener."""

    def __init__(self) -> None:
        self._places: dict[T, bytes] = {}  # oldest first
        self._counts: Counter[bytes] = Counter()
        self._looked_at: set[T] = set()

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, one: T) -> bool:
        return one in self._places

    def __repr__(self) -> str:
        return f"<Pending {len(self._places)} looked_at={len(self._looked_at)} places={len(self._counts)}>"

    def all(self) -> list[T]:
        """Everyone, oldest first."""
        return list(self._places)

    def enter(self, one: T, host: str, bounds: Bounds) -> T | None:
        """Give `one`, whose numeric address is `host`, a place; whoever had to leave it for that. Raises `Crowded`."""
        place = place_of(host)
        if place and self._counts[place] >= bounds.each:
            raise Crowded(f"{bounds.each} handshakes of its address are under way")
        gone = None
        if len(self._places) >= bounds.total:
            gone = next((other for other in self._places if other not in self._looked_at), None)
            if gone is None:
                raise Crowded(f"{bounds.total} handshakes are under way, and all of them are being looked at")
            self.leave(gone)
        self._places[one] = place
        if place:
            self._counts[place] += 1
        return gone

    def look(self, one: T) -> None:
        """`one` waits for us, not we for it."""
        if one in self._places:
            self._looked_at.add(one)

    def answer(self, one: T) -> None:
        """It is its turn again: it stands where it stood."""
        self._looked_at.discard(one)

    def leave(self, one: T) -> None:
        """Give its place back, if it has one."""
        place = self._places.pop(one, b"")
        self._looked_at.discard(one)
        if place:
            self._counts[place] -= 1
            if not self._counts[place]:
                del self._counts[place]
