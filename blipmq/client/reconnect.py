"""How a client detects the end of its connection, which error it reports, and whether it reconnects.

Invariant: an end has one reason, the most informative one: the broker's answer, else an error in its bytes, else the
system's error.
"""

from __future__ import annotations

import math
import socket

from blipmq import errors
from blipmq.base import tcp_keepalive
from blipmq.base.validation import check_callable, check_flag, check_seconds
from blipmq.client.trust import refused_certificate
from blipmq.errors import BlipMQError, ConfigError, Disconnected, NotTrusted, ProtocolError, TimedOut, UsageError

FINAL_CODES = frozenset(
    {
        errors.BAD_REQUEST,
        errors.NOT_AUTHENTICATED,
        errors.NOT_ALLOWED,
        errors.CLIENT_ID_IN_USE,
        errors.PROTOCOL_VERSION,
    }
)
"""Answers that would be the same at the next attempt: a client that gets one of these does not reconnect."""


# The minimum duration of an attempt, even if less time is left.
ATTEMPT_LEAST_S = 1.0


def seconds_to_wait(wait: bool | float) -> float:
    """Convert `wait` of `blipmq.connect` to seconds; infinity: without a limit. Raises UsageError."""
    if isinstance(wait, bool):
        return math.inf if wait else 0.0
    check_seconds("wait", wait)
    return float(wait)


def check_options(timeout_s: float, reconnect: bool, **functions: object) -> None:
    """Check the client options that nothing else checks. Raises UsageError."""
    check_seconds("timeout_s", timeout_s)
    check_flag("reconnect", reconnect)
    for name, function in functions.items():
        check_callable(name, function)


def attempt_s(timeout_s: float, left_s: float, *, waits: bool) -> float:
    """The time limit in seconds of one attempt to connect, if `left_s` seconds are left to wait."""
    return min(timeout_s, max(left_s, ATTEMPT_LEAST_S)) if waits else timeout_s


def is_permanent(error: BlipMQError) -> bool:
    """Whether the first connection would fail in the same way at every attempt."""
    return isinstance(error, (NotTrusted, ProtocolError, UsageError, ConfigError)) or error.code in FINAL_CODES


def waited(error: BlipMQError, address: object, wait_s: float, attempts: int) -> BlipMQError:
    """Return the last error of an attempt, with the time and the number of tries added to its message."""
    times = "once" if attempts == 1 else f"{attempts} times"
    error.args = (f"No connection to {address} in {wait_s:g} s, tried {times}. The last error: {error}",)
    return error


def unanswered(what: str, address: object, timeout_s: float, connected: bool, likely: str) -> BlipMQError:
    """The error for a request without an answer. A QoS 1 publish survives an outage and may still wait for a connection.
    `likely` completes the sentence about a broker that is connected."""
    if not connected:
        return Disconnected(
            f"{what}: no connection to {address}, and no answer in {timeout_s:g} s. "
            "The broker or the network is down. Unconfirmed messages may be lost."
        )
    return TimedOut(
        f"{what}: the broker at {address} did not answer in {timeout_s:g} s. It is overloaded, or {likely}."
    )


def connection_ended(
    address: object, error: BaseException | None, farewell: BlipMQError | None, *, welcomed: bool
) -> BlipMQError:
    """Return why a connection ended: the broker's answer, an error in its bytes, or the system's error."""
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
        f"The connection to {address} ended{why}. The broker was stopped or restarted, or the network failed. "
        "Unconfirmed messages may be lost."
    )


def keep_alive(sock: socket.socket) -> None:
    """Detect within a minute that a peer lost power. The reader of a quiet topic sends nothing that could fail."""
    tcp_keepalive.keep_alive(sock, tcp_keepalive.LOST_MS)
