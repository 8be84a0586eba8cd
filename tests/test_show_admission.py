"""Acceptance: many unauthenticated connections to a broker that requires HELLO, and a broker without descriptors.

Loopback clients are bounded only in total, so one address is sufficient here; tests/test_core_admission.py tests the limits
of each address.
"""

import contextlib
import re
import resource
import select
import signal
import socket
import ssl
import struct
import time

import pytest
from broker_process import until
from certificates import Authority
from hand_client import HELLO, INFO, PING, PUB, SUB, UNSUB, HelloClient, command, v1_command
from watched_broker import get

from blipmq.config.memory import TLS_BYTES, TLS_HANDSHAKE_BYTES

UNADMITTED = 10_000
GROWTH_BYTES_MAX = 64 << 20
GUARDED = {"auth.api_keys": ["the-key-of-those-who-are-inside"]}
# A frame of 1 KiB that is never completed.
SLOW_FRAME = struct.pack(">I", 1024) + bytes(64)
METRICS = {"metrics.bind_addr": "127.0.0.1:0"}


@pytest.fixture
def descriptors():
    """Raise the descriptor limit for this many sockets in this process; the soft limit is restored."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)

    def need(count):
        wanted = max(soft, count)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(hard, wanted)))

    yield need
    now_hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, now_hard))


@pytest.fixture
def guarded(start_broker):
    def start(settings=None):
        return start_broker({**METRICS, **GUARDED, **(settings or {})})

    return start


def where(broker):
    host, _, port = broker.address.rpartition(":")
    return host, int(port)


def metric(broker, name, **labels):
    """The value of one series of a scrape."""
    text = get(broker.wait_for("metrics")["address"], "/metrics").body.decode()
    label = ",".join(f'{key}="{value}"' for key, value in labels.items())
    (value,) = re.findall(rf"^{name}{re.escape('{' + label + '}' if label else '')} (\S+)$", text, re.MULTILINE)
    return float(value)


class UnadmittedClients:
    """Sockets that send a byte a second and never send HELLO. `ended`: those closed by the broker. `slow`: what they send, of
    which the first `at_once` bytes come together."""

    def __init__(self, address, slow=SLOW_FRAME, at_once=0, answered=False):
        self.address = address
        self.slow, self.at_once, self.answered = slow, at_once, answered
        self.open = {}  # descriptor: socket, number of bytes sent
        self.ended = 0
        self._poll = select.epoll()

    def come(self, count):
        for _ in range(count):
            one = socket.create_connection(self.address, timeout=60)
            one.setblocking(False)
            if self.at_once:
                one.send(self.slow[: self.at_once])
            self.open[one.fileno()] = [one, self.at_once]
            self._poll.register(one.fileno(), select.EPOLLIN | select.EPOLLRDHUP)

    def send_a_byte_each(self):
        for entry in list(self.open.values()):
            one, sent = entry
            with contextlib.suppress(OSError):  # the close is detected later
                one.send(self.slow[sent : sent + 1])
                entry[1] += 1

    def look(self):
        for number, _ in self._poll.poll(0, 4096):
            one, _ = self.open[number]
            data = b""
            with contextlib.suppress(OSError):
                data = one.recv(1 << 16)
            if data:
                assert self.answered, "an unadmitted client gets no answer"
                continue
            self._poll.unregister(number)
            del self.open[number]
            one.close()
            self.ended += 1

    def close(self):
        for one, _ in self.open.values():
            one.close()
        self._poll.close()


@pytest.fixture
def unadmitted():
    with contextlib.ExitStack() as stack:

        def come(broker):
            crowd = UnadmittedClients(where(broker))
            stack.callback(crowd.close)
            return crowd

        yield come


def served(reader, writer, n):
    """A message is delivered from one client to another."""
    writer.send(command(PUB, "inside", b"%d" % n))
    assert reader.next().payload == b"%d" % n


def crowd_ends(broker, crowd, served_now):
    """UNADMITTED clients come, send a byte a second and are closed by the broker. `served_now(n)` is called during the whole
    time. Returns the highest memory of the broker, bytes."""
    most = came = ended = 0
    next_byte = time.monotonic()
    while crowd.ended < UNADMITTED:
        if came < UNADMITTED:
            crowd.come(100)
            came += 100
        if time.monotonic() >= next_byte:
            crowd.send_a_byte_each()
            next_byte += 1
        crowd.look()
        ended += 1
        served_now(ended)
        most = max(most, broker.rss_bytes())
    return most


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits",
    [
        {},  # at full speed: most are displaced by later ones
        {"limits.max_pending": UNADMITTED, "limits.accept_rate": 0, "server.max_connections": UNADMITTED + 100},
    ],
    ids=["default limits", "room for all of them"],
)
def test_ten_thousand_slow_unauthenticated_connections_cost_little(
    guarded, descriptors, unadmitted, connect, limits, record_property
):
    descriptors(UNADMITTED + 1000)
    broker = guarded(limits)
    reader = connect(broker, hello=True).subscribe("inside")
    writer = connect(broker, hello=True)
    served(reader, writer, 0)
    before = broker.rss_bytes()
    most = crowd_ends(broker, unadmitted(broker), lambda n: served(reader, writer, n))
    record_property("growth_bytes", most - before)
    assert most - before < GROWTH_BYTES_MAX
    timeouts = metric(broker, "blipmq_connections_hello_timeouts_total")
    pushed_out = metric(broker, "blipmq_connections_refused_total", reason="max_pending")
    assert timeouts + pushed_out == UNADMITTED, "each was closed by the broker, for one of two reasons"
    assert bool(pushed_out) == (not limits)
    until(lambda: metric(broker, "blipmq_connections_pending") == 0, "no pending connection is left")
    assert broker.info()["clients"] == 3
    lines = len(broker.log)
    assert lines < 500, f"{lines} lines in the log"
    if pushed_out:
        first = broker.wait_for("connections_refused")
        assert first["level"] == "warning" and int(first["max_pending"]) > 0


def client_hello():
    """The first flight of a TLS client."""
    flight = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), flight, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    return flight.read()


@pytest.mark.slow
@pytest.mark.parametrize(
    "limits",
    [
        {},
        {"limits.max_pending": UNADMITTED, "limits.accept_rate": 0, "server.max_connections": UNADMITTED + 100},
    ],
    ids=["default limits", "room for all of them"],
)
@pytest.mark.parametrize("half_open", [False, True], ids=["slow from the first byte", "half-open handshakes"])
def test_ten_thousand_slow_strangers_at_the_tls_port_stay_within_the_documented_memory(
    start_broker, descriptors, connect, tmp_path, half_open, limits, record_property
):
    """Half-open: the first flight comes at once and is answered, then a record that never becomes complete."""
    descriptors(UNADMITTED + 1000)
    authority = Authority(tmp_path)
    cert, key = authority.sign("broker")
    files = {"tls.cert_file": str(cert), "tls.key_file": str(key)}
    broker = start_broker({**METRICS, "server.tls_bind_addr": "127.0.0.1:0", **files, **limits})
    host, _, port = broker.wait_for("ready")["tls"].rpartition(":")
    reader, writer = connect(broker, hello=True).subscribe("inside"), connect(broker, hello=True)
    context = ssl.create_default_context(cafile=authority.file)
    secure = context.wrap_socket(socket.create_connection((host, int(port)), timeout=60), server_hostname=host)
    hello = client_hello()
    slow = hello + b"\x14\x03\x03\x00\x01\x01\x17\x03\x03\x00\xff" + bytes(60) if half_open else hello
    crowd = UnadmittedClients((host, int(port)), slow, len(hello) if half_open else 1, half_open)
    served(reader, writer, 0)
    before = broker.rss_bytes()

    def both_served(n):
        served(reader, writer, n)
        secure.sendall(command(PUB, "inside", b"%d over TLS" % n))
        assert reader.next().payload == b"%d over TLS" % n

    with secure, contextlib.closing(crowd):
        most = crowd_ends(broker, crowd, both_served)
    pending_max = UNADMITTED if limits else 1024
    record_property("growth_bytes", most - before)
    assert most - before < TLS_BYTES + pending_max * TLS_HANDSHAKE_BYTES + (32 << 20)
    timeouts = metric(broker, "blipmq_connections_hello_timeouts_total")
    pushed_out = metric(broker, "blipmq_connections_refused_total", reason="max_pending")
    assert timeouts + pushed_out == UNADMITTED, "each was closed by the broker, for one of two reasons"
    assert bool(pushed_out) == (not limits)
    until(lambda: metric(broker, "blipmq_connections_pending") == 0, "no pending connection is left")
    lines = len(broker.log)
    assert lines < 2000, f"{lines} lines in the log"


def test_commands_before_hello_have_no_effect(guarded, connect):
    broker = guarded()
    witness = connect(broker, hello=True).subscribe("t", "u")
    for frame in (
        command(PUB, "t", b"from nobody", seq=1),
        command(PUB, "t", b"from nobody", qos=1, seq=1),
        command(SUB, "t", seq=1),
        command(UNSUB, "t", seq=1),
        command(INFO, payload=b"", seq=1),
        command(PING, seq=1),
        v1_command(PUB, "t", b"from nobody"),
        v1_command(SUB, "t"),
    ):
        client = connect(broker)
        client.send(frame)
        assert client.is_closed()
        hasty = connect(broker)
        hasty.send(frame + command(HELLO, client_id="late", protocol=1, seq=2))
        assert hasty.is_closed()
    served(witness.subscribe("inside"), witness, 1)  # and no earlier message arrived
    assert broker.info()["clients"] == 2
    assert metric(broker, "blipmq_messages_published_total") == 1


def test_displaced_pending_connections_are_counted_in_one_log_line_and_info(guarded, unadmitted):
    broker = guarded({"limits.max_pending": 8})
    with HelloClient(broker.address, api_key=broker.api_key) as inside:
        crowd = unadmitted(broker)
        crowd.come(100)
        told = until(
            lambda: inside.info()["connections"]["refused"]["max_pending"] >= 92 and inside.info(), "92 are gone"
        )
        assert told["connections"]["pending"] == 8
        line = broker.wait_for("connections_refused")
        assert 0 < int(line["max_pending"]) <= 92
        crowd.come(20)
        until(lambda: inside.info()["connections"]["refused"]["max_pending"] == 112, "20 more are gone")
        until(
            lambda: any("without a valid HELLO" in reason for reason in inside.info()["reasons"]),
            "INFO gives the reason",
        )
    assert len(broker.lines("connections_refused")) == 1, "the next one is a minute away"


@pytest.mark.parametrize("broker", [{**METRICS, "limits.accept_rate": 1, "limits.accept_burst": 3}], indirect=True)
def test_a_connection_burst_is_accepted_gradually_and_clients_are_served(broker, connect):
    reader, writer = connect(broker).subscribe("inside"), connect(broker)
    crowd = [connect(broker) for _ in range(20)]
    for n in range(200):
        writer.publish("inside", b"%d" % n)
        assert reader.next().payload == b"%d" % n
    until(lambda: metric(broker, "blipmq_accept_rests_total") >= 2, "the listeners have rested")
    assert metric(broker, "blipmq_connections_accepted_total") < 3 + len(crowd)


# ---- descriptors -----------------------------------------------------------------------------------------------------


def limit_descriptors(broker, count):
    """Set the descriptor limit of the broker, below its current use if requested."""
    resource.prlimit(
        broker.pid, resource.RLIMIT_NOFILE, (count, resource.prlimit(broker.pid, resource.RLIMIT_NOFILE)[1])
    )


def leave_no_descriptor(broker):
    """Independent of closed descriptors: only the first three numbers are allowed, and they are in use."""
    limit_descriptors(broker, 3)


def turns_in_a_while(broker):
    """Turns of the I/O thread per second of the broker's own clock."""
    turns, since = metric(broker, "blipmq_core_turns_total"), time.monotonic()
    time.sleep(1)
    return (metric(broker, "blipmq_core_turns_total") - turns) / (time.monotonic() - since)


@pytest.mark.parametrize("broker", [{**METRICS, "limits.max_subscriptions_per_connection": 3}], indirect=True)
def test_without_descriptors_accepting_pauses_without_spinning_and_resumes(broker, connect):
    witness = connect(broker, hello=True).subscribe("t")
    limit = 200
    limit_descriptors(broker, limit)
    crowd = [socket.create_connection(where(broker), timeout=60) for _ in range(limit)]
    assert broker.wait_for("accept_paused")["error"] == "Too many open files"
    until(lambda: limit - 40 < broker.descriptors() <= limit - 32, "some are left for the broker's own needs")
    assert turns_in_a_while(broker) < 1000, "it spins"
    (reason,) = witness.info()["reasons"]
    assert "Too many open files" in reason

    assert metric(broker, "blipmq_connections_refused_total", reason="descriptors") == 1

    # One reserved descriptor is sufficient for a reload.
    broker.configure({**METRICS, "limits.max_subscriptions_per_connection": 4})
    broker.signal(signal.SIGHUP)
    broker.wait_for("reloaded", applied="limits.max_subscriptions_per_connection")
    witness.subscribe("u", "v", "w")
    assert witness.ask(SUB, "x").code == 429

    # Without any the file cannot be read: nothing changes, and no default is applied.
    leave_no_descriptor(broker)
    broker.configure({**METRICS, "limits.max_subscriptions_per_connection": 9})
    broker.signal(signal.SIGHUP)
    refused = broker.wait_for("reload_failed")
    assert "Too many open files" in refused["error"]
    assert witness.ask(SUB, "x").code == 429
    assert any("the old one stays in effect" in reason for reason in witness.info()["reasons"])

    limit_descriptors(broker, limit + 100)
    broker.wait_for("accept_resumed")
    until(lambda: witness.info()["clients"] >= limit, "those who waited are in")
    broker.signal(signal.SIGHUP)
    until(lambda: len(broker.lines("reloaded")) == 2, "it is reconfigured")
    witness.subscribe("x")
    for one in crowd:
        one.close()
    until(lambda: broker.info()["clients"] == 2, "they are gone")
    assert broker.info()["reasons"] == []


def test_without_descriptors_no_client_is_admitted_before_hello(guarded, connect):
    """From a vulnerability of another broker, which dropped its settings when it could not read them again."""
    broker = guarded()
    inside = connect(broker, hello=True).subscribe("t")
    client = connect(broker)
    until(lambda: inside.info()["connections"]["pending"] == 1, "the client is pending")
    leave_no_descriptor(broker)
    broker.signal(signal.SIGHUP)
    broker.wait_for("reload_failed")
    client.send(v1_command(PUB, "t", b"from nobody"))
    assert client.is_closed()
    with socket.create_connection(where(broker), timeout=60) as another:
        another.sendall(v1_command(PUB, "t", b"from nobody"))
        limit_descriptors(broker, 1024)
        assert another.recv(1) == b""
    inside.send(command(PUB, "t", b"from inside"))
    assert inside.next().payload == b"from inside"


@pytest.mark.parametrize(
    "broker", [{"server.max_message_size_bytes": 8192, "wal.segment_size_bytes": 1 << 19}], indirect=True
)
def test_wal_segments_are_created_while_no_connection_can_be_accepted(broker, connect):
    witness = connect(broker, hello=True)
    keeper = connect(broker, hello=True)
    keeper.send(command(SUB, "t", qos=1, seq=9))
    assert keeper.next().code == 0
    limit_descriptors(broker, broker.descriptors() + 60)
    crowd = [socket.create_connection(where(broker), timeout=60) for _ in range(80)]
    broker.wait_for("accept_paused")
    for n in range(300):  # several files of the WAL, each with a descriptor
        witness.send(command(PUB, "t", bytes(8000), qos=1, seq=n + 1))
        assert witness.next().code == 0
    assert witness.info()["log"]["state"] == "ok" and witness.info()["log"]["segments"] > 3
    for one in crowd:
        one.close()
