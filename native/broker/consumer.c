/* broker/consumer.c: a session's window: what it takes in, sends, and lets go of. See broker/consumer.h for the picture and the invariants. */
#include "broker/consumer_flight.h"
#include "broker/commit.h"
#include "broker/budget.h"
#include "core.h"

#define BACKOFF_DOUBLINGS_MAX 5u /* the ack timeout grows to 32 times itself */

/* ---- the window ------------------------------------------------------------------------------------------------------ */

void session_pump_later(bq_t *bq, session_t *session) {
    if (session->pumping) return;
    sessions_t *sessions = &bq->sessions;
    session->pumping = true;
    session->pump_next = NULL;
    session->pump_link = sessions->pump_tail;
    *sessions->pump_tail = session;
    sessions->pump_tail = &session->pump_next;
    sessions->pump_count++;
}

void session_pump_never(bq_t *bq, session_t *session) {
    if (!session->pumping) return;
    session->pumping = false;
    *session->pump_link = session->pump_next;
    if (session->pump_next)
        session->pump_next->pump_link = session->pump_link;
    else
        bq->sessions.pump_tail = session->pump_link;
    bq->sessions.pump_count--;
}

void session_floor_update(bq_t *bq, session_t *session) {
    if (session->head && !(session->behind && session->next_lsn < session->head->lsn))
        session->floor_lsn = session->head->lsn - 1;
    else
        session->floor_lsn = session->behind ? session->next_lsn - 1 : bq->fanned_lsn;
}

static delivery_t **marked_slot(bq_t *bq, uint64_t id) { return &bq->sessions.marked[id % MARKED_SLOTS]; }

void delivery_free(bq_t *bq, delivery_t *delivery) {
    session_t *session = delivery->session;
    flight_forget(bq, delivery);
    if (delivery->given_up) letter_forget(bq, delivery);
    if (BQ_UNLIKELY(delivery->marked) && *marked_slot(bq, delivery->id) == delivery) *marked_slot(bq, delivery->id) = NULL;
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
    if (BQ_UNLIKELY(delivery->previous != NULL)) { /* before an older one */
        if (delivery->lsn > session->touched_lsn) session->touched_lsn = delivery->lsn;
        if (delivery->lsn > session->hole_lsn) session->hole_lsn = delivery->lsn;
    }
    delivery_free(bq, delivery);
    session_floor_update(bq, session);
    session_pump_later(bq, session);
}

/* What is in flight and as much again, so that acknowledgements find the next ones ready. A session that is not durable has no
 * log to read the rest from: its window is its queue, as long as any other. */
bool session_has_room(const bq_t *bq, const session_t *session, uint32_t size) {
    if (session->window_count && budget_over(bq)) return false;
    uint32_t count_max = bq->config.max_in_flight * (session->member_count > 1 ? session->member_count + 1 : 2);
    if (!session->durable && count_max < bq->config.subscriber_messages) count_max = bq->config.subscriber_messages;
    return session->window_count == 0 ||
           (session->window_count < count_max && session->window_bytes + size <= bq->config.subscriber_bytes);
}

/* Field by field, because gcc makes of clearing so much a `rep stos`. What a hold has for entries of queues only is never read. */
static inline void delivery_init(delivery_t *delivery, session_t *session, uint32_t offset, uint32_t size) {
    delivery->hold.timer.kind = TIMER_DELIVERY;
    delivery->hold.timer.wheel.next = NULL;
    delivery->hold.timer.wheel.link = NULL;
    delivery->hold.other = NULL;
    delivery->hold.offset = offset;
    delivery->hold.size = size;
    delivery->session = session;
    delivery->now.member = NULL;
    delivery->late = NULL;
    delivery->deliveries = 0;
    delivery->place = DELIVERY_WAITS;
    delivery->redelivered = delivery->marked = delivery->killed = delivery->alone = false;
    delivery->given_up = delivery->over = delivery->letter_waits = false;
    delivery->letter = NULL;
}

/* Take a frame that lies in a segment into the window, mostly at its end. */
delivery_t *delivery_add(bq_t *bq, session_t *session, segment_t *segment, uint32_t offset, uint32_t size, uint64_t lsn,
                         uint64_t id, uint64_t expiry_tick) {
    delivery_t *delivery = pool_take(&bq->pool, sizeof *delivery);
    if (!delivery) return NULL;
    delivery_t *before = session->tail;
    while (BQ_UNLIKELY(before && before->lsn > lsn)) before = before->previous; /* one that has been given up stayed */
    delivery_init(delivery, session, offset, size);
    delivery->previous = before;
    delivery->next = before ? before->next : session->head;
    delivery->lsn = lsn;
    delivery->id = id;
    delivery->expiry_tick = expiry_tick;
    delivery->redelivered = lsn <= session->doubtful_lsn;
    segment_link(segment, &delivery->hold);
    *(before ? &before->next : &session->head) = delivery;
    *(delivery->next ? &delivery->next->previous : &session->tail) = delivery;
    if (!session->cursor || session->cursor->lsn > lsn) session->cursor = delivery;
    session->window_count++;
    session->window_bytes += size;
    if (expiry_tick) wheel_insert(&bq->wheel, &delivery->hold.timer.wheel, expiry_tick);
    return delivery;
}

void delivery_recall(bq_t *bq, delivery_t *delivery, const past_entry_t *entry) {
    delivery->deliveries = entry->deliveries;
    delivery->redelivered |= entry->deliveries > 0 || entry->flags & PAST_REDELIVERED;
    delivery->killed = (entry->flags & PAST_KILLED) != 0;
    if (delivery->deliveries >= bq->config.max_deliveries) letter_send(bq, delivery); /* there is no try left */
}

void session_fall_behind(bq_t *bq, session_t *session, uint64_t lsn) {
    if (session->behind) return;
    session->behind = true;
    session->next_lsn = lsn;
    session->behind_stamp_ms = 0;
    session_pump_later(bq, session); /* with an empty window nothing else would */
}

/* Its window is its queue, and what is in flight may not be taken back out: under any policy, what comes is what is dropped. */
static void overflow(bq_t *bq, session_t *session) {
    session->dropped_queue_full++;
    bq->stats.dropped_queue_full++;
    bq->stats.enqueued++;
}

/* ---- sending ---------------------------------------------------------------------------------------------------------- */

static void bytes_move(bq_t *bq, delivery_t *delivery, segment_t *segment, uint32_t offset) {
    segment_unlink(&bq->segments, &delivery->hold);
    delivery->hold.offset = offset;
    segment_link(segment, &delivery->hold);
    delivery->marked = true;
}

/* The frame again, marked. The old bytes may be on their way to somebody else and stay as they are. */
static bool mark_redelivered(bq_t *bq, delivery_t *delivery) {
    delivery_t **slot = marked_slot(bq, delivery->id), *other = *slot;
    uint32_t size = delivery->hold.size;
    if (other && other->id == delivery->id && other->hold.size == size) {
        bytes_move(bq, delivery, other->hold.segment, other->hold.offset);
        return true;
    }
    uint8_t *out = budget_over(bq) && delivery->session->flight_count ? NULL : shared_reserve(bq, size);
    if (!out) return false;
    memcpy(out, delivery->hold.segment->bytes + delivery->hold.offset, size);
    message_qos1_mark_redelivered(out);
    segment_t *segment = bq->segments.open;
    uint32_t offset = segment->used;
    segment_commit(&bq->segments, size);
    bytes_move(bq, delivery, segment, offset);
    *slot = delivery;
    return true;
}

/* The frame again, for a member of QoS 0. */
static bool quiet_copy(bq_t *bq, const delivery_t *delivery, queue_run_t *run) {
    if (budget_over(bq)) { /* a copy for each group: they wait for memory */
        session_pump_later(bq, delivery->session);
        return false;
    }
    uint8_t *out = shared_reserve(bq, run->size);
    if (!out) return false;
    memcpy(out, delivery->hold.segment->bytes + delivery->hold.offset, run->size);
    message_qos1_mark_qos0(out);
    run->segment = bq->segments.open;
    run->offset = run->segment->used;
    segment_commit(&bq->segments, run->size);
    return true;
}

static uint64_t ack_timeout_ms(const bq_t *bq, const delivery_t *delivery) {
    uint32_t doublings = delivery->deliveries < BACKOFF_DOUBLINGS_MAX ? delivery->deliveries : BACKOFF_DOUBLINGS_MAX;
    return (uint64_t)bq->config.ack_timeout_ms << doublings;
}

/* A message that ended its last connection, and has one try left, makes that alone: it must not take with it what was handed over
 * beside it. */
static bool tries_alone(const bq_t *bq, const delivery_t *delivery) {
    return delivery->killed && delivery->deliveries + 1 >= bq->config.max_deliveries;
}

static bool send_to(bq_t *bq, delivery_t *delivery, member_t *member) {
    if (BQ_UNLIKELY(delivery->redelivered) && !delivery->marked && !mark_redelivered(bq, delivery)) return false;
    queue_run_t run = {.segment = delivery->hold.segment, .offset = delivery->hold.offset, .size = delivery->hold.size};
    if (BQ_UNLIKELY(!member->qos) && !quiet_copy(bq, delivery, &run)) return false;
    if (!queue_push_kept(&member->connection->queue, &bq->queues, &run, &delivery->hold)) return false;
    connection_mark_dirty(bq, member->connection, bq->flush_order);
    flight_begin(bq, delivery, member);
    bq->stats.work += WORK_DELIVERY;
    if (BQ_UNLIKELY(delivery->killed)) delivery->alone = member->alone = tries_alone(bq, delivery);
    return true;
}

void delivery_handed(void *context, queue_entry_t *hold) {
    bq_t *bq = context;
    delivery_t *delivery = (delivery_t *)(void *)hold;
    session_t *session = delivery->session;
    uint64_t settled = 0;
    delivery->place = DELIVERY_HANDED;
    if (delivery->lsn > session->touched_lsn) session->touched_lsn = delivery->lsn;
    if (delivery->redelivered) {
        session->redelivered++;
        bq->stats.redelivered++;
    }
    if (delivery->now.member->qos) {
        core_timer_set(bq, &delivery->hold.timer, ack_timeout_ms(bq, delivery));
        delivery->deliveries++;
    } else {
        delivery_settle(bq, delivery, &settled, &bq->stats.delivered);
    }
}

/* Whose turn it is among the live members with fewer than `flight_max` messages in flight; NULL: none of them. */
static member_t *member_in_turn(session_t *session, uint32_t flight_max) {
    for (uint32_t i = 0; i < session->member_count; i++) {
        member_t *member = session->turn ? session->turn : session->members;
        session->turn = member->next;
        if (member->connection->state == CONNECTION_OPEN && member->flight_count < flight_max && !member->alone) return member;
    }
    return NULL;
}

connection_t *session_turn(session_t *session) {
    for (uint32_t i = 0; i < session->member_count; i++) {
        member_t *member = session->turn ? session->turn : session->members;
        session->turn = member->next;
        if (member->connection->state == CONNECTION_OPEN) return member->connection;
    }
    return NULL;
}

/* One record says how far a session has got, however many acks that were. False: the log takes nothing more now. */
static bool floor_log(bq_t *bq, session_t *session) {
    if (!session->durable || session->settled == session->settled_logged || session->floor_lsn <= session->floor_logged)
        return true;
    uint64_t ack[2] = {session->id, session->floor_lsn};
    log_part_t part = {ack, sizeof ack};
    int64_t lsn = log_append(bq->log, LOG_ACK, 0, &part, 1, LOG_URGENT);
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

static void send_window(bq_t *bq, session_t *session) {
    while (session->cursor && session->member_count) {
        delivery_t *delivery = session->cursor;
        if (delivery->place == DELIVERY_WAITS && !delivery->given_up) {
            if (waits_for_floor(bq, session)) {
                session_pump_later(bq, session);
                break;
            }
            member_t *member = member_in_turn(session, tries_alone(bq, delivery) ? 1 : bq->config.max_in_flight);
            if (!member || !send_to(bq, delivery, member)) break;
        }
        session->cursor = delivery->next;
    }
}

/* Send what can be sent, and fetch more when the window runs low. */
static void pump(bq_t *bq, session_t *session) {
    send_window(bq, session);
    if (session->behind && session_read_on(bq, session)) send_window(bq, session);
}

bool session_offer(bq_t *bq, session_t *session, const held_t *held) {
    for (member_t *member = session->members; member && !session->grouped; member = member->next)
        member->connection->fan_mark = held->lsn;
    session->enqueued++;
    if (session->behind) { /* it is in the log, at next_lsn or later */
        session_behind_add(session, held->hold.size, held->timestamp_ms);
        return true;
    }
    bool room = session_has_room(bq, session, held->hold.size) && (session->members || !session->durable);
    if (room && delivery_add(bq, session, held->hold.segment, held->hold.offset, held->hold.size, held->lsn, held->id,
                             held->expiry_tick)) {
        pump(bq, session); /* at once, so that it keeps its place among QoS 0 messages that follow it */
        return true;
    }
    if (session->durable) {
        session_fall_behind(bq, session, held->lsn);
        session_behind_add(session, held->hold.size, held->timestamp_ms);
        return true;
    }
    overflow(bq, session);
    return false;
}

/* As many of them as a turn's work goes for: the others are the next turn's. */
void session_pump_all(bq_t *bq) {
    uint64_t stop = work_done(bq) + WORK_COMMITS;
    letters_turn(bq);
    session_reads_turn(bq);
    for (uint32_t left = bq->sessions.pump_count; left && bq->sessions.pump; left--) {
        if (work_done(bq) >= stop) {
            bq->commits_left = true;
            return;
        }
        session_t *session = bq->sessions.pump;
        session_pump_never(bq, session);
        bq->stats.work += WORK_DELIVERY;
        pump(bq, session);
        if (!floor_log(bq, session)) session_pump_later(bq, session); /* the log is full for now: after the next commit */
    }
}

/* The clock became synchronized after the start: what was found then has lived longer than was known. */
void sessions_aged(bq_t *bq, uint64_t ms) {
    uint64_t ticks = ms / bq->config.tick_ms;
    for (session_t *session = bq->sessions.all; session; session = session->next) {
        session->skim_due_ms = 0;
        for (delivery_t *delivery = session->head; delivery && delivery->lsn <= bq->found_lsn; delivery = delivery->next) {
            if (!delivery->expiry_tick) continue;
            uint64_t soonest = bq->wheel.now + 1;
            delivery->expiry_tick = delivery->expiry_tick > soonest + ticks ? delivery->expiry_tick - ticks : soonest;
            if (delivery->place == DELIVERY_HANDED) continue; /* looked at when its ack timer fires */
            wheel_remove(&bq->wheel, &delivery->hold.timer.wheel);
            wheel_insert(&bq->wheel, &delivery->hold.timer.wheel, delivery->expiry_tick);
        }
    }
}

/* ---- acknowledgements and timers --------------------------------------------------------------------------------------- */

void session_ack(bq_t *bq, connection_t *connection, uint64_t id) {
    if (!connection->members) return;
    handing_t *handing = *flight_slot(&bq->sessions, id, connection);
    while (handing) {
        delivery_t *delivery = handing->delivery;
        bool acknowledged = delivery->id == id && handing->member->connection == connection;
        handing = handing->chain;
        if (!acknowledged) continue;
        while (BQ_UNLIKELY(handing && handing->delivery == delivery)) handing = handing->chain; /* it goes with this one */
        bq->stats.delivered++;
        delivery_settle(bq, delivery, &delivery->session->acked, &bq->stats.acked);
    }
}

void delivery_wait(bq_t *bq, delivery_t *delivery) {
    session_t *session = delivery->session;
    wheel_remove(&bq->wheel, &delivery->hold.timer.wheel);
    if (delivery->expiry_tick) wheel_insert(&bq->wheel, &delivery->hold.timer.wheel, delivery->expiry_tick);
    if (!session->cursor || session->cursor->lsn > delivery->lsn) session->cursor = delivery;
    session_pump_later(bq, session);
}

void delivery_over(bq_t *bq, delivery_t *delivery) {
    delivery_settle(bq, delivery, &delivery->session->dropped_session_log, &bq->stats.dropped_session_log);
}

void delivery_dead(bq_t *bq, delivery_t *delivery) {
    delivery_settle(bq, delivery, &delivery->session->dead_lettered, &bq->stats.dead_lettered);
}

void delivery_left(bq_t *bq, delivery_t *delivery) {
    delivery->redelivered = delivery->killed = true;
    delivery_wait(bq, delivery);
    if (delivery->deliveries >= bq->config.max_deliveries) letter_send(bq, delivery);
}

void session_timeout(bq_t *bq, delivery_t *delivery) {
    session_t *session = delivery->session;
    bool expired = delivery->expiry_tick && delivery->expiry_tick <= bq->wheel.now;
    if (expired) {
        if (delivery->place == DELIVERY_QUEUED && queue_begun(&delivery->hold)) return; /* its ack timer looks at it again */
        delivery_settle(bq, delivery, &session->dropped_ttl, &bq->stats.dropped_ttl);
    } else if (delivery->given_up || (delivery->place == DELIVERY_HANDED && delivery->deliveries >= bq->config.max_deliveries)) {
        letter_send(bq, delivery);
    } else if (delivery->place == DELIVERY_HANDED) {
        flight_end(bq, delivery);
        delivery->redelivered = true;
        delivery->killed = false;
        delivery_wait(bq, delivery);
    }
}

/* Nobody is there: what is in the log need not be in memory. It is read back when a client comes, marked as far as it was sent. What has
 * been given up stays, for its dead letter is on the way. What came before the session was durable may no longer be in the log: that
 * ends with the last connection, as it would have. */
void session_window_leave(bq_t *bq, session_t *session) {
    session_read_abandon(bq, session); /* what it brings would come before what is given back here */
    delivery_t *first = session->head;
    while (first && first->given_up) first = first->next;
    if (!first) return;
    session_past_keep(bq, session);
    session->behind = true;
    session->skim_due_ms = 0;
    session->next_lsn = first->lsn > session->kept_lsn ? first->lsn : session->kept_lsn;
    session->behind_stamp_ms = message_qos1_timestamp(first->hold.segment->bytes + first->hold.offset);
    for (delivery_t *delivery = first, *next; delivery; delivery = next) {
        next = delivery->next;
        if (delivery->given_up) continue;
        if (delivery->lsn < session->kept_lsn) {
            bq->stats.dropped_disconnect++;
            bq->stats.enqueued++;
        } else {
            session_behind_add(session, delivery->hold.size, 0);
        }
        delivery_free(bq, delivery);
    }
    session_floor_update(bq, session);
}
