"""A complete broker: the core, the policy around it, and the methods to use it from the same process.

    async with Broker({"server": {"bind_addr": "127.0.0.1:0"}}) as broker:
        broker.publish("site/1/temp", b"21.5")

Invariant: everything here runs in the thread of one event loop. Only the core has its own thread, reached through
commands and events. Brokers share nothing, so a process may run several.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any

from blipmq.auth.auth import CHECK_SECONDS, Auth
from blipmq.base.logs import Log
from blipmq.base.validation import check_text, check_whole
from blipmq.broker.clock_sync import ClockWatch
from blipmq.broker.event_pump import EventPump
from blipmq.broker.message_ids import IdFile
from blipmq.broker.questions import Questions
from blipmq.broker.status import Status
from blipmq.broker.timers import Timers
from blipmq.broker.wal import Wal
from blipmq.config.embedded import Settings, as_config
from blipmq.config.settings import Config, value_of
from blipmq.errors import BlipMQError, Disconnected, UsageError, WrongType, refusal
from blipmq.native.config import CoreConfig
from blipmq.native.core import Core
from blipmq.native.events import (
    Accepting,
    AdminAsked,
    Attached,
    Closed,
    Consumed,
    Hello,
    Info,
    Listed,
    MqttConnect,
    MqttSubscribe,
    Out,
    Secured,
    SessionEnded,
    SessionExpired,
    SessionOver,
    SessionsListed,
    Stats,
    Stopped,
    Sub,
    Unsub,
    Unsubscribed,
)
from blipmq.net.admission_log import AdmissionLog
from blipmq.net.listener import address_of, open_or_wait
from blipmq.protocols.blip import NativeProtocol
from blipmq.protocols.clients import ClientRules, Refusal
from blipmq.sessions.connections import Connection, Connections
from blipmq.sessions.listing import ASKED_ROWS_MAX, ROWS_MAX, Wanted

if TYPE_CHECKING:
    from blipmq.broker.blocking import BlockingBroker
    from blipmq.broker.publisher import Publisher
    from blipmq.broker.sys_topics import SysTopics
    from blipmq.client.client import AwaitableContext, Client, Payload
    from blipmq.client.connection import StateCallback
    from blipmq.net.attached import AttachedConnections
    from blipmq.net.bind_retry import BindRetry
    from blipmq.net.memory_transport import MemoryTransport
    from blipmq.net.tls import Tls
    from blipmq.protocols.blip_admin import Operators
    from blipmq.protocols.mqtt import MqttProtocol
    from blipmq.sessions.end import End, SessionEnds

TICK_SECONDS = 1.0
# Added to the time for flushing: the core needs it to close all connections.
STOP_GRACE_SECONDS = 5.0
# The settings of the addresses without TLS, and what the clients speak there.
LAYERS: dict[str, dict[str, bool]] = {
    "server.bind_addr": {},
    "server.ws_bind_addr": {"websocket": True},
    "mqtt.bind_addr": {"mqtt": True},
    "mqtt.ws_bind_addr": {"mqtt": True, "websocket": True},
}


class Broker:
    """An embedded broker. Use it with `async with`, or with `with` to get a `BlockingBroker` that runs in a thread. The
    latter also works in a program that runs its own event loop; each call then blocks that loop until it returns.

    `config` is a `Config`, nested dicts shaped like the file, the path of a file, or None for the defaults. Unlike the
    command line, an embedded broker reads no environment variables. `server.bind_addr = ""` makes a broker without a
    listener; use `connect` and `publish`. QoS 1 needs the WAL. A broker configured from dicts or without settings has
    one only if `wal.directory` or `wal.enabled` is set, so that it does not write into the program's working directory.
    Raises `ConfigError`; at start `AddressInUse`, `LogLocked` and `LogUnusable`.
    """

    def __init__(self, config: Settings = None, *, log: Log | None = None) -> None:
        self.config = as_config(config)
        # The default level is warning, because standard error belongs to the embedding program.
        self.log = log or Log(level="warning", format=self.config.logging.format)
        self._connections = Connections()
        self._core: Core | None = None
        self._starting = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._status: Status | None = None
        self._mqtt: MqttProtocol | None = None
        self._auth: Auth | None = None
        self._ends: SessionEnds | None = None
        self._attached: AttachedConnections | None = None
        self._pump: EventPump | None = None
        self._timers: Timers | None = None
        self._questions = Questions()
        self._publisher: Publisher | None = None
        self._stopped: asyncio.Future[int] | None = None
        self._bind_retry: BindRetry | None = None
        self._thread: BlockingBroker | None = None
        self._ids = IdFile("", self.log)
        self.tls: Tls | None = None
        if self.config.tls.cert_file:
            from blipmq.net.tls import Tls  # imported here because only a broker with TLS should load `ssl`

            self.tls = Tls(self.config, self.log)

    def __repr__(self) -> str:
        state = self.unready or "running"
        counts = f"connections={len(self._connections)} attached={len(self._attached or ())}"
        return f"<Broker {state} address={self.address or '-'} {counts}>"

    # -- start and stop

    async def start(self, listener: socket.socket | None = None, bind_retry: BindRetry | None = None) -> None:
        """Recover the WAL, start the core and, if `server.bind_addr` is not empty, listen. A given `listener` is used
        instead. Returns when the broker serves. With `bind_retry` it also returns if an address is not available yet;
        the broker listens there as soon as it is."""
        if self._core is not None or self._starting:
            raise UsageError("this broker has already been started")
        self._starting = True
        self._bind_retry = bind_retry
        logged = self.config.wal.enabled
        self._ids = IdFile("" if logged else self.config.wal.directory, self.log)
        core = Core(CoreConfig.of(self.config), self._ids.begin(), on_backlog=self._backlog)
        core.origins(self.config.server.ws_origins)
        listeners: dict[str, socket.socket] = {} if listener is None else {"server.bind_addr": listener}
        try:
            wal = await Wal.open(core, self.config, self.log) if logged else None
            for setting in LAYERS:
                bind_addr = value_of(self.config, setting)
                if setting in listeners or not bind_addr:
                    continue
                listen = partial(self._listen, setting)
                if opened := await open_or_wait(bind_addr, setting, listen, bind_retry):
                    listeners[setting] = opened
            if self.tls is not None:
                await self.tls.listen(core, bind_retry)
            clocks = ClockWatch(core.clock)
            clocks.look()
            core.start()
        except BaseException:
            core.free()
            for opened in listeners.values():
                opened.close()
            if self.tls is not None:
                self.tls.stop()
            raise
        finally:
            self._starting = False
        self._begin(core, wal, clocks, listeners)

    def _begin(self, core: Core, wal: Wal | None, clocks: ClockWatch, listeners: dict[str, socket.socket]) -> None:
        self._loop = asyncio.get_running_loop()
        self._core = core
        self._timers = Timers(self._loop)
        self._pump = EventPump(core, self._loop, self._timers, self.log)
        self._attached = None
        self._clocks = clocks
        self._stopped = None
        self._ends = None
        self._mqtt = None
        self._auth = Auth(core, self.config.auth, self.log)
        admission = AdmissionLog(self.log, time.monotonic)
        self._status = Status(
            core,
            self._connections,
            time.monotonic,
            self.config.limits.memory_bytes,
            wal,
            self._auth,
            admission,
            self.tls,
        )
        self._rules = ClientRules(self._connections, self.config, self.log, self._status, self._auth)
        self._protocol = NativeProtocol(core, self._connections, self._rules, self.log, self._status, self._operators)
        self._status.sampled = self._sampled
        self._sys: SysTopics | None = None
        mqtt = self.config.mqtt
        if mqtt.bind_addr or mqtt.tls_bind_addr or mqtt.ws_bind_addr:
            from blipmq.broker.sys_topics import SysTopics  # imported here because only MQTT clients expect them

            self._sys = SysTopics(core.publish, time.monotonic, self.config.mqtt.sys_interval_s)
        self._auth.open()
        if self._bind_retry is not None:
            self._status.bind_problems = self._bind_retry.reasons
        for setting, listener in listeners.items():
            self._give(core, self._status, setting, listener)
        self._pump.start(self._handlers(self._protocol, self._rules, self._status))
        self._tick()
        self._watch_keys()

    async def _listen(self, setting: str, listener: socket.socket) -> None:
        """Listen at an address that has become available."""
        core, status = self._running(), self._status_running()
        if self._stopped is not None:
            raise UsageError("this broker is stopping")
        self._give(core, status, setting, listener)

    @staticmethod
    def _give(core: Core, status: Status, setting: str, listener: socket.socket) -> None:
        """Let the core listen at the address of `listener`, which it then owns."""
        status.addresses[setting] = address_of(listener)
        core.listen(listener.detach(), **LAYERS[setting])

    async def stop(self, timeout_ms: int | None = None) -> int:
        """Stop accepting, send queued messages for at most `timeout_ms` (None: limits.shutdown_timeout_ms), close all
        connections.

        Returns the number of messages that could not be sent. Stopping twice is harmless.
        """
        if timeout_ms is not None:
            check_whole("timeout_ms", timeout_ms)
        if self._core is None or self._loop is None or self._timers is None:
            return 0
        self._running()
        if self._stopped is None:
            self._stopped = self._loop.create_future()
            flush_ms = self.config.limits.shutdown_timeout_ms if timeout_ms is None else timeout_ms
            self._core.unlisten()
            if self.tls is not None:
                self.tls.stop()
            if self._publisher is not None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._publisher.drain(), flush_ms / 1000)
            self._core.stop(flush_ms)
            # The core enforces the time limit itself. If it has not stopped after the grace period, that is an error
            # and is logged.
            self._timers.after("stop", flush_ms / 1000 + STOP_GRACE_SECONDS, self._stop_overdue)
        return await asyncio.shield(self._stopped)

    async def __aenter__(self) -> Broker:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def __enter__(self) -> BlockingBroker:
        from blipmq.broker.blocking import BlockingBroker

        self._thread = BlockingBroker(self)
        return self._thread

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._thread is not None
        self._thread.stop()

    # -- public methods

    @property
    def unready(self) -> str:
        """Why new clients are not served now: "starting", "stopping", "stopped" or a sentence; "" if they are served."""
        if self._core is None or self._status is None:
            return "starting" if self._stopped is None else "stopped"
        if self._stopped is not None:
            return "stopping"
        return self._status.accept_problem or (self._bind_retry.unready if self._bind_retry is not None else "")

    @property
    def address(self) -> str:
        """The listening address with its real port; "" without a listener."""
        return self._address("server.bind_addr")

    @property
    def websocket_address(self) -> str:
        """The WebSocket listening address with its real port; "" without such a listener."""
        return self._address("server.ws_bind_addr")

    @property
    def mqtt_address(self) -> str:
        """The MQTT listening address with its real port; "" without such a listener."""
        return self._address("mqtt.bind_addr")

    @property
    def mqtt_websocket_address(self) -> str:
        """The listening address for MQTT over WebSocket with its real port; "" without such a listener."""
        return self._address("mqtt.ws_bind_addr")

    @property
    def tls_address(self) -> str:
        """The TLS listening address with its real port; "" without a TLS listener."""
        return self.tls.addresses.get("server.tls_bind_addr", "") if self.tls is not None else ""

    @property
    def mqtt_tls_address(self) -> str:
        """The listening address for MQTT over TLS with its real port; "" without such a listener."""
        return self.tls.addresses.get("mqtt.tls_bind_addr", "") if self.tls is not None else ""

    def _address(self, setting: str) -> str:
        return self._status.addresses.get(setting, "") if self._status else ""

    def publish(self, topic: str, payload: Payload, ttl_ms: int = 0, *, qos: int = 0) -> Awaitable[int]:
        """Publish from the broker itself. `ttl_ms`: time to live in milliseconds; 0 is the default.

        QoS 0: the message is queued when this returns; awaiting the result is allowed and gives 0. QoS 1 needs the WAL:
        awaiting the result waits until the message is on disk and gives its id, or raises `Refused` if the WAL does not
        accept it. The message is published whether or not the result is awaited. Publishes of one QoS keep their order.
        Raises `UsageError` for invalid arguments, `Refused` if too many bytes wait already.
        """
        self._running()
        if qos and not self.config.wal.enabled:
            raise UsageError("QoS 1 needs the WAL: set wal.directory to its directory, or publish with QoS 0")
        if self._publisher is None:
            from blipmq.broker.publisher import Publisher  # imported here because a standalone broker never needs it

            self._publisher = Publisher(self.open_transport)
        return self._publisher.publish(topic, payload, ttl_ms, qos, self.config.server.max_message_size_bytes)

    def connect(
        self,
        *,
        client_id: str = "",
        timeout_s: float = 10.0,
        on_state: StateCallback | None = None,
        on_refusal: Callable[[BlipMQError], None] | None = None,
    ) -> AwaitableContext[Client]:
        """Return a client inside this process: no socket, no key, the same protocol. The options are those of
        `blipmq.connect`."""
        from blipmq.client.client import AwaitableContext, Client

        client = Client(
            "in-process:1",
            opener=self.open_transport,
            client_id=client_id,
            reconnect=False,
            timeout_s=timeout_s,
            on_state=on_state,
            on_refusal=on_refusal,
        )
        return AwaitableContext(client.open())

    async def open_transport(self, protocol: asyncio.BaseProtocol) -> MemoryTransport:
        """Open an in-memory connection and give it to `protocol` as its transport."""
        return await self._attached_connections().open(protocol)

    async def stats(self) -> dict[str, int]:
        """The core's counters and gauges, by their names in `bq_stats_t`."""
        return await self._questions.ask(self._status_running().ask_counters)

    async def info(self) -> dict[str, Any]:
        """The state of the broker, as INFO returns it."""
        return await self._questions.ask(self._status_running().ask_report)

    async def sessions(self, find: str = "", limit: int = ROWS_MAX) -> dict[str, Any]:
        """List QoS 1 subscriptions and queue groups, also those of absent clients: totals, and in `list` the rows with
        the largest lag. `find`: a part of the filter, client_id or group."""
        check_text("find", find)
        check_whole("limit", limit)
        status, wanted = self._status_running(), Wanted(find, limit=min(max(limit, 1), ASKED_ROWS_MAX))
        return await self._questions.ask(lambda answer: status.list_sessions(answer, wanted))

    async def end_session(
        self, filter: str, *, client_id: str = "", group: str = "", key: str | None = None
    ) -> dict[str, Any]:
        """End a durable subscription or a queue group of any client; returns its last state. `key`: the name of the key
        that the client_id belongs to; None: any key, if only one matches. Raises `Refused` with the reason."""
        from blipmq.sessions.end import Target

        for name, text in (("filter", filter), ("client_id", client_id), ("group", group), ("key", key or "")):
            check_text(name, text)
        ends, target = self._session_ends(), Target(filter, client_id, group, key)

        def ask(answer: Callable[[End], None]) -> None:
            ends.end(target, {"by": "the program itself"}, answer)

        end = await self._questions.ask(ask)
        if end.code:
            raise refusal(f"Ending the subscription to {filter}", end.code, end.text)
        return end.row

    async def reasons(self) -> list[str]:
        """The reasons why the broker is degraded, one sentence each; empty if all is well."""
        return await self._questions.ask(self._status_running().ask_reasons)

    def apply(self, config: Config) -> None:
        """Apply the reloadable settings of `config`; the others keep their values until a restart. Raises `ConfigError`
        and changes nothing if the key file is invalid."""
        core = self._running()
        if not isinstance(config, Config):
            raise WrongType(f"config is a {type(config).__name__}; apply takes a Config")
        assert self._status is not None and self._auth is not None
        keys = self._auth.prepare(config.auth)
        if self.tls is not None:
            self.tls.apply(config)  # first, because it may refuse the configuration
        self.config = self._rules.config = config
        self._status.budget_bytes = config.limits.memory_bytes
        self._status.reloads_applied += 1
        self._status.reload_error = ""
        if self._sys is not None:
            self._sys.interval_s = config.mqtt.sys_interval_s
        self.log.set(config.logging.level, config.logging.format)
        # first: from here on no client is admitted without a key, if keys are required
        core.limits(CoreConfig.of(config))
        core.origins(config.server.ws_origins)
        self._auth.apply(keys)
        self._rules.keys_changed(self._end)
        self._watch_keys()

    def reload_refused(self, error: str) -> None:
        """Record that a changed configuration was refused. The broker is degraded until a valid one is applied."""
        if self._status is not None:
            self._status.reloads_refused += 1
            self._status.reload_error = error

    @property
    def reloads(self) -> dict[str, int]:
        """The number of changed configurations `applied` and `refused`, and `ok`: 1 if the last one was applied, else
        0."""
        status = self._status_running()
        return {
            "applied": status.reloads_applied,
            "refused": status.reloads_refused,
            "ok": int(not status.reload_error),
        }

    @property
    def auth(self) -> dict[str, int]:
        """The number of `keys` in effect, `file_ok` (1 if they are those of the key file), and the clients `refused`
        and `over_limit`."""
        self._running()
        assert self._auth is not None
        return self._auth.facts

    # -- events

    def _handlers(
        self, protocol: NativeProtocol, rules: ClientRules, status: Status
    ) -> dict[type, Callable[[Any], None]]:
        return {
            Hello: protocol.hello,
            Sub: protocol.subscribe,
            Unsub: protocol.unsubscribe,
            Unsubscribed: rules.unsubscribed,
            MqttConnect: lambda event: self._mqtt_protocol().connect(event),
            MqttSubscribe: lambda event: self._mqtt_protocol().subscribe(event),
            Info: protocol.info,
            AdminAsked: protocol.admin,
            Closed: self._closed,
            Attached: lambda event: self._attached_connections().attached(event),
            Out: lambda event: self._attached_connections().arrived(event),
            Consumed: lambda event: self._attached_connections().consumed(event),
            Stats: status.stats,
            Listed: status.listed,
            SessionsListed: status.session_lists.listed,
            SessionEnded: self._session_ended,
            SessionExpired: protocol.session_expired,
            SessionOver: protocol.session_over,
            Accepting: self._accepting,
            Secured: self._secured,
            Stopped: self._has_stopped,
        }

    def _closed(self, event: Closed) -> None:
        if self._attached is not None:
            self._attached.closed(event)
        self._rules.closed(event)

    def _end(self, connection: Connection, refusal: Refusal) -> None:
        """Close a connection whose key has changed, in the way of its protocol."""
        if connection.level:
            self._mqtt_protocol().end(connection, refusal)
        else:
            self._protocol.end(connection, refusal)

    def _mqtt_protocol(self) -> MqttProtocol:
        if self._mqtt is None:
            from blipmq.protocols.mqtt import MqttProtocol  # imported here because a broker may have no MQTT client

            self._mqtt = MqttProtocol(self._running(), self._connections, self._rules)
        return self._mqtt

    def _attached_connections(self) -> AttachedConnections:
        if self._attached is None:
            from blipmq.net.attached import AttachedConnections  # imported here because few brokers have any

            assert self._loop is not None
            self._attached = AttachedConnections(self._running(), self.config, self.log, self._loop)
        return self._attached

    def _session_ended(self, event: SessionEnded) -> None:
        self._session_ends().ended(event)

    def _session_ends(self) -> SessionEnds:
        """Created at the first use, because most brokers never need it."""
        core, status = self._running(), self._status_running()
        if self._ends is None:
            from blipmq.sessions.end import SessionEnds

            self._ends = SessionEnds(core, status.session_lists, self._connections, self.log)
        return self._ends

    def _operators(self) -> Operators:
        from blipmq.protocols.blip_admin import Operators

        assert self._auth is not None
        return Operators(self._running(), self._auth, self._session_ends())

    def _secured(self, event: Secured) -> None:
        assert self.tls is not None
        if event.certificate is not None:
            self._connections.showed(event.conn, event.certificate)
        self.tls.secured(event)

    def _accepting(self, event: Accepting) -> None:
        assert self._status is not None
        self._status.accepting(event)
        if event.paused:
            self.log.error("accept_paused", error=os.strerror(event.errno))
        else:
            self.log.info("accept_resumed")

    def _has_stopped(self, event: Stopped) -> None:
        core, loop = self._running(), self._loop
        assert loop is not None and self._stopped is not None
        assert self._pump is not None and self._timers is not None
        self._pump.stop()
        core.join()
        self._core = None  # before free: no command may be sent from here on
        self._timers.clear()
        if self._attached is not None:
            self._attached.stop()
        self._connections.clear()
        self._publisher = None
        self._questions.fail(Disconnected("the broker stopped before it could answer"))
        self._timers.after("stop", STOP_GRACE_SECONDS, self._stop_waits)
        # In a thread: the last sync can block as long as the disk does, and the loop must still handle signals.
        pool = ThreadPoolExecutor(1, "blipmq-close")
        loop.run_in_executor(pool, core.free).add_done_callback(lambda _: self._has_ended(event.unflushed))
        pool.shutdown(wait=False)

    def _stop_waits(self) -> None:
        self.log.warning(
            "stop_waits", hint="the last write to disk has not finished; a second signal ends the broker at once"
        )

    def _has_ended(self, unflushed: int) -> None:
        assert self._stopped is not None and self._timers is not None
        self._timers.cancel("stop")
        if not self._stopped.done():
            self._stopped.set_result(unflushed)

    # -- timers

    def _tick(self) -> None:
        if self._core is not None and self._status is not None and self._timers is not None:
            self._clocks.look()
            self._status.tick()
            if self.tls is not None:
                self.tls.tick()
            self.log.settle()
            self._timers.after("tick", TICK_SECONDS, self._tick)

    def _sampled(self, counters: dict[str, int]) -> None:
        """Each second, with the core's counters."""
        self._ids.observe(counters)
        if self._sys is not None and self._stopped is None:
            self._sys.observe(counters)

    def _watch_keys(self) -> None:
        assert self._timers is not None
        self._timers.cancel("keys")
        if self.config.auth.keys_file:
            self._timers.after("keys", CHECK_SECONDS, self._look_at_keys)

    def _look_at_keys(self) -> None:
        if self._core is None or self._auth is None:
            return
        if self._auth.look():
            self._rules.keys_changed(self._end)
        self._watch_keys()

    def _backlog(self) -> None:
        if self._pump is not None:
            self._pump.retry_soon()

    def _stop_overdue(self) -> None:
        self.log.error(
            "stop_overdue", hint="the I/O thread did not end in time; kill the process: no confirmed message is lost"
        )
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_exception(BlipMQError("the core did not stop in time"))

    # -- internal

    def _running(self) -> Core:
        if self._core is None:
            raise UsageError("this broker is not running; use it inside `async with` or between start and stop")
        if _loop_here() is not self._loop:
            raise UsageError(
                "this broker belongs to the event loop that started it. From another thread call it through "
                "loop.call_soon_threadsafe, or use `with Broker(...)`, which may be called from any thread"
            )
        return self._core

    def _status_running(self) -> Status:
        self._running()
        assert self._status is not None
        return self._status


def _loop_here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
