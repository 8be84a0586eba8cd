/* wal/format.h: the bytes of segments and checkpoints (FORMAT.md is the page about them), and reading through a segment.
 *
 *      segment     [header 64][zeros][header again at 512][zeros to header_bytes] record record ... footer [zeros][header again]
 *      record      [type 1][flags 1][place 2][size 4][lsn 8][payload crc 4][header crc 4][payload, padded with zeros to 8]
 *
 * Invariant: a record is accepted only if both its CRCs hold, which cover every byte of it but themselves and begin with a
 * seed made from the segment's salt and number. Lengths are checked against what is left before they are used.
 */
#ifndef BQ_WAL_FORMAT_H
#define BQ_WAL_FORMAT_H

#include "wal/wal.h"

#define FORMAT_MAJOR 1u
#define FORMAT_MINOR 1u
#define FORMAT_HEADER_BYTES 64u
#define FORMAT_HEADER_COPY 512u  /* where the second copy lies: another sector than the first */
#define FORMAT_HEADER_ROOM 1024u /* records begin here, or at the block size if that is larger */
#define FORMAT_END_BYTES 64u     /* since 1.1: the header once more, at the end of the file; no record reaches into it */
#define FORMAT_APART_BYTES 4160u /* a file that may be this long is never shorter: its ends lie in two pages of flash */
#define FORMAT_HEADER_GAP 1u     /* a header's flag: how many of the LSNs missing before or in it were used is not known */
#define FORMAT_RECORD_BYTES 24u  /* a record's header */
#define FORMAT_FOOTER_BYTES 40u  /* the footer with its header */
#define FORMAT_PLACE_MAX 65535u  /* records before this one in its batch */
#define FORMAT_BATCH_BYTES_MAX (128u << 20)
#define FORMAT_SEGMENT_BYTES_MAX (1u << 30)
#define FORMAT_NUMBER_LAST (1ull << 54) /* no WAL comes near these: what says more is not believed */
#define FORMAT_LSN_LAST (1ull << 62)
#define FORMAT_FOOTER 14      /* wal_type of the record that seals a segment */
#define FORMAT_FOOTER_CLEAN 1 /* its flag: the WAL was closed in order here */

static inline uint64_t format_padded(uint64_t size) { return (size + 7) & ~(uint64_t)7; }

typedef struct segment_header {
    uint64_t wal_id, number;
    uint64_t first_lsn;     /* 0: preallocated, goes on where the one before it ends */
    uint32_t header_bytes;  /* offset of the first record */
    uint32_t segment_bytes; /* what the file was allocated for; in the copy at its end: how long it is */
    uint32_t batch_bytes;   /* no record is larger, and no more than this was ever written without a sync */
    uint32_t salt, flags;
    uint16_t major, minor;
} segment_header_t;

/* Where records of a segment that is as long as its header says may reach to. */
static inline uint64_t format_records_end(const segment_header_t *header) {
    return header->segment_bytes - (header->minor ? FORMAT_END_BYTES : 0);
}

enum format_verdict { FORMAT_GOOD = 0, FORMAT_BAD = -100, FORMAT_NEWER = -101 }; /* no error code's number */

void format_header_encode(uint8_t out[FORMAT_HEADER_BYTES], const segment_header_t *header);
int format_header_decode(const uint8_t bytes[FORMAT_HEADER_BYTES], segment_header_t *header);
uint32_t format_seed(const segment_header_t *header);

/* Records. `place`: how many LSNs its batch began before it; a batch is written only when all before it is durable, so a
 * record proves that everything up to lsn - place - 1 was. */
typedef struct format_record {
    uint64_t lsn;
    uint32_t size;
    uint16_t place;
    uint8_t type, flags;
} format_record_t;

void format_record_begin(uint8_t *out, const format_record_t *record); /* all but the CRCs */
void format_record_seal(uint8_t *record, uint32_t seed);               /* CRCs over what begin and the payload's writer left */
format_record_t format_record_of(const uint8_t *bytes);
uint32_t format_footer_encode(uint8_t out[FORMAT_FOOTER_BYTES], uint32_t seed, uint64_t next_lsn, uint64_t records,
                              uint16_t place, uint8_t flags);

/* Checkpoints: a header like a segment's, then the core's bytes. */
#define FORMAT_CHECKPOINT_BYTES 64u
typedef struct checkpoint_header {
    uint64_t wal_id, generation, lsn, keep_from;
    uint32_t size, payload_crc;
    uint16_t major, minor;
} checkpoint_header_t;
void format_checkpoint_encode(uint8_t out[FORMAT_CHECKPOINT_BYTES], const checkpoint_header_t *header);
int format_checkpoint_decode(const uint8_t bytes[FORMAT_CHECKPOINT_BYTES], checkpoint_header_t *header);

/* LOCK, which is locked, holds in two slots, written in turn, which segments there must be. In the header's layout of 64 bytes. */
#define FORMAT_LEDGER_BYTES 64u
#define FORMAT_LEDGER_SLOT 4096u /* bytes between the two: pages apart, so that no torn write takes both */
#define FORMAT_LEDGER_CLEAN 1u
typedef struct ledger {
    uint64_t wal_id, sequence;
    uint64_t active; /* this segment's file is there; 0: none need be */
    uint64_t
        created;   /* and this one's too, if `active` is sealed and the WAL was not closed in order; the same: there was none */
    uint64_t lsn;  /* the first of `active`; CLEAN or without an active segment: the one that comes next */
    uint64_t note; /* the core's: it is told what was noted last */
    uint32_t flags;
    uint8_t size_log2; /* neither of the two segments is longer than 1 << this */
} ledger_t;
void format_ledger_encode(uint8_t out[FORMAT_LEDGER_BYTES], const ledger_t *ledger);
int format_ledger_decode(const uint8_t bytes[FORMAT_LEDGER_BYTES], ledger_t *ledger);

/* File names. A number read from a name, or 0 if it is none of ours. A name can have more than any file has that is believed, so
 * that the next ones have names as well. */
#define FORMAT_NUMBER_MAX 99999999999999999ull
#define FORMAT_NAME_BYTES 64
void format_segment_name(char name[FORMAT_NAME_BYTES], uint64_t number);
void format_checkpoint_name(char name[FORMAT_NAME_BYTES], uint64_t generation);
uint64_t format_segment_number(const char *name);
uint64_t format_checkpoint_number(const char *name);
bool format_name_strange(
    const char *name); /* like one of these, but the WAL does not write it: too long a number, or too short */

/* ---- reading through one segment ----------------------------------------------------------------------------------- */

/* A window over a file, read in large pieces. The buffer grows to the largest record whose header held, no further. */
typedef struct scan {
    storage_t *storage;
    int file;
    uint64_t size;   /* of the file */
    uint64_t offset; /* of what comes next; a multiple of 8 */
    uint32_t seed, batch_bytes;
    uint8_t *buffer;
    uint32_t capacity;
    uint32_t ahead; /* how much to read at once beyond what is needed now; 0: what the buffer holds */
    uint64_t at;    /* file offset of buffer[0] */
    uint32_t used;
    uint64_t read_bytes; /* in all */
    uint64_t unreadable; /* bytes the disk would not give; they read as 0xff, which is no record */
    int error;           /* -errno of a read that failed otherwise; sticks */
} scan_t;

enum scan_result { SCAN_RECORD = 1, SCAN_STOP = 0 }; /* SCAN_STOP: no valid record here: the end, or damage */

int scan_init(scan_t *scan, storage_t *storage, uint32_t capacity); /* BQ_OK or BQ_E_MEMORY */
void scan_free(scan_t *scan);
void scan_file(scan_t *scan, int file, uint64_t size, const segment_header_t *header); /* begin at its first record */
void scan_more(scan_t *scan, uint64_t size);      /* the same file has so many bytes now; what is in the buffer stays */
int scan_shrink(scan_t *scan, uint32_t capacity); /* after a large record. BQ_OK, or BQ_E_MEMORY: it is as large as before */
/* The valid record at scan->offset; its payload holds until the next call. The offset moves on only with scan_pass. */
int scan_look(scan_t *scan, format_record_t *record, const uint8_t **payload);
void scan_pass(scan_t *scan, const format_record_t *record);
/* From the offset on, find the next valid record with lsn_min <= LSN, or SCAN_STOP at the end of the file. *junk_end is raised
 * to just after the last byte that is not zero among those passed over. */
int scan_resync(scan_t *scan, uint64_t lsn_min, format_record_t *record, uint64_t *junk_end);

#endif
