/* check.h: shared by the native test programs and the fuzz targets: a check that is always compiled, and repeatable random
 * numbers.
 *
 * Invariant: a program that returns 0 has passed. A failed check prints its place and aborts.
 */
#ifndef BQ_TEST_CHECK_H
#define BQ_TEST_CHECK_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                                         \
    do {                                                                                                                         \
        if (!(condition)) {                                                                                                      \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);                                            \
            abort();                                                                                                             \
        }                                                                                                                        \
    } while (0)

/* Standard input without changes to its line ends. */
#if defined(_WIN32)
#include <fcntl.h>
#include <io.h>
static inline void take_bytes(void) { _setmode(0, _O_BINARY); }
#else
static inline void take_bytes(void) {}
#endif

/* xorshift64*: the same sequence on every machine. The state must not be 0. */
static inline uint64_t random_next(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return *state * 2685821657736338717u;
}

static inline uint64_t random_below(uint64_t *state, uint64_t limit) { return (random_next(state) >> 11) % limit; }

#endif
