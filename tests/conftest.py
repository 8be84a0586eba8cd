"""Shared fixtures: a real broker in its own process, and clients that are closed after the test.

Invariant: a slow machine never fails a test; a hang is caught by a separate limit.
"""

import os
import signal

import pytest
from broker_process import BrokerProcess
from hand_client import HelloClient, LegacyClient
from hypothesis import settings

# Hypothesis would fail an example that takes more than 200 ms. On a shared machine or with a sanitizer any example may.
settings.register_profile("blipmq", settings(), deadline=None, print_blob=True)
settings.load_profile("blipmq")

# Debian keeps sfdisk and similar tools there; a user's PATH lacks the folder.
os.environ["PATH"] += f"{os.pathsep}/usr/sbin{os.pathsep}/sbin"

# A shell starts background jobs with SIGINT ignored. The tested programs would inherit this.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def start_broker(tmp_path):
    """Start a broker with `settings`, {"section.key": value}, with the address and files of `after` if given, in an
    environment with `variables`. After a passed test each broker that was not killed must end in order."""
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
    """A broker; parametrize it indirectly with its settings."""
    return start_broker(getattr(request, "param", None))


@pytest.fixture
def connect():
    """Connect legacy clients to the address of a broker, or with hello=True clients that send HELLO with the key of the
    broker, if any. All are closed after the test."""
    clients = []

    def connect(broker, hello=False, **options):
        if hello:
            options = {"api_key": broker.api_key, **options}
        clients.append((HelloClient if hello else LegacyClient)(broker.address, **options))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()
