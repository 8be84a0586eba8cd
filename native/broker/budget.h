/* broker/budget.h: the one gate for all that grows: limits.memory_bytes.
 *
 *      a part each       input that is not whole · what waits for the disk · subscriptions · output handed to Python       1/4 each
 *      all together      queues, kept deliveries, replies: past the budget they only shrink
 *
 * Whoever would make a part grow past its quarter is held back (input of a publisher), refused (503 for a SUB), or ended (more
 * input than fits). Past the whole budget queues of slow subscribers shrink, consumers take one delivery at a time, and clients that
 * do not read their replies are not read either.
 *
 * Invariant: what counts is what the pools have given out, and what was handed to Python and is not back.
 */
#ifndef BQ_BUDGET_H
#define BQ_BUDGET_H

#include "core.h"

#define PENDING_BYTES_OWN (256u << 10) /* of one connection's publishes that wait for the disk, before its QoS 0 waits too */
#define CONTROL_BYTES_SHORT (4u << 10) /* as CONTROL_BYTES_MAX, past the budget */

static inline bool budget_part(const bq_t *bq, uint64_t bytes) {
    return !bq->config.memory_bytes || bytes <= bq->config.memory_bytes / 4;
}

static inline bool budget_over(const bq_t *bq) {
    uint64_t used = bq->pool.used_bytes - bq->pool.free_bytes + bq->credit_bytes;
    return bq->config.memory_bytes && used > bq->config.memory_bytes;
}

#endif
