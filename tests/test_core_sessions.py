"""The state after a subscription that could not be created or ended, and groups in a WAL of the previous version."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from stepped import Client
from test_core_log import WAL, WalBench

from blipmq.wire import frames as wire

KINDS: list[dict[str, Any]] = [
    {"qos": 1},
    {"qos": 1, "durable": True},
    {"qos": 1, "group": "g"},
    {"qos": 1, "durable": True, "group": "g"},
]
KEPT = Path(__file__).parent / "kept" / "log-groups-1"


def kind_name(kind: dict[str, Any]) -> str:
    return " ".join(f"{key} {value}" for key, value in kind.items())


LONG_NAME = "me, by a name that makes a longer record of a subscription than a publish without a payload is, by far"


def full_batch(bench: WalBench, *publishers: Client) -> None:
    """Send so much at once that the WAL batch accepts nothing more in this turn: large messages, then small ones."""
    for publisher, size in zip(publishers, (600, 0), strict=True):
        frames = (wire.encode_command(wire.PUB, "fill", bytes(size), qos=1) for _ in range(60))
        bench.core.input(publisher.conn, b"".join(frames))


def asked_behind_a_full_batch(bench: WalBench, client: Client, **request: Any) -> None:
    """The request meets a WAL batch without space for its record: its event is answered after the messages that fill
    the batch."""
    bench.answering = False
    client.send(seq=77, **request)
    bench.until(lambda: bench.asked)
    bench.answering = True
    full_batch(bench, bench.attach(hello=True), bench.attach(hello=True))
    bench.answer(bench.asked.pop())
    bench.until(lambda: client.replies)
    answer = client.replies.pop()
    assert (answer.seq, answer.code) == (77, 503)


def comes(bench: WalBench, client: Client, topic: str) -> list[tuple[bytes, int]]:
    """The messages that the client gets of a QoS 0 and a QoS 1 publish."""
    publisher = bench.attach(hello=True)
    publisher.publish(topic, b"light")
    bench.settle()
    bench.published(publisher, topic, 1, b"heavy")
    bench.settle()
    got = [(message.payload, message.qos) for message in client.messages]
    client.messages.clear()
    return got


@pytest.mark.parametrize("kind", KINDS, ids=kind_name)
def test_a_subscription_refused_at_the_limit_leaves_no_state(kind: dict[str, Any], tmp_path: Path) -> None:
    with WalBench(tmp_path, max_sessions=1) as bench:
        bench.subscribed(bench.named("other"), "other")
        before = bench.stats()
        client = bench.named("me")
        client.send(wire.SUB, "t", seq=5, **kind)
        bench.until(lambda: client.replies)
        assert (client.replies.pop().code, client.subacks) == (429, [])
        assert comes(bench, client, "t") == []
        after = bench.stats()
        assert all(after[name] == before[name] for name in ("subscriptions", "filters", "sessions"))
        assert [(event.conn, event.filter, event.group, event.refused) for event in bench.unsubscribed] == [
            (client.conn, "t", kind.get("group", ""), True)
        ]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "durable" in kind], ids=kind_name)
def test_a_durable_subscription_whose_commit_fails_leaves_no_state(kind: dict[str, Any], tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        client = bench.named(LONG_NAME)
        asked_behind_a_full_batch(bench, client, action=wire.SUB, topic="t", **kind)
        assert comes(bench, client, "t") == [] and bench.stats()["sessions"] == 0
        assert [event.refused for event in bench.unsubscribed] == [True]
    with WalBench(tmp_path) as bench:
        assert bench.stats()["sessions"] == 0


@pytest.mark.parametrize("before", [{"qos": 0}, {"qos": 1}, {"qos": 1, "group": "g"}], ids=kind_name)
def test_a_subscription_that_cannot_become_durable_is_unchanged(before: dict[str, Any], tmp_path: Path) -> None:
    group = {"group": before["group"]} if "group" in before else {}
    with WalBench(tmp_path) as bench:
        client = bench.named(LONG_NAME)
        client.send(wire.SUB, "t", seq=5, **before)
        bench.until(lambda: client.subacks)
        asked_behind_a_full_batch(bench, client, action=wire.SUB, topic="t", qos=1, durable=True, **group)
        assert comes(bench, client, "t") == [(b"light", 0), (b"heavy", before["qos"])]
        assert bench.unsubscribed == []
    with WalBench(tmp_path) as bench:
        assert bench.stats()["sessions"] == 0


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "durable" in kind], ids=kind_name)
def test_a_subscription_whose_end_fails_to_commit_is_unchanged(kind: dict[str, Any], tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        client = bench.named(LONG_NAME)
        bench.subscribed(client, "t", **{key: value for key, value in kind.items() if key != "qos"})
        asked_behind_a_full_batch(bench, client, action=wire.UNSUB, topic="t")
        assert sorted(comes(bench, client, "t")) == [(b"heavy", 1), (b"light", 0)]
        assert bench.unsubscribed == []
    with WalBench(tmp_path) as bench:
        assert bench.stats()["sessions"] == 1


def test_messages_queued_before_a_subscription_became_durable_are_kept(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        client, publisher = bench.named("me"), bench.named("publisher")
        bench.subscribed(client, "t")
        bench.published(publisher, "t", 3)
        bench.settle()
        bench.subscribed(client, "t", durable=True)
        bench.published(publisher, "t", 2)
        bench.settle()
        assert len(client.messages) == 5 and bench.stats()["sessions"] == 1
        first = [message.id for message in client.messages]
        bench.close(client)
        again = bench.named("me")
        bench.subscribed(again, "t", durable=True)
        bench.until(lambda: len(again.messages) == 5)
        assert [message.id for message in again.messages] == first
        bench.until(lambda: bench.stats()["log_next_lsn"] - 1 == bench.stats()["log_durable_lsn"])
    with WalBench(tmp_path) as bench:
        last = bench.named("me")
        bench.subscribed(last, "t", durable=True)
        bench.until(lambda: len(last.messages) == 5)
        assert [message.id for message in last.messages] == first


def test_each_durable_client_id_of_a_group_counts_as_a_consumer(tmp_path: Path) -> None:
    with WalBench(tmp_path, max_sessions=3) as bench:
        clients = [bench.named(f"worker {number}") for number in range(4)]
        for client in clients[:3]:
            bench.subscribed(client, "t", durable=True, group="g")
        clients[3].send(wire.SUB, "t", qos=1, durable=True, group="g", seq=4)
        bench.until(lambda: clients[3].replies)
        assert clients[3].replies.pop().code == 429
        bench.subscribed(clients[3], "t", group="g")  # this needs no slot
        clients[0].send(wire.UNSUB, "t", group="g", seq=5)
        bench.until(lambda: clients[0].replies)
        bench.subscribed(clients[3], "t", durable=True, group="g")


def test_a_group_has_at_most_1024_durable_client_ids(tmp_path: Path) -> None:
    big = WAL._replace(max_bytes=8 << 20, segment_bytes=1 << 20, batch_bytes=256 << 10)
    with WalBench(tmp_path, big, max_sessions=5000, max_connections=1200) as bench:
        clients = [bench.named(f"worker {number}") for number in range(1025)]
        for client in clients:
            client.send(wire.SUB, "t", qos=1, durable=True, group="g", seq=4)
        bench.until(lambda: all(client.subacks or client.replies for client in clients))
        refused = [client.replies[0] for client in clients if client.replies]
        assert [answer.code for answer in refused] == [429] and "1024 durable" in refused[0].message
    with WalBench(tmp_path, big, max_sessions=5000) as bench:
        leaving = bench.named("worker 7")
        for code in (0, 404):  # subscriptions read at a restart are ended one by one
            leaving.send(wire.UNSUB, "t", group="g", seq=5)
            bench.until(lambda: leaving.replies)
            assert leaving.replies.pop().code == code
        assert bench.stats()["sessions"] == 1


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_groups_of_the_previous_wal_version_keep_their_owners(how: str, tmp_path: Path) -> None:
    directory = shutil.copytree(KEPT / how, tmp_path / "log")
    small = WAL._replace(max_bytes=64 << 10)
    with WalBench(directory, small) as bench:
        assert bench.stats()["sessions"] == 2
        one = bench.named("one")
        bench.subscribed(one, "orders", durable=True)
        bench.subscribed(one, "jobs", durable=True, group="workers")
        bench.until(lambda: len(one.messages) == 4)
        assert sorted(message.payload for message in one.messages) == [b"job"] * 2 + [b"order"] * 2
        bench.subscribed(bench.named("two"), "jobs", durable=True, group="workers")
        one.send(wire.UNSUB, "jobs", seq=3)
        bench.until(lambda: one.replies)
        assert bench.stats()["sessions"] == 2, "two keeps it"
    with WalBench(directory, small) as bench:
        assert bench.stats()["sessions"] == 2
        two = bench.named("two")
        two.send(wire.UNSUB, "jobs", seq=3)
        bench.until(lambda: two.replies)
        assert (two.replies.pop().code, bench.stats()["sessions"]) == (0, 1)
    with WalBench(directory, small) as bench:
        assert bench.stats()["sessions"] == 1
