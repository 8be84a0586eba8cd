"""The broker as a systemd service: ready, reloading, stopping, and a watchdog.

Invariant: the watchdog is reset only by the answer to a request that went from this event loop through the commands to
the core's I/O thread and back through the events. If either of the two hangs, the watchdog expires.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from blipmq.errors import BlipMQError
from blipmq.service.sd_notify import Notifier

# While the WAL is read at start: the interval of status reports, and the time that each asks the manager to wait.
STARTING_SECONDS, STARTING_PATIENCE_SECONDS = 1.0, 30.0
# Requests per watchdog interval, so that one slow answer does not end the broker.
QUESTIONS_PER_WATCHDOG = 3
STATUS_SECONDS = 10.0  # without a watchdog
# Added to the time for flushing, for the rest of the shutdown.
STOP_GRACE_SECONDS = 10.0


class Service:
    """Reports to the service manager. `reasons` asks the core why the broker is degraded, and returns one sentence
    each."""

    def __init__(self, notifier: Notifier, reasons: Callable[[], Awaitable[list[str]]]) -> None:
        self._notifier = notifier
        self._reasons = reasons
        self._task: asyncio.Task[None] | None = None
        self._status = ""
        self._is_stopping = False

    def __repr__(self) -> str:
        return f"<Service stopping={self._is_stopping} {self._notifier!r}>"

    def starting(self) -> None:
        """Extend the manager's start timeout until `ready`."""
        self._run(self._keep_waiting())

    def ready(self, status: str) -> None:
        """The broker has started: report its state now and periodically."""
        self._status = status
        if self._is_stopping:
            return
        self._notifier.ready(status)
        self._run(self._watch())

    def reloading(self) -> None:
        self._notifier.reloading()

    def reloaded(self, error: str = "") -> None:
        """The settings have been read: the new ones are in effect, or with an `error` the old ones."""
        self._notifier.ready(f"reload failed, the old settings stay in effect: {error}" if error else "reloaded")

    def stopping(self, timeout_ms: int) -> None:
        """The broker is stopping; sending queued messages may take `timeout_ms` milliseconds."""
        self._is_stopping = True
        self._notifier.stopping(timeout_ms / 1000 + STOP_GRACE_SECONDS)

    def end(self) -> None:
        """Stop reporting."""
        if self._task is not None:
            self._task.cancel()
        self._notifier.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._notifier:
            self._task = asyncio.get_running_loop().create_task(work)
        else:
            work.close()

    async def _keep_waiting(self) -> None:
        while True:
            self._notifier.starting("starting: reading the WAL", STARTING_PATIENCE_SECONDS)
            await asyncio.sleep(STARTING_SECONDS)

    async def _watch(self) -> None:
        pause_s = self._notifier.watchdog_s / QUESTIONS_PER_WATCHDOG or STATUS_SECONDS
        while True:
            await asyncio.sleep(pause_s)
            try:
                reasons = await self._reasons()
            except BlipMQError:  # the broker has stopped
                return
            if not self._is_stopping:
                self._notifier.well("degraded: " + "; ".join(reasons) if reasons else self._status)
