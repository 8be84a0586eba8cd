"""The storm for expiring subscriptions and the WAL quota: the broker may drop certain messages and must report them.

Invariant: obligations follow from the observations of the clients. A subscription may end only in a run of the broker
in which no client was connected to it for `qos1.session_expiry_ms`; then all or none of its stored messages are
dropped. The quota may drop a message only if `qos1.session_log_bytes` of WAL data may have been written since.
"""

import os
import re
import time
from contextlib import suppress
from pathlib import Path

from broker_process import until
from hand_client import ACK, PUB, SUB, HelloClient, command

from crash.clients import Subscriber
from crash.ledger import ACKNOWLEDGED, HEAD, DeadLetters, View
from crash.storm import SITE, Storm

MARGIN_SECONDS = 0.1  # a client may notice the end of its connection this much later than the broker
SEGMENT_BYTES = 512 * 1024
QUOTA_BYTES = 3 * 1024 * 1024
EXPIRY_MS = 1000
NEVER = 10_000
SEGMENT_NAME = re.compile(r"wal-(\d+)\.log")
LAST_BYTES = 8000  # of each message of the final count
LAST_COUNT = 3 * QUOTA_BYTES // LAST_BYTES


class Gap:
    """A period in which a subscription may have ended."""

    def __init__(self, asked, upto, passed, must_tell):
        self.asked = asked  # by lane: acknowledged before the client subscribed again
        self.upto = upto  # by lane: sent before the SubAck arrived
        self.passed = passed  # by lane: received before
        self.must_tell = must_tell  # the run that must have logged the end, if it ended; 0: a kill may have hidden it
        self.kept = False  # an older stored message arrived

    def covers(self, key, number):
        return not self.kept and self.passed[key] <= number < self.upto[key]


class Lease(View):
    """A view whose subscription may expire after a long absence."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.away_since = None  # in this run of the broker
        self.may, self.may_ever = set(), set()  # runs in which it may have ended: since its last SubAck, and in total
        self.asked = self.passed_then = None
        self.confirmed = False
        self.passed = {}  # by lane: the last received number plus one
        self.gaps = []

    def spawned(self, now):
        if self.since:
            self.away_since, self.confirmed = now, False

    def left(self):
        self.confirmed = False
        if self.since and self.away_since is None:
            self.away_since = time.monotonic()

    def asks(self):
        if self.since and self.asked is None:
            self.asked = {key: self.ledger.lanes[key].acknowledged for key in self.since}
            self.passed_then = dict(self.passed)  # messages may arrive before the answer

    def begin(self):
        first = not self.since
        super().begin()
        if first:
            self.passed = dict(self.since)
        else:
            self._look()
            self._gap()
        self.asked = self.passed_then = self.away_since = None
        self.confirmed = True

    def crash(self):
        super().crash()
        self._look()

    def _look(self):
        away = time.monotonic() - self.away_since if self.away_since is not None else 0
        if away + MARGIN_SECONDS >= EXPIRY_MS / 1000:
            self.may.add(self.ledger.life)
            self.may_ever.add(self.ledger.life)

    def _gap(self):
        if self.may:
            upto = {key: len(self.ledger.lanes[key].state) for key in self.since}
            must_tell = self.ledger.life if self.may == {self.ledger.life} else 0
            self.gaps.append(Gap(self.asked, upto, self.passed_then, must_tell))
        self.may = set()


class Leased(Lease):
    """Missing messages are in the dead letters, were dropped with the whole subscription or, if the overflow policy is
    to drop, were over the quota."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.far = set()  # skipped when the quota may have dropped them

    def deliver(self, topic, payload, id_, redelivered):
        super().deliver(topic, payload, id_, redelivered)
        publisher, topic_index, number = HEAD.unpack_from(payload)
        key = (publisher, topic_index)
        if not self.has(key, number):
            return  # a fault
        for skipped in range(self.passed[key], number):
            if not self.has(key, skipped) and self.ledger.lies_far_behind(key, skipped):
                self.far.add((key, skipped))
        self.passed[key] = max(self.passed[key], number + 1)
        for gap in self.gaps if self.confirmed else ():
            gap.kept |= number < gap.asked[key]

    def crash(self):
        """A message that was to become a dead letter or was dropped, but whose record is not on disk, is delivered
        after later messages."""
        super().crash()
        self.last = {}

    def forget(self):
        """No message was acknowledged: each must be redelivered or have been dropped."""
        self.seen, self.last, self.passed = {}, {}, dict(self.since)
        for gap in self.gaps:
            gap.passed = dict(self.since)

    def missing(self):
        dead = self.ledger.dead
        return [
            (key, number)
            for key, number in super().missing()
            if not (dead.has(key, number) if dead else (key, number) in self.far)
            and not any(gap.covers(key, number) for gap in self.gaps)
        ]

    def ended(self):
        """The gaps in which it has ended: messages were stored, and none of them was delivered."""
        return [gap for gap in self.gaps if any(self._waited(gap, key) for key in gap.asked if not gap.kept)]

    def _waited(self, gap, key):
        state = self.ledger.lanes[key].state
        return any(
            state[number] == ACKNOWLEDGED and not self.has(key, number)
            for number in range(gap.passed[key], gap.asked[key])
        )


class Letters(Lease, DeadLetters):
    """Dead letters; the quota must be allowed to drop each of their messages."""

    def deliver(self, topic, payload, id_, redelivered):
        super().deliver(topic, payload, id_, redelivered)
        publisher, topic_index, number = HEAD.unpack_from(payload)
        if not self.ledger.lies_far_behind((publisher, topic_index), number):
            self.ledger.fault(f"{number} of {(publisher, topic_index)} is a dead letter, and within the quota")


class Stuck(Subscriber):
    """Acknowledges nothing before the end: its messages are settled only then, or become dead letters."""

    settles = False

    async def stay(self):
        if self.storm.publishing_over and not self.settles:
            self.settles, self.ack_seconds = True, 0.0
            self.view.forget()
        await super().stay()

    def due_to_leave(self):
        return self.storm.publishing_over and not self.settles


def take(client):
    """The number of the next message, acknowledged."""
    message = client.next()
    client.send(command(ACK, seq=message.id))
    return int.from_bytes(message.payload[:4], "big")


def stays(look, seconds=0.5):
    """The value of `look` once it is the same twice in a row."""
    was = None
    while (now := look()) != was:
        was = now
        time.sleep(seconds)
    return now


class LeaseStorm(Storm):
    """Expiring subscriptions, and a WAL quota with the policy `overflow`."""

    publishes = SITE
    limits = (16 * 1024,)
    large_share = 0.2
    overflow = "dead_letter"

    def __init__(self, directory, **options):
        settings = {
            "qos1.session_expiry_ms": EXPIRY_MS,
            "qos1.session_log_bytes": QUOTA_BYTES,
            "qos1.session_overflow": self.overflow,
            "qos1.max_deliveries": NEVER,
            "server.max_message_size_bytes": self.limits[0],
            "wal.segment_size_bytes": SEGMENT_BYTES,
        }
        self.segment_bytes, self.told = {}, set()  # by number: the size of each file when last seen
        super().__init__(directory, settings=settings, **options)
        self.ledger.life = 0
        self.ledger.lies_far_behind = self._lies_far_behind

    def _add_subscribers(self):
        letters = self.overflow == "dead_letter"

        def view(name, topics):
            return self.ledger.view(name, topics, kind=Leased)

        self.subscribers = [
            Subscriber(self, view("prompt", SITE), "site/#"),
            Subscriber(self, view("restless", [0, 1]), "site/a/#", leaves_after=400),
            Subscriber(self, view("slow", [3]), "site/b/state", ack_seconds=0.02),
            Stuck(self, view("stuck", [0, 2]), "site/+/temp", ack_seconds=None, leaves_after=200),
            Subscriber(self, view("lapsing", [1, 3]), "site/+/state", away_seconds=2.5, leaves_after=300),
            Subscriber(self, view("rare", [2, 3]), "site/b/#", away_seconds=5.0, leaves_after=500),
            Subscriber(self, view("crew", [0, 1]), "site/a/#", client_id="worker", group="crew", away_seconds=2.5,
                       leaves_after=200),
        ]  # fmt: skip
        self.leases = list(self.ledger.views)
        if letters:
            self.ledger.dead = self.ledger.view("dead letters", SITE, kind=Letters)
            self.leases.append(self.ledger.dead)
            self.subscribers.append(Subscriber(self, self.ledger.dead, "$dlq/#"))
        self.clients += self.subscribers

    def newest_segment(self):
        wal = Path(self.settings["wal.directory"])
        with os.scandir(wal) as files:
            for file in files:
                name = SEGMENT_NAME.fullmatch(file.name)
                if name:
                    with suppress(FileNotFoundError):  # just deleted
                        self.segment_bytes[int(name[1])] = file.stat().st_size
        return max(self.segment_bytes)

    def _lies_far_behind(self, key, number):
        """Whether the WAL data written since a message, including its file, can exceed the quota. The newest file is
        preallocated, so the message is in that file or in the previous one."""
        first, newest = self.ledger.lanes[key].segments[number] - 1, self.newest_segment()
        return sum(self.segment_bytes.get(number, 0) for number in range(first, newest + 1)) > QUOTA_BYTES

    # ---- the broker ----

    def _start(self):
        super()._start()
        self.ledger.life += 1
        now = time.monotonic()
        for lease in self.leases:
            lease.spawned(now)

    def life_seconds(self, starting):
        """One run in three is long enough for a subscription to expire."""
        return self.dice.uniform(1.1, 2.2) if self.dice.random() < 0.35 else super().life_seconds(starting)

    def life_ended(self):
        """Each subscription that the log of the finished run reports as ended must have been absent long enough."""
        views = {lease.name: lease for lease in self.leases}
        for line in self.broker.lines("session_expired"):
            view = views.get(line.get("group") or line.get("client_id"))
            if view is None:
                self.ledger.fault(f"a subscription ended that nobody has: {line}")
            elif self.ledger.life not in view.may_ever:
                self.ledger.fault(f"{view.name} has ended, and was not away for so long: {line}")
            elif view is self.ledger.dead:
                self.ledger.fault(
                    "nobody collected dead letters for so long that the storm cannot tell: a slow machine"
                )
            else:
                self.told.add((view.name, self.ledger.life))

    # ---- the end ----

    def is_drained(self):
        return all(each.settles for each in self.subscribers if isinstance(each, Stuck))

    def afterwards(self):
        """No other client is left: the end of each subscription of the storm is reported, and the quota drops an exact
        number."""
        self.life_ended()
        for lease in self.leases:
            for gap in lease.ended() if isinstance(lease, Leased) else ():
                if gap.must_tell and (lease.name, gap.must_tell) not in self.told:
                    self.ledger.fault(f"{lease.name} is gone with what waited for it, and nobody said so")
        self._all_end()
        self._quota_counts()

    def _all_end(self):
        with HelloClient(self.broker.address) as client:
            until(lambda: not [row for row in client.info()["sessions"]["list"] if row["durable"]], "all have ended")
            expired = client.info()["sessions"]["expired"]
        until(lambda: len(self.broker.lines("session_expired")) >= expired, "each end has been read from the log")
        lines = self.broker.lines("session_expired")
        if len(lines) != expired or not {line.get("group") or line.get("client_id") for line in lines} >= {
            lease.name for lease in self.leases
        }:
            self.ledger.fault(f"{expired} subscriptions have ended, and the log tells of these: {lines}")

    def _quota_counts(self):
        """A consumer that acknowledges nothing gets three quotas of messages: the oldest are dropped, and all others
        are delivered."""
        with (
            HelloClient(self.broker.address, client_id="collector") as collector,
            HelloClient(self.broker.address) as other,
        ):
            collector.ask(SUB, "$dlq/last/#", qos=1, durable=True)
            letters = []

            def over_quota():
                (row,) = [row for row in other.info()["sessions"]["list"] if row["filter"] == "last/#"]
                while self.ledger.dead and len(letters) < row["over_quota"]:
                    letters.append(take(collector))
                return row["over_quota"]

            with HelloClient(self.broker.address, client_id="last") as owner:
                owner.ask(SUB, "last/#", qos=1, durable=True)
                for number in range(LAST_COUNT):
                    payload = number.to_bytes(4, "big") + bytes(LAST_BYTES)
                    code = other.ask(PUB, "last/words", payload, qos=1).code
                    assert code == 0, f"{number} of the last was refused with {code}"
                    if number % 16 == 0:
                        over_quota()
                over = stays(over_quota)
            with HelloClient(self.broker.address, client_id="last") as owner:
                owner.ask(SUB, "last/#", qos=1, durable=True)
                came = [take(owner) for _ in range(LAST_COUNT - over)]
                owner.is_open()  # and no further message arrives
            if not 0 < over == over_quota() or came != list(range(over, LAST_COUNT)):
                self.ledger.fault(f"of {LAST_COUNT} messages {over} were over the quota, and these came: {came}")
            if letters != (list(range(over)) if self.ledger.dead else []):
                self.ledger.fault(f"of {over} messages over the quota these became dead letters: {letters}")
            dropped = other.info()["messages"]["dropped"]["session_log_bytes"]
            if self.ledger.dead is None and dropped < over:
                self.ledger.fault(f"{over} messages were dropped for the quota, and {dropped} counted")

    def figures(self, seconds):
        leased = [lease for lease in self.leases if isinstance(lease, Leased)]
        return {
            **super().figures(seconds),
            "expired": sum(len(lease.ended()) for lease in leased),
            "expired_told": len(self.told),
            "kept": sum(gap.kept for lease in leased for gap in lease.gaps),
            "over_quota": self._over_quota(leased),
        }

    def _over_quota(self, leased):
        """Messages of all subscriptions that became dead letters or were dropped."""
        if self.ledger.dead:
            return sum(map(sum, self.ledger.dead.seen.values()))
        return sum(
            self.ledger.lanes[key].state[number] == ACKNOWLEDGED and not lease.has(key, number)
            for lease in leased
            for key, number in lease.far
        )


class DroppingStorm(LeaseStorm):
    """The same with a policy that drops messages over the quota."""

    overflow = "drop"
