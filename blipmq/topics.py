"""The rules of topics and filters, as the specification writes them: slow, obvious, and free of I/O.

Invariant: check_topic, check_filter and match agree with the core's topic_check, filter_check and filter_match on every
input. They are used for early errors in the client, and as the twin that the core is compared with.
"""

from __future__ import annotations

from blipmq.errors import UsageError

TOPIC_BYTES_MAX = 256

LITERAL, DOT, SLASH = 0, 1, 2
"""Dialects of a filter: no wildcard; `*` and `>` between dots; `+` and `#` between slashes."""

_WILDCARDS = {"*": DOT, ">": DOT, "+": SLASH, "#": SLASH}
_SEPARATOR = {DOT: ".", SLASH: "/"}


def _check_text(text: str, noun: str) -> None:
    """What topics and filters have in common: 1-256 bytes of UTF-8 without control characters (C0, DEL and C1)."""
    if not text:
        raise UsageError(f"The {noun} is empty; it needs 1 to {TOPIC_BYTES_MAX} bytes.")
    try:
        size_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError(f"The {noun} {text!r} is not UTF-8; check the terminal's or the script's encoding.") from None
    if size_bytes > TOPIC_BYTES_MAX:
        raise UsageError(f"The {noun} has {size_bytes} bytes; {TOPIC_BYTES_MAX} is the most. Shorten it.")
    for character in text:
        if character < " " or "\x7f" <= character <= "\x9f":
            raise UsageError(f"The {noun} {text!r} holds the control character {character!r}; remove it.")


def check_topic(topic: str) -> None:
    """Raise UsageError unless `topic` can be published to."""
    _check_text(topic, "topic")
    for character in topic:
        if character in _WILDCARDS:
            raise UsageError(
                f"The topic {topic!r} holds {character!r}; wildcards are for subscribing, publish to one topic."
            )


def check_filter(filter_: str) -> int:
    """Raise UsageError unless `filter_` can be subscribed to; return its dialect: LITERAL, DOT or SLASH."""
    _check_text(filter_, "filter")
    dialects = {_WILDCARDS[character] for character in filter_ if character in _WILDCARDS}
    if not dialects:
        return LITERAL
    if len(dialects) > 1:
        raise UsageError(
            f"The filter {filter_!r} mixes '*' '>' (dot levels) with '+' '#' (slash levels); keep to one kind."
        )
    dialect = dialects.pop()
    levels = filter_.split(_SEPARATOR[dialect])
    for index, level in enumerate(levels):
        if len(level) > 1 and any(character in _WILDCARDS for character in level):
            raise UsageError(
                f"In the filter {filter_!r} the level {level!r} mixes a wildcard with text; it must stand alone."
            )
        if level in (">", "#") and index != len(levels) - 1:
            raise UsageError(f"In the filter {filter_!r} {level!r} stands for all that follows, so it must come last.")
    return dialect


def match(filter_: str, topic: str) -> bool:
    """Whether a message on `topic` goes to a subscriber of `filter_`. Raises UsageError if the filter is not one."""
    dialect = check_filter(filter_)
    if dialect == LITERAL:
        return filter_ == topic
    if topic.startswith("$") and not filter_.startswith("$"):
        return False
    separator = _SEPARATOR[dialect]
    wanted, given = filter_.split(separator), topic.split(separator)
    for index, level in enumerate(wanted):
        if level == "#":
            return True  # this level and all below: `site/#` matches `site` too
        if level == ">":
            return len(given) > index
        if index >= len(given) or (level not in ("*", "+") and level != given[index]):
            return False
    return len(given) == len(wanted)
