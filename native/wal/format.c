/* wal/format.c: see wal/format.h.
 *
 * Invariant: bytes are used only after a CRC has verified them. A length is compared with the remaining bytes before it is
 * added.
 */
#include "wal/format.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/crc32.h"

static const uint8_t segment_magic[8] = {'B', 'L', 'I', 'P', 'W', 'A', 'L', 0};
static const uint8_t checkpoint_magic[8] = {'B', 'L', 'I', 'P', 'C', 'K', 'P', 0};
static const uint8_t ledger_magic[8] = {'B', 'L', 'I', 'P', 'L', 'C', 'K', 0};

#define HEADER_CRC_AT 60u /* in both headers, also in every later major version */
#define CRC_IEEE 1u

/* The version is checked after the CRC: a flipped bit in it is damage, not a newer version. */
static int envelope_check(const uint8_t *bytes, const uint8_t magic[8], uint16_t *major, uint16_t *minor) {
    if (memcmp(bytes, magic, 8) != 0 || crc32_update(0, bytes, HEADER_CRC_AT) != load_u32(bytes + HEADER_CRC_AT))
        return FORMAT_BAD;
    *major = load_u16(bytes + 8);
    *minor = load_u16(bytes + 10);
    return *major == FORMAT_MAJOR ? FORMAT_GOOD : *major > FORMAT_MAJOR ? FORMAT_NEWER : FORMAT_BAD;
}

static void envelope_write(uint8_t *out, const uint8_t magic[8]) {
    memcpy(out, magic, 8);
    store_u16(out + 8, FORMAT_MAJOR);
    store_u16(out + 10, FORMAT_MINOR);
    store_u32(out + HEADER_CRC_AT, crc32_update(0, out, HEADER_CRC_AT));
}

void format_header_encode(uint8_t out[FORMAT_HEADER_BYTES], const segment_header_t *header) {
    memset(out, 0, FORMAT_HEADER_BYTES);
    store_u32(out + 12, header->header_bytes);
    store_u64(out + 16, header->wal_id);
    store_u64(out + 24, header->number);
    store_u64(out + 32, header->first_lsn);
    store_u32(out + 40, header->salt);
    store_u32(out + 44, header->segment_bytes);
    store_u32(out + 48, header->batch_bytes);
    store_u32(out + 52, CRC_IEEE);
    store_u32(out + 56, header->flags);
    envelope_write(out, segment_magic);
}

int format_header_decode(const uint8_t bytes[FORMAT_HEADER_BYTES], segment_header_t *header) {
    int verdict = envelope_check(bytes, segment_magic, &header->major, &header->minor);
    if (verdict != FORMAT_GOOD) return verdict;
    header->header_bytes = load_u32(bytes + 12);
    header->wal_id = load_u64(bytes + 16);
    header->number = load_u64(bytes + 24);
    header->first_lsn = load_u64(bytes + 32);
    header->salt = load_u32(bytes + 40);
    header->segment_bytes = load_u32(bytes + 44);
    header->batch_bytes = load_u32(bytes + 48);
    header->flags = load_u32(bytes + 56);
    bool sane = header->header_bytes >= FORMAT_HEADER_ROOM && header->header_bytes % 8 == 0 && header->number != 0 &&
                header->number <= FORMAT_NUMBER_LAST && header->segment_bytes <= FORMAT_SEGMENT_BYTES_MAX &&
                header->segment_bytes > FORMAT_HEADER_ROOM && header->header_bytes < format_records_end(header) &&
                header->batch_bytes <= FORMAT_BATCH_BYTES_MAX && load_u32(bytes + 52) == CRC_IEEE;
    return sane ? FORMAT_GOOD : FORMAT_BAD;
}

uint32_t format_seed(const segment_header_t *header) {
    uint8_t bytes[16];
    store_u64(bytes, header->wal_id);
    store_u64(bytes + 8, header->number);
    return crc32_update(header->salt, bytes, sizeof bytes);
}

/* ---- records ------------------------------------------------------------------------------------------------------- */

void format_record_begin(uint8_t *out, const format_record_t *record) {
    out[0] = record->type;
    out[1] = record->flags;
    store_u16(out + 2, record->place);
    store_u32(out + 4, record->size);
    store_u64(out + 8, record->lsn);
}

/* The header's CRC covers the payload's CRC, so a payload cannot be replaced by that of another record. */
static uint32_t header_crc(const uint8_t *record, uint32_t seed) { return crc32_update(seed, record, 20); }

static uint32_t payload_crc(const uint8_t *record, uint32_t seed, uint32_t size) {
    return crc32_update(seed, record + FORMAT_RECORD_BYTES, format_padded(size));
}

void format_record_seal(uint8_t *record, uint32_t seed) {
    store_u32(record + 16, payload_crc(record, seed, load_u32(record + 4)));
    store_u32(record + 20, header_crc(record, seed));
}

static format_record_t format_record_of(const uint8_t *bytes) {
    return (format_record_t){.lsn = load_u64(bytes + 8),
                             .size = load_u32(bytes + 4),
                             .place = load_u16(bytes + 2),
                             .type = bytes[0],
                             .flags = bytes[1]};
}

uint32_t format_footer_encode(uint8_t out[FORMAT_FOOTER_BYTES], uint32_t seed, uint64_t next_lsn, uint64_t records,
                              uint16_t place, uint8_t flags) {
    format_record_begin(out,
                        &(format_record_t){.type = FORMAT_FOOTER, .flags = flags, .place = place, .size = 16, .lsn = next_lsn});
    store_u64(out + FORMAT_RECORD_BYTES, next_lsn - 1);
    store_u64(out + FORMAT_RECORD_BYTES + 8, records);
    format_record_seal(out, seed);
    return FORMAT_FOOTER_BYTES;
}

/* ---- checkpoints and names ------------------------------------------------------------------------------------------ */

void format_checkpoint_encode(uint8_t out[FORMAT_CHECKPOINT_BYTES], const checkpoint_header_t *header) {
    memset(out, 0, FORMAT_CHECKPOINT_BYTES);
    store_u32(out + 12, header->size);
    store_u64(out + 16, header->wal_id);
    store_u64(out + 24, header->generation);
    store_u64(out + 32, header->lsn);
    store_u64(out + 40, header->keep_from);
    store_u32(out + 48, header->payload_crc);
    envelope_write(out, checkpoint_magic);
}

int format_checkpoint_decode(const uint8_t bytes[FORMAT_CHECKPOINT_BYTES], checkpoint_header_t *header) {
    int verdict = envelope_check(bytes, checkpoint_magic, &header->major, &header->minor);
    if (verdict != FORMAT_GOOD) return verdict;
    header->size = load_u32(bytes + 12);
    header->wal_id = load_u64(bytes + 16);
    header->generation = load_u64(bytes + 24);
    header->lsn = load_u64(bytes + 32);
    header->keep_from = load_u64(bytes + 40);
    header->payload_crc = load_u32(bytes + 48);
    return FORMAT_GOOD;
}

void format_ledger_encode(uint8_t out[FORMAT_LEDGER_BYTES], const ledger_t *ledger) {
    memset(out, 0, FORMAT_LEDGER_BYTES);
    out[12] = (uint8_t)ledger->flags;
    out[13] = (uint8_t)(ledger->created - ledger->active);
    out[14] = ledger->size_log2;
    store_u64(out + 16, ledger->wal_id);
    store_u64(out + 24, ledger->sequence);
    store_u64(out + 32, ledger->active);
    store_u64(out + 40, ledger->lsn);
    store_u64(out + 48, ledger->note);
    envelope_write(out, ledger_magic);
}

int format_ledger_decode(const uint8_t bytes[FORMAT_LEDGER_BYTES], ledger_t *ledger) {
    uint16_t major, minor;
    int verdict = envelope_check(bytes, ledger_magic, &major, &minor);
    if (verdict != FORMAT_GOOD) return verdict;
    ledger->flags = bytes[12];
    ledger->size_log2 = bytes[14];
    ledger->wal_id = load_u64(bytes + 16);
    ledger->sequence = load_u64(bytes + 24);
    ledger->active = load_u64(bytes + 32);
    ledger->created = ledger->active + bytes[13];
    ledger->lsn = load_u64(bytes + 40);
    ledger->note = load_u64(bytes + 48);
    bool sane = ledger->created <= FORMAT_NUMBER_LAST && ledger->size_log2 < 32 && ledger->lsn <= FORMAT_LSN_LAST;
    return sane ? FORMAT_GOOD : FORMAT_BAD;
}

void format_segment_name(char name[FORMAT_NAME_BYTES], uint64_t number) {
    snprintf(name, FORMAT_NAME_BYTES, "wal-%010llu.log", (unsigned long long)number);
}

void format_checkpoint_name(char name[FORMAT_NAME_BYTES], uint64_t generation) {
    snprintf(name, FORMAT_NAME_BYTES, "checkpoint-%010llu.ckp", (unsigned long long)generation);
}

/* Only the exact spelling of the WAL's names: "wal-1.log", or one digit too many, is another program's file. */
static uint64_t number_between(const char *name, const char *prefix, const char *suffix) {
    size_t prefix_size = strlen(prefix), suffix_size = strlen(suffix), size = strlen(name);
    if (size < prefix_size + 10 + suffix_size || size > prefix_size + 19 + suffix_size) return 0;
    if (strncmp(name, prefix, prefix_size) != 0 || strcmp(name + size - suffix_size, suffix) != 0) return 0;
    size_t digits = size - prefix_size - suffix_size;
    if (digits > 10 && name[prefix_size] == '0') return 0;
    uint64_t number = 0;
    for (size_t i = prefix_size; i < size - suffix_size; i++) {
        if (name[i] < '0' || name[i] > '9') return 0;
        number = number * 10 + (uint64_t)(name[i] - '0');
    }
    return number <= FORMAT_NUMBER_MAX ? number : 0;
}

uint64_t format_segment_number(const char *name) { return number_between(name, "wal-", ".log"); }
uint64_t format_checkpoint_number(const char *name) { return number_between(name, "checkpoint-", ".ckp"); }

static bool is_between(const char *name, const char *prefix, const char *suffix) {
    size_t size = strlen(name), ends = strlen(prefix) + strlen(suffix);
    return size > ends && strncmp(name, prefix, strlen(prefix)) == 0 && strcmp(name + size - strlen(suffix), suffix) == 0;
}

bool format_name_strange(const char *name) {
    bool alike = is_between(name, "wal-", ".log") || is_between(name, "checkpoint-", ".ckp");
    return alike && !format_segment_number(name) && !format_checkpoint_number(name);
}

/* ---- reading through one segment ------------------------------------------------------------------------------------- */

int scan_init(scan_t *scan, storage_t *storage, uint32_t capacity) {
    *scan = (scan_t){.storage = storage, .file = -1, .capacity = capacity, .buffer = malloc(capacity)};
    return scan->buffer ? BQ_OK : BQ_E_MEMORY;
}

void scan_free(scan_t *scan) {
    free(scan->buffer);
    scan->buffer = NULL;
}

void scan_file(scan_t *scan, int file, uint64_t size, const segment_header_t *header) {
    scan->file = file;
    scan_more(scan, size);
    scan->offset = header->header_bytes;
    scan->seed = format_seed(header);
    scan->batch_bytes = header->batch_bytes;
    scan->at = 0;
    scan->used = 0;
    scan->ahead = 0;
    scan->unreadable = 0;
    scan->error = 0;
}

void scan_more(scan_t *scan, uint64_t size) { scan->size = size < FORMAT_SEGMENT_BYTES_MAX ? size : FORMAT_SEGMENT_BYTES_MAX; }

int scan_shrink(scan_t *scan, uint32_t capacity) {
    uint8_t *smaller = scan->capacity > capacity ? malloc(capacity) : NULL;
    if (scan->capacity <= capacity) return BQ_OK;
    if (!smaller) return BQ_E_MEMORY;
    free(scan->buffer);
    scan->buffer = smaller;
    scan->capacity = capacity;
    scan->used = 0;
    return BQ_OK;
}

#define SECTOR_BYTES 4096u

/* One bad sector makes a large read fail. Read sector by sector, so that only the bad sectors are lost. */
static int64_t read_by_sector(scan_t *scan, uint64_t offset, uint8_t *bytes, uint64_t size) {
    uint64_t done = 0;
    while (done < size) {
        uint64_t left = size - done, piece = SECTOR_BYTES - (offset + done) % SECTOR_BYTES;
        if (piece > left) piece = left;
        int64_t count = scan->storage->read(scan->storage, scan->file, offset + done, bytes + done, piece);
        if (count < 0 && count != -EIO) return count;
        if (count < 0) {
            memset(bytes + done, 0xff, piece);
            scan->unreadable += piece;
            count = (int64_t)piece;
        }
        if (count == 0) break;
        done += (uint64_t)count;
    }
    return (int64_t)done;
}

/* Move the buffered bytes from the offset on to the front, and read more behind them. */
static void window_fill(scan_t *scan, uint64_t wanted) {
    uint64_t kept = 0;
    if (scan->offset >= scan->at && scan->offset - scan->at < scan->used) kept = scan->used - (scan->offset - scan->at);
    if (kept) memmove(scan->buffer, scan->buffer + (scan->offset - scan->at), kept);
    scan->at = scan->offset;
    scan->used = (uint32_t)kept;
    if (kept >= wanted) return;
    uint64_t from = scan->offset + kept;
    int64_t count = scan->storage->read(scan->storage, scan->file, from, scan->buffer + kept, wanted - kept);
    if (count == -EIO) count = read_by_sector(scan, from, scan->buffer + kept, wanted - kept);
    if (count < 0) {
        scan->error = (int)count;
        return;
    }
    scan->used += (uint32_t)count;
    scan->read_bytes += (uint64_t)count;
}

/* `need` bytes at the offset, or NULL if the file ends before them or cannot be read. */
static const uint8_t *window(scan_t *scan, uint64_t need) {
    if (scan->error || scan->offset > scan->size || need > scan->size - scan->offset) return NULL;
    if (scan->offset >= scan->at && scan->offset - scan->at <= scan->used && need <= scan->used - (scan->offset - scan->at))
        return scan->buffer + (scan->offset - scan->at);
    if (need > scan->capacity) {
        uint8_t *larger = realloc(scan->buffer, need);
        if (!larger) {
            scan->error = -ENOMEM;
            return NULL;
        }
        scan->buffer = larger;
        scan->capacity = (uint32_t)need;
    }
    uint64_t left = scan->size - scan->offset, wanted = scan->capacity;
    if (scan->ahead && scan->ahead < wanted) wanted = scan->ahead > need ? scan->ahead : need;
    window_fill(scan, left < wanted ? left : wanted);
    return scan->used >= need ? scan->buffer : NULL;
}

/* The size is true if the header's CRC is correct. It is still checked against the batch limit and the file. */
static bool header_holds(const scan_t *scan, const uint8_t *bytes, format_record_t *record) {
    if (bytes[0] == 0) return false;
    *record = format_record_of(bytes);
    uint64_t left = scan->size - scan->offset - FORMAT_RECORD_BYTES;
    return record->size <= scan->batch_bytes && record->size <= left && format_padded(record->size) <= left &&
           record->lsn > record->place && header_crc(bytes, scan->seed) == load_u32(bytes + 20);
}

int scan_look(scan_t *scan, format_record_t *record, const uint8_t **payload) {
    const uint8_t *bytes = window(scan, FORMAT_RECORD_BYTES);
    if (!bytes || !header_holds(scan, bytes, record)) return SCAN_STOP;
    bytes = window(scan, FORMAT_RECORD_BYTES + format_padded(record->size));
    if (!bytes || payload_crc(bytes, scan->seed, record->size) != load_u32(bytes + 16)) return SCAN_STOP;
    if (record->type == FORMAT_FOOTER && record->size != 16) return SCAN_STOP;
    *payload = bytes + FORMAT_RECORD_BYTES;
    return SCAN_RECORD;
}

void scan_pass(scan_t *scan, const format_record_t *record) { scan->offset += FORMAT_RECORD_BYTES + format_padded(record->size); }

/* Bytes in the window after the offset, at least 8; 0 at the end of the file. */
static uint64_t span_of(scan_t *scan, const uint8_t **bytes) {
    *bytes = window(scan, 8);
    return *bytes ? (scan->used - (scan->offset - scan->at)) & ~(uint64_t)7 : 0;
}

int scan_resync(scan_t *scan, uint64_t lsn_min, format_record_t *record, uint64_t *junk_end) {
    const uint8_t *bytes, *payload;
    for (uint64_t span; (span = span_of(scan, &bytes)) != 0;) {
        uint64_t zeros = 0;
        while (zeros < span && load_u64(bytes + zeros) == 0) zeros += 8;
        scan->offset += zeros;
        if (zeros == span) continue;
        if (scan_look(scan, record, &payload) == SCAN_RECORD && record->lsn >= lsn_min) return SCAN_RECORD;
        scan->offset += 8;
        *junk_end = scan->offset;
    }
    uint64_t tail = scan->size & 7; /* the file was cut between two multiples of 8 */
    if (tail && !scan->error) *junk_end = scan->size;
    return SCAN_STOP;
}
