"""The broker as a service of systemd: ready, reloading, stopping, and a watchdog that is fed only by a broker that works.

Invariant: the watchdog hears nothing but the answer to a question that went from this event loop through the commands to
the core's I/O thread and back through the events. If either of the two stands still, so does the feeding.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from blipmq.errors import BlipMQError
from blipmq.service.sd_notify import Notifier

# While the log is read back, however long that takes: how often the manager hears of it, and until when it shall wait.
STARTING_SECONDS, STARTING_PATIENCE_SECONDS = 1.0, 30.0
# Three questions fit into the manager's time, so one slow answer does not end the broker.
QUESTIONS_PER_WATCHDOG = 3
STATUS_SECONDS = 10.0  # where there is no watchdog
# Beyond the time given for flushing: what is left to do then.
STOP_GRACE_SECONDS = 10.0


class Service:
    """Keeps the manager told. `reasons` asks the core, and returns what is not as it should be, a sentence each."""

    def __init__(self, notifier: Notifier, reasons: Callable[[], Awaitable[list[str]]]) -> None:
        self._notifier = notifier
        self._reasons = reasons
        self._task: asyncio.Task[None] | None = None
        self._status = ""
        self._is_stopping = False

    def __repr__(self) -> str:
        return f"<Service stopping={self._is_stopping} {self._notifier!r}>"

    def starting(self) -> None:
        """Until `ready`, keep the manager from giving up."""
        self._run(self._keep_waiting())

    def ready(self, status: str) -> None:
        """The broker has started: say so, and how it does, and keep saying it."""
        self._status = status
        if self._is_stopping:
            return
        self._notifier.ready(status)
        self._run(self._watch())

    def reloading(self) -> None:
        self._notifier.reloading()

    def reloaded(self, error: str = "") -> None:
        """The settings have been read: all is new, or with an `error` all is as it was."""
        self._notifier.ready(f"reload failed, the settings are what they were: {error}" if error else "reloaded")

    def stopping(self, timeout_ms: int) -> None:
        """The end has begun; what is queued may take so long to be sent."""
        self._is_stopping = True
        self._notifier.stopping(timeout_ms / 1000 + STOP_GRACE_SECONDS)

    def end(self) -> None:
        """Say nothing any more."""
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
            self._notifier.starting("starting: reading the log", STARTING_PATIENCE_SECONDS)
            await asyncio.sleep(STARTING_SECONDS)

    async def _watch(self) -> None:
        pause_s = self._notifier.watchdog_s / QUESTIONS_PER_WATCHDOG or STATUS_SECONDS
        while True:
            await asyncio.sleep(pause_s)
            try:
                reasons = await self._reasons()
            except BlipMQError:  # it has stopped
                return
            if not self._is_stopping:
                self._notifier.well("degraded: " + "; ".join(reasons) if reasons else self._status)
