"""The wire format in plain Python: decoding of the broker's frames, and the readers of both directions.

    client to broker   u32 big-endian N | N bytes: FlatBuffer, root ClientCommand (command.py; its names are here too)
    broker to client   u32 big-endian N | u8 type | N-1 bytes: FlatBuffer, root SubAck (0), Message (1) or Reply (2)

Invariant: each offset, length and string of a body is used only after it is shown to lie inside that body; an error is
always a ProtocolError. Needs only `struct`, because the command line loads it at start. Independent of the C core, so
that each can be tested against the other. FlatBuffers layout: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from operator import itemgetter
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

from blipmq.errors import ProtocolError
from blipmq.wire.command import ACK as ACK
from blipmq.wire.command import ACTIONS as ACTIONS
from blipmq.wire.command import ADMIN as ADMIN
from blipmq.wire.command import HELLO as HELLO
from blipmq.wire.command import INFO as INFO
from blipmq.wire.command import PING as PING
from blipmq.wire.command import PROTOCOL as PROTOCOL
from blipmq.wire.command import PUB as PUB
from blipmq.wire.command import QUIT as QUIT
from blipmq.wire.command import SUB as SUB
from blipmq.wire.command import UNSUB as UNSUB
from blipmq.wire.command import Command as Command
from blipmq.wire.command import PublishEncoder as PublishEncoder
from blipmq.wire.command import decode_command as decode_command
from blipmq.wire.command import encode_acks as encode_acks
from blipmq.wire.command import encode_command as encode_command
from blipmq.wire.flatbuffer import I32, U8, U16, U32, U64, Table, broken
from blipmq.wire.framer import FRAME_BYTES_MAX as FRAME_BYTES_MAX
from blipmq.wire.framer import LENGTH, Splitter
from blipmq.wire.properties import user_properties

SUBACK, MESSAGE, REPLY = range(3)


class SubAck(NamedTuple):
    """The answer to SUB. `code` 0: subscribed."""

    topic: str
    info: str
    seq: int
    code: int


class Message(NamedTuple):
    """One message, as a subscriber gets it. `timestamp_ms`: milliseconds since 1970 (UTC). `ttl_ms`: time to live in
    milliseconds, 0: it never expires."""

    id: int
    topic: str
    payload: bytes
    timestamp_ms: int
    ttl_ms: int
    qos: int
    redelivered: bool
    properties: bytes = b""

    @property
    def text(self) -> str:
        """The payload decoded as UTF-8, with U+FFFD for invalid bytes."""
        return self.payload.decode("utf-8", "replace")

    @property
    def headers(self) -> dict[str, str]:
        """The user properties; empty for most messages. A dead letter has `reason`, and the `topic`, `id` and
        `deliveries` of the original message."""
        return user_properties(self.properties) if self.properties else {}


class Reply(NamedTuple):
    """The answer to HELLO, UNSUB, PING, INFO, QoS 1 PUB, and to any refused request. `code` 0: success."""

    seq: int
    code: int
    message: str
    id: int
    payload: bytes
    subscriptions: int | None = None  # for a QoS 1 PUB; None from a broker of an earlier version
    keepalive_ms: int = 0


Frame: TypeAlias = "SubAck | Message | Reply"


def decode_suback(body: bytes) -> SubAck:
    table = Table(body)
    return SubAck(table.text(0), table.text(1), table.number(2, U64), table.number(3, U16))


def decode_message(body: bytes) -> Message:
    table = Table(body)
    return Message(
        table.number(0, U64),
        table.text(4),
        table.vector(1) or b"",
        table.number(2, U64),
        table.number(3, U64),
        table.number(5, U8),
        table.number(6, U8) != 0,
        table.vector(8) or b"",
    )


def decode_reply(body: bytes) -> Reply:
    table = Table(body)
    return Reply(
        table.number(0, U64),
        table.number(1, U16),
        table.text(2),
        table.number(3, U64),
        table.vector(4) or b"",
        table.number_or_none(5, U64),
        table.number(6, U64),
    )


_DECODERS: tuple[Callable[[bytes], Frame], ...] = (decode_suback, decode_message, decode_reply)


class CommandReader(Splitter):
    """The broker's side of the stream: bytes in, Commands out. For tests and tools; the broker itself reads in C."""

    __slots__ = ()

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        super().__init__(frame_bytes_max)

    def feed(self, data: bytes) -> Iterator[Command]:
        """Yield the complete commands; raise ProtocolError at the first invalid one."""
        data = self._gather(data)
        at, size = 0, len(data)
        while size - at >= 4:
            length = LENGTH.unpack_from(data, at)[0]
            self._check_length(length, 1)
            if at + 4 + length > size:
                break
            yield decode_command(data[at + 4 : at + 4 + length])
            at += 4 + length
        if at < size:
            self._keep(data, at)


_ABSENT = (0,)
_TOPICS_MAX = 1024
_SHAPES_MAX = 8
_FIELD_CODES = ("Q", "I", "Q", "Q", "I", "B", "B")  # fields of Message, by slot; I: offset to a vector


class _Shape:
    """The positions of the fields of a Message, for all frames that begin (after the length) with the same `head`.

    A builder lays out messages of one kind alike: same root offset, same vtable before the table. Such a head is
    verified once; afterwards one comparison of bytes is enough, and one unpack reads every inline field.
    """

    __slots__ = ("head", "payload_at", "pick", "skip", "table_bytes", "topic_at", "unpack")

    def __init__(self, head: bytes, table: Table) -> None:
        placed = sorted((offset, slot) for slot, offset in enumerate(table.fields[:7]) if offset)
        layout, order, at = "<", [7] * 7, 4
        for index, (offset, slot) in enumerate(placed):
            layout += f"{offset - at}x{_FIELD_CODES[slot]}"
            at = offset + Struct("<" + _FIELD_CODES[slot]).size
            order[slot] = index
        struct = Struct(layout)
        absent = len(placed)
        self.head = head
        self.unpack = struct.unpack_from
        self.pick: Callable[[tuple[Any, ...]], tuple[Any, ...]] = itemgetter(*(min(index, absent) for index in order))
        self.skip = 5 + table.table + 4  # from the frame's first byte to the first inline field
        self.table_bytes = 5 + table.end
        self.payload_at = 5 + table.table + table.fields[1]
        self.topic_at = 5 + table.table + table.fields[4]

    @classmethod
    def learn(cls, frame: bytes) -> _Shape | None:
        """The shape of a frame whose body has just been decoded, or None if the fast path cannot handle it."""
        table = Table(frame[5:])
        vtable = table.table - I32.unpack_from(table.body, table.table)[0]
        fields = table.fields[:7]
        if not 4 <= vtable < table.table or len(fields) < 5 or not fields[1] or not fields[4]:
            return None
        if any(table.fields[8:9]):
            return None  # properties are rare, so the fast path does not handle them
        widths = sorted(
            (offset, offset + Struct("<" + code).size)
            for offset, code in zip(fields, _FIELD_CODES, strict=False)
            if offset
        )
        starts_and_ends = [4, *(edge for pair in widths for edge in pair)]
        if starts_and_ends != sorted(starts_and_ends):
            return None  # fields overlap: legal to read, but no builder writes it
        return cls(frame[4 : 5 + table.table + 4], table)


class FrameReader(Splitter):
    """The client's side of the stream: bytes in, SubAck, Message and Reply out.

    `broken` is set when the stream is invalid; frames before the invalid one are still returned. feed() raises it once
    no valid frame is left.
    """

    __slots__ = ("_shape", "_shapes", "_topic", "_topic_raw", "_topics", "broken")

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        super().__init__(frame_bytes_max)
        self.broken: ProtocolError | None = None
        self._shape: _Shape | None = None
        self._shapes: list[_Shape] = []
        self._topic_raw = (
            # length, bytes and NUL of the last topic; at first a value that no topic can begin with
            b"\xff\xff\xff\xff"
        )
        self._topic = ""
        self._topics: dict[bytes, str] = {}

    def feed(self, data: bytes) -> list[Frame]:
        """Return the complete frames. Raises ProtocolError if the stream is invalid and there is no frame before the
        error."""
        if self.broken is not None:
            raise self.broken
        frames: list[Frame] = []
        data = self._gather(data)
        try:
            at = self._read(data, frames)
        except ProtocolError as error:
            self.broken = error
            if not frames:
                raise
        else:
            if at < len(data):
                self._keep(data, at)
        return frames

    def _read(self, data: bytes, frames: list[Frame]) -> int:
        """Decode all complete frames of `data` into `frames`; return the position of the first incomplete one."""
        at, size = 0, len(data)
        while size - at >= 4:
            if self._shape is not None:
                at = self._read_messages(data, at, frames)
                if size - at < 4:
                    break
            length = LENGTH.unpack_from(data, at)[0]
            self._check_length(length, 2)
            stop = at + 4 + length
            if stop > size:
                break
            kind = data[at + 4]
            if kind > REPLY:
                raise broken(f"there is no frame type {kind}")
            frames.append(_DECODERS[kind](data[at + 5 : stop]))
            if kind == MESSAGE:
                self._choose_shape(data[at:stop])
            at = stop
        return at

    def _choose_shape(self, frame: bytes) -> None:
        """Expect the next messages to have the shape of this one."""
        for shape in self._shapes:
            if frame.startswith(shape.head, 4):
                self._shape = shape
                return
        if len(self._shapes) < _SHAPES_MAX:
            shape_or_none = _Shape.learn(frame)
            if shape_or_none is not None:
                self._shapes.append(shape_or_none)
                self._shape = shape_or_none

    def _read_messages(self, data: bytes, at: int, frames: list[Frame]) -> int:
        """Decode messages of the expected shape, up to the first frame that has another shape, is incomplete or is
        unusual in any way: _read decodes that one in the general way and reports its errors."""
        shape = self._shape
        assert shape is not None
        head, skip, table_bytes, unpack, pick = shape.head, shape.skip, shape.table_bytes, shape.unpack, shape.pick
        payload_at, topic_at = shape.payload_at, shape.topic_at
        topic, topic_raw = self._topic, self._topic_raw
        topic_raw_bytes = len(topic_raw)
        startswith, length_at, u32_at, append, new = (
            data.startswith,
            LENGTH.unpack_from,
            U32.unpack_from,
            frames.append,
            _new,
        )
        size, most = len(data), self.frame_bytes_max
        while at + table_bytes <= size and startswith(head, at + 4):
            length = length_at(data, at)[0]
            stop = at + 4 + length
            if stop > size or at + table_bytes > stop or length > most:
                break
            id_, payload_offset, timestamp_ms, ttl_ms, topic_offset, qos, redelivered = pick(
                unpack(data, at + skip) + _ABSENT
            )
            start = at + topic_at + topic_offset
            if startswith(topic_raw, start) and topic_offset and start + topic_raw_bytes <= stop:
                pass
            else:
                raw = _topic_raw_at(data, start, stop) if topic_offset else None
                if raw is None:
                    break
                found = self._topic_of(raw)
                if found is None:
                    break
                topic, topic_raw, topic_raw_bytes = found, raw, len(raw)
            start = at + payload_at + payload_offset + 4
            if start > stop or not payload_offset:
                break
            end = start + u32_at(data, start - 4)[0]
            if end > stop:
                break
            append(new(Message, (id_, topic, data[start:end], timestamp_ms, ttl_ms, qos, redelivered != 0, b"")))
            at = stop
        self._topic, self._topic_raw = topic, topic_raw
        return at

    def _topic_of(self, raw: bytes) -> str | None:
        """The text of a topic given as length, bytes and NUL; None if it is not UTF-8."""
        topic = self._topics.get(raw)
        if topic is None:
            try:
                topic = raw[4:-1].decode("utf-8")
            except UnicodeDecodeError:
                return None
            if len(self._topics) >= _TOPICS_MAX:
                self._topics.clear()
            self._topics[raw] = topic
        return topic


_new: Callable[[type[Message], tuple[Any, ...]], Message] = tuple.__new__


def _topic_raw_at(data: bytes, start: int, stop: int) -> bytes | None:
    """Length, bytes and NUL of the string at `start`, or None if it does not end before `stop`."""
    if start + 5 > stop:
        return None
    end = start + 5 + int(U32.unpack_from(data, start)[0])
    if end > stop or data[end - 1] != 0:
        return None
    return data[start:end]
