"""Acceptance: SIGTERM under load stops the broker in order, with status 0, within its time limit."""

import contextlib
import datetime
import signal
import socket
import threading

import pytest
from broker_process import until
from hand_client import PUB, Message, Reply, v1_command
from text_readers import SocketReader

pytestmark = [pytest.mark.blackbox, pytest.mark.slow]

TIMEOUT_MS = 500
GRACE_S = 5  # additional time of the core to close everything
PUBLISHERS = 4
PAYLOADS = [b"%06d " % n + bytes(n % 500) for n in range(2000)]
FRAMES = b"".join(v1_command(PUB, f"load.{n % 7}", payload) for n, payload in enumerate(PAYLOADS))


class Flood(threading.Thread):
    """Publishes at full speed until the broker closes; then it has recorded how the connection ended."""

    def __init__(self, broker):
        super().__init__(daemon=True)
        host, _, port = broker.address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=60)
        self.ended_well = False

    def run(self):
        try:
            while True:
                self.socket.sendall(FRAMES)
        except ConnectionError:
            self.ended_well = True

    def close(self):
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        if self.is_alive():
            self.join()
        self.socket.close()


def seconds_between(first, second):
    times = [datetime.datetime.fromisoformat(line["time"].removesuffix("Z")) for line in (first, second)]
    return (times[1] - times[0]).total_seconds()


def takes_no_more(broker, reader):
    (row,) = [row for row in broker.info()["subscriptions"] if row["peer"] == reader.peer]
    return row["blocked"] and row["queued_messages"] > 10


def settings(policy):
    return {"queues.overflow_policy": policy, "limits.shutdown_timeout_ms": TIMEOUT_MS}


@pytest.mark.parametrize("broker", [settings(p) for p in ("drop_oldest", "drop_new", "block")], indirect=True, ids=str)
def test_sigterm_under_load_ends_with_status_0_within_its_bound(broker, connect):
    with contextlib.ExitStack() as stack:
        greeted = connect(broker, hello=True).subscribe("calm")
        readers = [SocketReader(broker, "load.>").start() for _ in range(2)]
        stuck = SocketReader(broker, "load.3", receive_buffer_bytes=4096)
        floods = [Flood(broker) for _ in range(PUBLISHERS)]
        for user in (*readers, stuck, *floods):
            stack.callback(user.close)
        for flood in floods:
            flood.start()
        until(lambda: takes_no_more(broker, stuck), "the stuck one takes no more")
        until(lambda: all(reader.count > 1000 for reader in readers), "messages flow")

        broker.signal(signal.SIGTERM)
        assert broker.wait() == 0
        (stopping,), (stopped,) = broker.lines("stopping"), broker.lines("stopped")
        assert seconds_between(stopping, stopped) <= TIMEOUT_MS / 1000 + GRACE_S
        assert int(stopped["unflushed"]) > 0, "the stuck one cannot have had everything"
        assert not broker.lines("stop_overdue")

        # An idle client is notified and closed in order.
        assert greeted.next()[:2] == (0, 503)
        assert greeted.is_closed()
        for flood in floods:
            flood.join(60)
            assert flood.ended_well
        whole = set(PAYLOADS)
        for reader in readers:
            assert whole.issuperset(reader.lines())


def test_messages_accepted_before_sigterm_are_delivered_within_the_stop_time(broker, connect):
    reader, writer = connect(broker).subscribe("t"), connect(broker, hello=True)
    writer.send(*[v1_command(PUB, "t", b"%d" % n) for n in range(20_000)])
    assert writer.is_open()  # so all of them have been accepted
    broker.signal(signal.SIGTERM)
    frames = list(iter(reader.next, None))
    assert [frame.payload for frame in frames if isinstance(frame, Message)] == [b"%d" % n for n in range(20_000)]
    assert not any(isinstance(frame, Reply) for frame in frames)
    assert broker.wait() == 0
    assert broker.lines("stopped", unflushed=0)
