"""A broker, whole: the core, the policy around it, and the verbs to use it from the same process.

    async with Broker({"server": {"bind_addr": "127.0.0.1:0"}}) as broker:
        broker.publish("site/1/temp", b"21.5")

Invariant: everything here runs in the thread of one event loop; only the core has a thread of its own, reached through
commands and events. A broker shares nothing with another one, so a process may hold several.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
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
from blipmq.config.settings import Config
from blipmq.errors import BlipMQError, Disconnected, UsageError, WrongType, refusal
from blipmq.native.config import CoreConfig
from blipmq.native.core import Core
from blipmq.native.events import (
    Accepting,
    AdminAsked,
    Attached,
    Closed,
    Fed,
    Hello,
    Info,
    Listed,
    Out,
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
from blipmq.net.attached import AttachedConnections
from blipmq.net.listener import address_of, open_listener
from blipmq.net.memory_transport import MemoryTransport
from blipmq.protocols.blip import NativeProtocol
from blipmq.sessions.connections import Connections
from blipmq.sessions.listing import ASKED_ROWS_MAX, ROWS_MAX, Wanted

if TYPE_CHECKING:
    from blipmq.broker.blocking import BlockingBroker
    from blipmq.broker.publisher import Publisher
    from blipmq.client.client import AwaitableContext, Client, Payload
    from blipmq.client.connection import StateCallback
    from blipmq.net.bind_retry import BindRetry
    from blipmq.net.tls import Tls
    from blipmq.net.tls_connection import TlsConnection
    from blipmq.protocols.blip_admin import Operators
    from blipmq.sessions.end import End, SessionEnds

TICK_SECONDS = 1.0
# Beyond the time given for flushing: what the core needs to close everything.
STOP_GRACE_SECONDS = 5.0
# What TLS clients have to read the last bytes and to say goodbye in.
STOP_TLS_SECONDS = 1.0


class Broker:
    """An embedded broker. Use it as `async with`, or as `with` to get a `BlockingBroker` that runs in a thread, also in a program
    whose own event loop runs (each call then holds that loop up for as long as it takes).

    `config` is a `Config`, nested dicts shaped like the file, the path of a file, or None for the defaults; unlike the
    command line, an embedded broker reads no environment. `server.bind_addr = ""` makes one without a listener, used
    through `connect` and `publish` alone. QoS 1 needs a log: from dicts or without settings there is one only if
    `wal.directory` is given, for a program's working directory is its own.

    Raises `ConfigError`; when it is started `AddressInUse`, `LogLocked` and `LogUnusable`.
    """

    def __init__(self, config: Settings = None, *, log: Log | None = None) -> None:
        self.config = as_config(config)
        # Quiet unless told otherwise: an embedding program's standard error is its own.
        self.log = log or Log(level="warning", format=self.config.logging.format)
        self._connections = Connections()
        self._core: Core | None = None
        self._starting = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._status: Status | None = None
        self._protocol: NativeProtocol | None = None
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
            from blipmq.net.tls import Tls  # here, because only a broker that is configured for it pays for `ssl`

            self.tls = Tls(self.config, self.log)

    def __repr__(self) -> str:
        state = self.unready or "running"
        counts = f"connections={len(self._connections)} attached={len(self._attached or ())}"
        return f"<Broker {state} address={self.address or '-'} {counts}>"

    # -- life

    async def start(self, listener: socket.socket | None = None, bind_retry: BindRetry | None = None) -> None:
        """Recover the log, start the core and, if `server.bind_addr` is not empty, listen. A `listener` given is taken
        over instead. Returns when the broker serves; with `bind_retry`, also where its addresses are not there yet: those are
        listened at as soon as they are."""
        if self._core is not None or self._starting:
            raise UsageError("this broker has been started already")
        self._starting = True
        self._bind_retry = bind_retry
        logged = self.config.wal.enabled
        self._ids = IdFile("" if logged else self.config.wal.directory, self.log)
        core = Core(CoreConfig.of(self.config), self._ids.begin(), on_backlog=self._backlog)
        try:
            wal = await Wal.open(core, self.config, self.log) if logged else None
            bind_addr = self.config.server.bind_addr
            if listener is None and bind_addr:
                listener = (
                    await bind_retry.open("server.bind_addr", bind_addr, self._listen)
                    if bind_retry is not None
                    else open_listener(bind_addr)
                )
            if self.tls is not None:
                await self.tls.listen(self._secured, bind_retry)
            clocks = ClockWatch(core.clock)
            clocks.look()
            core.start()
        except BaseException:
            core.free()
            if listener is not None:
                listener.close()
            if self.tls is not None:
                await self.tls.stop(0)
            raise
        finally:
            self._starting = False
        self._begin(core, wal, clocks, listener)

    def _begin(self, core: Core, wal: Wal | None, clocks: ClockWatch, listener: socket.socket | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._core = core
        self._timers = Timers(self._loop)
        self._pump = EventPump(core, self._loop, self._timers, self.log)
        self._attached = AttachedConnections(core, self.config, self.log, self._loop)
        self._clocks = clocks
        self._stopped = None
        self._ends = None
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
        self._protocol = NativeProtocol(
            core, self._connections, self.config, self.log, self._status, self._auth, self._operators
        )
        self._status.sampled = self._ids.observe
        self._auth.open()
        if self._bind_retry is not None:
            self._status.bind_problems = self._bind_retry.reasons
        if listener is not None:
            self._status.address = address_of(listener)
            core.listen(listener.detach())
        self._pump.start(self._handlers(self._protocol, self._status, self._attached))
        self._tick()
        self._watch_keys()

    async def _listen(self, listener: socket.socket) -> None:
        """Listen at an address that was waited for."""
        core, status = self._running(), self._status_running()
        if self._stopped is not None:
            raise UsageError("this broker is stopping")
        status.address = address_of(listener)
        core.listen(listener.detach())

    async def stop(self, timeout_ms: int | None = None) -> int:
        """Stop accepting, send what is queued for at most `timeout_ms` (None: limits.shutdown_timeout_ms), close all.

        Returns how many messages could not be sent. Stopping twice is harmless.
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
                self.tls.unlisten()
            if self._publisher is not None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._publisher.drain(), flush_ms / 1000)
            self._core.stop(flush_ms)
            # The core keeps to the time by itself; a turn of grace later something is wrong, and said.
            self._timers.after("stop", flush_ms / 1000 + STOP_GRACE_SECONDS, self._stop_overdue)
        unsent = await asyncio.shield(self._stopped)
        if self.tls is not None:
            await self.tls.stop(STOP_TLS_SECONDS)
        return unsent

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

    # -- verbs

    @property
    def unready(self) -> str:
        """Why new clients are not served at the moment: starting, stopping, stopped or a sentence; "" if they are."""
        if self._core is None or self._status is None:
            return "starting" if self._stopped is None else "stopped"
        if self._stopped is not None:
            return "stopping"
        return self._status.accept_problem or (self._bind_retry.unready if self._bind_retry is not None else "")

    @property
    def address(self) -> str:
        """Where it listens, with the real port; "" without a listener."""
        return self._status.address if self._status else ""

    @property
    def tls_address(self) -> str:
        """Where it listens for TLS, with the real port; "" without such a listener."""
        return self.tls.address if self.tls is not None else ""

    def publish(self, topic: str, payload: Payload, ttl_ms: int = 0, *, qos: int = 0) -> Awaitable[int]:
        """Publish from the broker itself. `ttl_ms` 0: the default.

        QoS 0 is on its way when this returns; awaiting the result is allowed and gives 0. QoS 1 needs the log: awaiting the
        result waits until the message is on disk and gives its id, or raises `Refused` if the log does not take it. The
        message is published whether or not the result is awaited. Order is kept among the publishes of one QoS.

        Raises `UsageError` for what cannot be sent, `Refused` if too much waits already.
        """
        self._running()
        if qos and not self.config.wal.enabled:
            raise UsageError("QoS 1 needs the log: name its place in wal.directory, or publish with qos 0")
        if self._publisher is None:
            from blipmq.broker.publisher import Publisher  # here, because a broker of its own never needs it

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
        """A client inside this process: no socket, no key, the same protocol. The options are those of `blipmq.connect`."""
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
        """Open a connection without a socket, and give it to `protocol` as its transport."""
        self._running()
        assert self._attached is not None
        return await self._attached.open(protocol)

    async def stats(self) -> dict[str, int]:
        """The core's counters and gauges, by their names in `bq_stats_t`."""
        return await self._questions.ask(self._status_running().ask_counters)

    async def info(self) -> dict[str, Any]:
        """The state of the broker, as INFO answers it."""
        return await self._questions.ask(self._status_running().ask_report)

    async def sessions(self, find: str = "", limit: int = ROWS_MAX) -> dict[str, Any]:
        """QoS 1 subscriptions and queue groups, those of absent clients too: sums, and in `list` the rows with the largest
        lag. `find`: a part of the filter, client_id or group."""
        check_text("find", find)
        check_whole("limit", limit)
        status, wanted = self._status_running(), Wanted(find, limit=min(max(limit, 1), ASKED_ROWS_MAX))
        return await self._questions.ask(lambda answer: status.list_sessions(answer, wanted))

    async def end_session(
        self, filter: str, *, client_id: str = "", group: str = "", key: str | None = None
    ) -> dict[str, Any]:
        """End a durable subscription, or a queue group, whoever it belongs to; returns it as it was. `key`: the name of the
        key that the client_id belongs to; None: whichever it is, if it is one. Raises `Refused` with the reason."""
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
        """What is not as it should be, a sentence each; nothing in it: all is well."""
        return await self._questions.ask(self._status_running().ask_reasons)

    def apply(self, config: Config) -> None:
        """Put the reloadable settings of `config` into effect; the others keep their values until a restart. Raises
        `ConfigError`, and changes nothing, if its key file is of no use."""
        core = self._running()
        if not isinstance(config, Config):
            raise WrongType(f"config is a {type(config).__name__}; apply takes a Config")
        assert self._protocol is not None and self._status is not None and self._auth is not None
        keys = self._auth.prepare(config.auth)
        if self.tls is not None:
            self.tls.apply(config)  # first of what takes effect: it may refuse
        self.config = self._protocol.config = config
        self._status.budget_bytes = config.limits.memory_bytes
        self._status.reloads_applied += 1
        self._status.reload_error = ""
        self.log.set(config.logging.level, config.logging.format)
        core.limits(CoreConfig.of(config))  # first: from here on nobody comes in without a key, if one is wanted
        self._auth.apply(keys)
        self._protocol.keys_changed()
        self._watch_keys()

    def reload_refused(self, error: str) -> None:
        """Note that a changed configuration was refused: a reason to look until one is applied."""
        if self._status is not None:
            self._status.reloads_refused += 1
            self._status.reload_error = error

    @property
    def reloads(self) -> dict[str, int]:
        """How many changed configurations were `applied` and `refused`, and whether the last one was `ok` (1) or not."""
        status = self._status_running()
        return {
            "applied": status.reloads_applied,
            "refused": status.reloads_refused,
            "ok": int(not status.reload_error),
        }

    @property
    def auth(self) -> dict[str, int]:
        """How many `keys` are in effect, whether they are those of the key file (`file_ok`), and clients `refused`."""
        self._running()
        assert self._auth is not None
        return self._auth.facts

    # -- events

    def _handlers(
        self, protocol: NativeProtocol, status: Status, attached: AttachedConnections
    ) -> dict[type, Callable[[Any], None]]:
        return {
            Hello: protocol.hello,
            Sub: protocol.subscribe,
            Unsub: protocol.unsubscribe,
            Unsubscribed: protocol.unsubscribed,
            Info: protocol.info,
            AdminAsked: protocol.admin,
            Closed: self._closed,
            Attached: attached.attached,
            Out: attached.arrived,
            Fed: attached.consumed,
            Stats: status.stats,
            Listed: status.listed,
            SessionsListed: status.session_lists.listed,
            SessionEnded: self._session_ended,
            SessionExpired: protocol.session_expired,
            SessionOver: protocol.session_over,
            Accepting: self._accepting,
            Stopped: self._has_stopped,
        }

    def _closed(self, event: Closed) -> None:
        assert self._protocol is not None and self._attached is not None
        self._attached.closed(event)
        self._protocol.closed(event)

    def _session_ended(self, event: SessionEnded) -> None:
        self._session_ends().ended(event)

    def _session_ends(self) -> SessionEnds:
        """Made when it is first needed, as what it answers: most brokers never do."""
        core, status = self._running(), self._status_running()
        if self._ends is None:
            from blipmq.sessions.end import SessionEnds

            self._ends = SessionEnds(core, status.session_lists, self._connections, self.log)
        return self._ends

    def _operators(self) -> Operators:
        from blipmq.protocols.blip_admin import Operators

        assert self._auth is not None
        return Operators(self._running(), self._auth, self._session_ends())

    def _secured(self, connection: TlsConnection) -> None:
        """The handshake of a TLS client is done."""
        if self._core is None or self._attached is None:
            connection.abort()
        else:
            self._attached.serve(connection)

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
        assert self._pump is not None and self._timers is not None and self._attached is not None
        self._pump.stop()
        core.join()
        self._core = None  # before free: nothing may send a command from here on
        self._timers.clear()
        self._attached.stop()
        self._connections.clear()
        self._publisher = None
        self._questions.fail(Disconnected("the broker stopped before it could answer"))
        self._timers.after("stop", STOP_GRACE_SECONDS, self._stop_waits)
        # In a thread: the last sync can take as long as the disk likes, and signals are still listened to.
        pool = ThreadPoolExecutor(1, "blipmq-close")
        loop.run_in_executor(pool, core.free).add_done_callback(lambda _: self._has_ended(event.unflushed))
        pool.shutdown(wait=False)

    def _stop_waits(self) -> None:
        self.log.warning(
            "stop_waits", hint="the disk has not answered the last write yet; a second signal ends at once"
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

    def _watch_keys(self) -> None:
        assert self._timers is not None
        self._timers.cancel("keys")
        if self.config.auth.keys_file:
            self._timers.after("keys", CHECK_SECONDS, self._look_at_keys)

    def _look_at_keys(self) -> None:
        if self._core is None or self._auth is None or self._protocol is None:
            return
        if self._auth.look():
            self._protocol.keys_changed()
        self._watch_keys()

    def _backlog(self) -> None:
        if self._pump is not None:
            self._pump.retry_soon()

    def _stop_overdue(self) -> None:
        self.log.error("stop_overdue", hint="the core did not end in time; the process can be killed without loss")
        if self._stopped is not None and not self._stopped.done():
            self._stopped.set_exception(BlipMQError("the core did not stop in time"))

    # -- inside

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
