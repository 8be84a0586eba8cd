"""The asyncio connection of a client to one broker, across reconnects: output, answers, back-pressure.

    Client, Subscription ──calls──►  Connection  ──►  ClientProtocol   the protocol's state
                                         │
                                    Link, one after the other      bytes, and the end of a connection

Invariant: output is sent in the order of the calls, and all output of one loop turn is one send. No buffer is
unlimited: a slow network delays publishers, and a slow reader pauses reading from the socket.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from blipmq.base.backoff import Backoff
from blipmq.base.tcp_keepalive import LOOKS, Owed
from blipmq.client import log
from blipmq.client.address import Address, unreachable
from blipmq.client.address_order import Tried, another_may_do, share_s
from blipmq.client.happy_eyeballs import dial, look_up
from blipmq.client.in_flight import Request
from blipmq.client.inbox import OVERRUN
from blipmq.client.protocol import ClientProtocol
from blipmq.client.reconnect import (
    FINAL_CODES,
    attempt_s,
    connection_ended,
    is_permanent,
    keep_alive,
    unanswered,
    waited,
)
from blipmq.errors import BlipMQError, Disconnected, ProtocolError, TimedOut, UsageError
from blipmq.wire.frames import Reply

if TYPE_CHECKING:
    import ssl

StateCallback = Callable[[str, "BlipMQError | None"], object]
Opener = Callable[[asyncio.Protocol], Awaitable[object]]

SEND_BYTES_MAX = 1 << 20
"""Publishers wait while the transport holds more than this."""


class Link(asyncio.Protocol):
    """One connection: passes bytes and its end to the Connection that created it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.transport: asyncio.Transport | None = None
        self.error: BlipMQError | None = None
        self.hello: Request | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport has these methods but does not inherit from asyncio.Transport
        self.transport = cast(asyncio.Transport, transport)
        self.transport.set_write_buffer_limits(high=SEND_BYTES_MAX)
        self.hello = self.connection.link_made(self, self.transport)
        if (sock := transport.get_extra_info("socket")) is not None:  # an in-process connection has no socket
            keep_alive(sock)

    def data_received(self, data: bytes) -> None:
        self.connection.link_received(self, data)

    def pause_writing(self) -> None:
        self.connection.link_writable(self, False)

    def resume_writing(self) -> None:
        self.connection.link_writable(self, True)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        if self.transport is not None:
            self.transport.close()  # the TLS transport of Python 3.10 does not notice that the connection is lost
        self.connection.link_lost(self, self.error or exc)

    def abort(self) -> None:
        """Abort the connection. Does nothing after its end: the TLS transports of Python 3.11.2 would fail."""
        if self.transport is not None and not self.ended.done():
            self.transport.abort()


class Connection:
    """See the top of the file. For one event loop."""

    def __init__(
        self,
        address: Address,
        protocol: ClientProtocol,
        *,
        tls: ssl.SSLContext | None,
        reconnect: bool,
        timeout_s: float,
        on_state: StateCallback | None,
        random: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        opener: Opener | None,
        keepalive_s: float = 0.0,
    ) -> None:
        """`opener` connects a given asyncio protocol to a broker, instead of TCP to `address`."""
        self.address, self.protocol, self._tls = address, protocol, tls
        self.state = "new"
        self.can_write = False
        """Whether a publish may be sent now, without waiting."""
        self.reading_paused = False
        self.reconnects, self.timeout_s = reconnect, timeout_s
        self._on_state, self._sleep, self._opener = on_state, sleep, opener
        self._backoff = Backoff(random)
        self._link: Link | None = None
        self._progress = asyncio.Event()
        self._flush_scheduled = False
        self._task: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._error: BlipMQError | None = None
        self._keepalive_s, self._sent = keepalive_s, False
        self._owed = Owed()
        self._look: asyncio.TimerHandle | None = None
        protocol.keepalive_ms = int(keepalive_s * 1000)

    def __repr__(self) -> str:
        return (
            f"Connection({self.address}, {self.state}, can_write={self.can_write}, "
            f"reading_paused={self.reading_paused}, {self.protocol!r})"
        )

    # ---- connecting ----

    async def open(self, wait_s: float = 0.0) -> None:
        """Make the first connection. With `wait_s` 0, or if another attempt would fail the same way, raises the error
        at once."""
        try:
            await self._open_in_time(wait_s)
        except BaseException as error:
            self._finish(error if isinstance(error, BlipMQError) else None)
            raise

    async def _open_in_time(self, wait_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        clock, attempts = self._loop.time, 0
        end_s = clock() + wait_s
        while True:
            self._set_state("connecting", None)
            attempts += 1
            try:
                return await self._open_link(attempt_s(self.timeout_s, end_s - clock(), waits=wait_s > 0))
            except BlipMQError as error:
                if not wait_s or is_permanent(error):
                    raise
                left_s = end_s - clock()
                if left_s <= 0:
                    raise waited(error, self.address, wait_s, attempts) from error
                self._set_state("disconnected", error)
                await self._sleep(min(self._backoff.next_s(), left_s))
                if self.state == "closed":
                    raise

    async def close(self) -> None:
        """Send QUIT and close, at the latest after the client's timeout."""
        link = self._link
        if link is not None:
            self.protocol.quit()
            self.flush()
        self._finish(None)
        if link is not None and link.transport is not None:
            link.transport.close()
            try:
                await asyncio.wait_for(asyncio.shield(link.ended), self.timeout_s)
            except asyncio.TimeoutError:
                link.abort()

    @property
    def is_up(self) -> bool:
        return self._link is not None

    def check_loop(self) -> None:
        """Raise UsageError unless the caller runs in this client's event loop: in another loop messages would be lost."""
        try:
            if asyncio.get_running_loop() is self._loop:
                return
        except RuntimeError:  # no event loop runs in this thread
            pass
        if self._loop is None:
            raise UsageError("This client is not open: call `await client.open()`, or create it with blipmq.connect.")
        raise UsageError(
            "This client belongs to the event loop that opened it. From another thread use "
            "asyncio.run_coroutine_threadsafe, or a client of its own (blipmq.connect_blocking)."
        )

    async def _open_link(self, timeout_s: float) -> None:
        """Make one attempt: the first address of the host that connects is used; if no broker answers there, the others
        are tried."""
        clock = asyncio.get_running_loop().time
        deadline_s = clock() + timeout_s
        if self._opener is not None:
            return await self._use_link(Link(self), self._opener, deadline_s)
        candidates, tried = await look_up(self.address, timeout_s), Tried(self.address)
        while True:
            sock, candidate = await dial(candidates, deadline_s, tried)
            until_s = share_s(clock(), deadline_s, len(candidates))
            try:
                return await self._use_link(Link(self), self._opener_over(sock), until_s)
            except BlipMQError as error:
                if not another_may_do(error):
                    raise
                tried.add(candidate, error)
                if not candidates or clock() >= deadline_s:
                    raise tried.error() from error

    def _opener_over(self, sock: socket.socket) -> Opener:
        """Return an opener that makes a connected socket the transport of a link."""
        secure: dict[str, Any] = {}
        if self._tls is not None:  # the client's own timeout covers the handshake
            secure = {"ssl": self._tls, "server_hostname": self.address.host}
            secure["ssl_handshake_timeout"] = self.timeout_s + 1

        def connect(factory: Callable[[], asyncio.Protocol]) -> Awaitable[object]:
            return asyncio.get_running_loop().create_connection(factory, sock=sock, **secure)

        async def opened(link: asyncio.Protocol) -> None:
            if not self.address.path:
                await connect(lambda: link)
                return
            from blipmq.client.websocket_link import open_over  # imported here because most clients do not use it

            await open_over(link, self.address, connect)

        return opened

    async def _use_link(self, link: Link, opener: Opener, deadline_s: float) -> None:
        """Open the link and send HELLO over it. Both must end before `deadline_s`."""
        clock = asyncio.get_running_loop().time
        try:
            try:
                await asyncio.wait_for(opener(link), max(deadline_s - clock(), 0.01))
            except asyncio.TimeoutError:
                raise unreachable(self.address, TimeoutError()) from None
            except BlipMQError:
                raise
            except (OSError, ValueError) as error:  # ValueError: the host name cannot be in a certificate
                raise unreachable(self.address, error) from error
            assert link.hello is not None
            reply = await self.answer(link.hello, max(deadline_s - clock(), 0.01))
        except BaseException:
            self._link = None
            link.abort()
            raise
        self._backoff.reset()
        self._sent, self._owed = True, Owed()
        self._look_later(link, reply.keepalive_ms / 1000 or self._keepalive_s)
        self.can_write = True
        self._progress.set()
        self._set_state("connected", None)
        self.schedule_flush()

    async def _connect_again(self) -> None:
        while True:
            await self._sleep(self._backoff.next_s())
            self._set_state("connecting", None)
            try:
                return await self._open_link(self.timeout_s)
            except BlipMQError as error:
                if error.code in FINAL_CODES:
                    return self._finish(error)
                self._set_state("disconnected", error)

    def _set_state(self, state: str, error: BlipMQError | None) -> None:
        if state != self.state:
            log.write_state(self.address, self.state, state, error)
            self.state = state
            if self._on_state is not None:
                asyncio.get_running_loop().call_soon(self._on_state, state, error)

    def _finish(self, error: BlipMQError | None) -> None:
        """Close for good: no other connection is made."""
        self._error = error
        self._link = None
        self.can_write = False
        if self._look is not None:
            self._look.cancel()
        if self._task is not None and self._task is not asyncio.current_task():
            self._task.cancel()
        self._task = None
        self._set_state("closed", error)
        self.protocol.finish(error)
        self._progress.set()  # wake all waiters

    # ---- callbacks from links ----

    def link_made(self, link: Link, transport: asyncio.Transport) -> Request:
        """Send HELLO before any data of the peer is read."""
        self._link = link
        request = self.protocol.open()
        transport.write(self.protocol.take())
        return request

    def link_received(self, link: Link, data: bytes) -> None:
        if link is not self._link:
            return
        try:
            self.protocol.receive(data)
        except ProtocolError as error:
            link.error = error
            link.abort()
            return
        self._progress.set()
        self._pause_if_full()

    def link_writable(self, link: Link, writable: bool) -> None:
        if link is self._link and self.protocol.welcomed:
            self.can_write = writable
            if writable:
                self._progress.set()
                self.schedule_flush()

    def link_lost(self, link: Link, cause: BaseException | None) -> None:
        if link is not self._link or self.state == "closed":
            return
        was_welcomed = self.protocol.welcomed
        error = connection_ended(self.address, cause, self.protocol.farewell, welcomed=was_welcomed)
        self._link = None
        self.can_write = self.reading_paused = False
        self.protocol.lost(error)
        self._progress.set()
        if not was_welcomed:
            return  # _open_link waits for the answer to HELLO and gets this error
        if not self.reconnects or error.code in FINAL_CODES:
            self._finish(error)
        else:
            self._set_state("disconnected", error)
            self._task = asyncio.get_running_loop().create_task(self._connect_again())

    # ---- keep-alive ----

    def _look_later(self, link: Link, interval_s: float) -> None:
        if interval_s:
            self._look = asyncio.get_running_loop().call_later(interval_s / LOOKS, self._look_at, link, interval_s)

    def _look_at(self, link: Link, interval_s: float) -> None:
        """Send PING if nothing was sent in this interval, and check that the broker's machine still acknowledges data.
        A missing answer to PING proves nothing: the broker may delay this client (back-pressure)."""
        if link is not self._link or link.transport is None:
            return
        sock = link.transport.get_extra_info("socket")
        if sock is not None and self._owed.is_lost(sock, asyncio.get_running_loop().time(), interval_s):
            link.error = Disconnected(f"its machine has acknowledged no data for {interval_s:g} s")
            link.abort()
            return
        if not self._sent:
            self.protocol.say_something()
            self.schedule_flush()
        self._sent = False
        self._look_later(link, interval_s)

    # ---- sending and waiting ----

    def schedule_flush(self) -> None:
        if not self._flush_scheduled and self.protocol.out_bytes:
            self._flush_scheduled = True
            asyncio.get_running_loop().call_soon(self.flush)

    def flush(self) -> None:
        self._flush_scheduled = False
        if self._link is not None and self._link.transport is not None and self.protocol.out_bytes:
            self._sent = True
            self._link.transport.write(self.protocol.take())

    def deadline_s(self) -> float:
        """The deadline of an operation that starts now, in seconds on the loop's clock."""
        return asyncio.get_running_loop().time() + self.timeout_s

    async def until(self, ready: Callable[[], bool], deadline_s: float) -> bool:
        """Wait until `ready()`, checking again after each change. Returns False at the deadline. Raises the error that
        closed the client, if it is closed."""
        loop = asyncio.get_running_loop()
        while not ready():
            if self.state == "closed":
                raise self._error or Disconnected("The client is closed. Open a new one with blipmq.connect.")
            self._progress.clear()
            try:
                await asyncio.wait_for(self._progress.wait(), deadline_s - loop.time())
            except asyncio.TimeoutError:
                return ready()
        return True

    async def wait_writable(self, deadline_s: float | None = None) -> None:
        """Wait until there is a connection with room for output. Raises the error that closed the client, or TimedOut
        or Disconnected at the deadline."""
        if not await self.until(lambda: self.can_write, self.deadline_s() if deadline_s is None else deadline_s):
            raise self.too_late()

    def too_late(self) -> BlipMQError:
        """Return the error for output that could not be sent in time."""
        if self._link is not None:
            return TimedOut(
                f"The broker at {self.address} has taken nothing for {self.timeout_s} s. "
                "It is overloaded or holds publishers back because a queue is full; try again, or slower."
            )
        return Disconnected(
            f"No connection to {self.address} for {self.timeout_s} s. "
            "The broker is down or the network is; the client keeps trying."
        )

    async def answer(self, request: Request, timeout_s: float | None = None) -> Reply:
        """Wait for the answer for `timeout_s`, by default the client's timeout. Raises Refused, Disconnected or
        TimedOut."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        if not request.done:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            earlier = request.on_done

            def done() -> None:
                if earlier is not None:
                    earlier()
                if not future.done():
                    future.set_result(None)

            request.on_done = done
            self.schedule_flush()
            self.resume_if_room()
            try:
                await asyncio.wait_for(future, timeout_s)
            except asyncio.TimeoutError:
                raise unanswered(
                    request.what,
                    self.address,
                    timeout_s,
                    self._link is not None,
                    "this client's subscriptions are not being read",
                ) from None
            finally:
                if not request.done:
                    self.protocol.forget(request)
        if request.error is not None:
            raise request.error
        return request.reply

    # ---- back-pressure ----

    def _pause_if_full(self) -> None:
        if self.reading_paused or self._link is None or self._link.transport is None:
            return
        full = [inbox for inbox in self.protocol.all_inboxes() if inbox.is_full()]
        if full and (times := self._patience()):
            for inbox in full:
                inbox.trim(times)
            full = [inbox for inbox in full if inbox.blocks and inbox.is_full(OVERRUN if self.protocol.waiting else 1)]
        if full:
            self.reading_paused = True
            self._link.transport.pause_reading()

    def _patience(self) -> int:
        """How many times its limits a full queue may hold, because somebody waits for input behind its messages: the
        reader of an empty queue, or a request. 0: nobody waits, so reading can be paused without harm."""
        if any(inbox.readers and not inbox.messages for inbox in self.protocol.all_inboxes()):
            return 1
        return OVERRUN if self.protocol.waiting else 0

    def resume_if_room(self) -> None:
        """Resume reading if every queue is at most half full, or if somebody waits and no queue that blocks prevents
        it."""
        if self.reading_paused and self._link is not None and self._link.transport is not None:
            inboxes = self.protocol.all_inboxes()
            if times := self._patience():
                for inbox in inboxes:
                    inbox.trim(times)
                inboxes = [inbox for inbox in inboxes if inbox.blocks]
            if self.protocol.waiting:
                room = not any(inbox.is_full(OVERRUN) for inbox in inboxes)
            else:
                room = all(inbox.is_half_empty() for inbox in inboxes)
            if room and not self._link.transport.is_closing():
                self.reading_paused = False
                self._link.transport.resume_reading()
