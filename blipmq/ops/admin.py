"""The HTTP endpoint for operators: /metrics, /livez, /readyz, /healthz.

    async with Admin(broker, "127.0.0.1:9090") as admin:
        ...  # admin.address has the real port

Invariant: at most CONNECTIONS_MAX clients are served at a time, and as many TLS handshakes are pending, each within the
limits of `http`. The first connection loads `http` and `endpoints`, which would take a twentieth of a start.
"""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType
from typing import TYPE_CHECKING

from blipmq.base.logs import Log
from blipmq.net.listener import address_of, open_or_wait

if TYPE_CHECKING:
    from blipmq.net.bind_retry import BindRetry
    from blipmq.net.certificate import Certificates
    from blipmq.net.https import HttpsServer
    from blipmq.ops.endpoints import Endpoints, Watched
    from blipmq.ops.http import Answer, Exchange, Request

KEY = "metrics.bind_addr"
CONNECTIONS_MAX = 16


class Admin:
    """Serves the state of one broker at `bind_addr`. `start` raises `AddressInUse`, `NotAllowed` or `ConfigError`.

    Start it before the broker and stop it after the broker, so that /readyz answers during the broker's start and stop.
    """

    def __init__(
        self, broker: Watched, bind_addr: str, log: Log | None = None, certificates: Certificates | None = None
    ) -> None:
        self.address = ""
        self._broker = broker
        self._bind_addr = bind_addr
        self._log = log or Log(level="warning")
        self._server: asyncio.Server | HttpsServer | None = None
        self._certificates = certificates
        self._open: dict[Exchange, None] = {}  # oldest first
        self._counts = {"requests": 0, "bad": 0, "cut": 0}
        self._endpoints: Endpoints | None = None

    def __repr__(self) -> str:
        return f"<Admin address={self.address or '-'} open={len(self._open)} counts={self._counts}>"

    # -- start and stop

    async def start(self, bind_retry: BindRetry | None = None) -> None:
        """Listen and serve; with `bind_retry`, as soon as the address is available."""
        if listener := await open_or_wait(self._bind_addr, KEY, self._serve, bind_retry):
            await self._serve(listener)

    async def _serve(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self.address = address_of(listener)
        if self._certificates is not None:
            from blipmq.net.https import HttpsServer  # imported here because few brokers serve metrics over HTTPS
            from blipmq.ops.http import EXCHANGE_SECONDS

            self._server = HttpsServer(
                listener,
                self._certificates,
                self._exchange,
                self._log,
                CONNECTIONS_MAX,
                EXCHANGE_SECONDS[0],
            )
            return
        try:
            self._server = await loop.create_server(self._exchange, sock=listener, backlog=4 * CONNECTIONS_MAX)
        except BaseException:
            listener.close()
            raise

    async def stop(self) -> None:
        """Close all connections. Stopping twice is harmless."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for exchange in list(self._open):
            exchange.abort()
        if self._endpoints is not None:
            await self._endpoints.end()
        await server.wait_closed()

    async def __aenter__(self) -> Admin:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _exchange(self) -> Exchange:
        from blipmq.ops.endpoints import Endpoints
        from blipmq.ops.http import Exchange

        if self._endpoints is None:
            self._endpoints = Endpoints(self._broker, self._counts, self._log)
        return Exchange(self, asyncio.get_running_loop())

    # -- called by exchanges

    def opened(self, exchange: Exchange) -> None:
        """Add a connection. At the limit the oldest one is closed, preferably one without a complete request."""
        if len(self._open) >= CONNECTIONS_MAX:
            oldest = next(iter(self._open))
            self.cut(next((e for e in self._open if e.reading), oldest), "closed for a newer connection")
        self._open[exchange] = None

    def closed(self, exchange: Exchange) -> None:
        self._open.pop(exchange, None)

    def cut(self, exchange: Exchange, why: str) -> None:
        """Close a connection, and count and log it."""
        self._counts["cut"] += 1
        self._log.debug("admin_cut", peer=exchange.peer, why=why)
        self.closed(exchange)
        exchange.abort()

    def refused(self, exchange: Exchange, why: str) -> None:
        self._counts["bad"] += 1
        self._log.debug("admin_refused", peer=exchange.peer, why=why)

    async def answer(self, request: Request) -> Answer:
        """Return the answer to a request; never raises."""
        assert self._endpoints is not None
        return await self._endpoints.answer(request)
