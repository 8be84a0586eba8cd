/* wal/tool.c: the log without a broker: what `blipmq wal verify`, `export` and `repair` are made of.
 *
 * Invariant: verify and export only read. All three walk the log with the same code that recovery uses, so that they cannot
 * call good what a broker would not.
 */
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "wal/wal_internal.h"

#define STEP_BYTES (4u << 20) /* read between two reports of progress */

_Static_assert((int)BQ_WAL_E_FULL == (int)LOG_E_FULL && (int)BQ_WAL_E_LOCKED == (int)LOG_E_LOCKED &&
                   (int)BQ_WAL_E_VERSION == (int)LOG_E_VERSION,
               "the boundary's codes are the log's");

struct bq_wal {
    storage_t *storage;
    recover_t recover;
    uint32_t mode;
    bool checkpoint_given, done;
    uint64_t shown, lost_records;
    char *directory;
};

static int wal_lock(bq_wal_t *wal) {
    int locked = wal->storage->lock(wal->storage, LOG_LOCK_NAME);
    if (locked == -EWOULDBLOCK) return LOG_E_LOCKED;
    bool reads = wal->mode != BQ_WAL_REPAIR; /* somebody's copy on a medium that cannot be written */
    return locked >= 0 || (reads && (locked == -EROFS || locked == -EACCES)) ? BQ_OK : system_error(locked);
}

static int wal_begin(bq_wal_t *wal, const char *directory) {
    int error = 0;
    if (access(directory, F_OK) != 0) return BQ_E_SYSTEM; /* before storage_posix would make it */
    size_t size = strlen(directory) + 1;
    wal->directory = malloc(size);
    if (!wal->directory) return BQ_E_MEMORY;
    memcpy(wal->directory, directory, size);
    wal->storage = storage_posix(directory, &error);
    if (!wal->storage) return system_error(error);
    error = wal_lock(wal);
    return error == BQ_OK ? recover_begin(&wal->recover, wal->storage) : error;
}

bq_wal_t *bq_wal_open(const char *directory, uint32_t mode, int *error) {
    bq_wal_t *wal = mode <= BQ_WAL_REPAIR ? calloc(1, sizeof *wal) : NULL;
    *error = mode > BQ_WAL_REPAIR ? BQ_E_ARGUMENT : BQ_E_MEMORY;
    if (!wal) return NULL;
    wal->mode = mode;
    wal->recover.file = -1;
    *error = wal_begin(wal, directory);
    if (*error == BQ_OK) return wal;
    int reason = errno;
    bq_wal_close(wal);
    errno = reason;
    return NULL;
}

static void wal_release(bq_wal_t *wal) {
    if (!wal->storage) return;
    recover_free(&wal->recover);
    wal->storage->release(wal->storage);
    wal->storage = NULL;
}

void bq_wal_close(bq_wal_t *wal) {
    wal_release(wal);
    free(wal->directory);
    free(wal);
}

/* A broker's start and orderly end, with a configuration that fits any log: what is carried over brings its own sizes. */
static int wal_repair(bq_wal_t *wal) {
    const log_config_t config = {.max_bytes = UINT64_MAX / 2, .segment_bytes = 4u << 20, .batch_bytes_max = 512u << 10};
    int error = 0;
    log_t *log;
    wal_release(wal);
    storage_t *storage = storage_posix(wal->directory, &error);
    if (!storage) return system_error(error);
    error = log_open(&log, storage, &config, NULL, NULL, NULL, NULL);
    if (error != BQ_OK) return error;
    gate_enter(&log->table);
    bool begun = log->active != NULL;
    gate_leave(&log->table);
    log_close(log);
    return begun ? BQ_OK : system_error(-ENOSPC); /* a broker could serve what is there; mended it is not */
}

static void item_progress(const bq_wal_t *wal, bq_wal_item_t *item) {
    const recover_t *recover = &wal->recover;
    uint64_t done = recover->done_bytes + (recover->finished ? 0 : recover->scan.offset);
    item->total_bytes = recover->total_bytes;
    item->done_bytes = done < item->total_bytes ? done : item->total_bytes;
}

static void item_finding(bq_wal_t *wal, bq_wal_item_t *item, const recover_finding_t *finding) {
    item->kind = BQ_WAL_FINDING;
    item->name = recover_rules[finding->kind].name;
    item->text = recover_rules[finding->kind].text;
    item->segment = finding->number;
    item->offset = finding->offset;
    item->bytes = finding->bytes;
    item->first_lsn = finding->first_lsn;
    item->last_lsn = finding->last_lsn;
    if (finding->kind == RECOVER_LOST || finding->kind == RECOVER_LOST_AT_MOST)
        wal->lost_records += finding->last_lsn - finding->first_lsn + 1;
}

static void item_record(bq_wal_item_t *item, const log_record_t *record, uint32_t kind) {
    item->kind = kind;
    item->lsn = record->lsn;
    item->type = record->type;
    item->flags = record->flags;
    item->data = record->bytes;
    item->data_size = record->size;
}

static int wal_end(bq_wal_t *wal, bq_wal_item_t *item) {
    const recover_t *recover = &wal->recover;
    const log_report_t *report = &recover->report;
    item->kind = BQ_WAL_DONE;
    for (uint32_t i = recover->count; i-- > 0;)
        if (recover->segments[i]->records) item->first_lsn = recover->segments[i]->first_lsn;
    item->last_lsn = recover->expected ? recover->expected - 1 : 0;
    item->records = report->records;
    item->segments = report->segments;
    item->bytes = report->bytes;
    item->torn_bytes = report->torn_bytes;
    item->lost_ranges = report->lost_ranges;
    item->lost_records = wal->lost_records;
    item->lost_unknown = (uint8_t)report->lost_unknown;
    item->checkpoint_lsn = report->checkpoint_lsn;
    item->checkpoints_bad = report->checkpoints_bad;
    item->clean = (uint8_t)report->clean;
    wal->done = true;
    return wal->mode == BQ_WAL_REPAIR ? wal_repair(wal) : BQ_OK;
}

int bq_wal_step(bq_wal_t *wal, bq_wal_item_t *item) {
    recover_t *recover = &wal->recover;
    log_record_t record;
    recover_finding_t finding;
    memset(item, 0, sizeof *item);
    if (wal->done) return 0;
    if (wal->mode == BQ_WAL_EXPORT && recover->checkpoint.generation && !wal->checkpoint_given) {
        record =
            (log_record_t){.lsn = recover->checkpoint.lsn, .bytes = recover->checkpoint_bytes, .size = recover->checkpoint.size};
        item_record(item, &record, BQ_WAL_CHECKPOINT);
        wal->checkpoint_given = true;
        return 1;
    }
    for (;;) {
        int event = recover_next(recover, &record, &finding);
        if (event < 0) return event;
        item_progress(wal, item);
        if (event == RECOVER_FINDING) item_finding(wal, item, &finding);
        if (event == RECOVER_RECORD && wal->mode == BQ_WAL_EXPORT) item_record(item, &record, BQ_WAL_RECORD);
        if (event == RECOVER_END) {
            int error = wal_end(wal, item);
            return error == BQ_OK ? 1 : error;
        }
        if (item->kind) return 1;
        if (item->done_bytes - wal->shown < STEP_BYTES) continue;
        wal->shown = item->done_bytes;
        item->kind = BQ_WAL_PROGRESS;
        return 1;
    }
}
