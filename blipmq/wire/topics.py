"""The rules of topics and filters, as the specification writes them: simple, slow, and without I/O.

Invariant: check_topic, check_filter and match agree with the core's topic_check, filter_check and filter_match on every
input. The client uses them to report errors early, and tests use them as the reference model of the core.
"""

from __future__ import annotations

from collections import deque

from blipmq.errors import UsageError, WrongType

TOPIC_BYTES_MAX = 256

LITERAL, DOT, SLASH = 0, 1, 2
"""The wildcard syntax of a filter: no wildcard; `*` and `>` between dots; `+` and `#` between slashes."""

_WILDCARDS = {"*": DOT, ">": DOT, "+": SLASH, "#": SLASH}
_SEPARATOR = {DOT: ".", SLASH: "/"}
_ONE, _REST = {DOT: "*", SLASH: "+"}, {DOT: ">", SLASH: "#"}

_SHARE = "$share/"


def _check_text(text: str, noun: str) -> None:
    """Check the rules common to topics and filters: 1-256 bytes of UTF-8 without control characters (C0, DEL and C1)."""
    if not isinstance(text, str):
        raise WrongType(f"The {noun} is {text!r} ({type(text).__name__}); it must be a str.")
    if not text:
        raise UsageError(f"The {noun} is empty; it needs 1 to {TOPIC_BYTES_MAX} bytes.")
    try:
        size_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError(f"The {noun} {text!r} is not UTF-8; check the terminal's or the script's encoding.") from None
    if size_bytes > TOPIC_BYTES_MAX:
        raise UsageError(f"The {noun} has {size_bytes} bytes; the maximum is {TOPIC_BYTES_MAX}. Shorten it.")
    for character in text:
        if character < " " or "\x7f" <= character <= "\x9f":
            raise UsageError(f"The {noun} {text!r} contains the control character {character!r}; remove it.")


def check_topic(topic: str) -> None:
    """Raise UsageError unless a message can be published to `topic`."""
    _check_text(topic, "topic")
    for character in topic:
        if character in _WILDCARDS:
            raise UsageError(
                f"The topic {topic!r} holds {character!r}; wildcards are for subscribing, publish to one topic."
            )


def check_filter(filter_: str) -> int:
    """Raise UsageError unless `filter_` is valid; return its wildcard syntax: LITERAL, DOT or SLASH."""
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
            raise UsageError(f"In the filter {filter_!r} the wildcard {level!r} must be the last level.")
    return dialect


def match(filter_: str, topic: str) -> bool:
    """Whether `filter_` matches `topic`. Raises UsageError if the filter is invalid."""
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


# ---- filters that cover others
# ----------------------------------------------------------------------------------------

_REJECTED, _ALL = -1, -2
"""Final states of a walk along a filter: no topic with this beginning matches; every one does."""


def unshared(filter_: str) -> str:
    """The filter of a shared subscription of MQTT, `$share/GROUP/FILTER`; any other filter is returned as it is."""
    if not filter_.startswith(_SHARE):
        return filter_
    return filter_.removeprefix(_SHARE).partition("/")[2]


class _Walk:
    """A filter as a state machine that reads a topic character by character. A state is a position in the filter's
    text. The machine is deterministic, because a wildcard for one level ends at the separator. `dialect`: the syntax of a
    checked filter; the wildcards of another syntax are ordinary characters in it."""

    def __init__(self, filter_: str, dialect: int) -> None:
        self.text = filter_
        self.dialect = dialect
        self.separator = _SEPARATOR.get(dialect, "")
        self.one, self.rest = _ONE.get(dialect, ""), _REST.get(dialect, "")

    def step(self, state: int, character: str, first: bool) -> int:
        text = self.text
        if state < 0:
            return state
        if first and character == "$" and text[0] != "$":
            return _REJECTED
        at = text[state : state + 1]
        if at and at == self.rest:
            return _ALL
        if at and at == self.one:
            if character != self.separator:
                return state
            return state + 2 if state + 1 < len(text) else _REJECTED
        return state + 1 if at == character else _REJECTED

    def literal(self, state: int) -> str:
        """The only character, or the separator, with which a walk goes on from this state; "" if there is none."""
        at = self.text[state : state + 1] if state >= 0 else ""
        return self.separator if at in (self.one, self.rest) else at

    def completion(self, state: int, filling: str) -> str:
        """The rest of a topic that matches, for one that has reached `state`. Every state has such a rest."""
        rest = self.text[state:] if state >= 0 else ""
        return "".join(filling if character in (self.one, self.rest) else character for character in rest)

    def accepts(self, state: int) -> bool:
        """Whether a topic may end in this state."""
        rest = self.text[state:] if state >= 0 else ""
        if state < 0 or not rest:
            return state != _REJECTED
        if self.dialect == SLASH and rest in ("/#", "+/#"):
            return True  # `site/#` matches `site` too
        return rest in (self.one, self.rest)


def uncovered(outer: str, inner: str, mqtt: bool = False) -> str | None:
    """A topic that `inner` matches and `outer` does not; None: `outer` covers `inner`. Exact within both wildcard
    syntaxes and between them, except for the length limit of a topic. `mqtt`: `inner` has the syntax of MQTT, in which dots,
    `*` and `>` are ordinary characters, and has been checked. Raises UsageError for an invalid filter."""
    dialect = (SLASH if "+" in inner or "#" in inner else LITERAL) if mqtt else check_filter(inner)
    walks = _Walk(outer, check_filter(outer)), _Walk(inner, dialect)
    used = {*outer, *inner, *_WILDCARDS}
    other = next(chr(c) for c in range(ord("a"), 0x1000) if chr(c) not in used and chr(c).isprintable())
    reached: set[tuple[int, int]] = set()
    waiting: deque[tuple[tuple[int, int], str]] = deque([((0, 0), "")])  # the shortest topics first
    while waiting:
        states, topic = waiting.popleft()
        # Both walks treat all characters alike that neither expects next, so one other character stands for them.
        expected = {walk.literal(state) for walk, state in zip(walks, states, strict=True)} - {"", ".", "/", "$"}
        for character in [*sorted(expected), other, ".", "/", "$"]:
            ends = (walks[0].step(states[0], character, not topic), walks[1].step(states[1], character, not topic))
            if ends[0] == _ALL or ends[1] == _REJECTED or ends in reached:
                continue
            if ends[0] == _REJECTED:
                return topic + character + walks[1].completion(ends[1], other)
            if walks[1].accepts(ends[1]) and not walks[0].accepts(ends[0]):
                return topic + character
            reached.add(ends)
            waiting.append((ends, topic + character))
    return None


def covers(outer: str, inner: str, mqtt: bool = False) -> bool:
    """Whether `outer` matches every topic that `inner` matches. `mqtt`, and errors: as in `uncovered`."""
    return uncovered(outer, inner, mqtt) is None
