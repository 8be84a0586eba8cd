"""`python -m bench.backlog [--messages N] [--bytes B] [--readers R] [--rounds N]`: a durable backlog read back from the WAL.

Durable subscribers are away while messages are published. Then they connect, receive all messages with the broker's default
window, and acknowledge each. Figures: bytes read from the WAL's files for each byte of the WAL, and the processor time of all
threads of the broker for each delivered message. With --share 100 every hundredth message matches the subscribers' filter.

Invariant: each subscriber gets every message of its filter once, in order; otherwise there is no figure.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from blipmq.wire import frames as wire

WINDOW = 4096
LENGTH = struct.Struct(">I")


class Peer:
    """A minimal client: a socket and its frames."""

    def __init__(self, port: int, client_id: str) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.reader = wire.FrameReader()
        self.expected = 0
        self.ask(wire.encode_command(wire.HELLO, client_id=client_id, protocol=wire.PROTOCOL, seq=1))

    def ask(self, frame: bytes) -> wire.Frame:
        self.socket.sendall(frame)
        while not (frames := self.some()):
            pass
        return frames[0]

    def some(self) -> list[wire.Frame]:
        data = self.socket.recv(1 << 18)
        if not data:
            raise SystemExit("bench: the broker closed a connection")
        return self.reader.feed(data)

    def subscribe(self, filter_: str) -> None:
        self.socket.sendall(wire.encode_command(wire.SUB, filter_, qos=1, durable=True, seq=2))


def publish(port: int, topics: list[str], count: int, size: int) -> None:
    peer, sent, answered = Peer(port, "publisher"), 0, 0
    encoders = [wire.PublishEncoder(topic, qos=1) for topic in topics]
    while answered < count:
        upto = min(count, answered + WINDOW)
        frames = [
            encoders[number % len(encoders)].frame(number.to_bytes(8, "little") + bytes(size - 8), number + 10)
            for number in range(sent, upto)
        ]
        sent = max(sent, upto)
        if frames:
            peer.socket.sendall(b"".join(frames))
        for reply in peer.some():
            if not isinstance(reply, wire.Reply) or reply.code:
                raise SystemExit(f"bench: a publish was refused: {reply}")
            answered += 1
    peer.socket.close()


def catch_up(port: int, readers: int, filter_: str, count: int) -> float:
    """Seconds until every reader has all its messages."""
    peers = [Peer(port, f"reader{number}") for number in range(readers)]
    began = time.monotonic()
    for peer in peers:
        peer.subscribe(filter_)
    open_peers = {peer.socket: peer for peer in peers}
    while open_peers:
        for ready in select.select(list(open_peers), [], [], 30)[0] or _stalled():
            peer = open_peers[ready]
            messages = [frame for frame in peer.some() if isinstance(frame, wire.Message)]
            numbers = [int.from_bytes(message.payload[:8], "little") for message in messages]
            if numbers != sorted(numbers):
                raise SystemExit("bench: messages came out of order")
            peer.expected += len(messages)
            ready.sendall(wire.encode_acks([message.id for message in messages]))
            if peer.expected == count:
                del open_peers[ready]
    return time.monotonic() - began


def _stalled() -> list[socket.socket]:
    raise SystemExit("bench: nothing came for 30 seconds")


def processor_ns(pid: int) -> int:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)


def counters(port: int) -> dict[str, float]:
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
        text = b"".join(iter(lambda: client.recv(1 << 16), b"")).decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith("blipmq_log_"))
    return {name: float(value) for name, _, value in lines}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def run(arguments: argparse.Namespace) -> dict[str, float]:
    port, metrics = free_port(), free_port()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as place:
        environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("BLIPMQ_")},
            "BLIPMQ_SERVER__BIND_ADDR": f"127.0.0.1:{port}",
            "BLIPMQ_METRICS__BIND_ADDR": f"127.0.0.1:{metrics}",
            "BLIPMQ_WAL__DIRECTORY": f"{place}/wal",
        }
        broker = subprocess.Popen(
            [sys.executable, "-m", "blipmq", "start"], env=environment, cwd=place, stderr=subprocess.PIPE, text=True
        )
        try:
            assert broker.stderr is not None
            while " ready " not in broker.stderr.readline():
                if broker.poll() is not None:
                    raise SystemExit("bench: the broker did not start")
            share, topics = arguments.share, [f"t/{number}" for number in range(arguments.share)]
            for number in range(arguments.readers):
                peer = Peer(port, f"reader{number}")
                peer.ask(wire.encode_command(wire.SUB, topics[0], qos=1, durable=True, seq=2))
                peer.socket.close()
            publish(port, topics, arguments.messages, arguments.bytes)
            before, cpu = counters(metrics), processor_ns(broker.pid)
            each = arguments.messages // share
            seconds = catch_up(port, arguments.readers, topics[0], each)
            cpu, after = processor_ns(broker.pid) - cpu, counters(metrics)
        finally:
            broker.terminate()
            broker.wait()
    read = after["blipmq_log_read_bytes_total"] - before["blipmq_log_read_bytes_total"]
    written = before["blipmq_log_written_bytes_total"]
    delivered = each * arguments.readers
    return {
        "log_bytes": written,
        "read_bytes": read,
        "read_per_byte": read / written,
        "cpu_us_per_message": cpu / 1000 / delivered,
        "cpu_us_per_record": cpu / 1000 / arguments.messages,
        "messages_per_second": delivered / seconds,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.backlog", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--messages", type=int, default=100_000)
    parser.add_argument("--bytes", type=int, default=64, help="of each payload, 8 at least")
    parser.add_argument("--readers", type=int, default=1, help="durable subscribers that come back at once")
    parser.add_argument("--share", type=int, default=1, help="one message in so many matches their filter")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default=None, help="where the log is; default: the system's temporary directory")
    arguments = parser.parse_args()
    results = [run(arguments) for _ in range(arguments.rounds)]
    medians = {name: round(statistics.median(result[name] for result in results), 3) for name in results[0]}
    print(
        json.dumps(
            {**{name: getattr(arguments, name) for name in ("messages", "bytes", "readers", "share")}, **medians}
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
