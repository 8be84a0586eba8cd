"""Durations and sizes of the command line, beside exact arithmetic."""

import argparse
from fractions import Fraction

import pytest
from broker_process import run_cli
from hypothesis import given
from hypothesis import strategies as st

from blipmq.cli import quantities

TIMES = {"ms": Fraction(1, 1000), "s": 1, "m": 60, "h": 3600, "d": 86_400}


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from(["", *TIMES]), st.booleans())
def test_a_duration_is_what_it_says_or_refused(whole, thousandths, unit, upper):
    text = f"{whole}.{thousandths:03}{unit.upper() if upper else unit}"
    exact = (whole + Fraction(thousandths, 1000)) * TIMES[unit or "s"]
    try:
        found = quantities.seconds(0, 10**9)(text)
    except argparse.ArgumentTypeError:
        assert (exact * 1000).denominator != 1 or exact > 10**9
    else:
        assert found == float(exact)
        assert isinstance(found, int) == (exact.denominator == 1)


@pytest.mark.parametrize(
    ("text", "expected"), [("24", 24), ("64KB", 64_000), ("64kib", 65_536), ("1.5MiB", 3 << 19), ("2 kB", 2000), ("64b", 64)]
)  # fmt: skip
def test_a_size_is_in_powers_of_1000_or_1024(text, expected):
    assert quantities.size(24, 64 << 20)(text) == expected


@pytest.mark.parametrize(
    "text", ["", "x", "-1", "+1", "1e3", "1s2", "5 weeks", "1.5", ".5s", "5.s", "٣s", "65MiB", "23", "1,5MB", "nan"]
)
def test_what_is_no_size_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        quantities.size(24, 64 << 20)(text)


@pytest.mark.parametrize("text", ["", "x", "-1", "0.5", "1.0001s", "5y", "s"])
def test_what_is_no_whole_number_of_milliseconds_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError):
        quantities.milliseconds()(text)


def test_a_time_to_live_and_a_timeout_are_taken_as_people_write_them(broker):
    assert run_cli(broker.address, "pub", "a", "x", "--ttl", "1.5h", "--timeout", "30s", "--wait", "1m").returncode == 0
    refused = run_cli(broker.address, "pub", "a", "x", "--ttl", "soon")
    assert refused.returncode == 2 and b"--ttl" in refused.stderr and b"24h" in refused.stderr


def test_an_answer_that_does_not_come_in_time_ends_the_command():
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        host, port = silent.getsockname()
        done = run_cli(f"{host}:{port}", "info", "--timeout", "200ms")
    assert done.returncode != 0 and b"did not answer in 0." in done.stderr
