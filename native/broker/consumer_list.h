/* broker/consumer_list.h: the consumers as an operator sees them: a walk over all of them, a page at a time.
 *
 * Invariant: a page is bounded in the consumers it looks at and in its bytes, however many consumers there are. Each consumer that
 * stays from the first page to the last is looked at once.
 */
#ifndef BQ_CONSUMER_LIST_H
#define BQ_CONSUMER_LIST_H

#include "base/bytes.h"

struct bq;
struct consumer;

/* The walk under way; there is one. */
typedef struct consumer_list {
    struct consumer *next; /* NULL: the walk is at its end */
    uint64_t seq;
    uint64_t wal_bytes_max; /* the largest so far: its row is told whatever its lag */
    bq_consumer_sums_t sums;
} consumer_list_t;

/* What a walk is about. The texts hold until the page has been made. */
typedef struct consumer_list_request {
    uint64_t seq, lag_min;
    bq_conn_t conn; /* only what belongs to the key this connection came in with; 0: all */
    bool begin,
        exact; /* exact: `find` is the filter, `owner` the client_id, with or without its key in front, or nothing: the queue groups */
    const uint8_t *find, *owner; /* find: a part of the filter, client_id or group; owner: what its key's client_ids begin with */
    uint32_t find_size, owner_size;
} consumer_list_request_t;

bool event_consumers(struct bq *bq, const consumer_list_request_t *request); /* false: no room among the events now */
void consumer_list_forget(struct bq *bq, const struct consumer *consumer);   /* it is about to end */
/* An event about one consumer: `front`, a few numbers, and its row. False: no room. */
bool event_consumer(struct bq *bq, uint16_t type, const struct consumer *consumer, const uint8_t *front, uint32_t front_size);

/* What a consumer has not settled, and how old the oldest of it is. */
uint64_t consumer_lag_messages(const struct consumer *consumer);
uint64_t consumer_lag_bytes(const struct consumer *consumer);
uint64_t consumer_oldest_ms(const struct bq *bq, const struct consumer *consumer); /* an age; UINT64_MAX: not known */

uint64_t consumer_stamp_ms(const struct consumer *consumer); /* wall clock of its oldest message; 0: not known, or none */

/* Whether an identity is this client_id, as it is or behind the name of its key. */
bool consumer_client_is(const uint8_t *identity, uint32_t identity_size, const uint8_t *client_id, uint32_t size);

/* Numbers that a walk over all consumers gives. */
typedef struct consumer_counts {
    uint32_t behind;
    uint32_t absent;  /* durable, and nobody is connected to them */
    uint32_t members; /* connections in queue groups */
} consumer_counts_t;
void consumer_counts(const struct bq *bq, consumer_counts_t *counts);

#endif
