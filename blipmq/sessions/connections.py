"""Connections that said HELLO or subscribed: who they are and their subscriptions.

Invariant: an identity, a client_id of one key, belongs to at most one connection, the newest that claimed it. Connections
that did neither, the many that only publish, are not kept here and cost Python nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from blipmq.auth.keys import Key

OWNER_ENDS = "\x1f"
"""Between the name of a key and the client_id in an identity: neither of them can hold it."""


class Connection:
    """One connection: who it is and what it subscribes to. `conn` is the core's handle."""

    __slots__ = ("client_id", "closing", "conn", "counted", "key", "peer", "said_hello", "subscriptions")

    def __init__(self, conn: int, peer: str) -> None:
        self.conn = conn
        self.peer = peer
        self.client_id = ""
        self.key: Key | None = None  # that it came in with, where keys are asked for
        self.said_hello = False
        self.counted = ""  # the name of the key among whose connections it counts
        self.closing = False  # told to close: what it still sends is not answered
        self.subscriptions: dict[tuple[str, str], None] = {}  # filter and group, in the order they were asked for

    def __repr__(self) -> str:
        state = " closing" if self.closing else ""
        who = f"conn={self.conn:#x} client={self.client_id!r} peer={self.peer}"
        return f"<Connection {who} subscriptions={len(self.subscriptions)}{state}>"

    @property
    def filters(self) -> dict[str, None]:
        """What it subscribes to, in the order it did, however many groups of one it is in."""
        return dict.fromkeys(filter_ for filter_, _ in self.subscriptions)

    @property
    def core_name(self) -> str:
        """The identity, and without a client_id what it would begin with: so the core knows whose a subscription is."""
        owner = self.key.owner if self.key is not None else ""
        return f"{owner}{OWNER_ENDS}{self.client_id}" if owner else self.client_id

    def ended(self, filter_: str, group: str, everywhere: bool) -> None:
        """It has no such subscription, or with `everywhere` none to that filter at all."""
        if everywhere:
            self.subscriptions = {each: None for each in self.subscriptions if each[0] != filter_}
        else:
            self.subscriptions.pop((filter_, group), None)

    @property
    def identity(self) -> str:
        """What the client_id is to the rest of the broker, the log included: each key has client_ids of its own, so that
        nobody can take over, or collect for, a client of another key. "" without a client_id."""
        owner = self.key.owner if self.key is not None else ""
        return f"{owner}{OWNER_ENDS}{self.client_id}" if owner and self.client_id else self.client_id


class Connections:
    """All of them, by the core's handle and by identity. The core's limit on connections bounds both."""

    def __init__(self) -> None:
        self._by_conn: dict[int, Connection] = {}
        self._by_client: dict[str, Connection] = {}
        self._of_key: dict[str, int] = {}  # connections that were let in, by the name of their key

    def __len__(self) -> int:
        return len(self._by_conn)

    def __iter__(self) -> Iterator[Connection]:
        return iter(self._by_conn.values())

    def __repr__(self) -> str:
        return f"<Connections connections={len(self._by_conn)} client_ids={len(self._by_client)}>"

    def find(self, conn: int) -> Connection | None:
        """The connection with this handle, if it is known."""
        return self._by_conn.get(conn)

    def open(self, conn: int, peer: str) -> Connection:
        """The connection with this handle; from now on it is known."""
        connection = self._by_conn.get(conn)
        if connection is None:
            connection = self._by_conn[conn] = Connection(conn, peer)
        return connection

    def identify(self, connection: Connection, client_id: str) -> Connection | None:
        """Record that `connection` said HELLO as `client_id` ("": none). Returns the connection that it takes over, if any."""
        if connection.key is not None and not connection.counted:
            connection.counted = connection.key.name
            self._of_key[connection.key.name] = self._of_key.get(connection.key.name, 0) + 1
        connection.said_hello = True
        connection.client_id = client_id
        if not client_id:
            return None
        taken_over = self._by_client.get(connection.identity)
        self._by_client[connection.identity] = connection
        if taken_over is not None:  # it has no place any more, though it may still read why
            self._uncount(taken_over)
        return taken_over

    def of_key(self, name: str) -> int:
        """How many connections have been let in with the key of that name."""
        return self._of_key.get(name, 0)

    def takes_over(self, connection: Connection, client_id: str) -> bool:
        """Whether `connection` would take over another one as that client."""
        owner = connection.key.owner if connection.key is not None else ""
        return bool(client_id) and (f"{owner}{OWNER_ENDS}{client_id}" if owner else client_id) in self._by_client

    def clear(self) -> None:
        """Forget all connections."""
        self._of_key.clear()
        self._by_conn.clear()
        self._by_client.clear()

    def drop(self, conn: int) -> Connection | None:
        """Forget a connection that is gone."""
        connection = self._by_conn.pop(conn, None)
        if connection is not None and self._by_client.get(connection.identity) is connection:
            del self._by_client[connection.identity]
        if connection is not None:
            self._uncount(connection)
        return connection

    def _uncount(self, connection: Connection) -> None:
        name, connection.counted = connection.counted, ""
        if not name:
            return
        self._of_key[name] -= 1
        if not self._of_key[name]:
            del self._of_key[name]
