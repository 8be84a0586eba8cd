/* test_log_use.c: the log as the core uses it: limits, a full disk, the quota, reading back, reclaiming, the lock.
 *
 * Invariant: nothing here depends on how fast a thread is: every step waits for the log to have nothing more to do.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "wal/wal_internal.h"
#include "sim_disk.h"

static const log_config_t plain = {.max_bytes = 64u << 10, .segment_bytes = 8192, .batch_bytes_max = 2048};
static uint8_t zeros[4096];

static log_t *open_plain(sim_disk_t *disk, const log_config_t *config) {
    log_t *log;
    CHECK(log_open(&log, sim_disk_storage(disk), config, NULL, NULL, NULL, NULL) == BQ_OK);
    log_settle(log);
    return log;
}

static int64_t append(log_t *log, uint32_t size, bool urgent) {
    return log_append(log, LOG_PUBLISH, 3, &(log_part_t){zeros, size}, 1, urgent);
}

static log_stats_t stats_of(log_t *log) {
    log_stats_t stats;
    log_stats(log, &stats);
    return stats;
}

/* Append and commit until an append gives something else than "wait for a commit". */
static int64_t fill(log_t *log, bool urgent) {
    for (;;) {
        int64_t lsn = append(log, 400, urgent);
        if (lsn > 0) continue;
        if (lsn != BQ_E_AGAIN) return lsn;
        log_commit(log);
        log_settle(log);
    }
}

static void flush(log_t *log) {
    log_commit(log);
    log_settle(log);
}

static void checkpoint(log_t *log) {
    uint64_t lsn = log_durable(log);
    CHECK(log_checkpoint(log, lsn, zeros, 10, lsn + 1) == BQ_OK);
    log_settle(log);
}

static void test_appends_are_checked_and_lsns_rise_by_one(void) {
    sim_disk_t *disk = sim_disk_new(1);
    log_t *log = open_plain(disk, &plain);
    CHECK(append(log, 0, false) == 1 && append(log, 1, false) == 2 && append(log, 1000, false) == 3);
    CHECK(append(log, 1001, false) == BQ_E_TOO_LARGE);
    CHECK(log_append(log, LOG_PAD, 0, NULL, 0, false) == BQ_E_ARGUMENT && log_append(log, 0, 0, NULL, 0, true) == BQ_E_ARGUMENT);
    CHECK(append(log, 1000, false) == BQ_E_AGAIN); /* the batch is full */
    CHECK(log_durable(log) == 0 && log_gathered(log) == 24 + 32 + 1024);
    CHECK(log_commit(log) && !log_commit(log));
    log_settle(log);
    CHECK(log_durable(log) == 3 && !log_busy(log) && append(log, 1000, false) == 4);
    log_close(log);
    sim_disk_free(disk);
}

static void test_a_configuration_that_cannot_work_is_refused(void) {
    log_config_t bad[4] = {plain, plain, plain, plain};
    log_t *log;
    bad[0].max_bytes = 3 * 8192;
    bad[1].batch_bytes_max = 8192;
    bad[2].segment_bytes = 1024;
    bad[3].block_bytes = 4096;
    sim_disk_t *disk = sim_disk_new(1);
    for (int i = 0; i < 4; i++) CHECK(log_open(&log, sim_disk_storage(disk), &bad[i], NULL, NULL, NULL, NULL) == BQ_E_ARGUMENT);
    sim_disk_free(disk);
}

static void test_at_the_quota_publishes_are_refused_urgent_records_go_on_and_a_checkpoint_makes_room(void) {
    sim_disk_t *disk = sim_disk_new(1);
    log_t *log = open_plain(disk, &plain);
    CHECK(fill(log, false) == LOG_E_FULL && log_state(log) == LOG_E_FULL);
    flush(log);
    uint64_t before = log_durable(log);
    for (int i = 0; i < 8; i++) {
        CHECK(append(log, 400, true) > 0);
        flush(log);
    }
    CHECK(log_durable(log) == before + 8 && log_state(log) == LOG_E_FULL && append(log, 400, false) == LOG_E_FULL);
    CHECK(fill(log, true) == LOG_E_FULL); /* the room of urgent records has an end too */
    flush(log);
    CHECK(stats_of(log).bytes <= plain.max_bytes && log_durable(log) == stats_of(log).next_lsn - 1);
    checkpoint(log);
    CHECK(stats_of(log).reclaimed_segments ==
          0); /* the first generation frees nothing: the one before it would need a full replay */
    checkpoint(log);
    for (int i = 0; i < 50 && log_state(log) != 0; i++)
        log_settle(log), gate_enter(&log->work), gate_wait(&log->work, 5), gate_leave(&log->work);
    CHECK(stats_of(log).reclaimed_segments > 4 && log_state(log) == 0);
    CHECK(append(log, 400, false) > 0);
    log_close(log);
    sim_disk_free(disk);
}

static void wait_for(log_t *log, int state) {
    for (int i = 0; i < 2000 && log_state(log) != state; i++) { /* the log looks again every LOG_RETRY_MS */
        gate_enter(&log->work);
        gate_wait(&log->work, 5);
        gate_leave(&log->work);
    }
    CHECK(log_state(log) == state);
    log_settle(log);
}

static void test_the_free_space_reserve_is_left_alone_by_publishes_and_the_log_resumes_by_itself(void) {
    sim_disk_t *disk = sim_disk_new(1);
    log_config_t config = plain;
    config.max_bytes = 512u << 10;
    config.reserve_bytes = 40000;
    sim_disk_room(disk, 100000);
    log_t *log = open_plain(disk, &config);
    CHECK(fill(log, false) == LOG_E_FULL);
    flush(log);
    CHECK(stats_of(log).bytes <= 60000 && stats_of(log).bytes > 30000);
    for (int i = 0; i < 40; i++) { /* into the reserve */
        CHECK(append(log, 400, true) > 0);
        flush(log);
    }
    sim_disk_room(disk, 400000);
    wait_for(log, 0);
    CHECK(append(log, 400, false) > 0);
    log_close(log);
    sim_disk_free(disk);
}

/* A file system that cannot reserve blocks: files are long and hold nothing, and a write meets the full disk. */
static uint64_t blocks_left;
static int (*write_there)(storage_t *storage, int file, uint64_t offset, const uint8_t *bytes, uint64_t size);
static int write_if_room(storage_t *storage, int file, uint64_t offset, const uint8_t *bytes, uint64_t size) {
    if (size > blocks_left) return -ENOSPC;
    blocks_left -= size;
    return write_there(storage, file, offset, bytes, size);
}

static void test_a_batch_that_meets_a_full_disk_waits_and_nothing_is_lost(void) {
    sim_disk_t *disk = sim_disk_new(1);
    storage_t *storage = sim_disk_storage(disk);
    write_there = storage->write;
    storage->write = write_if_room;
    blocks_left = 6000;
    log_t *log;
    CHECK(log_open(&log, storage, &plain, NULL, NULL, NULL, NULL) == BQ_OK);
    log_settle(log);
    uint64_t last = 0;
    for (int i = 0; i < 40 && log_state(log) == 0; i++) {
        int64_t lsn = append(log, 400, true);
        if (lsn > 0) last = (uint64_t)lsn;
        flush(log);
    }
    CHECK(log_state(log) == LOG_E_FULL && log_busy(log) && log_durable(log) < last);
    CHECK(append(log, 10, false) == LOG_E_FULL && append(log, 10, true) == (int64_t)last + 1);
    blocks_left = 100000;
    wait_for(log, 0);
    flush(log);
    CHECK(log_durable(log) == last + 1);
    log_close(log);
    sim_disk_cut(disk, 1);
    log_report_t report;
    CHECK(log_open(&log, sim_disk_storage(disk), &plain, NULL, NULL, &report, NULL) == BQ_OK);
    CHECK(report.records == last + 1 && report.clean == 1);
    log_close(log);
    sim_disk_free(disk);
}

static void test_a_start_without_room_for_a_file_refuses_and_takes_publishes_when_there_is_room(void) {
    sim_disk_t *disk = sim_disk_new(1);
    sim_disk_room(disk, 0);
    log_t *log = open_plain(disk, &plain);
    CHECK(log_state(log) == LOG_E_FULL && stats_of(log).bytes == 0 && log_durable(log) == 0);
    CHECK(append(log, 10, false) == LOG_E_FULL && append(log, 10, true) == LOG_E_FULL && !log_commit(log));
    checkpoint(log);
    CHECK(stats_of(log).checkpoint_lsn == 0 && sim_disk_files(disk) == 1 /* LOCK */);
    sim_disk_room(disk, 100000);
    wait_for(log, 0);
    CHECK(append(log, 10, false) == 1);
    flush(log);
    CHECK(log_durable(log) == 1);
    log_close(log);
    sim_disk_free(disk);
}

static void test_a_start_with_room_for_less_than_a_segment_takes_acks_and_leaves_a_checkpoint_its_room(void) {
    sim_disk_t *disk = sim_disk_new(1);
    log_config_t config = plain;
    config.segment_bytes = 16384;
    sim_disk_room(disk, 15000);
    log_t *log = open_plain(disk, &config);
    CHECK(log_state(log) == LOG_E_FULL && stats_of(log).bytes > 0 && stats_of(log).bytes < 15000 - 4096);
    CHECK(append(log, 400, false) == LOG_E_FULL);
    for (uint64_t lsn = 1; lsn <= 4; lsn++) {
        CHECK(append(log, 400, true) == (int64_t)lsn);
        flush(log);
        CHECK(log_durable(log) == lsn);
    }
    CHECK(fill(log, true) == LOG_E_FULL); /* and they all find a place */
    flush(log);
    CHECK(!log_busy(log) && log_durable(log) == stats_of(log).next_lsn - 1);
    checkpoint(log);
    CHECK(stats_of(log).checkpoint_lsn == log_durable(log));
    sim_disk_room(disk, 100000);
    wait_for(log, 0);
    CHECK(append(log, 400, false) > 0);
    log_close(log);
    sim_disk_free(disk);
}

static void test_what_is_fetched_after_a_start_without_room_makes_the_room(void) {
    static uint8_t buffer[4096];
    sim_disk_t *disk = sim_disk_new(1);
    log_t *log = open_plain(disk, &plain);
    CHECK(fill(log, false) == LOG_E_FULL);
    flush(log);
    uint64_t last = log_durable(log);
    log_close(log);
    sim_disk_room(disk, sim_disk_used(disk) + 300); /* enough for a checkpoint */
    log = open_plain(disk, &plain);
    CHECK(log_state(log) == LOG_E_FULL && log_durable(log) == last && append(log, 10, true) == LOG_E_FULL);
    log_read_t read = {.next_lsn = 1};
    for (uint64_t lsn = 1; lsn <= last; lsn = read.next_lsn) {
        CHECK(log_read_start(log, 0, lsn, buffer, sizeof buffer) == BQ_OK);
        log_settle(log);
        CHECK(log_read_done(log, &read) && read.result > 0);
    }
    checkpoint(log);
    checkpoint(log);
    wait_for(log, 0);
    CHECK(stats_of(log).segments <= 2 && stats_of(log).first_lsn == last + 1);
    CHECK(append(log, 400, false) == (int64_t)last + 1);
    flush(log);
    log_close(log);
    log_report_t report;
    CHECK(log_open(&log, sim_disk_storage(disk), &plain, NULL, NULL, &report, NULL) == BQ_OK);
    CHECK(report.next_lsn == last + 2 && !report.lost_ranges && report.clean);
    log_close(log);
    sim_disk_free(disk);
}

static void test_a_second_opener_is_told_that_the_log_is_locked(void) {
    sim_disk_t *disk = sim_disk_new(1);
    log_t *log = open_plain(disk, &plain), *second;
    CHECK(log_open(&second, sim_disk_storage(disk), &plain, NULL, NULL, NULL, NULL) == LOG_E_LOCKED && second == NULL);
    log_close(log);
    log_close(open_plain(disk, &plain));
    sim_disk_free(disk);
}

static log_read_t read_at(log_t *log, uint32_t slot, uint64_t lsn, uint8_t *buffer, uint32_t capacity) {
    log_read_t read = {0};
    CHECK(log_read_start(log, slot, lsn, buffer, capacity) == BQ_OK);
    CHECK(log_read_start(log, slot, lsn, buffer, capacity) == BQ_E_AGAIN); /* one at a time */
    log_settle(log);
    CHECK(log_read_done(log, &read) && read.slot == slot && !log_read_done(log, &read));
    return read;
}

static void test_records_are_read_back_across_segments_and_a_reclaimed_start_says_where_to_go_on(void) {
    static uint8_t buffer[4096];
    sim_disk_t *disk = sim_disk_new(1);
    log_t *log = open_plain(disk, &plain);
    for (int i = 0; i < 60; i++) {
        CHECK(append(log, 400, false) == i + 1);
        flush(log);
    }
    CHECK(append(log, 400, false) == 61); /* gathered only */
    uint64_t lsn = 1;
    while (lsn <= 60) {
        log_read_t read = read_at(log, 2, lsn, buffer, sizeof buffer);
        CHECK(read.result > 0 && load_u64(buffer) == lsn && load_u32(buffer + 8) == 400 && buffer[12] == LOG_PUBLISH &&
              buffer[13] == 3);
        CHECK(read.used == (uint32_t)read.result * 416);
        lsn += (uint64_t)read.result;
        CHECK(read.next_lsn == lsn);
    }
    CHECK(read_at(log, 0, 61, buffer, sizeof buffer).result == 0); /* not durable yet */
    log_read_t small = read_at(log, 1, 5, buffer, 100);
    CHECK(small.result == BQ_E_TOO_LARGE && small.used == 416);
    CHECK(log_read_start(log, LOG_READS_MAX, 1, buffer, 10) == BQ_E_ARGUMENT);

    read_at(log, 3, 1, buffer, sizeof buffer); /* its file is open in the reader now */
    checkpoint(log);
    checkpoint(log);
    log_read_t gone = read_at(log, 3, 3, buffer, sizeof buffer);
    CHECK(gone.result == LOG_E_GONE && gone.next_lsn == stats_of(log).first_lsn && gone.next_lsn > 3);
    CHECK(read_at(log, 3, gone.next_lsn, buffer, sizeof buffer).result > 0);
    log_close(log);
    sim_disk_free(disk);
}

static void test_a_record_that_went_bad_is_never_handed_out(void) {
    static uint8_t buffer[4096];
    sim_disk_t *disk = sim_disk_new(1);
    log_t *log = open_plain(disk, &plain);
    for (int i = 0; i < 10; i++) append(log, 100, false);
    flush(log);
    sim_disk_bytes(disk, "wal-0000000001.log", NULL)[FORMAT_HEADER_ROOM + 4 * 128 + 60] ^= 1; /* the fifth */
    log_read_t read = read_at(log, 0, 1, buffer, sizeof buffer);
    CHECK(read.result == 4 && read.next_lsn == 5);
    read = read_at(log, 0, 5, buffer, sizeof buffer);
    CHECK(read.result == LOG_E_GONE && read.next_lsn == 6);
    read = read_at(log, 0, 6, buffer, sizeof buffer);
    CHECK(read.result == 5 && read.next_lsn == 11 && stats_of(log).read_damage > 0);
    log_close(log);
    sim_disk_free(disk);
}

static void test_checkpoints_come_one_at_a_time_and_only_of_what_is_durable(void) {
    sim_disk_t *disk = sim_disk_new(1);
    log_t *log = open_plain(disk, &plain);
    append(log, 10, false);
    CHECK(log_checkpoint(log, 1, zeros, 1, 1) == BQ_E_ARGUMENT);
    flush(log);
    CHECK(log_checkpoint(log, 1, zeros, 1, 1) == BQ_OK);
    log_settle(log);
    CHECK(stats_of(log).checkpoint_lsn == 1);
    log_close(log);
    sim_disk_free(disk);
}

static void test_padded_batches_begin_on_block_boundaries(void) {
    sim_disk_t *disk = sim_disk_new(1);
    log_config_t config = plain;
    config.block_bytes = 512;
    log_t *log = open_plain(disk, &config);
    for (int i = 0; i < 40; i++) {
        CHECK(append(log, (uint32_t)i * 11, false) == i + 1);
        flush(log);
        CHECK(log->position % 512 == 0 || log->position + 512 + 64 > config.segment_bytes); /* the next batch begins a segment */
    }
    log_close(log);
    log_report_t report;
    CHECK(log_open(&log, sim_disk_storage(disk), &config, NULL, NULL, &report, NULL) == BQ_OK);
    CHECK(report.records == 40 && report.next_lsn == 41);
    log_close(log);
    sim_disk_free(disk);
}

static void test_kills_again_and_again_do_not_fill_the_disk(void) {
    sim_disk_t *disk = sim_disk_new(1);
    log_config_t config = {.max_bytes = 4u << 20, .segment_bytes = 64u << 10, .batch_bytes_max = 1024};
    for (int round = 0; round < 40; round++) {
        log_t *log = open_plain(disk, &config);
        for (int i = 0; i < 10; i++) {
            CHECK(append(log, 400, false) == round * 10 + i + 1);
            flush(log);
        }
        CHECK(stats_of(log).bytes < 2 * (64u << 10) + (uint64_t)(round + 1) * 10 * 424 * 2);
        sim_disk_fail_at(disk, sim_disk_calls(disk), EIO, SIM_FOR_EVER);
        log_close(log);
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

/* Take a finished read and start the next one. Every record is the one expected, or it was reclaimed. */
static void reader_turn(log_t *log, reader_t *reader) {
    log_read_t read;
    if (log_read_done(log, &read)) {
        CHECK(read.result >= 0 || read.result == LOG_E_GONE);
        for (uint32_t at = 0; read.result > 0 && at < read.used; reader->next++, reader->records++) {
            CHECK(load_u64(reader->buffer + at) == reader->next && load_u64(reader->buffer + at + 16) == reader->next * 3);
            at += 16 + (uint32_t)format_padded(load_u32(reader->buffer + at + 8));
        }
        CHECK(read.next_lsn >= reader->next);
        reader->next = read.next_lsn;
        reader->asked = false;
    }
    if (!reader->asked) reader->asked = log_read_start(log, 0, reader->next, reader->buffer, sizeof reader->buffer) == BQ_OK;
}

/* No waiting for each other here: this is what the thread sanitizer looks at. */
static void test_writing_reading_and_checkpoints_at_the_same_time_agree(void) {
    static reader_t reader;
    sim_disk_t *disk = sim_disk_new(1);
    log_t *log = open_plain(disk, &plain);
    log_stats_t stats;
    reader = (reader_t){.next = 1};
    for (uint64_t lsn = 1; lsn <= 3000;) {
        uint8_t bytes[120] = {0};
        store_u64(bytes, lsn * 3);
        int64_t got = log_append(log, LOG_PUBLISH, 0, &(log_part_t){bytes, 8 + lsn % 100}, 1, false);
        if (got > 0) CHECK((uint64_t)got == lsn++);
        CHECK(got > 0 || got == BQ_E_AGAIN || got == LOG_E_FULL);
        log_commit(log);
        reader_turn(log, &reader);
        uint64_t durable = log_durable(log);
        if ((got < 0 || lsn % 64 == 0) && durable) log_checkpoint(log, durable, zeros, 100, durable > 50 ? durable - 50 : 1);
        log_stats(log, &stats);
        CHECK(stats.durable_lsn < stats.next_lsn && stats.bytes <= plain.max_bytes);
    }
    while (log_durable(log) < 3000 || reader.next <= 3000) {
        log_commit(log);
        reader_turn(log, &reader);
    }
    CHECK(reader.records > 0 && stats.reclaimed_segments > 0);
    while (reader.asked) {
        log_read_t read;
        reader.asked = !log_read_done(log, &read);
    }
    log_close(log);
    sim_disk_free(disk);
}

static void test_after_a_failed_sync_nothing_becomes_durable_and_the_sync_is_not_repeated(void) {
    sim_disk_t *disk = sim_disk_new(1);
    log_t *log = open_plain(disk, &plain);
    append(log, 10, false);
    flush(log);
    append(log, 10, false);
    sim_disk_fail_at(disk, sim_disk_calls(disk) + 1, EIO, SIM_ONCE); /* the write goes through, the sync does not */
    flush(log);
    const char *name;
    CHECK(sim_disk_failed(disk, &name) && strcmp(name, "sync_data") == 0);
    uint64_t calls = sim_disk_calls(disk);
    CHECK(log_state(log) == LOG_E_FAILED && log_durable(log) == 1 && stats_of(log).error == EIO);
    CHECK(append(log, 10, true) == LOG_E_FAILED && !log_commit(log) && !log_busy(log));
    CHECK(log_checkpoint(log, 1, zeros, 1, 1) == LOG_E_FAILED);
    log_settle(log);
    log_close(log);
    CHECK(sim_disk_calls(disk) == calls);
    sim_disk_free(disk);
}

typedef struct taken {
    uint32_t count, count_max; /* the visitor takes so many and refuses the next */
    bool checkpoint;
} taken_t;

static bool take(void *context, const log_record_t *record) {
    taken_t *taken = context;
    if (taken->count == taken->count_max) return false;
    taken->count++;
    taken->checkpoint |= record->type == 0;
    return true;
}

/* After a kill, so that what a start takes for the end, and for clean, must not change either. */
static void test_a_log_whose_contents_cannot_be_taken_is_not_opened_and_stays_what_it_was(void) {
    sim_disk_t *disk = sim_disk_new(1);
    log_t *log = open_plain(disk, &plain);
    append(log, 100, false);
    flush(log);
    checkpoint(log);
    append(log, 100, false);
    flush(log);
    sim_disk_fail_at(disk, sim_disk_calls(disk), EIO, SIM_FOR_EVER);
    log_close(log);
    sim_disk_end_process(disk);
    sim_disk_heal(disk);
    for (uint32_t most = 0; most < 2; most++) {
        taken_t taken = {.count_max = most};
        CHECK(log_open(&log, sim_disk_storage(disk), &plain, take, &taken, NULL, NULL) == LOG_E_REFUSED && !log);
        CHECK(taken.count == most && taken.checkpoint == (most > 0));
    }
    taken_t all = {.count_max = 10};
    log_report_t report;
    CHECK(log_open(&log, sim_disk_storage(disk), &plain, take, &all, &report, NULL) == BQ_OK);
    CHECK(all.count == 2 && all.checkpoint && !report.clean && report.next_lsn == 3);
    log_settle(log);
    log_close(log);
    sim_disk_free(disk);
}

#define TEST(name)                                                                                                               \
    { #name, name }

static const struct {
    const char *name;
    void (*run)(void);
} tests[] = {
    TEST(test_appends_are_checked_and_lsns_rise_by_one),
    TEST(test_a_configuration_that_cannot_work_is_refused),
    TEST(test_at_the_quota_publishes_are_refused_urgent_records_go_on_and_a_checkpoint_makes_room),
    TEST(test_the_free_space_reserve_is_left_alone_by_publishes_and_the_log_resumes_by_itself),
    TEST(test_a_batch_that_meets_a_full_disk_waits_and_nothing_is_lost),
    TEST(test_a_start_without_room_for_a_file_refuses_and_takes_publishes_when_there_is_room),
    TEST(test_a_start_with_room_for_less_than_a_segment_takes_acks_and_leaves_a_checkpoint_its_room),
    TEST(test_what_is_fetched_after_a_start_without_room_makes_the_room),
    TEST(test_a_second_opener_is_told_that_the_log_is_locked),
    TEST(test_a_log_whose_contents_cannot_be_taken_is_not_opened_and_stays_what_it_was),
    TEST(test_records_are_read_back_across_segments_and_a_reclaimed_start_says_where_to_go_on),
    TEST(test_a_record_that_went_bad_is_never_handed_out),
    TEST(test_checkpoints_come_one_at_a_time_and_only_of_what_is_durable),
    TEST(test_padded_batches_begin_on_block_boundaries),
    TEST(test_kills_again_and_again_do_not_fill_the_disk),
    TEST(test_writing_reading_and_checkpoints_at_the_same_time_agree),
    TEST(test_after_a_failed_sync_nothing_becomes_durable_and_the_sync_is_not_repeated),
};

int main(void) {
    for (uint32_t i = 0; i < sizeof tests / sizeof *tests; i++) {
        fprintf(stderr, "%s\n", tests[i].name); /* read only after a failure: its last line names the test */
        tests[i].run();
    }
    return 0;
}
