/* any_disk.h: uses any bytes as the files of a WAL directory. The first byte selects how they are split and repaired.
 *
 * Invariant: headers and records get correct CRCs on request. Otherwise the code behind the CRC checks would never run.
 */
#ifndef BQ_FUZZ_ANY_DISK_H
#define BQ_FUZZ_ANY_DISK_H

#include "base/crc32.h"
#include "fuzz.h"
#include "wal/wal_internal.h"
#include "sim_storage.h"

enum mend { MEND_HEADER = 1, MEND_RECORDS = 2, MEND_CHECKPOINT = 4, SPLIT = 8, OPEN = 16, MEND_END = 32, LEDGER = 64 };

static void mend_segment(uint8_t *bytes, uint64_t size, uint64_t number, uint8_t how) {
    segment_header_t header = {
        .wal_id = 7, .number = number, .header_bytes = FORMAT_HEADER_ROOM, .segment_bytes = 8192, .batch_bytes = 4096};
    if (!(how & MEND_HEADER) || size < FORMAT_HEADER_ROOM) return;
    header.first_lsn = bytes[0] & 1 ? load_u64(bytes + 1) % 100 : 0;
    format_header_encode(bytes, &header);
    memcpy(bytes + FORMAT_HEADER_COPY, bytes, FORMAT_HEADER_BYTES);
    for (uint64_t at = FORMAT_HEADER_ROOM; (how & MEND_RECORDS) && at + FORMAT_RECORD_BYTES <= size;) {
        bytes[at + 6] = bytes[at + 7] = 0; /* possible sizes and LSNs */
        memset(bytes + at + 9, 0, 7);
        uint64_t padded = format_padded(load_u32(bytes + at + 4) % 600);
        store_u32(bytes + at + 4, (uint32_t)padded);
        if (at + FORMAT_RECORD_BYTES + padded > size) return;
        if (bytes[at + 1] & 3) format_record_seal(bytes + at, format_seed(&header)); /* most of them */
        at += FORMAT_RECORD_BYTES + padded;
    }
}

/* Write a header at the end that states the file's length. A bit of the file selects whether the first headers are erased. */
static void mend_end(uint8_t *bytes, uint64_t size, uint64_t number, uint8_t how) {
    if (!(how & MEND_END) || size % 8 || size < FORMAT_HEADER_ROOM + 2 * FORMAT_END_BYTES) return;
    segment_header_t header = {.wal_id = 7,
                               .number = number,
                               .header_bytes = FORMAT_HEADER_ROOM,
                               .segment_bytes = (uint32_t)size,
                               .batch_bytes = 4096,
                               .flags = bytes[size - 1] & 1};
    format_header_encode(bytes + size - FORMAT_END_BYTES, &header);
    if (bytes[FORMAT_HEADER_ROOM - 1] & 1) memset(bytes, 0, FORMAT_HEADER_ROOM);
}

static void ledger_put(const uint8_t *data, size_t size, uint8_t how) {
    uint8_t slots[FORMAT_LEDGER_SLOT + FORMAT_LEDGER_BYTES] = {0};
    if (!(how & LEDGER) || size < 24) return;
    for (uint32_t slot = 0; slot < 2; slot++) {
        const uint8_t *bytes = data + size - 12 * (slot + 1);
        ledger_t ledger = {.wal_id = 7, .sequence = bytes[0], .active = bytes[1] % 8, .lsn = load_u32(bytes + 2)};
        ledger.created = ledger.active + bytes[6] % 3;
        ledger.flags = bytes[7] & 1;
        ledger.size_log2 = bytes[8] % 40;
        ledger.note = bytes[9];
        format_ledger_encode(slots + slot * FORMAT_LEDGER_SLOT, &ledger);
    }
    sim_disk_put(disk, WAL_LOCK_NAME, slots, sizeof slots);
}

static void mend_checkpoint(uint8_t *bytes, uint64_t size, uint8_t how) {
    if (!(how & MEND_CHECKPOINT) || size < FORMAT_CHECKPOINT_BYTES) return;
    checkpoint_header_t header = {
        .wal_id = 7, .generation = 1, .lsn = bytes[0], .keep_from = bytes[1], .size = (uint32_t)(size - FORMAT_CHECKPOINT_BYTES)};
    format_checkpoint_encode(bytes, &header);
    header.payload_crc = crc32_update(crc32_update(0, bytes, 48), bytes + FORMAT_CHECKPOINT_BYTES, header.size);
    format_checkpoint_encode(bytes, &header);
}

static void disk_make(const uint8_t *data, size_t size) {
    disk = sim_disk_new(1);
    uint8_t how = size ? data[0] : 0;
    uint64_t parts = how & SPLIT ? 3 : 1, part = size / (parts + 1);
    uint8_t *copy = malloc(size + 1);
    CHECK(copy);
    if (size) memcpy(copy, data, size);
    for (uint64_t i = 0; i < parts; i++) {
        char name[FORMAT_NAME_BYTES];
        format_segment_name(name, i + 1);
        mend_segment(copy + i * part, part, i + 1, how);
        mend_end(copy + i * part, part, i + 1, how);
        sim_disk_put(disk, name, copy + i * part, part);
    }
    ledger_put(data, size, how);
    mend_checkpoint(copy + parts * part, size - parts * part, how);
    sim_disk_put(disk, "checkpoint-0000000001.ckp", copy + parts * part, size - parts * part);
    free(copy);
}

#endif
