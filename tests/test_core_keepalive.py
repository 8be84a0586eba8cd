"""Lost clients and clients that only seem lost: keep-alive intervals of HELLO and socket options.

The core is stepped by hand. Tests that need a network with packet loss are in test_keepalive.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from stepped import Bench, Client, Overflow, SocketClient
from test_core_log import WalBench

from blipmq.native.events import CloseReason
from blipmq.wire import frames as wire

SERVER_MS = 60_000


def hello(client: Client, keepalive_ms: int) -> wire.Reply:
    """Send HELLO with a keep-alive interval; returns the answer."""
    client.send(wire.HELLO, seq=1, protocol=wire.PROTOCOL, keepalive_ms=keepalive_ms)
    client.bench.settle()
    if isinstance(client, SocketClient):
        client.drain()
    return client.replies.pop()


@pytest.mark.parametrize(
    "server_ms, asked_ms, in_effect_ms",
    [
        (SERVER_MS, 20_000, 20_000),
        (SERVER_MS, SERVER_MS + 1, SERVER_MS),
        (SERVER_MS, (1 << 64) - 1, SERVER_MS),
        (SERVER_MS, 1, 1000),
        (SERVER_MS, 0, 0),
        (0, 20_000, 0),
    ],
)
def test_the_hello_answer_contains_the_effective_interval(server_ms: int, asked_ms: int, in_effect_ms: int) -> None:
    with Bench(keepalive_ms=server_ms) as bench:
        client = bench.attach()
        assert hello(client, asked_ms) == wire.Reply(1, 0, "welcome", 0, b"", None, in_effect_ms)
        bench.settle(10 * SERVER_MS)
        bench.settle(2000)
        assert (client.closed is not None) == bool(in_effect_ms)


@pytest.mark.parametrize("over", ["socket", "feed"])
def test_a_client_that_misses_its_keep_alive_is_closed_and_counted(over: str) -> None:
    with Bench(keepalive_ms=SERVER_MS) as bench:
        client = bench.adopt(1 << 16) if over == "socket" else bench.attach()
        assert hello(client, 10_000).keepalive_ms == 10_000
        bench.settle(14_900)
        assert bench.stats()["connections"] == 1
        bench.settle(200)
        bench.settle(1000)  # input of an in-memory client may be in transit for another second
        assert bench.stats()["connections"] == 0 and bench.stats()["closed_silent"] == 1
        assert bench.closed[0].reason is CloseReason.SILENT and "PING" in bench.closed[0].detail


@pytest.mark.parametrize("over", ["socket", "feed"])
@pytest.mark.parametrize(
    "something",
    [
        wire.encode_command(wire.PING),
        wire.encode_command(wire.ACK, seq=5),
        wire.encode_command(wire.PUB, "t", b"x"),
        b"\0",
    ],
    ids=["PING", "ACK", "PUB", "a byte of a frame"],
)
def test_any_client_frame_satisfies_the_keep_alive(over: str, something: bytes) -> None:
    with Bench(keepalive_ms=SERVER_MS) as bench:
        client = bench.adopt(1 << 16) if over == "socket" else bench.attach()
        hello(client, 10_000)
        rounds = 3 if something == b"\0" else 20  # four of these bytes would be a length
        for _ in range(rounds):
            bench.settle(14_000)
            client.send_bytes(something)
            bench.settle()
        assert bench.stats()["connections"] == 1
        bench.settle(15_100)
        bench.settle(1100)
        assert bench.stats()["connections"] == 0


def test_frames_do_not_touch_the_timer_wheel() -> None:
    with Bench(keepalive_ms=SERVER_MS) as bench:
        client = bench.attach()
        hello(client, 10_000)
        before = bench.stats()["wheel_insertions"]
        for _ in range(1000):
            client.send(wire.PING)
            bench.settle(5)
        assert bench.stats()["wheel_insertions"] == before
        bench.settle(14_000)
        assert bench.stats()["wheel_insertions"] == before + 1 and client.closed is None


def test_a_client_with_paused_input_is_not_silent() -> None:
    with Bench(keepalive_ms=SERVER_MS, overflow_policy=Overflow.BLOCK, subscriber_messages=2) as bench:
        reader, held_back, asking = bench.attach().subscribe("t"), bench.attach(), bench.attach()
        hello(held_back, 10_000)
        hello(asking, 10_000)
        reader.stall()
        for _ in range(20):
            held_back.publish("t", b"x")
        bench.answering = False
        asking.send(wire.INFO, seq=5)
        bench.settle()
        for _ in range(30):
            bench.settle(10_000)
        assert held_back.closed is None and asking.closed is None
        reader.read()
        bench.answer(bench.asked.pop())
        bench.settle()
        bench.settle(16_000)
        bench.settle(1100)
        assert held_back.closed is not None and asking.closed is not None, (
            "from here on they are heard, and say nothing"
        )


def test_unread_input_counts_as_activity() -> None:
    with Bench(keepalive_ms=SERVER_MS) as bench:
        client = bench.adopt(1 << 16)
        hello(client, 10_000)
        client.offer(wire.encode_command(wire.PING, seq=7))
        bench.core.turn(bench.now_ms + 100_000, bench.now_ms + bench.wall_offset_ms)  # no socket check before this time
        bench.now_ms += 100_000
        bench.settle()
        client.drain()
        assert [reply.seq for reply in client.replies] == [7] and bench.stats()["connections"] == 1


def test_a_second_hello_does_not_change_the_interval() -> None:
    with Bench(keepalive_ms=SERVER_MS) as bench:
        client = bench.attach()
        hello(client, 10_000)
        bench.answering = False
        client.send(wire.HELLO, seq=2, protocol=wire.PROTOCOL, keepalive_ms=60_000)
        bench.settle()
        bench.core.reply(client.conn, 2, 400, "HELLO was said already")
        bench.settle()
        bench.settle(15_100)
        bench.settle(1100)
        assert client.closed is not None


def test_the_interval_of_an_unadmitted_client_does_not_extend_its_deadline() -> None:
    with Bench(keepalive_ms=SERVER_MS, require_hello=1, hello_timeout_ms=5000) as bench:
        bench.answering = False
        client = bench.attach()
        client.send(wire.HELLO, seq=1, protocol=wire.PROTOCOL, keepalive_ms=60_000)
        bench.settle(5100)
        assert client.closed is not None and client.closed.reason is CloseReason.UNAUTH


def test_the_messages_of_a_silent_group_member_go_to_another_at_once(tmp_path: Path) -> None:
    with WalBench(tmp_path, keepalive_ms=SERVER_MS, ack_timeout_ms=3_600_000) as bench:
        dead, alive, publisher = bench.attach(), bench.attach(), bench.attach(hello=True)
        hello(dead, 10_000)
        hello(alive, 0)
        bench.subscribed(dead, "t", group="g")
        bench.published(publisher, "t", 3)
        bench.until(lambda: len(dead.messages) == 3)
        bench.subscribed(alive, "t", group="g")
        bench.settle(15_100)
        bench.settle(1100)
        assert dead.closed is not None and dead.closed.reason is CloseReason.SILENT
        bench.until(lambda: len(alive.messages) == 3)
        assert all(message.redelivered for message in alive.messages)


def server_side(client: SocketClient) -> socket.socket:
    """The core's socket of this client, which is in the same process."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            found = socket.socket(fileno=os.dup(int(name)))
            with contextlib.suppress(OSError):
                if found.getpeername() == client.socket.getsockname():
                    return found
            found.close()
    raise AssertionError("the core has no socket of it")


def options_of(client: SocketClient) -> tuple[int, ...]:
    with server_side(client) as sock:
        on = sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        return (on, *(sock.getsockopt(socket.IPPROTO_TCP, name) for name in names))


@pytest.mark.parametrize(
    "keepalive_ms, idle_interval_count",
    [(60_000, (27, 9, 3)), (2000, (1, 1, 1)), (5000, (2, 1, 3)), (3_600_000, (1620, 540, 3))],
)
def test_tcp_probes_start_at_half_the_time_and_end_within_it(
    keepalive_ms: int, idle_interval_count: tuple[int, int, int]
) -> None:
    idle, interval, count = idle_interval_count
    assert (idle + interval * count) * 1000 <= keepalive_ms
    with Bench(keepalive_ms=keepalive_ms) as bench:
        bench.listen()
        assert options_of(bench.connect()) == (1, *idle_interval_count)


def test_a_reload_affects_only_new_connections() -> None:
    with Bench(keepalive_ms=0) as bench:
        bench.listen()
        before = bench.connect()
        assert options_of(before)[0] == 0
        bench.core.limits(bench.config._replace(keepalive_ms=60_000))
        bench.settle()
        assert options_of(before)[0] == 0 and options_of(bench.connect()) == (1, 27, 9, 3)
        assert hello(bench.attach(), 20_000).keepalive_ms == 20_000


def test_tcp_user_timeout_is_not_set_because_it_closes_slow_readers() -> None:
    with Bench(keepalive_ms=60_000) as bench:
        bench.listen()
        with server_side(bench.connect()) as sock:
            assert sys.platform != "linux" or sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 0


def test_connections_with_no_unacknowledged_output_are_not_checked() -> None:
    with Bench(keepalive_ms=60_000) as bench:
        bench.listen()
        clients: list[Any] = [bench.connect() for _ in range(600)]
        for client in clients:
            hello(client, 0)
        bench.settle(15_000)
        for _ in range(10):
            bench.settle(15_000)
        assert bench.core.next_timer_ms() == -1 and bench.stats()["connections"] == 600
