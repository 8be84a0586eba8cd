/* test_wal_tool.c: verify, export and repair on real directories, and the kept WALs of released versions.
 *
 *      test_wal_tool DIRECTORY KEPT      runs the tests in DIRECTORY; KEPT is a copy of a kept WAL
 *      test_wal_tool make DIRECTORY      writes the WAL that is kept
 *
 * Invariant: the LSNs of the kept WAL determine its contents, so that every later version can check them.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "wal/wal_internal.h"

#define RECORDS 40u

static const wal_config_t config = {.max_bytes = 1u << 20, .segment_bytes = 4096, .batch_bytes_max = 1024};

static uint32_t payload_of(uint64_t lsn, uint8_t bytes[64]) {
    uint32_t size = (uint32_t)(lsn * 7 % 61);
    for (uint32_t i = 0; i < size; i++) bytes[i] = (uint8_t)(lsn + i);
    return size;
}

static wal_t *open_at(const char *directory, wal_report_t *report) {
    int error;
    wal_t *wal;
    storage_t *storage = storage_disk(directory, &error);
    CHECK(storage && wal_open(&wal, storage, &config, NULL, NULL, report, NULL) == BQ_OK);
    wal_settle(wal);
    return wal;
}

/* Opened twice: the first run's records are in one segment, the second run's in the next. A checkpoint, and a clean close. */
static void make(const char *directory) {
    uint8_t bytes[64];
    for (uint64_t round = 0; round < 2; round++) {
        wal_t *wal = open_at(directory, NULL);
        for (uint64_t lsn = round * RECORDS / 2 + 1; lsn <= (round + 1) * RECORDS / 2; lsn++) {
            wal_part_t part = {bytes, payload_of(lsn, bytes)};
            CHECK(wal_append(wal, (uint8_t)(1 + lsn % 5), (uint8_t)lsn, &part, 1, false) == (int64_t)lsn);
            if (lsn % 4 == 0) wal_commit(wal);
            wal_settle(wal);
        }
        if (round) CHECK(wal_checkpoint(wal, 10, (const uint8_t *)"ten", 3, 1) == BQ_OK);
        wal_settle(wal);
        wal_close(wal);
    }
}

/* Step to the end: returns the totals and the findings. */
static bq_wal_item_t run(const char *directory, uint32_t mode, uint64_t *records, char findings[256]) {
    int error, result;
    bq_wal_item_t item;
    bq_wal_tool_t *tool = bq_wal_tool_open(directory, mode, &error);
    CHECK(tool && error == BQ_OK);
    findings[0] = 0;
    *records = 0;
    while ((result = bq_wal_tool_step(tool, &item)) == 1 && item.kind != BQ_WAL_DONE) {
        uint8_t bytes[64];
        if (item.kind == BQ_WAL_FINDING) strcat(strcat(findings, item.name), " ");
        if (item.kind == BQ_WAL_CHECKPOINT) CHECK(item.lsn == 10 && item.data_size == 3 && memcmp(item.data, "ten", 3) == 0);
        if (item.kind != BQ_WAL_RECORD) continue;
        CHECK(item.data_size == payload_of(item.lsn, bytes) && memcmp(item.data, bytes, item.data_size) == 0);
        CHECK(item.type == 1 + item.lsn % 5 && item.flags == (uint8_t)item.lsn);
        ++*records;
    }
    CHECK(result == 1);
    bq_wal_item_t after;
    CHECK(bq_wal_tool_step(tool, &after) == 0);
    bq_wal_tool_close(tool);
    return item;
}

static void test_an_undamaged_wal_verifies_and_is_exported_in_order(const char *directory) {
    char findings[256];
    uint64_t records;
    bq_wal_item_t done = run(directory, BQ_WAL_VERIFY, &records, findings);
    CHECK(findings[0] == 0 && records == 0 && done.records == RECORDS && done.first_lsn == 1 && done.last_lsn == RECORDS);
    CHECK(done.clean == 1 && done.checkpoint_lsn == 10 && done.lost_ranges == 0 && done.segments == 2);
    done = run(directory, BQ_WAL_EXPORT, &records, findings);
    CHECK(records == RECORDS && findings[0] == 0 && done.done_bytes == done.total_bytes);
}

static void test_a_missing_directory_is_not_created(const char *directory) {
    char name[4200];
    int error;
    snprintf(name, sizeof name, "%s/nowhere", directory);
    CHECK(bq_wal_tool_open(name, BQ_WAL_VERIFY, &error) == NULL && error == BQ_E_SYSTEM && errno == ENOENT &&
          !storage_present(name));
    CHECK(bq_wal_tool_open(directory, 9, &error) == NULL && error == BQ_E_ARGUMENT);
}

static void test_a_wal_in_use_is_not_changed(const char *directory) {
    int error;
    wal_t *wal = open_at(directory, NULL);
    for (uint32_t mode = 0; mode < 3; mode++)
        CHECK(bq_wal_tool_open(directory, mode, &error) == NULL && error == BQ_WAL_E_LOCKED);
    wal_close(wal);
}

static void test_damage_is_reported_and_a_repaired_wal_verifies(const char *directory) {
    char findings[256], name[4200];
    uint64_t records;
    snprintf(name, sizeof name, "%s/wal-0000000001.log", directory);
    FILE *file = fopen(name, "r+b");
    CHECK(file && fseek(file, 1100, SEEK_SET) == 0 && fwrite("damaged", 1, 7, file) == 7 && fclose(file) == 0);
    bq_wal_item_t done = run(directory, BQ_WAL_VERIFY, &records, findings);
    CHECK(strcmp(findings, "DAMAGED LOST ") == 0 && done.lost_ranges == 1 && done.records + done.lost_records == RECORDS);
    uint64_t left = done.records;
    run(directory, BQ_WAL_REPAIR, &records, findings);
    done = run(directory, BQ_WAL_EXPORT, &records, findings);
    CHECK(done.clean == 1 && records == left && done.last_lsn == RECORDS);
}

static void test_a_wal_of_an_earlier_version_opens_with_all_its_records(const char *kept) {
    char findings[256];
    uint64_t records;
    run(kept, BQ_WAL_EXPORT, &records, findings);
    CHECK(records == RECORDS && findings[0] == 0);
    wal_report_t report;
    wal_close(open_at(kept, &report));
    CHECK(report.records == RECORDS && report.next_lsn == RECORDS + 1 && report.clean == 1 && report.checkpoint_lsn == 10);
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    if (strcmp(arguments[1], "make") == 0) {
        make(arguments[2]);
        return 0;
    }
    char directory[4096];
    CHECK(snprintf(directory, sizeof directory, "%s/log", arguments[1]) < 4096);
    make(directory);
    test_an_undamaged_wal_verifies_and_is_exported_in_order(directory);
    test_a_missing_directory_is_not_created(directory);
    test_a_wal_in_use_is_not_changed(directory);
    test_damage_is_reported_and_a_repaired_wal_verifies(directory);
    test_a_wal_of_an_earlier_version_opens_with_all_its_records(arguments[2]);
    return 0;
}
