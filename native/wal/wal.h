/* wal/wal.h: the write-ahead WAL (WAL): segments, group commit in a thread of its own, recovery, reading back, checkpoints.
 *
 *      core thread                     WAL thread                     read thread
 *      wal_append -> [gathering]       [sealed] write, fdatasync      wal_read_start -> segment files
 *      wal_commit ----------------->   durable LSN, wake the core     done list, wake the core
 *
 * Invariants (see FORMAT.md and docs/DURABILITY.md): wal_durable passes an LSN only after fdatasync has returned 0 for every
 * byte up to its record's end, in a segment whose directory entry is synced. After the first failed write or sync of the
 * WAL nothing becomes durable any more, and no failed sync is tried again. LSNs rise by one for ever.
 */
#ifndef BQ_WAL_H
#define BQ_WAL_H

#include "base/bytes.h"
#include "wal/storage.h"

typedef struct wal wal_t;

enum wal_error {
    WAL_E_FULL = -20,    /* quota or free-space reserve: clears by itself when room comes back */
    WAL_E_FAILED = -21,  /* fail-stop: only a restart helps */
    WAL_E_LOCKED = -22,  /* another broker has the directory */
    WAL_E_VERSION = -23, /* written by a newer major version: nothing was changed */
    WAL_E_GONE = -24,    /* that LSN is no longer (or not) in the WAL */
    WAL_E_REFUSED = -25  /* what is in the WAL could not be taken: the WAL is as it was */
};

enum wal_type {
    WAL_PUBLISH = 1, /* what the core writes: see broker/consumer_store.c; the WAL itself does not look inside */
    WAL_ACK = 2,
    WAL_CONSUMER = 3,
    WAL_CONSUMER_END = 4,
    WAL_IDS = 5,
    WAL_CONSUMER_LEAVE = 6,
    WAL_TIME = 8, /* see broker/timeline.h */
    WAL_PAD = 15  /* fills a block; takes no LSN (its own is that of the record behind it); never handed to a visitor */
};

typedef struct wal_config {
    uint64_t max_bytes;          /* of all segment files together */
    uint64_t reserve_bytes;      /* free space of the file system that publishes leave alone; acks and checkpoints may use it */
    uint32_t segment_bytes;      /* at least twice batch_bytes_max and a quarter of max_bytes at most; 4 KiB to 512 MiB */
    uint32_t batch_bytes_max;    /* gathering batch; a record is at most half of it */
    uint32_t block_bytes;        /* a batch is padded to a multiple of this; 0: to 8 */
    uint32_t no_sync;            /* test hook for the control run of the storm: fdatasync is not called */
    void (*wake)(void *context); /* called by the WAL's threads after each commit and each finished read */
    void *wake_context;
} wal_config_t;

typedef struct wal_record {
    uint64_t lsn;
    const uint8_t *bytes; /* holds until the visitor returns */
    uint32_t size;
    uint8_t type;
    uint8_t flags;
} wal_record_t;

/* What recovery found, in numbers a person can act on. */
typedef struct wal_report {
    uint64_t records, bytes, segments;
    uint64_t torn_bytes; /* of the newest segment's tail, kept aside and dropped: normal after a power cut */
    uint64_t lost_first_lsn, lost_last_lsn, lost_ranges; /* corruption: outermost bounds and how many ranges; 0: none */
    uint64_t first_lsn, next_lsn;
    uint64_t checkpoint_lsn; /* 0: none could be read */
    uint64_t note;           /* what wal_note was told last, as far as it is known; 0: nothing */
    uint32_t checkpoints_bad;
    uint32_t clean;         /* 1: the WAL was closed in order */
    uint32_t note_last;     /* 1: and the note is of that end: nothing has been noted since */
    uint32_t lost_unknown;  /* 1: of the last range nobody knows how much of it was used */
    uint32_t damaged_files; /* segments whose headers or length are not as they were made, or that are gone */
    uint32_t strange_files; /* set aside or renamed: of another WAL, there twice, or no files of this WAL at all */
} wal_report_t;

typedef struct wal_stats {
    uint64_t durable_lsn, next_lsn, first_lsn;
    uint64_t bytes, segments;
    uint64_t written_bytes, records;
    uint64_t sync_us_last, sync_us_total, sync_us_max;
    uint64_t sync_us_buckets[8]; /* syncs of at most 100 us, 300 us, 1 ms, 3 ms, 10 ms, 30 ms, 100 ms, more */
    uint64_t reclaimed_segments;
    uint64_t checkpoint_lsn, checkpoints; /* how many were written since the WAL was opened */
    uint64_t keep_from;                   /* older records neither of the two checkpoints needs */
    int64_t free_bytes;
    uint32_t full, failed;
    int32_t error;        /* the errno that stopped it */
    uint32_t read_damage; /* records that did not verify when they were read back */
    uint64_t read_bytes;  /* read from the segments for wal_read_start */
} wal_stats_t;

typedef bool (*wal_visit)(void *context, const wal_record_t *record); /* false: it cannot be taken, and the WAL is not opened */

/* Open, lock and recover. First *restore is given the newest readable checkpoint (type 0, lsn: its LSN; not called if there is
 * none), then each record after it, in LSN order; records before it are verified but not visited. Takes the storage over.
 * `progress` may be NULL: called every few MB with bytes done and bytes in all. WAL_E_LOCKED, WAL_E_VERSION, WAL_E_REFUSED, BQ_E_ARGUMENT,
 * BQ_E_MEMORY, or BQ_E_SYSTEM with errno; the storage is released then. A full disk is none: the WAL begins in state WAL_E_FULL.
 * Then wal_durable may begin before the last LSN found: what recovery could not sync itself is not served until it has. */
int wal_open(wal_t **wal, storage_t *storage, const wal_config_t *config, wal_visit restore, void *context, wal_report_t *report,
             void (*progress)(void *context, uint64_t done, uint64_t total));
void wal_close(wal_t *wal); /* commits what is gathered, marks the end as clean */

/* A number that the WAL keeps beside its records, where no checkpoint is needed for it: the next wal_report_t has it. With `now` it is
 * on disk when this returns, as far as the disk lets it be; else with the next segment, or at an orderly end. */
void wal_note(wal_t *wal, uint64_t note, bool now);

/* What a record may use of a WAL that is getting full. Ordinary ones stop where the quota less a segment, or the disk's reserve, is
 * reached. Urgent ones, acks and the like, may have that too. Dead letters may, but leave some of it for acks, and they may go beyond
 * the quota by half of it: each lets go of a message that lies further ahead, though only later. */
enum wal_urgency { WAL_ORDINARY, WAL_URGENT, WAL_LETTER };

/* Append a record made of parts. Returns its LSN (> 0) or BQ_E_AGAIN (the batch is full: wait for a commit), WAL_E_FULL,
 * WAL_E_FAILED, BQ_E_TOO_LARGE. */
typedef struct wal_part {
    const void *bytes;
    uint32_t size;
} wal_part_t;
int64_t wal_append(wal_t *wal, uint8_t type, uint8_t flags, const wal_part_t *parts, uint32_t count, enum wal_urgency urgency);

bool wal_commit(wal_t *wal);     /* hand the gathered batch to the thread if that is idle; false: nothing to do, or busy */
bool wal_busy(const wal_t *wal); /* a batch is being written */
uint64_t wal_gathered(const wal_t *wal); /* bytes waiting for wal_commit */
uint64_t wal_durable(const wal_t *wal);
int wal_state(const wal_t *wal); /* 0, WAL_E_FULL or WAL_E_FAILED */
void wal_stats(wal_t *wal, wal_stats_t *stats);

/* Write a checkpoint (temporary file, fsync, rename, fsync of the directory; two generations kept) and, once it is durable,
 * delete sealed segments whose last LSN is below `keep_from` (cut to lsn + 1) of both generations: so a bad checkpoint costs a
 * longer replay and no more, and what the first one frees goes with the second. The read thread writes it from a copy of
 * `bytes`; wake follows, and stats show checkpoint_lsn. A full disk leaves things as they were: ask again. One at a time:
 * BQ_E_AGAIN while one is under way. BQ_E_ARGUMENT if lsn is not durable yet, WAL_E_FAILED, BQ_E_MEMORY, BQ_E_TOO_LARGE. */
int wal_checkpoint(wal_t *wal, uint64_t lsn, const uint8_t *bytes, uint32_t size, uint64_t keep_from);

/* Read records back from `lsn` on, as many as fit `capacity`, up to the durable LSN, without stopping the caller: the reader
 * thread fills the buffer with [u64 lsn][u32 size][u8 type][u8 flags][u16 0][bytes, padded to 8] items. One read per `slot`
 * (0 to WAL_READS_MAX - 1) at a time; the buffer stays the caller's and must live until the read is done. */
#define WAL_READS_MAX 8
typedef struct wal_read {
    uint32_t slot;
    int32_t result;    /* items, or a negative code; WAL_E_GONE with next_lsn where reading can go on */
    uint64_t next_lsn; /* the first one not read */
    uint32_t used;     /* bytes of the buffer; with BQ_E_TOO_LARGE, as many as the record at next_lsn needs */
    uint32_t reserved;
} wal_read_t;
int wal_read_start(wal_t *wal, uint32_t slot, uint64_t lsn, uint8_t *buffer, uint32_t capacity);
bool wal_read_done(wal_t *wal, wal_read_t *read); /* take one finished read, if any */

#endif
