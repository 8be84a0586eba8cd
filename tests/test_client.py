"""The asyncio and the blocking client against the fake broker, over real sockets; each test reads as a transcript."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import fake_broker
import pytest
from fake_broker import FakeBroker

import blipmq
from blipmq.base.backoff import Backoff
from blipmq.client.address import Address, parse_address, unreachable
from blipmq.client.blocking import BlockingClient
from blipmq.client.client import Client
from blipmq.client.protocol import PENDING_MAX, ClientProtocol
from blipmq.errors import (
    BlipMQError,
    ConfigError,
    Disconnected,
    NotAllowed,
    ProtocolError,
    Refused,
    TimedOut,
    Unreachable,
    UsageError,
)


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        yield running


def run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30))


async def no_sleep(delay_s: float) -> None:
    await asyncio.sleep(0.005)


def connect(broker: FakeBroker, **options: Any) -> Any:
    return blipmq.connect(broker.address, random=lambda: 0.5, sleep=no_sleep, **options)


def connect_blocking(broker: FakeBroker, **options: Any) -> BlockingClient:
    return blipmq.connect_blocking(broker.address, random=lambda: 0.0, **options)


async def until(condition: Callable[[], object]) -> None:
    """Poll a condition that another thread fulfils; the whole test has a time limit."""
    while not condition():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


class States:
    """An on_state callback that records states and can be waited for."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.errors: list[BlipMQError | None] = []

    def __call__(self, state: str, error: BlipMQError | None) -> None:
        self.seen.append(state)
        self.errors.append(error)

    async def until(self, state: str, count: int = 1) -> None:
        await until(lambda: self.seen.count(state) >= count)


# ---- asyncio: methods ------------------------------------------------------------------------------------------------


def test_a_published_message_is_received_unchanged(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client, client.subscribe("site/+/temp") as readings:
            assert await client.publish("site/1/temp", "21.5 °C") == 0
            await client.publish("site/2/temp", bytes(range(256)), ttl_ms=5000)
            first, second = await readings.next(10), await readings.next(10)
        assert (first.topic, first.text, first.ttl_ms, first.id) == ("site/1/temp", "21.5 °C", 0, 1)
        assert (second.topic, second.payload, second.ttl_ms, second.qos) == ("site/2/temp", bytes(range(256)), 5000, 0)
        assert second.timestamp_ms == 1_760_000_000_123
        assert not second.redelivered

    run(main)


def test_hello_is_sent_first_with_the_client_id_and_key(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker, client_id="gateway-17", api_key="secret") as client:
            await client.ping()

    run(main)
    hello = broker.commands[0]
    assert [hello[key] for key in ("action", "protocol", "client_id", "api_key")] == [
        "HELLO",
        1,
        "gateway-17",
        "secret",
    ]
    assert broker.wait_for("QUIT")


def test_a_message_that_several_filters_match_is_sent_once_and_reaches_each_subscription(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            one, two, all_, other = [await client.subscribe(name) for name in ("a.b", "a.*", ">", "c")]
            await client.publish("a.b", "x")
            await client.flush()
            assert [(await each.next(10)).id for each in (one, two, all_)] == [1, 1, 1]
            assert not any(each.messages for each in (one, two, all_, other))

    run(main)


def test_the_broker_subscription_ends_with_the_last_local_subscription_of_a_filter(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            one, two = await client.subscribe("a"), await client.subscribe("a")
            await one.close()
            await client.publish("a", "x")
            assert (await two.next(10)).payload == b"x"
            assert not any(command["action"] == "UNSUB" for command in broker.commands)
            await two.close()
            assert len(broker.wait_for("UNSUB")) == 1

    run(main)


def test_iteration_of_a_closed_subscription_ends_after_its_queued_messages(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            messages = await client.subscribe("a")
            await client.publish_many("a", ["1", "2", b"3"])
            await client.flush()
            await until(lambda: len(messages.messages) >= 3)
            await messages.close()
            assert [message.text async for message in messages] == ["1", "2", "3"]
            with pytest.raises(Disconnected, match="closed"):
                await messages.next()
            assert await messages.batch() == []

    run(main)


def test_closing_the_client_ends_a_waiting_iteration(broker: FakeBroker) -> None:
    async def main() -> None:
        client = await connect(broker)
        messages = await client.subscribe("a")

        async def read() -> list[str]:
            return [message.text async for message in messages]

        reading = asyncio.create_task(read())
        await asyncio.sleep(0)
        await client.close()
        await client.close()
        assert await reading == []
        with pytest.raises(Disconnected, match="closed"):
            await client.publish("a", "x")
        with pytest.raises(Disconnected, match="closed"):
            await client.subscribe("a")

    run(main)


def test_publishes_in_one_loop_iteration_use_one_send(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            await client.ping()
            reads_before = broker.reads
            for number in range(500):
                await client.publish("a", str(number))
            await client.flush()
            assert broker.reads - reads_before <= 3
            published = [command["payload"] for command in broker.commands if command["action"] == "PUB"]
            assert published == [str(number).encode() for number in range(500)]

    run(main)


def test_a_publish_loop_yields_to_other_tasks(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            ticks = 0

            async def tick() -> None:
                nonlocal ticks
                while True:
                    ticks += 1
                    await asyncio.sleep(0)

            ticking = asyncio.create_task(tick())
            for _ in range(64):
                await client.publish("a", bytes(16 << 10))
            ticking.cancel()
            assert ticks >= 5

    run(main)


def test_many_are_published_in_order_and_counted(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client, client.subscribe("n") as numbers:
            publishing = asyncio.create_task(
                client.publish_many("n", (str(number) for number in range(5000)), ttl_ms=9)
            )
            got = []
            while len(got) < 5000:
                got += [message.text for message in await numbers.batch()]
            assert await publishing == 5000
            assert got == [str(number) for number in range(5000)]

    run(main)


def test_info_is_a_dict_and_anything_else_is_a_protocol_error(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            assert (await client.info())["version"] == "fake"
            broker.info = []  # type: ignore[assignment]
            with pytest.raises(ProtocolError, match="INFO"):
                await client.info()

    run(main)


def test_acknowledging_sends_the_id(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client, client.subscribe("a") as messages:
            broker.next_id = 77
            await client.publish("a", "x")
            client.ack(await messages.next(10))
            await client.ping()

    run(main)
    assert [command["seq"] for command in broker.wait_for("ACK")] == [77]


# ---- asyncio: refusals -----------------------------------------------------------------------------------------------


def test_a_qos_1_refusal_raises_and_the_connection_stays_open(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            with pytest.raises(Refused, match=r"Publish to a was refused \(503\): QoS 1 needs the WAL") as caught:
                await client.publish("a", "x", qos=1)
            assert (caught.value.code, caught.value.exit_status) == (503, 1)
            with pytest.raises(Refused, match=r"^Subscribe to Orders/EU was refused"):
                await client.subscribe("Orders/EU", qos=1)
            await client.ping()

    run(main)


def test_a_qos_1_publish_returns_the_id_after_the_answer(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            broker.silent.add("PUB")
            publishing = asyncio.create_task(client.publish("a", "x", qos=1))
            await until(lambda: any(command["action"] == "PUB" for command in broker.commands))
            assert not publishing.done()
            broker.send(fake_broker.reply(broker.commands[-1]["seq"], id_=4711))
            assert await publishing == 4711

    run(main)


def test_an_unknown_key_raises_not_allowed_without_retry() -> None:
    async def main() -> None:
        with FakeBroker(api_key="right") as broker:
            with pytest.raises(NotAllowed, match="unknown API key") as caught:
                await connect(broker, api_key="wrong")
            assert (caught.value.code, caught.value.exit_status) == (401, 77)
            async with connect(broker, api_key="right") as client:
                await client.ping()

    run(main)


def test_a_refused_subscription_raises_and_is_removed(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            broker.refusals["SUB"] = (403, "no right to read this topic")
            with pytest.raises(NotAllowed, match="no right"):
                await client.subscribe("secret")
            broker.refusals.clear()
            async with client.subscribe("secret") as messages:
                await client.publish("secret", "x")
                assert (await messages.next(10)).payload == b"x"

    run(main)


def test_a_refused_qos_0_publish_is_reported_and_raised_by_flush(broker: FakeBroker) -> None:
    async def main() -> None:
        told: list[BlipMQError] = []
        async with connect(broker, on_refusal=told.append) as client:
            broker.refusals["PUB"] = (403, "read only key")
            await client.publish("a", "x")
            with pytest.raises(NotAllowed, match="read only key"):
                await client.flush()
            broker.refusals.clear()
            await client.publish("a", "x")
            await client.flush()
            assert [error.code for error in told] == [403]

    run(main)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a.*", "x"), "wildcards are for subscribing"),
        (("", "x"), "empty"),
        (("a", 5), "bytes or str, not int"),
        (("a", "\udcff"), "not UTF-8"),
    ],
)
def test_an_invalid_argument_raises_before_anything_is_sent(
    broker: FakeBroker, arguments: tuple[str, Any], words: str
) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            with pytest.raises(UsageError, match=words):
                await client.publish(*arguments)
            with pytest.raises(UsageError, match="ttl_ms"):
                await client.publish("a", "x", ttl_ms=-1)
            with pytest.raises(UsageError, match="stand alone"):
                client.subscribe("a*")

    run(main)
    assert not any(command["action"] in ("PUB", "SUB") for command in broker.commands)


def test_a_missing_answer_times_out_and_is_removed(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker, timeout_s=0.1) as client:
            broker.silent.add("PING")
            with pytest.raises(TimedOut, match="Ping"):
                await client.ping()
            broker.silent.clear()
            assert await client.ping() >= 0
            with pytest.raises(TimedOut, match="No message on a"):
                await (await client.subscribe("a")).next(0.01)

    run(main)


# ---- asyncio: connect and reconnect ----------------------------------------------------------------------------------


def test_a_refused_connection_raises_unreachable() -> None:
    async def main() -> None:
        with pytest.raises(Unreachable, match="nothing listens") as caught:
            await blipmq.connect(f"127.0.0.1:{fake_broker.free_port()}")
        assert caught.value.exit_status == 69

    run(main)


def test_a_peer_that_is_not_a_broker_is_recognized(broker: FakeBroker) -> None:
    async def main() -> None:
        broker.greeting = b"HTTP/1.1 400 Bad Request\r\n\r\n"
        with pytest.raises(ProtocolError, match="probably not BlipMQ"):
            await connect(broker)
        broker.greeting = b""
        broker.silent.add("HELLO")
        with pytest.raises(TimedOut, match=r"^HELLO: the broker at"):
            await connect(broker, timeout_s=0.1)
        broker.commands.clear()
        opening = asyncio.ensure_future(connect(broker))
        await until(lambda: broker.commands)
        broker.kick()
        with pytest.raises(Disconnected, match="without answering HELLO"):
            await opening

    run(main)


def test_the_client_reconnects_and_subscribes_again_after_an_outage(broker: FakeBroker) -> None:
    async def main() -> None:
        states = States()
        async with connect(broker, on_state=states) as client, client.subscribe("a.*") as messages:
            broker.stop()
            await states.until("disconnected", 2)
            publishing = asyncio.create_task(client.publish("a.b", "after"))
            broker.start()
            await publishing
            while not messages.messages:  # the publish may have been faster than the subscription
                await client.publish("a.b", "after")
                await client.ping()
            assert (await messages.next(10)).text == "after"
        assert states.seen[:4] == ["connecting", "connected", "disconnected", "connecting"]
        assert states.seen[-2:] == ["connected", "closed"]
        assert isinstance(states.errors[2], Disconnected)

    run(main)


def test_a_publish_during_an_outage_waits_and_then_raises(broker: FakeBroker) -> None:
    async def main() -> None:
        states = States()
        client = await connect(broker, on_state=states, timeout_s=0.2)
        broker.stop()
        await states.until("disconnected")
        with pytest.raises(Disconnected, match="No connection"):
            await client.publish("a", "x")
        await client.close()

    run(main)


def test_without_reconnect_a_lost_connection_closes_the_client(broker: FakeBroker) -> None:
    async def main() -> None:
        states = States()
        client = await connect(broker, on_state=states, reconnect=False)
        messages = await client.subscribe("a")
        broker.silent.add("PING")
        pinging = asyncio.create_task(client.ping())
        await asyncio.sleep(0.01)
        broker.kick()
        with pytest.raises(Disconnected):
            await pinging
        with pytest.raises(Disconnected, match="ended"):
            await messages.next(10)
        with pytest.raises(Disconnected, match="ended"):
            await client.publish("a", "x")
        await states.until("closed")
        assert "disconnected" not in states.seen

    run(main)


def test_a_client_whose_id_is_taken_over_does_not_reconnect(broker: FakeBroker) -> None:
    async def main() -> None:
        states = States()
        client = await connect(broker, client_id="me", on_state=states)
        broker.send(fake_broker.reply(0, 409, "this client id has connected again"))
        await client.ping()
        broker.kick()
        await states.until("closed")
        with pytest.raises(Refused, match=r"^This client was refused \(409\)"):
            await client.publish("a", "x")

    run(main)


def test_a_subscription_refused_after_a_reconnect_raises_to_its_reader(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client, client.subscribe("a") as messages:
            broker.refusals["SUB"] = (403, "your rights were taken away")
            broker.kick()
            with pytest.raises(NotAllowed, match="taken away"):
                await messages.next(10)
            await client.ping()

    run(main)


def test_an_interrupted_subscribe_completes_after_the_reconnect(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            broker.silent.add("SUB")
            subscribing = asyncio.ensure_future(client.subscribe("a"))
            await until(lambda: any(command["action"] == "SUB" for command in broker.commands))
            broker.silent.clear()
            broker.kick()
            messages = await subscribing
            await client.publish("a", "x")
            assert (await messages.next(10)).payload == b"x"

    run(main)


def test_invalid_bytes_close_the_connection_and_the_client_reconnects(broker: FakeBroker) -> None:
    async def main() -> None:
        states = States()
        async with connect(broker, on_state=states) as client:
            broker.send(b"\xff" * 8)
            await states.until("connected", 2)
            await client.ping()
        assert isinstance(states.errors[2], ProtocolError)

    run(main)


def test_a_cancelled_subscribe_is_unsubscribed(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            broker.silent.add("SUB")
            subscribing = asyncio.ensure_future(client.subscribe("a"))
            await until(lambda: any(command["action"] == "SUB" for command in broker.commands))
            subscribing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await subscribing
            await client.ping()
            assert [command["topic"] for command in broker.wait_for("UNSUB")] == ["a"]

    run(main)


def test_the_client_works_with_uvloop(broker: FakeBroker) -> None:
    import uvloop

    async def main() -> None:
        assert type(asyncio.get_running_loop()).__module__ == "uvloop"
        states = States()
        async with connect(broker, on_state=states) as client, connect(broker) as publisher:
            messages = await client.subscribe("a", queue_messages_max=10)
            for _ in range(200):
                await publisher.publish("a", bytes(50_000))
            await publisher.flush()
            await until(lambda: client.reading_paused)
            assert [(await messages.next(10)).id for _ in range(200)] == list(range(1, 201))
            broker.kick()
            await states.until("connected", 2)
            await client.ping()
        with pytest.raises(Unreachable, match="nothing listens"):
            await blipmq.connect(f"127.0.0.1:{fake_broker.free_port()}")

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(main(), 30))
    finally:
        loop.close()


# ---- asyncio: back-pressure ------------------------------------------------------------------------------------------


def test_a_full_queue_pauses_reading_and_no_message_is_lost(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client, connect(broker) as publisher:
            messages = await client.subscribe("a", queue_messages_max=10)
            payload = bytes(50_000)
            for _ in range(400):
                await publisher.publish("a", payload)
            await publisher.flush()
            await until(lambda: client.reading_paused)
            assert 10 <= len(messages.messages) < 400
            for number in range(400):
                assert (await messages.next(10)).id == number + 1
            assert not client.reading_paused

    run(main)


def test_answers_arrive_while_a_queue_is_full(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            messages = await client.subscribe("a", queue_messages_max=4)
            broker.send(b"".join(fake_broker.message(number + 1, b"x", "a") for number in range(4)))
            await until(lambda: client.reading_paused)
            await client.ping()
            assert len(messages.messages) == 4

    run(main)


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_new"])
def test_an_unread_subscription_delays_no_other_reader_and_counts_its_losses(broker: FakeBroker, overflow: str) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            unread = await client.subscribe("a", queue_messages_max=10, overflow=overflow)
            read = await client.subscribe("b")
            ids = iter(range(1, 10_000))
            for _ in range(30):
                broker.send(b"".join(fake_broker.message(next(ids), bytes(9000), "a") for _ in range(5)))
                number = next(ids)
                broker.send(fake_broker.message(number, b"x", "b"))
                assert (await read.next(10)).id == number
            found = [(await unread.next(10)).id for _ in range(len(unread.messages))]
            assert len(found) + unread.dropped == 150
            assert 10 <= len(found) <= 15  # the last five came after the last check
            assert found[0] == 1 if overflow == "drop_new" else found[0] > 100

    run(main)


def test_a_full_queue_that_blocks_makes_other_readers_wait_and_loses_nothing(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker) as client:
            unread = await client.subscribe("a", queue_messages_max=10, overflow="block")
            read = await client.subscribe("b")
            broker.send(b"".join(fake_broker.message(number, b"x", "a") for number in range(1, 21)))
            await until(lambda: client.reading_paused)
            broker.send(fake_broker.message(21, b"x", "b"))
            with pytest.raises(TimedOut):
                await read.next(0.05)
            assert [(await unread.next(10)).id for _ in range(20)] == list(range(1, 21))
            assert (await read.next(10)).id == 21
            assert unread.dropped == 0

    run(main)


def test_messages_of_qos_1_are_never_dropped_from_a_full_queue(broker: FakeBroker) -> None:
    broker.has_log = True

    async def main() -> None:
        async with connect(broker) as client:
            unread = await client.subscribe("a", qos=1, queue_messages_max=4)
            read = await client.subscribe("b")
            for number in range(1, 41):
                broker.send(fake_broker.message(number, b"x", "a", qos=number % 2))
                broker.send(fake_broker.message(100 + number, b"x", "b"))
                await read.next(10)
            found = [(await unread.next(10)).id for _ in range(len(unread.messages))]
            assert [id_ for id_ in found if id_ % 2] == list(range(1, 41, 2))
            assert found == sorted(found) and unread.dropped >= 19

    run(main)


def test_a_queue_far_over_its_limit_stops_answers_too(broker: FakeBroker) -> None:
    async def main() -> None:
        async with connect(broker, timeout_s=0.2) as client:
            messages = await client.subscribe("a", queue_bytes_max=100, overflow="block")
            broker.send(fake_broker.message(1, bytes(1000), "a"))
            await until(lambda: client.reading_paused)
            with pytest.raises(TimedOut, match="not being read"):
                await client.ping()
            await messages.next(10)
            await client.ping()

    run(main)


def test_a_full_send_buffer_pauses_publishers() -> None:
    """The listener never reads. Once both socket buffers are full, publish raises instead of using more memory."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            client = Client(f"127.0.0.1:{server.getsockname()[1]}", timeout_s=0.5, reconnect=False)
            opening = asyncio.create_task(client.open())
            server.setblocking(False)
            peer, _ = await asyncio.get_running_loop().sock_accept(server)
            with peer:
                hello = await asyncio.get_running_loop().sock_recv(peer, 4096)
                peer.send(fake_broker.reply(fake_broker.read_command(hello[4:])["seq"]))
                await opening
                with pytest.raises(TimedOut, match="taken nothing"):
                    for _ in range(4000):
                        await client.publish("a", bytes(64 << 10))
                await client.close()

    run(main)


# ---- blocking --------------------------------------------------------------------------------------------------------


def test_the_blocking_client_has_the_same_methods(broker: FakeBroker) -> None:
    with connect_blocking(broker) as client, client.subscribe("a.*") as messages:
        client.publish("a.b", "x", ttl_ms=5)
        assert client.publish_many("a.c", ["1", b"2"]) == 2
        client.flush()
        got = [messages.next(10) for _ in range(3)]
        assert [(message.topic, message.payload, message.ttl_ms) for message in got] == [
            ("a.b", b"x", 5),
            ("a.c", b"1", 0),
            ("a.c", b"2", 0),
        ]
        assert client.ping() >= 0
        assert client.info()["state"] == "ok"
        client.ack(got[0])
        with pytest.raises(Refused, match="503"):
            client.publish("a.b", "x", qos=1)
        with pytest.raises(Refused, match="404"):
            client.unsubscribe("never")
        client.unsubscribe("a.*")
        assert list(messages) == []
    assert broker.wait_for("QUIT")
    with pytest.raises(Disconnected, match="closed"):
        client.publish("a", "x")


def test_the_blocking_client_needs_no_asyncio() -> None:
    code = "import blipmq, sys; blipmq.connect_blocking; sys.exit(bool({'asyncio', 'blipmq.client.client'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_blocking_client_reconnects_after_an_outage(broker: FakeBroker) -> None:
    states = States()
    with connect_blocking(broker, on_state=states) as client:
        messages = client.subscribe("a")
        broker.stop()
        timer = threading.Timer(0.2, broker.start)
        timer.start()
        with pytest.raises(TimedOut):
            messages.next(0.05)
        timer.join()
        client.publish("a", "after")
        while not messages.messages:
            client.publish("a", "after")
            client.ping()
        assert messages.next(10).text == "after"
    assert states.seen[:3] == ["connecting", "connected", "disconnected"]
    assert states.seen[-2:] == ["connected", "closed"]


def test_the_blocking_client_times_out_a_publish(broker: FakeBroker) -> None:
    with connect_blocking(broker, timeout_s=0.2) as client:
        broker.stop()
        with pytest.raises(Disconnected):
            for _ in range(100):
                client.publish("a", "x")
                client.ping()
        with pytest.raises(Disconnected, match="No connection"):
            client.publish("a", "x")


def test_without_reconnect_the_blocking_client_ends_at_the_first_loss(broker: FakeBroker) -> None:
    client = connect_blocking(broker, reconnect=False)
    messages = client.subscribe("a")
    broker.kick()
    with pytest.raises(Disconnected, match="ended"):
        next(messages)
    with pytest.raises(Disconnected, match="ended"):
        client.publish("a", "x")
    assert client.state == "closed"


def test_the_blocking_client_reports_refusals_and_wrong_peers(broker: FakeBroker) -> None:
    broker.api_key = "right"
    with pytest.raises(NotAllowed, match="401"):
        connect_blocking(broker, api_key="wrong")
    broker.greeting = b"SSH-2.0-OpenSSH\r\n"
    with pytest.raises(ProtocolError, match="probably not BlipMQ"):
        connect_blocking(broker)
    with pytest.raises(Unreachable, match="nothing listens"):
        blipmq.connect_blocking(f"127.0.0.1:{fake_broker.free_port()}")


def test_a_blocking_publisher_with_a_subscription_does_not_deadlock(broker: FakeBroker) -> None:
    """It receives everything that it publishes, more than any socket buffer holds, in both directions at once."""
    with connect_blocking(broker) as client:
        messages = client.subscribe("a", queue_messages_max=10_000)
        payload = bytes(100_000)
        client.publish_many("a", [payload] * 300)
        assert sum(len(messages.next(10).payload) for _ in range(300)) == 300 * 100_000


def test_an_unread_blocking_subscription_is_named_in_the_error(broker: FakeBroker) -> None:
    with connect_blocking(broker) as client:
        client.subscribe("a", queue_messages_max=1, overflow="block")
        other = client.subscribe("b")
        broker.send(b"".join(fake_broker.message(number + 1, b"x", "a") for number in range(4)))
        with pytest.raises(UsageError, match="subscription to a holds 4 unread messages"):
            other.next(10)


def test_an_unread_blocking_subscription_drops_its_oldest_messages_while_another_is_read(broker: FakeBroker) -> None:
    with connect_blocking(broker) as client:
        unread = client.subscribe("a", queue_messages_max=5)
        read = client.subscribe("b")
        for number in range(1, 101):
            broker.send(fake_broker.message(number, b"x", "a") + fake_broker.message(1000 + number, b"x", "b"))
            assert read.next(10).id == 1000 + number
        found = [unread.next(10).id for _ in range(len(unread.messages))]
        assert 5 <= len(found) <= 6 and found == list(range(101 - len(found), 101))
        assert unread.dropped == 100 - len(found)


def test_the_log_has_outages_losses_and_refusals(broker: FakeBroker, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "blipmq.client")

    async def main() -> None:
        states = States()
        async with connect(broker, on_state=states) as client:
            broker.refusals["PUB"] = (403, "no right")
            await client.publish("a", b"x")
            with pytest.raises(Refused):
                await client.flush()
            broker.kick()
            await states.until("connected", 2)
            await client.subscribe("b", queue_messages_max=1)
            read = await client.subscribe("c")
            broker.send(b"".join(fake_broker.message(number, b"x", "b") for number in range(1, 13)))
            for number in (20, 21):  # the second is read behind a full queue
                broker.send(fake_broker.message(number, b"x", "c"))
                await read.next(10)

    run(main)
    lines = [(record.levelname, record.getMessage()) for record in caplog.records]
    address = broker.address
    assert [line for line in lines if line[0] == "INFO" and line[1].startswith("connected")] == [
        ("INFO", f"connected to {address}")
    ] * 2
    warnings = [text for level, text in lines if level == "WARNING"]
    assert warnings[0].startswith("A publish was refused (403): no right.")
    assert warnings[1].startswith(f"disconnected from {address}: ")
    assert warnings[2].startswith("the reader of b is slow: ") and len(warnings) == 3


def test_the_publisher_receives_413_before_the_connection_closes(broker: FakeBroker) -> None:
    with connect_blocking(broker, reconnect=False) as client:
        broker.refusals["PUB"] = (413, "over server.max_message_size_bytes")
        client.publish("a", bytes(100_000))
        with pytest.raises(Refused, match=r"^A publish was refused \(413\): over server.max_message_size_bytes"):
            client.flush()


# ---- addresses, backoff, errors, the package -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:7000", "127.0.0.1", 7000),
        ("broker.local", "broker.local", 7878),
        ("[::1]:7000", "::1", 7000),
        ("[fe80::1%eth0]", "fe80::1%eth0", 7878),
    ],
)
def test_an_address_is_parsed_into_its_parts(text: str, host: str, port: int) -> None:
    assert parse_address(text) == Address(host, port)
    assert parse_address(str(parse_address(text))) == Address(host, port)


@pytest.mark.parametrize(
    "text", ["", ":7878", "a:", "a:0", "a:65536", "a:x", "a:-1", "::1", "[::1", "[::1]x", "http://a", "a b"]
)
def test_an_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"address|port"):
        parse_address(text)


def test_ipv6_works_from_end_to_end() -> None:
    try:
        broker = FakeBroker(host="::1")
        broker.start()
    except AssertionError:
        assert not socket.has_ipv6 or not ipv6_is_up()
        return
    with connect_blocking(broker) as client:
        assert client.ping() >= 0
    broker.stop()


def ipv6_is_up() -> bool:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            return False
    return True


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (socket.gaierror(-2, "Name or service not known"), "name is not known"),
        (TimeoutError(), "no answer in time"),
        (OSError(113, "No route to host"), "no route"),
        (OSError(5, "Input/output error"), "Input/output error"),
    ],
)
def test_connection_errors_are_described_in_words(error: OSError, words: str) -> None:
    assert words in str(unreachable(Address("h", 1), error))


def test_backoff_doubles_is_bounded_and_is_spread_over_its_range() -> None:
    half = Backoff(lambda: 0.5, first_s=1.0, most_s=10.0)
    assert [half.next_s() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 5.0, 5.0]
    half.reset()
    assert half.next_s() == 0.5
    assert Backoff(lambda: 0.0).next_s() == 0.0
    patient = Backoff(lambda: 0.5)
    assert all(patient.next_s() <= 5.0 for _ in range(2000))


def test_the_client_refuses_requests_over_its_in_flight_limit() -> None:
    protocol = ClientProtocol()
    for _ in range(PENDING_MAX):
        protocol.ping()
    with pytest.raises(UsageError, match="wait for an answer"):
        protocol.ping()


def test_every_pending_request_fails_once_when_the_connection_is_lost() -> None:
    protocol = ClientProtocol()
    request, finished = protocol.ping(), []
    request.on_done = lambda: finished.append(request.error)
    error = Disconnected("gone")
    protocol.lost(error)
    protocol.receive(fake_broker.reply(request.seq))
    assert finished == [error]


def test_client_ids_and_keys_that_hello_cannot_carry_are_refused() -> None:
    with pytest.raises(UsageError, match="client id"):
        ClientProtocol(client_id="x" * 257)
    with pytest.raises(ConfigError, match="API key"):
        ClientProtocol(api_key="x" * 513)
    with pytest.raises(UsageError, match="not UTF-8"):
        ClientProtocol(client_id="\udcff")
    hello = ClientProtocol(client_id="x" * 256, api_key="k" * 512)
    hello.open()
    assert len(hello.take()) <= 1024


def test_the_package_exports_exactly_its_public_names() -> None:
    assert blipmq.Message.__module__ == "blipmq.wire.frames"
    assert blipmq.errors.BlipMQError is BlipMQError
    assert set(blipmq.__all__) <= set(dir(blipmq))
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        blipmq.nothing_of_the_kind  # noqa: B018


def test_importing_the_package_loads_few_modules() -> None:
    code = "import sys; before = set(sys.modules); import blipmq; print(sorted(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"asyncio", "socket", "argparse", "json", "cffi", "uvloop", "msgspec"} & set(eval(out))
