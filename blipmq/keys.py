"""The keys that clients come in with: the file they are kept in, and the question whether a key is one of them.

    {"format": 1, "salt": "…64 hexadecimal digits…"}
    {"name": "boiler", "hash": "…", "created": "2026-11-24", "allow": ["pub:site/1/temp", "sub:site/1/#"]}

One JSON object a line, `#` begins a comment. `allow` lists what the key may do and nothing else is allowed; without it the
key may do everything. What is kept of a key is BLAKE2b of it, keyed with the file's salt: a generated key is 256 random
bits, which nobody can find by trying, so a hash that is slow on purpose would only slow down those who connect. One salt
for the file, because then one hash and one look into a table decide, whatever was presented: the time that takes says
nothing about the keys there are. The salt keeps tables made beforehand from being of use against keys that a person chose.

Invariant: a file is read whole or not at all. What cannot be understood, an unknown field too, is an error and never a key
with more rights than were meant; a file is replaced in one step, so nobody ever reads half of one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from blipmq.errors import BlipMQError, ConfigError, UsageError
from blipmq.topics import check_filter, covers

if sys.platform != "win32":
    import fcntl

FORMAT = 1
KEYS_MAX = 10_000
ALLOW_MAX = 64
FILE_BYTES_MAX = 16 << 20
NAME_CHARS_MAX = 64
KEY_BYTES_MIN, KEY_BYTES_MAX = 16, 512
PREFIX = "bq_"
"""Begins a generated key, so that people, and programs that look for leaked secrets, know one when they see it."""
PLAIN_NAME = "auth.api_keys"
"""What keys that stand in the configuration are called, with their place: `auth.api_keys[0]`."""

SALT_BYTES = 32
_FIELDS = {"name", "hash", "created", "allow"}

Path = str | os.PathLike[str]


class KeyNameTaken(BlipMQError):
    """There is a key of that name already."""


class NoSuchKey(BlipMQError):
    """There is no key of that name."""


class KeysDenied(ConfigError):
    """The system does not let the key file be read or written."""

    exit_status = 77


class Key(NamedTuple):
    """One key, by everything but its text. `allow`: what it may do (`pub:FILTER`, `sub:FILTER`); empty: everything."""

    name: str
    digest: bytes
    created: str = ""
    allow: tuple[str, ...] = ()
    plain: bool = False  # stands in the configuration, where keys have no names

    @property
    def owner(self) -> str:
        """Whose client_ids and durable subscriptions it uses: those of its name; plain keys share those of nobody."""
        return "" if self.plain else self.name

    @property
    def publishes(self) -> tuple[str, ...]:
        """Topics and filters it may publish to, if `allow` is not empty."""
        return tuple(right[4:] for right in self.allow if right.startswith("pub:"))

    def may_subscribe(self, filter: str) -> bool:
        """Whether all that a subscriber of `filter` gets is within one filter that this key may subscribe to."""
        return not self.allow or any(covers(right[4:], filter) for right in self.allow if right.startswith("sub:"))


class Plain(NamedTuple):
    """Keys that stand in the configuration, and the salt that their digests are made with as long as the broker runs."""

    texts: Sequence[str] = ()
    salt: bytes = bytes(SALT_BYTES)


NO_PLAIN = Plain()


class Keyring:
    """Keys that are in effect, found by what a client presents."""

    def __init__(self, keys: Iterable[Key] = (), salt: bytes = b"", plain: Plain = NO_PLAIN) -> None:
        self._salts = salt, plain.salt
        self._keys = {key.digest: key for key in keys}
        self._plain: dict[bytes, Key] = {}
        for place, text in enumerate(plain.texts):
            digest = digest_of(text.encode("utf-8", "surrogateescape"), plain.salt)
            self._plain[digest] = Key(f"{PLAIN_NAME}[{place}]", digest, plain=True)

    def __repr__(self) -> str:
        return f"<Keyring keys={len(self._keys)} plain={len(self._plain)}>"

    def __len__(self) -> int:
        return len(self._keys) + len(self._plain)

    def find(self, presented: bytes) -> Key | None:
        """The key whose text is `presented`, or None. Takes the same steps for every key that is none. Of two with the same
        text the one in the file counts: it may have fewer rights."""
        digests = [digest_of(presented, salt) for salt in self._salts]
        plain = self._plain.get(digests[1])
        return self._keys.get(digests[0], plain)

    def current(self, key: Key) -> Key | None:
        """What has become of a key found in an earlier ring: the same text under the same name, or None."""
        now = (self._plain if key.plain else self._keys).get(key.digest)
        return now if now is not None and now.owner == key.owner else None


def digest_of(key: bytes, salt: bytes) -> bytes:
    """What is kept of a key's text."""
    return hashlib.blake2b(key, digest_size=32, key=salt).digest()


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_keyring(path: Path, plain: Plain = NO_PLAIN) -> Keyring:
    """The keys of the file and, beside them, the `plain` ones. Raises `ConfigError` (`KeysDenied`, if that is the cause)."""
    file = _File(path)
    return Keyring(file.keys.values(), file.salt, plain)


def list_keys(path: Path) -> list[Key]:
    """The keys of a file, in its order. Raises `ConfigError`."""
    return list(_File(path).keys.values())


class _File:
    """A key file as it was read: its lines as they stand, and what they say."""

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        self.lines = _read(self.path).split("\n")
        self.salt = b""
        self.keys: dict[str, Key] = {}
        if self.lines.pop():  # each line ends in a newline, or it may have been cut short
            raise self._error(len(self.lines) + 1, "the last line is not complete")
        self._digests: set[bytes] = set()
        for number, line in enumerate(self.lines, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                self._take(number, self._record(number, line))

    def _error(self, number: int, what: str) -> ConfigError:
        return ConfigError(f"{self.path}:{number}: {what}. Mend the line, or take it out and make the key again.")

    def _record(self, number: int, line: str) -> dict[str, Any]:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict):
            raise self._error(number, "not a key: a JSON object is expected")
        return record

    def _take(self, number: int, record: dict[str, Any]) -> None:
        if not self.salt:
            salt = _bytes_of(record.get("salt"))
            if record.keys() != {"format", "salt"} or record["format"] != FORMAT or salt is None:
                raise self._error(
                    number, f'the file must begin with {{"format": {FORMAT}, "salt": 64 hexadecimal digits}}'
                )
            self.salt = salt
            return
        key = self._key(number, record)
        if key.name in self.keys or key.digest in self._digests:
            raise self._error(number, f"the key {key.name!r} is there twice")
        if len(self.keys) == KEYS_MAX:
            raise self._error(number, f"more than {KEYS_MAX} keys")
        self.keys[key.name] = key
        self._digests.add(key.digest)

    def _key(self, number: int, record: dict[str, Any]) -> Key:
        unknown = record.keys() - _FIELDS
        if unknown:
            raise self._error(number, f"unknown field {sorted(unknown)[0]!r}; a newer version may have written it")
        name, digest, created, allow = (record.get(field) for field in ("name", "hash", "created", "allow"))
        allow = [] if "allow" not in record else allow
        kept = _bytes_of(digest)
        if not isinstance(name, str) or kept is None or not isinstance(created, str) or not isinstance(allow, list):
            raise self._error(
                number, "a key has a name, a hash of 64 hexadecimal digits, a date and, perhaps, a list `allow`"
            )
        if "allow" in record and not allow:
            raise self._error(number, "`allow` is empty; leave it out for a key that may do everything")
        try:
            check_name(name)
            return Key(name, kept, created, check_allow(allow))
        except UsageError as error:
            raise self._error(number, str(error).rstrip(".")) from None


def _bytes_of(digits: Any) -> bytes | None:
    """32 bytes from 64 hexadecimal digits; None for all else."""
    try:
        value = bytes.fromhex(digits) if isinstance(digits, str) and len(digits) == 64 else b""
    except ValueError:
        return None
    return value if len(value) == 32 else None


def _read(path: str) -> str:
    try:
        with open(path, "rb") as file:
            raw = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _system_error(path, "read", error) from None
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{path}: larger than {FILE_BYTES_MAX} bytes, so not a key file of this broker.")
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}:{raw.count(10, 0, error.start) + 1}: not UTF-8 text; this is no key file.") from None


def _system_error(path: str, what: str, error: OSError) -> ConfigError:
    kind = KeysDenied if isinstance(error, PermissionError) else ConfigError
    advice = {
        FileNotFoundError: "Make a key with `blipmq keys add NAME`, or correct auth.keys_file.",
        PermissionError: "Run this as the broker's user or as root, or give that user the file.",
    }.get(type(error), "Mend what is wrong there, or name another file.")
    return kind(f"{path}: the key file cannot be {what}: {error.strerror or error}. {advice}")


# ---- rules -----------------------------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    """Raise UsageError unless a key may be called that: printable, and nothing that means something to a filter or a path."""
    if not 1 <= len(name) <= NAME_CHARS_MAX:
        raise UsageError(f"A key's name has 1 to {NAME_CHARS_MAX} characters; this one has {len(name)}.")
    if not name.isprintable() or name != name.strip():
        raise UsageError(f"The key's name {name!r} holds control characters, or begins or ends with a space.")
    for part in ("#", "*", "+", ">", "/", "\\", ".."):
        if part in name:
            raise UsageError(f"The key's name {name!r} holds {part!r}; use letters, digits, '-', '_' and single dots.")
    if name.startswith(PLAIN_NAME):
        raise UsageError(f"The name {name!r} is kept for keys of the setting {PLAIN_NAME}; choose another.")


def check_allow(allow: Iterable[Any]) -> tuple[str, ...]:
    """Rights as they are kept, each once. Raises UsageError unless each is `pub:` or `sub:` and a topic or filter."""
    rights: dict[str, None] = {}
    for right in allow:
        kind, colon, filter_ = right.partition(":") if isinstance(right, str) else ("", "", "")
        if kind not in ("pub", "sub") or not colon:
            raise UsageError(
                f"A right is pub:TOPIC or sub:FILTER, such as pub:site/1/temp or sub:site/#; not {right!r}."
            )
        check_filter(filter_)
        rights[right] = None
    if len(rights) > ALLOW_MAX:
        raise UsageError(f"A key may have {ALLOW_MAX} rights at most, not {len(rights)}; use wildcards.")
    return tuple(rights)


def _check_key(key: str) -> None:
    size_bytes = len(key.encode("utf-8", "surrogateescape"))
    if not KEY_BYTES_MIN <= size_bytes <= KEY_BYTES_MAX or not key.isprintable() or len(key.split()) != 1:
        raise UsageError(
            f"A key has {KEY_BYTES_MIN} to {KEY_BYTES_MAX} printable bytes and no spaces, and should be random; the one given "
            "does not. Leave it out to have one made."
        )


# ---- writing ---------------------------------------------------------------------------------------------------------


def add_key(path: Path, name: str, allow: Iterable[str] = (), key: str | None = None) -> str:
    """Make a key of that name, keep its hash in the file (made if it is not there) and return its text, which is kept
    nowhere. `key`: text to use instead of a generated one. Raises UsageError, KeyNameTaken, ConfigError."""
    check_name(name)
    rights = check_allow(allow)
    text = PREFIX + base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=") if key is None else key
    _check_key(text)
    with _locked(path):
        file = _open_or_new(path)
        if name in file.keys:
            raise KeyNameTaken(
                f"There is a key {name!r} in {file.path} already. Revoke it first, or choose another name."
            )
        digest = digest_of(text.encode("utf-8", "surrogateescape"), file.salt)
        known = next((kept.name for kept in file.keys.values() if kept.digest == digest), None)
        if known is not None:
            raise KeyNameTaken(
                f"The key {known!r} in {file.path} has the same text. Give each client a key of its own."
            )
        if len(file.keys) == KEYS_MAX:
            raise ConfigError(f"{file.path} holds {KEYS_MAX} keys, and more are not allowed. Revoke those not used.")
        record: dict[str, Any] = {
            "name": name,
            "hash": digest.hex(),
            "created": time.strftime("%Y-%m-%d", time.gmtime()),
        }
        if rights:
            record["allow"] = rights
        _replace(file.path, [*file.lines, json.dumps(record, ensure_ascii=False)])
    return text


def revoke_key(path: Path, name: str) -> None:
    """Take the key of that name out of the file. Raises NoSuchKey, ConfigError."""
    with _locked(path):
        file = _File(path)
        if name not in file.keys:
            raise NoSuchKey(f"There is no key {name!r} in {file.path}. `blipmq keys list` shows those there are.")
        _replace(file.path, [line for line in file.lines if not _names(line, name)])


def _names(line: str, name: str) -> bool:
    if not line.strip() or line.lstrip().startswith("#"):
        return False
    return bool(json.loads(line).get("name") == name)


def _open_or_new(path: Path) -> _File:
    if not os.path.exists(path):
        header = json.dumps({"format": FORMAT, "salt": os.urandom(SALT_BYTES).hex()})
        _replace(os.fspath(path), ["# Keys of a BlipMQ broker: blipmq keys add, list, revoke. Hashes only.", header])
    file = _File(path)
    if not file.salt:  # an empty one
        file.salt = os.urandom(SALT_BYTES)
        file.lines.append(json.dumps({"format": FORMAT, "salt": file.salt.hex()}))
    return file


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One writer at a time. The folder is locked, because the file is replaced."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, 0o700, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY) if sys.platform != "win32" else -1
    except OSError as error:
        raise _system_error(os.fspath(path), "written", error) from None
    try:
        if sys.platform != "win32":
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        if handle >= 0:
            os.close(handle)


def _replace(path: str, lines: list[str]) -> None:
    """Write the file anew beside the old one, and put it in its place when it is on disk."""
    folder, name = os.path.split(os.path.abspath(path))
    fresh = os.path.join(folder, f".{name}.{os.urandom(8).hex()}")
    try:
        try:
            handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "w", encoding="utf-8", newline="\n") as file:
                _keep_owner(file.fileno(), path, folder)
                file.write("".join(line + "\n" for line in lines))
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(fresh)
            raise
        _sync_folder(folder)
    except OSError as error:
        raise _system_error(path, "written", error) from None


def _keep_owner(handle: int, path: str, folder: str) -> None:
    """Root makes a file that the broker can read: it belongs to whom the old one, or else the folder, belongs to."""
    if sys.platform == "win32":
        return
    try:
        model, mode = os.lstat(path), os.lstat(path).st_mode & 0o640 | 0o600
    except FileNotFoundError:
        model, mode = os.stat(folder), 0o600
    if os.geteuid() == 0:
        os.fchown(handle, model.st_uid, model.st_gid)
    os.fchmod(handle, mode)


def _sync_folder(folder: str) -> None:
    if sys.platform == "win32":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
