"""The overlay of the images for the Debian root, and the files of the FAT partition: valid units and loadable samples.

Invariant: nothing is installed or started; systemd's own checker reads the units in a separate folder.
"""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from device_folder import DeviceFolder

from blipmq.config.reader import load_texts
from blipmq.config.schema_reader import read_text
from blipmq.device import health, selftest, settings
from blipmq.device.broker_settings import Ground, read_broker
from blipmq.device.settings import SETTINGS, Device
from blipmq.device.settings_reader import read_device
from blipmq.errors import ConfigError

# Created once; the private key was deleted.
ED25519 = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKKWLTmLtPZ1gRS4HG8HtDX9dY6/OibsLVxzLeJfltLO me"
ROOT = Path(__file__).resolve().parent.parent
OVERLAY, BOOT = ROOT / "images/root", ROOT / "images/boot"
UNITS = OVERLAY / "usr/lib/systemd/system"
MASKS = OVERLAY / "etc/systemd/system"
GROW = OVERLAY / "usr/lib/blipmq-device/grow-data"
# Programs started by units that come from Debian, not from the overlay.
PROGRAMS = ("usr/bin/blipmq", "usr/sbin/sshd", "usr/sbin/wpa_supplicant", "bin/sh", "usr/bin/true")
# Units of systemd that our units refer to; they are taken from this machine.
BORROWED = ("*.target", "systemd-fsck@.service", "emergency.service", "systemd-networkd.service")
MARK_BAD_SECONDS = 60  # usr/lib/blipmq-device/rollback
START_SECONDS = 10  # of a broker on a slow board
CRITICAL = {
    "local-fs.target.wants/data.mount",
    "local-fs.target.wants/boot-blipmq.mount",
    "local-fs.target.wants/blipmq-factory-reset.service",
    "sysinit.target.wants/blipmq-apply.service",
    "multi-user.target.wants/blipmq.service",
    "multi-user.target.wants/blipmq-healthy.service",
    "multi-user.target.wants/blipmq-time-floor.service",
    "timers.target.wants/blipmq-status.timer",
    "timers.target.wants/blipmq-time-save.timer",
}


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    """The overlay with the unit of the broker and empty programs, sufficient for systemd's checker."""
    subprocess.run([ROOT / "packaging/setup.sh", "systemd"], check=True, timeout=600)
    image = tmp_path_factory.mktemp("image") / "root"
    shutil.copytree(OVERLAY, image, symlinks=True)
    units = image / "usr/lib/systemd/system"
    shutil.copy(ROOT / "packaging/deb/blipmq.service", units)
    theirs = next(path for path in map(Path, ("/usr/lib/systemd/system", "/lib/systemd/system")) if path.is_dir())
    for pattern in BORROWED:
        for unit in theirs.glob(pattern):
            if not (units / unit.name).exists() and not (units / unit.name).is_symlink():
                shutil.copy(unit, units)
    (image / "usr/bin/blipmq-device").unlink()
    for program in (*PROGRAMS, "usr/bin/blipmq-device"):
        (image / program).parent.mkdir(parents=True, exist_ok=True)
        (image / program).write_text("#!/bin/sh\n")
        (image / program).chmod(0o755)
    return image


def verify(image, *units):
    """The messages of systemd's checker for the units, one line each."""
    command = ["systemd-analyze", "verify", "--man=no", f"--root={image}", *units]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**os.environ, "SYSTEMD_LOG_LEVEL": "info"}
    )
    return [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]


def own_units():
    return sorted(
        path.name.replace("@.", "@wlan0.")
        for path in UNITS.iterdir()
        if path.is_file() and path.name != "default.target"
    )


def test_systemd_reports_no_problem_in_any_unit(image):
    assert verify(image, *own_units(), "blipmq.service") == []


@pytest.mark.parametrize(
    ("unit", "line"),
    [
        ("blipmq-apply.service", "TimoutStartSec=2min"),
        ("blipmq-status.timer", "OnBotSec=1"),
        ("data.mount", "Optoins=ro"),
        ("blipmq-healthy.service", "Type=sometimes"),
    ],
)
def test_a_mistake_in_a_unit_is_found(image, tmp_path, unit, line):
    copy = tmp_path / "root"
    shutil.copytree(image, copy, symlinks=True)
    with (copy / "usr/lib/systemd/system" / unit).open("a") as file:
        file.write(f"\n[{'Timer' if 'timer' in unit else 'Mount' if 'mount' in unit else 'Service'}]\n{line}\n")
    assert verify(copy, unit) != []


def test_enabled_units_exist_and_required_units_are_enabled():
    wanted = {str(path.relative_to(UNITS)): path for path in UNITS.glob("*.wants/*")}
    assert set(wanted) >= CRITICAL
    theirs = {
        "blipmq.service",
        "ssh.service",
        "systemd-networkd.service",
        "systemd-resolved.service",
        "systemd-timesyncd.service",
    }
    for name, link in wanted.items():
        assert link.is_symlink() and os.readlink(link) == f"../{link.name}", name
        assert link.exists() or link.name in theirs, name


def test_no_masked_unit_is_enabled_and_no_login_prompt_remains():
    masked = {path.name for path in MASKS.iterdir() if path.is_symlink() and os.readlink(path) == "/dev/null"}
    assert not masked & {path.name for path in UNITS.glob("*.wants/*")}
    assert masked >= {
        "getty@.service",
        "serial-getty@.service",
        "autovt@.service",
        "console-getty.service",
        "ssh.socket",
    }
    assert masked >= {
        "apt-daily.timer",
        "systemd-networkd-wait-online.service",
        "debug-shell.service",
        "rescue.service",
    }


def test_every_early_unit_stops_at_shutdown():
    for path in UNITS.glob("*.service"):
        text = path.read_text()
        if "DefaultDependencies=no" in text:
            before = {word for line in re.findall(r"^Before=(.*)$", text, re.MULTILINE) for word in line.split()}
            assert "Conflicts=shutdown.target" in text and "shutdown.target" in before, path


def test_scripts_parse_and_stop_at_the_first_error():
    scripts = list((OVERLAY / "usr/lib/blipmq-device").iterdir())
    assert len(scripts) >= 4
    for script in scripts:
        assert os.access(script, os.X_OK) and script.read_text().startswith("#!/bin/sh\n# ")
        assert "\nset -eu\n" in script.read_text()
        subprocess.run(["sh", "-n", script], check=True, timeout=60)


def seconds_of(unit, setting):
    """A time setting of a unit in seconds; a value without minutes or hours is in seconds."""
    (number, unit_of_time), *others = re.findall(rf"^{setting}=(\d+)(s|min|h)?$", unit, re.MULTILINE)
    assert not others
    return int(number) * {"": 1, "s": 1, "min": 60, "h": 3600}[unit_of_time]


def test_the_trial_slot_is_left_before_the_start_limit_and_a_hung_broker_reaches_the_limit():
    drop_in = (UNITS / "blipmq.service.d/appliance.conf").read_text()
    package = (ROOT / "packaging/deb/blipmq.service").read_text()
    starts, pause = seconds_of(drop_in, "StartLimitBurst"), seconds_of(drop_in, "RestartSec")
    # A restart at the start limit does not mark the slot bad, so it would be tried twice more.
    assert starts * pause > health.PATIENCE_SECONDS + selftest.TIMEOUT_SECONDS + MARK_BAD_SECONDS
    standstill = seconds_of(package, "WatchdogSec") + pause + START_SECONDS
    assert starts * standstill <= seconds_of(drop_in, "StartLimitIntervalSec")


def test_ssh_accepts_only_public_keys():
    lines = (OVERLAY / "etc/ssh/sshd_config.d/blipmq.conf").read_text().splitlines()
    assert {"PasswordAuthentication no", "KbdInteractiveAuthentication no", "AuthenticationMethods publickey"} <= set(
        lines
    )
    assert (
        "ConditionPathExists=/run/blipmq-device/authorized_keys" in (UNITS / "ssh.service.d/appliance.conf").read_text()
    )


def test_the_name_service_listens_only_for_mdns():
    text = (OVERLAY / "usr/lib/systemd/resolved.conf.d/blipmq.conf").read_text()
    assert {"MulticastDNS=yes", "LLMNR=no", "DNSStubListener=no"} <= set(text.splitlines())


def test_the_broker_user_id_is_the_same_after_every_update():
    assert re.search(r"^u blipmq 870 ", (OVERLAY / "usr/lib/sysusers.d/blipmq.conf").read_text(), re.MULTILINE)


def test_the_fallback_settings_load():
    config = load_texts([("fallback", read_text(OVERLAY / "usr/share/blipmq/fallback.toml"))], {}).config
    assert config.server.bind_addr == "127.0.0.1:7878" and not config.wal.enabled


# ---- growth of the data partition ----


def grow(tmp_path, medium, start, size, number=6):
    """Run the script with the test's own /sys; returns the commands that it executed."""
    block = tmp_path / f"sys/devices/{medium}/{medium}p{number}"
    block.mkdir(parents=True)
    for name, value in (("start", start), ("size", size), ("partition", number)):
        (block / name).write_text(f"{value}\n")
    (block.parent / "size").write_text("2000000\n")
    (tmp_path / "sys/class/block").mkdir(parents=True)
    (tmp_path / "sys/class/block" / medium).symlink_to(block.parent)
    (tmp_path / "sys/class/block" / block.name).symlink_to(block)
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sfdisk", "partx", "udevadm"):
        (tools / name).write_text(
            f'#!/bin/sh\necho "{name} $*" >>{tmp_path}/ran\n[ {name} != sfdisk ] || cat >>{tmp_path}/ran\n'
        )
        (tools / name).chmod(0o755)
    (tools / "flock").write_text(f'#!/bin/sh\necho "flock $1" >>{tmp_path}/ran\nshift\nexec "$@"\n')
    (tools / "flock").chmod(0o755)
    environment = {"PATH": f"{tools}:{os.environ['PATH']}", "BLIPMQ_SYS": str(tmp_path / "sys")}
    subprocess.run(["sh", str(GROW), f"/dev/{block.name}"], check=True, env=environment, timeout=60)
    ran = tmp_path / "ran"
    return ran.read_text().splitlines() if ran.exists() else []


def test_a_partition_grows_into_free_space_behind_it(tmp_path):
    assert grow(tmp_path, "mmcblk0", 1_000_000, 100_000) == [
        "flock /dev/mmcblk0",  # both commands hold the lock, else udev removes the partition between them
        "sfdisk --quiet --force --no-reread --no-tell-kernel -N 6 /dev/mmcblk0",
        ", +",
        "partx --update --nr 6 /dev/mmcblk0",
    ]


def test_a_partition_at_the_end_of_its_medium_is_not_changed(tmp_path):
    assert grow(tmp_path, "mmcblk0", 1_000_000, 999_900) == []


def test_sfdisk_extends_a_partition_table_as_the_script_expects(tmp_path):
    subprocess.run([ROOT / "packaging/setup.sh", "sfdisk"], check=True, timeout=600)
    medium = tmp_path / "medium"
    with medium.open("wb") as file:
        file.truncate(64 << 20)
    table = "label: gpt\nsize=8MiB,name=blipmq-boot\nsize=16MiB,name=blipmq-data\n"
    subprocess.run(["sfdisk", "--quiet", medium], input=table, text=True, check=True, timeout=60)
    with medium.open("r+b") as file:
        file.truncate(256 << 20)
    command = ["sfdisk", "--quiet", "--force", "--no-reread", "--no-tell-kernel", "-N", "2", medium]
    subprocess.run(command, input=", +\n", text=True, check=True, capture_output=True, timeout=60)
    dump = subprocess.run(["sfdisk", "--dump", medium], text=True, check=True, capture_output=True, timeout=60).stdout
    sizes = [int(size) for size in re.findall(r"size= *(\d+)", dump)]
    assert sizes[0] == 16_384 and sizes[1] > 490_000 and 'name="blipmq-data"' in dump


# ---- files on the card for technicians ----


def uncommented(text):
    """A sample with all its options enabled."""
    return re.sub(r"^#(?! )", "", text, flags=re.MULTILINE)


def test_sample_files_change_nothing_and_load_with_all_options_enabled(tmp_path):
    text = read_text(BOOT / "device.toml")
    assert read_device(text) == Device()
    with pytest.raises(ConfigError, match="the key is damaged, or is that of the example"):
        read_device(uncommented(text))
    device = read_device(re.sub(r'"ssh-ed25519 [^"]*"', f'"{ED25519}"', uncommented(text)))
    assert device.network.address == "192.168.1.20/24" and device.wifi.ssid and device.ssh.authorized_keys
    assert [key.name for key in device.keys] == ["press", "dashboard"]

    ground = Ground.of(DeviceFolder(tmp_path / "device").paths, has_keys=False)
    text = read_text(BOOT / "blipmq.toml")
    assert read_broker(text, "blipmq.toml", ground) == read_broker("", "blipmq.toml", ground)
    broker = read_broker(uncommented(text), "blipmq.toml", ground)
    assert broker.is_open and broker.config.logging.level == "debug"


def test_text_files_on_the_card_are_readable_on_any_computer():
    for path in BOOT.iterdir():
        raw = path.read_bytes()
        assert raw.count(b"\n") == raw.count(b"\r\n") > 0 and raw.isascii(), path


def test_the_documented_reference_matches_the_schema():
    page = (ROOT / "docs/APPLIANCE.md").read_text(encoding="utf-8")
    assert settings.reference() in page, "`make settings` writes docs/APPLIANCE.md"
    assert all(f"`{path.rpartition('.')[2]}`" in page for path in SETTINGS)
