"""Runs the scripts, several at a time, each in a directory and on ports of its own and with a time limit.

Invariant: every process of a script ends with it, because it runs in a session of its own that is killed as a whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from conformance.exceptions import Exceptions

SCRIPT = Path(__file__).with_name("script.py")
LIMIT_S = 240.0
PORTS = 4  # most of one script
# Below the ports that systems give to clients.
LOWEST, HIGHEST = 12000, 30000
PASSED, FAILED, EXCEPTED, PENDING = "passed", "failed", "excepted", "pending"


@dataclass
class Result:
    """`verdict` PASSED, FAILED, EXCEPTED or PENDING; `wrong`: an error of the whole run, with the reason in `why`."""

    name: str
    verdict: str
    wrong: bool
    why: str
    seconds: float
    output: str


def run_all(
    names: dict[str, int],
    source: Path,
    broker: str,
    work: Path,
    exceptions: Exceptions,
    jobs: int,
    told: Callable[[Result], None],
) -> list[Result]:
    """`broker`: text of the executable that stands at src/mosquitto. `told` gets each result when it is there."""
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    for name in names:
        waiting.put(name)
    results: list[Result] = []
    lock = threading.Lock()

    def worker() -> None:
        while True:
            try:
                name = waiting.get_nowait()
            except queue.Empty:
                return
            with _ports(names[name]) as ports:
                result = run_one(name, ports, source, broker, work / name, exceptions)
            with lock:
                results.append(result)
                told(result)

    threads = [threading.Thread(target=worker) for _ in range(max(1, min(jobs, len(names))))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(results, key=lambda result: result.name)


def run_one(name: str, ports: list[int], source: Path, broker: str, place: Path, exceptions: Exceptions) -> Result:
    """One script, and its verdict."""
    directory = _prepare(source, broker, place, name)
    differences = exceptions.differences.get(name, [])
    environment = {
        **os.environ,
        "CONFORMANCE_WITHOUT_CAPABILITIES": "1" if exceptions.pending else "",
        "CONFORMANCE_DIFFERENCES": json.dumps(differences),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [sys.executable, "-W", "ignore", str(SCRIPT), f"./{name}.py", *map(str, ports)]
    begin = time.monotonic()
    log = place / "output"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        late = False
        try:
            process.wait(LIMIT_S)
        except subprocess.TimeoutExpired:
            late = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    seconds = time.monotonic() - begin
    text = log.read_text(encoding="utf-8", errors="replace")
    unused = [line.removeprefix("UNUSED ") for line in text.splitlines() if line.startswith("UNUSED ")]
    why = f"still running after {LIMIT_S:.0f} s" if late else f"exit status {process.returncode}"
    return judged(name, not late and process.returncode == 0, unused, why, seconds, text, exceptions)


def judged(
    name: str, passed: bool, unused: list[str], why: str, seconds: float, output: str, exceptions: Exceptions
) -> Result:
    """The verdict: an exception that is not needed is an error, as a failure without one is."""
    if name in exceptions.scripts:
        if passed:
            return Result(name, PASSED, True, "passes although it is an exception", seconds, output)
        return Result(name, EXCEPTED, False, exceptions.scripts[name].why, seconds, output)
    if name in exceptions.pending:
        why = f"passes and is pending: {exceptions.pending[name]}" if passed else ""
        return Result(name, PENDING, False, why, seconds, output)
    if not passed:
        return Result(name, FAILED, True, why, seconds, output)
    if unused:
        return Result(name, PASSED, True, f"does not need the accepted difference {unused[0]}", seconds, output)
    return Result(name, PASSED, False, "", seconds, output)


def _prepare(source: Path, broker: str, place: Path, name: str) -> Path:
    """A tree like mosquitto's with the broker in its place. Scripts write their files into it."""
    shutil.rmtree(place, ignore_errors=True)
    directory = place / "test" / "broker"
    directory.mkdir(parents=True)
    for path in (source / "test" / "broker").iterdir():
        # Scripts find their helper modules by the real path of the script. Data files belong to one script each.
        if path.suffix != ".conf":
            (directory / path.name).symlink_to(path)
    for path in (source / "test").iterdir():
        if path.name != "broker":
            (place / "test" / path.name).symlink_to(path)
    plugins = place / "plugins" / "dynamic-security"
    plugins.mkdir(parents=True)
    for found in Path("/usr/lib").glob("*/mosquitto_dynamic_security.so"):
        (plugins / found.name).symlink_to(found)
    executable = place / "src" / "mosquitto"
    executable.parent.mkdir()
    executable.write_text(broker, encoding="utf-8")
    executable.chmod(0o755)
    return directory


_TAKEN: set[int] = set()
_TAKEN_LOCK = threading.Lock()


@contextlib.contextmanager
def _ports(count: int) -> Iterator[list[int]]:
    """Ports that follow each other and are free, as the scripts expect them."""
    with _TAKEN_LOCK:
        while True:
            first = random.randrange(LOWEST, HIGHEST, PORTS)
            found = list(range(first, first + count))
            if first not in _TAKEN and all(map(_free, found)):
                break
        _TAKEN.add(first)
    try:
        yield found
    finally:
        with _TAKEN_LOCK:
            _TAKEN.discard(first)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
