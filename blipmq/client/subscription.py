"""The asyncio side of a subscription: an async iterator over its inbox.

When a QoS 1 message is acknowledged, so that the broker does not send it again:

    auto_ack (the default)   when its reader asks for the next message or batch, or closes the subscription without an
                             exception. Not when an exception leaves the `async with`, and not when the client is closed
    auto_ack=False           when ack() is called

Invariant: a message is not acknowledged while its reader may still process it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Any

from blipmq.base.validation import check_seconds, ids_of
from blipmq.client.connection import Connection
from blipmq.client.inbox import Inbox
from blipmq.errors import BlipMQError, Disconnected, TimedOut
from blipmq.wire.frames import Message


class Subscription(Inbox):
    """The messages of one filter: an async iterator, and an async context manager that closes it at the end.

    It ends when it or the client is closed. If the broker refuses it after a reconnect, iterating raises that error.
    """

    def __init__(self, connection: Connection, filter_: str, **options: Any) -> None:
        super().__init__(filter_, **options)
        self._connection = connection
        self._arrived = asyncio.Event()

    def wake(self) -> None:
        self._arrived.set()

    def __aiter__(self) -> AsyncIterator[Message]:
        return self

    async def __anext__(self) -> Message:
        self._connection.check_loop()
        if self.taken:
            self._settle()
        if not self.messages:
            await self._wait()
            if not self.messages:
                if self.error is not None:
                    raise self.error
                raise StopAsyncIteration
        message = self.pop()
        if self._connection.reading_paused:
            self._connection.resume_if_room()
        return message

    async def next(self, timeout_s: float | None = None) -> Message:
        """The next message. Raises TimedOut after `timeout_s`, Disconnected if the subscription has ended."""
        check_seconds("timeout_s", timeout_s, none=True)
        try:
            return await asyncio.wait_for(self.__anext__(), timeout_s)
        except asyncio.TimeoutError:
            raise TimedOut(
                f"No message on {self.filter} in {timeout_s} s. Check that messages are published to it."
            ) from None
        except StopAsyncIteration:
            raise Disconnected(f"The subscription to {self.filter} is closed. Subscribe again.") from None

    async def batch(self) -> list[Message]:
        """All queued messages, at least one; an empty list once the subscription has ended. Cheaper than one by one.
        With QoS 1, the next call acknowledges the whole batch."""
        self._connection.check_loop()
        if self.taken:
            self._settle()
        if not self.messages:
            await self._wait()
            if not self.messages and self.error is not None:
                raise self.error
        messages = self.pop_all()
        if self._connection.reading_paused:
            self._connection.resume_if_room()
        return messages

    def ack(self, *messages: Message) -> None:
        """Acknowledge QoS 1 messages (others are ignored) at the end of this turn of the loop. Without a connection
        they are delivered again."""
        self._connection.check_loop()
        self._acknowledge(ids_of(messages, 1))

    async def _wait(self) -> None:
        self.readers += 1
        try:
            while not self.messages and not self.ended:
                self._connection.resume_if_room()
                self._arrived.clear()
                await self._arrived.wait()
        finally:
            self.readers -= 1

    def _settle(self) -> None:
        taken, self.taken = self.taken, []
        self._acknowledge(taken)

    def _acknowledge(self, ids: list[int]) -> None:
        self._connection.protocol.acknowledge(ids, self)
        self._connection.schedule_flush()

    async def __aenter__(self) -> Subscription:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.taken.clear()  # the message was not processed: it must be delivered again
        await self.close()

    async def close(self) -> None:
        """Acknowledge the taken messages, and unsubscribe at the broker if this is the last subscription to its filter.
        The broker goes on storing messages for a durable one (Client.unsubscribe ends it). Queued messages can still be
        read."""
        if self.ended:
            return
        self._connection.check_loop()
        if self.taken:
            self._settle()
        connection, protocol = self._connection, self._connection.protocol
        last = protocol.drop(self)
        self.end(None)
        connection.resume_if_room()
        if last and protocol.welcomed:
            try:
                await connection.answer(protocol.unsubscribe(self.filter, self.group, keep_durable=True))
            except BlipMQError:
                pass  # the subscription has ended here; the broker ends it with the connection at the latest

    def abandon(self, *, told: bool) -> None:
        """Remove a subscription that failed or was cancelled. The broker may have made it all the same, unless it
        answered (`told`)."""
        protocol = self._connection.protocol
        last = protocol.drop(self)
        if last and not told and protocol.welcomed:
            protocol.forget(protocol.unsubscribe(self.filter, self.group, keep_durable=True))
            self._connection.schedule_flush()
