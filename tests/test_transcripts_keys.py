"""Transcripts of keys and ACLs: admission, permissions, and the time until a change reaches open connections.

Each test is one sentence about a broker in a separate process, whose keys are created with `blipmq keys`.
"""

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
from pathlib import Path

import pytest
from broker_process import broker_command, cli_command, environment, run_cli, until
from hand_client import ACK, HELLO, INFO, PING, PUB, SUB, UNSUB, HelloClient, LegacyClient, Reply, SubAck, command

from blipmq import connect_blocking

pytestmark = pytest.mark.blackbox

PLAIN = "a-plain-key-of-the-configuration"
UNKNOWN = (401, "no API key was sent, or the broker does not know it")


def blipmq(*arguments, cwd=None, **variables):
    return subprocess.run(
        [*broker_command(), *arguments], capture_output=True, timeout=60, cwd=cwd, env=environment(**variables)
    )


class KeyedBroker:
    """A broker with a key file, and the command that changes it."""

    def __init__(self, start_broker, path, **settings):
        self.path = path
        self.keys = {}
        self._start, self._settings = start_broker, {"auth.keys_file": str(path), **settings}

    def start(self, after=None):
        self.broker = self._start(self._settings, after)
        self.broker.api_key = self.keys.get("admin")
        return self

    def add(self, name, *allow):
        """Create a key, and wait until the broker, if running, has loaded it."""
        rights = [word for right in allow for word in ("--allow", right)]
        result = blipmq("keys", "add", name, *rights, "--file", str(self.path))
        assert result.returncode == 0, result
        self.keys[name] = result.stdout.decode().strip()
        if hasattr(self, "broker"):
            until(lambda: self.try_key(self.keys[name])[0] == 0, f"the broker knows the key {name}")
        return self.keys[name]

    def revoke(self, name):
        assert blipmq("keys", "revoke", name, "--file", str(self.path)).returncode == 0

    def try_key(self, key):
        """The answer to HELLO with this key: code and text."""
        with LegacyClient(self.broker.address) as client:
            client.send(command(HELLO, api_key=key, protocol=1, seq=1))
            answer = client.next()
            return answer.code, answer.message

    def enter(self, name, client_id=None):
        client = HelloClient(self.broker.address, client_id, api_key=self.keys[name])
        assert client.greeting.code == 0, client.greeting
        return client


@pytest.fixture
def keyed(start_broker, tmp_path):
    keyed = KeyedBroker(start_broker, tmp_path / "keys")
    keyed.add("admin")
    return keyed


@pytest.fixture
def entered():
    """Clients that are closed after the test."""
    clients = []

    def keep(client):
        clients.append(client)
        return client

    yield keep
    for client in clients:
        client.close()


def drained(client):
    """All remaining data from the broker until it closes."""
    frames = []
    while (frame := client.next()) is not None:
        frames.append(frame)
    return frames


# ---- admission ----


def test_every_invalid_key_gets_the_same_refusal(keyed):
    revoked = keyed.add("revoked")
    keyed.revoke("revoked")
    keyed.start()
    good = keyed.keys["admin"]
    wrongs = [None, "", "wrong", revoked, good[:-1], good + "x", "x" * 900, "#", "*", "..", good + "\0", b"\xff\xfe\0"]
    assert [keyed.try_key(wrong) for wrong in wrongs] == [UNKNOWN] * len(wrongs)
    assert keyed.try_key(good)[0] == 0
    lines = until(
        lambda: keyed.broker.lines("refused")[len(wrongs) - 1 :] and keyed.broker.lines("refused"), "all are logged"
    )
    assert len(lines) == len(wrongs)
    assert {(line["code"], line["reason"]) for line in lines} == {("401", UNKNOWN[1])}


def test_after_the_refusal_of_a_key_the_connection_ends(keyed):
    keyed.start()
    with LegacyClient(keyed.broker.address) as client:
        client.send(command(HELLO, api_key="wrong", protocol=1, seq=3), command(PUB, "a", b"x"), command(PING, seq=4))
        assert client.next() == Reply(3, 401, UNKNOWN[1], 0, b"") and client.is_closed()
    assert keyed.broker.info()["messages"]["published"] == 0


@pytest.mark.parametrize("action", [PUB, SUB, UNSUB, ACK, PING, INFO])
def test_no_command_before_hello_has_any_effect(keyed, entered, action):
    keyed.start()
    watcher = entered(keyed.enter("admin")).subscribe("a")
    with LegacyClient(keyed.broker.address) as client:
        client.send(command(action, "a", b"x", seq=1))
        assert client.is_closed()
    watcher.send(command(PUB, "a", b"mine"))
    assert watcher.next().payload == b"mine"
    info = keyed.broker.info()
    assert (info["messages"]["published"], info["subscriptions_total"]) == (1, 1)


@pytest.mark.parametrize("field", ["client_id", "api_key"])
@pytest.mark.parametrize("value", ["#", "*", "..", "../../etc/passwd", "a\0b", "\0", "\x1f", "admin\x1fx", "x" * 65536])
def test_unusual_client_ids_and_keys_are_handled_safely(keyed, entered, field, value):
    keyed.start()
    durable = entered(keyed.enter("admin", "x"))
    assert durable.ask(SUB, "a", qos=1, durable=True).code == 0
    with LegacyClient(keyed.broker.address) as client:
        fields = {"api_key": keyed.keys["admin"], field: value}
        hello = command(HELLO, protocol=1, seq=1, **fields)
        if len(hello) > 1024:  # refused from its length, before all of it has been sent
            with contextlib.suppress(ConnectionError):
                client.send(hello)
            assert client.is_closed()
        else:
            client.send(hello)
            answer = client.next()
            if field == "api_key":
                assert (answer.code, answer.message) == UNKNOWN and client.is_closed()
            elif not value.isprintable():
                assert (answer.code, answer.message) == (400, "the client_id contains control characters")
            else:
                assert answer.code == 0
    assert durable.is_open(), "nobody has taken it over"
    assert sorted(os.listdir(keyed.broker.config.parent)) == ["blipmq.toml", "data"]


def test_without_any_key_no_client_is_admitted_until_one_is_created(start_broker, tmp_path):
    for name, text in (("missing", None), ("empty", "")):
        path = tmp_path / name
        if text is not None:
            path.write_text(text)
        keyed = KeyedBroker(start_broker, path).start()
        assert [keyed.try_key(key) for key in (None, "", "x")] == [UNKNOWN] * 3
        with LegacyClient(keyed.broker.address) as client:
            client.send(command(SUB, "a"))
            assert client.is_closed()
        keyed.add("first")
        with keyed.enter("first") as client:
            assert client.info()["state"] == "ok"


@pytest.mark.parametrize("how", ["broken", "a folder", "more rights than there are"])
def test_an_unreadable_key_file_admits_no_client(start_broker, tmp_path, how):
    path = tmp_path / "keys"
    keyed = KeyedBroker(start_broker, path)
    key = keyed.add("admin")
    if how == "broken":
        path.write_text(path.read_text()[:-5])
    elif how == "a folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_text(path.read_text().replace('"created"', '"rank": "admin", "created"'))
    keyed.start()
    assert keyed.try_key(key) == UNKNOWN
    assert keyed.broker.wait_for("keys_failed")["hint"] == "every client is refused until the file is correct"


def test_plain_keys_of_the_configuration_are_accepted(start_broker):
    broker = start_broker({"auth.api_keys": [PLAIN]})
    with HelloClient(broker.address, api_key=PLAIN) as client:
        assert client.greeting.code == 0
    with HelloClient(broker.address, api_key="other") as client:
        assert (client.greeting.code, client.greeting.message) == UNKNOWN
    broker.wait_for("hello", key="auth.api_keys[0]")


def test_a_world_readable_configuration_with_keys_is_warned_of(start_broker):
    broker = start_broker({"auth.api_keys": [PLAIN]})
    assert "every user of this machine can read it" in broker.wait_for("unwise")["what"]
    broker.config.chmod(0o600)
    checked = blipmq("check", "--config", str(broker.config))
    assert (checked.returncode, checked.stderr) == (0, b"")


def test_a_variable_may_name_a_file_with_keys(start_broker, tmp_path):
    (tmp_path / "secret").write_text(f"{PLAIN}\nanother-plain-key\n")
    broker = start_broker({}, BLIPMQ_AUTH__API_KEYS_FILE=str(tmp_path / "secret"))
    for key in (PLAIN, "another-plain-key"):
        with HelloClient(broker.address, api_key=key) as client:
            assert client.greeting.code == 0
    with HelloClient(broker.address) as client:
        assert client.greeting.code == 401


@pytest.mark.parametrize("text", ["", "\n", " , "])
def test_a_file_of_keys_without_a_key_does_not_open_the_broker(tmp_path, text):
    (tmp_path / "secret").write_text(text)
    result = blipmq("check", cwd=tmp_path, BLIPMQ_AUTH__API_KEYS_FILE=str(tmp_path / "secret"))
    assert result.returncode == 78 and b"BLIPMQ_AUTH__API_KEYS_FILE" in result.stderr


def test_a_non_loopback_address_needs_keys(tmp_path):
    asked = {"BLIPMQ_SERVER__BIND_ADDR": "0.0.0.0:7878"}
    refused = blipmq("check", cwd=tmp_path, **asked)
    assert refused.returncode == 78 and b"blipmq keys add NAME" in refused.stderr
    assert blipmq("check", cwd=tmp_path, **asked, BLIPMQ_AUTH__KEYS_FILE="keys").returncode == 0
    assert blipmq("check", cwd=tmp_path, **asked, BLIPMQ_AUTH__API_KEYS=PLAIN).returncode == 0
    both = blipmq("check", cwd=tmp_path, BLIPMQ_AUTH__API_KEYS=PLAIN, BLIPMQ_AUTH__ALLOW_ANONYMOUS="true")
    assert both.returncode == 78 and b"auth.allow_anonymous" in both.stderr


# ---- permissions ----


def test_a_key_with_an_acl_may_do_only_what_the_acl_allows(keyed, entered):
    keyed.add("sensor", "pub:site/1/temp", "sub:site/1/#")
    keyed.start()
    watcher = entered(keyed.enter("admin")).subscribe("#")
    sensor = entered(keyed.enter("sensor"))
    assert sensor.ask(SUB, "site/1/cmd") == SubAck("site/1/cmd", "subscribed", sensor.seq)
    for filter_ in ("site/2/cmd", "site/+/cmd", "#", "site.>", "$dlq/#"):
        answer = sensor.ask(SUB, filter_)
        assert (answer.code, answer.message) == (403, f"this key may not subscribe to {filter_}")
    sensor.send(command(PUB, "site/1/temp", b"21"), command(PUB, "site/1/keyed", b"open"))
    assert sensor.next() == Reply(0, 403, "this key may not publish to this topic", 0, b"")
    assert sensor.ask(PUB, "site/2/temp", b"1", qos=1).code == 403
    assert sensor.ask(PUB, "site/1/temp", b"22", qos=1).code == 0
    assert [watcher.next().payload for _ in range(2)] == [b"21", b"22"]
    assert sensor.is_open()


def test_publish_and_subscribe_permissions_are_independent(keyed, entered):
    keyed.add("writer", "pub:a")
    keyed.add("reader", "sub:a")
    keyed.start()
    writer, reader = entered(keyed.enter("writer")), entered(keyed.enter("reader"))
    assert writer.ask(SUB, "a").code == 403
    reader.subscribe("a")
    assert reader.ask(PUB, "a", b"x", qos=1).code == 403
    writer.publish("a", b"mine")
    assert reader.next().payload == b"mine"


def test_client_ids_of_different_keys_are_separate(keyed, entered):
    keyed.add("thief")
    keyed.start()
    mine = entered(keyed.enter("admin", "gauge"))
    assert mine.ask(SUB, "a", qos=1, durable=True).code == 0
    thief = entered(keyed.enter("thief", "gauge"))
    assert mine.is_open(), "another key has not taken it over"
    assert thief.ask(UNSUB, "a").code == 404, "nor can it end its subscription"
    mine.close()
    publisher = entered(keyed.enter("admin"))
    assert publisher.ask(PUB, "a", b"secret", qos=1).code == 0
    assert thief.ask(SUB, "a", qos=1, durable=True).code == 0
    assert publisher.ask(PUB, "a", b"later", qos=1).code == 0
    assert thief.next().payload == b"later", "what was collected for the other key stays there"
    again = entered(keyed.enter("admin", "gauge"))
    assert again.ask(SUB, "a", qos=1, durable=True).code == 0
    assert [again.next().payload for _ in range(2)] == [b"secret", b"later"]
    newer = entered(keyed.enter("admin", "gauge"))
    assert again.next().code == 409 and again.is_closed() and newer.is_open()


def test_durable_subscriptions_belong_to_their_key_after_a_restart(keyed):
    keyed.add("other")
    keyed.start()
    with keyed.enter("admin", "gauge") as mine:
        assert mine.ask(SUB, "a", qos=1, durable=True).code == 0
    with keyed.enter("other", "gauge") as other:
        assert other.ask(PUB, "a", b"kept", qos=1).code == 0
    keyed.broker.stop()
    keyed.start(after=keyed.broker)
    with keyed.enter("other", "gauge") as other:
        assert other.ask(UNSUB, "a").code == 404
    with keyed.enter("admin", "gauge") as mine:
        assert mine.ask(SUB, "a", qos=1, durable=True).code == 0
        assert mine.next().payload == b"kept"
        assert mine.ask(UNSUB, "a").code == 0
    keyed.broker.stop()
    log = keyed.broker.config.parent / "data" / "wal"
    records = [json.loads(line) for line in blipmq("wal", "export", "--directory", str(log)).stdout.splitlines()]
    (made,) = [record for record in records if record["type"] == "subscribe"]
    assert (made["key"], made["client_id"], made["filter"]) == ("admin", "gauge", "a")


def test_info_shows_a_key_with_an_acl_only_its_own_subscribers(keyed, entered):
    keyed.add("limited", "sub:a")
    keyed.start()
    entered(keyed.enter("admin", "one")).subscribe("b")
    limited = entered(keyed.enter("limited", "two")).subscribe("a")
    shown = [(row["client"], row["key"]) for row in limited.info()["subscriptions"]]
    assert shown == [("two", "limited")]
    everything = {row["client"]: row["key"] for row in keyed.broker.info()["subscriptions"]}
    assert everything == {"one": "admin", "two": "limited"}


# ---- changes reach open connections ----


def test_revoking_a_key_closes_only_its_connections(keyed, entered):
    keyed.add("gone")
    keyed.start()
    stays = entered(keyed.enter("admin", "stays")).subscribe("a")
    plain, durable, member = (entered(keyed.enter("gone", name)) for name in ("plain", "durable", "member"))
    plain.subscribe("a")
    assert durable.ask(SUB, "a", qos=1, durable=True).code == 0
    assert member.ask(SUB, "a", qos=1, group="workers").code == 0
    colleague = entered(keyed.enter("admin"))
    assert colleague.ask(SUB, "a", qos=1, group="workers").code == 0
    keyed.revoke("gone")
    for client in (plain, durable, member):
        assert drained(client) == [Reply(0, 401, "the API key is no longer valid", 0, b"")]
    for number in range(4):
        stays.publish("a", b"%d" % number)
    for client in (stays, colleague):
        assert [client.next().payload for _ in range(4)] == [b"0", b"1", b"2", b"3"]
    assert keyed.try_key(keyed.keys["gone"]) == UNKNOWN
    until(lambda: len(keyed.broker.lines("ended", key="gone", code=401)) == 3, "each is logged")


def rotate(keyed, name, *options):
    """Create a new key for a name; returns its text and the output."""
    result = blipmq("keys", "rotate", name, *options, "--file", str(keyed.path))
    assert result.returncode == 0, result
    return result.stdout.decode().strip(), result.stderr.decode()


def listed(keyed):
    lines = blipmq("keys", "list", "--format", "json", "--file", str(keyed.path)).stdout.splitlines()
    return [(row["name"], bool(row["until"]), row["allow"]) for row in map(json.loads, lines)]


def test_a_rotated_key_and_its_successor_are_the_same_client_during_the_rotation(keyed, entered):
    keyed.add("sensor", "pub:a", "sub:a")
    keyed.start()
    admin, old = entered(keyed.enter("admin")), entered(keyed.enter("sensor", "gauge"))
    assert old.ask(SUB, "a", qos=1, durable=True).code == 0
    stays = entered(keyed.enter("sensor", "stays"))
    new, said = rotate(keyed, "sensor")
    assert "the old key is valid until 20" in said.lower() and "durable subscriptions stay" in said
    assert listed(keyed) == [
        ("admin", False, []),
        ("sensor", True, ["pub:a", "sub:a"]),
        ("sensor", False, ["pub:a", "sub:a"]),
    ]
    until(lambda: keyed.try_key(new)[0] == 0, "the broker knows the new key")
    assert keyed.try_key(keyed.keys["sensor"])[0] == 0 and stays.is_open()

    # The new one takes over the client_id and its stored messages.
    took_over = entered(HelloClient(keyed.broker.address, "gauge", api_key=new))
    assert took_over.greeting.code == 0 and drained(old)[-1].code == 409
    admin.ask(PUB, "a", b"collected", qos=1)
    assert took_over.ask(SUB, "a", qos=1, durable=True).code == 0
    assert took_over.next().payload == b"collected"
    assert took_over.ask(PUB, "b", b"x", qos=1).code == 403  # with the ACL of the old one

    blocked = blipmq("keys", "rotate", "sensor", "--file", str(keyed.path))
    assert blocked.returncode == 1 and b"--finish" in blocked.stderr
    assert rotate(keyed, "sensor", "--finish")[0] == ""
    assert drained(stays) == [Reply(0, 401, "the API key is no longer valid", 0, b"")]
    assert keyed.try_key(keyed.keys["sensor"]) == UNKNOWN and took_over.is_open()
    assert listed(keyed) == [("admin", False, []), ("sensor", False, ["pub:a", "sub:a"])]
    again = blipmq("keys", "rotate", "sensor", "--finish", "--file", str(keyed.path))
    assert again.returncode == 1 and b"is not being rotated" in again.stderr


def test_the_overlap_of_a_rotation_ends_automatically(keyed, entered):
    keyed.add("sensor")
    keyed.start()
    old = entered(keyed.enter("sensor"))
    new, _ = rotate(keyed, "sensor", "--overlap", "2s")
    assert drained(old) == [Reply(0, 401, "the API key is no longer valid", 0, b"")]
    assert keyed.try_key(keyed.keys["sensor"]) == UNKNOWN and keyed.try_key(new)[0] == 0
    assert keyed.broker.wait_for("key_ended", name="sensor")["keys"] == "2"
    # the ended key does not block another rotation
    assert rotate(keyed, "sensor", "--overlap", "0s")[1].startswith("Created a new key")
    until(lambda: keyed.try_key(new) == UNKNOWN, "an overlap of nothing ends the old key at once")
    keyed.revoke("sensor")
    assert listed(keyed) == [("admin", False, [])]


def test_an_overlap_that_ended_during_downtime_has_ended(keyed):
    keyed.add("sensor")
    new, _ = rotate(keyed, "sensor", "--overlap", "0s")
    keyed.start()
    assert keyed.try_key(keyed.keys["sensor"]) == UNKNOWN and keyed.try_key(new)[0] == 0


@pytest.mark.parametrize("overlap", ["1", "h", "-1h", "400d", "1w", ""])
def test_an_invalid_overlap_time_is_refused_and_changes_nothing(keyed, overlap):
    before = keyed.path.read_text()
    refused = blipmq("keys", "rotate", "admin", f"--overlap={overlap}", "--file", str(keyed.path))
    assert refused.returncode == 2 and b"verlap" in refused.stderr and keyed.path.read_text() == before
    both = blipmq("keys", "rotate", "admin", "--overlap", "1h", "--finish", "--file", str(keyed.path))
    assert both.returncode == 2 and keyed.path.read_text() == before
    nobody = blipmq("keys", "rotate", "nobody", "--file", str(keyed.path))
    assert nobody.returncode == 1 and b"There is no key 'nobody'" in nobody.stderr and keyed.path.read_text() == before


def test_queued_messages_of_a_revoked_client_are_not_sent(keyed, entered):
    keyed.add("gone")
    keyed.start()
    admin = entered(keyed.enter("admin"))
    slow = entered(HelloClient(keyed.broker.address, "slow", receive_buffer_bytes=4096, api_key=keyed.keys["gone"]))
    slow.subscribe("a")
    for _ in range(400):
        admin.publish("a", bytes(50_000))
    until(lambda: keyed.broker.info()["messages"]["queued"] > 100, "messages wait for it")
    keyed.revoke("gone")
    keyed.broker.wait_for("ended", key="gone")
    frames = drained(slow)
    assert frames[-1].code == 401 and len(frames) < 300
    info = keyed.broker.info()["messages"]
    assert info["queued"] == 0 and info["dropped"]["disconnect"] > 100


def test_unacknowledged_messages_of_a_revoked_group_member_go_to_another(keyed, entered):
    keyed.add("gone")
    keyed.start()
    member = entered(keyed.enter("gone"))
    assert member.ask(SUB, "jobs", qos=1, group="workers").code == 0
    other = entered(keyed.enter("admin"))
    other.ask(PUB, "jobs", b"work", qos=1)
    assert member.next().payload == b"work"
    assert other.ask(SUB, "jobs", qos=1, group="workers").code == 0
    keyed.revoke("gone")
    message = other.next()
    assert (message.payload, message.redelivered) == (b"work", True)
    other.send(command(ACK, seq=message.id))


def change_rights(keyed, name, *allow):
    """A new line for the key with the same text, as written in an editor."""
    lines = keyed.path.read_text().splitlines()
    for place, line in enumerate(lines):
        if f'"name": "{name}"' in line:
            record = json.loads(line)
            record["allow"] = list(allow)
            lines[place] = json.dumps(record)
    fresh = keyed.path.with_suffix(".new")
    fresh.write_text("\n".join(lines) + "\n")
    fresh.replace(keyed.path)


def test_changed_publish_permissions_apply_to_open_connections(keyed, entered):
    keyed.add("sensor", "pub:a")
    keyed.start()
    sensor = entered(keyed.enter("sensor"))
    assert [sensor.ask(PUB, topic, b"x", qos=1).code for topic in "ab"] == [0, 403]
    change_rights(keyed, "sensor", "pub:b")
    until(lambda: sensor.ask(PUB, "b", b"x", qos=1).code == 0, "the new right is in effect")
    assert sensor.ask(PUB, "a", b"x", qos=1).code == 403


def test_a_removed_subscribe_permission_closes_only_affected_connections(keyed, entered):
    keyed.add("reader", "sub:a/#", "sub:b")
    keyed.start()
    on_a, on_b = entered(keyed.enter("reader")).subscribe("a/+"), entered(keyed.enter("reader")).subscribe("b")
    change_rights(keyed, "reader", "sub:a/1", "sub:b")
    assert drained(on_a) == [Reply(0, 403, "this key may no longer subscribe to a/+", 0, b"")]
    assert on_b.is_open()
    with keyed.enter("reader") as again:
        assert again.ask(SUB, "a/+").code == 403
        again.subscribe("a/1")


def test_an_invalid_new_key_file_keeps_the_old_keys_and_is_reported(keyed, entered):
    keyed.start()
    admin = entered(keyed.enter("admin")).subscribe("a")
    good = keyed.path.read_text()
    keyed.path.write_text(good + '{"name": "half a')
    assert "the 1 old keys stay in effect" in keyed.broker.wait_for("keys_failed")["hint"]
    assert admin.is_open() and keyed.try_key(keyed.keys["admin"])[0] == 0
    info = keyed.broker.info()
    assert info["state"] == "degraded" and "the last line is incomplete" in info["reasons"][0]
    assert info["auth"] == {"keys": 1, "file_ok": False, "refused": 0, "over_limit": 0}
    keyed.path.unlink()
    until(lambda: "No such file" in keyed.broker.info()["reasons"][0], "it is said that the file is gone")
    assert admin.is_open()
    keyed.path.write_text(good)
    until(lambda: keyed.broker.info()["state"] == "ok", "the mended file is in effect")


def test_a_key_with_rights_is_not_told_the_names_in_a_wrong_key_file(keyed, entered):
    keyed.add("sensor", "sub:a")
    keyed.start()
    sensor = entered(keyed.enter("sensor"))
    good = keyed.path.read_text()
    keyed.path.write_text(good + good.splitlines()[2] + "\n")  # a key of the same name again
    until(lambda: "'admin' exists twice" in str(keyed.broker.info()["reasons"]), "an operator sees the name")
    assert sensor.info()["reasons"] == ["the key file is not valid, and the old keys stay in effect"]


def test_an_emptied_key_file_closes_all_connections(keyed, entered):
    keyed.start()
    admin = entered(keyed.enter("admin"))
    keyed.path.write_text("")
    assert [frame.code for frame in drained(admin)] == [401]
    assert keyed.try_key(keyed.keys["admin"]) == UNKNOWN


def test_sighup_enables_and_disables_keys(start_broker, entered):
    broker = start_broker({})
    anonymous = entered(HelloClient(broker.address)).subscribe("a")
    plain = entered(LegacyClient(broker.address)).subscribe("a")
    broker.configure({"auth.api_keys": [PLAIN]})
    broker.signal(signal.SIGHUP)
    assert [frame.code for frame in drained(anonymous)] == [401] and plain.is_closed()
    keyed = entered(HelloClient(broker.address, api_key=PLAIN)).subscribe("a")
    broker.configure({"auth.api_keys": ["a-key-before-it", PLAIN], "logging.level": "debug"})
    broker.signal(signal.SIGHUP)
    until(lambda: broker.lines("reloaded")[1:], "the second reload is done")
    assert keyed.is_open(), "its key stands there still"
    broker.configure({"auth.api_keys": ["another-plain-key"]})
    broker.signal(signal.SIGHUP)
    assert [frame.code for frame in drained(keyed)] == [401]
    broker.configure({})
    broker.signal(signal.SIGHUP)
    until(lambda: broker.lines("reloaded")[3:], "the fourth reload is done")
    entered(LegacyClient(broker.address)).subscribe("a")


def test_sighup_with_an_invalid_key_file_changes_nothing(keyed, entered):
    keyed.start()
    admin = entered(keyed.enter("admin"))
    broken = keyed.path.with_name("broken")
    broken.write_text("nonsense\n")
    keyed.broker.configure({"auth.keys_file": str(broken), "logging.level": "debug"})
    keyed.broker.signal(signal.SIGHUP)
    assert "broken:1: not a key" in keyed.broker.wait_for("reload_failed")["error"]
    assert admin.is_open() and keyed.try_key(keyed.keys["admin"])[0] == 0


def test_without_descriptors_a_changed_key_file_is_read_once_one_is_free(keyed, entered):
    """A failed reload must not open anything and must be retried."""
    keyed.start()
    admin = entered(keyed.enter("admin"))
    soft, hard = resource.prlimit(keyed.broker.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(keyed.broker.pid, resource.RLIMIT_NOFILE, (3, hard))
    keyed.path.write_text(keyed.path.read_text() + "# changed\n")
    assert "Too many open files" in keyed.broker.wait_for("keys_failed")["error"]
    assert admin.is_open()
    resource.prlimit(keyed.broker.pid, resource.RLIMIT_NOFILE, (soft, hard))
    until(lambda: len(keyed.broker.lines("keys_loaded")) == 2, "it is read after all")
    assert admin.is_open()


# ---- secrets are not shown ----


def test_no_key_is_in_any_log_info_metric_process_list_or_error(keyed, entered, start_broker, tmp_path):
    keyed.add("sensor", "pub:a")
    (tmp_path / "secret").write_text(PLAIN + "\n")
    keyed._settings |= {"logging.level": "debug", "metrics.bind_addr": "127.0.0.1:0"}
    keyed.broker = start_broker(keyed._settings, BLIPMQ_AUTH__API_KEYS_FILE=str(tmp_path / "secret"))
    keyed.broker.api_key = keyed.keys["admin"]
    wrong = "a-wrong-key-that-a-client-tried"
    assert keyed.try_key(wrong) == UNKNOWN
    entered(keyed.enter("sensor", "gauge")).ask(PUB, "b", b"x", qos=1)
    entered(HelloClient(keyed.broker.address, api_key=PLAIN))
    shown = [str(keyed.broker.info()), Path(f"/proc/{keyed.broker.pid}/cmdline").read_text()]
    host, _, port = keyed.broker.wait_for("metrics")["address"].rpartition(":")
    for path in ("/metrics", "/healthz", "/readyz"):
        with socket.create_connection((host, int(port)), 60) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            shown.append(connection.makefile("rb").read().decode())
    checked = blipmq("check", "--config", str(keyed.broker.config), BLIPMQ_AUTH__API_KEYS=PLAIN)
    failed = blipmq("check", "--config", str(keyed.broker.config), BLIPMQ_AUTH__API_KEYS=f"{PLAIN},{PLAIN}")
    assert (checked.returncode, failed.returncode) == (0, 78)
    shown += [text.decode() for text in (checked.stdout, checked.stderr, failed.stdout, failed.stderr)]
    keyed.revoke("sensor")
    keyed.broker.wait_for("ended", key="sensor")
    keyed.broker.stop()
    shown += [*keyed.broker.log, keyed.path.read_text()]
    for secret in (*keyed.keys.values(), PLAIN, wrong):
        assert [text for text in shown if secret in text] == []


# ---- command lines ----


def test_keys_are_created_listed_and_revoked_by_the_command(tmp_path):
    (tmp_path / "blipmq.toml").write_text('[auth]\nkeys_file = "keys"\n')
    added = blipmq("keys", "add", "boiler", "--allow", "pub:a/b", "--allow", "sub:c.>", cwd=tmp_path)
    assert added.returncode == 0 and added.stdout.startswith(b"bq_") and added.stdout.count(b"\n") == 1
    assert b"it cannot be shown again" in added.stderr and added.stdout.strip() not in added.stderr
    assert blipmq("keys", "add", "pump", cwd=tmp_path).returncode == 0
    listed = blipmq("keys", "list", cwd=tmp_path)
    (first, second) = listed.stdout.decode().splitlines()
    assert first.split() == ["boiler", first.split()[1], "pub:a/b", "sub:c.>"] and second.split()[2] == "everything"
    as_json = blipmq("keys", "list", "--format", "json", cwd=tmp_path).stdout.decode().splitlines()
    assert '"name":"boiler"' in as_json[0] and '"allow":["pub:a/b","sub:c.>"]' in as_json[0]
    revoked = blipmq("keys", "revoke", "boiler", cwd=tmp_path)
    assert (revoked.returncode, revoked.stdout) == (0, b"")
    assert blipmq("keys", "list", cwd=tmp_path).stdout.split()[0] == b"pump"


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["add", "a", "--file", "new/keys", "--allow", "pub:#*"], 2, "The filter"),
        (["add", "a/b", "--file", "keys"], 2, "'/'"),
        (["add", "known", "--file", "keys"], 1, "Revoke it first"),
        (["revoke", "unknown", "--file", "keys"], 1, "no key 'unknown'"),
        (["list", "--file", "none"], 78, "Create a key with"),
        (["list", "--file", "broken"], 78, "broken:1: not a key"),
        (["list"], 78, "No key file is set"),
        (["list", "--file", "keys", "--config", "x"], 2, "not allowed with"),
        ([], 2, "required: ACTION"),
    ],
)
def test_key_command_errors_have_a_status_and_a_remedy(tmp_path, arguments, status, text):
    assert blipmq("keys", "add", "known", "--file", "keys", cwd=tmp_path).returncode == 0
    (tmp_path / "broken").write_text("nonsense\n")
    result = blipmq("keys", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (status, b"") and text in result.stderr.decode(), result


def test_a_key_that_could_not_be_printed_is_revoked(tmp_path):
    def unreadable(*words):
        with open("/dev/full", "wb") as full:
            command = [*broker_command(), "keys", *words, "--file", "keys"]
            result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, env=environment())
        assert result.returncode == 74 and b"removed again" in result.stderr

    unreadable("add", "a")
    assert blipmq("keys", "list", "--file", "keys", cwd=tmp_path).stdout == b""
    assert blipmq("keys", "add", "a", "--file", "keys", cwd=tmp_path).returncode == 0
    before = (tmp_path / "keys").read_text()
    for overlap in ("0s", "24h"):
        unreadable("rotate", "a", "--overlap", overlap)
        assert (tmp_path / "keys").read_text() == before


def test_a_key_with_rights_learns_only_of_its_own_subscriptions(keyed, entered):
    reader = keyed.add("reader", "sub:a")
    keyed.start()
    other = entered(keyed.enter("admin", "gauge")).subscribe("a", "secret")
    assert other.ask(SUB, "kept", qos=1, durable=True).code == 0
    with (
        connect_blocking(keyed.broker.address, api_key=reader, client_id="me") as client,
        connect_blocking(keyed.broker.address, api_key=keyed.keys["admin"]) as admin,
    ):
        asked = ("a", "secret", "kept", "none")
        assert [admin.has_subscriber(filter_) for filter_ in asked] == [True, True, True, False]
        assert not any(client.has_subscriber(filter_) for filter_ in asked)
        client.subscribe("a", qos=1, durable=True)
        assert client.has_subscriber("a")


def test_the_command_line_takes_the_key_from_the_environment_or_a_file(keyed, tmp_path):
    key = keyed.add("sensor", "pub:a")
    keyed.start()
    (tmp_path / "key").write_text(key + "\n")
    assert run_cli(keyed.broker.address, "pub", "a", "x", BLIPMQ_API_KEY=key).returncode == 0
    assert run_cli(keyed.broker.address, "--key-file", str(tmp_path / "key"), "pub", "a", "x").returncode == 0
    for result, words in [
        (run_cli(keyed.broker.address, "pub", "a", "x"), ("401", "$BLIPMQ_API_KEY")),
        (run_cli(keyed.broker.address, "pub", "a", "x", BLIPMQ_API_KEY="wrong"), ("401", "--key-file")),
        (run_cli(keyed.broker.address, "sub", "a", "-n", "1", BLIPMQ_API_KEY=key), ("403", "rights of each key")),
        (run_cli(keyed.broker.address, "pub", "b", "x", "--qos", "1", BLIPMQ_API_KEY=key), ("403", "blipmq keys")),
        (run_cli(keyed.broker.address, "info"), ("401", "blipmq keys list")),
    ]:
        assert (result.returncode, result.stdout) == (77, b""), result
        assert all(word in result.stderr.decode() for word in words), result


def test_the_shell_reads_the_key_from_a_file(keyed, tmp_path):
    keyed.start()
    (tmp_path / "key").write_text(keyed.keys["admin"])
    asked = [*broker_command(), "connect", keyed.broker.address]
    ran = subprocess.run(
        [*asked, "--key-file", str(tmp_path / "key")],
        input=b"exit\n",
        capture_output=True,
        timeout=60,
        env=environment(),
    )
    assert ran.returncode == 0, ran
    refused = subprocess.run(asked, input=b"exit\n", capture_output=True, timeout=60, env=environment())
    assert refused.returncode == 77 and b"401" in refused.stderr


def sub_until_ended(keyed, key, change):
    """Start `blipmq-cli sub a` and apply a change once it has subscribed; returns its exit status and output."""
    reader = subprocess.Popen(
        [*cli_command(), "sub", "a"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(BLIPMQ_ADDR=keyed.broker.address, BLIPMQ_API_KEY=key),
    )
    try:
        until(lambda: keyed.broker.info()["subscriptions_total"] == 1, "it has subscribed")
        change()
        out, err = reader.communicate(timeout=60)
    finally:
        reader.kill()
        reader.wait()
    return reader.returncode, out, err


def test_a_subscriber_whose_key_is_revoked_ends_with_the_reason(keyed):
    key = keyed.add("reader", "sub:a")
    keyed.start()
    status, out, err = sub_until_ended(keyed, key, lambda: keyed.revoke("reader"))
    assert (status, out) == (77, b"") and b"401" in err


def test_a_subscriber_that_loses_its_permission_ends_with_the_reason(keyed):
    key = keyed.add("reader", "sub:a", "sub:b")
    keyed.start()
    status, out, err = sub_until_ended(keyed, key, lambda: change_rights(keyed, "reader", "sub:b"))
    assert (status, out) == (77, b"") and b"403" in err


def test_check_warns_when_no_client_can_be_admitted(tmp_path):
    asked = {"BLIPMQ_AUTH__KEYS_FILE": "keys"}
    result = blipmq("check", cwd=tmp_path, **asked)
    assert (
        result.returncode == 0 and b"every client will be refused: keys: the key file cannot be read" in result.stderr
    )
    (tmp_path / "keys").write_text("")
    assert b"keys holds no key" in blipmq("check", cwd=tmp_path, **asked).stderr
    assert blipmq("keys", "add", "a", cwd=tmp_path, **asked).returncode == 0
    assert blipmq("check", cwd=tmp_path, **asked).stderr == b""
