"""The work for one client does not delay others. The tests count turns, never time.

In each turn the core serves a client for at most one share of work. Another client is served within a few turns during
any attack, and finally all clients have all messages.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from stepped import Bench, Client, Overflow, conserved
from test_core_log import WAL, WalBench

from blipmq.wire import frames as wire

DEEP = 60
FRESH = 2000
FEW_TURNS = 4
SHARE = 1024  # work units of one connection at a time: WORK_SHARE
MEMBERS = 1500
WINDOW = 4000
BIG = WAL._replace(max_bytes=64 << 20, segment_bytes=1 << 20, batch_bytes=256 << 10)


def overlapping(count: int, levels: int = DEEP) -> list[str]:
    """Filters that all match `a/a/a/...` and share only their first levels."""
    return [
        "/".join("+" if number >> level % 10 & 1 else "a" for level in range(levels)) + "/#" for number in range(count)
    ]


def fresh_topics(count: int, levels: int = DEEP) -> bytes:
    head = "/".join("a" * levels)
    return b"".join(wire.encode_command(wire.PUB, f"{head}/{number}", b"x") for number in range(count))


class Beside:
    """A publisher and a subscriber that are independent of the attack."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.reader = bench.attach().subscribe("good/one")
        self.writer = bench.attach()
        self.sent = 0

    def turns(self) -> int:
        """The turns from a publish to its arrival."""
        self.writer.publish("good/one", b"%d" % self.sent)
        self.sent += 1
        for turns in itertools.count(1):
            self.bench.turn()
            if len(self.reader.messages) == self.sent:
                return turns
            assert turns < 1000
        raise AssertionError


def messages_beside(beside: Beside, done: Callable[[], bool]) -> int:
    """The number of messages delivered, each within a few turns, before the work of the attack was finished."""
    for count in range(10_000):
        if done():
            beside.bench.settle()
            return count
        assert beside.turns() <= FEW_TURNS
    raise AssertionError("the attack has no end")


def test_overlapping_filters_and_new_topics_delay_only_their_publisher() -> None:
    with Bench() as bench:
        beside = Beside(bench)
        attacker = bench.attach().subscribe(*overlapping(1000))
        attacker.send_bytes(fresh_topics(40))
        assert messages_beside(beside, lambda: len(attacker.messages) == 40) > 100


def test_the_work_for_one_publisher_in_a_turn_is_bounded() -> None:
    with Bench() as bench:
        attacker = bench.attach().subscribe(*overlapping(1000))
        attacker.send_bytes(fresh_topics(10))
        done, most = bench.stats()["work"], 0
        while len(attacker.messages) < 10:
            now = bench.stats()["work"]  # request and answer: a turn or two
            done, most = now, max(most, now - done)
        assert 0 < most < 8 * SHARE


def test_constantly_changing_filters_do_not_prevent_a_match_from_finishing() -> None:
    with Bench() as bench:
        attacker = bench.attach().subscribe(*overlapping(200))
        other = bench.attach()
        attacker.send_bytes(fresh_topics(1))
        for _ in range(200):
            other.subscribe("a/#")
            other.send(wire.UNSUB, "a/#")
            bench.turn()
            if attacker.messages:
                break
        assert len(attacker.messages) == 1


def test_changes_of_unrelated_filters_do_not_affect_a_topic() -> None:
    with Bench() as bench:
        attacker = bench.attach().subscribe(*overlapping(300))
        other = bench.attach()
        attacker.send_bytes(fresh_topics(1))
        bench.settle()
        before = bench.stats()["work"]
        for _ in range(20):
            other.subscribe("elsewhere/#")
            other.send(wire.UNSUB, "elsewhere/#")
            attacker.send_bytes(fresh_topics(1))
            bench.settle()
        assert len(attacker.messages) == 21
        assert bench.stats()["work"] - before < 20 * 300  # less than one search of 300 filters for each message


def test_a_flood_of_small_frames_is_read_in_shares_without_loss() -> None:
    with Bench() as bench:
        beside = Beside(bench)
        attacker = bench.attach(hello=True)
        topics = [wire.encode_command(wire.PUB, f"t{number % 100}", b"") for number in range(4000)]
        attacker.send_bytes(b"".join(topics))
        assert messages_beside(beside, lambda: bench.stats()["published"] == 4000 + beside.sent) > 1
        assert bench.stats()["share_stops"] > 5


def test_a_topic_with_many_subscribers_does_not_delay_others() -> None:
    with Bench(max_connections=2000) as bench:
        beside = Beside(bench)
        crowd = [bench.attach().subscribe("wide", "too") for _ in range(600)]
        attacker = bench.attach()
        for _ in range(3):
            attacker.send_bytes(b"".join(wire.encode_command(wire.PUB, topic, b"x") for topic in ["wide", "too"] * 20))
        assert messages_beside(beside, lambda: all(len(client.messages) == 120 for client in crowd)) > 5


def test_a_queue_drop_scans_undroppable_messages_only_once() -> None:
    with Bench(subscriber_messages=100) as bench:
        slow, attacker = bench.attach(hello=True).subscribe("q0", "q1"), bench.attach()
        slow.stall()
        for _ in range(500):
            bench.core.reply(slow.conn, 0, 1, "")
        bench.settle()
        attacker.send_bytes(b"".join(wire.encode_command(wire.PUB, f"q{number & 1}", b"y") for number in range(100)))
        bench.settle()
        before = bench.stats()
        attacker.send_bytes(b"".join(wire.encode_command(wire.PUB, f"q{number & 1}", b"y") for number in range(1000)))
        bench.settle()
        after = bench.stats()
        assert after["dropped_queue_full"] - before["dropped_queue_full"] == 1000
        assert after["work"] - before["work"] < 20 * 1000


def test_closing_many_clients_with_many_filters_is_spread_over_turns() -> None:
    with Bench(max_connections=100) as bench:
        beside = Beside(bench)
        crowd = [bench.attach().subscribe(*overlapping(200, 20)) for _ in range(20)]
        before = bench.stats()
        for client in crowd:
            bench.core.close(client.conn)
        assert messages_beside(beside, lambda: len(bench.closed) == 20) > 3
        after = bench.stats()
        assert after["connections"] == before["connections"] - 20
        assert after["subscriptions"] == 1 and after["filters"] == 1


def test_ten_thousand_simultaneous_expiries_are_spread_over_turns() -> None:
    with Bench() as bench:
        beside = Beside(bench)
        attacker = bench.attach()
        for filter in ("t.0", "t.1"):  # alternating messages have separate entries
            bench.attach().subscribe(filter).stall()
        for number in range(10_000):
            attacker.publish(f"t.{number % 2}", b"x", ttl_ms=50)
        bench.settle()
        assert bench.stats()["queued_messages"] == 10_000
        bench.turn(60)
        assert bench.core.next_timer_ms() == 0  # some are left for the next turn
        assert beside.turns() <= FEW_TURNS
        bench.settle()
        assert bench.stats()["dropped_ttl"] == 10_000 and bench.stats()["queued_messages"] == 0


def held_back(bench: Bench, count: int) -> list[Client]:
    publishers = [bench.attach() for _ in range(count)]
    for number, publisher in enumerate(publishers):
        publisher.publish("t", b"%d" % number)
    bench.settle()
    return publishers


def test_many_blocked_publishers_resume_in_order_over_several_turns() -> None:
    with Bench(overflow_policy=Overflow.BLOCK, subscriber_messages=4) as bench:
        reader = bench.attach().subscribe("t")
        reader.stall()
        held_back(bench, 500)
        assert bench.stats()["blocked_publishers"] == 496
        pauses = bench.stats()["blocked_pauses"]
        reader.read()
        bench.settle()
        assert reader.payloads == [b"%d" % number for number in range(500)]
        assert bench.stats()["blocked_publishers"] == 0
        assert bench.stats()["blocked_pauses"] - pauses < 500 * 64 / 4


def test_a_full_group_blocks_publishers_until_a_member_has_room() -> None:
    with Bench(overflow_policy=Overflow.BLOCK, subscriber_messages=10) as bench:
        members = [bench.attach(hello=True), bench.attach(hello=True)]
        join(bench, members, "t")
        members[0].stall()
        publisher = bench.attach()
        for number in range(100):
            publisher.publish("t", b"%d" % number)
        bench.settle()
        assert bench.stats()["blocked_publishers"] == 0
        assert bench.stats()["queued_messages"] == 10  # one member is full, the other got all the rest
        assert len(members[1].messages) == 90
        members[1].stall()
        for number in range(100, 200):
            publisher.publish("t", b"%d" % number)
        bench.settle()
        stats = bench.stats()
        assert stats["blocked_publishers"] == 1 and stats["queued_messages"] == 20 and stats["dropped_queue_full"] == 0
        members[0].read()
        members[1].read()
        bench.settle()
        got = sorted(int(payload) for member in members for payload in member.payloads)
        assert got == list(range(200)) and conserved(bench.stats())


def test_publishers_to_a_full_group_resume_when_a_member_joins_or_leaves() -> None:
    for leaves in (False, True):
        with Bench(overflow_policy=Overflow.BLOCK, subscriber_messages=5) as bench:
            full = bench.attach(hello=True)
            join(bench, [full], "t")
            full.stall()
            publisher = bench.attach()
            for number in range(20):
                publisher.publish("t", b"%d" % number)
            bench.settle()
            assert bench.stats()["blocked_publishers"] == 1
            if leaves:
                bench.close(full)
            else:
                other = bench.attach(hello=True)
                join(bench, [other], "t")
                assert len(other.messages) == 15
            assert bench.stats()["blocked_publishers"] == 0


@pytest.mark.parametrize("policy", [Overflow.DROP_OLDEST, Overflow.DROP_NEW])
def test_a_full_group_with_a_drop_policy_drops_and_counts(policy: Overflow) -> None:
    with Bench(overflow_policy=policy, subscriber_messages=5) as bench:
        full = bench.attach(hello=True)
        join(bench, [full], "t")
        full.stall()
        publisher = bench.attach()
        for number in range(20):
            publisher.publish("t", b"%d" % number)
        bench.settle()
        stats = bench.stats()
        assert stats["queued_messages"] == 5 and stats["dropped_queue_full"] == 15 and conserved(stats)


def join(bench: Bench, members: list[Client], filter: str) -> None:
    for member in members:
        bench.core.subscribe(member.conn, 9, filter, group="workers")
    bench.settle()


def test_a_full_group_of_thousands_is_searched_once_and_the_search_is_counted(tmp_path: Path) -> None:
    with WalBench(tmp_path, BIG, max_connections=3000, max_in_flight=1, ring_bytes=1 << 22) as bench:
        writer = bench.attach(hello=True)
        members = {count: [bench.attach(hello=True) for _ in range(count)] for count in (2, MEMBERS)}
        works = []
        for count, group in members.items():
            for member in group:
                member.send(wire.SUB, f"jobs/{count}", qos=1, group="workers")
            bench.until(lambda group=group: all(member.subacks for member in group))
            bench.published(writer, f"jobs/{count}", count)
            bench.until(lambda group=group: all(member.messages for member in group))
            before = bench.stats()["work"]
            bench.published(writer, f"jobs/{count}", 200)
            works.append(bench.stats()["work"] - before)
        few, many = works
        assert MEMBERS / 8 < many - few < MEMBERS, "one walk over all members, not one for each message"

        first = members[MEMBERS][0]
        first.send(wire.ACK, seq=first.messages[0].id)
        bench.until(lambda: len(first.messages) == 2)


def test_a_window_pending_for_a_member_is_sent_in_parts(tmp_path: Path) -> None:
    with WalBench(tmp_path, BIG, max_in_flight=WINDOW, ring_bytes=1 << 22) as bench:
        busy, writer = bench.attach(hello=True), bench.attach(hello=True)
        bench.subscribed(busy, "jobs", group="workers")
        busy.stall()
        bench.published(writer, "jobs", WINDOW)
        fresh = bench.attach(hello=True)
        bench.subscribed(fresh, "jobs", group="workers")
        beside = Beside(bench)
        bench.core.close(busy.conn)
        assert messages_beside(beside, lambda: len(fresh.messages) == WINDOW) > 2
