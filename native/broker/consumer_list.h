/* broker/consumer_list.h: lists all consumers for an operator, in pages.
 *
 * Invariant: a page visits a bounded number of consumers and has a bounded size. A consumer that exists from the first page to
 * the last is visited exactly once.
 */
#ifndef BQ_CONSUMER_LIST_H
#define BQ_CONSUMER_LIST_H

#include "base/bytes.h"

struct broker;
struct consumer;

/* The current walk; there is only one. */
typedef struct consumer_list {
    struct consumer *next; /* NULL: the walk has ended */
    uint64_t seq;
    uint64_t wal_bytes_max; /* largest so far; its row is sent for any lag */
    bq_consumer_sums_t sums;
} consumer_list_t;

/* Parameters of a walk. The texts are valid until the page is complete. */
typedef struct consumer_list_request {
    uint64_t seq, lag_min;
    bq_conn_t conn; /* list only consumers of this connection's key; 0: all */
    bool begin,
        exact; /* exact: `find` is the whole filter; `owner` is the client_id, with or without key prefix; empty: queue groups */
    const uint8_t *find, *owner; /* find: part of the filter, client_id or group; owner: prefix of the key's client_ids */
    uint32_t find_size, owner_size;
} consumer_list_request_t;

bool event_consumers(struct broker *broker, const consumer_list_request_t *request); /* false: the event ring has no room now */
void consumer_list_forget(struct broker *broker, const struct consumer *consumer);   /* call before it is freed */
/* Sends an event about one consumer: `front` (numbers), then its row. False: no room. */
bool event_consumer(struct broker *broker, uint16_t type, const struct consumer *consumer, const uint8_t *front,
                    uint32_t front_size);

/* Unsettled messages of a consumer. */
uint64_t consumer_lag_messages(const struct consumer *consumer);
uint64_t consumer_lag_bytes(const struct consumer *consumer);

uint64_t consumer_stamp_ms(const struct consumer *consumer); /* wall clock of its oldest message; 0: not known, or none */

/* Whether an identity is this client_id, with or without a key prefix. */
bool consumer_client_is(const uint8_t *identity, uint32_t identity_size, const uint8_t *client_id, uint32_t size);

/* Sums over all consumers. */
typedef struct consumer_counts {
    uint32_t behind;
    uint32_t absent;  /* durable, without a connection */
    uint32_t members; /* connections in queue groups */
} consumer_counts_t;
void consumer_counts(const struct broker *broker, consumer_counts_t *counts);

#endif
