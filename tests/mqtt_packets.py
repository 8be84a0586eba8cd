"""MQTT packets in plain Python: those of clients are written, those of a server are read. A short twin of the C codec.

Invariant: nothing here uses the C code or checks values, so that a test can write every wrong packet.
"""

from __future__ import annotations

import struct
from typing import Any

CONNECT, CONNACK, PUBLISH, PUBACK, PUBREC, PUBREL, PUBCOMP, SUBSCRIBE = range(1, 9)
SUBACK, UNSUBSCRIBE, UNSUBACK, PINGREQ, PINGRESP, DISCONNECT, AUTH = range(9, 16)
WILL = 0

Text = str | bytes
# identifier: name, type, the packets that the property belongs to
MESSAGE = {PUBLISH, WILL}
ACKS = {PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK}
PROPERTIES: dict[int, tuple[str, str, set[int]]] = {
    0x01: ("payload_format", "byte", MESSAGE),
    0x02: ("message_expiry_s", "u32", MESSAGE),
    0x03: ("content_type", "text", MESSAGE),
    0x08: ("response_topic", "text", MESSAGE),
    0x09: ("correlation_data", "bytes", MESSAGE),
    0x0B: ("subscription_id", "variable", {PUBLISH, SUBSCRIBE}),
    0x11: ("session_expiry_s", "u32", {CONNECT, CONNACK, DISCONNECT}),
    0x12: ("assigned_client_id", "text", {CONNACK}),
    0x13: ("server_keep_alive_s", "u16", {CONNACK}),
    0x15: ("authentication_method", "text", {CONNECT, CONNACK, AUTH}),
    0x16: ("authentication_data", "bytes", {CONNECT, CONNACK, AUTH}),
    0x17: ("request_problem", "byte", {CONNECT}),
    0x18: ("will_delay_s", "u32", {WILL}),
    0x19: ("request_response", "byte", {CONNECT}),
    0x1A: ("response_information", "text", {CONNACK}),
    0x1C: ("server_reference", "text", {CONNACK, DISCONNECT}),
    0x1F: ("reason_string", "text", {CONNACK, DISCONNECT, AUTH} | ACKS),
    0x21: ("receive_maximum", "u16", {CONNECT, CONNACK}),
    0x22: ("topic_alias_maximum", "u16", {CONNECT, CONNACK}),
    0x23: ("topic_alias", "u16", {PUBLISH}),
    0x24: ("maximum_qos", "byte", {CONNACK}),
    0x25: ("retain_available", "byte", {CONNACK}),
    0x26: ("user", "pair", {CONNECT, CONNACK, SUBSCRIBE, UNSUBSCRIBE, DISCONNECT, AUTH} | MESSAGE | ACKS),
    0x27: ("maximum_packet_bytes", "u32", {CONNECT, CONNACK}),
    0x28: ("wildcards_available", "byte", {CONNACK}),
    0x29: ("subscription_ids_available", "byte", {CONNACK}),
    0x2A: ("shared_available", "byte", {CONNACK}),
}
IDENTIFIERS = {name: identifier for identifier, (name, _, _) in PROPERTIES.items()}


# ---- writing ---------------------------------------------------------------------------------------------------------


def variable(value: int) -> bytes:
    """A length of variable size."""
    out = bytearray()
    while value >= 128:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def text(value: Text) -> bytes:
    raw = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
    return struct.pack(">H", len(raw)) + raw


def property_(identifier: int, value: Any) -> bytes:
    kind = PROPERTIES[identifier][1]
    if kind == "pair":
        return b"".join(bytes([identifier]) + text(name) + text(content) for name, content in value)
    if kind in ("text", "bytes"):
        return bytes([identifier]) + text(value)
    if kind == "variable":
        return bytes([identifier]) + variable(value)
    return struct.pack(">B" + {"byte": "B", "u16": "H", "u32": "I"}[kind], identifier, value)


def properties(values: dict[str, Any] | bytes | None) -> bytes:
    """With the length in front; None: no properties at all, as before MQTT 5."""
    if values is None:
        return b""
    if isinstance(values, dict):
        values = b"".join(property_(IDENTIFIERS[name], value) for name, value in values.items())
    return variable(len(values)) + values


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + variable(len(body)) + body


def connect(
    version: int = 5,
    client_id: Text = "c",
    flags: int = 2,
    keep_alive: int = 60,
    values: dict[str, Any] | bytes | None = None,
    will: tuple[dict[str, Any] | bytes | None, Text, bytes] | None = None,
    user_name: Text | None = None,
    password: bytes | None = None,
    name: bytes = b"MQTT",
    extra: bytes = b"",
) -> bytes:
    """`flags` in addition to those for the will, the user name and the password that are given."""
    flags |= (4 if will else 0) | (0x80 if user_name is not None else 0) | (0x40 if password is not None else 0)
    body = text(name) + struct.pack(">BBH", version, flags, keep_alive)
    body += properties({} if values is None and version >= 5 else values) + text(client_id)
    if will:
        body += properties({} if will[0] is None and version >= 5 else will[0]) + text(will[1]) + text(will[2])
    body += b"" if user_name is None else text(user_name)
    body += b"" if password is None else text(password)
    return packet(0x10, body + extra)


def publish(
    topic: Text = "a/b",
    payload: bytes = b"",
    first: int = 0x30,
    packet_id: int | None = None,
    values: dict[str, Any] | bytes | None = None,
) -> bytes:
    """`values` None: MQTT 3.1.1."""
    number = b"" if packet_id is None else struct.pack(">H", packet_id)
    return packet(first, text(topic) + number + properties(values) + payload)


def ack(first: int, packet_id: int, reason: int | None = None, values: dict[str, Any] | bytes | None = None) -> bytes:
    body = struct.pack(">H", packet_id) + (b"" if reason is None else bytes([reason])) + properties(values)
    return packet(first, body)


def subscribe(
    filters: list[tuple[Text, int]], packet_id: int = 1, values: dict[str, Any] | bytes | None = None, first: int = 0x82
) -> bytes:
    rest = b"".join(text(name) + bytes([options]) for name, options in filters)
    return packet(first, struct.pack(">H", packet_id) + properties(values) + rest)


def unsubscribe(
    filters: list[Text], packet_id: int = 1, values: dict[str, Any] | bytes | None = None, first: int = 0xA2
) -> bytes:
    return packet(first, struct.pack(">H", packet_id) + properties(values) + b"".join(map(text, filters)))


def ending(first: int, reason: int | None = None, values: dict[str, Any] | bytes | None = None) -> bytes:
    """DISCONNECT (0xe0) or AUTH (0xf0)."""
    return packet(first, (b"" if reason is None else bytes([reason])) + properties(values))


# ---- reading ---------------------------------------------------------------------------------------------------------


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        assert self.at + size <= len(self.data), "the packet ends inside a field"
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def variable(self) -> int:
        value = shift = 0
        while True:
            byte = self.number(1)
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    def text(self) -> bytes:
        return self.take(self.number(2))

    def rest(self) -> bytes:
        return self.take(len(self.data) - self.at)

    def property(self) -> tuple[int, Any]:
        identifier = self.number(1)
        kind = PROPERTIES[identifier][1]
        if kind == "pair":
            return identifier, (self.text(), self.text())
        if kind in ("text", "bytes"):
            return identifier, self.text()
        if kind == "variable":
            return identifier, self.variable()
        return identifier, self.number({"byte": 1, "u16": 2, "u32": 4}[kind])

    def properties(self) -> list[tuple[int, Any]]:
        """In their order."""
        inside, found = Reader(self.take(self.variable())), []
        while inside.at < len(inside.data):
            found.append(inside.property())
        return found


def read(data: bytes, version: int) -> dict[str, Any]:
    """A packet of a server. Nothing may follow it."""
    first, outer = data[0], Reader(data[1:])
    size = outer.variable()
    reader, kind = Reader(outer.rest()), first >> 4
    assert len(reader.data) == size
    found: dict[str, Any] = {"first": first, "properties": []}
    if kind in (PUBACK, PUBREC, PUBREL, PUBCOMP, SUBACK, UNSUBACK):
        found["packet_id"] = reader.number(2)
    if kind == CONNACK:
        found |= {"session_present": reader.number(1), "reason": reader.number(1)}
    if kind in (PUBACK, PUBREC, PUBREL, PUBCOMP, DISCONNECT, AUTH):
        found["reason"] = reader.number(1) if reader.at < size else 0
        if reader.at == size:
            return found
    if kind == PUBLISH:
        found |= {"topic": reader.text(), "packet_id": reader.number(2) if first & 6 else 0}
    if version >= 5 and kind != PINGRESP:
        found["properties"] = reader.properties()
    found["rest"] = reader.rest()
    return found
