"""The write-ahead log: the native test programs on a simulated disk, and proof that they can fail.

Each program says in its first lines what must hold; each test here builds one and runs a share. A program that finds
something prints the seed: `test_log_crash SEED 1` repeats it. The planted bugs are in planted.py.
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
KEPT = sorted((TESTS / "kept").glob("log-[0-9]*"))  # one for each version of the format; others hold something else
CC = os.environ.get("CC", "cc").split()
# The log looks at a full disk again after a millisecond here instead of a tenth of a second.
FLAGS = ["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Werror", f"-I{NATIVE}", "-DWAL_RETRY_MS=1", "-pthread"]
LOG = ["wal/writer.c", "wal/tail.c", "wal/ledger.c", "wal/format.c", "wal/directory.c", "wal/recover.c", "wal/reader.c"]
LOG += ["wal/tool.c", "wal/storage_posix.c"]
SOURCES = [NATIVE / name for name in (*LOG, "base/monitor.c", "base/poll.c", "base/crc32.c")]
SIMULATED = [TESTS / "native" / name for name in ("sim_disk.c", "log_model.c")]
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


# ---- what the log promises -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS], ids=["memory", "threads"])
def test_whatever_call_a_power_cut_or_a_kill_comes_in_nothing_acknowledged_is_lost(
    tmp_path: Path, sanitizers: list[str]
) -> None:
    passes(build(tmp_path, "test_log_crash", sanitizers), 1, 4)


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS], ids=["memory", "threads"])
def test_whatever_call_fails_nothing_acknowledged_is_lost(tmp_path: Path, sanitizers: list[str]) -> None:
    passes(build(tmp_path, "test_log_errors", sanitizers), 1, 3)


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS], ids=["memory", "threads"])
def test_a_start_on_a_full_disk_succeeds_loses_nothing_and_goes_on_when_there_is_room(
    tmp_path: Path, sanitizers: list[str]
) -> None:
    passes(build(tmp_path, "test_log_full", sanitizers), 1, 6)


def test_a_flipped_bit_is_harmless_or_told_exactly(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_log_flips", MEMORY), 1, 4000)


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS], ids=["memory", "threads"])
def test_whatever_is_done_to_the_files_what_was_acknowledged_is_there_or_named_as_gone(
    tmp_path: Path, sanitizers: list[str]
) -> None:
    passes(build(tmp_path, "test_log_damage", sanitizers), 1, 150)


def test_every_labelled_case_of_recovery_keeps_and_reports_what_it_should(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_log_cases", MEMORY))


@pytest.mark.parametrize("sanitizers", [MEMORY, THREADS], ids=["memory", "threads"])
def test_quota_reserve_reading_back_and_reclaiming_work_as_the_core_uses_them(
    tmp_path: Path, sanitizers: list[str]
) -> None:
    passes(build(tmp_path, "test_log_use", sanitizers))


def test_the_real_disks_calls_survive_interruptions_and_halves(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_log_posix", MEMORY, sources=[]), tmp_path)


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.name)
def test_verify_export_and_repair_work_and_the_kept_log_of_each_version_opens(tmp_path: Path, kept: Path) -> None:
    copy = tmp_path / "kept"
    shutil.copytree(kept, copy)
    passes(build(tmp_path, "test_log_tool", MEMORY), tmp_path, copy)


# ---- that these tests can fail ---------------------------------------------------------------------------------------


def test_without_fsync_the_crash_test_finds_losses(tmp_path: Path) -> None:
    result = run(build(tmp_path, "test_log_crash", []), 1, 3, "no-sync")
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split()[-2]) > 100, result.stdout


PLANTED = [
    ("reply_before_fsync", "test_log_crash", (1, 3)),
    ("no_directory_fsync", "test_log_crash", (1, 3)),
    ("crc_without_length", "test_log_flips", (1, 8000)),
    ("truncate_on_damage", "test_log_flips", (1, 4000)),
    ("retry_fsync", "test_log_errors", (1, 3)),
    ("serve_doubtful", "test_log_full", (4, 6)),
    ("forget_newest", "test_log_damage", (1, 100)),
    ("headers_in_one_page", "test_log_damage", (1, 100)),
    ("header_copy_not_written", "test_log_cases", ()),
    ("header_at_the_end_not_written", "test_log_damage", (1, 100)),
    ("ledger_too_early", "test_log_crash", (1, 3)),
    ("drop_before_ledger", "test_log_crash", (10, 4)),
    ("cut_before_sync", "test_log_full", (1, 6)),
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
def test_a_hundred_thousand_flipped_bits_are_harmless_or_told_exactly(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_log_flips", []), 8, 100_000)


@pytest.mark.slow
def test_hundreds_of_workloads_cut_at_every_call_lose_nothing_acknowledged(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_log_crash", []), 1000, 300)


@pytest.mark.slow
def test_thousands_of_damaged_logs_say_what_is_gone(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_log_damage", []), 1000, 3000)


@pytest.mark.slow
def test_dozens_of_workloads_started_again_on_a_full_disk_lose_nothing_acknowledged(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_log_full", []), 100, 60)


@pytest.mark.slow
def test_dozens_of_workloads_with_a_failure_at_every_call_lose_nothing_acknowledged(tmp_path: Path) -> None:
    passes(build(tmp_path, "test_log_errors", []), 100, 40)
