/* broker/commit.c: see broker/commit.h for the invariant. */
#include "broker/commit.h"
#include "broker/budget.h"
#include "core.h"
#include "proto/protocol.h"

#include <errno.h>
#include <stdlib.h>

#define LAZY_COMMIT_MS 1000u /* maximum delay of acks: losing them only causes duplicates */
#define CHECKPOINT_MS 30000u
#define CHECKPOINT_LOOK_MS 1000u
#define CHECKPOINT_LOOK_FULL_MS 50u /* a full WAL has room only after a checkpoint, and publishers wait for it */
#define FIRST_IDS_FULL_MS 1000u     /* time to find out whether a full disk accepts the first record */
#define IDS_BLOCK (1ull << 32)      /* ids reserved by one record; after a crash, ids continue after this block */

const char *commit_refusal(const bq_t *bq) {
    if (!bq->wal) return "QoS 1 needs the WAL: set wal.enabled = true, or publish with QoS 0";
    switch (wal_state(bq->wal)) {
    case 0: return NULL;
    case WAL_E_FULL:
        return "the WAL is full: wal.max_bytes or the disk reserve is reached. Free disk space, or end unused durable "
               "subscriptions (to list them: blipmq-cli sessions)";
    default: return "the WAL has stopped after a disk error: check the disk, then restart the broker";
    }
}

/* ---- pending commits --------------------------------------------------------------------------------------------- */

static pending_commit_t *pending_new(bq_t *bq, connection_t *connection, enum pending_kind kind, uint32_t size) {
    pending_commit_t *pending = shared_reserve(bq, size) ? pool_alloc(&bq->pool, sizeof *pending) : NULL;
    if (!pending) return NULL;
    buffer_t *buffer = bq->buffers.open;
    *pending = (pending_commit_t){.kind = kind, .conn = connection ? connection->handle : 0};
    pending->hold.offset = buffer->used;
    pending->hold.size = size;
    buffer_link(buffer, &pending->hold);
    buffer_commit(&bq->buffers, size);
    return pending;
}

static void pending_free(bq_t *bq, pending_commit_t *pending) {
    buffer_unlink(&bq->buffers, &pending->hold);
    pool_free(&bq->pool, pending, sizeof *pending);
}

static uint64_t pending_bytes(const pending_commit_t *pending) { return sizeof *pending + pending->hold.size; }

static void pending_append(bq_t *bq, connection_t *connection, pending_commit_t *pending) {
    bq->pending_last_lsn = pending->lsn;
    *bq->pending_tail = pending;
    bq->pending_tail = &pending->next;
    bq->pending_commits++;
    bq->pending_bytes += pending_bytes(pending);
    if (!connection) return;
    connection->pending_commits++;
    connection->pending_bytes += pending_bytes(pending);
}

/* Assigns the next id, the current time and the allowed ttl. */
static pending_commit_t *pending_message_new(bq_t *bq, connection_t *connection, enum pending_kind kind, const message_t *from) {
    message_t message = *from;
    message.id = bq->next_message_id;
    message.timestamp_ms = bq->wall_ms;
    message.ttl_ms = publish_ttl_ms(bq, from->ttl_ms);
    pending_commit_t *pending = pending_new(bq, connection, kind, message_header_size(&message) + message.payload_size);
    if (!pending) return NULL;
    message_encode(pending->hold.buffer->bytes + pending->hold.offset, &message);
    pending->id = message.id;
    pending->timestamp_ms = message.timestamp_ms;
    pending->ttl_ms = message.ttl_ms;
    pending->expiry_tick = publish_expiry_tick(bq, bq->now_ms, message.ttl_ms);
    pending->payload_size = message.payload_size;
    pending->properties_size = (uint16_t)message.properties_size;
    pending->topic_size = (uint16_t)message.topic_size;
    return pending;
}

/* Appends the record: texts from `message`, numbers from `pending`. Returns the LSN, or wal_append's error. */
static int64_t pending_log(bq_t *bq, const pending_commit_t *pending, const message_t *message, wal_part_t properties,
                           uint8_t flags, enum wal_urgency urgency) {
    publish_record_t record = {.id = pending->id,
                               .timestamp_ms = pending->timestamp_ms,
                               .ttl_ms = pending->ttl_ms,
                               .mono_ms = bq->now_ms,
                               .run = bq->run,
                               .topic_size = message->topic_size,
                               .properties_size = properties.size};
    wal_part_t parts[] = {
        {&record, sizeof record}, {message->topic, message->topic_size}, {message->payload, message->payload_size}, properties};
    return wal_append(bq->wal, WAL_PUBLISH, flags, parts, properties.size ? 4 : 3, urgency);
}

static void count_publish(bq_t *bq, uint32_t size) {
    bq->next_message_id++;
    bq->stats.published++;
    bq->stats.published_bytes += size;
}

/* Ids must not be reused after a crash, and QoS 0 publishes are not in the WAL. So a block of ids is reserved before its first
 * use. */
static bool reserve_ids(bq_t *bq) {
    if (bq->next_message_id + IDS_BLOCK / 2 < bq->ids_reserved) return true;
    uint64_t upper = bq->next_message_id + IDS_BLOCK;
    wal_part_t part = {&upper, sizeof upper};
    if (wal_append(bq->wal, WAL_IDS, 0, &part, 1, WAL_URGENT) < 0) return false;
    bq->ids_reserved = upper;
    bq->commit_wanted = true;
    wal_note(bq->wal, upper, false);
    return true;
}

/* Finds the next message id after a start. The WAL's LOCK file holds a noted id: after a clean stop it is the next id, otherwise
 * the end of the reserved block. Without a note (an older version, or no LOCK file) the number of QoS 0 messages is unknown:
 * continue after the block. If records were lost, the one that reserved the block may be among them. */
static void ids_go_on(bq_t *bq, const wal_report_t *found) {
    uint64_t after = found->note, lost = found->lost_ranges && !found->note ? 2 * IDS_BLOCK : 0;
    bool exact = found->note && found->note_last;
    if (!exact && bq->ids_reserved > after) after = bq->ids_reserved;
    if (after > bq->next_message_id) bq->next_message_id = after;
    bq->next_message_id += lost;
    bq->ids_reserved = 0; /* reserve a new block before the first use */
}

/* The first block must be durable before an id of it is used. A full disk does not prevent the start: commit_begin tries
 * again. */
static void reserve_first_ids(bq_t *bq) {
    wal_note(bq->wal, bq->next_message_id + IDS_BLOCK, true); /* works on a full disk too */
    if (!reserve_ids(bq) || !wal_commit(bq->wal)) return;
    bq->commit_wanted = false;
    for (uint32_t full_ms = 0; wal_busy(bq->wal) && full_ms < FIRST_IDS_FULL_MS; full_ms += wal_state(bq->wal) != 0)
        poll_sleep_ms(1);
}

static enum commit_outcome refused(const bq_t *bq, int64_t error, const char **why) {
    if (error == BQ_E_AGAIN) return COMMIT_LATER;
    const char *refusal = commit_refusal(bq);
    *why = error == BQ_E_TOO_LARGE ? "the message is too large for the WAL: send a smaller one"
           : refusal               ? refusal
                                   : "the WAL did not accept the message: try again later";
    return COMMIT_REFUSED;
}

/* The record has its LSN; `pending` now waits for its commit. */
static void pending_logged(bq_t *bq, connection_t *connection, pending_commit_t *pending, int64_t lsn) {
    pending->lsn = (uint64_t)lsn;
    pending_append(bq, connection, pending);
    count_publish(bq, pending->payload_size);
    bq->commit_wanted = true;
}

enum commit_outcome commit_publish(bq_t *bq, connection_t *connection, uint64_t seq, const message_t *message, const char **why) {
    *why = commit_refusal(bq);
    if (*why) return COMMIT_REFUSED;
    int64_t timed = BQ_LIKELY(!timeline_waits(&bq->timeline)) ? 0 : timeline_write(bq);
    if (timed < 0) return refused(bq, timed, why);
    if (!reserve_ids(bq)) return refused(bq, BQ_E_AGAIN, why);
    pending_commit_t *pending = pending_message_new(bq, connection, PENDING_PUBLISH, message);
    *why = "the broker is out of memory: try again later";
    if (!pending) return COMMIT_REFUSED;
    pending->seq = seq;
    int64_t lsn = pending_log(bq, pending, message, (wal_part_t){message->properties, message->properties_size}, 0, WAL_ORDINARY);
    if (lsn < 0) {
        pending_free(bq, pending);
        return refused(bq, lsn, why);
    }
    pending_logged(bq, connection, pending, lsn);
    return COMMIT_PENDING;
}

/* ---- dead letters ------------------------------------------------------------------------------------------------ */

static int64_t letter_log(bq_t *bq, const pending_commit_t *pending, const dead_letter_t *letter) {
    const delivery_t *delivery = letter->delivery;
    dead_letter_record_t about = {.id = delivery->id, .deliveries = delivery->deliveries, .over = delivery->over};
    wal_part_t properties = {&about, sizeof about};
    if (letter->cut) properties = (wal_part_t){letter->message.properties, letter->message.properties_size};
    int64_t lsn = pending_log(bq, pending, &letter->message, properties, letter->cut ? 0 : PUBLISH_DEAD_LETTER,
                              /* only a durable consumer's dead letter makes room in the WAL */
                              delivery->consumer->durable ? WAL_LETTER : WAL_ORDINARY);
    uint64_t bytes =
        sizeof(publish_record_t) + letter->message.topic_size + (uint64_t)letter->message.payload_size + properties.size;
    if (lsn > 0) consumer_quota_letter_logged(bq, (uint64_t)lsn, bytes);
    return lsn;
}

int64_t commit_dead_letter(bq_t *bq, const dead_letter_t *letter) {
    int64_t error = timeline_write(bq);
    if (error < 0) return error;
    if (!reserve_ids(bq)) return BQ_E_AGAIN;
    pending_commit_t *pending = pending_message_new(bq, NULL, PENDING_PUBLISH, &letter->message);
    if (!pending) return BQ_E_MEMORY;
    int64_t lsn = letter_log(bq, pending, letter);
    if (lsn < 0) {
        pending_free(bq, pending);
        return lsn;
    }
    pending->delivery = letter->delivery;
    letter->delivery->letter = pending;
    pending_logged(bq, NULL, pending, lsn);
    return lsn;
}

bool commit_dead_letter_follow(bq_t *bq, const dead_letter_t *letter) {
    pending_commit_t *pending = pending_message_new(bq, NULL, PENDING_FOLLOW, &letter->message);
    if (!pending) return false;
    pending->lsn = bq->pending_last_lsn;
    pending_append(bq, NULL, pending);
    count_publish(bq, pending->payload_size);
    return true;
}

bool commit_follow_room(const bq_t *bq, const connection_t *connection) {
    return connection->pending_bytes < PENDING_BYTES_OWN && budget_part(bq, bq->pending_bytes) && !budget_over(bq);
}

bool commit_follow(bq_t *bq, connection_t *connection, const message_t *message) {
    pending_commit_t *pending = pending_message_new(bq, connection, PENDING_FOLLOW, message);
    if (!pending) return false;
    pending->lsn = bq->pending_last_lsn; /* the newest pending LSN: the publish that it follows, or a later one */
    pending_append(bq, connection, pending);
    count_publish(bq, message->payload_size);
    return true;
}

pending_commit_t *commit_answer_new(bq_t *bq, connection_t *connection, uint64_t seq, enum pending_kind kind, const uint8_t *text,
                                    uint32_t size, uint32_t more) {
    pending_commit_t *pending = pending_new(bq, connection, kind, size + more ? size + more : 1);
    if (!pending) return NULL;
    if (size + more) memcpy(pending->hold.buffer->bytes + pending->hold.offset, text, size + more);
    pending->seq = seq;
    pending->topic_size = (uint16_t)size;
    pending->payload_size = more;
    return pending;
}

void commit_answer_wait(bq_t *bq, connection_t *connection, pending_commit_t *pending, uint64_t lsn) {
    pending->lsn = lsn;
    pending_append(bq, connection, pending);
    bq->commit_wanted = true;
}

void commit_answer_drop(bq_t *bq, pending_commit_t *pending) { pending_free(bq, pending); }

bool commit_answer(bq_t *bq, connection_t *connection, uint64_t seq, uint64_t lsn, enum pending_kind kind, const uint8_t *text,
                   uint32_t size) {
    pending_commit_t *pending = commit_answer_new(bq, connection, seq, kind, text, size, 0);
    if (pending) commit_answer_wait(bq, connection, pending, lsn);
    return pending != NULL;
}

/* ---- dispatch ---------------------------------------------------------------------------------------------------- */

/* The message expired while it waited for the commit. Consumers that are behind notice it when they read it back. */
static NOINLINE uint32_t fan_out_expired(bq_t *bq, const topic_t *topic, const pending_commit_t *pending) {
    uint64_t count = 0;
    uint32_t stored = 0;
    for (uint32_t i = 0; i < topic->consumer_count && pending->kind == PENDING_PUBLISH; i++) {
        consumer_t *consumer = topic->consumers[i];
        if (!consumer->qos || pending->lsn <= consumer->born_lsn) continue;
        if (consumer->behind) {
            stored += consumer_offer(bq, consumer, pending);
            continue;
        }
        for (member_t *member = consumer->members; member && !consumer->grouped; member = member->next)
            member->connection->dispatch_mark = pending->lsn;
        consumer->enqueued++;
        consumer->dropped_ttl++;
        count++;
    }
    for (uint32_t i = 0; i < topic->target_count; i++) {
        queue_t *queue = &topic->targets[i]->queue;
        if (pending->kind == PENDING_PUBLISH && topic->targets[i]->dispatch_mark == pending->lsn) continue;
        queue->enqueued++;
        queue->dropped_ttl++;
        count++;
    }
    bq->stats.enqueued += count;
    bq->stats.dropped_ttl += count;
    return stored;
}

/* Consumers come first, so that a connection that gets the message through a consumer does not get it again as a plain
 * subscriber. Returns how many consumers stored it. */
static uint32_t fan_out(bq_t *bq, const pending_commit_t *pending, topic_t *topic) {
    uint32_t stored = 0;
    if (!topic) {
        bq->stats.unrouted++; /* no memory for a route: durable consumers will read it from the WAL */
        return pending->kind == PENDING_PUBLISH ? consumers_missed(bq, pending) : 0;
    }
    if (!topic->target_count && !topic->consumer_count) bq->stats.unrouted++;
    if (BQ_UNLIKELY(pending->expiry_tick && pending->expiry_tick <= bq->now_ms / bq->config.tick_ms)) {
        return fan_out_expired(bq, topic, pending);
    }
    bq->flush_order = topic->consumer_count > WIDE_TARGETS;
    if (pending->kind == PENDING_PUBLISH) {
        bq->stats.work += topic->consumer_count;
        for (uint32_t i = 0; i < topic->consumer_count; i++) {
            consumer_t *consumer = topic->consumers[i];
            if (consumer->qos && pending->lsn > consumer->born_lsn) stored += consumer_offer(bq, consumer, pending);
        }
    }
    bq->flush_order = FLUSH_NARROW;
    publish_pending(bq, topic, pending);
    return stored;
}

/* Finds the topic of a pending commit with at most `units` of work. *topic NULL: not a publish, or no memory. */
static bool pending_topic_ready(bq_t *bq, const pending_commit_t *pending, uint32_t units, topic_t **topic) {
    int error = 0;
    *topic = NULL;
    if (pending->kind != PENDING_PUBLISH && pending->kind != PENDING_FOLLOW) return true;
    *topic = publish_topic(bq, NULL, message_topic(pending_bytes_at(pending)), pending->topic_size, &error);
    if (!*topic) return true;
    enum route_outcome outcome = route_ready(bq->routes, *topic, units);
    if (outcome == ROUTE_NO_MEMORY) *topic = NULL;
    return outcome != ROUTE_LATER;
}

static topic_t *topic_now(bq_t *bq, const pending_commit_t *pending) {
    topic_t *topic;
    while (!pending_topic_ready(bq, pending, UINT32_MAX, &topic)) {}
    return topic;
}

static void answer(bq_t *bq, connection_t *connection, const pending_commit_t *pending, uint32_t stored) {
    const protocol_ops_t *protocol = connection->protocol;
    switch (pending->kind) {
    case PENDING_PUBLISH: protocol->published(bq, connection, pending->seq, pending->id, stored); break;
    case PENDING_SUBACK:
        protocol->subscribed(bq, connection, pending->seq, pending_bytes_at(pending), pending->topic_size);
        break;
    case PENDING_REPLY: protocol->answer(bq, connection, pending->seq, BQ_OUTCOME_DONE, NULL); break;
    default: break;
    }
}

static void refuse_pending(bq_t *bq, connection_t *connection, const pending_commit_t *pending) {
    const char *why = commit_refusal(bq);
    if (pending->kind != PENDING_FOLLOW && pending->kind != PENDING_GONE)
        connection->protocol->answer(bq, connection, pending->seq, BQ_OUTCOME_UNAVAILABLE, why ? why : "shutting down");
}

static void pending_let_go(bq_t *bq, pending_commit_t *pending, topic_t *topic, bool durable) {
    core_assert(pending == bq->pending && bq->pending_commits > 0 && pending_bytes(pending) <= bq->pending_bytes);
    core_assert(!durable || pending->lsn <= wal_durable(bq->wal)); /* nothing leaves before it is durable */
    bq->pending = pending->next;
    if (!bq->pending) bq->pending_tail = &bq->pending;
    bq->pending_commits--;
    bq->pending_bytes -= pending_bytes(pending);
    uint32_t stored = 0;
    if (pending->kind == PENDING_FOLLOW || (durable && pending->kind == PENDING_PUBLISH)) stored = fan_out(bq, pending, topic);
    connection_t *connection = pending->conn ? connection_find(bq, pending->conn) : NULL;
    if (connection) {
        core_assert(connection->pending_commits > 0 && pending_bytes(pending) <= connection->pending_bytes);
        connection->pending_commits--;
        connection->pending_bytes -= pending_bytes(pending);
        if (durable)
            answer(bq, connection, pending, stored);
        else
            refuse_pending(bq, connection, pending);
        if (!durable && pending->undo) consumer_subscribe_undo(bq, connection, pending);
        if (pending->kind == PENDING_SUBACK || pending->kind == PENDING_REPLY) connection_resume(bq, connection, PAUSE_ANSWER);
        if (!connection->pending_commits && connection->pause & PAUSE_UNCOMMITTED)
            connection_resume(bq, connection, PAUSE_UNCOMMITTED);
        connection_answered(bq, connection);
    }
    if (pending->delivery) dead_letter_written(bq, pending->delivery, durable);
    pending_free(bq, pending);
}

/* Python gets an event for each refused SUB. Without room in the event ring, the rest waits for the next turn. */
static void refuse_all_pending(bq_t *bq) {
    while (bq->pending && (!bq->pending->undo || event_room(bq)))
        pending_let_go(bq, bq->pending, topic_now(bq, bq->pending), false);
}

static void wal_waiters_resume(bq_t *bq) {
    connection_t *connection = bq->wal_waiters;
    bq->wal_waiters = NULL;
    while (connection) {
        connection_t *next = connection->wal_next;
        connection->wal_waiting = false;
        connection_resume(bq, connection, PAUSE_WAL);
        connection = next;
    }
}

void commit_end(bq_t *bq) {
    for (pending_commit_t *pending = bq->pending; pending; pending = pending->next) {
        if (pending->kind != PENDING_FOLLOW) continue;
        fan_out(bq, pending, topic_now(bq, pending));
        pending->kind = PENDING_GONE;
    }
}

/* Dispatches durable entries, within one turn's work. Returns the LSN up to which everything has been offered to its
 * consumers. */
static uint64_t let_go_durable(bq_t *bq, uint64_t durable) {
    uint64_t stop = work_done(bq) + WORK_COMMITS, done = bq->dispatched_lsn;
    topic_t *topic;
    while (bq->pending && bq->pending->lsn <= durable) {
        if (work_done(bq) >= stop || !pending_topic_ready(bq, bq->pending, WORK_COMMITS, &topic)) {
            bq->commits_left = true;
            return bq->pending->lsn > done + 1 ? bq->pending->lsn - 1 : done;
        }
        if (bq->pending->lsn > done) done = bq->pending->lsn;
        pending_let_go(bq, bq->pending, topic, true);
    }
    return durable;
}

void commit_turn(bq_t *bq) {
    if (!bq->wal) return;
    if (BQ_UNLIKELY(!bq->timeline.begun)) timeline_begin(bq);
    bq->commits_left = false;
    uint64_t durable = let_go_durable(bq, wal_durable(bq->wal));
    if (wal_state(bq->wal) == WAL_E_FAILED && !bq->commits_left) refuse_all_pending(bq);
    bool found = bq->dispatched_lsn < bq->found_lsn && durable >= bq->found_lsn;
    bq->dispatched_lsn = durable;
    if (found) consumers_go_on(bq);
    wal_read_t read;
    while (wal_read_done(bq->wal, &read)) consumer_read_finished(bq, &read);
    if (bq->wal_waiters && (wal_gathered(bq->wal) == 0 || wal_state(bq->wal))) wal_waiters_resume(bq);
}

/* A checkpoint must include all records found at the start. An earlier one would store floors for LSNs that a power cut could
 * still remove and that new records would then reuse. */
static bool checkpoint_would_lie(const bq_t *bq) { return bq->dispatched_lsn < bq->found_lsn; }

static void checkpoint_when_due(bq_t *bq) {
    wal_stats_t stats;
    int state = wal_state(bq->wal);
    uint64_t look_ms = state == WAL_E_FULL ? CHECKPOINT_LOOK_FULL_MS : CHECKPOINT_LOOK_MS,
             quota_ms = consumer_quota_checkpoint_ms(bq);
    if (quota_ms < look_ms) look_ms = quota_ms;
    if (state == WAL_E_FAILED || bq->now_ms < bq->checkpoint_looked_ms + look_ms || checkpoint_would_lie(bq)) return;
    bq->checkpoint_looked_ms = bq->now_ms;
    wal_stats(bq->wal, &stats);
    if (stats.full || stats.bytes > bq->wal_max_bytes / 2) consumers_sweep(bq);
    bool grown = stats.written_bytes - bq->checkpoint_written >= bq->wal_segment_bytes;
    bool old = bq->now_ms - bq->checkpoint_ms >= CHECKPOINT_MS && stats.written_bytes != bq->checkpoint_written;
    bool seen = bq->consumers.seen_changed && bq->now_ms - bq->checkpoint_ms >= SEEN_CHECKPOINT_MS;
    if (!grown && !old && !seen && !stats.full && quota_ms == UINT64_MAX) return;
    /* there was no room for it, or it is still being written */
    bool failed = bq->checkpoint_ms && stats.checkpoints == bq->checkpoints_seen;
    if (failed && bq->now_ms - bq->checkpoint_ms < CHECKPOINT_LOOK_MS) return;
    uint32_t size;
    uint64_t keep_from;
    uint8_t *bytes = consumers_serialize(bq, &size, &keep_from);
    if (!bytes) return;
    bool makes_room = keep_from > stats.keep_from; /* otherwise a full WAL would write useless checkpoints for days */
    if ((grown || old || seen || makes_room) && wal_checkpoint(bq->wal, bq->dispatched_lsn, bytes, size, keep_from) == BQ_OK) {
        if (keep_from > bq->consumers.kept_from) bq->consumers.kept_from = keep_from;
        bq->checkpoint_written = stats.written_bytes;
        bq->checkpoint_ms = bq->now_ms;
        bq->consumers.seen_changed = false;
        bq->checkpoints_seen = stats.checkpoints;
    }
    free(bytes);
}

void commit_begin(bq_t *bq) {
    if (!bq->wal) return;
    checkpoint_when_due(bq);
    if (BQ_UNLIKELY(timeline_waits(&bq->timeline)))
        timeline_write(bq); /* a full WAL accepts it later; no publish is appended before it */
    reserve_ids(bq);
    uint64_t gathered = wal_gathered(bq->wal);
    if (!gathered || wal_busy(bq->wal)) return;
    if (!bq->commit_due_ms)
        bq->commit_due_ms = bq->now_ms + (bq->commit_wanted ? bq->wal_flush_ms : LAZY_COMMIT_MS);
    else if (bq->commit_wanted && bq->now_ms + bq->wal_flush_ms < bq->commit_due_ms)
        bq->commit_due_ms = bq->now_ms + bq->wal_flush_ms;
    bool full = bq->wal_waiters || gathered >= bq->wal_batch_bytes / 2;
    if (!full && !bq->stopping && bq->now_ms < bq->commit_due_ms) return;
    if (!wal_commit(bq->wal)) return;
    bq->commit_due_ms = 0;
    bq->commit_wanted = false;
    wal_waiters_resume(bq);
}

int64_t commit_due_ms(bq_t *bq) {
    if (!bq->wal) return -1;
    if (bq->pending && bq->pending->lsn <= wal_durable(bq->wal)) return 0; /* only waits for the next turn */
    int64_t otherwise = wal_state(bq->wal) == WAL_E_FULL ? (int64_t)CHECKPOINT_LOOK_FULL_MS : -1;
    if (bq->commits_left) return 0;
    if (!wal_gathered(bq->wal) || wal_busy(bq->wal)) return otherwise; /* busy: the end of the commit wakes the core */
    return bq->commit_due_ms > bq->now_ms ? (int64_t)(bq->commit_due_ms - bq->now_ms) : 0;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static void wake_core(void *context) { poll_wake_signal(&((bq_t *)context)->command_wake); }

static void show_progress(void *context, uint64_t done, uint64_t total) {
    bq_t *bq = context;
    atomic_store_explicit(&bq->wal_progress, total ? (uint32_t)(done * 1000 / total) : 1000, memory_order_relaxed);
}

static void report_fill(const bq_t *bq, const wal_report_t *from, bq_wal_report_t *to) {
    *to = (bq_wal_report_t){.records = from->records,
                            .bytes = from->bytes,
                            .segments = from->segments,
                            .torn_bytes = from->torn_bytes,
                            .lost_first_lsn = from->lost_first_lsn,
                            .lost_last_lsn = from->lost_last_lsn,
                            .lost_ranges = from->lost_ranges,
                            .first_lsn = from->first_lsn,
                            .next_lsn = from->next_lsn,
                            .checkpoint_lsn = from->checkpoint_lsn,
                            .sessions = bq->consumers.count,
                            .next_message_id = bq->next_message_id,
                            .checkpoints_bad = from->checkpoints_bad,
                            .clean = from->clean,
                            .lost_unknown = from->lost_unknown,
                            .damaged_files = from->damaged_files,
                            .strange_files = from->strange_files};
}

int commit_open(bq_t *bq, const char *directory, const bq_wal_config_t *config, bq_wal_report_t *report) {
    int error = 0;
    wal_report_t found = {0};
    storage_t *storage = storage_posix(directory, &error);
    *report = (bq_wal_report_t){.error = -error};
    if (!storage) return BQ_E_SYSTEM;
    wal_config_t wal_config = {.max_bytes = config->max_bytes,
                               .reserve_bytes = config->reserve_bytes,
                               .segment_bytes = config->segment_bytes,
                               .batch_bytes_max = config->batch_bytes,
                               .block_bytes = config->block_bytes,
                               .no_sync = config->no_sync,
                               .wake = wake_core,
                               .wake_context = bq};
    int opened = wal_open(&bq->wal, storage, &wal_config, consumer_restore, bq, &found, show_progress);
    if (opened < 0) {
        bq->wal = NULL;
        report->error = errno;
        return opened;
    }
    bq->wal_flush_ms = config->flush_interval_ms;
    bq->wal_batch_bytes = config->batch_bytes;
    bq->wal_segment_bytes = config->segment_bytes;
    bq->wal_max_bytes = config->max_bytes;
    ids_go_on(bq, &found);
    bq->dispatched_lsn = wal_durable(bq->wal);
    bq->found_lsn = found.next_lsn - 1;
    consumer_restored(bq);
    reserve_first_ids(bq);
    report_fill(bq, &found, report);
    return BQ_OK;
}

/* The last checkpoint shortens the next start. */
static void checkpoint_last(bq_t *bq) {
    uint32_t size;
    uint64_t keep_from;
    bq->consumers.last_checkpoint = true;
    bool none = wal_state(bq->wal) == WAL_E_FAILED || checkpoint_would_lie(bq);
    uint8_t *bytes = none ? NULL : consumers_serialize(bq, &size, &keep_from);
    for (uint32_t tries = 0;
         bytes && tries < 100 && wal_checkpoint(bq->wal, bq->dispatched_lsn, bytes, size, keep_from) == BQ_E_AGAIN; tries++)
        poll_sleep_ms(10); /* another one is being written */
    free(bytes);
}

void commit_close(bq_t *bq) {
    if (!bq->wal) return;
    while (bq->pending) pending_let_go(bq, bq->pending, topic_now(bq, bq->pending), false);
    checkpoint_last(bq);
    wal_note(bq->wal, bq->next_message_id, false);
    wal_close(bq->wal);
    bq->wal = NULL;
}
