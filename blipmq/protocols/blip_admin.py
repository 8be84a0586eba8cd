"""Requests of an operator over the wire: ADMIN, JSON in and JSON out.

Invariant: the right is checked before the request is parsed. With keys that is the right `admin`, or a key without an
ACL; without keys the client must connect from this machine.
"""

from __future__ import annotations

from typing import Any

from blipmq.auth.auth import Auth
from blipmq.base.peer import is_this_machine
from blipmq.errors import BAD_REQUEST, NOT_ALLOWED, OK
from blipmq.native.core import Core
from blipmq.native.events import AdminAsked
from blipmq.sessions.connections import Connection
from blipmq.sessions.end import End, SessionEnds, Target

NO_RIGHT = "this request needs a key with the right admin. To create one: blipmq keys add NAME --allow admin"
NOT_LOCAL = "without keys, only clients on the broker's machine may do this"
UNKNOWN = 'not valid: {"do": "sessions.end", "filter": ..., "client_id": ..., "group": ..., "key": ...} is expected'
TEXT_CHARS_MAX = 1024


class Operators:
    """Answers the ADMIN requests of clients."""

    def __init__(self, core: Core, auth: Auth, ends: SessionEnds) -> None:
        self._core = core
        self._auth = auth
        self._ends = ends

    def __repr__(self) -> str:
        return f"<Operators {self._ends!r}>"

    def admin(self, event: AdminAsked, connection: Connection | None) -> None:
        """Execute the request, if the client may make it, and answer."""
        problem = self._problem(event, connection)
        if problem:
            self._core.reply(event.conn, event.seq, NOT_ALLOWED, problem)
            return
        target = _target(event.asked)
        if target is None:
            self._core.reply(event.conn, event.seq, BAD_REQUEST, UNKNOWN)
            return

        def answer(end: End) -> None:
            import json  # imported here because few brokers get such a request

            payload = json.dumps({"ended": end.row}, ensure_ascii=False).encode() if end.code == OK else b""
            self._core.reply(event.conn, event.seq, end.code, end.text, payload)

        self._ends.end(target, _who(event, connection), answer)

    def _problem(self, event: AdminAsked, connection: Connection | None) -> str:
        if event.trusted:
            return ""
        if self._auth.required:
            key = connection.key if connection is not None else None
            return "" if key is not None and key.may_admin else NO_RIGHT
        return "" if is_this_machine(event.peer) else NOT_LOCAL


def _who(event: AdminAsked, connection: Connection | None) -> dict[str, str]:
    by = connection.key.name if connection is not None and connection.key is not None else ""
    return {**({"by": by} if by else {}), "peer": event.peer or "in-process"}


def _target(asked: bytes) -> Target | None:
    import json

    try:
        request: Any = json.loads(asked)
    except (ValueError, RecursionError):
        return None
    if not isinstance(request, dict) or request.pop("do", None) != "sessions.end":
        return None
    texts = {name: text for name, text in request.items() if name in Target._fields}
    if texts != request or not all(isinstance(text, str) and len(text) <= TEXT_CHARS_MAX for text in texts.values()):
        return None
    return Target(**texts) if texts.get("filter") else None
