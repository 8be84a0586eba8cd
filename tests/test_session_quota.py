"""The WAL quota of one durable subscription. Messages over it become dead letters or are dropped; QoS 1 continues.

Invariant: time passes only when a test advances it; the tests wait for the disk to answer.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
from broker_process import BrokerProcess, until
from stepped import Client, SessionOverflow, conserved
from test_core_log import WalBench
from test_session_list import collecting, durable

import blipmq
from blipmq.auth.keys import add_key
from blipmq.config import reader as config_reader
from blipmq.config.reader import from_dict
from blipmq.errors import Refused
from blipmq.native.config import WalConfig
from blipmq.native.events import SessionOver
from blipmq.protocols.blip import NativeProtocol
from blipmq.protocols.clients import ClientRules
from blipmq.sessions.connections import Connections
from blipmq.wire import frames as wire

WAL = WalConfig(max_bytes=1 << 20, reserve_bytes=0, segment_bytes=64 << 10, batch_bytes=16 << 10)
QUOTA = 256 << 10


def quota_bench(directory: Path, **limits: Any) -> WalBench:
    return WalBench(directory, WAL, **{"session_log_bytes": QUOTA, **limits})


def publish(bench: WalBench, writer: Client, topic: str, count: int, bytes_each: int = 1000) -> None:
    """Each message is accepted, after any number of attempts."""
    for _ in range(count):
        for _ in range(400):
            writer.replies.clear()
            writer.send(wire.PUB, topic, bytes(bytes_each), qos=1, seq=5)
            bench.until(lambda: writer.replies, advance_ms=1)
            if writer.replies[0].code == 0:
                break
            bench.turn(50)
        assert writer.replies[0].code == 0, writer.replies


def settled(bench: WalBench) -> None:
    for _ in range(100):
        bench.turn(20)
        bench.core.wait(1)


@pytest.mark.parametrize("overflow", list(SessionOverflow))
def test_an_abandoned_subscription_does_not_stop_publishing(tmp_path: Path, overflow: SessionOverflow) -> None:
    with quota_bench(tmp_path, session_overflow=overflow) as bench:
        bench.close(durable(bench, "forgotten", "t"))
        writer = bench.named("writer")
        publish(bench, writer, "t", 4000)  # four times the size of the WAL
        settled(bench)
        (row,) = bench.session_rows()
        stats = bench.stats()
        assert stats["log_state"] == 1
        assert 0 < row.log_bytes < QUOTA + (64 << 10)
        assert row.lag_messages + row.over_quota == 4000 and not row.unsure
        assert stats["over_session_log"] == row.over_quota
        assert stats["dropped_session_log"] == (row.over_quota if overflow is SessionOverflow.DROP else 0)
        assert conserved(stats)
        client = durable(bench, "forgotten", "t")
        bench.until(lambda: len(client.messages) >= min(row.lag_messages, 100))
        assert client.messages[0].id > 1


def test_the_quota_releases_wal_kept_by_one_unacknowledged_message(tmp_path: Path) -> None:
    with quota_bench(tmp_path, session_overflow=SessionOverflow.DROP, ack_timeout_ms=3_600_000) as bench:
        stuck, busy = durable(bench, "stuck", "rare"), durable(bench, "busy", "often")
        writer = bench.named("writer")
        publish(bench, writer, "rare", 1)
        bench.until(lambda: stuck.messages)
        for _ in range(40):
            publish(bench, writer, "often", 100)
            for message in busy.messages:
                busy.send(wire.ACK, seq=message.id)
            busy.messages.clear()
        settled(bench)
        rows = {row.filter: row for row in bench.session_rows()}
        assert (rows["rare"].lag_messages, rows["rare"].over_quota) == (0, 1)
        assert rows["often"].over_quota == 0
        stuck.send(wire.ACK, seq=stuck.messages[0].id)  # too late, and harmless
        publish(bench, writer, "rare", 1)
        bench.until(lambda: len(stuck.messages) == 2)
        assert conserved(bench.stats())


def test_messages_over_the_quota_become_dead_letters_with_the_reason(tmp_path: Path) -> None:
    with quota_bench(tmp_path) as bench:
        bench.close(durable(bench, "forgotten", "t"))
        collector, writer = bench.named("collector"), bench.named("writer")
        bench.subscribed(collector, "$dlq/t", durable=True)
        letters: list[wire.Message] = []

        def collect() -> None:
            for message in collector.messages:
                collector.send(wire.ACK, seq=message.id)
            letters.extend(collector.messages)
            collector.messages.clear()

        for _ in range(20):
            publish(bench, writer, "t", 50)
            collect()
        for _ in range(20):
            settled(bench)
            collect()
        (row,) = [row for row in bench.session_rows() if row.filter == "t"]
        assert row.over_quota > 100
        assert {letter.topic for letter in letters} == {"$dlq/t"}
        assert {letter.headers["reason"] for letter in letters} == {"session_log_bytes"}
        ids = [int(letter.headers["id"]) for letter in letters]
        assert ids == sorted(set(ids)) and len(ids) >= row.over_quota - bench.stats()["dead_letters_dropped"]
        assert letters[0].payload == bytes(1000)


def test_setting_a_quota_on_a_full_wal_frees_space(tmp_path: Path) -> None:
    with WalBench(tmp_path, WAL) as bench:
        for number in range(3):
            bench.close(durable(bench, f"forgotten{number}", "t"))
        writer = bench.named("writer")

        def code() -> int:
            writer.replies.clear()
            writer.send(wire.PUB, "t", bytes(1000), qos=1, seq=5)
            bench.until(lambda: writer.replies)
            return writer.replies[0].code

        bench.until(lambda: code() == 503)
        bench.core.limits(bench.config._replace(session_log_bytes=QUOTA))
        bench.until(lambda: code() == 0, advance_ms=20)
        publish(bench, writer, "t", 2000)
        assert conserved(bench.stats())


def test_the_quota_applies_to_absent_subscriptions_at_start(tmp_path: Path) -> None:
    with WalBench(tmp_path, WAL) as bench:
        bench.close(durable(bench, "forgotten", "t"))
        publish(bench, bench.named("writer"), "t", 600)
    with quota_bench(tmp_path, session_overflow=SessionOverflow.DROP) as bench:
        bench.until(lambda: bench.session_rows()[0].over_quota > 200, advance_ms=20)
        (row,) = bench.session_rows()
        assert row.lag_messages + row.over_quota == 600


def test_each_quota_cut_is_logged_with_ids_once_a_minute(tmp_path: Path) -> None:
    with quota_bench(tmp_path, session_overflow=SessionOverflow.DROP) as bench:
        bench.close(durable(bench, "forgotten", "t"))
        writer = bench.named("writer")
        publish(bench, writer, "t", 2000)
        settled(bench)
        assert len(bench.over) == 1
        bench.until(lambda: len(bench.over) == 2, advance_ms=1000)
        (row,) = bench.session_rows()
        assert sum(event.messages for event in bench.over) == row.over_quota
        assert all(event.dropped and event.row.client_ids == ("forgotten",) for event in bench.over)
        first, second = bench.over
        assert first.first_id <= first.last_id < second.first_id <= second.last_id


def test_a_subscription_that_keeps_up_loses_nothing(tmp_path: Path) -> None:
    with quota_bench(tmp_path, max_in_flight=16) as bench:
        client, writer = durable(bench, "quick", "t"), bench.named("writer")
        got = 0
        for _ in range(60):
            publish(bench, writer, "t", 50)
            for _ in range(1000):
                if got % 50 == 0 and got and not client.messages:
                    break
                bench.until(lambda: client.messages)
                for message in client.messages:
                    client.send(wire.ACK, seq=message.id)
                got += len(client.messages)
                client.messages.clear()
        assert got == 3000
        assert bench.stats()["over_session_log"] == 0


def test_health_names_the_subscription_that_fills_the_wal_and_the_remedy(tmp_path: Path) -> None:
    wal = {
        "segment_size_bytes": 512 << 10,
        "max_bytes": 8 << 20,
        "directory": str(tmp_path / "wal"),
        "reserve_bytes": 0,
    }
    config = {"server": {"bind_addr": "127.0.0.1:0", "max_message_size_bytes": 4096}, "wal": wal}
    with blipmq.Broker(config) as broker, blipmq.connect_blocking(broker.address) as writer:
        collecting(broker.address, "gone", "t.>")
        assert broker.info()["reasons"] == []
        with pytest.raises(Refused):
            for _ in range(3000):
                writer.publish("t.a", bytes(4000), qos=1)
        command = "blipmq-cli sessions end 't.>' --client-id gone"
        assert any(command in reason for reason in broker.info()["reasons"])
        assert any(command in reason for reason in broker._wait(broker._broker.reasons()))
        broker.end_session("t.>", client_id="gone")
        until(lambda: not broker.info()["reasons"], "there is room again")


def test_a_key_with_rights_is_not_told_whose_subscription_fills_the_wal(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    chief, boiler = add_key(keys, "chief"), add_key(keys, "boiler", ["sub:t"])
    wal = {
        "segment_size_bytes": 512 << 10,
        "max_bytes": 8 << 20,
        "directory": str(tmp_path / "wal"),
        "reserve_bytes": 0,
    }
    server = {"bind_addr": "127.0.0.1:0", "max_message_size_bytes": 4096}
    with blipmq.Broker({"server": server, "wal": wal, "auth": {"keys_file": str(keys)}}) as broker:
        collecting(broker.address, "gone", "t", api_key=chief)
        with (
            blipmq.connect_blocking(broker.address, api_key=chief) as writer,
            blipmq.connect_blocking(broker.address, api_key=boiler) as other,
        ):
            with pytest.raises(Refused):
                for _ in range(3000):
                    writer.publish("t", bytes(4000), qos=1)
            shown, told = writer.info(), other.info()
            assert any("--client-id gone --key chief" in reason for reason in shown["reasons"])
            assert told["state"] == "degraded" and len(told["reasons"]) == len(shown["reasons"])
            assert "gone" not in str(told) and "chief" not in str(told)
            assert told["messages"]["published"] == shown["messages"]["published"]


def test_a_quota_larger_than_the_wal_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "blipmq.toml").write_text("[qos1]\nsession_log_bytes = 1_000_000_000\n")
    loaded = config_reader.load(str(tmp_path / "blipmq.toml"), {})
    assert any("session_log_bytes" in warning for warning in config_reader.warnings(loaded))


def test_the_settings_reach_the_core_and_losses_are_logged(tmp_path: Path) -> None:
    from blipmq.native.config import CoreConfig

    core = CoreConfig.of(from_dict({"qos1": {"session_log_bytes": 5, "session_overflow": "drop"}}))
    assert (core.session_log_bytes, core.session_overflow) == (5, SessionOverflow.DROP)
    config = {
        "server.max_message_size_bytes": 4096,
        "wal.segment_size_bytes": 512 << 10,
        "wal.max_bytes": 8 << 20,
        "wal.reserve_bytes": 0,
        "qos1.session_log_bytes": 2 << 20,
        "qos1.session_overflow": "drop",
    }
    broker = BrokerProcess(tmp_path, config).get_ready()
    try:
        collecting(broker.address, "gone", "t")
        with blipmq.connect_blocking(broker.address) as writer:
            for _ in range(4000):
                writer.publish("t", bytes(4000), qos=1)
        line = broker.wait_for("session_over_log_bytes")
        assert (line["client_id"], line["filter"], line["became"]) == ("gone", "t", "dropped")
        assert int(line["messages"]) > 0 and int(line["first_id"]) <= int(line["last_id"])
        assert broker.info()["messages"]["dropped"]["session_log_bytes"] > 0
    finally:
        broker.child.terminate()
        assert broker.wait() == 0


def test_a_dead_letter_after_too_many_deliveries_does_not_name_the_quota(tmp_path: Path) -> None:
    with quota_bench(tmp_path, max_deliveries=1, ack_timeout_ms=100) as bench:
        reader, collector = durable(bench, "reader", "t"), durable(bench, "collector", "$dlq/#")
        writer = bench.named("writer")
        for _ in range(3):  # in reused memory
            publish(bench, writer, "elsewhere", 100)
            publish(bench, writer, "t", 20)
            bench.until(lambda: reader.messages)
            reader.messages.clear()
            bench.until(lambda: len(collector.messages) >= 20, advance_ms=50)
            assert {letter.headers["reason"] for letter in collector.messages} == {"max_deliveries"}
            for letter in collector.messages:
                collector.send(wire.ACK, seq=letter.id)
            collector.messages.clear()


def collected(bench: WalBench, client: Client) -> int:
    """The number of messages delivered to a client since, each acknowledged."""
    count = len(client.messages)
    for message in client.messages:
        client.send(wire.ACK, seq=message.id)
    client.messages.clear()
    bench.turn(1)
    return count


def letters_until_no_more_come(bench: WalBench, collector: Client) -> int:
    count = quiet = 0
    while quiet < 5:
        settled(bench)
        some = collected(bench, collector)
        count, quiet = count + some, 0 if some else quiet + 1
    return count


@pytest.mark.parametrize("restarts", [False, True])
def test_dead_letters_of_the_quota_cause_no_further_losses(tmp_path: Path, restarts: bool) -> None:
    log = WAL._replace(max_bytes=4 << 20)
    limits: dict[str, Any] = {"session_log_bytes": QUOTA}
    with WalBench(tmp_path, log, **limits) as bench:
        bench.close(durable(bench, "forgotten", "t"))
        collector = bench.named("collector")
        bench.subscribed(collector, "$dlq/t", durable=True)
        letters, writer = 0, bench.named("writer")
        for _ in range(12):  # 300 messages of 1,000 bytes: slightly more than the quota
            publish(bench, writer, "t", 25)
            letters += collected(bench, collector)
        letters += letters_until_no_more_come(bench, collector)
        (row,) = [row for row in bench.session_rows() if row.filter == "t"]
        assert 0 < letters == row.over_quota < 100
        assert row.lag_messages + letters == 300
    if not restarts:
        return
    with WalBench(tmp_path, log, **limits) as bench:
        collector = bench.named("collector")
        bench.subscribed(collector, "$dlq/t", durable=True)
        more = letters_until_no_more_come(bench, collector)  # records written at a start are in the WAL too
        (row,) = [row for row in bench.session_rows() if row.filter == "t"]
        assert row.over_quota == more < 10 and row.lag_messages + letters + more == 300


def test_a_dead_letter_subscription_may_use_half_of_the_wal(tmp_path: Path) -> None:
    with WalBench(tmp_path, WAL._replace(max_bytes=8 << 20), session_log_bytes=QUOTA) as bench:
        bench.close(durable(bench, "forgotten", "t"))
        bench.close(durable(bench, "collector", "$dlq/t"))
        publish(bench, bench.named("writer"), "t", 1000)
        settled(bench)
        rows = {row.filter: row for row in bench.session_rows()}
        assert rows["t"].over_quota > 500 and rows["$dlq/t"].lag_messages == rows["t"].over_quota
        assert rows["$dlq/t"].over_quota == 0 == bench.stats()["dead_letters_dropped"]


def test_unfetched_dead_letters_are_dropped_and_counted_and_publishing_continues(tmp_path: Path) -> None:
    with quota_bench(tmp_path) as bench:
        bench.close(durable(bench, "forgotten", "t"))
        bench.close(durable(bench, "collector", "$dlq/t"))
        writer = bench.named("writer")
        for _ in range(3000):  # three times the size of the WAL
            for _ in range(3000):
                writer.replies.clear()
                writer.send(wire.PUB, "t", bytes(1000), qos=1, seq=5)
                bench.until(lambda: writer.replies, advance_ms=1)
                if writer.replies[0].code == 0:
                    break
                bench.turn(20)
                bench.core.wait(2)
            assert writer.replies[0].code == 0, writer.replies
        settled(bench)
        stats = bench.stats()
        rows = {row.filter: row for row in bench.session_rows()}
        assert stats["log_state"] == 1 and conserved(stats)
        assert 0 < stats["dead_letters_dropped"] == rows["$dlq/t"].over_quota
        lines = {line["filter"]: line for line in map(logged, bench.over)}
        assert (lines["t"]["became"], lines["t"]["quota_bytes"]) == ("dead letters", QUOTA)
        assert (lines["$dlq/t"]["became"], lines["$dlq/t"]["quota_bytes"]) == ("dropped", WAL.max_bytes // 2)


def logged(event: SessionOver) -> dict[str, Any]:
    """The fields of the log line about `event`, from a broker with the quota of these tests."""
    log = MagicMock()
    config = from_dict({"qos1": {"session_log_bytes": QUOTA}, "wal": {"enabled": False, "max_bytes": WAL.max_bytes}})
    unused, connections = MagicMock(), Connections()
    rules = ClientRules(connections, config, log, unused, unused)
    NativeProtocol(unused, connections, rules, log, unused, unused).session_over(event)
    fields: dict[str, Any] = log.warning.call_args.kwargs
    return fields
