"""Core limits that only the Python side could violate, and repeated stops."""

from __future__ import annotations

import os
import socket
import time

from stepped import WINDOW_BYTES, Bench, SocketClient

from blipmq.native.config import CoreConfig
from blipmq.native.core import Core
from blipmq.native.events import CloseReason, Stats
from blipmq.wire import frames as wire


def test_input_beyond_the_in_memory_window_closes_the_connection() -> None:
    with Bench(max_frame_bytes=1024) as bench:
        client = bench.attach()
        bench.answering = False
        client.send(wire.SUB, "a")  # its input is paused until that is answered
        bench.settle()
        piece = wire.encode_command(wire.PUB, "a", bytes(900)) * 100
        for _ in range(3 * WINDOW_BYTES // len(piece)):
            client.send_bytes(piece)
            bench.settle()
        assert client.closed is not None and client.closed.reason == CloseReason.BROKER
        assert bench.stats()["connections"] == 0


def test_connections_wait_without_spinning_while_the_event_ring_is_full() -> None:
    with Bench(ring_bytes=65536) as bench:
        client = bench.attach()
        bench.present = False
        for _ in range(40):
            bench.core.reply(client.conn, 0, 1, "", payload=bytes(8000))
        bench.settle()  # no events are taken, so the ring is full
        for seq in range(1000, 1900):
            bench.core.attach(seq)
        bench.settle()
        assert bench.core.next_timer_ms() > 0
        bench.present = True
        bench.settle()
        assert all(bench._answers[seq].conn for seq in range(1000, 1900))
        assert len({bench._answers[seq].conn for seq in range(1000, 1900)}) == 900
        assert bench.stats()["connections"] == 901


def test_a_second_stop_command_ends_the_core_at_once() -> None:
    with Bench() as bench:
        reader = bench.attach().subscribe("a")
        reader.stall()
        bench.attach().publish("a", b"nobody reads it")
        bench.settle()
        bench.core.stop(3_600_000)
        bench.settle()
        assert bench.stopped is None
        bench.core.stop(3_600_000)
        bench.settle()
        assert bench.stopped is not None and bench.stopped.unflushed == 1


def test_a_socket_attached_during_stop_is_closed() -> None:
    with Bench() as bench:
        bench.attach().subscribe("a").stall()
        bench.attach().publish("a", b"x")
        bench.settle()
        bench.core.stop(3_600_000)
        client = bench.adopt()
        client.drain()
        assert client.eof
        listener = socket.create_server(("127.0.0.1", 0))
        copy = os.dup(listener.fileno())
        bench.core.listen(listener.detach())
        bench.settle()
        os.close(copy)
        assert bench.stats()["connections"] == 2


def test_the_io_thread_stays_on_its_configured_processor() -> None:
    allowed = sorted(os.sched_getaffinity(0))
    core = Core(CoreConfig(io_cpu=allowed[-1]))
    try:
        core.start()
        core.stats(1)
        deadline = time.monotonic() + 120
        while not any(isinstance(event, Stats) for event in core.events()):
            assert time.monotonic() < deadline, "the thread does not answer"
            time.sleep(0.001)
        threads = [int(name) for name in os.listdir("/proc/self/task")]
        bound = [os.sched_getaffinity(thread) for thread in threads if _name(thread) == "bq-io"]
        assert bound == [{allowed[-1]}]
    finally:
        core.stop(0)
        core.join()
        core.free()


def _name(thread: int) -> str:
    with open(f"/proc/self/task/{thread}/comm", encoding="ascii") as file:
        return file.read().strip()


FRAME = wire.encode_command(wire.PUB, "t", bytes(1000))


def _published_in_a_turn(bench: Bench, publishers: list[SocketClient]) -> tuple[list[int], int]:
    """The frames waiting at each socket, and the total that the core read in its next turn."""
    before = bench.stats()["published"]
    waiting = [publisher.offer(FRAME * 400) // len(FRAME) for publisher in publishers]
    bench.turn()
    return waiting, bench.stats()["published"] - before


def test_a_single_publisher_is_read_fully_and_many_share_a_turn() -> None:
    with Bench() as bench:
        (waiting,), taken = _published_in_a_turn(bench, [bench.adopt(1 << 18)])
        assert taken == waiting > (64 << 10) // len(FRAME)
    with Bench(work_share=1 << 20) as bench:
        publishers = [bench.adopt(1 << 18) for _ in range(80)]
        counts, taken = _published_in_a_turn(bench, publishers)
        share = (64 << 10) // len(FRAME)
        assert min(counts) > share
        assert taken == share * len(publishers)


def test_fan_out_input_is_read_in_smaller_pieces_and_arrives_whole() -> None:
    with Bench() as bench:
        readers = [bench.attach().subscribe("t") for _ in range(2)]
        publisher = bench.adopt(1 << 18)
        publisher.send_bytes(FRAME)
        bench.settle()
        (waiting,), taken = _published_in_a_turn(bench, [publisher])
        assert taken == (48 << 10) // len(FRAME) < waiting
        bench.settle()
        assert [len(reader.messages) for reader in readers] == [1 + waiting] * 2
