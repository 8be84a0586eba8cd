"""The keys that device.toml asks for: created once, shown once, revoked when they are removed from it.

Invariant: a created key is on the settings partition before the broker accepts it, so that a power cut loses none. A
key changes only if its table in device.toml changes. The device has its own key for the self-test, without any other
rights.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from blipmq.auth import keys
from blipmq.device.atomic_write import write_file, write_for_notepad
from blipmq.device.checks import OWN_KEY_NAME
from blipmq.device.paths import Paths
from blipmq.device.settings import BrokerKey
from blipmq.errors import BlipMQError

OWN_TOPIC = "blipmq-device/selftest"
OWN_RIGHTS = (f"pub:{OWN_TOPIC}", f"sub:{OWN_TOPIC}")
SHEET_HEAD = """\
Keys that this device has made. Copy each to the client it is for, then delete this file:
whoever holds the card can read it. They are not written down anywhere else.

"""


class Store(Protocol):
    """The store of the broker's keys."""

    def names(self) -> list[str]: ...

    def add(self, name: str, allow: Iterable[str], key: str) -> None: ...

    def revoke(self, name: str) -> None: ...


class KeyFile:
    """The broker's key file."""

    def __init__(self, paths: Paths) -> None:
        self._path = paths.broker_keys

    def __repr__(self) -> str:
        return f"<KeyFile {self._path}>"

    def names(self) -> list[str]:
        """The names of the keys. Raises ConfigError if the file exists and is invalid."""
        return list(dict.fromkeys(key.name for key in keys.list_keys(self._path))) if self._path.exists() else []

    def add(self, name: str, allow: Iterable[str], key: str) -> None:
        keys.add_key(self._path, name, allow, key)

    def revoke(self, name: str) -> None:
        keys.revoke_key(self._path, name)


class Keys(NamedTuple):
    """The result: the keys that clients can use now, by name, and the problems."""

    names: list[str]
    problems: list[str]


def apply_keys(paths: Paths, wanted: Sequence[BrokerKey], store: Store) -> Keys:
    """Make the store hold the `wanted` keys, in addition to keys that a person added."""
    made = _Made(paths)
    problems: list[str] = []
    try:
        _revoke_unwanted(made, wanted, store)
        for key in wanted:
            _make(paths, key, made, store)
        names = [name for name in store.names() if name != OWN_KEY_NAME]
        _have_own(paths, bool(names), store)
    except (BlipMQError, OSError) as error:
        problems.append(f"keys: {getattr(error, 'strerror', None) or error}")
        names = []
        try:
            names = [name for name in store.names() if name != OWN_KEY_NAME]
        except BlipMQError:
            problems.append(
                "keys: every client is refused until the key file can be read; a factory reset creates a new one"
            )
    return Keys(names, problems)


def own_key(paths: Paths) -> str:
    """The key with which the device tests its broker; "" if it needs none."""
    return paths.text("data/device/own-key")


class _Made:
    """The keys created so far, each with a hash of its table in device.toml."""

    def __init__(self, paths: Paths) -> None:
        self._path = paths.made_keys
        try:
            kept = json.loads(paths.text("data/device/keys.json"))
            self._salt, self._marks = str(kept["salt"]), {str(name): str(mark) for name, mark in kept["keys"].items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            self._salt, self._marks = secrets.token_hex(16), {}

    def __iter__(self) -> Any:
        return iter(list(self._marks))

    def is_of(self, key: BrokerKey) -> bool:
        return self._marks.get(key.name) == self._mark(key)

    def note(self, key: BrokerKey) -> None:
        self._marks[key.name] = self._mark(key)
        self._write()

    def forget(self, name: str) -> None:
        self._marks.pop(name, None)
        self._write()

    def _mark(self, key: BrokerKey) -> str:
        return hashlib.sha256(json.dumps([self._salt, key.name, sorted(key.allow), key.key]).encode()).hexdigest()

    def _write(self) -> None:
        write_file(self._path, json.dumps({"salt": self._salt, "keys": self._marks}) + "\n", 0o600)


def _revoke_unwanted(made: _Made, wanted: Sequence[BrokerKey], store: Store) -> None:
    there, names = set(store.names()), {key.name for key in wanted}
    for name in made:
        if name not in names:
            if name in there:
                store.revoke(name)
            made.forget(name)


def _make(paths: Paths, key: BrokerKey, made: _Made, store: Store) -> None:
    is_there = key.name in store.names()
    if is_there and made.is_of(key):
        return
    text = key.key or f"bq_{secrets.token_urlsafe(32)}"
    if not key.key:
        _tell(paths, key.name, text)
    if is_there:
        store.revoke(key.name)
    store.add(key.name, key.allow, text)
    made.note(key)


def _tell(paths: Paths, name: str, text: str) -> None:
    told = dict(
        re.findall(r"^(\S+) = (\S+)$", paths.text("boot/blipmq/blipmq-new-keys.txt").replace("\r", ""), re.MULTILINE)
    )
    told[name] = text
    write_for_notepad(paths.new_keys, SHEET_HEAD + "".join(f"{name} = {text}\n" for name, text in told.items()))


def _have_own(paths: Paths, needed: bool, store: Store) -> None:
    """Give the device its own key, because a broker with keys requires one from every client."""
    is_there = OWN_KEY_NAME in store.names()
    if is_there and (not needed or not own_key(paths)):
        store.revoke(OWN_KEY_NAME)
        is_there = False
    if needed and not is_there:
        text = f"bq_{secrets.token_urlsafe(32)}"
        write_file(paths.own_key, text + "\n", 0o600)
        store.add(OWN_KEY_NAME, OWN_RIGHTS, text)
