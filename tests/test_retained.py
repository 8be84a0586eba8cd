"""The index of retained messages (native/broker/retained.c) beside a short model in Python: random changes and replays.

Invariant: the model is a dict from topic to value. It knows nothing about tables, gaps or lists.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from c_library import NATIVE, load
from cffi import FFI

from blipmq.wire.topics import match

TESTS = Path(__file__).resolve().parent
PARTS = ["broker/retained.c", "base/pool.c", "base/wheel.c", "base/hash.c", "base/topic_name.c"]
SHORT, LONG = 20_000, 1_000_000  # steps of the comparison: in the suite, and in `make slow`

TOPICS = [f"site/{number}/{what}" for number in range(60) for what in ("temp", "state")] + [
    "a",
    "a/b",
    "$dlq/a",
    "$own",
]
FILTERS = ["#", "site/#", "site/+/temp", "site/7/+", "site/7/temp", "$dlq/#", "+", "none/#", "a/#"]

DECLARATIONS = """
typedef struct { const uint8_t *topic, *properties, *payload; uint32_t topic_size, properties_size, payload_size, qos;
                 uint64_t serial, lsn; } view_t;
void *scene_open(uint64_t bytes_max, uint32_t count_max);
uint64_t scene_close(void *scene);
void *scene_make(void *scene, const view_t *view, uint64_t expiry_tick);
void scene_put(void *scene, void *message, uint64_t lsn);
void scene_drop(void *scene, void *message);
int scene_clear(void *scene, const uint8_t *topic, uint32_t size);
uint32_t scene_pass(void *scene, uint64_t tick);
void scene_carry(void *scene, uint64_t lsn);
void *scene_find(void *scene, const uint8_t *topic, uint32_t size);
void *scene_begin(void *scene);
void *scene_next(void *scene, void *cursor, const uint8_t *filter, uint32_t size, uint32_t units, int *done);
void scene_end(void *cursor);
void scene_view(void *message, view_t *view);
void scene_counts(void *scene, uint64_t counts[6]);
"""


class Value(NamedTuple):
    """A retained message. `expiry`: its tick, 0: never."""

    properties: bytes
    payload: bytes
    qos: int
    expiry: int = 0
    serial: int = 0
    lsn: int = 0


class Replay(NamedTuple):
    """A replay under way: the last serial at its beginning, and that of the last message given."""

    cursor: Any
    filter: str
    last: int
    seen: int


class Index:
    """The C index."""

    def __init__(self, library: tuple[FFI, Any], bytes_max: int = 1 << 40, count_max: int = 1 << 30) -> None:
        self.ffi, self.lib = library
        self.scene = self.lib.scene_open(bytes_max, count_max)
        self._view, self._done = self.ffi.new("view_t *"), self.ffi.new("int *")
        self._counts = self.ffi.new("uint64_t[6]")

    def make(self, topic: str, value: Value) -> Any:
        """A made message, or None."""
        texts = [self.ffi.from_buffer("uint8_t[]", text) for text in (topic.encode(), value.properties, value.payload)]
        sizes = map(len, texts)
        made = self.lib.scene_make(
            self.scene, self.ffi.new("view_t *", [*texts, *sizes, value.qos, 0, 0]), value.expiry
        )
        return None if made == self.ffi.NULL else made

    def view(self, message: Any) -> tuple[str, Value]:
        """The topic and the value of a message. The expiry is not shown."""
        self.lib.scene_view(message, self._view)
        v = self._view
        texts = [
            bytes(self.ffi.buffer(at, size)) if size else b""
            for at, size in ((v.topic, v.topic_size), (v.properties, v.properties_size), (v.payload, v.payload_size))
        ]
        return texts[0].decode(), Value(texts[1], texts[2], v.qos, 0, v.serial, v.lsn)

    def find(self, topic: str) -> Value | None:
        text = topic.encode()
        found = self.lib.scene_find(self.scene, text, len(text))
        return None if found == self.ffi.NULL else self.view(found)[1]

    def next(self, cursor: Any, filter_: str, units: int) -> tuple[tuple[str, Value] | None, bool]:
        """The next message of a replay, and whether the replay is complete."""
        text = filter_.encode()
        found = self.lib.scene_next(self.scene, cursor, text, len(text), units, self._done)
        return None if found == self.ffi.NULL else self.view(found), bool(self._done[0])

    def replay(self, filter_: str) -> list[str]:
        """The payloads of a whole replay."""
        cursor, found, done = self.lib.scene_begin(self.scene), [], False
        while not done:
            given, done = self.next(cursor, filter_, 1 << 31)
            if given:
                found.append(given[1].payload.decode())
        self.lib.scene_end(cursor)
        return found

    def counts(self) -> dict[str, int]:
        self.lib.scene_counts(self.scene, self._counts)
        return dict(zip(("messages", "made", "bytes", "tables", "pool", "oldest"), self._counts, strict=True))

    def retain(self, topic: str, payload: str, lsn: int = 0, expiry: int = 0) -> bool:
        made = self.make(topic, Value(b"", payload.encode(), 0, expiry))
        if made is not None:
            self.lib.scene_put(self.scene, made, lsn)
        return made is not None

    def clear(self, topic: str) -> bool:
        text = topic.encode()
        return bool(self.lib.scene_clear(self.scene, text, len(text)))

    def close(self) -> None:
        assert self.lib.scene_close(self.scene) == 0


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> tuple[FFI, Any]:
    sources = [TESTS / "native" / "retained_scene.c", *(NATIVE / part for part in PARTS)]
    return load(tmp_path_factory.mktemp("retained"), sources, DECLARATIONS, "-std=gnu11", "-O1", "-DBQ_CHECK")


@pytest.fixture
def index(library: tuple[FFI, Any]) -> Iterator[Index]:
    opened = Index(library)
    yield opened
    opened.close()


def test_a_topic_has_its_last_message_until_it_is_cleared(index: Index) -> None:
    assert index.find("a") is None and not index.clear("a")
    assert index.retain("a", "1") and index.retain("a/b", "2") and index.retain("a", "3")
    assert index.replay("#") == ["2", "3"] and index.replay("a") == ["3"]
    assert index.clear("a") and not index.clear("a")
    assert index.replay("#") == ["2"]


def test_wildcards_do_not_replay_topics_of_the_broker(index: Index) -> None:
    index.retain("$SYS/load", "1")
    index.retain("load", "2")
    assert index.replay("#") == ["2"] and index.replay("$SYS/#") == ["1"] and index.replay("$SYS/load") == ["1"]


def test_a_value_that_changes_during_a_replay_is_left_to_live_delivery(index: Index) -> None:
    for number in range(5):
        index.retain(f"t/{number}", f"old {number}")
    cursor = index.lib.scene_begin(index.scene)
    given, _ = index.next(cursor, "t/+", 1)
    assert given is not None and given[1].payload == b"old 0"
    index.retain("t/1", "new 1")
    index.retain("t/0", "new 0")
    index.clear("t/3")
    rest, done = [], False
    while not done:
        given, done = index.next(cursor, "t/+", 1)
        rest += [given[1].payload] if given else []
    index.lib.scene_end(cursor)
    assert rest == [b"old 2", b"old 4"]
    assert index.replay("t/+") == ["old 2", "old 4", "new 1", "new 0"]


def test_a_message_expires_at_its_tick(index: Index) -> None:
    index.retain("a", "1", expiry=50)
    index.retain("b", "2", expiry=60)
    index.retain("c", "3")
    assert index.lib.scene_pass(index.scene, 49) == 0
    assert index.lib.scene_pass(index.scene, 50) == 1 and index.replay("#") == ["2", "3"]
    index.retain("b", "4")  # without an expiry
    assert index.lib.scene_pass(index.scene, 1000) == 0 and index.replay("#") == ["3", "4"]


def test_the_limits_hold_for_new_topics_and_not_for_values_of_the_same_size(library: tuple[FFI, Any]) -> None:
    index = Index(library, bytes_max=1 << 20, count_max=3)
    assert [index.retain(topic, "x" * 100) for topic in "abcd"] == [True, True, True, False]
    assert index.retain("a", "y" * 100) and not index.retain("d", "x")
    assert index.clear("b") and index.retain("d", "x")
    index.close()
    small = Index(library, bytes_max=1000)
    assert small.retain("a", "x" * 500) and not small.retain("b", "x" * 500)
    assert small.retain("a", "y" * 500) and not small.retain("a", "y" * 1500)
    assert small.replay("#") == ["y" * 500]
    assert small.counts()["bytes"] <= 1000
    small.close()


def test_a_made_message_keeps_its_place_until_it_is_put_or_dropped(library: tuple[FFI, Any]) -> None:
    index = Index(library, count_max=1)
    made = index.make("a", Value(b"", b"1", 0))
    assert made is not None and index.find("a") is None and not index.retain("b", "2")
    index.lib.scene_drop(index.scene, made)
    made = index.make("b", Value(b"p", b"2", 1))
    index.lib.scene_put(index.scene, made, 9)
    assert index.find("b") == Value(b"p", b"2", 1, 0, 1, 9)
    index.close()


def test_the_oldest_record_is_known_also_after_it_was_written_again(index: Index) -> None:
    for lsn, topic in enumerate("abc", 10):
        index.retain(topic, topic, lsn=lsn)
    index.retain("volatile", "v")
    assert index.counts()["oldest"] == 10
    index.lib.scene_carry(index.scene, 20)
    assert index.counts()["oldest"] == 11
    assert index.replay("#") == ["a", "b", "c", "v"]  # a replay follows the changes, not the log
    index.retain("b", "b2", lsn=21)
    index.clear("c")
    assert index.counts()["oldest"] == 20


class Comparison:
    """Random steps on the index and the model."""

    def __init__(self, index: Index, seed: int) -> None:
        self.index = index
        self.random = random.Random(seed)
        self.topics: dict[str, Value] = {}
        self.made: list[tuple[str, Value, Any]] = []
        self.replays: list[Replay] = []
        self.serial = self.lsn = self.tick = 0

    def step(self) -> None:
        choices = (self.make, self.put, self.put, self.drop, self.clear, self.wait, self.carry, self.begin, self.go_on)
        weights = (30, 20, 10, 2, 8, 4, 3, 2, 21)
        self.random.choices(choices, weights)[0]()

    def make(self) -> None:
        r = self.random
        if len(self.made) >= 8:
            return
        topic = r.choice(TOPICS)
        value = Value(bytes(r.choice((0, 0, 5))), bytes([r.randrange(256)]) * r.choice((1, 20, 300)), r.randrange(3))
        if r.random() < 0.1:
            value = value._replace(expiry=self.tick + r.randrange(1, 200))
        self.made.append((topic, value, self.index.make(topic, value)))

    def put(self) -> None:
        if not self.made:
            return
        topic, value, message = self.made.pop(0)
        self.serial += 1
        lsn = 0
        if self.random.random() < 0.8:
            self.lsn += 1
            lsn = self.lsn
        self.index.lib.scene_put(self.index.scene, message, lsn)
        self.topics[topic] = value._replace(serial=self.serial, lsn=lsn)

    def drop(self) -> None:
        if self.made:
            self.index.lib.scene_drop(self.index.scene, self.made.pop()[2])

    def clear(self) -> None:
        topic = self.random.choice(TOPICS)
        assert self.index.clear(topic) is (self.topics.pop(topic, None) is not None)

    def wait(self) -> None:
        self.tick += self.random.randrange(60)
        due = [topic for topic, value in self.topics.items() if 0 < value.expiry <= self.tick]
        assert self.index.lib.scene_pass(self.index.scene, self.tick) == len(due)
        for topic in due:
            del self.topics[topic]

    def carry(self) -> None:
        logged = {value.lsn: topic for topic, value in self.topics.items() if value.lsn}
        if logged:
            topic = logged[min(logged)]
            self.lsn += 1
            self.topics[topic] = self.topics[topic]._replace(lsn=self.lsn)
            self.index.lib.scene_carry(self.index.scene, self.lsn)

    def begin(self) -> None:
        if len(self.replays) < 4:
            cursor = self.index.lib.scene_begin(self.index.scene)
            self.replays.append(Replay(cursor, self.random.choice(FILTERS), self.serial, 0))

    def go_on(self) -> None:
        if not self.replays:
            return
        place = self.random.randrange(len(self.replays))
        replay = self.replays[place]
        units = self.random.choice((1, 3, 1000))
        given, done = self.index.next(replay.cursor, replay.filter, units)
        left = {
            value.serial: topic
            for topic, value in self.topics.items()
            if replay.seen < value.serial <= replay.last and match(replay.filter, topic)
        }
        if given is not None:
            topic, value = given
            assert value.serial == min(left) and topic == left[value.serial]
            assert value == self.topics[topic]._replace(expiry=0)
            self.replays[place] = replay._replace(seen=value.serial)
            del left[value.serial]
        assert not (done and left) and (done or given is not None or units < 1000)
        if done:
            self.index.lib.scene_end(self.replays.pop(place).cursor)

    def check(self) -> None:
        """Compare everything."""
        for topic in TOPICS:
            value = self.topics.get(topic)
            assert self.index.find(topic) == (value._replace(expiry=0) if value else None)
        counts = self.index.counts()
        assert counts["messages"] == len(self.topics) and counts["made"] == len(self.made)
        assert counts["pool"] == counts["bytes"] + counts["tables"]
        assert counts["oldest"] == min((value.lsn for value in self.topics.values() if value.lsn), default=0)

    def end(self) -> None:
        self.check()
        while self.made:
            self.drop()
        for replay in self.replays:
            self.index.lib.scene_end(replay.cursor)


def compare(index: Index, steps: int, seed: int) -> None:
    comparison = Comparison(index, seed)
    for number in range(steps):
        comparison.step()
        if number % 500 == 0:
            comparison.check()
    comparison.end()


@pytest.mark.parametrize("seed", range(2))
def test_random_changes_and_replays_agree_with_the_model(index: Index, seed: int) -> None:
    compare(index, SHORT // 2, seed)


@pytest.mark.slow
def test_a_million_random_changes_and_replays_agree_with_the_model(index: Index) -> None:
    compare(index, LONG, 99)
