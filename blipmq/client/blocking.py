"""The blocking client: `blipmq.connect_blocking(...)` and BlockingClient. No threads, no asyncio.

    with blipmq.connect_blocking("127.0.0.1:7878") as client:
        client.publish("site/1/temp", "21.5")
        for message in client.subscribe("site/+/temp"): ...

QoS 1 works as in client.py: a publish returns when the broker has it on disk, and is sent again after a reconnect until
then.
Invariant: publishes are sent in the order of the calls, and at most one window of them is unanswered.
"""

from __future__ import annotations

import random as random_module
import time
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from types import TracebackType
from typing import Any

from blipmq.base.validation import check_callable, check_qos, check_seconds, ids_of, many
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
from blipmq.client.blocking_connection import BlockingConnection, StateCallback
from blipmq.client.blocking_subscription import BlockingSubscription as BlockingSubscription
from blipmq.client.call_lock import locked
from blipmq.client.in_flight import WINDOW_MESSAGES_MAX, Request, check_window
from blipmq.client.inbox import DROP_OLDEST, QUEUE_BYTES_MAX, QUEUE_MESSAGES_MAX, Inbox
from blipmq.client.protocol import ClientProtocol, Published, PublishedCount, Receipt, as_bytes, decode_info
from blipmq.client.reconnect import check_options, seconds_to_wait
from blipmq.client.trust import Tls, context_for
from blipmq.errors import BlipMQError, Disconnected
from blipmq.wire.frames import Message
from blipmq.wire.topics import check_filter

Payload = bytes | bytearray | memoryview | str

_PUBLISH_MANY_CHUNK = 1024
_GATHER_BYTES = 64 << 10


class BlockingClient:
    """A connection to one broker that reconnects by itself. Create it with `blipmq.connect_blocking`.

    Several threads may use it, one at a time: a call waits until the call of another thread ends. If that thread waits
    for messages, the call raises UsageError instead. Give each thread that reads its own client. With auto_ack, the
    thread that took a message acknowledges it.
    """

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
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_options(timeout_s, reconnect, on_state=on_state, on_refusal=on_refusal, random=random, sleep=sleep)
        self.address: Address = parse_address(address, None if tls is None else tls is not False)
        self._protocol = ClientProtocol(client_id=client_id, api_key=api_key or "")
        self._protocol.on_refusal = on_refusal
        self._connection = BlockingConnection(
            self.address,
            self._protocol,
            tls=context_for(tls) if self.address.tls else None,
            reconnect=reconnect,
            timeout_s=timeout_s,
            on_state=on_state,
            random=random,
            sleep=sleep,
            clock=clock,
        )
        self._call_lock = self._connection.call_lock
        self._published = False

    def __repr__(self) -> str:
        return f"BlockingClient({self._connection!r})"

    @property
    def state(self) -> str:
        """ "new", "connecting", "connected", "disconnected" or "closed"."""
        return self._connection.state

    @locked
    def open(self, *, wait: bool | float = False) -> BlockingClient:
        """Make the first connection; connect_blocking calls it. `wait` is as there."""
        self._connection.open(seconds_to_wait(wait))
        return self

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- publishing ----

    @locked
    def publish(self, topic: str, payload: Payload, *, ttl_ms: int = 0, qos: int = 0) -> Receipt:
        """Send one message. QoS 0 returns 0 once the operating system has it (see flush). QoS 1 returns once the broker
        has the message on disk: a Receipt, which is the message id as a number; its `.subscriptions` is the number of
        subscriptions that store it. `ttl_ms`: time to live in milliseconds; 0 is the broker's default. During an outage
        this waits for the connection.

        Raises UsageError (topic, payload, ttl_ms), Disconnected, and for QoS 1 Refused and TimedOut. After Disconnected
        or TimedOut a QoS 1 message may still have arrived.
        """
        if qos != 0:
            check_qos(qos)
        self._connection.wait_connected()
        if qos:
            request = self._protocol.publish_answered(topic, as_bytes(payload), ttl_ms)
            return Receipt.of(self._connection.answer(request))
        self._protocol.publish(topic, as_bytes(payload), ttl_ms)
        self._published = True
        self._connection.send()
        return Receipt(0)

    @locked
    def publish_many(
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
        rest = many(payloads)
        if qos != 0:
            check_qos(qos)
            check_window(window)
            return self._publish_many_answered(topic, rest, ttl_ms, window)
        count = 0
        while chunk := [as_bytes(payload) for payload in islice(rest, _PUBLISH_MANY_CHUNK)]:
            self._connection.wait_connected()
            self._protocol.publish_many(topic, chunk, ttl_ms)
            self._published = True
            self._connection.send()
            count += len(chunk)
        return Published(count)

    def _publish_many_answered(self, topic: str, payloads: Iterable[Payload], ttl_ms: int, window: int) -> Published:
        count, waiting = PublishedCount(), deque[Request]()
        connection, in_flight = self._connection, self._protocol.in_flight
        try:
            for payload in payloads:
                while waiting and (waiting[0].done or in_flight.is_full(window)):
                    count.answered(connection.answer(waiting.popleft()))
                connection.wait_connected()
                waiting.append(self._protocol.publish_answered(topic, as_bytes(payload), ttl_ms))
                count.sent()
                if self._protocol.out_bytes >= _GATHER_BYTES:
                    connection.send()
            while waiting:
                count.answered(connection.answer(waiting.popleft()))
        except BlipMQError:
            connection.wait(lambda: all(request.done for request in waiting), connection.timeout_s)
            raise
        finally:
            for request in waiting:
                self._protocol.forget(request)
        return count.result()

    @locked
    def flush(self) -> None:
        """Return when the broker has read everything published before. Raises the first refusal of a QoS 0 publish
        since the last flush, Disconnected or TimedOut."""
        self.ping()
        self._published = False
        refusals = self._protocol.refusals
        if refusals:
            error = refusals.popleft()
            refusals.clear()
            raise error

    @property
    def refusals(self) -> list[BlipMQError]:
        """Refusals of QoS 0 publishes since the last flush. flush raises the first of them."""
        return list(self._protocol.refusals)

    # ---- subscribing ----

    @locked
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
    ) -> BlockingSubscription:
        """Subscribe to a topic or filter. The options are those of Client.subscribe. Raises UsageError, Refused,
        Disconnected, TimedOut."""
        connection = self._connection
        subscription = BlockingSubscription(
            connection,
            filter_,
            qos=qos,
            durable=durable,
            group=group,
            auto_ack=auto_ack,
            messages_max=queue_messages_max,
            bytes_max=queue_bytes_max,
            overflow=overflow,
        )
        while True:
            connection.wait_connected()
            try:
                connection.answer(self._protocol.subscribe(subscription))
                return subscription
            except BaseException as error:
                if not isinstance(error, Disconnected) or not connection.reconnects or self.state == "closed":
                    subscription.abandon(told=isinstance(error, BlipMQError) and error.code != 0)
                    raise

    @locked
    def unsubscribe(self, filter_: str, *, group: str = "") -> None:
        """End all subscriptions of this client to this filter, including the durable ones of its client id. With
        `group`, only leave that queue group. A durable group ends when the last client id that subscribed durably to it
        leaves. Raises Refused (404) if there is nothing to end."""
        self._connection.wait_connected()
        self._connection.answer(self._protocol.unsubscribe(filter_, group))
        for inbox in self._protocol.inboxes(filter_, group):
            self._protocol.drop(inbox)
            inbox.end(None)

    @locked
    def ack(self, *messages: Message) -> None:
        """Acknowledge messages for all subscriptions of this client that received them. BlockingSubscription.ack does
        so for one subscription. Without a connection the messages are delivered again."""
        self._protocol.acknowledge(ids_of(messages))
        self._connection.send()

    # ---- requests ----

    @locked
    def ping(self) -> float:
        """Send PING after everything sent before; returns the seconds until the answer."""
        connection = self._connection
        connection.wait_connected()
        began_s = connection.clock()
        connection.answer(self._protocol.ping())
        return connection.clock() - began_s

    @locked
    def info(self) -> dict[str, Any]:
        """The broker's state as a dict. docs/ describes the keys."""
        self._connection.wait_connected()
        return decode_info(self._connection.answer(self._protocol.info()))

    @locked
    def has_subscriber(self, filter: str) -> bool:
        """Whether exactly this filter has a subscription: of a connected client, or a durable one of an absent client."""
        check_filter(filter)
        self._connection.wait_connected()
        return decode_filter(self._connection.answer(self._protocol.info(filter_asked(filter))), filter)

    @locked
    def sessions(self, find: str = "", limit: int = SESSIONS_SHOWN) -> dict[str, Any]:
        """List QoS 1 subscriptions and queue groups, also those of absent clients: totals, and in `list` the rows with
        the largest lag. `find`: a part of the filter, client_id or group."""
        self._connection.wait_connected()
        asked = sessions_asked(find, limit)
        return decode_sessions(self._connection.answer(self._protocol.info(asked)))

    @locked
    def end_session(
        self, filter: str, *, client_id: str = "", group: str = "", key: str | None = None
    ) -> dict[str, Any]:
        """End a durable subscription or a queue group of any client; for operators. Returns its last state. `key`: the
        name of the key that the client_id belongs to; None: any key, if only one matches. Needs the right `admin`."""
        self._connection.wait_connected()
        asked = end_asked(filter, client_id, group, key)
        return decode_end(self._connection.answer(self._protocol.admin(asked)))

    @locked
    def wait(self, ready: Callable[[], bool], timeout_s: float | None, reader: Inbox | None = None) -> None:
        """Process incoming data until `ready()` or the timeout. Raises UsageError if a queue other than the `reader`'s
        is full, because nothing reads it meanwhile."""
        check_callable("ready", ready)
        check_seconds("timeout_s", timeout_s, none=True)
        with self._call_lock.waiting("something of its own"):
            self._connection.wait(ready, timeout_s, reader)

    def fileno(self) -> int:
        """The socket's descriptor for select or poll, or -1 during an outage. Call poll() when it is readable."""
        return self._connection.fileno()

    @locked
    def poll(self, timeout_s: float = 0.0) -> None:
        """Process data that has arrived, waiting at most `timeout_s` seconds for some. During an outage, make one
        attempt to connect."""
        check_seconds("timeout_s", timeout_s)
        with self._call_lock.waiting("messages"):
            self._connection.step(self._connection.clock() + timeout_s)

    # ---- closing ----

    @locked
    def close(self) -> None:
        """Wait until the broker has read everything published, then close. Waits at most the client's timeout. QoS 1
        messages that were taken and not acknowledged are delivered again."""
        if self.state == "closed":
            return
        for inbox in self._protocol.all_inboxes():
            self._protocol.drop(inbox)
            inbox.end(None)
        if self._connection.is_up:
            try:
                if self._published:
                    self.ping()
                self._protocol.quit()
                self._connection.send()
            except BlipMQError:
                pass  # closing does not fail; a caller that needs confirmation calls flush
        self._connection.finish(None)

    @locked
    def abort(self) -> None:
        """Close at once, without QUIT and without waiting. Does nothing after close."""
        if self.state != "closed":
            self._connection.finish(None)


def connect_blocking(
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
    random: Callable[[], float] = random_module.random,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> BlockingClient:
    """Connect to a broker without asyncio. Parameters and errors are those of `blipmq.connect`; `clock` returns
    seconds."""
    client = BlockingClient(
        address,
        client_id=client_id,
        api_key=api_key,
        tls=tls,
        reconnect=reconnect,
        timeout_s=timeout_s,
        on_state=on_state,
        on_refusal=on_refusal,
        random=random,
        sleep=sleep,
        clock=clock,
    )
    return client.open(wait=wait)
