"""The settings of a core and its WAL as C structs.

Invariant: each class has the fields of a struct of native/api/settings.h, with the same names and units: both are
generated from blipmq/config/core_settings.py.
"""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterable
from typing import Any

from blipmq.config.core_settings import CORE, WAL, Field, values
from blipmq.config.settings import Config


def _tuple_of(name: str, fields: Iterable[Field]) -> Any:
    """Return a named tuple class of these fields. The defaults are those of a broker without settings."""
    given = values(fields, Config())
    return namedtuple(name, tuple(given), defaults=tuple(given.values()))


class CoreConfig(_tuple_of("_CoreConfig", CORE)):  # type: ignore[misc]
    """The fields of `bq_config_t`."""

    __slots__ = ()

    @classmethod
    def of(cls, config: Config) -> CoreConfig:
        """The core's values of the settings. Raises `ConfigError` if this machine does not have a processor that they
        name."""
        return cls(**values(CORE, config))


class WalConfig(_tuple_of("_WalConfig", WAL)):  # type: ignore[misc]
    """The fields of `bq_wal_config_t`."""

    __slots__ = ()

    @classmethod
    def of(cls, config: Config) -> WalConfig:
        """The WAL's values of the settings."""
        return cls(**values(WAL, config))
