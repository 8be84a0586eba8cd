"""The address of a peer: in the system's form, in the core's form, and as text.

Invariant: sixteen bytes and a port identify a peer; IPv4 is mapped into IPv6. Sixteen zeros mean a peer without an
address.
"""

from __future__ import annotations

import socket
import struct

_MAPPED = bytes(10) + b"\xff\xff"
_LOOPBACK = bytes(15) + b"\x01"


def peer_name(address: bytes, port: int) -> str:
    """The text of `address` (16 bytes, IPv4 mapped into IPv6) and port; "" for an in-memory connection."""
    if not any(address):
        return ""
    if address[:12] == _MAPPED:
        return host_port(socket.inet_ntop(socket.AF_INET, address[12:]), port)
    return host_port(socket.inet_ntop(socket.AF_INET6, address), port)


def host_port(host: str, port: int) -> str:
    """The text of a host, perhaps an IPv6 address, and a port."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def address_bytes(host: str) -> bytes:
    """The sixteen bytes of a numeric address, without its zone. Raises OSError for anything else."""
    if ":" in host:
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return _MAPPED + socket.inet_pton(socket.AF_INET, host)


def peer_bytes(peer: tuple[str, int]) -> bytes:
    """Build `bq_peer_t` from a numeric address and a port."""
    return address_bytes(peer[0]) + struct.pack("=H", peer[1])


def place_of(host: str) -> bytes:
    """The key under which admission counts the numeric address `host`: the address for IPv4, its /64 for IPv6, b"" for
    loopback, which only the total limit counts. The same as `address_counts` and `address_of` in net/admission.c."""
    address = address_bytes(host)
    if address == _LOOPBACK or address[:13] == _MAPPED + b"\x7f":
        return b""
    return address if address[:12] == _MAPPED else address[:8]


def is_this_machine(peer: str) -> bool:
    """Whether a peer's text from `peer_name` is a loopback address. "" is a peer in this process."""
    if not peer:
        return True
    host = peer.rpartition(":")[0].strip("[]")
    try:
        return not place_of(host)
    except OSError:
        return False
