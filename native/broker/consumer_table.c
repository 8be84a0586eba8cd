/* broker/consumer_table.c: the sessions there are: how they are found, who is in them, and the requests that begin and end them.
 *
 * Invariant: a session is in the table of names and, if it has an id, in that of ids, from session_new to session_free.
 */
#include "broker/consumer_flight.h"
#include "broker/commit.h"
#include "core.h"
#include "broker/trie.h"
#include "proto/protocol.h"

#include <stdlib.h>

#define SESSIONS_SIZE_MIN 64u

/* ---- members ------------------------------------------------------------------------------------------------------------ */

static void member_remove(bq_t *bq, member_t *member) {
    session_t *session = member->session;
    flight_member_leaves(bq, member);
    if (session->turn == member) session->turn = member->next;
    *member->link = member->next;
    if (member->next) member->next->link = member->link;
    *member->connection_link = member->connection_next;
    if (member->connection_next) member->connection_next->connection_link = member->connection_link;
    session->member_count--;
    session->seen_wall_ms = bq->wall_ms;
    session_seen(bq, session);
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

static member_t *member_add(bq_t *bq, session_t *session, connection_t *connection) {
    member_t *member = pool_take(&bq->pool, sizeof *member);
    if (!member) return NULL;
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
    session_seen(bq, session);
    session_pump_later(bq, session);
    return member;
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

static void name_leave(sessions_t *sessions, session_t *session) {
    session_t **at = name_slot(sessions, session);
    while (*at != session) at = &(*at)->name_chain;
    *at = session->name_chain;
}

static void id_leave(sessions_t *sessions, session_t *session) {
    if (!session->id) return;
    session_t **at = id_slot(sessions, session->id);
    while (*at != session) at = &(*at)->id_chain;
    *at = session->id_chain;
    session->id = 0;
}

/* It is known by another name now: it became durable, or is no longer. */
static void name_change(bq_t *bq, session_t *session, const session_request_t *request, bq_conn_t owner) {
    name_leave(&bq->sessions, session);
    session->owner = owner;
    session->name_hash = name_hash(bq, request, owner);
    session_t **slot = name_slot(&bq->sessions, session);
    session->name_chain = *slot;
    *slot = session;
}

/* ---- holders: for whom a durable subscription is kept -------------------------------------------------------------------- */

holder_t *holder_new(bq_t *bq, const uint8_t *client_id, uint32_t size, uint64_t id) {
    holder_t *holder = pool_take(&bq->pool, sizeof *holder + size);
    if (!holder) return NULL;
    *holder = (holder_t){.id = id, .size = size, .hash = hash_bytes(client_id, size, bq->run)};
    if (size) memcpy(holder->client_id, client_id, size);
    return holder;
}

void holder_free(bq_t *bq, holder_t *holder) { pool_give(&bq->pool, holder, sizeof *holder + holder->size); }

static holder_t *holder_find(const bq_t *bq, const session_t *session, const uint8_t *client_id, uint32_t size) {
    holder_t *holder = session->holders;
    if (!holder) return NULL;
    uint64_t hash = hash_bytes(client_id, size, bq->run);
    while (holder && !(holder->hash == hash && text_is(holder->client_id, holder->size, client_id, size))) holder = holder->next;
    return holder;
}

void holder_enter(bq_t *bq, session_t *session, holder_t *holder) {
    holder->key = session_owner_enter(bq, holder->client_id, holder->size);
    session_owner_leave(bq, session->key); /* it counts for those it is kept for */
    session->key = NULL;
    holder->next = session->holders;
    session->holders = holder;
    bq->sessions.group_holders += session->holder_count++ > 0;
    session->durable = true;
}

static void holder_remove(bq_t *bq, session_t *session, holder_t *holder) {
    holder_t **at = &session->holders;
    while (*at != holder) at = &(*at)->next;
    *at = holder->next;
    bq->sessions.group_holders -= --session->holder_count > 0;
    if (session->holder_count)
        session_owner_leave(bq, holder->key);
    else
        session->key = holder->key;
    holder_free(bq, holder);
}

/* With the last one of them a durable subscription ends, and so does a durable group nobody is connected to. One that has members
 * goes on in memory, as does the subscription of `keep`, whose client has been told that it is no more than that. True: it ended. */
static bool holder_end(bq_t *bq, session_t *session, holder_t *holder, const connection_t *keep) {
    holder_remove(bq, session, holder);
    if (session->holders) return false;
    session->durable = false;
    id_leave(&bq->sessions, session);
    if (!session->members || (!session->grouped && !keep)) {
        session_free(bq, session);
        return true;
    }
    session_request_t own = {.filter = session->text, .filter_size = session->filter_size};
    if (!session->grouped) name_change(bq, session, &own, keep->handle);
    return false;
}

/* ---- life ---------------------------------------------------------------------------------------------------------------- */

static size_t session_bytes(const session_t *session) { return sizeof *session + session->filter_size + session->group_size; }

session_t *session_new(bq_t *bq, const session_request_t *request, bq_conn_t owner) {
    uint32_t client_id_size = request->group_size ? 0 : request->client_id_size; /* those of a group are its holders */
    size_t size = sizeof(session_t) + request->filter_size + client_id_size + request->group_size;
    session_t *session = pool_take(&bq->pool, size);
    if (!session) return NULL;
    *session = (session_t){.filter_size = request->filter_size,
                           .client_id_size = client_id_size,
                           .group_size = request->group_size,
                           .qos = request->qos,
                           .grouped = request->group_size > 0,
                           .name_hash = name_hash(bq, request, owner),
                           .owner = owner};
    memcpy(session->text, request->filter, request->filter_size);
    if (client_id_size) memcpy(session->text + request->filter_size, request->client_id, client_id_size);
    if (request->group_size) memcpy(session->text + request->filter_size, request->group, request->group_size);
    if (route_session(bq->routes, session, &session->route, request->filter, request->filter_size) < 0) {
        pool_give(&bq->pool, session, size);
        return NULL;
    }
    names_enter(bq, session);
    session->key = session_owner_enter(bq, request->client_id, request->client_id_size);
    session->floor_lsn = session->floor_logged = bq->fanned_lsn;
    session->next = bq->sessions.all;
    session->link = &bq->sessions.all;
    if (session->next) session->next->link = &session->next;
    bq->sessions.all = session;
    bq->sessions.count++;
    return session;
}

void session_free(bq_t *bq, session_t *session) {
    bq->stats.dropped_disconnect += session->window_count;
    bq->stats.enqueued += session->window_count;
    while (session->head) delivery_free(bq, session->head);
    while (session->members) member_remove(bq, session->members);
    session_past_drop(bq, session);
    session_read_abandon(bq, session);
    session_pump_never(bq, session);
    route_session_leave(bq->routes, &session->route);
    session_list_forget(bq, session);
    name_leave(&bq->sessions, session);
    id_leave(&bq->sessions, session);
    while (session->holders) holder_remove(bq, session, session->holders);
    session_owner_leave(bq, session->key);
    *session->link = session->next;
    if (session->next) session->next->link = session->link;
    bq->sessions.count--;
    pool_give(&bq->pool, session, session_bytes(session));
}

/* ---- requests: SUB --------------------------------------------------------------------------------------------------------- */

static const char *NO_ROOM = "the broker is out of memory, or its log takes nothing now";
static const char *TOO_MANY_SESSIONS =
    "limits.max_sessions is reached: end durable subscriptions that nobody uses: blipmq-cli sessions";
static const char *TOO_MANY_OF_KEY =
    "limits.max_sessions_per_key is reached: this key has as many QoS 1 subscriptions and queue groups as one may have";
static const char *TOO_MANY_HOLDERS = "a queue group has at most 1024 durable client_ids: end those that nobody uses "
                                      "(blipmq-cli unsub FILTER --group GROUP --client-id ID)";

static bool refuse(bq_t *bq, connection_t *connection, uint64_t seq, enum bq_outcome outcome, const char *why) {
    connection->protocol->refuse(bq, connection, seq, outcome, why);
    connection_resume(bq, connection, PAUSE_ANSWER);
    return false;
}

/* Which session a SUB is about; NULL: it is new. A durable one goes before the connection's own, which may have to become it. */
static session_t *session_wanted(bq_t *bq, connection_t *connection, const session_request_t *request) {
    session_request_t lasting = *request, passing = *request;
    lasting.durable = request->client_id_size > 0;
    passing.durable = false;
    session_t *own = session_find(bq, connection, &passing);
    session_t *kept = lasting.durable && !request->group_size ? session_find(bq, connection, &lasting) : NULL;
    if (kept && (request->durable || member_find(kept, connection))) return kept;
    return own;
}

/* What a SUB has made so far, to be taken back if the rest of it cannot be had. */
typedef struct attempt {
    session_t *session;
    member_t *member;
    uint8_t undo;
} attempt_t;

static void attempt_undo(bq_t *bq, const attempt_t *attempt) {
    if (attempt->undo & HELD_UNDO_MEMBER) member_remove(bq, attempt->member);
    if (attempt->session && !attempt->session->members && !attempt->session->durable) session_free(bq, attempt->session);
}

/* Where the record says that it begins: with what has not been acknowledged and the log is sure to have. What is older stays in
 * memory, as it was promised. */
static uint64_t floor_to_log(bq_t *bq, session_t *session) {
    uint64_t kept_from = session->kept_lsn;
    if (!session->durable && !session->behind) {
        log_stats_t stats;
        log_stats(bq->log, &stats);
        session_floor_update(bq, session);
        kept_from = stats.first_lsn > bq->sessions.kept_from ? stats.first_lsn : bq->sessions.kept_from;
    }
    return session->floor_lsn + 1 < kept_from ? kept_from - 1 : session->floor_lsn;
}

/* From here on its floor is in the log, at `floor_lsn`, as of the record at `lsn`. */
static void floor_begin(session_t *session, uint64_t floor_lsn, uint64_t lsn) {
    session->kept_lsn = floor_lsn + 1;
    session->floor_logged = floor_lsn;
    if (session->floor_lsn < floor_lsn && !session->head) session->floor_lsn = floor_lsn;
    session->settled_logged = session->settled_safe = session->waited_settled = session->settled;
    session->floor_record_lsn = session->waited_lsn = lsn;
}

/* A client_id from which on the session is durable, or stays so. Its SubAck waits for the record to be on disk. False: no room. */
static bool holder_begin(bq_t *bq, connection_t *connection, uint64_t seq, attempt_t *attempt, const session_request_t *request) {
    session_t *session = attempt->session;
    bool fresh = attempt->undo & HELD_UNDO_SESSION;
    uint64_t id = bq->sessions.next_id + 1, session_id = session->id ? session->id : id;
    holder_t *holder = holder_new(bq, request->client_id, request->client_id_size, id);
    held_t *held =
        holder ? commit_answer_new(bq, connection, seq, HELD_SUBACK, session->text, session->filter_size, session->group_size)
               : NULL;
    uint64_t floor_lsn = fresh ? SESSION_NEW_FLOOR : floor_to_log(bq, session);
    int64_t lsn = held ? session_log(bq, session, holder, session_id, floor_lsn) : 0;
    if (lsn <= 0) {
        if (held) commit_answer_drop(bq, held);
        if (holder) holder_free(bq, holder);
        return false;
    }
    bq->sessions.next_id = id;
    held->id = id;
    held->undo = attempt->undo | HELD_UNDO_HOLDER;
    commit_answer_hold(bq, connection, held, (uint64_t)lsn);
    holder->record_lsn = (uint64_t)lsn;
    bool raised = !session->durable;
    holder_enter(bq, session, holder);
    if (!raised) return true;
    if (!session->grouped) name_change(bq, session, request, 0);
    session_id_give(bq, session, session_id);
    if (fresh) session->born_lsn = session->floor_lsn = floor_lsn = (uint64_t)lsn;
    floor_begin(session, floor_lsn, (uint64_t)lsn);
    return true;
}

/* Found at the start, but a full disk has not let this process make sure of it yet: a SubAck now could be one too many. */
static bool in_doubt(const bq_t *bq, const holder_t *holder) {
    return bq->fanned_lsn < bq->found_lsn && holder->record_lsn > bq->fanned_lsn;
}

static const char *over_limits(bq_t *bq, const session_t *session, bool holds, const session_request_t *request) {
    if (session && holds && session->grouped && session->holder_count >= GROUP_HOLDERS_MAX) return TOO_MANY_HOLDERS;
    bool counts = !session || (holds && session->holder_count);
    if (!counts) return NULL;
    if (bq->sessions.count + bq->sessions.group_holders >= bq->config.max_sessions) {
        bq->stats.sessions_refused++;
        return TOO_MANY_SESSIONS;
    }
    if (!request->keyed || session_owner_count(bq, request->client_id, request->client_id_size) < bq->config.max_sessions_per_key)
        return NULL;
    bq->stats.sessions_refused_key++;
    return TOO_MANY_OF_KEY;
}

/* The connection's own subscription, when it has taken up the durable one of the same filter: all that it holds is there too. */
static void own_end(bq_t *bq, connection_t *connection, const session_request_t *request, const session_t *taken_up) {
    session_request_t passing = *request;
    passing.durable = false;
    session_t *own = request->group_size || !request->durable ? NULL : session_find(bq, connection, &passing);
    if (own && own != taken_up) session_free(bq, own);
}

static void raise_qos(bq_t *bq, const attempt_t *attempt, uint8_t qos) {
    if (qos > attempt->member->qos) attempt->member->qos = qos;
    if (qos <= attempt->session->qos) return;
    publish_run_close(bq);
    attempt->session->qos = qos;
    attempt->session->floor_lsn = bq->fanned_lsn;
}

bool session_subscribe(bq_t *bq, connection_t *connection, uint64_t seq, const session_request_t *request, bool route_new,
                       bool *remains) {
    attempt_t attempt = {.session = session_wanted(bq, connection, request), .undo = route_new ? HELD_UNDO_ROUTE : 0};
    holder_t *holder = NULL;
    if (attempt.session && request->durable)
        holder = holder_find(bq, attempt.session, request->client_id, request->client_id_size);
    bool holds = request->durable && !holder;
    attempt.member = attempt.session ? member_find(attempt.session, connection) : NULL;
    *remains = attempt.member != NULL;
    if (holder && in_doubt(bq, holder)) return refuse(bq, connection, seq, BQ_OUTCOME_UNAVAILABLE, NO_ROOM);
    const char *over = over_limits(bq, attempt.session, holds, request);
    if (over) return refuse(bq, connection, seq, BQ_OUTCOME_LIMIT, over);
    if (!attempt.session) {
        attempt.session = session_new(bq, request, request->group_size ? 0 : connection->handle);
        attempt.undo |= HELD_UNDO_SESSION;
    }
    if (attempt.session && !attempt.member && (attempt.member = member_add(bq, attempt.session, connection)))
        attempt.undo |= HELD_UNDO_MEMBER;
    if (!attempt.member || (holds && !holder_begin(bq, connection, seq, &attempt, request))) {
        attempt_undo(bq, &attempt);
        return refuse(bq, connection, seq, BQ_OUTCOME_UNAVAILABLE, NO_ROOM);
    }
    own_end(bq, connection, request, attempt.session);
    raise_qos(bq, &attempt, request->qos);
    *remains = true;
    if (holds) return true;
    /* Another connection of a client_id that is not on disk yet waits for that too. */
    bool unsure = holder && holder->record_lsn > log_durable(bq->log);
    if (unsure && commit_answer(bq, connection, seq, holder->record_lsn, HELD_SUBACK, request->filter, request->filter_size))
        return true;
    connection->protocol->subscribed(bq, connection, seq, request->filter, request->filter_size);
    connection_resume(bq, connection, PAUSE_ANSWER);
    return true;
}

/* The log failed before the record was on disk: the client is told that it has no such subscription, so it has none. */
void session_subscribe_undo(bq_t *bq, connection_t *connection, const held_t *held) {
    const uint8_t *text = held_frame(held);
    uint32_t filter_size = held->topic_size, group_size = held->payload_size;
    session_t *session = NULL;
    for (member_t *member = connection->members; member && !session; member = member->connection_next) {
        session_t *at = member->session;
        if (text_is(at->text, at->filter_size, text, filter_size) &&
            text_is(session_group(at), at->group_size, text + filter_size, group_size))
            session = at;
    }
    holder_t *holder = session && held->undo & HELD_UNDO_HOLDER ? session->holders : NULL;
    while (holder && holder->id != held->id) holder = holder->next;
    if (holder && holder_end(bq, session, holder, connection)) session = NULL;
    if (session && held->undo & HELD_UNDO_MEMBER) {
        member_t *member = member_find(session, connection);
        if (member) member_remove(bq, member);
        if (!session->members && !session->durable) session_free(bq, session);
    }
    if (held->undo & HELD_UNDO_ROUTE && route_unsubscribe(bq->routes, connection, connection->subscriptions, text, filter_size))
        connection->subscription_count--;
    if (held->undo & (HELD_UNDO_MEMBER | HELD_UNDO_ROUTE))
        event_unsubscribed(bq, connection, text, filter_size, text + filter_size, group_size, BQ_OUTCOME_UNAVAILABLE);
}

/* ---- requests: UNSUB ------------------------------------------------------------------------------------------------------- */

static bool concerns(const session_t *session, const session_request_t *request) {
    return !request->group_size || text_is(session_group(session), session->group_size, request->group, request->group_size);
}

uint32_t session_holders_end(bq_t *bq, const session_request_t *request, uint64_t id_max, bool end) {
    uint32_t count = 0, index = 0;
    session_t *session;
    while ((session = route_session_at(bq->routes, request->filter, request->filter_size, index))) {
        holder_t *holder =
            concerns(session, request) ? holder_find(bq, session, request->client_id, request->client_id_size) : NULL;
        bool ends = holder && holder->id <= id_max;
        count += ends;
        if (!ends || !end || !holder_end(bq, session, holder, NULL)) index++; /* else another one has its place */
    }
    return count;
}

/* This connection's part in every session of that filter, and group. */
static uint32_t memberships_end(bq_t *bq, connection_t *connection, const session_request_t *request) {
    uint32_t count = 0;
    for (member_t *member = connection->members, *next; member; member = next) {
        session_t *session = member->session;
        next = member->connection_next;
        if (!text_is(session->text, session->filter_size, request->filter, request->filter_size) || !concerns(session, request))
            continue;
        count++;
        member_remove(bq, member);
        if (!session->members && !session->durable) session_free(bq, session);
    }
    return count;
}

bool session_unsubscribe(bq_t *bq, connection_t *connection, uint64_t seq, const session_request_t *request, bool *ended,
                         bool *held) {
    *held = request->client_id_size && bq->log && session_holders_end(bq, request, UINT64_MAX, false);
    if (*held) {
        held_t *answer = commit_answer_new(bq, connection, seq, HELD_REPLY, NULL, 0, 0);
        int64_t lsn = answer ? session_log_leave(bq, request) : 0;
        if (lsn <= 0) {
            if (answer) commit_answer_drop(bq, answer);
            return refuse(bq, connection, seq, BQ_OUTCOME_UNAVAILABLE, NO_ROOM);
        }
        commit_answer_hold(bq, connection, answer, (uint64_t)lsn);
        session_holders_end(bq, request, UINT64_MAX, true);
    }
    *ended = memberships_end(bq, connection, request) || *held;
    return true;
}

void session_leave_one(bq_t *bq, connection_t *connection) {
    session_t *session = connection->members->session;
    bq->stats.work += WORK_DELIVERY + session->window_count / WORK_DROPS;
    member_remove(bq, connection->members);
    if (!session->member_count && !session->durable) session_free(bq, session);
}

void session_leave_all(bq_t *bq, connection_t *connection) {
    while (connection->members) session_leave_one(bq, connection);
}

uint32_t sessions_missed(bq_t *bq, const held_t *held) {
    uint32_t count = 0;
    for (session_t *session = bq->sessions.all; session; session = session->next) {
        if (!session->durable || !session->qos) continue;
        session_fall_behind(bq, session, held->lsn);
        count += filter_match(session->text, session->filter_size, held_topic(held), held->topic_size) == 1;
    }
    return count;
}

/* ---- all of them ---- */

bool sessions_init(bq_t *bq) {
    bq->sessions.pump_tail = &bq->sessions.pump;
    return flight_init(bq) && tables_make(bq, SESSIONS_SIZE_MIN);
}

void sessions_release(bq_t *bq) {
    sessions_t *sessions = &bq->sessions;
    while (sessions->all) session_free(bq, sessions->all);
    session_end_release(bq);
    flight_release(bq);
    if (sessions->names) pool_give(&bq->pool, sessions->names, 2 * sessions->table_size * sizeof *sessions->names);
    sessions->names = sessions->ids = NULL;
    for (uint32_t slot = 0; slot < SESSION_SLOTS; slot++) /* after log_close: no read is under way */
        if (sessions->readers[slot].buffer)
            pool_give(&bq->pool, sessions->readers[slot].buffer, sessions->readers[slot].capacity);
}
