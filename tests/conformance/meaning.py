"""Compares packets of a server by their meaning: the test scripts of mosquitto compare bytes, and one meaning has many encodings.

Invariant: two packets are equal only if a client must treat them alike. Limits that a server is free to choose, and texts for
people, are not compared.
"""

from __future__ import annotations

import os
from typing import Any

from mqtt_packets import (
    AUTH,
    CONNACK,
    DISCONNECT,
    IDENTIFIERS,
    PINGRESP,
    PUBACK,
    PUBCOMP,
    PUBLISH,
    PUBREC,
    PUBREL,
    SUBACK,
    UNSUBACK,
    Reader,
    read,
)

# Kinds that a server sends. Scripts that play the server for a bridge expect packets of clients: those are compared as bytes.
SERVER = {CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK, PINGRESP, DISCONNECT, AUTH}
USER = IDENTIFIERS["user"]

# In CONNACK: what a client must assume if the property is absent (MQTT 5, 3.2.2.3).
DEFAULTS = {
    IDENTIFIERS[name]: value
    for name, value in {
        "maximum_qos": 2,
        "retain_available": 1,
        "wildcards_available": 1,
        "subscription_ids_available": 1,
        "shared_available": 1,
        "receive_maximum": 65535,
        "topic_alias_maximum": 0,
    }.items()
}
# What mosquitto announces without a setting. Its scripts expect these values everywhere, and a server may announce others.
MOSQUITTO = {IDENTIFIERS["receive_maximum"]: 20, IDENTIFIERS["topic_alias_maximum"]: 10}
# A server may announce these where a script expects none.
FREE = {IDENTIFIERS[name] for name in ("receive_maximum", "topic_alias_maximum", "maximum_packet_bytes")}
TEXTS = {IDENTIFIERS["reason_string"]}
# As long as scripts are pending, CONNACK says which features are missing, and scripts that do not use them may pass.
if os.environ.get("CONFORMANCE_WITHOUT_CAPABILITIES"):
    FREE |= DEFAULTS.keys()


def packets(data: bytes) -> list[bytes] | None:
    """The packets in the bytes; None if they are not whole packets."""
    found, at = [], 0
    while at < len(data):
        inside = Reader(data[at + 1 :])
        try:
            size = inside.variable()
            inside.take(size)
        except AssertionError:
            return None
        found.append(data[at : at + 1 + inside.at])
        at += 1 + inside.at
    return found


def alike_all(received: list[bytes], expected: list[bytes], version: int | None) -> bool:
    """Packet by packet, in order."""
    return len(received) == len(expected) and all(map(alike, received, expected, [version] * len(expected)))


def alike_begun(received: bytes, expected: bytes) -> bool:
    """For a CONNACK that a script has cut off inside the last property, whose value the server chooses."""
    whole, begun, wanted = meaning(received, 5), Reader(expected[1:]), []
    if whole is None or received[0] != expected[0] or received[0] >> 4 != CONNACK:
        return False
    begun.variable()
    head = (begun.number(1), begun.number(1))
    begun.variable()
    at = begun.at
    while at < len(begun.data):
        try:
            wanted.append(begun.property())
        except AssertionError:
            break
        at = begun.at
    chosen = begun.data[at : at + 1]
    listed = [pair for pair in whole["others"] if pair[0] not in chosen]
    ours, theirs = _connack(listed, sorted(wanted, key=repr))
    return head == (whole["session_present"], whole["reason"]) and len(listed) < len(whole["others"]) and ours == theirs


def is_refusal(packet: bytes) -> bool:
    """Whether it is a CONNACK or DISCONNECT of MQTT 5 with an error. A server may send one before it ends a connection
    (4.13.1), and mosquitto does not always."""
    found = meaning(packet, 5) if packet else None
    return found is not None and packet[0] >> 4 in (CONNACK, DISCONNECT) and found["reason"] >= 0x80


def meaning(packet: bytes, version: int) -> dict[str, Any] | None:
    """None: not a packet that a server of this version sends."""
    if packet[0] >> 4 not in SERVER:
        return None
    try:
        found = read(packet, version)
    except (AssertionError, KeyError, IndexError):
        return None
    listed = found.pop("properties")
    found["user"] = [
        value for identifier, value in listed if identifier == USER
    ]  # MQTT 5, 3.3.2.3.7: their order is kept
    found["others"] = sorted((pair for pair in listed if pair[0] != USER), key=repr)
    found.setdefault("rest", b"")
    return found


def alike(received: bytes, expected: bytes, version: int | None) -> bool:
    """Whether a packet has the meaning of the expected one. Without a version, the packets are read as those of MQTT 5."""
    if received == expected:
        return True
    if version is not None and version < 5:
        return False  # MQTT 3.1.1 has one encoding for each meaning
    if not received or not expected or received[0] != expected[0]:
        return False
    ours, theirs = meaning(received, 5), meaning(expected, 5)
    if ours is None or theirs is None:
        return False
    ours_listed, theirs_listed = ours.pop("others"), theirs.pop("others")
    if ours != theirs:
        return False
    if received[0] >> 4 == CONNACK:
        ours_listed, theirs_listed = _connack(ours_listed, theirs_listed)
    wanted = {identifier for identifier, _ in theirs_listed}
    return [pair for pair in ours_listed if pair[0] not in TEXTS - wanted] == theirs_listed


def _connack(received: list[tuple[int, Any]], expected: list[tuple[int, Any]]) -> tuple[list[Any], list[Any]]:
    """Both without the values that say nothing: defaults, and limits that the script does not test."""
    expected = [pair for pair in expected if MOSQUITTO.get(pair[0]) != pair[1]]
    wanted = {identifier for identifier, _ in expected}
    received = [
        (identifier, value)
        for identifier, value in received
        if identifier in wanted or (identifier not in FREE and DEFAULTS.get(identifier) != value)
    ]
    return received, expected
