/* base/bytes.h: included by every file of the core: the types of the boundary, and loads and stores of integers. */
#ifndef BQ_BASE_H
#define BQ_BASE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "api/settings.h" /* before bq.h, whose functions use its structs */

#include "api/bq.h"
#include "base/check.h"

#define BQ_LIKELY(x) __builtin_expect(!!(x), 1)
#define BQ_UNLIKELY(x) __builtin_expect(!!(x), 0)
#define ALWAYS_INLINE __attribute__((always_inline)) /* inlined at every call, however many there are */
/* For rare code: inlined, it would cost its caller registers that are saved on each call */
#define NOINLINE __attribute__((noinline))

/* Integers in frames and FlatBuffers may be at any address: memcpy is the portable unaligned access. All supported platforms
 * are little-endian. On a big-endian platform the build fails here. */
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "BlipMQ's wire code assumes a little-endian host"
#endif

static inline uint16_t load_u16(const uint8_t *p) {
    uint16_t v;
    memcpy(&v, p, 2);
    return v;
}
static inline uint32_t load_u32(const uint8_t *p) {
    uint32_t v;
    memcpy(&v, p, 4);
    return v;
}
static inline uint64_t load_u64(const uint8_t *p) {
    uint64_t v;
    memcpy(&v, p, 8);
    return v;
}
static inline void store_u16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }
static inline void store_u32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void store_u64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }
static inline uint32_t load_be32(const uint8_t *p) { return __builtin_bswap32(load_u32(p)); }
static inline void store_be32(uint8_t *p, uint32_t v) { store_u32(p, __builtin_bswap32(v)); }

#endif
