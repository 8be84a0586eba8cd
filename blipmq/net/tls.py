"""TLS of a broker: its certificate, its listeners in the core, the log lines about its clients, and the report.

Invariant: the certificate in use is the newest valid one. New connections get it; open ones keep theirs. Created only where
`[tls]` is configured.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from blipmq.base.logs import Log
from blipmq.config.settings import Config, value_of
from blipmq.native import tls as module
from blipmq.native.core import Core
from blipmq.native.events import Handshake, Secured
from blipmq.net.certificate import EXPIRES_SOON_SECONDS, Certificates, date
from blipmq.net.listener import address_of, open_or_wait
from blipmq.net.tls_log import log_failed, log_late, log_opened

if TYPE_CHECKING:
    from blipmq.net.bind_retry import BindRetry

# The settings of the addresses, and whether the clients there speak MQTT.
SETTINGS = {"server.tls_bind_addr": False, "mqtt.tls_bind_addr": True}
# The keys that encrypt session tickets live as long as a context.
TICKET_SECONDS, TICKET_RETRY_SECONDS = 12 * 3600.0, 60.0


class Tls:
    """TLS of one broker. Raises `ConfigError` if a file of `[tls]` cannot be used. `tick` is called once a second."""

    def __init__(self, config: Config, log: Log) -> None:
        self.addresses: dict[str, str] = {}  # where it listens, with the real port, by setting
        self.certificates = Certificates(config.tls, https=config.metrics.tls)
        self._log = log
        self._config = config
        self._core: Core | None = None
        self._given_s = 0.0  # when the core got its context
        self._tell()

    def __repr__(self) -> str:
        return f"<Tls {self.certificates!r} addresses={self.addresses}>"

    # -- the listeners

    async def listen(self, core: Core, bind_retry: BindRetry | None = None) -> None:
        """Let `core` listen at the addresses of SETTINGS that are not empty; with `bind_retry`, as soon as each is
        available. Raises `AddressInUse`, `NotAllowed` or `ConfigError`."""
        wanted = {setting: bind_addr for setting in SETTINGS if (bind_addr := value_of(self._config, setting))}
        if not wanted:
            return
        self._core = core
        self._give()
        for setting, bind_addr in wanted.items():
            serve = partial(self._serve, setting)
            if listener := await open_or_wait(bind_addr, setting, serve, bind_retry):
                await serve(listener)

    async def _serve(self, setting: str, listener: socket.socket) -> None:
        if self._core is None:  # the broker stopped meanwhile
            listener.close()
            return
        self.addresses[setting] = address_of(listener)
        self._core.listen(listener.detach(), secure=True, mqtt=SETTINGS[setting])

    def stop(self) -> None:
        """Give no more contexts and listeners to the core."""
        self._core = None

    def _give(self) -> None:
        """New connections use the certificate that is in use now."""
        if self._core is not None:
            debug = self._config.logging.level == "debug"
            self._core.secure(module.table(), self.certificates.context.share(), tell=debug)
            self._given_s = time.monotonic()

    # -- changes

    def apply(self, config: Config) -> None:
        """Use other files, or the same ones again. Raises `ConfigError` and changes nothing if they are invalid."""
        self.certificates.use(config.tls)
        self._config = config
        self._give()
        self._tell()

    def tick(self) -> None:
        """Load a changed certificate, and replace the keys of tickets that are too old."""
        if self.certificates.look():
            self._give()
            self._tell()
        elif self._core is not None and time.monotonic() - self._given_s >= TICKET_SECONDS:
            self._renew_tickets()

    def _renew_tickets(self) -> None:
        try:
            self.certificates.renew_tickets()
        except module.TlsUnusable as error:
            self._log.warning(
                "tls_tickets_kept", error=error.reason, hint="the old keys of session tickets stay in use"
            )
            self._given_s += TICKET_RETRY_SECONDS
        else:
            self._give()

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

    # -- the core's events

    def secured(self, event: Secured) -> None:
        """Log how a handshake ended."""
        if event.result is Handshake.DONE:
            log_opened(self._log, event.peer, event.version, event.certificate)
        elif event.result is Handshake.FAILED:
            log_failed(self._log, event.peer, event.reason, event.detail)
        elif event.result is Handshake.LATE:
            log_late(self._log, event.peer, event.limit_ms / 1000)
        else:
            self._log.warning("tls_refused", peer=event.peer, why=self._why(event.result))

    def _why(self, result: Handshake) -> str:
        limits = self._config.limits
        if result is Handshake.REFUSED_ADDRESS:
            count = limits.max_pending_per_address
            return f"limits.max_pending_per_address: {count} connections of its address are not admitted yet"
        waiting = f"limits.max_pending: {limits.max_pending} connections are not admitted yet"
        if result is Handshake.DISPLACED:
            return f"{waiting}, and it was the slowest"
        return f"{waiting}, and all wait for the broker"

    # -- report

    def facts(self, counters: Mapping[str, int]) -> dict[str, Any]:
        """The TLS part of INFO and the metrics."""
        files = self.certificates
        return {
            "address": self.addresses.get("server.tls_bind_addr", ""),
            "connections": counters["secure_open"],
            "pending": counters["secure_pending"],
            "handshakes": {name: counters[f"secure_{name}"] for name in ("done", "failed", "refused")},
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
