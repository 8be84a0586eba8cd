/* broker/delivery_lookup.c: tracks which members received which delivery, so that every acknowledgement, however late, finds it.
 *
 *      delivery   now: the current or last member      late: earlier members, which may still acknowledge it
 *
 * A delivery is in one place: it waits, it is in one member's output queue, or it is handed over and its ack timer runs. The
 * timer starts when the last byte is written to the socket (or to the event ring, for an in-memory connection). The try is
 * counted then.
 *
 * Invariant: from assignment_enter to assignment_leave, each assignment is in the table, in its delivery's list and in its
 * member's list.
 */
#include "broker/delivery_lookup.h"

#define FLIGHT_SIZE_MIN 256u

NOINLINE void flight_grow(broker_t *broker) {
    consumers_t *consumers = &broker->consumers;
    uint32_t size = consumers->flight_size * 2;
    assignment_t **table = pool_alloc(&broker->pool, size * sizeof *table);
    if (!table) return; /* longer chains are only slower */
    memset(table, 0, size * sizeof *table);
    for (uint32_t i = 0; i < consumers->flight_size; i++) {
        for (assignment_t *assignment = consumers->flight[i], *next; assignment; assignment = next) {
            next = assignment->chain;
            chain_enter(&table[flight_hash(assignment->delivery->id, assignment->member->client) & (size - 1)], assignment);
        }
    }
    pool_free(&broker->pool, consumers->flight, consumers->flight_size * sizeof *table);
    consumers->flight = table;
    consumers->flight_size = size;
}

NOINLINE void flight_late_drop(broker_t *broker, assignment_t *assignment) {
    assignment_t **at = &assignment->delivery->late;
    while (*at != assignment) at = &(*at)->next;
    *at = assignment->next;
    assignment_leave(assignment);
    pool_free(&broker->pool, assignment, sizeof *assignment);
}

/* The delivery goes to another member than before, or to one that had it earlier. Its previous member can still acknowledge it,
 * if there is memory to record that. No member is recorded twice. */
NOINLINE void flight_give_to_another(broker_t *broker, delivery_t *delivery, member_t *member) {
    member_t *before = delivery->now.member;
    for (assignment_t *late = delivery->late, *next; late; late = next) {
        next = late->next;
        if (late->member == member) flight_late_drop(broker, late);
    }
    if (!before || before == member) return;
    assignment_leave(&delivery->now);
    assignment_t *late = delivery->deliveries ? pool_alloc(&broker->pool, sizeof *late) : NULL;
    if (!late) return;
    assignment_enter(broker, late, delivery, before);
    late->next = delivery->late;
    delivery->late = late;
}

/* Removes the delivery from its member's queue. A packet id that the client has not seen is free again. */
NOINLINE void flight_take_back(broker_t *broker, delivery_t *delivery) {
    bool begun = queue_begun(&delivery->hold);
    queue_take_back(&delivery->hold, &broker->queues);
    packets_t *packets = delivery->now.member->client->packets;
    if (!packets || !delivery->packet_id || begun) return;
    flight_cancel(&packets->ids, delivery->packet_id);
    delivery->packet_id = 0;
}

/* The member's connection closes. It may have received deliveries that were handed over, but none that are still in its queue. */
void flight_member_leaves(broker_t *broker, member_t *member) {
    while (member->assignments) {
        assignment_t *assignment = member->assignments;
        delivery_t *delivery = assignment->delivery;
        if (assignment != &delivery->now) {
            flight_late_drop(broker, assignment);
            continue;
        }
        enum delivery_place place = delivery->place;
        flight_end(broker, delivery);
        assignment_leave(assignment);
        if (place == DELIVERY_HANDED) delivery_left(broker, delivery);
        if (place == DELIVERY_QUEUED) delivery_wait(broker, delivery);
    }
}

bool flight_init(broker_t *broker) {
    consumers_t *consumers = &broker->consumers;
    consumers->flight_size = FLIGHT_SIZE_MIN;
    consumers->flight = pool_alloc(&broker->pool, FLIGHT_SIZE_MIN * sizeof *consumers->flight);
    if (consumers->flight) memset(consumers->flight, 0, FLIGHT_SIZE_MIN * sizeof *consumers->flight);
    return consumers->flight != NULL;
}

void flight_release(broker_t *broker) {
    consumers_t *consumers = &broker->consumers;
    if (consumers->flight) pool_free(&broker->pool, consumers->flight, consumers->flight_size * sizeof *consumers->flight);
    consumers->flight = NULL;
}
