/* broker/waiters.c: see broker/waiters.h for the rules and the invariant. */
#include "broker/waiters.h"
#include "broker/broker.h"

#define WAKES_MAX 64u

void wait_begin(broker_t *broker, wait_list_t *list, client_t *publisher) {
    broker->stats.blocked_publishers++;
    broker->stats.blocked_pauses++;
    publisher->pause |= PAUSE_BLOCK;
    publisher->waits_in = list;
    publisher->wait_next = NULL;
    publisher->wait_previous = list->last;
    *(list->last ? &list->last->wait_next : &list->first) = publisher;
    list->last = publisher;
}

void wait_end(broker_t *broker, client_t *publisher) {
    wait_list_t *list = publisher->waits_in;
    if (!list) return;
    broker->stats.blocked_publishers--;
    *(publisher->wait_previous ? &publisher->wait_previous->wait_next : &list->first) = publisher->wait_next;
    *(publisher->wait_next ? &publisher->wait_next->wait_previous : &list->last) = publisher->wait_previous;
    publisher->waits_in = NULL;
    publisher->wait_next = publisher->wait_previous = NULL;
}

void wait_release(broker_t *broker, wait_list_t *list, uint32_t count_max) {
    for (; list->first && count_max; count_max--) {
        client_t *publisher = list->first;
        wait_end(broker, publisher);
        client_resume(broker, publisher, PAUSE_BLOCK);
    }
}

void client_release_waiters(broker_t *broker, client_t *client) {
    wait_release(broker, &client->waiters, UINT32_MAX);
    if (client->group_count) wait_release(broker, &broker->group_waiters, UINT32_MAX);
}

/* The rest is woken at the next flush of the connection: those woken now may fill the queue again. */
static NOINLINE void wake_some(broker_t *broker, client_t *client, wait_list_t *list) {
    wait_release(broker, list, WAKES_MAX);
    if (!list->first) return;
    client->waiters_left = true;
    client_mark_dirty(broker, client, FLUSH_NARROW);
}

NOINLINE void wait_wake(broker_t *broker, client_t *client) {
    client->waiters_left = false;
    const queue_t *queue = &client->queue;
    if (queue->messages > broker->queues.messages_max / 4 * 3 || queue->bytes > broker->queues.bytes_max / 4 * 3) return;
    if (client->waiters.first) wake_some(broker, client, &client->waiters);
    if (client->group_count && broker->group_waiters.first) wake_some(broker, client, &broker->group_waiters);
}
