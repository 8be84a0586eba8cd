"""The examples run as they are printed, and fail with a sentence instead of a traceback."""

from __future__ import annotations

import subprocess
import sys

import fake_broker
import pytest
from fake_broker import FakeBroker
from terminal import ROOT, environment

OUTPUT = {
    "basic_async.py": [
        *("-- connecting", "-- connected", "site/1/temp: 21.5", "site/2/temp: 19.0"),
        *("site/3/temp: 0", "site/3/temp: 1", "site/3/temp: 2", "-- BlipMQ fake, ok"),
    ],
    "basic_blocking.py": [
        *("1 logs.web.error: out of coffee", "2 logs.db.info: started", "3 logs.db.info: ready"),
        "-- the broker answers in",
    ],
}


@pytest.mark.parametrize("name", OUTPUT)
def test_an_example_prints_what_its_reader_expects(name: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / name)]
    with FakeBroker() as broker:
        done = subprocess.run(
            [*command, broker.address], capture_output=True, env=environment(), check=False, timeout=30
        )
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, done.stderr) == (0, b"")
    assert all(line.startswith(expected) for line, expected in zip(lines, OUTPUT[name], strict=False))
    assert len(lines) >= len(OUTPUT[name])


@pytest.mark.parametrize("name", OUTPUT)
def test_an_example_without_a_broker_says_what_to_do(name: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / name), f"127.0.0.1:{fake_broker.free_port()}"]
    done = subprocess.run(command, capture_output=True, env=environment(), check=False, timeout=30)
    assert done.returncode == 1
    assert done.stderr.startswith(b"Cannot reach a broker")
