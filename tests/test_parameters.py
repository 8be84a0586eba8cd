"""Invalid arguments of client and broker methods: one error message each, and nothing is sent."""

import asyncio
import inspect
import threading

import pytest
from fake_broker import FakeBroker

import blipmq
from blipmq.errors import UsageError, WrongType

TEXT, NUMBER, FLAG, SECONDS, FUNCTION = (
    "must be a str",
    "whole number",
    "True or False",
    "number of seconds",
    "a function",
)
PAYLOAD, MANY, MESSAGES = (
    "A payload is bytes or str",
    "a list or another iterable of payloads",
    "it must be a received message",
)

# Method, arguments, options, and words of the error message; the same for both clients.
WRONG_TYPES = [
    ("publish", (7, "x"), {}, TEXT),
    ("publish", (["a"], "x"), {}, TEXT),
    ("publish", (None, "x"), {"qos": 1}, TEXT),
    ("publish", (b"a", "x"), {}, TEXT),
    ("publish", ("a", None), {}, PAYLOAD),
    ("publish", ("a", 21.5), {"qos": 1}, PAYLOAD),
    ("publish", ("a", {"x": 1}), {}, PAYLOAD),
    ("publish", ("a", "x"), {"ttl_ms": "5"}, NUMBER),
    ("publish", ("a", "x"), {"ttl_ms": 1.5}, NUMBER),
    ("publish", ("a", "x"), {"ttl_ms": [1]}, NUMBER),
    ("publish", ("a", "x"), {"qos": "1"}, NUMBER),
    ("publish", ("a", "x"), {"qos": None}, NUMBER),
    ("publish_many", ("a", "text"), {}, MANY),
    ("publish_many", ("a", b"bytes"), {"qos": 1}, MANY),
    ("publish_many", ("a", 5), {}, MANY),
    ("publish_many", ("a", None), {"qos": 1}, MANY),
    ("publish_many", ("a", [1]), {}, PAYLOAD),
    ("publish_many", (5, ["x"]), {}, TEXT),
    ("publish_many", ("a", ["x"]), {"qos": "1"}, NUMBER),
    ("publish_many", ("a", ["x"]), {"qos": 1, "window": "2"}, NUMBER),
    ("subscribe", (5,), {}, TEXT),
    ("subscribe", (["a"],), {}, TEXT),
    ("subscribe", ("a",), {"qos": "1"}, NUMBER),
    ("subscribe", ("a",), {"qos": 1, "durable": "yes"}, FLAG),
    ("subscribe", ("a",), {"group": 5}, TEXT),
    ("subscribe", ("a",), {"group": None}, TEXT),
    ("subscribe", ("a",), {"auto_ack": "no"}, FLAG),
    ("subscribe", ("a",), {"queue_messages_max": "5"}, NUMBER),
    ("subscribe", ("a",), {"queue_bytes_max": 1.5}, NUMBER),
    ("unsubscribe", (5,), {}, TEXT),
    ("unsubscribe", ("a",), {"group": 5}, TEXT),
    ("ack", (5,), {}, MESSAGES),
    ("ack", (["a message"],), {}, MESSAGES),
    ("ack", ("5",), {}, MESSAGES),
    ("sessions", (5,), {}, TEXT),
    ("sessions", ("", "5"), {}, NUMBER),
    ("end_session", (5,), {}, TEXT),
    ("end_session", ("a",), {"client_id": 5}, TEXT),
    ("end_session", ("a",), {"key": b"k"}, TEXT),
]
OUT_OF_RANGE = [
    ("publish", ("a", "x"), {"ttl_ms": -1}, "ttl_ms is -1"),
    ("publish", ("a", "x"), {"ttl_ms": 1 << 64}, "ttl_ms is"),
    ("publish", ("a", "x"), {"qos": 2}, "qos is 2; it must be between 0 and 1"),
    ("publish_many", ("a", ["x"]), {"qos": -1}, "qos is -1"),
    ("publish_many", ("a", ["x"]), {"qos": 1, "window": 0}, "window is 0"),
    ("subscribe", ("a",), {"qos": 2}, "qos is 2"),
    ("subscribe", ("a",), {"queue_messages_max": 0}, "queue_messages_max is 0"),
    ("sessions", ("", -1), {}, "limit is -1"),
]
OPTIONS = [
    ({"client_id": 5}, TEXT),
    ({"api_key": b"k"}, TEXT),
    ({"tls": 5}, "tls must be True, the path of a file"),
    ({"reconnect": "yes"}, FLAG),
    ({"timeout_s": "5"}, SECONDS),
    ({"timeout_s": None}, SECONDS),
    ({"on_state": 5}, FUNCTION),
    ({"on_refusal": "print"}, FUNCTION),
    ({"random": 5}, FUNCTION),
    ({"sleep": 5}, FUNCTION),
    ({"wait": "5"}, SECONDS),
]


@pytest.fixture
def broker():
    with FakeBroker() as running:
        running.has_log = True
        yield running


def call_with_asyncio(broker, verb, arguments, options):
    async def scene():
        async with blipmq.connect(broker.address) as client:
            result = getattr(client, verb)(*arguments, **options)
            if inspect.isawaitable(result):
                await result

    asyncio.run(asyncio.wait_for(scene(), 30))


def call_blocking(broker, verb, arguments, options):
    with blipmq.connect_blocking(broker.address) as client:
        getattr(client, verb)(*arguments, **options)


both = pytest.mark.parametrize("call", [call_with_asyncio, call_blocking])


@both
@pytest.mark.parametrize(("verb", "arguments", "options", "words"), WRONG_TYPES)
def test_a_value_of_a_wrong_type_raises_and_nothing_is_sent(broker, call, verb, arguments, options, words):
    with pytest.raises(TypeError) as caught:
        call(broker, verb, arguments, options)
    assert isinstance(caught.value, WrongType) and isinstance(caught.value, ValueError)
    assert words in str(caught.value)
    broker.wait_for("QUIT")
    assert {command["action"] for command in broker.commands} <= {"HELLO", "QUIT", "PING"}


@both
@pytest.mark.parametrize(("verb", "arguments", "options", "words"), OUT_OF_RANGE)
def test_a_value_out_of_range_raises_and_nothing_is_sent(broker, call, verb, arguments, options, words):
    with pytest.raises(UsageError, match=words) as caught:
        call(broker, verb, arguments, options)
    assert not isinstance(caught.value, TypeError)
    assert {command["action"] for command in broker.commands} <= {"HELLO", "QUIT", "PING"}


@pytest.mark.parametrize("connect", [lambda *a, **o: asyncio.run(opened(*a, **o)), blipmq.connect_blocking])
@pytest.mark.parametrize(("options", "words"), OPTIONS)
def test_an_option_of_a_wrong_type_raises_before_connecting(connect, options, words):
    with pytest.raises(WrongType) as caught:
        connect("tls://127.0.0.1:1", **options)
    assert words in str(caught.value)
    for address in (5, None, b"127.0.0.1"):
        with pytest.raises(WrongType, match="the address is"):
            connect(address)


async def opened(*arguments, **options):
    return await blipmq.connect(*arguments, **options)


def test_an_invalid_time_raises_in_subscriptions_and_waits(broker):
    with blipmq.connect_blocking(broker.address) as client, client.subscribe("a") as messages:
        calls = [messages.next, messages.batch, client.poll, lambda t: client.wait(lambda: False, t)]
        for call in calls:
            for wrong in ("5", [1]):
                with pytest.raises(WrongType, match=r"timeout_s is .* must be a number of seconds"):
                    call(wrong)
            with pytest.raises(UsageError, match="timeout_s is -1"):
                call(-1)
        with pytest.raises(WrongType, match="ready is 5"):
            client.wait(5, 1)
        with pytest.raises(WrongType, match=MESSAGES):
            messages.ack(5)

    async def scene():
        async with blipmq.connect(broker.address) as client, client.subscribe("a") as messages:
            with pytest.raises(WrongType, match="timeout_s is '5'"):
                await messages.next("5")
            with pytest.raises(WrongType, match=MESSAGES):
                messages.ack([])

    asyncio.run(scene())


def test_booleans_and_equal_numbers_are_accepted(broker):
    with blipmq.connect_blocking(broker.address) as client:
        client.publish("a", "x", qos=True, ttl_ms=False)
        client.subscribe("a", qos=1, auto_ack=0)
    assert broker.wait_for("PUB")[0]["qos"] == 1


BROKER_WRONG = [
    (lambda b: b.publish(5, "x"), TEXT),
    (lambda b: b.publish("a", None), PAYLOAD),
    (lambda b: b.publish("a", "x", "5"), NUMBER),
    (lambda b: b.publish("a", "x", ttl_ms=1.5), NUMBER),
    (lambda b: b.publish("a", "x", qos="1"), NUMBER),
    (lambda b: b.connect(client_id=5), TEXT),
    (lambda b: b.connect(timeout_s="5"), SECONDS),
    (lambda b: b.connect(on_state=5), FUNCTION),
]


def test_the_broker_reports_wrong_types_too(tmp_path):
    for config in (7878, b"file", ["server"], object()):
        with pytest.raises(WrongType, match="config is "):
            blipmq.Broker(config)
    settings = {"server": {"bind_addr": "127.0.0.1:0"}, "wal": {"directory": str(tmp_path / "wal")}}
    with blipmq.Broker(settings) as broker:
        for call, words in BROKER_WRONG:
            with pytest.raises(WrongType) as caught:
                call(broker)
            assert words in str(caught.value)
        with pytest.raises(UsageError, match="qos is 2"):
            broker.publish("a", "x", qos=2)
        with pytest.raises(WrongType, match="timeout_ms"):
            broker.stop("5")

    async def scene():
        async with blipmq.Broker({**settings, "wal": {"directory": str(tmp_path / "wal2")}}) as broker:
            for call, words in BROKER_WRONG:
                with pytest.raises(WrongType) as caught:
                    result = call(broker)
                    if isinstance(result, blipmq.client.client.AwaitableContext):
                        await result
                assert words in str(caught.value)
            with pytest.raises(WrongType, match="apply takes a Config"):
                broker.apply({})

    asyncio.run(scene())


# ---- the event loop of a client or a broker ----------------------------------------------------------------------------


def test_an_asyncio_client_refuses_calls_outside_its_loop(broker):
    async def scene():
        async with blipmq.connect(broker.address) as client, client.subscribe("a") as messages:
            calls = [
                lambda: client.publish("a", "x"),
                lambda: client.publish("a", "x", qos=1),
                lambda: client.publish_many("a", ["x"]),
                client.flush,
                client.ping,
                client.info,
                client.close,
                lambda: client.subscribe("b"),
                lambda: client.unsubscribe("a"),
                messages.next,
                messages.batch,
                messages.__anext__,
                messages.close,
            ]

            def elsewhere():
                async def one(call):
                    await call()

                for call in calls:
                    try:
                        asyncio.run(asyncio.wait_for(one(call), 20))
                    except UsageError as error:
                        assert "belongs to the event loop that opened it" in str(error)
                        refused.append(call)
                for call in (client.ack, messages.ack):
                    try:
                        call()
                    except UsageError:
                        refused.append(call)

            refused = []
            thread = threading.Thread(target=elsewhere)
            thread.start()
            await asyncio.to_thread(thread.join)
            assert len(refused) == len(calls) + 2
            await client.publish("a", "still of use")
            assert (await messages.next(20)).text == "still of use"

    asyncio.run(asyncio.wait_for(scene(), 60))
    with pytest.raises(UsageError, match="This client is not open"):
        asyncio.run(blipmq.Client(broker.address).ping())


def test_a_broker_refuses_calls_outside_its_loop():
    async def scene():
        async with blipmq.Broker({"server": {"bind_addr": ""}}) as broker:

            def elsewhere():
                with pytest.raises(UsageError, match="belongs to the event loop that started it"):
                    broker.publish("a", "x")
                for verb in (broker.stats, broker.info, broker.stop):
                    with pytest.raises(UsageError, match="belongs to the event loop that started it"):
                        asyncio.run(verb())
                return True

            assert await asyncio.to_thread(elsewhere)
            async with broker.connect() as client, client.subscribe("a") as messages:
                broker.publish("a", "still of use")
                assert (await messages.next(20)).text == "still of use"

    asyncio.run(asyncio.wait_for(scene(), 60))
