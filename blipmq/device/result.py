"""What `apply` made of the settings, kept for `status`, which comes later and again and again.

Invariant: a file that is not there, or not of this version, reads as an outcome that says so.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from typing import Any

from blipmq.device.atomic_write import write_file
from blipmq.device.paths import Places


@dataclass(frozen=True)
class Outcome:
    """`problems` make a device degraded; `notes` are things to know. `device` and `broker`: "file", "kept" or "default"."""

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

    def write(self, places: Places) -> None:
        """Raises OSError."""
        write_file(places.outcome, json.dumps(asdict(self)) + "\n", 0o600)


NOT_APPLIED = Outcome(
    problems=("the settings have not been applied since the start: `systemctl status blipmq-apply` says why",)
)


def read_outcome(places: Places) -> Outcome:
    """What `apply` said last."""
    try:
        kept = json.loads(places.text("run/blipmq-device/outcome.json"))
        values: dict[str, Any] = {}
        for item in fields(Outcome):
            value = kept[item.name]
            values[item.name] = tuple(value) if isinstance(value, list) else value
        return Outcome(**values)
    except (ValueError, KeyError, TypeError):
        return NOT_APPLIED
