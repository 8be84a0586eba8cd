"""Publishes with the same header as the previous one are compared instead of decoded. Clients must not notice any
difference.

Frames sent in one piece, where frames follow, and frames sent one by one must have the same result. The frames are
valid ones of several layouts, and variants of them with tables and strings that share bytes.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stepped import Bench, Overflow
from test_core_properties import frames_of
from twin import Publish

from blipmq.wire import frames as wire

VECTORS = json.loads(Path(__file__).with_name("vectors.json").read_text())["valid"]
PUBLISHES = [
    frame for vector in VECTORS if len(frame := bytes.fromhex(vector["frame"])) < 400 and "publish" in vector["name"]
]
TABLE = 20
TABLE_BYTES = 12


def hand_made(area: bytes, topic: tuple[int, int], payload: tuple[int, int], vtable_last: bool) -> bytes:
    """A PUB whose topic and payload are vectors at (offset, size) of the area; they may share bytes."""
    area_at = TABLE + TABLE_BYTES
    body = bytearray(area_at) + area
    for place, size in (payload, topic):
        struct.pack_into("<I", body, area_at + place, size)
    body[area_at + topic[0] + 4 + topic[1]] = 0
    vtable = 8
    if vtable_last:
        vtable = len(body) + len(body) % 2
        body += bytes(vtable + 10 - len(body))
    struct.pack_into("<I", body, 0, TABLE)
    struct.pack_into("<HHHHH", body, vtable, 10, TABLE_BYTES, 0, 4, 8)
    struct.pack_into("<i", body, TABLE, TABLE - vtable)
    for field, (place, _) in ((4, topic), (8, payload)):
        struct.pack_into("<I", body, TABLE + field, area_at + place - TABLE - field)
    return struct.pack(">I", len(body)) + bytes(body)


PLACES = st.tuples(st.integers(0, 40), st.integers(0, 40))
LAYOUTS = st.one_of(
    st.sampled_from(PUBLISHES),
    st.builds(
        lambda topic, payload, ttl_ms: frames_of([Publish(topic, payload, ttl_ms)]),
        st.sampled_from(["a", "a.b", "a.rather.long.topic.of.many.levels"]),
        st.binary(max_size=300),
        st.sampled_from([0, 50]),
    ),
    st.builds(hand_made, st.text("abc.", min_size=90, max_size=90).map(str.encode), PLACES, PLACES, st.booleans()),
)


def changed(frame: bytes, changes: list[tuple[int, int]]) -> bytes:
    """Bytes changed at offsets from the end or the beginning. The length is unchanged, so the stream stays in step."""
    frame_ = bytearray(frame)
    for place, value in changes:
        at = 4 + place % (len(frame) - 4)
        frame_[at] = value
    return bytes(frame_)


CHANGES = st.lists(st.tuples(st.integers(-80, 80), st.integers(0, 255)), max_size=3)


def seen(data: list[bytes], hello: bool, **limits: Any) -> dict[str, Any]:
    """The observations of all clients when these pieces are sent, one piece a turn."""
    with Bench(buffer_bytes=4096, **limits) as bench:
        reader, sender = bench.attach().subscribe(">"), bench.attach(hello=hello)
        for piece in data:
            sender.send_bytes(piece)
            bench.settle()
        reader.read()
        bench.settle()
        stats = bench.stats()
        names = ("published", "published_bytes", "frames_in", "frames_bad", "unrouted", "delivered", "last_message_id")
        return {
            "messages": reader.messages,
            "replies": sender.replies,
            "closed": sender.closed and (sender.closed.reason, sender.closed.detail),
            **{name: stats[name] for name in names},
        }


@given(st.lists(st.tuples(LAYOUTS, st.lists(CHANGES, min_size=1, max_size=8)), min_size=1, max_size=3), st.booleans())
@example([(hand_made(b"a" * 90, (0, 8), (20, 30), False), [[], [(60, 98)], [(34, 99)]])], True)
@settings(max_examples=1500, deadline=None, suppress_health_check=list(HealthCheck))
def test_frames_in_a_batch_are_handled_like_single_frames(
    batch: list[tuple[bytes, list[list[tuple[int, int]]]]], hello: bool
) -> None:
    frames = [changed(frame, changes) for frame, variants in batch for changes in [[], *variants]]
    frames.append(frames_of([Publish("end", b"behind them", 0)]))
    assert seen([b"".join(frames)], hello) == seen(frames, hello)


@pytest.mark.parametrize("policy", list(Overflow))
@given(
    sizes=st.lists(st.integers(0, 700), min_size=1, max_size=60),
    max_batch=st.sampled_from([1, 3, 1000]),
    max_batch_bytes=st.sampled_from([1, 900, 1 << 20]),
    cut=st.integers(0, 3000),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_payloads_of_any_size_arrive_whole(
    policy: Overflow, sizes: list[int], max_batch: int, max_batch_bytes: int, cut: int
) -> None:
    """Across the boundaries of buffers, batches and input pieces."""
    batch = [Publish("a.b", bytes([index]) * size, 0) for index, size in enumerate(sizes)]
    data = frames_of(batch)
    limits: dict[str, Any] = {"overflow_policy": policy, "max_batch": max_batch, "max_batch_bytes": max_batch_bytes}
    result = seen([data[:cut], data[cut:]], False, **limits)
    assert [message.payload for message in result["messages"]] == [publish.payload for publish in batch]
    assert [message.id for message in result["messages"]] == list(range(1, len(batch) + 1))
    assert result["published_bytes"] == sum(sizes) and result["frames_in"] == len(batch) + 1


def test_an_oversized_frame_closes_the_connection_at_any_position() -> None:
    frames = [wire.encode_command(wire.PUB, "a", bytes(size)) for size in (500, 500, 900, 500)]
    limits = {"max_frame_bytes": 800}
    assert seen([b"".join(frames)], True, **limits) == seen(frames, True, **limits)
    assert seen(frames, True, **limits)["published"] == 2
