"""The event loop of a broker's own process, and the modules loaded for it.

A broker needs little from its loop, because messages pass only through the core's thread. The loop of the standard library
is sufficient and starts faster than uvloop.
Invariant: with HTTPS configured, all its modules are loaded before the broker is ready, or the start fails.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def load_asyncio(https: bool) -> None:
    """Import asyncio; without `https` it does not load `ssl`, which loads OpenSSL and takes a tenth of a start.

    To be called before any other import of asyncio. Does nothing if asyncio or ssl is already loaded.
    """
    if https or "ssl" in sys.modules or "asyncio" in sys.modules:
        return
    # asyncio uses ssl if it is available, and works without it. None in sys.modules marks a module as missing; a later
    # import (a client in this process) loads it normally.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        import asyncio  # noqa: F401
    finally:
        del sys.modules["ssl"]


def new_loop() -> asyncio.AbstractEventLoop:
    """The loop of a broker's process."""
    import asyncio

    if sys.platform == "win32":  # the default loop of Windows cannot watch a descriptor
        return asyncio.SelectorEventLoop()
    return asyncio.new_event_loop()
