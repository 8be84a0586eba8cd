"""Dead letters of the core: their content, and the removal of poison messages from a full, small or crashing WAL.

Invariant: no test waits for a clock. Time passes only when a test advances it, and the tests wait for the disk to
answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import schema
from killed import as_killed
from stepped import Client, conserved
from test_core_backlog import LARGE, absent, back
from test_core_log import WAL, WalBench

from blipmq.native.config import WalConfig
from blipmq.wire import frames as wire

SMALL = WalConfig(max_bytes=512 << 10, reserve_bytes=0, segment_bytes=64 << 10, batch_bytes=16 << 10)
QUICK: dict[str, Any] = {"ack_timeout_ms": 100, "max_deliveries": 2}
TICK_MS = 50
PATIENCE_MS = 30_000


def test_a_dead_letter_is_the_unchanged_message_with_the_reason_as_properties(tmp_path: Path) -> None:
    with WalBench(tmp_path, **QUICK) as bench:
        collector, at_qos0, worker = bench.named("collector"), bench.named("at_qos0"), bench.named("worker")
        bench.subscribed(collector, "$dlq/#")
        at_qos0.subscribe("$dlq/#")
        bench.subscribed(worker, "jobs/heavy")
        bench.published(bench.named("writer"), "jobs/heavy", 1, b"\xff\0poison")
        bench.until(lambda: collector.messages and at_qos0.messages, TICK_MS)
        about = {
            "reason": "max_deliveries",
            "topic": "jobs/heavy",
            "id": str(worker.messages[0].id),
            "deliveries": "2",
        }
        for reader, qos in (collector, 1), (at_qos0, 0):
            letter = reader.messages[0]
            assert (letter.topic, letter.payload, letter.qos) == ("$dlq/jobs/heavy", b"\xff\0poison", qos)
            assert letter.headers == about and list(letter.headers) == list(about)
            assert letter.id > worker.messages[0].id
        assert worker.messages[0].headers == {} and worker.messages[0].properties == b""
        assert bench.stats()["dead_letters_unclaimed"] == 0


def test_the_reference_reader_decodes_a_dead_letter_alike(tmp_path: Path) -> None:
    with WalBench(tmp_path, **QUICK) as bench:
        collector, worker = bench.named("collector"), bench.named("worker")
        bodies: list[bytes] = []
        arrived = collector.arrived
        collector.arrived = lambda data: (bodies.append(data), arrived(data))[1]  # type: ignore[method-assign]
        bench.subscribed(collector, "$dlq/#")
        for size in range(9):
            bench.subscribed(worker, "t" * (size + 1))
            bench.published(bench.named("writer"), "t" * (size + 1), 1, bytes(size))
        bench.until(lambda: len(collector.messages) >= 9, TICK_MS)
        stream = b"".join(bodies)
        letters = []
        while stream:
            end = 4 + int.from_bytes(stream[:4], "big")
            if stream[4] == 1:
                letters.append(schema.decode("Message", stream[5:end]))
            stream = stream[end:]
        read = [(m.id, m.payload, m.timestamp_ms, m.ttl_ms, m.topic, m.qos, m.properties) for m in collector.messages]
        assert [
            (v["id"], v["payload"] or b"", v["timestamp"], v["ttl_ms"], v["topic"].decode(), v["qos"], v["properties"])
            for v in letters
        ] == read


@pytest.mark.parametrize("topic", ["t" * 256, "é" * 128, "a/" + "ü" * 127, "t" * 251])
def test_a_long_dead_letter_topic_is_cut_and_its_property_is_complete(tmp_path: Path, topic: str) -> None:
    with WalBench(tmp_path, **QUICK) as bench:
        collector, worker = bench.named("collector"), bench.named("worker")
        bench.subscribed(collector, "$dlq/#")
        bench.subscribed(worker, topic)
        bench.published(bench.named("writer"), topic, 1)
        bench.until(lambda: collector.messages, TICK_MS)
        (letter,) = collector.messages[:1]
        assert letter.headers["topic"] == topic
        whole = "$dlq/" + topic
        assert whole.startswith(letter.topic) and 255 <= len(letter.topic.encode()) <= 256


def test_a_dead_letter_is_read_back_from_the_wal_with_all_properties(tmp_path: Path) -> None:
    with WalBench(tmp_path, LARGE, max_frame_bytes=2 << 20, **QUICK) as bench:
        absent(bench, "collector", "$dlq/#")
        worker = back(bench, "worker", "big")
        bench.published(bench.named("writer"), "big", 1, bytes(1_500_000))
        bench.until(lambda: bench.stats()["dead_lettered"] == 1, TICK_MS)
        first = worker.messages[0].id
    with WalBench(tmp_path, LARGE, **QUICK) as bench:
        collector = back(bench, "collector", "$dlq/#")
        bench.until(lambda: collector.messages)
        letter = collector.messages[0]
        assert letter.payload == bytes(1_500_000)
        assert letter.headers == {"reason": "max_deliveries", "topic": "big", "id": str(first), "deliveries": "2"}


def test_a_dead_letter_without_subscriber_is_counted_and_not_stored(tmp_path: Path) -> None:
    with WalBench(tmp_path, **QUICK) as bench:
        back(bench, "worker")
        bench.published(bench.named("writer"), "a", 5)
        bench.until(lambda: bench.stats()["acked"] + bench.stats()["dead_lettered"] == 5, TICK_MS)
        stats = bench.stats()
        assert stats["dead_letters_unclaimed"] == 5 and stats["published"] == 5 and conserved(stats)


def test_unacknowledged_dead_letters_are_settled_and_counted(tmp_path: Path) -> None:
    with WalBench(tmp_path, **QUICK) as bench:
        collector = back(bench, "collector", "$dlq/#")
        back(bench, "worker")
        bench.published(bench.named("writer"), "a", 5)
        bench.until(lambda: bench.stats()["dead_lettered"] == 10, TICK_MS)
        assert len(collector.messages) == 10 and bench.stats()["in_flight"] == 0 and conserved(bench.stats())


SLOW = WAL._replace(flush_interval_ms=1000)


def pending_dead_letter(bench: WalBench) -> Client:
    """A worker whose message was given up, and whose dead letter is pending on a slow disk."""
    collector, worker, writer = bench.named("collector"), bench.named("worker"), bench.named("writer")
    bench.subscribed(collector, "$dlq/#")
    bench.subscribed(worker, "a")
    writer.send(wire.PUB, "a", b"poison", qos=1, seq=9)
    bench.until(lambda: writer.replies, 100)
    bench.until(lambda: len(worker.messages) == 2, TICK_MS)
    bench.until(lambda: bench.stats()["held"] == 1, TICK_MS)
    return worker


def test_an_acknowledgement_during_the_dead_letter_write_settles_once(tmp_path: Path) -> None:
    with WalBench(tmp_path, SLOW, **QUICK) as bench:
        worker = pending_dead_letter(bench)
        worker.send(wire.ACK, seq=worker.messages[0].id)
        bench.until(lambda: bench.stats()["held"] == 0, 100)
        assert bench.stats()["acked"] == 1 and bench.stats()["dead_lettered"] == 0 and conserved(bench.stats())


def test_a_disconnect_during_the_dead_letter_write_is_harmless(tmp_path: Path) -> None:
    with WalBench(tmp_path, SLOW, **QUICK) as bench:
        bench.close(pending_dead_letter(bench))
        bench.until(lambda: bench.stats()["held"] == 0, 100)
        assert bench.stats()["in_flight"] == 1  # that of the dead letter subscriber


def filled(bench: WalBench, writer: Client, topic: str, payload: bytes) -> int:
    """Publish until the WAL is full. Returns the number of accepted messages."""
    before = len(writer.replies)
    while True:
        bench.published(writer, topic, 5 if len(payload) > 1000 else 200, payload)
        codes = [reply.code for reply in writer.replies[before:]]
        assert set(codes) <= {0, 503}
        if codes[-1]:
            return codes.count(0)


def publishes_again(bench: WalBench, writer: Client) -> bool:
    bench.published(writer, "other", 1)
    return writer.replies[-1].code == 0


@pytest.mark.parametrize("size", [0, 20, 300, 2000, 7000])
def test_a_wal_full_of_poison_messages_drains_into_dead_letters(tmp_path: Path, size: int) -> None:
    """Each dead letter needs space that only dead letters can free."""
    with WalBench(tmp_path, SMALL, max_in_flight=64, **QUICK) as bench:
        collector, worker, writer = back(bench, "collector", "$dlq/#"), back(bench, "worker"), bench.named("writer")
        taken = filled(bench, writer, "a", bytes(size))
        seen, about = 0, set[str]()

        def empty() -> bool:
            nonlocal seen
            for message in collector.messages[seen:]:
                collector.send(wire.ACK, seq=message.id)
                about.add(message.headers["id"])
            seen = len(collector.messages)
            return len(about) >= taken

        bench.until(empty, TICK_MS)
        assert about == {str(message.id) for message in worker.messages}
        bench.until(lambda: publishes_again(bench, writer), TICK_MS)
        stats = bench.stats()
        assert stats["dead_letters_dropped"] == stats["dead_letters_unclaimed"] == 0
        assert stats["log_bytes"] <= SMALL.max_bytes


LOWERED = SMALL._replace(max_bytes=SMALL.max_bytes // 2)


def poisoned(path: Path, *others: str) -> int:
    """A WAL full of messages for an absent worker, and for others. Returns their number."""
    with WalBench(path, SMALL) as bench:
        absent(bench, "collector", "$dlq/#")
        for name in ("worker", *others):
            absent(bench, name)
        return filled(bench, bench.named("writer"), "a", bytes(2000))


def test_the_oldest_dead_letters_are_dropped_and_counted_in_a_full_wal(tmp_path: Path) -> None:
    taken = poisoned(tmp_path)
    with WalBench(tmp_path, LOWERED, max_in_flight=64, **QUICK) as bench:
        writer = bench.named("writer")
        assert not publishes_again(bench, writer)
        collector, _ = back(bench, "collector", "$dlq/#"), back(bench, "worker")
        seen, about = 0, set[str]()
        begun_ms = bench.now_ms
        bench.until(lambda: bench.stats()["dead_letters_dropped"], TICK_MS)
        assert bench.now_ms - begun_ms >= PATIENCE_MS, "a log that was full before the first letter is given time too"

        def over() -> bool:
            nonlocal seen
            for message in collector.messages[seen:]:
                collector.send(wire.ACK, seq=message.id)
                about.add(message.headers["id"])
            seen = len(collector.messages)
            return len(about) + bench.stats()["dead_letters_dropped"] == taken

        bench.until(over, TICK_MS)
        assert 0 < bench.stats()["dead_letters_dropped"] < taken
        bench.until(lambda: publishes_again(bench, writer), TICK_MS)
        assert conserved(bench.stats())


def test_no_dead_letter_is_dropped_when_another_subscription_fills_the_wal(tmp_path: Path) -> None:
    poisoned(tmp_path, "forgotten")
    with WalBench(tmp_path, LOWERED, max_in_flight=64, **QUICK) as bench:
        back(bench, "collector", "$dlq/#")
        back(bench, "worker")
        bench.until(lambda: bench.stats()["log_state"] == 2, TICK_MS)  # the first dead letter was refused
        for _ in range(1200):
            bench.turn(100)  # two minutes
            bench.core.wait(0)
        stats = bench.stats()
        assert stats["dead_letters_dropped"] == 0 and stats["log_state"] == 2


def fetch_all(bench: WalBench, reader: Client, count: int) -> None:
    """Receive and acknowledge `count` messages."""
    seen = 0

    def caught_up() -> bool:
        nonlocal seen
        for message in reader.messages[seen:]:
            reader.send(wire.ACK, seq=message.id)
        seen = len(reader.messages)
        return seen >= count

    bench.until(caught_up)


def test_one_poison_message_does_not_keep_a_wal_full(tmp_path: Path) -> None:
    with WalBench(tmp_path, SMALL, **QUICK) as bench:
        back(bench, "collector", "$dlq/#")
        back(bench, "worker", "poison")
        absent(bench, "reader")
        writer = bench.named("writer")
        bench.published(writer, "poison", 1)
        taken = filled(bench, writer, "a", bytes(4000))
        fetch_all(bench, back(bench, "reader"), taken)
        bench.until(lambda: publishes_again(bench, writer), TICK_MS)


def test_dead_letters_of_the_subscription_that_fills_the_wal_are_dropped_first(tmp_path: Path) -> None:
    with WalBench(tmp_path, SMALL, **QUICK) as bench:
        back(bench, "collector", "$dlq/#")
        idle, writer = bench.named("idle"), bench.named("writer")
        for number in range(12):
            bench.subscribed(idle, "n", group=f"group-{number}")
        back(bench, "worker", "poison")
        absent(bench, "reader")
        bench.published(writer, "n", 20, bytes(4000))  # 240 dead letters, in front of the one of the durable worker
        bench.published(writer, "poison", 1)
        taken = filled(bench, writer, "a", bytes(4000))
        fetch_all(bench, back(bench, "reader"), taken)
        bench.until(lambda: publishes_again(bench, writer), TICK_MS)
        assert bench.stats()["dead_letters_dropped"] == 0 and conserved(bench.stats())


def test_a_poison_message_over_the_current_limit_becomes_a_dead_letter(tmp_path: Path) -> None:
    with WalBench(tmp_path, LARGE, max_frame_bytes=2 << 20) as bench:
        absent(bench, "collector", "$dlq/#")
        absent(bench, "worker")
        bench.published(bench.named("writer"), "a", 1, bytes(1_000_000))
    lowered = WalConfig(max_bytes=32 << 20, reserve_bytes=0, segment_bytes=64 << 10, batch_bytes=8 << 10)
    with WalBench(tmp_path, lowered, max_frame_bytes=2048, **QUICK) as bench:
        back(bench, "worker")
        collector = back(bench, "collector", "$dlq/#")
        bench.until(lambda: collector.messages, TICK_MS)
        assert collector.messages[0].payload == bytes(1_000_000) and bench.stats()["dead_letters_dropped"] == 0


def test_after_a_kill_with_lowered_limits_the_last_message_remains(tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    with WalBench(tmp_path / "log", LARGE, max_frame_bytes=2 << 20) as bench:
        absent(bench, "reader")
        bench.published(bench.named("writer"), "a", 2, bytes(1_000_000))
        as_killed(tmp_path / "log", killed)
    tiny = WalConfig(max_bytes=4 << 20, reserve_bytes=0, segment_bytes=64 << 10, batch_bytes=8 << 10)
    for _ in range(2):  # the second start reads the records that the first one carried over
        with WalBench(killed, tiny, max_frame_bytes=2048) as bench:
            reader = back(bench, "reader")
            bench.until(lambda: len(reader.messages) == 2)  # noqa: B023
            assert [len(payload) for payload in reader.payloads] == [1_000_000] * 2
            assert bench.stats()["lost_lsns"] == 0


def test_a_dead_letter_too_large_for_the_wal_is_dropped_and_counted(tmp_path: Path) -> None:
    with WalBench(tmp_path, LARGE, max_frame_bytes=2 << 20) as bench:
        absent(bench, "collector", "$dlq/#")
        absent(bench, "worker")
        bench.published(bench.named("writer"), "a", 1, bytes(1_000_000))
    tiny = WalConfig(max_bytes=1 << 20, reserve_bytes=0, segment_bytes=64 << 10, batch_bytes=8 << 10)
    with WalBench(tmp_path, tiny, max_frame_bytes=2048, **QUICK) as bench:
        back(bench, "collector", "$dlq/#")
        back(bench, "worker")
        bench.until(lambda: bench.stats()["dead_letters_dropped"] == 1, TICK_MS)
        assert bench.stats()["dead_lettered"] == 1 and conserved(bench.stats())


def test_a_message_is_not_settled_before_its_dead_letter_is_on_disk(tmp_path: Path) -> None:
    """Otherwise a checkpoint could record it as settled, and a power cut could lose the dead letter."""
    with WalBench(tmp_path, SLOW, **QUICK) as bench:
        pending_dead_letter(bench)
        before = bench.stats()
        assert before["dead_lettered"] == 0 and before["in_flight"] == 1
        assert before["log_durable_lsn"] < before["log_next_lsn"] - 1
        bench.until(lambda: bench.stats()["held"] == 0, 100)
        after = bench.stats()
        assert after["dead_lettered"] == 1 and after["log_durable_lsn"] == after["log_next_lsn"] - 1
