/* session.c: see session.h for the picture and the invariants. */
#include "session.h"
#include "commit.h"
#include "core.h"
#include "trie.h"

#include <stdlib.h>

#define READ_BUFFER_BYTES (256u << 10)
#define FLIGHT_SIZE_MIN 256u
#define SESSIONS_SIZE_MIN 64u
#define BACKOFF_DOUBLINGS_MAX 5u /* the ack timeout grows to 32 times itself */
#define DEAD_LETTER_RETRY_MS 1000u
#define DEAD_LETTER_PREFIX "$dlq/"

/* ---- deliveries in flight, by (id, connection) ---------------------------------------------------------------------- */

static uint64_t flight_hash(uint64_t id, const connection_t *connection) {
    uint64_t hash = (id ^ connection->handle * 0x9E3779B97F4A7C15ull) * 0xD6E8FEB86659FD93ull;
    return hash ^ hash >> 32;
}

static delivery_t **flight_slot(sessions_t *sessions, uint64_t id, const connection_t *connection) {
    return &sessions->flight[flight_hash(id, connection) & (sessions->flight_size - 1)];
}

static void flight_grow(bq_t *bq) {
    sessions_t *sessions = &bq->sessions;
    uint32_t size = sessions->flight_size * 2;
    delivery_t **table = pool_take(&bq->pool, size * sizeof *table);
    if (!table) return; /* longer chains are slower, not wrong */
    memset(table, 0, size * sizeof *table);
    for (uint32_t i = 0; i < sessions->flight_size; i++) {
        for (delivery_t *delivery = sessions->flight[i], *next; delivery; delivery = next) {
            next = delivery->chain;
            delivery_t **slot = &table[flight_hash(delivery->id, delivery->member->connection) & (size - 1)];
            delivery->chain = *slot;
            *slot = delivery;
        }
    }
    pool_give(&bq->pool, sessions->flight, sessions->flight_size * sizeof *table);
    sessions->flight = table;
    sessions->flight_size = size;
}

static void flight_enter(bq_t *bq, delivery_t *delivery, member_t *member) {
    sessions_t *sessions = &bq->sessions;
    if (sessions->flight_count >= sessions->flight_size) flight_grow(bq);
    delivery_t **slot = flight_slot(sessions, delivery->id, member->connection);
    delivery->chain = *slot;
    *slot = delivery;
    delivery->member = member;
    member->flight_count++;
    delivery->session->flight_count++;
    sessions->flight_count++;
}

static void flight_leave(bq_t *bq, delivery_t *delivery) {
    delivery_t **at = flight_slot(&bq->sessions, delivery->id, delivery->member->connection);
    while (*at != delivery) at = &(*at)->chain;
    *at = delivery->chain;
    delivery->member->flight_count--;
    delivery->session->flight_count--;
    bq->sessions.flight_count--;
    delivery->member = NULL;
}

/* ---- the window ------------------------------------------------------------------------------------------------------ */

static void pump_later(bq_t *bq, session_t *session) {
    if (session->pumping) return;
    session->pumping = true;
    session->pump_next = bq->sessions.pump;
    bq->sessions.pump = session;
}

static void floor_update(bq_t *bq, session_t *session) {
    if (session->head)
        session->floor_lsn = session->head->lsn - 1;
    else
        session->floor_lsn = session->behind ? session->next_lsn - 1 : bq->fanned_lsn;
}

static void delivery_free(bq_t *bq, delivery_t *delivery) {
    session_t *session = delivery->session;
    if (delivery->member) flight_leave(bq, delivery);
    if (session->cursor == delivery) session->cursor = delivery->next;
    if (delivery->previous)
        delivery->previous->next = delivery->next;
    else
        session->head = delivery->next;
    if (delivery->next)
        delivery->next->previous = delivery->previous;
    else
        session->tail = delivery->previous;
    session->window_count--;
    session->window_bytes -= delivery->hold.size;
    wheel_remove(&bq->wheel, &delivery->hold.timer.wheel);
    segment_unlink(&bq->segments, &delivery->hold);
    pool_give(&bq->pool, delivery, sizeof *delivery);
}

/* One delivery is done with, for the reason that `counter` counts. */
static void delivery_settle(bq_t *bq, delivery_t *delivery, uint64_t *counter, uint64_t *total) {
    session_t *session = delivery->session;
    (*counter)++;
    (*total)++;
    bq->stats.enqueued++; /* counted when it is settled, so that the sum over all outcomes holds at any time */
    session->settled++;
    delivery_free(bq, delivery);
    floor_update(bq, session);
    pump_later(bq, session);
}

/* What is in flight and as much again, so that acknowledgements find the next ones ready. A session that is not durable has no
 * log to read the rest from: its window is its queue, as long as any other. */
static bool window_has_room(const bq_t *bq, const session_t *session, uint32_t size) {
    if (session->window_count && publish_over_budget(bq)) return false;
    uint32_t count_max = bq->config.max_in_flight * (session->member_count > 1 ? session->member_count + 1 : 2);
    if (!session->durable && count_max < bq->config.subscriber_messages) count_max = bq->config.subscriber_messages;
    return session->window_count == 0 ||
           (session->window_count < count_max && session->window_bytes + size <= bq->config.subscriber_bytes);
}

/* Take a frame that lies in a segment into the window, at its end. */
static bool delivery_add(bq_t *bq, session_t *session, segment_t *segment, uint32_t offset, uint32_t size, uint64_t lsn,
                         uint64_t id, uint64_t expiry_tick) {
    delivery_t *delivery = pool_take(&bq->pool, sizeof *delivery);
    if (!delivery) return false;
    *delivery = (delivery_t){.session = session, .previous = session->tail, .lsn = lsn, .id = id, .expiry_tick = expiry_tick};
    delivery->hold = (queue_entry_t){.timer = {.kind = TIMER_DELIVERY}, .offset = offset, .size = size};
    delivery->redelivered = lsn <= session->doubtful_lsn;
    segment_link(segment, &delivery->hold);
    if (session->tail)
        session->tail->next = delivery;
    else
        session->head = delivery;
    session->tail = delivery;
    if (!session->cursor) session->cursor = delivery;
    session->window_count++;
    session->window_bytes += size;
    if (expiry_tick) wheel_insert(&bq->wheel, &delivery->hold.timer.wheel, expiry_tick);
    return true;
}

static void fall_behind(session_t *session, uint64_t lsn) {
    if (session->behind) return;
    session->behind = true;
    session->next_lsn = lsn;
}

/* Its window is its queue, and what is in flight may not be taken back out: under any policy, what comes is what is dropped. */
static void overflow(bq_t *bq, session_t *session) {
    session->dropped_queue_full++;
    bq->stats.dropped_queue_full++;
    bq->stats.enqueued++;
}

/* ---- sending ---------------------------------------------------------------------------------------------------------- */

/* The frame again, marked. The old bytes may be on their way to somebody else and stay as they are. */
static bool mark_redelivered(bq_t *bq, delivery_t *delivery) {
    publish_run_close(bq);
    uint32_t size = delivery->hold.size;
    uint8_t *out = segment_reserve(&bq->segments, size);
    if (!out) return false;
    memcpy(out, delivery->hold.segment->bytes + delivery->hold.offset, size);
    message_qos1_mark_redelivered(out);
    segment_t *segment = bq->segments.open;
    uint32_t offset = segment->used;
    segment_commit(&bq->segments, size);
    segment_unlink(&bq->segments, &delivery->hold);
    delivery->hold.offset = offset;
    segment_link(segment, &delivery->hold);
    return true;
}

static uint64_t ack_timeout_ms(const bq_t *bq, const delivery_t *delivery) {
    uint32_t doublings = delivery->deliveries < BACKOFF_DOUBLINGS_MAX ? delivery->deliveries : BACKOFF_DOUBLINGS_MAX;
    return (uint64_t)bq->config.ack_timeout_ms << doublings;
}

static bool send_to(bq_t *bq, delivery_t *delivery, member_t *member) {
    if (delivery->redelivered && !mark_redelivered(bq, delivery)) return false;
    queue_run_t run = {.segment = delivery->hold.segment, .offset = delivery->hold.offset, .size = delivery->hold.size};
    if (!queue_push_kept(&member->connection->queue, &bq->queues, &run)) return false;
    connection_mark_dirty(bq, member->connection);
    flight_enter(bq, delivery, member);
    core_timer_set(bq, &delivery->hold.timer, ack_timeout_ms(bq, delivery));
    if (delivery->redelivered) {
        delivery->session->redelivered++;
        bq->stats.redelivered++;
    }
    delivery->deliveries++;
    return true;
}

/* Whose turn it is among the live members with fewer than `flight_max` messages in flight; NULL: none of them. */
static member_t *member_in_turn(session_t *session, uint32_t flight_max) {
    for (uint32_t i = 0; i < session->member_count; i++) {
        member_t *member = session->turn ? session->turn : session->members;
        session->turn = member->next;
        if (member->connection->state == CONNECTION_OPEN && member->flight_count < flight_max) return member;
    }
    return NULL;
}

connection_t *session_turn(session_t *session) {
    member_t *member = member_in_turn(session, UINT32_MAX);
    return member ? member->connection : NULL;
}

static void read_start(bq_t *bq, session_t *session) {
    sessions_t *sessions = &bq->sessions;
    for (uint32_t slot = 0; slot < SESSION_SLOTS; slot++) {
        if (sessions->reading[slot]) continue;
        uint8_t *buffer = sessions->read_buffers[slot];
        if (!buffer) buffer = sessions->read_buffers[slot] = malloc(READ_BUFFER_BYTES + bq->config.max_frame_bytes);
        if (!buffer ||
            log_read_start(bq->log, slot, session->next_lsn, buffer, READ_BUFFER_BYTES + bq->config.max_frame_bytes) < 0)
            return;
        sessions->readers[slot] = session;
        sessions->reading[slot] = true;
        session->read_slot = (int8_t)slot;
        return;
    }
}

/* One record says how far a session has got, however many acks that were. False: the log takes nothing more now. */
static bool floor_log(bq_t *bq, session_t *session) {
    if (!session->durable || session->settled == session->settled_logged || session->floor_lsn <= session->floor_logged)
        return true;
    uint64_t ack[2] = {session->id, session->floor_lsn};
    log_part_t part = {ack, sizeof ack};
    int64_t lsn = log_append(bq->log, LOG_ACK, 0, &part, 1, true);
    if (lsn < 0) return false;
    session->floor_logged = session->floor_lsn;
    session->settled_logged = session->settled;
    session->floor_record_lsn = (uint64_t)lsn;
    return true;
}

/* What was settled since the newest floor on disk, and what is in flight, would come again after a crash: two windows of that
 * and no more. True: the next one waits for the commit that this asks for. A log that takes nothing holds nobody up. */
static bool waits_for_floor(bq_t *bq, session_t *session) {
    if (!session->durable || log_state(bq->log)) return false;
    uint64_t durable = log_durable(bq->log);
    if (durable >= session->waited_lsn) { /* a record only when it is durable: newer ones follow each other without end */
        session->settled_safe = session->waited_settled;
        session->waited_lsn = session->floor_record_lsn;
        session->waited_settled = session->settled_logged;
    }
    if (durable >= session->floor_record_lsn) session->settled_safe = session->settled_logged;
    uint64_t unsafe = session->settled_logged - session->settled_safe;
    if (session->floor_lsn > session->floor_logged) unsafe += session->settled - session->settled_logged;
    if (unsafe + session->flight_count < 2ull * bq->config.max_in_flight * session->member_count) return false;
    bq->commit_wanted |= unsafe > 0;
    return unsafe > 0;
}

static bool hungry(const bq_t *bq, const session_t *session) {
    return session->behind && session->next_lsn <= bq->fanned_lsn && session->members && session->read_slot < 0 &&
           session->window_count <= bq->config.max_in_flight;
}

/* Send what can be sent, and fetch more when the window runs low. */
static void pump(bq_t *bq, session_t *session) {
    while (session->cursor && session->member_count) {
        delivery_t *delivery = session->cursor;
        if (!delivery->member) {
            if (waits_for_floor(bq, session)) {
                pump_later(bq, session);
                break;
            }
            member_t *member = member_in_turn(session, bq->config.max_in_flight);
            if (!member || !send_to(bq, delivery, member)) break;
        }
        session->cursor = delivery->next;
    }
    if (hungry(bq, session)) read_start(bq, session);
}

void session_offer(bq_t *bq, session_t *session, const held_t *held) {
    for (member_t *member = session->members; member && !session->grouped; member = member->next)
        member->connection->fan_mark = held->lsn;
    session->enqueued++;
    if (session->behind) return; /* it is in the log, at next_lsn or later */
    bool room = window_has_room(bq, session, held->hold.size) && (session->members || !session->durable);
    if (room && delivery_add(bq, session, held->hold.segment, held->hold.offset, held->hold.size, held->lsn, held->id,
                             held->expiry_tick)) {
        pump(bq, session); /* at once, so that it keeps its place among QoS 0 messages that follow it */
        return;
    }
    if (session->durable)
        fall_behind(session, held->lsn);
    else
        overflow(bq, session);
}

void session_pump_all(bq_t *bq) {
    session_t *session = bq->sessions.pump;
    bq->sessions.pump = NULL;
    while (session) {
        session_t *next = session->pump_next;
        session->pumping = false;
        pump(bq, session);
        bool logged = floor_log(bq, session);
        /* The log is full for now, or all readers are busy: look again when a commit or a read has ended. */
        if (!logged || hungry(bq, session)) pump_later(bq, session);
        session = next;
    }
}

/* ---- reading back ------------------------------------------------------------------------------------------------------ */

/* What is left of the ttl: known while the process that wrote the record runs, else all of it (no clock survives a restart). */
static bool expiry_of(const bq_t *bq, const publish_record_t *record, uint64_t *tick) {
    uint64_t elapsed = record->run == bq->run ? bq->now_ms - record->mono_ms : 0;
    *tick = 0;
    if (!record->ttl_ms) return true;
    if (elapsed >= record->ttl_ms) return false;
    *tick = publish_expiry_tick(bq, bq->now_ms, record->ttl_ms - elapsed);
    return true;
}

enum take { TAKE_OK, TAKE_FULL, TAKE_SKIP };

/* A CRC shows that a record is as it was written, not that a core wrote it: what it says of itself must fit, and its topic be one. */
static bool publish_read(const uint8_t *bytes, uint32_t size, publish_record_t *record) {
    if (size < sizeof *record) return false;
    memcpy(record, bytes, sizeof *record);
    return record->topic_size <= size - sizeof *record && topic_check(bytes + sizeof *record, record->topic_size) == 0;
}

static enum take take_back(bq_t *bq, session_t *session, uint64_t lsn, const uint8_t *bytes, uint32_t size) {
    publish_record_t record;
    uint64_t tick;
    if (!publish_read(bytes, size, &record)) return TAKE_SKIP;
    const uint8_t *topic = bytes + sizeof record, *payload = topic + record.topic_size;
    uint32_t payload_size = size - (uint32_t)sizeof record - record.topic_size;
    if (filter_match(session->text, session->filter_size, topic, record.topic_size) != 1) return TAKE_SKIP;
    if (!expiry_of(bq, &record, &tick)) {
        session->dropped_ttl++;
        session->settled++;
        bq->stats.dropped_ttl++;
        bq->stats.enqueued++;
        return TAKE_SKIP;
    }
    uint32_t prefix_size = message_qos1_prefix_size(record.topic_size);
    if (!window_has_room(bq, session, prefix_size + payload_size)) return TAKE_FULL;
    publish_run_close(bq);
    uint8_t *out = segment_reserve(&bq->segments, prefix_size + payload_size);
    if (!out) return TAKE_FULL;
    message_qos1_write(out, topic, record.topic_size, record.id, record.timestamp_ms, record.ttl_ms, payload_size, false);
    if (payload_size) memcpy(out + prefix_size, payload, payload_size);
    segment_t *segment = bq->segments.open;
    if (!delivery_add(bq, session, segment, segment->used, prefix_size + payload_size, lsn, record.id, tick)) return TAKE_FULL;
    segment_commit(&bq->segments, prefix_size + payload_size);
    return TAKE_OK;
}

/* Items of log_read: see log.h. */
static void take_items(bq_t *bq, session_t *session, const uint8_t *items, uint32_t used) {
    for (uint32_t at = 0; at < used;) {
        uint64_t lsn = load_u64(items + at);
        uint32_t size = load_u32(items + at + 8);
        if (lsn > bq->fanned_lsn) return; /* durable, but its turn in commit_turn has not come: it will be offered */
        if (items[at + 12] == LOG_PUBLISH && lsn >= session->next_lsn) {
            if (take_back(bq, session, lsn, items + at + 16, size) == TAKE_FULL) {
                session->next_lsn = lsn;
                return;
            }
        }
        session->next_lsn = lsn + 1;
        at += (16 + size + 7) & ~7u;
    }
}

void session_read_finished(bq_t *bq, const log_read_t *read) {
    session_t *session = bq->sessions.readers[read->slot];
    bq->sessions.readers[read->slot] = NULL;
    bq->sessions.reading[read->slot] = false;
    if (!session) return; /* it was given up meanwhile */
    session->read_slot = -1;
    if (read->result >= 0) {
        take_items(bq, session, bq->sessions.read_buffers[read->slot], read->used);
        if (!read->result && read->next_lsn > session->next_lsn) session->next_lsn = read->next_lsn;
    } else if (read->result == LOG_E_GONE && read->next_lsn > session->next_lsn) {
        bq->stats.lost_lsns += read->next_lsn - session->next_lsn; /* damaged on disk: counted and logged, never silent */
        session->next_lsn = read->next_lsn;
    }
    if (session->next_lsn > bq->fanned_lsn && session->next_lsn > bq->found_lsn) session->behind = false;
    floor_update(bq, session);
    pump_later(bq, session);
}

/* ---- acknowledgements and timers --------------------------------------------------------------------------------------- */

void session_ack(bq_t *bq, connection_t *connection, uint64_t id) {
    if (!connection->members) return;
    delivery_t *delivery = *flight_slot(&bq->sessions, id, connection);
    while (delivery) {
        delivery_t *next = delivery->chain;
        if (delivery->id == id && delivery->member->connection == connection) {
            bq->stats.delivered++;
            delivery_settle(bq, delivery, &delivery->session->acked, &bq->stats.acked);
        }
        delivery = next;
    }
}

static void send_again(bq_t *bq, delivery_t *delivery) {
    session_t *session = delivery->session;
    flight_leave(bq, delivery);
    delivery->redelivered = true;
    wheel_remove(&bq->wheel, &delivery->hold.timer.wheel);
    if (delivery->expiry_tick) wheel_insert(&bq->wheel, &delivery->hold.timer.wheel, delivery->expiry_tick);
    if (!session->cursor || session->cursor->lsn > delivery->lsn) session->cursor = delivery;
    pump_later(bq, session);
}

static bool dead_letter(bq_t *bq, const delivery_t *delivery) {
    const uint8_t *frame = delivery->hold.segment->bytes + delivery->hold.offset;
    uint32_t topic_size = message_qos1_name_size(frame);
    uint8_t topic[FRAME_TOPIC_BYTES_MAX];
    uint32_t prefix_size = sizeof DEAD_LETTER_PREFIX - 1;
    if (topic_size > sizeof topic - prefix_size) topic_size = sizeof topic - prefix_size; /* cut at a character below */
    memcpy(topic, DEAD_LETTER_PREFIX, prefix_size);
    memcpy(topic + prefix_size, message_qos1_name(frame), topic_size);
    while (topic_check(topic, prefix_size + topic_size)) topic_size--;
    uint32_t head_size = message_qos1_prefix_size(message_qos1_name_size(frame));
    return commit_dead_letter(bq, topic, prefix_size + topic_size, delivery, frame + head_size, delivery->hold.size - head_size);
}

static void give_up(bq_t *bq, delivery_t *delivery) {
    session_t *session = delivery->session;
    const uint8_t *frame = delivery->hold.segment->bytes + delivery->hold.offset;
    uint32_t prefix_size = sizeof DEAD_LETTER_PREFIX - 1;
    bool own = message_qos1_name_size(frame) >= prefix_size && !memcmp(message_qos1_name(frame), DEAD_LETTER_PREFIX, prefix_size);
    if (!own && !dead_letter(bq, delivery)) { /* the log takes nothing now: keep it until it does */
        core_timer_set(bq, &delivery->hold.timer, DEAD_LETTER_RETRY_MS);
        return;
    }
    delivery_settle(bq, delivery, &session->dead_lettered, &bq->stats.dead_lettered);
}

void session_timeout(bq_t *bq, delivery_t *delivery) {
    session_t *session = delivery->session;
    bool expired = delivery->expiry_tick && delivery->expiry_tick <= bq->wheel.now;
    if (expired) {
        delivery_settle(bq, delivery, &session->dropped_ttl, &bq->stats.dropped_ttl);
    } else if (delivery->member && delivery->deliveries >= bq->config.max_deliveries) {
        give_up(bq, delivery);
    } else if (delivery->member) {
        send_again(bq, delivery);
    }
}

/* ---- members ------------------------------------------------------------------------------------------------------------ */

static void read_abandon(bq_t *bq, session_t *session) {
    if (session->read_slot >= 0) bq->sessions.readers[session->read_slot] = NULL;
    session->read_slot = -1;
}

/* Nobody is there: what is in the log need not be in memory. It is read back when a client comes, marked as far as it was sent. */
static void window_leave_to_log(bq_t *bq, session_t *session) {
    if (!session->head) return;
    read_abandon(bq, session); /* what it brings would come before what is given back here */
    session->behind = true;
    session->next_lsn = session->head->lsn;
    while (session->head) {
        if (session->head->redelivered && session->head->lsn > session->doubtful_lsn) session->doubtful_lsn = session->head->lsn;
        delivery_free(bq, session->head);
    }
    floor_update(bq, session);
}

static void member_remove(bq_t *bq, member_t *member) {
    session_t *session = member->session;
    for (delivery_t *delivery = session->head; delivery && member->flight_count; delivery = delivery->next)
        if (delivery->member == member) send_again(bq, delivery); /* it may have been seen: it comes again, marked */
    if (session->turn == member) session->turn = member->next;
    *member->link = member->next;
    if (member->next) member->next->link = member->link;
    *member->connection_link = member->connection_next;
    if (member->connection_next) member->connection_next->connection_link = member->connection_link;
    session->member_count--;
    pool_give(&bq->pool, member, sizeof *member);
    if (!session->member_count && session->durable) window_leave_to_log(bq, session);
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
    session->member_count++;
    pump_later(bq, session);
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

static session_t *session_by_id(bq_t *bq, uint64_t id) {
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

static void id_give(bq_t *bq, session_t *session, uint64_t id) {
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

static session_t *session_new(bq_t *bq, const session_request_t *request, bq_conn_t owner) {
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
                           .owner = owner,
                           .read_slot = -1};
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

static void session_free(bq_t *bq, session_t *session) {
    publish_run_close(bq);
    while (session->members) member_remove(bq, session->members);
    bq->stats.dropped_disconnect += session->window_count; /* an ended durable session has left its window to the log */
    bq->stats.enqueued += session->window_count;
    while (session->head) delivery_free(bq, session->head);
    read_abandon(bq, session);
    if (session->pumping) {
        session_t **at = &bq->sessions.pump;
        while (*at != session) at = &(*at)->pump_next;
        *at = session->pump_next;
    }
    route_session_leave(bq->routes, &session->route);
    tables_leave(&bq->sessions, session);
    *session->link = session->next;
    if (session->next) session->next->link = session->link;
    bq->sessions.count--;
    pool_give(&bq->pool, session, session_bytes(session));
}

/* ---- requests ------------------------------------------------------------------------------------------------------------- */

/* What LOG_SESSION records hold; filter, client_id and group follow. */
typedef struct session_record {
    uint64_t id;
    uint64_t floor_lsn; /* in checkpoints; a new session begins at its own record */
    uint32_t filter_size, client_id_size, group_size;
    uint8_t qos, grouped, reserved[2];
} session_record_t;

static session_record_t record_of(const session_t *session) {
    return (session_record_t){.id = session->id,
                              .floor_lsn = session->floor_lsn,
                              .filter_size = session->filter_size,
                              .client_id_size = session->client_id_size,
                              .group_size = session->group_size,
                              .qos = session->qos,
                              .grouped = session->grouped};
}

/* The session's record; 0 or less: it cannot be written now. */
static int64_t session_log(bq_t *bq, session_t *session) {
    id_give(bq, session, ++bq->sessions.next_id);
    session_record_t record = record_of(session);
    log_part_t parts[] = {{&record, sizeof record},
                          {session->text, session->filter_size + session->client_id_size + session->group_size}};
    return log_append(bq->log, LOG_SESSION, 0, parts, 2, true);
}

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
        if (session->durable && session->qos) fall_behind(session, lsn);
}

uint32_t sessions_behind(const bq_t *bq) {
    uint32_t count = 0;
    for (const session_t *session = bq->sessions.all; session; session = session->next) count += session->behind;
    return count;
}

/* ---- recovery and checkpoints ---------------------------------------------------------------------------------------------- */

static uint64_t texts_size(const session_record_t *record) {
    return (uint64_t)record->filter_size + record->client_id_size + record->group_size;
}

/* The session at the front of `bytes`, or false: it is not all there, or is none. See publish_read. */
static bool session_read(const uint8_t *bytes, uint64_t size, session_record_t *record) {
    if (size < sizeof *record) return false;
    memcpy(record, bytes, sizeof *record);
    return texts_size(record) <= size - sizeof *record && filter_check(bytes + sizeof *record, record->filter_size) >= 0;
}

/* A session as it stands in a record or a checkpoint. False: no memory. */
static bool session_load(bq_t *bq, const session_record_t *record, const uint8_t *text, uint64_t floor_lsn) {
    session_request_t request = {.filter = text,
                                 .filter_size = record->filter_size,
                                 .client_id = text + record->filter_size,
                                 .client_id_size = record->client_id_size,
                                 .group = text + record->filter_size + record->client_id_size,
                                 .group_size = record->group_size,
                                 .qos = record->qos,
                                 .durable = true};
    if (session_by_id(bq, record->id)) return true;
    session_t *session = session_new(bq, &request, 0);
    if (!session) return false;
    id_give(bq, session, record->id);
    session->born_lsn = session->floor_lsn = session->floor_logged = floor_lsn;
    if (record->id > bq->sessions.next_id) bq->sessions.next_id = record->id;
    return true;
}

typedef struct checkpoint_head {
    uint32_t version, count;
    uint64_t next_message_id, ids_reserved, next_session_id;
} checkpoint_head_t;

#define CHECKPOINT_VERSION 1u

static bool checkpoint_load(bq_t *bq, const log_record_t *checkpoint) {
    checkpoint_head_t head;
    if (checkpoint->size < sizeof head) return false;
    memcpy(&head, checkpoint->bytes, sizeof head);
    if (head.version != CHECKPOINT_VERSION) return false;
    if (head.next_message_id > bq->next_message_id)
        bq->next_message_id = head.next_message_id; /* a start without the log may be ahead */
    bq->ids_reserved = head.ids_reserved;
    bq->sessions.next_id = head.next_session_id;
    uint64_t at = sizeof head;
    for (uint32_t i = 0; i < head.count; i++) {
        session_record_t record;
        if (!session_read(checkpoint->bytes + at, checkpoint->size - at, &record)) return false;
        at += sizeof record;
        if (!session_load(bq, &record, checkpoint->bytes + at, record.floor_lsn)) return false;
        at += texts_size(&record);
    }
    return true;
}

/* What a record of numbers holds; false: it is too short to be one. */
static bool numbers_read(const log_record_t *entry, uint64_t *numbers, uint32_t count) {
    if (entry->size < count * sizeof *numbers) return false;
    memcpy(numbers, entry->bytes, count * sizeof *numbers);
    return true;
}

/* A record that is not what its type says is passed over, as one of a later version is: the others are still good. */
bool session_restore(void *context, const log_record_t *entry) {
    bq_t *bq = context;
    session_record_t record;
    uint64_t numbers[2];
    session_t *session;
    switch (entry->type) {
    case 0: return checkpoint_load(bq, entry);
    case LOG_PUBLISH:
        if (numbers_read(entry, numbers, 1) && numbers[0] + 1 > bq->next_message_id) bq->next_message_id = numbers[0] + 1;
        return true;
    case LOG_IDS:
        if (numbers_read(entry, numbers, 1)) bq->ids_reserved = numbers[0];
        return true;
    case LOG_SESSION:
        if (!session_read(entry->bytes, entry->size, &record)) return true;
        return session_load(bq, &record, entry->bytes + sizeof record, entry->lsn);
    case LOG_SESSION_END:
        if (numbers_read(entry, numbers, 1) && (session = session_by_id(bq, numbers[0]))) session_free(bq, session);
        return true;
    case LOG_ACK:
        if (numbers_read(entry, numbers, 2) && (session = session_by_id(bq, numbers[0])) && numbers[1] > session->floor_lsn)
            session->floor_lsn = session->floor_logged = numbers[1];
        return true;
    default: return true; /* a later minor version's record: not ours to read */
    }
}

/* Every session reads on from its floor. Floors are logged lazily, so nobody knows how far beyond it was sent before the stop:
 * all of it may have been, and says so. */
void session_restored(bq_t *bq) {
    for (session_t *session = bq->sessions.all; session; session = session->next) {
        if (session->floor_lsn >= bq->found_lsn || !session->qos) continue;
        session->behind = true;
        session->next_lsn = session->floor_lsn + 1;
        session->doubtful_lsn = bq->found_lsn;
    }
}

void sessions_go_on(bq_t *bq) {
    for (session_t *session = bq->sessions.all; session; session = session->next)
        if (session->behind) pump_later(bq, session);
}

static uint32_t durable_count(const bq_t *bq, uint64_t *size) {
    uint32_t count = 0;
    *size = sizeof(checkpoint_head_t);
    for (const session_t *session = bq->sessions.all; session; session = session->next) {
        if (!session->durable) continue;
        count++;
        *size += sizeof(session_record_t) + session->filter_size + session->client_id_size + session->group_size;
    }
    return count;
}

uint8_t *sessions_serialize(bq_t *bq, uint32_t *size, uint64_t *keep_from) {
    uint64_t bytes;
    checkpoint_head_t head = {.version = CHECKPOINT_VERSION,
                              .count = durable_count(bq, &bytes),
                              .next_message_id = bq->next_message_id,
                              .ids_reserved = bq->ids_reserved,
                              .next_session_id = bq->sessions.next_id};
    uint8_t *out = bytes <= UINT32_MAX ? malloc(bytes) : NULL;
    if (!out) return NULL;
    memcpy(out, &head, sizeof head);
    uint64_t at = sizeof head;
    *keep_from = bq->fanned_lsn + 1;
    for (session_t *session = bq->sessions.all; session; session = session->next) {
        if (!session->durable) continue;
        if (!session->head && !session->behind) floor_update(bq, session); /* idle: it has seen all there is */
        session_record_t record = record_of(session);
        if (session->floor_lsn + 1 < *keep_from) *keep_from = session->floor_lsn + 1;
        memcpy(out + at, &record, sizeof record);
        memcpy(out + at + sizeof record, session->text, texts_size(&record));
        at += sizeof record + texts_size(&record);
    }
    *size = (uint32_t)at;
    return out;
}

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
    for (uint32_t slot = 0; slot < SESSION_SLOTS; slot++)
        free(sessions->read_buffers[slot]); /* after log_close: no reader is left */
}
