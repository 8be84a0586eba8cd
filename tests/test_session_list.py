"""The list of QoS 1 subscriptions and queue groups for operators: pages of the core, INFO, metrics, the command line.

Invariant: no test waits for a clock: a test advances time, or waits for a state with a bound.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from raw_client import RawClient
from stepped import Client
from test_core_log import WalBench

import blipmq
from blipmq.cli import report
from blipmq.client.admin import decode_filter
from blipmq.native.config import WalConfig
from blipmq.ops.metrics import SESSIONS_MAX
from blipmq.wire import frames as wire

LARGE_WAL = WalConfig(max_bytes=64 << 20, reserve_bytes=0, segment_bytes=1 << 20, batch_bytes=256 << 10)


def durable(bench: WalBench, name: str, *filters: str) -> Client:
    client = bench.named(name)
    for filter in filters:
        bench.subscribed(client, filter, durable=True)
    return client


def acknowledged(bench: WalBench, client: Client, count: int) -> None:
    bench.until(lambda: len(client.messages) >= count)
    for message in client.messages[:count]:
        client.send(wire.ACK, seq=message.id)
    bench.settle()


# ---- lag


def test_the_lag_of_a_subscription_is_exact_in_memory_and_in_the_wal(tmp_path: Path) -> None:
    with WalBench(tmp_path, LARGE_WAL, max_in_flight=10) as bench:
        client, writer = durable(bench, "archive", "logs.>"), bench.named("writer")
        bench.published(writer, "logs.a", 300)
        (row,) = bench.session_rows()
        assert (row.filter, row.client_ids, row.durable, row.qos) == ("logs.>", ("archive",), True, 1)
        assert (row.lag_messages, row.in_flight, row.members, row.unsure) == (300, 10, 1, False)
        size = row.lag_bytes // 300
        acknowledged(bench, client, 10)
        (row,) = bench.session_rows()
        assert (row.lag_messages, row.lag_bytes) == (290, 290 * size)
        bench.close(client)
        bench.published(writer, "logs.b", 10)
        (row,) = bench.session_rows()
        assert (row.lag_messages, row.lag_bytes, row.in_flight, row.members) == (300, 300 * size, 0, 0)
        again = durable(bench, "archive", "logs.>")
        for _ in range(300):
            acknowledged(bench, again, 1)
            again.messages.pop(0)
        (row,) = bench.session_rows()
        assert (row.lag_messages, row.lag_bytes, row.oldest_ms) == (0, 0, None)
        bench.until(lambda: bench.session_rows()[0].log_bytes == 0)  # once the rest of the WAL has been scanned


def test_a_non_durable_subscription_has_a_lag_and_keeps_no_wal_data(tmp_path: Path) -> None:
    with WalBench(tmp_path, subscriber_messages=7, max_in_flight=3) as bench:
        client = bench.named("now")
        bench.subscribed(client, "a")
        bench.published(bench.named("writer"), "a", 20)
        (row,) = bench.session_rows()
        assert (row.durable, row.lag_messages, row.dropped_queue_full, row.log_bytes) == (False, 7, 13, 0)
        assert row.conn == client.conn


def test_the_wal_size_kept_by_one_message_is_reported_at_any_lag(tmp_path: Path) -> None:
    with WalBench(tmp_path, LARGE_WAL) as bench:
        durable(bench, "stuck", "rare")
        busy, writer = durable(bench, "busy", "often"), bench.named("writer")
        bench.published(writer, "rare", 1)
        for _ in range(30):
            bench.published(writer, "often", 30, bytes(4000))
            acknowledged(bench, busy, 30)
            busy.messages.clear()
        rows = {row.filter: row for row in bench.session_rows()}
        assert rows["rare"].lag_messages == 1
        assert 30 * 30 * 4000 * 0.9 < rows["rare"].log_bytes < 30 * 30 * 4000 * 1.3
        assert rows["often"].log_bytes == 0
        # with a minimum lag of two, the subscription that keeps most of the WAL is still listed
        assert [row.filter for row in bench.session_rows(lag_min=2)] == ["rare"]


def test_the_list_shows_the_oldest_message_age_and_the_last_connection(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        client, writer = durable(bench, "a", "t"), bench.named("writer")
        bench.published(writer, "t", 1)
        bench.settle(5_000)
        (row,) = bench.session_rows()
        assert (row.oldest_ms, row.away_ms) == (5_000, 0)
        assert row.last_seen_ms == bench.now_ms + bench.wall_offset_ms
        bench.close(client)
        left = bench.now_ms + bench.wall_offset_ms
        bench.settle(60_000)
        (row,) = bench.session_rows()
        assert (row.oldest_ms, row.away_ms, row.last_seen_ms) == (65_000, 60_000, left)


# ---- pages


def test_a_walk_lists_each_subscription_once_in_bounded_pages_with_sums(tmp_path: Path) -> None:
    with WalBench(tmp_path, LARGE_WAL, max_sessions=5000) as bench:
        client = bench.named("many")
        for number in range(3000):
            client.send(wire.SUB, f"{'x' * 200}.{number}", qos=1, durable=True)
        bench.until(lambda: len(client.subacks) == 3000)
        bench.published(bench.named("writer"), f"{'x' * 200}.7", 5)
        pages = bench.session_pages()
        assert len(pages) > 10 and max(len(page.rows) for page in pages) < 100
        assert len({row.filter for page in pages for row in page.rows}) == 3000
        sums = pages[-1].sums
        assert (sums["sessions"], sums["durable"], sums["absent"], sums["lag_messages"]) == (3000, 3000, 0, 5)
        # those without a lag are skipped, a thousand a page
        pages = bench.session_pages(lag_min=1)
        assert len(pages) == 3 and [row.lag_messages for page in pages for row in page.rows] == [5]


def test_subscriptions_that_start_or_end_do_not_disturb_a_walk(tmp_path: Path) -> None:
    with WalBench(tmp_path, LARGE_WAL) as bench:
        client = durable(bench, "many", *(f"{'x' * 200}.{number}" for number in range(200)))
        bench.core.sessions(77, begin=True)
        seen = [row.filter for row in bench._await(77).rows]
        for number in range(0, 200, 2):  # the next one of the walk is always among them
            client.send(wire.UNSUB, f"{'x' * 200}.{number}", seq=number + 1)
        bench.until(lambda: len(client.replies) == 100)
        more = True
        while more:
            bench.core.sessions(77, begin=False)
            page = bench._await(77)
            seen, more = seen + [row.filter for row in page.rows], page.more
        odd = {f"{'x' * 200}.{number}" for number in range(1, 200, 2)}
        assert len(seen) == len(set(seen)) and odd <= set(seen)


def test_a_walk_can_search_in_filter_client_id_and_group(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        durable(bench, "boiler-1", "site/1/#")
        durable(bench, "boiler-2", "site/2/#")
        bench.subscribed(bench.named("worker"), "jobs", durable=True, group="presses")

        def found(text: str) -> set[str]:
            return {row.filter for row in bench.session_rows(find=text)}

        assert found("boiler") == {"site/1/#", "site/2/#"}
        assert found("te/2") == {"site/2/#"}
        assert found("press") == found("worker") == {"jobs"}
        assert found("nobody") == set() and found("x" * 300) == set()


def test_a_walk_ends_when_another_replaces_it(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        durable(bench, "a", *(f"{'x' * 200}.{number}" for number in range(100)))
        bench.core.sessions(1001, begin=True)
        assert bench._await(1001).more
        bench.core.sessions(1002, begin=True)
        assert bench._await(1002).more
        bench.core.sessions(1001, begin=False)
        page = bench._await(1001)
        assert not page.more and not page.rows


# ---- counts


def test_each_subscription_of_any_kind_is_counted_once(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        one, two = bench.named("one"), bench.named("two")

        def counts() -> tuple[int, int, int]:
            stats = bench.stats()
            return stats["subscriptions"], stats["sessions"], stats["sessions_absent"]

        bench.subscribed(one, "a")
        assert counts() == (1, 1, 0)
        bench.subscribed(one, "b", durable=True)
        assert counts() == (2, 2, 0)
        for client in (one, two):
            bench.subscribed(client, "c", group="g")
        assert counts() == (4, 3, 0)
        two.send(wire.SUB, "a")
        bench.settle()
        assert counts() == (5, 3, 0)
        assert {conn: row.subscriptions for conn, row in bench.subscribers().items()} == {one.conn: 3, two.conn: 2}
        bench.close(one)
        assert counts() == (3, 2, 1)
        bench.close(two)
        assert counts() == (1, 1, 1)


def test_a_member_of_a_queue_group_is_listed_among_the_subscribers(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        client = bench.named("worker")
        bench.subscribed(client, "jobs", group="g")
        assert list(bench.subscribers()) == [client.conn]
        client.send(wire.UNSUB, "jobs", seq=1)
        bench.until(lambda: client.replies)
        assert not bench.subscribers()


# ---- INFO, metrics and text ----


def settings(directory: Path, **sections: Any) -> dict[str, Any]:
    return {
        "server": {"bind_addr": "127.0.0.1:0"},
        "wal": {"directory": str(directory / "wal"), "reserve_bytes": 0},
        **sections,
    }


def collecting(address: str, name: str, filter: str, group: str = "", **options: Any) -> None:
    """A durable subscription of an absent client."""
    with blipmq.connect_blocking(address, client_id=name, **options) as client:
        client.subscribe(filter, qos=1, durable=True, group=group)


def test_info_sorts_subscriptions_by_largest_lag(tmp_path: Path) -> None:
    with blipmq.Broker(settings(tmp_path)) as broker, blipmq.connect_blocking(broker.address) as writer:
        for number in range(3):
            collecting(broker.address, f"c{number}", f"t.{number}")
            for _ in range(number):
                writer.publish(f"t.{number}", b"x", qos=1)
        sessions = broker.info()["sessions"]
        assert [(row["client_id"], row["lag_messages"]) for row in sessions["list"]] == [
            ("c2", 2),
            ("c1", 1),
            ("c0", 0),
        ]
        row = sessions["list"][0]
        assert (row["key"], row["filter"], row["group"], row["durable"], row["qos"]) == ("", "t.2", "", True, 1)
        assert (row["connected"], row["in_flight"], row["lag_exact"]) == (0, 0, True)
        assert (sessions["total"], sessions["absent"], sessions["lag_messages"]) == (3, 3, 3)
        assert [row["client_id"] for row in writer.sessions(limit=1)["list"]] == ["c2"]
        assert [row["client_id"] for row in writer.sessions("c1")["list"]] == ["c1"]


def test_the_json_of_info_is_bounded_for_rows_of_any_length(tmp_path: Path) -> None:
    with blipmq.Broker(settings(tmp_path)) as broker:
        name = "é" * 128
        with blipmq.connect_blocking(broker.address, client_id=name) as client:
            for number in range(900):
                client.subscribe(f"{'ü' * 120}.{number}", qos=1, durable=True)
        with RawClient(broker.address) as asker:
            asker.hello("").say(wire.INFO, payload=b'{"sessions":{"limit":5000}}', seq=5)
            reply = asker.next()
            assert reply.code == 0 and len(reply.payload) <= 256 * 1024
            listed = json.loads(reply.payload)["sessions"]
            assert listed["total"] == 900 and 100 < len(listed["list"]) < 900


def test_an_unknown_info_section_returns_the_whole_answer(tmp_path: Path) -> None:
    with blipmq.Broker(settings(tmp_path)) as broker, RawClient(broker.address) as asker:
        asker.hello("")
        for asked in (
            b"",
            b"{",
            b"[]",
            b'{"sessions": 1}',
            b'{"sessions": {"find": 1}}',
            b"[" * 4000,
            b'{"sessions": {"find": "\\ud800"}}',
            b'{"filter": "\\ud800"}',
            b'{"filter": ""}',
            b'{"filter": 1}',
        ):
            asker.say(wire.INFO, payload=asked, seq=5)
            assert "uptime_s" in json.loads(asker.next().payload)


def test_a_client_asks_an_earlier_broker_for_a_filter_by_its_whole_report() -> None:
    report = {"subscriptions": [{"filters": ["a", "b"]}, {}], "sessions": {"list": [{"filter": "c"}, 5]}}
    for info in (report, {}, {"subscriptions": 1, "sessions": [], "filter": "a"}):
        reply = wire.Reply(1, 0, "", 0, json.dumps(info).encode())
        assert [decode_filter(reply, filter_) for filter_ in "abcd"] == [info is report] * 3 + [False]


def test_a_key_with_an_acl_sees_only_its_own_subscriptions(tmp_path: Path) -> None:
    from blipmq.auth.keys import add_key

    keys = tmp_path / "keys"
    boiler = add_key(keys, "boiler", ["sub:t.>"])
    press = add_key(keys, "press", ["sub:t.>"])
    chief = add_key(keys, "chief", [])
    with blipmq.Broker(settings(tmp_path, auth={"keys_file": str(keys)})) as broker:
        collecting(broker.address, "one", "t.a", api_key=boiler)
        collecting(broker.address, "one", "t.a", api_key=press)
        with blipmq.connect_blocking(broker.address, api_key=boiler) as own:
            own.subscribe("t.b", qos=1)
            rows = own.info()["sessions"]["list"]
            assert {(row["key"], row["filter"]) for row in rows} == {("boiler", "t.a"), ("boiler", "t.b")}
            assert own.sessions("t.")["total"] == 2
            assert own.info()["sessions"]["total"] == 2
            with blipmq.connect_blocking(broker.address, api_key=chief) as all_of_them:
                assert all_of_them.sessions()["total"] == 3


def test_a_key_with_an_acl_sees_only_its_own_part_of_a_group(tmp_path: Path) -> None:
    from blipmq.auth.keys import add_key

    keys = tmp_path / "keys"
    boiler = add_key(keys, "boiler", ["sub:t"])
    alice = add_key(keys, "alice", ["sub:t"])
    operator = add_key(keys, "operator", ["admin"])
    with blipmq.Broker(settings(tmp_path, auth={"keys_file": str(keys)})) as broker:
        for key, name in ((alice, "secret"), (boiler, "mine")):
            collecting(broker.address, name, "t", group="g", api_key=key)
        rows = {}
        for key in (boiler, alice, operator):
            with blipmq.connect_blocking(broker.address, api_key=key) as client:
                (rows[key],) = client.sessions()["list"]
                (in_info,) = client.info()["sessions"]["list"]
                assert (in_info["key"], in_info["members"]) == (rows[key]["key"], rows[key]["members"])
        assert [(row["key"], row["members"]) for row in rows.values()] == [
            ("boiler", ["mine"]),
            ("alice", ["secret"]),
            ("boiler", ["mine", "secret"]),  # the newest first
        ]


def test_only_subscriptions_with_the_largest_lag_have_metric_series(tmp_path: Path) -> None:
    from prometheus_client.parser import text_string_to_metric_families
    from watched_broker import WatchedBroker

    with WatchedBroker(settings(tmp_path)) as watched:
        address = watched.broker.address
        for number in range(SESSIONS_MAX + 5):
            collecting(address, f"c{number}", f"t.{number}")
        with blipmq.connect_blocking(address) as writer:
            writer.publish("t.3", b"x", qos=1)
        families = {
            family.name: family for family in text_string_to_metric_families(watched.get("/metrics").body.decode())
        }
        lags = {sample.labels["client"]: sample.value for sample in families["blipmq_session_lag_messages"].samples}
        assert len(lags) == SESSIONS_MAX and lags["c3"] == 1
        assert families["blipmq_sessions_absent"].samples[0].value == SESSIONS_MAX + 5
        assert families["blipmq_sessions_lag_messages"].samples[0].value == 1
        assert len(families["blipmq_session_oldest_seconds"].samples) == 1  # the others have none


def test_info_text_names_subscriptions_with_stored_messages() -> None:
    row = {
        "key": "", "client_id": "archive", "filter": "logs.>", "group": "", "durable": True, "qos": 1, "connected": 0,
        "members": [], "lag_messages": 12_345, "lag_bytes": 3 << 20, "lag_exact": False, "log_bytes": 64 << 20,
        "oldest_ms": 7_500_000, "away_ms": 90_000_000, "in_flight": 0,
    }  # fmt: skip
    shared = {**row, "group": "presses", "members": ["a", "b\x1b[2J"], "lag_exact": True, "lag_messages": 1}
    served = {**row, "client_id": "quick", "connected": 1, "lag_messages": 3, "in_flight": 3}
    idle = {**row, "client_id": "idle", "lag_messages": 0, "lag_bytes": 0, "lag_exact": True, "log_bytes": 0}
    idle |= {"oldest_ms": None}
    rows = [row, shared, served, idle, 5, {}]
    text = report.render_info({"sessions": {"total": 4, "absent": 3, "list": rows}}, fancy=False)
    assert (
        "  archive  logs.>: at most 12,345 messages (3 MiB), the oldest 2 hours 5 minutes old, away for 1 day 1 hour, "
        "keeps 64 MiB of the WAL\n"
    ) in text
    assert "  group presses of a, b\\x1b[2J  logs.>: 1 message (3 MiB)" in text
    assert text.endswith("  idle  logs.>: 0 messages, away for 1 day 1 hour\n") and "quick" not in text


def test_info_text_counts_the_subscriptions_that_are_not_shown() -> None:
    away = {"client_id": "c", "filter": "t", "connected": 0, "lag_messages": 1, "in_flight": 0}
    late = {**away, "connected": 1, "lag_messages": 9, "in_flight": 2}

    def last_line(total: int, absent: int, rows: list[dict[str, Any]]) -> str:
        sessions = {"total": total, "absent": absent, "list": rows}
        return report.render_info({"sessions": sessions}, fancy=False).splitlines()[-1]

    assert last_line(8, 7, [late, *[away] * 7]) == "  … and 3 more"
    assert last_line(40, 30, [late, *[away] * 7]) == "  … and at least 26 more"
    assert last_line(5, 5, [away] * 5) == "  c  t: 1 message, away"


def test_info_shows_every_absent_and_every_connected_subscription(tmp_path: Path) -> None:
    with blipmq.Broker(settings(tmp_path)) as broker, blipmq.connect_blocking(broker.address) as reader:
        collecting(broker.address, "archive", "logs.>")
        reader.subscribe("logs.>")
        lines = cli(broker.address, "info").stdout.splitlines()
    assert [line.split(":")[0].strip() for line in lines[-2:]] == [
        "QoS 1 subscriptions that are away or late (all of them",
        "archive  logs.>",
    ]
    assert not any("more" in line for line in lines)


def cli(address: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "blipmq.cli.client", "--addr", address, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_the_command_line_shows_sessions_as_a_table_and_as_json(tmp_path: Path) -> None:
    with blipmq.Broker(settings(tmp_path)) as broker, blipmq.connect_blocking(broker.address) as writer:
        assert cli(broker.address, "sessions").stdout == "There are no QoS 1 subscriptions.\n"
        collecting(broker.address, "archive", "logs.>")
        collecting(broker.address, "other", "x")
        writer.publish("logs.a", b"x", qos=1)
        shown = cli(broker.address, "sessions", "--limit", "1")
        title, line, more = shown.stdout.splitlines()
        assert title.split()[:4] == ["CLIENT", "KEY", "FILTER", "GROUP"]
        assert line.split()[:2] == ["archive", "logs.>"] and "away for" in line
        assert more.startswith("… and 1 more with less lag")
        rows = [json.loads(line) for line in cli(broker.address, "sessions", "-f", "json").stdout.splitlines()]
        assert [(row["client_id"], row["lag_messages"]) for row in rows] == [("archive", 1), ("other", 0)]
        assert "other" in cli(broker.address, "sessions", "--find", "othe").stdout
        for format in ("text", "json"):
            none = cli(broker.address, "sessions", "--find", "nowhere", "-f", format)
            assert (none.returncode, none.stdout) == (1, "") and "'nowhere'" in none.stderr
