"""A device probes its broker, a real one, and marks its slot good or abandons it."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from device_folder import DeviceFolder

from blipmq.config import reader as config_reader
from blipmq.device import broker_probe, health, selftest
from blipmq.device.commands import main
from blipmq.device.result import Result
from blipmq.device.system import CommandResult
from blipmq.errors import BlipMQError, Unreachable

ROLLBACK = Path(__file__).resolve().parent.parent / "images/root/usr/lib/blipmq-device/rollback"
TROUBLE = "the data partition cannot be written to, or was missing when the settings were applied"
GOOD_SLOT = "boot/blipmq/system/good-slot"


@pytest.fixture
def device(tmp_path):
    device = DeviceFolder(tmp_path / "device")
    Result(has_data=True).write(device.paths)
    return device


def settings_for(broker, log=True):
    return {
        "server": {"bind_addr": broker.address},
        "metrics": {"bind_addr": ""},
        "wal": {"enabled": log, "directory": str(broker.config.parent / "wal")},
    }


def run_with(device, broker, log=True):
    """The output of `apply` for a broker with the address of this one."""
    lines = [f"[server]\nbind_addr = {json.dumps(broker.address)}\n[wal]\nenabled = {json.dumps(log)}\n"]
    device.put("run/blipmq/blipmq.toml", "".join(lines))


def counts(broker):
    with broker_client(broker) as client:
        return client.info()["messages"]["published"]


def broker_client(broker):
    from blipmq import connect_blocking

    return connect_blocking(broker.address)


# ---- probe ----


@pytest.mark.parametrize(("log", "published"), [(True, 2), (False, 1)])
def test_the_probe_sends_a_message_and_with_a_wal_a_qos_1_message(start_broker, tmp_path, log, published):
    broker = start_broker({"wal.enabled": log, "wal.directory": str(tmp_path / "wal")})
    selftest.run(config_reader.from_dict(settings_for(broker, log)))
    assert counts(broker) == published


def test_the_probe_fails_without_a_listener_or_without_required_qos_1(start_broker, tmp_path):
    broker = start_broker({"wal.enabled": False})
    selftest.run(config_reader.from_dict(settings_for(broker)), qos1=False)
    with pytest.raises(BlipMQError):
        selftest.run(config_reader.from_dict(settings_for(broker)))
    broker.stop()
    with pytest.raises(Unreachable):
        selftest.run(config_reader.from_dict(settings_for(broker)))
    with pytest.raises(BlipMQError, match=r"server\.bind_addr is empty"):
        selftest.run(config_reader.from_dict({"server": {"bind_addr": ""}}))


def test_the_probe_reaches_a_wildcard_listener_over_loopback():
    assert [selftest.address_of(addr) for addr in ("[::]:7878", "0.0.0.0:1", "10.0.0.1:5")] == [
        "[::1]:7878",
        "127.0.0.1:1",
        "10.0.0.1:5",
    ]


def test_the_command_reports_the_probe_result(start_broker, device, tmp_path, capsys):
    broker = start_broker({"wal.directory": str(tmp_path / "wal")})
    run_with(device, broker)
    assert main(["--root", str(device.folder), "selftest"]) == 0 and capsys.readouterr().out == "passed\n"
    broker.stop()
    assert main(["--root", str(device.folder), "selftest"]) == 1 and "Cannot reach a broker" in capsys.readouterr().err


def test_the_health_of_the_broker_is_requested(start_broker, tmp_path):
    broker = start_broker({"metrics.bind_addr": "127.0.0.1:0"})
    metrics = broker.wait_for("metrics")["address"]
    said = broker_probe.ask(metrics, broker.address)
    assert (said.status, said.reasons) == ("ok", ()) and said.version
    assert broker_probe.ask("", broker.address).status == "ok"
    broker.stop()
    assert broker_probe.ask(metrics, broker.address).status == "silent"
    assert broker_probe.ask("", broker.address).status == "silent"


# ---- marking a slot good ----


class Waiting:
    """Time that passes only by waiting; `then` is called at the n-th wait."""

    def __init__(self, **then):
        self.time = 0.0
        self.waits = 0
        self.then = then

    def clock(self):
        return self.time

    def sleep(self, seconds):
        self.time += seconds
        self.waits += 1
        assert self.waits < 10_000
        action = self.then.get(f"at{self.waits}")
        if action:
            action()


def become_healthy(device, waiting=None, patience_s=60.0):
    waiting = waiting or Waiting()
    return health.become_healthy(device.paths, device.system, patience_s, waiting.clock, waiting.sleep)


@pytest.fixture
def passing(monkeypatch):
    """A probe that records its calls; it raises the errors in `fails`, once each."""
    runs = []
    runs_fail = []

    def run(config, api_key, qos1):
        runs.append((api_key, qos1))
        if runs_fail:
            raise runs_fail.pop(0)

    monkeypatch.setattr(selftest, "run", run)
    run.runs, run.fails = runs, runs_fail
    return run


def test_a_slot_is_marked_good_after_a_message_went_through_its_broker(start_broker, device, tmp_path):
    broker = start_broker({"wal.directory": str(tmp_path / "wal")})
    run_with(device, broker)
    assert become_healthy(device) == ""
    assert device.system.commands == ["rauc status mark-good"] and device.read(GOOD_SLOT) == "A 2.0.1\n"
    assert counts(broker) == 2


def test_the_health_check_waits_for_the_broker(device, passing):
    waiting = Waiting(at3=lambda: device.put("run/blipmq/blipmq.toml", ""))
    passing.fails += [Unreachable("not yet"), Unreachable("not yet")]
    assert become_healthy(device, waiting) == "" and waiting.waits == 5


def test_a_broker_that_never_passes_leaves_the_slot_unmarked_with_a_reason(device, passing):
    device.put("run/blipmq/blipmq.toml", "")
    passing.fails += [Unreachable("nothing\nlistens")] * 1000
    assert become_healthy(device) == "nothing listens"
    assert device.system.commands == [] and not device.has(GOOD_SLOT)
    assert json.loads(device.read("run/blipmq-device/health.json")) == {"why": "nothing listens"}


def test_a_trial_slot_must_write_to_the_data_partition_and_a_good_slot_need_not(device, passing):
    device.put("run/blipmq/blipmq.toml", "")
    device.mount(data="ro")
    assert become_healthy(device) == TROUBLE and passing.runs == []
    device.put(GOOD_SLOT, "A 2.0.1\n")
    assert become_healthy(device) == "" and passing.runs == [("", False)]


def test_a_late_data_partition_keeps_the_slot_on_trial(device, passing):
    device.put("run/blipmq/blipmq.toml", "")
    Result(has_data=False).write(device.paths)
    assert become_healthy(device) == TROUBLE


@pytest.mark.parametrize("good", ["A 2.0.0\n", "B 2.0.1\n", "", "x"])
def test_another_version_or_slot_is_on_trial(device, passing, good):
    device.put("run/blipmq/blipmq.toml", "")
    device.put(GOOD_SLOT, good)
    device.put("data/device/own-key", "bq_own\n")
    assert become_healthy(device) == "" and passing.runs == [("bq_own", None)] and device.read(GOOD_SLOT) == "A 2.0.1\n"


def test_a_boot_loader_error_keeps_the_slot_on_trial(device, passing):
    device.put("run/blipmq/blipmq.toml", "")
    device.system.answers["rauc"] = CommandResult(1, "no bus\n")
    assert become_healthy(device) == "the slot could not be marked good: no bus" and not device.has(GOOD_SLOT)


def test_a_system_without_slots_marks_nothing(device, passing):
    device.put("run/blipmq/blipmq.toml", "")
    device.put("proc/cmdline", "quiet")
    assert become_healthy(device) == "" and device.system.commands == []


# ---- abandoning a slot ----


def rollback(device, tmp_path, rauc_status=0):
    """The actions of the unit's script: its output and its commands."""
    tools = tmp_path / "tools"
    tools.mkdir(exist_ok=True)
    for name, status in (("systemctl", 0), ("rauc", rauc_status)):
        (tools / name).write_text(f'#!/bin/sh\necho "RAN {name} $*"\nexit {status}\n')
        (tools / name).chmod(0o755)
    done = subprocess.run(
        ["sh", str(ROLLBACK)],
        env={"PATH": f"{tools}:{os.environ['PATH']}", "BLIPMQ_ROOT": str(device.folder)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0 and done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("good", [None, "B 2.0.0\n", "A 2.0.0\n", "B 2.0.1\n"])
def test_a_slot_that_was_never_good_is_abandoned(device, tmp_path, good):
    if good:
        device.put(GOOD_SLOT, good)
    assert rollback(device, tmp_path).endswith("RAN rauc status mark-bad booted\nRAN systemctl reboot\n")


def test_a_slot_is_abandoned_even_if_it_cannot_be_marked_bad(device, tmp_path):
    said = rollback(device, tmp_path, rauc_status=1)
    assert "could not be marked bad" in said and said.endswith("RAN systemctl reboot\n")


def test_a_previously_good_slot_is_kept(device, tmp_path, passing):
    device.put("run/blipmq/blipmq.toml", "")
    become_healthy(device)
    assert "was good before and stays" in rollback(device, tmp_path) and "RAN" not in rollback(device, tmp_path)


def test_without_slots_no_slot_is_abandoned(device, tmp_path):
    device.put("proc/cmdline", "quiet")
    assert "nothing to go back to" in rollback(device, tmp_path)
