"""Acceptance: ten thousand open idle connections with parallel traffic, and one connection over the limit."""

import contextlib
import resource
import socket

import pytest
from broker_process import until
from hand_client import HELLO, PING, SUB, HelloClient, LegacyClient, command, v1_command

pytestmark = [pytest.mark.blackbox, pytest.mark.slow]

CONNECTIONS = 10_000
DESCRIPTORS = CONNECTIONS + 1000  # of this process
BYTES_PER_IDLE_CONNECTION_MAX = 1024


@pytest.fixture(autouse=True)
def enough_descriptors():
    """Both ends of a connection need a descriptor, and this end is in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(hard, wanted)))


@pytest.fixture
def crowd():
    """Sockets that are closed after the test."""
    with contextlib.ExitStack() as stack:
        yield lambda address: stack.enter_context(socket.create_connection(address, timeout=60))


def where(broker):
    host, _, port = broker.address.rpartition(":")
    return host, int(port)


def wait_for_clients(asker, count):
    until(lambda: asker.info()["clients"] == count, f"{count} clients are connected")


def test_ten_thousand_idle_connections_use_one_kib_each_and_add_no_latency(broker, connect, crowd, record_property):
    asker = connect(broker, hello=True)
    reader, writer = connect(broker).subscribe("traffic"), connect(broker)
    for _ in range(100):  # one-time costs happen before the measurement
        crowd(where(broker))
    wait_for_clients(asker, 103)
    before = broker.rss_bytes()
    idle = [crowd(where(broker)) for _ in range(CONNECTIONS - 103)]
    wait_for_clients(asker, CONNECTIONS)
    each = (broker.rss_bytes() - before) / len(idle)
    record_property("rss_bytes_per_idle_connection", round(each))
    for n in range(20_000):
        writer.publish("traffic", b"%d" % n)
        if n % 1000 == 999:
            assert [reader.next().payload for _ in range(1000)] == [b"%d" % m for m in range(n - 999, n + 1)]
    assert each <= BYTES_PER_IDLE_CONNECTION_MAX, f"{each:.0f} bytes for each idle connection"
    assert not broker.lines("closed", level="warning"), "one was refused below max_connections"
    # All of them are alive: each subscribes and receives one message.
    for client in idle:
        client.sendall(v1_command(SUB, "all"))
    until(lambda: asker.info()["subscriptions_total"] == len(idle) + 1, "all have subscribed")
    each = (broker.rss_bytes() - before) / len(idle)
    record_property("rss_bytes_per_subscribed_connection", round(each))
    writer.publish("all", b"hello everybody")
    for client in idle:
        heard = b""
        while b"hello everybody" not in heard:
            piece = client.recv(4096)
            assert piece, "a client was closed"
            heard += piece


@pytest.mark.parametrize("broker", [{"server.max_connections": CONNECTIONS}], indirect=True)
def test_a_connection_over_the_limit_is_refused_and_a_freed_slot_is_reused(broker, connect, crowd):
    asker = connect(broker, hello=True)
    idle = [crowd(where(broker)) for _ in range(CONNECTIONS - 1)]
    wait_for_clients(asker, CONNECTIONS)

    greeted = connect(broker)
    greeted.send(command(HELLO, client_id="one too many", protocol=1, seq=5), command(PING, seq=6))
    answer = greeted.next()
    assert (answer.seq, answer.code) == (5, 429)
    assert "max_connections" in answer.message
    assert greeted.is_closed()

    legacy = connect(broker)
    legacy.send(v1_command(SUB, "t"))
    assert legacy.is_closed()

    silent = connect(broker)
    assert silent.is_closed()

    assert asker.info()["clients"] == CONNECTIONS
    idle[0].close()
    wait_for_clients(asker, CONNECTIONS - 1)
    with LegacyClient(broker.address) as in_its_place:
        in_its_place.subscribe("t")

    broker.stop()
    for client in (greeted, legacy, silent):
        (line,) = broker.lines("closed", peer=client.peer)
        assert (line["level"], line["reason"]) == ("warning", "refused")


@pytest.mark.parametrize("broker", [{"server.max_connections": 2}], indirect=True)
def test_many_pending_connections_do_not_disturb_clients(broker, connect, crowd):
    reader, writer = connect(broker).subscribe("inside"), connect(broker)
    for n in range(500):
        crowd(where(broker))
        writer.publish("inside", b"%d" % n)
        assert reader.next().payload == b"%d" % n
    writer.close()
    until(lambda: can_enter(broker), "the freed place can be had")


def can_enter(broker):
    try:
        with HelloClient(broker.address):
            return True
    except (AssertionError, ConnectionError):
        return False
