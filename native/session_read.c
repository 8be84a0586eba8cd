/* session_read.c: what did not fit a durable session's window is read back from the log.
 *
 * Invariant: at most one read of a session is under way; what it brings is taken in LSN order, from next_lsn on.
 */
#include "session_internal.h"
#include "commit.h"
#include "core.h"
#include "trie.h"

#include <stdlib.h>

#define READ_BUFFER_BYTES (256u << 10)

void session_read_start(bq_t *bq, session_t *session) {
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

void session_read_abandon(bq_t *bq, session_t *session) {
    if (session->read_slot >= 0) bq->sessions.readers[session->read_slot] = NULL;
    session->read_slot = -1;
}

/* When it expires. False: it has. */
static bool expiry_of(const bq_t *bq, uint64_t lsn, const publish_record_t *record, uint64_t *tick) {
    *tick = 0;
    if (!record->ttl_ms) return true;
    uint64_t elapsed = timeline_age_ms(bq, lsn, record);
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
    uint32_t prefix_size = message_qos1_prefix_size(record.topic_size);
    if (!expiry_of(bq, lsn, &record, &tick)) {
        session_behind_take(session, prefix_size + payload_size, record.timestamp_ms);
        session->dropped_ttl++;
        session->settled++;
        bq->stats.dropped_ttl++;
        bq->stats.enqueued++;
        return TAKE_SKIP;
    }
    if (!session_has_room(bq, session, prefix_size + payload_size)) return TAKE_FULL;
    publish_run_close(bq);
    uint8_t *out = segment_reserve(&bq->segments, prefix_size + payload_size);
    if (!out) return TAKE_FULL;
    message_qos1_write(out, topic, record.topic_size, record.id, record.timestamp_ms, record.ttl_ms, payload_size, false);
    if (payload_size) memcpy(out + prefix_size, payload, payload_size);
    segment_t *segment = bq->segments.open;
    if (!delivery_add(bq, session, segment, segment->used, prefix_size + payload_size, lsn, record.id, tick)) return TAKE_FULL;
    segment_commit(&bq->segments, prefix_size + payload_size);
    session_behind_take(session, prefix_size + payload_size, record.timestamp_ms);
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
    if (session->next_lsn > bq->fanned_lsn && session->next_lsn > bq->found_lsn) session_behind_end(session);
    session_floor_update(bq, session);
    session_pump_later(bq, session);
}
