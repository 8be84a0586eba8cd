"""The broker's own publishes. They use in-memory connections: one for QoS 0 and one, of a client, for QoS 1.

Invariant: publishes of one QoS are sent in the order of the calls. At most WAITING_BYTES_MAX of them wait here; further
ones are refused. No connection is opened before the first publish, so a broker that never publishes has none.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

from blipmq.base.validation import check_qos, check_whole
from blipmq.client.protocol import as_bytes
from blipmq.errors import NOT_NOW, BlipMQError, Refused, UsageError
from blipmq.wire.frames import PublishEncoder
from blipmq.wire.topics import check_topic

if TYPE_CHECKING:
    from blipmq.client.client import Client, Payload

WAITING_BYTES_MAX = 8 * 1024 * 1024
ENCODERS_MAX = 64  # each may keep a hundred kilobytes of frame headers
# The time limit of one QoS 1 publish. The disk can be slow.
ANSWER_SECONDS = 60.0
# The memory that a waiting QoS 1 publish uses in addition to its payload.
WAITING_COST_BYTES = 2048


class AtOnce:
    """The result of a QoS 0 publish: awaiting it returns at once."""

    def __await__(self) -> Generator[None, None, int]:
        yield from ()
        return 0


AT_ONCE = AtOnce()


class Publisher(asyncio.Protocol):
    """Publishes through `open_transport`, which connects an asyncio protocol to the core."""

    def __init__(self, open_transport: Callable[[asyncio.BaseProtocol], Awaitable[Any]]) -> None:
        self._open_transport = open_transport
        self._transport: asyncio.Transport | None = None
        self._opening: asyncio.Task[Any] | None = None
        self._waiting: list[bytes] = []  # until the connection is open
        self._waiting_bytes = 0
        self._encoders: dict[tuple[str, int], PublishEncoder] = {}
        self._client: Client | None = None  # for QoS 1
        self._opened: asyncio.Task[Client] | None = None
        self._answers: set[asyncio.Task[int]] = set()
        self._answers_bytes = 0
        self._empty = asyncio.Event()
        self._empty.set()

    def __repr__(self) -> str:
        return f"<Publisher open={self._transport is not None} waiting_bytes={self.waiting_bytes}>"

    @property
    def waiting_bytes(self) -> int:
        """Bytes that the core has not received yet."""
        return self._waiting_bytes + (self._transport.get_write_buffer_size() if self._transport else 0)

    def publish(self, topic: str, payload: Payload, ttl_ms: int, qos: int, payload_bytes_max: int) -> Awaitable[int]:
        """Queue one message. Raises `UsageError` for invalid arguments, `Refused` (503) when too many bytes wait."""
        data = as_bytes(payload)
        if len(data) > payload_bytes_max:
            raise UsageError(
                f"a payload of {len(data)} bytes is over server.max_message_size_bytes ({payload_bytes_max}); send less or "
                "raise the limit"
            )
        check_topic(topic)
        check_whole("ttl_ms", ttl_ms, 0, (1 << 64) - 1)
        if qos != 0:
            check_qos(qos)
            return self._publish_answered(topic, data, ttl_ms)
        self._publish(topic, data, ttl_ms)
        return AT_ONCE

    def _publish(self, topic: str, payload: bytes, ttl_ms: int) -> None:
        encoder = self._encoders.get((topic, ttl_ms))
        if encoder is None:
            encoder = PublishEncoder(topic, ttl_ms=ttl_ms)
            if len(self._encoders) >= ENCODERS_MAX:
                self._encoders.clear()
            self._encoders[topic, ttl_ms] = encoder
        frame = encoder.frame(payload)
        if self.waiting_bytes + len(frame) > WAITING_BYTES_MAX:
            why = "than the loop runs, or than subscribers take them (overflow_policy = block)"
            raise _too_much_waits(topic, self.waiting_bytes, why)
        if self._transport is not None:
            self._transport.write(frame)
            return
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
        self._empty.clear()
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._open())

    async def drain(self) -> None:
        """Return when the core has received everything published before and has answered the QoS 1 publishes."""
        await self._empty.wait()
        await asyncio.gather(*self._answers, return_exceptions=True)

    # -- QoS 1

    def _publish_answered(self, topic: str, payload: bytes, ttl_ms: int) -> Awaitable[int]:
        cost = len(payload) + WAITING_COST_BYTES
        if self._answers_bytes + cost > WAITING_BYTES_MAX:
            raise _too_much_waits(topic, self._answers_bytes, "than the disk takes them")
        task = asyncio.get_running_loop().create_task(self._answered(topic, payload, ttl_ms))
        self._answers.add(task)
        self._answers_bytes += cost

        def done(task: asyncio.Task[int]) -> None:
            self._answers.discard(task)
            self._answers_bytes -= cost

        task.add_done_callback(done)
        return task

    async def _answered(self, topic: str, payload: bytes, ttl_ms: int) -> int:
        client = self._client
        if client is None or client.state == "closed":
            client = await self._open_client()
        return await client.publish(topic, payload, ttl_ms=ttl_ms, qos=1)

    async def _open_client(self) -> Client:
        """Open one connection for all callers; a cancelled caller does not cancel it for the others."""
        if self._opened is None:
            self._opened = asyncio.get_running_loop().create_task(self._connected())
        return await asyncio.shield(self._opened)

    async def _connected(self) -> Client:
        from blipmq.client.client import Client  # imported here because most brokers never publish with QoS 1

        try:
            client = Client("in-process:1", opener=self._open_transport, reconnect=False, timeout_s=ANSWER_SECONDS)
            self._client = await client.open()
            return client
        finally:
            self._opened = None

    async def _open(self) -> None:
        try:
            await self._open_transport(self)
        except BlipMQError:  # the broker is full or stopping: the waiting messages cannot be published any more
            self._forget()
        finally:
            self._opening = None

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.set_write_buffer_limits(high=0)  # pause and resume then tell whether any output waits
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


def _too_much_waits(topic: str, waiting_bytes: int, why: str) -> Refused:
    return Refused(
        f"publish to {topic} was refused: {waiting_bytes} bytes wait already: publishes come faster {why}. Publish again later.",
        code=NOT_NOW,
    )
