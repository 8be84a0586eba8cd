"""In-memory transport: an asyncio transport whose peer is the core in this process.

Invariant: at most one largest frame and WINDOW_BYTES are on their way to the core. Further output waits here and pauses
the writer, as with a full socket. Bytes from the core are acknowledged (`credit`) only when the protocol has received
them, so the core holds back output to a protocol that pauses reading, as for any slow subscriber. The protocol gets all
data that the core sent before it learns of the end, unless it closes the connection itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

from blipmq.native.core import Core
from blipmq.native.errors import CoreBusy

CHUNK_BYTES = 64 * 1024
WINDOW_BYTES = 4 * CHUNK_BYTES  # plus one frame: the core reports bytes as consumed when their frame is complete
HIGH_WATER_BYTES = 64 * 1024
RETRY_SECONDS = 0.005


class MemoryTransport(asyncio.Transport):
    """One in-memory connection. The broker calls `consumed`, `arrived` and `ended` for the core's events."""

    def __init__(
        self,
        core: Core,
        conn: int,
        max_frame_bytes: int,
        protocol: asyncio.BaseProtocol,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        super().__init__({"peername": ("in-process", 0)})
        self._core = core
        self._conn = conn
        self._window_bytes = max_frame_bytes + WINDOW_BYTES
        self._loop = loop
        self._protocol: Any = protocol
        self._outgoing: deque[memoryview] = deque()
        self._outgoing_bytes = 0
        self._in_flight_bytes = 0
        self._held: deque[bytes] = deque()  # arrived while reading was paused; the core's window bounds it
        self._high, self._low = HIGH_WATER_BYTES, HIGH_WATER_BYTES // 4
        self._reading = True
        self._writer_paused = False
        self._closing = False
        self._eof = False  # no more output
        self._eof_told = False  # the core knows of it
        self._ended = False
        self._error: Exception | None = None  # the error that ended the connection
        self._told = False  # the protocol knows of the end
        self._retrying = False

    def __repr__(self) -> str:
        state = "ended" if self._ended else "closing" if self._closing else "open"
        return f"<MemoryTransport conn={self._conn:#x} {state} waiting={self._outgoing_bytes} in_flight={self._in_flight_bytes}>"

    @property
    def has_ended(self) -> bool:
        """Whether the connection has ended. The protocol may still have bytes to read."""
        return self._ended

    # -- asyncio.Transport

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self._closing or self._ended or self._eof or not len(data):
            return
        self._outgoing.append(memoryview(bytes(data)))
        self._outgoing_bytes += len(data)
        self._pump()
        if self._outgoing_bytes > self._high and not self._writer_paused:
            self._writer_paused = True
            self._protocol.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self._outgoing_bytes

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._high = HIGH_WATER_BYTES if high is None else high
        self._low = self._high // 4 if low is None else low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """End the output. The core answers earlier requests, then ends the connection."""
        if not self._eof:
            self._eof = True
            self._pump()

    def is_closing(self) -> bool:
        return self._closing or self._told

    def is_reading(self) -> bool:
        return self._reading and not self.is_closing()

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        while self._held and self._reading and not self._closing:
            self._deliver(self._held.popleft())
        self._tell_end()

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol  # type: ignore[no-any-return]

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def close(self) -> None:
        """End the connection once the core has consumed the output."""
        if not self._closing:
            self._closing = True
            self._finish()
            self._tell_end()

    def abort(self) -> None:
        """End the connection at once."""
        self._closing = True
        self._outgoing.clear()
        self._outgoing_bytes = 0
        if not self._ended:
            self._core.close(self._conn)
        self._tell_end()

    # -- the core's events

    def consumed(self, size: int) -> None:
        """The core has consumed `size` bytes of the output."""
        self._in_flight_bytes -= size
        self._pump()
        if self._writer_paused and self._outgoing_bytes <= self._low:
            self._writer_paused = False
            self._protocol.resume_writing()
        self._finish()

    def arrived(self, data: bytes) -> None:
        """The core has sent bytes."""
        if self._reading and not self._held:
            self._deliver(data)
        else:
            self._held.append(data)

    def ended(self, error: Exception | None = None) -> None:
        """The connection has ended. The protocol first gets the data that the core sent before."""
        if not self._ended:
            self._ended = True
            self._error = error
            self._outgoing.clear()
            self._outgoing_bytes = 0
            self._tell_end()

    # -- internal

    def _pump(self) -> None:
        while self._outgoing and self._in_flight_bytes < self._window_bytes and not self._ended:
            piece = self._outgoing[0]
            chunk = piece[:CHUNK_BYTES]
            try:
                self._core.input(self._conn, chunk)
            except CoreBusy:
                if not self._retrying:  # one timer, even if the protocol writes several times
                    self._retrying = True
                    self._loop.call_later(RETRY_SECONDS, self._retry)
                return
            self._in_flight_bytes += len(chunk)
            self._outgoing_bytes -= len(chunk)
            if len(chunk) == len(piece):
                self._outgoing.popleft()
            else:
                self._outgoing[0] = piece[len(chunk) :]
        if self._eof and not self._outgoing and not self._eof_told and not self._ended:
            self._eof_told = True
            self._core.end_input(self._conn)

    def _retry(self) -> None:
        self._retrying = False
        self._pump()

    def _tell_end(self) -> None:
        if self._ended and not self._told and (self._closing or not self._held):
            self._told = True
            self._held.clear()
            self._loop.call_soon(self._protocol.connection_lost, self._error)

    def _finish(self) -> None:
        if self._closing and not self._ended and not self._outgoing and self._in_flight_bytes <= 0:
            self._core.close(self._conn)

    def _deliver(self, data: bytes) -> None:
        if not self._closing:
            self._protocol.data_received(data)
        if not self._ended:
            self._core.credit(self._conn, len(data))
