"""Checks of the arguments of the clients' and the broker's methods: one error sentence for each invalid value.

Invariant: a value of a wrong type raises WrongType, one out of range UsageError, both before anything is sent. Cheap
checks run at each call, the others when a value is seen for the first time.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from blipmq.errors import UsageError, WrongType

T = TypeVar("T")

API_KEY_BYTES_MIN, API_KEY_BYTES_MAX = 16, 512
"""The minimum for a new key, and the maximum for any. With the client id and the table, HELLO stays below the 1 KiB
that a broker reads from a client before it admits it."""

_SHOWN_MAX = 60


def check_text(name: str, value: Any) -> None:
    if not isinstance(value, str):
        raise wrong_type(name, value, "a str")


def check_whole(name: str, value: Any, least: int = 0, most: int | None = None) -> None:
    """Accepts any integer type, also those of other libraries."""
    try:
        number = operator.index(value)
    except TypeError:
        raise wrong_type(name, value, "a whole number") from None
    if number < least or (most is not None and number > most):
        limits = f"from {least}" if most is None else f"between {least} and {most}"
        raise UsageError(f"{name} is {number}; it must be {limits}.")


def check_qos(value: Any) -> None:
    check_whole("qos", value, 0, 1)


def check_flag(name: str, value: Any) -> None:
    if not (isinstance(value, int) and value in (0, 1)):
        raise wrong_type(name, value, "True or False")


def check_seconds(name: str, value: Any, *, none: bool = False) -> None:
    """`none`: whether None is allowed, for no limit."""
    if value is None and none:
        return
    if isinstance(value, (str, bytes)) or not hasattr(value, "__float__"):
        raise wrong_type(name, value, "a number of seconds or None" if none else "a number of seconds")
    if math.isnan(value) or value < 0:
        raise UsageError(f"{name} is {value}; it must be a number of seconds, 0 or more.")


def check_callable(name: str, value: Any) -> None:
    """Accepts a function, or None."""
    if value is not None and not callable(value):
        raise wrong_type(name, value, "a function or None")


def many(payloads: Iterable[T]) -> Iterator[T]:
    """Return an iterator over the payloads of publish_many. A single text or bytes object is iterable too, but is an
    error."""
    if isinstance(payloads, (str, bytes, bytearray, memoryview)):
        raise wrong_type("payloads", payloads, "a list or another iterable of payloads; publish() sends a single one")
    try:
        return iter(payloads)
    except TypeError:
        raise wrong_type("payloads", payloads, "a list or another iterable of payloads") from None


def check_origin(text: str) -> None:
    """Accepts `*`, or an origin in the form in which browsers send it (RFC 6454): SCHEME://HOST, or SCHEME://HOST:PORT."""
    if text == "*":
        return
    scheme, separator, host = text.partition("://")
    if not separator or not scheme.isascii() or not scheme.replace("-", "").replace("+", "").isalnum():
        raise ValueError("expected SCHEME://HOST or SCHEME://HOST:PORT, such as https://panel.example, or *")
    if not host or not host.isascii() or not host.isprintable() or any(c in "/?#@ ,*" for c in host) or len(text) > 255:
        raise ValueError(
            "an origin ends with its host or port; it has no path and no user, and is at most 255 ASCII characters"
        )
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    name = name if colon else host
    if not name or (colon and not (port.isdigit() and str(int(port[:6])) == port and 0 < int(port) <= 65535)):
        raise ValueError(f"expected a host and, behind a colon, a port between 1 and 65535; the port is {port!r}")
    if any(c in name for c in ":[]") and not (name[0] == "[" and name.find("]") == len(name) - 1):
        raise ValueError("an origin with an IPv6 address is written as http://[::1]:3000")
    if text != text.lower():
        raise ValueError(f"browsers send it in lower case: {text.lower()}")
    if (scheme, host.rpartition(":")[2]) in (("http", "80"), ("https", "443")):
        raise ValueError(f"browsers leave out the usual port: {text.rpartition(':')[0]}")


def ids_of(messages: Iterable[Any], qos_least: int = 0) -> list[int]:
    """The ids of messages to acknowledge; messages with a QoS below `qos_least` are ignored."""
    try:
        return [message.id for message in messages if message.qos >= qos_least]
    except AttributeError:
        wrong = next(message for message in messages if not (hasattr(message, "id") and hasattr(message, "qos")))
        raise wrong_type("the argument of ack", wrong, "a received message: ack(message) or ack(*messages)") from None


def wrong_type(name: str, value: Any, expected: str) -> WrongType:
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN_MAX else shown[:_SHOWN_MAX] + "…"
    return WrongType(f"{name} is {shown} ({type(value).__name__}); it must be {expected}.")
