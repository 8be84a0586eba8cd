/* wal/recover.c: reads the records of a directory in any state, including damage, as a table of named cases.
 *
 *      for each segment by number, for each record in order:
 *          valid, LSN as expected      take it
 *          valid, LSN higher           LOST from the expected LSN up to it; take it
 *          LSN at or above the bound   a recovery copied it to a later segment: skip the rest (superseded)
 *          not valid                   search for the next valid record:
 *              newest segment, and no later record proves that the expected LSN was durable    TORN: drop the rest
 *              otherwise, or if the segment has lost its beginning or its end                  DAMAGED: continue after it
 *      then report missing records, according to the ledger in LOCK, a footer without a next segment, and the checkpoint
 *
 * Invariant: recover_begin and recover_next only read. Only recover_keep_aside and the last steps of wal_open change the
 * directory. After each of those steps the directory still recovers to the same records.
 */
#include "wal/wal_internal.h"

#include <stdio.h>

const recover_rule_t recover_rules[RECOVER_CASES_COUNT] = {
#define X(name, action, text) [RECOVER_##name] = {#name, action, text},
    RECOVER_CASES(X)
#undef X
};

#define ASIDE_COPY_BYTES_MAX (16u << 20) /* of one copied range */
#define ASIDE_TORN_MAX 8u                /* the oldest is deleted for a new one */
#define ASIDE_DAMAGED_MAX 64u            /* more are only reported: the bytes are still in their segment */

/* ---- the walk ------------------------------------------------------------------------------------------------------ */

static uint64_t needed_from(const recover_t *recover) {
    return recover->checkpoint.keep_from ? recover->checkpoint.keep_from : 1; /* 0 also without a checkpoint */
}

/* `lsn` is the LSN with which the WAL continues. Records that a checkpoint made unnecessary are not lost: after a power cut
 * some of the deleted segments may exist again and others not. */
static bool lost_before(recover_t *recover, uint64_t lsn, bool unknown, recover_finding_t *finding) {
    uint64_t needed = needed_from(recover);
    uint64_t first = recover->expected > needed ? recover->expected : needed;
    recover->expected = lsn;
    if (first >= lsn) return false;
    *finding =
        (recover_finding_t){.kind = unknown ? RECOVER_LOST_AT_MOST : RECOVER_LOST, .first_lsn = first, .last_lsn = lsn - 1};
    wal_report_t *report = &recover->report;
    if (unknown) recover->gap_last = lsn - 1;
    report->lost_unknown |= unknown;
    if (!report->lost_ranges++) report->lost_first_lsn = first;
    report->lost_last_lsn = lsn - 1;
    return true;
}

static uint64_t bound_behind(const recover_t *recover, uint32_t at) {
    uint64_t bound = 0;
    for (uint32_t i = at + 1; i < recover->count; i++) {
        uint64_t first = recover->segments[i]->header.first_lsn;
        if (first && (!bound || first < bound)) bound = first;
    }
    return bound;
}

/* When the latest valid record of this segment was written, everything below the returned LSN was durable. */
static uint64_t proof_of(recover_t *recover) {
    format_record_t record;
    uint64_t begin = recover->scan.offset, proof = 1, junk_end = 0;
    while (scan_resync(&recover->scan, recover->expected, &record, &junk_end) == SCAN_RECORD) {
        if (record.lsn - record.place > proof) proof = record.lsn - record.place;
        scan_pass(&recover->scan, &record);
    }
    recover->scan.offset = begin;
    return proof;
}

static bool gap_noted(const segment_t *segment) { return (segment->header.flags & FORMAT_HEADER_GAP) != 0; }

static int walk_end(recover_t *recover, recover_finding_t *finding) {
    evidence_t evidence = recover_evidence(recover);
    if (evidence.gone && !recover->gone_told) {
        *finding = (recover_finding_t){.kind = RECOVER_GONE, .number = recover->ledger.sequence ? recover->ledger.created : 0};
        recover->gone_told = true;
        recover->report.damaged_files++;
        recover->report.clean = 0;
        return RECOVER_FINDING;
    }
    recover->finished = true;
    if (evidence.next <= recover->expected) return RECOVER_END;
    return lost_before(recover, evidence.next, evidence.unknown, finding) ? RECOVER_FINDING : RECOVER_END;
}

static int next_segment(recover_t *recover, recover_finding_t *finding) {
    if (recover->at != UINT32_MAX && recover->at != recover->count)
        recover->done_bytes += recover->segments[recover->at++]->file_bytes;
    if (recover->at == UINT32_MAX) recover->at = 0;
    if (recover->at == recover->count) return walk_end(recover, finding);
    int error = recover_open(recover, recover->at);
    if (error != BQ_OK) return error;
    segment_t *segment = recover->segments[recover->at];
    recover->bound = bound_behind(recover, recover->at);
    recover->proof = 0;
    uint64_t previous = recover->at ? recover->segments[recover->at - 1]->header.number : segment->header.number - 1;
    uint64_t first = segment->header.first_lsn;
    bool superseded = recover->bound && recover->bound <= first; /* the skipped records are in a later segment */
    if (first > recover->expected && !superseded && lost_before(recover, first, gap_noted(segment), finding))
        return RECOVER_FINDING;
    if (segment->header.number != previous + 1 && recover->segments[recover->at - 1]->records && !first) {
        *finding = (recover_finding_t){.kind = RECOVER_MISSING, .number = previous + 1};
        return RECOVER_FINDING;
    }
    return RECOVER_RECORD; /* continue */
}

static void segment_leave(recover_t *recover) { recover->scan.offset = recover->scan.size; }

/* No valid record at the offset. Moves the offset to the next valid record, or leaves the segment. true: there is a finding. */
static bool gap_pass(recover_t *recover, recover_finding_t *finding) {
    scan_t *scan = &recover->scan;
    segment_t *segment = recover->segments[recover->at];
    uint64_t begin = scan->offset, junk_end = begin;
    uint64_t expected = recover->expected ? recover->expected : needed_from(recover); /* needed records were not deleted */
    format_record_t record;
    bool torn = recover->at == recover->newest || recover->newest == recover->count || recover->at > recover->newest;
    if (recover->at == recover->newest) {
        if (!recover->proof) recover->proof = proof_of(recover);
        torn = recover->proof <= expected;
    }
    if (segment->cut || (segment->beheaded && !segment->records)) torn = false;
    bool found = scan_resync(scan, recover->expected, &record, &junk_end) == SCAN_RECORD;
    if (torn) { /* valid records after the gap are of the same batch, which was never reported as durable */
        while (found) {
            scan_pass(scan, &record);
            junk_end = scan->offset;
            found = scan_resync(scan, recover->expected, &record, &junk_end) == SCAN_RECORD;
        }
        segment_leave(recover);
        recover->report.torn_bytes += junk_end - begin;
        if (junk_end > begin) recover->report.clean = 0;
        segment->damaged = segment->damaged || scan->unreadable != 0;
    } else {
        if (found) junk_end = scan->offset; /* zeros before it are damaged too */
        if (!found) segment_leave(recover);
        segment->damaged = segment->damaged || junk_end > begin;
    }
    if (junk_end == begin) return false;
    *finding = (recover_finding_t){.kind = torn ? RECOVER_TORN : RECOVER_DAMAGED,
                                   .number = segment->name_number,
                                   .offset = begin,
                                   .bytes = junk_end - begin};
    return true;
}

/* A valid record: take it, or end this segment. */
static int record_take(recover_t *recover, const format_record_t *found, const uint8_t *payload, wal_record_t *record) {
    segment_t *segment = recover->segments[recover->at];
    uint64_t offset = recover->scan.offset;
    scan_pass(&recover->scan, found);
    segment->end = recover->scan.offset;
    segment->sealed = found->type == FORMAT_FOOTER;
    segment->in_order = segment->sealed && (found->flags & FORMAT_FOOTER_CLEAN) != 0;
    recover->report.clean = segment->in_order;
    if (found->type == FORMAT_FOOTER) segment_leave(recover);
    if (found->type == FORMAT_FOOTER || found->type == WAL_PAD) return RECOVER_END;
    if (!segment->records++) segment->first_lsn = found->lsn;
    segment->next_lsn = recover->expected = found->lsn + 1;
    segment_mark(segment, found->lsn, offset);
    recover->report.records++;
    recover->report.bytes += found->size;
    uint32_t bytes = FORMAT_RECORD_BYTES + (uint32_t)format_padded(found->size);
    if (bytes > recover->record_bytes_max) recover->record_bytes_max = bytes;
    *record =
        (wal_record_t){.lsn = found->lsn, .bytes = payload, .size = found->size, .type = found->type, .flags = found->flags};
    return RECOVER_RECORD;
}

int recover_next(recover_t *recover, wal_record_t *record, recover_finding_t *finding) {
    if (recover->findings_given < recover->findings_count) {
        *finding = recover->findings[recover->findings_given++];
        return RECOVER_FINDING;
    }
    while (!recover->finished) {
        scan_t *scan = &recover->scan;
        if (recover->at == UINT32_MAX || scan->offset >= scan->size || (recover->bound && recover->expected >= recover->bound)) {
            int next = next_segment(recover, finding);
            if (next != RECOVER_RECORD) return next;
            continue;
        }
        format_record_t found;
        const uint8_t *payload;
        if (scan_look(scan, &found, &payload) != SCAN_RECORD || found.lsn < recover->expected) {
            if (scan->error) return system_error(scan->error);
            if (gap_pass(recover, finding)) return RECOVER_FINDING;
            continue;
        }
        if (recover->bound && found.lsn >= recover->bound) {
            segment_leave(recover); /* a later segment starts at the bound and holds all of these records */
            continue;
        }
        if (found.lsn != recover->expected && lost_before(recover, found.lsn, gap_noted(recover->segments[recover->at]), finding))
            return RECOVER_FINDING;
        if (record_take(recover, &found, payload, record) == RECOVER_RECORD) return RECOVER_RECORD;
    }
    return RECOVER_END;
}

/* ---- keeping aside ------------------------------------------------------------------------------------------------- */

static const char torn_prefix[] = "torn-", damaged_prefix[] = "damaged-";

typedef struct aside {
    const char *prefix;
    uint32_t count;
    char oldest[FORMAT_NAME_BYTES];
} aside_t;

static void aside_visit(void *context, const char *name) {
    aside_t *aside = context;
    if (strncmp(name, aside->prefix, strlen(aside->prefix)) != 0 || strlen(name) >= FORMAT_NAME_BYTES) return;
    if (!aside->count++ || strcmp(name, aside->oldest) < 0) memcpy(aside->oldest, name, strlen(name) + 1);
}

static int copy_range(storage_t *storage, const char *from, const char *to, uint64_t offset, uint64_t bytes) {
    uint8_t buffer[4096];
    int source = storage->open(storage, from, false);
    if (source < 0) return source;
    int target = storage->open(storage, to, true), error = target;
    for (uint64_t done = 0; error >= 0 && done < bytes && done < ASIDE_COPY_BYTES_MAX;) {
        int64_t count =
            storage->read(storage, source, offset + done, buffer, bytes - done < sizeof buffer ? bytes - done : sizeof buffer);
        if (count <= 0) {
            error = (int)count;
            break;
        }
        error = storage->write(storage, target, done, buffer, (uint64_t)count);
        done += (uint64_t)count;
    }
    if (error >= 0) error = storage->sync(storage, target);
    if (target >= 0) storage->close(storage, target);
    storage->close(storage, source);
    return error;
}

int recover_keep_aside(recover_t *recover, const recover_finding_t *finding) {
    storage_t *storage = recover->storage;
    char from[FORMAT_NAME_BYTES], to[FORMAT_NAME_BYTES + 32];
    format_segment_name(from, finding->number);
    enum recover_action action = recover_rules[finding->kind].action;
    if (action == ACTION_MOVE_ASIDE) {
        snprintf(to, sizeof to, "aside-%s", from);
        return storage->rename(storage, from, to);
    }
    if (action != ACTION_COPY_ASIDE) return 0;
    bool torn = finding->kind == RECOVER_TORN;
    aside_t aside = {.prefix = torn ? torn_prefix : damaged_prefix};
    storage->list(storage, aside_visit, &aside);
    if (torn && aside.count >= ASIDE_TORN_MAX) storage->unlink(storage, aside.oldest);
    if (!torn && aside.count >= ASIDE_DAMAGED_MAX) return 0;
    snprintf(to, sizeof to, "%s%010llu-%010llu", aside.prefix, (unsigned long long)finding->number,
             (unsigned long long)finding->offset);
    return copy_range(storage, from, to, finding->offset, finding->bytes);
}
