/* net/connection_end.c: how a connection ends. net/connection.h shows the states.
 *
 * After QUIT or end of file a client may still read. Its earlier requests are answered, also when an answer waits for the disk,
 * and the connection closes after the last answer. A reset ends a connection at once.
 *
 * Invariants: when a connection leaves CONNECTION_OPEN, it leaves its routes, groups and consumers at the same moment. So no
 * message waits for a client that cannot acknowledge it. ENDING, CLOSING and LINGERING each have a timer, so a client that does
 * not read cannot keep its descriptor.
 */
#include "core.h"
#include "proto/protocol.h"
#include "net/transport.h"

#include <errno.h>

#define CLEAR_ENTRIES 64u

/* ---- states -------------------------------------------------------------------------------------------------------- */

void connection_close(bq_t *bq, connection_t *connection, uint8_t code, const char *detail) {
    if (connection->state == CONNECTION_DEAD || connection->state == CONNECTION_FREE) return;
    if (connection->state == CONNECTION_OPEN) { /* a connection that is already ending keeps its first reason */
        connection->close_code = code;
        connection->close_detail = detail;
        bq->stats.closed_silent += code == BQ_CLOSE_SILENT;
        bq->stats.closed_vanished += code == BQ_CLOSE_VANISHED;
    }
    connection->state = CONNECTION_DEAD;
    connection->transport->silence(bq, connection);
    wheel_remove(&bq->wheel, &connection->timer.wheel);
    admission_leave(bq, connection);
    wait_end(bq, connection);
    connection_release_waiters(bq, connection);
    keepalive_unwatch(bq, connection);
    connection->dead_next = bq->dead;
    bq->dead = connection;
}

/* A connection that was never admitted has no more time to end than it had left to be admitted. */
static void end_within(bq_t *bq, connection_t *connection, uint64_t after_ms) {
    if (connection->unadmitted)
        core_timer_cut(bq, &connection->timer, after_ms);
    else
        core_timer_set(bq, &connection->timer, after_ms);
}

/* QoS 1 deliveries of which no byte has been sent go to other members or are redelivered, because this client cannot acknowledge
 * them. QoS 0 messages stay in the queue, in order with the answers. */
static void leave(bq_t *bq, connection_t *connection) {
    connection_release_waiters(bq, connection);
    while (connection->subscriptions) route_leave(bq->routes, connection->subscriptions);
    connection->subscription_count = 0;
    consumer_leave_all(bq, connection);
    queue_drop_kept(&connection->queue, &bq->queues, connection->blocked);
}

void connection_finish(bq_t *bq, connection_t *connection, uint8_t code, const char *detail) {
    if (connection->state != CONNECTION_OPEN && connection->state != CONNECTION_ENDING) return;
    if (connection->state == CONNECTION_OPEN) {
        connection->close_code = code;
        connection->close_detail = detail;
        leave(bq, connection);
    }
    connection->state = CONNECTION_CLOSING;
    end_within(bq, connection, CLOSING_MS);
    connection_mark_dirty(bq, connection, FLUSH_NARROW);
    connection_update_interest(bq, connection);
}

void connection_input_ended(bq_t *bq, connection_t *connection, uint8_t code) {
    publish_run_close(bq); /* the open run may hold messages for this client */
    if (connection->state != CONNECTION_OPEN) return;
    if (connection->hello && connection->pending_commits) {
        connection->close_code = code;
        connection->close_detail = NULL;
        leave(bq, connection);
        connection->state = CONNECTION_ENDING;
        end_within(bq, connection, ENDING_MS);
        connection_update_interest(bq, connection);
    } else if (connection->queue.head || connection->blocked) {
        connection_finish(bq, connection, code, NULL);
    } else {
        connection_close(bq, connection, code, NULL);
    }
}

void connection_answered(bq_t *bq, connection_t *connection) {
    if (connection->state == CONNECTION_ENDING && !connection->pending_commits)
        connection_finish(bq, connection, connection->close_code, connection->close_detail);
}

void connection_all_sent(bq_t *bq, connection_t *connection) {
    if (!connection->transport->goodbye(bq, connection)) {
        connection_close(bq, connection, connection->close_code, connection->close_detail);
        return;
    }
    connection->state = CONNECTION_LINGERING;
    end_within(bq, connection, LINGER_MS);
    connection_update_interest(bq, connection);
}

void connection_end_late(bq_t *bq, connection_t *connection) {
    if (connection->state == CONNECTION_ENDING)
        connection->close_detail = "its requests were not answered in time: the disk is slow or full";
    connection_close(bq, connection, connection->close_code, connection->close_detail);
}

/* ---- failures ------------------------------------------------------------------------------------------------------ */

void connection_broken(bq_t *bq, connection_t *connection, int error) {
    if (error == ECONNRESET || error == EPIPE) {
        connection_close(bq, connection, BQ_CLOSE_RESET, "the client reset the connection");
        return;
    }
    if (error == ENOMEM || error == ENOSPC) {
        connection_close(bq, connection, BQ_CLOSE_RESET, "the system had no memory for the socket");
        return;
    }
    connection_close(bq, connection, BQ_CLOSE_VANISHED, "the client's machine no longer answers");
}

/* The poller reports an error on a socket that is currently not read. After a reset, input that came earlier is still
 * processed when the pause ends, because a client may publish and close at once. Other errors end the connection now. */
void connection_error(bq_t *bq, connection_t *connection) {
    if (connection->away) return; /* reported again when it is back */
    int error = poll_socket_error(connection->fd);
    bool reset = !error || error == ECONNRESET || error == EPIPE;
    if (reset && connection->state == CONNECTION_OPEN && connection->pause && !connection->blocked) {
        connection->broken = true;
        connection_update_interest(bq, connection);
    } else {
        connection_broken(bq, connection, reset ? ECONNRESET : error);
    }
}

/* ---- endings that the broker decides ------------------------------------------------------------------------------- */

void connection_discard(bq_t *bq, connection_t *connection) {
    if (connection->state != CONNECTION_OPEN) return;
    publish_run_close(bq); /* the open run may hold messages for the queue that is emptied here */
    while (connection->subscriptions) route_leave(bq->routes, connection->subscriptions);
    connection->subscription_count = 0;
    consumer_leave_all(bq, connection);
    bq->stats.dropped_disconnect += queue_discard(&connection->queue, &bq->queues, connection->blocked);
}

void connection_need_hello(bq_t *bq, connection_t *connection) {
    if (connection->trusted || connection->acl || !connection->admitted) return;
    static const char why[] = "authentication is now required: reconnect with an API key";
    if (connection->hello && connection->state == CONNECTION_OPEN) {
        connection_discard(bq, connection);
        connection->protocol->answer(bq, connection, 0, BQ_OUTCOME_UNAUTHENTICATED, why);
        connection_finish(bq, connection, BQ_CLOSE_UNAUTH, why);
    } else {
        connection_close(bq, connection, BQ_CLOSE_UNAUTH, why);
    }
}

/* ---- freeing --------------------------------------------------------------------------------------------------------- */

/* Connections closed for being crowded out before Python knew them are only counted: there may be thousands. */
static bool worth_telling(const connection_t *connection) {
    return connection->known || (connection->close_code > BQ_CLOSE_RESET && connection->close_code != BQ_CLOSE_CROWDED);
}

static bool tell_closed(bq_t *bq, const connection_t *connection) {
    const char *detail = connection->close_detail ? connection->close_detail : "";
    bq_event_t event = {.type = BQ_EV_CLOSED,
                        .code = connection->close_code,
                        .conn = connection->handle,
                        .peer_port = connection->peer_port,
                        .text = (const uint8_t *)detail,
                        .text_size = (uint32_t)strlen(detail)};
    memcpy(event.peer, connection->peer, sizeof event.peer);
    return event_push(bq, &event);
}

/* Drop its routes, consumers and queue (maybe thousands) within the work limit of the turn. false: continue next turn. */
static bool let_go(bq_t *bq, connection_t *connection) {
    while (connection->subscriptions && work_done(bq) < bq->ends_stop) route_leave(bq->routes, connection->subscriptions);
    while (connection->members && work_done(bq) < bq->ends_stop) consumer_leave_one(bq, connection);
    while (connection->queue.head && work_done(bq) < bq->ends_stop) {
        bq->stats.dropped_disconnect += queue_clear(&connection->queue, &bq->queues, CLEAR_ENTRIES);
        bq->stats.work += CLEAR_ENTRIES;
    }
    return !connection->subscriptions && !connection->members && !connection->queue.head;
}

bool connection_free(bq_t *bq, connection_t *connection) {
    core_assert(connection->state == CONNECTION_DEAD && !connection->waiters.first);
    if (connection->away) return false;
    connection->transport->end(bq, connection); /* first: free the descriptor even if the event must wait for space */
    connection_input_drop(bq, connection);
    if (!let_go(bq, connection)) return false;
    /* Lists of this turn may still hold it. Its slot must not be reused before they have been processed. */
    if (connection->ready || connection->retrying || connection->dirty || connection->wal_waiting) return false;
    if (worth_telling(connection) && !tell_closed(bq, connection)) return false;
    if (connection->refused)
        bq->refused_count--;
    else
        bq->open_count--;
    bq->stats.closed++;
    bq->stats.work += WORK_COMMAND;
    acl_unref(&bq->pool, connection->acl);
    connection->acl = NULL;
    connection->state = CONNECTION_FREE;
    bq->free_slots[bq->free_count++] = (uint32_t)connection->handle;
    return true;
}
