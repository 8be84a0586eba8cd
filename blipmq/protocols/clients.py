"""The rules for the clients of every protocol: keys, limits, and the log lines about their beginning and end.

Invariant: a client is admitted only by `refusal_of` and `admitted`, so no protocol can leave out a check. A refusal has a
code of `blipmq.errors`; each protocol maps it to its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from blipmq.auth.auth import Auth
from blipmq.base.logs import Log
from blipmq.config.settings import Config
from blipmq.errors import BAD_REQUEST, NOT_ALLOWED, NOT_AUTHENTICATED, NOT_NOW, TOO_MANY
from blipmq.native.events import Closed, CloseReason, Unsubscribed
from blipmq.sessions.connections import Connection, Connections

NAME_BYTES_MAX = 256  # of a client_id or a group
NO_KEY = "no API key was sent, or the broker does not know it"
KEY_ENDED = "the API key is no longer valid"
_ORDINARY = (CloseReason.EOF, CloseReason.QUIT)


class Refusal(NamedTuple):
    """Why a request is refused: a code of `blipmq.errors`, and a sentence."""

    code: int
    text: str


class Load(Protocol):
    """The part of the broker's status that a subscription needs."""

    @property
    def memory_is_short(self) -> bool: ...


class ClientRules:
    """The rules of one broker."""

    def __init__(self, connections: Connections, config: Config, log: Log, load: Load, auth: Auth) -> None:
        self.config = config
        self._connections = connections
        self._log = log
        self._load = load
        self._auth = auth

    def __repr__(self) -> str:
        return f"<ClientRules {self._connections!r} {self._auth!r}>"

    # -- the beginning

    def refusal_of(
        self, connection: Connection, client_id: str, presented: bytes, trusted: bool = False
    ) -> Refusal | None:
        """Why a client with this client_id and this text of an API key is not admitted; None: it may be. A `trusted` one
        needs no key."""
        if self._auth.required and not trusted and not self._find_key(connection, presented):
            return self.unknown()
        if problem := name_problem("client_id", client_id):
            return Refusal(BAD_REQUEST, problem)
        return self._too_many(connection, client_id)

    def unknown(self) -> Refusal:
        """The refusal of a client without a valid key, which is counted. Every invalid key gets the same answer."""
        self._auth.refused += 1
        return Refusal(NOT_AUTHENTICATED, NO_KEY)

    def _find_key(self, connection: Connection, presented: bytes) -> bool:
        """Find the key of a client, by its text or, without one, by the client's certificate."""
        certificate = self._connections.certificate_of(connection.conn)
        connection.by_certificate = not presented and bool(certificate)
        if connection.by_certificate:
            connection.key = self._auth.find_certificate(certificate)
        else:
            connection.key = self._auth.find(presented)
        return connection.key is not None

    def _too_many(self, connection: Connection, client_id: str) -> Refusal | None:
        """Refuse a client whose key has reached its limit of connections, unless it takes over one of them."""
        if connection.key is None:
            return None
        name, limit = connection.key.name, self.config.connections_per_key
        if self._connections.of_key(name) < limit or self._connections.takes_over(connection, client_id):
            return None
        self._auth.over_limit += 1
        return Refusal(
            TOO_MANY,
            f"limits.max_connections_per_key is reached: the key {name} has {limit} connections. Close some, or raise it",
        )

    def admitted(self, connection: Connection, client_id: str) -> Connection | None:
        """Record that the client is admitted. Returns the connection that it takes over, if any, which then must be
        closed."""
        taken_over = self._connections.identify(connection, client_id)
        if taken_over is not None:
            taken_over.closing = True
        return taken_over

    def acl_of(self, connection: Connection) -> int:
        """The core's number of the client's publish ACL; 0: it may publish everything."""
        return self._auth.acl_of(connection.key) if connection.key is not None else 0

    # -- subscriptions

    def may_not_subscribe(
        self, connection: Connection | None, filter_: str, trusted: bool = False, mqtt: bool = False
    ) -> Refusal | None:
        """Refuse a filter that the client's key does not permit. `mqtt`: the filter has the syntax of MQTT."""
        if not self._auth.required or trusted:
            return None
        key = connection.key if connection is not None else None
        if key is not None and key.may_subscribe(filter_, mqtt):
            return None
        return Refusal(NOT_ALLOWED, f"this key may not subscribe to {filter_}")

    def no_room(self, connection: Connection | None, filter_: str, group: str = "") -> Refusal | None:
        """Refuse a subscription over the limit of one connection, or if the broker's memory is short."""
        limit = self.config.limits.max_subscriptions_per_connection
        known = connection.subscriptions if connection is not None else {}
        if len(known) >= limit and (filter_, group) not in known:
            return Refusal(
                TOO_MANY,
                f"limits.max_subscriptions_per_connection ({limit}) is reached: end some subscriptions, or raise it",
            )
        if self._load.memory_is_short:
            return Refusal(NOT_NOW, "limits.memory_bytes is reached: try again later, or raise it")
        return None

    def unsubscribed(self, event: Unsubscribed) -> None:
        """The core refused or ended a subscription: it no longer counts towards the limit, nor in ACL checks."""
        connection = self._connections.find(event.conn)
        if connection is not None:
            connection.ended(event.filter, event.group, everywhere=not event.group and not event.refused)

    # -- changed keys

    def keys_changed(self, end: Callable[[Connection, Refusal], None]) -> None:
        """The keys have changed: call `end` for each connection whose key no longer exists or no longer covers its
        subscriptions. The core already has the new publish ACLs."""
        for connection in list(self._connections):
            if connection.closing or connection.key is None:
                continue
            now, before = self._auth.current(connection.key), connection.key.allow
            if now is None or (connection.by_certificate and now.certificate != connection.key.certificate):
                end(connection, Refusal(NOT_AUTHENTICATED, KEY_ENDED))
                continue
            connection.key = now
            if now.allow == before:
                continue
            mqtt = bool(connection.level)
            lost = next((f for f in connection.filters if not now.may_subscribe(f, mqtt)), None)
            if lost is not None:
                end(connection, Refusal(NOT_ALLOWED, f"this key may no longer subscribe to {lost}"))

    # -- log lines

    def log_admitted(self, connection: Connection, **about: str) -> None:
        by = {"key": connection.key.name} if connection.key is not None else {}
        write = self._log.info if is_named(connection) else self._log.debug
        write("hello", client=connection.client_id, **by, **about, peer=peer_text(connection.peer))

    def log_taken_over(self, older: Connection, newer_peer: str, code: int | str) -> None:
        self._log.warning(
            "client_id_taken",
            client=older.client_id,
            older=peer_text(older.peer),
            newer=peer_text(newer_peer),
            code=code,
        )

    def log_ended(self, connection: Connection, code: int | str, text: str) -> None:
        key = connection.key.name if connection.key is not None else ""
        self._log.warning(
            "ended", client=connection.client_id, key=key, peer=peer_text(connection.peer), code=code, reason=text
        )

    def log_refused(self, connection: Connection, what: str, code: int | str, reason: str, filter_: str = "") -> None:
        self._log.warning(
            "refused",
            what=what,
            client=connection.client_id,
            peer=peer_text(connection.peer),
            code=code,
            reason=reason,
            **({"filter": filter_} if filter_ else {}),
        )

    def closed(self, event: Closed) -> None:
        """Forget the connection. Log it if it was known or if it ended for an unusual reason."""
        connection = self._connections.drop(event.conn)
        if connection is None and (event.reason in _ORDINARY or event.reason is CloseReason.RESET):
            return
        write = self._log.warning
        if event.reason in _ORDINARY:
            write = self._log.info if connection is not None and is_named(connection) else self._log.debug
        elif event.reason in (CloseReason.SHUTDOWN, CloseReason.BROKER):
            write = self._log.debug  # the cause has already been logged
        client = connection.client_id if connection else ""
        write(
            "closed", client=client, peer=peer_text(event.peer), reason=event.reason.name.lower(), detail=event.detail
        )


def is_named(connection: Connection) -> bool:
    """Whether its connect and disconnect are logged at level info; not for a client without client_id and key."""
    return bool(connection.client_id or connection.key)


def name_problem(what: str, name: str) -> str:
    """Why a client_id or a group is not valid; "" if it is."""
    if len(name.encode()) > NAME_BYTES_MAX:
        return f"the {what} may have at most {NAME_BYTES_MAX} bytes"
    if not name.isprintable():
        return f"the {what} contains control characters"
    return ""


def peer_text(peer: str) -> str:
    return peer or "in-process"
