/* broker/buffer.c: see broker/buffer.h for the picture and the invariant. */
#include "broker/buffer.h"
#include "broker/outqueue.h"

#define SPARSE_DIVISOR 4 /* compaction begins when live bytes fall under capacity / this */

void segment_store_init(segment_store_t *store, pool_t *pool, uint32_t segment_bytes) {
    memset(store, 0, sizeof *store);
    store->pool = pool;
    store->segment_bytes = segment_bytes;
}

static segment_t *segment_new(segment_store_t *store, uint32_t size) {
    size_t ordinary = store->segment_bytes;
    size_t need = sizeof(segment_t) + (size_t)size;
    size_t total = need > ordinary ? need : ordinary;
    segment_t *segment = pool_take(store->pool, total);
    if (!segment) return NULL;
    *segment = (segment_t){.refs = 1, .capacity = (uint32_t)(total - sizeof(segment_t))};
    store->count++;
    return segment;
}

static void compact_remove(segment_t *segment) {
    if (!segment->compactable) return;
    *segment->compact_link = segment->compact_next;
    if (segment->compact_next) segment->compact_next->compact_link = segment->compact_link;
    segment->compactable = false;
}

void segment_unref(segment_store_t *store, segment_t *segment) {
    if (--segment->refs) return;
    compact_remove(segment);
    store->count--;
    pool_give(store->pool, segment, sizeof(segment_t) + segment->capacity);
}

/* A segment that is open (or open for cold data) still fills up; any other one that is mostly dead is worth copying out. */
static void compact_consider(segment_store_t *store, segment_t *segment) {
    if (segment->compactable || segment == store->open || segment == store->cold || !segment->entries) return;
    if (segment->live_bytes >= segment->capacity / SPARSE_DIVISOR) return;
    segment->compact_next = store->compact_head;
    segment->compact_link = &store->compact_head;
    if (store->compact_head) store->compact_head->compact_link = &segment->compact_next;
    store->compact_head = segment;
    segment->compactable = true;
}

static void segment_retire(segment_store_t *store, segment_t **slot) {
    segment_t *segment = *slot;
    *slot = NULL;
    if (!segment) return;
    compact_consider(store, segment);
    segment_unref(store, segment);
}

static uint8_t *reserve_in(segment_store_t *store, segment_t **slot, uint32_t size) {
    segment_t *segment = *slot;
    if (BQ_UNLIKELY(!segment || size > segment->capacity - segment->used)) {
        segment_t *fresh = segment_new(store, size);
        if (!fresh) return NULL;
        segment_retire(store, slot);
        *slot = segment = fresh;
    }
    return segment->bytes + segment->used;
}

uint8_t *segment_reserve(segment_store_t *store, uint32_t size) { return reserve_in(store, &store->open, size); }

void segment_link(segment_t *segment, queue_entry_t *entry) {
    entry->segment = segment;
    entry->segment_next = segment->entries;
    entry->segment_link = &segment->entries;
    if (segment->entries) segment->entries->segment_link = &entry->segment_next;
    segment->entries = entry;
    segment->live_bytes += entry->size;
    segment->refs++;
}

void segment_unlink(segment_store_t *store, queue_entry_t *entry) {
    segment_t *segment = entry->segment;
    *entry->segment_link = entry->segment_next;
    if (entry->segment_next) entry->segment_next->segment_link = entry->segment_link;
    entry->segment = NULL;
    segment_shrink(store, segment, entry->size);
    segment_unref(store, segment);
}

void segment_shrink(segment_store_t *store, segment_t *segment, uint64_t bytes) {
    segment->live_bytes -= bytes;
    compact_consider(store, segment);
}

/* Move one entry's bytes to the cold segment; the entry keeps its place in its queue. Only live bytes are moved: a cold
 * segment is then as dense as what was put into it, and what is copied is not soon worth copying again. */
static bool entry_copy_out(segment_store_t *store, queue_entry_t *entry) {
    uint8_t *to = reserve_in(store, &store->cold, entry->size);
    if (!to) return false;
    memcpy(to, entry->segment->bytes + entry->offset, entry->size);
    segment_unlink(store, entry);
    entry->offset = store->cold->used;
    store->cold->used += entry->size;
    segment_link(store->cold, entry);
    store->compacted_bytes += entry->size;
    return true;
}

bool segment_compact(segment_store_t *store, uint32_t bytes_max) {
    uint64_t stop_at = store->compacted_bytes + bytes_max;
    while (store->compact_head && store->compacted_bytes < stop_at) {
        segment_t *segment = store->compact_head;
        segment->refs++; /* the last entry to leave must not free it under the loop */
        while (segment->entries) {
            if (!entry_copy_out(store, segment->entries)) {
                segment_unref(store, segment);
                return false; /* no memory to save memory with: try again when some is free */
            }
        }
        compact_remove(segment);
        segment_unref(store, segment);
    }
    return store->compact_head != NULL;
}

static void rewind_if_unused(segment_t *segment) {
    if (segment && segment->refs == 1) segment->used = 0;
}

void segment_rewind(segment_store_t *store) {
    rewind_if_unused(store->open);
    rewind_if_unused(store->cold);
}

void segment_store_release(segment_store_t *store) {
    segment_retire(store, &store->open);
    segment_retire(store, &store->cold);
}
