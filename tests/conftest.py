"""Fixtures that every test may use: a real broker in a process of its own, and clients that are closed in the end.

Invariant: no test fails because the machine was slow; a hang is caught by a limit of its own.
"""

import os
import signal

import pytest
from broker_process import BrokerProcess
from hand_client import HelloClient, PlainClient
from hypothesis import settings

# hypothesis would fail an example that takes over 200 ms, which a shared machine or a sanitizer does to any of them.
settings.register_profile("blipmq", settings(), deadline=None, print_blob=True)
settings.load_profile("blipmq")

# Where Debian keeps sfdisk and its like, for everyone to run; a user's PATH lacks it.
os.environ["PATH"] += f"{os.pathsep}/usr/sbin{os.pathsep}/sbin"

# A shell starts what it puts in the background with SIGINT ignored, which the programs under test would inherit.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def start_broker(tmp_path):
    """Start a broker with `settings`, {"section.key": value}, where the broker `after` has been if one is given, in an
    environment with `variables`. When the test has passed, each that was not killed must end in order."""
    started = []

    def start(settings=None, after=None, **variables):
        directory = after.config.parent if after else tmp_path / f"broker{len(started)}"
        directory.mkdir(exist_ok=True)
        started.append(BrokerProcess(directory, settings or {}, **variables))
        return started[-1].get_ready()

    try:
        yield start
        for broker in started:
            broker.stop()
    finally:
        for broker in started:
            broker.kill()


@pytest.fixture
def broker(start_broker, request):
    """A broker; parametrise it indirectly with its settings."""
    return start_broker(getattr(request, "param", None))


@pytest.fixture
def connect():
    """Connect plain clients, or with hello=True such that say HELLO, with the broker's key if there is one, to a broker's
    address; all are closed in the end."""
    clients = []

    def connect(broker, hello=False, **options):
        if hello:
            options = {"api_key": broker.api_key, **options}
        clients.append((HelloClient if hello else PlainClient)(broker.address, **options))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()
