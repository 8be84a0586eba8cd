/* broker/buffer.h: shared outgoing buffers. An encoded frame is stored once for all its subscribers.
 *
 *      buffer   [frame][frame][frame][frame]......        used <= capacity; frames are appended, never moved or changed
 *                 ^------- entry of queue A
 *                        ^------------- entry of queue B
 *
 * Invariant: a buffer exists while refs > 0: one reference while it is open for appends, one per queue entry that points into
 * it, and one per hold. live_bytes is the sum of its entries' sizes (a byte in three queues counts three times). Below a quarter of the
 * capacity, copying the entries out costs less than keeping the buffer, so the buffer goes on the compaction list.
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
    struct queue_entry *entries; /* all entries that point into it, linked through buffer_next */
    struct buffer *compact_next, **compact_link;
    uint8_t bytes[];
} buffer_t;

typedef struct buffer_store {
    pool_t *pool;
    buffer_t *open; /* shared buffer to which frames are appended */
    buffer_t *cold; /* target of compaction; usually NULL */
    buffer_t *compact_head;
    uint32_t buffer_bytes; /* allocation size of an ordinary buffer, header included */
    uint64_t count;
    uint64_t compacted_bytes;
} buffer_store_t;

void buffer_store_init(buffer_store_t *store, pool_t *pool, uint32_t buffer_bytes);
void buffer_store_release(buffer_store_t *store);

/* Reserves `size` contiguous bytes at the end of the open buffer; the caller writes them and calls buffer_commit. A frame larger
 * than a buffer gets its own. NULL: no memory. */
uint8_t *buffer_reserve(buffer_store_t *store, uint32_t size);
static inline void buffer_commit(buffer_store_t *store, uint32_t size) {
    core_assert(size <= store->open->capacity - store->open->used);
    store->open->used += size;
}

/* A hold keeps a buffer that has no entry yet. */
static inline void buffer_hold(buffer_t *buffer) { buffer->refs++; }
void buffer_let_go(buffer_store_t *store, buffer_t *buffer);

/* Call these when an entry is added, removed or becomes smaller. */
void buffer_link(buffer_t *buffer, struct queue_entry *entry);
void buffer_unlink(buffer_store_t *store, struct queue_entry *entry);
void buffer_shrink(buffer_store_t *store, buffer_t *buffer, uint64_t bytes);

/* Restarts the open buffers when no queue entry points into them. While subscribers keep up, the same memory is then reused and
 * stays in the processor's cache. Not allowed while a run is open. */
void buffer_rewind(buffer_store_t *store);

/* Copies the entries of sparse buffers out, about `bytes_max` bytes at most. True: more is left. */
bool buffer_compact(buffer_store_t *store, uint32_t bytes_max);

#endif
