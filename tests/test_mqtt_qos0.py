"""SUBSCRIBE, UNSUBSCRIBE and PUBLISH with QoS 0, between MQTT clients and clients of BlipMQ's own protocol, in stepped cores."""

from __future__ import annotations

from typing import Any

import mqtt_packets as mqtt
import pytest
from mqtt_stepped import MqttBench, MqttClient, values
from stepped import Overflow, conserved

from blipmq.native.events import CloseReason, MqttSubscribe
from blipmq.wire import frames as wire

SUBACK, UNSUBACK, PUBLISH, DISCONNECT, PINGRESP = 0x90, 0xB0, 0x30, 0xE0, 0xD0
PINGREQ = bytes([0xC0, 0])
TICK_MS = 10


def none(version: int) -> dict[str, Any] | None:
    """The properties of a packet without any."""
    return {} if version == 5 else None


def subscribed(client: MqttClient, *filters: str, options: int = 0) -> MqttClient:
    (suback,) = client.say(mqtt.subscribe([(name, options) for name in filters], 7, none(client.version)))
    assert (suback["first"], suback["packet_id"], suback["rest"]) == (SUBACK, 7, bytes(len(filters)))
    return client


def publish_of(version: int, topic: str, payload: bytes, **fields: Any) -> bytes:
    return mqtt.publish(topic, payload, values=fields if version == 5 else None)


def messages(client: MqttClient) -> list[tuple[str, bytes]]:
    found = client.take_packets()
    assert all(packet["first"] == PUBLISH for packet in found)
    return [(packet["topic"].decode(), packet["rest"]) for packet in found]


# ---- SUBSCRIBE -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 4, 5])
def test_python_gets_the_filters_with_their_options(version: int) -> None:
    with MqttBench() as bench:
        client = bench.mqtt(version)
        bench.answering = False
        options = 0x29 if version == 5 else 1
        client.say(mqtt.subscribe([("a/+", options), ("é", 2)], 0xFFFF, none(version)), PINGREQ)
        assert bench.asked == [MqttSubscribe(client.conn, 0xFFFF, 0, (("a/+", options), ("é", 2)))]
        bench.core.mqtt_subscribe(client.conn, 0xFFFF, [("a/+", options, 1), ("é", 2, 0x87)])
        bench.settle()
        suback, ping = client.packets
        assert (suback["packet_id"], suback["rest"]) == (0xFFFF, b"\0\x87" if version == 5 else b"\0\x80")
        assert ping["first"] == PINGRESP
        assert bench.unsubscribed == []
        assert bench.stats()["subscriptions"] == 1


def test_a_large_subscribe_goes_to_python_in_pieces_and_gets_one_answer() -> None:
    filters = [(f"{n}/" + "x" * (n % 250), 0) for n in range(200)]
    with MqttBench() as bench:
        client = bench.mqtt()
        bench.answering = False
        packet = mqtt.subscribe(filters, 9, {})
        client.say(packet + PINGREQ)
        asked: list[tuple[str, int]] = []
        while bench.asked:
            event = bench.asked.pop()
            assert isinstance(event, MqttSubscribe) and 0 < len(event.filters) <= 64
            asked += event.filters
            granted = [(*each, 0 if int(each[0].split("/")[0]) % 3 else 0x87) for each in event.filters]
            bench.core.mqtt_subscribe(event.conn, event.packet_id, granted)
            bench.settle()
        assert asked == filters
        suback, ping = client.packets
        assert suback["rest"] == bytes(0 if n % 3 else 0x87 for n in range(200))
        assert ping["first"] == PINGRESP
        assert bench.stats()["subscriptions"] == sum(n % 3 != 0 for n in range(200))


def test_subscribe_may_be_cut_at_every_byte() -> None:
    packet = mqtt.subscribe([("a", 0), ("b/#", 0)], 3, {})
    for cut in range(1, len(packet)):
        with MqttBench() as bench:
            client = bench.mqtt()
            assert client.say(packet[:cut]) == []
            (suback,) = client.say(packet[cut:])
            assert suback["rest"] == b"\0\0"


REFUSED = {
    "shared": ("$share/g/a", 0, 0x9E),
    "no local": ("a", 4, 0x83),
    "too many levels": ("/".join("x" * 70), 0, 0x8F),
}


@pytest.mark.parametrize("name", REFUSED)
def test_filters_that_the_core_refuses_get_a_reason_and_python_is_told(name: str) -> None:
    filter_, options, reason = REFUSED[name]
    with MqttBench() as bench:
        client = bench.mqtt()
        (suback,) = client.say(mqtt.subscribe([("ok", 0), (filter_, options), ("fine", 0)], 1, {}))
        assert suback["rest"] == bytes([0, reason, 0])
        assert [(event.filter, event.refused) for event in bench.unsubscribed] == [(filter_, True)]
        assert bench.stats()["subscriptions"] == 2


def test_subscriptions_stop_at_their_part_of_the_memory() -> None:
    with MqttBench(memory_bytes=1 << 20) as bench:
        client = bench.mqtt()
        codes = b""
        for n in range(80):
            (suback,) = client.say(mqtt.subscribe([(f"{n}/{m}/" + "x" * 240, 0) for m in range(10)], 1, {}))
            codes += suback["rest"]
        assert set(codes) == {0, 0x97}
        assert codes == codes.replace(b"\x97\0", b"")  # from the first refusal on, all are refused
        assert bench.stats()["subscriptions"] == codes.count(0)


WRONG: dict[str, tuple[bytes, int]] = {
    "no filter": (mqtt.subscribe([], 1, {}), 0x82),
    "packet identifier 0": (mqtt.subscribe([("a", 0)], 0, {}), 0x81),
    "QoS 3": (mqtt.subscribe([("a", 3)], 1, {}), 0x82),
    "a wildcard inside a level": (mqtt.subscribe([("a+", 0)], 1, {}), 0x81),
    "a subscription identifier": (mqtt.subscribe([("a", 0)], 1, {"subscription_id": 1}), 0xA1),
    "UNSUBSCRIBE without filters": (mqtt.unsubscribe([], 1, {}), 0x82),
    "PUBLISH with a wildcard": (mqtt.publish("a/+", values={}), 0x82),
    "PUBLISH without a topic": (mqtt.publish("", values={}), 0x82),
    "PUBLISH with QoS 1": (mqtt.publish("a", first=0x32, packet_id=1, values={}), 0x9B),
    "PUBLISH with QoS 2": (mqtt.publish("a", first=0x34, packet_id=1, values={}), 0x9B),
    "PUBLISH with QoS 3": (mqtt.publish("a", first=0x36, packet_id=1, values={}), 0x81),
    "PUBLISH with DUP": (mqtt.publish("a", first=0x38, values={}), 0x81),
    "a retained PUBLISH": (mqtt.publish("a", first=0x31, values={}), 0x9A),
    "an alias above the maximum": (mqtt.publish("a", values={"topic_alias": 17}), 0x94),
    "an alias of 0": (mqtt.publish("a", values={"topic_alias": 0}), 0x94),
    "an alias that is not known": (mqtt.publish("", values={"topic_alias": 1}), 0x82),
    "an alias for a wildcard": (mqtt.publish("#", values={"topic_alias": 1}), 0x82),
    "PUBREC": (mqtt.ack(0x50, 1), 0x82),
    "PUBREL": (mqtt.ack(0x62, 1), 0x82),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_packet_ends_the_connection_with_its_reason(name: str) -> None:
    packet, reason = WRONG[name]
    with MqttBench() as bench:
        client = bench.mqtt()
        (last,) = client.say(packet)
        assert (last["first"], last["reason"]) == (DISCONNECT, reason)
        assert client.closed and values(last)["reason_string"].decode() == client.closed.detail
        assert client.closed.reason is CloseReason.FRAME


def test_packets_of_3_1_1_that_are_not_served_close_the_connection() -> None:
    for packet in (mqtt.publish("a", first=0x32, packet_id=1), mqtt.subscribe([("a+", 0)], 1)):
        with MqttBench() as bench:
            client = bench.mqtt(4)
            assert client.say(packet) == [] and client.closed


# ---- UNSUBSCRIBE -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [3, 4, 5])
def test_unsubscribe_ends_subscriptions_and_python_is_told(version: int) -> None:
    with MqttBench() as bench:
        client = subscribed(bench.mqtt(version), "a", "b/#")
        (unsuback,) = client.say(mqtt.unsubscribe(["b/#", "c"], 8, none(version)))
        assert (unsuback["first"], unsuback["packet_id"]) == (UNSUBACK, 8)
        assert unsuback["rest"] == (b"\0\x11" if version == 5 else b"")
        assert [(event.filter, event.refused) for event in bench.unsubscribed] == [("b/#", False)]
        client.say(publish_of(version, "b/1", b""), publish_of(version, "a", b"x"))
        bench.settle()
        assert bench.stats()["subscriptions"] == 1


def test_unsubscribe_waits_until_python_can_be_told() -> None:
    names = [f"{n}/" + "x" * 200 for n in range(300)]
    with MqttBench(ring_bytes=1 << 16) as bench:
        client = bench.mqtt()
        for at in range(0, len(names), 10):
            subscribed(client, *names[at : at + 10])
        bench.present = False
        client.send_bytes(mqtt.unsubscribe(names, 1, {}))
        for _ in range(50):
            bench.turn(10)
        bench.present = True
        bench.settle(10)
        bench.settle(10)
        (unsuback,) = client.packets
        assert unsuback["rest"] == bytes(300)
        assert [event.filter for event in bench.unsubscribed] == names
        assert bench.stats()["subscriptions"] == 0


# ---- messages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", [0, 3, 4, 5])
@pytest.mark.parametrize("of", [0, 3, 4, 5])
def test_a_message_reaches_clients_of_both_protocols(of: int, to: int) -> None:
    """0: BlipMQ's own protocol."""
    with MqttBench() as bench:
        publisher: Any = bench.mqtt(of) if of else bench.attach()
        receiver: Any = subscribed(bench.mqtt(to, client_id="d"), "a/+") if to else bench.attach().subscribe("a/+")
        sent = [(f"a/{n % 3}", bytes([n]) * n) for n in range(200)]
        for topic, payload in sent:
            if of:
                publisher.send_bytes(publish_of(of, topic, payload))
            else:
                publisher.publish(topic, payload)
        bench.settle()
        got = messages(receiver) if to else [(message.topic, message.payload) for message in receiver.messages]
        assert got == sent
        assert conserved(bench.stats())


def test_every_kind_of_client_gets_the_same_messages_at_once() -> None:
    with MqttBench() as bench:
        receivers = [subscribed(bench.mqtt(version, client_id=str(version)), "t/#") for version in (3, 4, 5)]
        native = bench.attach().subscribe("t/#")
        publishers: list[Any] = [bench.mqtt(4, client_id="p"), bench.mqtt(5, client_id="q"), bench.attach()]
        sent = []
        for n in range(90):
            payload = n.to_bytes(4, "big") * (n % 50)
            sent.append((f"t/{n // 10}", payload))
            if n % 3 < 2:
                publishers[n % 3].send_bytes(publish_of(4 + n % 3, *sent[-1]))
            else:
                publishers[2].publish(*sent[-1])
        bench.settle()
        for receiver in receivers:
            assert sorted(messages(receiver)) == sorted(sent)
        assert sorted((message.topic, message.payload) for message in native.messages) == sorted(sent)
        assert conserved(bench.stats())


def test_a_publisher_receives_its_own_messages_once() -> None:
    with MqttBench() as bench:
        client = subscribed(bench.mqtt(), "a", "a", "#", "+")
        client.say(mqtt.publish("a", b"1", values={}))
        bench.settle()
        client.send_bytes(mqtt.publish("a", b"2", values={}))
        bench.settle()
        assert messages(client)[-1:] == [("a", b"2")]
        assert bench.stats()["enqueued"] == 2


def test_properties_reach_mqtt_5_and_native_clients_unchanged() -> None:
    given = {
        "payload_format": 1,
        "user": [("b", "2"), ("a", "1")],
        "content_type": "text",
        "response_topic": "r",
        "correlation_data": b"\0",
    }
    raw = mqtt.properties(given)[1:]
    with MqttBench() as bench:
        old, new = subscribed(bench.mqtt(4), "a"), subscribed(bench.mqtt(5, client_id="d"), "a")
        native = bench.attach().subscribe("a")
        bench.mqtt(5, client_id="p").say(
            mqtt.publish("a", b"x", values={**given, "topic_alias": 1}), mqtt.publish("a", b"y", values=given)
        )
        assert messages(old) == [("a", b"x"), ("a", b"y")]
        first, second = new.take_packets()
        assert first["properties"] == second["properties"] == mqtt.Reader(mqtt.variable(len(raw)) + raw).properties()
        assert native.payloads == [b"x", b"y"]
        assert [message.properties for message in native.messages] == [raw, raw]


def test_topic_aliases_of_the_client_are_replaced() -> None:
    with MqttBench() as bench:
        receiver = subscribed(bench.mqtt(4), "#")
        publisher = bench.mqtt(5, client_id="p")
        sent = [("a", 1), ("b", 16), ("", 1), ("", 16), ("c", 1), ("", 1), ("c", 16), ("", 16)]
        assert publisher.say(*[mqtt.publish(topic, b"", values={"topic_alias": alias}) for topic, alias in sent]) == []
        assert [topic for topic, _ in messages(receiver)] == ["a", "b", "a", "b", "c", "c", "c", "c"]
        used = bench.stats()["memory_used_bytes"] - bench.stats()["pool_free_bytes"]
        for _ in range(5):
            publisher.say(*[mqtt.publish(topic, b"", values={"topic_alias": alias}) for topic, alias in sent])
        assert bench.stats()["memory_used_bytes"] - bench.stats()["pool_free_bytes"] == used


def test_a_time_to_live_is_an_expiry_and_back() -> None:
    with MqttBench() as bench:
        receiver, native = subscribed(bench.mqtt(5), "a"), bench.attach().subscribe("a")
        bench.attach().publish("a", b"n", ttl_ms=90_000)
        bench.mqtt(5, client_id="p").say(mqtt.publish("a", b"m", values={"message_expiry_s": 90}))
        bench.settle()
        assert [values(packet) for packet in receiver.take_packets()] == [{"message_expiry_s": 90}] * 2
        assert [message.ttl_ms for message in native.messages] == [90_000] * 2


def test_an_expired_message_is_not_delivered() -> None:
    with MqttBench() as bench:
        receiver = subscribed(bench.mqtt(5), "a")
        receiver.stall()
        bench.mqtt(4, client_id="p").say(publish_of(4, "a", b"stays"))
        bench.mqtt(5, client_id="q").say(mqtt.publish("a", b"goes", values={"message_expiry_s": 5}))
        bench.settle(5_000 + 2 * TICK_MS)
        assert bench.stats()["dropped_ttl"] == 1


def test_a_key_may_publish_only_to_its_topics() -> None:
    with MqttBench() as bench:
        receiver = subscribed(bench.mqtt(4), "#")
        bench.core.set_acl(1, len(b"ok/#").to_bytes(2, "little") + b"ok/#")
        bench.answering = False
        publisher = bench.dial(5)
        publisher.connect(client_id="p")
        bench.core.mqtt_admit(publisher.conn, "p", 1)
        bench.settle()
        publisher.take_packets()
        assert publisher.say(mqtt.publish("no", b"1", values={}), mqtt.publish("ok/1", b"2", values={})) == []
        assert messages(receiver) == [("ok/1", b"2")]
        assert bench.stats()["publishes_not_allowed"] == 1


@pytest.mark.parametrize("policy", list(Overflow))
@pytest.mark.parametrize("version", [4, 5])
def test_every_overflow_policy_holds_for_mqtt_subscribers(policy: Any, version: int) -> None:
    with MqttBench(overflow_policy=int(policy), subscriber_messages=8, max_batch=4) as bench:
        slow = subscribed(bench.mqtt(version), "a")
        slow.stall()
        publisher = bench.mqtt(5, client_id="p")
        publisher.send_bytes(b"".join(mqtt.publish("a", bytes([n]), values={}) for n in range(20)))
        bench.settle()
        counters = bench.stats()
        if policy.name == "BLOCK":
            assert counters["blocked_publishers"] == 1 and counters["dropped_queue_full"] == 0
        else:
            assert counters["dropped_queue_full"] == 12
        slow.read()
        bench.settle()
        got = [payload for _, payload in messages(slow)]
        kept = {"BLOCK": range(20), "DROP_OLDEST": range(12, 20), "DROP_NEW": range(8)}[policy.name]
        assert got == [bytes([n]) for n in kept]
        assert conserved(bench.stats())


@pytest.mark.parametrize("name", ["a.*", "a.>", "a/>/b", "x" * 257])
def test_names_that_blipmq_has_another_meaning_for_are_not_served_yet(name: str) -> None:
    with MqttBench() as bench:
        client = bench.mqtt(5)
        (suback,) = client.say(mqtt.subscribe([(name, 0), ("#", 0)], 1, {}))
        assert suback["rest"] == b"\x8f\0"
        (last,) = client.say(mqtt.publish(name, values={}))
        assert (last["first"], last["reason"]) == (DISCONNECT, 0x90)


def test_a_session_ends_with_its_connection() -> None:
    with MqttBench() as bench:
        client = subscribed(bench.mqtt(), "a")
        client.say(mqtt.ending(0xE0))
        again = bench.mqtt()
        bench.attach().publish("a")
        bench.settle()
        assert again.packets == [] and bench.stats()["subscriptions"] == 0


def test_hello_to_the_mqtt_port_is_refused() -> None:
    with MqttBench() as bench:
        client = bench.dial()
        assert client.say(wire.encode_command(wire.PUB, "a", b"")) == [] and client.closed
