"""QoS 1 in both clients against the fake broker: answered publishes and acknowledged messages.

Tests for both clients wrap the blocking one in the same methods as coroutines.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import fake_broker
import pytest
from fake_broker import FakeBroker

import blipmq
from blipmq.client.in_flight import InFlight
from blipmq.client.inbox import Inbox
from blipmq.client.protocol import ClientProtocol
from blipmq.errors import Disconnected, Refused, TimedOut, UsageError


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        running.has_log = True
        yield running


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


async def no_sleep(delay_s: float) -> None:
    await asyncio.sleep(0.005)


def connect(broker: FakeBroker, **options: Any) -> Any:
    return blipmq.connect(broker.address, random=lambda: 0.5, sleep=no_sleep, **options)


def connect_blocking(broker: FakeBroker, **options: Any) -> blipmq.BlockingClient:
    return blipmq.connect_blocking(broker.address, random=lambda: 0.0, **options)


async def until(condition: Callable[[], object]) -> None:
    """Poll a condition that another thread fulfils; the whole test has a time limit."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


def acked(broker: FakeBroker) -> list[int]:
    return [command["seq"] for command in broker.commands if command["action"] == "ACK"]


def publish(broker: FakeBroker, *payloads: bytes, topic: str = "a", qos: int = 1) -> None:
    broker.call(lambda: [broker.publish(topic, payload, qos=qos) for payload in payloads] and None)


# ---- publishing ------------------------------------------------------------------------------------------------------


def test_many_are_answered_in_order_through_a_window(broker: FakeBroker) -> None:
    payloads = [b"%d" % number for number in range(1000)]

    async def main() -> None:
        async with connect(broker) as client:
            assert await client.publish("a", b"first", qos=1) == 1
            assert await client.publish_many("a", payloads, qos=1, window=7) == 1000

    run(main)
    assert broker.kept == [("a", b"first"), *(("a", payload) for payload in payloads)]
    broker.kept.clear()
    with connect_blocking(broker) as client:
        assert client.publish_many("a", payloads, qos=1, window=7) == 1000
        assert client.publish("a", b"last", qos=1) == 2002
    assert broker.kept == [*(("a", payload) for payload in payloads), ("a", b"last")]


def test_no_more_than_the_window_is_sent_before_an_answer_comes(broker: FakeBroker) -> None:
    broker.loses_answers = True

    async def main() -> None:
        async with connect(broker, timeout_s=0.3) as client:
            with pytest.raises(TimedOut, match="Publish to a"):
                await client.publish_many("a", [b"x"] * 100, qos=1, window=5)

    run(main)
    assert len(broker.kept) == 5
    with connect_blocking(broker, timeout_s=0.3) as client, pytest.raises(TimedOut, match="Publish to a"):
        client.publish_many("a", [b"x"] * 100, qos=1, window=5)
    assert len(broker.kept) == 10


def test_single_publishes_share_a_window_and_keep_the_order_of_the_calls(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            ids = await asyncio.gather(*(client.publish("a", b"%d" % number, qos=1) for number in range(1000)))
            assert ids == list(range(1, 1001))

    run(main)
    assert [payload for _, payload in broker.kept] == [b"%d" % number for number in range(1000)]


def test_unanswered_publishes_are_sent_again_in_order_after_an_outage(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            broker.loses_answers = True
            publishing = [asyncio.create_task(client.publish("a", b"%d" % number, qos=1)) for number in range(5)]
            await until(lambda: len(broker.kept) == 5)
            broker.loses_answers = False
            broker.kick()
            assert await asyncio.gather(*publishing) == [6, 7, 8, 9, 10]

    run(main)
    payloads = [payload for _, payload in broker.kept]
    assert payloads == [b"0", b"1", b"2", b"3", b"4"] * 2  # at least once: the first five had arrived


def test_the_blocking_client_resends_unanswered_publishes(broker: FakeBroker) -> None:
    def lines() -> Iterator[bytes]:
        for number in range(20):
            if number == 10:
                broker.wait_for("PUB", 8)
                broker.kick()
            yield b"%d" % number

    with connect_blocking(broker) as client:
        assert client.publish_many("a", lines(), qos=1, window=8) == 20
    payloads = [int(payload) for _, payload in broker.kept]
    assert sorted(set(payloads)) == list(range(20))
    firsts = [payload for index, payload in enumerate(payloads) if payload not in payloads[:index]]
    assert firsts == list(range(20))


def test_a_long_outage_raises_and_names_the_unconfirmed_messages(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker, timeout_s=0.3) as client:
            broker.loses_answers = True
            publishing = asyncio.create_task(client.publish("a", b"x", qos=1))
            await until(lambda: broker.kept)
            broker.stop()
            with pytest.raises(Disconnected, match="may be lost"):
                await publishing

    run(main)


def test_without_reconnect_an_unanswered_publish_fails_with_the_connection(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker, reconnect=False) as client:
            broker.loses_answers = True
            publishing = asyncio.create_task(client.publish("a", b"x", qos=1))
            await until(lambda: broker.kept)
            broker.kick()
            with pytest.raises(Disconnected):
                await publishing

    run(main)


def test_a_refusal_ends_publish_many_after_the_publishes_in_flight(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            broker.refusals["PUB"] = (503, "the disk is full")
            with pytest.raises(Refused, match="the disk is full"):
                await client.publish_many("a", [b"x"] * 1000, qos=1, window=4)
            await client.ping()
        assert 1 <= len(broker.wait_for("PUB")) < 1000
        assert not client._protocol.in_flight.publishes

    run(main)
    with connect_blocking(broker) as client:
        with pytest.raises(Refused, match="the disk is full"):
            client.publish_many("a", [b"x"] * 1000, qos=1, window=4)
        assert client.ping() >= 0
    with connect_blocking(broker) as client, pytest.raises(UsageError, match="window is 0"):
        client.publish_many("a", [b"x"], qos=1, window=0)


def test_an_oversized_publish_is_not_resent_after_a_reconnect() -> None:
    protocol = ClientProtocol()
    protocol.open()
    small, large = (protocol.publish_answered("a", bytes(size), 0) for size in (10, 1000))
    protocol.receive(fake_broker.reply(1))
    protocol.receive(fake_broker.reply(0, 413, "too large"))
    assert protocol.farewell is not None
    protocol.lost(protocol.farewell)
    assert (small.done, large.done, large.error) == (False, True, protocol.farewell)
    protocol.open()
    protocol.take()
    protocol.receive(fake_broker.reply(4))
    assert protocol.take() == small.frame


def test_a_window_is_full_by_messages_or_by_bytes() -> None:
    in_flight = InFlight()
    request = in_flight.add("Publish to a", bytes(16 << 20))
    assert in_flight.is_full()
    assert in_flight.take(request.seq) is request
    assert not in_flight.is_full(1)
    in_flight.add("Publish to a", b"x")
    in_flight.add("Ping")
    assert (in_flight.is_full(1), in_flight.is_full(2)) == (True, False)


# ---- acknowledging ---------------------------------------------------------------------------------------------------


def test_a_message_is_acknowledged_when_the_next_one_is_asked_for(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client, client.subscribe("a", qos=1) as messages:
            publish(broker, b"one", b"two", b"three")
            first = await messages.next(10)
            await client.ping()
            assert (first.id, first.qos, acked(broker)) == (1, 1, [])
            await messages.next(10)
            await client.ping()
            assert acked(broker) == [1]
            await messages.next(10)
            await client.ping()
            assert acked(broker) == [1, 2]
        assert acked(broker) == [1, 2, 3]  # an orderly close acknowledges the last message too

    run(main)
    assert broker.unacknowledged() == []


def test_the_blocking_client_acknowledges_when_the_next_message_is_requested(broker: FakeBroker) -> None:
    with connect_blocking(broker) as client, client.subscribe("a", qos=1) as messages:
        publish(broker, b"one", b"two", b"three")
        first = messages.next(10)
        client.ping()
        assert (first.id, acked(broker)) == (1, [])
        assert [message.id for message in messages.batch(10)] == [2, 3]
        client.ping()
        assert acked(broker) == [1]
        assert messages.batch(0.0) == []
        client.ping()
        assert acked(broker) == [1, 2, 3]
        publish(broker, b"four")
        assert next(messages).id == 4
    assert broker.wait_for("ACK", 4)[-1]["seq"] == 4


def test_a_message_is_not_acknowledged_if_its_reader_raises(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            with pytest.raises(ZeroDivisionError):
                async with client.subscribe("a", qos=1) as messages:
                    publish(broker, b"one")
                    await messages.next(10)
                    raise ZeroDivisionError
            await client.ping()

    run(main)
    with connect_blocking(broker) as client, pytest.raises(ZeroDivisionError), client.subscribe("a", qos=1) as messages:
        publish(broker, b"two")
        messages.next(10)
        raise ZeroDivisionError
    assert acked(broker) == []


def test_manual_acknowledgements_may_come_in_any_order_or_not_at_all(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client, client.subscribe("a", qos=1, auto_ack=False) as messages:
            publish(broker, b"one", b"two", b"three")
            one, two, three = [await messages.next(10) for _ in range(3)]
            messages.ack(three)
            messages.ack(one)
            await client.ping()
            assert (acked(broker), broker.unacknowledged()) == ([3, 1], [2])
            broker.redeliver()
            again = await messages.next(10)
            assert (again.id, again.redelivered, again.payload) == (two.id, True, b"two")

    run(main)
    assert acked(broker) == [3, 1]
    with connect_blocking(broker) as client, client.subscribe("a", qos=1, auto_ack=False) as messages:
        publish(broker, b"one", b"two")
        one, two = messages.next(10), messages.next(10)
        messages.ack(two, one)
        client.ping()
    assert acked(broker)[2:] == [two.id, one.id]


def test_a_message_redelivered_while_queued_is_received_once(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client, client.subscribe("a", qos=1) as messages:
            publish(broker, b"one", b"two")
            await until(lambda: len(messages.messages) == 2)
            broker.redeliver()
            await client.ping()
            assert [message.id for message in await messages.batch()] == [1, 2]
            assert not messages.messages

    run(main)


def test_a_message_in_two_subscriptions_is_acknowledged_by_the_second_of_them() -> None:
    protocol = ClientProtocol()
    protocol.open()
    protocol.receive(fake_broker.reply(1))
    one, two, silent = Inbox("a", qos=1), Inbox("*", qos=1), Inbox(">")
    for inbox in (one, two, silent):
        protocol.subscribe(inbox)
    protocol.receive(fake_broker.message(7, b"x", "a", qos=1) + fake_broker.message(8, b"y", "a", qos=1))
    protocol.take()
    protocol.acknowledge([7], one)
    assert protocol.take() == b""
    protocol.acknowledge([7], two)
    assert fake_broker.read_command(protocol.take()[4:])["seq"] == 7
    protocol.acknowledge([8], one)
    protocol.drop(one)
    protocol.acknowledge([8], two)
    assert fake_broker.read_command(protocol.take()[4:])["seq"] == 8
    assert [len(inbox.messages) for inbox in (one, two, silent)] == [2, 2, 2]


def test_a_qos_0_message_of_a_qos_1_subscription_needs_no_acknowledgement(broker: FakeBroker) -> None:
    with connect_blocking(broker) as client, client.subscribe("a", qos=1) as messages:
        publish(broker, b"plain", qos=0)
        publish(broker, b"safe")
        assert [messages.next(10).qos for _ in range(2)] == [0, 1]
        messages.ack(blipmq.Message(9, "a", b"", 0, 0, 0, False))
    assert acked(broker) == [2]


# ---- durable subscriptions, groups -----------------------------------------------------------------------------------


def test_a_durable_subscription_stores_messages_while_its_client_is_away(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker, client_id="me") as client:
            messages = await client.subscribe("a", qos=1, durable=True)
            publish(broker, b"one", b"two")
            assert (await messages.next(10)).payload == b"one"
        await until(lambda: not broker.connections)
        assert acked(broker) == []  # closing the client does not acknowledge the message that was received
        publish(broker, b"three")
        async with connect(broker, client_id="me") as client:
            async with client.subscribe("a", qos=1, durable=True) as messages:
                came = [await messages.next(10) for _ in range(3)]
            assert [(message.payload, message.redelivered) for message in came] == [
                (b"one", True),
                (b"two", True),
                (b"three", False),
            ]
            await client.ping()
            assert broker.unacknowledged() == []
            assert ("me", "a") in broker.sessions  # closing a durable subscription does not end it
            await client.unsubscribe("a")
            assert broker.sessions == {}

    run(main)


def test_after_an_outage_a_durable_subscription_resumes_in_order_without_duplicates(broker: FakeBroker) -> None:
    with connect_blocking(broker, client_id="me") as client:
        messages = client.subscribe("a", qos=1, durable=True)
        publish(broker, *(b"%d" % number for number in range(10)))
        assert [messages.next(10).id for _ in range(3)] == [1, 2, 3]
        client.wait(lambda: len(messages.messages) == 7, 10)
        assert broker.wait_for("ACK", 2)
        broker.kick()
        client.wait(lambda: not messages.messages, 10)
        # 3 was received and not acknowledged; 4 to 10 were queued in the client, and are redelivered in their place
        assert [messages.next(10).id for _ in range(8)] == [3, 4, 5, 6, 7, 8, 9, 10]
        messages.close()
        client.ping()
        assert broker.unacknowledged() == []


def test_a_group_shares_messages_and_takes_over_those_of_a_lost_member(broker: FakeBroker) -> None:
    with connect_blocking(broker) as one, connect_blocking(broker) as two:
        first, second = (client.subscribe("jobs", qos=1, group="workers") for client in (one, two))
        publish(broker, b"a", b"b", b"c", b"d", topic="jobs")
        mine = [first.next(10).payload for _ in range(2)]
        yours = [second.next(10).payload for _ in range(2)]
        assert sorted(mine + yours) == [b"a", b"b", b"c", b"d"]
        one.abort()
        again = second.next(10)  # the last message was not acknowledged
        assert (again.payload, again.redelivered) == (mine[1], True)


def test_a_durable_subscription_needs_qos_1_and_a_name(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            with pytest.raises(UsageError, match="needs QoS 1"):
                client.subscribe("a", durable=True)
            with pytest.raises(UsageError, match="client_id"):
                await client.subscribe("a", durable=True, qos=1)

    run(main)
    with connect_blocking(broker) as client, pytest.raises(UsageError, match="client_id"):
        client.subscribe("a", durable=True, qos=1)
    assert not [command for command in broker.commands if command["action"] == "SUB"]
