"""Shared parts of the hardware tests: one device at a time, its keys and settings, and the final report.

Invariant: at most one guest runs at any time, and none after the run.
"""

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TOP = HERE.parent
sys.path[:0] = [str(HERE), str(TOP / "tests")]
os.environ["PATH"] += ":/usr/sbin:/sbin"  # Debian keeps sfdisk and debugfs there; they need no root

from board import Board  # noqa: E402
from disk import Image  # noqa: E402
from guest import Guest  # noqa: E402
from machines import MACHINES  # noqa: E402
from report import Report  # noqa: E402

WORK = TOP / "build" / "hardware-tests"
REPORT = WORK / "report.md"
TOOLS = (
    "qemu-system-x86_64", "qemu-system-aarch64", "qemu-img", "mcopy", "mtype", "mdel", "sfdisk", "debugfs", "setpriv", "ssh",
    "ssh-keygen", "rauc", "unsquashfs", "mksquashfs", "openssl", "cc",
)  # fmt: skip
# Only this machine can reach a guest.
OPEN_BROKER = b"[auth]\nallow_anonymous = true\n"


def pytest_addoption(parser):
    group = parser.getgroup("hardware")
    group.addoption("--target", metavar="HOST", help="test the real device at this address instead of guests of QEMU")
    group.addoption(
        "--key-file", metavar="F", help="with --target: the private key whose public half is in its device.toml"
    )
    group.addoption(
        "--image", metavar="NAME=FILE", action="append", default=[], help="boot FILE as image NAME (generic-x64)"
    )
    group.addoption(
        "--machine", action="append", choices=sorted(MACHINES), help="only on this machine; may be repeated"
    )
    group.addoption(
        "--cuts", type=int, default=0, metavar="N", help="of the long storm (else 50, on arm64 10) and the control (4)"
    )


def pytest_configure(config):
    for marker in (
        "on(*machines): the machines of machines.py it runs on under QEMU; x64 if it does not say",
        "qemu(reason): cannot run on a real device, and why",
        "board(reason): needs a real device, and why",
        "long: takes minutes; run by `make hardware-test-all` only",
    ):
        config.addinivalue_line("markers", marker)
    target, key = config.getoption("--target"), config.getoption("--key-file")
    if bool(target) != bool(key):
        raise pytest.UsageError("--target HOST and --key-file F go together: the tests look inside through SSH")
    if key and not Path(key).is_file():
        raise pytest.UsageError(f"--key-file {key}: there is no such file")
    missing = [tool for tool in TOOLS if not shutil.which(tool)] if not target else []
    if missing:
        raise pytest.UsageError(f"{', '.join(missing)}: not installed; packaging/setup.sh hardware brings them")
    config.report = Report(f"BlipMQ on the device at {target}" if target else "BlipMQ's images under QEMU")
    config.pluginmanager.register(Reporter(config.report))


# ---- the report ------------------------------------------------------------------------------------------------------


class Reporter:
    def __init__(self, report):
        self.report = report

    def pytest_runtest_logreport(self, report):
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            reason = str(crash.message if crash else report.longrepr).splitlines()[0]
            self.report.note(report.nodeid, "failed", report.duration, reason)
        elif report.when == "call":
            self.report.note(report.nodeid, "passed", report.duration)

    def pytest_terminal_summary(self, terminalreporter):
        text = self.report.text()
        WORK.mkdir(parents=True, exist_ok=True)
        REPORT.write_text(text, encoding="utf-8")
        terminalreporter.write_sep("=", f"report, also in {REPORT.relative_to(TOP)}")
        terminalreporter.write(text)


def pytest_generate_tests(metafunc):
    if "device" not in metafunc.fixturenames:
        return
    marker = metafunc.definition.get_closest_marker("on")
    names = ["board"] if metafunc.config.getoption("--target") else (marker.args if marker else ("x64",))
    metafunc.parametrize("device", names, indirect=True, scope="session")


def pytest_collection_modifyitems(config, items):
    """Tests that cannot run are listed in the report with a reason."""
    kept, left = [], []
    for item in items:
        reason = reason_to_leave_out(config, item)
        if reason:
            config.report.note(item.nodeid, "left out", reason=reason)
        (left if reason else kept).append(item)
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = kept


def reason_to_leave_out(config, item):
    marker = item.get_closest_marker("qemu" if config.getoption("--target") else "board")
    if marker:
        return marker.args[0]
    chosen = config.getoption("--machine")
    if chosen and not config.getoption("--target"):
        call = getattr(item, "callspec", None)
        names = {str(value) for value in call.params.values()} & set(MACHINES) if call else {"x64"}
        if not names & set(chosen):
            return f"--machine {' '.join(chosen)}"
    return ""


# ---- devices ---------------------------------------------------------------------------------------------------------


def find_image(name, chosen):
    """The image file to flash: given with --image, else the output of `make image-NAME`."""
    if name in chosen:
        return Path(chosen[name])
    dist = Path(os.environ.get("BLIPMQ_DIST", TOP / "dist"))
    found = sorted([*dist.rglob(f"blipmq*{name}*.img.xz"), *dist.rglob(f"blipmq*{name}*.img")])
    assert found, f"there is no image of {name} in {dist}: make image-{name}"
    return found[-1]


class Lab:
    """The devices of a run."""

    def __init__(self, config):
        self.target, self.report = config.getoption("--target"), config.report
        self.images = dict(choice.split("=", 1) for choice in config.getoption("--image"))
        self.opened, self.shared, self.guests, self.made = {}, {}, [], 0
        WORK.parent.mkdir(exist_ok=True)
        self.lock = WORK.with_suffix(".lock").open("w")
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.lock.close()
            raise AssertionError(
                f"other hardware tests run in {WORK}; wait for them, or work in another tree"
            ) from None
        shutil.rmtree(WORK, ignore_errors=True)
        WORK.mkdir()
        if self.target:
            self.board = Board(self.target, Path(config.getoption("--key-file")).resolve())
            status = self.board.status()
            facts = (f"{name}: {status[name]}" for name in ("Name", "Address", "Version", "Profile") if name in status)
            self.report.subject += facts
        else:
            self.key = WORK / "key"
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "tests", "-f", self.key], check=True)

    def image(self, name):
        if name not in self.opened:
            path = find_image(name, self.images)
            self.opened[name] = Image(path)
            size = path.stat().st_size
            self.report.subject.append(f"{path.name}, {size / 1e6:.1f} MB, changed {time.ctime(path.stat().st_mtime)}")
        return self.opened[name]

    def switch_all_off(self):
        for guest in self.guests:
            guest.cut_power()

    def guest(self, name, files=None, with_key=True, **options):
        """A guest with its own medium, powered off. `files`: added to, or replacing, the files that give the tests
        access; None for a file keeps the one of the image."""
        self.switch_all_off()
        machine = MACHINES[name]
        self.made += 1
        folder = WORK / f"{self.made}-{name}"
        folder.mkdir()
        login = f'[ssh]\nauthorized_keys = ["{self.key.with_suffix(".pub").read_text().strip()}"]\n'.encode()
        usual = {"blipmq.toml": OPEN_BROKER, **({"device.toml": login} if with_key else {})}
        guest = Guest(
            machine, self.image(machine.image), folder, key=self.key if with_key else None,
            files={name: text for name, text in {**usual, **(files or {})}.items() if text is not None}, **options,
        )  # fmt: skip
        guest.login = login
        self.guests.append(guest)
        return guest

    def device(self, name):
        """The device shared by tests that change nothing permanently."""
        if name == "board":
            self.board.wait_until_ready()
            return self.board
        if name not in self.shared:
            self.shared[name] = self.guest(name)
        if self.shared[name].child is None:
            self.switch_all_off()
            self.shared[name].boot()
        return self.shared[name]

    def discard(self, guest):
        guest.close()
        self.guests.remove(guest)

    def close(self):
        for guest in self.guests:
            guest.close()
        self.lock.close()


@pytest.fixture(scope="session")
def lab(pytestconfig):
    lab = Lab(pytestconfig)
    try:
        yield lab
    finally:
        lab.close()


@pytest.fixture
def device(request, lab):
    """A shared device, on and ready: a guest of each machine that the test names, or the real device."""
    return lab.device(request.param)


@pytest.fixture
def board(lab):
    """The real device, for tests that change its settings; they are restored afterwards."""
    yield lab.device("board")
    lab.board.restore()


@pytest.fixture
def own_device(lab):
    """A device that the test may configure and restart: a guest with its own medium, or the real device, whose settings
    are restored afterwards."""
    if lab.target:
        yield lab.device("board")
        lab.board.restore()
    else:
        guest = lab.guest("x64")
        guest.boot()
        yield guest
        lab.discard(guest)


@pytest.fixture
def new_guest(lab):
    """Make guests with their own media: `new_guest(machine, **options)`. They are powered off at first."""
    made = []

    def make(name="x64", **options):
        made.append(lab.guest(name, **options))
        return made[-1]

    yield make
    for guest in made:
        lab.discard(guest)


@pytest.fixture
def figure(request):
    """Add a value to the report: `figure(what, value, unit)`."""
    return request.config.report.figure
