/* wal/tool.c: the WAL without a broker, for `blipmq wal verify`, `export` and `repair`.
 *
 * Invariant: verify and export only read. All three use the recovery code, so their result is the same as a broker's.
 */
#include <errno.h>
#include <stdlib.h>

#include "wal/wal_internal.h"

#define STEP_BYTES (4u << 20) /* read between two progress reports */

_Static_assert((int)BQ_WAL_E_FULL == (int)WAL_E_FULL && (int)BQ_WAL_E_LOCKED == (int)WAL_E_LOCKED &&
                   (int)BQ_WAL_E_VERSION == (int)WAL_E_VERSION,
               "the codes of the boundary are those of the WAL");

struct bq_wal_tool {
    storage_t *storage;
    recover_t recover;
    uint32_t mode;
    bool checkpoint_given, done;
    uint64_t shown, lost_records;
    char *directory;
};

static int tool_lock(bq_wal_tool_t *tool) {
    int locked = tool->storage->lock(tool->storage, WAL_LOCK_NAME);
    if (locked == -EWOULDBLOCK) return WAL_E_LOCKED;
    bool reads = tool->mode != BQ_WAL_REPAIR; /* for example a copy on a read-only medium */
    return locked >= 0 || (reads && (locked == -EROFS || locked == -EACCES)) ? BQ_OK : system_error(locked);
}

static int tool_begin(bq_wal_tool_t *tool, const char *directory) {
    int error = 0;
    if (!storage_present(directory)) return BQ_E_SYSTEM;
    size_t size = strlen(directory) + 1;
    tool->directory = malloc(size);
    if (!tool->directory) return BQ_E_MEMORY;
    memcpy(tool->directory, directory, size);
    tool->storage = storage_disk(directory, &error);
    if (!tool->storage) return system_error(error);
    error = tool_lock(tool);
    return error == BQ_OK ? recover_begin(&tool->recover, tool->storage) : error;
}

bq_wal_tool_t *bq_wal_tool_open(const char *directory, uint32_t mode, int *error) {
    bq_wal_tool_t *tool = mode <= BQ_WAL_REPAIR ? calloc(1, sizeof *tool) : NULL;
    *error = mode > BQ_WAL_REPAIR ? BQ_E_ARGUMENT : BQ_E_MEMORY;
    if (!tool) return NULL;
    tool->mode = mode;
    tool->recover.file = -1;
    *error = tool_begin(tool, directory);
    if (*error == BQ_OK) return tool;
    int reason = errno;
    bq_wal_tool_close(tool);
    errno = reason;
    return NULL;
}

static void tool_release(bq_wal_tool_t *tool) {
    if (!tool->storage) return;
    recover_free(&tool->recover);
    tool->storage->release(tool->storage);
    tool->storage = NULL;
}

void bq_wal_tool_close(bq_wal_tool_t *tool) {
    tool_release(tool);
    free(tool->directory);
    free(tool);
}

/* Start and close the WAL as a broker does, with a configuration that fits any WAL. The sizes follow the largest record
 * found. */
static int tool_repair(bq_wal_tool_t *tool) {
    const wal_config_t config = {.max_bytes = UINT64_MAX / 2, .segment_bytes = 4u << 20, .batch_bytes_max = 512u << 10};
    int error = 0;
    wal_t *wal;
    tool_release(tool);
    storage_t *storage = storage_disk(tool->directory, &error);
    if (!storage) return system_error(error);
    error = wal_open(&wal, storage, &config, NULL, NULL, NULL, NULL);
    if (error != BQ_OK) return error;
    monitor_enter(&wal->table);
    bool begun = wal->active != NULL;
    monitor_leave(&wal->table);
    wal_close(wal);
    return begun ? BQ_OK : system_error(-ENOSPC); /* a broker could serve this WAL, but it is not repaired */
}

static void item_progress(const bq_wal_tool_t *tool, bq_wal_item_t *item) {
    const recover_t *recover = &tool->recover;
    uint64_t done = recover->done_bytes + (recover->finished ? 0 : recover->scan.offset);
    item->total_bytes = recover->total_bytes;
    item->done_bytes = done < item->total_bytes ? done : item->total_bytes;
}

static void item_finding(bq_wal_tool_t *tool, bq_wal_item_t *item, const recover_finding_t *finding) {
    item->kind = BQ_WAL_FINDING;
    item->name = recover_rules[finding->kind].name;
    item->text = recover_rules[finding->kind].text;
    item->segment = finding->number;
    item->offset = finding->offset;
    item->bytes = finding->bytes;
    item->first_lsn = finding->first_lsn;
    item->last_lsn = finding->last_lsn;
    if (finding->kind == RECOVER_LOST || finding->kind == RECOVER_LOST_AT_MOST)
        tool->lost_records += finding->last_lsn - finding->first_lsn + 1;
}

static void item_record(bq_wal_item_t *item, const wal_record_t *record, uint32_t kind) {
    item->kind = kind;
    item->lsn = record->lsn;
    item->type = record->type;
    item->flags = record->flags;
    item->data = record->bytes;
    item->data_size = record->size;
}

static int tool_end(bq_wal_tool_t *tool, bq_wal_item_t *item) {
    const recover_t *recover = &tool->recover;
    const wal_report_t *report = &recover->report;
    item->kind = BQ_WAL_DONE;
    for (uint32_t i = recover->count; i-- > 0;)
        if (recover->segments[i]->records) item->first_lsn = recover->segments[i]->first_lsn;
    item->last_lsn = recover->expected ? recover->expected - 1 : 0;
    item->records = report->records;
    item->segments = report->segments;
    item->bytes = report->bytes;
    item->torn_bytes = report->torn_bytes;
    item->lost_ranges = report->lost_ranges;
    item->lost_records = tool->lost_records;
    item->lost_unknown = (uint8_t)report->lost_unknown;
    item->checkpoint_lsn = report->checkpoint_lsn;
    item->checkpoints_bad = report->checkpoints_bad;
    item->clean = (uint8_t)report->clean;
    tool->done = true;
    return tool->mode == BQ_WAL_REPAIR ? tool_repair(tool) : BQ_OK;
}

int bq_wal_tool_step(bq_wal_tool_t *tool, bq_wal_item_t *item) {
    recover_t *recover = &tool->recover;
    wal_record_t record;
    recover_finding_t finding;
    memset(item, 0, sizeof *item);
    if (tool->done) return 0;
    if (tool->mode == BQ_WAL_EXPORT && recover->checkpoint.generation && !tool->checkpoint_given) {
        record =
            (wal_record_t){.lsn = recover->checkpoint.lsn, .bytes = recover->checkpoint_bytes, .size = recover->checkpoint.size};
        item_record(item, &record, BQ_WAL_CHECKPOINT);
        tool->checkpoint_given = true;
        return 1;
    }
    for (;;) {
        int event = recover_next(recover, &record, &finding);
        if (event < 0) return event;
        item_progress(tool, item);
        if (event == RECOVER_FINDING) item_finding(tool, item, &finding);
        if (event == RECOVER_RECORD && tool->mode == BQ_WAL_EXPORT) item_record(item, &record, BQ_WAL_RECORD);
        if (event == RECOVER_END) {
            int error = tool_end(tool, item);
            return error == BQ_OK ? 1 : error;
        }
        if (item->kind) return 1;
        if (item->done_bytes - tool->shown < STEP_BYTES) continue;
        tool->shown = item->done_bytes;
        item->kind = BQ_WAL_PROGRESS;
        return 1;
    }
}
