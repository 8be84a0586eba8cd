"""WebSocket below the connection of an asyncio client: a protocol around the client's own.

Invariant: the inner protocol sees a connection only after the handshake, and then only payloads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from blipmq.client.address import Address, closed_in_handshake, websocket_failed
from blipmq.errors import BlipMQError, ProtocolError
from blipmq.wire.websocket import CAUSE_WAIT_S, HandshakeRefused, WebSocket


class WebSocketTransport:
    """The transport that the inner protocol sees."""

    def __init__(self, transport: asyncio.Transport, websocket: WebSocket) -> None:
        self._transport, self._websocket = transport, websocket
        self.pause_reading = transport.pause_reading
        self.resume_reading = transport.resume_reading
        self.get_extra_info = transport.get_extra_info
        self.set_write_buffer_limits = transport.set_write_buffer_limits
        self.get_write_buffer_size = transport.get_write_buffer_size
        self.is_closing = transport.is_closing
        self.abort = transport.abort

    def __repr__(self) -> str:
        return f"<WebSocketTransport {self._websocket!r}>"

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._transport.write(self._websocket.wrap(data))

    def close(self) -> None:
        """Send Close, unless the broker's came first, and close."""
        if not self._transport.is_closing():
            if self._websocket.closed is None:
                self._transport.write(self._websocket.close())
            self._transport.close()


class WebSocketLink(asyncio.Protocol):
    """See the top of the file. `opened` is done when the handshake is, or has its error."""

    def __init__(self, inner: asyncio.Protocol, address: Address) -> None:
        self._inner, self._address = inner, address
        self._websocket = WebSocket(address.host_header, address.path)
        self._transport: asyncio.Transport | None = None
        self._error: BlipMQError | None = None
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<WebSocketLink {self._websocket!r}>"

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._websocket.request)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        websocket, was_open = self._websocket, self._websocket.is_open
        try:
            payload = websocket.receive(data)
        except HandshakeRefused as error:
            return self._fail(websocket_failed(self._address, error))
        except ProtocolError as error:
            return self._fail(error)
        if websocket.refused:
            asyncio.get_running_loop().call_later(CAUSE_WAIT_S, self._end)
        if websocket.is_open and not was_open:
            self._inner.connection_made(cast(asyncio.Transport, WebSocketTransport(self._transport, websocket)))
            if not self.opened.done():
                self.opened.set_result(None)
        if websocket.out:
            self._transport.write(bytes(websocket.out))
            websocket.out.clear()
        if payload:
            self._inner.data_received(payload)
        if websocket.closed is not None and self._error is None:
            self._error = websocket.closed
            self._transport.close()

    def _fail(self, error: BlipMQError) -> None:
        assert self._transport is not None
        self._error = error
        if not self.opened.done():
            self.opened.set_exception(error)
        self._transport.abort()

    def _end(self) -> None:
        """No more of a refusal comes, or not in time."""
        try:
            self._websocket.end()
        except HandshakeRefused as error:
            self._fail(websocket_failed(self._address, error))

    def pause_writing(self) -> None:
        if self._websocket.is_open:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._websocket.is_open:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        if not self.opened.done():
            lost = exc if exc is not None and not isinstance(exc, ConnectionResetError) else closed_in_handshake()
            self.opened.set_exception(lost)
        if self._websocket.is_open:
            self._inner.connection_lost(self._error or exc)


async def open_over(
    link: asyncio.Protocol, address: Address, connect: Callable[[Callable[[], asyncio.Protocol]], Any]
) -> None:
    """Connect with `connect(factory)` and open a WebSocket for `link`. Raises the error of either."""
    outer = WebSocketLink(link, address)
    transport, _ = await connect(lambda: outer)
    try:
        await outer.opened
    except BaseException:
        transport.abort()
        raise
