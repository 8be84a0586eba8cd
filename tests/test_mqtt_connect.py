"""CONNECT, PINGREQ, DISCONNECT and the keep-alive of MQTT clients, in stepped cores: each packet and each reason code."""

from __future__ import annotations

from typing import Any

import mqtt_packets as mqtt
import pytest
import websocket_peer
from mqtt_stepped import MqttBench, MqttClient, MqttSocketClient, Packets, values
from stepped import Client, SocketClient

from blipmq.native.events import CloseReason, MqttConnect
from blipmq.wire import frames as wire

TICK_MS = 10
HELLO_MS = 5000
CONNACK, DISCONNECT, PINGRESP = 0x20, 0xE0, {"first": 0xD0, "properties": [], "rest": b""}
PINGREQ = bytes([0xC0, 0])
VERSIONS = [3, 4, 5]
SILENT = "the client sent nothing, not even PINGREQ, for 1.5 times its keep-alive"


def dial(bench: MqttBench, version: int) -> MqttClient:
    return bench.dial(version)


def connect_of(version: int, **fields: Any) -> bytes:
    return mqtt.connect(version, name=b"MQIsdp" if version == 3 else b"MQTT", **fields)


def connected(bench: MqttBench, version: int, **fields: Any) -> MqttClient:
    client = bench.dial(version)
    (connack,) = client.say(connect_of(version, **fields))
    assert (connack["first"], connack["session_present"], connack["reason"]) == (CONNACK, 0, 0)
    return client


def asked(bench: MqttBench) -> MqttConnect:
    (event,) = bench.asked
    assert isinstance(event, MqttConnect)
    bench.asked.clear()
    return event


def detail(client: Client) -> str:
    assert client.closed is not None
    return client.closed.detail


# ---- CONNECT and CONNACK ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_python_gets_the_fields_of_connect(version: int) -> None:
    with MqttBench() as bench:
        bench.answering = False
        client = bench.dial(version)
        expiry = {"session_expiry_s": 77} if version == 5 else None
        packet = connect_of(
            version, client_id="café", flags=0, keep_alive=65_535, values=expiry, user_name="näme", password=b"\0key"
        )
        assert client.say(packet) == []
        event = asked(bench)
        assert event[:2] == (client.conn, "")
        assert event[2:] == (version, "café", "näme", b"\0key", False, 65_535, 77 if version == 5 else 0, "")
        assert "key" not in repr(event)


@pytest.mark.parametrize("version", [4, 5])
def test_a_user_name_or_password_that_is_missing_is_not_an_empty_one(version: int) -> None:
    for user_name, password in ((None, None), ("", None), ("u", b"")):
        with MqttBench() as bench:
            bench.answering = False
            bench.dial(version).connect(user_name=user_name, password=password)
            event = asked(bench)
            assert (event.user_name, event.password, event.clean) == (user_name, password, True)


def test_mqtt_5_may_have_a_password_without_a_user_name() -> None:
    with MqttBench() as bench:
        bench.answering = False
        bench.dial(5).connect(password=b"key")
        event = asked(bench)
        assert (event.user_name, event.password) == (None, b"key")


def test_connack_tells_an_mqtt_5_client_what_is_served() -> None:
    with MqttBench() as bench:
        (connack,) = bench.dial().connect()
        assert values(connack) == {
            "maximum_packet_bytes": bench.config.max_frame_bytes,
            "topic_alias_maximum": 16,
            "maximum_qos": 0,
            "retain_available": 0,
            "subscription_ids_available": 0,
            "shared_available": 0,
        }


def test_connack_tells_what_python_decided() -> None:
    with MqttBench() as bench:
        bench.answering = False
        client = bench.dial()
        client.connect(client_id="", values={"session_expiry_s": 100})
        bench.core.mqtt_admit(client.conn, "owner/auto-1", assigned="auto-1", keepalive_s=30, session_expiry_s=50)
        bench.settle()
        (connack,) = client.packets
        told = values(connack)
        assert (told["assigned_client_id"], told["server_keep_alive_s"], told["session_expiry_s"]) == (
            b"auto-1",
            30,
            50,
        )
        assert connack["session_present"] == 0


def test_a_session_that_is_present_is_told_from_3_1_1_on() -> None:
    for version, present in ((3, 0), (4, 1), (5, 1)):
        with MqttBench() as bench:
            bench.answering = False
            client = bench.dial(version)
            client.say(connect_of(version, flags=0))
            bench.core.mqtt_admit(client.conn, "c", session_present=True)
            bench.settle()
            assert client.packets[0]["session_present"] == present


@pytest.mark.parametrize("version", VERSIONS)
def test_packets_behind_connect_wait_for_the_answer(version: int) -> None:
    with MqttBench() as bench:
        bench.answering = False
        client = bench.dial(version)
        assert client.say(connect_of(version), PINGREQ, PINGREQ) == []
        bench.core.mqtt_admit(client.conn, "c")
        bench.settle()
        assert [packet["first"] for packet in client.packets] == [CONNACK, 0xD0, 0xD0]


def test_connect_may_be_cut_at_every_byte() -> None:
    packet = mqtt.connect(values={"session_expiry_s": 1}, user_name="u", password=b"p") + PINGREQ
    for cut in range(1, len(packet)):
        with MqttBench() as bench:
            client = bench.dial()
            first = client.say(packet[:cut])
            assert [p["first"] for p in first + client.say(packet[cut:])] == [CONNACK, 0xD0]


# ---- refusals --------------------------------------------------------------------------------------------------------

CODES_3 = {0x84: 1, 0x85: 2, 0x88: 3, 0x97: 3, 0x86: 4, 0x87: 5}


@pytest.mark.parametrize("reason", sorted(CODES_3))
@pytest.mark.parametrize("version", VERSIONS)
def test_python_refuses_a_client_with_a_code_of_its_version(version: int, reason: int) -> None:
    with MqttBench() as bench:
        bench.answering = False
        client = bench.dial(version)
        client.say(connect_of(version))
        bench.core.mqtt_refuse(client.conn, reason, "the cause")
        bench.settle()
        (connack,) = client.packets
        assert (connack["first"], connack["session_present"]) == (CONNACK, 0)
        assert connack["reason"] == (reason if version == 5 else CODES_3[reason])
        if version == 5:
            assert values(connack) == {"reason_string": b"the cause"}
        assert client.closed and client.closed.reason is CloseReason.BROKER


def test_a_reason_without_a_code_in_3_1_1_only_closes() -> None:
    with MqttBench() as bench:
        bench.answering = False
        client = bench.dial(4)
        client.connect()
        bench.core.mqtt_refuse(client.conn, 0x8C, "the cause")
        bench.settle()
        assert client.packets == [] and client.closed


REFUSED: dict[str, tuple[bytes, int, int | None]] = {
    # the packet, its version, the code of CONNACK; None: closed without one
    "version 6": (mqtt.connect(6), 5, 0x84),
    "a bridge of Mosquitto": (mqtt.connect(0x84), 4, 1),
    "MQIsdp with version 4": (mqtt.connect(4, name=b"MQIsdp"), 4, 1),
    "another protocol": (mqtt.connect(5, name=b"AMQP"), 5, None),
    "the reserved flag": (mqtt.connect(5, flags=3), 5, 0x81),
    "a will QoS without a will": (mqtt.connect(5, flags=0x0A), 5, 0x81),
    "a password without a user name": (mqtt.connect(4, flags=0x42, extra=mqtt.text(b"p")), 4, None),
    "an empty client identifier": (mqtt.connect(4, client_id="", flags=0), 4, 2),
    "an empty client identifier in 3.1": (mqtt.connect(3, client_id="", name=b"MQIsdp"), 3, 2),
    "bytes behind the end": (mqtt.connect(5, extra=b"x"), 5, 0x81),
    "a client identifier that is no text": (mqtt.connect(5, client_id=b"\xff"), 5, 0x81),
    "a receive maximum of 0": (mqtt.connect(5, values={"receive_maximum": 0}), 5, 0x82),
    "authentication data": (mqtt.connect(5, values={"authentication_data": b"d"}), 5, 0x82),
    "an authentication method": (mqtt.connect(5, values={"authentication_method": "m"}), 5, 0x8C),
    "a will": (mqtt.connect(5, will=(None, "t", b"")), 5, 0x88),
    "a will, 3.1.1": (mqtt.connect(4, will=(None, "t", b"")), 4, 3),
    "a huge password": (mqtt.connect(5, user_name="u", password=bytes(4096)), 5, 0x86),
    "a huge client identifier": (mqtt.connect(4, client_id="c" * 4097), 4, 2),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_connect_that_is_not_valid_or_not_served_gets_its_reason(name: str) -> None:
    packet, version, code = REFUSED[name]
    with MqttBench() as bench:
        client = bench.dial(version)
        found = client.say(packet)
        assert [(p["first"], p["reason"]) for p in found] == ([] if code is None else [(CONNACK, code)])
        if code is not None and version == 5:
            assert values(found[0])["reason_string"].decode() == detail(client)
        assert client.closed and client.closed.reason is CloseReason.FRAME
        used = used_bytes(bench)
        for _ in range(3):
            bench.dial(version).say(packet)
        assert used_bytes(bench) == used


def used_bytes(bench: MqttBench) -> int:
    counters = bench.stats()
    return counters["memory_used_bytes"] - counters["pool_free_bytes"]


FIRST = {
    "PINGREQ": PINGREQ,
    "DISCONNECT": mqtt.ending(0xE0),
    "PUBLISH": mqtt.publish(),
    "SUBSCRIBE": mqtt.subscribe([("a", 0)]),
    "AUTH": mqtt.ending(0xF0, 0x18, {"authentication_method": "m"}),
    "a packet of a server": bytes([0x20, 2, 0, 0]),
    "type 0": bytes(2),
    "HTTP": b"GET / HTTP/1.1\r\n\r\n",
    "BlipMQ": wire.encode_command(wire.HELLO, client_id="client", protocol=wire.PROTOCOL),
    "a length of five bytes": bytes([0x10, 0x80, 0x80, 0x80, 0x80, 1]),
    "a huge length": bytes([0x10, 0xFF, 0xFF, 0xFF, 0x7F]),
}


@pytest.mark.parametrize("name", FIRST)
def test_any_other_first_packet_closes_the_connection_without_an_answer(name: str) -> None:
    with MqttBench() as bench:
        client = bench.dial()
        assert client.say(FIRST[name]) == []
        assert client.closed and client.closed.reason in (CloseReason.FRAME, CloseReason.TOO_LARGE)
        assert bench.stats()["frames_bad"] == 1


def test_reason_strings_keep_to_the_maximum_packet_size_of_the_client() -> None:
    for most, text in ((9, False), (14, False), (21, True)):
        with MqttBench() as bench:
            bench.answering = False
            client = bench.dial()
            client.connect(values={"maximum_packet_bytes": most})
            bench.core.mqtt_refuse(client.conn, 0x87, "some cause 12")
            bench.settle()
            assert client.received_bytes <= most
            assert ("reason_string" in values(client.packets[0])) is text


def test_a_connack_for_small_packets_has_only_what_the_client_cannot_learn_otherwise() -> None:
    with MqttBench() as bench:
        bench.answering = False
        client = bench.dial()
        client.connect(client_id="", values={"maximum_packet_bytes": 20})
        bench.core.mqtt_admit(client.conn, "auto-1", assigned="auto-1", keepalive_s=30)
        bench.settle()
        assert values(client.packets[0]) == {"assigned_client_id": b"auto-1", "server_keep_alive_s": 30}


def test_a_client_that_takes_no_connack_is_closed() -> None:
    with MqttBench() as bench:
        client = bench.dial()
        assert client.connect(values={"maximum_packet_bytes": 4}) == []
        assert "too small for a CONNACK" in detail(client)


# ---- admission -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("require_hello", [0, 1])
def test_a_client_without_connect_is_pending_and_closed_in_time(require_hello: int) -> None:
    with MqttBench(require_hello=require_hello) as bench:
        silent, partly = bench.dial(), bench.dial()
        partly.say(mqtt.connect()[:5])
        assert bench.stats()["pending"] == 2
        connected(bench, 5)
        assert bench.stats()["pending"] == 2
        bench.settle(HELLO_MS + TICK_MS)
        assert detail(silent) == detail(partly) == "no CONNECT in time"
        assert (bench.stats()["pending"], bench.stats()["connections"]) == (0, 1)


def test_at_max_pending_the_longest_silent_client_makes_room() -> None:
    with MqttBench(max_pending=2) as bench:
        first, second, third = bench.dial(), bench.dial(), bench.dial()
        bench.settle()
        assert first.closed and first.closed.reason is CloseReason.CROWDED
        assert second.closed is None and third.closed is None


def test_mqtt_and_blipmq_clients_share_the_places_of_an_address() -> None:
    with MqttBench(max_pending_per_address=1) as bench:
        assert bench.dial(address="198.51.100.7").conn
        assert bench.dial(address="198.51.100.7").conn == 0
        assert bench.attach(address="198.51.100.7").conn  # it needs no HELLO, so it is not pending


def test_where_keys_are_required_a_connect_has_at_most_4_kib() -> None:
    for require_hello, size, answered in ((1, 4096, True), (1, 4097, False), (0, 5000, True)):
        with MqttBench(require_hello=require_hello) as bench:
            client = bench.dial(4)
            base = len(mqtt.connect(4, client_id="c" * 3000, user_name="u", password=bytes(100)))
            found = client.connect(client_id="c" * 3000, user_name="u", password=bytes(100 + size - base))
            assert [p["reason"] for p in found] == ([0] if answered else [])


def test_over_max_connections_connect_is_refused_with_its_reason() -> None:
    for version, code in ((4, 3), (5, 0x97)):
        with MqttBench(max_connections=1) as bench:
            bench.listen(mqtt=True)
            first = bench.connect(MqttSocketClient)
            first.send_bytes(mqtt.connect(5))
            first.drain()
            assert first.packets[0]["reason"] == 0
            second = bench.connect(MqttSocketClient)
            second._packets.version = version
            second.send_bytes(mqtt.connect(version, client_id="d"))
            second.drain()
            assert [p["reason"] for p in second.packets] == [code]


def test_when_keys_become_required_clients_are_told() -> None:
    for version in VERSIONS:
        with MqttBench() as bench:
            client = connected(bench, version)
            bench.core.limits(bench.config._replace(require_hello=1))
            bench.settle()
            assert [(p["first"], p["reason"]) for p in client.packets] == ([(DISCONNECT, 0x87)] if version == 5 else [])
            assert client.closed and client.closed.reason is CloseReason.UNAUTH


# ---- a connection ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_pings_are_answered(version: int) -> None:
    with MqttBench() as bench:
        client = connected(bench, version)
        assert client.say(*[PINGREQ] * 3) == [PINGRESP] * 3


@pytest.mark.parametrize("version", VERSIONS)
def test_disconnect_closes_the_connection(version: int) -> None:
    with MqttBench() as bench:
        client = connected(bench, version)
        assert client.say(PINGREQ, mqtt.ending(0xE0), PINGREQ) == [PINGRESP]
        assert client.closed and client.closed.reason is CloseReason.QUIT


WRONG: dict[str, tuple[bytes, int]] = {
    "a second CONNECT": (mqtt.connect(), 0x82),
    "AUTH": (mqtt.ending(0xF0, 0x18, {"authentication_method": "m"}), 0x82),
    "AUTH without a method": (mqtt.ending(0xF0, 0x18), 0x82),
    "a packet of a server": (bytes([0xD0, 0]), 0x82),
    "type 0": (bytes(2), 0x81),
    "wrong flags": (bytes([0xC1, 0]), 0x81),
    "PINGREQ with a body": (bytes([0xC0, 1, 0]), 0x81),
    "a length that wastes a byte": (bytes([0xC0, 0x80, 0]), 0x81),
    "DISCONNECT with a reason of servers": (mqtt.ending(0xE0, 0x8B), 0x82),
    "DISCONNECT that sets an expiry": (mqtt.ending(0xE0, 0, {"session_expiry_s": 1}), 0x82),
    "a huge length": (bytes([0x30, 0xFF, 0xFF, 0xFF, 0x7F]), 0x95),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_packet_ends_the_connection_with_its_reason(name: str) -> None:
    packet, reason = WRONG[name]
    with MqttBench() as bench:
        client = connected(bench, 5)
        *before, last = client.say(PINGREQ, packet, PINGREQ)
        assert before == [PINGRESP]
        assert (last["first"], last["reason"]) == (DISCONNECT, reason)
        assert values(last)["reason_string"].decode() == detail(client)
        assert client.closed and client.closed.reason in (CloseReason.FRAME, CloseReason.TOO_LARGE)


def test_a_wrong_packet_of_3_1_1_closes_the_connection() -> None:
    with MqttBench() as bench:
        client = connected(bench, 4)
        assert client.say(PINGREQ, bytes([0xC1, 0]), PINGREQ) == [PINGRESP]
        assert client.closed and client.closed.reason is CloseReason.FRAME


@pytest.mark.parametrize("version", VERSIONS)
def test_python_ends_a_connection_with_a_reason(version: int) -> None:
    with MqttBench() as bench:
        client = connected(bench, version)
        bench.core.mqtt_refuse(client.conn, 0x8E, "taken over")
        bench.settle()
        assert [(p["first"], p["reason"]) for p in client.packets] == ([(DISCONNECT, 0x8E)] if version == 5 else [])
        assert client.closed and client.closed.reason is CloseReason.BROKER


@pytest.mark.parametrize("version", VERSIONS)
def test_at_the_end_of_the_broker_clients_are_told(version: int) -> None:
    with MqttBench() as bench:
        client = connected(bench, version)
        bench.core.stop(1000)
        bench.settle()
        assert [(p["first"], p["reason"]) for p in client.packets] == ([(DISCONNECT, 0x8B)] if version == 5 else [])
        assert bench.stopped is not None


# ---- keep-alive ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_a_silent_client_is_closed_after_one_and_a_half_keep_alives(version: int) -> None:
    with MqttBench() as bench:
        client = connected(bench, version, keep_alive=10)
        bench.settle(14_990)
        client.say(PINGREQ)
        bench.settle(14_900)
        assert client.closed is None
        bench.settle(10_000)  # what the transport may hold back is within this time
        bench.settle(10_000)
        assert detail(client) == SILENT
        ended = client.take_packets()
        assert [(p["first"], p["reason"]) for p in ended] == ([(DISCONNECT, 0x8D)] if version == 5 else [])


def test_a_keep_alive_of_0_never_ends() -> None:
    with MqttBench() as bench:
        client = connected(bench, 4, keep_alive=0)
        bench.settle(10**9)
        assert client.closed is None


def test_the_keep_alive_of_the_server_counts_for_mqtt_5_only() -> None:
    for version, closed in ((4, False), (5, True)):
        with MqttBench() as bench:
            bench.answering = False
            client = bench.dial(version)
            client.connect(keep_alive=1000)
            bench.core.mqtt_admit(client.conn, "c", keepalive_s=10)
            bench.settle()
            for _ in range(3):
                bench.settle(10_000)
            assert (client.closed is not None) is closed


def test_a_keep_alive_longer_than_that_of_the_broker_is_kept() -> None:
    with MqttBench(keepalive_ms=60_000) as bench:
        client = connected(bench, 4, keep_alive=3600)
        bench.settle(3_600_000)
        assert client.closed is None


# ---- over WebSocket --------------------------------------------------------------------------------------------------


def dial_websocket(bench: MqttBench, asked: bytes) -> tuple[Any, bytes]:
    """A client on a WebSocket listener for MQTT, and the answer to its handshake."""
    ours = bench.adopted(1 << 16, websocket=True, mqtt=True)
    client = bench.use(SocketClient(bench, ours))
    client.answer = bytearray()
    client.arrived = client.answer.extend
    client.send_bytes(asked)
    client.drain()
    answer = bytes(client.answer)
    client.answer.clear()
    return client, answer


def test_mqtt_over_websocket_is_the_same_with_frames_around_it() -> None:
    with MqttBench() as bench:
        client, answer = dial_websocket(bench, websocket_peer.request("/mqtt", Sec_WebSocket_Protocol="mqtt"))
        assert answer.startswith(b"HTTP/1.1 101 ") and b"Sec-WebSocket-Protocol: mqtt\r\n" in answer
        packets = mqtt.connect() + PINGREQ + mqtt.subscribe([("a", 0)], 1, {}) + mqtt.publish("a", b"x", values={})
        for at in range(0, len(packets), 7):  # a frame need not hold whole packets
            client.send_bytes(websocket_peer.frame(packets[at : at + 7]))
        client.drain()
        payloads = websocket_peer.FrameReader().feed(bytes(client.answer))
        assert [packet["first"] for packet in Packets(5).feed(payloads)] == [CONNACK, 0xD0, 0x90, 0x30]


def test_a_websocket_of_mqtt_has_its_path_and_its_subprotocol() -> None:
    for path, subprotocol, status, word in (
        ("/blipmq", "mqtt", b"404", b"/mqtt"),
        ("/mqtt", "blipmq", b"400", b"offer mqtt"),
    ):
        with MqttBench() as bench:
            _, answer = dial_websocket(bench, websocket_peer.request(path, Sec_WebSocket_Protocol=subprotocol))
            assert answer.split()[1] == status and word in answer


def test_a_websocket_without_connect_is_closed_in_time() -> None:
    with MqttBench() as bench:
        _, answer = dial_websocket(bench, websocket_peer.request("/mqtt"))
        assert answer.startswith(b"HTTP/1.1 101 ")
        assert bench.stats()["pending"] == 1
        bench.settle(HELLO_MS + TICK_MS)
        assert [event.detail for event in bench.closed] == ["no CONNECT in time"]
