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
#include "broker/broker.h"
#include "broker/session.h"

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

static void buffer_release(broker_t *broker, reader_t *reader) {
    block_forget(reader);
    pool_free(&broker->pool, reader->buffer, reader->capacity);
    reader->buffer = NULL;
    reader->capacity = 0;
}

/* If no consumer is in line, unused readers need no memory. */
static void buffers_trim(broker_t *broker) {
    consumers_t *consumers = &broker->consumers;
    for (reader_t *reader = consumers->readers; reader < consumers->readers + CONSUMER_SLOTS; reader++)
        if (reader->buffer && !reader->reading && !reader->users && !consumers->read_first) buffer_release(broker, reader);
}

static bool in_budget(const broker_t *broker, uint64_t more) {
    return !broker->config.memory_bytes ||
           broker->pool.used_bytes - broker->pool.free_bytes + more <= broker->config.memory_bytes;
}

/* Whether this reader may have a buffer of `capacity` bytes. Over the budget, blocks that are unused or held long enough are
 * freed first; a single reader is always allowed, so that messages in memory can be delivered. */
static bool buffer_allowed(broker_t *broker, const reader_t *reader, uint32_t capacity) {
    uint32_t more = capacity > reader->capacity ? capacity - reader->capacity : 0;
    bool others = false;
    if (in_budget(broker, more)) return true;
    for (reader_t *other = broker->consumers.readers; other < broker->consumers.readers + CONSUMER_SLOTS; other++) {
        if (other == reader || !other->buffer) continue;
        if (!other->reading && (!other->users || broker->now_ms >= other->since_ms + READ_HOLD_MS))
            buffer_release(broker, other);
        else
            others = true;
    }
    return !others || in_budget(broker, more);
}

static bool buffer_fit(broker_t *broker, reader_t *reader, uint32_t capacity) {
    if (reader->buffer && reader->capacity == capacity) return true;
    if (reader->buffer) buffer_release(broker, reader);
    reader->buffer = pool_alloc(&broker->pool, capacity);
    reader->capacity = reader->buffer ? capacity : 0;
    return reader->buffer != NULL;
}

/* If a loaded block has the consumer's next record, the consumer continues there. */
static bool block_join(broker_t *broker, consumer_t *consumer) {
    for (reader_t *reader = broker->consumers.readers; reader < broker->consumers.readers + CONSUMER_SLOTS; reader++) {
        if (!reader->loaded || consumer->next_lsn < reader->first_lsn || consumer->next_lsn >= reader->next_lsn) continue;
        consumer->reader = reader;
        consumer->read_generation = reader->generation;
        consumer->read_at = 0;
        reader->users++;
        return true;
    }
    return false;
}

static bool block_comes(const broker_t *broker, uint64_t lsn) {
    for (const reader_t *reader = broker->consumers.readers; reader < broker->consumers.readers + CONSUMER_SLOTS; reader++)
        if (reader->reading && reader->first_lsn == lsn) return true;
    return false;
}

/* An unused reader, or the one whose block has been held longest, if that is long enough. Otherwise NULL, and read_due_ms is the
 * time when one will be free. */
static reader_t *reader_free(broker_t *broker) {
    consumers_t *consumers = &broker->consumers;
    reader_t *oldest = NULL;
    for (reader_t *reader = consumers->readers; reader < consumers->readers + CONSUMER_SLOTS; reader++) {
        if (reader->reading) continue;
        if (!reader->users) return reader;
        if (!oldest || reader->since_ms < oldest->since_ms) oldest = reader;
    }
    if (!oldest || broker->now_ms >= oldest->since_ms + READ_HOLD_MS) return oldest;
    if (oldest->since_ms + READ_HOLD_MS < consumers->read_due_ms) consumers->read_due_ms = oldest->since_ms + READ_HOLD_MS;
    return NULL;
}

/* ---- waiting in line --------------------------------------------------------------------------------------------- */

static void line_leave(broker_t *broker, consumer_t *consumer) {
    if (!consumer->read_link) return;
    *consumer->read_link = consumer->read_next;
    if (consumer->read_next)
        consumer->read_next->read_link = consumer->read_link;
    else
        broker->consumers.read_last = consumer->read_link;
    consumer->read_link = NULL;
}

static void line_join(broker_t *broker, consumer_t *consumer) {
    consumers_t *consumers = &broker->consumers;
    if (consumer->read_link) return;
    if (!consumers->read_first) consumers->read_last = &consumers->read_first;
    consumer->read_next = NULL;
    consumer->read_link = consumers->read_last;
    *consumers->read_last = consumer;
    consumers->read_last = &consumer->read_next;
    consumers->readers_changed = true;
}

/* Delays the next read: the last one failed, or there is no memory. */
static void read_later(broker_t *broker, consumer_t *consumer) {
    uint32_t doublings = consumer->read_failures < READ_AGAIN_DOUBLINGS_MAX ? consumer->read_failures : READ_AGAIN_DOUBLINGS_MAX;
    consumer->read_again_ms = broker->now_ms + ((uint64_t)READ_AGAIN_MS << doublings);
    if (consumer->read_again_ms < broker->consumers.read_due_ms) broker->consumers.read_due_ms = consumer->read_again_ms;
}

static void read_failed(broker_t *broker, consumer_t *consumer) {
    broker->stats.log_read_failures++;
    if (!consumer->read_failures) broker->consumers.read_failing++;
    read_later(broker, consumer);
    if (consumer->read_failures < UINT8_MAX) consumer->read_failures++;
    line_join(broker, consumer);
}

static void read_succeeded(broker_t *broker, consumer_t *consumer) {
    if (consumer->read_failures) broker->consumers.read_failing--;
    consumer->read_failures = 0;
    consumer->read_again_ms = 0;
    consumer->read_bytes = 0;
}

static void read_start(broker_t *broker, reader_t *reader, consumer_t *consumer) {
    uint32_t slot = (uint32_t)(reader - broker->consumers.readers);
    uint32_t capacity = consumer->read_bytes > READ_BLOCK_BYTES ? consumer->read_bytes : READ_BLOCK_BYTES;
    block_forget(reader);
    if (!buffer_allowed(broker, reader, capacity)) {
        read_later(broker, consumer); /* until other blocks are freed */
        return;
    }
    if (!buffer_fit(broker, reader, capacity) ||
        wal_read_start(broker->wal, slot, consumer->next_lsn, reader->buffer, capacity) < 0) {
        read_failed(broker, consumer);
        return;
    }
    reader->first_lsn = consumer->next_lsn;
    reader->asker = consumer;
    reader->reading = true;
}

/* Serves one consumer in line: it joins a block and leaves the line, or a read starts for it. */
static void line_serve(broker_t *broker, consumer_t *consumer) {
    if (broker->now_ms < consumer->read_again_ms) {
        if (consumer->read_again_ms < broker->consumers.read_due_ms) broker->consumers.read_due_ms = consumer->read_again_ms;
        return;
    }
    if (block_join(broker, consumer)) {
        line_leave(broker, consumer);
        consumer_pump_later(broker, consumer);
        return;
    }
    reader_t *reader = block_comes(broker, consumer->next_lsn) ? NULL : reader_free(broker);
    if (reader) read_start(broker, reader, consumer);
}

/* When memory is short, frees all blocks held long enough, except one. */
static void blocks_squeeze(broker_t *broker) {
    reader_t *kept = NULL;
    for (reader_t *reader = broker->consumers.readers; reader < broker->consumers.readers + CONSUMER_SLOTS; reader++) {
        if (!reader->buffer || reader->reading || broker->now_ms < reader->since_ms + READ_HOLD_MS) continue;
        if (kept)
            buffer_release(broker, reader);
        else
            kept = reader;
    }
}

void consumer_reads_turn(broker_t *broker) {
    consumers_t *consumers = &broker->consumers;
    if (budget_over(broker)) blocks_squeeze(broker);
    if (!consumers->read_first || (!consumers->readers_changed && broker->now_ms < consumers->read_due_ms)) return;
    consumers->readers_changed = false;
    consumers->read_due_ms = UINT64_MAX;
    consumer_t *next = consumers->read_first;
    for (uint32_t count = 0; next && count < READ_WAITERS_MAX; count++) {
        consumer_t *consumer = next;
        next = consumer->read_next;
        line_serve(broker, consumer);
    }
    if (next && consumers->read_due_ms > broker->now_ms + READ_HOLD_MS) consumers->read_due_ms = broker->now_ms + READ_HOLD_MS;
}

uint64_t consumer_reads_due_ms(const broker_t *broker) {
    if (!broker->consumers.read_first) return UINT64_MAX;
    return broker->consumers.readers_changed ? broker->now_ms : broker->consumers.read_due_ms;
}

void consumer_read_abandon(broker_t *broker, consumer_t *consumer) {
    for (reader_t *reader = broker->consumers.readers; reader < broker->consumers.readers + CONSUMER_SLOTS; reader++)
        if (reader->asker == consumer) reader->asker = NULL;
    if (consumer->read_failures) broker->consumers.read_failing--;
    consumer->read_failures = 0;
    consumer->read_full = 0;
    consumer->sweep = false;
    line_leave(broker, consumer);
    block_leave(consumer);
    broker->consumers.readers_changed = true;
    buffers_trim(broker);
}

/* ---- taking messages from a block -------------------------------------------------------------------------------- */

/* The expiry tick. False: expired. */
static bool expiry_of(const broker_t *broker, uint64_t lsn, const publish_record_t *record, uint64_t *tick) {
    *tick = 0;
    if (!record->ttl_ms) return true;
    uint64_t elapsed = timeline_age_ms(broker, lsn, record);
    if (elapsed >= record->ttl_ms) return false;
    *tick = publish_expiry_tick(broker, broker->now_ms, record->ttl_ms - elapsed);
    return true;
}

static uint64_t left_ms(const broker_t *broker, uint64_t lsn, const publish_record_t *record) {
    return record->ttl_ms ? record->ttl_ms - timeline_age_ms(broker, lsn, record) : 0;
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
static bool take_dropped(broker_t *broker, consumer_t *consumer, uint64_t lsn, uint64_t id) {
    if (!wal_quota_drops(broker, consumer, id)) return false;
    consumer->dropped_session_log++;
    consumer->settled++;
    if (lsn > consumer->touched_lsn) consumer->touched_lsn = lsn;
    broker->stats.dropped_session_log++;
    broker->stats.enqueued++;
    return true;
}

static enum take take_back(broker_t *broker, consumer_t *consumer, uint64_t lsn, const uint8_t *bytes, uint32_t size,
                           uint8_t flags) {
    publish_record_t record;
    uint64_t tick;
    uint8_t room[DEAD_LETTER_PROPERTIES_BYTES_MAX];
    if (!publish_read(bytes, size, &record)) return TAKE_SKIP;
    const message_t message = message_of(&record, bytes + sizeof record, size - (uint32_t)sizeof record, flags, room);
    if (!consumer_matches(consumer, lsn, message.topic, message.topic_size)) return TAKE_SKIP;
    history_entry_t entry;
    if (consumer_history_settled(consumer, lsn, &entry)) return TAKE_SKIP;
    const uint32_t encoded_size = message_header_size(&message) + message.payload_size;
    if (!expiry_of(broker, lsn, &record, &tick)) {
        consumer_behind_take(consumer, encoded_size, record.timestamp_ms);
        consumer->dropped_ttl++;
        consumer->settled++;
        if (lsn > consumer->touched_lsn) consumer->touched_lsn = lsn;
        broker->stats.dropped_ttl++;
        broker->stats.enqueued++;
        return TAKE_SKIP;
    }
    bool over = BQ_UNLIKELY(lsn < consumer->quota_lsn);
    if (over) {
        if (take_dropped(broker, consumer, lsn, record.id)) {
            consumer_behind_take(consumer, encoded_size, record.timestamp_ms);
            return TAKE_SKIP;
        }
        if (!wal_quota_has_room(broker, consumer)) return TAKE_FULL;
    } else if (!consumer->members) {
        consumer_swept(broker, consumer, left_ms(broker, lsn, &record));
        return TAKE_FULL;
    } else if (!consumer_has_room(broker, consumer, encoded_size)) {
        return TAKE_FULL;
    }
    uint8_t *out = shared_reserve(broker, encoded_size);
    if (!out) return TAKE_NO_MEMORY;
    message_encode(out, &message);
    buffer_t *buffer = broker->buffers.open;
    delivery_t *delivery = delivery_add(broker, consumer, buffer, buffer->used, encoded_size, lsn, record.id, tick);
    if (!delivery) return TAKE_NO_MEMORY;
    buffer_commit(&broker->buffers, encoded_size);
    delivery_recall(broker, delivery, &entry);
    consumer_behind_take(consumer, encoded_size, record.timestamp_ms);
    if (over) wal_quota_letter(broker, delivery);
    return TAKE_OK;
}

/* Takes the items of wal_read (see wal/wal.h) from read_at to dispatched_lsn. Later messages will be offered. */
static enum take take_items(broker_t *broker, consumer_t *consumer, const reader_t *reader) {
    while (consumer->read_at < reader->used) {
        const uint8_t *item = reader->buffer + consumer->read_at;
        uint64_t lsn = load_u64(item);
        uint32_t size = load_u32(item + 8);
        if (lsn > broker->dispatched_lsn) break;
        if (item[12] == WAL_PUBLISH && lsn >= consumer->next_lsn) {
            enum take took = take_back(broker, consumer, lsn, item + 16, size, item[13]);
            if (took == TAKE_FULL || took == TAKE_NO_MEMORY) {
                consumer->next_lsn = lsn;
                return took;
            }
        }
        if (lsn >= consumer->next_lsn) consumer->next_lsn = lsn + 1;
        consumer->read_at += (16 + size + 7) & ~7u;
    }
    if (consumer->read_at < reader->used) { /* dispatched_lsn is within the block */
        consumer->next_lsn = broker->dispatched_lsn + 1;
        return TAKE_OK;
    }
    if (reader->next_lsn > consumer->next_lsn)
        consumer->next_lsn = reader->next_lsn <= broker->dispatched_lsn ? reader->next_lsn : broker->dispatched_lsn + 1;
    block_leave(consumer);
    return TAKE_OK;
}

/* All earlier messages were offered, and all later ones will be. */
static void caught_up(broker_t *broker, consumer_t *consumer) {
    consumer_behind_end(consumer);
    consumer_history_drop(broker, consumer);
    consumer_read_abandon(broker, consumer);
}

/* It needs more messages, and something has left its window since it was full. */
static bool wants(const broker_t *broker, const consumer_t *consumer) {
    return consumer->behind && (consumer->members || consumer->sweep) && consumer->next_lsn <= broker->dispatched_lsn &&
           !consumer->read_link && consumer->window_count <= broker->config.max_in_flight &&
           (!consumer->read_full || consumer->window_count < consumer->read_full);
}

bool consumer_read_on(broker_t *broker, consumer_t *consumer) {
    uint32_t before = consumer->window_count;
    while (wants(broker, consumer)) {
        consumer->read_full = 0;
        if (!goes_on_in_block(consumer) && !block_join(broker, consumer)) {
            line_join(broker, consumer);
            break;
        }
        enum take took = take_items(broker, consumer, consumer->reader);
        if (took == TAKE_FULL && !consumer->members && !consumer->sweep) {
            block_leave(consumer);
        } else if (took == TAKE_FULL) {
            consumer->read_full = consumer->window_count;
        } else if (took == TAKE_NO_MEMORY && !consumer->window_count) {
            read_failed(broker, consumer); /* no acknowledgement will come to start another read */
        } else if (took == TAKE_NO_MEMORY) {
            consumer->read_full = consumer->window_count;
        } else {
            read_succeeded(broker, consumer);
        }
    }
    if (consumer->behind && consumer->next_lsn > broker->dispatched_lsn && consumer->next_lsn > broker->found_lsn)
        caught_up(broker, consumer);
    consumer_floor_update(broker, consumer);
    return consumer->window_count > before;
}

/* ---- results of the read thread ---------------------------------------------------------------------------------- */

void consumer_read_finished(broker_t *broker, const wal_read_t *read) {
    reader_t *reader = &broker->consumers.readers[read->slot];
    consumer_t *consumer = reader->asker;
    reader->reading = false;
    reader->asker = NULL;
    broker->consumers.readers_changed = true;
    if (read->result > 0) {
        reader->loaded = true;
        reader->used = read->used;
        reader->next_lsn = read->next_lsn;
        reader->since_ms = broker->now_ms;
    }
    if (!consumer) { /* it has given up meanwhile */
        buffers_trim(broker);
        return;
    }
    if (read->result > 0) return; /* it is in line and will find the block */
    if (read->result == BQ_E_TOO_LARGE && read->used > reader->capacity) {
        consumer->read_bytes = read->used;
    } else if (read->result == WAL_E_GONE && read->next_lsn > consumer->next_lsn) {
        broker->stats.lost_lsns += read->next_lsn - consumer->next_lsn; /* damaged on disk: counted here and logged */
        consumer->next_lsn = read->next_lsn;
        line_leave(broker, consumer);
        consumer_pump_later(broker, consumer);
    } else {
        read_failed(broker, consumer);
    }
}
