/* broker/session.c: see broker/session.h. */
#include "broker/session.h"
#include "broker/broker.h"
#include "broker/commit.h"
#include "broker/consumer_internal.h"
#include "proto/protocol.h"

#define FILTERS_MIN 2u

/* ---- filters ----------------------------------------------------------------------------------------------------- */

bool session_begin(broker_t *broker, consumer_t *consumer) {
    session_t *session = pool_alloc(&broker->pool, sizeof *session);
    if (!session) return false;
    *session = (session_t){0};
    consumer->session = session;
    consumer->qos = 0;
    return true;
}

static consumer_filter_t *filter_alloc(broker_t *broker, consumer_t *consumer) {
    if (!consumer->filter.filter) return &consumer->filter;
    consumer_filter_t *filter = pool_alloc(&broker->pool, sizeof *filter);
    if (filter) route_count_bytes(broker->routes, (int64_t)pool_good_size(sizeof *filter));
    return filter;
}

static void filter_free(broker_t *broker, consumer_t *consumer, consumer_filter_t *filter) {
    filter->filter = NULL;
    if (filter == &consumer->filter) return;
    pool_free(&broker->pool, filter, sizeof *filter);
    route_count_bytes(broker->routes, -(int64_t)pool_good_size(sizeof *filter));
}

static bool filters_reserve(broker_t *broker, session_t *session) {
    if (session->filter_count < session->filter_capacity) return true;
    uint32_t capacity = session->filter_capacity ? session->filter_capacity * 2 : FILTERS_MIN;
    size_t old_bytes = session->filter_capacity * sizeof *session->filters, bytes = capacity * sizeof *session->filters;
    consumer_filter_t **filters = pool_resize(&broker->pool, session->filters, old_bytes, bytes);
    if (!filters) return false;
    session->filters = filters;
    session->filter_capacity = capacity;
    return true;
}

static void qos_update(consumer_t *consumer) {
    const session_t *session = consumer->session;
    uint8_t qos = 0;
    for (uint32_t i = 0; i < session->filter_count; i++)
        if (session->filters[i]->qos > qos) qos = (uint8_t)session->filters[i]->qos;
    consumer->qos = qos;
}

void session_filter_set(broker_t *broker, consumer_filter_t *filter, const consumer_request_t *request) {
    publish_run_closed(broker);
    filter->qos = request->qos;
    filter->no_local = request->no_local;
    filter->retain_as_published = request->retain_as_published;
    filter->subscription_id = request->subscription_id;
    qos_update(filter->consumer);
}

consumer_filter_t *session_filter_add(broker_t *broker, consumer_t *consumer, const consumer_request_t *request) {
    session_t *session = consumer->session;
    consumer_filter_t *filter = filters_reserve(broker, session) ? filter_alloc(broker, consumer) : NULL;
    if (!filter) return NULL;
    *filter = (consumer_filter_t){.consumer = consumer};
    if (route_consumer(broker->routes, filter, request->filter, request->filter_size) < 0) {
        filter_free(broker, consumer, filter);
        return NULL;
    }
    session->filters[session->filter_count++] = filter;
    session_filter_set(broker, filter, request);
    return filter;
}

void session_filter_remove(broker_t *broker, consumer_t *consumer, consumer_filter_t *filter) {
    session_t *session = consumer->session;
    uint32_t index = 0;
    while (session->filters[index] != filter) index++;
    session->filters[index] = session->filters[--session->filter_count];
    route_consumer_leave(broker->routes, filter);
    filter_free(broker, consumer, filter);
    qos_update(consumer);
}

/* Walks the session's filters and the consumers of the filter in step, so that the shorter list limits the search. */
consumer_filter_t *session_filter_find(const broker_t *broker, const consumer_t *consumer, const uint8_t *text, uint32_t size) {
    const session_t *session = consumer->session;
    consumer_filter_t *of_text;
    for (uint32_t i = 0; i < session->filter_count; i++) {
        consumer_filter_t *own = session->filters[i];
        if (!(of_text = route_consumer_at(broker->routes, text, size, i))) return NULL;
        if (of_text->consumer == consumer) return of_text;
        if (own->filter == of_text->filter) return own;
    }
    return NULL;
}

void session_release(broker_t *broker, consumer_t *consumer) {
    session_t *session = consumer->session;
    while (session->filter_count) {
        consumer_filter_t *filter = session->filters[--session->filter_count];
        route_consumer_leave(broker->routes, filter);
        filter_free(broker, consumer, filter);
    }
    pool_free(&broker->pool, session->filters, session->filter_capacity * sizeof *session->filters);
    pool_free(&broker->pool, session, sizeof *session);
    consumer->session = NULL;
}

bool session_matches(const session_t *session, uint64_t lsn, const uint8_t *topic, uint32_t size) {
    for (uint32_t i = 0; i < session->filter_count; i++) {
        const consumer_filter_t *filter = session->filters[i];
        if (filter->qos && lsn > filter->born_lsn && route_consumer_matches(filter, topic, size)) return true;
    }
    return false;
}

/* ---- requests ---------------------------------------------------------------------------------------------------- */

/* The name of a session is that of a consumer with an empty filter, which no other consumer has. */
static consumer_request_t named(const consumer_request_t *request) {
    return (consumer_request_t){.filter = request->client_id,
                                .client_id = request->client_id,
                                .client_id_size = request->client_id_size,
                                .durable = request->durable,
                                .keyed = request->keyed,
                                .session = true};
}

/* Writes the record of a new session and gives it an id. False: no room. */
static bool session_log(broker_t *broker, consumer_t *consumer, const consumer_request_t *request) {
    uint64_t id = session_id_next(broker);
    registration_t *registration = registration_new(broker, request->client_id, request->client_id_size, id);
    int64_t lsn = registration ? session_open_append(broker, id, request->client_id, request->client_id_size) : 0;
    if (lsn <= 0) {
        if (registration) registration_drop(broker, registration);
        return false;
    }
    consumer->session->record_lsn = registration->record_lsn = (uint64_t)lsn;
    registration_enter(broker, consumer, registration);
    consumer_id_assign(broker, consumer, id);
    consumer->floor_lsn = (uint64_t)lsn;
    consumer_floor_begin(consumer, (uint64_t)lsn, (uint64_t)lsn);
    broker->commit_wanted = true;
    return true;
}

/* The session of the client, a new one if there is none, with the client as a member. NULL: the request was refused. */
static consumer_t *session_open(broker_t *broker, client_t *client, uint64_t seq, const consumer_request_t *request) {
    consumer_request_t name = named(request);
    consumer_t *consumer = consumer_find(broker, client, &name);
    if (consumer && member_find(consumer, client)) return consumer;
    const char *over = consumer ? NULL : consumer_over_limits(broker, request);
    if (over) {
        consumer_refuse(broker, client, seq, BQ_OUTCOME_LIMIT, over);
        return NULL;
    }
    bool fresh = !consumer;
    if (fresh) consumer = consumer_new(broker, &name, request->durable ? 0 : client->handle);
    member_t *member = consumer ? member_add(broker, consumer, client) : NULL;
    if (!member || (fresh && request->durable && !session_log(broker, consumer, request))) {
        if (fresh && consumer) consumer_free(broker, consumer);
        consumer_refuse(broker, client, seq, BQ_OUTCOME_UNAVAILABLE, CONSUMER_NO_ROOM);
        return NULL;
    }
    member->qos = 1;
    return consumer;
}

static void end_if_unused(broker_t *broker, consumer_t *consumer) {
    if (!consumer->durable && !consumer->session->filter_count) consumer_free(broker, consumer);
}

static bool is_as_asked(const consumer_filter_t *filter, const consumer_request_t *request) {
    return filter->qos == request->qos && filter->no_local == request->no_local &&
           filter->retain_as_published == request->retain_as_published && filter->subscription_id == request->subscription_id;
}

/* Found at the start, but not synced yet because the disk is full: an answer now could be wrong after a power cut. */
static bool in_doubt(const broker_t *broker, const session_t *session) {
    return broker->dispatched_lsn < broker->found_lsn && session->record_lsn > broker->dispatched_lsn;
}

/* Queues the answer behind the session's newest record. False: no memory. */
static bool answer_wait(broker_t *broker, client_t *client, uint64_t seq, const consumer_t *consumer,
                        const consumer_request_t *request, uint8_t undo) {
    pending_commit_t *pending = commit_answer_new(broker, client, seq, PENDING_SUBACK, request->filter, request->filter_size, 0);
    if (!pending) return false;
    uint64_t lsn = consumer->session->record_lsn;
    pending->undo = undo;
    commit_answer_wait(broker, client, pending, lsn > broker->pending_last_lsn ? lsn : broker->pending_last_lsn);
    return true;
}

/* Adds or changes the filter of a durable session. False: no room; nothing has changed. */
static bool filter_log(broker_t *broker, client_t *client, uint64_t seq, consumer_t *consumer, consumer_filter_t *filter,
                       const consumer_request_t *request, uint8_t undo) {
    bool fresh = !filter, begins = request->qos && (fresh || !filter->qos);
    if (fresh && !(filter = session_filter_add(broker, consumer, request))) return false;
    pending_commit_t *pending = commit_answer_new(broker, client, seq, PENDING_SUBACK, request->filter, request->filter_size, 0);
    int64_t lsn = pending ? session_filter_append(broker, consumer, request) : 0;
    if (lsn <= 0) {
        if (pending) commit_answer_drop(broker, pending);
        if (fresh) session_filter_remove(broker, consumer, filter);
        return false;
    }
    pending->undo = undo | (fresh ? PENDING_UNDO_FILTER : 0);
    commit_answer_wait(broker, client, pending, (uint64_t)lsn);
    if (begins) filter->born_lsn = (uint64_t)lsn;
    consumer->session->record_lsn = (uint64_t)lsn;
    session_filter_set(broker, filter, request);
    return true;
}

/* The same for a session that is not durable, which needs no filter of QoS 0. False: no memory. */
static bool filter_change(broker_t *broker, consumer_t *consumer, consumer_filter_t *filter, const consumer_request_t *request) {
    if (filter && request->qos)
        session_filter_set(broker, filter, request);
    else if (filter)
        session_filter_remove(broker, consumer, filter);
    else if (request->qos)
        return session_filter_add(broker, consumer, request) != NULL;
    return true;
}

bool session_subscribe(broker_t *broker, client_t *client, uint64_t seq, const consumer_request_t *request, bool route_new,
                       bool *remains) {
    const uint8_t undo = route_new ? PENDING_UNDO_ROUTE : 0;
    *remains = false;
    consumer_t *consumer = session_open(broker, client, seq, request);
    if (!consumer) return false;
    consumer_filter_t *filter = session_filter_find(broker, consumer, request->filter, request->filter_size);
    *remains = filter != NULL;
    if (in_doubt(broker, consumer->session))
        return consumer_refuse(broker, client, seq, BQ_OUTCOME_UNAVAILABLE, CONSUMER_NO_ROOM);
    bool logs = consumer->durable && !(filter && is_as_asked(filter, request));
    bool idle = !consumer->qos;
    bool done = logs ? filter_log(broker, client, seq, consumer, filter, request, undo)
                     : consumer->durable || filter_change(broker, consumer, filter, request);
    if (!done) {
        end_if_unused(broker, consumer);
        return consumer_refuse(broker, client, seq, BQ_OUTCOME_UNAVAILABLE, CONSUMER_NO_ROOM);
    }
    *remains = true;
    if (idle && consumer->qos) consumer_floor_update(broker, consumer); /* nothing older is for it */
    if (logs) return true;
    bool unsure = consumer->durable && consumer->session->record_lsn > wal_durable(broker->wal);
    if (unsure && answer_wait(broker, client, seq, consumer, request, undo)) return true;
    end_if_unused(broker, consumer);
    client->protocol->subscribed(broker, client, seq, request->filter, request->filter_size);
    client_resume(broker, client, PAUSE_ANSWER);
    return true;
}

void session_subscribe_undo(broker_t *broker, client_t *client, const uint8_t *text, uint32_t size) {
    for (member_t *member = client->members, *next; member; member = next) {
        consumer_t *consumer = member->consumer;
        next = member->client_next;
        consumer_filter_t *filter = consumer->session ? session_filter_find(broker, consumer, text, size) : NULL;
        if (filter) session_filter_remove(broker, consumer, filter);
    }
}

bool session_unsubscribe(broker_t *broker, client_t *client, uint64_t seq, const consumer_request_t *request, bool *ended,
                         bool *pending) {
    consumer_request_t name = named(request);
    consumer_t *consumer = consumer_find(broker, client, &name);
    consumer_filter_t *filter = consumer ? session_filter_find(broker, consumer, request->filter, request->filter_size) : NULL;
    *ended = filter != NULL;
    *pending = filter && consumer->durable;
    if (!filter) return true;
    if (*pending) {
        pending_commit_t *answer = commit_answer_new(broker, client, seq, PENDING_REPLY, NULL, 0, 0);
        int64_t lsn = answer ? session_unfilter_append(broker, consumer, request->filter, request->filter_size) : 0;
        if (lsn <= 0) {
            if (answer) commit_answer_drop(broker, answer);
            return consumer_refuse(broker, client, seq, BQ_OUTCOME_UNAVAILABLE, CONSUMER_NO_ROOM);
        }
        consumer->session->record_lsn = (uint64_t)lsn;
        commit_answer_wait(broker, client, answer, (uint64_t)lsn);
    }
    session_filter_remove(broker, consumer, filter);
    end_if_unused(broker, consumer);
    return true;
}

consumer_t *client_session(const client_t *client) {
    for (const member_t *member = client->members; member; member = member->client_next)
        if (member->consumer->session) return member->consumer;
    return NULL;
}
