/* net/keepalive.c: see net/keepalive.h. */
#include "net/net.h"
#include "net/transport.h"
#include "proto/protocol.h"

#define LOOKS 4u      /* checks of a watched connection per keepalive_ms */
#define LOOK_MAX 256u /* connections checked before other work continues */

void keepalive_socket(net_t *net, int fd) {
    if (net->broker.config.keepalive_ms) poll_keepalive(fd, net->broker.config.keepalive_ms);
}

/* ---- the keep-alive promise of a client --------------------------------------------------------------------------------- */

void keepalive_promise(net_t *net, connection_t *connection, uint64_t asked_ms) {
    uint64_t most_ms = net->broker.config.keepalive_ms, ms = asked_ms < KEEPALIVE_MIN_MS ? KEEPALIVE_MIN_MS : asked_ms;
    if (connection->hello) return; /* a second HELLO is refused */
    connection->keepalive_ms = asked_ms && most_ms ? (uint32_t)(ms < most_ms ? ms : most_ms) : 0;
}

static uint64_t silence_max_ms(const connection_t *connection) {
    return connection->keepalive_ms + connection->keepalive_ms / 2ull;
}

void keepalive_begin(net_t *net, connection_t *connection) {
    connection->heard_ms = net->broker.now_ms;
    if (connection->keepalive_ms && connection->state == CONNECTION_OPEN)
        timer_set(&net->broker, &connection->timer, silence_max_ms(connection));
}

/* true: there is input that the core has not read yet. Then the core is late, not the client. */
static bool input_waits(const connection_t *connection) {
    return connection->client.pause || connection->transport->input_waits(connection);
}

void keepalive_due(net_t *net, connection_t *connection) {
    uint64_t most_ms = silence_max_ms(connection);
    if (input_waits(connection)) connection->heard_ms = net->broker.now_ms;
    uint64_t silent_ms = net->broker.now_ms - connection->heard_ms;
    if (silent_ms < most_ms) {
        connection->grace = false;
        timer_set(&net->broker, &connection->timer, most_ms - silent_ms);
    } else if (connection->transport->transit_ms && !connection->grace) {
        connection->grace = true;
        timer_set(&net->broker, &connection->timer, connection->transport->transit_ms);
    } else {
        const protocol_ops_t *protocol = connection->client.protocol;
        if (protocol->goodbye(&net->broker, &connection->client, BQ_CLOSE_SILENT, protocol->silent))
            connection_finish(net, connection, BQ_CLOSE_SILENT, protocol->silent);
        else
            connection_close(net, connection, BQ_CLOSE_SILENT, protocol->silent);
    }
}

/* ---- unacknowledged output ----------------------------------------------------------------------------------------------- */

static void list_append(keepalive_t *keepalive, connection_t *connection) {
    connection->watched_next = NULL;
    connection->watched_previous = keepalive->watched_last;
    *(keepalive->watched_last ? &keepalive->watched_last->watched_next : &keepalive->watched_first) = connection;
    keepalive->watched_last = connection;
}

static void list_remove(keepalive_t *keepalive, connection_t *connection) {
    connection_t *next = connection->watched_next, *previous = connection->watched_previous;
    *(previous ? &previous->watched_next : &keepalive->watched_first) = next;
    *(next ? &next->watched_previous : &keepalive->watched_last) = previous;
}

/* One round over all watched connections takes keepalive_ms / LOOKS, however many there are. */
static void look_later(net_t *net) {
    keepalive_t *keepalive = &net->keepalive;
    uint64_t round_ms = net->broker.config.keepalive_ms / LOOKS, count = keepalive->watched_count;
    wheel_remove(&net->broker.wheel, &keepalive->timer.wheel);
    if (count && round_ms) timer_set(&net->broker, &keepalive->timer, count > LOOK_MAX ? round_ms * LOOK_MAX / count : round_ms);
}

void keepalive_changed(net_t *net) { look_later(net); }

NOINLINE void keepalive_watch(net_t *net, connection_t *connection) {
    keepalive_t *keepalive = &net->keepalive;
    if (connection->watched || !connection->transport->acknowledged) return;
    if (!net->broker.config.keepalive_ms || connection->state == CONNECTION_DEAD) return;
    connection->watched = true;
    connection->doubt_ms = 0;
    list_append(keepalive, connection);
    if (!keepalive->watched_count++) look_later(net);
}

void keepalive_unwatch(net_t *net, connection_t *connection) {
    if (!connection->watched) return;
    connection->watched = false;
    list_remove(&net->keepalive, connection);
    net->keepalive.watched_count--;
}

/* Doubt starts at the first check that finds the last transmission unacknowledged; any acknowledgement ends it. The
 * connection is closed only if the doubt lasts, also longer than a transmission that started later: one packet may be lost,
 * and the next may be sent minutes later. */
static void look_at(net_t *net, connection_t *connection) {
    uint32_t quiet_ms, sent_ms;
    int owed = poll_unacknowledged(connection->fd, &quiet_ms, &sent_ms);
    if (owed < 0 || owed == POLL_ALL_ACKNOWLEDGED) {
        keepalive_unwatch(net, connection);
        return;
    }
    uint64_t doubted_ms = net->broker.now_ms - connection->doubt_ms;
    if (owed == POLL_ANSWERING) {
        connection->doubt_ms = 0;
    } else if (!connection->doubt_ms || quiet_ms < doubted_ms) {
        connection->doubt_ms = net->broker.now_ms;
    } else if (doubted_ms >= net->broker.config.keepalive_ms / LOOKS * (LOOKS - 1ull) && sent_ms < doubted_ms) {
        connection_close(net, connection, BQ_CLOSE_VANISHED,
                         "the client's machine acknowledged no output for server.keepalive_ms");
    }
}

void keepalive_look(net_t *net) {
    keepalive_t *keepalive = &net->keepalive;
    uint32_t count = keepalive->watched_count < LOOK_MAX ? keepalive->watched_count : LOOK_MAX;
    while (count-- && keepalive->watched_first) {
        connection_t *connection = keepalive->watched_first;
        list_remove(keepalive, connection);
        list_append(keepalive, connection);
        look_at(net, connection);
    }
    look_later(net);
}
