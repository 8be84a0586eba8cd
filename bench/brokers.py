"""Brokers under test: started on a free port of 127.0.0.1 in their own directory, measured, stopped.

Invariant: a process started here is ended here, by its own id, at any end of the run except a SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench.plan import BrokerPlan

START_TIMEOUT_S = 15.0
STOP_TIMEOUT_S = 10.0
POLL_S = 0.002


class BrokerError(Exception):
    """A broker cannot be used; the text gives the reason and the next step."""


def find_program(name: str) -> str:
    """The program beside this interpreter, else the one on PATH; the bare name if there is none."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name) or name


def find_disk() -> Path | None:
    """A directory for temporary files on a disk. On a RAM disk a sync has no cost, so the result is meaningless."""
    for place in (Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()):
        if place.is_dir() and os.access(place, os.W_OK) and _file_system(place) not in ("tmpfs", "ramfs", ""):
            return place
    return None


class Broker:
    """One running broker: `port`, `pid` of the process that listens, `ready_ms`, `rss_ready_bytes`."""

    def __init__(self, plan: BrokerPlan, places: dict[str, str], parent: Path | None = None) -> None:
        self.plan = plan
        self.directory = Path(tempfile.mkdtemp(prefix=f"bench-{plan.name}-", dir=parent))
        self.log_path = self.directory / "output.log"
        self.port = _free_port()
        self.pid = 0
        self.ready_ms = 0.0
        self.rss_ready_bytes = 0
        self._process: subprocess.Popen[bytes] | None = None
        self.metrics_port = _free_port()
        self.reloads = 0
        config = self.directory / f"{plan.name}.{'toml' if plan.protocol.startswith('blipmq') else 'conf'}"
        self._places = {**places, "port": str(self.port), "dir": str(self.directory), "config": str(config)}
        self._places["metrics_port"] = str(self.metrics_port)
        self.configure()
        self.directory.chmod(0o755)  # mosquitto started by root reads its configuration as another user

    def __repr__(self) -> str:
        return f"<Broker {self.plan.name} pid={self.pid} port={self.port} alive={self.alive}>"

    def configure(self, more: str = "") -> None:
        """Write its configuration file, with `more` at the end."""
        text = filled(self.plan.config, self._places) + more
        Path(self._places["config"]).write_text(text, encoding="utf-8")

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self, within_s: float = START_TIMEOUT_S) -> None:
        """Returns once it can be used: the port accepts, and Redis, which listens while it loads, answers.

        Raises BrokerError with the end of the broker's output after the time limit.
        """
        command = [filled(word, self._places) for word in self.plan.command]
        begin = time.monotonic()
        with self.log_path.open("wb") as log:
            try:
                self._process = subprocess.Popen(
                    command, cwd=self.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )
            except OSError as error:
                raise BrokerError(f"{self.plan.name}: cannot run {command[0]}: {error.strerror}") from None
        usable = _answers if self.plan.protocol in ("redis", "xadd") else _accepts
        while not usable(self.port):
            if not self.alive:
                raise BrokerError(f"{self.plan.name} ended with code {self._process.returncode}: {self.last_words()}")
            if time.monotonic() - begin > within_s:
                raise BrokerError(f"{self.plan.name} does not listen after {within_s:.0f} s: {self.last_words()}")
            time.sleep(POLL_S)
        self.ready_ms = (time.monotonic() - begin) * 1000
        self.pid = _listener(self.port, self._process.pid)
        time.sleep(0.05)  # its work after the first accept does not belong to the load
        self.rss_ready_bytes = self.rss_bytes()

    def rss_bytes(self) -> int:
        """Resident memory in bytes; 0 if the broker has ended."""
        return _rss_bytes(self.pid)

    def kill(self) -> None:
        """Ends the broker with SIGKILL. Its store stays, and start() starts it again."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def last_words(self) -> str:
        """The last lines of the broker's output, as one."""
        with contextlib.suppress(OSError):
            lines = self.log_path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            return " / ".join(lines[-5:]) or "it said nothing"
        return "its output could not be read"

    def stop(self) -> None:
        if self._process is not None and self.alive:
            self._process.terminate()
            try:
                self._process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


@contextlib.contextmanager
def running(plan: BrokerPlan, places: dict[str, str], parent: Path | None = None) -> Iterator[Broker]:
    """Its directory is in `parent`, else in the directory for temporary files."""
    broker = Broker(plan, places, parent)
    try:
        broker.start()
        yield broker
    finally:
        broker.stop()


def filled(text: str, places: dict[str, str]) -> str:
    """Replaces `{name}` for the names in places. Other braces stay, because configurations contain braces."""
    for name, value in places.items():
        text = text.replace("{" + name + "}", value)
    return text


def missing(plan: BrokerPlan, places: dict[str, str]) -> bool:
    """Whether the broker's program is not on this machine."""
    return shutil.which(filled(plan.command[0], places)) is None


def version_of(plan: BrokerPlan, places: dict[str, str]) -> str:
    """The first line of the output of the broker's version command; empty if it has none."""
    if not plan.version:
        return ""
    command = [filled(word, places) for word in plan.version]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"
    lines = (shown.stdout or shown.stderr).strip().splitlines()
    return " ".join(lines[0].split()[:4]) if lines else "unknown"


def _file_system(place: Path) -> str:
    """The type of the file system that holds the directory: the longest mount point above it. Empty if unknown."""
    best, kind = -1, ""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines():
            mount, found = line.split()[1:3]
            if len(mount) >= best and place.resolve().is_relative_to(mount):
                best, kind = len(mount), found
    return kind


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


def _answers(port: int) -> bool:
    """Whether Redis answers PING; it answers LOADING until it has read its file."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64).startswith(b"+PONG")
    except OSError:
        return False


def _listener(port: int, started: int) -> int:
    """The process that listens on port, `started` or one of its children, because a shell around a broker uses no CPU."""
    inode = ""
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
            inode = fields[9]
    for pid in [started, *_descendants(started)]:
        with contextlib.suppress(OSError):
            for entry in os.scandir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(entry.path) == f"socket:[{inode}]":
                        return pid
    return started


def _descendants(pid: int) -> list[int]:
    found = []
    with contextlib.suppress(OSError):
        for task in os.listdir(f"/proc/{pid}/task"):
            for child in Path(f"/proc/{pid}/task/{task}/children").read_text(encoding="ascii").split():
                found += [int(child), *_descendants(int(child))]
    return found


def _rss_bytes(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
