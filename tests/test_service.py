"""The broker as a systemd service: its notifications to a service manager simulated by the test, and its unit."""

import contextlib
import ctypes
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from blipmq.service.sd_notify import Notifier

ROOT = Path(__file__).resolve().parent.parent
UNIT = ROOT / "packaging" / "deb" / "blipmq.service"
TIMEOUT_S = 60
WATCHDOG_S = 0.3
# Eight watchdog queries fit in this time while the broker works; none is answered while one of its threads is stopped.
SILENCE_S = 8 * WATCHDOG_S / 3
EXPOSURE_MAX = 1.5
PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000


class Manager:
    """The receiving end of $NOTIFY_SOCKET: each datagram as {name: value}."""

    def __init__(self, path):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(path))
        self.told = []

    def next(self, timeout_s=TIMEOUT_S):
        self.socket.settimeout(timeout_s)
        text = self.socket.recv(4096).decode()
        self.told.append(dict(line.split("=", 1) for line in text.split("\n")))
        return self.told[-1]

    def until(self, name):
        """The next datagram with that name."""
        while name not in self.next():
            pass
        return self.told[-1]

    def count(self, name, seconds):
        """The number of datagrams with that name until none arrives for `seconds`."""
        before = len(self.told)
        with contextlib.suppress(TimeoutError, socket.timeout):
            while True:
                self.next(seconds)
        return sum(name in told for told in self.told[before:])


@pytest.fixture
def manager(tmp_path):
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.socket.close()


@pytest.fixture
def service(tmp_path, manager):
    """`blipmq start` as the service manager starts it."""
    (tmp_path / "blipmq.toml").write_text('[metrics]\nbind_addr = ""\n')
    environment = {name: value for name, value in os.environ.items() if not name.startswith("BLIPMQ_")} | {
        "PYTHONPATH": str(ROOT),
        "BLIPMQ_SERVER__BIND_ADDR": "127.0.0.1:0",
        "NOTIFY_SOCKET": str(tmp_path / "notify"),
        "WATCHDOG_USEC": str(int(WATCHDOG_S * 1_000_000)),
    }
    child = subprocess.Popen(
        [sys.executable, "-m", "blipmq", "start", "--config", "blipmq.toml"],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.DEVNULL,
    )
    yield child
    child.kill()
    child.wait(TIMEOUT_S)


def test_ready_is_sent_only_once_the_broker_serves(manager, service):
    first = manager.next()
    assert "READY" not in first and int(first["EXTEND_TIMEOUT_USEC"]) > 0
    host, port = manager.until("READY")["STATUS"].removeprefix("serving ").rsplit(":", 1)
    socket.create_connection((host, int(port)), TIMEOUT_S).close()


def test_a_working_broker_notifies_the_watchdog_repeatedly(manager, service):
    manager.until("READY")
    for _ in range(5):
        assert manager.until("WATCHDOG")["WATCHDOG"] == "1"


@contextlib.contextmanager
def standing_still(thread):
    """Stop one thread of another process, as a debugger does."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long] * 4
    libc.ptrace.restype = ctypes.c_long
    assert libc.ptrace(PTRACE_SEIZE, thread, 0, 0) == 0, os.strerror(ctypes.get_errno())
    assert libc.ptrace(PTRACE_INTERRUPT, thread, 0, 0) == 0, os.strerror(ctypes.get_errno())
    os.waitpid(thread, WALL)
    yield
    assert libc.ptrace(PTRACE_DETACH, thread, 0, 0) == 0, os.strerror(ctypes.get_errno())


def core_thread(pid):
    """The I/O thread of the core, by its thread name."""
    names = {int(task.name): (task / "comm").read_text().strip() for task in Path(f"/proc/{pid}/task").iterdir()}
    found = [thread for thread, name in names.items() if name == "bq-io"]
    assert len(found) == 1, names
    return found[0]


@pytest.mark.parametrize("which", ["the core's I/O thread", "the event loop"])
def test_watchdog_notifications_stop_while_a_thread_hangs_and_resume_afterwards(manager, service, which):
    manager.until("READY")
    manager.until("WATCHDOG")
    thread = service.pid if which == "the event loop" else core_thread(service.pid)
    with standing_still(thread):
        # One answer may have been in transit; a second query is sent only after the first is answered.
        assert manager.count("WATCHDOG", SILENCE_S) <= 1
    manager.until("WATCHDOG")


def test_reload_begin_and_end_are_notified_with_the_reason_of_a_failure(manager, service, tmp_path):
    manager.until("READY")
    service.send_signal(signal.SIGHUP)
    assert int(manager.until("RELOADING")["MONOTONIC_USEC"]) > 0
    assert manager.until("READY")["STATUS"] == "reloaded"
    (tmp_path / "blipmq.toml").write_text("[server]\nmax_conections = 5\n")
    service.send_signal(signal.SIGHUP)
    manager.until("RELOADING")
    status = manager.until("READY")["STATUS"]
    assert status.startswith("reload failed") and "did you mean server.max_connections?" in status


def test_sigterm_notifies_stopping_and_the_maximum_duration(manager, service):
    manager.until("READY")
    service.send_signal(signal.SIGTERM)
    told = manager.until("STOPPING")
    assert int(told["EXTEND_TIMEOUT_USEC"]) > 5_000_000  # limits.shutdown_timeout_ms is 5000
    assert service.wait(TIMEOUT_S) == 0
    assert manager.count("READY", 0.01) == 0


# ---- the datagrams


def test_without_a_service_manager_nothing_is_sent_and_nothing_fails():
    for environ in ({}, {"NOTIFY_SOCKET": ""}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "vsock:2:1"}):
        notifier = Notifier(environ)
        notifier.ready("serving")
        notifier.well("serving")
        notifier.close()
        notifier.close()
    assert not Notifier({})


def test_a_status_is_one_line_and_sent_once(manager, tmp_path):
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    notifier.well("degraded: a\nREADY=1\n" + "é" * 1000)
    assert manager.next() == {"WATCHDOG": "1", "STATUS": "degraded: a READY=1 " + "é" * 246}
    notifier.well("degraded: a\nREADY=1\n" + "é" * 1000)
    assert manager.next() == {"WATCHDOG": "1"}
    notifier.close()


def test_a_socket_name_that_starts_with_at_is_abstract():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(f"\0blipmq-test-{os.getpid()}")
        bound.settimeout(TIMEOUT_S)
        notifier = Notifier({"NOTIFY_SOCKET": f"@blipmq-test-{os.getpid()}"})
        notifier.ready("serving")
        assert bound.recv(100) == b"READY=1\nSTATUS=serving"
        notifier.close()


def test_a_watchdog_of_another_process_is_ignored():
    assert Notifier({"WATCHDOG_USEC": "3000000"}).watchdog_s == 3
    assert Notifier({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}).watchdog_s == 3
    assert Notifier({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}).watchdog_s == 0
    assert Notifier({"WATCHDOG_USEC": "-3"}).watchdog_s == 0


# ---- the unit


@pytest.fixture(scope="session")
def systemd_analyze():
    """The tool, installed from Debian if missing: `packaging/setup.sh systemd`."""
    subprocess.run([ROOT / "packaging" / "setup.sh", "systemd"], check=True, timeout=600)
    return shutil.which("systemd-analyze")


def exposure(tool, unit):
    text = subprocess.run(
        [tool, "security", "--offline=true", "--no-pager", unit], capture_output=True, text=True, timeout=TIMEOUT_S
    ).stdout
    return float(re.search(r"Overall exposure level for \S+: (\d+\.\d+)", text).group(1))


def test_the_unit_has_low_exposure_and_the_check_detects_higher_exposure(systemd_analyze, tmp_path):
    assert exposure(systemd_analyze, UNIT) <= EXPOSURE_MAX
    softer = tmp_path / UNIT.name
    softer.write_text(re.sub(r"^(Protect|Private|SystemCall)\w+=.*\n", "", UNIT.read_text(), flags=re.MULTILINE))
    assert exposure(systemd_analyze, softer) > EXPOSURE_MAX


def test_systemd_reports_no_problem_in_the_unit(systemd_analyze, tmp_path):
    program = tmp_path / "blipmq"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/usr/bin/blipmq", str(program)).replace("man:blipmq(1)", "https://a.b"))
    done = subprocess.run([systemd_analyze, "verify", unit], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert UNIT.name not in done.stderr
    unit.write_text(unit.read_text().replace("WatchdogSec=30", "WatchdogSec=often"))
    done = subprocess.run([systemd_analyze, "verify", unit], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert UNIT.name in done.stderr and "often" in done.stderr


def test_the_reload_command_of_the_unit_needs_only_a_shell(start_broker):
    broker = start_broker()
    (line,) = re.findall(r"^ExecReload=(.*)$", UNIT.read_text(), re.MULTILINE)
    command = [word.replace("$$", "$") for word in shlex.split(line)]  # as systemd does
    subprocess.run(command, check=True, timeout=TIMEOUT_S, env={"MAINPID": str(broker.pid), "PATH": "/nowhere"})
    broker.wait_for("reloaded")


def test_the_unit_declares_the_requirements_of_the_broker():
    lines = UNIT.read_text().splitlines()
    for line in (
        "Type=notify",
        "User=blipmq",
        "ProtectSystem=strict",
        "StateDirectory=blipmq",
        "WorkingDirectory=/var/lib/blipmq",
        "ExecReload=/bin/sh -c 'kill -HUP $$MAINPID'",
        "LimitNOFILE=131072",
    ):
        assert line in lines
    assert any(re.fullmatch(r"WatchdogSec=\d+", line) for line in lines)
