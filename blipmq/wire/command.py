"""ClientCommand, the client's frames, as Python values, encoded and decoded.

    u32 big-endian N | N bytes: FlatBuffer, root ClientCommand

Invariant: an encoded command verifies, and a command that does not verify is not decoded. A publish is encoded for
every message, so everything except payload, size and sequence number is kept between messages.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from blipmq.base.validation import check_whole
from blipmq.errors import UsageError
from blipmq.wire.flatbuffer import U8, U16, U32, U64, Table, assemble, broken
from blipmq.wire.framer import LENGTH
from blipmq.wire.topics import check_filter, check_topic

PROTOCOL = 1
PUB, SUB, UNSUB, QUIT, HELLO, ACK, PING, INFO, STREAM, ADMIN = range(10)  # STREAM is reserved
ACTIONS = ("PUB", "SUB", "UNSUB", "QUIT", "HELLO", "ACK", "PING", "INFO", "STREAM", "ADMIN")

_U64_MAX = (1 << 64) - 1


class Command(NamedTuple):
    """One ClientCommand, as a broker reads it; missing fields have their defaults."""

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
    keepalive_ms: int = 0
    keep_durable: bool = False


# slots of ClientCommand and their widths, widest first
_SCALARS = {3: U64, 5: U64, 16: U64, 8: U16, 4: U8, 9: U8, 17: U8, 0: U8}


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
    keepalive_ms: int = 0,
    keep_durable: bool = False,
) -> bytes:
    """Encode one frame, with its length. Fields with default values take no space. Checks ranges, not topics. Raises
    UsageError."""
    check_whole("action", action, 0, ADMIN)
    if action == STREAM:
        raise UsageError("Action 8 is not in use.")
    check_whole("ttl_ms", ttl_ms, 0, _U64_MAX)
    check_whole("qos", qos, 0, 1)
    check_whole("seq", seq, 0, _U64_MAX)
    check_whole("protocol", protocol, 0, 0xFFFF)
    check_whole("keepalive_ms", keepalive_ms, 0, _U64_MAX)
    numbers = {0: action, 3: ttl_ms, 4: qos, 5: seq, 8: protocol, 9: int(durable), 16: keepalive_ms}
    numbers[17] = int(keep_durable)
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
    return LENGTH.pack(len(body)) + body


class PublishEncoder:
    """Encodes publishes of one topic, TTL and QoS. Everything except the lengths is the same in each, so it is encoded
    once.

    The payload comes last and needs no terminator, so a frame is a head that depends only on the payload's size, then
    the payload. Heads of short payloads are kept. With a sequence number, the head is the part before it, the number,
    and the part behind it.
    """

    __slots__ = ("_heads", "_numbered", "_qos", "_stem", "_topic", "_ttl_ms")

    _HEADS_MAX = 1024

    def __init__(self, topic: str, *, ttl_ms: int = 0, qos: int = 0) -> None:
        check_topic(topic)
        self._topic, self._ttl_ms, self._qos = topic, ttl_ms, qos
        self._stem = encode_command(PUB, topic, b"", ttl_ms=ttl_ms, qos=qos)[4:-4]
        self._heads: list[bytes | None] = [None] * self._HEADS_MAX
        self._numbered: tuple[bytes, bytes] | None = None  # the parts before and behind the sequence number

    def __repr__(self) -> str:
        return f"PublishEncoder({self._topic!r}, ttl_ms={self._ttl_ms}, qos={self._qos})"

    def head(self, size_bytes: int) -> bytes:
        """The bytes before a payload of this size."""
        if size_bytes < self._HEADS_MAX:
            head = self._heads[size_bytes]
            if head is None:
                head = self._heads[size_bytes] = self._make_head(size_bytes)
            return head
        return self._make_head(size_bytes)

    def _make_head(self, size_bytes: int) -> bytes:
        frame_bytes = len(self._stem) + 4 + size_bytes
        _check_frame_bytes(frame_bytes, size_bytes)
        return LENGTH.pack(frame_bytes) + self._stem + U32.pack(size_bytes)

    def frame(self, payload: bytes, seq: int = 0) -> bytes:
        """Encode one frame. QoS 1 needs a `seq`, which the answer carries."""
        if not seq:
            return self.head(len(payload)) + payload
        if self._numbered is None:
            self._numbered = _around_seq(
                encode_command(PUB, self._topic, b"", ttl_ms=self._ttl_ms, qos=self._qos, seq=1)[4:-4]
            )
        before, behind = self._numbered
        frame_bytes = len(before) + 8 + len(behind) + 4 + len(payload)
        _check_frame_bytes(frame_bytes, len(payload))
        return b"".join((LENGTH.pack(frame_bytes), before, U64.pack(seq), behind, U32.pack(len(payload)), payload))

    def frames(self, payloads: Iterable[bytes]) -> bytes:
        """Encode the frames of all payloads, in order, joined."""
        head = self.head
        parts: list[bytes] = []
        append = parts.append
        for payload in payloads:
            append(head(len(payload)))
            append(payload)
        return b"".join(parts)


def _check_frame_bytes(frame_bytes: int, payload_bytes: int) -> None:
    if frame_bytes > 0x7FFFFFFF:  # FlatBuffers offsets end at 2 GiB
        raise UsageError(f"A payload of {payload_bytes} bytes does not fit into one message; split it.")


def _around_seq(body: bytes) -> tuple[bytes, bytes]:
    """The parts before and behind the sequence number in the body of a command that has one."""
    table = Table(body + bytes(4))  # adds the payload size that a publish stem lacks
    at = table.table + table.fields[5]
    return body[:at], body[at + 8 :]


_ACK = _around_seq(encode_command(ACK, seq=1)[4:])
_ACK_HEAD = LENGTH.pack(len(_ACK[0]) + 8 + len(_ACK[1])) + _ACK[0]


def encode_acks(message_ids: Iterable[int]) -> bytes:
    """Encode one ACK frame for each id, joined."""
    return b"".join([_ACK_HEAD + U64.pack(id_) + _ACK[1] for id_ in message_ids])


def decode_command(body: bytes) -> Command:
    """Verify and decode one ClientCommand: structure, action, QoS, and the topic or filter that the action needs.
    Raises ProtocolError."""
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
        keepalive_ms=table.number(16, U64),
        keep_durable=table.number(17, U8) != 0,
    )
    if command.action > INFO and command.action != ADMIN:
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
