"""The broker as a process: its log, its signals, its end. Each test starts a real process."""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from raw_client import RawClient

from blipmq.config import memory
from blipmq.config import reader as config_reader
from blipmq.config.reader import from_dict
from blipmq.config.settings import Config
from blipmq.errors import ConfigError
from blipmq.service import server
from blipmq.version import __version__
from blipmq.wire import frames as wire

ROOT = Path(__file__).parent.parent
TIMEOUT_S = 60


class Process:
    """`blipmq start` in a separate process, with its log read line by line."""

    def __init__(self, directory, toml="", **variables):
        self.config = directory / "broker.toml"
        self.config.write_text(toml)
        environ = {name: value for name, value in os.environ.items() if not name.startswith("BLIPMQ_")}
        environ |= {"BLIPMQ_SERVER__BIND_ADDR": "127.0.0.1:0", "PYTHONPATH": str(ROOT)} | variables
        self.child = subprocess.Popen(
            [sys.executable, "-m", "blipmq", "start", "--config", str(self.config)],
            stderr=subprocess.PIPE,
            text=True,
            cwd=directory,
            env=environ,
        )
        self.seen = []

    def log(self, event):
        """Read to the next line of this event; returns it without its time."""
        for line in self.child.stderr:
            self.seen.append(line.rstrip("\n"))
            words = line.split(" ", 3)
            if len(words) > 2 and words[2].strip() == event:
                return line.split(" ", 1)[1].rstrip("\n")
        raise AssertionError(f"no {event} in the log:\n" + "\n".join(self.seen))

    @property
    def address(self):
        return self.log("ready").rpartition("address=")[2]

    def signal(self, number):
        self.child.send_signal(number)

    def wait(self):
        return self.child.wait(TIMEOUT_S)


@pytest.fixture
def start(tmp_path):
    processes = []

    def start(toml="", **variables):
        processes.append(Process(tmp_path, toml, **variables))
        return processes[-1]

    yield start
    for process in processes:
        if process.child.poll() is None:
            process.child.kill()
            process.wait()
        process.child.stderr.close()


def test_the_first_line_shows_version_settings_and_maximum_memory(start):
    process = start()
    line = process.log("starting")
    assert line.startswith(f"info starting version={__version__} pid={process.child.pid} address=127.0.0.1:0 ")
    assert f"config={process.config} " in line
    assert 'memory_at_rest="' in line and 'memory_worst="' in line


def test_sigterm_stops_the_broker_with_status_0(start):
    process = start()
    with RawClient(process.address) as client:
        client.hello("a").subscribe("t")
        client.say(wire.PUB, "t", b"last words")
        assert client.next().payload == b"last words"
        process.signal(signal.SIGTERM)
        assert client.next() == wire.Reply(0, 503, "shutting down", 0, b"")
        assert client.next() is None
    assert process.log("stopping") == "info stopping signal=SIGTERM timeout_ms=5000"
    assert process.log("stopped") == "info stopped unflushed=0"
    assert process.wait() == 0


def test_ctrl_c_stops_the_broker(start):
    process = start()
    assert process.address
    process.signal(signal.SIGINT)
    assert process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_stops_the_broker_at_once(start, number):
    process = start("[limits]\nshutdown_timeout_ms = 600000\n")
    address = process.address
    with RawClient(address) as stuck, RawClient(address) as feeder:
        stuck.subscribe("t")
        feeder.hello("feeder")
        while True:  # until the socket of the subscriber is full, so that the stop takes long
            feeder.send(*[wire.encode_command(wire.PUB, "t", bytes(10_000))] * 100)
            feeder.say(wire.INFO, seq=1)
            if b'"blocked":true' in feeder.next().payload:
                break
        process.signal(signal.SIGTERM)
        process.log("stopping")
        while (
            process.child.poll() is None
        ):  # a signal directly after the first counts as the same, so several may be needed
            process.signal(number)
            try:
                process.child.wait(0.05)
            except subprocess.TimeoutExpired:
                continue
    assert process.wait() == 128 + number
    assert f"signal={number.name}" in process.log("killed")


def test_an_address_in_use_ends_with_status_69_and_one_clear_line(start):
    first = start()
    address = first.address
    second = start(BLIPMQ_SERVER__BIND_ADDR=address, BLIPMQ_WAL__DIRECTORY="another")
    assert second.wait() == 69
    error = second.child.stderr.read().splitlines()[-1]
    assert error.startswith(f"blipmq: {address} is in use by another process")


def test_a_wrong_configuration_ends_with_status_78_before_anything_is_opened(start):
    process = start("[server]\nbind_adr = '127.0.0.1:1'\n[auth]\nkey_file = ''\n")
    assert process.wait() == 78
    error = process.child.stderr.read().splitlines()
    assert error[0] == "blipmq: 2 problems in the configuration:"
    assert error[1].endswith("broker.toml:2: there is no setting server.bind_adr; did you mean server.bind_addr?")
    assert error[2].endswith("broker.toml:4: there is no setting auth.key_file; did you mean auth.keys_file?")


def test_an_empty_listen_address_is_refused(start):
    process = start(BLIPMQ_SERVER__BIND_ADDR="")
    assert process.wait() == 78
    assert "server.bind_addr is empty" in process.child.stderr.read()


@pytest.mark.parametrize("address", ["192.0.2.256:7878", "[1:2:3]:7878", "broker..example:7878", "-broker:7878"])
def test_an_invalid_listen_address_is_refused(start, address):
    process = start("[auth]\nallow_anonymous = true\n", BLIPMQ_SERVER__BIND_ADDR=address)
    assert process.wait() == 78
    assert "is neither an address nor a host name" in process.child.stderr.read()


def test_sighup_applies_reloadable_settings_and_names_the_others(start):
    process = start()
    address = process.address
    process.config.write_text(
        "[limits]\nmax_subscriptions_per_connection = 1\n[performance.timer_config]\nresolution_ms = 5\n"
    )
    process.signal(signal.SIGHUP)
    assert process.log("reload_needs_restart").endswith("key=performance.timer_config.resolution_ms")
    assert process.log("reloaded") == "info reloaded applied=limits.max_subscriptions_per_connection"
    with RawClient(address) as client:
        client.hello().subscribe("one").say(wire.SUB, "two", seq=3)
        assert client.next().code == 429


def test_an_invalid_file_at_sighup_changes_nothing(start):
    process = start("[limits]\nmax_subscriptions_per_connection = 1\n")
    address = process.address
    process.config.write_text("[limits]\nmax_subscriptions_per_connection = many\n")
    process.signal(signal.SIGHUP)
    line = process.log("reload_failed")
    assert line.startswith("error reload_failed ") and "broker.toml:2: not valid TOML" in line
    with RawClient(address) as client:
        client.hello().subscribe("one").say(wire.SUB, "two", seq=3)
        assert client.next().code == 429


def test_a_named_pipe_at_sighup_is_refused_and_not_waited_for(start, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("a-key-of-enough-bytes")
    process = start(BLIPMQ_AUTH__API_KEYS_FILE=str(secret))
    address = process.address
    for path in (process.config, secret):
        kept = path.read_text()
        path.unlink()
        os.mkfifo(path)
        process.signal(signal.SIGHUP)
        assert "it is a named pipe" in process.log("reload_failed")
        with RawClient(address) as client:
            client.hello(api_key="a-key-of-enough-bytes").subscribe("one")
        path.unlink()
        path.write_text(kept)
    process.signal(signal.SIGHUP)
    assert process.log("reloaded") == 'info reloaded applied=""'


def test_a_broker_may_start_with_its_configuration_from_a_named_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with subprocess.Popen(
        [sys.executable, "-m", "blipmq", "check", "--config", str(tmp_path / "pipe")],
        stdout=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("BLIPMQ_")}
        | {"PYTHONPATH": str(ROOT)},
    ) as check:
        (tmp_path / "pipe").write_text("[server]\nmax_connections = 77\n")
        assert "max_connections = 77" in check.communicate(timeout=TIMEOUT_S)[0]
    assert check.returncode == 0


def test_json_logging_can_be_configured(start):
    process = start("[logging]\nformat = 'json'\n")
    assert process.child.stderr.readline().startswith('{"time":"')


def test_an_unread_log_does_not_block_the_broker(start):
    process = start("[logging]\nlevel = 'debug'\n")
    address = process.address
    for _ in range(30):  # without the limits many times the content of a pipe
        with RawClient(address) as client:
            client.send(*[wire.encode_command(wire.HELLO, client_id="x" * 250, protocol=7)] * 20)
            client.next()
    with RawClient(address) as client:
        client.hello("still there")
    process.signal(signal.SIGTERM)
    assert process.wait() == 0


# ---- memory use; marked slow, because a sanitizer build uses many times the memory and must not run these ------


def resident_bytes(process):
    pages = Path(f"/proc/{process.child.pid}/statm").read_text().split()[1]
    return int(pages) * resource.getpagesize()


def info(client):
    client.say(wire.INFO, seq=1)
    return json.loads(client.next().payload)


@pytest.mark.slow
def test_an_idle_broker_uses_no_more_memory_than_announced(start):
    process = start()
    with RawClient(process.address) as client:
        client.hello()
        assert resident_bytes(process) < memory.at_rest_bytes(Config()) + memory.MIB * 4


@pytest.mark.slow
def test_a_flood_to_stuck_subscribers_stays_within_the_announced_memory(start):
    toml = """
        [server]
        max_connections = 64
        max_message_size_bytes = 65536
        [queues]
        subscriber_bytes = 67108864
        [limits]
        memory_bytes = 16777216
        max_subscriptions_per_connection = 16
    """
    process = start(toml)
    address, budget = process.address, 16 << 20
    announced = memory.worst_bytes(config_reader.load(process.config, {}).config)
    payload_bytes, batch = 30_000, 100
    with contextlib.ExitStack() as stack:
        stuck = [stack.enter_context(RawClient(address)).subscribe("flood") for _ in range(20)]
        feeder = stack.enter_context(RawClient(address)).hello("feeder")
        published = highest = 0
        while published * payload_bytes < 20 * budget:  # each of them could store it four times
            feeder.send(*[wire.encode_command(wire.PUB, "flood", bytes(payload_bytes))] * batch)
            published += batch
            described = info(feeder)
            highest = max(highest, described["memory"]["used_bytes"])
        assert described["messages"]["published"] == published
        assert described["state"] == "degraded"
        assert sum(row["dropped_queue_full"] for row in described["subscriptions"]) > 0
        assert highest < budget * 1.25
        assert resident_bytes(process) < announced
        assert stuck[0].next().payload == bytes(payload_bytes)


@pytest.mark.slow
def test_ten_thousand_connections_are_served(start):
    count = 10_000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, count + 500)), hard))
    process = start()
    address = process.address
    with contextlib.ExitStack() as stack:
        clients = [stack.enter_context(RawClient(address)) for _ in range(count)]
        idle = resident_bytes(process)
        for number, client in enumerate(clients[1:]):
            client.say(wire.SUB, f"site/{number % 100}/temp", seq=1)
        for client in clients[1:]:
            assert client.next().info == "subscribed"
        feeder = clients[0].hello("feeder")
        assert info(feeder)["clients"] == count
        for site in range(100):
            feeder.say(wire.PUB, f"site/{site}/temp", b"21.5")
        for client in clients[1:]:
            assert client.next().payload == b"21.5"
        assert idle - memory.at_rest_bytes(Config()) < count * memory.CONNECTION_BYTES


# ---- the limit on open files ----


def test_the_soft_descriptor_limit_is_raised_for_the_connections(monkeypatch):
    calls = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 100_000))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: calls.append(limits))
    server.raise_descriptor_limit(Config())
    assert calls == [(10_000 + server.DESCRIPTORS_RESERVED, 100_000)]


def test_a_sufficient_descriptor_limit_is_not_changed(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (20_000, 20_000))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("changed"))
    server.raise_descriptor_limit(Config())


def refuse_to_raise(*_):
    raise ValueError("not allowed to raise maximum limit")


def test_a_low_hard_limit_is_an_error_with_both_numbers_and_a_remedy(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", refuse_to_raise)
    with pytest.raises(ConfigError) as caught:
        server.raise_descriptor_limit(from_dict({"server": {"max_connections": 5000}}))
    assert str(caught.value) == (
        "server.max_connections = 5000 needs 5160 open files, but this process may have at most 1024. Raise the limit "
        "(LimitNOFILE=5160 in the service, `ulimit -Hn` in a shell), or set server.max_connections to 864."
    )
