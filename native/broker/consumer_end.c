/* broker/consumer_end.c: see broker/consumer_end.h. */
#include "broker/consumer_internal.h"
#include "broker/commit.h"
#include "core.h"
#include "broker/consumer_end.h"
#include "proto/protocol.h"

/* A subscription without a group is in the routes for QoS 0 too. */
static void members_part(bq_t *bq, session_t *session) {
    for (member_t *member = session->members; member; member = member->next) {
        connection_t *connection = member->connection;
        if (!session->grouped &&
            route_unsubscribe(bq->routes, connection, connection->subscriptions, session->text, session->filter_size)) {
            connection->subscription_count--;
            connection_release_waiters(bq, connection);
        }
        connection->protocol->ended(bq, connection, session->text, session->filter_size, session_group(session),
                                    session->group_size);
        event_unsubscribed(bq, connection, session->text, session->filter_size, session_group(session), session->group_size,
                           BQ_OUTCOME_ENDED);
    }
}

static void end_append(bq_t *bq, session_end_t *end) {
    session_end_t **at = &bq->sessions.ending;
    while (*at) at = &(*at)->next;
    *at = end;
}

/* The whole of it. Its LSN, or what log_append says. */
static int64_t end_all(bq_t *bq, session_t *session) {
    log_part_t part = {&session->id, sizeof session->id};
    int64_t lsn = log_append(bq->log, LOG_SESSION_END, 0, &part, 1, true);
    if (lsn <= 0) return lsn;
    members_part(bq, session);
    session_free(bq, session);
    return lsn;
}

/* One client_id of a group. With the last one the group is durable no more. *outcome: why not. */
static int64_t end_holder(bq_t *bq, session_t *session, const uint8_t *client_id, uint32_t size, enum bq_outcome *outcome) {
    const holder_t *found = NULL;
    uint32_t count = 0;
    for (const holder_t *holder = session->holders; holder; holder = holder->next) {
        if (!session_client_is(holder->client_id, holder->size, client_id, size)) continue;
        found = holder;
        count++;
    }
    *outcome = count ? BQ_OUTCOME_INVALID : BQ_OUTCOME_NOT_FOUND;
    if (count != 1) return 0;
    uint8_t texts[FRAME_TOPIC_BYTES_MAX + REQUEST_BYTES_MAX]; /* a copy: the session may end with it */
    if (session->group_size > REQUEST_BYTES_MAX) return 0;
    memcpy(texts, session->text, session->filter_size);
    memcpy(texts + session->filter_size, session_group(session), session->group_size);
    uint8_t identity[REQUEST_BYTES_MAX];
    if (found->size > sizeof identity) return 0;
    memcpy(identity, found->client_id, found->size);
    session_request_t request = {.filter = texts,
                                 .filter_size = session->filter_size,
                                 .group = texts + session->filter_size,
                                 .group_size = session->group_size,
                                 .client_id = identity,
                                 .client_id_size = found->size};
    int64_t lsn = session_log_leave(bq, &request);
    *outcome = BQ_OUTCOME_UNAVAILABLE;
    if (lsn > 0) session_holders_end(bq, &request, UINT64_MAX, true);
    return lsn;
}

bool session_end_by_id(bq_t *bq, uint64_t seq, uint64_t id, const uint8_t *client_id, uint32_t client_id_size) {
    session_end_t *end = pool_take(&bq->pool, sizeof *end);
    if (!end) return false;
    *end = (session_end_t){.seq = seq, .outcome = BQ_OUTCOME_NOT_FOUND};
    end_append(bq, end);
    session_t *session = id ? session_by_id(bq, id) : NULL;
    if (!session || !session->durable) return true;
    end->outcome = BQ_OUTCOME_UNAVAILABLE;
    int64_t lsn = client_id_size && session->grouped ? end_holder(bq, session, client_id, client_id_size, &end->outcome)
                                                     : end_all(bq, session);
    if (lsn <= 0) return true;
    end->outcome = BQ_OUTCOME_DONE;
    end->lsn = (uint64_t)lsn;
    bq->commit_wanted = true;
    return true;
}

static bool on_disk(const bq_t *bq, const session_end_t *end) { return !end->lsn || log_durable(bq->log) >= end->lsn; }

void session_end_turn(bq_t *bq) {
    session_end_t *end;
    while ((end = bq->sessions.ending)) {
        bool lost = !on_disk(bq, end) && log_state(bq->log) == LOG_E_FAILED;
        if (!on_disk(bq, end) && !lost) return;
        enum bq_outcome outcome = lost ? BQ_OUTCOME_UNAVAILABLE : end->outcome;
        if (!event_push(bq, &(bq_event_t){.type = BQ_EV_SESSION_ENDED, .seq = end->seq, .code = (uint16_t)outcome})) return;
        bq->sessions.ending = end->next;
        pool_give(&bq->pool, end, sizeof *end);
    }
}

bool session_end_waits(const bq_t *bq) { return bq->sessions.ending && on_disk(bq, bq->sessions.ending); }

void session_end_release(bq_t *bq) {
    while (bq->sessions.ending) {
        session_end_t *end = bq->sessions.ending;
        bq->sessions.ending = end->next;
        pool_give(&bq->pool, end, sizeof *end);
    }
}
