/* broker/buffer.h: where encoded frames live, once, however many subscribers wait for them.
 *
 *      buffer   [frame][frame][frame][frame]......        used <= capacity; frames are appended, never moved or changed
 *                 ^------- entry of queue A
 *                        ^------------- entry of queue B
 *
 * Invariant: a buffer lives while refs > 0: one for being open to appends, one per queue entry that points into it.
 * live_bytes is the sum of its entries' sizes (a byte wanted by three queues counts three times): when that falls under a
 * quarter of the capacity, copying the entries out costs less than keeping the buffer, so it is put up for compaction.
 */
#ifndef BQ_BUFFER_H
#define BQ_BUFFER_H

#include "base/bytes.h"
#include "base/pool.h"

struct queue_entry;

typedef struct buffer {
    uint32_t refs;
    uint32_t capacity; /* of bytes[] */
    uint32_t used;
    bool compactable; /* on the store's compaction list */
    uint64_t live_bytes;
    struct queue_entry *entries; /* all entries that point here, linked through buffer_next */
    struct buffer *compact_next, **compact_link;
    uint8_t bytes[];
} buffer_t;

typedef struct buffer_store {
    pool_t *pool;
    buffer_t *open; /* the shared one that frames are appended to */
    buffer_t *cold; /* where compaction copies to; NULL most of the time */
    buffer_t *compact_head;
    uint32_t buffer_bytes; /* allocation size of an ordinary buffer, header included */
    uint64_t count;
    uint64_t compacted_bytes;
} buffer_store_t;

void buffer_store_init(buffer_store_t *store, pool_t *pool, uint32_t buffer_bytes);
void buffer_store_release(buffer_store_t *store);

/* Room for `size` contiguous bytes at the end of the open buffer; the caller writes them and calls buffer_commit. A frame
 * larger than a buffer gets one of its own. NULL: no memory. */
uint8_t *buffer_reserve(buffer_store_t *store, uint32_t size);
static inline void buffer_commit(buffer_store_t *store, uint32_t size) {
    core_assert(size <= store->open->capacity - store->open->used);
    store->open->used += size;
}

void buffer_unref(buffer_store_t *store, buffer_t *buffer);

/* Entries tell their buffer when they come, shrink and go. */
void buffer_link(buffer_t *buffer, struct queue_entry *entry);
void buffer_unlink(buffer_store_t *store, struct queue_entry *entry);
void buffer_shrink(buffer_store_t *store, buffer_t *buffer, uint64_t bytes);

/* Start the open buffers over when no queue wants anything in them: as long as subscribers keep up, the same memory is
 * written again and again and stays in the processor's cache. Must not run while a run is open. */
void buffer_rewind(buffer_store_t *store);

/* Copy the entries of sparse buffers out, at most about `bytes_max` bytes; true if more is waiting. */
bool buffer_compact(buffer_store_t *store, uint32_t bytes_max);

#endif
