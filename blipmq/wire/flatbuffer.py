"""The part of FlatBuffers that BlipMQ uses: one table of scalars, strings and byte vectors.

    0       root    u32: position of the table
    table           i32: table - vtable, then the inline fields: scalars, and u32 offsets from the field to a vector
    vtable          u16 its size, u16 the table's size, then per slot u16: the field's position in the table, 0 if absent
    vector          u32 length, bytes; a NUL after a string

Source: https://flatbuffers.dev/internals/
Invariant: each offset, length and string of a body is used only after it is shown to lie inside that body.
"""

from __future__ import annotations

from struct import Struct

from blipmq.errors import ProtocolError

U8, U16, U32, U64, I32 = Struct("<B"), Struct("<H"), Struct("<I"), Struct("<Q"), Struct("<i")


def assemble(scalars: list[tuple[int, Struct, int]], vectors: list[tuple[int, bytes, bytes]]) -> bytes:
    """Build the body of a table with these (slot, width, value) scalars, widest first, and (slot, bytes, terminator)
    vectors.

    It is written front to back: root offset, vtable, table, vectors in the given order. The table is placed so that the
    widest fields, which follow its first four bytes, are aligned to eight bytes from the start of the body.
    """
    wide = [scalar for scalar in scalars if scalar[1].size == 8]
    narrow = [scalar for scalar in scalars if scalar[1].size < 8]
    used = [*(slot for slot, _, _ in scalars), *(slot for slot, _, _ in vectors)]
    slots = [0] * (1 + max(used, default=-1))
    vtable_bytes = 4 + 2 * len(slots)
    table = 4 + vtable_bytes + (-vtable_bytes % 8)
    at = 4
    for slot, width_bytes in (
        *((slot, width.size) for slot, width, _ in wide),
        *((slot, 4) for slot, _, _ in vectors),
        *((slot, width.size) for slot, width, _ in narrow),
    ):
        slots[slot] = at
        at += width_bytes
    body = bytearray(table + at)
    Struct(f"<IHH{len(slots)}H").pack_into(body, 0, table, vtable_bytes, at, *slots)
    I32.pack_into(body, table, table - 4)
    for slot, width, value in scalars:
        width.pack_into(body, table + slots[slot], value)
    for slot, data, terminator in vectors:
        body += bytes(-len(body) % 4)
        field = table + slots[slot]
        U32.pack_into(body, field, len(body) - field)
        body += U32.pack(len(data)) + data + terminator
    return bytes(body)


def broken(what: str) -> ProtocolError:
    return ProtocolError(
        f"A frame does not verify: {what}. The peer is probably not BlipMQ; check the address and the port."
    )


class Table:
    """The root table of one body. The constructor checks the structure; each read checks its own bounds. Raises
    ProtocolError."""

    __slots__ = ("body", "end", "fields", "table")

    def __init__(self, body: bytes) -> None:
        size = len(body)
        if size < 8:
            raise broken(f"{size} bytes are too short for a table")
        table = U32.unpack_from(body, 0)[0]
        if table < 4 or table + 4 > size:
            raise broken("root offset out of range")
        vtable = table - I32.unpack_from(body, table)[0]
        if vtable < 0 or vtable + 4 > size:
            raise broken("vtable out of range")
        vtable_bytes, table_bytes = U16.unpack_from(body, vtable)[0], U16.unpack_from(body, vtable + 2)[0]
        if vtable_bytes < 4 or vtable_bytes % 2 or vtable + vtable_bytes > size:
            raise broken("vtable length")
        if table_bytes < 4 or table + table_bytes > size:
            raise broken("table out of range")
        self.body = body
        self.table: int = table
        self.end: int = table + table_bytes
        self.fields: tuple[int, ...] = Struct(f"<{vtable_bytes // 2 - 2}H").unpack_from(body, vtable + 4)

    def _at(self, slot: int, width: int) -> int:
        """The position of the slot's inline value, or 0 if the field is absent."""
        offset = self.fields[slot] if slot < len(self.fields) else 0
        if offset == 0:
            return 0
        at = self.table + offset
        if offset < 4 or at + width > self.end:  # the first four bytes are the offset to the vtable
            raise broken(f"field {slot} out of range")
        return at

    def number_or_none(self, slot: int, width: Struct) -> int | None:
        """A scalar; None if absent."""
        at = self._at(slot, width.size)
        return int(width.unpack_from(self.body, at)[0]) if at else None

    def number(self, slot: int, width: Struct) -> int:
        """A scalar; 0 if absent."""
        at = self._at(slot, width.size)
        return int(width.unpack_from(self.body, at)[0]) if at else 0

    def vector(self, slot: int, terminator_bytes: int = 0) -> bytes | None:
        """A byte vector that has room for its terminator; None if absent."""
        at = self._at(slot, 4)
        if at == 0:
            return None
        offset: int = U32.unpack_from(self.body, at)[0]
        start, size = at + offset, len(self.body)
        if offset == 0 or start + 4 > size:
            raise broken(f"offset of field {slot} out of range")
        stop = start + 4 + int(U32.unpack_from(self.body, start)[0])
        if stop + terminator_bytes > size:
            raise broken(f"length of field {slot} out of range")
        return self.body[start + 4 : stop]

    def text(self, slot: int, errors: str = "strict") -> str:
        """A string; "" if absent. `errors`: how to decode bytes that are not UTF-8, as in bytes.decode."""
        data = self.vector(slot, terminator_bytes=1)
        if data is None:
            return ""
        # vector() has checked that the byte after the string is inside the body
        at = self._at(slot, 4)
        end = at + int(U32.unpack_from(self.body, at)[0]) + 4 + len(data)
        if self.body[end] != 0:
            raise broken(f"text of field {slot} is not terminated")
        try:
            return data.decode("utf-8", errors)
        except UnicodeDecodeError:
            raise broken(f"text of field {slot} is not UTF-8") from None
