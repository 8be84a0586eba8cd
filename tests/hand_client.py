"""Frames encoded and decoded by hand, and the two kinds of client that use them over a plain socket.

Invariant: nothing comes from the package under test. Frames are laid out with struct, field by field, as the tables of
the protocol define, so a mistake in `blipmq.wire.frames` cannot hide itself, and frozen binaries can be tested.
"""

import ctypes
import json
import socket
import struct
from typing import NamedTuple

TIMEOUT_S = 60
SO_ATTACH_FILTER = 26  # Linux

PUB, SUB, UNSUB, QUIT, HELLO, ACK, PING, INFO = range(8)
SUBACK, MESSAGE, REPLY = range(3)


class SubAck(NamedTuple):
    topic: str
    info: str
    seq: int = 0
    code: int = 0


class Message(NamedTuple):
    id: int
    payload: bytes
    timestamp_ms: int
    ttl_ms: int
    topic: str
    qos: int
    redelivered: bool
    properties: bytes = b""


class Reply(NamedTuple):
    seq: int
    code: int
    message: str
    id: int
    payload: bytes


def vanish(sock):
    """From now on nothing that arrives is acknowledged or answered, even when the socket is closed."""
    takes_nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))
    program = struct.pack("HL", 1, ctypes.addressof(takes_nothing))
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


# ---- encoding --------------------------------------------------------------------------------------------------------


def byte(value):
    return struct.pack("<B", value)


def short(value):
    return struct.pack("<H", value)


def long(value):
    return struct.pack("<Q", value)


def table(slots):
    """One FlatBuffer: root offset, vtable, table, then the vectors.

    `slots`: for each slot None (absent), bytes from byte(), short() or long() (stored in the table), or a one-element
    list with str or bytes (stored behind it, strings with a NUL)."""
    widths = {
        slot: 4 if isinstance(value, list) else len(value) for slot, value in enumerate(slots) if value is not None
    }
    vtable_size = 4 + 2 * (max(widths, default=-1) + 1)
    table_at = 4 + vtable_size
    table_at += (4 - table_at) % 8  # so that the first field, four bytes in, may be a ulong
    at, places = 4, {}
    for slot in sorted(widths, key=lambda slot: -widths[slot]):  # by size, so that each is aligned
        places[slot], at = at, at + widths[slot]
    body = bytearray(at)
    struct.pack_into("<i", body, 0, vtable_size + (table_at - 4 - vtable_size))
    behind = bytearray()
    behind_at = table_at + at + (-at - table_at) % 4
    for slot, place in places.items():
        value = slots[slot]
        if not isinstance(value, list):
            body[place : place + len(value)] = value
            continue
        (content,) = value
        struct.pack_into("<I", body, place, behind_at + len(behind) - table_at - place)
        data = content.encode("utf-8", "surrogateescape") + b"\0" if isinstance(content, str) else content
        behind += struct.pack("<I", len(data) - isinstance(content, str)) + data
        behind += bytes(-len(behind) % 4)
    vtable = struct.pack("<HH", vtable_size, at)
    vtable += b"".join(struct.pack("<H", places.get(slot, 0)) for slot in range((vtable_size - 4) // 2))
    head = struct.pack("<I", table_at) + vtable
    head += bytes(table_at - len(head))
    whole = head + bytes(body)
    return whole + bytes(behind_at - len(whole)) + bytes(behind)


def command(action, topic=None, payload=None, *, ttl_ms=0, qos=0, seq=0, client_id=None, api_key=None, protocol=0,
            durable=False, group=None):  # fmt: skip
    """A complete client frame; default values are omitted, as FlatBuffers does."""
    slots = [
        byte(action) if action else None,
        [topic] if topic is not None else None,
        [payload] if payload is not None else None,
        long(ttl_ms) if ttl_ms else None,
        byte(qos) if qos else None,
        long(seq) if seq else None,
        [client_id] if client_id is not None else None,
        [api_key] if api_key is not None else None,
        short(protocol) if protocol else None,
        byte(1) if durable else None,
        [group] if group is not None else None,
    ]
    body = table(slots)
    return struct.pack(">I", len(body)) + body


def v1_command(action, topic="", payload=b"", ttl_ms=0):
    """A frame of the v1.0.0 client: four fields; strings and vectors are always present."""
    return command(action, topic, payload, ttl_ms=ttl_ms)


def reply(seq, code, message):
    """A Reply of a broker, for tests that act as the broker."""
    body = byte(REPLY) + table([long(seq), short(code), [message]])
    return struct.pack(">I", len(body)) + body


# ---- decoding --------------------------------------------------------------------------------------------------------


class Reader:
    """The fields of one FlatBuffer's root table."""

    def __init__(self, data):
        self.data = data
        (self.at,) = struct.unpack_from("<I", data)
        (back,) = struct.unpack_from("<i", data, self.at)
        self.vtable = self.at - back
        (self.vtable_size,) = struct.unpack_from("<H", data, self.vtable)

    def place(self, slot):
        entry = 4 + 2 * slot
        if entry >= self.vtable_size:
            return 0
        (offset,) = struct.unpack_from("<H", self.data, self.vtable + entry)
        return self.at + offset if offset else 0

    def number(self, slot, form):
        place = self.place(slot)
        return struct.unpack_from(form, self.data, place)[0] if place else 0

    def vector(self, slot):
        place = self.place(slot)
        if not place:
            return b""
        start = place + struct.unpack_from("<I", self.data, place)[0]
        (size,) = struct.unpack_from("<I", self.data, start)
        assert start + 4 + size <= len(self.data), "the broker wrote a vector that leaves its frame"
        return bytes(self.data[start + 4 : start + 4 + size])

    def string(self, slot):
        return self.vector(slot).decode()


def decode(body):
    """The body of a frame from the broker, type byte first, as SubAck, Message or Reply."""
    r = Reader(memoryview(body)[1:])
    if body[0] == SUBACK:
        return SubAck(r.string(0), r.string(1), r.number(2, "<Q"), r.number(3, "<H"))
    if body[0] == MESSAGE:
        return Message(
            r.number(0, "<Q"), r.vector(1), r.number(2, "<Q"), r.number(3, "<Q"), r.string(4), r.number(5, "<B"),
            bool(r.number(6, "<B")), r.vector(8),
        )  # fmt: skip
    assert body[0] == REPLY, f"the broker sent a frame of type {body[0]}, which no client knows"
    return Reply(r.number(0, "<Q"), r.number(1, "<H"), r.string(2), r.number(3, "<Q"), r.vector(4))


# ---- clients ---------------------------------------------------------------------------------------------------------


class LegacyClient:
    """A socket with v1.0.0 frames: a legacy client without HELLO."""

    def __init__(self, address, receive_buffer_bytes=0):
        host, _, port = address.rpartition(":")
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect((host, int(port)))
        self.peer = "{}:{}".format(*self.socket.getsockname())
        self.stream = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.stream.close()
        self.socket.close()

    def send(self, *frames):
        self.socket.sendall(b"".join(frames))

    def frame(self):
        """The body of the next frame, type byte first; None at the end of the stream."""
        head = self.stream.read(4)
        if not head:
            return None
        (size,) = struct.unpack(">I", head)
        body = self.stream.read(size)
        assert len(body) == size, "the stream ended inside a frame"
        return body

    def next(self):
        """The next frame, decoded; None at the end of the stream."""
        body = self.frame()
        return None if body is None else decode(body)

    def is_closed(self):
        """Read to the end; True if the broker sent nothing more and closed."""
        try:
            return self.stream.read(1) == b""
        except ConnectionResetError:
            return True

    def subscribe(self, *filters):
        for filter_ in filters:
            self.send(v1_command(SUB, filter_))
            assert self.next() == SubAck(filter_, "subscribed")
        return self

    def publish(self, topic, payload, ttl_ms=0):
        self.send(v1_command(PUB, topic, payload, ttl_ms))


class HelloClient(LegacyClient):
    """A client that sends HELLO when it connects, numbers its requests and decodes Replies."""

    def __init__(self, address, client_id=None, receive_buffer_bytes=0, api_key=None):
        super().__init__(address, receive_buffer_bytes)
        self.seq = 0
        self.greeting = self.ask(HELLO, client_id=client_id, api_key=api_key, protocol=1)

    def ask(self, action, *args, **fields):
        """Send a request and return the next frame, which must have its number."""
        self.seq += 1
        self.send(command(action, *args, seq=self.seq, **fields))
        answer = self.next()
        assert answer is not None, "the broker closed instead of answering"
        assert getattr(answer, "seq", None) == self.seq, answer
        return answer

    def subscribe(self, *filters):
        for filter_ in filters:
            assert self.ask(SUB, filter_) == SubAck(filter_, "subscribed", self.seq)
        return self

    def is_open(self):
        """True if the next frame of the broker is the answer to a PING."""
        return self.ask(PING) == Reply(self.seq, 0, "", 0, b"")

    def info(self):
        answer = self.ask(INFO)
        assert answer.code == 0, answer
        return json.loads(answer.payload)
