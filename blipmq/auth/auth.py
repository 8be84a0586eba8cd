"""Authentication: the API keys in effect, how they follow the configuration and the key file, and the ACLs in the core.

Invariant: an error never opens the broker. Until a key file has been read once, no client is admitted. If a later one
cannot be read or is invalid, the previous keys stay in effect, and the problem is reported until it is corrected. The
core gets the ACL of a key before it admits the first client with it, and is told of a change first. `blipmq.auth.keys`
is loaded with the first settings that require keys, because its hash loads OpenSSL.
"""

from __future__ import annotations

import os
import struct
import time
from typing import TYPE_CHECKING, NamedTuple

from blipmq.base.logs import Log
from blipmq.config import settings as config
from blipmq.errors import ConfigError
from blipmq.native.core import Core

if TYPE_CHECKING:
    from blipmq.auth.keys import Key, Keyring, Plain

CHECK_SECONDS = 0.5
"""The interval of checking the key file, in seconds: a change takes effect within a second."""

Signature = tuple[int, ...]
_NEVER: Signature = (-1,)


class Prepared(NamedTuple):
    """Keys that have been read but are not in effect yet."""

    settings: config.Auth
    ring: Keyring | None  # None: no keys are required
    seen: Signature


class Auth:
    """The keys of one broker. `open` reads them for the first time; `look` follows the key file, `apply` the settings."""

    def __init__(self, core: Core, settings: config.Auth, log: Log) -> None:
        self.problem = ""  # why the keys in effect are not those of the key file; "" if they are
        self.refused = 0  # clients refused because of a missing or unknown key
        self.over_limit = 0  # clients refused because their key has reached its limit of connections
        self._core = core
        self._settings = settings
        self._log = log
        self._salt = b""  # for plain keys
        self._ring: Keyring | None = None
        self._seen = _NEVER
        self._given: dict[
            bytes, tuple[int, Key]
        ] = {}  # digest: the core's number of the key's ACL, and the key at that time
        self._free: list[int] = []

    def __repr__(self) -> str:
        return f"<Auth required={self.required} keys={self.count} acls={len(self._given)} problem={self.problem!r}>"

    @property
    def required(self) -> bool:
        """Whether a client needs a key."""
        return self._settings.required

    @property
    def count(self) -> int:
        """The number of keys in effect."""
        return len(self._ring) if self._ring is not None else 0

    @property
    def facts(self) -> dict[str, int]:
        """For `info` and the metrics: the number of `keys` in effect, `file_ok`, the clients `refused` and
        `over_limit`."""
        return {
            "keys": self.count,
            "file_ok": int(not self.problem),
            "refused": self.refused,
            "over_limit": self.over_limit,
        }

    def open(self) -> None:
        """Read the keys. With an invalid key file no client is admitted."""
        self._ring = self._plain_ring(self._settings)
        self.look()

    def look(self) -> bool:
        """Check the key file. Returns True if the keys in effect have changed."""
        path = self._settings.keys_file
        seen = _signature(path)
        if not path or seen == self._seen:
            return self._end_keys()
        self._seen = seen
        try:
            self._ring = self._read(self._settings)
        except ConfigError as error:
            self._failed(str(error), again=seen != _signature(path) or isinstance(error.__context__, OSError))
            return False
        self.problem = ""
        self._log.info("keys_loaded", file=path, keys=self.count)
        if seen[-1] & 0o004:
            self._log.warning(
                "keys_readable",
                file=path,
                hint="every user can read the file: run chmod 600, or chmod 640 for its group",
            )
        self._tell_core()
        return True

    def _end_keys(self) -> bool:
        """Remove expired keys. Returns True if there were any."""
        ended = self._ring.end(time.time()) if self._ring is not None else []
        for key in ended:
            self._log.info("key_ended", name=key.name, keys=self.count)
        if ended:
            self._tell_core()
        return bool(ended)

    def _failed(self, problem: str, again: bool) -> None:
        if problem != self.problem:
            left = (
                f"the {self.count} old keys stay in effect"
                if self.count
                else "every client is refused until the file is correct"
            )
            self._log.error("keys_failed", error=problem, hint=left)
        self.problem = problem
        if again:  # for example out of descriptors: the next attempt can succeed without a change of the file
            self._seen = _NEVER

    def prepare(self, settings: config.Auth) -> Prepared:
        """Read the keys of changed settings. Raises `ConfigError` and changes nothing if they are invalid."""
        seen = _signature(settings.keys_file)
        ring = self._read(settings) if settings.keys_file else self._plain_ring(settings)
        return Prepared(settings, ring, seen)

    def apply(self, prepared: Prepared) -> None:
        """Put prepared keys into effect."""
        self._settings, self._ring, self._seen = prepared
        self.problem = ""
        self._tell_core()

    def _plain_ring(self, settings: config.Auth) -> Keyring | None:
        """The keys written in the settings."""
        if not settings.required:
            return None
        from blipmq.auth.keys import Keyring

        return Keyring(plain=self._plain(settings))

    def _read(self, settings: config.Auth) -> Keyring:
        """The keys of the key file and of the settings. Raises `ConfigError`."""
        from blipmq.auth.keys import read_keyring

        return read_keyring(settings.keys_file, self._plain(settings))

    def _plain(self, settings: config.Auth) -> Plain:
        from blipmq.auth.keys import SALT_BYTES, Plain

        self._salt = self._salt or os.urandom(SALT_BYTES)
        return Plain(settings.api_keys, self._salt)

    def find(self, presented: bytes) -> Key | None:
        """The key with the text that a client presents, or None."""
        return self._ring.find(presented) if self._ring is not None else None

    def find_certificate(self, name: str) -> Key | None:
        """The key that belongs to the verified certificate of that name, or None."""
        return self._ring.find_certificate(name) if self._ring is not None else None

    def current(self, key: Key) -> Key | None:
        """The present state of a key found earlier; None if it no longer exists."""
        return self._ring.current(key) if self._ring is not None and self.required else None

    # -- ACLs in the core

    def acl_of(self, key: Key) -> int:
        """The core's number of the key's publish ACL."""
        if key.digest not in self._given:
            number = self._free.pop() if self._free else len(self._given) + 1
            self._given[key.digest] = number, key
            self._core.set_acl(number, _filters(key))
        return self._given[key.digest][0]

    def _tell_core(self) -> None:
        for digest, (number, was) in list(self._given.items()):
            now = self.current(was)
            if now is None:
                del self._given[digest]
                self._free.append(number)
                self._core.end_acl(number)
            elif now.allow != was.allow:
                self._core.set_acl(number, _filters(now))
            if now is not None:
                self._given[digest] = number, now


def _filters(key: Key) -> bytes | None:
    """A key's publish ACL in the core's format; None: everything."""
    if not key.allow:
        return None
    texts = [filter.encode() for filter in key.publishes]
    return b"".join(struct.pack("<H", len(text)) + text for text in texts)


def _signature(path: str) -> Signature:
    """A value that changes when the file does; its mode comes last. Zeros if the file does not exist or cannot be
    inspected."""
    try:
        about = os.stat(path)
    except OSError:
        return (0, 0, 0, 0)
    return (about.st_ino, about.st_mtime_ns, about.st_size, about.st_mode)
