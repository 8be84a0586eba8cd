/* base/sha1.c: see base/sha1.h. FIPS 180-4, section 6.1. */
#include "base/sha1.h"

#define BLOCK_BYTES 64u

static uint32_t rotate(uint32_t value, uint32_t bits) { return value << bits | value >> (32 - bits); }

static void block_add(uint32_t state[5], const uint8_t *block) {
    uint32_t w[80], a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (uint32_t i = 0; i < 16; i++) w[i] = load_be32(block + 4ull * i);
    for (uint32_t i = 16; i < 80; i++) w[i] = rotate(w[i - 3] ^ w[i - 8] ^ w[i - 14] ^ w[i - 16], 1);
    for (uint32_t i = 0; i < 80; i++) {
        uint32_t mixed, constant;
        if (i < 20) {
            mixed = (b & c) | (~b & d);
            constant = 0x5a827999;
        } else if (i < 40 || i >= 60) {
            mixed = b ^ c ^ d;
            constant = i < 40 ? 0x6ed9eba1 : 0xca62c1d6;
        } else {
            mixed = (b & c) | (b & d) | (c & d);
            constant = 0x8f1bbcdc;
        }
        uint32_t next = rotate(a, 5) + mixed + e + constant + w[i];
        e = d;
        d = c;
        c = rotate(b, 30);
        b = a;
        a = next;
    }
    state[0] += a;
    state[1] += b;
    state[2] += c;
    state[3] += d;
    state[4] += e;
}

void sha1(const uint8_t *bytes, uint32_t size, uint8_t digest[SHA1_BYTES]) {
    uint32_t state[5] = {0x67452301, 0xefcdab89, 0x98badcfe, 0x10325476, 0xc3d2e1f0};
    uint8_t padded[2 * BLOCK_BYTES] = {0};
    core_assert(size <= SHA1_INPUT_MAX);
    uint32_t whole = size + 9 <= BLOCK_BYTES ? BLOCK_BYTES : 2 * BLOCK_BYTES;
    memcpy(padded, bytes, size);
    padded[size] = 0x80;
    store_be32(padded + whole - 4, size * 8);
    for (uint32_t at = 0; at < whole; at += BLOCK_BYTES) block_add(state, padded + at);
    for (uint32_t i = 0; i < 5; i++) store_be32(digest + 4ull * i, state[i]);
}
