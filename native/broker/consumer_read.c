/* broker/consumer_read.c: what did not fit the window of a durable session is read back from the log.
 *
 *      log      ....[..............block..............].......      a reader holds one block: the records from an LSN on
 *      session           next_lsn ^ goes on here when its window has room again
 *
 * A block is read once and kept until all sessions that go on in it have passed it. Sessions whose next record lies in a block that
 * is there use that one. Those that find no reader wait in line; who has held a block for READ_HOLD_MS gives way to them.
 *
 * Invariant: what a session takes, it takes in LSN order from next_lsn on, and nothing past fanned_lsn. A session is in line, goes on
 * in a block, or needs neither. A read that brought nothing is not asked for again before READ_AGAIN_MS.
 */
#include "broker/consumer_internal.h"
#include "broker/commit.h"
#include "broker/budget.h"
#include "core.h"
#include "broker/trie.h"

#define READ_BLOCK_BYTES (256u << 10)
#define READ_HOLD_MS 250u
#define READ_AGAIN_MS 100u
#define READ_AGAIN_DOUBLINGS_MAX 6u
#define READ_WAITERS_MAX 256u /* of them looked at in a turn */

/* ---- blocks ------------------------------------------------------------------------------------------------------------ */

static bool goes_on_in_block(const session_t *session) {
    return session->reader && session->reader->generation == session->read_generation;
}

static void block_leave(session_t *session) {
    if (goes_on_in_block(session)) session->reader->users--;
    session->reader = NULL;
}

static void block_forget(reader_t *reader) { /* whoever was in it finds another generation */
    reader->generation++;
    reader->users = 0;
    reader->loaded = false;
}

static void buffer_release(bq_t *bq, reader_t *reader) {
    block_forget(reader);
    pool_give(&bq->pool, reader->buffer, reader->capacity);
    reader->buffer = NULL;
    reader->capacity = 0;
}

/* Nobody waits for a reader: those that nobody uses need no memory. */
static void buffers_trim(bq_t *bq) {
    sessions_t *sessions = &bq->sessions;
    for (reader_t *reader = sessions->readers; reader < sessions->readers + SESSION_SLOTS; reader++)
        if (reader->buffer && !reader->reading && !reader->users && !sessions->read_first) buffer_release(bq, reader);
}

static bool in_budget(const bq_t *bq, uint64_t more) {
    return !bq->config.memory_bytes || bq->pool.used_bytes - bq->pool.free_bytes + more <= bq->config.memory_bytes;
}

/* Memory for another buffer of this reader, if need be that of blocks nobody uses or that were held long enough. Over the budget one reader goes on alone, so that
 * what is in memory can leave. */
static bool buffer_allowed(bq_t *bq, const reader_t *reader, uint32_t capacity) {
    uint32_t more = capacity > reader->capacity ? capacity - reader->capacity : 0;
    bool others = false;
    if (in_budget(bq, more)) return true;
    for (reader_t *other = bq->sessions.readers; other < bq->sessions.readers + SESSION_SLOTS; other++) {
        if (other == reader || !other->buffer) continue;
        if (!other->reading && (!other->users || bq->now_ms >= other->since_ms + READ_HOLD_MS))
            buffer_release(bq, other);
        else
            others = true;
    }
    return !others || in_budget(bq, more);
}

static bool buffer_fit(bq_t *bq, reader_t *reader, uint32_t capacity) {
    if (reader->buffer && reader->capacity == capacity) return true;
    if (reader->buffer) buffer_release(bq, reader);
    reader->buffer = pool_take(&bq->pool, capacity);
    reader->capacity = reader->buffer ? capacity : 0;
    return reader->buffer != NULL;
}

/* A block that holds the session's next record: it goes on there. */
static bool block_join(bq_t *bq, session_t *session) {
    for (reader_t *reader = bq->sessions.readers; reader < bq->sessions.readers + SESSION_SLOTS; reader++) {
        if (!reader->loaded || session->next_lsn < reader->first_lsn || session->next_lsn >= reader->next_lsn) continue;
        session->reader = reader;
        session->read_generation = reader->generation;
        session->read_at = 0;
        reader->users++;
        return true;
    }
    return false;
}

static bool block_comes(const bq_t *bq, uint64_t lsn) {
    for (const reader_t *reader = bq->sessions.readers; reader < bq->sessions.readers + SESSION_SLOTS; reader++)
        if (reader->reading && reader->first_lsn == lsn) return true;
    return false;
}

/* A reader that nobody uses, or the one whose block has been held longest, if that is long enough. Else NULL, and read_due_ms says
 * when there will be one. */
static reader_t *reader_free(bq_t *bq) {
    sessions_t *sessions = &bq->sessions;
    reader_t *oldest = NULL;
    for (reader_t *reader = sessions->readers; reader < sessions->readers + SESSION_SLOTS; reader++) {
        if (reader->reading) continue;
        if (!reader->users) return reader;
        if (!oldest || reader->since_ms < oldest->since_ms) oldest = reader;
    }
    if (!oldest || bq->now_ms >= oldest->since_ms + READ_HOLD_MS) return oldest;
    if (oldest->since_ms + READ_HOLD_MS < sessions->read_due_ms) sessions->read_due_ms = oldest->since_ms + READ_HOLD_MS;
    return NULL;
}

/* ---- waiting in line ----------------------------------------------------------------------------------------------------- */

static void line_leave(bq_t *bq, session_t *session) {
    if (!session->read_link) return;
    *session->read_link = session->read_next;
    if (session->read_next)
        session->read_next->read_link = session->read_link;
    else
        bq->sessions.read_last = session->read_link;
    session->read_link = NULL;
}

static void line_join(bq_t *bq, session_t *session) {
    sessions_t *sessions = &bq->sessions;
    if (session->read_link) return;
    if (!sessions->read_first) sessions->read_last = &sessions->read_first;
    session->read_next = NULL;
    session->read_link = sessions->read_last;
    *sessions->read_last = session;
    sessions->read_last = &session->read_next;
    sessions->readers_changed = true;
}

/* Not before this: nothing has come of the last read, or there is no memory for the next. */
static void read_later(bq_t *bq, session_t *session) {
    uint32_t doublings = session->read_failures < READ_AGAIN_DOUBLINGS_MAX ? session->read_failures : READ_AGAIN_DOUBLINGS_MAX;
    session->read_again_ms = bq->now_ms + ((uint64_t)READ_AGAIN_MS << doublings);
    if (session->read_again_ms < bq->sessions.read_due_ms) bq->sessions.read_due_ms = session->read_again_ms;
}

static void read_failed(bq_t *bq, session_t *session) {
    bq->stats.log_read_failures++;
    if (!session->read_failures) bq->sessions.read_failing++;
    read_later(bq, session);
    if (session->read_failures < UINT8_MAX) session->read_failures++;
    line_join(bq, session);
}

static void read_succeeded(bq_t *bq, session_t *session) {
    if (session->read_failures) bq->sessions.read_failing--;
    session->read_failures = 0;
    session->read_again_ms = 0;
    session->read_bytes = 0;
}

static void read_start(bq_t *bq, reader_t *reader, session_t *session) {
    uint32_t slot = (uint32_t)(reader - bq->sessions.readers);
    uint32_t capacity = session->read_bytes > READ_BLOCK_BYTES ? session->read_bytes : READ_BLOCK_BYTES;
    block_forget(reader);
    if (!buffer_allowed(bq, reader, capacity)) {
        read_later(bq, session); /* others give their memory back */
        return;
    }
    if (!buffer_fit(bq, reader, capacity) || log_read_start(bq->log, slot, session->next_lsn, reader->buffer, capacity) < 0) {
        read_failed(bq, session);
        return;
    }
    reader->first_lsn = session->next_lsn;
    reader->asker = session;
    reader->reading = true;
}

/* One of those in line: into a block, or it asks for one. It leaves the line when it has one. */
static void line_serve(bq_t *bq, session_t *session) {
    if (bq->now_ms < session->read_again_ms) {
        if (session->read_again_ms < bq->sessions.read_due_ms) bq->sessions.read_due_ms = session->read_again_ms;
        return;
    }
    if (block_join(bq, session)) {
        line_leave(bq, session);
        session_pump_later(bq, session);
        return;
    }
    reader_t *reader = block_comes(bq, session->next_lsn) ? NULL : reader_free(bq);
    if (reader) read_start(bq, reader, session);
}

/* Blocks that are held while memory is short go back to the log, but one. */
static void blocks_squeeze(bq_t *bq) {
    reader_t *kept = NULL;
    for (reader_t *reader = bq->sessions.readers; reader < bq->sessions.readers + SESSION_SLOTS; reader++) {
        if (!reader->buffer || reader->reading || bq->now_ms < reader->since_ms + READ_HOLD_MS) continue;
        if (kept)
            buffer_release(bq, reader);
        else
            kept = reader;
    }
}

void session_reads_turn(bq_t *bq) {
    sessions_t *sessions = &bq->sessions;
    if (budget_over(bq)) blocks_squeeze(bq);
    if (!sessions->read_first || (!sessions->readers_changed && bq->now_ms < sessions->read_due_ms)) return;
    sessions->readers_changed = false;
    sessions->read_due_ms = UINT64_MAX;
    session_t *next = sessions->read_first;
    for (uint32_t count = 0; next && count < READ_WAITERS_MAX; count++) {
        session_t *session = next;
        next = session->read_next;
        line_serve(bq, session);
    }
    if (next && sessions->read_due_ms > bq->now_ms + READ_HOLD_MS) sessions->read_due_ms = bq->now_ms + READ_HOLD_MS;
}

uint64_t session_reads_due_ms(const bq_t *bq) {
    if (!bq->sessions.read_first) return UINT64_MAX;
    return bq->sessions.readers_changed ? bq->now_ms : bq->sessions.read_due_ms;
}

void session_read_abandon(bq_t *bq, session_t *session) {
    for (reader_t *reader = bq->sessions.readers; reader < bq->sessions.readers + SESSION_SLOTS; reader++)
        if (reader->asker == session) reader->asker = NULL;
    if (session->read_failures) bq->sessions.read_failing--;
    session->read_failures = 0;
    session->read_full = 0;
    session->skim = false;
    line_leave(bq, session);
    block_leave(session);
    bq->sessions.readers_changed = true;
    buffers_trim(bq);
}

/* ---- taking ---------------------------------------------------------------------------------------------------------------- */

/* When it expires. False: it has. */
static bool expiry_of(const bq_t *bq, uint64_t lsn, const publish_record_t *record, uint64_t *tick) {
    *tick = 0;
    if (!record->ttl_ms) return true;
    uint64_t elapsed = timeline_age_ms(bq, lsn, record);
    if (elapsed >= record->ttl_ms) return false;
    *tick = publish_expiry_tick(bq, bq->now_ms, record->ttl_ms - elapsed);
    return true;
}

static uint64_t left_ms(const bq_t *bq, uint64_t lsn, const publish_record_t *record) {
    return record->ttl_ms ? record->ttl_ms - timeline_age_ms(bq, lsn, record) : 0;
}

enum take { TAKE_OK, TAKE_FULL, TAKE_SKIP, TAKE_NO_MEMORY };

/* A CRC shows that a record is as it was written, not that a core wrote it: what it says of itself must fit, and its topic be one. */
bool publish_read(const uint8_t *bytes, uint32_t size, publish_record_t *record) {
    if (size < sizeof *record) return false;
    memcpy(record, bytes, sizeof *record);
    uint64_t texts = (uint64_t)record->topic_size + record->properties_size;
    return texts <= size - sizeof *record && topic_check(bytes + sizeof *record, record->topic_size) == 0;
}

/* The message of a record; `room` is for the properties of a dead letter. */
static message_head_t head_of(const publish_record_t *record, const uint8_t *texts, uint32_t size, uint8_t flags, uint8_t *room) {
    message_head_t head = {.topic = texts,
                           .topic_size = record->topic_size,
                           .payload_size = size - record->topic_size - record->properties_size,
                           .properties_size = record->properties_size,
                           .id = record->id,
                           .timestamp_ms = record->timestamp_ms,
                           .ttl_ms = record->ttl_ms};
    if (BQ_LIKELY(!head.properties_size)) return head;
    head.properties = texts + head.topic_size + head.payload_size;
    letter_record_t letter;
    if (!(flags & PUBLISH_LETTER) || head.properties_size != sizeof letter) return head;
    memcpy(&letter, head.properties, sizeof letter);
    head.properties = room;
    head.properties_size = letter_properties_again(room, head.topic, head.topic_size, &letter);
    return head;
}

/* Over the session's quota of the log, and not to be a dead letter. */
static bool take_dropped(bq_t *bq, session_t *session, uint64_t lsn, uint64_t id) {
    if (!session_quota_drops(bq, session, id)) return false;
    session->dropped_session_log++;
    session->settled++;
    if (lsn > session->touched_lsn) session->touched_lsn = lsn;
    bq->stats.dropped_session_log++;
    bq->stats.enqueued++;
    return true;
}

static enum take take_back(bq_t *bq, session_t *session, int dialect, uint64_t lsn, const uint8_t *bytes, uint32_t size,
                           uint8_t flags) {
    publish_record_t record;
    uint64_t tick;
    uint8_t room[LETTER_PROPERTIES_BYTES_MAX];
    if (!publish_read(bytes, size, &record)) return TAKE_SKIP;
    message_head_t head = head_of(&record, bytes + sizeof record, size - (uint32_t)sizeof record, flags, room);
    const uint8_t *payload = head.topic + head.topic_size;
    if (filter_matches(dialect, session->text, session->filter_size, head.topic, head.topic_size) != 1) return TAKE_SKIP;
    past_entry_t entry;
    if (session_past_settled(session, lsn, &entry)) return TAKE_SKIP;
    uint32_t prefix_size = message_head_size(&head), payload_size = head.payload_size;
    if (!expiry_of(bq, lsn, &record, &tick)) {
        session_behind_take(session, prefix_size + payload_size, record.timestamp_ms);
        session->dropped_ttl++;
        session->settled++;
        if (lsn > session->touched_lsn) session->touched_lsn = lsn;
        bq->stats.dropped_ttl++;
        bq->stats.enqueued++;
        return TAKE_SKIP;
    }
    bool over = BQ_UNLIKELY(lsn < session->quota_lsn);
    if (over) {
        if (take_dropped(bq, session, lsn, record.id)) {
            session_behind_take(session, prefix_size + payload_size, record.timestamp_ms);
            return TAKE_SKIP;
        }
        if (!session_quota_has_room(bq, session)) return TAKE_FULL;
    } else if (!session->members) {
        session_skimmed(bq, session, left_ms(bq, lsn, &record));
        return TAKE_FULL;
    } else if (!session_has_room(bq, session, prefix_size + payload_size)) {
        return TAKE_FULL;
    }
    uint8_t *out = shared_reserve(bq, prefix_size + payload_size);
    if (!out) return TAKE_NO_MEMORY;
    message_head_write(out, &head);
    if (payload_size) memcpy(out + prefix_size, payload, payload_size);
    segment_t *segment = bq->segments.open;
    delivery_t *delivery = delivery_add(bq, session, segment, segment->used, prefix_size + payload_size, lsn, record.id, tick);
    if (!delivery) return TAKE_NO_MEMORY;
    segment_commit(&bq->segments, prefix_size + payload_size);
    delivery_recall(bq, delivery, &entry);
    session_behind_take(session, prefix_size + payload_size, record.timestamp_ms);
    if (over) session_quota_letter(bq, delivery);
    return TAKE_OK;
}

/* Items of log_read (see wal/wal.h) from read_at on, up to what was offered already: what lies behind will be offered. */
static enum take take_items(bq_t *bq, session_t *session, const reader_t *reader) {
    int dialect = filter_check(session->text, session->filter_size);
    while (session->read_at < reader->used) {
        const uint8_t *item = reader->buffer + session->read_at;
        uint64_t lsn = load_u64(item);
        uint32_t size = load_u32(item + 8);
        if (lsn > bq->fanned_lsn) break;
        if (item[12] == LOG_PUBLISH && lsn >= session->next_lsn) {
            enum take took = take_back(bq, session, dialect, lsn, item + 16, size, item[13]);
            if (took == TAKE_FULL || took == TAKE_NO_MEMORY) {
                session->next_lsn = lsn;
                return took;
            }
        }
        if (lsn >= session->next_lsn) session->next_lsn = lsn + 1;
        session->read_at += (16 + size + 7) & ~7u;
    }
    if (session->read_at < reader->used) { /* what was offered ends within the block */
        session->next_lsn = bq->fanned_lsn + 1;
        return TAKE_OK;
    }
    if (reader->next_lsn > session->next_lsn)
        session->next_lsn = reader->next_lsn <= bq->fanned_lsn ? reader->next_lsn : bq->fanned_lsn + 1;
    block_leave(session);
    return TAKE_OK;
}

/* Everything up to here was offered, and what comes will be. */
static void caught_up(bq_t *bq, session_t *session) {
    session_behind_end(session);
    session_past_drop(bq, session);
    session_read_abandon(bq, session);
}

/* It wants more, and has not found its window full since the last acknowledgement. */
static bool wants(const bq_t *bq, const session_t *session) {
    return session->behind && (session->members || session->skim) && session->next_lsn <= bq->fanned_lsn && !session->read_link &&
           session->window_count <= bq->config.max_in_flight &&
           (!session->read_full || session->window_count < session->read_full);
}

bool session_read_on(bq_t *bq, session_t *session) {
    uint32_t before = session->window_count;
    while (wants(bq, session)) {
        session->read_full = 0;
        if (!goes_on_in_block(session) && !block_join(bq, session)) {
            line_join(bq, session);
            break;
        }
        enum take took = take_items(bq, session, session->reader);
        if (took == TAKE_FULL && !session->members && !session->skim) {
            block_leave(session);
        } else if (took == TAKE_FULL) {
            session->read_full = session->window_count;
        } else if (took == TAKE_NO_MEMORY && !session->window_count) {
            read_failed(bq, session); /* no acknowledgement will come that could bring it here again */
        } else if (took == TAKE_NO_MEMORY) {
            session->read_full = session->window_count;
        } else {
            read_succeeded(bq, session);
        }
    }
    if (session->behind && session->next_lsn > bq->fanned_lsn && session->next_lsn > bq->found_lsn) caught_up(bq, session);
    session_floor_update(bq, session);
    return session->window_count > before;
}

/* ---- what the read thread brings --------------------------------------------------------------------------------------------- */

void session_read_finished(bq_t *bq, const log_read_t *read) {
    reader_t *reader = &bq->sessions.readers[read->slot];
    session_t *session = reader->asker;
    reader->reading = false;
    reader->asker = NULL;
    bq->sessions.readers_changed = true;
    if (read->result > 0) {
        reader->loaded = true;
        reader->used = read->used;
        reader->next_lsn = read->next_lsn;
        reader->since_ms = bq->now_ms;
    }
    if (!session) { /* it was given up meanwhile */
        buffers_trim(bq);
        return;
    }
    if (read->result > 0) return; /* it is in line, and finds the block */
    if (read->result == BQ_E_TOO_LARGE && read->used > reader->capacity) {
        session->read_bytes = read->used;
    } else if (read->result == LOG_E_GONE && read->next_lsn > session->next_lsn) {
        bq->stats.lost_lsns += read->next_lsn - session->next_lsn; /* damaged on disk: counted and logged, never silent */
        session->next_lsn = read->next_lsn;
        line_leave(bq, session);
        session_pump_later(bq, session);
    } else {
        read_failed(bq, session);
    }
}
