"""The C core: typed commands in, typed events out.

Invariant: one thread pushes commands and takes events. In threaded mode the core's own I/O thread does everything else,
in stepped mode the caller's `wait` and `turn` do. Commands reach the core in the order of the calls, including those
that had to wait.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeAlias

from blipmq._native import ffi, lib
from blipmq.base.peer import peer_bytes
from blipmq.native.clock import Clock
from blipmq.native.config import CoreConfig, WalConfig
from blipmq.native.errors import CoreBusy, CoreError, check
from blipmq.native.events import CloseReason, Event, Stopped, read
from blipmq.native.wal import WalReport, wal_error

Buffer: TypeAlias = "bytes | bytearray | memoryview"

# Limits of input bytes that wait in Python for room in the command ring. Answers to events do not count: the core waits
# for one per connection, so max_connections bounds them.
BACKLOG_COMMANDS_MAX = 4096
BACKLOG_BYTES_MAX = 8 * 1024 * 1024


class _Command(NamedTuple):
    """A command that found the ring full and waits."""

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

    `on_backlog` is called when a command found the ring full and now waits in Python. The owner must then call `retry`
    within a few milliseconds, because an idle core raises no event that would trigger it.
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

    # -- start and stop

    def open_wal(self, directory: str, config: WalConfig) -> WalReport:
        """Open the WAL in `directory`, created if it does not exist, and recover it. Call it before `start`. It blocks
        until the recovery is done; other threads run meanwhile. Raises `LogLocked`, or `LogUnusable` with the cause."""
        report = ffi.new("bq_wal_report_t *")
        code = lib.bq_wal_open(self._bq, os.fsencode(directory), ffi.new("bq_wal_config_t *", config._asdict()), report)
        if code < 0:
            raise wal_error(code, directory, report.error)
        return WalReport(*(getattr(report, name) for name in WalReport._fields))

    def wal_progress(self) -> float:
        """The share of the WAL that has been read, 0 to 1, while `open_wal` runs in another thread."""
        return int(lib.bq_wal_progress(self._bq)) / 1000

    def start(self) -> None:
        """Start the core's own thread."""
        check(lib.bq_start(self._bq), "the core's thread did not start")
        self._threaded = True

    def join(self) -> None:
        """Wait for the thread, which ends after `Stopped`."""
        if self._threaded:
            check(lib.bq_join(self._bq), "the core's thread did not end")
            self._threaded = False

    def free(self) -> None:
        """Free all memory. In threaded mode only after `join`; further calls are harmless."""
        if self._bq != ffi.NULL:
            assert not self._threaded, "join the core before freeing it"
            lib.bq_free(self._bq)
            self._bq = ffi.NULL
            self._backlog.clear()

    def wait(self, timeout_ms: int) -> int:
        """Stepped mode: collect readiness for at most `timeout_ms` milliseconds; -1: until the next timer."""
        return check(lib.bq_wait(self._bq, timeout_ms), "waiting for sockets failed")

    def turn(self, mono_ms: int, wall_ms: int) -> bool:
        """Stepped mode: run one turn at the given times (milliseconds; monotonic, and since 1970). Returns True if
        there was work."""
        return check(lib.bq_turn(self._bq, mono_ms, wall_ms), "a turn of the core failed") > 0

    def next_timer_ms(self) -> int:
        """Stepped mode: milliseconds to the next timer, -1 for none."""
        return int(lib.bq_next_timer_ms(self._bq))

    @property
    def poll_fd(self) -> int:
        """Stepped mode: a descriptor that is readable when `wait` would not block; -1 if there is none."""
        return int(lib.bq_poll_fd(self._bq))

    # -- events

    def events(self, limit: int = 0) -> Iterator[Event]:
        """Yield the events, oldest first, at most `limit` (0: until none is left).

        Only a drained ring arms `event_fd`: drain it once before waiting, and come back after stopping at `limit`. The
        caller should call `retry` for waiting commands afterwards, because the core may have made room.
        """
        event, taken = self._event, 0
        while not limit or taken < limit:
            if self._bq == ffi.NULL or lib.bq_event(self._bq, event) <= 0:
                break
            taken += 1
            happened = read(event)
            yield happened
            if isinstance(happened, Stopped):
                break  # it is the last event, and another thread may already free the core

    # -- commands

    def listen(self, fd: int, secure: bool = False, *, websocket: bool = False, mqtt: bool = False) -> None:
        """Accept on this listening socket. The core owns it from now on. `secure`: its clients speak TLS, with the context
        that the method `secure` set before. `websocket`: they begin with a WebSocket handshake. `mqtt`: they speak MQTT."""
        self._push(lib.BQ_CMD_LISTEN, value=fd, flags=_layers(secure, websocket, mqtt))

    def origins(self, origins: Iterable[str]) -> None:
        """Set the origins of pages that may open a WebSocket; `*`: any."""
        texts = [origin.encode() for origin in origins]
        self._push(lib.BQ_CMD_ORIGINS, data=b"".join(len(text).to_bytes(2, "little") + text for text in texts))

    def unlisten(self) -> None:
        """Stop accepting: close every listener."""
        self._push(lib.BQ_CMD_UNLISTEN)

    def adopt(self, fd: int, secure: bool = False, *, websocket: bool = False, mqtt: bool = False) -> None:
        """Serve this connected socket. The core owns it from now on. The other arguments: as in `listen`."""
        self._push(lib.BQ_CMD_ADOPT, value=fd, flags=_layers(secure, websocket, mqtt))

    def secure(self, table: int, context: int, tell: bool = False) -> None:
        """Use this context for the TLS connections accepted from now on. `table` and `context` are addresses: of the
        functions of a TLS module, and of a context of that module, which the core owns from now on. `tell`: report every
        handshake, not only those with a certificate."""
        check(lib.bq_secure_fits(table), "the TLS module is of another version than the core")
        self._push(lib.BQ_CMD_SECURE, value=table, seq=context, flags=lib.BQ_SECURE_TELL if tell else 0)

    def attach(
        self,
        seq: int,
        trusted: bool = False,
        peer: tuple[str, int] | None = None,
        passed_ms: int = 0,
        *,
        mqtt: bool = False,
    ) -> None:
        """Open an in-memory connection. `Attached` with this seq returns its handle, or 0 if there is no room.

        `peer`: the client's numeric address and port; the connection counts as pending for this address. `passed_ms`:
        the part of hello_timeout_ms that has already passed. `mqtt`: the client speaks MQTT.
        """
        flags = (lib.BQ_CONN_TRUSTED if trusted else 0) | (lib.BQ_CONN_MQTT if mqtt else 0)
        self._push(lib.BQ_CMD_ATTACH, seq=seq, flags=flags, value=passed_ms, data=peer_bytes(peer) if peer else b"")

    def input(self, conn: int, data: Buffer) -> None:
        """Pass on bytes that an in-memory connection received; `Consumed` reports when they are consumed. Raises `CoreBusy`."""
        self._push(lib.BQ_CMD_INPUT, conn=conn, data=data, counted=True)

    def end_input(self, conn: int) -> None:
        """End the input of an in-memory connection; the core closes it after it has served the earlier input."""
        self._push(lib.BQ_CMD_INPUT, conn=conn, flags=lib.BQ_INPUT_END)

    def credit(self, conn: int, size: int) -> None:
        """Acknowledge `size` bytes of `Out`."""
        self._push(lib.BQ_CMD_CREDIT, conn=conn, value=size)

    def admit(self, conn: int, seq: int, text: str, acl: int = 0) -> None:
        """Admit a client that sent HELLO; it gets Reply code 0 with `text`. `acl`: the number of its publish ACL,
        set before with `set_acl`; 0: everything."""
        self._push(lib.BQ_CMD_ADMIT, conn=conn, seq=seq, text=text.encode(), value=acl)

    def mqtt_admit(
        self,
        conn: int,
        identity: str,
        acl: int = 0,
        *,
        assigned: str = "",
        keepalive_s: int | None = None,
        session_expiry_s: int = 0,
        session_present: bool = False,
    ) -> None:
        """Admit an MQTT client; it gets CONNACK. `identity`: the owner of its key and its client identifier, under which
        the core knows its session. `assigned`: that client identifier, if the client sent none. `keepalive_s`: what an
        MQTT 5 client is told to use; None: what it asked for. `session_expiry_s`: what is used, and told to an MQTT 5
        client that asked for something else."""
        flags = (0 if keepalive_s is None else lib.BQ_MQTT_KEEPALIVE) | (lib.BQ_MQTT_PRESENT if session_present else 0)
        assert identity.endswith(assigned)
        admission = _MQTT_ADMISSION.pack(session_expiry_s, keepalive_s or 0, len(assigned.encode()), flags)
        self._push(lib.BQ_CMD_ADMIT, conn=conn, text=identity.encode(), value=acl, data=admission)

    def mqtt_subscribe(self, conn: int, packet_id: int, rows: Iterable[tuple[str, int, int]]) -> None:
        """Answer a SUBSCRIBE, or a piece of a large one. `rows`: each filter of the event with its options and the QoS that
        is granted, or a reason code from 0x80 on. `Unsubscribed` reports a filter that the core refuses."""
        data = bytearray()
        for filter_, options, granted in rows:
            name = filter_.encode()
            data += bytes((options, granted)) + len(name).to_bytes(2, "little") + name
        self._push(lib.BQ_CMD_MQTT_SUBSCRIBE, conn=conn, seq=packet_id, data=data)

    def mqtt_refuse(self, conn: int, reason: int, text: str, *, discard: bool = False) -> None:
        """Close an MQTT connection: with CONNACK if it is not admitted yet, otherwise with DISCONNECT. `reason`: a reason
        code of MQTT 5 from 0x80 on. `discard`: its subscriptions end and its queued messages are dropped first."""
        self.reply(conn, 0, reason, text, close=True, discard=discard)

    def publish(self, topic: str, payload: Buffer) -> None:
        """Publish a message of the broker itself with QoS 0. It is dropped if a subscriber's queue is full and the policy is
        block."""
        self._push(lib.BQ_CMD_PUBLISH, text=topic.encode(), data=payload)

    def set_acl(self, number: int, filters: bytes | None) -> None:
        """Set the publish ACL `number` (from 1), also for the connections already admitted with it. `filters`: each
        with its size in front (u16, little-endian), or None for everything."""
        flags = lib.BQ_ACL_ALL if filters is None else 0
        self._push(lib.BQ_CMD_ACL, value=number, flags=flags, data=filters or b"")

    def end_acl(self, number: int) -> None:
        """Remove the ACL `number`: connections admitted with it may publish nothing from now on. The number may be used
        again."""
        self._push(lib.BQ_CMD_ACL, value=number, flags=lib.BQ_ACL_END)

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
        keyed: bool = False,
        session: bool = False,
    ) -> None:
        """Route `filter` to this connection, or to its queue group. SubAck is sent after the route is set, and after a
        new durable subscription is on disk. A refused one (429, 503) leaves no trace; `Unsubscribed` reports it. With
        `session` the filter is one of the client's session, which may have any number; QoS 0 or 1."""
        flags = (lib.BQ_SUB_QOS1 if qos else 0) | (lib.BQ_SUB_DURABLE if durable else 0)
        flags |= lib.BQ_SUB_KEYED if keyed else 0  # the limits per key apply
        flags |= lib.BQ_SUB_SESSION if session else 0
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

    def unsubscribe(
        self,
        conn: int,
        seq: int,
        filter: str,
        client_id: str = "",
        group: str = "",
        *,
        session: bool = False,
        durable: bool = False,
    ) -> None:
        """End this connection's subscriptions to `filter` and the durable ones of `client_id`; with a group, its part
        in the group. A client that sent HELLO gets 0 (once it is on disk), 404, or 503 if the WAL cannot record it now.
        With `session` remove the filter from the client's session, which is `durable` or not."""
        name = client_id.encode()
        flags = (lib.BQ_SUB_SESSION if session else 0) | (lib.BQ_SUB_DURABLE if durable else 0)
        self._push(
            lib.BQ_CMD_UNSUBSCRIBE,
            conn=conn,
            seq=seq,
            flags=flags,
            value=len(name),
            text=filter.encode(),
            data=name + group.encode(),
        )

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
        `discard`: the connection's subscriptions end and its queued messages are dropped first."""
        flags = (lib.BQ_REPLY_CLOSE if close else 0) | (lib.BQ_REPLY_UNASKED if unasked else 0)
        flags |= lib.BQ_REPLY_DISCARD if discard else 0
        self._push(
            lib.BQ_CMD_REPLY, conn=conn, seq=seq, code=code, flags=flags, text=text.encode(), data=payload, value=id
        )

    def close(self, conn: int, reason: CloseReason = CloseReason.BROKER) -> None:
        """End a connection at once."""
        self._push(lib.BQ_CMD_CLOSE, conn=conn, code=reason)

    def stats(self, seq: int) -> None:
        """Request a `Stats` event with this seq."""
        self._push(lib.BQ_CMD_STATS, seq=seq)

    def list(self, seq: int, first_slot: int = 0) -> None:
        """Request a `Listed` page with this seq."""
        self._push(lib.BQ_CMD_LIST, seq=seq, value=first_slot)

    def sessions(
        self,
        seq: int,
        begin: bool,
        lag_min: int = 0,
        find: str = "",
        conn: int = 0,
        owner: str = "",
        exact: bool = False,
    ) -> None:
        """Request a `SessionsListed` page with this seq. `begin` starts a walk over all sessions, else the current one
        continues. `find`: a part of the filter, client_id or group. `conn`: only sessions of the key of this
        connection, whose client_ids begin with `owner`. `exact`: `find` is the filter, `owner` the client_id ("": any)."""
        self._push(
            lib.BQ_CMD_CONSUMERS,
            seq=seq,
            flags=(lib.BQ_CONSUMERS_BEGIN if begin else 0) | (lib.BQ_CONSUMERS_EXACT if exact else 0),
            value=lag_min,
            conn=conn,
            text=find.encode(),
            data=owner.encode(),
        )

    def end_session(self, seq: int, id: int, client_id: str = "") -> None:
        """End the durable session with this id, or remove `client_id` from a queue group. `SessionEnded` with this seq
        reports when that is on disk."""
        self._push(lib.BQ_CMD_CONSUMER_END, seq=seq, value=id, data=client_id.encode())

    def limits(self, config: CoreConfig) -> None:
        """Apply the reloadable fields of `config`."""
        struct_bytes = bytes(ffi.buffer(ffi.new("bq_config_t *", config._asdict())))
        self._push(lib.BQ_CMD_LIMITS, data=struct_bytes)

    def clock(self, clock: Clock) -> None:
        """Tell the core the state of the clocks: before `start`, and after each change."""
        struct_bytes = bytes(ffi.buffer(ffi.new("bq_clock_t *", clock._asdict())))
        self._push(lib.BQ_CMD_CLOCK, data=struct_bytes)

    def stop(self, flush_ms: int) -> None:
        """Flush for at most `flush_ms`, close everything, then report `Stopped`."""
        self._push(lib.BQ_CMD_STOP, value=flush_ms)

    @property
    def has_backlog(self) -> bool:
        """Whether commands wait for room in the ring."""
        return bool(self._backlog)

    def retry(self) -> bool:
        """Push the waiting commands, in order. Returns True if none waits any more.

        A command that the core can never accept raises `CoreError` once and is dropped, so that it does not block those
        behind it.
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
            self._defer(command)  # behind the waiting commands, to keep the order
        elif not self._try(command):
            self._defer(command)

    def _try(self, command: _Command) -> bool:
        """Write one command into the ring. Returns False if there is no room."""
        assert self._bq != ffi.NULL, "a command after free"
        c = self._command
        c.type, c.code, c.flags, c.conn, c.seq, c.value = command[:6]
        text, data = command.text, command.data
        code = lib.bq_command(self._bq, c, text, len(text), data, len(data))
        if code == lib.BQ_E_AGAIN:
            return False
        check(code, "the core did not take a command")
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


def _layers(secure: bool, websocket: bool, mqtt: bool) -> int:
    flags = lib.BQ_CONN_SECURE if secure else 0
    return flags | (lib.BQ_CONN_WEBSOCKET if websocket else 0) | (lib.BQ_CONN_MQTT if mqtt else 0)


_MQTT_ADMISSION = struct.Struct("=IHHI")
assert _MQTT_ADMISSION.size == ffi.sizeof("bq_mqtt_admission_t")
