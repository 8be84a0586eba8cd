"""Transcripts of limits: one client cannot harm the broker or other clients, with any input or unread output."""

import contextlib
import socket
import struct
import threading

import pytest
from broker_process import until
from hand_client import HELLO, INFO, PING, PUB, QUIT, SUB, UNSUB, Reply, command, v1_command

pytestmark = pytest.mark.blackbox

MIB = 1 << 20


def send_until_it_waits(client, piece):
    """Send `piece` repeatedly until the broker accepts no more for a while; returns the number of complete sends."""
    sent, left = 0, b""
    client.socket.settimeout(0.5)
    with contextlib.suppress(TimeoutError):
        while sent < 10_000:
            left = left or piece
            left = left[client.socket.send(left) :]
            sent += not left
    client.socket.settimeout(60)
    # complete the partial frame in a thread, because the broker waits for this client to read
    if left and left is not piece:
        threading.Thread(target=client.socket.sendall, args=(left,), daemon=True).start()
        sent += 1
    return sent


# ---- unread output -----------------------------------------------------------------------------------------------------


@pytest.mark.slow  # because a sanitizer build, which uses many times the memory, does not run the slow tests
@pytest.mark.parametrize("broker", [{"performance.network_optimizations.send_buffer_size": 65_536}], indirect=True)
@pytest.mark.parametrize("action", [PING, UNSUB], ids=["PING", "UNSUB"])
def test_a_client_that_does_not_read_its_answers_is_paused(broker, connect, action):
    client = connect(broker, hello=True, receive_buffer_bytes=4096)
    before = broker.rss_bytes()
    topic = "never" if action == UNSUB else None
    requests = b"".join(command(action, topic, seq=n) for n in range(1, 501))
    sent = send_until_it_waits(client, requests)
    assert sent < 10_000, "the broker took requests without end"
    assert broker.rss_bytes() - before < 16 * MIB  # 8 MiB of it are rings used for the first time
    for n in range(1, 501):
        assert client.next().seq == n
    for _ in range(sent - 1):
        for n in range(1, 501):
            assert client.next().seq == n
    assert client.is_open()


@pytest.mark.parametrize("broker", [{"performance.network_optimizations.send_buffer_size": 65_536}], indirect=True)
def test_a_newer_connection_takes_over_the_id_of_a_stuck_client(broker, connect):
    stuck = connect(broker, hello=True, client_id="pump", receive_buffer_bytes=4096).subscribe("t")
    writer = connect(broker, hello=True)

    def is_stuck():
        writer.send(*[v1_command(PUB, "t", bytes(10_000))] * 20)
        return any(row["blocked"] for row in writer.info()["subscriptions"])

    until(is_stuck, "it takes no more")
    newer = connect(broker, hello=True, client_id="pump").subscribe("t")
    writer.publish("t", b"for the newer")
    assert newer.next().payload == b"for the newer"
    until(lambda: len(writer.info()["subscriptions"]) == 1, "the older one is gone")
    broker.wait_for("client_id_taken", client="pump", older=stuck.peer, newer=newer.peer)


# ---- incomplete frames -------------------------------------------------------------------------------------------------


@pytest.mark.slow  # for the same reason
def test_an_announced_length_allocates_no_memory(broker, connect):
    before = broker.rss_bytes()
    clients = [connect(broker) for _ in range(500)]
    for client in clients:
        client.send(struct.pack(">I", MIB) + bytes(10))
    until(lambda: broker.info()["clients"] == len(clients) + 1, "all are connected")
    assert broker.rss_bytes() - before < 4 * MIB


def test_a_thousand_reconnects_leak_nothing(broker, connect):
    witness = connect(broker, hello=True)
    host, _, port = broker.address.rpartition(":")
    descriptors = broker.descriptors()
    for n in range(1000):
        with socket.create_connection((host, int(port)), timeout=60) as client:
            client.sendall(command(HELLO, client_id=f"visitor {n % 10}", protocol=1, seq=1) + command(SUB, f"t{n % 7}"))
            if n % 2:  # a reset instead of an orderly end
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    until(lambda: witness.info()["clients"] == 1, "they are gone")
    assert witness.info()["subscriptions_total"] == 0
    assert broker.descriptors() <= descriptors  # the WAL may have closed a descriptor


# ---- configured limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broker", [{"limits.max_subscriptions_per_connection": 2}], indirect=True)
def test_a_filter_over_the_limit_is_answered_429_and_repeats_are_not_counted(broker, connect):
    client = connect(broker, hello=True).subscribe("a", "b", "a")
    assert client.ask(SUB, "c").code == 429
    assert client.ask(UNSUB, "a").code == 0
    client.subscribe("c")
    plain = connect(broker).subscribe("a", "b")
    plain.send(v1_command(SUB, "c"))
    assert plain.is_closed()


@pytest.mark.parametrize("broker", [{"limits.route_cache_entries": 16}], indirect=True)
def test_topics_beyond_the_cache_size_reach_their_subscribers(broker, connect):
    readers = {filter_: connect(broker).subscribe(filter_, "end") for filter_ in (">", "n.*", "n.7", "*.3", "n.>")}
    writer = connect(broker)
    topics = [f"n.{n % 101}" for n in range(5000)]
    for topic in topics:
        writer.publish(topic, topic.encode())
    writer.publish("end", b"")
    matches = {
        ">": topics,
        "n.*": topics,
        "n.7": [topic for topic in topics if topic == "n.7"],
        "*.3": [topic for topic in topics if topic == "n.3"],
        "n.>": topics,
    }
    for filter_, reader in readers.items():
        got = [message.topic for message in iter(reader.next, None) if not ends(message, reader)]
        assert got == matches[filter_], filter_


def ends(message, reader):
    if message.topic == "end":
        reader.send(v1_command(QUIT))
        return True
    return False


def test_one_message_reaches_each_of_a_thousand_subscribers_once(broker, connect):
    readers = [connect(broker).subscribe("all") for _ in range(1000)]
    writer = connect(broker)
    for n in range(20):
        writer.publish("all", b"%d" % n)
    for reader in readers:
        assert [reader.next().payload for _ in range(20)] == [b"%d" % n for n in range(20)]
    info = broker.info()
    assert info["messages"]["delivered"] == info["messages"]["enqueued"] == 20_000
    assert info["subscriptions_total"] == 1000
    assert len(info["subscriptions"]) == 100  # the report is limited too


# ---- requests in an unusual order ----------------------------------------------------------------------------------------


def test_a_legacy_client_may_send_hello_later_and_keeps_its_subscriptions(broker, connect):
    client = connect(broker).subscribe("t")
    client.send(command(HELLO, client_id="late", protocol=1, seq=1))
    assert client.next()[:2] == (1, 0)
    client.publish("t", b"still mine")
    assert client.next().payload == b"still mine"
    client.send(command(PING, seq=2))
    assert client.next() == Reply(2, 0, "", 0, b"")


def test_hello_without_a_protocol_number_is_refused(broker, connect):
    client = connect(broker)
    client.send(command(HELLO, client_id="x", seq=3))
    assert client.next()[:2] == (3, 426)
    assert client.is_closed()


@pytest.mark.parametrize("client_id", ["x" * 257, "two\nlines", "bell\a"], ids=["long", "newline", "bell"])
def test_a_client_id_unsuitable_for_logs_is_answered_400_and_another_may_follow(broker, connect, client_id):
    client = connect(broker)
    client.send(command(HELLO, client_id=client_id, protocol=1, seq=1))
    assert client.next()[:2] == (1, 400)
    client.send(command(HELLO, client_id="pümpe-17", protocol=1, seq=2))
    assert client.next()[:2] == (2, 0)


def test_an_info_request_that_is_too_long_is_answered_400(broker, connect):
    client = connect(broker, hello=True)
    assert client.ask(INFO, None, bytes(5000)).code == 400
    assert client.ask(INFO, None, bytes(100)).code == 0


def test_client_input_cannot_start_a_log_line(broker, connect):
    forged = 'x" level=error\n2026-01-01T00:00:00.000Z error forged by=client'
    for filter_ in (forged, "\x1b[31mred", "\udcff\udcfe"):
        client = connect(broker)
        client.send(command(SUB, filter_, durable=True))
        assert client.is_closed()
    greeted = connect(broker, hello=True)
    greeted.ask(SUB, 'quo"te = \\ é', durable=True)  # refused: no client_id was given
    broker.stop()
    assert not broker.lines("forged")
    assert all(line.isprintable() for line in broker.log)
    (line,) = broker.lines("refused", what="sub")
    assert line["filter"] == 'quo\\"te = \\\\ é'
