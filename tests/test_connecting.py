"""Hosts with several addresses, some without an answer, and brokers that start later: both clients, with and without
TLS.
"""

import asyncio
import contextlib
import math
import random
import socket
import ssl
import subprocess
import threading
import time

import fake_broker
import pytest
import uvloop
from broker_process import TIMEOUT_S, broker_command, cli_command, environment
from certificates import Authority
from fake_broker import FakeBroker

import blipmq
from blipmq.client import happy_eyeballs
from blipmq.client.address import Address
from blipmq.client.address_order import CANDIDATES_MAX, Tried, in_order
from blipmq.errors import (
    Disconnected,
    NotAllowed,
    NotTrusted,
    ProtocolError,
    Refused,
    TimedOut,
    Unreachable,
    UsageError,
)

INET, INET6 = socket.AF_INET, socket.AF_INET6
# A timeout that no test may reach: if a client waited for an address in full, the test would hang instead of passing
# late.
NEVER_S = 10 * TIMEOUT_S


@pytest.fixture
def broker():
    with FakeBroker() as running:
        yield running


@pytest.fixture
def away():
    """A broker that is not started yet; call `start`. No other program can take a port of its address."""
    absent = FakeBroker(host="127.0.0.9")
    absent.start()
    absent.stop()
    try:
        yield absent
    finally:
        absent.stop()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def host(monkeypatch):
    """Let the name broker.test resolve to these (address, port) pairs, in this order."""
    real = socket.getaddrinfo
    places = []

    def found(name, port, *rest, **options):
        if name != "broker.test":
            return real(name, port, *rest, **options)
        kinds = [INET6 if ":" in address else INET for address, _ in places]
        ends = [(*place, 0, 0) if kind == INET6 else place for kind, place in zip(kinds, places, strict=True)]
        return [(kind, socket.SOCK_STREAM, 6, "", end) for kind, end in zip(kinds, ends, strict=True)]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    return places


@pytest.fixture
def black_hole():
    """An address that neither accepts nor refuses connections: its backlog is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                filler.connect(listener.getsockname())
        yield listener.getsockname()


@pytest.fixture
def mute():
    """An address that accepts every connection and sends nothing."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(50)
        yield listener.getsockname()


def nobody():
    return ("127.0.0.1", fake_broker.free_port())


def place_of(broker):
    return (broker.host, broker.port)


def connected_with_asyncio(address, **options):
    async def scene():
        async with blipmq.connect(address, **options) as client:
            return await client.ping()

    return asyncio.run(asyncio.wait_for(scene(), TIMEOUT_S))


def connected_blocking(address, **options):
    began_s = time.monotonic()
    with blipmq.connect_blocking(address, **options) as client:
        client.ping()
    assert time.monotonic() - began_s < TIMEOUT_S


both = pytest.mark.parametrize("connected", [connected_with_asyncio, connected_blocking])


# ---- several addresses -----------------------------------------------------------------------------------------------


def found(*addresses):
    kinds = [INET6 if ":" in address else INET for address in addresses]
    return [(kind, socket.SOCK_STREAM, 6, "", (address, 1)) for kind, address in zip(kinds, addresses, strict=True)]


def test_address_families_alternate_starting_with_the_preferred_one():
    order = in_order(found("::1", "::2", "::3", "10.0.0.1", "10.0.0.2", "::1"))
    assert [candidate.where for candidate in order] == ["::1", "10.0.0.1", "::2", "10.0.0.2", "::3"]
    assert [candidate.where for candidate in in_order(found("10.0.0.1", "::1"))] == ["10.0.0.1", "::1"]
    assert len(in_order(found(*(f"10.0.0.{number}" for number in range(200))))) == CANDIDATES_MAX
    assert in_order([]) == []


@both
def test_an_unresponsive_address_does_not_delay_the_connection(broker, host, black_hole, connected):
    host[:] = [black_hole, place_of(broker)]
    connected("broker.test", timeout_s=NEVER_S)


@both
def test_after_a_refused_connection_the_next_address_is_tried(broker, host, connected):
    host[:] = [nobody(), nobody(), nobody(), place_of(broker)]
    connected("broker.test", timeout_s=NEVER_S)


@both
def test_after_a_silent_peer_the_next_address_is_tried(broker, host, mute, connected):
    host[:] = [mute, place_of(broker)]
    connected("broker.test", timeout_s=2)


@both
def test_after_a_peer_of_another_protocol_the_next_address_is_tried(broker, host, connected):
    with FakeBroker() as other:
        other.greeting = b"SSH-2.0-OpenSSH\r\n"
        host[:] = [place_of(other), place_of(broker)]
        connected("broker.test", timeout_s=20)


@both
def test_after_an_unavailable_address_family_the_other_is_tried(broker, host, monkeypatch, connected):
    host[:] = [("2001:db8::1", 7878), place_of(broker)]
    real = socket.socket

    class Without6(real):
        def __init__(self, family=-1, *rest, **options):
            if family == INET6:
                raise OSError(97, "Address family not supported by protocol")
            super().__init__(family, *rest, **options)

    monkeypatch.setattr(socket, "socket", Without6)
    connected("broker.test", timeout_s=NEVER_S)


@both
def test_an_unresponsive_address_does_not_delay_a_tls_connection(authority, host, black_hole, mute, connected):
    cert, key = authority.sign("broker", names="DNS:broker.test")
    settings = {
        "server": {"bind_addr": "", "tls_bind_addr": "127.0.0.1:0"},
        "tls": {"cert_file": str(cert), "key_file": str(key)},
    }
    with blipmq.Broker(settings) as secure:
        at, port = secure.tls_address.rsplit(":", 1)
        host[:] = [black_hole, (at, int(port))]
        connected("tls://broker.test", tls=str(authority.file), timeout_s=NEVER_S)
        host[:] = [mute, (at, int(port))]
        connected("tls://broker.test", tls=str(authority.file), timeout_s=2)
        with blipmq.Broker({"server": {"bind_addr": "127.0.0.1:0"}}) as plain:
            at_plain, port_plain = plain.address.rsplit(":", 1)
            host[:] = [(at_plain, int(port_plain)), (at, int(port))]
            connected("tls://broker.test", tls=str(authority.file), timeout_s=20)


@both
def test_a_refusal_by_a_broker_ends_the_attempts_at_other_addresses(broker, host, connected):
    with FakeBroker(api_key="right") as strict:
        host[:] = [place_of(strict), place_of(broker)]
        with pytest.raises(NotAllowed):
            connected("broker.test", api_key="wrong", timeout_s=20)
    assert broker.commands == []


@both
def test_an_error_names_every_tried_address_and_its_result(host, black_hole, mute, connected):
    host[:] = [nobody(), black_hole]
    with pytest.raises(Unreachable, match=r"2 addresses were tried") as caught:
        connected("broker.test", timeout_s=0.5)
    assert "127.0.0.1: nothing listens there." in str(caught.value)
    assert "127.0.0.1: no answer in time." in str(caught.value)
    host[:] = [nobody(), mute]
    with pytest.raises(TimedOut, match=r"2 addresses were tried.* nothing listens there.* HELLO: "):
        connected("broker.test", timeout_s=0.5)
    host[:] = [nobody(), nobody()]
    with pytest.raises(Unreachable, match=r"^Cannot reach a broker at broker.test:7878: nothing listens there\. Start"):
        connected("broker.test")


def test_the_most_specific_error_is_raised():
    tried = Tried(Address("h", 1))
    first, second, third = in_order(found("10.0.0.1", "10.0.0.2", "10.0.0.3"))
    tried.add(first, ConnectionRefusedError())
    tried.add(second, NotTrusted("Its certificate has expired."))
    tried.add(third, TimedOut("HELLO: no answer."))
    assert isinstance(tried.error(), NotTrusted)
    assert "10.0.0.2: Its certificate has expired." in str(tried.error())


@both
def test_connections_that_are_not_used_are_closed(host, connected):
    """Both answer at the same time; one of them gets a HELLO, and both see the end of their connection."""
    with FakeBroker() as one, FakeBroker() as other:
        host[:] = [place_of(one), place_of(other)]
        for _ in range(5):
            connected("broker.test", timeout_s=20)
        deadline_s = time.monotonic() + TIMEOUT_S
        while one.connections or other.connections:
            assert time.monotonic() < deadline_s
            time.sleep(0.005)


# ---- waiting for the first connection --------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("wait", [True, NEVER_S, math.inf])
def test_a_client_waits_until_the_broker_starts(away, connected, wait):
    later = threading.Timer(0.5, away.start)
    later.start()
    states = []
    connected(away.address, wait=wait, on_state=lambda state, error: states.append((state, str(error))))
    later.join()
    assert states[0][0] == "connecting" and states[1][0] == "disconnected" and "nothing listens" in states[1][1]
    assert [state for state, _ in states][-2:] == ["connected", "closed"]


@both
def test_a_timed_out_wait_reports_the_attempts_and_the_last_error(connected):
    address, port = nobody()
    with pytest.raises(
        Unreachable, match=r"The last error: Cannot reach a broker at .*: nothing listens there"
    ) as caught:
        connected(f"{address}:{port}", wait=0.5, random=lambda: 0.2)
    assert str(caught.value).startswith(f"No connection to {address}:{port} in 0.5 s, tried ")
    assert caught.value.exit_status == 69


@both
def test_an_attempt_ends_when_the_wait_ends(black_hole, connected):
    with pytest.raises(Unreachable, match=r"tried once.* no answer in time"):
        connected("{}:{}".format(*black_hole), wait=0.2, timeout_s=NEVER_S)


@both
def test_a_full_broker_is_retried_until_admitted(broker, connected):
    broker.refusals["HELLO"] = (429, "all connections are in use")
    later = threading.Timer(0.3, broker.refusals.clear)
    later.start()
    connected(broker.address, wait=True)
    later.join()


@both
@pytest.mark.parametrize(("code", "kind"), [(401, NotAllowed), (403, NotAllowed), (426, Refused), (409, Refused)])
def test_a_permanent_refusal_is_not_retried(broker, connected, code, kind):
    broker.refusals["HELLO"] = (code, "never")
    with pytest.raises(kind, match=rf"^HELLO was refused \({code}\)"):
        connected(broker.address, wait=True)
    assert len(broker.commands) == 1


@both
def test_a_peer_of_another_protocol_is_not_retried(broker, connected):
    broker.greeting = b"SSH-2.0-OpenSSH\r\n"
    with pytest.raises(ProtocolError, match="probably not BlipMQ"):
        connected(broker.address, wait=True)


@both
def test_a_wrong_certificate_is_not_retried(authority, tmp_path, connected):
    cert, key = Authority(tmp_path, "Unknown authority").sign("broker")
    settings = {
        "server": {"bind_addr": "", "tls_bind_addr": "127.0.0.1:0"},
        "tls": {"cert_file": str(cert), "key_file": str(key)},
    }
    with blipmq.Broker(settings) as broker, pytest.raises(NotTrusted):
        connected(broker.tls_address, tls=ssl.create_default_context(cafile=authority.file), wait=True)


@both
@pytest.mark.parametrize("wait", [-1, math.nan, "5", None])
def test_an_invalid_wait_time_is_refused(broker, connected, wait):
    with pytest.raises(UsageError, match=r"wait is .* it must be a number of seconds"):
        connected(broker.address, wait=wait)


def test_a_cancelled_wait_leaks_nothing(black_hole):
    async def scene():
        waiting = asyncio.ensure_future(blipmq.connect("{}:{}".format(*black_hole), wait=True))
        await asyncio.sleep(0.05)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(asyncio.wait_for(scene(), TIMEOUT_S))


def test_a_name_lookup_timeout_is_reported(monkeypatch):
    answered = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answered.wait(TIMEOUT_S) and [])

    async def scene():
        try:
            with pytest.raises(Unreachable, match="the host name was not found in time"):
                await blipmq.connect("broker.test", timeout_s=0.1)
        finally:
            answered.set()

    asyncio.run(asyncio.wait_for(scene(), TIMEOUT_S))


def test_with_uvloop_the_next_address_is_tried_too(broker, black_hole, monkeypatch):
    places = [(INET, socket.SOCK_STREAM, 6, "", place) for place in (black_hole, place_of(broker))]
    monkeypatch.setattr(happy_eyeballs, "in_order", lambda _: in_order(places))  # uvloop has its own resolver

    async def scene():
        async with blipmq.connect("127.0.0.1", timeout_s=NEVER_S) as client:
            await client.ping()

    loop = uvloop.new_event_loop()
    try:
        loop.run_until_complete(asyncio.wait_for(scene(), TIMEOUT_S))
    finally:
        loop.close()


# ---- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [["pub", "a", "x"], ["info"], ["sub", "a", "-n", "1"], ["bench", "--messages", "1"]])
def test_every_command_can_wait_until_the_broker_starts(away, words):
    with subprocess.Popen(
        [*cli_command(), *words, "--wait", "600"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(BLIPMQ_ADDR=away.address),
    ) as process:
        if words[0] != "bench":  # bench prints other text on standard error
            assert process.stderr.readline().endswith("Reconnecting…\n".encode())
        away.start()
        if words[0] == "sub":
            away.wait_for("SUB", timeout_s=TIMEOUT_S)
            away.call(lambda: away.publish("a", b"x"))
        out, err = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 0 and out
    assert words[0] == "bench" or err == b"Connected.\n"


def test_the_shell_can_wait_until_the_broker_starts(away):
    command = [*broker_command(), "connect", away.address, "--wait", "600"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()) as process:
        while not (line := process.stdout.readline()).endswith("Reconnecting…\n".encode()):
            assert line, "it ended without a word of waiting"
        away.start()
        out, _ = process.communicate(b"pub a x\n", timeout=TIMEOUT_S)
    assert process.returncode == 0 and out.endswith(b"Connected.\nSent 1 byte to a.\n")


def test_the_end_of_a_wait_on_the_command_line_is_one_sentence_and_status_69():
    address, port = nobody()
    done = subprocess.run(
        [*cli_command(), "--addr", f"{address}:{port}", "--wait", "1", "info", "-q"],
        capture_output=True,
        timeout=TIMEOUT_S,
        env=environment(),
    )
    assert done.returncode == 69 and done.stdout == b""
    assert done.stderr.startswith(f"blipmq-cli: No connection to {address}:{port} in 1 s, tried ".encode())
    assert b"The last error: Cannot reach a broker" in done.stderr and done.stderr.count(b"\n") == 1


def test_a_reconnect_tries_all_addresses_again(broker, host, black_hole):
    host[:] = [black_hole, place_of(broker)]
    with blipmq.connect_blocking("broker.test", timeout_s=20, random=lambda: random.random() / 10) as client:
        broker.kick()
        with contextlib.suppress(Disconnected):
            client.ping()
        assert client.ping() >= 0
