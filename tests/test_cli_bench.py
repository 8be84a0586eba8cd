"""`blipmq-cli bench` against the fake broker: small loads, complete results."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from fake_broker import FakeBroker
from hypothesis import given
from hypothesis import strategies as st
from terminal import Terminal, environment

from blipmq.cli.bench_result import Result, render_progress, render_result
from blipmq.cli.client import make_parser
from blipmq.cli.latency import Latencies
from blipmq.errors import Refused

CLI = [sys.executable, "-m", "blipmq.cli.client"]
DROPS = {"ttl": 0, "queue_full": 0, "disconnect": 0}


@pytest.fixture
def broker() -> Iterator[FakeBroker]:
    with FakeBroker() as running:
        running.has_log = True
        running.info = {"version": "fake", "messages": {"dropped": DROPS}}
        yield running


def bench(broker: FakeBroker, *arguments: str) -> tuple[int, str, str]:
    variables = environment(BLIPMQ_ADDR=broker.address)
    done = subprocess.run(
        [*CLI, "bench", *arguments], capture_output=True, timeout=60, check=False, env=variables, text=True
    )
    return done.returncode, done.stdout, done.stderr


def figures(broker: FakeBroker, *arguments: str) -> dict[str, Any]:
    status, out, err = bench(broker, *arguments, "-q", "-f", "json")
    assert (status, err) == (0, "")
    return dict(json.loads(out))


def parsed(*arguments: str) -> Result:
    return Result(make_parser().parse_args(["bench", *arguments]))


def test_a_fixed_number_of_messages_is_sent_at_full_speed_and_counted(broker: FakeBroker) -> None:
    arguments = ["--messages", "1001", "--publishers", "3", "--subscribers", "2", "--topics", "4", "--size", "100"]
    found = figures(broker, *arguments)
    assert (found["published"], found["delivered"], found["lost"], found["again"]) == (1001, 2002, 0, 0)
    assert found["broker_drops"] == DROPS
    assert found["published_mb_per_s"] == pytest.approx(found["published_per_s"] * 100 / 1e6, abs=0.01)
    assert 0 < found["latency_ms"]["p50"] <= found["latency_ms"]["p99"] <= found["latency_ms"]["max"]
    payloads = {len(command["payload"]) for command in broker.wait_for("PUB", 1001)}
    assert payloads == {100}
    assert len({command["topic"] for command in broker.wait_for("PUB", 1001)}) == 4


def test_with_a_rate_the_number_of_messages_follows_from_the_time(broker: FakeBroker) -> None:
    found = figures(broker, "--seconds", "1", "--rate", "200")
    assert 1 <= found["published"] <= 200
    assert found["lost"] == 0


def test_qos_1_publishes_use_a_window_and_are_acknowledged(broker: FakeBroker) -> None:
    found = figures(broker, "--messages", "500", "--qos", "1", "--window", "8", "--publishers", "2")
    assert (found["published"], found["delivered"], found["lost"]) == (500, 500, 0)
    assert found["answer_ms"]["p50"] > 0
    assert len(broker.kept) == 500
    assert len(broker.wait_for("ACK", 500)) == 500
    assert figures(broker, "--messages", "5", "--qos", "1", "--rate", "1000")["published"] == 5


def test_a_refusal_is_printed_and_ends_the_run(broker: FakeBroker) -> None:
    broker.refusals["PUB"] = (503, "the disk is full")
    status, out, _ = bench(broker, "--messages", "5", "--qos", "1", "-q")
    assert status == 1
    assert "Refused         5; the first: Publish to bench." in out
    broker.refusals = {"SUB": (403, "read only key")}
    status, out, err = bench(broker, "--messages", "5")
    assert (status, out) == (77, "")
    assert "read only key" in err


def test_a_lost_broker_ends_the_run_with_the_reason(broker: FakeBroker) -> None:
    with subprocess.Popen(
        [*CLI, "bench", "--seconds", "60", "--rate", "100"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(BLIPMQ_ADDR=broker.address),
    ) as process:
        broker.wait_for("PUB", 3)
        broker.stop()
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (69, b"")
    assert b"there is no result" in err and b"Traceback" not in err


def test_progress_goes_to_standard_error_one_line_a_second_in_a_pipe(broker: FakeBroker) -> None:
    status, out, err = bench(broker, "--seconds", "2", "--rate", "50")
    assert status == 0
    assert re.match(r" *\d+% of 2 s  \d+\.\d s  published .*/s  delivered .*/s", err)
    assert out.startswith("1 publisher, 1 subscriber, 1 topic, 256 bytes each, QoS 0, 50 a second planned\nPublished ")


def test_a_terminal_shows_progress_in_place_and_ctrl_c_prints_partial_results(broker: FakeBroker) -> None:
    arguments = ["-m", "blipmq.cli.client", "bench", "--seconds", "60", "--rate", "100"]
    with Terminal(arguments, {"BLIPMQ_ADDR": broker.address}) as terminal:
        terminal.expect("published")
        terminal.expect("\x1b[1A\r📊")
        broker.wait_for("PUB", 5)
        terminal.interrupt()
        terminal.expect("\x1b[?25h📊 1 publisher")
        terminal.expect("Latency")
        assert terminal.end() == 130


def test_an_invalid_load_is_refused_by_the_parser(broker: FakeBroker) -> None:
    for arguments in (
        ["--size", "23"],
        ["--window", "0"],
        ["--publishers", "1001"],
        ["--messages", "1", "--seconds", "1"],
    ):
        status, out, err = bench(broker, *arguments)
        assert (status, out) == (2, "")
        assert arguments[0] in err or "not allowed with" in err
    assert broker.commands == []


def test_losses_drops_and_duplicates_are_printed_in_words() -> None:
    result = parsed("--subscribers", "2", "--messages", "1000")
    result.published, result.received, result.again = 1000, 1910, 10
    result.publish_s = result.deliver_s = 2.0
    result.cpu_share = 0.97
    result.refuse(Refused("Publish was refused.\x1b[2J"))
    result.compare(
        {"messages": {"dropped": {"ttl": 1, "queue_full": 5}}}, {"messages": {"dropped": {"ttl": 1, "queue_full": 105}}}
    )
    text = render_result(result, json=False, fancy=False).decode()
    assert "Published       1,000 messages in 2.0 seconds: 500 a second, 0.13 MB/s\n" in text
    assert "Delivered       1,900 messages in 2.0 seconds: 950 a second, 0.24 MB/s\n" in text
    assert "Lost            100 of 2,000 (5.00%)\n" in text
    assert "Sent again      10\n" in text
    assert "Refused         1; the first: Publish was refused.\\x1b[2J\n" in text
    assert "Broker dropped  queue full 100\n" in text
    assert "Note            the load test itself used 97% of a processor" in text
    result.compare({}, {"messages": None})
    assert "Broker dropped  not reported" in render_result(result, json=False, fancy=True).decode()
    assert render_progress(result, 1.0, fancy=False).startswith(
        "100% of 1,000  1.0 s  published 500/s  delivered 1,900/s"
    )


@given(st.lists(st.integers(-5, 1 << 62), min_size=1, max_size=200), st.sampled_from((0.1, 50.0, 90.0, 99.0, 100.0)))
def test_a_percentile_is_at_least_the_true_one_and_at_most_a_thirtieth_more(times: list[int], percent: float) -> None:
    latencies = Latencies()
    for ns in times:
        latencies.add_ns(ns)
    ordered = sorted(max(ns, 0) for ns in times)
    true_ns = next(ns for index, ns in enumerate(ordered, 1) if index >= len(ordered) * percent / 100)
    assert true_ns <= latencies.percentile_ns(percent) <= true_ns + true_ns // 30
    assert Latencies().percentile_ns(percent) == 0
