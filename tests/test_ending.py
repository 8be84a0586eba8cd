"""Thousands of half-closed clients against a broker in its own process."""

import asyncio
import os
import socket

from broker_process import TIMEOUT_S, until
from hand_client import HELLO, PING, PUB, QUIT, command, decode

from blipmq import Broker

CROWD = 1000
SLOW_DISK = {"wal.flush_interval_ms": 500, "limits.accept_rate": 0, "metrics.bind_addr": ""}


def read_to_end(client):
    data = b""
    while part := client.recv(65536):
        data += part
    return data


def sockets(broker):
    """The number of open sockets of the broker."""
    found = 0
    for name in os.listdir(f"/proc/{broker.pid}/fd"):
        try:
            found += os.readlink(f"/proc/{broker.pid}/fd/{name}").startswith("socket:")
        except FileNotFoundError:  # closed meanwhile
            continue
    return found


def frames(data):
    found = []
    while data:
        size = int.from_bytes(data[:4], "big")
        found.append(decode(data[4 : 4 + size]))
        data = data[4 + size :]
    return found


def test_a_thousand_half_closed_clients_are_answered_and_leak_nothing(start_broker, connect):
    broker = start_broker(SLOW_DISK)
    witness = connect(broker, hello=True)
    host, port = broker.address.rsplit(":", 1)
    before = sockets(broker)
    crowd = []
    for number in range(CROWD):
        client = socket.create_connection((host, int(port)), TIMEOUT_S)
        requests = command(HELLO, seq=1, protocol=1) + command(PUB, "t", b"x", qos=1, seq=2) + command(PING, seq=3)
        client.sendall(requests + (command(QUIT) if number % 2 else b""))
        if not number % 2:
            client.shutdown(socket.SHUT_WR)
        crowd.append(client)
    for client in crowd:
        replies = frames(read_to_end(client))
        assert sorted((reply.seq, reply.code) for reply in replies) == [(1, 0), (2, 0), (3, 0)]
        client.close()
    until(lambda: sockets(broker) == before, "every descriptor is given back")
    assert witness.info()["messages"]["published"] == CROWD


def test_a_thousand_half_closed_clients_that_never_read_are_closed_in_time(start_broker, connect):
    broker = start_broker(SLOW_DISK)
    witness = connect(broker, hello=True)
    host, port = broker.address.rsplit(":", 1)
    before = sockets(broker)
    crowd = []
    for _ in range(CROWD):
        client = socket.create_connection((host, int(port)), TIMEOUT_S)
        client.sendall(command(HELLO, seq=1, protocol=1) + command(PUB, "t", b"x", qos=1, seq=2))
        client.shutdown(socket.SHUT_WR)
        crowd.append(client)
    until(lambda: sockets(broker) == before, "every descriptor is given back though nobody read")
    assert witness.info()["connections"] is not None
    for client in crowd:
        client.close()


def test_the_log_states_how_a_half_closed_client_ended(start_broker):
    broker = start_broker(SLOW_DISK)
    host, port = broker.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), TIMEOUT_S) as client:
        client.sendall(command(HELLO, seq=1, protocol=1, client_id="half") + command(PUB, "t", b"x", qos=1, seq=2))
        client.shutdown(socket.SHUT_WR)
        assert len(frames(read_to_end(client))) == 2
    assert broker.wait_for("closed", client="half")["reason"] == "eof"


def test_a_half_closed_in_process_client_is_answered(tmp_path):
    class Far(asyncio.Protocol):
        def __init__(self):
            self.data, self.lost = b"", asyncio.get_running_loop().create_future()

        def data_received(self, data):
            self.data += data

        def connection_lost(self, exc):
            self.lost.set_result(exc)

    async def run():
        settings = {
            "server": {"bind_addr": ""},
            "wal": {"directory": str(tmp_path / "wal"), "flush_interval_ms": 200},
            "metrics": {"bind_addr": ""},
        }
        async with Broker(settings) as broker:
            far = Far()
            transport = await broker.open_transport(far)
            assert transport.can_write_eof()
            transport.write(command(HELLO, seq=1, protocol=1) + command(PUB, "t", b"x" * 100_000, qos=1, seq=2))
            transport.write(command(PING, seq=3))
            transport.write_eof()
            transport.write(command(PING, seq=4))  # the client writes nothing more
            assert await asyncio.wait_for(far.lost, TIMEOUT_S) is None
            return frames(far.data)

    replies = asyncio.run(run())
    assert sorted((reply.seq, reply.code) for reply in replies) == [(1, 0), (2, 0), (3, 0)]
