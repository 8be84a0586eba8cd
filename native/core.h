/* core.h: the complete state of the core. The top level, net/ and broker/ share it; no other part includes it. */
#ifndef BQ_CORE_H
#define BQ_CORE_H

#include "base/bytes.h"
#include "net/connection.h"
#include "net/admission.h"
#include "proto/encoding.h"
#include "net/keepalive.h"
#include "base/poll.h"
#include "base/pool.h"
#include "broker/outqueue.h"
#include "broker/acl.h"
#include "base/ring.h"
#include "broker/router.h"
#include "broker/buffer.h"
#include "broker/consumer.h"
#include "broker/commit.h"
#include "broker/dead_letter.h"
#include "broker/timeline.h"
#include "base/wheel.h"
#include "net/fair_share.h"
#include "broker/waiters.h"

struct secure_core;

#define POLL_EVENTS_MAX 512
#define CONNECTION_CHUNK 64u
#define REFUSED_MAX 64u              /* connections over the limit that are being refused at the same time */
#define REFUSED_MS 1000u             /* time for such a connection to send HELLO */
#define ENDING_MS 30000u             /* time that a client which closed its sending side waits for answers from the disk */
#define LINGER_MS 1000u              /* time for a closed client to read its last Reply */
#define CLOSING_MS 5000u             /* time for that Reply to be sent */
#define RETRY_MS 2u                  /* retry delay while the event ring is full */
#define READ_BYTES (1u << 20)        /* read limit per connection and turn */
#define READ_BYTES_ALL (4u << 20)    /* shared by all connections with input in one turn */
#define READ_BYTES_SHARE (64u << 10) /* minimum for each of them */
#define READ_BYTES_FAN (48u << 10)   /* for a connection whose last topic has several subscribers */
#define READ_BYTES_HEAVY (32u << 10) /* for a heavy connection, which cannot process more in its share of a turn */
#define READ_BYTES_OWN (256u << 10)  /* per read into a connection's own buffer for a large frame; also its growth step */
#define GATHER_BYTES                                                                                                             \
    (64u << 10) /* a shorter remainder moves to the front of the read buffer; a longer one gets a buffer of its own */
#define READ_BYTES_BLOCKING (32u << 10) /* under the block policy: bounds the unprocessed input of a blocked publisher */
#define CONTROL_BYTES_MAX (64u << 10)   /* unsent replies of one connection; above this its input stops */
#define CREDIT_BYTES (256u << 10)       /* unconfirmed BQ_EV_OUT bytes for each in-memory connection */
#define MEMORY_CHUNK_BYTES (16u << 10)
#define TIMERS_MAX 2048u         /* fired per turn */
#define COMMANDS_MAX 1024u       /* per turn: a burst of SUBs must not delay the messages */
#define COMPACT_BYTES (1u << 20) /* copied per turn */
#define REQUEST_BYTES_MAX 4096u  /* for each part of a request to Python: client_id, api_key, group, INFO */
#define SEND_PARTS_MAX 64
#define SEND_COPY_MAX 1024u /* up to this size copying entries costs less than a longer gather list in the kernel */
#define SEND_BUFFER_BYTES (64u << 10)

/* The open run: consecutive publishes to one topic with the same expiry, not yet in the subscribers' queues. */
typedef struct publish_run {
    queue_run_t run; /* buffer NULL: no run is open */
    topic_t *topic;
    uint32_t count_max, size_max; /* limits: under the block policy the room in every target's queue, otherwise one flush */
} publish_run_t;

/* Subscribers that have data to send. The narrow list, for messages with few subscribers, is flushed first. */
enum flush_order { FLUSH_NARROW = 0, FLUSH_WIDE = 1, FLUSH_LISTS };
typedef struct flush_list {
    connection_t **items;
    uint32_t count;
} flush_list_t;

struct bq {
    bq_config_t config;
    bq_stats_t stats; /* counters of this level; core_stats adds those of the other parts */
    pool_t pool;
    wheel_t wheel;
    buffer_store_t buffers;
    queue_env_t queues;
    hash_key_t hash_key;
    routes_t *routes;
    acl_table_t acl;
    publish_run_t open;
    uint64_t now_ms, wall_ms; /* time of this turn */
    uint64_t next_message_id;

    connection_t **chunks; /* CONNECTION_CHUNK connections each, allocated when needed, never freed before the end */
    uint32_t chunk_count, slots_max;
    uint32_t *free_slots; /* a stack */
    uint32_t free_count;
    uint32_t open_count, refused_count;
    flush_list_t dirty[FLUSH_LISTS];
    enum flush_order flush_order; /* list for the subscribers of the QoS 1 delivery being sent */
    share_t share;
    connection_t *retry;
    connection_t *dead;
    uint64_t ends_stop;    /* value of the work counter at which this turn stops ending connections */
    bool ends_left;        /* some of that work is left for the next turn */
    uint64_t input_bytes;  /* in buffers of connections with an incomplete frame */
    uint64_t credit_bytes; /* in BQ_EV_OUT events without CREDIT yet */
    uint64_t turn_bytes;   /* read since the last flush */
    uint64_t flush_due_ms; /* with flush_interval_ms: time of the next flush of waiting deliveries; 0: none waits */

    int poller;
    poll_wake_t command_wake, event_wake;
    ring_t commands, events;
    bool command_waits;          /* the event ring has no room for the answer to the oldest command */
    bool event_out;              /* Python's side: an event is handed out and not popped yet */
    _Atomic uint64_t blob_bytes; /* command data too large for the ring and not yet processed by the core */
    admission_t admission;
    struct secure_core *secure; /* NULL: no TLS */
    keepalive_t keepalive;
    poll_event_t poll_events[POLL_EVENTS_MAX];
    int poll_count;
    int poll_from;       /* index of the first event to process; the last turn processed those before it */
    uint32_t read_bytes; /* read limit of one connection in this turn */
    uint8_t *read_buffer, *send_buffer;

    wal_t *wal; /* NULL: QoS 0 only */
    consumers_t consumers;
    dead_letters_t dead_letters;
    timeline_t timeline;
    pending_commit_t *pending, **pending_tail; /* pending commits in LSN order */
    uint64_t pending_commits, pending_bytes, pending_last_lsn;
    bool commits_left;       /* some durable commits are left for the next turn */
    uint64_t dispatched_lsn; /* everything up to this LSN has been offered to its consumers */
    uint64_t found_lsn;      /* last LSN found at the start; not durable yet if a full disk prevented syncing it */
    uint64_t ids_reserved;
    uint64_t run; /* distinguishes the records of this process from those of earlier ones */
    connection_t *wal_waiters;
    uint64_t wal_flush_ms, wal_batch_bytes, wal_segment_bytes, wal_max_bytes;
    wait_list_t group_waiters; /* publishers waiting for room in a queue group */
    uint64_t commit_due_ms, checkpoint_looked_ms, checkpoint_ms, checkpoint_written;
    uint64_t checkpoints_seen; /* number of finished checkpoints when the last one was requested */
    bool commit_wanted;        /* a record in the batch must not wait longer than wal_flush_ms */
    _Atomic uint32_t wal_progress;

    bool stopping, stop_closed, stopped; /* stop_closed: all connections are closed; stopped: Python has been told */
    uint64_t stop_deadline_ms, stop_seq, stop_unsent;
    bool threaded, in_thread; /* in_thread is of the I/O thread: it is not a stepped core */
    poll_thread_t thread;
};

/* Poll keys: the handle of a connection, or one of these. Generations start at 1, so every handle is larger. */
enum core_key { KEY_WAKE = 1, KEY_LISTENER = 16 };

/* broker/publish.c */
enum publish_outcome { PUBLISH_DONE, PUBLISH_BLOCKED, PUBLISH_NO_MEMORY, PUBLISH_LATER };
enum publish_outcome publish(bq_t *bq, topic_t *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                             wait_list_t **blocker);
uint64_t publish_ttl_ms(const bq_t *bq, uint64_t ttl_ms);                        /* applies the default and the maximum */
uint64_t publish_expiry_tick(const bq_t *bq, uint64_t from_ms, uint64_t ttl_ms); /* 0: never */
bool publish_full(bq_t *bq, const topic_t *topic, uint32_t size);                /* block policy: a subscriber has no room */
void publish_pending(bq_t *bq, topic_t *topic, const pending_commit_t *pending); /* to QoS 0 subscribers, after the commit */
topic_t *publish_topic_find(bq_t *bq, topic_t *last, const uint8_t *name, uint32_t size, int *error);
void publish_run_give(bq_t *bq); /* appends the open run to the queues */

/* event.c */
bool event_push(bq_t *bq, const bq_event_t *event); /* false: no room now */
bool event_room(bq_t *bq);                          /* room for any one event */
void event_retry(bq_t *bq, connection_t *connection);
/* Tells Python that the connection is not, or no longer, subscribed. The caller must have checked event_room. */
void event_unsubscribed(bq_t *bq, const connection_t *connection, const uint8_t *filter, uint32_t filter_size,
                        const uint8_t *group, uint32_t group_size, enum bq_outcome outcome);
void core_stats(bq_t *bq, bq_stats_t *stats);
bool event_stats(bq_t *bq, uint64_t seq);
bool event_list(bq_t *bq, uint64_t seq, uint64_t first_slot);

/* command.c */
bool command_run_all(bq_t *bq);     /* true if any ran */
void command_discard_all(bq_t *bq); /* before freeing the core: frees the data of pending commands */

/* core.c */
void core_timer_set(bq_t *bq, core_timer_t *timer, uint64_t after_ms);
void core_timer_cut(bq_t *bq, core_timer_t *timer, uint64_t after_ms); /* the same, but keeps an earlier timer */
void core_flush(bq_t *bq);
void core_stop(bq_t *bq, uint64_t within_ms, uint64_t seq);
void core_limits(bq_t *bq, const uint8_t *bytes, uint32_t size);
static inline connection_t *core_slot(bq_t *bq, uint32_t slot) {
    return &bq->chunks[slot / CONNECTION_CHUNK][slot % CONNECTION_CHUNK];
}

/* core_check.c: asserts the invariants of the parts in test builds. */
#ifdef BQ_CHECK
void core_check(bq_t *bq);
#else
static inline void core_check(bq_t *bq) { (void)bq; }
#endif

/* Units of work since the start; see net/fair_share.h. */
static inline uint64_t work_done(const bq_t *bq) { return bq->stats.work; }

/* A connection that is not heavy is served between share_begin and share_done, for one share of a turn at most. */
static inline uint64_t share_begin(bq_t *bq) {
    uint64_t begun = work_done(bq);
    bq->share.stop = begun + bq->config.work_share;
    return begun;
}

/* Units that the connection being served may use in one step. */
static inline uint32_t share_units(const bq_t *bq) { return bq->share.stop == UINT64_MAX ? UINT32_MAX : bq->config.work_share; }

static inline void share_done(bq_t *bq, connection_t *connection, uint64_t begun) {
    if (BQ_UNLIKELY(connection->pause & PAUSE_SHARE) || work_done(bq) - begun >= bq->config.work_share / 4)
        share_end(bq, connection, work_done(bq) - begun);
}

/* The connection has data to send. */
static inline void connection_mark_dirty(bq_t *bq, connection_t *connection, enum flush_order order) {
    if (connection->dirty & (order << FLUSH_WIDE | 1u)) return; /* already on the narrow list, which is flushed first */
    connection->dirty |= (uint8_t)(order + 1);
    flush_list_t *list = &bq->dirty[order];
    list->items[list->count++] = connection;
}

static inline void connection_wake_waiters(bq_t *bq, connection_t *connection) {
    if (BQ_UNLIKELY(connection->waiters.first || bq->group_waiters.first)) wait_wake(bq, connection);
}

/* Called by the routes and by shared_reserve. Other code needs it only to have everything published so far in the queues. */
static inline void publish_run_close(bq_t *bq) {
    if (bq->open.run.buffer) publish_run_give(bq);
}

/* Reserves `size` bytes at the end of the shared buffer; buffer_commit follows. Closes the open run first: its frames must be
 * consecutive. NULL: no memory. */
static inline uint8_t *shared_reserve(bq_t *bq, uint32_t size) {
    publish_run_close(bq);
    core_assert(!bq->open.run.buffer); /* closing the run must not have opened another one */
    return buffer_reserve(&bq->buffers, size);
}

/* The cached topic of that name; `last` is the previous topic of the same publisher. NULL: *error is set as by route_topic. */
static inline topic_t *publish_topic(bq_t *bq, topic_t *last, const uint8_t *name, uint32_t size, int *error) {
    if (BQ_LIKELY(last && topic_is(last, name, size))) return last;
    return publish_topic_find(bq, last, name, size, error);
}

#endif
