/* net/net.c: the life of the state of net/, and its steps of a turn: flush, retry, end. See net/net.h.
 *
 * Invariant: every queue that can be sent from is empty or on a flush list.
 */
#include "net/net.h"
#include "net/secure.h"
#include "net/transport.h"
#include "net/transport_io.h"
#include "net/websocket.h"

#include <stdlib.h>

/* ---- flush --------------------------------------------------------------------------------------------------------- */

NOINLINE void net_run_give(net_t *net) {
    if (BQ_LIKELY(publish_run_give(&net->broker))) return;
    do net_drain(net);
    while (!publish_run_give(&net->broker));
    drain_end(&net->broker);
}

/* The next turn handles the rest, and connections that exceeded one batch and marked themselves again. */
static inline void flush_list(net_t *net, enum flush_order order, uint32_t count_max, uint64_t bytes_max) {
    broker_t *broker = &net->broker;
    flush_list_t *list = &broker->dirty[order];
    uint32_t count = list->count < count_max ? list->count : count_max;
    const uint64_t stop = bytes_max == UINT64_MAX ? UINT64_MAX : broker->stats.delivered_bytes + bytes_max;
    for (uint32_t i = 0; i < count; i++) {
        client_t *client = list->items[i];
        client->dirty &= (uint8_t) ~(1u << order);
        if (!client->blocked) connection_flush(net, connection_of(client));
        if (BQ_UNLIKELY(client->waiters_left)) client_wake_waiters(broker, client);
        if (bytes_max != UINT64_MAX && broker->stats.delivered_bytes >= stop) count = i + 1;
    }
    list->count -= count;
    if (list->count) memmove(list->items, list->items + count, list->count * sizeof *list->items);
}

static NOINLINE void flush_wide(net_t *net) {
    uint32_t most = net->broker.config.flush_subscribers;
    flush_list(net, FLUSH_WIDE, most < WIDE_SENDS_MAX ? most : WIDE_SENDS_MAX, WIDE_BYTES_MAX);
}

/* Sending to a thousand subscribers of one topic takes milliseconds. The narrow list is flushed first, so messages with few
 * subscribers do not wait for that. */
void net_flush(net_t *net) {
    net_run_close(net);
    net->turn_bytes = 0;
    net->flush_due_ms = 0;
    flush_list(net, FLUSH_NARROW, net->broker.config.flush_subscribers, UINT64_MAX);
    if (BQ_UNLIKELY(net->broker.dirty[FLUSH_WIDE].count)) flush_wide(net);
    if (net_has_output(net)) net->flush_due_ms = net->broker.now_ms; /* they have already waited once */
}

/* With a flush interval, deliveries are collected until the oldest has waited long enough or a batch is full. */
void net_flush_when_due(net_t *net) {
    const broker_t *broker = &net->broker;
    net_run_close(net);
    if (!net_has_output(net)) return;
    if (broker->config.flush_interval_ms && !broker->stopping && net->turn_bytes < broker->config.max_batch_bytes) {
        if (!net->flush_due_ms) net->flush_due_ms = broker->now_ms + broker->config.flush_interval_ms;
        if (broker->now_ms < net->flush_due_ms) return;
    }
    net_flush(net);
}

/* ---- retry: connections that wait for room in the event ring --------------------------------------------------------- */

void net_retry_later(net_t *net, connection_t *connection) {
    if (connection->retrying) return;
    connection->retrying = true;
    connection->retry_next = net->retry;
    net->retry = connection;
}

static void retry_one(net_t *net, connection_t *connection) {
    if (connection->transport->retry && !connection->transport->retry(net, connection)) {
        net_retry_later(net, connection);
        return;
    }
    client_resume(&net->broker, &connection->client, PAUSE_EVENTS);
}

void net_retry(net_t *net) {
    if (!event_room(&net->broker)) return; /* retry after RETRY_MS; an immediate retry would spin until Python reads events */
    connection_t *connection = net->retry;
    net->retry = NULL;
    while (connection) {
        connection_t *next = connection->retry_next;
        connection->retrying = false;
        if (connection->state != CONNECTION_DEAD) retry_one(net, connection);
        connection = next;
    }
}

/* ---- the end of connections -------------------------------------------------------------------------------------------- */

/* Limited by work: closing a socket takes microseconds, freeing routes and queues takes time too, and many connections may end in
 * one turn. */
void net_reap(net_t *net, uint64_t work) {
    connection_t *list = net->dead, **at = &list;
    const uint64_t begun = work_done(&net->broker);
    net->dead = NULL;
    net->ends_stop = work > UINT64_MAX - begun ? UINT64_MAX : begun + work;
    while (*at && work_done(&net->broker) < net->ends_stop) {
        connection_t *connection = *at, *next = connection->dead_next;
        if (connection_free(net, connection))
            *at = next;
        else
            at = &connection->dead_next;
    }
    net->ends_left = *at != NULL;
    for (at = &net->dead; *at;) at = &(*at)->dead_next; /* connections that ended meanwhile */
    *at = list;
}

void net_each_open(net_t *net, void (*visit)(net_t *net, connection_t *connection)) {
    for (uint32_t slot = 0; slot < net->chunk_count * CONNECTION_CHUNK; slot++) {
        connection_t *connection = connection_slot(net, slot);
        if (connection->state != CONNECTION_FREE && connection->state != CONNECTION_DEAD) visit(net, connection);
    }
}

bool net_all_sent(net_t *net) {
    for (uint32_t slot = 0; slot < net->chunk_count * CONNECTION_CHUNK; slot++) {
        const connection_t *connection = connection_slot(net, slot);
        if (connection->state != CONNECTION_FREE && (output_left(connection) || connection->client.blocked)) return false;
    }
    return true;
}

/* ---- life ------------------------------------------------------------------------------------------------------------ */

bool net_init(net_t *net, const bq_config_t *config, uint64_t first_message_id) {
    net->poller = -1;
    net->slots_max = (config->max_connections + REFUSED_MAX + CONNECTION_CHUNK - 1) / CONNECTION_CHUNK * CONNECTION_CHUNK;
    net->keepalive.timer.kind = TIMER_KEEPALIVE;
    share_init(net);
    if (!broker_init(&net->broker, config, first_message_id, net->slots_max, &connection_ops)) return false;
    if ((net->poller = poll_open()) < 0) return false;
    net->chunks = calloc(net->slots_max / CONNECTION_CHUNK, sizeof *net->chunks);
    net->free_slots = calloc(net->slots_max, sizeof *net->free_slots);
    net->read_buffer = malloc(READ_BYTES + GATHER_BYTES);
    net->send_buffer = malloc(SEND_BUFFER_BYTES + WEBSOCKET_LEAD_BYTES);
    return admission_init(net) && net->chunks && net->free_slots && net->read_buffer && net->send_buffer;
}

void net_release(net_t *net) {
    for (uint32_t i = 0; i < net->chunk_count; i++)
        pool_free(&net->broker.pool, net->chunks[i], CONNECTION_CHUNK * sizeof(connection_t));
    broker_release(&net->broker);
    if (net->poller >= 0) poll_close(net->poller);
    admission_release(net);
    secure_free(net);
    free(net->chunks);
    free(net->free_slots);
    free(net->read_buffer);
    free(net->send_buffer);
    free(net->websocket_origins.list);
}
