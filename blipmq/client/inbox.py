"""The messages of one local subscription that its reader has not taken yet, and the ids that it has yet to acknowledge.

    broker -> receive -> [queued] -> pop -> [taken] -> settled: its id is sent back as an ACK
                                         `-> with auto_ack off, the reader acknowledges it

A queue over its limits: `overflow` says what happens to QoS 0 messages, see OVERFLOWS. QoS 1 messages are never dropped
here; the broker sends at most `qos1.max_in_flight` of them without acknowledgements.
Invariant: each message is taken once, in the order of arrival. A message that the broker sends again while it is still
queued here is not queued twice. Subclasses add the ways to read it.
"""

from __future__ import annotations

from collections import deque

from blipmq.base.validation import check_flag, check_qos, check_text, check_whole
from blipmq.client import log
from blipmq.errors import BlipMQError, UsageError
from blipmq.wire.frames import Message
from blipmq.wire.topics import check_filter

QUEUE_MESSAGES_MAX = 10_000
QUEUE_BYTES_MAX = 16 << 20
OVERRUN = 4
"""An inbox may grow to this many times its limit while a request is unanswered, because the answer is behind the
messages."""
IDENTITY_BYTES_MAX = 256
DROP_OLDEST, DROP_NEW, BLOCK = OVERFLOWS = ("drop_oldest", "drop_new", "block")
"""What a full queue does when somebody waits for input behind its messages: it drops the oldest or the newest QoS 0
messages, or it makes everyone wait."""


class Inbox:
    """See the top of the file."""

    def __init__(
        self,
        filter_: str,
        *,
        qos: int = 0,
        durable: bool = False,
        group: str = "",
        auto_ack: bool = True,
        messages_max: int = QUEUE_MESSAGES_MAX,
        bytes_max: int = QUEUE_BYTES_MAX,
        overflow: str = DROP_OLDEST,
    ) -> None:
        check_filter(filter_)
        check_qos(qos)
        check_flag("durable", durable)
        check_identity("group", group)
        check_flag("auto_ack", auto_ack)
        check_whole("queue_messages_max", messages_max, 1)
        check_whole("queue_bytes_max", bytes_max, 1)
        check_text("overflow", overflow)
        if overflow not in OVERFLOWS:
            raise UsageError(f"overflow is {overflow!r}; it must be one of {', '.join(map(repr, OVERFLOWS))}.")
        if durable and not qos:
            raise UsageError(f"A durable subscription to {filter_} needs QoS 1: set qos=1.")
        self.filter = filter_
        self.options = (qos, durable, group)
        self.acknowledges = qos > 0
        self.auto_ack = auto_ack
        self.messages_max, self.bytes_max = messages_max, bytes_max
        self.overflow = overflow
        self.dropped = 0
        """How many QoS 0 messages were dropped because the reader was slow."""
        self.readers = 0
        """How many readers wait for a message."""
        self.messages: deque[Message] = deque()
        self.queued_bytes = 0
        self.taken: list[int] = []
        """Ids of taken messages that are acknowledged when their reader asks for more."""
        self.ended = False
        self.error: BlipMQError | None = None
        self._queued_ids: set[int] = set()

    def __repr__(self) -> str:
        state = f"ended, error={self.error!r}" if self.ended else "open"
        return (
            f"{type(self).__name__}({self.filter!r}, queued={len(self.messages)}, bytes={self.queued_bytes}, "
            f"taken={len(self.taken)}, {state})"
        )

    @property
    def durable(self) -> bool:
        return self.options[1]

    @property
    def group(self) -> str:
        return self.options[2]

    def is_full(self, times: int = 1) -> bool:
        return len(self.messages) >= self.messages_max * times or self.queued_bytes >= self.bytes_max * times

    def is_half_empty(self) -> bool:
        return len(self.messages) * 2 <= self.messages_max and self.queued_bytes * 2 <= self.bytes_max

    @property
    def blocks(self) -> bool:
        return self.overflow == BLOCK

    def trim(self, times: int = 1) -> None:
        """Drop QoS 0 messages until the queue is within `times` its limits. One message is always kept."""
        if self.blocks or not self.is_full(times):
            return
        oldest, before, kept = self.overflow == DROP_OLDEST, self.dropped, list[Message]()
        take = self.messages.popleft if oldest else self.messages.pop
        while len(self.messages) + len(kept) > 1 and self.messages and self._is_over(times, len(kept)):
            message = take()
            if self.acknowledges and message.qos:
                kept.append(message)
            else:
                self.queued_bytes -= len(message.payload)
                self.dropped += 1
        if oldest:
            self.messages.extendleft(reversed(kept))
        else:
            self.messages.extend(reversed(kept))
        if len(str(self.dropped)) > len(str(before)) or self.dropped > before == 0:  # not a line for each message
            log.write("WARNING", "the reader of %s is slow: %s messages dropped", self.filter, self.dropped)

    def _is_over(self, times: int, beside: int) -> bool:
        return len(self.messages) + beside > self.messages_max * times or self.queued_bytes > self.bytes_max * times

    def put(self, message: Message) -> None:
        if self.acknowledges and message.qos:
            if message.id in self._queued_ids:
                return  # redelivered before its reader took it
            self._queued_ids.add(message.id)
        self.messages.append(message)
        self.queued_bytes += len(message.payload)

    def pop(self) -> Message:
        message = self.messages.popleft()
        self.queued_bytes -= len(message.payload)
        if self.acknowledges and message.qos:
            self._queued_ids.discard(message.id)
            if self.auto_ack:
                self.taken.append(message.id)
        return message

    def pop_all(self) -> list[Message]:
        messages = list(self.messages)
        self.messages.clear()
        self.queued_bytes = 0
        if self._queued_ids:
            self._queued_ids.clear()
            if self.auto_ack:
                self.taken += [message.id for message in messages if message.qos]
        return messages

    def take_back(self) -> None:
        """The connection is lost: the broker delivers the queued messages of a durable subscription again, in order, on
        the next one."""
        if self.durable and self._queued_ids:
            self._queued_ids.clear()
            self.messages = deque(message for message in self.messages if not message.qos)
            self.queued_bytes = sum(len(message.payload) for message in self.messages)

    def end(self, error: BlipMQError | None) -> None:
        """No more messages arrive. Queued ones can still be read; after them the reader gets `error`, or a normal end."""
        if not self.ended:
            self.ended, self.error = True, error
            self.wake()

    def wake(self) -> None:
        """Wake the reader: messages or the end have arrived. Called once per received batch."""


def check_identity(noun: str, text: str) -> None:
    """Raise UsageError if the text is not a valid client id or group."""
    check_text(f"the {noun}", text)
    try:
        size_bytes = len(text.encode("utf-8"))
    except UnicodeEncodeError:
        raise UsageError(f"The {noun} {text!r} is not UTF-8; check the terminal's or the script's encoding.") from None
    if size_bytes > IDENTITY_BYTES_MAX:
        raise UsageError(f"The {noun} has {size_bytes} bytes; the maximum is {IDENTITY_BYTES_MAX}. Shorten it.")
