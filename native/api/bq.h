/* api/bq.h: the whole boundary between Python and the C core, read by gcc and by cffi (plain declarations, no preprocessor).
 *
 * Invariant: the core is an actor. One thread runs bq_wait and bq_turn: the I/O thread after bq_start, or the caller in stepped
 * mode. One thread pushes commands and takes events. Nothing else is shared. Every function returns >= 0 or a negative BQ_E
 * code. No function calls back or keeps a caller's pointer after it returns. Sizes are bytes; times state their unit. The
 * structs of settings, bq_config_t and bq_wal_config_t, are in api/settings.h, which is read before this file.
 */

typedef struct bq bq_t;

/* A connection's handle: generation << 32 | slot. A handle of a closed connection is never valid again. */
typedef uint64_t bq_conn_t;

enum bq_error {
    BQ_OK = 0,
    BQ_E_AGAIN = -1,    /* a ring is full: try again after the other side has read from it */
    BQ_E_MEMORY = -2,   /* no memory */
    BQ_E_ARGUMENT = -3, /* a value outside its range */
    BQ_E_SYSTEM = -4,   /* a system call failed: see errno */
    BQ_E_TOO_LARGE = -5
};

/* Result of a request. Each protocol has its own codes for these. */
enum bq_outcome {
    BQ_OUTCOME_DONE = 0,
    BQ_OUTCOME_INVALID = 1,         /* it breaks a rule; trying again cannot succeed */
    BQ_OUTCOME_UNAUTHENTICATED = 2, /* a key is needed */
    BQ_OUTCOME_NOT_ALLOWED = 3,     /* the key does not permit it */
    BQ_OUTCOME_NOT_FOUND = 4,
    BQ_OUTCOME_ENDED = 5, /* an operator ended it */
    BQ_OUTCOME_TOO_LARGE = 6,
    BQ_OUTCOME_LIMIT = 7,      /* a limit on their number is reached */
    BQ_OUTCOME_UNAVAILABLE = 8 /* not possible now: memory, the WAL or a full queue */
};

/* ---- commands: Python to core ------------------------------------------------------------------------------------- */

enum bq_command_type {
    /* value: listening socket, owned by the core from now on; flags may hold BQ_CONN_SECURE, BQ_CONN_WEBSOCKET,
     * BQ_CONN_MQTT */
    BQ_CMD_LISTEN = 1,
    BQ_CMD_UNLISTEN = 2, /* stop accepting: close every listener */
    BQ_CMD_ADOPT = 3,    /* value: connected socket, owned by the core from now on; flags as for BQ_CMD_LISTEN */
    /* A new in-memory connection; answered by BQ_EV_ATTACHED with this seq; flags may hold BQ_CONN_TRUSTED, BQ_CONN_MQTT;
     * data: a bq_peer_t, or nothing; value: milliseconds of hello_timeout_ms that have passed already */
    BQ_CMD_ATTACH = 4,
    /* conn, data: bytes received; answered by BQ_EV_CONSUMED when they are parsed. flags: BQ_INPUT_END */
    BQ_CMD_INPUT = 5,
    BQ_CMD_CREDIT = 6, /* conn, value: bytes of BQ_EV_OUT that have been sent */
    /* conn, seq: its HELLO is accepted; the client gets a Reply with code 0 and text; value: the ACL of its key
     * (BQ_CMD_ACL), 0: it may publish everything. MQTT: text: its identity, the client identifier behind the owner of its
     * key; data: a bq_mqtt_admission_t; the client gets CONNACK */
    BQ_CMD_ADMIT = 7,
    /* conn, seq, text: filter, value: size of the client_id in data, data: client_id and group; flags: BQ_SUB_QOS1,
     * BQ_SUB_DURABLE. The SubAck is sent when the route is set and a new durable subscription is on disk. If it is refused:
     * Reply 429 or 503, and BQ_EV_UNSUBSCRIBED */
    BQ_CMD_SUBSCRIBE = 8,
    /* conn, seq, text, value and data as above; ends durable subscriptions of that client too; without a group: all of them
     * with that filter. Clients that sent HELLO get a Reply: 0 (when it is on disk) and BQ_EV_UNSUBSCRIBED; 404; or 503 if
     * the WAL cannot take it now, and then nothing has changed */
    BQ_CMD_UNSUBSCRIBE = 9,
    /* MQTT: code: a reason code from 0x80 on, with BQ_REPLY_CLOSE: in CONNACK or, after that, in DISCONNECT */
    BQ_CMD_REPLY = 10,  /* conn, seq, code, text: message, data: payload, value: id; flags: BQ_REPLY_CLOSE, BQ_REPLY_UNASKED */
    BQ_CMD_CLOSE = 11,  /* conn, code: enum bq_close */
    BQ_CMD_STATS = 12,  /* answered by BQ_EV_STATS with this seq */
    BQ_CMD_LIST = 13,   /* value: first slot; answered by BQ_EV_LIST pages of subscribers with this seq */
    BQ_CMD_LIMITS = 14, /* data: a bq_config_t; its reloadable fields take effect */
    BQ_CMD_STOP = 15,   /* value: milliseconds to flush; then all connections are closed and BQ_EV_STOPPED comes */
    /* value: id of an ACL; data: [u16 size][filter] ... that it may publish to, or flag BQ_ACL_ALL. Creates the ACL, or
     * changes it for all connections that use it. BQ_ACL_END: it allows nothing from now on */
    BQ_CMD_ACL = 16,
    /* data: a bq_clock_t. Send it at the start and whenever the clock was set or became synchronized. It determines the age
     * of stored messages */
    BQ_CMD_CLOCK = 24,
    /* Answered by one BQ_EV_CONSUMERS page with this seq. flags: BQ_CONSUMERS_BEGIN starts a walk, otherwise it continues;
     * value: the smallest lag_messages to list; text: a part of the filter, client_id or group; conn, data: only consumers
     * of the key that this connection uses, with client_ids that begin with data. flags: BQ_CONSUMERS_EXACT: text is the
     * filter, data the client_id with or without its key in front; without data: the queue groups */
    BQ_CMD_CONSUMERS = 17,
    /* value: the id of a durable consumer, which ends; data: for a queue group, the client_id that is removed instead, with
     * or without its key in front; answered by BQ_EV_CONSUMER_ENDED with this seq. Its connections get a Reply 410 that
     * answers no request, and stay open */
    BQ_CMD_CONSUMER_END = 18,
    /* value: address of a bq_secure_ops_t for which bq_secure_fits returned BQ_OK; it is valid as long as the process. seq:
     * address of a context of that module, owned by the core from now on. New connections use it; open connections keep the
     * context that they began with. flags may hold BQ_SECURE_TELL */
    BQ_CMD_SECURE = 25,
    /* data: [u16 size][origin] ...: the origins of pages that may open a WebSocket; "*": any. See net/websocket_handshake.h */
    BQ_CMD_ORIGINS = 26,
    /* conn; data: the rows of BQ_EV_MQTT_SUBSCRIBE, each with the QoS that is granted, or a reason code from 0x80 on, in its second
     * byte. SUBACK is sent when all pieces of the packet are answered. If the core refuses a filter: BQ_EV_UNSUBSCRIBED */
    BQ_CMD_MQTT_SUBSCRIBE = 27,
    /* text: topic; data: payload. A message of the broker itself, with QoS 0. It is dropped if a subscriber's queue is full and
     * the policy is block, and if there is no memory for it */
    BQ_CMD_PUBLISH = 28
};

typedef struct bq_clock {
    uint64_t boot_id;      /* identifies this boot of the machine; 0: not known */
    uint64_t boot_ms;      /* milliseconds since the boot, including sleep */
    uint64_t wall_ms;      /* milliseconds since 1970 */
    uint32_t synchronized; /* 1: the system reports that wall_ms is synchronized */
    uint32_t reserved;
} bq_clock_t;
int bq_clock_read(bq_clock_t *clock); /* the current values of the system's clocks */

enum bq_command_flags {
    BQ_REPLY_CLOSE = 1,   /* close after the reply has been flushed */
    BQ_CONN_TRUSTED = 2,  /* an attached connection that needs no HELLO */
    BQ_REPLY_UNASKED = 4, /* answers no request, so input that waits for an answer stays paused */
    BQ_SUB_QOS1 = 8,
    BQ_SUB_DURABLE = 16,
    BQ_ACL_ALL = 32,
    BQ_ACL_END = 64,
    BQ_REPLY_DISCARD = 128, /* before the reply: drop its routes and its queued messages */
    /* No more input comes: when the earlier input is processed, the connection ends as at a socket's end of file */
    BQ_INPUT_END = 256,
    BQ_CONSUMERS_BEGIN = 512,
    BQ_CONSUMERS_EXACT = 1024,
    BQ_SUB_KEYED = 2048,        /* the client uses a key: its client_id begins with the key's owner, if the key has one */
    BQ_SUB_SESSION = 4096,      /* the filter is one of the client's session, which has one place in the WAL for all of them */
    BQ_CONN_SECURE = 65536,     /* its connections speak TLS. Without an earlier BQ_CMD_SECURE the socket is closed */
    BQ_SECURE_TELL = 131072,    /* report every handshake, not only those with a certificate */
    BQ_CONN_WEBSOCKET = 262144, /* its connections begin with a WebSocket handshake (after that of TLS) */
    BQ_CONN_MQTT = 524288       /* its connections speak MQTT */
};

typedef struct bq_mqtt_admission {
    uint32_t session_expiry_s; /* told if the client asked for another one */
    uint16_t keepalive_s;      /* with BQ_MQTT_KEEPALIVE: in place of the client's */
    uint16_t assigned_size;    /* so many bytes at the end of the identity are a client identifier that the broker chose */
    uint32_t flags;            /* enum bq_mqtt_admission_flags */
} bq_mqtt_admission_t;

enum bq_mqtt_admission_flags { BQ_MQTT_KEEPALIVE = 1, BQ_MQTT_PRESENT = 2 };

/* The peer of a connection. */
typedef struct bq_peer {
    uint8_t address[16]; /* IPv6, or IPv4 mapped to IPv6 */
    uint16_t port;
} bq_peer_t;

typedef struct bq_command {
    uint16_t type;
    uint16_t code;
    uint32_t flags;
    bq_conn_t conn;
    uint64_t seq;
    uint64_t value;
} bq_command_t;

/* ---- events: core to Python --------------------------------------------------------------------------------------- */

/* HELLO, SUB, UNSUB, INFO and ADMIN pause the connection's input until ADMIT, SUBSCRIBE, UNSUBSCRIBE, REPLY or CLOSE answers
 * them. So the requests of one connection take effect in order, and at most one event per connection waits. */
enum bq_event_type {
    BQ_EV_HELLO = 1, /* conn, seq, value: protocol version; text: client_id; data: api_key */
    /* conn, seq, value: qos; text: filter, already checked; data: group; flags: BQ_EV_DURABLE, BQ_EV_LEGACY */
    BQ_EV_SUB = 2,
    /* conn, seq; text: filter; data: group; flags: BQ_EV_LEGACY; BQ_EV_KEEP: durable subscriptions continue */
    BQ_EV_UNSUB = 3,
    BQ_EV_INFO = 4, /* conn, seq; data: the question */
    /* conn, code: enum bq_close; text: detail. Only for connections that Python knows, or that were closed because of an
     * error */
    BQ_EV_CLOSED = 5,
    BQ_EV_ATTACHED = 6, /* conn, seq; conn 0: no space for it */
    BQ_EV_OUT = 7,      /* conn, data: bytes to send on an in-memory connection; answer with BQ_CMD_CREDIT */
    BQ_EV_CONSUMED = 8, /* conn, value: bytes consumed */
    BQ_EV_STATS = 9,    /* seq, data: a bq_stats_t */
    BQ_EV_LIST = 10,    /* seq, data: bq_subscriber_t array; value: next slot to ask for, 0 at the end */
    BQ_EV_ACCEPT = 11,  /* accepting has paused or resumed: code 1: paused; value: errno */
    BQ_EV_STOPPED = 12, /* value: messages that were not flushed; then the I/O thread ends */
    /* seq, data: a bq_consumer_sums_t of the consumers visited so far, then rows; value: 1: there are more */
    BQ_EV_CONSUMERS = 13,
    /* conn; text: filter; data: group. code: enum bq_outcome. DONE: UNSUB has ended it; without a group: all with that
     * filter. Otherwise a SUB was refused, or an operator ended it */
    BQ_EV_UNSUBSCRIBED = 14,
    /* seq; code: enum bq_outcome. DONE: its end is on disk; NOT_FOUND: no such id or client_id; INVALID: several such
     * client_ids; UNAVAILABLE: the WAL cannot take it now */
    BQ_EV_CONSUMER_ENDED = 15,
    BQ_EV_ADMIN = 16,            /* conn, seq; data: the request */
    BQ_EV_CONSUMER_EXPIRED = 17, /* data: the row of a durable consumer that expired, as in BQ_EV_CONSUMERS */
    BQ_EV_CONSUMER_OVER = 18,    /* data: a bq_consumer_over_t, then the row of a consumer that exceeded session_log_bytes */
    /* code: enum bq_handshake; conn, peer. At most 50 a second, the others are only counted in bq_stats_t. One with
     * BQ_EV_CERTIFICATE always comes, and before any request of this connection */
    BQ_EV_SECURE = 25,
    /* conn, code: 3, 4 or 5, the version; flags: BQ_EV_CLEAN, BQ_EV_WILL, BQ_EV_USERNAME, BQ_EV_PASSWORD, BQ_EV_TRUSTED; value:
     * keep-alive in seconds | session expiry in seconds << 32; text: the client identifier; data: [u16 size][user name][u16
     * size][password][topic of the will]. Answered by ADMIT or REPLY */
    BQ_EV_MQTT_CONNECT = 26,
    /* conn, seq: packet identifier; code: number of filters; value: subscription identifier, 0: none; data: rows [u8 options][u8
     * 0][u16 size][filter] with the syntax checked. A large packet comes in pieces: the next after the answer to this one.
     * Answered by BQ_CMD_MQTT_SUBSCRIBE or REPLY. UNSUBSCRIBE is done by the core: BQ_EV_UNSUBSCRIBED */
    BQ_EV_MQTT_SUBSCRIBE = 27
};

enum bq_event_flags {
    BQ_EV_LEGACY = 1,
    BQ_EV_DURABLE = 2,
    BQ_EV_TRUSTED = 4,
    BQ_EV_KEEP = 8,
    BQ_EV_CERTIFICATE = 16,
    BQ_EV_CLEAN = 32, /* of MQTT, also the following: no earlier session is continued */
    BQ_EV_WILL = 64,
    BQ_EV_USERNAME = 128,
    BQ_EV_PASSWORD = 256
};

enum bq_handshake {
    BQ_HANDSHAKE_DONE = 1, /* text: name of the client's verified certificate, if flags hold BQ_EV_CERTIFICATE; data: version */
    BQ_HANDSHAKE_FAILED =
        2, /* the handshake, or a record after it. text: reason of the module; data: why it refused a certificate */
    BQ_HANDSHAKE_LATE = 3,           /* not done after hello_timeout_ms, which is in value */
    BQ_HANDSHAKE_DISPLACED = 4,      /* it made room for another: max_pending is reached */
    BQ_HANDSHAKE_REFUSED = 5,        /* max_pending is reached, and none could be closed for it */
    BQ_HANDSHAKE_REFUSED_ADDRESS = 6 /* max_pending_per_address is reached */
};

enum bq_close {
    BQ_CLOSE_EOF = 0,   /* the client closed */
    BQ_CLOSE_QUIT = 1,  /* the client sent QUIT */
    BQ_CLOSE_RESET = 2, /* the socket failed */
    BQ_CLOSE_FRAME = 3, /* an invalid frame, or a request that is not allowed: see detail */
    BQ_CLOSE_TOO_LARGE = 4,
    BQ_CLOSE_UNAUTH = 5,  /* a command before HELLO while authentication is on, or no HELLO in time */
    BQ_CLOSE_REFUSED = 6, /* over max_connections */
    BQ_CLOSE_BROKER = 7,  /* Python requested it */
    BQ_CLOSE_SHUTDOWN = 8,
    BQ_CLOSE_MEMORY = 9,
    /* Closed before it was admitted, because a new connection needed its place; counted; reported only if Python knows it */
    BQ_CLOSE_CROWDED = 10,
    BQ_CLOSE_SILENT = 11,  /* it sent nothing for 1.5 times the keepalive_ms of its HELLO */
    BQ_CLOSE_VANISHED = 12 /* its machine does not answer: keep-alive probes failed, or output stayed unacknowledged */
};

typedef struct bq_event {
    uint16_t type;
    uint16_t code;
    uint32_t flags;
    bq_conn_t conn;
    uint64_t seq;
    uint64_t value;
    uint8_t peer[16]; /* IPv6, or IPv4 mapped to IPv6; zero for in-memory connections without a bq_peer_t */
    uint16_t peer_port;
    uint16_t reserved;
    uint32_t text_size;
    uint32_t data_size;
    uint32_t reserved2;
    const uint8_t *text; /* text and data point into the ring and are valid until the next bq_event */
    const uint8_t *data;
} bq_event_t;

/* Counters since start, and gauges; all uint64. Per subscriber and message, at the end of every turn: enqueued = delivered +
 * dropped_ttl + dropped_queue_full + dropped_disconnect + dropped_session_log + dead_lettered + queued_messages. A QoS 1
 * delivery is counted when it is settled: acknowledged (delivered), expired or given up. */
typedef struct bq_stats {
    uint64_t published;       /* publishes accepted */
    uint64_t published_bytes; /* their payloads, in bytes */
    uint64_t unrouted;        /* accepted, but without a subscriber */
    uint64_t enqueued;        /* messages put into subscriber queues */
    uint64_t delivered;       /* messages passed completely to the kernel */
    uint64_t delivered_bytes; /* bytes passed to the kernel, including replies */
    uint64_t dropped_ttl;
    uint64_t dropped_queue_full;
    uint64_t dropped_disconnect; /* still queued when the subscriber's connection ended */
    uint64_t frames_bad;
    uint64_t frames_in;
    uint64_t flushes;        /* sends with at least one message */
    uint64_t blocked_pauses; /* times a publisher had to wait for a full queue with policy `block` */
    uint64_t accepted;
    uint64_t refused; /* over max_connections */
    uint64_t closed;
    uint64_t wheel_insertions;
    uint64_t wheel_expirations;
    uint64_t wheel_cascades;
    uint64_t pool_hits;
    uint64_t pool_misses;
    uint64_t route_hits;
    uint64_t route_misses;
    uint64_t compacted_bytes; /* copied out of buffers that slow queues kept allocated */
    uint64_t last_message_id;
    uint64_t turns;
    uint64_t acked; /* QoS 1 deliveries acknowledged */
    uint64_t redelivered;
    uint64_t dead_lettered;
    uint64_t lost_lsns; /* WAL positions that could not be read back for a subscriber */
    uint64_t log_written_bytes;
    uint64_t log_records;
    uint64_t log_sync_us_total;
    uint64_t log_sync_us_max;
    /* Syncs that took up to 100 us; the next fields: up to 300 us, 1 ms and so on; each sync is counted once */
    uint64_t log_syncs_100us;
    uint64_t log_syncs_300us;
    uint64_t log_syncs_1ms;
    uint64_t log_syncs_3ms;
    uint64_t log_syncs_10ms;
    uint64_t log_syncs_30ms;
    uint64_t log_syncs_100ms;
    uint64_t log_syncs_longer;
    uint64_t log_reclaimed_segments;
    uint64_t connections; /* gauges from here */
    uint64_t subscriptions;
    uint64_t filters; /* distinct */
    uint64_t cached_topics;
    uint64_t queued_messages;
    uint64_t queued_bytes;
    uint64_t segments;
    uint64_t memory_used_bytes; /* all memory allocated by the core, including free blocks in pools */
    uint64_t memory_peak_bytes;
    uint64_t pool_free_bytes;
    uint64_t blocked_publishers;
    uint64_t sessions;        /* consumers: QoS 1 subscriptions and queue groups */
    uint64_t sessions_behind; /* they read back from the WAL */
    uint64_t in_flight;
    uint64_t held; /* publishes and answers that wait for the disk */
    uint64_t log_bytes;
    uint64_t log_segments;
    uint64_t log_durable_lsn;
    uint64_t log_next_lsn;
    uint64_t log_checkpoint_lsn;
    uint64_t log_sync_us_last;
    uint64_t log_free_bytes; /* free bytes of the WAL's file system */
    uint64_t log_state;      /* 0: no WAL, 1: good, 2: full, 3: failed */
    uint64_t log_errno;
    uint64_t publishes_not_allowed;   /* a counter: refused, because the publisher's key does not permit the topic */
    uint64_t refused_pending;         /* counters: closed or not accepted, because max_pending was reached */
    uint64_t refused_pending_address; /* closed because max_pending_per_address was reached */
    uint64_t refused_descriptors;     /* closed because the process had almost no free descriptor */
    uint64_t hello_timeouts;          /* closed because they were not admitted in time */
    uint64_t accept_rests;            /* times the listeners paused because of accept_rate */
    uint64_t pending;                 /* a gauge: connections that must send HELLO and are not admitted yet */
    uint64_t sessions_absent;         /* a gauge: durable consumers without a connection */
    uint64_t sessions_refused;        /* counters: SUBs over max_sessions */
    uint64_t sessions_refused_key;    /* SUBs over max_sessions_per_key */
    uint64_t over_session_log;        /* messages over session_log_bytes: dropped, or sent to the dead letters */
    uint64_t dropped_session_log;     /* of over_session_log, the dropped ones */
    uint64_t sessions_expired;        /* durable consumers that expired: no connection for session_expiry_ms */
    uint64_t log_read_bytes;          /* a counter: bytes read from the WAL for consumers that are behind */
    uint64_t log_read_failures;       /* a counter: such reads that failed and will be repeated */
    uint64_t sessions_unread;         /* a gauge: consumers whose last such read failed */
    uint64_t closed_silent;           /* counters: closed with BQ_CLOSE_SILENT */
    uint64_t closed_vanished;         /* closed with BQ_CLOSE_VANISHED */
    uint64_t work;                    /* a counter: units of work, about 50 ns each: see net/fair_share.h */
    uint64_t share_stops;             /* a counter: times a client used up its share of a turn and waited for the next */
    uint64_t dead_letters_unclaimed;  /* counters: of dead_lettered, those without a subscriber */
    uint64_t dead_letters_dropped;    /* of dead_lettered, those for which the WAL had no space */
    uint64_t secure_done;             /* counters: TLS handshakes that were completed */
    uint64_t secure_failed;           /* that failed, were not completed in time, or whose client left */
    uint64_t secure_refused;          /* displaced or refused: limits.max_pending, max_pending_per_address */
    uint64_t secure_open;             /* gauges: TLS connections after their handshake */
    uint64_t secure_pending;          /* before it */
    uint64_t websocket_refused;       /* a counter: WebSocket handshakes that were answered with an error */
    uint64_t websockets;              /* a gauge: of connections, those over WebSocket */
} bq_stats_t;

typedef struct bq_subscriber {
    bq_conn_t conn;
    uint64_t enqueued;
    uint64_t delivered;
    uint64_t dropped_ttl;
    uint64_t dropped_queue_full;
    uint64_t queued_messages;
    uint64_t queued_bytes;
    uint32_t subscriptions;
    uint32_t flags; /* 1: its socket accepts no more at the moment; 2: it is connected over WebSocket */
    uint8_t peer[16];
    uint16_t peer_port;
    uint16_t reserved;
    uint32_t reserved2;
} bq_subscriber_t;

/* A consumer: a QoS 1 subscription or a queue group. In a page the row is followed by the filter, the group, [u16
 * size][client_id] of its clients, and zeros up to a multiple of 8. Texts that are too long are cut. The lag is everything
 * that is not settled: sent and not acknowledged, waiting in memory, or only in the WAL. */
enum bq_consumer_flags {
    BQ_CONSUMER_DURABLE = 1,
    BQ_CONSUMER_GROUP = 2,
    BQ_CONSUMER_QOS1 = 4,
    BQ_CONSUMER_BEHIND = 8,     /* a part of the lag is only in the WAL */
    BQ_CONSUMER_LAG_UNSURE = 16 /* not exact after a restart: the lag is at most the stated value */
};

typedef struct bq_consumer_row {
    uint64_t id;    /* of a durable consumer; else 0 */
    bq_conn_t conn; /* one of its connections; 0: none */
    uint64_t lag_messages;
    uint64_t lag_bytes;    /* of these messages, as sent */
    uint64_t log_bytes;    /* bytes of WAL files from its oldest message on, which therefore cannot be deleted */
    uint64_t oldest_ms;    /* age of its oldest message by the wall clock; UINT64_MAX: not known, or none */
    uint64_t last_seen_ms; /* wall clock when it last had a connection; 0: not known */
    uint64_t away_ms;      /* time without a connection; UINT64_MAX: not known */
    uint64_t enqueued;     /* since the start; also the next six fields */
    uint64_t acked;
    uint64_t redelivered;
    uint64_t dropped_ttl;
    uint64_t dropped_queue_full;
    uint64_t dead_lettered;
    uint64_t over_quota; /* over its WAL quota: dropped, or sent to the dead letters */
    uint32_t members;    /* number of connections */
    uint32_t in_flight;
    uint32_t flags;
    uint32_t filter_size;
    uint32_t group_size;
    uint32_t clients;      /* number of its client_ids; only the first few are listed */
    uint32_t clients_size; /* bytes of the listed client_ids */
    uint32_t reserved;
} bq_consumer_row_t;

typedef struct bq_consumer_over {
    uint64_t count; /* messages since the last such event */
    uint64_t first_id;
    uint64_t last_id;
    uint64_t dropped; /* 0: they were sent to the dead letters */
} bq_consumer_over_t;

typedef struct bq_consumer_sums {
    uint64_t sessions;
    uint64_t durable;
    uint64_t absent; /* durable, without a connection */
    uint64_t lag_messages;
    uint64_t lag_bytes;
} bq_consumer_sums_t;

/* ---- life ---------------------------------------------------------------------------------------------------------- */

bq_t *bq_new(const bq_config_t *config, uint64_t first_message_id); /* NULL: no memory, or a value out of range */
void bq_free(bq_t *bq);                                             /* after bq_join, or in stepped mode */

/* Open and recover the WAL before the core is started. directory: NUL-terminated path. BQ_OK or a negative code, also of
 * wal/wal.h (-22: locked by another broker, -23: written by a newer version). *report is filled as far as possible. */
typedef struct bq_wal_report {
    uint64_t records, bytes, segments;
    uint64_t torn_bytes;
    uint64_t lost_first_lsn, lost_last_lsn, lost_ranges;
    uint64_t first_lsn, next_lsn, checkpoint_lsn;
    uint64_t sessions, next_message_id;
    uint32_t checkpoints_bad, clean;
    int32_t error;          /* errno of a failed system call */
    uint32_t lost_unknown;  /* 1: it is unknown how many LSNs of the last range were used */
    uint32_t damaged_files; /* segments with a bad header or length, and missing segments */
    uint32_t strange_files; /* files that are not of this WAL; moved aside, or left in place */
} bq_wal_report_t;
int bq_wal_open(bq_t *bq, const char *directory, const bq_wal_config_t *config, bq_wal_report_t *report);
uint32_t bq_wal_progress(bq_t *bq); /* 0 to 1000, from another thread while bq_wal_open runs */

int bq_start(bq_t *bq); /* run the core in its own thread */
int bq_join(bq_t *bq);  /* wait for the thread to end, after BQ_EV_STOPPED */

int bq_secure_fits(uint64_t table); /* BQ_OK, or BQ_E_ARGUMENT: the bq_secure_ops_t at this address is of another version */

int bq_wait(bq_t *bq, int timeout_ms);                     /* stepped: wait for readiness; -1: as long as timers allow */
int bq_turn(bq_t *bq, uint64_t mono_ms, uint64_t wall_ms); /* stepped: one turn; returns > 0 if there was work */
int64_t bq_next_timer_ms(bq_t *bq);                        /* stepped: milliseconds to the next timer, -1 for none */
int bq_poll_fd(bq_t *bq);                                  /* stepped: readable when bq_wait would not block; -1: not available */

int bq_event_fd(bq_t *bq);                 /* readable when there are events */
int bq_event(bq_t *bq, bq_event_t *event); /* 1: *event is filled; 0: no event left, the descriptor is armed again */
int bq_command(bq_t *bq, const bq_command_t *command, const uint8_t *text, uint32_t text_size, const uint8_t *data,
               uint32_t data_size);

/* ---- pure functions, for tests, tools and the client ---------------------------------------------------------------- */

typedef struct bq_view {
    const uint8_t *topic;
    const uint8_t *payload;
    const uint8_t *client_id;
    const uint8_t *api_key;
    const uint8_t *group;
    uint32_t topic_size;
    uint32_t payload_size;
    uint32_t client_id_size;
    uint32_t api_key_size;
    uint32_t group_size;
    uint16_t protocol;
    uint8_t action;
    uint8_t qos;
    uint8_t durable;
    uint8_t keep_durable;
    uint8_t reserved[2];
    uint64_t ttl_ms;
    uint64_t seq;
    uint64_t keepalive_ms;
} bq_view_t;

/* 0, or a negative code for bq_decode_error; pointers in the view point into body */
int bq_decode(const uint8_t *body, uint32_t size, bq_view_t *view);
const char *bq_decode_error(int code);                     /* one phrase, never NULL */
int bq_topic_check(const uint8_t *topic, uint32_t size);   /* 0: a valid topic for publishing */
int bq_filter_check(const uint8_t *filter, uint32_t size); /* 0: literal, 1: dot syntax, 2: slash syntax, < 0: invalid */
int bq_filter_match(const uint8_t *filter, uint32_t filter_size, const uint8_t *topic,
                    uint32_t topic_size); /* 1: match, 0: no match, < 0: invalid filter */
int bq_encode_message(uint8_t *out, uint32_t capacity, uint64_t id, uint64_t timestamp_ms, uint64_t ttl_ms, const uint8_t *topic,
                      uint32_t topic_size, const uint8_t *payload, uint32_t payload_size); /* bytes written, or BQ_E_TOO_LARGE */
uint32_t bq_crc32(uint32_t crc, const uint8_t *bytes, uint64_t size);                      /* IEEE 802.3, as zlib's crc32 */

/* ---- the WAL, offline: blipmq wal verify, export, repair ------------------------------------------------------------- */

/* A handle that the caller steps: no threads, no callbacks. It locks the WAL, so it cannot run while a broker uses it.
 * Verify and export change nothing (except that they may create LOCK). Repair does the same as a starting broker: it moves
 * unusable files aside, drops a torn end, writes the newest records again and closes the WAL cleanly. */
typedef struct bq_wal_tool bq_wal_tool_t;

enum bq_wal_mode { BQ_WAL_VERIFY = 0, BQ_WAL_EXPORT = 1, BQ_WAL_REPAIR = 2 };
enum bq_wal_error { BQ_WAL_E_FULL = -20, BQ_WAL_E_LOCKED = -22, BQ_WAL_E_VERSION = -23 };
enum bq_wal_kind {
    BQ_WAL_PROGRESS = 1, /* done_bytes of total_bytes have been read */
    /* name, text, segment; offset and bytes of the bad range; first_lsn to last_lsn of LOST and LOST_AT_MOST */
    BQ_WAL_FINDING = 2,
    BQ_WAL_CHECKPOINT = 3, /* export: lsn, data */
    BQ_WAL_RECORD = 4,     /* export: lsn, type, flags, data; in LSN order */
    BQ_WAL_DONE = 5        /* the totals */
};

typedef struct bq_wal_item {
    uint32_t kind;
    uint32_t data_size;
    const uint8_t *data; /* valid until the next step */
    const char *name;    /* of the case, in capitals: LOST, TORN, DAMAGED ... */
    const char *text;    /* description of the case */
    uint64_t lsn;
    uint64_t segment; /* the number in the file's name; for CHECKPOINT_BAD that of the checkpoint */
    uint64_t offset;
    uint64_t bytes;     /* of the bad range; DONE: of all payloads */
    uint64_t first_lsn; /* DONE: of the WAL */
    uint64_t last_lsn;
    uint64_t done_bytes;
    uint64_t total_bytes;
    uint64_t records; /* DONE; so are the next fields */
    uint64_t segments;
    uint64_t torn_bytes;
    uint64_t lost_ranges;
    uint64_t lost_records; /* LSNs in those ranges */
    uint64_t checkpoint_lsn;
    uint32_t checkpoints_bad;
    uint8_t clean; /* 1: the WAL was closed cleanly */
    uint8_t type;
    uint8_t flags;
    uint8_t lost_unknown; /* 1: lost_records is an upper bound */
} bq_wal_item_t;

/* NULL: *error is a code; BQ_E_SYSTEM with errno */
bq_wal_tool_t *bq_wal_tool_open(const char *directory, uint32_t mode, int *error);
int bq_wal_tool_step(bq_wal_tool_t *wal, bq_wal_item_t *item); /* 1: item filled; 0: DONE was returned before; negative: a code */
void bq_wal_tool_close(bq_wal_tool_t *wal);
