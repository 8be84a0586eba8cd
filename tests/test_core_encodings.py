"""One message for subscribers with different encodings: BlipMQ's own, MQTT 5 and MQTT 3.1.1, in one stepped core.

Invariant: packets of MQTT are read by `mqtt_packets`, frames by `blipmq.wire.frames`. What one subscriber must get is known
from the publishes, never from another subscriber.
"""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from mqtt_stepped import MqttBench, MqttClient, values
from stepped import WINDOW_BYTES, Client, Overflow, conserved
from test_core_log import WalBench

from blipmq.native.pure import filter_matches
from blipmq.wire import frames as wire

VERSIONS = [0, 5, 4, 3]
"""0: BlipMQ's own protocol."""
BUFFER_BYTES = 4096
GREAT = 10_000_000
GREAT_BYTES = 40_000


class Got(NamedTuple):
    topic: str
    payload: bytes
    ttl_s: int | None
    """None: its encoding has no time to live, or there is none."""


class MixedBench(MqttBench):
    def client(self, version: int) -> Client:
        if not version:
            return self.attach(hello=True)
        return self.mqtt(version, name=b"MQIsdp" if version == 3 else b"MQTT")

    def subscribe(self, client: Client, *filters: str, **fields: Any) -> None:
        for filter in filters:
            self.core.subscribe(client.conn, 0, filter, **fields)
        self.settle()
        client.subacks.clear()

    def everyone(self, *filters: str, **fields: Any) -> list[Client]:
        """A subscriber of each version."""
        clients = [self.client(version) for version in VERSIONS]
        for client in clients:
            self.subscribe(client, *filters, **fields)
        return clients


class MixedWalBench(MixedBench, WalBench):
    pass


def got(client: Client) -> list[Got]:
    """What it got since the last call."""
    if not isinstance(client, MqttClient):
        found = [Got(m.topic, m.payload, -(-m.ttl_ms // 1000) or None) for m in client.messages]
        client.messages.clear()
        return found
    packets = client.take_packets()
    assert all(packet["first"] == 0x30 for packet in packets)
    return [Got(p["topic"].decode(), p["rest"], values(p).get("message_expiry_s")) for p in packets]


def expected(client: Client, sent: list[Got]) -> list[Got]:
    without = isinstance(client, MqttClient) and client.version < 5
    return [item._replace(ttl_s=None) for item in sent] if without else sent


def payload(number: int, size: int) -> bytes:
    return number.to_bytes(4, "big") + bytes([0xD5]) * size


def numbers(found: list[Got]) -> list[int]:
    return [int.from_bytes(item.payload[:4], "big") for item in found]


@pytest.mark.parametrize("filters", [["a.b"], ["a.*"], ["a.b", ">"]])
def test_every_subscriber_gets_every_message_in_its_encoding(filters: list[str]) -> None:
    sizes = [0, 1, 100, 107, 113, 114, 115, 122, 123, 500, 3000, 4000, 16370, 16380, 20_000, 200_000]
    with MixedBench(buffer_bytes=BUFFER_BYTES, run_messages=7) as bench:
        clients, publisher = bench.everyone(*filters), bench.attach()
        sent = []
        for number, size in enumerate(sizes * 3):
            ttl_ms = [0, 0, 0, 1500, 60_000][number % 5]
            sent.append(Got("a.b", payload(number, size), -(-ttl_ms // 1000) or None))
            publisher.publish("a.b", sent[-1].payload, ttl_ms)
        bench.settle()
        for client in clients:
            assert got(client) == expected(client, sent)
        stats = bench.stats()
        assert stats["delivered"] == len(sent) * len(clients) and conserved(stats)


def test_equal_publishes_in_one_write_are_encoded_for_all() -> None:
    """The fast path of BlipMQ's protocol writes the run."""
    with MixedBench(buffer_bytes=BUFFER_BYTES) as bench:
        clients, publisher = bench.everyone("t"), bench.attach()
        sent = [Got("t", payload(number, 60 + number % 3), None) for number in range(500)]
        publisher.send_bytes(b"".join(wire.encode_command(wire.PUB, "t", item.payload) for item in sent))
        bench.settle()
        for client in clients:
            assert got(client) == sent


@pytest.mark.parametrize("version", [5, 4, 3])
def test_a_topic_without_blipmq_subscribers_is_published_to_by_them(version: int) -> None:
    with MixedBench() as bench:
        client, publisher = bench.client(version), bench.attach()
        bench.subscribe(client, "t")
        sent = [Got("t", payload(number, number), None) for number in range(300)]
        publisher.send_bytes(b"".join(wire.encode_command(wire.PUB, "t", item.payload) for item in sent))
        bench.settle()
        assert got(client) == sent


@pytest.mark.parametrize("seed", range(6))
def test_subscriptions_of_all_encodings_come_and_go_while_messages_flow(seed: int) -> None:
    choose = random.Random(seed)
    topics = ["a", "a.b", "a/b", "b", "b.c", "x.y"]
    filters = ["a", "a.b", "a.*", "a/+", "#", ">", "b", "b.>"]
    with MixedBench(buffer_bytes=BUFFER_BYTES, route_cache_entries=2, run_messages=choose.choice([0, 3])) as bench:
        clients = [bench.client(version) for version in VERSIONS * 2]
        held: dict[int, set[str]] = {client.conn: set() for client in clients}
        publishers = [bench.attach(), bench.attach()]
        number = 0
        for _ in range(200):
            client, filter = choose.choice(clients), choose.choice(filters)
            if choose.random() < 0.3 and filter in held[client.conn]:
                bench.core.unsubscribe(client.conn, 0, filter)
                held[client.conn].discard(filter)
            elif choose.random() < 0.5:
                bench.core.subscribe(client.conn, 0, filter)
                held[client.conn].add(filter)
            bench.settle()
            sent = []
            publisher = choose.choice(publishers)
            for _ in range(choose.randrange(6)):
                number += 1
                ttl_ms = choose.choice([0, 0, 5000])
                sent.append(Got(choose.choice(topics[:2] * 4 + topics), payload(number, choose.randrange(200)), None))
                sent[-1] = sent[-1]._replace(ttl_s=ttl_ms // 1000 or None)
                publisher.publish(sent[-1].topic, sent[-1].payload, ttl_ms)
            bench.settle()
            for client in clients:
                mine = [
                    item
                    for item in sent
                    if any(filter_matches(f.encode(), item.topic.encode()) for f in held[client.conn])
                ]
                assert got(client) == expected(client, mine)
        assert conserved(bench.stats())


def stuck(bench: MixedBench, clients: list[Client]) -> None:
    """All of them stop reading, in the middle of a message. It is the only one in their queues."""
    publisher = bench.attach()
    for client in clients:
        client.reading = False
    for number in range(WINDOW_BYTES // GREAT_BYTES + 1):
        publisher.publish("t", payload(GREAT + number, GREAT_BYTES))
        bench.settle()
    for row in bench.subscribers().values():
        assert row.queued_messages == 1 and 0 < row.queued_bytes < GREAT_BYTES


def fresh(client: Client) -> list[Got]:
    """Without the messages of `stuck`."""
    return [item for item in got(client) if int.from_bytes(item.payload[:4], "big") < GREAT]


@pytest.mark.parametrize("policy", [Overflow.DROP_OLDEST, Overflow.DROP_NEW])
@pytest.mark.parametrize("run", [1, 64])
def test_a_full_queue_keeps_the_same_messages_in_every_encoding(policy: Overflow, run: int) -> None:
    room = 20
    with MixedBench(
        overflow_policy=policy,
        subscriber_messages=room,
        subscriber_bytes=GREAT,
        run_messages=run,
        buffer_bytes=BUFFER_BYTES,
    ) as bench:
        clients = bench.everyone("t")
        stuck(bench, clients)
        publisher = bench.attach()
        commands = (wire.encode_command(wire.PUB, "t", payload(number, 20 + number % 7)) for number in range(50))
        publisher.send_bytes(b"".join(commands))
        bench.settle()
        after = bench.subscribers()
        for client in clients:
            assert after[client.conn].queued_messages == room
            assert after[client.conn].dropped_queue_full == 50 + 1 - room
            client.read()
        bench.settle()
        for client in clients:
            found = numbers(fresh(client))
            assert found == list(range(50))[-(room - 1) :] if policy == Overflow.DROP_OLDEST else list(range(room - 1))
        assert conserved(bench.stats())


def test_a_limit_of_bytes_holds_for_every_encoding() -> None:
    limit, count = 60_000, 2000
    with MixedBench(subscriber_bytes=limit, subscriber_messages=GREAT, buffer_bytes=BUFFER_BYTES) as bench:
        clients = bench.everyone("t")
        stuck(bench, clients)
        publisher = bench.attach()
        commands = (wire.encode_command(wire.PUB, "t", payload(number, 20 + number % 7)) for number in range(count))
        publisher.send_bytes(b"".join(commands))
        bench.settle()
        queued = [bench.subscribers()[client.conn].queued_bytes for client in clients]
        assert all(limit - 4000 < size <= limit for size in queued)
        for client in clients:
            client.read()
        bench.settle()
        kept = []
        for client in clients:
            found = numbers(fresh(client))
            kept.append(len(found))
            assert found == list(range(count - len(found), count))
        assert kept[0] * 2 < kept[1] <= kept[2] == kept[3]
        assert conserved(bench.stats())


def test_a_blocked_publisher_loses_nothing_in_any_encoding() -> None:
    with MixedBench(
        overflow_policy=Overflow.BLOCK, subscriber_messages=30, subscriber_bytes=5000, buffer_bytes=BUFFER_BYTES
    ) as bench:
        clients = bench.everyone("t")
        for client in clients:
            client.reading = False
        publisher = bench.attach()
        sent = [Got("t", payload(number, 900 + number % 7), None) for number in range(600)]
        for item in sent:
            publisher.publish("t", item.payload)
        bench.settle()
        assert bench.stats()["blocked_publishers"] == 1
        for _ in range(200):
            for client in clients:
                client.take(min(client.untaken, 7777))
            bench.settle()
        for client in clients:
            client.read()
        bench.settle()
        for client in clients:
            assert got(client) == sent
        stats = bench.stats()
        assert stats["dropped_queue_full"] == 0 and conserved(stats)


@pytest.mark.parametrize(("lazy", "ttls_ms"), [(False, [0, 400, 90_000]), (True, [400])])
def test_messages_expire_alike_in_every_encoding(lazy: bool, ttls_ms: list[int]) -> None:
    with MixedBench(lazy_expiry=lazy, buffer_bytes=BUFFER_BYTES, subscriber_bytes=GREAT) as bench:
        clients = bench.everyone("t")
        stuck(bench, clients)
        publisher = bench.attach()
        for number in range(40):
            publisher.publish("t", payload(number, number), ttls_ms[number % len(ttls_ms)])
        bench.settle()
        bench.settle(1000)
        for client in clients:
            client.read()
        bench.settle()
        for client in clients:
            left = [number for number in range(40) if ttls_ms[number % len(ttls_ms)] != 400]
            assert numbers(fresh(client)) == left
        stats = bench.stats()
        assert stats["dropped_ttl"] == (40 - len(left)) * len(clients) and conserved(stats)


def test_the_members_of_a_group_may_have_any_encoding() -> None:
    with MixedBench(buffer_bytes=BUFFER_BYTES) as bench:
        members = bench.everyone("jobs", group="workers")
        outside = bench.client(5)
        bench.subscribe(outside, "jobs")
        publisher = bench.attach()
        for number in range(40):
            publisher.publish("jobs", payload(number, 50))
        bench.settle()
        found = [numbers(got(member)) for member in members]
        assert all(len(part) == 10 for part in found)
        assert sorted(chain(*found)) == list(range(40))
        assert numbers(got(outside)) == list(range(40))


def test_a_qos_1_publish_reaches_qos_0_subscribers_of_every_encoding(tmp_path: Path) -> None:
    with MixedWalBench(tmp_path, buffer_bytes=BUFFER_BYTES, session_expiry_ms=0) as bench:
        clients, members = bench.everyone("t"), bench.everyone("t", group="workers")
        durable, publisher = bench.named("durable"), bench.attach(hello=True)
        bench.core.subscribe(durable.conn, 1, "t", qos=1, durable=True, client_id="durable")
        bench.settle()
        sent = []
        for number in range(60):
            ttl_ms = [0, 30_000][number % 2]
            sent.append(Got("t", payload(number, number * 30), ttl_ms // 1000 or None))
            publisher.send(wire.PUB, "t", sent[-1].payload, qos=number % 3 > 0, seq=number + 1, ttl_ms=ttl_ms)
        bench.until(lambda: len(publisher.replies) == 40)
        assert {reply.message for reply in publisher.replies} == {""}
        bench.settle()
        for client in clients:
            found = got(client)
            assert numbers(found) == list(range(60))
            assert found == expected(client, sent)
        assert sorted(chain(*(numbers(got(member)) for member in members))) == list(range(60))
        assert [message.qos for message in durable.messages] == [number % 3 > 0 for number in range(60)]


def test_the_properties_of_a_dead_letter_reach_mqtt_5(tmp_path: Path) -> None:
    with MixedWalBench(tmp_path, ack_timeout_ms=100, max_deliveries=2) as bench:
        clients = bench.everyone("$dlq/#")
        worker, publisher = bench.named("worker"), bench.attach(hello=True)
        worker.send(wire.SUB, "jobs", qos=1, seq=2)
        bench.until(lambda: worker.subacks)
        publisher.send(wire.PUB, "jobs", b"poison", qos=1, seq=3)
        bench.until(lambda: clients[0].messages, 50)
        about = clients[0].messages[0].headers
        assert about["reason"] == "max_deliveries"
        for client in clients[1:]:
            assert isinstance(client, MqttClient)
            (letter,) = client.take_packets()
            assert (letter["first"], letter["topic"], letter["rest"]) == (0x30, b"$dlq/jobs", b"poison")
            user = {name.decode(): value.decode() for _, (name, value) in letter["properties"]}
            assert user == (about if client.version == 5 else {})
