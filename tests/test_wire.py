"""The wire codec against the reference: vectors, the flatbuffers package, and invalid bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import fake_broker
import pytest
import schema
from hypothesis import given, settings
from hypothesis import strategies as st

from blipmq.errors import ProtocolError, UsageError
from blipmq.wire import frames as wire
from blipmq.wire.flatbuffer import Table

VECTORS = json.loads((Path(__file__).parent / "vectors.json").read_text("utf-8"))
UP = [vector for vector in VECTORS["valid"] if vector["direction"] == "up"]
DOWN = [vector for vector in VECTORS["valid"] if vector["direction"] == "down"]
BROKEN = VECTORS["broken"]


def command_of(expect: dict[str, Any]) -> wire.Command:
    fields = dict(expect)
    fields["action"] = wire.ACTIONS.index(fields["action"])
    fields["payload"] = bytes.fromhex(fields.pop("payload_hex", ""))
    return wire.Command(**fields)


def frame_of(expect: dict[str, Any]) -> wire.Frame:
    fields = dict(expect)
    kind = fields.pop("type")
    if kind == wire.SUBACK:
        return wire.SubAck(**{"topic": "", "info": "", "seq": 0, "code": 0, **fields})
    fields["payload"] = bytes.fromhex(fields.pop("payload_hex", ""))
    if kind == wire.REPLY:
        return wire.Reply(**{"seq": 0, "code": 0, "message": "", "id": 0, **fields})
    fields["timestamp_ms"] = fields.pop("timestamp", 0)
    fields["properties"] = bytes.fromhex(fields.pop("properties_hex", ""))
    return wire.Message(**{"id": 0, "topic": "", "ttl_ms": 0, "qos": 0, "redelivered": False, **fields})


def by_name(vector: dict[str, Any]) -> str:
    return str(vector["name"])


@pytest.mark.parametrize("vector", UP, ids=by_name)
def test_every_valid_command_is_decoded_as_the_vector_expects(vector: dict[str, Any]) -> None:
    assert list(wire.CommandReader().feed(bytes.fromhex(vector["frame"]))) == [command_of(vector["expect"])]


@pytest.mark.parametrize("vector", UP, ids=by_name)
def test_every_command_is_unchanged_by_encoding_and_decoding(vector: dict[str, Any]) -> None:
    command = command_of(vector["expect"])
    frame = wire.encode_command(**command._asdict())
    assert list(wire.CommandReader().feed(frame)) == [command]


@pytest.mark.parametrize("vector", DOWN, ids=by_name)
def test_every_valid_broker_frame_is_decoded_as_the_vector_expects(vector: dict[str, Any]) -> None:
    frame = bytes.fromhex(vector["frame"])
    expected = frame_of(vector["expect"])
    assert wire.FrameReader().feed(frame) == [expected]
    assert wire.FrameReader().feed(frame * 3) == [expected] * 3


@pytest.mark.parametrize("vector", BROKEN, ids=by_name)
def test_every_broken_command_is_refused(vector: dict[str, Any]) -> None:
    reader = wire.CommandReader(frame_bytes_max=1 << 20)
    frame = bytes.fromhex(vector["frame"])
    if vector["name"].startswith("bit flips"):
        try:
            commands = list(reader.feed(frame))
        except ProtocolError:
            return
        assert all(command.action <= wire.INFO for command in commands)
    else:
        with pytest.raises(ProtocolError):
            list(reader.feed(frame))


def test_an_api_key_may_contain_any_bytes() -> None:
    key = b"\xff\xfe key".decode("utf-8", "surrogateescape")
    (command,) = wire.CommandReader().feed(wire.encode_command(wire.HELLO, api_key=key))
    assert command.api_key == key


@pytest.mark.parametrize("action", [-1, 8, 10])
def test_an_unknown_action_is_not_encoded(action: int) -> None:
    with pytest.raises(UsageError, match=r"(?i)action"):
        wire.encode_command(action)


# ---- against the reference package -----------------------------------------------------------------------------------

text = st.text(max_size=40).filter(lambda value: "\0" not in value and is_utf8(value))
u64 = st.integers(0, (1 << 64) - 1)
commands = st.fixed_dictionaries(
    {
        "action": st.integers(0, 7),
        "topic": text,
        "payload": st.none() | st.binary(max_size=300),
        "ttl_ms": u64,
        "qos": st.integers(0, 1),
        "seq": u64,
        "client_id": text,
        "api_key": text,
        "protocol": st.integers(0, 0xFFFF),
        "durable": st.booleans(),
        "group": text,
        "keep_durable": st.booleans(),
    }
)


def is_utf8(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


@given(commands)
def test_the_reference_decodes_every_command_as_encoded(fields: dict[str, Any]) -> None:
    frame = wire.encode_command(**fields)
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4
    expected = {
        **fields,
        "payload": fields["payload"] or b"",
        "action": wire.ACTIONS[fields["action"]],
        "keepalive_ms": 0,
    }
    assert fake_broker.read_command(frame[4:]) == expected


@given(commands)
def test_wide_fields_are_aligned_for_strict_decoders(fields: dict[str, Any]) -> None:
    body = wire.encode_command(**fields)[4:]
    table = Table(body)
    for slot, alignment in ((1, 4), (2, 4), (3, 8), (5, 8), (6, 4), (7, 4), (8, 2), (10, 4)):
        offset = table.fields[slot] if slot < len(table.fields) else 0
        assert offset == 0 or (table.table + offset) % alignment == 0


@given(st.binary(max_size=3000), st.integers(0, 1 << 40), st.integers(0, 1))
def test_a_publish_from_a_header_template_is_decoded_like_any_other(payload: bytes, ttl_ms: int, qos: int) -> None:
    encoder = wire.PublishEncoder("site/1/temp", ttl_ms=ttl_ms, qos=qos)
    expected = wire.Command(wire.PUB, "site/1/temp", payload, ttl_ms, qos)
    assert list(wire.CommandReader().feed(encoder.frame(payload))) == [expected]
    assert list(wire.CommandReader().feed(encoder.frame(payload, seq=7))) == [expected._replace(seq=7)]
    numbered = wire.encode_command(wire.PUB, "site/1/temp", payload, ttl_ms=ttl_ms, qos=qos, seq=1 << 63)
    assert encoder.frame(payload, seq=1 << 63) == numbered
    assert encoder.frames([payload, b"", payload]) == b"".join(map(encoder.frame, (payload, b"", payload)))
    assert fake_broker.read_command(encoder.frame(payload)[4:])["payload"] == payload


@given(st.lists(st.integers(1, (1 << 64) - 1), max_size=20))
def test_a_run_of_acknowledgements_is_one_command_for_each_id(ids: list[int]) -> None:
    assert wire.encode_acks(ids) == b"".join(wire.encode_command(wire.ACK, seq=id_) for id_ in ids)


messages = st.fixed_dictionaries(
    {
        "id": u64,
        "payload": st.none() | st.binary(max_size=200),
        "timestamp": u64,
        "ttl_ms": st.sampled_from((0, 1, 5000)) | u64,
        "topic": st.none() | st.sampled_from(("a", "site/1/temp", "t" * 255, "température/küche")),
        "qos": st.integers(0, 1),
        "redelivered": st.booleans(),
        "properties": st.none() | st.none() | st.binary(max_size=40),
    }
)
MESSAGE_FIELDS = list(schema.fields("Message"))


def built(fields: dict[str, Any], order: list[str], defaults: bool) -> bytes:
    return fake_broker.frame(1, schema.encode("Message", fields, order=order, defaults=defaults))


def expected_message(fields: dict[str, Any]) -> wire.Message:
    return wire.Message(
        fields["id"],
        fields["topic"] or "",
        fields["payload"] or b"",
        fields["timestamp"],
        fields["ttl_ms"],
        fields["qos"],
        fields["redelivered"],
        fields["properties"] or b"",
    )


@given(st.lists(st.tuples(messages, st.permutations(MESSAGE_FIELDS), st.booleans()), max_size=4), st.data())
def test_messages_of_any_layout_are_decoded_as_the_reference_encoded_them(
    written: list[tuple[dict[str, Any], list[str], bool]], data: st.DataObject
) -> None:
    """Each message three times, so that layouts cached from the first are used for the others, in pieces of any
    size."""
    items = data.draw(st.permutations(written * 3))
    stream = b"".join(built(*item) for item in items)
    reader = wire.FrameReader()
    got: list[wire.Frame] = []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        got += reader.feed(stream[:size])
        stream = stream[size:]
    assert got == [expected_message(item[0]) for item in items]


@given(messages, st.integers(0, 400), st.integers(0, 255), st.booleans())
def test_a_damaged_message_is_decoded_alike_with_and_without_a_cached_layout(
    fields: dict[str, Any], at: int, value: int, defaults: bool
) -> None:
    good = built(fields, MESSAGE_FIELDS, defaults)
    bad = bytearray(good)
    bad[5 + at % (len(bad) - 5)] = value
    try:
        expected: list[wire.Frame] = [wire.decode_message(bytes(bad[5:]))]
    except ProtocolError:
        expected = []
    reader = wire.FrameReader()
    assert reader.feed(good + bytes(bad) + good)[:1] == [expected_message(fields)]
    again = wire.FrameReader()
    again.feed(good)
    try:
        got = again.feed(bytes(bad))
    except ProtocolError:
        got = []
    assert got == expected


@given(st.binary(max_size=200), st.integers(0, 2))
def test_random_bodies_are_refused_or_decoded_without_other_errors(body: bytes, kind: int) -> None:
    try:
        assert len(wire.FrameReader().feed(fake_broker.frame(kind, body))) == 1
    except ProtocolError:
        pass
    try:
        wire.decode_command(body)
    except ProtocolError:
        pass


@given(st.integers(0, 2**64 - 1), st.integers(0, 65535), text, st.none() | st.binary(max_size=50))
def test_answers_are_decoded_as_the_reference_encoded_them(
    seq: int, code: int, words: str, payload: bytes | None
) -> None:
    stream = fake_broker.suback(words, "subscribed", seq, code) + fake_broker.reply(seq, code, words, 42, payload)
    assert wire.FrameReader().feed(stream) == [
        wire.SubAck(words, "subscribed", seq, code),
        wire.Reply(seq, code, words, 42, payload or b""),
    ]


def reference_frame(kind: int, body: bytes) -> wire.Frame:
    """A frame from the broker, decoded by generated code."""
    table = ("SubAck", "Message", "Reply")[kind]
    values = schema.decode(table, body)
    for name, field in schema.fields(table).items():
        if field.type == "string":
            values[name] = (values[name] or b"").decode()
        elif field.type == "[ubyte]":
            values[name] = values[name] or b""
    if kind == wire.MESSAGE:
        values["timestamp_ms"] = values.pop("timestamp")
    return (wire.SubAck, wire.Message, wire.Reply)[kind](**values)


frames_to_mutate = st.one_of(
    st.builds(built, messages, st.permutations(MESSAGE_FIELDS), st.booleans()),
    st.builds(fake_broker.suback, text, text, u64, st.integers(0, 65535)),
    st.builds(fake_broker.reply, u64, st.integers(0, 65535), st.none() | text, u64, st.none() | st.binary(max_size=40)),
)


@settings(max_examples=1000)
@given(frames_to_mutate, st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=3))
def test_a_mutated_broker_frame_is_refused_or_decoded_like_the_reference(
    good: bytes, changes: list[tuple[int, int]]
) -> None:
    """After valid frames of the same layout, which the reader has cached."""
    bad = bytearray(good)
    for position, value in changes:
        bad[4 + position % (len(bad) - 4)] = value  # the length is unchanged
    reader = wire.FrameReader()
    reader.feed(good * 3)
    try:
        frames = reader.feed(bytes(bad) * 2)
    except ProtocolError:
        return
    assert frames == [reference_frame(bad[4], bytes(bad[5:]))] * 2


# ---- streams ---------------------------------------------------------------------------------------------------------


def test_frames_before_a_broken_one_are_returned_and_the_error_is_kept() -> None:
    reader = wire.FrameReader()
    good = fake_broker.message(1, b"x", "a")
    assert len(reader.feed(good + good + b"\0\0\0\0")) == 2
    assert reader.broken is not None
    with pytest.raises(ProtocolError, match="length of 0"):
        reader.feed(good)


def test_a_length_over_the_limit_is_refused_from_the_length_alone() -> None:
    with pytest.raises(ProtocolError, match="limit"):
        wire.FrameReader(frame_bytes_max=1000).feed(b"\x00\x00\x03\xe9")
    with pytest.raises(ProtocolError, match="limit"):
        list(wire.CommandReader(frame_bytes_max=1000).feed(b"GET / HTTP/1.0\r\n\r\n"))


def test_a_message_over_the_limit_is_refused_after_the_layout_is_known() -> None:
    reader = wire.FrameReader(frame_bytes_max=200)
    assert len(reader.feed(fake_broker.message(1, b"x", "a") * 2)) == 2
    with pytest.raises(ProtocolError, match="limit"):
        reader.feed(fake_broker.message(1, b"x" * 200, "a"))


def test_an_unknown_frame_type_is_refused() -> None:
    with pytest.raises(ProtocolError, match="frame type 3"):
        wire.FrameReader().feed(b"\0\0\0\x09\x03" + bytes(8))


def test_a_large_frame_in_small_pieces_is_assembled_once() -> None:
    frame = fake_broker.message(1, bytes(1 << 20), "a")
    reader = wire.FrameReader()
    for at in range(0, len(frame) - 1, 1000):
        assert reader.feed(frame[at : min(at + 1000, len(frame) - 1)]) == []
    (message,) = reader.feed(frame[-1:])
    assert isinstance(message, wire.Message)
    assert len(message.payload) == 1 << 20


def test_topics_and_layouts_beyond_the_cache_are_decoded_correctly() -> None:
    reader = wire.FrameReader()
    for number in range(3000):
        (message,) = reader.feed(fake_broker.message(number + 1, b"x", f"t{number}", ttl_ms=number % 2))
        assert isinstance(message, wire.Message)
        assert (message.id, message.topic) == (number + 1, f"t{number}")


@pytest.mark.parametrize(
    "field", [{"ttl_ms": -1}, {"ttl_ms": 1 << 64}, {"qos": 2}, {"seq": -1}, {"protocol": 1 << 16}], ids=str
)
def test_a_value_out_of_range_is_a_caller_error(field: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(field))):
        wire.encode_command(wire.PUB, "a", b"", **field)
