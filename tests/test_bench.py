"""The logic of the benchmarks: the plan, and the guard's handling of callgrind profiles and its record.

Invariant: nothing is measured here. Measured values depend on the machine; these do not.
"""

from __future__ import annotations

import json
import re
import socket
from collections import Counter
from pathlib import Path

import pytest

from bench import beside, guard, micro, plan, tls_peers

ROOT = Path(__file__).resolve().parent.parent

PROFILE = """\
# callgrind format
events: Ir

fl=/src/native/broker/publish.c
fn=publish
10 100
fi=/src/native/base/bytes.h
23 7
fe=/src/native/broker/publish.c
calls=4 0
12 40
cfi=/usr/lib/libc.so.6
cfn=send
calls=2 0
14 1000

fl=/src/bench/guard.c
fn=round_run
200 5000
fi=/src/native/base/bytes.h
40 300

fl=/src/tests/native/sim_disk.c
fn=disk_write
3 700
"""


# ---- the plan --------------------------------------------------------------------------------------------------------


PLANS = [plan.PLAN_FILE, plan.MQTT_FILE]


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
@pytest.mark.parametrize(("mode", "within_s"), [("quick", 120), ("full", 25 * 60)])
def test_the_plan_fits_its_time_as_computed(path: Path, mode: str, within_s: int) -> None:
    whole = plan.read_plan(path)
    shapes = [shape for shape in whole.shapes if shape.quick or mode == "full"]
    assert plan.expected_s(whole, whole.modes[mode], shapes) < within_s
    assert whole.modes[mode].budget_s <= within_s


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_goals_name_existing_shapes_and_brokers(path: Path) -> None:
    whole = plan.read_plan(path)
    shapes = {shape.name for shape in whole.shapes} | {"start", "*"}
    brokers = {broker.name for broker in whole.brokers}
    for goal in whole.goals:
        assert set(goal.shapes) <= shapes, goal.text
        assert set(goal.against) <= brokers, goal.text
    assert {name for shape in whole.shapes for name in shape.without} <= brokers
    assert {shape.rate_of for shape in whole.shapes} <= shapes | {""}


def test_an_unknown_shape_or_control_load_is_refused() -> None:
    with pytest.raises(TypeError, match="kind is 'throughputs', and none of throughput"):
        plan.Shape(name="x", kind="throughputs")
    with pytest.raises(TypeError, match="control is 'scrape'"):
        plan.Shape(name="x", control="scrape")


def test_rates_of_bytes_are_in_gigabytes_and_others_in_millions() -> None:
    assert micro.rate("byte", 0.5) == "2.00 GB/s"
    assert micro.rate("timer", 50.0) == "20.0 M/s"


# ---- the guard -------------------------------------------------------------------------------------------------------


def test_only_the_core_and_its_copies_are_counted() -> None:
    profile = PROFILE.replace("calls=4 0", "cfi=/src/bench/plain_memory.c\ncfn=memcpy\ncalls=4 0")
    assert guard.instructions(profile) == {"publish": 107, "memcpy, for publish": 40}


def counts(**each: float) -> dict[str, guard.Count]:
    return {shape: guard.Count(100, Counter({"publish": round(value * 100)})) for shape, value in each.items()}


def test_more_than_a_tenth_more_instructions_fail_and_the_shape_is_named() -> None:
    record = {"x86_64, gcc 12": {"a": 100.0, "b": 100.0}}
    lines, well = guard.compare(counts(a=109, b=100), "x86_64, gcc 12", record)
    assert well and lines[-1] == "All within 10% of the record."
    lines, well = guard.compare(counts(a=111, b=100), "x86_64, gcc 12", record)
    assert not well and any(line.startswith("FAILED: more instructions than on record in a.") for line in lines)


def test_a_record_that_is_a_tenth_too_high_or_lacks_a_shape_is_out_of_date() -> None:
    record = {"x86_64, gcc 12": {"a": 100.0, "gone": 1.0}}
    lines, well = guard.compare(counts(a=89, b=1), "x86_64, gcc 12", record)
    assert well and lines[-1].startswith("The record is out of date for a, b, gone (gone): make guard ARGS=--record")


def test_other_compilers_are_compared_loosely_and_other_architectures_not_at_all() -> None:
    record = {"x86_64, gcc 12": {"a": 100.0}}
    lines, well = guard.compare(counts(a=140), "x86_64, gcc 14", record)
    assert well and lines[-1].startswith("There is no record for this compiler: compared with x86_64, gcc 12")
    assert not guard.compare(counts(a=160), "x86_64, clang 19", record)[1]
    lines, well = guard.compare(counts(a=999), "aarch64, gcc 12", record)
    assert well and lines[-1].startswith("There is no record for this architecture, so nothing was compared.")


def test_the_record_contains_the_measured_shapes() -> None:
    driven = set(re.findall(r'\{\.name = "([^"]+)"', (ROOT / "bench" / "guard.c").read_text(encoding="utf-8")))
    for name, figures in json.loads(guard.RECORD.read_text(encoding="utf-8")).items():
        assert set(figures) == driven, name


def test_the_page_shows_the_record() -> None:
    shown = guard.PAGE_TABLE.search(guard.PAGE.read_text(encoding="utf-8"))
    assert shown and shown[0] == guard.table(json.loads(guard.RECORD.read_text(encoding="utf-8")))


# ---- a quiet client beside an attack ----------------------------------------------------------------------------------


def test_all_attacks_beside_a_quiet_client_take_eight_minutes_at_most() -> None:
    assert beside.expected_s(len(beside.ATTACKS), beside.ROUNDS, beside.SECONDS) < 8 * 60


@pytest.mark.parametrize(
    ("without", "elsewhere", "here", "met"),
    [
        ([1.0, 9.0, 1.0], [1.0, 9.0, 1.0], [1.5, 9.0, 1.5], "met"),
        ([1.0, 1.0, 9.0], [1.0, 1.0, 9.0], [3.0, 3.0, 9.0], "not met"),
        ([1.0, 1.0, 1.0], [4.0, 4.0, 4.0], [5.0, 5.0, 5.0], "met"),  # any load of that size costs this much
    ],
)
def test_the_goal_beside_an_attack_is_judged_by_ratios_within_a_round(
    without: list[float], elsewhere: list[float], here: list[float], met: str
) -> None:
    found = dict(zip(beside.PLACES, (without, elsewhere, here), strict=True))
    assert beside.row("some_attack", found).rstrip(" |").endswith(f"| {met}")


# ---- TLS beside mosquitto -----------------------------------------------------------------------------------------------


def test_the_goal_of_tls_is_judged_by_ratios_within_a_round() -> None:
    shape = tls_peers.SHAPES["handshakes"]
    for ours, peers, met in (
        ([6.0, 60.0, 6.0], [5.0, 50.0, 5.0], "met"),
        ([7.0, 5.0, 7.0], [5.0, 50.0, 5.0], "not met"),
    ):
        assert tls_peers.row(shape, {"blipmq": ours, "mosquitto": peers}).endswith(f"| 1.2 | {met} |")


def test_the_length_of_an_mqtt_packet_is_written_in_seven_bits_a_byte() -> None:
    for size, head in (0, b"\0"), (127, b"\x7f"), (128, b"\x80\1"), (16_383, b"\xff\x7f"), (60_006, b"\xe6\xd4\3"):
        assert tls_peers.mqtt_packet(0x30, bytes(size)) == b"\x30" + head + bytes(size)


def test_the_clients_of_the_tls_benchmark_reach_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_peers, "BUILD", tmp_path)
    tls_peers.build_tls_load()
    tls_peers.make_certificates(tmp_path)
    (tmp_path / "first").write_bytes(b"")
    (tmp_path / "block").write_bytes(bytes(100_000))
    with tls_peers.tls_load("sink", tmp_path / "ec.pem", tmp_path / "ec.key") as (_, port):
        assert tls_peers.run_tls_load("handshakes", port, 50, 0.2)[0] == 10
        written, _ = tls_peers.run_tls_load("source", port, tmp_path / "first", tmp_path / "block", 0.1)
        assert written >= 100_000 and written % 100_000 == 0
        with tls_peers.tls_load("idle", port, 1, tmp_path / "first") as (_, said):
            assert said == "ready"
        with (
            tls_peers.tls_load("tunnel", port) as (_, own),
            socket.create_connection(("127.0.0.1", int(own)), 10) as one,
        ):
            one.sendall(bytes(100_000))
            one.shutdown(socket.SHUT_WR)
            assert one.recv(1) == b""  # the tunnel ends with its client
