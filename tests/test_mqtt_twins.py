"""The codec of MQTT 3.1.1 and 5 beside three others: packets that mqtt_packets.py, paho-mqtt or gmqtt write are read, and
packets that it writes are read by them.

Invariant: every expected value comes from one of the three.
"""

from __future__ import annotations

import struct
from typing import Any

import mqtt_packets as mqtt
import pytest
from gmqtt import Message, Subscription
from gmqtt.mqtt.constants import MQTTv50, MQTTv311
from gmqtt.mqtt.package import LoginPackageFactor, PublishPacket, SubscribePacket, UnsubscribePacket
from gmqtt.mqtt.property import PROPERTIES as GMQTT_PROPERTIES
from hypothesis import given, settings
from hypothesis import strategies as st
from mqtt_codec import Codec
from mqtt_packets import ack, connect, ending, publish, subscribe, unsubscribe
from mqtt_rows import TOPIC_MAX
from paho.mqtt import _packet as paho
from paho.mqtt.client import topic_matches_sub
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties, VariableByteIntegers
from paho.mqtt.reasoncodes import ReasonCode

CODEC = settings(deadline=None, max_examples=200)


@pytest.fixture(scope="module")
def codec(tmp_path_factory: pytest.TempPathFactory) -> Codec:
    return Codec(tmp_path_factory.mktemp("mqtt"))


# ---- topics and filters ----------------------------------------------------------------------------------------------

LEVELS = st.sampled_from(["", "a", "b", "+", "#", "$SYS", "*", ">", "a.b", "$share"])
NAMES = st.lists(LEVELS, min_size=1, max_size=5).map("/".join)


@given(NAMES, NAMES)
@settings(CODEC, max_examples=1000)
def test_filters_match_like_those_of_paho(codec: Codec, name: str, topic: str) -> None:
    if isinstance(codec.filter(name.encode()), str) or not topic or "+" in topic or "#" in topic:
        return
    pure = name.split("/", 2)[2] if name.startswith("$share/") else name
    assert codec.matches(name.encode(), topic.encode()) == topic_matches_sub(pure, topic)


@given(st.text(max_size=20) | st.binary(max_size=20).map(lambda raw: raw.decode("utf-8", "surrogateescape")))
@CODEC
def test_topics_are_checked_like_python_decodes_them(codec: Codec, name: str) -> None:
    raw = name.encode("utf-8", "surrogateescape")
    code = codec.lib.mqtt_topic_check(raw, len(raw), TOPIC_MAX)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        assert code and codec.error(code) in ("UTF8", "NUL", "CONTROL")
        return
    controls = {chr(number) for number in (*range(1, 32), *range(0x7F, 0xA0))}
    bad = not text or bool(set(text) & ({"\0", "+", "#"} | controls))
    assert (code != 0) == bad


# ---- round trips: packets of clients ---------------------------------------------------------------------------------

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
TOPICS = st.text(st.characters(exclude_characters="+#", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "byte": st.integers(0, 1), "u16": st.integers(1, 65535), "u32": st.integers(1, 2**32 - 1), "bytes": st.binary(max_size=12),
    "variable": st.integers(1, 268435455), "text": TEXTS, "pair": st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=3),
}  # fmt: skip


# A response topic is a topic; paho refuses maximum packet sizes that no packet can have.
NARROWER = {"response_topic": TOPICS, "maximum_packet_bytes": st.integers(1, 268435455)}


def values_of(place: int, without: tuple[str, ...] = ()) -> st.SearchStrategy[dict[str, Any]]:
    """Properties of one packet, in any order."""
    choices = {
        name: NARROWER.get(name, VALUES[kind])
        for name, kind, places in mqtt.PROPERTIES.values()
        if place in places and name not in without
    }

    def chosen(names: list[str]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries({name: choices[name] for name in names})

    return st.lists(st.sampled_from(sorted(choices)), unique=True).flatmap(chosen)


def read_back(values: dict[str, Any]) -> dict[str, Any]:
    """The same values as the codec returns them: texts as bytes."""

    def raw(value: Any) -> Any:
        return (
            [tuple(map(raw, pair)) for pair in value]
            if isinstance(value, list)
            else value.encode()
            if isinstance(value, str)
            else value
        )

    return {name: raw(value) for name, value in values.items()}


@given(
    st.sampled_from([4, 5]), TEXTS.filter(bool), st.booleans(), st.integers(0, 65535), values_of(mqtt.CONNECT),
    st.none() | st.tuples(values_of(WILL := mqtt.WILL), TOPICS, st.binary(max_size=200), st.integers(0, 2), st.booleans()),
    st.none() | TEXTS, st.none() | st.binary(max_size=20),
)  # fmt: skip
@CODEC
def test_a_connect_is_read_as_it_was_written(
    codec: Codec, version: int, client_id: str, clean: bool, keep_alive: int, values: dict[str, Any], will: Any, name: Any,
    password: Any,
) -> None:  # fmt: skip
    if "authentication_data" in values:
        values["authentication_method"] = values.get("authentication_method", "m")
    if version == 4:
        values, will = {}, will and ({}, *will[1:])
        password = None if name is None else password
    flags = (2 if clean else 0) | (will[3] << 3 | will[4] << 5 if will else 0)
    first = will and (None if version == 4 else will[0], *will[1:3])
    raw = connect(version, client_id, flags, keep_alive, None if version == 4 else values, first, name, password)
    forwarded = will and b"".join(
        mqtt.property_(mqtt.IDENTIFIERS[key], value)
        for key, value in will[0].items()
        if key not in ("will_delay_s", "message_expiry_s")
    )
    assert codec.read(raw) == {
        "version": version, "clean_start": clean, "keep_alive_s": keep_alive, "client_id": client_id.encode(),
        "properties": read_back(values), "user_name": None if name is None else name.encode(), "password": password,
        "will": will and {"topic": will[1].encode(), "payload": will[2], "qos": will[3], "retain": will[4],
                          "properties": read_back(will[0]), "forwarded": forwarded},
    }  # fmt: skip


@given(
    st.sampled_from([4, 5]), TOPICS, st.binary(max_size=300), st.integers(0, 2), st.booleans(), st.booleans(),
    st.integers(1, 65535), values_of(mqtt.PUBLISH, without=("subscription_id",)),
)  # fmt: skip
@CODEC
def test_a_publish_is_read_as_it_was_written(
    codec: Codec, version: int, topic: str, payload: bytes, qos: int, dup: bool, retain: bool, packet_id: int,
    values: dict[str, Any],
) -> None:  # fmt: skip
    dup = dup and qos > 0
    values = {} if version == 4 else values
    raw = publish(
        topic,
        payload,
        0x30 | dup << 3 | qos << 1 | retain,
        packet_id if qos else None,
        None if version == 4 else values,
    )
    kept = {name: value for name, value in values.items() if name not in ("message_expiry_s", "topic_alias")}
    assert codec.read(raw, version) == {
        "topic": topic.encode(), "payload": payload, "qos": qos, "dup": dup, "retain": retain,
        "packet_id": packet_id if qos else 0, "properties": read_back(values),
        "forwarded": b"".join(mqtt.property_(mqtt.IDENTIFIERS[name], value) for name, value in kept.items()),
    }  # fmt: skip


# ---- round trips: packets of a server --------------------------------------------------------------------------------


def written_properties(values: dict[str, Any]) -> list[tuple[int, Any]]:
    """As the codec writes them: by their identifiers, user properties last."""
    pairs = [(0x26, pair) for pair in values.get("user", [])]
    return sorted((mqtt.IDENTIFIERS[name], value) for name, value in values.items() if name != "user") + pairs


def body_of(raw: bytes) -> bytes:
    return raw[len(raw) - mqtt.Reader(raw[1:]).variable() :]


def paho_value(kind: str, value: Any) -> Any:
    return (
        value.decode() if kind == "text" else [(a.decode(), b.decode()) for a, b in value] if kind == "pair" else value
    )


def same_as_paho(found: Properties, values: dict[str, Any]) -> None:
    read = {}
    for identifier, (name, kind, _) in mqtt.PROPERTIES.items():
        paho_name = found.getNameFromIdent(identifier).replace(" ", "")
        if hasattr(found, paho_name):
            value = getattr(found, paho_name)
            read[name] = value if kind != "pair" else [tuple(pair) for pair in value]
    assert read == {
        name: paho_value(mqtt.PROPERTIES[mqtt.IDENTIFIERS[name]][1], value) for name, value in values.items()
    }


def without_marks(values: dict[str, Any]) -> dict[str, Any]:
    """Without U+FEFF, which paho refuses."""
    return {name: value for name, value in read_back(values).items() if "\ufeff".encode() not in repr_bytes(value)}


def repr_bytes(value: Any) -> bytes:
    return (
        b"".join(map(repr_bytes, value))
        if isinstance(value, list | tuple)
        else value
        if isinstance(value, bytes)
        else b""
    )


V5, V4 = MQTTProtocolVersion.MQTTv5, MQTTProtocolVersion.MQTTv311
CONNACK_CODES = sorted(
    code for code, names in ReasonCode.names.items() for kinds in names.values() if PacketTypes.CONNACK in kinds
)


@given(st.booleans(), st.sampled_from(CONNACK_CODES), values_of(mqtt.CONNACK))
@CODEC
def test_a_connack_is_read_by_paho_as_it_was_meant(
    codec: Codec, present: bool, reason: int, values: dict[str, Any]
) -> None:
    keep: list[Any] = []
    values = without_marks(values)
    raw = codec.write("mqtt_connack_write", 5, present, reason, codec.to_write(values, keep))
    found = mqtt.read(raw, 5)
    assert found["first"] == 0x20 and found["rest"] == b""
    assert (found["session_present"], found["reason"]) == (present and reason == 0, reason)  # [MQTT-3.2.2-6]
    assert found["properties"] == written_properties(values)
    twin = paho.decode_connack(raw[0], body_of(raw), V5)
    assert (twin.flags, twin.reason.value) == (found["session_present"], reason)
    same_as_paho(twin.properties, values)


# MQTT 3.1.1, table 3.1
@pytest.mark.parametrize(
    ("reason", "code"),
    [(0, 0), (0x84, 1), (0x85, 2), (0x88, 3), (0x89, 3), (0x8B, 3), (0x97, 3), (0x9F, 3), (0x86, 4), (0x87, 5), (0x8A, 5)],
)  # fmt: skip
def test_a_connack_of_mqtt_3_has_a_code_of_its_own(codec: Codec, reason: int, code: int) -> None:
    for version in (3, 4):
        raw = codec.write("mqtt_connack_write", version, True, reason, codec.ffi.NULL)
        assert raw == bytes([0x20, 2, version == 4 and reason == 0, code])
        assert paho.decode_connack(raw[0], raw[2:], V4).rc == code


@pytest.mark.parametrize("reason", [0x80, 0x81, 0x82, 0x8C, 0x95])
def test_without_a_code_in_mqtt_3_there_is_no_connack(codec: Codec, reason: int) -> None:
    assert codec.write("mqtt_connack_write", 4, False, reason, codec.ffi.NULL) == b""


PAHO_ACKS = {0x40: paho.decode_puback, 0x50: paho.decode_pubrec, 0x62: paho.decode_pubrel, 0x70: paho.decode_pubcomp}


@given(st.sampled_from(sorted(PAHO_ACKS)), st.integers(1, 65535), st.booleans(), st.none() | values_of(mqtt.PUBACK))
@CODEC
def test_an_ack_is_read_by_paho_as_it_was_meant(
    codec: Codec, first: int, packet_id: int, ok: bool, values: Any
) -> None:
    keep: list[Any] = []
    values = values and without_marks(values)
    reason = 0 if ok else 0x92 if first in (0x62, 0x70) else 0x97
    raw = codec.write("mqtt_ack_write", 5, first >> 4, packet_id, reason, codec.to_write(values, keep))
    assert mqtt.read(raw, 5) == {
        "first": first, "packet_id": packet_id, "reason": reason, "properties": written_properties(values or {}),
        **({"rest": b""} if values else {}),
    }  # fmt: skip
    if not values:  # [MQTT-3.4.2-1]: the shortest form
        assert raw == struct.pack(">BBH", first, 2 if ok else 3, packet_id) + (b"" if ok else bytes([reason]))
    twin = PAHO_ACKS[first](first, body_of(raw), V5)
    assert (twin.mid, twin.reason.value) == (packet_id, reason)
    same_as_paho(twin.properties, values or {})
    plain = codec.write("mqtt_ack_write", 4, first >> 4, packet_id, reason, codec.to_write(values, keep))
    assert plain == struct.pack(">BBH", first, 2, packet_id)


@given(
    st.integers(1, 65535),
    st.lists(st.sampled_from([0, 1, 2, 0x80, 0x87, 0x8F, 0x97]), max_size=200),
    values_of(mqtt.SUBACK),
)
@CODEC
def test_a_suback_is_read_by_paho_as_it_was_meant(
    codec: Codec, packet_id: int, codes: list[int], values: dict[str, Any]
) -> None:
    keep: list[Any] = []
    values = without_marks(values)
    raw = codec.write(
        "mqtt_suback_write", 5, mqtt.SUBACK, packet_id, bytes(codes), len(codes), codec.to_write(values, keep)
    )
    found = mqtt.read(raw, 5)
    assert (found["first"], found["packet_id"], found["rest"]) == (0x90, packet_id, bytes(codes))
    assert found["properties"] == written_properties(values)
    twin = paho.decode_suback(raw[0], body_of(raw), V5)
    assert (twin.mid, [code.value for code in twin.reason_codes]) == (packet_id, codes)
    older = codec.write("mqtt_suback_write", 4, mqtt.SUBACK, packet_id, bytes(codes), len(codes), codec.ffi.NULL)
    assert mqtt.read(older, 4)["rest"] == bytes(min(code, 0x80) for code in codes)


@given(
    st.integers(1, 65535),
    st.lists(st.sampled_from([0, 0x11, 0x87]), min_size=1, max_size=200),
    values_of(mqtt.UNSUBACK),
)
@CODEC
def test_an_unsuback_is_read_by_paho_as_it_was_meant(
    codec: Codec, packet_id: int, codes: list[int], values: dict[str, Any]
) -> None:
    keep: list[Any] = []
    values = without_marks(values)
    raw = codec.write(
        "mqtt_suback_write", 5, mqtt.UNSUBACK, packet_id, bytes(codes), len(codes), codec.to_write(values, keep)
    )
    twin = paho.decode_unsuback(raw[0], body_of(raw), V5)
    assert (raw[0], twin.mid, [code.value for code in twin.reason_codes]) == (0xB0, packet_id, codes)
    same_as_paho(twin.properties, values)
    older = codec.write("mqtt_suback_write", 4, mqtt.UNSUBACK, packet_id, bytes(codes), len(codes), codec.ffi.NULL)
    assert older == struct.pack(">BBH", 0xB0, 2, packet_id)


@given(st.sampled_from([0, 0x8B, 0x8E, 0x81]), st.none() | values_of(mqtt.DISCONNECT))
@CODEC
def test_a_disconnect_is_read_by_paho_as_it_was_meant(codec: Codec, reason: int, values: Any) -> None:
    keep: list[Any] = []
    values = values and without_marks(values)
    raw = codec.write("mqtt_goodbye_write", mqtt.DISCONNECT, reason, codec.to_write(values, keep))
    if not values:
        assert raw == (bytes([0xE0, 1, reason]) if reason else b"\xe0\0")
    twin = paho.decode_disconnect(raw[0], body_of(raw), V5)
    assert (twin.reason.value if twin.reason else 0) == reason
    if values:
        same_as_paho(twin.properties, values)


def test_an_auth_and_a_pingresp_are_written(codec: Codec) -> None:
    keep: list[Any] = []
    values = {"authentication_method": b"m", "authentication_data": b"\0"}
    raw = codec.write("mqtt_goodbye_write", mqtt.AUTH, 0x18, codec.to_write(values, keep))
    assert raw == b"\xf0\x0a\x18\x08\x15\0\1m\x16\0\1\0"
    assert codec.write("mqtt_pingresp_write") == b"\xd0\0"


@given(
    st.sampled_from([4, 5]), TOPICS, st.integers(0, 2), st.booleans(), st.booleans(), st.integers(1, 65535),
    st.sampled_from([0, 1, 64, 16380, 70000]), st.none() | st.integers(0, 2**32 - 1), st.integers(0, 16),
    st.lists(st.integers(1, 268435455), max_size=4),
    values_of(mqtt.PUBLISH, without=("message_expiry_s", "topic_alias", "subscription_id")),
)  # fmt: skip
@CODEC
def test_a_delivery_is_read_by_paho_as_it_was_meant(
    codec: Codec, version: int, topic: str, qos: int, dup: bool, retain: bool, packet_id: int, size: int,
    expiry: int | None, alias: int, ids: list[int], values: dict[str, Any],
) -> None:  # fmt: skip
    values = without_marks(values)
    forwarded = b"".join(mqtt.property_(mqtt.IDENTIFIERS[name], value) for name, value in values.items())
    keep: list[Any] = [codec.ffi.new("uint32_t[]", ids)]
    delivery = codec.ffi.new("mqtt_delivery_t *", {
        "topic": codec.span(topic.encode(), keep), "properties": codec.span(forwarded, keep), "subscription_ids": keep[0],
        "subscription_id_count": len(ids), "payload_size": size, "expiry_s": expiry or 0, "packet_id": packet_id,
        "topic_alias": alias, "version": version, "qos": qos, "dup": dup, "retain": retain, "has_expiry": expiry is not None,
    })  # fmt: skip
    header, payload = codec.write("mqtt_delivery_header", delivery), b"p" * size
    raw = header + payload
    body = body_of(raw)
    twin = paho.decode_publish(raw[0], body, V5 if version == 5 else V4)
    assert (twin.topic, twin.payload, twin.mid) == (topic.encode(), payload, packet_id if qos else 0)
    assert (twin.dup, twin.qos, twin.retain) == (dup, qos, retain)
    if version == 5:
        own = (
            ([(2, expiry)] if expiry is not None else [])
            + ([(0x23, alias)] if alias else [])
            + [(0x0B, id) for id in ids]
        )
        sent = [(mqtt.IDENTIFIERS[name], value) for name, value in values.items() if name != "user"]
        found = mqtt.read(raw, 5)["properties"]
        assert found[: len(own)] == own and [item for item in found[len(own) :] if item[0] != 0x26] == sent
        assert [value for identifier, value in found if identifier == 0x26] == values.get("user", [])
        if expiry is not None:
            at = codec.lib.mqtt_delivery_expiry_at(header, len(topic.encode()), qos)
            assert header[at - 1] == 2 and int.from_bytes(header[at : at + 4], "big") == expiry


@given(st.sampled_from([4, 5]), TOPICS, st.booleans(), st.sampled_from([0, 64, 120, 128, 16384, 2097152]))
@CODEC
def test_the_template_of_a_topic_makes_the_same_packets(
    codec: Codec, version: int, topic: str, retain: bool, size: int
) -> None:
    keep: list[Any] = []
    span = codec.ffi.new("mqtt_text_t *", codec.span(topic.encode(), keep))
    template = codec.write("mqtt_template_write", version, span[0])
    header = codec.write("mqtt_template_header", retain, template, len(template), size)
    assert header + bytes(size) == publish(topic, bytes(size), 0x30 | retain, values=None if version == 4 else {})


@pytest.mark.parametrize("size", [0, 100, 128, 16384, 2097152])
@pytest.mark.parametrize("user", [0, 20, 200])
def test_the_expiry_of_a_delivery_can_be_found_again(codec: Codec, size: int, user: int) -> None:
    keep: list[Any] = []
    fields = {
        "topic": codec.span(b"t" * 200, keep), "properties": codec.span(mqtt.property_(0x26, [("u", "v" * user)]), keep),
        "payload_size": size, "expiry_s": 0x01020304, "packet_id": 7, "version": 5, "qos": 1, "has_expiry": True,
    }  # fmt: skip
    header = codec.write("mqtt_delivery_header", codec.ffi.new("mqtt_delivery_t *", fields))
    at = codec.lib.mqtt_delivery_expiry_at(header, 200, 1)
    assert header[at - 1 : at + 4] == b"\2\1\2\3\4"


@pytest.mark.parametrize("number", [1, 127, 128, 16384, 2097152, 268435455])
def test_a_subscription_id_is_written_in_as_few_bytes_as_it_needs(codec: Codec, number: int) -> None:
    keep: list[Any] = []
    raw = codec.write("mqtt_ack_write", 5, mqtt.PUBACK, 1, 0, codec.to_write({"subscription_id": number}, keep))
    assert raw == ack(0x40, 1, 0, {"subscription_id": number})


def test_the_largest_packets_of_mqtt_have_a_size(codec: Codec) -> None:
    ffi, keep = codec.ffi, []
    topic = codec.span(bytes(65535), keep)
    for rest, size in ((268435455, 5), (268435456, 0)):
        fields = {"topic": topic, "payload_size": rest - 65537, "version": 4}
        header = codec.lib.mqtt_delivery_header(ffi.NULL, ffi.new("mqtt_delivery_t *", fields))
        assert header == (size and size + 65537)
    text = ffi.new("mqtt_properties_t *", {"present": 1 << 0x1F, "reason_string": topic})
    assert codec.lib.mqtt_ack_write(ffi.NULL, 5, mqtt.PUBACK, 1, 0, text) == 1 + 3 + 2 + 1 + 3 + 65538


def test_a_packet_that_mqtt_cannot_express_has_no_size(codec: Codec) -> None:
    ffi, keep = codec.ffi, []
    long = codec.span(bytes(65536), keep)
    assert (
        codec.write(
            "mqtt_connack_write",
            5,
            False,
            0,
            ffi.new("mqtt_properties_t *", {"present": 1 << 0x1F, "reason_string": long}),
        )
        == b""
    )
    assert codec.write("mqtt_template_write", 5, ffi.new("mqtt_text_t *", long)[0]) == b""
    assert codec.write("mqtt_template_header", False, b"\0\1a", 3, 268435453) == b""
    assert codec.lib.mqtt_template_header(ffi.NULL, False, b"\0\1a", 3, 268435452) == 8
    for fields in ({"topic": long}, {"payload_size": 268435455}, {"version": 5, "properties": {"size": 268435455}}):
        assert codec.lib.mqtt_delivery_header(ffi.NULL, ffi.new("mqtt_delivery_t *", fields)) == 0
    huge = ffi.new("mqtt_properties_t *", {"present": 1 << 0x26, "user": {"size": 2**32 - 1}})
    assert codec.lib.mqtt_ack_write(ffi.NULL, 5, mqtt.PUBACK, 1, 0, huge) == 0
    assert codec.lib.mqtt_goodbye_write(ffi.NULL, mqtt.DISCONNECT, 0, huge) == 0
    assert codec.lib.mqtt_suback_write(ffi.NULL, 5, mqtt.SUBACK, 1, ffi.NULL, 0, huge) == 0


# ---- twins: which property and which reason belongs where ------------------------------------------------------------

CLIENT_PACKETS = [mqtt.CONNECT, mqtt.PUBLISH, mqtt.PUBACK, mqtt.PUBREC, mqtt.PUBREL, mqtt.PUBCOMP, mqtt.SUBSCRIBE,
                  mqtt.UNSUBSCRIBE, mqtt.DISCONNECT, mqtt.AUTH, mqtt.WILL]  # fmt: skip


def with_properties(place: int, values: bytes) -> bytes:
    if place == mqtt.AUTH:
        return ending(0xF0, 0x18, values if b"\x15" in values[:1] else values + b"\x15\0\1m")
    makers = {
        mqtt.CONNECT: lambda: connect(values=values),
        mqtt.WILL: lambda: connect(will=(values, "w", b"")),
        mqtt.PUBLISH: lambda: publish(values=values),
        mqtt.SUBSCRIBE: lambda: subscribe([("a", 0)], values=values),
        mqtt.UNSUBSCRIBE: lambda: unsubscribe(["a"], values=values),
        mqtt.DISCONNECT: lambda: ending(0xE0, 0, values),
    }
    return makers[place]() if place in makers else ack(place << 4 | (2 if place == mqtt.PUBREL else 0), 1, 0, values)


@pytest.mark.parametrize("place", CLIENT_PACKETS)
def test_properties_belong_to_the_packets_that_paho_knows(codec: Codec, place: int) -> None:
    paho_place = PacketTypes.WILLMESSAGE if place == mqtt.WILL else place
    examples: dict[str, Any] = {"pair": [("n", "v")], "text": "t", "bytes": b"b"}
    for identifier, (_, places) in Properties(PacketTypes.CONNECT).properties.items():
        raw = mqtt.property_(identifier, examples.get(mqtt.PROPERTIES[identifier][1], 1))
        found = codec.read(with_properties(place, raw))
        sender = (place, identifier) in ((mqtt.PUBLISH, 0x0B), (mqtt.DISCONNECT, 0x1C))  # only a server sends these
        data_alone = identifier == 0x16 and place == mqtt.CONNECT
        expected = paho_place in places and not sender and not data_alone
        assert isinstance(found, dict) == expected, (identifier, found)
        assert expected or found == ("PROPERTY_SENDER" if sender else "AUTH_DATA" if data_alone else "PROPERTY_PLACE")
        if expected:
            twice = codec.read(with_properties(place, raw * 2))
            assert isinstance(twice, dict) if identifier == 0x26 else twice == "PROPERTY_TWICE"


def test_the_types_of_properties_are_those_of_gmqtt() -> None:
    kinds = {"u8": "text", "u8x2": "pair", "b": "bytes", "vbi": "variable", "!B": "byte", "!H": "u16", "!L": "u32"}
    theirs = {each.id: kinds[each.bytes_struct] for each in GMQTT_PROPERTIES}
    assert len(theirs) >= 26  # it lacks the authentication data
    assert theirs == {identifier: kind for identifier, (_, kind, _) in mqtt.PROPERTIES.items() if identifier in theirs}


# Reason codes that only a server sends: MQTT 5, table 3.13 and 3.15.2.1.
OF_SERVERS = {mqtt.DISCONNECT: {0x87, 0x89, 0x8B, 0x8C, 0x8D, 0x8E, 0x8F, *range(0x9A, 0xA3)}, mqtt.AUTH: {0}}


@pytest.mark.parametrize("place", [mqtt.PUBACK, mqtt.PUBREC, mqtt.PUBREL, mqtt.PUBCOMP, mqtt.DISCONNECT, mqtt.AUTH])
def test_reason_codes_belong_to_the_packets_that_paho_knows(codec: Codec, place: int) -> None:
    known = {code for code, names in ReasonCode.names.items() for kinds in names.values() if place in kinds}
    expected = known - OF_SERVERS.get(place, set())
    accepted = set()
    for reason in range(256):
        if place in (mqtt.DISCONNECT, mqtt.AUTH):
            raw = ending(place << 4, reason, {"authentication_method": "m"} if place == mqtt.AUTH else None)
        else:
            raw = ack(place << 4 | (2 if place == mqtt.PUBREL else 0), 1, reason)
        found = codec.read(raw)
        assert isinstance(found, dict) or found == "REASON"
        if isinstance(found, dict):
            accepted.add(reason)
    assert accepted == expected


@given(st.integers(0, 268435455))
@CODEC
def test_lengths_of_variable_size_are_those_of_paho(codec: Codec, size: int) -> None:
    header = b"\x30" + VariableByteIntegers.encode(size)
    assert codec.frame(header, 5, 2**32 - 1).body_size == size
    reply = codec.lib.mqtt_template_header(codec.ffi.NULL, False, b"", 0, size)
    assert reply == len(header)


# ---- twins: packets that gmqtt and paho write ------------------------------------------------------------------------


class Peer:
    """What gmqtt asks of a connection."""

    def __init__(self, version: int, packet_id: int = 7) -> None:
        self.proto_ver = MQTTv50 if version == 5 else MQTTv311
        self.proto_name = b"MQTT"
        self.id_generator = self
        self.packet_id = packet_id

    def next_id(self) -> int:
        return self.packet_id


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("will", [False, True])
def test_a_connect_of_gmqtt_is_read_as_it_was_meant(codec: Codec, version: int, will: bool) -> None:
    last = Message("w/t", b"gone", qos=1, retain=True, content_type="x", user_property=("a", "b")) if will else None
    raw = LoginPackageFactor.build_package(
        "client", b"name", b"secret", True, 33, Peer(version), will_message=last, session_expiry_interval=99, receive_maximum=10,
        user_property=[("k", "v"), ("k", "w")],
    )  # fmt: skip
    found = codec.read(bytes(raw))
    assert isinstance(found, dict)
    assert (found["version"], found["client_id"], found["keep_alive_s"]) == (version, b"client", 33)
    assert (found["user_name"], found["password"], found["clean_start"]) == (b"name", b"secret", True)
    properties = {"session_expiry_s": 99, "receive_maximum": 10, "user": [(b"k", b"v"), (b"k", b"w")]}
    assert found["properties"] == (properties if version == 5 else {})
    if will:
        assert (found["will"]["topic"], found["will"]["payload"], found["will"]["qos"]) == (b"w/t", b"gone", 1)
        assert found["will"]["properties"] == ({"content_type": b"x", "user": [(b"a", b"b")]} if version == 5 else {})


@given(st.sampled_from([4, 5]), TOPICS, st.binary(max_size=300), st.integers(0, 2), st.booleans())
@CODEC
def test_a_publish_of_gmqtt_is_read_as_it_was_meant(
    codec: Codec, version: int, topic: str, payload: bytes, qos: int, retain: bool
) -> None:
    message = Message(topic.encode(), payload, qos=qos, retain=retain, message_expiry_interval=5, content_type="c")
    _, raw = PublishPacket.build_package(message, Peer(version))
    found = codec.read(bytes(raw), version)
    assert isinstance(found, dict)
    assert (found["topic"], found["payload"], found["qos"], found["retain"]) == (topic.encode(), payload, qos, retain)
    assert found["packet_id"] == (7 if qos else 0)
    assert found["properties"] == ({"message_expiry_s": 5, "content_type": b"c"} if version == 5 else {})


@pytest.mark.parametrize("version", [4, 5])
def test_subscriptions_of_gmqtt_are_read_as_they_were_meant(codec: Codec, version: int) -> None:
    wanted = [
        Subscription("a/+", qos=1, no_local=version == 5, retain_as_published=version == 5, retain_handling_options=version // 5),
        Subscription("#", qos=2),
    ]  # fmt: skip
    _, raw = SubscribePacket.build_package(wanted, Peer(version), subscription_identifier=300)
    found = codec.read(bytes(raw), version)
    assert isinstance(found, dict) and found["packet_id"] == 7
    assert [(each["text"], each["qos"], each["no_local"], each["retain_handling"]) for each in found["filters"]] == [
        (b"a/+", 1, version == 5, version // 5),
        (b"#", 2, False, 0),
    ]
    assert found["properties"] == ({"subscription_id": 300} if version == 5 else {})
    _, raw = UnsubscribePacket.build_package(["a/+", "b"], Peer(version))
    found = codec.read(bytes(raw), version)
    assert isinstance(found, dict) and [each["text"] for each in found["filters"]] == [b"a/+", b"b"]


@given(st.sampled_from(CLIENT_PACKETS), st.data())
@CODEC
def test_properties_that_paho_packs_are_read_as_they_were_meant(codec: Codec, place: int, data: st.DataObject) -> None:
    without = {mqtt.PUBLISH: ("subscription_id",), mqtt.DISCONNECT: ("server_reference",)}.get(place, ())
    values = data.draw(values_of(place, without))
    if place in (mqtt.AUTH, mqtt.CONNECT):
        values["authentication_method"] = "m"
    packed = Properties(PacketTypes.WILLMESSAGE if place == mqtt.WILL else place)
    for name, value in values.items():
        kind = mqtt.PROPERTIES[mqtt.IDENTIFIERS[name]][1]
        setattr(
            packed,
            packed.getNameFromIdent(mqtt.IDENTIFIERS[name]).replace(" ", ""),
            value if kind != "pair" else list(value),
        )
    raw = packed.pack()
    size, length_bytes = VariableByteIntegers.decode(raw)
    found = codec.read(with_properties(place, raw[length_bytes : length_bytes + size]))
    if isinstance(found, dict) and place == mqtt.WILL:
        found = found["will"]
    assert isinstance(found, dict) and found["properties"] == read_back(values)
