"""The broker's state on the topics `$SYS/broker/…`, under the names that mosquitto gave them.

Invariant: nothing is gathered for it. It uses the counters that the status samples once a second.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from blipmq.version import __version__

PREFIX = "$SYS/broker/"
# topic, counter of `bq_stats_t`
COUNTERS = {
    "clients/connected": "connections",
    "subscriptions/count": "subscriptions",
    "publish/messages/received": "published",
    "publish/messages/sent": "delivered",
    "publish/bytes/received": "published_bytes",
    "bytes/sent": "delivered_bytes",
    "publish/messages/dropped": "dropped_queue_full",
    "heap/current": "memory_used_bytes",
    "heap/maximum": "memory_peak_bytes",
}


class SysTopics:
    """Publishes with `publish`. `clock`: monotonic seconds. `interval_s` may change; 0: nothing is published."""

    def __init__(self, publish: Callable[[str, bytes], None], clock: Callable[[], float], interval_s: int) -> None:
        self.interval_s = interval_s
        self._publish = publish
        self._clock = clock
        self._started = clock()
        self._published: float | None = None

    def __repr__(self) -> str:
        return f"<SysTopics interval_s={self.interval_s}>"

    def observe(self, counters: Mapping[str, int]) -> None:
        """Publish the state if it is time."""
        now = self._clock()
        # Half a second less, because samples come about once a second.
        due = self._published is None or now - self._published >= self.interval_s - 0.5
        if not self.interval_s or not due:
            return
        self._published = now
        self._tell("version", f"BlipMQ {__version__}")
        self._tell("uptime", f"{int(now - self._started)} seconds")
        for topic, counter in COUNTERS.items():
            self._tell(topic, str(counters[counter]))

    def _tell(self, topic: str, text: str) -> None:
        self._publish(PREFIX + topic, text.encode())
