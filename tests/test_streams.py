"""Programs whose standard input, output or error is closed, full, non-blocking or has no reader.

Each is a process: the tests check its output, its exit status and the result of its work. Any traceback is a failure.
"""

import ast
import contextlib
import os
import resource
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from broker_process import TIMEOUT_S, BrokerProcess, broker_command, cli_command, environment, toml, until
from fake_broker import FakeBroker

from blipmq.base import stdio

DEVICE = [sys.executable, "-m", "blipmq.device"]
NO_SPACE = "Cannot write to standard output: its disk is full."
CLOSED = "Cannot write to standard output: it is closed, or not open for writing."


@pytest.fixture
def fake():
    with FakeBroker() as running:
        running.has_log = True
        yield running


def run(command, redirection="", stdin=b"", cwd=None, **variables):
    """Run a command with a shell redirection; returns exit status, standard output and standard error."""
    line = " ".join(shlex.quote(str(word)) for word in command)
    done = subprocess.run(
        ["sh", "-c", f"exec {line} {redirection}"],
        input=stdin,
        capture_output=True,
        timeout=TIMEOUT_S,
        cwd=cwd,
        env=environment(**variables),
    )
    out, err = done.stdout.decode(), done.stderr.decode()
    assert "Traceback" not in out + err and "Exception ignored" not in out + err, out + err
    return done.returncode, out, err


def made_log(directory, damaged=False):
    """A WAL left by a broker."""
    place = directory / "damaged" if damaged else directory
    place.mkdir(exist_ok=True)
    broker = BrokerProcess(place, {"wal.directory": str(place / "wal"), "metrics.bind_addr": ""}).get_ready()
    try:
        for number in range(20):
            words = ["pub", f"t{number}", "x" * 100, "--qos", "1", "-q"]
            assert run([*cli_command(), *words], BLIPMQ_ADDR=broker.address)[0] == 0
    finally:
        broker.kill()
    if damaged:
        segment = max((place / "wal").glob("wal-*"), key=lambda path: b"t5" in path.read_bytes())
        data = bytearray(segment.read_bytes())
        data[data.index(b"t5" + b"x" * 100) + 10] ^= 1
        segment.write_bytes(data)
    return place / "wal"


# ---- standard output -------------------------------------------------------------------------------------------------


BROKER_WORDS = ["--help", "version", "--version", "check", "keys list --file {keys}", "wal verify --directory {log}"]
BROKER_WORDS += ["wal verify --directory {log} --format json", "wal export --directory {log}"]
CLIENT_WORDS = ["--help", "pub --help", "--version", "pub a x", "unsub a --client-id me", "info", "info --format json"]
CLIENT_WORDS += ["info --watch", "bench --messages 1 --subscribers 0"]
DEVICE_WORDS = ["--help", "--version", "--root {root} banner", "--root {root} led ok", "--root {root} factory-reset"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Names for the words above."""
    place = tmp_path_factory.mktemp("files")
    log = made_log(place)
    assert run([*broker_command(), "keys", "add", "one", "--file", str(place / "keys")])[0] == 0
    (place / "root").mkdir()
    return {"keys": place / "keys", "log": log, "root": place / "root"}


@pytest.mark.parametrize(("redirection", "why"), [("> /dev/full", NO_SPACE), (">&-", CLOSED)])
@pytest.mark.parametrize(
    "words",
    [
        *(f"blipmq {words}" for words in BROKER_WORDS),
        *(f"blipmq-cli {words}" for words in CLIENT_WORDS),
        *(f"blipmq-device {words}" for words in DEVICE_WORDS),
    ],
)
def test_an_output_error_is_status_74_and_one_sentence(fake, files, words, redirection, why):
    fake.durables.add(("me", "a"))
    program, *arguments = words.split()
    command = {"blipmq": broker_command(), "blipmq-cli": cli_command(), "blipmq-device": DEVICE}[program]
    arguments = [word.format(**files) for word in arguments]
    status, out, err = run([*command, *arguments], redirection, BLIPMQ_ADDR=fake.address)
    assert (status, out) == (74, "")
    assert err.splitlines()[-1].startswith(f"{program}: {why}")


def test_a_key_that_could_not_be_shown_is_revoked(files, tmp_path):
    for redirection in ("> /dev/full", ">&-", "| true"):
        words = [*broker_command(), "keys", "add", "lost", "--file", tmp_path / "keys"]
        status, _, err = run(words, redirection)
        assert (status == 74 or redirection == "| true") and "removed again" in err
    assert run([*broker_command(), "keys", "list", "--file", tmp_path / "keys"])[1] == ""


def test_a_command_whose_output_fails_reports_that_it_was_executed(fake):
    status, _, err = run([*cli_command(), "pub", "a", "x", "--qos", "1"], "> /dev/full", BLIPMQ_ADDR=fake.address)
    assert status == 74 and err.endswith("The command itself was carried out: Sent 1 byte to a as 1.\n")
    assert run([*cli_command(), "pub", "a", "x", "-q"], ">&-", BLIPMQ_ADDR=fake.address) == (0, "", "")


def test_a_repair_completes_although_its_output_is_not_read(tmp_path):
    log = made_log(tmp_path, damaged=True)
    assert run([*broker_command(), "wal", "verify", "--directory", log])[0] == 1
    assert run([*broker_command(), "wal", "repair", "--directory", log], "> /dev/full")[0] == 74
    assert list(log.rglob("damaged-*"))


def test_every_module_prints_through_the_output_module():
    """Code below `if __name__`, which only developers run, is exempt."""
    for path in Path(stdio.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for part in tree.body if not is_for_developers(part) for node in ast.walk(part)]
        names = [node.func.id for node in calls if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        assert "print" not in names, f"{path} calls print: use print_out or say of base/stdio.py"
        attributes = [ast.unparse(node) for node in calls if isinstance(node, ast.Attribute)]
        written = {
            "sys.stdout.write",
            "sys.stderr.write",
            "sys.stdout.buffer",
            "sys.stderr.buffer",
            "sys.stdin.readline",
        }
        assert path.name == "stdio.py" or not written & set(attributes), path


def is_for_developers(part):
    return isinstance(part, ast.If) and "__name__" in ast.unparse(part.test)


# ---- subscribers: only messages written to standard output are acknowledged --------------------------------------------


class Subscriber:
    """`blipmq-cli sub a --qos 1 --durable` with this standard output."""

    def __init__(self, fake, stdout, *options, unbuffered="1", **more):
        self.fake = fake
        self.process = subprocess.Popen(
            [*cli_command(), "sub", "a", "--qos", "1", "--durable", "--client-id", "me", *options],
            stdout=stdout,
            stderr=subprocess.PIPE,
            env=environment(BLIPMQ_ADDR=fake.address, PYTHONUNBUFFERED=unbuffered),
            **more,
        )

    def __enter__(self):
        self.fake.wait_for("SUB")
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait(TIMEOUT_S)
        self.process.stderr.close()

    def publish(self, *payloads):
        self.fake.call(lambda: [self.fake.publish("a", payload, qos=1) for payload in payloads] and None)

    def acked(self):
        return [command["seq"] for command in list(self.fake.commands) if command["action"] == "ACK"]

    def end(self):
        """Exit status and standard error."""
        status = self.process.wait(TIMEOUT_S)
        return status, self.process.stderr.read().decode()


@pytest.mark.parametrize(
    ("redirection", "why"),
    [(">&-", CLOSED), ("1<&0", CLOSED), (">/dev/full", NO_SPACE)],
    ids=["closed", "input", "full"],
)
@pytest.mark.parametrize("words", ["sub a --qos 1", "bench --seconds 60"])
def test_a_long_command_with_a_failed_output_ends_before_connecting(fake, words, redirection, why):
    status, _, err = run([*cli_command(), *words.split()], f"</dev/null {redirection}", BLIPMQ_ADDR=fake.address)
    assert status == 74 and why in err and fake.commands == []


def test_a_subscriber_with_a_closed_output_ends_before_connecting(fake):
    reader, writer = os.pipe()
    os.close(reader)
    command = [*cli_command(), "sub", "a", "--qos", "1"]
    done = subprocess.run(
        command, stdout=writer, stderr=subprocess.PIPE, timeout=TIMEOUT_S, env=environment(BLIPMQ_ADDR=fake.address)
    )
    os.close(writer)
    assert (done.returncode, done.stderr, fake.commands) == (141, b"", [])


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_message_partly_written_to_a_full_disk_is_not_acknowledged(fake, tmp_path, unbuffered):
    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    with open(tmp_path / "out", "wb") as file:
        with Subscriber(fake, file, "-q", unbuffered=unbuffered, preexec_fn=limit) as subscriber:
            subscriber.publish(b"x" * 600)
            fake.wait_for("ACK")
            subscriber.publish(b"y" * 600)
            status, err = subscriber.end()
    assert status == 74 and "the file has its maximum size" in err and "Traceback" not in err
    assert "is not acknowledged; the broker sends it again" in err and fake.unacknowledged() == [2]
    assert subscriber.acked() == [1] and (tmp_path / "out").stat().st_size == 1000


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_non_blocking_pipe_gets_all_messages_and_only_written_ones_are_acknowledged(fake, unbuffered):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    payloads = [b"%06d" % number + bytes(2000) for number in range(300)]
    lines = b"".join(payload + b"\n" for payload in payloads)
    try:
        with Subscriber(fake, writer, "-q", unbuffered=unbuffered) as subscriber:
            os.close(writer)
            for start in range(0, 300, 10):
                subscriber.publish(*payloads[start : start + 10])
            until(lambda: select_full(reader), "the pipe is full")
            taken = 0
            while taken < len(lines):
                acked = len(subscriber.acked())
                piece = os.read(reader, 10_000)
                assert piece == lines[taken : taken + len(piece)]
                taken += len(piece)
                assert acked * 2007 <= taken + (64 << 10)  # capacity of a pipe
            fake.wait_for("ACK", 300)
            subscriber.process.send_signal(signal.SIGINT)
            assert subscriber.end()[0] == 130
    finally:
        os.close(reader)
    assert fake.unacknowledged() == []


def select_full(reader):
    """Whether the pipe is full."""
    import array
    import fcntl
    import termios

    held = array.array("i", [0])
    fcntl.ioctl(reader, termios.FIONREAD, held)
    return held[0] >= 60_000


def test_a_closed_non_blocking_pipe_is_status_141(fake):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with Subscriber(fake, writer) as subscriber:
        os.close(writer)
        subscriber.publish(*[bytes(2000)] * 200)
        until(lambda: select_full(reader), "the pipe is full")
        acked = len(subscriber.acked())
        os.close(reader)
        assert subscriber.end() == (141, "")
    assert len(subscriber.acked()) >= acked and fake.unacknowledged() != []


# ---- standard error --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redirection", ["2> /dev/full", "2>&-"])
@pytest.mark.parametrize(
    ("command", "status"),
    [
        ([*broker_command(), "check", "--config", "/nowhere.toml"], 78),
        ([*broker_command(), "no-such-word"], 2),
        ([*broker_command(), "keys", "revoke", "nobody", "--file", "/nowhere"], 78),
        ([*cli_command(), "pub", "a.*", "x"], 2),
        ([*cli_command(), "pub"], 2),
        ([*DEVICE, "no-such-word"], 2),
    ],
)
def test_an_error_that_cannot_be_written_keeps_its_status_and_is_not_in_the_output(command, status, redirection):
    assert run(command, redirection) == (status, "", "")


def test_a_non_blocking_standard_error_gets_the_whole_message(fake):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    os.write(writer, bytes(65_536))  # it is full
    with subprocess.Popen([*cli_command(), "pub", "a.*", "x"], stderr=writer, env=environment()) as process:
        os.close(writer)
        rest = 65_536
        while rest:
            rest -= len(os.read(reader, rest))
        said = os.read(reader, 4096)
        assert process.wait(TIMEOUT_S) == 2
    os.close(reader)
    assert said.startswith(b"blipmq-cli: The topic 'a.*' holds '*'")


# ---- standard input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("redirection", ["<&-", "0> /dev/null"])
def test_an_input_error_is_status_74_and_one_sentence(fake, redirection):
    for command in ([*cli_command(), "pub", "a", "-"], [*broker_command(), "connect", fake.address]):
        status, out, err = run(command, redirection, BLIPMQ_ADDR=fake.address)
        assert (status, out) == (74, "")
        assert ": Cannot read standard input: it is closed, or not open for reading." in err and err.count("\n") == 1


def test_lines_are_read_from_a_non_blocking_pipe(fake):
    for command in ([*cli_command(), "pub", "a", "-", "-q"], [*broker_command(), "connect", fake.address]):
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        before = sum(sent["action"] == "PUB" for sent in fake.commands)
        with subprocess.Popen(
            command, stdin=reader, stdout=subprocess.DEVNULL, env=environment(BLIPMQ_ADDR=fake.address)
        ) as process:
            os.close(reader)
            for number in (1, 2):
                os.write(writer, b"pub a %d\n" % number)
                fake.wait_for("PUB", before + number)
            os.close(writer)
            assert process.wait(TIMEOUT_S) == 0


def test_a_shell_script_may_contain_any_bytes(fake):
    assert run([*broker_command(), "connect", fake.address], stdin=b"pub a \xff\xfe\n")[0] == 0
    assert fake.wait_for("PUB")[0]["payload"] == b"\xff\xfe"


def test_a_shell_with_a_failed_output_executes_its_script_and_reports_it(fake):
    status, _, err = run([*broker_command(), "connect", fake.address], "> /dev/full", stdin=b"pub a 1\npub a 2\n")
    assert status == 74 and NO_SPACE in err and "The commands still run." in err
    assert [command["payload"] for command in fake.wait_for("PUB", 2)] == [b"1", b"2"]


# ---- a broker with closed descriptors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_a_broker_never_reuses_the_descriptor_of_a_closed_stream(tmp_path, closed):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    address = f"127.0.0.1:{port}"
    settings = {"server.bind_addr": address, "metrics.bind_addr": "", "wal.directory": str(tmp_path / "wal")}
    (tmp_path / "blipmq.toml").write_text(toml({**settings, "logging.level": "debug"}))
    line = " ".join(map(shlex.quote, [*broker_command(), "start", "--config", str(tmp_path / "blipmq.toml")]))
    redirections = " ".join(f"{descriptor}>&-" for descriptor in closed)
    with subprocess.Popen(
        ["sh", "-c", f"exec {line} {redirections}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    ) as broker:
        try:
            until(lambda: reachable(port), "the broker serves")
            for descriptor in closed:
                assert os.readlink(f"/proc/{broker.pid}/fd/{descriptor}") == "/dev/null"
            for number in range(5):
                words = ["pub", "t", str(number), "--qos", "1", "-q"]
                assert run([*cli_command(), *words], BLIPMQ_ADDR=address) == (0, "", "")
            broker.send_signal(signal.SIGTERM)
            assert broker.wait(TIMEOUT_S) == 0
        finally:
            broker.kill()
    written = b"".join(path.read_bytes() for path in (tmp_path / "wal").iterdir())
    assert b" info " not in written and b"hello client" not in written
    assert run([*broker_command(), "wal", "verify", "--directory", tmp_path / "wal"])[0] == 0


def reachable(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True


def test_open_descriptors_are_not_changed():
    before = [os.fstat(descriptor) for descriptor in range(3)]
    stdin, stdout, stderr = sys.stdin, sys.stdout, sys.stderr
    stdio.take_descriptors()
    assert [os.fstat(descriptor) for descriptor in range(3)] == before
    assert (sys.stdin, sys.stdout, sys.stderr) == (stdin, stdout, stderr)


def test_an_embedded_broker_opens_no_standard_descriptor():
    code = """
import os, blipmq
with blipmq.Broker({"server": {"bind_addr": ""}}) as broker:
    broker.publish("a", "b")
    mine = os.open(os.devnull, os.O_RDONLY)
print(mine, os.readlink("/proc/self/fd/0") == os.devnull)
"""
    done = subprocess.run(
        ["sh", "-c", f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)} 2>&-"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=TIMEOUT_S,
        env=environment(),
    )
    assert done.returncode == 0 and done.stdout.endswith(b"True\n")


def test_the_wait_for_a_slow_standard_error_reader_is_bounded(monkeypatch):
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writer, bytes(4096))
        monkeypatch.setattr(stdio, "PATIENCE_SECONDS", 0.01)
        with open(writer, "w", closefd=False) as stream:
            monkeypatch.setattr(sys, "stderr", stream)
            began_s = time.monotonic()
            stdio.say("nobody reads this")
            assert time.monotonic() - began_s < TIMEOUT_S
    finally:
        os.close(reader)
        os.close(writer)
