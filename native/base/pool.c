/* base/pool.c: the size-class pools of base/pool.h. The first word of a free block points to the next free block of its class.
 *
 *      class    0   1   2   3    4    5    6    7    8     ...   51
 *      bytes   32  64  96  128  160  192  224  256  320    ...   524,288
 *
 * Invariant: a block belongs to the class of its requested size, so freeing it needs that size and no header.
 */
#include <assert.h>
#include <stdlib.h>

#include "base/pool.h"

#define SMALL_BYTES_MAX 1024u
#define MEDIUM_BYTES_MAX (16u << 10)
#define CLASS_BYTES_MAX (512u << 10)

#if defined(__SANITIZE_ADDRESS__)
#define POOL_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define POOL_ASAN 1
#endif
#endif

/* Free blocks are poisoned, so that AddressSanitizer detects a use after pool_free. */
#ifdef POOL_ASAN
#include <sanitizer/asan_interface.h>
#define BLOCK_HIDE(block, size) ASAN_POISON_MEMORY_REGION(block, size)
#define BLOCK_SHOW(block, size) ASAN_UNPOISON_MEMORY_REGION(block, size)
#else
#define BLOCK_HIDE(block, size) ((void)(block), (void)(size))
#define BLOCK_SHOW(block, size) ((void)(block), (void)(size))
#endif

/* Up to 128 bytes, steps of 32. Above, the two bits after the leading one select one of four steps. */
static inline uint32_t class_of(size_t size) {
    if (size <= 128) return size ? (uint32_t)(size - 1) / 32 : 0;
    uint32_t top = 63 - (uint32_t)__builtin_clzll((unsigned long long)size - 1);
    return 4 * (top - 6) + ((uint32_t)((size - 1) >> (top - 2)) & 3);
}

static inline size_t class_bytes(uint32_t index) {
    return index < 4 ? 32u * (index + 1) : (size_t)(5 + index % 4) << (index / 4 + 4);
}

static void *count_new(pool_t *pool, void *block, size_t bytes) {
    if (!block) return NULL;
    pool->used_bytes += bytes;
    if (pool->used_bytes > pool->peak_bytes) pool->peak_bytes = pool->used_bytes;
    return block;
}

static void *kept_pop(pool_t *pool, uint32_t index, size_t bytes) {
    void *block = pool->free[index];
    BLOCK_SHOW(block, bytes);
    memcpy(&pool->free[index], block, sizeof(void *));
    pool->free_count[index]--;
    pool->free_bytes -= bytes;
    return block;
}

void pool_init(pool_t *pool, uint32_t small_count, uint32_t medium_count, uint32_t large_count) {
    memset(pool, 0, sizeof *pool);
    for (uint32_t index = 0; index < POOL_CLASSES; index++) {
        size_t bytes = class_bytes(index);
        pool->free_max[index] = bytes <= SMALL_BYTES_MAX ? small_count : bytes <= MEDIUM_BYTES_MAX ? medium_count : large_count;
    }
}

void pool_release(pool_t *pool) {
    for (uint32_t index = 0; index < POOL_CLASSES; index++) {
        size_t bytes = class_bytes(index);
        while (pool->free[index]) {
            free(kept_pop(pool, index, bytes));
            pool->used_bytes -= bytes;
        }
    }
}

void *pool_alloc(pool_t *pool, size_t size) {
    if (BQ_UNLIKELY(size > CLASS_BYTES_MAX)) {
        pool->misses++;
        return count_new(pool, malloc(size), size);
    }
    uint32_t index = class_of(size);
    size_t bytes = class_bytes(index);
    if (BQ_LIKELY(pool->free[index] != NULL)) {
        pool->hits++;
        return kept_pop(pool, index, bytes);
    }
    pool->misses++;
    return count_new(pool, malloc(bytes), bytes);
}

void pool_free(pool_t *pool, void *block, size_t size) {
    if (!block) return;
    size_t bytes = pool_good_size(size);
    uint32_t index = size <= CLASS_BYTES_MAX ? class_of(size) : POOL_CLASSES;
    if (index == POOL_CLASSES || pool->free_count[index] >= pool->free_max[index]) {
        free(block);
        pool->used_bytes -= bytes;
        return;
    }
    memcpy(block, &pool->free[index], sizeof(void *));
    pool->free[index] = block;
    pool->free_count[index]++;
    pool->free_bytes += bytes;
    BLOCK_HIDE(block, bytes);
}

void *pool_resize(pool_t *pool, void *block, size_t old_size, size_t new_size) {
    size_t old_bytes = pool_good_size(old_size), new_bytes = pool_good_size(new_size);
    if (block && old_bytes == new_bytes) return block;
    if (block && old_size > CLASS_BYTES_MAX && new_size > CLASS_BYTES_MAX) {
        void *moved = realloc(block, new_size);
        if (!moved) return NULL;
        pool->used_bytes -= old_bytes;
        return count_new(pool, moved, new_bytes);
    }
    void *moved = pool_alloc(pool, new_size);
    if (moved && block) {
        memcpy(moved, block, old_size < new_size ? old_size : new_size);
        pool_free(pool, block, old_size);
    }
    return moved;
}

size_t pool_good_size(size_t size) { return size > CLASS_BYTES_MAX ? size : class_bytes(class_of(size)); }

void pool_warm(pool_t *pool, size_t size, uint32_t count) {
    /* Linked by their first words until all are allocated; a block freed earlier would be allocated again. */
    void *taken = NULL;
    for (uint32_t i = 0; i < count; i++) {
        void *block = pool_alloc(pool, size);
        if (!block) break;
        memcpy(block, &taken, sizeof taken);
        taken = block;
    }
    while (taken) {
        void *block = taken;
        memcpy(&taken, block, sizeof taken);
        pool_free(pool, block, size);
    }
}
