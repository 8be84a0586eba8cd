/* plain_memory.c: the C library's memory functions as plain loops, linked into the guard instead of the library's.
 *
 * The library selects its versions by processor, so copying a byte costs a different number of instructions on each machine.
 * Here the cost is the same everywhere: one load and one store per sixteen bytes, and a few instructions for the rest.
 *
 * Invariant: these functions do not call each other, and the compiler keeps their loops as written; guard.py sets the flags for
 * that.
 */
#include <stddef.h>
#include <stdint.h>

typedef uint8_t u8x16_t __attribute__((vector_size(16), aligned(1), may_alias));
typedef uint64_t u64_t __attribute__((aligned(1), may_alias));
typedef uint32_t u32_t __attribute__((aligned(1), may_alias));

#define COPY(type) (*(type *)out = *(const type *)in, out += sizeof(type), in += sizeof(type), size -= sizeof(type))
#define FILL(type, value) (*(type *)out = (value), out += sizeof(type), size -= sizeof(type))
#define SAME(type) (*(const type *)a == *(const type *)b)
#define STEP(type) (a += sizeof(type), b += sizeof(type), size -= sizeof(type))

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    uint8_t *out = to;
    const uint8_t *in = from;
    while (size >= 16) COPY(u8x16_t);
    if (size >= 8) COPY(u64_t);
    if (size >= 4) COPY(u32_t);
    while (size) COPY(uint8_t);
    return to;
}

void *memmove(void *to, const void *from, size_t size) {
    uint8_t *out = to;
    const uint8_t *in = from;
    if ((uintptr_t)out - (uintptr_t)in >= size) return memcpy(to, from, size);
    while (size--) out[size] = in[size];
    return to;
}

void *memset(void *to, int byte, size_t size) {
    uint8_t *out = to;
    const uint64_t eight = (uint8_t)byte * 0x0101010101010101u;
    while (size >= 8) FILL(u64_t, eight);
    if (size >= 4) FILL(u32_t, (uint32_t)eight);
    while (size) FILL(uint8_t, (uint8_t)byte);
    return to;
}

int memcmp(const void *left, const void *right, size_t size) {
    const uint8_t *a = left, *b = right;
    while (size >= 8 && SAME(u64_t)) STEP(u64_t);
    if (size >= 4 && SAME(u32_t)) STEP(u32_t);
    for (; size; STEP(uint8_t))
        if (!SAME(uint8_t)) return *a < *b ? -1 : 1;
    return 0;
}
