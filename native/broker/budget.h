/* broker/budget.h: enforces limits.memory_bytes, for all data that can grow.
 *
 *      per part          incomplete input · pending commits · subscriptions · output handed to Python       1/4 each
 *      in total          queues, window deliveries, replies: over the budget they may only shrink
 *
 * At its quarter, a part stops growing: input of publishers is paused, a SUB is refused (503), or a connection with too much
 * incomplete input is closed. Over the whole budget, queues of slow subscribers shrink, consumers hold one delivery at a time,
 * and the core does not read from clients that do not read their replies.
 *
 * Invariant: the used memory is what the pools have allocated, plus BQ_EV_OUT data that Python has not confirmed yet.
 */
#ifndef BQ_BUDGET_H
#define BQ_BUDGET_H

#include "broker/broker.h"

#define PENDING_BYTES_OWN (256u << 10) /* pending publishes of one connection; above this its QoS 0 publishes wait too */

static inline bool budget_part(const broker_t *broker, uint64_t bytes) {
    return !broker->config.memory_bytes || bytes <= broker->config.memory_bytes / 4;
}

static inline bool budget_over(const broker_t *broker) {
    uint64_t used = broker->pool.used_bytes - broker->pool.free_bytes + broker->credit_bytes;
    return broker->config.memory_bytes && used > broker->config.memory_bytes;
}

#endif
