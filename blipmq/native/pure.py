"""Functions of C that need no core: frames, topics and filters, a checksum.

Invariant: no state; no argument is kept.
"""

from __future__ import annotations

from typing import NamedTuple

from blipmq._native import ffi, lib
from blipmq.native.errors import CoreError


class View(NamedTuple):
    """A ClientCommand as the core reads it."""

    action: int
    topic: bytes
    payload: bytes
    ttl_ms: int
    qos: int
    seq: int
    client_id: bytes
    api_key: bytes
    protocol: int
    durable: bool
    group: bytes
    keepalive_ms: int
    keep_durable: bool


def decode(body: bytes | bytearray | memoryview) -> View:
    """Verify and read one ClientCommand (without its length). Raises `CoreError` with the cause."""
    raw = bytes(body)
    view = ffi.new("bq_view_t *")
    code = lib.bq_decode(raw, len(raw), view)
    if code < 0:
        raise CoreError(code, "bad frame", ffi.string(lib.bq_decode_error(code)).decode())

    # the view points into `raw`, which must live until here
    def part(name: str) -> bytes:
        size = getattr(view, name + "_size")
        return bytes(ffi.buffer(getattr(view, name), size)) if size else b""

    return View(
        action=view.action,
        topic=part("topic"),
        payload=part("payload"),
        ttl_ms=view.ttl_ms,
        qos=view.qos,
        seq=view.seq,
        client_id=part("client_id"),
        api_key=part("api_key"),
        protocol=view.protocol,
        durable=bool(view.durable),
        group=part("group"),
        keepalive_ms=view.keepalive_ms,
        keep_durable=bool(view.keep_durable),
    )


def topic_is_valid(topic: bytes) -> bool:
    """Whether a message can be published to `topic`."""
    return bool(lib.bq_topic_check(topic, len(topic)) == 0)


def filter_kind(filter: bytes) -> int:
    """The wildcard syntax of a filter: 0 no wildcard, 1 dots, 2 slashes; negative: not a filter."""
    return int(lib.bq_filter_check(filter, len(filter)))


def filter_matches(filter: bytes, topic: bytes) -> bool:
    """Whether `filter` matches `topic`. Raises `CoreError` for an invalid filter."""
    code = lib.bq_filter_match(filter, len(filter), topic, len(topic))
    if code < 0:
        raise CoreError(lib.BQ_E_ARGUMENT, f"bad filter {filter!r}")
    return bool(code)


def encode_message(id: int, timestamp_ms: int, ttl_ms: int, topic: bytes, payload: bytes) -> bytes:
    """Encode the frame of a message as the core sends it to a subscriber, with length and type. Raises `CoreError`."""
    capacity = len(topic) + len(payload) + 256
    out = ffi.new("uint8_t[]", capacity)
    size = lib.bq_encode_message(out, capacity, id, timestamp_ms, ttl_ms, topic, len(topic), payload, len(payload))
    if size < 0:
        raise CoreError(size, "the message was not encoded")
    return bytes(ffi.buffer(out, size))


def crc32(data: bytes, crc: int = 0) -> int:
    """CRC-32 of IEEE 802.3, like zlib's."""
    return int(lib.bq_crc32(crc, data, len(data)))
