"""The tools of `make conformance`: what counts as the same packet, which exceptions are accepted, how settings are translated."""

from __future__ import annotations

import base64
import hashlib
import struct
from pathlib import Path

import pytest
from conformance import adapter, exceptions, runner
from conformance.meaning import alike, alike_begun, is_refusal, packets
from mqtt_packets import ack, ending, packet, properties, publish

from blipmq.auth.keys import read_keyring
from blipmq.config.reader import load

HERE = Path(__file__).parent / "conformance"


def connack(values, flags=0, reason=0):
    return packet(0x20, bytes([flags, reason]) + properties(values))


MOSQUITTO = {"topic_alias_maximum": 10, "receive_maximum": 20}


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (
            publish(values={"payload_format": 1, "response_topic": "r"}),
            publish(values={"response_topic": "r", "payload_format": 1}),
        ),
        (ack(0x40, 7), ack(0x40, 7, 0, {})),
        (ending(0xE0, 0x8E, {"reason_string": "taken over"}), ending(0xE0, 0x8E)),
        (connack({"receive_maximum": 256, "maximum_packet_bytes": 1 << 20}), connack(MOSQUITTO)),
        (connack({"topic_alias_maximum": 10, "retain_available": 1}), connack(MOSQUITTO)),
        (connack({"server_keep_alive_s": 60}), connack({**MOSQUITTO, "server_keep_alive_s": 60})),
    ],
)
def test_one_meaning_in_two_encodings_is_alike(received: bytes, expected: bytes) -> None:
    assert received != expected
    assert alike(received, expected, 5)
    assert not alike(received, expected, 4), "MQTT 3.1.1 has one encoding for each meaning"


@pytest.mark.parametrize(
    ("received", "expected"),
    [
        (publish(payload=b"1", values={}), publish(payload=b"2", values={})),
        (publish(first=0x31, values={}), publish(values={})),
        (publish(packet_id=1, first=0x32, values={}), publish(packet_id=2, first=0x32, values={})),
        (publish(values={"user": [("a", "1"), ("b", "2")]}), publish(values={"user": [("b", "2"), ("a", "1")]})),
        (publish(values={"content_type": "a"}), publish(values={})),
        (publish(values={}), publish(values={"content_type": "a"})),
        (ack(0x40, 7, 0x10, {}), ack(0x40, 7)),
        (ending(0xE0, 0x81), ending(0xE0, 0x82)),
        (ending(0xE0, 0x81, {}), ending(0xE0, 0x81, {"reason_string": "why"})),
        (connack({}, flags=1), connack({})),
        (connack({"retain_available": 0}), connack({})),
        (connack({"maximum_qos": 1}), connack({})),
        (connack({"receive_maximum": 256}), connack({"receive_maximum": 1})),
        (connack({"session_expiry_s": 5}), connack({})),
        (b"", publish(values={})),
        (publish(values={}), ack(0x40, 7)),
    ],
)
def test_packets_that_a_client_must_treat_differently_are_not_alike(received: bytes, expected: bytes) -> None:
    assert not alike(received, expected, 5)


def test_packets_are_separated_only_if_they_are_whole() -> None:
    one, two = publish(payload=b"x" * 200, values={}), ack(0x40, 1)
    assert packets(one + two) == [one, two]
    assert packets(one + two[:-1]) is None
    assert packets(b"") == []


def test_an_assigned_client_id_may_be_any_but_not_missing() -> None:
    expected = connack({**MOSQUITTO, "assigned_client_id": "auto-" + "x" * 20})[:-15]
    assert alike_begun(connack({"assigned_client_id": "another", "receive_maximum": 9}), expected)
    assert not alike_begun(connack({"receive_maximum": 9}), expected)
    assert not alike_begun(connack({"assigned_client_id": "another"}, reason=0x85), expected)


def test_an_error_code_may_come_before_the_end_of_a_connection() -> None:
    assert is_refusal(ending(0xE0, 0x81)) and is_refusal(connack({}, reason=0x87))
    assert not is_refusal(ending(0xE0, 0)) and not is_refusal(connack({})) and not is_refusal(b"")
    assert not is_refusal(publish(values={}))


# ---- verdicts --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "passed", "unused", "verdict", "wrong"),
    [
        ("plain", True, [], runner.PASSED, False),
        ("plain", False, [], runner.FAILED, True),
        ("plain", True, ["{}"], runner.PASSED, True),
        ("known", False, [], runner.EXCEPTED, False),
        ("known", True, [], runner.PASSED, True),
        ("later", True, [], runner.PENDING, False),
        ("later", False, [], runner.PENDING, False),
    ],
)
def test_an_exception_that_is_not_needed_is_an_error(
    name: str, passed: bool, unused: list[str], verdict: str, wrong: bool
) -> None:
    known = exceptions.Exceptions({"known": exceptions.Script("3.1", "a reason")}, pending={"later": "a feature"})
    result = runner.judged(name, passed, unused, "exit status 1", 0.1, "", known)
    assert (result.verdict, result.wrong) == (verdict, wrong)


@pytest.mark.parametrize(
    "text",
    [
        '[[exception]]\nscripts = ["a"]\nsection = ""\nreason = "r"',
        '[[exception]]\nscripts = ["a"]\nsection = "3"\nreason = ""',
        '[[exception]]\nscripts = ["missing"]\nsection = "3"\nreason = "r"',
        '[[exception]]\nscripts = ["a", "a"]\nsection = "3"\nreason = "r"',
        '[[difference]]\nscript = "a"\npacket = "p"\nexpected = "00"\nreceived = "00"\nsection = ""\nreason = "r"',
    ],
)
def test_an_exception_needs_a_script_a_section_and_a_reason(text: str, tmp_path: Path) -> None:
    path = tmp_path / "exceptions.toml"
    path.write_text(text)
    with pytest.raises(ValueError):
        exceptions.load(path, {"a"})


# ---- the adapter -----------------------------------------------------------------------------------------------------


def test_settings_of_mosquitto_become_a_valid_configuration(tmp_path: Path) -> None:
    salt = b"salt"
    stored = base64.b64encode(hashlib.sha512(b"secret" + salt).digest()).decode()
    (tmp_path / "users").write_text(f"boiler:$6${base64.b64encode(salt).decode()}${stored}\nbad:$6$\n\n#comment\n")
    text = "per_listener_settings false\nlistener 1884\nmax_keepalive 60\npassword_file users\n"
    translation = adapter.translate(text, ["other", "secret"], tmp_path)
    assert translation.keys == {"boiler": "secret"}
    config = load(adapter.write(translation, tmp_path, tmp_path), {}).config
    assert config.mqtt.bind_addr == "127.0.0.1:1884"
    assert config.mqtt.max_keepalive_s == 60
    key = read_keyring(config.auth.keys_file).find(b"secret")
    assert key is not None and key.name == "boiler"
    assert read_keyring(config.auth.keys_file).find(b"other") is None


def test_a_listener_that_names_nobody_lets_nobody_in(tmp_path: Path) -> None:
    closed = adapter.translate("listener 1884\n", [], tmp_path)
    config = load(adapter.write(closed, tmp_path, tmp_path), {}).config
    assert config.auth.required and len(read_keyring(config.auth.keys_file)) == 0
    assert adapter.translate("listener 1884\nallow_anonymous true\n", [], tmp_path).keys is None


@pytest.mark.parametrize(
    "line", ["connection bridge", "acl_file rights", "listener 1885", "max_queued_bytes 5", "upgrade_outgoing_qos true"]
)
def test_a_setting_that_blipmq_lacks_is_refused(line: str, tmp_path: Path) -> None:
    with pytest.raises(adapter.NotSupportedError):
        adapter.translate(f"listener 1884\nallow_anonymous true\n{line}\n", [], tmp_path)


def test_the_version_of_a_connect_is_found_behind_its_protocol_name() -> None:
    from conformance.script import level

    for name, version in ((b"MQIsdp", 3), (b"MQTT", 4), (b"MQTT", 5), (b"MQTT", 0x84)):
        body = struct.pack(">H", len(name)) + name + bytes([version, 2, 0, 60]) + b"\0\4MQTT"
        assert level(packet(0x10, body)) == version & 0x7F
