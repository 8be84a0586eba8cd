"""The core with its WAL, stepped by hand: limits of QoS 1 consumers, a slow disk, expired messages.

Invariant: no test waits for a clock. Time passes only when a test advances it, and the tests wait for the disk to
answer.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stepped import Bench, Client, Overflow, conserved

from blipmq.native.config import WalConfig
from blipmq.native.events import Event, Sub, Unsub
from blipmq.wire import frames as wire

WAL = WalConfig(max_bytes=1 << 20, reserve_bytes=0, segment_bytes=16 << 10, batch_bytes=4 << 10)
WAITS_MAX = 20_000


class WalBench(Bench):
    """A bench whose core has a WAL in `directory`; subscriptions are created on request, under the name of the
    client."""

    def __init__(self, directory: Path, log: WalConfig = WAL, **limits: Any) -> None:
        super().__init__(**limits)
        self.names: dict[int, str] = {}
        self.core.open_wal(str(directory), log)

    def named(self, name: str) -> Client:
        client = self.attach(hello=True)
        self.names[client.conn] = name
        return client

    def answer(self, event: Event) -> None:
        if isinstance(event, Sub):
            self.core.subscribe(
                event.conn,
                event.seq,
                event.filter,
                qos=event.qos,
                durable=event.durable,
                client_id=self.names.get(event.conn, ""),
                group=event.group,
            )
        elif isinstance(event, Unsub):
            name = "" if event.keep_durable else self.names.get(event.conn, "")
            self.core.unsubscribe(event.conn, event.seq, event.filter, name, event.group)
        else:
            super().answer(event)

    def until(self, happened: Callable[[], object], advance_ms: int = 0) -> None:
        """Run turns, waiting for the disk in between, until the condition holds."""
        for _ in range(WAITS_MAX):
            self.turn(advance_ms)
            if happened():
                return
            self.core.wait(1)
        raise AssertionError("it did not happen")

    def subscribed(self, client: Client, filter: str, **fields: Any) -> None:
        before = len(client.subacks)
        client.send(wire.SUB, filter, qos=1, **fields)
        self.until(lambda: len(client.subacks) > before)

    def published(self, client: Client, topic: str, count: int, payload: bytes = b"x", ttl_ms: int = 0) -> None:
        """Publish with QoS 1 and get an answer to each."""
        before = len(client.replies)
        for seq in range(count):
            client.send(wire.PUB, topic, payload, qos=1, seq=1000 + seq, ttl_ms=ttl_ms)
        self.until(lambda: len(client.replies) == before + count)


def test_a_consumer_over_the_limit_is_answered_429_until_one_ends(tmp_path: Path) -> None:
    with WalBench(tmp_path, max_sessions=1) as bench:
        client = bench.named("one")
        bench.subscribed(client, "a")
        client.send(wire.SUB, "b", qos=1, seq=7)
        bench.until(lambda: client.replies)
        assert client.replies.pop().code == 429
        client.send(wire.UNSUB, "a", seq=8)
        bench.until(lambda: client.replies)
        assert client.replies.pop().code == 0
        bench.subscribed(client, "b")


def test_grown_consumer_tables_find_all_consumers_also_after_a_restart(tmp_path: Path) -> None:
    kinds: list[dict[str, Any]] = [{}, {"durable": True}, {"group": "g"}, {"durable": True, "group": "h"}]
    filters = [f"place/{number}" for number in range(60)]
    with WalBench(tmp_path) as bench:
        for name in ("one", "two"):
            client = bench.named(name)
            for fields in kinds:
                for _ in range(2):  # the second time each exists already
                    for filter in filters:
                        bench.subscribed(client, filter, **fields)
        # one and two have a subscription each, which became durable; they share the group subscriptions
        assert bench.stats()["sessions"] == (2 + 1 + 1) * len(filters)
        bench.until(lambda: bench.stats()["log_next_lsn"] - 1 == bench.stats()["log_durable_lsn"])
    with WalBench(tmp_path) as bench:
        assert bench.stats()["sessions"] == (2 + 1) * len(filters)
        for name in ("one", "two"):
            client = bench.named(name)
            for fields in (kinds[1], kinds[3]):
                for filter in filters:
                    bench.subscribed(client, filter, **fields)
        assert bench.stats()["sessions"] == (2 + 1) * len(filters)
        for filter in filters[::2]:
            client.send(wire.UNSUB, filter, seq=1)
            bench.settle()
        bench.until(lambda: len(client.replies) == len(filters) // 2)
        for filter in filters:
            bench.subscribed(client, filter, durable=True)
        assert {reply.code for reply in client.replies} == {0}


def test_qos_1_without_a_wal_is_refused_by_the_core_too() -> None:
    with Bench() as bench:
        client = bench.attach(hello=True)
        bench.core.subscribe(client.conn, 5, "a", qos=1, client_id="one")
        bench.settle()
        assert [(reply.seq, reply.code) for reply in client.replies] == [(5, 503)] and client.subacks == []


def test_a_non_durable_consumer_has_an_ordinary_subscriber_queue(tmp_path: Path) -> None:
    with WalBench(tmp_path, max_in_flight=2) as bench:
        reader, writer = bench.named("reader"), bench.named("writer")
        bench.subscribed(reader, "a")
        bench.published(writer, "a", 900)
        assert len(reader.messages) == 2
        while (seen := len(reader.messages)) < 900:
            for message in reader.messages[seen - 2 :]:
                reader.send(wire.ACK, seq=message.id)
            bench.until(lambda: len(reader.messages) > seen)
        assert [message.id for message in reader.messages] == sorted(message.id for message in reader.messages)
        assert bench.stats()["dropped_queue_full"] == 0


def test_a_non_durable_consumer_with_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    with WalBench(tmp_path, max_in_flight=2, subscriber_messages=4) as bench:
        reader, writer = bench.named("reader"), bench.named("writer")
        bench.subscribed(reader, "a")
        bench.published(writer, "a", 9)
        bench.until(lambda: len(reader.messages) == 2)  # in flight; two more are queued in the window
        assert bench.stats()["dropped_queue_full"] == 5
        for message in list(reader.messages):
            reader.send(wire.ACK, seq=message.id)
        bench.until(lambda: len(reader.messages) == 4)
        assert [message.id for message in reader.messages] == sorted(message.id for message in reader.messages)


def test_a_grown_in_flight_table_finds_every_acknowledged_message(tmp_path: Path) -> None:
    with WalBench(tmp_path, max_in_flight=1000) as bench:
        reader, writer = bench.named("reader"), bench.named("writer")
        bench.subscribed(reader, "a")
        bench.published(writer, "a", 700)
        bench.until(lambda: len(reader.messages) == 700)
        assert bench.stats()["in_flight"] == 700
        for message in reader.messages:
            reader.send(wire.ACK, seq=message.id)
        bench.until(lambda: bench.stats()["acked"] == 700)
        assert bench.stats()["in_flight"] == 0 and conserved(bench.stats())


def test_a_message_that_expires_in_flight_is_not_redelivered(tmp_path: Path) -> None:
    with WalBench(tmp_path, ack_timeout_ms=1000) as bench:
        reader, writer = bench.named("reader"), bench.named("writer")
        bench.subscribed(reader, "a")
        bench.published(writer, "a", 1, ttl_ms=1500)
        bench.until(lambda: len(reader.messages) == 1)
        bench.until(lambda: bench.stats()["dropped_ttl"] == 1, advance_ms=500)
        assert bench.stats()["in_flight"] == 0 and conserved(bench.stats())


def test_an_expired_message_is_not_read_back_from_the_wal(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        reader, writer = bench.named("reader"), bench.named("writer")
        bench.subscribed(reader, "a", durable=True)
        bench.close(reader)
        bench.published(writer, "a", 3, b"old", ttl_ms=1000)
        bench.published(writer, "a", 2, b"young", ttl_ms=60_000)
        bench.settle(advance_ms=2000)
        again = bench.named("reader")
        bench.subscribed(again, "a", durable=True)
        bench.until(lambda: len(again.messages) == 2)
        assert again.payloads == [b"young"] * 2 and bench.stats()["dropped_ttl"] == 3


def test_a_publisher_faster_than_the_disk_is_paused_and_loses_nothing(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        reader, writer = bench.named("reader"), bench.named("writer")
        bench.subscribed(reader, "a")
        frame = b"".join(wire.encode_command(wire.PUB, "a", bytes(900), qos=1, seq=1 + seq) for seq in range(60))
        writer.send_bytes(frame)  # many batches of the WAL at once
        bench.until(lambda: len(writer.replies) == 60)
        assert [reply.seq for reply in writer.replies] == list(range(1, 61)) and {r.code for r in writer.replies} == {0}
        bench.until(lambda: len(reader.messages) == 60)


def test_a_qos_1_publish_to_a_full_blocking_subscriber_is_answered_503(tmp_path: Path) -> None:
    with WalBench(tmp_path, overflow_policy=Overflow.BLOCK, subscriber_messages=2) as bench:
        reader, writer = bench.attach().subscribe("a"), bench.named("writer")
        reader.stall()
        bench.published(writer, "a", 2)
        assert {reply.code for reply in writer.replies} == {0}
        bench.published(writer, "a", 1)
        assert writer.replies[-1].code == 503 and "block" in writer.replies[-1].message


def test_a_message_too_large_for_the_wal_is_refused_and_the_connection_stays_open(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        writer = bench.named("writer")
        bench.published(writer, "a", 1, bytes(8000))
        assert writer.replies[-1].code == 503 and "too large for the WAL" in writer.replies[-1].message
        bench.published(writer, "a", 1)
        assert writer.replies[-1].code == 0


def test_messages_queued_behind_a_failed_commit_are_delivered_and_counted(tmp_path: Path) -> None:
    with WalBench(tmp_path / "log") as bench:
        reader, writer = bench.attach(hello=True).subscribe("b"), bench.named("writer")
        bench.published(writer, "a", 1)
        shutil.rmtree(tmp_path / "log")  # later syncs write to deleted files
        writer.send_bytes(
            wire.encode_command(wire.PUB, "a", b"QoS 1", qos=1, seq=5)
            + b"".join(wire.encode_command(wire.PUB, "b", b"QoS 0") for _ in range(5))
        )
        bench.until(lambda: writer.replies[-1].seq == 5)
        assert writer.replies[-1].code == 503
        bench.until(lambda: len(reader.messages) == 5)
        assert bench.stats()["enqueued"] == 5 and conserved(bench.stats())


@pytest.mark.parametrize("kind", [{}, {"group": "g"}], ids=["alone", "group"])
def test_a_subscription_whose_commit_fails_delivers_nothing(tmp_path: Path, kind: dict[str, Any]) -> None:
    with WalBench(tmp_path / "log") as bench:
        reader, writer = bench.named("reader"), bench.named("writer")
        bench.published(writer, "a", 1)
        shutil.rmtree(tmp_path / "log")  # later syncs write to deleted files
        reader.send(wire.SUB, "b", qos=1, durable=True, seq=5, **kind)
        bench.until(lambda: reader.replies)
        assert (reader.replies[-1].seq, reader.replies[-1].code) == (5, 503)
        writer.publish("b", b"QoS 0")
        bench.settle()
        stats = bench.stats()
        assert not reader.messages and (stats["sessions"], stats["subscriptions"], stats["unrouted"]) == (0, 0, 2)


def test_messages_pending_at_the_stop_deadline_are_counted_as_unsent(tmp_path: Path) -> None:
    with WalBench(tmp_path, WAL._replace(flush_interval_ms=1000)) as bench:
        reader, writer = bench.attach(hello=True).subscribe("b"), bench.named("writer")
        writer.send(wire.PUB, "a", b"QoS 1", qos=1, seq=5)
        for _ in range(5):
            writer.send(wire.PUB, "b", b"QoS 0")
        bench.settle()
        assert bench.stats()["held"] == 6 and not reader.messages
        bench.core.stop(0)
        bench.until(lambda: bench.stopped)
        assert bench.stopped is not None and bench.stopped.unflushed == 5


def test_a_full_wal_writes_no_useless_checkpoint(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        away, publisher = bench.named("away"), bench.named("publisher")
        bench.subscribed(away, "t", durable=True)
        bench.close(away)
        while not any(reply.code == 503 for reply in publisher.replies):
            bench.published(publisher, "t", 20, bytes(1000))
        generations = []
        for _ in range(60):
            bench.turn(100)  # twice the interval in which a full WAL tries a checkpoint
            bench.core.wait(1)
            generations.append(max((int(file.stem[-10:]) for file in tmp_path.glob("checkpoint-*.ckp")), default=0))
        bench.published(publisher, "t", 1, bytes(1000))
        assert publisher.replies[-1].code == 503
        assert generations[-1] - generations[0] <= 4, generations


def test_a_message_that_expires_while_pending_on_disk_is_dropped_and_counted(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        durable, plain, publisher = bench.named("durable"), bench.named("plain"), bench.named("publisher")
        bench.subscribed(durable, "t", durable=True)
        plain.send(wire.SUB, "t")
        bench.settle()
        publisher.send(wire.PUB, "t", b"late", qos=1, seq=1, ttl_ms=500)
        publisher.send(wire.PUB, "t", b"behind it", ttl_ms=500)
        bench.turn()  # to the WAL
        bench.turn(1_000)
        bench.until(lambda: publisher.replies)
        bench.published(publisher, "t", 1, b"in time")
        bench.settle()
        assert durable.payloads == plain.payloads == [b"in time"]
        assert bench.stats()["dropped_ttl"] == 4 and conserved(bench.stats())


@pytest.mark.parametrize("policy", [Overflow.DROP_OLDEST, Overflow.DROP_NEW])
def test_readers_with_qos_0_lose_nothing_of_a_commit_larger_than_their_queues(tmp_path: Path, policy: Overflow) -> None:
    """Consumers get each message once, although a full queue interrupts the dispatch of a message."""
    with WalBench(tmp_path, subscriber_messages=4, overflow_policy=policy) as bench:
        plain, other, publisher, durable = (bench.named(name) for name in ("plain", "other", "publisher", "durable"))
        members = [bench.named(f"member{number}") for number in range(3)]
        bench.subscribed(durable, "t", durable=True)
        for client, fields in [(plain, {}), (other, {}), *((member, {"group": "g"}) for member in members)]:
            client.send(wire.SUB, "t", **fields)
        bench.settle()
        payloads = [b"%d" % number for number in range(100)]
        publisher.send_bytes(
            b"".join(wire.encode_command(wire.PUB, "t", payload, qos=1, seq=1) for payload in payloads)
        )
        acknowledged = 0

        def all_acknowledged() -> bool:
            nonlocal acknowledged
            for message in durable.messages[acknowledged:]:
                durable.send(wire.ACK, seq=message.id)
            acknowledged = len(durable.messages)
            return acknowledged == len(payloads)

        bench.until(all_acknowledged)
        bench.settle()
        assert durable.payloads == plain.payloads == other.payloads == payloads
        assert sorted(int(payload) for member in members for payload in member.payloads) == list(range(100))
        stats = bench.stats()
        assert stats["dropped_queue_full"] == stats["redelivered"] == 0 and conserved(stats)
