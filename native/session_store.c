/* session_store.c: sessions in the log: their records, what a start restores of them, and what a checkpoint holds.
 *
 * Invariant: what is restored is what the records up to the checkpoint and those behind it say, whatever else they hold.
 */
#include "session_internal.h"
#include "commit.h"
#include "core.h"
#include "trie.h"

#include <stdlib.h>

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
int64_t session_log(bq_t *bq, session_t *session) {
    session_id_give(bq, session, ++bq->sessions.next_id);
    session_record_t record = record_of(session);
    log_part_t parts[] = {{&record, sizeof record},
                          {session->text, session->filter_size + session->client_id_size + session->group_size}};
    return log_append(bq->log, LOG_SESSION, 0, parts, 2, true);
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
    session_id_give(bq, session, record->id);
    session->born_lsn = session->floor_lsn = session->floor_logged = floor_lsn;
    if (record->id > bq->sessions.next_id) bq->sessions.next_id = record->id;
    return true;
}

typedef struct checkpoint_head {
    uint32_t version, count;
    uint64_t next_message_id, ids_reserved, next_session_id;
} checkpoint_head_t;

#define CHECKPOINT_VERSION 1u

/* Behind the sessions: [section_head_t][bytes, padded to 8] ... A reader passes over kinds that it does not know, and versions
 * before sections pass over all of them. */
enum section_kind { SECTION_TIMELINE = 1 };

typedef struct section_head {
    uint32_t kind, size;
} section_head_t;

static uint64_t section_bytes(uint32_t size) { return sizeof(section_head_t) + (((uint64_t)size + 7) & ~7ull); }

static void sections_load(bq_t *bq, const uint8_t *bytes, uint64_t size) {
    section_head_t head;
    while (size >= sizeof head) {
        memcpy(&head, bytes, sizeof head);
        if (head.size > size - sizeof head) return;
        if (head.kind == SECTION_TIMELINE) timeline_load(bq, bytes + sizeof head, head.size);
        if (section_bytes(head.size) >= size) return;
        bytes += section_bytes(head.size);
        size -= section_bytes(head.size);
    }
}

/* Where the section's bytes go. */
static uint8_t *section_begin(uint8_t *out, uint64_t *at, uint32_t kind, uint32_t size) {
    section_head_t head = {.kind = kind, .size = size};
    uint8_t *bytes = out + *at + sizeof head;
    memset(out + *at, 0, section_bytes(size));
    memcpy(out + *at, &head, sizeof head);
    *at += section_bytes(size);
    return bytes;
}

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
    sections_load(bq, checkpoint->bytes + at, checkpoint->size - at);
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
    publish_record_t publish;
    uint64_t numbers[2];
    session_t *session;
    switch (entry->type) {
    case 0: return checkpoint_load(bq, entry);
    case LOG_PUBLISH:
        if (numbers_read(entry, numbers, 1) && numbers[0] + 1 > bq->next_message_id) bq->next_message_id = numbers[0] + 1;
        if (entry->size >= sizeof publish) {
            memcpy(&publish, entry->bytes, sizeof publish);
            timeline_restore_publish(bq, entry->lsn, &publish);
        }
        return true;
    case LOG_TIME: timeline_restore(bq, entry->lsn, entry->bytes, entry->size); return true;
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
        if (session->behind) session_pump_later(bq, session);
}

/* How many there are, their bytes in a checkpoint, and the first LSN that one of them has not done with. */
static uint32_t durable_count(bq_t *bq, uint64_t *size, uint64_t *keep_from) {
    uint32_t count = 0;
    *size = sizeof(checkpoint_head_t);
    *keep_from = bq->fanned_lsn + 1;
    for (session_t *session = bq->sessions.all; session; session = session->next) {
        if (!session->durable) continue;
        if (!session->head && !session->behind) session_floor_update(bq, session); /* idle: it has seen all there is */
        if (session->floor_lsn + 1 < *keep_from) *keep_from = session->floor_lsn + 1;
        count++;
        *size += sizeof(session_record_t) + session->filter_size + session->client_id_size + session->group_size;
    }
    return count;
}

uint8_t *sessions_serialize(bq_t *bq, uint32_t *size, uint64_t *keep_from) {
    uint64_t bytes, at = 0;
    checkpoint_head_t head = {.version = CHECKPOINT_VERSION,
                              .count = durable_count(bq, &bytes, keep_from),
                              .next_message_id = bq->next_message_id,
                              .ids_reserved = bq->ids_reserved,
                              .next_session_id = bq->sessions.next_id};
    uint32_t timeline_size = timeline_section_size(bq, *keep_from);
    bytes += section_bytes(timeline_size);
    uint8_t *out = bytes <= UINT32_MAX ? malloc(bytes) : NULL;
    if (!out) return NULL;
    memcpy(out, &head, sizeof head);
    at += sizeof head;
    for (const session_t *session = bq->sessions.all; session; session = session->next) {
        if (!session->durable) continue;
        session_record_t record = record_of(session);
        memcpy(out + at, &record, sizeof record);
        memcpy(out + at + sizeof record, session->text, texts_size(&record));
        at += sizeof record + texts_size(&record);
    }
    timeline_section_write(bq, section_begin(out, &at, SECTION_TIMELINE, timeline_size));
    *size = (uint32_t)at;
    return out;
}
