"""Exceptions: scripts that test something outside the specification, and single answers that the specification decides otherwise.

Invariant: each exception names a section of the specification, or the feature of mosquitto that is not in it, and its reason.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass(frozen=True)
class Script:
    """A script that must fail as long as it stands here."""

    section: str
    reason: str

    @property
    def why(self) -> str:
        return f"{self.section}: {self.reason}"


@dataclass
class Exceptions:
    """`differences`: by script, packets that are accepted in place of the expected ones. `pending`: scripts that need a feature
    which BlipMQ will have; CONNACK may say so meanwhile."""

    scripts: dict[str, Script] = field(default_factory=dict)
    differences: dict[str, list[dict[str, str]]] = field(default_factory=dict)
    pending: dict[str, str] = field(default_factory=dict)


def load(path: Path, known: set[str]) -> Exceptions:
    """Raises ValueError if an entry is incomplete or names a script that does not exist."""
    found = Exceptions()
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    for entry in data.get("exception", []):
        for name in entry["scripts"]:
            _check(entry, name, known)
            if name in found.scripts:
                raise ValueError(f"{path.name}: {name} stands there twice")
            found.scripts[name] = Script(entry["section"], entry["reason"])
    for entry in data.get("difference", []):
        _check(entry, entry["script"], known)
        one = {key: entry[key] for key in ("packet", "expected", "received")}
        found.differences.setdefault(entry["script"], []).append(one)
    for entry in data.get("pending", []):
        for name in entry["scripts"]:
            if name not in known or name in found.scripts:
                raise ValueError(f"{path.name}: {name} cannot be pending")
            found.pending[name] = entry["feature"]
    return found


def _check(entry: dict[str, Any], name: str, known: set[str]) -> None:
    if name not in known:
        raise ValueError(f"exceptions: there is no script {name}")
    if not entry.get("section") or not entry.get("reason"):
        raise ValueError(f"exceptions: {name} needs a section and a reason")
