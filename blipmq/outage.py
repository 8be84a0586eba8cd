"""How a client notices that its connection is over, says why, and knows whether to come back.

Invariant: an ending has one reason, the most telling there is: what the broker said, else what was wrong with its
bytes, else what the system reports.
"""

from __future__ import annotations

import socket

from blipmq import errors, keepalive
from blipmq.errors import BlipMQError, Disconnected, ProtocolError
from blipmq.trust import refused_certificate

FINAL_CODES = frozenset(
    {
        errors.BAD_REQUEST,
        errors.NOT_AUTHENTICATED,
        errors.NOT_ALLOWED,
        errors.CLIENT_ID_IN_USE,
        errors.PROTOCOL_VERSION,
    }
)
"""Answers that would be the same on the next attempt: a client that gets one of these does not reconnect."""


def connection_ended(
    address: object, error: BaseException | None, farewell: BlipMQError | None, *, welcomed: bool
) -> BlipMQError:
    """Why a connection is over: what the broker said, what was wrong with its bytes, or what the system reports."""
    if farewell is not None:
        return farewell
    if isinstance(error, ProtocolError):
        return error
    if refused := refused_certificate(address, error):
        return refused
    if not welcomed:
        return Disconnected(
            f"{address} took the connection and ended it without answering HELLO. "
            "It is not a BlipMQ 2 broker, or it is at its limit of connections, or it expects TLS there (tls://HOST:PORT); "
            "check the address and the broker's log."
        )
    why = f" ({error})" if error is not None and str(error) else ""
    return Disconnected(
        f"The connection to {address} ended{why}. The broker was stopped or restarted, or the network failed; "
        "what was not answered may not have arrived."
    )


def keep_alive(sock: socket.socket) -> None:
    """Notice within a minute that a peer lost power: the reader of a quiet topic sends nothing that could fail."""
    keepalive.keep_alive(sock, keepalive.LOST_MS)
