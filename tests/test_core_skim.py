"""What has expired does not hold the log, whoever is away.

Invariant: nothing here waits for a clock; the disk is waited for until it has answered.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from stepped import conserved
from test_core_log import LoggedBench

from blipmq.native.config import LogConfig
from blipmq.wire import frames as wire

LOG = LogConfig(max_bytes=128 << 10, reserve_bytes=0, segment_bytes=32 << 10, batch_bytes=8 << 10)
FULL = 503


def absent(bench: LoggedBench, filter: str, name: str = "away") -> None:
    client = bench.named(name)
    bench.subscribed(client, filter, durable=True)
    bench.close(client)


def fill(bench: LoggedBench, topic: str, ttl_ms: int) -> int:
    """Publish until the log is full; how many it took."""
    client = bench.named("publisher")
    for count in range(1_000):
        client.replies.clear()
        client.send(wire.PUB, topic, bytes(1_000), qos=1, seq=1, ttl_ms=ttl_ms)
        bench.until(lambda: client.replies)
        if client.replies[0].code == FULL:
            bench.close(client)
            return count
        assert client.replies[0].code == 0
    raise AssertionError("the log was never full")


def takes(bench: LoggedBench, topic: str = "other") -> bool:
    client = bench.named("taker")
    client.send(wire.PUB, topic, b"x", qos=1, seq=1)
    bench.until(lambda: client.replies)
    code = client.replies[0].code
    bench.close(client)
    return code == 0


def until_taken(bench: LoggedBench) -> None:
    bench.until(lambda: bench.stats()["log_state"] == 1, advance_ms=20)
    assert takes(bench)


def test_a_log_full_of_what_has_expired_takes_messages_again_though_its_subscriber_is_away(tmp_path: Path) -> None:
    with LoggedBench(tmp_path, LOG) as bench:
        absent(bench, "t")
        count = fill(bench, "t", ttl_ms=500)
        assert not takes(bench)
        until_taken(bench)
        assert bench.stats()["dropped_ttl"] >= count - 40 and conserved(bench.stats())


def test_what_has_not_expired_is_kept_and_comes_in_order(tmp_path: Path) -> None:
    with LoggedBench(tmp_path, LOG) as bench:
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


def test_a_message_without_an_end_holds_the_log_and_is_not_looked_for_again_and_again(tmp_path: Path) -> None:
    with LoggedBench(tmp_path, LOG) as bench:
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
def test_each_of_many_absent_subscribers_lets_go(tmp_path: Path, sessions: int) -> None:
    with LoggedBench(tmp_path, LOG, max_sessions=64) as bench:
        for number in range(sessions):
            absent(bench, "t", f"away-{number}")
        fill(bench, "t", ttl_ms=500)
        until_taken(bench)
        assert conserved(bench.stats())


def test_after_a_restart_too(tmp_path: Path) -> None:
    with LoggedBench(tmp_path, LOG) as bench:
        absent(bench, "t")
        fill(bench, "t", ttl_ms=5_000)
    with LoggedBench(tmp_path, LOG) as bench:
        assert not takes(bench)
        bench.turn(6_000)
        until_taken(bench)
