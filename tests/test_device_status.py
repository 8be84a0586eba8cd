"""Status of a device: the status file, the consoles, the LED; its clock and its factory reset."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from device_folder import BUILT, NOW, DeviceFolder

from blipmq.device import clock, console, led, report, reset
from blipmq.device.apply import NO_KEY, apply
from blipmq.device.broker_probe import Answer
from blipmq.device.commands import main
from blipmq.device.system import CommandResult, System

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = ROOT / "packaging/freeze/program.py"
STATUS = "boot/blipmq/blipmq-status.txt"
ADDRESSES = [
    {"addr_info": [{"local": "127.0.0.1"}, {"local": "::1"}]},
    {"addr_info": [{"local": "fe80::1"}, {"local": "fd00::7"}, {"local": "192.168.1.20"}]},
]


@pytest.fixture
def device(tmp_path):
    device = DeviceFolder(tmp_path)
    device.system.answers["ip -json"] = CommandResult(0, json.dumps(ADDRESSES))
    return device


@pytest.fixture
def said(monkeypatch):
    """The answer of the broker, which a test can change."""
    answer = [Answer("ok")]
    monkeypatch.setattr(report, "ask", lambda *_: answer[0])
    return answer


def look(device):
    return report.look(device.paths, device.system)


def boot(device):
    return apply(device.paths, device.system, boot=True)


# ---- the status file


def test_a_healthy_device_shows_its_address_and_state(device, said):
    boot(device)
    found = look(device)
    assert (found.state, found.problems, found.notes) == ("ok", (), (NO_KEY,))
    facts = dict(found.facts)
    assert facts["Name"] == "blipmq.local" and facts["Address"] == "192.168.1.20, fd00::7"
    assert facts["Broker"] == "port 7878, reachable from the device itself only, QoS 0 and 1"
    assert facts["Version"].endswith("image 2.0.1, slot A")
    assert "no time server has answered" in dict(found.moving)["Time"]
    device.put("run/systemd/timesync/synchronized", "")
    assert dict(look(device).moving)["Time"].endswith("UTC, from a time server")


def test_the_status_shows_an_invalid_file_with_its_line_and_the_settings_in_effect(device, said):
    device.put("boot/blipmq/device.toml", '\n\nhostnam = "x"\n')
    boot(device)
    found = look(device)
    assert found.state == "degraded"
    assert "- device.toml, line 3: there is no setting hostnam; did you mean hostname?\n" in found.text
    assert dict(found.facts)["device.toml"] == "NOT in effect, see below; the defaults are"
    assert dict(found.facts)["blipmq.toml"] == "none; the defaults are in effect"


@pytest.mark.parametrize(
    ("answer", "running"), [(Answer("silent", ("no answer",)), False), (Answer("degraded", ("the WAL is full",)), True)]
)
def test_the_status_shows_the_reasons_of_the_broker(device, said, answer, running):
    boot(device)
    said[0] = answer
    found = look(device)
    assert found.problems == answer.reasons
    assert dict(found.facts)["Broker"].startswith("NOT running") == (not running)


def test_the_status_reports_a_stopped_broker(device):
    device.put("boot/blipmq/blipmq.toml", '[server]\nbind_addr = "127.0.0.1:1"\n[metrics]\nbind_addr = "127.0.0.1:2"\n')
    boot(device)
    assert "the broker does not answer" in look(device).problems[0]
    device.put("boot/blipmq/blipmq.toml", '[server]\nbind_addr = "127.0.0.1:1"\n[metrics]\nbind_addr = ""\n')
    boot(device)
    assert "the broker does not listen at its address" in look(device).problems[0]


def test_a_saved_file_is_named_as_the_last_good_one(device, said):
    device.put("data/device/device.toml", "hostnam = 1\n")
    boot(device)
    assert look(device).problems[0].startswith("the last good device.toml, line 1: there is no setting")


def test_the_status_says_when_nothing_was_applied_yet(device):
    assert "the settings have not been applied" in look(device).problems[0]


def test_the_status_of_a_missing_address_names_the_cause(device, said):
    for answer in (
        CommandResult(0, "[]"),
        CommandResult(127, ""),
        CommandResult(0, "no JSON"),
        CommandResult(0, '[{"addr_info": [{}]}]'),
    ):
        device.system.answers["ip -json"] = answer
        boot(device)
        assert dict(look(device).facts)["Address"] == "none yet (waiting for a DHCP server); check the cable"


def test_new_keys_are_mentioned_until_their_file_is_deleted(device, said):
    boot(device)
    device.put("boot/blipmq/blipmq-new-keys.txt", "a = b")
    assert "blipmq-new-keys.txt holds new keys" in look(device).notes[-1] and look(device).state == "ok"
    (device.folder / "boot/blipmq/blipmq-new-keys.txt").unlink()
    assert look(device).notes == (NO_KEY,)


def test_a_failed_self_test_makes_a_device_degraded(device, said):
    boot(device)
    device.put("run/blipmq-device/health.json", '{"why": "no message came back"}')
    assert look(device).problems == ("the self-test of the broker failed: no message came back",)
    device.put("run/blipmq-device/health.json", '{"why": ""}')
    assert look(device).problems == ()


def test_a_nearly_full_data_partition_is_reported(device, said, monkeypatch):
    boot(device)
    monkeypatch.setattr(
        report.os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 1 << 20, 20_000, 20_000, 0, 0, 0, 0, 255))
    )
    assert "nearly full" in look(device).problems[0] and dict(look(device).moving)["Disk"] == "78 of 4096 MiB free"


def test_the_status_file_has_windows_line_ends_and_is_written_only_on_changes(device, said):
    boot(device)
    device.system.time = os.stat(device.folder).st_mtime
    assert report.write(device.paths, device.system, look(device))
    raw = (device.folder / STATUS).read_bytes()
    assert raw.count(b"\n") == raw.count(b"\r\n") > 10 and b"State:" in raw
    device.system.time += 3600
    assert not report.write(device.paths, device.system, look(device))
    said[0] = Answer("degraded", ("something",))
    assert report.write(device.paths, device.system, look(device))
    assert not report.write(device.paths, device.system, look(device))
    device.system.time += 86_400 + 3600
    assert report.write(device.paths, device.system, look(device))
    (device.folder / STATUS).unlink()
    assert report.write(device.paths, device.system, look(device))


def test_the_commands_print_their_results(device, capsys):
    root = ["--root", str(device.folder)]
    assert main([*root, "status"]) == 1 and "State:" in capsys.readouterr().out and device.has(STATUS)
    assert main([*root, "banner"]) == 0 and "edit device.toml" in capsys.readouterr().out
    assert main([*root, "refresh"]) == 0 and device.has("run/blipmq-device/banner")
    assert main([*root, "led"]) == 0 and capsys.readouterr().out == "no known LED\n"
    assert main([*root, "factory-reset"]) == 0 and capsys.readouterr().out == "no file requests a reset\n"


def test_consoles_show_the_status_although_the_settings_partition_is_not_writable(device, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(30, os.strerror(30))

    monkeypatch.setattr(report, "write_for_notepad", refuse)
    assert main(["--root", str(device.folder), "refresh"]) == 0 and device.has("run/blipmq-device/banner")
    assert "blipmq-status.txt cannot be written: Read-only file system" in capsys.readouterr().err


# ---- consoles


def test_the_banner_is_written_to_every_console_once_per_change(device, said):
    boot(device)
    device.put("sys/class/tty/console/active", "tty0 ttyAMA0 ttyS9\n")
    for name in ("tty1", "ttyAMA0"):  # ttyS9 does not exist
        device.put(f"dev/{name}", "")
    assert console.show(device.paths, look(device))
    for name in ("tty1", "ttyAMA0"):
        shown = (device.folder / "dev" / name).read_bytes()
        assert b"state    ok\r\n" in shown and b"192.168.1.20" in shown and b"edit device.toml" in shown
    assert not console.show(device.paths, look(device))
    said[0] = Answer("degraded", ("the WAL is full",))
    assert (
        console.show(device.paths, look(device)) and b"- the WAL is full" in (device.folder / "dev/tty1").read_bytes()
    )


# ---- LED ----


def light(device, name="ACT", triggers="none [mmc0] timer heartbeat"):
    folder = f"sys/class/leds/{name}/"
    for file, text in (("brightness", "0"), ("max_brightness", "255"), ("trigger", triggers)):
        device.put(folder + file, text + "\n")
    return folder


def test_the_led_is_steady_when_healthy_and_blinks_otherwise(device):
    folder = light(device)
    assert led.show(device.paths, degraded=False) == "ACT"
    assert (device.read(folder + "trigger"), device.read(folder + "brightness")) == ("none", "255")
    device.put(folder + "trigger", "[none] mmc0 timer heartbeat\n")
    device.put(folder + "delay_on", "500\n")
    led.show(device.paths, degraded=True)
    assert (device.read(folder + "trigger"), device.read(folder + "delay_on")) == ("timer", "250")


def test_a_blinking_led_is_not_set_again_and_without_a_timer_uses_heartbeat(device):
    folder = light(device, triggers="none mmc0 [timer] heartbeat")
    led.show(device.paths, degraded=True)
    assert device.read(folder + "trigger") == "none mmc0 [timer] heartbeat\n"
    device.put(folder + "trigger", "[none] heartbeat\n")
    led.show(device.paths, degraded=True)
    assert device.read(folder + "trigger") == "heartbeat"


def test_a_board_without_an_led_is_not_an_error(device):
    assert led.show(device.paths, degraded=True) == ""


# ---- the clock


def test_a_clock_that_starts_in_1970_is_set_to_the_date_of_the_image(device):
    device.system.time = 0.0
    assert clock.restore(device.paths, device.system) and device.system.time == BUILT
    assert not clock.restore(device.paths, device.system)


def test_a_clock_continues_from_the_last_saved_time(device):
    assert clock.save(device.paths, device.system)
    device.system.time = 0.0
    boot(device)
    assert device.system.time == NOW


def test_a_clock_is_never_set_back(device):
    clock.save(device.paths, device.system)
    device.system.time = NOW + 5.0
    assert not clock.restore(device.paths, device.system) and device.system.time == NOW + 5.0


@pytest.mark.parametrize("saved", ["", "x", "-5", "9" * 30, "99999999999", "1e9", "\x00\x00"])
def test_an_implausible_saved_time_is_ignored(device, saved):
    device.put("data/device/clock", saved)
    device.system.time = 0.0
    clock.restore(device.paths, device.system)
    assert device.system.time == BUILT


def test_a_time_before_the_image_date_is_not_saved(device):
    device.system.time = 1000.0
    assert not clock.save(device.paths, device.system) and not device.has("data/device/clock")


def test_a_clock_error_is_reported_and_settings_are_applied(device):
    def refuse(_):
        raise OSError(1, os.strerror(1))

    device.system.time, device.system.set_time = 0.0, refuse
    assert boot(device).problems == ("the clock could not be set: Operation not permitted",)
    assert device.has("run/blipmq/blipmq.toml")


def test_the_command_saves_the_time(device):
    os.utime(device.folder / "usr/lib/clock-epoch", (1.0, 1.0))
    assert (
        main(["--root", str(device.folder), "time-floor", "save"]) == 0
        and int(device.read("data/device/clock")) > BUILT
    )
    assert main(["--root", str(device.folder), "time-floor", "restore"]) == 0


# ---- factory reset


def ask_for_reset(device, name="factory-reset"):
    device.mount(data="")
    device.put(f"boot/blipmq/{name}", "")
    device.put("boot/blipmq/blipmq-new-keys.txt", "a = b")


@pytest.mark.parametrize("name", ["factory-reset", "factory-reset.txt", "Factory-Reset.TXT"])
def test_the_reset_file_requests_a_reset_and_is_removed_afterwards(device, said, name):
    ask_for_reset(device, name)
    assert reset.carry_out(device.paths, device.system)
    assert [command.split()[0] for command in device.system.commands] == ["blkdiscard", "mkfs.ext4"]
    assert device.system.commands[1].endswith("-L blipmq-data -m 1 /dev/blipmq/data")
    assert not device.has(f"boot/blipmq/{name}") and not device.has("boot/blipmq/blipmq-new-keys.txt")
    device.mount()
    boot(device)
    assert "a factory reset was carried out at this start" in look(device).notes


def test_without_the_reset_file_nothing_is_erased(device):
    device.put("boot/blipmq/factory-reset-howto.txt", "")
    (device.folder / "boot/blipmq/factory-reset").mkdir()
    assert not reset.carry_out(device.paths, device.system) and device.system.commands == []


def test_a_failed_reset_is_reported_and_repeated(device, said):
    ask_for_reset(device)
    device.system.answers["mkfs.ext4"] = CommandResult(1, "mkfs.ext4: Input/output error\n")
    with pytest.raises(reset.ResetFailed, match="Input/output error"):
        reset.carry_out(device.paths, device.system)
    assert device.has("boot/blipmq/factory-reset")
    device.mount()
    boot(device)
    assert "the factory reset failed (mkfs.ext4: Input/output error)" in look(device).problems[0]


def test_a_partition_in_use_is_not_erased(device):
    ask_for_reset(device)
    device.mount()
    with pytest.raises(reset.ResetFailed, match="in use"):
        reset.carry_out(device.paths, device.system)
    assert device.system.commands == [] and device.has("boot/blipmq/factory-reset")


def test_a_power_cut_during_the_reset_keeps_the_reset_file(device):
    ask_for_reset(device)

    def cut(*_, **__):
        raise KeyboardInterrupt

    device.system.run = cut
    with pytest.raises(KeyboardInterrupt):
        reset.carry_out(device.paths, device.system)
    assert device.has("boot/blipmq/factory-reset")


# ---- the system


@pytest.mark.parametrize(
    ("name", "answers"), [("blipmq-device", "blipmq-device"), ("blipmq-cli", "blipmq-cli"), ("blipmq", "BlipMQ")]
)
def test_the_frozen_program_selects_its_role_by_name(tmp_path, name, answers):
    (tmp_path / name).symlink_to(PROGRAM)
    command = [sys.executable, str(tmp_path / name), "--version"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == 0 and done.stdout.startswith(f"{answers} ")


def test_a_failed_or_hung_command_returns_a_result():
    system = System(live=True)
    assert system.run("/nowhere/at/all").status == 127
    assert system.run("sh", "-c", "echo a; echo b >&2; exit 3") == CommandResult(3, "a\nb\n")
    assert system.run("sleep", "60", seconds=0.05).status == 124
    assert System(live=False).run("sh", "-c", "exit 0").status == 127
