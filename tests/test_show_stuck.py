"""Acceptance: a stopped subscriber (SIGSTOP: its kernel still accepts data) harms only itself."""

import contextlib
import signal

import pytest
from broker_process import until
from hand_client import PUB, v1_command
from text_readers import CliReader, SocketReader, digest, real_lines

pytestmark = [pytest.mark.blackbox, pytest.mark.slow]

LINES = 100_000
CAPACITY = 2_000
BATCH = 1_000  # below the queue capacity, so a reading subscriber's queue is never full
QUEUE_BYTES = 1 << 20
SETTINGS = {
    "queues.subscriber_capacity": CAPACITY,
    "queues.subscriber_bytes": QUEUE_BYTES,
    "performance.network_optimizations.send_buffer_size": 65_536,
}


def settings(policy):
    return {"queues.overflow_policy": policy, **SETTINGS}


@pytest.fixture(scope="module")
def text():
    return real_lines(LINES)


@pytest.fixture
def stopped(broker):
    """A `blipmq-cli sub` that is stopped after it has subscribed; it resumes and ends after the test."""
    with contextlib.ExitStack() as stack:
        reader = CliReader(broker, "text", LINES)
        stack.callback(reader.kill)
        broker.wait_for_subscriptions(1)
        reader.process.send_signal(signal.SIGSTOP)
        yield reader


def row_of(asker, others):
    """The row of the one subscriber that is not among the others."""
    (row,) = [row for row in asker.info()["subscriptions"] if row["peer"] not in others]
    return row


def publish(writer, lines):
    writer.send(*[v1_command(PUB, "text", line) for line in lines])


@pytest.mark.parametrize("broker", [settings("drop_oldest"), settings("drop_new")], indirect=True, ids=str)
def test_with_a_drop_policy_a_stopped_subscriber_loses_only_its_own_messages(broker, stopped, text, connect):
    asker, writer = connect(broker, hello=True), connect(broker)
    with contextlib.ExitStack() as stack:
        readers = [SocketReader(broker, filter_).start() for filter_ in ("text", "*")]
        for reader in readers:
            stack.callback(reader.close)
        peers = {reader.peer for reader in readers}
        before = 0
        for at in range(0, LINES, BATCH):
            publish(writer, text[at : at + BATCH])
            for reader in readers:
                until(lambda reader=reader, at=at: reader.count == at + BATCH, "those who read have read all")
            if at == LINES // 2:
                before = broker.rss_bytes()
        growth = broker.rss_bytes() - before
        row = row_of(asker, peers)
        assert row["blocked"]
        assert 0 < row["queued_messages"] <= CAPACITY
        assert row["queued_bytes"] <= QUEUE_BYTES
        assert row["dropped_queue_full"] > LINES // 2
        assert row["enqueued"] == LINES
        assert growth <= QUEUE_BYTES, f"{growth} bytes more while the queue was full all the time"
        assert any("full queues dropped" in reason for reason in asker.info()["reasons"])
        for reader in readers:
            assert digest(reader.lines()) == digest(text)
        # It resumes and gets the messages of its queue.
        stopped.process.send_signal(signal.SIGCONT)
        until(lambda: row_of(asker, peers)["queued_messages"] == 0, "its queue is empty")
        row = row_of(asker, peers)
        until(lambda: stopped.count == row["delivered"], "it has printed what was delivered")
        assert row["delivered"] + row["dropped_queue_full"] == LINES


@pytest.mark.parametrize("broker", [settings("block")], indirect=True)
def test_with_block_a_stopped_subscriber_pauses_only_its_publishers(broker, stopped, text, connect):
    asker, writer, other = connect(broker, hello=True), connect(broker), connect(broker).subscribe("other")
    with contextlib.ExitStack() as stack:
        reader = SocketReader(broker, "text").start()
        stack.callback(reader.close)
        peers = {reader.peer, other.peer}
        writer.socket.settimeout(0.5)
        sent = send_until_it_waits(writer, text)
        assert sent < sum(len(v1_command(PUB, "text", line)) for line in text)
        row = row_of(asker, peers)
        assert (row["queued_messages"] <= CAPACITY, row["dropped_queue_full"]) == (True, 0)
        for n in range(1000):
            other.publish("other", b"%d" % n)
            assert other.next().payload == b"%d" % n
        # It resumes, so its publisher does too: the whole text arrives at both.
        stopped.process.send_signal(signal.SIGCONT)
        writer.socket.settimeout(60)
        writer.socket.sendall(b"".join([v1_command(PUB, "text", line) for line in text])[sent:])
        assert stopped.digest() == digest(text)
        until(lambda: reader.count == LINES, "the other subscriber has all as well")
        assert digest(reader.lines()) == digest(text)
        assert asker.info()["messages"]["dropped"] == {
            "ttl": 0,
            "queue_full": 0,
            "disconnect": 0,
            "session_log_bytes": 0,
        }


def send_until_it_waits(writer, lines):
    """Send lines until the broker accepts no more for a while; returns the number of bytes."""
    stream = memoryview(b"".join([v1_command(PUB, "text", line) for line in lines]))
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < len(stream):
            sent += writer.socket.send(stream[sent : sent + 65_536])
    return sent
