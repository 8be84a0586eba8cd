/* base/hash.c: see base/hash.h. A coefficient is seven bytes, so it is always below the prime. */
#define _DEFAULT_SOURCE /* getentropy */
#include "base/hash.h"

#include "base/entropy.h"

#define PRIME ((1ull << 61) - 1)
#define STEP 7u
#define STEP_MASK ((1ull << 56) - 1)

hash_key_t hash_key_from(uint64_t random_bits) { return (hash_key_t){1 + random_bits % (PRIME - 2)}; }

bool hash_key_random(hash_key_t *key) {
    uint64_t bits;
    if (!entropy_fill(&bits, sizeof bits)) return false;
    *key = hash_key_from(bits);
    return true;
}

/* Returns the lower half of the product; *upper: the upper half. */
static inline uint64_t multiply(uint64_t a, uint64_t b, uint64_t *upper) {
#ifdef __SIZEOF_INT128__
    unsigned __int128 product = (unsigned __int128)a * b;
    *upper = (uint64_t)(product >> 64);
    return (uint64_t)product;
#else
    const uint64_t a0 = (uint32_t)a, a1 = a >> 32, b0 = (uint32_t)b, b1 = b >> 32;
    const uint64_t low = a0 * b0, middle = a1 * b0 + (low >> 32), other = a0 * b1 + (uint32_t)middle;
    *upper = a1 * b1 + (middle >> 32) + (other >> 32);
    return other << 32 | (uint32_t)low;
#endif
}

/* (hash + coefficient) * point, below 2^62. 2^61 is 1 modulo the prime, so the upper part is added to the lower one. */
static inline uint64_t step(uint64_t hash, uint64_t coefficient, uint64_t point) {
    uint64_t upper, lower = multiply(hash + coefficient, point, &upper);
    uint64_t sum = (lower & PRIME) + (upper << 3 | lower >> 61);
    return (sum & PRIME) + (sum >> 61);
}

/* The low bits choose a bucket. This makes them depend on all other bits. */
static inline uint64_t mix(uint64_t x) {
    x *= 0xD6E8FEB86659FD93ull; /* odd, with evenly spread bits */
    x ^= x >> 32;
    x *= 0xD6E8FEB86659FD93ull;
    return x ^ x >> 32;
}

uint64_t hash_bytes(const hash_key_t *key, const uint8_t *bytes, uint32_t size, uint64_t begin) {
    const uint64_t point = key->point;
    uint64_t hash = step(begin & ((1ull << 62) - 1), size, point), tail = 0;
    for (; size >= 8; size -= STEP, bytes += STEP) hash = step(hash, load_u64(bytes) & STEP_MASK, point);
    memcpy(&tail, bytes, size); /* 0 to 7 bytes; the size is hashed too, so the result is unambiguous */
    hash = step(hash, tail, point);
    return mix(hash >= PRIME ? hash - PRIME : hash);
}
