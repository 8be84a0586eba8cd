/* broker/event_ring.h: the ring of events to Python.
 *
 * Invariant: an event is complete in the ring, or its cause is kept until there is room. No event that Python must receive is
 * dropped.
 */
#ifndef BQ_EVENT_RING_H
#define BQ_EVENT_RING_H

#include "base/bytes.h"
#include "base/poll.h"
#include "base/ring.h"

struct broker;

#define EVENT_DATA_MAX (16u << 10) /* texts and data of one event */

typedef struct event_ring {
    ring_t ring;
    poll_wake_t wake;
    bool out; /* Python's side: an event is handed out and not popped yet */
} event_ring_t;

bool event_push(struct broker *broker, const bq_event_t *event); /* false: no room now */
bool event_room(struct broker *broker);                          /* room for any one event */

#endif
