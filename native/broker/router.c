/* broker/router.c: see broker/router.h for the picture and the invariant. */
#include "broker/router.h"
#include "broker/trie.h"
#include "broker/client.h"
#include "broker/consumer.h"
#include "broker/session.h"
#include "broker/work.h"

#define FILTER_TABLE_SIZE_MIN 256u
#define TOPIC_CHUNK 64u
#define TARGETS_BYTES_MAX (16u << 20) /* merged target lists of all topics; above this the clock hand frees some */
#define CHANGES_KEPT 64u              /* a power of two */
#define RESTARTS_MAX 16u
#define LEVEL_BYTES 4u     /* bytes of filter text per unit of work when it is added: about a level */
#define MERGED_PER_UNIT 8u /* members of a filter merged per unit of work */

typedef struct filter {
    uint64_t hash;
    struct filter *chain;
    client_t **members; /* parallel to subscriptions; a literal topic can use this array as its targets */
    subscription_t **subscriptions;
    uint32_t count, capacity;
    uint32_t members_of[ENCODINGS]; /* number of members with each encoding */
    consumer_filter_t **consumers;
    uint32_t consumer_count, consumer_capacity;
    int syntax;        /* 0 literal, 1 dot, 2 slash */
    trie_node_t *node; /* the last node of a wildcard filter */
    uint32_t size;
    uint8_t text[];
} filter_t;

/* A wildcard filter whose members changed. */
typedef struct route_change {
    int syntax;
    uint32_t size;
    uint8_t text[TOPIC_BYTES_MAX];
} route_change_t;

/* A search that has stopped because its units are used up. */
typedef struct topic_search {
    trie_walk_t walks[2];
    uint32_t syntax;     /* of the current walk */
    uint64_t generation; /* of its start, or of the last change found not to matter */
} topic_search_t;

struct routes {
    route_counts_t counts; /* must be first, see route_counts */
    pool_t *pool;
    uint64_t *work;
    route_changing changing;
    void *context;
    filter_t **filters;
    uint32_t filters_size; /* a power of two */
    trie_t tries[2];       /* dot, slash */
    topic_t **topics;      /* hash table */
    uint32_t topics_size;  /* a power of two */
    topic_t **chunks;      /* slots in chunks of TOPIC_CHUNK */
    uint32_t topics_max, slots;
    uint32_t hand; /* the clock hand */
    uint64_t targets_bytes, filter_bytes;
    uint64_t serial;
    uint64_t mark; /* of the current merge: a connection with this mark is already in the list */
    hash_key_t key;
    route_change_t changes[CHANGES_KEPT]; /* the newest changes, by generation */
};

static uint32_t power_of_two(uint32_t at_least) {
    uint32_t size = 1;
    while (size < at_least) size *= 2;
    return size;
}

routes_t *route_new(pool_t *pool, uint32_t topics_max, const hash_key_t *key, uint64_t *work, route_changing changing,
                    void *context) {
    routes_t *routes = pool_alloc(pool, sizeof *routes);
    if (!routes) return NULL;
    memset(routes, 0, sizeof *routes);
    routes->pool = pool;
    routes->work = work;
    routes->changing = changing;
    routes->context = context;
    routes->topics_max = (topics_max + TOPIC_CHUNK - 1) / TOPIC_CHUNK * TOPIC_CHUNK;
    routes->topics_size = power_of_two(routes->topics_max);
    routes->filters_size = FILTER_TABLE_SIZE_MIN;
    routes->key = *key;
    routes->topics = pool_alloc(pool, routes->topics_size * sizeof(topic_t *));
    routes->filters = pool_alloc(pool, routes->filters_size * sizeof(filter_t *));
    routes->chunks = pool_alloc(pool, routes->topics_max / TOPIC_CHUNK * sizeof(topic_t *));
    if (routes->topics) memset(routes->topics, 0, routes->topics_size * sizeof(topic_t *));
    if (routes->filters) memset(routes->filters, 0, routes->filters_size * sizeof(filter_t *));
    trie_init(&routes->tries[0], pool, key, '.', '*', '>');
    trie_init(&routes->tries[1], pool, key, '/', '+', '#');
    if (routes->topics && routes->filters && routes->chunks) return routes;
    route_free(routes);
    return NULL;
}

/* ---- topics ------------------------------------------------------------------------------------------------------ */

static NOINLINE void search_end(routes_t *routes, topic_t *topic) {
    pool_free(routes->pool, topic->search, sizeof *topic->search);
    topic->search = NULL;
}

static void before_change(const routes_t *routes) {
    if (routes->changing) routes->changing(routes->context);
}

static void targets_drop(routes_t *routes, topic_t *topic) {
    before_change(routes);
    if (BQ_UNLIKELY(topic->search != NULL)) {
        search_end(routes, topic);
        if (topic->restarts < RESTARTS_MAX) topic->restarts++;
    }
    if (topic->target_capacity) {
        size_t bytes = topic->target_capacity * sizeof *topic->targets;
        routes->targets_bytes -= bytes;
        pool_free(routes->pool, topic->targets, bytes);
    }
    if (topic->consumer_capacity) {
        size_t bytes = topic->consumer_capacity * sizeof *topic->consumers;
        routes->targets_bytes -= bytes;
        pool_free(routes->pool, topic->consumers, bytes);
    }
    topic->targets = NULL;
    topic->consumers = NULL;
    topic->target_count = topic->target_capacity = topic->consumer_count = topic->consumer_capacity = 0;
    topic->grouped = topic->folded = false;
    topic->encodings = 0;
    topic->stale = true;
}

static topic_t *slot_at(const routes_t *routes, uint32_t index) {
    return &routes->chunks[index / TOPIC_CHUNK][index % TOPIC_CHUNK];
}

static void topic_forget(routes_t *routes, topic_t *topic) {
    topic_t **at = &routes->topics[topic->hash & (routes->topics_size - 1)];
    while (*at != topic) at = &(*at)->chain;
    *at = topic->chain;
    targets_drop(routes, topic);
    for (uint32_t i = 0; i < ENCODINGS; i++)
        pool_free(routes->pool, topic->headers[i], encoding_template_size(i, topic->name_size));
    pool_free(routes->pool, topic->name, topic->name_size);
    topic->name_size = 0;
    routes->counts.topics--;
}

static bool slots_add(routes_t *routes) {
    topic_t *chunk = pool_alloc(routes->pool, TOPIC_CHUNK * sizeof *chunk);
    if (!chunk) return false;
    memset(chunk, 0, TOPIC_CHUNK * sizeof *chunk);
    routes->chunks[routes->slots / TOPIC_CHUNK] = chunk;
    routes->slots += TOPIC_CHUNK;
    return true;
}

/* A free slot: a new one while the cache may grow, otherwise the first one not used since the clock hand passed it (second
 * chance). */
static topic_t *slot_find(routes_t *routes) {
    if (routes->counts.topics == routes->slots && routes->slots < routes->topics_max) {
        routes->hand = routes->slots;
        if (!slots_add(routes)) return NULL;
    }
    for (;;) {
        topic_t *topic = slot_at(routes, routes->hand);
        routes->hand = routes->hand + 1 == routes->slots ? 0 : routes->hand + 1;
        if (!topic->name_size) return topic;
        if (routes->counts.topics < routes->slots) continue; /* a free slot exists: evict nothing on the way to it */
        if (!topic->recent) {
            topic_forget(routes, topic);
            return topic;
        }
        topic->recent = false;
    }
}

static topic_t *topic_lookup(const routes_t *routes, uint64_t hash, const uint8_t *name, uint32_t size) {
    topic_t *topic = routes->topics[hash & (routes->topics_size - 1)];
    while (topic && !(topic->hash == hash && topic_is(topic, name, size))) topic = topic->chain;
    return topic;
}

static topic_t *topic_enter(routes_t *routes, uint64_t hash, const uint8_t *name, uint32_t size) {
    topic_t *topic = slot_find(routes);
    if (!topic) return NULL;
    uint8_t *kept = pool_alloc(routes->pool, size);
    if (!kept) return NULL;
    memcpy(kept, name, size);
    topic_t **head = &routes->topics[hash & (routes->topics_size - 1)];
    *topic = (topic_t){.hash = hash, .chain = *head, .name = kept, .name_size = size, .stale = true, .serial = ++routes->serial};
    *head = topic;
    routes->counts.topics++;
    return topic;
}

topic_t *route_topic(routes_t *routes, const uint8_t *name, uint32_t size, uint32_t levels_max, int *error) {
    if (BQ_UNLIKELY(size == 0 || size > TOPIC_BYTES_MAX)) {
        *error = topic_check(name, size);
        return NULL;
    }
    uint64_t hash = hash_bytes(&routes->key, name, size, 0);
    topic_t *topic = topic_lookup(routes, hash, name, size);
    if (BQ_LIKELY(topic != NULL)) {
        routes->counts.hits++;
        topic->recent = true;
        return topic;
    }
    routes->counts.misses++;
    *error = topic_check(name, size);
    if (!*error) *error = levels_check(name, size, levels_max);
    if (*error) return NULL;
    topic = topic_enter(routes, hash, name, size);
    if (!topic) *error = BQ_E_MEMORY;
    return topic;
}

const uint8_t *route_header(routes_t *routes, topic_t *topic, enum encoding encoding) {
    uint8_t **header = &topic->headers[encoding];
    if (*header) return *header;
    *header = pool_alloc(routes->pool, encoding_template_size(encoding, topic->name_size));
    if (*header) encoding_template_write(encoding, *header, topic->name, topic->name_size);
    return *header;
}

/* ---- filters ----------------------------------------------------------------------------------------------------- */

static filter_t **filter_slot(const routes_t *routes, uint64_t hash, const uint8_t *text, uint32_t size) {
    filter_t **at = &routes->filters[hash & (routes->filters_size - 1)];
    while (*at && !((*at)->hash == hash && (*at)->size == size && !memcmp((*at)->text, text, size))) at = &(*at)->chain;
    return at;
}

static void filters_grow(routes_t *routes) {
    uint32_t size = routes->filters_size * 2;
    filter_t **table = pool_alloc(routes->pool, size * sizeof *table);
    if (!table) return; /* longer chains are only slower */
    memset(table, 0, size * sizeof *table);
    for (uint32_t i = 0; i < routes->filters_size; i++) {
        for (filter_t *filter = routes->filters[i], *next; filter; filter = next) {
            next = filter->chain;
            filter_t **head = &table[filter->hash & (size - 1)];
            filter->chain = *head;
            *head = filter;
        }
    }
    pool_free(routes->pool, routes->filters, routes->filters_size * sizeof *table);
    routes->filters = table;
    routes->filters_size = size;
}

static size_t filter_bytes(const filter_t *filter) { return sizeof *filter + filter->size; }

/* These two count the memory of filters and subscriptions; see route_bytes. */
static void *take(routes_t *routes, size_t size) {
    void *block = pool_alloc(routes->pool, size);
    if (block) routes->filter_bytes += pool_good_size(size);
    return block;
}

static void give(routes_t *routes, void *block, size_t size) {
    if (block) routes->filter_bytes -= pool_good_size(size);
    pool_free(routes->pool, block, size);
}

uint64_t route_bytes(const routes_t *routes) { return routes->filter_bytes + routes->tries[0].bytes + routes->tries[1].bytes; }

static filter_t *filter_new(routes_t *routes, uint64_t hash, const uint8_t *text, uint32_t size, int syntax) {
    filter_t *filter = take(routes, sizeof *filter + size);
    if (!filter) return NULL;
    *filter = (filter_t){.hash = hash, .syntax = syntax, .size = size};
    memcpy(filter->text, text, size);
    *routes->work += size / LEVEL_BYTES;
    if (syntax && !(filter->node = trie_insert(&routes->tries[syntax - 1], text, size, filter))) {
        give(routes, filter, filter_bytes(filter));
        return NULL;
    }
    if (routes->counts.filters >= routes->filters_size) filters_grow(routes);
    filter_t **head = &routes->filters[hash & (routes->filters_size - 1)];
    filter->chain = *head;
    *head = filter;
    routes->counts.filters++;
    return filter;
}

static void filter_free(routes_t *routes, filter_t *filter) {
    *filter_slot(routes, filter->hash, filter->text, filter->size) = filter->chain;
    if (filter->syntax) *routes->work += trie_remove(&routes->tries[filter->syntax - 1], filter->node, filter);
    give(routes, filter->members, filter->capacity * sizeof *filter->members);
    give(routes, filter->subscriptions, filter->capacity * sizeof *filter->subscriptions);
    give(routes, filter->consumers, filter->consumer_capacity * sizeof *filter->consumers);
    give(routes, filter, filter_bytes(filter));
    routes->counts.filters--;
}

/* The members of a filter change: the targets of matching topics become stale. */
static void filter_changed(routes_t *routes, const filter_t *filter) {
    before_change(routes);
    if (filter->syntax) {
        route_change_t *change = &routes->changes[++routes->counts.generation % CHANGES_KEPT];
        change->syntax = filter->syntax;
        change->size = filter->size;
        memcpy(change->text, filter->text, filter->size);
        return;
    }
    topic_t *topic = topic_lookup(routes, filter->hash, filter->text, filter->size);
    if (topic) targets_drop(routes, topic);
}

static void filter_free_if_unused(routes_t *routes, filter_t *filter) {
    if (!filter->count && !filter->consumer_count) filter_free(routes, filter);
}

static bool filter_reserve(routes_t *routes, filter_t *filter) {
    if (filter->count < filter->capacity) return true;
    uint32_t capacity = filter->capacity ? filter->capacity * 2 : 2;
    client_t **members = take(routes, capacity * sizeof *members);
    subscription_t **subscriptions = take(routes, capacity * sizeof *subscriptions);
    if (!members || !subscriptions) {
        give(routes, members, capacity * sizeof *members);
        give(routes, subscriptions, capacity * sizeof *subscriptions);
        return false;
    }
    if (filter->count) {
        memcpy(members, filter->members, filter->count * sizeof *members);
        memcpy(subscriptions, filter->subscriptions, filter->count * sizeof *subscriptions);
    }
    give(routes, filter->members, filter->capacity * sizeof *members);
    give(routes, filter->subscriptions, filter->capacity * sizeof *subscriptions);
    filter->members = members;
    filter->subscriptions = subscriptions;
    filter->capacity = capacity;
    return true;
}

/* ---- subscriptions ----------------------------------------------------------------------------------------------- */

/* Walks the filter's members and the connection's subscriptions in step, so that the shorter list limits the search. */
static subscription_t *subscription_find(routes_t *routes, const filter_t *filter, const client_t *client, subscription_t *list) {
    uint32_t index = 0;
    subscription_t *found = NULL;
    for (; list && index < filter->count && !found; list = list->next, index++) {
        if (list->filter == filter) found = list;
        if (filter->members[index] == client) found = filter->subscriptions[index];
    }
    *routes->work += index / MERGED_PER_UNIT;
    return found;
}

/* The filter with that text, created if new. NULL: see *error. */
static filter_t *filter_enter(routes_t *routes, const uint8_t *text, uint32_t size, int *error) {
    int syntax = filter_check(text, size);
    *error = syntax < 0 ? BQ_E_ARGUMENT : BQ_E_MEMORY;
    if (syntax < 0) return NULL;
    uint64_t hash = hash_bytes(&routes->key, text, size, 0);
    filter_t *filter = *filter_slot(routes, hash, text, size);
    return filter ? filter : filter_new(routes, hash, text, size, syntax);
}

int route_subscribe(routes_t *routes, client_t *client, subscription_t **list, const uint8_t *text, uint32_t size) {
    int error;
    filter_t *filter = filter_enter(routes, text, size, &error);
    if (!filter) return error;
    if (subscription_find(routes, filter, client, *list)) return 0;
    filter_changed(routes, filter); /* before the arrays move: a topic may use them as its targets */
    subscription_t *subscription = filter_reserve(routes, filter) ? take(routes, sizeof *subscription) : NULL;
    if (!subscription) {
        filter_free_if_unused(routes, filter);
        return BQ_E_MEMORY;
    }
    *subscription = (subscription_t){.client = client, .filter = filter, .index = filter->count, .next = *list, .link = list};
    if (*list) (*list)->link = &subscription->next;
    *list = subscription;
    filter->members[filter->count] = client;
    filter->subscriptions[filter->count++] = subscription;
    filter->members_of[client->queue.encoding]++;
    routes->counts.subscriptions++;
    return 1;
}

void route_leave(routes_t *routes, subscription_t *subscription) {
    filter_t *filter = subscription->filter;
    *routes->work += 2;
    filter_changed(routes, filter);
    uint32_t last = --filter->count, *same = &filter->members_of[subscription->client->queue.encoding];
    core_assert(*same); /* the encoding of a client with subscriptions does not change */
    --*same;
    filter->members[subscription->index] = filter->members[last];
    filter->subscriptions[subscription->index] = filter->subscriptions[last];
    filter->subscriptions[subscription->index]->index = subscription->index;
    *subscription->link = subscription->next;
    if (subscription->next) subscription->next->link = subscription->link;
    give(routes, subscription, sizeof *subscription);
    routes->counts.subscriptions--;
    filter_free_if_unused(routes, filter);
}

bool route_unsubscribe(routes_t *routes, const client_t *client, subscription_t *list, const uint8_t *text, uint32_t size) {
    filter_t *filter = *filter_slot(routes, hash_bytes(&routes->key, text, size, 0), text, size);
    subscription_t *subscription = filter ? subscription_find(routes, filter, client, list) : NULL;
    if (subscription) route_leave(routes, subscription);
    return subscription != NULL;
}

int route_consumer(routes_t *routes, consumer_filter_t *at, const uint8_t *text, uint32_t size) {
    int error;
    filter_t *filter = filter_enter(routes, text, size, &error);
    if (!filter) return error;
    filter_changed(routes, filter);
    if (filter->consumer_count == filter->consumer_capacity) {
        uint32_t capacity = filter->consumer_capacity ? filter->consumer_capacity * 2 : 1;
        size_t old_bytes = filter->consumer_capacity * sizeof *filter->consumers;
        size_t bytes = capacity * sizeof(consumer_filter_t *);
        consumer_filter_t **consumers = pool_resize(routes->pool, filter->consumers, old_bytes, bytes);
        if (!consumers) {
            filter_free_if_unused(routes, filter);
            return BQ_E_MEMORY;
        }
        routes->filter_bytes += pool_good_size(bytes) - (filter->consumers ? pool_good_size(old_bytes) : 0);
        filter->consumers = consumers;
        filter->consumer_capacity = capacity;
    }
    at->filter = filter;
    at->index = filter->consumer_count;
    filter->consumers[filter->consumer_count++] = at;
    return 1;
}

consumer_filter_t *route_consumer_at(const routes_t *routes, const uint8_t *text, uint32_t size, uint32_t index) {
    const filter_t *filter = *filter_slot(routes, hash_bytes(&routes->key, text, size, 0), text, size);
    return filter && index < filter->consumer_count ? filter->consumers[index] : NULL;
}

bool route_consumer_matches(const consumer_filter_t *at, const uint8_t *topic, uint32_t size) {
    const filter_t *filter = at->filter;
    return filter && filter_matches(filter->syntax, filter->text, filter->size, topic, size) == 1;
}

const uint8_t *route_consumer_text(const consumer_filter_t *at, uint32_t *size, int *syntax) {
    *size = at->filter->size;
    *syntax = at->filter->syntax;
    return at->filter->text;
}

void route_count_bytes(routes_t *routes, int64_t bytes) { routes->filter_bytes += (uint64_t)bytes; }

void route_consumer_leave(routes_t *routes, consumer_filter_t *at) {
    filter_t *filter = at->filter;
    filter_changed(routes, filter);
    consumer_filter_t *last = filter->consumers[--filter->consumer_count];
    filter->consumers[at->index] = last;
    last->index = at->index;
    at->filter = NULL;
    filter_free_if_unused(routes, filter);
}

/* ---- resolving --------------------------------------------------------------------------------------------------- */

typedef struct merge {
    routes_t *routes;
    topic_t *topic;
    uint32_t *units;
} merge_t;

/* Room for `need` pointers in a topic's list, counted in targets_bytes. NULL: no memory; the old list stays valid. */
static void *merged_reserve(routes_t *routes, void *list, uint32_t *capacity, uint32_t need) {
    if (list && need <= *capacity) return list;
    uint32_t grown = power_of_two(need);
    size_t old_bytes = *capacity * sizeof(void *), bytes = grown * sizeof(void *);
    void *moved = pool_resize(routes->pool, list, old_bytes, bytes);
    if (!moved) return NULL;
    routes->targets_bytes += bytes - old_bytes;
    *capacity = grown;
    return moved;
}

static bool merge_consumers(routes_t *routes, topic_t *topic, const filter_t *filter) {
    uint32_t need = topic->consumer_count + filter->consumer_count;
    consumer_filter_t **consumers = merged_reserve(routes, topic->consumers, &topic->consumer_capacity, need);
    if (!consumers) return false;
    topic->consumers = consumers;
    for (uint32_t i = 0; i < filter->consumer_count; i++) {
        const consumer_t *consumer = filter->consumers[i]->consumer;
        topic->consumers[topic->consumer_count++] = filter->consumers[i];
        topic->grouped |= consumer->grouped;
        topic->folded |= consumer->session != NULL;
    }
    return true;
}

/* Counts the filters of each session among the topic's. False: no session has several. */
static bool sessions_count(routes_t *routes, const topic_t *topic) {
    bool several = false;
    routes->mark++;
    for (uint32_t i = 0; i < topic->consumer_count; i++) {
        session_t *session = topic->consumers[i]->consumer->session;
        if (!session) continue;
        bool first = session->route_mark != routes->mark;
        several |= !first;
        session->route_mark = routes->mark;
        session->route_count = first ? 1 : session->route_count + 1;
    }
    return several;
}

/* Puts the filters of each session behind its first one; the rest keeps its order. False: no memory. */
static NOINLINE bool consumers_fold(routes_t *routes, topic_t *topic) {
    topic->folded = sessions_count(routes, topic);
    if (!topic->folded) return true;
    uint32_t capacity = 0, count = topic->consumer_count, at = 0;
    consumer_filter_t **folded = merged_reserve(routes, NULL, &capacity, count);
    if (!folded) return false;
    routes->mark++;
    for (uint32_t i = 0; i < count; i++) {
        consumer_filter_t *filter = topic->consumers[i];
        session_t *session = filter->consumer->session;
        if (session && session->route_mark != routes->mark) {
            session->route_mark = routes->mark;
            session->route_at = at;
            at += session->route_count;
        }
        folded[session ? session->route_at++ : at++] = filter;
    }
    size_t bytes = topic->consumer_capacity * sizeof(void *);
    routes->targets_bytes -= bytes;
    pool_free(routes->pool, topic->consumers, bytes);
    topic->consumers = folded;
    topic->consumer_capacity = capacity;
    *routes->work += count / MERGED_PER_UNIT;
    return true;
}

static void merge_encodings(topic_t *topic, const filter_t *filter) {
    for (uint32_t i = 0; i < ENCODINGS; i++)
        if (filter->members_of[i]) topic->encodings |= (uint8_t)(1u << i);
}

/* Adds the filter's consumers and members to the topic. Each connection is added once. */
static bool merge_filter(void *context, filter_t *filter) {
    merge_t *merge = context;
    topic_t *topic = merge->topic;
    uint32_t units = (filter->count + filter->consumer_count) / MERGED_PER_UNIT;
    *merge->units -= units < *merge->units ? units : *merge->units;
    if (filter->consumer_count && !merge_consumers(merge->routes, topic, filter)) return false;
    if (!filter->count) return true;
    client_t **targets =
        merged_reserve(merge->routes, topic->targets, &topic->target_capacity, topic->target_count + filter->count);
    if (!targets) return false;
    topic->targets = targets;
    merge_encodings(topic, filter);
    for (uint32_t i = 0; i < filter->count; i++) {
        client_t *client = filter->members[i];
        if (client->route_mark == merge->routes->mark) continue;
        client->route_mark = merge->routes->mark;
        topic->targets[topic->target_count++] = client;
    }
    return true;
}

/* Keeps merged lists below their limit: the clock hand drops the targets of topics it passes; they are found again when
 * needed. */
static void targets_trim(routes_t *routes, const topic_t *keep) {
    for (uint32_t i = 0; i < routes->slots && routes->targets_bytes > TARGETS_BYTES_MAX; i++) {
        topic_t *topic = slot_at(routes, routes->hand);
        routes->hand = routes->hand + 1 == routes->slots ? 0 : routes->hand + 1;
        if (topic != keep && (topic->target_capacity || topic->consumer_capacity)) targets_drop(routes, topic);
    }
}

/* Whether a wildcard filter changed after `generation` matches the topic. Also true if too many have changed to know. */
static bool changed_since(routes_t *routes, const topic_t *topic, uint64_t generation) {
    uint64_t now = routes->counts.generation;
    if (now - generation > CHANGES_KEPT) return true;
    *routes->work += now - generation;
    while (generation++ < now) {
        const route_change_t *change = &routes->changes[generation % CHANGES_KEPT];
        if (filter_matches(change->syntax, change->text, change->size, topic->name, topic->name_size)) return true;
    }
    return false;
}

/* Continues the search, or restarts it if a changed filter matches the topic. */
static void search_continue(routes_t *routes, topic_t *topic, topic_search_t *search) {
    if (topic->search && changed_since(routes, topic, topic->search->generation)) targets_drop(routes, topic);
    routes->mark++;
    if (topic->search) {
        *search = *topic->search;
        for (uint32_t i = 0; i < topic->target_count; i++) topic->targets[i]->route_mark = routes->mark;
        *routes->work += topic->target_count / MERGED_PER_UNIT;
    } else {
        targets_drop(routes, topic);
        memset(search, 0, sizeof *search);
    }
    search->generation = routes->counts.generation;
}

/* False: no memory to store the search. */
static NOINLINE bool search_keep(routes_t *routes, topic_t *topic, const topic_search_t *search) {
    if (!topic->search) topic->search = pool_alloc(routes->pool, sizeof *search);
    if (topic->search) *topic->search = *search;
    return topic->search != NULL;
}

static enum trie_outcome search_tries(routes_t *routes, topic_t *topic, topic_search_t *search, merge_t *merge) {
    for (; search->syntax < 2; search->syntax++) {
        enum trie_outcome outcome = trie_match(&routes->tries[search->syntax], &search->walks[search->syntax], topic->name,
                                               topic->name_size, merge->units, merge_filter, merge);
        if (outcome != TRIE_DONE) return outcome;
    }
    return TRIE_DONE;
}

static bool search_literal(routes_t *routes, topic_t *topic, merge_t *merge) {
    filter_t *literal = *filter_slot(routes, topic->hash, topic->name, topic->name_size);
    if (!literal) return true;
    if (topic->target_capacity) return merge_filter(merge, literal);
    topic->targets = literal->members; /* the only filter: use its array without a copy */
    topic->target_count = literal->count;
    merge_encodings(topic, literal);
    return !literal->consumer_count || merge_consumers(routes, topic, literal);
}

/* A topic with a queue group has the first encoding, because its members may change without a search. False: no memory. */
static bool encoding_choose(routes_t *routes, topic_t *topic) {
    uint32_t encoding = 0;
    if (!topic->target_count && !topic->grouped) return true;
    while (!topic->grouped && !(topic->encodings >> encoding & 1)) encoding++;
    topic->wide = topic->grouped || topic->target_count > WIDE_TARGETS || topic->encodings >> (encoding + 1);
    topic->encoding = (uint8_t)encoding;
    topic->header = route_header(routes, topic, encoding);
    topic->overhead = encoding_overhead(encoding, topic->name_size, 0);
    return topic->header != NULL;
}

/* Each restart because of changed filters doubles the units, so that the search always ends. */
static uint32_t units_for(const topic_t *topic, uint32_t units) {
    uint64_t more = (uint64_t)units << topic->restarts;
    return more < UINT32_MAX ? (uint32_t)more : UINT32_MAX;
}

enum route_outcome route_resolve(routes_t *routes, topic_t *topic, uint32_t units) {
    bool remembered = !topic->stale && routes->counts.generation - topic->generation <= topic->cost;
    if (remembered && !changed_since(routes, topic, topic->generation)) {
        topic->generation = routes->counts.generation;
        return ROUTE_READY;
    }
    topic_search_t search;
    search_continue(routes, topic, &search);
    uint32_t all = units_for(topic, units), left = all, before = topic->search ? topic->cost : 0;
    merge_t merge = {routes, topic, &left};
    enum trie_outcome outcome = search_tries(routes, topic, &search, &merge);
    if (outcome == TRIE_MORE && !search_keep(routes, topic, &search)) outcome = TRIE_FAILED;
    if (outcome == TRIE_DONE && !search_literal(routes, topic, &merge)) outcome = TRIE_FAILED;
    if (outcome == TRIE_DONE && BQ_UNLIKELY(topic->folded) && !consumers_fold(routes, topic)) outcome = TRIE_FAILED;
    if (outcome == TRIE_DONE && !encoding_choose(routes, topic)) outcome = TRIE_FAILED;
    *routes->work += all - left;
    topic->cost = before + all - left;
    if (outcome == TRIE_MORE) return ROUTE_LATER;
    if (topic->search) search_end(routes, topic);
    topic->restarts = 0;
    if (outcome == TRIE_FAILED) {
        targets_drop(routes, topic);
        return ROUTE_NO_MEMORY;
    }
    topic->stale = false;
    topic->generation = routes->counts.generation;
    if (routes->targets_bytes > TARGETS_BYTES_MAX) targets_trim(routes, topic);
    return ROUTE_READY;
}

void route_free(routes_t *routes) {
    pool_t *pool = routes->pool;
    routes->changing = NULL; /* no work remains to be finished */
    for (uint32_t i = 0; i < routes->slots; i++) {
        topic_t *topic = slot_at(routes, i);
        if (topic->name_size) topic_forget(routes, topic);
    }
    for (uint32_t i = 0; i < routes->slots / TOPIC_CHUNK; i++) pool_free(pool, routes->chunks[i], TOPIC_CHUNK * sizeof(topic_t));
    trie_release(&routes->tries[0]);
    trie_release(&routes->tries[1]);
    if (routes->topics) pool_free(pool, routes->topics, routes->topics_size * sizeof(topic_t *));
    if (routes->filters) pool_free(pool, routes->filters, routes->filters_size * sizeof(filter_t *));
    if (routes->chunks) pool_free(pool, routes->chunks, routes->topics_max / TOPIC_CHUNK * sizeof(topic_t *));
    pool_free(pool, routes, sizeof *routes);
}
