/* broker/waiters.c: see broker/waiters.h for the rules and the invariant. */
#include "broker/waiters.h"
#include "core.h"

#define WAKES_MAX 64u

void wait_begin(bq_t *bq, wait_list_t *list, connection_t *publisher) {
    bq->stats.blocked_publishers++;
    bq->stats.blocked_pauses++;
    publisher->pause |= PAUSE_BLOCK;
    publisher->waits_in = list;
    publisher->wait_next = NULL;
    publisher->wait_previous = list->last;
    *(list->last ? &list->last->wait_next : &list->first) = publisher;
    list->last = publisher;
}

void wait_end(bq_t *bq, connection_t *publisher) {
    wait_list_t *list = publisher->waits_in;
    if (!list) return;
    bq->stats.blocked_publishers--;
    *(publisher->wait_previous ? &publisher->wait_previous->wait_next : &list->first) = publisher->wait_next;
    *(publisher->wait_next ? &publisher->wait_next->wait_previous : &list->last) = publisher->wait_previous;
    publisher->waits_in = NULL;
    publisher->wait_next = publisher->wait_previous = NULL;
}

void wait_release(bq_t *bq, wait_list_t *list, uint32_t count_max) {
    for (; list->first && count_max; count_max--) {
        connection_t *publisher = list->first;
        wait_end(bq, publisher);
        connection_resume(bq, publisher, PAUSE_BLOCK);
    }
}

void connection_release_waiters(bq_t *bq, connection_t *connection) {
    wait_release(bq, &connection->waiters, UINT32_MAX);
    if (connection->group_count) wait_release(bq, &bq->group_waiters, UINT32_MAX);
}

/* The rest is woken at the next flush of the connection: those woken now may fill the queue again. */
static NOINLINE void wake_some(bq_t *bq, connection_t *connection, wait_list_t *list) {
    wait_release(bq, list, WAKES_MAX);
    if (!list->first) return;
    connection->waiters_left = true;
    connection_mark_dirty(bq, connection, FLUSH_NARROW);
}

NOINLINE void wait_wake(bq_t *bq, connection_t *connection) {
    connection->waiters_left = false;
    const queue_t *queue = &connection->queue;
    if (queue->messages > bq->queues.messages_max / 4 * 3 || queue->bytes > bq->queues.bytes_max / 4 * 3) return;
    if (connection->waiters.first) wake_some(bq, connection, &connection->waiters);
    if (connection->group_count && bq->group_waiters.first) wake_some(bq, connection, &bq->group_waiters);
}
