"""The TLS listener: its clients are served once their handshake is done.

Invariant: pending handshakes stay within the limits in force when a client connects: in total, per address and in time.
Handshakes run in a separate thread, because signatures are slow, so that many of them do not delay connected clients.
"""

from __future__ import annotations

import asyncio
import math
import socket
import ssl
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from blipmq.base.logs import Log
from blipmq.base.tcp_keepalive import LOOKS, keep_alive
from blipmq.net.admission import Bounds, Crowded, Pending
from blipmq.net.certificate import Certificates, subject_of
from blipmq.net.listener import address_of, open_listener
from blipmq.net.tls_connection import TlsConnection

if TYPE_CHECKING:
    from blipmq.net.bind_retry import BindRetry

BACKLOG = 1024
CIPHERTEXT_BYTES, PLAINTEXT_BYTES = 64 << 10, 64 << 10


class TlsListener:
    """Listens at `bind_addr`, which the setting `key` names. `opened` gets each connection whose handshake is done and
    calls its `serve`. `bounds` and `keepalive_ms` return the limits for the next connection. `start` raises
    `AddressInUse`, `NotAllowed` or `ConfigError`."""

    def __init__(
        self,
        bind_addr: str,
        key: str,
        certificates: Certificates,
        opened: Callable[[TlsConnection], None],
        bounds: Callable[[], Bounds],
        log: Log,
        backlog: int = BACKLOG,
        socket_options: Iterable[tuple[int, int, int]] = (),
        keepalive_ms: Callable[[], int] = lambda: 0,
    ) -> None:
        self.address = ""
        self.counts = {"done": 0, "failed": 0, "refused": 0}
        self.ciphertext, self.plaintext = (
            memoryview(bytearray(CIPHERTEXT_BYTES)),
            memoryview(bytearray(PLAINTEXT_BYTES)),
        )
        self._bind_addr, self._key, self._backlog = bind_addr, key, backlog
        self._certificates = certificates
        self._socket_options = tuple(socket_options)
        self._keepalive_ms = keepalive_ms
        self._unlooked: list[TlsConnection] = []  # connections still to check in this round
        self._on_open = opened
        self._bounds = bounds
        self._log = log
        self._loop: asyncio.AbstractEventLoop
        self._server: asyncio.Server | None = None
        self._worker = ThreadPoolExecutor(1, "blipmq-tls")
        self._connections: set[TlsConnection] = set()
        self._pending: Pending[TlsConnection] = Pending()
        self._empty: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<TlsListener {self.address or '-'} open={len(self._connections)} pending={len(self._pending)} {self.counts}>"

    @property
    def open_count(self) -> int:
        """Connections whose handshake is done."""
        return len(self._connections) - len(self._pending)

    @property
    def pending_count(self) -> int:
        """Connections whose handshake is running, or has failed and whose socket is still open."""
        return len(self._pending)

    # -- start and stop

    async def start(self, bind_retry: BindRetry | None = None) -> None:
        """Listen and serve; with `bind_retry`, as soon as the address is available."""
        self._loop = asyncio.get_running_loop()
        if bind_retry is None:
            await self._serve(open_listener(self._bind_addr, self._key))
        elif listener := await bind_retry.open(self._key, self._bind_addr, self._serve):
            await self._serve(listener)

    async def _serve(self, listener: socket.socket) -> None:
        try:
            self._server = await self._loop.create_server(
                lambda: TlsConnection(self, self._loop), sock=listener, backlog=self._backlog
            )
        except BaseException:
            listener.close()
            raise
        self.address = address_of(listener)

    def close(self) -> None:
        """Accept no more connections, and abort pending handshakes."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for connection in self._pending.all():
            connection.abort()

    async def wait_closed(self, seconds: float = 0) -> None:
        """End all connections. Those that are closing have `seconds` to send their output."""
        self.close()
        if self._connections:
            self._empty = self._loop.create_future()
            await asyncio.wait([self._empty], timeout=seconds)
            for connection in list(self._connections):
                connection.abort()
        self._worker.shutdown(wait=False)

    def tick(self) -> None:
        """Close connections whose client's machine acknowledges nothing. Called once a second; each connection is
        checked at least LOOKS times in `keepalive_ms`."""
        within_s = self._keepalive_ms() / 1000
        if within_s and not self._unlooked:
            self._unlooked = list(self._connections)
        now_s = self._loop.time()
        for _ in range(math.ceil(len(self._connections) * LOOKS / within_s) if within_s else 0):
            if self._unlooked:
                self._unlooked.pop().look(now_s, within_s)

    # -- called by connections

    def came(self, connection: TlsConnection) -> tuple[ssl.SSLContext, float] | None:
        self._connections.add(connection)
        if self._server is None or not connection.peer[0]:
            return None
        bounds = self._bounds()
        try:
            gone = self._pending.enter(connection, connection.peer[0], bounds)
        except Crowded as error:
            self._turn_away(connection, str(error))
            return None
        if gone is not None:
            self._turn_away(gone, f"{bounds.total} handshakes are under way, and it was the slowest")
            gone.abort()
        for level, option, value in self._socket_options:
            connection.get_extra_info("socket").setsockopt(level, option, value)
        keep_alive(connection.get_extra_info("socket"), self._keepalive_ms())
        return self._certificates.context, bounds.seconds

    def shake(self, connection: TlsConnection) -> None:
        def step() -> None:
            result = connection.step()
            try:
                self._loop.call_soon_threadsafe(self._stepped, connection, result)
            except RuntimeError:  # the loop and all connections were closed meanwhile
                pass

        self._pending.look(connection)
        self._worker.submit(step)

    def opened(self, connection: TlsConnection) -> None:
        self._pending.leave(connection)
        self.counts["done"] += 1
        write, facts = self._log.debug, {}
        if subject := subject_of(connection.peer_certificate):
            write, facts = self._log.info, {"certificate": subject}
        write("tls", peer=connection.name, version=connection.version, **facts)
        self._on_open(connection)

    def failed(self, connection: TlsConnection, error: str) -> None:
        if connection in self._pending:  # it stays pending until its socket is closed
            self.counts["failed"] += 1
        if error:
            self._log.warning("tls_failed", peer=connection.name, error=error)

    def gone(self, connection: TlsConnection) -> None:
        self._pending.leave(connection)
        self._connections.discard(connection)
        if self._empty is not None and not self._connections and not self._empty.done():
            self._empty.set_result(None)

    # -- internal

    def _turn_away(self, connection: TlsConnection, why: str) -> None:
        self.counts["refused"] += 1
        self._log.warning("tls_refused", peer=connection.name, why=why)

    def _stepped(self, connection: TlsConnection, result: Exception | bool) -> None:
        self._pending.answer(connection)
        connection.stepped(result)
