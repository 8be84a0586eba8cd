"""A session: one consumer with many filters. Random operations against a short model; records, restarts and limits.

The model knows of each published message which filters asked for it, and forgets a filter of a message when the filter
ends. A message must come while a filter remains, and may come once if one asked for it at all.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from stepped import Client, conserved
from test_core_log import WalBench
from test_core_sessions import LONG_NAME, comes, full_batch

from blipmq.native.events import Outcome
from blipmq.wire import frames as wire

MATCHES = {
    "a/b": {"a/b"},
    "a/+": {"a/b", "a/c"},
    "+/c": {"a/c", "b/c"},
    "a/#": {"a/b", "a/c"},
    "b/#": {"b/c"},
    "x.*": {"x.y", "x.z"},
    "x.>": {"x.y", "x.z"},
    "x.y": {"x.y"},
}
TOPICS = sorted(set().union(*MATCHES.values()))


class Session:
    """The client's side of a session, and the model of it."""

    def __init__(self, bench: WalBench, durable: bool) -> None:
        self.bench = bench
        self.durable = durable
        self.client: Client | None = None
        self.filters: dict[str, int] = {}
        self.asked: dict[bytes, set[str]] = {}  # filters that still ask for the message
        self.may: set[bytes] = set()
        self.got: list[bytes] = []
        self.unacked: list[int] = []
        self.seen = 0
        self.seq = 0

    def ask(self, what: str, filter: str, qos: int = 0) -> None:
        assert self.client is not None
        self.seq += 1
        client, core, named = self.client, self.bench.core, "me" if self.durable else ""
        before = len(client.subacks) + len(client.replies)
        if what == "subscribe":
            core.subscribe(client.conn, self.seq, filter, qos=qos, durable=self.durable, client_id=named, session=True)
        else:
            core.unsubscribe(client.conn, self.seq, filter, named, session=True, durable=self.durable)
        self.bench.until(lambda: len(client.subacks) + len(client.replies) > before)

    def subscribe(self, filter: str, qos: int) -> None:
        self.ask("subscribe", filter, qos)
        assert self.client is not None and self.client.subacks[-1].seq == self.seq
        if not qos:
            self.forget(filter)
        self.filters[filter] = qos

    def unsubscribe(self, filter: str) -> None:
        self.ask("unsubscribe", filter)
        assert self.client is not None
        assert self.client.replies.pop().code == (0 if filter in self.filters else 404)
        self.filters.pop(filter, None)
        self.forget(filter)

    def forget(self, filter: str) -> None:
        for filters in self.asked.values():
            filters.discard(filter)

    def published(self, topic: str, payload: bytes) -> None:
        asking = {filter for filter, qos in self.filters.items() if qos and topic in MATCHES[filter]}
        if asking:
            self.asked[payload] = asking
            self.may.add(payload)

    def take(self) -> None:
        """What has come: each message once, in order; the copies for filters of QoS 0 are not of interest."""
        assert self.client is not None
        for message in self.client.messages[self.seen :]:
            if not message.qos:
                continue
            assert message.payload in self.may, message
            assert message.redelivered or message.payload not in self.got, message
            if message.payload not in self.got:
                self.got.append(message.payload)
            self.unacked.append(message.id)
        self.seen = len(self.client.messages)

    def ack(self, count: int) -> None:
        assert self.client is not None
        for id in self.unacked[:count]:
            self.client.send(wire.ACK, seq=id)
        del self.unacked[:count]
        self.bench.settle()

    def connect(self) -> None:
        self.client = self.bench.attach(hello=True)
        self.seen, self.unacked = 0, []
        for filter, qos in self.filters.items():
            self.ask("subscribe", filter, qos)

    def leave(self) -> None:
        if self.client is None:
            return
        self.take()
        self.bench.close(self.client)
        self.client = None
        if not self.durable:
            self.filters.clear()
            self.asked.clear()

    def finish(self) -> None:
        """Take and acknowledge everything."""
        if self.client is None:
            self.connect()
        for _ in range(500):
            self.take()
            if not self.unacked and not self.lag():
                break
            self.ack(len(self.unacked))
            self.bench.turn(50)
            self.bench.core.wait(1)
        assert {payload for payload, filters in self.asked.items() if filters} <= set(self.got)

    def lag(self) -> int:
        return sum(row.lag_messages for row in self.bench.session_rows())


def publish(bench: WalBench, sessions: list[Session], topics: list[str], number: int) -> int:
    publisher = bench.attach(hello=True)
    for topic in topics:
        number += 1
        payload = b"%d" % number
        for session in sessions:
            session.published(topic, payload)
        publisher.send(wire.PUB, topic, payload, qos=1, seq=number)
    bench.until(lambda: len(publisher.replies) == len(topics))
    bench.close(publisher)
    return number


def step(dice: random.Random, bench: WalBench, session: Session, number: int) -> int:
    what = dice.choice(["subscribe"] * 3 + ["unsubscribe"] + ["publish"] * 4 + ["ack"] * 3 + ["leave"])
    if what == "publish":
        return publish(bench, [session], [dice.choice(TOPICS) for _ in range(dice.choice([1, 3, 20]))], number)
    if session.client is None:
        session.connect()
    elif what == "leave":
        session.leave()
        return number
    if what == "subscribe":
        session.subscribe(dice.choice(sorted(MATCHES)), dice.choice([0, 1, 1, 1]))
    elif what == "unsubscribe":
        session.unsubscribe(dice.choice(sorted(MATCHES)))
    elif what == "ack":
        session.take()
        session.ack(dice.randrange(8))
    session.take()
    return number


@pytest.mark.parametrize("durable", [True, False], ids=["durable", "of the connection"])
@pytest.mark.parametrize("seed", range(20))
def test_a_session_gets_what_the_model_says(seed: int, durable: bool, tmp_path: Path) -> None:
    dice = random.Random(seed)
    number, session, directory = 0, None, tmp_path / "0"
    for life in range(4):
        crash = durable and dice.random() < 0.5
        with WalBench(directory, max_in_flight=3) as bench:
            if session is None or not durable:
                session = Session(bench, durable)
            session.bench = bench
            for _ in range(60):
                number = step(dice, bench, session, number)
            if dice.random() < 0.5 or not durable:
                session.finish()
            assert conserved(bench.stats())
            session.leave()
            if crash:
                directory = crashed(bench, directory, tmp_path / str(life + 1))
    assert session is not None
    if durable:
        with WalBench(directory, max_in_flight=3) as bench:
            session.bench = bench
            session.finish()
            assert [row.client_ids for row in bench.session_rows()] == [("me",)]


def crashed(bench: WalBench, directory: Path, to: Path) -> Path:
    """The log as a crash at this moment leaves it: without the checkpoint of a stop."""
    bench.until(lambda: bench.stats()["log_next_lsn"] - 1 == bench.stats()["log_durable_lsn"], 50)
    while (directory / "wal.tmp").exists():  # a checkpoint that is being written
        bench.core.wait(1)
    shutil.copytree(directory, to)
    return to


def ask(bench: WalBench, client: Client, filter: str, **fields: bool | int) -> int:
    """Add a filter to the durable session of the client; the code of the answer, 0 for a SubAck."""
    before = len(client.subacks) + len(client.replies)
    bench.core.subscribe(
        client.conn,
        5,
        filter,
        client_id=bench.names[client.conn],
        session=True,
        **{"qos": 1, "durable": True, **fields},
    )
    bench.until(lambda: len(client.subacks) + len(client.replies) > before)
    return client.replies.pop().code if client.replies else 0


def test_a_message_comes_once_for_each_session_and_each_other_consumer_that_matches(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        clients = [bench.named(name) for name in ("one", "two", "three", "four")]
        for client, filters in zip(clients, (["a/+", "+/b", "a/b"], ["a/#"], ["+/b", "#"], []), strict=True):
            for filter in filters:
                assert ask(bench, client, filter) == 0
        bench.subscribed(clients[3], "a/b", durable=True)
        bench.subscribed(clients[3], "+/b", durable=True)
        bench.published(bench.attach(hello=True), "a/b", 3)
        bench.settle()
        assert [len(client.messages) for client in clients] == [3, 3, 3, 6]
        assert [row.lag_messages for row in bench.session_rows()] == [3] * 5


def test_a_filter_gets_nothing_older_than_itself_when_its_session_reads_the_log(tmp_path: Path) -> None:
    with WalBench(tmp_path, max_in_flight=2) as bench:
        client, publisher = bench.named("me"), bench.attach(hello=True)
        assert ask(bench, client, "a") == 0
        for _ in range(20):
            bench.published(publisher, "a", 1, b"a")
            bench.published(publisher, "b", 1, b"too early")
        assert ask(bench, client, "b") == 0
        bench.published(publisher, "b", 5, b"b")
        bench.close(client)
        client = bench.named("me")
        assert ask(bench, client, "b") == 0
        while len(client.messages) < 25:
            before = len(client.messages)
            for message in client.messages[-2:]:
                client.send(wire.ACK, seq=message.id)
            bench.until(lambda before=before: len(client.messages) > before)  # type: ignore[misc]
        assert client.payloads == [b"a"] * 20 + [b"b"] * 5


def test_a_filter_refused_because_the_batch_is_full_leaves_no_state(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        client = bench.named(LONG_NAME)
        publishers = bench.attach(hello=True), bench.attach(hello=True)
        full_batch(bench, *publishers)
        bench.core.subscribe(client.conn, 77, "t", qos=1, durable=True, client_id=LONG_NAME, session=True)
        bench.until(lambda: client.replies)
        assert client.replies.pop().code == 503 and client.subacks == []
        assert comes(bench, client, "t") == [] and bench.stats()["sessions"] == 0
        assert [event.refused for event in bench.unsubscribed] == [True]
        bench.until(lambda: [len(publisher.replies) for publisher in publishers] == [60, 60])
        assert ask(bench, client, "t") == 0
    with WalBench(tmp_path) as bench:
        assert bench.stats()["sessions"] == 1


def test_sessions_count_against_the_limits_of_subscriptions(tmp_path: Path) -> None:
    with WalBench(tmp_path, max_sessions=1) as bench:
        client = bench.named("me")
        assert [ask(bench, client, filter) for filter in ("a", "b", "c")] == [0, 0, 0]
        assert ask(bench, bench.named("you"), "a") == 429
        assert [event.filter for event in bench.unsubscribed] == ["a"]


def test_an_operator_ends_all_filters_of_a_session(tmp_path: Path) -> None:
    filters = [f"place/{number}" for number in range(40)]
    with WalBench(tmp_path) as bench:
        client = bench.named("me")
        assert {ask(bench, client, filter) for filter in filters} == {0}
        (row,) = bench.session_rows()
        bench.core.end_session(99, row.id)
        assert bench._await(99).outcome is Outcome.DONE
        assert sorted(event.filter for event in bench.unsubscribed) == sorted(filters)
        after = bench.stats()
        assert (after["sessions"], after["subscriptions"], after["filters"]) == (0, 0, 0)
    with WalBench(tmp_path) as bench:
        assert bench.session_rows() == []


def test_a_durable_subscription_of_the_same_client_and_filter_is_another_one(tmp_path: Path) -> None:
    """UNSUB of one leaves the other; both survive a restart under their own ids."""
    with WalBench(tmp_path) as bench:
        client = bench.named("me")
        assert ask(bench, client, "t") == 0
        bench.subscribed(client, "t", durable=True)
        bench.published(bench.attach(hello=True), "t", 1)
        bench.settle()
        assert len(client.messages) == 2
        client.send(wire.UNSUB, "t", seq=8)
        bench.until(lambda: client.replies)
    with WalBench(tmp_path) as bench:
        (row,) = bench.session_rows()
        assert (row.filter, row.client_ids, row.durable, row.qos, row.lag_messages) == ("", ("me",), True, 1, 1)


def test_the_memory_of_sessions_and_of_durable_subscriptions_is_given_back(tmp_path: Path) -> None:
    """Names of every length: the size of a block depends on all texts of a subscription."""

    def life(bench: WalBench, session: bool) -> int:
        for size in range(1, 120, 3):
            client = bench.named("n" * size)
            for filter in ("a/b", "a/+", "c"):
                bench.core.subscribe(client.conn, 5, filter, qos=1, durable=True, client_id="n" * size, session=session)
            bench.until(lambda client=client: len(client.subacks) == 3)  # type: ignore[misc]
            for filter in ("a/b", "a/+", "c"):
                bench.core.unsubscribe(client.conn, 6, filter, "n" * size, session=session, durable=True)
            bench.until(lambda client=client: len(client.replies) == 3)  # type: ignore[misc]
            for row in bench.session_rows():
                bench.core.end_session(1000 + size, row.id)
                bench._await(1000 + size)
            bench.close(client)
        bench.until(lambda: bench.stats()["log_next_lsn"] - 1 == bench.stats()["log_durable_lsn"], 50)
        return bench.stats()["memory_used_bytes"] - bench.stats()["pool_free_bytes"]

    for session in (False, True):
        with WalBench(tmp_path / str(session)) as bench:
            first = life(bench, session)
            assert [life(bench, session) for _ in range(3)] == [first] * 3
