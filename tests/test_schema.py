"""blip.fbs, docs/PROTOCOL.md and the codecs in C and Python have the same tables. Code generated from the schema
decodes the frames of both codecs, and both decode its frames.
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
import schema
from hypothesis import given
from hypothesis import strategies as st
from test_native_leaves import LEAVES, leaf  # noqa: F401  # leaf is a fixture
from test_wire import is_utf8

from blipmq.native import pure
from blipmq.wire import frames as wire

PROTOCOL_PAGE = (schema.ROOT / "docs" / "PROTOCOL.md").read_text("utf-8")
FRAME_TYPES = {"SubAck": wire.SUBACK, "Message": wire.MESSAGE, "Reply": wire.REPLY}
U64 = st.integers(0, 2**64 - 1)
TEXT = st.text(max_size=40).filter(lambda text: "\0" not in text and is_utf8(text))
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "ushort": st.integers(0, 0xFFFF),
    "ulong": U64,
    "string": st.none() | TEXT,
    "[ubyte]": st.none() | st.binary(max_size=300),
}


# ---- the schema, the page and the output of flatc --------------------------------------------------------------------


def rows_of(heading: str) -> list[list[str]]:
    """The rows of the tables below a heading of the protocol page, without their headers."""
    section = re.split(rf"^#+ {re.escape(heading)}$", PROTOCOL_PAGE, flags=re.MULTILINE)[1]
    lines = [line for line in re.split(r"^#", section, flags=re.MULTILINE)[0].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("table", schema.TABLES)
def test_the_protocol_page_has_the_slots_and_types_of_the_schema(table: str) -> None:
    shown: list[tuple[int, str, str]] = []
    for first, *cells in rows_of(f"`{table}`"):
        if len(cells) != 3 or not first[0].isdigit():
            continue
        name, kind, meaning = cells
        numbers = [int(number) for number in first.split(" to ")]
        assert name or meaning == "reserved"
        shown += [(number, name, kind) for number in range(numbers[0], numbers[-1] + 1)]
    assert shown == [
        (field.id, "" if field.reserved else field.name, "" if field.reserved else field.type)
        for field in schema.TABLES[table]
    ]


def test_the_protocol_page_the_schema_and_the_client_have_the_same_actions_types_and_codes() -> None:
    _, actions = schema.ENUMS["Action"]
    shown = {cells[1]: int(cells[0]) for cells in rows_of("`ClientCommand`") if len(cells) == 2 and cells[0].isdigit()}
    assert shown.pop("reserved") == wire.ACTIONS.index("STREAM")
    assert shown == actions == {name: n for n, name in enumerate(wire.ACTIONS) if name != "STREAM"}
    _, types = schema.ENUMS["FrameType"]
    assert types == {table.upper(): number for table, number in FRAME_TYPES.items()}
    for table, number in FRAME_TYPES.items():
        assert f"### `{table}`\n\nFrame type {number}:" in PROTOCOL_PAGE
    _, codes = schema.ENUMS["Code"]
    shown_codes = {int(cells[0]) for cells in rows_of("Answers and codes") if cells[0].isdigit()}
    assert shown_codes == set(codes.values())


@pytest.mark.parametrize("table", schema.TABLES)
def test_generated_code_has_the_slots_of_the_schema(table: str) -> None:
    source = schema.generated_source(table)
    added = re.findall(rf"def {table}Add(\w+)\(builder, \w+\):\n? +builder\.Prepend(\w+)Slot\((\d+), ", source)
    kinds = {"byte": "Int8", "ubyte": "Uint8", "bool": "Bool", "ushort": "Uint16", "ulong": "Uint64"}
    used = schema.fields(table).values()
    assert [(name, kind, int(slot)) for name, kind, slot in added] == [
        (schema.camel(field.name), kinds.get(field.type, "UOffsetTRelative"), field.id) for field in used
    ]
    assert f"builder.StartObject({len(schema.TABLES[table])})" in source


def test_schema_ids_have_no_gaps_and_every_wire_table_exists() -> None:
    assert set(schema.TABLES) == {"ClientCommand", *FRAME_TYPES}
    for fields in schema.TABLES.values():
        assert [field.id for field in fields] == list(range(len(fields)))


# ---- commands: generated encoder, codecs in C and in Python -----------------------------------------------------------

COMMANDS = st.fixed_dictionaries(
    {
        name: VALUES[field.type]
        for name, field in schema.fields("ClientCommand").items()
        if name not in ("action", "qos", "topic")
    }
    | {"qos": st.integers(0, 1), "topic": st.sampled_from(("a", "site/1/temp", "température.küche", "t" * 255))}
    | {"action": st.sampled_from(sorted(schema.ENUMS["Action"][1].values()))}
)


def as_command(fields: dict[str, Any]) -> wire.Command:
    return wire.Command(**{name: value for name, value in fields.items() if value is not None})


def in_c(body: bytes) -> dict[str, Any]:
    """A ClientCommand decoded by the core, with the types of wire.Command."""
    return {
        name: value.decode() if name in ("topic", "client_id", "api_key", "group") else value
        for name, value in pure.decode(body)._asdict().items()
    }


@LEAVES
@given(COMMANDS, st.permutations(list(schema.fields("ClientCommand"))), st.booleans())
def test_a_generated_command_is_decoded_alike_in_c_and_python(
    fields: dict[str, Any], order: list[str], defaults: bool
) -> None:
    body = schema.encode("ClientCommand", fields, order=order, defaults=defaults)
    assert wire.decode_command(body) == as_command(fields)
    assert in_c(body) == as_command(fields)._asdict()


@LEAVES
@given(COMMANDS)
def test_generated_code_decodes_every_command_encoded_by_python(fields: dict[str, Any]) -> None:
    frame = wire.encode_command(**as_command(fields)._asdict() | {"payload": fields["payload"]})
    expected = as_command(fields)._asdict()
    for name, field in schema.fields("ClientCommand").items():
        if field.type == "string":  # an empty one is omitted
            expected[name] = expected[name].encode() or None
    assert schema.decode("ClientCommand", frame[4:]) == expected | {"payload": fields["payload"]}
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4


def one_at_a_time(table: str) -> list[tuple[schema.Field, Any]]:
    largest: dict[str, Any] = {"action": wire.ADMIN, "qos": 1}
    parts = {"string": "x", "[ubyte]": b"x"}
    return [
        (field, parts[field.type] if field.type in parts else largest.get(field.name, field.largest))
        for field in schema.fields(table).values()
    ]


@pytest.mark.parametrize(("field", "value"), one_at_a_time("ClientCommand"), ids=lambda part: getattr(part, "name", ""))
def test_each_command_slot_has_the_same_field_in_both_codecs(field: schema.Field, value: Any) -> None:
    """Numbers have the largest value of their type, so that a narrower field is detected."""
    ping = {"action": wire.PING}
    body = schema.encode("ClientCommand", ping | {field.name: value})
    expected = as_command(ping | {field.name: value})
    assert wire.decode_command(body) == expected
    assert in_c(body) == expected._asdict()


@pytest.mark.parametrize("table", schema.TABLES)
def test_reserved_and_unknown_slots_are_ignored(table: str) -> None:
    builder = flatbuffers.Builder(64)
    text = builder.CreateString("topic")
    unused = [field.id for field in schema.TABLES[table] if field.reserved] + [len(schema.TABLES[table])]
    named = schema.fields(table)["topic" if table != "Reply" else "message"]
    builder.StartObject(unused[-1] + 1)
    for slot in unused:
        builder.PrependUint64Slot(slot, 2**64 - 1, 0)
    builder.PrependUOffsetTRelativeSlot(named.id, text, 0)
    builder.Finish(builder.EndObject())
    got, plain = bytes(builder.Output()), schema.encode(table, {named.name: "topic"})
    if table == "ClientCommand":
        assert pure.decode(got) == pure.decode(plain)
        assert wire.decode_command(got) == wire.decode_command(plain)
    else:
        assert read_in_python(table, got) == read_in_python(table, plain)


# ---- frames from the broker: codecs in C and in Python, generated decoder ---------------------------------------------


def read_in_python(table: str, body: bytes) -> wire.Frame:
    (frame,) = wire.FrameReader().feed(struct.pack(">IB", len(body) + 1, FRAME_TYPES[table]) + body)
    return frame


def expected_in_python(table: str, fields: dict[str, Any]) -> dict[str, Any]:
    empty: dict[str, Any] = {"string": "", "[ubyte]": b"", "bool": False}
    expected = {
        name: empty.get(field.type, 0) if fields.get(name) is None else fields[name]
        for name, field in schema.fields(table).items()
    }
    if table == "Reply":
        expected["subscriptions"] = fields.get("subscriptions")
    if table == "Message":
        expected["timestamp_ms"] = expected.pop("timestamp")
    return expected


def all_fields(table: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {name: VALUES.get(field.type, st.integers(0, 1)) for name, field in schema.fields(table).items()}
    )


@LEAVES
@given(st.data(), st.sampled_from(sorted(FRAME_TYPES)), st.booleans())
def test_python_decodes_every_generated_frame(data: st.DataObject, table: str, defaults: bool) -> None:
    fields = data.draw(all_fields(table))
    order = data.draw(st.permutations(list(fields)))
    body = schema.encode(table, fields, order=order, defaults=defaults)
    assert read_in_python(table, body)._asdict() == expected_in_python(table, fields)


@pytest.mark.parametrize("table", FRAME_TYPES)
def test_each_frame_slot_has_the_same_field_in_python(table: str) -> None:
    for field, value in one_at_a_time(table):
        body = schema.encode(table, {field.name: value})
        assert read_in_python(table, body)._asdict() == expected_in_python(table, {field.name: value})


def written(table: str, write: Callable[[Any], int]) -> dict[str, Any]:
    """A frame encoded in C and decoded by generated code; Python must decode it alike."""
    out = ctypes.create_string_buffer(4096)
    size = write(out)
    frame = out.raw[:size]
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4 and frame[4] == FRAME_TYPES[table]
    fields = schema.decode(table, frame[5:])
    texts = {
        name: (fields[name] or b"").decode() for name, field in schema.fields(table).items() if field.type == "string"
    }
    assert read_in_python(table, frame[5:])._asdict() == expected_in_python(table, fields | texts)
    return fields


NAME, BYTES = st.text(max_size=60).filter(is_utf8).map(str.encode), st.binary(max_size=300)


@LEAVES
@given(st.tuples(U64, U64, U64), NAME.filter(bool), BYTES)
def test_generated_code_decodes_every_qos_0_message_of_the_core(
    leaf: ctypes.CDLL,  # noqa: F811
    numbers: tuple[int, int, int],
    topic: bytes,
    payload: bytes,
) -> None:
    seen = written(
        "Message",
        lambda out: leaf.bq_encode_message(out, 4096, *numbers, topic, len(topic), payload, len(payload)),
    )
    id_, timestamp, ttl_ms = numbers
    told = {"id": id_, "payload": payload, "timestamp": timestamp, "ttl_ms": ttl_ms, "topic": topic}
    assert seen == told | {"qos": 0, "redelivered": False, "properties": None}


class EncodedMessage(ctypes.Structure):
    """message_t of native/proto/encoding.h."""

    _fields_ = [
        *(("topic", ctypes.c_char_p), ("payload", ctypes.c_char_p), ("properties", ctypes.c_char_p)),
        *(("topic_size", ctypes.c_uint32), ("payload_size", ctypes.c_uint32), ("properties_size", ctypes.c_uint32)),
        *(("id", ctypes.c_uint64), ("timestamp_ms", ctypes.c_uint64), ("ttl_ms", ctypes.c_uint64)),
    ]


@LEAVES
@given(
    st.tuples(U64, U64, U64),
    NAME.filter(bool),
    BYTES,
    st.binary(max_size=600),
    st.sampled_from(("", "qos0", "redelivered")),
)
def test_generated_code_decodes_every_qos_1_message_of_the_core(
    leaf: ctypes.CDLL,  # noqa: F811
    numbers: tuple[int, int, int],
    topic: bytes,
    payload: bytes,
    properties: bytes,
    mark: str,
) -> None:
    texts = (topic, payload, properties)
    message = EncodedMessage(*texts, *map(len, texts), *numbers)

    def write(out: Any) -> int:
        leaf.message_encode(out, ctypes.byref(message))
        if mark:
            getattr(leaf, f"message_mark_{mark}")(out)
        return int(leaf.message_header_size(ctypes.byref(message)) + len(payload))

    id_, timestamp, ttl_ms = numbers
    told = {"id": id_, "payload": payload, "timestamp": timestamp, "ttl_ms": ttl_ms, "topic": topic}
    marks = {"qos": int(mark != "qos0"), "redelivered": mark == "redelivered"}
    assert written("Message", write) == told | marks | {"properties": properties or None}


@LEAVES
@given(U64, st.integers(0, 0xFFFF), NAME, NAME)
def test_generated_code_decodes_every_suback_of_the_core(
    leaf: ctypes.CDLL,  # noqa: F811
    seq: int,
    code: int,
    topic: bytes,
    info: bytes,
) -> None:
    info = info.replace(b"\0", b"")
    seen = written("SubAck", lambda out: leaf.frame_write_suback(out, seq, code, topic, len(topic), info))
    assert seen == {"topic": topic, "info": info, "seq": seq, "code": code}


@LEAVES
@given(U64, st.integers(0, 0xFFFF), NAME, U64, BYTES, U64.filter(bool))
def test_generated_code_decodes_every_reply_of_the_core(
    leaf: ctypes.CDLL,  # noqa: F811
    seq: int,
    code: int,
    text: bytes,
    id_: int,
    payload: bytes,
    number: int,
) -> None:
    nothing: dict[str, Any] = dict.fromkeys(schema.fields("Reply"), 0)
    nothing |= {"message": None, "payload": None, "subscriptions": None}

    def general(out: Any) -> int:
        return int(leaf.frame_write_reply(out, seq, code, text, len(text), id_, payload, len(payload)))

    answer = {"seq": seq, "code": code, "message": text, "id": id_, "payload": payload}
    assert written("Reply", general) == nothing | answer
    welcome = written("Reply", lambda out: leaf.frame_write_welcome(out, seq, text, len(text), number))
    assert welcome == nothing | {"seq": seq, "message": text, "keepalive_ms": number}
    stored = {"seq": seq, "id": id_, "subscriptions": number}
    published = written("Reply", lambda out: leaf.frame_write_published(out, seq, id_, number))
    assert published == nothing | stored


# ---- downloads -------------------------------------------------------------------------------------------------------


def test_every_download_contains_the_schema(tmp_path: Path) -> None:
    """tests/test_frozen.py checks the downloads themselves; this test quickly detects a download without the schema."""
    for recipe in ("release/archive.py", "steps/deb.sh", "steps/image.sh", "oci/Dockerfile"):
        assert re.search(r"native\W+proto\W+blip\.fbs", (schema.ROOT / "packaging" / recipe).read_text("utf-8")), recipe
    for step in ("archive", "deb", "image"):
        inputs = re.search(
            r"^# inputs: (.+)$", (schema.ROOT / f"packaging/steps/{step}.sh").read_text("utf-8"), re.MULTILINE
        )
        assert inputs and "native/proto/blip.fbs" in inputs[1].split()
    tree = tmp_path / "tree"
    shutil.copytree(schema.ROOT / "native", tree / "native", ignore=shutil.ignore_patterns("*.so", "*.o", "build"))
    (tree / "blipmq").mkdir()
    for name in ("__init__.py", "version.py"):
        shutil.copy(schema.ROOT / "blipmq" / name, tree / "blipmq")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(schema.ROOT / name, tree)
    build = f"from setuptools.build_meta import build_wheel; build_wheel({str(tmp_path)!r})"
    environment = os.environ | {"BLIPMQ_WITHOUT_CORE": "1"}
    subprocess.run(
        [sys.executable, "-c", build], cwd=tree, env=environment, check=True, capture_output=True, timeout=120
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("/share/doc/blipmq/blip.fbs")]
        assert archive.read(name) == schema.FBS.read_bytes()
