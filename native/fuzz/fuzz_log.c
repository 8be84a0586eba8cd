/* fuzz_log.c: any bytes as the files of a log's directory: the first byte says how they are split and mended.
 *
 *      clang -std=gnu11 -g -O1 -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Inative -Itests/native \
 *          native/fuzz/fuzz_log.c native/[a-z]*.c -o build/fuzz_log -pthread
 *      build/fuzz_log -max_total_time=120 -max_len=16384 build/corpus_log
 *
 * Invariant: whatever the bytes are, recovery ends, stays inside them, LSNs rise, and recovering twice finds the same. Headers
 * get right CRCs on request: without that nothing behind them would ever be reached.
 */
#include <stdlib.h>

#include "../../tests/native/sim_disk.c"
#include "crc32.h"
#include "log_internal.h"

#define REQUIRE(condition) ((condition) ? (void)0 : abort())

enum mend { MEND_HEADER = 1, MEND_RECORDS = 2, MEND_CHECKPOINT = 4, SPLIT = 8, OPEN = 16 };

static void mend_segment(uint8_t *bytes, uint64_t size, uint64_t number, uint8_t how) {
    segment_header_t header = {
        .log_id = 7, .number = number, .header_bytes = FORMAT_HEADER_ROOM, .segment_bytes = 8192, .batch_bytes = 4096};
    if (!(how & MEND_HEADER) || size < FORMAT_HEADER_ROOM) return;
    header.first_lsn = bytes[0] & 1 ? load_u64(bytes + 1) % 100 : 0;
    format_header_encode(bytes, &header);
    memcpy(bytes + FORMAT_HEADER_COPY, bytes, FORMAT_HEADER_BYTES);
    for (uint64_t at = FORMAT_HEADER_ROOM; (how & MEND_RECORDS) && at + FORMAT_RECORD_BYTES <= size;) {
        bytes[at + 6] = bytes[at + 7] = 0; /* sizes and LSNs that can be true */
        memset(bytes + at + 9, 0, 7);
        uint64_t padded = format_padded(load_u32(bytes + at + 4) % 600);
        store_u32(bytes + at + 4, (uint32_t)padded);
        if (at + FORMAT_RECORD_BYTES + padded > size) return;
        if (bytes[at + 1] & 3) format_record_seal(bytes + at, format_seed(&header)); /* most of them */
        at += FORMAT_RECORD_BYTES + padded;
    }
}

static void mend_checkpoint(uint8_t *bytes, uint64_t size, uint8_t how) {
    if (!(how & MEND_CHECKPOINT) || size < FORMAT_CHECKPOINT_BYTES) return;
    checkpoint_header_t header = {
        .log_id = 7, .generation = 1, .lsn = bytes[0], .keep_from = bytes[1], .size = (uint32_t)(size - FORMAT_CHECKPOINT_BYTES)};
    format_checkpoint_encode(bytes, &header);
    header.payload_crc = crc32_update(crc32_update(0, bytes, 48), bytes + FORMAT_CHECKPOINT_BYTES, header.size);
    format_checkpoint_encode(bytes, &header);
}

static sim_disk_t *disk_of(const uint8_t *data, size_t size) {
    sim_disk_t *disk = sim_disk_new(1);
    uint8_t how = size ? data[0] : 0;
    uint64_t parts = how & SPLIT ? 3 : 1, part = size / (parts + 1);
    uint8_t *copy = malloc(size + 1);
    REQUIRE(copy);
    if (size) memcpy(copy, data, size);
    for (uint64_t i = 0; i < parts; i++) {
        char name[FORMAT_NAME_BYTES];
        format_segment_name(name, i + 1);
        mend_segment(copy + i * part, part, i + 1, how);
        sim_disk_put(disk, name, copy + i * part, part);
    }
    mend_checkpoint(copy + parts * part, size - parts * part, how);
    sim_disk_put(disk, "checkpoint-0000000001.ckp", copy + parts * part, size - parts * part);
    free(copy);
    return disk;
}

typedef struct sums {
    uint64_t records, last, bytes, findings;
    int result;
} sums_t;

static sums_t walk(sim_disk_t *disk) {
    sums_t sums = {0};
    recover_t recover;
    log_record_t record;
    recover_finding_t finding;
    storage_t *storage = sim_disk_storage(disk);
    sums.result = recover_begin(&recover, storage);
    for (int event = 1; sums.result == BQ_OK && event != RECOVER_END;) {
        event = recover_next(&recover, &record, &finding);
        REQUIRE(event >= 0);
        sums.findings += event == RECOVER_FINDING;
        if (event != RECOVER_RECORD) continue;
        REQUIRE(record.lsn > sums.last);
        sums.last = record.lsn;
        sums.records++;
        for (uint32_t i = 0; i < record.size; i++) sums.bytes += record.bytes[i];
    }
    if (sums.result == BQ_OK) recover_free(&recover);
    storage->release(storage);
    return sums;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const log_config_t config = {.max_bytes = 1u << 20, .segment_bytes = 8192, .batch_bytes_max = 2048};
    if (size > 60000) return 0;
    sim_disk_t *disk = disk_of(data, size);
    sums_t first = walk(disk), second = walk(disk);
    REQUIRE(first.records == second.records && first.last == second.last && first.findings == second.findings &&
            first.bytes == second.bytes);
    if (size && (data[0] & OPEN) && first.result == BQ_OK) { /* with its threads, and what it writes must be there again */
        log_t *log;
        log_report_t before, after;
        REQUIRE(log_open(&log, sim_disk_storage(disk), &config, NULL, NULL, &before, NULL) == BQ_OK);
        REQUIRE(before.records == first.records);
        REQUIRE(log_append(log, 1, 0, &(log_part_t){"x", 1}, 1, true) == (int64_t)before.next_lsn);
        log_close(log);
        REQUIRE(log_open(&log, sim_disk_storage(disk), &config, NULL, NULL, &after, NULL) == BQ_OK);
        REQUIRE(after.next_lsn == before.next_lsn + 1);
        log_close(log);
    }
    sim_disk_free(disk);
    return 0;
}
