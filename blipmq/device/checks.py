"""Checks of host names, addresses, public keys …: one function for each kind.

Invariant: each takes a text that is not empty and raises ValueError with a phrase that says what is allowed. An
accepted text has no line end and no control character, so it can be written into another program's configuration file.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re

from blipmq.errors import UsageError
from blipmq.wire import topics

OWN_KEY_NAME = "blipmq-device"
"""The name of the key with which a device tests its broker."""

_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?")
_KEY_KINDS = (
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
)


def check_hostname(text: str) -> None:
    if not _LABEL.fullmatch(text):
        raise ValueError("a name has at most 63 letters, digits and hyphens, and does not begin or end with a hyphen")


def check_host(text: str) -> None:
    if len(text) <= 253 and all(_LABEL.fullmatch(label) for label in text.split(".")):
        return
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError('expected a name such as "pool.ntp.org", or an address') from None


def check_address(text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError('expected an address such as "192.168.1.1"') from None
    if "%" in text:
        raise ValueError("expected an address without an interface name")


def check_interface_address(text: str) -> None:
    if text == "dhcp":
        return
    try:
        interface = ipaddress.ip_interface(text)
    except ValueError:
        raise ValueError('expected "dhcp", or an address with the length of its network: "192.168.1.20/24"') from None
    if "%" in text:
        raise ValueError("expected an address without an interface name")
    if "/" not in text:
        raise ValueError(f'the length of the network is missing; most often "{text}/24" is meant')
    network = interface.network
    if (
        network.version == 4
        and network.prefixlen < 31
        and interface.ip in (network.network_address, network.broadcast_address)
    ):
        raise ValueError(
            f"this is the address of the network {network} or its broadcast address; use another address of that network"
        )


def check_ssid(text: str) -> None:
    if not text.isprintable() or len(text.encode()) > 32:
        raise ValueError("the name of a network has at most 32 bytes and no control characters")


def check_passphrase(text: str) -> None:
    if not (8 <= len(text) <= 63 and text.isascii() and text.isprintable()):
        raise ValueError("a passphrase has 8 to 63 characters: letters, digits, punctuation, no accents")


def check_country(text: str) -> None:
    if not re.fullmatch(r"[A-Z]{2}", text):
        raise ValueError('expected two capital letters, such as "DE"')


def check_ssh_key(text: str) -> None:
    words = text.split(maxsplit=2)
    if not text.isprintable():
        raise ValueError("a public key is one line")
    if "PRIVATE KEY" in text:
        raise ValueError("this is a private key, which must stay secret; use the line of the .pub file")
    if len(words) < 2 or words[0] not in _KEY_KINDS:
        raise ValueError('expected the line of a .pub file, such as "ssh-ed25519 AAAA... name"')
    try:
        blob = base64.b64decode(words[1], validate=True)
    except (binascii.Error, ValueError):
        blob = b""
    kind = words[0].encode()
    is_ed25519 = words[0] == "ssh-ed25519"
    if blob[4 : 4 + len(kind)] != kind or blob[:4] != len(kind).to_bytes(4, "big") or (is_ed25519 and len(blob) != 51):
        raise ValueError("the key is incomplete; copy the whole line of the .pub file")
    if is_ed25519 and not _is_on_curve(blob[19:]):
        raise ValueError("the key is damaged, or is that of the example; copy the line of your own .pub file")


def _is_on_curve(point: bytes) -> bool:
    """Whether 32 bytes are a public key of Ed25519 (RFC 8032, 5.1.3): whether x*x = (y*y - 1) / (d*y*y + 1) has a root."""
    p = 2**255 - 19
    d = -121665 * pow(121666, p - 2, p)
    y = int.from_bytes(point, "little") & ((1 << 255) - 1)
    square = (y * y - 1) * pow(d * y * y + 1, p - 2, p) % p
    return y < p and pow(square, (p - 1) // 2, p) in (0, 1)


def check_key_name(text: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text):
        raise ValueError("a name has at most 64 letters, digits, -, _ and .")
    if text == OWN_KEY_NAME:
        raise ValueError("this is the name of the device's own key; choose another")


def check_key(text: str) -> None:
    if len(text) < 16 or len(text) > 256 or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a key has 16 to 256 letters, digits and signs, without spaces")


def check_right(text: str) -> None:
    if text == "admin":
        return
    verb, colon, pattern = text.partition(":")
    if not colon or verb not in ("pub", "sub"):
        raise ValueError('expected "pub:TOPIC", "sub:FILTER" or "admin"')
    try:
        topics.check_filter(pattern)
    except UsageError as error:
        raise ValueError(str(error)) from None
