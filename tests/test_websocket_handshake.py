"""The HTTP request that opens a WebSocket: what is accepted, the answer to everything else, origins, limits in size and
time. The core is stepped by hand."""

import pytest
from stepped import Bench
from websocket_peer import KEY, WebSocketClient, frame, request

from blipmq.wire import frames as wire

HELLO = wire.encode_command(wire.HELLO, client_id="c", protocol=wire.PROTOCOL, seq=1)


def adopt(bench, buffer_bytes=1 << 16):
    return bench.adopt(buffer_bytes, WebSocketClient, websocket=True)


def answer_to(data, origins=(), **limits):
    with Bench(**limits) as bench:
        bench.core.origins(origins)
        client = adopt(bench)
        client.feed_raw(data)
        assert client.eof or client.opened
        return client.status()


@pytest.mark.parametrize(
    "sent",
    [
        request(),
        request("/blipmq?token=ignored"),
        request(Sec_WebSocket_Protocol="blipmq"),
        request(Sec_WebSocket_Protocol="other, blipmq"),
        request(Sec_WebSocket_Protocol=", ".join([f"other{i}" for i in range(15)] + ["blipmq"])),
        request(Connection="upgrade"),
        request(Upgrade="WebSocket"),
        request(Upgrade="h2c, websocket"),
        request(Content_Length="0"),
        request(Cookie="a=b; c=d", X_Forwarded_For="192.0.2.1"),
        request(X_Long="x" * 7000),
    ],
)
def test_a_request_by_the_rules_is_accepted(sent):
    with Bench() as bench:
        client = adopt(bench)
        client.feed_raw(sent)
        assert client.opened
        offered = b"protocol" in sent.lower()
        assert (b"\r\nSec-WebSocket-Protocol: blipmq\r\n" in client.head) == offered
        client.hello()


@pytest.mark.parametrize(
    ("sent", "status", "cause"),
    [
        (request("/"), 404, "/blipmq"),
        (request("/blipmq/"), 404, "/blipmq"),
        (request("/mqtt"), 404, "/blipmq"),
        (request(method="POST"), 405, "GET"),
        (request(method="HEAD"), 405, "GET"),
        (request(version="HTTP/1.0"), 400, "HTTP/1.1"),
        (request(version="HTTP/2.0"), 400, "HTTP/1.1"),
        (request(version=""), 400, "not an HTTP request"),
        (request(without=["Upgrade"]), 426, "Upgrade: websocket"),
        (request(without=["Connection"]), 426, "Connection: Upgrade"),
        (request(Upgrade="h2c"), 426, "Upgrade: websocket"),
        (request(Connection="close"), 426, "Connection: Upgrade"),
        (request(without=["Sec-WebSocket-Version"]), 426, "13"),
        (request(Sec_WebSocket_Version="8"), 426, "13"),
        (request(Sec_WebSocket_Version="13, 8"), 426, "13"),
        (request().replace(b"Host:", b"Sec-WebSocket-Version: 13\r\nHost:"), 400, "twice"),
        (request().replace(b"Host:", b"Sec-WebSocket-Version: 8\r\nHost:"), 400, "twice"),
        (request(without=["Host"]), 400, "Host"),
        (request(without=["Sec-WebSocket-Key"]), 400, "Sec-WebSocket-Key"),
        (request(Sec_WebSocket_Key="short"), 400, "Sec-WebSocket-Key"),
        (request(Sec_WebSocket_Key="!" * 22 + "=="), 400, "Sec-WebSocket-Key"),
        (request(Sec_WebSocket_Key=KEY.decode()[:23] + "A"), 400, "Sec-WebSocket-Key"),
        (request(Sec_WebSocket_Protocol="mqtt"), 400, "subprotocol"),
        (request(Sec_WebSocket_Protocol="BlipMQ"), 400, "subprotocol"),
        (request(Sec_WebSocket_Protocol="other, " * 16 + "blipmq"), 400, "more than 16 subprotocols"),
        (request(Content_Length="5"), 400, "body"),
        (request(Transfer_Encoding="chunked"), 400, "body"),
        (request().replace(b"Host:", b"Host: a\r\nHost:"), 400, "twice"),
        (request().replace(b"Host:", b"Bad Name: a\r\nHost:"), 400, "does not allow"),
        (request().replace(b"Host:", b"NoColon\r\nHost:"), 400, "colon"),
        (request().replace(b"Host:", b" folded: a\r\nHost:"), 400, "does not allow"),
        (request().replace(b"Host:", b"X: a\x01b\r\nHost:"), 400, "does not allow"),
        (request().replace(b"Host:", b"X: a\nHost:"), 400, "CR LF"),
        (request().replace(b"\r\n", b"\n"), 400, "CR LF"),
        (request()[:-2] + b"\n", 400, "CR LF"),
        (request()[:-4] + b"\n\r\n", 400, "CR LF"),
        (b"GET\n\n", 400, "CR LF"),
        (request(X_Long="x" * 8192), 431, "8 KiB"),
        (b"GET /" + b"x" * 9000, 431, "8 KiB"),
        (HELLO, 400, "this port is for WebSocket"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "this port is for WebSocket"),
    ],
)
def test_any_other_request_is_refused_with_its_cause(sent, status, cause):
    got, body = answer_to(sent)
    assert (got, cause in body) == (status, True), body


def test_the_refusal_of_a_version_names_the_one_that_is_served():
    with Bench() as bench:
        client = adopt(bench)
        client.feed_raw(request(Sec_WebSocket_Version="7"))
        assert b"\r\nSec-WebSocket-Version: 13\r\n" in client.head


@pytest.mark.parametrize("end", [b"\n\n", b"\n\r\n", b"\r\n\n"])
def test_a_request_with_false_line_ends_is_refused_at_its_last_byte(end):
    with Bench() as bench:
        client = adopt(bench)
        for byte in request()[:-4] + end:
            assert not client.eof
            client.feed_raw(bytes([byte]))
        assert client.status()[0] == 400


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_a_request_that_comes_in_pieces_is_one_request(size):
    with Bench() as bench:
        client = adopt(bench)
        sent = request(Sec_WebSocket_Protocol="blipmq")
        for at in range(0, len(sent), size):
            assert not client.opened
            client.feed_raw(sent[at : at + size])
        client.hello()


@pytest.mark.parametrize("extra", [0, 1, 5, 6, 20, 10_000])
def test_frames_behind_the_request_in_the_same_segment_are_read(extra):
    with Bench() as bench:
        client = adopt(bench)
        publish = wire.encode_command(wire.PUB, "a", b"x")
        client.feed_raw(
            request() + frame(HELLO) + frame(wire.encode_command(wire.SUB, "a", seq=2)) + (frame(publish) * 200)[:extra]
        )
        assert [reply.code for reply in client.replies] == [0]
        assert len(client.subacks) == 1
        assert len(client.messages) == extra // len(frame(publish))


# ---- origins ----


@pytest.mark.parametrize(
    ("origin", "allowed", "keys", "admitted"),
    [
        (None, (), False, True),
        ("https://evil.example", (), False, False),
        ("http://broker.example:7881", (), False, False),  # the Host of the request: a rebound name looks like this
        ("null", (), False, False),
        ("https://panel.example", ("https://panel.example",), False, True),
        ("https://panel.example", ("https://other.example", "https://panel.example"), False, True),
        ("https://panel.example:444", ("https://panel.example",), False, False),
        ("https://panel.example.evil.example", ("https://panel.example",), False, False),
        ("https://evil.example", ("*",), False, True),
        ("null", ("*",), False, True),
        ("https://evil.example", (), True, True),  # it needs a key, which no browser adds by itself
        ("https://evil.example", ("https://panel.example",), True, False),
        ("https://panel.example", ("https://panel.example",), True, True),
        (None, ("https://panel.example",), True, True),
    ],
)
def test_pages_may_connect_only_if_their_origin_is_allowed(origin, allowed, keys, admitted):
    changed = {"Origin": origin} if origin else {}
    status, body = answer_to(request(**changed), allowed, require_hello=int(keys))
    assert status == (101 if admitted else 403)
    assert admitted or "server.ws_origins" in body


def test_a_changed_list_of_origins_applies_to_the_next_request():
    with Bench() as bench:
        for allowed, status in (("https://a.example",), 403), (("https://b.example",), 101), ((), 403):
            bench.core.origins(allowed)
            client = adopt(bench)
            client.feed_raw(request(Origin="https://b.example"))
            assert client.status()[0] == status


# ---- the end of the broker ----


@pytest.mark.parametrize("sent", [b"", b"GET /bl", request()[:-1]])
def test_a_client_whose_request_has_not_come_is_told_that_the_broker_stops(sent):
    with Bench() as bench:
        client = adopt(bench)
        client.feed_raw(sent)
        bench.core.stop(1000)
        bench.settle()
        client.read_all()
        status, body = client.status()
        assert (status, "shutting down" in body) == (503, True)
        assert client.eof
        assert bench.stopped


# ---- limits ----


@pytest.mark.parametrize("keys", [False, True])
@pytest.mark.parametrize("sent", [b"", b"G", request()[:-1]])
def test_a_client_that_sends_no_request_in_time_is_closed(keys, sent):
    with Bench(require_hello=int(keys), hello_timeout_ms=5000) as bench:
        client = adopt(bench)
        client.feed_raw(sent)
        bench.settle(4900)
        client.read_all()
        assert not client.eof
        assert bench.stats()["pending"] == 1
        bench.settle(200)
        client.read_all()
        assert client.eof
        assert client.status()[0] == 408
        assert bench.stats()["pending"] == 0
        assert bench.stats()["hello_timeouts"] == 1


def test_sending_the_request_byte_by_byte_gives_no_more_time():
    with Bench(hello_timeout_ms=5000) as bench:
        client = adopt(bench)
        for byte in request(X_Long="x" * 300)[:60]:
            if not client.eof:
                client.feed_raw(bytes([byte]))
                bench.settle(100)
                client.read_all()
        assert client.eof


def test_after_the_upgrade_hello_has_the_rest_of_the_time_where_keys_are_required():
    with Bench(require_hello=1, hello_timeout_ms=5000) as bench:
        client = adopt(bench)
        bench.settle(3000)
        client.upgrade()
        bench.settle(2100)
        client.read_all()
        assert client.close_code == (1008, "no HELLO in time")


def test_without_keys_a_client_may_be_silent_after_the_upgrade():
    with Bench(hello_timeout_ms=5000) as bench:
        client = adopt(bench).upgrade()
        assert bench.stats()["pending"] == 0
        bench.settle(60_000)
        client.hello()


def test_strangers_at_the_websocket_port_are_limited_and_the_longest_silent_makes_room():
    with Bench(max_pending=4) as bench:
        bench.listen(websocket=True)
        clients = [bench.connect(WebSocketClient) for _ in range(6)]
        for client in clients:
            client.read_all()
        assert [client.eof for client in clients] == [True, True, False, False, False, False]
        assert clients[0].status()[0] == 503
        clients[5].upgrade().hello()
        assert bench.stats()["refused_pending"] == 2


def test_a_client_over_the_limit_of_connections_is_told_so():
    with Bench(max_connections=1) as bench:
        bench.listen(websocket=True)
        bench.connect(WebSocketClient).upgrade()
        second = bench.connect(WebSocketClient)
        second.feed_raw(request())
        status, body = second.status()
        assert (status, "max_connections" in body) == (503, True)
        assert second.eof


def test_the_layer_s_memory_is_counted_and_returned():
    with Bench() as bench:
        adopt(bench)  # allocates the chunk of slots
        before = bench.stats()
        clients = [adopt(bench).upgrade() for _ in range(20)]
        during = bench.stats()
        assert during["websockets"] == before["websockets"] + 20
        used = (during["memory_used_bytes"] - during["pool_free_bytes"]) - (
            before["memory_used_bytes"] - before["pool_free_bytes"]
        )
        assert 20 * 300 <= used <= 20 * 1024
        for client in clients:
            client.socket.close()
        bench.settle()
        after = bench.stats()
        assert after["websockets"] == before["websockets"]
        assert after["memory_used_bytes"] - after["pool_free_bytes"] <= before["memory_used_bytes"]


def test_a_plain_listener_takes_no_http():
    with Bench() as bench:
        client = bench.adopt(1 << 16)
        client.send_bytes(request())
        bench.settle()
        client.receive()
        assert client.eof
