/* broker/outqueue.h: the output queue of a subscriber: a list of runs of frames in shared buffers.
 *
 *      head                                       tail
 *       v                                          v
 *      [entry: 3 frames of buffer 7] <-> [entry: 2,000 frames of buffer 8] <-> ...
 *        ^ offset: next byte to send. head_left > 0: the first frame is partly sent and cannot be dropped
 *
 * Invariants: messages, bytes and control_bytes are the sums over the entries; enqueued = delivered + dropped_ttl +
 * dropped_queue_full + messages (+ messages dropped when the connection closes). An entry has `count` whole messages of one
 * topic and one expiry tick, or it is data with count 0, which is never dropped and not counted against the limits: replies, and
 * QoS 1 deliveries, which their consumer counts.
 */
#ifndef BQ_QUEUE_H
#define BQ_QUEUE_H

#include "base/bytes.h"
#include "broker/buffer.h"
#include "base/wheel.h"

struct queue;
struct client;

enum timer_kind { TIMER_ENTRY, TIMER_CONNECTION, TIMER_ACCEPT, TIMER_DELIVERY, TIMER_KEEPALIVE, TIMER_RETAINED };

/* A timer in the wheel. The kind tells which structure contains it. */
typedef struct timer {
    wheel_timer_t wheel; /* must be first: the wheel returns its address */
    uint32_t kind;
} core_timer_t;

typedef struct queue_entry {
    core_timer_t timer; /* armed for the expiry tick, unless expiry is lazy */
    uint32_t count;     /* messages not completely sent */
    uint64_t tick;      /* expiry tick; 0: never. An entry has only runs of the same expiry */
    struct queue_entry *next, *previous;
    struct queue_entry *buffer_next, **buffer_link;
    buffer_t *buffer;
    struct queue *queue;
    struct queue_entry
        *other; /* of a QoS 1 delivery: links its consumer's entry and its queue entry; NULL: the consumer no longer needs it */
    uint32_t offset;    /* in buffer->bytes */
    uint32_t size;      /* remaining bytes from the offset */
    bool kept;          /* a QoS 1 delivery: limited by its consumer's window, never dropped, not counted as a reply */
    uint32_t head_left; /* unsent bytes of a partly sent first frame; 0: none */
} queue_entry_t;

typedef struct queue {
    queue_entry_t *head, *tail;
    queue_entry_t *oldest; /* no earlier entry has messages that may be dropped; NULL: no entry has */
    uint64_t bytes;        /* of messages */
    uint32_t messages;
    uint32_t control_bytes; /* of replies */
    uint64_t enqueued, delivered, dropped_ttl, dropped_queue_full;
    uint8_t encoding; /* enum encoding, of all messages in it */
} queue_t;

/* A run: consecutive frames in the open buffer, of one topic and one expiry. */
typedef struct queue_run {
    buffer_t *buffer;
    uint32_t offset, size, count;
    uint64_t tick; /* expiry tick; 0: never */
} queue_run_t;

typedef void (*queue_handed)(void *context, queue_entry_t *hold);

/* The parts of the core that queues use, and their shared settings. */
typedef struct queue_env {
    pool_t *pool;
    wheel_t *wheel;
    buffer_store_t *buffers;
    bq_stats_t *stats;
    uint64_t bytes_max; /* limits of every queue */
    uint32_t messages_max;
    uint32_t entry_messages_max; /* at most one flush, so that a flush takes whole entries */
    uint32_t entry_bytes_max;
    bool lazy_expiry;    /* see bq_config_t */
    queue_handed handed; /* called with the consumer's entry when the last byte of a QoS 1 delivery is sent */
    void *handed_context;
} queue_env_t;

/* Room within both limits. An empty queue accepts one message of any size, so that a limit below the message size does not block
 * all messages. */
static inline bool queue_fits(const queue_t *queue, const queue_env_t *env, uint32_t messages, uint64_t bytes) {
    if (messages > env->messages_max - (queue->messages < env->messages_max ? queue->messages : env->messages_max)) return false;
    return queue->bytes + bytes <= env->bytes_max || (messages == 1 && queue->messages == 0);
}

/* Appends a run, or control data (count 0, not counted as messages). False: no memory; the messages are counted as dropped. */
bool queue_push(queue_t *queue, queue_env_t *env, const queue_run_t *run);

/* Counts messages of a run that could not be appended. */
void queue_refuse(queue_t *queue, queue_env_t *env, uint32_t messages);

/* Appends one QoS 1 delivery, which its consumer keeps as `hold`. False: no memory; nothing has changed. */
bool queue_push_kept(queue_t *queue, queue_env_t *env, const queue_run_t *run, queue_entry_t *hold);

/* Removes it from its queue. If a part is already sent, the rest is sent too, without a call of `handed`. */
static inline bool queue_begun(const queue_entry_t *hold) { return hold->other && hold->other->size < hold->count; }
void queue_take_back(queue_entry_t *hold, queue_env_t *env);

/* Appends a run according to the overflow policy: at the limits drop_oldest drops from the head, drop_new shortens the run. */
bool queue_push_dropping(queue_t *queue, queue_env_t *env, const queue_run_t *run, uint32_t overflow_policy);

/* `bytes` more are sent: advances the head and counts delivered messages. */
void queue_sent(queue_t *queue, queue_env_t *env, uint64_t bytes);

/* The entry's expiry tick is reached: drops it, except a partly sent frame. */
void queue_expire(queue_entry_t *entry, queue_env_t *env);

/* Lazy expiry: drops expired messages at the head before sending. */
void queue_expire_head(queue_t *queue, queue_env_t *env, uint64_t now_tick);

/* Drops everything except a partly sent first frame (`begun`: there may be one). Returns the messages dropped. */
uint64_t queue_discard(queue_t *queue, queue_env_t *env, bool begun);

/* Drops the QoS 1 deliveries, except a partly sent first frame (`begun`: there may be one). */
void queue_drop_kept(queue_t *queue, queue_env_t *env, bool begun);

/* Drops up to `entries_max` entries from the head. Returns the messages dropped; the caller counts them by reason. */
uint64_t queue_clear(queue_t *queue, queue_env_t *env, uint32_t entries_max);

#endif
