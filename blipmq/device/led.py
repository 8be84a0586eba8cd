"""The board's LED: on when all is well, blinking when the device is degraded.

Invariant: a board without an LED, or with one that cannot be set, is not an error; a value is written only if it
changes.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from blipmq.device.paths import Paths

# The activity LED is green and free to use; the power LED already has a meaning.
NAMES = ("blipmq", "ACT", "led0", "green:status", "status")
BLINK_MS = 250


def show(paths: Paths, degraded: bool) -> str:
    """Set the LED. Returns its name, "" if there is none."""
    for name in NAMES:
        light = paths.leds / name
        if (light / "brightness").exists():
            with contextlib.suppress(OSError):
                _blink(light) if degraded else _light(light)
            return name
    return ""


def _light(light: Path) -> None:
    _use(light, "none")
    _put(light / "brightness", _text(light / "max_brightness") or "1")


def _blink(light: Path) -> None:
    _use(light, "timer" if "timer" in _text(light / "trigger") else "heartbeat")
    for name in ("delay_on", "delay_off"):
        if (light / name).exists():
            _put(light / name, str(BLINK_MS))


def _use(light: Path, trigger: str) -> None:
    if f"[{trigger}]" not in _text(light / "trigger"):
        (light / "trigger").write_text(trigger)


def _put(path: Path, value: str) -> None:
    if _text(path) != value:
        path.write_text(value)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
