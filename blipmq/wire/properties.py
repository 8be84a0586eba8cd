"""Message properties in the format of MQTT 5: identifier, value, and so on. BlipMQ uses the user properties.

    user property   0x26   u16 big-endian size, UTF-8   u16 big-endian size, UTF-8

Invariant: for any bytes, everything before the first invalid byte is returned and nothing is raised, because invalid
properties are no reason to refuse a message. Source: MQTT 5.0, section 2.2.2.
"""

from __future__ import annotations

USER_PROPERTY = 0x26

# The values of all other identifiers of MQTT 5: their size in bytes, or how it is found.
_BYTES = {
    **dict.fromkeys((0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A), 1),
    **dict.fromkeys((0x13, 0x21, 0x22, 0x23), 2),
    **dict.fromkeys((0x02, 0x11, 0x18, 0x27), 4),
}
_TEXTS = frozenset((0x03, 0x08, 0x09, 0x12, 0x15, 0x16, 0x1A, 0x1C, 0x1F))
_VARIABLE = 0x0B


def user_properties(data: bytes) -> dict[str, str]:
    """Names and values in their order; for a repeated name the last value."""
    found: dict[str, str] = {}
    at = 0
    try:
        while at < len(data):
            kind, at = data[at], at + 1
            if kind == USER_PROPERTY:
                name, at = _text(data, at)
                value, at = _text(data, at)
                found[name.decode()] = value.decode()
            elif kind in _BYTES:
                at += _BYTES[kind]
            elif kind in _TEXTS:
                _, at = _text(data, at)
            elif kind == _VARIABLE:
                while data[at] & 0x80:
                    at += 1
                at += 1
            else:
                break
    except (IndexError, UnicodeDecodeError):
        pass
    return found


def _text(data: bytes, at: int) -> tuple[bytes, int]:
    size = data[at] << 8 | data[at + 1]
    end = at + 2 + size
    if end > len(data):
        raise IndexError
    return data[at + 2 : end], end
