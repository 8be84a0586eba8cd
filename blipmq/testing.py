"""A broker of its own for each test of a program that uses BlipMQ.

    pytest_plugins = ["blipmq.testing"]         in conftest.py
    def test_it(blipmq_broker): ...             a running broker; blipmq_address is its HOST:PORT
    with blipmq.testing.running() as broker:    the same without pytest

Invariant: nothing is left behind. Each broker has a free port of 127.0.0.1 and a WAL directory that is removed with it;
two tests at the same time do not meet.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from blipmq.broker.blocking import BlockingBroker
from blipmq.broker.broker import Broker

try:
    import pytest
except ImportError:  # `running` needs no pytest
    _PYTEST = False
else:
    _PYTEST = True

Settings = Mapping[str, Mapping[str, Any]]


@contextmanager
def running(settings: Settings | None = None) -> Iterator[BlockingBroker]:
    """A broker in this process, for any thread and any client. `settings`: {"section": {"key": value}} beside its own
    address and WAL, such as {"qos1": {"ack_timeout_ms": 500}}."""
    with tempfile.TemporaryDirectory(prefix="blipmq-test-") as directory:
        sections: dict[str, dict[str, Any]] = {
            "server": {"bind_addr": "127.0.0.1:0"},
            "wal": {"directory": f"{directory}/wal"},
        }
        for name, keys in (settings or {}).items():
            sections[name] = {**sections.get(name, {}), **keys}
        with Broker(sections) as broker:
            yield broker


if _PYTEST:

    @pytest.fixture
    def blipmq_settings() -> Settings:
        """The settings of `blipmq_broker`, as `running` takes them. Define a fixture of this name to change them."""
        return {}

    @pytest.fixture
    def blipmq_broker(blipmq_settings: Settings) -> Iterator[BlockingBroker]:
        """A broker that runs for one test."""
        with running(blipmq_settings) as broker:
            yield broker

    @pytest.fixture
    def blipmq_address(blipmq_broker: BlockingBroker) -> str:
        """HOST:PORT of `blipmq_broker`, for `blipmq.connect` and for other programs."""
        return blipmq_broker.address
