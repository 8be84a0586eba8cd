/* wal/reader.c: the read thread: reads records back from the segments, writes checkpoints, deletes segments that are no longer
 * needed.
 *
 * Invariant: a record is returned only if it is durable and its CRCs are correct in this read. While the WAL runs, segments are
 * deleted only here: oldest first, only sealed ones, and only below the LSN that both kept checkpoints need.
 */
#include "wal/wal_internal.h"

#include <errno.h>
#include <stdlib.h>

#include "base/crc32.h"

#define ITEM_BYTES 16u /* [u64 lsn][u32 size][u8 type][u8 flags][u16 0] before a record's bytes */

/* ---- reading back ---------------------------------------------------------------------------------------------------- */

/* Position at which to look for an LSN. A copy from the table, because the WAL thread continues meanwhile. */
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

/* true: *place is set. false: no segment has the LSN; reading can continue at *next_lsn (0: nowhere yet). */
static bool place_find(wal_t *wal, uint64_t lsn, place_t *place, uint64_t *next_lsn) {
    bool found = false;
    monitor_enter(&wal->table);
    uint32_t low = 0, high = wal->count; /* the last segment that begins at or below lsn */
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (wal->segments[middle]->first_lsn <= lsn) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    *next_lsn = low < wal->count ? wal->segments[low]->first_lsn : 0;
    const segment_t *segment = low ? wal->segments[low - 1] : NULL;
    if (segment && lsn < segment->next_lsn) {
        found = true;
        *place = (place_t){.header = segment->header,
                           .name_number = segment->name_number,
                           .next_lsn = segment->next_lsn,
                           .end = segment->end,
                           .offset = mark_before(segment, lsn)};
    }
    monitor_leave(&wal->table);
    return found;
}

static const read_cursor_t *cursor_find(const wal_t *wal, uint64_t lsn, uint64_t number) {
    for (uint32_t i = 0; i < WAL_CURSORS; i++)
        if (wal->cursors[i].lsn == lsn && wal->cursors[i].number == number) return &wal->cursors[i];
    return NULL;
}

static void cursor_note(wal_t *wal, uint64_t lsn) {
    const read_cursor_t *known = cursor_find(wal, lsn, wal->read_number);
    if (known || !wal->read_number) return;
    wal->cursors[wal->cursor_next] = (read_cursor_t){.lsn = lsn, .number = wal->read_number, .offset = wal->read_scan.offset};
    wal->cursor_next = (wal->cursor_next + 1) % WAL_CURSORS;
}

/* Move the scan to the LSN or before it. Bytes of this file that are in the buffer are not read again. */
static int place_open(wal_t *wal, const place_t *place, uint64_t lsn) {
    char name[FORMAT_NAME_BYTES];
    bool same = wal->read_number == place->header.number && !wal->read_scan.error;
    if (wal->read_number != place->header.number) {
        if (wal->read_file >= 0) wal->storage->close(wal->storage, wal->read_file);
        wal->read_number = 0;
        format_segment_name(name, place->name_number);
        wal->read_file = wal->storage->open(wal->storage, name, false);
        if (wal->read_file < 0) return wal->read_file;
        wal->read_number = place->header.number;
    }
    if (same)
        scan_more(&wal->read_scan, place->end);
    else
        scan_file(&wal->read_scan, wal->read_file, place->end, &place->header);
    const read_cursor_t *cursor = cursor_find(wal, lsn, place->header.number);
    wal->read_scan.offset = cursor ? cursor->offset : place->offset;
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
    memcpy(out + ITEM_BYTES, payload, bytes - ITEM_BYTES); /* with the padding, which the CRC has shown to be zeros */
    slot->result.used += (uint32_t)bytes;
    slot->result.next_lsn = record->lsn + 1;
    slot->result.result++;
    return true;
}

/* Records must be skipped. Records read before the gap are returned first; the next read meets the gap again. */
static void gone(read_slot_t *slot, uint64_t next_lsn) {
    if (slot->result.result) return;
    slot->result.result = WAL_E_GONE;
    slot->result.next_lsn = next_lsn;
}

static bool is_data(const format_record_t *record) { return record->type != WAL_PAD && record->type != FORMAT_FOOTER; }

/* The next record is damaged or missing. */
static void read_over_damage(wal_t *wal, read_slot_t *slot, const place_t *place) {
    format_record_t record;
    uint64_t junk_end = 0, next_lsn = place->next_lsn;
    if (scan_resync(&wal->read_scan, slot->result.next_lsn, &record, &junk_end) == SCAN_RECORD && record.lsn < next_lsn)
        next_lsn = record.lsn;
    monitor_enter(&wal->table);
    wal->stats.read_damage++;
    monitor_leave(&wal->table);
    gone(slot, next_lsn);
}

/* Read one segment from result.next_lsn on. true: its end is reached and there is space left, so the next segment can
 * follow. */
static bool segment_read(wal_t *wal, read_slot_t *slot, const place_t *place, uint64_t durable) {
    scan_t *scan = &wal->read_scan;
    format_record_t record;
    const uint8_t *payload;
    while (slot->result.next_lsn < place->next_lsn && slot->result.next_lsn <= durable) {
        scan->ahead = slot->capacity - slot->result.used + FORMAT_RECORD_BYTES; /* more bytes would not be used */
        bool valid = scan_look(scan, &record, &payload) == SCAN_RECORD;
        if (scan->error) {
            if (!slot->result.result) slot->result.result = system_error(scan->error);
            return false;
        }
        if (!valid) scan->ahead = 0;
        if (!valid && scan->offset < scan->size && scan_resync(scan, 0, &record, &(uint64_t){0}) == SCAN_RECORD &&
            record.lsn <= slot->result.next_lsn)
            continue; /* the damage is before the wanted LSN */
        if (!valid || (is_data(&record) && record.lsn > slot->result.next_lsn)) {
            read_over_damage(wal, slot, place);
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

static void slot_fill(wal_t *wal, read_slot_t *slot) {
    uint64_t durable = wal_durable(wal);
    bool more = true;
    slot->result = (wal_read_t){.slot = (uint32_t)(slot - wal->slots), .next_lsn = slot->lsn};
    while (more && slot->result.next_lsn <= durable) {
        place_t place;
        uint64_t next_lsn;
        if (!place_find(wal, slot->result.next_lsn, &place, &next_lsn)) {
            gone(slot, next_lsn ? next_lsn : durable + 1);
            return;
        }
        int error = place_open(wal, &place, slot->result.next_lsn);
        if (error < 0) {
            if (!slot->result.result) slot->result.result = system_error(error);
            return;
        }
        more = segment_read(wal, slot, &place, durable);
    }
}

static void slot_read(wal_t *wal, read_slot_t *slot) {
    uint64_t before = wal->read_scan.read_bytes;
    slot_fill(wal, slot);
    if (slot->result.result > 0) {
        cursor_note(wal, slot->result.next_lsn);
        scan_shrink(&wal->read_scan, WAL_READ_SCAN_BYTES); /* after a large record */
    }
    monitor_enter(&wal->table);
    wal->stats.read_bytes += wal->read_scan.read_bytes - before;
    monitor_leave(&wal->table);
}

/* ---- checkpoints and reclaiming ------------------------------------------------------------------------------------------ */

static int checkpoint_write(wal_t *wal, checkpoint_header_t *header, const uint8_t *bytes) {
    storage_t *storage = wal->storage;
    uint8_t head[FORMAT_CHECKPOINT_BYTES];
    char name[FORMAT_NAME_BYTES];
    header->payload_crc = 0;
    format_checkpoint_encode(head, header);
    header->payload_crc = crc32_update(crc32_update(0, head, 48), bytes, header->size);
    format_checkpoint_encode(head, header);
    format_checkpoint_name(name, header->generation);
    int file = storage->open(storage, WAL_CHECKPOINT_TEMPORARY, true);
    if (file < 0) return file;
    int error = storage->write(storage, file, 0, head, sizeof head);
    if (error >= 0 && header->size) error = storage->write(storage, file, sizeof head, bytes, header->size);
    if (error >= 0) error = storage->sync(storage, file);
    storage->close(storage, file);
    if (error >= 0) error = storage->rename(storage, WAL_CHECKPOINT_TEMPORARY, name);
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

static void checkpoints_drop(wal_t *wal) {
    outdated_t outdated = {.below = wal->generations[1]};
    if (!outdated.below) return;
    wal->storage->list(wal->storage, outdated_visit, &outdated);
    for (uint32_t i = 0; i < outdated.count; i++) {
        char name[FORMAT_NAME_BYTES];
        format_checkpoint_name(name, outdated.numbers[i]);
        wal->storage->unlink(wal->storage, name);
    }
}

/* Remove the oldest segment from the table if it is sealed and not needed. It may be the only one: when a full disk has no
 * space for an active segment, deleting it frees that space. */
static segment_t *oldest_take(wal_t *wal, uint64_t below) {
    segment_t *segment = NULL;
    monitor_enter(&wal->table);
    if (wal->count && wal->segments[0] != wal->active && wal->segments[0]->next_lsn <= below) {
        segment = wal->segments[0];
        wal->count--;
        memmove(wal->segments, wal->segments + 1, wal->count * sizeof *wal->segments);
        wal->stats.bytes -= segment->file_bytes;
        wal->stats.segments--;
        wal->stats.reclaimed_segments++;
    }
    monitor_leave(&wal->table);
    return segment;
}

static void reclaim(wal_t *wal) {
    uint64_t below = wal_keep_from(wal);
    segment_t *segment;
    bool any = false;
    while ((segment = oldest_take(wal, below)) != NULL) {
        char name[FORMAT_NAME_BYTES];
        if (wal->read_number == segment->header.number) {
            wal->storage->close(wal->storage, wal->read_file);
            wal->read_file = -1;
            wal->read_number = 0;
        }
        format_segment_name(name, segment->name_number);
        /* If the file is not deleted, the next recovery finds it. That is harmless. */
        if (ledger_lets_go(wal, segment->header.number)) wal->storage->unlink(wal->storage, name);
        segment_free(segment);
        any = true;
    }
    if (!any) return;
    monitor_enter(&wal->work); /* there may be space now */
    wal->room_came = true;
    monitor_signal(&wal->work);
    monitor_leave(&wal->work);
}

static void checkpoint_run(wal_t *wal, checkpoint_header_t *header, uint8_t *bytes) {
    int error = atomic_load(&wal->failed) ? -EIO : checkpoint_write(wal, header, bytes);
    free(bytes);
    if (error == 0) {
        wal->generations[1] = wal->generations[0];
        wal->keep_below[1] = wal->keep_below[0];
        wal->generations[0] = header->generation;
        wal->keep_below[0] = header->keep_from;
        checkpoints_drop(wal);
        reclaim(wal);
        monitor_enter(&wal->table);
        wal->stats.checkpoint_lsn = header->lsn;
        wal->stats.checkpoints++;
        wal->stats.keep_from = wal_keep_from(wal);
        monitor_leave(&wal->table);
    } else if (error == -ENOSPC || error == -EDQUOT) {
        wal->storage->unlink(wal->storage, WAL_CHECKPOINT_TEMPORARY);
    } else {
        wal_fail(wal, error); /* if the disk fails here, the WAL would fail next */
    }
}

/* ---- the thread -------------------------------------------------------------------------------------------------------------- */

/* Round robin, starting after the slot served last. */
static read_slot_t *slot_asked(wal_t *wal) {
    for (uint32_t i = 1; i <= WAL_READS_MAX; i++) {
        read_slot_t *slot = &wal->slots[(wal->slot_served + i) % WAL_READS_MAX];
        if (slot->state == READ_ASKED) return slot;
    }
    return NULL;
}

/* Wait for work. A checkpoint comes before any read, because reads could go on without end; its bytes and header are moved
 * out. false: stop. */
static bool job_take(wal_t *wal, read_slot_t **slot, checkpoint_header_t *header, uint8_t **bytes) {
    monitor_enter(&wal->reads);
    while (!slot_asked(wal) && !wal->checkpoint_bytes && !wal->reads_stop) {
        wal->reads_wait = true;
        monitor_signal(&wal->reads);
        monitor_wait(&wal->reads, -1);
    }
    wal->reads_wait = false;
    *bytes = wal->checkpoint_bytes;
    *header = wal->checkpoint;
    wal->checkpoint_bytes = NULL;
    *slot = *bytes ? NULL : slot_asked(wal);
    if (*slot) wal->slot_served = (uint32_t)(*slot - wal->slots);
    bool work = *bytes || !wal->reads_stop; /* write the last checkpoint in any case: it shortens the next start */
    monitor_leave(&wal->reads);
    return work;
}

void *read_run(void *argument) {
    wal_t *wal = argument;
    read_slot_t *slot;
    checkpoint_header_t header;
    uint8_t *bytes;
    while (job_take(wal, &slot, &header, &bytes)) {
        if (slot) slot_read(wal, slot);
        if (bytes) checkpoint_run(wal, &header, bytes);
        monitor_enter(&wal->reads);
        if (slot) {
            slot->done_order = ++wal->reads_done;
            slot->state = READ_DONE;
        }
        if (bytes) wal->checkpoint_busy = false;
        monitor_leave(&wal->reads);
        wal_wake(wal);
    }
    return NULL;
}

/* ---- the core's side ------------------------------------------------------------------------------------------------------------ */

int wal_checkpoint(wal_t *wal, uint64_t lsn, const uint8_t *bytes, uint32_t size, uint64_t keep_from) {
    if (atomic_load(&wal->failed)) return WAL_E_FAILED;
    if (lsn > wal_durable(wal)) return BQ_E_ARGUMENT;
    if (size > WAL_CHECKPOINT_BYTES_MAX) return BQ_E_TOO_LARGE;
    uint8_t *copy = malloc(size + 1u);
    if (!copy) return BQ_E_MEMORY;
    if (size) memcpy(copy, bytes, size);
    monitor_enter(&wal->reads);
    bool busy = wal->checkpoint_busy;
    if (!busy) {
        wal->checkpoint_busy = true;
        wal->checkpoint_bytes = copy;
        wal->checkpoint = (checkpoint_header_t){.wal_id = wal->wal_id,
                                                .generation = wal->checkpoint.generation + 1,
                                                .lsn = lsn,
                                                .keep_from = keep_from <= lsn ? keep_from : lsn + 1,
                                                .size = size};
        monitor_signal(&wal->reads);
    }
    monitor_leave(&wal->reads);
    if (busy) free(copy);
    return busy ? BQ_E_AGAIN : BQ_OK;
}

int wal_read_start(wal_t *wal, uint32_t slot, uint64_t lsn, uint8_t *buffer, uint32_t capacity) {
    if (slot >= WAL_READS_MAX || lsn == 0) return BQ_E_ARGUMENT;
    monitor_enter(&wal->reads);
    read_slot_t *read = &wal->slots[slot];
    bool idle = read->state == READ_IDLE;
    if (idle) {
        read->state = READ_ASKED;
        read->lsn = lsn;
        read->buffer = buffer;
        read->capacity = capacity;
        monitor_signal(&wal->reads);
    }
    monitor_leave(&wal->reads);
    return idle ? BQ_OK : BQ_E_AGAIN;
}

bool wal_read_done(wal_t *wal, wal_read_t *read) {
    read_slot_t *oldest = NULL;
    monitor_enter(&wal->reads);
    for (uint32_t i = 0; i < WAL_READS_MAX; i++) {
        read_slot_t *slot = &wal->slots[i];
        if (slot->state == READ_DONE && (!oldest || slot->done_order < oldest->done_order)) oldest = slot;
    }
    if (oldest) {
        *read = oldest->result;
        oldest->state = READ_IDLE;
    }
    monitor_leave(&wal->reads);
    return oldest != NULL;
}
