"""`blipmq keys`: make, list, rotate and revoke the keys that clients come in with.

Invariant: the text of a key is written once, alone, to standard output, and is nowhere else; what people should know about
it goes to standard error, so that a script can take the one and a person read the other.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable

from blipmq.auth.keys import (
    Key,
    add_key,
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


def add(path: str, name: str, allow: list[str]) -> int:
    """Make a key and print it."""
    _print(add_key(path, name, allow), lambda: revoke_key(path, name))
    _say(f"Key {name!r} is in {path}: {_rights(allow)}.")
    _say_how_to_give_it()
    return 0


def rotate(path: str, name: str, overlap: str | None, finish: bool) -> int:
    """Replace a key by a new one of the same name, or end the old one of the two."""
    if finish:
        if overlap is not None:
            raise UsageError("--finish ends the overlap now; leave out --overlap.")
        finish_rotation(path, name)
        _say(f"The old key of {name!r} is no more; a running broker ends its connections within a second.")
        return 0
    key, until = rotate_key(path, name, _seconds(OVERLAP if overlap is None else overlap))
    _print(key, lambda: undo_rotation(path, name))
    _say(f"This is the new key of {name!r}, with the rights of the old one; client_ids and durable subscriptions stay.")
    if until > time.time():
        _say(f"The old one is good until {written(until)}, or until `blipmq keys rotate {name} --finish`.")
    else:
        _say("The old one is no more.")
    _say_how_to_give_it()
    return 0


def _seconds(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if match is None:
        raise UsageError(f"--overlap is a number with s, m, h or d behind it, such as 24h or 7d, not {text!r}.")
    return int(match[1]) * _UNITS[match[2]]


def _print(key: str, take_back: Callable[[], None]) -> None:
    try:
        print_out(key)
    except BrokenPipeError:
        take_back()  # nobody has seen it
        raise StreamError("The key could not be printed, because its reader has gone. It was taken back.") from None
    except BaseException as error:
        take_back()
        if isinstance(error, StreamError):
            error.args = (f"{error} The key was therefore taken back.",)
        raise


def _say_how_to_give_it() -> None:
    _say("This is the only time it is shown; only its hash is kept. A running broker takes it within a second.")
    _say("Give it to the client in $BLIPMQ_API_KEY, or in a file named by --key-file, never on a command line.")


def list_all(path: str, format: str) -> int:
    """Print names, dates and rights."""
    keys = list_keys(path)
    if format == "json":
        for key in keys:
            fact = {"name": key.name, "created": key.created, "allow": list(key.allow), "until": _until(key)}
            print_out(json.dumps(fact, ensure_ascii=False, separators=(",", ":")))
        return 0
    width = max((len(key.name) for key in keys), default=0)
    for key in keys:
        end = f"  ({'ended' if key.has_ended(time.time()) else 'until'} {_until(key)})" if key.until else ""
        print_out(f"{key.name:<{width}}  {key.created}  {_listed(key)}{end}")
    if not keys:
        _say(f"There is no key in {path}, so nobody is let in: blipmq keys add NAME")
    return 0


def revoke(path: str, name: str) -> int:
    """End a key."""
    revoke_key(path, name)
    _say(f"Key {name!r} is no more; a running broker ends its connections within a second.")
    _say(
        f"Durable subscriptions made with it still collect: a new key named {name!r} can use them, or an operator ends them: "
        "blipmq-cli sessions end."
    )
    return 0


def _rights(allow: list[str]) -> str:
    return "it may " + ", ".join(allow) + " and nothing else" if allow else "it may publish and subscribe to everything"


def _until(key: Key) -> str:
    return written(key.until) if key.until else ""


def _listed(key: Key) -> str:
    return " ".join(key.allow) or "everything"


def _say(text: str) -> None:
    say(text)
