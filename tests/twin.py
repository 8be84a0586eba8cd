"""Reference model of the broker: slow and simple; it defines the behaviour of the C core.

A message goes once to each client with a matching filter. A reading client receives it at once. Another client has a
queue with two limits and a policy at the limits: drop_oldest, drop_new, or block, which pauses the publisher. A message
is removed when its time to live is over, in whole ticks. Every queued message is counted once when it is removed.

Invariant: `enqueued = delivered + dropped_ttl + dropped_queue_full + dropped_disconnect + queued`, always. Time is an
argument.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

from stepped import Overflow

from blipmq.native.config import CoreConfig
from blipmq.wire import topics
from blipmq.wire.frames import Message


class Publish(NamedTuple):
    topic: str
    payload: bytes
    ttl_ms: int


class Queued(NamedTuple):
    message: Message
    size: int
    tick: int  # it is expired from this tick on; 0: never


def message_bytes(topic: str, payload: bytes) -> int:
    """The size of a message on the wire: length and type, table, topic with its NUL padded to four, payload with its
    length."""
    return 5 + (56 + 4 + len(topic.encode()) + 1 + 3) // 4 * 4 + 4 + len(payload)


@dataclass
class TwinClient:
    filters: set[str] = field(default_factory=set)
    reading: bool = True
    gone: bool = False  # closing: still routed to until its end has released everything, but it gets no messages
    queue: deque[Queued] = field(default_factory=deque)
    messages: list[Message] = field(default_factory=list)
    held: deque[Publish] = field(default_factory=deque)  # its own pending publishes while a full queue blocks it
    enqueued: int = 0
    delivered: int = 0
    dropped_ttl: int = 0
    dropped_queue_full: int = 0

    @property
    def queued_bytes(self) -> int:
        return sum(queued.size for queued in self.queue)

    def wants(self, topic: str) -> bool:
        return any(topics.match(filter, topic) for filter in self.filters)


class Twin:
    """Clients have names; each method is one event with its consequences at `now_ms`."""

    def __init__(self, config: CoreConfig, now_ms: int, wall_offset_ms: int) -> None:
        self.config = config
        self.now_ms = now_ms
        self.wall_offset_ms = wall_offset_ms
        self.clients: dict[str, TwinClient] = {}
        self.waiting: dict[str, list[str]] = {}  # a full client: the publishers that it blocks, in order
        self.frames = 0
        self.published = 0
        self.published_bytes = 0
        self.unrouted = 0
        self.pauses = 0
        self.dropped_disconnect = 0
        self._closed: list[TwinClient] = []

    # -- client actions

    def attach(self, name: str) -> None:
        self.clients[name] = TwinClient()

    def subscribe(self, name: str, filter: str) -> None:
        self.frames += 1
        self.clients[name].filters.add(filter)

    def unsubscribe(self, name: str, filter: str) -> None:
        self.frames += 1
        if filter in self.clients[name].filters:
            self.clients[name].filters.discard(filter)
            self._wake(name)  # its full queue may no longer block publishers

    def publish(self, name: str, batch: list[Publish]) -> None:
        """A blocked publisher queues everything it sends, so its messages keep their order."""
        self.clients[name].held.extend(batch)
        if not self.is_held_back(name):
            self._go_on(name)

    def stall(self, name: str) -> None:
        self.clients[name].reading = False

    def read(self, name: str) -> None:
        client = self.clients[name]
        client.reading = True
        while client.queue:
            self._deliver(client, client.queue.popleft().message)
        self._wake(name)

    def close(self, name: str) -> None:
        """The end of a publisher does not withdraw its messages; the end of a subscriber drops its unread messages."""
        client = self.clients[name]
        client.gone = True
        self.dropped_disconnect += len(client.queue)
        client.queue.clear()
        self._closed.append(client)
        for waiting in self.waiting.values():
            if name in waiting:
                waiting.remove(name)
        self._wake(name)
        del self.clients[name]

    # -- events

    def advance(self, ms: int) -> None:
        self.now_ms += ms
        now_tick = self.now_ms // self.config.tick_ms
        for name, client in list(self.clients.items()):
            alive = [queued for queued in client.queue if not 0 < queued.tick <= now_tick]
            expired = len(client.queue) - len(alive)
            client.dropped_ttl += expired
            client.queue = deque(alive)
            if expired and self._has_room_again(client):
                self._wake(name)

    def reload(self, config: CoreConfig) -> None:
        """New limits apply to new messages; a queue over its new limit keeps its messages. All blocked publishers are
        checked again."""
        self.config = config
        self._wake(*self.waiting)

    # -- rules

    def _go_on(self, name: str) -> None:
        publisher = self.clients[name]
        while publisher.held:
            publish = publisher.held[0]
            targets = {key: client for key, client in self.clients.items() if client.wants(publish.topic)}
            size = message_bytes(publish.topic, publish.payload)
            if self.config.overflow_policy == Overflow.BLOCK:
                full = [key for key, client in targets.items() if self._is_full(client, size)]
                if full:
                    self.pauses += 1
                    self.waiting.setdefault(full[0], []).append(name)
                    return
            publisher.held.popleft()
            self._accept(publish, list(targets.values()), size)

    def _accept(self, publish: Publish, targets: list[TwinClient], size: int) -> None:
        self.frames += 1
        self.published += 1
        self.published_bytes += len(publish.payload)
        self.unrouted += not targets
        ttl_ms = min(publish.ttl_ms or self.config.default_ttl_ms, self.config.max_ttl_ms)
        tick = -(-(self.now_ms + ttl_ms) // self.config.tick_ms) if ttl_ms else 0  # rounded up: it never expires early
        wall_ms = self.now_ms + self.wall_offset_ms
        message = Message(self.published, publish.topic, publish.payload, wall_ms, ttl_ms, 0, False)
        for client in targets:
            self._give(client, Queued(message, size, tick))

    def _give(self, client: TwinClient, queued: Queued) -> None:
        if client.gone:
            return
        client.enqueued += 1
        if client.reading:
            self._deliver(client, queued.message)
            return
        while self.config.overflow_policy == Overflow.DROP_OLDEST and not self._fits(client, queued.size):
            client.queue.popleft()
            client.dropped_queue_full += 1
        if self._fits(client, queued.size):
            client.queue.append(queued)
        else:
            client.dropped_queue_full += 1

    def _deliver(self, client: TwinClient, message: Message) -> None:
        client.delivered += 1
        client.messages.append(message)

    def _is_full(self, client: TwinClient, size: int) -> bool:
        return not client.reading and not client.gone and not self._fits(client, size)

    def _fits(self, client: TwinClient, size: int) -> bool:
        """Both limits hold, but an empty queue accepts one message of any size."""
        if len(client.queue) + 1 > self.config.subscriber_messages:
            return False
        return client.queued_bytes + size <= self.config.subscriber_bytes or not client.queue

    def _has_room_again(self, client: TwinClient) -> bool:
        """Publishers resume at three quarters, so that they do not stop and resume for every message."""
        config = self.config
        few = len(client.queue) <= config.subscriber_messages // 4 * 3
        return few and client.queued_bytes <= config.subscriber_bytes // 4 * 3

    def _wake(self, *full: str) -> None:
        for publisher in [name for key in full for name in self.waiting.pop(key, [])]:
            self._go_on(publisher)

    # -- observable state

    def is_held_back(self, name: str) -> bool:
        return any(name in waiting for waiting in self.waiting.values())

    def counters(self) -> dict[str, int]:
        everyone = [*self.clients.values(), *self._closed]
        return {
            "frames_in": self.frames,
            "published": self.published,
            "published_bytes": self.published_bytes,
            "unrouted": self.unrouted,
            "enqueued": sum(client.enqueued for client in everyone),
            "delivered": sum(client.delivered for client in everyone),
            "dropped_ttl": sum(client.dropped_ttl for client in everyone),
            "dropped_queue_full": sum(client.dropped_queue_full for client in everyone),
            "dropped_disconnect": self.dropped_disconnect,
            "queued_messages": sum(len(client.queue) for client in everyone),
            "queued_bytes": sum(client.queued_bytes for client in everyone),
            "last_message_id": self.published,
            "connections": len(self.clients),
            "subscriptions": sum(len(client.filters) for client in self.clients.values()),
            "filters": len({filter for client in self.clients.values() for filter in client.filters}),
            "blocked_publishers": sum(len(waiting) for waiting in self.waiting.values()),
            "blocked_pauses": self.pauses,
        }
