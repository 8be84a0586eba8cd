"""The metrics of a broker, each declared once: names, types, help texts, series and the origin of their values.

Invariant: a name below is always exposed with the same type and help text, whatever the state of the broker. `exposition`
and docs/METRICS.md are both derived from METRICS. The documented names of version 1.0.0 are counters without `_total`.
The text format allows that; in OpenMetrics they are of type `unknown`. No newer name is a documented one plus `_total`,
because some readers add that themselves.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from blipmq.net.admission_log import REFUSED

# Subscribers with their own series: those with the deepest queues. The totals include all.
SUBSCRIBERS_MAX = 50
# QoS 1 subscriptions and queue groups with their own series: those with the largest lag.
SESSIONS_MAX = 20


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
    _gauge("blipmq_keys", "Keys in effect; 0: no key is required, or no client is admitted.", "auth.keys"),
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
        "Durable subscriptions that ended because no client was connected to them for qos1.session_expiry_ms.",
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
    _counter("blipmq_publisher_pauses_total", "Times a publisher was paused by a full queue.", "stats.blocked_pauses"),
    _gauge("blipmq_publishers_blocked", "Publishers that are paused now.", "stats.blocked_publishers"),
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
    # WebSocket
    _gauge(
        "blipmq_websocket_connections",
        "Connections over WebSocket; they count in blipmq_connections too.",
        "stats.websockets",
    ),
    _counter(
        "blipmq_websocket_refused_total",
        "Requests for a WebSocket that were answered with an error: the path, the origin, the version; the log has the reason.",
        "stats.websocket_refused",
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
