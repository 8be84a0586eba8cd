"""Conversion of other programs' configurations: the part common to all formats.

A reader of one kind of file (`conversion_v1` is one) returns a `Fate` for each of its lines. This module makes the
fates consistent and writes them as TOML.
Invariant: `blipmq check` accepts the result, or `convert` raises; each line of the old file has a fate; no fate shows a
secret.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from blipmq.base.bind_address import is_loopback, split_address
from blipmq.config import memory, schema_reader
from blipmq.config import reader as config_reader
from blipmq.config.schema import literal
from blipmq.config.settings import KEYS, MIB, Config
from blipmq.errors import ConfigError

BLOCK_BYTES = 4096
KEYS_LOST = "left out: there is no key in it that can be used"
"""The fate of old keys that are invalid here. Without them the broker must not become open to everyone."""


class Fate(NamedTuple):
    """The fate of one setting of the old file. `line`: its line, 0 for an added setting; `old`: its text there. `key`
    and `value`: the setting here; "" if there is none. `said`: what happened to it, and why."""

    line: int
    old: str
    said: str
    key: str = ""
    value: Any = None
    above: tuple[str, ...] = ()  # the comments above it
    beside: str = ""


class Converted(NamedTuple):
    """A configuration of this broker, and the fate of each setting of the old one, in its order."""

    text: str
    fates: list[Fate]


Reader = Callable[[str, str], list[Fate]]


def convert(text: str, name: str, read: Reader) -> Converted:
    """Convert the file called `name`, read by `read`. Raises `ConfigError` if it is not of that kind."""
    fates = _together(read(text, name))
    made = _written(fates, name)
    config_reader.load_texts([(f"{name}, converted", made)], {})
    return Converted(made, fates)


def fate_of(line: int, old: str, key: str, was: Any, value: Any, renamed: bool, why: str = "") -> Fate:
    """Return the fate of a setting that is called `key` here, with the old value `was` and the new value `value`: kept,
    or replaced by the nearest allowed one."""
    wanted = KEYS[key]
    shown = "its value" if wanted.secret else schema_reader.shown(value)
    if isinstance(value, str) and wanted.choices:
        value = value.strip().lower()
    if not schema_reader.problem_with(wanted, value):
        place = f"renamed to {key}" if renamed else "kept"
        place += "" if value == was or wanted.secret else f", as {literal(value)}"
        return Fate(line, old, place + (f": {why}" if why else ""), key, value)
    if wanted.type != "int" or isinstance(value, bool) or not isinstance(value, int):
        default = "" if wanted.secret else f", {literal(wanted.default)}"
        return Fate(line, old, f"left out: {shown} is not {wanted.expected} for {key}; its default holds{default}")
    nearest = min(max(value, wanted.low), wanted.high)
    moved = f"renamed to {key}, and " if renamed else ""
    return Fate(line, old, f"{moved}replaced by {nearest}: {shown} is not {wanted.expected}", key, nearest)


# ---- consistency
# -----------------------------------------------------------------------------------------------------------


class _Settings:
    """The fates during the conversion, by setting."""

    def __init__(self, fates: Sequence[Fate]) -> None:
        self.fates: list[Fate] = []
        self._places: dict[str, int] = {}
        for fate in fates:
            if fate.key in self._places:  # two old settings map to the same one here
                first = self.fates[self._places[fate.key]]
                fate = fate._replace(
                    said=f"left out: {fate.key} is set by line {first.line} already", key="", value=None
                )
            if fate.key:
                self._places[fate.key] = len(self.fates)
            self.fates.append(fate)

    def get(self, key: str) -> Any:
        return self.fates[self._places[key]].value if key in self._places else KEYS[key].default

    def put(self, key: str, value: Any, why: str) -> None:
        """Set a value: replace the old file's, or add one."""
        if key in self._places:
            fate = self.fates[self._places[key]]
            self.fates[self._places[key]] = fate._replace(
                value=value, said=f"replaced by {literal(value)}: {why}", beside=""
            )
        else:
            self._places[key] = len(self.fates)
            self.fates.append(Fate(0, "", f"added: {why}", key, value))

    def drop(self, key: str, why: str) -> None:
        place = self._places.pop(key)
        self.fates[place] = self.fates[place]._replace(key="", value=None, said=f"left out: {why}")

    def has(self, key: str) -> bool:
        return key in self._places

    def values(self) -> dict[str, Any]:
        return {key: self.fates[place].value for key, place in self._places.items()}


def _together(fates: Sequence[Fate]) -> list[Fate]:
    settings = _Settings(fates)
    _fit_wal(settings)
    _fit_times(settings)
    _fit_exposure(settings, any(fate.said == KEYS_LOST for fate in fates))
    for _ in range(len(KEYS)):
        wrong = _wrong(settings)
        if wrong is None:
            return settings.fates
        key, why = wrong
        if not settings.has(key):
            raise ConfigError(f"The converted settings are not valid: {key}: {why}")
        settings.drop(key, f"{why}; the default is used: {literal(KEYS[key].default)}")
    raise ConfigError("The converted settings are not valid.")


def _fit_wal(settings: _Settings) -> None:
    if not settings.get("wal.enabled"):
        return
    given = settings.get("wal.segment_size_bytes")
    message_bytes = settings.get("server.max_message_size_bytes")
    server = type(Config().server)(max_message_size_bytes=message_bytes)
    needed = 2 * memory.wal_batch_bytes(Config(server=server))
    unit = MIB if given < needed else BLOCK_BYTES
    wanted = -(-max(given, needed) // unit) * unit
    if wanted > KEYS["wal.segment_size_bytes"].high:
        wanted = KEYS["wal.segment_size_bytes"].high // BLOCK_BYTES * BLOCK_BYTES
    if wanted != given:
        why = (
            f"messages of server.max_message_size_bytes ({message_bytes}) need {needed}"
            if given < needed
            else f"it must be a multiple of {BLOCK_BYTES}, the block size of disks"
        )
        settings.put("wal.segment_size_bytes", wanted, why)
    if settings.get("wal.max_bytes") < 4 * wanted:
        settings.put("wal.max_bytes", 4 * wanted, "the WAL needs room for four segments (wal.segment_size_bytes)")


def _fit_times(settings: _Settings) -> None:
    longest = settings.get("performance.timer_config.max_timeout_ms")
    if settings.get("delivery.default_ttl_ms") > longest:
        settings.put("delivery.default_ttl_ms", longest, "performance.timer_config.max_timeout_ms is the maximum")


def _fit_exposure(settings: _Settings, keys_were_meant: bool) -> None:
    """A broker that served everyone still does, and one that was meant to require keys never becomes open."""
    if settings.get("auth.api_keys") or settings.get("auth.keys_file") or settings.get("auth.allow_anonymous"):
        return
    for key in ("server.bind_addr", "server.tls_bind_addr", "mqtt.bind_addr", "mqtt.tls_bind_addr"):
        address = settings.get(key)
        if not address or is_loopback(split_address(address)[0]):
            continue
        if keys_were_meant:
            port = split_address(address)[1]
            why = "no old key is valid, and without keys only this machine may connect. Create one: `blipmq keys add`"
            settings.put(key, f"127.0.0.1:{port}", why)
        else:
            why = "the old broker served everyone who could reach it. Safer: create keys (`blipmq keys add`), and remove this"
            settings.put("auth.allow_anonymous", True, why)


def _wrong(settings: _Settings) -> tuple[str, str] | None:
    """Return a setting that contradicts the others, and why; None if there is none."""
    nested: dict[str, Any] = {}
    for path, value in settings.values().items():
        *sections, name = path.split(".")
        table = nested
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = list(value) if isinstance(value, tuple) else value
    try:
        config_reader.from_dict(nested)
    except ConfigError as error:
        for line in str(error).splitlines()[1:]:
            if (match := re.match(r"[^:]*: ([a-z0-9_.]+): (.*)", line)) and match[1] in KEYS:
                return match[1], match[2]
        raise
    return None


# ---- writing -----------------------------------------------------------------------------------------------------------------


def _written(fates: Sequence[Fate], name: str) -> str:
    lines = [f"# Made from {printable(name)} by `blipmq check --convert`."]
    by_key = {fate.key: fate for fate in fates if fate.key}
    section = ""
    for path in KEYS:
        if path not in by_key:
            continue
        fate = by_key[path]
        head, key = path.rsplit(".", 1)
        if head != section:
            section = head
            lines += ["", f"[{head}]"]
        lines += fate.above
        if not fate.beside and not fate.said.startswith("kept"):
            lines.append(f"# {_where(fate)}{fate.said}")
        lines.append(f"{key} = {_toml(fate.value)}{'  ' + fate.beside if fate.beside else ''}")
    left_out = [fate for fate in fates if not fate.key]
    if left_out:
        lines += ["", "# Left out:"]
        lines += [f"# {_where(fate)}{fate.said}" for fate in left_out]
    return "\n".join([*lines, ""])


def _where(fate: Fate) -> str:
    return f"line {fate.line}, {printable(fate.old)}: " if fate.line else ""


def printable(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):  # JSON strings are TOML strings, except for one character
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return literal(value)
