"""The blocking client: `blipmq.connect_blocking(...)`, BlockingClient and BlockingSubscription. No threads, no asyncio.

    with blipmq.connect_blocking("127.0.0.1:7878") as client:
        client.publish("site/1/temp", "21.5")
        for message in client.subscribe("site/+/temp"): ...

Invariant: the socket is only touched inside a call. A call that sends also takes in what arrives, so that two peers
that send to each other cannot wait for one another; a call that waits for one subscription reads for all of them.
"""

from __future__ import annotations

import contextlib
import random as random_module
import selectors
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from types import TracebackType
from typing import Any

from blipmq.address import Address, parse_address, unreachable
from blipmq.backoff import Backoff
from blipmq.client_protocol import (
    FINAL_CODES,
    OVERRUN,
    QUEUE_BYTES_MAX,
    QUEUE_MESSAGES_MAX,
    ClientProtocol,
    Inbox,
    Request,
    as_bytes,
    connection_ended,
    decode_info,
    keep_alive,
)
from blipmq.errors import BlipMQError, Disconnected, ProtocolError, TimedOut, UsageError
from blipmq.wire import Message, Reply

Payload = bytes | bytearray | memoryview | str
StateCallback = Callable[[str, "BlipMQError | None"], object]

_RECEIVE_BYTES = 256 << 10
_PUBLISH_MANY_CHUNK = 1024


class BlockingSubscription(Inbox):
    """Messages of one filter: an iterator, and a context manager that unsubscribes in the end.

    Iterating waits for the next message, through reconnects. It ends when the subscription or its client is closed.
    """

    def __init__(self, client: BlockingClient, filter_: str, **options: Any) -> None:
        super().__init__(filter_, **options)
        self._client = client

    def __iter__(self) -> Iterator[Message]:
        return self

    def __next__(self) -> Message:
        if not self.messages:
            self._wait(None)
            if not self.messages:
                raise StopIteration
        return self.pop()

    def next(self, timeout_s: float | None = None) -> Message:
        """The next message. Raises TimedOut after `timeout_s`, Disconnected if the subscription has ended."""
        self._wait(timeout_s)
        if self.messages:
            return self.pop()
        if self.ended:
            raise Disconnected(f"The subscription to {self.filter} has been closed.")
        raise TimedOut(f"No message on {self.filter} in {timeout_s} s. Is anything published there?")

    def batch(self, timeout_s: float | None = None) -> list[Message]:
        """All messages that have arrived; waits for at least one. Empty after `timeout_s`, or once it has ended."""
        self._wait(timeout_s)
        return self.pop_all()

    def _wait(self, timeout_s: float | None) -> None:
        self._client.wait(lambda: bool(self.messages) or self.ended, timeout_s, reader=self)
        if not self.messages and self.error is not None:
            raise self.error

    def __enter__(self) -> BlockingSubscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unsubscribe, if this is the last of its filter. What is queued can still be read."""
        self._client.end_subscription(self)


class BlockingClient:
    """A connection to one broker that comes back by itself. Make it with `blipmq.connect_blocking`; for one thread."""

    def __init__(
        self,
        address: str,
        *,
        client_id: str = "",
        api_key: str | None = None,
        reconnect: bool = True,
        timeout_s: float = 10.0,
        on_state: StateCallback | None = None,
        on_refusal: Callable[[BlipMQError], None] | None = None,
        random: Callable[[], float] = random_module.random,
        sleep: Callable[[float], None] = time.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address: Address = parse_address(address)
        self.state = "new"
        self._protocol = ClientProtocol(client_id=client_id, api_key=api_key or "")
        self._protocol.on_refusal = on_refusal
        self._reconnect, self._timeout_s, self._on_state = reconnect, timeout_s, on_state
        self._sleep, self._clock = sleep, clock
        self._backoff = Backoff(random)
        self._selector = selectors.DefaultSelector()
        self._socket: socket.socket | None = None
        self._published = False
        self._error: BlipMQError | None = None

    def __repr__(self) -> str:
        return f"BlockingClient({self.address}, {self.state}, {self._protocol!r})"

    def __enter__(self) -> BlockingClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    # ---- verbs ----

    def publish(self, topic: str, payload: Payload, *, ttl_ms: int = 0, qos: int = 0) -> int:
        """Send one message. QoS 0 returns 0 once the system has it (see flush); QoS 1 returns the message's id once the
        broker has it on disk. `ttl_ms` 0: the broker's default. During an outage this waits for the connection.

        Raises UsageError (topic, payload, ttl_ms), Disconnected, and for QoS 1 Refused and TimedOut.
        """
        self._wait_connected()
        if qos:
            return self._answer(self._protocol.publish_answered(topic, as_bytes(payload), ttl_ms)).id
        self._protocol.publish(topic, as_bytes(payload), ttl_ms)
        self._published = True
        self._send()
        return 0

    def publish_many(self, topic: str, payloads: Iterable[Payload], *, ttl_ms: int = 0) -> int:
        """Send many messages of one topic with QoS 0; returns how many. As publish, and cheaper for each."""
        count, iterator = 0, iter(payloads)
        while chunk := [as_bytes(payload) for payload in islice(iterator, _PUBLISH_MANY_CHUNK)]:
            self._wait_connected()
            self._protocol.publish_many(topic, chunk, ttl_ms)
            self._published = True
            self._send()
            count += len(chunk)
        return count

    def flush(self) -> None:
        """Return when the broker has read all that was published before. Raises the first refusal of a QoS 0 publish
        since the last flush, Disconnected or TimedOut."""
        self.ping()
        self._published = False
        refusals = self._protocol.refusals
        if refusals:
            error = refusals.popleft()
            refusals.clear()
            raise error

    def subscribe(
        self,
        filter_: str,
        *,
        qos: int = 0,
        durable: bool = False,
        group: str = "",
        queue_messages_max: int = QUEUE_MESSAGES_MAX,
        queue_bytes_max: int = QUEUE_BYTES_MAX,
    ) -> BlockingSubscription:
        """Subscribe to a topic or filter. Raises UsageError, Refused, Disconnected, TimedOut."""
        subscription = BlockingSubscription(
            self,
            filter_,
            qos=qos,
            durable=durable,
            group=group,
            messages_max=queue_messages_max,
            bytes_max=queue_bytes_max,
        )
        while True:
            self._wait_connected()
            try:
                self._answer(self._protocol.subscribe(subscription))
                return subscription
            except BaseException as error:
                if not isinstance(error, Disconnected) or not self._reconnect or self.state == "closed":
                    self._abandon(subscription, told=isinstance(error, BlipMQError) and error.code != 0)
                    raise

    def unsubscribe(self, filter_: str) -> None:
        """End all subscriptions to this filter, or the durable one of this client id. Refused (404) if there is
        none."""
        self._wait_connected()
        self._answer(self._protocol.unsubscribe(filter_))
        for inbox in self._protocol.inboxes(filter_):
            self._protocol.drop(inbox)
            inbox.end(None)

    def ping(self) -> float:
        """Ask the broker for a sign of life, behind all that was sent before; returns seconds until it came."""
        self._wait_connected()
        began_s = self._clock()
        self._answer(self._protocol.ping())
        return self._clock() - began_s

    def info(self) -> dict[str, Any]:
        """What the broker says about itself; see docs for the keys."""
        self._wait_connected()
        return decode_info(self._answer(self._protocol.info()))

    def ack(self, *messages: Message) -> None:
        """Acknowledge messages of a QoS 1 subscription, so that they do not come again. Without a connection they
        will."""
        for message in messages:
            self._protocol.ack(message.id)
        self._send()

    def close(self) -> None:
        """Make sure that the broker has read what was published, and end. Waits no longer than the client's timeout."""
        if self.state == "closed":
            return
        for inbox in self._protocol.all_inboxes():
            self._protocol.drop(inbox)
            inbox.end(None)
        if self._socket is not None:
            try:
                if self._published:
                    self.ping()
                self._protocol.quit()
                self._send()
            except BlipMQError:
                pass  # closing does not fail: who must know that all has arrived calls flush
        self._finish(None)

    def abort(self) -> None:
        """End at once, without a word to the broker and without waiting. Does nothing after close."""
        if self.state != "closed":
            self._finish(None)

    @property
    def refusals(self) -> list[BlipMQError]:
        """Refusals of QoS 0 publishes that have come since the last flush, which raises the first of them."""
        return list(self._protocol.refusals)

    def fileno(self) -> int:
        """The socket's descriptor, to wait for it beside others, or -1 during an outage. When it is readable, call
        poll()."""
        return -1 if self._socket is None else self._socket.fileno()

    def poll(self, timeout_s: float = 0.0) -> None:
        """Take in what has arrived, or wait for something; during an outage, make one attempt to connect."""
        self._step(self._clock() + timeout_s)

    # ---- connecting ----

    def open(self) -> BlockingClient:
        """The first connection; connect_blocking calls it. Raises what went wrong, without a second attempt."""
        try:
            self._open_socket(self._timeout_s)
        except BaseException as error:
            self._finish(error if isinstance(error, BlipMQError) else None)
            raise
        return self

    def _open_socket(self, timeout_s: float) -> None:
        self._set_state("connecting", None)
        try:
            sock = socket.create_connection((self.address.host, self.address.port), timeout=max(timeout_s, 0.01))
        except (OSError, UnicodeError) as error:  # a label of the host name can be too long for IDNA
            raise unreachable(self.address, error) from error
        self._socket = sock
        self._selector.register(sock, selectors.EVENT_READ)
        try:
            keep_alive(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            self._answer(self._protocol.open())
        except BaseException:
            self._drop_socket()
            raise
        self._backoff.reset()
        self._set_state("connected", None)
        self._send()

    def _connect_again(self, deadline_s: float | None) -> None:
        """One attempt, after its delay."""
        delay_s = self._backoff.next_s()
        if deadline_s is not None:
            delay_s = min(delay_s, max(deadline_s - self._clock(), 0.0))
        self._sleep(delay_s)
        try:
            self._open_socket(self._timeout_s)
        except BlipMQError as error:
            if error.code in FINAL_CODES:
                self._finish(error)
                raise
            self._set_state("disconnected", error)

    def _set_state(self, state: str, error: BlipMQError | None) -> None:
        if state != self.state:
            self.state = state
            if self._on_state is not None:
                self._on_state(state, error)

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def _lost(self, cause: BaseException | None) -> None:
        """The connection is over. Requests fail now; the next call that needs a connection makes the next attempt."""
        was_welcomed = self._protocol.welcomed
        error = connection_ended(self.address, cause, self._protocol.farewell, welcomed=was_welcomed)
        self._drop_socket()
        self._protocol.lost(error)
        if was_welcomed and (not self._reconnect or error.code in FINAL_CODES):
            self._finish(error)
        elif was_welcomed:
            self._set_state("disconnected", error)

    def _finish(self, error: BlipMQError | None) -> None:
        """There will be no other connection."""
        self._error = error
        self._drop_socket()
        self._selector.close()
        self._protocol.finish(error)
        self._set_state("closed", error)

    # ---- waiting ----

    def wait(self, ready: Callable[[], bool], timeout_s: float | None, reader: Inbox | None = None) -> None:
        """Take in what arrives until `ready()` or the timeout. Raises UsageError if a queue that no one reads is
        full."""
        deadline_s = None if timeout_s is None else self._clock() + timeout_s
        while not ready():
            if deadline_s is not None and self._clock() >= deadline_s:
                return
            for inbox in self._protocol.all_inboxes():
                if inbox is not reader and inbox.is_full(OVERRUN):
                    raise UsageError(
                        f"The subscription to {inbox.filter} holds {len(inbox.messages)} messages that nobody reads, "
                        "so nothing behind them can be read. Read it, close it, or use a client for each."
                    )
            self._step(deadline_s)

    def _step(self, deadline_s: float | None) -> None:
        """Wait once, for bytes or for room to send the rest, and act on it."""
        if self._socket is None:
            if self.state == "closed":
                raise self._error or Disconnected("The client is closed. Open a new one with blipmq.connect_blocking.")
            return self._connect_again(deadline_s)
        timeout_s = None if deadline_s is None else max(deadline_s - self._clock(), 0.0)
        if self._selector.select(timeout_s):
            self._receive()

    def _receive(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            return self._lost(error)
        if not data:
            return self._lost(None)
        try:
            self._protocol.receive(data)
        except ProtocolError as error:
            self._lost(error)

    def _send(self) -> None:
        """Send all that waits. What arrives meanwhile is taken in while the queues allow."""
        if self._socket is None or not self._protocol.out_bytes:
            return
        data = memoryview(self._protocol.take())
        while data and self._socket is not None:
            data = data[self._send_some(data) :]

    def _send_some(self, data: memoryview) -> int:
        """Send what the system takes, waiting for room if it takes nothing; returns how many bytes that was."""
        assert self._socket is not None
        try:
            return self._socket.send(data)
        except (BlockingIOError, InterruptedError):
            self._wait_for_room()
        except OSError as error:
            self._receive_the_rest()
            self._lost(error)
        return 0

    def _receive_the_rest(self) -> None:
        """What the broker said before it closed may still wait to be read, and says why."""
        with contextlib.suppress(OSError, ProtocolError):
            while self._socket is not None and (data := self._socket.recv(_RECEIVE_BYTES)):
                self._protocol.receive(data)

    def _wait_for_room(self) -> None:
        assert self._socket is not None
        events = selectors.EVENT_WRITE
        if not any(inbox.is_full(OVERRUN) for inbox in self._protocol.all_inboxes()):
            events |= selectors.EVENT_READ
        self._selector.modify(self._socket, events)
        try:
            ready = self._selector.select(self._timeout_s)
        finally:
            self._selector.modify(self._socket, selectors.EVENT_READ)
        if not ready:
            error = TimedOut(
                f"The broker at {self.address} has taken nothing for {self._timeout_s} s. "
                "It is overloaded or holds publishers back because a queue is full; try again, or slower."
            )
            self._lost(error)  # half a frame may have been sent: this connection cannot be used again
            raise error
        if ready[0][1] & selectors.EVENT_READ:
            self._receive()

    def _wait_connected(self) -> None:
        if self._socket is not None:
            return
        self.wait(lambda: self._socket is not None, self._timeout_s)
        if self._socket is None:
            raise Disconnected(
                f"No connection to {self.address} for {self._timeout_s} s. "
                "The broker is down or the network is; the client keeps trying with each call."
            )

    def _answer(self, request: Request) -> Reply:
        """Wait for the answer; raises what the broker refused, Disconnected or TimedOut."""
        try:
            self._send()
            if not request.done:
                self.wait(lambda: request.done, self._timeout_s)
        finally:
            if not request.done:
                self._protocol.forget(request)
        if not request.done:
            raise TimedOut(
                f"{request.what}: the broker at {self.address} did not answer in {self._timeout_s} s. "
                "It is overloaded, or it is not a BlipMQ broker."
            )
        if request.error is not None:
            raise request.error
        return request.reply

    # ---- subscriptions ----

    def _abandon(self, subscription: BlockingSubscription, *, told: bool) -> None:
        """Take back a subscription that failed or was interrupted; the broker may have it even so."""
        if self._protocol.drop(subscription) and not told and self._protocol.welcomed:
            self._protocol.forget(self._protocol.unsubscribe(subscription.filter))

    def end_subscription(self, subscription: BlockingSubscription) -> None:
        if subscription.ended:
            return
        last = self._protocol.drop(subscription)
        subscription.end(None)
        durable = subscription.options[1]
        if last and not durable and self._protocol.welcomed:
            try:
                self._answer(self._protocol.unsubscribe(subscription.filter))
            except BlipMQError:
                pass  # it has ended here; on the broker it ends with the connection at the latest


def connect_blocking(
    address: str = "127.0.0.1:7878",
    *,
    client_id: str = "",
    api_key: str | None = None,
    reconnect: bool = True,
    timeout_s: float = 10.0,
    on_state: StateCallback | None = None,
    on_refusal: Callable[[BlipMQError], None] | None = None,
    random: Callable[[], float] = random_module.random,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> BlockingClient:
    """Connect to a broker without asyncio. Parameters and errors are those of `blipmq.connect`; `clock` gives
    seconds."""
    client = BlockingClient(
        address,
        client_id=client_id,
        api_key=api_key,
        reconnect=reconnect,
        timeout_s=timeout_s,
        on_state=on_state,
        on_refusal=on_refusal,
        random=random,
        sleep=sleep,
        clock=clock,
    )
    return client.open()
