/* broker/event_ring.c: see broker/event_ring.h. */
#include "broker/broker.h"

bool event_push(broker_t *broker, const bq_event_t *event) {
    uint32_t size = (uint32_t)sizeof *event + event->text_size + event->data_size;
    uint8_t *to = ring_reserve(&broker->events.ring, size);
    if (!to) return false;
    memcpy(to, event, sizeof *event);
    if (event->text_size) memcpy(to + sizeof *event, event->text, event->text_size);
    if (event->data_size) memcpy(to + sizeof *event + event->text_size, event->data, event->data_size);
    if (ring_commit(&broker->events.ring)) poll_wake_signal(&broker->events.wake);
    return true;
}

bool event_room(broker_t *broker) {
    return ring_reserve(&broker->events.ring, (uint32_t)sizeof(bq_event_t) + EVENT_DATA_MAX) != NULL;
}
