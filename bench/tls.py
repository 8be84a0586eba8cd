"""`python -m bench.tls [--rounds N] [--seconds S]`: TLS and plain TCP of one broker, in one run.

One publisher and one subscriber are separate processes, each with a plain socket or `ssl` over one. Publishes are
encoded ahead and written 64 KiB at a time. The overflow policy is `block`, so nothing is dropped and the slowest of the
three limits the rate. Counted are the messages that the subscriber has read, and the broker's processor time in the
same seconds.

The third table shows a plain pair while a TLS pair loads the broker: whether TLS slows down plain clients.

Invariant: the shapes of one round run directly after each other, and a figure is the median over the rounds. On a machine with
other work use the ratios.
"""

from __future__ import annotations

import argparse
import os
import select
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from blipmq.wire import command
from blipmq.wire import frames as wire

ROOT = Path(__file__).resolve().parent.parent
PAYLOAD_BYTES = 64
BLOCK_BYTES = 64 << 10
SHAPES = [("tcp", "tcp"), ("tls", "tcp"), ("tcp", "tls"), ("tls", "tls")]


# ---- a client, in its own process ------------------------------------------------------------------------------------


def dial(address: str, ca_file: str) -> socket.socket:
    scheme, _, where = address.partition("://")
    host, _, port = where.rpartition(":")
    plain = socket.create_connection((host, int(port)))
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if scheme == "tcp":
        return plain
    return ssl.create_default_context(cafile=ca_file).wrap_socket(plain, server_hostname=host)


def publish(address: str, ca_file: str, topic: str) -> None:
    """Publish until killed."""
    frame = command.PublishEncoder(topic).frames([bytes(PAYLOAD_BYTES)])
    block = frame * (BLOCK_BYTES // len(frame))
    with dial(address, ca_file) as client:
        while True:
            client.sendall(block)


def subscribe(address: str, ca_file: str, topic: str) -> None:
    """Read until killed. For each line on standard input print the number of bytes received so far."""
    buffer, count = bytearray(256 << 10), 0
    with dial(address, ca_file) as client:
        client.sendall(wire.encode_command(wire.SUB, topic))
        client.settimeout(0.01)
        print("ready", flush=True)
        while True:
            try:
                count += client.recv_into(buffer)
            except TimeoutError:
                pass
            if select.select([0], [], [], 0)[0] and os.read(0, 64):
                print(count, flush=True)


# ---- the run ---------------------------------------------------------------------------------------------------------


class Pair:
    """A publisher and a subscriber to its topic."""

    def __init__(self, addresses: dict[str, str], ca_file: str, shape: tuple[str, str], topic: str) -> None:
        pub, sub = shape
        self._reader = _start("subscribe", addresses[sub], ca_file, topic)
        assert self._reader.stdout is not None and self._reader.stdout.readline() == "ready\n"
        time.sleep(0.2)  # until the subscription is in effect
        self._writer = _start("publish", addresses[pub], ca_file, topic)

    def received_bytes(self) -> int:
        assert self._reader.stdin is not None and self._reader.stdout is not None
        self._reader.stdin.write("?\n")
        self._reader.stdin.flush()
        return int(self._reader.stdout.readline())

    def end(self) -> None:
        for child in self._writer, self._reader:
            child.kill()
            child.wait()


def _start(what: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "bench.tls", what, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )


def message_bytes(topic: str) -> int:
    """The bytes of one delivered message, encoded by the core."""
    from blipmq.native.pure import encode_message

    return len(encode_message(1, 1, 0, topic.encode(), bytes(PAYLOAD_BYTES)))


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(pair: Pair, pid: int, seconds: float, topic: str) -> tuple[float, float]:
    """Messages a second, and the broker's nanoseconds for each."""
    time.sleep(0.5)  # until the queues are full
    began, bytes_before, busy_before = time.monotonic(), pair.received_bytes(), processor_seconds(pid)
    time.sleep(seconds)
    count = (pair.received_bytes() - bytes_before) / message_bytes(topic)
    return count / (time.monotonic() - began), (processor_seconds(pid) - busy_before) / max(count, 1) * 1e9


def make_certificate(directory: Path) -> None:
    subprocess.run(
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -keyout key.pem -out cert.pem "
        "-subj /CN=bench -addext subjectAltName=IP:127.0.0.1 -addext keyUsage=critical,digitalSignature,keyCertSign".split(),
        cwd=directory,
        check=True,
        stderr=subprocess.DEVNULL,
    )


def start_broker(directory: Path) -> tuple[subprocess.Popen[str], dict[str, str]]:
    (directory / "blipmq.toml").write_text(
        '[server]\nbind_addr = "127.0.0.1:0"\ntls_bind_addr = "127.0.0.1:0"\n[tls]\ncert_file = "cert.pem"\n'
        'key_file = "key.pem"\n[metrics]\nbind_addr = ""\n[wal]\nenabled = false\n[queues]\noverflow_policy = "block"\n'
    )
    broker = subprocess.Popen(
        [sys.executable, "-m", "blipmq", "start"],
        cwd=directory,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert broker.stderr is not None
    for line in broker.stderr:
        if " ready " in line:
            facts = dict(word.split("=", 1) for word in line.split() if "=" in word)
            return broker, {"tcp": "tcp://" + facts["address"], "tls": "tls://" + facts["tls"]}
    raise SystemExit("the broker did not start")


def run(rounds: int, seconds: float) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        make_certificate(directory)
        ca_file = str(directory / "cert.pem")
        broker, addresses = start_broker(directory)
        found: dict[str, list[tuple[float, float]]] = {}
        try:
            for _ in range(rounds):
                for shape in SHAPES:
                    pair = Pair(addresses, ca_file, shape, "t")
                    found.setdefault(" > ".join(shape), []).append(measure(pair, broker.pid, seconds, "t"))
                    pair.end()
                for beside in ("tcp", "tls"):
                    pair, other = (
                        Pair(addresses, ca_file, ("tcp", "tcp"), "t"),
                        Pair(addresses, ca_file, (beside, beside), "u"),
                    )
                    found.setdefault(f"tcp > tcp, beside {beside}", []).append(measure(pair, broker.pid, seconds, "t"))
                    pair.end()
                    other.end()
        finally:
            broker.terminate()
            broker.wait()
    report(found)


def report(found: dict[str, list[tuple[float, float]]]) -> None:
    rates = {name: statistics.median(rate for rate, _ in runs) for name, runs in found.items()}
    costs = {name: statistics.median(cost for _, cost in runs) for name, runs in found.items()}
    print(
        "| publisher > subscriber | messages/s | to plain | broker's CPU each, ns | to plain |\n|---|---|---|---|---|"
    )
    base = "tcp > tcp"
    for name in rates:
        if "beside" not in name:
            ratios = f"{rates[name] / rates[base]:.2f} | {costs[name]:.0f} | {costs[name] / costs[base]:.2f}"
            print(f"| {name} | {rates[name]:,.0f} | {ratios} |")
    beside = [rates[f"tcp > tcp, beside {kind}"] for kind in ("tcp", "tls")]
    print(f"\nA plain pair beside another plain pair: {beside[0]:,.0f} a second; beside a TLS pair: {beside[1]:,.0f}.")


if __name__ == "__main__":
    if sys.argv[1:2] in (["publish"], ["subscribe"]):
        {"publish": publish, "subscribe": subscribe}[sys.argv[1]](*sys.argv[2:5])
    else:
        parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
        parser.add_argument("--rounds", type=int, default=5)
        parser.add_argument("--seconds", type=float, default=2.0)
        arguments = parser.parse_args()
        run(arguments.rounds, arguments.seconds)
