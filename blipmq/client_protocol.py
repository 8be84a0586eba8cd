"""What a client knows about its connection, without any I/O: requests and their answers, subscriptions and their
queues.

    driver                                ClientProtocol
    connected        open()           ->  HELLO; when it is answered, SUB again for every filter
    bytes arrived    receive(bytes)   ->  requests are answered, messages go into the inboxes
    may send         take()           ->  all bytes to send, in order, once
    connection over  lost(error)      ->  unanswered requests fail, inboxes stay
    for good         finish(error)    ->  inboxes end

Invariant: each Request is finished exactly once, by its answer, by lost(), or by forget(). The broker sends a message
once per connection even where several filters match; it goes here to each inbox whose filter does.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from blipmq import errors, wire
from blipmq.errors import BlipMQError, ConfigError, Disconnected, ProtocolError, UsageError, refusal
from blipmq.topics import check_filter, check_topic, match
from blipmq.wire import Message, PublishEncoder, Reply, SubAck

PENDING_MAX = 65_536
QUEUE_MESSAGES_MAX = 10_000
QUEUE_BYTES_MAX = 16 << 20
OVERRUN = 4
"""An inbox may grow to this many times its limit while a request waits for its answer, which comes behind the
messages."""

FINAL_CODES = frozenset(
    {errors.BAD_REQUEST, errors.NOT_AUTHENTICATED, errors.NOT_ALLOWED, errors.CLIENT_ID_IN_USE, errors.PROTOCOL_VERSION}
)
"""Answers that would be the same on the next attempt: a client that gets one of these does not reconnect."""

_IDENTITY_BYTES_MAX = 256
_API_KEY_BYTES_MAX = (
    512  # with the client id and the table, HELLO stays below the 1 KiB a broker reads before it knows us
)
_ENCODERS_MAX = 256
_ROUTES_MAX = 1024
_REFUSALS_MAX = 16


class Request:
    """One question that the broker will answer. `on_done` is called once, when `done` becomes true."""

    __slots__ = ("done", "error", "on_done", "reply", "seq", "what")

    def __init__(self, seq: int, what: str) -> None:
        self.seq, self.what = seq, what
        self.done = False
        self.reply = Reply(seq, 0, "", 0, b"")
        self.error: BlipMQError | None = None
        self.on_done: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"Request(seq={self.seq}, {self.what!r}, done={self.done}, error={self.error!r})"

    def finish(self, error: BlipMQError | None) -> None:
        self.done, self.error = True, error
        if self.on_done is not None:
            self.on_done()


class Inbox:
    """The messages of one local subscription that its reader has not taken yet. Drivers add the ways to read it."""

    def __init__(
        self,
        filter_: str,
        *,
        qos: int = 0,
        durable: bool = False,
        group: str = "",
        messages_max: int = QUEUE_MESSAGES_MAX,
        bytes_max: int = QUEUE_BYTES_MAX,
    ) -> None:
        check_filter(filter_)
        _check_identity("group", group)
        if messages_max < 1 or bytes_max < 1:
            raise UsageError("A subscription's queue must hold at least one message and one byte.")
        self.filter = filter_
        self.options = (qos, durable, group)
        self.messages_max, self.bytes_max = messages_max, bytes_max
        self.messages: deque[Message] = deque()
        self.queued_bytes = 0
        self.ended = False
        self.error: BlipMQError | None = None

    def __repr__(self) -> str:
        state = f"ended, error={self.error!r}" if self.ended else "open"
        return (
            f"{type(self).__name__}({self.filter!r}, queued={len(self.messages)}, bytes={self.queued_bytes}, {state})"
        )

    def is_full(self, times: int = 1) -> bool:
        return len(self.messages) >= self.messages_max * times or self.queued_bytes >= self.bytes_max * times

    def is_half_empty(self) -> bool:
        return len(self.messages) * 2 <= self.messages_max and self.queued_bytes * 2 <= self.bytes_max

    def pop(self) -> Message:
        message = self.messages.popleft()
        self.queued_bytes -= len(message.payload)
        return message

    def pop_all(self) -> list[Message]:
        messages = list(self.messages)
        self.messages.clear()
        self.queued_bytes = 0
        return messages

    def end(self, error: BlipMQError | None) -> None:
        """No more will come. What is queued can still be read; after it, the reader gets `error`, or a plain end."""
        if not self.ended:
            self.ended, self.error = True, error
            self.wake()

    def wake(self) -> None:
        """Messages have come, or the end has. Called once per batch received."""


def _check_identity(noun: str, text: str) -> None:
    try:
        size_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError(f"The {noun} {text!r} is not UTF-8; check the terminal's or the script's encoding.") from None
    if size_bytes > _IDENTITY_BYTES_MAX:
        raise UsageError(f"The {noun} has {size_bytes} bytes; {_IDENTITY_BYTES_MAX} is the most. Shorten it.")


def as_bytes(payload: bytes | bytearray | memoryview | str) -> bytes:
    """A payload as it goes out: text as UTF-8, everything else as it is."""
    if type(payload) is bytes:
        return payload
    if isinstance(payload, str):
        try:
            return payload.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError("The payload's text is not UTF-8; publish it as bytes (os.fsencode).") from None
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    raise UsageError(
        f"A payload is bytes or str, not {type(payload).__name__}; encode it first (json.dumps, struct.pack)."
    )


class ClientProtocol:
    """See the top of the file. Not thread-safe: one driver, one thread or one loop."""

    def __init__(self, *, client_id: str = "", api_key: str = "", frame_bytes_max: int = wire.FRAME_BYTES_MAX) -> None:
        _check_identity("client id", client_id)
        if len(api_key.encode("utf-8", "surrogateescape")) > _API_KEY_BYTES_MAX:
            raise ConfigError(
                f"The API key is longer than {_API_KEY_BYTES_MAX} bytes; is it the right file or variable?"
            )
        self._client_id, self._api_key, self._frame_bytes_max = client_id, api_key, frame_bytes_max
        self._reader = wire.FrameReader(frame_bytes_max)
        self._seq = 0
        self._pending: dict[int, Request] = {}
        self._inboxes: dict[str, list[Inbox]] = {}
        self._routes: dict[str, tuple[Inbox, ...]] = {}
        self._encoders: dict[tuple[str, int, int], PublishEncoder] = {}
        self._out: list[bytes] = []
        self.out_bytes = 0
        self.welcomed = False
        self.farewell: BlipMQError | None = None
        """Why the broker is about to close, if it said so."""
        self.refusals: deque[BlipMQError] = deque(maxlen=_REFUSALS_MAX)
        """Refusals that belong to no request: those of QoS 0 publishes. The newest few are kept until someone takes
        them."""
        self.on_refusal: Callable[[BlipMQError], None] | None = None

    def __repr__(self) -> str:
        return (
            f"ClientProtocol(welcomed={self.welcomed}, pending={len(self._pending)}, filters={list(self._inboxes)}, "
            f"out_bytes={self.out_bytes}, farewell={self.farewell!r})"
        )

    # ---- one connection ----

    def open(self) -> Request:
        """A new connection is there: say HELLO. Nothing else may be sent before its answer."""
        self._reader = wire.FrameReader(self._frame_bytes_max)
        self._out.clear()
        self.out_bytes = 0
        self.farewell = None
        request = self._request("HELLO")
        self._send(
            wire.encode_command(
                wire.HELLO, seq=request.seq, client_id=self._client_id, api_key=self._api_key, protocol=wire.PROTOCOL
            )
        )

        def welcome() -> None:
            request.on_done = None
            if request.error is None:
                self.welcomed = True
                self._subscribe_again()

        request.on_done = welcome
        return request

    def receive(self, data: bytes) -> None:
        """Take in what the broker sent. Raises ProtocolError if the stream is broken: the driver must then close."""
        woken: set[Inbox] = set()
        topic, inboxes = "", tuple[Inbox, ...]()
        for frame in self._reader.feed(data):
            if isinstance(frame, Message):
                if frame.topic != topic:
                    topic = frame.topic
                    inboxes = self._route(topic)
                    woken.update(inboxes)
                for inbox in inboxes:
                    inbox.messages.append(frame)
                    inbox.queued_bytes += len(frame.payload)
            else:
                self._answered(frame)
                topic = ""  # an answer can end a subscription
        for inbox in woken:
            inbox.wake()
        if self._reader.broken is not None:
            raise self._reader.broken

    def take(self) -> bytes:
        """All that is to be sent, once."""
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self.out_bytes = 0
        return data

    def lost(self, error: BlipMQError) -> None:
        """The connection is over: whatever waits for an answer fails with `error`."""
        self.welcomed = False
        self._out.clear()
        self.out_bytes = 0
        pending, self._pending = self._pending, {}
        for request in pending.values():
            request.finish(error)

    def finish(self, error: BlipMQError | None) -> None:
        """There will be no other connection: end every subscription."""
        self.lost(error or Disconnected("The client was closed before the broker answered."))
        inboxes = [inbox for group in self._inboxes.values() for inbox in group]
        self._inboxes.clear()
        self._routes.clear()
        for inbox in inboxes:
            inbox.end(error)

    def quit(self) -> None:
        self._send(wire.encode_command(wire.QUIT))

    # ---- verbs ----

    def publish(self, topic: str, payload: bytes, ttl_ms: int) -> None:
        """QoS 0: nothing comes back, unless it is refused."""
        frame = self.encoder(topic, ttl_ms).frame(payload)
        self._out.append(frame)
        self.out_bytes += len(frame)

    def publish_many(self, topic: str, payloads: Iterable[bytes], ttl_ms: int) -> None:
        self._send(self.encoder(topic, ttl_ms).frames(payloads))

    def publish_answered(self, topic: str, payload: bytes, ttl_ms: int) -> Request:
        """QoS 1: answered with the message's id once it is safe."""
        check_topic(topic)
        request = self._request(f"Publish to {topic}")
        self._send(wire.encode_command(wire.PUB, topic, payload, ttl_ms=ttl_ms, qos=1, seq=request.seq))
        return request

    def subscribe(self, inbox: Inbox) -> Request:
        """Route messages into the inbox and tell the broker. If the answer is no, the driver must call drop()."""
        group = self._inboxes.get(inbox.filter, [])
        if any(other.options != inbox.options for other in group):
            raise UsageError(
                f"{inbox.filter} is subscribed on this connection with another QoS, group or durability; "
                "use the same, or a second client."
            )
        request = self._send_subscribe(inbox)
        if inbox not in group:
            self._inboxes[inbox.filter] = [*group, inbox]
            self._routes.clear()
        return request

    def drop(self, inbox: Inbox) -> bool:
        """Send no more into this inbox. True if it was the last of its filter, so that the broker should be told."""
        group = [other for other in self._inboxes.get(inbox.filter, []) if other is not inbox]
        was_last = not group and inbox.filter in self._inboxes
        if group:
            self._inboxes[inbox.filter] = group
        else:
            self._inboxes.pop(inbox.filter, None)
        self._routes.clear()
        return was_last

    def inboxes(self, filter_: str) -> list[Inbox]:
        return list(self._inboxes.get(filter_, []))

    def all_inboxes(self) -> list[Inbox]:
        return [inbox for group in self._inboxes.values() for inbox in group]

    def unsubscribe(self, filter_: str) -> Request:
        check_filter(filter_)
        request = self._request(f"Unsubscribe from {filter_}")
        self._send(wire.encode_command(wire.UNSUB, filter_, seq=request.seq))
        return request

    def ping(self) -> Request:
        request = self._request("Ping")
        self._send(wire.encode_command(wire.PING, seq=request.seq))
        return request

    def info(self) -> Request:
        request = self._request("Info")
        self._send(wire.encode_command(wire.INFO, seq=request.seq))
        return request

    def ack(self, message_id: int) -> None:
        self._send(wire.encode_command(wire.ACK, seq=message_id))

    def forget(self, request: Request) -> None:
        """No one waits for this answer any more."""
        self._pending.pop(request.seq, None)

    @property
    def waiting(self) -> bool:
        """Whether any request has yet to be answered."""
        return bool(self._pending)

    def encoder(self, topic: str, ttl_ms: int) -> PublishEncoder:
        key = (topic, ttl_ms, 0)
        encoder = self._encoders.get(key)
        if encoder is None:
            if len(self._encoders) >= _ENCODERS_MAX:
                self._encoders.clear()
            encoder = self._encoders[key] = PublishEncoder(topic, ttl_ms=ttl_ms)
        return encoder

    # ---- inside ----

    def _send(self, frame: bytes) -> None:
        self._out.append(frame)
        self.out_bytes += len(frame)

    def _request(self, what: str) -> Request:
        if len(self._pending) >= PENDING_MAX:
            raise UsageError(f"{PENDING_MAX} requests wait for an answer; await some before you send more.")
        self._seq += 1
        request = self._pending[self._seq] = Request(self._seq, what)
        return request

    def _send_subscribe(self, inbox: Inbox) -> Request:
        qos, durable, group = inbox.options
        request = self._request(f"Subscribe to {inbox.filter}")
        self._send(wire.encode_command(wire.SUB, inbox.filter, seq=request.seq, qos=qos, durable=durable, group=group))
        return request

    def _subscribe_again(self) -> None:
        """On a new connection every filter is asked for again; if one is refused now, its readers are told."""
        for filter_, group in list(self._inboxes.items()):
            request = self._send_subscribe(group[0])

            def answered(request: Request = request, filter_: str = filter_) -> None:
                if request.error is not None and request.error.code:
                    for inbox in self.inboxes(filter_):
                        self.drop(inbox)
                        inbox.end(request.error)

            request.on_done = answered

    def _route(self, topic: str) -> tuple[Inbox, ...]:
        inboxes = self._routes.get(topic)
        if inboxes is None:
            if len(self._routes) >= _ROUTES_MAX:
                self._routes.clear()
            inboxes = tuple(inbox for name, group in self._inboxes.items() if match(name, topic) for inbox in group)
            self._routes[topic] = inboxes
        return inboxes

    def _answered(self, frame: SubAck | Reply) -> None:
        request = self._pending.pop(frame.seq, None)
        reason = frame.info if isinstance(frame, SubAck) else frame.message
        if request is not None:
            if isinstance(frame, Reply):
                request.reply = frame
            error = refusal(request.what, frame.code, reason) if frame.code else None
            if error is not None and error.code in errors.CLOSING_CODES:
                self.farewell = error
            request.finish(error)
        elif frame.code:
            about_client = frame.code in (errors.NOT_AUTHENTICATED, errors.PROTOCOL_VERSION, errors.CLIENT_ID_IN_USE)
            error = refusal("This client" if about_client else "A publish", frame.code, reason)
            if error.code in errors.CLOSING_CODES or error.code == errors.CLIENT_ID_IN_USE:
                self.farewell = error
            self.refusals.append(error)
            if self.on_refusal is not None:
                self.on_refusal(error)


def connection_ended(
    address: object, error: BaseException | None, farewell: BlipMQError | None, *, welcomed: bool
) -> BlipMQError:
    """Why a connection is over: what the broker said, what was wrong with its bytes, or what the system reports."""
    if farewell is not None:
        return farewell
    if isinstance(error, ProtocolError):
        return error
    if not welcomed:
        return Disconnected(
            f"{address} took the connection and ended it without answering HELLO. "
            "It is not a BlipMQ 2 broker, or it is at its limit of connections; check the address and the broker's log."
        )
    why = f" ({error})" if error is not None and str(error) else ""
    return Disconnected(
        f"The connection to {address} ended{why}. The broker was stopped or restarted, or the network failed; "
        "what was not answered may not have arrived."
    )


def decode_info(reply: Reply) -> dict[str, Any]:
    """The JSON object in the answer to INFO."""
    import json  # only INFO needs it, and the command line must start fast

    try:
        info = json.loads(reply.payload)
    except ValueError:
        info = None
    if not isinstance(info, dict):
        raise ProtocolError(
            "The answer to INFO is not a JSON object. Client and broker may be of different generations."
        )
    return info


def keep_alive(sock: socket.socket) -> None:
    """Notice within about a minute that a peer lost power: the reader of a quiet topic sends nothing that could
    fail."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):  # not on every system
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
