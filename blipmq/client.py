"""The asyncio client: `blipmq.connect(...)`, Client and Subscription.

    async with blipmq.connect("127.0.0.1:7878") as client:
        async with client.subscribe("site/+/temp") as readings:
            await client.publish("site/1/temp", "21.5")
            async for message in readings: ...

Invariant: everything goes out in the order of the calls, gathered: the publishes of one loop turn are one send.
Nothing is buffered without a limit: a slow network holds publishers back, a slow reader stops the socket from being
read.
"""

from __future__ import annotations

import asyncio
import random as random_module
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable
from itertools import islice
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar, cast

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
from blipmq.errors import BlipMQError, Disconnected, ProtocolError, TimedOut
from blipmq.wire import Message, Reply

Payload = bytes | bytearray | memoryview | str
StateCallback = Callable[[str, "BlipMQError | None"], object]

GATHER_BYTES = 64 << 10
"""Publishes of one loop turn are gathered up to this size, then sent without waiting for the turn to end."""
SEND_BYTES_MAX = 1 << 20
"""Publishers wait while the transport holds more than this."""
PUBLISH_MANY_CHUNK = 256


class Closable(Protocol):
    async def close(self) -> None: ...


T = TypeVar("T", bound=Closable)


class Opening(Generic[T]):
    """Something that is being opened: `await` it, or use it in `async with`, which closes it in the end."""

    def __init__(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._coroutine = coroutine
        self._opened: T | None = None

    def __await__(self) -> Generator[Any, None, T]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> T:
        self._opened = await self._coroutine
        return self._opened

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._opened is not None
        await self._opened.close()


class Subscription(Inbox):
    """Messages of one filter: an async iterator, and an async context manager that unsubscribes in the end.

    It ends when it or the client is closed; if the broker refuses it after a reconnect, iterating raises that error.
    """

    def __init__(self, client: Client, filter_: str, **options: Any) -> None:
        super().__init__(filter_, **options)
        self._client = client
        self._arrived = asyncio.Event()

    def wake(self) -> None:
        self._arrived.set()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        if not self.messages:
            await self._wait()
            if not self.messages:
                if self.error is not None:
                    raise self.error
                raise StopAsyncIteration
        message = self.pop()
        if self._client.reading_paused:
            self._client.resume_if_room()
        return message

    async def next(self, timeout_s: float | None = None) -> Message:
        """The next message. Raises TimedOut after `timeout_s`, Disconnected if the subscription has ended."""
        try:
            return await asyncio.wait_for(self.__anext__(), timeout_s)
        except asyncio.TimeoutError:
            raise TimedOut(f"No message on {self.filter} in {timeout_s} s. Is anything published there?") from None
        except StopAsyncIteration:
            raise Disconnected(f"The subscription to {self.filter} has been closed.") from None

    async def batch(self) -> list[Message]:
        """All messages that wait, at least one; an empty list once the subscription has ended. Cheaper than one by
        one."""
        if not self.messages:
            await self._wait()
            if not self.messages and self.error is not None:
                raise self.error
        messages = self.pop_all()
        if self._client.reading_paused:
            self._client.resume_if_room()
        return messages

    async def _wait(self) -> None:
        while not self.messages and not self.ended:
            self._arrived.clear()
            await self._arrived.wait()

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Unsubscribe, if this is the last of its filter. What is queued can still be read."""
        await self._client.end_subscription(self)


class _Link(asyncio.Protocol):
    """One connection: hands bytes and endings to the client that made it."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.transport: asyncio.Transport | None = None
        self.error: BlipMQError | None = None
        self.hello: Request | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's has its methods, but does not inherit from it
        self.transport.set_write_buffer_limits(high=SEND_BYTES_MAX)
        self.hello = self.client.link_made(self, self.transport)
        if (sock := transport.get_extra_info("socket")) is not None:  # a connection inside the process has none
            keep_alive(sock)

    def data_received(self, data: bytes) -> None:
        self.client.link_received(self, data)

    def pause_writing(self) -> None:
        self.client.link_writable(self, False)

    def resume_writing(self) -> None:
        self.client.link_writable(self, True)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        self.client.link_lost(self, self.error or exc)


class Client:
    """A connection to one broker that comes back by itself. Make it with `blipmq.connect`; for one event loop."""

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
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        opener: Callable[[asyncio.Protocol], Awaitable[object]] | None = None,
    ) -> None:
        """`opener` connects the protocol it is given to a broker, in place of TCP to `address`."""
        self.address: Address = parse_address(address)
        self.state = "new"
        self.reading_paused = False
        self._protocol = ClientProtocol(client_id=client_id, api_key=api_key or "")
        self._protocol.on_refusal = on_refusal
        self._reconnect, self._timeout_s, self._on_state, self._sleep = reconnect, timeout_s, on_state, sleep
        self._opener = opener
        self._backoff = Backoff(random)
        self._link: _Link | None = None
        self._writable = asyncio.Event()
        self._flush_scheduled = False
        self._published = False
        self._task: asyncio.Task[None] | None = None
        self._error: BlipMQError | None = None

    def __repr__(self) -> str:
        return f"Client({self.address}, {self.state}, reading_paused={self.reading_paused}, {self._protocol!r})"

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # ---- verbs ----

    async def publish(self, topic: str, payload: Payload, *, ttl_ms: int = 0, qos: int = 0) -> int:
        """Send one message. QoS 0 returns 0 as soon as the message is on its way (see flush); QoS 1 returns the
        message's id once the broker has it on disk. `ttl_ms` 0: the broker's default. During an outage this waits for
        the connection.

        Raises UsageError (topic, payload, ttl_ms), Disconnected, and for QoS 1 Refused and TimedOut.
        """
        if self._link is None or not self._writable.is_set():
            await self._wait_writable()
        if qos:
            request = self._protocol.publish_answered(topic, as_bytes(payload), ttl_ms)
            return (await self._answer(request)).id
        self._protocol.publish(topic, as_bytes(payload), ttl_ms)
        self._published = True
        if self._protocol.out_bytes >= GATHER_BYTES:
            self._flush()
            await asyncio.sleep(0)  # a loop that only publishes must not keep everyone else from running
        elif not self._flush_scheduled:
            self._schedule_flush()
        return 0

    async def publish_many(self, topic: str, payloads: Iterable[Payload], *, ttl_ms: int = 0) -> int:
        """Send many messages of one topic with QoS 0; returns how many. As publish, and cheaper for each."""
        count, iterator = 0, iter(payloads)
        while chunk := [as_bytes(payload) for payload in islice(iterator, PUBLISH_MANY_CHUNK)]:
            if self._link is None or not self._writable.is_set():
                await self._wait_writable()
            self._protocol.publish_many(topic, chunk, ttl_ms)
            self._published = True
            self._flush()
            count += len(chunk)
            await asyncio.sleep(0)
        return count

    async def flush(self) -> None:
        """Return when the broker has read all that was published before. Raises the first refusal of a QoS 0 publish
        since the last flush, Disconnected or TimedOut."""
        await self.ping()
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
    ) -> Opening[Subscription]:
        """Subscribe to a topic or filter: `await` it, or `async with client.subscribe("a.*") as messages`.

        When a subscription's queue is full, nothing more is read from the broker until its reader has caught up, for
        all subscriptions of this client. Raises UsageError, Refused, Disconnected, TimedOut.
        """
        subscription = Subscription(
            self,
            filter_,
            qos=qos,
            durable=durable,
            group=group,
            messages_max=queue_messages_max,
            bytes_max=queue_bytes_max,
        )
        return Opening(self._subscribe(subscription))

    async def unsubscribe(self, filter_: str) -> None:
        """End all subscriptions to this filter, or the durable one of this client id. Refused (404) if there is
        none."""
        await self._wait_writable()
        request = self._protocol.unsubscribe(filter_)
        await self._answer(request)
        for inbox in self._protocol.inboxes(filter_):
            self._protocol.drop(inbox)
            inbox.end(None)
        self.resume_if_room()

    async def ping(self) -> float:
        """Ask the broker for a sign of life, behind all that was sent before; returns seconds until it came."""
        await self._wait_writable()
        clock = asyncio.get_running_loop().time
        began_s = clock()
        await self._answer(self._protocol.ping())
        return clock() - began_s

    async def info(self) -> dict[str, Any]:
        """What the broker says about itself; see docs for the keys."""
        await self._wait_writable()
        reply = await self._answer(self._protocol.info())
        return decode_info(reply)

    def ack(self, message: Message) -> None:
        """Acknowledge a message of a QoS 1 subscription, so that it does not come again."""
        self._protocol.ack(message.id)
        self._schedule_flush()

    async def close(self) -> None:
        """Send what is left, make sure that the broker has read it, and end. Waits no longer than the client's
        timeout."""
        if self.state == "closed":
            return
        for inbox in self._protocol.all_inboxes():
            self._protocol.drop(inbox)
            inbox.end(None)
        if self._link is not None:
            self.resume_if_room()
            if self._published:
                try:
                    await self.ping()
                except BlipMQError:
                    pass  # closing does not fail: who must know that all has arrived calls flush
        link = self._link
        if link is not None:
            self._protocol.quit()
            self._flush()
        self._finish(None)
        if link is not None and link.transport is not None:
            link.transport.close()
            try:
                await asyncio.wait_for(asyncio.shield(link.ended), self._timeout_s)
            except asyncio.TimeoutError:
                link.transport.abort()

    # ---- connecting ----

    async def open(self) -> Client:
        """The first connection; `blipmq.connect` calls it. Raises what went wrong, without a second attempt."""
        self._set_state("connecting", None)
        try:
            await self._open_link()
        except BaseException as error:
            self._finish(error if isinstance(error, BlipMQError) else None)
            raise
        return self

    async def _connect_link(self, link: _Link) -> None:
        connecting: Awaitable[object]
        if self._opener is not None:
            connecting = self._opener(link)
        else:
            loop = asyncio.get_running_loop()
            connecting = loop.create_connection(lambda: link, self.address.host, self.address.port)
        try:
            await asyncio.wait_for(connecting, self._timeout_s)
        except asyncio.TimeoutError:
            raise unreachable(self.address, TimeoutError()) from None
        except (OSError, UnicodeError) as error:  # a label of the host name can be too long for IDNA
            raise unreachable(self.address, error) from error

    async def _open_link(self) -> None:
        link = _Link(self)
        try:
            await self._connect_link(link)
            assert link.hello is not None
            await self._answer(link.hello)
        except BaseException:
            self._link = None
            if link.transport is not None:
                link.transport.abort()
            raise
        self._backoff.reset()
        self._writable.set()
        self._set_state("connected", None)
        self._schedule_flush()

    async def _connect_again(self) -> None:
        while True:
            await self._sleep(self._backoff.next_s())
            self._set_state("connecting", None)
            try:
                return await self._open_link()
            except BlipMQError as error:
                if error.code in FINAL_CODES:
                    return self._finish(error)
                self._set_state("disconnected", error)

    def _set_state(self, state: str, error: BlipMQError | None) -> None:
        if state != self.state:
            self.state = state
            if self._on_state is not None:
                asyncio.get_running_loop().call_soon(self._on_state, state, error)

    def _finish(self, error: BlipMQError | None) -> None:
        """There will be no other connection."""
        self._error = error
        self._link = None
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._task = None
        self._set_state("closed", error)
        self._protocol.finish(error)
        self._writable.set()  # whoever waits to publish learns of the end

    # ---- what links report ----

    def link_made(self, link: _Link, transport: asyncio.Transport) -> Request:
        """Say HELLO before a byte of the other side can be read."""
        self._link = link
        request = self._protocol.open()
        transport.write(self._protocol.take())
        return request

    def link_received(self, link: _Link, data: bytes) -> None:
        if link is not self._link:
            return
        try:
            self._protocol.receive(data)
        except ProtocolError as error:
            link.error = error
            assert link.transport is not None
            link.transport.abort()
            return
        self._pause_if_full()

    def link_writable(self, link: _Link, writable: bool) -> None:
        if link is self._link and self._protocol.welcomed:
            if writable:
                self._writable.set()
                self._schedule_flush()
            else:
                self._writable.clear()

    def link_lost(self, link: _Link, cause: BaseException | None) -> None:
        if link is not self._link or self.state == "closed":
            return
        was_welcomed = self._protocol.welcomed
        error = connection_ended(self.address, cause, self._protocol.farewell, welcomed=was_welcomed)
        self._link = None
        self.reading_paused = False
        self._writable.clear()
        self._protocol.lost(error)
        if not was_welcomed:
            return  # _open_link is waiting for HELLO's answer and has been told
        if not self._reconnect or error.code in FINAL_CODES:
            self._finish(error)
        else:
            self._set_state("disconnected", error)
            self._task = asyncio.get_running_loop().create_task(self._connect_again())

    # ---- sending and waiting ----

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled and self._protocol.out_bytes:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._link is not None and self._link.transport is not None and self._protocol.out_bytes:
            self._link.transport.write(self._protocol.take())

    async def _wait_writable(self) -> None:
        """Wait until there is a connection with room. Raises why there is none for good, or Disconnected in time."""
        if not self._writable.is_set():
            try:
                await asyncio.wait_for(self._writable.wait(), self._timeout_s)
            except asyncio.TimeoutError:
                if self._link is not None:
                    raise TimedOut(
                        f"The broker at {self.address} has taken nothing for {self._timeout_s} s. "
                        "It is overloaded or holds publishers back because a queue is full; try again, or slower."
                    ) from None
                raise Disconnected(
                    f"No connection to {self.address} for {self._timeout_s} s. "
                    "The broker is down or the network is; the client keeps trying."
                ) from None
        if self.state == "closed":
            raise self._error or Disconnected("The client is closed. Open a new one with blipmq.connect.")

    async def _answer(self, request: Request) -> Reply:
        """Wait for the answer; raises what the broker refused, Disconnected or TimedOut."""
        if not request.done:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            earlier = request.on_done

            def done() -> None:
                if earlier is not None:
                    earlier()
                if not future.done():
                    future.set_result(None)

            request.on_done = done
            self._schedule_flush()
            self.resume_if_room()
            try:
                await asyncio.wait_for(future, self._timeout_s)
            except asyncio.TimeoutError:
                raise TimedOut(
                    f"{request.what}: the broker at {self.address} did not answer in {self._timeout_s} s. "
                    "It is overloaded, or this client's subscriptions are not being read."
                ) from None
            finally:
                if not request.done:
                    self._protocol.forget(request)
        if request.error is not None:
            raise request.error
        return request.reply

    # ---- subscriptions and back-pressure ----

    async def _subscribe(self, subscription: Subscription) -> Subscription:
        while True:
            await self._wait_writable()
            try:
                await self._answer(self._protocol.subscribe(subscription))
                return subscription
            except BaseException as error:
                outage = isinstance(error, Disconnected) and self._reconnect and self.state != "closed"
                if not outage:
                    self._abandon(subscription, told=isinstance(error, BlipMQError) and error.code != 0)
                    raise

    def _abandon(self, subscription: Subscription, *, told: bool) -> None:
        """Take back a subscription that failed or was cancelled; the broker may have it even so."""
        last = self._protocol.drop(subscription)
        if last and not told and self._protocol.welcomed:
            self._protocol.forget(self._protocol.unsubscribe(subscription.filter))
            self._schedule_flush()

    async def end_subscription(self, subscription: Subscription) -> None:
        if subscription.ended:
            return
        last = self._protocol.drop(subscription)
        subscription.end(None)
        self.resume_if_room()
        durable = subscription.options[1]
        if last and not durable and self._protocol.welcomed:
            try:
                await self._answer(self._protocol.unsubscribe(subscription.filter))
            except BlipMQError:
                pass  # it has ended here; on the broker it ends with the connection at the latest

    def _limit_times(self) -> int:
        return OVERRUN if self._protocol.waiting else 1

    def _pause_if_full(self) -> None:
        if not self.reading_paused and self._link is not None and self._link.transport is not None:
            times = self._limit_times()
            if any(inbox.is_full(times) for inbox in self._protocol.all_inboxes()):
                self.reading_paused = True
                self._link.transport.pause_reading()

    def resume_if_room(self) -> None:
        """Read on if every queue is half empty again, or if an answer is awaited and no queue has overrun its limit."""
        if self.reading_paused and self._link is not None and self._link.transport is not None:
            inboxes = self._protocol.all_inboxes()
            if self._protocol.waiting:
                room = not any(inbox.is_full(OVERRUN) for inbox in inboxes)
            else:
                room = all(inbox.is_half_empty() for inbox in inboxes)
            if room and not self._link.transport.is_closing():
                self.reading_paused = False
                self._link.transport.resume_reading()


def connect(
    address: str = "127.0.0.1:7878",
    *,
    client_id: str = "",
    api_key: str | None = None,
    reconnect: bool = True,
    timeout_s: float = 10.0,
    on_state: StateCallback | None = None,
    on_refusal: Callable[[BlipMQError], None] | None = None,
    random: Callable[[], float] = random_module.random,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Opening[Client]:
    """Connect to a broker: `client = await blipmq.connect(...)`, or `async with blipmq.connect(...) as client`.

    address      "host", "host:port" or "[ipv6]:port"; the port defaults to 7878
    client_id    this client's durable name; needed for durable subscriptions
    reconnect    after an outage connect again (exponential back-off with full jitter, at most 10 s) and subscribe again
    timeout_s    for connecting, for each answer, and for how long a publish waits during an outage
    on_state     called with "connecting", "connected", "disconnected" or "closed", and the error that led there, if any
    on_refusal   called with each refusal that belongs to no request: those of QoS 0 publishes
    random, sleep  where the jitter comes from and how it is waited for

    Raises UsageError (address), Unreachable, NotAllowed, Refused, ProtocolError, TimedOut. The first attempt is the
    only one.
    """

    async def opened() -> Client:
        client = Client(
            address,
            client_id=client_id,
            api_key=api_key,
            reconnect=reconnect,
            timeout_s=timeout_s,
            on_state=on_state,
            on_refusal=on_refusal,
            random=random,
            sleep=sleep,
        )
        return await client.open()

    return Opening(opened())
