"""Backlog reads from the WAL, for messages that did not fit the windows of durable subscriptions: how often, how much,
for which consumer.

Invariant: no test waits for a clock. Time passes only when a test advances it, and the tests wait for the disk to
answer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from stepped import Client, conserved
from test_core_log import WalBench

from blipmq.native.config import WalConfig
from blipmq.wire import frames as wire

READERS = 8  # WAL_READS_MAX of wal/wal.h
HOLD_MS = 250
WIDE = WalConfig(max_bytes=16 << 20, reserve_bytes=0, segment_bytes=64 << 10, batch_bytes=16 << 10)
LARGE = WalConfig(max_bytes=32 << 20, reserve_bytes=0, segment_bytes=8 << 20, batch_bytes=4 << 20)


def absent(bench: WalBench, name: str, filter: str = "a") -> None:
    """A durable subscription of an absent client."""
    client = bench.named(name)
    bench.subscribed(client, filter, durable=True)
    bench.close(client)


def back(bench: WalBench, name: str, filter: str = "a") -> Client:
    client = bench.named(name)
    bench.subscribed(client, filter, durable=True)
    return client


def acknowledge(client: Client, done: dict[Client, int]) -> None:
    for message in client.messages[done.get(client, 0) :]:
        client.send(wire.ACK, seq=message.id)
    done[client] = len(client.messages)


def drained(bench: WalBench, clients: list[Client], count: int, advance_ms: int = 0) -> None:
    """Each client acknowledges its messages until it has this many, once each and in order."""
    done: dict[Client, int] = {}

    def all_there() -> bool:
        for client in clients:
            acknowledge(client, done)
        return all(len(client.messages) >= count for client in clients)

    bench.until(all_there, advance_ms)
    for client in clients:
        ids = [message.id for message in client.messages]
        assert len(ids) == count and ids == sorted(set(ids))


def test_a_backlog_is_read_once_for_any_window_size(tmp_path: Path) -> None:
    with WalBench(tmp_path, max_in_flight=2) as bench:
        absent(bench, "reader")
        bench.published(bench.named("writer"), "a", 4000, bytes(64))
        written = bench.stats()["log_written_bytes"]
        drained(bench, [back(bench, "reader")], 4000)
        stats = bench.stats()
        assert (
            0.9 * written < stats["log_read_bytes"] <= 1.1 * stats["log_written_bytes"]
        )  # it includes settled messages
        bench.until(lambda: conserved(bench.stats()) and bench.stats()["acked"] == 4000)
        bench.until(lambda: bench.stats()["sessions_behind"] == 0)
        assert bench.stats()["lost_lsns"] == 0


def test_consumers_with_a_backlog_read_the_wal_at_most_once_each(tmp_path: Path) -> None:
    with WalBench(tmp_path, max_in_flight=8) as bench:
        for number in range(5):
            absent(bench, f"reader{number}")
        bench.published(bench.named("writer"), "a", 3000, bytes(64))
        drained(bench, [back(bench, f"reader{number}") for number in range(5)], 3000)
        assert bench.stats()["log_read_bytes"] <= 1.1 * 5 * bench.stats()["log_written_bytes"]


def test_a_filter_with_few_matches_reads_the_wal_once(tmp_path: Path) -> None:
    with WalBench(tmp_path, max_in_flight=2) as bench:
        absent(bench, "reader", "rare")
        writer = bench.named("writer")
        for _ in range(30):
            bench.published(writer, "rare", 1)
            bench.published(writer, "often", 99, bytes(64))
        drained(bench, [back(bench, "reader", "rare")], 30)
        assert bench.stats()["log_read_bytes"] <= 1.1 * bench.stats()["log_written_bytes"]


def test_consumers_that_never_acknowledge_do_not_keep_a_wal_reader(tmp_path: Path) -> None:
    with WalBench(tmp_path, WIDE, max_in_flight=2, ack_timeout_ms=1 << 20) as bench:
        writer = bench.named("writer")
        for number in range(READERS):  # each with its own filter and far apart, so no two can share a block
            absent(bench, f"slow{number}", f"slow/{number}")
            bench.published(writer, f"slow/{number}", 300, bytes(1000))
        absent(bench, "quick")
        bench.published(writer, "a", 1000, bytes(64))
        slow = [back(bench, f"slow{number}", f"slow/{number}") for number in range(READERS)]
        bench.until(lambda: all(len(client.messages) == 2 for client in slow))
        quick = back(bench, "quick")
        drained(bench, [quick], 1000, advance_ms=HOLD_MS // 10)
        assert [len(client.messages) for client in slow] == [2] * READERS
        drained(bench, slow, 300, advance_ms=HOLD_MS // 10)  # no message was lost


def test_more_consumers_than_wal_readers_all_get_every_message(tmp_path: Path) -> None:
    with WalBench(tmp_path, WIDE, max_in_flight=2) as bench:
        writer, names = bench.named("writer"), [f"{number}" for number in range(3 * READERS)]
        for name in names:
            absent(bench, name, f"to/{name}")
        for name in names:
            bench.published(writer, f"to/{name}", 100, bytes(1000))
        drained(bench, [back(bench, name, f"to/{name}") for name in names], 100, advance_ms=10)
        bench.until(lambda: bench.stats()["sessions_behind"] == 0, advance_ms=10)


@pytest.mark.parametrize("size", [100_000, 700_000, 1_900_000])
def test_a_stored_message_over_the_current_limit_is_delivered_with_those_behind_it(tmp_path: Path, size: int) -> None:
    with WalBench(tmp_path, LARGE, max_frame_bytes=2 << 20) as bench:
        absent(bench, "reader")
        writer = bench.named("writer")
        for payload in (b"first", bytes(size), b"third", b"fourth"):
            bench.published(writer, "a", 1, payload)
    with WalBench(tmp_path, max_frame_bytes=4096, subscriber_bytes=8192) as bench:
        reader = back(bench, "reader")
        drained(bench, [reader], 4)
        assert [len(payload) for payload in reader.payloads] == [5, size, 5, 6]
        assert bench.stats()["log_read_failures"] == bench.stats()["sessions_unread"] == 0


def test_over_the_memory_budget_large_messages_are_delivered_one_by_one(tmp_path: Path) -> None:
    with WalBench(tmp_path, LARGE, max_frame_bytes=2 << 20) as bench:
        for number in range(4):
            absent(bench, f"reader{number}", f"to/{number}")
        for number in range(4):
            bench.published(bench.named("writer"), f"to/{number}", 3, bytes(1_000_000))
    with WalBench(tmp_path, LARGE, max_frame_bytes=4096, memory_bytes=1 << 20) as bench:
        drained(bench, [back(bench, f"reader{number}", f"to/{number}") for number in range(4)], 3, advance_ms=50)
        assert bench.stats()["memory_peak_bytes"] < 12 << 20


def test_a_failed_wal_read_is_retried_with_backoff_and_counted(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        absent(bench, "reader")
        bench.published(bench.named("writer"), "a", 50, bytes(64))
        segment = tmp_path / "wal-0000000001.log"
        segment.rename(tmp_path / "elsewhere")
        reader = back(bench, "reader")
        bench.until(lambda: bench.stats()["sessions_unread"] == 1, advance_ms=10)
        turns = 0

        def failed_often() -> bool:
            nonlocal turns
            turns += 1
            return bool(bench.stats()["log_read_failures"] >= 5)

        bench.until(failed_often, advance_ms=10)
        assert turns * 10 >= 100 + 200 + 400 + 800, "a read that fails is tried again too soon"
        stats = bench.stats()
        assert stats["log_read_failures"] == 5 and stats["sessions_unread"] == 1 and not reader.messages
        (tmp_path / "elsewhere").rename(segment)
        drained(bench, [reader], 50, advance_ms=100)
        bench.until(lambda: bench.stats()["sessions_behind"] == 0)
        assert bench.stats()["sessions_unread"] == 0


def test_a_client_that_reconnects_during_its_backlog_loses_nothing(tmp_path: Path) -> None:
    with WalBench(tmp_path, max_in_flight=2) as bench:
        absent(bench, "reader")
        bench.published(bench.named("writer"), "a", 400, bytes(400))
        seen: set[int] = set()
        for _ in range(200):
            reader = back(bench, "reader")
            bench.until(lambda: len(reader.messages) >= 2)  # noqa: B023
            settled = bench.stats()["acked"]
            for message in reader.messages:
                reader.send(wire.ACK, seq=message.id)
                seen.add(message.id)
            bench.until(lambda: bench.stats()["acked"] >= settled + 2)  # noqa: B023
            bench.close(reader)
            if len(seen) == 400:
                break
        first = min(seen)
        assert seen == set(range(first, first + 400))
