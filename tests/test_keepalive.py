"""Clients that vanish: their packets are dropped, as in a power cut, while the broker serves others.

A socket filter that accepts nothing simulates the power cut: packets are dropped before the system acknowledges them.
It needs no privileges and no separate network.
"""

import socket
import ssl
import struct

import pytest
from broker_process import TIMEOUT_S, until
from certificates import Authority
from hand_client import HELLO, PUB, SUB, command, decode, vanish

KEEPALIVE_MS = 2000
QUIET = {"server.keepalive_ms": KEEPALIVE_MS, "metrics.bind_addr": "", "limits.accept_rate": 0}


class Way:
    """Plain TCP, or TLS over it; `sock` is the socket that can vanish."""

    def __init__(self, broker, address, context=None, receive_bytes=None):
        host, port = address.rsplit(":", 1)
        self.sock = socket.socket()
        if receive_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect((host, int(port)))
        self.stream = self.sock
        if context is not None:
            self.stream = self.sock = context.wrap_socket(self.sock, server_hostname=host)

    def frame(self):
        data = b""
        while len(data) < 4:
            data += self.stream.recv(4 - len(data))
        size = struct.unpack(">I", data)[0]
        data = b""
        while len(data) < size:
            data += self.stream.recv(size - len(data))
        return decode(data)

    def ask(self, *args, **fields):
        self.stream.sendall(command(*args, **fields))
        return self.frame()

    def hello(self, name):
        assert self.ask(HELLO, seq=1, protocol=1, client_id=name).code == 0
        return self


@pytest.fixture(params=["tcp", "tls"])
def serve(request, start_broker, tmp_path):
    """A broker with these settings, and a function that connects to it."""
    authority = Authority(tmp_path) if request.param == "tls" else None
    open_ways = []

    def begin(settings=None):
        tls = {}
        if authority is not None:
            cert, key = authority.sign("broker")
            tls = {"server.tls_bind_addr": "127.0.0.1:0", "tls.cert_file": str(cert), "tls.key_file": str(key)}
        broker = start_broker({**QUIET, **tls, **(settings or {})})
        address = broker.wait_for("ready")["tls"] if authority is not None else broker.address
        context = ssl.create_default_context(cafile=authority.file) if authority is not None else None

        def connect(name, **options):
            open_ways.append(Way(broker, address, context, **options).hello(name))
            return open_ways[-1]

        return broker, connect

    yield begin
    for way in open_ways:
        way.sock.close()


def test_a_quiet_client_that_vanishes_is_closed_and_the_reason_is_logged(serve):
    broker, connect = serve()
    alive = connect("alive")
    vanish(connect("dead").sock)
    assert broker.wait_for("closed", client="dead")["reason"] == "vanished"
    assert not broker.lines("closed", client="alive")
    assert alive.ask(6, seq=9).seq == 9  # PING


def test_a_subscriber_that_vanishes_with_pending_output_is_closed(serve):
    broker, connect = serve()
    publisher, dead = connect("publisher"), connect("dead")
    dead.ask(SUB, "t", seq=2)
    vanish(dead.sock)
    publisher.stream.sendall(command(PUB, "t", b"nobody acknowledges this"))
    assert broker.wait_for("closed", client="dead")["reason"] == "vanished"


def test_a_slow_reader_is_not_closed(serve):
    broker, connect = serve()
    publisher, slow, dead = connect("publisher"), connect("slow", receive_bytes=4096), connect("dead")
    slow.ask(SUB, "t", seq=2)
    for _ in range(100):
        publisher.stream.sendall(command(PUB, "t", bytes(100_000)))
    for name in ("dead", "another"):  # two in sequence: the slow one has read nothing for at least twice the time
        vanish((dead if name == "dead" else connect(name)).sock)
        broker.wait_for("closed", client=name)
    assert not broker.lines("closed", client="slow")
    assert slow.frame().topic == "t"


def test_a_blocked_publisher_that_vanishes_is_closed(serve):
    broker, connect = serve({"queues.overflow_policy": "block", "queues.subscriber_capacity": 2})
    slow, dead = connect("slow", receive_bytes=4096), connect("dead")
    slow.ask(SUB, "t", seq=2)
    while broker.info()["messages"]["queued"] < 2:  # until the sockets between them are full
        dead.stream.sendall(command(PUB, "t", bytes(30_000)))
    for _ in range(3):
        dead.stream.sendall(command(PUB, "t", b"it waits for room"))
    vanish(dead.sock)
    assert broker.wait_for("closed", client="dead")["reason"] == "vanished"
    assert not broker.lines("closed", client="slow")


def test_messages_of_a_vanished_group_member_go_to_the_others(serve):
    broker, connect = serve({"qos1.ack_timeout_ms": 3_600_000})
    publisher, dead = connect("publisher"), connect("dead")
    dead.ask(SUB, "jobs", seq=2, qos=1, durable=True, group="workers")
    publisher.ask(PUB, "jobs", b"one", qos=1, seq=3)
    assert dead.frame().payload == b"one"
    vanish(dead.sock)
    other = connect("other")
    other.stream.sendall(command(SUB, "jobs", seq=2, qos=1, durable=True, group="workers"))
    frames = [other.frame(), other.frame()]
    assert [frame.payload for frame in frames if hasattr(frame, "payload")] == [b"one"]
    assert broker.wait_for("closed", client="dead")["reason"] == "vanished"


def test_devices_that_lose_power_free_their_connections(start_broker):
    broker = start_broker({**QUIET, "server.max_connections": 6})
    for _ in range(3):  # more than the number of connection slots, in total
        crowd = [Way(broker, broker.address).hello("") for _ in range(5)]
        for way in crowd:
            vanish(way.sock)
        until(lambda: broker.info()["clients"] <= 1, "their places are free again")
        for way in crowd:
            way.sock.close()
