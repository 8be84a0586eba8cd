/* settings.h: the settings of the core and of its log, read by the compiler and by cffi.
 *
 * Made from blipmq/config/core_settings.py by `make settings`. Change the declaration there or in blipmq/config/settings.py.
 */
/* clang-format off */

enum bq_overflow_policy { BQ_OVERFLOW_POLICY_DROP_OLDEST = 0, BQ_OVERFLOW_POLICY_DROP_NEW = 1, BQ_OVERFLOW_POLICY_BLOCK = 2 };

enum bq_session_overflow { BQ_SESSION_OVERFLOW_DEAD_LETTER = 0, BQ_SESSION_OVERFLOW_DROP = 1 };

typedef struct bq_config {
    /* queues.subscriber_bytes: Most encoded bytes in the queue of one subscriber. */
    uint64_t subscriber_bytes;
    /* delivery.default_ttl_ms: Time to live of messages without their own. */
    uint64_t default_ttl_ms;
    /* qos1.session_log_bytes: Most bytes of the WAL that one durable subscription or queue group may keep from being deleted,
     * counted from its oldest message to the end of the WAL. `session_overflow` applies to older messages, so one forgotten
     * subscriber cannot fill the WAL. */
    uint64_t session_log_bytes;
    /* qos1.session_expiry_ms: End a durable subscription or queue group after it has had no connected client for this long, and
     * discard its stored messages. */
    uint64_t session_expiry_ms;
    /* performance.timer_config.max_timeout_ms: Longest time to live. */
    uint64_t max_ttl_ms;
    /* limits.memory_bytes: Memory limit of the core. */
    uint64_t memory_bytes;
    /* server.max_connections: Most connections at the same time. */
    uint32_t max_connections;
    /* server.keepalive_ms: Close a connection within this time after its client has vanished, for example in a power cut. */
    uint32_t keepalive_ms;
    /* queues.subscriber_capacity: Most messages in the queue of one subscriber. */
    uint32_t subscriber_messages;
    /* queues.overflow_policy: If a queue is full: drop its oldest message, drop the new message, or hold the publisher back. */
    uint32_t overflow_policy;
    /* delivery.max_batch_bytes: Most bytes sent to one subscriber before the next one is served. */
    uint32_t max_batch_bytes;
    /* qos1.ack_timeout_ms: Send a message again if it is not acknowledged within this time. */
    uint32_t ack_timeout_ms;
    /* qos1.max_in_flight: Most messages sent to one QoS 1 subscriber and not acknowledged yet. */
    uint32_t max_in_flight;
    /* qos1.max_deliveries: After this many deliveries without an acknowledgement a message goes to `$dlq/<topic>`. */
    uint32_t max_deliveries;
    /* qos1.session_overflow: Messages over `session_log_bytes` become dead letters (`$dlq/<topic>`, reason `session_log_bytes`)
     * or are dropped. */
    uint32_t session_overflow;
    /* performance.timer_config.resolution_ms: Precision of the time to live: the tick of the timer wheel. */
    uint32_t tick_ms;
    /* performance.batch_config.ttl_max_batch_size: Most expired entries removed before other work continues. */
    uint32_t expire_batch;
    /* performance.batch_config.fanout_max_batch_size: Most subscribers served before the broker reads input again. */
    uint32_t flush_subscribers;
    /* performance.network_optimizations.tcp_nodelay: Send small messages at once instead of waiting to fill a packet. */
    uint32_t tcp_nodelay;
    /* performance.network_optimizations.send_buffer_size: SO_SNDBUF of each connection. */
    uint32_t send_buffer_bytes;
    /* performance.network_optimizations.recv_buffer_size: SO_RCVBUF of each connection. */
    uint32_t recv_buffer_bytes;
    /* limits.max_topic_levels: Most levels of a topic or filter, counted at dots or at slashes, whichever are more. */
    uint32_t max_topic_levels;
    /* limits.hello_timeout_ms: If keys are required: time until a new connection must have sent a valid HELLO, the TLS handshake
     * included. */
    uint32_t hello_timeout_ms;
    /* limits.max_pending: Most connections that are not admitted yet: those in a TLS handshake and, if keys are required, those
     * that have not sent a valid HELLO. */
    uint32_t max_pending;
    /* limits.max_pending_per_address: The same limit for one IPv4 address or one IPv6 /64; one more is closed. */
    uint32_t max_pending_per_address;
    /* limits.accept_rate: Connections accepted per second; others wait in the system's backlog. */
    uint32_t accept_rate;
    /* limits.accept_burst: Connections accepted at once after a quiet time. */
    uint32_t accept_burst;
    /* limits.max_sessions: Most QoS 1 subscriptions and queue groups, those of absent durable clients included. */
    uint32_t max_sessions;
    /* limits.route_cache_entries: Topics whose subscribers are cached. */
    uint32_t route_cache_entries;
    /* The largest frame of an admitted connection: the largest message with its topic and table around it. */
    uint32_t max_frame_bytes;
    /* The same before a connection is admitted (require_hello). */
    uint32_t max_frame_bytes_unauth;
    /* 1: nothing but HELLO before Python admits the connection. */
    uint32_t require_hello;
    /* delivery.max_batch: Most messages sent to one subscriber before the next one is served. */
    uint32_t max_batch;
    /* delivery.flush_interval_ms: How long a delivery may wait for others. */
    uint32_t flush_interval_ms;
    /* Size of a shared buffer of output. */
    uint32_t buffer_bytes;
    /* performance.pool_config.buffer_small_count: Free blocks of up to 1 KiB kept for reuse. */
    uint32_t pool_small_count;
    /* performance.pool_config.buffer_medium_count: Free blocks of up to 16 KiB kept for reuse. */
    uint32_t pool_medium_count;
    /* performance.pool_config.buffer_large_count: Free larger blocks (shared buffers of messages) kept for reuse. */
    uint32_t pool_large_count;
    /* Capacity of each ring, a power of two. */
    uint32_t ring_bytes;
    /* 1: no timers for messages; expired ones are found when their turn to be sent comes. */
    uint32_t lazy_expiry;
    /* Preallocated queue entries. */
    uint32_t warm_entries;
    /* Preallocated shared buffers. */
    uint32_t warm_buffers;
    /* Of max_sessions, those of one key, for who subscribes with BQ_SUB_KEYED. */
    uint32_t max_sessions_per_key;
    /* queues.topic_capacity: Messages of one topic that are put into subscribers' queues together. */
    uint32_t run_messages;
    /* The I/O thread stays on this processor; -1: where the system puts it. */
    int32_t io_cpu;
    /* Units of work for one client before others come to theirs, see net/fair_share.h; 0: 1024. */
    uint32_t work_share;
} bq_config_t;

typedef struct bq_wal_config {
    /* wal.max_bytes: Size limit of the whole WAL. */
    uint64_t max_bytes;
    /* wal.reserve_bytes: Free space on the file system that publishes do not use. */
    uint64_t reserve_bytes;
    /* wal.segment_size_bytes: Size of one file of the WAL, allocated in advance. */
    uint32_t segment_bytes;
    /* wal.flush_interval_ms: How long a QoS 1 publish may wait for others, so that they share one sync. */
    uint32_t flush_interval_ms;
    /* wal.block_bytes: Pad each write to a multiple of this, so that no flash page is written twice: 4096 for SD cards. */
    uint32_t block_bytes;
    /* Bytes gathered for one sync. */
    uint32_t batch_bytes;
    /* 1: nothing is synced. */
    uint32_t no_sync;
} bq_wal_config_t;

/* A configuration with every setting at its default. */
void bq_config_default(bq_config_t *config);
void bq_wal_config_default(bq_wal_config_t *config);

/* Whether each value is one that the core can work with; the ranges that users are held to are narrower. */
int bq_config_valid(const bq_config_t *config);

/* Takes over the settings that may change while the core runs. */
void bq_config_reload(bq_config_t *config, const bq_config_t *changed);
