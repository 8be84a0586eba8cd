"""The C codec of MQTT, called from Python: native/proto/mqtt_*.c as a shared object, with the declarations of their headers.

Invariant: `read` passes each packet in memory of its own, and returns copies.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import c_library
from c_library import NATIVE
from mqtt_packets import AUTH, CONNECT, DISCONNECT, PINGREQ, PROPERTIES, PUBLISH, SUBSCRIBE, UNSUBSCRIBE
from mqtt_rows import TOPIC_MAX

CODEC = ("mqtt_codec.c", "mqtt_connect.c", "mqtt_error.c", "mqtt_properties.c", "mqtt_topic.c", "mqtt_writer.c")
SOURCES = [*(NATIVE / "proto" / name for name in CODEC), NATIVE / "base" / "topic_name.c"]
HEADERS = [NATIVE / "proto" / name for name in ("mqtt_error.h", "mqtt_properties.h", "mqtt_codec.h")]
PACKET_MAX = 1 << 20
# name, reason code's name, phrase of each error, in their order
ERRORS = re.findall(r'^    X\((\w+), (\w+), "(.*)"\)', HEADERS[0].read_text(encoding="utf-8"), re.MULTILINE)
ERROR_BASE = -200


def declarations() -> str:
    """The headers without the enums that macros make, and a function of base/topic_name.h."""
    found = re.sub(r"^enum (?:\w+ )?\{ ?MQTT_ERRORS.*$", "", c_library.declarations(*HEADERS), flags=re.MULTILINE)
    return found + "int filter_matches(int, const uint8_t *, uint32_t, const uint8_t *, uint32_t);"


class Codec:
    def __init__(self, directory: Path) -> None:
        self.ffi, self.lib = c_library.load(directory, SOURCES, declarations(), "-std=c11", "-O2")

    # ---- reading --------------------------------------------------------------------------------------------------

    def error(self, code: int) -> str:
        name, reason, phrase = ERRORS[ERROR_BASE - code]
        assert self.lib.mqtt_error_reason(code) == getattr(self.lib, f"MQTT_{reason}")
        assert self.ffi.string(self.lib.mqtt_error_phrase(code)).decode() == phrase
        return name

    def text(self, span: Any) -> bytes:
        return bytes(self.ffi.buffer(span.bytes, span.size)) if span.size else b""

    def properties(self, found: Any) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for identifier, (name, kind, _) in PROPERTIES.items():
            if not found.present >> identifier & 1:
                continue
            if kind == "pair":
                values[name] = self.user(found)
            else:
                value = getattr(found, name)
                values[name] = self.text(value) if kind in ("text", "bytes") else value
        return values

    def user(self, found: Any) -> list[tuple[bytes, bytes]]:
        rest = self.ffi.new("mqtt_text_t *", found.raw)
        name, value, pairs = self.ffi.new("mqtt_text_t *"), self.ffi.new("mqtt_text_t *"), []
        while self.lib.mqtt_user_property_next(rest, name, value):
            pairs.append((self.text(name), self.text(value)))
        return pairs

    def forwarded(self, found: Any) -> bytes:
        pointer = self.ffi.addressof(found)
        out = self.ffi.new("uint8_t[]", self.lib.mqtt_forward_write(self.ffi.NULL, pointer))
        assert self.lib.mqtt_forward_write(out, pointer) == len(out)
        return bytes(self.ffi.buffer(out))

    def frame(self, data: bytes, version: int, packet_max: int = PACKET_MAX) -> Any:
        """The frame, None if more bytes are needed, or the name of an error."""
        frame = self.ffi.new("mqtt_frame_t *")
        size = self.lib.mqtt_frame_read(data, len(data), version, packet_max, frame)
        if size < 0:
            return self.error(size)
        assert size in (0, frame.header_size)
        return frame if size else None

    def read(self, data: bytes, version: int = 5, topic_max: int = TOPIC_MAX) -> dict[str, Any] | str:
        """What a whole packet says, or the name of the error."""
        frame = self.frame(data, 0 if data[:1] == b"\x10" else version)
        if frame is None or isinstance(frame, str):
            return frame or "INCOMPLETE"
        assert len(data) == frame.header_size + frame.body_size, "a test must pass one whole packet"
        body = self.ffi.new("uint8_t[]", data[frame.header_size :] or b"\0")
        if frame.type == CONNECT:
            return self.read_connect(frame, body, topic_max)
        if frame.type == PUBLISH:
            return self.read_publish(frame, body, version, topic_max)
        if frame.type in (SUBSCRIBE, UNSUBSCRIBE):
            return self.read_subscribe(frame, body, version, topic_max)
        if frame.type == PINGREQ:
            code = self.lib.mqtt_pingreq_read(frame)
            return self.error(code) if code else {}
        found = self.ffi.new("mqtt_result_t *")
        code = self.lib.mqtt_result_read(frame, body, version, found)
        if code:
            return self.error(code)
        values = {"reason": found.reason, "properties": self.properties(found.properties)}
        return values if frame.type in (DISCONNECT, AUTH) else {"packet_id": found.packet_id, **values}

    def read_connect(self, frame: Any, body: Any, topic_max: int) -> dict[str, Any] | str:
        found = self.ffi.new("mqtt_connect_t *")
        code = self.lib.mqtt_connect_read(frame, body, topic_max, found)
        self.refused_version = found.version
        if code:
            return self.error(code)
        will = {
            "topic": self.text(found.will_topic),
            "payload": self.text(found.will_payload),
            "qos": found.will_qos,
            "retain": found.will_retain,
            "properties": self.properties(found.will_properties),
            "forwarded": self.forwarded(found.will_properties),
        }
        self.defaults = {
            name: getattr(found.properties, name)
            for name in ("receive_maximum", "maximum_packet_bytes", "request_problem", "topic_alias_maximum")
        }
        return {
            "version": found.version,
            "clean_start": found.clean_start,
            "keep_alive_s": found.keep_alive_s,
            "client_id": self.text(found.client_id),
            "properties": self.properties(found.properties),
            "will": will if found.has_will else None,
            "user_name": self.text(found.user_name) if found.has_user_name else None,
            "password": self.text(found.password) if found.has_password else None,
        }

    def read_publish(self, frame: Any, body: Any, version: int, topic_max: int) -> dict[str, Any] | str:
        found = self.ffi.new("mqtt_publish_t *")
        code = self.lib.mqtt_publish_read(frame, body, version, found)
        if not code and found.topic.size:
            code = self.lib.mqtt_topic_check(found.topic.bytes, found.topic.size, topic_max)
        if code:
            return self.error(code)
        return {
            "topic": self.text(found.topic),
            "payload": self.text(found.payload),
            "packet_id": found.packet_id,
            "qos": found.qos,
            "dup": found.dup,
            "retain": found.retain,
            "properties": self.properties(found.properties),
            "forwarded": self.forwarded(found.properties),
        }

    def read_subscribe(self, frame: Any, body: Any, version: int, topic_max: int) -> dict[str, Any] | str:
        found = self.ffi.new("mqtt_subscribe_t *")
        code = self.lib.mqtt_subscribe_read(frame, body, version, topic_max, found)
        if code:
            return self.error(code)
        rest, filter_ = self.ffi.new("mqtt_text_t *", found.filters), self.ffi.new("mqtt_filter_t *")
        filters = []
        while self.lib.mqtt_filter_next(rest, frame.type, filter_):
            filters.append(self.filter_fields(filter_, frame.type == SUBSCRIBE))
        assert len(filters) == found.count
        return {"packet_id": found.packet_id, "filters": filters, "properties": self.properties(found.properties)}

    def filter_fields(self, filter_: Any, options: bool) -> dict[str, Any]:
        fields = {
            "text": self.text(filter_.text),
            "group": self.text(filter_.group),
            "filter": self.text(filter_.filter),
            "wildcards": filter_.syntax == 2,
        }
        assert filter_.syntax in (0, 2)
        if options:
            names = ("qos", "no_local", "retain_as_published", "retain_handling")
            fields |= {name: getattr(filter_, name) for name in names}
        return fields

    def filter(self, name: bytes, bytes_max: int = TOPIC_MAX) -> dict[str, Any] | str:
        filter_ = self.ffi.new("mqtt_filter_t *")
        raw = self.ffi.new("uint8_t[]", name or b"\0")
        code = self.lib.mqtt_filter_check(raw, len(name), bytes_max, filter_)
        return self.error(code) if code else self.filter_fields(filter_, False)

    def matches(self, name: bytes, topic: bytes) -> bool:
        """Whether messages of a topic go to a filter, by the broker's own function."""
        filter_ = self.ffi.new("mqtt_filter_t *")
        raw = self.ffi.new("uint8_t[]", name)
        assert self.lib.mqtt_filter_check(raw, len(name), TOPIC_MAX, filter_) == 0
        assert self.lib.mqtt_topic_check(topic, len(topic), TOPIC_MAX) == 0
        part = filter_.filter
        return bool(self.lib.filter_matches(filter_.syntax, part.bytes, part.size, topic, len(topic)))

    # ---- writing --------------------------------------------------------------------------------------------------

    def span(self, raw: bytes, keep: list[Any]) -> Any:
        keep.append(self.ffi.new("uint8_t[]", raw or b"\0"))
        return {"bytes": keep[-1], "size": len(raw)}

    def to_write(self, values: dict[str, Any] | None, keep: list[Any]) -> Any:
        """mqtt_properties_t; `user` is a list of pairs."""
        if values is None:
            return self.ffi.NULL
        out = self.ffi.new("mqtt_properties_t *")
        keep.append(out)
        for identifier, (name, kind, _) in PROPERTIES.items():
            if name not in values:
                continue
            out.present |= 1 << identifier
            if kind == "pair":
                parts = [part for pair in values[name] for part in (b"\x26", *map(self.counted, pair))]
                out.user = self.span(b"".join(parts), keep)
            elif kind in ("text", "bytes"):
                setattr(out, name, self.span(values[name], keep))
            else:
                setattr(out, name, values[name])
        return out

    @staticmethod
    def counted(raw: bytes) -> bytes:
        return len(raw).to_bytes(2, "big") + raw

    def write(self, name: str, *arguments: Any) -> bytes:
        """Call mqtt_NAME_write, or mqtt_NAME, first for the size; b"": there is no such packet."""
        function = getattr(self.lib, name)
        size = function(self.ffi.NULL, *arguments)
        out = self.ffi.new("uint8_t[]", b"\xaa" * (size + 8))
        assert function(out, *arguments) == size
        written = bytes(self.ffi.buffer(out, size + 8))
        assert written[size:] == b"\xaa" * 8, "bytes behind the packet were written"
        return written[:size]
