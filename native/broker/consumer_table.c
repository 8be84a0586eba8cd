/* broker/consumer_table.c: the tables of consumers, their members and registrations, and the requests SUB and UNSUB.
 *
 * Invariant: from consumer_new to consumer_free, a consumer is in the name table and, if it has an id, in the id table.
 */
#include "broker/delivery_lookup.h"
#include "broker/commit.h"
#include "broker/broker.h"
#include "broker/session.h"
#include "proto/protocol.h"

#include <stdlib.h>

#define CONSUMERS_SIZE_MIN 64u

/* ---- members ----------------------------------------------------------------------------------------------------- */

void member_remove(broker_t *broker, member_t *member) {
    consumer_t *consumer = member->consumer;
    flight_member_leaves(broker, member);
    if (consumer->turn == member) consumer->turn = member->next;
    *member->link = member->next;
    if (member->next) member->next->link = member->link;
    *member->client_link = member->client_next;
    if (member->client_next) member->client_next->client_link = member->client_link;
    consumer->member_count--;
    consumer->seen_wall_ms = broker->wall_ms;
    consumer_seen(broker, consumer);
    member->client->group_count -= consumer->grouped;
    pool_free(&broker->pool, member, sizeof *member);
    if (!consumer->member_count && consumer->durable) consumer_window_leave(broker, consumer);
}

/* Searches the consumer's list and the connection's list in step: one of them is usually short. */
member_t *member_find(const consumer_t *consumer, const client_t *client) {
    member_t *of_consumer = consumer->members, *of_connection = client->members;
    for (; of_consumer && of_connection; of_consumer = of_consumer->next, of_connection = of_connection->client_next) {
        if (of_consumer->client == client) return of_consumer;
        if (of_connection->consumer == consumer) return of_connection;
    }
    return NULL;
}

member_t *member_add(broker_t *broker, consumer_t *consumer, client_t *client) {
    member_t *member = pool_alloc(&broker->pool, sizeof *member);
    if (!member) return NULL;
    *member = (member_t){.consumer = consumer,
                         .client = client,
                         .next = consumer->members,
                         .link = &consumer->members,
                         .client_next = client->members,
                         .client_link = &client->members};
    if (member->next) member->next->link = &member->next;
    consumer->members = member;
    if (member->client_next) member->client_next->client_link = &member->client_next;
    client->members = member;
    client->group_count += consumer->grouped;
    consumer->member_count++;
    consumer->full_at = 0;
    consumer_seen(broker, consumer);
    consumer_pump_later(broker, consumer);
    return member;
}

/* ---- finding consumers by name and by id ------------------------------------------------------------------------- */

static bool text_is(const uint8_t *a, uint32_t a_size, const uint8_t *b, uint32_t b_size) {
    return a_size == b_size && (!a_size || memcmp(a, b, a_size) == 0);
}

/* A consumer's name is its filter and group. Without a group it is the filter and the client_id if durable, otherwise the
 * connection. */
static uint64_t name_hash(const broker_t *broker, const consumer_request_t *request, bq_conn_t owner) {
    uint64_t hash = hash_bytes(&broker->hash_key, request->filter, request->filter_size, 0);
    if (request->group_size) return hash_bytes(&broker->hash_key, request->group, request->group_size, hash);
    if (request->durable)
        return request->client_id_size ? hash_bytes(&broker->hash_key, request->client_id, request->client_id_size, hash) : hash;
    return hash_bytes(&broker->hash_key, (const uint8_t *)&owner, sizeof owner, hash);
}

static bq_conn_t owner_of(const consumer_request_t *request, const client_t *client) {
    return request->group_size || request->durable ? 0 : client->handle;
}

static bool consumer_is(const consumer_t *consumer, const consumer_request_t *request, bq_conn_t owner) {
    if (!text_is(consumer->text, consumer->filter_size, request->filter, request->filter_size)) return false;
    if (!text_is(consumer_group(consumer), consumer->group_size, request->group, request->group_size)) return false;
    if (request->group_size) return true;
    if (consumer->durable != request->durable || consumer->owner != owner) return false;
    return !consumer->durable ||
           text_is(consumer_client_id(consumer), consumer->client_id_size, request->client_id, request->client_id_size);
}

consumer_t *consumer_find(broker_t *broker, const client_t *client, const consumer_request_t *request) {
    bq_conn_t owner = owner_of(request, client);
    consumer_t *consumer = broker->consumers.names[name_hash(broker, request, owner) & (broker->consumers.table_size - 1)];
    while (consumer && !consumer_is(consumer, request, owner)) consumer = consumer->name_chain;
    return consumer;
}

static consumer_t **name_slot(const consumers_t *consumers, const consumer_t *consumer) {
    return &consumers->names[consumer->name_hash & (consumers->table_size - 1)];
}

static consumer_t **id_slot(const consumers_t *consumers, uint64_t id) {
    return &consumers->ids[id & (consumers->table_size - 1)]; /* ids are sequential */
}

consumer_t *consumer_by_id(broker_t *broker, uint64_t id) {
    consumer_t *consumer = *id_slot(&broker->consumers, id);
    while (consumer && consumer->id != id) consumer = consumer->id_chain;
    return consumer;
}

/* Rebuilds both tables. Consumers are added from the newest to the oldest, so that the newest is still found first. */
static bool tables_make(broker_t *broker, uint32_t size) {
    consumers_t *consumers = &broker->consumers;
    consumer_t **tables = pool_alloc(&broker->pool, 2 * size * sizeof *tables), **at;
    if (!tables) return false;
    memset(tables, 0, 2 * size * sizeof *tables);
    if (consumers->names) pool_free(&broker->pool, consumers->names, 2 * consumers->table_size * sizeof *tables);
    consumers->names = tables;
    consumers->ids = tables + size;
    consumers->table_size = size;
    for (consumer_t *consumer = consumers->all; consumer; consumer = consumer->next) {
        consumer->name_chain = consumer->id_chain = NULL;
        for (at = name_slot(consumers, consumer); *at;) at = &(*at)->name_chain;
        *at = consumer;
        if (!consumer->id) continue;
        for (at = id_slot(consumers, consumer->id); *at;) at = &(*at)->id_chain;
        *at = consumer;
    }
    return true;
}

static void names_enter(broker_t *broker, consumer_t *consumer) {
    consumers_t *consumers = &broker->consumers;
    if (consumers->count >= consumers->table_size) tables_make(broker, consumers->table_size * 2); /* on failure: slower */
    consumer_t **slot = name_slot(consumers, consumer);
    consumer->name_chain = *slot;
    *slot = consumer;
}

void consumer_id_assign(broker_t *broker, consumer_t *consumer, uint64_t id) {
    consumer_t **slot = id_slot(&broker->consumers, id);
    if (!id) return; /* a core never assigns id 0 */
    consumer->id = id;
    consumer->id_chain = *slot;
    *slot = consumer;
}

static void name_leave(consumers_t *consumers, consumer_t *consumer) {
    consumer_t **at = name_slot(consumers, consumer);
    while (*at != consumer) at = &(*at)->name_chain;
    *at = consumer->name_chain;
}

static void id_leave(consumers_t *consumers, consumer_t *consumer) {
    if (!consumer->id) return;
    consumer_t **at = id_slot(consumers, consumer->id);
    while (*at != consumer) at = &(*at)->id_chain;
    *at = consumer->id_chain;
    consumer->id = 0;
}

/* Its name changes when it becomes durable or stops being durable. */
static void name_change(broker_t *broker, consumer_t *consumer, const consumer_request_t *request, bq_conn_t owner) {
    name_leave(&broker->consumers, consumer);
    consumer->owner = owner;
    consumer->name_hash = name_hash(broker, request, owner);
    consumer_t **slot = name_slot(&broker->consumers, consumer);
    consumer->name_chain = *slot;
    *slot = consumer;
}

/* ---- registrations: client_ids that keep a durable subscription -------------------------------------------------- */

registration_t *registration_new(broker_t *broker, const uint8_t *client_id, uint32_t size, uint64_t id) {
    registration_t *registration = pool_alloc(&broker->pool, sizeof *registration + size);
    if (!registration) return NULL;
    *registration = (registration_t){.id = id, .size = size, .hash = hash_bytes(&broker->hash_key, client_id, size, 0)};
    if (size) memcpy(registration->client_id, client_id, size);
    return registration;
}

void registration_drop(broker_t *broker, registration_t *registration) {
    pool_free(&broker->pool, registration, sizeof *registration + registration->size);
}

static registration_t *registration_find(const broker_t *broker, const consumer_t *consumer, const uint8_t *client_id,
                                         uint32_t size) {
    registration_t *registration = consumer->registrations;
    if (!registration) return NULL;
    uint64_t hash = hash_bytes(&broker->hash_key, client_id, size, 0);
    while (registration && !(registration->hash == hash && text_is(registration->client_id, registration->size, client_id, size)))
        registration = registration->next;
    return registration;
}

void registration_enter(broker_t *broker, consumer_t *consumer, registration_t *registration) {
    registration->key = consumer_owner_enter(broker, registration->client_id, registration->size);
    consumer_owner_leave(broker, consumer->key); /* now counted through its registrations */
    consumer->key = NULL;
    registration->next = consumer->registrations;
    consumer->registrations = registration;
    broker->consumers.group_registrations += consumer->registration_count++ > 0;
    consumer->durable = true;
}

static void registration_remove(broker_t *broker, consumer_t *consumer, registration_t *registration) {
    registration_t **at = &consumer->registrations;
    while (*at != registration) at = &(*at)->next;
    *at = registration->next;
    broker->consumers.group_registrations -= --consumer->registration_count > 0;
    if (consumer->registration_count)
        consumer_owner_leave(broker, registration->key);
    else
        consumer->key = registration->key;
    registration_drop(broker, registration);
}

/* Without its last registration, a durable subscription ends, and so does a durable group without members. A group with members
 * continues in memory. So does the subscription of `keep`, whose client has been told that it is not durable. True: the consumer
 * ended. */
static bool registration_end(broker_t *broker, consumer_t *consumer, registration_t *registration, const client_t *keep) {
    registration_remove(broker, consumer, registration);
    if (consumer->registrations) return false;
    consumer->durable = false;
    id_leave(&broker->consumers, consumer);
    if (!consumer->members || (!consumer->grouped && !keep)) {
        consumer_free(broker, consumer);
        return true;
    }
    consumer_request_t own = {.filter = consumer->text, .filter_size = consumer->filter_size};
    if (!consumer->grouped) name_change(broker, consumer, &own, keep->handle);
    return false;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static size_t consumer_bytes(const consumer_t *consumer) {
    return offsetof(consumer_t, text) + consumer->filter_size + consumer->client_id_size + consumer->group_size;
}

consumer_t *consumer_new(broker_t *broker, const consumer_request_t *request, bq_conn_t owner) {
    uint32_t client_id_size = request->group_size ? 0 : request->client_id_size; /* a group's client_ids are its registrations */
    size_t size = offsetof(consumer_t, text) + request->filter_size + client_id_size + request->group_size;
    consumer_t *consumer = pool_alloc(&broker->pool, size);
    if (!consumer) return NULL;
    *consumer = (consumer_t){.filter_size = request->filter_size,
                             .client_id_size = client_id_size,
                             .group_size = request->group_size,
                             .qos = request->qos,
                             .grouped = request->group_size > 0,
                             .name_hash = name_hash(broker, request, owner),
                             .owner = owner};
    consumer->filter = (consumer_filter_t){.consumer = consumer, .qos = request->qos};
    memcpy(consumer->text, request->filter, request->filter_size);
    if (client_id_size) memcpy(consumer->text + request->filter_size, request->client_id, client_id_size);
    if (request->group_size) memcpy(consumer->text + request->filter_size, request->group, request->group_size);
    bool entered = request->session
                       ? session_begin(broker, consumer)
                       : route_consumer(broker->routes, &consumer->filter, request->filter, request->filter_size) > 0;
    if (!entered) {
        pool_free(&broker->pool, consumer, size);
        return NULL;
    }
    names_enter(broker, consumer);
    consumer->key = consumer_owner_enter(broker, request->client_id, request->client_id_size);
    consumer->floor_lsn = consumer->floor_logged = broker->dispatched_lsn;
    consumer->next = broker->consumers.all;
    consumer->link = &broker->consumers.all;
    if (consumer->next) consumer->next->link = &consumer->next;
    broker->consumers.all = consumer;
    broker->consumers.count++;
    return consumer;
}

void consumer_free(broker_t *broker, consumer_t *consumer) {
    broker->stats.dropped_disconnect += consumer->window_count;
    broker->stats.enqueued += consumer->window_count;
    while (consumer->head) delivery_free(broker, consumer->head);
    while (consumer->members) member_remove(broker, consumer->members);
    consumer_history_drop(broker, consumer);
    consumer_read_abandon(broker, consumer);
    consumer_pump_never(broker, consumer);
    if (consumer->session)
        session_release(broker, consumer);
    else
        route_consumer_leave(broker->routes, &consumer->filter);
    consumer_list_forget(broker, consumer);
    name_leave(&broker->consumers, consumer);
    id_leave(&broker->consumers, consumer);
    while (consumer->registrations) registration_remove(broker, consumer, consumer->registrations);
    consumer_owner_leave(broker, consumer->key);
    *consumer->link = consumer->next;
    if (consumer->next) consumer->next->link = consumer->link;
    broker->consumers.count--;
    pool_free(&broker->pool, consumer, consumer_bytes(consumer));
}

/* ---- requests: SUB ----------------------------------------------------------------------------------------------- */

const char *const CONSUMER_NO_ROOM = "the broker is out of memory, or its WAL is full or has stopped: see the broker's log";
static const char *TOO_MANY_CONSUMERS =
    "limits.max_sessions is reached: end unused durable subscriptions (to list them: blipmq-cli sessions), or raise it";
static const char *TOO_MANY_OF_KEY =
    "limits.max_sessions_per_key is reached: end unused QoS 1 subscriptions and queue groups of this key, or raise it";
static const char *TOO_MANY_REGISTRATIONS =
    "the queue group has 1024 durable client_ids, which is the maximum: remove unused ones "
    "(blipmq-cli unsub FILTER --group GROUP --client-id ID)";

bool consumer_refuse(broker_t *broker, client_t *client, uint64_t seq, enum bq_outcome outcome, const char *why) {
    client->protocol->refuse(broker, client, seq, outcome, why);
    client_resume(broker, client, PAUSE_ANSWER);
    return false;
}

/* The consumer that a SUB refers to; NULL: a new one. A durable consumer has priority over the connection's own, which may become
 * durable. */
static consumer_t *consumer_wanted(broker_t *broker, client_t *client, const consumer_request_t *request) {
    consumer_request_t lasting = *request, passing = *request;
    lasting.durable = request->client_id_size > 0;
    passing.durable = false;
    consumer_t *own = consumer_find(broker, client, &passing);
    consumer_t *kept = lasting.durable && !request->group_size ? consumer_find(broker, client, &lasting) : NULL;
    if (kept && (request->durable || member_find(kept, client))) return kept;
    return own;
}

/* The changes a SUB has made so far, to undo if a later step fails. */
typedef struct attempt {
    consumer_t *consumer;
    member_t *member;
    uint8_t undo;
} attempt_t;

static void attempt_undo(broker_t *broker, const attempt_t *attempt) {
    if (attempt->undo & PENDING_UNDO_MEMBER) member_remove(broker, attempt->member);
    if (attempt->consumer && !attempt->consumer->members && !attempt->consumer->durable) consumer_free(broker, attempt->consumer);
}

/* The floor for the record: the unacknowledged messages that are certainly still in the WAL. Older ones stay in memory only. */
static uint64_t floor_to_wal(broker_t *broker, consumer_t *consumer) {
    uint64_t kept_from = consumer->kept_lsn;
    if (!consumer->durable && !consumer->behind) {
        wal_stats_t stats;
        wal_stats(broker->wal, &stats);
        consumer_floor_update(broker, consumer);
        kept_from = stats.first_lsn > broker->consumers.kept_from ? stats.first_lsn : broker->consumers.kept_from;
    }
    return consumer->floor_lsn + 1 < kept_from ? kept_from - 1 : consumer->floor_lsn;
}

void consumer_floor_begin(consumer_t *consumer, uint64_t floor_lsn, uint64_t lsn) {
    consumer->kept_lsn = floor_lsn + 1;
    consumer->floor_logged = floor_lsn;
    if (consumer->floor_lsn < floor_lsn && !consumer->head) consumer->floor_lsn = floor_lsn;
    consumer->settled_logged = consumer->settled_safe = consumer->waited_settled = consumer->settled;
    consumer->floor_record_lsn = consumer->waited_lsn = lsn;
}

/* Adds a client_id, so that the consumer becomes or stays durable. The SubAck waits for the commit of the record. False: no
 * room. */
static bool registration_begin(broker_t *broker, client_t *client, uint64_t seq, attempt_t *attempt,
                               const consumer_request_t *request) {
    consumer_t *consumer = attempt->consumer;
    bool fresh = attempt->undo & PENDING_UNDO_CONSUMER;
    uint64_t id = broker->consumers.next_id + 1, consumer_id = consumer->id ? consumer->id : id;
    registration_t *registration = registration_new(broker, request->client_id, request->client_id_size, id);
    pending_commit_t *pending = registration ? commit_answer_new(broker, client, seq, PENDING_SUBACK, consumer->text,
                                                                 consumer->filter_size, consumer->group_size)
                                             : NULL;
    uint64_t floor_lsn = fresh ? CONSUMER_NEW_FLOOR : floor_to_wal(broker, consumer);
    int64_t lsn = pending ? consumer_record_append(broker, consumer, registration, consumer_id, floor_lsn) : 0;
    if (lsn <= 0) {
        if (pending) commit_answer_drop(broker, pending);
        if (registration) registration_drop(broker, registration);
        return false;
    }
    broker->consumers.next_id = id;
    pending->id = id;
    pending->undo = attempt->undo | PENDING_UNDO_REGISTRATION;
    commit_answer_wait(broker, client, pending, (uint64_t)lsn);
    registration->record_lsn = (uint64_t)lsn;
    bool raised = !consumer->durable;
    registration_enter(broker, consumer, registration);
    if (!raised) return true;
    if (!consumer->grouped) name_change(broker, consumer, request, 0);
    consumer_id_assign(broker, consumer, consumer_id);
    if (fresh) consumer->filter.born_lsn = consumer->floor_lsn = floor_lsn = (uint64_t)lsn;
    consumer_floor_begin(consumer, floor_lsn, (uint64_t)lsn);
    return true;
}

/* Found at the start, but not synced yet because the disk is full: a SubAck now could be wrong after a power cut. */
static bool in_doubt(const broker_t *broker, const registration_t *registration) {
    return broker->dispatched_lsn < broker->found_lsn && registration->record_lsn > broker->dispatched_lsn;
}

const char *consumer_over_limits(broker_t *broker, const consumer_request_t *request) {
    if (broker->consumers.count + broker->consumers.group_registrations >= broker->config.max_sessions) {
        broker->stats.sessions_refused++;
        return TOO_MANY_CONSUMERS;
    }
    if (!request->keyed ||
        consumer_owner_count(broker, request->client_id, request->client_id_size) < broker->config.max_sessions_per_key)
        return NULL;
    broker->stats.sessions_refused_key++;
    return TOO_MANY_OF_KEY;
}

static const char *over_limits(broker_t *broker, const consumer_t *consumer, bool holds, const consumer_request_t *request) {
    if (consumer && holds && consumer->grouped && consumer->registration_count >= GROUP_REGISTRATIONS_MAX)
        return TOO_MANY_REGISTRATIONS;
    bool counts = !consumer || (holds && consumer->registration_count);
    return counts ? consumer_over_limits(broker, request) : NULL;
}

/* Ends the connection's own subscription after it has joined the durable one with the same filter, which has all its messages. */
static void own_end(broker_t *broker, client_t *client, const consumer_request_t *request, const consumer_t *taken_up) {
    consumer_request_t passing = *request;
    passing.durable = false;
    consumer_t *own = request->group_size || !request->durable ? NULL : consumer_find(broker, client, &passing);
    if (own && own != taken_up) consumer_free(broker, own);
}

static void raise_qos(broker_t *broker, const attempt_t *attempt, uint8_t qos) {
    if (qos > attempt->member->qos) attempt->member->qos = qos;
    if (qos <= attempt->consumer->qos) return;
    publish_run_closed(broker);
    attempt->consumer->qos = qos;
    attempt->consumer->filter.qos = qos;
    attempt->consumer->floor_lsn = broker->dispatched_lsn;
}

bool consumer_subscribe(broker_t *broker, client_t *client, uint64_t seq, const consumer_request_t *request, bool route_new,
                        bool *remains) {
    attempt_t attempt = {.consumer = consumer_wanted(broker, client, request), .undo = route_new ? PENDING_UNDO_ROUTE : 0};
    registration_t *registration = NULL;
    if (attempt.consumer && request->durable)
        registration = registration_find(broker, attempt.consumer, request->client_id, request->client_id_size);
    bool holds = request->durable && !registration;
    attempt.member = attempt.consumer ? member_find(attempt.consumer, client) : NULL;
    *remains = attempt.member != NULL;
    if (registration && in_doubt(broker, registration))
        return consumer_refuse(broker, client, seq, BQ_OUTCOME_UNAVAILABLE, CONSUMER_NO_ROOM);
    const char *over = over_limits(broker, attempt.consumer, holds, request);
    if (over) return consumer_refuse(broker, client, seq, BQ_OUTCOME_LIMIT, over);
    if (!attempt.consumer) {
        attempt.consumer = consumer_new(broker, request, request->group_size ? 0 : client->handle);
        attempt.undo |= PENDING_UNDO_CONSUMER;
    }
    if (attempt.consumer && !attempt.member && (attempt.member = member_add(broker, attempt.consumer, client)))
        attempt.undo |= PENDING_UNDO_MEMBER;
    if (!attempt.member || (holds && !registration_begin(broker, client, seq, &attempt, request))) {
        attempt_undo(broker, &attempt);
        return consumer_refuse(broker, client, seq, BQ_OUTCOME_UNAVAILABLE, CONSUMER_NO_ROOM);
    }
    own_end(broker, client, request, attempt.consumer);
    raise_qos(broker, &attempt, request->qos);
    *remains = true;
    if (holds) return true;
    /* Another connection of a client_id whose record is not durable yet also waits for that commit. */
    bool unsure = registration && registration->record_lsn > wal_durable(broker->wal);
    if (unsure &&
        commit_answer(broker, client, seq, registration->record_lsn, PENDING_SUBACK, request->filter, request->filter_size))
        return true;
    client->protocol->subscribed(broker, client, seq, request->filter, request->filter_size);
    client_resume(broker, client, PAUSE_ANSWER);
    return true;
}

/* The WAL failed before the record was durable. The client gets an error, so its subscription is undone. */
void consumer_subscribe_undo(broker_t *broker, client_t *client, const pending_commit_t *pending) {
    const uint8_t *text = pending_bytes_at(pending);
    uint32_t filter_size = pending->topic_size, group_size = pending->payload_size;
    consumer_t *consumer = NULL;
    if (pending->undo & PENDING_UNDO_FILTER) session_subscribe_undo(broker, client, text, filter_size);
    for (member_t *member = client->members; member && !consumer; member = member->client_next) {
        consumer_t *at = member->consumer;
        if (text_is(at->text, at->filter_size, text, filter_size) &&
            text_is(consumer_group(at), at->group_size, text + filter_size, group_size))
            consumer = at;
    }
    registration_t *registration = consumer && pending->undo & PENDING_UNDO_REGISTRATION ? consumer->registrations : NULL;
    while (registration && registration->id != pending->id) registration = registration->next;
    if (registration && registration_end(broker, consumer, registration, client)) consumer = NULL;
    if (consumer && pending->undo & PENDING_UNDO_MEMBER) {
        member_t *member = member_find(consumer, client);
        if (member) member_remove(broker, member);
        if (!consumer->members && !consumer->durable) consumer_free(broker, consumer);
    }
    if (pending->undo & PENDING_UNDO_ROUTE && route_unsubscribe(broker->routes, client, client->subscriptions, text, filter_size))
        client->subscription_count--;
    if (pending->undo & (PENDING_UNDO_MEMBER | PENDING_UNDO_ROUTE | PENDING_UNDO_FILTER))
        event_unsubscribed(broker, client, text, filter_size, text + filter_size, group_size, BQ_OUTCOME_UNAVAILABLE);
}

/* ---- requests: UNSUB --------------------------------------------------------------------------------------------- */

static bool concerns(const consumer_t *consumer, const consumer_request_t *request) {
    if (consumer->session) return false; /* see session_unsubscribe */
    return !request->group_size || text_is(consumer_group(consumer), consumer->group_size, request->group, request->group_size);
}

uint32_t consumer_registrations_end(broker_t *broker, const consumer_request_t *request, uint64_t id_max, bool end) {
    uint32_t count = 0, index = 0;
    const consumer_filter_t *at;
    while ((at = route_consumer_at(broker->routes, request->filter, request->filter_size, index))) {
        consumer_t *consumer = at->consumer;
        registration_t *registration =
            concerns(consumer, request) ? registration_find(broker, consumer, request->client_id, request->client_id_size) : NULL;
        bool ends = registration && registration->id <= id_max;
        count += ends;
        /* otherwise another consumer moved to this index */
        if (!ends || !end || !registration_end(broker, consumer, registration, NULL)) index++;
    }
    return count;
}

/* Ends this connection's membership in every consumer with that filter (and group). */
static uint32_t memberships_end(broker_t *broker, client_t *client, const consumer_request_t *request) {
    uint32_t count = 0;
    for (member_t *member = client->members, *next; member; member = next) {
        consumer_t *consumer = member->consumer;
        next = member->client_next;
        if (!text_is(consumer->text, consumer->filter_size, request->filter, request->filter_size) ||
            !concerns(consumer, request))
            continue;
        count++;
        member_remove(broker, member);
        if (!consumer->members && !consumer->durable) consumer_free(broker, consumer);
    }
    return count;
}

bool consumer_unsubscribe(broker_t *broker, client_t *client, uint64_t seq, const consumer_request_t *request, bool *ended,
                          bool *pending) {
    *pending = request->client_id_size && broker->wal && consumer_registrations_end(broker, request, UINT64_MAX, false);
    if (*pending) {
        pending_commit_t *answer = commit_answer_new(broker, client, seq, PENDING_REPLY, NULL, 0, 0);
        int64_t lsn = answer ? consumer_leave_append(broker, request) : 0;
        if (lsn <= 0) {
            if (answer) commit_answer_drop(broker, answer);
            return consumer_refuse(broker, client, seq, BQ_OUTCOME_UNAVAILABLE, CONSUMER_NO_ROOM);
        }
        commit_answer_wait(broker, client, answer, (uint64_t)lsn);
        consumer_registrations_end(broker, request, UINT64_MAX, true);
    }
    *ended = memberships_end(broker, client, request) || *pending;
    return true;
}

void consumer_leave_one(broker_t *broker, client_t *client) {
    consumer_t *consumer = client->members->consumer;
    broker->stats.work += WORK_DELIVERY + consumer->window_count / WORK_DROPS;
    member_remove(broker, client->members);
    if (!consumer->member_count && !consumer->durable) consumer_free(broker, consumer);
}

void consumer_leave_all(broker_t *broker, client_t *client) {
    while (client->members) consumer_leave_one(broker, client);
}

uint32_t consumers_missed(broker_t *broker, const pending_commit_t *pending) {
    uint32_t count = 0;
    const uint8_t *topic = message_topic(pending_bytes_at(pending));
    for (consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next) {
        if (!consumer->durable || !consumer->qos) continue;
        consumer_fall_behind(broker, consumer, pending->lsn);
        count += consumer_matches(consumer, pending->lsn, topic, pending->topic_size);
    }
    return count;
}

/* ---- all consumers ----------------------------------------------------------------------------------------------- */

bool consumers_init(broker_t *broker) {
    broker->consumers.pump_tail = &broker->consumers.pump;
    return flight_init(broker) && tables_make(broker, CONSUMERS_SIZE_MIN);
}

void consumers_release(broker_t *broker) {
    consumers_t *consumers = &broker->consumers;
    while (consumers->all) consumer_free(broker, consumers->all);
    consumer_end_release(broker);
    flight_release(broker);
    if (consumers->names) pool_free(&broker->pool, consumers->names, 2 * consumers->table_size * sizeof *consumers->names);
    consumers->names = consumers->ids = NULL;
    for (uint32_t slot = 0; slot < CONSUMER_SLOTS; slot++) /* after wal_close no read is active */
        if (consumers->readers[slot].buffer)
            pool_free(&broker->pool, consumers->readers[slot].buffer, consumers->readers[slot].capacity);
}
