"""The number of sync calls of a process, counted by the kernel.

Invariant: a count is complete or absent: there is none without `perf`, or without the right to use it.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

CALLS = ("fsync", "fdatasync", "sync_file_range", "msync")
ATTACH_TIMEOUT_S = 5.0
ATTACHED = "Events enabled"


class SyncCount:
    """`calls` is set after the counting has ended; None if counting was impossible."""

    def __init__(self) -> None:
        self.calls: int | None = None


@contextlib.contextmanager
def counting(pid: int) -> Iterator[SyncCount]:
    """Counts the calls of all threads of the process, including threads started meanwhile."""
    count = SyncCount()
    if shutil.which("perf") is None:
        yield count
        return
    events = ",".join(f"syscalls:sys_enter_{call}" for call in CALLS)
    # With a delay perf prints a line when it begins, so that no call runs before it.
    command = ["perf", "stat", "-x", ",", "-D", "1", "-e", events, "-p", str(pid)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    try:
        attached = _wait_attached(process)
        yield count
    finally:
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    if attached:
        count.calls = _sum_of(said)


def _wait_attached(process: subprocess.Popen[str]) -> bool:
    """Waits for the line that perf prints when it begins; perf ends if it cannot count."""
    assert process.stderr is not None
    deadline = time.monotonic() + ATTACH_TIMEOUT_S
    while time.monotonic() < deadline:
        line = process.stderr.readline()
        if ATTACHED in line:
            return True
        if not line:
            return False
    return False


def _sum_of(said: str) -> int | None:
    """Sum of the counts in perf's table (count,unit,event,...); None if one of them is missing."""
    counts = [line.split(",")[0] for line in said.splitlines() if "syscalls:sys_enter_" in line]
    if len(counts) != len(CALLS) or not all(count.isdigit() for count in counts):
        print("bench: perf counted no syncs: " + " / ".join(said.split("\n"))[:200], file=sys.stderr)
        return None
    return sum(map(int, counts))
