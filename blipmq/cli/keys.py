"""`blipmq keys`: make, list and revoke the keys that clients come in with.

Invariant: the text of a key is written once, alone, to standard output, and is nowhere else; what people should know about
it goes to standard error, so that a script can take the one and a person read the other.
"""

from __future__ import annotations

import json

from blipmq.keys import Key, add_key, list_keys, revoke_key
from blipmq.streams import StreamError, print_out, say


def add(path: str, name: str, allow: list[str]) -> int:
    """Make a key and print it."""
    key = add_key(path, name, allow)
    try:
        print_out(key)
    except BrokenPipeError:
        revoke_key(path, name)  # nobody has seen it
        raise StreamError("The key could not be printed, because its reader has gone. It was revoked again.") from None
    except BaseException as error:
        revoke_key(path, name)
        if isinstance(error, StreamError):
            error.args = (f"{error} The key was therefore revoked again.",)
        raise
    _say(f"Key {name!r} is in {path}: {_rights(allow)}.")
    _say("This is the only time it is shown; only its hash is kept. A running broker takes it within a second.")
    _say("Give it to the client in $BLIPMQ_API_KEY, or in a file named by --key-file, never on a command line.")
    return 0


def list_all(path: str, format: str) -> int:
    """Print names, dates and rights."""
    keys = list_keys(path)
    if format == "json":
        for key in keys:
            fact = {"name": key.name, "created": key.created, "allow": list(key.allow)}
            print_out(json.dumps(fact, ensure_ascii=False, separators=(",", ":")))
        return 0
    width = max((len(key.name) for key in keys), default=0)
    for key in keys:
        print_out(f"{key.name:<{width}}  {key.created}  {_listed(key)}")
    if not keys:
        _say(f"There is no key in {path}, so nobody is let in: blipmq keys add NAME")
    return 0


def revoke(path: str, name: str) -> int:
    """End a key."""
    revoke_key(path, name)
    _say(f"Key {name!r} is no more; a running broker ends its connections within a second.")
    _say(
        f"Durable subscriptions made with it still collect: a new key named {name!r} can use them, or end them with unsub."
    )
    return 0


def _rights(allow: list[str]) -> str:
    return "it may " + ", ".join(allow) + " and nothing else" if allow else "it may publish and subscribe to everything"


def _listed(key: Key) -> str:
    return " ".join(key.allow) or "everything"


def _say(text: str) -> None:
    say(text)
