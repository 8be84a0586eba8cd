/* net/transport_memory.c: a connection whose bytes pass through Python as events and commands. A window of credit limits the
 * bytes in flight in each direction. See transport.h. */
#include "broker/budget.h"
#include "net/net.h"
#include "net/transport.h"
#include "net/transport_io.h"

#define TRANSIT_MS 1000u /* input of the client may be in transit through Python for this long */

static bool memory_begin(net_t *net, connection_t *connection) {
    (void)net;
    (void)connection;
    return true;
}

static void memory_nothing(net_t *net, connection_t *connection) {
    (void)net;
    (void)connection;
}

/* ---- output ---------------------------------------------------------------------------------------------------------- */

/* Send output to Python as events, as far as the credit window and the event ring allow. Returns the bytes sent. */
static uint64_t memory_out(net_t *net, connection_t *connection) {
    const uint64_t window = budget_part(&net->broker, net->broker.credit_bytes) ? CREDIT_BYTES : MEMORY_CHUNK_BYTES;
    uint64_t total = 0;
    for (const queue_entry_t *entry = connection->client.queue.head; entry; entry = entry->next) {
        for (uint32_t at = 0; at < entry->size;) {
            uint32_t size = entry->size - at < MEMORY_CHUNK_BYTES ? entry->size - at : MEMORY_CHUNK_BYTES;
            if (connection->credit_used + size > window) return total;
            bq_event_t event = {.type = BQ_EV_OUT,
                                .conn = connection->client.handle,
                                .data = entry->buffer->bytes + entry->offset + at,
                                .data_size = size};
            if (!event_push(&net->broker, &event)) {
                net_retry_later(net, connection);
                return total;
            }
            connection->credit_used += size;
            net->broker.credit_bytes += size;
            total += size;
            at += size;
        }
    }
    return total;
}

static void memory_flush(net_t *net, connection_t *connection) {
    uint64_t bytes = memory_out(net, connection);
    connection->client.blocked = false;
    if (bytes) output_sent(net, connection, bytes);
    connection->client.blocked = connection->client.queue.head != NULL;
}

/* Repeat what the full event ring did not take: the report of consumed input, then output. */
static bool memory_retry(net_t *net, connection_t *connection) {
    bq_event_t event = {.type = BQ_EV_CONSUMED, .conn = connection->client.handle, .value = connection->input_consumed};
    if (connection->input_consumed && !event_push(&net->broker, &event)) return false;
    connection->input_consumed = 0;
    if (!connection->client.queue.head) return true;
    connection->client.blocked = false;
    client_mark_dirty(&net->broker, &connection->client, FLUSH_NARROW);
    return true;
}

void connection_credit(net_t *net, connection_t *connection, uint64_t bytes) {
    uint32_t back = bytes < connection->credit_used ? (uint32_t)bytes : connection->credit_used;
    core_assert(back <= net->broker.credit_bytes);
    connection->credit_used -= back;
    net->broker.credit_bytes -= back;
    connection_flush(net, connection);
}

/* ---- input ----------------------------------------------------------------------------------------------------------- */

static void memory_parsed(net_t *net, connection_t *connection, uint32_t bytes) {
    if (!bytes || connection->state == CONNECTION_DEAD) return;
    connection->input_consumed += bytes;
    net_retry_later(net, connection); /* reported at the end of the turn, with everything that waits for the event ring */
}

void connection_memory_input(net_t *net, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    if (connection->state != CONNECTION_OPEN || connection->input_ended || !size) return;
    if (connection->in_size + (uint64_t)size > net->broker.config.max_frame_bytes + 2ull * CREDIT_BYTES) {
        connection_close(net, connection, BQ_CLOSE_BROKER, "the client sent more input than its credit window");
        return;
    }
    if (!input_reserve(net, connection, size)) return;
    memcpy(connection->in + connection->in_size, bytes, size);
    connection->in_size += size;
    net->turn_bytes += size;
    connection->heard_ms = net->broker.now_ms;
    share_go_on(net, connection);
}

void connection_memory_end(net_t *net, connection_t *connection) {
    connection->input_ended = true;
    share_go_on(net, connection);
}

/* No kernel buffer holds back input: all of it is in the connection. */
static bool memory_input_waits(const connection_t *connection) {
    (void)connection;
    return false;
}

/* ---- the end --------------------------------------------------------------------------------------------------------- */

static bool memory_goodbye(net_t *net, connection_t *connection) {
    (void)net;
    (void)connection;
    return false;
}

static void memory_end(net_t *net, connection_t *connection) {
    net->broker.credit_bytes -= connection->credit_used;
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
