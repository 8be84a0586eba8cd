"""Connections that sent HELLO or CONNECT, or subscribed: their identity and their subscriptions.

Invariant: an identity (a client_id of one key) belongs to at most one connection of BlipMQ's own protocol and one of MQTT, the
newest that claimed it.
Connections that only publish are not kept here and cost Python nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blipmq.auth.keys import Key

OWNER_ENDS = "\x1f"
"""Separates the name of a key and the client_id in an identity; neither can contain it."""


class Connection:
    """One connection: its identity and its subscriptions. `conn` is the core's handle."""

    __slots__ = (
        "by_certificate",
        "client_id",
        "closing",
        "conn",
        "counted",
        "key",
        "level",
        "peer",
        "said_hello",
        "subscriptions",
    )

    def __init__(self, conn: int, peer: str) -> None:
        self.conn = conn
        self.peer = peer
        self.client_id = ""
        self.key: Key | None = None  # its API key, where keys are required
        self.level = 0  # the protocol level of its CONNECT: 3, 4 or 5; 0: BlipMQ's own protocol
        self.said_hello = False  # or CONNECT
        self.by_certificate = False  # it has its key by its certificate
        self.counted = ""  # the name of the key whose connection count includes it
        self.closing = False  # told to close: its further requests are not answered
        self.subscriptions: dict[tuple[str, str], None] = {}  # filter and group, in the order of subscribing

    def __repr__(self) -> str:
        state = " closing" if self.closing else ""
        who = f"conn={self.conn:#x} client={self.client_id!r} peer={self.peer}"
        return f"<Connection {who} subscriptions={len(self.subscriptions)}{state}>"

    @property
    def filters(self) -> dict[str, None]:
        """The filters that it subscribes to, in order, each once even if several groups use it."""
        return dict.fromkeys(filter_ for filter_, _ in self.subscriptions)

    @property
    def core_name(self) -> str:
        """The identity, or without a client_id its prefix. The core uses it to know the owner of a subscription."""
        owner = self.key.owner if self.key is not None else ""
        return f"{owner}{OWNER_ENDS}{self.client_id}" if owner else self.client_id

    def ended(self, filter_: str, group: str, everywhere: bool) -> None:
        """Remove this subscription, or with `everywhere` all subscriptions to that filter."""
        if everywhere:
            self.subscriptions = {each: None for each in self.subscriptions if each[0] != filter_}
        else:
            self.subscriptions.pop((filter_, group), None)

    @property
    def identity(self) -> str:
        """The client_id as the rest of the broker knows it, including the WAL. Each key has its own client_ids, so that
        no client can take over, or collect for, a client of another key. "" without a client_id."""
        owner = self.key.owner if self.key is not None else ""
        return f"{owner}{OWNER_ENDS}{self.client_id}" if owner and self.client_id else self.client_id


class Connections:
    """All connections, by the core's handle and by identity. The core's limit on connections bounds both."""

    def __init__(self) -> None:
        self._by_conn: dict[int, Connection] = {}
        # By identity: those of BlipMQ's own protocol, and those of MQTT.
        self._by_client: tuple[dict[str, Connection], dict[str, Connection]] = ({}, {})
        self._certificates: dict[int, str] = {}  # names in the verified certificates of TLS clients, by handle
        self._of_key: dict[str, int] = {}  # admitted connections, by the name of their key

    def __len__(self) -> int:
        return len(self._by_conn)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._by_conn.values())

    def __repr__(self) -> str:
        return f"<Connections connections={len(self._by_conn)} client_ids={sum(map(len, self._by_client))}>"

    def find(self, conn: int) -> Connection | None:
        """The connection with this handle, or None."""
        return self._by_conn.get(conn)

    def open(self, conn: int, peer: str) -> Connection:
        """The connection with this handle, added if necessary."""
        connection = self._by_conn.get(conn)
        if connection is None:
            connection = self._by_conn[conn] = Connection(conn, peer)
        return connection

    def showed(self, conn: int, certificate: str) -> None:
        """Record the name in the verified certificate of a TLS client. The core reports the end of each such connection."""
        self._certificates[conn] = certificate

    def certificate_of(self, conn: int) -> str:
        """That name; "" if it showed no certificate, or one without a name."""
        return self._certificates.get(conn, "")

    def identify(self, connection: Connection, client_id: str) -> Connection | None:
        """Record that `connection` was admitted as `client_id` ("": none). Returns the connection that it takes over, if
        any."""
        if connection.key is not None and not connection.counted:
            connection.counted = connection.key.name
            self._of_key[connection.key.name] = self._of_key.get(connection.key.name, 0) + 1
        connection.said_hello = True
        connection.client_id = client_id
        if not client_id:
            return None
        by_client = self._by_client[bool(connection.level)]
        taken_over = by_client.get(connection.identity)
        by_client[connection.identity] = connection
        if taken_over is not None:  # it no longer counts, though it may still receive the reason
            self._uncount(taken_over)
        return taken_over

    def of_key(self, name: str) -> int:
        """The number of admitted connections that use the key of that name."""
        return self._of_key.get(name, 0)

    def takes_over(self, connection: Connection, client_id: str) -> bool:
        """Whether `connection` would take over another connection with that client_id."""
        owner = connection.key.owner if connection.key is not None else ""
        identity = f"{owner}{OWNER_ENDS}{client_id}" if owner else client_id
        return bool(client_id) and identity in self._by_client[bool(connection.level)]

    def clear(self) -> None:
        """Forget all connections."""
        self._of_key.clear()
        self._certificates.clear()
        self._by_conn.clear()
        for by_client in self._by_client:
            by_client.clear()

    def drop(self, conn: int) -> Connection | None:
        """Forget a closed connection, and return it if it was known."""
        self._certificates.pop(conn, None)
        connection = self._by_conn.pop(conn, None)
        if connection is not None:
            by_client = self._by_client[bool(connection.level)]
            if by_client.get(connection.identity) is connection:
                del by_client[connection.identity]
            self._uncount(connection)
        return connection

    def _uncount(self, connection: Connection) -> None:
        name, connection.counted = connection.counted, ""
        if not name:
            return
        self._of_key[name] -= 1
        if not self._of_key[name]:
            del self._of_key[name]
