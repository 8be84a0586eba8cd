"""Acceptance: a real text of 210,000 lines through a topic, to eight different subscribers.

Seven subscribe at the start: two plain sockets (one with a wildcard), four `blipmq-cli sub -q`, and one that reads
nothing until requested. The eighth connects half-way. Fast ones must get every line in order with identical bytes, the
slow one must get the messages that its queue policy guarantees, and the counters must add up exactly.
"""

import contextlib
import threading

import pytest
from broker_process import until
from hand_client import HelloClient
from text_readers import CliPublisher, CliReader, SocketReader, digest, real_lines

pytestmark = [pytest.mark.blackbox, pytest.mark.slow]

TOTAL = 210_000
HALF = TOTAL // 2
TOPIC = "text/stdlib"
SMALL_BUFFERS = {"performance.network_optimizations.send_buffer_size": 65_536}
DROPPING = {"queues.subscriber_capacity": 30_000, **SMALL_BUFFERS}
WINDOW = 10_000  # lines in transit at once: the queue of a fast subscriber is never full, on any machine


@pytest.fixture(scope="module")
def text():
    return real_lines(TOTAL)


class Run:
    """The eight subscribers and the publisher of one test."""

    def __init__(self, broker, stack):
        self.broker = broker
        self.stack = stack
        self.asker = stack.enter_context(HelloClient(broker.address))
        self.wildcard = self._keep(SocketReader(broker, "text/#")).start()
        self.exact = self._keep(SocketReader(broker, TOPIC)).start()
        self.slow = self._keep(SocketReader(broker, TOPIC, receive_buffer_bytes=4096))
        self.cli = [CliReader(broker, TOPIC, TOTAL) for _ in range(4)]
        for reader in self.cli:
            stack.callback(reader.kill)
        broker.wait_for_subscriptions(7)
        self.fast = [self.wildcard, self.exact, *self.cli]
        self.halfway = None
        self.publisher = CliPublisher(broker, TOPIC)
        stack.callback(self.publisher.kill)

    def _keep(self, reader):
        self.stack.callback(reader.close)
        return reader

    def connect_halfway(self):
        assert self.wildcard.count > 0
        self.halfway = self._keep(SocketReader(self.broker, TOPIC)).start()

    def wait_for_fast(self, count):
        for reader in self.fast:
            until(lambda reader=reader: reader.count >= count, f"{count} lines have arrived at {reader}")

    def feed(self, lines, window):
        """Send lines to the publisher, at most `window` ahead of the slowest fast subscriber."""
        sent = self.wildcard.count
        for at in range(0, len(lines), window):
            self.publisher.feed(lines[at : at + window])
            self.wait_for_fast(sent + min(at + window, len(lines)))

    def row(self, reader):
        return next(row for row in self.asker.info()["subscriptions"] if row["peer"] == reader.peer)

    def check_sums(self):
        """enqueued = delivered + dropped by reason + queued, for the broker and for each subscriber."""
        info = self.asker.info()
        messages = info["messages"]
        assert messages["enqueued"] == messages["delivered"] + sum(messages["dropped"].values()) + messages["queued"]
        for row in info["subscriptions"]:
            gone = row["dropped_ttl"] + row["dropped_queue_full"]
            assert row["enqueued"] == row["delivered"] + gone + row["queued_messages"], row
        return messages

    def wait_for_the_rest(self):
        """Wait until every queue is empty and the slow subscriber has received everything sent to it."""
        until(lambda: self.asker.info()["messages"]["queued"] == 0, "all queues are empty")
        until(lambda: self.slow.count == self.row(self.slow)["delivered"], "the slow one has read what it was sent")

    def check_fast(self, text):
        whole = digest(text)
        for reader in self.cli:
            assert reader.digest() == whole
        for reader in (self.wildcard, self.exact):
            row = self.row(reader)
            assert row["enqueued"] == row["delivered"] == TOTAL
            assert digest(reader.lines()) == whole

    def check_halfway(self, text):
        until(lambda: self.halfway.count == self.row(self.halfway)["delivered"], "the late one has read all")
        lines = self.halfway.lines()
        assert HALF <= len(lines) < TOTAL
        assert lines == text[-len(lines) :]


@pytest.fixture
def run(broker):
    with contextlib.ExitStack() as stack:
        yield Run(broker, stack)


def publish_all(run, text, window):
    run.feed(text[:HALF], window)
    run.connect_halfway()
    run.feed(text[HALF:], window)
    assert run.publisher.end() == f"Sent {TOTAL:,} messages to {TOPIC}.\n"


def test_by_default_even_a_slow_subscriber_gets_every_line(run, text):
    publish_all(run, text, window=HALF)
    assert run.check_sums()["queued"] > 0
    run.slow.start()
    run.wait_for_the_rest()
    messages = run.check_sums()
    assert messages["published"] == TOTAL
    assert messages["dropped"] == {"ttl": 0, "queue_full": 0, "disconnect": 0, "session_log_bytes": 0}
    assert messages["delivered"] == 7 * TOTAL + run.row(run.halfway)["delivered"]
    run.check_fast(text)
    run.check_halfway(text)
    assert digest(run.slow.lines()) == digest(text)


@pytest.mark.parametrize("broker", [{"queues.overflow_policy": "drop_oldest", **DROPPING}], indirect=True)
def test_drop_oldest_delivers_the_socket_content_and_the_newest_messages(run, text):
    publish_all(run, text, WINDOW)
    assert 0 < run.check_sums()["queued"] <= DROPPING["queues.subscriber_capacity"]
    run.slow.start()
    run.wait_for_the_rest()
    messages = run.check_sums()
    run.check_fast(text)
    run.check_halfway(text)
    dropped = run.row(run.slow)["dropped_queue_full"]
    assert dropped == messages["dropped"]["queue_full"] > TOTAL // 2
    lines = run.slow.lines()
    assert len(lines) == TOTAL - dropped
    kept = next(at for at, line in enumerate([*lines, None]) if line != text[at])
    newest = len(lines) - kept
    assert 0 < newest <= DROPPING["queues.subscriber_capacity"]
    assert lines[kept:] == text[-newest:]


@pytest.mark.parametrize("broker", [{"queues.overflow_policy": "drop_new", **DROPPING}], indirect=True)
def test_drop_new_delivers_only_the_oldest_messages(run, text):
    publish_all(run, text, WINDOW)
    assert 0 < run.check_sums()["queued"] <= DROPPING["queues.subscriber_capacity"]
    run.slow.start()
    run.wait_for_the_rest()
    messages = run.check_sums()
    run.check_fast(text)
    run.check_halfway(text)
    dropped = run.row(run.slow)["dropped_queue_full"]
    assert dropped == messages["dropped"]["queue_full"] > TOTAL // 2
    lines = run.slow.lines()
    assert len(lines) == TOTAL - dropped
    assert lines == text[: len(lines)]


@pytest.mark.parametrize(
    "broker", [{"queues.overflow_policy": "block", "queues.subscriber_capacity": 5_000, **SMALL_BUFFERS}], indirect=True
)
def test_block_pauses_the_publisher_and_loses_nothing(run, text, connect):
    feeding = threading.Thread(target=run.publisher.feed, args=(text[:HALF],))
    feeding.start()
    until(lambda: run.row(run.slow)["queued_messages"] == 5_000, "the slow one's queue is full")
    assert run.asker.info()["messages"]["published"] < HALF
    # Only publishers to that queue are blocked: another topic is delivered.
    elsewhere = connect(run.broker).subscribe("elsewhere")
    elsewhere.publish("elsewhere", b"flows")
    assert elsewhere.next().payload == b"flows"
    run.slow.start()
    run.wait_for_fast(HALF)
    feeding.join()
    run.connect_halfway()
    run.publisher.feed(text[HALF:])
    run.wait_for_fast(TOTAL)
    assert run.publisher.end() == f"Sent {TOTAL:,} messages to {TOPIC}.\n"
    run.wait_for_the_rest()
    messages = run.check_sums()
    assert messages["published"] == TOTAL + 1
    assert messages["dropped"] == {"ttl": 0, "queue_full": 0, "disconnect": 0, "session_log_bytes": 0}
    run.check_fast(text)
    run.check_halfway(text)
    assert digest(run.slow.lines()) == digest(text)
