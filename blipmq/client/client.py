"""The asyncio client: `blipmq.connect(...)` and Client.

    async with blipmq.connect("127.0.0.1:7878") as client:
        async with client.subscribe("site/+/temp") as readings:
            await client.publish("site/1/temp", "21.5")
            async for message in readings: ...

QoS 1: publish(qos=1) returns when the broker has the message on disk. Until then the client keeps it and sends it again
after a reconnect, so it can arrive twice. A subscription with qos=1 gets each message until it is acknowledged, see
subscription.py. With a client_id and durable=True the broker keeps messages while the client is away.
Invariant: publishes are sent in the order of the calls, and at most one window of them is unanswered.
"""

from __future__ import annotations

import asyncio
import random as random_module
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice
from types import TracebackType
from typing import Any

from blipmq.base.validation import check_qos, ids_of, many
from blipmq.client.address import Address, parse_address
from blipmq.client.admin import (
    SESSIONS_SHOWN,
    decode_end,
    decode_filter,
    decode_sessions,
    end_asked,
    filter_asked,
    sessions_asked,
)
from blipmq.client.awaitable_context import AwaitableContext as AwaitableContext
from blipmq.client.connection import Connection, Opener, StateCallback
from blipmq.client.in_flight import WINDOW_MESSAGES_MAX, Request, check_window
from blipmq.client.inbox import DROP_OLDEST, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX
from blipmq.client.protocol import ClientProtocol, Published, PublishedCount, Receipt, as_bytes, decode_info
from blipmq.client.reconnect import check_options, seconds_to_wait
from blipmq.client.subscription import Subscription as Subscription
from blipmq.client.trust import Tls, context_for
from blipmq.errors import BlipMQError, Disconnected, UsageError
from blipmq.wire.frames import Message, Reply
from blipmq.wire.topics import check_filter

Payload = bytes | bytearray | memoryview | str

GATHER_BYTES = 64 << 10
"""Publishes of one loop turn are gathered up to this size, then sent before the turn ends."""
PUBLISH_MANY_CHUNK = 256
KEEPALIVE_S, KEEPALIVE_LEAST_S, KEEPALIVE_MOST_S = 60.0, 1.0, 86_400.0


class Client:
    """A connection to one broker that reconnects by itself. Create it with `blipmq.connect`; for one event loop."""

    def __init__(
        self,
        address: str,
        *,
        client_id: str = "",
        api_key: str | None = None,
        tls: Tls = None,
        reconnect: bool = True,
        timeout_s: float = 10.0,
        on_state: StateCallback | None = None,
        on_refusal: Callable[[BlipMQError], None] | None = None,
        random: Callable[[], float] = random_module.random,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        opener: Opener | None = None,
        keepalive_s: float = KEEPALIVE_S,
    ) -> None:
        """`opener` connects a given asyncio protocol to a broker, instead of TCP to `address`."""
        check_options(timeout_s, reconnect, on_state=on_state, on_refusal=on_refusal, random=random, sleep=sleep)
        self.address: Address = parse_address(address, None if tls is None else tls is not False)
        self._protocol = ClientProtocol(client_id=client_id, api_key=api_key or "")
        self._protocol.on_refusal = on_refusal
        self._connection = Connection(
            self.address,
            self._protocol,
            tls=context_for(tls) if self.address.tls else None,
            reconnect=reconnect,
            timeout_s=timeout_s,
            on_state=on_state,
            random=random,
            sleep=sleep,
            opener=opener,
            keepalive_s=_seconds_of_keepalive(keepalive_s) if opener is None else 0.0,
        )
        self._published = False
        # for QoS 1 publishes: those that wait for the window are sent in the order of the calls
        self._turn = asyncio.Lock()

    def __repr__(self) -> str:
        return f"Client({self._connection!r})"

    @property
    def state(self) -> str:
        """ "new", "connecting", "connected", "disconnected" or "closed"."""
        return self._connection.state

    @property
    def reading_paused(self) -> bool:
        """Whether reading from the broker is paused because a subscription's queue is full."""
        return self._connection.reading_paused

    async def open(self, *, wait: bool | float = False) -> Client:
        """Make the first connection; `blipmq.connect` calls it. `wait` is as there."""
        await self._connection.open(seconds_to_wait(wait))
        return self

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # ---- publishing ----

    async def publish(self, topic: str, payload: Payload, *, ttl_ms: int = 0, qos: int = 0) -> Receipt:
        """Send one message. QoS 0 returns 0 once the message is queued for sending (see flush). QoS 1 returns once the
        broker has the message on disk: a Receipt, which is the message id as a number; its `.subscriptions` is the
        number of subscriptions that store it. `ttl_ms`: time to live in milliseconds; 0 is the broker's default. During
        an outage this waits for the connection.

        Raises UsageError (topic, payload, ttl_ms), Disconnected, and for QoS 1 Refused and TimedOut. After Disconnected
        or TimedOut a QoS 1 message may still have arrived.
        """
        if qos != 0:
            check_qos(qos)
            self._connection.check_loop()
            request = await self._send_answered(topic, as_bytes(payload), ttl_ms, WINDOW_MESSAGES_MAX)
            return Receipt.of(await self._connection.answer(request))
        connection, protocol = self._connection, self._protocol
        connection.check_loop()
        if not connection.can_write:
            await connection.wait_writable()
        protocol.publish(topic, as_bytes(payload), ttl_ms)
        self._published = True
        if protocol.out_bytes >= GATHER_BYTES:
            connection.flush()
            await asyncio.sleep(0)  # a task that only publishes must not block the other tasks
        else:
            connection.schedule_flush()
        return Receipt(0)

    async def publish_many(
        self,
        topic: str,
        payloads: Iterable[Payload],
        *,
        ttl_ms: int = 0,
        qos: int = 0,
        window: int = WINDOW_MESSAGES_MAX,
    ) -> Published:
        """Send many messages of one topic, in order; returns how many. As publish, but cheaper for each message.

        QoS 1 returns when the broker has all of them on disk. `.unrouted` of the result counts the messages that no QoS
        1 subscription took; the broker does not keep those. At most `window` messages are unanswered at any time. If
        one is refused, no more are sent. The refusal is raised when the unanswered ones are answered; some of them may
        be on disk.
        """
        self._connection.check_loop()
        rest = many(payloads)
        if qos != 0:
            check_qos(qos)
            check_window(window)
            return await self._publish_many_answered(topic, rest, ttl_ms, window)
        count = 0
        while chunk := [as_bytes(payload) for payload in islice(rest, PUBLISH_MANY_CHUNK)]:
            if not self._connection.can_write:
                await self._connection.wait_writable()
            self._protocol.publish_many(topic, chunk, ttl_ms)
            self._published = True
            self._connection.flush()
            count += len(chunk)
            await asyncio.sleep(0)
        return Published(count)

    async def _send_answered(self, topic: str, payload: bytes, ttl_ms: int, window: int) -> Request:
        """Send a QoS 1 publish in its turn, when the window has room. Raises TimedOut or Disconnected at the deadline."""
        connection, in_flight = self._connection, self._protocol.in_flight
        # counted from the call; otherwise the timeouts of queued publishers would add up
        deadline_s = connection.deadline_s()
        async with self._turn:
            if in_flight.is_full(window) and not await connection.until(
                lambda: not in_flight.is_full(window), deadline_s
            ):
                raise connection.too_late()
            if not connection.can_write:
                await connection.wait_writable(deadline_s)
            request = self._protocol.publish_answered(topic, payload, ttl_ms)
        connection.schedule_flush()
        return request

    async def _publish_many_answered(
        self, topic: str, payloads: Iterable[Payload], ttl_ms: int, window: int
    ) -> Published:
        count, waiting = PublishedCount(), deque[Request]()
        connection, in_flight = self._connection, self._protocol.in_flight
        try:
            for payload in payloads:
                while waiting and (waiting[0].done or in_flight.is_full(window)):
                    count.answered(await self._await_first(waiting))
                waiting.append(await self._send_answered(topic, as_bytes(payload), ttl_ms, window))
                count.sent()
                if self._protocol.out_bytes >= GATHER_BYTES:
                    connection.flush()
            while waiting:
                count.answered(await self._await_first(waiting))
        except BlipMQError:
            await connection.until(lambda: all(request.done for request in waiting), connection.deadline_s())
            raise
        finally:
            for request in waiting:
                self._protocol.forget(request)
        return count.result()

    async def _await_first(self, waiting: deque[Request]) -> Reply:
        request = waiting.popleft()
        if not request.done:
            return await self._connection.answer(request)
        if request.error is not None:
            raise request.error
        return request.reply

    async def flush(self) -> None:
        """Return when the broker has read everything published before. Raises the first refusal of a QoS 0 publish
        since the last flush, Disconnected or TimedOut."""
        await self.ping()
        self._published = False
        refusals = self._protocol.refusals
        if refusals:
            error = refusals.popleft()
            refusals.clear()
            raise error

    # ---- subscribing ----

    def subscribe(
        self,
        filter_: str,
        *,
        qos: int = 0,
        durable: bool = False,
        group: str = "",
        auto_ack: bool = True,
        queue_messages_max: int = QUEUE_MESSAGES_MAX,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
        overflow: str = DROP_OLDEST,
    ) -> AwaitableContext[Subscription]:
        """Subscribe to a topic or filter: `await` it, or `async with client.subscribe("a.*") as messages`.

            qos        1: QoS 1 messages are delivered until they are acknowledged, and may be delivered again (`redelivered`)
            durable    the broker keeps messages while this client_id is away, until unsubscribe(); needs qos=1
            group      the queue group: each message goes to one member
            auto_ack   a QoS 1 message is acknowledged when the next one is asked for; False: call Subscription.ack

            overflow   what a full queue does: see below

        When a queue is full, the client stops reading from the broker until its reader has caught up. If the reader of
        another subscription waits meanwhile, the full queue drops its oldest QoS 0 messages and counts them in
        `Subscription.dropped` ("drop_oldest"), or its newest ("drop_new"); a request that waits lets a queue grow to four
        times its limits before that. With "block" it drops nothing, and the others wait. QoS 1 messages are never
        dropped. Raises UsageError, Refused, Disconnected, TimedOut.
        """
        subscription = Subscription(
            self._connection,
            filter_,
            qos=qos,
            durable=durable,
            group=group,
            auto_ack=auto_ack,
            messages_max=queue_messages_max,
            bytes_max=queue_bytes_max,
            overflow=overflow,
        )
        return AwaitableContext(self._subscribe(subscription))

    async def _subscribe(self, subscription: Subscription) -> Subscription:
        connection = self._connection
        connection.check_loop()
        while True:
            await connection.wait_writable()
            try:
                await connection.answer(self._protocol.subscribe(subscription))
                return subscription
            except BaseException as error:
                outage = isinstance(error, Disconnected) and connection.reconnects and self.state != "closed"
                if not outage:
                    subscription.abandon(told=isinstance(error, BlipMQError) and error.code != 0)
                    raise

    async def unsubscribe(self, filter_: str, *, group: str = "") -> None:
        """End all subscriptions of this client to this filter, including the durable ones of its client id. With
        `group`, only leave that queue group. A durable group ends when the last client id that subscribed durably to it
        leaves. Raises Refused (404) if there is nothing to end."""
        self._connection.check_loop()
        await self._connection.wait_writable()
        await self._connection.answer(self._protocol.unsubscribe(filter_, group))
        for inbox in self._protocol.inboxes(filter_, group):
            self._protocol.drop(inbox)
            inbox.end(None)
        self._connection.resume_if_room()

    def ack(self, *messages: Message) -> None:
        """Acknowledge messages for all subscriptions of this client that received them. Subscription.ack does so for
        one subscription."""
        self._connection.check_loop()
        self._protocol.acknowledge(ids_of(messages))
        self._connection.schedule_flush()

    # ---- requests ----

    async def ping(self) -> float:
        """Send PING after everything sent before; returns the seconds until the answer."""
        self._connection.check_loop()
        await self._connection.wait_writable()
        clock = asyncio.get_running_loop().time
        began_s = clock()
        await self._connection.answer(self._protocol.ping())
        return clock() - began_s

    async def info(self) -> dict[str, Any]:
        """The broker's state as a dict. docs/ describes the keys."""
        self._connection.check_loop()
        await self._connection.wait_writable()
        return decode_info(await self._connection.answer(self._protocol.info()))

    async def has_subscriber(self, filter: str) -> bool:
        """Whether exactly this filter has a subscription: of a connected client, or a durable one of an absent client."""
        check_filter(filter)
        self._connection.check_loop()
        await self._connection.wait_writable()
        return decode_filter(await self._connection.answer(self._protocol.info(filter_asked(filter))), filter)

    async def sessions(self, find: str = "", limit: int = SESSIONS_SHOWN) -> dict[str, Any]:
        """List QoS 1 subscriptions and queue groups, also those of absent clients: totals, and in `list` the rows with
        the largest lag. `find`: a part of the filter, client_id or group."""
        self._connection.check_loop()
        await self._connection.wait_writable()
        asked = sessions_asked(find, limit)
        return decode_sessions(await self._connection.answer(self._protocol.info(asked)))

    async def end_session(
        self, filter: str, *, client_id: str = "", group: str = "", key: str | None = None
    ) -> dict[str, Any]:
        """End a durable subscription or a queue group of any client; for operators. Returns its last state. `key`: the
        name of the key that the client_id belongs to; None: any key, if only one matches. Needs the right `admin`."""
        self._connection.check_loop()
        asked = end_asked(filter, client_id, group, key)
        await self._connection.wait_writable()
        return decode_end(await self._connection.answer(self._protocol.admin(asked)))

    async def close(self) -> None:
        """Send the remaining output, wait until the broker has read it, then close. Waits at most the client's timeout
        for each of these steps. QoS 1 messages that were taken and not acknowledged are delivered again."""
        if self.state == "closed":
            return
        if self.state != "new":
            self._connection.check_loop()
        for inbox in self._protocol.all_inboxes():
            self._protocol.drop(inbox)
            inbox.end(None)
        connection, in_flight = self._connection, self._protocol.in_flight
        if connection.is_up:
            connection.resume_if_room()
            try:
                if in_flight.publishes:
                    await connection.until(lambda: not in_flight.publishes, connection.deadline_s())
                if self._published:
                    await self.ping()
            except BlipMQError:
                pass  # closing does not fail; a caller that needs confirmation calls flush
        await connection.close()


def _seconds_of_keepalive(keepalive_s: float) -> float:
    if not 0 <= keepalive_s <= KEEPALIVE_MOST_S or 0 < keepalive_s < KEEPALIVE_LEAST_S:
        raise UsageError(
            f"keepalive_s is {keepalive_s!r}; it is 0, for none, or a number of seconds from {KEEPALIVE_LEAST_S:g} to "
            f"{KEEPALIVE_MOST_S:g}."
        )
    return keepalive_s


def connect(
    address: str = "127.0.0.1:7878",
    *,
    client_id: str = "",
    api_key: str | None = None,
    tls: Tls = None,
    reconnect: bool = True,
    wait: bool | float = False,
    timeout_s: float = 10.0,
    on_state: StateCallback | None = None,
    on_refusal: Callable[[BlipMQError], None] | None = None,
    keepalive_s: float = KEEPALIVE_S,
    random: Callable[[], float] = random_module.random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> AwaitableContext[Client]:
    """Connect to a broker: `client = await blipmq.connect(...)`, or `async with blipmq.connect(...) as client`.

        address      "host", "host:port", "[ipv6]:port" or "tls://host:port"; the port defaults to 7878, with TLS to 7879.
                     "ws://host:port/path" or "wss://…" for WebSocket; the path defaults to /blipmq
        tls          True: TLS with the system's certificate authorities; a path: TLS with the authorities in this PEM file; or an
                     ssl.SSLContext. The broker's certificate must be for the host in the address. False: no TLS; None: as the
                     address says
        client_id    this client's durable name; needed for durable subscriptions
        wait         for the first connection. True: without a limit; a number: that many seconds; False: one attempt. A wrong
                     key, a wrong certificate or another protocol is raised at once in every case
        reconnect    after an outage reconnect (exponential back-off with full jitter, at most 10 s) and subscribe again
        timeout_s    for one attempt to connect, for each answer, and for a publish that waits during an outage
        on_state     called with "connecting", "connected", "disconnected" or "closed", and with the error that caused it, if any
        on_refusal   called with each refusal that belongs to no request: those of QoS 0 publishes
        keepalive_s  the client sends something at least this often, and the broker closes a client that does not; the broker may
                     ask for a shorter interval. 0: no keep-alive, for a program that blocks the event loop for minutes
        random, sleep  the source of the jitter, and the function that waits

    All addresses of a host are tried, a quarter of a second apart; the first that answers is used.
    Raises UsageError (address), Unreachable, NotTrusted (TLS), NotAllowed, Refused, ProtocolError, TimedOut.
    """

    async def opened() -> Client:
        client = Client(
            address,
            client_id=client_id,
            api_key=api_key,
            tls=tls,
            reconnect=reconnect,
            timeout_s=timeout_s,
            on_state=on_state,
            on_refusal=on_refusal,
            keepalive_s=keepalive_s,
            random=random,
            sleep=sleep,
        )
        return await client.open(wait=wait)

    return AwaitableContext(opened())
