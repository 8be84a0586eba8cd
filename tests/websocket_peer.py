"""A WebSocket client written for the tests alone: frames by hand, with any header; and a reader of the broker's frames.

Invariant: nothing here uses blipmq.wire.websocket. What the broker sends is checked against RFC 6455: no mask, no reserved
bit, shortest lengths, whole control frames, nothing after Close.
"""

import base64
import hashlib
import os
import struct

from stepped import SocketClient

KEY = base64.b64encode(b"sixteen bytes ok")
ACCEPT = base64.b64encode(hashlib.sha1(KEY + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def request(path="/blipmq", method="GET", version="HTTP/1.1", without=(), **changed):
    """The handshake of a client. `without`: headers to leave out; `changed`: headers with other values, _ for -."""
    headers = {
        "Host": "broker.example:7881",
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Sec-WebSocket-Key": KEY.decode(),
        "Sec-WebSocket-Version": "13",
    }
    names = {name.lower(): name for name in headers}
    for name in without:
        del headers[names[name.lower()]]
    for name, value in changed.items():
        name = name.replace("_", "-")
        headers[names.get(name.lower(), name)] = value
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"{method} {path} {version}\r\n{lines}\r\n".encode("latin-1")


def masked(payload, mask):
    return bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def frame(payload=b"", opcode=BINARY, *, fin=True, rsv=0, mask=b"\x37\xfa\x21\x3d", length=None, form=None):
    """A frame of a client. `mask` None: not masked. `length`: another length than the payload's; `form`: the bytes of the
    length field, 1, 2 or 8."""
    length = len(payload) if length is None else length
    form = form or (1 if length < 126 else 2 if length < 1 << 16 else 8)
    bit = 0x80 if mask is not None else 0
    size = {1: bytes([bit | length & 0x7F]), 2: bytes([bit | 126]) + struct.pack(">H", length & 0xFFFF)}.get(form)
    if size is None:
        size = bytes([bit | 127]) + struct.pack(">Q", length)
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode]) + size
    return head + (mask + masked(payload, mask) if mask is not None else payload)


def close(code=1000, reason=b""):
    return frame(struct.pack(">H", code) + reason, CLOSE)


class FrameReader:
    """The broker's frames: (opcode, payload), in order."""

    def __init__(self):
        self.frames = []
        self._bytes = b""
        self._message = False

    def feed(self, data):
        """Return the payload of the data frames that are whole now."""
        self._bytes += data
        stream = b""
        while (found := self._next()) is not None:
            assert not any(opcode == CLOSE for opcode, _ in self.frames), "a frame after Close"
            self.frames.append(found)
            if found[0] == BINARY:
                stream += found[1]
        return stream

    @property
    def rest(self):
        return self._bytes

    def _next(self):
        data = self._bytes
        if len(data) < 2:
            return None
        first, size, at = data[0], data[1], 2
        assert first & 0x80, "the broker does not fragment"
        assert not first & 0x70 and not size & 0x80, data[:2]
        if size >= 126:
            at = 4 if size == 126 else 10
            if len(data) < at:
                return None
            size = int.from_bytes(data[2:at], "big")
            assert size >= (126 if at == 4 else 1 << 16), "not the shortest form"
        opcode = first & 0x0F
        assert opcode in (BINARY, CLOSE, PING, PONG)
        assert opcode == BINARY or size <= 125
        if len(data) < at + size:
            return None
        self._bytes = data[at + size :]
        return opcode, data[at : at + size]


class WebSocketClient(SocketClient):
    """A client of a stepped core over WebSocket. `send_bytes` wraps in one frame; `feed_raw` sends bytes as they are."""

    def __init__(self, bench, ours):
        super().__init__(bench, ours)
        self.head = b""
        self.opened = False
        self.reader = FrameReader()

    def arrived(self, data):
        if not self.opened:
            self.head += data
            end = self.head.find(b"\r\n\r\n")
            if end < 0 or not self.head.startswith(b"HTTP/1.1 101 "):
                return
            data, self.head = self.head[end + 4 :], self.head[: end + 4]
            self.opened = True
        super().arrived(self.reader.feed(data))

    def feed_raw(self, data):
        super().send_bytes(data)
        self.bench.settle()
        self.read_all()

    def feed_unread(self, data):
        """Send bytes as they are, and read nothing."""
        super().send_bytes(data)
        self.bench.settle()

    def send_bytes(self, data):
        self.feed_raw(frame(data, mask=os.urandom(4)))

    def read_all(self):
        """Read what is there, also its end, without running turns: `settle` before it."""
        while not self.eof and self.receive():
            pass

    def upgrade(self, **changed):
        self.feed_raw(request(**changed))
        assert self.opened, self.head
        assert b"\r\nSec-WebSocket-Accept: " + ACCEPT + b"\r\n" in self.head
        return self

    def hello(self):
        from blipmq.wire import frames as wire

        self.send(wire.HELLO, seq=1, client_id="client", protocol=wire.PROTOCOL)
        self.bench.settle()
        self.read_all()
        assert self.replies.pop().code == 0
        return self

    def subscribe(self, *filters):
        super().subscribe(*filters)
        self.read_all()
        return self

    def status(self):
        """The status of the answer to the handshake, and its body."""
        head, _, body = self.head.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    @property
    def close_code(self):
        """Code and reason of the broker's Close; None: none came."""
        if not self.reader.frames or self.reader.frames[-1][0] != CLOSE:
            return None
        payload = self.reader.frames[-1][1]
        return (int.from_bytes(payload[:2], "big"), payload[2:].decode()) if payload else (None, "")
