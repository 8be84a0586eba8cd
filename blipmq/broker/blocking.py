"""A broker for programs without an event loop: the same methods, each waits for its result.

Invariant: the broker and its event loop run in their own thread; the methods here only hand over work and wait.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from blipmq.errors import BlipMQError, UsageError
from blipmq.sessions.listing import ROWS_MAX

if TYPE_CHECKING:
    from blipmq.broker.broker import Broker
    from blipmq.client.blocking import BlockingClient
    from blipmq.client.blocking_connection import StateCallback
    from blipmq.client.client import Payload

T = TypeVar("T")


class BlockingBroker:
    """The result of `with Broker(...) as broker:`. Its methods may be called from any thread."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="blipmq-broker", daemon=True)
        self._thread.start()
        try:
            self._wait(broker.start())
        except BaseException:  # also on an interrupt: stop everything that was started before the thread ends
            self._end()
            raise

    def __repr__(self) -> str:
        return f"<BlockingBroker of {self._broker!r}>"

    @property
    def address(self) -> str:
        """The listening address with its real port; "" without a listener."""
        return self._broker.address

    @property
    def websocket_address(self) -> str:
        """As `Broker.websocket_address`."""
        return self._broker.websocket_address

    @property
    def mqtt_address(self) -> str:
        """As `Broker.mqtt_address`."""
        return self._broker.mqtt_address

    @property
    def mqtt_websocket_address(self) -> str:
        """As `Broker.mqtt_websocket_address`."""
        return self._broker.mqtt_websocket_address

    @property
    def mqtt_tls_address(self) -> str:
        """As `Broker.mqtt_tls_address`."""
        return self._broker.mqtt_tls_address

    @property
    def tls_address(self) -> str:
        """The TLS listening address with its real port; "" without a TLS listener."""
        return self._broker.tls_address

    def publish(self, topic: str, payload: Payload, ttl_ms: int = 0, *, qos: int = 0) -> int:
        """As `Broker.publish`, and awaited: with QoS 1 the message is on disk when this returns its id."""

        async def publish() -> int:
            return await self._broker.publish(topic, payload, ttl_ms, qos=qos)

        return self._wait(publish())

    def connect(
        self,
        *,
        client_id: str = "",
        api_key: str | None = None,
        reconnect: bool = True,
        timeout_s: float = 10.0,
        on_state: StateCallback | None = None,
        on_refusal: Callable[[BlipMQError], None] | None = None,
    ) -> BlockingClient:
        """Return a client over loopback. The options are those of `blipmq.connect_blocking`. Raises `UsageError` if the
        broker has no listener."""
        if not self.address:
            raise UsageError(
                "this broker has no listener, and a blocking client needs one; set server.bind_addr to 127.0.0.1:0, "
                "or use `async with Broker(...)`, whose clients need none"
            )
        from blipmq.client.blocking import connect_blocking

        return connect_blocking(
            self.address,
            client_id=client_id,
            api_key=api_key,
            reconnect=reconnect,
            timeout_s=timeout_s,
            on_state=on_state,
            on_refusal=on_refusal,
        )

    def stats(self) -> dict[str, int]:
        """As `Broker.stats`."""
        return self._wait(self._broker.stats())

    def info(self) -> dict[str, Any]:
        """As `Broker.info`."""
        return self._wait(self._broker.info())

    def sessions(self, find: str = "", limit: int = ROWS_MAX) -> dict[str, Any]:
        """As `Broker.sessions`."""
        return self._wait(self._broker.sessions(find, limit))

    def end_session(
        self, filter: str, *, client_id: str = "", group: str = "", key: str | None = None
    ) -> dict[str, Any]:
        """As `Broker.end_session`."""
        return self._wait(self._broker.end_session(filter, client_id=client_id, group=group, key=key))

    def stop(self, timeout_ms: int | None = None) -> int:
        """As `Broker.stop`; the thread has ended when this returns."""
        if self._loop.is_closed():
            return 0
        try:
            return self._wait(self._broker.stop(timeout_ms))
        finally:
            self._end()

    def _run(self) -> None:
        """Runs in the thread. The loop is used only here, because the caller may run its own event loop."""
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
            self._loop.run_until_complete(self._finish())
        finally:
            asyncio.set_event_loop(None)
            self._loop.close()

    async def _finish(self) -> None:
        """Cancel all work that the caller did not wait for, and stop the broker."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._broker.stop(0)
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()  # end the executor's threads before this thread

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop.is_closed():
            work.close()
            raise UsageError("this broker is not running; use it inside `with`")
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
