"""BlipMQ: an edge message broker, and its client.

Invariant: `import blipmq` loads nothing but this file and the version; every name below is loaded when it is first
used, so that the command line starts at once and an embedded broker does not pay for the client, nor a client for the
core.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from blipmq.version import __version__ as __version__

if TYPE_CHECKING:
    from blipmq import errors as errors
    from blipmq.blocking import BlockingClient as BlockingClient
    from blipmq.blocking import connect_blocking as connect_blocking
    from blipmq.broker import Broker as Broker
    from blipmq.client import Client as Client
    from blipmq.client import connect as connect
    from blipmq.config import Config as Config
    from blipmq.wire import Message as Message

_HOMES = {
    "connect": "blipmq.client",
    "Client": "blipmq.client",
    "connect_blocking": "blipmq.blocking",
    "BlockingClient": "blipmq.blocking",
    "Message": "blipmq.wire",
    "Broker": "blipmq.broker",
    "Config": "blipmq.config",
}

__all__ = [
    "BlockingClient",
    "Broker",
    "Client",
    "Config",
    "Message",
    "__version__",
    "connect",
    "connect_blocking",
    "errors",
]


def __getattr__(name: str) -> Any:
    if name == "errors":
        return import_module("blipmq.errors")
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'blipmq' has no attribute {name!r}")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES, "errors"})
