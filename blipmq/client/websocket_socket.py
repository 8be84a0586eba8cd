"""WebSocket below the connection of a blocking client: an object that is used like the socket below it.

Invariant: `send` returns the number of payload bytes whose frame has left completely, so a caller that repeats the rest
never splits a frame.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable
from typing import cast

from blipmq.client.address import Address, closed_in_handshake, unreachable, websocket_failed
from blipmq.errors import ProtocolError
from blipmq.wire.websocket import CAUSE_WAIT_S, FRAME_BYTES, HandshakeRefused, WebSocket


class WebSocketSocket:
    """A non-blocking socket after its handshake; see `shake_hands`."""

    def __init__(self, sock: socket.socket, websocket: WebSocket) -> None:
        self._socket, self._websocket = sock, websocket
        self._frame, self._frame_payload = b"", 0  # what is left of the frame being sent, and the size of its payload
        self.fileno, self.setsockopt, self.getsockopt = sock.fileno, sock.setsockopt, sock.getsockopt
        self.family = sock.family

    def __repr__(self) -> str:
        return f"<WebSocketSocket {self._websocket!r} frame={len(self._frame)}>"

    def recv(self, size: int) -> bytes:
        """Return payload bytes, or b"" at the end. Raises BlockingIOError if no payload has come, ConnectionResetError after
        a Close, ProtocolError if the peer breaks RFC 6455."""
        if self._websocket.closed is not None:  # it came with the payload of the last call
            raise ConnectionResetError(str(self._websocket.closed))
        data = self._socket.recv(size)
        if not data:
            return b""
        payload = self._websocket.receive(data)
        with contextlib.suppress(OSError):  # the next call of send tries again
            self._send_own()
        if not payload and self._websocket.closed is not None:
            raise ConnectionResetError(str(self._websocket.closed))
        if not payload:
            raise BlockingIOError
        return payload

    def send(self, data: bytes | memoryview) -> int:
        """Send the beginning of `data`. Raises what the socket raises; then call it with the same data again."""
        if not self._frame:
            self._send_own()
        if not self._frame:
            part = data[:FRAME_BYTES]
            self._frame, self._frame_payload = self._websocket.wrap(part), len(part)
        self._push()
        sent, self._frame_payload = self._frame_payload, 0
        return sent

    def _send_own(self) -> None:
        """Send the protocol's own answers, after the frame that is being sent."""
        if not self._frame and self._websocket.out:
            self._frame, self._frame_payload = bytes(self._websocket.out), 0
            self._websocket.out.clear()
            self._push()

    def _push(self) -> None:
        """Send the current frame. Raises what the socket raises; the rest is kept."""
        while self._frame:
            self._frame = self._frame[self._socket.send(self._frame) :]

    def close(self) -> None:
        """Send Close if the socket takes it, and close."""
        with contextlib.suppress(OSError):  # the connection may be lost already
            if not self._frame and self._websocket.closed is None:
                self._socket.send(self._websocket.close())
        self._socket.close()


def shake_hands(sock: socket.socket, address: Address, deadline_s: float, clock: Callable[[], float]) -> socket.socket:
    """Open a WebSocket over a connected socket. Closes the socket and raises Unreachable or ProtocolError if it fails."""
    websocket = WebSocket(address.host_header, address.path)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(sock, selectors.EVENT_READ)
            sock.send(websocket.request)  # it fits the buffer of a new connection
            while not websocket.is_open:
                if not selector.select(max(deadline_s - clock(), 0.0)):
                    websocket.end()
                    raise unreachable(address, TimeoutError())
                _receive(sock, websocket)
                if websocket.refused:
                    deadline_s = min(deadline_s, clock() + CAUSE_WAIT_S)
    except BaseException as error:
        sock.close()
        if isinstance(error, OSError):
            raise unreachable(address, error) from error
        if isinstance(error, HandshakeRefused):
            raise websocket_failed(address, error) from error
        raise
    # it has all methods of a socket that the connection uses
    return cast(socket.socket, WebSocketSocket(sock, websocket))


def _receive(sock: socket.socket, websocket: WebSocket) -> None:
    try:
        data = sock.recv(1 << 16)
    except ConnectionResetError:
        websocket.end()
        raise closed_in_handshake() from None
    except OSError as error:
        if type(error).__name__ in ("BlockingIOError", "SSLWantReadError"):
            return
        raise
    if not data:
        websocket.end()
        raise closed_in_handshake()
    if websocket.receive(data):
        raise ProtocolError("the broker sent messages before HELLO")
