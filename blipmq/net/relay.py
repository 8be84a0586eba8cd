"""Relays bytes and ends between a transport and the core, which serves the transport's client.

Invariant: input on its way to the core is bounded by one largest frame, WINDOW_BYTES and one read; beyond that the
transport is not read. Output of the core is acknowledged (`taken`) only while the transport accepts bytes, so the core
holds back output to a client that does not read, as for any slow subscriber. The core gets a client's bytes and their
end in order: the end waits behind bytes that found no room.
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
    """The protocol of one transport. The broker calls `consumed`, `arrived` and `ended` for the core's events."""

    def __init__(self, core: Core, conn: int, max_frame_bytes: int, loop: asyncio.AbstractEventLoop) -> None:
        self._core = core
        self._conn = conn
        self._window_bytes = max_frame_bytes + WINDOW_BYTES
        self._loop = loop
        self._transport: Any = None
        self._in_flight_bytes = 0
        self._refused: deque[bytes] = deque()  # input that found no room in the core's ring
        self._end: Callable[[], None] | None = None  # the call that tells the core of the end, after `_refused`
        self._owed_bytes = 0  # written to the transport and not acknowledged yet
        self._acknowledging = False
        self._full = False  # the transport accepts no more output
        self._holding = False  # the transport is not read
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
        return True  # keep the transport open: the core closes it after it has served the earlier input

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
        """The core has consumed `size` bytes of the input."""
        self._in_flight_bytes -= size
        self._go_on()

    def arrived(self, data: bytes) -> None:
        """The core has sent bytes."""
        self._transport.write(data)
        self._owed_bytes += len(data)
        # one acknowledgement for all output of this turn of the loop, because each wakes the core
        if not self._acknowledging:
            self._acknowledging = True
            self._loop.call_soon(self._acknowledge)

    def ended(self, error: Exception | None = None) -> None:
        """The core has ended the connection; its last output is still sent."""
        self._ended = True
        self._transport.close()

    # -- internal

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
        """Tell the core of the end of input, after all earlier input."""
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
