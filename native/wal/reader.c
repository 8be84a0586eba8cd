/* wal/reader.c: the read thread: records read back from the segments, checkpoints, and the deletion of what they made superfluous.
 *
 * Invariant: a record is handed out only if it is durable and its CRCs hold now, on this read. Segments are deleted here and
 * nowhere else while the log runs, oldest first, sealed ones only, and only below what both kept checkpoints need.
 */
#include "wal/wal_internal.h"

#include <errno.h>
#include <stdlib.h>

#include "base/crc32.h"

#define ITEM_BYTES 16u /* [u64 lsn][u32 size][u8 type][u8 flags][u16 0] before a record's bytes */

/* ---- reading back ---------------------------------------------------------------------------------------------------- */

/* Where an LSN is to be looked for; copied out of the table, because the log thread goes on meanwhile. */
typedef struct place {
    segment_header_t header;
    uint64_t name_number, next_lsn, end, offset;
} place_t;

static uint64_t mark_before(const segment_t *segment, uint64_t lsn) {
    uint32_t low = 0, high = segment->marks_count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (segment->marks[middle].lsn <= lsn) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return low ? segment->marks[low - 1].offset : segment->header.header_bytes;
}

/* 1: *place filled. 0: no segment has it, and reading can go on at *next_lsn (0: nowhere yet). */
static bool place_find(log_t *log, uint64_t lsn, place_t *place, uint64_t *next_lsn) {
    bool found = false;
    gate_enter(&log->table);
    uint32_t low = 0, high = log->count; /* the last segment that begins at or below lsn */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (log->segments[middle]->first_lsn <= lsn) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    *next_lsn = low < log->count ? log->segments[low]->first_lsn : 0;
    const segment_t *segment = low ? log->segments[low - 1] : NULL;
    if (segment && lsn < segment->next_lsn) {
        found = true;
        *place = (place_t){.header = segment->header,
                           .name_number = segment->name_number,
                           .next_lsn = segment->next_lsn,
                           .end = segment->end,
                           .offset = mark_before(segment, lsn)};
    }
    gate_leave(&log->table);
    return found;
}

static const read_cursor_t *cursor_find(const log_t *log, uint64_t lsn, uint64_t number) {
    for (uint32_t i = 0; i < LOG_CURSORS; i++)
        if (log->cursors[i].lsn == lsn && log->cursors[i].number == number) return &log->cursors[i];
    return NULL;
}

static void cursor_note(log_t *log, uint64_t lsn) {
    const read_cursor_t *known = cursor_find(log, lsn, log->read_number);
    if (known || !log->read_number) return;
    log->cursors[log->cursor_next] = (read_cursor_t){.lsn = lsn, .number = log->read_number, .offset = log->read_scan.offset};
    log->cursor_next = (log->cursor_next + 1) % LOG_CURSORS;
}

/* The scan stands at the LSN or before it. What it holds of the file already need not be read again. */
static int place_open(log_t *log, const place_t *place, uint64_t lsn) {
    char name[FORMAT_NAME_BYTES];
    bool same = log->read_number == place->header.number && !log->read_scan.error;
    if (log->read_number != place->header.number) {
        if (log->read_file >= 0) log->storage->close(log->storage, log->read_file);
        log->read_number = 0;
        format_segment_name(name, place->name_number);
        log->read_file = log->storage->open(log->storage, name, false);
        if (log->read_file < 0) return log->read_file;
        log->read_number = place->header.number;
    }
    if (same)
        scan_more(&log->read_scan, place->end);
    else
        scan_file(&log->read_scan, log->read_file, place->end, &place->header);
    const read_cursor_t *cursor = cursor_find(log, lsn, place->header.number);
    log->read_scan.offset = cursor ? cursor->offset : place->offset;
    return 0;
}

static bool item_put(read_slot_t *slot, const format_record_t *record, const uint8_t *payload) {
    uint64_t bytes = ITEM_BYTES + format_padded(record->size);
    if (bytes > slot->capacity - slot->result.used) return false;
    uint8_t *out = slot->buffer + slot->result.used;
    store_u64(out, record->lsn);
    store_u32(out + 8, record->size);
    out[12] = record->type;
    out[13] = record->flags;
    store_u16(out + 14, 0);
    memcpy(out + ITEM_BYTES, payload, bytes - ITEM_BYTES); /* the padding too: the CRC has shown it to be zeros */
    slot->result.used += (uint32_t)bytes;
    slot->result.next_lsn = record->lsn + 1;
    slot->result.result++;
    return true;
}

/* Reading has to leave records out. What was read before them is handed out first; the next read meets this again. */
static void gone(read_slot_t *slot, uint64_t next_lsn) {
    if (slot->result.result) return;
    slot->result.result = LOG_E_GONE;
    slot->result.next_lsn = next_lsn;
}

static bool is_data(const format_record_t *record) { return record->type != LOG_PAD && record->type != FORMAT_FOOTER; }

/* The record wanted next does not verify, or is not there. */
static void read_over_damage(log_t *log, read_slot_t *slot, const place_t *place) {
    format_record_t record;
    uint64_t junk_end = 0, next_lsn = place->next_lsn;
    if (scan_resync(&log->read_scan, slot->result.next_lsn, &record, &junk_end) == SCAN_RECORD && record.lsn < next_lsn)
        next_lsn = record.lsn;
    gate_enter(&log->table);
    log->stats.read_damage++;
    gate_leave(&log->table);
    gone(slot, next_lsn);
}

/* One segment, from result.next_lsn on. true: at its end with room left, so the next one can follow. */
static bool segment_read(log_t *log, read_slot_t *slot, const place_t *place, uint64_t durable) {
    scan_t *scan = &log->read_scan;
    format_record_t record;
    const uint8_t *payload;
    while (slot->result.next_lsn < place->next_lsn && slot->result.next_lsn <= durable) {
        scan->ahead = slot->capacity - slot->result.used + FORMAT_RECORD_BYTES; /* more would be read for nothing */
        bool valid = scan_look(scan, &record, &payload) == SCAN_RECORD;
        if (scan->error) {
            if (!slot->result.result) slot->result.result = system_error(scan->error);
            return false;
        }
        if (!valid) scan->ahead = 0;
        if (!valid && scan->offset < scan->size && scan_resync(scan, 0, &record, &(uint64_t){0}) == SCAN_RECORD &&
            record.lsn <= slot->result.next_lsn)
            continue; /* damage before the LSN that is wanted */
        if (!valid || (is_data(&record) && record.lsn > slot->result.next_lsn)) {
            read_over_damage(log, slot, place);
            return false;
        }
        if (is_data(&record) && record.lsn == slot->result.next_lsn && !item_put(slot, &record, payload)) {
            if (!slot->result.result) {
                slot->result.result = BQ_E_TOO_LARGE;
                slot->result.used = (uint32_t)(ITEM_BYTES + format_padded(record.size));
            }
            return false;
        }
        scan_pass(scan, &record);
    }
    return slot->result.next_lsn <= durable;
}

static void slot_fill(log_t *log, read_slot_t *slot) {
    uint64_t durable = log_durable(log);
    bool more = true;
    slot->result = (log_read_t){.slot = (uint32_t)(slot - log->slots), .next_lsn = slot->lsn};
    while (more && slot->result.next_lsn <= durable) {
        place_t place;
        uint64_t next_lsn;
        if (!place_find(log, slot->result.next_lsn, &place, &next_lsn)) {
            gone(slot, next_lsn ? next_lsn : durable + 1);
            return;
        }
        int error = place_open(log, &place, slot->result.next_lsn);
        if (error < 0) {
            if (!slot->result.result) slot->result.result = system_error(error);
            return;
        }
        more = segment_read(log, slot, &place, durable);
    }
}

static void slot_read(log_t *log, read_slot_t *slot) {
    uint64_t before = log->read_scan.read_bytes;
    slot_fill(log, slot);
    if (slot->result.result > 0) {
        cursor_note(log, slot->result.next_lsn);
        scan_shrink(&log->read_scan, LOG_READ_SCAN_BYTES); /* a large record has been handed out */
    }
    gate_enter(&log->table);
    log->stats.read_bytes += log->read_scan.read_bytes - before;
    gate_leave(&log->table);
}

/* ---- checkpoints and reclaiming ------------------------------------------------------------------------------------------ */

static int checkpoint_write(log_t *log, checkpoint_header_t *header, const uint8_t *bytes) {
    storage_t *storage = log->storage;
    uint8_t head[FORMAT_CHECKPOINT_BYTES];
    char name[FORMAT_NAME_BYTES];
    header->payload_crc = 0;
    format_checkpoint_encode(head, header);
    header->payload_crc = crc32_update(crc32_update(0, head, 48), bytes, header->size);
    format_checkpoint_encode(head, header);
    format_checkpoint_name(name, header->generation);
    int file = storage->open(storage, LOG_CHECKPOINT_TEMPORARY, true);
    if (file < 0) return file;
    int error = storage->write(storage, file, 0, head, sizeof head);
    if (error >= 0 && header->size) error = storage->write(storage, file, sizeof head, bytes, header->size);
    if (error >= 0) error = storage->sync(storage, file);
    storage->close(storage, file);
    if (error >= 0) error = storage->rename(storage, LOG_CHECKPOINT_TEMPORARY, name);
    if (error >= 0) error = storage->sync_directory(storage);
    return error < 0 ? error : 0;
}

typedef struct outdated {
    uint64_t below;
    uint64_t numbers[16];
    uint32_t count;
} outdated_t;

static void outdated_visit(void *context, const char *name) {
    outdated_t *outdated = context;
    uint64_t number = format_checkpoint_number(name);
    if (number && number < outdated->below && outdated->count < 16) outdated->numbers[outdated->count++] = number;
}

static void checkpoints_drop(log_t *log) {
    outdated_t outdated = {.below = log->generations[1]};
    if (!outdated.below) return;
    log->storage->list(log->storage, outdated_visit, &outdated);
    for (uint32_t i = 0; i < outdated.count; i++) {
        char name[FORMAT_NAME_BYTES];
        format_checkpoint_name(name, outdated.numbers[i]);
        log->storage->unlink(log->storage, name);
    }
}

/* The oldest segment out of the table, if it is sealed and below what is kept. It may be the last one, where a full disk has no
 * room for an active segment: what it gives back makes that. */
static segment_t *oldest_take(log_t *log, uint64_t below) {
    segment_t *segment = NULL;
    gate_enter(&log->table);
    if (log->count && log->segments[0] != log->active && log->segments[0]->next_lsn <= below) {
        segment = log->segments[0];
        log->count--;
        memmove(log->segments, log->segments + 1, log->count * sizeof *log->segments);
        log->stats.bytes -= segment->file_bytes;
        log->stats.segments--;
        log->stats.reclaimed_segments++;
    }
    gate_leave(&log->table);
    return segment;
}

static void reclaim(log_t *log) {
    uint64_t below = log_keep_from(log);
    segment_t *segment;
    bool any = false;
    while ((segment = oldest_take(log, below)) != NULL) {
        char name[FORMAT_NAME_BYTES];
        if (log->read_number == segment->header.number) {
            log->storage->close(log->storage, log->read_file);
            log->read_file = -1;
            log->read_number = 0;
        }
        format_segment_name(name, segment->name_number);
        /* One that stays is found by the next recovery, and is harmless there. */
        if (ledger_lets_go(log, segment->header.number)) log->storage->unlink(log->storage, name);
        segment_free(segment);
        any = true;
    }
    if (!any) return;
    gate_enter(&log->work); /* there may be room now */
    log->room_came = true;
    gate_signal(&log->work);
    gate_leave(&log->work);
}

static void checkpoint_run(log_t *log, checkpoint_header_t *header, uint8_t *bytes) {
    int error = atomic_load(&log->failed) ? -EIO : checkpoint_write(log, header, bytes);
    free(bytes);
    if (error == 0) {
        log->generations[1] = log->generations[0];
        log->keep_below[1] = log->keep_below[0];
        log->generations[0] = header->generation;
        log->keep_below[0] = header->keep_from;
        checkpoints_drop(log);
        reclaim(log);
        gate_enter(&log->table);
        log->stats.checkpoint_lsn = header->lsn;
        log->stats.checkpoints++;
        log->stats.keep_from = log_keep_from(log);
        gate_leave(&log->table);
    } else if (error == -ENOSPC || error == -EDQUOT) {
        log->storage->unlink(log->storage, LOG_CHECKPOINT_TEMPORARY);
    } else {
        log_fail(log, error); /* a disk that fails here fails the log next */
    }
}

/* ---- the thread -------------------------------------------------------------------------------------------------------------- */

/* In turn, beginning behind the one served last. */
static read_slot_t *slot_asked(log_t *log) {
    for (uint32_t i = 1; i <= LOG_READS_MAX; i++) {
        read_slot_t *slot = &log->slots[(log->slot_served + i) % LOG_READS_MAX];
        if (slot->state == READ_ASKED) return slot;
    }
    return NULL;
}

/* Wait for work: a checkpoint (its bytes and header moved out) before any read, which could go on for ever. false: stop. */
static bool job_take(log_t *log, read_slot_t **slot, checkpoint_header_t *header, uint8_t **bytes) {
    gate_enter(&log->reads);
    while (!slot_asked(log) && !log->checkpoint_bytes && !log->reads_stop) {
        log->reads_wait = true;
        gate_signal(&log->reads);
        gate_wait(&log->reads, -1);
    }
    log->reads_wait = false;
    *bytes = log->checkpoint_bytes;
    *header = log->checkpoint;
    log->checkpoint_bytes = NULL;
    *slot = *bytes ? NULL : slot_asked(log);
    if (*slot) log->slot_served = (uint32_t)(*slot - log->slots);
    bool work = *bytes || !log->reads_stop; /* the last checkpoint is still written: it makes the next start short */
    gate_leave(&log->reads);
    return work;
}

void *read_run(void *argument) {
    log_t *log = argument;
    read_slot_t *slot;
    checkpoint_header_t header;
    uint8_t *bytes;
    while (job_take(log, &slot, &header, &bytes)) {
        if (slot) slot_read(log, slot);
        if (bytes) checkpoint_run(log, &header, bytes);
        gate_enter(&log->reads);
        if (slot) {
            slot->done_order = ++log->reads_done;
            slot->state = READ_DONE;
        }
        if (bytes) log->checkpoint_busy = false;
        gate_leave(&log->reads);
        log_wake(log);
    }
    return NULL;
}

/* ---- the core's side ------------------------------------------------------------------------------------------------------------ */

int log_checkpoint(log_t *log, uint64_t lsn, const uint8_t *bytes, uint32_t size, uint64_t keep_from) {
    if (atomic_load(&log->failed)) return LOG_E_FAILED;
    if (lsn > log_durable(log)) return BQ_E_ARGUMENT;
    if (size > LOG_CHECKPOINT_BYTES_MAX) return BQ_E_TOO_LARGE;
    uint8_t *copy = malloc(size + 1u);
    if (!copy) return BQ_E_MEMORY;
    if (size) memcpy(copy, bytes, size);
    gate_enter(&log->reads);
    bool busy = log->checkpoint_busy;
    if (!busy) {
        log->checkpoint_busy = true;
        log->checkpoint_bytes = copy;
        log->checkpoint = (checkpoint_header_t){.log_id = log->log_id,
                                                .generation = log->checkpoint.generation + 1,
                                                .lsn = lsn,
                                                .keep_from = keep_from <= lsn ? keep_from : lsn + 1,
                                                .size = size};
        gate_signal(&log->reads);
    }
    gate_leave(&log->reads);
    if (busy) free(copy);
    return busy ? BQ_E_AGAIN : BQ_OK;
}

int log_read_start(log_t *log, uint32_t slot, uint64_t lsn, uint8_t *buffer, uint32_t capacity) {
    if (slot >= LOG_READS_MAX || lsn == 0) return BQ_E_ARGUMENT;
    gate_enter(&log->reads);
    read_slot_t *read = &log->slots[slot];
    bool idle = read->state == READ_IDLE;
    if (idle) {
        read->state = READ_ASKED;
        read->lsn = lsn;
        read->buffer = buffer;
        read->capacity = capacity;
        gate_signal(&log->reads);
    }
    gate_leave(&log->reads);
    return idle ? BQ_OK : BQ_E_AGAIN;
}

bool log_read_done(log_t *log, log_read_t *read) {
    read_slot_t *oldest = NULL;
    gate_enter(&log->reads);
    for (uint32_t i = 0; i < LOG_READS_MAX; i++) {
        read_slot_t *slot = &log->slots[i];
        if (slot->state == READ_DONE && (!oldest || slot->done_order < oldest->done_order)) oldest = slot;
    }
    if (oldest) {
        *read = oldest->result;
        oldest->state = READ_IDLE;
    }
    gate_leave(&log->reads);
    return oldest != NULL;
}
