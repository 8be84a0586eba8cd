"""Packets of MQTT clients, written by hand for the statements of the specifications, and what each one must be read as.

Invariant: "2.2.1-3" is the statement [MQTT-2.2.1-3], "3.4.2.1" a section, of MQTT 5 unless the row says 3.1.1.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from mqtt_packets import PROPERTIES, ack, connect, ending, packet, publish, subscribe, unsubscribe

TOPIC_MAX = 1024


class Row(NamedTuple):
    """`expected`: the name of an error, or fields that the packet has."""

    statement: str
    version: int
    packet: bytes
    expected: str | dict[str, Any]


def string_rows() -> list[Row]:
    bad = [
        ("1.5.4-1 a surrogate", b"a\xed\xa0\x80"),
        ("1.5.4-1 the last surrogate", b"\xed\xbf\xbf"),
        ("1.5.4-1 overlong", b"\xc0\xaf"),
        ("1.5.4-1 a character cut off", b"a\xe2\x82"),
        ("1.5.4-1 above U+10FFFF", b"\xf4\x90\x80\x80"),
        ("1.5.4-1 a byte that starts nothing", b"\x80"),
    ]
    rows = []
    for statement, raw in [*bad, ("1.5.4-2 U+0000", b"a\0b")]:
        error = "NUL" if b"\0" in raw else "UTF8"
        for version in (4, 5):
            v5 = None if version == 4 else {}
            rows += [
                Row(statement, version, connect(version, client_id=raw), error),
                Row(statement, version, connect(version, user_name=raw), error),
                Row(statement, version, connect(version, will=(v5, raw, b"")), error),
                Row(statement, version, publish(raw, values=v5), error),
                Row(statement, version, subscribe([(raw, 0)], values=v5), error),
                Row(statement, version, unsubscribe([raw], values=v5), error),
            ]
        rows += [
            Row(statement, 5, publish(values={"user": [(raw, "v")]}), error),
            Row(statement, 5, publish(values={"user": [("n", raw)]}), error),
            Row(statement, 5, publish(values={"content_type": raw}), error),
            Row(statement, 5, ack(0x40, 1, 0, {"reason_string": raw}), error),
        ]
    whole = "\ufeff\u20ac\U0002a6d4\uffff"
    return [
        *rows,
        Row("1.5.4-3 U+FEFF stays", 5, publish(whole, values={}), {"topic": whole.encode()}),
        Row(
            "1.5.4 binary data may be anything",
            5,
            connect(5, user_name="u", password=b"\0\xff"),
            {"password": b"\0\xff"},
        ),
        Row(
            "1.5.4 a payload may be anything",
            4,
            publish(payload=b"\0\xff\xed\xa0\x80"),
            {"payload": b"\0\xff\xed\xa0\x80"},
        ),
    ]


CONTROLS = [
    Row("1.5.4 control characters in names", version, maker(f"a{character}b", version), "CONTROL")
    for version in (4, 5)
    for character in ("\x01", "\x1f", "\x7f", "\x80", "\x9f")
    for maker in (
        lambda name, version: publish(name, values=None if version == 4 else {}),
        lambda name, version: subscribe([(name, 0)], values=None if version == 4 else {}),
        lambda name, version: connect(version, will=(None, name, b"")),
    )
]

CONNECTS = [
    Row("3.1.2-1 protocol name", 4, connect(4, name=b"MQTX"), "PROTOCOL_NAME"),
    Row("3.1.2-1 protocol name", 5, connect(5, name=b"mqtt"), "PROTOCOL_NAME"),
    Row("3.1.2-1 protocol name, longer", 5, connect(5, name=b"MQTT5"), "PROTOCOL_NAME"),
    Row("3.1.2-1 protocol name, none", 4, connect(4, name=b""), "PROTOCOL_NAME"),
    Row("3.1.2-2 version 6", 5, connect(6), "PROTOCOL_VERSION"),
    Row("3.1.2-2 version 3 is MQIsdp", 4, connect(3), "PROTOCOL_VERSION"),
    Row("3.1.2-2 a bridge of Mosquitto", 4, connect(0x84, values=None), "PROTOCOL_VERSION"),
    Row("3.1.2-2 MQIsdp 3", 4, connect(3, name=b"MQIsdp"), {"version": 3}),
    Row("3.1.2-2 MQIsdp 4", 4, connect(4, name=b"MQIsdp"), "PROTOCOL_VERSION"),
    Row("3.1.2-3 reserved flag", 4, connect(4, flags=3), "CONNECT_FLAG"),
    Row("3.1.2-3 reserved flag", 5, connect(5, flags=3), "CONNECT_FLAG"),
    Row("3.1.2-11 no will, will QoS 1", 4, connect(4, flags=0x0A), "WILL_FLAGS"),
    Row("3.1.2-11 no will, will QoS 2", 5, connect(5, flags=0x12), "WILL_FLAGS"),
    Row("3.1.2-13 no will, will retain", 5, connect(5, flags=0x22), "WILL_FLAGS"),
    Row("3.1.2-12 will QoS 3", 4, connect(4, flags=0x1A, will=(None, "w", b"")), "WILL_QOS"),
    Row("3.1.2-12 will QoS 3", 5, connect(5, flags=0x1A, will=(None, "w", b"")), "WILL_QOS"),
    Row("3.1.2-22 (3.1.1) password without name", 4, connect(4, password=b"p"), "PASSWORD"),
    Row("3.1.2.9 password without name", 5, connect(5, password=b"p"), {"user_name": None, "password": b"p"}),
    Row("3.1.2.8 name without password", 4, connect(4, user_name="u"), {"user_name": b"u", "password": None}),
    Row("3.1.2.8 an empty name is a name", 5, connect(5, user_name="", password=b""), {"user_name": b"", "password": b""}),
    Row("3.1.3-8 (3.1.1) no name, lasting session", 4, connect(4, client_id="", flags=0), "CLIENT_ID"),
    Row("3.1.3-7 (3.1.1) no name, clean session", 4, connect(4, client_id=""), {"client_id": b"", "clean_start": True}),
    Row("3.1.3-6 no name", 5, connect(5, client_id="", flags=0), {"client_id": b"", "clean_start": False}),
    Row("MQIsdp: no name", 4, connect(3, client_id="", name=b"MQIsdp"), "CLIENT_ID"),
    Row("3.1.2-21 keep-alive", 5, connect(5, keep_alive=65535), {"keep_alive_s": 65535}),
    Row("3.1.3-11 a will topic has no wildcard", 5, connect(5, will=(None, "w/+", b"")), "TOPIC_WILDCARD"),
    Row("4.7.3-1 a will topic is not empty", 4, connect(4, will=(None, "", b"")), "TOPIC_EMPTY"),
    Row("4.7.3-3 a will topic that is too long", 5, connect(5, will=(None, "t" * (TOPIC_MAX + 1), b"")), "TOPIC_LONG"),
    Row("3.1.3 fields in order", 5, connect(5, client_id="id", flags=0x30 | 2, will=(None, "w", b"gone")),
        {"client_id": b"id", "will": {"topic": b"w", "payload": b"gone", "qos": 2, "retain": True, "properties": {},
                                      "forwarded": b""}}),
    Row("3.1.2.11.2 session expiry", 5, connect(values={"session_expiry_s": 2**32 - 1}),
        {"properties": {"session_expiry_s": 2**32 - 1}}),
    Row("3.1.2.11.3 receive maximum 0", 5, connect(values={"receive_maximum": 0}), "PROPERTY_VALUE"),
    Row("3.1.2.11.4 maximum packet size 0", 5, connect(values={"maximum_packet_bytes": 0}), "PROPERTY_VALUE"),
    Row("3.1.2.11.6 request response 2", 5, connect(values={"request_response": 2}), "PROPERTY_VALUE"),
    Row("3.1.2.11.7 request problem 2", 5, connect(values={"request_problem": 2}), "PROPERTY_VALUE"),
    Row("3.1.2.11.10 data without a method", 5, connect(values={"authentication_data": b"x"}), "AUTH_DATA"),
    Row("3.1.2.11.10 data with a method", 5, connect(values={"authentication_method": "m", "authentication_data": b"x"}),
        {"properties": {"authentication_method": b"m", "authentication_data": b"x"}}),
    Row("3.1.3.2.2 will delay is of the will", 5, connect(values=b"\x18\0\0\0\1"), "PROPERTY_PLACE"),
    Row("3.1.3.2.2 will delay", 5, connect(will=({"will_delay_s": 7}, "w", b"")), {"client_id": b"c"}),
    Row("3.1.3.2.3 payload format 2", 5, connect(will=({"payload_format": 2}, "w", b"")), "PROPERTY_VALUE"),
    Row("3.1.3.2.6 response topic of a will", 5, connect(will=({"response_topic": "a/#"}, "w", b"")), "TOPIC_WILDCARD"),
    Row("3.1.3 nothing follows", 4, connect(4, extra=b"\0"), "EXTRA"),
    Row("3.1.3 nothing follows", 5, connect(5, extra=b"\0"), "EXTRA"),
    Row("1.5.5-1 a length that wastes bytes", 5, b"\x10\x8e\0" + connect(5, client_id="a")[2:], "LENGTH"),
    Row("2.2.3 (3.1.1) a length that wastes bytes", 4, b"\x10\x8d\0" + connect(4, client_id="a")[2:], {"client_id": b"a"}),
]  # fmt: skip

PUBLISHES = [
    Row("3.3.1-4 QoS 3", 4, publish(first=0x36, packet_id=1), "PUBLISH_QOS"),
    Row("3.3.1-4 QoS 3", 5, publish(first=0x36, packet_id=1, values={}), "PUBLISH_QOS"),
    Row("3.3.1-2 DUP with QoS 0", 4, publish(first=0x38), "PUBLISH_DUP"),
    Row("3.3.1-2 DUP with QoS 0", 5, publish(first=0x38, values={}), "PUBLISH_DUP"),
    Row("3.3.1 DUP, QoS 2, retain", 5, publish(first=0x3D, packet_id=65535, values={}),
        {"dup": True, "qos": 2, "retain": True, "packet_id": 65535}),
    Row("2.2.1-2 QoS 0 has no packet id", 4, publish(payload=b"\0\1"), {"packet_id": 0, "payload": b"\0\1"}),
    Row("2.2.1-3 packet id 0", 4, publish(first=0x32, packet_id=0), "PACKET_ID"),
    Row("2.2.1-3 packet id 0", 5, publish(first=0x34, packet_id=0, values={}), "PACKET_ID"),
    Row("3.3.2-1 topic", 4, publish("a//b/"), {"topic": b"a//b/"}),
    Row("3.3.2-2 a topic has no +", 4, publish("a/+"), "TOPIC_WILDCARD"),
    Row("3.3.2-2 a topic has no #", 5, publish("#", values={}), "TOPIC_WILDCARD"),
    Row("3.3.2-2 after eight characters", 5, publish("12345678/ab#def", values={}), "TOPIC_WILDCARD"),
    Row("4.7.1 * and > are ordinary", 4, publish("a.*/>"), {"topic": b"a.*/>"}),
    *(
        Row("3.3.2-2 at each place of a long topic", 4, publish("t" * place + "#" + "t" * (39 - place)), "TOPIC_WILDCARD")
        for place in range(40)
    ),
    Row("1.5.4 U+00A0 is no control character", 5, publish("a\u00a0", values={}), {"topic": b"a\xc2\xa0"}),
    Row("4.7.3-1 no topic", 4, publish(""), "TOPIC_EMPTY"),
    Row("3.3.2.1 no topic, no alias", 5, publish("", values={}), "TOPIC_EMPTY"),
    Row("3.3.2.1 no topic, an alias", 5, publish("", values={"topic_alias": 1}),
        {"topic": b"", "properties": {"topic_alias": 1}}),
    Row("4.7.3-3 a topic that is too long", 5, publish("t" * (TOPIC_MAX + 1), values={}), "TOPIC_LONG"),
    Row("4.7.3-3 the longest topic", 5, publish("t" * TOPIC_MAX, values={}), {"topic": b"t" * TOPIC_MAX}),
    Row("3.3.2.3.2 payload format 2", 5, publish(values={"payload_format": 2}), "PROPERTY_VALUE"),
    Row("3.3.2-8 alias 0", 5, publish(values={"topic_alias": 0}), "ALIAS"),
    Row("3.3.2-14 response topic with a wildcard", 5, publish(values={"response_topic": "r/#"}), "TOPIC_WILDCARD"),
    Row("3.3.4-6 a subscription id", 5, publish(values={"subscription_id": 1}), "PROPERTY_SENDER"),
    Row("3.3.2-17 all user properties", 5, publish(values={"user": [("a", "1"), ("b", "2"), ("a", "1")]}),
        {"properties": {"user": [(b"a", b"1"), (b"b", b"2"), (b"a", b"1")]}}),
    Row("3.3.2-4, -15, -16, -20 passed on unaltered", 5,
        publish(values={"message_expiry_s": 9, "content_type": "c", "topic_alias": 2, "user": [("a", "1")],
                        "correlation_data": b"\0"}),
        {"forwarded": b"\x03\0\1c\x26\0\1a\0\x011\x09\0\1\0"}),
    Row("3.3.3 an empty payload", 5, publish(values={}), {"payload": b""}),
    Row("3.3 no properties", 5, publish(), "CUT"),
    Row("3.3 no packet id", 4, packet(0x32, b"\0\1a"), "CUT"),
    Row("3.3 no body", 4, packet(0x30, b""), "CUT"),
    Row("3.3 half a length", 4, packet(0x30, b"\0"), "CUT"),
]  # fmt: skip

PROPERTY_RULES = [
    *(
        Row("2.2.2.2 no such property", 5, publish(values=bytes([identifier])), "PROPERTY_UNKNOWN")
        for identifier in range(128)
        if identifier not in PROPERTIES
    ),
    Row("2.2.2.2 no such property of two bytes", 5, publish(values=b"\x80\x01"), "PROPERTY_UNKNOWN"),
    Row("1.5.5-1 an identifier that wastes bytes", 5, publish(values=b"\x81\0\1"), "LENGTH"),
    Row("2.2.2-1 properties longer than the packet", 5, packet(0x30, b"\0\1a\x05\x01"), "CUT"),
    Row("1.5.5-1 a property length that wastes bytes", 5, packet(0x30, b"\0\1a\x80\0"), "LENGTH"),
    Row("1.5.5 a property length of five bytes", 5, packet(0x30, b"\0\1a\x80\x80\x80\x80\1"), "LENGTH"),
    Row("1.5.5 half a property length", 5, packet(0x30, b"\0\1a\x80"), "CUT"),
    *(
        Row("2.2.2.2 a value that is cut", 5, publish(values=raw), "CUT")
        for raw in (
            b"\x01",
            b"\x02\0\0\0",
            b"\x03",
            b"\x03\0\2a",
            b"\x09\0\1",
            b"\x23\0",
            b"\x26\0\1a",
            b"\x26\0\1a\0\1",
        )
    ),
]

ACKS = [
    *(
        Row("2.2.1 packet id", version, ack(first, 65535), {"packet_id": 65535, "reason": 0})
        for first in (0x40, 0x50, 0x62, 0x70)
        for version in (4, 5)
    ),
    *(Row("2.2.1 packet id 0", version, ack(0x40, 0), "PACKET_ID") for version in (4, 5)),
    Row("3.4 (3.1.1) no more than a packet id", 4, ack(0x40, 1, 0), "EXTRA"),
    Row("3.4 half a packet id", 4, packet(0x40, b"\1"), "CUT"),
    Row("3.4.2.1 reason only", 5, ack(0x40, 1, 0x97), {"reason": 0x97, "properties": {}}),
    Row("3.4.2.2 empty properties", 5, ack(0x50, 1, 0x10, {}), {"reason": 0x10, "properties": {}}),
    Row("3.4.2.2 properties", 5, ack(0x62, 1, 0x92, {"reason_string": "r", "user": [("a", "b")]}),
        {"reason": 0x92, "properties": {"reason_string": b"r", "user": [(b"a", b"b")]}}),
    Row("3.4.2.2.2 two reason strings", 5, ack(0x70, 1, 0, b"\x1f\0\1a\x1f\0\1a"), "PROPERTY_TWICE"),
    Row("3.4.2 nothing follows", 5, packet(0x40, b"\0\1\0\0\0"), "EXTRA"),
]  # fmt: skip

SUBSCRIBES = [
    Row("3.8.1-1 flags", 4, subscribe([("a", 0)], first=0x80), "FLAGS"),
    Row("3.8.1-1 flags", 5, subscribe([("a", 0)], values={}, first=0x83), "FLAGS"),
    Row("3.10.1-1 flags", 5, unsubscribe(["a"], values={}, first=0xA0), "FLAGS"),
    Row("2.2.1-3 packet id 0", 4, subscribe([("a", 0)], packet_id=0), "REQUEST_ID"),
    Row("2.2.1-3 packet id 0", 5, unsubscribe(["a"], packet_id=0, values={}), "REQUEST_ID"),
    Row("3.8.3-2 no filter", 4, subscribe([]), "FILTER_MISSING"),
    Row("3.8.3-2 no filter", 5, subscribe([], values={}), "FILTER_MISSING"),
    Row("3.10.3-2 no filter", 5, unsubscribe([], values={}), "FILTER_MISSING"),
    Row("4.7.3-1 an empty filter", 4, subscribe([("a", 0), ("", 0)]), "FILTER_EMPTY"),
    Row("4.7.3-1 an empty filter", 5, unsubscribe([""], values={}), "FILTER_EMPTY"),
    Row("4.7.3-3 a filter that is too long", 5, subscribe([("t" * (TOPIC_MAX + 1), 0)], values={}), "FILTER_LONG"),
    Row("3.8.3-4 (3.1.1) reserved bits", 4, subscribe([("a", 4)]), "OPTIONS"),
    Row("3.8.3-4 (3.1.1) QoS 3", 4, subscribe([("a", 3)]), "OPTION_QOS"),
    Row("3.8.3-5 reserved bit 6", 5, subscribe([("a", 0x40)], values={}), "OPTIONS"),
    Row("3.8.3-5 reserved bit 7", 5, subscribe([("a", 0x80)], values={}), "OPTIONS"),
    Row("3.8.3.1 QoS 3", 5, subscribe([("a", 3)], values={}), "OPTION_QOS"),
    Row("3.8.3.1 retain handling 3", 5, subscribe([("a", 0x30)], values={}), "OPTION_RETAIN"),
    Row("3.8.3-4 no local on a shared filter", 5, subscribe([("$share/g/a", 4)], values={}), "SHARE_NO_LOCAL"),
    Row("3.8.3.1 all options", 5, subscribe([("a", 0x2E)], values={}),
        {"filters": [{"text": b"a", "group": b"", "filter": b"a", "wildcards": False, "qos": 2, "no_local": True,
                      "retain_as_published": True, "retain_handling": 2}]}),
    Row("3.8.2.1.2 subscription id 0", 5, subscribe([("a", 0)], values={"subscription_id": 0}), "PROPERTY_VALUE"),
    Row("3.8.2.1.2 the largest subscription id", 5, subscribe([("a", 0)], values={"subscription_id": 268435455}),
        {"properties": {"subscription_id": 268435455}}),
    Row("3.8.2.1.2 two subscription ids", 5, subscribe([("a", 0)], values=b"\x0b\1\x0b\1"), "PROPERTY_TWICE"),
    Row("3.8.2.1.2 five bytes", 5, subscribe([("a", 0)], values=b"\x0b\x80\x80\x80\x80\1"), "LENGTH"),
    Row("3.10.2.1 no subscription id", 5, unsubscribe(["a"], values=b"\x0b\1"), "PROPERTY_PLACE"),
    Row("3.8.3-1 no options behind a filter", 4, packet(0x82, b"\0\1\0\1a"), "CUT"),
    Row("3.8.3 no options behind the second", 5, packet(0x82, b"\0\1\0\0\1a\0\0\1b"), "CUT"),
    Row("3.8.2 no properties", 5, packet(0x82, b"\0\1"), "CUT"),
    Row("3.8.2 no packet id", 5, packet(0x82, b""), "CUT"),
    Row("3.8.3 many filters in order", 4, subscribe([("a", 0), ("b/+", 1), ("#", 2)]),
        {"packet_id": 1, "filters": [
            {"text": name, "group": b"", "filter": name, "wildcards": qos > 0, "qos": qos, "no_local": False,
             "retain_as_published": False, "retain_handling": 0}
            for qos, name in enumerate((b"a", b"b/+", b"#"))]}),
    Row("3.10.3 many filters in order", 4, unsubscribe(["a", "b/+"], packet_id=7),
        {"packet_id": 7, "filters": [
            {"text": b"a", "group": b"", "filter": b"a", "wildcards": False},
            {"text": b"b/+", "group": b"", "filter": b"b/+", "wildcards": True}]}),
]  # fmt: skip

OTHERS = [
    *(Row("3.12 PINGREQ", version, b"\xc0\0", {}) for version in (4, 5)),
    Row("3.12 a PINGREQ has no body", 5, b"\xc0\1\0", "EXTRA"),
    Row("3.14 (3.1.1) a DISCONNECT has no body", 4, ending(0xE0, 0), "EXTRA"),
    Row("3.14 (3.1.1) DISCONNECT", 4, ending(0xE0), {"reason": 0}),
    Row("3.14.2.1 no reason", 5, ending(0xE0), {"reason": 0, "properties": {}}),
    Row("3.14.2.1 with will", 5, ending(0xE0, 4), {"reason": 4, "properties": {}}),
    Row("3.14.2.2.2 session expiry", 5, ending(0xE0, 0, {"session_expiry_s": 5}), {"properties": {"session_expiry_s": 5}}),
    Row("3.14.2-1 session expiry twice", 5, ending(0xE0, 0, b"\x11\0\0\0\1\x11\0\0\0\1"), "PROPERTY_TWICE"),
    Row("3.14.2.2.5 a server reference", 5, ending(0xE0, 0, {"server_reference": "s"}), "PROPERTY_SENDER"),
    Row("3.14.2 nothing follows", 5, packet(0xE0, b"\0\0\0"), "EXTRA"),
    Row("2.1.2 (3.1.1) there is no AUTH", 4, ending(0xF0, 0x18, {"authentication_method": "m"}), "TYPE"),
    Row("3.15.2-1 AUTH goes on", 5, ending(0xF0, 0x18, {"authentication_method": "m"}), {"reason": 0x18}),
    Row("3.15.2-1 AUTH again", 5, ending(0xF0, 0x19, {"authentication_method": "m", "authentication_data": b"\0"}),
        {"reason": 0x19, "properties": {"authentication_method": b"m", "authentication_data": b"\0"}}),
    Row("3.15.2.1 only a server sends 0", 5, ending(0xF0), "REASON"),
    Row("3.15.2.2.2 no method", 5, ending(0xF0, 0x18, {}), "AUTH_METHOD"),
    Row("3.15.2.2.2 no properties", 5, ending(0xF0, 0x18), "AUTH_METHOD"),
    *(Row("2.1.2 type 0", version, b"\0\0", "TYPE") for version in (4, 5)),
    *(
        Row("2.1.2 a server's packet", version, bytes([first, 0]), "SENDER")
        for first in (0x20, 0x90, 0xB0, 0xD0)
        for version in (4, 5)
    ),
    *(
        Row("2.1.3-1 reserved flags", version, bytes([kind << 4 | flags, 0]), "FLAGS")
        for kind in (1, 4, 5, 6, 7, 8, 10, 12, 14)
        for version in (4, 5)
        for flags in range(16)
        if flags != (2 if kind in (6, 8, 10) else 0)
    ),
    *(Row("2.1.3-1 reserved flags of AUTH", 5, bytes([0xF0 | flags, 0]), "FLAGS") for flags in range(1, 16)),
    Row("MQIsdp: DUP of SUBSCRIBE", 3, subscribe([("a", 1)], first=0x8A), {"packet_id": 1}),
]  # fmt: skip

ROWS = [*string_rows(), *CONTROLS, *CONNECTS, *PUBLISHES, *PROPERTY_RULES, *ACKS, *SUBSCRIBES, *OTHERS]
