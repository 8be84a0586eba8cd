"""Requests in flight: sent to the broker and not answered yet.

    kind                     when the connection is lost        when the client closes
    PING, SUB, INFO, …       fails                              fails
    QoS 1 publish            kept, and sent again in order      fails: it may or may not have arrived
    … the largest of them    fails, if one was too large (413)

Invariant: each Request is finished exactly once: by its answer, by the end of the client, or by `forget`. The frames
kept for sending again are bounded: callers do not publish while `is_full()`.
"""

from __future__ import annotations

from collections.abc import Callable

from blipmq.base.validation import check_whole
from blipmq.errors import BlipMQError, UsageError
from blipmq.wire.frames import Reply

PENDING_MAX = 65_536
WINDOW_MESSAGES_MAX = 256
WINDOW_BYTES_MAX = 16 << 20


class Request:
    """One request to the broker. `on_done` is called once, when `done` becomes true."""

    __slots__ = ("done", "error", "frame", "on_done", "reply", "seq", "what")

    def __init__(self, seq: int, what: str) -> None:
        self.seq, self.what = seq, what
        self.done = False
        self.reply = Reply(seq, 0, "", 0, b"")
        self.error: BlipMQError | None = None
        self.frame = b""
        """The frame that is sent again on the next connection; empty: none."""
        self.on_done: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"Request(seq={self.seq}, {self.what!r}, done={self.done}, error={self.error!r})"

    def finish(self, error: BlipMQError | None) -> None:
        self.done, self.error = True, error
        if self.on_done is not None:
            self.on_done()


class InFlight:
    """Requests by their sequence number, in the order in which they were made."""

    def __init__(self) -> None:
        self._last_seq = 0
        self._requests: dict[int, Request] = {}
        self.publishes = 0
        self._publish_bytes = 0

    def __repr__(self) -> str:
        return f"InFlight({len(self._requests)}, publishes={self.publishes}, publish_bytes={self._publish_bytes})"

    def __len__(self) -> int:
        return len(self._requests)

    def is_full(self, messages_max: int = WINDOW_MESSAGES_MAX) -> bool:
        """Whether the window of unanswered QoS 1 publishes is full, in messages or bytes."""
        return self.publishes >= messages_max or self._publish_bytes >= WINDOW_BYTES_MAX

    def next_seq(self) -> int:
        """The sequence number of the next request."""
        return self._last_seq + 1

    def add(self, what: str, frame: bytes = b"") -> Request:
        """Add a request. With a `frame` it is sent again after a reconnect. Raises UsageError if too many requests are
        unanswered."""
        if len(self._requests) >= PENDING_MAX:
            raise UsageError(f"{PENDING_MAX} requests wait for an answer, the maximum; await some before sending more.")
        self._last_seq += 1
        request = self._requests[self._last_seq] = Request(self._last_seq, what)
        if frame:
            request.frame = frame
            self.publishes += 1
            self._publish_bytes += len(frame)
        return request

    def take(self, seq: int) -> Request | None:
        """Remove and return the request with this number, or None."""
        request = self._requests.pop(seq, None)
        if request is not None and request.frame:
            self.publishes -= 1
            self._publish_bytes -= len(request.frame)
        return request

    def frames(self) -> list[bytes]:
        """The frames to send on a new connection, in their original order."""
        return [request.frame for request in self._requests.values() if request.frame]

    def lost(self, error: BlipMQError) -> None:
        """The connection is lost: all requests that are not sent again fail with `error`."""
        self._fail([request for request in self._requests.values() if not request.frame], error)

    def fail_largest(self, error: BlipMQError) -> None:
        """A publish was too large and the broker could not say which one. Fail the largest: sending it again would end
        every connection."""
        if self.publishes:
            self._fail([max(self._requests.values(), key=lambda request: len(request.frame))], error)

    def finish(self, error: BlipMQError) -> None:
        """The client closes: all requests fail with `error`."""
        self._fail(list(self._requests.values()), error)

    def _fail(self, requests: list[Request], error: BlipMQError) -> None:
        for request in requests:
            self.take(request.seq)
        for request in requests:
            request.finish(error)


def check_window(window: int) -> None:
    """Raise UsageError if `window` is not a valid number of unanswered publishes."""
    check_whole("window", window, 1, PENDING_MAX - 1)
