"""Keep-alive of the clients: they send in each interval, and close the connection to a dead broker machine."""

import asyncio
import fcntl
import socket
import struct
import termios
import threading
import time

import pytest
from fake_broker import FakeBroker, reply
from hand_client import vanish

import blipmq
from blipmq.client import blocking_connection
from blipmq.client.connection import Link
from blipmq.errors import Disconnected, UsageError

TIMEOUT_S = 30


class Mute:
    """A broker whose machine loses power after the HELLO answer and does not return."""

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = "{}:{}".format(*self._listener.getsockname())
        self._connection = None
        self.is_gone = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def _serve(self):
        self._connection, _ = self._listener.accept()
        self._listener.close()  # a reconnect finds no listener
        self._connection.recv(65536)
        self._connection.sendall(reply(1, 0, "welcome"))
        while struct.unpack("i", fcntl.ioctl(self._connection, termios.TIOCOUTQ, bytes(4)))[0]:
            time.sleep(0.001)  # until the client has acknowledged the data, else it would be retransmitted repeatedly
        vanish(self._connection)
        self.is_gone.set()

    def __exit__(self, *_):
        self._thread.join(TIMEOUT_S)
        self._connection.close()


def test_a_quiet_client_sends_a_ping_in_each_interval():
    async def run(broker):
        async with blipmq.connect(broker.address, keepalive_s=1.0):
            await asyncio.to_thread(broker.wait_for, "PING", 3)

    with FakeBroker() as broker:
        asyncio.run(run(broker))
        assert {command["seq"] for command in broker.wait_for("PING")} == {0}, "nobody waits for these answers"


def test_a_client_that_sent_something_else_sends_no_ping():
    async def run(broker):
        async with blipmq.connect(broker.address, keepalive_s=3600.0) as client:
            connection = client._connection
            link = connection._link
            assert isinstance(link, Link)
            for _ in range(5):
                await client.publish("t", b"x")
                connection.flush()
                connection._look_at(link, 3600.0)
            connection.flush()
            connection._look_at(link, 3600.0)
            connection.flush()
            await client.publish("t", b"last")
            await client.flush()

    with FakeBroker() as broker:
        asyncio.run(run(broker))
        broker.wait_for("QUIT")
        actions = [command["action"] for command in broker.commands]
        assert actions == ["HELLO", *["PUB"] * 5, "PING", "PUB", "PING", "QUIT"], "the second PING is that of flush()"


def test_a_quiet_client_stays_connected_through_its_keep_alive(start_broker):
    broker = start_broker({"server.keepalive_ms": 2000, "metrics.bind_addr": ""})
    states = []

    async def run():
        async with blipmq.connect(
            broker.address, client_id="quiet", on_state=lambda state, _: states.append(state)
        ) as client:
            assert client._connection.protocol.keepalive_ms == 60_000, (
                "it asked for a minute, and was answered two seconds"
            )
            await asyncio.sleep(7)  # more than twice the permitted silence
            await client.ping()

    asyncio.run(run())
    assert states == ["connecting", "connected", "closed"]


def test_the_asyncio_client_closes_a_connection_without_tcp_acknowledgements():
    async def run(address):
        gone = asyncio.get_running_loop().create_future()

        def on_state(state, error):
            if state == "disconnected" and not gone.done():
                gone.set_result(error)

        client = await blipmq.connect(address, keepalive_s=1.0, on_state=on_state)
        error = await asyncio.wait_for(gone, TIMEOUT_S)
        assert "acknowledged no data" in str(error)
        await client.close()

    with Mute() as broker:
        asyncio.run(run(broker.address))


def test_the_blocking_client_closes_a_connection_without_tcp_acknowledgements(monkeypatch):
    monkeypatch.setattr(blocking_connection, "LOST_MS", 1000)
    with Mute() as broker:
        client = blipmq.connect_blocking(broker.address, reconnect=False, timeout_s=TIMEOUT_S)
        assert broker.is_gone.wait(TIMEOUT_S)
        with pytest.raises(Disconnected, match="acknowledged no data"):
            client.ping()


@pytest.mark.parametrize("keepalive_s", [-1, 0.5, 1e9, float("nan")])
def test_an_invalid_keep_alive_interval_is_refused(keepalive_s):
    with pytest.raises(UsageError, match=r"keepalive_s is .* from 1 to 86400"):
        blipmq.Client("127.0.0.1", keepalive_s=keepalive_s)
