"""The exceptions of BlipMQ: one class for each case that a caller handles differently.

Invariant: each message says what happened, the likely cause and the next step. `exit_status` is the exit status of the
command line. `code` is the broker's code from the wire, or 0 if the error does not come from a broker.
"""

from __future__ import annotations

OK = 0
BAD_REQUEST = 400
NOT_AUTHENTICATED = 401
NOT_ALLOWED = 403
NO_SUBSCRIPTION = 404
CLIENT_ID_IN_USE = 409
ENDED = 410
TOO_LARGE = 413
PROTOCOL_VERSION = 426
TOO_MANY = 429
INTERNAL = 500
NOT_NOW = 503

CLOSING_CODES = frozenset({NOT_AUTHENTICATED, TOO_LARGE, PROTOCOL_VERSION})
"""Codes after which the broker closes the connection, as it does after a frame that does not verify."""

_ADVICE = {
    BAD_REQUEST: "The request is not valid; check topic, filter and QoS.",
    NOT_AUTHENTICATED: "Set $BLIPMQ_API_KEY or --key-file to a valid key. `blipmq keys list` on the broker lists the keys.",
    NOT_ALLOWED: "Use a key with this right. `blipmq keys list` on the broker shows the rights of each key.",
    NO_SUBSCRIPTION: "Check the filter, the client_id and the group; `blipmq-cli sessions` lists QoS 1 subscriptions.",
    CLIENT_ID_IN_USE: "Give each client its own client_id.",
    ENDED: "Subscribe again if you still need the messages.",
    TOO_LARGE: "Send smaller messages, or raise server.max_message_size_bytes on the broker.",
    PROTOCOL_VERSION: "Client and broker use different protocol versions; update the older one.",
    TOO_MANY: "Try again later, or raise the limit.",
    INTERNAL: "The broker had an internal error; its log has the cause.",
    NOT_NOW: "Repeat the request when the cause is gone.",
}


class BlipMQError(Exception):
    """Base of all errors of this package. `str(error)` is a sentence that a person can act on."""

    exit_status = 1

    def __init__(self, message: str, *, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class ConfigError(BlipMQError):
    """A setting, key file or address is invalid. Nothing was sent."""

    exit_status = 78


class FileUnusable(ConfigError):
    """A file named by a setting cannot be used now. Another program may still be writing it, so a retry can help."""

    exit_status = 66


class LogLocked(BlipMQError):
    """Another broker uses the WAL directory. It may be about to stop, so a retry can help."""

    exit_status = 69


class LogUnusable(BlipMQError):
    """The WAL cannot be opened. `exit_status` is 78 if a newer version wrote it or the path cannot be a WAL directory,
    77 if access is denied, 71 if the system call failed (a retry can help)."""

    def __init__(self, message: str, *, exit_status: int = 78) -> None:
        super().__init__(message)
        self.exit_status = exit_status


class UsageError(BlipMQError, ValueError):
    """The caller passed an invalid value, for example a bad topic or a QoS of 2. Nothing was sent."""

    exit_status = 2


class WrongType(UsageError, TypeError):
    """The caller passed a value of the wrong type. Nothing was sent."""


class Unreachable(BlipMQError, ConnectionError):
    """No broker answers at the address: nothing listens, there is no route, the name is unknown, or the attempt timed
    out."""

    exit_status = 69


class NotTrusted(BlipMQError, ConnectionError):
    """The broker's certificate is not trusted, or the broker does not accept this client's certificate."""

    exit_status = 77


class Disconnected(BlipMQError, ConnectionError):
    """The connection ended and did not come back in time. Unanswered messages may or may not have arrived."""

    exit_status = 69


class TimedOut(BlipMQError, TimeoutError):
    """The broker is connected but did not answer in time."""

    exit_status = 1


class ProtocolError(BlipMQError):
    """The received bytes are not the BlipMQ protocol. The connection cannot be used any further."""

    exit_status = 1


class Refused(BlipMQError):
    """The broker refused the request. `code` is the wire code, `reason` the broker's text."""

    exit_status = 1

    def __init__(self, message: str, *, code: int = 0, reason: str = "") -> None:
        super().__init__(message, code=code)
        self.reason = reason


class NotAllowed(Refused):
    """The broker does not know the API key (401), or the key has no right to the topic (403)."""

    exit_status = 77


class Ended(Refused):
    """An operator ended the subscription (410). The connection stays open."""


def refusal(what: str, code: int, reason: str) -> Refused:
    """Return the exception for a Reply or SubAck with a code other than 0. `what` names the attempt: "publish to
    orders"."""
    kind = NotAllowed if code in (NOT_AUTHENTICATED, NOT_ALLOWED) else Ended if code == ENDED else Refused
    advice = _ADVICE.get(code, "This client does not know the code; the broker may be newer.")
    happened = "has ended" if kind is Ended else "was refused"
    return kind(f"{what} {happened} ({code}): {reason or 'no reason given'}. {advice}", code=code, reason=reason)
