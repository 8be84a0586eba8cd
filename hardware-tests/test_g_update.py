"""Updates over the network: written to the other slot, marked good only after its broker passed the probe, and
abandoned otherwise.

Invariant: each device ends on a slot with a serving broker and with its data.
"""

import os
import time
from pathlib import Path

import bundles
import pytest
from crash.clients import ack_frame
from device import READY_SECONDS_MAX
from hand_client import PUB, SUB, HelloClient

OTHER_WAY = "it would leave another system on the board: to try an update on a board, see hardware-tests/README.md"
pytestmark = [pytest.mark.long, pytest.mark.qemu(OTHER_WAY)]
UPDATE = "/data/update.raucb"
MACHINE, TARGET = "x64", "generic-x64"
COMPATIBLE = f"blipmq-{TARGET}"
# Start an installation and stop it once some MiB of the system are written to the other slot.
STOP_IN_THE_MIDDLE = f"""
written() {{ awk '{{ print $7 }}' /sys/class/block/$(basename $(readlink -f /dev/disk/by-partlabel/blipmq-b-root))/stat; }}
enough=$(($(written) + 8192))
rauc install {UPDATE} >/dev/null 2>&1 </dev/null &
while [ $(written) -lt $enough ]; do
    kill -0 $! || exit 1
done
kill -STOP $(systemctl show -p MainPID --value rauc)
"""
# A trial slot has four minutes and three starts.
ROLLBACK_SECONDS_MAX = 3600


def slot(guest):
    return guest.ask("sed 's/.*rauc.slot=\\(.\\).*/\\1/' /proc/cmdline")


def is_good(guest, name):
    """Whether this slot was marked good during this start: the boot loader has no remaining trial count."""
    noted = guest.ask("cut -c1 /boot/blipmq/system/good-slot && grub-editenv /boot/blipmq/system/grubenv list").split()
    return {name, f"{name}_OK=1", f"{name}_TRY=0"} <= set(noted)


def install(guest, bundle, check=True):
    guest.send_file(bundle, UPDATE)
    done = guest.shell(f"rauc install {UPDATE}; status=$?; rm -f {UPDATE}; exit $status", check=False, seconds_max=900)
    message = (done.stdout + done.stderr).decode(errors="replace")
    assert not check or done.returncode == 0, message
    return done.returncode, message


def wait_until_good(guest, name):
    guest.until(lambda: is_good(guest, name), f"slot {name} is found to be good")


@pytest.fixture(scope="module")
def shipped(lab):
    """The update built by `make bundle-generic-x64`."""
    dist = Path(os.environ.get("BLIPMQ_DIST", Path(__file__).resolve().parent.parent / "dist"))
    found = sorted(dist.rglob(f"*{TARGET}*.raucb"))
    assert found, f"there is no update for {TARGET} in {dist}: make bundle-{TARGET}"
    return found[-1]


@pytest.fixture
def parts(lab, tmp_path):
    return bundles.Parts(lab.image(TARGET), tmp_path)


@pytest.fixture
def guest(new_guest):
    guest = new_guest(MACHINE)
    guest.boot()
    guest.wait_for_shell()
    return guest


def test_updates_alternate_between_slots_and_keep_the_data(guest, shipped, figure):
    wait_until_good(guest, "A")
    with HelloClient(guest.address, "reader") as client:
        assert client.ask(SUB, "before/update", qos=1, durable=True).code == 0
    with HelloClient(guest.address) as client:
        sent = client.ask(PUB, "before/update", b"kept", qos=1)
    assert sent.code == 0
    for name in ("B", "A"):
        install(guest, shipped)
        before = guest.cpu_seconds()
        figure(f"{MACHINE}: restart into the updated slot {name}, until the broker answers", guest.reboot(), "s")
        # Waiting in the guest uses little time of this machine, but a busy machine slows the guest down.
        figure(f"{MACHINE}: processor time of QEMU for it", round(guest.cpu_seconds() - before, 1), "s")
        figure(f"{MACHINE}: load average of this machine meanwhile", round(os.getloadavg()[0], 1))
        assert slot(guest) == name
        wait_until_good(guest, name)
    with HelloClient(guest.address, "reader") as client:
        assert client.ask(SUB, "before/update", qos=1, durable=True).code == 0
        message = client.next()
        client.send(ack_frame(message.id))
    assert (message.id, message.payload) == (sent.id, b"kept")
    figure(f"{MACHINE}: size of an update", round(shipped.stat().st_size / 1e6, 1), "MB")


def test_unsigned_foreign_and_old_updates_are_refused(guest, parts, tmp_path):
    known, unknown = bundles.keys(), bundles.unknown_keys(tmp_path)
    refused = {
        "signature": parts.bundle(tmp_path / "unknown.raucb", COMPATIBLE, "9.9.9", unknown),
        "compatible": parts.bundle(tmp_path / "other.raucb", "blipmq-another-board", "9.9.9", known),
        "version": parts.bundle(tmp_path / "old.raucb", COMPATIBLE, "0.0.0-1", known),
    }
    cut_short = tmp_path / "cut.raucb"
    cut_short.write_bytes(refused["version"].read_bytes()[:-100])
    before = guest.shell("sha256sum /dev/disk/by-partlabel/blipmq-b-*")
    for word, bundle in (*refused.items(), ("signature", cut_short)):
        status, message = install(guest, bundle, check=False)
        assert status != 0 and word in message.lower(), message
    assert guest.shell("sha256sum /dev/disk/by-partlabel/blipmq-b-*") == before
    guest.reboot()
    assert slot(guest) == "A"


def test_a_power_cut_during_an_update_keeps_the_running_system_and_allows_a_retry(guest, shipped):
    wait_until_good(guest, "A")
    for _ in range(2):
        guest.send_file(shipped, UPDATE)
        guest.shell(STOP_IN_THE_MIDDLE)
        guest.cut_power()
        guest.boot()
        guest.wait_for_shell()
        assert slot(guest) == "A"
        wait_until_good(guest, "A")
    install(guest, shipped)
    guest.reboot()
    assert slot(guest) == "B"
    wait_until_good(guest, "B")


def test_a_slot_that_does_not_start_is_abandoned_automatically(guest, shipped):
    wait_until_good(guest, "A")
    install(guest, shipped)
    guest.shell("dd if=/dev/zero of=/dev/disk/by-partlabel/blipmq-b-root bs=1M count=1 conv=fsync 2>/dev/null")
    goes_back(guest)


def test_an_update_with_an_unhealthy_broker_is_abandoned_automatically(guest, parts, tmp_path, figure):
    wait_until_good(guest, "A")

    def break_the_broker(tree):
        program = tree / "usr/bin/blipmq"
        program.unlink()
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)

    parts.change_root(break_the_broker)
    install(guest, parts.bundle(tmp_path / "broken.raucb", COMPATIBLE, "9.9.9", bundles.keys()))
    figure(
        f"{MACHINE}: from the restart into an update whose broker fails to the old one serving", goes_back(guest), "s"
    )


def goes_back(guest):
    """Restart into slot B and wait for slot A; returns the seconds."""
    console = len(guest.console())
    before = guest.boot_id()
    began = time.monotonic()
    guest.shell("systemctl reboot", check=False)

    def is_back():
        return guest.boot_id() not in ("", before) and slot(guest) == "A"

    guest.until(is_back, "slot A serves again", ROLLBACK_SECONDS_MAX)
    seconds = round(time.monotonic() - began)
    assert "slot B, attempt 1" in guest.console()[console:], "slot B was never tried"
    guest.wait_until_ready(READY_SECONDS_MAX)
    wait_until_good(guest, "A")
    # The device remains there.
    guest.reboot()
    assert slot(guest) == "A"
    return seconds
