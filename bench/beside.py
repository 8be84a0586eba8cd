"""A quiet client beside each attack: `make bench ARGS='beside'`, or `python -m bench.beside [--rounds 5] [--seconds 2]`.

Each attack causes as much work or memory in a broker as a client can. A quiet pair sends 500 small messages a second through the
same broker; latency counts from the time when a message was due. A round has three phases, because the speed of the machine
changes: without the attack; with the attack on another broker of this machine, to show the cost of sharing the processors; with
the attack on this broker. A ratio compares two p99 of one round.

Invariant: this prints a table and asserts nothing. The goal is met if the p99 beside the attack is at most twice that without it,
or that with the attack on another broker.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import select
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from bench.tls import make_certificate
from bench.unadmitted import Address, broker, median
from blipmq.wire import frames as wire

ROOT = Path(__file__).resolve().parent.parent
RATE = 500  # messages a second of the quiet pair
GOAL = 2.0
ROUNDS, SECONDS = 5, 2.0
SETTLE_S, AFTER_S, MISSING_S = 1.0, 0.4, 10.0
START_S, BROKERS_S = 0.5, 3.0  # start times of an attack's process and of two brokers, to estimate the duration
QUIET_KEY, ATTACK_KEY = "the-key-of-the-quiet-pair-0123456789", "the-key-of-the-attack-0123456789abcd"
LIMITS = "[limits]\nmemory_bytes = 67108864\naccept_rate = 0\n"
PLACES = ("without", "on another broker", "on this broker")


# ---- attacks: each reports when it has begun and runs until it is killed -----------------------------------------------


def client(address: Address, name: str = "", receive_bytes: int = 0) -> socket.socket:
    """A client that has sent HELLO and has not read the answer."""
    one = socket.socket()
    if receive_bytes:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    one.connect(address)
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.sendall(wire.encode_command(wire.HELLO, seq=1, client_id=name, api_key=ATTACK_KEY, protocol=wire.PROTOCOL))
    return one


def publish(topic: str, payload: bytes, qos: int = 0) -> bytes:
    return wire.encode_command(wire.PUB, topic, payload, qos=qos, seq=9 if qos else 0)


def drain(one: socket.socket) -> None:
    """Read and discard all input, in a thread."""

    def read() -> None:
        while one.recv(1 << 20):
            pass

    threading.Thread(target=read, daemon=True).start()


def begun() -> None:
    print("begun", flush=True)


def send_for_ever(sockets: list[socket.socket], blocks: Iterator[bytes]) -> None:
    """Send as fast as the broker reads."""
    begun()
    for one, block in zip(itertools.cycle(sockets), blocks, strict=False):
        one.sendall(block)


def overlapping_filters(address: Address, _: str) -> None:
    """1,000 filters that all match, and a new topic for each message."""
    one = client(address)
    drain(one)
    levels = 60
    for number in range(1000):
        filter_ = "/".join("+" if number >> level % 10 & 1 else "a" for level in range(levels)) + "/#"
        one.sendall(wire.encode_command(wire.SUB, filter_, seq=2))
    head = "/".join("a" * levels)
    send_for_ever([one], (publish(f"{head}/{number}", b"q") for number in itertools.count()))


def drops_past_what_is_kept(address: Address, _: str) -> None:
    """A subscriber that does not read, with thousands of QoS 1 deliveries in front of a full QoS 0 queue."""
    stuck, writer = client(address, receive_bytes=4096), client(address)
    drain(writer)
    for number in range(400):
        filter_ = "/".join("+" if number >> level & 1 else "a" for level in range(9))
        stuck.sendall(wire.encode_command(wire.SUB, filter_, qos=1, seq=1))
    for topic in ("q0", "q1"):
        stuck.sendall(wire.encode_command(wire.SUB, topic, seq=2))
    time.sleep(0.5)
    for _number in range(8):
        writer.sendall(publish("q0", bytes(900_000)))
    for _number in range(256):
        writer.sendall(publish("/".join("a" * 9), b"k", qos=1))
    time.sleep(0.3)
    send_for_ever([writer], itertools.cycle([publish("q0", b"y") + publish("q1", b"y")]))


def qos_0_behind_the_disk(address: Address, _: str) -> None:
    """QoS 0 messages of several publishers, each behind a QoS 1 message that waits for its sync."""
    writers = [client(address) for _ in range(8)]
    for writer in writers:
        drain(writer)
    send_for_ever(writers, itertools.cycle([publish("t/1", b"1", qos=1) + publish("t/0", bytes(20_000)) * 4]))


def full_group_that_blocks(address: Address, _: str) -> None:
    """A queue group that does not read, under the policy `block`, and publishers that fill it."""
    members = [client(address, receive_bytes=4096) for _ in range(4)]
    for member in members:
        member.sendall(wire.encode_command(wire.SUB, "jobs", group="g", seq=2))
    time.sleep(0.3)
    writers = [client(address) for _ in range(50)]
    begun()
    frame = publish("jobs", bytes(50_000))
    for writer in writers:
        writer.setblocking(False)
    while True:  # publishers that are not held back yet
        for writer in select.select([], writers, [], 1)[1]:
            with contextlib.suppress(BlockingIOError):
                writer.send(frame)


def copies_for_who_does_not_acknowledge(address: Address, _: str) -> None:
    """QoS 1 subscribers that read and never acknowledge, with the shortest ack timeout."""
    readers, writer = [client(address, f"deaf{number}") for number in range(20)], client(address)
    for reader in [*readers, writer]:
        drain(reader)
    for reader in readers:
        reader.sendall(wire.encode_command(wire.SUB, "again", qos=1, durable=True, seq=2))
    time.sleep(0.5)
    begun()
    while True:
        writer.sendall(publish("again", bytes(10_000), qos=1) * 20)
        time.sleep(0.05)


def answers_nobody_reads_over_tls(address: Address, certificate: str) -> None:
    """TLS clients that send requests and do not read the answers."""
    asking = []
    for _number in range(8):
        plain = socket.socket()
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        plain.connect(address)
        one = ssl.create_default_context(cafile=certificate).wrap_socket(plain, server_hostname=address[0])
        one.sendall(wire.encode_command(wire.HELLO, seq=1, api_key=ATTACK_KEY, protocol=wire.PROTOCOL))
        asking.append(one)
    ask = wire.encode_command(wire.INFO, "", seq=3) + wire.encode_command(wire.PING, "", seq=4) * 20

    def keep_asking(one: ssl.SSLSocket) -> None:
        while True:
            with contextlib.suppress(OSError):
                one.sendall(ask)

    for one in asking:
        threading.Thread(target=keep_asking, args=(one,), daemon=True).start()
    begun()
    threading.Event().wait()


def peers_that_are_gone(address: Address, _: str) -> None:
    """Subscribers with full socket buffers, and a flood for them."""
    gone, writer = [client(address, receive_bytes=4096) for _ in range(300)], client(address)
    for one in gone:
        one.sendall(wire.encode_command(wire.SUB, "flood", seq=2))
    drain(writer)
    time.sleep(0.5)
    send_for_ever([writer], itertools.cycle([publish("flood", bytes(2_000))]))


def one_key_takes_all_it_may(address: Address, _: str) -> None:
    """Connections and durable subscriptions of one key, repeated until the broker refuses, and further."""
    begun()
    inside: list[socket.socket] = []
    for number in itertools.count():
        if len(inside) >= 400:
            inside.pop(0).close()
        with contextlib.suppress(OSError):
            one = client(address, f"greedy{number % 3000}")
            one.sendall(wire.encode_command(wire.SUB, f"greedy/{number % 3000}", qos=1, durable=True, seq=2) * 2)
            inside.append(one)


class Attack(NamedTuple):
    run: Callable[[Address, str], None]
    settings: str = ""
    over_tls: bool = False


ATTACKS = {
    attack.run.__name__: attack
    for attack in (
        Attack(overlapping_filters),
        Attack(drops_past_what_is_kept, "[queues]\nsubscriber_capacity = 1000\n"),
        Attack(qos_0_behind_the_disk),
        Attack(full_group_that_blocks, '[queues]\noverflow_policy = "block"\n'),
        Attack(copies_for_who_does_not_acknowledge, "[qos1]\nack_timeout_ms = 100\n"),
        Attack(answers_nobody_reads_over_tls, over_tls=True),
        Attack(peers_that_are_gone),
        Attack(one_key_takes_all_it_may),
    )
}


# ---- the quiet pair -----------------------------------------------------------------------------------------------------


class Quiet:
    """A publisher and a subscriber with their own key."""

    def __init__(self, address: Address, ending: contextlib.ExitStack) -> None:
        self.reader, self.writer = (ending.enter_context(self._connect(address, name)) for name in ("reader", "writer"))
        self.reader.sendall(wire.encode_command(wire.SUB, "quiet", seq=2))
        self.spell = 0

    def _connect(self, address: Address, name: str) -> socket.socket:
        one = socket.create_connection(address)
        one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        one.sendall(wire.encode_command(wire.HELLO, seq=1, client_id=name, api_key=QUIET_KEY, protocol=wire.PROTOCOL))
        return one

    def p99_ms(self, seconds: float) -> float:
        """p99 of the times from due to received. A lost message counts with the time that was waited for it."""
        self.spell += 1
        count, taken = int(RATE * seconds), list[float]()
        mark, started = b"%d " % self.spell, time.perf_counter() + 0.01
        self.reader.settimeout(MISSING_S)

        def receive() -> None:
            frames = wire.FrameReader()
            with contextlib.suppress(TimeoutError):
                while len(taken) < count:
                    data = self.reader.recv(65536)
                    now = time.perf_counter()
                    if not data:
                        return
                    for frame in frames.feed(data):
                        if isinstance(frame, wire.Message) and frame.payload.startswith(mark):
                            number = int(frame.payload.removeprefix(mark))
                            taken.append((now - started - number / RATE) * 1000)

        receiver = threading.Thread(target=receive)
        receiver.start()
        for number in range(count):
            while (left := started + number / RATE - time.perf_counter()) > 0:
                time.sleep(left)
            self.writer.sendall(wire.encode_command(wire.PUB, "quiet", mark + b"%d" % number))
        receiver.join()
        times = sorted(taken + [MISSING_S * 1000] * (count - len(taken)))
        return times[len(times) * 99 // 100]


# ---- the run --------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def attacked(name: str, address: Address, certificate: str) -> Iterator[None]:
    """Runs the attack in a separate process, in place of other machines."""
    command = [sys.executable, "-m", "bench.beside", "--attack", name, address[0], str(address[1]), certificate]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "begun\n":
                raise SystemExit(f"bench: the attack {name} did not begin")
            time.sleep(SETTLE_S)
            yield
            if process.poll() is not None:
                raise SystemExit(f"bench: the attack {name} ended by itself, with {process.returncode}")
        finally:
            process.kill()
    time.sleep(AFTER_S)


def configuration(directory: Path, port: int, attack: Attack) -> Path:
    """Writes the configuration of one broker; its WAL is in the same directory."""
    directory.mkdir()
    tls = f'tls_bind_addr = "127.0.0.1:{port}"\n' if port else ""
    files = (
        f'[tls]\ncert_file = "{directory.parent}/cert.pem"\nkey_file = "{directory.parent}/key.pem"\n' if port else ""
    )
    config = directory / "blipmq.toml"
    config.touch(0o600)
    config.write_text(
        f'[server]\nbind_addr = "127.0.0.1:0"\nmax_connections = 2000\n{tls}{files}[metrics]\nbind_addr = ""\n'
        f'[wal]\ndirectory = "{directory / "wal"}"\n[auth]\napi_keys = ["{QUIET_KEY}", "{ATTACK_KEY}"]\n{LIMITS}{attack.settings}'
    )
    return config


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(name: str, rounds: int, seconds: float) -> dict[str, list[float]]:
    """The p99 of each round, by the target of the attack."""
    attack, found = ATTACKS[name], {place: list[float]() for place in PLACES}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as ending:
        directory = Path(folder)
        make_certificate(directory)
        certificate, targets = str(directory / "cert.pem"), list[Address]()
        quiet_at: Address | None = None
        for number in range(2):
            port = free_port() if attack.over_tls else 0
            _, address = ending.enter_context(broker(configuration(directory / f"broker{number}", port, attack)))
            quiet_at = quiet_at or address
            targets.append((address[0], port) if port else address)
        assert quiet_at is not None
        quiet = Quiet(quiet_at, ending)
        quiet.p99_ms(0.3)  # warm-up
        for _ in range(rounds):
            for place, target in zip(PLACES, (None, targets[1], targets[0]), strict=True):
                with attacked(name, target, certificate) if target else contextlib.nullcontext():
                    found[place].append(quiet.p99_ms(seconds))
    return found


def expected_s(attacks: int, rounds: int, seconds: float) -> float:
    """An estimate of the duration, in seconds."""
    round_s = len(PLACES) * seconds + 2 * (START_S + SETTLE_S + AFTER_S)
    return attacks * (rounds * round_s + BROKERS_S)


def ratio(found: dict[str, list[float]], of: str, to: str) -> float:
    return statistics.median(a / b for a, b in zip(found[of], found[to], strict=True))


def row(name: str, found: dict[str, list[float]]) -> str:
    without, elsewhere, here = PLACES
    figures = " | ".join(f"{median(found[place]):.2f}" for place in PLACES)
    beside, control = ratio(found, here, without), ratio(found, here, elsewhere)
    met = (
        "met" if min(beside, control) <= GOAL else "not met"
    )  # the broker is not responsible for the cost of sharing the machine
    ratios = f"{ratio(found, elsewhere, without):.2f} | {beside:.2f} | {control:.2f}"
    return f"| {name.replace('_', ' ')} | {figures} | {ratios} | {met} |"


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench beside", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="a spell of each kind, each")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each spell")
    parser.add_argument("--attack", nargs=4, metavar=("NAME", "HOST", "PORT", "CERT"), help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", metavar="ATTACK", help="one or more of: " + ", ".join(ATTACKS))
    options = parser.parse_args(words)
    if options.attack:
        os.nice(19)
        name, host, port, certificate = options.attack
        ATTACKS[name].run((host, int(port)), certificate)
        return 0
    names = options.names or list(ATTACKS)
    if unknown := set(names) - set(ATTACKS):
        parser.error(f"no such attack: {', '.join(sorted(unknown))}; there are {', '.join(ATTACKS)}")
    print(f"bench: about {expected_s(len(names), options.rounds, options.seconds) / 60:.1f} minutes", file=sys.stderr)
    print(f"{options.rounds} rounds of {options.seconds:g} s each, {RATE} messages a second; medians of the rounds\n")
    print(
        "| attack | p99 ms without | on another broker | on this broker | another to without | this to without | "
        "this to another | goal: 2 |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name in names:
        print(row(name, measure(name, options.rounds, options.seconds)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
