"""PUBLISH of MQTT clients with QoS 1, in stepped cores with a WAL: PUBACK after the disk, its reasons, the receive maximum."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mqtt_packets as mqtt
import pytest
from mqtt_stepped import MqttBench, MqttClient, values
from stepped import Overflow
from test_core_log import WAL, WalBench

from blipmq.wire import frames as wire

PUBACK, PUBLISH, DISCONNECT, CONNACK = 0x40, 0x30, 0xE0, 0x20
NO_SUBSCRIBERS = 0x10


class MqttWalBench(MqttBench, WalBench):
    """A core with a WAL and MQTT clients."""


def publish_of(
    client: MqttClient, topic: str, payload: bytes, packet_id: int, first: int = 0x32, **fields: Any
) -> bytes:
    return mqtt.publish(topic, payload, first, packet_id, fields if client.version == 5 else None)


def acks(bench: MqttWalBench, client: MqttClient, count: int) -> list[tuple[int, int]]:
    """Packet identifiers and reason codes."""
    bench.until(lambda: len(client.packets) >= count)
    found = client.take_packets()
    assert all(packet["first"] == PUBACK for packet in found)
    return [(packet["packet_id"], packet["reason"]) for packet in found]


@pytest.mark.parametrize("version", [3, 4, 5])
def test_puback_comes_when_the_message_is_on_disk(version: int, tmp_path: Path) -> None:
    with MqttWalBench(tmp_path, WAL._replace(flush_interval_ms=1000)) as bench:
        reader = bench.named("reader")
        reader.send(wire.SUB, "a", qos=1, durable=True)
        bench.until(lambda: reader.subacks, advance_ms=100)
        client = bench.mqtt(version)
        client.send_bytes(publish_of(client, "a", b"1", 0xFFFF))
        for _ in range(20):
            bench.settle(10)
        assert client.packets == [] and reader.messages == []
        bench.until(lambda: client.packets, advance_ms=100)
        assert acks(bench, client, 1) == [(0xFFFF, 0)]
        assert [(message.payload, message.qos) for message in reader.messages] == [(b"1", 1)]


@pytest.mark.parametrize("version", [4, 5])
def test_a_message_that_nobody_must_get_after_a_crash_is_not_written(version: int, tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        client = bench.mqtt(version)
        written = bench.stats()["log_records"]
        client.send_bytes(publish_of(client, "a", b"1", 1))
        assert acks(bench, client, 1) == [(1, NO_SUBSCRIBERS if version == 5 else 0)]
        reader = bench.attach().subscribe("a")
        client.send_bytes(publish_of(client, "a", b"2", 2))
        assert acks(bench, client, 1) == [(2, 0)]
        assert reader.payloads == [b"2"]
        assert bench.stats()["log_records"] == written


def test_acknowledgements_and_messages_keep_their_order(tmp_path: Path) -> None:
    """Those for the disk, those that need no disk, and those with QoS 0, in one piece."""
    with MqttWalBench(tmp_path) as bench:
        bench.subscribed(reader := bench.named("reader"), "durable", durable=True)
        plain = bench.attach().subscribe("durable", "plain")
        client = bench.mqtt()
        packets, expected = [], []
        for n in range(1, 61):
            topic = "durable" if n % 3 == 0 else "plain" if n % 3 == 1 else "nobody"
            packets.append(publish_of(client, topic, bytes([n]), n))
            expected.append((n, NO_SUBSCRIBERS if topic == "nobody" else 0))
            packets.append(mqtt.publish("plain", bytes([100 + n]), values={}))
        client.send_bytes(b"".join(packets))
        assert acks(bench, client, 60) == expected
        assert reader.payloads == [bytes([n]) for n in range(3, 61, 3)]
        wanted = [n for m in range(1, 61) for n in ((m, 100 + m) if m % 3 < 2 else (100 + m,))]
        bench.until(lambda: len(plain.payloads) >= len(wanted))
        assert [payload[0] for payload in plain.payloads] == wanted


def test_a_publish_that_is_not_allowed_gets_its_reason_in_order(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        bench.subscribed(bench.named("reader"), "#", durable=True)
        bench.core.set_acl(1, len(b"ok").to_bytes(2, "little") + b"ok")
        for version in (5, 4):
            bench.answering = False
            client = bench.dial(version)
            client.connect(client_id="p")
            bench.core.mqtt_admit(client.conn, "p", 1)
            bench.settle()
            client.take_packets()
            bench.answering = True
            client.send_bytes(
                b"".join(publish_of(client, topic, b"", n + 1) for n, topic in enumerate(["ok", "no", "ok"]))
            )
            if version == 5:
                bench.until(lambda: len(client.packets) == 3)  # noqa: B023
                assert values(client.packets[1]) == {"reason_string": b"this key may not publish to this topic"}
                assert acks(bench, client, 3) == [(1, 0), (2, 0x87), (3, 0)]
            else:  # no PUBACK can refuse: the connection ends, so that none is false
                bench.until(lambda: client.closed)  # noqa: B023
                assert acks(bench, client, 1) == [(1, 0)]


def test_nobody_publishes_to_topics_of_the_broker(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        client = bench.mqtt()
        topics = ["$SYS/broker/uptime", "$share/g/a", "$SYS", "$shared/a", "$dlq/a"]
        client.send_bytes(b"".join(publish_of(client, topic, b"", n + 1) for n, topic in enumerate(topics)))
        assert acks(bench, client, 5) == [(1, 0x87), (2, 0x87), *[(n, NO_SUBSCRIBERS) for n in (3, 4, 5)]]
        assert client.say(mqtt.publish("$SYS/a", values={})) == []
        assert bench.stats()["publishes_not_allowed"] == 3


def test_reason_strings_come_only_if_they_were_asked_for(tmp_path: Path) -> None:
    for fields in ({"request_problem": 0}, {"maximum_packet_bytes": 80}):
        with MqttWalBench(tmp_path / next(iter(fields))) as bench:
            bench.core.set_acl(1, len(b"ok").to_bytes(2, "little") + b"ok")
            bench.answering = False
            client = bench.dial()
            client.connect(client_id="p", values=fields)
            bench.core.mqtt_admit(client.conn, "p", 1)
            bench.settle()
            client.take_packets()
            client.send_bytes(publish_of(client, "no", b"", 1))
            bench.until(lambda: client.packets)  # noqa: B023
            refused = "reason_string" not in values(client.packets[0])
            assert refused == ("request_problem" in fields)


def test_more_than_the_receive_maximum_is_an_error(tmp_path: Path) -> None:
    with MqttWalBench(
        tmp_path, WAL._replace(flush_interval_ms=1000, max_bytes=8 << 20, segment_bytes=1 << 20, batch_bytes=256 << 10)
    ) as bench:
        reader = bench.named("reader")
        reader.send(wire.SUB, "a", qos=1, durable=True)
        bench.until(lambda: reader.subacks, advance_ms=100)
        client = bench.dial()
        (connack,) = client.connect()
        most = values(connack)["receive_maximum"]
        for _ in range(2):  # answered ones do not count
            client.send_bytes(b"".join(publish_of(client, "a", b"", n + 1) for n in range(most)))
            bench.until(lambda: len(client.packets) == most, advance_ms=100)
            client.take_packets()
        client.send_bytes(b"".join(publish_of(client, "a", b"", n + 1) for n in range(most + 1)))
        bench.until(lambda: client.closed, advance_ms=100)
        last = client.packets[-1]
        assert (last["first"], last["reason"]) == (DISCONNECT, 0x93)


def test_clients_before_mqtt_5_have_no_receive_maximum(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path, WAL._replace(max_bytes=8 << 20)) as bench:
        bench.subscribed(bench.named("reader"), "a", durable=True)
        client = bench.mqtt(4)
        client.send_bytes(b"".join(publish_of(client, "a", b"", n + 1) for n in range(2000)))
        assert acks(bench, client, 2000) == [(n + 1, 0) for n in range(2000)]


def test_a_full_wal_refuses_with_a_reason_or_closes(tmp_path: Path) -> None:
    for version in (5, 4):
        with MqttWalBench(tmp_path / str(version)) as bench:
            away = bench.named("away")
            bench.subscribed(away, "a", durable=True)
            bench.close(away)
            client = bench.mqtt(version)
            refused = False
            for n in range(3000):
                client.send_bytes(publish_of(client, "a", bytes(1000), n + 1))
                bench.until(lambda: client.packets or client.closed)  # noqa: B023
                found = client.take_packets()
                refused = client.closed is not None if version == 4 else found[0]["reason"] == 0x97
                if refused:
                    break
                assert [(packet["packet_id"], packet["reason"]) for packet in found] == [(n + 1, 0)]
            assert refused
            if version == 4:
                assert client.closed and "the WAL is full" in client.closed.detail


def test_properties_and_expiry_are_kept_in_the_wal(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        reader = bench.named("reader")
        bench.subscribed(reader, "a", durable=True)
        client = bench.mqtt()
        given = {"user": [("k", "v")], "content_type": "t"}
        client.send_bytes(publish_of(client, "a", b"x", 1, message_expiry_s=60, **given))
        assert acks(bench, client, 1) == [(1, 0)]
        (message,) = reader.messages
        assert (message.payload, message.ttl_ms, message.properties) == (b"x", 60_000, mqtt.properties(given)[1:])


def test_a_duplicate_is_a_new_message(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        reader = bench.named("reader")
        bench.subscribed(reader, "a", durable=True)
        client = bench.mqtt(4)
        client.send_bytes(publish_of(client, "a", b"x", 1) + publish_of(client, "a", b"x", 1, first=0x3A))
        assert acks(bench, client, 2) == [(1, 0), (1, 0)]
        assert reader.payloads == [b"x", b"x"]


@pytest.mark.parametrize("version", [4, 5])
def test_after_disconnect_earlier_publishes_are_still_stored_and_answered(version: int, tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        reader = bench.named("reader")
        bench.subscribed(reader, "a", durable=True)
        client = bench.mqtt(version)
        client.send_bytes(publish_of(client, "a", b"x", 1) + mqtt.ending(0xE0))
        bench.until(lambda: client.closed)
        assert acks(bench, client, 1) == [(1, 0)]
        assert reader.payloads == [b"x"]


def test_connack_tells_the_highest_qos(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        (connack,) = bench.dial().connect()
        assert (values(connack)["maximum_qos"], values(connack)["receive_maximum"]) == (1, 256)
        client = bench.mqtt()
        (last,) = client.say(publish_of(client, "a", b"", 1, first=0x34))
        assert (last["first"], last["reason"]) == (DISCONNECT, 0x9B)


def test_under_the_block_policy_a_full_queue_refuses_what_goes_to_the_disk(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path, overflow_policy=int(Overflow.BLOCK), subscriber_messages=1) as bench:
        bench.subscribed(bench.named("reader"), "a", durable=True)
        slow = bench.attach().subscribe("a")
        slow.stall()
        client = bench.mqtt()
        client.send_bytes(mqtt.publish("a", b"fills", values={}) + publish_of(client, "a", b"", 7))
        assert acks(bench, client, 1) == [(7, 0x97)]
