/* settings.h: the settings of the core and of its log, read by the compiler and by cffi.
 *
 * Made from blipmq/config/core_settings.py by `make settings`. Change the declaration there or in blipmq/config/settings.py.
 */
/* clang-format off */

enum bq_overflow_policy { BQ_OVERFLOW_POLICY_DROP_OLDEST = 0, BQ_OVERFLOW_POLICY_DROP_NEW = 1, BQ_OVERFLOW_POLICY_BLOCK = 2 };

enum bq_session_overflow { BQ_SESSION_OVERFLOW_DEAD_LETTER = 0, BQ_SESSION_OVERFLOW_DROP = 1 };

typedef struct bq_config {
    /* queues.subscriber_bytes: Encoded bytes that may wait for one subscriber. */
    uint64_t subscriber_bytes;
    /* delivery.default_ttl_ms: Time to live of a message that names none. */
    uint64_t default_ttl_ms;
    /* qos1.session_log_bytes: Bytes of the log that one durable subscription or queue group may keep from being deleted: as far
     * as its oldest message may lie behind the log's end. */
    uint64_t session_log_bytes;
    /* qos1.session_expiry_ms: A durable subscription or queue group that nobody was connected to for this long ends by itself,
     * and what waited for it is let go. */
    uint64_t session_expiry_ms;
    /* performance.timer_config.max_timeout_ms: Longest time to live; a longer one is cut to this. */
    uint64_t max_ttl_ms;
    /* limits.memory_bytes: Memory the core may use. */
    uint64_t memory_bytes;
    /* server.max_connections: Connections open at once; one more is refused. */
    uint32_t max_connections;
    /* server.keepalive_ms: Close within this time a connection whose client is gone without a word, as after a power cut. */
    uint32_t keepalive_ms;
    /* queues.subscriber_capacity: Messages that may wait for one subscriber. */
    uint32_t subscriber_messages;
    /* queues.overflow_policy: What a full queue does: drop its oldest message, drop the new one, or hold the publisher back. */
    uint32_t overflow_policy;
    /* delivery.max_batch_bytes: Bytes sent to one subscriber before the next has its turn. */
    uint32_t max_batch_bytes;
    /* qos1.ack_timeout_ms: Time a subscriber has to acknowledge a message before it comes again; doubles each time, up to 32
     * times this. */
    uint32_t ack_timeout_ms;
    /* qos1.max_in_flight: Messages sent to one subscriber of a QoS 1 subscription and not acknowledged yet. */
    uint32_t max_in_flight;
    /* qos1.max_deliveries: How often a message is delivered without an acknowledgement before it goes to `$dlq/<topic>`. */
    uint32_t max_deliveries;
    /* qos1.session_overflow: What becomes of messages over `session_log_bytes`: they go to `$dlq/<topic>` with the reason
     * `session_log_bytes`, or they are dropped. */
    uint32_t session_overflow;
    /* performance.timer_config.resolution_ms: How exactly a time to live is kept: the tick of the timer wheel. */
    uint32_t tick_ms;
    /* performance.batch_config.ttl_max_batch_size: Expired entries removed before other work goes on. */
    uint32_t expire_batch;
    /* performance.batch_config.fanout_max_batch_size: Subscribers sent to before input is looked at again. */
    uint32_t flush_subscribers;
    /* performance.network_optimizations.tcp_nodelay: Send small messages at once instead of waiting to fill a packet. */
    uint32_t tcp_nodelay;
    /* performance.network_optimizations.send_buffer_size: SO_SNDBUF of each connection. */
    uint32_t send_buffer_bytes;
    /* performance.network_optimizations.recv_buffer_size: SO_RCVBUF of each connection. */
    uint32_t recv_buffer_bytes;
    /* limits.max_topic_levels: Levels of a topic or a filter, whichever of `.` and `/` there is more of. */
    uint32_t max_topic_levels;
    /* limits.hello_timeout_ms: Time a connection has to be admitted in, where keys are asked for. */
    uint32_t hello_timeout_ms;
    /* limits.max_pending: Connections not admitted yet, where keys are asked for; as many again may be in a TLS handshake. */
    uint32_t max_pending;
    /* limits.max_pending_per_address: Of them, those of one IPv4 address or one IPv6 /64; one more is closed. */
    uint32_t max_pending_per_address;
    /* limits.accept_rate: Connections that `server.bind_addr` takes in a second; those beyond it wait in the system's backlog. */
    uint32_t accept_rate;
    /* limits.accept_burst: Connections taken at once after a quiet time. */
    uint32_t accept_burst;
    /* limits.max_sessions: QoS 1 subscriptions and queue groups, those of absent durable clients included. */
    uint32_t max_sessions;
    /* limits.route_cache_entries: Topics whose subscribers are remembered; more topics than this cost a search each. */
    uint32_t route_cache_entries;
    /* The largest frame of an admitted connection: the largest message with its topic and table around it. */
    uint32_t max_frame_bytes;
    /* The same before a connection is admitted (require_hello). */
    uint32_t max_frame_bytes_unauth;
    /* 1: nothing but HELLO before Python admits the connection. */
    uint32_t require_hello;
    /* delivery.max_batch: Messages sent to one subscriber before the next has its turn. */
    uint32_t max_batch;
    /* delivery.flush_interval_ms: How long a delivery may wait for company. */
    uint32_t flush_interval_ms;
    /* Size of a shared segment of output. */
    uint32_t segment_bytes;
    /* performance.pool_config.buffer_small_count: Free blocks of up to 1 KiB kept for reuse. */
    uint32_t pool_small_count;
    /* performance.pool_config.buffer_medium_count: Free blocks of up to 16 KiB kept for reuse. */
    uint32_t pool_medium_count;
    /* performance.pool_config.buffer_large_count: Free larger blocks (message segments) kept for reuse. */
    uint32_t pool_large_count;
    /* Capacity of each ring, a power of two. */
    uint32_t ring_bytes;
    /* 1: no timers for messages; expired ones are found when their turn to be sent comes. */
    uint32_t lazy_expiry;
    /* Queue entries allocated ahead. */
    uint32_t warm_entries;
    /* Segments allocated ahead. */
    uint32_t warm_segments;
    /* Of max_sessions, those of one key, for who subscribes with BQ_SUB_KEYED. */
    uint32_t max_sessions_per_key;
    /* queues.topic_capacity: Messages of one topic gathered before they are handed to its subscribers' queues. */
    uint32_t run_messages;
    /* The I/O thread stays on this processor; -1: where the system puts it. */
    int32_t io_cpu;
    /* Units of work for one client before others come to theirs, see net/fair_share.h; 0: 1024. */
    uint32_t work_share;
} bq_config_t;

typedef struct bq_log_config {
    /* wal.max_bytes: All files of the log together. */
    uint64_t max_bytes;
    /* wal.reserve_bytes: Free space of its file system that publishes leave alone: it is for acknowledgements, and for the rest
     * of the system. */
    uint64_t reserve_bytes;
    /* wal.segment_size_bytes: Size of one file of the log, allocated ahead. */
    uint32_t segment_bytes;
    /* wal.flush_interval_ms: How long a QoS 1 publish may wait for company before it is written and synced. */
    uint32_t flush_interval_ms;
    /* wal.block_bytes: What is synced together is padded to a multiple of this, so that no flash page is written twice: 4096 for
     * SD cards. */
    uint32_t block_bytes;
    /* Bytes gathered for one sync. */
    uint32_t batch_bytes;
    /* 1: nothing is synced. */
    uint32_t no_sync;
} bq_log_config_t;

/* A configuration with every setting at its default. */
void bq_config_default(bq_config_t *config);
void bq_log_config_default(bq_log_config_t *config);

/* Whether each value is one that the core can work with; the ranges that users are held to are narrower. */
int bq_config_valid(const bq_config_t *config);

/* Takes over the settings that may change while the core runs. */
void bq_config_reload(bq_config_t *config, const bq_config_t *changed);
