"""The checker of the storm: which messages were sent, acknowledged and received.

Invariant: it uses only observations of clients. A message is identified by its lane (publisher, topic) and its number
in the lane, both in the payload with a checksum. Each number is sent once, so a second copy comes from the broker.
"""

import struct
import time
from array import array
from random import Random
from zlib import crc32

HEAD = struct.Struct(">HHQ")
SIZE_MIN, SIZE_MAX = HEAD.size + 16 + 4, 64 * 1024  # of a payload: at least header, salt and checksum
FILL = Random(7).randbytes(SIZE_MAX + 600)
FAULTS_KEPT = 20
LATE_SECONDS = 2.0  # clients on a busy machine may exceed a time to live by this much

SENT, ACKNOWLEDGED = 0, 1


def payload_of(publisher, topic, number, salt, size):
    """Fully determined by the arguments, so any changed byte is detected."""
    body = HEAD.pack(publisher, topic, number) + salt
    start = crc32(body) % 600
    body += FILL[start : start + size - len(body) - 4]
    return body + struct.pack(">I", crc32(body))


class Lane:
    """The messages of one publisher for one topic."""

    def __init__(self):
        self.state = bytearray()  # by number
        self.ids = array("Q")  # by number; 0: not known
        self.sizes = array("I")  # of the payloads, in bytes
        self.times = array("d")  # time of the socket write, in monotonic seconds
        self.segments = array("I")  # the newest WAL segment at that time, if the storm records it
        self.acknowledged = 0  # the last acknowledged number plus one


class View:
    """The received messages of one subscriber: for each lane a flag per number, and the last number in order."""

    def __init__(self, ledger, name, topics, members=1):
        self.ledger, self.name, self.topics, self.members = ledger, name, set(topics), members
        self.since = {}  # lane: first number that must arrive; empty until its first SubAck
        self.seen = {}
        self.last = {}
        self.delivered = self.duplicates = 0
        self.duplicates_since_crash = self.duplicates_most = 0
        self.connects_since_crash = 0  # subscriptions of its members

    def asks(self):
        """Its client is about to subscribe."""

    def left(self):
        """Its client has disconnected."""

    def begin(self):
        """The subscription is active from now on: all later messages must arrive."""
        if not self.since:
            self.since = {key: len(lane.state) for key, lane in self.ledger.lanes.items() if key[1] in self.topics}

    def crash(self):
        """After a crash two windows may be redelivered, and one after each reconnect of a member."""
        window = self.ledger.max_in_flight
        back = max(0, self.connects_since_crash - self.members)
        if self.duplicates_since_crash > window * (2 * self.members + back):
            self.ledger.fault(
                f"{self.name} got {self.duplicates_since_crash} duplicates between two crashes, {back} reconnects"
            )
        self.duplicates_most = max(self.duplicates_most, self.duplicates_since_crash)
        self.duplicates_since_crash = self.connects_since_crash = 0

    def deliver(self, topic, payload, id_, redelivered):
        self.delivered += 1
        fault = self.ledger.fault
        if len(payload) < HEAD.size:
            return fault(f"{self.name} got {payload!r}, which nobody sent")
        publisher, topic_index, number = HEAD.unpack_from(payload)
        key = (publisher, topic_index)
        lane = self.ledger.lanes.get(key)
        if lane is None or number >= len(lane.state) or topic != self.ledger.topics[topic_index]:
            return fault(f"{self.name} got {number} of {key} on {topic}, which nobody sent")
        if payload != payload_of(*key, number, self.ledger.salt, lane.sizes[number]):
            return fault(f"{self.name} got {number} of {key} with changed bytes")
        age, ttl_ms = time.monotonic() - lane.times[number], self.ledger.ttl_ms.get(topic_index, 0)
        if ttl_ms and age > ttl_ms / 1000 + LATE_SECONDS:
            fault(f"{self.name} got {number} of {key} {age:.1f} s after it was sent, with {ttl_ms} ms to live")
        if topic_index not in self.topics:
            return fault(f"{self.name} got a message of {topic}, which it did not ask for")
        if lane.ids[number] not in (0, id_):
            fault(f"{number} of {key} had id {lane.ids[number]} and came to {self.name} as {id_}")
        lane.ids[number] = id_
        seen = self.seen.setdefault(key, bytearray())
        if len(seen) <= number:
            seen.extend(bytes(number + 1 - len(seen)))
        if seen[number]:
            self._again(key, number, redelivered)
        elif self.members == 1 and number < self.last.get(key, -1):
            fault(f"{self.name} got {number} of {key} for the first time after {self.last[key]}")
        if not seen[number]:
            self.last[key] = number
        seen[number] = 1

    def _again(self, key, number, redelivered):
        self.duplicates += 1
        self.duplicates_since_crash += 1
        if not redelivered:
            self.ledger.fault(f"{self.name} got {number} of {key} again, and it did not say so")

    def missing(self):
        """[(lane, number)] of acknowledged messages that did not arrive."""
        return [
            (key, number)
            for key, first in self.since.items()
            for number in range(first, len(self.ledger.lanes[key].state))
            if self.ledger.lanes[key].state[number] == ACKNOWLEDGED
            and not self.has(key, number)
            and key[1] not in self.ledger.ttl_ms
        ]

    def has(self, key, number):
        seen = self.seen.get(key, b"")
        return number < len(seen) and seen[number] == 1


class Impatient(View):
    """A view with a short acknowledgement timeout: each message may arrive often or become a dead letter."""

    def crash(self):
        self.duplicates_most = max(self.duplicates_most, self.duplicates_since_crash)
        self.duplicates_since_crash = self.connects_since_crash = 0

    def missing(self):
        return [found for found in super().missing() if not self.ledger.dead.has(*found)]


class Unacknowledging(Impatient):
    """A view that never acknowledges: its messages must arrive as dead letters."""

    def has(self, key, number):
        return False


class DeadLetters(View):
    """The dead letters. After a crash a message may become a dead letter twice, each with its own id."""

    def deliver(self, topic, payload, id_, redelivered):
        self.delivered += 1
        publisher, topic_index, number = HEAD.unpack_from(payload)
        key = (publisher, topic_index)
        lane = self.ledger.lanes.get(key)
        if lane is None or number >= len(lane.state) or topic != "$dlq/" + self.ledger.topics[topic_index]:
            return self.ledger.fault(f"{self.name} got {number} of {key} on {topic}, which nobody sent")
        if payload != payload_of(*key, number, self.ledger.salt, lane.sizes[number]):
            return self.ledger.fault(f"{self.name} got {number} of {key} with changed bytes")
        seen = self.seen.setdefault(key, bytearray())
        seen.extend(bytes(max(0, number + 1 - len(seen))))
        seen[number] = 1

    def crash(self):
        pass

    def missing(self):
        return []


class Ledger:
    """`ttl_ms`: time to live by topic. Such messages may be missing, but must not arrive late."""

    def __init__(self, topics, publishers, salt, max_in_flight, ttl_ms=None):
        self.topics, self.salt, self.max_in_flight, self.ttl_ms = topics, salt, max_in_flight, ttl_ms or {}
        self.lanes = {(publisher, topic): Lane() for publisher in range(publishers) for topic in range(len(topics))}
        self.views = []
        self.dead = None  # the view of dead letters, if any
        self.faults, self.faults_count = [], 0
        self.sent = self.acknowledged = self.refused = 0
        self.last_ids = {}  # by publisher
        self.segment = 0  # the newest WAL segment
        self.id_most = self.id_floor = 0  # floor: the highest id acknowledged before the last crash

    def fault(self, text):
        self.faults_count += 1
        if len(self.faults) < FAULTS_KEPT:
            self.faults.append(text)

    def view(self, name, topics, members=1, kind=View):
        self.views.append(kind(self, name, topics, members))
        return self.views[-1]

    def send(self, publisher, topic, size):
        """The next number and payload of a lane."""
        lane = self.lanes[publisher, topic]
        number = len(lane.state)
        lane.state.append(SENT)
        lane.ids.append(0)
        lane.sizes.append(size)
        lane.times.append(time.monotonic())
        lane.segments.append(self.segment)
        self.sent += 1
        return number, payload_of(publisher, topic, number, self.salt, size)

    def acknowledge(self, publisher, topic, number, id_):
        lane = self.lanes[publisher, topic]
        last = max(self.last_ids.get(publisher, 0), self.id_floor)
        if id_ <= last:
            self.fault(f"publisher {publisher} got id {id_} after {last}")
        if lane.ids[number] not in (0, id_):
            self.fault(
                f"{number} of {(publisher, topic)} was delivered as {lane.ids[number]} and acknowledged as {id_}"
            )
        lane.ids[number] = id_
        lane.state[number] = ACKNOWLEDGED
        lane.acknowledged = number + 1
        self.acknowledged += 1
        self.last_ids[publisher] = id_
        self.id_most = max(self.id_most, id_)

    def crash(self):
        self.id_floor = self.id_most
        for view in self.views:
            view.crash()

    def ids_are_unique(self):
        ids = [id_ for lane in self.lanes.values() for id_ in lane.ids if id_]
        return len(ids) == len(set(ids))

    def lost(self):
        """{subscriber: [(lane, number)]} of acknowledged messages that were not delivered."""
        return {view.name: missing for view in self.views if (missing := view.missing())}
