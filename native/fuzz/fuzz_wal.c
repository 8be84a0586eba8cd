/* fuzz_wal.c: any bytes as the files of a WAL directory, for `blipmq wal verify`, `export` and `repair`.
 *
 * Invariant: all three end. Export returns the records that verify counts, in LSN order, and their bytes can be read. After a
 * successful repair all records exported before are found again, and the WAL is closed cleanly.
 */
#define FILE_BYTES_MAX (8u << 20) /* a repair creates segments of 4 MiB */
#include "any_disk.h"

typedef struct sums {
    uint64_t records, last_lsn, content, findings;
    bq_wal_item_t end;
    int result;
} sums_t;

static sums_t run(uint32_t mode) {
    sums_t sums = {0};
    bq_wal_item_t item;
    bq_wal_tool_t *tool = bq_wal_tool_open("/", mode, &sums.result);
    if (!tool) {
        CHECK(sums.result < 0);
        return sums;
    }
    while ((sums.result = bq_wal_tool_step(tool, &item)) == 1) {
        CHECK(item.done_bytes <= item.total_bytes);
        if (item.kind == BQ_WAL_FINDING) CHECK(item.name && item.text && ++sums.findings);
        if (item.kind == BQ_WAL_DONE) sums.end = item;
        if (item.kind != BQ_WAL_RECORD && item.kind != BQ_WAL_CHECKPOINT) continue;
        CHECK(mode == BQ_WAL_EXPORT);
        for (uint32_t i = 0; i < item.data_size; i++) sums.content += item.data[i];
        if (item.kind == BQ_WAL_CHECKPOINT) continue;
        CHECK(item.lsn > sums.last_lsn);
        sums.last_lsn = item.lsn;
        sums.records++;
    }
    if (sums.result == 0) CHECK(sums.end.kind == BQ_WAL_DONE);
    bq_wal_tool_close(tool);
    return sums;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size > 60000) return 0;
    disk_make(data, size);
    sums_t verified = run(BQ_WAL_VERIFY), exported = run(BQ_WAL_EXPORT);
    CHECK(verified.result == exported.result && verified.findings == exported.findings);
    if (verified.result == 0) CHECK(exported.records == verified.end.records && exported.records == exported.end.records);
    /* slow, because it creates files of 4 MiB: not for every input */
    bool repairs = size && (data[0] & OPEN) && data[size - 1] % 8 == 0;
    if (repairs && run(BQ_WAL_REPAIR).result == 0) {
        sums_t after = run(BQ_WAL_EXPORT);
        CHECK(after.result == 0 && after.records == exported.records && after.end.clean && !after.end.torn_bytes);
    }
    sim_disk_free(disk);
    return 0;
}
