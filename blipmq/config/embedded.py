"""The settings of an embedded broker: a `Config`, nested dicts, the path of a file, or None.

Invariant: no environment variable is read. With dicts there is a WAL only if they set `wal.directory` or `wal.enabled`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeAlias

from blipmq.config import reader
from blipmq.config.settings import Config
from blipmq.errors import WrongType

Settings: TypeAlias = "Config | Mapping[str, Any] | str | os.PathLike[str] | None"


def as_config(config: Settings) -> Config:
    """Read and check the settings. Raises `ConfigError`, or `WrongType` for anything else."""
    if isinstance(config, Config):
        return config
    if config is not None and not isinstance(config, (Mapping, str, os.PathLike)):
        raise WrongType(
            f"config is {config!r} ({type(config).__name__}); it must be a Config, nested dicts, the path of a file or None"
        )
    if config is None or isinstance(config, Mapping):
        return reader.from_dict(_with_wal_where_told({} if config is None else config))
    return reader.load(config, {}).config


def _with_wal_where_told(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    wal = settings.get("wal", {})
    if isinstance(wal, Mapping) and not wal.keys() & {"enabled", "directory"}:
        return {**settings, "wal": {**wal, "enabled": False, "directory": ""}}
    return settings
