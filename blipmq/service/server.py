"""The broker as a process: descriptors, signals, start and stop.

Invariant: the first SIGTERM or SIGINT stops it in order with status 0; a second one ends it at once with 128 + its
number. SIGHUP reads the configuration again; an invalid one changes nothing.
Exit statuses: 0 stopped by a signal, 1 the core failed, 66 a file of [tls] cannot be used, 69 the address is in use, 71
a system call failed when the WAL was opened, 77 not allowed to listen there, 78 the configuration is invalid or needs
more than the system allows.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from collections.abc import Callable

from blipmq.base.affinity import choose_processors, stay_on
from blipmq.base.logs import Log
from blipmq.base.loop import new_loop
from blipmq.broker.broker import Broker
from blipmq.config import memory
from blipmq.config import reader as config_reader
from blipmq.config.reader import Loaded
from blipmq.config.settings import Config
from blipmq.errors import BlipMQError, ConfigError
from blipmq.net.bind_retry import BindRetry
from blipmq.net.listener import AddressInUse
from blipmq.ops.admin import Admin
from blipmq.service.sd_notify import Notifier
from blipmq.service.systemd import Service
from blipmq.version import __version__

# Descriptors besides connections: listener, rings, poller, WAL, HTTP, libraries; connections being refused at the limit
# (REFUSED_MAX of core.h); and the last ones, which the core leaves to the broker (DESCRIPTORS_SPARE of
# net/admission.c).
DESCRIPTORS_RESERVED = 64 + 64 + 32
# One key press or one `systemctl stop` can arrive twice, because a launcher passes on a signal that the group also got.
SAME_SIGNAL_SECONDS = 0.1


def run(loaded: Loaded, reload: Callable[[], Loaded]) -> int:
    """Serve until a signal stops the broker; returns the exit status. `reload` reads the configuration again."""
    config = loaded.config
    server, mqtt = config.server, config.mqtt
    ours = (server.bind_addr, server.tls_bind_addr, server.ws_bind_addr)
    if not any((*ours, mqtt.bind_addr, mqtt.tls_bind_addr, mqtt.ws_bind_addr)):
        raise ConfigError(
            "server.bind_addr is empty, so no client can connect. Set an address, such as 127.0.0.1:7878."
        )
    raise_descriptor_limit(config)
    stay_on(choose_processors(config.performance.network_optimizations.cpu_affinity)[1])
    log = Log(level=config.logging.level, format=config.logging.format)
    loop = new_loop()
    log.info(
        "starting",
        version=__version__,
        pid=os.getpid(),
        address=config.server.bind_addr,
        config=loaded.source,
        memory_at_rest=memory.size(memory.at_rest_bytes(config)),
        memory_worst=memory.size(memory.worst_bytes(config)),
    )
    warn(log, loaded)
    try:
        process = Process(Broker(config, log=log), reload, log, Notifier(os.environ))
        gc.freeze()  # exclude the loaded objects from garbage collection
        gc.enable()
        return loop.run_until_complete(
            process.serve(metrics_by_default=loaded.origins["metrics.bind_addr"] == "default")
        )
    finally:
        loop.close()


def warn(log: Log, loaded: Loaded) -> None:
    """Log warnings about settings that are allowed but unwise."""
    for warning in config_reader.warnings(loaded):
        log.warning("unwise", what=warning)


class Process:
    """Connects one broker to the process's signals and to the service manager."""

    def __init__(
        self, broker: Broker, reload: Callable[[], Loaded], log: Log, notifier: Notifier | None = None
    ) -> None:
        self._broker = broker
        self._read = reload
        self._log = log
        self._service = Service(notifier or Notifier({}), broker.reasons)
        self._end: asyncio.Event = asyncio.Event()
        self._bind_retry = BindRetry(log, self._ready_if_so)
        self._is_ready = False
        self._signal_at = 0.0

    def __repr__(self) -> str:
        return f"<Process ending={self._end.is_set()} {self._broker!r}>"

    async def serve(self, metrics_by_default: bool) -> int:
        """Start, wait for a signal, stop."""
        self._take_signals(asyncio.get_running_loop())
        admin = await self._start_admin(self._broker.config.metrics.bind_addr, metrics_by_default)
        try:
            self._service.starting()
            await self._broker.start(bind_retry=self._bind_retry)
            self._ready_if_so()
            if not self._is_ready:  # the manager must not wait: the address may come from a unit that it starts later
                self._service.ready(self._broker.unready)
            await self._end.wait()
            await self._bind_retry.stop()
            unflushed = await self._broker.stop()
        finally:
            await self._bind_retry.stop()
            self._service.end()
            if admin is not None:
                await admin.stop()
        self._log.info("stopped", unflushed=unflushed)
        self._log.finish()
        return 0

    def _ready_if_so(self) -> None:
        """Report ready when the broker listens at all client addresses."""
        broker = self._broker
        addresses = {
            "address": broker.address,
            "tls": broker.tls_address,
            "websocket": broker.websocket_address,
            "mqtt": broker.mqtt_address,
            "mqtt_tls": broker.mqtt_tls_address,
            "mqtt_websocket": broker.mqtt_websocket_address,
        }
        if self._is_ready or self._bind_retry.unready or not any(addresses.values()):
            return
        self._is_ready = True
        self._log.info("ready", **{name: where for name, where in addresses.items() if where or name == "address"})
        self._service.ready(f"serving {' and '.join(filter(None, addresses.values()))}")

    async def _start_admin(self, bind_addr: str, by_default: bool) -> Admin | None:
        """Serve metrics and health. If the default address is in use, continue without them, because no one asked for
        it."""
        if not bind_addr:
            return None
        tls = self._broker.tls if self._broker.config.metrics.tls else None
        admin = Admin(self._broker, bind_addr, self._log, tls.certificates if tls is not None else None)
        try:
            await admin.start(self._bind_retry)
        except AddressInUse as error:
            if not by_default:
                raise
            self._log.warning(
                "metrics_off",
                error=str(error),
                hint='set metrics.bind_addr to a free address, or to "" to turn metrics off',
            )
            return None
        if admin.address:
            self._log.info("metrics", address=admin.address)
        return admin

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            if sys.platform == "win32":
                signal.signal(number, lambda n, _: loop.call_soon_threadsafe(self._ended_by, signal.Signals(n)))
            else:
                loop.add_signal_handler(number, self._ended_by, number)
        if hasattr(signal, "SIGHUP"):
            loop.add_signal_handler(signal.SIGHUP, self._reload)

    def _ended_by(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if not self._end.is_set():
            self._signal_at = now
            timeout_ms = self._broker.config.limits.shutdown_timeout_ms
            self._log.info("stopping", signal=number.name, timeout_ms=timeout_ms)
            self._service.stopping(timeout_ms)
            self._end.set()
        elif now - self._signal_at >= SAME_SIGNAL_SECONDS:
            self._log.warning(
                "killed", signal=number.name, hint="a second signal ended the broker: queued messages were not sent"
            )
            self._log.finish()
            os._exit(128 + number)

    def _reload(self) -> None:
        self._service.reloading()
        old = self._broker.config
        try:
            loaded = self._read()
            config, applied, waiting = config_reader.reloaded(old, loaded.config)
            self._broker.apply(config)
        except BlipMQError as error:
            self._log.error(
                "reload_failed",
                error=str(error),
                hint="the old settings stay in effect: correct the file, then send SIGHUP again",
            )
            self._service.reloaded(str(error))
            self._broker.reload_refused(str(error))
            return
        for k in waiting:
            self._log.warning("reload_needs_restart", key=k.path)
        warn(self._log, loaded)
        self._log.info("reloaded", applied=",".join(k.path for k in applied))
        self._service.reloaded()


def descriptors_needed(config: Config) -> int:
    """The number of open files that the broker may need."""
    return config.server.max_connections + DESCRIPTORS_RESERVED


def raise_descriptor_limit(config: Config) -> None:
    """Raise the limit on open files to the number that the settings need. Raises `ConfigError` if that is not allowed."""
    if sys.platform == "win32":
        return
    import resource

    need = descriptors_needed(config)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= need:
        return
    try:
        # Only a privileged process may raise the hard limit. Trying it saves the operator a change if it succeeds.
        enough = hard == resource.RLIM_INFINITY or hard >= need
        resource.setrlimit(resource.RLIMIT_NOFILE, (need, hard if enough else need))
    except (OSError, ValueError):
        connections = config.server.max_connections
        raise ConfigError(
            f"server.max_connections = {connections} needs {need} open files, but this process may have at most {hard}. Raise "
            f"the limit (LimitNOFILE={need} in the service, `ulimit -Hn` in a shell), or set server.max_connections to "
            f"{max(1, connections - (need - hard))}."
        ) from None
