/* broker/broker.h: the state of the broker: all data about messages, subscriptions and the WAL. It knows no socket.
 *
 *      bq_t (core.h)     [ net_t (net/net.h)     [ broker_t | connections, poller, ... ] | rings, stop ]
 *
 * Invariant: one thread uses it. Files of broker/ see only this structure; net/ and core.c see it as part of their own.
 */
#ifndef BQ_BROKER_H
#define BQ_BROKER_H

#include "base/bytes.h"
#include "base/hash.h"
#include "base/pool.h"
#include "base/wheel.h"
#include "broker/acl.h"
#include "broker/buffer.h"
#include "broker/client.h"
#include "broker/commit.h"
#include "broker/consumer.h"
#include "broker/dead_letter.h"
#include "broker/event_ring.h"
#include "broker/outqueue.h"
#include "broker/publish.h"
#include "broker/router.h"
#include "broker/timeline.h"
#include "broker/waiters.h"
#include "broker/work.h"
#include "proto/encoding.h"

#define REQUEST_BYTES_MAX 4096u /* for each part of a request to Python: client_id, api_key, group, INFO */

typedef struct broker {
    bq_config_t config;
    bq_stats_t stats; /* counters of broker/ and net/; core_stats adds those of the other parts */
    pool_t pool;
    wheel_t wheel;
    buffer_store_t buffers;
    queue_env_t queues;
    hash_key_t hash_key;
    routes_t *routes;
    acl_table_t acl;
    publish_run_t open;
    client_t *full;           /* its queue must be drained before an operation can continue; NULL: none */
    uint32_t drain_round;     /* of the current operation; from 1 */
    uint64_t now_ms, wall_ms; /* time of this turn */
    uint64_t next_message_id;
    uint64_t work_stop; /* value of stats.work at which the connection being served must stop */

    flush_list_t dirty[FLUSH_LISTS];
    enum flush_order flush_order; /* list for the subscribers of the QoS 1 delivery being sent */
    wait_list_t group_waiters;    /* publishers waiting for room in a queue group */
    uint64_t credit_bytes;        /* in BQ_EV_OUT events without CREDIT yet; part of the memory budget */
    event_ring_t events;
    poll_wake_t *wake; /* wakes the thread of the broker when the WAL has finished something */
    const client_ops_t *client_ops;
    bool stopping; /* no new publish is taken; the pending ones are committed */

    wal_t *wal; /* NULL: QoS 0 only */
    consumers_t consumers;
    dead_letters_t dead_letters;
    timeline_t timeline;
    pending_commit_t *pending, **pending_tail; /* pending commits in LSN order */
    uint64_t pending_commits, pending_bytes, pending_last_lsn;
    pending_dispatch_t dispatch; /* of the oldest one */
    bool commits_left;           /* some durable commits are left for the next turn */
    uint64_t dispatched_lsn;     /* everything up to this LSN has been offered to its consumers */
    topic_t *dispatched_topic;   /* of the last publish; a hint: compare the name before use */
    uint64_t found_lsn;          /* last LSN found at the start; not durable yet if a full disk prevented syncing it */
    uint64_t ids_reserved;
    uint64_t run; /* distinguishes the records of this process from those of earlier ones */
    client_t *wal_waiters;
    uint64_t wal_flush_ms, wal_batch_bytes, wal_segment_bytes, wal_max_bytes;
    uint64_t commit_due_ms, checkpoint_looked_ms, checkpoint_ms, checkpoint_written;
    uint64_t checkpoints_seen; /* number of finished checkpoints when the last one was requested */
    bool commit_wanted;        /* a record in the batch must not wait longer than wal_flush_ms */
    _Atomic uint32_t wal_progress;
} broker_t;

/* broker/broker.c */
/* `broker` is zeroed. False: no memory, or no descriptors. broker_release is called in both cases. */
bool broker_init(broker_t *broker, const bq_config_t *config, uint64_t first_message_id, uint32_t clients_max,
                 const client_ops_t *client_ops);
void broker_release(broker_t *broker);                           /* after commit_close; all clients have left */
void broker_limits(broker_t *broker, const bq_config_t *config); /* the settings that may change at run time */
void timer_set(broker_t *broker, core_timer_t *timer, uint64_t after_ms);
void timer_cut(broker_t *broker, core_timer_t *timer, uint64_t after_ms); /* the same, but keeps an earlier timer */
static inline uint64_t tick_of(const broker_t *broker, uint64_t ms) { return ms / broker->config.tick_ms; }

/* Units of work since the start; see broker/work.h. */
static inline uint64_t work_done(const broker_t *broker) { return broker->stats.work; }

/* Units that the connection being served may use in one step. */
static inline uint32_t share_units(const broker_t *broker) {
    return broker->work_stop == UINT64_MAX ? UINT32_MAX : broker->config.work_share;
}

static inline client_t *client_find(broker_t *broker, bq_conn_t handle) { return broker->client_ops->find(broker, handle); }
static inline void client_answered(broker_t *broker, client_t *client) { broker->client_ops->answered(broker, client); }

/* Removes one reason to pause. */
static inline void client_resume(broker_t *broker, client_t *client, uint8_t pause) {
    client->pause &= (uint8_t)~pause;
    if (!client->pause && client->live) broker->client_ops->resume(broker, client);
}

/* The operation is complete for which queues were drained. */
static inline void drain_end(broker_t *broker) {
    if (!++broker->drain_round) broker->drain_round = 1; /* 0: never drained */
}

/* Continues without draining the full queue. */
static inline void drain_skip(broker_t *broker) {
    broker->full->drain_round = broker->drain_round;
    broker->full = NULL;
}

/* The client has data to send. */
static inline void client_mark_dirty(broker_t *broker, client_t *client, enum flush_order order) {
    if (client->dirty & (order << FLUSH_WIDE | 1u)) return; /* already on the narrow list, which is flushed first */
    client->dirty |= (uint8_t)(order + 1);
    flush_list_t *list = &broker->dirty[order];
    list->items[list->count++] = client;
}

static inline void client_wake_waiters(broker_t *broker, client_t *client) {
    if (BQ_UNLIKELY(client->waiters.first || broker->group_waiters.first)) wait_wake(broker, client);
}

/* Before the routes change, and before other data is appended to the shared buffer. net_run_close has closed the run before:
 * it drains full queues, which broker/ cannot. If it has not, messages may be dropped that a drained queue would have taken. */
static inline void publish_run_closed(broker_t *broker) {
    core_assert(!broker->open.run.buffer);
    if (BQ_UNLIKELY(broker->open.run.buffer != NULL)) publish_run_finish(broker);
}

/* Reserves `size` bytes at the end of the shared buffer; buffer_commit follows. NULL: no memory. */
static inline uint8_t *shared_reserve(broker_t *broker, uint32_t size) {
    publish_run_closed(broker);
    return buffer_reserve(&broker->buffers, size);
}

/* The cached topic of that name; `last` is the previous topic of the same publisher, or the last one dispatched. NULL: *error is
 * set as by route_topic, or PUBLISH_RUN_OPEN: the open run must be closed first, because a new topic may take the place of its
 * topic in the cache. */
static inline topic_t *publish_topic(broker_t *broker, topic_t *last, const uint8_t *name, uint32_t size, int *error) {
    if (BQ_LIKELY(last && topic_is(last, name, size))) return last;
    return publish_topic_find(broker, last, name, size, error);
}

#endif
