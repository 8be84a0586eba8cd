"""A subscriber with the smallest receive window, beside a flood: over every transport the last message arrives."""

import socket
import ssl
import threading

import pytest
from certificates import Authority

import blipmq
from blipmq.wire import frames as wire
from blipmq.wire.websocket import WebSocket

TIMEOUT_S = 60
COUNT = 300
CAPACITY = 50


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


def settings(authority, policy):
    cert, key = authority.sign("broker")
    server = {f"{kind}bind_addr": "127.0.0.1:0" for kind in ("", "tls_", "ws_")}
    return {
        "server": server,
        "tls": {"cert_file": str(cert), "key_file": str(key)},
        "queues": {"overflow_policy": policy, "subscriber_capacity": CAPACITY},
    }


class Subscriber:
    """A client whose socket has a receive buffer of 4 KiB."""

    def __init__(self, address, context, over_websocket):
        host, _, port = address.rpartition(":")
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(TIMEOUT_S)
        self.socket.connect((host, int(port)))
        if context is not None:
            self.socket = context.wrap_socket(self.socket, server_hostname="localhost")
        self.websocket = WebSocket(address) if over_websocket else None
        self.reader = wire.FrameReader()
        if self.websocket is not None:
            self.socket.sendall(self.websocket.request)
            while not self.websocket.is_open:
                assert self.receive() == []
        for sent in (
            wire.encode_command(wire.HELLO, client_id="slow", protocol=wire.PROTOCOL, seq=1),
            wire.encode_command(wire.SUB, "a", seq=2),
        ):
            self.socket.sendall(self.websocket.wrap(sent) if self.websocket is not None else sent)
            while not self.receive():
                pass

    def receive(self):
        data = self.socket.recv(1 << 16)
        assert data, "the broker closed"
        if self.websocket is not None:
            data = self.websocket.receive(data)
        return list(self.reader.feed(data))


@pytest.mark.parametrize("size", [100, 5_000, 200_000])
@pytest.mark.parametrize(("policy", "late"), [("drop_oldest", False), ("drop_oldest", True), ("block", False)])
@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
def test_a_subscriber_with_a_small_receive_buffer_gets_the_last_message(authority, transport, policy, late, size):
    """`late`: it reads only after the flood, when its queue has dropped most of it."""
    context = ssl.create_default_context(cafile=str(authority.file)) if transport in ("tls", "wss") else None
    with blipmq.Broker(settings(authority, policy)) as broker:
        address = {"tcp": broker.address, "ws": broker.websocket_address}.get(transport, broker.tls_address)
        subscriber = Subscriber(address, context, transport in ("ws", "wss"))

        def flood():
            with blipmq.connect_blocking(broker.address) as writer:
                for number in range(COUNT):
                    writer.publish("a", number.to_bytes(4, "big") + bytes(size))
                writer.publish("a", b"last")

        flooding = threading.Thread(target=flood)
        with subscriber.socket:
            flooding.start()
            if late:
                flooding.join(TIMEOUT_S)
            numbers = []
            while not numbers or numbers[-1] != b"last":
                numbers += [message.payload[:4] for message in subscriber.receive()]
            flooding.join(TIMEOUT_S)
            assert numbers == sorted(numbers), "in order"
            assert policy == "drop_oldest" or len(numbers) == COUNT + 1
            assert not late or size < 200_000 or CAPACITY < len(numbers) < COUNT
