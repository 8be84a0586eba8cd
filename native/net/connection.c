/* net/connection.c: see net/connection.h for the states and the invariants. */
#include "core.h"
#include "net/transport.h"
#include "proto/protocol.h"

/* ---- life ---------------------------------------------------------------------------------------------------------- */

static bool chunk_add(bq_t *bq) {
    connection_t *chunk = pool_alloc(&bq->pool, CONNECTION_CHUNK * sizeof *chunk);
    if (!chunk) return false;
    memset(chunk, 0, CONNECTION_CHUNK * sizeof *chunk);
    uint32_t first = bq->chunk_count * CONNECTION_CHUNK;
    bq->chunks[bq->chunk_count++] = chunk;
    for (uint32_t i = CONNECTION_CHUNK; i-- > 0;) {
        chunk[i].handle = first + i; /* generation 0: never used */
        bq->free_slots[bq->free_count++] = first + i;
    }
    return true;
}

connection_t *connection_open(bq_t *bq, const transport_ops_t *transport, int fd, const uint8_t peer[16], uint16_t port,
                              bool trusted) {
    if (!bq->free_count && (bq->chunk_count * CONNECTION_CHUNK >= bq->slots_max || !chunk_add(bq))) return NULL;
    connection_t *connection = core_slot(bq, bq->free_slots[bq->free_count - 1]);
    uint64_t handle = connection->handle + (1ull << 32);
    if (handle >> 32 == 0) handle += 1ull << 32; /* the generation skips 0, which no valid handle has */
    memset(connection, 0, sizeof *connection);
    connection->handle = handle;
    connection->transport = transport;
    connection->protocol = &protocol_blip;
    connection->fd = fd;
    if (!transport->begin(bq, connection)) return NULL;
    bq->free_count--;
    connection->state = CONNECTION_OPEN;
    connection->admitted = trusted || !bq->config.require_hello;
    connection->timer.kind = TIMER_CONNECTION;
    memcpy(connection->peer, peer, sizeof connection->peer);
    connection->peer_port = port;
    if (!connection->admitted || (transport->shakes && !trusted)) {
        core_timer_set(bq, &connection->timer, bq->config.hello_timeout_ms);
        admission_enter(bq, connection);
    }
    return connection;
}

void connection_hurry(bq_t *bq, connection_t *connection, uint64_t passed_ms) {
    uint64_t all_ms = bq->config.hello_timeout_ms;
    if (!connection->admitted && passed_ms) core_timer_set(bq, &connection->timer, passed_ms < all_ms ? all_ms - passed_ms : 0);
}

connection_t *connection_find(bq_t *bq, bq_conn_t handle) {
    uint32_t slot = (uint32_t)handle;
    if (slot >= bq->chunk_count * CONNECTION_CHUNK) return NULL;
    connection_t *connection = core_slot(bq, slot);
    return connection->handle == handle && connection->state != CONNECTION_FREE ? connection : NULL;
}

void connection_update_interest(bq_t *bq, connection_t *connection) { connection->transport->interest(bq, connection); }
