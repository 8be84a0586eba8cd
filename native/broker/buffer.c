/* broker/buffer.c: see broker/buffer.h for the picture and the invariant. */
#include "broker/buffer.h"
#include "broker/outqueue.h"

#define SPARSE_DIVISOR 4 /* compaction starts when live bytes fall below capacity / this */

void buffer_store_init(buffer_store_t *store, pool_t *pool, uint32_t buffer_bytes) {
    memset(store, 0, sizeof *store);
    store->pool = pool;
    store->buffer_bytes = buffer_bytes;
}

static buffer_t *buffer_new(buffer_store_t *store, uint32_t size) {
    size_t ordinary = store->buffer_bytes;
    size_t need = sizeof(buffer_t) + (size_t)size;
    size_t total = need > ordinary ? need : ordinary;
    buffer_t *buffer = pool_alloc(store->pool, total);
    if (!buffer) return NULL;
    *buffer = (buffer_t){.refs = 1, .capacity = (uint32_t)(total - sizeof(buffer_t))};
    store->count++;
    return buffer;
}

static void compact_remove(buffer_t *buffer) {
    if (!buffer->compactable) return;
    *buffer->compact_link = buffer->compact_next;
    if (buffer->compact_next) buffer->compact_next->compact_link = buffer->compact_link;
    buffer->compactable = false;
}

static void buffer_unref(buffer_store_t *store, buffer_t *buffer) {
    core_assert(buffer->refs > 0);
    if (--buffer->refs) return;
    core_assert(!buffer->entries && store->count > 0);
    compact_remove(buffer);
    store->count--;
    pool_free(store->pool, buffer, sizeof(buffer_t) + buffer->capacity);
}

/* An open buffer (or the cold one) still gets data. Any other buffer with few live bytes is worth copying out. */
static void compact_consider(buffer_store_t *store, buffer_t *buffer) {
    if (buffer->compactable || buffer == store->open || buffer == store->cold || !buffer->entries) return;
    if (buffer->live_bytes >= buffer->capacity / SPARSE_DIVISOR) return;
    buffer->compact_next = store->compact_head;
    buffer->compact_link = &store->compact_head;
    if (store->compact_head) store->compact_head->compact_link = &buffer->compact_next;
    store->compact_head = buffer;
    buffer->compactable = true;
}

static void buffer_retire(buffer_store_t *store, buffer_t **slot) {
    buffer_t *buffer = *slot;
    *slot = NULL;
    if (!buffer) return;
    compact_consider(store, buffer);
    buffer_unref(store, buffer);
}

static uint8_t *reserve_in(buffer_store_t *store, buffer_t **slot, uint32_t size) {
    buffer_t *buffer = *slot;
    if (BQ_UNLIKELY(!buffer || size > buffer->capacity - buffer->used)) {
        buffer_t *fresh = buffer_new(store, size);
        if (!fresh) return NULL;
        buffer_retire(store, slot);
        *slot = buffer = fresh;
    }
    return buffer->bytes + buffer->used;
}

void buffer_let_go(buffer_store_t *store, buffer_t *buffer) { buffer_unref(store, buffer); }

uint8_t *buffer_reserve(buffer_store_t *store, uint32_t size) { return reserve_in(store, &store->open, size); }

void buffer_link(buffer_t *buffer, queue_entry_t *entry) {
    core_assert(entry->offset <= buffer->capacity && entry->size <= buffer->capacity - entry->offset);
    entry->buffer = buffer;
    entry->buffer_next = buffer->entries;
    entry->buffer_link = &buffer->entries;
    if (buffer->entries) buffer->entries->buffer_link = &entry->buffer_next;
    buffer->entries = entry;
    buffer->live_bytes += entry->size;
    buffer->refs++;
}

void buffer_unlink(buffer_store_t *store, queue_entry_t *entry) {
    buffer_t *buffer = entry->buffer;
    *entry->buffer_link = entry->buffer_next;
    if (entry->buffer_next) entry->buffer_next->buffer_link = entry->buffer_link;
    entry->buffer = NULL;
    buffer_shrink(store, buffer, entry->size);
    buffer_unref(store, buffer);
}

void buffer_shrink(buffer_store_t *store, buffer_t *buffer, uint64_t bytes) {
    core_assert(bytes <= buffer->live_bytes);
    buffer->live_bytes -= bytes;
    compact_consider(store, buffer);
}

/* Copies one entry's bytes to the cold buffer; the entry keeps its place in its queue. Only live bytes are copied, so the cold
 * buffer is dense and is not soon copied again. */
static bool entry_copy_out(buffer_store_t *store, queue_entry_t *entry) {
    uint8_t *to = reserve_in(store, &store->cold, entry->size);
    if (!to) return false;
    memcpy(to, entry->buffer->bytes + entry->offset, entry->size);
    buffer_unlink(store, entry);
    entry->offset = store->cold->used;
    store->cold->used += entry->size;
    buffer_link(store->cold, entry);
    store->compacted_bytes += entry->size;
    return true;
}

bool buffer_compact(buffer_store_t *store, uint32_t bytes_max) {
    uint64_t stop_at = store->compacted_bytes + bytes_max;
    while (store->compact_head && store->compacted_bytes < stop_at) {
        buffer_t *buffer = store->compact_head;
        buffer->refs++; /* removing the last entry must not free it within the loop */
        while (buffer->entries) {
            if (!entry_copy_out(store, buffer->entries)) {
                buffer_unref(store, buffer);
                return false; /* no memory for the copy: retry when some is free */
            }
        }
        compact_remove(buffer);
        buffer_unref(store, buffer);
    }
    return store->compact_head != NULL;
}

static void rewind_if_unused(buffer_t *buffer) {
    if (buffer && buffer->refs == 1) buffer->used = 0;
}

void buffer_rewind(buffer_store_t *store) {
    rewind_if_unused(store->open);
    rewind_if_unused(store->cold);
}

void buffer_store_release(buffer_store_t *store) {
    buffer_retire(store, &store->open);
    buffer_retire(store, &store->cold);
}
