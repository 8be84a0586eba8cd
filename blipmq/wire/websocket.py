"""The client's side of WebSocket (RFC 6455), without I/O: the handshake, then one stream of bytes in each direction.

Invariant: each frame to the broker has a new random mask. Bytes to send are returned or collected in `out`, in order.
After `closed` is set nothing more is decoded.
"""

from __future__ import annotations

import base64
import hashlib
import os
from functools import lru_cache

from blipmq.errors import Disconnected, ProtocolError

PATH, SUBPROTOCOL = "/blipmq", "blipmq"
FRAME_BYTES = 64 << 10
"""The payload of one frame to the broker is at most this long, whatever the broker's limit is."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
CAUSE_WAIT_S = 1.0
"""How long a client waits for the cause of a refusal, which is the first line behind its head."""

_HEAD_BYTES_MAX = 16 << 10
_CAUSE_BYTES_MAX = 200
_CONTINUATION, _BINARY, _CLOSE, _PING, _PONG = 0, 2, 8, 9, 10
_FRAME_BYTES_MAX = 1 << 31  # of a frame from the broker
_MASKS = 64  # masks that one call of os.urandom gives
_SHORT_BYTES = 512  # above, the tables are faster


class HandshakeRefused(ProtocolError):
    """The peer answered the handshake with an error (`status`, of HTTP), or not as a WebSocket (`status` 0)."""

    def __init__(self, what: str, status: int = 0) -> None:
        super().__init__(what)
        self.status = status


class WebSocket:
    """One connection. Send `request`, pass all received bytes to `receive`, and send what `wrap` returns and what is in
    `out`."""

    def __init__(self, host: str, path: str = PATH, subprotocol: str = SUBPROTOCOL) -> None:
        """`host`: the header Host, with the port."""
        self._key = base64.b64encode(os.urandom(16))
        self._subprotocol = subprotocol
        self.request = (
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {self._key.decode()}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
        ).encode("ascii")
        self.is_open = False
        """The handshake is done."""
        self.refused = False
        """The handshake is refused, and the cause has not come completely. Call `end` when it has had its time."""
        self.closed: Disconnected | None = None
        """The broker's Close, once it has come."""
        self.out = bytearray()
        """Answers of the protocol itself, to be sent."""
        self._in = bytearray()
        self._left = 0  # payload bytes of the current data frame that have not come
        self._masks = b""

    def __repr__(self) -> str:
        state = "closed" if self.closed else "open" if self.is_open else "opening"
        return f"<WebSocket {state} in={len(self._in)} out={len(self.out)}>"

    # ---- output

    def wrap(self, data: bytes | bytearray | memoryview) -> bytes:
        """Return `data` as binary frames."""
        if len(data) <= FRAME_BYTES:
            return self._frame(_BINARY, data)
        view = memoryview(data)
        return b"".join(self._frame(_BINARY, view[at : at + FRAME_BYTES]) for at in range(0, len(view), FRAME_BYTES))

    def close(self) -> bytes:
        """Return a Close with code 1000."""
        return self._frame(_CLOSE, (1000).to_bytes(2, "big"))

    def _frame(self, opcode: int, data: bytes | bytearray | memoryview) -> bytes:
        size = len(data)
        if not self._masks:
            self._masks = os.urandom(4 * _MASKS)
        mask, self._masks = self._masks[:4], self._masks[4:]
        if size < 126:
            head = bytes((0x80 | opcode, 0x80 | size))
        elif size < 1 << 16:
            head = bytes((0x80 | opcode, 0xFE)) + size.to_bytes(2, "big")
        else:
            head = bytes((0x80 | opcode, 0xFF)) + size.to_bytes(8, "big")
        return head + mask + _masked(data, mask)

    # ---- input

    def receive(self, data: bytes) -> bytes:
        """Return the payload bytes that have come. Raises `HandshakeRefused` if the handshake fails, ProtocolError if the peer
        breaks RFC 6455."""
        if not self._in and self._left >= len(data):  # usual: within one frame
            self._left -= len(data)
            return data
        self._in += data
        if not self.is_open and not self._opened():
            return b""
        parts: list[bytes] = []
        while self.closed is None and (part := self._next()) is not None:
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def end(self) -> None:
        """No more bytes come, or not in time. Raises `HandshakeRefused` if the handshake is refused."""
        if self.refused:
            self._opened(ended=True)

    def _next(self) -> bytes | None:
        """Take the next part of a data frame, or a control frame; None if more bytes are needed."""
        if self._left:
            part = bytes(self._in[: self._left])
            del self._in[: len(part)]
            self._left -= len(part)
            return part or None
        if len(self._in) < 2:
            return None
        first, size, at = self._in[0], self._in[1], 2
        if size & 0x80 or first & 0x70:
            raise ProtocolError("a WebSocket frame of the broker is masked, or uses an extension")
        if size >= 126:
            at = 4 if size == 126 else 10
            if len(self._in) < at:
                return None
            size = int.from_bytes(self._in[2:at], "big")
        opcode = first & 0x0F
        if opcode in (_CONTINUATION, _BINARY) and size < _FRAME_BYTES_MAX:
            del self._in[:at]
            self._left = size
            return b"" if self._in or not size else None
        if opcode not in (_CLOSE, _PING, _PONG) or size > 125 or not first & 0x80:
            raise ProtocolError(f"a WebSocket frame of the broker has opcode {opcode} and {size} bytes")
        if len(self._in) < at + size:
            return None
        payload = bytes(self._in[at : at + size])
        del self._in[: at + size]
        self._control(opcode, payload)
        return b""

    def _control(self, opcode: int, payload: bytes) -> None:
        if opcode == _PING:
            self.out += self._frame(_PONG, payload)
        elif opcode == _CLOSE:
            code, reason = int.from_bytes(payload[:2], "big"), payload[2:].decode("utf-8", "replace")
            self.closed = Disconnected(f"it closed the WebSocket ({code or 'no code'}{': ' if reason else ''}{reason})")
            self.out += self._frame(_CLOSE, payload[:2])

    def _opened(self, ended: bool = False) -> bool:
        """Read the answer to the handshake, once it is complete. A refusal is complete with the first line of its body."""
        end = self._in.find(b"\r\n\r\n")
        if end < 0:
            if len(self._in) > _HEAD_BYTES_MAX or not b"HTTP/1.".startswith(self._in[:7]):
                raise HandshakeRefused("the answer is not HTTP. Check that the port is that of server.ws_bind_addr.")
            return False
        lines = bytes(self._in[:end]).decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])
        }
        version, _, status = lines[0].partition(" ")
        if not version.startswith("HTTP/1.") or not status.startswith("101"):
            cause = _cause(headers, bytes(self._in[end + 4 :]), ended)
            self.refused = cause is None
            if cause is None:
                return False
            code = int(status[:3]) if status[:3].isdigit() else 0
            raise HandshakeRefused(f"it refused the WebSocket: {status}{': ' if cause else ''}{cause}", code)
        accept = base64.b64encode(hashlib.sha1(self._key + _GUID, usedforsecurity=False).digest()).decode()
        if headers.get("sec-websocket-accept") != accept or headers.get("upgrade", "").lower() != "websocket":
            raise HandshakeRefused(
                "its answer does not belong to this handshake. Check for a proxy between client and broker."
            )
        if headers.get("sec-websocket-protocol", self._subprotocol) != self._subprotocol:
            raise HandshakeRefused("it chose a subprotocol that was not offered")
        if "sec-websocket-extensions" in headers:
            raise HandshakeRefused("it uses an extension that was not offered")
        del self._in[: end + 4]
        self.is_open = True
        return True


def _cause(headers: dict[str, str], body: bytes, ended: bool) -> str | None:
    """The first line of a refusal's body: "" if it is not plain text, None if more of it is to come. `ended`: no more comes."""
    if "transfer-encoding" in headers or not headers.get("content-type", "text/plain").lower().startswith("text/plain"):
        return ""
    size = headers.get("content-length", "")
    most = min(int(size[:9]), _CAUSE_BYTES_MAX) if size.isdecimal() else _CAUSE_BYTES_MAX
    line, newline, _ = body[:most].lstrip().partition(b"\n")
    if not (newline or len(body) >= most or ended):
        return None
    return line.decode("utf-8", "replace").strip()


def _masked(data: bytes | bytearray | memoryview, mask: bytes) -> bytes | bytearray:
    """XOR with the repeated mask: short data as one large number, long data byte by byte of the mask."""
    size = len(data)
    if size <= _SHORT_BYTES:
        key = (mask * (size // 4 + 1))[:size]
        return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")
    plain, masked = bytes(data), bytearray(size)
    for i in range(4):
        masked[i::4] = plain[i::4].translate(_xor_table(mask[i]))
    return masked


@lru_cache(256)
def _xor_table(value: int) -> bytes:
    return bytes(byte ^ value for byte in range(256))
