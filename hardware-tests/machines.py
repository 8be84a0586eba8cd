"""The QEMU machines for the images, as data.

Invariant: only hardware is described here; the layout of an image is read from the image (disk.py).
"""

from typing import NamedTuple

MIB = 1024 * 1024


class Firmware(NamedTuple):
    code: str
    variables: str  # copied for each guest, which writes to the copy


class Machine(NamedTuple):
    image: str  # the target in images/ whose file is booted
    program: str
    arguments: tuple  # board and CPUs; {cpu} is replaced
    cpu: str  # the default, if a test names none
    memory_mib: int
    firmware: Firmware | None  # None: QEMU loads the kernel of slot A itself
    disk: str  # how the disk is attached; {drive} has the options of its file
    network: str
    device_tree: str  # with firmware None: its file on the settings partition
    promise_seconds: int  # from power-on to a ready broker, as promised in docs/APPLIANCE.md; recorded, not asserted
    kernel_words: str = ""  # with firmware None: added to the kernel command line of the image


UEFI_X64 = Firmware("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd")
UEFI_ARM64 = Firmware("/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd")

MACHINES = {
    "x64": Machine(
        image="generic-x64",
        program="qemu-system-x86_64",
        arguments=("-M", "q35", "-cpu", "{cpu}", "-smp", "2", "-device", "i6300esb", "-action", "watchdog=reset"),
        cpu="max",
        memory_mib=512,
        firmware=UEFI_X64,
        disk="-drive if=none,id=disk,{drive} -device virtio-blk-pci,drive=disk",
        network="-device virtio-net-pci,netdev=net",
        device_tree="",
        promise_seconds=40,
    ),
    # Booting in 256 MB needs a random number source. Without one the kernel does not randomize its address, requires an
    # alignment of 2 MiB, and finds no room for its copy.
    "arm64": Machine(
        image="generic-arm64",
        program="qemu-system-aarch64",
        arguments=("-M", "virt", "-cpu", "{cpu}", "-smp", "2", "-device", "virtio-rng-pci"),
        cpu="cortex-a72",
        memory_mib=512,
        firmware=UEFI_ARM64,
        disk="-drive if=none,id=disk,{drive} -device virtio-blk-pci,drive=disk",
        network="-device virtio-net-pci,netdev=net",
        device_tree="",
        promise_seconds=60,
    ),
    # The QEMU board has neither the boot ROM nor the Ethernet chip of a Raspberry Pi: the kernel is loaded directly and
    # the network is a USB adapter. Its memory size is fixed. Its watchdog emulation knows one register and resets at
    # once when the watchdog is armed, so systemd must not use it. The card never gets a flush, so writes go through the
    # overlay at once: the tests read the card while the guest runs.
    "pi3": Machine(
        image="rpi-arm64",
        program="qemu-system-aarch64",
        arguments=("-M", "raspi3b", "-smp", "4"),
        cpu="cortex-a53",
        memory_mib=1024,
        firmware=None,
        disk="-drive if=sd,{drive},cache.writeback=off,cache.no-flush=on",
        network="-usb -device usb-net,netdev=net",
        device_tree="bcm2837-rpi-3-b.dtb",
        promise_seconds=90,
        kernel_words="systemd.watchdog_sec=off",
    ),
}

# The supported hardware: the smallest and the usual boards, by CPU and memory, each with its profile of config/.
MATRIX = (
    ("arm64", "cortex-a53", 256, "edge-256m"),
    ("arm64", "cortex-a53", 512, "edge-512m"),
    ("arm64", "cortex-a72", 1024, "edge-1g"),
    ("arm64", "cortex-a76", 1024, "edge-1g"),
    ("x64", "Nehalem", 256, "edge-256m"),
    ("x64", "Nehalem", 512, "edge-512m"),
    ("x64", "max", 1024, "edge-1g"),
)
