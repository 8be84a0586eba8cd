/* net/transport_memory.c: a connection whose bytes pass through Python as events and commands. A window of credit limits the
 * bytes in flight in each direction. See transport.h. */
#include "broker/budget.h"
#include "core.h"
#include "net/transport.h"
#include "net/transport_io.h"

#define TRANSIT_MS 1000u /* input of the client may be in transit through Python for this long */

static bool memory_begin(bq_t *bq, connection_t *connection) {
    (void)bq;
    (void)connection;
    return true;
}

static void memory_nothing(bq_t *bq, connection_t *connection) {
    (void)bq;
    (void)connection;
}

/* ---- output ---------------------------------------------------------------------------------------------------------- */

/* Send output to Python as events, as far as the credit window and the event ring allow. Returns the bytes sent. */
static uint64_t memory_out(bq_t *bq, connection_t *connection) {
    const uint64_t window = budget_part(bq, bq->credit_bytes) ? CREDIT_BYTES : MEMORY_CHUNK_BYTES;
    uint64_t total = 0;
    for (const queue_entry_t *entry = connection->queue.head; entry; entry = entry->next) {
        for (uint32_t at = 0; at < entry->size;) {
            uint32_t size = entry->size - at < MEMORY_CHUNK_BYTES ? entry->size - at : MEMORY_CHUNK_BYTES;
            if (connection->credit_used + size > window) return total;
            bq_event_t event = {.type = BQ_EV_OUT,
                                .conn = connection->handle,
                                .data = entry->buffer->bytes + entry->offset + at,
                                .data_size = size};
            if (!event_push(bq, &event)) {
                event_retry(bq, connection);
                return total;
            }
            connection->credit_used += size;
            bq->credit_bytes += size;
            total += size;
            at += size;
        }
    }
    return total;
}

static void memory_flush(bq_t *bq, connection_t *connection) {
    uint64_t bytes = memory_out(bq, connection);
    connection->blocked = false;
    if (bytes) output_sent(bq, connection, bytes);
    connection->blocked = connection->queue.head != NULL;
}

/* Repeat what the full event ring did not take: the report of consumed input, then output. */
static bool memory_retry(bq_t *bq, connection_t *connection) {
    bq_event_t event = {.type = BQ_EV_CONSUMED, .conn = connection->handle, .value = connection->input_consumed};
    if (connection->input_consumed && !event_push(bq, &event)) return false;
    connection->input_consumed = 0;
    if (!connection->queue.head) return true;
    connection->blocked = false;
    connection_mark_dirty(bq, connection, FLUSH_NARROW);
    return true;
}

void connection_credit(bq_t *bq, connection_t *connection, uint64_t bytes) {
    uint32_t back = bytes < connection->credit_used ? (uint32_t)bytes : connection->credit_used;
    core_assert(back <= bq->credit_bytes);
    connection->credit_used -= back;
    bq->credit_bytes -= back;
    connection_flush(bq, connection);
}

/* ---- input ----------------------------------------------------------------------------------------------------------- */

static void memory_parsed(bq_t *bq, connection_t *connection, uint32_t bytes) {
    if (!bytes || connection->state == CONNECTION_DEAD) return;
    connection->input_consumed += bytes;
    event_retry(bq, connection); /* reported at the end of the turn, with everything that waits for the event ring */
}

void connection_memory_input(bq_t *bq, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    if (connection->state != CONNECTION_OPEN || connection->input_ended || !size) return;
    if (connection->in_size + (uint64_t)size > bq->config.max_frame_bytes + 2ull * CREDIT_BYTES) {
        connection_close(bq, connection, BQ_CLOSE_BROKER, "the client sent more input than its credit window");
        return;
    }
    if (!input_reserve(bq, connection, size)) return;
    memcpy(connection->in + connection->in_size, bytes, size);
    connection->in_size += size;
    bq->turn_bytes += size;
    connection->heard_ms = bq->now_ms;
    share_go_on(bq, connection);
}

void connection_memory_end(bq_t *bq, connection_t *connection) {
    connection->input_ended = true;
    share_go_on(bq, connection);
}

/* No kernel buffer holds back input: all of it is in the connection. */
static bool memory_input_waits(const connection_t *connection) {
    (void)connection;
    return false;
}

/* ---- the end --------------------------------------------------------------------------------------------------------- */

static bool memory_goodbye(bq_t *bq, connection_t *connection) {
    (void)bq;
    (void)connection;
    return false;
}

static void memory_end(bq_t *bq, connection_t *connection) {
    bq->credit_bytes -= connection->credit_used;
    connection->credit_used = 0;
}

const transport_ops_t transport_memory = {.begin = memory_begin,
                                          .readable = memory_nothing,
                                          .drain = memory_nothing,
                                          .parsed = memory_parsed,
                                          .interest = memory_nothing,
                                          .flush = memory_flush,
                                          .retry = memory_retry,
                                          .goodbye = memory_goodbye,
                                          .silence = memory_nothing,
                                          .end = memory_end,
                                          .input_waits = memory_input_waits,
                                          .transit_ms = TRANSIT_MS};
