/* broker/client.c: the end of a client's subscriptions. See broker/client.h for the invariant. */
#include "broker/broker.h"

#define CLEAR_ENTRIES 64u /* freed in one step */

void client_leave(broker_t *broker, client_t *client) {
    while (client->subscriptions) route_leave(broker->routes, client->subscriptions);
    client->subscription_count = 0;
    consumer_leave_all(broker, client);
}

bool client_leave_some(broker_t *broker, client_t *client, uint64_t stop) {
    while (client->subscriptions && work_done(broker) < stop) route_leave(broker->routes, client->subscriptions);
    while (client->members && work_done(broker) < stop) consumer_leave_one(broker, client);
    while (client->queue.head && work_done(broker) < stop) {
        broker->stats.dropped_disconnect += queue_clear(&client->queue, &broker->queues, CLEAR_ENTRIES);
        broker->stats.work += CLEAR_ENTRIES;
    }
    return !client->subscriptions && !client->members && !client->queue.head;
}

void event_unsubscribed(broker_t *broker, const client_t *client, const uint8_t *filter, uint32_t filter_size,
                        const uint8_t *group, uint32_t group_size, enum bq_outcome outcome) {
    event_push(broker, &(bq_event_t){.type = BQ_EV_UNSUBSCRIBED,
                                     .code = (uint16_t)outcome,
                                     .conn = client->handle,
                                     .text = filter,
                                     .text_size = filter_size,
                                     .data = group,
                                     .data_size = group_size});
}
