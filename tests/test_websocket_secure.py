"""WebSocket over TLS in the core: the layer in front of the transport that encrypts, with the toy module instead of OpenSSL.
Neither knows of the other."""

import os

import pytest
from admission_model import AdmissionModel
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from stepped import SocketClient
from toy import ALERT, DATA, HANDSHAKE, Records, Toy, ToyBench, ToyClient
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


# ---- comparison with the reference model of admission ----

KINDS = {"tcp": 0, "tls": 2, "ws": 1, "wss": 3}  # the steps before the protocol
CLIENTS = {"tcp": SocketClient, "tls": ToyClient, "ws": WebSocketClient, "wss": SecureWebSocketClient}
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("arrive"), st.sampled_from(list(KINDS))),
        st.tuples(st.sampled_from(["step", "half", "hello", "leave"]), st.integers(0, 9)),
        st.tuples(st.sampled_from(["admit", "refuse"]), st.integers(0, 3)),
        st.tuples(st.just("wait"), st.sampled_from([10, 100, 400])),
    ),
    max_size=60,
)


class Doors:
    """Listeners of every kind, and clients that take the steps of their handshakes one at a time."""

    def __init__(self, bench):
        self.bench = bench
        self.clients, self.steps, self.addresses = {}, {}, {}
        for kind in KINDS:
            bench.listen(kind in ("tls", "wss"), websocket=kind in ("ws", "wss"))
            self.addresses[kind] = bench.address

    def arrive(self, name, kind):
        self.bench.address = self.addresses[kind]
        client = self.clients[name] = self.bench.connect(CLIENTS[kind])
        steps = [request()] if kind in ("ws", "wss") else []
        if kind in ("tls", "wss"):
            steps = [client.records.seal(HANDSHAKE), client.records.seal(HANDSHAKE), *map(client.records.data, steps)]
        self.steps[name] = steps

    def step(self, name, half=False):
        """Send the next step, or without its last byte if it has not begun."""
        now = self.steps[name].pop(0)
        SocketClient.send_bytes(self.clients[name], now[:-1] if half and len(now) > 1 else now)
        if half:
            self.steps[name].insert(0, now[-1:])
        self.bench.settle()

    def hello(self, name):
        self.clients[name].send(wire.HELLO, seq=1, client_id=f"c{name}", protocol=wire.PROTOCOL)
        self.bench.settle()

    def leave(self, name):
        self.clients.pop(name).socket.close()
        self.bench.settle()

    def open(self):
        """The clients that the core has not closed."""
        for client in self.clients.values():
            while not client.eof and client.receive():
                pass
        return {name for name, client in self.clients.items() if not client.eof}


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(steps=[("arrive", "tls"), ("step", 0), ("half", 0), ("step", 0)], total=1, most=3, keys=False)
@given(steps=STEPS, total=st.integers(1, 5), most=st.integers(3, 8), keys=st.booleans())
def test_handshakes_stand_in_the_admission_as_the_reference_model_says(toy, steps, total, most, keys):
    limits = {"max_pending": total, "max_connections": most, "hello_timeout_ms": 500, "require_hello": int(keys)}
    with ToyBench(toy, accept_rate=0, **limits) as bench:
        bench.answering = False
        twin, doors = AdmissionModel(total, total, most, 500, bench.now_ms, keys), Doors(bench)
        for step, (what, value) in enumerate(steps):
            waiting = sorted(name for name in twin.pending if doors.steps[name])
            asking = sorted(name for name in twin.silent if keys and not doors.steps[name])
            leaving = sorted(twin.inside - set(twin.heard))  # the end of a client is seen once its HELLO is answered
            if what == "arrive":
                doors.arrive(step, value)
                if not twin.arrive(step, "", KINDS[value]):
                    doors.leave(step)
            elif what == "wait":
                twin.wait(value)
                bench.settle(value)
            elif what in ("step", "half") and waiting:
                name = waiting[value % len(waiting)]
                half = what == "half" and len(doors.steps[name][0]) > 1
                doors.step(name, half)
                if not half:
                    twin.step(name)
            elif what == "hello" and asking:
                name = asking[value % len(asking)]
                twin.hello(name)
                doors.hello(name)
            elif what == "leave" and leaving:
                name = leaving[value % len(leaving)]
                twin.leave(name)
                doors.leave(name)
            elif what in ("admit", "refuse") and twin.heard:
                name = twin.heard[value % len(twin.heard)]
                event = next(event for event in bench.asked if event.client_id == f"c{name}")
                bench.asked.remove(event)
                if what == "admit":
                    twin.admit(name)
                    bench.core.admit(event.conn, event.seq, "")
                else:
                    twin.answer(name)
                    bench.core.reply(event.conn, event.seq, 400, "no")
            bench.settle()
            assert doors.open() & set(twin.steps) == twin.inside, f"step {step}: {what} {value}"
            bench.asked = [event for event in bench.asked if int(event.client_id[1:]) in twin.inside]
            counters = bench.stats()
            seen = {name: counters[name] for name in twin.counts if name != "refused_pending_address"}
            assert seen == {name: twin.counts[name] for name in seen}, f"step {step}: {what} {value}"
            assert counters["secure_open"] + counters["secure_pending"] <= counters["connections"]
