"""A transport whose client the core serves: bytes from one to the other, both ways, and their ends.

Invariant: what is on its way to the core is bounded by one largest frame and WINDOW_BYTES, and a piece; beyond that the
transport reads no more. What the core sends is acknowledged (`taken`) only while the transport takes bytes, so a client
that does not read is held back by the core like any slow subscriber. The core gets a client's bytes and their end in the
order in which the client sent them: an end waits behind bytes that found no room.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

from blipmq.base.tcp_keepalive import is_lost_peer
from blipmq.native.core import Buffer, Core
from blipmq.native.errors import CoreBusy
from blipmq.native.events import CloseReason
from blipmq.net.memory_transport import RETRY_SECONDS, WINDOW_BYTES


class Relay(asyncio.Protocol):
    """The far end of one transport. The broker calls `consumed`, `arrived` and `ended` for the core's events."""

    def __init__(self, core: Core, conn: int, max_frame_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._conn = conn
        self._window_bytes = max_frame_bytes + WINDOW_BYTES
        self._loop = loop
        self._transport: Any = None
        self._in_flight_bytes = 0
        self._refused: deque[bytes] = deque()  # found no room on the way to the core
        self._end: Callable[[], None] | None = None  # to be told to the core behind them
        self._owed_bytes = 0  # written to the transport, and not yet acknowledged
        self._acknowledging = False
        self._full = False  # the transport
        self._holding = False  # the transport reads nothing
        self._ended = False

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open"
        return f"<Relay conn={self._conn:#x} {state} in_flight={self._in_flight_bytes} owed={self._owed_bytes}>"

    # -- the transport's protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: Buffer) -> None:
        if self._ended:
            return
        self._in_flight_bytes += len(data)
        if self._in_flight_bytes >= self._window_bytes:
            self._hold()
        if self._refused:
            self._refused.append(bytes(data))
            return
        try:
            self._core.feed(self._conn, data)
        except CoreBusy:
            self._hold()
            self._refused.append(bytes(data))
            self._loop.call_later(RETRY_SECONDS, self._retry)

    def eof_received(self) -> bool:
        self._tell_end(lambda: self._core.feed_end(self._conn))
        return True  # the core closes, once it has served what came before

    def connection_lost(self, error: Exception | None) -> None:
        reason = CloseReason.EOF
        if error is not None:
            reason = CloseReason.VANISHED if is_lost_peer(error) else CloseReason.RESET

        def close() -> None:
            self._ended = True
            self._core.close(self._conn, reason)

        self._tell_end(close)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        self._acknowledge()

    # -- the core's events

    def consumed(self, size: int) -> None:
        """The core has consumed so many bytes."""
        self._in_flight_bytes -= size
        self._go_on()

    def arrived(self, data: bytes) -> None:
        """The core has sent bytes."""
        self._transport.write(data)
        self._owed_bytes += len(data)
        if not self._acknowledging:  # once for all that has come in this turn of the loop: each wakes the core
            self._acknowledging = True
            self._loop.call_soon(self._acknowledge)

    def ended(self, error: Exception | None = None) -> None:
        """The connection is gone as far as the core is concerned; what it sent last still goes out."""
        self._ended = True
        self._transport.close()

    # -- inside

    def _acknowledge(self) -> None:
        self._acknowledging = False
        if self._owed_bytes and not self._full and not self._ended:
            self._core.taken(self._conn, self._owed_bytes)
            self._owed_bytes = 0

    def _retry(self) -> None:
        while self._refused and not self._ended:
            try:
                self._core.feed(self._conn, self._refused[0])
            except CoreBusy:
                self._loop.call_later(RETRY_SECONDS, self._retry)
                return
            self._refused.popleft()
        if self._end is not None:
            self._tell_end(self._end)
        self._go_on()

    def _tell_end(self, tell: Callable[[], None]) -> None:
        """Tell the core that no more will come, behind all that came before."""
        if self._ended:
            return
        if self._refused:
            self._end = tell
        else:
            self._end = None
            tell()

    def _hold(self) -> None:
        self._holding = True
        self._transport.pause_reading()

    def _go_on(self) -> None:
        room = not self._refused and self._in_flight_bytes < self._window_bytes
        if self._holding and room and not self._ended:
            self._holding = False
            self._transport.resume_reading()
