"""Splits a stream of bytes into frames: u32 big-endian N, then N bytes.

Invariant: a frame over the limit is refused as soon as its length is read. The bytes of an incomplete frame are not
copied again for each piece that arrives.
"""

from __future__ import annotations

from struct import Struct

from blipmq.wire.flatbuffer import broken

LENGTH = Struct(">I")
FRAME_BYTES_MAX = 64 << 20
"""Default limit for a frame from the peer."""


class Splitter:
    """Keeps the bytes of an incomplete frame, without copying them again for each piece that arrives."""

    __slots__ = ("_have", "_need", "_parts", "frame_bytes_max")

    def __init__(self, frame_bytes_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 4

    def __repr__(self) -> str:
        return f"{type(self).__name__}(waiting={self._have}, need={self._need}, frame_bytes_max={self.frame_bytes_max})"

    def _gather(self, data: bytes) -> bytes:
        """All unconsumed bytes if they may hold a whole frame, else b"" and the bytes are kept."""
        if not self._parts and len(data) >= self._need:
            return data
        self._parts.append(data)
        self._have += len(data)
        if self._have < self._need:
            return b""
        data = b"".join(self._parts)
        self._parts, self._have, self._need = [], 0, 4
        return data

    def _keep(self, data: bytes, at: int) -> None:
        """Keep data[at:], the beginning of an incomplete frame."""
        rest = data[at:]
        self._parts, self._have = [rest] if rest else [], len(rest)
        self._need = 4 + LENGTH.unpack_from(rest)[0] if len(rest) >= 4 else 4

    def _check_length(self, length: int, least: int) -> None:
        if length < least:
            raise broken(f"a length of {length}")
        if length > self.frame_bytes_max:
            raise broken(f"a length of {length} bytes is over the limit of {self.frame_bytes_max}")
