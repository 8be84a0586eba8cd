"""Chooses the text of a settings file: the technician's, the last good one, or the defaults.

Invariant: the running version has just checked the whole chosen text. An invalid file changes nothing, and neither does
a missing one: a card that lost a file must not change the device's address.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from blipmq.config.schema_reader import read_text
from blipmq.device.atomic_write import write_file
from blipmq.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class LastKnownGood(Generic[T]):
    """The settings in effect. `origin`: "file", "kept" or "default"; `problems`: why the file is not used, a line each."""

    value: T
    origin: str
    problems: list[str]


def choose(
    name: str, folder: Path, kept: Path, check: Callable[[str, str], T], default: T, keep: bool = True
) -> LastKnownGood[T]:
    """Check `folder`/`name` with `check(text, name)`, which raises `ConfigError`. With `keep` a valid text is stored in
    `kept`."""
    problems: list[str] = []
    try:
        text = _read(folder / name, name)
        if text is not None:
            value = check(text, name)
            problems += _keep(kept / name, text) if keep else []
            return LastKnownGood(value, "file", problems)
    except ConfigError as error:
        problems += _sentences(error, name)
    return _fall_back(name, kept, check, default, problems)


def _fall_back(
    name: str, kept: Path, check: Callable[[str, str], T], default: T, problems: list[str]
) -> LastKnownGood[T]:
    try:
        text = _read(kept / name, name)
        if text is None:
            return LastKnownGood(default, "default", problems)
        value = check(text, f"the last good {name}")
    except ConfigError as error:
        return LastKnownGood(default, "default", problems + _sentences(error, "the "))
    if not problems:
        problems = [f"{name}: missing. To use the defaults, create an empty file of that name"]
    return LastKnownGood(value, "kept", problems)


def _sentences(error: ConfigError, beginning: str) -> list[str]:
    """One sentence for each problem; a line with its remedy is joined to it."""
    sentences: list[str] = []
    for line in str(error).splitlines():
        if sentences and not line.startswith(beginning):
            sentences[-1] += f". {line}"
        else:
            sentences.append(line)
    return sentences


def _read(path: Path, name: str) -> str | None:
    """The text of a file, None if it does not exist. Raises `ConfigError` that calls it `name`."""
    if not path.exists():
        return None
    try:
        return read_text(path)
    except ConfigError as error:
        raise ConfigError(str(error).partition("\n")[0].replace(str(path), name)) from None


def _keep(path: Path, text: str) -> list[str]:
    try:
        write_file(path, text, 0o600)
    except OSError as error:
        return [f"{path.name}: in effect, but not stored for the next start: {error.strerror}"]
    return []
