/* net/fair_share.c: see net/fair_share.h for the rules and the invariant. */
#include "core.h"

static void list_init(connection_list_t *list) { *list = (connection_list_t){.tail = &list->first}; }

void share_init(bq_t *bq) {
    list_init(&bq->share.light);
    list_init(&bq->share.line);
}

void share_line_up(bq_t *bq, connection_t *connection) {
    if (connection->ready) return;
    connection_list_t *list = connection->heavy ? &bq->share.line : &bq->share.light;
    connection->ready = true;
    connection->ready_next = NULL;
    *list->tail = connection;
    list->tail = &connection->ready_next;
}

void share_end(bq_t *bq, connection_t *connection, uint64_t used) {
    connection->heavy = true;
    if (used > bq->config.work_share) connection->debt += used - bq->config.work_share;
    if (!(connection->pause & PAUSE_SHARE)) return;
    if (connection->pause == PAUSE_SHARE)
        share_line_up(bq, connection);
    else
        connection->pause &= (uint8_t)~PAUSE_SHARE; /* it also waits for something else, and lines up after that */
}

/* Input that is already there is processed before the socket is read. */
void share_wait(bq_t *bq, connection_t *connection) {
    if (connection->ready) { /* poller updated only now: most wait only until the end of this turn */
        if (connection->pause) connection_update_interest(bq, connection);
    } else if (connection->pause || connection->state != CONNECTION_OPEN) {
        connection_readable(bq, connection);
    } else {
        connection->pause |= PAUSE_SHARE;
        connection->unread = true;
        share_line_up(bq, connection);
    }
}

void share_go_on(bq_t *bq, connection_t *connection) {
    if (!connection->heavy) {
        uint64_t begun = share_begin(bq);
        connection_continue(bq, connection);
        share_done(bq, connection, begun);
    } else if (!connection->pause && connection->state == CONNECTION_OPEN) {
        connection->pause |= PAUSE_SHARE;
        share_line_up(bq, connection);
    }
}

static void serve(bq_t *bq, connection_t *connection) {
    bool unread = connection->unread;
    connection->ready = connection->unread = connection->heavy = false;
    connection->pause &= (uint8_t)~PAUSE_SHARE;
    uint64_t begun = share_begin(bq);
    connection_continue(bq, connection);
    if (unread && connection->state == CONNECTION_OPEN && !connection->pause) connection_readable(bq, connection);
    share_done(bq, connection, begun);
}

static connection_t *list_pop(connection_list_t *list) {
    connection_t *connection = list->first;
    list->first = connection->ready_next;
    if (!list->first) list->tail = &list->first;
    return connection;
}

void share_run_light(bq_t *bq) {
    const uint64_t stop = work_done(bq) + WORK_LIGHT * (uint64_t)bq->config.work_share;
    while (bq->share.light.first && work_done(bq) < stop) serve(bq, list_pop(&bq->share.light));
}

/* Skip one share because of earlier debt. Returns the amount paid. */
static uint64_t pay(bq_t *bq, connection_t *connection) {
    const uint64_t share = bq->config.work_share, paid = connection->debt < share ? connection->debt : share;
    connection->debt -= paid;
    connection->ready = false;
    share_line_up(bq, connection);
    return paid;
}

void share_run_line(bq_t *bq) {
    uint64_t left = WORK_LINE * (uint64_t)bq->config.work_share, used;
    for (; bq->share.line.first && left; left -= used < left ? used : left) {
        connection_t *connection = list_pop(&bq->share.line);
        const uint64_t begun = work_done(bq);
        if (connection->debt && connection->state == CONNECTION_OPEN) {
            used = pay(bq, connection);
        } else {
            serve(bq, connection);
            used = work_done(bq) - begun + 1;
        }
    }
}
