/* fuzz_log.c: any bytes as the files of a WAL directory, recovered twice and opened.
 *
 * Invariant: for any bytes, recovery ends, reads nothing outside them, LSNs rise, a second recovery finds the same, and a
 * record that is appended afterwards is found again.
 */
#include "any_disk.h"

typedef struct sums {
    uint64_t records, last, bytes, findings;
    int result;
} sums_t;

static sums_t walk(void) {
    sums_t sums = {0};
    recover_t recover;
    wal_record_t record;
    recover_finding_t finding;
    storage_t *storage = sim_disk_storage(disk);
    sums.result = recover_begin(&recover, storage);
    for (int event = 1; sums.result == BQ_OK && event != RECOVER_END;) {
        event = recover_next(&recover, &record, &finding);
        CHECK(event >= 0);
        sums.findings += event == RECOVER_FINDING;
        if (event != RECOVER_RECORD) continue;
        CHECK(record.lsn > sums.last);
        sums.last = record.lsn;
        sums.records++;
        for (uint32_t i = 0; i < record.size; i++) sums.bytes += record.bytes[i];
    }
    if (sums.result == BQ_OK) recover_free(&recover);
    storage->release(storage);
    return sums;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const wal_config_t config = {.max_bytes = 1u << 20, .segment_bytes = 8192, .batch_bytes_max = 2048};
    if (size > 60000) return 0;
    disk_make(data, size);
    sums_t first = walk(), second = walk();
    CHECK(first.records == second.records && first.last == second.last && first.findings == second.findings &&
          first.bytes == second.bytes);
    if (size && (data[0] & OPEN) && first.result == BQ_OK) { /* with its threads; the appended record must be found again */
        wal_t *wal;
        wal_report_t before, after;
        CHECK(wal_open(&wal, sim_disk_storage(disk), &config, NULL, NULL, &before, NULL) == BQ_OK);
        CHECK(before.records == first.records);
        CHECK(wal_append(wal, 1, 0, &(wal_part_t){"x", 1}, 1, WAL_URGENT) == (int64_t)before.next_lsn);
        wal_close(wal);
        CHECK(wal_open(&wal, sim_disk_storage(disk), &config, NULL, NULL, &after, NULL) == BQ_OK);
        CHECK(after.next_lsn == before.next_lsn + 1);
        wal_close(wal);
    }
    sim_disk_free(disk);
    return 0;
}
