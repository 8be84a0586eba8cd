"""`python -m bench websocket [--rounds N] [--seconds S]`: the broker's processor time for a delivered message, over WebSocket
and over plain TCP, in turn.

    small       50 pairs of a publisher and a subscriber, one message a write, 2,000 a second in all
    fan         one publisher, 100 subscribers, 50 messages a second
    batches     one publisher that writes 100 messages at once, 1,000 times a second, to one subscriber
    large       the same with one message of 16 KiB a write, 1,000 a second
    thousand    1,000 subscribers that get 100 messages a second each

The clients are plain sockets in this process, with frames made beforehand, so their own cost does not matter. The time is that
of the broker's process, all threads.
"""

from __future__ import annotations

import argparse
import json
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from blipmq.wire import frames as wire
from blipmq.wire.websocket import WebSocket

HELLO = wire.encode_command(wire.HELLO, client_id="", protocol=wire.PROTOCOL, seq=1)
TICK_S = 1 / 200
DRAIN_S = 5.0


class Shape(NamedTuple):
    name: str
    pairs: int  # publishers, each with a topic of its own
    subscribers: int  # of each topic
    payload: int
    batch: int  # messages a write
    rate: int  # messages a second, all publishers together


SHAPES = [
    Shape("small", 50, 1, 64, 1, 2_000),
    Shape("fan", 1, 100, 64, 1, 50),
    Shape("batches", 1, 1, 64, 100, 100_000),
    Shape("large", 1, 1, 16_384, 1, 1_000),
    Shape("thousand", 1, 1_000, 64, 1, 100),
]


class Client:
    """A socket, over WebSocket if `codec` is not None."""

    def __init__(self, address: str, websocket: bool) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.codec: WebSocket | None = WebSocket(address) if websocket else None
        if self.codec is not None:
            self.socket.sendall(self.codec.request)
            while not self.codec.is_open:
                self.codec.receive(self.socket.recv(4096))
        self.ask(HELLO)

    def wrap(self, data: bytes) -> bytes:
        return data if self.codec is None else self.codec.wrap(data)

    def ask(self, data: bytes) -> None:
        """Send a request and wait for its answer."""
        self.socket.sendall(self.wrap(data))
        reader = wire.FrameReader()
        while True:
            got = self.socket.recv(65_536)
            if list(reader.feed(got if self.codec is None else self.codec.receive(got))):
                return


class Run(NamedTuple):
    us: float  # of processor time for a delivered message
    delivered: int
    expected: int


def cpu_s(pid: int) -> float:
    """Of all its threads; /proc/PID/stat counts in hundredths of a second only."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text(encoding="ascii").split()[0]) for thread in threads) / 1e9


def delivered(asking: Client) -> int:
    """The broker's counter of delivered messages."""
    reader, codec = wire.FrameReader(), asking.codec
    asking.socket.sendall(asking.wrap(wire.encode_command(wire.INFO, payload=b"", seq=9)))
    while True:
        got = asking.socket.recv(1 << 20)
        for frame in reader.feed(got if codec is None else codec.receive(got)):
            if isinstance(frame, wire.Reply) and frame.payload:
                return int(json.loads(frame.payload)["messages"]["delivered"])


def measure(shape: Shape, address: str, pid: int, websocket: bool, seconds: float, asking: Client) -> Run:
    publishers, selector = [], selectors.DefaultSelector()
    topics = [f"bench.{number}" for number in range(shape.pairs)]
    readers = []
    for topic in topics:
        for _ in range(shape.subscribers):
            client = Client(address, websocket)
            client.ask(wire.encode_command(wire.SUB, topic, seq=2))
            client.socket.setblocking(False)
            selector.register(client.socket, selectors.EVENT_READ)
            readers.append(client)
        publishers.append(Client(address, websocket))
    payload = bytes(shape.payload)
    writes = [
        client.wrap(wire.encode_command(wire.PUB, topic, payload) * shape.batch)
        for topic, client in zip(topics, publishers, strict=True)
    ]
    before, begun, cpu = delivered(asking), time.monotonic(), cpu_s(pid)
    sent, turn = 0, 0
    while (now := time.monotonic() - begun) < seconds:
        due = int(now * shape.rate) // shape.batch
        while sent < due:
            publishers[turn].socket.sendall(writes[turn])
            turn = (turn + 1) % len(publishers)
            sent += 1
        _read(selector, TICK_S)
    expected, deadline = sent * shape.batch * shape.subscribers, time.monotonic() + DRAIN_S
    while (got := delivered(asking) - before) < expected and time.monotonic() < deadline:
        _read(selector, 0.1)
    used = cpu_s(pid) - cpu
    selector.close()
    for client in (*publishers, *readers):
        client.socket.close()
    return Run(used / max(got, 1) * 1e6, got, expected)


def _read(selector: selectors.BaseSelector, seconds: float) -> None:
    for key, _ in selector.select(seconds):
        try:
            while len(key.fileobj.recv(1 << 18)) == 1 << 18:  # type: ignore[union-attr]
                pass
        except BlockingIOError:
            pass


def start(directory: str) -> tuple[subprocess.Popen[str], dict[str, str]]:
    config = Path(directory) / "blipmq.toml"
    config.write_text(
        '[server]\nbind_addr = "127.0.0.1:0"\nws_bind_addr = "127.0.0.1:0"\n[metrics]\nbind_addr = ""\n'
        "[wal]\nenabled = false\n[limits]\naccept_rate = 0\n",
        encoding="utf-8",
    )
    broker = subprocess.Popen(
        [sys.executable, "-m", "blipmq", "start", "--config", str(config)], stderr=subprocess.PIPE, text=True
    )
    assert broker.stderr is not None
    for line in broker.stderr:
        if " ready " in line:
            return broker, dict(word.partition("=")[::2] for word in line.split() if "=" in word)
    raise SystemExit("the broker did not start")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench websocket", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--shape", action="append", choices=[shape.name for shape in SHAPES])
    chosen = parser.parse_args(argv)
    print(
        f"{'shape':<10} {'plain TCP':>12} {'WebSocket':>12} {'ratio':>7}   medians of {chosen.rounds} rounds in turn; us"
    )
    with tempfile.TemporaryDirectory() as directory:
        broker, facts = start(directory)
        try:
            asking = Client(facts["address"], websocket=False)
            for shape in SHAPES:
                if chosen.shape and shape.name not in chosen.shape:
                    continue
                plain, web = [], []
                for _ in range(chosen.rounds):
                    plain.append(measure(shape, facts["address"], broker.pid, False, chosen.seconds, asking))
                    web.append(measure(shape, facts["websocket"], broker.pid, True, chosen.seconds, asking))
                missing = sum(run.expected - run.delivered for run in (*plain, *web))
                us = [statistics.median(run.us for run in runs) for runs in (plain, web)]
                ratio = statistics.median(b.us / a.us for a, b in zip(plain, web, strict=True))
                lost = f"   {missing} messages were not delivered" if missing else ""
                print(f"{shape.name:<10} {us[0]:>12.2f} {us[1]:>12.2f} {ratio:>7.2f}{lost}", flush=True)
        finally:
            broker.terminate()
            broker.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
