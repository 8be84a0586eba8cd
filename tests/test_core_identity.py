"""Every cell of the table in docs/PROTOCOL.md that defines how a second SUB, UNSUB, a newer connection and a restart
change a subscription, compared with a simple model.

Invariant: each scenario has its own filter and two client_ids, so one core runs hundreds of them. The tests wait only
for answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import pytest
from killed import as_killed
from stepped import Client
from test_core_log import WAL, WalBench

from blipmq.wire import frames as wire

SUBS = {
    "sub qos 0": {"qos": 0},
    "sub qos 1": {"qos": 1},
    "sub durable": {"qos": 1, "durable": True},
    "sub qos 0 group": {"qos": 0, "group": "g"},
    "sub qos 1 group": {"qos": 1, "group": "g"},
    "sub durable group": {"qos": 1, "durable": True, "group": "g"},
}
ENDS = {"unsub": "", "unsub group": "g"}
LEAVES = {"leave": "", "leave group": "g"}  # UNSUB with keep_durable
ALL = [*SUBS, *ENDS, "newer connection", "connection ends"]
BY_BOTH = [(who, what) for who in (0, 1) for what in ALL]
PLACES = {"max_connections": 8000, "max_sessions": 20_000, "ring_bytes": 1 << 22}
BIG_WAL = WAL._replace(max_bytes=64 << 20, segment_bytes=1 << 20, batch_bytes=256 << 10)


class Twin:
    """The subscriptions of one filter. Clients are 0 and 1; each has one connection or none."""

    def __init__(self) -> None:
        self.alone: dict[int, int] = {}  # the QoS of the subscription of a connection itself
        self.taken_up: set[int] = set()  # clients whose own subscription is the durable one of their client_id
        self.durable: set[int] = set()
        self.members: dict[int, int] = {}  # the QoS that each requested for the group
        self.holders: set[int] = set()
        self.group_qos = 0

    def sub(self, who: int, qos: int, durable: bool = False, group: str = "") -> None:
        mine = self.members if group else self.alone
        mine[who] = max(qos, mine.get(who, 0))
        if group:
            self.group_qos = max(self.group_qos, qos)
            self.holders |= {who} if durable else set()
        elif durable:
            self.durable.add(who)
            self.taken_up.add(who)

    def unsub(self, who: int, group: str) -> bool:
        """Whether a subscription existed."""
        there = who in self.members or who in self.holders
        self.members.pop(who, None)
        self.holders.discard(who)
        if not group:
            there = there or who in self.alone or who in self.durable
            self.durable.discard(who)
            self.leave(who, alone_only=True)
        self._group_may_end()
        return there

    def leave_filter(self, who: int, group: str) -> bool:
        """Whether this connection had a subscription."""
        there = who in self.members or (not group and who in self.alone)
        self.members.pop(who, None)
        if not group:
            self.leave(who, alone_only=True)
        self._group_may_end()
        return there

    def leave(self, who: int, alone_only: bool = False) -> None:
        self.alone.pop(who, None)
        self.taken_up.discard(who)
        if not alone_only:
            self.members.pop(who, None)
        self._group_may_end()

    def _group_may_end(self) -> None:
        if not self.members and not self.holders:
            self.group_qos = 0

    @property
    def sessions(self) -> int:
        passing = [who for who, qos in self.alone.items() if qos and who not in self.taken_up]
        return len(passing) + len(self.durable) + bool(self.members or self.holders)

    def collecting(self) -> list[str]:
        """Consumers that must get a QoS 1 message published now, including absent ones."""
        return [f"durable {who}" for who in sorted(self.durable)] + (["group"] if self.holders else [])


class Scenario:
    def __init__(self, number: int, steps: tuple[tuple[int, str], ...]) -> None:
        self.filter = f"f/{number}"
        self.steps = steps
        self.twin = Twin()
        self.clients: dict[int, Client] = {}
        self.missed: dict[str, list[bytes]] = {}  # messages published for the absent consumers of `collecting`
        self.wanted: list[tuple[Client, int]] = []

    def __repr__(self) -> str:
        return " · ".join(f"{'AB'[who]} {what}" for who, what in self.steps)

    def name(self, who: int) -> str:
        return f"{'AB'[who]} of {self.filter}"

    def client(self, bench: WalBench, who: int) -> Client:
        if who not in self.clients:
            self.clients[who] = bench.named(self.name(who))
        return self.clients[who]

    def step(self, bench: WalBench, who: int, what: str) -> None:
        """Send the request; `answers` checks the answers."""
        if what == "connection ends":
            if who in self.clients:
                bench.core.close(self.clients.pop(who).conn)
            self.twin.leave(who)
            return
        if what == "newer connection":
            older = self.clients.pop(who, None)
            if older is not None:
                bench.core.reply(older.conn, 0, 409, "", close=True, unasked=True)
            self.client(bench, who)
            self.twin.leave(who)
            return
        client = self.client(bench, who)
        if what in SUBS:
            client.send(wire.SUB, self.filter, seq=7, **SUBS[what])
            self.twin.sub(who, **SUBS[what])
            self.wanted.append((client, -1))
        elif what in LEAVES:
            client.send(wire.UNSUB, self.filter, seq=8, group=LEAVES[what], keep_durable=True)
            self.wanted.append((client, 0 if self.twin.leave_filter(who, LEAVES[what]) else 404))
        else:
            client.send(wire.UNSUB, self.filter, seq=8, group=ENDS[what])
            self.wanted.append((client, 0 if self.twin.unsub(who, ENDS[what]) else 404))

    def answered(self) -> bool:
        return all(
            len(client.subacks) + len(client.replies) == sum(1 for other, _ in self.wanted if other is client)
            for client, _ in self.wanted
        )

    def answers(self) -> None:
        for client, code in self.wanted:
            answer = client.subacks.pop(0) if code < 0 else client.replies.pop(0)
            assert answer.code == max(code, 0), self
        assert not any(client.subacks or client.replies for client in self.clients.values()), self
        self.wanted.clear()

    def due(self, light: bytes, heavy: bytes) -> tuple[dict[int, list[tuple[bytes, int]]], list[tuple[bytes, int]]]:
        """The messages due to each connection itself, and those due to the group members together."""
        twin = self.twin
        alone = {who: [(light, 0), (heavy, qos)] for who, qos in twin.alone.items()}
        for who in twin.taken_up:
            alone[who] += [(payload, 1) for payload in self.missed.pop(f"durable {who}", [])]
        missed = self.missed.pop("group", []) if twin.members else []
        group = [(payload, 1) for payload in missed] + [(light, 0), (heavy, twin.group_qos)] if twin.members else []
        return alone, group

    def received(self) -> int:
        return sum(len(client.messages) for client in self.clients.values())

    def deliveries(self, alone: dict[int, list[tuple[bytes, int]]], group: list[tuple[bytes, int]]) -> None:
        """Check the received messages and acknowledge them."""
        for who, client in self.clients.items():
            got = [(message.payload, message.qos) for message in client.messages]
            for one in alone.get(who, []):
                assert one in got, (self, "AB"[who], one, got)
                got.remove(one)
            for payload, qos in got:  # group messages: each once, to any member, with at most the requested QoS
                assert who in self.twin.members, (self, "AB"[who], got)
                due = next((each for each in group if each[0] == payload), None)
                assert due and qos == min(due[1], self.twin.members[who]), (self, "AB"[who], payload, qos, group)
                group.remove(due)
            for message in client.messages:
                if message.qos:
                    client.send(wire.ACK, seq=message.id)
            client.messages.clear()
        assert not group, (self, group)

    def published(self, payload: bytes) -> None:
        """Record the message for absent consumers, and discard the records of an ended one."""
        kept = self.twin.collecting()
        self.missed = {each: payloads for each, payloads in self.missed.items() if each in kept}
        for each in kept:
            who = set(self.twin.members) if each == "group" else {int(each[-1])} & self.twin.taken_up
            if not who:
                self.missed.setdefault(each, []).append(payload)

    def comes_back(self, bench: WalBench) -> None:
        """Reconnect all stored subscriptions as durable."""
        for who in (0, 1):
            if who in self.twin.durable:
                self.step(bench, who, "sub durable")
        if self.twin.holders:
            self.step(bench, min(self.twin.holders), "sub durable group")

    def kept(self) -> None:
        expected: dict[int, list[bytes]] = {}
        for each, payloads in self.missed.items():
            who = min(self.twin.holders) if each == "group" else int(each[-1])
            expected.setdefault(who, []).extend(payloads)
        for who, client in self.clients.items():
            got = [message.payload for message in client.messages]
            assert sorted(got) == sorted(expected.get(who, [])), (self, "AB"[who], got)


def after_all(bench: WalBench, scenarios: list[Scenario]) -> None:
    """Wait for the answers and check them."""
    bench.settle()
    bench.until(lambda: all(scenario.answered() for scenario in scenarios))
    for scenario in scenarios:
        scenario.answers()
    assert bench.stats()["sessions"] == sum(scenario.twin.sessions for scenario in scenarios)


def publish_all(bench: WalBench, scenarios: list[Scenario], publisher: Client, payload: bytes, qos: int) -> None:
    for scenario in scenarios:
        publisher.send(wire.PUB, scenario.filter, payload, qos=qos, seq=1)
    bench.settle()
    bench.until(lambda: len(publisher.replies) == qos * len(scenarios))
    assert {answer.code for answer in publisher.replies} <= {0}
    publisher.replies.clear()
    bench.settle()


def all_got(bench: WalBench, scenarios: list[Scenario], light: bytes, heavy: bytes) -> None:
    """Wait for all due messages and check them."""
    for scenario in scenarios:
        scenario.published(heavy)
    dues = [scenario.due(light, heavy) for scenario in scenarios]
    count = sum(sum(map(len, alone.values())) + len(group) for alone, group in dues)
    bench.until(lambda: sum(scenario.received() for scenario in scenarios) >= count)
    for scenario, due in zip(scenarios, dues, strict=True):
        scenario.deliveries(*due)
    bench.settle()


def all_come_back(bench: WalBench, scenarios: list[Scenario]) -> None:
    """Connect all stored subscriptions and check their stored messages."""
    assert bench.stats()["sessions"] == sum(scenario.twin.sessions for scenario in scenarios)
    for scenario in scenarios:
        scenario.clients.clear()
        scenario.comes_back(bench)
    after_all(bench, scenarios)
    bench.until(lambda: bench.stats()["sessions_behind"] == 0)
    for scenario in scenarios:
        scenario.kept()


def run(directory: Path, programs: Iterable[tuple[tuple[int, str], ...]], end: str) -> None:
    scenarios = [Scenario(number, steps) for number, steps in enumerate(programs)]
    log = directory / "log"
    log.mkdir()
    with WalBench(log, BIG_WAL, **PLACES) as bench:
        publisher = bench.attach(hello=True)
        for turn in range(max(len(scenario.steps) for scenario in scenarios)):
            for scenario in scenarios:
                scenario.step(bench, *scenario.steps[turn])
            after_all(bench, scenarios)
            light, heavy = b"light %d" % turn, b"heavy %d" % turn
            publish_all(bench, scenarios, publisher, light, 0)
            publish_all(bench, scenarios, publisher, heavy, 1)
            all_got(bench, scenarios, light, heavy)
        for scenario in scenarios:
            for who in (0, 1):
                scenario.step(bench, who, "connection ends")
        bench.settle()
        publish_all(bench, scenarios, publisher, b"last", 1)
        for scenario in scenarios:
            scenario.published(b"last")
        if end == "at once":
            all_come_back(bench, scenarios)
            return
        bench.until(lambda: bench.stats()["log_next_lsn"] - 1 == bench.stats()["log_durable_lsn"])
        if end == "after a kill":
            log = as_killed(log, directory / "as it was")  # no checkpoint: every record is read again
    with WalBench(log, BIG_WAL, **PLACES) as bench:
        all_come_back(bench, scenarios)


@pytest.mark.parametrize("end", ["at once", "after a restart", "after a kill"])
@pytest.mark.parametrize("first", ALL)
def test_repeated_requests_change_a_subscription_as_the_table_defines(first: str, end: str, tmp_path: Path) -> None:
    run(tmp_path, [((0, first), second, third) for second, third in itertools.product(BY_BOTH, BY_BOTH)], end)


@pytest.mark.parametrize("end", ["at once", "after a restart", "after a kill"])
def test_unsub_with_keep_durable_ends_no_durable_subscription(end: str, tmp_path: Path) -> None:
    begins = [((0, first), (0, second)) for first, second in itertools.product(SUBS, [*SUBS, "newer connection"])]
    goes_on = [(0, what) for what in (*SUBS, *ENDS, *LEAVES, "newer connection")] + [(1, "sub durable group")]
    run(
        tmp_path,
        [(*begin, (0, leave), after) for begin in begins for leave in LEAVES for after in goes_on],
        end,
    )
