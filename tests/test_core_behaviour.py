"""The behaviour of the C core, one sentence a test: stepped by hand, time as an argument."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest
from stepped import WINDOW_BYTES, Bench, Client, Overflow, SocketClient, conserved
from test_wire import BROKEN

from blipmq.native.core import BACKLOG_COMMANDS_MAX
from blipmq.native.errors import CoreBusy
from blipmq.native.events import CloseReason, Stopped
from blipmq.wire import frames as wire

BAD_TOPIC = wire.encode_command(wire.PUB, "no/+/wildcards", b"", seq=5)
UNVERIFIABLE = b"\0\0\0\x08" + b"\xff" * 8


def publish_frame(topic: str, payload: bytes = b"", ttl_ms: int = 0) -> bytes:
    return wire.encode_command(wire.PUB, topic, payload, ttl_ms=ttl_ms)


def in_use(stats: dict[str, int]) -> int:
    """Memory in use in bytes, without the free blocks of the pools."""
    return stats["memory_used_bytes"] - stats["pool_free_bytes"]


def descriptors() -> int:
    return len(os.listdir("/dev/fd"))


def test_alternating_topics_are_distinguished_after_cache_changes() -> None:
    topics = [f"plant.{number:03}" for number in range(150)]
    with Bench(route_cache_entries=64) as bench:
        publishers, reader = [bench.attach(), bench.attach()], bench.attach().subscribe(*topics)
        orders = [
            topics,
            topics[::-1],
            topics[:20],
            topics[1:20:2],
            topics[:20],
            topics[::7],
            [*topics[30:50], *topics[:20]],
        ]
        for order in orders:
            for publisher in publishers:
                publisher.send_bytes(b"".join(publish_frame(topic, topic.encode()) for topic in order * 2))
        bench.settle()
        assert all(message.topic.encode() == message.payload for message in reader.messages)
        assert Counter(reader.payloads) == Counter(topic.encode() for order in orders for topic in order * 4)


# ---- time -------------------------------------------------------------------------------------------------------------


def test_expired_messages_in_a_stalled_queue_free_their_memory() -> None:
    with Bench(buffer_bytes=16 << 10, pool_small_count=0, pool_medium_count=0, pool_large_count=0) as bench:
        publisher, stuck = bench.attach(), bench.attach().subscribe("t")
        stuck.stall()
        before = bench.stats()["memory_used_bytes"]
        for number in range(400):
            publisher.publish("t", bytes(1000), ttl_ms=50 + number % 3 * 10)
        bench.settle()
        assert bench.stats()["memory_used_bytes"] > before + 400_000
        bench.settle(advance_ms=100)
        stats = bench.stats()
        assert stats["dropped_ttl"] == 400 and stats["queued_messages"] == stats["queued_bytes"] == 0
        assert stats["memory_used_bytes"] <= before + (16 << 10)


@pytest.mark.parametrize("lazy", [0, 1])
def test_a_partly_sent_frame_is_completed_after_expiry_and_the_rest_of_its_batch_is_dropped(lazy: int) -> None:
    with Bench(lazy_expiry=lazy) as bench:
        publisher, reader = bench.attach(), bench.attach().subscribe("t")
        reader.stall(room_bytes=30_000)
        publisher.send_bytes(b"".join(publish_frame("t", bytes([number]) * 20_000, ttl_ms=50) for number in range(3)))
        bench.settle()
        assert bench.stats()["queued_messages"] == 3
        bench.settle(advance_ms=60)
        publisher.publish("t", b"later")
        reader.read()
        bench.settle()
        assert reader.payloads == [bytes(20_000), b"later"]
        assert bench.stats()["dropped_ttl"] == 2


def test_an_expired_message_is_not_delivered_to_a_reader_that_resumes_in_the_same_turn() -> None:
    with Bench() as bench:
        publisher, reader = bench.attach(), bench.attach().subscribe("t")
        reader.stall()
        publisher.publish("t", b"old", ttl_ms=50)
        bench.settle()
        reader.read()
        bench.settle(advance_ms=60)
        assert reader.messages == [] and bench.stats()["dropped_ttl"] == 1


def test_the_flush_interval_applies_once_for_many_batches() -> None:
    with Bench(flush_interval_ms=100, max_batch=1) as bench:
        publisher, reader = bench.attach(), bench.adopt()
        reader.send_bytes(wire.encode_command(wire.SUB, "t"))
        bench.settle()
        bench.settle(advance_ms=100)
        reader.drain()
        assert len(reader.subacks) == 1
        publisher.send_bytes(b"".join(publish_frame("t", bytes([number])) for number in range(5)))
        bench.turn()
        bench.turn(99)
        reader.receive()
        assert reader.messages == []
        bench.settle(advance_ms=1)
        reader.drain()
        assert reader.payloads == [bytes([number]) for number in range(5)]


@pytest.mark.parametrize(("run_messages", "flushes"), [(0, 3), (100, 3), (30, 4), (60, 5)])
def test_a_batch_is_dispatched_when_its_topic_reaches_the_message_limit(run_messages: int, flushes: int) -> None:
    # A queue of a hundred accepts whole batches, and is sent when the next batch does not fit: at 100, at 3 x 30, at
    # 60.
    with Bench(subscriber_messages=100, run_messages=run_messages) as bench:
        publisher, reader = bench.attach(), bench.attach().subscribe("t")
        before = bench.stats()["flushes"]
        publisher.send_bytes(b"".join(publish_frame("t", b"%d" % number) for number in range(300)))
        bench.settle()
        assert reader.payloads == [b"%d" % number for number in range(300)]
        assert bench.stats()["flushes"] - before == flushes


def test_the_batch_limit_of_a_topic_can_be_changed_while_running() -> None:
    with Bench(subscriber_messages=100) as bench:
        publisher, _ = bench.attach(), bench.attach().subscribe("t")
        bench.core.limits(bench.config._replace(run_messages=60))
        bench.settle()
        before = bench.stats()["flushes"]
        publisher.send_bytes(b"".join(publish_frame("t", b"%d" % number) for number in range(300)))
        bench.settle()
        assert bench.stats()["flushes"] - before == 5


# ---- memory -----------------------------------------------------------------------------------------------------------


def test_a_stuck_queue_with_few_messages_does_not_keep_many_buffers() -> None:
    with Bench(buffer_bytes=16 << 10) as bench:
        publisher, stuck, fast = bench.attach(), bench.attach().subscribe("few.*"), bench.attach().subscribe(">")
        stuck.stall()
        for number in range(300):
            publisher.send_bytes(
                publish_frame(f"few.{number % 3}", b"%d" % number) + publish_frame("bulk", bytes(30_000))
            )
            bench.settle()
        stats = bench.stats()
        assert stats["queued_messages"] == 300 and stats["compacted_bytes"] > 0
        assert stats["segments"] <= stats["queued_bytes"] // (4 << 10) + 3
        stuck.read()
        bench.settle()
        assert stuck.payloads == [b"%d" % number for number in range(300)]
        assert len(fast.messages) == 600


def test_a_frame_that_is_partly_sent_survives_being_moved() -> None:
    with Bench(buffer_bytes=4096) as bench:
        publisher, stuck, fast = bench.attach(), bench.attach().subscribe("t"), bench.attach().subscribe("bulk")
        stuck.stall()
        stuck.take(16_500)  # space for one event of 16 KiB, but not for the rest of the frame
        payload = bytes(range(256)) * 70
        publisher.publish("t", payload)
        for _ in range(20):
            publisher.publish("bulk", bytes(20_000))
            bench.settle()
        stats = bench.stats()
        assert stats["queued_messages"] == 1 and stats["compacted_bytes"] > 0
        stuck.read()
        bench.settle()
        assert stuck.payloads == [payload] and len(fast.messages) == 20


def test_two_large_frames_that_are_nearly_sent_are_not_moved_again_and_again() -> None:
    with Bench(buffer_bytes=4096) as bench:
        publisher, stuck, other = bench.attach(), bench.attach().subscribe("t"), bench.attach().subscribe("u")
        for client, topic in ((stuck, "t"), (other, "u")):
            client.stall()
            client.take(16_500)  # all but the last few KiB of the frame are sent
            publisher.publish(topic, bytes(17_920))
        publisher.publish("nobody", bytes(20_000))
        publisher.subscribe("own")
        publisher.publish("own", bytes(20_000))
        bench.settle()
        compacted = bench.stats()["compacted_bytes"]
        for _ in range(100):
            bench.turn()
        stats = bench.stats()
        assert stats["queued_messages"] == 2 and stats["compacted_bytes"] == compacted <= stats["queued_bytes"] * 2
        assert bench.core.next_timer_ms() == -1


def test_clients_that_subscribe_and_disconnect_leak_nothing() -> None:
    with Bench() as bench:
        used = []
        for round_ in range(4):
            clients = [bench.attach() for _ in range(200)]
            for number, client in enumerate(clients):
                client.send_bytes(wire.encode_command(wire.SUB, f"own.{round_}.{number}"))
                client.send_bytes(wire.encode_command(wire.SUB, f"{number}/+/#"))
            bench.settle()
            clients[0].publish("own.1")
            for client in clients:
                bench.core.close(client.conn)
            bench.settle()
            stats = bench.stats()
            assert [stats[name] for name in ("connections", "subscriptions", "filters", "segments")] == [0, 0, 0, 1]
            used.append((in_use(stats), stats["memory_used_bytes"]))
        assert used[1:] == [used[1]] * 3


def test_bad_requests_and_broken_frames_leak_no_memory_or_descriptors() -> None:
    with Bench() as bench:
        client = bench.attach(hello=True)
        frames = BAD_TOPIC * 1000
        used = []
        for _ in range(4):
            for _ in range(25):
                client.send_bytes(frames)
                bench.settle()
            assert len(client.replies) == 25_000 and {reply.code for reply in client.replies} == {400}
            client.replies.clear()
            for vector in BROKEN:
                broken = bench.attach()
                broken.send_bytes(bytes.fromhex(vector["frame"]))
                bench.settle()
                bench.close(broken)
                over_socket = bench.adopt()
                over_socket.send_bytes(bytes.fromhex(vector["frame"]))
                over_socket.drain()
                over_socket.socket.close()
                bench.settle()
            used.append((in_use(bench.stats()), bench.stats()["memory_used_bytes"], descriptors()))
        assert used[1:] == [used[1]] * 3
        assert bench.stats()["frames_bad"] >= 100_000 and bench.stats()["connections"] == 1


def test_the_memory_budget_makes_stuck_queues_shrink() -> None:
    with Bench(memory_bytes=4 << 20, buffer_bytes=64 << 10) as bench:
        publisher, fast = bench.attach(), bench.attach().subscribe("t")
        for _ in range(5):
            bench.attach().subscribe("t").stall()
        for number in range(100):
            publisher.send_bytes(publish_frame("t", b"%03d" % number + bytes(1000)) * 100)
            bench.settle()
            stats = bench.stats()
            assert in_use(stats) < (5 << 20) and conserved(stats)
        assert stats["dropped_queue_full"] > 0
        assert len(fast.messages) == 10_000


# ---- overflow ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Overflow.DROP_OLDEST, Overflow.DROP_NEW])
def test_a_reading_subscriber_loses_nothing_of_a_batch_larger_than_its_queue(policy: Overflow) -> None:
    with Bench(overflow_policy=policy, subscriber_messages=4, subscriber_bytes=300) as bench:
        publisher, reader = bench.attach(), bench.attach().subscribe("t")
        publisher.send_bytes(b"".join(publish_frame("t", bytes([number])) for number in range(100)))
        bench.settle()
        assert reader.payloads == [bytes([number]) for number in range(100)]


def blocked_bench(**limits: Any) -> tuple[Bench, Client, Client]:
    """A publisher blocked by a stalled subscriber of "t" with two messages and no space for a third."""
    bench = Bench(overflow_policy=Overflow.BLOCK, **{"subscriber_messages": 2, **limits})
    publisher, stuck = bench.attach(), bench.attach().subscribe("t")
    stuck.stall()
    publisher.send_bytes(b"".join(publish_frame("t", b"%d" % number, ttl_ms=50) for number in range(3)))
    bench.settle()
    stats = bench.stats()
    assert (stats["published"], stats["queued_messages"], stats["blocked_publishers"]) == (2, 2, 1)
    return bench, publisher, stuck


def test_block_pauses_only_publishers_to_the_full_subscriber() -> None:
    bench, publisher, _ = blocked_bench()
    with bench:
        other, reader = bench.attach(), bench.attach().subscribe("u")
        other.publish("u", b"flows")
        publisher.publish("u", b"waits behind its own")
        bench.settle()
        assert reader.payloads == [b"flows"]
        assert bench.stats()["blocked_publishers"] == 1


def test_a_blocked_publisher_resumes_when_the_full_subscriber_reads() -> None:
    bench, _, stuck = blocked_bench()
    with bench:
        stuck.read()
        bench.settle()
        assert stuck.payloads == [b"0", b"1", b"2"] and bench.stats()["blocked_publishers"] == 0


def test_a_blocked_publisher_resumes_when_the_full_subscriber_closes() -> None:
    bench, _, stuck = blocked_bench()
    with bench:
        bench.close(stuck)
        stats = bench.stats()
        assert (stats["published"], stats["dropped_disconnect"], stats["blocked_publishers"]) == (3, 2, 0)


def test_a_blocked_publisher_resumes_when_queued_messages_expire() -> None:
    bench, _, stuck = blocked_bench()
    with bench:
        bench.settle(advance_ms=60)
        stats = bench.stats()
        assert (stats["published"], stats["dropped_ttl"], stats["queued_messages"]) == (3, 2, 1)
        stuck.read()
        bench.settle()
        assert stuck.payloads == [b"2"]


def test_a_blocked_publisher_resumes_when_lazy_expiry_empties_the_queue() -> None:
    bench, _, stuck = blocked_bench(lazy_expiry=1)
    with bench:
        bench.settle(advance_ms=60)
        assert bench.stats()["blocked_publishers"] == 1
        stuck.read()
        bench.settle()
        assert stuck.payloads == [b"2"] and bench.stats()["dropped_ttl"] == 2


def test_a_blocked_publisher_resumes_when_the_full_subscriber_unsubscribes() -> None:
    bench, _, stuck = blocked_bench()
    with bench:
        stuck.send(wire.UNSUB, "t")
        bench.settle()
        stats = bench.stats()
        assert (stats["published"], stats["unrouted"], stats["blocked_publishers"]) == (3, 1, 0)


@pytest.mark.parametrize("change", [{"overflow_policy": Overflow.DROP_OLDEST}, {"subscriber_messages": 3}])
def test_a_blocked_publisher_resumes_when_new_limits_allow_it(change: dict[str, int]) -> None:
    bench, _, _ = blocked_bench()
    with bench:
        bench.core.limits(bench.config._replace(**change))
        bench.settle()
        assert bench.stats()["published"] == 3 and bench.stats()["blocked_publishers"] == 0


def test_blocked_publishers_resume_in_the_order_of_blocking() -> None:
    bench, _, stuck = blocked_bench()
    with bench:
        for name in (b"second", b"third"):
            bench.attach().publish("t", name)
            bench.settle()
        stuck.read()
        bench.settle()
        assert stuck.payloads == [b"0", b"1", b"2", b"second", b"third"]


def test_a_blocked_publisher_that_closes_is_removed() -> None:
    bench, publisher, stuck = blocked_bench()
    with bench:
        bench.close(publisher)
        stuck.read()
        bench.settle()
        assert stuck.payloads == [b"0", b"1"] and bench.stats()["blocked_publishers"] == 0


def test_a_client_that_publishes_to_itself_without_reading_blocks_only_itself() -> None:
    with Bench(overflow_policy=Overflow.BLOCK, subscriber_messages=2) as bench:
        client = bench.attach().subscribe("t")
        client.stall()
        client.send_bytes(publish_frame("t", b"x") * 5)
        bench.settle()
        assert bench.stats()["published"] == 2
        client.read()
        bench.settle()
        assert len(client.messages) == 5


# ---- rings ------------------------------------------------------------------------------------------------------------


def test_a_full_event_ring_loses_no_request_no_output_and_does_not_spin() -> None:
    with Bench(ring_bytes=65_536, max_connections=3000) as bench:
        clients = [bench.attach() for _ in range(2000)]
        reader = bench.attach().subscribe("t")
        bench.present = False
        for number, client in enumerate(clients):
            client.send(wire.SUB, f"own.{number}")
        reader.send_bytes(b"".join(publish_frame("t", b"%d" % number + bytes(200)) for number in range(1000)))
        for _ in range(50):
            bench.turn(advance_ms=2)
        assert bench.core.next_timer_ms() > 0
        bench.present = True
        for _ in range(200):
            bench.settle(advance_ms=2)
        assert [client.subacks[0].topic for client in clients] == [f"own.{number}" for number in range(2000)]
        assert [payload.rstrip(b"\0") for payload in reader.payloads] == [b"%d" % number for number in range(1000)]
        assert bench.stats()["subscriptions"] == 2001


def test_a_full_event_ring_delays_the_close_event_and_does_not_lose_it() -> None:
    with Bench(ring_bytes=65_536, max_connections=3000) as bench:
        clients = [bench.attach() for _ in range(2000)]
        bench.present = False
        for client in clients:
            client.send(wire.QUIT)
        for _ in range(50):
            bench.turn(advance_ms=2)
        bench.present = True
        for _ in range(50):
            bench.settle(advance_ms=2)
        assert {client.closed and client.closed.reason for client in clients} == {CloseReason.QUIT}
        assert bench.stats()["connections"] == 0


def test_a_full_command_ring_refuses_new_commands_and_keeps_the_others() -> None:
    with Bench(ring_bytes=65_536) as bench:
        publisher, reader = bench.attach(), bench.attach().subscribe("t")
        taken = 0
        with pytest.raises(CoreBusy):
            while True:
                publisher.publish("t", b"%d" % taken)
                taken += 1
        assert taken > BACKLOG_COMMANDS_MAX
        bench.settle()
        assert reader.payloads == [b"%d" % number for number in range(taken)]


@pytest.mark.parametrize(
    "fields", [{"api_key": "k" * 40_000}, {"client_id": "c" * 40_000}], ids=["api_key", "client_id"]
)
def test_a_hello_too_large_for_the_event_ring_is_refused_without_retries(fields: dict[str, str]) -> None:
    with Bench(ring_bytes=65_536) as bench:
        client = bench.attach()
        client.send(wire.HELLO, protocol=1, **fields)
        bench.settle()
        assert client.closed is not None and client.closed.reason == CloseReason.FRAME
        assert "4 KiB" in client.closed.detail


def test_a_group_name_too_large_for_the_event_ring_is_refused_and_the_connection_stays_open() -> None:
    with Bench(ring_bytes=65_536) as bench:
        client = bench.attach(hello=True)
        client.send(wire.SUB, "t", group="g" * 40_000, seq=7)
        client.send(wire.INFO, payload=bytes(5000), seq=8)
        client.send(wire.PING, seq=9)
        bench.settle()
        assert [(reply.seq, reply.code) for reply in client.replies] == [(7, 400), (8, 400), (9, 0)]


# ---- admission --------------------------------------------------------------------------------------------------------


def receive_until_eof(bench: Bench, client: SocketClient) -> None:
    for _ in range(1000):
        bench.turn()
        client.receive()
        if client.eof:
            return
    raise AssertionError("the connection was not closed")


def test_a_client_over_the_limit_gets_429_after_hello() -> None:
    with Bench(max_connections=1) as bench:
        bench.listen()
        bench.connect()
        refused = bench.connect()
        refused.send(wire.HELLO, seq=3, protocol=1)
        receive_until_eof(bench, refused)
        assert [(reply.seq, reply.code) for reply in refused.replies] == [(3, 429)]
        refused.socket.close()
        bench.settle()
        assert [closed.reason for closed in bench.closed] == [CloseReason.REFUSED]
        stats = bench.stats()
        assert (stats["accepted"], stats["refused"], stats["connections"]) == (1, 1, 1)


def test_a_legacy_client_over_the_limit_is_closed_at_its_first_command() -> None:
    with Bench(max_connections=1) as bench:
        bench.listen()
        bench.connect()
        refused = bench.connect()
        refused.publish("t", b"")
        receive_until_eof(bench, refused)
        assert bench.stats()["published"] == 0


def test_a_silent_client_over_the_limit_is_closed_after_a_second_and_frees_no_slot() -> None:
    with Bench(max_connections=1) as bench:
        bench.listen()
        first, refused = bench.connect(), bench.connect()
        bench.settle(advance_ms=999)
        assert refused.receive() == 0 and not refused.eof
        bench.settle(advance_ms=20)
        receive_until_eof(bench, refused)
        assert not first.eof and bench.stats()["connections"] == 1


def test_a_hundred_clients_over_the_limit_are_refused_without_using_its_slots() -> None:
    with Bench(max_connections=1) as bench:
        bench.listen()
        first = bench.connect()
        for _ in range(100):
            bench.connect()
        assert bench.stats()["refused"] == 100
        first.socket.close()
        bench.settle()
        bench.settle(advance_ms=2000)
        late = bench.connect()
        late.send(wire.HELLO, seq=1, protocol=1)
        bench.settle()
        late.drain()
        assert [reply.code for reply in late.replies] == [0]


def test_before_hello_a_command_closes_the_connection() -> None:
    with Bench(require_hello=1) as bench:
        client = bench.attach()
        client.publish("t", b"")
        bench.settle()
        assert client.closed is not None and client.closed.reason == CloseReason.UNAUTH
        assert bench.stats()["published"] == 0


def test_before_hello_a_frame_over_one_kibibyte_is_refused_from_its_length() -> None:
    with Bench(require_hello=1) as bench:
        client = bench.attach()
        client.send_bytes((1025).to_bytes(4, "big"))
        bench.settle()
        assert client.closed is not None and client.closed.reason == CloseReason.TOO_LARGE
        admitted = bench.attach(hello=True)
        admitted.publish("t", bytes(2000))
        bench.settle()
        assert bench.stats()["published"] == 1


def test_a_client_without_hello_is_closed_at_the_deadline() -> None:
    with Bench(require_hello=1, hello_timeout_ms=5000) as bench:
        silent, polite = bench.attach(), bench.attach(hello=True)
        bench.settle(advance_ms=4999)
        assert silent.closed is None
        bench.settle(advance_ms=20)
        assert silent.closed is not None and silent.closed.reason == CloseReason.UNAUTH
        assert polite.closed is None


def test_a_trusted_connection_needs_no_hello() -> None:
    with Bench(require_hello=1) as bench:
        client = bench.attach(trusted=True).subscribe("t")
        client.publish("t", b"x")
        bench.settle()
        assert client.payloads == [b"x"]


def test_time_before_attaching_counts_towards_the_hello_deadline() -> None:
    with Bench(require_hello=1, hello_timeout_ms=5000) as bench:
        late, too_late = bench.attach(passed_ms=4000), bench.attach(passed_ms=60_000)
        bench.settle(advance_ms=20)
        assert too_late.closed is not None and too_late.closed.reason == CloseReason.UNAUTH
        bench.settle(advance_ms=900)
        assert late.closed is None
        bench.settle(advance_ms=100)
        assert late.closed is not None and late.closed.reason == CloseReason.UNAUTH


@pytest.mark.parametrize(
    ("address", "port", "written"),
    [("192.0.2.7", 65535, "192.0.2.7:65535"), ("2001:db8::7%eth0", 1, "[2001:db8::7]:1"), ("", 1, "")],
)
def test_an_in_memory_connection_keeps_its_given_peer(address: str, port: int, written: str) -> None:
    with Bench() as bench:
        client = bench.attach(address=address, port=port).subscribe("t")
        assert [row.peer for row in bench.subscribers().values()] == [written]
        bench.close(client)
        assert client.closed is not None and client.closed.peer == written


def test_the_end_of_in_memory_input_comes_after_earlier_bytes() -> None:
    with Bench(overflow_policy=Overflow.BLOCK, subscriber_messages=2) as bench:
        reader, writer, half = bench.attach().subscribe("t"), bench.attach(), bench.attach()
        reader.stall()
        for n in range(50):
            writer.publish("t", b"%d" % n)
        bench.core.end_input(writer.conn)
        half.send_bytes(b"\0\0")  # a frame that stays incomplete
        bench.core.end_input(half.conn)
        bench.settle()
        assert half.closed is not None and half.closed.reason == CloseReason.EOF
        assert writer.closed is None, "it is held back: most of what it sent has not been taken yet"
        reader.read()
        bench.settle()
        assert reader.payloads == [b"%d" % n for n in range(50)]
        assert writer.closed is not None and writer.closed.reason == CloseReason.EOF


def test_in_memory_input_after_the_end_is_ignored() -> None:
    with Bench() as bench:
        client = bench.attach().subscribe("t")
        bench.answering = False
        client.send(wire.SUB, "more")  # its input is paused until this is answered
        bench.settle()
        bench.core.end_input(client.conn)
        client.publish("t", b"too late")
        bench.settle()
        assert client.closed is None
        bench.core.subscribe(client.conn, 0, "more")
        bench.settle()
        assert client.closed is not None and client.closed.reason == CloseReason.EOF
        assert bench.stats()["published"] == 0


def test_attaching_over_the_limit_is_refused() -> None:
    with Bench(max_connections=1) as bench:
        assert bench.attach().conn != 0
        assert bench.attach().conn == 0


# ---- frames -----------------------------------------------------------------------------------------------------------


def test_a_ping_after_hello_is_answered() -> None:
    with Bench() as bench:
        client, legacy = bench.attach(hello=True), bench.attach()
        client.send(wire.PING, seq=(1 << 64) - 1)
        legacy.send(wire.PING, seq=1)
        bench.settle()
        assert client.replies == [wire.Reply((1 << 64) - 1, 0, "", 0, b"")]
        assert legacy.replies == [] and legacy.closed is None


def test_a_client_that_does_not_read_its_answers_is_paused_and_loses_none() -> None:
    with Bench() as bench:
        client = bench.adopt()
        client.send(wire.HELLO, seq=1, protocol=1)
        client.drain()
        ping = wire.encode_command(wire.PING, seq=9)
        before = in_use(bench.stats())
        offered = 0
        for _ in range(2000):
            offered += client.offer((ping * 1000)[offered % len(ping) :])
            bench.turn()
        assert client.offer(ping) == 0
        assert in_use(bench.stats()) < before + (1 << 20)
        for _ in range(10_000):
            if not client.receive() and not bench.turn():
                break
        assert len(client.replies) == 1 + offered // len(ping)


def test_a_frame_of_one_mebibyte_arrives_whole_in_pieces_of_any_size() -> None:
    payload = bytes(range(256)) * 4096
    for size in (1000, 16 << 10, 64 << 10, 300_000, 2 << 20):
        with Bench(buffer_bytes=4096) as bench:
            publisher, over_socket = bench.attach(), bench.adopt(buffer_bytes=1 << 16)
            reader = bench.attach().subscribe("t")
            frame = publish_frame("t", payload)
            for at in range(0, len(frame), size):
                publisher.send_bytes(frame[at : at + size])
                bench.settle()
            over_socket.send_bytes(frame)
            bench.settle()
            assert reader.payloads == [payload] * 2
            assert publisher.consumed == len(frame)


def test_frames_may_arrive_byte_by_byte() -> None:
    with Bench() as bench:
        fed, over_socket, reader = bench.attach(), bench.adopt(), bench.attach().subscribe("t")
        for sender in (fed, over_socket):
            for byte in publish_frame("t", b"first") + publish_frame("t", b"second"):
                sender.send_bytes(bytes([byte]))
                bench.settle()
        assert reader.payloads == [b"first", b"second"] * 2


def test_an_announced_length_allocates_no_memory() -> None:
    with Bench(max_frame_bytes=64 << 20) as bench:
        clients = [bench.attach() for _ in range(20)]
        before = in_use(bench.stats())
        for client in clients:
            client.send_bytes((60 << 20).to_bytes(4, "big") + b"x")
        bench.settle()
        assert in_use(bench.stats()) - before < 20 * 256


def test_a_bad_request_after_hello_is_answered_400_and_the_connection_stays_open() -> None:
    with Bench() as bench:
        client = bench.attach(hello=True)
        client.send_bytes(BAD_TOPIC)
        client.send(wire.SUB, "a.b*", seq=6)
        client.send(wire.PING, seq=7)
        bench.settle()
        assert [(reply.seq, reply.code) for reply in client.replies] == [(5, 400), (6, 400), (7, 0)]
        assert client.closed is None


def test_an_invalid_frame_after_hello_is_answered_400_with_seq_0_and_closes() -> None:
    with Bench() as bench:
        client = bench.attach(hello=True)
        client.send_bytes(UNVERIFIABLE + wire.encode_command(wire.PING, seq=7))
        bench.settle()
        assert [(reply.seq, reply.code) for reply in client.replies] == [(0, 400)]
        assert client.closed is not None and client.closed.reason == CloseReason.FRAME


@pytest.mark.parametrize("frame", [BAD_TOPIC, UNVERIFIABLE], ids=["topic", "table"])
def test_a_bad_frame_of_a_legacy_client_closes_without_an_answer(frame: bytes) -> None:
    with Bench() as bench:
        client = bench.attach()
        client.send_bytes(frame)
        bench.settle()
        assert client.replies == [] and client.closed is not None
        assert client.closed.reason == CloseReason.FRAME and client.closed.detail


def test_a_frame_over_the_limit_is_answered_413_and_closes() -> None:
    with Bench(max_frame_bytes=2000) as bench:
        client, legacy = bench.attach(hello=True), bench.attach()
        for sender in (client, legacy):
            sender.send_bytes((2001).to_bytes(4, "big"))
        bench.settle()
        assert [(reply.seq, reply.code) for reply in client.replies] == [(0, 413)]
        assert legacy.replies == []
        assert client.closed is not None and client.closed.reason == CloseReason.TOO_LARGE
        assert legacy.closed is not None and legacy.closed.reason == CloseReason.TOO_LARGE


def test_a_refused_client_gets_its_reply_before_the_socket_closes() -> None:
    with Bench(max_frame_bytes=2000) as bench:
        bench.listen()
        client = bench.connect()
        client.send(wire.HELLO, seq=1, protocol=1)
        bench.settle()
        client.drain()
        client.send_bytes((2001).to_bytes(4, "big") + bytes(1500))
        receive_until_eof(bench, client)
        assert [reply.code for reply in client.replies] == [0, 413]
        client.socket.close()
        bench.settle()
        assert bench.stats()["connections"] == 0


def test_requests_take_effect_in_the_order_sent() -> None:
    with Bench() as bench:
        client = bench.attach(hello=True)
        client.publish("t", b"before")
        client.send(wire.SUB, "t", seq=2)
        client.publish("t", b"between")
        client.send(wire.UNSUB, "t", seq=3)
        client.publish("t", b"after")
        client.send(wire.UNSUB, "t", seq=4)
        client.send(wire.INFO, seq=5)
        bench.settle()
        assert client.payloads == [b"between"]
        assert [(reply.seq, reply.code) for reply in client.replies] == [(3, 0), (4, 404), (5, 0)]


def test_an_invalid_filter_is_refused_by_the_core_too() -> None:
    with Bench() as bench:
        client, legacy = bench.attach(hello=True), bench.attach()
        bench.core.subscribe(client.conn, 4, "a.#.b")
        bench.core.subscribe(legacy.conn, 4, "a.#.b")
        bench.settle()
        assert client.subacks == [] and [(reply.seq, reply.code) for reply in client.replies] == [(4, 400)]
        assert legacy.replies == [] and legacy.closed is not None  # a legacy client cannot decode a Reply
        assert {(event.conn, event.filter, event.refused) for event in bench.unsubscribed} == {
            (client.conn, "a.#.b", True),
            (legacy.conn, "a.#.b", True),
        }


# ---- limits and queries -----------------------------------------------------------------------------------------------


def test_new_limits_apply_only_to_new_objects() -> None:
    with Bench() as bench:
        publisher, stuck = bench.attach(), bench.attach().subscribe("t")
        stuck.stall()
        publisher.send_bytes(publish_frame("t", b"x") * 10)
        bench.settle()
        bench.core.limits(bench.config._replace(subscriber_messages=3, default_ttl_ms=50))
        bench.settle()
        assert bench.stats()["queued_messages"] == 10
        publisher.publish("t", b"new")
        bench.settle()
        assert bench.stats()["queued_messages"] == 3
        bench.settle(advance_ms=60)
        assert bench.stats()["dropped_ttl"] == 1 and bench.stats()["dropped_queue_full"] == 8


def test_limits_out_of_range_change_nothing() -> None:
    with Bench(subscriber_messages=2) as bench:
        publisher, stuck = bench.attach(), bench.attach().subscribe("t")
        stuck.stall()
        bench.core.limits(bench.config._replace(subscriber_messages=5, max_batch=0))
        publisher.send_bytes(publish_frame("t", b"x") * 10)
        bench.settle()
        assert bench.stats()["queued_messages"] == 2


def test_two_thousand_subscribers_are_listed_page_by_page_each_once() -> None:
    with Bench(max_connections=5000) as bench:
        clients = [bench.attach() for _ in range(4000)]
        for client in clients[::2]:
            client.send(wire.SUB, "t")
        bench.settle()
        rows = bench.subscribers()
        assert set(rows) == {client.conn for client in clients[::2]}
        assert all(row.subscriptions == 1 and not row.blocked for row in rows.values())


def test_target_lists_over_their_budget_are_dropped_without_losing_messages() -> None:
    """1,024 subscribers of everything and 2,200 topics exceed the budget for target lists, so each lookup drops the
    list of another topic in turn. Here every turn drops one while messages of `waiting` are pending for dispatch."""
    topics = [f"t.{number}" for number in range(2200)]
    with Bench(ring_bytes=65_536, subscriber_messages=2, max_connections=1100, work_share=1 << 30) as bench:
        first, second, third = bench.attach(), bench.attach(), bench.attach()
        everyone = [bench.attach() for _ in range(1024)]
        for client in everyone:
            bench.core.subscribe(client.conn, 0, ">")
        bench.core.subscribe(everyone[0].conn, 0, "hot")
        bench.settle()
        bench.present = False  # no output is taken from here on: queues stay at two messages
        first.publish("hot")
        for topic in topics:
            third.publish(topic)
            bench.turn()
        second.publish(waiting := topics[1000])
        for number, topic in enumerate(topics[:1500]):
            change = bench.core.unsubscribe if number % 2 else bench.core.subscribe
            change(everyone[1].conn, 0, "hot")  # its list is dropped, and will be rebuilt
            third.publish(topic)  # its list was dropped earlier: it takes half of hot's budget
            second.publish(waiting)
            first.publish("hot")
            bench.turn()
        bench.present = True
        for _ in range(100):
            bench.turn(2)
        assert bench.stats()["enqueued"] == 1024 * (2 + len(topics) + 3 * 1500)


# ---- stop -------------------------------------------------------------------------------------------------------------


def test_stop_flushes_reading_clients_and_reports_unread_messages() -> None:
    with Bench() as bench:
        publisher, reader, stuck = (
            bench.attach(),
            bench.attach(hello=True).subscribe("t"),
            bench.attach().subscribe("t"),
        )
        stuck.stall()
        publisher.send_bytes(publish_frame("t", b"x") * 5)
        bench.core.stop(1000)
        bench.settle()
        assert len(reader.messages) == 5 and reader.replies[-1].code == 503
        publisher.publish("t", b"too late")
        bench.settle(advance_ms=999)
        assert bench.stopped is None
        bench.settle(advance_ms=1)
        assert bench.stopped == Stopped(5)
        assert len(reader.messages) == 5


def test_stop_ends_at_once_when_everything_has_been_read() -> None:
    with Bench() as bench:
        publisher, reader = bench.attach(), bench.attach().subscribe("t")
        publisher.send_bytes(publish_frame("t", b"x") * 5)
        bench.core.stop(60_000)
        bench.settle()
        assert bench.stopped == Stopped(0) and len(reader.messages) == 5
        assert bench.stats()["connections"] == 0


def test_unflushed_messages_are_reported_after_a_full_event_ring() -> None:
    with Bench(ring_bytes=65_536, max_connections=1000) as bench:
        publisher, stuck = bench.attach(), bench.attach().subscribe("t")
        stuck.stall()
        publisher.send_bytes(publish_frame("t", b"x") * 5)
        bench.settle()
        clients = [bench.attach() for _ in range(900)]
        bench.present = False
        for client in clients:
            client.send(wire.SUB, "own")
        for _ in range(20):
            bench.turn(2)
        bench.core.stop(10)
        for _ in range(20):
            bench.turn(2)
        assert bench.core.next_timer_ms() > 0
        bench.present = True
        for _ in range(20):
            bench.turn(2)
        assert bench.stopped == Stopped(5)


def test_in_memory_output_is_bounded_by_its_credit() -> None:
    with Bench() as bench:
        publisher, stuck = bench.attach(), bench.attach().subscribe("t")
        stuck.reading = False
        for _ in range(50):
            publisher.publish("t", bytes(20_000))
        bench.settle()
        assert WINDOW_BYTES - (16 << 10) < stuck.untaken <= WINDOW_BYTES
        stuck.read()
        for _ in range(20):
            bench.settle()
        assert len(stuck.messages) == 50
