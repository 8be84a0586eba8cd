/* base/pool.h: size-class pools on top of malloc, one per core, for one thread.
 *
 * Invariant: used_bytes is the sum of all blocks, in use or free, so it can be compared with a memory budget.
 */
#ifndef BQ_POOL_H
#define BQ_POOL_H

#include "base/bytes.h"

#define POOL_CLASSES 52 /* 32 bytes to 512 KiB, four steps per doubling above 128; larger blocks use malloc directly */

typedef struct pool {
    void *free[POOL_CLASSES];
    uint32_t free_count[POOL_CLASSES];
    uint32_t free_max[POOL_CLASSES]; /* free blocks kept per class */
    uint64_t used_bytes, free_bytes, peak_bytes;
    uint64_t hits, misses; /* misses: served by malloc */
} pool_t;

void pool_init(pool_t *pool, uint32_t small_count, uint32_t medium_count, uint32_t large_count);
void pool_release(pool_t *pool); /* free all kept blocks */

/* The caller must pass the requested size again when it frees the block: blocks have no header. NULL: no memory. */
void *pool_alloc(pool_t *pool, size_t size);
void pool_free(pool_t *pool, void *block, size_t size); /* block may be NULL */
/* As realloc. On NULL the old block is unchanged. */
void *pool_resize(pool_t *pool, void *block, size_t old_size, size_t new_size);
void pool_warm(pool_t *pool, size_t size, uint32_t count); /* allocate in advance, as many blocks as the class keeps */
size_t pool_good_size(size_t size);                        /* size of the block that pool_alloc(size) returns */

#endif
