"""QoS 1 publishes of an embedded broker, and `with Broker()` in every kind of program."""

import asyncio
import signal
import threading

import pytest
from broker_process import until

import blipmq
from blipmq.broker import publisher
from blipmq.errors import Disconnected, Refused, UsageError


def settings(tmp_path, **sections):
    log = {"directory": str(tmp_path / "wal"), "segment_size_bytes": 8 << 20}
    return {"server": {"bind_addr": "127.0.0.1:0"}, "wal": log, **sections}


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


async def kept(tmp_path):
    """The messages that a durable subscriber gets after a restart."""
    async with blipmq.Broker(settings(tmp_path)) as broker, broker.connect(client_id="me") as client:
        messages = await client.subscribe("t", qos=1, durable=True)
        got = []
        try:
            while True:
                got.append(await messages.next(1))
        except blipmq.errors.TimedOut:
            return got


async def subscribed(broker):
    async with broker.connect(client_id="me") as client:
        await client.subscribe("t", qos=1, durable=True)


# ---- QoS 1 -------------------------------------------------------------------------------------------------------------


def test_an_awaited_publish_is_on_disk(tmp_path):
    async def scene():
        async with blipmq.Broker(settings(tmp_path)) as broker:
            await subscribed(broker)
            return [await broker.publish("t", payload, qos=1) for payload in ("one", b"two", bytearray(b"three"))]

    ids = run(scene())
    got = run(kept(tmp_path))
    assert [(message.id, message.text) for message in got] == list(zip(ids, ["one", "two", "three"], strict=True))


def test_unawaited_publishes_are_sent_in_order_before_the_broker_stops(tmp_path):
    async def scene():
        async with blipmq.Broker(settings(tmp_path)) as broker:
            await subscribed(broker)
            for number in range(500):
                broker.publish("t", str(number), qos=1)

    run(scene())
    assert [message.text for message in run(kept(tmp_path))] == [str(number) for number in range(500)]


def test_the_blocking_form_returns_the_id_once_the_message_is_on_disk(tmp_path):
    with blipmq.Broker(settings(tmp_path)) as broker:
        with broker.connect(client_id="me") as client:
            client.subscribe("t", qos=1, durable=True)
        id_ = broker.publish("t", "kept", qos=1)
        assert broker.publish("t", "not kept") == 0
    assert [(message.id, message.text) for message in run(kept(tmp_path))] == [(id_, "kept")]


def test_a_qos_0_publish_may_be_awaited_too(tmp_path):
    async def scene():
        async with blipmq.Broker({"server": {"bind_addr": ""}}) as broker, broker.connect() as client:
            messages = await client.subscribe("t")
            assert await broker.publish("t", "x") == 0
            assert (await messages.next(20)).text == "x"

    run(scene())


def test_without_a_wal_qos_1_is_refused_with_a_remedy():
    async def scene():
        async with blipmq.Broker({"server": {"bind_addr": ""}}) as broker:
            with pytest.raises(UsageError, match=r"wal\.directory"):
                broker.publish("t", "x", qos=1)

    run(scene())
    with blipmq.Broker({"server": {"bind_addr": ""}}) as broker, pytest.raises(UsageError, match=r"wal\.directory"):
        broker.publish("t", "x", qos=1)


def test_a_full_wal_raises_in_an_awaited_publish(tmp_path):
    small = {"segment_size_bytes": 1 << 19, "max_bytes": 1 << 21, "directory": str(tmp_path / "wal")}

    async def scene():
        config = {"server": {"bind_addr": "", "max_message_size_bytes": 65_536}, "wal": small}
        async with blipmq.Broker(config) as broker:
            await subscribed(broker)
            with pytest.raises(Refused, match="503"):
                for _ in range(100):
                    await broker.publish("t", bytes(60_000), qos=1)
            with pytest.raises(UsageError, match="max_message_size_bytes"):
                broker.publish("t", bytes(70_000), qos=1)

    run(scene())


def test_publishes_pending_on_disk_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(publisher, "WAITING_BYTES_MAX", 100_000)

    async def scene():
        async with blipmq.Broker(settings(tmp_path)) as broker:
            waiting = []
            with pytest.raises(Refused, match="than the disk takes them"):
                while len(waiting) < 1000:
                    waiting += [broker.publish("t", bytes(1000), qos=1)]
            assert 0 < len(waiting) <= 33
            assert len(set(await asyncio.gather(*waiting))) == len(waiting)
            await broker.publish("t", "there is room again", qos=1)

    run(scene())


def test_a_pending_publish_raises_when_the_broker_stops(tmp_path):
    async def scene():
        broker = blipmq.Broker(settings(tmp_path))
        await broker.start()
        waiting = [broker.publish("t", str(number), qos=1) for number in range(100)]
        await broker.stop(0)
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert all(isinstance(result, (int, Disconnected, Refused)) for result in results)

    run(scene())


# ---- `with Broker()` -----------------------------------------------------------------------------------------------------


def test_a_blocking_broker_serves_a_program_whose_event_loop_runs(tmp_path):
    async def scene():
        with blipmq.Broker(settings(tmp_path)) as broker:
            with broker.connect() as client, client.subscribe("t") as messages:
                broker.publish("t", "x")
                assert messages.next(20).text == "x"
            async with blipmq.connect(broker.address) as client:
                assert await client.ping() >= 0
        with pytest.raises(UsageError, match="not running"):
            broker.publish("t", "x")

    run(scene())


def test_a_blocking_broker_that_cannot_start_leaves_no_thread_behind(tmp_path):
    async def scene():
        with blipmq.Broker(settings(tmp_path)), pytest.raises(blipmq.errors.LogLocked):
            with blipmq.Broker(settings(tmp_path)):
                pass

    before = threading.active_count()
    run(scene())
    until(lambda: threading.active_count() == before, "no thread of it is left")


def test_an_interrupt_during_start_stops_all_started_parts(tmp_path, monkeypatch):
    broker = blipmq.Broker(settings(tmp_path))
    started = blipmq.Broker.start

    async def start(self, listener=None):
        await started(self, listener)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)  # during this wait
        await asyncio.sleep(60)

    monkeypatch.setattr(blipmq.Broker, "start", start)
    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        broker.__enter__()
    until(lambda: threading.active_count() == before, "no thread of it is left")
    monkeypatch.undo()
    with blipmq.Broker(settings(tmp_path)) as again:  # the WAL is unlocked
        assert again.address
