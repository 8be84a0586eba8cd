"""The broker as seen by its clients: transcripts over real sockets, and in-process clients."""

import asyncio
import json
import os
import runpy
import socket
from pathlib import Path

import pytest
from raw_client import RawClient

import blipmq
from blipmq.base.logs import Log
from blipmq.broker import publisher, status
from blipmq.broker.message_ids import first_message_id
from blipmq.config import memory
from blipmq.config.reader import from_dict
from blipmq.config.settings import KEYS
from blipmq.errors import BlipMQError, ConfigError, Refused, UsageError
from blipmq.native.config import CoreConfig
from blipmq.native.core import Core
from blipmq.net import memory_transport
from blipmq.net.listener import AddressInUse, address_of, open_listener
from blipmq.version import __version__
from blipmq.wire import frames as wire

ROOT = Path(__file__).parent.parent
ALL_VECTORS = json.loads((ROOT / "tests/vectors.json").read_text())
VECTORS = {v["name"]: v for v in ALL_VECTORS["valid"]}
COMMANDS = [v for v in ALL_VECTORS["valid"] if v["direction"] == "up"]
TIMEOUT_S = 60
LOCAL = {"server": {"bind_addr": "127.0.0.1:0"}}
NO_LISTENER = {"server": {"bind_addr": ""}}
AT_ONCE = {"shutdown_timeout_ms": 0}  # a stuck subscriber would use the whole shutdown time


def settings(**sections):
    return {**LOCAL, **{name: {**LOCAL.get(name, {}), **keys} for name, keys in sections.items()}}


@pytest.fixture
def broker():
    with blipmq.Broker(LOCAL, log=Log(level="error")) as running:
        yield running


@pytest.fixture
def connect():
    """Connect raw clients to a broker; all are closed after the test."""
    clients = []

    def connect(broker):
        clients.append(RawClient(broker.address))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def log_lines(tmp_path):
    """A log to a file, and a function that returns its lines without their time."""
    path = tmp_path / "log"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)
    yield Log(fd, level="debug"), lambda: [line.split(" ", 1)[1] for line in path.read_text().splitlines()]
    os.close(fd)


ROUNDS_MAX = 100_000  # each is one request to the core and its answer


def until(broker, happened):
    """Request the counters until the condition holds."""
    assert any(happened(broker.stats()) for _ in range(ROUNDS_MAX))


async def counted(broker, happened):
    """The same in an event loop."""
    for _ in range(ROUNDS_MAX):
        if happened(await broker.stats()):
            return
    raise AssertionError(await broker.stats())


# ---- legacy clients ----


def test_a_v1_client_receives_messages_of_another_v1_client(broker, connect):
    subscriber, publisher_ = connect(broker), connect(broker)
    subscriber.send(bytes.fromhex(VECTORS["v1 subscribe"]["frame"]))
    topic = VECTORS["v1 subscribe"]["expect"]["topic"]
    assert subscriber.next() == wire.SubAck(topic, "subscribed", 0, 0)
    publisher_.send(bytes.fromhex(VECTORS["v1 publish"]["frame"]))
    message = subscriber.next()
    assert (message.topic, message.payload) == ("chat", b"Hello")
    assert message.id > 0


def test_a_legacy_client_gets_replies_only_to_sub(broker, connect):
    client = connect(broker)
    client.say(wire.PUB, "elsewhere", b"x")
    client.say(wire.PING, seq=1)
    client.say(wire.UNSUB, "never", seq=2)
    client.say(wire.INFO, seq=3)
    client.say(wire.SUB, "a", seq=4)
    client.say(wire.PUB, "a", b"y")
    assert isinstance(client.next(), wire.SubAck)
    assert client.next().payload == b"y"


def test_an_unsupported_request_of_a_legacy_client_closes_it_and_logs_the_reason(connect, log_lines):
    log, lines = log_lines
    with blipmq.Broker(LOCAL, log=log) as broker:
        client = connect(broker)
        client.say(wire.SUB, "a", qos=1)
        assert client.next() is None
    line = next(line for line in lines() if line.startswith("warning refused"))
    assert line == (
        f'warning refused what=sub client="" peer={client.name} code=503 '
        'reason="QoS 1 needs the WAL: set wal.enabled = true, or subscribe with QoS 0" filter=a'
    )


def test_a_bad_frame_of_a_legacy_client_closes_it_with_one_log_line(connect, log_lines):
    log, lines = log_lines
    with blipmq.Broker(LOCAL, log=log) as broker:
        client = connect(broker)
        client.send(b"\x00\x00\x00\x08GET / HT")
        assert client.next() is None
        quiet = connect(broker)
        quiet.say(wire.PUB, "a", b"x")
        quiet.close()
    closed = [line for line in lines() if " closed " in line]
    assert len(closed) == 1
    assert closed[0].startswith(f'warning closed client="" peer={client.name} reason=frame detail=')


@pytest.mark.parametrize("vector", ALL_VECTORS["broken"], ids=lambda v: v["name"])
def test_a_broken_frame_closes_only_its_legacy_connection(broker, connect, vector):
    legacy, other = connect(broker), connect(broker).hello("other").subscribe("t")
    legacy.send(bytes.fromhex(vector["frame"]))
    legacy.socket.shutdown(socket.SHUT_WR)  # some frames announce more bytes than they contain
    assert legacy.raw() == b""
    broker.publish("t", b"still here")
    assert other.next().payload == b"still here"


@pytest.mark.parametrize("vector", ALL_VECTORS["broken"], ids=lambda v: v["name"])
def test_a_broken_frame_after_hello_is_answered(broker, connect, vector):
    client = connect(broker).hello("a")
    client.send(bytes.fromhex(vector["frame"]))
    client.socket.shutdown(socket.SHUT_WR)
    replies = []
    while (reply := client.next()) is not None:
        replies.append((type(reply), reply.code))
    assert set(replies) <= {(wire.Reply, 400), (wire.Reply, 413)}


@pytest.mark.parametrize("vector", COMMANDS, ids=lambda v: v["name"])
def test_the_broker_still_serves_after_each_valid_frame(broker, connect, vector):
    client, other = connect(broker), connect(broker).hello("other").subscribe("t")
    client.send(bytes.fromhex(vector["frame"]))
    client.socket.shutdown(socket.SHUT_WR)
    while client.raw():
        pass
    broker.publish("t", b"still here")
    assert other.next().payload == b"still here"
    assert broker.stats()["frames_bad"] == 0


# ---- several clients ----


def test_a_stuck_subscriber_loses_only_its_own_messages(connect):
    count, payload = 5000, bytes(2000)  # ten megabytes: more than the socket buffer of the client
    with blipmq.Broker(
        settings(queues={"subscriber_capacity": 100}, delivery={"max_batch": 10}, limits=AT_ONCE)
    ) as broker:
        stuck, feeder = connect(broker).subscribe("t"), connect(broker).hello("feeder")
        fast = [connect(broker).subscribe("t") for _ in range(5)]
        for number in range(0, count, 50):  # fewer at a time than a queue holds, so a reading subscriber loses nothing
            feeder.send(*[wire.encode_command(wire.PUB, "t", b"%d|" % n + payload) for n in range(number, number + 50)])
            for client in fast:
                got = [int(client.next().payload.partition(b"|")[0]) for _ in range(50)]
                assert got == list(range(number, number + 50))
        counters = broker.stats()
        assert counters["delivered"] >= 5 * count
        rows = {row["peer"]: row for row in broker.info()["subscriptions"]}
        assert rows[stuck.name]["blocked"] and rows[stuck.name]["dropped_queue_full"] > 0
        assert [rows[client.name]["dropped_queue_full"] for client in fast] == [0] * 5


# ---- HELLO


def test_hello_is_answered_with_the_version(broker, connect):
    client = connect(broker)
    client.say(wire.HELLO, client_id="gauge-7", protocol=1, seq=41)
    assert client.next() == wire.Reply(41, 0, f"BlipMQ {__version__}", 0, b"")


def test_hello_with_another_protocol_version_is_refused_and_closed(broker, connect):
    client = connect(broker)
    client.say(wire.HELLO, client_id="from-the-future", protocol=2, seq=5)
    client.say(wire.HELLO, client_id="from-the-future", protocol=1, seq=6)  # too late for another version
    reply = client.next()
    assert (reply.seq, reply.code) == (5, 426)
    assert "protocol 1" in reply.message and "not protocol 2" in reply.message
    assert client.next() is None


def test_a_second_hello_is_refused_and_the_connection_stays_open(broker, connect):
    client = connect(broker).hello("a")
    client.say(wire.HELLO, client_id="b", protocol=1, seq=2)
    reply = client.next()
    assert (reply.seq, reply.code) == (2, 400)
    client.say(wire.PING, seq=3)
    assert client.next() == wire.Reply(3, 0, "", 0, b"")


def test_a_newer_connection_takes_over_its_client_id_and_the_older_is_told(broker, connect):
    older = connect(broker).hello("gauge-7").subscribe("a")
    newer = connect(broker).hello("gauge-7").subscribe("b")
    reply = older.next()
    assert (reply.seq, reply.code) == (0, 409)
    assert older.next() is None
    broker.publish("a", b"for the older")
    broker.publish("b", b"for the newer")
    assert newer.next().payload == b"for the newer"


def test_a_client_id_can_be_taken_over_again_and_again(broker, connect):
    client = connect(broker).hello("x")
    for _ in range(20):
        older, client = client, connect(broker).hello("x")
        assert older.next().code == 409
        assert older.next() is None
        older.close()
    client.say(wire.PING, seq=9)
    assert client.next().code == 0
    until(broker, lambda c: c["closed"] == 20)
    assert broker.info()["clients"] == 1


def test_clients_without_a_client_id_do_not_take_over_each_other(broker, connect):
    first, second = connect(broker).hello(), connect(broker).hello()
    for client in (first, second):
        client.say(wire.PING, seq=1)
        assert client.next().code == 0


@pytest.mark.parametrize("client_id", ["x" * 257, "line\nbreak", "\x1b[2J"], ids=["long", "newline", "escape"])
def test_a_client_id_unsuitable_for_logs_is_refused(broker, connect, client_id):
    client = connect(broker)
    client.say(wire.HELLO, client_id=client_id, protocol=1, seq=1)
    assert client.next().code == 400
    client.hello("better", seq=2)


# ---- SUB and UNSUB


@pytest.mark.parametrize("asked", [{"qos": 1}, {"qos": 1, "durable": True}], ids=["qos 1", "durable"])
def test_requests_that_need_a_wal_are_refused_without_one(broker, connect, asked):
    client = connect(broker).hello("a")
    client.say(wire.SUB, "a", seq=7, **asked)
    assert client.next() == wire.Reply(
        7, 503, "QoS 1 needs the WAL: set wal.enabled = true, or subscribe with QoS 0", 0, b""
    )
    client.subscribe("a", seq=8)


def test_a_qos_1_publish_is_refused_and_not_delivered(broker, connect):
    client = connect(broker).hello("a").subscribe("t")
    client.say(wire.PUB, "t", b"surely", qos=1, seq=3)
    assert (client.next().seq, broker.stats()["published"]) == (3, 0)


def test_subscriptions_of_one_connection_have_a_limit(connect):
    with blipmq.Broker(settings(limits={"max_subscriptions_per_connection": 2})) as broker:
        client = connect(broker).hello("a").subscribe("one").subscribe("two").subscribe("two")
        client.say(wire.SUB, "three", seq=9)
        reply = client.next()
        assert (reply.seq, reply.code) == (9, 429)
        client.say(wire.UNSUB, "one", seq=10)
        assert client.next() == wire.Reply(10, 0, "", 0, b"")
        client.subscribe("three", seq=11)
        legacy = connect(broker).subscribe("one").subscribe("two")
        legacy.say(wire.SUB, "three")
        assert legacy.next() is None


def test_unsub_ends_a_subscription_once(broker, connect):
    client = connect(broker).hello("a").subscribe("t")
    client.say(wire.UNSUB, "t", seq=3)
    assert client.next().code == 0
    client.say(wire.UNSUB, "t", seq=4)
    assert client.next().code == 404
    broker.publish("t", b"for no one")
    client.say(wire.PING, seq=5)
    assert client.next() == wire.Reply(5, 0, "", 0, b"")


def test_requests_of_one_connection_take_effect_in_order(broker, connect):
    client = connect(broker).hello("a")
    frames = []
    for number in range(200):
        topic = f"t{number}"
        frames += [
            wire.encode_command(wire.SUB, topic, seq=number + 1),
            wire.encode_command(wire.PUB, topic, b"%d" % number),
            wire.encode_command(wire.UNSUB, topic, seq=number + 1),
            wire.encode_command(wire.PUB, topic, b"too late"),
        ]
    client.send(*frames)
    for number in range(200):
        assert client.next() == wire.SubAck(f"t{number}", "subscribed", number + 1, 0)
        assert client.next().payload == b"%d" % number
        assert client.next() == wire.Reply(number + 1, 0, "", 0, b"")


# ---- INFO


def ask_info(client, seq=77):
    client.say(wire.INFO, seq=seq)
    reply = client.next()
    assert (reply.seq, reply.code) == (seq, 0)
    return json.loads(reply.payload)


def test_info_returns_the_state_of_the_broker(broker, connect):
    subscriber = connect(broker).hello("gauge-7").subscribe("site/+/temp")
    feeder = connect(broker).hello()
    feeder.say(wire.PUB, "site/1/temp", b"21.5")
    feeder.say(wire.PUB, "site/1/door", b"open")
    info = ask_info(feeder)
    assert set(info) == {
        "version", "uptime_s", "address", "state", "reasons", "clients", "connections", "topics", "filters", "subscriptions",
        "subscriptions_total", "subscribers", "messages", "rates", "memory", "sessions", "auth", "log", "tls", "websocket",
        "mqtt", "disk_free_bytes", "hardware",
    }  # fmt: skip
    assert info["version"] == __version__
    assert info["address"] == broker.address
    assert (info["state"], info["reasons"]) == ("ok", [])
    assert (info["clients"], info["topics"], info["subscriptions_total"]) == (2, 2, 1)
    assert info["messages"] == {
        "published": 2, "enqueued": 1, "delivered": 1, "queued": 0, "unrouted": 1,
        "dropped": {"ttl": 0, "queue_full": 0, "disconnect": 0, "session_log_bytes": 0},
    }  # fmt: skip
    (row,) = info["subscriptions"]
    assert row == {
        "client": "gauge-7", "key": "", "peer": subscriber.name, "filters": ["site/+/temp"], "filters_total": 1,
        "queued_messages": 0, "queued_bytes": 0, "enqueued": 1, "delivered": 1,
        "dropped_ttl": 0, "dropped_queue_full": 0, "blocked": False, "websocket": False,
    }  # fmt: skip
    assert set(info["rates"]) == {"in_per_s", "out_per_s"}
    assert info["memory"]["used_bytes"] > 0


def test_info_lists_the_hundred_deepest_queues_and_counts_the_rest(broker, connect):
    for number in range(status.SUBSCRIBERS_MAX + 20):
        connect(broker).hello(f"c{number}").subscribe("a")
    info = ask_info(connect(broker).hello())
    assert len(info["subscriptions"]) == status.SUBSCRIBERS_MAX
    assert info["subscriptions_total"] == status.SUBSCRIBERS_MAX + 20


def test_info_shows_a_stuck_subscriber_and_its_lost_messages(connect):
    with blipmq.Broker(settings(queues={"subscriber_capacity": 10}, limits=AT_ONCE)) as broker:
        stuck = connect(broker).hello("stuck").subscribe("a")
        feeder = connect(broker).hello("feeder")
        feeder.say(wire.PUB, "a", b"")
        assert stuck.next().payload == b""
        row = {"blocked": False, "dropped_queue_full": 0}
        while not (row["blocked"] and row["dropped_queue_full"]):
            feeder.send(*[wire.encode_command(wire.PUB, "a", bytes(10_000))] * 100)
            (row,) = ask_info(feeder)["subscriptions"]
        assert row["client"] == "stuck"
        assert 0 < row["queued_messages"] <= 10
        assert row["enqueued"] == row["delivered"] + row["dropped_queue_full"] + row["queued_messages"]
        assert stuck.next().payload == bytes(10_000)


def test_an_info_answer_that_is_too_long_omits_rows():
    rows = [{"filters": ["x" * 256] * 16} for _ in range(100)]
    text = status._bounded_json({"state": "ok", "subscriptions": rows})
    assert len(text) <= status.INFO_BYTES_MAX
    assert 0 < len(json.loads(text)["subscriptions"]) < 100


# ---- in-process clients ----


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


def test_a_broker_without_a_listener_serves_in_process_clients():
    async def scene():
        async with blipmq.Broker(NO_LISTENER) as broker:
            assert broker.address == ""
            async with broker.connect(client_id="a") as one, broker.connect() as other:
                async with one.subscribe("site/+/temp") as readings:
                    await other.publish("site/1/temp", "21.5")
                    broker.publish("site/2/temp", b"20.9")
                    got = [await readings.next(20), await readings.next(20)]
                    assert {m.payload for m in got} == {b"21.5", b"20.9"}
                assert (await one.info())["clients"] == 3  # two clients, and the internal publisher of the broker

    run(scene())


def test_two_brokers_in_one_process_share_nothing():
    async def scene():
        async with blipmq.Broker(LOCAL) as a, blipmq.Broker(LOCAL) as b:
            assert a.address != b.address
            async with a.connect(client_id="same") as at_a, b.connect(client_id="same") as at_b:
                to_a, to_b = await at_a.subscribe("t"), await at_b.subscribe("t")
                a.publish("t", "in a")
                b.publish("t", "in b")
                assert [(await to_a.next(20)).text, (await to_b.next(20)).text] == ["in a", "in b"]
                assert (await a.stats())["published"] == (await b.stats())["published"] == 1

    run(scene())


def test_in_process_traffic_larger_than_the_windows_keeps_its_order():
    async def scene():
        async with blipmq.Broker(NO_LISTENER) as broker, broker.connect() as reader, broker.connect() as writer:
            messages = await reader.subscribe("t")
            count, got = 30_000, []
            await writer.publish_many("t", (b"%d" % n for n in range(count)))
            await writer.publish("t", bytes(1_000_000))
            while len(got) <= count:
                got += await messages.batch()
            assert [m.payload for m in got[:-1]] == [b"%d" % n for n in range(count)]
            assert len(got[-1].payload) == 1_000_000

    run(scene())


def test_an_in_process_client_that_does_not_read_is_paused():
    class Sleeper(asyncio.Protocol):
        def data_received(self, data):
            pass

    async def scene():
        async with blipmq.Broker({**NO_LISTENER, "queues": {"subscriber_capacity": 50}}) as broker:
            transport = await broker.open_transport(Sleeper())
            transport.write(wire.encode_command(wire.SUB, "t"))
            transport.pause_reading()
            await counted(broker, lambda c: c["subscriptions"])
            while (await broker.stats())["dropped_queue_full"] == 0:
                broker.publish("t", bytes(10_000))
            assert sum(map(len, transport._held)) <= 4 * memory_transport.CHUNK_BYTES
            transport.resume_reading()
            await counted(broker, lambda c: not c["queued_messages"])

    run(scene())


def test_a_cancelled_connection_attempt_leaks_nothing():
    async def scene():
        async with blipmq.Broker(NO_LISTENER) as broker:
            attempt = asyncio.ensure_future(broker.open_transport(asyncio.Protocol()))
            await asyncio.sleep(0)
            attempt.cancel()
            await counted(broker, lambda c: c["closed"])
            assert (await broker.stats())["connections"] == 0
            assert not len(broker._attached or ())

    run(scene())


def test_an_invalid_publish_is_refused_before_it_is_sent(broker):
    for topic in ("", "a.*", "a\nb", "x" * 257):
        with pytest.raises(UsageError):
            broker.publish(topic, b"x")
    with pytest.raises(UsageError, match="max_message_size_bytes"):
        broker.publish("t", bytes(1024 * 1024 + 1))
    with pytest.raises(UsageError, match="ttl_ms"):
        broker.publish("t", b"x", ttl_ms=-1)
    broker.publish("t", bytes(1024 * 1024))
    until(broker, lambda c: c["published"])


def test_publishing_faster_than_a_blocking_queue_is_refused_and_accepted_messages_arrive(monkeypatch):
    monkeypatch.setattr(publisher, "WAITING_BYTES_MAX", 100_000)
    config = {
        "server": {"bind_addr": "", "max_message_size_bytes": 20_000},
        "queues": {"subscriber_capacity": 4, "overflow_policy": "block"},
    }

    async def scene():
        async with blipmq.Broker(config) as broker, broker.connect() as client:
            messages = await client.subscribe("t", queue_messages_max=1)
            sent = 0
            with pytest.raises(Refused) as refusal:
                while True:
                    broker.publish("t", b"%d" % sent + bytes(10_000))
                    sent += 1
                    if sent % 5 == 0:
                        await broker.stats()
            assert refusal.value.code == 503
            got = [await messages.next(20) for _ in range(sent)]
            assert [int(m.payload.rstrip(b"\0")) for m in got] == list(range(sent))

    run(scene())


# ---- limits, errors, stop ----


def test_a_connection_over_the_limit_gets_an_error(connect):
    with blipmq.Broker(settings(server={"max_connections": 1})) as broker:
        connect(broker).hello()
        refused = connect(broker)
        refused.say(wire.HELLO, protocol=1, seq=3)
        reply = refused.next()
        assert (reply.seq, reply.code) == (3, 429)
        assert refused.next() is None


def test_in_process_connections_count_towards_the_limit():
    async def scene():
        async with blipmq.Broker({"server": {"bind_addr": "", "max_connections": 1}}) as broker:
            async with broker.connect():
                with pytest.raises(Refused, match="max_connections"):
                    await broker.connect()
            broker.publish("t", b"room again")
            await counted(broker, lambda c: c["published"])

    run(scene())


def test_an_internal_error_closes_one_connection_and_is_logged(connect, log_lines, monkeypatch):
    log, lines = log_lines
    monkeypatch.setattr("blipmq.protocols.blip.NativeProtocol.unsubscribe", lambda *_: 1 / 0)
    with blipmq.Broker(LOCAL, log=log) as broker:
        unlucky, other = connect(broker).hello("unlucky"), connect(broker).hello("other")
        unlucky.say(wire.UNSUB, "t", seq=3)
        assert (unlucky.next().code, unlucky.next()) == (500, None)
        other.subscribe("t")
    assert 'error internal_error on=Unsub error="ZeroDivisionError: division by zero"' in lines()


def test_stopping_sends_queued_messages_and_notifies_clients(broker, connect):
    client, legacy = connect(broker).hello("a").subscribe("t"), connect(broker).subscribe("t")
    for number in range(1000):
        broker.publish("t", b"%d" % number)
    assert broker.stop() == 0
    for reader in (client, legacy):
        assert [reader.next().payload for _ in range(1000)] == [b"%d" % n for n in range(1000)]
    assert client.next() == wire.Reply(0, 503, "shutting down", 0, b"")
    assert client.next() is None
    assert legacy.next() is None


def test_stopping_does_not_wait_for_a_client_that_does_not_read(connect):
    with blipmq.Broker(LOCAL) as broker:
        connect(broker).hello("stuck").subscribe("t")
        feeder = connect(broker)
        while broker.stats()["queued_messages"] < 100:
            feeder.send(*[wire.encode_command(wire.PUB, "t", bytes(10_000))] * 100)
        assert broker.stop(timeout_ms=0) >= 100


def test_stopping_twice_is_harmless_and_a_stopped_broker_can_be_started_again():
    async def scene():
        broker = blipmq.Broker(LOCAL)
        await broker.start()
        await asyncio.gather(broker.stop(), broker.stop())
        assert await broker.stop() == 0
        with pytest.raises(UsageError, match="not running"):
            broker.publish("t", b"x")
        await broker.start()
        async with broker.connect() as client:
            await client.ping()
        await broker.stop()

    run(scene())


def test_a_request_during_stop_gets_an_answer_or_an_error_without_hanging():
    async def scene():
        broker = blipmq.Broker(NO_LISTENER)
        await broker.start()
        asked = [broker.stats() if n % 2 else broker.open_transport(asyncio.Protocol()) for n in range(100)]
        asked.insert(50, broker.stop())
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert answers.pop(50) == 0
        assert all(isinstance(answer, (dict, memory_transport.MemoryTransport, BlipMQError)) for answer in answers), (
            answers
        )

    run(scene())


def test_an_address_in_use_is_one_clear_error_and_leaves_nothing_open(broker):
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AddressInUse, match=r"is in use by another process") as caught:
        with blipmq.Broker({"server": {"bind_addr": broker.address}}):
            pass
    assert caught.value.exit_status == 69
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_broker_leaves_no_descriptor_open():
    def cycle():
        with blipmq.Broker(LOCAL) as broker, RawClient(broker.address) as client:
            client.hello("a").subscribe("t")

    cycle()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        cycle()
    assert len(os.listdir("/proc/self/fd")) == before


def test_ipv6_addresses_are_served_or_reported_as_unavailable():
    try:
        listener = open_listener("[::1]:0")
    except ConfigError as error:  # a container without IPv6
        assert "[::1]:0" in str(error)
        return
    with listener:
        assert listener.family == socket.AF_INET6
        assert address_of(listener) == f"[::1]:{listener.getsockname()[1]}"


def test_a_name_with_both_address_families_is_served_on_ipv4():
    with open_listener("localhost:0") as listener:
        assert address_of(listener).startswith("127.0.0.1:")


def test_an_unresolvable_name_is_an_error_with_a_remedy():
    with pytest.raises(ConfigError, match=r"cannot resolve the name 'no-such-host.invalid' .* Set an address"):
        open_listener("no-such-host.invalid:7878")


def test_new_limits_take_effect_while_running(connect):
    async def scene():
        async with blipmq.Broker(LOCAL) as broker:
            broker.apply(from_dict(settings(limits={"max_subscriptions_per_connection": 1})))
            async with broker.connect() as client:
                await client.subscribe("one")
                with pytest.raises(Refused, match=r"max_subscriptions_per_connection \(1\)"):
                    await client.subscribe("two")

    run(scene())


def test_the_embedding_example_runs(capsys):
    runpy.run_path(str(ROOT / "examples" / "embedded.py"), run_name="__main__")
    assert capsys.readouterr().out.splitlines() == [
        "site/cellar/temp: 20.9",
        "site/cellar/temp: 21.5",
        "site/cellar/temp: off",
        "delivered: 3",
    ]


def test_the_smallest_ring_serves_the_largest_message_in_and_out():
    sizes = {"max_message_size_bytes": 1 << 20, "max_connections": 10}
    least = {
        "performance": {"batch_config": {"channel_capacity": KEYS["performance.batch_config.channel_capacity"].low}}
    }

    async def scene():
        async with blipmq.Broker({"server": {"bind_addr": "", **sizes}, **least}) as broker:
            assert memory.ring_bytes(broker.config) == 1 << 16
            async with broker.connect() as client, client.subscribe("t") as messages:
                for fill in (b"a", b"b"):
                    await client.publish("t", fill * (1 << 20))
                    assert (await messages.next(timeout_s=TIMEOUT_S)).payload == fill * (1 << 20)

    run(scene())


@pytest.mark.parametrize("records", [256, 257, 4096])
def test_channel_capacity_limits_queued_requests_between_python_and_the_core(records):
    config = from_dict({"performance": {"batch_config": {"channel_capacity": records}}})
    core = Core(CoreConfig.of(config))
    try:
        taken = 0
        while not core.has_backlog:
            core.subscribe(1, taken, "x" * 150)  # an event record of just under 256 bytes
            taken += 1
    finally:
        core.free()
    assert records <= taken <= 2.5 * records


def test_commands_sent_to_a_full_ring_are_all_answered_later():
    config = {"server": {"bind_addr": "", "max_message_size_bytes": 4096}}

    async def scene():
        async with blipmq.Broker(config) as broker:
            answers = await asyncio.gather(*(broker.stats() for _ in range(30_000)))  # the ring holds half of them
            assert len(answers) == 30_000
            assert not broker._core.has_backlog
            assert len(broker._timers) <= 2

    run(scene())


def test_message_ids_start_at_the_clock_and_fit_a_double():
    assert first_message_id(1_795_507_674.5) == (1_795_507_674_500 - 1_735_689_600_000) << 12
    assert first_message_id(0) == 1  # a clock that was never set
    assert first_message_id(3_880_000_000) < 2**53  # in the year 2092
