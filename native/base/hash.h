/* base/hash.h: the keyed hash of all tables whose keys clients choose: topics, filters, levels, client_ids, addresses.
 *
 * The bytes of a name are the coefficients of a polynomial over the prime 2^61 - 1. The key is the point at which it is
 * evaluated. Two different names of at most `size` bytes, chosen without knowing the key, have the same hash for at most size /
 * 7 + 2 of the 2^61 keys. So an attacker cannot prepare names that share a bucket.
 */
#ifndef BQ_HASH_H
#define BQ_HASH_H

#include "base/bytes.h"

typedef struct hash_key {
    uint64_t point; /* 1 to 2^61 - 2 */
} hash_key_t;

bool hash_key_random(hash_key_t *key);          /* false: the system has no random bytes */
hash_key_t hash_key_from(uint64_t random_bits); /* for tests that need the same tables in every run */

/* `begin` makes tables, or parts of a compound key, differ. All its bits below 2^62 count. */
uint64_t hash_bytes(const hash_key_t *key, const uint8_t *bytes, uint32_t size, uint64_t begin);

#endif
