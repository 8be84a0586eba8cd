"""The machines that the images are booted on under QEMU, as data.

Invariant: what is said here is hardware; how an image is laid out is read from the image (disk.py).
"""

from typing import NamedTuple

MIB = 1024 * 1024


class Firmware(NamedTuple):
    code: str
    variables: str  # copied for each guest, which writes to it


class Machine(NamedTuple):
    image: str  # the target of images/ whose file is booted
    program: str
    arguments: tuple  # board and CPUs; {cpu} is filled in
    cpu: str  # the one that is taken when a test names none
    memory_mib: int
    firmware: Firmware | None  # None: QEMU loads the kernel of slot A itself
    disk: str  # how the disk is attached; {drive} has the options of its file
    network: str
    device_tree: str  # with firmware None: its file on the settings partition
    promise_seconds: int  # power on to broker ready, as issue and docs/APPLIANCE.md have it; recorded, not asserted
    kernel_words: str = ""  # with firmware None: told to the kernel besides the image's own words


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
    # The source of random numbers is what lets 256 MB do: without one the kernel does not place itself at random, wants 2 MiB
    # alignment instead, and finds no room for the copy of itself that this takes.
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
    # QEMU's board has neither the Pi's boot ROM nor its Ethernet chip: the kernel is loaded directly and the network is a
    # USB adapter. Its memory is fixed. Nor has it the Pi's watchdog: of the timer it knows one register, and takes the word
    # that arms it for the reset itself, so there systemd must leave it alone. Its card is never told to flush, so what is
    # written goes through the overlay at once: the tests read the card while the guest runs.
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

# What is sold: the smallest and the usual boards, by CPU and memory, with the profile of config/ meant for that memory.
MATRIX = (
    ("arm64", "cortex-a53", 256, "edge-256m"),
    ("arm64", "cortex-a53", 512, "edge-512m"),
    ("arm64", "cortex-a72", 1024, "edge-1g"),
    ("arm64", "cortex-a76", 1024, "edge-1g"),
    ("x64", "Nehalem", 256, "edge-256m"),
    ("x64", "Nehalem", 512, "edge-512m"),
    ("x64", "max", 1024, "edge-1g"),
)
