"""Certificates of clients as identities: the key of the key file that a certificate stands for, and its end."""

import contextlib
import json
import os
import subprocess

import pytest
from broker_process import TIMEOUT_S, broker_command, environment
from certificates import Authority
from hand_client import HELLO, PUB, SUB, HelloClient, command
from test_tls import TlsBroker, ask, read_frame, read_to_end

from blipmq.auth.keys import add_key, list_keys, read_keyring, revoke_key, rotate_key
from blipmq.errors import ConfigError, UsageError

SENSOR = "sensor-12"


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def keys(tmp_path):
    return tmp_path / "keys"


@pytest.fixture
def start(tmp_path, authority, keys):
    with contextlib.ExitStack() as stack:

        def begin(**settings):
            ours = {"auth.keys_file": str(keys), "tls.client_ca_file": str(authority.file)}
            broker = TlsBroker(tmp_path, authority, {**ours, **settings})
            stack.callback(broker.kill)
            return broker.get_ready()

        yield begin


def dial(broker, authority, name):
    """A client that shows a certificate with this name; "": none."""
    context = broker.context()
    if name:
        context.load_cert_chain(*authority.sign(name))
    return broker.dial(context)


def hello(client, api_key=b"", client_id="c"):
    return ask(client, command(HELLO, seq=1, protocol=1, client_id=client_id, api_key=api_key or None))


def test_a_certificate_stands_for_its_key_and_has_its_rights(start, authority, keys):
    add_key(keys, "boiler", ["pub:site/1/temp"], certificate=SENSOR)
    broker = start()
    with dial(broker, authority, SENSOR) as client:
        assert hello(client, client_id="gateway").code == 0
        assert broker.wait_for("hello", client="gateway")["key"] == "boiler"
        assert ask(client, command(PUB, "site/1/temp", b"x", qos=1, seq=2)).code == 0
        assert ask(client, command(PUB, "site/2/temp", b"x", seq=3)).code == 403
        assert ask(client, command(SUB, "site/#", seq=4)).code == 403
    broker.stop()


def test_only_a_verified_certificate_of_that_name_without_a_key_is_the_key(start, authority, keys):
    text = add_key(keys, "boiler", certificate=SENSOR)
    broker = start()
    for name, api_key, code in (
        ("another", b"", 401),
        ("", b"", 401),
        (SENSOR, b"a-key-that-is-not-valid", 401),
        (SENSOR, b"", 0),
        ("another", text.encode(), 0),
        ("", text.encode(), 0),
    ):
        with dial(broker, authority, name) as client:
            assert hello(client, api_key).code == code, (name, api_key)
    with HelloClient(broker.address) as client:
        assert client.greeting.code == 401, "an unencrypted client shows no certificate"
    broker.stop()


def test_revoking_the_key_ends_the_connections_of_its_certificate(start, authority, keys):
    add_key(keys, "boiler", certificate=SENSOR)
    add_key(keys, "other", certificate="other")
    broker = start()
    with dial(broker, authority, SENSOR) as gone, dial(broker, authority, "other") as stays:
        assert hello(gone, client_id="a").code == hello(stays, client_id="b").code == 0
        revoke_key(keys, "boiler")
        assert read_frame(gone).code == 401
        assert read_to_end(gone) == b""
        assert ask(stays, command(SUB, "t", seq=2)).code == 0
        with dial(broker, authority, SENSOR) as again:
            assert hello(again).code == 401
    broker.stop()


def change(keys, name, field, value):
    """Change one field of a key in its file; None removes it."""
    lines = []
    for line in keys.read_text().splitlines():
        if line.startswith("{") and json.loads(line).get("name") == name:
            record = {**json.loads(line), field: value}
            line = json.dumps({key: value for key, value in record.items() if value is not None})
        lines.append(line)
    fresh = keys.with_suffix(".new")
    fresh.write_text("\n".join(lines) + "\n")
    os.replace(fresh, keys)


@pytest.mark.parametrize("now", [None, "sensor-13"])
def test_another_certificate_for_a_key_ends_only_connections_by_certificate(start, authority, keys, now):
    text = add_key(keys, "boiler", certificate=SENSOR)
    broker = start()
    with dial(broker, authority, SENSOR) as by_certificate, dial(broker, authority, "") as by_text:
        assert hello(by_certificate, client_id="a").code == 0
        assert hello(by_text, text.encode(), client_id="b").code == 0
        change(keys, "boiler", "certificate", now)
        assert read_frame(by_certificate).code == 401
        assert ask(by_text, command(SUB, "t", seq=2)).code == 0
    broker.stop()


def test_after_a_rotation_the_certificate_is_the_new_key(start, authority, keys):
    add_key(keys, "boiler", ["pub:t"], certificate=SENSOR)
    broker = start()
    with dial(broker, authority, SENSOR) as client:
        assert hello(client).code == 0
        rotate_key(keys, "boiler", 0)
        assert read_frame(client).code == 401
    with dial(broker, authority, SENSOR) as client:
        assert hello(client).code == 0
        assert ask(client, command(PUB, "t", b"x", qos=1, seq=2)).code == 0
    assert [key.certificate for key in list_keys(keys) if not key.until] == [SENSOR]
    broker.stop()


def test_the_key_file_has_each_certificate_for_one_key(keys):
    add_key(keys, "boiler", certificate=SENSOR)
    with pytest.raises(Exception, match="already belongs to the key 'boiler'"):
        add_key(keys, "second", certificate=SENSOR)
    add_key(keys, "second", certificate="sensor-13")
    ring = read_keyring(keys)
    assert ring.find_certificate(SENSOR).name == "boiler" and ring.find_certificate("sensor-13").name == "second"
    assert ring.find_certificate("") is None and ring.find_certificate("sensor-1") is None
    change(keys, "second", "certificate", SENSOR)
    with pytest.raises(ConfigError, match="already belongs to another key"):
        read_keyring(keys)


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 201, 7, None])
def test_a_name_that_no_certificate_can_have_is_refused(keys, name):
    if name is not None:
        with pytest.raises(UsageError, match="name of a certificate"):
            add_key(keys, "boiler", certificate=name)
    add_key(keys, "boiler")
    text = keys.read_text().replace('"name": "boiler"', f'"name": "boiler", "certificate": {json.dumps(name)}')
    keys.write_text(text)
    with pytest.raises(ConfigError, match="name of a certificate"):
        read_keyring(keys)


def run_server(*arguments):
    command_ = [*broker_command(), *arguments]
    return subprocess.run(command_, capture_output=True, text=True, env=environment(), timeout=TIMEOUT_S)


def test_the_command_adds_and_lists_certificates(keys):
    done = run_server("keys", "add", "boiler", "--certificate", SENSOR, "--file", str(keys))
    assert done.returncode == 0 and f"with the certificate '{SENSOR}'" in done.stderr
    assert f"(certificate {SENSOR})" in run_server("keys", "list", "--file", str(keys)).stdout
    listed = run_server("keys", "list", "--format", "json", "--file", str(keys)).stdout
    assert json.loads(listed)["certificate"] == SENSOR
