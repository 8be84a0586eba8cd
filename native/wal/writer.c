/* wal/writer.c: the writer: the gathering batch, the thread that commits it, segments made ahead, quota and reserve; opening and closing.
 *
 * The core copies records into one of two buffers; log_commit hands that buffer over and the other one gathers. The log thread
 * seals the records (CRCs), writes them and syncs, part by part where a batch crosses into the next segment; a part's
 * predecessor is sealed and synced first. After each sync `durable` rises.
 *
 * Invariant: `durable` is stored after fdatasync returned 0, never otherwise. Every error but a full disk ends in log_fail.
 * A write that met a full disk is tried again (it overwrites the same bytes); a sync never is.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* clock_gettime */
#endif

#include "wal/wal_internal.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#define LETTER_MORE_BYTES 1024u /* at most, that a dead letter takes more than its message */

static const uint32_t sync_bounds_us[7] = {100, 300, 1000, 3000, 10000, 30000, 100000};

static uint64_t now_us(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000 + (uint64_t)now.tv_nsec / 1000;
}

void log_wake(log_t *log) {
    if (log->config.wake) log->config.wake(log->config.wake_context);
}

/* The first error counts. The batch that met it is given up: nobody was told that it is durable, and nobody will be. */
void log_fail(log_t *log, int error) {
    int32_t none = 0;
    if (atomic_compare_exchange_strong(&log->failed, &none, -error)) log_wake(log);
}

int log_sync_data(log_t *log, int file) {
    if (log->config.no_sync) return 0;
    uint64_t begin = now_us();
    int error = log->storage->sync_data(log->storage, file);
    uint64_t took = now_us() - begin;
    uint32_t bucket = 0;
    while (bucket < 7 && took > sync_bounds_us[bucket]) bucket++;
    gate_enter(&log->table);
    log->stats.commits++;
    log->stats.sync_us_last = took;
    log->stats.sync_us_total += took;
    if (took > log->stats.sync_us_max) log->stats.sync_us_max = took;
    log->stats.sync_us_buckets[bucket]++;
    gate_leave(&log->table);
    return error < 0 ? error : 0;
}

/* ---- segments of the log thread -------------------------------------------------------------------------------------- */

int log_header_make(log_t *log, segment_header_t *header, uint64_t first_lsn, uint32_t segment_bytes) {
    uint8_t salt[4];
    int error = log->storage->random(log->storage, salt, sizeof salt);
    *header =
        (segment_header_t){.log_id = log->log_id, .number = log->number_next, .first_lsn = first_lsn, .salt = load_u32(salt)};
    header->major = FORMAT_MAJOR;
    header->minor = FORMAT_MINOR;
    if (first_lsn && log->gap_last && log->gap_last + 1 >= first_lsn) header->flags = FORMAT_HEADER_GAP;
    header->header_bytes = log_header_bytes(log);
    header->segment_bytes = segment_bytes;
    header->batch_bytes = log_batch_room(log);
    return error;
}

/* The table has room for one more after this: adding a segment to it cannot fail. */
bool log_table_grow(log_t *log) {
    bool ok = true;
    gate_enter(&log->table);
    if (log->count + 2 > log->capacity) {
        segment_t **segments = realloc(log->segments, (log->capacity * 2 + 16) * sizeof *segments);
        if (segments) {
            log->segments = segments;
            log->capacity = log->capacity * 2 + 16;
        }
        ok = segments && log->count + 2 <= LOG_SEGMENTS_MAX;
    }
    gate_leave(&log->table);
    return ok;
}

/* Make the segment that will be used next. 0, -ENOSPC (temporary file removed), or an error that stops the log. */
static int ahead_create(log_t *log) {
    segment_header_t header;
    int error = log_table_grow(log) ? log_header_make(log, &header, 0, log->config.segment_bytes) : -ENOSPC;
    if (error < 0) return error;
    segment_t *segment = segment_new(&header, header.number, header.segment_bytes);
    if (!segment) return -ENOSPC; /* memory comes back like disk space: wait for it */
    int file;
    error = segment_create(log->storage, &header, &file);
    if (error == 0) {
        error = segment_publish(log->storage, file, header.number);
        if (error == 0) error = ledger_begun(log, log->active, segment);
        if (error < 0) log->storage->close(log->storage, file);
    }
    if (error < 0) {
        segment_free(segment);
        return error == -EDQUOT ? -ENOSPC : error;
    }
    log->number_next++;
    log->ahead = segment;
    log->ahead_file = file;
    gate_enter(&log->table);
    log->stats.bytes += segment->file_bytes;
    log->stats.segments++;
    gate_leave(&log->table);
    return 0;
}

static uint64_t bytes_of(log_t *log) {
    gate_enter(&log->table);
    uint64_t bytes = log->stats.bytes;
    gate_leave(&log->table);
    return bytes;
}

static uint64_t left_of(uint64_t quota, uint64_t bytes) { return quota > bytes ? quota - bytes : 0; }

int64_t log_free_look(log_t *log) {
    int64_t bytes = log->storage->free_bytes(log->storage);
    gate_enter(&log->table);
    log->stats.free_bytes = bytes;
    gate_leave(&log->table);
    return bytes < 0 ? INT64_MAX : bytes; /* a system that does not say is one where only the quota counts */
}

/* Ahead of need, within quota and reserve. 0: made, or there is no room. */
static int ahead_make(log_t *log) {
    uint64_t wanted = log->config.segment_bytes;
    if (left_of(log->config.max_bytes, bytes_of(log)) < wanted ||
        (uint64_t)log_free_look(log) < wanted + log->config.reserve_bytes)
        return -ENOSPC;
    return ahead_create(log);
}

/* The segment to go on in, if a full disk had no room for one at the start, and the one behind it: while there is no room they are
 * looked for no more than once per LOG_RETRY_MS. */
static void segments_make(log_t *log) {
    for (uint32_t tries = 0; tries < 2 && (!log->active || !log->ahead); tries++) {
        if (atomic_load(&log->failed) || now_us() < log->look_at_us) return;
        log->look_at_us = now_us() + LOG_RETRY_MS * 1000ull;
        int error = log->active ? ahead_make(log) : log_begin_late(log);
        if (error == 0) log->look_at_us = 0;
        if (error < 0 && error != -ENOSPC) log_fail(log, error);
    }
}

/* Go on in the next segment, which is there. The one left behind is sealed and synced. */
static void segment_switch(log_t *log, uint64_t first_lsn) {
    log->storage->close(log->storage, log->active_file);
    segment_t *segment = log->ahead;
    segment->first_lsn = segment->next_lsn = first_lsn;
    log->active_file = log->ahead_file;
    log->position = segment->header.header_bytes;
    log->segment_records = 0;
    log->ahead = NULL;
    log->ahead_file = -1;
    gate_enter(&log->table);
    log->active = segment;
    log->segments[log->count++] = segment;
    gate_leave(&log->table);
}

/* ---- quota and reserve ----------------------------------------------------------------------------------------------- */

static uint64_t smaller(uint64_t a, uint64_t b) { return a < b ? a : b; }

/* How much may still be appended. What a segment may waste at its end is taken off for each; publishes stop one segment before
 * urgent records do, and where the reserve begins. Without an active segment nothing may. */
static void limits_set(log_t *log) {
    if (!log->active) return; /* they are 0 from the start */
    uint64_t waste = log_waste_bytes_max(log);
    uint64_t capacity = format_records_end(&log->active->header), segment = log->config.segment_bytes;
    uint64_t usable = segment - FORMAT_END_BYTES - log_header_bytes(log) - waste;
    uint64_t room = capacity > log->position + waste ? capacity - log->position - waste : 0;
    if (log->ahead) room += usable;
    uint64_t quota = log->config.max_bytes, bytes = bytes_of(log), more_letter = left_of(quota + quota / 2, bytes) / segment;
    uint64_t more_publish = left_of(quota, bytes) / segment;
    uint64_t more_urgent = bytes > quota ? more_letter : more_publish; /* letters have gone there: acks follow */
    if (!log->ahead || atomic_load(&log->full)) { /* else there is room for a while, whatever the disk says */
        uint64_t free_bytes = (uint64_t)log_free_look(log), reserve = log->config.reserve_bytes;
        more_urgent = smaller(more_urgent, free_bytes / segment);
        more_letter = smaller(more_letter, free_bytes / segment);
        more_publish = smaller(more_publish, free_bytes > reserve ? (free_bytes - reserve) / segment : 0);
    }
    uint64_t publish = log->stuck ? 0 : room + more_publish * usable; /* stuck: this thread alone changes it */
    bool full = atomic_load(&log->full);
    publish = publish > usable ? publish - usable : 0;
    if (full && publish < segment / 4) publish = 0; /* no flapping: once refused, publishes wait for room that lasts a while */
    uint64_t urgent = room + more_urgent * usable, letter = room + more_letter * usable, acks = usable / 16;
    atomic_store(&log->limits[LOG_URGENT], log->charged_done + urgent);
    atomic_store(&log->limits[LOG_LETTER], log->charged_done + (letter > acks ? letter - acks : 0));
    atomic_store(&log->limits[LOG_ORDINARY], log->charged_done + publish);
    if (!full || !publish) return;
    atomic_store(&log->full, false);
    log_wake(log);
}

/* ---- committing ------------------------------------------------------------------------------------------------------ */

typedef struct part {
    uint32_t bytes;    /* whole records, and the pad if any */
    uint32_t consumed; /* of the batch */
    uint64_t records, first_lsn, next_lsn;
} part_t;

/* As many records as the active segment takes, sealed for it. */
static part_t part_seal(log_t *log, batch_t *batch) {
    part_t part = {.first_lsn = load_u64(batch->bytes + batch->done + 8)};
    uint32_t seed = format_seed(&log->active->header);
    uint64_t end = format_records_end(&log->active->header), room = end > log->position ? end - log->position : 0,
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

/* Fill up to the next block, so that no later write touches a flash page that holds durable records. */
static void part_pad(log_t *log, batch_t *batch, part_t *part) {
    uint32_t block = log->config.block_bytes;
    uint64_t end = log->position + part->bytes;
    if (!block || end % block == 0) return;
    uint32_t pad = block - (uint32_t)(end % block);
    if (pad < FORMAT_RECORD_BYTES) pad += block;
    if (end + pad + FORMAT_FOOTER_BYTES > format_records_end(&log->active->header)) return; /* the next batch begins a segment */
    uint8_t *record = batch->bytes + batch->used;
    memset(record, 0, pad);
    format_record_begin(record, &(format_record_t){.type = LOG_PAD,
                                                   .size = pad - FORMAT_RECORD_BYTES,
                                                   .lsn = part->next_lsn,
                                                   .place = (uint16_t)(part->next_lsn - batch->first_lsn)});
    format_record_seal(record, format_seed(&log->active->header));
    part->bytes += pad;
}

static int footer_write(log_t *log, uint64_t next_lsn, uint16_t place, uint8_t flags) {
    uint8_t footer[FORMAT_FOOTER_BYTES];
    format_footer_encode(footer, format_seed(&log->active->header), next_lsn, log->segment_records, place, flags);
    return log->storage->write(log->storage, log->active_file, log->position, footer, sizeof footer);
}

static void durable_set(log_t *log, batch_t *batch, const part_t *part) {
    segment_t *segment = log->active;
    gate_enter(&log->table);
    if (part->records) segment_mark(segment, part->first_lsn, log->position);
    segment->records += part->records;
    segment->next_lsn = part->next_lsn;
    segment->end = log->position + part->bytes;
    log->stats.records += part->records;
    log->stats.written_bytes += part->bytes;
    gate_leave(&log->table);
    log->position += part->bytes;
    log->segment_records += part->records;
    batch->done += part->consumed;
    if (part->next_lsn - 1 > atomic_load(&log->durable))
        atomic_store_explicit(&log->durable, part->next_lsn - 1, memory_order_release);
}

/* One write and one sync: what of the batch fits the active segment, and its footer if there is more. A segment is sealed only when
 * there is one to go on in: whoever finds a footer and nothing behind it knows that something is missing. */
static int part_commit(log_t *log, batch_t *batch) {
    part_t part = part_seal(log, batch);
    bool whole = batch->done + part.consumed == batch->used;
    if (whole) part_pad(log, batch, &part);
    storage_t *storage = log->storage;
    /* Records that were accepted may use the reserve and the last of the quota. */
    int next = whole || log->ahead ? 0 : ahead_create(log), error = 0;
    if (next < 0 && (next != -ENOSPC || !part.bytes)) return next;
    if (part.bytes) {
        /* The pad lies behind the batch's last record, which this part ends with. */
        error = storage->write(storage, log->active_file, log->position, batch->bytes + batch->done, part.bytes);
        if (error < 0) return error;
    }
    if (!whole && !next) {
        log->position += part.bytes;
        log->segment_records += part.records;
        error = footer_write(log, part.next_lsn, (uint16_t)(part.next_lsn - batch->first_lsn), 0);
        log->position -= part.bytes;
        log->segment_records -= part.records;
        if (error < 0) return error;
    }
    error = log_sync_data(log, log->active_file);
    if (error < 0) return error == -ENOSPC || error == -EDQUOT ? -EIO : error; /* a failed sync is final, whatever it says */
    durable_set(log, batch, &part);
    if (whole) return 0;
    log_wake(log);
    if (next < 0) return next; /* what fits is durable; the rest waits for a segment */
    segment_switch(log, part.next_lsn);
    return 0;
}

/* 0: all of it is durable. -ENOSPC: go on from batch->done when there is room. Anything else stops the log. */
static int batch_commit(log_t *log, batch_t *batch) {
    int error = 0;
    while (error == 0 && batch->done < batch->used) error = part_commit(log, batch);
    if (error == -EDQUOT) error = -ENOSPC;
    if (error < 0 && error != -ENOSPC) log_fail(log, error);
    return error;
}

static void batch_finish(log_t *log, batch_t *batch, int error) {
    gate_enter(&log->work);
    if (error == -ENOSPC) {
        log->stuck++;
        atomic_store(&log->full, true);
    } else {
        log->stuck = 0;
        log->handed = NULL;
        log->charged_done = batch->charged;
        atomic_store(&log->busy, false);
    }
    gate_signal(&log->work);
    gate_leave(&log->work);
    log_wake(log);
}

/* The end in order: a clean footer, and the file cut to what it holds. */
static void close_clean(log_t *log) {
    storage_t *storage = log->storage;
    char name[FORMAT_NAME_BYTES];
    uint8_t footer[FORMAT_FOOTER_BYTES];
    if (atomic_load(&log->failed) || !log->active) return;
    format_footer_encode(footer, format_seed(&log->active->header), log->next_lsn, log->segment_records, 0, FORMAT_FOOTER_CLEAN);
    int64_t size = segment_end_write(storage, log->active_file, log->active, log->position, footer, sizeof footer);
    if (size < 0 || log_sync_data(log, log->active_file) < 0) return;
    ledger_close(log);
    storage->truncate(storage, log->active_file, (uint64_t)size);
    if (!log->ahead) return;
    format_segment_name(name, log->ahead->name_number);
    storage->unlink(storage, name);
}

static void *log_run(void *argument) {
    log_t *log = argument;
    for (;;) {
        bool waited = !log->active;
        segments_make(log);
        if (!atomic_load(&log->failed)) limits_set(log);
        if (waited && log->active) log_wake(log); /* after the limits: there may be acks that wait for them */
        gate_enter(&log->work);
        bool failed = atomic_load(&log->failed), again = !failed && (log->stuck || !log->ahead || atomic_load(&log->full));
        if (!log->stop && (!log->handed || (log->stuck && !failed))) {
            log->log_waits = true;
            gate_signal(&log->work);
            gate_wait(&log->work, again ? LOG_RETRY_MS : -1);
            log->log_waits = false;
        }
        batch_t *batch = log->handed;
        bool stop = log->stop;
        if (log->room_came) log->look_at_us = 0;
        log->room_came = false;
        gate_leave(&log->work);
        if (stop) break; /* log_close has waited for what was handed over */
        if (batch) batch_finish(log, batch, atomic_load(&log->failed) ? -EIO : batch_commit(log, batch));
    }
    return NULL;
}

/* ---- the core's side --------------------------------------------------------------------------------------------------- */

static int refuse(log_t *log, enum log_urgency urgency) {
    if (urgency == LOG_URGENT) return LOG_E_FULL;
    if (!atomic_exchange(&log->full, true)) { /* from now on the thread looks for room by itself */
        gate_enter(&log->work);
        gate_signal(&log->work);
        gate_leave(&log->work);
    }
    return LOG_E_FULL;
}

int64_t log_append(log_t *log, uint8_t type, uint8_t flags, const log_part_t *parts, uint32_t count, enum log_urgency urgency) {
    batch_t *batch = &log->batches[log->gathering];
    uint64_t size = 0;
    if (BQ_UNLIKELY(atomic_load_explicit(&log->failed, memory_order_relaxed))) return LOG_E_FAILED;
    if (type == 0 || type == FORMAT_FOOTER || type == LOG_PAD) return BQ_E_ARGUMENT;
    for (uint32_t i = 0; i < count; i++) size += parts[i].size;
    uint64_t bytes = FORMAT_RECORD_BYTES + format_padded(size);
    if (bytes > log_record_bytes_max(log)) return BQ_E_TOO_LARGE;
    uint64_t place = batch->used ? log->next_lsn - batch->first_lsn : 0;
    if (batch->used + bytes > log->config.batch_bytes_max || place >= FORMAT_PLACE_MAX) return BQ_E_AGAIN;
    uint64_t charged = log->charged + bytes + (batch->used ? 0 : log_pad_bytes_max(log));
    if (charged > atomic_load_explicit(&log->limits[urgency], memory_order_relaxed)) return refuse(log, urgency);

    uint64_t lsn = log->next_lsn++;
    uint8_t *record = batch->bytes + batch->used, *out = record + FORMAT_RECORD_BYTES;
    if (!batch->used) batch->first_lsn = lsn;
    format_record_begin(
        record, &(format_record_t){.lsn = lsn, .size = (uint32_t)size, .place = (uint16_t)place, .type = type, .flags = flags});
    store_u64(record + bytes - 8,
              0); /* the padding, before the payload covers what is not padding; or the CRCs of an empty one */
    for (uint32_t i = 0; i < count; i++) {
        if (parts[i].size) memcpy(out, parts[i].bytes, parts[i].size);
        out += parts[i].size;
    }
    batch->used += (uint32_t)bytes;
    batch->charged = log->charged = charged;
    atomic_store_explicit(&log->shown_next_lsn, log->next_lsn, memory_order_relaxed);
    return (int64_t)lsn;
}

bool log_commit(log_t *log) {
    batch_t *batch = &log->batches[log->gathering];
    if (!batch->used || atomic_load(&log->busy) || atomic_load(&log->failed)) return false;
    gate_enter(&log->work);
    batch->done = 0;
    log->handed = batch;
    atomic_store(&log->busy, true);
    gate_signal(&log->work);
    gate_leave(&log->work);
    log->gathering ^= 1;
    log->batches[log->gathering].used = 0;
    return true;
}

bool log_busy(const log_t *log) { return atomic_load(&log->busy); }
uint64_t log_gathered(const log_t *log) { return log->batches[log->gathering].used; }
uint64_t log_durable(const log_t *log) { return atomic_load_explicit(&log->durable, memory_order_acquire); }

int log_state(const log_t *log) {
    if (atomic_load_explicit(&log->failed, memory_order_relaxed)) return LOG_E_FAILED;
    return atomic_load_explicit(&log->full, memory_order_relaxed) ? LOG_E_FULL : 0;
}

void log_stats(log_t *log, log_stats_t *stats) {
    gate_enter(&log->table);
    *stats = log->stats;
    stats->first_lsn = log->count ? log->segments[0]->first_lsn : 0;
    gate_leave(&log->table);
    stats->durable_lsn = log_durable(log);
    stats->next_lsn = atomic_load(&log->shown_next_lsn);
    stats->error = atomic_load(&log->failed);
    stats->failed = stats->error != 0;
    stats->full = atomic_load(&log->full);
}

static bool read_asked(const log_t *log) {
    bool asked = false;
    for (uint32_t i = 0; i < LOG_READS_MAX; i++) asked = asked || log->slots[i].state == READ_ASKED;
    return asked;
}

void log_settle(log_t *log) {
    gate_enter(&log->work);
    while (!log->log_waits || (log->handed && !log->stuck)) gate_wait(&log->work, 10);
    gate_leave(&log->work);
    gate_enter(&log->reads);
    while (!log->reads_wait || log->checkpoint_busy || read_asked(log)) gate_wait(&log->reads, 10);
    gate_leave(&log->reads);
}

/* ---- opening --------------------------------------------------------------------------------------------------------------- */

static bool config_holds(const log_config_t *config) {
    return config->segment_bytes >= 4096 && config->segment_bytes <= FORMAT_SEGMENT_BYTES_MAX / 2 &&
           config->segment_bytes % 8 == 0 && config->batch_bytes_max >= 512 && config->batch_bytes_max % 16 == 0 &&
           config->batch_bytes_max <= config->segment_bytes / 2 && config->batch_bytes_max <= FORMAT_BATCH_BYTES_MAX / 2 &&
           config->block_bytes % 8 == 0 && config->block_bytes <= config->segment_bytes / 8 &&
           config->max_bytes / 4 >= config->segment_bytes;
}

static int log_id_make(log_t *log, recover_t *recover) {
    uint8_t bytes[8];
    log->log_id = recover->log_id;
    log->number_next = recover->number_max + 1;
    log->ledger = recover->ledger;
    atomic_store(&log->note, recover->ledger.note);
    if (log->log_id) return BQ_OK;
    int error = log->storage->random(log->storage, bytes, sizeof bytes);
    log->log_id = load_u64(bytes) | 1;
    return error < 0 ? system_error(error) : BQ_OK;
}

static void checkpoints_note(log_t *log, const recover_t *recover) {
    log->generations[0] = recover->checkpoint.generation;
    log->keep_below[0] = recover->checkpoint.keep_from;
    log->generations[1] = recover->generation_before;
    log->keep_below[1] = recover->keep_before;
    log->stats.checkpoint_lsn = recover->checkpoint.lsn;
    log->stats.keep_from = log_keep_from(log);
    log->checkpoint.generation = recover->generation_max;
}

typedef struct opening {
    log_visit restore;
    void (*progress)(void *context, uint64_t done, uint64_t total);
    void *context;
    uint64_t shown; /* bytes at the last call of progress */
} opening_t;

#define PROGRESS_BYTES (4u << 20)

static int replay(log_t *log, recover_t *recover, opening_t *opening) {
    log_record_t record;
    recover_finding_t finding;
    if (recover->checkpoint.generation && opening->restore) {
        record =
            (log_record_t){.lsn = recover->checkpoint.lsn, .bytes = recover->checkpoint_bytes, .size = recover->checkpoint.size};
        if (!opening->restore(opening->context, &record)) return LOG_E_REFUSED;
    }
    for (;;) {
        int event = recover_next(recover, &record, &finding);
        if (event < 0) return event;
        if (event == RECOVER_END) break;
        if (event == RECOVER_FINDING) recover_keep_aside(recover, &finding); /* best effort: a full disk must not keep us down */
        if (event == RECOVER_RECORD && record.lsn > recover->checkpoint.lsn && opening->restore &&
            !opening->restore(opening->context, &record))
            return LOG_E_REFUSED; /* to go on without it would be to forget it at the next checkpoint */
        uint64_t done = recover->done_bytes + recover->scan.offset;
        if (opening->progress && done - opening->shown >= PROGRESS_BYTES) {
            opening->progress(opening->context, done, recover->total_bytes);
            opening->shown = done;
        }
    }
    log->next_lsn = recover->expected ? recover->expected : 1;
    log->gap_last = recover->gap_last;
    return BQ_OK;
}

/* The largest record that was found is taken again, as a dead letter, though the limits have been lowered since: as far as the quota
 * has room for segments that hold it. */
static void sizes_raise(log_t *log, uint32_t record_bytes) {
    if (record_bytes <= log_record_bytes_max(log)) return;
    uint64_t batch = (2ull * (record_bytes + LETTER_MORE_BYTES) + 4095) & ~4095ull;
    uint64_t segment = 2 * batch > log->config.segment_bytes ? 2 * batch : log->config.segment_bytes;
    if (batch > FORMAT_BATCH_BYTES_MAX / 2 || segment > log->config.max_bytes / 4) return;
    log->config.batch_bytes_max = (uint32_t)batch;
    log->config.segment_bytes = (uint32_t)segment;
}

static int log_recover(log_t *log, opening_t *opening, log_report_t *report) {
    recover_t recover;
    int error = recover_begin(&recover, log->storage);
    if (error != BQ_OK) return error;
    error = log_id_make(log, &recover);
    if (error == BQ_OK) error = replay(log, &recover, opening);
    if (error == BQ_OK) sizes_raise(log, recover.record_bytes_max);
    if (error == BQ_OK) {
        int begun = log_begin(log, &recover);
        if (begun < 0) error = system_error(begun);
    }
    if (error == BQ_OK) {
        checkpoints_note(log, &recover);
        recover.report.next_lsn = log->next_lsn;
        recover.report.first_lsn = log->count ? log->segments[0]->first_lsn : log->next_lsn;
        if (report) *report = recover.report;
    }
    recover_free(&recover);
    return error;
}

static void log_free(log_t *log) {
    storage_t *storage = log->storage;
    for (uint32_t i = 0; i < log->count; i++) segment_free(log->segments[i]);
    segment_free(log->ahead);
    if (log->active_file >= 0) storage->close(storage, log->active_file);
    if (log->ahead_file >= 0) storage->close(storage, log->ahead_file);
    if (log->read_file >= 0) storage->close(storage, log->read_file);
    free(log->segments);
    free(log->batches[0].bytes);
    free(log->batches[1].bytes);
    free(log->checkpoint_bytes);
    scan_free(&log->read_scan);
    gate_free(&log->work);
    gate_free(&log->table);
    gate_free(&log->reads);
    gate_free(&log->books);
    free(log);
    storage->release(storage);
}

static int gates_init(log_t *log) {
    gate_t *gates[] = {&log->work, &log->table, &log->reads, &log->books};
    for (uint32_t i = 0; i < 4; i++) {
        if (gate_init(gates[i]) == BQ_OK) continue;
        while (i-- > 0) gate_free(gates[i]);
        return BQ_E_SYSTEM;
    }
    return BQ_OK;
}

static int buffers_init(log_t *log) {
    log->batches[0].bytes = malloc(log_batch_room(log));
    log->batches[1].bytes = malloc(log_batch_room(log));
    return log->batches[0].bytes && log->batches[1].bytes ? BQ_OK : BQ_E_MEMORY;
}

static void threads_stop(log_t *log) {
    gate_enter(&log->work);
    log->stop = true;
    gate_signal(&log->work);
    gate_leave(&log->work);
    gate_enter(&log->reads);
    log->reads_stop = true;
    gate_signal(&log->reads);
    gate_leave(&log->reads);
    poll_thread_join(&log->log_thread);
    poll_thread_join(&log->read_thread);
}

static int threads_start(log_t *log) {
    int error = poll_thread_start(&log->log_thread, "blipmq-log", log_run, log);
    if (error != BQ_OK) return error;
    error = poll_thread_start(&log->read_thread, "blipmq-read", read_run, log);
    if (error != BQ_OK) threads_stop(log);
    return error;
}

int log_open(log_t **out, storage_t *storage, const log_config_t *config, log_visit restore, void *context, log_report_t *report,
             void (*progress)(void *context, uint64_t done, uint64_t total)) {
    *out = NULL;
    int error = config_holds(config) ? BQ_OK : BQ_E_ARGUMENT;
    log_t *log = error == BQ_OK ? calloc(1, sizeof *log) : NULL;
    if (error == BQ_OK) error = log ? gates_init(log) : BQ_E_MEMORY;
    if (error != BQ_OK) {
        free(log);
        storage->release(storage);
        return error;
    }
    log->storage = storage;
    log->config = *config;
    log->active_file = log->ahead_file = log->read_file = -1;
    int locked = storage->lock(storage, LOG_LOCK_NAME);
    error = locked >= 0              ? scan_init(&log->read_scan, log->storage, LOG_READ_SCAN_BYTES)
            : locked == -EWOULDBLOCK ? LOG_E_LOCKED
                                     : system_error(locked);
    opening_t opening = {.restore = restore, .progress = progress, .context = context};
    if (error == BQ_OK) error = log_recover(log, &opening, report);
    if (error == BQ_OK) error = buffers_init(log);
    if (error == BQ_OK) {
        atomic_store(&log->durable, log->sure_lsn);
        atomic_store(&log->shown_next_lsn, log->next_lsn);
        limits_set(log);
        error = threads_start(log);
    }
    if (error != BQ_OK) {
        int reason = errno;
        log_free(log);
        errno = reason;
        return error;
    }
    *out = log;
    return BQ_OK;
}

/* Wait for the batch being written; false: it cannot be, and waiting longer would not help. */
static bool handed_wait(log_t *log) {
    gate_enter(&log->work);
    uint32_t stuck = log->stuck;
    while (log->handed && log->stuck < stuck + 2) gate_wait(&log->work, -1);
    bool written = !log->handed;
    gate_leave(&log->work);
    return written && !atomic_load(&log->failed);
}

void log_close(log_t *log) {
    bool written = handed_wait(log);
    if (written && log_commit(log)) written = handed_wait(log);
    threads_stop(log);
    if (written && !log_gathered(log)) close_clean(log);
    log_free(log);
}
