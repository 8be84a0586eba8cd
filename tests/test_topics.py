"""The rules for topics and filters: the examples of the protocol page, and the regular expressions of the fake
broker.
"""

from __future__ import annotations

import itertools
import re

import fake_broker
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from blipmq.errors import UsageError
from blipmq.wire.topics import DOT, LITERAL, SLASH, check_filter, check_topic, covers, match, uncovered

levels = st.lists(st.sampled_from(["", "a", "b", "$c", "x y"]), min_size=1, max_size=4)


@pytest.mark.parametrize("topic", ["a", "a.b/c", "température/küche", "$SYS/x", "t" * 256, "a b", "."])
def test_valid_topics_are_accepted(topic: str) -> None:
    check_topic(topic)
    assert check_filter(topic) == LITERAL


@pytest.mark.parametrize(
    "topic", ["", "t" * 257, "é" * 129, "a\nb", "a\0", "\x7f", "\x85", "a.*", "a>", "a+b", "#", "\ud800"]
)
def test_invalid_topics_are_refused(topic: str) -> None:
    with pytest.raises(UsageError, match="topic"):
        check_topic(topic)


@pytest.mark.parametrize(
    ("filter_", "dialect"), [("user.*", DOT), ("logs.>", DOT), ("*", DOT), ("site/+/temp", SLASH), ("#", SLASH)]
)
def test_valid_filters_have_their_wildcard_syntax(filter_: str, dialect: int) -> None:
    assert check_filter(filter_) == dialect


@pytest.mark.parametrize("filter_", ["a.*/+", "a*", "a.b>", "a.>.b", "#/a", "a/b+", "a/*/b", "**", "a.+", "a\tb", ""])
def test_invalid_filters_are_refused(filter_: str) -> None:
    with pytest.raises(UsageError, match="filter"):
        check_filter(filter_)


@pytest.mark.parametrize(
    ("filter_", "topic", "matched"),
    [
        ("a", "a", True),
        ("a", "b", False),
        ("user.*", "user.1", True),
        ("user.*", "user", False),
        ("user.*", "user.1.2", False),
        ("user.*", "user.", True),
        ("logs.>", "logs.a.b", True),
        ("logs.>", "logs", False),
        ("*.b", "a.b", True),
        ("site/+/temp", "site/1/temp", True),
        ("site/+/temp", "site/1/2/temp", False),
        ("site/#", "site", True),
        ("site/#", "site/1/2", True),
        ("site/#", "sites", False),
        ("#", "a/b", True),
        ("#", "$SYS/a", False),
        (">", "$SYS.a", False),
        ("*", "$SYS", False),
        ("$SYS/#", "$SYS/a", True),
        ("$SYS", "$SYS", True),
        ("a.*", "a.b/c", True),
    ],
)
def test_a_filter_matches_as_the_protocol_page_defines(filter_: str, topic: str, matched: bool) -> None:
    assert match(filter_, topic) is matched
    assert fake_broker.matches(filter_, topic) is matched


@given(levels, levels, st.sampled_from([("*", ">", "."), ("+", "#", "/")]), st.data())
def test_matching_agrees_with_equivalent_regular_expressions(
    wanted: list[str], given_: list[str], dialect: tuple[str, str, str], data: st.DataObject
) -> None:
    one, rest, separator = dialect
    wanted = [data.draw(st.sampled_from([level, one])) for level in wanted] + data.draw(st.sampled_from([[], [rest]]))
    filter_, topic = separator.join(wanted), separator.join(given_)
    if filter_ and topic:
        assert match(filter_, topic) is fake_broker.matches(filter_, topic)


# ---- filters within other filters ----

SMALL_TOPICS = [
    "".join(characters)
    for size in range(1, 6)
    for characters in itertools.product("ab./$", repeat=size)
]  # fmt: skip
SMALL_FILTERS = st.text("ab./$*>+#", min_size=1, max_size=6).filter(lambda text: is_filter(text))
LEVELS = st.lists(st.sampled_from(["a", "b", "", "+", "*", "a.b", "a/b", "$a"]), min_size=1, max_size=4)
LEVELLED = st.one_of(
    st.builds(lambda levels, end: "/".join([*levels, *end]), LEVELS, st.sampled_from([[], ["#"]])),
    st.builds(lambda levels, end: ".".join([*levels, *end]), LEVELS, st.sampled_from([[], [">"]])),
).filter(lambda text: is_filter(text))


def is_filter(text: str) -> bool:
    try:
        check_filter(text)
    except UsageError:
        return False
    return True


@settings(max_examples=400, deadline=None)
@given(outer=SMALL_FILTERS | LEVELLED, inner=SMALL_FILTERS | LEVELLED)
def test_a_filter_covers_another_exactly_if_no_topic_disproves_it(outer: str, inner: str) -> None:
    topic = uncovered(outer, inner)
    if topic is None:
        assert [t for t in SMALL_TOPICS if match(inner, t) and not match(outer, t)] == []
    else:
        check_topic(topic)
        assert match(inner, topic) and not match(outer, topic)


@settings(max_examples=150, deadline=None)
@given(filter_=SMALL_FILTERS | LEVELLED)
def test_a_filter_covers_itself_and_every_topic_it_matches(filter_: str) -> None:
    assert covers(filter_, filter_)
    assert all(covers(filter_, topic) == match(filter_, topic) for topic in SMALL_TOPICS[:400])


@pytest.mark.parametrize(
    ("outer", "inner", "topic"),
    [
        ("site/#", "site", None),
        ("site/#", "site/+/temp", None),
        ("site/+", "site/#", "site"),
        ("site/+/temp", "site/1/temp", None),
        ("site/+/temp", "site/+/+", "site//"),
        ("logs.>", "logs.*", None),
        ("logs.>", "logs", "logs"),
        ("#", ">", None),
        (">", "#", None),
        ("#", "$dlq/#", "$dlq"),
        ("$dlq/#", "$dlq/a", None),
        ("a/#", "a.*", "a."),
        ("a.b/#", "a.b/c.*", None),
        ("+", "a.*", "a./"),
        ("+", "*", "/"),
        ("temp", "temp", None),
        ("Straße/+", "Straße/ü", None),
    ],
)
def test_examples_of_filters_within_others(outer: str, inner: str, topic: str | None) -> None:
    assert covers(outer, inner) is (topic is None)
    if topic is not None:
        assert match(inner, topic) and not match(outer, topic)


MQTT_TOPICS = ["".join(characters) for size in range(1, 5) for characters in itertools.product("a./$*>", repeat=size)]
MQTT_FILTERS = st.builds(
    lambda levels, end: "/".join([*levels, *end]),
    st.lists(st.sampled_from(["a", "", "+", "*", ">", "a.*", "$a", "a.a"]), min_size=1, max_size=3),
    st.sampled_from([[], ["#"]]),
).filter(bool)


def mqtt_matches(filter_: str, topic: str) -> bool:
    """The rule of MQTT, by regular expression: * and > are ordinary characters."""
    if topic[0] == "$" and filter_[0] != "$":
        return False
    if filter_ == "#":
        return True
    body, rest = (filter_[:-2], "(/.*)?") if filter_.endswith("/#") else (filter_, "")
    levels = "/".join("[^/]*" if level == "+" else re.escape(level) for level in body.split("/"))
    return re.fullmatch(levels + rest, topic, re.DOTALL) is not None


@settings(max_examples=400, deadline=None)
@given(outer=SMALL_FILTERS | LEVELLED, inner=MQTT_FILTERS)
def test_a_filter_covers_one_of_mqtt_exactly_if_no_topic_disproves_it(outer: str, inner: str) -> None:
    topic = uncovered(outer, inner, mqtt=True)
    if topic is None:
        assert [t for t in MQTT_TOPICS if mqtt_matches(inner, t) and not matches_any_topic(outer, t)] == []
    else:
        assert mqtt_matches(inner, topic) and not matches_any_topic(outer, topic)


def matches_any_topic(filter_: str, topic: str) -> bool:
    """As `match`, also for topics of MQTT clients, which may contain * and >."""
    return match(filter_, topic) if check_filter(filter_) else filter_ == topic


@pytest.mark.parametrize(
    ("outer", "inner", "covered"),
    [
        ("a.*", "a.*", True),  # one topic of MQTT, which the wildcard matches
        ("a.b", "a.*", False),
        ("a/+", "a/>", True),
        ("site/#", "site/+/x.>", True),
        (">", "#", True),
        ("#", "$a/+", False),
    ],
)
def test_the_wildcards_of_dots_are_ordinary_characters_in_a_filter_of_mqtt(
    outer: str, inner: str, covered: bool
) -> None:
    assert covers(outer, inner, mqtt=True) is covered


def test_comparing_the_longest_filters_is_cheap() -> None:
    dots, slashes = ".".join("*" * 128), "/".join("+" * 128)
    assert not covers(slashes, dots) and not covers(dots, slashes)
    assert covers("/".join("+" * 127) + "/#", slashes)
