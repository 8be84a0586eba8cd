/* test_hash.c: names that differ little, and the buckets they fall into.
 *
 * Invariant checked: a hundred names of any length that differ in any two places share a bucket of a table of 4,096 about as
 * rarely as chance has it, whatever the seed: chance puts more than seven into one never in practice (10^-14).
 */
#include <string.h>

#include "check.h"
#include "broker/trie.h"

enum { BUCKETS = 4096, NAMES = 100, LENGTH_MAX = 40, TOGETHER_MAX = 7 };

static uint32_t most_together(uint32_t length, uint32_t first, uint32_t second, uint64_t seed) {
    static uint8_t counts[BUCKETS];
    uint8_t name[LENGTH_MAX];
    uint32_t most = 0;
    memset(counts, 0, sizeof counts);
    memset(name, '.', sizeof name);
    for (int i = 0; i < NAMES; i++) {
        name[first] = (uint8_t)('0' + i / 10);
        name[second] = (uint8_t)('0' + i % 10);
        uint8_t together = ++counts[hash_bytes(name, length, seed) % BUCKETS];
        if (together > most) most = together;
    }
    return most;
}

int main(void) {
    uint64_t random = 1;
    for (uint32_t length = 2; length <= LENGTH_MAX; length++)
        for (uint32_t first = 0; first < length; first++)
            for (uint32_t second = first + 1; second < length; second++)
                CHECK(most_together(length, first, second, random_next(&random)) <= TOGETHER_MAX);
    return 0;
}
