/* base/ring.h: a bounded ring of variable-size records between one producer thread and one consumer thread.
 *
 *        tail (consumer)            head (producer)
 *        v                          v
 *      ...  [size|record][size|record]........      a record never wraps: a skip mark fills the end of the buffer
 *
 * Invariant: the bytes between tail and head are complete records. The consumer calls ring_wait_begin before it sleeps, which
 * checks the ring a last time. A producer that commits later sees `sleeping` and must signal. So no wake-up is lost (both sides
 * use sequentially consistent order there), and an awake consumer gets no signal.
 */
#ifndef BQ_RING_H
#define BQ_RING_H

#include <stdatomic.h>

#include "base/bytes.h"

typedef struct ring {
    uint8_t *buffer;
    uint32_t capacity;                  /* a power of two */
    _Alignas(64) _Atomic uint64_t head; /* written by the producer */
    uint64_t reserved_to;               /* producer only */
    _Alignas(64) _Atomic uint64_t tail; /* written by the consumer */
    uint64_t peeked_to;                 /* consumer only */
    _Alignas(64) _Atomic uint32_t sleeping;
} ring_t;

int ring_init(ring_t *ring, uint32_t capacity); /* BQ_OK, BQ_E_ARGUMENT, BQ_E_MEMORY */
void ring_free(ring_t *ring);
uint32_t ring_record_max(const ring_t *ring); /* the largest record that always fits into an empty ring */

/* Producer. Records are 8-byte aligned. NULL: no space now (or size over ring_record_max). */
uint8_t *ring_reserve(ring_t *ring, uint32_t size);
bool ring_commit(ring_t *ring); /* publish the reserved record; true: the consumer sleeps, signal it */

/* Consumer. ring_peek returns the oldest record, the same one until ring_pop. NULL: empty. */
const uint8_t *ring_peek(ring_t *ring, uint32_t *size);
void ring_pop(ring_t *ring);
bool ring_wait_begin(ring_t *ring); /* true: the ring is empty, go to sleep; false: there is a record, do not sleep */
void ring_wait_end(ring_t *ring);

#endif
