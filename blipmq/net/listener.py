"""Listening sockets: opened in Python, which resolves names and explains errors, then handed to the core.

Invariant: a returned socket listens, is non-blocking and is closed on exec. The caller owns it.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING

from blipmq.base.bind_address import split_address
from blipmq.base.peer import host_port
from blipmq.errors import BlipMQError, ConfigError, NotAllowed

if TYPE_CHECKING:
    from blipmq.net.bind_retry import BindRetry, Use

BACKLOG = 4096


class AddressInUse(BlipMQError):
    """Another process already listens at the address."""

    exit_status = 69


class AddressMissing(ConfigError):
    """The address is not this machine's, or the name is unknown. Both may become available later, for example after a
    power cut."""


def open_listener(bind_addr: str, key: str = "server.bind_addr") -> socket.socket:
    """Return a socket that listens at HOST:PORT or [IPv6]:PORT, which the setting `key` names.

    Raises `AddressInUse`, `AddressMissing`, `NotAllowed` (a privileged port) or `ConfigError`.
    """
    host, port = split_address(bind_addr)
    # ASCII names are passed as bytes: str would load the IDNA codec, which costs 2 ms and 1 MB at the start.
    name = host.encode() if host.isascii() else host
    try:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        reason = error.strerror or str(error)
        raise AddressMissing(
            f"{key}: this machine cannot resolve the name {host!r} ({reason}). "
            "Set an address of this machine, such as 127.0.0.1, or 0.0.0.0 for all its addresses."
        ) from None
    # A name may have addresses of both families. IPv4 comes first, as users expect of localhost.
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)
    family, _, _, _, address = found[0]
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if os.name == "posix":  # on Windows the option lets two processes share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        listener.setblocking(False)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise _explained(error, bind_addr, port, key) from None
    return listener


async def open_or_wait(bind_addr: str, key: str, use: Use, bind_retry: BindRetry | None) -> socket.socket | None:
    """Call `open_listener`. With `bind_retry`, return None if the address is not available yet; `use` then gets the
    listener later."""
    return open_listener(bind_addr, key) if bind_retry is None else await bind_retry.open(key, bind_addr, use)


def address_of(listener: socket.socket) -> str:
    """The listening address, with the port that the system chose."""
    host, port = listener.getsockname()[:2]
    return host_port(host, port)


def _explained(error: OSError, bind_addr: str, port: int, key: str) -> BlipMQError:
    if error.errno == errno.EADDRINUSE:
        look = f"ss -ltnp 'sport = :{port}'" if sys.platform == "linux" else f"lsof -i :{port}"
        return AddressInUse(
            f"{bind_addr} is in use by another process, perhaps another broker. "
            f"Find it with `{look}`, or choose another {key}."
        )
    if error.errno == errno.EACCES:
        return NotAllowed(
            f"{bind_addr}: this user may not listen on port {port}. Choose a port from 1024 up, "
            "or give the service CAP_NET_BIND_SERVICE."
        )
    if error.errno == errno.EADDRNOTAVAIL:
        return AddressMissing(
            f"{key}: {bind_addr} is not an address of this machine. List its addresses with `ip address`, or "
            "set 0.0.0.0 for all of them."
        )
    return ConfigError(f"{key}: cannot listen on {bind_addr}: {error.strerror}. Set another address.")
