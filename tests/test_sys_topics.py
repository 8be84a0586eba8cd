"""The topics `$SYS/broker/…`: when they are published, and that clients of both protocols get them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from stepped import Bench, conserved

import blipmq
from blipmq.broker.sys_topics import COUNTERS, PREFIX, SysTopics
from blipmq.native.events import STATS_FIELDS
from blipmq.version import __version__

NOTHING = dict.fromkeys(STATS_FIELDS, 0)


class Scene:
    def __init__(self, interval_s: int) -> None:
        self.seconds = 100.0
        self.found: list[tuple[str, str]] = []
        self.topics = SysTopics(self._publish, lambda: self.seconds, interval_s)

    def _publish(self, topic: str, payload: bytes) -> None:
        self.found.append((topic, payload.decode()))

    def rounds(self, seconds: int) -> int:
        """So many samples, one a second; returns how often the state was published."""
        self.found.clear()
        for _ in range(seconds):
            self.seconds += 1
            self.topics.observe({**NOTHING, "published": 7, "connections": 3})
        return [topic for topic, _ in self.found].count(PREFIX + "version")


def test_the_state_is_published_at_the_first_sample_and_at_each_interval() -> None:
    scene = Scene(10)
    assert scene.rounds(1) == 1 and scene.rounds(9) == 0 and scene.rounds(1) == 1 and scene.rounds(100) == 10
    state = dict(scene.found)
    assert state[PREFIX + "publish/messages/received"] == "7" and state[PREFIX + "clients/connected"] == "3"
    assert state[PREFIX + "version"] == f"BlipMQ {__version__}" and state[PREFIX + "uptime"] == "111 seconds"
    assert len(state) == len(COUNTERS) + 2


def test_a_changed_interval_holds_at_once_and_0_ends_the_messages() -> None:
    scene = Scene(0)
    assert scene.rounds(50) == 0
    scene.topics.interval_s = 1
    assert scene.rounds(5) == 5
    scene.topics.interval_s = 0
    assert scene.rounds(50) == 0


@pytest.mark.parametrize("policy", [0, 1, 2])
def test_a_message_of_the_broker_reaches_its_subscribers_and_never_waits(policy: int) -> None:
    with Bench(overflow_policy=policy, subscriber_messages=2) as bench:
        stuck, reader = bench.attach().subscribe("$SYS/#"), bench.attach().subscribe("$SYS/#")
        other = bench.attach().subscribe("#")
        stuck.stall()
        for number in range(50):
            bench.core.publish("$SYS/broker/n", str(number).encode())
            bench.settle()
        bench.core.publish("not/+/a topic", b"dropped")
        bench.settle()
        assert reader.messages and reader.messages[0].payload == b"0" and not other.messages
        stats = bench.stats()
        assert stats["blocked_publishers"] == 0 and conserved(stats)
        # Under block (2) a message is dropped for all as long as one queue is full.
        assert len(reader.messages) == (2 if policy == 2 else 50)


def test_a_broker_with_an_mqtt_listener_publishes_its_state() -> None:
    async def run(settings: dict[str, Any]) -> list[str]:
        async with blipmq.Broker({"server": {"bind_addr": ""}, **settings}) as broker, broker.connect() as client:
            async with client.subscribe("$SYS/#") as messages:
                await client.publish("$SYS/end", b"")
                found = []
                while True:
                    message = await messages.next(timeout_s=30)
                    if message.topic == "$SYS/end" and (found or not settings):
                        return found
                    if message.topic != "$SYS/end":
                        found.append(message.topic)
                    await client.publish("$SYS/end", b"")

    found = asyncio.run(run({"mqtt": {"bind_addr": "127.0.0.1:0", "sys_interval_s": 1}}))
    assert set(found) <= {PREFIX + topic for topic in (*COUNTERS, "version", "uptime")}
    assert asyncio.run(run({})) == []
