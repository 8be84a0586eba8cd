/* wal/wal.h: the write-ahead log: segments, group commit in a thread of its own, recovery, reading back, checkpoints.
 *
 *      core thread                     log thread                     read thread
 *      log_append -> [gathering]       [sealed] write, fdatasync      log_read_start -> segment files
 *      log_commit ----------------->   durable LSN, wake the core     done list, wake the core
 *
 * Invariants (see FORMAT.md and docs/DURABILITY.md): log_durable passes an LSN only after fdatasync has returned 0 for every
 * byte up to its record's end, in a segment whose directory entry is synced. After the first failed write or sync of the
 * log nothing becomes durable any more, and no failed sync is tried again. LSNs rise by one for ever.
 */
#ifndef BQ_LOG_H
#define BQ_LOG_H

#include "base/bytes.h"
#include "wal/storage.h"

typedef struct log log_t;

enum log_error {
    LOG_E_FULL = -20,    /* quota or free-space reserve: clears by itself when room comes back */
    LOG_E_FAILED = -21,  /* fail-stop: only a restart helps */
    LOG_E_LOCKED = -22,  /* another broker has the directory */
    LOG_E_VERSION = -23, /* written by a newer major version: nothing was changed */
    LOG_E_GONE = -24,    /* that LSN is no longer (or not) in the log */
    LOG_E_REFUSED = -25  /* what is in the log could not be taken: the log is as it was */
};

enum log_type {
    LOG_PUBLISH = 1, /* what the core writes: see broker/consumer_store.c; the log itself does not look inside */
    LOG_ACK = 2,
    LOG_CONSUMER = 3,
    LOG_CONSUMER_END = 4,
    LOG_IDS = 5,
    LOG_CONSUMER_LEAVE = 6,
    LOG_TIME = 8, /* see broker/timeline.h */
    LOG_PAD = 15  /* fills a block; takes no LSN (its own is that of the record behind it); never handed to a visitor */
};

typedef struct log_config {
    uint64_t max_bytes;          /* of all segment files together */
    uint64_t reserve_bytes;      /* free space of the file system that publishes leave alone; acks and checkpoints may use it */
    uint32_t segment_bytes;      /* at least twice batch_bytes_max and a quarter of max_bytes at most; 4 KiB to 512 MiB */
    uint32_t batch_bytes_max;    /* gathering batch; a record is at most half of it */
    uint32_t block_bytes;        /* a batch is padded to a multiple of this; 0: to 8 */
    uint32_t no_sync;            /* test hook for the control run of the storm: fdatasync is not called */
    void (*wake)(void *context); /* called by the log's threads after each commit and each finished read */
    void *wake_context;
} log_config_t;

typedef struct log_record {
    uint64_t lsn;
    const uint8_t *bytes; /* holds until the visitor returns */
    uint32_t size;
    uint8_t type;
    uint8_t flags;
} log_record_t;

/* What recovery found, in numbers a person can act on. */
typedef struct log_report {
    uint64_t records, bytes, segments;
    uint64_t torn_bytes; /* of the newest segment's tail, kept aside and dropped: normal after a power cut */
    uint64_t lost_first_lsn, lost_last_lsn, lost_ranges; /* corruption: outermost bounds and how many ranges; 0: none */
    uint64_t first_lsn, next_lsn;
    uint64_t checkpoint_lsn; /* 0: none could be read */
    uint64_t note;           /* what log_note was told last, as far as it is known; 0: nothing */
    uint32_t checkpoints_bad;
    uint32_t clean;         /* 1: the log was closed in order */
    uint32_t note_last;     /* 1: and the note is of that end: nothing has been noted since */
    uint32_t lost_unknown;  /* 1: of the last range nobody knows how much of it was used */
    uint32_t damaged_files; /* segments whose headers or length are not as they were made, or that are gone */
    uint32_t strange_files; /* set aside or renamed: of another log, there twice, or no files of this log at all */
} log_report_t;

typedef struct log_stats {
    uint64_t durable_lsn, next_lsn, first_lsn;
    uint64_t bytes, segments;
    uint64_t written_bytes, records;
    uint64_t commits, sync_us_last, sync_us_total, sync_us_max;
    uint64_t sync_us_buckets[8]; /* syncs of at most 100 us, 300 us, 1 ms, 3 ms, 10 ms, 30 ms, 100 ms, more */
    uint64_t reclaimed_segments;
    uint64_t checkpoint_lsn, checkpoints; /* how many were written since the log was opened */
    uint64_t keep_from;                   /* older records neither of the two checkpoints needs */
    int64_t free_bytes;
    uint32_t full, failed;
    int32_t error;        /* the errno that stopped it */
    uint32_t read_damage; /* records that did not verify when they were read back */
    uint64_t read_bytes;  /* read from the segments for log_read_start */
} log_stats_t;

typedef bool (*log_visit)(void *context, const log_record_t *record); /* false: it cannot be taken, and the log is not opened */

/* Open, lock and recover. First *restore is given the newest readable checkpoint (type 0, lsn: its LSN; not called if there is
 * none), then each record after it, in LSN order; records before it are verified but not visited. Takes the storage over.
 * `progress` may be NULL: called every few MB with bytes done and bytes in all. LOG_E_LOCKED, LOG_E_VERSION, LOG_E_REFUSED, BQ_E_ARGUMENT,
 * BQ_E_MEMORY, or BQ_E_SYSTEM with errno; the storage is released then. A full disk is none: the log begins in state LOG_E_FULL.
 * Then log_durable may begin before the last LSN found: what recovery could not sync itself is not served until it has. */
int log_open(log_t **log, storage_t *storage, const log_config_t *config, log_visit restore, void *context, log_report_t *report,
             void (*progress)(void *context, uint64_t done, uint64_t total));
void log_close(log_t *log); /* commits what is gathered, marks the end as clean */

/* A number that the log keeps beside its records, where no checkpoint is needed for it: the next log_report_t has it. With `now` it is
 * on disk when this returns, as far as the disk lets it be; else with the next segment, or at an orderly end. */
void log_note(log_t *log, uint64_t note, bool now);

/* What a record may use of a log that is getting full. Ordinary ones stop where the quota less a segment, or the disk's reserve, is
 * reached. Urgent ones, acks and the like, may have that too. Dead letters may, but leave some of it for acks, and they may go beyond
 * the quota by half of it: each lets go of a message that lies further ahead, though only later. */
enum log_urgency { LOG_ORDINARY, LOG_URGENT, LOG_LETTER };

/* Append a record made of parts. Returns its LSN (> 0) or BQ_E_AGAIN (the batch is full: wait for a commit), LOG_E_FULL,
 * LOG_E_FAILED, BQ_E_TOO_LARGE. */
typedef struct log_part {
    const void *bytes;
    uint32_t size;
} log_part_t;
int64_t log_append(log_t *log, uint8_t type, uint8_t flags, const log_part_t *parts, uint32_t count, enum log_urgency urgency);

bool log_commit(log_t *log);     /* hand the gathered batch to the thread if that is idle; false: nothing to do, or busy */
bool log_busy(const log_t *log); /* a batch is being written */
uint64_t log_gathered(const log_t *log); /* bytes waiting for log_commit */
uint64_t log_durable(const log_t *log);
int log_state(const log_t *log); /* 0, LOG_E_FULL or LOG_E_FAILED */
void log_stats(log_t *log, log_stats_t *stats);

/* Write a checkpoint (temporary file, fsync, rename, fsync of the directory; two generations kept) and, once it is durable,
 * delete sealed segments whose last LSN is below `keep_from` (cut to lsn + 1) of both generations: so a bad checkpoint costs a
 * longer replay and no more, and what the first one frees goes with the second. The read thread writes it from a copy of
 * `bytes`; wake follows, and stats show checkpoint_lsn. A full disk leaves things as they were: ask again. One at a time:
 * BQ_E_AGAIN while one is under way. BQ_E_ARGUMENT if lsn is not durable yet, LOG_E_FAILED, BQ_E_MEMORY, BQ_E_TOO_LARGE. */
int log_checkpoint(log_t *log, uint64_t lsn, const uint8_t *bytes, uint32_t size, uint64_t keep_from);

/* Read records back from `lsn` on, as many as fit `capacity`, up to the durable LSN, without stopping the caller: the reader
 * thread fills the buffer with [u64 lsn][u32 size][u8 type][u8 flags][u16 0][bytes, padded to 8] items. One read per `slot`
 * (0 to LOG_READS_MAX - 1) at a time; the buffer stays the caller's and must live until the read is done. */
#define LOG_READS_MAX 8
typedef struct log_read {
    uint32_t slot;
    int32_t result;    /* items, or a negative code; LOG_E_GONE with next_lsn where reading can go on */
    uint64_t next_lsn; /* the first one not read */
    uint32_t used;     /* bytes of the buffer; with BQ_E_TOO_LARGE, as many as the record at next_lsn needs */
    uint32_t reserved;
} log_read_t;
int log_read_start(log_t *log, uint32_t slot, uint64_t lsn, uint8_t *buffer, uint32_t capacity);
bool log_read_done(log_t *log, log_read_t *read); /* take one finished read, if any */

#endif
