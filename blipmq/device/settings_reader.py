"""Reads device.toml.

Invariant: the result is complete and valid, or one `ConfigError` lists all problems, each with file and line. No input
raises anything else. Reading has no side effects.
"""

from __future__ import annotations

from collections.abc import Iterator

from blipmq.config.schema_reader import Lines, Reading, Source, parse_toml
from blipmq.device.settings import SCHEMA, Device
from blipmq.errors import ConfigError

PROBLEMS_MAX = 50


def read_device(text: str, name: str = "device.toml") -> Device:
    """The settings in `text`; messages call the file `name`. Raises `ConfigError`."""
    reading, source = Reading(SCHEMA), Source(name, Lines(text))
    reading.take_table(parse_toml(text, name), source)
    device: Device = reading.build()
    # Relations between settings are checked only if each is valid by itself.
    problems = reading.problems or [f"{source.at(place)}: {what}" for place, what in _clashes(device)]
    if problems:
        raise ConfigError("\n".join(problems[:PROBLEMS_MAX]))
    return device


def _clashes(device: Device) -> Iterator[tuple[str, str]]:
    """Yield settings that contradict each other: the place in the file, and the problem."""
    network, wifi = device.network, device.wifi
    if network.address == "dhcp":
        for word, value in (("gateway", network.gateway), ("dns", network.dns)):
            if value:
                what = f'network.{word}: with address = "dhcp" the network names it; take it out'
                yield f"network.{word}", what
    if wifi.ssid and not wifi.country:
        yield "wifi", 'wifi.country: missing; radio rules depend on it; set it, for example country = "DE"'
    if not wifi.ssid and (wifi.passphrase or wifi.country):
        yield "wifi", "wifi.ssid: missing; set the name of the network"
    if network.interface == "wifi" and not wifi.ssid:
        yield "network.interface", 'network.interface: "wifi", but there is no [wifi] section with an ssid'
    names: set[str] = set()
    for n, key in enumerate(device.keys):
        if not key.name:
            yield f"keys.{n}", 'keys.name: missing; write name = "..."'
        elif key.name in names:
            yield f"keys.{n}.name", f'keys.name: "{key.name}" exists twice'
        names.add(key.name)
