/* net/output.c: output to a client. Queues are sent at known points of a turn; control frames are appended to the queue. */
#include "broker/budget.h"
#include "core.h"
#include "net/transport.h"

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
        connection_close(bq, connection, BQ_CLOSE_MEMORY, "it does not read its replies, and limits.memory_bytes is used up");
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
    if (connection->state == CONNECTION_CLOSING && !connection->queue.head) connection_all_sent(bq, connection);
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
