"""The result of a bench run, as figures and as text.

Invariant: published counts the messages given to the broker; delivered counts each message once for each subscriber,
and lost is the difference.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from blipmq.cli.latency import Latencies
from blipmq.cli.render import bytes_text, count, duration_text, printable, rate_text
from blipmq.errors import BlipMQError

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
BUSY = 0.9  # share of a processor; above it this process may limit the figures


class Result:
    def __init__(self, arguments: argparse.Namespace) -> None:
        self.publishers: int = arguments.publishers
        self.subscribers: int = arguments.subscribers
        self.topics: int = arguments.topics
        self.size_bytes: int = arguments.size
        self.rate: int | None = arguments.rate
        self.qos: int = arguments.qos
        self.wanted_messages: int | None = arguments.messages
        self.wanted_s: int = arguments.seconds
        self.published = self.received = self.again = self.refused = 0
        self.first_refusal = ""
        self.publish_s = self.deliver_s = self.cpu_share = 0.0
        self.latency, self.answered = Latencies(), Latencies()
        self.broker_drops: dict[str, int] = {}

    def refuse(self, error: BlipMQError) -> None:
        self.refused += 1
        self.first_refusal = self.first_refusal or str(error)

    def compare(self, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """Compute the drops in the broker's counters between two answers to INFO. Drops of other clients are included."""
        old, new = _drops(before), _drops(after)
        self.broker_drops = {cause: number - old.get(cause, 0) for cause, number in new.items()}

    @property
    def delivered(self) -> int:
        return self.received - self.again

    @property
    def lost(self) -> int:
        return max(self.published * self.subscribers - self.delivered, 0)

    def figures(self) -> dict[str, Any]:
        """The figures for --format json; times in seconds and milliseconds."""
        return {
            "publishers": self.publishers,
            "subscribers": self.subscribers,
            "topics": self.topics,
            "size_bytes": self.size_bytes,
            "qos": self.qos,
            "rate": self.rate,
            "published": self.published,
            "publish_s": round(self.publish_s, 3),
            "published_per_s": round(_per_s(self.published, self.publish_s), 1),
            "published_mb_per_s": round(_per_s(self.published * self.size_bytes, self.publish_s) / 1e6, 3),
            "delivered": self.delivered,
            "deliver_s": round(self.deliver_s, 3),
            "delivered_per_s": round(_per_s(self.delivered, self.deliver_s), 1),
            "delivered_mb_per_s": round(_per_s(self.delivered * self.size_bytes, self.deliver_s) / 1e6, 3),
            "lost": self.lost,
            "again": self.again,
            "refused": self.refused,
            "broker_drops": self.broker_drops,
            "latency_ms": _latency_figures(self.latency),
            "answer_ms": _latency_figures(self.answered),
            "cpu_share": round(self.cpu_share, 3),
        }


def _drops(info: Mapping[str, Any]) -> dict[str, int]:
    messages = info.get("messages")
    dropped = messages.get("dropped") if isinstance(messages, Mapping) else None
    if not isinstance(dropped, Mapping):
        return {}
    return {str(cause): number for cause, number in dropped.items() if isinstance(number, int)}


def _per_s(amount: float, seconds: float) -> float:
    return amount / seconds if seconds > 0 else 0.0


def _latency_figures(latencies: Latencies) -> dict[str, float] | None:
    if not latencies.count:
        return None
    figures = {f"p{percent:g}": latencies.percentile_ns(percent) for percent in PERCENTILES}
    return {name: round(ns / 1e6, 4) for name, ns in {**figures, "max": latencies.most_ns}.items()}


# ---- text ------------------------------------------------------------------------------------------------------------


def render_progress(result: Result, elapsed_s: float, *, fancy: bool) -> str:
    """One line with the progress."""
    if result.wanted_messages is not None:
        share, goal = result.published / result.wanted_messages, f"{result.wanted_messages:,}"
    else:
        share, goal = elapsed_s / result.wanted_s, f"{result.wanted_s} s"
    published = f"{rate_text(_per_s(result.published, result.publish_s or elapsed_s))}/s"  # over the publishing time
    delivered = f"{rate_text(_per_s(result.delivered, elapsed_s))}/s"
    line = f"{min(share, 1.0):4.0%} of {goal}  {elapsed_s:.1f} s  published {published}  delivered {delivered}"
    if result.latency.count:
        line += f"  p99 {_ms_text(result.latency.percentile_ns(99.0))}"
    return f"📊 {line}" if fancy else line


def render_result(result: Result, *, json: bool, fancy: bool) -> bytes:
    if json:
        from json import dumps  # imported here because only JSON output needs it

        return (dumps(result.figures()) + "\n").encode()
    rows = list(_rows(result))
    width = max(len(label) for label, _ in rows)
    head = "📊 " if fancy else ""
    lines = [f"{head}{_what(result)}", *(f"{label:<{width}}  {text}" for label, text in rows)]
    return ("\n".join(lines) + "\n").encode("utf-8", "backslashreplace")


def _what(result: Result) -> str:
    rate = f"{result.rate:,} a second planned" if result.rate else "as fast as possible"
    return (
        f"{count(result.publishers, 'publisher')}, {count(result.subscribers, 'subscriber')}, "
        f"{count(result.topics, 'topic')}, {bytes_text(result.size_bytes)} each, QoS {result.qos}, {rate}"
    )


def _rows(result: Result) -> Iterator[tuple[str, str]]:
    yield "Published", _flow(result.published, result.size_bytes, result.publish_s)
    if result.subscribers:
        yield "Delivered", _flow(result.delivered, result.size_bytes, result.deliver_s)
        wanted = result.published * result.subscribers
        yield "Lost", f"{result.lost:,} of {wanted:,} ({result.lost / wanted:.2%})" if result.lost else "none"
    if result.again:
        yield "Sent again", f"{result.again:,}"
    if result.refused:
        yield "Refused", f"{result.refused:,}; the first: {printable(result.first_refusal.encode())}"
    yield "Broker dropped", _drops_text(result.broker_drops)
    if result.latency.count:
        yield "Latency", _latency_text(result.latency)
        yield "", "from the planned send time to the read" if result.rate else "from sending to reading"
    if result.answered.count:
        yield "Confirmed after", _latency_text(result.answered)
    if result.cpu_share > BUSY:
        yield (
            "Note",
            f"the load test itself used {result.cpu_share:.0%} of a processor; the broker may be faster than shown",
        )


def _flow(messages: int, size_bytes: int, seconds: float) -> str:
    mb_per_s = _per_s(messages * size_bytes, seconds) / 1e6
    per_s = _per_s(messages, seconds)
    time_text = f"{seconds:.1f} seconds" if seconds < 60 else duration_text(seconds)
    return f"{count(messages, 'message')} in {time_text}: {per_s:,.0f} a second, {mb_per_s:,.2f} MB/s"


def _drops_text(drops: Mapping[str, int]) -> str:
    names = {"ttl": "expired", "queue_full": "queue full", "disconnect": "disconnected"}
    parts = [f"{names.get(cause, printable(cause.encode()))} {number:,}" for cause, number in drops.items() if number]
    return ", ".join(parts) if parts else "nothing" if drops else "not reported"


def _latency_text(latencies: Latencies) -> str:
    parts = [f"p{percent:g} {_ms_text(latencies.percentile_ns(percent))}" for percent in PERCENTILES]
    return "   ".join([*parts, f"max {_ms_text(latencies.most_ns)}"])


def _ms_text(ns: int) -> str:
    """0.04 ms, 3.2 ms, 450 ms, 1.50 s."""
    ms = ns / 1e6
    if ms >= 1000:
        return f"{ms / 1000:.2f} s"
    return f"{ms:.2f} ms" if ms < 1 else f"{ms:.1f} ms" if ms < 100 else f"{ms:.0f} ms"
