"""The image for the Raspberry Pi. QEMU has the processor, SD controller and memory of a Pi 3, but not its boot ROM or
Ethernet chip, and no Pi 4 or 5. docs/APPLIANCE.md lists the checks that need a board.

Invariant: kernel, initrd, device tree and command line are those of slot A in the image. machines.py lists the
additions for the QEMU board, with reasons.
"""

import os

import pytest
from hand_client import PUB, HelloClient

pytestmark = [pytest.mark.long, pytest.mark.qemu("it looks at the Pi's image in QEMU; on a Pi the other tests run")]
FIRMWARE = ("config.txt", "bootcode.bin", "start.elf", "fixup.dat", "start4.elf", "fixup4.dat", "u-boot.bin")


def test_the_card_contains_the_raspberry_pi_boot_files(lab):
    image = lab.image("rpi-arm64")
    with image.path.open("rb") as file:
        sector = file.read(512)
    assert sector[510:] == b"\x55\xaa"
    assert sector[446 + 4] == 0x0C, "the boot ROM of a Pi 3 takes the first FAT partition of an MBR"
    for name in FIRMWARE:
        assert image.read(name), name
    settings = image.read("config.txt").decode()
    assert "u-boot.bin" in settings and "arm_64bit=1" in settings.replace(" ", "")


@pytest.mark.parametrize("machine", ["pi3"])
def test_the_image_boots_on_a_raspberry_pi_3_with_a_reachable_broker(new_guest, machine, figure):
    guest = new_guest(machine)
    figure("Raspberry Pi 3 in QEMU (raspi3b): power on to broker ready", guest.boot(), "s")
    figure("Raspberry Pi 3 in QEMU: processor time of QEMU until then", guest.cpu_seconds_at_ready, "s")
    figure("Raspberry Pi 3 in QEMU: load average of this machine meanwhile", round(os.getloadavg()[0], 1))
    with HelloClient(guest.address) as publisher:
        assert publisher.ask(PUB, "plant/pump", b"on", qos=1).code == 0
    guest.wait_for_status(lambda status: status.get("State") == "ok", "that all is well")
