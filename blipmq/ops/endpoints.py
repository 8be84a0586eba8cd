"""The endpoints for operators, and their answers: /metrics, /livez, /readyz, /healthz. `admin` serves them.

Invariant: each request to the core runs once at a time, however many clients wait for it. A scrape is bounded: see
`exposition`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

from blipmq.base.logs import Log
from blipmq.base.process import read_process, started_at
from blipmq.config.settings import Config
from blipmq.errors import BlipMQError
from blipmq.ops import exposition
from blipmq.ops.http import JSON, Answer, Request, quality
from blipmq.version import __version__

T = TypeVar("T")

TEXT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_TYPE = "application/openmetrics-text; version=1.0.0; charset=utf-8"
# The time for an answer of the core, after which it counts as stuck; and for a list of all subscribers, after which it
# is left out.
ANSWER_SECONDS = 2.0
LISTING_SECONDS = 2.0
# The age up to which a list of subscribers is used again. Listing ten thousand takes a few hundred requests to the
# core.
LISTING_FRESH_SECONDS = 1.0


class Watched(Protocol):
    """The part of a broker that this endpoint needs. Each request raises `UsageError` when the broker is not running."""

    @property
    def config(self) -> Config: ...

    @property
    def unready(self) -> str: ...

    @property
    def reloads(self) -> dict[str, int]: ...

    @property
    def auth(self) -> dict[str, int]: ...

    async def stats(self) -> dict[str, int]: ...

    async def reasons(self) -> list[str]: ...

    async def info(self) -> dict[str, Any]: ...


class Endpoints:
    """The answers about one broker. `counts` are those of the HTTP server: requests, bad and cut ones."""

    def __init__(self, broker: Watched, counts: dict[str, int], log: Log) -> None:
        self._broker = broker
        self._counts = counts
        self._log = log
        self._started_at = started_at()
        self._stats = Shared(broker.stats)
        self._reasons = Shared(broker.reasons)
        self._listing = Shared(broker.info, LISTING_FRESH_SECONDS)
        self._exposing = {openmetrics: Shared(partial(self._expose, openmetrics)) for openmetrics in (False, True)}
        self._routes: dict[str, Callable[[Request], Awaitable[Answer]]] = {
            "/": self._index,
            "/metrics": self._metrics,
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/healthz": self._healthz,
        }

    def __repr__(self) -> str:
        return f"<Endpoints {list(self._routes)}>"

    async def end(self) -> None:
        """Cancel the requests to the core."""
        questions: list[Shared[Any]] = [*self._exposing.values(), self._stats, self._reasons, self._listing]
        for question in questions:
            await question.end()

    async def answer(self, request: Request) -> Answer:
        """Return the answer to a request; never raises."""
        self._counts["requests"] += 1
        route = self._routes.get(request.path)
        if route is None:
            return Answer(404, f"there is no such page; try {', '.join(list(self._routes)[1:])}\n".encode())
        try:
            return await route(request)
        except BlipMQError as error:
            return Answer(503, f"{error}\n".encode())
        except Exception as error:  # an error of one request must be logged, and must not stop the endpoint
            self._log.error("internal_error", on=request.path, error=f"{type(error).__name__}: {error}")
            return Answer(500, b"the broker had an internal error; its log has the cause\n")

    # -- routes

    async def _index(self, request: Request) -> Answer:
        return Answer(200, f"BlipMQ {__version__}\n{chr(10).join(list(self._routes)[1:])}\n".encode())

    async def _metrics(self, request: Request) -> Answer:
        accept = request.fields.get("accept", "")
        wanted = quality(accept, "application/openmetrics-text")
        openmetrics = wanted > 0 and wanted >= quality(accept, "text/plain")
        body = await self._exposing[openmetrics].ask()
        if body is None:
            return Answer(503, (STUCK + "\n").encode())
        return Answer(200, body, OPENMETRICS_TYPE if openmetrics else TEXT_TYPE)

    async def _livez(self, request: Request) -> Answer:
        problem = await self._not_live()
        return Answer(503 if problem else 200, f"{problem or 'ok'}\n".encode())

    async def _readyz(self, request: Request) -> Answer:
        problem = self._broker.unready
        return Answer(503 if problem else 200, f"{problem or 'ok'}\n".encode())

    async def _healthz(self, request: Request) -> Answer:
        import json  # imported here because it is rarely needed

        not_live, unready = await self._not_live(), self._broker.unready
        failing = [problem for problem in (not_live, unready) if problem]
        reasons = failing or await self._reasons.ask(ANSWER_SECONDS) or []
        status = "failing" if failing else "degraded" if reasons else "ok"
        health = {
            "status": status,
            "live": not not_live,
            "ready": not unready,
            "reasons": reasons,
            "version": __version__,
        }
        return Answer(503 if failing else 200, (json.dumps(health) + "\n").encode(), JSON)

    async def _not_live(self) -> str:
        """Why the core counts as stuck; "" if it does not. A broker that has not started yet, or has stopped, is not
        stuck."""
        try:
            return "" if await self._stats.ask(ANSWER_SECONDS) is not None else STUCK
        except BlipMQError:
            return ""

    # -- the scrape

    async def _expose(self, openmetrics: bool) -> bytes | None:
        """Return the exposition; None if the core did not answer."""
        self._listing.begin()
        self._reasons.begin()
        stats = await self._stats.ask(ANSWER_SECONDS)
        reasons = await self._reasons.ask(ANSWER_SECONDS) if stats is not None else None
        if stats is None or reasons is None:
            return None
        snapshot = exposition.Snapshot(
            stats=stats,
            config=self._broker.config,
            report=await self._listing.ask(LISTING_SECONDS),
            state={"ready": int(not self._broker.unready), "degraded": int(bool(reasons))},
            reloads=self._broker.reloads,
            auth=self._broker.auth,
            process={**read_process(), "started_at": self._started_at},
            admin=dict(self._counts),
        )
        return exposition.expose(snapshot, openmetrics)


STUCK = (
    f"the broker's I/O thread has not answered within {ANSWER_SECONDS:g} s: it hangs, or the machine is overloaded; "
    "if this message stays, restart the broker"
)


class Shared(Generic[T]):
    """A request that runs once at a time. Callers during the run, or while the answer is fresh, share the answer."""

    def __init__(self, question: Callable[[], Coroutine[Any, Any, T]], fresh_seconds: float = 0.0) -> None:
        self._question = question
        self._fresh_seconds = fresh_seconds
        self._asked: asyncio.Task[T] | None = None
        self._answered_at = 0.0

    def __repr__(self) -> str:
        return f"<Shared asking={self._asked is not None and not self._asked.done()}>"

    def begin(self) -> asyncio.Task[T]:
        """Start the request, unless it is running or the answer is fresh."""
        if self._asked is None or (self._asked.done() and not self._is_fresh(self._asked)):
            self._asked = asyncio.get_running_loop().create_task(self._ask())
            # marks the exception as retrieved if no one waits
            self._asked.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._asked

    async def ask(self, seconds: float | None = None) -> T | None:
        """Return the answer, or None after `seconds`; the request then continues. Raises the request's errors."""
        task = self.begin()
        done, _ = await asyncio.wait({task}, timeout=seconds)
        return task.result() if done else None

    async def end(self) -> None:
        """Cancel the request."""
        task, self._asked = self._asked, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _ask(self) -> T:
        answer = await self._question()
        self._answered_at = time.monotonic()
        return answer

    def _is_fresh(self, task: asyncio.Task[T]) -> bool:
        failed = task.cancelled() or task.exception() is not None
        return not failed and time.monotonic() - self._answered_at < self._fresh_seconds
