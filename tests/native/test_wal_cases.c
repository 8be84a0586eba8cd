/* test_wal_cases.c: recovery's table of cases, each case created by hand.
 *
 * Invariant: every case of recover_rules occurs here at least once, with its expected report and records.
 */
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "base/crc32.h"
#include "wal/wal_internal.h"
#include "sim_disk.h"

static const wal_config_t config = {.max_bytes = 1u << 20, .segment_bytes = 4096, .batch_bytes_max = 1024};
static bool met[RECOVER_CASES_COUNT];

typedef struct seen {
    uint64_t first, last, count, checkpoint;
    bool gaps;
    wal_report_t report;
} seen_t;

static bool visit(void *context, const wal_record_t *record) {
    seen_t *seen = context;
    if (record->type == 0) {
        seen->checkpoint = record->lsn;
        return true;
    }
    if (!seen->count++) seen->first = record->lsn;
    if (seen->count > 1 && record->lsn != seen->last + 1) seen->gaps = true;
    seen->last = record->lsn;
    CHECK(record->size == 100 && record->bytes[0] == (uint8_t)record->lsn);
    return true;
}

static void append(wal_t *wal, uint32_t count) {
    uint8_t bytes[100] = {0};
    while (count--) {
        wal_stats_t stats;
        wal_stats(wal, &stats);
        bytes[0] = (uint8_t)stats.next_lsn;
        CHECK(wal_append(wal, WAL_PUBLISH, 0, &(wal_part_t){bytes, sizeof bytes}, 1, false) == (int64_t)stats.next_lsn);
        wal_commit(wal);
        wal_settle(wal);
    }
}

static wal_t *open_with(sim_disk_t *disk, seen_t *seen) {
    wal_t *wal;
    *seen = (seen_t){0};
    CHECK(wal_open(&wal, sim_disk_storage(disk), &config, visit, seen, &seen->report, NULL) == BQ_OK);
    wal_settle(wal);
    return wal;
}

/* Sixty records of 128 bytes in three segments (23 per segment), each in its own batch; closed cleanly unless `unclean`. */
static sim_disk_t *disk_of_sixty(bool unclean) {
    sim_disk_t *disk = sim_disk_new(1);
    seen_t seen;
    wal_t *wal = open_with(disk, &seen);
    append(wal, 60);
    if (unclean) sim_disk_fail_at(disk, sim_disk_calls(disk), 5, SIM_FOR_EVER); /* EIO: nothing more is written */
    wal_close(wal);
    sim_disk_cut(disk, 3);
    return disk;
}

/* The cases that a walk finds, as bits. */
static uint32_t cases_of(sim_disk_t *disk) {
    recover_t recover;
    wal_record_t record;
    recover_finding_t finding;
    storage_t *storage = sim_disk_storage(disk);
    uint32_t cases = 0;
    CHECK(recover_begin(&recover, storage) == BQ_OK);
    for (int event; (event = recover_next(&recover, &record, &finding)) != RECOVER_END;) {
        CHECK(event > 0);
        if (event == RECOVER_FINDING) cases |= 1u << finding.kind;
    }
    recover_free(&recover);
    storage->release(storage);
    for (uint32_t i = 0; i < RECOVER_CASES_COUNT; i++) met[i] = met[i] || (cases >> i & 1);
    return cases;
}

#define CASE(name) (1u << RECOVER_##name)

/* Open twice. Both times the same records and the same loss are found, and the WAL can be written to. */
static void expect(sim_disk_t *disk, uint32_t cases, uint64_t records, uint64_t lost_first, uint64_t lost_last,
                   uint64_t next_lsn) {
    uint32_t found = cases_of(disk);
    if (found != cases) fprintf(stderr, "cases %x, expected %x\n", found, cases);
    CHECK(found == cases);
    for (int round = 0; round < 2; round++) {
        seen_t seen;
        wal_t *wal = open_with(disk, &seen);
        CHECK(seen.count == records && seen.report.next_lsn == next_lsn);
        CHECK(seen.report.lost_first_lsn == lost_first && seen.report.lost_last_lsn == lost_last);
        CHECK(seen.gaps == (lost_first > 1 && lost_last + 1 < next_lsn));
        wal_close(wal);
    }
    seen_t seen;
    wal_t *wal = open_with(disk, &seen);
    append(wal, 1);
    wal_close(wal);
    sim_disk_free(disk);
}

static void change(sim_disk_t *disk, const char *name, uint64_t offset) {
    uint64_t size;
    uint8_t *bytes = sim_disk_bytes(disk, name, &size);
    CHECK(bytes && offset < size);
    bytes[offset] ^= 0x40;
    sim_disk_put(disk, name, bytes, size);
}

static bool has(sim_disk_t *disk, const char *name) { return sim_disk_bytes(disk, name, NULL) != NULL; }

static void copy(sim_disk_t *disk, const char *from, const char *to) {
    uint64_t size;
    uint8_t *bytes = sim_disk_bytes(disk, from, &size);
    CHECK(bytes);
    sim_disk_put(disk, to, bytes, size);
}

#define FIRST "wal-0000000001.log"
#define SECOND "wal-0000000002.log"
#define THIRD "wal-0000000003.log"
#define FOURTH "wal-0000000004.log"
#define RECORD(n) (FORMAT_HEADER_ROOM + (n)*128u) /* offset of the n-th record of a segment */

static void test_a_wal_that_was_closed_is_restored_completely(void) { expect(disk_of_sixty(false), 0, 60, 0, 0, 61); }
static void test_a_synced_wal_that_was_not_closed_is_restored_completely(void) { expect(disk_of_sixty(true), 0, 60, 0, 0, 61); }

static void test_a_damaged_header_is_replaced_by_its_copy(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    change(disk, SECOND, 20);
    change(disk, THIRD, FORMAT_HEADER_COPY + 8); /* the version: a flipped bit does not count as a newer version */
    expect(disk, CASE(HEADER_COPY), 60, 0, 0, 61);
}

/* Zero a range of a file. */
static void wipe(sim_disk_t *disk, const char *name, uint64_t offset, uint64_t bytes) {
    uint64_t size;
    uint8_t *data = sim_disk_bytes(disk, name, &size);
    CHECK(data && offset + bytes <= size);
    memset(data + offset, 0, bytes);
    sim_disk_put(disk, name, data, size);
}

static void test_a_damaged_header_at_the_end_of_a_file_loses_no_record(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    change(disk, SECOND, config.segment_bytes - 20);
    expect(disk, CASE(HEADER_COPY), 60, 0, 0, 61);
}

static void test_a_segment_without_any_header_is_moved_aside_and_its_lsns_are_reported(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    change(disk, SECOND, 20);
    change(disk, SECOND, FORMAT_HEADER_COPY + 20);
    change(disk, SECOND, config.segment_bytes - 20);
    CHECK(cases_of(disk) == (CASE(HEADER_BAD) | CASE(MISSING) | CASE(LOST)));
    seen_t seen;
    wal_close(open_with(disk, &seen));
    CHECK(has(disk, "aside-" SECOND) && !has(disk, SECOND));
    expect(disk, CASE(MISSING) | CASE(LOST), 37, 24, 46, 61);
}

static void test_an_empty_file_is_moved_aside(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    sim_disk_put(disk, THIRD, (const uint8_t *)"", 0);
    CHECK(cases_of(disk) == (CASE(HEADER_MISSING) | CASE(GONE) | CASE(LOST)));
    seen_t seen;
    wal_t *wal = open_with(disk, &seen); /* after a clean close the last LSN is known */
    CHECK(seen.count == 46 && seen.report.clean == 0 && seen.report.lost_first_lsn == 47 && seen.report.lost_last_lsn == 60);
    wal_close(wal);
    CHECK(has(disk, "aside-" THIRD));
    expect(disk, CASE(LOST), 46, 47, 60, 61);
}

/* After damage to an unclean WAL the exact loss is unknown. The WAL opens twice with the same result, new LSNs follow the
 * largest possible lost one, and new records are found again. */
static void expect_at_most(sim_disk_t *disk, uint32_t cases, uint64_t records, uint64_t lost_first, uint64_t acknowledged) {
    uint32_t found = cases_of(disk);
    if (found != cases) fprintf(stderr, "cases %x, expected %x\n", found, cases);
    CHECK(found == cases);
    uint64_t next_lsn = 0;
    for (int round = 0; round < 3; round++) {
        seen_t seen;
        wal_t *wal = open_with(disk, &seen);
        CHECK(seen.count == records && seen.report.lost_first_lsn == lost_first && seen.report.lost_unknown == 1);
        CHECK(seen.report.lost_last_lsn >= acknowledged && seen.report.lost_last_lsn < acknowledged + 1000);
        if (!round) CHECK(seen.report.damaged_files > 0 && seen.report.clean == 0);
        if (round) CHECK(seen.report.next_lsn == next_lsn);
        next_lsn = seen.report.next_lsn;
        CHECK(next_lsn == seen.report.lost_last_lsn + 1);
        if (round < 2)
            wal_close(wal);
        else
            append(wal, 1);
        if (round == 2) wal_close(wal);
    }
    seen_t seen;
    wal_close(open_with(disk, &seen));
    CHECK(seen.count == records + 1 && seen.last == next_lsn && seen.report.lost_unknown == 1);
    sim_disk_free(disk);
}

static void test_a_missing_newest_segment_after_a_kill_is_reported(void) {
    sim_disk_t *disk = disk_of_sixty(true);
    sim_disk_remove(disk, THIRD);
    expect_at_most(disk, CASE(GONE) | CASE(MISSING) | CASE(LOST_AT_MOST), 46, 47, 60);
}

static void test_a_missing_newest_segment_is_reported_if_the_preallocated_one_is_missing_too(void) {
    sim_disk_t *disk = disk_of_sixty(true);
    sim_disk_remove(disk, THIRD);
    sim_disk_remove(disk, FOURTH);
    expect_at_most(disk, CASE(GONE) | CASE(LOST_AT_MOST), 46, 47, 60);
}

static void test_a_missing_newest_segment_is_reported_without_the_ledger(void) {
    for (int ahead = 0; ahead < 2; ahead++) {
        sim_disk_t *disk = disk_of_sixty(true);
        sim_disk_remove(disk, THIRD);
        sim_disk_remove(disk, WAL_LOCK_NAME);
        if (ahead) sim_disk_remove(disk, FOURTH);
        expect_at_most(disk, CASE(GONE) | CASE(LOST_AT_MOST) | (ahead ? 0 : CASE(MISSING)), 46, 47, 60);
    }
}

static sim_disk_t *disk_of_ten(void) {
    sim_disk_t *disk = sim_disk_new(7);
    seen_t seen;
    wal_t *wal = open_with(disk, &seen);
    append(wal, 10);
    sim_disk_fail_at(disk, sim_disk_calls(disk), 5, SIM_FOR_EVER);
    wal_close(wal);
    sim_disk_cut(disk, 3);
    return disk;
}

static void test_a_missing_or_empty_first_segment_after_a_kill_is_reported(void) {
    sim_disk_t *disk = disk_of_ten();
    sim_disk_remove(disk, FIRST);
    expect_at_most(disk, CASE(GONE) | CASE(LOST_AT_MOST), 0, 1, 10);
    disk = disk_of_ten();
    sim_disk_remove(disk, FIRST);
    sim_disk_remove(disk, WAL_LOCK_NAME); /* the preallocated segment has none before it */
    expect_at_most(disk, CASE(GONE) | CASE(LOST_AT_MOST), 0, 1, 10);
    disk = disk_of_ten();
    sim_disk_remove(disk, FIRST);
    sim_disk_remove(disk, SECOND); /* only LOCK is left */
    expect_at_most(disk, CASE(GONE) | CASE(LOST_AT_MOST), 0, 1, 10);
    disk = disk_of_ten();
    sim_disk_put(disk, FIRST, (const uint8_t *)"", 0);
    expect_at_most(disk, CASE(GONE) | CASE(HEADER_MISSING) | CASE(LOST_AT_MOST), 0, 1, 10);
}

static void test_a_truncated_newest_segment_after_a_kill_is_reported(void) {
    sim_disk_t *disk = disk_of_sixty(true);
    uint64_t size;
    uint8_t *bytes = sim_disk_bytes(disk, THIRD, &size);
    sim_disk_put(disk, THIRD, bytes, RECORD(5) + 16);
    expect_at_most(disk, CASE(CUT) | CASE(DAMAGED) | CASE(LOST_AT_MOST), 51, 52, 60);
    disk = disk_of_sixty(true);
    bytes = sim_disk_bytes(disk, THIRD, &size);
    sim_disk_put(disk, THIRD, bytes, FORMAT_HEADER_ROOM);
    expect_at_most(disk, CASE(CUT) | CASE(GONE) | CASE(LOST_AT_MOST), 46, 47, 60);
}

static void test_a_zeroed_beginning_loses_only_the_records_in_it(void) {
    sim_disk_t *disk = disk_of_sixty(true);
    wipe(disk, THIRD, 0, RECORD(4));
    expect(disk, CASE(HEADER_PAGE) | CASE(DAMAGED) | CASE(LOST), 56, 47, 50, 61);
    disk = disk_of_sixty(true);
    wipe(disk, THIRD, 0, config.segment_bytes - FORMAT_END_BYTES); /* as if it had never had a record */
    expect_at_most(disk, CASE(HEADER_PAGE) | CASE(GONE) | CASE(LOST_AT_MOST), 46, 47, 60);
    disk = disk_of_sixty(true);
    wipe(disk, THIRD, 0, config.segment_bytes);
    expect_at_most(disk, CASE(HEADER_BAD) | CASE(GONE) | CASE(MISSING) | CASE(LOST_AT_MOST), 46, 47, 60);
}

static void test_damage_to_a_preallocated_segment_loses_no_record_and_is_reported(void) {
    for (int way = 0; way < 4; way++) {
        sim_disk_t *disk = disk_of_sixty(true);
        if (way == 0) wipe(disk, FOURTH, 0, 2048);
        if (way == 1) wipe(disk, FOURTH, 0, config.segment_bytes);
        if (way == 2) sim_disk_put(disk, FOURTH, (const uint8_t *)"", 0);
        if (way == 3) sim_disk_remove(disk, FOURTH); /* nothing to report: it need not exist */
        seen_t seen;
        wal_close(open_with(disk, &seen));
        CHECK(seen.count == 60 && !seen.report.lost_ranges && seen.report.damaged_files == (way < 3));
        expect(disk, 0, 60, 0, 0, 61);
    }
}

static void test_a_lock_file_with_other_contents_is_moved_aside_and_not_overwritten(void) {
    sim_disk_t *disk = disk_of_ten();
    sim_disk_put(disk, WAL_LOCK_NAME, (const uint8_t *)"precious", 8);
    seen_t seen;
    wal_close(open_with(disk, &seen));
    uint64_t size;
    CHECK(seen.count == 10 && seen.report.strange_files == 1);
    CHECK(memcmp(sim_disk_bytes(disk, "aside-" WAL_LOCK_NAME, &size), "precious", 8) == 0 && size == 8);
    expect(disk, 0, 10, 0, 0, 11);
}

static void test_an_impossible_file_number_is_not_continued(void) {
    static const char *const strays[] = {"wal-9999999999999999999.log", "wal-99999999999999999.log", "wal-0000000500.log"};
    for (uint32_t i = 0; i < 3; i++) {
        sim_disk_t *disk = disk_of_sixty(false);
        sim_disk_put(disk, strays[i], (const uint8_t *)"", 0);
        sim_disk_put(disk, "checkpoint-9999999999999999999.ckp", (const uint8_t *)"", 0);
        sim_disk_put(disk, "checkpoint-99999999999999999.ckp", (const uint8_t *)"", 0);
        CHECK(cases_of(disk) == (CASE(CHECKPOINT_BAD) | (i ? CASE(STRAY) : 0)));
        seen_t seen;
        wal_t *wal = open_with(disk, &seen);
        CHECK(seen.count == 60 && !seen.report.damaged_files && seen.report.strange_files == 2);
        append(wal, 60);
        CHECK(wal_checkpoint(wal, 10, (const uint8_t *)"state", 5, 1) == BQ_OK);
        wal_settle(wal);
        wal_close(wal);
        CHECK(has(disk, "checkpoint-0000000001.ckp"));
        expect(disk, CASE(CHECKPOINT_BAD), 110, 0, 0, 121);
    }
}

static int (*open_all)(storage_t *storage, const char *name, bool create);

static int open_but_links(storage_t *storage, const char *name, bool create) {
    return strcmp(name, "wal-0000000004.log") == 0 && !create ? STORAGE_NOT_A_FILE : open_all(storage, name, create);
}

static void test_a_link_or_a_directory_named_like_a_segment_is_moved_aside(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    sim_disk_put(disk, FOURTH, (const uint8_t *)"a link", 6);
    storage_t *storage = sim_disk_storage(disk);
    open_all = storage->open;
    storage->open = open_but_links;
    seen_t seen = {0};
    wal_t *wal;
    CHECK(wal_open(&wal, storage, &config, visit, &seen, &seen.report, NULL) == BQ_OK);
    wal_settle(wal);
    wal_close(wal);
    CHECK(seen.count == 60 && seen.report.strange_files == 1 && !seen.report.damaged_files);
    CHECK(has(disk, "aside-" FOURTH));
    met[RECOVER_NOT_A_FILE] = true;
    expect(disk, 0, 60, 0, 0, 61);
}

static void test_the_last_note_is_restored(void) {
    sim_disk_t *disk = sim_disk_new(7);
    seen_t seen;
    wal_t *wal = open_with(disk, &seen);
    CHECK(seen.report.note == 0 && !seen.report.note_last);
    wal_note(wal, 77, true);
    wal_note(wal, 80, false);
    wal_close(wal);
    wal = open_with(disk, &seen);
    CHECK(seen.report.note == 80 && seen.report.note_last);
    wal_note(wal, 99, true);
    sim_disk_fail_at(disk, sim_disk_calls(disk), 5, SIM_FOR_EVER);
    wal_close(wal);
    sim_disk_cut(disk, 3);
    wal = open_with(disk, &seen);
    CHECK(seen.report.note == 99 && !seen.report.note_last);
    wal_close(wal);
    sim_disk_free(disk);
}

static void test_a_missing_segment_in_the_middle_loses_exactly_its_records(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    sim_disk_remove(disk, SECOND);
    expect(disk, CASE(MISSING) | CASE(LOST), 37, 24, 46, 61);
}

static void test_a_missing_first_segment_is_a_loss_unless_a_checkpoint_replaces_it(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    sim_disk_remove(disk, FIRST);
    expect(disk, CASE(LOST), 37, 1, 23, 61);
}

static void test_a_segment_of_another_wal_is_moved_aside(void) {
    sim_disk_t *disk = disk_of_sixty(false), *other = sim_disk_new(99);
    seen_t seen;
    wal_t *wal = open_with(other, &seen);
    append(wal, 5);
    wal_close(wal);
    uint64_t size;
    uint8_t *bytes = sim_disk_bytes(other, FIRST, &size);
    sim_disk_put(disk, "wal-0000000007.log", bytes, size);
    sim_disk_free(other);
    CHECK(cases_of(disk) == CASE(FOREIGN));
    expect(disk, CASE(FOREIGN), 60, 0, 0, 61);
}

static void test_of_two_copies_of_a_segment_the_one_with_the_right_name_is_used(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    copy(disk, SECOND, "wal-0000000009.log");
    change(disk, "wal-0000000009.log", RECORD(3));
    expect(disk, CASE(DUPLICATE), 60, 0, 0, 61);
}

static void test_a_renamed_segment_is_identified_by_its_header(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    copy(disk, SECOND, "wal-0000000009.log");
    sim_disk_remove(disk, SECOND);
    expect(disk, CASE(MISNAMED), 60, 0, 0, 61);
}

static void test_damage_in_the_middle_loses_only_the_damaged_record(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    change(disk, FIRST, RECORD(4) + 50);
    expect(disk, CASE(DAMAGED) | CASE(LOST), 59, 5, 5, 61);
}

static void test_damage_before_an_unclean_end_is_not_reported_as_a_torn_end(void) {
    sim_disk_t *disk = disk_of_sixty(true);
    change(disk, THIRD, RECORD(4) + 50);
    CHECK(cases_of(disk) == (CASE(DAMAGED) | CASE(LOST)));
    seen_t seen;
    wal_close(open_with(disk, &seen));
    CHECK(seen.count == 59 && seen.report.lost_first_lsn == 51 && seen.report.lost_last_lsn == 51 && seen.report.torn_bytes == 0);
    CHECK(has(disk, "damaged-0000000003-0000001536"));
    CHECK(has(disk, "aside-" THIRD)); /* its good records were copied */
    expect(disk, CASE(LOST), 59, 51, 51, 61);
}

static void test_a_zeroed_sector_in_the_middle_is_damage(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    uint64_t size;
    uint8_t *bytes = sim_disk_bytes(disk, FIRST, &size);
    memset(bytes + 1536, 0, 512);
    sim_disk_put(disk, FIRST, bytes, size);
    expect(disk, CASE(DAMAGED) | CASE(LOST), 56, 5, 8, 61);
}

static void test_a_file_cut_at_a_record_boundary_is_reported(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    uint64_t size;
    uint8_t *bytes = sim_disk_bytes(disk, SECOND, &size);
    sim_disk_put(disk, SECOND, bytes, RECORD(10));
    expect(disk, CASE(CUT) | CASE(LOST), 47, 34, 46, 61);
}

static void test_a_torn_end_is_dropped_counted_and_copied_aside(void) {
    sim_disk_t *disk = disk_of_sixty(true);
    change(disk, THIRD, RECORD(13) + 30);
    CHECK(cases_of(disk) == CASE(TORN));
    seen_t seen;
    wal_close(open_with(disk, &seen));
    CHECK(seen.count == 59 && seen.report.torn_bytes > 0 && seen.report.lost_ranges == 0 && seen.report.next_lsn == 60);
    CHECK(has(disk, "torn-0000000003-0000002688"));
    expect(disk, 0, 59, 0, 0, 60);
}

static void test_files_of_other_programs_are_not_changed(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    static const char *const names[] = {"notes.txt", "wal-1.log", "wal-0000000001.log.bak", "checkpoint-x.ckp",
                                        "wal-000000000a.log"};
    for (uint32_t i = 0; i < 5; i++) sim_disk_put(disk, names[i], (const uint8_t *)"mine", 4);
    CHECK(cases_of(disk) == 0);
    seen_t seen;
    wal_close(open_with(disk, &seen));
    for (uint32_t i = 0; i < 5; i++) {
        uint64_t size;
        uint8_t *bytes = sim_disk_bytes(disk, names[i], &size);
        CHECK(bytes && size == 4 && memcmp(bytes, "mine", 4) == 0);
    }
    sim_disk_free(disk);
}

static void checkpoint(wal_t *wal, uint64_t lsn, uint64_t keep_from) {
    CHECK(wal_checkpoint(wal, lsn, (const uint8_t *)"state", 5, keep_from) == BQ_OK);
    wal_settle(wal);
}

static void test_a_damaged_checkpoint_only_makes_replay_longer(void) {
    sim_disk_t *disk = sim_disk_new(5);
    seen_t seen;
    wal_t *wal = open_with(disk, &seen);
    append(wal, 30);
    checkpoint(wal, 20, 21);
    append(wal, 30);
    checkpoint(wal, 55, 56);
    wal_close(wal);
    CHECK(has(disk, FIRST)); /* the older generation still needs it */
    wal = open_with(disk, &seen);
    CHECK(seen.checkpoint == 55 && seen.count == 5 && seen.first == 56 && seen.report.checkpoints_bad == 0);
    wal_close(wal);
    change(disk, "checkpoint-0000000002.ckp", 66);
    CHECK(cases_of(disk) == CASE(CHECKPOINT_BAD));
    wal = open_with(disk, &seen);
    CHECK(seen.checkpoint == 20 && seen.count == 40 && seen.first == 21 && seen.report.checkpoints_bad == 1);
    CHECK(seen.report.lost_ranges == 0);
    wal_close(wal);
    sim_disk_free(disk);
}

static void test_a_newer_major_version_is_refused_and_no_file_is_changed(void) {
    static const char *const places[] = {THIRD, "checkpoint-0000000001.ckp"};
    for (uint32_t i = 0; i < 2; i++) {
        sim_disk_t *disk = sim_disk_new(5);
        seen_t seen;
        wal_t *wal = open_with(disk, &seen);
        append(wal, 60);
        checkpoint(wal, 20, 1);
        wal_close(wal);
        uint64_t size;
        uint8_t *bytes = sim_disk_bytes(disk, places[i], &size);
        store_u16(bytes + 8, 2);
        store_u32(bytes + 60, crc32_update(0, bytes, 60));
        sim_disk_put(disk, places[i], bytes, size);
        sim_disk_put(disk, WAL_SEGMENT_TEMPORARY, (const uint8_t *)"left over", 9);
        sim_disk_end_process(disk);
        sim_disk_heal(disk);
        CHECK(wal_open(&wal, sim_disk_storage(disk), &config, visit, &seen, NULL, NULL) == WAL_E_VERSION);
        CHECK(sim_disk_changes(disk) == 0);
        sim_disk_free(disk);
    }
}

static void test_lsns_continue_after_a_checkpoint_when_all_segments_are_missing(void) {
    sim_disk_t *disk = sim_disk_new(5);
    seen_t seen;
    wal_t *wal = open_with(disk, &seen);
    append(wal, 10);
    checkpoint(wal, 10, 11);
    wal_close(wal);
    sim_disk_remove(disk, FIRST);
    wal = open_with(disk, &seen);
    CHECK(seen.report.next_lsn == 11 && seen.report.lost_ranges == 0 && seen.checkpoint == 10);
    wal_close(wal);
    sim_disk_free(disk);
}

static int64_t (*read_all)(storage_t *storage, int file, uint64_t offset, uint8_t *bytes, uint64_t size);

static int64_t read_but_one_page(storage_t *storage, int file, uint64_t offset, uint8_t *bytes, uint64_t size) {
    return offset < 12288 && offset + size > 8192 ? -5 : read_all(storage, file, offset, bytes, size); /* -EIO */
}

static void test_an_unreadable_page_loses_only_the_records_in_it(void) {
    wal_config_t large = config;
    large.segment_bytes = 16384;
    sim_disk_t *disk = sim_disk_new(1);
    wal_t *wal;
    seen_t seen = {0};
    CHECK(wal_open(&wal, sim_disk_storage(disk), &large, visit, &seen, NULL, NULL) == BQ_OK);
    append(wal, 100);
    wal_close(wal);
    for (int round = 0; round < 2; round++) {
        storage_t *storage = sim_disk_storage(disk);
        read_all = storage->read;
        storage->read = read_but_one_page;
        seen = (seen_t){0};
        CHECK(wal_open(&wal, storage, &large, visit, &seen, &seen.report, NULL) == BQ_OK);
        wal_settle(wal);
        CHECK(seen.count == 68 && seen.report.lost_first_lsn == 57 && seen.report.lost_last_lsn == 88 &&
              seen.report.next_lsn == 101);
        wal_close(wal);
    }
    sim_disk_free(disk);
}

static void test_at_most_eight_torn_ends_are_kept(void) {
    sim_disk_t *disk = disk_of_sixty(false);
    for (uint32_t round = 0; round < 12; round++) {
        seen_t seen;
        wal_t *wal = open_with(disk, &seen);
        append(wal, 2);
        sim_disk_fail_at(disk, sim_disk_calls(disk), 5, SIM_FOR_EVER);
        wal_close(wal);
        sim_disk_cut(disk, round);
        char name[64];
        snprintf(name, sizeof name, "wal-%010llu.log", (unsigned long long)0);
        uint64_t newest = 0;
        for (uint32_t i = 0; i < sim_disk_files(disk); i++) {
            uint64_t number = format_segment_number(sim_disk_name(disk, i)), size;
            if (!number || number < newest) continue;
            uint8_t *bytes = sim_disk_bytes(disk, sim_disk_name(disk, i), &size);
            if (bytes[FORMAT_HEADER_ROOM]) newest = number;
        }
        format_segment_name(name, newest);
        uint64_t size, end = 0;
        uint8_t *bytes = sim_disk_bytes(disk, name, &size);
        for (uint64_t at = 0; at < size - FORMAT_END_BYTES; at++)
            if (bytes[at]) end = at;
        change(disk, name, end);
    }
    uint32_t kept = 0;
    for (uint32_t i = 0; i < sim_disk_files(disk); i++) kept += strncmp(sim_disk_name(disk, i), "torn-", 5) == 0;
    CHECK(kept == 8);
    sim_disk_free(disk);
}

#define TEST(name)                                                                                                               \
    { #name, name }

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    TEST(test_a_wal_that_was_closed_is_restored_completely),
    TEST(test_a_synced_wal_that_was_not_closed_is_restored_completely),
    TEST(test_a_damaged_header_is_replaced_by_its_copy),
    TEST(test_a_segment_without_any_header_is_moved_aside_and_its_lsns_are_reported),
    TEST(test_an_empty_file_is_moved_aside),
    TEST(test_a_damaged_header_at_the_end_of_a_file_loses_no_record),
    TEST(test_a_missing_newest_segment_after_a_kill_is_reported),
    TEST(test_a_missing_newest_segment_is_reported_if_the_preallocated_one_is_missing_too),
    TEST(test_a_missing_newest_segment_is_reported_without_the_ledger),
    TEST(test_a_missing_or_empty_first_segment_after_a_kill_is_reported),
    TEST(test_a_truncated_newest_segment_after_a_kill_is_reported),
    TEST(test_a_zeroed_beginning_loses_only_the_records_in_it),
    TEST(test_damage_to_a_preallocated_segment_loses_no_record_and_is_reported),
    TEST(test_a_lock_file_with_other_contents_is_moved_aside_and_not_overwritten),
    TEST(test_an_impossible_file_number_is_not_continued),
    TEST(test_a_link_or_a_directory_named_like_a_segment_is_moved_aside),
    TEST(test_the_last_note_is_restored),
    TEST(test_a_missing_segment_in_the_middle_loses_exactly_its_records),
    TEST(test_a_missing_first_segment_is_a_loss_unless_a_checkpoint_replaces_it),
    TEST(test_a_segment_of_another_wal_is_moved_aside),
    TEST(test_of_two_copies_of_a_segment_the_one_with_the_right_name_is_used),
    TEST(test_a_renamed_segment_is_identified_by_its_header),
    TEST(test_damage_in_the_middle_loses_only_the_damaged_record),
    TEST(test_damage_before_an_unclean_end_is_not_reported_as_a_torn_end),
    TEST(test_a_zeroed_sector_in_the_middle_is_damage),
    TEST(test_a_file_cut_at_a_record_boundary_is_reported),
    TEST(test_a_torn_end_is_dropped_counted_and_copied_aside),
    TEST(test_files_of_other_programs_are_not_changed),
    TEST(test_a_damaged_checkpoint_only_makes_replay_longer),
    TEST(test_a_newer_major_version_is_refused_and_no_file_is_changed),
    TEST(test_lsns_continue_after_a_checkpoint_when_all_segments_are_missing),
    TEST(test_an_unreadable_page_loses_only_the_records_in_it),
    TEST(test_at_most_eight_torn_ends_are_kept),
};

int main(void) {
    for (uint32_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        fprintf(stderr, "%s\n", tests[i].name); /* printed only after a failure: the last line names the test */
        tests[i].run();
    }
    for (uint32_t i = 0; i < RECOVER_CASES_COUNT; i++) CHECK(met[i]);
    return 0;
}
