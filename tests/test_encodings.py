"""native/proto/encoding.c as a shared object: what it writes is read by `mqtt_packets` and `blipmq.wire.frames`.

Invariant: nothing that the C code reads is compared with what it reads itself.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import c_library
import mqtt_packets as mqtt
import pytest
from c_library import NATIVE
from hypothesis import given, settings
from hypothesis import strategies as st
from mqtt_codec import SOURCES

from blipmq.wire import frames as wire

BLIP, MQTT_5, MQTT_3 = range(3)
GUARD_BYTES = 64
DECLARATIONS = """
typedef struct message {
    const uint8_t *topic, *payload, *properties;
    uint32_t topic_size, payload_size, properties_size;
    uint64_t id, timestamp_ms, ttl_ms;
} message_t;
uint32_t encoding_template_size(int encoding, uint32_t topic_size);
void encoding_template_write(int encoding, uint8_t *out, const uint8_t *topic, uint32_t topic_size);
uint32_t encoding_overhead(int encoding, uint32_t topic_size, uint32_t properties_size);
uint32_t encoding_write(int encoding, uint8_t *out, const uint8_t *header, const message_t *message);
void encoding_read(int encoding, const uint8_t *encoded, message_t *message);
uint32_t message_header_size(const message_t *message);
void message_encode(uint8_t *out, const message_t *message);
"""


class Message(NamedTuple):
    topic: bytes
    payload: bytes
    user: list[tuple[bytes, bytes]]
    ttl_ms: int

    @property
    def properties(self) -> bytes:
        return mqtt.property_(0x26, self.user) if self.user else b""


class Encodings:
    def __init__(self, directory: Path) -> None:
        sources = [*SOURCES, NATIVE / "proto" / "encoding.c", NATIVE / "proto" / "blip_codec.c"]
        self.ffi, self.lib = c_library.load(directory, sources, DECLARATIONS, "-std=c11", "-O1", "-DBQ_CHECK")

    def message(self, message: Message) -> tuple[Any, list[Any]]:
        texts = [
            self.ffi.new("uint8_t[]", text or b"\0") for text in (message.topic, message.payload, message.properties)
        ]
        sizes = [len(message.topic), len(message.payload), len(message.properties)]
        return self.ffi.new("message_t *", [*texts, *sizes, 77, 1_700_000_000_123, message.ttl_ms]), texts

    def header(self, encoding: int, topic: bytes) -> Any:
        header = self.ffi.new("uint8_t[]", self.lib.encoding_template_size(encoding, len(topic)))
        self.lib.encoding_template_write(encoding, header, topic, len(topic))
        return header

    def write(self, encoding: int, source: Any, topic: bytes) -> bytes:
        """Also checks that no byte is written after the room that the broker reserves."""
        room = self.lib.encoding_overhead(encoding, source.topic_size, source.properties_size) + source.payload_size
        out = self.ffi.new("uint8_t[]", b"\xee" * (room + GUARD_BYTES))
        size = self.lib.encoding_write(encoding, out, self.header(encoding, topic), source)
        assert size <= room and self.ffi.buffer(out)[room : room + GUARD_BYTES] == b"\xee" * GUARD_BYTES
        return bytes(self.ffi.buffer(out, size))

    def encode(self, encoding: int, message: Message) -> bytes:
        found, texts = self.message(message)
        assert len(texts) == 3
        return self.write(encoding, found, message.topic)

    def stored(self, message: Message) -> bytes:
        """As QoS 1 messages are stored."""
        found, texts = self.message(message)
        assert len(texts) == 3
        size = self.lib.message_header_size(found) + len(message.payload)
        out = self.ffi.new("uint8_t[]", size)
        self.lib.message_encode(out, found)
        return bytes(self.ffi.buffer(out))

    def again(self, encoding: int, encoded: bytes, other: int, topic: bytes) -> bytes:
        kept = self.ffi.new("uint8_t[]", encoded)
        found = self.ffi.new("message_t *")
        self.lib.encoding_read(encoding, kept, found)
        return self.write(other, found, topic)


@pytest.fixture(scope="module")
def encodings(tmp_path_factory: pytest.TempPathFactory) -> Encodings:
    return Encodings(tmp_path_factory.mktemp("encodings"))


TEXTS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).map(str.encode)
MESSAGES = st.builds(
    Message,
    st.one_of(TEXTS.filter(bool), st.integers(1, 1024).map(lambda size: b"t" * size)),
    st.one_of(st.binary(max_size=150), st.integers(0, 20_000).map(bytes)),
    st.one_of(st.just([]), st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=20)),
    st.sampled_from([0, 1, 999, 1000, 1001, 2**32 * 1000, 2**63]),
)


def check(encoding: int, encoded: bytes, message: Message) -> None:
    if encoding == BLIP:
        (frame,) = wire.FrameReader().feed(encoded)
        assert isinstance(frame, wire.Message)
        assert (frame.topic.encode(), frame.payload, frame.properties) == (*message[:2], message.properties)
        assert (frame.id, frame.timestamp_ms, frame.ttl_ms, frame.qos) == (77, 1_700_000_000_123, message.ttl_ms, 0)
        return
    packet = mqtt.read(encoded, 5 if encoding == MQTT_5 else 4)
    assert (packet["first"], packet["topic"], packet["rest"]) == (0x30, message.topic, message.payload)
    about: list[tuple[int, Any]] = []
    if encoding == MQTT_5:
        about = [(0x02, min(-(-message.ttl_ms // 1000), 2**32 - 1))] if message.ttl_ms else []
        about += [(0x26, pair) for pair in message.user]
    assert packet["properties"] == about


@settings(deadline=None, max_examples=300)
@given(message=MESSAGES)
def test_a_message_is_the_same_in_each_encoding_and_from_each_to_a_later_one(
    encodings: Encodings, message: Message
) -> None:
    for encoding in (BLIP, MQTT_5, MQTT_3):
        encoded = encodings.encode(encoding, message)
        check(encoding, encoded, message)
        for other in range(encoding, MQTT_3 + 1):
            if (encoding, other) == (MQTT_5, MQTT_5):
                continue  # it keeps what MQTT 3 needs
            later = encodings.again(encoding, encoded, other, message.topic)
            check(other, later, message)
            assert len(later) <= len(encoded)


@settings(deadline=None, max_examples=300)
@given(message=MESSAGES)
def test_a_stored_message_is_encoded_for_subscribers_of_qos_0(encodings: Encodings, message: Message) -> None:
    stored = encodings.stored(message)
    for encoding in (BLIP, MQTT_5, MQTT_3):
        later = encodings.again(BLIP, stored, encoding, message.topic)
        check(encoding, later, message)
        assert len(later) <= len(stored)
