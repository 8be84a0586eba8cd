"""Transcripts of QoS 1: acknowledgements, redeliveries and their receivers, and state that survives connections and
restarts.

Each test is one sentence of the protocol, run with hand-written clients against a broker in a separate process. To show
that no further message arrives, a test checks the next frame instead of waiting.
"""

import asyncio
import os
import shutil
import subprocess

import pytest
from broker_process import BrokerProcess, run_cli, start_cli, until
from hand_client import ACK, PUB, SUB, UNSUB, Reply, SubAck, command

import blipmq

pytestmark = pytest.mark.blackbox

QUICK = {"qos1.ack_timeout_ms": 100}
# The smallest possible WAL: four files, each twice the size of a sync batch.
FAILING_DISK = """
#include <errno.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

int fdatasync(int file) {
    if (access(getenv("DISK_BROKEN"), F_OK)) return (int)syscall(SYS_fdatasync, file);
    errno = EIO;
    return -1;
}
"""
SMALL_WAL = {"server.max_message_size_bytes": 4096, "wal.segment_size_bytes": 524288, "wal.max_bytes": 2097152}


def publish(client, topic, *payloads):
    """Publish each with QoS 1 and wait for its acknowledgement; returns their ids."""
    answers = [client.ask(PUB, topic, payload, qos=1) for payload in payloads]
    assert [(type(answer), answer.code) for answer in answers] == [(Reply, 0)] * len(payloads), answers
    return [answer.id for answer in answers]


def subscribe(client, filter_, **options):
    answer = client.ask(SUB, filter_, qos=1, **options)
    assert answer == SubAck(filter_, "subscribed", client.seq), answer
    return client


def durable(connect, broker, filter_, client_id="me"):
    return subscribe(connect(broker, hello=True, client_id=client_id), filter_, durable=True)


def acknowledge(client, *messages):
    client.send(*[command(ACK, seq=message.id) for message in messages])


def user_property(name, value):
    """A user property in the MQTT 5 encoding."""
    texts = [text.encode() for text in (name, value)]
    return b"\x26" + b"".join(len(text).to_bytes(2, "big") + text for text in texts)


def settled(broker, count):
    """Wait until this many deliveries have been acknowledged."""
    until(lambda: broker.info()["sessions"]["acked"] == count, f"{count} deliveries are acknowledged")


def firsts(client, count):
    """Receive until `count` different messages have arrived, each acknowledged; returns ids in the order of first
    delivery."""
    seen = {}
    while len(seen) < count:
        message = client.next()
        acknowledge(client, message)
        seen.setdefault(message.id, message.payload)
    return seen


# ---- one connection ----------------------------------------------------------------------------------------------------


def test_a_qos_1_publish_is_answered_with_the_id_that_its_subscriber_gets(broker, connect):
    reader = subscribe(connect(broker, hello=True), "orders")
    writer = connect(broker, hello=True)
    (id_,) = publish(writer, "orders", b"one")
    message = reader.next()
    assert (message.id, message.topic, message.payload, message.qos) == (id_, "orders", b"one", 1)
    assert not message.redelivered
    assert publish(writer, "orders", b"two") == [id_ + 1]


def test_a_qos_0_subscriber_gets_a_qos_1_message_with_qos_0(broker, connect):
    reader = connect(broker).subscribe("orders")
    publish(connect(broker, hello=True), "orders", b"one")
    message = reader.next()
    assert (message.payload, message.qos) == (b"one", 0)


def test_a_qos_1_subscriber_gets_a_qos_0_message_once_and_with_qos_0(broker, connect):
    reader = subscribe(connect(broker, hello=True), "orders")
    connect(broker).publish("orders", b"light")
    message = reader.next()
    assert (message.payload, message.qos) == (b"light", 0)


def test_a_qos_1_publish_of_a_legacy_client_is_stored_and_not_answered(broker, connect):
    reader, plain = durable(connect, broker, "orders"), connect(broker)
    plain.send(command(PUB, "orders", b"one", qos=1, seq=7))
    assert (reader.next().payload, broker.info()["log"]["unsynced"]) == (b"one", 0)
    plain.subscribe("still answered only this")


@pytest.mark.parametrize("broker", [QUICK], indirect=True)
def test_an_unacknowledged_message_is_redelivered_marked_with_its_id(broker, connect):
    reader = subscribe(connect(broker, hello=True), "orders")
    publish(connect(broker, hello=True), "orders", b"one")
    first, again = reader.next(), reader.next()
    assert (again.id, again.payload, again.qos) == (first.id, b"one", 1)
    assert (first.redelivered, again.redelivered) == (False, True)


@pytest.mark.parametrize("broker", [QUICK], indirect=True)
def test_an_acknowledged_message_is_not_redelivered(broker, connect):
    reader, writer = subscribe(connect(broker, hello=True), "orders"), connect(broker, hello=True)
    publish(writer, "orders", b"acknowledged")
    acknowledge(reader, reader.next())
    settled(broker, 1)
    publish(writer, "orders", b"not")
    assert [reader.next().payload for _ in range(3)] == [
        b"not",
        b"not",
        b"not",
    ]  # the other member would be next in turn


@pytest.mark.parametrize("broker", [{"qos1.max_in_flight": 2}], indirect=True)
def test_the_in_flight_window_is_respected(broker, connect):
    reader, writer = durable(connect, broker, "orders"), connect(broker, hello=True)
    publish(writer, "orders", *[b"%d" % n for n in range(5)])
    held = [reader.next(), reader.next()]
    assert broker.info()["sessions"]["in_flight"] == 2
    assert reader.is_open()  # its answer arrives before any third message
    acknowledge(reader, *held)
    assert [reader.next().payload, reader.next().payload] == [b"2", b"3"]


@pytest.mark.parametrize("broker", [{**QUICK, "qos1.max_deliveries": 2}], indirect=True)
def test_a_never_acknowledged_message_becomes_a_dead_letter_with_the_reason(broker, connect):
    collector = subscribe(connect(broker, hello=True), "$dlq/#")
    reader = subscribe(connect(broker, hello=True), "jobs/heavy")
    (id_,) = publish(connect(broker, hello=True), "jobs/heavy", b"\xff\0poison")
    assert [reader.next().redelivered, reader.next().redelivered] == [False, True]
    letter = collector.next()
    assert (letter.topic, letter.payload, letter.qos) == ("$dlq/jobs/heavy", b"\xff\0poison", 1)
    about = {"reason": "max_deliveries", "topic": "jobs/heavy", "id": str(id_), "deliveries": "2"}
    assert letter.properties == b"".join(user_property(name, value) for name, value in about.items())
    publish(connect(broker, hello=True), "jobs/heavy", b"next")
    assert reader.next().payload == b"next"


def test_messages_of_one_publisher_arrive_in_order_with_mixed_qos(broker, connect):
    both, light = subscribe(connect(broker, hello=True), "orders"), connect(broker).subscribe("orders")
    writer = connect(broker, hello=True)
    expected = [b"%d" % n for n in range(300)]
    writer.send(*[command(PUB, "orders", payload, qos=int(n % 3 == 0)) for n, payload in enumerate(expected)])
    assert [light.next().payload for _ in expected] == expected
    got = [both.next() for _ in expected]
    assert [m.payload for m in got if m.qos] == expected[::3]
    assert [m.payload for m in got if not m.qos] == [p for n, p in enumerate(expected) if n % 3]
    assert sorted(int(m.payload) for m in got) == list(range(300))


# ---- permitted requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "code", "reason"),
    [
        ({"qos": 1, "durable": True}, 400, "a durable subscription needs a client_id"),
        ({"durable": True}, 400, "a durable subscription needs QoS 1"),
        ({"qos": 1, "group": "g" * 257}, 400, "the group may have at most 256 bytes"),
        ({"group": "a\nb"}, 400, "the group contains control characters"),
    ],
)
def test_an_invalid_subscription_is_refused_with_the_reason(broker, connect, asked, code, reason):
    client = connect(broker, hello=True)
    answer = client.ask(SUB, "t", **asked)
    assert (answer.code, answer.message.startswith(reason)) == (code, True), answer
    client.subscribe("t")


@pytest.mark.parametrize("broker", [{"wal.enabled": False}], indirect=True)
def test_without_a_wal_qos_1_is_refused_with_the_setting_that_enables_it(broker, connect):
    client = connect(broker, hello=True)
    for answer in (client.ask(SUB, "t", qos=1), client.ask(PUB, "t", b"x", qos=1)):
        assert answer.code == 503 and "set wal.enabled = true" in answer.message, answer
    plain = connect(broker)
    plain.send(command(SUB, "t", qos=1))
    assert plain.is_closed()
    assert broker.info()["log"] is None


@pytest.mark.parametrize("broker", [{"wal.enabled": False}], indirect=True)
def test_a_queue_group_of_qos_0_needs_no_wal(broker, connect):
    members = [connect(broker, hello=True) for _ in range(2)]
    for member in members:
        assert member.ask(SUB, "jobs", group="workers") == SubAck("jobs", "subscribed", member.seq)
    writer = connect(broker)
    for n in range(4):
        writer.publish("jobs", b"%d" % n)
    got = [[int(member.next().payload) for _ in range(2)] for member in members]
    assert sorted(got[0] + got[1]) == [0, 1, 2, 3]


# ---- durable subscriptions ---------------------------------------------------------------------------------------------


def test_a_durable_subscription_stores_messages_while_its_client_is_away(broker, connect):
    durable(connect, broker, "orders").close()
    writer = connect(broker, hello=True)
    ids = publish(writer, "orders", b"one", b"two", b"three")
    assert firsts(durable(connect, broker, "orders"), 3) == dict(zip(ids, [b"one", b"two", b"three"], strict=True))


def test_messages_in_flight_at_a_disconnect_are_redelivered(broker, connect):
    reader = durable(connect, broker, "orders")
    ids = publish(connect(broker, hello=True), "orders", b"one", b"two")
    acknowledge(reader, reader.next())
    assert reader.next().payload == b"two"
    settled(broker, 1)
    reader.close()
    again = durable(connect, broker, "orders").next()
    assert (again.id, again.payload, again.redelivered) == (ids[1], b"two", True)


def test_a_newer_connection_takes_over_the_subscription_of_its_client_id(broker, connect):
    older = durable(connect, broker, "orders")
    newer = durable(connect, broker, "orders")
    assert older.next().code == 409 and older.is_closed()
    publish(connect(broker, hello=True), "orders", b"one")
    assert newer.next().payload == b"one"


def test_unsubscribing_ends_a_durable_subscription(broker, connect):
    durable(connect, broker, "orders").close()
    client = connect(broker, hello=True, client_id="me")  # a connection without its own subscription
    assert client.ask(UNSUB, "orders").code == 0
    assert client.ask(UNSUB, "orders").code == 404
    publish(connect(broker, hello=True), "orders", b"unheard")
    durable(connect, broker, "orders")
    reader = durable(connect, broker, "orders")
    publish(connect(broker, hello=True), "orders", b"heard")
    assert reader.next().payload == b"heard"


def test_a_client_cannot_end_the_subscription_of_another_client_id(broker, connect):
    durable(connect, broker, "orders").close()
    assert connect(broker, hello=True, client_id="you").ask(UNSUB, "orders").code == 404
    publish(connect(broker, hello=True), "orders", b"one")
    assert durable(connect, broker, "orders").next().payload == b"one"


# ---- restarts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_publishes_acknowledged_by_the_broker_survive_a_kill(start_broker, connect, end):
    first = start_broker()
    durable(connect, first, "orders").close()
    ids = publish(connect(first, hello=True), "orders", *[b"%d" % n for n in range(100)])
    getattr(first, end)()
    second = start_broker(after=first)
    assert list(firsts(durable(connect, second, "orders"), 100).items()) == [
        (id_, b"%d" % n) for n, id_ in enumerate(ids)
    ]


def test_messages_acknowledged_by_the_subscriber_are_not_redelivered_after_a_restart(start_broker, connect):
    first = start_broker()
    reader = durable(connect, first, "orders")
    publish(connect(first, hello=True), "orders", b"one", b"two")
    acknowledge(reader, reader.next())
    settled(first, 1)
    first.stop()
    second = start_broker(after=first)
    reader = durable(connect, second, "orders")
    assert reader.next().payload == b"two"
    publish(connect(second, hello=True), "orders", b"three")
    assert reader.next().payload == b"three"


@pytest.mark.parametrize("end", ["kill", "stop"])
def test_message_ids_never_go_back_over_a_restart(start_broker, connect, end):
    first = start_broker()
    reader, writer = connect(first).subscribe("t"), connect(first, hello=True)
    (durable_id,) = publish(writer, "t", b"durable")
    writer.publish("t", b"light")
    light_id = [reader.next().id for _ in range(2)][-1]
    assert light_id == durable_id + 1
    getattr(first, end)()
    (next_id,) = publish(connect(start_broker(after=first), hello=True), "t", b"x")
    assert next_id > light_id


def test_message_ids_do_not_go_back_when_the_wal_is_disabled_and_enabled(start_broker, connect):
    ids, broker = [], None
    for enabled in (True, False, True):
        broker = start_broker({"wal.enabled": enabled}, after=broker)
        reader = connect(broker).subscribe("t")
        reader.publish("t", b"x")
        ids.append(reader.next().id)
        broker.stop()
    assert ids == sorted(set(ids))


def test_ids_without_a_wal_start_at_the_clock(start_broker, connect):
    broker = start_broker({"wal.enabled": False})
    reader = connect(broker).subscribe("t")
    reader.publish("t", b"x")
    message = reader.next()
    since_2025_ms = message.timestamp_ms - 1_735_689_600_000
    assert since_2025_ms - 3_600_000 < message.id >> 12 <= since_2025_ms
    assert message.id < 1 << 53


def test_an_ended_durable_subscription_stays_ended_after_a_crash(start_broker, connect):
    first = start_broker()
    durable(connect, first, "orders").close()
    client = connect(first, hello=True, client_id="me")
    assert client.ask(UNSUB, "orders").code == 0
    first.kill()
    assert start_broker(after=first).wait_for("log_opened")["subscriptions"] == "0"


def test_the_wal_is_recovered_before_the_broker_listens(start_broker, connect):
    first = start_broker()
    durable(connect, first, "orders").close()
    publish(connect(first, hello=True), "orders", b"one", b"two")
    first.kill()
    second = start_broker(after=first)
    opened = second.wait_for("log_opened")
    assert (opened["subscriptions"], opened["clean"]) == ("1", "false")
    events = [line.split(" ")[2] for line in second.log]
    assert events.index("log_opened") < events.index("ready")


def test_a_second_broker_on_the_same_wal_ends_with_status_69_and_one_line(broker):
    second = BrokerProcess(broker.config.parent, {})
    assert second.wait() == 69
    assert second.log[-2].startswith("blipmq: another broker uses the WAL in data/wal. Stop it, or give this broker")
    assert broker.info()["log"]["state"] == "ok"


def test_many_publishers_at_once_are_each_answered_and_nothing_is_lost(broker, connect):
    reader = durable(connect, broker, "orders/#")
    writers = [connect(broker, hello=True) for _ in range(16)]
    for n, writer in enumerate(writers):
        writer.send(*[command(PUB, f"orders/{n}", b"%d" % k, qos=1, seq=k + 1) for k in range(200)])
    answers = [[writer.next() for _ in range(200)] for writer in writers]
    assert all([(a.seq, a.code) for a in share] == [(k + 1, 0) for k in range(200)] for share in answers)
    ids = sorted(answer.id for share in answers for answer in share)
    assert ids == list(range(ids[0], ids[0] + 3200))
    assert list(firsts(reader, 3200)) == ids


# ---- groups ------------------------------------------------------------------------------------------------------------


def test_each_message_goes_to_one_member_of_a_group(broker, connect):
    members = [subscribe(connect(broker, hello=True), "jobs", group="workers") for _ in range(2)]
    everyone = subscribe(connect(broker, hello=True), "jobs")
    publish(connect(broker, hello=True), "jobs", *[b"%d" % n for n in range(10)])
    assert [everyone.next().payload for _ in range(10)] == [b"%d" % n for n in range(10)]
    got = [[int(member.next().payload) for _ in range(5)] for member in members]
    assert sorted(got[0] + got[1]) == list(range(10))
    assert got == [sorted(share) for share in got]


def test_messages_of_a_dead_group_member_go_to_another(broker, connect):
    one, two = (subscribe(connect(broker, hello=True), "jobs", group="workers") for _ in range(2))
    publish(connect(broker, hello=True), "jobs", b"0", b"1", b"2", b"3")
    held = [one.next(), one.next()]
    own = [two.next(), two.next()]
    acknowledge(two, *own)
    one.close()
    again = [two.next(), two.next()]
    assert [m.payload for m in again] == [m.payload for m in held]
    assert all(m.redelivered for m in again)


# ---- full WAL, disk errors, damaged WAL ---------------------------------------------------------------------------------


def fill(writer, payload):
    """Publish until the WAL is full; returns the ids of the accepted messages, and the refusal."""
    ids = []
    while True:
        answer = writer.ask(PUB, "orders", payload, qos=1)
        if answer.code:
            return ids, answer
        ids.append(answer.id)
        assert len(ids) < 2_097_152 // len(payload), "the WAL holds more than wal.max_bytes"


@pytest.mark.parametrize("broker", [SMALL_WAL], indirect=True)
def test_a_full_wal_refuses_publishes_until_the_subscriber_has_caught_up(broker, connect):
    durable(connect, broker, "orders").close()
    writer = connect(broker, hello=True)
    ids, answer = fill(writer, b"x" * 4000)
    assert answer.code == 503 and "the WAL is full" in answer.message
    described = broker.info()
    assert described["state"] == "degraded" and described["log"]["state"] == "full"
    assert any(reason.startswith("WAL: full at ") for reason in described["reasons"])
    broker.wait_for("log_full")
    reader = connect(broker).subscribe("orders")
    writer.publish("orders", b"QoS 0 goes on")
    assert reader.next().payload == b"QoS 0 goes on"
    assert list(firsts(durable(connect, broker, "orders"), len(ids))) == ids
    until(lambda: writer.ask(PUB, "orders", b"again", qos=1).code == 0, "publishes are taken again")
    broker.wait_for("log_has_room")
    assert broker.info()["state"] == "ok"


@pytest.fixture
def failing_disk(tmp_path):
    """Variables that make fdatasync of a broker fail once the file `broken` exists, and that file."""
    source, library, broken = (tmp_path / name for name in ("disk.c", "disk.so", "broken"))
    source.write_text(FAILING_DISK)
    compiler = shutil.which("cc")
    assert compiler, "no C compiler: packaging/setup.sh installs one"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True, timeout=60)
    preloaded = " ".join(filter(None, [os.environ.get("LD_PRELOAD"), str(library)]))
    return {"LD_PRELOAD": preloaded, "DISK_BROKEN": str(broken)}, broken


def test_after_a_failed_sync_only_qos_0_works_until_a_restart(start_broker, connect, failing_disk):
    variables, broken = failing_disk
    first = start_broker(**variables)
    durable(connect, first, "orders").close()
    writer, light = connect(first, hello=True), connect(first).subscribe("orders")
    ids = publish(writer, "orders", b"safe")
    assert light.next().payload == b"safe"
    broken.touch()
    answer = writer.ask(PUB, "orders", b"not safe", qos=1)
    assert (answer.code, answer.id) == (503, 0) and "the WAL has stopped" in answer.message, answer
    broken.unlink()  # after a failed sync the disk is not used again before a restart
    assert writer.ask(PUB, "orders", b"nor this", qos=1).code == 503
    writer.publish("orders", b"QoS 0")
    assert light.next().payload == b"QoS 0"
    line = first.wait_for("log_failed")
    assert (line["level"], line["error"]) == ("error", "Input/output error")
    described = first.info()
    assert (described["state"], described["log"]["state"]) == ("degraded", "failed")
    assert described["reasons"][0].startswith("WAL: disk error (Input/output error); QoS 1 publishes are refused")
    first.stop()
    second = start_broker(after=first)
    reader = durable(connect, second, "orders")
    assert (reader.next().id, second.info()["state"]) == (ids[0], "ok")
    assert publish(connect(second, hello=True), "orders", b"again")[0] > ids[0]


def test_a_damaged_wal_does_not_prevent_a_start_and_losses_are_reported(start_broker, connect):
    first = start_broker()
    durable(connect, first, "orders").close()
    payloads = [b"payload %d" % n for n in range(200)]
    ids = publish(connect(first, hello=True), "orders", *payloads)
    first.stop()
    for file in (first.config.parent / "data" / "wal").iterdir():
        data = bytearray(file.read_bytes())
        at = data.find(b"payload 100")
        if at >= 0:
            data[at] ^= 1
            file.write_bytes(data)
    second = start_broker(after=first)
    line = second.wait_for("log_damaged")
    assert (line["level"], line["first_lsn"], line["last_lsn"]) == ("error", line["last_lsn"], line["first_lsn"])
    described = second.info()
    assert described["state"] == "degraded" and "damaged" in described["reasons"][0]
    lost = int(line["first_lsn"])
    assert described["log"]["lost"] == {"first_lsn": lost, "last_lsn": lost, "ranges": 1, "exact": True}
    got = firsts(durable(connect, second, "orders"), 199)
    assert list(got.values()) == payloads[:100] + payloads[101:]
    assert list(got) == ids[:100] + ids[101:]


def test_a_durable_subscription_refused_by_a_failed_sync_leaves_no_state(start_broker, connect, failing_disk):
    variables, broken = failing_disk
    broker = start_broker({"limits.max_subscriptions_per_connection": 2}, **variables)
    light = connect(broker).subscribe("orders")
    client = connect(broker, hello=True, client_id="me")
    assert client.ask(SUB, "kept", qos=0) == SubAck("kept", "subscribed", client.seq)
    broken.touch()
    answer = client.ask(SUB, "orders", qos=1, durable=True)
    assert (type(answer), answer.code) == (Reply, 503), answer
    writer = connect(broker)
    writer.publish("orders", b"not for it")
    writer.publish("kept", b"for it")
    assert light.next().payload == b"not for it"
    assert client.next().payload == b"for it"
    # the refused subscription does not count towards the limit of two per connection
    assert client.ask(SUB, "other", qos=0) == SubAck("other", "subscribed", client.seq)
    broken.unlink()


@pytest.mark.parametrize(
    "broker", [{"limits.max_sessions": 1, "limits.max_subscriptions_per_connection": 2}], indirect=True
)
def test_refused_and_ended_subscriptions_are_not_counted(broker, connect):
    client = subscribe(connect(broker, hello=True, client_id="me"), "one", durable=True)
    for _ in range(3):
        assert client.ask(SUB, "two", qos=1, durable=True).code == 429
    for filter_, group in (("three", ""), ("three", "g")):  # each group of a filter is a separate subscription
        assert type(client.ask(SUB, filter_, group=group)) is (SubAck if not group else Reply)
    assert client.ask(UNSUB, "one").code == 0
    assert client.ask(SUB, "three", group="g") == SubAck("three", "subscribed", client.seq)
    assert client.ask(UNSUB, "three", group="g").code == 0
    assert client.ask(UNSUB, "three", group="g").code == 404
    assert client.ask(SUB, "four") == SubAck("four", "subscribed", client.seq)
    assert client.ask(UNSUB, "three").code == 0, "leaving the group has not ended this one"


def test_a_durable_group_ends_with_its_last_durable_client_id(broker, connect):
    one = subscribe(connect(broker, hello=True, client_id="one"), "jobs", durable=True, group="workers")
    two = subscribe(connect(broker, hello=True, client_id="two"), "jobs", durable=True, group="workers")
    two.close()
    assert one.ask(UNSUB, "jobs").code == 0
    one.close()
    publish(connect(broker, hello=True), "jobs", b"for whoever comes")
    assert broker.info()["sessions"]["total"] == 1
    third = connect(broker, hello=True, client_id="two")
    assert third.ask(UNSUB, "jobs", group="others").code == 404
    assert third.ask(UNSUB, "jobs", group="workers").code == 0
    assert broker.info()["sessions"]["total"] == 0
    assert third.ask(UNSUB, "jobs", group="workers").code == 404


# ---- number of storing subscriptions -----------------------------------------------------------------------------------


def test_the_publish_answer_counts_the_subscriptions_that_store_the_message(broker, connect):
    with blipmq.connect_blocking(broker.address) as writer:
        assert writer.publish("orders", b"nobody", qos=1).subscriptions == 0
        durable(connect, broker, "orders").close()
        subscribe(connect(broker, hello=True), "orders")
        for number in range(2):
            subscribe(connect(broker, hello=True, client_id=f"w{number}"), "#", durable=True, group="workers")
        connect(broker).subscribe("orders")  # QoS 0: nothing is stored for it
        connect(broker, hello=True).ask(SUB, "orders", group="light")
        receipt = writer.publish("orders", b"three", qos=1)
        assert (receipt.subscriptions, receipt + 1) == (3, writer.publish("nobody", b"", qos=1))
        assert writer.publish("orders", b"QoS 0") == 0

    async def publish_one():
        async with blipmq.connect(broker.address) as client:
            return await client.publish("other", b"one", qos=1), await client.publish("other", b"one")

    heavy, light = asyncio.run(publish_one())
    assert (heavy.subscriptions, light.subscriptions, light) == (1, None, 0)


def test_the_command_line_shows_how_many_subscriptions_store_a_message(broker, connect):
    told = run_cli(broker.address, "pub", "orders", "x", "--qos", "1").stdout
    assert told.endswith(b". No QoS 1 subscription took it, so the broker did not keep it.\n")
    durable(connect, broker, "orders").close()
    assert run_cli(broker.address, "pub", "orders", "x", "--qos", "1").stdout.endswith(
        b", stored for 1 subscription.\n"
    )
    assert run_cli(broker.address, "pub", "orders", "x", "--qos", "1", "-q").stdout == b""
    assert run_cli(broker.address, "pub", "orders", "x").stdout == b"Sent 1 byte to orders.\n"


def test_publish_many_counts_the_messages_without_subscription(broker, connect):
    with blipmq.connect_blocking(broker.address) as writer:
        lost = writer.publish_many("orders", [b"1", b"2"], qos=1)
        durable(connect, broker, "orders").close()
        kept = writer.publish_many("orders", [b"3"], qos=1)
        unknown = writer.publish_many("orders", [b"4"])

    async def publish_some():
        async with blipmq.connect(broker.address) as client:
            return await client.publish_many("other", [b"1", b"2", b"3"], qos=1)

    counts = [lost, kept, unknown, asyncio.run(publish_some())]
    assert [(count, count.unrouted) for count in counts] == [(2, 2), (1, 0), (1, None), (3, 3)]


def test_the_command_line_counts_lines_without_subscription(broker, connect):
    def told(lines):
        return run_cli(broker.address, "pub", "orders", "-", "--qos", "1", stdin=lines).stdout.decode()

    assert told(b"a\nb\n") == (
        "Sent 2 messages to orders. No QoS 1 subscription took any, so the broker did not keep them.\n"
    )
    assert told(b"a\n") == "Sent 1 message to orders. No QoS 1 subscription took it, so the broker did not keep it.\n"
    durable(connect, broker, "orders").close()
    assert told(b"a\nb\n") == "Sent 2 messages to orders.\n"


def test_the_command_line_counts_lines_of_a_live_pipe_without_subscription(broker, connect):
    process = start_cli(
        broker.address, "pub", "orders", "-", "--qos", "1", stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdin.write(b"early\n")
    process.stdin.flush()
    until(lambda: broker.info()["messages"]["published"] == 1, "first line is published")
    with blipmq.connect_blocking(broker.address) as other:
        other.publish("elsewhere", b"", qos=1)  # answered after the first line, so no later subscription gets that line
    durable(connect, broker, "orders").close()
    told, _ = process.communicate(b"late\n", timeout=30)
    assert told == b"Sent 2 messages to orders. No QoS 1 subscription took 1 of them, so the broker did not keep it.\n"


@pytest.mark.parametrize("broker", [{"queues.subscriber_capacity": 1, "qos1.max_in_flight": 1}], indirect=True)
def test_messages_dropped_by_a_full_memory_queue_are_not_counted_as_stored(broker, connect):
    subscribe(connect(broker, hello=True), "orders")
    with blipmq.connect_blocking(broker.address) as writer:
        stored = [writer.publish("orders", b"x", qos=1).subscriptions for _ in range(4)]
    assert stored == [1, 1, 0, 0]


@pytest.mark.parametrize("group", ["", "workers"])
def test_closing_a_subscription_keeps_the_durable_one(broker, connect, group):
    def kept():
        return [(row["durable"], row["connected"]) for row in broker.info()["sessions"]["list"]]

    with blipmq.connect_blocking(broker.address, client_id="me") as client:
        client.subscribe("orders", qos=1, durable=True, group=group)
    with blipmq.connect_blocking(broker.address, client_id="me") as client:
        client.subscribe("orders", qos=1, group=group).close()
        client.publish("orders", b"kept", qos=1)
        durable = client.subscribe("orders", qos=1, durable=True, group=group)
        assert durable.next(30).payload == b"kept"
        durable.close()
        assert kept() == [(True, False)]
        client.unsubscribe("orders", group=group)
        assert kept() == []


@pytest.mark.parametrize("group", ["", "workers"])
def test_closing_an_asyncio_subscription_keeps_the_durable_one(broker, connect, group):
    async def main():
        async with await blipmq.connect(broker.address, client_id="me") as client:
            await client.subscribe("orders", qos=1, durable=True, group=group)
        async with await blipmq.connect(broker.address, client_id="me") as client:
            passing = await client.subscribe("orders", qos=1, group=group)
            await passing.close()
            await client.publish("orders", b"kept", qos=1)
            async with client.subscribe("orders", qos=1, durable=True, group=group) as durable:
                assert (await durable.next(30)).payload == b"kept"
            rows = (await client.info())["sessions"]["list"]
            assert [(row["durable"], row["connected"]) for row in rows] == [(True, False)]

    asyncio.run(asyncio.wait_for(main(), 60))
