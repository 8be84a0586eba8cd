"""A core stepped by hand, for tests: no sockets unless requested, no threads, no sleeping; time is an argument.

Invariant: the lists of a `Client` contain only output of the core, decoded by `blipmq.wire.frames`. The bench does the
duties of the Python side (admit, subscribe, unsubscribe, answer INFO) in the simplest way; `answering = False` leaves
requests in `asked` instead.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from enum import IntEnum
from types import TracebackType
from typing import Any, TypeVar

from blipmq.config.settings import KEYS
from blipmq.native.config import CoreConfig
from blipmq.native.core import Core
from blipmq.native.events import (
    Accepting,
    AdminAsked,
    Attached,
    Closed,
    Consumed,
    Event,
    Hello,
    Info,
    Listed,
    Out,
    Secured,
    SessionEnded,
    SessionExpired,
    SessionOver,
    SessionRow,
    SessionsListed,
    Stats,
    Stopped,
    Sub,
    Subscriber,
    Unsub,
    Unsubscribed,
)
from blipmq.wire import frames as wire

Overflow = IntEnum("Overflow", [choice.upper() for choice in KEYS["queues.overflow_policy"].choices], start=0)
"""What a full queue does, as the core's `overflow_policy` says it."""
SessionOverflow = IntEnum("SessionOverflow", [c.upper() for c in KEYS["qos1.session_overflow"].choices], start=0)
STEPS_MAX = 100_000
WINDOW_BYTES = 256 << 10
"""What the core hands out for one in-memory connection before some of it is sent."""
FILLER = 999
REPLY_BYTES = 69
"""A Reply without text or payload on the wire; payloads are padded to four bytes."""
STALL_FRAMES = [13_105] * 19 + [WINDOW_BYTES - 19 * 13_105]
"""Frames that fill the window without a gap: each leaves as one event."""


class Client:
    """One connection as seen by its peer. `reading = False`: output is kept in `untaken` and not confirmed to the
    core."""

    def __init__(self, bench: Bench, conn: int) -> None:
        self.bench = bench
        self.conn = conn
        self.reading = True
        self.untaken = 0
        self.received_bytes = 0
        self.consumed = 0
        self.messages: list[wire.Message] = []
        self.replies: list[wire.Reply] = []
        self.subacks: list[wire.SubAck] = []
        self.closed: Closed | None = None
        self._reader = wire.FrameReader()

    def __repr__(self) -> str:
        state = "open" if self.closed is None else self.closed.reason.name
        return f"<Client conn={self.conn:#x} {state} messages={len(self.messages)} untaken={self.untaken}>"

    def send_bytes(self, data: bytes) -> None:
        self.bench.core.input(self.conn, data)

    def send(self, action: int, topic: str = "", payload: bytes | None = None, **fields: Any) -> None:
        self.send_bytes(wire.encode_command(action, topic, payload, **fields))

    def publish(self, topic: str, payload: bytes = b"", ttl_ms: int = 0) -> None:
        self.send(wire.PUB, topic, payload, ttl_ms=ttl_ms)

    def subscribe(self, *filters: str) -> Client:
        for filter in filters:
            self.send(wire.SUB, filter)
            self.bench.settle()
        return self

    def hello(self) -> Client:
        self.send(wire.HELLO, seq=1, client_id="client", protocol=wire.PROTOCOL)
        self.bench.settle()
        assert self.replies.pop().code == 0
        return self

    def stall(self, room_bytes: int = 0) -> None:
        """Stop reading at the end of a frame, with at most `room_bytes` of the credit of this client left."""
        self.reading = False
        assert self.untaken == 0
        sizes = STALL_FRAMES[room_bytes // STALL_FRAMES[0] :]
        for size in sizes:
            self.bench.core.reply(self.conn, 0, FILLER, "", payload=bytes(size - REPLY_BYTES))
        self.bench.settle()
        assert self.untaken == sum(sizes)
        self.replies = [reply for reply in self.replies if reply.code != FILLER]

    def read(self) -> None:
        """Read all available output and continue to read."""
        self.reading = True
        if self.untaken:
            self.bench.core.credit(self.conn, self.untaken)
            self.untaken = 0

    def take(self, size: int) -> None:
        """Read `size` bytes of the available output, without further reading."""
        assert size <= self.untaken
        self.untaken -= size
        self.bench.core.credit(self.conn, size)

    def arrived(self, data: bytes) -> None:
        self.received_bytes += len(data)
        for frame in self._reader.feed(data):
            if isinstance(frame, wire.Message):
                self.messages.append(frame)
            elif isinstance(frame, wire.Reply):
                self.replies.append(frame)
            else:
                self.subacks.append(frame)
        if self._reader.broken is not None:
            raise self._reader.broken

    @property
    def payloads(self) -> list[bytes]:
        return [message.payload for message in self.messages]


class SocketClient(Client):
    """The same over a socket. It reads only on request."""

    def __init__(self, bench: Bench, ours: socket.socket) -> None:
        super().__init__(bench, 0)
        ours.setblocking(False)
        self.socket = ours
        self.reading = False
        self.eof = False

    def send_bytes(self, data: bytes) -> None:
        """Send everything and run core turns meanwhile."""
        view = memoryview(data)
        for _ in range(STEPS_MAX):
            if not view:
                return
            try:
                view = view[self.socket.send(view) :]
            except BlockingIOError:
                self.bench.turn()
        raise AssertionError("the core does not read")

    def offer(self, data: bytes) -> int:
        """Send as much as possible without waiting."""
        try:
            return self.socket.send(data)
        except BlockingIOError:
            return 0

    def receive(self, size: int = 1 << 16) -> int:
        """Read at most `size` available bytes; returns the number."""
        try:
            data = self.socket.recv(size)
        except BlockingIOError:
            return 0
        except ConnectionResetError:
            data = b""
        self.eof = not data
        self.arrived(data)
        return len(data)

    def drain(self) -> None:
        """Read until no more data arrives."""
        for _ in range(STEPS_MAX):
            self.bench.settle()
            if not self.receive():
                return
        raise AssertionError("the core does not come to rest")


ClientType = TypeVar("ClientType", bound=SocketClient)


class Bench:
    """A stepped core and the clients attached to it. Keyword arguments are fields of CoreConfig."""

    def __init__(self, **limits: Any) -> None:
        self.config = CoreConfig(**limits)
        self.core = Core(self.config)
        self.now_ms = 1_000
        self.wall_offset_ms = 1_700_000_000_000
        self.answering = True
        self.present = True  # False: the Python side takes no events
        self.address: Any = None
        self.asked: list[Event] = []
        self.closed: list[Closed] = []
        self.stopped: Stopped | None = None
        self.accepting: list[Accepting] = []
        self.expired: list[SessionExpired] = []
        self.over: list[SessionOver] = []
        self.unsubscribed: list[Unsubscribed] = []
        self.secured: list[Secured] = []
        self._seq = 0
        self._clients: dict[int, Client] = {}
        self._sockets: list[SocketClient] = []
        self._answers: dict[int, Any] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.core.free()
        for client in self._sockets:
            client.socket.close()

    def __repr__(self) -> str:
        return f"<Bench at {self.now_ms} ms clients={len(self._clients)} asked={len(self.asked)}>"

    # -- clients

    def attach(
        self, hello: bool = False, trusted: bool = False, address: str = "", port: int = 4711, passed_ms: int = 0
    ) -> Client:
        """An in-memory client, with a peer `address` if given. Its `conn` is 0 if the core had no slot for it."""
        self._seq += 1
        self.core.attach(self._seq, trusted, (address, port) if address else None, passed_ms)
        event = self._await(self._seq)
        client = Client(self, event.conn)
        if event.conn:
            self._clients[event.conn] = client
        return client.hello() if hello else client

    def adopt(
        self, buffer_bytes: int = 4096, kind: Callable[[Bench, socket.socket], Any] = SocketClient, **flags: bool
    ) -> Any:
        """A client of that kind over a socketpair with the smallest buffers that the system allows. `flags`: of
        `Core.adopt`."""
        return self._over(self.adopted(buffer_bytes, **flags), kind)

    def adopted(self, buffer_bytes: int = 4096, secure: bool = False, **flags: bool) -> socket.socket:
        """The other end of a socketpair that the core serves."""
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        self.core.adopt(theirs.detach(), secure, **flags)
        return ours

    def listen(self, secure: bool = False, **flags: bool) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.address = listener.getsockname()
        self.core.listen(listener.detach(), secure, **flags)
        self.turn()

    def connect(self, kind: Callable[[Bench, socket.socket], Any] = SocketClient) -> Any:
        """A client of that kind over TCP, after `listen`. The kernel sends each of its writes at once: the core takes as many
        turns as it has input, and would not wait for a delayed segment."""
        ours = socket.create_connection(self.address)
        ours.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return self._over(ours, kind)

    def _over(self, ours: socket.socket, kind: Callable[[Bench, socket.socket], Any]) -> Any:
        return self.use(kind(self, ours))

    def use(self, client: ClientType) -> ClientType:
        """Close its socket with the bench."""
        self._sockets.append(client)
        self.settle()
        return client

    def close(self, client: Client) -> None:
        self.core.close(client.conn)
        self.settle()

    # -- time

    def turn(self, advance_ms: int = 0) -> bool:
        """One turn, then its events. True if there was work."""
        self.now_ms += advance_ms
        waiting = not self.core.retry()
        self.core.wait(0)
        work = self.core.turn(self.now_ms, self.now_ms + self.wall_offset_ms)
        return self.drain_events() or work or waiting

    def settle(self, advance_ms: int = 0) -> None:
        """Run turns until no work is left at this time."""
        work = self.turn(advance_ms)
        for _ in range(STEPS_MAX):
            if not work and self.core.next_timer_ms() != 0:
                return
            work = self.turn()
        raise AssertionError("the core does not come to rest")

    def drain_events(self) -> bool:
        any_ = False
        self.core.retry()
        if not self.present:
            return False
        for event in self.core.events():
            any_ = True
            self._handle(event)
        return not self.core.retry() or any_

    # -- queries

    def stats(self) -> dict[str, int]:
        self._seq += 1
        self.core.stats(self._seq)
        counters: dict[str, int] = self._await(self._seq).counters
        return counters

    def subscribers(self) -> dict[int, Subscriber]:
        rows: dict[int, Subscriber] = {}
        slot, pages = 0, 0
        while pages == 0 or slot:
            self._seq += 1
            self.core.list(self._seq, slot)
            page = self._await(self._seq)
            for row in page.subscribers:
                assert row.conn not in rows
                rows[row.conn] = row
            slot, pages = page.next_slot, pages + 1
        return rows

    def session_pages(self, **wanted: Any) -> list[SessionsListed]:
        """A walk over all consumers, page by page."""
        self._seq += 1
        seq, pages = self._seq, list[SessionsListed]()
        while not pages or pages[-1].more:
            self.core.sessions(seq, begin=not pages, **wanted)
            pages.append(self._await(seq))
        return pages

    def session_rows(self, **wanted: Any) -> list[SessionRow]:
        return [row for page in self.session_pages(**wanted) for row in page.rows]

    # -- the Python side

    def _await(self, seq: int) -> Any:
        for _ in range(STEPS_MAX):
            self.turn()
            if seq in self._answers:
                return self._answers.pop(seq)
        raise AssertionError("no answer from the core")

    def _handle(self, event: Event) -> None:
        if isinstance(event, Out):
            client = self._clients[event.conn]
            client.arrived(event.data)
            if client.reading:
                self.core.credit(event.conn, len(event.data))
            else:
                client.untaken += len(event.data)
        elif isinstance(event, Consumed):
            if event.conn in self._clients:
                self._clients[event.conn].consumed += event.size
        elif isinstance(event, Closed):
            self.closed.append(event)
            if event.conn in self._clients:
                self._clients.pop(event.conn).closed = event
        elif isinstance(event, Attached | Stats | Listed | SessionsListed | SessionEnded):
            self._answers[event.seq] = event
        elif isinstance(event, SessionExpired):
            self.expired.append(event)
        elif isinstance(event, SessionOver):
            self.over.append(event)
        elif isinstance(event, Stopped):
            self.stopped = event
        elif isinstance(event, Unsubscribed):
            self.unsubscribed.append(event)
        elif isinstance(event, Secured):
            self.secured.append(event)
        elif isinstance(event, Accepting):
            self.accepting.append(event)
        elif self.answering:
            self.answer(event)
        else:
            self.asked.append(event)

    def answer(self, event: Event) -> None:
        if isinstance(event, Hello):
            self.core.admit(event.conn, event.seq, "welcome")
        elif isinstance(event, Sub):
            self.core.subscribe(event.conn, event.seq, event.filter)
        elif isinstance(event, Unsub):
            self.core.unsubscribe(event.conn, event.seq, event.filter, group=event.group)
        elif isinstance(event, Info | AdminAsked):
            self.core.reply(event.conn, event.seq, 0, "", payload=b"{}")
        else:
            raise AssertionError(f"nobody asked for {event}")


def conserved(stats: dict[str, int]) -> bool:
    """The sum that holds at the end of every turn."""
    gone = stats["delivered"] + stats["dropped_ttl"] + stats["dropped_queue_full"] + stats["dropped_disconnect"]
    gone += stats["dropped_session_log"]
    return stats["enqueued"] == gone + stats["dead_lettered"] + stats["queued_messages"]
