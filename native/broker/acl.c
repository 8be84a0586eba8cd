/* broker/acl.c: see broker/acl.h for the picture and the invariants. */
#include "broker/acl.h"
#include "base/topic_name.h"

#define IDS_MIN 16u
#define HEAD_BYTES 3u /* size and syntax before each stored filter */

static acl_t *find(const acl_table_t *table, uint64_t id) { return id < table->capacity ? table->by_id[id] : NULL; }

static void allow_nothing(pool_t *pool, acl_t *acl) {
    pool_free(pool, acl->filters, acl->size);
    acl->filters = NULL;
    acl->size = 0;
    acl->everything = false;
    memset(acl->allowed, 0, sizeof acl->allowed);
}

static bool table_reach(acl_table_t *table, pool_t *pool, uint64_t id) {
    if (id < table->capacity) return true;
    if (id >= ACL_IDS_MAX) return false;
    uint32_t capacity = table->capacity ? table->capacity : IDS_MIN;
    while (capacity <= id) capacity *= 2;
    acl_t **grown = pool_resize(pool, table->by_id, table->capacity * sizeof *grown, capacity * sizeof *grown);
    if (!grown) return false;
    memset(grown + table->capacity, 0, (capacity - table->capacity) * sizeof *grown);
    table->by_id = grown;
    table->capacity = capacity;
    return true;
}

/* Bytes needed to store the filters of `data`; 0: empty or invalid. */
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

void acl_set(acl_table_t *table, pool_t *pool, uint64_t id, bool everything, const uint8_t *data, uint32_t size) {
    if (!table_reach(table, pool, id)) return; /* no connection will be admitted with this id */
    acl_t *acl = table->by_id[id];
    if (!acl) {
        acl = table->by_id[id] = pool_alloc(pool, sizeof *acl);
        if (!acl) return;
        *acl = (acl_t){.holders = 1};
    }
    allow_nothing(pool, acl); /* first, because a later step may fail */
    uint32_t bytes = kept_bytes(data, size);
    acl->everything = everything;
    if (everything || !bytes || !(acl->filters = pool_alloc(pool, bytes))) return;
    acl->size = bytes;
    keep(acl->filters, data, size);
}

void acl_end(acl_table_t *table, pool_t *pool, uint64_t id) {
    acl_t *acl = find(table, id);
    if (!acl) return;
    table->by_id[id] = NULL;
    allow_nothing(pool, acl);
    acl_unref(pool, acl);
}

acl_t *acl_ref(acl_table_t *table, uint64_t id) {
    acl_t *acl = find(table, id);
    if (acl) acl->holders++;
    return acl;
}

void acl_unref(pool_t *pool, acl_t *acl) {
    if (!acl || --acl->holders) return;
    pool_free(pool, acl->filters, acl->size);
    pool_free(pool, acl, sizeof *acl);
}

void acl_table_release(acl_table_t *table, pool_t *pool) {
    for (uint32_t id = 0; id < table->capacity; id++) acl_end(table, pool, id);
    pool_free(pool, table->by_id, table->capacity * sizeof(acl_t *));
    *table = (acl_table_t){0};
}

bool acl_match(acl_t *acl, const topic_t *topic) {
    for (uint32_t at = 0; at < acl->size;) {
        const uint8_t *filter = acl->filters + at;
        uint32_t size = load_u16(filter);
        if (filter_matches(filter[2], filter + HEAD_BYTES, size, topic->name, topic->name_size)) {
            acl->allowed[topic->serial % ACL_MEMO] = topic->serial;
            return true;
        }
        at += HEAD_BYTES + size;
    }
    return false;
}
