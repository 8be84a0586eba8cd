"""Named timers of one broker. Invariant: a name has one timer at a time; a new call of `after` replaces it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timers:
    """Timers on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._handles: dict[str, asyncio.TimerHandle] = {}

    def __len__(self) -> int:
        return len(self._handles)

    def __contains__(self, name: str) -> bool:
        return name in self._handles

    def __repr__(self) -> str:
        return f"<Timers {sorted(self._handles)}>"

    def after(self, name: str, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` once, after `seconds`."""
        self.cancel(name)
        self._handles[name] = self._loop.call_later(seconds, self._run, name, call)

    def cancel(self, name: str) -> None:
        """Cancel a timer that has not run yet."""
        handle = self._handles.pop(name, None)
        if handle is not None:
            handle.cancel()

    def clear(self) -> None:
        """Cancel all timers."""
        for name in list(self._handles):
            self.cancel(name)

    def _run(self, name: str, call: Callable[[], None]) -> None:
        del self._handles[name]
        call()
