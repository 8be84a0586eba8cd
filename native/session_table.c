/* session_table.c: the sessions there are: how they are found, who is in them, and the requests that begin and end them.
 *
 * Invariant: a session is in the table of names and, if it has an id, in that of ids, from session_new to session_free.
 */
#include "session_internal.h"
#include "commit.h"
#include "core.h"
#include "trie.h"

#include <stdlib.h>

#define FLIGHT_SIZE_MIN 256u
#define SESSIONS_SIZE_MIN 64u

/* ---- members ------------------------------------------------------------------------------------------------------------ */

static void member_remove(bq_t *bq, member_t *member) {
    session_t *session = member->session;
    for (delivery_t *delivery = session->head; delivery && member->flight_count; delivery = delivery->next)
        if (delivery->member == member) delivery_send_again(bq, delivery); /* it may have been seen: it comes again, marked */
    if (session->turn == member) session->turn = member->next;
    *member->link = member->next;
    if (member->next) member->next->link = member->link;
    *member->connection_link = member->connection_next;
    if (member->connection_next) member->connection_next->connection_link = member->connection_link;
    session->member_count--;
    session->seen_wall_ms = bq->wall_ms;
    member->connection->group_count -= session->grouped;
    pool_give(&bq->pool, member, sizeof *member);
    if (!session->member_count && session->durable) session_window_leave(bq, session);
}

/* It is in the session's list and in the connection's: either may be long, seldom both. */
static member_t *member_find(const session_t *session, const connection_t *connection) {
    member_t *of_session = session->members, *of_connection = connection->members;
    for (; of_session && of_connection; of_session = of_session->next, of_connection = of_connection->connection_next) {
        if (of_session->connection == connection) return of_session;
        if (of_connection->session == session) return of_connection;
    }
    return NULL;
}

static bool member_add(bq_t *bq, session_t *session, connection_t *connection) {
    if (member_find(session, connection)) return true;
    member_t *member = pool_take(&bq->pool, sizeof *member);
    if (!member) return false;
    *member = (member_t){.session = session,
                         .connection = connection,
                         .next = session->members,
                         .link = &session->members,
                         .connection_next = connection->members,
                         .connection_link = &connection->members};
    if (member->next) member->next->link = &member->next;
    session->members = member;
    if (member->connection_next) member->connection_next->connection_link = &member->connection_next;
    connection->members = member;
    connection->group_count += session->grouped;
    session->member_count++;
    session_pump_later(bq, session);
    return true;
}

/* ---- finding sessions, by what tells them apart and by id ---------------------------------------------------------------- */

static bool text_is(const uint8_t *a, uint32_t a_size, const uint8_t *b, uint32_t b_size) {
    return a_size == b_size && (!a_size || memcmp(a, b, a_size) == 0);
}

/* Sessions are told apart by filter and group; without a group by filter and, if durable, client_id, else connection. */
static uint64_t name_hash(const bq_t *bq, const session_request_t *request, bq_conn_t owner) {
    uint64_t hash = hash_bytes(request->filter, request->filter_size, bq->run);
    if (request->group_size) return hash_bytes(request->group, request->group_size, hash);
    if (request->durable) return request->client_id_size ? hash_bytes(request->client_id, request->client_id_size, hash) : hash;
    return hash_bytes((const uint8_t *)&owner, sizeof owner, hash);
}

static bq_conn_t owner_of(const session_request_t *request, const connection_t *connection) {
    return request->group_size || request->durable ? 0 : connection->handle;
}

static bool session_is(const session_t *session, const session_request_t *request, bq_conn_t owner) {
    if (!text_is(session->text, session->filter_size, request->filter, request->filter_size)) return false;
    if (!text_is(session_group(session), session->group_size, request->group, request->group_size)) return false;
    if (request->group_size) return true;
    if (session->durable != request->durable || session->owner != owner) return false;
    return !session->durable ||
           text_is(session_client_id(session), session->client_id_size, request->client_id, request->client_id_size);
}

static session_t *session_find(bq_t *bq, const connection_t *connection, const session_request_t *request) {
    bq_conn_t owner = owner_of(request, connection);
    session_t *session = bq->sessions.names[name_hash(bq, request, owner) & (bq->sessions.table_size - 1)];
    while (session && !session_is(session, request, owner)) session = session->name_chain;
    return session;
}

static session_t **name_slot(const sessions_t *sessions, const session_t *session) {
    return &sessions->names[session->name_hash & (sessions->table_size - 1)];
}

static session_t **id_slot(const sessions_t *sessions, uint64_t id) {
    return &sessions->ids[id & (sessions->table_size - 1)]; /* they are given one after another */
}

session_t *session_by_id(bq_t *bq, uint64_t id) {
    session_t *session = *id_slot(&bq->sessions, id);
    while (session && session->id != id) session = session->id_chain;
    return session;
}

/* Both tables made anew. Sessions are entered from the newest to the oldest, so that the newest is still found first. */
static bool tables_make(bq_t *bq, uint32_t size) {
    sessions_t *sessions = &bq->sessions;
    session_t **tables = pool_take(&bq->pool, 2 * size * sizeof *tables), **at;
    if (!tables) return false;
    memset(tables, 0, 2 * size * sizeof *tables);
    if (sessions->names) pool_give(&bq->pool, sessions->names, 2 * sessions->table_size * sizeof *tables);
    sessions->names = tables;
    sessions->ids = tables + size;
    sessions->table_size = size;
    for (session_t *session = sessions->all; session; session = session->next) {
        session->name_chain = session->id_chain = NULL;
        for (at = name_slot(sessions, session); *at;) at = &(*at)->name_chain;
        *at = session;
        if (!session->id) continue;
        for (at = id_slot(sessions, session->id); *at;) at = &(*at)->id_chain;
        *at = session;
    }
    return true;
}

static void names_enter(bq_t *bq, session_t *session) {
    sessions_t *sessions = &bq->sessions;
    if (sessions->count >= sessions->table_size) tables_make(bq, sessions->table_size * 2); /* else: slower, not wrong */
    session_t **slot = name_slot(sessions, session);
    session->name_chain = *slot;
    *slot = session;
}

void session_id_give(bq_t *bq, session_t *session, uint64_t id) {
    session_t **slot = id_slot(&bq->sessions, id);
    if (!id) return; /* none that a core gives */
    session->id = id;
    session->id_chain = *slot;
    *slot = session;
}

static void tables_leave(sessions_t *sessions, session_t *session) {
    session_t **at = name_slot(sessions, session);
    while (*at != session) at = &(*at)->name_chain;
    *at = session->name_chain;
    if (!session->id) return;
    for (at = id_slot(sessions, session->id); *at != session;) at = &(*at)->id_chain;
    *at = session->id_chain;
}

/* ---- life ---------------------------------------------------------------------------------------------------------------- */

static size_t session_bytes(const session_t *session) {
    return sizeof *session + session->filter_size + session->client_id_size + session->group_size;
}

session_t *session_new(bq_t *bq, const session_request_t *request, bq_conn_t owner) {
    size_t size = sizeof(session_t) + request->filter_size + request->client_id_size + request->group_size;
    session_t *session = pool_take(&bq->pool, size);
    if (!session) return NULL;
    *session = (session_t){.filter_size = request->filter_size,
                           .client_id_size = request->client_id_size,
                           .group_size = request->group_size,
                           .qos = request->qos,
                           .durable = request->durable,
                           .grouped = request->group_size > 0,
                           .name_hash = name_hash(bq, request, owner),
                           .owner = owner};
    memcpy(session->text, request->filter, request->filter_size);
    if (request->client_id_size) memcpy(session->text + request->filter_size, request->client_id, request->client_id_size);
    if (request->group_size)
        memcpy(session->text + request->filter_size + request->client_id_size, request->group, request->group_size);
    publish_run_close(bq);
    if (route_session(bq->routes, session, &session->route, request->filter, request->filter_size) < 0) {
        pool_give(&bq->pool, session, size);
        return NULL;
    }
    names_enter(bq, session);
    session->floor_lsn = session->floor_logged = bq->fanned_lsn;
    session->next = bq->sessions.all;
    session->link = &bq->sessions.all;
    if (session->next) session->next->link = &session->next;
    bq->sessions.all = session;
    bq->sessions.count++;
    return session;
}

void session_free(bq_t *bq, session_t *session) {
    publish_run_close(bq);
    while (session->members) member_remove(bq, session->members);
    bq->stats.dropped_disconnect += session->window_count; /* an ended durable session has left its window to the log */
    bq->stats.enqueued += session->window_count;
    while (session->head) delivery_free(bq, session->head);
    session_read_abandon(bq, session);
    if (session->pumping) {
        session_t **at = &bq->sessions.pump;
        while (*at != session) at = &(*at)->pump_next;
        *at = session->pump_next;
    }
    route_session_leave(bq->routes, &session->route);
    session_list_forget(bq, session);
    tables_leave(&bq->sessions, session);
    *session->link = session->next;
    if (session->next) session->next->link = session->link;
    bq->sessions.count--;
    pool_give(&bq->pool, session, session_bytes(session));
}

/* ---- requests ------------------------------------------------------------------------------------------------------------- */
static void refuse_subscription(bq_t *bq, connection_t *connection, uint64_t seq, const char *why) {
    connection_reply(bq, connection, seq, 503, why);
    connection_resume(bq, connection, PAUSE_ANSWER);
}

static const char *NO_ROOM = "the broker is out of memory, or its log takes nothing now";

/* A durable session's first SubAck waits for its record to be on disk; any other goes out at once. */
static void answer_new(bq_t *bq, connection_t *connection, uint64_t seq, session_t *session) {
    int64_t lsn = session_log(bq, session);
    if (lsn <= 0 || !commit_answer(bq, connection, seq, (uint64_t)lsn, HELD_SUBACK, session->text, session->filter_size)) {
        session_free(bq, session);
        refuse_subscription(bq, connection, seq, NO_ROOM);
        return;
    }
    session->born_lsn = session->floor_lsn = session->floor_logged = (uint64_t)lsn;
}

/* Found at the start, but a full disk has not let this process make sure of it yet: a SubAck now could be one too many. */
static bool in_doubt(const bq_t *bq, const session_t *session) {
    return session->durable && bq->fanned_lsn < bq->found_lsn && session->born_lsn > bq->fanned_lsn;
}

void session_subscribe(bq_t *bq, connection_t *connection, uint64_t seq, const session_request_t *request) {
    session_t *session = session_find(bq, connection, request);
    bool fresh = !session;
    if (session && in_doubt(bq, session)) {
        refuse_subscription(bq, connection, seq, NO_ROOM);
        return;
    }
    if (fresh && bq->sessions.count >= bq->config.max_sessions) {
        connection_reply(bq, connection, seq, 429,
                         "limits.max_sessions is reached: end durable subscriptions that nobody uses (blipmq-cli unsub)");
        connection_resume(bq, connection, PAUSE_ANSWER);
        return;
    }
    if (fresh) session = session_new(bq, request, owner_of(request, connection));
    if (!session || !member_add(bq, session, connection)) {
        if (session && fresh) session_free(bq, session);
        refuse_subscription(bq, connection, seq, NO_ROOM);
        return;
    }
    if (fresh && session->durable) {
        answer_new(bq, connection, seq, session);
        return;
    }
    /* Another member of a session that is not on disk yet waits for that too. */
    bool unsure = session->durable && session->born_lsn > log_durable(bq->log);
    if (unsure && commit_answer(bq, connection, seq, session->born_lsn, HELD_SUBACK, session->text, session->filter_size)) return;
    connection_suback(bq, connection, seq, request->filter, request->filter_size);
    connection_resume(bq, connection, PAUSE_ANSWER);
}

static session_t *session_to_end(bq_t *bq, const connection_t *connection, const session_request_t *request) {
    for (member_t *member = connection->members; member; member = member->connection_next)
        if (text_is(member->session->text, member->session->filter_size, request->filter, request->filter_size))
            return member->session;
    session_request_t durable = *request;
    durable.durable = true;
    return request->client_id_size ? session_find(bq, connection, &durable) : NULL;
}

bool session_unsubscribe(bq_t *bq, connection_t *connection, uint64_t seq, const session_request_t *request) {
    session_t *session = session_to_end(bq, connection, request);
    if (!session) return false;
    member_t *member = member_find(session, connection);
    if (session->grouped && member) { /* leaving a group does not end it while others are in it, nor if it is durable */
        member_remove(bq, member);
        if (!session->member_count && !session->durable) session_free(bq, session);
    } else if (session->durable) {
        log_part_t part = {&session->id, sizeof session->id};
        int64_t lsn = log_append(bq->log, LOG_SESSION_END, 0, &part, 1, true);
        if (lsn <= 0 || !commit_answer(bq, connection, seq, (uint64_t)lsn, HELD_REPLY, NULL, 0)) {
            refuse_subscription(bq, connection, seq, NO_ROOM);
            return true;
        }
        session_free(bq, session);
        return true;
    } else {
        session_free(bq, session);
    }
    connection_reply(bq, connection, seq, 0, "");
    connection_resume(bq, connection, PAUSE_ANSWER);
    return true;
}

void session_leave_all(bq_t *bq, connection_t *connection) {
    while (connection->members) {
        session_t *session = connection->members->session;
        member_remove(bq, connection->members);
        if (!session->member_count && !session->durable) session_free(bq, session);
    }
}

void sessions_missed(bq_t *bq, uint64_t lsn) {
    for (session_t *session = bq->sessions.all; session; session = session->next)
        if (session->durable && session->qos) session_fall_behind(bq, session, lsn);
}

/* ---- all of them ---- */

bool sessions_init(bq_t *bq) {
    sessions_t *sessions = &bq->sessions;
    sessions->flight_size = FLIGHT_SIZE_MIN;
    sessions->flight = pool_take(&bq->pool, FLIGHT_SIZE_MIN * sizeof *sessions->flight);
    if (sessions->flight) memset(sessions->flight, 0, FLIGHT_SIZE_MIN * sizeof *sessions->flight);
    return sessions->flight && tables_make(bq, SESSIONS_SIZE_MIN);
}

void sessions_release(bq_t *bq) {
    sessions_t *sessions = &bq->sessions;
    while (sessions->all) session_free(bq, sessions->all);
    if (sessions->flight) pool_give(&bq->pool, sessions->flight, sessions->flight_size * sizeof *sessions->flight);
    if (sessions->names) pool_give(&bq->pool, sessions->names, 2 * sessions->table_size * sizeof *sessions->names);
    sessions->flight = NULL;
    sessions->names = sessions->ids = NULL;
    for (uint32_t slot = 0; slot < SESSION_SLOTS; slot++) /* after log_close: no read is under way */
        if (sessions->readers[slot].buffer)
            pool_give(&bq->pool, sessions->readers[slot].buffer, sessions->readers[slot].capacity);
}
