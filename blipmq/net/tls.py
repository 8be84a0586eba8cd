"""TLS of a broker: its certificate, its listener, and the report about both.

Invariant: the certificate in use is the newest valid one. Created only where `[tls]` is configured.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from blipmq.base.logs import Log
from blipmq.config.settings import Config, NetworkOptimizations
from blipmq.net.admission import Bounds
from blipmq.net.certificate import EXPIRES_SOON_SECONDS, Certificates, date
from blipmq.net.tls_connection import TlsConnection
from blipmq.net.tls_listener import TlsListener

if TYPE_CHECKING:
    from blipmq.net.bind_retry import BindRetry


class Tls:
    """TLS of one broker. Raises `ConfigError` if a file of `[tls]` cannot be used. `tick` is called once a second."""

    def __init__(self, config: Config, log: Log) -> None:
        self._log = log
        self._config = config
        self._pending_max = config.limits.max_pending  # fixed until a restart, as in the core
        self._listener: TlsListener | None = None
        self.certificates = Certificates(config.tls)
        self._tell()

    def __repr__(self) -> str:
        return f"<Tls {self.certificates!r} {self._listener!r}>"

    async def listen(self, opened: Callable[[TlsConnection], None], bind_retry: BindRetry | None = None) -> None:
        """Listen at `server.tls_bind_addr`, if it is not empty; with `bind_retry`, as soon as the address is available.
        Raises `AddressInUse`, `NotAllowed` or `ConfigError`."""
        bind_addr = self._config.server.tls_bind_addr
        if bind_addr:
            listener = TlsListener(
                bind_addr,
                "server.tls_bind_addr",
                self.certificates,
                opened,
                self.bounds,
                self._log,
                socket_options=_socket_options(self._config.performance.network_optimizations),
                keepalive_ms=lambda: self._config.server.keepalive_ms,
            )
            await listener.start(bind_retry)
            self._listener = listener

    def bounds(self) -> Bounds:
        """The limits of handshakes: those of all connections before admission."""
        limits = self._config.limits
        return Bounds(self._pending_max, limits.max_pending_per_address, limits.hello_timeout_ms / 1000)

    def unlisten(self) -> None:
        """Accept no more connections."""
        if self._listener is not None:
            self._listener.close()

    async def stop(self, seconds: float) -> None:
        """Close all connections after their output is sent, at the latest after `seconds`."""
        if self._listener is not None:
            await self._listener.wait_closed(seconds)

    def apply(self, config: Config) -> None:
        """Use other files, or the same ones again. Raises `ConfigError` and changes nothing if they are invalid."""
        self.certificates.use(config.tls)
        self._config = config
        self._tell()

    def tick(self) -> None:
        """Load a changed certificate, and close connections whose client has vanished."""
        if self._listener is not None:
            self._listener.tick()
        if self.certificates.look():
            self._tell()

    def _tell(self) -> None:
        files = self.certificates
        if files.problem:
            self._log.error(
                "tls_certificate_refused",
                error=files.problem,
                hint="the old certificate stays in use: correct the files",
            )
            return
        about = files.certificate
        self._log.info(
            "tls_certificate", subject=about.subject, expires=date(about.not_after), file=self._config.tls.cert_file
        )
        for warning in files.warnings:
            self._log.warning("tls_certificate_warning", warning=warning)

    # -- report

    @property
    def address(self) -> str:
        """The listening address with its real port; "" if it does not listen."""
        return self._listener.address if self._listener is not None else ""

    def facts(self) -> dict[str, Any]:
        """The TLS part of INFO and the metrics."""
        files, listener = self.certificates, self._listener
        counts = listener.counts if listener is not None else {"done": 0, "failed": 0, "refused": 0}
        return {
            "address": self.address,
            "connections": listener.open_count if listener is not None else 0,
            "pending": listener.pending_count if listener is not None else 0,
            "handshakes": dict(counts),
            "certificate": {
                "subject": files.certificate.subject,
                "not_after": files.certificate.not_after,
                "loads": files.loads,
                "refused": files.refused,
                "ok": int(not files.problem),
            },
        }

    def reasons(self) -> list[str]:
        """Why the broker is degraded, as far as TLS is the cause, one sentence each."""
        files, now = self.certificates, time.time()
        reasons = []
        if files.problem:
            reasons.append(f"the new certificate is not valid, and the old one stays in use: {files.problem}")
        left = files.certificate.not_after - now
        if left <= EXPIRES_SOON_SECONDS:
            ends = "has expired" if left <= 0 else "expires"
            reasons.append(
                f"the certificate {self._config.tls.cert_file} {ends} on {date(files.certificate.not_after)}"
            )
        return reasons


def _socket_options(settings: NetworkOptimizations) -> Iterator[tuple[int, int, int]]:
    """The socket options that the core sets for the sockets that it accepts."""
    yield socket.IPPROTO_TCP, socket.TCP_NODELAY, int(settings.tcp_nodelay)
    if settings.send_buffer_size:
        yield socket.SOL_SOCKET, socket.SO_SNDBUF, settings.send_buffer_size
    if settings.recv_buffer_size:
        yield socket.SOL_SOCKET, socket.SO_RCVBUF, settings.recv_buffer_size
