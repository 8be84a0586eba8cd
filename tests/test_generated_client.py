"""A client generated from blip.fbs for another language: examples/typescript, checked and run by deno against a broker.

Invariant: that client uses nothing of blipmq; it knows the tables only from the schema.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import schema
from broker_process import until

import blipmq
from blipmq.broker.blocking import BlockingBroker

pytestmark = pytest.mark.slow  # deno is 42 MB; once installed, this takes a few seconds

EXAMPLE = schema.ROOT / "examples" / "typescript"
DENO = Path(sys.prefix) / "bin" / "deno"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example with its generated code, after a type check."""
    if not DENO.exists():
        subprocess.run([schema.ROOT / "packaging" / "setup.sh", "deno", sys.prefix], check=True, timeout=600)
    folder = tmp_path_factory.mktemp("typescript") / "client"
    shutil.copytree(EXAMPLE, folder)
    schema.flatc("--ts", "--gen-object-api", "-o", folder, schema.FBS)
    deno(folder, "check", "client.ts")
    return folder


def deno(folder: Path, *arguments: str) -> list[str]:
    """The output of deno. It trusts the system's certificate authorities, as pip does."""
    environment = os.environ | {"NO_COLOR": "1", "DENO_NO_UPDATE_CHECK": "1", "DENO_TLS_CA_STORE": "system,mozilla"}
    done = subprocess.run([DENO, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BlockingBroker]:
    """A broker with a WAL and a delivery limit of one."""
    settings = {
        "server": {"bind_addr": "127.0.0.1:0"},
        "wal": {"directory": str(tmp_path / "wal")},
        "qos1": {"ack_timeout_ms": 3000, "max_deliveries": 1},
    }
    with blipmq.Broker(settings) as broker:
        yield broker


def lags(broker: BlockingBroker) -> dict[str, int]:
    """The number of stored messages of the client, by filter."""
    rows = broker.sessions()["list"]
    return {row["filter"]: row["lag_messages"] for row in rows if row["client_id"] == "typescript"}


def test_a_client_generated_from_the_schema_speaks_the_protocol(client: Path, broker: BlockingBroker) -> None:
    with blipmq.connect_blocking(broker.address, client_id="typescript") as ahead:
        ahead.subscribe("$dlq/#", qos=1, durable=True)
    with blipmq.connect_blocking(broker.address) as careless:
        careless.subscribe("demo/vain", qos=1)  # and no ack
        careless.publish("demo/vain", b"nobody wants me", qos=1)
        until(lambda: lags(broker) == {"$dlq/#": 1}, "a dead letter")
        lines = deno(client, "run", "--allow-net", "client.ts", broker.address, "3")
    assert lines[:3] == ["answer 1 subscriptions=null", "answer 2 topic=demo/#", "answer 3 topic=$dlq/#"]
    assert lines[-1] == "closed"
    (letter,) = [line for line in lines if line.startswith("$dlq/")]
    assert letter.startswith("$dlq/demo/vain qos=1: nobody wants me reason=max_deliveries topic=demo/vain id=")
    assert sorted(set(lines[3:-1]) - {letter}) == [
        "answer 4 subscriptions=1",
        "demo/fast qos=0: may be lost",
        "demo/safe qos=1: is stored",
    ]
    assert lags(broker) == {"demo/#": 0, "$dlq/#": 0}  # every message was acknowledged
