"""Connections whose bytes pass through Python: in-memory clients.

Invariant: each caller that attaches a connection gets one result: its handle, or that there is no room, or that the
core stopped.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from blipmq.base.logs import Log
from blipmq.config import memory
from blipmq.config.settings import Config
from blipmq.errors import TOO_MANY, BlipMQError, Disconnected, Refused
from blipmq.native.core import Core
from blipmq.native.events import Attached, Closed, Consumed, Out
from blipmq.net.memory_transport import MemoryTransport


class AttachedConnections:
    """The attached connections of one core. The broker passes on the core's events about them."""

    def __init__(self, core: Core, config: Config, log: Log, loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._config = config  # at the start: frame size and number of connections do not change while the core runs
        self._log = log
        self._loop = loop
        self._transports: dict[int, MemoryTransport] = {}
        # called with the handle; 0: refused, None: stopped
        self._attaching: dict[int, Callable[[int | None], None]] = {}
        self._seq = 0

    def __len__(self) -> int:
        return len(self._transports) + len(self._attaching)

    def __repr__(self) -> str:
        return f"<AttachedConnections transports={len(self._transports)} attaching={len(self._attaching)}>"

    async def open(self, protocol: asyncio.BaseProtocol) -> MemoryTransport:
        """Open an in-memory connection and give it to `protocol` as its transport."""
        opened: asyncio.Future[MemoryTransport] = self._loop.create_future()

        def attached(conn: int | None) -> None:
            if not conn:
                if not opened.done():
                    opened.set_exception(self._no_place(conn))
            elif opened.done():  # the caller was cancelled
                self._core.close(conn)
            else:
                # Paused until its protocol is set, so that no data from the core is lost.
                frame = memory.max_frame_bytes(self._config)
                transport = MemoryTransport(self._core, conn, frame, asyncio.BaseProtocol(), self._loop)
                transport.pause_reading()
                self._transports[conn] = transport
                opened.set_result(transport)

        self._core.attach(self._attach(attached), trusted=True)
        transport = await opened
        if transport.has_ended:
            raise Disconnected("the broker stopped before the connection was open")
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        transport.resume_reading()
        return transport

    def stop(self) -> None:
        """The core has stopped: end all connections."""
        for transport in list(self._transports.values()):
            transport.ended()
        self._transports.clear()
        for attached in self._attaching.values():
            attached(None)
        self._attaching.clear()

    # -- the core's events

    def attached(self, event: Attached) -> None:
        self._attaching.pop(event.seq)(event.conn)

    def arrived(self, event: Out) -> None:
        transport = self._transports.get(event.conn)
        if transport is not None:
            transport.arrived(event.data)

    def consumed(self, event: Consumed) -> None:
        transport = self._transports.get(event.conn)
        if transport is not None:
            transport.consumed(event.size)

    def closed(self, event: Closed) -> None:
        transport = self._transports.pop(event.conn, None)
        if transport is not None:
            transport.ended()

    # -- internal

    def _attach(self, attached: Callable[[int | None], None]) -> int:
        """Return the seq to attach with; `attached` gets the result."""
        self._seq += 1
        self._attaching[self._seq] = attached
        return self._seq

    def _no_place(self, conn: int | None) -> BlipMQError:
        if conn is None:
            return Disconnected("the broker stopped before it could answer")
        limit = self._config.server.max_connections
        return Refused(f"all {limit} connections of server.max_connections are in use", code=TOO_MANY)
