"""Listening addresses that are not available yet. After a power cut a device may get its address after the broker
starts, and its name server even later.

Invariant: an opened socket is given to its user, or closed. A slow look-up or attempt blocks neither the event loop nor
the end of the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from collections.abc import Awaitable, Callable

from blipmq.base.bind_address import LOOPBACK_NAMES, split_address
from blipmq.base.logs import Log
from blipmq.errors import BlipMQError
from blipmq.net.listener import AddressMissing, address_of, open_listener

RETRY_SECONDS = 1.0

Use = Callable[[socket.socket], Awaitable[None]]


class BindRetry:
    """The addresses that one broker waits for, by setting. `came` is called when one of them is available and in use."""

    def __init__(self, log: Log, came: Callable[[], None] = lambda: None, retry_s: float = RETRY_SECONDS) -> None:
        self._log = log
        self._came = came
        self._retry_s = retry_s
        self._why: dict[str, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<BindRetry {self._why!r}>"

    @property
    def unready(self) -> str:
        """A sentence about an address that clients need, or "". The address for metrics does not count."""
        return next((why for key, why in self.reasons().items() if not key.startswith("metrics.")), "")

    def reasons(self) -> dict[str, str]:
        """A sentence for each setting whose address is not available yet."""
        return {key: f"waiting for the address of {key}: {why}" for key, why in self._why.items()}

    async def open(self, key: str, bind_addr: str, use: Use) -> socket.socket | None:
        """Return a socket that listens at `bind_addr`, which the setting `key` names, or None if the address is not
        available yet; `use` then gets the socket later. Raises the errors of `open_listener`, except `AddressMissing`."""
        try:
            return await _open(bind_addr, key)
        except AddressMissing as error:
            self._waits(key, bind_addr, error)
            task = asyncio.get_running_loop().create_task(self._wait(key, bind_addr, use))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return None

    async def stop(self) -> None:
        """Stop waiting. Stopping twice is harmless."""
        self._why.clear()
        for task in (tasks := list(self._tasks)):
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _wait(self, key: str, bind_addr: str, use: Use) -> None:
        while True:
            await asyncio.sleep(self._retry_s)
            try:
                listener = await _open(bind_addr, key)
            except BlipMQError as error:  # any error: the broker runs and serves its other addresses
                self._waits(key, bind_addr, error)
                continue
            address = address_of(listener)
            try:
                await use(listener)
            except BlipMQError:  # the broker is still starting, or about to stop
                listener.close()
                continue
            except BaseException:
                listener.close()
                raise
            del self._why[key]
            self._log.info("listening", setting=key, address=address)
            self._came()
            return

    def _waits(self, key: str, bind_addr: str, error: BlipMQError) -> None:
        if self._why.get(key) != str(error):  # logged once, and again when the error changes
            self._log.warning(
                "waiting_for_address",
                setting=key,
                address=bind_addr,
                error=str(error),
                hint="the broker tries again every second",
            )
        self._why[key] = str(error)


async def _open(bind_addr: str, key: str) -> socket.socket:
    """Call `open_listener`. An unreachable name server takes many seconds, so names are looked up in a thread. It is
    not one of the loop's own threads, because the process would wait for those at its end."""
    host = split_address(bind_addr)[0]
    if host.lower() in LOOPBACK_NAMES or re.fullmatch(r"[0-9.]+|.*:.*", host):
        return open_listener(bind_addr, key)
    loop = asyncio.get_running_loop()
    opened: asyncio.Future[socket.socket] = loop.create_future()

    def take(listener: socket.socket | None, error: Exception | None) -> None:
        if listener is not None and opened.done():
            listener.close()
        elif listener is not None:
            opened.set_result(listener)
        elif error is not None and not opened.done():
            opened.set_exception(error)

    def work() -> None:
        listener, failed = None, None
        try:
            listener = open_listener(bind_addr, key)
        except Exception as error:
            failed = error
        try:
            loop.call_soon_threadsafe(take, listener, failed)
        except RuntimeError:  # the loop was closed meanwhile
            with contextlib.suppress(AttributeError):
                listener.close()  # type: ignore[union-attr]

    threading.Thread(target=work, name="blipmq-address", daemon=True).start()
    return await opened
