/* net/connection.c: see net/connection.h for the states and the invariants. */
#include "net/net.h"
#include "net/transport.h"
#include "proto/protocol.h"

/* ---- life ---------------------------------------------------------------------------------------------------------- */

static bool chunk_add(net_t *net) {
    connection_t *chunk = pool_alloc(&net->broker.pool, CONNECTION_CHUNK * sizeof *chunk);
    if (!chunk) return false;
    memset(chunk, 0, CONNECTION_CHUNK * sizeof *chunk);
    uint32_t first = net->chunk_count * CONNECTION_CHUNK;
    net->chunks[net->chunk_count++] = chunk;
    for (uint32_t i = CONNECTION_CHUNK; i-- > 0;) {
        chunk[i].client.handle = first + i; /* generation 0: never used */
        net->free_slots[net->free_count++] = first + i;
    }
    return true;
}

connection_t *connection_open(net_t *net, const endpoint_t *endpoint, int fd, const uint8_t peer[16], uint16_t port,
                              bool trusted) {
    const transport_ops_t *transport = endpoint->transport;
    if (!net->free_count && (net->chunk_count * CONNECTION_CHUNK >= net->slots_max || !chunk_add(net))) return NULL;
    connection_t *connection = connection_slot(net, net->free_slots[net->free_count - 1]);
    uint64_t handle = connection->client.handle + (1ull << 32);
    if (handle >> 32 == 0) handle += 1ull << 32; /* the generation skips 0, which no valid handle has */
    memset(connection, 0, sizeof *connection);
    connection->client.handle = handle;
    connection->transport = transport;
    connection->client.protocol = endpoint->protocol;
    connection->fd = fd;
    if (!transport->begin(net, connection)) return NULL;
    net->free_count--;
    connection_state_set(connection, CONNECTION_OPEN);
    connection->admitted = trusted || !(net->broker.config.require_hello || endpoint->protocol->greets);
    connection->timer.kind = TIMER_CONNECTION;
    memcpy(connection->peer, peer, sizeof connection->peer);
    connection->peer_port = port;
    if (!connection->admitted || (transport->shakes && !trusted)) {
        timer_set(&net->broker, &connection->timer, net->broker.config.hello_timeout_ms);
        admission_enter(net, connection);
    }
    return connection;
}

void connection_hurry(net_t *net, connection_t *connection, uint64_t passed_ms) {
    uint64_t all_ms = net->broker.config.hello_timeout_ms;
    if (!connection->admitted && passed_ms)
        timer_set(&net->broker, &connection->timer, passed_ms < all_ms ? all_ms - passed_ms : 0);
}

connection_t *connection_find(net_t *net, bq_conn_t handle) {
    uint32_t slot = (uint32_t)handle;
    if (slot >= net->chunk_count * CONNECTION_CHUNK) return NULL;
    connection_t *connection = connection_slot(net, slot);
    return connection->client.handle == handle && connection->state != CONNECTION_FREE ? connection : NULL;
}

bool connection_ask(net_t *net, connection_t *connection, bq_event_t *event) {
    event->conn = connection->client.handle;
    event->flags |= connection->trusted ? BQ_EV_TRUSTED : 0;
    memcpy(event->peer, connection->peer, sizeof event->peer);
    event->peer_port = connection->peer_port;
    if (!event_push(&net->broker, event)) {
        connection->client.pause |= PAUSE_EVENTS;
        net_retry_later(net, connection);
        return false;
    }
    connection->known = true;
    connection->client.pause |= PAUSE_ANSWER;
    return true;
}

static client_t *client_by_handle(broker_t *broker, bq_conn_t handle) {
    connection_t *connection = connection_find(net_of(broker), handle);
    return connection ? &connection->client : NULL;
}

static void client_input(broker_t *broker, client_t *client) { share_line_up(net_of(broker), connection_of(client)); }

static void client_has_answer(broker_t *broker, client_t *client) { connection_answered(net_of(broker), connection_of(client)); }

const client_ops_t connection_ops = {.find = client_by_handle, .resume = client_input, .answered = client_has_answer};

void connection_update_interest(net_t *net, connection_t *connection) { connection->transport->interest(net, connection); }
