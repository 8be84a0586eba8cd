/* wal/tail.c: the start of the WAL. The last records may not be durable (the tail). They are copied into a new segment, as
 * large as the disk allows.
 *
 *      space for         the new segment holds               what works
 *      a segment         the tail, and a whole segment       everything, within quota and reserve
 *      less              the tail, and one batch             acks and similar; publishes wait for space for more segments
 *      the tail          the tail                            reading; acks are kept in memory
 *      nothing           there is none                       reading, up to the tail; the WAL thread waits for space
 *
 * Invariant: the tail is served only after this process has synced it, in a segment whose directory entry is synced. Until then
 * `durable` stays before the tail, or at the LSN of the newest checkpoint. After each step the directory still recovers to the
 * same records.
 */
#include "wal/wal_internal.h"

#include <errno.h>
#include <stdlib.h>

#define TRIM_BYTES 4096u /* on a full disk every block counts */

/* At most one batch was unsynced; two are taken. Reading the records back does not prove that they are on disk: they may
 * exist only in the page cache. After a clean close there is no tail. */
static tail_t tail_of(const recover_t *recover, uint64_t next_lsn) {
    tail_t tail = {.first_lsn = next_lsn};
    for (uint32_t i = recover->count; i-- > 0 && !tail.source && !recover->report.clean;)
        if (recover->segments[i]->records) tail.source = recover->segments[i];
    if (!tail.source) return tail;
    uint64_t doubtful = 2ull * tail.source->header.batch_bytes;
    uint64_t from = tail.source->end > doubtful ? tail.source->end - doubtful : 0;
    uint32_t mark = tail.source->marks_count;
    while (mark > 1 && tail.source->marks[mark - 1].offset > from) mark--;
    tail.offset = tail.source->marks[mark - 1].offset;
    tail.first_lsn = tail.source->marks[mark - 1].lsn;
    tail.whole = mark == 1;
    return tail;
}

/* ---- the new segment --------------------------------------------------------------------------------------------------- */

/* Append one record to the new segment. Its place is 0, because it is durable as soon as the segment has its name. */
static int record_carry(wal_t *wal, segment_t *segment, int file, uint8_t *room, format_record_t record, const uint8_t *payload) {
    uint64_t bytes = FORMAT_RECORD_BYTES + format_padded(record.size);
    record.place = 0;
    format_record_begin(room, &record);
    memcpy(room + FORMAT_RECORD_BYTES, payload, bytes - FORMAT_RECORD_BYTES);
    format_record_seal(room, format_seed(&segment->header));
    int error = wal->storage->write(wal->storage, file, segment->end, room, bytes);
    segment_mark(segment, record.lsn, segment->end);
    segment->end += bytes;
    segment->records++;
    segment->next_lsn = record.lsn + 1;
    return error < 0 ? error : 0;
}

static int records_carry(wal_t *wal, segment_t *segment, int file, scan_t *scan, uint8_t *room) {
    format_record_t record;
    const uint8_t *payload;
    uint64_t junk = 0;
    int error = 0;
    while (error == 0 && scan_resync(scan, segment->next_lsn, &record, &junk) == SCAN_RECORD &&
           scan_look(scan, &record, &payload) == SCAN_RECORD) {
        if (record.type != WAL_PAD && record.type != FORMAT_FOOTER)
            error = record_carry(wal, segment, file, room, record, payload);
        scan_pass(scan, &record);
    }
    if (error == 0) error = scan->error;
    /* All records were readable when the WAL was opened. Continuing without some of them would lose them silently. */
    return error == 0 && segment->next_lsn != wal->tail.source->next_lsn ? -EIO : error;
}

/* Copy the tail into the new segment. */
static int tail_copy(wal_t *wal, segment_t *segment, int file) {
    const tail_t *tail = &wal->tail;
    char name[FORMAT_NAME_BYTES];
    scan_t scan = {0};
    format_segment_name(name, tail->source->name_number);
    int source = wal->storage->open(wal->storage, name, false);
    if (source < 0) return source;
    uint8_t *room = malloc(FORMAT_RECORD_BYTES + format_padded(tail->source->header.batch_bytes));
    int error = room && scan_init(&scan, wal->storage, WAL_SCAN_BYTES / 4) == BQ_OK ? 0 : -ENOMEM;
    if (error == 0) {
        scan_file(&scan, source, tail->source->end, &tail->source->header);
        scan.offset = tail->offset;
        error = records_carry(wal, segment, file, &scan, room);
    }
    scan_free(&scan);
    free(room);
    wal->storage->close(wal->storage, source);
    return error;
}

/* Append a pad record. It proves that everything before it is durable, and it fills the block. */
static int tail_end(wal_t *wal, segment_t *segment, int file) {
    uint32_t block = wal->config.block_bytes ? wal->config.block_bytes : 8;
    uint64_t bytes = FORMAT_RECORD_BYTES + (block - (segment->end + FORMAT_RECORD_BYTES) % block) % block;
    uint8_t *pad = calloc(1, bytes);
    if (!pad) return -ENOMEM;
    format_record_begin(
        pad, &(format_record_t){.type = WAL_PAD, .size = (uint32_t)bytes - FORMAT_RECORD_BYTES, .lsn = segment->next_lsn});
    format_record_seal(pad, format_seed(&segment->header));
    int error = wal->storage->write(wal->storage, file, segment->end, pad, bytes);
    free(pad);
    segment->end += bytes;
    return error < 0 ? error : 0;
}

/* The segment is complete on disk before it gets its name. After an error nothing of it remains. Exception: the name exists
 * but is not synced. Then the next try replaces the segment, or the next start finds it and has the tail twice. */
static int segment_write(wal_t *wal, segment_t *segment, uint64_t next_lsn, int *file) {
    storage_t *storage = wal->storage;
    int error = segment_create(storage, &segment->header, file);
    if (error < 0) return error;
    if (wal->tail.source) error = tail_copy(wal, segment, *file);
    segment->next_lsn = next_lsn; /* a checkpoint may have moved this beyond the last record */
    if (error == 0 && wal->tail.source) error = tail_end(wal, segment, *file);
    if (error == 0) error = segment_publish(storage, *file, segment->header.number);
    if (error == 0) return 0;
    storage->close(storage, *file);
    storage->unlink(storage, WAL_SEGMENT_TEMPORARY);
    return error;
}

static int segment_begin(wal_t *wal, uint64_t bytes, uint64_t next_lsn, segment_t **active) {
    segment_header_t header;
    int file, error = wal_header_make(wal, &header, wal->tail.first_lsn, (uint32_t)bytes);
    if (error < 0) return error;
    uint32_t carried = wal->tail.source ? wal->tail.source->header.batch_bytes : 0;
    if (header.batch_bytes < carried) header.batch_bytes = carried; /* a record of the tail may be larger than new records */
    segment_t *segment = segment_new(&header, header.number, bytes);
    if (!segment) return -ENOMEM;
    segment->first_lsn = segment->next_lsn = header.first_lsn;
    error = segment_write(wal, segment, next_lsn, &file);
    if (error < 0) {
        segment_free(segment);
        return error == -EDQUOT ? -ENOSPC : error;
    }
    wal->number_next++;
    error = ledger_begun(wal, segment, segment);
    if (error < 0) {
        wal->storage->close(wal->storage, file);
        segment_free(segment);
        return error;
    }
    wal->active_file = file;
    wal->position = segment->end;
    wal->segment_records = segment->records;
    *active = segment;
    return 0;
}

/* ---- its size ---------------------------------------------------------------------------------------------------------- */

enum { SIZE_WHOLE, SIZE_SHORT, SIZE_TAIL, SIZES };

/* Bytes needed for each kind of segment. The tail needs its present size, a last record and a footer. */
static void sizes_fill(const wal_t *wal, uint64_t sizes[SIZES]) {
    uint64_t carried = wal->tail.source ? wal->tail.source->end - wal->tail.offset : 0, whole = wal->config.segment_bytes;
    uint64_t block = wal->config.block_bytes ? wal->config.block_bytes : 8;
    uint64_t least = whole < FORMAT_APART_BYTES ? 0 : FORMAT_APART_BYTES;
    uint64_t tail = wal_header_bytes(wal) + carried + FORMAT_RECORD_BYTES + block + FORMAT_FOOTER_BYTES + FORMAT_END_BYTES;
    uint64_t more = format_padded(tail + wal_batch_room(wal) + wal_waste_bytes_max(wal));
    sizes[SIZE_TAIL] = tail > least ? tail : least;
    sizes[SIZE_SHORT] = more > least ? more : least;
    sizes[SIZE_WHOLE] = carried && sizes[SIZE_SHORT] > whole ? sizes[SIZE_SHORT] : whole;
}

/* Create the largest segment that fits. A short one leaves space for a checkpoint, because a checkpoint frees space. A
 * segment for the tail alone is useful only if there is a tail. `late`: check the free space first, so that no file is
 * created on every retry. -ENOSPC: none fits. */
static int active_begin(wal_t *wal, uint64_t next_lsn, bool late, segment_t **active) {
    uint64_t sizes[SIZES], free_bytes = (uint64_t)wal_free_look(wal);
    int error = -ENOSPC;
    sizes_fill(wal, sizes);
    for (uint32_t i = SIZE_WHOLE; i < SIZES && error == -ENOSPC; i++) {
        if (i != SIZE_WHOLE) atomic_store(&wal->full, true);
        if (i != SIZE_WHOLE && sizes[i] >= sizes[i - 1]) continue;
        if (i == SIZE_TAIL && !wal->tail.source) continue;
        if ((late || i == SIZE_SHORT) && free_bytes < sizes[i] + (i == SIZE_TAIL ? 0 : wal->checkpoint_room)) continue;
        error = segment_begin(wal, sizes[i], next_lsn, active);
    }
    return error;
}

/* ---- the segments there are -------------------------------------------------------------------------------------------- */

static void file_drop(wal_t *wal, recover_t *recover, const segment_t *segment) {
    char name[FORMAT_NAME_BYTES];
    recover_finding_t finding = {.kind = RECOVER_HEADER_BAD, .number = segment->name_number};
    format_segment_name(name, segment->name_number);
    if (segment->damaged) /* the only other copy of its bytes may be incomplete */
        recover_keep_aside(recover, &finding);
    else
        wal->storage->unlink(wal->storage, name);
}

static bool was_never_used(const recover_t *recover, uint32_t at) {
    const segment_t *segment = recover->segments[at];
    return (at > recover->newest || recover->newest >= recover->count) && !segment->records && !segment->header.first_lsn;
}
/* If the ledger says that the newest used segment is sealed and the next, empty one exists, change the ledger before the
 * empty segment is deleted. true: it may be deleted. */
static bool ledger_forgets_preallocated(wal_t *wal, const recover_t *recover) {
    const ledger_t *ledger = &wal->ledger;
    const segment_t *newest = recover->newest < recover->count ? recover->segments[recover->newest] : NULL;
    if (!newest || !newest->sealed || !newest->header.minor) return true;
    bool is_known = !ledger->sequence || (ledger->active == newest->header.number && ledger->created != ledger->active);
    if (!is_known || recover->newest + 1 == recover->count) return true;
    int error = ledger_begun(wal, newest, newest);
    return error == 0 && (!wal->ledger.sequence || wal->ledger.created == newest->header.number);
}

static bool has_no_records(const recover_t *recover, uint32_t at) { return !recover->segments[at]->records; }

/* Drop segments from which no record is taken: preallocated and unused, or copied by an earlier recovery. `drop` deletes
 * their files too. Before the new segment is durable, only files without a record may be deleted (to free space for it): the
 * others may hold the only durable copy. */
static void segments_leave_out(wal_t *wal, recover_t *recover, bool (*leaves)(const recover_t *, uint32_t), bool drop) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < recover->count; i++) {
        segment_t *segment = recover->segments[i];
        if (leaves(recover, i)) {
            if (drop) file_drop(wal, recover, segment);
            segment_free(segment);
        } else {
            recover->segments[kept++] = segment;
        }
    }
    recover->count = kept;
}

/* Cut a file after its records. The header at the new end is synced before the length changes. So a file without a header at
 * its end was cut by somebody else. */
static void segment_trim(storage_t *storage, segment_t *segment, int file) {
    int64_t size = (int64_t)segment->end;
    if (segment->header.minor) {
        size = segment_end_write(storage, file, segment, segment->end, NULL, 0);
        if (size >= 0 && storage->sync_data(storage, file) < 0) return;
    }
    if (size < 0 || size >= (int64_t)segment->file_bytes || storage->truncate(storage, file, (uint64_t)size) < 0) return;
    segment->file_bytes = (uint64_t)size;
}

/* Free the unused end of segments if it has at least `least` bytes. Otherwise a broker that is killed repeatedly would fill
 * the disk. Damaged segments are not changed. */
static void segments_trim(wal_t *wal, const recover_t *recover, uint64_t least) {
    storage_t *storage = wal->storage;
    for (uint32_t i = 0; i < recover->count; i++) {
        segment_t *segment = recover->segments[i];
        char name[FORMAT_NAME_BYTES];
        if (segment->damaged || segment->file_bytes < segment->end + FORMAT_END_BYTES + least) continue;
        format_segment_name(name, segment->name_number);
        int file = storage->open(storage, name, false);
        if (file < 0) continue;
        segment_trim(storage, segment, file);
        storage->close(storage, file);
    }
}

static void table_fill(wal_t *wal, recover_t *recover) {
    wal->segments = recover->segments;
    wal->count = recover->count;
    wal->capacity = recover->capacity;
    recover->segments = NULL;
    recover->count = 0;
    for (uint32_t i = 0; i < wal->count; i++) wal->stats.bytes += wal->segments[i]->file_bytes;
    wal->stats.segments = wal->count;
}

/* From now on the tail is read only from the new segment. */
static void active_take(wal_t *wal, segment_t *active) {
    monitor_enter(&wal->table);
    if (wal->tail.source) wal->tail.source->next_lsn = wal->tail.first_lsn;
    wal->active = active;
    wal->segments[wal->count++] = active;
    wal->stats.bytes += active->file_bytes;
    wal->stats.segments++;
    monitor_leave(&wal->table);
    wal->tail.source = NULL;
}

/* ---- the start --------------------------------------------------------------------------------------------------------- */

/* The durable LSN without a new segment: the records before the tail, and those covered by a checkpoint, which is only
 * written for durable records. */
static uint64_t sure_lsn(wal_t *wal, const recover_t *recover) {
    uint64_t checkpoint_lsn = recover->checkpoint.lsn;
    /* The checkpoint covers everything */
    if (checkpoint_lsn + 1 >= wal->next_lsn) wal->tail = (tail_t){.first_lsn = wal->next_lsn};
    return checkpoint_lsn >= wal->tail.first_lsn ? checkpoint_lsn : wal->tail.first_lsn - 1;
}

int wal_begin(wal_t *wal, recover_t *recover) {
    storage_t *storage = wal->storage;
    segment_t *active = NULL;
    if (recover->leftovers) {
        storage->unlink(storage, WAL_SEGMENT_TEMPORARY);
        storage->unlink(storage, WAL_CHECKPOINT_TEMPORARY);
    }
    if (recover->file >= 0) storage->close(storage, recover->file);
    recover->file = -1;
    if (recover->lock_strange) { /* do not overwrite data of another program */
        storage->rename(storage, WAL_LOCK_NAME, "aside-" WAL_LOCK_NAME);
        storage->lock(storage, WAL_LOCK_NAME);
    }
    segments_leave_out(wal, recover, was_never_used, ledger_forgets_preallocated(wal, recover));
    wal->tail = tail_of(recover, wal->next_lsn);
    wal->checkpoint_room = 2 * (FORMAT_CHECKPOINT_BYTES + (uint64_t)recover->checkpoint.size) + 2 * TRIM_BYTES;
    int error = active_begin(wal, wal->next_lsn, false, &active);
    if (error == -ENOSPC) { /* the unused ends of the segments are space too */
        segments_trim(wal, recover, TRIM_BYTES);
        error = active_begin(wal, wal->next_lsn, false, &active);
    }
    if (error == -ENOSPC) error = storage->sync_directory(storage); /* makes at least the newest checkpoint's name durable */
    if (error < 0) return error;
    if (active && wal->tail.whole) wal->tail.source->records = 0;
    if (active && wal->tail.whole) wal->tail.source = NULL;
    wal->sure_lsn = active ? wal->next_lsn - 1 : sure_lsn(wal, recover);
    bool told = active && (!wal->ledger.sequence || wal->ledger.active == active->header.number);
    segments_leave_out(wal, recover, has_no_records, told);
    if (active) segments_trim(wal, recover, wal->config.segment_bytes / 8);
    table_fill(wal, recover);
    if (active) active_take(wal, active);
    return 0;
}

int wal_begin_late(wal_t *wal) {
    segment_t *active = NULL;
    uint64_t next_lsn = atomic_load(&wal->shown_next_lsn); /* nothing could be appended in the meantime */
    int error = wal_table_grow(wal) ? active_begin(wal, next_lsn, true, &active) : -ENOSPC;
    if (error < 0) return error == -ENOMEM ? -ENOSPC : error; /* retry later, as for disk space */
    active_take(wal, active);
    atomic_store_explicit(&wal->durable, next_lsn - 1, memory_order_release);
    return 0;
}
