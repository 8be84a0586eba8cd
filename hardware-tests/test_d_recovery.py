"""Unattended recovery: a hung broker, a hung system, a flood on a small board."""

import pytest
from device import ids_kept_for
from hand_client import PUB, SUB, HelloClient, command
from machines import MIB

pytestmark = pytest.mark.long
MAIN_PID = "systemctl show -p MainPID --value blipmq"
FLOOD_MESSAGES, FLOOD_BYTES = 30_000, 1_000
BEHIND_MESSAGES = 500
PROMISED_MEMORY_BYTES = 128 * MIB  # config/blipmq-edge-256m.toml


def test_a_hung_broker_is_restarted(device):
    device.wait_for_shell()
    before = device.ask(MAIN_PID)
    device.shell(f"kill -STOP $({MAIN_PID})")
    device.until(lambda: device.ask(MAIN_PID) not in ("", "0", before), "another broker takes its place")
    device.wait_until_ready()


def test_a_killed_broker_is_restarted(device):
    device.wait_for_shell()
    before = device.ask(MAIN_PID)
    device.shell(f"kill -KILL {before}")
    device.until(lambda: device.ask(MAIN_PID) not in ("", "0", before), "another broker takes its place")
    device.wait_until_ready()


def test_a_hung_system_is_reset_by_the_hardware_watchdog(device, figure):
    device.wait_for_shell()
    before = device.boot_id()
    figure("watchdog", device.shell("cat /sys/class/watchdog/watchdog0/identity").strip())
    # On this signal process 1 stops itself and no longer notifies the watchdog.
    device.shell("kill -SEGV 1", check=False)
    device.wait_for_another_boot(before, "the watchdog starts the machine again")


@pytest.mark.qemu("a flood on a board in use would reach its clients")
@pytest.mark.parametrize("machine", ["x64", "arm64"])
def test_a_device_with_256_mb_survives_a_flood_and_a_stuck_subscriber(new_guest, machine, figure):
    guest = new_guest(machine, memory_mib=256)
    guest.boot()
    guest.wait_for_shell()
    assert "edge-256m" in guest.wait_for_status(lambda status: "Profile" in status, "its profile")["Profile"]
    pid = guest.shell(MAIN_PID).strip()
    with HelloClient(guest.address, "behind") as client:
        assert client.ask(SUB, "flood/kept", qos=1, durable=True).code == 0
    with HelloClient(guest.address) as stuck, HelloClient(guest.address) as publisher:
        stuck.subscribe("flood/#")
        taken = flood(publisher)
        assert publisher.is_open()
        info = publisher.info()
    status = dict(line.split(":", 1) for line in guest.shell(f"cat /proc/{pid}/status").splitlines())
    most = int(status["VmHWM"].split()[0]) * 1024
    figure(f"{machine}, 256 MB: sent in the flood", FLOOD_MESSAGES * FLOOD_BYTES // MIB, "MiB")
    figure(f"{machine}, 256 MB: memory of the broker, at most", most // MIB, "MiB")
    assert most < PROMISED_MEMORY_BYTES
    assert info["version"]
    assert ids_kept_for(guest, "behind", "flood/kept", len(taken)) == taken
    assert guest.shell(MAIN_PID).strip() == pid
    assert "Out of memory" not in guest.shell("dmesg")


def flood(publisher):
    """Publish QoS 0 at full speed with occasional QoS 1 messages. Returns the ids of the QoS 1 messages, which are all
    acknowledged."""
    burst = b"".join(command(PUB, "flood/lost", bytes(FLOOD_BYTES)) for _ in range(FLOOD_MESSAGES // BEHIND_MESSAGES))
    taken = []
    for number in range(BEHIND_MESSAGES):
        publisher.send(burst)
        answer = publisher.ask(PUB, "flood/kept", b"%d" % number, qos=1)
        assert answer.code == 0, answer
        taken.append(answer.id)
    return taken
