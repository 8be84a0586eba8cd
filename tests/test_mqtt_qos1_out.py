"""QoS 1 to MQTT clients that keep no session: packet identifiers, the receive maximum, PUBACK, folded filters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mqtt_packets as mqtt
import pytest
from mqtt_stepped import MqttClient, values
from stepped import conserved
from test_core_log import WAL
from test_mqtt_qos1 import MqttWalBench, publish_of

PUBACK, SUBACK, UNSUBACK = 0x40, 0x90, 0xB0


def subscribe(bench: MqttWalBench, client: MqttClient, *filters: tuple[str, int], packet_id: int = 9) -> list[int]:
    """The codes of SUBACK."""
    client.send_bytes(mqtt.subscribe(list(filters), packet_id, {} if client.version == 5 else None))
    bench.until(lambda: any(packet["first"] == SUBACK for packet in client.packets))
    (suback,) = (packet for packet in client.packets if packet["first"] == SUBACK)
    client.packets.remove(suback)
    assert suback["packet_id"] == packet_id
    return [int(code) for code in suback["rest"]]


def puback(client: MqttClient, packet_id: int, reason: int = 0) -> bytes:
    return mqtt.ack(PUBACK, packet_id, reason or None, {} if reason else None)


def acknowledge(client: MqttClient, *packets: bytes) -> None:
    client.send_bytes(b"".join(packets))
    client.bench.settle()


def messages(client: MqttClient) -> list[tuple[bytes, int, int]]:
    """Payload, QoS and packet identifier of each message."""
    found = client.take_packets()
    assert all(packet["first"] & 0xF9 == 0x30 for packet in found), found  # neither DUP nor RETAIN
    return [(packet["rest"], packet["first"] >> 1 & 3, packet["packet_id"]) for packet in found]


@pytest.mark.parametrize("version", [3, 4, 5])
def test_qos_1_between_both_protocols_with_packet_ids_from_1(version: int, tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        reader, native = bench.mqtt(version, client_id="r"), bench.attach(hello=True)
        assert subscribe(bench, reader, ("a/+", 1), ("q0", 0), ("two", 2)) == [1, 0, 1]
        bench.published(native, "a/b", 2, b"blip")
        writer = bench.mqtt(version, client_id="w")
        writer.send_bytes(publish_of(writer, "a/c", b"mqtt", 7))
        bench.until(lambda: len(writer.packets) == 1)
        native.publish("a/b", b"light")
        bench.published(native, "q0", 1, b"heavy")
        bench.settle()
        assert messages(reader) == [
            (b"blip", 1, 1), (b"blip", 1, 2), (b"mqtt", 1, 3), (b"light", 0, 0), (b"heavy", 0, 0),
        ]  # fmt: skip
        assert bench.stats()["in_flight"] == 3
        acknowledge(reader, *(puback(reader, id) for id in (2, 3, 1)))
        stats = bench.stats()
        assert (stats["in_flight"], stats["acked"]) == (0, 3) and conserved(stats)


@pytest.mark.parametrize("version", [4, 5])
def test_filters_that_match_together_are_one_delivery_with_the_highest_qos(version: int, tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        reader, native = bench.mqtt(version), bench.attach(hello=True)
        assert subscribe(bench, reader, ("a/#", 0), ("a/+", 1), ("+/b", 1)) == [0, 1, 1]
        bench.published(native, "a/b", 1)
        bench.published(native, "a/b/c", 1)
        assert messages(reader) == [(b"x", 1, 1), (b"x", 0, 0)]
        assert subscribe(bench, reader, ("a/+", 0), ("+/b", 0)) == [0, 0]
        bench.published(native, "a/b", 1)
        assert messages(reader) == [(b"x", 0, 0)]


def test_no_more_than_the_receive_maximum_is_sent_before_puback(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        reader, native = bench.dial(), bench.attach(hello=True)
        reader.connect(values={"receive_maximum": 3})
        subscribe(bench, reader, ("a", 1))
        for n in range(8):
            bench.published(native, "a", 1, b"%d" % n)
        assert messages(reader) == [(b"0", 1, 1), (b"1", 1, 2), (b"2", 1, 3)]
        acknowledge(reader, puback(reader, 2), puback(reader, 2), puback(reader, 77), puback(reader, 0xFFFF))
        bench.until(lambda: reader.packets)
        assert messages(reader) == [(b"3", 1, 4)]
        seen = 4
        while seen < 8:
            acknowledge(reader, puback(reader, seen - 3 if seen == 4 else seen - 1))
            bench.settle()
            seen += len(reader.packets)
            reader.take_packets()
        assert bench.stats()["acked"] == 5


def test_nothing_is_sent_again_and_nothing_becomes_a_dead_letter_while_a_client_is_connected(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path, max_deliveries=1, ack_timeout_ms=100) as bench:
        reader, native = bench.mqtt(), bench.attach(hello=True)
        subscribe(bench, reader, ("a", 1))
        bench.published(native, "a", 1, ttl_ms=500)
        assert [message[2] for message in messages(reader)] == [1]
        for _ in range(50):
            bench.settle(1000)
        assert reader.packets == [] and bench.stats()["dead_lettered"] == 0
        acknowledge(reader, puback(reader, 1))
        assert bench.stats()["acked"] == 1


def test_a_message_that_the_client_refuses_becomes_a_dead_letter(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        reader, native, letters = bench.mqtt(), bench.attach(hello=True), bench.named("letters")
        bench.subscribed(letters, "$dlq/#", durable=True)
        subscribe(bench, reader, ("a", 1))
        bench.published(native, "a", 1, b"bad")
        acknowledge(reader, puback(reader, 1, 0x80))
        bench.until(lambda: letters.messages)
        assert [(message.topic, message.payload) for message in letters.messages] == [("$dlq/a", b"bad")]


def test_a_message_larger_than_the_client_takes_is_dropped_for_it(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        reader, native, other = bench.dial(), bench.attach(hello=True), bench.mqtt(4, client_id="other")
        reader.connect(values={"maximum_packet_bytes": 100})
        for client in (reader, other):
            subscribe(bench, client, ("a", 1))
        for size in (10, 200, 20):
            bench.published(native, "a", 1, bytes(size))
        assert [len(message[0]) for message in messages(reader)] == [10, 20]
        assert [len(message[0]) for message in messages(other)] == [10, 200, 20]
        assert bench.stats()["dropped_queue_full"] == 1 and conserved(bench.stats())


@pytest.mark.parametrize("ttl_s", [0, 30])
def test_the_expiry_that_is_left_and_the_properties_reach_mqtt_5(ttl_s: int, tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        reader, writer = bench.dial(), bench.mqtt(client_id="w")
        reader.connect(values={"receive_maximum": 1})
        subscribe(bench, reader, ("a", 1))
        sent: dict[str, Any] = {"content_type": b"text", **({"message_expiry_s": ttl_s} if ttl_s else {})}
        for n in (1, 2):
            writer.send_bytes(publish_of(writer, "a", b"x", n, **sent))
        bench.until(lambda: len(writer.packets) == 2)
        (first,) = reader.take_packets()
        bench.settle(10_000)
        acknowledge(reader, puback(reader, 1))
        bench.settle()
        (second,) = reader.take_packets()
        assert values(first) == sent
        assert values(second) == {**sent, **({"message_expiry_s": 20} if ttl_s else {})}


def test_unsubscribe_and_the_end_of_the_connection_leave_nothing(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        before = bench.stats()
        reader, native = bench.mqtt(), bench.attach(hello=True)
        subscribe(bench, reader, ("a", 1), ("b", 1), ("c", 0))
        bench.published(native, "b", 3)
        reader.take_packets()
        (unsuback,) = reader.say(mqtt.unsubscribe(["a", "b", "x"], 3, {}))
        assert (unsuback["first"], unsuback["rest"]) == (UNSUBACK, bytes([0, 0, 0x11]))
        bench.published(native, "a", 1)
        assert reader.packets == []
        subscribe(bench, reader, ("a", 1))
        bench.published(native, "a", 3)
        assert [message[2] for message in messages(reader)] in ([1, 2, 3], [4, 5, 6])
        bench.close(reader)
        bench.close(native)
        after = bench.stats()
        for name in ("sessions", "subscriptions", "filters", "in_flight"):
            assert after[name] == before[name]
        assert conserved(after)


def test_a_subscribe_with_many_filters_in_pieces_is_answered_once(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        reader, native = bench.mqtt(), bench.attach(hello=True)
        filters = [(f"place/{n}/" + "x" * 60, n % 2) for n in range(300)]
        assert subscribe(bench, reader, *filters) == [n % 2 for n in range(300)]
        for n in (0, 1, 298, 299):
            bench.published(native, filters[n][0], 1)
        assert [qos for _, qos, _ in messages(reader)] == [0, 1, 0, 1]


def test_filters_over_the_limit_of_sessions_are_refused_each(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path, max_sessions=1) as bench:
        bench.subscribed(bench.named("native"), "n", durable=True)
        reader = bench.mqtt()
        assert subscribe(bench, reader, ("a", 1), ("b", 0), ("c", 1)) == [0x97, 0, 0x97]
        assert sorted(event.filter for event in bench.unsubscribed) == ["a", "c"]
        assert bench.stats()["subscriptions"] == 2


def test_65535_packet_ids_can_be_in_use_and_begin_again_at_1(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path, WAL._replace(max_bytes=64 << 20), max_in_flight=70_000) as bench:
        reader, native = bench.mqtt(4), bench.attach(hello=True)
        subscribe(bench, reader, ("a", 1))
        for _ in range(66):
            bench.published(native, "a", 1000)
            bench.settle()
        ids = [message[2] for message in messages(reader)]
        assert ids == list(range(1, 65_536))
        acknowledge(reader, puback(reader, 500), puback(reader, 7))
        bench.settle()
        assert [message[2] for message in messages(reader)] == [7, 500]


def test_a_message_that_expires_before_it_was_sent_uses_no_packet_id(tmp_path: Path) -> None:
    with MqttWalBench(tmp_path) as bench:
        reader, native = bench.mqtt(), bench.attach(hello=True)
        subscribe(bench, reader, ("a", 1))
        reader.stall()
        bench.published(native, "a", 3, ttl_ms=200)
        bench.settle(1000)
        bench.published(native, "a", 1, b"later")
        reader.read()
        bench.settle()
        reader.packets = [packet for packet in reader.packets if packet["topic"] == b"a"]
        assert messages(reader) == [(b"later", 1, 1)]
        assert bench.stats()["dropped_ttl"] == 3 and conserved(bench.stats())
