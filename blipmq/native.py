"""The C core as Python sees it: a `Core` that takes typed commands and yields typed events.

Invariant: this is the only module that touches `ffi`. Nothing that points into C memory leaves it: bytes are copied out
of an event before the next one is asked for, and a negative code from C leaves as a `CoreError`. One thread pushes
commands and takes events; in threaded mode the core's own I/O thread does everything else, in stepped mode the caller's
`wait` and `turn` do.
"""

from __future__ import annotations

import errno
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from blipmq._native import ffi, lib
from blipmq.errors import BlipMQError, LogLocked, LogUnusable
from blipmq.peer import peer_bytes, peer_name

Buffer: TypeAlias = "bytes | bytearray | memoryview"
CData = Any  # what cffi hands out; only named here

# Fed bytes that may wait in Python for room in the command ring. Answers to events are not counted: the core waits for
# one per connection, so max_connections bounds them.
BACKLOG_COMMANDS_MAX = 4096
BACKLOG_BYTES_MAX = 8 * 1024 * 1024


class CoreError(BlipMQError):
    """A call into the core failed. `code` is the negative BQ_E code."""

    def __init__(self, code: int, what: str, detail: str = "") -> None:
        text = _ERROR_TEXTS.get(code, f"error {code}")
        super().__init__(f"{what}: {text}" + (f" ({detail})" if detail else ""), code=code)


class CoreBusy(CoreError):
    """The command ring and the bounded backlog behind it are full: feed again once the core has caught up."""


_ERROR_TEXTS: dict[int, str] = {
    lib.BQ_E_AGAIN: "the core is busy and too many commands wait already; try again later",
    lib.BQ_E_MEMORY: "out of memory",
    lib.BQ_E_ARGUMENT: "a value is outside what the core allows",
    lib.BQ_E_SYSTEM: "a system call failed",
    lib.BQ_E_TOO_LARGE: "larger than the core accepts",
}
# Those of the log (native/log.h), which open_log may return besides.
LOG_LOCKED, LOG_VERSION, LOG_REFUSED = -22, -23, -25


class Overflow(IntEnum):
    """What a full subscriber queue does with the next message."""

    DROP_OLDEST = lib.BQ_DROP_OLDEST
    DROP_NEW = lib.BQ_DROP_NEW
    BLOCK = lib.BQ_BLOCK


class CloseReason(IntEnum):
    """Why a connection ended."""

    EOF = lib.BQ_CLOSE_EOF
    QUIT = lib.BQ_CLOSE_QUIT
    RESET = lib.BQ_CLOSE_RESET
    FRAME = lib.BQ_CLOSE_FRAME
    TOO_LARGE = lib.BQ_CLOSE_TOO_LARGE
    UNAUTH = lib.BQ_CLOSE_UNAUTH
    REFUSED = lib.BQ_CLOSE_REFUSED
    BROKER = lib.BQ_CLOSE_BROKER
    SHUTDOWN = lib.BQ_CLOSE_SHUTDOWN
    MEMORY = lib.BQ_CLOSE_MEMORY
    CROWDED = lib.BQ_CLOSE_CROWDED


class CoreConfig(NamedTuple):
    """The fields of `bq_config_t`, by the same names and in the same units. A test keeps the two in step."""

    memory_bytes: int = 0
    subscriber_bytes: int = 64 << 20
    default_ttl_ms: int = 0
    max_ttl_ms: int = 24 * 3600 * 1000
    subscriber_messages: int = 262_144
    overflow_policy: int = Overflow.DROP_OLDEST
    max_connections: int = 10_000
    max_frame_bytes: int = (1 << 20) + 1024
    max_frame_bytes_unauth: int = 1024
    require_hello: int = 0
    hello_timeout_ms: int = 5000
    max_batch: int = 65_536
    max_batch_bytes: int = 1 << 20
    flush_interval_ms: int = 0
    tick_ms: int = 10
    segment_bytes: int = 256 << 10
    route_cache_entries: int = 4096
    pool_small_count: int = 1024
    pool_medium_count: int = 256
    pool_large_count: int = 32
    tcp_nodelay: int = 1
    send_buffer_bytes: int = 0
    recv_buffer_bytes: int = 0
    ring_bytes: int = 4 << 20
    flush_subscribers: int = 1024
    expire_batch: int = 65_536
    lazy_expiry: int = 0
    warm_entries: int = 0
    warm_segments: int = 0
    ack_timeout_ms: int = 30_000
    max_in_flight: int = 256
    max_sessions: int = 10_000
    max_deliveries: int = 16
    run_messages: int = 0
    io_cpu: int = -1
    max_pending: int = 1024
    max_pending_per_address: int = 64
    accept_rate: int = 1000
    accept_burst: int = 1000
    max_topic_levels: int = 64


class LogConfig(NamedTuple):
    """The fields of `bq_log_config_t`, by the same names and in the same units. A test keeps the two in step."""

    max_bytes: int = 1 << 30
    reserve_bytes: int = 64 << 20
    segment_bytes: int = 16 << 20
    flush_interval_ms: int = 0
    batch_bytes: int = 4 << 20
    block_bytes: int = 0
    no_sync: int = 0
    reserved: int = 0


class LogReport(NamedTuple):
    """What opening the log found: `bq_log_report_t`. Zero stands for none; LSNs count the log's records."""

    records: int
    bytes: int
    segments: int
    torn_bytes: int
    lost_first_lsn: int
    lost_last_lsn: int
    lost_ranges: int
    first_lsn: int
    next_lsn: int
    checkpoint_lsn: int
    sessions: int
    next_message_id: int
    checkpoints_bad: int
    clean: int
    error: int
    reserved: int


class LogState(IntEnum):
    """`log_state` of the counters."""

    NONE = 0
    OK = 1
    FULL = 2
    FAILED = 3


# ---- events ---------------------------------------------------------------------------------------------------------


class Hello(NamedTuple):
    """A client introduced itself. Answered by `admit`, `reply` or `close`; until then its input stands still."""

    conn: int
    seq: int
    protocol: int
    client_id: str
    api_key: bytes
    peer: str
    trusted: bool = False  # of this process: let in without a key

    def __repr__(self) -> str:  # without the key, wherever it is printed
        return f"Hello(conn={self.conn}, seq={self.seq}, client_id={self.client_id!r}, peer={self.peer!r})"


class Sub(NamedTuple):
    """A client asks for `filter`, which the core has checked. Answered by `subscribe`, `reply` or `close`."""

    conn: int
    seq: int
    filter: str
    group: str
    qos: int
    durable: bool
    plain: bool
    peer: str
    trusted: bool = False


class Unsub(NamedTuple):
    """A client gives `filter` up. Answered by `unsubscribe`, `reply` or `close`."""

    conn: int
    seq: int
    filter: str
    plain: bool
    peer: str


class Info(NamedTuple):
    """A client asks how the broker is. Answered by `reply` or `close`."""

    conn: int
    seq: int
    asked: bytes
    peer: str


class Closed(NamedTuple):
    """A connection is gone; its handle is never valid again."""

    conn: int
    reason: CloseReason
    detail: str
    peer: str


class Attached(NamedTuple):
    """The fed connection that `attach(seq)` asked for."""

    conn: int
    seq: int


class Out(NamedTuple):
    """Bytes for the far end of a fed connection. Answered by `taken` once they have left."""

    conn: int
    data: bytes


class Fed(NamedTuple):
    """So many bytes of what was fed have been consumed."""

    conn: int
    size: int


class Stats(NamedTuple):
    """`bq_stats_t` by its field names."""

    seq: int
    counters: dict[str, int]


class Subscriber(NamedTuple):
    """One connection that subscribes, and its queue: `bq_subscriber_t`, in its order."""

    conn: int
    enqueued: int
    delivered: int
    dropped_ttl: int
    dropped_queue_full: int
    queued_messages: int
    queued_bytes: int
    subscriptions: int
    flags: int
    peer_address: bytes
    peer_port: int

    @property
    def peer(self) -> str:
        """Who it is, as people write it; "" for a fed connection."""
        return peer_name(self.peer_address, self.peer_port)

    @property
    def blocked(self) -> bool:
        """Whether its socket takes no more at the moment."""
        return bool(self.flags & 1)


class Listed(NamedTuple):
    """One page of subscribers. `next_slot` is what to ask for next, 0 at the end."""

    seq: int
    next_slot: int
    subscribers: list[Subscriber]


class Accepting(NamedTuple):
    """Accepting has paused (`errno` tells why) or resumed."""

    paused: bool
    errno: int


class Stopped(NamedTuple):
    """The core has stopped; so many messages could not be flushed in the time given."""

    unflushed: int


Event: TypeAlias = "Hello | Sub | Unsub | Info | Closed | Attached | Out | Fed | Stats | Listed | Accepting | Stopped"


def _text(event: CData) -> str:
    # The core lets nothing through that is not UTF-8, except in a detail it cut short: never fail on one.
    return bytes(ffi.buffer(event.text, event.text_size)).decode("utf-8", "replace") if event.text_size else ""


def _data(event: CData) -> bytes:
    return bytes(ffi.buffer(event.data, event.data_size)) if event.data_size else b""


def _peer(event: CData) -> str:
    return peer_name(bytes(ffi.buffer(event.peer)), event.peer_port)


def _hello(e: CData) -> Event:
    return Hello(e.conn, e.seq, e.value, _text(e), _data(e), _peer(e), bool(e.flags & lib.BQ_EV_TRUSTED))


def _sub(e: CData) -> Event:
    durable, plain = bool(e.flags & lib.BQ_EV_DURABLE), bool(e.flags & lib.BQ_EV_PLAIN)
    trusted = bool(e.flags & lib.BQ_EV_TRUSTED)
    return Sub(e.conn, e.seq, _text(e), _data(e).decode("utf-8", "replace"), e.value, durable, plain, _peer(e), trusted)


def _unsub(e: CData) -> Event:
    return Unsub(e.conn, e.seq, _text(e), bool(e.flags & lib.BQ_EV_PLAIN), _peer(e))


def _info(e: CData) -> Event:
    return Info(e.conn, e.seq, _data(e), _peer(e))


def _closed(e: CData) -> Event:
    return Closed(e.conn, CloseReason(e.code), _text(e), _peer(e))


def _attached(e: CData) -> Event:
    return Attached(e.conn, e.seq)


def _out(e: CData) -> Event:
    return Out(e.conn, _data(e))


def _fed(e: CData) -> Event:
    return Fed(e.conn, e.value)


def _stats(e: CData) -> Event:
    return Stats(e.seq, dict(zip(STATS_FIELDS, _STATS_LAYOUT.unpack(_data(e)), strict=True)))


def _list(e: CData) -> Event:
    return Listed(e.seq, e.value, [Subscriber._make(row) for row in _SUBSCRIBER_LAYOUT.iter_unpack(_data(e))])


def _accepting(e: CData) -> Event:
    return Accepting(e.code == 1, e.value)


def _stopped(e: CData) -> Event:
    return Stopped(e.value)


STATS_FIELDS: tuple[str, ...] = tuple(name for name, _ in ffi.typeof("bq_stats_t").fields)  # each one uint64
_STATS_LAYOUT = struct.Struct(f"={len(STATS_FIELDS)}Q")
# Unpacked rather than read field by field: a scrape goes through every subscriber there is.
_SUBSCRIBER_LAYOUT = struct.Struct("=7Q2I16sH6x")
assert _SUBSCRIBER_LAYOUT.size == ffi.sizeof("bq_subscriber_t")

_READERS: dict[int, Callable[[CData], Event]] = {
    lib.BQ_EV_HELLO: _hello,
    lib.BQ_EV_SUB: _sub,
    lib.BQ_EV_UNSUB: _unsub,
    lib.BQ_EV_INFO: _info,
    lib.BQ_EV_CLOSED: _closed,
    lib.BQ_EV_ATTACHED: _attached,
    lib.BQ_EV_OUT: _out,
    lib.BQ_EV_FED: _fed,
    lib.BQ_EV_STATS: _stats,
    lib.BQ_EV_LIST: _list,
    lib.BQ_EV_ACCEPT: _accepting,
    lib.BQ_EV_STOPPED: _stopped,
}


# ---- the core -------------------------------------------------------------------------------------------------------


class _Command(NamedTuple):
    """A command that found the ring full and waits for room."""

    type: int
    code: int
    flags: int
    conn: int
    seq: int
    value: int
    text: bytes
    data: bytes
    counted: bool


class Core:
    """One C core. Start it with `start` (its own thread) or step it with `wait` and `turn`; end it with `free`.

    `on_backlog` is called when a command found the ring full and now waits in Python: the owner arranges for `retry`
    to be called within a few milliseconds, because a core with nothing to report raises no event by itself.
    """

    def __init__(
        self, config: CoreConfig, first_message_id: int = 1, on_backlog: Callable[[], None] | None = None
    ) -> None:
        self._event = ffi.new("bq_event_t *")
        self._command = ffi.new("bq_command_t *")
        self._backlog: deque[_Command] = deque()
        self._backlog_count = 0
        self._backlog_bytes = 0
        self._on_backlog = on_backlog
        self._threaded = False
        self._bq = lib.bq_new(ffi.new("bq_config_t *", config._asdict()), first_message_id)
        if self._bq == ffi.NULL:
            raise CoreError(lib.BQ_E_ARGUMENT, "the core did not start", f"no memory, or out of range: {config}")
        self.event_fd: int = lib.bq_event_fd(self._bq)

    def __repr__(self) -> str:
        mode = "freed" if self._bq == ffi.NULL else "threaded" if self._threaded else "stepped"
        return f"<Core {mode} backlog={len(self._backlog)} backlog_bytes={self._backlog_bytes}>"

    # -- life

    def open_log(self, directory: str, config: LogConfig) -> LogReport:
        """Open the log in `directory`, made if it is not there, and recover it: before `start`, and as long as that
        takes (other threads run meanwhile). Raises `LogLocked`, or `LogUnusable` with the cause."""
        report = ffi.new("bq_log_report_t *")
        code = lib.bq_log_open(self._bq, os.fsencode(directory), ffi.new("bq_log_config_t *", config._asdict()), report)
        if code < 0:
            raise _log_error(code, directory, report.error)
        return LogReport(*(getattr(report, name) for name in LogReport._fields))

    def log_progress(self) -> float:
        """How much of the log has been read, 0 to 1, while `open_log` runs in another thread."""
        return int(lib.bq_log_progress(self._bq)) / 1000

    def start(self) -> None:
        """Run in a thread of its own from here on."""
        self._check(lib.bq_start(self._bq), "the core's thread did not start")
        self._threaded = True

    def join(self) -> None:
        """Wait for the thread, which ends after `Stopped`."""
        if self._threaded:
            self._check(lib.bq_join(self._bq), "the core's thread did not end")
            self._threaded = False

    def free(self) -> None:
        """Give everything back. In threaded mode only after `join`; further calls are harmless."""
        if self._bq != ffi.NULL:
            assert not self._threaded, "join the core before freeing it"
            lib.bq_free(self._bq)
            self._bq = ffi.NULL
            self._backlog.clear()

    def wait(self, timeout_ms: int) -> int:
        """Stepped: collect readiness for at most `timeout_ms`; -1 waits as long as timers allow."""
        return self._check(lib.bq_wait(self._bq, timeout_ms), "waiting for sockets failed")

    def turn(self, mono_ms: int, wall_ms: int) -> bool:
        """Stepped: one turn at the given times (milliseconds; monotonic, and since 1970). True if there was work."""
        return self._check(lib.bq_turn(self._bq, mono_ms, wall_ms), "a turn of the core failed") > 0

    def next_timer_ms(self) -> int:
        """Stepped: milliseconds to the next timer, -1 for none."""
        return int(lib.bq_next_timer_ms(self._bq))

    @property
    def poll_fd(self) -> int:
        """Stepped: a descriptor that is readable when `wait` would not block; -1 where there is none."""
        return int(lib.bq_poll_fd(self._bq))

    # -- events

    def events(self, limit: int = 0) -> Iterator[Event]:
        """Yield what has happened, oldest first, at most `limit` events (0: until none is left).

        Only a drained ring arms `event_fd`: drain once before waiting for it, and come back after stopping at `limit`.
        Commands that wait are the caller's to `retry` afterwards: the core may have made room.
        """
        event, taken = self._event, 0
        while not limit or taken < limit:
            if self._bq == ffi.NULL or lib.bq_event(self._bq, event) <= 0:
                break
            taken += 1
            yield _READERS[event.type](event)

    # -- commands

    def listen(self, fd: int) -> None:
        """Accept on this listening socket, which belongs to the core from now on."""
        self._push(lib.BQ_CMD_LISTEN, value=fd)

    def unlisten(self) -> None:
        """Stop accepting: close every listener."""
        self._push(lib.BQ_CMD_UNLISTEN)

    def adopt(self, fd: int) -> None:
        """Serve this connected socket, which belongs to the core from now on."""
        self._push(lib.BQ_CMD_ADOPT, value=fd)

    def attach(self, seq: int, trusted: bool = False, peer: tuple[str, int] | None = None, passed_ms: int = 0) -> None:
        """Open a fed connection; `Attached` with this seq brings its handle, or 0 when there is no room for it.

        `peer`: the numeric address and the port of whoever it is for; it counts among the pending of its address. `passed_ms`:
        how much of hello_timeout_ms it has used up before it came here.
        """
        flags = lib.BQ_CONN_TRUSTED if trusted else 0
        self._push(lib.BQ_CMD_ATTACH, seq=seq, flags=flags, value=passed_ms, data=peer_bytes(peer) if peer else b"")

    def feed(self, conn: int, data: Buffer) -> None:
        """Hand over bytes a fed connection received; `Fed` tells when they are consumed. Raises `CoreBusy`."""
        self._push(lib.BQ_CMD_FEED, conn=conn, data=data, counted=True)

    def feed_end(self, conn: int) -> None:
        """A fed connection will receive no more; it is closed once what came before has been served."""
        self._push(lib.BQ_CMD_FEED, conn=conn, flags=lib.BQ_FEED_END)

    def taken(self, conn: int, size: int) -> None:
        """So many bytes of `Out` have left."""
        self._push(lib.BQ_CMD_TAKEN, conn=conn, value=size)

    def admit(self, conn: int, seq: int, text: str, rights: int = 0) -> None:
        """Let a client that said HELLO go on; it gets Reply code 0 with `text`. `rights`: the number of what its key may
        publish to, given before with `rights`; 0: everything."""
        self._push(lib.BQ_CMD_ADMIT, conn=conn, seq=seq, text=text.encode(), value=rights)

    def rights(self, number: int, filters: bytes | None) -> None:
        """Say, or change for all who have been admitted with it, what `number` (from 1) may publish to: filters, each with
        its size in front (u16, little-endian), or None for everything."""
        flags = lib.BQ_RIGHTS_ALL if filters is None else 0
        self._push(lib.BQ_CMD_RIGHTS, value=number, flags=flags, data=filters or b"")

    def end_rights(self, number: int) -> None:
        """From now on `number` allows nothing to those who have been admitted with it, and may be given anew."""
        self._push(lib.BQ_CMD_RIGHTS, value=number, flags=lib.BQ_RIGHTS_END)

    def subscribe(
        self,
        conn: int,
        seq: int,
        filter: str,
        *,
        qos: int = 0,
        durable: bool = False,
        client_id: str = "",
        group: str = "",
    ) -> None:
        """Route `filter` to this connection, or to its queue group. SubAck goes out after the route is set, and after a
        new durable subscription is on disk; without a log that takes more, QoS 1 is answered 503."""
        flags = (lib.BQ_SUB_QOS1 if qos else 0) | (lib.BQ_SUB_DURABLE if durable else 0)
        name = client_id.encode()
        self._push(
            lib.BQ_CMD_SUBSCRIBE,
            conn=conn,
            seq=seq,
            flags=flags,
            value=len(name),
            text=filter.encode(),
            data=name + group.encode(),
        )

    def unsubscribe(self, conn: int, seq: int, filter: str, client_id: str = "") -> None:
        """Take the route away, and end the durable subscription of `client_id`. Clients that said HELLO are answered 0
        (once it is on disk) or 404."""
        self._push(lib.BQ_CMD_UNSUBSCRIBE, conn=conn, seq=seq, text=filter.encode(), data=client_id.encode())

    def reply(
        self,
        conn: int,
        seq: int,
        code: int,
        text: str,
        payload: Buffer = b"",
        *,
        id: int = 0,
        close: bool = False,
        unasked: bool = False,
        discard: bool = False,
    ) -> None:
        """Send a Reply; with `close` the connection ends once it has been flushed. `unasked`: it answers no request.
        `discard`: its subscriptions end and what waits for it is dropped before."""
        flags = (lib.BQ_REPLY_CLOSE if close else 0) | (lib.BQ_REPLY_UNASKED if unasked else 0)
        flags |= lib.BQ_REPLY_DISCARD if discard else 0
        self._push(
            lib.BQ_CMD_REPLY, conn=conn, seq=seq, code=code, flags=flags, text=text.encode(), data=payload, value=id
        )

    def close(self, conn: int, reason: CloseReason = CloseReason.BROKER) -> None:
        """End a connection now."""
        self._push(lib.BQ_CMD_CLOSE, conn=conn, code=reason)

    def stats(self, seq: int) -> None:
        """Ask for a `Stats` event with this seq."""
        self._push(lib.BQ_CMD_STATS, seq=seq)

    def list(self, seq: int, first_slot: int = 0) -> None:
        """Ask for a `Listed` page with this seq."""
        self._push(lib.BQ_CMD_LIST, seq=seq, value=first_slot)

    def limits(self, config: CoreConfig) -> None:
        """Put the reloadable fields of `config` into effect."""
        struct_bytes = bytes(ffi.buffer(ffi.new("bq_config_t *", config._asdict())))
        self._push(lib.BQ_CMD_LIMITS, data=struct_bytes)

    def stop(self, flush_ms: int) -> None:
        """Flush for at most `flush_ms`, close everything, then report `Stopped`."""
        self._push(lib.BQ_CMD_STOP, value=flush_ms)

    @property
    def has_backlog(self) -> bool:
        """Whether commands wait for room in the ring."""
        return bool(self._backlog)

    def retry(self) -> bool:
        """Push what waits, in order. True if nothing waits any more.

        A command that can never be taken raises `CoreError` once, and is gone: those behind it must not wait for ever.
        """
        while self._backlog:
            try:
                taken = self._try(self._backlog[0])
            except CoreError:
                self._pop_backlog()
                raise
            if not taken:
                return False
            self._pop_backlog()
        return True

    def _pop_backlog(self) -> None:
        command = self._backlog.popleft()
        if command.counted:
            self._backlog_count -= 1
            self._backlog_bytes -= len(command.text) + len(command.data)

    def _push(
        self,
        type: int,
        *,
        conn: int = 0,
        seq: int = 0,
        value: int = 0,
        code: int = 0,
        flags: int = 0,
        text: bytes = b"",
        data: Buffer = b"",
        counted: bool = False,
    ) -> None:
        command = _Command(type, code, flags, conn, seq, value, text, bytes(data), counted)
        if self._backlog and not self.retry():
            self._defer(command)  # behind those that wait: order is kept
        elif not self._try(command):
            self._defer(command)

    def _try(self, command: _Command) -> bool:
        """Write one command into the ring; False if there is no room."""
        assert self._bq != ffi.NULL, "a command after free"
        c = self._command
        c.type, c.code, c.flags, c.conn, c.seq, c.value = command[:6]
        text, data = command.text, command.data
        code = lib.bq_command(self._bq, c, text, len(text), data, len(data))
        if code == lib.BQ_E_AGAIN:
            return False
        self._check(code, "the core did not take a command")
        return True

    def _defer(self, command: _Command) -> None:
        if command.counted:
            size = len(command.text) + len(command.data)
            if self._backlog_count >= BACKLOG_COMMANDS_MAX or self._backlog_bytes + size > BACKLOG_BYTES_MAX:
                raise CoreBusy(lib.BQ_E_AGAIN, "not taken")
            self._backlog_count += 1
            self._backlog_bytes += size
        self._backlog.append(command)
        if len(self._backlog) == 1 and self._on_backlog is not None:
            self._on_backlog()

    @staticmethod
    def _check(code: int, what: str) -> int:
        if code >= 0:
            return code
        detail = os.strerror(ffi.errno) if code == lib.BQ_E_SYSTEM else ""
        raise CoreError(code, what, detail)


def _log_error(code: int, directory: str, error: int) -> BlipMQError:
    if code == LOG_LOCKED:
        return LogLocked(
            f"another broker uses the log in {directory}. Stop that one, or give this one a wal.directory of its own."
        )
    if code == LOG_VERSION:
        return LogUnusable(
            f"the log in {directory} was written by a newer version of BlipMQ, and nothing in it was changed. "
            "Start that version, or give this one another wal.directory."
        )
    if code == LOG_REFUSED:
        return LogUnusable(
            f"the log in {directory} was not opened, and nothing in it was changed: its checkpoint or its durable "
            "subscriptions could not be restored. A newer version of BlipMQ may have written them: start that one. If memory "
            "is short, free some. `blipmq wal export` shows what there is."
        )
    if code != lib.BQ_E_SYSTEM:
        return CoreError(code, f"the log in {directory} cannot be opened")
    return log_denied(directory, error)


def log_denied(directory: str, error: int) -> LogUnusable:
    """The system does not let the log be opened: `error` is its errno."""
    text = f"the log in {directory} cannot be opened: {os.strerror(error) if error else 'a system call failed'}. "
    if error in (errno.EACCES, errno.EPERM, errno.EROFS):
        text += "Let the broker's user write there, give it another wal.directory, or set wal.enabled = false."
        return LogUnusable(text, exit_status=77)
    return LogUnusable(text + "Mend what is wrong there, or give the broker another wal.directory.")


# ---- the log without a broker ---------------------------------------------------------------------------------------


class WalMode(IntEnum):
    """What is done with a log that no broker runs on."""

    VERIFY = lib.BQ_WAL_VERIFY
    EXPORT = lib.BQ_WAL_EXPORT
    REPAIR = lib.BQ_WAL_REPAIR


class WalProgress(NamedTuple):
    """So much of the log has been read."""

    done_bytes: int
    total_bytes: int


class WalFinding(NamedTuple):
    """Something that is not as it should be: `name` in capitals, `text` what it means. LSNs are 0 if no records are gone."""

    name: str
    text: str
    segment: int
    offset: int
    bytes: int
    first_lsn: int
    last_lsn: int


class WalRecord(NamedTuple):
    """One record of an export; `type` is log.h's log_type, 0 for the checkpoint."""

    lsn: int
    type: int
    data: bytes


class WalSums(NamedTuple):
    """The end of a walk through the log."""

    records: int
    bytes: int
    segments: int
    first_lsn: int
    last_lsn: int
    torn_bytes: int
    lost_ranges: int
    lost_records: int
    checkpoint_lsn: int
    checkpoints_bad: int
    clean: int


WalItem: TypeAlias = "WalProgress | WalFinding | WalRecord | WalSums"


def walk_log(directory: str, mode: WalMode) -> Iterator[WalItem]:
    """Verify, export or repair the log in `directory`, item by item; the last one is `WalSums`. Verify and export change
    nothing. Raises `LogLocked` while a broker runs on it, and `LogUnusable`."""
    error = ffi.new("int *")
    wal = lib.bq_wal_open(os.fsencode(directory), mode, error)
    if wal == ffi.NULL:
        if error[0] == LOG_LOCKED:
            raise LogLocked(f"a broker runs on the log in {directory}. Stop it first, or look at a copy.")
        raise _log_error(error[0], directory, ffi.errno)
    try:
        item = ffi.new("bq_wal_item_t *")
        while (code := lib.bq_wal_step(wal, item)) == 1:
            yield _wal_item(item)
        if code < 0:
            raise _log_error(code, directory, ffi.errno)
    finally:
        lib.bq_wal_close(wal)


def _wal_item(item: CData) -> WalItem:
    if item.kind == lib.BQ_WAL_PROGRESS:
        return WalProgress(item.done_bytes, item.total_bytes)
    if item.kind == lib.BQ_WAL_FINDING:
        name, text = (ffi.string(field).decode() for field in (item.name, item.text))
        return WalFinding(name, text, item.segment, item.offset, item.bytes, item.first_lsn, item.last_lsn)
    if item.kind == lib.BQ_WAL_DONE:
        return WalSums(*(getattr(item, name) for name in WalSums._fields))
    data = bytes(ffi.buffer(item.data, item.data_size)) if item.data_size else b""
    return WalRecord(item.lsn, item.type, data)


# ---- pure functions -------------------------------------------------------------------------------------------------


class View(NamedTuple):
    """A ClientCommand as the core reads it."""

    action: int
    topic: bytes
    payload: bytes
    ttl_ms: int
    qos: int
    seq: int
    client_id: bytes
    api_key: bytes
    protocol: int
    durable: bool
    group: bytes


def decode(body: Buffer) -> View:
    """Verify and read one ClientCommand (without its length). Raises `CoreError` that says what is wrong with it."""
    raw = bytes(body)
    view = ffi.new("bq_view_t *")
    code = lib.bq_decode(raw, len(raw), view)
    if code < 0:
        raise CoreError(code, "bad frame", ffi.string(lib.bq_decode_error(code)).decode())

    # `raw` lives until here: the view points into it.
    def part(name: str) -> bytes:
        size = getattr(view, name + "_size")
        return bytes(ffi.buffer(getattr(view, name), size)) if size else b""

    return View(
        action=view.action,
        topic=part("topic"),
        payload=part("payload"),
        ttl_ms=view.ttl_ms,
        qos=view.qos,
        seq=view.seq,
        client_id=part("client_id"),
        api_key=part("api_key"),
        protocol=view.protocol,
        durable=bool(view.durable),
        group=part("group"),
    )


def topic_is_valid(topic: bytes) -> bool:
    """Whether `topic` can be published to."""
    return bool(lib.bq_topic_check(topic, len(topic)) == 0)


def filter_kind(filter: bytes) -> int:
    """0: literal, 1: dot dialect, 2: slash dialect, negative: not a filter."""
    return int(lib.bq_filter_check(filter, len(filter)))


def filter_matches(filter: bytes, topic: bytes) -> bool:
    """Whether `filter` covers `topic`. Raises `CoreError` for a bad filter."""
    code = lib.bq_filter_match(filter, len(filter), topic, len(topic))
    if code < 0:
        raise CoreError(lib.BQ_E_ARGUMENT, f"bad filter {filter!r}")
    return bool(code)


def encode_message(id: int, timestamp_ms: int, ttl_ms: int, topic: bytes, payload: bytes) -> bytes:
    """The frame a subscriber gets, length and type included, as the core writes it."""
    capacity = len(topic) + len(payload) + 256
    out = ffi.new("uint8_t[]", capacity)
    size = lib.bq_encode_message(out, capacity, id, timestamp_ms, ttl_ms, topic, len(topic), payload, len(payload))
    if size < 0:
        raise CoreError(size, "the message was not encoded")
    return bytes(ffi.buffer(out, size))


def crc32(data: bytes, crc: int = 0) -> int:
    """IEEE 802.3, as zlib's."""
    return int(lib.bq_crc32(crc, data, len(data)))
