"""The write-ahead log: the native test programs on a simulated disk, and proof that they can fail.

The first lines of each program state its invariants; each test here builds one and runs a share. A failing program
prints its seed: `test_wal_crash SEED 1` repeats it. The planted bugs are in planted.py.
"""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import planted
import pytest

TESTS = Path(__file__).resolve().parent
NATIVE = TESTS.parent / "native"
# one for each version of the format; other files have other purposes
KEPT = sorted((TESTS / "kept").glob("log-[0-9]*"))
CC = os.environ.get("CC", "cc").split()
# Here the WAL checks a full disk again after a millisecond instead of a tenth of a second.
FLAGS = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "-DWAL_RETRY_MS=1", "-pthread"]
WAL = ["wal/writer.c", "wal/tail.c", "wal/ledger.c", "wal/format.c", "wal/directory.c", "wal/recover.c", "wal/reader.c"]
WAL += ["wal/tool.c", "wal/storage_posix.c"]
SOURCES = [NATIVE / name for name in (*WAL, "base/monitor.c", "base/poll.c", "base/crc32.c")]
SIMULATED = [TESTS / "native" / name for name in ("sim_disk.c", "wal_model.c")]
MEMORY = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
THREADS = ["-fsanitize=thread"]


def build(directory: Path, name: str, flags: list[str], sources: list[Path] | None = None) -> Path:
    program = directory / name
    files = [TESTS / "native" / f"{name}.c", *(SOURCES + SIMULATED if sources is None else sources)]
    subprocess.run([*CC, *FLAGS, *flags, *map(str, files), "-o", str(program)], check=True)
    return program


def run(program: Path, *arguments: object, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False
    )


def passes(program: Path, *arguments: object, timeout: float = 300) -> None:
    result = run(program, *arguments, timeout=timeout)
    assert result.returncode == 0, result.stderr[-4000:]


# ---- WAL guarantees --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS], ids=["memory", "threads"])
def test_a_crash_in_any_storage_call_loses_nothing_acknowledged(tmp_path: Path, sanitizers: list[str]) -> None:
    passes(build(tmp_path, "test_wal_crash", sanitizers), 1, 4)


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS], ids=["memory", "threads"])
def test_an_error_in_any_storage_call_loses_nothing_acknowledged(tmp_path: Path, sanitizers: list[str]) -> None:
    passes(build(tmp_path, "test_wal_errors", sanitizers), 1, 3)


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS], ids=["memory", "threads"])
def test_a_start_on_a_full_disk_loses_nothing_and_resumes_with_room(tmp_path: Path, sanitizers: list[str]) -> None:
    passes(build(tmp_path, "test_wal_full", sanitizers), 1, 6)


def test_a_flipped_bit_is_harmless_or_reported_exactly(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_wal_flips", MEMORY), 1, 4000)


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS], ids=["memory", "threads"])
def test_after_any_damage_acknowledged_records_are_present_or_reported_lost(
    tmp_path: Path, sanitizers: list[str]
) -> None:
    passes(build(tmp_path, "test_wal_damage", sanitizers), 1, 150)


def test_every_labelled_recovery_case_keeps_and_reports_the_expected_records(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_wal_cases", MEMORY))


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS], ids=["memory", "threads"])
def test_quota_reserve_reading_and_reclaiming_work_together(tmp_path: Path, sanitizers: list[str]) -> None:
    passes(build(tmp_path, "test_wal_use", sanitizers))


def test_posix_storage_handles_interrupted_and_partial_calls(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_wal_posix", MEMORY, sources=[]), tmp_path)


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.name)
def test_verify_export_and_repair_work_on_the_saved_wal_of_each_version(tmp_path: Path, kept: Path) -> None:
    copy = tmp_path / "kept"
    shutil.copytree(kept, copy)
    passes(build(tmp_path, "test_wal_tool", MEMORY), tmp_path, copy)


# ---- these tests can fail --------------------------------------------------------------------------------------------


def test_the_crash_test_finds_losses_without_fsync(tmp_path: Path) -> None:
    result = run(build(tmp_path, "test_wal_crash", []), 1, 3, "no-sync")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-2]) > 100, result.stdout


PLANTED = [
    ("reply_before_fsync", "test_wal_crash", (1, 3)),
    ("no_directory_fsync", "test_wal_crash", (1, 3)),
    ("crc_without_length", "test_wal_flips", (1, 8000)),
    ("truncate_on_damage", "test_wal_flips", (1, 4000)),
    ("retry_fsync", "test_wal_errors", (1, 3)),
    ("serve_doubtful", "test_wal_full", (4, 6)),
    ("forget_newest", "test_wal_damage", (1, 100)),
    ("headers_in_one_page", "test_wal_damage", (1, 100)),
    ("header_copy_not_written", "test_wal_cases", ()),
    ("header_at_the_end_not_written", "test_wal_damage", (1, 100)),
    ("ledger_too_early", "test_wal_crash", (1, 3)),
    ("drop_before_ledger", "test_wal_crash", (10, 4)),
    ("cut_before_sync", "test_wal_full", (1, 6)),
]


@pytest.mark.parametrize(("bug", "program", "arguments"), PLANTED)
def test_a_planted_bug_is_found(tmp_path: Path, bug: str, program: str, arguments: tuple[int, ...]) -> None:
    changed = planted.source_with(bug, tmp_path)
    sources = [changed if source.name == changed.name else source for source in SOURCES + SIMULATED]
    assert changed in sources
    result = run(build(tmp_path, program, [], sources), *arguments)
    by_seed = result.returncode == 1 and result.stderr.startswith("seed ")
    by_case = result.returncode == -signal.SIGABRT and "not true: " in result.stderr
    assert by_seed or by_case, (result.returncode, result.stderr)


# ---- the long form ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_hundred_thousand_flipped_bits_are_harmless_or_reported_exactly(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_wal_flips", []), 8, 100_000)


@pytest.mark.slow
def test_hundreds_of_workloads_with_a_crash_at_every_call_lose_nothing(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_wal_crash", []), 1000, 300)


@pytest.mark.slow
def test_thousands_of_damaged_wals_report_their_losses(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_wal_damage", []), 1000, 3000)


@pytest.mark.slow
def test_dozens_of_workloads_restarted_on_a_full_disk_lose_nothing(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_wal_full", []), 100, 60)


@pytest.mark.slow
def test_dozens_of_workloads_with_an_error_at_every_call_lose_nothing(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_wal_errors", []), 100, 40)
