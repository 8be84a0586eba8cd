"""Transcripts of the policy `block`: every end of a full queue lets the publisher resume."""

import contextlib
import signal
import socket
import struct
import threading

import pytest
from broker_process import until
from hand_client import PUB, UNSUB, Message, command, v1_command

pytestmark = pytest.mark.blackbox

CAPACITY = 100
COUNT = 20_000
SETTINGS = {
    "queues.overflow_policy": "block",
    "queues.subscriber_capacity": CAPACITY,
    "performance.network_optimizations.send_buffer_size": 65_536,
    "performance.network_optimizations.recv_buffer_size": 65_536,
}


def send(client, frames):
    """Send everything, or until the connection is closed by either side."""
    with contextlib.suppress(OSError):
        client.socket.sendall(frames)


class Stalled:
    """A stuck subscriber with a full queue, and a publisher that the broker has paused."""

    def __init__(self, broker, connect, ttl_ms=0):
        self.asker = connect(broker, hello=True)
        self.stuck = connect(broker, hello=True, client_id="stuck", receive_buffer_bytes=4096).subscribe("t")
        self.writer = connect(broker)
        frames = b"".join(v1_command(PUB, "t", b"%06d" % n + bytes(994), ttl_ms) for n in range(COUNT))
        self.sending = threading.Thread(target=send, args=(self.writer, frames), daemon=True)
        self.sending.start()
        if not ttl_ms:
            until(lambda: self.row()["queued_messages"] == CAPACITY, "the queue is full")
            assert self.published() < COUNT

    def row(self):
        return next(row for row in self.asker.info()["subscriptions"] if row["client"] == "stuck")

    def published(self):
        return self.asker.info()["messages"]["published"]

    def goes_on(self):
        """Everything is published in the end."""
        until(lambda: self.published() == COUNT, "the publisher goes on to its end")
        self.sending.join()


@pytest.fixture
def stalled(start_broker, connect):
    broker = start_broker(SETTINGS)
    stalled = Stalled(broker, connect)
    stalled.broker = broker
    return stalled


def read_all(stalled):
    messages = [stalled.stuck.next() for _ in range(COUNT)]
    assert [int(message.payload[:6]) for message in messages] == list(range(COUNT))


def test_a_blocked_publisher_resumes_when_the_subscriber_reads(stalled):
    read_all(stalled)
    stalled.goes_on()
    assert stalled.asker.info()["messages"]["dropped"] == {
        "ttl": 0,
        "queue_full": 0,
        "disconnect": 0,
        "session_log_bytes": 0,
    }


def test_a_blocked_publisher_resumes_when_the_subscriber_resets(stalled):
    stalled.stuck.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stalled.stuck.close()
    stalled.goes_on()
    assert stalled.asker.info()["messages"]["dropped"]["disconnect"] > 0


def test_a_blocked_publisher_resumes_when_the_subscriber_unsubscribes(stalled):
    stalled.stuck.send(command(UNSUB, "t", seq=99))
    stalled.goes_on()
    frames = []
    while not frames or isinstance(frames[-1], Message):
        frames.append(stalled.stuck.next())
    assert frames[-1][:2] == (99, 0)
    assert [int(message.payload[:6]) for message in frames[:-1]] == list(range(len(frames) - 1))


def test_a_blocked_publisher_resumes_at_a_takeover_of_the_subscriber(stalled, connect):
    connect(stalled.broker, hello=True, client_id="stuck")
    stalled.goes_on()


def test_a_blocked_publisher_resumes_when_the_policy_becomes_drop(stalled):
    stalled.broker.configure({**SETTINGS, "queues.overflow_policy": "drop_oldest"})
    stalled.broker.signal(signal.SIGHUP)
    stalled.goes_on()
    assert stalled.asker.info()["messages"]["dropped"]["queue_full"] > 0


def test_a_blocked_publisher_resumes_when_the_queue_limit_is_raised(stalled):
    stalled.broker.configure({**SETTINGS, "queues.subscriber_capacity": COUNT})
    stalled.broker.signal(signal.SIGHUP)
    stalled.goes_on()
    read_all(stalled)


def test_the_broker_stops_in_order_with_a_blocked_publisher(stalled):
    stalled.broker.configure({**SETTINGS, "limits.shutdown_timeout_ms": 100})
    stalled.broker.signal(signal.SIGHUP)
    stalled.broker.wait_for("reloaded")
    stalled.broker.stop()
    assert stalled.stuck.next().payload[:6] == b"000000"


def test_a_blocked_publisher_resumes_when_queued_messages_expire(start_broker, connect):
    stalled = Stalled(start_broker(SETTINGS), connect, ttl_ms=1)
    stalled.goes_on()
    messages = stalled.asker.info()["messages"]
    assert messages["dropped"]["ttl"] > 0
    assert messages["dropped"]["queue_full"] == 0


def test_a_client_blocked_by_its_own_queue_resumes_when_it_reads(start_broker, connect):
    client = connect(start_broker(SETTINGS)).subscribe("t")
    frames = b"".join(v1_command(PUB, "t", b"%06d" % n + bytes(994)) for n in range(COUNT))
    sending = threading.Thread(target=send, args=(client, frames), daemon=True)
    sending.start()
    assert [int(client.next().payload[:6]) for _ in range(COUNT)] == list(range(COUNT))
    sending.join()


def test_messages_of_a_blocked_publisher_that_disconnects_are_delivered(stalled):
    accepted = stalled.published()
    stalled.writer.socket.shutdown(socket.SHUT_RDWR)
    assert [int(stalled.stuck.next().payload[:6]) for _ in range(accepted)] == list(range(accepted))
