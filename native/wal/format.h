/* wal/format.h: the bytes of segments and checkpoints (described in FORMAT.md), and the reader of one segment.
 *
 *      segment     [header 64][zeros][header again at 512][zeros to header_bytes] record record ... footer [zeros][header again]
 *      record      [type 1][flags 1][place 2][size 4][lsn 8][payload crc 4][header crc 4][payload, padded with zeros to 8]
 *
 * Invariant: a record is accepted only if both CRCs are correct. They cover every byte of it except themselves, and start from
 * a seed made of the segment's salt and number. Each length is checked against the remaining bytes before it is used.
 */
#ifndef BQ_WAL_FORMAT_H
#define BQ_WAL_FORMAT_H

#include "wal/wal.h"

#define FORMAT_MAJOR 1u
#define FORMAT_MINOR 1u
#define FORMAT_HEADER_BYTES 64u
#define FORMAT_HEADER_COPY 512u  /* offset of the second copy: in another sector than the first */
#define FORMAT_HEADER_ROOM 1024u /* records begin here, or at the block size if that is larger */
#define FORMAT_END_BYTES 64u     /* since 1.1: the header again at the end of the file; no record may reach into it */
/* A file that can be this long is never shorter, so that its two ends are in different flash pages. */
#define FORMAT_APART_BYTES 4160u
#define FORMAT_HEADER_GAP 1u    /* header flag: it is unknown how many of the LSNs missing before or in this segment were used */
#define FORMAT_RECORD_BYTES 24u /* a record's header */
#define FORMAT_FOOTER_BYTES 40u /* size of the footer, with its record header */
#define FORMAT_PLACE_MAX 65535u /* limit of `place`: records before this one in its batch */
#define FORMAT_BATCH_BYTES_MAX (128u << 20)
#define FORMAT_SEGMENT_BYTES_MAX (1u << 30)
#define FORMAT_NUMBER_LAST (1ull << 54) /* no WAL reaches these limits: a larger value is treated as damage */
#define FORMAT_LSN_LAST (1ull << 62)
#define FORMAT_FOOTER 14      /* wal_type of the record that seals a segment */
#define FORMAT_FOOTER_CLEAN 1 /* flag of the footer: the WAL was closed cleanly here */

static inline uint64_t format_padded(uint64_t size) { return (size + 7) & ~(uint64_t)7; }

typedef struct segment_header {
    uint64_t wal_id, number;
    uint64_t first_lsn;     /* 0: preallocated, continues after the previous segment */
    uint32_t header_bytes;  /* offset of the first record */
    uint32_t segment_bytes; /* allocated file size; in the copy at the end: the file's length */
    uint32_t batch_bytes;   /* largest record, and the most that was ever written without a sync */
    uint32_t salt, flags;
    uint16_t major, minor;
} segment_header_t;

/* End of the record area of a segment whose length matches its header. */
static inline uint64_t format_records_end(const segment_header_t *header) {
    return header->segment_bytes - (header->minor ? FORMAT_END_BYTES : 0);
}

enum format_verdict { FORMAT_GOOD = 0, FORMAT_BAD = -100, FORMAT_NEWER = -101 }; /* distinct from all error codes */

void format_header_encode(uint8_t out[FORMAT_HEADER_BYTES], const segment_header_t *header);
int format_header_decode(const uint8_t bytes[FORMAT_HEADER_BYTES], segment_header_t *header);
uint32_t format_seed(const segment_header_t *header);

/* Records. `place`: number of LSNs before it in its batch. A batch is written only when everything before it is durable, so
 * a record proves that all LSNs up to lsn - place - 1 were durable. */
typedef struct format_record {
    uint64_t lsn;
    uint32_t size;
    uint16_t place;
    uint8_t type, flags;
} format_record_t;

void format_record_begin(uint8_t *out, const format_record_t *record); /* everything except the CRCs */
void format_record_seal(uint8_t *record, uint32_t seed);               /* adds the CRCs over header and payload */
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

/* LOCK holds the ledger: the segments that must exist. Two slots of 64 bytes, with the header's layout, are written in turn. */
#define FORMAT_LEDGER_BYTES 64u
#define FORMAT_LEDGER_SLOT 4096u /* distance of the slots: in different pages, so a torn write cannot damage both */
#define FORMAT_LEDGER_CLEAN 1u
typedef struct ledger {
    uint64_t wal_id, sequence;
    uint64_t active;  /* this segment's file exists; 0: none must exist */
    uint64_t created; /* this file exists too if `active` is sealed and the WAL was not closed cleanly; equal to `active`: none */
    uint64_t lsn;     /* first LSN of `active`; with CLEAN, or without an active segment: the next LSN */
    uint64_t note;    /* the core's number, see wal_note */
    uint32_t flags;
    uint8_t size_log2; /* both segments are at most 1 << size_log2 bytes long */
} ledger_t;
void format_ledger_encode(uint8_t out[FORMAT_LEDGER_BYTES], const ledger_t *ledger);
int format_ledger_decode(const uint8_t bytes[FORMAT_LEDGER_BYTES], ledger_t *ledger);

/* File names. Returns the number in a name, or 0 if the WAL does not write such a name. Names allow higher numbers than
 * valid headers do, so that the next files can always be named. */
#define FORMAT_NUMBER_MAX 99999999999999999ull
#define FORMAT_NAME_BYTES 64
void format_segment_name(char name[FORMAT_NAME_BYTES], uint64_t number);
void format_checkpoint_name(char name[FORMAT_NAME_BYTES], uint64_t generation);
uint64_t format_segment_number(const char *name);
uint64_t format_checkpoint_number(const char *name);
/* true: similar to a WAL file name, but with too many or too few digits */
bool format_name_strange(const char *name);

/* ---- reading through one segment ----------------------------------------------------------------------------------- */

/* A window over a file, read in large pieces. The buffer grows at most to the largest record with a valid header. */
typedef struct scan {
    storage_t *storage;
    int file;
    uint64_t size;   /* of the file */
    uint64_t offset; /* of the next record; a multiple of 8 */
    uint32_t seed, batch_bytes;
    uint8_t *buffer;
    uint32_t capacity;
    uint32_t ahead; /* how many bytes to read beyond the required ones; 0: as many as the buffer holds */
    uint64_t at;    /* file offset of buffer[0] */
    uint32_t used;
    uint64_t read_bytes; /* total */
    uint64_t unreadable; /* bytes that the disk could not read; they appear as 0xff, which is never a record */
    int error;           /* -errno of any other failed read; stays set */
} scan_t;

enum scan_result { SCAN_RECORD = 1, SCAN_STOP = 0 }; /* SCAN_STOP: no valid record here: the end, or damage */

int scan_init(scan_t *scan, storage_t *storage, uint32_t capacity); /* BQ_OK or BQ_E_MEMORY */
void scan_free(scan_t *scan);
void scan_file(scan_t *scan, int file, uint64_t size, const segment_header_t *header); /* start at the first record */
void scan_more(scan_t *scan, uint64_t size);      /* the same file has grown to `size` bytes; the buffer is kept */
int scan_shrink(scan_t *scan, uint32_t capacity); /* after a large record. BQ_OK, or BQ_E_MEMORY: the size is unchanged */
/* The valid record at scan->offset. Its payload is valid until the next call. Only scan_pass moves the offset. */
int scan_look(scan_t *scan, format_record_t *record, const uint8_t **payload);
void scan_pass(scan_t *scan, const format_record_t *record);
/* From the offset on, find the next valid record with LSN >= lsn_min, or return SCAN_STOP at the end of the file. *junk_end
 * is set to just after the last skipped byte that is not zero. */
int scan_resync(scan_t *scan, uint64_t lsn_min, format_record_t *record, uint64_t *junk_end);

#endif
