"""One blocking client and several threads: calls are serialized or refused, and no message is lost."""

import threading

import pytest
from fake_broker import FakeBroker

import blipmq
from blipmq.errors import UsageError


@pytest.fixture
def broker():
    with FakeBroker() as running:
        running.has_log = True
        yield running


def in_threads(count, work):
    """Run `work(number)` in this many threads at once; returns their errors."""
    errors, start = [], threading.Barrier(count)

    def run(number):
        start.wait(20)
        try:
            work(number)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return errors


def test_threads_that_share_one_client_publish_without_losses(broker):
    with blipmq.connect_blocking(broker.address) as client:

        def work(number):
            for index in range(200):
                client.publish("a", f"{number}.{index}", qos=index % 2)
                if index % 50 == 0:
                    client.publish_many("a", [f"{number}.many.{index}"] * 20)
                    client.flush()

        assert in_threads(6, work) == []
        client.flush()
    sent = [command["payload"].decode() for command in broker.commands if command["action"] == "PUB"]
    assert len(sent) == 6 * (200 + 4 * 20)
    for number in range(6):
        own = [int(text.split(".")[1]) for text in sent if text.startswith(f"{number}.") and "many" not in text]
        assert own == list(range(200))


def test_every_answer_goes_to_the_requesting_thread(broker):
    with blipmq.connect_blocking(broker.address) as client:

        def work(number):
            for _ in range(50):
                with client.subscribe(f"t.{number}"):
                    assert client.info()["version"] == "fake"
                    assert client.ping() >= 0

        assert in_threads(5, work) == []


def waits(client):
    while not client._call_lock.waits_for:
        threading.Event().wait(0.001)


def test_a_call_during_a_blocking_receive_of_another_thread_is_refused(broker):
    got = []
    with blipmq.connect_blocking(broker.address) as client:
        messages = client.subscribe("a")
        reader = threading.Thread(
            target=lambda: got.extend(message.text for message in [next(messages), next(messages)])
        )
        reader.start()
        waits(client)
        calls = [
            lambda: client.publish("a", "x"),
            lambda: client.publish("a", "x", qos=1),
            client.ping,
            lambda: client.subscribe("b"),
            lambda: messages.next(1),
            lambda: client.poll(0.0),
            client.close,
        ]
        for call in calls:
            with pytest.raises(UsageError, match=r"Another thread uses this client to wait for messages on a, so"):
                call()
        broker.call(lambda: [broker.publish("a", text) for text in (b"one", b"two")] and None)
        reader.join(20)
        assert got == ["one", "two"]
        client.publish("a", "now it is free")
        assert messages.next(20).text == "now it is free"


def test_a_client_may_be_passed_between_threads(broker):
    client = blipmq.connect_blocking(broker.address)
    messages = client.subscribe("a")

    def work(number):
        client.publish("a", "x")
        assert messages.next(20).text == "x"

    for _ in range(3):
        assert in_threads(1, work) == []
    client.close()


def test_a_thread_acknowledges_only_its_own_messages(broker):
    with blipmq.connect_blocking(broker.address) as client, client.subscribe("a", qos=1) as messages:
        broker.call(lambda: [broker.publish("a", b"%d" % number, qos=1) for number in range(3)] and None)
        first = messages.next(20)

        def work(number):
            messages.next(20)
            messages.next(20)

        assert in_threads(1, work) == []
        client.ping()
        acked = [command["seq"] for command in broker.commands if command["action"] == "ACK"]
        assert first.id not in acked and len(acked) == 1


def test_a_callback_may_use_the_client_that_calls_it(broker):
    broker.refusals["PUB"] = (403, "read only")
    states = []
    with blipmq.connect_blocking(
        broker.address, on_refusal=lambda error: states.append(client.ack() is None)
    ) as client:
        client.publish("a", "x")
        client.ping()
        client.publish("a", "x")
        client.ping()
    assert states == [True, True]
