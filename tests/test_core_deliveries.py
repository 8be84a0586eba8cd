"""QoS 1 deliveries: one copy in a queue, delivery counts that increase when a message is sent, ACKs that are late or
out of order.

Invariant: time passes when a test advances it. The lists of a client contain only output of the core; `stall` stops its
reading.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from killed import as_killed
from stepped import Client, conserved
from test_core_log import WAL, WalBench

from blipmq.native.config import WalConfig
from blipmq.wire import frames as wire

TIMEOUT_MS = 100
LATER_MS = 40 * TIMEOUT_MS  # more than any ack timeout


def acknowledge(bench: WalBench, client: Client, *ids: int) -> None:
    for id_ in ids:
        client.send(wire.ACK, seq=id_)
    bench.settle()


def numbers(client: Client) -> list[int]:
    return [int(message.payload) for message in client.messages]


def publish(bench: WalBench, client: Client, topic: str, *payloads: int) -> None:
    for payload in payloads:
        bench.published(client, topic, 1, b"%d" % payload)
    bench.settle()


def comes_back(bench: WalBench, count: int) -> Client:
    """The durable subscriber, connected again, once it has at least this many messages."""
    client = bench.named("me")
    bench.subscribed(client, "t", durable=True)
    bench.until(lambda: len(client.messages) >= count)
    bench.settle()
    return client


def later(bench: WalBench, times: int = 1) -> None:
    for _ in range(times):
        bench.settle(LATER_MS)
        bench.until(lambda: bench.stats()["held"] == 0)


@pytest.fixture
def bench(tmp_path: Path) -> WalBench:
    return WalBench(tmp_path, ack_timeout_ms=TIMEOUT_MS, max_deliveries=3)


def test_a_message_for_a_slow_reader_is_queued_once_without_counting_a_delivery(bench: WalBench) -> None:
    with bench:
        slow, publisher = bench.named("slow"), bench.named("publisher")
        bench.subscribed(slow, "t", durable=True)
        slow.stall()
        publish(bench, publisher, "t", *range(5))
        before = bench.stats()
        later(bench, 10)  # three deliveries would have timed out long ago
        after = bench.stats()
        assert (after["redelivered"], after["dead_lettered"], after["in_flight"]) == (0, 0, 5)
        assert after["memory_used_bytes"] <= before["memory_used_bytes"]
        slow.read()
        bench.settle()
        assert numbers(slow) == list(range(5)) and not any(message.redelivered for message in slow.messages)
        acknowledge(bench, slow, *(message.id for message in slow.messages))
        assert bench.stats()["acked"] == 5


def test_an_acknowledgement_removes_the_copy_queued_for_redelivery(bench: WalBench) -> None:
    with bench:
        client, publisher = bench.named("me"), bench.named("publisher")
        bench.subscribed(client, "t", durable=True)
        publish(bench, publisher, "t", 1, 2)
        client.stall()
        later(bench)  # both are in its queue again
        assert bench.stats()["in_flight"] == 2
        acknowledge(bench, client, client.messages[0].id)
        client.read()
        bench.settle()
        assert numbers(client) == [1, 2, 2] and client.messages[-1].redelivered
        acknowledge(bench, client, client.messages[-1].id)
        stats = bench.stats()
        assert (stats["acked"], stats["redelivered"], stats["in_flight"]) == (2, 1, 0)
        assert conserved(stats)


@pytest.mark.parametrize("other_reads", [True, False])
def test_a_late_acknowledgement_counts_when_another_member_has_the_message(other_reads: bool, bench: WalBench) -> None:
    with bench:
        publisher, first, second = (bench.named(name) for name in ("publisher", "first", "second"))
        bench.subscribed(first, "t", group="g")
        publish(bench, publisher, "t", 1)
        (message,) = first.messages
        bench.subscribed(second, "t", group="g")
        if not other_reads:
            second.stall()
        for _ in range(4):
            if second.messages or second.untaken:
                break
            bench.settle(TIMEOUT_MS * 2)
            if not other_reads and bench.stats()["in_flight"] and len(first.messages) == 1:
                break
        acknowledge(bench, first, message.id)
        stats = bench.stats()
        assert (stats["acked"], stats["in_flight"]) == (1, 0)
        second.read()
        later(bench)
        assert numbers(second) == ([1] if other_reads else [])
        acknowledge(bench, second, message.id)
        assert bench.stats()["acked"] == 1 and conserved(bench.stats())


def test_out_of_order_acknowledgements_survive_a_disconnect(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        client, publisher = bench.named("me"), bench.named("publisher")
        bench.subscribed(client, "t", durable=True)
        publish(bench, publisher, "t", *range(10))
        acknowledge(bench, client, *(message.id for message in client.messages if int(message.payload) not in (0, 4)))
        for _ in range(2):
            bench.close(client)
            client = comes_back(bench, 2)
            assert numbers(client) == [0, 4] and all(message.redelivered for message in client.messages)
        publish(bench, publisher, "t", 10)
        assert numbers(client) == [0, 4, 10]


def restarted(bench: WalBench, directory: Path, copy: Path, killed: bool, **limits: int) -> WalBench:
    """The core stops in order, or as if killed: then the final records of an orderly stop are not read."""
    bench.turn(2000)  # acknowledgements are logged lazily
    bench.until(lambda: bench.stats()["log_next_lsn"] - 1 == bench.stats()["log_durable_lsn"])
    if killed:
        directory = as_killed(directory, copy)
    bench.core.free()
    return WalBench(directory, **limits)


@pytest.mark.parametrize("killed", [False, True])
def test_out_of_order_acknowledgements_survive_a_restart_and_duplicates_after_a_kill_are_marked(
    killed: bool, tmp_path: Path
) -> None:
    (tmp_path / "log").mkdir()
    bench = WalBench(tmp_path / "log")
    client, publisher = bench.named("me"), bench.named("publisher")
    bench.subscribed(client, "t", durable=True)
    publish(bench, publisher, "t", *range(10))
    acknowledge(bench, client, *(message.id for message in client.messages if int(message.payload) not in (1, 4)))
    with restarted(bench, tmp_path / "log", tmp_path / "copy", killed) as second:
        client = second.named("me")
        second.subscribed(client, "t", durable=True)
        count = 9 if killed else 2  # the floor is logged, here behind 0
        second.until(lambda: len(client.messages) == count)
        publish(second, second.named("publisher"), "t", 10)
        assert numbers(client) == [*(range(1, 10) if killed else (1, 4)), 10]
        assert [message.redelivered for message in client.messages] == [True] * count + [False]


def test_a_poison_message_becomes_a_dead_letter_without_affecting_others(bench: WalBench) -> None:
    with bench:
        dead, publisher = bench.named("dead"), bench.named("publisher")
        bench.subscribed(dead, "$dlq/#", durable=True)
        client = bench.named("me")
        bench.subscribed(client, "t", durable=True)
        publish(bench, publisher, "t", *range(5))
        tries = 0
        while client.messages[0].payload == b"0":  # the client dies of it before it acknowledges later messages
            tries += 1
            bench.close(client)
            client = comes_back(bench, 1)
        done = []
        while client.messages:
            message = client.messages.pop(0)
            done.append(int(message.payload))
            acknowledge(bench, client, message.id)
        assert (tries, done) == (3, [1, 2, 3, 4])
        bench.until(lambda: dead.messages)
        assert [message.topic for message in dead.messages] == ["$dlq/t"]
        assert bench.stats()["dead_lettered"] == 1


def test_a_poison_message_of_a_group_becomes_a_dead_letter(bench: WalBench) -> None:
    with bench:
        dead, publisher = bench.named("dead"), bench.named("publisher")
        bench.subscribed(dead, "$dlq/#", durable=True)
        members = [bench.named(f"worker {number}") for number in range(8)]
        for member in members:
            bench.subscribed(member, "t", group="g")
        publish(bench, publisher, "t", 7)
        tries = 0
        while holder := next((member for member in members if member.messages), None):
            tries += 1
            members.remove(holder)
            bench.close(holder)
            bench.settle()
        assert tries == 3
        bench.until(lambda: dead.messages)
        assert bench.stats()["dead_lettered"] == 1 and conserved(bench.stats())


def test_a_message_expired_at_one_group_member_is_not_sent_to_another(bench: WalBench) -> None:
    members = [bench.named(name) for name in ("one", "two")]
    for member in members:
        bench.subscribed(member, "t", durable=True, group="g")
    bench.published(bench.named("writer"), "t", 2, ttl_ms=50)
    bench.until(lambda: all(member.messages for member in members))
    bench.settle(60)
    bench.close(members[0])
    bench.settle(10)
    assert len(members[1].messages) == 1
    assert bench.stats()["dropped_ttl"] == 1 and conserved(bench.stats())


def test_an_unsent_message_of_a_lost_connection_counts_no_delivery_and_is_not_marked(bench: WalBench) -> None:
    with bench:
        publisher = bench.named("publisher")
        for _ in range(5):  # more often than the delivery limit
            client = bench.named("me")
            client.stall()
            client.send(wire.SUB, "t", qos=1, durable=True, seq=3)
            bench.settle()
            bench.until(lambda: bench.stats()["held"] == 0)
            if bench.stats()["published"] == 0:
                publish(bench, publisher, "t", 1)
            later(bench)
            bench.close(client)
        client = bench.named("me")
        bench.subscribed(client, "t", durable=True)
        bench.until(lambda: client.messages)
        assert [message.redelivered for message in client.messages] == [False]


def test_a_qos_0_group_member_settles_a_message_only_when_it_is_sent(bench: WalBench) -> None:
    with bench:
        publisher, light, heavy = (bench.named(name) for name in ("publisher", "light", "heavy"))
        bench.subscribed(heavy, "t", group="g")
        light.send(wire.SUB, "t", seq=3, group="g")
        bench.until(lambda: light.subacks)
        light.stall()
        bench.close(heavy)
        publish(bench, publisher, "t", 1, 2)
        stats = bench.stats()
        assert (stats["in_flight"], stats["delivered"]) == (2, 0)
        third = bench.named("third")
        bench.subscribed(third, "t", group="g")
        bench.close(light)  # nothing was sent to it
        assert numbers(third) == [1, 2] and not any(message.redelivered for message in third.messages)
        fourth = bench.named("fourth")
        fourth.send(wire.SUB, "t", seq=3, group="g")
        bench.until(lambda: fourth.subacks)
        bench.close(third)
        stats = bench.stats()
        assert [(message.qos, message.redelivered) for message in fourth.messages] == [(0, True)] * 2
        assert (stats["in_flight"], stats["delivered"], stats["acked"]) == (0, 2, 0) and conserved(stats)


class Story:
    """One durable subscriber with random actions, and the messages it has received."""

    TRIES = 4

    def __init__(self, directory: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.log = WAL._replace(max_bytes=4 << 20)
        self.directory = directory
        self.published = 0
        self.arrivals: dict[int, int] = {}
        self.acked: set[int] = set()
        self.dead: set[int] = set()
        self.ids: dict[int, int] = {}
        self.restarts = 0
        self.begin()

    def begin(self) -> None:
        limits = {"ack_timeout_ms": TIMEOUT_MS, "max_deliveries": self.TRIES, "max_in_flight": 5}
        self.bench = WalBench(self.directory, self.log, **limits)
        self.publisher = self.bench.attach(hello=True)
        self.collector = self.bench.named("collector")
        self.bench.subscribed(self.collector, "$dlq/#", durable=True)
        self.client = self.comes()

    def comes(self) -> Client:
        client = self.bench.named("me")
        self.bench.subscribed(client, "t", durable=True)
        return client

    def look(self) -> None:
        """Read until no more messages arrive; check that none is forbidden."""
        for _ in range(30):
            self.bench.turn()
            self.bench.core.wait(1)
        self.bench.settle()
        for message in self.client.messages:
            number = int(message.payload)
            assert number not in self.acked, f"{number} was acknowledged and comes again"
            self.arrivals[number] = self.arrivals.get(number, 0) + 1
            assert self.arrivals[number] <= self.TRIES, f"{number} comes too often"
            assert message.redelivered or (self.arrivals[number] == 1), f"{number} comes again and does not say so"
            assert not message.redelivered or self.arrivals[number] > 1 or self.restarts, (
                f"{number} has not come before"
            )
            self.ids[number] = message.id
        self.client.messages.clear()
        self.dead |= {message.id for message in self.collector.messages}
        acknowledge(self.bench, self.collector, *(message.id for message in self.collector.messages))
        self.collector.messages.clear()
        assert conserved(self.bench.stats())

    def acknowledge(self, number: int) -> None:
        """It counts unless the message has already become a dead letter."""
        before = self.bench.stats()["acked"]
        acknowledge(self.bench, self.client, self.ids.pop(number))
        if self.bench.stats()["acked"] > before:
            self.acked.add(number)

    def step(self) -> None:
        what = self.random.choice(["publish", "publish", "ack", "ack", "ack", "leave", "wait", "restart"])
        if what == "publish":
            count = self.random.randrange(1, 8)
            publish(self.bench, self.publisher, "t", *range(self.published, self.published + count))
            self.published += count
        elif what == "ack" and self.ids:
            for number in self.random.sample(sorted(self.ids), self.random.randrange(1, len(self.ids) + 1)):
                self.acknowledge(number)
        elif what == "leave":
            self.bench.close(self.client)
            self.ids.clear()
            self.client = self.comes()
        elif what == "wait":
            self.bench.settle(TIMEOUT_MS * self.random.randrange(1, 10))
        elif what == "restart" and self.random.random() < 0.3:
            self.look()
            self.bench.core.free()
            self.ids.clear()
            self.restarts += 1
            self.begin()
        self.look()

    def end(self) -> None:
        """All remaining messages are acknowledged: each published message is acknowledged or a dead letter, exactly
        once."""
        for _ in range(self.published + 20):
            self.look()
            for number in list(self.ids):
                self.acknowledge(number)
            self.look()
            if len(self.acked) + len(self.dead) == self.published:
                break
            self.bench.settle(TIMEOUT_MS)
        self.look()
        never = set(range(self.published)) - self.acked
        assert all(self.arrivals.get(number) == self.TRIES for number in never), (never, self.arrivals)
        assert len(self.dead) == len(never)
        self.bench.core.free()


@pytest.mark.parametrize("seed", range(30))
def test_each_message_is_acknowledged_once_or_delivered_up_to_the_limit(seed: int, tmp_path: Path) -> None:
    story = Story(tmp_path, seed)
    for _ in range(60):
        story.step()
    story.end()


def test_a_redelivery_to_many_is_marked_in_one_shared_buffer(tmp_path: Path) -> None:
    size, count = 100_000, 40
    log = WalConfig(max_bytes=4 << 20, reserve_bytes=0, segment_bytes=1 << 20, batch_bytes=256 << 10)
    with WalBench(tmp_path, log, ack_timeout_ms=1_000, max_sessions=64) as bench:
        clients = [bench.named(f"reader-{number}") for number in range(count)]
        for client in clients:
            bench.subscribed(client, "t", durable=True)
        bench.published(bench.named("publisher"), "t", 1, bytes(size))
        bench.settle()
        before = bench.stats()["memory_used_bytes"]
        bench.until(lambda: bench.stats()["redelivered"] == count, advance_ms=500)
        assert bench.stats()["memory_used_bytes"] < before + 10 * size
        assert all([message.redelivered for message in client.messages] == [False, True] for client in clients)
        assert {bytes(message.payload) for client in clients for message in client.messages} == {bytes(size)}
