"""Which MQTT clients are admitted: the Python side alone, on a core that records its commands.

Invariant: each CONNECT gets exactly one answer, and no log line holds a password.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from blipmq.auth.auth import Auth
from blipmq.auth.keys import add_key, revoke_key
from blipmq.config.reader import from_dict
from blipmq.native.events import Closed, CloseReason, Hello, MqttConnect, MqttSubscribe, Unsubscribed
from blipmq.protocols.blip import NativeProtocol
from blipmq.protocols.clients import ClientRules
from blipmq.protocols.mqtt import MqttProtocol
from blipmq.sessions.connections import Connections

SECRET = "bq_a-key-that-nobody-will-guess-1"
NOT_AUTHORIZED, NOT_VALID, TAKEN, QUOTA, ENDED = 0x87, 0x85, 0x8E, 0x97, 0x98


class RecordingCore:
    """Records its commands: name, connection, the other arguments."""

    def __init__(self) -> None:
        self.commands: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *args, **named: self.commands.append((name, *args, *([named] if named else [])))


class RecordingLog:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def __getattr__(self, level: str) -> Any:
        return lambda event, **facts: self.lines.append((level, event, facts))


class Scene:
    """The policy of one broker with these settings."""

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        config = from_dict({"wal": {"enabled": False}, **(settings or {})})
        self.core, self.log, self.connections = RecordingCore(), RecordingLog(), Connections()
        self.auth = Auth(self.core, config.auth, self.log)  # type: ignore[arg-type]
        self.auth.open()
        self.memory_is_short = False
        self.rules = ClientRules(self.connections, config, self.log, self, self.auth)  # type: ignore[arg-type]
        self.mqtt = MqttProtocol(self.core, self.connections, self.rules)
        self.blip = NativeProtocol(
            self.core,  # type: ignore[arg-type]
            self.connections,
            self.rules,
            self.log,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
        )
        self.log.lines.clear()

    def connect(self, conn: int = 1, client_id: str = "pump", **fields: Any) -> tuple[Any, ...]:
        """Send CONNECT; returns the last command, and forgets all."""
        if isinstance(password := fields.pop("password", None), str):
            password = password.encode()
        defaults = {"level": 5, "user_name": None, "clean": True, "keepalive_s": 60, "session_expiry_s": 0}
        event = MqttConnect(
            conn=conn,
            peer="10.0.0.1:5",
            client_id=client_id,
            password=password,
            will_topic="",
            **{**defaults, **fields},
        )
        self.mqtt.connect(event)
        return self.last()

    def last(self) -> tuple[Any, ...]:
        *_, last = [command for command in self.core.commands if command[0] != "set_acl"]
        self.core.commands.clear()
        return last

    def logged(self, event: str) -> list[dict[str, Any]]:
        assert SECRET not in repr(self.log.lines)
        return [facts for _, name, facts in self.log.lines if name == event]

    def is_admitted(self, **fields: Any) -> bool:
        return self.connect(**fields)[0] == "mqtt_admit"


@pytest.fixture
def keyed(tmp_path: Path) -> Scene:
    """A broker with a key file: the key `boiler`, which may do everything."""
    add_key(tmp_path / "keys", "boiler", key=SECRET)
    return Scene({"auth": {"keys_file": str(tmp_path / "keys")}})


def admission(command: tuple[Any, ...]) -> dict[str, Any]:
    name, conn, identity, acl, more = command
    assert name == "mqtt_admit"
    return {"conn": conn, "identity": identity, "acl": acl, **more}


# ---- CONNECT without keys


def test_a_client_is_admitted_with_the_values_that_it_asked_for() -> None:
    scene = Scene()
    assert admission(scene.connect(9, "pump", level=4)) == {
        "conn": 9,
        "identity": "pump",
        "acl": 0,
        "assigned": "",
        "keepalive_s": None,
    }
    assert scene.logged("hello") == [{"client": "pump", "protocol": "MQTT 3.1.1", "peer": "10.0.0.1:5"}]


def test_without_keys_the_user_name_and_the_password_do_not_matter() -> None:
    assert Scene().is_admitted(user_name="anyone", password="anything")


def test_a_client_without_a_client_id_gets_one_of_its_own() -> None:
    scene = Scene()
    answers = [admission(scene.connect(conn, "")) for conn in range(1, 50)]
    assert all(answer["assigned"] == answer["identity"] != "" for answer in answers)
    assert len({answer["identity"] for answer in answers}) == len(answers)


@pytest.mark.parametrize("client_id", ["x" * 257, "ü" * 129, "a\x1fb", "a\nb", "\x7f"])
def test_a_client_id_that_is_too_long_or_has_control_characters_is_refused(client_id: str) -> None:
    scene = Scene()
    name, conn, reason, text = scene.connect(client_id=client_id)
    assert (name, conn, reason) == ("mqtt_refuse", 1, NOT_VALID) and "client_id" in text
    assert [line["code"] for line in scene.logged("refused")] == ["0x85"]
    assert scene.is_admitted(conn=2, client_id="x" * 256)


def test_a_newer_connection_takes_over_the_client_id() -> None:
    scene = Scene()
    scene.connect(1)
    scene.mqtt.connect(MqttConnect(2, "10.0.0.2:6", 5, "pump", None, None, True, 0, 0, ""))
    assert [command[:3] for command in scene.core.commands] == [("mqtt_refuse", 1, TAKEN), ("mqtt_admit", 2, "pump")]
    assert scene.logged("client_id_taken")[0]["newer"] == "10.0.0.2:6"
    scene.rules.closed(Closed(1, CloseReason.BROKER, "", "10.0.0.1:5"))
    scene.core.commands.clear()
    assert scene.connect(3)[0] == "mqtt_admit"
    assert [line["older"] for line in scene.logged("client_id_taken")] == ["10.0.0.1:5", "10.0.0.2:6"]


def test_clients_of_both_protocols_may_have_the_same_client_id() -> None:
    scene = Scene()
    scene.blip.hello(Hello(1, 1, 1, "pump", b"", "10.0.0.1:5"))
    assert scene.last()[0] == "admit"
    assert scene.is_admitted(conn=2) and not scene.logged("client_id_taken")
    scene.blip.hello(Hello(3, 1, 1, "pump", b"", "10.0.0.1:6"))
    assert [line["older"] for line in scene.logged("client_id_taken")] == ["10.0.0.1:5"]


@pytest.mark.parametrize(
    ("level", "asked", "told"), [(5, 30, None), (5, 60, None), (5, 61, 60), (5, 0, 60), (4, 61, None), (4, 0, None)]
)
def test_only_a_client_of_mqtt_5_is_told_a_shorter_keep_alive(level: int, asked: int, told: int | None) -> None:
    scene = Scene({"mqtt": {"max_keepalive_s": 60}})
    assert admission(scene.connect(level=level, keepalive_s=asked))["keepalive_s"] == told
    assert admission(Scene().connect(level=level, keepalive_s=asked))["keepalive_s"] is None


# ---- CONNECT with keys


@pytest.mark.parametrize("user_name", ["boiler", "", None])
def test_the_password_is_the_key_and_the_user_name_its_name(keyed: Scene, user_name: str | None) -> None:
    answer = admission(keyed.connect(user_name=user_name, password=SECRET))
    assert (answer["identity"], answer["acl"]) == ("boiler\x1fpump", 1)
    assert [line["key"] for line in keyed.logged("hello")] == ["boiler"]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"user_name": "boiler"},
        {"user_name": "boiler", "password": ""},
        {"user_name": "boiler", "password": SECRET + "x"},
        {"user_name": "other", "password": SECRET},
        {"user_name": SECRET, "password": "boiler"},
    ],
)
def test_every_client_without_a_valid_key_gets_the_same_answer(keyed: Scene, given: dict[str, str]) -> None:
    name, conn, reason, text = keyed.connect(**given)
    assert (name, conn, reason) == ("mqtt_refuse", 1, NOT_AUTHORIZED)
    assert text == "no API key was sent, or the broker does not know it"
    assert keyed.auth.refused == 1 and [line["what"] for line in keyed.logged("refused")] == ["connect"]
    keyed.mqtt.connect(MqttConnect(1, "10.0.0.1:5", 5, "pump", None, SECRET.encode(), True, 0, 0, ""))
    assert keyed.core.commands == []  # it is closing


def test_a_key_without_a_name_fits_any_user_name() -> None:
    scene = Scene({"auth": {"api_keys": [SECRET]}})
    assert admission(scene.connect(user_name="anyone", password=SECRET))["identity"] == "pump"


def test_a_certificate_replaces_the_password(tmp_path: Path) -> None:
    add_key(tmp_path / "keys", "boiler", key=SECRET, certificate="boiler-cert")
    scene = Scene({"auth": {"keys_file": str(tmp_path / "keys")}})
    for conn in range(1, 6):
        scene.connections.showed(conn, "boiler-cert")
    assert admission(scene.connect(1))["identity"] == "boiler\x1fpump"
    assert scene.is_admitted(conn=2, client_id="b", user_name="boiler")
    assert not scene.is_admitted(conn=3, client_id="c", user_name="other")
    assert not scene.is_admitted(conn=4, client_id="d", user_name="boiler", password="wrong")
    scene.connections.showed(6, "another-cert")
    assert not scene.is_admitted(conn=6, client_id="e")


def test_keys_have_client_ids_of_their_own(keyed: Scene, tmp_path: Path) -> None:
    other = add_key(tmp_path / "keys", "pump")
    keyed.auth.look()
    assert keyed.is_admitted(conn=1, password=SECRET) and keyed.is_admitted(conn=2, password=other)
    assert not keyed.logged("client_id_taken")


def test_a_key_cannot_exceed_its_limit_of_connections_but_may_replace_one(tmp_path: Path) -> None:
    add_key(tmp_path / "keys", "boiler", key=SECRET)
    keys = {"keys_file": str(tmp_path / "keys")}
    scene = Scene({"auth": keys, "limits": {"max_connections_per_key": 2}})
    assert scene.is_admitted(conn=1, client_id="a", password=SECRET)
    assert scene.is_admitted(conn=2, client_id="b", password=SECRET)
    assert scene.connect(3, "c", password=SECRET)[:3] == ("mqtt_refuse", 3, QUOTA)
    assert scene.auth.over_limit == 1
    assert scene.is_admitted(conn=4, client_id="b", password=SECRET)
    scene.rules.closed(Closed(1, CloseReason.QUIT, "", "10.0.0.1:5"))
    assert scene.is_admitted(conn=5, client_id="c", password=SECRET)


# ---- changed keys, and the end


def test_a_revoked_key_ends_its_connections_by_an_administrative_action(keyed: Scene, tmp_path: Path) -> None:
    keyed.connect(password=SECRET)
    revoke_key(tmp_path / "keys", "boiler")
    assert keyed.auth.look()
    keyed.core.commands.clear()
    keyed.rules.keys_changed(lambda connection, refusal: keyed.mqtt.end(connection, refusal))
    assert keyed.last() == ("mqtt_refuse", 1, ENDED, "the API key is no longer valid", {"discard": True})
    assert [(line["client"], line["code"]) for line in keyed.logged("ended")] == [("pump", "0x98")]
    keyed.rules.keys_changed(lambda *_: pytest.fail("it is closing already"))


def test_a_closed_connection_is_logged_and_forgotten() -> None:
    scene = Scene()
    scene.connect()
    scene.rules.closed(Closed(1, CloseReason.VANISHED, "keep-alive", "10.0.0.1:5"))
    assert scene.logged("closed") == [
        {"client": "pump", "peer": "10.0.0.1:5", "reason": "vanished", "detail": "keep-alive"}
    ]
    assert len(scene.connections) == 0


# ---- SUBSCRIBE


def granted(scene: Scene, *filters: tuple[str, int], conn: int = 1) -> list[int]:
    scene.mqtt.subscribe(MqttSubscribe(conn, 7, 0, filters))
    name, answered, packet_id, rows = scene.last()
    assert (name, answered, packet_id) == ("mqtt_subscribe", conn, 7)
    assert [row[:2] for row in rows] == list(filters)
    return [row[2] for row in rows]


def test_without_keys_every_filter_is_granted_with_its_qos() -> None:
    scene = Scene()
    scene.connect()
    assert granted(scene, ("a", 0), ("b/+", 0x29), ("#", 2)) == [0, 1, 2]


def test_a_key_subscribes_only_to_its_filters(tmp_path: Path) -> None:
    add_key(tmp_path / "keys", "boiler", key=SECRET, allow=["sub:a/#"])
    scene = Scene({"auth": {"keys_file": str(tmp_path / "keys")}})
    scene.connect(password=SECRET)
    assert granted(scene, ("a/b", 0), ("b", 0), ("a/+", 1), ("#", 1), ("$share/g/b", 0)) == [0, 0x87, 1, 0x87, 0x87]
    refused = [(line["what"], line["code"], line["filter"]) for line in scene.logged("refused")]
    assert refused == [("subscribe", "0x87", filter_) for filter_ in ("b", "#", "$share/g/b")]


def test_a_connection_has_a_limit_of_subscriptions() -> None:
    scene = Scene({"limits": {"max_subscriptions_per_connection": 2}})
    scene.connect()
    assert granted(scene, ("a", 0), ("b", 0), ("c", 0), ("a", 0)) == [0, 0, QUOTA, 0]
    scene.rules.unsubscribed(Unsubscribed(1, "a", "", False))
    assert granted(scene, ("c", 0), ("a", 0)) == [0, QUOTA]


def test_while_memory_is_short_no_filter_is_granted() -> None:
    scene = Scene()
    scene.connect()
    scene.memory_is_short = True
    assert granted(scene, ("a", 0)) == [QUOTA]


def test_a_subscribe_of_a_connection_that_is_closing_gets_no_answer() -> None:
    scene = Scene()
    scene.connect()
    scene.connect(2)  # takes the first one over
    scene.core.commands.clear()
    scene.mqtt.subscribe(MqttSubscribe(1, 7, 0, (("a", 0),)))
    assert scene.core.commands == []
