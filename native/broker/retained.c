/* broker/retained.c: see broker/retained.h for the picture and the invariants. */
#include "broker/retained.h"
#include "base/topic_name.h"

#define TOPICS_MIN 64u
#define ORDER_MIN 64u

static size_t block_size(const retained_t *message) {
    return sizeof *message + message->topic_size + (size_t)message->properties_size + message->payload_size;
}

static void message_free(retained_index_t *index, retained_t *message) {
    index->bytes -= pool_good_size(block_size(message));
    pool_free(index->pool, message, block_size(message));
}

void retained_open(retained_index_t *index, pool_t *pool, wheel_t *wheel, const hash_key_t *key) {
    *index = (retained_index_t){.pool = pool, .wheel = wheel, .key = *key};
}

/* ---- by topic ---------------------------------------------------------------------------------------------------------- */

static bool is_of(const retained_t *message, uint64_t hash, const uint8_t *topic, uint32_t size) {
    return message->hash == hash && message->topic_size == size && memcmp(message->bytes, topic, size) == 0;
}

static retained_t *find(const retained_index_t *index, uint64_t hash, const uint8_t *topic, uint32_t size) {
    if (!index->topics_size) return NULL;
    retained_t *message = index->topics[hash & (index->topics_size - 1)];
    while (message && !is_of(message, hash, topic, size)) message = message->chain;
    return message;
}

retained_t *retained_find(const retained_index_t *index, const uint8_t *topic, uint32_t size) {
    return find(index, hash_bytes(&index->key, topic, size, 0), topic, size);
}

static void topics_enter(retained_index_t *index, retained_t *message) {
    retained_t **head = &index->topics[message->hash & (index->topics_size - 1)];
    message->chain = *head;
    *head = message;
}

static void topics_leave(retained_index_t *index, retained_t *message) {
    retained_t **at = &index->topics[message->hash & (index->topics_size - 1)];
    while (*at != message) at = &(*at)->chain;
    *at = message->chain;
}

/* Chains only get longer if there is no memory for a larger table. False: there is none for the first one. */
static bool topics_reach(retained_index_t *index, uint32_t count) {
    const uint32_t size = index->topics_size ? index->topics_size * 2 : TOPICS_MIN;
    if (count <= index->topics_size) return true;
    retained_t **topics = pool_alloc(index->pool, size * sizeof *topics), **old = index->topics;
    if (!topics) return index->topics_size != 0;
    memset(topics, 0, size * sizeof *topics);
    const uint32_t old_size = index->topics_size;
    index->topics = topics;
    index->topics_size = size;
    for (uint32_t i = 0; i < old_size; i++)
        for (retained_t *next, *message = old[i]; message; message = next) {
            next = message->chain;
            topics_enter(index, message);
        }
    index->table_bytes += pool_good_size(size * sizeof *topics) - (old ? pool_good_size(old_size * sizeof *old) : 0);
    pool_free(index->pool, old, old_size * sizeof *old);
    return true;
}

/* ---- by serial --------------------------------------------------------------------------------------------------------- */

static bool is_gap(uint64_t slot) { return slot & 1; }
static retained_t *message_at(uint64_t slot) { return (retained_t *)(uintptr_t)slot; }
static uint64_t serial_at(const retained_index_t *index, uint32_t place) {
    const uint64_t slot = index->order[place];
    return is_gap(slot) ? slot >> 1 : message_at(slot)->serial;
}

static void order_close_gaps(retained_index_t *index) {
    uint32_t used = 0;
    for (uint32_t i = 0; i < index->order_used; i++) {
        if (is_gap(index->order[i])) continue;
        message_at(index->order[i])->place = used;
        index->order[used++] = index->order[i];
    }
    index->order_used = used;
}

/* Room for every message that is or will be put. A table with many gaps does not grow. */
static bool order_reach(retained_index_t *index, uint32_t more) {
    if (index->order_used + more <= index->order_size) return true;
    if (index->count + more <= index->order_size / 2) {
        order_close_gaps(index);
        return true;
    }
    const uint32_t old_size = index->order_size;
    uint32_t size = old_size ? old_size * 2 : ORDER_MIN;
    while (size < index->order_used + more) size *= 2;
    uint64_t *order = pool_resize(index->pool, index->order, old_size * sizeof *order, size * sizeof *order);
    if (!order) return false;
    index->table_bytes += pool_good_size(size * sizeof *order) - (old_size ? pool_good_size(old_size * sizeof *order) : 0);
    index->order = order;
    index->order_size = size;
    return true;
}

/* The place of the first message or gap with this serial or a later one. `hint`: an earlier answer for the serial; the places of
 * messages only fall. */
static uint32_t order_find(const retained_index_t *index, uint64_t serial, uint32_t hint) {
    uint32_t low = 0, high = index->order_used;
    if (hint <= high && (hint == 0 || serial_at(index, hint - 1) < serial)) return hint;
    while (low < high) {
        const uint32_t middle = low + (high - low) / 2;
        if (serial_at(index, middle) < serial)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* ---- by LSN ------------------------------------------------------------------------------------------------------------ */

static void log_enter(retained_index_t *index, retained_t *message, uint64_t lsn) {
    message->lsn = lsn;
    message->newer = NULL;
    message->older = index->newest;
    if (!lsn) return;
    core_assert(!index->newest || index->newest->lsn < lsn);
    if (index->newest)
        index->newest->newer = message;
    else
        index->oldest = message;
    index->newest = message;
}

static void log_leave(retained_index_t *index, retained_t *message) {
    if (!message->lsn) return;
    *(message->older ? &message->older->newer : &index->oldest) = message->newer;
    *(message->newer ? &message->newer->older : &index->newest) = message->older;
}

void retained_carried(retained_index_t *index, retained_t *message, uint64_t lsn) {
    log_leave(index, message);
    log_enter(index, message, lsn);
}

/* ---- changes ----------------------------------------------------------------------------------------------------------- */

bool retained_equals(const retained_t *message, const retained_value_t *value) {
    return !message->expiry_tick && !value->expiry_tick && message->qos == value->qos &&
           message->properties_size == value->properties_size && message->payload_size == value->payload_size &&
           (!value->properties_size || memcmp(retained_properties(message), value->properties, value->properties_size) == 0) &&
           memcmp(retained_payload(message), value->payload, value->payload_size) == 0;
}

/* A new value of a retained topic needs only the bytes by which it is larger. */
static bool fits(const retained_index_t *index, const retained_t *old, size_t size) {
    const uint64_t own = pool_good_size(size), freed = old ? pool_good_size(block_size(old)) : 0;
    return (own <= freed || index->bytes - freed + own <= index->bytes_max) &&
           (old || (uint64_t)index->count + index->made < index->count_max);
}

static void fill(retained_t *message, const retained_value_t *value) {
    uint8_t *at = message->bytes;
    memcpy(at, value->topic, value->topic_size);
    at += value->topic_size;
    if (value->properties_size) memcpy(at, value->properties, value->properties_size);
    memcpy(at + value->properties_size, value->payload, value->payload_size);
}

retained_t *retained_make(retained_index_t *index, const retained_value_t *value, enum bq_outcome *why) {
    const uint64_t hash = hash_bytes(&index->key, value->topic, value->topic_size, 0);
    const size_t size = sizeof(retained_t) + value->topic_size + (size_t)value->properties_size + value->payload_size;
    core_assert(value->topic_size && value->topic_size <= UINT16_MAX && value->payload_size);
    *why = BQ_OUTCOME_LIMIT;
    if (!fits(index, find(index, hash, value->topic, value->topic_size), size)) return NULL;
    *why = BQ_OUTCOME_UNAVAILABLE;
    if (!topics_reach(index, index->count + index->made + 1) || !order_reach(index, index->made + 1)) return NULL;
    retained_t *message = pool_alloc(index->pool, size);
    if (!message) return NULL;
    *message = (retained_t){.hash = hash,
                            .expiry_tick = value->expiry_tick,
                            .properties_size = value->properties_size,
                            .payload_size = value->payload_size,
                            .topic_size = (uint16_t)value->topic_size,
                            .qos = value->qos};
    message->timer.kind = TIMER_RETAINED;
    fill(message, value);
    index->bytes += pool_good_size(size);
    index->made++;
    return message;
}

void retained_drop(retained_index_t *index, retained_t *message) {
    core_assert(!message->serial && index->made);
    index->made--;
    message_free(index, message);
}

static void leave(retained_index_t *index, retained_t *message) {
    index->order[message->place] = message->serial << 1 | 1;
    index->count--;
    topics_leave(index, message);
    log_leave(index, message);
    wheel_remove(index->wheel, &message->timer.wheel);
    message_free(index, message);
}

void retained_put(retained_index_t *index, retained_t *message, uint64_t lsn) {
    retained_t *old = find(index, message->hash, message->bytes, message->topic_size);
    core_assert(!message->serial && index->made && index->order_used < index->order_size);
    if (old) leave(index, old);
    index->made--;
    index->count++;
    message->serial = ++index->serial;
    message->place = index->order_used++;
    index->order[message->place] = (uintptr_t)message;
    topics_enter(index, message);
    log_enter(index, message, lsn);
    if (message->expiry_tick) wheel_insert(index->wheel, &message->timer.wheel, message->expiry_tick);
}

bool retained_clear(retained_index_t *index, const uint8_t *topic, uint32_t size) {
    retained_t *message = retained_find(index, topic, size);
    if (message) leave(index, message);
    return message != NULL;
}

void retained_expired(retained_index_t *index, retained_t *message) { leave(index, message); }

void retained_release(retained_index_t *index) {
    core_assert(!index->made);
    for (uint32_t i = 0; i < index->order_used; i++)
        if (!is_gap(index->order[i])) leave(index, message_at(index->order[i]));
    pool_free(index->pool, index->order, index->order_size * sizeof *index->order);
    pool_free(index->pool, index->topics, index->topics_size * sizeof(retained_t *));
    *index = (retained_index_t){0};
}

/* ---- replay ------------------------------------------------------------------------------------------------------------ */

retained_cursor_t retained_begin(const retained_index_t *index) { return (retained_cursor_t){.next = 1, .last = index->serial}; }

/* Only one topic matches. */
static const retained_t *next_of_topic(const retained_index_t *index, retained_cursor_t *cursor, const uint8_t *topic,
                                       uint32_t size) {
    const retained_t *message = retained_find(index, topic, size);
    const bool is_next = message && message->serial >= cursor->next && message->serial <= cursor->last;
    cursor->next = cursor->last + 1;
    return is_next ? message : NULL;
}

const retained_t *retained_next(const retained_index_t *index, retained_cursor_t *cursor, int syntax, const uint8_t *filter,
                                uint32_t filter_size, uint32_t *units) {
    if (retained_done(cursor) || !*units) return NULL;
    if (syntax == SYNTAX_LITERAL) {
        --*units;
        return next_of_topic(index, cursor, filter, filter_size);
    }
    uint32_t place = order_find(index, cursor->next, cursor->place);
    const retained_t *found = NULL;
    for (; *units && !found && place < index->order_used && serial_at(index, place) <= cursor->last; place++, --*units) {
        const retained_t *message = is_gap(index->order[place]) ? NULL : message_at(index->order[place]);
        if (message && filter_matches(syntax, filter, filter_size, message->bytes, message->topic_size)) found = message;
    }
    cursor->place = place;
    cursor->next = place < index->order_used ? serial_at(index, place) : cursor->last + 1;
    return found;
}
