"""The two text formats that Prometheus reads, made from one snapshot of the broker: Prometheus text 0.0.4, and OpenMetrics
1.0.

Invariant: all values come from a `Snapshot`: nothing here sends requests. SUBSCRIBERS_MAX and SESSIONS_MAX bound the
size. The exposition does not use prometheus-client, which needs too much memory even if the first scrape imports it
(docs/PERFORMANCE.md, "Exposition of metrics"). The tests read every scrape with the parsers of that package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from blipmq.config.settings import Config, value_of
from blipmq.native.events import SYNC_BUCKETS
from blipmq.ops.metrics import METRICS, SESSIONS_MAX, SUBSCRIBERS_MAX, Metric, Series
from blipmq.version import __version__

LABEL_CHARS_MAX = 256

Number = int | float
_NOTHING: Mapping[str, Number] = MappingProxyType({})


class Snapshot(NamedTuple):
    """The data of one scrape. `report` is None if the subscribers were not listed in time."""

    stats: Mapping[str, int]  # bq_stats_t
    config: Config
    report: Mapping[str, Any] | None  # as INFO returns it
    state: Mapping[str, Number]  # ready, degraded
    reloads: Mapping[str, Number]  # applied, refused, ok
    process: Mapping[str, Number]  # blipmq.base.process, and started_at
    admin: Mapping[str, Number] = _NOTHING  # counters of the HTTP endpoint itself
    auth: Mapping[str, Number] = _NOTHING  # keys, file_ok, refused


# ---- the sources of values -------------------------------------------------------------------------------------------


def _batching(snapshot: Snapshot) -> float:
    delivered = snapshot.stats["delivered"]
    # Messages in flight are sent but not delivered, and redelivered ones are sent more than once.
    return max(0.0, 1 - snapshot.stats["flushes"] / delivered) if delivered else 0.0


def _pool_use(snapshot: Snapshot) -> float:
    used = snapshot.stats["memory_used_bytes"]
    return 1 - snapshot.stats["pool_free_bytes"] / used if used else 0.0


DERIVED: dict[str, tuple[Callable[[Snapshot], Number], str]] = {
    "batching": (_batching, "1 - flushes / delivered, 0 at least"),
    "pool_takes": (
        lambda snapshot: snapshot.stats["pool_hits"] + snapshot.stats["pool_misses"],
        "pool_hits + pool_misses",
    ),
    "syncs": (
        lambda snapshot: sum(snapshot.stats[name] for name in SYNC_BUCKETS),
        "the sum of log_syncs_100us to log_syncs_longer",
    ),
    "pool_use": (_pool_use, "1 - pool_free_bytes / memory_used_bytes"),
    "incomplete": (lambda snapshot: int(snapshot.report is None), "no list of subscribers"),
}


# Without a WAL, zeros would be wrong: no free space on its disk, a sync that took no time.
_OF_THE_LOG = {
    series.source
    for metric in METRICS
    for series in metric.series
    if metric.name.startswith("blipmq_log_") and series.source != "stats.log_state"
}


def _value(snapshot: Snapshot, source: str) -> Number | None:
    """The value at `source`; None if there is none now, on this machine, or for a broker without a WAL."""
    where, _, path = source.partition(".")
    if source in _OF_THE_LOG and not snapshot.stats["log_state"]:
        return None
    if where == "config":
        number: Number = value_of(snapshot.config, path)
        return number
    if where == "derived":
        return DERIVED[path][0](snapshot)
    value: Any = getattr(snapshot, where)
    for part in path.split("."):
        if value is None:
            return None
        value = value.get(part) if where != "stats" else value[part]
    return value  # type: ignore[no-any-return]


def _rows(listed: Iterable[Mapping[str, Any]], names: Mapping[str, str]) -> dict[str, Mapping[str, Number]]:
    """Rows with their own series, by their labels. `names` maps the columns that become labels to the label names. Rows
    with the same labels (in-process clients without a name) are added together."""
    rows: dict[str, Mapping[str, Number]] = {}
    for row in listed:
        labels = _labels((label, str(row[name])) for name, label in names.items())
        numbers = {name: value for name, value in row.items() if isinstance(value, int)}
        before = rows.get(labels, {})
        rows[labels] = {name: value + before.get(name, 0) for name, value in numbers.items()}
    return rows


def _all_rows(snapshot: Snapshot) -> dict[str, dict[str, Mapping[str, Number]]]:
    report = snapshot.report or {}
    subscribers = report.get("subscriptions", ())[:SUBSCRIBERS_MAX]
    sessions = report.get("sessions", {}).get("list", ())[:SESSIONS_MAX]
    return {
        "subscriber": _rows(subscribers, {"client": "client", "peer": "peer"}),
        "session": _rows(sessions, {"key": "key", "client_id": "client", "filter": "filter", "group": "group"}),
    }


# ---- the formats -----------------------------------------------------------------------------------------------------


def expose(snapshot: Snapshot, openmetrics: bool = False) -> bytes:
    """Return the exposition: Prometheus text 0.0.4, or OpenMetrics 1.0. SUBSCRIBERS_MAX and SESSIONS_MAX bound its
    size."""
    rows = _all_rows(snapshot)
    lines: list[str] = []
    for metric in METRICS:
        own = list(_samples(metric, snapshot, rows))
        if own:
            lines += _head(metric, openmetrics)
            lines += [f"{metric.name}{suffix} {_number(value)}" for suffix, value in own]
        for series in metric.series:
            if series.documented not in ("", metric.name):
                lines += _documented(metric, series, _value(snapshot, series.source), openmetrics)
    if openmetrics:
        lines.append("# EOF")
    return ("\n".join(lines) + "\n").encode()


def _samples(
    metric: Metric, snapshot: Snapshot, rows: Mapping[str, Mapping[str, Mapping[str, Number]]]
) -> Iterator[tuple[str, Number]]:
    """Yield the text after the metric's name (a histogram's suffix, the labels in braces), and the value."""
    if metric.type == "info":
        yield "{" + _labels((("version", __version__), ("python", sys.version.split()[0]))) + "}", 1
    elif metric.rows:
        for series in metric.series:
            extra = "," + _labels(series.labels) if series.labels else ""
            for labels, row in rows[metric.rows].items():
                number = row.get(series.source.removeprefix("row."))
                if number is not None:
                    yield "{" + labels + extra + "}", number if series.divisor == 1 else number / series.divisor
    else:
        below: Number = 0  # the sum of the lower buckets
        for series in metric.series:
            value = _value(snapshot, series.source)
            if value is None:
                continue
            if series.ending == "_bucket":
                value = below = below + value
            yield _suffix(series), value if series.divisor == 1 else value / series.divisor


def _head(metric: Metric, openmetrics: bool) -> list[str]:
    if not openmetrics:
        kind = "gauge" if metric.type == "info" else metric.type
        return [f"# HELP {metric.name} {_escape(metric.help, False)}", f"# TYPE {metric.name} {kind}"]
    legal = metric.type != "counter" or metric.name.endswith("_total")
    lines = [f"# TYPE {metric.family} {metric.type if legal else 'unknown'}"]
    if metric.unit:
        lines.append(f"# UNIT {metric.family} {metric.unit}")
    return [*lines, f"# HELP {metric.family} {_escape(metric.help, True)}"]


def _documented(metric: Metric, series: Series, value: Number | None, openmetrics: bool) -> list[str]:
    name = series.documented
    kind = metric.type if not openmetrics or metric.type != "counter" else "unknown"
    return [
        f"# HELP {name} The name of version 1.0.0 for {_escape(query(metric, series), openmetrics)}.",
        f"# TYPE {name} {kind}",
        f"{name} {_number(value or 0)}",
    ]


def query(metric: Metric, series: Series) -> str:
    """The series as a query names it."""
    return metric.name + _suffix(series)


def _suffix(series: Series) -> str:
    return series.ending + ("{" + _labels(series.labels) + "}" if series.labels else "")


def _number(value: Number) -> str:
    return str(int(value)) if isinstance(value, int) else repr(round(value, 6))


def _labels(labels: Iterable[tuple[str, str]]) -> str:
    return ",".join(f'{name}="{_escape(value[:LABEL_CHARS_MAX], True)}"' for name, value in labels)


def _escape(text: str, quotes: bool) -> str:
    """`text` on one line. Only the help texts of the text format do not escape quotes."""
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quotes else text
