"""The QoS 1 subscriptions and queue groups of the core, as shown to an operator.

Invariant: one walk over the core's sessions runs at a time. Requests for the same selection share the next walk. A walk
keeps the requested number of rows, those with the largest lag; the totals are over all selected sessions.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any, NamedTuple

from blipmq.native.core import Core
from blipmq.native.events import SessionRow, SessionsListed
from blipmq.sessions.connections import OWNER_ENDS, Connections

ROWS_MAX = 100  # in INFO
ASKED_ROWS_MAX = 1000  # in a request for sessions
FIND_BYTES_MAX = 256


class Wanted(NamedTuple):
    """The selection of a walk. `conn` and `owner`: only sessions of the key of that connection."""

    find: str = ""
    conn: int = 0
    owner: str = ""
    limit: int = ROWS_MAX
    exact: bool = False  # `find` is the filter, `owner` a client_id or ""
    filter: str = ""  # rows with exactly this filter only; the totals do not follow it

    @property
    def key(self) -> str | None:
        """The name of the key whose subscriptions are selected; None: those of all keys."""
        return self.owner.removesuffix(OWNER_ENDS) if self.conn else None


class Listing(NamedTuple):
    """The result of a walk: totals over all selected sessions, the rows with the largest lag, and the session that
    keeps most of the WAL from being deleted."""

    sums: dict[str, int]
    rows: list[SessionRow]
    holder: SessionRow | None


Answer = Callable[[Listing], None]


class SessionLists:
    """Lists the sessions of one core."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._waiting: dict[Wanted, list[Answer]] = {}  # in the order of the requests
        self._now: tuple[Wanted, list[Answer]] | None = None
        self._seq = 0
        self._rows: list[SessionRow] = []
        self._holder: SessionRow | None = None

    def __repr__(self) -> str:
        return f"<SessionLists now={self._now is not None} waiting={len(self._waiting)}>"

    def ask(self, answer: Answer, wanted: Wanted = Wanted()) -> None:  # noqa: B008  an immutable value
        """Call `answer` with the listing of the selected sessions."""
        self._waiting.setdefault(wanted, []).append(answer)
        if self._now is None:
            self._begin()

    def listed(self, event: SessionsListed) -> None:
        if self._now is None or event.seq != self._seq:
            return
        wanted, answers = self._now
        rows = [row for row in event.rows if not wanted.filter or row.filter == wanted.filter]
        for row in event.rows:
            if row.log_bytes and (self._holder is None or row.log_bytes > self._holder.log_bytes):
                self._holder = row
        self._rows = heapq.nlargest(wanted.limit, [*self._rows, *rows], key=_lag)
        if event.more:
            least = self._rows[-1].lag_messages + 1 if len(self._rows) == wanted.limit else 0
            self._push(begin=False, lag_min=least)
            return
        listing = Listing(event.sums, self._rows, self._holder)
        self._now, self._rows, self._holder = None, [], None
        if self._waiting:
            self._begin()
        for answer in answers:
            answer(listing)

    def _begin(self) -> None:
        wanted = next(iter(self._waiting))
        self._now = wanted, self._waiting.pop(wanted)
        self._seq += 1
        self._push(begin=True, lag_min=0)

    def _push(self, begin: bool, lag_min: int) -> None:
        assert self._now is not None
        wanted = self._now[0]
        self._core.sessions(self._seq, begin, lag_min, wanted.find, wanted.conn, wanted.owner, wanted.exact)


def _lag(row: SessionRow) -> tuple[int, int]:
    return row.lag_messages, row.log_bytes


def facts(row: SessionRow, connections: Connections, own_key: str | None = None) -> dict[str, Any]:
    """Return a row as INFO shows it. `away_ms`: milliseconds since the last member disconnected, 0 if one is connected.
    `own_key`: the row is for a client of that key and hides the clients and names of other keys; a group may have both."""
    holders = [_names(identity) for identity in row.client_ids]
    if own_key is not None:
        holders = [holder for holder in holders if holder[0] == own_key]
    key, client_id = holders[0] if holders else ("", "")
    connection = connections.find(row.conn) if row.conn and not row.durable else None
    if own_key is not None:
        key = own_key
    elif connection is not None and connection.key is not None:
        key = connection.key.name
    return {
        "key": key,
        "client_id": "" if row.group else client_id,
        "filter": row.filter,
        "group": row.group,
        "durable": row.durable,
        "qos": row.qos,
        "connected": row.members,
        "members": [name for _, name in holders] if row.group else [],
        "members_total": row.clients if row.group else 0,
        "lag_messages": row.lag_messages,
        "lag_bytes": row.lag_bytes,
        "lag_exact": not row.unsure,
        "log_bytes": row.log_bytes,
        "oldest_ms": row.oldest_ms,
        "last_seen_ms": row.last_seen_ms or None,
        "away_ms": row.away_ms,
        "in_flight": row.in_flight,
        "dead_lettered": row.dead_lettered,
        "over_quota": row.over_quota,
    }


def _names(identity: str) -> tuple[str, str]:
    """Split an identity into the name of the key and the client_id."""
    key, _, client_id = identity.rpartition(OWNER_ENDS)
    return key, client_id
