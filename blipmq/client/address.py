"""The address of a broker: "host", "host:port", "1.2.3.4:port" or "[::1]:port", optionally with "tls://" in front; and
the errors for an address where nothing answers.

Invariant: parsing does not use the network. Addresses are parsed only here.
"""

from __future__ import annotations

import errno
import socket
from typing import NamedTuple

from blipmq.base.validation import check_text
from blipmq.errors import BlipMQError, Unreachable, UsageError

PORT, TLS_PORT = 7878, 7879


class Address(NamedTuple):
    host: str
    port: int
    tls: bool = False

    def __str__(self) -> str:
        where = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return f"tls://{where}" if self.tls else where


def parse_address(text: str, tls: bool | None = None) -> Address:
    """Parse HOST, HOST:PORT, tls://HOST:PORT or tcp://HOST:PORT. The port defaults to 7878, with TLS to 7879. `tls`
    says whether an address without a scheme uses TLS. Raises UsageError if the text is not an address or if it
    contradicts `tls`."""
    check_text("the address", text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _parse(text, bool(tls))
    if scheme not in ("tls", "tcp"):
        raise UsageError(
            f"The address {text!r} is a URL of another kind; write it as HOST:PORT, for example 127.0.0.1:{PORT}, "
            "or as tls://HOST:PORT."
        )
    if tls is not None and tls != (scheme == "tls"):
        raise UsageError(
            f"The address {text!r} excludes TLS, but TLS options are set; use tls:// or remove the options."
        )
    return _parse(rest, scheme == "tls")


def _parse(text: str, tls: bool) -> Address:
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"The address {text!r} is incomplete; write IPv6 as [::1]:{PORT}.")
        port_text = rest[1:]
    elif text.count(":") > 1:
        raise UsageError(f"The address {text!r} has more than one colon; write IPv6 in brackets, as [::1]:{PORT}.")
    else:
        host, _, port_text = text.partition(":")
        rest = text[len(host) :]
    if not host or any(character.isspace() for character in host):
        raise UsageError(f"The address {text!r} has no host; write HOST:PORT, for example 127.0.0.1:{PORT}.")
    if not rest:
        return Address(host, TLS_PORT if tls else PORT, tls)
    if not (port_text.isascii() and port_text.isdigit() and 0 < int(port_text[:6]) <= 65535):
        raise UsageError(f"The port of {text!r} is {port_text!r}; it must be a number between 1 and 65535.")
    return Address(host, int(port_text), tls)


def not_found_in_time(address: Address) -> BlipMQError:
    """Return the error for a host name whose look-up timed out."""
    return Unreachable(
        f"Cannot reach a broker at {address}: the host name was not found in time. Check the network and its name server, "
        "or use the numeric address."
    )


def unreachable(address: Address, error: BaseException) -> BlipMQError:
    """Return the error for a failed attempt to connect. `error` is the system's."""
    if address.tls:
        from blipmq.client.trust import handshake_failed

        if failed := handshake_failed(address, address.host, error):
            return failed
    if isinstance(error, socket.gaierror):
        why = "the host name is not known. Check the spelling, or use the numeric address"
    elif isinstance(error, ConnectionRefusedError):
        why = "nothing listens there. Start the broker (`blipmq start`), or check the port"
    elif isinstance(error, TimeoutError) or getattr(error, "errno", None) == errno.ETIMEDOUT:
        why = "no answer in time. Check that the machine is on, and that no firewall is in between"
    elif getattr(error, "errno", None) in (errno.ENETUNREACH, errno.EHOSTUNREACH):
        why = "there is no route to it. Check the cable or the wireless link, and the address"
    else:
        why = f"{error or type(error).__name__}. Check the address and the network"
    return Unreachable(f"Cannot reach a broker at {address}: {why}.")
