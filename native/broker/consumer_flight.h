/* broker/consumer_flight.h: what of broker/consumer_flight.c is done for every delivery. */
#ifndef BQ_CONSUMER_FLIGHT_H
#define BQ_CONSUMER_FLIGHT_H

#include "broker/consumer_internal.h"
#include "core.h"

bool flight_init(bq_t *bq);
void flight_release(bq_t *bq);
void flight_grow(bq_t *bq);
void flight_late_drop(bq_t *bq, handing_t *handing);
void flight_give_to_another(bq_t *bq, delivery_t *delivery, member_t *member);
void flight_member_leaves(bq_t *bq, member_t *member);

static inline uint64_t flight_hash(uint64_t id, const connection_t *connection) {
    uint64_t hash = (id ^ connection->handle * 0x9E3779B97F4A7C15ull) * 0xD6E8FEB86659FD93ull;
    return hash ^ hash >> 32;
}

static inline handing_t **flight_slot(consumers_t *consumers, uint64_t id, const connection_t *connection) {
    return &consumers->flight[flight_hash(id, connection) & (consumers->flight_size - 1)];
}

static inline void chain_enter(handing_t **slot, handing_t *handing) {
    handing->chain = *slot;
    handing->chain_link = slot;
    if (*slot) (*slot)->chain_link = &handing->chain;
    *slot = handing;
}

static inline void handing_enter(bq_t *bq, handing_t *handing, delivery_t *delivery, member_t *member) {
    if (BQ_UNLIKELY(bq->consumers.flight_count >= bq->consumers.flight_size)) flight_grow(bq);
    chain_enter(flight_slot(&bq->consumers, delivery->id, member->connection), handing);
    handing->delivery = delivery;
    handing->member = member;
    handing->member_next = member->handings;
    handing->member_link = &member->handings;
    if (member->handings) member->handings->member_link = &handing->member_next;
    member->handings = handing;
}

static inline void handing_leave(handing_t *handing) {
    *handing->chain_link = handing->chain;
    if (handing->chain) handing->chain->chain_link = handing->chain_link;
    *handing->member_link = handing->member_next;
    if (handing->member_next) handing->member_next->member_link = handing->member_link;
    handing->member = NULL;
}

/* It is in that member's queue. */
static inline void flight_begin(bq_t *bq, delivery_t *delivery, member_t *member) {
    bool others = (delivery->now.member && delivery->now.member != member) || delivery->late;
    if (BQ_UNLIKELY(others)) flight_give_to_another(bq, delivery, member);
    if (BQ_LIKELY(!delivery->now.member)) handing_enter(bq, &delivery->now, delivery, member);
    delivery->place = DELIVERY_QUEUED;
    member->flight_count++;
    delivery->consumer->flight_count++;
    bq->consumers.flight_count++;
}

/* It waits; what was queued is taken back if it can be. */
static inline void flight_end(bq_t *bq, delivery_t *delivery) {
    if (delivery->place == DELIVERY_WAITS) return;
    member_t *member = delivery->now.member;
    if (BQ_UNLIKELY(delivery->place == DELIVERY_QUEUED)) queue_take_back(&delivery->hold, &bq->queues);
    delivery->place = DELIVERY_WAITS;
    if (BQ_UNLIKELY(delivery->alone)) delivery->alone = member->alone = false;
    member->flight_count--;
    delivery->consumer->flight_count--;
    delivery->consumer->full_at = 0;
    bq->consumers.flight_count--;
}

/* Nobody can acknowledge it any more. */
static inline void flight_forget(bq_t *bq, delivery_t *delivery) {
    flight_end(bq, delivery);
    if (delivery->now.member) handing_leave(&delivery->now);
    while (BQ_UNLIKELY(delivery->late != NULL)) flight_late_drop(bq, delivery->late);
}

#endif
