/* broker/delivery_lookup.h: the functions of broker/delivery_lookup.c that run for every delivery, inlined. */
#ifndef BQ_DELIVERY_LOOKUP_H
#define BQ_DELIVERY_LOOKUP_H

#include "broker/consumer_internal.h"
#include "broker/broker.h"

bool flight_init(broker_t *broker);
void flight_release(broker_t *broker);
void flight_grow(broker_t *broker);
void flight_take_back(broker_t *broker, delivery_t *delivery);
void flight_late_drop(broker_t *broker, assignment_t *assignment);
void flight_give_to_another(broker_t *broker, delivery_t *delivery, member_t *member);
void flight_member_leaves(broker_t *broker, member_t *member);

static inline uint64_t flight_hash(uint64_t id, const client_t *client) {
    uint64_t hash = (id ^ client->handle * 0x9E3779B97F4A7C15ull) * 0xD6E8FEB86659FD93ull;
    return hash ^ hash >> 32;
}

static inline assignment_t **flight_slot(consumers_t *consumers, uint64_t id, const client_t *client) {
    return &consumers->flight[flight_hash(id, client) & (consumers->flight_size - 1)];
}

static inline void chain_enter(assignment_t **slot, assignment_t *assignment) {
    assignment->chain = *slot;
    assignment->chain_link = slot;
    if (*slot) (*slot)->chain_link = &assignment->chain;
    *slot = assignment;
}

static inline void assignment_enter(broker_t *broker, assignment_t *assignment, delivery_t *delivery, member_t *member) {
    if (BQ_UNLIKELY(broker->consumers.flight_count >= broker->consumers.flight_size)) flight_grow(broker);
    chain_enter(flight_slot(&broker->consumers, delivery->id, member->client), assignment);
    assignment->delivery = delivery;
    assignment->member = member;
    assignment->member_next = member->assignments;
    assignment->member_link = &member->assignments;
    if (member->assignments) member->assignments->member_link = &assignment->member_next;
    member->assignments = assignment;
}

static inline void assignment_leave(assignment_t *assignment) {
    *assignment->chain_link = assignment->chain;
    if (assignment->chain) assignment->chain->chain_link = assignment->chain_link;
    *assignment->member_link = assignment->member_next;
    if (assignment->member_next) assignment->member_next->member_link = assignment->member_link;
    assignment->member = NULL;
}

/* The delivery is now in that member's queue. */
static inline void flight_begin(broker_t *broker, delivery_t *delivery, member_t *member) {
    core_assert(delivery->place == DELIVERY_WAITS); /* in one queue at most, and once */
    bool others = (delivery->now.member && delivery->now.member != member) || delivery->late;
    if (BQ_UNLIKELY(others)) flight_give_to_another(broker, delivery, member);
    if (BQ_LIKELY(!delivery->now.member)) assignment_enter(broker, &delivery->now, delivery, member);
    delivery->place = DELIVERY_QUEUED;
    member->flight_count++;
    delivery->consumer->flight_count++;
    broker->consumers.flight_count++;
}

/* The delivery waits again. A queue entry is removed, unless a part of it has been sent. */
static inline void flight_end(broker_t *broker, delivery_t *delivery) {
    if (delivery->place == DELIVERY_WAITS) return;
    member_t *member = delivery->now.member;
    if (BQ_UNLIKELY(delivery->place == DELIVERY_QUEUED)) flight_take_back(broker, delivery);
    core_assert(member && member->flight_count > 0 && broker->consumers.flight_count > 0);
    delivery->place = DELIVERY_WAITS;
    if (BQ_UNLIKELY(delivery->alone)) delivery->alone = member->alone = false;
    member->flight_count--;
    delivery->consumer->flight_count--;
    delivery->consumer->full_at = 0;
    broker->consumers.flight_count--;
}

/* The delivery cannot be acknowledged any more. */
static inline void flight_forget(broker_t *broker, delivery_t *delivery) {
    flight_end(broker, delivery);
    if (delivery->now.member) assignment_leave(&delivery->now);
    while (BQ_UNLIKELY(delivery->late != NULL)) flight_late_drop(broker, delivery->late);
}

#endif
