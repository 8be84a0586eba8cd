/* test_hash.c: similar names and the buckets they get.
 *
 * Invariants checked: take a hundred names that differ in any two places, and a table of 4,096 buckets. They share a bucket
 * about as rarely as random values, for every key. Random values put more than seven names into one bucket with a probability
 * of 10^-14. Differences that cancel each other in an unkeyed hash do not cancel here.
 */
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "base/hash.h"

enum { BUCKETS = 4096, NAMES = 100, LENGTH_MAX = 40, TOGETHER_MAX = 7, PAIRS = 10, CHOSEN_TOGETHER_MAX = 8 };

static uint8_t counts[BUCKETS];

static uint32_t bucket(const hash_key_t *key, const uint8_t *name, uint32_t size) {
    return (uint32_t)(hash_bytes(key, name, size, 0) % BUCKETS);
}

static uint32_t most_together(uint32_t length, uint32_t first, uint32_t second, hash_key_t key) {
    uint8_t name[LENGTH_MAX];
    uint32_t most = 0;
    memset(counts, 0, sizeof counts);
    memset(name, '.', sizeof name);
    for (int i = 0; i < NAMES; i++) {
        name[first] = (uint8_t)('0' + i / 10);
        name[second] = (uint8_t)('0' + i % 10);
        uint8_t together = ++counts[bucket(&key, name, length)];
        if (together > most) most = together;
    }
    return most;
}

/* Names made of ten pairs of words. In each pair two differences may cancel each other, because multiplication by an odd
 * number keeps a difference in the highest bit. A hash that only multiplies and shifts puts all 1,024 names into one bucket,
 * for every seed. */
static void differences_do_not_cancel(uint64_t *random) {
    const hash_key_t key = hash_key_from(random_next(random));
    uint64_t base[2 * PAIRS], name[2 * PAIRS];
    uint32_t most = 0;
    memset(counts, 0, sizeof counts);
    for (uint32_t i = 0; i < 2 * PAIRS; i++) base[i] = random_next(random);
    for (uint32_t choice = 0; choice < 1u << PAIRS; choice++) {
        memcpy(name, base, sizeof name);
        for (uint32_t pair = 0; pair < PAIRS; pair++) {
            if (!(choice >> pair & 1)) continue;
            name[2 * pair] ^= 1ull << 63;
            name[2 * pair + 1] ^= 1ull << 63 | 1ull << 31;
        }
        uint8_t together = ++counts[bucket(&key, (const uint8_t *)name, sizeof name)];
        if (together > most) most = together;
    }
    CHECK(most <= CHOSEN_TOGETHER_MAX);
}

/* Zeros at the end of a name, its length, and `begin` change the hash too. */
static void lengths_and_beginnings_differ(uint64_t *random) {
    static const uint8_t zeros[LENGTH_MAX];
    const hash_key_t key = hash_key_from(random_next(random));
    for (uint32_t a = 0; a <= LENGTH_MAX; a++)
        for (uint32_t b = 0; b < a; b++) CHECK(hash_bytes(&key, zeros, a, 0) != hash_bytes(&key, zeros, b, 0));
    for (uint64_t begin = 1; begin < 1ull << 61; begin *= 2)
        CHECK(hash_bytes(&key, zeros, 9, begin) != hash_bytes(&key, zeros, 9, 0));
}

int main(void) {
    uint64_t random = 1;
    hash_key_t one, two;
    for (uint32_t length = 2; length <= LENGTH_MAX; length++)
        for (uint32_t first = 0; first < length; first++)
            for (uint32_t second = first + 1; second < length; second++)
                CHECK(most_together(length, first, second, hash_key_from(random_next(&random))) <= TOGETHER_MAX);
    differences_do_not_cancel(&random);
    lengths_and_beginnings_differ(&random);
    CHECK(hash_key_random(&one) && hash_key_random(&two) && one.point != two.point);
    return 0;
}
