"""MQTT clients that people use, against a whole broker: they connect with and without keys, over TCP and TLS, and send messages.

Invariant: each client here is a published one, not of this project.
"""

from __future__ import annotations

import queue
import signal
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import paho.mqtt.client as paho
import pytest
from broker_process import BrokerProcess
from certificates import Authority
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

import blipmq
from blipmq.auth.keys import add_key, revoke_key

SETTINGS = {"server.bind_addr": "", "mqtt.bind_addr": "127.0.0.1:0", "metrics.bind_addr": ""}
VERSIONS = [MQTTProtocolVersion.MQTTv31, MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5]
WAIT_SECONDS = 30


class Client:
    """A paho client that has sent CONNECT and got its answer."""

    def __init__(
        self,
        address: str,
        client_id: str = "pump",
        version: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
        user_name: str | None = None,
        password: str | None = None,
        context: ssl.SSLContext | None = None,
        keepalive_s: int = 60,
        transport: Literal["tcp", "websockets"] = "tcp",
    ) -> None:
        self.ended = threading.Event()
        self.code: Any = None
        self.properties: Any = None
        self.end: Any = None
        answered = threading.Event()
        self.paho = paho.Client(
            CallbackAPIVersion.VERSION2, client_id, protocol=version, transport=transport, reconnect_on_failure=False
        )
        if password is not None:
            self.paho.username_pw_set(user_name, password)
        if context is not None:
            self.paho.tls_set_context(context)

        def connected(_client: Any, _data: Any, _flags: Any, code: Any, properties: Any) -> None:
            self.code, self.properties = code, properties
            answered.set()

        def disconnected(_client: Any, _data: Any, _flags: Any, code: Any, _properties: Any) -> None:
            self.end = code
            self.ended.set()

        self.paho.on_connect, self.paho.on_disconnect = connected, disconnected
        host, _, port = address.rpartition(":")
        self.paho.connect(host, int(port), keepalive_s)
        self._socket: Any = self.paho.socket()
        self.paho.loop_start()
        assert answered.wait(WAIT_SECONDS)

    def wait_for_end(self) -> Any:
        """The reason with which the broker ended the connection."""
        assert self.ended.wait(WAIT_SECONDS)
        return self.end

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()
        self.paho._reset_sockets()  # closes the pair that wakes its thread; paho leaves that to the garbage collector
        self._socket.close()  # paho leaves that of a WebSocket open


Connect = Callable[..., Client]


@pytest.fixture
def connect() -> Any:
    """Connects clients, and closes them at the end."""
    opened: list[Client] = []

    def open_client(*arguments: Any, **options: Any) -> Client:
        opened.append(Client(*arguments, **options))
        return opened[-1]

    yield open_client
    for client in opened:
        client.close()


def started(folder: Path, **settings: Any) -> tuple[BrokerProcess, dict[str, str]]:
    """A broker, and its line `ready`, which has its addresses."""
    broker = BrokerProcess(folder, {**SETTINGS, **settings}).get_ready()
    return broker, broker.wait_for("ready")


def stop(broker: BrokerProcess) -> None:
    broker.signal(signal.SIGTERM)
    assert broker.wait() == 0


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_client_connects_and_leaves(tmp_path: Path, connect: Connect, version: MQTTProtocolVersion) -> None:
    broker, ready = started(tmp_path)
    client = connect(ready["mqtt"], version=version)
    assert client.code == 0
    client.close()
    assert broker.wait_for("closed")["reason"] == "quit"
    name = {3: "MQTT 3.1", 4: "MQTT 3.1.1", 5: "MQTT 5"}[int(version)]
    assert [line["protocol"] for line in broker.lines("hello")] == [name]
    stop(broker)


def test_a_client_without_a_client_id_is_told_its_own(tmp_path: Path, connect: Connect) -> None:
    broker, ready = started(tmp_path)
    names = {connect(ready["mqtt"], client_id="").properties.AssignedClientIdentifier for _ in range(2)}
    assert len(names) == 2 and "" not in names
    stop(broker)


def test_a_client_of_mqtt_5_is_told_a_shorter_keep_alive(tmp_path: Path, connect: Connect) -> None:
    broker, ready = started(tmp_path, **{"mqtt.max_keepalive_s": 20})
    assert connect(ready["mqtt"], keepalive_s=60).properties.ServerKeepAlive == 20
    assert not hasattr(connect(ready["mqtt"], "b", keepalive_s=10).properties, "ServerKeepAlive")
    stop(broker)


def test_the_password_is_the_key_and_its_end_is_the_end_of_the_connection(tmp_path: Path, connect: Connect) -> None:
    keys = tmp_path / "keys"
    text = add_key(keys, "boiler")
    broker, ready = started(tmp_path, **{"auth.keys_file": str(keys)})
    for version in VERSIONS:
        client = connect(ready["mqtt"], f"c{int(version)}", version, "boiler", text)
        assert client.code == 0
    wrong = {"user_name": "boiler", "password": text + "x"}
    assert connect(ready["mqtt"], "d", **wrong).code == "Not authorized"
    assert connect(ready["mqtt"], "e", version=MQTTProtocolVersion.MQTTv311, **wrong).code == "Not authorized"
    assert connect(ready["mqtt"], "f").code == "Not authorized"
    assert connect(ready["mqtt"], "g", user_name="pump", password=text).code == "Not authorized"
    revoke_key(keys, "boiler")
    assert client.wait_for_end() == "Administrative action"
    for name in ("c3", "c4", "c5"):
        assert broker.wait_for("ended", client=name)["code"] == "0x98"
    assert text not in "\n".join(broker.log)
    stop(broker)


def test_a_client_connects_over_websocket_with_and_without_tls(tmp_path: Path, connect: Connect) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.sign("localhost")
    broker, ready = started(
        tmp_path,
        **{
            "mqtt.bind_addr": "",
            "mqtt.ws_bind_addr": "127.0.0.1:0",
            "server.ws_origins": ["*"],  # paho sends an origin, as a web page does
            "mqtt.tls_bind_addr": "127.0.0.1:0",
            "tls.cert_file": str(cert),
            "tls.key_file": str(key),
        },
    )
    context = ssl.create_default_context(cafile=authority.file)
    context.check_hostname = False
    plain = connect(ready["mqtt_websocket"], "a", transport="websockets")
    secure = connect(ready["mqtt_tls"], "b", transport="websockets", context=context)
    arrived: queue.Queue[bytes] = queue.Queue()
    plain.paho.on_message = lambda _client, _data, message: arrived.put(message.payload)
    plain.paho.on_subscribe = lambda *_: arrived.put(b"subscribed")
    plain.paho.subscribe("a")
    assert arrived.get(timeout=WAIT_SECONDS) == b"subscribed"
    secure.paho.publish("a", bytes(100_000))
    assert arrived.get(timeout=WAIT_SECONDS) == bytes(100_000)
    stop(broker)


def test_a_newer_client_replaces_an_older_one_with_its_name(tmp_path: Path, connect: Connect) -> None:
    broker, ready = started(tmp_path)
    older = connect(ready["mqtt"])
    assert connect(ready["mqtt"]).code == 0
    assert older.wait_for_end() == "Session taken over"
    stop(broker)


def test_a_stop_tells_the_clients(tmp_path: Path, connect: Connect) -> None:
    broker, ready = started(tmp_path)
    client = connect(ready["mqtt"])
    stop(broker)
    assert client.wait_for_end() == "Server shutting down"


def test_a_client_over_tls_may_use_its_certificate_in_place_of_a_password(tmp_path: Path, connect: Connect) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.sign("localhost")
    add_key(tmp_path / "keys", "boiler", certificate="boiler-1")
    broker, ready = started(
        tmp_path,
        **{
            "mqtt.bind_addr": "",
            "mqtt.tls_bind_addr": "127.0.0.1:0",
            "tls.cert_file": str(cert),
            "tls.key_file": str(key),
            "tls.client_ca_file": str(authority.file),
            "auth.keys_file": str(tmp_path / "keys"),
        },
    )
    context = ssl.create_default_context(cafile=authority.file)
    context.check_hostname = False
    assert connect(ready["mqtt_tls"], "a", context=context).code == "Not authorized"
    context.load_cert_chain(*authority.sign("boiler-1"))
    assert connect(ready["mqtt_tls"], "b", context=context).code == 0
    assert broker.wait_for("hello", client="b")["key"] == "boiler"
    stop(broker)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_messages_go_between_mqtt_clients_and_blipmq_clients(
    tmp_path: Path, connect: Connect, version: MQTTProtocolVersion
) -> None:
    broker, ready = started(tmp_path, **{"server.bind_addr": "127.0.0.1:0"})
    arrived: queue.Queue[tuple[str, bytes]] = queue.Queue()
    mqtt = connect(ready["mqtt"], version=version)
    mqtt.paho.on_message = lambda _client, _data, message: arrived.put((message.topic, message.payload))
    mqtt.paho.on_subscribe = lambda *_: arrived.put(("subscribed", b""))
    mqtt.paho.subscribe([("mqtt/+", 1), ("blip/#", 0)])
    assert arrived.get(timeout=WAIT_SECONDS) == ("subscribed", b"")
    with blipmq.connect_blocking(ready["address"]) as blip, blip.subscribe("mqtt/#", qos=1) as subscription:
        for qos in (0, 1):
            mqtt.paho.publish("mqtt/a", bytes([qos]) * 1000, qos).wait_for_publish(WAIT_SECONDS)
            assert arrived.get(timeout=WAIT_SECONDS) == ("mqtt/a", bytes([qos]) * 1000)
            message = next(subscription)
            assert (message.topic, message.payload) == ("mqtt/a", bytes([qos]) * 1000)
        blip.publish("blip/x/y", b"from blip")
        assert arrived.get(timeout=WAIT_SECONDS) == ("blip/x/y", b"from blip")
    mqtt.paho.on_unsubscribe = lambda *_: arrived.put(("unsubscribed", b""))
    mqtt.paho.unsubscribe("mqtt/+")
    assert arrived.get(timeout=WAIT_SECONDS) == ("unsubscribed", b"")
    mqtt.paho.publish("mqtt/a", b"nobody", 1).wait_for_publish(WAIT_SECONDS)
    assert arrived.empty()
    stop(broker)


def test_a_client_gets_the_state_of_the_broker(tmp_path: Path, connect: Connect) -> None:
    broker, ready = started(tmp_path, **{"mqtt.sys_interval_s": 1})
    client = connect(ready["mqtt"])
    arrived: queue.Queue[tuple[str, bytes]] = queue.Queue()
    client.paho.on_message = lambda _client, _data, message: arrived.put((message.topic, message.payload))
    client.paho.subscribe("$SYS/broker/clients/+")
    assert arrived.get(timeout=WAIT_SECONDS) == ("$SYS/broker/clients/connected", b"1")
    stop(broker)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mqtt": {"bind_addr": "127.0.0.1:7878"}}, "mqtt.bind_addr: .*used by another setting"),
        ({"mqtt": {"bind_addr": "0.0.0.0:1883"}}, "mqtt.bind_addr: .*no key is configured"),
        ({"mqtt": {"tls_bind_addr": "127.0.0.1:8883"}}, "mqtt.tls_bind_addr: TLS needs a certificate"),
        (
            {"mqtt": {"bind_addr": "127.0.0.1:1", "tls_bind_addr": "127.0.0.1:1"}},
            "mqtt.tls_bind_addr: .*another setting",
        ),
    ],
)
def test_addresses_that_cannot_work_are_refused(settings: dict[str, Any], words: str) -> None:
    from blipmq.config.reader import from_dict
    from blipmq.errors import ConfigError

    with pytest.raises(ConfigError, match=words):
        from_dict(settings)
