/* broker/router.h: from a topic to the connections that want it.
 *
 *      filters    "WALs.>" -> members, subscriptions          every filter, literal or wildcard, by its text
 *      trie       levels of the wildcard filters, one root per syntax
 *      topics     a bounded cache: topic -> header template of its Message frames, targets
 *
 * Invariant: a topic's targets may be used only while route_is_current says so: subscribing to or leaving a literal filter
 * makes that one topic stale, a wildcard filter makes all of them stale (one generation number). Each connection appears
 * once in the targets, however many of its filters match.
 *
 * Work is counted: finding a topic's targets stops when its units are used up and goes on from there, so that nobody waits for a
 * topic that a thousand filters might match. A topic that none of the last changed filters matches is current without a search.
 */
#ifndef BQ_ROUTE_H
#define BQ_ROUTE_H

#include "base/hash.h"
#include "base/pool.h"

struct connection;
struct consumer;
struct filter;

typedef struct subscription {
    struct connection *connection;
    struct filter *filter;
    uint32_t index;                    /* in the filter's arrays */
    struct subscription *next, **link; /* the connection's list */
} subscription_t;

/* Where a consumer (a QoS 1 subscription or a queue group, see broker/consumer.h) is in the routes. */
typedef struct consumer_route {
    struct filter *filter;
    uint32_t index;
} consumer_route_t;

/* One cached topic. Slots are never freed before the table is, only reused, so that a stale pointer to one is harmless: its
 * holder compares the name. */
typedef struct topic {
    uint64_t hash;
    uint64_t generation; /* of the routes when the targets were found */
    uint64_t serial;     /* one for each entry ever made: slots and names come back, this does not */
    struct topic *chain;
    struct topic *follower; /* what its publisher published to after it, the last time: a hint, compare the name before use */
    struct connection **targets;
    uint32_t target_count;
    uint32_t target_capacity; /* 0: targets are borrowed from a literal filter */
    struct consumer **consumers;
    uint32_t consumer_count, consumer_capacity;
    bool grouped;    /* one of the consumers is a queue group: QoS 0 messages go to it too */
    uint8_t *header; /* encoded Message up to the payload, the name inside it */
    uint32_t header_size;
    uint32_t name_size;  /* 0: the slot is free */
    const uint8_t *name; /* in the header */
    bool stale;
    bool recent;                 /* looked up since the clock hand last passed */
    uint8_t restarts;            /* of the search under way, because filters changed meanwhile */
    uint32_t cost;               /* units that finding the targets took */
    struct topic_search *search; /* under way: the targets are not complete */
} topic_t;

typedef struct routes routes_t;

/* NULL: no memory. Units of work done are added to *work: nodes and filters visited, members merged. */
/* `changing` is called before any topic's targets change: whoever still gives something to the old ones does it now. NULL: nobody. */
typedef void (*route_changing)(void *context);
routes_t *route_new(pool_t *pool, uint32_t topics_max, const hash_key_t *key, uint64_t *work, route_changing changing,
                    void *context);
void route_free(routes_t *routes); /* every subscription has left */

/* Subscribe a connection to a filter that filter_check accepts. 1: new, 0: it was there already, BQ_E_MEMORY, BQ_E_ARGUMENT.
 * `list` is the head of the connection's subscriptions. */
int route_subscribe(routes_t *routes, struct connection *connection, subscription_t **list, const uint8_t *filter, uint32_t size);
bool route_unsubscribe(routes_t *routes, const struct connection *connection, subscription_t *list, const uint8_t *filter,
                       uint32_t size);
void route_leave(routes_t *routes, subscription_t *subscription);

/* The same for a consumer; it is its own member and can be in only once. */
int route_consumer(routes_t *routes, struct consumer *consumer, consumer_route_t *at, const uint8_t *filter, uint32_t size);
void route_consumer_leave(routes_t *routes, consumer_route_t *at);
struct consumer *route_consumer_at(const routes_t *routes, const uint8_t *filter, uint32_t size,
                                   uint32_t index); /* NULL: no more */

static inline bool topic_is(const topic_t *topic, const uint8_t *name, uint32_t size) {
    return topic->name_size == size && size && memcmp(topic->name, name, size) == 0; /* a free slot has size 0 */
}

/* The cached topic of that name, checked and entered when new (which may evict another). NULL with *error set to a
 * topic_check code, or to BQ_E_MEMORY. */
topic_t *route_topic(routes_t *routes, const uint8_t *name, uint32_t size, uint32_t levels_max, int *error);

/* Make topic->targets current; may drop the targets of other topics. NO_MEMORY: the targets are empty. LATER: `units` of work did
 * not do, the targets may not be used yet; call again. */
enum route_outcome { ROUTE_NO_MEMORY, ROUTE_READY, ROUTE_LATER };
enum route_outcome route_resolve(routes_t *routes, topic_t *topic, uint32_t units);

typedef struct route_counts {
    uint64_t generation; /* first, so that the check inlines */
    uint64_t hits, misses, subscriptions, filters, topics;
} route_counts_t;

uint64_t route_bytes(const routes_t *routes); /* of filters and subscriptions */

/* The counters are the routes' first member. */
static inline const route_counts_t *route_counts(const routes_t *routes) { return (const route_counts_t *)(const void *)routes; }

static inline bool route_is_current(const routes_t *routes, const topic_t *topic) {
    return !topic->stale && topic->generation == route_counts(routes)->generation;
}

static inline enum route_outcome route_ready(routes_t *routes, topic_t *topic, uint32_t units) {
    return BQ_LIKELY(route_is_current(routes, topic)) ? ROUTE_READY : route_resolve(routes, topic, units);
}

#endif
