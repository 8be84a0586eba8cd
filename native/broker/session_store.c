/* broker/session_store.c: the records of durable sessions in the WAL, their recovery at a start, and their section of a
 * checkpoint. Floors, ends and histories of sessions are those of consumers (broker/consumer_store.c).
 *
 *      WAL        [open: id, client_id] [filter: id, options, text] [without: id, text] ...
 *      section    [next: id] [open][filter][filter] [open] ...
 *
 * Versions without sessions pass over the record type and the section. The ids have a range of their own, so that such a version
 * gives none of them to a consumer.
 *
 * Invariant: as in broker/consumer_store.c.
 */
#include "broker/broker.h"
#include "broker/consumer_internal.h"
#include "broker/session.h"

#define SESSION_IDS (1ull << 48)

enum session_kind { SESSION_OPEN = 1, SESSION_FILTER = 2, SESSION_WITHOUT = 3, SESSION_NEXT = 4 };
enum session_flags { SESSION_NO_LOCAL = 1, SESSION_RETAIN_AS_PUBLISHED = 2 };

/* The client_id or the filter follows. In a checkpoint: padded to 8 bytes. */
typedef struct session_record {
    uint64_t id;
    uint64_t lsn; /* in a checkpoint: the floor (open), or the LSN of the subscription (filter); else 0 */
    uint32_t size;
    uint32_t subscription_id;
    uint8_t kind, qos, flags, reserved[5];
} session_record_t;
_Static_assert(sizeof(session_record_t) == SESSION_SECTION_HEAD, "the head of the section is one record");

uint64_t session_id_next(broker_t *broker) {
    if (broker->consumers.next_session < SESSION_IDS) broker->consumers.next_session = SESSION_IDS;
    return ++broker->consumers.next_session;
}

static int64_t record_append(broker_t *broker, const session_record_t *record, const uint8_t *text) {
    wal_part_t parts[] = {{record, sizeof *record}, {text, record->size}};
    return wal_append(broker->wal, WAL_SESSION, 0, parts, 2, WAL_URGENT);
}

int64_t session_open_append(broker_t *broker, uint64_t id, const uint8_t *client_id, uint32_t size) {
    return record_append(broker, &(session_record_t){.id = id, .size = size, .kind = SESSION_OPEN}, client_id);
}

int64_t session_filter_append(broker_t *broker, const consumer_t *consumer, const consumer_request_t *request) {
    session_record_t record = {.id = consumer->id,
                               .size = request->filter_size,
                               .subscription_id = request->subscription_id,
                               .kind = SESSION_FILTER,
                               .qos = request->qos,
                               .flags = (request->no_local ? SESSION_NO_LOCAL : 0) |
                                        (request->retain_as_published ? SESSION_RETAIN_AS_PUBLISHED : 0)};
    return record_append(broker, &record, request->filter);
}

int64_t session_unfilter_append(broker_t *broker, const consumer_t *consumer, const uint8_t *filter, uint32_t size) {
    return record_append(broker, &(session_record_t){.id = consumer->id, .size = size, .kind = SESSION_WITHOUT}, filter);
}

/* ---- recovery ---------------------------------------------------------------------------------------------------- */

static consumer_t *session_by_id(broker_t *broker, uint64_t id) {
    consumer_t *consumer = consumer_by_id(broker, id);
    return consumer && consumer->session ? consumer : NULL;
}

static void next_load(broker_t *broker, const session_record_t *record) {
    if (record->id > broker->consumers.next_session && record->id < 2 * SESSION_IDS) broker->consumers.next_session = record->id;
}

/* False: no memory. */
static bool open_load(broker_t *broker, const session_record_t *record, const uint8_t *client_id, uint64_t lsn,
                      uint64_t floor_lsn) {
    if (record->id <= SESSION_IDS || record->id >= 2 * SESSION_IDS || !record->size || consumer_by_id(broker, record->id))
        return true;
    consumer_request_t request = {
        .filter = client_id, .client_id = client_id, .client_id_size = record->size, .durable = true, .session = true};
    consumer_t *consumer = consumer_new(broker, &request, 0);
    registration_t *registration = consumer ? registration_new(broker, client_id, record->size, record->id) : NULL;
    if (!registration) {
        if (consumer) consumer_free(broker, consumer);
        return false;
    }
    registration->record_lsn = consumer->session->record_lsn = lsn;
    registration_enter(broker, consumer, registration);
    consumer_id_assign(broker, consumer, record->id);
    consumer->floor_lsn = consumer->floor_logged = floor_lsn;
    next_load(broker, record);
    return true;
}

/* False: no memory. */
static bool filter_load(broker_t *broker, const session_record_t *record, const uint8_t *text, uint64_t lsn) {
    consumer_t *consumer = session_by_id(broker, record->id);
    if (!consumer || record->qos > 2 || filter_check(text, record->size) < 0) return true;
    consumer_request_t request = {.filter = text,
                                  .filter_size = record->size,
                                  .subscription_id = record->subscription_id & ((1u << 28) - 1),
                                  .qos = record->qos,
                                  .no_local = (record->flags & SESSION_NO_LOCAL) != 0,
                                  .retain_as_published = (record->flags & SESSION_RETAIN_AS_PUBLISHED) != 0};
    consumer_filter_t *filter = session_filter_find(broker, consumer, text, record->size);
    bool begins = request.qos && !(filter && filter->qos);
    if (filter)
        session_filter_set(broker, filter, &request);
    else if (!(filter = session_filter_add(broker, consumer, &request)))
        return false;
    if (begins) filter->born_lsn = record->lsn ? record->lsn : lsn;
    if (lsn > consumer->session->record_lsn) consumer->session->record_lsn = lsn;
    return true;
}

static void without_load(broker_t *broker, const session_record_t *record, const uint8_t *text) {
    consumer_t *consumer = session_by_id(broker, record->id);
    consumer_filter_t *filter = consumer ? session_filter_find(broker, consumer, text, record->size) : NULL;
    if (filter) session_filter_remove(broker, consumer, filter);
}

/* `lsn`: of the record; 0: in a checkpoint. False: no memory. Kinds of later versions are skipped. */
static bool record_load(broker_t *broker, const session_record_t *record, const uint8_t *text, uint64_t lsn) {
    switch (record->kind) {
    case SESSION_OPEN: return open_load(broker, record, text, lsn, lsn ? lsn : record->lsn);
    case SESSION_FILTER: return filter_load(broker, record, text, lsn);
    case SESSION_WITHOUT: without_load(broker, record, text); return true;
    case SESSION_NEXT: next_load(broker, record); return true;
    default: return true;
    }
}

bool session_restore(broker_t *broker, const wal_record_t *entry) {
    session_record_t record;
    if (entry->size < sizeof record) return true;
    memcpy(&record, entry->bytes, sizeof record);
    if (record.size > entry->size - sizeof record) return true;
    record.lsn = 0;
    return record_load(broker, &record, entry->bytes + sizeof record, entry->lsn);
}

/* ---- checkpoints ------------------------------------------------------------------------------------------------- */

static uint64_t padded(uint32_t size) { return sizeof(session_record_t) + (((uint64_t)size + 7) & ~7ull); }

bool session_section_load(broker_t *broker, const uint8_t *bytes, uint64_t size) {
    session_record_t record;
    while (size >= sizeof record) {
        memcpy(&record, bytes, sizeof record);
        if (padded(record.size) > size) return true;
        if (!record_load(broker, &record, bytes + sizeof record, 0)) return false;
        bytes += padded(record.size);
        size -= padded(record.size);
    }
    return true;
}

uint64_t session_section_bytes(const consumer_t *consumer) {
    uint64_t bytes = padded(consumer->client_id_size);
    for (uint32_t i = 0; i < consumer->session->filter_count; i++) {
        uint32_t size;
        int syntax;
        route_consumer_text(consumer->session->filters[i], &size, &syntax);
        bytes += padded(size);
    }
    return bytes;
}

uint8_t *session_section_begin(uint8_t *out, const broker_t *broker) {
    session_record_t next = {.id = broker->consumers.next_session, .kind = SESSION_NEXT};
    memcpy(out, &next, sizeof next);
    return out + sizeof next;
}

static uint8_t *record_put(uint8_t *out, const session_record_t *record, const uint8_t *text) {
    memcpy(out, record, sizeof *record);
    memcpy(out + sizeof *record, text, record->size);
    return out + padded(record->size);
}

uint8_t *session_section_write(uint8_t *out, const consumer_t *consumer, uint64_t floor_lsn) {
    session_record_t open = {.id = consumer->id, .lsn = floor_lsn, .size = consumer->client_id_size, .kind = SESSION_OPEN};
    out = record_put(out, &open, consumer_client_id(consumer));
    for (uint32_t i = 0; i < consumer->session->filter_count; i++) {
        const consumer_filter_t *filter = consumer->session->filters[i];
        session_record_t record = {.id = consumer->id,
                                   .lsn = filter->born_lsn,
                                   .subscription_id = filter->subscription_id,
                                   .kind = SESSION_FILTER,
                                   .qos = filter->qos,
                                   .flags = (filter->no_local ? SESSION_NO_LOCAL : 0) |
                                            (filter->retain_as_published ? SESSION_RETAIN_AS_PUBLISHED : 0)};
        int syntax;
        const uint8_t *text = route_consumer_text(filter, &record.size, &syntax);
        out = record_put(out, &record, text);
    }
    return out;
}
