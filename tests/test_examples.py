"""The examples run as printed, and fail with a message instead of a traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fake_broker
import pytest
from fake_broker import FakeBroker
from terminal import ROOT, environment

import blipmq
from blipmq.broker.blocking import BlockingBroker

TIMEOUT_S = 60

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
def test_an_example_prints_the_expected_output(name: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / name)]
    with FakeBroker() as broker:
        done = subprocess.run(
            [*command, broker.address], capture_output=True, env=environment(), check=False, timeout=30
        )
    lines = done.stdout.decode().splitlines()
    assert (done.returncode, done.stderr) == (0, b"")
    assert all(line.startswith(expected) for line, expected in zip(lines, OUTPUT[name], strict=False))
    assert len(lines) >= len(OUTPUT[name])


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[BlockingBroker]:
    """A broker of this source tree with a WAL and a low delivery limit."""
    settings = {
        "server": {"bind_addr": "127.0.0.1:0"},
        "wal": {"directory": str(tmp_path / "wal")},
        "qos1": {"ack_timeout_ms": 100, "max_deliveries": 3},
    }
    with blipmq.Broker(settings) as broker:
        yield broker


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "examples" / words[0]), *words[1:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **options,
    )


def run(*words: str, stdin: str = "") -> list[str]:
    """The output of an example, which must succeed without any error output."""
    process = start(*words)
    printed, errors = process.communicate(stdin, timeout=TIMEOUT_S)
    complaints = [line for line in errors.splitlines() if not line.startswith("-- ")]
    assert (process.returncode, complaints) == (0, [])
    return printed.splitlines()


def test_the_sensor_example_shows_values_and_an_alarm(broker: BlockingBroker) -> None:
    assert run("sensors.py", broker.address) == [
        "display: home/cellar/temp 12.5",
        "display: home/attic/temp 31.0",
        "display: home/attic/humidity 40.0",
        "display: home/cellar/temp 12.0",
        "alarm: home/attic/temp is at 31.0",
    ]


def test_each_job_is_done_once_and_the_impossible_job_becomes_a_dead_letter(broker: BlockingBroker) -> None:
    *lines, last = run("job_queue.py", broker.address)
    done = [line.partition(": ")[2] for line in lines if "cannot" not in line]
    tried = [line.partition(": ")[2] for line in lines if "cannot" in line]
    assert sorted(done) == ["mail to Ann", "mail to Bob", "mail to Eve"]
    assert tried == ["cannot do 'mail to nobody'", *["cannot do 'mail to nobody', again"] * 2]
    assert last.startswith("given up after 3 deliveries: jobs/mail, id ")


def test_both_caches_drop_only_changed_entries(broker: BlockingBroker) -> None:
    assert run("cache_invalidation.py", broker.address) == [
        *("here: reads user/1 from the database", "here: reads user/2 from the database", "here: Ann, Bob"),
        *("there: reads user/1 from the database", "there: reads user/2 from the database", "there: Ann, Bob"),
        *("here: reads user/2 from the database", "here: Ann, Eve"),
        *("there: reads user/2 from the database", "there: Ann, Eve"),
    ]


def wait_for_lines(path: Path, count: int) -> list[str]:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists() or len(lines := path.read_text().splitlines()) < count:
        assert time.monotonic() < deadline, f"{count} lines did not come in {TIMEOUT_S} s"
        time.sleep(0.02)
    return lines


def test_log_lines_written_while_the_collector_is_away_are_delivered_later(
    broker: BlockingBroker, tmp_path: Path
) -> None:
    kept, host = tmp_path / "kept.log", os.uname().nodename
    for end, sent in ((signal.SIGKILL, "one\ntwo\n"), (signal.SIGINT, "")):
        collector = start("log_shipping.py", "collect", str(kept), broker.address)
        assert collector.stderr and collector.stderr.readline() == "-- collecting\n"
        if sent:
            run("log_shipping.py", "ship", broker.address, stdin=sent)
            assert wait_for_lines(kept, 2)[:2] == [f"{host} one", f"{host} two"]
        else:
            assert {f"{host} three", f"{host} four"} <= set(wait_for_lines(kept, 4))
        collector.send_signal(end)
        collector.communicate(timeout=TIMEOUT_S)
        run("log_shipping.py", "ship", broker.address, stdin="three\nfour\n")
    assert collector.returncode == 0


def test_every_example_is_run_by_a_test() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    assert [path.name for path in (ROOT / "examples").glob("*.py") if f'"{path.name}"' not in tests] == []


@pytest.mark.parametrize("name", [*OUTPUT, "sensors.py", "job_queue.py", "cache_invalidation.py"])
def test_an_example_without_a_broker_prints_a_remedy(name: str) -> None:
    command = [sys.executable, str(ROOT / "examples" / name), f"127.0.0.1:{fake_broker.free_port()}"]
    done = subprocess.run(command, capture_output=True, env=environment(), check=False, timeout=30)
    assert done.returncode == 1
    assert done.stderr.startswith(b"Cannot reach a broker")
