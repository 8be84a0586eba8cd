"""blipmq-cli with QoS 1: messages reported as sent are on disk, and acknowledged messages have been written."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from fake_broker import FakeBroker
from terminal import environment

from blipmq.cli.publish import not_kept, publish_lines
from blipmq.client.protocol import Published

CLI = [sys.executable, "-m", "blipmq.cli.client"]


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        running.has_log = True
        yield running


def run(broker: FakeBroker, *arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    variables = environment(BLIPMQ_ADDR=broker.address)
    done = subprocess.run([*CLI, *arguments], input=stdin, capture_output=True, timeout=30, check=False, env=variables)
    return done.returncode, done.stdout, done.stderr.decode()


def publish(broker: FakeBroker, *payloads: bytes) -> None:
    broker.call(lambda: [broker.publish("a", payload, qos=1) for payload in payloads] and None)


def acked(broker: FakeBroker) -> list[int]:
    return [command["seq"] for command in broker.commands if command["action"] == "ACK"]


def test_pub_prints_the_message_id(broker: FakeBroker) -> None:
    assert run(broker, "pub", "a", "x", "--qos", "1") == (0, b"Sent 1 byte to a as 1.\n", "")


def test_pub_dash_sends_each_line_once_it_is_answered_and_in_order(broker: FakeBroker) -> None:
    lines = [b"line %d" % number for number in range(3000)]
    status, out, _ = run(broker, "pub", "a", "-", "--qos", "1", stdin=b"\n".join(lines))
    assert (status, out) == (0, b"Sent 3,000 messages to a.\n")
    assert [payload for _, payload in broker.kept] == lines


def test_pub_dash_sums_unsubscribed_messages_over_all_reads() -> None:
    class Client:
        answers = iter([Published(2, 2), Published(3, 0), Published(1, 1)])

        def publish_many(self, *_: object, **__: object) -> Published:
            return next(self.answers)

        def flush(self) -> None:
            pass

    asked = argparse.Namespace(topic="a", ttl=0, qos=1)
    sent = publish_lines(Client(), asked, iter([[b""]] * 3))  # type: ignore[arg-type]
    assert (sent, sent.unrouted) == (6, 3)
    assert not_kept(sent, sent.unrouted) == ". No QoS 1 subscription took 3 of them, so the broker did not keep them"


def test_pub_dash_resends_unconfirmed_lines_after_a_reconnect(broker: FakeBroker) -> None:
    broker.loses_answers = True
    with subprocess.Popen(
        [*CLI, "pub", "a", "-", "--qos", "1"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(BLIPMQ_ADDR=broker.address),
    ) as process:
        assert process.stdin is not None
        process.stdin.write(b"one\ntwo\n")
        process.stdin.flush()
        broker.wait_for("PUB", 2)
        broker.loses_answers = False
        broker.kick()
        out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (0, b"Sent 2 messages to a.\n")
    assert "Reconnecting…".encode() in err and b"Connected again." in err
    assert [payload for _, payload in broker.kept] == [b"one", b"two"] * 2


def test_pub_dash_reports_the_confirmed_lines_when_a_line_is_refused(broker: FakeBroker) -> None:
    broker.refusals["PUB"] = (503, "the disk is full")
    status, out, err = run(broker, "pub", "a", "-", "--qos", "1", stdin=b"one\ntwo\n")
    assert (status, out) == (1, b"")
    assert "the disk is full" in err
    assert "0 lines confirmed; later lines may be lost" in err


def test_sub_acknowledges_written_messages_and_a_durable_subscription_resumes(broker: FakeBroker) -> None:
    arguments = ["sub", "a", "--qos", "1", "--durable", "--client-id", "me"]
    with subprocess.Popen(
        [*CLI, *arguments], stdout=subprocess.PIPE, env=environment(BLIPMQ_ADDR=broker.address)
    ) as process:
        assert process.stdout is not None
        broker.wait_for("SUB")
        publish(broker, b"one")
        assert process.stdout.readline() == b"a\tone\n"
        assert broker.wait_for("ACK")[0]["seq"] == 1
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    publish(broker, b"two", b"three", b"four")
    assert run(broker, *arguments, "-q", "-n", "2") == (0, b"two\nthree\n", "")
    assert acked(broker) == [1, 2, 3]
    assert broker.unacknowledged() == [4]
    assert run(broker, "unsub", "a", "--client-id", "me")[0] == 0
    assert broker.sessions == {}


def test_sub_does_not_acknowledge_unwritten_messages(broker: FakeBroker) -> None:
    reader, writer = os.pipe()
    try:
        with subprocess.Popen(
            [*CLI, "sub", "a", "--qos", "1", "--durable", "--client-id", "me"],
            stdout=writer,
            env=environment(BLIPMQ_ADDR=broker.address),
        ) as process:
            broker.wait_for("SUB")
            os.close(reader)
            publish(broker, b"one")
            assert process.wait(20) == 141
    finally:
        os.close(writer)
    assert (acked(broker), broker.unacknowledged()) == ([], [1])


def test_sub_in_a_group_gets_its_share(broker: FakeBroker) -> None:
    broker.call(lambda: None)
    with subprocess.Popen(
        [*CLI, "sub", "a", "-q", "-n", "2", "--group", "workers"],
        stdout=subprocess.PIPE,
        env=environment(BLIPMQ_ADDR=broker.address),
    ) as process:
        assert broker.wait_for("SUB")[0]["group"] == "workers"
        publish(broker, b"one", b"two")
        out, _ = process.communicate(timeout=20)
    assert out == b"one\ntwo\n"
