"""Requests to the core that are awaited. Invariant: each ends by its answer, or by `fail` when the broker stops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Questions:
    """The unanswered requests of one broker."""

    def __init__(self) -> None:
        self._open: set[asyncio.Future[Any]] = set()

    def __repr__(self) -> str:
        return f"<Questions open={len(self._open)}>"

    async def ask(self, ask: Callable[[Callable[[T], None]], None]) -> T:
        """Call `ask` with a callback, and return the value that the callback receives."""
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._open.add(answer)
        try:
            ask(lambda value: None if answer.done() else answer.set_result(value))
            return await answer
        finally:
            self._open.discard(answer)

    def fail(self, error: Exception) -> None:
        """End all open requests with `error`."""
        for answer in self._open:
            if not answer.done():
                answer.set_exception(error)
