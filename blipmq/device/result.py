"""The result of `apply`, stored for `status`, which runs later and repeatedly.

Invariant: a missing file, or one of another version, is read as NOT_APPLIED.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from blipmq.device.atomic_write import write_file
from blipmq.device.paths import Paths


@dataclass(frozen=True)
class Result:
    """`problems` make a device degraded; `notes` are information. `device` and `broker`: "file", "kept" or "default"."""

    hostname: str = "blipmq"
    address: str = "dhcp"
    device: str = "default"
    broker: str = "default"
    profile: str = ""
    bind_addr: str = ""
    metrics_addr: str = ""
    is_open: bool = False
    has_log: bool = False
    has_data: bool = False
    keys: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def write(self, paths: Paths) -> None:
        """Store the result. Raises OSError."""
        write_file(paths.result, json.dumps(asdict(self)) + "\n", 0o600)


NOT_APPLIED = Result(
    problems=("the settings have not been applied since the start; `systemctl status blipmq-apply` shows the cause",)
)


def read_result(paths: Paths) -> Result:
    """The last result of `apply`."""
    try:
        kept = json.loads(paths.text("run/blipmq-device/result.json"))
        values: dict[str, Any] = {}
        for item in fields(Result):
            value = kept[item.name]
            values[item.name] = tuple(value) if isinstance(value, list) else value
        return Result(**values)
    except (ValueError, KeyError, TypeError):
        return NOT_APPLIED
