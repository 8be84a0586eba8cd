"""Ending durable subscriptions and queue groups of any client, for operators.

Invariant: the target must be named exactly. If it fits more than one, nothing ends, and the answer says how to tell
them apart. The request is answered once the end is on disk, and a log line names the operator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from blipmq.base.logs import Log
from blipmq.errors import BAD_REQUEST, NO_SUBSCRIPTION, NOT_NOW, OK
from blipmq.native.core import Core
from blipmq.native.events import Outcome, SessionEnded, SessionRow
from blipmq.sessions import listing as session_list
from blipmq.sessions.connections import OWNER_ENDS, Connections
from blipmq.sessions.listing import ASKED_ROWS_MAX, Listing, SessionLists, Wanted

NAMES_TOLD = 5  # key names listed in an error, where a client_id belongs to several keys


class Target(NamedTuple):
    """The subscription to end. `key`: the name of the key that a client_id belongs to; None: any key, if only one
    matches."""

    filter: str
    client_id: str = ""
    group: str = ""
    key: str | None = None


class End(NamedTuple):
    """The outcome: a code of the protocol with its reason, and the last state of the subscription."""

    code: int
    text: str
    row: dict[str, Any]


Answer = Callable[[End], None]


class SessionEnds:
    """Ends sessions of one core."""

    def __init__(self, core: Core, lists: SessionLists, connections: Connections, log: Log) -> None:
        self._core = core
        self._lists = lists
        self._connections = connections
        self._log = log
        self._seq = 0
        self._answers: dict[int, Callable[[int], None]] = {}

    def __repr__(self) -> str:
        return f"<SessionEnds waiting={len(self._answers)}>"

    def end(self, target: Target, who: dict[str, str], answer: Answer) -> None:
        """End the subscription that `target` names, and call `answer` when that is on disk. `who` names the operator:
        fields for the log line."""
        if not (target.client_id or target.group):
            answer(End(BAD_REQUEST, "the request needs the client_id or the group of the subscription", {}))
            return
        if target.group and target.key is not None and not target.client_id:
            answer(End(BAD_REQUEST, "a request with a group and a key also needs the client_id of the member", {}))
            return
        wanted = Wanted(target.filter, owner=target.client_id, limit=ASKED_ROWS_MAX, exact=True)
        self._lists.ask(lambda listing: self._listed(target, who, answer, listing), wanted)

    def ended(self, event: SessionEnded) -> None:
        answer = self._answers.pop(event.seq, None)
        if answer is not None:
            answer(_CODES[event.outcome])

    def _listed(self, target: Target, who: dict[str, str], answer: Answer, listing: Listing) -> None:
        found = [(row, session_list.facts(row, self._connections)) for row in listing.rows if row.group == target.group]
        key = None if target.group else target.key  # a group may have client_ids of several keys
        durable = [(row, fact) for row, fact in found if row.durable and key in (None, fact["key"])]
        if len(durable) == 1:
            self._end(*durable[0], target, who, answer)
        elif durable:
            keys = ", ".join(sorted(repr(fact["key"]) for _, fact in durable)[:NAMES_TOLD])
            answer(
                End(
                    BAD_REQUEST,
                    f"{len(durable)} keys have such a subscription ({keys}): add one of these keys to the request",
                    {},
                )
            )
        elif found and key is None:
            answer(End(BAD_REQUEST, "the subscription is not durable: it ends with its connection", {}))
        else:
            answer(End(NO_SUBSCRIPTION, "there is no such subscription", {}))

    def _end(self, row: SessionRow, fact: dict[str, Any], target: Target, who: dict[str, str], answer: Answer) -> None:
        def ended(code: int) -> None:
            if code == OK:
                names = {name: fact[name] for name in ("client_id", "key", "filter", "group") if fact[name]}
                names |= {"client_id": target.client_id} if target.client_id else {}
                self._log.warning("session_ended", **names, lag_messages=fact["lag_messages"], **who)
            answer(End(code, _REASONS[code], fact))

        self._seq += 1
        self._answers[self._seq] = ended
        client_id = target.client_id if target.group else ""
        identity = f"{target.key}{OWNER_ENDS}{client_id}" if client_id and target.key else client_id
        self._core.end_session(self._seq, row.id, identity)


_CODES = {
    Outcome.DONE: OK,
    Outcome.INVALID: BAD_REQUEST,
    Outcome.NOT_FOUND: NO_SUBSCRIPTION,
    Outcome.UNAVAILABLE: NOT_NOW,
}

_REASONS = {
    OK: "",
    BAD_REQUEST: "clients of several keys have that client_id in the group: add the key to the request",
    NO_SUBSCRIPTION: "the subscription has ended in the meantime",
    NOT_NOW: "the WAL is full or has stopped, so the end cannot be stored: blipmq-cli info shows the cause",
}
