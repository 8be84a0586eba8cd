/* broker/consumer_read.c: reads messages of durable consumers back from the WAL when their windows have room.
 *
 *      WAL      ....[..............block..............].......      a reader holds one block: the records from an LSN on
 *      consumer           next_lsn ^ continues here when its window has room again
 *
 * A block is read once and kept until all consumers that read from it have passed it. Consumers whose next record is in a loaded
 * block use that block. If no reader is free, they wait in line. A block held for READ_HOLD_MS may be replaced for them.
 *
 * Invariant: a consumer takes messages in LSN order from next_lsn on, and none after dispatched_lsn. A consumer is in line,
 * reads from a block, or needs neither. After a failed read, the next one starts READ_AGAIN_MS later at the earliest.
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
#define READ_WAITERS_MAX 256u /* checked per turn */

/* ---- blocks ------------------------------------------------------------------------------------------------------ */

static bool goes_on_in_block(const consumer_t *consumer) {
    return consumer->reader && consumer->reader->generation == consumer->read_generation;
}

static void block_leave(consumer_t *consumer) {
    if (goes_on_in_block(consumer)) consumer->reader->users--;
    consumer->reader = NULL;
}

static void block_forget(reader_t *reader) { /* its consumers see a new generation */
    reader->generation++;
    reader->users = 0;
    reader->loaded = false;
}

static void buffer_release(bq_t *bq, reader_t *reader) {
    block_forget(reader);
    pool_free(&bq->pool, reader->buffer, reader->capacity);
    reader->buffer = NULL;
    reader->capacity = 0;
}

/* If no consumer is in line, unused readers need no memory. */
static void buffers_trim(bq_t *bq) {
    consumers_t *consumers = &bq->consumers;
    for (reader_t *reader = consumers->readers; reader < consumers->readers + CONSUMER_SLOTS; reader++)
        if (reader->buffer && !reader->reading && !reader->users && !consumers->read_first) buffer_release(bq, reader);
}

static bool in_budget(const bq_t *bq, uint64_t more) {
    return !bq->config.memory_bytes || bq->pool.used_bytes - bq->pool.free_bytes + more <= bq->config.memory_bytes;
}

/* Whether this reader may have a buffer of `capacity` bytes. Over the budget, blocks that are unused or held long enough are
 * freed first; a single reader is always allowed, so that messages in memory can be delivered. */
static bool buffer_allowed(bq_t *bq, const reader_t *reader, uint32_t capacity) {
    uint32_t more = capacity > reader->capacity ? capacity - reader->capacity : 0;
    bool others = false;
    if (in_budget(bq, more)) return true;
    for (reader_t *other = bq->consumers.readers; other < bq->consumers.readers + CONSUMER_SLOTS; other++) {
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
    reader->buffer = pool_alloc(&bq->pool, capacity);
    reader->capacity = reader->buffer ? capacity : 0;
    return reader->buffer != NULL;
}

/* If a loaded block has the consumer's next record, the consumer continues there. */
static bool block_join(bq_t *bq, consumer_t *consumer) {
    for (reader_t *reader = bq->consumers.readers; reader < bq->consumers.readers + CONSUMER_SLOTS; reader++) {
        if (!reader->loaded || consumer->next_lsn < reader->first_lsn || consumer->next_lsn >= reader->next_lsn) continue;
        consumer->reader = reader;
        consumer->read_generation = reader->generation;
        consumer->read_at = 0;
        reader->users++;
        return true;
    }
    return false;
}

static bool block_comes(const bq_t *bq, uint64_t lsn) {
    for (const reader_t *reader = bq->consumers.readers; reader < bq->consumers.readers + CONSUMER_SLOTS; reader++)
        if (reader->reading && reader->first_lsn == lsn) return true;
    return false;
}

/* An unused reader, or the one whose block has been held longest, if that is long enough. Otherwise NULL, and read_due_ms is the
 * time when one will be free. */
static reader_t *reader_free(bq_t *bq) {
    consumers_t *consumers = &bq->consumers;
    reader_t *oldest = NULL;
    for (reader_t *reader = consumers->readers; reader < consumers->readers + CONSUMER_SLOTS; reader++) {
        if (reader->reading) continue;
        if (!reader->users) return reader;
        if (!oldest || reader->since_ms < oldest->since_ms) oldest = reader;
    }
    if (!oldest || bq->now_ms >= oldest->since_ms + READ_HOLD_MS) return oldest;
    if (oldest->since_ms + READ_HOLD_MS < consumers->read_due_ms) consumers->read_due_ms = oldest->since_ms + READ_HOLD_MS;
    return NULL;
}

/* ---- waiting in line --------------------------------------------------------------------------------------------- */

static void line_leave(bq_t *bq, consumer_t *consumer) {
    if (!consumer->read_link) return;
    *consumer->read_link = consumer->read_next;
    if (consumer->read_next)
        consumer->read_next->read_link = consumer->read_link;
    else
        bq->consumers.read_last = consumer->read_link;
    consumer->read_link = NULL;
}

static void line_join(bq_t *bq, consumer_t *consumer) {
    consumers_t *consumers = &bq->consumers;
    if (consumer->read_link) return;
    if (!consumers->read_first) consumers->read_last = &consumers->read_first;
    consumer->read_next = NULL;
    consumer->read_link = consumers->read_last;
    *consumers->read_last = consumer;
    consumers->read_last = &consumer->read_next;
    consumers->readers_changed = true;
}

/* Delays the next read: the last one failed, or there is no memory. */
static void read_later(bq_t *bq, consumer_t *consumer) {
    uint32_t doublings = consumer->read_failures < READ_AGAIN_DOUBLINGS_MAX ? consumer->read_failures : READ_AGAIN_DOUBLINGS_MAX;
    consumer->read_again_ms = bq->now_ms + ((uint64_t)READ_AGAIN_MS << doublings);
    if (consumer->read_again_ms < bq->consumers.read_due_ms) bq->consumers.read_due_ms = consumer->read_again_ms;
}

static void read_failed(bq_t *bq, consumer_t *consumer) {
    bq->stats.log_read_failures++;
    if (!consumer->read_failures) bq->consumers.read_failing++;
    read_later(bq, consumer);
    if (consumer->read_failures < UINT8_MAX) consumer->read_failures++;
    line_join(bq, consumer);
}

static void read_succeeded(bq_t *bq, consumer_t *consumer) {
    if (consumer->read_failures) bq->consumers.read_failing--;
    consumer->read_failures = 0;
    consumer->read_again_ms = 0;
    consumer->read_bytes = 0;
}

static void read_start(bq_t *bq, reader_t *reader, consumer_t *consumer) {
    uint32_t slot = (uint32_t)(reader - bq->consumers.readers);
    uint32_t capacity = consumer->read_bytes > READ_BLOCK_BYTES ? consumer->read_bytes : READ_BLOCK_BYTES;
    block_forget(reader);
    if (!buffer_allowed(bq, reader, capacity)) {
        read_later(bq, consumer); /* until other blocks are freed */
        return;
    }
    if (!buffer_fit(bq, reader, capacity) || wal_read_start(bq->wal, slot, consumer->next_lsn, reader->buffer, capacity) < 0) {
        read_failed(bq, consumer);
        return;
    }
    reader->first_lsn = consumer->next_lsn;
    reader->asker = consumer;
    reader->reading = true;
}

/* Serves one consumer in line: it joins a block and leaves the line, or a read starts for it. */
static void line_serve(bq_t *bq, consumer_t *consumer) {
    if (bq->now_ms < consumer->read_again_ms) {
        if (consumer->read_again_ms < bq->consumers.read_due_ms) bq->consumers.read_due_ms = consumer->read_again_ms;
        return;
    }
    if (block_join(bq, consumer)) {
        line_leave(bq, consumer);
        consumer_pump_later(bq, consumer);
        return;
    }
    reader_t *reader = block_comes(bq, consumer->next_lsn) ? NULL : reader_free(bq);
    if (reader) read_start(bq, reader, consumer);
}

/* When memory is short, frees all blocks held long enough, except one. */
static void blocks_squeeze(bq_t *bq) {
    reader_t *kept = NULL;
    for (reader_t *reader = bq->consumers.readers; reader < bq->consumers.readers + CONSUMER_SLOTS; reader++) {
        if (!reader->buffer || reader->reading || bq->now_ms < reader->since_ms + READ_HOLD_MS) continue;
        if (kept)
            buffer_release(bq, reader);
        else
            kept = reader;
    }
}

void consumer_reads_turn(bq_t *bq) {
    consumers_t *consumers = &bq->consumers;
    if (budget_over(bq)) blocks_squeeze(bq);
    if (!consumers->read_first || (!consumers->readers_changed && bq->now_ms < consumers->read_due_ms)) return;
    consumers->readers_changed = false;
    consumers->read_due_ms = UINT64_MAX;
    consumer_t *next = consumers->read_first;
    for (uint32_t count = 0; next && count < READ_WAITERS_MAX; count++) {
        consumer_t *consumer = next;
        next = consumer->read_next;
        line_serve(bq, consumer);
    }
    if (next && consumers->read_due_ms > bq->now_ms + READ_HOLD_MS) consumers->read_due_ms = bq->now_ms + READ_HOLD_MS;
}

uint64_t consumer_reads_due_ms(const bq_t *bq) {
    if (!bq->consumers.read_first) return UINT64_MAX;
    return bq->consumers.readers_changed ? bq->now_ms : bq->consumers.read_due_ms;
}

void consumer_read_abandon(bq_t *bq, consumer_t *consumer) {
    for (reader_t *reader = bq->consumers.readers; reader < bq->consumers.readers + CONSUMER_SLOTS; reader++)
        if (reader->asker == consumer) reader->asker = NULL;
    if (consumer->read_failures) bq->consumers.read_failing--;
    consumer->read_failures = 0;
    consumer->read_full = 0;
    consumer->sweep = false;
    line_leave(bq, consumer);
    block_leave(consumer);
    bq->consumers.readers_changed = true;
    buffers_trim(bq);
}

/* ---- taking messages from a block -------------------------------------------------------------------------------- */

/* The expiry tick. False: expired. */
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

/* A valid CRC shows that the record is unchanged, not that a core wrote it. So check that its sizes fit and that its topic is
 * valid. */
bool publish_read(const uint8_t *bytes, uint32_t size, publish_record_t *record) {
    if (size < sizeof *record) return false;
    memcpy(record, bytes, sizeof *record);
    uint64_t texts = (uint64_t)record->topic_size + record->properties_size;
    return texts <= size - sizeof *record && topic_check(bytes + sizeof *record, record->topic_size) == 0;
}

/* The message of a record; `room` receives the properties of a dead letter. */
static message_t message_of(const publish_record_t *record, const uint8_t *texts, uint32_t size, uint8_t flags, uint8_t *room) {
    message_t message = {.topic = texts,
                         .topic_size = record->topic_size,
                         .payload_size = size - record->topic_size - record->properties_size,
                         .properties_size = record->properties_size,
                         .id = record->id,
                         .timestamp_ms = record->timestamp_ms,
                         .ttl_ms = record->ttl_ms};
    message.payload = texts + message.topic_size;
    if (BQ_LIKELY(!message.properties_size)) return message;
    message.properties = message.payload + message.payload_size;
    dead_letter_record_t letter;
    if (!(flags & PUBLISH_DEAD_LETTER) || message.properties_size != sizeof letter) return message;
    memcpy(&letter, message.properties, sizeof letter);
    message.properties = room;
    message.properties_size = dead_letter_properties_again(room, message.topic, message.topic_size, &letter);
    return message;
}

/* The message is over the consumer's WAL quota, and the policy is to drop it. */
static bool take_dropped(bq_t *bq, consumer_t *consumer, uint64_t lsn, uint64_t id) {
    if (!consumer_quota_drops(bq, consumer, id)) return false;
    consumer->dropped_session_log++;
    consumer->settled++;
    if (lsn > consumer->touched_lsn) consumer->touched_lsn = lsn;
    bq->stats.dropped_session_log++;
    bq->stats.enqueued++;
    return true;
}

static enum take take_back(bq_t *bq, consumer_t *consumer, int syntax, uint64_t lsn, const uint8_t *bytes, uint32_t size,
                           uint8_t flags) {
    publish_record_t record;
    uint64_t tick;
    uint8_t room[DEAD_LETTER_PROPERTIES_BYTES_MAX];
    if (!publish_read(bytes, size, &record)) return TAKE_SKIP;
    const message_t message = message_of(&record, bytes + sizeof record, size - (uint32_t)sizeof record, flags, room);
    if (filter_matches(syntax, consumer->text, consumer->filter_size, message.topic, message.topic_size) != 1) return TAKE_SKIP;
    history_entry_t entry;
    if (consumer_history_settled(consumer, lsn, &entry)) return TAKE_SKIP;
    const uint32_t encoded_size = message_header_size(&message) + message.payload_size;
    if (!expiry_of(bq, lsn, &record, &tick)) {
        consumer_behind_take(consumer, encoded_size, record.timestamp_ms);
        consumer->dropped_ttl++;
        consumer->settled++;
        if (lsn > consumer->touched_lsn) consumer->touched_lsn = lsn;
        bq->stats.dropped_ttl++;
        bq->stats.enqueued++;
        return TAKE_SKIP;
    }
    bool over = BQ_UNLIKELY(lsn < consumer->quota_lsn);
    if (over) {
        if (take_dropped(bq, consumer, lsn, record.id)) {
            consumer_behind_take(consumer, encoded_size, record.timestamp_ms);
            return TAKE_SKIP;
        }
        if (!consumer_quota_has_room(bq, consumer)) return TAKE_FULL;
    } else if (!consumer->members) {
        consumer_swept(bq, consumer, left_ms(bq, lsn, &record));
        return TAKE_FULL;
    } else if (!consumer_has_room(bq, consumer, encoded_size)) {
        return TAKE_FULL;
    }
    uint8_t *out = shared_reserve(bq, encoded_size);
    if (!out) return TAKE_NO_MEMORY;
    message_encode(out, &message);
    buffer_t *buffer = bq->buffers.open;
    delivery_t *delivery = delivery_add(bq, consumer, buffer, buffer->used, encoded_size, lsn, record.id, tick);
    if (!delivery) return TAKE_NO_MEMORY;
    buffer_commit(&bq->buffers, encoded_size);
    delivery_recall(bq, delivery, &entry);
    consumer_behind_take(consumer, encoded_size, record.timestamp_ms);
    if (over) consumer_quota_letter(bq, delivery);
    return TAKE_OK;
}

/* Takes the items of wal_read (see wal/wal.h) from read_at to dispatched_lsn. Later messages will be offered. */
static enum take take_items(bq_t *bq, consumer_t *consumer, const reader_t *reader) {
    int syntax = filter_check(consumer->text, consumer->filter_size);
    while (consumer->read_at < reader->used) {
        const uint8_t *item = reader->buffer + consumer->read_at;
        uint64_t lsn = load_u64(item);
        uint32_t size = load_u32(item + 8);
        if (lsn > bq->dispatched_lsn) break;
        if (item[12] == WAL_PUBLISH && lsn >= consumer->next_lsn) {
            enum take took = take_back(bq, consumer, syntax, lsn, item + 16, size, item[13]);
            if (took == TAKE_FULL || took == TAKE_NO_MEMORY) {
                consumer->next_lsn = lsn;
                return took;
            }
        }
        if (lsn >= consumer->next_lsn) consumer->next_lsn = lsn + 1;
        consumer->read_at += (16 + size + 7) & ~7u;
    }
    if (consumer->read_at < reader->used) { /* dispatched_lsn is within the block */
        consumer->next_lsn = bq->dispatched_lsn + 1;
        return TAKE_OK;
    }
    if (reader->next_lsn > consumer->next_lsn)
        consumer->next_lsn = reader->next_lsn <= bq->dispatched_lsn ? reader->next_lsn : bq->dispatched_lsn + 1;
    block_leave(consumer);
    return TAKE_OK;
}

/* All earlier messages were offered, and all later ones will be. */
static void caught_up(bq_t *bq, consumer_t *consumer) {
    consumer_behind_end(consumer);
    consumer_history_drop(bq, consumer);
    consumer_read_abandon(bq, consumer);
}

/* It needs more messages, and something has left its window since it was full. */
static bool wants(const bq_t *bq, const consumer_t *consumer) {
    return consumer->behind && (consumer->members || consumer->sweep) && consumer->next_lsn <= bq->dispatched_lsn &&
           !consumer->read_link && consumer->window_count <= bq->config.max_in_flight &&
           (!consumer->read_full || consumer->window_count < consumer->read_full);
}

bool consumer_read_on(bq_t *bq, consumer_t *consumer) {
    uint32_t before = consumer->window_count;
    while (wants(bq, consumer)) {
        consumer->read_full = 0;
        if (!goes_on_in_block(consumer) && !block_join(bq, consumer)) {
            line_join(bq, consumer);
            break;
        }
        enum take took = take_items(bq, consumer, consumer->reader);
        if (took == TAKE_FULL && !consumer->members && !consumer->sweep) {
            block_leave(consumer);
        } else if (took == TAKE_FULL) {
            consumer->read_full = consumer->window_count;
        } else if (took == TAKE_NO_MEMORY && !consumer->window_count) {
            read_failed(bq, consumer); /* no acknowledgement will come to start another read */
        } else if (took == TAKE_NO_MEMORY) {
            consumer->read_full = consumer->window_count;
        } else {
            read_succeeded(bq, consumer);
        }
    }
    if (consumer->behind && consumer->next_lsn > bq->dispatched_lsn && consumer->next_lsn > bq->found_lsn)
        caught_up(bq, consumer);
    consumer_floor_update(bq, consumer);
    return consumer->window_count > before;
}

/* ---- results of the read thread ---------------------------------------------------------------------------------- */

void consumer_read_finished(bq_t *bq, const wal_read_t *read) {
    reader_t *reader = &bq->consumers.readers[read->slot];
    consumer_t *consumer = reader->asker;
    reader->reading = false;
    reader->asker = NULL;
    bq->consumers.readers_changed = true;
    if (read->result > 0) {
        reader->loaded = true;
        reader->used = read->used;
        reader->next_lsn = read->next_lsn;
        reader->since_ms = bq->now_ms;
    }
    if (!consumer) { /* it has given up meanwhile */
        buffers_trim(bq);
        return;
    }
    if (read->result > 0) return; /* it is in line and will find the block */
    if (read->result == BQ_E_TOO_LARGE && read->used > reader->capacity) {
        consumer->read_bytes = read->used;
    } else if (read->result == WAL_E_GONE && read->next_lsn > consumer->next_lsn) {
        bq->stats.lost_lsns += read->next_lsn - consumer->next_lsn; /* damaged on disk: counted here and logged */
        consumer->next_lsn = read->next_lsn;
        line_leave(bq, consumer);
        consumer_pump_later(bq, consumer);
    } else {
        read_failed(bq, consumer);
    }
}
