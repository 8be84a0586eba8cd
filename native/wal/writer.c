/* wal/writer.c: the writer: the gathering batch, the thread that commits it, preallocated segments, quota and reserve; opening
 * and closing.
 *
 * The core copies records into one of two buffers. wal_commit gives that buffer to the WAL thread, and the other one gathers.
 * The WAL thread seals the records (CRCs), writes and syncs them. A batch that does not fit into the segment is written in
 * parts, and a segment is sealed and synced before the next one is used. After each sync `durable` rises.
 *
 * Invariant: `durable` rises only after fdatasync returned 0. Every error except a full disk ends in wal_fail. A write that
 * found the disk full is repeated (it overwrites the same bytes). A sync is never repeated.
 */
#include "wal/wal_internal.h"

#include <errno.h>
#include <stdlib.h>

#define LETTER_MORE_BYTES 1024u /* the most that a dead letter adds to its message */

static const uint32_t sync_bounds_us[7] = {100, 300, 1000, 3000, 10000, 30000, 100000};

void wal_wake(wal_t *wal) {
    if (wal->config.wake) wal->config.wake(wal->config.wake_context);
}

/* Only the first error counts. Its batch is dropped; it was never reported as durable. */
void wal_fail(wal_t *wal, int error) {
    int32_t none = 0;
    if (atomic_compare_exchange_strong(&wal->failed, &none, -error)) wal_wake(wal);
}

static int wal_sync_data(wal_t *wal, int file) {
    if (wal->config.no_sync) return 0;
    uint64_t begin = poll_clock_mono_us();
    int error = wal->storage->sync_data(wal->storage, file);
    uint64_t took = poll_clock_mono_us() - begin;
    uint32_t bucket = 0;
    while (bucket < 7 && took > sync_bounds_us[bucket]) bucket++;
    monitor_enter(&wal->table);
    wal->stats.sync_us_last = took;
    wal->stats.sync_us_total += took;
    if (took > wal->stats.sync_us_max) wal->stats.sync_us_max = took;
    wal->stats.sync_us_buckets[bucket]++;
    monitor_leave(&wal->table);
    return error < 0 ? error : 0;
}

/* ---- segments of the WAL thread -------------------------------------------------------------------------------------- */

int wal_header_make(wal_t *wal, segment_header_t *header, uint64_t first_lsn, uint32_t segment_bytes) {
    uint8_t salt[4];
    int error = wal->storage->random(wal->storage, salt, sizeof salt);
    *header =
        (segment_header_t){.wal_id = wal->wal_id, .number = wal->number_next, .first_lsn = first_lsn, .salt = load_u32(salt)};
    header->major = FORMAT_MAJOR;
    header->minor = FORMAT_MINOR;
    if (first_lsn && wal->gap_last && wal->gap_last + 1 >= first_lsn) header->flags = FORMAT_HEADER_GAP;
    header->header_bytes = wal_header_bytes(wal);
    header->segment_bytes = segment_bytes;
    header->batch_bytes = wal_batch_room(wal);
    return error;
}

/* After this, adding one segment to the table cannot fail. */
bool wal_table_grow(wal_t *wal) {
    bool ok = true;
    monitor_enter(&wal->table);
    if (wal->count + 2 > wal->capacity) {
        segment_t **segments = realloc(wal->segments, (wal->capacity * 2 + 16) * sizeof *segments);
        if (segments) {
            wal->segments = segments;
            wal->capacity = wal->capacity * 2 + 16;
        }
        ok = segments && wal->count + 2 <= WAL_SEGMENTS_MAX;
    }
    monitor_leave(&wal->table);
    return ok;
}

/* Create the next segment. 0, -ENOSPC (temporary file removed), or an error that stops the WAL. */
static int preallocated_create(wal_t *wal) {
    segment_header_t header;
    int error = wal_table_grow(wal) ? wal_header_make(wal, &header, 0, wal->config.segment_bytes) : -ENOSPC;
    if (error < 0) return error;
    segment_t *segment = segment_new(&header, header.number, header.segment_bytes);
    if (!segment) return -ENOSPC; /* retry later, as for disk space */
    int file;
    error = segment_create(wal->storage, &header, &file);
    if (error == 0) {
        error = segment_publish(wal->storage, file, header.number);
        if (error == 0) error = ledger_begun(wal, wal->active, segment);
        if (error < 0) wal->storage->close(wal->storage, file);
    }
    if (error < 0) {
        segment_free(segment);
        return error == -EDQUOT ? -ENOSPC : error;
    }
    wal->number_next++;
    wal->preallocated = segment;
    wal->preallocated_file = file;
    monitor_enter(&wal->table);
    wal->stats.bytes += segment->file_bytes;
    wal->stats.segments++;
    monitor_leave(&wal->table);
    return 0;
}

static uint64_t bytes_of(wal_t *wal) {
    monitor_enter(&wal->table);
    uint64_t bytes = wal->stats.bytes;
    monitor_leave(&wal->table);
    return bytes;
}

static uint64_t left_of(uint64_t quota, uint64_t bytes) { return quota > bytes ? quota - bytes : 0; }

int64_t wal_free_look(wal_t *wal) {
    int64_t bytes = wal->storage->free_bytes(wal->storage);
    monitor_enter(&wal->table);
    wal->stats.free_bytes = bytes;
    monitor_leave(&wal->table);
    return bytes < 0 ? INT64_MAX : bytes; /* unknown free space: only the quota counts */
}

/* Preallocate the next segment within quota and reserve. 0, -ENOSPC, or an error that stops the WAL. */
static int preallocated_make(wal_t *wal) {
    uint64_t wanted = wal->config.segment_bytes;
    if (left_of(wal->config.max_bytes, bytes_of(wal)) < wanted ||
        (uint64_t)wal_free_look(wal) < wanted + wal->config.reserve_bytes)
        return -ENOSPC;
    return preallocated_create(wal);
}

/* Create the active segment, if the disk was full at the start, and the next one. On a full disk try at most once per
 * WAL_RETRY_MS. */
static void segments_make(wal_t *wal) {
    for (uint32_t tries = 0; tries < 2 && (!wal->active || !wal->preallocated); tries++) {
        if (atomic_load(&wal->failed) || poll_clock_mono_us() < wal->look_at_us) return;
        wal->look_at_us = poll_clock_mono_us() + WAL_RETRY_MS * 1000ull;
        int error = wal->active ? preallocated_make(wal) : wal_begin_late(wal);
        if (error == 0) wal->look_at_us = 0;
        if (error < 0 && error != -ENOSPC) wal_fail(wal, error);
    }
}

/* Continue in the next segment. The caller has sealed and synced the previous one. */
static void segment_switch(wal_t *wal, uint64_t first_lsn) {
    wal->storage->close(wal->storage, wal->active_file);
    segment_t *segment = wal->preallocated;
    segment->first_lsn = segment->next_lsn = first_lsn;
    wal->active_file = wal->preallocated_file;
    wal->position = segment->header.header_bytes;
    wal->segment_records = 0;
    wal->preallocated = NULL;
    wal->preallocated_file = -1;
    monitor_enter(&wal->table);
    wal->active = segment;
    wal->segments[wal->count++] = segment;
    monitor_leave(&wal->table);
}

/* ---- quota and reserve ----------------------------------------------------------------------------------------------- */

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* Calculate how many bytes may be appended. The possible waste at the end is subtracted for each segment. Publishes stop one
 * segment before urgent records, and at the disk's reserve. Without an active segment nothing may be appended. */
static void limits_set(wal_t *wal) {
    if (!wal->active) return; /* the limits are 0 from the start */
    uint64_t waste = wal_waste_bytes_max(wal);
    uint64_t capacity = format_records_end(&wal->active->header), segment = wal->config.segment_bytes;
    uint64_t usable = segment - FORMAT_END_BYTES - wal_header_bytes(wal) - waste;
    uint64_t room = capacity > wal->position + waste ? capacity - wal->position - waste : 0;
    if (wal->preallocated) room += usable;
    uint64_t quota = wal->config.max_bytes, bytes = bytes_of(wal), more_letter = left_of(quota + quota / 2, bytes) / segment;
    uint64_t more_publish = left_of(quota, bytes) / segment;
    uint64_t more_urgent = bytes > quota ? more_letter : more_publish; /* dead letters exceeded the quota: acks may too */
    if (!wal->preallocated || atomic_load(&wal->full)) {               /* otherwise there is enough space for now */
        uint64_t free_bytes = (uint64_t)wal_free_look(wal), reserve = wal->config.reserve_bytes;
        more_urgent = smaller(more_urgent, free_bytes / segment);
        more_letter = smaller(more_letter, free_bytes / segment);
        more_publish = smaller(more_publish, free_bytes > reserve ? (free_bytes - reserve) / segment : 0);
    }
    uint64_t publish = wal->stuck ? 0 : room + more_publish * usable; /* only this thread changes `stuck` */
    bool full = atomic_load(&wal->full);
    publish = publish > usable ? publish - usable : 0;
    /* hysteresis: once refused, publishes wait until there is space for a quarter segment */
    if (full && publish < segment / 4) publish = 0;
    uint64_t urgent = room + more_urgent * usable, letter = room + more_letter * usable, acks = usable / 16;
    atomic_store(&wal->limits[WAL_URGENT], wal->charged_done + urgent);
    atomic_store(&wal->limits[WAL_LETTER], wal->charged_done + (letter > acks ? letter - acks : 0));
    atomic_store(&wal->limits[WAL_ORDINARY], wal->charged_done + publish);
    if (!full || !publish) return;
    atomic_store(&wal->full, false);
    wal_wake(wal);
}

/* ---- committing ------------------------------------------------------------------------------------------------------ */

typedef struct part {
    uint32_t bytes;    /* whole records, with the pad if any */
    uint32_t consumed; /* bytes of the batch */
    uint64_t records, first_lsn, next_lsn;
} part_t;

/* Seal as many records as fit into the active segment. */
static part_t part_seal(wal_t *wal, batch_t *batch) {
    part_t part = {.first_lsn = load_u64(batch->bytes + batch->done + 8)};
    uint32_t seed = format_seed(&wal->active->header);
    uint64_t end = format_records_end(&wal->active->header), room = end > wal->position ? end - wal->position : 0,
             left = room > FORMAT_FOOTER_BYTES ? room - FORMAT_FOOTER_BYTES : 0;
    part.next_lsn = part.first_lsn;
    while (batch->done + part.bytes < batch->used) {
        uint8_t *record = batch->bytes + batch->done + part.bytes;
        uint64_t size = FORMAT_RECORD_BYTES + format_padded(load_u32(record + 4));
        if (size > left) break;
        format_record_seal(record, seed);
        left -= size;
        part.bytes += (uint32_t)size;
        part.records++;
        part.next_lsn++;
    }
    part.consumed = part.bytes;
    return part;
}

/* Fill up to the next block. Then no later write touches a flash page with durable records. */
static void part_pad(wal_t *wal, batch_t *batch, part_t *part) {
    uint32_t block = wal->config.block_bytes;
    uint64_t end = wal->position + part->bytes;
    if (!block || end % block == 0) return;
    uint32_t pad = block - (uint32_t)(end % block);
    if (pad < FORMAT_RECORD_BYTES) pad += block;
    /* The next batch starts a new segment */
    if (end + pad + FORMAT_FOOTER_BYTES > format_records_end(&wal->active->header)) return;
    uint8_t *record = batch->bytes + batch->used;
    memset(record, 0, pad);
    format_record_begin(record, &(format_record_t){.type = WAL_PAD,
                                                   .size = pad - FORMAT_RECORD_BYTES,
                                                   .lsn = part->next_lsn,
                                                   .place = (uint16_t)(part->next_lsn - batch->first_lsn)});
    format_record_seal(record, format_seed(&wal->active->header));
    part->bytes += pad;
}

static int footer_write(wal_t *wal, uint64_t next_lsn, uint16_t place, uint8_t flags) {
    uint8_t footer[FORMAT_FOOTER_BYTES];
    format_footer_encode(footer, format_seed(&wal->active->header), next_lsn, wal->segment_records, place, flags);
    return wal->storage->write(wal->storage, wal->active_file, wal->position, footer, sizeof footer);
}

static void durable_set(wal_t *wal, batch_t *batch, const part_t *part) {
    segment_t *segment = wal->active;
    monitor_enter(&wal->table);
    if (part->records) segment_mark(segment, part->first_lsn, wal->position);
    segment->records += part->records;
    segment->next_lsn = part->next_lsn;
    segment->end = wal->position + part->bytes;
    wal->stats.records += part->records;
    wal->stats.written_bytes += part->bytes;
    monitor_leave(&wal->table);
    wal->position += part->bytes;
    wal->segment_records += part->records;
    batch->done += part->consumed;
    if (part->next_lsn - 1 > atomic_load(&wal->durable))
        atomic_store_explicit(&wal->durable, part->next_lsn - 1, memory_order_release);
}

/* One write and one sync: the part of the batch that fits into the active segment, and its footer if more follows. A segment
 * is sealed only when the next one exists, so a footer without a next segment proves that something is missing. */
static int part_commit(wal_t *wal, batch_t *batch) {
    part_t part = part_seal(wal, batch);
    bool whole = batch->done + part.consumed == batch->used;
    if (whole) part_pad(wal, batch, &part);
    storage_t *storage = wal->storage;
    /* Accepted records may use the reserve and the rest of the quota. */
    int next = whole || wal->preallocated ? 0 : preallocated_create(wal), error = 0;
    if (next < 0 && (next != -ENOSPC || !part.bytes)) return next;
    if (part.bytes) {
        /* The pad follows the batch's last record, which ends this part. */
        error = storage->write(storage, wal->active_file, wal->position, batch->bytes + batch->done, part.bytes);
        if (error < 0) return error;
    }
    if (!whole && !next) {
        wal->position += part.bytes;
        wal->segment_records += part.records;
        error = footer_write(wal, part.next_lsn, (uint16_t)(part.next_lsn - batch->first_lsn), 0);
        wal->position -= part.bytes;
        wal->segment_records -= part.records;
        if (error < 0) return error;
    }
    error = wal_sync_data(wal, wal->active_file);
    /* A failed sync is permanent, whatever its error */
    if (error < 0) return error == -ENOSPC || error == -EDQUOT ? -EIO : error;
    durable_set(wal, batch, &part);
    if (whole) return 0;
    wal_wake(wal);
    if (next < 0) return next; /* this part is durable; the rest waits for a segment */
    segment_switch(wal, part.next_lsn);
    return 0;
}

/* 0: the whole batch is durable. -ENOSPC: continue at batch->done when there is space. Other errors stop the WAL. */
static int batch_commit(wal_t *wal, batch_t *batch) {
    int error = 0;
    while (error == 0 && batch->done < batch->used) error = part_commit(wal, batch);
    if (error == -EDQUOT) error = -ENOSPC;
    if (error < 0 && error != -ENOSPC) wal_fail(wal, error);
    return error;
}

static void batch_finish(wal_t *wal, batch_t *batch, int error) {
    monitor_enter(&wal->work);
    if (error == -ENOSPC) {
        wal->stuck++;
        atomic_store(&wal->full, true);
    } else {
        wal->stuck = 0;
        wal->handed = NULL;
        wal->charged_done = batch->charged;
        atomic_store(&wal->busy, false);
    }
    monitor_signal(&wal->work);
    monitor_leave(&wal->work);
    wal_wake(wal);
}

/* Clean close: write a clean footer and cut the file after it. */
static void close_clean(wal_t *wal) {
    storage_t *storage = wal->storage;
    char name[FORMAT_NAME_BYTES];
    uint8_t footer[FORMAT_FOOTER_BYTES];
    if (atomic_load(&wal->failed) || !wal->active) return;
    format_footer_encode(footer, format_seed(&wal->active->header), wal->next_lsn, wal->segment_records, 0, FORMAT_FOOTER_CLEAN);
    int64_t size = segment_end_write(storage, wal->active_file, wal->active, wal->position, footer, sizeof footer);
    if (size < 0 || wal_sync_data(wal, wal->active_file) < 0) return;
    ledger_close(wal);
    storage->truncate(storage, wal->active_file, (uint64_t)size);
    if (!wal->preallocated) return;
    format_segment_name(name, wal->preallocated->name_number);
    storage->unlink(storage, name);
}

static void *wal_run(void *argument) {
    wal_t *wal = argument;
    for (;;) {
        bool waited = !wal->active;
        segments_make(wal);
        if (!atomic_load(&wal->failed)) limits_set(wal);
        if (waited && wal->active) wal_wake(wal); /* after the limits are set: acks may wait for them */
        monitor_enter(&wal->work);
        bool failed = atomic_load(&wal->failed), again = !failed && (wal->stuck || !wal->preallocated || atomic_load(&wal->full));
        if (!wal->stop && (!wal->handed || (wal->stuck && !failed))) {
            wal->wal_waits = true;
            monitor_signal(&wal->work);
            monitor_wait(&wal->work, again ? WAL_RETRY_MS : -1);
            wal->wal_waits = false;
        }
        batch_t *batch = wal->handed;
        bool stop = wal->stop;
        if (wal->room_came) wal->look_at_us = 0;
        wal->room_came = false;
        monitor_leave(&wal->work);
        if (stop) break; /* wal_close has waited for the handed batch */
        if (batch) batch_finish(wal, batch, atomic_load(&wal->failed) ? -EIO : batch_commit(wal, batch));
    }
    return NULL;
}

/* ---- the core's side --------------------------------------------------------------------------------------------------- */

static int refuse(wal_t *wal, enum wal_urgency urgency) {
    if (urgency == WAL_URGENT) return WAL_E_FULL;
    if (!atomic_exchange(&wal->full, true)) { /* from now on the WAL thread checks for space itself */
        monitor_enter(&wal->work);
        monitor_signal(&wal->work);
        monitor_leave(&wal->work);
    }
    return WAL_E_FULL;
}

int64_t wal_append(wal_t *wal, uint8_t type, uint8_t flags, const wal_part_t *parts, uint32_t count, enum wal_urgency urgency) {
    batch_t *batch = &wal->batches[wal->gathering];
    uint64_t size = 0;
    if (BQ_UNLIKELY(atomic_load_explicit(&wal->failed, memory_order_relaxed))) return WAL_E_FAILED;
    if (type == 0 || type == FORMAT_FOOTER || type == WAL_PAD) return BQ_E_ARGUMENT;
    for (uint32_t i = 0; i < count; i++) size += parts[i].size;
    uint64_t bytes = FORMAT_RECORD_BYTES + format_padded(size);
    if (bytes > wal_record_bytes_max(wal)) return BQ_E_TOO_LARGE;
    uint64_t place = batch->used ? wal->next_lsn - batch->first_lsn : 0;
    if (batch->used + bytes > wal->config.batch_bytes_max || place >= FORMAT_PLACE_MAX) return BQ_E_AGAIN;
    uint64_t charged = wal->charged + bytes + (batch->used ? 0 : wal_pad_bytes_max(wal));
    if (charged > atomic_load_explicit(&wal->limits[urgency], memory_order_relaxed)) return refuse(wal, urgency);

    uint64_t lsn = wal->next_lsn++;
    uint8_t *record = batch->bytes + batch->used, *out = record + FORMAT_RECORD_BYTES;
    if (!batch->used) batch->first_lsn = lsn;
    format_record_begin(
        record, &(format_record_t){.lsn = lsn, .size = (uint32_t)size, .place = (uint16_t)place, .type = type, .flags = flags});
    /* Zero the padding; the payload then covers the rest (without payload this clears the CRCs) */
    store_u64(record + bytes - 8, 0);
    for (uint32_t i = 0; i < count; i++) {
        if (parts[i].size) memcpy(out, parts[i].bytes, parts[i].size);
        out += parts[i].size;
    }
    batch->used += (uint32_t)bytes;
    batch->charged = wal->charged = charged;
    atomic_store_explicit(&wal->shown_next_lsn, wal->next_lsn, memory_order_relaxed);
    return (int64_t)lsn;
}

bool wal_commit(wal_t *wal) {
    batch_t *batch = &wal->batches[wal->gathering];
    if (!batch->used || atomic_load(&wal->busy) || atomic_load(&wal->failed)) return false;
    monitor_enter(&wal->work);
    batch->done = 0;
    wal->handed = batch;
    atomic_store(&wal->busy, true);
    monitor_signal(&wal->work);
    monitor_leave(&wal->work);
    wal->gathering ^= 1;
    wal->batches[wal->gathering].used = 0;
    return true;
}

bool wal_busy(const wal_t *wal) { return atomic_load(&wal->busy); }
uint64_t wal_gathered(const wal_t *wal) { return wal->batches[wal->gathering].used; }
uint64_t wal_durable(const wal_t *wal) { return atomic_load_explicit(&wal->durable, memory_order_acquire); }

int wal_state(const wal_t *wal) {
    if (atomic_load_explicit(&wal->failed, memory_order_relaxed)) return WAL_E_FAILED;
    return atomic_load_explicit(&wal->full, memory_order_relaxed) ? WAL_E_FULL : 0;
}

void wal_stats(wal_t *wal, wal_stats_t *stats) {
    monitor_enter(&wal->table);
    *stats = wal->stats;
    stats->first_lsn = wal->count ? wal->segments[0]->first_lsn : 0;
    monitor_leave(&wal->table);
    stats->durable_lsn = wal_durable(wal);
    stats->next_lsn = atomic_load(&wal->shown_next_lsn);
    stats->error = atomic_load(&wal->failed);
    stats->failed = stats->error != 0;
    stats->full = atomic_load(&wal->full);
}

static bool read_asked(const wal_t *wal) {
    bool asked = false;
    for (uint32_t i = 0; i < WAL_READS_MAX; i++) asked = asked || wal->slots[i].state == READ_ASKED;
    return asked;
}

void wal_settle(wal_t *wal) {
    monitor_enter(&wal->work);
    while (!wal->wal_waits || (wal->handed && !wal->stuck)) monitor_wait(&wal->work, 10);
    monitor_leave(&wal->work);
    monitor_enter(&wal->reads);
    while (!wal->reads_wait || wal->checkpoint_busy || read_asked(wal)) monitor_wait(&wal->reads, 10);
    monitor_leave(&wal->reads);
}

/* ---- opening --------------------------------------------------------------------------------------------------------------- */

static bool config_holds(const wal_config_t *config) {
    return config->segment_bytes >= 4096 && config->segment_bytes <= FORMAT_SEGMENT_BYTES_MAX / 2 &&
           config->segment_bytes % 8 == 0 && config->batch_bytes_max >= 512 && config->batch_bytes_max % 16 == 0 &&
           config->batch_bytes_max <= config->segment_bytes / 2 && config->batch_bytes_max <= FORMAT_BATCH_BYTES_MAX / 2 &&
           config->block_bytes % 8 == 0 && config->block_bytes <= config->segment_bytes / 8 &&
           config->max_bytes / 4 >= config->segment_bytes;
}

static int wal_id_make(wal_t *wal, recover_t *recover) {
    uint8_t bytes[8];
    wal->wal_id = recover->wal_id;
    wal->number_next = recover->number_max + 1;
    wal->ledger = recover->ledger;
    atomic_store(&wal->note, recover->ledger.note);
    if (wal->wal_id) return BQ_OK;
    int error = wal->storage->random(wal->storage, bytes, sizeof bytes);
    wal->wal_id = load_u64(bytes) | 1;
    return error < 0 ? system_error(error) : BQ_OK;
}

static void checkpoints_note(wal_t *wal, const recover_t *recover) {
    wal->generations[0] = recover->checkpoint.generation;
    wal->keep_below[0] = recover->checkpoint.keep_from;
    wal->generations[1] = recover->generation_before;
    wal->keep_below[1] = recover->keep_before;
    wal->stats.checkpoint_lsn = recover->checkpoint.lsn;
    wal->stats.keep_from = wal_keep_from(wal);
    wal->checkpoint.generation = recover->generation_max;
}

typedef struct opening {
    wal_visit restore;
    void (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
    uint64_t shown; /* bytes at the last progress report */
} opening_t;

#define PROGRESS_BYTES (4u << 20)

static int replay(wal_t *wal, recover_t *recover, opening_t *opening) {
    wal_record_t record;
    recover_finding_t finding;
    if (recover->checkpoint.generation && opening->restore) {
        record =
            (wal_record_t){.lsn = recover->checkpoint.lsn, .bytes = recover->checkpoint_bytes, .size = recover->checkpoint.size};
        if (!opening->restore(opening->context, &record)) return WAL_E_REFUSED;
    }
    for (;;) {
        int event = recover_next(recover, &record, &finding);
        if (event < 0) return event;
        if (event == RECOVER_END) break;
        /* Best effort: a full disk must not prevent the start */
        if (event == RECOVER_FINDING) recover_keep_aside(recover, &finding);
        if (event == RECOVER_RECORD && record.lsn > recover->checkpoint.lsn && opening->restore &&
            !opening->restore(opening->context, &record))
            return WAL_E_REFUSED; /* continuing without this record would lose it at the next checkpoint */
        uint64_t done = recover->done_bytes + recover->scan.offset;
        if (opening->progress && done - opening->shown >= PROGRESS_BYTES) {
            opening->progress(opening->context, done, recover->total_bytes);
            opening->shown = done;
        }
    }
    wal->next_lsn = recover->expected ? recover->expected : 1;
    wal->gap_last = recover->gap_last;
    return BQ_OK;
}

/* Raise the sizes so that the largest record found can be written again as a dead letter, even if the limits were lowered.
 * Only as far as the quota allows such segments. */
static void sizes_raise(wal_t *wal, uint32_t record_bytes) {
    if (record_bytes <= wal_record_bytes_max(wal)) return;
    uint64_t batch = (2ull * (record_bytes + LETTER_MORE_BYTES) + 4095) & ~4095ull;
    uint64_t segment = 2 * batch > wal->config.segment_bytes ? 2 * batch : wal->config.segment_bytes;
    if (batch > FORMAT_BATCH_BYTES_MAX / 2 || segment > wal->config.max_bytes / 4) return;
    wal->config.batch_bytes_max = (uint32_t)batch;
    wal->config.segment_bytes = (uint32_t)segment;
}

static int wal_recover(wal_t *wal, opening_t *opening, wal_report_t *report) {
    recover_t recover;
    int error = recover_begin(&recover, wal->storage);
    if (error != BQ_OK) return error;
    error = wal_id_make(wal, &recover);
    if (error == BQ_OK) error = replay(wal, &recover, opening);
    if (error == BQ_OK) sizes_raise(wal, recover.record_bytes_max);
    if (error == BQ_OK) {
        int begun = wal_begin(wal, &recover);
        if (begun < 0) error = system_error(begun);
    }
    if (error == BQ_OK) {
        checkpoints_note(wal, &recover);
        recover.report.next_lsn = wal->next_lsn;
        recover.report.first_lsn = wal->count ? wal->segments[0]->first_lsn : wal->next_lsn;
        if (report) *report = recover.report;
    }
    recover_free(&recover);
    return error;
}

static void wal_free(wal_t *wal) {
    storage_t *storage = wal->storage;
    for (uint32_t i = 0; i < wal->count; i++) segment_free(wal->segments[i]);
    segment_free(wal->preallocated);
    if (wal->active_file >= 0) storage->close(storage, wal->active_file);
    if (wal->preallocated_file >= 0) storage->close(storage, wal->preallocated_file);
    if (wal->read_file >= 0) storage->close(storage, wal->read_file);
    free(wal->segments);
    free(wal->batches[0].bytes);
    free(wal->batches[1].bytes);
    free(wal->checkpoint_bytes);
    scan_free(&wal->read_scan);
    monitor_free(&wal->work);
    monitor_free(&wal->table);
    monitor_free(&wal->reads);
    monitor_free(&wal->ledger_monitor);
    free(wal);
    storage->release(storage);
}

static int monitors_init(wal_t *wal) {
    monitor_t *monitors[] = {&wal->work, &wal->table, &wal->reads, &wal->ledger_monitor};
    for (uint32_t i = 0; i < 4; i++) {
        if (monitor_init(monitors[i]) == BQ_OK) continue;
        while (i-- > 0) monitor_free(monitors[i]);
        return BQ_E_SYSTEM;
    }
    return BQ_OK;
}

static int buffers_init(wal_t *wal) {
    wal->batches[0].bytes = malloc(wal_batch_room(wal));
    wal->batches[1].bytes = malloc(wal_batch_room(wal));
    return wal->batches[0].bytes && wal->batches[1].bytes ? BQ_OK : BQ_E_MEMORY;
}

static void threads_stop(wal_t *wal) {
    monitor_enter(&wal->work);
    wal->stop = true;
    monitor_signal(&wal->work);
    monitor_leave(&wal->work);
    monitor_enter(&wal->reads);
    wal->reads_stop = true;
    monitor_signal(&wal->reads);
    monitor_leave(&wal->reads);
    poll_thread_join(&wal->wal_thread);
    poll_thread_join(&wal->read_thread);
}

static int threads_start(wal_t *wal) {
    int error = poll_thread_start(&wal->wal_thread, "blipmq-log", wal_run, wal);
    if (error != BQ_OK) return error;
    error = poll_thread_start(&wal->read_thread, "blipmq-read", read_run, wal);
    if (error != BQ_OK) threads_stop(wal);
    return error;
}

int wal_open(wal_t **out, storage_t *storage, const wal_config_t *config, wal_visit restore, void *context, wal_report_t *report,
             void (*progress)(void *context, uint64_t done, uint64_t total)) {
    *out = NULL;
    int error = config_holds(config) ? BQ_OK : BQ_E_ARGUMENT;
    wal_t *wal = error == BQ_OK ? calloc(1, sizeof *wal) : NULL;
    if (error == BQ_OK) error = wal ? monitors_init(wal) : BQ_E_MEMORY;
    if (error != BQ_OK) {
        free(wal);
        storage->release(storage);
        return error;
    }
    wal->storage = storage;
    wal->config = *config;
    wal->active_file = wal->preallocated_file = wal->read_file = -1;
    int locked = storage->lock(storage, WAL_LOCK_NAME);
    error = locked >= 0              ? scan_init(&wal->read_scan, wal->storage, WAL_READ_SCAN_BYTES)
            : locked == -EWOULDBLOCK ? WAL_E_LOCKED
                                     : system_error(locked);
    opening_t opening = {.restore = restore, .progress = progress, .context = context};
    if (error == BQ_OK) error = wal_recover(wal, &opening, report);
    if (error == BQ_OK) error = buffers_init(wal);
    if (error == BQ_OK) {
        atomic_store(&wal->durable, wal->sure_lsn);
        atomic_store(&wal->shown_next_lsn, wal->next_lsn);
        limits_set(wal);
        error = threads_start(wal);
    }
    if (error != BQ_OK) {
        int reason = errno;
        wal_free(wal);
        errno = reason;
        return error;
    }
    *out = wal;
    return BQ_OK;
}

/* Wait for the batch that is being written. false: it cannot be written, and waiting longer would not help. */
static bool handed_wait(wal_t *wal) {
    monitor_enter(&wal->work);
    uint32_t stuck = wal->stuck;
    while (wal->handed && wal->stuck < stuck + 2) monitor_wait(&wal->work, -1);
    bool written = !wal->handed;
    monitor_leave(&wal->work);
    return written && !atomic_load(&wal->failed);
}

void wal_close(wal_t *wal) {
    bool written = handed_wait(wal);
    if (written && wal_commit(wal)) written = handed_wait(wal);
    threads_stop(wal);
    if (written && !wal_gathered(wal)) close_clean(wal);
    wal_free(wal);
}
