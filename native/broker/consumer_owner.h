/* broker/consumer_owner.h: counts QoS 1 subscriptions and queue groups per key, so that one key cannot use the whole limit.
 *
 * Invariant: a count is the number of consumers and registrations that point to it; it is freed at 0. All clients without a key,
 * or with an unnamed key, share one count.
 */
#ifndef BQ_CONSUMER_OWNER_H
#define BQ_CONSUMER_OWNER_H

#include "base/bytes.h"

struct broker;

#define KEY_ENDS 0x1f /* separates the key's name and the client_id in an identity */
#define OWNER_CHAINS 256u

typedef struct consumer_owner {
    struct consumer_owner *next;
    uint64_t hash;
    uint32_t count, size;
    uint8_t name[];
} consumer_owner_t;

/* Adds one to the count of the identity's key. An identity is the key's name, KEY_ENDS and the client_id. NULL: no memory; not
 * counted. */
consumer_owner_t *consumer_owner_enter(struct broker *broker, const uint8_t *identity, uint32_t size);
void consumer_owner_leave(struct broker *broker, consumer_owner_t *owner); /* NULL is allowed */
uint32_t consumer_owner_count(const struct broker *broker, const uint8_t *identity, uint32_t size);

#endif
