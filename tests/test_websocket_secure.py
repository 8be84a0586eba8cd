"""WebSocket over TLS in the core: the layer in front of the transport that encrypts, with the toy module instead of OpenSSL.
Neither knows of the other."""

import os

import pytest
from stepped import SocketClient
from toy import ALERT, DATA, HANDSHAKE, Records, Toy, ToyBench
from toy import CLOSE as CLOSE_NOTIFY
from websocket_peer import CLOSE, PING, PONG, WebSocketClient, close, frame, request

from blipmq.wire import frames as wire


class SecureWebSocketClient(WebSocketClient):
    """A client over WebSocket over the records of the toy module. `kinds` are those it received."""

    def __init__(self, bench, ours):
        super().__init__(bench, ours)
        self.records, self.kinds = Records(), []

    def feed_raw(self, data, record_max=16 << 10):
        SocketClient.send_bytes(self, self.records.data(data, record_max))
        self.bench.settle()
        self.read_all()

    def shake(self, *contents):
        for content in contents:
            SocketClient.send_bytes(self, self.records.seal(HANDSHAKE, content))
            self.bench.settle()
            self.read_all()
        return self

    def arrived(self, data):
        for kind, content in self.records.open(data):
            self.kinds.append(kind)
            if kind == DATA:
                super().arrived(content)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    return Toy(tmp_path_factory.mktemp("toy"))


def dial(bench, buffer_bytes=1 << 20):
    return bench.use(SecureWebSocketClient(bench, bench.adopted(buffer_bytes, secure=True, websocket=True)))


def ready(bench, *filters, buffer_bytes=1 << 20):
    client = dial(bench, buffer_bytes).shake(b"", b"").upgrade().hello().subscribe(*filters)
    client.reader.frames.clear()
    return client


def publish(topic, payload=b""):
    return wire.encode_command(wire.PUB, topic, payload)


def test_messages_of_any_size_cross_both(toy):
    with ToyBench(toy) as bench:
        client = ready(bench, "a")
        payloads = [os.urandom(size) for size in (0, 1, 125, 126, 65_535, 65_536, 300_000)]
        for payload in payloads:
            client.send_bytes(publish("a", payload))
            client.drain()
        assert client.payloads == payloads


def test_records_and_frames_may_be_cut_anywhere(toy):
    with ToyBench(toy) as bench:
        client = ready(bench, "a")
        sent = frame(publish("a", b"payload")) + frame(b"ping", PING)
        for at in range(1, len(sent)):
            client.feed_raw(sent[:at], record_max=7)
            client.feed_raw(sent[at:])
        assert client.payloads == [b"payload"] * (len(sent) - 1)
        assert [f for f in client.reader.frames if f[0] == PONG] == [(PONG, b"ping")] * (len(sent) - 1)


def test_the_close_comes_before_the_end_of_tls(toy):
    with ToyBench(toy) as bench:
        client = ready(bench)
        client.feed_raw(close(1001))
        assert client.reader.frames == [(CLOSE, b"\x03\xe9")]
        assert client.kinds[-1] == CLOSE_NOTIFY
        assert client.eof


def test_a_refused_request_is_answered_over_tls(toy):
    with ToyBench(toy) as bench:
        client = dial(bench).shake(b"", b"")
        client.feed_raw(request("/elsewhere"))
        assert client.status()[0] == 404
        assert client.kinds[-1] == CLOSE_NOTIFY


@pytest.mark.parametrize("piece", [1, 3, 4, 100, 1000])
def test_a_tls_listener_also_takes_websocket_clients_by_their_first_bytes(toy, piece):
    with ToyBench(toy) as bench:
        client = bench.use(SecureWebSocketClient(bench, bench.adopted(1 << 20, secure=True))).shake(b"", b"")
        sent = request(Sec_WebSocket_Protocol="blipmq")
        for at in range(0, len(sent), piece):
            assert not client.opened
            client.feed_raw(sent[at : at + piece])
        client.hello().subscribe("a").send_bytes(publish("a", b"x"))
        assert client.payloads == [b"x"]
        assert bench.stats()["websockets"] == 1


def test_a_request_that_is_not_finished_in_time_is_closed_on_the_tls_listener_too(toy):
    with ToyBench(toy, hello_timeout_ms=5000) as bench:
        client = bench.use(SecureWebSocketClient(bench, bench.adopted(1 << 20, secure=True))).shake(b"", b"")
        client.feed_raw(b"GET /bl")
        assert bench.stats()["pending"] == 1
        bench.settle(5100)
        client.read_all()
        assert client.status()[0] == 408


@pytest.mark.parametrize(
    ("certificate", "origin", "allowed", "status"),
    [
        (b"", "https://evil.example", (), 101),  # it needs a key
        (b"Csensor-12", "https://evil.example", (), 403),  # the browser shows the certificate for any page
        (b"Csensor-12", "https://panel.example", ("https://panel.example",), 101),
        (b"Csensor-12", None, (), 101),
    ],
)
def test_a_certificate_of_the_client_makes_pages_need_an_allowed_origin(toy, certificate, origin, allowed, status):
    with ToyBench(toy, require_hello=1) as bench:
        bench.core.origins(allowed)
        client = bench.use(SecureWebSocketClient(bench, bench.adopted(1 << 20, secure=True))).shake(b"", certificate)
        client.feed_raw(request(**({"Origin": origin} if origin else {})))
        assert client.status()[0] == status


def test_one_clock_covers_the_handshakes_of_both(toy):
    with ToyBench(toy, hello_timeout_ms=5000) as bench:
        client = dial(bench)
        bench.settle(2000)
        client.shake(b"", b"")
        assert bench.stats()["pending"] == 1
        bench.settle(3100)
        client.read_all()
        assert client.status()[0] == 408
        assert client.eof
        assert bench.stats()["pending"] == 0


def test_a_stopping_broker_sends_1001_over_tls(toy):
    with ToyBench(toy) as bench:
        client = ready(bench, "a")
        bench.core.stop(1000)
        bench.settle()
        client.read_all()
        assert client.close_code[0] == 1001
        assert client.kinds[-1] == CLOSE_NOTIFY


def test_a_slow_reader_gets_whole_frames_while_the_queue_drops(toy):
    with ToyBench(toy, subscriber_messages=50) as bench:
        slow, sender = ready(bench, "a", buffer_bytes=4096), bench.attach()
        for _ in range(6):
            for i in range(150):
                sender.send_bytes(publish("a", b"%06d" % i + bytes(900)))
            bench.settle()
            slow.receive(700)
            bench.settle()
        assert bench.stats()["dropped_queue_full"] > 0
        slow.drain()
        stats = bench.stats()
        assert not slow.reader.rest
        assert len(slow.payloads) == stats["delivered"]
        assert stats["enqueued"] == stats["delivered"] + stats["dropped_queue_full"] + stats["queued_messages"]


def test_nothing_is_left_of_closed_clients(toy):
    with ToyBench(toy) as bench:
        for _ in range(5):
            ready(bench, "a").socket.close()
        dial(bench).socket.close()
        bench.settle(6000)
        stats = bench.stats()
        assert (stats["websockets"], stats["connections"], stats["secure_open"]) == (0, 0, 0)
    assert toy.alive == 0


@pytest.mark.parametrize("upgraded", [False, True])
def test_a_record_that_cannot_be_decrypted_ends_the_connection_without_work(toy, upgraded):
    """Its Close cannot be encrypted any more, so nothing waits for it."""
    with ToyBench(toy) as bench:
        client = dial(bench).shake(b"", b"")
        if upgraded:
            client.upgrade().hello().subscribe("a")
        SocketClient.send_bytes(client, b"\xff\x00\x01x")
        bench.settle()
        client.read_all()
        assert client.kinds[-1] == ALERT
        assert client.eof
        bench.settle(1100)
        assert bench.stats()["connections"] == 0
