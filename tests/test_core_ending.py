"""How connections end: requests before QUIT or a half-close are answered, and nothing is kept for long.

Each case is run over TCP and over an in-memory connection, which TLS and in-process clients use. The core is stepped,
and the disk answers when a test advances time.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from stepped import Client, Overflow, SocketClient, conserved
from test_core_log import WalBench

from blipmq.native.config import WalConfig
from blipmq.native.events import CloseReason
from blipmq.wire import frames as wire

DISK_MS = 1000
"""How long a record waits for its sync: the disk of these tests is slow."""
SLOW = WalConfig(
    max_bytes=1 << 20, reserve_bytes=0, segment_bytes=16 << 10, batch_bytes=4 << 10, flush_interval_ms=DISK_MS
)

overs = pytest.mark.parametrize("over", ["socket", "feed"])


class EndingBench(WalBench):
    """TCP or in-memory clients, and both ways to end the input."""

    def client(self, over: str, name: str = "") -> Client:
        self.rested()
        if over == "feed":
            return self.named(name)
        if self.address is None:
            self.listen()
        client = self.connect()
        client.send(wire.HELLO, seq=1, protocol=1)
        self.pull(client, lambda: client.replies)
        client.replies.clear()
        return client

    def end(self, client: Client) -> None:
        if isinstance(client, SocketClient):
            client.socket.shutdown(socket.SHUT_WR)
        else:
            self.core.end_input(client.conn)

    def rested(self) -> None:
        """Wait until the WAL has nothing to write: from here on a record waits as long as SLOW."""
        self.until(lambda: self.stats()["log_next_lsn"] - 1 == self.stats()["log_durable_lsn"], advance_ms=100)

    def end_seen(self, client: Client) -> None:
        """End its input and wait until the core has noticed it: its subscriptions are removed."""
        client.send(wire.SUB, "own", seq=99)
        self.pull(client, lambda: client.subacks)
        client.subacks.clear()
        before = self.stats()["subscriptions"]
        self.end(client)
        self.until(lambda: self.stats()["subscriptions"] < before)

    def pull(self, client: Client, happened: Callable[[], object], advance_ms: int = 0) -> None:
        """Run turns and read from the socket until the condition holds."""

        def look() -> object:
            if isinstance(client, SocketClient):
                client.receive()
            return happened()

        self.until(look, advance_ms)

    def has_ended(self, client: Client) -> bool:
        return client.eof if isinstance(client, SocketClient) else client.closed is not None

    def to_the_end(self, client: Client) -> None:
        self.pull(client, lambda: self.has_ended(client), advance_ms=100)
        if isinstance(client, SocketClient):
            client.socket.close()
        self.settle()


def bench_of(tmp_path: Path, log: WalConfig = SLOW, **limits: int) -> EndingBench:
    return EndingBench(tmp_path, log, **limits)


REQUESTS: list[tuple[str, Callable[[Client], None]]] = [
    ("PING", lambda client: client.send(wire.PING, seq=5)),
    ("SUB", lambda client: client.send(wire.SUB, "t", seq=5)),
    ("durable SUB", lambda client: client.send(wire.SUB, "t", seq=5, qos=1, durable=True, group="g")),
    ("INFO", lambda client: client.send(wire.INFO, seq=5)),
    ("UNSUB", lambda client: client.send(wire.UNSUB, "never", seq=5)),
    ("PUB", lambda client: client.send(wire.PUB, "t", b"kept", qos=1, seq=5)),
    ("refused PUB", lambda client: client.send(wire.PUB, "t/*", b"", qos=1, seq=5)),
]


@overs
@pytest.mark.parametrize("how", ["end of file", "QUIT"])
@pytest.mark.parametrize("request_", [send for _, send in REQUESTS], ids=[name for name, _ in REQUESTS])
def test_a_request_followed_directly_by_the_end_is_answered(
    tmp_path: Path, over: str, how: str, request_: Callable[[Client], None]
) -> None:
    with bench_of(tmp_path) as bench:
        client = bench.client(over, "one")
        request_(client)
        if how == "QUIT":
            client.send(wire.QUIT)
        else:
            bench.end(client)
        bench.to_the_end(client)
        assert [answer.seq for answer in [*client.replies, *client.subacks]] == [5]
        assert bench.stats()["connections"] == 0


@overs
def test_publishes_pending_on_disk_are_answered_in_order_after_a_half_close(tmp_path: Path, over: str) -> None:
    with bench_of(tmp_path) as bench:
        client = bench.client(over)
        for seq in range(500):  # several batches of the WAL; input is paused in between
            client.send(wire.PUB, "t", bytes(100), qos=1, seq=seq)
        bench.end(client)
        bench.to_the_end(client)
        assert [(reply.seq, reply.code) for reply in client.replies] == [(seq, 0) for seq in range(500)]
        assert bench.stats()["connections"] == 0


@overs
def test_a_late_python_answer_is_sent_after_a_half_close(tmp_path: Path, over: str) -> None:
    with bench_of(tmp_path) as bench:
        client = bench.client(over)
        bench.answering = False
        client.send(wire.INFO, seq=1)
        client.send(wire.PING, seq=2)
        bench.end(client)
        bench.until(lambda: bench.asked)
        bench.settle(60_000)  # the end is behind them in its input, so the core has not seen it
        assert len(bench.asked) == 1 and bench.stats()["connections"] == 1
        bench.answering = True
        bench.answer(bench.asked.pop())
        bench.to_the_end(client)
        assert [reply.seq for reply in client.replies] == [1, 2]


@overs
def test_a_blocked_publisher_delivers_everything_after_a_half_close(tmp_path: Path, over: str) -> None:
    with bench_of(tmp_path, overflow_policy=Overflow.BLOCK, subscriber_messages=2) as bench:
        reader, client = bench.attach(hello=True).subscribe("t"), bench.client(over)
        reader.stall()
        for n in range(50):
            client.publish("t", b"%d" % n)
        client.send(wire.PING, seq=9)
        bench.end(client)
        bench.settle(60_000)
        assert not client.replies and not bench.has_ended(client)
        reader.read()
        bench.to_the_end(client)
        assert [reply.seq for reply in client.replies] == [9]
        assert reader.payloads == [b"%d" % n for n in range(50)]


@overs
def test_the_core_is_idle_while_a_half_closed_client_waits_for_the_disk(tmp_path: Path, over: str) -> None:
    with bench_of(tmp_path) as bench:
        client = bench.client(over)
        client.send(wire.PUB, "t", b"", qos=1, seq=5)
        bench.end_seen(client)
        bench.settle()
        assert bench.core.wait(0) == 0, "no readiness is reported that nobody acts on"
        assert bench.stats()["connections"] == 1 and not client.replies
        bench.to_the_end(client)
        assert [reply.seq for reply in client.replies] == [5]


@overs
def test_the_subscriptions_of_a_client_end_with_its_input(tmp_path: Path, over: str) -> None:
    with bench_of(tmp_path) as bench:
        client, publisher = bench.client(over, "one"), bench.attach(hello=True)
        client.send(wire.SUB, "t", seq=3)
        bench.pull(client, lambda: client.subacks)
        client.send(wire.PUB, "t", b"its own", seq=4)
        client.send(wire.PUB, "other", b"", qos=1, seq=5)
        bench.end(client)
        bench.until(lambda: bench.stats()["subscriptions"] == 0)
        assert bench.stats()["connections"] == 2
        publisher.publish("t", b"too late")
        bench.to_the_end(client)
        assert client.payloads == [b"its own"] and [reply.seq for reply in client.replies] == [5]
        assert conserved(bench.stats())


@overs
def test_unacknowledged_messages_of_an_ended_group_member_go_to_another_at_once(tmp_path: Path, over: str) -> None:
    with bench_of(tmp_path, ack_timeout_ms=3_600_000) as bench:
        first, publisher = bench.client(over, "first"), bench.named("publisher")
        first.send(wire.SUB, "t", seq=3, qos=1, group="g")
        bench.pull(first, lambda: first.subacks)
        publisher.send(wire.PUB, "t", b"work", qos=1, seq=1)
        bench.pull(first, lambda: first.messages, advance_ms=100)
        second = bench.named("second")
        bench.subscribed(second, "t", group="g")
        first.send(wire.PUB, "other", b"", qos=1, seq=5)  # its answer keeps the connection for a second
        bench.end(first)
        bench.until(lambda: second.messages)
        assert bench.stats()["connections"] == 3, "the one that ended waits for its answer"
        assert second.messages[0].redelivered and second.payloads == [b"work"]
        bench.to_the_end(first)
        assert [reply.seq for reply in first.replies] == [5]


def test_a_reset_closes_a_connection_with_pending_answers_at_once(tmp_path: Path) -> None:
    with bench_of(tmp_path) as bench:
        client = bench.client("socket")
        assert isinstance(client, SocketClient)
        client.send(wire.PUB, "t", b"stored even so", qos=1, seq=5)
        bench.end_seen(client)
        assert bench.stats()["connections"] == 1
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
        bench.until(lambda: bench.stats()["connections"] == 0)
        assert bench.stats()["held"] == 1
        bench.until(lambda: bench.stats()["held"] == 0, advance_ms=100)


def test_bytes_received_before_a_reset_are_processed_although_input_was_paused(tmp_path: Path) -> None:
    with bench_of(tmp_path) as bench:
        reader, client = bench.attach().subscribe("t"), bench.client("socket")
        assert isinstance(client, SocketClient)
        bench.answering = False
        client.send_bytes(
            wire.encode_command(wire.INFO, seq=1) + wire.encode_command(wire.PUB, "t", b"sent, and closed at once")
        )
        bench.until(lambda: bench.asked)
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.socket.close()
        bench.settle(1000)
        bench.until(lambda: bench.core.wait(0) == 0)  # the reset is not reported repeatedly
        bench.answer(bench.asked.pop())
        bench.until(lambda: bench.stats()["connections"] == 1)
        assert reader.payloads == [b"sent, and closed at once"]


@overs
def test_a_half_closed_connection_waits_at_most_thirty_seconds_for_the_disk(tmp_path: Path, over: str) -> None:
    with bench_of(tmp_path, SLOW._replace(flush_interval_ms=3_600_000)) as bench:
        client = bench.client(over)
        client.send(wire.PUB, "t", b"", qos=1, seq=5)
        bench.end_seen(client)
        bench.settle(29_000)
        assert bench.stats()["connections"] == 1
        bench.settle(2000)
        assert bench.stats()["connections"] == 0
        assert bench.closed[-1].reason is CloseReason.EOF and "not answered in time" in bench.closed[-1].detail


def test_a_half_closed_client_that_does_not_read_is_closed_after_five_seconds(tmp_path: Path) -> None:
    with bench_of(tmp_path) as bench:
        client = bench.named("one")
        client.stall()
        for seq in range(10):
            client.send(wire.PING, seq=seq)
        bench.end(client)
        bench.settle()
        bench.settle(4900)
        assert client.closed is None
        bench.settle(200)
        assert client.closed is not None and bench.stats()["connections"] == 0


def test_a_half_closed_legacy_client_is_closed_without_waiting(tmp_path: Path) -> None:
    with bench_of(tmp_path) as bench:
        client = bench.attach()
        client.send(wire.PUB, "t", b"", qos=1)
        bench.end(client)
        bench.settle()
        assert client.closed is not None and bench.stats()["held"] == 1
