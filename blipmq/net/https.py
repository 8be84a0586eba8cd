"""HTTPS for the metrics: a listener that passes connections on when their handshake is done.

Invariant: at most `pending_max` handshakes are in progress, each for at most `seconds`. At the limit the oldest one is
ended. Only this module imports `ssl` in a broker.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import partial

from blipmq.base.logs import Log
from blipmq.base.peer import host_port
from blipmq.config.settings import Tls
from blipmq.net.certificate import Certificates, subject_of
from blipmq.net.tls_log import log_failed, log_late, log_opened

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
# Accepting failed because descriptors or memory ran out: time until the next try.
REST_SECONDS = 0.1


def context_of(settings: Tls) -> ssl.SSLContext:
    """A context with the files and rules of `[tls]`. Raises OSError or ValueError if a file cannot be used."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = VERSIONS[settings.min_version]
    # Renegotiation would let a client make the broker sign repeatedly.
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.load_cert_chain(settings.cert_file, settings.key_file, password=_refuse_pass_phrase)
    if settings.client_ca_file:
        context.load_verify_locations(settings.client_ca_file)
        context.verify_mode = ssl.CERT_REQUIRED if settings.require_client_cert else ssl.CERT_OPTIONAL
    return context


def _refuse_pass_phrase() -> str:
    raise ValueError("the key is encrypted")


class HttpsServer:
    """Serves `listener`, which it owns. `protocol` makes the protocol of a connection whose handshake is done."""

    def __init__(
        self,
        listener: socket.socket,
        certificates: Certificates,
        protocol: Callable[[], asyncio.BaseProtocol],
        log: Log,
        pending_max: int,
        seconds: float,
    ) -> None:
        self._listener = listener
        self._certificates = certificates
        self._protocol = protocol
        self._log = log
        self._pending_max = pending_max
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._pending: dict[asyncio.Task[None], str] = {}  # peers, oldest first
        self._accepting = self._loop.create_task(self._accept())

    def __repr__(self) -> str:
        return f"<HttpsServer pending={len(self._pending)}>"

    def close(self) -> None:
        """Accept no more connections, and end the handshakes in progress."""
        for task in (self._accepting, *self._pending):
            task.cancel()

    async def wait_closed(self) -> None:
        await asyncio.wait([self._accepting, *self._pending])
        self._listener.close()

    async def _accept(self) -> None:
        while True:
            try:
                connection, address = await self._loop.sock_accept(self._listener)
            except OSError:
                await asyncio.sleep(REST_SECONDS)
                continue
            peer = host_port(address[0], address[1])
            if len(self._pending) >= self._pending_max:
                self._displace()
            task = self._loop.create_task(self._shake(connection, peer))
            self._pending[task] = peer
            task.add_done_callback(partial(self._shaken, connection))

    def _shaken(self, connection: socket.socket, task: asyncio.Task[None]) -> None:
        self._pending.pop(task, None)
        if task.cancelled():  # perhaps before its first step
            connection.close()

    def _displace(self) -> None:
        oldest = next(iter(self._pending))
        peer = self._pending.pop(oldest)
        why = f"{self._pending_max} handshakes are in progress, and it was the slowest"
        self._log.warning("tls_refused", peer=peer, why=why)
        oldest.cancel()

    async def _shake(self, connection: socket.socket, peer: str) -> None:
        try:
            transport, _ = await self._loop.connect_accepted_socket(
                self._protocol, connection, ssl=self._certificates.https, ssl_handshake_timeout=self._seconds
            )
        except ssl.SSLError as error:
            log_failed(self._log, peer, error.reason or str(error), getattr(error, "verify_message", ""))
        except ConnectionAbortedError:  # raised when the time is over
            log_late(self._log, peer, self._seconds)
        except OSError:  # the client left
            pass
        else:
            version = transport.get_extra_info("ssl_object").version()
            log_opened(self._log, peer, version, subject_of(transport.get_extra_info("peercert")) or None)
            return
        connection.close()
