"""`blipmq keys`: create, list, rotate and revoke API keys.

Invariant: the text of a key is written once, alone, to standard output, and is stored nowhere. Remarks for people go to
standard error, so that a script can read only the key.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

from blipmq.auth.keys import (
    ADMIN,
    Key,
    add_key,
    check_allow,
    finish_rotation,
    list_keys,
    revoke_key,
    rotate_key,
    undo_rotation,
    written,
)
from blipmq.base.stdio import StreamError, print_out, say
from blipmq.errors import UsageError

OVERLAP = "24h"
_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def add(path: str, name: str, allow: list[str], certificate: str | None) -> int:
    """Create a key and print it."""
    _print(add_key(path, name, allow, certificate=certificate), lambda: revoke_key(path, name))
    _say(f"Created key {name!r} in file {path}. {_rights(allow)}")
    _say_how_to_use_it()
    if certificate is not None:
        _say(f"A TLS client with the certificate {certificate!r} of tls.client_ca_file needs no key: it is {name!r}.")
    return 0


def rotate(path: str, name: str, overlap: str | None, finish: bool) -> int:
    """Replace a key with a new one of the same name, or end the old one of the two."""
    if finish:
        if overlap is not None:
            raise UsageError("--finish ends the overlap at once; do not use it with --overlap.")
        finish_rotation(path, name)
        _say(f"Ended the old key of {name!r}. A running broker disconnects its clients within a second.")
        return 0
    key, until = rotate_key(path, name, _seconds(OVERLAP if overlap is None else overlap))
    _print(key, lambda: undo_rotation(path, name))
    _say(f"Created a new key for {name!r} with the same rights. Its client_ids and durable subscriptions stay.")
    if until > time.time():
        _say(f"The old key is valid until {written(until)}. To end it now: blipmq keys rotate {name} --finish")
    else:
        _say("The old key has ended.")
    _say_how_to_use_it()
    return 0


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if match is None:
        raise UsageError(f"--overlap is a number followed by s, m, h or d, such as 24h or 7d, not {text!r}.")
    return int(match[1]) * _UNITS[match[2]]


def _print(key: str, take_back: Callable[[], None]) -> None:
    try:
        print_out(key)
    except BrokenPipeError:
        take_back()  # no one has read the key
        raise StreamError(
            "The key could not be printed, because standard output has no reader. The key was removed again."
        ) from None
    except BaseException as error:
        take_back()
        if isinstance(error, StreamError):
            error.args = (f"{error} The key was removed again.",)
        raise


def _say_how_to_use_it() -> None:
    _say("Copy it now; it cannot be shown again. A running broker accepts it within a second.")
    _say("Clients read it from $BLIPMQ_API_KEY or from a file named with --key-file, never from a command line.")


def list_all(path: str, format: str) -> int:
    """Print names, dates and rights."""
    keys = list_keys(path)
    if format == "json":
        for key in keys:
            fact = {"name": key.name, "created": key.created, "allow": list(key.allow), "until": _until(key)}
            if key.certificate:
                fact["certificate"] = key.certificate
            print_out(json.dumps(fact, ensure_ascii=False, separators=(",", ":")))
        return 0
    width = max((len(key.name) for key in keys), default=0)
    for key in keys:
        end = f"  ({'ended' if key.has_ended(time.time()) else 'until'} {_until(key)})" if key.until else ""
        by = f"  (certificate {key.certificate})" if key.certificate else ""
        print_out(f"{key.name:<{width}}  {key.created}  {_listed(key)}{by}{end}")
    if not keys:
        _say(f"No keys in {path}: every client is refused. Create one: blipmq keys add NAME")
    return 0


def revoke(path: str, name: str) -> int:
    """End a key."""
    revoke_key(path, name)
    _say(f"Revoked {name!r}. A running broker disconnects its clients within a second.")
    _say(
        f"Its durable subscriptions still fill the disk. End them with `blipmq-cli sessions end`, or add a key {name!r} again."
    )
    return 0


def _rights(allow: list[str]) -> str:
    if not allow:
        return "It may publish and subscribe to everything, and end the subscriptions of other clients."
    rights = check_allow(allow)
    phrases = []
    for kind, phrase in (("pub:", "publish to"), ("sub:", "subscribe to")):
        filters = [right.removeprefix(kind) for right in rights if right.startswith(kind)]
        phrases += [f"{phrase} {', '.join(filters)}"] if filters else []
    phrases += ["see and end the subscriptions of other clients"] if ADMIN in rights else []
    return f"It may {' and '.join(phrases)}, nothing else."


def _until(key: Key) -> str:
    return written(key.until) if key.until else ""


def _listed(key: Key) -> str:
    return " ".join(key.allow) or "everything"


def _say(text: str) -> None:
    say(text)
