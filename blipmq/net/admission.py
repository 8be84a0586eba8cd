"""Admission of TLS clients during their handshake, which the core does not see.

Invariant: the rule is that of native/net/admission.c. At most `Bounds.total` handshakes are pending, and at most
`Bounds.each` from one address, except this machine's own. At the limit the oldest one is closed, but none that waits
for the broker. A test compares this module and the core with one reference model.
"""

from __future__ import annotations

from collections import Counter
from typing import Generic, NamedTuple, TypeVar

from blipmq.base.peer import place_of

T = TypeVar("T")


class Bounds(NamedTuple):
    """The limits of pending handshakes: in total, per address, and their duration in seconds."""

    total: int
    each: int
    seconds: float


class Crowded(Exception):
    """No further handshake is admitted; the text says which limit is reached."""


class Pending(Generic[T]):
    """The pending handshakes of one listener."""

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
        """All pending handshakes, oldest first."""
        return list(self._places)

    def enter(self, one: T, host: str, bounds: Bounds) -> T | None:
        """Admit `one`, whose numeric address is `host`. Returns the handshake that must be closed for it, if any.
        Raises `Crowded`."""
        place = place_of(host)
        if place and self._counts[place] >= bounds.each:
            raise Crowded(f"{bounds.each} handshakes of its address are in progress: limits.max_pending_per_address")
        gone = None
        if len(self._places) >= bounds.total:
            gone = next((other for other in self._places if other not in self._looked_at), None)
            if gone is None:
                raise Crowded(
                    f"{bounds.total} handshakes are in progress, and all wait for the broker: limits.max_pending"
                )
            self.leave(gone)
        self._places[one] = place
        if place:
            self._counts[place] += 1
        return gone

    def look(self, one: T) -> None:
        """Mark `one` as waiting for the broker: it must not be closed for another."""
        if one in self._places:
            self._looked_at.add(one)

    def answer(self, one: T) -> None:
        """The broker has finished its part: `one` may be closed again. It keeps its age."""
        self._looked_at.discard(one)

    def leave(self, one: T) -> None:
        """Remove `one`, if it is pending."""
        place = self._places.pop(one, b"")
        self._looked_at.discard(one)
        if place:
            self._counts[place] -= 1
            if not self._counts[place]:
                del self._counts[place]
