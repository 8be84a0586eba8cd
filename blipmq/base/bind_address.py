"""Listening addresses as settings write them: ADDRESS:PORT, [IPv6]:PORT or NAME:PORT.

Invariant: nothing here uses the network; only the syntax of a name is checked.
"""

from __future__ import annotations

import re
import socket

LOOPBACK_NAMES = ("localhost", "ip6-localhost")


def split_address(text: str) -> tuple[str, int]:
    """Split `HOST:PORT` or `[IPv6]:PORT`. Raises ValueError with the cause."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([^\[\]:\s]+)):([0-9]{1,5})", text)
    if match is None:
        if text.count(":") > 1 and not text.startswith("["):
            raise ValueError("an IPv6 address needs brackets: [::1]:7878")
        raise ValueError("expected ADDRESS:PORT, [IPv6]:PORT or NAME:PORT, such as 127.0.0.1:7878")
    port = int(match[3])
    if port > 65535:
        raise ValueError(f"port {port} is above the maximum of 65535")
    host: str = match[1] or match[2]
    if not _could_be_a_host(host, in_brackets=bool(match[1])):
        raise ValueError(f"{host} is neither an address nor a host name")
    return host, port


def _could_be_a_host(host: str, in_brackets: bool) -> bool:
    """Whether `host` is a valid address or a valid name, even one that is not known yet. Anything else is reported as
    an error at once, because waiting cannot help."""
    try:
        if in_brackets:
            socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        elif re.fullmatch(r"[0-9.]+", host):
            socket.inet_aton(host)
        else:
            labels = host.removesuffix(".").split(".")
            return len(host) <= 253 and all(re.fullmatch(r"(?!-)[\w-]{1,63}(?<!-)", label) for label in labels)
    except OSError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach `host`. A name other than localhost counts as reachable from other machines."""
    if host.lower() in LOOPBACK_NAMES:
        return True
    try:
        return socket.inet_pton(socket.AF_INET, host)[0] == 127
    except OSError:
        pass
    try:
        return socket.inet_pton(socket.AF_INET6, host) == _IPV6_LOOPBACK
    except OSError:
        return False


_IPV6_LOOPBACK = bytes(15) + b"\x01"
