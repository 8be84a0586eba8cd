"""An operator's requests about sessions in their wire form: JSON in the payload of INFO and ADMIN.

Invariant: nothing here does I/O. An unexpected answer raises ProtocolError.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from blipmq.base.validation import check_text, check_whole
from blipmq.client.protocol import decode_info
from blipmq.errors import ProtocolError
from blipmq.wire.frames import Reply

SESSIONS_SHOWN = 100


def sessions_asked(find: str, limit: int) -> bytes:
    """Return the payload of INFO that asks for the sessions whose filter, client_id or group contains `find`."""
    import json  # imported here because most clients never ask

    check_text("find", find)
    check_whole("limit", limit)
    return json.dumps({"sessions": {"find": find, "limit": limit}}, ensure_ascii=False).encode()


def decode_sessions(reply: Reply) -> dict[str, Any]:
    """Decode the answer to `sessions_asked`: totals, and the rows in `list`. Raises ProtocolError if the broker is too
    old."""
    listed = decode_info(reply).get("sessions")
    if not isinstance(listed, dict) or not isinstance(listed.get("list"), list):
        raise ProtocolError("The broker does not support the list of sessions. Update the broker.")
    return listed


def filter_asked(filter_: str) -> bytes:
    """Return the payload of INFO that asks whether exactly this filter has a subscription."""
    import json

    return json.dumps({"filter": filter_}, ensure_ascii=False).encode()


def decode_filter(reply: Reply, filter_: str) -> bool:
    """Decode the answer to `filter_asked`. A broker of an earlier version sends its whole report, in which the rows of
    some subscriptions may be missing."""
    info = decode_info(reply)
    if "subscribed" in info:
        return info["subscribed"] is True
    sessions = info.get("sessions")
    listed = sessions.get("list") if isinstance(sessions, dict) else None
    return any(filter_ in _list(row.get("filters")) for row in _rows(info.get("subscriptions"))) or any(
        row.get("filter") == filter_ for row in _rows(listed)
    )


def _rows(value: object) -> Iterator[dict[str, Any]]:
    return (row for row in _list(value) if isinstance(row, dict))


def _list(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def end_asked(filter_: str, client_id: str, group: str, key: str | None) -> bytes:
    """Return the payload of ADMIN that ends a durable subscription."""
    for name, text in (("filter", filter_), ("client_id", client_id), ("group", group), ("key", key or "")):
        check_text(name, text)
    import json

    named = {"filter": filter_, "client_id": client_id, "group": group, "key": key}
    asked = {"do": "sessions.end", **{name: text for name, text in named.items() if text is not None}}
    return json.dumps(asked, ensure_ascii=False).encode()


def decode_end(reply: Reply) -> dict[str, Any]:
    """Decode the answer to `end_asked`: the ended subscription with its last state."""
    row = decode_info(reply).get("ended")
    if not isinstance(row, dict):
        raise ProtocolError(
            "The answer to ADMIN is not valid. Update the client or the broker: their versions may not fit together."
        )
    return row
