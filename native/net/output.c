/* net/output.c: output to a client. Queues are sent at known points of a turn; control frames are appended to the queue. */
#include "broker/budget.h"
#include "core.h"
#include "net/transport.h"
#include "net/transport_io.h"

/* Gather whole entries up to the batch limits, at least one. Small entries are copied together if there are others. */
int output_gather_several(const bq_t *bq, const queue_t *queue, struct iovec *parts, uint64_t *bytes) {
    uint64_t messages = 0;
    uint32_t copied = 0, part_end = UINT32_MAX; /* end of the last part in the buffer; UINT32_MAX: it is not in the buffer */
    int count = 0;
    *bytes = 0;
    for (const queue_entry_t *entry = queue->head; entry; entry = entry->next) {
        if (count && (messages + entry->count > bq->config.max_batch || *bytes + entry->size > bq->config.max_batch_bytes)) break;
        uint8_t *from = entry->buffer->bytes + entry->offset;
        bool copy = entry->size <= SEND_COPY_MAX && entry->size <= SEND_BUFFER_BYTES - copied && (count || entry->next);
        if (copy) from = memcpy(bq->send_buffer + copied, from, entry->size);
        if (copy && part_end == copied) {
            parts[count - 1].iov_len += entry->size;
        } else {
            if (count == SEND_PARTS_MAX) break;
            parts[count++] = (struct iovec){from, entry->size};
        }
        copied += copy ? entry->size : 0;
        part_end = copy ? copied : UINT32_MAX;
        messages += entry->count;
        *bytes += entry->size;
    }
    return count;
}

void output_sent(bq_t *bq, connection_t *connection, uint64_t bytes) {
    uint64_t delivered = bq->stats.delivered;
    queue_sent(&connection->queue, &bq->queues, bytes);
    bq->stats.delivered_bytes += bytes;
    bq->stats.flushes += bq->stats.delivered != delivered;
    if (BQ_UNLIKELY(!connection->watched)) keepalive_watch(bq, connection);
    if ((connection->pause & PAUSE_OUTPUT) && connection->queue.control_bytes <= CONTROL_BYTES_MAX / 2)
        connection_resume(bq, connection, PAUSE_OUTPUT);
    connection_wake_waiters(bq, connection);
}

/* It does not read its replies. If the memory budget is used up, a client with many queued reply bytes is closed, because
 * nothing else can free them. */
static NOINLINE void replies_grow(bq_t *bq, connection_t *connection) {
    bool large = connection->queue.control_bytes > CONTROL_BYTES_MAX, over = connection->blocked && budget_over(bq);
    if (large || over) connection->pause |= PAUSE_OUTPUT;
    if (large && over)
        connection_close(bq, connection, BQ_CLOSE_MEMORY,
                         "the client does not read its replies, and limits.memory_bytes is reached");
}

void connection_send(bq_t *bq, connection_t *connection) {
    if (BQ_UNLIKELY(connection->send_error)) return;
    if (bq->config.lazy_expiry) {
        queue_expire_head(&connection->queue, &bq->queues, bq->now_ms / bq->config.tick_ms);
        /* Waiters must be woken here too: after the last expiry there may be no send that wakes them */
        connection_wake_waiters(bq, connection);
    }
    connection->transport->flush(bq, connection);
}

void connection_flush(bq_t *bq, connection_t *connection) {
    if (connection->state < CONNECTION_OPEN || connection->state > CONNECTION_CLOSING) return;
    connection_send(bq, connection);
    if (BQ_UNLIKELY(connection->send_error)) {
        connection_broken(bq, connection, connection->send_error);
        return;
    }
    if (BQ_UNLIKELY(connection->blocked) && connection->queue.control_bytes > CONTROL_BYTES_MAX) replies_grow(bq, connection);
    if (connection->state == CONNECTION_CLOSING && !connection->queue.head && !connection->blocked)
        connection_all_sent(bq, connection);
}

/* Append a written control frame to the queue, in order. */
void output_push(bq_t *bq, connection_t *connection, uint32_t size) {
    buffer_t *buffer = bq->buffers.open;
    queue_run_t run = {.buffer = buffer, .offset = buffer->used, .size = size};
    buffer_commit(&bq->buffers, size);
    if (!queue_push(&connection->queue, &bq->queues, &run)) {
        connection_close(bq, connection, BQ_CLOSE_MEMORY, "no memory for a reply");
        return;
    }
    if (connection->queue.control_bytes > CONTROL_BYTES_SHORT) replies_grow(bq, connection);
    connection_mark_dirty(bq, connection, FLUSH_NARROW);
}

uint8_t *output_reserve(bq_t *bq, connection_t *connection, uint32_t size) {
    if (!connection_takes_answers(connection)) return NULL;
    uint8_t *out = shared_reserve(bq, size);
    if (!out) connection_close(bq, connection, BQ_CLOSE_MEMORY, "no memory for a reply");
    return out;
}
