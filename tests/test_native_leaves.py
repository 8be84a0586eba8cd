"""The leaf modules of the C core: their test programs under the sanitizers, then differential tests through a shared
object.

Invariant: every expected value comes from outside the C code: zlib, the reference FlatBuffers reader and builder, a
short Python model, or the published vectors.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import struct
import subprocess
import unicodedata
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import pytest
import schema
from flatbuffers import number_types
from flatbuffers.table import Table
from hypothesis import example, given, settings
from hypothesis import strategies as st

TESTS = Path(__file__).resolve().parent
NATIVE = TESTS.parent / "native"
CC = os.environ.get("CC", "cc").split()
WARNINGS = ["-std=c11", "-g", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}"]
VECTORS = json.loads((TESTS / "vectors.json").read_text(encoding="utf-8"))

settings.register_profile("leaves", deadline=None, max_examples=400)
LEAVES = settings.get_profile("leaves")

ACTIONS = ["PUB", "SUB", "UNSUB", "QUIT", "HELLO", "ACK", "PING", "INFO"]
# slot, name, kind
KINDS = {
    "byte": "u8",
    "ubyte": "u8",
    "bool": "u8",
    "ushort": "u16",
    "ulong": "u64",
    "string": "string",
    "[ubyte]": "vector",
}
FIELDS = [(field.id, field.name, KINDS[field.type]) for field in schema.fields("ClientCommand").values()]
SLOTS = 1 + max(slot for slot, _, _ in FIELDS)
SCALARS = {"u8": number_types.Uint8Flags, "u16": number_types.Uint16Flags, "u64": number_types.Uint64Flags}


# ---- the test programs ---------------------------------------------------------------------------------------------


def run_program(directory: Path, name: str, sanitizers: str, sources: list[str], stdin: bytes = b"") -> None:
    program = directory / f"test_{name}"
    files = [str(TESTS / "native" / f"test_{name}.c"), *(str(NATIVE / source) for source in sources)]
    flags = ["-O1", f"-fsanitize={sanitizers}", "-fno-sanitize-recover=all", "-pthread"]
    subprocess.run([*CC, *WARNINGS, *flags, *files, "-o", str(program)], check=True)
    result = subprocess.run([str(program)], input=stdin, capture_output=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr.decode(errors="replace")


def test_similar_names_are_spread_over_hash_buckets(tmp_path: Path) -> None:
    run_program(tmp_path, "hash", "address,undefined", ["base/hash.c"])


def test_the_timer_wheel_matches_an_array_model(tmp_path: Path) -> None:
    run_program(tmp_path, "wheel", "address,undefined", ["base/wheel.c"])


def test_the_pool_statistics_match_a_model(tmp_path: Path) -> None:
    run_program(tmp_path, "pool", "address,undefined", ["base/pool.c"])


def test_the_packet_ids_of_an_mqtt_session_follow_their_table(tmp_path: Path) -> None:
    run_program(tmp_path, "flight", "address,undefined", ["broker/flight.c", "base/pool.c"])


def test_an_output_queue_in_any_encoding_matches_a_list_of_messages(tmp_path: Path) -> None:
    sources = ["broker/outqueue.c", "broker/buffer.c", "base/pool.c", "base/wheel.c"]
    run_program(tmp_path, "outqueue", "address,undefined", sources)


@pytest.mark.parametrize("sanitizers", ["address,undefined", "thread"])
def test_the_ring_loses_no_record_and_no_wakeup(tmp_path: Path, sanitizers: str) -> None:
    run_program(tmp_path, "ring", sanitizers, ["base/ring.c", "base/poll.c"])


def test_the_poller_reports_the_requested_events(tmp_path: Path) -> None:
    run_program(tmp_path, "poll", "address,undefined", ["base/poll.c"])


def test_damaged_vectors_never_make_the_decoder_read_outside_its_frame(tmp_path: Path) -> None:
    bodies = [
        bytes.fromhex(v["frame"])[4:] for v in VECTORS["valid"] + VECTORS["broken"] if v.get("direction") != "down"
    ]
    stdin = b"".join(struct.pack("<I", len(body)) + body for body in bodies)
    run_program(tmp_path, "frame", "address,undefined", ["proto/blip_codec.c", "base/topic_name.c"], stdin)


# ---- the same code, called from Python -----------------------------------------------------------------------------


BOOLEANS = ("durable", "keep_durable")


class View(ctypes.Structure):
    """bq_view_t of api/bq.h."""

    _STRINGS = ("topic", "payload", "client_id", "api_key", "group")
    _fields_ = [
        *((name, ctypes.c_void_p) for name in _STRINGS),
        *((f"{name}_size", ctypes.c_uint32) for name in _STRINGS),
        ("protocol", ctypes.c_uint16), ("action", ctypes.c_uint8), ("qos", ctypes.c_uint8), ("durable", ctypes.c_uint8),
        ("keep_durable", ctypes.c_uint8), ("reserved", ctypes.c_uint8 * 2), ("ttl_ms", ctypes.c_uint64), ("seq", ctypes.c_uint64),
        ("keepalive_ms", ctypes.c_uint64),
    ]  # fmt: skip

    def bytes_of(self, name: str) -> bytes | None:
        pointer = getattr(self, name)
        return ctypes.string_at(pointer, getattr(self, f"{name}_size")) if pointer else None


@pytest.fixture(scope="module")
def leaf(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = tmp_path_factory.mktemp("leaves") / "leaves.so"
    sources = [
        str(NATIVE / name) for name in ("proto/blip_codec.c", "base/topic_name.c", "base/crc32.c", "stateless.c")
    ]
    subprocess.run([*CC, *WARNINGS, "-O2", "-shared", "-fPIC", *sources, "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    loaded.bq_decode_error.restype = ctypes.c_char_p
    loaded.bq_crc32.restype = ctypes.c_uint32
    loaded.bq_crc32.argtypes = [ctypes.c_uint32, ctypes.c_char_p, ctypes.c_uint64]
    u16, u32, u64, text = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_char_p
    loaded.bq_encode_message.argtypes = [text, u32, u64, u64, u64, text, u32, text, u32]
    loaded.frame_write_suback.argtypes = [text, u64, u16, text, u32, text]
    loaded.frame_write_reply.argtypes = [text, u64, u16, text, u32, u64, text, u32]
    loaded.frame_write_welcome.argtypes = [text, u64, text, u32, u64]
    loaded.frame_write_published.argtypes = [text, u64, u64, u64]
    return loaded


def decode(leaf: ctypes.CDLL, body: bytes) -> dict[str, Any] | None:
    view = View()
    code = leaf.bq_decode(body, len(body), ctypes.byref(view))
    if code:
        assert code < 0 and leaf.bq_decode_error(code) not in (b"unknown error", b"no error")
        return None
    return {
        name: view.bytes_of(name) if kind in ("string", "vector") else getattr(view, name) for _, name, kind in FIELDS
    }


# ---- crc32 ---------------------------------------------------------------------------------------------------------


@LEAVES
@given(st.binary(max_size=200), st.integers(0, 2**32 - 1), st.integers(0, 200))
def test_crc32_matches_zlib_also_in_chunks(leaf: ctypes.CDLL, data: bytes, start: int, cut: int) -> None:
    head, tail = data[:cut], data[cut:]
    assert leaf.bq_crc32(start, data, len(data)) == zlib.crc32(data, start)
    assert leaf.bq_crc32(leaf.bq_crc32(0, head, len(head)), tail, len(tail)) == zlib.crc32(data)


def test_crc32_matches_zlib_for_every_short_length_and_alignment(leaf: ctypes.CDLL) -> None:
    data = random.Random(2).randbytes(320)
    for start in range(17):
        for size in range(301):
            assert leaf.bq_crc32(start, data[start : start + size], size) == zlib.crc32(
                data[start : start + size], start
            )


def test_table_based_crc32_matches_zlib(leaf: ctypes.CDLL) -> None:
    """Chunks too short for the x86 instructions; processors without these instructions handle longer ones the same way."""
    data, crc = random.Random(3).randbytes(47 * 300), 0
    for at in range(0, len(data), 47):
        crc = leaf.bq_crc32(crc, data[at : at + 47], 47)
    assert crc == zlib.crc32(data)


def test_crc32_of_long_buffers_matches_zlib(leaf: ctypes.CDLL) -> None:
    rng = random.Random(1)
    for size in (1 << 16, (1 << 20) + 13):
        data = rng.randbytes(size)
        assert leaf.bq_crc32(0, data, size) == zlib.crc32(data)


# ---- decoding ------------------------------------------------------------------------------------------------------


def reference_read(body: bytes) -> dict[str, Any]:
    """The result of the flatbuffers package. It does not verify, so only for accepted bodies."""
    table = Table(bytearray(body), struct.unpack_from("<I", body)[0])
    values: dict[str, Any] = {}
    for slot, name, kind in FIELDS:
        offset = table.Offset(4 + 2 * slot)
        if kind in SCALARS:
            value = table.Get(SCALARS[kind], table.Pos + offset) if offset else 0
            values[name] = int(bool(value)) if name in BOOLEANS else value
        elif not offset:
            values[name] = None
        elif kind == "string":
            values[name] = table.String(table.Pos + offset)
        else:
            start = table.Vector(offset)
            values[name] = bytes(table.Bytes[start : start + table.VectorLen(offset)])
    return values


def build(values: dict[str, Any], order: list[int], slots: int = SLOTS) -> bytes:
    """A ClientCommand with the given fields, written in the given order, including default values."""
    builder = flatbuffers.Builder(64)
    builder.ForceDefaults(True)
    offsets = {}
    for _, name, kind in FIELDS:
        if values.get(name) is not None and kind in ("string", "vector"):
            create = builder.CreateString if kind == "string" else builder.CreateByteVector
            offsets[name] = create(values[name])
    builder.StartObject(slots)
    prepend = {"u8": builder.PrependUint8Slot, "u16": builder.PrependUint16Slot, "u64": builder.PrependUint64Slot}
    for slot, name, kind in (FIELDS[index] for index in order):
        if name in offsets:
            builder.PrependUOffsetTRelativeSlot(slot, offsets[name], 0)
        elif kind in prepend and values.get(name) is not None:
            prepend[kind](slot, values[name], 0)
    builder.Finish(builder.EndObject())
    return bytes(builder.Output())


TOPIC_TEXT = st.text(st.characters(exclude_characters="*>+#", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=60)
ANY_TEXT = st.text(max_size=20).map(str.encode)
COMMANDS = st.fixed_dictionaries(
    {"action": st.integers(0, 7), "topic": TOPIC_TEXT.map(str.encode)},
    optional={
        "payload": st.binary(max_size=40), "ttl_ms": st.integers(0, 2**64 - 1), "qos": st.integers(0, 1),
        "seq": st.integers(0, 2**64 - 1), "client_id": ANY_TEXT, "api_key": st.binary(max_size=20),
        "protocol": st.integers(0, 2**16 - 1), "durable": st.integers(0, 255), "group": ANY_TEXT,
        "keepalive_ms": st.integers(0, 2**64 - 1), "keep_durable": st.integers(0, 255),
    },
)  # fmt: skip
ORDERS = st.permutations(range(len(FIELDS)))


@LEAVES
@given(COMMANDS, ORDERS, st.integers(SLOTS, SLOTS + 5))
def test_every_reference_command_is_decoded_correctly(
    leaf: ctypes.CDLL, values: dict[str, Any], order: list[int], slots: int
) -> None:
    body = build(values, order, slots)
    decoded = decode(leaf, body)
    assert decoded is not None and decoded == reference_read(body)
    for name, value in values.items():
        assert decoded[name] == (int(bool(value)) if name in BOOLEANS else value)


@settings(LEAVES, max_examples=2000)
@given(
    COMMANDS,
    ORDERS,
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), min_size=1, max_size=4),
    st.integers(0, 40),
)
def test_a_mutated_command_is_refused_or_decoded_like_the_reference(
    leaf: ctypes.CDLL, values: dict[str, Any], order: list[int], changes: list[tuple[int, int]], cut: int
) -> None:
    body = bytearray(build(values, order))
    for position, value in changes:
        body[position % len(body)] = value
    frame = bytes(body[: len(body) - cut] if cut < 8 else body)
    decoded = decode(leaf, frame)
    if decoded is not None:
        assert decoded == reference_read(frame)
        assert decoded["action"] <= 7 and decoded["qos"] <= 1


@pytest.mark.parametrize("offset", [1, 2, 3])
def test_a_field_that_overlaps_the_vtable_offset_is_refused(leaf: ctypes.CDLL, offset: int) -> None:
    # root; vtable of 6 bytes at 4; table of 8 bytes at 12 with only `action`, 7: INFO
    def body(at: int) -> bytes:
        return struct.pack("<IHHHxxiB3x", 12, 6, 8, at, 8, 7)

    assert decode(leaf, body(4)) is not None
    assert decode(leaf, body(offset)) is None


@LEAVES
@given(COMMANDS, st.integers(1, 7))
def test_misaligned_frames_are_decoded_alike(leaf: ctypes.CDLL, values: dict[str, Any], shift: int) -> None:
    body = build(values, list(range(len(FIELDS))))
    memory = ctypes.create_string_buffer(b"\xee" * shift + body, shift + len(body))
    view = View()
    assert leaf.bq_decode(ctypes.byref(memory, shift), len(body), ctypes.byref(view)) == 0
    assert view.bytes_of("topic") == values["topic"] and view.seq == values.get("seq", 0)


@pytest.mark.parametrize("name", ["client_id", "group"])
def test_names_with_invalid_utf8_are_refused(leaf: ctypes.CDLL, name: str) -> None:
    assert decode(leaf, build({"action": 4, name: b"caf\xc3\xa9"}, list(range(len(FIELDS))))) is not None
    assert decode(leaf, build({"action": 4, name: b"caf\xe9"}, list(range(len(FIELDS))))) is None


@pytest.mark.parametrize("action", [3, 4, 5, 6, 7])
def test_only_pub_sub_and_unsub_need_a_topic(leaf: ctypes.CDLL, action: int) -> None:
    assert decode(leaf, build({"action": action}, list(range(len(FIELDS))))) is not None
    for needy in (0, 1, 2):
        assert decode(leaf, build({"action": needy}, list(range(len(FIELDS))))) is None


# ---- topics and filters --------------------------------------------------------------------------------------------


def reference_topic(topic: bytes) -> bool:
    try:
        text = topic.decode()
    except UnicodeDecodeError:
        return False
    return 1 <= len(topic) <= 256 and not any(c in "*>+#" or unicodedata.category(c) == "Cc" for c in text)


def reference_filter(pattern: bytes) -> int:
    """0, 1, 2 like bq_filter_check, -1 for an invalid filter."""
    dots, slashes = any(c in b"*>" for c in pattern), any(c in b"+#" for c in pattern)
    if not reference_topic(bytes(c for c in pattern if c not in b"*>+#") or b"x") or not 1 <= len(pattern) <= 256:
        return -1
    if dots and slashes:
        return -1
    levels = pattern.split(b"/" if slashes else b".")
    if any(len(level) > 1 and any(c in b"*>+#" for c in level) for level in levels):
        return -1
    if any(level in (b">", b"#") for level in levels[:-1]):
        return -1
    return 1 if dots else 2 if slashes else 0


def reference_match(pattern: bytes, topic: bytes) -> bool:
    dialect = reference_filter(pattern)
    separator = b"/" if dialect == 2 else b"."

    def levels_match(wanted: list[bytes], given: list[bytes]) -> bool:
        if not wanted:
            return not given
        if wanted[0] == b"#":
            return True
        if wanted[0] == b">":
            return bool(given)
        return bool(given) and wanted[0] in (b"*", b"+", given[0]) and levels_match(wanted[1:], given[1:])

    if topic[:1] == b"$" and pattern[:1] != b"$":
        return False
    return pattern == topic if dialect == 0 else levels_match(pattern.split(separator), topic.split(separator))


# Few letters, so that matches are frequent, and all special characters.
NAMES = st.lists(
    st.sampled_from([b"a", b"b", b"ab", b".", b".", b"/", b"/", b"$", "é".encode()]), min_size=1, max_size=12
).map(b"".join)
LEVELS = st.lists(st.sampled_from([b"a", b"b", b"", b"$", b"*", b"+"]), min_size=1, max_size=6)
PATTERNS = st.one_of(
    NAMES,
    st.builds(
        lambda levels, last, by: by.join(levels + last),
        LEVELS,
        st.sampled_from([[], [b">"], [b"#"]]),
        st.sampled_from([b".", b"/"]),
    ),
    st.lists(st.sampled_from([b"a", b".", b"/", b"*", b">", b"+", b"#"]), min_size=1, max_size=8).map(b"".join),
)


@settings(LEAVES, max_examples=2000)
@given(PATTERNS, NAMES)
@example(b"site/#", b"site")
@example(b"site/#", b"site/")
@example(b"site/#", b"sites")
@example(b"logs.>", b"logs")
@example(b"logs.>", b"logs.")
@example(b"#", b"$SYS")
@example(b"$SYS/#", b"$SYS")
@example(b"+", b"")
def test_filter_matching_agrees_with_a_python_model(leaf: ctypes.CDLL, pattern: bytes, topic: bytes) -> None:
    expected = reference_filter(pattern)
    got = leaf.bq_filter_check(pattern, len(pattern))
    assert got == expected or (got < 0 and expected < 0)
    matched = leaf.bq_filter_match(pattern, len(pattern), topic, len(topic))
    if expected < 0:
        assert matched == got
    elif topic:
        assert matched == reference_match(pattern, topic)
    else:
        assert matched == 0


@LEAVES
@given(st.one_of(st.binary(max_size=40), st.text(max_size=40).map(lambda s: s.encode(errors="surrogatepass")), NAMES))
def test_topic_validation_agrees_with_the_python_utf8_decoder(leaf: ctypes.CDLL, topic: bytes) -> None:
    assert (leaf.bq_topic_check(topic, len(topic)) == 0) == reference_topic(topic)


@pytest.mark.parametrize("position", [0, 7, 8, 15, 20])
def test_every_character_is_checked_at_every_position(leaf: ctypes.CDLL, position: int) -> None:
    """Each byte, and each encoding of up to four bytes at the limits of its range, valid or not."""
    odd = "c080 c1bf e09fbf eda080 edbfbf f08fbfbf f4908080 f5808080 e282 f09f92".split()
    borders = [0x7F, 0x80, 0x9F, 0xA0, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFF, 0x10000, 0x10FFFF]
    for piece in (
        [bytes([c]) for c in range(256)] + [bytes.fromhex(text) for text in odd] + [chr(c).encode() for c in borders]
    ):
        topic = b"t" * position + piece + b"t" * (20 - position)
        assert (leaf.bq_topic_check(topic, len(topic)) == 0) == reference_topic(topic), topic
        assert (leaf.bq_filter_check(topic, len(topic)) >= 0) == (reference_filter(topic) >= 0), topic


def test_a_topic_of_256_bytes_is_the_longest(leaf: ctypes.CDLL) -> None:
    for check in (leaf.bq_topic_check, leaf.bq_filter_check):
        assert check(b"t" * 256, 256) == 0 and check(b"t" * 257, 257) < 0 and check(b"", 0) < 0


# ---- encoding ------------------------------------------------------------------------------------------------------


def root_table(frame: bytes, kind: int) -> Table:
    assert int.from_bytes(frame[:4], "big") == len(frame) - 4 and frame[4] == kind
    return Table(bytearray(frame[5:]), struct.unpack_from("<I", frame, 5)[0])


def scalar(table: Table, slot: int, flags: Any) -> int:
    position = table.Pos + table.Offset(4 + 2 * slot)
    assert position > table.Pos and position % flags.bytewidth == 0
    return int(table.Get(flags, position))


def vector(table: Table, slot: int, terminated: bool) -> bytes:
    offset = table.Offset(4 + 2 * slot)
    start, size = table.Vector(offset), table.VectorLen(offset)
    assert start % 4 == 0 and (not terminated or table.Bytes[start + size] == 0)
    return bytes(table.Bytes[start : start + size])


def encode_message(leaf: ctypes.CDLL, numbers: tuple[int, int, int], topic: bytes, payload: bytes) -> bytes:
    out = ctypes.create_string_buffer(512 + len(payload))
    size = leaf.bq_encode_message(out, len(out), *numbers, topic, len(topic), payload, len(payload))
    assert size > 0
    return out.raw[:size]


U64 = st.integers(0, 2**64 - 1)


@LEAVES
@given(st.tuples(U64, U64, U64), st.binary(min_size=1, max_size=256), st.binary(max_size=300))
def test_the_reference_reader_decodes_every_message(
    leaf: ctypes.CDLL, numbers: tuple[int, int, int], topic: bytes, payload: bytes
) -> None:
    frame = encode_message(leaf, numbers, topic, payload)
    table = root_table(frame, 1)
    assert tuple(scalar(table, slot, number_types.Uint64Flags) for slot in (0, 2, 3)) == numbers
    assert vector(table, 1, terminated=False) == payload and vector(table, 4, terminated=True) == topic
    assert frame.endswith(payload)


def test_a_message_header_is_constant_per_topic_except_five_numbers(leaf: ctypes.CDLL) -> None:
    ones, zeros = 2**64 - 1, 0
    first = encode_message(leaf, (ones, ones, ones), b"chat", b"\xff" * 0x10203)
    second = encode_message(leaf, (zeros, zeros, zeros), b"chat", b"")
    differing = {i for i in range(len(second)) if first[i] != second[i]}
    prefix_size = len(second)
    assert first[prefix_size:] == b"\xff" * 0x10203
    assert differing <= {*range(4), *range(29, 53), *range(prefix_size - 4, prefix_size)}


def test_a_message_too_large_for_the_buffer_is_refused(leaf: ctypes.CDLL) -> None:
    frame = encode_message(leaf, (1, 2, 3), b"chat", b"hello")
    out = ctypes.create_string_buffer(len(frame))
    assert leaf.bq_encode_message(out, len(frame) - 1, 1, 2, 3, b"chat", 4, b"hello", 5) == -5
    assert leaf.bq_encode_message(out, len(frame), 1, 2, 3, b"chat", 4, b"hello", 5) == len(frame)
    assert leaf.bq_encode_message(out, len(frame), 1, 2, 3, b"t" * 257, 257, b"", 0) == -5
    assert leaf.bq_encode_message(out, 2**32 - 1, 1, 2, 3, b"chat", 4, b"", 2**32 - 1) == -5


def written(write: Callable[[Any], int]) -> bytes:
    out = ctypes.create_string_buffer(2048)
    size = write(out)
    return out.raw[:size]


@LEAVES
@given(U64, st.integers(0, 2**16 - 1), st.binary(max_size=256), st.sampled_from([b"subscribed", b"", b"no"]))
def test_the_reference_reader_decodes_every_suback(
    leaf: ctypes.CDLL, seq: int, code: int, topic: bytes, info: bytes
) -> None:
    table = root_table(written(lambda out: leaf.frame_write_suback(out, seq, code, topic, len(topic), info)), 0)
    assert vector(table, 0, terminated=True) == topic and vector(table, 1, terminated=True) == info
    assert (scalar(table, 2, number_types.Uint64Flags), scalar(table, 3, number_types.Uint16Flags)) == (seq, code)


@LEAVES
@given(U64, st.integers(0, 2**16 - 1), st.binary(max_size=300), U64, st.binary(max_size=300))
def test_the_reference_reader_decodes_every_reply(
    leaf: ctypes.CDLL, seq: int, code: int, text: bytes, identity: int, payload: bytes
) -> None:
    frame = written(
        lambda out: leaf.frame_write_reply(out, seq, code, text, len(text), identity, payload, len(payload))
    )
    table = root_table(frame, 2)
    assert scalar(table, 0, number_types.Uint64Flags) == seq and scalar(table, 1, number_types.Uint16Flags) == code
    assert vector(table, 2, terminated=True) == text and scalar(table, 3, number_types.Uint64Flags) == identity
    assert vector(table, 4, terminated=False) == payload
