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
    from blipmq.blocking_broker import BlockingBroker as BlockingBroker
    from blipmq.blocking_subscription import BlockingSubscription as BlockingSubscription
    from blipmq.broker import Broker as Broker
    from blipmq.client import Client as Client
    from blipmq.client import connect as connect
    from blipmq.client_protocol import Published as Published
    from blipmq.client_protocol import Receipt as Receipt
    from blipmq.config import Config as Config
    from blipmq.subscription import Subscription as Subscription
    from blipmq.wire import Message as Message

_HOMES = {
    "connect": "blipmq.client",
    "Client": "blipmq.client",
    "Subscription": "blipmq.subscription",
    "connect_blocking": "blipmq.blocking",
    "BlockingClient": "blipmq.blocking",
    "BlockingSubscription": "blipmq.blocking_subscription",
    "Message": "blipmq.wire",
    "Published": "blipmq.client_protocol",
    "Receipt": "blipmq.client_protocol",
    "Broker": "blipmq.broker",
    "BlockingBroker": "blipmq.blocking_broker",
    "Config": "blipmq.config",
}

__all__ = [
    "BlockingBroker",
    "BlockingClient",
    "BlockingSubscription",
    "Broker",
    "Client",
    "Config",
    "Message",
    "Published",
    "Receipt",
    "Subscription",
    "__version__",
    "connect",
    "connect_blocking",
    "errors",
]

if not TYPE_CHECKING:  # type checkers would take its result for the type of every name, misspelt ones included

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
