/* test_pool.c: the pools compared with sums kept by the test. Every block is filled and checked.
 *
 * Invariant checked: used_bytes is exactly the size of all blocks in use and kept free, and no block is given out twice.
 */
#include "check.h"
#include "base/pool.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define IS_POISONED(block) __asan_address_is_poisoned(block)
#else
#define IS_POISONED(block) 1
#endif

#define LIVE 300
#define SMALL_COUNT 9
#define MEDIUM_COUNT 4
#define LARGE_COUNT 1

static pool_t pool;
static struct {
    uint8_t *bytes;
    size_t size;
    uint8_t fill;
} live[LIVE];
static struct {
    uint32_t kept[600 * 1024 / 32];
    uint64_t used, free, peak, hits, misses;
} model; /* index of kept: good size / 32 */

static bool pooled(size_t size) { return size <= 512 * 1024; }

static uint32_t keep_max(size_t good) { return good <= 1024 ? SMALL_COUNT : good <= 16384 ? MEDIUM_COUNT : LARGE_COUNT; }

static void model_take(size_t size) {
    size_t good = pool_good_size(size);
    if (pooled(size) && model.kept[good / 32]) {
        model.kept[good / 32]--;
        model.free -= good;
        model.hits++;
    } else {
        model.used += good;
        model.misses++;
    }
    if (model.used > model.peak) model.peak = model.used;
}

static void model_give(size_t size) {
    size_t good = pool_good_size(size);
    if (pooled(size) && model.kept[good / 32] < keep_max(good)) {
        model.kept[good / 32]++;
        model.free += good;
    } else {
        model.used -= good;
    }
}

static void model_resize(size_t old_size, size_t new_size) {
    size_t old_good = pool_good_size(old_size), new_good = pool_good_size(new_size);
    if (old_good == new_good) return;
    if (!pooled(old_size) && !pooled(new_size)) {
        model.used = model.used + new_good - old_good;
        if (model.used > model.peak) model.peak = model.used;
        return;
    }
    model_take(new_size);
    model_give(old_size);
}

static void check_counters(void) {
    CHECK(pool.used_bytes == model.used && pool.free_bytes == model.free && pool.peak_bytes == model.peak);
    CHECK(pool.hits == model.hits && pool.misses == model.misses);
}

static void check_filled(int i, size_t size) {
    for (size_t k = 0; k < size; k++) CHECK(live[i].bytes[k] == live[i].fill);
}

static void fill(int i, uint64_t *seed) {
    live[i].fill = (uint8_t)random_next(seed);
    memset(live[i].bytes, live[i].fill, live[i].size);
}

static size_t random_size(uint64_t *seed) {
    static const size_t tops[] = {40, 200, 1100, 5000, 20000, 70000, 600000};
    return random_below(seed, tops[random_below(seed, sizeof tops / sizeof *tops)]);
}

static void random_operation(uint64_t *seed) {
    int i = (int)random_below(seed, LIVE);
    size_t size = random_size(seed);
    if (!live[i].bytes) {
        live[i].bytes = pool_alloc(&pool, size);
        live[i].size = size;
        CHECK(live[i].bytes && (uintptr_t)live[i].bytes % _Alignof(max_align_t) == 0);
        model_take(size);
    } else if (random_below(seed, 3) == 0) {
        check_filled(i, live[i].size);
        live[i].bytes = pool_resize(&pool, live[i].bytes, live[i].size, size);
        CHECK(live[i].bytes);
        check_filled(i, size < live[i].size ? size : live[i].size);
        model_resize(live[i].size, size);
        live[i].size = size;
    } else {
        check_filled(i, live[i].size);
        pool_free(&pool, live[i].bytes, live[i].size);
        model_give(live[i].size);
        live[i].bytes = NULL;
        return;
    }
    fill(i, seed);
}

static void test_random_operations_agree_with_the_sums(uint64_t seed) {
    pool_init(&pool, SMALL_COUNT, MEDIUM_COUNT, LARGE_COUNT);
    memset(&model, 0, sizeof model);
    for (int round = 0; round < 6000; round++) {
        random_operation(&seed);
        check_counters();
    }
    for (int i = 0; i < LIVE; i++) {
        if (live[i].bytes) model_give(live[i].size);
        pool_free(&pool, live[i].bytes, live[i].size);
        live[i].bytes = NULL;
        check_counters();
    }
    CHECK(pool.hits > 300 && pool.misses > 300 && pool.used_bytes == pool.free_bytes);
    pool_release(&pool);
    CHECK(pool.used_bytes == 0 && pool.free_bytes == 0);
}

static void test_class_sizes_waste_at_most_a_quarter(void) {
    size_t classes = 0, last = 0;
    for (size_t size = 0; size <= 512 * 1024; size++) {
        size_t good = pool_good_size(size);
        CHECK(good >= size && good >= last && good % 32 == 0 && pool_good_size(good) == good);
        CHECK(good - size <= 32 || (good - size) * 4 <= size);
        classes += good != last;
        last = good;
    }
    CHECK(classes == POOL_CLASSES && last == 512 * 1024);
    CHECK(pool_good_size(512 * 1024 + 1) == 512 * 1024 + 1);
}

static void test_a_freed_block_is_poisoned_and_allocated_again(void) {
    pool_init(&pool, 1, 0, 0);
    uint8_t *first = pool_alloc(&pool, 100), *second = pool_alloc(&pool, 100);
    pool_free(&pool, first, 100);
    CHECK(IS_POISONED(first) && IS_POISONED(first + 127));
    pool_free(&pool, second, 100); /* more than the pool keeps: back to malloc */
    CHECK(pool.free_bytes == 128 && pool.used_bytes == 128);
    CHECK(pool_alloc(&pool, 128) == first && pool.free_bytes == 0);
    memset(first, 1, 128);
    pool_free(&pool, first, 128);
    pool_free(&pool, NULL, 128);
    pool_release(&pool);
}

int main(void) {
    for (uint64_t seed = 1; seed <= 3; seed++) test_random_operations_agree_with_the_sums(seed);
    test_class_sizes_waste_at_most_a_quarter();
    test_a_freed_block_is_poisoned_and_allocated_again();
    return 0;
}
