"""`make bench ARGS='tls'`, or `python -m bench.tls_peers [--rounds 5] [--seconds 4]`: TLS of BlipMQ beside mosquitto.

Both brokers have the same certificate. Debian's mosquitto uses the system's OpenSSL, like a BlipMQ built here. The load generator
speaks plain TCP to a tunnel (tls_load.c), which makes a connection over TLS of each of its connections, so both brokers get the
same records. Measured are the processor time and memory of the broker, and the latency of a plain pair.

Invariant: this prints a table and asserts nothing. The brokers of a round are measured directly after each other, and a ratio is
the median of the ratios within a round.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import shlex
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.beside import free_port
from bench.brokers import find_program, missing, running, version_of
from bench.plan import BrokerPlan
from bench.run import BUILD, HERE, build_programs
from bench.unadmitted import resident_bytes
from blipmq.wire import frames as wire

ROUNDS, SECONDS = 5, 4.0
IDLE_CONNECTIONS = 300
BULK_PAYLOAD_BYTES, BULK_BLOCK_FRAMES = 60_000, 16
STORM_PER_SECOND, HANDSHAKES_PER_SECOND = 80, 100
OURS, PEER, BARE = "blipmq", "mosquitto", "bare SSL_read"

PLANS = {
    OURS: BrokerPlan(
        OURS,
        "blipmq",
        [find_program("blipmq"), "start", "--config", "{config}"],
        [find_program("blipmq"), "version"],
        config="""
[server]
bind_addr = "127.0.0.1:{port}"
tls_bind_addr = "127.0.0.1:{tls_port}"
[tls]
cert_file = "{cert}"
key_file = "{key}"
[metrics]
bind_addr = ""
[wal]
enabled = false
[limits]
accept_rate = 0
""",
    ),
    PEER: BrokerPlan(
        PEER,
        "mqtt",
        ["mosquitto", "-c", "{config}"],
        ["mosquitto", "-h"],
        "apt-get install mosquitto",
        config="""
per_listener_settings false
allow_anonymous true
set_tcp_nodelay true
max_queued_messages 0
persistence false
log_type none
listener {port} 127.0.0.1
listener {tls_port} 127.0.0.1
certfile {cert}
keyfile {key}
""",
    ),
}


# ---- programs ----------------------------------------------------------------------------------------------------------------


def build_tls_load() -> None:
    compiler = shlex.split(os.environ.get("CC", "cc"))
    command = [*compiler, "-O2", "-Wall", "-Wextra", str(HERE / "tls_load.c"), "-lssl", "-lcrypto"]
    subprocess.run([*command, "-o", str(BUILD / "tls_load")], check=True)


@contextlib.contextmanager
def tls_load(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program that runs until the end of the block, and its first line."""
    command = [str(BUILD / "tls_load"), *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def run_tls_load(*words: object) -> tuple[float, float]:
    """A count and the seconds that it took."""
    done = subprocess.run([str(BUILD / "tls_load"), *map(str, words)], capture_output=True, text=True, check=True)
    count, seconds = done.stdout.splitlines()[-1].split()
    return float(count), float(seconds)


def loadgen(plan: BrokerPlan, port: int, pid: int, *words: object) -> dict[str, float]:
    command = [BUILD / "loadgen", "--protocol", plan.protocol, "--port", port, "--pid", pid, *words]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout)
    if found["lost"] or found["corrupt"] or found["unsent"]:
        print(
            f"bench: {plan.name}: lost {found['lost']}, corrupt {found['corrupt']}, unsent {found['unsent']}",
            file=sys.stderr,
        )
    return found


def cpu_s(pid: int) -> float:
    """Processor time of all running threads of a process."""
    return sum(int((task / "schedstat").read_text().split()[0]) for task in Path(f"/proc/{pid}/task").iterdir()) / 1e9


# ---- measurements: each takes a broker and gives one figure ------------------------------------------------------------------


class Target(NamedTuple):
    """A running broker, or the bare server, which has no plain port."""

    plan: BrokerPlan
    pid: int
    port: int
    tls_port: int


class Run(NamedTuple):
    seconds: float
    directory: Path


def through_tunnel(target: Target, *words: object) -> dict[str, float]:
    with tls_load("tunnel", target.tls_port) as (_, port):
        return loadgen(target.plan, int(port), target.pid, *words)


def small_messages(rate: int) -> Callable[[Target, Run], float]:
    def measure(target: Target, run: Run) -> float:
        options = ("--publishers", 100, "--rate", rate, "--single-writes", "--duration", run.seconds)
        return through_tunnel(target, *options)["cpu_us_per_sent"]

    return measure


def many_subscribers(target: Target, run: Run) -> float:
    options = ("--subscribers", 100, "--rate", 200, "--single-writes", "--duration", run.seconds)
    return through_tunnel(target, *options)["cpu_us_per_delivered"]


def mqtt_packet(kind: int, body: bytes) -> bytes:
    size, head = len(body), bytes((kind,))
    while True:
        size, byte = size >> 7, size & 127
        head += bytes((byte | (128 if size else 0),))
        if not size:
            return head + body


def mqtt_text(text: bytes) -> bytes:
    return struct.pack(">H", len(text)) + text


MQTT_CONNECT = mqtt_packet(0x10, mqtt_text(b"MQTT") + b"\4\2\0\0" + mqtt_text(b""))


def bulk_block(protocol: str) -> bytes:
    payload = bytes(BULK_PAYLOAD_BYTES)
    if protocol == "mqtt":
        return mqtt_packet(0x30, mqtt_text(b"bulk") + payload) * BULK_BLOCK_FRAMES
    return wire.encode_command(wire.PUB, "bulk", payload) * BULK_BLOCK_FRAMES


def bulk(target: Target, run: Run) -> float:
    """Milliseconds of the broker's processor for each MB."""
    first, block = run.directory / "first", run.directory / "block"
    first.write_bytes(MQTT_CONNECT if target.plan.protocol == "mqtt" else b"")
    block.write_bytes(bulk_block(target.plan.protocol))
    before = cpu_s(target.pid)
    size, _ = run_tls_load("source", target.tls_port, first, block, run.seconds)
    return (cpu_s(target.pid) - before) * 1000 / (size / 1e6)


def handshake(target: Target, run: Run) -> float:
    """Microseconds of the broker's processor for each full handshake."""
    before = cpu_s(target.pid)
    count, _ = run_tls_load("handshakes", target.tls_port, HANDSHAKES_PER_SECOND, run.seconds)
    time.sleep(0.1)
    return (cpu_s(target.pid) - before) * 1e6 / count


def beside_handshakes(target: Target, run: Run) -> float:
    """p95 of a plain pair, in microseconds."""
    with tls_load("handshakes", target.tls_port, STORM_PER_SECOND, run.seconds + 30):
        time.sleep(0.5)
        options = ("--rate", 500, "--single-writes", "--duration", run.seconds)
        return loadgen(target.plan, target.port, target.pid, *options)["p95_us"]


def idle_connection(target: Target, run: Run) -> float:
    """KiB of resident memory for each."""
    first = run.directory / "first"
    first.write_bytes(MQTT_CONNECT if target.plan.protocol == "mqtt" else b"")
    before = resident_bytes(target.pid)
    with tls_load("idle", target.tls_port, IDLE_CONNECTIONS, first) as (_, said):
        assert said == "ready", said
        time.sleep(0.5)
        return (resident_bytes(target.pid) - before) / 1024 / IDLE_CONNECTIONS


class Shape(NamedTuple):
    name: str
    unit: str
    measure: Callable[[Target, Run], float]
    goal: float
    certificate: str = "ec"
    peer: str = PEER
    fresh: bool = False  # a new broker for each measurement


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("small messages, 2,000/s", "us a message", small_messages(2000), 1.0),
        Shape("small messages, 10,000/s", "us a message", small_messages(10_000), 1.0),
        Shape("100 subscribers", "us a delivery", many_subscribers, 0.85),
        Shape("bulk in", "ms a MB", bulk, 1.25, peer=BARE),
        Shape("handshakes", "us each", handshake, 1.2),
        Shape("plain beside 80 RSA-4096 handshakes/s", "us, p95", beside_handshakes, 0.5, certificate="rsa"),
        Shape("idle connection", "KiB", idle_connection, 1.0, fresh=True),
    )
}


# ---- the run -----------------------------------------------------------------------------------------------------------------


def make_certificates(directory: Path) -> None:
    for name, kind in ("ec", "ec -pkeyopt ec_paramgen_curve:prime256v1"), ("rsa", "rsa:4096"):
        command = (
            f"openssl req -x509 -newkey {kind} -nodes -days 2 -keyout {name}.key -out {name}.pem -subj /CN=bench "
            "-addext subjectAltName=IP:127.0.0.1"
        )
        subprocess.run(command.split(), cwd=directory, check=True, stderr=subprocess.DEVNULL)
        (directory / f"{name}.key").chmod(0o644)  # mosquitto started by root reads it as another user


@contextlib.contextmanager
def started(name: str, certificate: str, directory: Path) -> Iterator[Target]:
    files = {"cert": str(directory / f"{certificate}.pem"), "key": str(directory / f"{certificate}.key")}
    if name == BARE:
        with tls_load("sink", files["cert"], files["key"]) as (process, port):
            yield Target(dataclasses.replace(PLANS[OURS], name=BARE), process.pid, 0, int(port))
        return
    port = free_port()
    with running(PLANS[name], {**files, "tls_port": str(port)}) as broker:
        yield Target(PLANS[name], broker.pid, broker.port, port)


def measure(shape: Shape, rounds: int, run: Run) -> dict[str, list[float]]:
    names = [OURS, shape.peer]
    found: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.ExitStack() as ending:
        targets = {}
        if not shape.fresh:
            targets = {name: ending.enter_context(started(name, shape.certificate, run.directory)) for name in names}
        for number in range(rounds):
            for name in names if number % 2 else names[::-1]:
                with (
                    started(name, shape.certificate, run.directory)
                    if shape.fresh
                    else contextlib.nullcontext(targets[name]) as target
                ):
                    found[name].append(shape.measure(target, run))
    return found


def row(shape: Shape, found: dict[str, list[float]]) -> str:
    ratio = statistics.median(ours / peer for ours, peer in zip(found[OURS], found[shape.peer], strict=True))
    figures = " | ".join(f"{statistics.median(found[name]):.1f}" for name in (OURS, shape.peer))
    met = "met" if ratio <= shape.goal else "not met"
    return f"| {shape.name} | {shape.unit} | {shape.peer} | {figures} | {ratio:.2f} | {shape.goal} | {met} |"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench tls", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each measurement")
    parser.add_argument("names", nargs="*", metavar="SHAPE", help="the beginnings of: " + "; ".join(SHAPES))
    options = parser.parse_args(words)
    shapes = [shape for shape in SHAPES.values() if shape.name.startswith(tuple(options.names or ("",)))]
    if not shapes:
        parser.error(f"no such shape; there are: {'; '.join(SHAPES)}")
    if missing(PLANS[PEER], {}):
        parser.error(f"{PEER} is not installed: {PLANS[PEER].install}")
    build_programs()
    build_tls_load()
    versions = ", ".join(f"{name}: {version_of(PLANS[name], {})}" for name in (OURS, PEER))
    print(f"{options.rounds} rounds of {options.seconds:g} s; {versions}; {ssl_library()}\n")
    print(f"| shape | unit | beside | {OURS} | the other | ratio | goal | |\n|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        directory.chmod(0o755)
        make_certificates(directory)
        for shape in shapes:
            print(row(shape, measure(shape, options.rounds, Run(options.seconds, directory))), flush=True)
    return 0


def ssl_library() -> str:
    """The library that the broker's module uses. Debian's mosquitto is linked with the system's."""
    from blipmq.native.tls import library

    return library()


if __name__ == "__main__":
    sys.exit(main())
