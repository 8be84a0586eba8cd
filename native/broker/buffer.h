/* broker/buffer.h: where encoded frames live, once, however many subscribers wait for them.
 *
 *      segment   [frame][frame][frame][frame]......        used <= capacity; frames are appended, never moved or changed
 *                 ^------- entry of queue A
 *                        ^------------- entry of queue B
 *
 * Invariant: a segment lives while refs > 0: one for being open to appends, one per queue entry that points into it.
 * live_bytes is the sum of its entries' sizes (a byte wanted by three queues counts three times): when that falls under a
 * quarter of the capacity, copying the entries out costs less than keeping the segment, so it is put up for compaction.
 */
#ifndef BQ_SEGMENT_H
#define BQ_SEGMENT_H

#include "base/bytes.h"
#include "base/pool.h"

struct queue_entry;

typedef struct segment {
    uint32_t refs;
    uint32_t capacity; /* of bytes[] */
    uint32_t used;
    bool compactable; /* on the store's compaction list */
    uint64_t live_bytes;
    struct queue_entry *entries; /* all entries that point here, linked through segment_next */
    struct segment *compact_next, **compact_link;
    uint8_t bytes[];
} segment_t;

typedef struct segment_store {
    pool_t *pool;
    segment_t *open; /* the shared one that frames are appended to */
    segment_t *cold; /* where compaction copies to; NULL most of the time */
    segment_t *compact_head;
    uint32_t segment_bytes; /* allocation size of an ordinary segment, header included */
    uint64_t count;
    uint64_t compacted_bytes;
} segment_store_t;

void segment_store_init(segment_store_t *store, pool_t *pool, uint32_t segment_bytes);
void segment_store_release(segment_store_t *store);

/* Room for `size` contiguous bytes at the end of the open segment; the caller writes them and calls segment_commit. A frame
 * larger than a segment gets one of its own. NULL: no memory. */
uint8_t *segment_reserve(segment_store_t *store, uint32_t size);
static inline void segment_commit(segment_store_t *store, uint32_t size) { store->open->used += size; }

void segment_unref(segment_store_t *store, segment_t *segment);

/* Entries tell their segment when they come, shrink and go. */
void segment_link(segment_t *segment, struct queue_entry *entry);
void segment_unlink(segment_store_t *store, struct queue_entry *entry);
void segment_shrink(segment_store_t *store, segment_t *segment, uint64_t bytes);

/* Start the open segments over when no queue wants anything in them: as long as subscribers keep up, the same memory is
 * written again and again and stays in the processor's cache. Must not run while a run is open. */
void segment_rewind(segment_store_t *store);

/* Copy the entries of sparse segments out, at most about `bytes_max` bytes; true if more is waiting. */
bool segment_compact(segment_store_t *store, uint32_t bytes_max);

#endif
