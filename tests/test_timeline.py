"""The internal time of the broker: the age of stored messages after restarts, from the known downtime.

Invariant: no test waits for a clock. A machine is a boot and two clocks that the test changes; the core gets their
values.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from killed import as_killed
from test_core_log import WalBench

from blipmq.broker.clock_sync import ClockWatch
from blipmq.native.clock import Clock, read_clock

DAY_MS = 86_400_000
TEN_YEARS_MS = 3652 * DAY_MS
WALL_MS = 1_700_000_000_000


class Machine:
    """The clock values of one machine. `tells_boot = False`: a system without a boot id."""

    def __init__(self, tells_boot: bool = True) -> None:
        self.tells_boot = tells_boot
        self.boots = 1
        self.boot_ms = 60_000
        self.wall_ms = WALL_MS
        self.synchronized = False

    def pass_(self, ms: int) -> None:
        self.boot_ms += ms
        self.wall_ms += ms

    def off(self, ms: int, wall_goes_on: bool = True) -> None:
        """The power is off for this time; a clock with a battery continues."""
        self.boots += 1
        self.boot_ms = 5_000
        self.wall_ms += ms if wall_goes_on else 0

    def clock(self) -> Clock:
        return Clock(self.boots if self.tells_boot else 0, self.boot_ms, self.wall_ms, int(self.synchronized))


@contextmanager
def running(directory: Path, machine: Machine) -> Iterator[WalBench]:
    """A broker on the WAL; it gets the clock values of the machine before its first turn. It ends in order."""
    with WalBench(directory) as bench:
        bench.now_ms = 7_000_000 // machine.boots  # monotonic times differ in each boot
        bench.core.clock(machine.clock())
        bench.turn()
        yield bench


def live(bench: WalBench, machine: Machine, ms: int) -> None:
    machine.pass_(ms)
    bench.turn(ms)


def store(directory: Path, machine: Machine, ttl_ms: int, lived_ms: int = 0) -> None:
    """One message for an absent durable subscriber; the broker runs for `lived_ms` more."""
    with running(directory, machine) as bench:
        client = bench.named("away")
        bench.subscribed(client, "valve", durable=True)
        bench.close(client)
        bench.published(bench.named("publisher"), "valve", 1, b"open", ttl_ms=ttl_ms)
        live(bench, machine, lived_ms)


def fetched(bench: WalBench) -> list[bytes]:
    """The messages delivered to the durable subscriber, not acknowledged."""
    client = bench.named("away")
    bench.subscribed(client, "valve", durable=True)
    bench.until(lambda: bench.stats()["sessions_behind"] == 0)
    bench.settle()
    return client.payloads


def restarted(directory: Path, machine: Machine) -> list[bytes]:
    with running(directory, machine) as bench:
        return fetched(bench)


def test_a_restart_in_the_same_boot_counts_the_downtime(tmp_path: Path) -> None:
    machine = Machine()
    store(tmp_path, machine, ttl_ms=1_000)
    machine.pass_(4_000)
    assert restarted(tmp_path, machine) == []


def test_restarts_do_not_extend_a_time_to_live(tmp_path: Path) -> None:
    machine = Machine()
    store(tmp_path, machine, ttl_ms=1_000, lived_ms=100)
    for _ in range(2):
        machine.pass_(400)
        assert restarted(tmp_path, machine) == [b"open"]
    machine.pass_(400)
    assert restarted(tmp_path, machine) == []


def test_messages_expired_during_downtime_are_counted(tmp_path: Path) -> None:
    machine = Machine()
    store(tmp_path, machine, ttl_ms=1_000)
    machine.pass_(4_000)
    with running(tmp_path, machine) as bench:
        assert fetched(bench) == []
        assert bench.stats()["dropped_ttl"] == 1


def test_a_reboot_with_a_wrong_clock_counts_no_downtime(tmp_path: Path) -> None:
    machine = Machine()
    store(tmp_path, machine, ttl_ms=1_000, lived_ms=300)
    machine.off(10_000)
    with running(tmp_path, machine) as bench:
        live(bench, machine, 300)
    machine.off(10_000)
    with running(tmp_path, machine) as bench:
        assert fetched(bench) == [b"open"]
        live(bench, machine, 500)
    machine.off(10_000)
    assert restarted(tmp_path, machine) == []  # 300 + 300 + 500 ms of run time


def test_a_reboot_with_a_synchronized_clock_counts_the_full_downtime(tmp_path: Path) -> None:
    machine = Machine()
    machine.synchronized = True
    store(tmp_path, machine, ttl_ms=DAY_MS)
    machine.off(DAY_MS // 2)
    assert restarted(tmp_path, machine) == [b"open"]
    machine.off(DAY_MS // 2)
    assert restarted(tmp_path, machine) == []


def test_a_clock_synchronized_after_the_start_adds_the_downtime(tmp_path: Path) -> None:
    machine = Machine()
    machine.synchronized = True
    store(tmp_path, machine, ttl_ms=DAY_MS)
    machine.off(2 * DAY_MS, wall_goes_on=False)
    machine.synchronized = False
    with running(tmp_path, machine) as bench:
        assert fetched(bench) == [b"open"]  # the downtime is not known yet
    with running(tmp_path, machine) as bench:
        live(bench, machine, 5_000)
        machine.wall_ms += 2 * DAY_MS
        machine.synchronized = True
        bench.core.clock(machine.clock())
        assert fetched(bench) == []
        bench.published(bench.named("publisher"), "valve", 1, b"shut", ttl_ms=60_000)
    assert restarted(tmp_path, machine) == [b"shut"]  # messages of this run are not older than the run


def test_messages_in_a_window_expire_when_the_clock_is_synchronized(tmp_path: Path) -> None:
    machine = Machine()
    machine.synchronized = True
    store(tmp_path, machine, ttl_ms=DAY_MS)
    machine.off(2 * DAY_MS, wall_goes_on=False)
    machine.synchronized = False
    with running(tmp_path, machine) as bench:
        assert fetched(bench) == [b"open"]
        machine.wall_ms += 2 * DAY_MS
        machine.synchronized = True
        bench.core.clock(machine.clock())
        bench.until(lambda: bench.stats()["dropped_ttl"] == 1, advance_ms=1_000)


@pytest.mark.parametrize("moved_ms", [TEN_YEARS_MS, -TEN_YEARS_MS])
def test_a_jump_of_an_unsynchronized_clock_expires_nothing(tmp_path: Path, moved_ms: int) -> None:
    for number, tells_boot in enumerate((True, False)):
        machine = Machine(tells_boot)
        store(tmp_path / str(number), machine, ttl_ms=60_000)
        machine.wall_ms += moved_ms
        if not tells_boot:
            machine.boots += 1
        assert restarted(tmp_path / str(number), machine) == [b"open"]


def test_a_synchronized_clock_that_goes_back_adds_nothing(tmp_path: Path) -> None:
    machine = Machine()
    machine.synchronized = True
    store(tmp_path, machine, ttl_ms=1_000)
    machine.off(-5_000)
    assert restarted(tmp_path, machine) == [b"open"]


def test_the_downtime_of_each_restart_counts(tmp_path: Path) -> None:
    machine = Machine()
    store(tmp_path, machine, ttl_ms=10_000)
    for number in range(80):
        machine.pass_(120)
        with running(tmp_path, machine) as bench:  # each run has its own records in the WAL
            bench.published(bench.named("publisher"), "other", 1)
            if number == 50:
                assert fetched(bench) == [b"open"]
    machine.pass_(500)
    assert restarted(tmp_path, machine) == []


def test_a_forgotten_run_has_the_age_of_the_oldest_known_run(tmp_path: Path) -> None:
    machine = Machine()
    store(tmp_path, machine, ttl_ms=10_000)
    for _ in range(300):  # 256 are stored
        machine.pass_(10)
        with running(tmp_path, machine) as bench:
            bench.published(bench.named("publisher"), "other", 1)
    machine.pass_(5_000)
    assert restarted(tmp_path, machine) == [b"open"]
    machine.pass_(5_000)
    assert restarted(tmp_path, machine) == []


def test_a_kill_loses_no_timeline_data(tmp_path: Path) -> None:
    machine = Machine()
    with running(tmp_path / "log", machine) as bench:
        client = bench.named("away")
        bench.subscribed(client, "valve", durable=True)
        bench.close(client)
        bench.published(bench.named("publisher"), "valve", 1, b"open", ttl_ms=1_000)
        as_killed(tmp_path / "log", tmp_path / "killed")  # the disk as after a kill
    machine.pass_(4_000)
    assert restarted(tmp_path / "killed", machine) == []


def test_a_kill_and_a_reboot_never_move_the_timeline_back(tmp_path: Path) -> None:
    machine = Machine()
    with running(tmp_path / "log", machine) as bench:
        client = bench.named("away")
        bench.subscribed(client, "valve", durable=True)
        bench.close(client)
        bench.published(bench.named("publisher"), "valve", 1, b"open", ttl_ms=1_000)
        live(bench, machine, 600)
        bench.published(bench.named("other"), "other", 1)
        as_killed(tmp_path / "log", tmp_path / "killed")
    machine.off(10_000)
    with running(tmp_path / "killed", machine) as bench:
        assert fetched(bench) == [b"open"]
        live(bench, machine, 500)
    assert restarted(tmp_path / "killed", machine) == []


def test_a_core_without_clock_readings_counts_its_run_time(tmp_path: Path) -> None:
    with WalBench(tmp_path) as bench:
        client = bench.named("away")
        bench.subscribed(client, "valve", durable=True)
        bench.close(client)
        bench.published(bench.named("publisher"), "valve", 1, b"open", ttl_ms=1_000)
        bench.turn(600)
        bench.published(bench.named("other"), "other", 1)
    for alive in (True, False):
        with WalBench(tmp_path) as bench:
            assert fetched(bench) == ([b"open"] if alive else [])
            bench.turn(600)
            bench.published(bench.named("other"), "other", 1)


# -- when the core gets clock values


def test_the_clock_watch_reports_the_first_reading_and_then_changes() -> None:
    told: list[Clock] = []
    readings = [
        Clock(1, 0, 100, 0),
        Clock(1, 5_000, 5_100, 0),
        Clock(1, 6_000, 6_100 + 900, 0),  # it is being adjusted
        Clock(1, 7_000, 7_100 + 5_000, 0),  # it was set
        Clock(1, 8_000, 8_100 + 5_000, 1),  # it is synchronized
        Clock(1, 9_000, 9_100 + 5_000, 1),
    ]
    following = iter(readings)
    watch = ClockWatch(told.append, lambda: next(following))
    for _ in readings:
        watch.look()
    assert told == [readings[0], readings[3], readings[4]]


def test_the_system_provides_a_boot_id_and_both_clocks() -> None:
    first, second = read_clock(), read_clock()
    assert first.boot_id == second.boot_id
    assert 0 < first.boot_ms <= second.boot_ms
    assert first.wall_ms > WALL_MS
