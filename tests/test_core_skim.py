"""Expired messages do not fill the WAL, whichever clients are absent.

Invariant: no test waits for a clock; the tests wait for the disk to answer.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from stepped import conserved
from test_core_log import WalBench

from blipmq.native.config import WalConfig
from blipmq.wire import frames as wire

WAL = WalConfig(max_bytes=128 << 10, reserve_bytes=0, segment_bytes=32 << 10, batch_bytes=8 << 10)
FULL = 503


def absent(bench: WalBench, filter: str, name: str = "away") -> None:
    client = bench.named(name)
    bench.subscribed(client, filter, durable=True)
    bench.close(client)


def fill(bench: WalBench, topic: str, ttl_ms: int) -> int:
    """Publish until the WAL is full; returns the number of accepted messages."""
    client = bench.named("publisher")
    for count in range(1_000):
        client.replies.clear()
        client.send(wire.PUB, topic, bytes(1_000), qos=1, seq=1, ttl_ms=ttl_ms)
        bench.until(lambda: client.replies)
        if client.replies[0].code == FULL:
            bench.close(client)
            return count
        assert client.replies[0].code == 0
    raise AssertionError("the WAL was never full")


def takes(bench: WalBench, topic: str = "other") -> bool:
    client = bench.named("taker")
    client.send(wire.PUB, topic, b"x", qos=1, seq=1)
    bench.until(lambda: client.replies)
    code = client.replies[0].code
    bench.close(client)
    return code == 0


def until_taken(bench: WalBench) -> None:
    bench.until(lambda: bench.stats()["log_state"] == 1, advance_ms=20)
    assert takes(bench)


def test_a_wal_full_of_expired_messages_accepts_publishes_while_its_subscriber_is_away(tmp_path: Path) -> None:
    with WalBench(tmp_path, WAL) as bench:
        absent(bench, "t")
        count = fill(bench, "t", ttl_ms=500)
        assert not takes(bench)
        until_taken(bench)
        assert bench.stats()["dropped_ttl"] >= count - 40 and conserved(bench.stats())


def test_unexpired_messages_are_kept_and_delivered_in_order(tmp_path: Path) -> None:
    with WalBench(tmp_path, WAL) as bench:
        absent(bench, "t")
        fill(bench, "t", ttl_ms=500)
        until_taken(bench)
        publisher = bench.named("publisher")
        for number in range(3):
            bench.published(publisher, "t", 1, b"%d" % number)
        fill(bench, "t", ttl_ms=500)
        bench.turn(1_000)
        client = bench.named("away")
        bench.subscribed(client, "t", durable=True)
        bench.until(lambda: bench.stats()["sessions_behind"] == 0)
        bench.settle()
        assert client.payloads == [b"0", b"1", b"2"]
        assert conserved(bench.stats())


def test_a_message_without_expiry_keeps_the_wal_and_is_scanned_once(tmp_path: Path) -> None:
    with WalBench(tmp_path, WAL) as bench:
        absent(bench, "t")
        bench.published(bench.named("publisher"), "t", 1, b"kept")
        fill(bench, "t", ttl_ms=500)
        for _ in range(100):
            bench.turn(100)
            bench.core.wait(1)
        assert not takes(bench)
        before = bench.stats()["log_read_bytes"]
        for _ in range(100):
            bench.turn(1_000)
        assert bench.stats()["log_read_bytes"] == before
        client = bench.named("away")
        bench.subscribed(client, "t", durable=True)
        bench.until(lambda: client.payloads)
        assert client.payloads == [b"kept"]


@pytest.mark.parametrize("sessions", [1, 20])
def test_expired_messages_of_many_absent_subscribers_are_released(tmp_path: Path, sessions: int) -> None:
    with WalBench(tmp_path, WAL, max_sessions=64) as bench:
        for number in range(sessions):
            absent(bench, "t", f"away-{number}")
        fill(bench, "t", ttl_ms=500)
        until_taken(bench)
        assert conserved(bench.stats())


def test_expired_messages_are_released_after_a_restart(tmp_path: Path) -> None:
    with WalBench(tmp_path, WAL) as bench:
        absent(bench, "t")
        fill(bench, "t", ttl_ms=5_000)
    with WalBench(tmp_path, WAL) as bench:
        assert not takes(bench)
        bench.turn(6_000)
        until_taken(bench)
