/* test_wal_use.c: the WAL as used by the core: limits, a full disk, the quota, reading back, reclaiming, the lock.
 *
 * Invariant: the result does not depend on the speed of threads. Every step waits until the WAL is idle.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "wal/wal_internal.h"
#include "sim_disk.h"

static const wal_config_t plain = {.max_bytes = 64u << 10, .segment_bytes = 8192, .batch_bytes_max = 2048};
static uint8_t zeros[4096];

static wal_t *open_plain(sim_disk_t *disk, const wal_config_t *config) {
    wal_t *wal;
    CHECK(wal_open(&wal, sim_disk_storage(disk), config, NULL, NULL, NULL, NULL) == BQ_OK);
    wal_settle(wal);
    return wal;
}

static int64_t append(wal_t *wal, uint32_t size, bool urgent) {
    return wal_append(wal, WAL_PUBLISH, 3, &(wal_part_t){zeros, size}, 1, urgent);
}

static wal_stats_t stats_of(wal_t *wal) {
    wal_stats_t stats;
    wal_stats(wal, &stats);
    return stats;
}

/* Append and commit until an append returns something other than "wait for a commit". */
static int64_t fill(wal_t *wal, bool urgent) {
    for (;;) {
        int64_t lsn = append(wal, 400, urgent);
        if (lsn > 0) continue;
        if (lsn != BQ_E_AGAIN) return lsn;
        wal_commit(wal);
        wal_settle(wal);
    }
}

static void flush(wal_t *wal) {
    wal_commit(wal);
    wal_settle(wal);
}

static void checkpoint(wal_t *wal) {
    uint64_t lsn = wal_durable(wal);
    CHECK(wal_checkpoint(wal, lsn, zeros, 10, lsn + 1) == BQ_OK);
    wal_settle(wal);
}

static void test_appends_are_checked_and_lsns_rise_by_one(void) {
    sim_disk_t *disk = sim_disk_new(1);
    wal_t *wal = open_plain(disk, &plain);
    CHECK(append(wal, 0, false) == 1 && append(wal, 1, false) == 2 && append(wal, 1000, false) == 3);
    CHECK(append(wal, 1001, false) == BQ_E_TOO_LARGE);
    CHECK(wal_append(wal, WAL_PAD, 0, NULL, 0, false) == BQ_E_ARGUMENT && wal_append(wal, 0, 0, NULL, 0, true) == BQ_E_ARGUMENT);
    CHECK(append(wal, 1000, false) == BQ_E_AGAIN); /* the batch is full */
    CHECK(wal_durable(wal) == 0 && wal_gathered(wal) == 24 + 32 + 1024);
    CHECK(wal_commit(wal) && !wal_commit(wal));
    wal_settle(wal);
    CHECK(wal_durable(wal) == 3 && !wal_busy(wal) && append(wal, 1000, false) == 4);
    wal_close(wal);
    sim_disk_free(disk);
}

static void test_an_invalid_configuration_is_refused(void) {
    wal_config_t bad[4] = {plain, plain, plain, plain};
    wal_t *wal;
    bad[0].max_bytes = 3 * 8192;
    bad[1].batch_bytes_max = 8192;
    bad[2].segment_bytes = 1024;
    bad[3].block_bytes = 4096;
    sim_disk_t *disk = sim_disk_new(1);
    for (int i = 0; i < 4; i++) CHECK(wal_open(&wal, sim_disk_storage(disk), &bad[i], NULL, NULL, NULL, NULL) == BQ_E_ARGUMENT);
    sim_disk_free(disk);
}

static void test_at_the_quota_publishes_are_refused_urgent_records_are_accepted_and_a_checkpoint_frees_space(void) {
    sim_disk_t *disk = sim_disk_new(1);
    wal_t *wal = open_plain(disk, &plain);
    CHECK(fill(wal, false) == WAL_E_FULL && wal_state(wal) == WAL_E_FULL);
    flush(wal);
    uint64_t before = wal_durable(wal);
    for (int i = 0; i < 8; i++) {
        CHECK(append(wal, 400, true) > 0);
        flush(wal);
    }
    CHECK(wal_durable(wal) == before + 8 && wal_state(wal) == WAL_E_FULL && append(wal, 400, false) == WAL_E_FULL);
    CHECK(fill(wal, true) == WAL_E_FULL); /* the space for urgent records is limited too */
    flush(wal);
    CHECK(stats_of(wal).bytes <= plain.max_bytes && wal_durable(wal) == stats_of(wal).next_lsn - 1);
    checkpoint(wal);
    /* The first generation frees nothing: without it, a full replay would be needed. */
    CHECK(stats_of(wal).reclaimed_segments == 0);
    checkpoint(wal);
    for (int i = 0; i < 50 && wal_state(wal) != 0; i++)
        wal_settle(wal), monitor_enter(&wal->work), monitor_wait(&wal->work, 5), monitor_leave(&wal->work);
    CHECK(stats_of(wal).reclaimed_segments > 4 && wal_state(wal) == 0);
    CHECK(append(wal, 400, false) > 0);
    wal_close(wal);
    sim_disk_free(disk);
}

static void wait_for(wal_t *wal, int state) {
    for (int i = 0; i < 2000 && wal_state(wal) != state; i++) { /* the WAL checks again every WAL_RETRY_MS */
        monitor_enter(&wal->work);
        monitor_wait(&wal->work, 5);
        monitor_leave(&wal->work);
    }
    CHECK(wal_state(wal) == state);
    wal_settle(wal);
}

static void test_publishes_do_not_use_the_free_space_reserve_and_continue_when_there_is_space(void) {
    sim_disk_t *disk = sim_disk_new(1);
    wal_config_t config = plain;
    config.max_bytes = 512u << 10;
    config.reserve_bytes = 40000;
    sim_disk_room(disk, 100000);
    wal_t *wal = open_plain(disk, &config);
    CHECK(fill(wal, false) == WAL_E_FULL);
    flush(wal);
    CHECK(stats_of(wal).bytes <= 60000 && stats_of(wal).bytes > 30000);
    for (int i = 0; i < 40; i++) { /* uses the reserve */
        CHECK(append(wal, 400, true) > 0);
        flush(wal);
    }
    sim_disk_room(disk, 400000);
    wait_for(wal, 0);
    CHECK(append(wal, 400, false) > 0);
    wal_close(wal);
    sim_disk_free(disk);
}

/* A file system that cannot reserve blocks: files get their length without blocks, and a later write finds the disk full. */
static uint64_t blocks_left;
static int (*write_there)(storage_t *storage, int file, uint64_t offset, const uint8_t *bytes, uint64_t size);
static int write_if_room(storage_t *storage, int file, uint64_t offset, const uint8_t *bytes, uint64_t size) {
    if (size > blocks_left) return -ENOSPC;
    blocks_left -= size;
    return write_there(storage, file, offset, bytes, size);
}

static void test_a_batch_waits_while_the_disk_is_full_and_no_record_is_lost(void) {
    sim_disk_t *disk = sim_disk_new(1);
    storage_t *storage = sim_disk_storage(disk);
    write_there = storage->write;
    storage->write = write_if_room;
    blocks_left = 6000;
    wal_t *wal;
    CHECK(wal_open(&wal, storage, &plain, NULL, NULL, NULL, NULL) == BQ_OK);
    wal_settle(wal);
    uint64_t last = 0;
    for (int i = 0; i < 40 && wal_state(wal) == 0; i++) {
        int64_t lsn = append(wal, 400, true);
        if (lsn > 0) last = (uint64_t)lsn;
        flush(wal);
    }
    CHECK(wal_state(wal) == WAL_E_FULL && wal_busy(wal) && wal_durable(wal) < last);
    CHECK(append(wal, 10, false) == WAL_E_FULL && append(wal, 10, true) == (int64_t)last + 1);
    blocks_left = 100000;
    wait_for(wal, 0);
    flush(wal);
    CHECK(wal_durable(wal) == last + 1);
    wal_close(wal);
    sim_disk_cut(disk, 1);
    wal_report_t report;
    CHECK(wal_open(&wal, sim_disk_storage(disk), &plain, NULL, NULL, &report, NULL) == BQ_OK);
    CHECK(report.records == last + 1 && report.clean == 1);
    wal_close(wal);
    sim_disk_free(disk);
}

static void test_a_start_on_a_full_disk_refuses_publishes_until_there_is_space(void) {
    sim_disk_t *disk = sim_disk_new(1);
    sim_disk_room(disk, 0);
    wal_t *wal = open_plain(disk, &plain);
    CHECK(wal_state(wal) == WAL_E_FULL && stats_of(wal).bytes == 0 && wal_durable(wal) == 0);
    CHECK(append(wal, 10, false) == WAL_E_FULL && append(wal, 10, true) == WAL_E_FULL && !wal_commit(wal));
    checkpoint(wal);
    CHECK(stats_of(wal).checkpoint_lsn == 0 && sim_disk_files(disk) == 1 /* LOCK */);
    sim_disk_room(disk, 100000);
    wait_for(wal, 0);
    CHECK(append(wal, 10, false) == 1);
    flush(wal);
    CHECK(wal_durable(wal) == 1);
    wal_close(wal);
    sim_disk_free(disk);
}

static void test_a_start_with_less_space_than_a_segment_accepts_acks_and_keeps_space_for_a_checkpoint(void) {
    sim_disk_t *disk = sim_disk_new(1);
    wal_config_t config = plain;
    config.segment_bytes = 16384;
    sim_disk_room(disk, 15000);
    wal_t *wal = open_plain(disk, &config);
    CHECK(wal_state(wal) == WAL_E_FULL && stats_of(wal).bytes > 0 && stats_of(wal).bytes < 15000 - 4096);
    CHECK(append(wal, 400, false) == WAL_E_FULL);
    for (uint64_t lsn = 1; lsn <= 4; lsn++) {
        CHECK(append(wal, 400, true) == (int64_t)lsn);
        flush(wal);
        CHECK(wal_durable(wal) == lsn);
    }
    CHECK(fill(wal, true) == WAL_E_FULL); /* and all of them are written */
    flush(wal);
    CHECK(!wal_busy(wal) && wal_durable(wal) == stats_of(wal).next_lsn - 1);
    checkpoint(wal);
    CHECK(stats_of(wal).checkpoint_lsn == wal_durable(wal));
    sim_disk_room(disk, 100000);
    wait_for(wal, 0);
    CHECK(append(wal, 400, false) > 0);
    wal_close(wal);
    sim_disk_free(disk);
}

static void test_a_checkpoint_after_a_start_on_a_full_disk_frees_space(void) {
    static uint8_t buffer[4096];
    sim_disk_t *disk = sim_disk_new(1);
    wal_t *wal = open_plain(disk, &plain);
    CHECK(fill(wal, false) == WAL_E_FULL);
    flush(wal);
    uint64_t last = wal_durable(wal);
    wal_close(wal);
    sim_disk_room(disk, sim_disk_used(disk) + 300); /* enough for a checkpoint */
    wal = open_plain(disk, &plain);
    CHECK(wal_state(wal) == WAL_E_FULL && wal_durable(wal) == last && append(wal, 10, true) == WAL_E_FULL);
    wal_read_t read = {.next_lsn = 1};
    for (uint64_t lsn = 1; lsn <= last; lsn = read.next_lsn) {
        CHECK(wal_read_start(wal, 0, lsn, buffer, sizeof buffer) == BQ_OK);
        wal_settle(wal);
        CHECK(wal_read_done(wal, &read) && read.result > 0);
    }
    checkpoint(wal);
    checkpoint(wal);
    wait_for(wal, 0);
    CHECK(stats_of(wal).segments <= 2 && stats_of(wal).first_lsn == last + 1);
    CHECK(append(wal, 400, false) == (int64_t)last + 1);
    flush(wal);
    wal_close(wal);
    wal_report_t report;
    CHECK(wal_open(&wal, sim_disk_storage(disk), &plain, NULL, NULL, &report, NULL) == BQ_OK);
    CHECK(report.next_lsn == last + 2 && !report.lost_ranges && report.clean);
    wal_close(wal);
    sim_disk_free(disk);
}

static void test_a_second_process_gets_the_error_that_the_wal_is_locked(void) {
    sim_disk_t *disk = sim_disk_new(1);
    wal_t *wal = open_plain(disk, &plain), *second;
    CHECK(wal_open(&second, sim_disk_storage(disk), &plain, NULL, NULL, NULL, NULL) == WAL_E_LOCKED && second == NULL);
    wal_close(wal);
    wal_close(open_plain(disk, &plain));
    sim_disk_free(disk);
}

static wal_read_t read_at(wal_t *wal, uint32_t slot, uint64_t lsn, uint8_t *buffer, uint32_t capacity) {
    wal_read_t read = {0};
    CHECK(wal_read_start(wal, slot, lsn, buffer, capacity) == BQ_OK);
    CHECK(wal_read_start(wal, slot, lsn, buffer, capacity) == BQ_E_AGAIN); /* one at a time */
    wal_settle(wal);
    CHECK(wal_read_done(wal, &read) && read.slot == slot && !wal_read_done(wal, &read));
    return read;
}

static void test_records_are_read_across_segments_and_a_read_of_a_deleted_start_returns_the_next_lsn(void) {
    static uint8_t buffer[4096];
    sim_disk_t *disk = sim_disk_new(1);
    wal_t *wal = open_plain(disk, &plain);
    for (int i = 0; i < 60; i++) {
        CHECK(append(wal, 400, false) == i + 1);
        flush(wal);
    }
    CHECK(append(wal, 400, false) == 61); /* not committed */
    uint64_t lsn = 1;
    while (lsn <= 60) {
        wal_read_t read = read_at(wal, 2, lsn, buffer, sizeof buffer);
        CHECK(read.result > 0 && load_u64(buffer) == lsn && load_u32(buffer + 8) == 400 && buffer[12] == WAL_PUBLISH &&
              buffer[13] == 3);
        CHECK(read.used == (uint32_t)read.result * 416);
        lsn += (uint64_t)read.result;
        CHECK(read.next_lsn == lsn);
    }
    CHECK(read_at(wal, 0, 61, buffer, sizeof buffer).result == 0); /* not durable yet */
    wal_read_t small = read_at(wal, 1, 5, buffer, 100);
    CHECK(small.result == BQ_E_TOO_LARGE && small.used == 416);
    CHECK(wal_read_start(wal, WAL_READS_MAX, 1, buffer, 10) == BQ_E_ARGUMENT);

    read_at(wal, 3, 1, buffer, sizeof buffer); /* the reader has its file open now */
    checkpoint(wal);
    checkpoint(wal);
    wal_read_t gone = read_at(wal, 3, 3, buffer, sizeof buffer);
    CHECK(gone.result == WAL_E_GONE && gone.next_lsn == stats_of(wal).first_lsn && gone.next_lsn > 3);
    CHECK(read_at(wal, 3, gone.next_lsn, buffer, sizeof buffer).result > 0);
    wal_close(wal);
    sim_disk_free(disk);
}

static void test_a_record_damaged_on_disk_is_never_returned(void) {
    static uint8_t buffer[4096];
    sim_disk_t *disk = sim_disk_new(1);
    wal_t *wal = open_plain(disk, &plain);
    for (int i = 0; i < 10; i++) append(wal, 100, false);
    flush(wal);
    sim_disk_bytes(disk, "wal-0000000001.log", NULL)[FORMAT_HEADER_ROOM + 4 * 128 + 60] ^= 1; /* the fifth record */
    wal_read_t read = read_at(wal, 0, 1, buffer, sizeof buffer);
    CHECK(read.result == 4 && read.next_lsn == 5);
    read = read_at(wal, 0, 5, buffer, sizeof buffer);
    CHECK(read.result == WAL_E_GONE && read.next_lsn == 6);
    read = read_at(wal, 0, 6, buffer, sizeof buffer);
    CHECK(read.result == 5 && read.next_lsn == 11 && stats_of(wal).read_damage > 0);
    wal_close(wal);
    sim_disk_free(disk);
}

static void test_one_checkpoint_is_written_at_a_time_and_covers_durable_records_only(void) {
    sim_disk_t *disk = sim_disk_new(1);
    wal_t *wal = open_plain(disk, &plain);
    append(wal, 10, false);
    CHECK(wal_checkpoint(wal, 1, zeros, 1, 1) == BQ_E_ARGUMENT);
    flush(wal);
    CHECK(wal_checkpoint(wal, 1, zeros, 1, 1) == BQ_OK);
    wal_settle(wal);
    CHECK(stats_of(wal).checkpoint_lsn == 1);
    wal_close(wal);
    sim_disk_free(disk);
}

static void test_padded_batches_begin_on_block_boundaries(void) {
    sim_disk_t *disk = sim_disk_new(1);
    wal_config_t config = plain;
    config.block_bytes = 512;
    wal_t *wal = open_plain(disk, &config);
    for (int i = 0; i < 40; i++) {
        CHECK(append(wal, (uint32_t)i * 11, false) == i + 1);
        flush(wal);
        CHECK(wal->position % 512 == 0 || wal->position + 512 + 64 > config.segment_bytes); /* the next batch begins a segment */
    }
    wal_close(wal);
    wal_report_t report;
    CHECK(wal_open(&wal, sim_disk_storage(disk), &config, NULL, NULL, &report, NULL) == BQ_OK);
    CHECK(report.records == 40 && report.next_lsn == 41);
    wal_close(wal);
    sim_disk_free(disk);
}

static void test_repeated_kills_do_not_fill_the_disk(void) {
    sim_disk_t *disk = sim_disk_new(1);
    wal_config_t config = {.max_bytes = 4u << 20, .segment_bytes = 64u << 10, .batch_bytes_max = 1024};
    for (int round = 0; round < 40; round++) {
        wal_t *wal = open_plain(disk, &config);
        for (int i = 0; i < 10; i++) {
            CHECK(append(wal, 400, false) == round * 10 + i + 1);
            flush(wal);
        }
        CHECK(stats_of(wal).bytes < 2 * (64u << 10) + (uint64_t)(round + 1) * 10 * 424 * 2);
        sim_disk_fail_at(disk, sim_disk_calls(disk), EIO, SIM_FOR_EVER);
        wal_close(wal);
        sim_disk_end_process(disk);
        sim_disk_heal(disk);
    }
    sim_disk_free(disk);
}

typedef struct reader {
    uint64_t next, records;
    bool asked;
    uint8_t buffer[4096];
} reader_t;

/* Take a finished read and start the next one. Every record is the expected one, or it was reclaimed. */
static void reader_turn(wal_t *wal, reader_t *reader) {
    wal_read_t read;
    if (wal_read_done(wal, &read)) {
        CHECK(read.result >= 0 || read.result == WAL_E_GONE);
        for (uint32_t at = 0; read.result > 0 && at < read.used; reader->next++, reader->records++) {
            CHECK(load_u64(reader->buffer + at) == reader->next && load_u64(reader->buffer + at + 16) == reader->next * 3);
            at += 16 + (uint32_t)format_padded(load_u32(reader->buffer + at + 8));
        }
        CHECK(read.next_lsn >= reader->next);
        reader->next = read.next_lsn;
        reader->asked = false;
    }
    if (!reader->asked) reader->asked = wal_read_start(wal, 0, reader->next, reader->buffer, sizeof reader->buffer) == BQ_OK;
}

/* The two sides do not wait for each other here, so that ThreadSanitizer can find races. */
static void test_writing_reading_and_checkpoints_at_the_same_time_agree(void) {
    static reader_t reader;
    sim_disk_t *disk = sim_disk_new(1);
    wal_t *wal = open_plain(disk, &plain);
    wal_stats_t stats;
    reader = (reader_t){.next = 1};
    for (uint64_t lsn = 1; lsn <= 3000;) {
        uint8_t bytes[120] = {0};
        store_u64(bytes, lsn * 3);
        int64_t got = wal_append(wal, WAL_PUBLISH, 0, &(wal_part_t){bytes, 8 + lsn % 100}, 1, false);
        if (got > 0) CHECK((uint64_t)got == lsn++);
        CHECK(got > 0 || got == BQ_E_AGAIN || got == WAL_E_FULL);
        wal_commit(wal);
        reader_turn(wal, &reader);
        uint64_t durable = wal_durable(wal);
        if ((got < 0 || lsn % 64 == 0) && durable) wal_checkpoint(wal, durable, zeros, 100, durable > 50 ? durable - 50 : 1);
        wal_stats(wal, &stats);
        CHECK(stats.durable_lsn < stats.next_lsn && stats.bytes <= plain.max_bytes);
    }
    while (wal_durable(wal) < 3000 || reader.next <= 3000) {
        wal_commit(wal);
        reader_turn(wal, &reader);
    }
    CHECK(reader.records > 0 && stats.reclaimed_segments > 0);
    while (reader.asked) {
        wal_read_t read;
        reader.asked = !wal_read_done(wal, &read);
    }
    wal_close(wal);
    sim_disk_free(disk);
}

static void test_after_a_failed_sync_nothing_becomes_durable_and_the_sync_is_not_repeated(void) {
    sim_disk_t *disk = sim_disk_new(1);
    wal_t *wal = open_plain(disk, &plain);
    append(wal, 10, false);
    flush(wal);
    append(wal, 10, false);
    sim_disk_fail_at(disk, sim_disk_calls(disk) + 1, EIO, SIM_ONCE); /* the write succeeds, the sync fails */
    flush(wal);
    const char *name;
    CHECK(sim_disk_failed(disk, &name) && strcmp(name, "sync_data") == 0);
    uint64_t calls = sim_disk_calls(disk);
    CHECK(wal_state(wal) == WAL_E_FAILED && wal_durable(wal) == 1 && stats_of(wal).error == EIO);
    CHECK(append(wal, 10, true) == WAL_E_FAILED && !wal_commit(wal) && !wal_busy(wal));
    CHECK(wal_checkpoint(wal, 1, zeros, 1, 1) == WAL_E_FAILED);
    wal_settle(wal);
    wal_close(wal);
    CHECK(sim_disk_calls(disk) == calls);
    sim_disk_free(disk);
}

typedef struct taken {
    uint32_t count, count_max; /* the visitor accepts count_max records and rejects the next */
    bool checkpoint;
} taken_t;

static bool take(void *context, const wal_record_t *record) {
    taken_t *taken = context;
    if (taken->count == taken->count_max) return false;
    taken->count++;
    taken->checkpoint |= record->type == 0;
    return true;
}

/* After a kill, so that the end of the WAL and its clean flag must stay unchanged too. */
static void test_a_wal_whose_records_are_refused_is_not_opened_and_not_changed(void) {
    sim_disk_t *disk = sim_disk_new(1);
    wal_t *wal = open_plain(disk, &plain);
    append(wal, 100, false);
    flush(wal);
    checkpoint(wal);
    append(wal, 100, false);
    flush(wal);
    sim_disk_fail_at(disk, sim_disk_calls(disk), EIO, SIM_FOR_EVER);
    wal_close(wal);
    sim_disk_end_process(disk);
    sim_disk_heal(disk);
    for (uint32_t most = 0; most < 2; most++) {
        taken_t taken = {.count_max = most};
        CHECK(wal_open(&wal, sim_disk_storage(disk), &plain, take, &taken, NULL, NULL) == WAL_E_REFUSED && !wal);
        CHECK(taken.count == most && taken.checkpoint == (most > 0));
    }
    taken_t all = {.count_max = 10};
    wal_report_t report;
    CHECK(wal_open(&wal, sim_disk_storage(disk), &plain, take, &all, &report, NULL) == BQ_OK);
    CHECK(all.count == 2 && all.checkpoint && !report.clean && report.next_lsn == 3);
    wal_settle(wal);
    wal_close(wal);
    sim_disk_free(disk);
}

#define TEST(name)                                                                                                               \
    { #name, name }

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    TEST(test_appends_are_checked_and_lsns_rise_by_one),
    TEST(test_an_invalid_configuration_is_refused),
    TEST(test_at_the_quota_publishes_are_refused_urgent_records_are_accepted_and_a_checkpoint_frees_space),
    TEST(test_publishes_do_not_use_the_free_space_reserve_and_continue_when_there_is_space),
    TEST(test_a_batch_waits_while_the_disk_is_full_and_no_record_is_lost),
    TEST(test_a_start_on_a_full_disk_refuses_publishes_until_there_is_space),
    TEST(test_a_start_with_less_space_than_a_segment_accepts_acks_and_keeps_space_for_a_checkpoint),
    TEST(test_a_checkpoint_after_a_start_on_a_full_disk_frees_space),
    TEST(test_a_second_process_gets_the_error_that_the_wal_is_locked),
    TEST(test_a_wal_whose_records_are_refused_is_not_opened_and_not_changed),
    TEST(test_records_are_read_across_segments_and_a_read_of_a_deleted_start_returns_the_next_lsn),
    TEST(test_a_record_damaged_on_disk_is_never_returned),
    TEST(test_one_checkpoint_is_written_at_a_time_and_covers_durable_records_only),
    TEST(test_padded_batches_begin_on_block_boundaries),
    TEST(test_repeated_kills_do_not_fill_the_disk),
    TEST(test_writing_reading_and_checkpoints_at_the_same_time_agree),
    TEST(test_after_a_failed_sync_nothing_becomes_durable_and_the_sync_is_not_repeated),
};

int main(void) {
    for (uint32_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        fprintf(stderr, "%s\n", tests[i].name); /* printed only after a failure: the last line names the test */
        tests[i].run();
    }
    return 0;
}
