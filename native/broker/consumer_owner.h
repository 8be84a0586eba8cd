/* broker/consumer_owner.h: how many QoS 1 subscriptions and queue groups each key has, so that one of them cannot have all.
 *
 * Invariant: a count is that of the consumers and registrations that point to it; one without any is gone. Who has no key, or one that
 * has no name, counts as one.
 */
#ifndef BQ_CONSUMER_OWNER_H
#define BQ_CONSUMER_OWNER_H

#include "base/bytes.h"

struct bq;

#define KEY_ENDS 0x1f /* between the name of a key and a client_id */
#define OWNER_CHAINS 256u

typedef struct consumer_owner {
    struct consumer_owner *next;
    uint64_t hash;
    uint32_t count, size;
    uint8_t name[];
} consumer_owner_t;

/* The owner of an identity, a client_id behind the name of its key, has one more; NULL: no memory to count it. */
consumer_owner_t *consumer_owner_enter(struct bq *bq, const uint8_t *identity, uint32_t size);
void consumer_owner_leave(struct bq *bq, consumer_owner_t *owner); /* NULL is fine */
uint32_t consumer_owner_count(const struct bq *bq, const uint8_t *identity, uint32_t size);

#endif
