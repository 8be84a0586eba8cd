"""Limits of one key: connections, QoS 1 subscriptions and queue groups."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from broker_process import until
from raw_client import RawClient
from stepped import Client
from test_core_log import WalBench
from test_session_list import settings

import blipmq
from blipmq.auth.keys import add_key
from blipmq.config.reader import from_dict
from blipmq.config.settings import Config
from blipmq.errors import Refused
from blipmq.wire import frames as wire


class KeyedBench(WalBench):
    """Every client is admitted with a key: its name is the key name, a separator and the client_id."""

    def answer(self, event: Any) -> None:
        if type(event).__name__ == "Sub":
            self.core.subscribe(
                event.conn,
                event.seq,
                event.filter,
                qos=event.qos,
                durable=event.durable,
                client_id=self.names.get(event.conn, ""),
                group=event.group,
                keyed=True,
            )
        else:
            super().answer(event)

    def code_of(self, client: Client, filter: str, **fields: Any) -> int:
        """0 for a SubAck, else the code of the refusal."""
        acks, replies = len(client.subacks), len(client.replies)
        client.send(wire.SUB, filter, qos=1, **fields)
        self.until(lambda: len(client.subacks) > acks or len(client.replies) > replies)
        return client.replies[-1].code if len(client.replies) > replies else 0


def test_a_key_cannot_exceed_its_consumer_limit_and_other_keys_are_unaffected(tmp_path: Path) -> None:
    with KeyedBench(tmp_path, max_sessions=10, max_sessions_per_key=3) as bench:
        greedy, other = bench.named("greedy\x1fa"), bench.named("other\x1fa")
        assert [bench.code_of(greedy, f"t.{number}", durable=True) for number in range(4)] == [0, 0, 0, 429]
        assert "limits.max_sessions_per_key" in greedy.replies[-1].message
        assert bench.code_of(greedy, "t.0", durable=True) == 0  # resumed, not created
        assert bench.code_of(greedy, "u") == 429 and bench.code_of(greedy, "u", group="g") == 429
        assert bench.code_of(other, "u", group="g", durable=True) == 0
        assert bench.code_of(other, "v") == 0
        stats = bench.stats()
        assert (stats["sessions_refused"], stats["sessions_refused_key"]) == (0, 3)
        greedy.send(wire.UNSUB, "t.0", seq=50)
        bench.until(lambda: greedy.replies[-1].seq == 50)
        assert bench.code_of(greedy, "u") == 0
        assert bench.code_of(greedy, "w") == 429
        bench.close(greedy)  # two durable ones remain
        again = bench.named("greedy\x1fb")
        assert [bench.code_of(again, "w", group="x"), bench.code_of(again, "w")] == [0, 429]
    with KeyedBench(tmp_path, max_sessions=10, max_sessions_per_key=3) as bench:
        again = bench.named("greedy\x1fb")
        assert [bench.code_of(again, f"u.{number}") for number in range(2)] == [0, 429]


def test_each_client_id_of_a_durable_group_counts_for_its_own_key(tmp_path: Path) -> None:
    with KeyedBench(tmp_path, max_sessions=10, max_sessions_per_key=2) as bench:
        clients = [bench.named(f"k\x1f{number}") for number in range(3)]
        codes = [bench.code_of(client, "jobs", durable=True, group="g") for client in clients]
        assert codes == [0, 0, 429]
        assert bench.code_of(bench.named("l\x1f1"), "jobs", durable=True, group="g") == 0
        clients[0].send(wire.UNSUB, "jobs", seq=9)
        bench.until(lambda: clients[0].replies)
        assert bench.code_of(clients[2], "jobs", durable=True, group="g") == 0


def test_a_limit_of_zero_means_three_quarters_of_the_total() -> None:
    config = Config()
    assert (config.connections_per_key, config.sessions_per_key) == (7500, 7500)
    config = from_dict({"server": {"max_connections": 1}, "limits": {"max_sessions": 8, "max_sessions_per_key": 5}})
    assert (config.connections_per_key, config.sessions_per_key) == (1, 5)


def test_a_key_cannot_exceed_its_connection_limit_and_a_takeover_is_not_counted(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    greedy, other = add_key(keys, "greedy"), add_key(keys, "other")
    limits = {"max_connections_per_key": 2}
    config = settings(tmp_path, auth={"keys_file": str(keys)}, limits=limits)
    with blipmq.Broker(config) as broker, contextlib.ExitStack() as open_clients:

        def hello(key: str, client_id: str = "") -> tuple[RawClient, int]:
            client = open_clients.enter_context(RawClient(broker.address))
            client.say(wire.HELLO, client_id=client_id, api_key=key, protocol=1, seq=1)
            reply = client.next()
            assert isinstance(reply, wire.Reply)
            return client, reply.code

        first, second = hello(greedy, "one"), hello(greedy)
        assert [code for _, code in (first, second)] == [0, 0]
        refused, code = hello(greedy)
        assert code == 429 and refused.next() is None
        assert hello(greedy, "one")[1] == 0
        reply = first[0].next()
        assert isinstance(reply, wire.Reply) and reply.code == 409
        assert hello(other)[1] == 0
        info = broker.info()["auth"]
        assert info is not None and info["over_limit"] == 1
        second[0].close()
        until(lambda: hello(greedy)[1] == 0, "the place of one that has ended is free again")


def test_the_error_names_the_consumer_limit_that_was_reached(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    key = add_key(keys, "boiler")
    config = settings(tmp_path, auth={"keys_file": str(keys)}, limits={"max_sessions_per_key": 1})
    with (
        blipmq.Broker(config) as broker,
        blipmq.connect_blocking(broker.address, api_key=key) as client,
        blipmq.connect_blocking(broker.address, api_key=key, client_id="b") as named,
    ):
        client.subscribe("t", qos=1)
        with pytest.raises(Refused, match=r"limits\.max_sessions_per_key"):
            named.subscribe("t", qos=1, durable=True)
        named.subscribe("t")  # a QoS 0 subscription is no consumer
        assert broker.info()["sessions"]["refused"] == {"max_sessions": 0, "max_sessions_per_key": 1}
        (row,) = broker.sessions()["list"]
        assert (row["key"], row["client_id"]) == ("boiler", "")


def test_check_shows_the_limits_of_one_key(tmp_path: Path) -> None:
    (tmp_path / "blipmq.toml").write_text('[auth]\nkeys_file = "keys"\n[limits]\nmax_sessions_per_key = 12\n')
    add_key(tmp_path / "keys", "boiler")
    command = [sys.executable, "-m", "blipmq", "check"]
    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True)
    assert "  7500 connections, 12 QoS 1 subscriptions and queue groups\n" in shown.stdout
