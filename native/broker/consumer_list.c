/* broker/consumer_list.c: see broker/consumer_list.h.
 *
 * A row is told if its lag is at least what was asked for, or if it keeps more of the log than every one before it: so the one
 * that keeps most is always among the rows, whatever its lag.
 */
#include "broker/consumer_internal.h"
#include "core.h"
#include "wal/span.h"
#include "broker/consumer_list.h"

#define FRONT_BYTES_MAX 64u
#define PAGE_BYTES (12u << 10)
#define PAGE_SESSIONS 1024u /* looked at per page, so that a page without a row is no long walk either */
#define GROUP_MEMBERS 64u   /* looked at, to find those of one key */
#define TEXT_BYTES_MAX 512u /* of a group or client_id: what is longer comes from no broker */
#define CLIENTS_MAX 8u      /* of a queue group's */
#define ROW_BYTES_MAX (sizeof(bq_session_row_t) + FRAME_TOPIC_BYTES_MAX + TEXT_BYTES_MAX + CLIENTS_MAX * (2 + TEXT_BYTES_MAX) + 8)

/* ---- what a session has not settled -------------------------------------------------------------------------------------- */

uint64_t session_lag_messages(const session_t *session) { return session->window_count + session->behind_messages; }
uint64_t session_lag_bytes(const session_t *session) { return session->window_bytes + session->behind_bytes; }

uint64_t session_stamp_ms(const session_t *session) {
    if (session->head) return message_qos1_timestamp(session->head->hold.segment->bytes + session->head->hold.offset);
    return session->behind_messages ? session->behind_stamp_ms : 0;
}

/* By the wall clock, which the messages were stamped with: one that was set in between makes it wrong. */
uint64_t session_oldest_ms(const bq_t *bq, const session_t *session) {
    uint64_t stamp_ms = session_stamp_ms(session);
    if (!stamp_ms) return UINT64_MAX;
    return bq->wall_ms > stamp_ms ? bq->wall_ms - stamp_ms : 0;
}

static uint64_t log_bytes_of(const session_t *session, const log_span_t *span) {
    if (!session->durable || !span->count || (!session->head && !session->behind)) return 0;
    return log_span_bytes(span, session->floor_lsn + 1);
}

void session_counts(const bq_t *bq, session_counts_t *counts) {
    *counts = (session_counts_t){0};
    for (const session_t *session = bq->sessions.all; session; session = session->next) {
        counts->behind += session->behind;
        counts->absent += session->durable && !session->member_count;
        if (session->grouped) counts->members += session->member_count;
    }
}

/* ---- what is asked for ---------------------------------------------------------------------------------------------------- */

static bool holds(const uint8_t *text, uint32_t size, const uint8_t *part, uint32_t part_size) {
    for (uint32_t at = 0; at + part_size <= size; at++)
        if (!memcmp(text + at, part, part_size)) return true;
    return false;
}

/* A group is kept for client_ids of its own, any other session has one or none: the first few of them, until one is what is asked. */
static bool any_client(const session_t *session, bool (*asked)(const uint8_t *, uint32_t, const uint8_t *, uint32_t),
                       const uint8_t *part, uint32_t part_size) {
    if (!session->grouped)
        return session->client_id_size && asked(session_client_id(session), session->client_id_size, part, part_size);
    const holder_t *holder = session->holders;
    for (uint32_t i = 0; holder && i < GROUP_MEMBERS; i++, holder = holder->next)
        if (asked(holder->client_id, holder->size, part, part_size)) return true;
    return false;
}

static bool begins(const uint8_t *text, uint32_t size, const uint8_t *part, uint32_t part_size) {
    return size >= part_size && !memcmp(text, part, part_size);
}

bool session_client_is(const uint8_t *identity, uint32_t identity_size, const uint8_t *client_id, uint32_t size) {
    if (identity_size < size || memcmp(identity + identity_size - size, client_id, size) != 0) return false;
    return identity_size == size || identity[identity_size - size - 1] == KEY_ENDS;
}

static bool is_exactly(const session_t *session, const session_list_request_t *request) {
    if (session->filter_size != request->find_size || memcmp(session->text, request->find, request->find_size) != 0) return false;
    if (!request->owner_size) return session->grouped;
    if (!session->grouped)
        return session_client_is(session_client_id(session), session->client_id_size, request->owner, request->owner_size);
    const holder_t *holder = session->holders;
    while (holder && !session_client_is(holder->client_id, holder->size, request->owner, request->owner_size))
        holder = holder->next;
    return holder != NULL;
}

static bool is_found(const session_t *session, const session_list_request_t *request) {
    if (request->exact) return is_exactly(session, request);
    return !request->find_size || holds(session->text, session->filter_size, request->find, request->find_size) ||
           any_client(session, holds, request->find, request->find_size) ||
           holds(session_group(session), session->group_size, request->find, request->find_size);
}

/* By the client_id, which begins with the name of its key, or by a connection that came in with the same key. */
static bool is_own(const session_t *session, const session_list_request_t *request, const connection_t *asker) {
    if (!request->conn) return true;
    if (request->owner_size && any_client(session, begins, request->owner, request->owner_size)) return true;
    const member_t *member = session->members;
    for (uint32_t i = 0; asker && asker->rights && member && i < GROUP_MEMBERS; i++, member = member->next)
        if (member->connection->rights == asker->rights) return true;
    return false;
}

/* ---- pages ----------------------------------------------------------------------------------------------------------------- */

static void row_fill(const bq_t *bq, const session_t *session, const log_span_t *span, bq_session_row_t *row) {
    *row = (bq_session_row_t){.id = session->id,
                              .conn = session->members ? session->members->connection->handle : 0,
                              .lag_messages = session_lag_messages(session),
                              .lag_bytes = session_lag_bytes(session),
                              .log_bytes = log_bytes_of(session, span),
                              .oldest_ms = session_oldest_ms(bq, session),
                              .last_seen_ms = session->members ? bq->wall_ms : session->seen_wall_ms,
                              .away_ms = session_away_ms(bq, session),
                              .enqueued = session->enqueued,
                              .acked = session->acked,
                              .redelivered = session->redelivered,
                              .dropped_ttl = session->dropped_ttl,
                              .dropped_queue_full = session->dropped_queue_full,
                              .dead_lettered = session->dead_lettered,
                              .over_quota = session->over_quota,
                              .members = session->member_count,
                              .in_flight = session->flight_count,
                              .flags = (session->durable ? BQ_SESSION_DURABLE : 0u) | (session->grouped ? BQ_SESSION_GROUP : 0u) |
                                       (session->qos ? BQ_SESSION_QOS1 : 0u) | (session->behind ? BQ_SESSION_BEHIND : 0u) |
                                       (session->behind_unsure ? BQ_SESSION_LAG_UNSURE : 0u),
                              .clients = session->grouped ? session->holder_count : session->client_id_size > 0};
}

static void sums_add(bq_session_sums_t *sums, const bq_session_row_t *row) {
    sums->sessions++;
    sums->durable += (row->flags & BQ_SESSION_DURABLE) != 0;
    sums->absent += (row->flags & BQ_SESSION_DURABLE) && !row->members;
    sums->lag_messages += row->lag_messages;
    sums->lag_bytes += row->lag_bytes;
}

static uint32_t text_write(uint8_t *out, const uint8_t *text, uint32_t size) {
    if (size > TEXT_BYTES_MAX) size = TEXT_BYTES_MAX;
    if (size) memcpy(out, text, size);
    return size;
}

static uint32_t client_write(uint8_t *out, const uint8_t *text, uint32_t size) {
    uint32_t written = text_write(out + 2, text, size);
    store_u16(out, (uint16_t)written);
    return 2 + written;
}

static uint32_t row_write(uint8_t *out, bq_session_row_t *row, const session_t *session) {
    uint32_t at = sizeof *row;
    at += row->filter_size = text_write(out + at, session->text, session->filter_size);
    at += row->group_size = text_write(out + at, session_group(session), session->group_size);
    if (session->client_id_size) row->clients_size = client_write(out + at, session_client_id(session), session->client_id_size);
    const holder_t *holder = session->grouped ? session->holders : NULL;
    for (uint32_t i = 0; holder && i < CLIENTS_MAX; i++, holder = holder->next)
        row->clients_size += client_write(out + at + row->clients_size, holder->client_id, holder->size);
    at += row->clients_size;
    memcpy(out, row, sizeof *row);
    memset(out + at, 0, (8 - at % 8) % 8);
    return (at + 7) & ~7u;
}

static uint32_t page_fill(bq_t *bq, const session_list_request_t *request, uint8_t *out) {
    session_list_t *list = &bq->sessions.list;
    const connection_t *asker = request->conn ? connection_find(bq, request->conn) : NULL;
    uint32_t used = 0;
    log_span_t span = {.count = 0};
    if (bq->log) log_span(bq->log, &span);
    for (uint32_t looked = 0; list->next && looked < PAGE_SESSIONS && used + ROW_BYTES_MAX <= PAGE_BYTES; looked++) {
        const session_t *session = list->next;
        list->next = session->next;
        if (!is_found(session, request) || !is_own(session, request, asker)) continue;
        bq_session_row_t row;
        row_fill(bq, session, &span, &row);
        sums_add(&list->sums, &row);
        if (row.lag_messages < request->lag_min && row.log_bytes <= list->log_bytes_max) continue;
        if (row.log_bytes > list->log_bytes_max) list->log_bytes_max = row.log_bytes;
        used += row_write(out + used, &row, session);
    }
    return used;
}

/* BQ_APART: the page is large for a stack that other commands share. */
BQ_APART bool event_sessions(bq_t *bq, const session_list_request_t *request) {
    session_list_t *list = &bq->sessions.list;
    uint8_t data[sizeof(bq_session_sums_t) + PAGE_BYTES];
    if (!event_room(bq)) return false;
    if (request->begin) *list = (session_list_t){.next = bq->sessions.all, .seq = request->seq};
    if (list->seq != request->seq) list->next = NULL; /* a walk that another has ended */
    uint32_t used = page_fill(bq, request, data + sizeof list->sums);
    memcpy(data, &list->sums, sizeof list->sums);
    return event_push(bq, &(bq_event_t){.type = BQ_EV_SESSIONS,
                                        .seq = request->seq,
                                        .value = list->next != NULL,
                                        .data = data,
                                        .data_size = (uint32_t)sizeof list->sums + used});
}

void session_list_forget(bq_t *bq, const session_t *session) {
    if (bq->sessions.list.next == session) bq->sessions.list.next = session->next;
    if (bq->sessions.expire_next == session) bq->sessions.expire_next = session->next;
    if (bq->sessions.quota_next == session) bq->sessions.quota_next = session->next;
}

BQ_APART bool event_session(bq_t *bq, uint16_t type, const session_t *session, const uint8_t *front, uint32_t front_size) {
    uint8_t data[FRONT_BYTES_MAX + ROW_BYTES_MAX];
    bq_session_row_t row;
    log_span_t span;
    log_span(bq->log, &span);
    row_fill(bq, session, &span, &row);
    if (front_size) memcpy(data, front, front_size);
    uint32_t size = front_size + row_write(data + front_size, &row, session);
    return event_push(bq, &(bq_event_t){.type = type, .data = data, .data_size = size});
}
