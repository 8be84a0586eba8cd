"""The state of the device as text: the status file on the settings partition, and the output of `blipmq-device status`.

Invariant: each deviation from the wanted state is reported, in a sentence that says what to do. The file is written
when a relevant fact has changed, not periodically, because cards wear out.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass

from blipmq.base.bind_address import split_address
from blipmq.device import clock
from blipmq.device.atomic_write import write_for_notepad
from blipmq.device.broker_probe import Answer, ask
from blipmq.device.paths import Paths
from blipmq.device.result import Result, read_result
from blipmq.device.system import System
from blipmq.version import __version__

DISK_FULL = 0.95
# An older file is written again, so that it shows when the device last worked.
STALE_SECONDS = 86400.0
ORIGINS = {
    "file": "in effect",
    "kept": "NOT in effect, see below; the last good one is",
    "default": "none; the defaults are in effect",
}
REFUSED = "NOT in effect, see below; the defaults are"


@dataclass(frozen=True)
class Report:
    """The state of the device at one time. `problems` make it degraded, `notes` do not; `moving` are lines that change
    often."""

    problems: tuple[str, ...]
    notes: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    moving: tuple[tuple[str, str], ...]

    @property
    def state(self) -> str:
        return "degraded" if self.problems else "ok"

    @property
    def text(self) -> str:
        """The whole report as text."""
        width = max(len(name) for name, _ in (*self.facts, *self.moving)) + 2
        lines = [f"{name + ':':<{width}}{value}" for name, value in (("State", self.state), *self.facts, *self.moving)]
        for title, sentences in (("What is wrong", self.problems), ("Good to know", self.notes)):
            if sentences:
                lines += ["", f"{title}:", *(f"- {sentence}" for sentence in sentences)]
        return "\n".join(lines) + "\n"

    @property
    def still(self) -> str:
        """The part whose change requires a new file."""
        return "\n".join([self.state, *self.problems, *self.notes, *(value for _, value in self.facts)])


def look(paths: Paths, system: System) -> Report:
    """Collect the report. Raises nothing for any state of the device."""
    result = read_result(paths)
    said = ask(result.metrics_addr, result.bind_addr) if result.bind_addr else Answer("silent")
    reset = paths.text("run/blipmq-device/factory-reset")
    problems = [readable(problem) for problem in result.problems]
    problems += said.reasons if said.status != "ok" else ()
    problems += _health_problems(paths)
    disk, full = _disk(paths)
    problems += (
        [
            "the data partition is nearly full; when it is full, QoS 1 publishes are refused; end unused durable subscriptions"
        ]
        if full
        else []
    )
    if reset.startswith("failed"):
        problems.append(f"the factory reset failed ({reset.removeprefix('failed: ')}); the next start tries again")
    notes = list(result.notes)
    if paths.new_keys.exists():
        notes.append(f"{paths.new_keys.name} holds new keys; copy them to their clients, then delete the file")
    if reset == "done":
        notes.append("a factory reset was carried out at this start")
    return Report(
        tuple(problems),
        tuple(notes),
        tuple(_facts(paths, system, result, said)),
        (("Disk", disk), ("Time", _time(paths, system))),
    )


def write(paths: Paths, system: System, report: Report) -> bool:
    """Update the status file. Returns True if it was written. Raises OSError."""
    mark = paths.run / "status"
    try:
        fresh = system.now() - os.stat(paths.status).st_mtime < STALE_SECONDS and mark.read_text() == report.still
    except OSError:
        fresh = False
    if fresh:
        return False
    head = f"Status of this device, written by it at {_stamp(system.now())}. Changes here have no effect.\n\n"
    write_for_notepad(paths.status, head + report.text)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.write_text(report.still)
    return True


def readable(problem: str) -> str:
    """`device.toml:3: …` in the form for a person with an editor: `device.toml, line 3: …`."""
    return re.sub(r"^([^:\n]*\.toml[^:\n]*):(\d+): ", r"\1, line \2: ", problem)


def _facts(paths: Paths, system: System, result: Result, said: Answer) -> Iterator[tuple[str, str]]:
    yield "Name", f"{result.hostname}.local"
    addresses = list_addresses(system)
    asked = "a DHCP server" if result.address == "dhcp" else result.address
    yield "Address", ", ".join(addresses) or f"none yet (waiting for {asked}); check the cable"
    yield "Broker", _broker(result, said)
    yield "Keys", ", ".join(result.keys) or "none"
    slot = f", slot {paths.slot}" if paths.slot else ""
    yield "Version", f"BlipMQ {__version__}, image {paths.image_version or 'none'}{slot}"
    for name, origin in (("device.toml", result.device), ("blipmq.toml", result.broker)):
        refused = any(problem.startswith(name) for problem in result.problems)
        yield name, REFUSED if origin == "default" and refused else ORIGINS.get(origin, origin)
    yield "Profile", result.profile or "unknown"


def _broker(result: Result, said: Answer) -> str:
    if not result.bind_addr:
        return "does not listen"
    port = split_address(result.bind_addr)[1]
    reach = "reachable from the network" if result.is_open else "reachable from the device itself only"
    log = "QoS 0 and 1" if result.has_log else "QoS 0 only"
    running = "" if said.status in ("ok", "degraded") else "NOT running, "
    return f"{running}port {port}, {reach}, {log}"


def list_addresses(system: System) -> list[str]:
    """The addresses of this machine that others can reach, as text, IPv4 first."""
    listed = system.run("ip", "-json", "address", "show", "up")
    found = []
    try:
        for link in json.loads(listed.output) if listed.status == 0 else []:
            for entry in link.get("addr_info", []):
                address = ipaddress.ip_address(entry["local"])
                if not address.is_loopback and not address.is_link_local:
                    found.append(address)
    except (ValueError, KeyError, TypeError, AttributeError):
        return []
    return [str(address) for address in sorted(found, key=lambda address: (address.version, int(address)))]


def _health_problems(paths: Paths) -> list[str]:
    try:
        why = json.loads(paths.text("run/blipmq-device/health.json"))["why"]
    except (ValueError, KeyError, TypeError):
        return []
    return [f"the self-test of the broker failed: {why}"] if why else []


def _disk(paths: Paths) -> tuple[str, bool]:
    """The data partition as text, and whether it is nearly full."""
    if not paths.mounted(paths.data):
        return "no data partition", False
    try:
        about = os.statvfs(paths.data)
    except OSError as error:
        return f"the data partition does not answer ({error.strerror})", False
    size, free = about.f_blocks * about.f_frsize, about.f_bavail * about.f_frsize
    return f"{free >> 20} of {size >> 20} MiB free", free < size * (1 - DISK_FULL)


def _time(paths: Paths, system: System) -> str:
    source = "from a time server" if clock.is_synchronised(paths) else "no time server has answered, so it may be wrong"
    return f"{_stamp(system.now())}, {source}"


def _stamp(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))
