/* net/connection_end.c: how a connection ends. net/connection.h shows the states.
 *
 * After QUIT or end of file a client may still read. Its earlier requests are answered, also when an answer waits for the disk,
 * and the connection closes after the last answer. A reset ends a connection at once.
 *
 * Invariants: when a connection leaves CONNECTION_OPEN, it leaves its routes, groups and consumers at the same moment. So no
 * message waits for a client that cannot acknowledge it. ENDING, CLOSING and LINGERING each have a timer, so a client that does
 * not read cannot keep its descriptor.
 */
#include "net/net.h"
#include "proto/protocol.h"
#include "net/transport.h"
#include "net/transport_io.h"

#include <errno.h>

/* ---- states -------------------------------------------------------------------------------------------------------- */

void connection_close(net_t *net, connection_t *connection, uint8_t code, const char *detail) {
    if (connection->state == CONNECTION_DEAD || connection->state == CONNECTION_FREE) return;
    if (connection->state == CONNECTION_OPEN) { /* a connection that is already ending keeps its first reason */
        connection->close_code = code;
        connection->close_detail = detail;
        net->broker.stats.closed_silent += code == BQ_CLOSE_SILENT;
        net->broker.stats.closed_vanished += code == BQ_CLOSE_VANISHED;
    }
    if (connection->websocket) websocket_last_words(net, connection, code, detail);
    connection_state_set(connection, CONNECTION_DEAD);
    connection->transport->silence(net, connection);
    wheel_remove(&net->broker.wheel, &connection->timer.wheel);
    admission_leave(net, connection);
    wait_end(&net->broker, &connection->client);
    client_release_waiters(&net->broker, &connection->client);
    keepalive_unwatch(net, connection);
    connection->dead_next = net->dead;
    net->dead = connection;
}

/* A frame at the head of its queue may be partly sent. */
static bool connection_begun(const connection_t *connection) {
    return connection->websocket ? connection->websocket->cut : connection->client.blocked;
}

/* A connection that was never admitted has no more time to end than it had left to be admitted. */
static void end_within(net_t *net, connection_t *connection, uint64_t after_ms) {
    if (connection->unadmitted)
        timer_cut(&net->broker, &connection->timer, after_ms);
    else
        timer_set(&net->broker, &connection->timer, after_ms);
}

/* QoS 1 deliveries of which no byte has been sent go to other members or are redelivered, because this client cannot acknowledge
 * them. QoS 0 messages stay in the queue, in order with the answers. */
static void leave(net_t *net, connection_t *connection) {
    net_run_close(net);
    client_release_waiters(&net->broker, &connection->client);
    client_leave(&net->broker, &connection->client);
    queue_drop_kept(&connection->client.queue, &net->broker.queues, connection_begun(connection));
}

void connection_finish(net_t *net, connection_t *connection, uint8_t code, const char *detail) {
    if (connection->state != CONNECTION_OPEN && connection->state != CONNECTION_ENDING) return;
    if (connection->state == CONNECTION_OPEN) {
        connection->close_code = code;
        connection->close_detail = detail;
        leave(net, connection);
    }
    connection_state_set(connection, CONNECTION_CLOSING);
    end_within(net, connection, CLOSING_MS);
    client_mark_dirty(&net->broker, &connection->client, FLUSH_NARROW);
    connection_update_interest(net, connection);
}

void connection_input_ended(net_t *net, connection_t *connection, uint8_t code) {
    net_run_close(net); /* the open run may hold messages for this client */
    if (connection->state != CONNECTION_OPEN) return;
    if (connection->hello && connection->client.pending_commits) {
        connection->close_code = code;
        connection->close_detail = NULL;
        leave(net, connection);
        connection_state_set(connection, CONNECTION_ENDING);
        end_within(net, connection, ENDING_MS);
        connection_update_interest(net, connection);
    } else if (connection->client.queue.head || connection->client.blocked || websocket_is_open(connection)) {
        connection_finish(net, connection, code, NULL);
    } else {
        connection_close(net, connection, code, NULL);
    }
}

void connection_answered(net_t *net, connection_t *connection) {
    if (connection->state == CONNECTION_ENDING && !connection->client.pending_commits)
        connection_finish(net, connection, connection->close_code, connection->close_detail);
}

void connection_all_sent(net_t *net, connection_t *connection) {
    if (!connection->transport->goodbye(net, connection)) {
        connection_close(net, connection, connection->close_code, connection->close_detail);
        return;
    }
    connection_state_set(connection, CONNECTION_LINGERING);
    end_within(net, connection, LINGER_MS);
    connection_update_interest(net, connection);
}

void connection_end_late(net_t *net, connection_t *connection) {
    if (connection->state == CONNECTION_ENDING)
        connection->close_detail = "its requests were not answered in time: the disk is slow or full";
    connection_close(net, connection, connection->close_code, connection->close_detail);
}

/* ---- failures ------------------------------------------------------------------------------------------------------ */

void connection_broken(net_t *net, connection_t *connection, int error) {
    if (error == ECONNRESET || error == EPIPE) {
        connection_close(net, connection, BQ_CLOSE_RESET, "the client reset the connection");
        return;
    }
    if (error == ENOMEM || error == ENOSPC) {
        connection_close(net, connection, BQ_CLOSE_RESET, "the system had no memory for the socket");
        return;
    }
    connection_close(net, connection, BQ_CLOSE_VANISHED, "the client's machine no longer answers");
}

/* The poller reports an error on a socket that is currently not read. After a reset, input that came earlier is still
 * processed when the pause ends, because a client may publish and close at once. Other errors end the connection now. */
void connection_error(net_t *net, connection_t *connection) {
    if (connection->away) return; /* reported again when it is back */
    int error = poll_socket_error(connection->fd);
    bool reset = !error || error == ECONNRESET || error == EPIPE;
    if (reset && connection->state == CONNECTION_OPEN && connection->client.pause && !connection->client.blocked) {
        connection->broken = true;
        connection_update_interest(net, connection);
    } else {
        connection_broken(net, connection, reset ? ECONNRESET : error);
    }
}

/* ---- endings that the broker decides ------------------------------------------------------------------------------- */

void connection_discard(net_t *net, connection_t *connection) {
    if (connection->state != CONNECTION_OPEN) return;
    net_run_close(net); /* the open run may hold messages for the queue that is emptied here */
    client_leave(&net->broker, &connection->client);
    net->broker.stats.dropped_disconnect +=
        queue_discard(&connection->client.queue, &net->broker.queues, connection_begun(connection));
}

void connection_need_hello(net_t *net, connection_t *connection) {
    if (connection->trusted || connection->client.acl || !connection->admitted) return;
    static const char why[] = "authentication is now required: reconnect with an API key";
    if (connection->hello && connection->state == CONNECTION_OPEN) {
        connection_discard(net, connection);
        connection->client.protocol->goodbye(&net->broker, &connection->client, BQ_CLOSE_UNAUTH, why);
        connection_finish(net, connection, BQ_CLOSE_UNAUTH, why);
    } else {
        connection_close(net, connection, BQ_CLOSE_UNAUTH, why);
    }
}

/* ---- freeing --------------------------------------------------------------------------------------------------------- */

/* Connections closed for being crowded out before Python knew them are only counted: there may be thousands. */
static bool worth_telling(const connection_t *connection) {
    return connection->known || (connection->close_code > BQ_CLOSE_RESET && connection->close_code != BQ_CLOSE_CROWDED);
}

static bool tell_closed(net_t *net, const connection_t *connection) {
    const char *detail = connection->close_detail ? connection->close_detail : "";
    bq_event_t event = {.type = BQ_EV_CLOSED,
                        .code = connection->close_code,
                        .conn = connection->client.handle,
                        .peer_port = connection->peer_port,
                        .text = (const uint8_t *)detail,
                        .text_size = (uint32_t)strlen(detail)};
    memcpy(event.peer, connection->peer, sizeof event.peer);
    return event_push(&net->broker, &event);
}

bool connection_free(net_t *net, connection_t *connection) {
    core_assert(connection->state == CONNECTION_DEAD && !connection->client.waiters.first);
    if (connection->away) return false;
    connection->transport->end(net, connection); /* first: free the descriptor even if the event must wait for space */
    connection_input_drop(net, connection);
    websocket_end(net, connection);
    if (connection->client.protocol->closed) connection->client.protocol->closed(&net->broker, &connection->client);
    /* It may have thousands of subscriptions and messages: the rest follows in the next turns. */
    if (!client_leave_some(&net->broker, &connection->client, net->ends_stop)) return false;
    /* Lists of this turn may still hold it. Its slot must not be reused before they have been processed. */
    if (connection->ready || connection->retrying || connection->client.dirty || connection->client.wal_waiting) return false;
    if (worth_telling(connection) && !tell_closed(net, connection)) return false;
    if (connection->refused)
        net->refused_count--;
    else
        net->open_count--;
    net->broker.stats.closed++;
    net->broker.stats.work += WORK_COMMAND;
    acl_unref(&net->broker.pool, connection->client.acl);
    connection->client.acl = NULL;
    connection_state_set(connection, CONNECTION_FREE);
    net->free_slots[net->free_count++] = (uint32_t)connection->client.handle;
    return true;
}
