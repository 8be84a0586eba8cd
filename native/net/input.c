/* net/input.c: passes bytes from a transport to a protocol. A partial frame is kept, within the memory budget. */
#include "broker/budget.h"
#include "core.h"
#include "proto/protocol.h"
#include "net/transport.h"

static void input_replace(bq_t *bq, connection_t *connection, uint8_t *in, uint32_t capacity, uint32_t size) {
    pool_free(&bq->pool, connection->in, connection->in_capacity);
    bq->input_bytes += capacity;
    bq->input_bytes -= connection->in_capacity;
    connection->in = in;
    connection->in_capacity = capacity;
    connection->in_start = 0;
    connection->in_size = size;
}

void connection_input_drop(bq_t *bq, connection_t *connection) { input_replace(bq, connection, NULL, 0, 0); }

/* Partial frames may use at most a quarter of the budget. Many slow senders of large frames are closed before they take the
 * memory of the queues. */
static bool input_over_budget(const bq_t *bq, uint64_t more) { return !budget_part(bq, bq->input_bytes + more); }

static void rest_without_memory(bq_t *bq, connection_t *connection, const uint8_t *bytes, uint32_t size);

/* Keep unparsed input. `bytes` may be inside the connection's own buffer; that buffer is kept unless it is far too large. */
static void keep_rest(bq_t *bq, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    if (connection->state != CONNECTION_OPEN || !size) {
        input_replace(bq, connection, NULL, 0, 0);
        return;
    }
    bool own = connection->in && bytes >= connection->in && bytes < connection->in + connection->in_capacity;
    if (own && connection->in_capacity / 8 <= size) {
        connection->in_start = (uint32_t)(bytes - connection->in);
        connection->in_size = size;
        return;
    }
    uint32_t capacity = (uint32_t)pool_good_size(size);
    uint8_t *in = input_over_budget(bq, capacity) ? NULL : pool_alloc(&bq->pool, capacity);
    if (!in) {
        rest_without_memory(bq, connection, bytes, size);
        return;
    }
    memcpy(in, bytes, size);
    input_replace(bq, connection, in, capacity, size);
}

void input_process(bq_t *bq, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    uint32_t used = connection->protocol->parse(bq, connection, bytes, size);
    if (connection->transport->parsed) connection->transport->parsed(bq, connection, used);
    keep_rest(bq, connection, bytes + used, size - used);
}

/* No memory for the rest of its input. If the only pause is its used-up share, process the rest now. */
static NOINLINE void rest_without_memory(bq_t *bq, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    if (connection->pause != PAUSE_SHARE) {
        connection_close(bq, connection, BQ_CLOSE_MEMORY, "no memory for the client's input");
        return;
    }
    connection->pause = 0;
    bq->share.stop = UINT64_MAX;
    input_process(bq, connection, bytes, size);
}

/* Make space for `more` bytes behind the kept input. The buffer grows with received bytes, never with an announced length
 * alone. */
bool input_reserve(bq_t *bq, connection_t *connection, uint32_t more) {
    if (connection->in_start) {
        memmove(connection->in, connection->in + connection->in_start, connection->in_size);
        connection->in_start = 0;
    }
    if (connection->in_capacity - connection->in_size >= more) return true;
    size_t doubled = (size_t)connection->in_capacity * 2, need = (size_t)connection->in_size + more;
    uint32_t capacity = (uint32_t)pool_good_size(need > doubled ? need : doubled);
    bool over = input_over_budget(bq, capacity - connection->in_capacity);
    uint8_t *in = over ? NULL : pool_resize(&bq->pool, connection->in, connection->in_capacity, capacity);
    if (!in) {
        connection_close(bq, connection, BQ_CLOSE_MEMORY, "no memory for the client's input");
        return false;
    }
    bq->input_bytes += capacity - connection->in_capacity;
    connection->in = in;
    connection->in_capacity = capacity;
    return true;
}

/* The input has ended, so a partial frame can never become complete. */
NOINLINE void input_end(bq_t *bq, connection_t *connection, int error) {
    connection_input_drop(bq, connection);
    if (error)
        connection_broken(bq, connection, error);
    else
        connection_input_ended(bq, connection, BQ_CLOSE_EOF);
}

void connection_readable(bq_t *bq, connection_t *connection) {
    if (connection->state == CONNECTION_LINGERING) {
        connection->transport->drain(bq, connection);
    } else if (connection->state == CONNECTION_OPEN && connection->pause) {
        connection_update_interest(bq, connection); /* poller updated only now: most pauses end before more input comes */
    } else if (connection->state == CONNECTION_OPEN) {
        connection->transport->readable(bq, connection);
    }
}

void connection_continue(bq_t *bq, connection_t *connection) {
    if (connection->state != CONNECTION_OPEN || connection->pause) return;
    if (connection->in_size) input_process(bq, connection, connection->in + connection->in_start, connection->in_size);
    if (connection->state != CONNECTION_OPEN || connection->pause) return;
    if (connection->input_ended)
        input_end(bq, connection, 0);
    else
        connection_update_interest(bq, connection);
}

void connection_resume(bq_t *bq, connection_t *connection, uint8_t pause) {
    connection->pause &= (uint8_t)~pause;
    if (!connection->pause && connection->state == CONNECTION_OPEN) share_line_up(bq, connection);
}
