"""Vulnerabilities of other brokers, reproduced: each test corresponds to a CVE of another broker.

Permissions that outlive their key, and permissions not checked at delivery, are tested with the keys.
"""

import contextlib
import itertools
import json
import os
import signal
import socket
import stat
import struct
import sys
from pathlib import Path

import pytest
from broker_process import until
from hand_client import (
    ACK,
    HELLO,
    INFO,
    PUB,
    SUB,
    UNSUB,
    Message,
    Reply,
    SubAck,
    byte,
    command,
    long,
    short,
    table,
    v1_command,
)
from stepped import Bench
from watched_broker import get

from blipmq.config.memory import BUFFER_BYTES
from blipmq.native.events import CloseReason

METRICS = {"metrics.bind_addr": "127.0.0.1:0"}


def where(broker):
    host, _, port = broker.address.rpartition(":")
    return host, int(port)


def scrape(broker):
    text = get(broker.wait_for("metrics")["address"], "/metrics").body.decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def in_use(broker):
    """Memory used by the core, without free blocks, and without buffers, whose number varies by one."""
    values = scrape(broker)
    segments = values["blipmq_segments"] * BUFFER_BYTES
    return values["blipmq_memory_used_bytes"] - values["blipmq_memory_free_bytes"] - segments


# ---- allocation from a received length before authentication ----


def test_announced_lengths_allocate_nothing_before_admission(start_broker, connect):
    broker = start_broker({**METRICS, "auth.api_keys": ["the-key-of-the-witness"]})
    witness = connect(broker, hello=True)
    witness.info()
    used = in_use(broker)  # the first request loads the modules of HTTP, so the memory is read after it
    before = broker.rss_bytes()
    for size in (1025, 1 << 20, 1 << 30, 0x7FFFFFFF, 0xFFFFFFFF):
        for rest in (b"", bytes(1000)):
            for _ in range(20):
                client = connect(broker)
                with contextlib.suppress(ConnectionError):  # closed at the length; later writes may fail
                    client.send(struct.pack(">I", size) + rest)
                assert client.is_closed()
                client.close()
    # Inside a frame of a valid size: strings and vectors whose length exceeds it.
    for lie in (b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\1\0"):
        frame = command(HELLO, client_id="c" * 100, protocol=1, seq=1)
        at = frame.index(struct.pack("<I", 100) + b"ccc")
        client = connect(broker)
        client.send(frame[:at] + lie + frame[at + 4 :])
        assert client.is_closed()
    until(lambda: broker.info()["clients"] == 2, "they are gone")
    assert in_use(broker) <= used + 64 * 1024
    assert broker.rss_bytes() - before < 4 << 20


# ---- wildcards in a client_id ----

NAMES = ["#", "+", "*", ">", "+/+", "$SYS/#", "..", "../../etc/passwd", "%2e%2e", "a b", "'; --", "${HOME}", "é" * 128]


def test_a_client_id_is_never_used_as_a_pattern_or_path(start_broker, connect):
    broker = start_broker()
    clients = {name: connect(broker, hello=True, client_id=name) for name in NAMES}
    for name, client in clients.items():
        answer = client.ask(SUB, "site/1", qos=1, durable=True)
        assert (type(answer), answer.code) == (SubAck, 0), name
    publisher = connect(broker, hello=True)
    assert publisher.ask(PUB, "site/1", b"for each", qos=1).code == 0
    for client in clients.values():
        message = client.next()
        assert isinstance(message, Message) and message.payload == b"for each"
        client.send(command(ACK, seq=message.id))
    # Ending or reconnecting one client does not affect subscriptions of others.
    assert clients["#"].ask(UNSUB, "site/1").code == 0
    assert clients["+"].ask(UNSUB, "site/1").code == 0
    again = connect(broker, hello=True, client_id="*")
    assert until(lambda: clients["*"].next(), "the older one is told").code == 409
    assert publisher.ask(PUB, "site/1", b"for the others", qos=1).code == 0
    for name in set(NAMES) - {"#", "+", "*"}:
        assert clients[name].next().payload == b"for the others", name
    assert again.ask(SUB, "site/1", qos=1, durable=True).code == 0
    assert again.next().payload == b"for the others"
    for name in ("#", "+"):
        assert clients[name].is_open()
    files = {path.name for path in broker.config.parent.rglob("*")}
    assert not [file for file in files if set(file) & set("#+*%$' ")], "a file bears a client's name"


@pytest.mark.parametrize("name", ["\0", "a\0b", "line\nbreak", "\x1b[31m", "x" * 257, "x" * 5000], ids=ascii)
def test_an_invalid_client_id_is_refused_and_cannot_split_a_log_line(broker, connect, name):
    client = connect(broker)
    client.send(command(HELLO, client_id=name, protocol=1, seq=1))
    answer = client.next()  # not admitted, so there may be no Reply: then the connection is closed
    assert answer is None or (isinstance(answer, Reply) and answer.code == 400)
    assert broker.info()["clients"] <= 2
    assert all("\x1b" not in line and "\0" not in line for line in broker.log)


# ---- thousands of topic levels ----


@pytest.mark.parametrize("broker", [{"limits.max_topic_levels": 257}], indirect=True)
def test_the_maximum_topic_levels_are_matched_without_recursion(broker, connect):
    reader, writer = connect(broker, hello=True), connect(broker, hello=True)
    deep = "/" * 256
    filters = ["#", "/#", "/" * 255 + "#", "+" + "/+" * 127 + "/#"[:0], deep, ">", "." * 255 + ">"]
    reader.subscribe(*filters)
    for topic in (deep, "." * 256, "/." * 128, "a/" * 128, "/" * 128 + "." * 128):
        writer.publish(topic, topic.encode())
        assert reader.next().payload == topic.encode()
    for filter_ in filters:
        assert reader.ask(UNSUB, filter_).code == 0
    # Every filter of nine levels that matches "a/a/a/a/a/a/a/a/a": all are found, once.
    for levels in itertools.product("a+", repeat=9):
        reader.subscribe("/".join(levels))
    writer.publish("/".join("a" * 9), b"once")
    writer.publish("/".join("b" * 9), b"by one")
    assert [reader.next().payload for _ in range(2)] == [b"once", b"by one"]


def test_too_many_topic_levels_are_refused_without_matching(broker, connect):
    client = connect(broker, hello=True)
    for name in ("/" * 64, "." * 64, "a/" * 64 + "b.c"):
        for action in (PUB, SUB):
            answer = client.ask(action, name)
            assert answer.code == 400 and "limits.max_topic_levels" in answer.message
    for length in (257, 5000, 60_000):
        assert client.ask(PUB, "/" * length).code == 400
    client.subscribe("/" * 63).publish("/" * 63, b"64 levels")
    assert client.next().payload == b"64 levels"
    legacy = connect(broker)
    legacy.publish("/" * 64, b"")
    assert legacy.is_closed()


@pytest.mark.parametrize(
    "broker", [{"limits.max_topic_levels": 3, "qos1.ack_timeout_ms": 100, "qos1.max_deliveries": 1}], indirect=True
)
def test_the_dead_letter_prefix_does_not_count_as_a_topic_level(broker, connect):
    collector = connect(broker, hello=True).subscribe("$dlq/a/b/c")
    silent, writer = connect(broker, hello=True), connect(broker, hello=True)
    assert silent.ask(SUB, "a/b/c", qos=1).code == 0
    assert writer.ask(PUB, "a/b/c", b"never acknowledged", qos=1).code == 0
    assert collector.next().topic == "$dlq/a/b/c"
    assert writer.ask(PUB, "$dlq/a/b/c/d", b"").code == 400


# ---- unfinished exchanges ----


def begin_and_leave(broker, n):
    """A client that sends a request and disconnects before the answer."""
    hello = command(HELLO, client_id=f"visitor {n % 5}", protocol=1, seq=1)
    frames = [
        hello,
        hello + command(PUB, "t", b"x" * 100, qos=1, seq=2),
        hello + command(SUB, f"t/{n % 7}", qos=1, seq=2),
        hello + command(SUB, f"t/{n % 7}", qos=1, seq=2, group="workers"),
        hello + command(INFO, seq=2),
        hello + command(SUB, "t", seq=2) + command(UNSUB, "t", seq=3)[:20],
        hello + struct.pack(">I", 100_000) + bytes(50_000),
        v1_command(SUB, "t") + v1_command(PUB, "t", b"y")[:10],
    ]
    with socket.create_connection(where(broker), timeout=60) as client:
        client.sendall(frames[n % len(frames)])
        if n // len(frames) % 2:  # a reset instead of an orderly end
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def test_unfinished_exchanges_leak_nothing(start_broker, connect):
    broker = start_broker(
        {**METRICS, "limits.accept_rate": 0, "qos1.max_in_flight": 8, "queues.subscriber_capacity": 16}
    )
    witness = connect(broker, hello=True)
    slow = connect(broker, hello=True)  # receives and never acknowledges
    assert slow.ask(SUB, "t/#", qos=1).code == 0
    subscriptions = witness.info()["subscriptions_total"]

    def flows(count):
        for n in range(count):
            begin_and_leave(broker, n)
            if n % 100 == 99:  # the same number at once each time: the core keeps its slots for reuse
                until(lambda: witness.info()["clients"] == 2, "they are gone")
        until(lambda: scrape(broker)["blipmq_log_held"] == 0, "nothing waits for the disk")
        return in_use(broker)

    flows(400)
    descriptors, used = broker.descriptors(), flows(400)
    assert flows(1600) <= used + 64 * 1024
    assert scrape(broker)["blipmq_segments"] <= 4
    assert broker.descriptors() <= descriptors + 2, "the log may have opened one of its own"
    told = witness.info()
    assert (told["subscriptions_total"], told["sessions"]["total"]) == (subscriptions, 1)
    assert told["sessions"]["in_flight"] <= 8, "the window of the one that never acknowledges"
    slow.close()
    until(lambda: witness.info()["sessions"]["in_flight"] == 0, "its window goes with it")
    assert (witness.info()["sessions"]["total"], witness.info()["subscriptions_total"]) == (0, 0)


# ---- times chosen by a client ----


def test_no_client_field_extends_a_broker_timeout():
    """Every number, including keep-alive and reserved fields, at its maximum does not extend the time before
    admission."""
    most = long(2**64 - 1)
    fields = [byte(HELLO), None, None, most, byte(1), most, ["c"], None, short(1), byte(1), None, *[most] * 6]
    body = table(fields)
    with Bench(require_hello=1, keepalive_ms=60_000, hello_timeout_ms=5000) as bench:
        bench.answering = False
        client = bench.attach()
        client.send_bytes(struct.pack(">I", len(body)) + body)
        bench.settle()
        assert len(bench.asked) == 1, "it is a HELLO"
        bench.settle(4990)
        assert client.closed is None
        bench.settle(20)
        assert client.closed and client.closed.reason is CloseReason.UNAUTH


@pytest.mark.parametrize("broker", [{"performance.timer_config.max_timeout_ms": 60_000}], indirect=True)
def test_a_time_to_live_is_limited_to_the_broker_maximum(broker, connect):
    client = connect(broker, hello=True).subscribe("t")
    for ttl_ms in (60_001, 2**32, 2**63, 2**64 - 1):
        client.publish("t", b"", ttl_ms=ttl_ms)
        assert 0 < client.next().ttl_ms <= 60_000


# ---- repeated takeovers of one client_id ----


def test_thousands_of_takeovers_leave_one_session_and_leak_nothing(start_broker, connect):
    broker = start_broker({**METRICS, "limits.accept_rate": 0, "limits.max_subscriptions_per_connection": 50_000})
    witness = connect(broker, hello=True)

    def fight(count):
        with contextlib.ExitStack() as stack:
            older = None
            for _ in range(count):
                newer = stack.enter_context(socket.create_connection(where(broker), timeout=60))
                newer.sendall(
                    command(HELLO, client_id="contested", protocol=1, seq=1)
                    + command(SUB, "t/1", qos=1, durable=True, seq=2)
                    + command(SUB, "t/+", seq=3)
                )
                if older is not None:
                    while older.recv(4096):  # answers, then 409 and the end
                        pass
                    older.close()
                older = newer
        until(lambda: witness.info()["clients"] == 1, "all of them are gone")
        return in_use(broker)

    fight(100)
    descriptors, used = broker.descriptors(), fight(500)
    assert fight(2000) <= used + 64 * 1024
    assert broker.descriptors() <= descriptors + 2, "the log may have opened one of its own"
    told = witness.info()
    assert (told["sessions"]["total"], told["subscriptions_total"]) == (1, 1), "one durable subscription, and no other"


def test_a_hundred_simultaneous_clients_with_one_id_leave_one_connection(broker, connect):
    witness = connect(broker, hello=True)
    rivals = [connect(broker) for _ in range(100)]
    for rival in rivals:
        rival.send(command(HELLO, client_id="contested", protocol=1, seq=1))
    until(lambda: witness.info()["clients"] == 2, "one is left")
    assert (
        len(broker.lines("client_id_taken"))
        + sum(int(line["count"]) for line in broker.lines("logs_suppressed", of="client_id_taken"))
        <= 99
    )


# ---- unreadable settings at a reload: see also test_show_admission.py ----


def test_a_failed_configuration_reload_keeps_the_old_configuration(broker, connect):
    client = connect(broker, hello=True)
    for break_it in (lambda path: path.unlink(), lambda path: path.mkdir(), lambda path: path.rmdir()):
        break_it(broker.config)
        count = len(broker.lines("reload_failed"))
        broker.signal(signal.SIGHUP)
        until(lambda count=count: len(broker.lines("reload_failed")) == count + 1, "it says so")
        assert client.is_open()
    assert any("the old one stays in effect" in reason for reason in client.info()["reasons"])


# ---- confidential values in the output of the broker ----


def test_credentials_appear_in_no_log_metric_answer_or_process_list(start_broker, connect):
    secret = "s3cr3t-0f-a-c1ient"
    broker = start_broker({**METRICS, "logging.level": "debug", "auth.api_keys": [secret]})
    client = connect(broker)
    client.send(command(HELLO, client_id="honest", api_key=secret, protocol=1, seq=1))
    assert client.next().code == 0
    for refused in (
        command(HELLO, client_id="old", api_key=secret, protocol=9, seq=1),
        command(HELLO, client_id="bad\n", api_key=secret, protocol=1, seq=1),
        command(HELLO, client_id="cut", api_key=secret, protocol=1, seq=1)[:-3] + b"\xff\xff\xff",
        command(SUB, "t", api_key=secret, seq=1),
    ):
        another = connect(broker)
        another.send(refused)
        another.next()
    witness = connect(broker, hello=True)
    shown = [json.dumps(witness.info()), *broker.log]
    edge = broker.wait_for("metrics")["address"]
    shown += [get(edge, path).body.decode() for path in ("/metrics", "/healthz", "/readyz", "/livez")]
    shown += [Path(f"/proc/{broker.pid}/{name}").read_text() for name in ("cmdline", "environ", "comm", "status")]
    broker.stop()
    shown += broker.log
    assert "honest" in "".join(shown), "nothing was looked at"
    assert not [text for text in shown if secret in text]


# ---- files readable by other users ----


def test_files_on_disk_are_private_with_any_umask(start_broker, connect):
    broker = start_broker(command=["sh", "-c", 'umask 0 && exec "$0" -m blipmq "$@"', sys.executable])
    client = connect(broker, hello=True, client_id="me")
    assert client.ask(SUB, "t", qos=1, durable=True).code == 0
    assert connect(broker, hello=True).ask(PUB, "t", b"nobody else's business", qos=1).code == 0
    broker.stop()
    store = broker.config.parent / "data" / "wal"
    kept = [store, *store.rglob("*")]
    assert len(kept) > 2 and b"nobody else's business" in b"".join(path.read_bytes() for path in kept if path.is_file())
    assert not [path for path in kept if stat.S_IMODE(os.stat(path).st_mode) & 0o077]
