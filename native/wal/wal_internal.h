/* wal/wal_internal.h: shared by the files of this folder. Only they and tests include it.
 *
 * Invariant: the segment table is read and changed inside `table`. Only the WAL thread adds segments and only the read thread
 * removes them, so each may keep a pointer to a segment while it runs. A thread never enters one monitor inside another.
 */
#ifndef BQ_WAL_INTERNAL_H
#define BQ_WAL_INTERNAL_H

#include <stdatomic.h>

#include "base/monitor.h"
#include "wal/format.h"
#include "base/poll.h"

#define WAL_MARK_BYTES (256u << 10) /* distance between two marks; a mark is a known position of an LSN */
#define WAL_SEGMENTS_MAX 65536u
#define WAL_SCAN_BYTES (1u << 20)
#define WAL_READ_SCAN_BYTES (WAL_SCAN_BYTES / 4) /* of the read thread */
#define WAL_CHECKPOINT_BYTES_MAX (1u << 30) /* 1,000,000 subscriptions with texts of the largest size allowed by the settings */
#define WAL_SEGMENT_TEMPORARY "wal.tmp"
#define WAL_CHECKPOINT_TEMPORARY "checkpoint.tmp"
#define WAL_LOCK_NAME "LOCK"
#ifndef WAL_RETRY_MS
#define WAL_RETRY_MS 100 /* interval between two checks of a full disk */
#endif

typedef struct wal_mark {
    uint64_t lsn;
    uint32_t offset;
} wal_mark_t;

typedef struct segment {
    segment_header_t header;
    uint64_t name_number;         /* number in the file's name; differs from header.number only if the file was renamed */
    uint64_t first_lsn, next_lsn; /* of the records read from this segment: first_lsn <= lsn < next_lsn */
    uint64_t records;
    uint64_t file_bytes, data_bytes; /* data_bytes: up to the header at the end of the file */
    uint64_t end;                    /* offset after the last valid record */
    wal_mark_t *marks;
    uint32_t marks_count, marks_capacity;
    bool damaged;  /* has bad bytes: never deleted; moved aside when no record is needed from it */
    bool beheaded; /* only the header at the end is valid, so the bytes near the other headers are damaged too */
    bool cut;      /* the file does not have its original length */
    bool sealed;   /* recovery has read its footer */
    bool in_order; /* the footer says that the WAL was closed cleanly */
} segment_t;

segment_t *segment_new(const segment_header_t *header, uint64_t name_number, uint64_t file_bytes); /* NULL: no memory */
void segment_free(segment_t *segment);
void segment_mark(segment_t *segment, uint64_t lsn, uint64_t offset);
/* Write `bytes` (a footer) at `offset`, then zeros, then the header once more at the end of the file. The header states the
 * new length. Returns the new file length, or -errno. The caller must sync before it truncates the file. */
int64_t segment_end_write(storage_t *storage, int file, const segment_t *segment, uint64_t offset, const uint8_t *bytes,
                          uint32_t size);
/* Create a segment under the temporary name: space allocated, headers written, file open as *file. 0 or -errno. */
int segment_create(storage_t *storage, const segment_header_t *header, int *file);
int segment_publish(storage_t *storage, int file, uint64_t number); /* fsync, rename, fsync of the directory. 0 or -errno */

/* ---- recovery ------------------------------------------------------------------------------------------------------ */

enum recover_action {
    ACTION_NONE,       /* only report it */
    ACTION_COPY_ASIDE, /* keep a copy of the bytes */
    ACTION_MOVE_ASIDE  /* rename the file out of the way */
};

/* All cases that recovery distinguishes. LOST and LOST_AT_MOST mean that records are lost. */
#define RECOVER_CASES(X)                                                                                                         \
    X(HEADER_COPY, ACTION_NONE, "one header of a segment is damaged; another copy is used")                                      \
    X(HEADER_PAGE, ACTION_NONE, "the beginning of a segment is damaged; the header at its end is used")                          \
    X(HEADER_BAD, ACTION_MOVE_ASIDE, "all headers of a segment are damaged, so its records cannot be verified")                  \
    X(HEADER_MISSING, ACTION_MOVE_ASIDE, "a segment file is empty or too short for a header")                                    \
    X(CUT, ACTION_NONE, "the length of a segment file has changed")                                                              \
    X(NOT_A_FILE, ACTION_MOVE_ASIDE, "a link, a directory or a pipe has the name of a segment")                                  \
    X(STRAY, ACTION_MOVE_ASIDE, "a file has the name of a segment, but this WAL did not create it")                              \
    X(FOREIGN, ACTION_MOVE_ASIDE, "a segment belongs to another WAL")                                                            \
    X(DUPLICATE, ACTION_MOVE_ASIDE, "two files contain the same segment; the one with the correct name is used")                 \
    X(MISNAMED, ACTION_NONE, "a segment file has the name of another segment; its header is used")                               \
    X(MISSING, ACTION_NONE, "a segment between two others is missing")                                                           \
    X(TORN, ACTION_COPY_ASIDE, "the end of the newest segment was not synced: normal after a power cut")                         \
    X(DAMAGED, ACTION_COPY_ASIDE, "bytes in the middle of the WAL are damaged")                                                  \
    X(LOST, ACTION_NONE, "records are lost")                                                                                     \
    X(GONE, ACTION_NONE, "the newest segment, which was in use, is missing or empty")                                            \
    X(LOST_AT_MOST, ACTION_NONE, "records are lost: at most these; the exact number is unknown")                                 \
    X(CHECKPOINT_BAD, ACTION_NONE, "a checkpoint is damaged; an older one or a longer replay is used")

enum recover_case {
#define X(name, action, text) RECOVER_##name,
    RECOVER_CASES(X)
#undef X
        RECOVER_CASES_COUNT
};
typedef struct recover_rule {
    const char *name;
    enum recover_action action;
    const char *text;
} recover_rule_t;
extern const recover_rule_t recover_rules[RECOVER_CASES_COUNT];

typedef struct recover_finding {
    enum recover_case kind;
    uint64_t number;              /* from the file's name, if there is a file */
    uint64_t offset, bytes;       /* the bad range */
    uint64_t first_lsn, last_lsn; /* LOST, LOST_AT_MOST: outermost bounds */
} recover_finding_t;

typedef struct recover {
    storage_t *storage;
    segment_t **segments; /* sorted by number */
    uint32_t count, capacity;
    recover_finding_t *findings; /* about the directory; returned before the first record; at most four per file */
    uint32_t findings_count, findings_given;
    uint64_t wal_id, number_max;
    uint64_t headless_max; /* highest number of a file without a valid header that this WAL may have created; 0: none */
    ledger_t ledger;       /* sequence 0: no valid ledger */
    bool lock_strange;     /* LOCK holds data that is not a ledger */
    uint64_t *generations; /* of the existing checkpoint files, rising */
    uint32_t generations_count;
    uint64_t generation_max;                 /* the highest that this WAL may have created */
    uint64_t generation_before, keep_before; /* the readable checkpoint before the newest; 0: none */
    checkpoint_header_t checkpoint;          /* the newest readable one; generation 0: none */
    uint8_t *checkpoint_bytes;
    bool leftovers; /* temporary files */
    wal_report_t report;
    /* state of the walk through the segments */
    scan_t scan;
    int file;
    uint32_t at;       /* segment being read */
    uint32_t newest;   /* the last segment with a valid record; `count`: none */
    uint64_t expected; /* next LSN; 0: not known yet */
    uint64_t bound;    /* first LSN of the following segments; 0: unknown */
    uint64_t proof;    /* newest segment: all LSNs below it were durable; 0: not determined yet */
    uint64_t gap_last; /* the last LSN of which it is unknown whether it was used; 0: none */
    bool gone_told;
    uint64_t done_bytes, total_bytes;
    uint32_t record_bytes_max; /* largest record found, with header and padding */
    bool finished;
} recover_t;

enum recover_event { RECOVER_END = 0, RECOVER_RECORD = 1, RECOVER_FINDING = 2 };

/* List and check the directory; changes nothing. BQ_OK, WAL_E_LOCKED, WAL_E_VERSION, BQ_E_MEMORY, or BQ_E_SYSTEM with errno. */
int recover_begin(recover_t *recover, storage_t *storage);
/* Get the next record or finding. The bytes of a record are valid until the next call. Negative: errors as above. */
int recover_next(recover_t *recover, wal_record_t *record, recover_finding_t *finding);
int recover_open(recover_t *recover, uint32_t at); /* move recover->scan to the first record of that segment */
int recover_keep_aside(recover_t *recover, const recover_finding_t *finding); /* apply the action of its rule */
void recover_free(recover_t *recover);
int system_error(int error); /* -errno to BQ_E_SYSTEM with errno set, or BQ_E_MEMORY */

/* Records missing at the end of the walk, according to the ledger and the segments. `next`: lowest LSN with which the WAL
 * may continue; 0: nothing is missing. `unknown`: some LSNs before `next` may never have been used. */
typedef struct evidence {
    uint64_t next;
    bool unknown, gone;
} evidence_t;
evidence_t recover_evidence(const recover_t *recover);

/* ---- the WAL ------------------------------------------------------------------------------------------------------- */

typedef struct batch {
    uint8_t *bytes;
    uint32_t used;
    uint32_t done; /* WAL thread: bytes written and synced */
    uint64_t first_lsn;
    uint64_t charged; /* wal->charged at its end */
} batch_t;

enum read_state { READ_IDLE, READ_ASKED, READ_DONE };
typedef struct read_slot {
    enum read_state state;
    uint64_t lsn;
    uint8_t *buffer;
    uint32_t capacity;
    wal_read_t result;
    uint64_t done_order;
} read_slot_t;

/* Position at the end of a read. The next read from this LSN starts there, in any slot. */
typedef struct read_cursor {
    uint64_t lsn, number, offset;
} read_cursor_t;
#define WAL_CURSORS 64u

/* Records that the last fdatasync of the previous run may not have covered, and some more: see wal/tail.c. */
typedef struct tail {
    segment_t *source; /* the segment whose last records are copied; NULL: none */
    uint64_t offset, first_lsn;
    bool whole; /* it covers all records of the segment */
} tail_t;

struct wal {
    storage_t *storage;
    wal_config_t config;
    uint64_t wal_id;

    /* used by the core's thread */
    batch_t batches[2];
    uint32_t gathering;
    uint64_t next_lsn;
    uint64_t charged; /* bytes appended since the WAL was opened, with padding */

    /* used by all threads */
    _Atomic uint64_t durable, shown_next_lsn;
    _Atomic uint64_t limits[3]; /* limits of `charged`, indexed by enum wal_urgency */
    _Atomic int32_t failed;     /* errno of the failure that stopped the WAL */
    _Atomic bool full, busy;

    /* used by the WAL thread, with its monitor */
    monitor_t work;
    batch_t *handed; /* inside `work` */
    bool stop, wal_waits, room_came;
    uint32_t stuck; /* inside `work`: how many times in a row the disk was full for the accepted batch */
    poll_thread_t wal_thread;
    /* active: NULL while a full disk has no space for it; preallocated: not used yet, not in the table */
    segment_t *active, *preallocated;
    tail_t tail;              /* while there is no active segment: the records to copy into it; first_lsn is always valid */
    uint64_t sure_lsn;        /* the last LSN found at start that is known to be on disk */
    uint64_t checkpoint_room; /* space for a checkpoint; a short segment leaves it free */
    int active_file, preallocated_file;
    uint64_t position; /* write offset in the active segment */
    uint64_t segment_records;
    uint64_t number_next, charged_done;
    uint64_t look_at_us; /* time of the next check of a full disk */

    /* segment table, oldest first, and counters */
    monitor_t table; /* never entered inside `ledger_monitor`, nor the reverse */
    segment_t **segments;
    uint32_t count, capacity;
    wal_stats_t stats;

    /* the ledger in LOCK, written by all threads of the WAL */
    monitor_t ledger_monitor;
    ledger_t ledger;
    _Atomic uint64_t note; /* no monitor: wal_note without `now` must not wait for a blocked disk */
    uint64_t gap_last;     /* as in recover_t */

    /* used by the read thread, with its monitor */
    monitor_t reads;
    read_slot_t slots[WAL_READS_MAX];
    uint64_t reads_done;
    uint32_t slot_served;
    bool reads_stop, reads_wait;
    uint8_t *checkpoint_bytes; /* inside `reads`: requested and not started yet */
    checkpoint_header_t checkpoint;
    bool checkpoint_busy;
    poll_thread_t read_thread;
    scan_t read_scan;
    read_cursor_t cursors[WAL_CURSORS]; /* the newest; only the read thread uses them and read_scan */
    uint32_t cursor_next;
    int read_file;
    uint64_t read_number;                   /* number of the segment open as read_file; 0: none */
    uint64_t generations[2], keep_below[2]; /* the two kept checkpoints, newer first; generation 0: none */
};

static inline uint32_t wal_record_bytes_max(const wal_t *wal) { return wal->config.batch_bytes_max / 2; }
static inline uint32_t wal_pad_bytes_max(const wal_t *wal) {
    return wal->config.block_bytes ? wal->config.block_bytes + FORMAT_RECORD_BYTES : 0;
}
static inline uint32_t wal_batch_room(const wal_t *wal) { return wal->config.batch_bytes_max + wal_pad_bytes_max(wal); }
static inline uint32_t wal_header_bytes(const wal_t *wal) {
    return wal->config.block_bytes > FORMAT_HEADER_ROOM ? wal->config.block_bytes : FORMAT_HEADER_ROOM;
}
/* Largest unused space at the end of a segment. Records do not span segments. */
static inline uint32_t wal_waste_bytes_max(const wal_t *wal) {
    return FORMAT_FOOTER_BYTES + FORMAT_RECORD_BYTES + wal_record_bytes_max(wal);
}

static inline uint64_t wal_keep_from(const wal_t *wal) {
    return wal->keep_below[0] < wal->keep_below[1] ? wal->keep_below[0] : wal->keep_below[1];
}

/* ---- the ledger: see wal/ledger.c ----------------------------------------------------------------------------------- */

/* Read the ledger in LOCK; sequence 0: none. *strange: LOCK holds other data. 0 or -errno. */
int ledger_read(storage_t *storage, ledger_t *ledger, bool *strange);
/* Record that `active` exists, and `created` too if `active` is sealed. 0, or -errno, which stops the WAL. A full disk is
 * not an error. */
int ledger_begun(wal_t *wal, const segment_t *active, const segment_t *created);
bool ledger_lets_go(wal_t *wal, uint64_t number); /* true: the file may be deleted now */
void ledger_close(wal_t *wal);                    /* clean close: the next LSN is known */

int wal_header_make(wal_t *wal, segment_header_t *header, uint64_t first_lsn, uint32_t segment_bytes);
bool wal_table_grow(wal_t *wal);   /* false: no memory for one more segment, or too many segments */
int64_t wal_free_look(wal_t *wal); /* free bytes of the disk; INT64_MAX: unknown; also stored in the stats */
/* Call it after the last record was read. It makes the recovered records durable in a segment synced by this process; then
 * the table takes the segments. A full disk is not an error: see wal/tail.c. 0 or -errno. */
int wal_begin(wal_t *wal, recover_t *recover);
int wal_begin_late(wal_t *wal); /* WAL thread, without an active segment: try again. 0, -ENOSPC, or an error that stops the WAL */

void *read_run(void *wal);
void wal_wake(wal_t *wal);
void wal_fail(wal_t *wal, int error); /* error: -errno. Nothing becomes durable any more */
void wal_settle(wal_t *wal);          /* for tests: wait until both threads are idle */

#endif
