/* base/utf8.h: the bytes of UTF-8 texts, examined one character or eight bytes at a time.
 *
 * Invariant: no byte is read beyond the given size.
 */
#ifndef BQ_UTF8_H
#define BQ_UTF8_H

#include "base/bytes.h"

#define BYTE_ONES (~0ull / 255)
#define BYTE_HIGHS (BYTE_ONES * 128)

/* Not 0 if a byte of the word is v. It may mark more bytes than match. */
static inline uint64_t word_has(uint64_t word, uint8_t v) {
    uint64_t x = word ^ BYTE_ONES * v;
    return (x - BYTE_ONES) & ~x & BYTE_HIGHS;
}

/* Not 0 if a byte of the word is below 0x20. It may mark more bytes than match. */
static inline uint64_t word_has_control(uint64_t word) { return (word - BYTE_ONES * ' ') & ~word & BYTE_HIGHS; }

/* Length of the UTF-8 character at p, 2 to 4 bytes. 0: invalid (overlong, a surrogate, above U+10FFFF, or cut off). */
static inline uint32_t utf8_character_bytes(const uint8_t *p, uint64_t size) {
    uint8_t lead = p[0];
    uint32_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
    if (lead < 0xc2 || lead > 0xf4 || bytes > size) return 0;
    /* Only the range of the second byte depends on the first: Unicode, table 3-7. */
    uint8_t lowest = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
    uint8_t highest = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
    if (p[1] < lowest || p[1] > highest) return 0;
    for (uint32_t i = 2; i < bytes; i++)
        if ((p[i] & 0xc0) != 0x80) return 0;
    return bytes;
}

#endif
