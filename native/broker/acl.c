/* broker/acl.c: see broker/acl.h for the picture and the invariants. */
#include "broker/acl.h"
#include "proto/blip_codec.h"

#define IDS_MIN 16u
#define HEAD_BYTES 3u /* size and dialect in front of each kept filter */

static rights_t *find(const rights_table_t *table, uint64_t id) { return id < table->capacity ? table->by_id[id] : NULL; }

static void allow_nothing(pool_t *pool, rights_t *rights) {
    pool_give(pool, rights->filters, rights->size);
    rights->filters = NULL;
    rights->size = 0;
    rights->everything = false;
    memset(rights->allowed, 0, sizeof rights->allowed);
}

static bool table_reach(rights_table_t *table, pool_t *pool, uint64_t id) {
    if (id < table->capacity) return true;
    if (id >= RIGHTS_IDS_MAX) return false;
    uint32_t capacity = table->capacity ? table->capacity : IDS_MIN;
    while (capacity <= id) capacity *= 2;
    rights_t **grown = pool_resize(pool, table->by_id, table->capacity * sizeof *grown, capacity * sizeof *grown);
    if (!grown) return false;
    memset(grown + table->capacity, 0, (capacity - table->capacity) * sizeof *grown);
    table->by_id = grown;
    table->capacity = capacity;
    return true;
}

/* Bytes that the filters of `data` take when they are kept; 0: it holds something that is no filter, or nothing. */
static uint32_t kept_bytes(const uint8_t *data, uint32_t size) {
    uint32_t at = 0, kept = 0;
    while (size - at >= 2) {
        uint32_t text_size = load_u16(data + at);
        if (text_size > size - at - 2 || filter_check(data + at + 2, text_size) < 0) return 0;
        at += 2 + text_size;
        kept += HEAD_BYTES + text_size;
    }
    return at == size ? kept : 0;
}

static void keep(uint8_t *out, const uint8_t *data, uint32_t size) {
    for (uint32_t at = 0; at < size;) {
        uint16_t text_size = load_u16(data + at);
        store_u16(out, text_size);
        out[2] = (uint8_t)filter_check(data + at + 2, text_size);
        memcpy(out + HEAD_BYTES, data + at + 2, text_size);
        out += HEAD_BYTES + text_size;
        at += 2u + text_size;
    }
}

void rights_set(rights_table_t *table, pool_t *pool, uint64_t id, bool everything, const uint8_t *data, uint32_t size) {
    if (!table_reach(table, pool, id)) return; /* whoever is to be admitted with it will not be */
    rights_t *rights = table->by_id[id];
    if (!rights) {
        rights = table->by_id[id] = pool_take(pool, sizeof *rights);
        if (!rights) return;
        *rights = (rights_t){.holders = 1};
    }
    allow_nothing(pool, rights); /* before anything can fail */
    uint32_t bytes = kept_bytes(data, size);
    rights->everything = everything;
    if (everything || !bytes || !(rights->filters = pool_take(pool, bytes))) return;
    rights->size = bytes;
    keep(rights->filters, data, size);
}

void rights_end(rights_table_t *table, pool_t *pool, uint64_t id) {
    rights_t *rights = find(table, id);
    if (!rights) return;
    table->by_id[id] = NULL;
    allow_nothing(pool, rights);
    rights_drop(pool, rights);
}

rights_t *rights_hold(rights_table_t *table, uint64_t id) {
    rights_t *rights = find(table, id);
    if (rights) rights->holders++;
    return rights;
}

void rights_drop(pool_t *pool, rights_t *rights) {
    if (!rights || --rights->holders) return;
    pool_give(pool, rights->filters, rights->size);
    pool_give(pool, rights, sizeof *rights);
}

void rights_release(rights_table_t *table, pool_t *pool) {
    for (uint32_t id = 0; id < table->capacity; id++) rights_end(table, pool, id);
    pool_give(pool, table->by_id, table->capacity * sizeof(rights_t *));
    *table = (rights_table_t){0};
}

bool rights_match(rights_t *rights, const topic_t *topic) {
    for (uint32_t at = 0; at < rights->size;) {
        const uint8_t *filter = rights->filters + at;
        uint32_t size = load_u16(filter);
        if (filter_matches(filter[2], filter + HEAD_BYTES, size, topic->name, topic->name_size)) {
            rights->allowed[topic->serial % RIGHTS_MEMO] = topic->serial;
            return true;
        }
        at += HEAD_BYTES + size;
    }
    return false;
}
