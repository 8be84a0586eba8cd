"""A user's program for mypy --strict: every public method, with the types in its documentation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import blipmq
from blipmq import BlockingSubscription, Message, Subscription
from blipmq.errors import BlipMQError, Disconnected, NotAllowed, Refused, TimedOut, Unreachable, UsageError


def text_of(message: Message) -> str:
    number: int = message.id + message.timestamp_ms + message.ttl_ms + message.qos
    again: bool = message.redelivered
    data: bytes = message.payload
    return f"{message.topic} {message.text} {number} {again} {len(data)}"


def told(state: str, error: BlipMQError | None) -> None:
    print(state, error)


async def with_asyncio() -> int:
    async with blipmq.connect("127.0.0.1:7878", client_id="a", api_key="k", on_state=told) as client:
        async with client.subscribe("site/+/temp", qos=1, durable=True) as readings:
            id_: int = await client.publish("site/1/temp", "21.5", ttl_ms=1000, qos=1)
            count: int = await client.publish_many("site/1/temp", [b"1", "2", bytearray(3)])
            async for message in readings:
                readings.ack(message)
                print(text_of(message))
            batch: list[Message] = await readings.batch()
            first: Message = await readings.next(timeout_s=1.5)
            client.ack(first, *batch)
        taken: Subscription = await client.subscribe("a")
        await taken.close()
        await client.unsubscribe("site/+/temp")
        await client.flush()
        seconds: float = await client.ping()
        info: dict[str, Any] = await client.info()
    other: blipmq.Client = await blipmq.connect(tls="ca.pem", reconnect=False, timeout_s=2, wait=True)
    await other.close()
    return id_ + count + len(info) + int(seconds)


def without_asyncio() -> None:
    with blipmq.connect_blocking("127.0.0.1:7878") as client, client.subscribe("a.*", group="g") as messages:
        reader: BlockingSubscription = messages
        id_: int = client.publish("a.b", b"x", qos=1)
        for message in reader:
            print(text_of(message), id_)
        later: list[Message] = reader.batch(timeout_s=0.5)
        client.ack(*later)
    same: blipmq.BlockingClient = blipmq.connect_blocking(wait=2.5)
    same.close()


async def with_a_broker() -> dict[str, int]:
    settings = {"server": {"bind_addr": "127.0.0.1:0"}}
    async with blipmq.Broker(settings) as broker, broker.connect(client_id="b") as client:
        broker.publish("a", "text", ttl_ms=5)
        await client.publish("a", memoryview(b"x"))
        kept: int = await broker.publish("a", b"x", qos=1)
        reasons: list[str] = await broker.reasons()
        print(broker.address, reasons, kept)
        return await broker.stats()


def with_a_broker_in_a_thread(config: blipmq.Config) -> str:
    with blipmq.Broker(config) as broker:
        same: blipmq.BlockingBroker = broker
        kept: int = same.publish("a", b"x", qos=1)
        with same.connect() as client:
            client.publish("a", str(kept))
        return same.address


def with_errors(publish: Callable[[], object]) -> int:
    try:
        publish()
    except (Unreachable, Disconnected, TimedOut):
        return 1
    except NotAllowed as error:
        return error.code
    except Refused as error:
        return len(error.reason)
    except UsageError as error:
        return error.exit_status
    except blipmq.errors.BlipMQError as error:
        return error.exit_status
    return 0


version: str = blipmq.__version__
