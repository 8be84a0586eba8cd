"""Requests in flight: sent to the broker and not answered yet.

    kind                     when the connection is lost        when the client ends
    PING, SUB, INFO, …       fails                              fails
    QoS 1 publish            kept, and sent again in order      fails: it may or may not have arrived
    … of which the largest   fails, if one was too large (413)

Invariant: each Request is finished exactly once: by its answer, by the end, or by being forgotten. What is kept for
sending again is bounded: drivers publish no more while `is_full()`.
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
    """One question that the broker will answer. `on_done` is called once, when `done` becomes true."""

    __slots__ = ("done", "error", "frame", "on_done", "reply", "seq", "what")

    def __init__(self, seq: int, what: str) -> None:
        self.seq, self.what = seq, what
        self.done = False
        self.reply = Reply(seq, 0, "", 0, b"")
        self.error: BlipMQError | None = None
        self.frame = b""
        """What is sent again on the next connection; empty: nothing is."""
        self.on_done: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"Request(seq={self.seq}, {self.what!r}, done={self.done}, error={self.error!r})"

    def finish(self, error: BlipMQError | None) -> None:
        self.done, self.error = True, error
        if self.on_done is not None:
            self.on_done()


class InFlight:
    """Requests by their number, in the order they were made."""

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
        """Whether as many QoS 1 publishes wait as may, in messages or bytes."""
        return self.publishes >= messages_max or self._publish_bytes >= WINDOW_BYTES_MAX

    def next_seq(self) -> int:
        """The number that the next request will get."""
        return self._last_seq + 1

    def add(self, what: str, frame: bytes = b"") -> Request:
        """A request; with a `frame`, one that is sent again. Raises UsageError if too many wait."""
        if len(self._requests) >= PENDING_MAX:
            raise UsageError(f"{PENDING_MAX} requests wait for an answer; await some before you send more.")
        self._last_seq += 1
        request = self._requests[self._last_seq] = Request(self._last_seq, what)
        if frame:
            request.frame = frame
            self.publishes += 1
            self._publish_bytes += len(frame)
        return request

    def take(self, seq: int) -> Request | None:
        """The request of this number, which waits no longer."""
        request = self._requests.pop(seq, None)
        if request is not None and request.frame:
            self.publishes -= 1
            self._publish_bytes -= len(request.frame)
        return request

    def frames(self) -> list[bytes]:
        """What a new connection is to be sent, in the order it was first sent in."""
        return [request.frame for request in self._requests.values() if request.frame]

    def lost(self, error: BlipMQError) -> None:
        """The connection is over: all that is not sent again fails with `error`."""
        self._fail([request for request in self._requests.values() if not request.frame], error)

    def fail_largest(self, error: BlipMQError) -> None:
        """A publish was too large, and the broker could not say which. The largest is: it would end every connection."""
        if self.publishes:
            self._fail([max(self._requests.values(), key=lambda request: len(request.frame))], error)

    def finish(self, error: BlipMQError) -> None:
        """There will be no other connection: all fail with `error`."""
        self._fail(list(self._requests.values()), error)

    def _fail(self, requests: list[Request], error: BlipMQError) -> None:
        for request in requests:
            self.take(request.seq)
        for request in requests:
            request.finish(error)


def check_window(window: int) -> None:
    """Raise UsageError if this many publishes in flight cannot be."""
    check_whole("window", window, 1, PENDING_MAX - 1)
