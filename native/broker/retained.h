/* broker/retained.h: the retained message of each topic, in memory.
 *
 *      topics     hash table: topic -> message
 *      order      | m1 | gap | m3 | m4 |      by serial: the order in which they were retained
 *      oldest     m1 -> m4 -> m3              by LSN: the order of their records in the WAL
 *
 * A new value of a topic is made first (retained_make), when its publish is accepted, and put into the index (retained_put) when
 * its record is durable. What was made always fits. A replay to a new subscriber is a cursor: it visits the messages up to the
 * last serial at its beginning. A value that changes during the replay has a later serial, so no client gets an old value
 * after a new one.
 *
 * Invariant: a topic has at most one message in the index, the last that was put. A new topic is made only while the number of
 * messages, those that are made among them, is below count_max, and more bytes are used only up to bytes_max. Both may be
 * exceeded by new values of topics whose old value was still retained when the new one was made. Every step of a cursor costs a
 * unit of work.
 */
#ifndef BQ_RETAINED_H
#define BQ_RETAINED_H

#include "base/hash.h"
#include "base/pool.h"
#include "broker/outqueue.h"

typedef struct retained {
    core_timer_t timer; /* must be first: armed for the expiry tick */
    struct retained *chain;
    struct retained *older, *newer; /* by LSN; of messages in the WAL */
    uint64_t hash;
    uint64_t serial; /* 0: not in the index */
    uint64_t lsn;    /* of its record; 0: in none */
    uint64_t expiry_tick;
    uint32_t place; /* in `order` */
    uint32_t properties_size, payload_size;
    uint16_t topic_size;
    uint8_t qos;
    uint8_t bytes[]; /* topic, properties, payload */
} retained_t;

/* A message to retain. */
typedef struct retained_value {
    const uint8_t *topic, *properties, *payload;
    uint32_t topic_size, properties_size, payload_size;
    uint64_t expiry_tick; /* 0: never */
    uint8_t qos;
} retained_value_t;

typedef struct retained_index {
    pool_t *pool;
    wheel_t *wheel;
    hash_key_t key;
    uint64_t bytes_max; /* limits: of the messages with their texts, and of their number */
    uint32_t count_max;
    uint32_t count, made; /* messages in the index; made and not put yet */
    uint64_t bytes;       /* of all messages, those that are only made too */
    uint64_t table_bytes; /* of `topics` and `order` */
    uint64_t serial;      /* the last one given */
    retained_t **topics;
    uint32_t topics_size; /* a power of two; 0: none yet */
    uint64_t *order;      /* a message's address, or a gap: its serial << 1 | 1 */
    uint32_t order_used, order_size;
    retained_t *oldest, *newest; /* by LSN */
} retained_index_t;

void retained_open(retained_index_t *index, pool_t *pool, wheel_t *wheel, const hash_key_t *key);
void retained_release(retained_index_t *index); /* all made messages have been put or dropped */

retained_t *retained_find(const retained_index_t *index, const uint8_t *topic, uint32_t size); /* NULL: none */
/* The message equals the value, and neither expires: nothing changes if it is retained again. */
bool retained_equals(const retained_t *message, const retained_value_t *value);

/* A message for this value, which must have a payload. NULL: *why is BQ_OUTCOME_LIMIT, or BQ_OUTCOME_UNAVAILABLE without
 * memory. */
retained_t *retained_make(retained_index_t *index, const retained_value_t *value, enum bq_outcome *why);
/* Retain a made message in place of that of its topic. LSNs never decrease; 0: it is in no record. */
void retained_put(retained_index_t *index, retained_t *message, uint64_t lsn);
void retained_drop(retained_index_t *index, retained_t *message);                  /* a made message that is not put */
bool retained_clear(retained_index_t *index, const uint8_t *topic, uint32_t size); /* false: there was none */
void retained_expired(retained_index_t *index, retained_t *message);               /* its timer is due */
/* The record of the oldest message was written again with this LSN. */
void retained_carried(retained_index_t *index, retained_t *message, uint64_t lsn);

typedef struct retained_cursor {
    uint64_t next, last; /* serials; next > last: the replay is complete */
    uint32_t place;      /* a hint: where the search for `next` begins */
} retained_cursor_t;

retained_cursor_t retained_begin(const retained_index_t *index);
/* The next message that a checked filter matches; NULL: there is none, or *units, one for each message visited, are used up. */
const retained_t *retained_next(const retained_index_t *index, retained_cursor_t *cursor, int syntax, const uint8_t *filter,
                                uint32_t filter_size, uint32_t *units);
static inline bool retained_done(const retained_cursor_t *cursor) { return cursor->next > cursor->last; }

static inline const uint8_t *retained_topic(const retained_t *message) { return message->bytes; }
static inline const uint8_t *retained_properties(const retained_t *message) { return message->bytes + message->topic_size; }
static inline const uint8_t *retained_payload(const retained_t *message) {
    return message->bytes + message->topic_size + message->properties_size;
}

#endif
