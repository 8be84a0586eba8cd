"""Who is at the far end of a connection: the address as a system gives it, as the core has it, and as people write it.

Invariant: sixteen bytes and a port stand for one peer, IPv4 mapped into IPv6; sixteen zeros for nobody that has an address.
"""

from __future__ import annotations

import socket
import struct

_MAPPED = bytes(10) + b"\xff\xff"
_LOOPBACK = bytes(15) + b"\x01"


def peer_name(address: bytes, port: int) -> str:
    """`address` (16 bytes, IPv4 mapped into IPv6) and port as people write them; "" for a fed connection."""
    if not any(address):
        return ""
    if address[:12] == _MAPPED:
        return f"{socket.inet_ntop(socket.AF_INET, address[12:])}:{port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, address)}]:{port}"


def address_bytes(host: str) -> bytes:
    """The sixteen bytes of a numeric address; a zone behind it is left out. Raises OSError for anything else."""
    if ":" in host:
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
    return _MAPPED + socket.inet_pton(socket.AF_INET, host)


def peer_bytes(peer: tuple[str, int]) -> bytes:
    """`bq_peer_t`, from a numeric address and a port."""
    return address_bytes(peer[0]) + struct.pack("=H", peer[1])


def place_of(host: str) -> bytes:
    """Whose place the numeric address `host` takes at a door: its own if it is IPv4, its /64's if it is IPv6. b"" for this
    machine's own, of which only the total is bounded. As `address_counts` and `address_of` of net/admission.c have it."""
    address = address_bytes(host)
    if address == _LOOPBACK or address[:13] == _MAPPED + b"\x7f":
        return b""
    return address if address[:12] == _MAPPED else address[:8]


def is_this_machine(peer: str) -> bool:
    """Whether a peer's name, as `peer_name` has it, is of a loopback address; "" is of this process."""
    if not peer:
        return True
    host = peer.rpartition(":")[0].strip("[]")
    try:
        return not place_of(host)
    except OSError:
        return False
