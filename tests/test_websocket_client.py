"""The Python clients and the command line over ws:// and wss://: against a broker, against an independent WebSocket server
in front of one (as a reverse proxy is), and against peers that break the rules."""

import asyncio
import contextlib
import os
import signal
import socket
import ssl
import subprocess
import threading
import time

import pytest
import websockets
from broker_process import BrokerProcess, cli_command, environment
from certificates import Authority
from hypothesis import given, settings
from hypothesis import strategies as st
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Ping, Pong, Request

import blipmq
from blipmq.client.address import Address, parse_address
from blipmq.client.websocket_socket import WebSocketSocket
from blipmq.errors import BlipMQError, ConfigError, Disconnected, NotAllowed, ProtocolError, Unreachable, UsageError
from blipmq.wire.websocket import FRAME_BYTES, WebSocket

SERVER = {"server": {"bind_addr": "127.0.0.1:0", "ws_bind_addr": "127.0.0.1:0"}}
PAYLOADS = [os.urandom(size) for size in (0, 1, 40, 125, 126, 512, 513, 65_535, 65_536, 300_000)]


def url(broker):
    return f"ws://{broker.websocket_address}/blipmq"


# ---- addresses ----


def test_an_address_may_be_that_of_a_websocket():
    assert parse_address("ws://broker.example") == Address("broker.example", 80, False, "/blipmq")
    assert parse_address("wss://broker.example/") == Address("broker.example", 443, True, "/blipmq")
    assert parse_address("ws://[::1]:81/a/b?c=d") == Address("::1", 81, False, "/a/b?c=d")
    assert parse_address("ws://[::1]").port == 80
    assert str(parse_address("wss://[::1]:1")) == "wss://[::1]:1/blipmq"
    assert parse_address("wss://a", tls=True).tls
    for text, tls in (("ws://a", True), ("wss://a", False), ("ws://", None), ("ws://a/b c", None), ("ws://a/é", None)):
        with pytest.raises(UsageError):
            parse_address(text, tls)


# ---- against the broker ----


def test_the_asyncio_client_publishes_and_subscribes_over_websocket():
    async def run():
        async with (
            blipmq.Broker(SERVER) as broker,
            blipmq.connect(url(broker)) as client,
            blipmq.connect(broker.address) as plain,
            client.subscribe("a.*") as messages,
            plain.subscribe("b") as others,
        ):
            for payload in PAYLOADS:
                await plain.publish("a.b", payload)
                await client.publish("b", payload)
            for payload in PAYLOADS:
                assert (await messages.next(timeout_s=30)).payload == payload
                assert (await others.next(timeout_s=30)).payload == payload
            info = await client.info()
            assert info["websocket"] == {"address": broker.websocket_address, "connections": 1, "refused": 0}
            assert sorted(row["websocket"] for row in info["subscriptions"]) == [False, True]

    asyncio.run(run())


def test_the_blocking_client_publishes_and_subscribes_over_websocket():
    with blipmq.Broker(SERVER) as broker, blipmq.connect_blocking(url(broker)) as client:
        messages = client.subscribe("a")
        for payload in PAYLOADS:
            client.publish("a", payload)
        for payload in PAYLOADS:
            assert messages.next(timeout_s=30).payload == payload
        numbers = [b"%d" % i for i in range(20_000)]
        for at in range(0, len(numbers), 1000):
            client.publish_many("a", numbers[at : at + 1000])
            for number in numbers[at : at + 1000]:
                assert messages.next(timeout_s=30).payload == number


def test_a_blocking_client_whose_broker_is_held_back_sends_every_byte_once():
    """The socket takes frames in parts while a full queue holds the publisher back."""
    with (
        blipmq.Broker({**SERVER, "queues": {"overflow_policy": "block", "subscriber_capacity": 10}}) as broker,
        blipmq.connect_blocking(url(broker)) as reader,
        blipmq.connect_blocking(url(broker)) as writer,
    ):
        messages = reader.subscribe("a")
        payloads = [bytes([i]) * 90_000 for i in range(100)]
        sending = threading.Thread(target=writer.publish_many, args=("a", payloads))
        sending.start()
        for payload in payloads:
            assert messages.next(timeout_s=60).payload == payload
        sending.join()


def connect(address, blocking, **options):
    """Open and close a connection with one of the two clients."""

    async def run():
        async with blipmq.connect(address, **options):
            pass

    if blocking:
        blipmq.connect_blocking(address, **options).close()
    else:
        asyncio.run(run())


@pytest.mark.parametrize("blocking", [False, True])
def test_a_refused_path_is_reported_with_the_answer_of_the_broker(blocking):
    with blipmq.Broker(SERVER) as broker:
        address = f"ws://{broker.websocket_address}/elsewhere"

        with pytest.raises(ProtocolError, match=r"404 Not Found.*/blipmq"):
            connect(address, blocking)


@pytest.mark.parametrize("blocking", [False, True])
def test_the_error_for_a_port_without_websocket_names_the_setting(blocking):
    with blipmq.Broker(SERVER) as broker:
        address = f"ws://{broker.address}"

        with pytest.raises(BlipMQError, match=r"use the port of its server\.ws_bind_addr"):
            connect(address, blocking)


def test_a_wrong_key_is_refused_over_websocket_and_the_right_one_admitted():
    keys = {"auth": {"api_keys": ["a-key-of-enough-bytes"]}}

    async def run():
        async with blipmq.Broker({**SERVER, **keys}) as broker:
            with pytest.raises(NotAllowed):
                async with blipmq.connect(url(broker), api_key="another-key-of-bytes"):
                    pass
            async with blipmq.connect(url(broker), api_key="a-key-of-enough-bytes") as client:
                await client.publish("a", b"x")

    asyncio.run(run())


def test_a_client_reconnects_over_websocket_and_subscribes_again(start_broker):
    async def run():
        first = start_broker({"server.ws_bind_addr": "127.0.0.1:0"})
        address = first.info()["websocket"]["address"]
        states = []
        async with blipmq.connect(f"ws://{address}", on_state=lambda state, _: states.append(state)) as client:
            async with client.subscribe("a") as messages:
                first.kill()
                start_broker({"server.ws_bind_addr": address}, after=first)
                for _ in range(200):
                    await asyncio.sleep(0.05)
                    if states[-1] == "connected" and states.count("connected") == 2:
                        break
                await client.publish("a", b"again")
                assert (await messages.next(timeout_s=30)).payload == b"again"

    asyncio.run(run())


def test_a_broker_with_only_a_websocket_address_starts_and_is_ready(tmp_path):
    settings = {"server.bind_addr": "", "server.ws_bind_addr": "127.0.0.1:0", "metrics.bind_addr": ""}
    broker = BrokerProcess(tmp_path, settings).get_ready()
    broker.signal(signal.SIGTERM)
    assert broker.wait() == 0


def test_the_reason_of_a_stop_reaches_the_client():
    async def run():
        errors = []
        async with blipmq.Broker(SERVER) as broker:
            client = await blipmq.connect(
                url(broker), reconnect=False, on_state=lambda state, error: errors.append(error)
            )
            await broker.stop(1000)
            for _ in range(200):
                if errors and errors[-1] is not None:
                    break
                await asyncio.sleep(0.05)
        assert isinstance(errors[-1], BlipMQError)
        assert "shutting down" in str(errors[-1]) or "1001" in str(errors[-1])
        await client.close()

    asyncio.run(run())


@pytest.mark.parametrize("address", ["option", "variable"])
def test_the_command_line_takes_a_websocket_address(start_broker, address):
    broker = start_broker({"server.ws_bind_addr": "127.0.0.1:0"})
    where = f"ws://{broker.info()['websocket']['address']}/blipmq"
    variables = {"BLIPMQ_ADDR": where} if address == "variable" else {}
    option = ["--addr", where] if address == "option" else []
    listening = subprocess.Popen(
        [*cli_command(), "sub", "a.b", "--count", "1", *option],
        env=environment(**variables),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        while listening.poll() is None:
            done = subprocess.run(
                [*cli_command(), "pub", "a.b", "hello", *option], env=environment(**variables), timeout=60
            )
            assert done.returncode == 0
            with contextlib.suppress(subprocess.TimeoutExpired):
                listening.wait(0.3)
        assert "hello" in listening.stdout.read()
    finally:
        listening.kill()
        listening.wait()
        listening.stdout.close()


# ---- settings ----


@pytest.mark.parametrize(
    ("server", "why"),
    [
        ({"ws_bind_addr": "0.0.0.0:7881"}, "no key is configured"),
        ({"ws_bind_addr": "127.0.0.1:7878"}, "used by another setting"),
        ({"ws_bind_addr": "127.0.0.1:1", "ws_origins": ["a.example"]}, "SCHEME://HOST"),
        ({"ws_bind_addr": "127.0.0.1:1", "ws_origins": ["https://a.example/"]}, "no path"),
        ({"ws_bind_addr": "127.0.0.1:1", "ws_origins": ["https://A.example"]}, "lower case"),
        ({"ws_bind_addr": "127.0.0.1:1", "ws_origins": ["https://a.example:443"]}, "usual port"),
        ({"ws_bind_addr": "127.0.0.1:1", "ws_origins": ["null"]}, "SCHEME://HOST"),
        ({"ws_bind_addr": "127.0.0.1:1", "ws_origins": ["https://a.example:"]}, "a port between 1 and 65535"),
        ({"ws_bind_addr": "127.0.0.1:1", "ws_origins": ["https://a.example:0444"]}, "a port between 1 and 65535"),
        ({"ws_bind_addr": "127.0.0.1:1", "ws_origins": ["https://a.example:99999"]}, "a port between 1 and 65535"),
        ({"ws_bind_addr": "127.0.0.1:1", "ws_origins": ["http://::1:3000"]}, "IPv6"),
        ({"ws_bind_addr": "127.0.0.1:1", "ws_origins": ["http://[::1"]}, "IPv6|port"),
        ({"ws_bind_addr": "nonsense"}, "ADDRESS:PORT"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(server, why):
    with pytest.raises(ConfigError, match=why):
        blipmq.Broker({"server": server})


def test_origins_are_reloaded():
    def status(broker, origin):
        with contextlib.closing(socket.create_connection(broker.websocket_address.split(":"), timeout=30)) as sock:
            request = WebSocket(broker.websocket_address).request
            sock.sendall(request.replace(b"Upgrade:", b"Origin: " + origin + b"\r\nUpgrade:", 1))
            return sock.recv(4096).split()[1]

    async def run():
        async with blipmq.Broker(SERVER) as broker:
            loop = asyncio.get_running_loop()
            assert await loop.run_in_executor(None, status, broker, b"https://a.example") == b"403"
            changed = {"server": {**SERVER["server"], "ws_origins": ["https://a.example"]}}
            broker.apply(blipmq.Broker(changed).config)
            assert await loop.run_in_executor(None, status, broker, b"https://a.example") == b"101"

    asyncio.run(run())


# ---- the library `websockets` as the other side ----


async def hello(socket_, **fields):
    from blipmq.wire import frames as wire

    await socket_.send(wire.encode_command(wire.HELLO, client_id="c", protocol=wire.PROTOCOL, seq=1, **fields))
    assert wire.decode_reply((await socket_.recv())[5:]).code == 0


def test_an_independent_client_speaks_with_the_broker():
    from blipmq.wire import frames as wire

    async def run():
        async with blipmq.Broker(SERVER) as broker:
            async with websockets.connect(url(broker), subprotocols=["blipmq"], max_size=None) as socket_:
                assert socket_.subprotocol == "blipmq"
                await hello(socket_)
                await socket_.send(wire.encode_command(wire.SUB, "a", seq=2))
                assert wire.decode_suback((await socket_.recv())[5:]).code == 0
                await asyncio.wait_for(await socket_.ping(b"are you there"), 30)
                reader = wire.FrameReader()
                for payload in PAYLOADS:
                    sent = wire.encode_command(wire.PUB, "a", payload)
                    await socket_.send([sent[:3], sent[3:50], sent[50:]])  # fragments
                    got = []
                    while not got:
                        got = list(reader.feed(await asyncio.wait_for(socket_.recv(), 30)))
                    assert [message.payload for message in got] == [payload]
            assert socket_.close_code == 1000

    asyncio.run(run())


def test_an_independent_client_sees_the_close_codes():
    async def run():
        async with blipmq.Broker(SERVER) as broker:
            async with websockets.connect(url(broker)) as socket_:
                await socket_.send("text")
                with pytest.raises(websockets.ConnectionClosedError) as closed:
                    await socket_.recv()
                assert closed.value.rcvd.code == 1003
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(url(broker), origin="https://evil.example")
            assert refused.value.response.status_code == 403
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(url(broker), subprotocols=["other"])
            assert refused.value.response.status_code == 400
            socket_ = await websockets.connect(url(broker))
            await hello(socket_)
            await broker.stop(1000)
            with pytest.raises(websockets.ConnectionClosed):
                while True:
                    await asyncio.wait_for(socket_.recv(), 30)
            assert socket_.close_code == 1001

    asyncio.run(run())


@contextlib.asynccontextmanager
async def proxy(broker, **options):
    """An independent WebSocket server that passes every message on to the broker's plain port."""

    async def serve(socket_):
        host, _, port = broker.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host, int(port))

        async def outward():
            while data := await reader.read(1 << 16):
                middle = len(data) // 2
                await socket_.ping()
                await socket_.send([data[:middle], data[middle:]])  # fragments
            await socket_.close(4001, "the broker is gone")

        task = asyncio.create_task(outward())
        try:
            async for message in socket_:
                writer.write(message)
        finally:
            task.cancel()
            writer.close()

    async with websockets.serve(serve, "127.0.0.1", 0, subprotocols=["blipmq"], **options) as server:
        yield "{}:{}".format(*server.sockets[0].getsockname()[:2])


@pytest.mark.parametrize("secure", [False, True])
def test_the_clients_speak_with_an_independent_server(secure, tmp_path):
    def block(address, trust):
        with blipmq.connect_blocking(address, **trust) as client:
            messages = client.subscribe("b")
            for payload in PAYLOADS:
                client.publish("b", payload)
            for payload in PAYLOADS:
                assert messages.next(timeout_s=30).payload == payload

    async def run():
        options, trust, scheme = {}, {}, "ws"
        if secure:
            authority = Authority(tmp_path)
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*authority.sign("proxy"))
            options, trust, scheme = {"ssl": context}, {"tls": str(authority.file)}, "wss"
        async with blipmq.Broker(SERVER) as broker, proxy(broker, max_size=FRAME_BYTES, **options) as address:
            where = f"{scheme}://{address}/any/path"
            async with blipmq.connect(where, **trust) as client, client.subscribe("a") as messages:
                for payload in PAYLOADS:
                    await client.publish("a", payload)
                    assert (await messages.next(timeout_s=30)).payload == payload
            await asyncio.to_thread(block, where, trust)

    asyncio.run(run())


def test_the_tls_listener_of_the_broker_takes_wss_too(tmp_path):
    authority = Authority(tmp_path)
    cert, key = authority.sign("broker")
    over_tls = {
        "server": {"bind_addr": "127.0.0.1:0", "tls_bind_addr": "127.0.0.1:0"},
        "tls": {"cert_file": str(cert), "key_file": str(key)},
    }

    def block(address):
        with blipmq.connect_blocking(address, tls=str(authority.file)) as client:
            messages = client.subscribe("b")
            for payload in PAYLOADS:
                client.publish("b", payload)
            for payload in PAYLOADS:
                assert messages.next(timeout_s=30).payload == payload

    async def run():
        async with blipmq.Broker(over_tls) as broker:
            where, trust = f"wss://{broker.tls_address}/blipmq", {"tls": str(authority.file)}
            async with blipmq.connect(where, **trust) as client, client.subscribe("a") as messages:
                async with blipmq.connect(f"tls://{broker.tls_address}", **trust) as plain:
                    for payload in PAYLOADS:
                        await plain.publish("a", payload)
                        assert (await messages.next(timeout_s=30)).payload == payload
                        await client.publish("a", payload)
                        assert (await messages.next(timeout_s=30)).payload == payload
            await asyncio.to_thread(block, where)
            context = ssl.create_default_context(cafile=authority.file)
            with pytest.raises(websockets.InvalidStatus) as refused:
                await websockets.connect(where, ssl=context, origin="https://evil.example")
            assert refused.value.response.status_code == 403

    asyncio.run(run())


def test_the_close_code_of_an_independent_server_is_told():
    async def run():
        async with blipmq.Broker(SERVER) as broker, proxy(broker) as address:
            errors = []
            client = await blipmq.connect(
                f"ws://{address}", reconnect=False, on_state=lambda state, error: errors.append(error)
            )
            await broker.stop(0)
            for _ in range(200):
                if errors and errors[-1] is not None:
                    break
                await asyncio.sleep(0.05)
            assert isinstance(errors[-1], Disconnected | BlipMQError)
            await client.close()

    asyncio.run(run())


# ---- peers that break the rules ----


def answering(*parts, ends=False):
    """A server that sends `parts`, a moment apart, to the first bytes it gets. It keeps the connection unless it `ends`."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve():
        with contextlib.suppress(OSError):
            peer, _ = listener.accept()
            with peer:
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                peer.recv(4096)
                for part in parts:
                    peer.sendall(part)
                    time.sleep(0.05)
                peer.settimeout(30)
                if ends:
                    peer.shutdown(socket.SHUT_WR)
                while peer.recv(4096):
                    pass

    threading.Thread(target=serve, daemon=True).start()
    return listener


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize(
    ("answer", "kind", "what"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n", Unreachable, "502 Bad Gateway"),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\nfull\n", Unreachable, "full"),
        (b"HTTP/1.1 401 Unauthorized\r\n\r\n", ProtocolError, "401 Unauthorized"),
        (b"HTTP/1.1 200 OK\r\n\r\n<html>", ProtocolError, "200 OK"),
        (
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x\r\n\r\n",
            ProtocolError,
            "belong to this handshake",
        ),
        (b"SSH-2.0-OpenSSH_9\r\n", ProtocolError, "not HTTP"),
        (b"HTTP/1.1 101 x\r\n" + b"x: y\r\n" * 5000, ProtocolError, "not HTTP"),
    ],
)
def test_an_answer_that_is_no_upgrade_is_an_error_with_its_cause(answer, kind, what, blocking):
    with answering(answer) as listener:
        address = "ws://{}:{}".format(*listener.getsockname())
        with pytest.raises(kind, match=what) as raised:
            connect(address, blocking, timeout_s=20)
        assert not str(raised.value).endswith("..")


REFUSAL = b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/plain; charset=utf-8\r\n"


@pytest.mark.parametrize("blocking", [False, True])
@pytest.mark.parametrize(
    ("parts", "what"),
    [
        ([REFUSAL + b"Content-Length: 11\r\n\r\n", b"add ", b"origin\n"], r"403 Forbidden: add origin\.$"),
        ([REFUSAL[:30], REFUSAL[30:] + b"Content-Length: 10\r\n\r", b"\nadd origin"], r"403 Forbidden: add origin\.$"),
        ([REFUSAL + b"\r\n", b"add ", b"origin"], r"403 Forbidden: add origin\.$"),  # up to its end
        ([REFUSAL + b"\r\n", b"add ", b"origin\r\n", b"more"], r"403 Forbidden: add origin\.$"),
        ([REFUSAL + b"Content-Length: 999999999999\r\n\r\n", b"x" * 150, b"y" * 150], "403 Forbidden: x{150}y{50}"),
        ([REFUSAL + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx\n"], r"403 Forbidden: x\.$"),
        ([REFUSAL + b"Content-Length: -1\r\n\r\nx\n"], r"403 Forbidden: x\.$"),
        ([REFUSAL + b"Content-Length: 0\r\n\r\n"], r"403 Forbidden\.$"),
        ([REFUSAL + b"Transfer-Encoding: chunked\r\n\r\n", b"3\r\nwhy\r\n0\r\n\r\n"], r"403 Forbidden\.$"),
        ([b"HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\n\r\n", b"<html>"], r"403 Forbidden\.$"),
    ],
)
def test_the_cause_of_a_refusal_may_come_in_later_segments(parts, what, blocking):
    with answering(*parts, ends=True) as listener:
        address = "ws://{}:{}".format(*listener.getsockname())
        with pytest.raises(ProtocolError, match=what):
            connect(address, blocking, timeout_s=20)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_refusal_whose_cause_does_not_come_is_told_without_it(blocking):
    with answering(REFUSAL + b"Content-Length: 100\r\n\r\n", b"half a") as listener:
        address = "ws://{}:{}".format(*listener.getsockname())
        with pytest.raises(ProtocolError, match="403 Forbidden: half a"):
            connect(address, blocking, timeout_s=20)
    with answering(REFUSAL + b"Content-Length: 100\r\n\r\n") as listener:
        address = "ws://{}:{}".format(*listener.getsockname())
        with pytest.raises(ProtocolError, match=r"403 Forbidden\."):
            connect(address, blocking, timeout_s=20)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_peer_that_does_not_answer_the_request_is_an_error_in_time(blocking):
    with answering(b"") as listener:
        address = "ws://{}:{}".format(*listener.getsockname())
        with pytest.raises(BlipMQError, match="in time"):
            connect(address, blocking, timeout_s=0.5)


@pytest.mark.parametrize("blocking", [False, True])
def test_a_frame_against_the_rules_ends_the_connection_of_a_client(blocking):
    """It must be told and closed, or the client would wait for a stream that nobody can read any more."""

    async def run():
        async with blipmq.Broker(SERVER) as broker:
            links, states, told = [], [], threading.Event()

            def on_state(state, error):
                states.append((state, error))
                if error is not None:
                    told.set()

            async def serve(socket_):
                host, _, port = broker.address.rpartition(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(await socket_.recv())
                await socket_.send(await reader.read(1 << 16))
                links.append(socket_.transport)
                await socket_.wait_closed()
                writer.close()

            async with websockets.serve(serve, "127.0.0.1", 0, subprotocols=["blipmq"]) as server:
                address = "ws://{}:{}".format(*server.sockets[0].getsockname()[:2])
                if blocking:
                    client = await asyncio.to_thread(
                        blipmq.connect_blocking, address, reconnect=False, on_state=on_state
                    )
                    links[0].write(b"\x83\x01x")
                    with pytest.raises(BlipMQError, match="opcode 3"):
                        await asyncio.to_thread(client.info)
                    await asyncio.to_thread(client.close)
                else:
                    client = await blipmq.connect(address, reconnect=False, on_state=on_state)
                    links[0].write(b"\x83\x01x")
                    assert await asyncio.to_thread(told.wait, 30)
                    await client.close()
            assert "opcode 3" in str(states[-1][1])

    asyncio.run(run())


# ---- the codec beside wsproto ----


def opened():
    """A client's codec and an independent server after their handshake."""
    client, server = WebSocket("host:1"), WSConnection(ConnectionType.SERVER)
    server.receive_data(client.request)
    (request,) = server.events()
    assert isinstance(request, Request)
    assert request.subprotocols == ["blipmq"]
    assert client.receive(server.send(AcceptConnection(subprotocol="blipmq"))) == b""
    assert client.is_open
    return client, server


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("data"), st.binary(max_size=70_000), st.booleans()),
        st.tuples(st.just("ping"), st.binary(max_size=125), st.just(True)),
    ),
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(EVENTS, st.integers(1, 5000))
def test_the_codec_reads_what_an_independent_server_writes(events, piece):
    client, server = opened()
    sent, expected, pings, finished = b"", b"", [], True
    for kind, data, last in events:
        if kind == "ping":
            sent += server.send(Ping(payload=data))
            pings.append(data)
        else:
            sent += server.send(BytesMessage(data=data, message_finished=last))
            expected += data
    got = b"".join(client.receive(sent[at : at + piece]) for at in range(0, len(sent), piece))
    assert got == expected
    assert finished
    server.receive_data(bytes(client.out))
    assert [bytes(event.payload) for event in server.events() if isinstance(event, Pong)] == pings


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=70_000), max_size=5))
def test_an_independent_server_reads_what_the_codec_writes(parts):
    client, server = opened()
    server.receive_data(b"".join(client.wrap(part) for part in parts) + client.close())
    events = list(server.events())
    assert b"".join(bytes(event.data) for event in events if isinstance(event, BytesMessage)) == b"".join(parts)
    assert isinstance(events[-1], CloseConnection)
    assert events[-1].code == 1000


def test_a_close_is_answered_and_ends_the_stream():
    client, server = opened()
    closing = server.send(BytesMessage(data=b"last")) + server.send(CloseConnection(code=4000, reason="because"))
    assert client.receive(closing + b"ignored") == b"last"
    assert "4000: because" in str(client.closed)
    server.receive_data(bytes(client.out))
    assert [type(event) for event in server.events()] == [CloseConnection]


def test_a_close_that_comes_with_a_payload_is_told_after_it():
    client, server = opened()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(
            server.send(BytesMessage(data=b"last")) + server.send(CloseConnection(code=4000, reason="because"))
        )
        theirs.shutdown(socket.SHUT_WR)
        link = WebSocketSocket(ours, client)
        assert link.recv(1 << 16) == b"last"
        with pytest.raises(ConnectionResetError, match="4000: because"):
            link.recv(1 << 16)


@pytest.mark.parametrize(
    "bad", [b"\x82\x80\0\0\0\0", b"\xc2\x01x", b"\x81\x01x", b"\x83\x00", b"\x89\x7e\x00\x80", b"\x09\x00"]
)
def test_frames_against_the_rules_end_the_connection(bad):
    client, _ = opened()
    with pytest.raises(ProtocolError):
        client.receive(bad)


def test_every_frame_has_its_own_mask():
    client, _ = opened()
    masks = {client.wrap(b"x" * 10)[2:6] for _ in range(500)}
    assert len(masks) > 490
