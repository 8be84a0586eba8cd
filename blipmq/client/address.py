"""The address of a broker: "host", "host:port", "1.2.3.4:port" or "[::1]:port", optionally with "tls://" in front, or
"ws://host:port/path" and "wss://"; and the errors for an address where nothing answers.

Invariant: parsing does not use the network. Addresses are parsed only here.
"""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, NamedTuple

from blipmq.base.peer import host_port
from blipmq.base.validation import check_text
from blipmq.errors import BlipMQError, ProtocolError, Unreachable, UsageError

if TYPE_CHECKING:
    from blipmq.wire.websocket import HandshakeRefused

PORT, TLS_PORT = 7878, 7879
_WEB_PORT, _WEB_TLS_PORT = 80, 443
_SCHEMES = {"tcp": (False, False), "tls": (True, False), "ws": (False, True), "wss": (True, True)}  # TLS, WebSocket


class Address(NamedTuple):
    host: str
    port: int
    tls: bool = False
    path: str = ""
    """Of a WebSocket; "": no WebSocket."""

    def __str__(self) -> str:
        where = self.host_header
        if self.path:
            return f"{'wss' if self.tls else 'ws'}://{where}{self.path}"
        return f"tls://{where}" if self.tls else where

    @property
    def host_header(self) -> str:
        """Host and port."""
        return host_port(self.host, self.port)


def parse_address(text: str, tls: bool | None = None) -> Address:
    """Parse HOST, HOST:PORT, tls://HOST:PORT, tcp://HOST:PORT, ws://HOST:PORT/PATH or wss://HOST:PORT/PATH. The port
    defaults to 7878, with TLS to 7879, of a WebSocket to 80 and 443; the path defaults to /blipmq. `tls` says whether
    an address without a scheme uses TLS. Raises UsageError if the text is not an address or if it contradicts `tls`."""
    check_text("the address", text)
    scheme, separator, rest = text.partition("://")
    if not separator:
        return _parse(text, bool(tls))
    if scheme not in _SCHEMES:
        raise UsageError(
            f"The address {text!r} is a URL of another kind; write it as HOST:PORT, for example 127.0.0.1:{PORT}, "
            "as tls://HOST:PORT, or as ws://HOST:PORT or wss://HOST:PORT for WebSocket."
        )
    secure, web = _SCHEMES[scheme]
    if tls is not None and tls != secure:
        if secure:
            raise UsageError(f"The address {text!r} needs TLS, but the option tls is False; remove one of the two.")
        raise UsageError(
            f"The address {text!r} excludes TLS, but TLS options are set; use {'wss' if web else 'tls'}:// or remove the options."
        )
    if not web:
        return _parse(rest, secure)
    place, slash, path = rest.partition("/")
    if not (path.isascii() and path.isprintable()) or any(c in path for c in " #"):
        raise UsageError(f"The path of {text!r} has characters that a URL does not allow.")
    address = _parse(place, secure)
    if not _has_port(place):
        address = address._replace(port=_WEB_TLS_PORT if secure else _WEB_PORT)
    return address._replace(path=slash + path if path else "/blipmq")


def _has_port(place: str) -> bool:
    return ":" in place.rpartition("]")[2]


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


def websocket_failed(address: Address, error: HandshakeRefused) -> BlipMQError:
    """Return the error for a failed handshake of a WebSocket. A broker or proxy that is overloaded or starting may accept
    the next one."""
    what = f"Cannot open a WebSocket at {address}: {str(error).rstrip('.')}."
    return Unreachable(what) if error.status >= 500 or error.status == 408 else ProtocolError(what)


def closed_in_handshake() -> ConnectionResetError:
    """Return the cause of a WebSocket that ended before its answer came."""
    return ConnectionResetError(
        "it closed the connection during the WebSocket handshake, as a port without WebSocket does; use the port of its "
        "server.ws_bind_addr"
    )


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
