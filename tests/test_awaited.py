"""Addresses that do not exist when the broker starts: it waits, reports it, and serves them once they exist."""

import asyncio
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from broker_process import TIMEOUT_S, BrokerProcess, broker_command, cli_command, environment, until
from certificates import Authority

from blipmq.base.logs import Log
from blipmq.errors import ConfigError
from blipmq.net import bind_retry, listener
from blipmq.net.listener import AddressMissing

ROOT = Path(__file__).resolve().parent.parent
NAME = "gateway.example"
NOWHERE = "192.0.2.1"  # RFC 5737: no machine has this address
# `blipmq` on a machine where NAME resolves to the address in a file; without the file it does not resolve.
SHIM = f"""
import socket, sys
place, real = sys.argv.pop(1), socket.getaddrinfo
def getaddrinfo(host, *rest, **more):
    if host in ({NAME!r}, {NAME.encode()!r}):
        try:
            host = open(place).read()
        except FileNotFoundError:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution") from None
    return real(host, *rest, **more)
socket.getaddrinfo = getaddrinfo
from blipmq.__main__ import main
sys.exit(main())
"""


class Machine:
    """Starts brokers on a machine where NAME resolves once it has an address."""

    def __init__(self, folder):
        self.folder = folder
        self.place = folder / "address"
        self.broker = None

    def start(self, settings, **variables):
        command = [sys.executable, "-c", SHIM, str(self.place)]
        self.broker = BrokerProcess(self.folder, settings, command, **variables)
        return self.broker

    def knows(self, address):
        fresh = self.folder / "fresh"
        fresh.write_text(address)
        fresh.rename(self.place)


@pytest.fixture
def machine(tmp_path):
    machine = Machine(tmp_path)
    yield machine
    machine.broker.kill()


def get(address, path):
    """Status and text of an HTTP answer."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=TIMEOUT_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


@pytest.mark.parametrize("key", ["server.bind_addr", "server.tls_bind_addr", "metrics.bind_addr"])
def test_the_broker_waits_for_a_name_that_does_not_resolve_yet(machine, key):
    cert, cert_key = Authority(machine.folder).sign("broker")
    settings = {"server.bind_addr": "127.0.0.1:0", "metrics.bind_addr": "127.0.0.1:0"}
    if key == "server.tls_bind_addr":
        settings |= {"tls.cert_file": str(cert), "tls.key_file": str(cert_key)}
    broker = machine.start({**settings, key: f"{NAME}:0", "auth.allow_anonymous": True})
    waiting = broker.wait_for("waiting_for_address", setting=key)
    assert "this machine cannot resolve the name" in waiting["error"] and waiting["level"] == "warning"
    if key != "metrics.bind_addr":
        metrics = broker.wait_for("metrics")["address"]
        until(lambda: get(metrics, "/readyz")[1] != "starting\n", "the broker has started")
        status, text = get(metrics, "/readyz")
        assert (status, text.split(": ")[0]) == (503, f"waiting for the address of {key}")
        assert get(metrics, "/livez")[0] == 200  # a restart would not help, so the broker is live
        assert not broker.lines("ready")
    machine.knows(NOWHERE)
    broker.wait_for("waiting_for_address", setting=key, error=f"{key}: {NAME}:0 is not an address of this machine. "
                    "List its addresses with `ip address`, or set 0.0.0.0 for all of them.")  # fmt: skip
    machine.knows("127.0.0.1")
    address = broker.wait_for("listening", setting=key)["address"]
    ready = broker.wait_for("ready")
    if key == "metrics.bind_addr":
        assert get(address, "/readyz") == (200, "ok\n")
    else:
        assert address in (ready["address"], ready.get("tls")) and get(metrics, "/readyz") == (200, "ok\n")
    host, port = address.rsplit(":", 1)
    socket.create_connection((host, int(port)), TIMEOUT_S).close()
    broker.signal(signal.SIGTERM)
    assert broker.wait() == 0
    assert len(broker.lines("waiting_for_address")) == 2  # once per address, for any number of attempts


def test_available_addresses_are_served_while_others_are_awaited(machine, connect):
    cert, cert_key = Authority(machine.folder).sign("broker")
    settings = {"server.tls_bind_addr": f"{NAME}:0", "tls.cert_file": str(cert), "tls.key_file": str(cert_key)}
    broker = machine.start({**settings, "metrics.bind_addr": "127.0.0.1:0", "auth.allow_anonymous": True})
    metrics = broker.wait_for("metrics")["address"]
    until(lambda: get(metrics, "/readyz")[1] != "starting\n", "the broker has started")
    report = until(lambda: get(metrics, "/healthz")[1], "it answers")
    assert "waiting for the address of server.tls_bind_addr" in report
    assert get(metrics, "/metrics")[0] == 200
    broker.signal(signal.SIGTERM)
    assert broker.wait() == 0  # waiting does not delay the end


def test_the_service_manager_gets_ready_and_the_awaited_addresses(machine):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(machine.folder / "notify"))
        manager.settimeout(TIMEOUT_S)
        machine.start(
            {"server.bind_addr": f"{NAME}:0", "metrics.bind_addr": "", "auth.allow_anonymous": True},
            NOTIFY_SOCKET=str(machine.folder / "notify"),
        )

        def heard(wanted):
            while wanted not in (text := manager.recv(4096).decode()):
                pass
            return text

        assert "STATUS=waiting for the address of server.bind_addr" in heard("READY=1")
        machine.knows("127.0.0.1")
        heard("STATUS=serving 127.0.0.1:")


def test_an_embedded_broker_raises_instead_of_waiting():
    for bind_addr in (f"{NOWHERE}:7878", "no-such-host.invalid:7878"):
        with pytest.raises(AddressMissing) as caught:
            listener.open_listener(bind_addr)
        assert isinstance(caught.value, ConfigError)


def test_an_address_in_use_fails_the_start_but_not_a_waiting_broker(machine, broker):
    host, port = broker.address.rsplit(":", 1)
    waiting = machine.start(
        {"server.bind_addr": f"{NAME}:{port}", "auth.allow_anonymous": True, "metrics.bind_addr": ""}
    )
    waiting.wait_for("waiting_for_address")
    machine.knows(host)
    until(lambda: len(waiting.lines("waiting_for_address")) == 2, "it says that the address is in use")
    assert f"{NAME}:{port} is in use" in waiting.lines("waiting_for_address")[1]["error"]
    broker.stop()
    assert waiting.wait_for("ready")["address"] == broker.address


def test_sockets_opened_by_an_abandoned_start_are_closed(monkeypatch):
    opened = []

    async def scene():
        waiting = bind_retry.BindRetry(Log(level="error"), retry_s=0)

        def open_listener(*_):
            if not opened:
                opened.append(None)
                raise AddressMissing("not yet")
            opened.append(socket.socket())
            return opened[-1]

        in_use = asyncio.Event()

        async def never(_):
            in_use.set()
            await asyncio.sleep(TIMEOUT_S)

        monkeypatch.setattr(bind_retry, "open_listener", open_listener)
        assert await waiting.open("server.bind_addr", f"{NAME}:1", never) is None
        await asyncio.wait_for(in_use.wait(), TIMEOUT_S)
        await waiting.stop()
        assert waiting.unready == ""

    monkeypatch.setattr(bind_retry, "address_of", lambda _: "127.0.0.1:1")
    asyncio.run(scene())
    assert all(one.fileno() == -1 for one in opened[1:])


# ---- a network address that appears later ----


@pytest.mark.slow
def test_the_broker_listens_on_an_address_that_appears_later(tmp_path):
    subprocess.run([ROOT / "packaging/setup.sh", "netns"], check=True, timeout=600)
    own = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--net"]
    settings = {"server.bind_addr": f"{NOWHERE}:7878", "auth.allow_anonymous": True, "metrics.bind_addr": ""}
    # A network without any address accepts every address as local.
    begin = ["sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    broker = BrokerProcess(tmp_path, settings, [*own, *begin, *broker_command()])
    try:
        broker.wait_for("waiting_for_address", setting="server.bind_addr")
        inside = ["nsenter", "--target", broker.wait_for("starting")["pid"], "--net"]
        inside += [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]

        def run(*command):
            done = subprocess.run(
                [*inside, *command], env=environment(), text=True, capture_output=True, timeout=TIMEOUT_S
            )
            assert done.returncode == 0, f"{shlex.join(command)}: {done.stderr}"
            return done.stdout

        run("ip", "address", "add", f"{NOWHERE}/32", "dev", "lo")
        assert broker.wait_for("ready")["address"] == f"{NOWHERE}:7878"
        assert "State" in run(*cli_command(), "--addr", f"{NOWHERE}:7878", "info")
        # The network disappears and returns: the socket remains.
        run("ip", "address", "del", f"{NOWHERE}/32", "dev", "lo")
        run("ip", "address", "add", f"{NOWHERE}/32", "dev", "lo")
        assert "State" in run(*cli_command(), "--addr", f"{NOWHERE}:7878", "info")
    finally:
        broker.kill()
