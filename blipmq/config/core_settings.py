"""The settings that reach the C core: the fields of its two structs, with their values for a configuration.

Invariant: a field takes the value of the key that names it (`core=` or `wal=` in settings.py), or one entry of COMPUTED
or WAL_COMPUTED computes it. The structs, defaults and checks in native/api/settings.h and settings.c are generated from
CORE and WAL (`make settings`). A broker takes the values for its core from them too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from blipmq.base.affinity import choose_processors
from blipmq.config import memory
from blipmq.config.schema import Key
from blipmq.config.settings import KEYS, Config, value_of

UINT32_MAX = (1 << 32) - 1


class Field(NamedTuple):
    """One field of a struct: its name and range in the core, and its value for a configuration."""

    name: str
    help: str
    value: Callable[[Config], int]
    low: int = 0
    high: int = UINT32_MAX
    reload: bool = False
    choices: tuple[str, ...] = ()  # the value is the index of one of these

    @property
    def c_type(self) -> str:
        if self.low < 0:
            return "int32_t"
        return "uint64_t" if self.high > UINT32_MAX else "uint32_t"


def _of_key(k: Key, name: str, value: Callable[[Config], int] | None = None) -> Field:
    """Return the field that one key sets. In the core the lower bound is 0 or 1, because tests use small values."""
    high = len(k.choices) - 1 if k.choices else 1 if k.type == "bool" else k.high
    return Field(name, f"{k.path}: {k.help}", value or _value_of_key(k), int(k.low > 0), high, k.reload, k.choices)


def _value_of_key(k: Key) -> Callable[[Config], int]:
    def value(config: Config) -> int:
        given: Any = value_of(config, k.path)
        return k.choices.index(given) if k.choices else int(given)

    return value


def _batches(config: Config) -> bool:
    return config.performance.enable_batch_processing


def _pooled(path: str, also: str = "") -> Callable[[Config], int]:
    """A number of blocks: 0 without pools, or if the key `also` is off."""

    def value(config: Config) -> int:
        on = config.performance.enable_memory_pools and (not also or value_of(config, also))
        return int(value_of(config, path)) if on else 0

    return value


_POOLS, _WARM = "performance.pool_config.", "performance.warm_up_pools"

COMPUTED = (
    Field(
        "max_frame_bytes",
        "The largest frame of an admitted connection: the largest message with its topic and table around it.",
        memory.max_frame_bytes,
        low=64,
        high=1 << 30,
    ),
    Field(
        "max_frame_bytes_unauth",
        "The same before a connection is admitted (require_hello).",
        lambda _: memory.FRAME_ALLOWANCE_BYTES,
        low=64,
    ),
    Field(
        "require_hello",
        "1: nothing but HELLO before Python admits the connection. Set later, it ends who is in without rights.",
        lambda config: config.auth.required,
        high=1,
        reload=True,
    ),
    _of_key(KEYS["delivery.max_batch"], "max_batch", lambda c: c.delivery.max_batch if _batches(c) else 1),
    _of_key(
        KEYS["delivery.flush_interval_ms"],
        "flush_interval_ms",
        lambda c: c.delivery.flush_interval_ms if _batches(c) else 0,
    ),
    Field("buffer_bytes", "Size of a shared buffer of output.", lambda _: memory.BUFFER_BYTES, low=4096),
    _of_key(KEYS[_POOLS + "buffer_small_count"], "pool_small_count", _pooled(_POOLS + "buffer_small_count")),
    _of_key(KEYS[_POOLS + "buffer_medium_count"], "pool_medium_count", _pooled(_POOLS + "buffer_medium_count")),
    _of_key(KEYS[_POOLS + "buffer_large_count"], "pool_large_count", _pooled(_POOLS + "buffer_large_count")),
    Field("ring_bytes", "Capacity of each ring, a power of two.", memory.ring_bytes, low=65536),
    Field(
        "lazy_expiry",
        "1: no timers for messages; expired ones are found when their turn to be sent comes.",
        lambda config: not config.performance.enable_timer_wheel,
        high=1,
    ),
    Field("warm_entries", "Preallocated queue entries.", _pooled(_POOLS + "message_batch_count", _WARM)),
    Field("warm_buffers", "Preallocated shared buffers.", _pooled(_POOLS + "buffer_large_count", _WARM)),
    Field(
        "max_sessions_per_key",
        "Of max_sessions, those of one key, for who subscribes with BQ_SUB_KEYED.",
        lambda config: config.sessions_per_key,
        low=1,
        reload=True,
    ),
    _of_key(KEYS["queues.topic_capacity"], "run_messages")._replace(low=0),  # 0: as many as one flush sends
    Field(
        "io_cpu",
        "The I/O thread stays on this processor; -1: where the system puts it.",
        lambda config: choose_processors(config.performance.network_optimizations.cpu_affinity)[0],
        low=-1,
    ),
    Field(
        "work_share",
        "Units of work for one client before others come to theirs, see net/fair_share.h; 0: 1024.",
        lambda _: 1024,
    ),
)

WAL_COMPUTED = (
    Field("batch_bytes", "Bytes gathered for one sync.", memory.wal_batch_bytes),
    Field("no_sync", "1: nothing is synced. A test shows with it that a missing sync is found.", lambda _: 0),
)


def _fields(named: Iterable[tuple[Key, str]], computed: Iterable[Field]) -> tuple[Field, ...]:
    """The fields, wide ones first, so that the struct has no gaps."""
    fields = [*(_of_key(k, name) for k, name in named if name), *computed]
    return tuple(sorted(fields, key=lambda field: field.c_type != "uint64_t"))


CORE = _fields(((k, k.core) for k in KEYS.values()), COMPUTED)
WAL = _fields(((k, k.wal) for k in KEYS.values()), WAL_COMPUTED)


def values(fields: Iterable[Field], config: Config) -> dict[str, int]:
    """The value of each of `fields` for `config`. Raises `ConfigError` if this machine does not have a named processor."""
    return {field.name: int(field.value(config)) for field in fields}
