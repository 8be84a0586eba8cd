"""`blipmq check --convert` with a mosquitto.conf."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from broker_process import broker_command, environment
from hypothesis import given, settings
from hypothesis import strategies as st

from blipmq.config import reader as config_reader
from blipmq.config.convert import Converted, convert
from blipmq.config.convert_mosquitto import DEFAULT_ADDR, KEYS_FILE, KNOWN, is_mosquitto, read_mosquitto
from blipmq.config.settings import KEYS, Config, value_of
from blipmq.errors import ConfigError

SITE = """\
# Site broker
listener 1883 192.168.1.5
allow_anonymous false
password_file /etc/mosquitto/passwd
acl_file /etc/mosquitto/acl

persistence true
persistence_location /var/lib/mosquitto/
max_inflight_messages 20
max_queued_messages 0
message_size_limit 65536
max_keepalive 300
log_dest syslog
log_type warning
log_type notice

listener 8883
certfile /etc/mosquitto/certs/server.crt
keyfile /etc/mosquitto/certs/server.key
cafile /etc/mosquitto/ca.crt
require_certificate true
use_identity_as_username true

listener 9001
protocol websockets

connection cloud
address cloud.example:8883
topic site/# out 1
remote_password very-secret-text
"""


def converted(text: str) -> Converted:
    assert is_mosquitto(text)
    return convert(text, "mosquitto.conf", read_mosquitto)


def loaded(made: Converted) -> Config:
    return config_reader.load_texts([("new.toml", made.text)], {}).config


def said(made: Converted, old: str) -> str:
    (fate,) = [fate for fate in made.fates if fate.old == old]
    return fate.said


def test_the_configuration_of_a_site_is_converted_and_every_line_is_reported() -> None:
    made = converted(SITE)
    config = loaded(made)
    expected = {
        "mqtt.bind_addr": "192.168.1.5:1883",
        "mqtt.tls_bind_addr": "0.0.0.0:8883",
        "mqtt.max_keepalive_s": 300,
        "tls.cert_file": "/etc/mosquitto/certs/server.crt",
        "tls.key_file": "/etc/mosquitto/certs/server.key",
        "tls.client_ca_file": "/etc/mosquitto/ca.crt",
        "tls.require_client_cert": True,
        "auth.keys_file": KEYS_FILE,
        "auth.allow_anonymous": False,
        "qos1.max_in_flight": 20,
        "queues.subscriber_capacity": KEYS["queues.subscriber_capacity"].high,
        "server.max_message_size_bytes": 65536,
        "logging.level": "info",
    }
    assert {path: value_of(config, path) for path in expected} == expected
    numbers = {n for n, line in enumerate(SITE.splitlines(), 1) if line and not line.startswith("#")}
    assert {fate.line for fate in made.fates if fate.line} == numbers
    assert "very-secret-text" not in made.text + repr(made.fates)


@pytest.mark.parametrize(
    ("old", "words"),
    [
        ("password_file /etc/mosquitto/passwd", "replaced by auth.keys_file: its passwords cannot be converted"),
        ("acl_file /etc/mosquitto/acl", "left out: rights belong to keys: `blipmq keys add USER --allow"),
        ("allow_anonymous false", "kept: every client needs a key"),
        ("persistence true", "no effect: a QoS 1 message is on disk"),
        ("max_queued_messages 0", "renamed to queues.subscriber_capacity, as 100000000: 0 was no limit"),
        (
            "use_identity_as_username true",
            "left out: give the certificate to a key: `blipmq keys add NAME --certificate",
        ),
        ("listener 9001", "left out: MQTT over WebSocket is not served yet"),
        ("protocol websockets", "left out: its listener is left out"),
        ("connection cloud", "left out: bridges are not converted"),
        ("topic site/# out 1", "left out: bridges are not converted"),
        ("remote_password (not shown)", "left out: bridges are not converted"),
        ("log_type notice", "kept: logging.level has the lowest of them"),
    ],
)
def test_the_report_says_what_to_do(old: str, words: str) -> None:
    assert said(converted(SITE), old).startswith(words)


@pytest.mark.parametrize(
    ("text", "addr", "anonymous", "keys"),
    [
        ("max_keepalive 60\n", DEFAULT_ADDR, False, ""),
        ("allow_anonymous true\n", DEFAULT_ADDR, True, ""),
        ("listener 1883\n", "0.0.0.0:1883", False, KEYS_FILE),
        ("listener 1883\nallow_anonymous true\n", "0.0.0.0:1883", True, ""),
        ("listener 1883\nallow_anonymous true\npassword_file p\n", "0.0.0.0:1883", False, KEYS_FILE),
        ("listener 1883 localhost\nallow_anonymous true\nallow_anonymous false\n", "localhost:1883", False, KEYS_FILE),
        (
            "per_listener_settings true\nlistener 1 localhost\nallow_anonymous true\nlistener 2\n",
            "localhost:1",
            False,
            KEYS_FILE,
        ),
        ("port 1884\nbind_address ::1\n", "[::1]:1884", False, KEYS_FILE),
        ("plugin /usr/lib/dynsec.so\nlistener 1883\nallow_anonymous true\n", "0.0.0.0:1883", False, KEYS_FILE),
        ("listener 1883\nlistener 1884\n", "0.0.0.0:1883", False, KEYS_FILE),
        ("listener 0 /run/mosquitto.sock\n", "", False, KEYS_FILE),
    ],
)
def test_the_converted_broker_is_not_more_open_than_before(text: str, addr: str, anonymous: bool, keys: str) -> None:
    config = loaded(converted(text))
    assert (config.mqtt.bind_addr, config.auth.allow_anonymous, config.auth.keys_file) == (addr, anonymous, keys)


def test_a_certificate_is_required_only_where_mosquitto_required_it() -> None:
    tls = "listener 8883\ncertfile c.pem\nkeyfile k.pem\ncafile ca.pem\n"
    config = loaded(converted(tls))
    assert (config.tls.client_ca_file, config.tls.require_client_cert) == ("", False)
    config = loaded(converted(tls + "require_certificate true\ntls_version tlsv1.3\n"))
    assert (config.tls.client_ca_file, config.tls.require_client_cert, config.tls.min_version) == (
        "ca.pem",
        True,
        "1.3",
    )


@pytest.mark.parametrize("text", ["", "# nothing\n", "[server]\nport = 1\n", "listener = 1883\n", "hello world\n"])
def test_other_files_are_not_taken_for_one_of_mosquitto(text: str) -> None:
    assert not is_mosquitto(text)


def test_a_file_without_settings_is_refused() -> None:
    with pytest.raises(ConfigError, match="no settings"):
        convert("# nothing\n", "mosquitto.conf", read_mosquitto)


WORDS = sorted({*KNOWN, "connection", "topic", "remote_username", "unknown_word", "auth_opt_x"})
VALUES = st.one_of(
    st.sampled_from(["", "true", "false", "0", "-1", "1883", "8883 localhost", "1883 ::", "0 /run/s", "websockets"]),
    st.integers(-(2**40), 2**60).map(str),
    st.text(st.characters(codec="utf-8", exclude_characters="\r\n\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"), max_size=12),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(WORDS), VALUES), min_size=1, max_size=14))
def test_any_file_converts_to_a_valid_one_and_every_line_is_reported(rows: list[tuple[str, str]]) -> None:
    made = convert("".join(f"{word} {value}\n" for word, value in rows), "mosquitto.conf", read_mosquitto)
    config: Any = loaded(made)
    assert {fate.line for fate in made.fates if fate.line} == set(range(1, len(rows) + 1))
    listens = any(word in ("listener", "port") for word, _ in rows)
    if listens and ("allow_anonymous", "true") not in rows:
        assert not config.auth.allow_anonymous
    words = [word for word, _ in rows]
    if "password_file" in words[: words.index("connection") if "connection" in words else None]:
        assert config.auth.required


def test_the_command_recognizes_the_file(tmp_path: Path) -> None:
    (tmp_path / "mosquitto.conf").write_text("listener 1883 localhost\nallow_anonymous true\n")
    done = subprocess.run(
        [*broker_command(), "check", "--convert", "mosquitto.conf", "--output", "new.toml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=60,
    )
    assert (
        done.returncode == 0 and "mosquitto.conf:1: listener 1883 localhost: renamed to mqtt.bind_addr" in done.stderr
    )
    checked = subprocess.run(
        [*broker_command(), "check", "--config", "new.toml"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=60,
    )
    assert checked.returncode == 0 and "bind_addr = localhost:1883" in checked.stdout.replace('"', "")
