"""What a core and its log are made with.

Invariant: each class has the fields of a struct of native/api/bq.h, by the same names and in the same units; a test keeps the
two in step.
"""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

from blipmq._native import lib


class Overflow(IntEnum):
    """What a full subscriber queue does with the next message."""

    DROP_OLDEST = lib.BQ_DROP_OLDEST
    DROP_NEW = lib.BQ_DROP_NEW
    BLOCK = lib.BQ_BLOCK


class SessionOverflow(IntEnum):
    """What becomes of messages that are over a session's quota of the log."""

    DEAD_LETTER = lib.BQ_SESSION_DEAD_LETTER
    DROP = lib.BQ_SESSION_DROP


class CoreConfig(NamedTuple):
    """The fields of `bq_config_t`, by the same names and in the same units. A test keeps the two in step."""

    memory_bytes: int = 0
    subscriber_bytes: int = 64 << 20
    default_ttl_ms: int = 0
    max_ttl_ms: int = 24 * 3600 * 1000
    session_log_bytes: int = 0
    session_expiry_ms: int = 0
    subscriber_messages: int = 262_144
    overflow_policy: int = Overflow.DROP_OLDEST
    max_connections: int = 10_000
    max_frame_bytes: int = (1 << 20) + 1024
    max_frame_bytes_unauth: int = 1024
    require_hello: int = 0
    hello_timeout_ms: int = 5000
    max_batch: int = 65_536
    max_batch_bytes: int = 1 << 20
    flush_interval_ms: int = 0
    tick_ms: int = 10
    segment_bytes: int = 256 << 10
    route_cache_entries: int = 4096
    pool_small_count: int = 1024
    pool_medium_count: int = 256
    pool_large_count: int = 32
    tcp_nodelay: int = 1
    send_buffer_bytes: int = 0
    recv_buffer_bytes: int = 0
    ring_bytes: int = 4 << 20
    flush_subscribers: int = 1024
    expire_batch: int = 65_536
    lazy_expiry: int = 0
    warm_entries: int = 0
    warm_segments: int = 0
    ack_timeout_ms: int = 30_000
    max_in_flight: int = 256
    max_sessions: int = 10_000
    session_overflow: int = SessionOverflow.DEAD_LETTER
    max_sessions_per_key: int = 10_000
    max_deliveries: int = 16
    run_messages: int = 0
    io_cpu: int = -1
    max_pending: int = 1024
    max_pending_per_address: int = 64
    accept_rate: int = 1000
    accept_burst: int = 1000
    max_topic_levels: int = 64
    keepalive_ms: int = 0
    work_share: int = 1024


class LogConfig(NamedTuple):
    """The fields of `bq_log_config_t`, by the same names and in the same units. A test keeps the two in step."""

    max_bytes: int = 1 << 30
    reserve_bytes: int = 64 << 20
    segment_bytes: int = 16 << 20
    flush_interval_ms: int = 0
    batch_bytes: int = 4 << 20
    block_bytes: int = 0
    no_sync: int = 0
    reserved: int = 0
