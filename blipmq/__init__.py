"""BlipMQ: an edge message broker and its client.

Invariant: `import blipmq` loads only this file and the version. Each name below is loaded at its first use. The command
line therefore starts fast, an embedded broker does not load the client, and a client does not load the core.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from blipmq.version import __version__ as __version__

if TYPE_CHECKING:
    from blipmq import errors as errors
    from blipmq.broker.blocking import BlockingBroker as BlockingBroker
    from blipmq.broker.broker import Broker as Broker
    from blipmq.client.blocking import BlockingClient as BlockingClient
    from blipmq.client.blocking import connect_blocking as connect_blocking
    from blipmq.client.blocking_subscription import BlockingSubscription as BlockingSubscription
    from blipmq.client.client import Client as Client
    from blipmq.client.client import connect as connect
    from blipmq.client.protocol import Published as Published
    from blipmq.client.protocol import Receipt as Receipt
    from blipmq.client.subscription import Subscription as Subscription
    from blipmq.config.settings import Config as Config
    from blipmq.ops.admin import Admin as Admin
    from blipmq.wire.frames import Message as Message

_HOMES = {
    "connect": "blipmq.client.client",
    "Client": "blipmq.client.client",
    "Subscription": "blipmq.client.subscription",
    "connect_blocking": "blipmq.client.blocking",
    "BlockingClient": "blipmq.client.blocking",
    "BlockingSubscription": "blipmq.client.blocking_subscription",
    "Message": "blipmq.wire.frames",
    "Published": "blipmq.client.protocol",
    "Receipt": "blipmq.client.protocol",
    "Broker": "blipmq.broker.broker",
    "BlockingBroker": "blipmq.broker.blocking",
    "Config": "blipmq.config.settings",
    "Admin": "blipmq.ops.admin",
}

__all__ = [
    "Admin",
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

if not TYPE_CHECKING:  # otherwise type checkers give every name, also a misspelt one, the type that __getattr__ returns

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
