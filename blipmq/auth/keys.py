"""API keys: the file that stores them, and the check of a key that a client presents.

    {"format": 1, "salt": "…64 hexadecimal digits…"}
    {"name": "boiler", "hash": "…", "created": "2026-11-24", "allow": ["pub:site/1/temp", "sub:site/1/#"]}

One JSON object a line, `#` begins a comment. `allow` is the key's ACL: only the listed actions are allowed. Without it
the key may do everything. A key with `"until": "2026-12-01T10:00:00Z"` expires at that time. A name may appear twice,
once with `until` and once without: that is a rotation, and both keys are the same client. A key with `"certificate":
"sensor-12"` is also the key of a TLS client whose verified certificate has that name.

The file stores BLAKE2b of each key, keyed with the file's salt. A generated key has 256 random bits and cannot be
guessed, so a slow hash would only delay connecting clients. With one salt for the file, one hash and one table look-up
decide for every presented key, so the time reveals nothing about the stored keys. The salt makes precomputed tables
useless against keys that a person chose.
Invariant: a file is read completely or not at all. Anything unknown, also an unknown field, is an error, so that no key
gets more rights than intended. A file is replaced atomically, so a reader never sees half of one.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import sys
import time
from calendar import timegm
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from blipmq.base.files import read_file
from blipmq.base.validation import API_KEY_BYTES_MAX, API_KEY_BYTES_MIN
from blipmq.errors import BlipMQError, ConfigError, UsageError
from blipmq.wire.topics import check_filter, covers, unshared

if sys.platform != "win32":
    import fcntl

FORMAT = 1
KEYS_MAX = 10_000
ALLOW_MAX = 64
FILE_BYTES_MAX = 16 << 20
NAME_CHARS_MAX = 64
# The core passes on at most 255 bytes of a name, so a longer one could be that of another certificate.
CERTIFICATE_BYTES_MAX = 200
ADMIN = "admin"
KEY_BYTES_MIN, KEY_BYTES_MAX = API_KEY_BYTES_MIN, API_KEY_BYTES_MAX
PREFIX = "bq_"
"""The prefix of a generated key, so that people and secret scanners recognize one."""
PLAIN_NAME = "auth.api_keys"
"""The name of keys written in the configuration, followed by their index: `auth.api_keys[0]`."""

SALT_BYTES = 32
_FIELDS = {"name", "hash", "created", "allow", "until", "certificate"}
_UNTIL = "%Y-%m-%dT%H:%M:%SZ"
OVERLAP_SECONDS_MAX = 365 * 24 * 3600

Path = str | os.PathLike[str]


class KeyNameTaken(BlipMQError):
    """A key of that name exists already."""


class NoSuchKey(BlipMQError):
    """No key of that name exists."""


class RotationUnderWay(BlipMQError):
    """The key of that name is being rotated already."""


class KeysDenied(ConfigError):
    """The system denies reading or writing the key file."""

    exit_status = 77


class Key(NamedTuple):
    """One key without its text. `allow`: its ACL (`pub:FILTER`, `sub:FILTER`, `admin`); empty: everything. `until`: its
    expiry in seconds since 1970; 0: none. `certificate`: the name of the certificate that may replace its text; "": none."""

    name: str
    digest: bytes
    created: str = ""
    allow: tuple[str, ...] = ()
    plain: bool = False  # written in the configuration, where keys have no names
    until: int = 0
    certificate: str = ""

    @property
    def owner(self) -> str:
        """The owner of the client_ids and durable subscriptions: the key's name; plain keys have no owner and share
        them."""
        return "" if self.plain else self.name

    def has_ended(self, now: float) -> bool:
        return 0 < self.until <= now

    @property
    def publishes(self) -> tuple[str, ...]:
        """Topics and filters that it may publish to, if `allow` is not empty."""
        return tuple(right[4:] for right in self.allow if right.startswith("pub:"))

    @property
    def may_admin(self) -> bool:
        """Whether it may do an operator's work: see all subscriptions, and end them."""
        return not self.allow or ADMIN in self.allow

    def may_subscribe(self, filter: str, mqtt: bool = False) -> bool:
        """Whether one of the key's `sub:` filters covers every topic that `filter` matches. `mqtt`: it has the syntax of
        MQTT, and may be that of a shared subscription."""
        wanted = unshared(filter) if mqtt else filter
        return not self.allow or any(
            covers(right[4:], wanted, mqtt) for right in self.allow if right.startswith("sub:")
        )


class Plain(NamedTuple):
    """Keys written in the configuration, and the salt of their digests, which is valid as long as the broker runs."""

    texts: Sequence[str] = ()
    salt: bytes = bytes(SALT_BYTES)


NO_PLAIN = Plain()


class Keyring:
    """The keys in effect, found by the text that a client presents."""

    def __init__(self, keys: Sequence[Key] = (), salt: bytes = b"", plain: Plain = NO_PLAIN) -> None:
        self._salts = salt, plain.salt
        self._keys = {key.digest: key for key in keys}
        # Of two keys of one name the one without an end counts: it comes later here.
        self._certified = {
            key.certificate: key for key in sorted(keys, key=lambda key: not key.until) if key.certificate
        }
        self._ending = [key for key in self._keys.values() if key.until]
        self._plain: dict[bytes, Key] = {}
        for place, text in enumerate(plain.texts):
            digest = digest_of(text.encode("utf-8", "surrogateescape"), plain.salt)
            self._plain[digest] = Key(f"{PLAIN_NAME}[{place}]", digest, plain=True)

    def __repr__(self) -> str:
        return f"<Keyring keys={len(self._keys)} plain={len(self._plain)}>"

    def __len__(self) -> int:
        return len(self._keys) + len(self._plain)

    def find(self, presented: bytes) -> Key | None:
        """The key whose text is `presented`, or None. Takes the same steps for every unknown key. If a key in the file
        has the same text as a plain one, the one in the file counts: it may have fewer rights."""
        digests = [digest_of(presented, salt) for salt in self._salts]
        plain = self._plain.get(digests[1])
        return self._keys.get(digests[0], plain)

    def find_certificate(self, name: str) -> Key | None:
        """The key that belongs to the certificate of that name, or None."""
        return self._certified.get(name) if name else None

    def end(self, now: float) -> list[Key]:
        """Remove the keys that have expired by `now`, and return them."""
        ended = [key for key in self._ending if key.has_ended(now)]
        for key in ended:
            self._ending.remove(key)
            del self._keys[key.digest]
            if self._certified.get(key.certificate) is key:
                del self._certified[key.certificate]
        return ended

    def current(self, key: Key) -> Key | None:
        """The present state of a key found in an earlier ring: the key with the same text and the same name, or None."""
        now = (self._plain if key.plain else self._keys).get(key.digest)
        return now if now is not None and now.owner == key.owner else None


def digest_of(key: bytes, salt: bytes) -> bytes:
    """The stored hash of a key's text."""
    return hashlib.blake2b(key, digest_size=32, key=salt).digest()


# ---- reading ---------------------------------------------------------------------------------------------------------


def read_keyring(path: Path, plain: Plain = NO_PLAIN) -> Keyring:
    """Return the keys of the file and the `plain` ones. Raises `ConfigError` (`KeysDenied` if access is denied)."""
    file = _File(path)
    ring = Keyring(file.all, file.salt, plain)
    ring.end(time.time())
    return ring


def list_keys(path: Path) -> list[Key]:
    """Return the keys of a file in its order, including expired ones. Raises `ConfigError`."""
    return _File(path).all


class _File:
    """A key file as read: its lines, and the keys in them."""

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        self.lines = _read(self.path).split("\n")
        self.salt = b""
        self.all: list[Key] = []
        self.keys: dict[str, Key] = {}
        self.ending: dict[str, Key] = {}  # by name, those with `until`
        if self.lines.pop():  # each line must end in a newline; otherwise the file may be truncated
            raise self._error(len(self.lines) + 1, "the last line is incomplete")
        self._digests: dict[bytes, str] = {}
        self._certified: dict[str, str] = {}  # name of a certificate: name of its key
        for number, line in enumerate(self.lines, 1):
            if line.strip() and not line.lstrip().startswith("#"):
                self._take(number, self._record(number, line))

    def name_of(self, digest: bytes) -> str | None:
        """The name of the key with this digest, if there is one."""
        return self._digests.get(digest)

    def key_of(self, certificate: str) -> str | None:
        """The name of the key that this certificate belongs to, if there is one."""
        return self._certified.get(certificate)

    def _error(self, number: int, what: str) -> ConfigError:
        return ConfigError(f"{self.path}:{number}: {what}. Correct the line, or delete it and create the key again.")

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
        alike = self.ending if key.until else self.keys
        if key.name in alike or key.digest in self._digests:
            raise self._error(number, f"the key {key.name!r} exists twice")
        if key.certificate and self._certified.setdefault(key.certificate, key.name) != key.name:
            raise self._error(number, f"the certificate {key.certificate!r} already belongs to another key")
        if len(self.all) == KEYS_MAX:
            raise self._error(number, f"more than {KEYS_MAX} keys; revoke unused ones")
        alike[key.name] = key
        self.all.append(key)
        self._digests[key.digest] = key.name

    def _key(self, number: int, record: dict[str, Any]) -> Key:
        unknown = record.keys() - _FIELDS
        if unknown:
            raise self._error(number, f"unknown field {sorted(unknown)[0]!r}; a newer version may have written it")
        name, digest, created, allow = (record.get(field) for field in ("name", "hash", "created", "allow"))
        until = _seconds_of(record["until"]) if "until" in record else 0
        allow = [] if "allow" not in record else allow
        kept = _bytes_of(digest)
        if not isinstance(name, str) or kept is None or not isinstance(created, str) or not isinstance(allow, list):
            raise self._error(
                number, "a key has `name`, `hash` (64 hexadecimal digits), `created` and optionally a list `allow`"
            )
        if until is None:
            raise self._error(
                number, '`until` is a time such as "2026-12-01T10:00:00Z"; leave it out for a key without an end'
            )
        if "allow" in record and not allow:
            raise self._error(number, "`allow` is empty; leave it out for a key that may do everything")
        try:
            check_name(name)
            certificate = check_certificate(record["certificate"]) if "certificate" in record else ""
            return Key(name, kept, created, check_allow(allow), until=until, certificate=certificate)
        except UsageError as error:
            raise self._error(number, str(error).rstrip(".")) from None


def _bytes_of(digits: Any) -> bytes | None:
    """32 bytes from 64 hexadecimal digits; None for anything else."""
    try:
        value = bytes.fromhex(digits) if isinstance(digits, str) and len(digits) == 64 else b""
    except ValueError:
        return None
    return value if len(value) == 32 else None


def _seconds_of(text: Any) -> int | None:
    """Seconds since 1970 from a time in the file's format; None for anything else."""
    try:
        seconds = timegm(time.strptime(text, _UNTIL)) if isinstance(text, str) else 0
        return seconds if seconds > 0 and text == time.strftime(_UNTIL, time.gmtime(seconds)) else None
    except (ValueError, OverflowError, OSError):
        return None


def _read(path: str) -> str:
    try:
        raw = read_file(path, FILE_BYTES_MAX + 1)
    except OSError as error:
        raise _system_error(path, "read", error) from None
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(
            f"{path}: larger than {FILE_BYTES_MAX} bytes, so it is not a key file. Correct auth.keys_file."
        )
    try:
        return raw.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}:{raw.count(10, 0, error.start) + 1}: not UTF-8 text, so it is not a key file. Correct auth.keys_file."
        ) from None


def _system_error(path: str, what: str, error: OSError) -> ConfigError:
    kind = KeysDenied if isinstance(error, PermissionError) else ConfigError
    advice = {
        FileNotFoundError: "Create a key with `blipmq keys add NAME`, or correct auth.keys_file.",
        PermissionError: "Run the command as the broker's user or as root, or make that user the owner of the file.",
    }.get(type(error), "Correct the file, or set auth.keys_file to another one.")
    return kind(f"{path}: the key file cannot be {what}: {error.strerror or error}. {advice}")


# ---- rules -----------------------------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    """Raise UsageError unless the name is valid for a key: printable, without characters that are special in filters or
    paths."""
    if not 1 <= len(name) <= NAME_CHARS_MAX:
        raise UsageError(f"The name of a key has 1 to {NAME_CHARS_MAX} characters; this one has {len(name)}.")
    if not name.isprintable() or name != name.strip():
        raise UsageError(f"The name {name!r} contains control characters, or begins or ends with a space; remove them.")
    for part in ("#", "*", "+", ">", "/", "\\", ".."):
        if part in name:
            raise UsageError(f"The name {name!r} contains {part!r}; use letters, digits, '-', '_' and single dots.")
    if name.startswith(PLAIN_NAME):
        raise UsageError(f"The name {name!r} is reserved for keys of the setting {PLAIN_NAME}; choose another.")


def check_certificate(name: Any) -> str:
    """Return the name of a certificate. Raises UsageError unless it can be one."""
    if not isinstance(name, str) or not name or not name.isprintable() or len(name.encode()) > CERTIFICATE_BYTES_MAX:
        raise UsageError(
            f"The name of a certificate has 1 to {CERTIFICATE_BYTES_MAX} printable bytes: its common name, or without one its "
            "first alternative name."
        )
    return name


def check_allow(allow: Iterable[Any]) -> tuple[str, ...]:
    """Return the ACL entries, each once. Raises UsageError unless each is `admin`, or `pub:` or `sub:` and a topic or
    filter."""
    rights: dict[str, None] = {}
    for right in allow:
        kind, colon, filter_ = right.partition(":") if isinstance(right, str) else ("", "", "")
        if right != ADMIN and (kind not in ("pub", "sub") or not colon):
            raise UsageError(
                f"A right is pub:TOPIC, sub:FILTER or admin, such as pub:site/1/temp or sub:site/#; not {right!r}."
            )
        if right != ADMIN:
            check_filter(filter_)
        rights[right] = None
    if len(rights) > ALLOW_MAX:
        raise UsageError(f"A key may have at most {ALLOW_MAX} rights, not {len(rights)}; use wildcards.")
    return tuple(rights)


def _check_key(key: str) -> None:
    size_bytes = len(key.encode("utf-8", "surrogateescape"))
    if not KEY_BYTES_MIN <= size_bytes <= KEY_BYTES_MAX or not key.isprintable() or len(key.split()) != 1:
        raise UsageError(
            f"The text of a key has {KEY_BYTES_MIN} to {KEY_BYTES_MAX} printable bytes and no spaces; this one does not. Leave "
            "it out, and BlipMQ generates a random key."
        )


# ---- writing ---------------------------------------------------------------------------------------------------------


def add_key(
    path: Path, name: str, allow: Iterable[str] = (), key: str | None = None, certificate: str | None = None
) -> str:
    """Create a key, store its hash in the file (created if it does not exist) and return its text, which is not stored.
    `key`: the text to use instead of a generated one. `certificate`: the name of the certificate that belongs to it.
    Raises UsageError, KeyNameTaken, ConfigError."""
    check_name(name)
    rights = check_allow(allow)
    if certificate is not None:
        check_certificate(certificate)
    text = _new_text() if key is None else key
    _check_key(text)
    with _locked(path):
        file = _open_or_new(path)
        now = time.time()
        if name in file.keys or (name in file.ending and not file.ending[name].has_ended(now)):
            raise KeyNameTaken(
                f"The file {file.path} already holds a key {name!r}. Revoke it first, replace it with `blipmq keys rotate`, or "
                "choose another name."
            )
        _replace(file.path, [*_unended(file, now), _new_line(file, name, rights, text, certificate or "")])
    return text


def _new_text() -> str:
    return PREFIX + base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")


def _new_line(file: _File, name: str, rights: Sequence[str], text: str, certificate: str) -> str:
    """The line of a new key for the file."""
    other = file.key_of(certificate)
    if other not in (None, name):
        raise KeyNameTaken(
            f"The certificate {certificate!r} already belongs to the key {other!r} in {file.path}. Use another certificate."
        )
    digest = digest_of(text.encode("utf-8", "surrogateescape"), file.salt)
    known = file.name_of(digest)
    if known is not None:
        raise KeyNameTaken(f"The key {known!r} in {file.path} has the same text. Give each client a key of its own.")
    if len(file.all) == KEYS_MAX:
        raise ConfigError(f"{file.path} holds {KEYS_MAX} keys, the maximum. Revoke unused keys first.")
    record: dict[str, Any] = {
        "name": name,
        "hash": digest.hex(),
        "created": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    if rights:
        record["allow"] = rights
    if certificate:
        record["certificate"] = certificate
    return json.dumps(record, ensure_ascii=False)


def rotate_key(path: Path, name: str, overlap_s: int) -> tuple[str, int]:
    """Create a new key for a name, with the ACL of the old one, which expires in `overlap_s` seconds. Returns the new
    key's text, which is not stored, and the expiry of the old one. Raises NoSuchKey, RotationUnderWay, UsageError,
    ConfigError."""
    if not 0 <= overlap_s <= OVERLAP_SECONDS_MAX:
        raise UsageError(f"The overlap of old and new key is 0 seconds to a year, not {overlap_s} seconds.")
    with _locked(path):
        file = _File(path)
        now = time.time()
        old, ending = file.keys.get(name), file.ending.get(name)
        if old is None:
            raise _no_key(file, name)
        if ending is not None and not ending.has_ended(now):
            raise RotationUnderWay(
                f"The key {name!r} is already being rotated; the old key ends at {written(ending.until)}. End it now with "
                f"`blipmq keys rotate {name} --finish`, then rotate again."
            )
        text, until = _new_text(), int(now) + overlap_s
        line = _new_line(file, name, old.allow, text, old.certificate)
        _replace(file.path, [*_with_end(_unended(file, now), old, until), line])
    return text, until


def finish_rotation(path: Path, name: str) -> None:
    """Remove the old key of a name that is being rotated. Raises NoSuchKey, ConfigError."""
    with _locked(path):
        file = _File(path)
        if name not in file.ending or file.ending[name].has_ended(time.time()) or name not in file.keys:
            raise NoSuchKey(
                f"The key {name!r} in {file.path} is not being rotated. `blipmq keys list` shows the keys that are."
            )
        _replace(file.path, [line for line in file.lines if not _is(line, file.ending[name])])


def undo_rotation(path: Path, name: str) -> None:
    """Remove the new key of a rotation, so that the old one stays valid."""
    with _locked(path):
        file = _File(path)
        new, old = file.keys[name], file.ending[name]
        _replace(file.path, _with_end([line for line in file.lines if not _is(line, new)], old, 0))


def written(seconds: int) -> str:
    """A time in the file's format. `seconds`: since 1970."""
    return time.strftime(_UNTIL, time.gmtime(seconds))


def revoke_key(path: Path, name: str) -> None:
    """Remove the keys of that name from the file. Raises NoSuchKey, ConfigError."""
    with _locked(path):
        file = _File(path)
        if name not in file.keys and name not in file.ending:
            raise _no_key(file, name)
        gone = [key for key in file.all if key.name == name]
        _replace(file.path, [line for line in file.lines if not any(_is(line, key) for key in gone)])


def _no_key(file: _File, name: str) -> NoSuchKey:
    return NoSuchKey(f"There is no key {name!r} in {file.path}. `blipmq keys list` shows all keys.")


def _is(line: str, key: Key) -> bool:
    """Whether the line holds this key. The line comes from a file that was read without errors."""
    if not line.strip() or line.lstrip().startswith("#"):
        return False
    record = json.loads(line)
    return record.get("name") == key.name and _bytes_of(record.get("hash")) == key.digest


def _unended(file: _File, now: float) -> list[str]:
    """The lines of a file without those of expired keys."""
    ended = [key for key in file.ending.values() if key.has_ended(now)]
    return [line for line in file.lines if not any(_is(line, key) for key in ended)] if ended else file.lines


def _with_end(lines: list[str], key: Key, until: int) -> list[str]:
    """The lines with another expiry for a key; 0: none."""
    changed = []
    for line in lines:
        if _is(line, key):
            record = json.loads(line)
            record.pop("until", None)
            line = json.dumps({**record, "until": written(until)} if until else record, ensure_ascii=False)
        changed.append(line)
    return changed


def _open_or_new(path: Path) -> _File:
    if not os.path.exists(path):
        header = json.dumps({"format": FORMAT, "salt": os.urandom(SALT_BYTES).hex()})
        _replace(
            os.fspath(path), ["# Keys of a BlipMQ broker: blipmq keys add, list, rotate, revoke. Hashes only.", header]
        )
    file = _File(path)
    if not file.salt:  # an empty file
        file.salt = os.urandom(SALT_BYTES)
        file.lines.append(json.dumps({"format": FORMAT, "salt": file.salt.hex()}))
    return file


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Allow one writer at a time. The folder is locked, because the file is replaced."""
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
    """Write the new file beside the old one, sync it, and replace the old one."""
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
    """Set owner and mode of the new file. If root writes it, it gets the owner of the old file, or else of the folder,
    so that the broker can read it."""
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
