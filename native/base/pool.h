/* base/pool.h: size-class pools over malloc, one per core, for one thread.
 *
 * Invariant: used_bytes is the sum of all blocks given out and kept free, so a budget can be held against it.
 */
#ifndef BQ_POOL_H
#define BQ_POOL_H

#include "base/bytes.h"

#define POOL_CLASSES 52 /* 32 bytes to 512 KiB, four steps per doubling from 128 on; larger blocks go straight to malloc */

typedef struct pool {
    void *free[POOL_CLASSES];
    uint32_t free_count[POOL_CLASSES];
    uint32_t free_max[POOL_CLASSES]; /* blocks kept per class */
    uint64_t used_bytes, free_bytes, peak_bytes;
    uint64_t hits, misses; /* misses: served by malloc */
} pool_t;

void pool_init(pool_t *pool, uint32_t small_count, uint32_t medium_count, uint32_t large_count);
void pool_release(pool_t *pool); /* free every kept block */

/* The caller remembers the size it asked for and gives it back: blocks carry no header. NULL: the allocator failed. */
void *pool_alloc(pool_t *pool, size_t size);
void pool_free(pool_t *pool, void *block, size_t size); /* NULL is fine */
void *pool_resize(pool_t *pool, void *block, size_t old_size,
                  size_t new_size);                        /* as realloc; on NULL the old block still stands */
void pool_warm(pool_t *pool, size_t size, uint32_t count); /* allocate ahead, as far as the class keeps free blocks */
size_t pool_good_size(size_t size);                        /* the class size that pool_alloc(size) really gives */

#endif
