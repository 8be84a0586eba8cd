"""The lock of a blocking client: one thread at a time uses the client.

    another thread is in a call that ends in time (publish, ping …)   wait for its end
    another thread waits for messages, possibly for ever              UsageError at once

Invariant: two threads never access the bytes, answers and queues of one client at the same time.
"""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from blipmq.errors import UsageError

LOOK_AGAIN_S = 0.05


class CallLock:
    """A re-entrant lock. `waits_for` names the thing that the holder waits for without a time limit, or is ""."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.waits_for = ""

    def __repr__(self) -> str:
        return f"CallLock(waits_for={self.waits_for!r})"

    def __enter__(self) -> None:
        if self._lock.acquire(blocking=False):
            return
        while not self._lock.acquire(timeout=LOOK_AGAIN_S):
            if waits_for := self.waits_for:
                raise UsageError(
                    f"Another thread uses this client to wait for {waits_for}, so it cannot do anything else meanwhile. Give "
                    "each thread that reads a client of its own, or use the asyncio client."
                )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock.release()

    @contextlib.contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Mark the holder of the lock as waiting for something that may never arrive."""
        before, self.waits_for = self.waits_for, what
        try:
            yield
        finally:
            self.waits_for = before


class Locked(Protocol):
    _call_lock: CallLock


P = ParamSpec("P")
R = TypeVar("R")
S = TypeVar("S", bound=Locked)


def locked(verb: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R]:
    """Decorator: the method runs while its thread holds the lock."""

    @functools.wraps(verb)
    def wrapped(self: S, /, *arguments: P.args, **options: P.kwargs) -> R:
        with self._call_lock:
            return verb(self, *arguments, **options)

    return wrapped
