"""The event loop of a broker's own process: which one it is, and what is loaded for it.

A plain broker asks little of its loop: messages never pass through it, the core's thread has them. The loop of the standard
library does that as well as uvloop does, and starts sooner; the bytes of TLS all pass through, and there it is uvloop.

Invariant: with TLS configured, all that speaks it is loaded before the broker is ready, or the start fails.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio


def load_asyncio(tls: bool) -> None:
    """Import asyncio, and without `tls` only what it needs then: no `ssl`, which is OpenSSL and a tenth of a start.

    To be called before anything that imports asyncio. A process that has it, or ssl, stays as it is.
    """
    if tls or "ssl" in sys.modules or "asyncio" in sys.modules:
        return
    # asyncio takes ssl if it is there, and serves without in a Python that was built so. None is how the import system writes
    # down that a module is not there; whoever imports it later (a client in this process) gets it.
    sys.modules["ssl"] = None  # type: ignore[assignment]
    try:
        import asyncio  # noqa: F401
    finally:
        del sys.modules["ssl"]


def new_loop(tls: bool) -> tuple[asyncio.AbstractEventLoop, str]:
    """An event loop and its name: for `tls` uvloop's, where it is installed."""
    import asyncio

    if sys.platform == "win32":  # the loop there by default cannot watch a descriptor
        return asyncio.SelectorEventLoop(), "asyncio"
    if tls:
        try:
            import uvloop
        except ImportError:
            pass
        else:
            return uvloop.new_event_loop(), "uvloop"
    return asyncio.new_event_loop(), "asyncio"
