/* wal/tail.c: where a WAL goes on after a start: the doubtful tail carried over into a new segment, as large as the disk lets it be.
 *
 *      room for          the new segment holds               what goes on
 *      a segment         the tail, and a segment's room      everything, as far as quota and reserve let it
 *      less              the tail, and a batch's room        acks and the like; publishes wait for room for more segments
 *      the tail          the tail                            reading; acks are kept in memory
 *      nothing           there is none                       reading, up to the tail; the WAL thread looks for room
 *
 * Invariant: the tail is served only after this process has synced it, in a segment whose directory entry is synced; until then
 * `durable` stays before it, or where the newest checkpoint says. What is done on the way leaves a directory that recovers to the same records.
 */
#include "wal/wal_internal.h"

#include <errno.h>
#include <stdlib.h>

#define TRIM_BYTES 4096u /* on a full disk every block counts */

/* No more than one batch was ever unsynced; two are taken. Reading them proves nothing about the disk: the page cache may hold
 * what the disk refused. After an orderly end there is no tail. */
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

/* One record behind the others of the new segment. It says place 0: it is durable once the segment has its name. */
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
    /* It was all there when the WAL was opened: to go on without the rest would be to lose it in silence. */
    return error == 0 && segment->next_lsn != wal->tail.source->next_lsn ? -EIO : error;
}

/* Copy the tail behind the new segment's header. */
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

/* A last record that proves all before it durable, and fills the block. */
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

/* Complete on disk before it has its name. On an error nothing of it is left, unless only its name is not synced: such a one is
 * replaced by the next try, or found by the next start, which then has the tail twice. */
static int segment_write(wal_t *wal, segment_t *segment, uint64_t next_lsn, int *file) {
    storage_t *storage = wal->storage;
    int error = segment_create(storage, &segment->header, file);
    if (error < 0) return error;
    if (wal->tail.source) error = tail_copy(wal, segment, *file);
    segment->next_lsn = next_lsn; /* which a checkpoint may have put beyond the last record */
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
    if (header.batch_bytes < carried) header.batch_bytes = carried; /* a record of the tail may be larger than any that is new */
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

/* What a segment of each kind takes. The tail needs no more than what it lies in now, a last record and a footer behind it. */
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

/* As large as there is room for. A short one leaves what a checkpoint takes, because that is what makes room; one for the tail
 * alone is worth having only if there is a tail. `late`: no file is made ten times a second only to find that it does not fit.
 * -ENOSPC: not even that. */
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
    if (segment->damaged) /* the only other copy of its bytes may have been cut short */
        recover_keep_aside(recover, &finding);
    else
        wal->storage->unlink(wal->storage, name);
}

static bool was_never_used(const recover_t *recover, uint32_t at) {
    const segment_t *segment = recover->segments[at];
    return (at > recover->newest || recover->newest >= recover->count) && !segment->records && !segment->header.first_lsn;
}
/* The ledger says that the newest segment in use is sealed and the one behind it is there, and that one is empty and is to go: the
 * ledger is told before. */
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

/* Leave out segments that nothing is taken from: made ahead and unused, or carried over by an earlier recovery. Their files go
 * too, before the new segment is durable only those without a record (they may be the room it needs): the others may be the only
 * ones that the disk really has. */
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

/* Cut a file where its records end. The header behind them is on the disk before the length is: a file that does not end in one has
 * been cut by somebody else. */
static void segment_trim(storage_t *storage, segment_t *segment, int file) {
    int64_t size = (int64_t)segment->end;
    if (segment->header.minor) {
        size = segment_end_write(storage, file, segment, segment->end, NULL, 0);
        if (size >= 0 && storage->sync_data(storage, file) < 0) return;
    }
    if (size < 0 || size >= (int64_t)segment->file_bytes || storage->truncate(storage, file, (uint64_t)size) < 0) return;
    segment->file_bytes = (uint64_t)size;
}

/* Give back what was allocated for records that never came, where it is `least` or more: a broker killed again and again would
 * fill the disk with it. Damaged segments stay as they are. */
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

/* From here on the tail is read in the new segment, and in no other. */
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

/* Without a new segment: what comes before the tail, and what a checkpoint speaks of, which is written only of what is durable. */
static uint64_t sure_lsn(wal_t *wal, const recover_t *recover) {
    uint64_t checkpoint_lsn = recover->checkpoint.lsn;
    if (checkpoint_lsn + 1 >= wal->next_lsn) wal->tail = (tail_t){.first_lsn = wal->next_lsn}; /* all of it */
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
    if (recover->lock_strange) { /* somebody else's bytes: they are not written over */
        storage->rename(storage, WAL_LOCK_NAME, "aside-" WAL_LOCK_NAME);
        storage->lock(storage, WAL_LOCK_NAME);
    }
    segments_leave_out(wal, recover, was_never_used, ledger_forgets_preallocated(wal, recover));
    wal->tail = tail_of(recover, wal->next_lsn);
    wal->checkpoint_room = 2 * (FORMAT_CHECKPOINT_BYTES + (uint64_t)recover->checkpoint.size) + 2 * TRIM_BYTES;
    int error = active_begin(wal, wal->next_lsn, false, &active);
    if (error == -ENOSPC) { /* what the segments that there are do not need is room as well */
        segments_trim(wal, recover, TRIM_BYTES);
        error = active_begin(wal, wal->next_lsn, false, &active);
    }
    if (error == -ENOSPC) error = storage->sync_directory(storage); /* the newest checkpoint's name, at least */
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
    uint64_t next_lsn = atomic_load(&wal->shown_next_lsn); /* nothing could be appended meanwhile */
    int error = wal_table_grow(wal) ? active_begin(wal, next_lsn, true, &active) : -ENOSPC;
    if (error < 0) return error == -ENOMEM ? -ENOSPC : error; /* memory comes back like disk space */
    active_take(wal, active);
    atomic_store_explicit(&wal->durable, next_lsn - 1, memory_order_release);
    return 0;
}
