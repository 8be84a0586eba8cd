"""Whether this slot is good: its broker is ready and has passed the self-test.

Invariant: a slot is marked good only after a message went through its broker. A slot on trial must pass all tests of
this device. A slot that was good before stays good if its medium fails, because the other slot has the same medium.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable

from blipmq.config import reader as config_reader
from blipmq.config.settings import Config
from blipmq.device import selftest
from blipmq.device.atomic_write import write_file
from blipmq.device.keyring import own_key
from blipmq.device.paths import Paths
from blipmq.device.result import read_result
from blipmq.device.system import System
from blipmq.errors import BlipMQError

PATIENCE_SECONDS = 240.0
PAUSE_SECONDS = 2.0


def running_config(paths: Paths) -> Config:
    """The configuration that the broker was started with. Raises ConfigError."""
    return config_reader.load(paths.broker_settings, {}).config


def is_on_trial(paths: Paths) -> bool:
    """Whether this version in this slot has not been marked good yet."""
    return bool(paths.slot) and paths.text("boot/blipmq/system/good-slot") != _mark(paths)


def become_healthy(
    paths: Paths,
    system: System,
    patience_s: float = PATIENCE_SECONDS,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> str:
    """Test until the test passes or the time is over, then mark the slot good. Returns the problem, "" if there is
    none."""
    deadline = clock() + patience_s
    while True:
        why = test(paths, is_on_trial(paths))
        if not why:
            why = _mark_good(paths, system)
        if not why or clock() >= deadline:
            _note(paths, why)
            return why
        sleep(PAUSE_SECONDS)


def test(paths: Paths, strictly: bool) -> str:
    """Run one test and return the problem, "" if there is none. `strictly`: require everything that this device should
    support."""
    if strictly and (paths.mounted(paths.data) != "rw" or not read_result(paths).has_data):
        return "the data partition cannot be written to, or was missing when the settings were applied"
    try:
        config = running_config(paths)
        selftest.run(config, own_key(paths), qos1=None if strictly else False)
    except BlipMQError as error:
        return " ".join(str(error).split())
    return ""


def _mark(paths: Paths) -> str:
    return f"{paths.slot} {paths.image_version}"


def _mark_good(paths: Paths, system: System) -> str:
    if not paths.slot:
        return ""
    marked = system.run("rauc", "status", "mark-good")
    if marked.status:
        why = marked.output.strip().splitlines()[-1:] or ["no reason given"]
        return f"the slot could not be marked good: {why[0][:200]}"
    try:
        write_file(paths.good_slot, _mark(paths) + "\n")
    except OSError as error:
        return f"the settings partition cannot be written to: {error.strerror}"
    return ""


def _note(paths: Paths, why: str) -> None:
    write_file(paths.health, json.dumps({"why": why}) + "\n")
