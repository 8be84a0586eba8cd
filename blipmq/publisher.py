"""The broker's own publishes: a client's frames over a connection inside the process.

Invariant: publishes go out in the order of the calls, and at most WAITING_BYTES_MAX of them wait here; the next one is
refused rather than kept. Nothing is opened before the first publish, so a broker that only serves others has no such
connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from blipmq.errors import NOT_NOW, BlipMQError, Refused
from blipmq.wire import PublishEncoder

WAITING_BYTES_MAX = 8 * 1024 * 1024
ENCODERS_MAX = 64  # each may keep a hundred kilobytes of frame heads


class Publisher(asyncio.Protocol):
    """Publishes through `open_transport`, which connects a protocol to the core."""

    def __init__(self, open_transport: Callable[[asyncio.BaseProtocol], Awaitable[Any]]) -> None:
        self._open_transport = open_transport
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[Any] | None = None
        self._waiting: list[bytes] = []  # until the connection is there
        self._waiting_bytes = 0
        self._encoders: dict[tuple[str, int], PublishEncoder] = {}
        self._empty = asyncio.Event()
        self._empty.set()

    def __repr__(self) -> str:
        return f"<Publisher open={self._transport is not None} waiting_bytes={self.waiting_bytes}>"

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the core has not been given yet."""
        return self._waiting_bytes + (self._transport.get_write_buffer_size() if self._transport else 0)

    def publish(self, topic: str, payload: bytes, ttl_ms: int) -> None:
        """Queue one message. Raises `UsageError` for a bad topic, `Refused` (503) when too much waits."""
        encoder = self._encoders.get((topic, ttl_ms))
        if encoder is None:
            encoder = PublishEncoder(topic, ttl_ms=ttl_ms)
            if len(self._encoders) >= ENCODERS_MAX:
                self._encoders.clear()
            self._encoders[topic, ttl_ms] = encoder
        frame = encoder.frame(payload)
        if self.waiting_bytes + len(frame) > WAITING_BYTES_MAX:
            raise Refused(
                f"publish to {topic} was refused: {self.waiting_bytes} bytes wait already: publishes come faster "
                "than the loop runs, or than subscribers take them (overflow_policy = block). Publish again later.",
                code=NOT_NOW,
            )
        if self._transport is not None:
            self._transport.write(frame)
            return
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
        self._empty.clear()
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())

    async def drain(self) -> None:
        """Return when the core has been given all that was published before."""
        await self._empty.wait()

    async def _open(self) -> None:
        try:
            await self._open_transport(self)
        except BlipMQError:  # the broker is full or stopping: what waits cannot be published any more
            self._forget()
        finally:
            self._opening = None

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # pause and resume tell whether anything waits
        frames = b"".join(self._waiting)
        self._waiting, self._waiting_bytes = [], 0
        self._empty.set()
        transport.write(frames)

    def pause_writing(self) -> None:
        self._empty.clear()

    def resume_writing(self) -> None:
        self._empty.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._forget()

    def _forget(self) -> None:
        self._waiting, self._waiting_bytes = [], 0
        self._empty.set()
