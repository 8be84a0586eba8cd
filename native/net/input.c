/* net/input.c: passes bytes from a transport to a protocol. A partial frame is kept, within the memory budget. */
#include "broker/budget.h"
#include "net/net.h"
#include "proto/protocol.h"
#include "net/transport.h"
#include "net/transport_io.h"

static void input_replace(net_t *net, connection_t *connection, uint8_t *in, uint32_t capacity, uint32_t size) {
    pool_free(&net->broker.pool, connection->in, connection->in_capacity);
    net->input_bytes += capacity;
    net->input_bytes -= connection->in_capacity;
    connection->in = in;
    connection->in_capacity = capacity;
    connection->in_start = 0;
    connection->in_size = size;
}

void connection_input_drop(net_t *net, connection_t *connection) { input_replace(net, connection, NULL, 0, 0); }

/* Partial frames may use at most a quarter of the budget. Many slow senders of large frames are closed before they take the
 * memory of the queues. */
static bool input_over_budget(const net_t *net, uint64_t more) { return !budget_part(&net->broker, net->input_bytes + more); }

static void rest_without_memory(net_t *net, connection_t *connection, const uint8_t *bytes, uint32_t size);

/* Keep unparsed input. `bytes` may be inside the connection's own buffer; that buffer is kept unless it is far too large. */
static void keep_rest(net_t *net, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    if (connection->state != CONNECTION_OPEN || !size) {
        input_replace(net, connection, NULL, 0, 0);
        return;
    }
    bool own = connection->in && bytes >= connection->in && bytes < connection->in + connection->in_capacity;
    if (own && connection->in_capacity / 8 <= size) {
        connection->in_start = (uint32_t)(bytes - connection->in);
        connection->in_size = size;
        return;
    }
    uint32_t capacity = (uint32_t)pool_good_size(size);
    uint8_t *in = input_over_budget(net, capacity) ? NULL : pool_alloc(&net->broker.pool, capacity);
    if (!in) {
        rest_without_memory(net, connection, bytes, size);
        return;
    }
    memcpy(in, bytes, size);
    input_replace(net, connection, in, capacity, size);
}

void input_process(net_t *net, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    if (CORE_CHECKED) net->parsing = true;
    uint32_t used = connection->client.protocol->parse(&net->broker, &connection->client, bytes, size);
    if (CORE_CHECKED) net->parsing = false;
    if (connection->transport->parsed) connection->transport->parsed(net, connection, used);
    keep_rest(net, connection, bytes + used, size - used);
}

/* No memory for the rest of its input. If the only pause is its used-up share, process the rest now. */
static NOINLINE void rest_without_memory(net_t *net, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    if (connection->client.pause != PAUSE_SHARE) {
        connection_close(net, connection, BQ_CLOSE_MEMORY, "no memory for the client's input");
        return;
    }
    connection->client.pause = 0;
    net->broker.work_stop = UINT64_MAX;
    input_process(net, connection, bytes, size);
}

/* Make space for `more` bytes behind the kept input. The buffer grows with received bytes, never with an announced length
 * alone. */
bool input_reserve(net_t *net, connection_t *connection, uint32_t more) {
    if (connection->in_start) {
        memmove(connection->in, connection->in + connection->in_start, connection->in_size);
        connection->in_start = 0;
    }
    if (connection->in_capacity - connection->in_size >= more) return true;
    size_t doubled = (size_t)connection->in_capacity * 2, need = (size_t)connection->in_size + more;
    uint32_t capacity = (uint32_t)pool_good_size(need > doubled ? need : doubled);
    bool over = input_over_budget(net, capacity - connection->in_capacity);
    uint8_t *in = over ? NULL : pool_resize(&net->broker.pool, connection->in, connection->in_capacity, capacity);
    if (!in) {
        connection_close(net, connection, BQ_CLOSE_MEMORY, "no memory for the client's input");
        return false;
    }
    net->input_bytes += capacity - connection->in_capacity;
    connection->in = in;
    connection->in_capacity = capacity;
    return true;
}

uint32_t input_limit_rare(const net_t *net, const connection_t *connection) {
    uint32_t limit = net->read_bytes;
    if (connection->unadmitted) {
        const uint32_t left = connection->client.protocol->greeting_max(&net->broker) - connection->in_size;
        if (left < limit) limit = left;
    }
    if (!connection->unadmitted && (connection->heavy || connection->client.pending_commits)) limit = READ_BYTES_HEAVY;
    return connection->websocket ? websocket_input_limit(connection, limit) : limit;
}

/* The input has ended, so a partial frame can never become complete. */
NOINLINE void input_end(net_t *net, connection_t *connection, int error) {
    connection_input_drop(net, connection);
    if (error)
        connection_broken(net, connection, error);
    else if (!connection->websocket || !websocket_refuse(net, connection))
        connection_input_ended(net, connection, BQ_CLOSE_EOF);
}

void connection_readable(net_t *net, connection_t *connection) {
    if (connection->state == CONNECTION_LINGERING) {
        connection->transport->drain(net, connection);
    } else if (connection->state == CONNECTION_OPEN && connection->client.pause) {
        connection_update_interest(net, connection); /* poller updated only now: most pauses end before more input comes */
    } else if (connection->state == CONNECTION_OPEN) {
        connection->transport->readable(net, connection);
    }
}

void connection_continue(net_t *net, connection_t *connection) {
    if (connection->state != CONNECTION_OPEN || connection->client.pause) return;
    if (connection->in_size) input_process(net, connection, connection->in + connection->in_start, connection->in_size);
    if (connection->state != CONNECTION_OPEN || connection->client.pause) return;
    if (connection->input_ended)
        input_end(net, connection, 0);
    else
        connection_update_interest(net, connection);
}
