"""The blocking connection of a client to one broker, across reconnects. It uses a socket and a selector, no threads, no
asyncio.

Invariant: the socket is used only inside a call. A call that sends also reads, so that two peers that send to each
other cannot block each other. A call that waits for one subscription reads for all of them.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from blipmq.base.backoff import Backoff
from blipmq.base.tcp_keepalive import LOOKS, LOST_MS, Owed
from blipmq.client import log
from blipmq.client.address import Address
from blipmq.client.address_order import Tried, another_may_do, share_s
from blipmq.client.blocking_happy_eyeballs import dial, look_up, shake_hands
from blipmq.client.call_lock import CallLock
from blipmq.client.in_flight import Request
from blipmq.client.inbox import OVERRUN, Inbox
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

_RECEIVE_BYTES = 256 << 10


class BlockingConnection:
    """See the top of the file. The caller holds `call_lock`."""

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
        sleep: Callable[[float], None],
        clock: Callable[[], float],
    ) -> None:
        self.address, self.protocol, self._tls = address, protocol, tls
        self.state = "new"
        self.call_lock = CallLock()
        self.reconnects, self.timeout_s, self.clock = reconnect, timeout_s, clock
        self._on_state, self._sleep = on_state, sleep
        self._backoff = Backoff(random)
        self._selector = selectors.DefaultSelector()
        self._socket: socket.socket | None = None
        self._error: BlipMQError | None = None
        self._owed = Owed()

    def __repr__(self) -> str:
        return f"BlockingConnection({self.address}, {self.state}, {self.protocol!r})"

    @property
    def is_up(self) -> bool:
        return self._socket is not None

    def fileno(self) -> int:
        """The socket's descriptor, or -1 during an outage."""
        return -1 if self._socket is None else self._socket.fileno()

    # ---- connecting ----

    def open(self, wait_s: float = 0.0) -> None:
        """Make the first connection. With `wait_s` 0, or if another attempt would fail the same way, raises the error
        at once."""
        try:
            self._open_in_time(wait_s)
        except BaseException as error:
            self.finish(error if isinstance(error, BlipMQError) else None)
            raise

    def _open_in_time(self, wait_s: float) -> None:
        end_s, attempts = self.clock() + wait_s, 0
        while True:
            attempts += 1
            try:
                return self._open_socket(attempt_s(self.timeout_s, end_s - self.clock(), waits=wait_s > 0))
            except BlipMQError as error:
                if not wait_s or is_permanent(error):
                    raise
                left_s = end_s - self.clock()
                if left_s <= 0:
                    raise waited(error, self.address, wait_s, attempts) from error
                self._set_state("disconnected", error)
                self._sleep(min(self._backoff.next_s(), left_s))

    def _open_socket(self, timeout_s: float) -> None:
        """Make one attempt: the first address of the host that connects is used; if no broker answers there, the others
        are tried."""
        self._set_state("connecting", None)
        deadline_s = self.clock() + max(timeout_s, 0.01)
        candidates, tried = look_up(self.address), Tried(self.address)
        while True:
            sock, candidate = dial(candidates, deadline_s, self.clock, tried)
            until_s = share_s(self.clock(), deadline_s, len(candidates))
            try:
                return self._use_socket(sock, until_s)
            except BlipMQError as error:
                if not another_may_do(error):
                    raise
                tried.add(candidate, error)
                if not candidates or self.clock() >= deadline_s:
                    raise tried.error() from error

    def _use_socket(self, sock: socket.socket, deadline_s: float) -> None:
        """Use a connected socket for this client and send HELLO over it. Both must end before `deadline_s`."""
        if self._tls is not None:
            sock = shake_hands(self._tls, sock, self.address, deadline_s, self.clock)
        if self.address.path:
            from blipmq.client import websocket_socket  # imported here because most clients do not use it

            sock = websocket_socket.shake_hands(sock, self.address, deadline_s, self.clock)
        self._socket = sock
        self._selector.register(sock, selectors.EVENT_READ)
        try:
            keep_alive(sock)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.answer(self.protocol.open(), max(deadline_s - self.clock(), 0.01))
        except BaseException:
            self._drop_socket()
            raise
        self._backoff.reset()
        self._owed = Owed()
        self._set_state("connected", None)
        self.send()

    def _connect_again(self, deadline_s: float | None) -> None:
        """Wait for the back-off delay, then make one attempt."""
        delay_s = self._backoff.next_s()
        if deadline_s is not None:
            delay_s = min(delay_s, max(deadline_s - self.clock(), 0.0))
        self._sleep(delay_s)
        try:
            self._open_socket(self.timeout_s)
        except BlipMQError as error:
            if error.code in FINAL_CODES:
                self.finish(error)
                raise
            self._set_state("disconnected", error)

    def _set_state(self, state: str, error: BlipMQError | None) -> None:
        if state != self.state:
            log.write_state(self.address, self.state, state, error)
            self.state = state
            if self._on_state is not None:
                self._on_state(state, error)

    def _drop_socket(self) -> None:
        if self._socket is not None:
            self._selector.unregister(self._socket)
            self._socket.close()
            self._socket = None

    def _lost(self, cause: BaseException | None) -> None:
        """The connection is lost. Requests fail now; the next call that needs a connection makes the next attempt."""
        was_welcomed = self.protocol.welcomed
        error = connection_ended(self.address, cause, self.protocol.farewell, welcomed=was_welcomed)
        self._drop_socket()
        self.protocol.lost(error)
        if was_welcomed and (not self.reconnects or error.code in FINAL_CODES):
            self.finish(error)
        elif was_welcomed:
            self._set_state("disconnected", error)

    def finish(self, error: BlipMQError | None) -> None:
        """Close for good: no other connection is made."""
        self._error = error
        self._drop_socket()
        self._selector.close()
        self.protocol.finish(error)
        self._set_state("closed", error)

    # ---- waiting ----

    def wait(self, ready: Callable[[], bool], timeout_s: float | None, reader: Inbox | None = None) -> None:
        """Process incoming data until `ready()` or the timeout. Other queues over their limits drop QoS 0 messages: over
        their limits while a `reader` waits, else over OVERRUN times their limits. Raises UsageError if a queue that
        blocks is full and nothing reads it."""
        deadline_s = None if timeout_s is None else self.clock() + timeout_s
        while not ready():
            if deadline_s is not None and self.clock() >= deadline_s:
                return
            for inbox in self.protocol.all_inboxes():
                if inbox is not reader:
                    inbox.trim(OVERRUN if reader is None else 1)
                if inbox is not reader and inbox.blocks and inbox.is_full(OVERRUN):
                    raise UsageError(
                        f"The subscription to {inbox.filter} holds {len(inbox.messages)} unread messages, "
                        "so nothing behind them can be read. Read it, close it, or subscribe with another overflow."
                    )
            self.step(deadline_s)

    def step(self, deadline_s: float | None) -> None:
        """Wait once, for bytes to read or for room to send, and process them."""
        if self._socket is None:
            if self.state == "closed":
                raise self._error or Disconnected("The client is closed. Open a new one with blipmq.connect_blocking.")
            return self._connect_again(deadline_s)
        timeout_s = None if deadline_s is None else max(deadline_s - self.clock(), 0.0)
        look_s = LOST_MS / 1000 / LOOKS
        if self._selector.select(look_s if timeout_s is None else min(timeout_s, look_s)):
            self._receive()
        elif self._owed.is_lost(self._socket, self.clock(), LOST_MS / 1000):
            self._lost(Disconnected(f"its machine has acknowledged no data for {LOST_MS // 1000} s"))

    def _receive(self) -> None:
        assert self._socket is not None
        try:
            data = self._socket.recv(_RECEIVE_BYTES)
        except OSError as error:
            return None if _must_wait(error) else self._lost(error)
        except ProtocolError as error:  # of WebSocket
            return self._lost(error)
        if not data:
            return self._lost(None)
        try:
            self.protocol.receive(data)
        except ProtocolError as error:
            self._lost(error)

    def send(self) -> None:
        """Send all output. Incoming data is read meanwhile while the queues allow it."""
        if self._socket is None or not self.protocol.out_bytes:
            return
        data = memoryview(self.protocol.take())
        while data and self._socket is not None:
            data = data[self._send_some(data) :]

    def _send_some(self, data: memoryview) -> int:
        """Send as much as the socket accepts, and wait for room if it accepts nothing. Returns the number of bytes
        sent."""
        assert self._socket is not None
        try:
            return self._socket.send(data)
        except OSError as error:
            if _must_wait(error):
                self._wait_for_room()
            else:
                self._receive_the_rest()
                self._lost(error)
        return 0

    def _receive_the_rest(self) -> None:
        """Read the remaining data: the broker may have sent the reason before it closed."""
        with contextlib.suppress(OSError, ProtocolError):
            while self._socket is not None and (data := self._socket.recv(_RECEIVE_BYTES)):
                self.protocol.receive(data)

    def _wait_for_room(self) -> None:
        assert self._socket is not None
        events = selectors.EVENT_WRITE
        for inbox in self.protocol.all_inboxes():
            inbox.trim(OVERRUN)
        if not any(inbox.blocks and inbox.is_full(OVERRUN) for inbox in self.protocol.all_inboxes()):
            events |= selectors.EVENT_READ
        self._selector.modify(self._socket, events)
        try:
            ready = self._selector.select(self.timeout_s)
        finally:
            self._selector.modify(self._socket, selectors.EVENT_READ)
        if not ready:
            error = TimedOut(
                f"The broker at {self.address} has taken nothing for {self.timeout_s} s. "
                "It is overloaded or holds publishers back because a queue is full; try again, or slower."
            )
            self._lost(error)  # a frame may have been sent in part, so this connection cannot be used again
            raise error
        if ready[0][1] & selectors.EVENT_READ:
            self._receive()

    def wait_connected(self) -> None:
        if self._socket is not None:
            return
        self.wait(lambda: self._socket is not None, self.timeout_s)
        if self._socket is None:
            raise Disconnected(
                f"No connection to {self.address} for {self.timeout_s} s. "
                "The broker is down or the network is; the client keeps trying with each call."
            )

    def answer(self, request: Request, timeout_s: float | None = None) -> Reply:
        """Wait for the answer for `timeout_s`, by default the client's timeout. Raises Refused, Disconnected or
        TimedOut."""
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        try:
            if not request.done:
                self.send()
            if not request.done:
                self.wait(lambda: request.done, timeout_s)
        finally:
            if not request.done:
                self.protocol.forget(request)
        if not request.done:
            raise unanswered(
                request.what, self.address, timeout_s, self._socket is not None, "it is not a BlipMQ broker"
            )
        if request.error is not None:
            raise request.error
        return request.reply


def _must_wait(error: OSError) -> bool:
    """Whether the socket or TLS would block. The exceptions of `ssl` are compared by name so that `ssl` need not be
    loaded."""
    return isinstance(error, (BlockingIOError, InterruptedError)) or type(error).__name__ in (
        "SSLWantReadError",
        "SSLWantWriteError",
    )
