/* log_recover.c: what a directory holds after anything may have happened to it, as a table of labelled cases.
 *
 *      for each segment by number, each record in order:
 *          verifies, LSN expected      take it
 *          verifies, LSN higher        LOST from the expected one up to it, take it
 *          LSN at or above the bound   a later segment was made by a recovery and holds this: leave the rest (superseded)
 *          does not verify             look for the next record that does:
 *              newest segment, and nothing behind proves that the expected LSN was durable     TORN: drop what follows
 *              otherwise                                                                       DAMAGED: go on behind it
 *
 * Invariant: recover_begin and recover_next only read. What changes the directory is recover_keep_aside and log_open's last
 * steps, and each of those leaves a directory that recovers to the same records as before.
 */
#include "log_internal.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "crc32.h"

const recover_rule_t recover_rules[RECOVER_CASES_COUNT] = {
#define X(name, action, text) [RECOVER_##name] = {#name, action, text},
    RECOVER_CASES(X)
#undef X
};

#define ASIDE_COPY_BYTES_MAX (16u << 20) /* of one copied range */
#define ASIDE_TORN_MAX 8u                /* the oldest goes when one more comes */
#define ASIDE_DAMAGED_MAX 64u            /* further ones are only reported: the bytes are still in their segment */

int system_error(int error) {
    if (error == -ENOMEM) return BQ_E_MEMORY;
    errno = -error;
    return BQ_E_SYSTEM;
}

/* ---- segments ------------------------------------------------------------------------------------------------------ */

segment_t *segment_new(const segment_header_t *header, uint64_t name_number, uint64_t file_bytes) {
    segment_t *segment = calloc(1, sizeof *segment);
    if (!segment) return NULL;
    uint64_t bytes = file_bytes < FORMAT_SEGMENT_BYTES_MAX ? file_bytes : FORMAT_SEGMENT_BYTES_MAX;
    segment->header = *header;
    segment->name_number = name_number;
    segment->file_bytes = file_bytes;
    segment->end = header->header_bytes;
    segment->marks_capacity = (uint32_t)(bytes / LOG_MARK_BYTES) + 2;
    segment->marks = calloc(segment->marks_capacity, sizeof *segment->marks);
    if (segment->marks) return segment;
    free(segment);
    return NULL;
}

void segment_free(segment_t *segment) {
    if (!segment) return;
    free(segment->marks);
    free(segment);
}

void segment_mark(segment_t *segment, uint64_t lsn, uint64_t offset) {
    uint32_t count = segment->marks_count;
    if (count && (offset - segment->marks[count - 1].offset < LOG_MARK_BYTES || count == segment->marks_capacity)) return;
    segment->marks[segment->marks_count++] = (log_mark_t){.lsn = lsn, .offset = (uint32_t)offset};
}

int segment_create(storage_t *storage, const segment_header_t *header, int *file) {
    uint8_t room[FORMAT_HEADER_ROOM] = {0};
    format_header_encode(room, header);
    memcpy(room + FORMAT_HEADER_COPY, room, FORMAT_HEADER_BYTES);
    *file = storage->open(storage, LOG_SEGMENT_TEMPORARY, true);
    if (*file < 0) return *file;
    int error = storage->allocate(storage, *file, header->segment_bytes);
    if (error >= 0) error = storage->write(storage, *file, 0, room, sizeof room);
    if (error >= 0) return 0;
    storage->close(storage, *file);
    storage->unlink(storage, LOG_SEGMENT_TEMPORARY); /* what blocks it got are wanted elsewhere */
    *file = -1;
    return error;
}

int segment_publish(storage_t *storage, int file, uint64_t number) {
    char name[FORMAT_NAME_BYTES];
    format_segment_name(name, number);
    int error = storage->sync(storage, file);
    if (error >= 0) error = storage->rename(storage, LOG_SEGMENT_TEMPORARY, name);
#ifndef BUG_NO_DIRECTORY_FSYNC
    if (error >= 0) error = storage->sync_directory(storage);
#endif
    return error < 0 ? error : 0;
}

/* ---- the directory ------------------------------------------------------------------------------------------------- */

typedef struct numbers {
    uint64_t *values;
    uint32_t count, capacity;
    bool memory_failed;
} numbers_t;

typedef struct names {
    numbers_t segments, checkpoints;
    bool leftovers;
} names_t;

static void numbers_add(numbers_t *numbers, uint64_t value) {
    if (!value) return;
    if (numbers->count == numbers->capacity) {
        uint32_t capacity = numbers->capacity ? numbers->capacity * 2 : 64;
        uint64_t *values = capacity <= 2 * LOG_SEGMENTS_MAX ? realloc(numbers->values, capacity * sizeof *values) : NULL;
        if (!values) {
            numbers->memory_failed = true;
            return;
        }
        numbers->values = values;
        numbers->capacity = capacity;
    }
    numbers->values[numbers->count++] = value;
}

static void name_visit(void *context, const char *name) {
    names_t *names = context;
    numbers_add(&names->segments, format_segment_number(name));
    numbers_add(&names->checkpoints, format_checkpoint_number(name));
    if (strcmp(name, LOG_SEGMENT_TEMPORARY) == 0 || strcmp(name, LOG_CHECKPOINT_TEMPORARY) == 0) names->leftovers = true;
}

static int number_compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void finding_add(recover_t *recover, recover_finding_t finding) { recover->findings[recover->findings_count++] = finding; }

/* A card that stumbles once is asked again: what is judged here may be moved out of the way. */
static int64_t read_patiently(storage_t *storage, int file, uint64_t offset, uint8_t *bytes, uint64_t size) {
    int64_t count = -EIO;
    for (uint32_t tries = 0; count == -EIO && tries < 3; tries++) count = storage->read(storage, file, offset, bytes, size);
    return count;
}

/* Both copies of a segment's header. The better verdict counts, but a newer version in either one stops everything. */
static int header_read(recover_t *recover, uint64_t name_number, segment_header_t *header, uint64_t *size) {
    char name[FORMAT_NAME_BYTES];
    uint8_t room[FORMAT_HEADER_COPY + FORMAT_HEADER_BYTES];
    storage_t *storage = recover->storage;
    format_segment_name(name, name_number);
    int file = storage->open(storage, name, false);
    if (file < 0) return system_error(file);
    int64_t bytes = storage->size(storage, file), got = read_patiently(storage, file, 0, room, sizeof room);
    if (got == -EIO) got = 0; /* a sector that cannot be read is a damaged one */
    storage->close(storage, file);
    if (bytes < 0 || got < 0) return system_error((int)(bytes < 0 ? bytes : got));
    *size = (uint64_t)bytes;
    if (got < (int64_t)sizeof room) {
        finding_add(recover, (recover_finding_t){.kind = RECOVER_HEADER_MISSING, .number = name_number, .bytes = *size});
        return FORMAT_BAD;
    }
    segment_header_t copy;
    int first = format_header_decode(room, header), second = format_header_decode(room + FORMAT_HEADER_COPY, &copy);
    if (first == FORMAT_NEWER || second == FORMAT_NEWER) return LOG_E_VERSION;
    if (first != FORMAT_GOOD && second != FORMAT_GOOD) {
        finding_add(recover, (recover_finding_t){.kind = RECOVER_HEADER_BAD, .number = name_number, .bytes = *size});
        return FORMAT_BAD;
    }
    if (first != second)
        finding_add(recover, (recover_finding_t){.kind = RECOVER_HEADER_COPY,
                                                 .number = name_number,
                                                 .offset = first == FORMAT_GOOD ? FORMAT_HEADER_COPY : 0,
                                                 .bytes = FORMAT_HEADER_BYTES});
    if (first != FORMAT_GOOD) *header = copy;
    return FORMAT_GOOD;
}

static int segments_load(recover_t *recover, const numbers_t *numbers) {
    for (uint32_t i = 0; i < numbers->count; i++) {
        segment_header_t header;
        uint64_t size;
        int verdict = header_read(recover, numbers->values[i], &header, &size);
        if (numbers->values[i] > recover->number_max) recover->number_max = numbers->values[i];
        if (verdict == FORMAT_BAD) continue; /* found and told */
        if (verdict != FORMAT_GOOD) return verdict;
        if (header.number > recover->number_max) recover->number_max = header.number;
        segment_t *segment = segment_new(&header, numbers->values[i], size);
        if (!segment) return BQ_E_MEMORY;
        recover->segments[recover->count++] = segment;
    }
    return BQ_OK;
}

/* The log is the one that most of the segments belong to; of two equals, the one whose segment has the lowest number. */
static uint64_t log_id_of(const recover_t *recover) {
    uint64_t id = 0;
    uint32_t votes = 0; /* Boyer and Moore: whoever has more than half is left over */
    for (uint32_t i = 0; i < recover->count; i++) {
        uint64_t other = recover->segments[i]->header.log_id;
        if (!votes) id = other;
        votes = id == other ? votes + 1 : votes - 1;
    }
    return votes || !recover->count ? id : recover->segments[0]->header.log_id;
}

static int segment_compare(const void *a, const void *b) {
    const segment_t *x = *(segment_t *const *)a, *y = *(segment_t *const *)b;
    if (x->header.number != y->header.number) return x->header.number < y->header.number ? -1 : 1;
    bool x_named = x->name_number == x->header.number, y_named = y->name_number == y->header.number;
    if (x_named != y_named) return x_named ? -1 : 1;
    return x->name_number < y->name_number ? -1 : 1;
}

/* Sort by number and leave out what is not this log's, or is there twice. */
static void segments_judge(recover_t *recover) {
    uint32_t kept = 0;
    if (recover->count) recover->log_id = log_id_of(recover);
    qsort(recover->segments, recover->count, sizeof *recover->segments, segment_compare);
    for (uint32_t i = 0; i < recover->count; i++) {
        segment_t *segment = recover->segments[i];
        bool foreign = segment->header.log_id != recover->log_id;
        bool twice = kept && recover->segments[kept - 1]->header.number == segment->header.number;
        recover_finding_t finding = {.number = segment->name_number, .bytes = segment->file_bytes};
        if (foreign || twice) {
            finding.kind = foreign ? RECOVER_FOREIGN : RECOVER_DUPLICATE;
            finding_add(recover, finding);
            segment_free(segment);
            continue;
        }
        if (segment->name_number != segment->header.number) {
            finding.kind = RECOVER_MISNAMED;
            finding_add(recover, finding);
        }
        recover->segments[kept++] = segment;
    }
    recover->count = kept;
}

/* ---- checkpoints --------------------------------------------------------------------------------------------------- */

/* One checkpoint file: its header and, for the newest, its bytes. FORMAT_GOOD, FORMAT_BAD, or an error of recover_begin. */
static int checkpoint_read(recover_t *recover, uint64_t generation, checkpoint_header_t *header, uint8_t **bytes) {
    char name[FORMAT_NAME_BYTES];
    uint8_t head[FORMAT_CHECKPOINT_BYTES];
    storage_t *storage = recover->storage;
    format_checkpoint_name(name, generation);
    int file = storage->open(storage, name, false);
    if (file < 0) return system_error(file);
    int64_t size = storage->size(storage, file);
    int result = size < 0 ? system_error((int)size) : FORMAT_BAD;
    int64_t got = size >= (int64_t)sizeof head ? read_patiently(storage, file, 0, head, sizeof head) : 0;
    if (got == (int64_t)sizeof head) result = format_checkpoint_decode(head, header);
    if (got < 0 && got != -EIO) result = system_error((int)got);
    bool of_ours = result == FORMAT_GOOD && header->generation == generation && header->size <= LOG_CHECKPOINT_BYTES_MAX &&
                   size == (int64_t)sizeof head + header->size && (!recover->count || header->log_id == recover->log_id);
    if (result == FORMAT_GOOD && !of_ours) result = FORMAT_BAD;
    *bytes = of_ours ? malloc(header->size + 1u) : NULL;
    if (of_ours && !*bytes)
        result = BQ_E_MEMORY;
    else if (of_ours)
        got = read_patiently(storage, file, sizeof head, *bytes, header->size);
    if (result == FORMAT_GOOD && got < 0 && got != -EIO)
        result = system_error((int)got);
    else if (result == FORMAT_GOOD && (got != (int64_t)header->size ||
                                       crc32_update(crc32_update(0, head, 48), *bytes, header->size) != header->payload_crc))
        result = FORMAT_BAD;
    storage->close(storage, file);
    if (result == FORMAT_GOOD) return FORMAT_GOOD;
    free(*bytes);
    *bytes = NULL;
    return result == FORMAT_NEWER ? LOG_E_VERSION : result;
}

static int checkpoints_load(recover_t *recover, const numbers_t *numbers) {
    for (uint32_t i = numbers->count; i-- > 0;) {
        checkpoint_header_t header;
        uint8_t *bytes = NULL;
        int verdict = checkpoint_read(recover, numbers->values[i], &header, &bytes);
        if (verdict == FORMAT_BAD) {
            recover->report.checkpoints_bad++;
            finding_add(recover, (recover_finding_t){.kind = RECOVER_CHECKPOINT_BAD, .number = numbers->values[i]});
            continue;
        }
        if (verdict != FORMAT_GOOD) return verdict;
        if (!recover->checkpoint.generation) {
            recover->checkpoint = header;
            recover->checkpoint_bytes = bytes;
            continue;
        }
        free(bytes);
        recover->generation_before = header.generation;
        recover->keep_before = header.keep_from;
        break; /* two generations are kept; older files are on their way out */
    }
    if (!recover->count) recover->log_id = recover->checkpoint.log_id;
    return BQ_OK;
}

/* ---- beginning ----------------------------------------------------------------------------------------------------- */

static int segment_open(recover_t *recover, uint32_t at) {
    char name[FORMAT_NAME_BYTES];
    segment_t *segment = recover->segments[at];
    if (recover->file >= 0) recover->storage->close(recover->storage, recover->file);
    format_segment_name(name, segment->name_number);
    recover->file = recover->storage->open(recover->storage, name, false);
    if (recover->file < 0) return system_error(recover->file);
    scan_file(&recover->scan, recover->file, segment->file_bytes, &segment->header);
    return BQ_OK;
}

/* The newest segment is the last one with a valid record: those behind it were made ahead and not used, or their first
 * batch never became durable. */
static int newest_find(recover_t *recover) {
    for (uint32_t i = recover->count; i-- > 0;) {
        format_record_t record;
        uint64_t junk_end = 0;
        int error = segment_open(recover, i);
        if (error != BQ_OK) return error;
        if (scan_resync(&recover->scan, 1, &record, &junk_end) == SCAN_RECORD) {
            recover->newest = i;
            return BQ_OK;
        }
        if (recover->scan.error) return system_error(recover->scan.error);
    }
    recover->newest = recover->count;
    return BQ_OK;
}

static int directory_read(recover_t *recover, names_t *names) {
    int error = recover->storage->list(recover->storage, name_visit, names);
    if (error < 0) return system_error(error);
    if (names->segments.memory_failed || names->checkpoints.memory_failed) return BQ_E_MEMORY;
    uint32_t files = names->segments.count + names->checkpoints.count;
    recover->capacity = names->segments.count + 16;
    recover->segments = calloc(recover->capacity, sizeof *recover->segments);
    recover->findings = calloc(2 * files + 1, sizeof *recover->findings);
    if (!recover->segments || !recover->findings) return BQ_E_MEMORY;
    if (names->segments.count) qsort(names->segments.values, names->segments.count, sizeof(uint64_t), number_compare);
    if (names->checkpoints.count) qsort(names->checkpoints.values, names->checkpoints.count, sizeof(uint64_t), number_compare);
    error = segments_load(recover, &names->segments);
    if (error != BQ_OK) return error;
    segments_judge(recover);
    error = checkpoints_load(recover, &names->checkpoints);
    recover->leftovers = names->leftovers;
    recover->generations = names->checkpoints.values;
    recover->generations_count = names->checkpoints.count;
    names->checkpoints.values = NULL;
    return error;
}

int recover_begin(recover_t *recover, storage_t *storage) {
    *recover = (recover_t){.storage = storage, .file = -1};
    names_t names = {0};
    int error = scan_init(&recover->scan, storage, LOG_SCAN_BYTES);
    if (error == BQ_OK) error = directory_read(recover, &names);
    if (error == BQ_OK) error = newest_find(recover);
    free(names.segments.values);
    free(names.checkpoints.values);
    if (error != BQ_OK) {
        recover_free(recover);
        return error;
    }
    for (uint32_t i = 0; i < recover->count; i++) recover->total_bytes += recover->segments[i]->file_bytes;
    recover->report.segments = recover->count;
    recover->report.checkpoint_lsn = recover->checkpoint.lsn;
    recover->at = UINT32_MAX; /* before the first */
    return BQ_OK;
}

void recover_free(recover_t *recover) {
    for (uint32_t i = 0; i < recover->count; i++) segment_free(recover->segments[i]);
    if (recover->file >= 0) recover->storage->close(recover->storage, recover->file);
    free(recover->segments);
    free(recover->findings);
    free(recover->generations);
    free(recover->checkpoint_bytes);
    scan_free(&recover->scan);
    *recover = (recover_t){.file = -1};
}

/* ---- the walk ------------------------------------------------------------------------------------------------------ */

static uint64_t needed_from(const recover_t *recover) {
    return recover->checkpoint.keep_from ? recover->checkpoint.keep_from : 1; /* 0 without a checkpoint too */
}

/* `lsn` is what the log goes on with. What a checkpoint has made superfluous is not lost: a power cut may bring some of the
 * reclaimed segments back and not others. */
static bool lost_before(recover_t *recover, uint64_t lsn, recover_finding_t *finding) {
    uint64_t needed = needed_from(recover);
    uint64_t first = recover->expected > needed ? recover->expected : needed;
    recover->expected = lsn;
    if (first >= lsn) return false;
    *finding = (recover_finding_t){.kind = RECOVER_LOST, .first_lsn = first, .last_lsn = lsn - 1};
    log_report_t *report = &recover->report;
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

/* Everything below the returned LSN was durable when the latest valid record of this segment was written. */
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

static int next_segment(recover_t *recover, recover_finding_t *finding) {
    if (recover->at != UINT32_MAX) recover->done_bytes += recover->segments[recover->at]->file_bytes;
    recover->at++;
    if (recover->at == recover->count) {
        recover->finished = true;
        if (recover->checkpoint.generation && recover->checkpoint.lsn >= recover->expected)
            return lost_before(recover, recover->checkpoint.lsn + 1, finding) ? RECOVER_FINDING : RECOVER_END;
        return RECOVER_END;
    }
    int error = segment_open(recover, recover->at);
    if (error != BQ_OK) return error;
    segment_t *segment = recover->segments[recover->at];
    recover->bound = bound_behind(recover, recover->at);
    recover->proof = 0;
    uint64_t previous = recover->at ? recover->segments[recover->at - 1]->header.number : segment->header.number - 1;
    uint64_t first = segment->header.first_lsn;
    bool superseded = recover->bound && recover->bound <= first; /* what it would jump over is in the segment behind */
    if (first > recover->expected && !superseded && lost_before(recover, first, finding)) return RECOVER_FINDING;
    if (segment->header.number != previous + 1 && recover->segments[recover->at - 1]->records && !first) {
        *finding = (recover_finding_t){.kind = RECOVER_MISSING, .number = previous + 1};
        return RECOVER_FINDING;
    }
    return RECOVER_RECORD; /* go on */
}

static void segment_leave(recover_t *recover) { recover->scan.offset = recover->scan.size; }

/* Nothing valid at the offset. Moves it to where the segment goes on, if it does; true: there is a finding. */
static bool gap_pass(recover_t *recover, recover_finding_t *finding) {
    scan_t *scan = &recover->scan;
    segment_t *segment = recover->segments[recover->at];
    uint64_t begin = scan->offset, junk_end = begin;
    uint64_t expected = recover->expected ? recover->expected : needed_from(recover); /* what is needed was not reclaimed */
    format_record_t record;
    bool torn = recover->at == recover->newest || recover->newest == recover->count || recover->at > recover->newest;
    if (recover->at == recover->newest) {
        if (!recover->proof) recover->proof = proof_of(recover);
        torn = recover->proof <= expected;
    }
    bool found = scan_resync(scan, recover->expected, &record, &junk_end) == SCAN_RECORD;
    if (torn) { /* what is valid behind the gap belongs to the same batch, which nobody was told is durable */
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
        if (found) junk_end = scan->offset; /* zeros before it are as bad */
        if (!found) segment_leave(recover);
        segment->damaged = segment->damaged || junk_end > begin;
#ifdef BUG_TRUNCATE_ON_DAMAGE
        segment_leave(recover);
#endif
    }
    if (junk_end == begin) return false;
    *finding = (recover_finding_t){.kind = torn ? RECOVER_TORN : RECOVER_DAMAGED,
                                   .number = segment->name_number,
                                   .offset = begin,
                                   .bytes = junk_end - begin};
    return true;
}

/* A record that verifies: taken, or the end of what this segment has to say. */
static int record_take(recover_t *recover, const format_record_t *found, const uint8_t *payload, log_record_t *record) {
    segment_t *segment = recover->segments[recover->at];
    uint64_t offset = recover->scan.offset;
    scan_pass(&recover->scan, found);
    segment->end = recover->scan.offset;
    recover->report.clean = found->type == FORMAT_FOOTER && (found->flags & FORMAT_FOOTER_CLEAN) != 0;
    if (found->type == FORMAT_FOOTER) segment_leave(recover);
    if (found->type == FORMAT_FOOTER || found->type == LOG_PAD) return RECOVER_END;
    if (!segment->records++) segment->first_lsn = found->lsn;
    segment->next_lsn = recover->expected = found->lsn + 1;
    segment_mark(segment, found->lsn, offset);
    recover->report.records++;
    recover->report.bytes += found->size;
    *record =
        (log_record_t){.lsn = found->lsn, .bytes = payload, .size = found->size, .type = found->type, .flags = found->flags};
    return RECOVER_RECORD;
}

int recover_next(recover_t *recover, log_record_t *record, recover_finding_t *finding) {
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
            segment_leave(recover); /* the bound is the first LSN of a segment that holds all of this */
            continue;
        }
        if (found.lsn != recover->expected && lost_before(recover, found.lsn, finding)) return RECOVER_FINDING;
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
