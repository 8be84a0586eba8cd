"""All growing structures stay within limits.memory_bytes: each is flooded in turn, and memory returns to the start
value afterwards.

`used` is the memory allocated from the pools of the core. A tolerance covers structures that no flood can shrink: the
connection table, a partly filled buffer, one message per queue, the entries of small replies.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from stepped import Bench, Client, Overflow, conserved
from test_core_log import WalBench

from blipmq.native.config import WalConfig
from blipmq.native.events import CloseReason
from blipmq.wire import frames as wire

BUDGET = 4 << 20
ALLOWED = BUDGET * 3 // 2


def used(bench: Bench) -> int:
    stats = bench.stats()
    return stats["memory_used_bytes"] - stats["pool_free_bytes"]


def publish_frame(topic: str, payload: bytes, **fields: int) -> bytes:
    return wire.encode_command(wire.PUB, topic, payload, **fields)


@pytest.mark.parametrize("policy", list(Overflow))
def test_unread_group_queues_stay_within_the_budget(policy: Overflow) -> None:
    with Bench(memory_bytes=BUDGET, buffer_bytes=64 << 10, overflow_policy=policy) as bench:
        members = [bench.attach(hello=True) for _ in range(4)]
        for member in members:
            bench.core.subscribe(member.conn, 9, "t", group="g")
        bench.settle()
        for member in members:
            member.stall()
        before = used(bench)
        publisher = bench.attach()
        for _ in range(60):
            if bench.stats()["blocked_publishers"]:
                break
            publisher.send_bytes(publish_frame("t", bytes(10_000)) * 20)
            bench.settle()
            assert used(bench) < ALLOWED
        assert policy != Overflow.BLOCK or bench.stats()["blocked_publishers"] == 1
        for member in members:
            member.read()
        bench.settle()
        assert bench.stats()["queued_messages"] == 0 and conserved(bench.stats())
        assert used(bench) < before + (1 << 20)


WAL = WalConfig(max_bytes=64 << 20, reserve_bytes=0, segment_bytes=4 << 20, batch_bytes=1 << 20)


def test_qos_0_messages_pending_behind_a_commit_pause_their_publisher(tmp_path: Path) -> None:
    with WalBench(tmp_path, WAL, memory_bytes=4 * BUDGET, max_frame_bytes=1 << 20) as bench:
        reader = bench.named("reader")
        reader.subscribe("t")
        publishers = [bench.attach(hello=True) for _ in range(2)]
        for who, publisher in enumerate(publishers):
            publisher.send_bytes(publish_frame("t", b"%d 0" % who, qos=1, seq=5))
            publisher.send_bytes(
                b"".join(publish_frame("t", b"%d %d " % (who, number) + bytes(10_000)) for number in range(1, 60))
            )
        bench.turn()  # all input arrived in one turn: no sync has ended
        assert 20 < bench.stats()["held"] < 2 * 30
        bench.until(lambda: len(reader.messages) == 2 * 60)
        for who in range(2):
            mine = [payload.split() for payload in reader.payloads if payload.startswith(b"%d " % who)]
            assert [int(words[1]) for words in mine] == list(range(60))
        assert bench.stats()["held"] == 0


def test_unread_replies_are_bounded_in_memory() -> None:
    with Bench(memory_bytes=BUDGET, max_connections=500, max_frame_bytes=1 << 20) as bench:
        before = used(bench)
        clients = [bench.attach(hello=True) for _ in range(100)]
        for client in clients:
            client.reading = False
        for client in clients[:40]:
            bench.core.reply(client.conn, 7, 0, "", payload=bytes(200_000))
            bench.settle()
            assert used(bench) < ALLOWED
        for client in clients[40:]:
            client.send_bytes(wire.encode_command(wire.PING, "", seq=3) * 300)
            bench.settle()
            assert used(bench) < ALLOWED
        closed = [client for client in clients if client.closed is not None]
        assert closed and all(client.closed.reason == CloseReason.MEMORY for client in closed if client.closed)
        assert not any(client.closed for client in clients[40:])
        for client in clients:
            if client.closed is None:
                client.read()
        bench.settle()
        assert all(len(client.replies) == 300 for client in clients[40:])
        assert used(bench) < before + (1 << 20)


def test_subscriptions_over_their_memory_share_are_refused() -> None:
    with Bench(memory_bytes=BUDGET, max_connections=500) as bench:
        before = used(bench)
        clients = [bench.attach(hello=True) for _ in range(10)]
        refused = 0
        for number in range(4000):
            client = clients[number % 10]
            client.send(wire.SUB, f"{number}/" + "level/" * 20 + "+", seq=4)
            bench.settle()
            refused += any(reply.code == 503 for reply in client.replies)
            client.replies.clear()
            if refused > 20:
                break
        assert refused > 20 and used(bench) < BUDGET / 2
        for client in clients[:5]:
            bench.close(client)
        clients[9].subscribe("one/more/+")
        assert used(bench) < BUDGET / 2 and not clients[9].replies
        for client in clients[5:]:
            bench.close(client)
        assert used(bench) < before + (1 << 20)


def test_output_in_transit_through_python_is_bounded() -> None:
    with Bench(memory_bytes=BUDGET, max_connections=500) as bench:
        readers = [bench.attach().subscribe("t") for _ in range(100)]
        for reader in readers:
            reader.reading = False
        publisher = bench.attach()
        for _ in range(30):
            publisher.send_bytes(publish_frame("t", bytes(10_000)) * 4)
            bench.settle()
        untaken = sum(reader.untaken for reader in readers)
        assert untaken <= BUDGET / 4 + 101 * (16 << 10)
        for reader in readers:
            reader.read()
        bench.settle()
        assert all(len(reader.messages) > 0 for reader in readers) and conserved(bench.stats())


def test_incomplete_input_over_a_quarter_of_the_budget_closes_its_connection() -> None:
    with Bench(memory_bytes=BUDGET, max_connections=500, max_frame_bytes=1 << 20) as bench:
        before = used(bench)
        senders: list[Client] = [bench.attach() for _ in range(50)]
        piece = publish_frame("t", bytes(900_000))[:200_000]
        for sender in senders:
            sender.send_bytes(piece)
            bench.settle()
            assert used(bench) < ALLOWED
        assert any(sender.closed for sender in senders)
        for sender in senders:
            if sender.closed is None:
                bench.close(sender)
        assert used(bench) < before + (1 << 20)


def test_small_messages_to_a_thousand_subscribers_stay_within_the_budget() -> None:
    with Bench(memory_bytes=BUDGET, max_connections=2000, buffer_bytes=64 << 10) as bench:
        readers = [bench.attach().subscribe("t") for _ in range(1000)]
        publisher = bench.attach()
        for _ in range(20):
            for _ in range(10):
                publisher.send_bytes(publish_frame("t", b"x") + publish_frame("u", b"x"))
            bench.turn()
            assert used(bench) < ALLOWED
        bench.settle()
        assert all(len(reader.messages) == 200 for reader in readers)
