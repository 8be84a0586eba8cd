"""Passes the core's events to their handlers, and sends commands again that found no room in the core's ring.

Invariant: an error in a handler ends at most the connection that the event belongs to. After EVENTS_PER_TURN events the
loop runs other work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from blipmq.base.logs import Log
from blipmq.broker.timers import Timers
from blipmq.errors import INTERNAL
from blipmq.native.core import Core
from blipmq.native.errors import CoreError
from blipmq.native.events import AdminAsked, Hello, Info, MqttConnect, MqttSubscribe, Sub, Unsub

# The maximum number of events handled in one turn of the loop.
EVENTS_PER_TURN = 512
RETRY_SECONDS = 0.002
INTERNAL_TEXT = "the broker had an internal error; its log has the cause"
MQTT_UNSPECIFIED_ERROR = 0x80

Handlers = Mapping[type, Callable[[Any], None]]


class EventPump:
    """Reads the event descriptor of one core from `start` to `stop`."""

    def __init__(self, core: Core, loop: asyncio.AbstractEventLoop, timers: Timers, log: Log) -> None:
        self._core = core
        self._loop = loop
        self._timers = timers
        self._log = log
        self._handlers: Handlers = {}
        self._running = False

    def __repr__(self) -> str:
        return f"<EventPump running={self._running} handlers={len(self._handlers)}>"

    def start(self, handlers: Handlers) -> None:
        self._handlers = handlers
        self._running = True
        self._loop.add_reader(self._core.event_fd, self._drain)
        self._drain()  # arms the descriptor

    def stop(self) -> None:
        """Handle no more events and send no more commands."""
        self._running = False
        self._loop.remove_reader(self._core.event_fd)

    def retry_soon(self) -> None:
        """Commands found no room in the core's ring: send them again after RETRY_SECONDS."""
        if "retry" not in self._timers:
            self._timers.after("retry", RETRY_SECONDS, self._retry)

    def _drain(self) -> None:
        if not self._running:
            return
        count = 0
        for event in self._core.events(EVENTS_PER_TURN):
            count += 1
            try:
                self._handlers[type(event)](event)
            except Exception as error:  # an error of one connection must not end the broker
                self._failed(event, error)
        if self._running and self._core.has_backlog:
            self._retry()
        if count == EVENTS_PER_TURN and self._running:
            self._loop.call_soon(self._drain)

    def _failed(self, event: Any, error: Exception) -> None:
        self._log.error("internal_error", on=type(event).__name__, error=f"{type(error).__name__}: {error}")
        if isinstance(event, (Hello, Sub, Unsub, Info, AdminAsked)):
            self._core.reply(event.conn, event.seq, INTERNAL, INTERNAL_TEXT, close=True)
        elif isinstance(event, (MqttConnect, MqttSubscribe)):
            self._core.mqtt_refuse(event.conn, MQTT_UNSPECIFIED_ERROR, INTERNAL_TEXT)

    def _retry(self) -> None:
        try:
            if self._running and not self._core.retry():
                self.retry_soon()
        except CoreError as error:  # that command is lost; those behind it are still sent
            self._log.error("internal_error", on="command", error=str(error))
            self.retry_soon()
