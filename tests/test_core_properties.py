"""The C core against its Python model: the same actions, then the same messages and the same counters.

Subscribers here read everything or nothing, so the model is exact to the byte. For readers in between (a partly read
frame, a partly used credit) the second half checks properties of the received messages.
"""

from __future__ import annotations

import random
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from stepped import Bench, Client, Overflow, SocketClient, conserved
from twin import Publish, Twin, message_bytes

from blipmq.native.pure import filter_kind
from blipmq.wire import frames as wire

BUFFER_BYTES = 4096

# Few levels, so that topics and filters match often; empty levels and `$` because they have special rules.
LEVELS = ["a", "b", "", "$s"]
MANY_TOPICS = [f"many.{number}" for number in range(100)]  # more than the route cache holds


def names(separator: str, one: str, rest: str) -> st.SearchStrategy[str]:
    levels = st.lists(st.sampled_from([*LEVELS, one]), min_size=0, max_size=3)
    return st.builds(lambda levels, end: separator.join([*levels, *end]), levels, st.sampled_from([[], [rest]]))


FILTERS = st.one_of(names(".", "*", ">"), names("/", "+", "#"), st.sampled_from(["many.*", "many.7", "#", ">"])).filter(
    bool
)
HOT_TOPIC = "a.b"  # so that queues fill
TOPICS = st.one_of(
    st.just(HOT_TOPIC),
    st.just(HOT_TOPIC),
    st.builds(str.join, st.sampled_from([".", "/"]), st.lists(st.sampled_from(LEVELS), min_size=1, max_size=4)),
    st.sampled_from(MANY_TOPICS),
).filter(bool)
PAYLOADS = st.one_of(
    st.binary(max_size=40), st.integers(0, 3 * BUFFER_BYTES).map(lambda size: bytes([size % 251]) * size)
)
TTLS_MS = st.sampled_from([0, 0, 1, 10, 11, 25, 60])
PUBLISHES = st.builds(Publish, TOPICS, PAYLOADS, TTLS_MS)
# The core handles batches of one topic and one time to live together; small batches make the message limits matter.
RUNS = st.builds(
    lambda topic, ttl_ms, payloads: [Publish(topic, payload, ttl_ms) for payload in payloads],
    TOPICS,
    TTLS_MS,
    st.lists(st.binary(max_size=40), min_size=1, max_size=12),
)
BATCHES = st.one_of(st.lists(PUBLISHES, min_size=1, max_size=6), RUNS)
LIMITS = st.fixed_dictionaries(
    {
        "overflow_policy": st.sampled_from(list(Overflow)),
        "subscriber_messages": st.sampled_from([1, 2, 5, 100]),
        "subscriber_bytes": st.sampled_from([1, 300, 1000, 20_000]),
        "max_batch": st.sampled_from([1, 3, 1000]),
        "max_batch_bytes": st.sampled_from([1, 500, 1 << 20]),
        "default_ttl_ms": st.sampled_from([0, 0, 25]),
        "max_ttl_ms": st.sampled_from([40, 10_000]),
    }
)
NAMES = st.sampled_from(["ann", "bob", "cat"])
HOT_FILTERS = st.lists(st.sampled_from(["a.b", "a.*", ">", "#", "a.>"]), min_size=1, max_size=2)


def frames_of(batch: list[Publish]) -> bytes:
    return b"".join(wire.encode_command(wire.PUB, p.topic, p.payload, ttl_ms=p.ttl_ms) for p in batch)


class CoreAndTwin(RuleBasedStateMachine):
    """Every rule applies one action to both. Under `block` at most one client stalls: with two full queues, the core
    may choose which one blocks a publisher, and this changes the order of resuming."""

    bench: Bench | None = None

    @initialize(limits=LIMITS, tick_ms=st.sampled_from([1, 10]), filters=HOT_FILTERS, stalled=st.booleans())
    def start(self, limits: dict[str, Any], tick_ms: int, filters: list[str], stalled: bool) -> None:
        self.bench = Bench(
            **limits,
            tick_ms=tick_ms,
            buffer_bytes=BUFFER_BYTES,
            route_cache_entries=64,
            max_connections=4,
            work_share=1 << 30,
        )
        self.twin = Twin(self.bench.config, self.bench.now_ms, self.bench.wall_offset_ms)
        self.clients: dict[str, Client] = {}
        self.attach("ann")
        self.attach("bob")
        for filter in filters:
            self.subscribe("bob", filter)
        if stalled:
            self.stall("bob")

    def teardown(self) -> None:
        if self.bench is not None:
            self.bench.core.free()

    def one_more_may_stall(self) -> bool:
        stalled = sum(not client.reading for client in self.twin.clients.values())
        return stalled == 0 or self.twin.config.overflow_policy != Overflow.BLOCK

    def client(self, name: str) -> str:
        """The client of that name, attached if necessary."""
        if name not in self.clients:
            self.attach(name)
        return name

    def attach(self, name: str) -> None:
        self.clients[name] = self.bench.attach()
        self.twin.attach(name)

    @rule(name=NAMES, filter=FILTERS)
    def subscribe(self, name: str, filter: str) -> None:
        if not self.is_filter(filter) or self.twin.is_held_back(self.client(name)):
            return
        self.clients[name].subscribe(filter)
        self.twin.subscribe(name, filter)

    @rule(name=NAMES, filter=FILTERS)
    def unsubscribe(self, name: str, filter: str) -> None:
        name = self.client(name)
        own = sorted(self.twin.clients[name].filters)
        if not self.is_filter(filter) or self.twin.is_held_back(name):
            return
        filter = own[len(filter) % len(own)] if own else filter  # usually an existing one
        self.clients[name].send(wire.UNSUB, filter)
        self.bench.settle()
        self.twin.unsubscribe(name, filter)

    @rule(name=NAMES, batch=BATCHES, cuts=st.lists(st.floats(0, 1), max_size=3), slowly=st.booleans())
    def publish(self, name: str, batch: list[Publish], cuts: list[float], slowly: bool) -> None:
        """Publish a batch in one or several pieces, cut anywhere, in one turn or over several."""
        client = self.clients[self.client(name)]
        data = frames_of(batch)
        edges = [0, *sorted(int(cut * len(data)) for cut in cuts), len(data)]
        for start, stop in pairwise(edges):
            client.send_bytes(data[start:stop])
            if slowly:
                self.bench.settle()
        self.bench.settle()
        self.twin.publish(name, batch)

    @rule(name=NAMES, first=st.integers(0, 99))
    def publish_to_more_topics_than_are_cached(self, name: str, first: int) -> None:
        batch = [Publish(MANY_TOPICS[(first + index) % 100], b"", 0) for index in range(100)]
        self.publish(name, batch, [], False)

    @precondition(one_more_may_stall)
    @rule(name=NAMES, filters=HOT_FILTERS)
    def subscribe_and_stall(self, name: str, filters: list[str]) -> None:
        for filter in filters:
            self.subscribe(name, filter)
        self.stall(name)

    @precondition(one_more_may_stall)
    @rule(name=NAMES)
    def stall(self, name: str) -> None:
        if self.twin.clients[self.client(name)].reading:
            self.clients[name].stall()
            self.twin.stall(name)

    @rule(name=NAMES)
    def read(self, name: str) -> None:
        self.clients[self.client(name)].read()
        self.bench.settle()
        self.twin.read(name)

    @rule(batch=BATCHES, name=NAMES, ms=st.integers(1, 30))
    def publish_and_advance(self, batch: list[Publish], name: str, ms: int) -> None:
        self.publish(name, [publish._replace(topic=HOT_TOPIC) for publish in batch], [], False)
        self.advance(ms)

    @rule(name=NAMES)
    def close(self, name: str) -> None:
        if name in self.clients:
            self.bench.close(self.clients.pop(name))
            self.twin.close(name)

    @rule(ms=st.one_of(st.integers(1, 60), st.just(100_000)))
    def advance(self, ms: int) -> None:
        self.twin.advance(ms)
        self.bench.settle(advance_ms=ms)

    @rule(ms=st.integers(1, 60), name=NAMES)
    def read_after_a_while(self, ms: int, name: str) -> None:
        """Both in one turn: expired messages are removed before delivery."""
        self.clients[self.client(name)].read()
        self.bench.settle(advance_ms=ms)
        self.twin.advance(ms)
        self.twin.read(name)

    @rule(limits=LIMITS)
    def reload(self, limits: dict[str, Any]) -> None:
        stalled = sum(not client.reading for client in self.twin.clients.values())
        if stalled > 1 and limits["overflow_policy"] == Overflow.BLOCK:
            return
        config = self.twin.config._replace(**limits)
        self.bench.core.limits(config)
        self.bench.settle()
        self.twin.reload(config)

    @staticmethod
    def is_filter(filter: str) -> bool:
        return filter_kind(filter.encode()) >= 0

    @invariant()
    def the_same_messages_have_arrived(self) -> None:
        if self.bench is None:
            return
        for name, client in self.clients.items():
            assert client.messages == self.twin.clients[name].messages, name
            assert client.closed is None

    @invariant()
    def the_same_is_counted(self) -> None:
        if self.bench is None:
            return
        stats, twin = self.bench.stats(), self.twin.counters()
        # Advancing time and reading in one turn may avoid a pause in the core that the model, which does both in
        # sequence, makes.
        assert stats["blocked_pauses"] <= twin.pop("blocked_pauses")
        assert {key: stats[key] for key in twin} == twin
        assert conserved(stats)
        rows = self.bench.subscribers()
        for name, client in self.twin.clients.items():
            row = rows.pop(self.clients[name].conn, None)
            assert (row is not None) == bool(client.filters)
            if row is not None:
                assert (
                    row._asdict()
                    | {
                        "subscriptions": len(client.filters),
                        "queued_messages": len(client.queue),
                        "queued_bytes": client.queued_bytes,
                        "enqueued": client.enqueued,
                        "delivered": client.delivered,
                        "dropped_ttl": client.dropped_ttl,
                        "dropped_queue_full": client.dropped_queue_full,
                    }
                    == row._asdict()
                )
        assert not rows


CoreAndTwin.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestTheCoreAndItsTwinAgree = CoreAndTwin.TestCase


# ---- subscribers that read partially ------------------------------------------------------------------------------------

FRAME_BYTES_MAX = message_bytes("t.a", bytes(3 * BUFFER_BYTES))
ACTIONS = st.one_of(
    st.tuples(
        st.just("publish"), st.integers(0, 1), st.lists(st.integers(0, 3 * BUFFER_BYTES), min_size=1, max_size=8)
    ),
    st.tuples(st.just("publish"), st.integers(0, 1), st.lists(st.integers(0, 50), min_size=1, max_size=60)),
    st.tuples(st.just("read"), st.integers(0, 3), st.integers(1, 30_000)),
    st.tuples(st.just("read"), st.integers(0, 3), st.integers(1, 300)),
    st.tuples(st.just("advance"), st.just(0), st.integers(1, 40)),
)


class Readers:
    """Two publishers and four subscribers, two of them over sockets with small buffers, two with most of their credit
    used."""

    def __init__(self, bench: Bench, ttl_ms: int, rooms: list[int]) -> None:
        self.bench = bench
        self.ttl_ms = ttl_ms
        self.publishers = [bench.attach(), bench.attach()]
        self.sockets: list[SocketClient] = [bench.adopt(), bench.adopt()]
        for client in self.sockets:
            client.send_bytes(wire.encode_command(wire.SUB, "t.>"))
            bench.settle()
            client.drain()
        self.fed = [bench.attach().subscribe("t.*") for _ in rooms]
        for client, room in zip(self.fed, rooms, strict=True):
            client.stall(room)
        self.sent: list[list[bytes]] = [[], []]

    @property
    def everyone(self) -> list[Client]:
        return [*self.sockets, *self.fed]

    def publish(self, publisher: int, sizes: list[int]) -> None:
        """Payloads name their sender and number; the topic changes sometimes, which ends a batch."""
        batch = []
        for size in sizes:
            number = len(self.sent[publisher])
            payload = b"%d:%d:" % (publisher, number) + random.Random(number).randbytes(size)
            self.sent[publisher].append(payload)
            batch.append(Publish("t.a" if number % 7 else "t.b", payload, self.ttl_ms))
        self.publishers[publisher].send_bytes(frames_of(batch))
        self.bench.settle()

    def read(self, index: int, size: int) -> None:
        if index < 2:
            self.sockets[index].receive(size)
        else:
            client = self.fed[index - 2]
            client.take(min(size, client.untaken))
        self.bench.settle()

    def read_everything(self) -> None:
        for client in self.fed:
            client.read()
        for _ in range(10_000):
            self.bench.settle()
            if sum(client.receive() for client in self.sockets) == 0 and not self.bench.turn():
                return
        raise AssertionError("the core does not come to rest")

    def check_caps(self) -> None:
        config = self.bench.config
        assert conserved(self.bench.stats())
        for row in self.bench.subscribers().values():
            assert row.queued_messages <= config.subscriber_messages
            assert row.queued_bytes <= config.subscriber_bytes


@pytest.mark.parametrize("policy", list(Overflow))
@pytest.mark.parametrize("ttl_ms", [0, 30], ids=["forever", "ttl"])
@given(
    actions=st.lists(ACTIONS, max_size=40),
    caps=st.tuples(st.sampled_from([2, 3, 20, 1000]), st.sampled_from([2, 4, 30])),
    max_batch=st.sampled_from([1, 4, 1000]),
    lazy_expiry=st.booleans(),
    rooms=st.tuples(st.integers(0, 60_000), st.integers(0, 60_000)),
)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_streams_are_whole_and_ordered_and_missing_messages_are_counted(
    policy: Overflow,
    ttl_ms: int,
    actions: list[Any],
    caps: tuple[int, int],
    max_batch: int,
    lazy_expiry: bool,
    rooms: tuple[int, int],
) -> None:
    """A partly sent frame stays in the queue, so the byte limit here has space for one more frame."""
    limits: dict[str, Any] = {"subscriber_messages": caps[0], "subscriber_bytes": caps[1] * FRAME_BYTES_MAX}
    with Bench(
        overflow_policy=policy, max_batch=max_batch, lazy_expiry=lazy_expiry, buffer_bytes=BUFFER_BYTES, **limits
    ) as bench:
        readers = Readers(bench, ttl_ms, list(rooms))
        readers.publish(0, [0])
        for name, who, what in actions:
            if name == "advance":
                bench.settle(advance_ms=what)
            else:
                getattr(readers, name)(who, what)
            readers.check_caps()
        readers.read_everything()
        check_streams(readers, policy, ttl_ms)


def check_streams(readers: Readers, policy: Overflow, ttl_ms: int) -> None:
    stats = readers.bench.stats()
    sent = [payload for own in readers.sent for payload in own]
    assert stats["published"] == len(sent) and stats["blocked_publishers"] == 0 and stats["queued_messages"] == 0
    rows = list(readers.bench.subscribers().values())
    assert sorted(row.delivered for row in rows) == sorted(len(client.messages) for client in readers.everyone)
    for row in rows:
        assert row.enqueued == len(sent) == row.delivered + row.dropped_ttl + row.dropped_queue_full
        assert policy != Overflow.BLOCK or row.dropped_queue_full == 0
        assert ttl_ms or row.dropped_ttl == 0
    last_id = stats["last_message_id"]
    for client in readers.everyone:
        ids = [message.id for message in client.messages]
        assert ids == sorted(set(ids))
        for number, own in enumerate(readers.sent):
            theirs = [payload for payload in client.payloads if payload.startswith(b"%d:" % number)]
            positions = [int(payload.split(b":", 2)[1]) for payload in theirs]
            assert positions == sorted(positions) and theirs == [own[position] for position in positions]
        if policy == Overflow.DROP_NEW and not ttl_ms:
            assert ids[0] == 1
        if policy == Overflow.DROP_OLDEST and not ttl_ms:
            assert ids[-1] == last_id
