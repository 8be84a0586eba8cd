/* base/ring.c: the single-producer single-consumer ring of base/ring.h.
 *
 *      record   u32 size · u32 zero · bytes, padded to 8     skip mark   u32 SKIP, the rest up to the buffer's end is unused
 *
 * Invariant: head and tail only grow, and always point to a record's header. Their difference is the number of bytes in use.
 */
#include <assert.h>
#include <stdlib.h>

#include "base/ring.h"

#define HEADER_BYTES 8u
#define CAPACITY_MIN 64u
#define CAPACITY_MAX (1u << 30)
#define SKIP UINT32_MAX

static inline uint32_t record_bytes(uint32_t size) { return (HEADER_BYTES + size + 7u) & ~7u; }
static inline uint8_t *at(const ring_t *ring, uint64_t position) { return ring->buffer + (position & (ring->capacity - 1)); }

int ring_init(ring_t *ring, uint32_t capacity) {
    if (capacity < CAPACITY_MIN || capacity > CAPACITY_MAX || (capacity & (capacity - 1))) return BQ_E_ARGUMENT;
    memset(ring, 0, sizeof *ring);
    ring->buffer = malloc(capacity);
    if (!ring->buffer) return BQ_E_MEMORY;
    ring->capacity = capacity;
    return BQ_OK;
}

void ring_free(ring_t *ring) {
    free(ring->buffer);
    ring->buffer = NULL;
}

/* Half the buffer: an empty ring may be at any position, and the space before the buffer's end may have to be skipped. */
uint32_t ring_record_max(const ring_t *ring) { return ring->capacity / 2 - HEADER_BYTES; }

uint8_t *ring_reserve(ring_t *ring, uint32_t size) {
    if (size > ring_record_max(ring)) return NULL;
    uint64_t head = atomic_load_explicit(&ring->head, memory_order_relaxed);
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_acquire);
    uint32_t need = record_bytes(size);
    uint32_t room = ring->capacity - (uint32_t)(head - tail);
    uint32_t to_end = ring->capacity - (uint32_t)(head & (ring->capacity - 1));
    uint32_t skip = need > to_end ? to_end : 0;
    if (need + skip > room) return NULL;

    if (skip) store_u32(at(ring, head), SKIP);
    uint8_t *record = at(ring, head + skip);
    store_u32(record, size);
    store_u32(record + 4, 0);
    ring->reserved_to = head + skip + need;
    return record + HEADER_BYTES;
}

bool ring_commit(ring_t *ring) {
    assert(ring->reserved_to > atomic_load_explicit(&ring->head, memory_order_relaxed));
    /* Must come before `sleeping` is read: the consumer writes `sleeping` and then reads head, so one of the two sees the
     * other's write. */
    atomic_store_explicit(&ring->head, ring->reserved_to, memory_order_seq_cst);
    if (BQ_LIKELY(!atomic_load_explicit(&ring->sleeping, memory_order_seq_cst))) return false;
    return atomic_exchange_explicit(&ring->sleeping, 0, memory_order_seq_cst); /* one signal per sleep */
}

const uint8_t *ring_peek(ring_t *ring, uint32_t *size) {
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    if (tail == atomic_load_explicit(&ring->head, memory_order_acquire)) return NULL;
    if (load_u32(at(ring, tail)) == SKIP) tail += ring->capacity - (tail & (ring->capacity - 1)); /* a record always follows */
    *size = load_u32(at(ring, tail));
    ring->peeked_to = tail + record_bytes(*size);
    return at(ring, tail) + HEADER_BYTES;
}

void ring_pop(ring_t *ring) {
    assert(ring->peeked_to > atomic_load_explicit(&ring->tail, memory_order_relaxed));
    atomic_store_explicit(&ring->tail, ring->peeked_to, memory_order_release);
}

bool ring_wait_begin(ring_t *ring) {
    atomic_store_explicit(&ring->sleeping, 1, memory_order_seq_cst);
    uint64_t tail = atomic_load_explicit(&ring->tail, memory_order_relaxed);
    if (tail == atomic_load_explicit(&ring->head, memory_order_seq_cst)) return true;
    ring_wait_end(ring);
    return false;
}

void ring_wait_end(ring_t *ring) { atomic_store_explicit(&ring->sleeping, 0, memory_order_seq_cst); }
