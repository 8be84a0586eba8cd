"""Unauthenticated connections beside admitted clients: `python -m bench.unadmitted [--count 10000] [--seconds 10] [--rounds 3]`.

A broker with keys runs in its own process. One client publishes 500 small messages a second to another; latency counts from the
time when a message was due. An unadmitted client connects, sends one byte a second of a frame that never becomes complete, and
reconnects at once when it is closed. The unadmitted clients run in another process.

A round has three phases, because the speed of the machine changes: no unadmitted clients; such clients at a second broker, to
show the cost of sharing the machine; such clients at this broker.

Invariant: this prints a table in Markdown and asserts nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import multiprocessing
import os
import resource
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import NamedTuple

from blipmq.wire import frames as wire

RATE = 500  # messages a second
SLOW_FRAME = struct.pack(">I", 1024) + bytes(1024)
CONNECTS_PER_LOOK = 200
KEY = "the-key-of-those-inside-0123456789"
PLACES = ("nobody", "the crowd, at another broker", "the crowd")
SETTINGS = {
    "the limits as they come": "",
    "no limit to speak of": "max_pending = 100000\nmax_pending_per_address = 100000\naccept_rate = 0\n",
}
Address = tuple[str, int]


class Row(NamedTuple):
    settings: str
    place: str
    p50_ms: float
    p99_ms: float
    worst_ms: float
    io_cpu_ms_per_s: float
    rss_growth_mib: float
    connections_per_second: float


# ---- unadmitted clients ----------------------------------------------------------------------------------------------


def crowd(address: Address, count: int, come: Event, tally: multiprocessing.sharedctypes.Synchronized[int]) -> None:
    """While `come` is set, keep `count` unadmitted clients connected; `tally` counts the connections made."""
    os.nice(19)  # it represents other machines
    poll = select.epoll()
    inside: dict[int, tuple[socket.socket, float]] = {}
    while True:
        if not come.is_set():
            for one, _ in inside.values():
                one.close()
            inside.clear()
            come.wait()
        for _ in range(min(CONNECTS_PER_LOOK, count - len(inside))):
            one = socket.socket()
            one.setblocking(False)
            one.connect_ex(address)
            inside[one.fileno()] = one, time.monotonic()
            poll.register(one.fileno(), select.EPOLLIN | select.EPOLLHUP)
            with tally.get_lock():
                tally.value += 1
        send_a_byte_each(inside)
        for number, _ in poll.poll(0.01, 4096):
            one, _ = inside.pop(number)
            one.close()


class Crowd:
    """The process of the unadmitted clients, which connect to `address` while `come` is set."""

    def __init__(self, address: Address, count: int) -> None:
        self.come, self.tally = multiprocessing.Event(), multiprocessing.Value("q", 0)
        self.process = multiprocessing.Process(target=crowd, args=(address, count, self.come, self.tally), daemon=True)

    def __enter__(self) -> Crowd:
        self.process.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.join()


def send_a_byte_each(inside: dict[int, tuple[socket.socket, float]]) -> None:
    now = time.monotonic()
    for number, (one, due) in list(inside.items()):
        if now < due:
            break  # in the order in which they are due
        try:
            one.send(SLOW_FRAME[:1])
        except OSError:
            pass  # still connecting, or closed: checked again later
        del inside[number]
        inside[number] = one, now + 1


# ---- admitted clients ------------------------------------------------------------------------------------------------


def connect(address: Address, name: str) -> socket.socket:
    client = socket.create_connection(address)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    client.sendall(wire.encode_command(wire.HELLO, seq=1, client_id=name, api_key=KEY, protocol=wire.PROTOCOL))
    return client


def latencies_ms(reader: socket.socket, writer: socket.socket, seconds: float) -> list[float]:
    """Seconds from due to received, for each message."""
    count, taken = int(RATE * seconds), list[float]()
    started = time.perf_counter() + 0.01

    def receive() -> None:
        frames = wire.FrameReader()
        while len(taken) < count:
            data = reader.recv(65536)
            now = time.perf_counter()
            for frame in frames.feed(data):
                if isinstance(frame, wire.Message):
                    taken.append((now - started - int(frame.payload) / RATE) * 1000)

    receiver = threading.Thread(target=receive)
    receiver.start()
    for n in range(count):
        while (left := started + n / RATE - time.perf_counter()) > 0:
            time.sleep(left)
        writer.sendall(wire.encode_command(wire.PUB, "t", b"%d" % n))
    receiver.join()
    return sorted(taken)


def measure(settings: str, count: int, seconds: float, rounds: int) -> list[Row]:
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        config = Path(folder, "blipmq.toml")
        config.write_text(
            f'[server]\nbind_addr = "127.0.0.1:0"\nmax_connections = {count + 100}\n[metrics]\nbind_addr = ""\n'
            f'[wal]\nenabled = false\n[auth]\napi_keys = ["{KEY}"]\n[limits]\n{SETTINGS[settings]}'
        )
        pid, address = ending.enter_context(broker(config))
        _, elsewhere = ending.enter_context(broker(config))
        at_this_broker = ending.enter_context(Crowd(address, count))
        at_another = ending.enter_context(Crowd(elsewhere, count))
        reader = ending.enter_context(connect(address, "reader"))
        writer = ending.enter_context(connect(address, "writer"))
        reader.sendall(wire.encode_command(wire.SUB, "t", seq=2))
        rows, empty = list[Row](), resident_bytes(pid)
        for _ in range(rounds):
            for place, present in zip(PLACES, (None, at_another, at_this_broker), strict=True):
                for one in (at_another, at_this_broker):
                    (one.come.set if one is present else one.come.clear)()
                time.sleep(6)  # until all unadmitted clients are connected, or the last one has closed
                connections, cpu_ms = present.tally.value if present else 0, io_cpu_ms(pid)
                times = latencies_ms(reader, writer, seconds)
                rows.append(
                    Row(
                        settings,
                        place,
                        times[len(times) // 2],
                        times[len(times) * 99 // 100],
                        times[-1],
                        (io_cpu_ms(pid) - cpu_ms) / seconds,
                        (resident_bytes(pid) - empty) / (1 << 20),
                        (present.tally.value - connections if present else 0) / seconds,
                    )
                )
        return rows


@contextlib.contextmanager
def broker(config: Path) -> Iterator[tuple[int, Address]]:
    """A broker: its process and its address."""
    command = [sys.executable, "-m", "blipmq", "start", "--config", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            ready = next(line for line in process.stderr if " ready " in line)
            threading.Thread(target=process.stderr.read, daemon=True).start()
            host, _, port = ready.rpartition(" address=")[2].split()[0].rpartition(":")
            yield process.pid, (host, int(port))
        finally:
            process.terminate()


def io_cpu_ms(pid: int) -> float:
    """Processor time of the broker's I/O thread: the figure that depends least on other programs."""
    for task in Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == "bq-io":
            return int((task / "schedstat").read_text().split()[0]) / 1e6
    raise SystemExit(f"process {pid} has no I/O thread; is it still the broker?")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# ---- the table -------------------------------------------------------------------------------------------------------


def median(numbers: list[float]) -> float:
    return sorted(numbers)[len(numbers) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000, help="unadmitted connections at once")
    parser.add_argument("--seconds", type=float, default=10, help="of each spell")
    parser.add_argument("--rounds", type=int, default=3, help="a spell of each kind, each")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (options.count + 1000, max(hard, options.count + 1000)))
    print(
        f"{options.count} unadmitted clients, {options.rounds} rounds of {options.seconds:g} s each; medians of the rounds\n"
    )
    print(
        "| limits | unadmitted | p50 ms | p99 ms | worst ms | I/O thread, ms CPU/s | memory +MiB | connections/s tried |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for settings in SETTINGS:
        rows = measure(settings, options.count, options.seconds, options.rounds)
        for place in PLACES:
            own = [row for row in rows if row.place == place]
            p50, p99, worst, cpu, growth, rate = (
                median([float(row[at]) for row in own]) for at in range(2, len(Row._fields))
            )
            print(
                f"| {settings} | {place} | {p50:.2f} | {p99:.2f} | {worst:.1f} | {cpu:.1f} | {growth:.1f} | {rate:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
