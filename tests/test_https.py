"""The HTTPS listener of the metrics: limits of pending handshakes, causes in the log, its end."""

import asyncio
import contextlib
import socket
import ssl

import pytest
from certificates import Authority

from blipmq.base.logs import Log
from blipmq.base.peer import host_port
from blipmq.config.settings import Tls
from blipmq.net.certificate import Certificates
from blipmq.net.https import HttpsServer

PENDING_MAX = 3


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


class Lines(Log):
    """A log that keeps its warnings."""

    def __init__(self):
        super().__init__(level="error")
        self.warnings = []

    def warning(self, event, **facts):
        self.warnings.append((event, facts))


class Echo(asyncio.Protocol):
    """Sends one line and closes."""

    def connection_made(self, transport):
        transport.write(b"served")
        transport.close()


class Scene:
    """A server in this loop, and clients that run in threads."""

    def __init__(self, authority, seconds=30.0, **settings):
        cert, key = authority.sign("broker")
        self.authority = authority
        self.log = Lines()
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        self.address = listener.getsockname()
        self.certificates = Certificates(Tls(cert_file=str(cert), key_file=str(key), **settings), https=True)
        self.server = HttpsServer(listener, self.certificates, Echo, self.log, PENDING_MAX, seconds)
        self.silent = []

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        for client in self.silent:
            client.close()
        self.server.close()
        await self.server.wait_closed()

    async def fetch(self):
        return await asyncio.to_thread(self._fetch)

    def _fetch(self):
        context = ssl.create_default_context(cafile=self.authority.file)
        with (
            socket.create_connection(self.address, 30) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as tls,
        ):
            return tls.recv(100)

    async def dial(self):
        """A client that starts no handshake; returns once the server has accepted it."""
        client = await asyncio.to_thread(socket.create_connection, self.address, 30)
        self.silent.append(client)
        await asyncio.sleep(0)
        return client

    async def until(self, happened):
        for _ in range(3000):
            if happened():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it did not happen within 30 s")


def ended(client):
    """Whether the server has closed this connection."""
    client.settimeout(30)
    with contextlib.suppress(ConnectionResetError):
        return client.recv(1) == b""
    return True


def test_at_the_limit_the_oldest_handshake_is_ended(authority):
    async def scene():
        async with Scene(authority) as server:
            clients = [await server.dial() for _ in range(PENDING_MAX + 2)]
            await server.until(lambda: len(server.log.warnings) == 2)
            assert all([await asyncio.to_thread(ended, client) for client in clients[:2]])
            assert {event for event, _ in server.log.warnings} == {"tls_refused"}
            assert await server.fetch() == b"served", "it takes the place of the next one"

    asyncio.run(scene())


def test_a_silent_client_is_ended_at_its_deadline(authority):
    async def scene():
        async with Scene(authority, seconds=0.3) as server:
            client = await server.dial()
            await server.until(lambda: server.log.warnings)
            assert server.log.warnings[0][1]["error"] == "no handshake in 0.3 s"
            assert await asyncio.to_thread(ended, client)

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("sent", "error"), [(b"GET / HTTP/1.1\r\n\r\n", "plain HTTP"), (b"\0\0\0\x09not https", "did not use TLS")]
)
def test_a_client_without_tls_is_logged_with_the_cause(authority, sent, error):
    async def scene():
        async with Scene(authority) as server:
            client = await server.dial()
            client.sendall(sent)
            await server.until(lambda: server.log.warnings)
            assert server.log.warnings[0][0] == "tls_failed" and error in server.log.warnings[0][1]["error"]

    asyncio.run(scene())


def test_closing_ends_handshakes_in_progress(authority):
    async def scene():
        async with Scene(authority) as server:
            client = await server.dial()
            await server.until(lambda: len(server.server._pending) == 1)
            server.server.close()
            await server.server.wait_closed()
            assert await asyncio.to_thread(ended, client)

    asyncio.run(scene())


def test_a_renewed_certificate_is_shown(authority):
    async def scene():
        async with Scene(authority) as server:
            before = server.certificates.https
            cert, key = authority.sign("renewed")
            server.certificates.use(Tls(cert_file=str(cert), key_file=str(key)))
            assert server.certificates.https is not before
            assert await server.fetch() == b"served"

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("host", "text"),
    [("192.0.2.1", "192.0.2.1:7"), ("2001:db8::1", "[2001:db8::1]:7"), ("fe80::1%eth0", "[fe80::1%eth0]:7")],
)
def test_an_ipv6_peer_is_logged_in_brackets(host, text):
    assert host_port(host, 7) == text
