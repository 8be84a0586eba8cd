"""The core's events: a named tuple for each kind, and how it is read from C memory.

Invariant: `read` copies everything; its result does not change when the next event is read.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

from blipmq._native import ffi, lib
from blipmq.base.peer import peer_name

CData = Any  # a cffi pointer; named here only for annotations


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
    SILENT = lib.BQ_CLOSE_SILENT
    VANISHED = lib.BQ_CLOSE_VANISHED


class Handshake(IntEnum):
    """How a TLS handshake ended."""

    DONE = lib.BQ_HANDSHAKE_DONE
    FAILED = lib.BQ_HANDSHAKE_FAILED
    LATE = lib.BQ_HANDSHAKE_LATE
    DISPLACED = lib.BQ_HANDSHAKE_DISPLACED
    REFUSED = lib.BQ_HANDSHAKE_REFUSED
    REFUSED_ADDRESS = lib.BQ_HANDSHAKE_REFUSED_ADDRESS


class Secured(NamedTuple):
    """A TLS handshake ended, or a record after it was invalid. `conn` is 0 for a connection that was not accepted."""

    conn: int
    result: Handshake
    peer: str
    certificate: str | None = (
        None  # DONE: the name in the client's certificate, "" if it has none; None: no certificate
    )
    version: str = ""  # DONE: of TLS
    reason: str = ""  # FAILED: the error of the TLS library
    detail: str = ""  # FAILED: why the client's certificate was refused
    limit_ms: int = 0  # LATE: the time that it had


class Hello(NamedTuple):
    """A client sent HELLO. Answered by `admit`, `reply` or `close`; until then the core does not read its input."""

    conn: int
    seq: int
    protocol: int
    client_id: str
    api_key: bytes
    peer: str
    trusted: bool = False  # of this process: admitted without a key

    def __repr__(self) -> str:  # never prints the API key
        return f"Hello(conn={self.conn}, seq={self.seq}, client_id={self.client_id!r}, peer={self.peer!r})"


class Sub(NamedTuple):
    """A client subscribes to `filter`, which the core has checked. Answered by `subscribe`, `reply` or `close`."""

    conn: int
    seq: int
    filter: str
    group: str
    qos: int
    durable: bool
    legacy: bool
    peer: str
    trusted: bool = False


class Unsub(NamedTuple):
    """A client unsubscribes from `filter`. Answered by `unsubscribe`, `reply` or `close`. `keep_durable`: durable
    subscriptions of the client stay."""

    conn: int
    seq: int
    filter: str
    group: str
    legacy: bool
    peer: str
    keep_durable: bool = False


class MqttConnect(NamedTuple):
    """An MQTT client sent CONNECT. Answered by `mqtt_admit` or `mqtt_refuse`; until then the core does not read its input.
    `level`: 3 (MQTT 3.1), 4 (3.1.1) or 5. `user_name`, `password`: None if it has none."""

    conn: int
    peer: str
    level: int
    client_id: str
    user_name: str | None
    password: bytes | None
    clean: bool
    keepalive_s: int
    session_expiry_s: int
    will_topic: str

    def __repr__(self) -> str:  # never prints the password
        return f"MqttConnect(conn={self.conn}, level={self.level}, client_id={self.client_id!r}, peer={self.peer!r})"


class MqttSubscribe(NamedTuple):
    """An MQTT client subscribes to filters, which the core has checked. Answered by `mqtt_subscribe` or `mqtt_refuse`.
    `identifier`: the subscription identifier, 0: none. `filters`: each with its options, as in the packet."""

    conn: int
    packet_id: int
    identifier: int
    filters: tuple[tuple[str, int], ...]


class Unsubscribed(NamedTuple):
    """A connection does not have this subscription: the core `refused` or ended it. Without a group, one that was not
    refused stands for all subscriptions to that filter."""

    conn: int
    filter: str
    group: str
    refused: bool


class Info(NamedTuple):
    """A client asks for the broker's state. Answered by `reply` or `close`."""

    conn: int
    seq: int
    asked: bytes
    peer: str


class AdminAsked(NamedTuple):
    """A client sends an operator's request. Answered by `reply` or `close`."""

    conn: int
    seq: int
    asked: bytes
    peer: str
    trusted: bool = False


class Closed(NamedTuple):
    """A connection ended; its handle is never valid again."""

    conn: int
    reason: CloseReason
    detail: str
    peer: str


class Attached(NamedTuple):
    """The in-memory connection that `attach(seq)` opened."""

    conn: int
    seq: int


class Out(NamedTuple):
    """Output of an in-memory connection. Acknowledged with `credit`."""

    conn: int
    data: bytes


class Consumed(NamedTuple):
    """The core has consumed `size` bytes of the input."""

    conn: int
    size: int


class Stats(NamedTuple):
    """`bq_stats_t` by its field names."""

    seq: int
    counters: dict[str, int]


class Subscriber(NamedTuple):
    """One connection with subscriptions, and its queue: the fields of `bq_subscriber_t`, in order."""

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
        """Its address as text; "" for an in-memory connection."""
        return peer_name(self.peer_address, self.peer_port)

    @property
    def blocked(self) -> bool:
        """Whether its socket accepts no more output now."""
        return bool(self.flags & 1)

    @property
    def websocket(self) -> bool:
        """Whether it is connected over WebSocket."""
        return bool(self.flags & 2)


class Listed(NamedTuple):
    """One page of subscribers. `next_slot`: where the next page starts, 0 at the end."""

    seq: int
    next_slot: int
    subscribers: list[Subscriber]


class SessionRow(NamedTuple):
    """A QoS 1 subscription or a queue group: the fields of `bq_consumer_row_t` in order, and its texts."""

    id: int
    conn: int
    lag_messages: int
    lag_bytes: int
    log_bytes: int
    oldest_ms: int | None
    last_seen_ms: int
    away_ms: int | None
    enqueued: int
    acked: int
    redelivered: int
    dropped_ttl: int
    dropped_queue_full: int
    dead_lettered: int
    over_quota: int
    members: int
    in_flight: int
    flags: int
    clients: int  # number of client_ids
    filter: str
    group: str
    client_ids: tuple[str, ...]  # the first few of them

    @property
    def durable(self) -> bool:
        return bool(self.flags & lib.BQ_CONSUMER_DURABLE)

    @property
    def qos(self) -> int:
        return int(bool(self.flags & lib.BQ_CONSUMER_QOS1))

    @property
    def unsure(self) -> bool:
        """Whether the lag is only an upper bound, because a restart lost the exact count."""
        return bool(self.flags & lib.BQ_CONSUMER_LAG_UNSURE)


class SessionsListed(NamedTuple):
    """One page of a walk over all sessions. `sums`: `bq_consumer_sums_t` by its field names, for the sessions visited
    so far."""

    seq: int
    more: bool
    sums: dict[str, int]
    rows: list[SessionRow]


class Outcome(IntEnum):
    """The outcome of a request, before a protocol maps it to its own number (native/: enum bq_outcome)."""

    DONE = lib.BQ_OUTCOME_DONE
    INVALID = lib.BQ_OUTCOME_INVALID
    NOT_FOUND = lib.BQ_OUTCOME_NOT_FOUND
    UNAVAILABLE = lib.BQ_OUTCOME_UNAVAILABLE


class SessionEnded(NamedTuple):
    """The result of `end_session`. DONE: it has ended, on disk; NOT_FOUND: no such id or client_id; INVALID: several
    such client_ids; UNAVAILABLE: the WAL did not accept it."""

    seq: int
    outcome: Outcome


class SessionExpired(NamedTuple):
    """A durable session expired: no client was connected to it for too long."""

    row: SessionRow


class SessionOver(NamedTuple):
    """A session exceeded its quota of the WAL. `messages`: their number since the last such event, from `first_id` to
    `last_id`."""

    messages: int
    first_id: int
    last_id: int
    dropped: bool  # False: they become dead letters
    row: SessionRow


class Accepting(NamedTuple):
    """Accepting has paused (`errno` is the cause) or resumed."""

    paused: bool
    errno: int


class Stopped(NamedTuple):
    """The core has stopped. `unflushed`: messages that could not be sent in time."""

    unflushed: int


Event: TypeAlias = (
    "Hello | Sub | Unsub | MqttConnect | MqttSubscribe | Unsubscribed | Info | AdminAsked | Closed | Attached | Out | Consumed"
    " | Stats | Listed | SessionsListed | SessionEnded | SessionExpired | SessionOver | Accepting | Stopped | Secured"
)


def _text(event: CData) -> str:
    # The core passes on only UTF-8, except in a detail that it truncated: decoding must not fail there.
    return bytes(ffi.buffer(event.text, event.text_size)).decode("utf-8", "replace") if event.text_size else ""


def _data(event: CData) -> bytes:
    return bytes(ffi.buffer(event.data, event.data_size)) if event.data_size else b""


def _peer(event: CData) -> str:
    return peer_name(bytes(ffi.buffer(event.peer)), event.peer_port)


def _hello(e: CData) -> Event:
    return Hello(e.conn, e.seq, e.value, _text(e), _data(e), _peer(e), bool(e.flags & lib.BQ_EV_TRUSTED))


def _sub(e: CData) -> Event:
    durable, legacy = bool(e.flags & lib.BQ_EV_DURABLE), bool(e.flags & lib.BQ_EV_LEGACY)
    trusted = bool(e.flags & lib.BQ_EV_TRUSTED)
    return Sub(
        e.conn, e.seq, _text(e), _data(e).decode("utf-8", "replace"), e.value, durable, legacy, _peer(e), trusted
    )


def _unsub(e: CData) -> Event:
    group = _data(e).decode("utf-8", "replace")
    legacy, keep = bool(e.flags & lib.BQ_EV_LEGACY), bool(e.flags & lib.BQ_EV_KEEP)
    return Unsub(e.conn, e.seq, _text(e), group, legacy, _peer(e), keep)


def _mqtt_connect(e: CData) -> Event:
    user_name, password, will_topic = _sized(_data(e), 2)
    return MqttConnect(
        e.conn,
        _peer(e),
        e.code,
        _text(e),
        user_name.decode("utf-8", "replace") if e.flags & lib.BQ_EV_USERNAME else None,
        password if e.flags & lib.BQ_EV_PASSWORD else None,
        bool(e.flags & lib.BQ_EV_CLEAN),
        e.value & 0xFFFFFFFF,
        e.value >> 32,
        will_topic.decode("utf-8", "replace"),
    )


def _mqtt_subscribe(e: CData) -> Event:
    data, filters, at = _data(e), list[tuple[str, int]](), 0
    while at < len(data):
        end = at + 4 + int.from_bytes(data[at + 2 : at + 4], "little")
        filters.append((data[at + 4 : end].decode("utf-8", "replace"), data[at]))
        at = end
    return MqttSubscribe(e.conn, e.seq, e.value, tuple(filters))


def _sized(data: bytes, count: int) -> list[bytes]:
    """So many texts, each with its size in front (u16, little-endian), and the rest."""
    found, at = list[bytes](), 0
    for _ in range(count):
        end = at + 2 + int.from_bytes(data[at : at + 2], "little")
        found.append(data[at + 2 : end])
        at = end
    return [*found, data[at:]]


def _unsubscribed(e: CData) -> Event:
    return Unsubscribed(e.conn, _text(e), _data(e).decode("utf-8", "replace"), bool(e.code))


def _info(e: CData) -> Event:
    return Info(e.conn, e.seq, _data(e), _peer(e))


def _admin(e: CData) -> Event:
    return AdminAsked(e.conn, e.seq, _data(e), _peer(e), bool(e.flags & lib.BQ_EV_TRUSTED))


def _secured(e: CData) -> Event:
    result, text, data = Handshake(e.code), _text(e), _data(e).decode("utf-8", "replace")
    if result is Handshake.DONE:
        name = text if e.flags & lib.BQ_EV_CERTIFICATE else None
        return Secured(e.conn, result, _peer(e), certificate=name, version=data)
    return Secured(e.conn, result, _peer(e), reason=text, detail=data, limit_ms=e.value)


def _closed(e: CData) -> Event:
    return Closed(e.conn, CloseReason(e.code), _text(e), _peer(e))


def _attached(e: CData) -> Event:
    return Attached(e.conn, e.seq)


def _out(e: CData) -> Event:
    return Out(e.conn, _data(e))


def _consumed(e: CData) -> Event:
    return Consumed(e.conn, e.value)


def _stats(e: CData) -> Event:
    return Stats(e.seq, dict(zip(STATS_FIELDS, _STATS_LAYOUT.unpack(_data(e)), strict=True)))


def _list(e: CData) -> Event:
    return Listed(e.seq, e.value, [Subscriber._make(row) for row in _SUBSCRIBER_LAYOUT.iter_unpack(_data(e))])


def _sessions(e: CData) -> Event:
    data = _data(e)
    sums = dict(zip(SUMS_FIELDS, _SUMS_LAYOUT.unpack_from(data), strict=True))
    return SessionsListed(e.seq, bool(e.value), sums, _session_rows(data, _SUMS_LAYOUT.size))


def _session_expired(e: CData) -> Event:
    return SessionExpired(_session_rows(_data(e), 0)[0])


def _session_over(e: CData) -> Event:
    data = _data(e)
    messages, first_id, last_id, dropped = _OVER_LAYOUT.unpack_from(data)
    return SessionOver(messages, first_id, last_id, bool(dropped), _session_rows(data, _OVER_LAYOUT.size)[0])


def _session_rows(data: bytes, at: int) -> list[SessionRow]:
    rows = []
    while at < len(data):
        numbers = _SESSION_LAYOUT.unpack_from(data, at)
        at += _SESSION_LAYOUT.size
        filter_size, group_size, clients, clients_size, _ = numbers[-5:]
        filter = data[at : at + filter_size].decode("utf-8", "replace")
        at += filter_size
        group = data[at : at + group_size].decode("utf-8", "replace")
        at += group_size
        names, end = [], at + clients_size
        while at < end:
            size = int.from_bytes(data[at : at + 2], "little")
            names.append(data[at + 2 : at + 2 + size].decode("utf-8", "replace"))
            at += 2 + size
        at = (at + 7) & ~7
        oldest_ms, last_seen_ms, away_ms = (None if ms == _UNKNOWN else ms for ms in numbers[5:8])
        known = (*numbers[:5], oldest_ms, last_seen_ms or 0, away_ms, *numbers[8:-5])
        rows.append(SessionRow._make((*known, clients, filter, group, tuple(names))))
    return rows


def _session_ended(e: CData) -> Event:
    return SessionEnded(e.seq, Outcome(e.code))


def _accepting(e: CData) -> Event:
    return Accepting(e.code == 1, e.value)


def _stopped(e: CData) -> Event:
    return Stopped(e.value)


SYNC_BUCKETS = tuple(name for name, _ in ffi.typeof("bq_stats_t").fields if name.startswith("log_syncs_"))
STATS_FIELDS: tuple[str, ...] = tuple(name for name, _ in ffi.typeof("bq_stats_t").fields)  # each is a uint64
_STATS_LAYOUT = struct.Struct(f"={len(STATS_FIELDS)}Q")
# Unpacked at once, not field by field, because a scrape reads every subscriber.
_SUBSCRIBER_LAYOUT = struct.Struct("=7Q2I16sH6x")
assert _SUBSCRIBER_LAYOUT.size == ffi.sizeof("bq_subscriber_t")
_SESSION_LAYOUT = struct.Struct("=15Q8I")
assert _SESSION_LAYOUT.size == ffi.sizeof("bq_consumer_row_t")
SUMS_FIELDS: tuple[str, ...] = tuple(name for name, _ in ffi.typeof("bq_consumer_sums_t").fields)  # each is a uint64
_SUMS_LAYOUT = struct.Struct(f"={len(SUMS_FIELDS)}Q")
_OVER_LAYOUT = struct.Struct("=4Q")
_UNKNOWN = (1 << 64) - 1

_READERS: dict[int, Callable[[CData], Event]] = {
    lib.BQ_EV_HELLO: _hello,
    lib.BQ_EV_SUB: _sub,
    lib.BQ_EV_UNSUB: _unsub,
    lib.BQ_EV_MQTT_CONNECT: _mqtt_connect,
    lib.BQ_EV_MQTT_SUBSCRIBE: _mqtt_subscribe,
    lib.BQ_EV_INFO: _info,
    lib.BQ_EV_CLOSED: _closed,
    lib.BQ_EV_ATTACHED: _attached,
    lib.BQ_EV_OUT: _out,
    lib.BQ_EV_CONSUMED: _consumed,
    lib.BQ_EV_STATS: _stats,
    lib.BQ_EV_LIST: _list,
    lib.BQ_EV_CONSUMERS: _sessions,
    lib.BQ_EV_CONSUMER_ENDED: _session_ended,
    lib.BQ_EV_CONSUMER_EXPIRED: _session_expired,
    lib.BQ_EV_CONSUMER_OVER: _session_over,
    lib.BQ_EV_ADMIN: _admin,
    lib.BQ_EV_ACCEPT: _accepting,
    lib.BQ_EV_STOPPED: _stopped,
    lib.BQ_EV_UNSUBSCRIBED: _unsubscribed,
    lib.BQ_EV_SECURE: _secured,
}


def read(event: CData) -> Event:
    """Read a `bq_event_t` that the core has just filled in."""
    return _READERS[event.type](event)
