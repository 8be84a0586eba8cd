"""Functions of the core that need no core: frames, topics and filters, a checksum.

Invariant: no state, and nothing kept of what is handed in.
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
    """Verify and read one ClientCommand (without its length). Raises `CoreError` that says what is wrong with it."""
    raw = bytes(body)
    view = ffi.new("bq_view_t *")
    code = lib.bq_decode(raw, len(raw), view)
    if code < 0:
        raise CoreError(code, "bad frame", ffi.string(lib.bq_decode_error(code)).decode())

    # `raw` lives until here: the view points into it.
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
    """Whether `topic` can be published to."""
    return bool(lib.bq_topic_check(topic, len(topic)) == 0)


def filter_kind(filter: bytes) -> int:
    """0: literal, 1: dot dialect, 2: slash dialect, negative: not a filter."""
    return int(lib.bq_filter_check(filter, len(filter)))


def filter_matches(filter: bytes, topic: bytes) -> bool:
    """Whether `filter` covers `topic`. Raises `CoreError` for a bad filter."""
    code = lib.bq_filter_match(filter, len(filter), topic, len(topic))
    if code < 0:
        raise CoreError(lib.BQ_E_ARGUMENT, f"bad filter {filter!r}")
    return bool(code)


def encode_message(id: int, timestamp_ms: int, ttl_ms: int, topic: bytes, payload: bytes) -> bytes:
    """The frame a subscriber gets, length and type included, as the core writes it."""
    capacity = len(topic) + len(payload) + 256
    out = ffi.new("uint8_t[]", capacity)
    size = lib.bq_encode_message(out, capacity, id, timestamp_ms, ttl_ms, topic, len(topic), payload, len(payload))
    if size < 0:
        raise CoreError(size, "the message was not encoded")
    return bytes(ffi.buffer(out, size))


def crc32(data: bytes, crc: int = 0) -> int:
    """IEEE 802.3, as zlib's."""
    return int(lib.bq_crc32(crc, data, len(data)))
