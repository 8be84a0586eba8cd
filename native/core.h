/* core.h: the actor's whole state, shared by the top level, net/ and broker/, and by nothing else. */
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

#define POLL_EVENTS_MAX 512
#define CONNECTION_CHUNK 64u
#define REFUSED_MAX 64u              /* connections over the limit that are being told so, at once */
#define REFUSED_MS 1000u             /* how long such a one may take to say HELLO */
#define ENDING_MS 30000u             /* how long a client that sends no more waits for answers from the disk */
#define LINGER_MS 1000u              /* how long a closed client may take to read its last Reply */
#define CLOSING_MS 5000u             /* how long that Reply may take to leave */
#define RETRY_MS 2u                  /* when the event ring is full */
#define READ_BYTES (1u << 20)        /* per connection and turn, but */
#define READ_BYTES_ALL (4u << 20)    /* all that have input share this, */
#define READ_BYTES_SHARE (64u << 10) /* each getting so much at least */
#define READ_BYTES_FAN (48u << 10)   /* of one whose last topic has several subscribers */
#define READ_BYTES_HEAVY (32u << 10) /* of one that does not get through more of it in its share of a turn */
#define READ_BYTES_OWN (256u << 10)  /* of one that gathers a frame in a buffer of its own, which grows by so much */
#define GATHER_BYTES                                                                                                             \
    (64u << 10) /* leftovers below go to the front of the read buffer; from here on a frame is gathered in its own */
#define READ_BYTES_BLOCKING (32u << 10) /* the same under the block policy: what a held-back publisher may leave with us */
#define CONTROL_BYTES_MAX (64u << 10)   /* replies waiting for one connection before its input stops */
#define CREDIT_BYTES (256u << 10)       /* in BQ_EV_OUT events at once, for each in-memory connection */
#define MEMORY_CHUNK_BYTES (16u << 10)
#define TIMERS_MAX 2048u         /* fired in a turn */
#define COMMANDS_MAX 1024u       /* per turn: a burst of SUBs must not stall the flow */
#define COMPACT_BYTES (1u << 20) /* copied per turn */
#define REQUEST_BYTES_MAX 4096u  /* of each part of a request that Python is asked: client_id, api_key, group, INFO */
#define SEND_PARTS_MAX 64
#define SEND_COPY_MAX 1024u /* entries up to this size are copied behind one another: to gather them costs the kernel more */
#define SEND_BUFFER_BYTES (64u << 10)

/* The open run: consecutive publishes to one topic with one expiry, not yet given to its queues. */
typedef struct publish_run {
    queue_run_t run; /* buffer NULL: none open */
    topic_t *topic;
    uint32_t count_max, size_max; /* what every target still has room for, under the block policy; else one flush */
} publish_run_t;

/* Subscribers to send to. Those with something that goes to few of them come first. */
enum flush_order { FLUSH_NARROW = 0, FLUSH_WIDE = 1, FLUSH_LISTS };
typedef struct flush_list {
    connection_t **items;
    uint32_t count;
} flush_list_t;

struct bq {
    bq_config_t config;
    bq_stats_t stats; /* what is counted here directly; core_stats adds what the parts count */
    pool_t pool;
    wheel_t wheel;
    buffer_store_t buffers;
    queue_env_t queues;
    hash_key_t hash_key;
    routes_t *routes;
    acl_table_t acl;
    publish_run_t open;
    uint64_t now_ms, wall_ms; /* of this turn */
    uint64_t next_message_id;

    connection_t **chunks; /* CONNECTION_CHUNK each, allocated as needed, kept */
    uint32_t chunk_count, slots_max;
    uint32_t *free_slots; /* a stack */
    uint32_t free_count;
    uint32_t open_count, refused_count;
    flush_list_t dirty[FLUSH_LISTS];
    enum flush_order flush_order; /* the list of those who get a QoS 1 delivery now */
    share_t share;
    connection_t *retry;
    connection_t *dead;
    uint64_t ends_stop;    /* counted work at which ending connections stops in this turn */
    bool ends_left;        /* of that work, some is the next turn's */
    uint64_t input_bytes;  /* in buffers of connections whose frames are not whole yet */
    uint64_t credit_bytes; /* in BQ_EV_OUT events whose CREDIT has not come back */
    uint64_t turn_bytes;   /* read since the last flush */
    uint64_t flush_due_ms; /* with flush_interval_ms: when the waiting deliveries leave; 0: none wait */

    int poller;
    poll_wake_t command_wake, event_wake;
    ring_t commands, events;
    bool command_waits;          /* the oldest command's answer finds no room among the events */
    bool event_out;              /* Python's side: an event is handed out and not yet popped */
    _Atomic uint64_t blob_bytes; /* command data too large for the ring, on its way to the core */
    admission_t admission;
    keepalive_t keepalive;
    poll_event_t poll_events[POLL_EVENTS_MAX];
    int poll_count;
    int poll_from;       /* the first of them to look at: those before it were looked at last turn */
    uint32_t read_bytes; /* of one connection in this turn */
    uint8_t *read_buffer, *send_buffer;

    wal_t *wal; /* NULL: QoS 0 only */
    consumers_t consumers;
    dead_letters_t dead_letters;
    timeline_t timeline;
    pending_commit_t *pending, **pending_tail; /* what waits for the disk, in LSN order */
    uint64_t pending_commits, pending_bytes, pending_last_lsn;
    bool commits_left;       /* of what is durable, some is the next turn's */
    uint64_t dispatched_lsn; /* everything up to here has been offered to its consumers */
    uint64_t found_lsn; /* the last one found at the start; not durable yet where a full disk had no room to make sure of it */
    uint64_t ids_reserved;
    uint64_t run; /* tells this process's records from an earlier one's */
    connection_t *wal_waiters;
    uint64_t wal_flush_ms, wal_batch_bytes, wal_segment_bytes, wal_max_bytes;
    wait_list_t group_waiters; /* publishers that wait for room in a queue group */
    uint64_t commit_due_ms, checkpoint_looked_ms, checkpoint_ms, checkpoint_written;
    uint64_t checkpoints_seen; /* that had been written when the last one was asked for */
    bool commit_wanted;        /* something gathered should not wait longer than wal_flush_ms */
    _Atomic uint32_t wal_progress;

    bool stopping, stop_closed, stopped; /* closed: all connections are; stopped: Python has been told */
    uint64_t stop_deadline_ms, stop_seq, stop_unsent;
    bool threaded;
    poll_thread_t thread;
};

/* Poll keys: a connection's handle, or one of these. Generations start at 1, so a handle is never that small. */
enum core_key { KEY_WAKE = 1, KEY_LISTENER = 16 };

/* broker/publish.c */
enum publish_outcome { PUBLISH_DONE, PUBLISH_BLOCKED, PUBLISH_NO_MEMORY, PUBLISH_LATER };
enum publish_outcome publish(bq_t *bq, topic_t *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                             wait_list_t **blocker);
uint64_t publish_ttl_ms(const bq_t *bq, uint64_t ttl_ms);                        /* with the default and the maximum applied */
uint64_t publish_expiry_tick(const bq_t *bq, uint64_t from_ms, uint64_t ttl_ms); /* 0: never */
bool publish_full(bq_t *bq, const topic_t *topic, uint32_t size);                /* block policy: someone has no room */
void publish_pending(bq_t *bq, topic_t *topic, const pending_commit_t *pending); /* to QoS 0 subscribers, after the disk */
topic_t *publish_topic_find(bq_t *bq, topic_t *last, const uint8_t *name, uint32_t size, int *error);
void publish_run_give(bq_t *bq); /* the open run to its queues */

/* event.c */
bool event_push(bq_t *bq, const bq_event_t *event); /* false: no room now */
bool event_room(bq_t *bq);                          /* for any one event */
void event_retry(bq_t *bq, connection_t *connection);
/* What Python may have noted for this connection is not, or no longer, subscribed. The caller has seen to event_room. */
void event_unsubscribed(bq_t *bq, const connection_t *connection, const uint8_t *filter, uint32_t filter_size,
                        const uint8_t *group, uint32_t group_size, enum bq_outcome outcome);
void core_stats(bq_t *bq, bq_stats_t *stats);
bool event_stats(bq_t *bq, uint64_t seq);
bool event_list(bq_t *bq, uint64_t seq, uint64_t first_slot);

/* command.c */
bool command_run_all(bq_t *bq);     /* true if any ran */
void command_discard_all(bq_t *bq); /* at the end of life: free what they carry */

/* core.c */
void core_timer_set(bq_t *bq, core_timer_t *timer, uint64_t after_ms);
void core_timer_cut(bq_t *bq, core_timer_t *timer, uint64_t after_ms); /* the same, unless it is due earlier already */
void core_flush(bq_t *bq);
void core_stop(bq_t *bq, uint64_t within_ms, uint64_t seq);
void core_limits(bq_t *bq, const uint8_t *bytes, uint32_t size);
static inline connection_t *core_slot(bq_t *bq, uint32_t slot) {
    return &bq->chunks[slot / CONNECTION_CHUNK][slot % CONNECTION_CHUNK];
}

/* core_check.c: asserts, in builds for tests, what the parts' invariants say. */
#ifdef BQ_CHECK
void core_check(bq_t *bq);
#else
static inline void core_check(bq_t *bq) { (void)bq; }
#endif

/* Units of work since the start: see net/fair_share.h. */
static inline uint64_t work_done(const bq_t *bq) { return bq->stats.work; }

/* Somebody who is not heavy is served from here to share_done, at most for a share of a turn. */
static inline uint64_t share_begin(bq_t *bq) {
    uint64_t begun = work_done(bq);
    bq->share.stop = begun + bq->config.work_share;
    return begun;
}

/* What the one being served may ask for at once. */
static inline uint32_t share_units(const bq_t *bq) { return bq->share.stop == UINT64_MAX ? UINT32_MAX : bq->config.work_share; }

static inline void share_done(bq_t *bq, connection_t *connection, uint64_t begun) {
    if (BQ_UNLIKELY(connection->pause & PAUSE_SHARE) || work_done(bq) - begun >= bq->config.work_share / 4)
        share_end(bq, connection, work_done(bq) - begun);
}

/* It has something to send. */
static inline void connection_mark_dirty(bq_t *bq, connection_t *connection, enum flush_order order) {
    if (connection->dirty & (order << FLUSH_WIDE | 1u)) return; /* who is on the narrow list is sent to soon enough */
    connection->dirty |= (uint8_t)(order + 1);
    flush_list_t *list = &bq->dirty[order];
    list->items[list->count++] = connection;
}

static inline void connection_wake_waiters(bq_t *bq, connection_t *connection) {
    if (BQ_UNLIKELY(connection->waiters.first || bq->group_waiters.first)) wait_wake(bq, connection);
}

/* The routes and shared_reserve call it; else it is for those alone that need what has been published so far in its queues. */
static inline void publish_run_close(bq_t *bq) {
    if (bq->open.run.buffer) publish_run_give(bq);
}

/* Room for `size` bytes at the end of the shared buffer: no run stays open that they would lie behind. Then buffer_commit. NULL: no
 * memory. */
static inline uint8_t *shared_reserve(bq_t *bq, uint32_t size) {
    publish_run_close(bq);
    core_assert(!bq->open.run.buffer); /* what it gave to queues has not published in its turn */
    return buffer_reserve(&bq->buffers, size);
}

/* The cached topic of that name; `last` is what its publisher published to before. NULL with *error as route_topic sets it. */
static inline topic_t *publish_topic(bq_t *bq, topic_t *last, const uint8_t *name, uint32_t size, int *error) {
    if (BQ_LIKELY(last && topic_is(last, name, size))) return last;
    return publish_topic_find(bq, last, name, size, error);
}

#endif
