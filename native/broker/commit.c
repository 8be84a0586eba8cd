/* broker/commit.c: see broker/commit.h for the invariant. */
#include "broker/commit.h"
#include "broker/budget.h"
#include "broker/broker.h"
#include "proto/protocol.h"

#include <errno.h>
#include <stdlib.h>

#define LAZY_COMMIT_MS 1000u /* maximum delay of acks: losing them only causes duplicates */
#define CHECKPOINT_MS 30000u
#define CHECKPOINT_LOOK_MS 1000u
#define CHECKPOINT_LOOK_FULL_MS 50u /* a full WAL has room only after a checkpoint, and publishers wait for it */
#define FIRST_IDS_FULL_MS 1000u     /* time to find out whether a full disk accepts the first record */
#define IDS_BLOCK (1ull << 32)      /* ids reserved by one record; after a crash, ids continue after this block */

const char *commit_refusal(const broker_t *broker) {
    if (!broker->wal) return "QoS 1 needs the WAL: set wal.enabled = true, or publish with QoS 0";
    switch (wal_state(broker->wal)) {
    case 0: return NULL;
    case WAL_E_FULL:
        return "the WAL is full: wal.max_bytes or the disk reserve is reached. Free disk space, or end unused durable "
               "subscriptions (to list them: blipmq-cli sessions)";
    default: return "the WAL has stopped after a disk error: check the disk, then restart the broker";
    }
}

/* ---- pending commits --------------------------------------------------------------------------------------------- */

static pending_commit_t *pending_new(broker_t *broker, client_t *client, enum pending_kind kind, uint32_t size) {
    pending_commit_t *pending = shared_reserve(broker, size) ? pool_alloc(&broker->pool, sizeof *pending) : NULL;
    if (!pending) return NULL;
    buffer_t *buffer = broker->buffers.open;
    *pending = (pending_commit_t){.kind = kind, .conn = client ? client->handle : 0};
    pending->hold.offset = buffer->used;
    pending->hold.size = size;
    buffer_link(buffer, &pending->hold);
    buffer_commit(&broker->buffers, size);
    return pending;
}

static void pending_free(broker_t *broker, pending_commit_t *pending) {
    buffer_unlink(&broker->buffers, &pending->hold);
    pool_free(&broker->pool, pending, sizeof *pending);
}

static uint64_t pending_bytes(const pending_commit_t *pending) { return sizeof *pending + pending->hold.size; }

static void pending_append(broker_t *broker, client_t *client, pending_commit_t *pending) {
    broker->pending_last_lsn = pending->lsn;
    *broker->pending_tail = pending;
    broker->pending_tail = &pending->next;
    broker->pending_commits++;
    broker->pending_bytes += pending_bytes(pending);
    if (!client) return;
    client->pending_commits++;
    client->pending_bytes += pending_bytes(pending);
}

/* Assigns the next id, the current time and the allowed ttl. */
static pending_commit_t *pending_message_new(broker_t *broker, client_t *client, enum pending_kind kind, const message_t *from) {
    message_t message = *from;
    message.id = broker->next_message_id;
    message.timestamp_ms = broker->wall_ms;
    message.ttl_ms = publish_ttl_ms(broker, from->ttl_ms);
    pending_commit_t *pending = pending_new(broker, client, kind, message_header_size(&message) + message.payload_size);
    if (!pending) return NULL;
    message_encode(pending->hold.buffer->bytes + pending->hold.offset, &message);
    pending->id = message.id;
    pending->timestamp_ms = message.timestamp_ms;
    pending->ttl_ms = message.ttl_ms;
    pending->expiry_tick = publish_expiry_tick(broker, broker->now_ms, message.ttl_ms);
    pending->payload_size = message.payload_size;
    pending->properties_size = (uint16_t)message.properties_size;
    pending->topic_size = (uint16_t)message.topic_size;
    return pending;
}

/* Appends the record: texts from `message`, numbers from `pending`. Returns the LSN, or wal_append's error. */
static int64_t pending_log(broker_t *broker, const pending_commit_t *pending, const message_t *message, wal_part_t properties,
                           uint8_t flags, enum wal_urgency urgency) {
    publish_record_t record = {.id = pending->id,
                               .timestamp_ms = pending->timestamp_ms,
                               .ttl_ms = pending->ttl_ms,
                               .mono_ms = broker->now_ms,
                               .run = broker->run,
                               .topic_size = message->topic_size,
                               .properties_size = properties.size};
    wal_part_t parts[] = {
        {&record, sizeof record}, {message->topic, message->topic_size}, {message->payload, message->payload_size}, properties};
    return wal_append(broker->wal, WAL_PUBLISH, flags, parts, properties.size ? 4 : 3, urgency);
}

static void count_publish(broker_t *broker, uint32_t size) {
    broker->next_message_id++;
    broker->stats.published++;
    broker->stats.published_bytes += size;
}

/* Ids must not be reused after a crash, and QoS 0 publishes are not in the WAL. So a block of ids is reserved before its first
 * use. */
static bool reserve_ids(broker_t *broker) {
    if (broker->next_message_id + IDS_BLOCK / 2 < broker->ids_reserved) return true;
    uint64_t upper = broker->next_message_id + IDS_BLOCK;
    wal_part_t part = {&upper, sizeof upper};
    if (wal_append(broker->wal, WAL_IDS, 0, &part, 1, WAL_URGENT) < 0) return false;
    broker->ids_reserved = upper;
    broker->commit_wanted = true;
    wal_note(broker->wal, upper, false);
    return true;
}

/* Finds the next message id after a start. The WAL's LOCK file holds a noted id: after a clean stop it is the next id, otherwise
 * the end of the reserved block. Without a note (an older version, or no LOCK file) the number of QoS 0 messages is unknown:
 * continue after the block. If records were lost, the one that reserved the block may be among them. */
static void ids_go_on(broker_t *broker, const wal_report_t *found) {
    uint64_t after = found->note, lost = found->lost_ranges && !found->note ? 2 * IDS_BLOCK : 0;
    bool exact = found->note && found->note_last;
    if (!exact && broker->ids_reserved > after) after = broker->ids_reserved;
    if (after > broker->next_message_id) broker->next_message_id = after;
    broker->next_message_id += lost;
    broker->ids_reserved = 0; /* reserve a new block before the first use */
}

/* The first block must be durable before an id of it is used. A full disk does not prevent the start: commit_begin tries
 * again. */
static void reserve_first_ids(broker_t *broker) {
    wal_note(broker->wal, broker->next_message_id + IDS_BLOCK, true); /* works on a full disk too */
    if (!reserve_ids(broker) || !wal_commit(broker->wal)) return;
    broker->commit_wanted = false;
    for (uint32_t full_ms = 0; wal_busy(broker->wal) && full_ms < FIRST_IDS_FULL_MS; full_ms += wal_state(broker->wal) != 0)
        poll_sleep_ms(1);
}

static enum commit_outcome refused(const broker_t *broker, int64_t error, const char **why) {
    if (error == BQ_E_AGAIN) return COMMIT_LATER;
    const char *refusal = commit_refusal(broker);
    *why = error == BQ_E_TOO_LARGE ? "the message is too large for the WAL: send a smaller one"
           : refusal               ? refusal
                                   : "the WAL did not accept the message: try again later";
    return COMMIT_REFUSED;
}

/* The record has its LSN; `pending` now waits for its commit. */
static void pending_logged(broker_t *broker, client_t *client, pending_commit_t *pending, int64_t lsn) {
    pending->lsn = (uint64_t)lsn;
    pending_append(broker, client, pending);
    count_publish(broker, pending->payload_size);
    broker->commit_wanted = true;
}

enum commit_outcome commit_publish(broker_t *broker, client_t *client, uint64_t seq, const message_t *message, const char **why) {
    *why = commit_refusal(broker);
    if (*why) return COMMIT_REFUSED;
    int64_t timed = BQ_LIKELY(!timeline_waits(&broker->timeline)) ? 0 : timeline_write(broker);
    if (timed < 0) return refused(broker, timed, why);
    if (!reserve_ids(broker)) return refused(broker, BQ_E_AGAIN, why);
    pending_commit_t *pending = pending_message_new(broker, client, PENDING_PUBLISH, message);
    *why = "the broker is out of memory: try again later";
    if (!pending) return COMMIT_REFUSED;
    pending->seq = seq;
    int64_t lsn =
        pending_log(broker, pending, message, (wal_part_t){message->properties, message->properties_size}, 0, WAL_ORDINARY);
    if (lsn < 0) {
        pending_free(broker, pending);
        return refused(broker, lsn, why);
    }
    pending_logged(broker, client, pending, lsn);
    return COMMIT_PENDING;
}

/* ---- dead letters ------------------------------------------------------------------------------------------------ */

static int64_t letter_log(broker_t *broker, const pending_commit_t *pending, const dead_letter_t *letter) {
    const delivery_t *delivery = letter->delivery;
    dead_letter_record_t about = {.id = delivery->id, .deliveries = delivery->deliveries, .over = delivery->over};
    wal_part_t properties = {&about, sizeof about};
    if (letter->cut) properties = (wal_part_t){letter->message.properties, letter->message.properties_size};
    int64_t lsn = pending_log(broker, pending, &letter->message, properties, letter->cut ? 0 : PUBLISH_DEAD_LETTER,
                              /* only a durable consumer's dead letter makes room in the WAL */
                              delivery->consumer->durable ? WAL_LETTER : WAL_ORDINARY);
    uint64_t bytes =
        sizeof(publish_record_t) + letter->message.topic_size + (uint64_t)letter->message.payload_size + properties.size;
    if (lsn > 0) wal_quota_letter_logged(broker, (uint64_t)lsn, bytes);
    return lsn;
}

int64_t commit_dead_letter(broker_t *broker, const dead_letter_t *letter) {
    int64_t error = timeline_write(broker);
    if (error < 0) return error;
    if (!reserve_ids(broker)) return BQ_E_AGAIN;
    pending_commit_t *pending = pending_message_new(broker, NULL, PENDING_PUBLISH, &letter->message);
    if (!pending) return BQ_E_MEMORY;
    int64_t lsn = letter_log(broker, pending, letter);
    if (lsn < 0) {
        pending_free(broker, pending);
        return lsn;
    }
    pending->delivery = letter->delivery;
    letter->delivery->letter = pending;
    pending_logged(broker, NULL, pending, lsn);
    return lsn;
}

bool commit_dead_letter_follow(broker_t *broker, const dead_letter_t *letter) {
    pending_commit_t *pending = pending_message_new(broker, NULL, PENDING_FOLLOW, &letter->message);
    if (!pending) return false;
    pending->lsn = broker->pending_last_lsn;
    pending_append(broker, NULL, pending);
    count_publish(broker, pending->payload_size);
    return true;
}

bool commit_follow_room(const broker_t *broker, const client_t *client) {
    return client->pending_bytes < PENDING_BYTES_OWN && budget_part(broker, broker->pending_bytes) && !budget_over(broker);
}

bool commit_follow(broker_t *broker, client_t *client, uint64_t seq, const message_t *message) {
    pending_commit_t *pending = pending_message_new(broker, client, PENDING_FOLLOW, message);
    if (!pending) return false;
    pending->seq = seq;
    pending->lsn = broker->pending_last_lsn; /* the newest pending LSN: the publish that it follows, or a later one */
    pending_append(broker, client, pending);
    count_publish(broker, message->payload_size);
    return true;
}

pending_commit_t *commit_answer_new(broker_t *broker, client_t *client, uint64_t seq, enum pending_kind kind, const uint8_t *text,
                                    uint32_t size, uint32_t more) {
    pending_commit_t *pending = pending_new(broker, client, kind, size + more ? size + more : 1);
    if (!pending) return NULL;
    if (size + more) memcpy(pending->hold.buffer->bytes + pending->hold.offset, text, size + more);
    pending->seq = seq;
    pending->topic_size = (uint16_t)size;
    pending->payload_size = more;
    return pending;
}

void commit_answer_wait(broker_t *broker, client_t *client, pending_commit_t *pending, uint64_t lsn) {
    pending->lsn = lsn;
    pending_append(broker, client, pending);
    broker->commit_wanted = true;
}

void commit_answer_drop(broker_t *broker, pending_commit_t *pending) { pending_free(broker, pending); }

bool commit_answer(broker_t *broker, client_t *client, uint64_t seq, uint64_t lsn, enum pending_kind kind, const uint8_t *text,
                   uint32_t size) {
    pending_commit_t *pending = commit_answer_new(broker, client, seq, kind, text, size, 0);
    if (pending) commit_answer_wait(broker, client, pending, lsn);
    return pending != NULL;
}

/* ---- dispatch ---------------------------------------------------------------------------------------------------- */

/* The message expired while it waited for the commit. Consumers that are behind notice it when they read it back. */
static NOINLINE uint32_t dispatch_expired(broker_t *broker, const topic_t *topic, const pending_commit_t *pending) {
    uint64_t count = 0;
    uint32_t stored = 0;
    for (uint32_t i = 0, end; i < topic->consumer_count && pending->kind == PENDING_PUBLISH; i = end) {
        consumer_t *consumer = topic->consumers[i]->consumer;
        end = topic_consumer_end(topic, i);
        if (!topic_consumer_qos(topic, i, end, pending->lsn)) continue;
        if (consumer->behind) {
            stored += consumer_offer(broker, consumer, pending);
            continue;
        }
        for (member_t *member = consumer->members; member && !consumer->grouped; member = member->next)
            member->client->dispatch_mark = pending->lsn;
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
    broker->stats.enqueued += count;
    broker->stats.dropped_ttl += count;
    return stored;
}

static uint32_t offer_to_consumers(broker_t *broker, const pending_commit_t *pending, const topic_t *topic) {
    uint32_t stored = 0;
    broker->stats.work += topic->consumer_count;
    broker->flush_order = topic->consumer_count > WIDE_TARGETS;
    for (uint32_t i = 0, end; i < topic->consumer_count; i = end) {
        end = topic_consumer_end(topic, i);
        if (topic_consumer_qos(topic, i, end, pending->lsn))
            stored += consumer_offer(broker, topic->consumers[i]->consumer, pending);
    }
    broker->flush_order = FLUSH_NARROW;
    return stored;
}

/* Passes a publish to its subscribers. Consumers come first, so that a connection that gets the message through a consumer does
 * not get it again as a plain subscriber. *stored: how many consumers stored it. False: as PUBLISH_FULL. */
static bool dispatch(broker_t *broker, const pending_commit_t *pending, topic_t *topic, uint32_t *stored) {
    if (!topic) {
        broker->stats.unrouted++; /* no memory for a route: durable consumers will read it from the WAL */
        *stored = pending->kind == PENDING_PUBLISH ? consumers_missed(broker, pending) : 0;
        return true;
    }
    if (BQ_UNLIKELY(broker->dispatch.begun)) {
        *stored = broker->dispatch.stored;
    } else {
        if (!topic->target_count && !topic->consumer_count) broker->stats.unrouted++;
        if (BQ_UNLIKELY(pending->expiry_tick && pending->expiry_tick <= tick_of(broker, broker->now_ms))) {
            *stored = dispatch_expired(broker, topic, pending);
            return true;
        }
        if (pending->kind == PENDING_PUBLISH) *stored = offer_to_consumers(broker, pending, topic);
    }
    if (BQ_UNLIKELY(!publish_pending(broker, topic, pending))) {
        broker->dispatch.begun = true;
        broker->dispatch.stored = *stored;
        return false;
    }
    broker->dispatch.given = 0;
    if (BQ_UNLIKELY(broker->dispatch.begun)) {
        broker->dispatch.begun = false;
        drain_end(broker);
    }
    return true;
}

/* Finds the topic of a pending commit with at most `units` of work. *topic NULL: not a publish, or no memory. */
static bool pending_topic_ready(broker_t *broker, const pending_commit_t *pending, uint32_t units, topic_t **topic) {
    int error = 0;
    *topic = NULL;
    if (pending->kind != PENDING_PUBLISH && pending->kind != PENDING_FOLLOW) return true;
    const uint8_t *name = message_topic(pending_bytes_at(pending));
    *topic = publish_topic(broker, broker->dispatched_topic, name, pending->topic_size, &error);
    broker->dispatched_topic = *topic;
    if (!*topic) return true;
    enum route_outcome outcome = route_ready(broker->routes, *topic, units);
    if (outcome == ROUTE_NO_MEMORY) *topic = NULL;
    return outcome != ROUTE_LATER;
}

static topic_t *topic_now(broker_t *broker, const pending_commit_t *pending) {
    topic_t *topic;
    while (!pending_topic_ready(broker, pending, UINT32_MAX, &topic)) {}
    return topic;
}

static void answer(broker_t *broker, client_t *client, const pending_commit_t *pending, uint32_t stored, bool matched) {
    const protocol_ops_t *protocol = client->protocol;
    switch (pending->kind) {
    case PENDING_PUBLISH: protocol->published(broker, client, pending->seq, pending->id, stored, matched); break;
    case PENDING_FOLLOW:
        if (pending->seq) protocol->published(broker, client, pending->seq, pending->id, 0, matched);
        break;
    case PENDING_SUBACK:
        protocol->subscribed(broker, client, pending->seq, pending_bytes_at(pending), pending->topic_size);
        break;
    case PENDING_REPLY: protocol->answer(broker, client, pending->seq, BQ_OUTCOME_DONE, NULL); break;
    default: break;
    }
}

static void refuse_pending(broker_t *broker, client_t *client, const pending_commit_t *pending) {
    const char *why = commit_refusal(broker);
    if (pending->kind != PENDING_GONE)
        client->protocol->answer(broker, client, pending->seq, BQ_OUTCOME_UNAVAILABLE, why ? why : "shutting down");
}

/* Removes the oldest pending commit: dispatches it, and answers it. False: as PUBLISH_FULL; nothing was removed. */
static bool pending_finish(broker_t *broker, pending_commit_t *pending, topic_t *topic, bool durable) {
    core_assert(pending == broker->pending && broker->pending_commits > 0 && pending_bytes(pending) <= broker->pending_bytes);
    core_assert(!durable || pending->lsn <= wal_durable(broker->wal)); /* nothing leaves before it is durable */
    uint32_t stored = 0;
    bool dispatched = pending->kind == PENDING_FOLLOW || (durable && pending->kind == PENDING_PUBLISH);
    if (dispatched && !dispatch(broker, pending, topic, &stored)) return false;
    broker->pending = pending->next;
    if (!broker->pending) broker->pending_tail = &broker->pending;
    broker->pending_commits--;
    broker->pending_bytes -= pending_bytes(pending);
    client_t *client = pending->conn ? client_find(broker, pending->conn) : NULL;
    if (client) {
        core_assert(client->pending_commits > 0 && pending_bytes(pending) <= client->pending_bytes);
        client->pending_commits--;
        client->pending_bytes -= pending_bytes(pending);
        if (durable || pending->kind == PENDING_FOLLOW)
            answer(broker, client, pending, stored, topic && (topic->target_count || topic->consumer_count));
        else
            refuse_pending(broker, client, pending);
        if (!durable && pending->undo) consumer_subscribe_undo(broker, client, pending);
        if (pending->kind == PENDING_SUBACK || pending->kind == PENDING_REPLY) client_resume(broker, client, PAUSE_ANSWER);
        if (!client->pending_commits && client->pause & PAUSE_UNCOMMITTED) client_resume(broker, client, PAUSE_UNCOMMITTED);
        client_answered(broker, client);
    }
    if (pending->delivery) dead_letter_written(broker, pending->delivery, durable);
    pending_free(broker, pending);
    return true;
}

/* Python gets an event for each refused SUB. Without room in the event ring, the rest waits for the next turn. */
static void refuse_all_pending(broker_t *broker) {
    while (broker->pending && (!broker->pending->undo || event_room(broker))) {
        if (!pending_finish(broker, broker->pending, topic_now(broker, broker->pending), false)) return;
    }
}

void commit_wait(broker_t *broker, client_t *client) {
    client->pause |= PAUSE_WAL;
    if (client->wal_waiting) return;
    client->wal_waiting = true;
    client->wal_next = broker->wal_waiters;
    broker->wal_waiters = client;
}

static void wal_waiters_resume(broker_t *broker) {
    client_t *client = broker->wal_waiters;
    broker->wal_waiters = NULL;
    while (client) {
        client_t *next = client->wal_next;
        client->wal_waiting = false;
        client_resume(broker, client, PAUSE_WAL);
        client = next;
    }
}

void commit_end(broker_t *broker) {
    uint32_t stored;
    for (pending_commit_t *pending = broker->pending; pending; pending = pending->next) {
        if (pending->kind != PENDING_FOLLOW) continue;
        while (!dispatch(broker, pending, topic_now(broker, pending), &stored)) drain_skip(broker);
        pending->kind = PENDING_GONE;
    }
}

/* Dispatches durable entries, within one turn's work. Returns the LSN up to which everything has been offered to its
 * consumers. */
static uint64_t finish_durable(broker_t *broker, uint64_t durable) {
    uint64_t stop = work_done(broker) + WORK_COMMITS, done = broker->dispatched_lsn;
    topic_t *topic;
    while (broker->pending && broker->pending->lsn <= durable) {
        if (work_done(broker) >= stop || !pending_topic_ready(broker, broker->pending, WORK_COMMITS, &topic)) break;
        uint64_t lsn = broker->pending->lsn;
        if (!pending_finish(broker, broker->pending, topic, true)) break;
        if (lsn > done) done = lsn;
    }
    if (!broker->pending || broker->pending->lsn > durable) return durable;
    broker->commits_left = true;
    return broker->pending->lsn > done + 1 ? broker->pending->lsn - 1 : done;
}

void commit_turn(broker_t *broker) {
    if (!broker->wal) return;
    if (BQ_UNLIKELY(!broker->timeline.begun)) timeline_begin(broker);
    broker->commits_left = false;
    uint64_t durable = finish_durable(broker, wal_durable(broker->wal));
    if (wal_state(broker->wal) == WAL_E_FAILED && !broker->commits_left) refuse_all_pending(broker);
    bool found = broker->dispatched_lsn < broker->found_lsn && durable >= broker->found_lsn;
    broker->dispatched_lsn = durable;
    if (found) consumers_go_on(broker);
    wal_read_t read;
    while (wal_read_done(broker->wal, &read)) consumer_read_finished(broker, &read);
    if (broker->wal_waiters && (wal_gathered(broker->wal) == 0 || wal_state(broker->wal))) wal_waiters_resume(broker);
}

/* A checkpoint must include all records found at the start. An earlier one would store floors for LSNs that a power cut could
 * still remove and that new records would then reuse. */
static bool checkpoint_would_lie(const broker_t *broker) { return broker->dispatched_lsn < broker->found_lsn; }

static void checkpoint_when_due(broker_t *broker) {
    wal_stats_t stats;
    int state = wal_state(broker->wal);
    uint64_t look_ms = state == WAL_E_FULL ? CHECKPOINT_LOOK_FULL_MS : CHECKPOINT_LOOK_MS,
             quota_ms = wal_quota_checkpoint_ms(broker);
    if (quota_ms < look_ms) look_ms = quota_ms;
    if (state == WAL_E_FAILED || broker->now_ms < broker->checkpoint_looked_ms + look_ms || checkpoint_would_lie(broker)) return;
    broker->checkpoint_looked_ms = broker->now_ms;
    wal_stats(broker->wal, &stats);
    if (stats.full || stats.bytes > broker->wal_max_bytes / 2) consumers_sweep(broker);
    bool grown = stats.written_bytes - broker->checkpoint_written >= broker->wal_segment_bytes;
    bool old = broker->now_ms - broker->checkpoint_ms >= CHECKPOINT_MS && stats.written_bytes != broker->checkpoint_written;
    bool seen = broker->consumers.seen_changed && broker->now_ms - broker->checkpoint_ms >= SEEN_CHECKPOINT_MS;
    if (!grown && !old && !seen && !stats.full && quota_ms == UINT64_MAX) return;
    /* there was no room for it, or it is still being written */
    bool failed = broker->checkpoint_ms && stats.checkpoints == broker->checkpoints_seen;
    if (failed && broker->now_ms - broker->checkpoint_ms < CHECKPOINT_LOOK_MS) return;
    uint32_t size;
    uint64_t keep_from;
    uint8_t *bytes = consumers_serialize(broker, &size, &keep_from);
    if (!bytes) return;
    bool makes_room = keep_from > stats.keep_from; /* otherwise a full WAL would write useless checkpoints for days */
    if ((grown || old || seen || makes_room) &&
        wal_checkpoint(broker->wal, broker->dispatched_lsn, bytes, size, keep_from) == BQ_OK) {
        if (keep_from > broker->consumers.kept_from) broker->consumers.kept_from = keep_from;
        broker->checkpoint_written = stats.written_bytes;
        broker->checkpoint_ms = broker->now_ms;
        broker->consumers.seen_changed = false;
        broker->checkpoints_seen = stats.checkpoints;
    }
    free(bytes);
}

void commit_begin(broker_t *broker) {
    if (!broker->wal) return;
    checkpoint_when_due(broker);
    if (BQ_UNLIKELY(timeline_waits(&broker->timeline)))
        timeline_write(broker); /* a full WAL accepts it later; no publish is appended before it */
    reserve_ids(broker);
    uint64_t gathered = wal_gathered(broker->wal);
    if (!gathered || wal_busy(broker->wal)) return;
    if (!broker->commit_due_ms)
        broker->commit_due_ms = broker->now_ms + (broker->commit_wanted ? broker->wal_flush_ms : LAZY_COMMIT_MS);
    else if (broker->commit_wanted && broker->now_ms + broker->wal_flush_ms < broker->commit_due_ms)
        broker->commit_due_ms = broker->now_ms + broker->wal_flush_ms;
    bool full = broker->wal_waiters || gathered >= broker->wal_batch_bytes / 2;
    if (!full && !broker->stopping && broker->now_ms < broker->commit_due_ms) return;
    if (!wal_commit(broker->wal)) return;
    broker->commit_due_ms = 0;
    broker->commit_wanted = false;
    wal_waiters_resume(broker);
}

int64_t commit_due_ms(broker_t *broker) {
    if (!broker->wal) return -1;
    if (broker->pending && broker->pending->lsn <= wal_durable(broker->wal)) return 0; /* only waits for the next turn */
    int64_t otherwise = wal_state(broker->wal) == WAL_E_FULL ? (int64_t)CHECKPOINT_LOOK_FULL_MS : -1;
    if (broker->commits_left) return 0;
    if (!wal_gathered(broker->wal) || wal_busy(broker->wal)) return otherwise; /* busy: the end of the commit wakes the core */
    return broker->commit_due_ms > broker->now_ms ? (int64_t)(broker->commit_due_ms - broker->now_ms) : 0;
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static void wake_core(void *context) { poll_wake_signal(((broker_t *)context)->wake); }

static void show_progress(void *context, uint64_t done, uint64_t total) {
    broker_t *broker = context;
    atomic_store_explicit(&broker->wal_progress, total ? (uint32_t)(done * 1000 / total) : 1000, memory_order_relaxed);
}

static void report_fill(const broker_t *broker, const wal_report_t *from, bq_wal_report_t *to) {
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
                            .sessions = broker->consumers.count,
                            .next_message_id = broker->next_message_id,
                            .checkpoints_bad = from->checkpoints_bad,
                            .clean = from->clean,
                            .lost_unknown = from->lost_unknown,
                            .damaged_files = from->damaged_files,
                            .strange_files = from->strange_files};
}

int commit_open(broker_t *broker, const char *directory, const bq_wal_config_t *config, bq_wal_report_t *report) {
    int error = 0;
    wal_report_t found = {0};
    storage_t *storage = storage_disk(directory, &error);
    *report = (bq_wal_report_t){.error = -error};
    if (!storage) return BQ_E_SYSTEM;
    wal_config_t wal_config = {.max_bytes = config->max_bytes,
                               .reserve_bytes = config->reserve_bytes,
                               .segment_bytes = config->segment_bytes,
                               .batch_bytes_max = config->batch_bytes,
                               .block_bytes = config->block_bytes,
                               .no_sync = config->no_sync,
                               .wake = wake_core,
                               .wake_context = broker};
    int opened = wal_open(&broker->wal, storage, &wal_config, consumer_restore, broker, &found, show_progress);
    if (opened < 0) {
        broker->wal = NULL;
        report->error = errno;
        return opened;
    }
    broker->wal_flush_ms = config->flush_interval_ms;
    broker->wal_batch_bytes = config->batch_bytes;
    broker->wal_segment_bytes = config->segment_bytes;
    broker->wal_max_bytes = config->max_bytes;
    ids_go_on(broker, &found);
    broker->dispatched_lsn = wal_durable(broker->wal);
    broker->found_lsn = found.next_lsn - 1;
    consumer_restored(broker);
    reserve_first_ids(broker);
    report_fill(broker, &found, report);
    return BQ_OK;
}

/* The last checkpoint shortens the next start. */
static void checkpoint_last(broker_t *broker) {
    uint32_t size;
    uint64_t keep_from;
    broker->consumers.last_checkpoint = true;
    bool none = wal_state(broker->wal) == WAL_E_FAILED || checkpoint_would_lie(broker);
    uint8_t *bytes = none ? NULL : consumers_serialize(broker, &size, &keep_from);
    for (uint32_t tries = 0;
         bytes && tries < 100 && wal_checkpoint(broker->wal, broker->dispatched_lsn, bytes, size, keep_from) == BQ_E_AGAIN;
         tries++)
        poll_sleep_ms(10); /* another one is being written */
    free(bytes);
}

void commit_close(broker_t *broker) {
    if (!broker->wal) return;
    while (broker->pending)
        if (!pending_finish(broker, broker->pending, topic_now(broker, broker->pending), false)) drain_skip(broker);
    checkpoint_last(broker);
    wal_note(broker->wal, broker->next_message_id, false);
    wal_close(broker->wal);
    broker->wal = NULL;
}
