/* base/utf8.h: the bytes of UTF-8 texts and of names, examined one character or eight bytes at a time.
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

/* The characters of a topic or a filter. A negative value names the first one that no grammar allows. */
enum name_characters { NAME_PLAIN = 0, NAME_WILDCARDS = 1, NAME_NUL = -1, NAME_CONTROL = -2, NAME_NOT_UTF8 = -3 };

/* The functions say what is special in the grammar, and are inlined. `word_special`: not 0 if a byte is not ASCII, a control
 * character or a wildcard; most names have none of these, so eight bytes are checked at once. */
ALWAYS_INLINE static inline enum name_characters
name_examine(const uint8_t *name, uint32_t size, uint64_t (*word_special)(uint64_t word), bool (*is_wildcard)(uint8_t c)) {
    bool wildcards = false;
    for (uint32_t i = 0; i < size;) {
        const uint8_t c = name[i];
        if (size - i >= 8 && !word_special(load_u64(name + i))) {
            i += 8;
        } else if (c < 0x80) {
            if (c == 0) return NAME_NUL;
            if (c < ' ' || c == 0x7f) return NAME_CONTROL;
            wildcards |= is_wildcard(c);
            i++;
        } else {
            uint32_t bytes = utf8_character_bytes(name + i, size - i);
            if (!bytes) return NAME_NOT_UTF8;
            if (c == 0xc2 && name[i + 1] < 0xa0) return NAME_CONTROL; /* C1: U+0080 to U+009F */
            i += bytes;
        }
    }
    return wildcards ? NAME_WILDCARDS : NAME_PLAIN;
}

#endif
