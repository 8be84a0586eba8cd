"""How long a durable subscription has had no connection, over restarts, and its expiry.

Invariant: time passes only when a test advances it.
"""

from __future__ import annotations

from pathlib import Path

from broker_process import BrokerProcess
from killed import as_killed
from stepped import Client
from test_core_log import WalBench
from test_session_list import collecting, durable

from blipmq.config.reader import from_dict
from blipmq.config.settings import Config
from blipmq.wire import frames as wire

HOUR_MS = 3_600_000


def left(bench: WalBench, name: str, filter: str = "t") -> None:
    """A durable subscription whose client has disconnected."""
    bench.close(durable(bench, name, filter))


def passes(bench: WalBench, hours: float) -> None:
    for _ in range(int(hours * 60)):
        bench.settle(60_000)


def on_disk(bench: WalBench) -> None:
    bench.until(lambda: bench.stats()["log_durable_lsn"] == bench.stats()["log_next_lsn"] - 1)


def test_a_subscription_without_connection_expires_and_stays_removed(tmp_path: Path) -> None:
    with WalBench(tmp_path, session_expiry_ms=2 * HOUR_MS) as bench:
        left(bench, "gone")
        here, writer = durable(bench, "here", "t"), bench.named("writer")
        bench.published(writer, "t", 3)
        passes(bench, 1.9)
        assert not bench.expired and bench.stats()["sessions"] == 2
        passes(bench, 0.3)
        (event,) = bench.expired
        assert (event.row.client_ids, event.row.filter, event.row.lag_messages) == (("gone",), "t", 3)
        assert 2 * HOUR_MS <= (event.row.away_ms or 0) < 2.2 * HOUR_MS
        assert bench.stats()["sessions_expired"] == 1
        assert [row.client_ids for row in bench.session_rows()] == [("here",)]
        on_disk(bench)
        assert here.conn
    with WalBench(tmp_path) as bench:
        assert [row.client_ids for row in bench.session_rows()] == [("here",)]


def test_a_client_that_returns_in_time_keeps_its_subscription(tmp_path: Path) -> None:
    with WalBench(tmp_path, session_expiry_ms=2 * HOUR_MS) as bench:
        for _ in range(3):
            left(bench, "often")
            passes(bench, 1.5)
        passes(bench, 1)
        assert len(bench.expired) == 1


def test_a_group_with_a_member_does_not_expire(tmp_path: Path) -> None:
    with WalBench(tmp_path, session_expiry_ms=HOUR_MS) as bench:
        members: list[Client] = []
        for name in ("one", "two"):
            members.append(bench.named(name))
            bench.subscribed(members[-1], "jobs", durable=True, group="g")
        bench.close(members[0])
        passes(bench, 3)
        assert not bench.expired
        bench.close(members[1])
        passes(bench, 1.2)
        assert [event.row.group for event in bench.expired] == ["g"]


def test_without_an_expiry_time_nothing_expires_and_a_reload_can_set_one(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        left(bench, "gone")
        passes(bench, 5)
        assert not bench.expired
        bench.core.limits(bench.config._replace(session_expiry_ms=HOUR_MS))
        passes(bench, 0.1)
        assert len(bench.expired) == 1


def test_absence_continues_over_a_restart_without_unknown_downtime(tmp_path: Path) -> None:
    with WalBench(tmp_path, session_expiry_ms=4 * HOUR_MS) as bench:
        left(bench, "gone")
        seen_ms = bench.now_ms + bench.wall_offset_ms
        passes(bench, 3)
    with WalBench(tmp_path, session_expiry_ms=4 * HOUR_MS) as bench:
        bench.wall_offset_ms += 1000 * HOUR_MS  # an unsynchronized wall clock
        passes(bench, 0.5)
        (row,) = bench.session_rows()
        assert 3 * HOUR_MS <= (row.away_ms or 0) <= 3.6 * HOUR_MS
        assert row.last_seen_ms == seen_ms
        assert not bench.expired
        passes(bench, 0.7)
        assert len(bench.expired) == 1


def test_a_client_connected_at_a_kill_was_last_seen_at_the_kill(tmp_path: Path) -> None:
    log, copy = tmp_path / "log", tmp_path / "copy"
    with WalBench(log, session_expiry_ms=2 * HOUR_MS) as bench:
        client = durable(bench, "here", "t")
        passes(bench, 10)
        bench.published(bench.named("writer"), "t", 1)
        on_disk(bench)
        as_killed(log, copy)
        assert client.conn
    with WalBench(copy, session_expiry_ms=2 * HOUR_MS) as bench:
        passes(bench, 1.5)
        assert not bench.expired
        passes(bench, 1)
        assert len(bench.expired) == 1


def test_after_a_kill_connection_times_are_accurate_to_minutes(tmp_path: Path) -> None:
    log, copy = tmp_path / "log", tmp_path / "copy"
    with WalBench(log, session_expiry_ms=4 * HOUR_MS) as bench:
        left(bench, "visitor")
        passes(bench, 3.5)
        left(bench, "visitor")
        passes(bench, 0.2)
        bench.until(lambda: not bench.core.next_timer_ms() == 0)
        for _ in range(50):
            bench.turn()
            bench.core.wait(1)
        as_killed(log, copy)
    with WalBench(copy, session_expiry_ms=4 * HOUR_MS) as bench:
        passes(bench, 2)
        assert not bench.expired


def test_the_lag_is_exact_after_a_restart_and_bounded_after_a_kill(tmp_path: Path) -> None:
    log, copy = tmp_path / "log", tmp_path / "copy"
    with WalBench(log) as bench:
        left(bench, "gone")
        writer = bench.named("writer")
        bench.published(writer, "t", 7)
        bench.published(writer, "other", 5)
        on_disk(bench)
        as_killed(log, copy)
        (before,) = bench.session_rows()
    with WalBench(log) as bench:
        (row,) = bench.session_rows()
        assert (row.lag_messages, row.lag_bytes, row.unsure) == (7, before.lag_bytes, False)
        assert row.oldest_ms is not None
    with WalBench(copy) as bench:
        (row,) = bench.session_rows()
        assert row.unsure and 7 <= row.lag_messages <= 20
        client = durable(bench, "gone", "t")
        bench.until(lambda: len(client.messages) == 7)
        for message in client.messages:
            client.send(wire.ACK, seq=message.id)
        bench.until(lambda: not bench.session_rows()[0].lag_messages)
        assert not bench.session_rows()[0].unsure


def test_an_expiry_that_finds_the_wal_full_is_retried(tmp_path: Path) -> None:
    with WalBench(tmp_path, session_expiry_ms=HOUR_MS) as bench:
        for number in range(50):
            left(bench, f"gone{number}")
        passes(bench, 1.2)
        bench.until(lambda: len(bench.expired) == 50, advance_ms=1000)
        assert bench.stats()["sessions"] == 0


def test_the_setting_reaches_the_core_and_expiries_are_logged(tmp_path: Path) -> None:
    assert Config().qos1.session_expiry_ms == 0
    assert from_dict({"qos1": {"session_expiry_ms": 5}}).qos1.session_expiry_ms == 5
    broker = BrokerProcess(tmp_path, {"wal.reserve_bytes": 0, "qos1.session_expiry_ms": 300}).get_ready()
    try:
        collecting(broker.address, "gone", "logs.>")
        line = broker.wait_for("session_expired")
        assert (line["client_id"], line["filter"], line["lag_messages"]) == ("gone", "logs.>", "0")
        assert broker.info()["sessions"]["expired"] == 1
    finally:
        broker.child.terminate()
        assert broker.wait() == 0
