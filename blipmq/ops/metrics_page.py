"""docs/METRICS.md, made from the declarations of the metrics: `python -m blipmq.ops.metrics_page > docs/METRICS.md`.

Invariant: each metric has a row, so the page lists what a broker exposes.
"""

from __future__ import annotations

from blipmq.ops.exposition import DERIVED, query
from blipmq.ops.metrics import METRICS, SESSIONS_MAX, SUBSCRIBERS_MAX


def reference() -> str:
    """The whole text of docs/METRICS.md."""
    lines = [_REFERENCE_HEAD, "", "| name | type | meaning | from |", "|---|---|---|---|"]
    for metric in METRICS:
        for index, series in enumerate(metric.series):
            name = f"`{query(metric, series)}`"
            what = metric.help if index == 0 else "″"
            if series.documented not in ("", metric.name):
                name += f"<br>also `{series.documented}`"
            lines.append(f"| {name} | {metric.type} | {what} | {_origin(series.source, metric.rows)} |")
    return "\n".join([*lines, "", _REFERENCE_TAIL, ""])


def _origin(source: str, rows: str) -> str:
    where, _, path = source.partition(".")
    origins = {
        "stats": f"core, `{path}`",
        "row": f"core, for each {rows}, `{path}`",
        "report": f"`info`, `{path}`",
        "config": f"setting `{path}`",
        "derived": f"computed: {DERIVED[path][1]}" if where == "derived" else "",
        "process": "operating system",
    }
    return origins.get(where, "broker")


_REFERENCE_HEAD = f"""\
# Metrics and health

<!-- Made from blipmq/ops/metrics.py and metrics_page.py: change it there, then run
`python -m blipmq.ops.metrics_page > docs/METRICS.md`. -->

This page lists the metrics and the health checks of a broker. `blipmq start` serves them over HTTP on `metrics.bind_addr`
(127.0.0.1:9090 by default; empty turns it off):

```sh
curl -s http://127.0.0.1:9090/metrics | grep '^blipmq_messages'
curl -s http://127.0.0.1:9090/healthz
```

| path | answer |
|---|---|
| `/metrics` | all metrics below, as Prometheus text 0.0.4 or, if `Accept` prefers it, OpenMetrics 1.0; gzip on request |
| `/livez` | 200: the event loop runs and the core's I/O thread has answered in time; 503: restart the broker |
| `/readyz` | 200: new clients are served; 503 with the reason: starting, stopping, out of descriptors |
| `/healthz` | JSON: `status` ok, degraded or failing, `live`, `ready`, `reasons`, `version`; 503 only if not live or not ready |

Use `GET` or `HEAD`, one request a connection.

A broker that drops messages of a slow subscriber is *degraded*. It still works, so `/healthz` answers 200 and has the reason;
nothing should restart it.

`packaging/monitoring/` has a Grafana dashboard and alert rules. A program that embeds a broker serves the same with `async with
Broker(...) as broker, Admin(broker, "127.0.0.1:9090"):` (`Admin` is `blipmq.Admin`); the setting `metrics.bind_addr` is for
`blipmq start`.

## How a scrape works

- A scrape asks the core one question, which the core answers between two turns.
- The {SUBSCRIBERS_MAX} subscribers with the deepest queues have series of their own, with the labels `client` (the client_id) and
  `peer`. The others are only in the totals, so the size of a scrape is bounded.
- The {SESSIONS_MAX} QoS 1 subscriptions and queue groups with the largest lag have series with the labels `key`, `client`,
  `filter` and `group`.
- Scrapes at the same time share one collection. A list of subscribers is used again for one second.
- If listing the subscribers takes too long, the scrape goes out without them, and `blipmq_scrape_incomplete` is 1.
- For each subscriber and message, at any time: enqueued = delivered + dropped + dead-lettered + waiting. A QoS 1 message waits
  until it is acknowledged, expired or a dead letter.

## Watching the WAL

| question | query |
|---|---|
| duration of a sync | `histogram_quantile(0.99, sum by (le) (rate(blipmq_log_sync_seconds_bucket[5m])))` |
| records a sync | `rate(blipmq_log_records_total[5m]) / rate(blipmq_log_sync_seconds_count[5m])` |
| bytes written in an hour | `increase(blipmq_log_written_bytes_total[1h])` |
| bytes written a message | `rate(blipmq_log_written_bytes_total[1h]) / rate(blipmq_messages_published_total[1h])` |
| records not on disk yet | `blipmq_log_next_lsn - 1 - blipmq_log_durable_lsn` |
| records that a restart would replay | `blipmq_log_next_lsn - 1 - blipmq_log_checkpoint_lsn` |

**Flash wear.** The rating of a card counts bytes, but a card writes whole pages, and each sync costs at least one page. The wear
of an hour is the larger of the bytes written and `increase(blipmq_log_sync_seconds_count[1h])` pages. With a larger
`wal.flush_interval_ms` more records share a sync, and `wal.block_bytes` keeps two syncs off the same page. QoS 0 messages are not
written, so with both kinds the bytes a message are a mean. A broker without a WAL has `blipmq_log_state` 0 and no other
`blipmq_log_*`.

## All metrics"""

_REFERENCE_TAIL = """\
## Names of version 1.0.0

Every documented name of version 1.0.0 exists. The table has the newer name with the same value where there is one. In OpenMetrics
a counter must end in `_total`, so these names are of type `unknown` there; `rate()` works on them. Series that a system does not
support are absent: `process_*` outside Linux, `blipmq_board_*` on anything but a Raspberry Pi."""


if __name__ == "__main__":
    print(reference(), end="")
