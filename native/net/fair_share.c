/* net/fair_share.c: see net/fair_share.h for the rules and the invariant. */
#include "net/net.h"

static void list_init(connection_list_t *list) { *list = (connection_list_t){.tail = &list->first}; }

void share_init(net_t *net) {
    list_init(&net->share.light);
    list_init(&net->share.line);
}

void share_line_up(net_t *net, connection_t *connection) {
    if (connection->ready) return;
    connection_list_t *list = connection->heavy ? &net->share.line : &net->share.light;
    connection->ready = true;
    connection->ready_next = NULL;
    *list->tail = connection;
    list->tail = &connection->ready_next;
}

void share_end(net_t *net, connection_t *connection, uint64_t used) {
    connection->heavy = true;
    if (used > net->broker.config.work_share) connection->debt += used - net->broker.config.work_share;
    if (!(connection->client.pause & PAUSE_SHARE)) return;
    if (connection->client.pause == PAUSE_SHARE)
        share_line_up(net, connection);
    else
        connection->client.pause &= (uint8_t)~PAUSE_SHARE; /* it also waits for something else, and lines up after that */
}

/* Input that is already there is processed before the socket is read. */
void share_wait(net_t *net, connection_t *connection) {
    if (connection->ready) { /* poller updated only now: most wait only until the end of this turn */
        if (connection->client.pause) connection_update_interest(net, connection);
    } else if (connection->client.pause || connection->state != CONNECTION_OPEN) {
        connection_readable(net, connection);
    } else {
        connection->client.pause |= PAUSE_SHARE;
        connection->unread = true;
        share_line_up(net, connection);
    }
}

void share_go_on(net_t *net, connection_t *connection) {
    if (!connection->heavy) {
        uint64_t begun = share_begin(net);
        connection_continue(net, connection);
        share_done(net, connection, begun);
    } else if (!connection->client.pause && connection->state == CONNECTION_OPEN) {
        connection->client.pause |= PAUSE_SHARE;
        share_line_up(net, connection);
    }
}

static void serve(net_t *net, connection_t *connection) {
    bool unread = connection->unread;
    connection->ready = connection->unread = connection->heavy = false;
    connection->client.pause &= (uint8_t)~PAUSE_SHARE;
    uint64_t begun = share_begin(net);
    connection_continue(net, connection);
    if (unread && connection->state == CONNECTION_OPEN && !connection->client.pause) connection_readable(net, connection);
    share_done(net, connection, begun);
}

static connection_t *list_pop(connection_list_t *list) {
    connection_t *connection = list->first;
    list->first = connection->ready_next;
    if (!list->first) list->tail = &list->first;
    return connection;
}

void share_run_light(net_t *net) {
    const uint64_t stop = work_done(&net->broker) + WORK_LIGHT * (uint64_t)net->broker.config.work_share;
    while (net->share.light.first && work_done(&net->broker) < stop) serve(net, list_pop(&net->share.light));
}

/* Skip one share because of earlier debt. Returns the amount paid. */
static uint64_t pay(net_t *net, connection_t *connection) {
    const uint64_t share = net->broker.config.work_share, paid = connection->debt < share ? connection->debt : share;
    connection->debt -= paid;
    connection->ready = false;
    share_line_up(net, connection);
    return paid;
}

void share_run_line(net_t *net) {
    uint64_t left = WORK_LINE * (uint64_t)net->broker.config.work_share, used;
    for (; net->share.line.first && left; left -= used < left ? used : left) {
        connection_t *connection = list_pop(&net->share.line);
        const uint64_t begun = work_done(&net->broker);
        if (connection->debt && connection->state == CONNECTION_OPEN) {
            used = pay(net, connection);
        } else {
            serve(net, connection);
            used = work_done(&net->broker) - begun + 1;
        }
    }
}
