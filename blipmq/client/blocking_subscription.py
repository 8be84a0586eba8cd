"""The blocking side of a subscription: an iterator over its inbox.

QoS 1 messages are acknowledged as in subscription.py: when the reader asks for more or closes the subscription without
an exception; with auto_ack=False, when ack() is called. An acknowledgement is sent at once, because the next call may
be long after.
Invariant: a message is not acknowledged while its reader may still process it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any

from blipmq.base.validation import check_seconds, ids_of
from blipmq.client.blocking_connection import BlockingConnection
from blipmq.client.call_lock import locked
from blipmq.client.inbox import Inbox
from blipmq.errors import BlipMQError, Disconnected, TimedOut
from blipmq.wire.frames import Message


class BlockingSubscription(Inbox):
    """The messages of one filter: an iterator, and a context manager that closes it at the end.

    Iterating waits for the next message, across reconnects. It ends when the subscription or its client is closed.
    """

    def __init__(self, connection: BlockingConnection, filter_: str, **options: Any) -> None:
        self._own = threading.local()
        super().__init__(filter_, **options)
        self._connection = connection
        self._call_lock = connection.call_lock

    @property
    def taken(self) -> list[int]:
        """Ids to acknowledge, per thread: each thread acknowledges only the messages that it has taken."""
        taken: list[int] | None = getattr(self._own, "taken", None)
        if taken is None:
            taken = self._own.taken = []
        return taken

    @taken.setter
    def taken(self, ids: list[int]) -> None:
        self._own.taken = ids

    def __iter__(self) -> Iterator[Message]:
        return self

    @locked
    def __next__(self) -> Message:
        if self.taken:
            self._settle()
        if not self.messages:
            self._wait(None)
            if not self.messages:
                raise StopIteration
        return self.pop()

    @locked
    def next(self, timeout_s: float | None = None) -> Message:
        """The next message. Raises TimedOut after `timeout_s`, Disconnected if the subscription has ended."""
        self._wait(timeout_s)
        if self.messages:
            return self.pop()
        if self.ended:
            raise Disconnected(f"The subscription to {self.filter} is closed. Subscribe again.")
        raise TimedOut(f"No message on {self.filter} in {timeout_s} s. Check that messages are published to it.")

    @locked
    def batch(self, timeout_s: float | None = None) -> list[Message]:
        """All messages that have arrived; waits for at least one. Empty after `timeout_s`, or once the subscription has
        ended. With QoS 1, the next call acknowledges the whole batch."""
        self._wait(timeout_s)
        return self.pop_all()

    @locked
    def ack(self, *messages: Message) -> None:
        """Acknowledge QoS 1 messages (others are ignored). Without a connection they are delivered again."""
        self._acknowledge(ids_of(messages, 1))

    def _wait(self, timeout_s: float | None) -> None:
        check_seconds("timeout_s", timeout_s, none=True)
        if self.taken:
            self._settle()
        with self._call_lock.waiting(f"messages on {self.filter}"):
            self._connection.wait(lambda: bool(self.messages) or self.ended, timeout_s, reader=self)
        if not self.messages and self.error is not None:
            raise self.error

    def _settle(self) -> None:
        taken, self.taken = self.taken, []
        self._acknowledge(taken)

    def _acknowledge(self, ids: list[int]) -> None:
        self._connection.protocol.acknowledge(ids, self)
        self._connection.send()

    def __enter__(self) -> BlockingSubscription:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self.taken.clear()  # the message was not processed: it must be delivered again
        self.close()

    @locked
    def close(self) -> None:
        """Acknowledge the taken messages, and unsubscribe at the broker if this is the last subscription to its filter.
        The broker goes on storing messages for a durable one (BlockingClient.unsubscribe ends it). Queued messages can
        still be read."""
        if self.ended:
            return
        if self.taken:
            self._settle()
        connection, protocol = self._connection, self._connection.protocol
        last = protocol.drop(self)
        self.end(None)
        if last and protocol.welcomed:
            try:
                connection.answer(protocol.unsubscribe(self.filter, self.group, keep_durable=True))
            except BlipMQError:
                pass  # the subscription has ended here; the broker ends it with the connection at the latest

    def abandon(self, *, told: bool) -> None:
        """Remove a subscription that failed or was interrupted. The broker may have made it all the same, unless it
        answered (`told`)."""
        protocol = self._connection.protocol
        if protocol.drop(self) and not told and protocol.welcomed:
            protocol.forget(protocol.unsubscribe(self.filter, self.group, keep_durable=True))
