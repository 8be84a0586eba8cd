"""The protocol state of a client, without any I/O: requests and their answers, subscriptions and their queues.

    driver                                ClientProtocol
    connected        open()           ->  HELLO; when it is answered, SUB again for every filter, then the unanswered
                                          QoS 1 publishes, in order
    bytes arrived    receive(bytes)   ->  requests are answered, messages go into the inboxes
    may send         take()           ->  all bytes to send, in order, once
    connection lost  lost(error)      ->  in_flight requests fail, QoS 1 publishes and inboxes stay
    client closed    finish(error)    ->  everything ends

Invariant: only HELLO is sent before its answer. If several filters match, the broker sends a message once per
connection; here it goes to each inbox with a matching filter, and is acknowledged when the last of them has
acknowledged it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from blipmq import errors
from blipmq.base.validation import API_KEY_BYTES_MAX, check_text
from blipmq.client import log
from blipmq.client.in_flight import PENDING_MAX as PENDING_MAX
from blipmq.client.in_flight import InFlight, Request
from blipmq.client.inbox import Inbox, check_identity
from blipmq.errors import BlipMQError, ConfigError, Disconnected, ProtocolError, UsageError, WrongType, refusal
from blipmq.wire import frames as wire
from blipmq.wire.frames import Message, PublishEncoder, Reply, SubAck
from blipmq.wire.topics import check_filter, match

_ENCODERS_MAX = 256
_ROUTES_MAX = 1024
_REFUSALS_MAX = 16


def as_bytes(payload: bytes | bytearray | memoryview | str) -> bytes:
    """Return a payload as bytes; text is encoded as UTF-8. Raises UsageError or WrongType."""
    if type(payload) is bytes:
        return payload
    if isinstance(payload, str):
        try:
            return payload.encode("utf-8")
        except UnicodeEncodeError:
            raise UsageError("The payload's text is not UTF-8; publish it as bytes (os.fsencode).") from None
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return bytes(payload)
    raise WrongType(
        f"A payload is bytes or str, not {type(payload).__name__}; encode it first (json.dumps, struct.pack)."
    )


class ClientProtocol:
    """See the top of the file. Not thread-safe: one driver, one thread or one loop."""

    def __init__(self, *, client_id: str = "", api_key: str = "", frame_bytes_max: int = wire.FRAME_BYTES_MAX) -> None:
        check_identity("client id", client_id)
        check_text("api_key", api_key)
        if len(api_key.encode("utf-8", "surrogateescape")) > API_KEY_BYTES_MAX:
            raise ConfigError(
                f"The API key is longer than {API_KEY_BYTES_MAX} bytes; is it the right file or variable?"
            )
        self._client_id, self._api_key, self._frame_bytes_max = client_id, api_key, frame_bytes_max
        self._reader = wire.FrameReader(frame_bytes_max)
        self.in_flight = InFlight()
        self._inboxes: dict[str, list[Inbox]] = {}
        self._routes: dict[str, tuple[Inbox, ...]] = {}
        self._shared: dict[int, set[Inbox]] = {}
        self._encoders: dict[tuple[str, int, int], PublishEncoder] = {}
        self._out: list[bytes] = []
        self.out_bytes = 0
        self.welcomed = False
        self.keepalive_ms = 0
        """The interval that HELLO promises: the client sends something at least this often. 0: no promise."""
        self.farewell: BlipMQError | None = None
        self._blames_nobody = False
        """Whether `farewell`, the broker's reason for closing, belongs to no request."""
        self.refusals: deque[BlipMQError] = deque(maxlen=_REFUSALS_MAX)
        """Refusals that belong to no request: those of QoS 0 publishes. Only the newest are kept."""
        self.on_refusal: Callable[[BlipMQError], None] | None = None

    def __repr__(self) -> str:
        return (
            f"ClientProtocol(welcomed={self.welcomed}, {self.in_flight!r}, filters={list(self._inboxes)}, "
            f"out_bytes={self.out_bytes}, farewell={self.farewell!r})"
        )

    # ---- one connection ----

    def open(self) -> Request:
        """Start a new connection: send HELLO. Nothing else may be sent before its answer."""
        self._reader = wire.FrameReader(self._frame_bytes_max)
        self._out.clear()
        self.out_bytes = 0
        self.farewell = None
        self._blames_nobody = False
        request = self.in_flight.add("HELLO")
        self._send(
            wire.encode_command(
                wire.HELLO,
                seq=request.seq,
                client_id=self._client_id,
                api_key=self._api_key,
                protocol=wire.PROTOCOL,
                keepalive_ms=self.keepalive_ms,
            )
        )

        def welcome() -> None:
            request.on_done = None
            if request.error is None:
                self.welcomed = True
                self._subscribe_again()
                for frame in self.in_flight.frames():
                    self._send(frame)

        request.on_done = welcome
        return request

    def receive(self, data: bytes) -> None:
        """Process bytes from the broker. Raises ProtocolError if the stream is invalid: the driver must then close."""
        woken: set[Inbox] = set()
        topic, inboxes = "", tuple[Inbox, ...]()
        for frame in self._reader.feed(data):
            if isinstance(frame, Message):
                if frame.topic != topic:
                    topic = frame.topic
                    inboxes = self._route(topic)
                    woken.update(inboxes)
                if frame.qos:
                    self._put(frame, inboxes)
                    continue
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
        """Return all bytes to send, and clear them."""
        data = self._out[0] if len(self._out) == 1 else b"".join(self._out)
        self._out.clear()
        self.out_bytes = 0
        return data

    def lost(self, error: BlipMQError) -> None:
        """The connection is lost: unanswered requests fail with `error`, except QoS 1 publishes."""
        self.welcomed = False
        self._out.clear()
        self.out_bytes = 0
        self._shared.clear()
        for inbox in self.all_inboxes():
            inbox.take_back()
        if error.code == errors.TOO_LARGE and self._blames_nobody:
            self.in_flight.fail_largest(error)
        self.in_flight.lost(error)

    def finish(self, error: BlipMQError | None) -> None:
        """The client closes: end every subscription and every request."""
        gone = error or Disconnected("The client was closed before the broker answered.")
        self.lost(gone)
        inboxes = self.all_inboxes()
        self._inboxes.clear()
        self._routes.clear()
        for inbox in inboxes:
            inbox.end(error)
        self.in_flight.finish(gone)

    def quit(self) -> None:
        self._send(wire.encode_command(wire.QUIT))

    # ---- verbs ----

    def publish(self, topic: str, payload: bytes, ttl_ms: int) -> None:
        """Send a QoS 0 message. It has no answer, unless it is refused."""
        frame = self.encoder(topic, ttl_ms).frame(payload)
        self._out.append(frame)
        self.out_bytes += len(frame)

    def publish_many(self, topic: str, payloads: Iterable[bytes], ttl_ms: int) -> None:
        self._send(self.encoder(topic, ttl_ms).frames(payloads))

    def publish_answered(self, topic: str, payload: bytes, ttl_ms: int) -> Request:
        """Send a QoS 1 message. The answer has its id once it is on disk. Until then it is kept and sent on each new
        connection."""
        frame = self.encoder(topic, ttl_ms, 1).frame(payload, self.in_flight.next_seq())
        request = self.in_flight.add(f"Publish to {topic}", frame)
        self._send(frame)
        return request

    def subscribe(self, inbox: Inbox) -> Request:
        """Route messages into the inbox and send SUB. If the broker refuses, the driver must call drop()."""
        if inbox.durable and not self._client_id:
            raise UsageError(f"A durable subscription to {inbox.filter} needs a client_id: set it when you connect.")
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
        """Stop routing into this inbox. Returns True if it was the last of its filter, so that the broker should be
        told."""
        group = [other for other in self._inboxes.get(inbox.filter, []) if other is not inbox]
        was_last = not group and inbox.filter in self._inboxes
        if group:
            self._inboxes[inbox.filter] = group
        else:
            self._inboxes.pop(inbox.filter, None)
        self._routes.clear()
        for id_, holders in list(self._shared.items()):
            holders.discard(inbox)
            if not holders:
                del self._shared[id_]
        return was_last

    def inboxes(self, filter_: str, group: str = "") -> list[Inbox]:
        """The inboxes of a filter; with a group, those in it."""
        return [inbox for inbox in self._inboxes.get(filter_, []) if not group or inbox.group == group]

    def all_inboxes(self) -> list[Inbox]:
        return [inbox for group in self._inboxes.values() for inbox in group]

    def unsubscribe(self, filter_: str, group: str = "", *, keep_durable: bool = False) -> Request:
        """Send UNSUB. With `keep_durable` the connection leaves, and durable subscriptions of this client id stay."""
        check_filter(filter_)
        check_identity("group", group)
        request = self.in_flight.add(f"Unsubscribe from {filter_}")
        self._send(wire.encode_command(wire.UNSUB, filter_, seq=request.seq, group=group, keep_durable=keep_durable))
        return request

    def say_something(self) -> None:
        """Send a PING without waiting for its answer, for the keep-alive that HELLO promised."""
        self._send(wire.encode_command(wire.PING))

    def ping(self) -> Request:
        request = self.in_flight.add("Ping")
        self._send(wire.encode_command(wire.PING, seq=request.seq))
        return request

    def info(self, asked: bytes = b"") -> Request:
        """Send INFO. `asked` selects parts of the report; empty: all of it."""
        request = self.in_flight.add("Info")
        self._send(wire.encode_command(wire.INFO, payload=asked, seq=request.seq))
        return request

    def admin(self, asked: bytes) -> Request:
        request = self.in_flight.add("The request to the broker")
        self._send(wire.encode_command(wire.ADMIN, payload=asked, seq=request.seq))
        return request

    def acknowledge(self, ids: Iterable[int], inbox: Inbox | None = None) -> None:
        """Send acknowledgements for this inbox, or (None) for all inboxes. Without a connection nothing is kept: the
        messages are delivered again."""
        if self._shared:
            ids = [id_ for id_ in ids if self._is_last(id_, inbox)]
        if self.welcomed and (frames := wire.encode_acks(ids)):
            self._send(frames)

    def forget(self, request: Request) -> None:
        """Drop a request: nothing waits for its answer any more."""
        self.in_flight.take(request.seq)

    @property
    def waiting(self) -> bool:
        """Whether any request is unanswered."""
        return bool(self.in_flight)

    def encoder(self, topic: str, ttl_ms: int, qos: int = 0) -> PublishEncoder:
        key = (topic, ttl_ms, qos)
        try:
            encoder = self._encoders.get(key)
        except TypeError:  # an unhashable topic, such as a list; PublishEncoder refuses it
            encoder = None
        if encoder is None:
            if len(self._encoders) >= _ENCODERS_MAX:
                self._encoders.clear()
            encoder = self._encoders[key] = PublishEncoder(topic, ttl_ms=ttl_ms, qos=qos)
        return encoder

    # ---- internal ----

    def _send(self, frame: bytes) -> None:
        self._out.append(frame)
        self.out_bytes += len(frame)

    def _put(self, message: Message, inboxes: tuple[Inbox, ...]) -> None:
        """Put a QoS 1 message into its inboxes. If several acknowledge, they are recorded until the last has done so."""
        holders = {inbox for inbox in inboxes if inbox.acknowledges}
        if len(holders) > 1:
            self._shared.setdefault(message.id, set()).update(holders)
        for inbox in inboxes:
            inbox.put(message)

    def _is_last(self, id_: int, inbox: Inbox | None) -> bool:
        """Whether no other inbox has yet to acknowledge the message."""
        holders = self._shared.get(id_)
        if holders is None:
            return True
        if inbox is None:
            holders.clear()
        else:
            holders.discard(inbox)
        if not holders:
            del self._shared[id_]
        return not holders

    def _send_subscribe(self, inbox: Inbox) -> Request:
        qos, durable, group = inbox.options
        request = self.in_flight.add(f"Subscribe to {inbox.filter}")
        self._send(wire.encode_command(wire.SUB, inbox.filter, seq=request.seq, qos=qos, durable=durable, group=group))
        return request

    def _subscribe_again(self) -> None:
        """Subscribe to every filter again on a new connection. If the broker refuses one now, its readers get the
        error."""
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

    def _ended(self, frame: Reply) -> None:
        """An operator ended a subscription of this client: its readers get the error, and the connection stays open."""
        filter_ = frame.payload.partition(b"\n")[0].decode("utf-8", "replace")
        for inbox in self.inboxes(filter_):
            self.drop(inbox)
            inbox.end(refusal(f"The subscription to {filter_}", frame.code, frame.message))

    def _answered(self, frame: SubAck | Reply) -> None:
        request = self.in_flight.take(frame.seq)
        reason = frame.info if isinstance(frame, SubAck) else frame.message
        if request is not None:
            if isinstance(frame, Reply):
                request.reply = frame
            error = refusal(request.what, frame.code, reason) if frame.code else None
            if error is not None and error.code in errors.CLOSING_CODES:
                self.farewell = error
            request.finish(error)
        elif frame.code == errors.ENDED and isinstance(frame, Reply):
            self._ended(frame)
        elif frame.code:
            about_client = frame.code in (errors.NOT_AUTHENTICATED, errors.PROTOCOL_VERSION, errors.CLIENT_ID_IN_USE)
            error = refusal("This client" if about_client else "A publish", frame.code, reason)
            if error.code in errors.CLOSING_CODES or error.code == errors.CLIENT_ID_IN_USE:
                self.farewell, self._blames_nobody = error, True
            self.refusals.append(error)
            if self.on_refusal is not None:
                self.on_refusal(error)
            else:
                log.write("WARNING", "%s", error)


class Receipt(int):
    """The result of publish: an int, the message id (0 for QoS 0), with the attribute `subscriptions`."""

    subscriptions: int | None
    """The number of QoS 1 subscriptions and queue groups that store the message, also those of absent clients; None:
    unknown (QoS 0, or a broker of an earlier version)."""

    def __new__(cls, id_: int, subscriptions: int | None = None) -> Receipt:
        receipt = super().__new__(cls, id_)
        receipt.subscriptions = subscriptions
        return receipt

    @classmethod
    def of(cls, reply: Reply) -> Receipt:
        return cls(reply.id, reply.subscriptions)


class Published(int):
    """The result of publish_many: an int, the number of messages sent, with the attribute `unrouted`."""

    unrouted: int | None
    """The number of messages that no QoS 1 subscription took; the broker does not keep them. None: unknown (QoS 0, or
    a broker of an earlier version)."""

    def __new__(cls, count: int, unrouted: int | None = None) -> Published:
        published = super().__new__(cls, count)
        published.unrouted = unrouted
        return published


class PublishedCount:
    """Counts the answers to the publishes of one publish_many call."""

    def __init__(self) -> None:
        self._sent = self._unrouted = 0
        self._said = True

    def __repr__(self) -> str:
        return f"<PublishedCount sent={self._sent} unrouted={self._unrouted}>"

    def sent(self) -> None:
        self._sent += 1

    def answered(self, reply: Reply) -> None:
        self._said &= reply.subscriptions is not None
        self._unrouted += reply.subscriptions == 0

    def result(self) -> Published:
        return Published(self._sent, self._unrouted if self._said else None)


def decode_info(reply: Reply) -> dict[str, Any]:
    """Decode the JSON object in the answer to INFO. Raises ProtocolError."""
    import json  # imported here because only INFO needs it, and the command line must start fast

    try:
        info = json.loads(reply.payload)
    except ValueError:
        info = None
    if not isinstance(info, dict):
        raise ProtocolError(
            "The answer to INFO is not a JSON object. Update the client or the broker: their versions may not fit together."
        )
    return info
