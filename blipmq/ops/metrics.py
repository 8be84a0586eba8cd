"""The metrics of a broker, each declared once, and the two text formats that Prometheus reads.

Invariant: a name below is always exposed with the same type and help text, whatever the state of the broker. The
exposition and docs/METRICS.md are both derived from METRICS. All values come from a `Snapshot`: nothing here sends
requests. The documented names of version 1.0.0 are counters without `_total`. The text format allows that; in
OpenMetrics they are of type `unknown`. No newer name is a documented one plus `_total`, because some readers add that
themselves. The formats: Prometheus text 0.0.4, and OpenMetrics 1.0. The exposition does not use prometheus-client,
which needs too much memory even if the first scrape imports it (docs/PERFORMANCE.md, "Exposition of metrics"). The
tests read every scrape with the parsers of that package.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from blipmq.config.settings import Config, value_of
from blipmq.native.events import SYNC_BUCKETS
from blipmq.net.admission_log import REFUSED
from blipmq.version import __version__

# Subscribers with their own series: those with the deepest queues. The totals include all.
SUBSCRIBERS_MAX = 50
# QoS 1 subscriptions and queue groups with their own series: those with the largest lag.
SESSIONS_MAX = 20
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


class Series(NamedTuple):
    """One series of a metric. `source` is the origin of its value: `stats.NAME`, `report.NAME.NAME`,
    `config.SECTION.KEY` … `documented` is a name of version 1.0.0 under which the value is exposed as well. `ending` is
    the suffix of a series of a histogram; the source of a `_bucket` counts only that bucket, without the lower ones.
    `divisor` converts to base units.
    """

    source: str
    labels: tuple[tuple[str, str], ...] = ()
    documented: str = ""
    ending: str = ""
    divisor: int = 1


class Metric(NamedTuple):
    """One metric, with the name used in queries: a counter's ends in `_total` unless documented, an info's in `_info`."""

    name: str
    type: str  # counter, gauge, histogram or info
    help: str
    series: tuple[Series, ...]
    rows: str = ""  # one series for each "subscriber" or "session"; "": one for the broker

    @property
    def family(self) -> str:
        """The name in OpenMetrics, which adds the suffix of counters and infos itself."""
        ending = {"counter": "_total", "info": "_info"}.get(self.type, "")
        return self.name.removesuffix(ending) if ending else self.name

    @property
    def unit(self) -> str:
        """The base unit at the end of the name, which OpenMetrics requires; "" for plain counts."""
        return next((unit for unit in _UNITS if self.family.endswith("_" + unit)), "")


_UNITS = ("bytes", "seconds", "ratio", "celsius")


def _counter(name: str, help: str, *series: Series | str) -> Metric:
    return Metric(name, "counter", help, _series(series))


def _gauge(name: str, help: str, *series: Series | str) -> Metric:
    return Metric(name, "gauge", help, _series(series))


def _of_each(name: str, type: str, help: str, *series: Series | str) -> Metric:
    return Metric(name, type, help, _series(series), rows="subscriber")


def _of_session(name: str, help: str, *series: Series | str) -> Metric:
    return Metric(name, "gauge", help, _series(series), rows="session")


def _seconds_of(source: str, ending: str = "") -> Series:
    """A series that the core counts in microseconds."""
    return Series(source, ending=ending, divisor=1_000_000)


def _bucket(le: str, source: str) -> Series:
    return Series(source, (("le", le),), ending="_bucket")


def _series(series: Iterable[Series | str]) -> tuple[Series, ...]:
    return tuple(Series(s) if isinstance(s, str) else s for s in series)


def _by(label: str, value: str, source: str, documented: str = "") -> Series:
    return Series(source, ((label, value),), documented)


# ---- the metrics ----------------------------------------------------------------------------------------------------

METRICS: tuple[Metric, ...] = (
    Metric(
        "blipmq_build_info", "info", "Version of the broker and of the Python under it; always 1.", (Series("build"),)
    ),
    _gauge("blipmq_ready", "1: new clients are served, see /readyz.", "state.ready"),
    _gauge("blipmq_degraded", "1: the broker is degraded; /healthz has the reasons.", "state.degraded"),
    _counter(
        "blipmq_config_reloads_total",
        "Changed configurations, by whether they were applied or refused.",
        _by("result", "applied", "reloads.applied"),
        _by("result", "refused", "reloads.refused"),
    ),
    _gauge("blipmq_config_last_reload_successful", "0: the last changed configuration was refused.", "reloads.ok"),
    # authentication
    _gauge("blipmq_keys", "Keys in effect; 0: the broker asks for none, or admits nobody.", "auth.keys"),
    _gauge(
        "blipmq_keys_file_ok",
        "0: the key file cannot be read or is not valid, and older keys stay in effect.",
        "auth.file_ok",
    ),
    _counter("blipmq_logins_refused_total", "Clients refused because their key is missing or unknown.", "auth.refused"),
    _counter(
        "blipmq_publishes_refused_total",
        "Publishes refused, by reason.",
        _by("reason", "not_allowed", "stats.publishes_not_allowed"),
    ),
    # messages
    _counter(
        "blipmq_messages_published_total",
        "Publishes accepted.",
        Series("stats.published", documented="blipmq_published"),
    ),
    _counter("blipmq_messages_unrouted_total", "Publishes accepted without a subscriber.", "stats.unrouted"),
    _counter(
        "blipmq_messages_enqueued_total",
        "Messages put into subscribers' queues, counted for each subscriber.",
        Series("stats.enqueued", documented="blipmq_enqueued"),
    ),
    _counter(
        "blipmq_messages_delivered_total",
        "QoS 0: messages handed to the kernel; QoS 1: messages acknowledged.",
        "stats.delivered",
    ),
    _counter(
        "blipmq_messages_dropped_total",
        "Messages that left a queue undelivered, by reason: expired, queue full, connection ended, quota of the subscription.",
        _by("reason", "ttl", "stats.dropped_ttl", "blipmq_dropped_ttl"),
        _by("reason", "queue_full", "stats.dropped_queue_full", "blipmq_dropped_sub_queue_full"),
        _by("reason", "disconnect", "stats.dropped_disconnect"),
        _by("reason", "session_log_bytes", "stats.dropped_session_log"),
    ),
    _counter(
        "blipmq_payload_published_bytes_total", "Bytes of the payloads of accepted publishes.", "stats.published_bytes"
    ),
    _counter("blipmq_frames_received_total", "Complete frames received.", "stats.frames_in"),
    _counter(
        "blipmq_frames_bad_total", "Frames refused because they are not valid or not allowed.", "stats.frames_bad"
    ),
    _gauge("blipmq_last_message_id", "Id of the newest message.", "stats.last_message_id"),
    # QoS 1
    _counter("blipmq_messages_acknowledged_total", "QoS 1 deliveries acknowledged.", "stats.acked"),
    _counter(
        "blipmq_messages_redelivered_total",
        "QoS 1 messages sent again: not acknowledged in time, or their connection ended.",
        "stats.redelivered",
    ),
    _counter(
        "blipmq_messages_dead_lettered_total",
        "QoS 1 messages that became dead letters after qos1.max_deliveries or over qos1.session_log_bytes: published to "
        "`$dlq/<topic>` if it has a subscriber.",
        "stats.dead_lettered",
    ),
    _counter(
        "blipmq_messages_dead_lettered_unclaimed_total",
        "Dead letters without a QoS 1 subscriber: they were discarded.",
        "stats.dead_letters_unclaimed",
    ),
    _counter(
        "blipmq_messages_dead_lettered_dropped_total",
        "Dead letters discarded because a full WAL had no room for them in half a minute.",
        "stats.dead_letters_dropped",
    ),
    _gauge("blipmq_messages_in_flight", "QoS 1 messages sent and not acknowledged yet.", "stats.in_flight"),
    _gauge(
        "blipmq_sessions",
        "QoS 1 subscriptions and queue groups, durable ones of absent clients included.",
        "stats.sessions",
    ),
    _gauge(
        "blipmq_sessions_behind",
        "QoS 1 subscriptions and groups whose next messages are only in the WAL, because they are absent or slow.",
        "stats.sessions_behind",
    ),
    _gauge(
        "blipmq_sessions_unread",
        "QoS 1 subscriptions and groups whose last read from the WAL failed. The broker retries at growing intervals.",
        "stats.sessions_unread",
    ),
    _gauge(
        "blipmq_sessions_absent",
        "Durable subscriptions and groups without a connection: their messages stay in the WAL.",
        "stats.sessions_absent",
    ),
    _gauge(
        "blipmq_sessions_lag_messages",
        "Messages that QoS 1 subscriptions and queue groups have not acknowledged, counted for each. Absent after an "
        "incomplete scrape.",
        "report.sessions.lag_messages",
    ),
    _gauge(
        "blipmq_sessions_lag_bytes",
        "Bytes of these unacknowledged messages as sent. Absent after an incomplete scrape.",
        "report.sessions.lag_bytes",
    ),
    _of_session(
        "blipmq_session_lag_messages", "Messages that this subscription has not acknowledged.", "row.lag_messages"
    ),
    _of_session("blipmq_session_lag_bytes", "Bytes of these messages as sent.", "row.lag_bytes"),
    _of_session(
        "blipmq_session_log_bytes",
        "Bytes of the WAL from its oldest message on: the WAL cannot shrink below this.",
        "row.log_bytes",
    ),
    _of_session(
        "blipmq_session_oldest_seconds",
        "Age of its oldest message. Absent if it is not known.",
        Series("row.oldest_ms", divisor=1000),
    ),
    _of_session("blipmq_session_connections", "Its connections; 0: its client is away.", "row.connected"),
    _of_session("blipmq_session_in_flight", "Messages sent and not acknowledged yet.", "row.in_flight"),
    _counter(
        "blipmq_sessions_refused_total",
        "QoS 1 subscriptions refused, by limit.",
        _by("reason", "max_sessions", "stats.sessions_refused"),
        _by("reason", "max_sessions_per_key", "stats.sessions_refused_key"),
    ),
    _counter(
        "blipmq_sessions_over_quota_total",
        "Messages over qos1.session_log_bytes, dropped or made dead letters.",
        "stats.over_session_log",
    ),
    _counter(
        "blipmq_sessions_expired_total",
        "Durable subscriptions that ended because nobody was connected to them for qos1.session_expiry_ms.",
        "stats.sessions_expired",
    ),
    # the WAL
    _gauge(
        "blipmq_log_state", "State of the WAL; 0: there is none, 1: working, 2: full, 3: failed.", "stats.log_state"
    ),
    _gauge("blipmq_log_errno", "errno with which the WAL failed; 0: none.", "stats.log_errno"),
    _gauge("blipmq_log_bytes", "Allocated size of all files of the WAL.", "stats.log_bytes"),
    _gauge("blipmq_log_limit_bytes", "Size at which the WAL is full.", "config.wal.max_bytes"),
    _gauge("blipmq_log_segments", "Segment files of the WAL.", "stats.log_segments"),
    _gauge(
        "blipmq_log_free_bytes",
        "Free space on the file system of the WAL when the WAL last allocated.",
        "stats.log_free_bytes",
    ),
    _gauge(
        "blipmq_log_reserve_bytes",
        "Free space on that file system that publishes do not use.",
        "config.wal.reserve_bytes",
    ),
    _gauge("blipmq_log_next_lsn", "LSN (position in the WAL) of the next record.", "stats.log_next_lsn"),
    _gauge("blipmq_log_durable_lsn", "LSN of the newest synced record.", "stats.log_durable_lsn"),
    _gauge(
        "blipmq_log_checkpoint_lsn",
        "LSN of the newest checkpoint; a restart replays from here.",
        "stats.log_checkpoint_lsn",
    ),
    _gauge("blipmq_log_held", "Publishes and answers that wait for the disk.", "stats.held"),
    _counter(
        "blipmq_log_records_total", "Records written: publishes, acknowledgements, subscriptions.", "stats.log_records"
    ),
    _counter(
        "blipmq_log_written_bytes_total",
        "Bytes written to the segments of the WAL, with padding, without checkpoints: the wear of flash.",
        "stats.log_written_bytes",
    ),
    _counter(
        "blipmq_log_reclaimed_segments_total",
        "Segment files deleted because no subscription needs them.",
        "stats.log_reclaimed_segments",
    ),
    _counter(
        "blipmq_log_read_bytes_total",
        "Bytes read from the WAL for subscribers that are behind.",
        "stats.log_read_bytes",
    ),
    _counter(
        "blipmq_log_read_failures_total",
        "Reads for subscribers that are behind which failed for want of disk or memory.",
        "stats.log_read_failures",
    ),
    _counter(
        "blipmq_log_lost_records_total", "Records that could not be read back for a subscriber.", "stats.lost_lsns"
    ),
    Metric(
        "blipmq_log_sync_seconds",
        "histogram",
        "Duration of a sync of the WAL. One sync covers all records that have gathered; a publish waits for one or two.",
        (
            _bucket("0.0001", "stats.log_syncs_100us"),
            _bucket("0.0003", "stats.log_syncs_300us"),
            _bucket("0.001", "stats.log_syncs_1ms"),
            _bucket("0.003", "stats.log_syncs_3ms"),
            _bucket("0.01", "stats.log_syncs_10ms"),
            _bucket("0.03", "stats.log_syncs_30ms"),
            _bucket("0.1", "stats.log_syncs_100ms"),
            _bucket("+Inf", "stats.log_syncs_longer"),
            Series("derived.syncs", ending="_count"),
            _seconds_of("stats.log_sync_us_total", "_sum"),
        ),
    ),
    _gauge("blipmq_log_sync_last_seconds", "Duration of the last sync.", _seconds_of("stats.log_sync_us_last")),
    _gauge("blipmq_log_sync_max_seconds", "The longest sync since the start.", _seconds_of("stats.log_sync_us_max")),
    # delivery
    _counter(
        "blipmq_flushes_total",
        "Sends to one subscriber with at least one message.",
        Series("stats.flushes", documented="blipmq_flush_batches"),
    ),
    _counter(
        "blipmq_sent_bytes_total",
        "Bytes handed to the kernel for clients: messages, acknowledgements, replies.",
        Series("stats.delivered_bytes", documented="blipmq_flush_bytes"),
    ),
    _gauge(
        "blipmq_batch_processing_efficiency",
        "Share of sends that batching has saved since the start; 0: one send a message, 0.99: a hundred messages a send.",
        Series("derived.batching", documented="blipmq_batch_processing_efficiency"),
    ),
    _gauge("blipmq_queue_messages", "Messages waiting in all subscribers' queues.", "stats.queued_messages"),
    _gauge("blipmq_queue_bytes", "Encoded bytes waiting in all subscribers' queues.", "stats.queued_bytes"),
    _gauge(
        "blipmq_queue_limit_messages", "Messages that may wait for one subscriber.", "config.queues.subscriber_capacity"
    ),
    _gauge("blipmq_queue_limit_bytes", "Bytes that may wait for one subscriber.", "config.queues.subscriber_bytes"),
    _counter(
        "blipmq_publisher_pauses_total", "Times a publisher was held back by a full queue.", "stats.blocked_pauses"
    ),
    _gauge("blipmq_publishers_blocked", "Publishers held back now.", "stats.blocked_publishers"),
    # connections and subscriptions
    _gauge("blipmq_connections", "Connections open.", "stats.connections"),
    _gauge("blipmq_connections_max", "Connections that may be open at once.", "config.server.max_connections"),
    _counter("blipmq_connections_accepted_total", "Connections accepted.", "stats.accepted"),
    _counter(
        "blipmq_connections_refused_total",
        "Connections refused, by limit; max_pending includes those closed to make room for newer ones.",
        *(_by("reason", cause, f"stats.{counter}") for cause, counter in REFUSED.items()),
        _by("reason", "max_connections_per_key", "auth.over_limit"),
    ),
    _gauge(
        "blipmq_connections_pending",
        "Connections that are not admitted yet: in a TLS handshake, or before HELLO with a key.",
        "stats.pending",
    ),
    _gauge("blipmq_connections_pending_max", "Limit of pending connections.", "config.limits.max_pending"),
    _counter(
        "blipmq_connections_hello_timeouts_total",
        "Connections closed because they were not admitted within limits.hello_timeout_ms.",
        "stats.hello_timeouts",
    ),
    _counter(
        "blipmq_accept_rests_total",
        "Times the listeners paused because connections came faster than limits.accept_rate.",
        "stats.accept_rests",
    ),
    _counter(
        "blipmq_connections_lost_total",
        "Connections of lost clients. vanished: the machine does not answer; silent: the client did not send anything in the "
        "interval that it promised with keepalive_ms.",
        _by("cause", "vanished", "stats.closed_vanished"),
        _by("cause", "silent", "stats.closed_silent"),
    ),
    _counter("blipmq_connections_closed_total", "Connections that ended.", "stats.closed"),
    _gauge(
        "blipmq_subscriptions",
        "Subscriptions, counted once for each connection and filter, and durable ones of absent clients.",
        "stats.subscriptions",
    ),
    _gauge("blipmq_filters", "Distinct filters subscribed to.", "stats.filters"),
    _gauge(
        "blipmq_subscribers",
        "Connections with subscriptions. Absent after an incomplete scrape.",
        "report.subscribers.total",
    ),
    _gauge(
        "blipmq_subscribers_blocked",
        "Subscribers that do not read: their socket is full. Absent after an incomplete scrape.",
        "report.subscribers.blocked",
    ),
    _of_each(
        "blipmq_subscriber_queue_messages", "gauge", "Messages waiting for this subscriber.", "row.queued_messages"
    ),
    _of_each(
        "blipmq_subscriber_queue_bytes", "gauge", "Encoded bytes waiting for this subscriber.", "row.queued_bytes"
    ),
    _of_each(
        "blipmq_subscriber_blocked", "gauge", "1: this subscriber does not read, its socket is full.", "row.blocked"
    ),
    _of_each(
        "blipmq_subscriber_enqueued_total", "counter", "Messages put into this subscriber's queue.", "row.enqueued"
    ),
    _of_each(
        "blipmq_subscriber_delivered_total",
        "counter",
        "Messages handed to the kernel for this subscriber.",
        "row.delivered",
    ),
    _of_each(
        "blipmq_subscriber_dropped_total",
        "counter",
        "Messages dropped for this subscriber.",
        _by("reason", "ttl", "row.dropped_ttl"),
        _by("reason", "queue_full", "row.dropped_queue_full"),
    ),
    # routing
    _gauge(
        "blipmq_route_cache_topics",
        "Topics in the routing cache, at most limits.route_cache_entries. The number of topics in use is not known.",
        "stats.cached_topics",
    ),
    _counter(
        "blipmq_route_lookups_total",
        "Lookups of the subscribers of a topic, by whether the cache had them.",
        _by("result", "hit", "stats.route_hits"),
        _by("result", "miss", "stats.route_misses"),
    ),
    # timers
    _counter(
        "blipmq_timers_armed_total",
        "Timers started: times to live and time limits of connections.",
        Series("stats.wheel_insertions", documented="blipmq_timer_wheel_insertions"),
    ),
    _counter(
        "blipmq_timers_expired_total",
        "Timers that expired.",
        Series("stats.wheel_expirations", documented="blipmq_timer_wheel_expirations"),
    ),
    _counter(
        "blipmq_timers_cascaded_total",
        "Timers moved to a finer level of the timer wheel.",
        Series("stats.wheel_cascades", documented="blipmq_timer_wheel_cascades"),
    ),
    # memory
    _gauge(
        "blipmq_memory_used_bytes",
        "Memory that the core has allocated, with the free blocks that it keeps.",
        "stats.memory_used_bytes",
    ),
    _gauge("blipmq_memory_free_bytes", "Free blocks that the core keeps for reuse.", "stats.pool_free_bytes"),
    _gauge("blipmq_memory_peak_bytes", "Highest value of blipmq_memory_used_bytes.", "stats.memory_peak_bytes"),
    _gauge("blipmq_memory_budget_bytes", "Memory that the core may use; 0: no limit.", "config.limits.memory_bytes"),
    _gauge(
        "blipmq_memory_pool_utilization",
        "Share of the core's memory in use; the rest is free blocks kept for reuse.",
        Series("derived.pool_use", documented="blipmq_memory_pool_utilization"),
    ),
    _counter(
        "blipmq_pool_takes_total",
        "Blocks allocated from the memory pools, by source: a kept block (hit) or the system's allocator (miss).",
        _by("result", "hit", "stats.pool_hits", "blipmq_pool_cache_hits"),
        _by("result", "miss", "stats.pool_misses", "blipmq_pool_cache_misses"),
    ),
    # No newer name: it is the sum of hits and misses.
    _counter(
        "blipmq_pool_allocations",
        "Blocks allocated from the memory pools, hits and misses.",
        Series("derived.pool_takes", documented="blipmq_pool_allocations"),
    ),
    _gauge("blipmq_segments", "Buffers with messages that somebody waits for, and the open one.", "stats.segments"),
    _counter(
        "blipmq_segment_compacted_bytes_total",
        "Bytes copied out of buffers that slow queues kept alive.",
        "stats.compacted_bytes",
    ),
    # the core and the machine
    _counter("blipmq_core_work_units_total", "Work of the core in units of about 50 ns.", "stats.work"),
    _counter(
        "blipmq_core_share_stops_total",
        "Times a client had used its share of a turn and had to wait for others.",
        "stats.share_stops",
    ),
    _counter("blipmq_core_turns_total", "Turns of the I/O thread.", "stats.turns"),
    _gauge(
        "blipmq_disk_free_bytes",
        "Free space on the file system of the WAL; without a WAL, of the working directory.",
        "report.disk_free_bytes",
    ),
    _gauge(
        "blipmq_board_temperature_celsius",
        "Temperature of a Raspberry Pi's processor.",
        "report.hardware.temperature_c",
    ),
    # TLS; absent without it
    _gauge("blipmq_tls_connections", "Connections over TLS whose handshake is done.", "report.tls.connections"),
    _gauge(
        "blipmq_tls_handshakes_pending",
        "TLS handshakes in progress, and failed ones being closed.",
        "report.tls.pending",
    ),
    _counter(
        "blipmq_tls_handshakes_total",
        "TLS handshakes, by result: done, failed (the log has the reason), refused (too many in progress).",
        _by("result", "done", "report.tls.handshakes.done"),
        _by("result", "failed", "report.tls.handshakes.failed"),
        _by("result", "refused", "report.tls.handshakes.refused"),
    ),
    _gauge(
        "blipmq_tls_certificate_expiry_timestamp_seconds",
        "End of the certificate in use, in seconds since 1970.",
        "report.tls.certificate.not_after",
    ),
    _gauge(
        "blipmq_tls_certificate_ok",
        "0: a changed certificate was refused and the old one is in use.",
        "report.tls.certificate.ok",
    ),
    _gauge(
        "blipmq_board_throttled", "1: the processor of the Raspberry Pi is slowed down.", "report.hardware.throttled"
    ),
    _gauge(
        "blipmq_board_undervoltage",
        "1: the power supply of the Raspberry Pi is too weak.",
        "report.hardware.undervoltage",
    ),
    _counter("blipmq_admin_requests_total", "Requests to this HTTP endpoint that were answered.", "admin.requests"),
    _counter("blipmq_admin_bad_requests_total", "Requests to this HTTP endpoint that were not valid.", "admin.bad"),
    _counter(
        "blipmq_admin_connections_cut_total",
        "Connections to this HTTP endpoint closed because they were too slow or made room for newer ones.",
        "admin.cut",
    ),
    _gauge(
        "blipmq_scrape_incomplete",
        "1: this scrape has no list of subscribers, because listing took too long.",
        "derived.incomplete",
    ),
    _counter("process_cpu_seconds_total", "Processor time used, in user and kernel mode.", "process.cpu_seconds"),
    _gauge("process_resident_memory_bytes", "Resident memory.", "process.resident_bytes"),
    _gauge("process_virtual_memory_bytes", "Address space.", "process.virtual_bytes"),
    _gauge("process_open_fds", "Open file descriptors.", "process.open_fds"),
    _gauge("process_max_fds", "File descriptors that may be open.", "process.max_fds"),
    _gauge("process_threads", "Threads.", "process.threads"),
    _gauge("process_start_time_seconds", "When the process began, since 1970.", "process.started_at"),
)


# ---- the sources of values -------------------------------------------------------------------------------------------


def _batching(snapshot: Snapshot) -> float:
    delivered = snapshot.stats["delivered"]
    # Messages in flight are sent but not delivered, and redelivered ones are sent more than once.
    return max(0.0, 1 - snapshot.stats["flushes"] / delivered) if delivered else 0.0


def _pool_use(snapshot: Snapshot) -> float:
    used = snapshot.stats["memory_used_bytes"]
    return 1 - snapshot.stats["pool_free_bytes"] / used if used else 0.0


_DERIVED: dict[str, tuple[Callable[[Snapshot], Number], str]] = {
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
        return _DERIVED[path][0](snapshot)
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
        f"# HELP {name} The name of version 1.0.0 for {_escape(_query(metric, series), openmetrics)}.",
        f"# TYPE {name} {kind}",
        f"{name} {_number(value or 0)}",
    ]


def _query(metric: Metric, series: Series) -> str:
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


# ---- the reference ---------------------------------------------------------------------------------------------------


def reference() -> str:
    """The whole text of docs/METRICS.md."""
    lines = [_REFERENCE_HEAD, "", "| name | type | meaning | from |", "|---|---|---|---|"]
    for metric in METRICS:
        for index, series in enumerate(metric.series):
            name = f"`{_query(metric, series)}`"
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
        "derived": f"computed: {_DERIVED[path][1]}" if where == "derived" else "",
        "process": "operating system",
    }
    return origins.get(where, "broker")


_REFERENCE_HEAD = f"""\
# Metrics and health

<!-- Made from blipmq/ops/metrics.py: change it there, then `python -m blipmq.ops.metrics > docs/METRICS.md`. -->

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
