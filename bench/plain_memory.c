/* plain_memory.c: the C library's memory functions as plain loops, linked into the guard in its place.
 *
 * The library's own are chosen by the processor they run on, so a copied byte costs another number of instructions on each
 * machine. Here it costs the same everywhere: one load and one store for eight bytes.
 *
 * Invariant: nothing here calls what it defines; -fno-builtin and -fno-tree-loop-distribute-patterns keep the compiler from it.
 */
#include <stddef.h>
#include <stdint.h>

typedef uint64_t __attribute__((aligned(1), may_alias)) word_t;

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    uint8_t *out = to;
    const uint8_t *in = from;
    for (; size >= sizeof(word_t); size -= sizeof(word_t), out += sizeof(word_t), in += sizeof(word_t))
        *(word_t *)out = *(const word_t *)in;
    while (size--) *out++ = *in++;
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
    const uint64_t word = (uint8_t)byte * 0x0101010101010101u;
    for (; size >= sizeof(word_t); size -= sizeof(word_t), out += sizeof(word_t)) *(word_t *)out = word;
    while (size--) *out++ = (uint8_t)byte;
    return to;
}

int memcmp(const void *left, const void *right, size_t size) {
    const uint8_t *a = left, *b = right;
    for (; size >= sizeof(word_t); size -= sizeof(word_t), a += sizeof(word_t), b += sizeof(word_t))
        if (*(const word_t *)a != *(const word_t *)b) break;
    for (; size; size--, a++, b++)
        if (*a != *b) return *a < *b ? -1 : 1;
    return 0;
}
