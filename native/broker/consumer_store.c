/* broker/consumer_store.c: sessions in the log: their records, what a start restores of them, and what a checkpoint holds.
 *
 * Invariant: what is restored is what the records up to the checkpoint and those behind it say, whatever else they hold.
 */
#include "broker/consumer_internal.h"
#include "broker/commit.h"
#include "core.h"
#include "broker/trie.h"

#include <stdlib.h>

/* What LOG_SESSION records hold: a client_id that keeps a durable subscription or group, and all there is to know of that. Filter,
 * client_id and group follow, and with form 1 a session_record_more. In checkpoints the client_ids of groups are in a section. */
typedef struct session_record {
    uint64_t id;
    uint64_t floor_lsn; /* in checkpoints, and where it does not begin with its own record (`floored`) */
    uint32_t filter_size, client_id_size, group_size;
    uint8_t qos, grouped;
    uint8_t form; /* 0: of a version that knew one client_id of a group, who made it */
    uint8_t floored;
} session_record_t;

typedef struct session_record_more {
    uint64_t holder_id; /* without it, that of the session */
} session_record_more_t;

static session_record_t record_of(const session_t *session, uint64_t floor_lsn) {
    return (session_record_t){.id = session->id,
                              .floor_lsn = floor_lsn,
                              .filter_size = session->filter_size,
                              .client_id_size = session->client_id_size,
                              .group_size = session->group_size,
                              .qos = session->qos,
                              .grouped = session->grouped,
                              .form = 1,
                              .floored = floor_lsn > 0};
}

int64_t session_log(bq_t *bq, const session_t *session, const holder_t *holder, uint64_t session_id, uint64_t floor_lsn) {
    session_record_t record = record_of(session, floor_lsn == SESSION_NEW_FLOOR ? 0 : floor_lsn);
    session_record_more_t more = {.holder_id = holder->id};
    record.id = session_id;
    record.client_id_size = holder->size;
    record.qos = 1;
    record.floored = floor_lsn != SESSION_NEW_FLOOR;
    log_part_t parts[] = {{&record, sizeof record},
                          {session->text, session->filter_size},
                          {holder->client_id, holder->size},
                          {session_group(session), session->group_size},
                          {&more, sizeof more}};
    return log_append(bq->log, LOG_SESSION, 0, parts, 5, LOG_URGENT);
}

/* What LOG_SESSION_LEAVE records hold: an UNSUB. Filter, client_id and group follow. */
typedef struct leave_record {
    uint64_t id_max; /* it ends no subscription that is newer */
    uint32_t filter_size, client_id_size, group_size, reserved;
} leave_record_t;

int64_t session_log_leave(bq_t *bq, const session_request_t *request) {
    leave_record_t record = {.id_max = bq->sessions.next_id,
                             .filter_size = request->filter_size,
                             .client_id_size = request->client_id_size,
                             .group_size = request->group_size};
    log_part_t parts[] = {{&record, sizeof record},
                          {request->filter, request->filter_size},
                          {request->client_id, request->client_id_size},
                          {request->group, request->group_size}};
    return log_append(bq->log, LOG_SESSION_LEAVE, 0, parts, 4, LOG_URGENT);
}

/* ---- recovery and checkpoints ---------------------------------------------------------------------------------------------- */

static uint64_t texts_size(const session_record_t *record) {
    return (uint64_t)record->filter_size + record->client_id_size + record->group_size;
}

/* The session at the front of `bytes`, or false: it is not all there, or is none. See publish_read. */
static bool session_read(const uint8_t *bytes, uint64_t size, session_record_t *record) {
    if (size < sizeof *record) return false;
    memcpy(record, bytes, sizeof *record);
    if (!record->id) return false; /* no core gives it, and nothing could be told of it later */
    return texts_size(record) <= size - sizeof *record && filter_check(bytes + sizeof *record, record->filter_size) >= 0;
}

static session_request_t request_of(uint32_t filter_size, uint32_t client_id_size, uint32_t group_size, const uint8_t *text) {
    return (session_request_t){.filter = text,
                               .filter_size = filter_size,
                               .client_id = text + filter_size,
                               .client_id_size = client_id_size,
                               .group = text + filter_size + client_id_size,
                               .group_size = group_size,
                               .qos = 1,
                               .durable = true};
}

/* A client_id that keeps it, unless that is known. False: no memory. */
static bool holder_load(bq_t *bq, session_t *session, const uint8_t *client_id, uint32_t size, uint64_t id, uint64_t lsn) {
    for (const holder_t *at = session->holders; at; at = at->next)
        if (at->id == id) return true;
    if (session->holder_count >= (session->grouped ? GROUP_HOLDERS_MAX : 1)) return true; /* none that a core wrote */
    holder_t *holder = holder_new(bq, client_id, size, id);
    if (!holder) return false;
    holder->record_lsn = lsn;
    holder_enter(bq, session, holder);
    if (id > bq->sessions.next_id) bq->sessions.next_id = id;
    return true;
}

/* A session as it stands in a record or a checkpoint; NULL: no memory. */
static session_t *session_load(bq_t *bq, const session_record_t *record, const session_request_t *request, uint64_t floor_lsn) {
    session_t *session = session_by_id(bq, record->id);
    if (session) return session;
    session = session_new(bq, request, 0);
    if (!session) return NULL;
    session_id_give(bq, session, record->id);
    session->durable = true;
    session->born_lsn = session->floor_lsn = session->floor_logged = floor_lsn;
    if (record->id > bq->sessions.next_id) bq->sessions.next_id = record->id;
    return session;
}

/* A LOG_SESSION record. False: no memory. */
static bool record_load(bq_t *bq, const log_record_t *entry) {
    session_record_t record;
    if (!session_read(entry->bytes, entry->size, &record)) return true;
    session_request_t request =
        request_of(record.filter_size, record.client_id_size, record.group_size, entry->bytes + sizeof record);
    uint64_t behind_texts = sizeof record + texts_size(&record);
    session_record_more_t more = {.holder_id = record.id};
    if (record.form && entry->size - behind_texts >= sizeof more) memcpy(&more, entry->bytes + behind_texts, sizeof more);
    session_t *session = session_load(bq, &record, &request, record.floored ? record.floor_lsn : entry->lsn);
    return session && holder_load(bq, session, request.client_id, request.client_id_size, more.holder_id, entry->lsn);
}

/* A LOG_SESSION_LEAVE record. */
static void leave_load(bq_t *bq, const log_record_t *entry) {
    leave_record_t leave;
    if (entry->size < sizeof leave) return;
    memcpy(&leave, entry->bytes, sizeof leave);
    uint64_t texts = (uint64_t)leave.filter_size + leave.client_id_size + leave.group_size;
    if (texts > entry->size - sizeof leave) return;
    session_request_t request =
        request_of(leave.filter_size, leave.client_id_size, leave.group_size, entry->bytes + sizeof leave);
    session_holders_end(bq, &request, leave.id_max, true);
}

typedef struct checkpoint_head {
    uint32_t version, count;
    uint64_t next_message_id, ids_reserved, next_session_id;
} checkpoint_head_t;

#define CHECKPOINT_VERSION 1u

/* Behind the sessions: [section_head_t][bytes, padded to 8] ... A reader passes over kinds that it does not know, and versions
 * before sections pass over all of them. */
enum section_kind { SECTION_TIMELINE = 1, SECTION_HOLDERS = 2, SECTION_PAST = 3, SECTION_SEEN = 4 };

typedef struct section_head {
    uint32_t kind, size;
} section_head_t;

static uint64_t section_bytes(uint32_t size) { return sizeof(section_head_t) + (((uint64_t)size + 7) & ~7ull); }

/* What the section of pasts holds: for each session with one this, and its entries, padded to 8. */
typedef struct past_record {
    uint64_t session_id, base_lsn, end_lsn;
    uint32_t count, tells;
} past_record_t;

static uint64_t past_record_bytes(uint32_t count) { return sizeof(past_record_t) + count * (uint64_t)sizeof(past_entry_t); }

/* A past that is not there means that all comes again: what does not fit, or cannot be read, is left out. */
static void pasts_load(bq_t *bq, const uint8_t *bytes, uint64_t size) {
    past_record_t record;
    while (size >= sizeof record) {
        memcpy(&record, bytes, sizeof record);
        if (past_record_bytes(record.count) > size) return;
        session_t *session = session_by_id(bq, record.session_id);
        past_t *past = session && !session->past ? session_past_new(bq, record.count) : NULL;
        if (past) {
            *past =
                (past_t){.base_lsn = record.base_lsn, .end_lsn = record.end_lsn, .count = record.count, .tells = record.tells};
            if (record.count) memcpy(past->entries, bytes + sizeof record, record.count * sizeof(past_entry_t));
            session->past = past;
        }
        bytes += past_record_bytes(record.count);
        size -= past_record_bytes(record.count);
    }
}

/* That each delivery in flight was handed over once is not worth writing every half minute: those are told to be again anyway. */
static bool past_is_kept(const bq_t *bq, const session_t *session) {
    return session->durable &&
           (session_past_tells(session) || (bq->sessions.last_checkpoint && session_past_count(session, true)));
}

/* There is room for all of which past_is_kept says so; what is left of it stays zero. */
static void pasts_put(uint8_t *to, bq_t *bq) {
    for (const session_t *session = bq->sessions.all; session; session = session->next) {
        if (!past_is_kept(bq, session)) continue;
        uint32_t count = session_past_count(session, true);
        past_t *past = session_past_new(bq, count);
        if (past && session_past_fill(session, past, count, true)) {
            past_record_t record = {session->id, past->base_lsn, past->end_lsn, count, past->tells};
            memcpy(to, &record, sizeof record);
            if (count) memcpy(to + sizeof record, past->entries, count * sizeof(past_entry_t));
            to += past_record_bytes(count);
        }
        if (past) pool_give(&bq->pool, past, sizeof *past + count * sizeof(past_entry_t));
    }
}

/* What the section of holders holds: for each client_id that keeps a group this, and the client_id, padded to 8. */
typedef struct holder_record {
    uint64_t session_id, id;
    uint32_t size, reserved;
} holder_record_t;

static uint64_t holder_bytes(uint32_t size) { return sizeof(holder_record_t) + (((uint64_t)size + 7) & ~7ull); }

static bool holders_load(bq_t *bq, const uint8_t *bytes, uint64_t size) {
    holder_record_t record;
    while (size >= sizeof record) {
        memcpy(&record, bytes, sizeof record);
        if (holder_bytes(record.size) > size) return true;
        session_t *session = session_by_id(bq, record.session_id);
        if (session && session->grouped && !holder_load(bq, session, bytes + sizeof record, record.size, record.id, 0))
            return false;
        bytes += holder_bytes(record.size);
        size -= holder_bytes(record.size);
    }
    return true;
}

static void holders_put(uint8_t *out, const bq_t *bq) {
    for (const session_t *session = bq->sessions.all; session; session = session->next) {
        for (const holder_t *holder = session->grouped ? session->holders : NULL; holder; holder = holder->next) {
            holder_record_t record = {.session_id = session->id, .id = holder->id, .size = holder->size};
            memcpy(out, &record, sizeof record);
            if (holder->size) memcpy(out + sizeof record, holder->client_id, holder->size);
            out += holder_bytes(holder->size);
        }
    }
}

static void seen_put(uint8_t *out, const bq_t *bq) {
    for (const session_t *session = bq->sessions.all; session; session = session->next) {
        if (!session->durable) continue;
        seen_record_t record;
        session_seen_write(bq, session, &record);
        memcpy(out, &record, sizeof record);
        out += sizeof record;
    }
}

static bool sections_load(bq_t *bq, const uint8_t *bytes, uint64_t size) {
    section_head_t head;
    while (size >= sizeof head) {
        memcpy(&head, bytes, sizeof head);
        if (head.size > size - sizeof head) return true;
        if (head.kind == SECTION_TIMELINE) timeline_load(bq, bytes + sizeof head, head.size);
        if (head.kind == SECTION_PAST) pasts_load(bq, bytes + sizeof head, head.size);
        if (head.kind == SECTION_SEEN) session_seen_load(bq, bytes + sizeof head, head.size);
        if (head.kind == SECTION_HOLDERS && !holders_load(bq, bytes + sizeof head, head.size)) return false;
        if (section_bytes(head.size) >= size) return true;
        bytes += section_bytes(head.size);
        size -= section_bytes(head.size);
    }
    return true;
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
    if (checkpoint->size < sizeof head) return true; /* no core's of any version: the records say what there is */
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
        session_request_t request =
            request_of(record.filter_size, record.client_id_size, record.group_size, checkpoint->bytes + at);
        session_t *session = session_load(bq, &record, &request, record.floor_lsn);
        if (!session) return false;
        bool in_section = record.form && session->grouped;
        if (!in_section && !holder_load(bq, session, request.client_id, request.client_id_size, record.id, 0)) return false;
        at += texts_size(&record);
    }
    return sections_load(bq, checkpoint->bytes + at, checkpoint->size - at);
}

/* What a record of numbers holds; false: it is too short to be one. */
static bool numbers_read(const log_record_t *entry, uint64_t *numbers, uint32_t count) {
    if (entry->size < count * sizeof *numbers) return false;
    memcpy(numbers, entry->bytes, count * sizeof *numbers);
    return true;
}

/* What waits for a session is not counted record by record, for that a start has no time: those behind the checkpoint may be its own. */
static void replayed(bq_t *bq, const publish_record_t *publish, uint32_t size) {
    sessions_t *sessions = &bq->sessions;
    if (!sessions->replayed_messages++) sessions->replayed_stamp_ms = publish->timestamp_ms;
    sessions->replayed_bytes += size;
}

/* At most so much waits for a session that was found behind. */
static void lag_restore(const bq_t *bq, session_t *session) {
    const sessions_t *sessions = &bq->sessions;
    uint64_t most = bq->found_lsn - session->floor_lsn;
    session->behind_messages += sessions->replayed_messages;
    session->behind_bytes += sessions->replayed_bytes;
    session->behind_unsure |= sessions->replayed_messages > 0;
    if (session->behind_messages > most) session->behind_messages = most;
    if (!session->behind_stamp_ms) session->behind_stamp_ms = sessions->replayed_stamp_ms;
}

/* A record that is not what its type says is passed over, as one of a later version is: the others are still good. */
bool session_restore(void *context, const log_record_t *entry) {
    bq_t *bq = context;
    publish_record_t publish;
    uint64_t numbers[2];
    session_t *session;
    switch (entry->type) {
    case 0: return checkpoint_load(bq, entry);
    case LOG_PUBLISH:
        if (!publish_read(entry->bytes, entry->size, &publish)) return true;
        if (publish.id >= bq->next_message_id) bq->next_message_id = publish.id + 1;
        timeline_restore_publish(bq, entry->lsn, &publish);
        replayed(bq, &publish, entry->size);
        return true;
    case LOG_TIME: timeline_restore(bq, entry->lsn, entry->bytes, entry->size); return true;
    case LOG_IDS:
        if (entry->size == sizeof *numbers && numbers_read(entry, numbers, 1)) bq->ids_reserved = numbers[0];
        return true;
    case LOG_SESSION: return record_load(bq, entry);
    case LOG_SESSION_LEAVE: leave_load(bq, entry); return true;
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
        if (session->floor_lsn >= bq->found_lsn || !session->qos) {
            session_behind_end(session);
            continue;
        }
        lag_restore(bq, session);
        session->behind = true;
        session->next_lsn = session->floor_lsn + 1;
        session->doubtful_lsn = bq->found_lsn;
    }
}

void sessions_go_on(bq_t *bq) {
    for (session_t *session = bq->sessions.all; session; session = session->next)
        if (session->behind) session_pump_later(bq, session);
}

typedef struct durable_sums {
    uint32_t count;
    uint64_t bytes, holders_bytes, pasts_bytes; /* in a checkpoint */
    uint64_t keep_from;                         /* the first LSN that one of them has not done with */
} durable_sums_t;

/* What the log has to keep for it. What it holds from before it was durable is in memory only. */
static uint64_t kept_floor(const session_t *session) {
    return session->floor_lsn + 1 < session->kept_lsn ? session->kept_lsn - 1 : session->floor_lsn;
}

static durable_sums_t durable_sums(bq_t *bq) {
    durable_sums_t sums = {.bytes = sizeof(checkpoint_head_t), .keep_from = bq->fanned_lsn + 1};
    for (session_t *session = bq->sessions.all; session; session = session->next) {
        if (!session->durable && !session->behind) continue; /* a group no longer durable still reads what it had collected */
        if (!session->head && !session->behind) session_floor_update(bq, session); /* idle: it has seen all there is */
        if (kept_floor(session) + 1 < sums.keep_from) sums.keep_from = kept_floor(session) + 1;
        if (!session->durable) continue;
        sums.count++;
        sums.bytes += sizeof(session_record_t) + session->filter_size + session->client_id_size + session->group_size;
        if (past_is_kept(bq, session)) sums.pasts_bytes += past_record_bytes(session_past_count(session, true));
        for (const holder_t *holder = session->grouped ? session->holders : NULL; holder; holder = holder->next)
            sums.holders_bytes += holder_bytes(holder->size);
    }
    return sums;
}

uint8_t *sessions_serialize(bq_t *bq, uint32_t *size, uint64_t *keep_from) {
    durable_sums_t sums = durable_sums(bq);
    uint64_t bytes, at = 0;
    *keep_from = sums.keep_from;
    checkpoint_head_t head = {.version = CHECKPOINT_VERSION,
                              .count = sums.count,
                              .next_message_id = bq->next_message_id,
                              .ids_reserved = bq->ids_reserved,
                              .next_session_id = bq->sessions.next_id};
    uint32_t timeline_size = timeline_section_size(bq, *keep_from);
    uint64_t seen_bytes = (uint64_t)sums.count * sizeof(seen_record_t);
    bytes = sums.bytes + sums.holders_bytes + sums.pasts_bytes + seen_bytes + 3 * sizeof(section_head_t) +
            section_bytes(timeline_size);
    uint8_t *out = bytes <= UINT32_MAX ? malloc(bytes) : NULL;
    if (!out) return NULL;
    memcpy(out, &head, sizeof head);
    at += sizeof head;
    for (const session_t *session = bq->sessions.all; session; session = session->next) {
        if (!session->durable) continue;
        session_record_t record = record_of(session, kept_floor(session));
        memcpy(out + at, &record, sizeof record);
        memcpy(out + at + sizeof record, session->text, texts_size(&record));
        at += sizeof record + texts_size(&record);
    }
    holders_put(section_begin(out, &at, SECTION_HOLDERS, (uint32_t)sums.holders_bytes), bq);
    uint8_t *pasts = section_begin(out, &at, SECTION_PAST, (uint32_t)sums.pasts_bytes);
    pasts_put(pasts, bq);
    seen_put(section_begin(out, &at, SECTION_SEEN, (uint32_t)seen_bytes), bq);
    timeline_section_write(bq, section_begin(out, &at, SECTION_TIMELINE, timeline_size));
    *size = (uint32_t)at;
    return out;
}
