/* broker/router.h: finds the connections and consumers that match a topic.
 *
 *      filters    "logs.>" -> members, subscriptions          every filter, literal or wildcard, by its text
 *      trie       levels of the wildcard filters, one root per syntax
 *      topics     a bounded cache: topic -> header templates of its messages, targets
 *
 * Invariant: a topic's targets are valid only while route_is_current returns true. A change of a literal filter makes that one
 * topic stale; a change of a wildcard filter makes all topics stale (one generation number). A connection appears in the targets
 * once, even if several of its filters match.
 *
 * Work is counted: the search for a topic's targets stops when its units are used up, and continues later. So a topic with a
 * thousand matching filters does not delay other connections. A topic that matches none of the recently changed filters stays
 * current without a search.
 */
#ifndef BQ_ROUTE_H
#define BQ_ROUTE_H

#include "base/hash.h"
#include "base/pool.h"
#include "proto/encoding.h"

struct client;
struct consumer;
struct filter;

typedef struct subscription {
    struct client *client;
    struct filter *filter;
    uint32_t index;                    /* in the filter's arrays */
    struct subscription *next, **link; /* the connection's list */
} subscription_t;

/* One filter of a consumer in the routes (see broker/consumer.h and broker/session.h). */
typedef struct consumer_filter {
    struct filter *filter; /* NULL: not in the routes */
    struct consumer *consumer;
    uint64_t born_lsn;             /* the consumer gets later messages only through it; 0: it was not durable when it began */
    uint32_t index;                /* in the filter's array */
    uint32_t subscription_id : 28; /* 0: none */
    uint32_t qos : 2;              /* 0: it stores no message */
    uint32_t no_local : 1;
    uint32_t retain_as_published : 1;
} consumer_filter_t;

/* One cached topic. Slots are reused, and freed only with the table. So a stale pointer to a slot is safe: its holder compares
 * the name. */
typedef struct topic {
    uint64_t hash;
    uint64_t generation; /* generation of the routes when the targets were found */
    uint64_t serial;     /* unique per entry: slots and names are reused, serials are not */
    struct topic *chain;
    struct topic *follower; /* next topic of the same publisher last time: a hint, compare the name before use */
    struct client **targets;
    uint32_t target_count;
    uint32_t target_capacity;      /* 0: the targets belong to a literal filter */
    consumer_filter_t **consumers; /* the filters of consumers that match; those of one consumer follow each other */
    uint32_t consumer_count, consumer_capacity;
    bool grouped;          /* a consumer is a queue group, which also gets QoS 0 messages */
    bool folded;           /* a consumer has several filters that match */
    bool wide;             /* many targets, a queue group, or targets with an encoding other than `encoding` */
    uint8_t encodings;     /* bits of the encodings of the targets */
    uint8_t encoding;      /* enum encoding of its runs: the first one of its targets */
    const uint8_t *header; /* template of a header in that encoding; NULL: not needed yet */
    uint32_t overhead;     /* bytes of a message besides its payload in that encoding, at most */
    uint32_t name_size;    /* 0: free slot */
    uint8_t *name;
    uint8_t *headers[ENCODINGS]; /* made when first needed */
    bool stale;
    bool recent;                 /* used since the clock hand passed */
    uint8_t restarts;            /* restarts of the current search, because filters changed */
    uint32_t cost;               /* units used to find the targets */
    struct topic_search *search; /* current search: the targets are incomplete */
} topic_t;

typedef struct routes routes_t;

/* Creates the routes. NULL: no memory. Units of work are added to *work: nodes and filters visited, members merged. */
/* Called before the targets of any topic change, to finish work with the old ones. NULL: not called. */
typedef void (*route_changing)(void *context);
routes_t *route_new(pool_t *pool, uint32_t topics_max, const hash_key_t *key, uint64_t *work, route_changing changing,
                    void *context);
void route_free(routes_t *routes); /* all subscriptions must have been removed */

/* Subscribes a connection to a filter that filter_check accepts. Returns 1: new, 0: existed already, BQ_E_MEMORY or
 * BQ_E_ARGUMENT. `list` is the head of the connection's subscriptions. */
int route_subscribe(routes_t *routes, struct client *client, subscription_t **list, const uint8_t *filter, uint32_t size);
bool route_unsubscribe(routes_t *routes, const struct client *client, subscription_t *list, const uint8_t *filter, uint32_t size);
void route_leave(routes_t *routes, subscription_t *subscription);

/* The same for a filter of a consumer. The caller has set at->consumer, and no other filter of it has the same text. */
int route_consumer(routes_t *routes, consumer_filter_t *at, const uint8_t *filter, uint32_t size);
void route_consumer_leave(routes_t *routes, consumer_filter_t *at);
consumer_filter_t *route_consumer_at(const routes_t *routes, const uint8_t *filter, uint32_t size,
                                     uint32_t index); /* NULL: no more */
bool route_consumer_matches(const consumer_filter_t *at, const uint8_t *topic, uint32_t size);
const uint8_t *route_consumer_text(const consumer_filter_t *at, uint32_t *size, int *syntax);
void route_count_bytes(routes_t *routes, int64_t bytes); /* memory of filters that the caller has allocated or freed */

/* The end of the filters of one consumer among those of a topic, of which the first is at `first`. */
static inline uint32_t topic_consumer_end(const topic_t *topic, uint32_t first) {
    uint32_t end = first + 1;
    if (BQ_LIKELY(!topic->folded)) return end;
    while (end < topic->consumer_count && topic->consumers[end]->consumer == topic->consumers[first]->consumer) end++;
    return end;
}

/* The highest QoS that these filters of one consumer ask for a message with this LSN. */
static inline uint32_t topic_consumer_qos(const topic_t *topic, uint32_t first, uint32_t end, uint64_t lsn) {
    uint32_t qos = 0;
    for (uint32_t i = first; i < end; i++) {
        const consumer_filter_t *filter = topic->consumers[i];
        if (lsn > filter->born_lsn && filter->qos > qos) qos = filter->qos;
    }
    return qos;
}

static inline bool topic_is(const topic_t *topic, const uint8_t *name, uint32_t size) {
    return topic->name_size == size && size && memcmp(topic->name, name, size) == 0; /* a free slot has size 0 */
}

/* The cached topic of that name. A new one is checked and added, which may evict another. NULL: *error is a topic_check code or
 * BQ_E_MEMORY. */
topic_t *route_topic(routes_t *routes, const uint8_t *name, uint32_t size, uint32_t levels_max, int *error);

/* Makes topic->targets current; may drop the targets of other topics. NO_MEMORY: the targets are empty. LATER: `units` were not
 * enough; the targets are not valid yet, call again. */
enum route_outcome { ROUTE_NO_MEMORY, ROUTE_READY, ROUTE_LATER };
enum route_outcome route_resolve(routes_t *routes, topic_t *topic, uint32_t units);

/* The header template of a topic in one encoding. NULL: no memory. */
const uint8_t *route_header(routes_t *routes, topic_t *topic, enum encoding encoding);

typedef struct route_counts {
    uint64_t generation; /* first, so that the check can be inlined */
    uint64_t hits, misses, subscriptions, filters, topics;
} route_counts_t;

uint64_t route_bytes(const routes_t *routes); /* memory of filters and subscriptions */

/* The counters are the first member of routes_t. */
static inline const route_counts_t *route_counts(const routes_t *routes) { return (const route_counts_t *)(const void *)routes; }

static inline bool route_is_current(const routes_t *routes, const topic_t *topic) {
    return !topic->stale && topic->generation == route_counts(routes)->generation;
}

static inline enum route_outcome route_ready(routes_t *routes, topic_t *topic, uint32_t units) {
    return BQ_LIKELY(route_is_current(routes, topic)) ? ROUTE_READY : route_resolve(routes, topic, units);
}

#endif
