"""The control frames of the native protocol: HELLO, SUB, UNSUB and INFO.

Invariant: each request event is answered exactly once, by admit, subscribe, unsubscribe, reply or close. Until then the
core does not read that connection's input. Messages do not pass through here; the core answers PUB, ACK, PING and QUIT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from blipmq.base.logs import Log
from blipmq.errors import BAD_REQUEST, CLIENT_ID_IN_USE, NOT_NOW, PROTOCOL_VERSION
from blipmq.native.core import Core
from blipmq.native.events import (
    AdminAsked,
    Hello,
    Info,
    SessionExpired,
    SessionOver,
    Sub,
    Unsub,
)
from blipmq.protocols.clients import ClientRules, Refusal, name_problem
from blipmq.sessions import listing as session_list
from blipmq.sessions.connections import OWNER_ENDS, Connection, Connections
from blipmq.sessions.listing import ASKED_ROWS_MAX, FIND_BYTES_MAX, ROWS_MAX, Wanted
from blipmq.version import __version__

if TYPE_CHECKING:
    from blipmq.protocols.blip_admin import Operators

PROTOCOL = 1
DEAD_LETTERS = "$dlq/"  # the beginning of their topics
GREETING = f"BlipMQ {__version__}"
NO_WAL = "QoS 1 needs the WAL: set wal.enabled = true, or subscribe with QoS 0"
NO_CLIENT_ID = "a durable subscription needs a client_id: send one in HELLO"
NO_QOS1 = "a durable subscription needs QoS 1: subscribe with QoS 1"
TAKEN_OVER = "another connection uses this client_id now"


class Reports(Protocol):
    """The part of the broker's status that INFO needs."""

    def ask_json(self, answer: Callable[[bytes], None], key: str | None, own: Wanted) -> None: ...

    def ask_filter(self, answer: Callable[[bytes], None], filter_: str, key: str | None, own: Wanted) -> None: ...

    def ask_sessions(self, answer: Callable[[bytes], None], wanted: Wanted) -> None: ...


class NativeProtocol:
    """Answers the events of native connections. `status` provides the data of INFO."""

    def __init__(
        self,
        core: Core,
        connections: Connections,
        rules: ClientRules,
        log: Log,
        status: Reports,
        operators: Callable[[], Operators],
    ) -> None:
        self._core = core
        self._connections = connections
        self._rules = rules
        self._log = log
        self._status = status
        self._operators = operators

    def hello(self, event: Hello) -> None:
        """Admit a client, or refuse it with the reason. It takes over an older connection with the same client_id,
        which is closed."""
        connection = self._connections.open(event.conn, event.peer)
        if connection.closing:
            return
        if connection.said_hello:
            self._core.reply(event.conn, event.seq, BAD_REQUEST, "this connection has already sent HELLO: send it once")
            return
        if event.protocol != PROTOCOL:
            text = f"this broker supports protocol {PROTOCOL}, not protocol {event.protocol}"
            refusal: Refusal | None = Refusal(PROTOCOL_VERSION, text)
        else:
            refusal = self._rules.refusal_of(connection, event.client_id, event.api_key, event.trusted)
        if refusal is not None:
            connection.closing = refusal.code != BAD_REQUEST
            self._core.reply(event.conn, event.seq, *refusal, close=connection.closing)
            self._rules.log_refused(connection, "hello", *refusal)
            return
        taken_over = self._rules.admitted(connection, event.client_id)
        if taken_over is not None:
            self._core.reply(taken_over.conn, 0, CLIENT_ID_IN_USE, TAKEN_OVER, close=True, unasked=True)
            self._rules.log_taken_over(taken_over, event.peer, CLIENT_ID_IN_USE)
        self._core.admit(event.conn, event.seq, GREETING, self._rules.acl_of(connection))
        self._rules.log_admitted(connection)

    def end(self, connection: Connection, refusal: Refusal) -> None:
        """Close the connection. The client gets only this answer; its queued messages are discarded."""
        connection.closing = True
        self._core.reply(connection.conn, 0, *refusal, close=True, unasked=True, discard=True)
        self._rules.log_ended(connection, *refusal)

    def subscribe(self, event: Sub) -> None:
        """Subscribe the connection or its group to a filter, or refuse."""
        connection = self._connections.find(event.conn)
        if connection is not None and connection.closing:
            return
        client_id = connection.identity if connection is not None else ""
        refusal = self._sub_refusal(event, connection, client_id)
        if refusal is not None:
            self._refuse(event, refusal)
            return
        # The core decides: if it refuses the subscription, or ends it later, `unsubscribed` removes it here.
        self._connections.open(event.conn, event.peer).subscriptions[event.filter, event.group] = None
        self._core.subscribe(
            event.conn,
            event.seq,
            event.filter,
            qos=event.qos,
            durable=event.durable,
            client_id=connection.core_name if connection is not None else "",
            group=event.group,
            keyed=connection is not None and connection.key is not None,
        )

    def _sub_refusal(self, event: Sub, connection: Connection | None, client_id: str) -> Refusal | None:
        """Why a SUB is refused; None allows it. The core checks whether the WAL accepts it."""
        if refusal := self._rules.may_not_subscribe(connection, event.filter, event.trusted):
            return refusal
        if event.durable and not event.qos:
            return Refusal(BAD_REQUEST, NO_QOS1)
        if event.durable and not client_id:
            return Refusal(BAD_REQUEST, NO_CLIENT_ID)
        if problem := name_problem("group", event.group):
            return Refusal(BAD_REQUEST, problem)
        if event.qos and not self._rules.config.wal.enabled:
            return Refusal(NOT_NOW, NO_WAL)
        return self._rules.no_room(connection, event.filter, event.group)

    def unsubscribe(self, event: Unsub) -> None:
        """Remove a route and end the client's durable subscription, unless it is to be kept. The core knows whether it
        exists and answers."""
        connection = self._connections.find(event.conn)
        if connection is not None and connection.closing:
            return
        identity = connection.identity if connection is not None and not event.keep_durable else ""
        self._core.unsubscribe(event.conn, event.seq, event.filter, identity, event.group)

    def info(self, event: Info) -> None:
        """Answer with the broker's state as JSON, once it has been gathered."""
        connection = self._connections.find(event.conn)
        if connection is not None and connection.closing:
            return
        # A closed handle is never valid again: the core then drops the reply.
        key = connection.key if connection is not None else None
        # A client without admin rights sees only the subscriptions of its own key.
        only = key.name if key is not None and not key.may_admin else None
        own = Wanted(conn=event.conn, owner=f"{key.owner}{OWNER_ENDS}") if key is not None and only else Wanted()

        def answer(payload: bytes) -> None:
            self._core.reply(event.conn, event.seq, 0, "", payload)

        options = _options(event.asked)
        wanted, filter_ = _sessions_wanted(options.get("sessions"), own), options.get("filter")
        if wanted is not None:
            self._status.ask_sessions(answer, wanted)
        elif filter_ and _is_short_text(filter_):
            self._status.ask_filter(answer, filter_, only, own)
        else:
            self._status.ask_json(answer, only, own)

    def admin(self, event: AdminAsked) -> None:
        """Execute an operator's request, if the client may make it."""
        connection = self._connections.find(event.conn)
        if connection is None or not connection.closing:
            self._operators().admin(event, connection)

    def session_expired(self, event: SessionExpired) -> None:
        """Log that a durable subscription expired because no client came back to it."""
        fact = session_list.facts(event.row, self._connections)
        names = {name: fact[name] for name in ("client_id", "key", "filter", "group") if fact[name]}
        self._log.warning("session_expired", **names, lag_messages=fact["lag_messages"], away_ms=fact["away_ms"])

    def session_over(self, event: SessionOver) -> None:
        """Log what a subscription lost to its quota of the WAL. The core reports it once a minute for each
        subscription; the logger combines repeated lines."""
        fact = session_list.facts(event.row, self._connections)
        names = {name: fact[name] for name in ("client_id", "key", "filter", "group") if fact[name]}
        ids = {"messages": event.messages, "first_id": event.first_id, "last_id": event.last_id}
        quota_bytes, became = self._rules.config.qos1.session_log_bytes, "dropped" if event.dropped else "dead letters"
        if fact["filter"].startswith(
            DEAD_LETTERS
        ):  # a dead letter never becomes another one, and may use more of the WAL
            quota_bytes, became = max(quota_bytes, self._rules.config.wal.max_bytes // 2), "dropped"
        self._log.warning("session_over_log_bytes", **names, **ids, quota_bytes=quota_bytes, became=became)

    def _refuse(self, event: Sub, refusal: Refusal) -> None:
        """Refuse a SUB with a Reply, or close the connection of a legacy client, which has no Reply."""
        connection = self._connections.find(event.conn)
        if event.legacy:
            if connection is not None:
                connection.closing = True
            self._core.close(event.conn)
        else:
            self._core.reply(event.conn, event.seq, *refusal)
        self._rules.log_refused(connection or Connection(event.conn, event.peer), "sub", *refusal, event.filter)


def _options(asked: bytes) -> dict[str, Any]:
    """The JSON object in the payload of INFO; {} for any other payload: the whole report is asked for."""
    if not asked:
        return {}
    import json  # imported here because few clients ask

    try:
        options = json.loads(asked)
    except (ValueError, RecursionError):
        return {}
    return options if isinstance(options, dict) else {}


def _sessions_wanted(options: Any, own: Wanted) -> Wanted | None:
    """The selection `{"find": TEXT, "limit": NUMBER}`; None for anything else."""
    if not isinstance(options, dict):
        return None
    find, limit = options.get("find", ""), options.get("limit", ROWS_MAX)
    if not _is_short_text(find) or not isinstance(limit, int):
        return None
    return own._replace(find=find, limit=min(max(limit, 1), ASKED_ROWS_MAX))


def _is_short_text(value: Any) -> TypeGuard[str]:
    try:
        return isinstance(value, str) and len(value.encode()) <= FIND_BYTES_MAX
    except UnicodeEncodeError:  # JSON can hold half of a surrogate pair
        return False
