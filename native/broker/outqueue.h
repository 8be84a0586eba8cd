/* broker/outqueue.h: what one subscriber has yet to be sent: a list of runs of frames in shared buffers.
 *
 *      head                                       tail
 *       v                                          v
 *      [entry: 3 frames of buffer 7] <-> [entry: 2,000 frames of buffer 8] <-> ...
 *        ^ offset: next byte to send. head_left > 0: the first frame is partly on the wire and can no longer be dropped
 *
 * Invariants: messages, bytes and control_bytes are the sums over the entries; enqueued = delivered + dropped_ttl +
 * dropped_queue_full + messages (+ what is dropped when the connection ends). An entry is either `count` whole messages of
 * one topic and one expiry tick, or data with a count of 0, which is never dropped and not counted against the caps:
 * replies, and QoS 1 deliveries, which their consumer counts.
 */
#ifndef BQ_QUEUE_H
#define BQ_QUEUE_H

#include "base/bytes.h"
#include "broker/buffer.h"
#include "base/wheel.h"

struct queue;
struct connection;

enum timer_kind { TIMER_ENTRY, TIMER_CONNECTION, TIMER_ACCEPT, TIMER_DELIVERY, TIMER_KEEPALIVE };

/* What the wheel fires: the kind says which structure the timer is part of. */
typedef struct timer {
    wheel_timer_t wheel; /* must be first: the wheel hands back its address */
    uint32_t kind;
} core_timer_t;

typedef struct queue_entry {
    core_timer_t timer; /* armed when the messages expire (unless expiry is lazy) */
    uint32_t count;     /* messages not wholly sent */
    uint64_t tick;      /* when they expire; 0: never. Runs of different expiry never share an entry */
    struct queue_entry *next, *previous;
    struct queue_entry *buffer_next, **buffer_link;
    buffer_t *buffer;
    struct queue *queue;
    struct queue_entry
        *other;         /* of a QoS 1 delivery: its consumer's entry, whose `other` is this one; NULL: it is not wanted back */
    uint32_t offset;    /* in buffer->bytes */
    uint32_t size;      /* bytes from there on */
    bool kept;          /* a QoS 1 delivery: bounded by its consumer's window, so neither dropped nor counted as a reply */
    uint32_t head_left; /* what is left of a first frame that is partly on the wire; 0: none is */
} queue_entry_t;

typedef struct queue {
    queue_entry_t *head, *tail;
    queue_entry_t *oldest; /* no entry before it holds messages to drop; NULL: no entry at all does */
    uint64_t bytes;        /* of messages */
    uint32_t messages;
    uint32_t control_bytes; /* of replies */
    uint64_t enqueued, delivered, dropped_ttl, dropped_queue_full;
} queue_t;

/* A run: consecutive frames in the open buffer, of one topic and one expiry. */
typedef struct queue_run {
    buffer_t *buffer;
    uint32_t offset, size, count;
    uint64_t tick; /* expires when the wheel reaches it; 0: never */
} queue_run_t;

typedef void (*queue_handed)(void *context, queue_entry_t *hold);

/* The pieces of the core that queues work with, and the counters they keep. */
typedef struct queue_env {
    pool_t *pool;
    wheel_t *wheel;
    buffer_store_t *buffers;
    bq_stats_t *stats;
    uint64_t bytes_max; /* caps of every queue */
    uint32_t messages_max;
    uint32_t entry_messages_max; /* an entry never grows past one flush: flushes then take whole entries */
    uint32_t entry_bytes_max;
    bool lazy_expiry;    /* see bq_config_t */
    queue_handed handed; /* called when the last byte of a QoS 1 delivery has left, with what its consumer holds it by */
    void *handed_context;
} queue_env_t;

/* Room under both caps. An empty queue takes one message of any size: a cap below the message size must not stop the flow. */
static inline bool queue_fits(const queue_t *queue, const queue_env_t *env, uint32_t messages, uint64_t bytes) {
    if (messages > env->messages_max - (queue->messages < env->messages_max ? queue->messages : env->messages_max)) return false;
    return queue->bytes + bytes <= env->bytes_max || (messages == 1 && queue->messages == 0);
}

/* Append a run, or control bytes (count 0, not counted as messages). False: no memory; the messages are counted as dropped. */
bool queue_push(queue_t *queue, queue_env_t *env, const queue_run_t *run);

/* Append one QoS 1 delivery, which its consumer holds by `hold`. False: no memory, nothing has changed. */
bool queue_push_kept(queue_t *queue, queue_env_t *env, const queue_run_t *run, queue_entry_t *hold);

/* Take it out of its queue again. Begun, it is finished, and nobody is told. */
static inline bool queue_begun(const queue_entry_t *hold) { return hold->other && hold->other->size < hold->size; }
void queue_take_back(queue_entry_t *hold, queue_env_t *env);

/* Append a run the policy's way: at the caps, drop_oldest makes room from the head, drop_new cuts the run. */
bool queue_push_dropping(queue_t *queue, queue_env_t *env, const queue_run_t *run, uint32_t overflow_policy);

/* `bytes` more are on the wire: move the head on and count what was delivered. */
void queue_sent(queue_t *queue, queue_env_t *env, uint64_t bytes);

/* The wheel reached an entry's tick: drop it, all but a frame that is partly on the wire. */
void queue_expire(queue_entry_t *entry, queue_env_t *env);

/* Lazy expiry: drop what has expired at the head, before the head is sent. */
void queue_expire_head(queue_t *queue, queue_env_t *env, uint64_t now_tick);

/* Drop everything but a first frame that is partly on the wire, which `begun` says there may be. Returns the messages dropped. */
uint64_t queue_discard(queue_t *queue, queue_env_t *env, bool begun);

/* Drop the QoS 1 deliveries, all but a first one that is partly on the wire, which `begun` says there may be. */
void queue_drop_kept(queue_t *queue, queue_env_t *env, bool begun);

/* Drop up to `entries_max` entries from the head; returns the messages dropped (counted by the caller, who knows the reason). */
uint64_t queue_clear(queue_t *queue, queue_env_t *env, uint32_t entries_max);

#endif
