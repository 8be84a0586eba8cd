"""The state of a Raspberry Pi: temperature, throttling, under-voltage. Whether the processor has instructions for AES.

Invariant: reads a few files of the kernel, never waits, never raises.
"""

from __future__ import annotations

from typing import TypedDict

# Bits of the firmware's get_throttled word: the present state, not the history since boot.
UNDERVOLTAGE, FREQUENCY_CAPPED, THROTTLED = 1 << 0, 1 << 1, 1 << 2


class Hardware(TypedDict):
    """`temperature_c` is None without a sensor; the flags are None if the firmware does not report them."""

    temperature_c: float | None
    throttled: bool | None
    undervoltage: bool | None


def read_hardware(root: str = "") -> Hardware | None:
    """The state of the board; None on any other machine. `root` is put in front of /proc and /sys."""
    # The same file at two paths: a service that sees only processes in /proc (ProcSubset=pid) has it in /sys.
    model = _text(f"{root}/proc/device-tree/model") or _text(f"{root}/sys/firmware/devicetree/base/model")
    if not model.startswith("Raspberry Pi"):
        return None
    millidegrees = _text(f"{root}/sys/class/thermal/thermal_zone0/temp")
    word = _text(f"{root}/sys/devices/platform/soc/soc:firmware/get_throttled")
    try:
        temperature = int(millidegrees) / 1000
    except ValueError:
        temperature = None
    try:
        flags = int(word, 16)
    except ValueError:
        return {"temperature_c": temperature, "throttled": None, "undervoltage": None}
    throttled = bool(flags & (THROTTLED | FREQUENCY_CAPPED))
    return {"temperature_c": temperature, "throttled": throttled, "undervoltage": bool(flags & UNDERVOLTAGE)}


def has_aes(root: str = "") -> bool:
    """Whether the processor encrypts with AES in hardware; then AES is faster than ChaCha20. True if the system does not tell,
    as every processor of a desktop or server has it."""
    for line in _text(f"{root}/proc/cpuinfo", 64 << 10).split("\n"):
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):  # x86, ARM
            return "aes" in words.split()
    return True


def _text(path: str, size: int = 256) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(size).decode("ascii", "replace").strip("\0\n ")
    except OSError:
        return ""
