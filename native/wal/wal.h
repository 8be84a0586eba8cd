/* wal/wal.h: the write-ahead log (WAL): segments, group commit in its own thread, recovery, reading back, checkpoints.
 *
 *      core thread                     WAL thread                     read thread
 *      wal_append -> [gathering]       [sealed] write, fdatasync      wal_read_start -> segment files
 *      wal_commit ----------------->   durable LSN, wake the core     done list, wake the core
 *
 * Invariants (see FORMAT.md and docs/DURABILITY.md): wal_durable passes an LSN only after fdatasync has returned 0 for every
 * byte up to the end of its record, in a segment whose directory entry is synced. After the first failed write or sync nothing
 * more becomes durable. A failed sync is never repeated. LSNs rise by one and never start again.
 */
#ifndef BQ_WAL_H
#define BQ_WAL_H

#include "base/bytes.h"
#include "wal/storage.h"

typedef struct wal wal_t;

enum wal_error {
    WAL_E_FULL = -20,    /* quota or free-space reserve reached; clears when space is freed */
    WAL_E_FAILED = -21,  /* permanent failure: restart the broker */
    WAL_E_LOCKED = -22,  /* another broker uses the directory */
    WAL_E_VERSION = -23, /* written by a newer major version; nothing was changed */
    WAL_E_GONE = -24,    /* the WAL no longer has this LSN, or does not have it yet */
    WAL_E_REFUSED = -25  /* `restore` rejected a record; the WAL is unchanged */
};

enum wal_type {
    WAL_PUBLISH = 1, /* 1 to 12 are written by the core, see broker/consumer_store.c; the WAL does not parse them */
    WAL_ACK = 2,
    WAL_CONSUMER = 3,
    WAL_CONSUMER_END = 4,
    WAL_IDS = 5,
    WAL_CONSUMER_LEAVE = 6,
    WAL_TIME = 8,     /* see broker/timeline.h */
    WAL_SESSION = 12, /* see broker/session_store.c */
    WAL_PAD = 15      /* fills a block; takes no LSN (it carries the LSN of the next record); never passed to a visitor */
};

typedef struct wal_config {
    uint64_t max_bytes;          /* of all segment files together */
    uint64_t reserve_bytes;      /* free space of the file system that publishes must leave; acks and checkpoints may use it */
    uint32_t segment_bytes;      /* at least 2 * batch_bytes_max, at most max_bytes / 4; 4 KiB to 512 MiB */
    uint32_t batch_bytes_max;    /* size of the gathering batch; a record may take half of it */
    uint32_t block_bytes;        /* a batch is padded to a multiple of this; 0: to 8 bytes */
    uint32_t no_sync;            /* for tests only: fdatasync is not called */
    void (*wake)(void *context); /* the WAL's threads call it after each commit and each finished read */
    void *wake_context;
} wal_config_t;

typedef struct wal_record {
    uint64_t lsn;
    const uint8_t *bytes; /* valid until the visitor returns */
    uint32_t size;
    uint8_t type;
    uint8_t flags;
} wal_record_t;

/* Result of recovery. */
typedef struct wal_report {
    uint64_t records, bytes, segments;
    uint64_t torn_bytes; /* unsynced end of the newest segment, copied aside and dropped: normal after a power cut */
    uint64_t lost_first_lsn, lost_last_lsn, lost_ranges; /* corruption: outermost bounds, number of ranges; 0: none */
    uint64_t first_lsn, next_lsn;
    uint64_t checkpoint_lsn; /* 0: no readable checkpoint */
    uint64_t note;           /* the last known value of wal_note; 0: none */
    uint32_t checkpoints_bad;
    uint32_t clean;         /* 1: the WAL was closed cleanly */
    uint32_t note_last;     /* 1: `note` was written by that clean close and not changed since */
    uint32_t lost_unknown;  /* 1: it is unknown how many LSNs of the last range were used */
    uint32_t damaged_files; /* segments with a bad header or length, and missing segments */
    uint32_t strange_files; /* moved aside or renamed: from another WAL, duplicates, or not a file of this WAL */
} wal_report_t;

typedef struct wal_stats {
    uint64_t durable_lsn, next_lsn, first_lsn;
    uint64_t bytes, segments;
    uint64_t written_bytes, records;
    uint64_t sync_us_last, sync_us_total, sync_us_max;
    uint64_t sync_us_buckets[8]; /* number of syncs up to 100 us, 300 us, 1 ms, 3 ms, 10 ms, 30 ms, 100 ms, and longer */
    uint64_t reclaimed_segments;
    uint64_t checkpoint_lsn, checkpoints; /* `checkpoints`: number written since the WAL was opened */
    uint64_t keep_from;                   /* neither of the two checkpoints needs older records */
    int64_t free_bytes;
    uint32_t full, failed;
    int32_t error;        /* errno of the failure that stopped the WAL */
    uint32_t read_damage; /* records that failed verification when they were read back */
    uint64_t read_bytes;  /* bytes read from segments for wal_read_start */
} wal_stats_t;

typedef bool (*wal_visit)(void *context, const wal_record_t *record); /* false: the record is rejected and wal_open fails */

/* Open, lock and recover. `restore` gets the newest readable checkpoint first (type 0, lsn: its LSN), if there is one. Then
 * it gets each later record in LSN order. Earlier records are verified, but not passed to it. The WAL takes ownership of the
 * storage, also on errors. `progress` may be NULL; it is called every few MB with the bytes done and the total. Returns
 * BQ_OK, WAL_E_LOCKED, WAL_E_VERSION, WAL_E_REFUSED, BQ_E_ARGUMENT, BQ_E_MEMORY, or BQ_E_SYSTEM with errno. A full disk is
 * not an error: the WAL starts in state WAL_E_FULL. Then wal_durable may start below the last recovered LSN: records that
 * recovery could not sync again are not served before they are synced. */
int wal_open(wal_t **wal, storage_t *storage, const wal_config_t *config, wal_visit restore, void *context, wal_report_t *report,
             void (*progress)(void *context, uint64_t done, uint64_t total));
void wal_close(wal_t *wal); /* commits the gathered batch and marks the WAL as cleanly closed */

/* Save a number that needs no checkpoint. The next start returns it in wal_report_t. If `now`, it is on disk when this
 * returns, unless the disk is full or fails. Otherwise it is saved with the next segment or at a clean close. */
void wal_note(wal_t *wal, uint64_t note, bool now);

/* Which part of a nearly full WAL a record may use. Ordinary records stop one segment before the quota, or at the disk's
 * reserve. Urgent records (acks and similar) may use both. Dead letters may too, but leave some space for acks. They may
 * also exceed the quota by half, because each one releases an older message later. */
enum wal_urgency { WAL_ORDINARY, WAL_URGENT, WAL_LETTER };

/* Append a record made of parts. Returns its LSN (> 0), BQ_E_AGAIN (the batch is full: wait for a commit), WAL_E_FULL,
 * WAL_E_FAILED, BQ_E_TOO_LARGE or BQ_E_ARGUMENT (reserved type). */
typedef struct wal_part {
    const void *bytes;
    uint32_t size;
} wal_part_t;
int64_t wal_append(wal_t *wal, uint8_t type, uint8_t flags, const wal_part_t *parts, uint32_t count, enum wal_urgency urgency);

bool wal_commit(wal_t *wal);     /* give the gathered batch to the WAL thread; false: batch empty, thread busy, or WAL failed */
bool wal_busy(const wal_t *wal); /* a batch is being written */
uint64_t wal_gathered(const wal_t *wal); /* bytes waiting for wal_commit */
uint64_t wal_durable(const wal_t *wal);
int wal_state(const wal_t *wal); /* 0, WAL_E_FULL or WAL_E_FAILED */
void wal_stats(wal_t *wal, wal_stats_t *stats);

/* Write a checkpoint: temporary file, fsync, rename, fsync of the directory. Two generations are kept. Then delete the
 * sealed segments whose last LSN is below `keep_from` (at most lsn + 1) of both generations. So a bad checkpoint only makes
 * the replay longer, and a checkpoint frees segments when the next one is written. The read thread writes it from a copy of
 * `bytes`; then it calls wake, and the stats show checkpoint_lsn. A full disk changes nothing: call again. Returns
 * BQ_E_AGAIN while another checkpoint is being written, BQ_E_ARGUMENT if lsn is not durable yet, WAL_E_FAILED, BQ_E_MEMORY,
 * BQ_E_TOO_LARGE. */
int wal_checkpoint(wal_t *wal, uint64_t lsn, const uint8_t *bytes, uint32_t size, uint64_t keep_from);

/* Read records back, from `lsn` up to the durable LSN, as many as fit into `capacity` bytes. The call does not block: the
 * read thread fills the buffer with items [u64 lsn][u32 size][u8 type][u8 flags][u16 0][bytes, padded to 8]. One read per
 * `slot` (0 to WAL_READS_MAX - 1) at a time. The caller owns the buffer and must keep it until the read is done. */
#define WAL_READS_MAX 8
typedef struct wal_read {
    uint32_t slot;
    int32_t result;    /* number of items, or a negative code; WAL_E_GONE: continue at next_lsn */
    uint64_t next_lsn; /* the first LSN that was not read */
    uint32_t used;     /* bytes used in the buffer; with BQ_E_TOO_LARGE: bytes that the record at next_lsn needs */
    uint32_t reserved;
} wal_read_t;
int wal_read_start(wal_t *wal, uint32_t slot, uint64_t lsn, uint8_t *buffer, uint32_t capacity);
bool wal_read_done(wal_t *wal, wal_read_t *read); /* take one finished read; false: none */

#endif
