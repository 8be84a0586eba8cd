/* broker/consumer_store.c: the records of consumers in the WAL, their recovery at a start, and the contents of checkpoints.
 *
 * Invariant: the restored state depends only on the checkpoint and the records after it. Invalid records do not change it.
 */
#include "broker/consumer_internal.h"
#include "broker/commit.h"
#include "broker/broker.h"
#include "broker/session.h"

#include <stdlib.h>

/* Head of a WAL_CONSUMER record: one client_id that keeps a durable subscription or group. Filter, client_id and group follow,
 * and with form 1 a consumer_record_more. Checkpoints store the client_ids of groups in a section. */
typedef struct consumer_record {
    uint64_t id;
    uint64_t floor_lsn; /* in checkpoints, and if it does not begin at its own record (`floored`) */
    uint32_t filter_size, client_id_size, group_size;
    uint8_t qos, grouped;
    uint8_t form; /* 0: from a version that stored only the client_id that created a group */
    uint8_t floored;
} consumer_record_t;

typedef struct consumer_record_more {
    uint64_t registration_id; /* without it: the consumer's id */
} consumer_record_more_t;

static consumer_record_t record_of(const consumer_t *consumer, uint64_t floor_lsn) {
    return (consumer_record_t){.id = consumer->id,
                               .floor_lsn = floor_lsn,
                               .filter_size = consumer->filter_size,
                               .client_id_size = consumer->client_id_size,
                               .group_size = consumer->group_size,
                               .qos = consumer->qos,
                               .grouped = consumer->grouped,
                               .form = 1,
                               .floored = floor_lsn > 0};
}

int64_t consumer_record_append(broker_t *broker, const consumer_t *consumer, const registration_t *registration,
                               uint64_t consumer_id, uint64_t floor_lsn) {
    consumer_record_t record = record_of(consumer, floor_lsn == CONSUMER_NEW_FLOOR ? 0 : floor_lsn);
    consumer_record_more_t more = {.registration_id = registration->id};
    record.id = consumer_id;
    record.client_id_size = registration->size;
    record.qos = 1;
    record.floored = floor_lsn != CONSUMER_NEW_FLOOR;
    wal_part_t parts[] = {{&record, sizeof record},
                          {consumer->text, consumer->filter_size},
                          {registration->client_id, registration->size},
                          {consumer_group(consumer), consumer->group_size},
                          {&more, sizeof more}};
    return wal_append(broker->wal, WAL_CONSUMER, 0, parts, 5, WAL_URGENT);
}

/* Head of a WAL_CONSUMER_LEAVE record: an UNSUB. Filter, client_id and group follow. */
typedef struct leave_record {
    uint64_t id_max; /* newer subscriptions are not ended */
    uint32_t filter_size, client_id_size, group_size, reserved;
} leave_record_t;

int64_t consumer_leave_append(broker_t *broker, const consumer_request_t *request) {
    leave_record_t record = {.id_max = broker->consumers.next_id,
                             .filter_size = request->filter_size,
                             .client_id_size = request->client_id_size,
                             .group_size = request->group_size};
    wal_part_t parts[] = {{&record, sizeof record},
                          {request->filter, request->filter_size},
                          {request->client_id, request->client_id_size},
                          {request->group, request->group_size}};
    return wal_append(broker->wal, WAL_CONSUMER_LEAVE, 0, parts, 4, WAL_URGENT);
}

/* ---- recovery and checkpoints ------------------------------------------------------------------------------------ */

static uint64_t texts_size(const consumer_record_t *record) {
    return (uint64_t)record->filter_size + record->client_id_size + record->group_size;
}

/* Reads the consumer at the start of `bytes`. False: incomplete or invalid. See publish_read. */
static bool consumer_read(const uint8_t *bytes, uint64_t size, consumer_record_t *record) {
    if (size < sizeof *record) return false;
    memcpy(record, bytes, sizeof *record);
    if (!record->id) return false; /* a core never assigns id 0, and no record could refer to it */
    return texts_size(record) <= size - sizeof *record && filter_check(bytes + sizeof *record, record->filter_size) >= 0;
}

static consumer_request_t request_of(uint32_t filter_size, uint32_t client_id_size, uint32_t group_size, const uint8_t *text) {
    return (consumer_request_t){.filter = text,
                                .filter_size = filter_size,
                                .client_id = text + filter_size,
                                .client_id_size = client_id_size,
                                .group = text + filter_size + client_id_size,
                                .group_size = group_size,
                                .qos = 1,
                                .durable = true};
}

/* Adds a registration, unless it exists. False: no memory. */
static bool registration_load(broker_t *broker, consumer_t *consumer, const uint8_t *client_id, uint32_t size, uint64_t id,
                              uint64_t lsn) {
    for (const registration_t *at = consumer->registrations; at; at = at->next)
        if (at->id == id) return true;
    if (consumer->registration_count >= (consumer->grouped ? GROUP_REGISTRATIONS_MAX : 1))
        return true; /* not written by a core */
    registration_t *registration = registration_new(broker, client_id, size, id);
    if (!registration) return false;
    registration->record_lsn = lsn;
    registration_enter(broker, consumer, registration);
    if (id > broker->consumers.next_id) broker->consumers.next_id = id;
    return true;
}

/* Adds a consumer from a record or a checkpoint. NULL: no memory. */
static consumer_t *consumer_load(broker_t *broker, const consumer_record_t *record, const consumer_request_t *request,
                                 uint64_t floor_lsn) {
    consumer_t *consumer = consumer_by_id(broker, record->id);
    if (consumer) return consumer;
    consumer = consumer_new(broker, request, 0);
    if (!consumer) return NULL;
    consumer_id_assign(broker, consumer, record->id);
    consumer->durable = true;
    consumer->filter.born_lsn = consumer->floor_lsn = consumer->floor_logged = floor_lsn;
    if (record->id > broker->consumers.next_id) broker->consumers.next_id = record->id;
    return consumer;
}

/* Loads a WAL_CONSUMER record. False: no memory. */
static bool record_load(broker_t *broker, const wal_record_t *entry) {
    consumer_record_t record;
    if (!consumer_read(entry->bytes, entry->size, &record)) return true;
    consumer_request_t request =
        request_of(record.filter_size, record.client_id_size, record.group_size, entry->bytes + sizeof record);
    uint64_t behind_texts = sizeof record + texts_size(&record);
    consumer_record_more_t more = {.registration_id = record.id};
    if (record.form && entry->size - behind_texts >= sizeof more) memcpy(&more, entry->bytes + behind_texts, sizeof more);
    consumer_t *consumer = consumer_load(broker, &record, &request, record.floored ? record.floor_lsn : entry->lsn);
    return consumer &&
           registration_load(broker, consumer, request.client_id, request.client_id_size, more.registration_id, entry->lsn);
}

/* Loads a WAL_CONSUMER_LEAVE record. */
static void leave_load(broker_t *broker, const wal_record_t *entry) {
    leave_record_t leave;
    if (entry->size < sizeof leave) return;
    memcpy(&leave, entry->bytes, sizeof leave);
    uint64_t texts = (uint64_t)leave.filter_size + leave.client_id_size + leave.group_size;
    if (texts > entry->size - sizeof leave) return;
    consumer_request_t request =
        request_of(leave.filter_size, leave.client_id_size, leave.group_size, entry->bytes + sizeof leave);
    consumer_registrations_end(broker, &request, leave.id_max, true);
}

typedef struct checkpoint_head {
    uint32_t version, count;
    uint64_t next_message_id, ids_reserved, next_consumer_id;
} checkpoint_head_t;

#define CHECKPOINT_VERSION 1u

/* After the consumers: [section_head_t][bytes, padded to 8] ... A reader skips unknown kinds; versions before sections skip all
 * of them. */
enum section_kind {
    SECTION_TIMELINE = 1,
    SECTION_REGISTRATIONS = 2,
    SECTION_HISTORY = 3,
    SECTION_SEEN = 4,
    SECTION_LETTERS = 5,
    SECTION_SESSIONS = 6 /* before those that refer to its consumers */
};

typedef struct section_head {
    uint32_t kind, size;
} section_head_t;

static uint64_t section_bytes(uint32_t size) { return sizeof(section_head_t) + (((uint64_t)size + 7) & ~7ull); }

/* The history section: for each consumer with a history, this record and its entries, padded to 8 bytes. */
typedef struct history_record {
    uint64_t consumer_id, base_lsn, end_lsn;
    uint32_t count, tells;
} history_record_t;

static uint64_t history_record_bytes(uint32_t count) {
    return sizeof(history_record_t) + count * (uint64_t)sizeof(history_entry_t);
}

/* Without its history, a consumer gets all messages again. So a history that is invalid or does not fit memory is skipped. */
static void histories_load(broker_t *broker, const uint8_t *bytes, uint64_t size) {
    history_record_t record;
    while (size >= sizeof record) {
        memcpy(&record, bytes, sizeof record);
        if (history_record_bytes(record.count) > size) return;
        consumer_t *consumer = consumer_by_id(broker, record.consumer_id);
        history_t *history = consumer && !consumer->history ? consumer_history_new(broker, record.count) : NULL;
        if (history) {
            *history =
                (history_t){.base_lsn = record.base_lsn, .end_lsn = record.end_lsn, .count = record.count, .tells = record.tells};
            if (record.count) memcpy(history->entries, bytes + sizeof record, record.count * sizeof(history_entry_t));
            consumer->history = history;
        }
        bytes += history_record_bytes(record.count);
        size -= history_record_bytes(record.count);
    }
}

/* Deliveries in flight with one hand-over each are not stored in regular checkpoints: after a start they are sent with the
 * redelivered flag anyway. */
static bool history_is_kept(const broker_t *broker, const consumer_t *consumer) {
    return consumer->durable &&
           (consumer_history_tells(consumer) || (broker->consumers.last_checkpoint && consumer_history_count(consumer, true)));
}

/* There is room for all histories that history_is_kept selects. The rest stays zero. */
static void histories_put(uint8_t *to, broker_t *broker) {
    for (const consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next) {
        if (!history_is_kept(broker, consumer)) continue;
        uint32_t count = consumer_history_count(consumer, true);
        history_t *history = consumer_history_new(broker, count);
        if (history && consumer_history_fill(consumer, history, count, true)) {
            history_record_t record = {consumer->id, history->base_lsn, history->end_lsn, count, history->tells};
            memcpy(to, &record, sizeof record);
            if (count) memcpy(to + sizeof record, history->entries, count * sizeof(history_entry_t));
            to += history_record_bytes(count);
        }
        if (history) pool_free(&broker->pool, history, sizeof *history + count * sizeof(history_entry_t));
    }
}

/* The registration section: for each client_id of a group, this record and the client_id, padded to 8 bytes. */
typedef struct registration_record {
    uint64_t consumer_id, id;
    uint32_t size, reserved;
} registration_record_t;

static uint64_t registration_bytes(uint32_t size) { return sizeof(registration_record_t) + (((uint64_t)size + 7) & ~7ull); }

static bool registrations_load(broker_t *broker, const uint8_t *bytes, uint64_t size) {
    registration_record_t record;
    while (size >= sizeof record) {
        memcpy(&record, bytes, sizeof record);
        if (registration_bytes(record.size) > size) return true;
        consumer_t *consumer = consumer_by_id(broker, record.consumer_id);
        if (consumer && consumer->grouped &&
            !registration_load(broker, consumer, bytes + sizeof record, record.size, record.id, 0))
            return false;
        bytes += registration_bytes(record.size);
        size -= registration_bytes(record.size);
    }
    return true;
}

static void registrations_put(uint8_t *out, const broker_t *broker) {
    for (const consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next) {
        for (const registration_t *registration = consumer->grouped ? consumer->registrations : NULL; registration;
             registration = registration->next) {
            registration_record_t record = {.consumer_id = consumer->id, .id = registration->id, .size = registration->size};
            memcpy(out, &record, sizeof record);
            if (registration->size) memcpy(out + sizeof record, registration->client_id, registration->size);
            out += registration_bytes(registration->size);
        }
    }
}

/* The floor as the WAL has to keep it. Older messages from before the consumer was durable are only in memory. */
static uint64_t kept_floor(const consumer_t *consumer) {
    return consumer->floor_lsn + 1 < consumer->kept_lsn ? consumer->kept_lsn - 1 : consumer->floor_lsn;
}

static void sessions_put(uint8_t *out, const broker_t *broker) {
    out = session_section_begin(out, broker);
    for (const consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next)
        if (consumer->durable && consumer->session) out = session_section_write(out, consumer, kept_floor(consumer));
}

static void seen_put(uint8_t *out, const broker_t *broker) {
    for (const consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next) {
        if (!consumer->durable) continue;
        seen_record_t record;
        consumer_seen_write(broker, consumer, &record);
        memcpy(out, &record, sizeof record);
        out += sizeof record;
    }
}

static bool sections_load(broker_t *broker, const uint8_t *bytes, uint64_t size) {
    section_head_t head;
    while (size >= sizeof head) {
        memcpy(&head, bytes, sizeof head);
        if (head.size > size - sizeof head) return true;
        if (head.kind == SECTION_TIMELINE) timeline_load(broker, bytes + sizeof head, head.size);
        if (head.kind == SECTION_HISTORY) histories_load(broker, bytes + sizeof head, head.size);
        if (head.kind == SECTION_SEEN) consumer_seen_load(broker, bytes + sizeof head, head.size);
        if (head.kind == SECTION_LETTERS) wal_quota_section_load(broker, bytes + sizeof head, head.size);
        if (head.kind == SECTION_SESSIONS && !session_section_load(broker, bytes + sizeof head, head.size)) return false;
        if (head.kind == SECTION_REGISTRATIONS && !registrations_load(broker, bytes + sizeof head, head.size)) return false;
        if (section_bytes(head.size) >= size) return true;
        bytes += section_bytes(head.size);
        size -= section_bytes(head.size);
    }
    return true;
}

/* Returns where to write the section's bytes. */
static uint8_t *section_begin(uint8_t *out, uint64_t *at, uint32_t kind, uint32_t size) {
    section_head_t head = {.kind = kind, .size = size};
    uint8_t *bytes = out + *at + sizeof head;
    memset(out + *at, 0, section_bytes(size));
    memcpy(out + *at, &head, sizeof head);
    *at += section_bytes(size);
    return bytes;
}

static bool checkpoint_load(broker_t *broker, const wal_record_t *checkpoint) {
    checkpoint_head_t head;
    if (checkpoint->size < sizeof head) return true; /* not from any version: use the records only */
    memcpy(&head, checkpoint->bytes, sizeof head);
    if (head.version != CHECKPOINT_VERSION) return false;
    if (head.next_message_id > broker->next_message_id)
        broker->next_message_id = head.next_message_id; /* a start without the WAL may have used higher ids */
    broker->ids_reserved = head.ids_reserved;
    broker->consumers.next_id = head.next_consumer_id;
    uint64_t at = sizeof head;
    for (uint32_t i = 0; i < head.count; i++) {
        consumer_record_t record;
        if (!consumer_read(checkpoint->bytes + at, checkpoint->size - at, &record)) return false;
        at += sizeof record;
        consumer_request_t request =
            request_of(record.filter_size, record.client_id_size, record.group_size, checkpoint->bytes + at);
        consumer_t *consumer = consumer_load(broker, &record, &request, record.floor_lsn);
        if (!consumer) return false;
        bool in_section = record.form && consumer->grouped;
        if (!in_section && !registration_load(broker, consumer, request.client_id, request.client_id_size, record.id, 0))
            return false;
        at += texts_size(&record);
    }
    return sections_load(broker, checkpoint->bytes + at, checkpoint->size - at);
}

/* Reads a record of numbers; false: too short. */
static bool numbers_read(const wal_record_t *entry, uint64_t *numbers, uint32_t count) {
    if (entry->size < count * sizeof *numbers) return false;
    memcpy(numbers, entry->bytes, count * sizeof *numbers);
    return true;
}

/* Counting the waiting messages of each consumer would make the start too slow. Any of the messages after the checkpoint may be
 * for any consumer. */
static void replayed(broker_t *broker, const publish_record_t *publish, uint32_t size) {
    consumers_t *consumers = &broker->consumers;
    if (!consumers->replayed_messages++) consumers->replayed_stamp_ms = publish->timestamp_ms;
    consumers->replayed_bytes += size;
}

/* Sets the upper limit of waiting messages for a consumer found behind. */
static void lag_restore(const broker_t *broker, consumer_t *consumer) {
    const consumers_t *consumers = &broker->consumers;
    uint64_t most = broker->found_lsn - consumer->floor_lsn;
    consumer->behind_messages += consumers->replayed_messages;
    consumer->behind_bytes += consumers->replayed_bytes;
    consumer->behind_unsure |= consumers->replayed_messages > 0;
    if (consumer->behind_messages > most) consumer->behind_messages = most;
    if (!consumer->behind_stamp_ms) consumer->behind_stamp_ms = consumers->replayed_stamp_ms;
}

/* Skips records that do not match their type, and those of later versions: the other records are still valid. */
bool consumer_restore(void *context, const wal_record_t *entry) {
    broker_t *broker = context;
    publish_record_t publish;
    uint64_t numbers[2];
    consumer_t *consumer;
    switch (entry->type) {
    case 0: return checkpoint_load(broker, entry);
    case WAL_PUBLISH:
        if (!publish_read(entry->bytes, entry->size, &publish)) return true;
        if (publish.id >= broker->next_message_id) broker->next_message_id = publish.id + 1;
        timeline_restore_publish(broker, entry->lsn, &publish);
        replayed(broker, &publish, entry->size);
        if (entry->flags & PUBLISH_DEAD_LETTER && entry->lsn > broker->consumers.quota_letters.newest_lsn)
            wal_quota_letter_logged(broker, entry->lsn, entry->size);
        return true;
    case WAL_TIME: timeline_restore(broker, entry->lsn, entry->bytes, entry->size); return true;
    case WAL_IDS:
        if (entry->size == sizeof *numbers && numbers_read(entry, numbers, 1)) broker->ids_reserved = numbers[0];
        return true;
    case WAL_CONSUMER: return record_load(broker, entry);
    case WAL_CONSUMER_LEAVE: leave_load(broker, entry); return true;
    case WAL_SESSION: return session_restore(broker, entry);
    case WAL_CONSUMER_END:
        if (numbers_read(entry, numbers, 1) && (consumer = consumer_by_id(broker, numbers[0]))) consumer_free(broker, consumer);
        return true;
    case WAL_ACK:
        if (numbers_read(entry, numbers, 2) && (consumer = consumer_by_id(broker, numbers[0])) &&
            numbers[1] > consumer->floor_lsn)
            consumer->floor_lsn = consumer->floor_logged = numbers[1];
        return true;
    default: return true; /* from a later minor version */
    }
}

/* Every consumer reads from its floor. Floors are appended lazily, so the messages sent above the floor are unknown: all of them
 * get the redelivered flag. */
void consumer_restored(broker_t *broker) {
    for (consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next) {
        if (consumer->floor_lsn >= broker->found_lsn || !consumer->qos) {
            consumer_behind_end(consumer);
            continue;
        }
        lag_restore(broker, consumer);
        consumer->behind = true;
        consumer->next_lsn = consumer->floor_lsn + 1;
        consumer->doubtful_lsn = broker->found_lsn;
    }
}

void consumers_go_on(broker_t *broker) {
    for (consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next)
        if (consumer->behind) consumer_pump_later(broker, consumer);
}

typedef struct durable_sums {
    uint32_t count, seen_count; /* without sessions, and with them */
    uint64_t sessions_bytes;
    uint64_t bytes, registrations_bytes, histories_bytes; /* sizes in a checkpoint */
    uint64_t keep_from;                                   /* first LSN that a consumer still needs */
} durable_sums_t;

static durable_sums_t durable_sums(broker_t *broker) {
    durable_sums_t sums = {.bytes = sizeof(checkpoint_head_t), .keep_from = broker->dispatched_lsn + 1};
    if (broker->consumers.next_session) sums.sessions_bytes = SESSION_SECTION_HEAD;
    for (consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next) {
        /* a group that is not durable any more still reads its stored messages */
        if (!consumer->durable && !consumer->behind) continue;
        if (!consumer->head && !consumer->behind) consumer_floor_update(broker, consumer); /* idle: it has seen everything */
        if (kept_floor(consumer) + 1 < sums.keep_from) sums.keep_from = kept_floor(consumer) + 1;
        if (!consumer->durable) continue;
        sums.seen_count++;
        if (history_is_kept(broker, consumer))
            sums.histories_bytes += history_record_bytes(consumer_history_count(consumer, true));
        if (consumer->session) {
            sums.sessions_bytes += session_section_bytes(consumer);
            continue;
        }
        sums.count++;
        sums.bytes += sizeof(consumer_record_t) + consumer->filter_size + consumer->client_id_size + consumer->group_size;
        for (const registration_t *registration = consumer->grouped ? consumer->registrations : NULL; registration;
             registration = registration->next)
            sums.registrations_bytes += registration_bytes(registration->size);
    }
    return sums;
}

uint8_t *consumers_serialize(broker_t *broker, uint32_t *size, uint64_t *keep_from) {
    durable_sums_t sums = durable_sums(broker);
    uint64_t bytes, at = 0;
    *keep_from = sums.keep_from;
    checkpoint_head_t head = {.version = CHECKPOINT_VERSION,
                              .count = sums.count,
                              .next_message_id = broker->next_message_id,
                              .ids_reserved = broker->ids_reserved,
                              .next_consumer_id = broker->consumers.next_id};
    uint32_t timeline_size = timeline_section_size(broker, *keep_from);
    uint32_t letters_size = wal_quota_section_size(broker);
    uint64_t seen_bytes = (uint64_t)sums.seen_count * sizeof(seen_record_t);
    bytes = sums.bytes + (sums.sessions_bytes ? section_bytes((uint32_t)sums.sessions_bytes) : 0) + sums.registrations_bytes +
            sums.histories_bytes + seen_bytes + 3 * sizeof(section_head_t) + section_bytes(letters_size) +
            section_bytes(timeline_size);
    uint8_t *out = bytes <= UINT32_MAX ? malloc(bytes) : NULL;
    if (!out) return NULL;
    memcpy(out, &head, sizeof head);
    at += sizeof head;
    for (const consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next) {
        if (!consumer->durable || consumer->session) continue;
        consumer_record_t record = record_of(consumer, kept_floor(consumer));
        memcpy(out + at, &record, sizeof record);
        memcpy(out + at + sizeof record, consumer->text, texts_size(&record));
        at += sizeof record + texts_size(&record);
    }
    if (sums.sessions_bytes) sessions_put(section_begin(out, &at, SECTION_SESSIONS, (uint32_t)sums.sessions_bytes), broker);
    registrations_put(section_begin(out, &at, SECTION_REGISTRATIONS, (uint32_t)sums.registrations_bytes), broker);
    uint8_t *histories = section_begin(out, &at, SECTION_HISTORY, (uint32_t)sums.histories_bytes);
    histories_put(histories, broker);
    seen_put(section_begin(out, &at, SECTION_SEEN, (uint32_t)seen_bytes), broker);
    wal_quota_section_write(broker, section_begin(out, &at, SECTION_LETTERS, letters_size));
    timeline_section_write(broker, section_begin(out, &at, SECTION_TIMELINE, timeline_size));
    *size = (uint32_t)at;
    return out;
}
