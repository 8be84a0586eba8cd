"""Reads device.toml.

Invariant: what comes out is complete and valid, or one `ConfigError` lists everything that is wrong, each with file and line;
whatever bytes come in, nothing else is raised. Reading has no side effects.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from blipmq.config.reader import Lines, nearest, parse_toml, shown
from blipmq.device.settings import KEYS_MAX, LIST_MAX, SECTIONS, SETTINGS, BrokerKey, Device, Setting
from blipmq.errors import ConfigError

PROBLEMS_MAX = 50


def read_device(text: str, name: str = "device.toml") -> Device:
    """The settings in `text`; `name` is what messages call the file. Raises `ConfigError`."""
    reading = _Reading(name, Lines(text))
    device = reading.take(parse_toml(text, name))
    if reading.problems:
        raise ConfigError("\n".join(reading.problems[:PROBLEMS_MAX]))
    return device


class _Reading:
    """One file in the making: what was taken so far, and what is wrong with the rest."""

    def __init__(self, name: str, lines: Lines) -> None:
        self.problems: list[str] = []
        self._name = name
        self._lines = lines

    def take(self, table: Mapping[str, Any]) -> Device:
        device = Device()
        changes: dict[str, Any] = {}
        for word, value in table.items():
            if word == "keys":
                changes["keys"] = self._keys(value)
            elif word in SECTIONS:
                if isinstance(value, Mapping):
                    changes[word] = replace(getattr(device, word), **self._section(value, word, word))
                else:
                    self._wrong(word, f"{word} is a section, not a setting; write [{word}] on a line of its own")
            elif word in SETTINGS:
                self._put(changes, SETTINGS[word], word, value, word)
            else:
                self._unknown(word, word, isinstance(value, Mapping))
        device = replace(device, **changes)
        if not self.problems:  # how settings go together can be judged only when each is right by itself
            self._check_together(device)
        return device

    def _section(self, table: Mapping[str, Any], section: str, place: str) -> dict[str, Any]:
        """What a table sets; `place` is where it stands in the file: network, keys.0."""
        changes: dict[str, Any] = {}
        for word, value in table.items():
            declared = SETTINGS.get(f"{section}.{word}")
            if declared is None:
                self._unknown(f"{section}.{word}", f"{place}.{word}", False)
            else:
                self._put(changes, declared, word, value, f"{place}.{word}")
        return changes

    def _keys(self, value: Any) -> tuple[BrokerKey, ...]:
        if not isinstance(value, list) or not all(isinstance(entry, Mapping) for entry in value):
            self._wrong("keys", "keys is a list of tables; write [[keys]] on a line of its own, once for each key")
            return ()
        if len(value) > KEYS_MAX:
            self._wrong("keys", f"{len(value)} keys; {KEYS_MAX} are the most a device creates")
            return ()
        return tuple(BrokerKey(**self._section(entry, "keys", f"keys.{n}")) for n, entry in enumerate(value))

    def _put(self, changes: dict[str, Any], s: Setting, word: str, value: Any, place: str) -> None:
        problem = _problem(s, value)
        if problem:
            self._wrong(place, f"{s.path}: {problem}")
        else:
            changes[word] = tuple(value) if s.is_list else value

    def _check_together(self, device: Device) -> None:
        network, wifi = device.network, device.wifi
        if network.address == "dhcp":
            for word, value in (("gateway", network.gateway), ("dns", network.dns)):
                if value:
                    self._wrong(
                        f"network.{word}", f'network.{word}: with address = "dhcp" the network names it; take it out'
                    )
        if wifi.ssid and not wifi.country:
            self._wrong(
                "wifi", 'wifi.country: missing; radio rules differ, so say where the device stands: country = "DE"'
            )
        if not wifi.ssid and (wifi.passphrase or wifi.country):
            self._wrong("wifi", "wifi.ssid: missing; which network is it?")
        if network.interface == "wifi" and not wifi.ssid:
            self._wrong("network.interface", 'network.interface: "wifi", but there is no [wifi] section with an ssid')
        names: set[str] = set()
        for n, key in enumerate(device.keys):
            if not key.name:
                self._wrong(f"keys.{n}", 'keys.name: missing; write name = "..."')
            elif key.name in names:
                self._wrong(f"keys.{n}.name", f'keys.name: "{key.name}" is there twice')
            names.add(key.name)

    def _unknown(self, path: str, place: str, is_section: bool) -> None:
        known = SECTIONS if is_section else tuple(SETTINGS)
        what, mark = ("section", "[{}]") if is_section else ("setting", "{}")
        near = nearest(path, known)
        meant = f"; did you mean {mark.format(near)}?" if near else ""
        self._wrong(place, f"there is no {what} {mark.format(shown(path)[1:-1])}{meant}")

    def _wrong(self, place: str, what: str) -> None:
        line = self._lines.find(place)
        self.problems.append(f"{self._name}:{line}: {what}" if line else f"{self._name}: {what}")


def _problem(s: Setting, value: Any) -> str:
    """What is wrong with `value` for this setting, or nothing."""
    right = isinstance(value, list) if s.is_list else isinstance(value, str)
    texts = value if isinstance(value, list) else [value]
    if not right or not all(isinstance(text, str) for text in texts):
        return f"{shown(value)} is not {s.expected}"
    if len(texts) > LIST_MAX:
        return f"{len(texts)} entries; {LIST_MAX} are the most"
    for text in texts:
        if s.is_list and not text:
            return "an entry is empty; take it out"
        if s.check is not None and text:
            try:
                s.check(text)
            except ValueError as error:
                return f"{shown(text)}: {error}"
    return ""
