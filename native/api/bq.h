/* api/bq.h: the whole boundary between Python and the C core, read by gcc and by cffi (plain declarations, no preprocessor).
 *
 * Invariant: the core is an actor. One thread runs bq_wait and bq_turn (the I/O thread after bq_start, or the caller in
 * stepped mode); one thread pushes commands and takes events. Nothing else is shared. Every function returns >= 0 or a
 * negative BQ_E code; none calls back, none keeps a caller's pointer after it returns. Sizes are bytes, times say their unit.
 * The structs of settings, bq_config_t and bq_wal_config_t, are in api/settings.h, which is read before this file.
 */

typedef struct bq bq_t;

/* A connection's handle: generation << 32 | slot. A handle of a closed connection is never valid again. */
typedef uint64_t bq_conn_t;

enum bq_error {
    BQ_OK = 0,
    BQ_E_AGAIN = -1,    /* a ring is full: try again after the other side has drained it */
    BQ_E_MEMORY = -2,   /* the allocator failed */
    BQ_E_ARGUMENT = -3, /* a value is outside what the declaration allows */
    BQ_E_SYSTEM = -4,   /* a system call failed: errno tells */
    BQ_E_TOO_LARGE = -5
};

/* What became of a request. A protocol has its own numbers for these. */
enum bq_outcome {
    BQ_OUTCOME_DONE = 0,
    BQ_OUTCOME_INVALID = 1,         /* it is against the rules, whenever it is tried */
    BQ_OUTCOME_UNAUTHENTICATED = 2, /* a key is needed */
    BQ_OUTCOME_NOT_ALLOWED = 3,     /* the key has no right to it */
    BQ_OUTCOME_NOT_FOUND = 4,
    BQ_OUTCOME_ENDED = 5, /* an operator ended it */
    BQ_OUTCOME_TOO_LARGE = 6,
    BQ_OUTCOME_LIMIT = 7,      /* a limit on how many is reached */
    BQ_OUTCOME_UNAVAILABLE = 8 /* not now: memory, the WAL or a full queue */
};

/* ---- commands: Python to core ------------------------------------------------------------------------------------- */

enum bq_command_type {
    BQ_CMD_LISTEN = 1,   /* value: listening socket, owned by the core from now on */
    BQ_CMD_UNLISTEN = 2, /* stop accepting: close every listener */
    BQ_CMD_ADOPT = 3,    /* value: connected socket, owned by the core from now on */
    BQ_CMD_ATTACH =
        4, /* an in-memory connection; answered by BQ_EV_ATTACHED with this seq; flags may hold BQ_CONN_TRUSTED; data: a
                               bq_peer_t, or nothing; value: milliseconds of hello_timeout_ms that have passed already */
    BQ_CMD_INPUT = 5,     /* conn, data: bytes received; answered by BQ_EV_CONSUMED when consumed. flags: BQ_INPUT_END */
    BQ_CMD_CREDIT = 6,    /* conn, value: bytes of BQ_EV_OUT that have left */
    BQ_CMD_ADMIT = 7,     /* conn said HELLO and may go on; seq; answered to the client with Reply code 0 and text; value: the ACL
                               of its key (BQ_CMD_ACL), 0: it may publish everything */
    BQ_CMD_SUBSCRIBE = 8, /* conn, seq, text: filter, value: bytes of data that are the client_id, data: client_id and group;
                               flags: BQ_SUB_QOS1, BQ_SUB_DURABLE. SubAck goes out after the route is set and a new durable
                               subscription is on disk; Reply 429 or 503 when it cannot be had, and BQ_EV_UNSUBSCRIBED */
    BQ_CMD_UNSUBSCRIBE = 9, /* conn, seq, text, value and data as above; ends durable subscriptions of that client too; without a
                               group, all to that filter. Reply for clients that said HELLO: 0 (when it is on disk) and
                               BQ_EV_UNSUBSCRIBED, 404, or 503 when it cannot be logged now: nothing has changed then */
    BQ_CMD_REPLY = 10,  /* conn, seq, code, text: message, data: payload, value: id; flags: BQ_REPLY_CLOSE, BQ_REPLY_UNASKED */
    BQ_CMD_CLOSE = 11,  /* conn, code: enum bq_close */
    BQ_CMD_STATS = 12,  /* answered by BQ_EV_STATS with this seq */
    BQ_CMD_LIST = 13,   /* value: first slot; answered by BQ_EV_LIST pages of subscribers with this seq */
    BQ_CMD_LIMITS = 14, /* data: a bq_config_t whose reloadable fields take effect */
    BQ_CMD_STOP = 15,   /* value: milliseconds to flush in; then everything is closed and BQ_EV_STOPPED comes */
    BQ_CMD_ACL = 16, /* value: a number for a key; data: [u16 size][filter] ... it may publish to, or BQ_ACL_ALL. Makes them, or
                           changes them for all connections admitted with them. BQ_ACL_END: they allow nothing any more */
    BQ_CMD_CLOCK =
        24, /* data: a bq_clock_t: at the start, and whenever the clock was set or became synchronized. The age of stored
                               messages goes by it */
    BQ_CMD_CONSUMERS = 17, /* answered by one BQ_EV_CONSUMERS page with this seq. flags: BQ_CONSUMERS_BEGIN begins a walk, else it
                            goes on; value: the least lag_messages to be told; text: a part of the filter, client_id or group;
                            conn, data: only those of the key this connection came in with, whose client_ids begin so. flags:
                            BQ_CONSUMERS_EXACT: text is the filter, data the client_id with or without its key in front, or nothing:
                            the queue groups */
    BQ_CMD_CONSUMER_END = 18 /* value: the id of a durable one, which ends; data: of a queue group the client_id that is taken
                               out instead, with or without its key in front; answered by BQ_EV_CONSUMER_ENDED with this seq. Those
                               connected to it are told with a Reply 410 that answers no request, and stay */
};

typedef struct bq_clock {
    uint64_t boot_id;      /* tells this boot of the machine from others; 0: the system does not say */
    uint64_t boot_ms;      /* since then, time asleep included */
    uint64_t wall_ms;      /* since 1970 */
    uint32_t synchronized; /* 1: the system says that something keeps wall_ms right */
    uint32_t reserved;
} bq_clock_t;
int bq_clock_read(bq_clock_t *clock); /* what the system's clocks show now */

enum bq_command_flags {
    BQ_REPLY_CLOSE = 1,   /* close once the reply has been flushed */
    BQ_CONN_TRUSTED = 2,  /* an attached connection that needs no HELLO */
    BQ_REPLY_UNASKED = 4, /* answers no request, so it does not end the wait for an answer */
    BQ_SUB_QOS1 = 8,
    BQ_SUB_DURABLE = 16,
    BQ_ACL_ALL = 32,
    BQ_ACL_END = 64,
    BQ_REPLY_DISCARD = 128, /* before the reply: its routes end, and what waits for it is dropped */
    BQ_INPUT_END =
        256, /* no more input comes: the connection ends, as at a socket's end of file, once what came before is served */
    BQ_CONSUMERS_BEGIN = 512,
    BQ_CONSUMERS_EXACT = 1024,
    BQ_SUB_KEYED = 2048 /* the client came in with a key: the client_id begins with its name, if it has one */
};

/* Who is at the other end of a connection. */
typedef struct bq_peer {
    uint8_t address[16]; /* IPv6, or IPv4 mapped into it */
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

/* HELLO, SUB, UNSUB, INFO and ADMIN stop the connection's input until ADMIT, SUBSCRIBE, UNSUBSCRIBE, REPLY or CLOSE answers
 * them: requests of one connection take effect in the order they were sent, and at most one event per connection waits. */
enum bq_event_type {
    BQ_EV_HELLO = 1,  /* conn, seq, value: protocol; text: client_id; data: api_key */
    BQ_EV_SUB = 2,    /* conn, seq, value: qos; text: filter, already checked; data: group; flags: BQ_EV_DURABLE, BQ_EV_LEGACY */
    BQ_EV_UNSUB = 3,  /* conn, seq; text: filter; data: group; flags: BQ_EV_LEGACY, BQ_EV_KEEP: what is durable goes on */
    BQ_EV_INFO = 4,   /* conn, seq; data: what is asked for */
    BQ_EV_CLOSED = 5, /* conn, code: enum bq_close; text: detail. Only for connections Python knows, or closed for cause */
    BQ_EV_ATTACHED = 6,   /* conn, seq; conn 0: there was no room for it */
    BQ_EV_OUT = 7,        /* conn, data: bytes to send on an in-memory connection; answer with CREDIT */
    BQ_EV_CONSUMED = 8,   /* conn, value: bytes consumed */
    BQ_EV_STATS = 9,      /* seq, data: a bq_stats_t */
    BQ_EV_LIST = 10,      /* seq, data: bq_subscriber_t array; value: next slot to ask for, 0 at the end */
    BQ_EV_ACCEPT = 11,    /* accepting has paused or resumed: code 1 paused; value: errno */
    BQ_EV_STOPPED = 12,   /* value: messages that could not be flushed; the I/O thread ends after it */
    BQ_EV_CONSUMERS = 13, /* seq, data: a bq_consumer_sums_t of those looked at so far, then rows; value: 1: there are more */
    BQ_EV_UNSUBSCRIBED =
        14, /* conn; text: filter; data: group. code: enum bq_outcome. DONE: UNSUB has ended it, or without a group
                               all of that filter; else: a SUB of it was refused, or an operator ended it */
    BQ_EV_CONSUMER_ENDED =
        15,           /* seq; code: enum bq_outcome. DONE: its end is on disk; NOT_FOUND: there is none of that id, or no such
                                 client_id; INVALID: several such client_ids; UNAVAILABLE: the WAL did not take it */
    BQ_EV_ADMIN = 16, /* conn, seq; data: what is to be done */
    BQ_EV_CONSUMER_EXPIRED = 17, /* data: the row of a durable consumer that has ended, as in BQ_EV_CONSUMERS */
    BQ_EV_CONSUMER_OVER = 18     /* data: a bq_consumer_over_t, and the row of a consumer that was over session_log_bytes */
};

enum bq_event_flags { BQ_EV_LEGACY = 1, BQ_EV_DURABLE = 2, BQ_EV_TRUSTED = 4, BQ_EV_KEEP = 8 };

enum bq_close {
    BQ_CLOSE_EOF = 0,   /* the client closed */
    BQ_CLOSE_QUIT = 1,  /* the client said QUIT */
    BQ_CLOSE_RESET = 2, /* the socket failed */
    BQ_CLOSE_FRAME = 3, /* a frame that does not verify, or a request that may not be: detail says which */
    BQ_CLOSE_TOO_LARGE = 4,
    BQ_CLOSE_UNAUTH = 5,  /* a command before HELLO while authentication is on, or no HELLO in time */
    BQ_CLOSE_REFUSED = 6, /* over max_connections */
    BQ_CLOSE_BROKER = 7,  /* Python asked for it */
    BQ_CLOSE_SHUTDOWN = 8,
    BQ_CLOSE_MEMORY = 9,
    BQ_CLOSE_CROWDED = 10, /* not admitted yet, and a newcomer needed the place; counted, told only of those Python knows */
    BQ_CLOSE_SILENT = 11,  /* it sent nothing for one and a half times the keepalive_ms that its HELLO had promised */
    BQ_CLOSE_VANISHED = 12 /* its machine does not answer: the system's keep-alive, or output nobody acknowledges */
};

typedef struct bq_event {
    uint16_t type;
    uint16_t code;
    uint32_t flags;
    bq_conn_t conn;
    uint64_t seq;
    uint64_t value;
    uint8_t peer[16]; /* IPv6, or IPv4 mapped into it; zero for in-memory connections that were attached without one */
    uint16_t peer_port;
    uint16_t reserved;
    uint32_t text_size;
    uint32_t data_size;
    uint32_t reserved2;
    const uint8_t *text; /* both point into the ring and hold until the next bq_event */
    const uint8_t *data;
} bq_event_t;

/* Counters since start and gauges, all of them uint64. Per subscriber and message:
 * enqueued = delivered + dropped_ttl + dropped_queue_full + dropped_disconnect + dropped_session_log + dead_lettered + queued_messages, at every turn's
 * end. What is delivered with QoS 1 is counted when it is settled: acknowledged (delivered), expired or given up. */
typedef struct bq_stats {
    uint64_t published;       /* publishes accepted */
    uint64_t published_bytes; /* their payloads */
    uint64_t unrouted;        /* accepted, but no one subscribed */
    uint64_t enqueued;        /* messages put into subscriber queues */
    uint64_t delivered;       /* messages handed to the kernel whole */
    uint64_t delivered_bytes; /* bytes handed to the kernel, replies too */
    uint64_t dropped_ttl;
    uint64_t dropped_queue_full;
    uint64_t dropped_disconnect; /* still queued when the subscriber's connection ended */
    uint64_t frames_bad;
    uint64_t frames_in;
    uint64_t flushes;        /* sends with at least one message */
    uint64_t blocked_pauses; /* times a publisher was held back by a full `block` queue */
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
    uint64_t compacted_bytes; /* copied out of buffers that slow queues kept alive */
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
    uint64_t log_syncs_100us; /* syncs that took up to 100 us; then up to 300 us, 1 ms and so on, each counted once */
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
    uint64_t memory_used_bytes; /* all the core has allocated, free blocks kept in pools included */
    uint64_t memory_peak_bytes;
    uint64_t pool_free_bytes;
    uint64_t blocked_publishers;
    uint64_t sessions;        /* QoS 1 subscriptions and queue groups */
    uint64_t sessions_behind; /* reading back from the WAL */
    uint64_t in_flight;
    uint64_t held; /* publishes and answers that wait for the disk */
    uint64_t log_bytes;
    uint64_t log_segments;
    uint64_t log_durable_lsn;
    uint64_t log_next_lsn;
    uint64_t log_checkpoint_lsn;
    uint64_t log_sync_us_last;
    uint64_t log_free_bytes; /* of its file system */
    uint64_t log_state;      /* 0: none, 1: well, 2: full, 3: failed */
    uint64_t log_errno;
    uint64_t publishes_not_allowed;   /* a counter: refused, because the publisher's key has no right to the topic */
    uint64_t refused_pending;         /* counters again: closed, or pushed out by a newcomer, because max_pending was reached */
    uint64_t refused_pending_address; /* closed because max_pending_per_address was reached */
    uint64_t refused_descriptors;     /* closed because the process had hardly a descriptor left */
    uint64_t hello_timeouts;          /* closed because they were not admitted in time */
    uint64_t accept_rests;            /* times the listeners rested for accept_rate */
    uint64_t pending;                 /* a gauge: connections that have to say HELLO and are not admitted yet */
    uint64_t sessions_absent;         /* a gauge: durable ones that nobody is connected to */
    uint64_t sessions_refused;        /* counters: SUBs over max_sessions, */
    uint64_t sessions_refused_key;    /* over max_sessions_per_key */
    uint64_t over_session_log;        /* messages over session_log_bytes, dropped ones and those given to the dead letters */
    uint64_t dropped_session_log;     /* of them, the dropped ones */
    uint64_t sessions_expired;        /* durable ones that ended because nobody was connected to them for session_expiry_ms */
    uint64_t log_read_bytes;          /* a counter: read from the WAL's files for subscriptions that are behind */
    uint64_t log_read_failures;       /* a counter: such reads that brought nothing and are tried again */
    uint64_t sessions_unread;         /* a gauge: subscriptions whose last such read brought nothing */
    uint64_t closed_silent;           /* counters: BQ_CLOSE_SILENT */
    uint64_t closed_vanished;         /* BQ_CLOSE_VANISHED */
    uint64_t work;                    /* a counter: units of work, of about 50 ns: see net/fair_share.h */
    uint64_t share_stops;             /* a counter: times a client had used its share of a turn and waited for the next */
    uint64_t dead_letters_unclaimed;  /* counters: of dead_lettered, those that nobody had subscribed to */
    uint64_t dead_letters_dropped;    /* and those that the WAL had no room for */
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
    uint32_t flags; /* 1: its socket takes no more at the moment */
    uint8_t peer[16];
    uint16_t peer_port;
    uint16_t reserved;
    uint32_t reserved2;
} bq_subscriber_t;

/* A QoS 1 subscription or a queue group. In a page the row is followed by filter and group, by [u16 size][client_id] of those that
 * hold it, and by zeros up to a multiple of 8; what is too long is cut. The lag is what is not settled: sent and not acknowledged, waiting in memory, or in the WAL alone. */
enum bq_consumer_flags {
    BQ_CONSUMER_DURABLE = 1,
    BQ_CONSUMER_GROUP = 2,
    BQ_CONSUMER_QOS1 = 4,
    BQ_CONSUMER_BEHIND = 8,     /* some of it is in the WAL alone */
    BQ_CONSUMER_LAG_UNSURE = 16 /* a restart has lost count: the lag is at most what is told */
};

typedef struct bq_consumer_row {
    uint64_t id;    /* of a durable one; else 0 */
    bq_conn_t conn; /* one of its connections; 0: nobody is connected */
    uint64_t lag_messages;
    uint64_t lag_bytes;    /* of them, as they are sent */
    uint64_t log_bytes;    /* of the WAL's files, from its oldest message on: what it keeps from being deleted */
    uint64_t oldest_ms;    /* age of its oldest message by the wall clock; UINT64_MAX: not known, or none */
    uint64_t last_seen_ms; /* wall clock, when somebody was connected to it; 0: not known */
    uint64_t away_ms;      /* how long nobody has been; UINT64_MAX: not known */
    uint64_t enqueued;     /* since the start, as what follows */
    uint64_t acked;
    uint64_t redelivered;
    uint64_t dropped_ttl;
    uint64_t dropped_queue_full;
    uint64_t dead_lettered;
    uint64_t over_quota; /* of the WAL: dropped, or given to the dead letters */
    uint32_t members;    /* connections */
    uint32_t in_flight;
    uint32_t flags;
    uint32_t filter_size;
    uint32_t group_size;
    uint32_t clients;      /* client_ids that hold it; the first few are told */
    uint32_t clients_size; /* their bytes */
    uint32_t reserved;
} bq_consumer_row_t;

typedef struct bq_consumer_over {
    uint64_t count; /* messages, since it was told last */
    uint64_t first_id;
    uint64_t last_id;
    uint64_t dropped; /* 0: they go to the dead letters */
} bq_consumer_over_t;

typedef struct bq_consumer_sums {
    uint64_t sessions;
    uint64_t durable;
    uint64_t absent; /* durable, and nobody is connected */
    uint64_t lag_messages;
    uint64_t lag_bytes;
} bq_consumer_sums_t;

/* ---- life ---------------------------------------------------------------------------------------------------------- */

bq_t *bq_new(const bq_config_t *config, uint64_t first_message_id); /* NULL: no memory or a value out of range */
void bq_free(bq_t *bq);                                             /* after bq_join, or in stepped mode */

/* The WAL: opened, and recovered, before the core is started. directory: NUL-terminated path. BQ_OK or a negative code (also
 * those of wal/wal.h: -22 locked by another broker, -23 written by a newer version), with *report filled as far as it went. */
typedef struct bq_wal_report {
    uint64_t records, bytes, segments;
    uint64_t torn_bytes;
    uint64_t lost_first_lsn, lost_last_lsn, lost_ranges;
    uint64_t first_lsn, next_lsn, checkpoint_lsn;
    uint64_t sessions, next_message_id;
    uint32_t checkpoints_bad, clean;
    int32_t error;          /* errno, where a system call failed */
    uint32_t lost_unknown;  /* 1: of the last range nobody knows how much of it there was */
    uint32_t damaged_files; /* segments whose headers or length are not as they were made, or that are gone */
    uint32_t strange_files; /* files that are not this WAL's; they were set aside or left where they are */
} bq_wal_report_t;
int bq_wal_open(bq_t *bq, const char *directory, const bq_wal_config_t *config, bq_wal_report_t *report);
uint32_t bq_wal_progress(bq_t *bq); /* 0 to 1000, from another thread while bq_wal_open runs */

int bq_start(bq_t *bq); /* run in a thread of its own */
int bq_join(bq_t *bq);  /* wait for the thread, which ends after BQ_EV_STOPPED */

int bq_wait(bq_t *bq, int timeout_ms);                     /* stepped: collect readiness; -1 waits as long as timers allow */
int bq_turn(bq_t *bq, uint64_t mono_ms, uint64_t wall_ms); /* stepped: one turn; returns > 0 if there was work */
int64_t bq_next_timer_ms(bq_t *bq);                        /* stepped: milliseconds to the next timer, -1 for none */
int bq_poll_fd(bq_t *bq);                                  /* stepped: readable when bq_wait would not block; -1: none here */

int bq_event_fd(bq_t *bq);                 /* readable when events wait */
int bq_event(bq_t *bq, bq_event_t *event); /* 1: filled; 0: none left, and the descriptor is armed again */
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

int bq_decode(const uint8_t *body, uint32_t size,
              bq_view_t *view);                            /* 0, or a negative code for bq_decode_error; pointers into body */
const char *bq_decode_error(int code);                     /* one phrase, never NULL */
int bq_topic_check(const uint8_t *topic, uint32_t size);   /* 0: a topic that can be published to */
int bq_filter_check(const uint8_t *filter, uint32_t size); /* 0: literal, 1: dot syntax, 2: slash syntax, < 0: bad */
int bq_filter_match(const uint8_t *filter, uint32_t filter_size, const uint8_t *topic,
                    uint32_t topic_size); /* 1, 0, < 0: bad filter */
int bq_encode_message(uint8_t *out, uint32_t capacity, uint64_t id, uint64_t timestamp_ms, uint64_t ttl_ms, const uint8_t *topic,
                      uint32_t topic_size, const uint8_t *payload, uint32_t payload_size); /* bytes written, or BQ_E_TOO_LARGE */
uint32_t bq_crc32(uint32_t crc, const uint8_t *bytes, uint64_t size);                      /* IEEE 802.3, as zlib's crc32 */

/* ---- the WAL, offline: blipmq wal verify, export, repair ------------------------------------------------------------- */

/* A handle that is stepped: no threads, no callbacks. It locks the WAL, so it does not run beside a broker. Verify and export
 * change nothing (but make the LOCK file); repair does what a starting broker does: it moves aside what cannot be used, drops a
 * torn end, writes the newest records anew and closes the WAL in order. */
typedef struct bq_wal_tool bq_wal_tool_t;

enum bq_wal_mode { BQ_WAL_VERIFY = 0, BQ_WAL_EXPORT = 1, BQ_WAL_REPAIR = 2 };
enum bq_wal_error { BQ_WAL_E_FULL = -20, BQ_WAL_E_LOCKED = -22, BQ_WAL_E_VERSION = -23 };
enum bq_wal_kind {
    BQ_WAL_PROGRESS = 1, /* done_bytes of total_bytes have been read */
    BQ_WAL_FINDING =
        2, /* name, text, segment; offset and bytes of the bad range; first_lsn to last_lsn of LOST and LOST_AT_MOST */
    BQ_WAL_CHECKPOINT = 3, /* export: lsn, data */
    BQ_WAL_RECORD = 4,     /* export: lsn, type, flags, data; in LSN order */
    BQ_WAL_DONE = 5        /* the sums */
};

typedef struct bq_wal_item {
    uint32_t kind;
    uint32_t data_size;
    const uint8_t *data; /* holds until the next step */
    const char *name;    /* of the case, in capitals: LOST, TORN, DAMAGED ... */
    const char *text;    /* what it means */
    uint64_t lsn;
    uint64_t segment; /* the number in the file's name; of the checkpoint for CHECKPOINT_BAD */
    uint64_t offset;
    uint64_t bytes;     /* of the bad range; DONE: of all payloads */
    uint64_t first_lsn; /* DONE: of the WAL */
    uint64_t last_lsn;
    uint64_t done_bytes;
    uint64_t total_bytes;
    uint64_t records; /* DONE, as the rest */
    uint64_t segments;
    uint64_t torn_bytes;
    uint64_t lost_ranges;
    uint64_t lost_records; /* LSNs in those ranges */
    uint64_t checkpoint_lsn;
    uint32_t checkpoints_bad;
    uint8_t clean; /* 1: the WAL was closed in order */
    uint8_t type;
    uint8_t flags;
    uint8_t lost_unknown; /* 1: lost_records is the most there may have been */
} bq_wal_item_t;

bq_wal_tool_t *bq_wal_tool_open(const char *directory, uint32_t mode,
                                int *error);                   /* NULL: *error is a code; BQ_E_SYSTEM with errno */
int bq_wal_tool_step(bq_wal_tool_t *wal, bq_wal_item_t *item); /* 1: item filled; 0: it was DONE before; or a code */
void bq_wal_tool_close(bq_wal_tool_t *wal);
