"""The control frames of the native protocol: HELLO, SUB, UNSUB and INFO, and the log lines of closed connections.

Invariant: each request event is answered exactly once, by admit, subscribe, unsubscribe, reply or close. Until then the
core does not read that connection's input. Messages do not pass through here; the core answers PUB, ACK, PING and QUIT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

from blipmq.auth.auth import Auth
from blipmq.base.logs import Log
from blipmq.config.settings import Config
from blipmq.errors import (
    BAD_REQUEST,
    CLIENT_ID_IN_USE,
    NOT_ALLOWED,
    NOT_AUTHENTICATED,
    NOT_NOW,
    PROTOCOL_VERSION,
    TOO_MANY,
)
from blipmq.native.core import Core
from blipmq.native.events import (
    AdminAsked,
    Closed,
    CloseReason,
    Hello,
    Info,
    SessionExpired,
    SessionOver,
    Sub,
    Unsub,
    Unsubscribed,
)
from blipmq.sessions import listing as session_list
from blipmq.sessions.connections import OWNER_ENDS, Connection, Connections
from blipmq.sessions.listing import ASKED_ROWS_MAX, FIND_BYTES_MAX, ROWS_MAX, Wanted
from blipmq.version import __version__

if TYPE_CHECKING:
    from blipmq.protocols.blip_admin import Operators

PROTOCOL = 1
NAME_BYTES_MAX = 256  # of a client_id or a group
DEAD_LETTERS = "$dlq/"  # the beginning of their topics
GREETING = f"BlipMQ {__version__}"
NO_WAL = "QoS 1 needs the WAL: set wal.enabled = true, or subscribe with QoS 0"
NO_CLIENT_ID = "a durable subscription needs a client_id: send one in HELLO"
NO_KEY = "no API key was sent, or the broker does not know it"
KEY_ENDED = "the API key is no longer valid"
NO_QOS1 = "a durable subscription needs QoS 1: subscribe with QoS 1"
_ORDINARY = (CloseReason.EOF, CloseReason.QUIT)


class Reports(Protocol):
    """The part of the broker's status that INFO and SUB need."""

    @property
    def memory_is_short(self) -> bool: ...

    def ask_json(self, answer: Callable[[bytes], None], key: str | None, own: Wanted) -> None: ...

    def ask_filter(self, answer: Callable[[bytes], None], filter_: str, key: str | None, own: Wanted) -> None: ...

    def ask_sessions(self, answer: Callable[[bytes], None], wanted: Wanted) -> None: ...


class NativeProtocol:
    """Answers the events of native connections. `status` provides the data of INFO."""

    def __init__(
        self,
        core: Core,
        connections: Connections,
        config: Config,
        log: Log,
        status: Reports,
        auth: Auth,
        operators: Callable[[], Operators],
    ) -> None:
        self.config = config
        self._core = core
        self._connections = connections
        self._log = log
        self._status = status
        self._auth = auth
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
            connection.closing = True
            text = f"this broker supports protocol {PROTOCOL}, not protocol {event.protocol}"
            self._core.reply(event.conn, event.seq, PROTOCOL_VERSION, text, close=True)
            self._refused(connection, "hello", PROTOCOL_VERSION, text)
            return
        if self._auth.required and not event.trusted and not self._know(connection, event):
            return
        problem = _name_problem("client_id", event.client_id)
        if problem:
            self._core.reply(event.conn, event.seq, BAD_REQUEST, problem)
            self._refused(connection, "hello", BAD_REQUEST, problem)
            return
        if connection.key is not None and self._is_one_too_many(connection, event):
            return
        taken_over = self._connections.identify(connection, event.client_id)
        if taken_over is not None:
            self._take_over(taken_over, event.peer)
        acl = self._auth.acl_of(connection.key) if connection.key is not None else 0
        self._core.admit(event.conn, event.seq, GREETING, acl)
        by = {"key": connection.key.name} if connection.key is not None else {}
        write = self._log.info if _is_named(connection) else self._log.debug
        write("hello", client=event.client_id, **by, peer=_peer(event.peer))

    def _is_one_too_many(self, connection: Connection, event: Hello) -> bool:
        """Refuse a client whose key has reached its limit of connections, unless it takes over one of them."""
        assert connection.key is not None
        name, limit = connection.key.name, self.config.connections_per_key
        if self._connections.of_key(name) < limit or self._connections.takes_over(connection, event.client_id):
            return False
        connection.closing = True
        self._auth.over_limit += 1
        text = f"limits.max_connections_per_key is reached: the key {name} has {limit} connections. Close some, or raise it"
        self._core.reply(event.conn, event.seq, TOO_MANY, text, close=True)
        self._refused(connection, "hello", TOO_MANY, text)
        return True

    def _know(self, connection: Connection, event: Hello) -> bool:
        """Find the client's API key, by its text or, without one, by the client's certificate. Every invalid key gets the
        same answer."""
        certificate = self._connections.certificate_of(event.conn)
        connection.by_certificate = not event.api_key and bool(certificate)
        if connection.by_certificate:
            connection.key = self._auth.find_certificate(certificate)
        else:
            connection.key = self._auth.find(event.api_key)
        if connection.key is None:
            connection.closing = True
            self._auth.refused += 1
            self._core.reply(event.conn, event.seq, NOT_AUTHENTICATED, NO_KEY, close=True)
            self._refused(connection, "hello", NOT_AUTHENTICATED, NO_KEY)
        return connection.key is not None

    def keys_changed(self) -> None:
        """The keys have changed: close each connection whose key no longer exists or no longer covers its
        subscriptions. The core already has the new publish ACLs."""
        for connection in list(self._connections):
            if connection.closing or connection.key is None:
                continue
            now, before = self._auth.current(connection.key), connection.key.allow
            if now is None or (connection.by_certificate and now.certificate != connection.key.certificate):
                self._end(connection, NOT_AUTHENTICATED, KEY_ENDED)
                continue
            connection.key = now
            lost = next((f for f in connection.filters if now.allow != before and not now.may_subscribe(f)), None)
            if lost is not None:
                self._end(connection, NOT_ALLOWED, f"this key may no longer subscribe to {lost}")

    def _end(self, connection: Connection, code: int, text: str) -> None:
        """Close the connection. The client gets only this answer; its queued messages are discarded."""
        connection.closing = True
        self._core.reply(connection.conn, 0, code, text, close=True, unasked=True, discard=True)
        key = connection.key.name if connection.key is not None else ""
        self._log.warning(
            "ended", client=connection.client_id, key=key, peer=_peer(connection.peer), code=code, reason=text
        )

    def subscribe(self, event: Sub) -> None:
        """Subscribe the connection or its group to a filter, or refuse."""
        connection = self._connections.find(event.conn)
        if connection is not None and connection.closing:
            return
        client_id = connection.identity if connection is not None else ""
        code, problem = self._sub_problem(event, connection, client_id)
        if problem:
            self._refuse(event, code, problem)
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

    def _sub_problem(self, event: Sub, connection: Connection | None, client_id: str) -> tuple[int, str]:
        """Code and reason for refusing a SUB; an empty reason allows it. The core checks whether the WAL accepts it."""
        limit = self.config.limits.max_subscriptions_per_connection
        if self._auth.required and not event.trusted:
            key = connection.key if connection is not None else None
            if key is None or not key.may_subscribe(event.filter):
                return NOT_ALLOWED, f"this key may not subscribe to {event.filter}"
        if event.durable and not event.qos:
            return BAD_REQUEST, NO_QOS1
        if event.durable and not client_id:
            return BAD_REQUEST, NO_CLIENT_ID
        if problem := _name_problem("group", event.group):
            return BAD_REQUEST, problem
        if event.qos and not self.config.wal.enabled:
            return NOT_NOW, NO_WAL
        known = connection.subscriptions if connection is not None else {}
        if len(known) >= limit and (event.filter, event.group) not in known:
            return (
                TOO_MANY,
                f"limits.max_subscriptions_per_connection ({limit}) is reached: end some subscriptions, or raise it",
            )
        if self._status.memory_is_short:
            return NOT_NOW, "limits.memory_bytes is reached: try again later, or raise it"
        return 0, ""

    def unsubscribe(self, event: Unsub) -> None:
        """Remove a route and end the client's durable subscription, unless it is to be kept. The core knows whether it
        exists and answers."""
        connection = self._connections.find(event.conn)
        if connection is not None and connection.closing:
            return
        identity = connection.identity if connection is not None and not event.keep_durable else ""
        self._core.unsubscribe(event.conn, event.seq, event.filter, identity, event.group)

    def unsubscribed(self, event: Unsubscribed) -> None:
        """The core refused or ended a subscription: it no longer counts towards the limit, nor in ACL checks."""
        connection = self._connections.find(event.conn)
        if connection is not None:
            connection.ended(event.filter, event.group, everywhere=not event.group and not event.refused)

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
        quota_bytes, became = self.config.qos1.session_log_bytes, "dropped" if event.dropped else "dead letters"
        if fact["filter"].startswith(
            DEAD_LETTERS
        ):  # a dead letter never becomes another one, and may use more of the WAL
            quota_bytes, became = max(quota_bytes, self.config.wal.max_bytes // 2), "dropped"
        self._log.warning("session_over_log_bytes", **names, **ids, quota_bytes=quota_bytes, became=became)

    def closed(self, event: Closed) -> None:
        """Forget the connection. Log it if it was known or if it ended for an unusual reason."""
        connection = self._connections.drop(event.conn)
        if connection is None and (event.reason in _ORDINARY or event.reason is CloseReason.RESET):
            return
        write = self._log.warning
        if event.reason in _ORDINARY:
            write = self._log.info if connection is not None and _is_named(connection) else self._log.debug
        elif event.reason in (CloseReason.SHUTDOWN, CloseReason.BROKER):
            write = self._log.debug  # the cause has already been logged
        client = connection.client_id if connection else ""
        write("closed", client=client, peer=_peer(event.peer), reason=event.reason.name.lower(), detail=event.detail)

    def _take_over(self, older: Connection, newer_peer: str) -> None:
        older.closing = True
        text = "another connection uses this client_id now"
        self._core.reply(older.conn, 0, CLIENT_ID_IN_USE, text, close=True, unasked=True)
        self._log.warning(
            "client_id_taken",
            client=older.client_id,
            older=_peer(older.peer),
            newer=_peer(newer_peer),
            code=CLIENT_ID_IN_USE,
        )

    def _refuse(self, event: Sub, code: int, text: str) -> None:
        """Refuse a SUB with a Reply, or close the connection of a legacy client, which has no Reply."""
        connection = self._connections.find(event.conn)
        if event.legacy:
            if connection is not None:
                connection.closing = True
            self._core.close(event.conn)
        else:
            self._core.reply(event.conn, event.seq, code, text)
        self._refused(connection or Connection(event.conn, event.peer), "sub", code, text, filter=event.filter)

    def _refused(self, connection: Connection, what: str, code: int, reason: str, filter: str = "") -> None:
        self._log.warning(
            "refused",
            what=what,
            client=connection.client_id,
            peer=_peer(connection.peer),
            code=code,
            reason=reason,
            **({"filter": filter} if filter else {}),
        )


def _is_named(connection: Connection) -> bool:
    """Whether its connect and disconnect are logged at level info; not for a client without client_id and key."""
    return bool(connection.client_id or connection.key)


def _name_problem(what: str, name: str) -> str:
    if len(name.encode()) > NAME_BYTES_MAX:
        return f"the {what} may have at most {NAME_BYTES_MAX} bytes"
    if not name.isprintable():
        return f"the {what} contains control characters"
    return ""


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


def _peer(peer: str) -> str:
    return peer or "in-process"
