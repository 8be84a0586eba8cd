"""What an operator asks of a broker about its sessions, as it goes over the wire: JSON in the payload of INFO.

Invariant: nothing here does I/O. An answer that is not what was asked for is a ProtocolError that says what to do.
"""

from __future__ import annotations

from typing import Any

from blipmq.client_protocol import decode_info
from blipmq.errors import ProtocolError
from blipmq.wire import Reply

SESSIONS_SHOWN = 100


def sessions_asked(find: str, limit: int) -> bytes:
    """Asks INFO for the sessions whose filter, client_id or group holds `find`."""
    import json  # here, because most clients never ask

    return json.dumps({"sessions": {"find": find, "limit": limit}}, ensure_ascii=False).encode()


def decode_sessions(reply: Reply) -> dict[str, Any]:
    """The answer to what `sessions_asked` asks for: sums, and the rows in `list`."""
    listed = decode_info(reply).get("sessions")
    if not isinstance(listed, dict) or not isinstance(listed.get("list"), list):
        raise ProtocolError("The broker does not list its sessions: it is older than this client.")
    return listed
