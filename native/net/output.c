/* net/output.c: output to a client. Queues are sent at known points of a turn; control frames are appended to the queue. */
#include "broker/budget.h"
#include "net/net.h"
#include "net/transport.h"
#include "net/transport_io.h"

/* Gather whole entries up to the batch limits, at least one. Small entries are copied together if there are others. */
int output_gather_several(const net_t *net, const queue_t *queue, struct iovec *parts, uint64_t *bytes) {
    uint64_t messages = 0;
    uint32_t copied = 0, part_end = UINT32_MAX; /* end of the last part in the buffer; UINT32_MAX: it is not in the buffer */
    int count = 0;
    *bytes = 0;
    for (const queue_entry_t *entry = queue->head; entry; entry = entry->next) {
        if (count &&
            (messages + entry->count > net->broker.config.max_batch || *bytes + entry->size > net->broker.config.max_batch_bytes))
            break;
        uint8_t *from = entry->buffer->bytes + entry->offset;
        bool copy = entry->size <= SEND_COPY_MAX && entry->size <= SEND_BUFFER_BYTES - copied && (count || entry->next);
        if (copy) from = memcpy(net->send_buffer + copied, from, entry->size);
        if (copy && part_end == copied) {
            parts[count - 1].iov_len += entry->size;
        } else {
            if (count == SEND_PARTS_MAX) break;
            parts[count++] = (struct iovec){.iov_base = from, .iov_len = entry->size};
        }
        copied += copy ? entry->size : 0;
        part_end = copy ? copied : UINT32_MAX;
        messages += entry->count;
        *bytes += entry->size;
    }
    return count;
}

void output_sent(net_t *net, connection_t *connection, uint64_t bytes) {
    uint64_t delivered = net->broker.stats.delivered;
    net->broker.stats.delivered_bytes += bytes;
    if (BQ_UNLIKELY(connection->websocket != NULL)) bytes = websocket_sent(net, connection, bytes);
    queue_sent(&connection->client.queue, &net->broker.queues, bytes);
    net->broker.stats.flushes += net->broker.stats.delivered != delivered;
    if (BQ_UNLIKELY(!connection->watched)) keepalive_watch(net, connection);
    if ((connection->client.pause & PAUSE_OUTPUT) && connection->client.queue.control_bytes <= CONTROL_BYTES_MAX / 2)
        client_resume(&net->broker, &connection->client, PAUSE_OUTPUT);
    client_wake_waiters(&net->broker, &connection->client);
}

/* It does not read its replies. If the memory budget is used up, a client with many queued reply bytes is closed, because
 * nothing else can free them. */
static NOINLINE void replies_grow(net_t *net, connection_t *connection) {
    bool large = connection->client.queue.control_bytes > CONTROL_BYTES_MAX,
         over = connection->client.blocked && budget_over(&net->broker);
    if (large || over) connection->client.pause |= PAUSE_OUTPUT;
    if (large && over)
        connection_close(net, connection, BQ_CLOSE_MEMORY,
                         "the client does not read its replies, and limits.memory_bytes is reached");
}

static void send_batch(net_t *net, connection_t *connection) {
    if (BQ_UNLIKELY(connection->send_error)) return;
    if (net->broker.config.lazy_expiry) {
        queue_expire_head(&connection->client.queue, &net->broker.queues, tick_of(&net->broker, net->broker.now_ms));
        /* Waiters must be woken here too: after the last expiry there may be no send that wakes them */
        client_wake_waiters(&net->broker, &connection->client);
    }
    connection->transport->flush(net, connection);
}

void net_drain(net_t *net) {
    client_t *client = net->broker.full;
    net->broker.full = NULL;
    client->drain_round = net->broker.drain_round;
    send_batch(net, connection_of(client));
}

void connection_flush(net_t *net, connection_t *connection) {
    core_assert(!net->parsing && !net->broker.full && !net->broker.dispatch.begun);
    if (connection->state < CONNECTION_OPEN || connection->state > CONNECTION_CLOSING) return;
    send_batch(net, connection);
    if (BQ_UNLIKELY(connection->send_error)) {
        connection_broken(net, connection, connection->send_error);
        return;
    }
    if (BQ_UNLIKELY(connection->client.blocked) && connection->client.queue.control_bytes > CONTROL_BYTES_MAX)
        replies_grow(net, connection);
    if (connection->state == CONNECTION_CLOSING && !output_left(connection) && !connection->client.blocked)
        connection_all_sent(net, connection);
}

/* Append a written control frame to the queue, in order. */
void output_push(net_t *net, connection_t *connection, uint32_t size) {
    buffer_t *buffer = net->broker.buffers.open;
    queue_run_t run = {.buffer = buffer, .offset = buffer->used, .size = size};
    buffer_commit(&net->broker.buffers, size);
    if (!queue_push(&connection->client.queue, &net->broker.queues, &run)) {
        connection_close(net, connection, BQ_CLOSE_MEMORY, "no memory for a reply");
        return;
    }
    if (connection->client.queue.control_bytes > CONTROL_BYTES_SHORT) replies_grow(net, connection);
    client_mark_dirty(&net->broker, &connection->client, FLUSH_NARROW);
}

uint8_t *output_reserve(net_t *net, connection_t *connection, uint32_t size) {
    if (!connection_takes_answers(connection)) return NULL;
    net_run_close(net);
    uint8_t *out = buffer_reserve(&net->broker.buffers, size);
    if (!out) connection_close(net, connection, BQ_CLOSE_MEMORY, "no memory for a reply");
    return out;
}
