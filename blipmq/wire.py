"""The wire in plain Python: encodes commands, decodes what the broker sends, verifies before it reads.

    client to broker   u32 big-endian N | N bytes: FlatBuffer, root ClientCommand
    broker to client   u32 big-endian N | u8 type | N-1 bytes: FlatBuffer, root SubAck (0), Message (1) or Reply (2)

Invariant: no offset, length or string of a body is used before it is shown to lie inside that body; what fails raises
ProtocolError and nothing else. Needs only `struct`: it is on the start-up path of the command line, and it knows
nothing of the C core, so that each can be tested against the other. FlatBuffers layout:
https://flatbuffers.dev/internals/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

from blipmq.errors import ProtocolError, UsageError
from blipmq.flatbuffer import I32, U8, U16, U32, U64, Table, assemble, broken
from blipmq.topics import check_filter, check_topic

PROTOCOL = 1
PUB, SUB, UNSUB, QUIT, HELLO, ACK, PING, INFO = range(8)
ACTIONS = ("PUB", "SUB", "UNSUB", "QUIT", "HELLO", "ACK", "PING", "INFO")
SUBACK, MESSAGE, REPLY = range(3)

FRAME_BYTES_MAX = 64 << 20
"""Default limit for a frame from the peer; a longer one is refused from its length alone."""

_LENGTH = Struct(">I")
_HEADER = Struct(">IB")
_U64_MAX = (1 << 64) - 1


class SubAck(NamedTuple):
    """The answer to SUB. `code` 0 is yes."""

    topic: str
    info: str
    seq: int
    code: int


class Message(NamedTuple):
    """One message, as a subscriber gets it. `timestamp_ms` counts from 1970 (UTC), `ttl_ms` 0 means it never
    expires."""

    id: int
    topic: str
    payload: bytes
    timestamp_ms: int
    ttl_ms: int
    qos: int
    redelivered: bool

    @property
    def text(self) -> str:
        """The payload as UTF-8, with U+FFFD where it is not."""
        return self.payload.decode("utf-8", "replace")


class Reply(NamedTuple):
    """The answer to HELLO, UNSUB, PING, INFO, QoS 1 PUB, and to anything refused. `code` 0 is yes."""

    seq: int
    code: int
    message: str
    id: int
    payload: bytes


Frame: TypeAlias = "SubAck | Message | Reply"


class Command(NamedTuple):
    """One ClientCommand, as a broker reads it; fields left out are at their defaults."""

    action: int
    topic: str = ""
    payload: bytes = b""
    ttl_ms: int = 0
    qos: int = 0
    seq: int = 0
    client_id: str = ""
    api_key: str = ""
    protocol: int = 0
    durable: bool = False
    group: str = ""


# ---- encoding --------------------------------------------------------------------------------------------------------

_SCALARS = {3: U64, 5: U64, 8: U16, 4: U8, 9: U8, 0: U8}  # of ClientCommand; slot: width, widest first


def _check_range(name: str, value: int, most: int) -> None:
    if not 0 <= value <= most:
        raise UsageError(f"{name} is {value}; it must be between 0 and {most}.")


def encode_command(
    action: int,
    topic: str = "",
    payload: bytes | None = None,
    *,
    ttl_ms: int = 0,
    qos: int = 0,
    seq: int = 0,
    client_id: str = "",
    api_key: str = "",
    protocol: int = 0,
    durable: bool = False,
    group: str = "",
) -> bytes:
    """One whole frame, length included. Fields at their defaults take no space. Checks ranges, not topics."""
    _check_range("action", action, INFO)
    _check_range("ttl_ms", ttl_ms, _U64_MAX)
    _check_range("qos", qos, 1)
    _check_range("seq", seq, _U64_MAX)
    _check_range("protocol", protocol, 0xFFFF)
    numbers = {0: action, 3: ttl_ms, 4: qos, 5: seq, 8: protocol, 9: int(durable)}
    vectors = [
        (slot, text.encode("utf-8", errors), b"\0")
        for slot, text, errors in (
            (1, topic, "strict"),
            (6, client_id, "strict"),
            (7, api_key, "surrogateescape"),  # a secret is bytes: environment and files may hold any
            (10, group, "strict"),
        )
        if text
    ]
    if payload is not None:
        vectors.append((2, payload, b""))
    body = assemble([(slot, width, numbers[slot]) for slot, width in _SCALARS.items() if numbers[slot]], vectors)
    return _LENGTH.pack(len(body)) + body


class PublishEncoder:
    """Encodes publishes of one topic, TTL and QoS: all but the lengths is the same in each, so it is made once.

    The payload comes last and needs no terminator, so a frame is a head that depends only on the payload's size, then
    the payload. Heads of short payloads are kept.
    """

    __slots__ = ("_heads", "_qos", "_stem", "_topic", "_ttl_ms")

    _HEADS_MAX = 1024

    def __init__(self, topic: str, *, ttl_ms: int = 0, qos: int = 0) -> None:
        check_topic(topic)
        self._topic, self._ttl_ms, self._qos = topic, ttl_ms, qos
        self._stem = encode_command(PUB, topic, b"", ttl_ms=ttl_ms, qos=qos)[4:-4]
        self._heads: list[bytes | None] = [None] * self._HEADS_MAX

    def __repr__(self) -> str:
        return f"PublishEncoder({self._topic!r}, ttl_ms={self._ttl_ms}, qos={self._qos})"

    def head(self, size_bytes: int) -> bytes:
        """What goes before a payload of this size."""
        if size_bytes < self._HEADS_MAX:
            head = self._heads[size_bytes]
            if head is None:
                head = self._heads[size_bytes] = self._make_head(size_bytes)
            return head
        return self._make_head(size_bytes)

    def _make_head(self, size_bytes: int) -> bytes:
        frame_bytes = len(self._stem) + 4 + size_bytes
        if frame_bytes > 0x7FFFFFFF:  # FlatBuffers offsets end at 2 GiB
            raise UsageError(f"A payload of {size_bytes} bytes does not fit into one message; split it.")
        return _LENGTH.pack(frame_bytes) + self._stem + U32.pack(size_bytes)

    def frame(self, payload: bytes, seq: int = 0) -> bytes:
        """One frame. With a `seq` (wanted for QoS 1, where it is answered) the fast way does not apply."""
        if seq:
            return encode_command(PUB, self._topic, payload, ttl_ms=self._ttl_ms, qos=self._qos, seq=seq)
        return self.head(len(payload)) + payload

    def frames(self, payloads: Iterable[bytes]) -> bytes:
        """The frames of all these payloads, in order, as one run of bytes."""
        head = self.head
        parts: list[bytes] = []
        append = parts.append
        for payload in payloads:
            append(head(len(payload)))
            append(payload)
        return b"".join(parts)


# ---- decoding --------------------------------------------------------------------------------------------------------


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
    )


def decode_reply(body: bytes) -> Reply:
    table = Table(body)
    return Reply(
        table.number(0, U64), table.number(1, U16), table.text(2), table.number(3, U64), table.vector(4) or b""
    )


_DECODERS: tuple[Callable[[bytes], Frame], ...] = (decode_suback, decode_message, decode_reply)


def decode_command(body: bytes) -> Command:
    """Verify and read one ClientCommand: structure, action, QoS, and the topic or filter that the action needs."""
    table = Table(body)
    command = Command(
        action=table.number(0, U8),
        topic=table.text(1),
        payload=table.vector(2) or b"",
        ttl_ms=table.number(3, U64),
        qos=table.number(4, U8),
        seq=table.number(5, U64),
        client_id=table.text(6),
        api_key=table.text(7, "surrogateescape"),
        protocol=table.number(8, U16),
        durable=table.number(9, U8) != 0,
        group=table.text(10),
    )
    if command.action > INFO:
        raise broken(f"there is no action {command.action}")
    if command.qos > 1:
        raise broken(f"QoS {command.qos} is not 0 or 1")
    try:
        if command.action == PUB:
            check_topic(command.topic)
        elif command.action in (SUB, UNSUB):
            check_filter(command.topic)
    except UsageError as error:
        raise broken(str(error)) from None
    return command


# ---- streams ---------------------------------------------------------------------------------------------------------


class _Splitter:
    """Keeps the bytes of a frame that is not whole yet, without copying them again for each piece that arrives."""

    __slots__ = ("_have", "_need", "_parts", "frame_bytes_max")

    def __init__(self, frame_bytes_max: int) -> None:
        self.frame_bytes_max = frame_bytes_max
        self._parts: list[bytes] = []
        self._have = 0
        self._need = 4

    def __repr__(self) -> str:
        return f"{type(self).__name__}(waiting={self._have}, need={self._need}, frame_bytes_max={self.frame_bytes_max})"

    def _gather(self, data: bytes) -> bytes:
        """All bytes not consumed yet if they may hold a whole frame, else b"" with the bytes kept."""
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
        """Keep data[at:], which is shorter than the frame it begins."""
        rest = data[at:]
        self._parts, self._have = [rest] if rest else [], len(rest)
        self._need = 4 + _LENGTH.unpack_from(rest)[0] if len(rest) >= 4 else 4

    def _check_length(self, length: int, least: int) -> None:
        if length < least:
            raise broken(f"a length of {length}")
        if length > self.frame_bytes_max:
            raise broken(f"a length of {length} bytes is over the limit of {self.frame_bytes_max}")


class CommandReader(_Splitter):
    """A broker's side of the stream: bytes in, Commands out. For tests and tools; the broker itself reads in C."""

    __slots__ = ()

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        super().__init__(frame_bytes_max)

    def feed(self, data: bytes) -> Iterator[Command]:
        """Yield the commands that are whole now; raise ProtocolError at the first that is broken."""
        data = self._gather(data)
        at, size = 0, len(data)
        while size - at >= 4:
            length = _LENGTH.unpack_from(data, at)[0]
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
_FIELD_CODES = ("Q", "I", "Q", "Q", "I", "B", "B")  # of Message, by slot; I: offset to a vector


class _Shape:
    """Where the fields of a Message lie, for all frames that begin (after the length) with the same `head`.

    A builder lays out messages of one kind alike: same root offset, same vtable before the table. Such a head is
    verified once; after that one comparison of bytes stands for it, and one unpack reads every inline field.
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
        """The shape of a frame whose body has just been decoded, if it is one that the fast way can take."""
        table = Table(frame[5:])
        vtable = table.table - I32.unpack_from(table.body, table.table)[0]
        fields = table.fields[:7]
        if not 4 <= vtable < table.table or len(fields) < 5 or not fields[1] or not fields[4]:
            return None
        widths = sorted(
            (offset, offset + Struct("<" + code).size)
            for offset, code in zip(fields, _FIELD_CODES, strict=False)
            if offset
        )
        starts_and_ends = [4, *(edge for pair in widths for edge in pair)]
        if starts_and_ends != sorted(starts_and_ends):
            return None  # fields overlap: legal to read, but nothing a builder makes
        return cls(frame[4 : 5 + table.table + 4], table)


class FrameReader(_Splitter):
    """The client's side of the stream: bytes in, SubAck, Message and Reply out.

    `broken` is set when the stream cannot be read on; frames before the broken one are still returned. feed() raises it
    once there is nothing good left to return.
    """

    __slots__ = ("_shape", "_shapes", "_topic", "_topic_raw", "_topics", "broken")

    def __init__(self, frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        super().__init__(frame_bytes_max)
        self.broken: ProtocolError | None = None
        self._shape: _Shape | None = None
        self._shapes: list[_Shape] = []
        self._topic_raw = (
            b"\xff\xff\xff\xff"  # length, bytes and NUL of the topic seen last; at first what none can begin with
        )
        self._topic = ""
        self._topics: dict[bytes, str] = {}

    def feed(self, data: bytes) -> list[Frame]:
        """The frames that are whole now. Raises ProtocolError if there is none because the stream is broken."""
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
        """Decode all whole frames of `data` into `frames`; return where the first that is not whole begins."""
        at, size = 0, len(data)
        while size - at >= 4:
            if self._shape is not None:
                at = self._read_messages(data, at, frames)
                if size - at < 4:
                    break
            length = _LENGTH.unpack_from(data, at)[0]
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
        """Expect the next messages to look like this one."""
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
        """Decode messages of the expected shape, up to the first frame that is of another, not whole, or in any way
        odd: that one is left to _read, which decodes it in the general way and says what is wrong with it."""
        shape = self._shape
        assert shape is not None
        head, skip, table_bytes, unpack, pick = shape.head, shape.skip, shape.table_bytes, shape.unpack, shape.pick
        payload_at, topic_at = shape.payload_at, shape.topic_at
        topic, topic_raw = self._topic, self._topic_raw
        topic_raw_bytes = len(topic_raw)
        startswith, length_at, u32_at, append, new = (
            data.startswith,
            _LENGTH.unpack_from,
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
            append(new(Message, (id_, topic, data[start:end], timestamp_ms, ttl_ms, qos, redelivered != 0)))
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
