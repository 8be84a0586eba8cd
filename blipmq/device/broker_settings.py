"""The broker's settings on this device: a profile for its memory size, overridden by blipmq.toml, overridden by the
image.

Invariant: the broker's own reader has accepted the result, so the broker starts with it.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from blipmq.base.bind_address import is_loopback, split_address
from blipmq.config.reader import load_texts
from blipmq.config.schema_reader import Lines, parse_toml, read_text
from blipmq.config.settings import KEYS, Config, value_of
from blipmq.device.paths import Paths
from blipmq.errors import ConfigError

MIB = 1 << 20
# The maximum of MemTotal for each profile. A board of 512 MB reports less to its programs.
PROFILES = (
    (384 * MIB, "blipmq-edge-256m"),
    (768 * MIB, "blipmq-edge-512m"),
    (3072 * MIB, "blipmq-edge-1g"),
)
LARGEST = "blipmq-production"
OPEN_ADDR = "[::]:7878"
DECIDED = {
    "wal.directory": "the WAL is on the data partition of this device",
    "auth.keys_file": "the keys of this device are those of [[keys]] in device.toml",
}


class Broker(NamedTuple):
    """The settings that the broker starts with. `text`: all of them as a file; `profile`: the profile below them."""

    config: Config
    text: str
    profile: str

    @property
    def is_open(self) -> bool:
        """Whether other machines can reach the broker."""
        addr = self.config.server.bind_addr
        return bool(addr) and not is_loopback(split_address(addr)[0])


class Ground(NamedTuple):
    """The base of blipmq.toml: the present state of the device."""

    profile: str
    profile_text: str
    has_keys: bool
    keys_file: str
    log_directory: str  # "" without a writable data partition

    @classmethod
    def of(cls, paths: Paths, has_keys: bool) -> Ground:
        name = next((name for most, name in PROFILES if paths.memory_bytes <= most), LARGEST)
        try:
            text = read_text(paths.profiles / f"{name}.toml")
        except ConfigError:  # an image without profiles uses the broker's own defaults
            name, text = "the defaults", ""
        log = str(paths.data / "blipmq/wal") if paths.mounted(paths.data) == "rw" else ""
        return cls(name, text, has_keys, str(paths.broker_keys), log)


def read_broker(text: str, name: str, ground: Ground) -> Broker:
    """The settings in `text`, called `name` in messages, as this device runs them. Raises `ConfigError`."""
    table = parse_toml(text, name)
    _refuse_decided(table, Lines(text), name)
    wants_anyone = _value(table, "auth.allow_anonymous") is True
    below = {"server.bind_addr": OPEN_ADDR} if ground.has_keys or wants_anyone else {}
    above: dict[str, Any] = {"wal.directory": ground.log_directory} if ground.log_directory else {"wal.enabled": False}
    if ground.has_keys:
        above["auth.keys_file"] = ground.keys_file
    files = [
        (ground.profile, ground.profile_text),
        ("this image", _toml(below)),
        (name, text),
        ("this image", _toml(above)),
    ]
    try:
        config = load_texts(files, {}).config
    except ConfigError as error:
        raise ConfigError("\n".join(str(error).splitlines()[1:]) or str(error)) from None
    defaults = Config()
    chosen = {path: value_of(config, path) for path in KEYS if value_of(config, path) != value_of(defaults, path)}
    head = f"# Written by blipmq-device from {ground.profile} and blipmq.toml; changes in this file are lost at the next start.\n"
    return Broker(config, head + _toml(chosen), ground.profile)


def _refuse_decided(table: dict[str, Any], lines: Lines, name: str) -> None:
    problems = [
        f"{name}:{lines.find(path)}: {path}: {why}; remove this line"
        for path, why in DECIDED.items()
        if _value(table, path) is not None
    ]
    if problems:
        raise ConfigError("\n".join(problems))


def _value(table: dict[str, Any], path: str) -> Any:
    section, _, key = path.partition(".")
    values = table.get(section)
    return values.get(key) if isinstance(values, dict) else None


def _toml(settings: dict[str, Any]) -> str:
    """`{"section.key": value}` as a file."""
    sections: dict[str, list[str]] = {}
    for path, value in settings.items():
        section, _, key = path.rpartition(".")
        sections.setdefault(section, []).append(f"{key} = {_literal(value)}")
    return "".join("\n".join([f"[{section}]", *lines, ""]) for section, lines in sections.items())


def _literal(value: Any) -> str:
    """JSON literals are TOML literals, except for DEL."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False).replace("\x7f", "\\u007f")
