"""Durable subscriptions and queue groups ended by an operator: by the core, over the wire, from a program, on the
command line.

Invariant: no test waits for a clock; each wait for a state is bounded.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from broker_process import BrokerProcess
from raw_client import RawClient
from test_core_log import WalBench
from test_session_list import cli, collecting, durable, settings

import blipmq
from blipmq.auth.keys import add_key, check_allow
from blipmq.base.peer import is_this_machine
from blipmq.errors import BlipMQError, Refused
from blipmq.native.events import Outcome, SessionEnded
from blipmq.wire import frames as wire


def ended(bench: WalBench, id: int, client_id: str = "") -> Outcome:
    """The result of ending the consumer with this id."""
    bench._seq += 1
    seq, answers = bench._seq, list[SessionEnded]()
    bench.core.end_session(seq, id, client_id)
    bench.until(lambda: answers or answers.extend(filter(None, [bench._answers.pop(seq, None)])))
    return answers[0].outcome


# ---- the core


def test_an_ended_subscription_stays_removed_after_a_restart(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        client, writer = durable(bench, "gone", "t"), bench.named("writer")
        bench.close(client)
        bench.published(writer, "t", 5)
        (row,) = bench.session_rows()
        assert ended(bench, row.id) == Outcome.DONE
        stats = bench.stats()
        assert (stats["sessions"], stats["log_durable_lsn"]) == (0, stats["log_next_lsn"] - 1)
        assert ended(bench, row.id) == Outcome.NOT_FOUND
        assert ended(bench, 0) == Outcome.NOT_FOUND
    with WalBench(tmp_path) as bench:
        assert bench.stats()["sessions"] == 0


def test_the_client_of_an_ended_subscription_is_notified_and_stays_connected(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        client, writer = durable(bench, "a", "t.*"), bench.named("writer")
        bench.subscribed(client, "other")
        (row,) = [row for row in bench.session_rows() if row.durable]
        assert ended(bench, row.id) == Outcome.DONE
        (told,) = client.replies
        assert (told.seq, told.code, told.payload) == (0, 410, b"t.*")
        assert told.message == "an operator ended this subscription: t.*"
        client.replies.clear()
        writer.send(wire.PUB, "t.x", b"QoS 0")
        bench.published(writer, "t.x", 1)
        bench.published(writer, "other", 1)
        bench.until(lambda: client.messages)
        assert [message.topic for message in client.messages] == ["other"]
        assert bench.stats()["subscriptions"] == 1
        bench.subscribed(client, "t.*", durable=True)
        bench.published(writer, "t.x", 1)
        bench.until(lambda: len(client.messages) == 2)


def test_all_members_of_an_ended_group_are_notified(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        members = [bench.named(f"m{number}") for number in range(3)]
        for member in members:
            bench.subscribed(member, "jobs", durable=True, group="presses")
        (row,) = bench.session_rows()
        assert ended(bench, row.id) == Outcome.DONE
        assert [member.replies[0].payload for member in members] == [b"jobs\npresses"] * 3
        assert bench.stats()["subscriptions"] == 0


def test_ending_a_group_of_a_thousand_tells_every_member_though_the_event_ring_is_small(
    tmp_path: Path,
) -> None:
    with WalBench(tmp_path, ring_bytes=65536, max_connections=1100, work_share=1 << 20) as bench:
        members = [bench.named(f"m{number}") for number in range(1000)]
        for number, member in enumerate(members):
            bench.subscribed(member, "jobs", durable=number == 0, group="presses")
        (row,) = bench.session_rows()
        assert (row.members, ended(bench, row.id)) == (1000, Outcome.DONE)
        assert {event.conn for event in bench.unsubscribed} == {member.conn for member in members}
        bench.until(lambda: all(member.replies for member in members))
        assert (bench.session_rows(), bench.stats()["sessions"]) == ([], 0)


def test_removing_the_last_client_id_ends_a_durable_group(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        for name in ("boiler\x1fone", "boiler\x1ftwo", "press\x1ftwo"):
            client = bench.named(name)
            bench.subscribed(client, "jobs", durable=True, group="presses")
            bench.close(client)
        (row,) = bench.session_rows()
        assert (row.clients, row.group) == (3, "presses")
        assert ended(bench, row.id, "two") == Outcome.INVALID
        assert ended(bench, row.id, "three") == Outcome.NOT_FOUND
        assert [ended(bench, row.id, name) for name in ("press\x1ftwo", "one")] == [Outcome.DONE, Outcome.DONE]
        (row,) = bench.session_rows()
        assert row.client_ids == ("boiler\x1ftwo",)
    with WalBench(tmp_path) as bench:
        (row,) = bench.session_rows()
        assert row.client_ids == ("boiler\x1ftwo",)
        assert ended(bench, row.id, "two") == Outcome.DONE
        assert not bench.session_rows()


def test_ending_a_subscription_frees_a_full_wal(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        bench.close(durable(bench, "forgotten", "t"))
        writer = bench.named("writer")

        def publish() -> int:
            writer.replies.clear()
            writer.send(wire.PUB, "t", bytes(1500), qos=1, seq=5)
            bench.until(lambda: writer.replies)
            return writer.replies[0].code

        bench.until(lambda: publish() == 503)
        assert b"blipmq-cli sessions" in writer.replies[0].message.encode()
        (row,) = bench.session_rows()
        assert ended(bench, row.id) == Outcome.DONE
        bench.until(lambda: publish() == 0, advance_ms=100)


def test_an_answer_for_a_full_event_ring_is_sent_later(tmp_path: Path) -> None:
    with WalBench(tmp_path, ring_bytes=65536) as bench:
        bench.close(durable(bench, "gone", "t"))
        (row,) = bench.session_rows()
        bench.present = False
        bench.core.end_session(77_000, row.id)
        for seq in range(300):  # in the same turn, so the ring is full before the disk has answered
            bench.core.stats(100_000 + seq)
        for _ in range(50):
            bench.turn()
            bench.core.wait(1)
        bench.present = True
        bench.until(lambda: 77_000 in bench._answers and 100_299 in bench._answers)
        assert bench._answers.pop(77_000).outcome == Outcome.DONE
        assert bench.stats()["log_durable_lsn"] == bench.stats()["log_next_lsn"] - 1


# ---- permissions ----


def test_admin_is_a_separate_permission() -> None:
    assert check_allow(["admin", "sub:a", "admin"]) == ("admin", "sub:a")
    for wrong in ("admin:", "admin:x", "Admin", "adm"):
        with pytest.raises(BlipMQError, match="admin"):
            check_allow([wrong])


def test_loopback_is_distinguished_from_other_addresses() -> None:
    assert all(map(is_this_machine, ["", "127.0.0.1:5", "127.9.9.9:1", "[::1]:5"]))
    assert not any(map(is_this_machine, ["10.0.0.1:5", "[fe80::1]:5", "198.51.100.7:1", "nonsense", "[::2]:5"]))


def asked(client: RawClient, request: Any, seq: int = 9) -> wire.Reply:
    client.say(wire.ADMIN, payload=request if isinstance(request, bytes) else json.dumps(request).encode(), seq=seq)
    reply = client.next()
    assert isinstance(reply, wire.Reply) and reply.seq == seq
    return reply


END = {"do": "sessions.end", "filter": "t", "client_id": "gone"}


def test_only_an_admin_key_ends_subscriptions_of_other_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    boiler, press = add_key(keys, "boiler", ["sub:t"]), add_key(keys, "press", ["sub:t"])
    operator, chief = add_key(keys, "operator", ["admin"]), add_key(keys, "chief", [])
    with blipmq.Broker(settings(tmp_path, auth={"keys_file": str(keys)})) as broker:
        for key in (boiler, press):
            collecting(broker.address, "gone", "t", api_key=key)
        with RawClient(broker.address) as client:
            client.hello(api_key=boiler)
            assert asked(client, END).code == 403
            assert asked(client, b"nonsense").code == 403
        with RawClient(broker.address) as client:
            client.hello(api_key=operator)
            reply = asked(client, END)
            assert (reply.code, "'boiler', 'press'" in reply.message) == (400, True)
            reply = asked(client, {**END, "key": "press"})
            assert reply.code == 0 and json.loads(reply.payload)["ended"]["key"] == "press"
            assert asked(client, {**END, "key": "press"}).code == 404
        with blipmq.connect_blocking(broker.address, api_key=operator) as own:
            assert own.sessions()["total"] == 1  # a key that may end them sees all of them
        with RawClient(broker.address) as client:
            client.hello(api_key=chief)
            assert asked(client, END).code == 0


def test_without_keys_only_loopback_clients_may_end_subscriptions(tmp_path: Path) -> None:
    from blipmq.native.events import AdminAsked
    from blipmq.protocols.blip_admin import NOT_LOCAL, Operators

    class Unkeyed:
        required = False

    operators = Operators(None, Unkeyed(), None)  # type: ignore[arg-type]
    assert operators._problem(AdminAsked(1, 1, b"", "10.1.2.3:9"), None) == NOT_LOCAL
    assert operators._problem(AdminAsked(1, 1, b"", "127.0.0.1:9"), None) == ""
    assert operators._problem(AdminAsked(1, 1, b"", "", trusted=True), None) == ""


def test_an_invalid_request_changes_nothing_and_is_answered_400(tmp_path: Path) -> None:
    with blipmq.Broker(settings(tmp_path)) as broker:
        collecting(broker.address, "gone", "t")
        with RawClient(broker.address) as client:
            client.hello()
            wrong: list[Any] = [
                b"", b"{", b"[1]", b"[" * 4000, {}, {"do": "sessions.end"}, {**END, "do": "x"}, {**END, "filter": ""},
                {**END, "client_id": 5}, {**END, "more": ""}, {**END, "key": None}, {**END, "group": "x" * 2000},
                {"do": "sessions.end", "filter": "t"},
            ]  # fmt: skip
            assert [asked(client, request).code for request in wrong] == [400] * len(wrong)
            assert asked(client, {**END, "client_id": "another"}).code == 404
            assert asked(client, {**END, "group": "g"}).code == 404
        assert broker.sessions()["total"] == 1


def test_a_non_durable_subscription_cannot_be_ended(tmp_path: Path) -> None:
    with blipmq.Broker(settings(tmp_path)) as broker, blipmq.connect_blocking(broker.address, client_id="gone") as own:
        own.subscribe("t", qos=1)
        with pytest.raises(Refused, match="it ends with its connection"):
            broker.end_session("t", client_id="gone")


# ---- programs and the command line ----


def test_a_program_ends_a_durable_subscription_of_its_broker(tmp_path: Path) -> None:
    with blipmq.Broker(settings(tmp_path)) as broker:
        collecting(broker.address, "gone", "t")
        row = broker.end_session("t", client_id="gone")
        assert (row["client_id"], row["filter"]) == ("gone", "t")
        assert broker.sessions()["total"] == 0
        with pytest.raises(Refused, match="blipmq-cli sessions"):
            broker.end_session("t", client_id="gone")


def test_a_program_removes_a_client_from_a_group_or_ends_the_group(tmp_path: Path) -> None:
    with blipmq.Broker(settings(tmp_path)) as broker:
        for name in ("one", "two"):
            with blipmq.connect_blocking(broker.address, client_id=name) as client:
                client.subscribe("jobs", qos=1, durable=True, group="presses")
        broker.end_session("jobs", client_id="one", group="presses")
        (row,) = broker.sessions()["list"]
        assert (row["members"], row["members_total"]) == (["two"], 1)
        with pytest.raises(Refused):
            broker.end_session("jobs", client_id="one", group="presses")
        assert broker.end_session("jobs", group="presses")["group"] == "presses"
        assert broker.sessions()["total"] == 0


def test_readers_of_an_ended_subscription_get_an_error_and_the_client_continues(tmp_path: Path) -> None:
    async def scene() -> None:
        async with blipmq.Broker(settings(tmp_path)) as broker, broker.connect(client_id="reader") as client:
            reading = await client.subscribe("t", qos=1, durable=True)
            other = await client.subscribe("u", qos=1)
            async with broker.connect() as operator:
                await operator.end_session("t", client_id="reader")
            with pytest.raises(Refused, match="an operator ended this subscription: t"):
                await reading.next()
            await client.publish("u", b"x", qos=1)
            assert (await other.next()).payload == b"x"
            limit = broker.config.limits.max_subscriptions_per_connection
            assert limit > 1 and list(next(iter(broker._connections)).subscriptions) == [("u", "")]

    asyncio.run(asyncio.wait_for(scene(), 60))


def test_the_command_line_ends_a_subscription_and_the_log_names_the_operator(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path, {"wal.reserve_bytes": 0}).get_ready()
    try:
        collecting(broker.address, "gone", "logs.>")
        assert cli(broker.address, "sessions", "end", "logs.>").returncode == 2
        refused = cli(broker.address, "sessions", "end", "logs.>", "--client-id", "other")
        assert refused.returncode == 1
        assert refused.stderr == (
            "blipmq-cli: The request to the broker was refused (404): there is no such subscription. Check the filter, the "
            "client_id and the group; `blipmq-cli sessions` lists QoS 1 subscriptions.\n"
        )
        done = cli(broker.address, "sessions", "end", "logs.>", "--client-id", "gone")
        assert (done.returncode, done.stdout) == (
            0,
            "Ended the subscription of gone to logs.>.\n",
        )
        line = broker.wait_for("session_ended")
        assert (line["client_id"], line["filter"]) == ("gone", "logs.>") and line["peer"].startswith("127.0.0.1:")
    finally:
        broker.signal(signal.SIGTERM)
        assert broker.wait() == 0


def test_the_command_line_reports_the_ended_part_of_a_group(tmp_path: Path) -> None:
    broker = BrokerProcess(tmp_path, {"wal.reserve_bytes": 0}).get_ready()
    try:
        for name in ("one", "two"):
            collecting(broker.address, name, "jobs", group="g")
        with blipmq.connect_blocking(broker.address) as writer:
            writer.publish("jobs", b"x", qos=1)
        end = ("sessions", "end", "jobs", "--group", "g")
        for text in (
            "Removed one from group g on jobs. Durable members left: 1.\n",
            "Ended the subscription of group g of two to jobs. Discarded 1 message stored for it.\n",
        ):
            done = cli(broker.address, *end, *(["--client-id", "one"] if "one" in text else []))
            assert (done.returncode, done.stdout, done.stderr) == (0, text, "")
    finally:
        broker.signal(signal.SIGTERM)
        assert broker.wait() == 0


def test_a_key_name_without_client_id_cannot_end_a_group(tmp_path: Path) -> None:
    with blipmq.Broker(settings(tmp_path)) as broker, blipmq.connect_blocking(broker.address) as operator:
        collecting(broker.address, "one", "jobs", group="g")
        refused = cli(broker.address, "sessions", "end", "jobs", "--group", "g", "--key", "alice")
        assert refused.returncode == 2 and "--client-id" in refused.stderr
        with pytest.raises(blipmq.errors.Refused, match="needs the client_id of the member") as caught:
            operator.end_session("jobs", group="g", key="alice")
        assert (caught.value.code, operator.sessions()["total"]) == (400, 1)


def test_a_subscriber_is_notified_when_an_operator_ends_its_subscription(tmp_path: Path) -> None:
    with blipmq.Broker(settings(tmp_path)) as broker, blipmq.connect_blocking(broker.address) as operator:
        words = ("sub", "jobs", "--qos", "1", "--durable", "--client-id", "me")
        command = [sys.executable, "-m", "blipmq.cli.client", "--addr", broker.address, *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            deadline = time.monotonic() + 60
            while not operator.sessions()["total"]:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            operator.end_session("jobs", client_id="me")
            out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert err.startswith("blipmq-cli: The subscription to jobs has ended (410): an operator ended this subscription")
    assert err.endswith("Subscribe again if you still need the messages.\n")
