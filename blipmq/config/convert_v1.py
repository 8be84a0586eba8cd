"""Reads a configuration of BlipMQ 1.0.0: which settings have another name here, and which have no effect here.

Invariant: if the file is TOML, each of its settings gets one fate, in the order of the file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from blipmq.config.convert import KEYS_LOST, Fate, fate_of
from blipmq.config.schema_reader import Lines, nearest, parse_toml, shown
from blipmq.config.settings import KEYS, MIB
from blipmq.errors import ConfigError

_SYNC = (
    "in 1.0.0, messages of this time could be lost; here each QoS 1 publish is on disk before it is answered, and this value "
    "would delay it"
)
_ONE_THREAD = "there is one I/O thread"
_PINNING = "use performance.network_optimizations.cpu_affinity instead"
_NO_WAIT = "the broker does not delay messages to collect more of them"
_KERNEL = "it is a setting of the kernel: use sysctl"
_KEEPALIVE = "server.keepalive_ms"


class _Rule(NamedTuple):
    """`key`: its name here, "" if none; `why`: the reason for the message; `change`: converts its value."""

    key: str = ""
    why: str = ""
    change: Callable[[Any], Any] | None = None


def _times(factor: int) -> Callable[[Any], Any]:
    return lambda value: value * factor if isinstance(value, int) and not isinstance(value, bool) else value


def _auto(value: Any) -> Any:
    return {True: "auto", False: ""}.get(value, value) if isinstance(value, bool) else value


def _level(value: Any) -> Any:
    name = value.strip().lower() if isinstance(value, str) else value
    return {"trace": "debug", "warn": "warning"}.get(name, name) if isinstance(name, str) else value


def _format(value: Any) -> Any:
    return "text" if isinstance(value, str) and value.strip().lower() in ("pretty", "compact", "full") else value


def _one_key(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_NETWORK, _TIMER = "performance.network_optimizations", "performance.timer_config"
# Settings with the same name and meaning in both versions are not listed.
_RULES = {
    "server.auth_enabled": _Rule(why="authentication is on as soon as a key is configured"),
    "server.api_key": _Rule("auth.api_keys", change=_one_key),
    "auth.enabled": _Rule(why="authentication is on as soon as a key is configured"),
    "auth.api_key": _Rule("auth.api_keys", change=_one_key),
    "queues.max_queue_depth": _Rule("queues.topic_capacity"),
    "queues.default_ttl_ms": _Rule("delivery.default_ttl_ms"),
    "wal.segment_size_mb": _Rule("wal.segment_size_bytes", "a MiB has 1048576 bytes", _times(MIB)),
    "metrics.enabled": _Rule(why="metrics.bind_addr turns metrics on"),
    f"{_TIMER}.wheel_size": _Rule(why="the size is automatic"),
    "performance.timer_wheel_resolution_ms": _Rule(f"{_TIMER}.resolution_ms"),
    "performance.batch_config.ttl_max_batch_delay_ms": _Rule(why=_NO_WAIT),
    "performance.batch_config.fanout_max_batch_delay_ms": _Rule(why=_NO_WAIT),
    "performance.cpu_affinity": _Rule(f"{_NETWORK}.cpu_affinity", change=_auto),
    "performance.cpu_affinity.enable_affinity": _Rule(f"{_NETWORK}.cpu_affinity", change=_auto),
    "performance.tcp_nodelay": _Rule(f"{_NETWORK}.tcp_nodelay"),
    "performance.tcp_recv_buffer": _Rule(f"{_NETWORK}.recv_buffer_size"),
    "performance.tcp_send_buffer": _Rule(f"{_NETWORK}.send_buffer_size"),
    "performance.allocator": _Rule(why="the core has its own memory pools"),
    f"{_NETWORK}.reuse_addr": _Rule(why="it is always on"),
    f"{_NETWORK}.reuse_port": _Rule(why=_ONE_THREAD),
    f"{_NETWORK}.keepalive_timeout_secs": _Rule(
        _KEEPALIVE,
        "" if _KEEPALIVE in KEYS else "this version has no such setting",
        _times(1000),
    ),
    f"{_NETWORK}.tcp_window_scaling": _Rule(why=_KERNEL),
    f"{_NETWORK}.tcp_timestamp": _Rule(why=_KERNEL),
    f"{_NETWORK}.tcp_sack": _Rule(why=_KERNEL),
    "logging.level": _Rule("logging.level", change=_level),
    "logging.format": _Rule("logging.format", change=_format),
    "logging.file": _Rule(
        why="the log goes to standard error; the service manager or the shell can store it in a file"
    ),
    "logging.async_logging": _Rule(why="a slow reader of the log never delays the broker"),
    "logging.buffer_size": _Rule(why="the size of the log buffer is fixed"),
}
_SECTIONS = {
    "performance.cpu_affinity.": _PINNING,
    "performance.memory.": "use limits.memory_bytes instead",
}


def read_v1(text: str, name: str) -> list[Fate]:
    """Return the fate of each setting of the file. Raises `ConfigError` if it is not TOML, or has no settings."""
    table = parse_toml(text, name)
    lines, source = Lines(text), text.splitlines()
    fates = []
    for path, value in _settings(table, ""):
        line = lines.find(path) or 1
        fate = _fate(path, value, line, table)
        if fate.key:
            above, beside = _comments(source, line)
            kept = fate.said.startswith("kept") and not isinstance(value, list)
            fate = fate._replace(above=above, beside=beside if kept else "")
        fates.append(fate)
    if not fates:
        raise ConfigError(f"{name}: the file has no settings, so there is nothing to convert.")
    return sorted(fates, key=lambda fate: fate.line)


def _settings(table: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    """Yield all values of a file with their paths. A table in place of a value is walked as well: its parts are
    unknown."""
    for word, value in table.items():
        path = f"{prefix}{word}"
        if isinstance(value, Mapping) and value and path.count(".") < 8:
            yield from _settings(value, path + ".")
        else:
            yield path, value


def _fate(path: str, value: Any, line: int, table: Mapping[str, Any]) -> Fate:
    secret = "key" in path.rpartition(".")[2]
    old = f"{path} = {'(not shown)' if secret else shown(value)}"
    if special := _special(path, value, line, old, table):
        return special
    rule = _RULES.get(path)
    if rule is None and path in KEYS:
        return fate_of(line, old, path, value, value, renamed=False)
    if rule is not None and rule.key in KEYS:
        changed = rule.change(value) if rule.change is not None else value
        return fate_of(line, old, rule.key, value, changed, renamed=rule.key != path, why=rule.why)
    why = rule.why if rule is not None else next((why for head, why in _SECTIONS.items() if path.startswith(head)), "")
    if why:
        return Fate(line, old, f"no effect in this version: {why}")
    near = nearest(path, tuple(KEYS))
    meant = f"; did you mean {near}?" if near else ""
    return Fate(line, old, f"left out: unknown to 1.0.0 and to this version{meant}")


def _special(path: str, value: Any, line: int, old: str, table: Mapping[str, Any]) -> Fate | None:
    """Return the fate of a setting whose meaning has changed or that depends on another one; None for all others."""
    if path == "delivery.fanout_shards" and isinstance(value, int) and value > 1:
        return Fate(line, old, f"replaced by 1: {_ONE_THREAD}", path, 1)
    if path in ("wal.flush_interval_ms", "wal.fsync_interval_ms"):
        renamed = "" if path == "wal.flush_interval_ms" else "renamed to wal.flush_interval_ms, and "
        if value != 0 or renamed:
            return Fate(line, old, f"{renamed}replaced by 0: {_SYNC}", "wal.flush_interval_ms", 0)
    if path in ("wal.directory", "wal.wal_dir") and isinstance(value, str) and value:
        fresh = f"{value.rstrip('/')}/v2"
        why = "this version cannot read the files of 1.0.0, which have the same names, so the WAL gets a new directory"
        return Fate(line, old, f"replaced by {shown(fresh)}: {why}", "wal.directory", fresh)
    if path == "metrics.enabled" and value is False:
        return Fate(line, old, 'renamed to metrics.bind_addr, which is ""', "metrics.bind_addr", "")
    if path == "wal.max_segments" and isinstance(value, int):
        wal = table["wal"]
        mib = wal.get("segment_size_mb", 64)
        size = wal.get("segment_size_bytes", mib * MIB if isinstance(mib, int) else 64 * MIB)
        whole = value * size if isinstance(size, int) else value * 64 * MIB
        return fate_of(
            line, old, "wal.max_bytes", value, whole, renamed=True, why="the number of files multiplied by their size"
        )
    if path in ("auth.api_key", "auth.api_keys", "server.api_key", "security.api_keys"):
        return _keys(path, value, line, old, table)
    return None


def _keys(path: str, value: Any, line: int, old: str, table: Mapping[str, Any]) -> Fate:
    section = table[path.partition(".")[0]]
    if any(section.get(name) is False for name in ("enabled", "auth_enabled", "enable_authentication")):
        return Fate(line, old, "left out: authentication was off")
    texts = [value] if isinstance(value, str) else value
    if texts in ([], [""]):
        return Fate(line, old, "left out: it is empty, so authentication was off")
    texts = texts if isinstance(texts, list) else []
    usable = [text for text in dict.fromkeys(text for text in texts if isinstance(text, str)) if _is_key(text)]
    if not usable:
        return Fate(line, old, KEYS_LOST)
    fate = fate_of(line, old, "auth.api_keys", usable, usable, renamed=path != "auth.api_keys")
    lost = len(texts) - len(usable)
    said = fate.said + (f", except {lost} that are not valid (empty, with spaces, or repeated)" if lost else "")
    note = "clients of 1.0.0 cannot send a key, so they are refused: update them"
    return fate._replace(said=f"{said}; {note}")


def _is_key(text: str) -> bool:
    return bool(text) and text.isprintable() and len(text.split()) == 1 and len(text.encode("utf-8", "replace")) <= 512


# ---- comments ----------------------------------------------------------------------------------------------------------------


def _comments(source: list[str], line: int) -> tuple[tuple[str, ...], str]:
    """The comments directly above a line, and the one at its end."""
    first = line - 1
    while first > 0 and source[first - 1].lstrip().startswith("#"):
        first -= 1
    above = tuple(text.strip() for text in source[first : line - 1]) if line <= len(source) else ()
    return above, _trailing(source[line - 1]) if line <= len(source) else ""


def _trailing(text: str) -> str:
    quote = ""
    escaped = False
    for place, character in enumerate(text):
        if escaped:
            escaped = False
        elif quote:
            escaped = character == "\\" and quote == '"'
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character == "#":
            return text[place:].strip()
    return ""
