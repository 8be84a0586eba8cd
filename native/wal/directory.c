/* wal/directory.c: reads the WAL's directory file by file: segments and their headers, checkpoints, temporary files, strange
 * files.
 *
 *      valid headers of a segment              file's length         result
 *      one of the first two (and the last)     as in the last        whole
 *      only the last                           as in the last        beheaded: bytes near the other headers are damaged too
 *      only one of the first two               different             cut
 *      none                                                          headless: moved aside, its records are lost; or a stray file
 *
 * Invariant: nothing here changes the directory. Only recover_keep_aside in wal/recover.c does.
 */
#include "wal/wal_internal.h"

#include <errno.h>
#include <stdlib.h>

#include "base/crc32.h"

/* A file without a header and a number so much higher than the others does not belong to this WAL */
#define NUMBER_STRAY 1000000u

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
    segment->data_bytes = header->minor && file_bytes >= FORMAT_END_BYTES ? file_bytes - FORMAT_END_BYTES : file_bytes;
    segment->end = header->header_bytes;
    segment->marks_capacity = (uint32_t)(bytes / WAL_MARK_BYTES) + 2;
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
    if (count && (offset - segment->marks[count - 1].offset < WAL_MARK_BYTES || count == segment->marks_capacity)) return;
    segment->marks[segment->marks_count++] = (wal_mark_t){.lsn = lsn, .offset = (uint32_t)offset};
}

int64_t segment_end_write(storage_t *storage, int file, const segment_t *segment, uint64_t offset, const uint8_t *bytes,
                          uint32_t size) {
    uint64_t end = offset + size + FORMAT_END_BYTES;
    if (end < FORMAT_APART_BYTES && segment->file_bytes >= FORMAT_APART_BYTES) end = FORMAT_APART_BYTES;
    /* If the write is torn, the existing header stays valid */
    if (end + FORMAT_END_BYTES > segment->file_bytes) end = segment->file_bytes;
    segment_header_t header = segment->header;
    header.segment_bytes = (uint32_t)end;
    uint8_t *room = calloc(1, end - offset);
    if (!room) return -ENOMEM;
    if (size) memcpy(room, bytes, size);
    format_header_encode(room + (end - offset - FORMAT_END_BYTES), &header);
    int error = storage->write(storage, file, offset, room, end - offset);
    free(room);
    return error < 0 ? error : (int64_t)end;
}

int segment_create(storage_t *storage, const segment_header_t *header, int *file) {
    uint8_t room[FORMAT_HEADER_ROOM] = {0};
    format_header_encode(room, header);
    memcpy(room + FORMAT_HEADER_COPY, room, FORMAT_HEADER_BYTES);
    *file = storage->open(storage, WAL_SEGMENT_TEMPORARY, true);
    if (*file < 0) return *file;
    int error = storage->allocate(storage, *file, header->segment_bytes);
    if (error >= 0) error = storage->write(storage, *file, 0, room, sizeof room);
    if (error >= 0) error = storage->write(storage, *file, format_records_end(header), room, FORMAT_END_BYTES);
    if (error >= 0) return 0;
    storage->close(storage, *file);
    storage->unlink(storage, WAL_SEGMENT_TEMPORARY); /* free its blocks for others */
    *file = -1;
    return error;
}

int segment_publish(storage_t *storage, int file, uint64_t number) {
    char name[FORMAT_NAME_BYTES];
    format_segment_name(name, number);
    int error = storage->sync(storage, file);
    if (error >= 0) error = storage->rename(storage, WAL_SEGMENT_TEMPORARY, name);
    if (error >= 0) error = storage->sync_directory(storage);
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
    uint32_t strange; /* similar to the WAL's names, but the WAL does not write them */
    bool leftovers;
} names_t;

static void numbers_add(numbers_t *numbers, uint64_t value) {
    if (!value) return;
    if (numbers->count == numbers->capacity) {
        uint32_t capacity = numbers->capacity ? numbers->capacity * 2 : 64;
        uint64_t *values = capacity <= 2 * WAL_SEGMENTS_MAX ? realloc(numbers->values, capacity * sizeof *values) : NULL;
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
    names->strange += format_name_strange(name);
    if (strcmp(name, WAL_SEGMENT_TEMPORARY) == 0 || strcmp(name, WAL_CHECKPOINT_TEMPORARY) == 0) names->leftovers = true;
}

static int number_compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

static void finding_add(recover_t *recover, recover_finding_t finding) { recover->findings[recover->findings_count++] = finding; }

/* Retry: an SD card may fail once, and a file judged bad here may be moved aside. */
static int64_t read_patiently(storage_t *storage, int file, uint64_t offset, uint8_t *bytes, uint64_t size) {
    int64_t count = -EIO;
    for (uint32_t tries = 0; count == -EIO && tries < 3; tries++) count = storage->read(storage, file, offset, bytes, size);
    return count;
}

/* A segment's file as its headers describe it. */
typedef struct looks {
    segment_header_t header;
    uint64_t size, data_bytes;
    bool beheaded, cut;
} looks_t;

/* The bytes at both ends of a file. An unreadable sector counts as damaged. 0 or -errno. */
static int ends_read(storage_t *storage, int file, uint8_t *room, uint32_t room_size, uint8_t end[FORMAT_END_BYTES],
                     looks_t *looks) {
    int64_t size = storage->size(storage, file);
    if (size < 0) return (int)size;
    looks->size = looks->data_bytes = (uint64_t)size;
    memset(room, 0, room_size);
    memset(end, 0, FORMAT_END_BYTES);
    int64_t got = read_patiently(storage, file, 0, room, room_size);
    if (got < 0 && got != -EIO) return (int)got;
    if (looks->size % 8 || looks->size < FORMAT_HEADER_ROOM + FORMAT_END_BYTES) return 0;
    got = read_patiently(storage, file, looks->size - FORMAT_END_BYTES, end, FORMAT_END_BYTES);
    return got < 0 && got != -EIO ? (int)got : 0;
}

static bool same_segment(const segment_header_t *a, const segment_header_t *b) {
    return a->wal_id == b->wal_id && a->number == b->number && a->salt == b->salt && a->header_bytes == b->header_bytes;
}

static void header_finding(recover_t *recover, enum recover_case kind, uint64_t number, uint64_t offset, uint64_t bytes) {
    finding_add(recover, (recover_finding_t){.kind = kind, .number = number, .offset = offset, .bytes = bytes});
}

/* Decide which of the three headers is valid, and report the invalid ones. A newer version in any of them stops the start. */
static int headers_judge(recover_t *recover, uint64_t number, const uint8_t *room, const uint8_t *end, looks_t *looks) {
    segment_header_t copy, last;
    int first = format_header_decode(room, &looks->header), second = format_header_decode(room + FORMAT_HEADER_COPY, &copy);
    int third = format_header_decode(end, &last);
    if (first == FORMAT_NEWER || second == FORMAT_NEWER || third == FORMAT_NEWER) return WAL_E_VERSION;
    bool begins = first == FORMAT_GOOD || second == FORMAT_GOOD;
    if (first != FORMAT_GOOD && begins) looks->header = copy;
    bool ends = third == FORMAT_GOOD && last.segment_bytes == looks->size && (!begins || same_segment(&last, &looks->header));
    if (looks->size < FORMAT_HEADER_ROOM || (!begins && !ends)) {
        header_finding(recover, looks->size < FORMAT_HEADER_ROOM ? RECOVER_HEADER_MISSING : RECOVER_HEADER_BAD, number, 0,
                       looks->size);
        return FORMAT_BAD;
    }
    if (!begins) looks->header = last;
    looks->beheaded = !begins;
    looks->cut = !ends && looks->header.minor && looks->size != looks->header.segment_bytes;
    if (looks->header.minor && !looks->cut) looks->data_bytes -= FORMAT_END_BYTES;
    if (looks->beheaded)
        header_finding(recover, RECOVER_HEADER_PAGE, number, 0, FORMAT_HEADER_COPY + FORMAT_HEADER_BYTES);
    else if (first != second)
        header_finding(recover, RECOVER_HEADER_COPY, number, first == FORMAT_GOOD ? FORMAT_HEADER_COPY : 0, FORMAT_HEADER_BYTES);
    if (looks->cut)
        header_finding(recover, RECOVER_CUT, number, looks->size, 0);
    else if (looks->header.minor && !ends)
        header_finding(recover, RECOVER_HEADER_COPY, number, looks->data_bytes, FORMAT_END_BYTES);
    return FORMAT_GOOD;
}

static int header_read(recover_t *recover, uint64_t number, looks_t *looks) {
    char name[FORMAT_NAME_BYTES];
    uint8_t room[FORMAT_HEADER_COPY + FORMAT_HEADER_BYTES], end[FORMAT_END_BYTES];
    storage_t *storage = recover->storage;
    format_segment_name(name, number);
    int file = storage->open(storage, name, false);
    if (file == STORAGE_NOT_A_FILE) {
        header_finding(recover, RECOVER_NOT_A_FILE, number, 0, 0);
        return FORMAT_BAD;
    }
    if (file < 0) return system_error(file);
    int error = storage->locked(storage, file) == -EWOULDBLOCK ? WAL_E_LOCKED : 0;
    if (error == 0) error = ends_read(storage, file, room, sizeof room, end, looks);
    storage->close(storage, file);
    if (error == WAL_E_LOCKED) return error;
    return error < 0 ? system_error(error) : headers_judge(recover, number, room, end, looks);
}

static void raise_to(uint64_t *highest, uint64_t number) {
    if (number > *highest) *highest = number;
}

static bool is_headless(const recover_finding_t *finding) {
    return finding->kind == RECOVER_HEADER_BAD || finding->kind == RECOVER_HEADER_MISSING || finding->kind == RECOVER_NOT_A_FILE;
}

/* Files without a header count if this WAL may have created them: their records are missing, and their numbers are taken. */
static void headless_judge(recover_t *recover, const numbers_t *numbers) {
    uint64_t own = recover->number_max, bound = recover->ledger.sequence ? own + 1 : own + NUMBER_STRAY;
    for (uint32_t i = 0; i < recover->findings_count; i++) {
        recover_finding_t *finding = &recover->findings[i];
        if (!is_headless(finding)) continue;
        if (finding->number <= bound)
            raise_to(&recover->headless_max, finding->number);
        else if (finding->kind != RECOVER_NOT_A_FILE)
            finding->kind = RECOVER_STRAY;
    }
    for (uint32_t i = 0; i < numbers->count; i++) /* a new file must not get an existing name */
        if (numbers->values[i] <= own + NUMBER_STRAY) raise_to(&recover->number_max, numbers->values[i]);
}

static int segments_load(recover_t *recover, const numbers_t *numbers) {
    recover->number_max = recover->ledger.created;
    for (uint32_t i = 0; i < numbers->count; i++) {
        looks_t looks = {0};
        int verdict = header_read(recover, numbers->values[i], &looks);
        if (verdict == FORMAT_BAD) continue; /* already reported */
        if (verdict != FORMAT_GOOD) return verdict;
        segment_t *segment = segment_new(&looks.header, numbers->values[i], looks.size);
        if (!segment) return BQ_E_MEMORY;
        segment->data_bytes = looks.data_bytes;
        segment->beheaded = looks.beheaded;
        segment->cut = looks.cut;
        segment->damaged = looks.beheaded || looks.cut;
        recover->segments[recover->count++] = segment;
    }
    return BQ_OK;
}

/* The WAL id that most segments have. If two are equal, the id of the segment with the lowest number. */
static uint64_t wal_id_of(const recover_t *recover) {
    uint64_t id = 0;
    uint32_t votes = 0; /* Boyer-Moore majority vote */
    for (uint32_t i = 0; i < recover->count; i++) {
        uint64_t other = recover->segments[i]->header.wal_id;
        if (!votes) id = other;
        votes = id == other ? votes + 1 : votes - 1;
    }
    return votes || !recover->count ? id : recover->segments[0]->header.wal_id;
}

static int segment_compare(const void *a, const void *b) {
    const segment_t *x = *(segment_t *const *)a, *y = *(segment_t *const *)b;
    if (x->header.number != y->header.number) return x->header.number < y->header.number ? -1 : 1;
    bool x_named = x->name_number == x->header.number, y_named = y->name_number == y->header.number;
    if (x_named != y_named) return x_named ? -1 : 1;
    return x->name_number < y->name_number ? -1 : 1;
}

/* Sort by number. Drop segments of another WAL and duplicates. The WAL id comes from LOCK if LOCK is readable. */
static void segments_judge(recover_t *recover) {
    uint32_t kept = 0;
    recover->wal_id = recover->ledger.sequence ? recover->ledger.wal_id : recover->count ? wal_id_of(recover) : 0;
    qsort(recover->segments, recover->count, sizeof *recover->segments, segment_compare);
    for (uint32_t i = 0; i < recover->count; i++) {
        segment_t *segment = recover->segments[i];
        bool foreign = segment->header.wal_id != recover->wal_id;
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
        raise_to(&recover->number_max, segment->header.number);
        recover->segments[kept++] = segment;
    }
    recover->count = kept;
}

/* ---- checkpoints --------------------------------------------------------------------------------------------------- */

/* One checkpoint file: its header and its bytes. FORMAT_GOOD, FORMAT_BAD, or an error of recover_begin. */
static int checkpoint_read(recover_t *recover, uint64_t generation, checkpoint_header_t *header, uint8_t **bytes) {
    char name[FORMAT_NAME_BYTES];
    uint8_t head[FORMAT_CHECKPOINT_BYTES];
    storage_t *storage = recover->storage;
    format_checkpoint_name(name, generation);
    int file = storage->open(storage, name, false);
    if (file == STORAGE_NOT_A_FILE) return FORMAT_BAD;
    if (file < 0) return system_error(file);
    int64_t size = storage->size(storage, file);
    int result = size < 0 ? system_error((int)size) : FORMAT_BAD;
    int64_t got = size >= (int64_t)sizeof head ? read_patiently(storage, file, 0, head, sizeof head) : 0;
    if (got == (int64_t)sizeof head) result = format_checkpoint_decode(head, header);
    if (got < 0 && got != -EIO) result = system_error((int)got);
    bool of_ours = result == FORMAT_GOOD && header->generation == generation && header->size <= WAL_CHECKPOINT_BYTES_MAX &&
                   size == (int64_t)sizeof head + header->size && (!recover->wal_id || header->wal_id == recover->wal_id);
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
    return result == FORMAT_NEWER ? WAL_E_VERSION : result;
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
        break; /* two generations are kept; older files will be deleted */
    }
    if (!recover->wal_id) recover->wal_id = recover->checkpoint.wal_id;
    recover->generation_max = recover->checkpoint.generation;
    for (uint32_t i = 0; i < numbers->count; i++)
        if (numbers->values[i] <= recover->checkpoint.generation + NUMBER_STRAY)
            raise_to(&recover->generation_max, numbers->values[i]);
    return BQ_OK;
}

/* ---- beginning ----------------------------------------------------------------------------------------------------- */

int recover_open(recover_t *recover, uint32_t at) {
    char name[FORMAT_NAME_BYTES];
    segment_t *segment = recover->segments[at];
    if (recover->file >= 0) recover->storage->close(recover->storage, recover->file);
    format_segment_name(name, segment->name_number);
    recover->file = recover->storage->open(recover->storage, name, false);
    if (recover->file < 0) return system_error(recover->file);
    scan_file(&recover->scan, recover->file, segment->data_bytes, &segment->header);
    return BQ_OK;
}

/* The newest segment is the last one with a valid record. Later ones were preallocated and unused, or their first batch
 * never became durable. */
static int newest_find(recover_t *recover) {
    for (uint32_t i = recover->count; i-- > 0;) {
        format_record_t record;
        uint64_t junk_end = 0;
        int error = recover_open(recover, i);
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
    recover->findings = calloc(4 * files + 1, sizeof *recover->findings); /* of one segment: two headers, its length, its name */
    if (!recover->segments || !recover->findings) return BQ_E_MEMORY;
    if (names->segments.count) qsort(names->segments.values, names->segments.count, sizeof(uint64_t), number_compare);
    if (names->checkpoints.count) qsort(names->checkpoints.values, names->checkpoints.count, sizeof(uint64_t), number_compare);
    error = segments_load(recover, &names->segments);
    if (error != BQ_OK) return error;
    segments_judge(recover);
    headless_judge(recover, &names->segments);
    error = checkpoints_load(recover, &names->checkpoints);
    recover->leftovers = names->leftovers;
    recover->report.strange_files = names->strange;
    recover->generations = names->checkpoints.values;
    recover->generations_count = names->checkpoints.count;
    names->checkpoints.values = NULL;
    return error;
}

static void files_count(recover_t *recover) {
    for (uint32_t i = 0; i < recover->findings_count; i++) {
        switch (recover->findings[i].kind) {
        case RECOVER_HEADER_COPY:
        case RECOVER_HEADER_PAGE:
        case RECOVER_HEADER_BAD:
        case RECOVER_HEADER_MISSING: recover->report.damaged_files++; break;
        case RECOVER_NOT_A_FILE:
        case RECOVER_STRAY:
        case RECOVER_FOREIGN:
        case RECOVER_DUPLICATE:
        case RECOVER_MISNAMED: recover->report.strange_files++; break;
        default: break;
        }
    }
    for (uint32_t i = recover->newest; i < recover->count; i++) /* version 1.0 cuts older ones where they end */
        recover->report.damaged_files += recover->segments[i]->cut;
}

int recover_begin(recover_t *recover, storage_t *storage) {
    *recover = (recover_t){.storage = storage, .file = -1};
    names_t names = {0};
    int error = scan_init(&recover->scan, storage, WAL_SCAN_BYTES);
    int read = error == BQ_OK ? ledger_read(storage, &recover->ledger, &recover->lock_strange) : 0;
    if (read < 0) error = system_error(read);
    if (error == BQ_OK) error = directory_read(recover, &names);
    if (error == BQ_OK) error = newest_find(recover);
    free(names.segments.values);
    free(names.checkpoints.values);
    if (error != BQ_OK) {
        recover_free(recover);
        return error;
    }
    for (uint32_t i = 0; i < recover->count; i++) recover->total_bytes += recover->segments[i]->file_bytes;
    files_count(recover);
    recover->report.strange_files += recover->lock_strange;
    recover->report.note = recover->ledger.note;
    bool last = !recover->count || recover->segments[recover->count - 1]->header.number <= recover->ledger.created;
    recover->report.note_last = last && (recover->ledger.flags & FORMAT_LEDGER_CLEAN) != 0;
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
