/* wal/wal_internal.h: what the files of this folder share. Nobody else includes it, tests excepted.
 *
 * Invariant: the segment table is read and changed inside `table`; only the WAL thread adds to it and only the read thread
 * takes from it, so each of them may keep a pointer into it for as long as it runs. Monitors are never entered inside each other.
 */
#ifndef BQ_WAL_INTERNAL_H
#define BQ_WAL_INTERNAL_H

#include <stdatomic.h>

#include "base/monitor.h"
#include "wal/format.h"
#include "base/poll.h"

#define WAL_MARK_BYTES (256u << 10) /* a remembered record every so often: where to begin looking for an LSN */
#define WAL_SEGMENTS_MAX 65536u
#define WAL_SCAN_BYTES (1u << 20)
#define WAL_READ_SCAN_BYTES (WAL_SCAN_BYTES / 4) /* of the read thread */
#define WAL_CHECKPOINT_BYTES_MAX (1u << 30) /* of 1,000,000 subscriptions with texts of the largest size: what settings allow */
#define WAL_SEGMENT_TEMPORARY "wal.tmp"
#define WAL_CHECKPOINT_TEMPORARY "checkpoint.tmp"
#define WAL_LOCK_NAME "LOCK"
#ifndef WAL_RETRY_MS
#define WAL_RETRY_MS 100 /* between looks at a full disk */
#endif

typedef struct wal_mark {
    uint64_t lsn;
    uint32_t offset;
} wal_mark_t;

typedef struct segment {
    segment_header_t header;
    uint64_t name_number;         /* of its file; differs from header.number only if somebody renamed it */
    uint64_t first_lsn, next_lsn; /* of the records taken from it: first_lsn <= lsn < next_lsn */
    uint64_t records;
    uint64_t file_bytes, data_bytes; /* data: up to the header at the file's end */
    uint64_t end;                    /* offset behind the last valid record */
    wal_mark_t *marks;
    uint32_t marks_count, marks_capacity;
    bool damaged;  /* bytes of it are bad: never unlinked, moved aside when nothing more is taken from it */
    bool beheaded; /* only the header at its end is left: what was written beside the others is damaged as well */
    bool cut;      /* the file is not as long as it was made */
    bool sealed;   /* recovery has met its footer ... */
    bool in_order; /* ... which says that the WAL was closed in order */
} segment_t;

segment_t *segment_new(const segment_header_t *header, uint64_t name_number, uint64_t file_bytes); /* NULL: no memory */
void segment_free(segment_t *segment);
void segment_mark(segment_t *segment, uint64_t lsn, uint64_t offset);
/* Put the header once more behind the records, in a file that is then as long as it says; `bytes` go before it, from `offset` on (a
 * footer), and zeros between. Returns the length the file is to have, or -errno; synced by the caller before the file is cut. */
int64_t segment_end_write(storage_t *storage, int file, const segment_t *segment, uint64_t offset, const uint8_t *bytes,
                          uint32_t size);
/* Write a segment's file under the temporary name: allocated, headers written, open as *file. 0 or -errno. */
int segment_create(storage_t *storage, const segment_header_t *header, int *file);
int segment_publish(storage_t *storage, int file, uint64_t number); /* fsync, rename, fsync of the directory. 0 or -errno */

/* ---- recovery ------------------------------------------------------------------------------------------------------ */

enum recover_action {
    ACTION_NONE,       /* nothing to do but to say so */
    ACTION_COPY_ASIDE, /* keep a copy of the bytes */
    ACTION_MOVE_ASIDE  /* rename the file out of the way */
};

/* Every case that recovery tells apart. `lost`: it means that records are gone. */
#define RECOVER_CASES(X)                                                                                                         \
    X(HEADER_COPY, ACTION_NONE, "one of a segment's headers is damaged, another is used")                                        \
    X(HEADER_PAGE, ACTION_NONE, "the beginning of a segment is damaged; the header at its end is used")                          \
    X(HEADER_BAD, ACTION_MOVE_ASIDE, "all headers of a segment are damaged, so nothing in it can be verified")                   \
    X(HEADER_MISSING, ACTION_MOVE_ASIDE, "a segment file is empty or too short for a header")                                    \
    X(CUT, ACTION_NONE, "a segment's file is not as long as it was made")                                                        \
    X(NOT_A_FILE, ACTION_MOVE_ASIDE, "a link, a directory or a pipe has a segment's name")                                       \
    X(STRAY, ACTION_MOVE_ASIDE, "a file with a segment's name that this log has not made")                                       \
    X(FOREIGN, ACTION_MOVE_ASIDE, "a segment belongs to another log")                                                            \
    X(DUPLICATE, ACTION_MOVE_ASIDE, "two files hold the same segment; the one with the right name is used")                      \
    X(MISNAMED, ACTION_NONE, "a segment's file has another segment's name; its own header is believed")                          \
    X(MISSING, ACTION_NONE, "a segment between two others is not there")                                                         \
    X(TORN, ACTION_COPY_ASIDE, "the end of the newest segment was never synced: normal after a power cut")                       \
    X(DAMAGED, ACTION_COPY_ASIDE, "bytes in the middle of the log do not verify")                                                \
    X(LOST, ACTION_NONE, "records are gone")                                                                                     \
    X(GONE, ACTION_NONE, "the newest segment, which was in use, is not there any more or has nothing left in it")                \
    X(LOST_AT_MOST, ACTION_NONE, "records are gone; how many is not known, but no more than these")                              \
    X(CHECKPOINT_BAD, ACTION_NONE, "a checkpoint does not verify; an older one or a longer replay takes its place")

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
    uint64_t number;              /* of the file's name, where there is one */
    uint64_t offset, bytes;       /* the bad range */
    uint64_t first_lsn, last_lsn; /* LOST: outermost bounds */
} recover_finding_t;

typedef struct recover {
    storage_t *storage;
    segment_t **segments; /* by number */
    uint32_t count, capacity;
    recover_finding_t *findings; /* of the directory, handed out before the first record; one per file at most */
    uint32_t findings_count, findings_given;
    uint64_t wal_id, number_max;
    uint64_t headless_max; /* the highest number of a file without a header that this WAL may have made; 0: none */
    ledger_t ledger;       /* sequence 0: there is none that can be believed */
    bool lock_strange;     /* LOCK holds something, and not a ledger */
    uint64_t *generations; /* of the checkpoint files there are, rising */
    uint32_t generations_count;
    uint64_t generation_max;                 /* of those that this WAL may have made */
    uint64_t generation_before, keep_before; /* the readable checkpoint before the newest; 0: none */
    checkpoint_header_t checkpoint;          /* the newest readable one; generation 0: none */
    uint8_t *checkpoint_bytes;
    bool leftovers; /* temporary files */
    wal_report_t report;
    /* the walk */
    scan_t scan;
    int file;
    uint32_t at;       /* segment being read */
    uint32_t newest;   /* the last one with a valid record; count if there is none */
    uint64_t expected; /* LSN that comes next; 0: not known yet */
    uint64_t bound;    /* the segments behind begin here; 0: not said */
    uint64_t proof;    /* newest segment: everything below was durable; 0: not looked for yet */
    uint64_t gap_last; /* the last of the LSNs of which nobody knows whether they were used; 0: none */
    bool gone_told;
    uint64_t done_bytes, total_bytes;
    uint32_t record_bytes_max; /* of the records there are, headers and padding included */
    bool finished;
} recover_t;

enum recover_event { RECOVER_END = 0, RECOVER_RECORD = 1, RECOVER_FINDING = 2 };

/* List and judge the directory; changes nothing. BQ_OK, WAL_E_VERSION, BQ_E_MEMORY, or BQ_E_SYSTEM with errno. */
int recover_begin(recover_t *recover, storage_t *storage);
/* Pull the next record or finding; a record's bytes hold until the next call. Negative: as above. */
int recover_next(recover_t *recover, wal_record_t *record, recover_finding_t *finding);
int recover_open(recover_t *recover, uint32_t at); /* have recover->scan at the first record of that segment */
int recover_keep_aside(recover_t *recover, const recover_finding_t *finding); /* do what its rule says */
void recover_free(recover_t *recover);
int system_error(int error); /* -errno to BQ_E_SYSTEM with errno set, or BQ_E_MEMORY */

/* What the end of the walk lacks, by the ledger and by what the segments themselves say. `next`: what the WAL goes on with, at least;
 * `unknown`: some of the LSNs before it may never have been used. 0 in next: nothing is missing. */
typedef struct evidence {
    uint64_t next;
    bool unknown, gone;
} evidence_t;
evidence_t recover_evidence(const recover_t *recover);

/* ---- the WAL ------------------------------------------------------------------------------------------------------- */

typedef struct batch {
    uint8_t *bytes;
    uint32_t used;
    uint32_t done; /* WAL thread: bytes on disk and synced */
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

/* Where a read ended: the next one of the same reader goes on there, in whatever slot. */
typedef struct read_cursor {
    uint64_t lsn, number, offset;
} read_cursor_t;
#define WAL_CURSORS 64u

/* The records that the last fdatasync of the broker before may not have reached, and some more: see wal/tail.c. */
typedef struct tail {
    segment_t *source; /* whose last records are to be carried over; NULL: none */
    uint64_t offset, first_lsn;
    bool whole; /* all of its records */
} tail_t;

struct wal {
    storage_t *storage;
    wal_config_t config;
    uint64_t wal_id;

    /* the core's thread */
    batch_t batches[2];
    uint32_t gathering;
    uint64_t next_lsn;
    uint64_t charged; /* bytes appended since the WAL was opened, padding included */

    /* shared */
    _Atomic uint64_t durable, shown_next_lsn;
    _Atomic uint64_t limits[3]; /* by enum wal_urgency: `charged` may not pass them */
    _Atomic int32_t failed;     /* the errno that stopped the WAL */
    _Atomic bool full, busy;

    /* the WAL thread and its monitor */
    monitor_t work;
    batch_t *handed; /* inside work */
    bool stop, wal_waits, room_came;
    uint32_t stuck; /* inside work: times in a row that the disk was full for a batch that is already accepted */
    poll_thread_t wal_thread;
    segment_t *active,
        *preallocated; /* active: NULL while a full disk has no room for one; preallocated: not used yet, not in the table */
    tail_t tail;       /* while there is no active segment: what it will begin with, and first_lsn in any case */
    uint64_t sure_lsn; /* of what was found at the start: the last that is on disk, as far as anybody knows */
    uint64_t checkpoint_room; /* what a checkpoint takes: a short segment leaves it free */
    int active_file, preallocated_file;
    uint64_t position; /* where the active segment goes on */
    uint64_t segment_records;
    uint64_t number_next, charged_done;
    uint64_t look_at_us; /* when a full disk is looked at again */

    /* the table of segments, oldest first, and the counters */
    monitor_t table; /* never entered inside `ledger_monitor`, nor the other way round */
    segment_t **segments;
    uint32_t count, capacity;
    wal_stats_t stats;

    /* LOCK's ledger, written by all of the WAL's threads */
    monitor_t ledger_monitor;
    ledger_t ledger;
    _Atomic uint64_t note; /* no monitor: whoever notes does not wait for a disk that hangs */
    uint64_t gap_last;     /* as in recover_t */

    /* the read thread and its monitor */
    monitor_t reads;
    read_slot_t slots[WAL_READS_MAX];
    uint64_t reads_done;
    uint32_t slot_served;
    bool reads_stop, reads_wait;
    uint8_t *checkpoint_bytes; /* inside reads: asked for and not taken up yet */
    checkpoint_header_t checkpoint;
    bool checkpoint_busy;
    poll_thread_t read_thread;
    scan_t read_scan;
    read_cursor_t cursors[WAL_CURSORS]; /* the newest; the read thread's, as read_scan is */
    uint32_t cursor_next;
    int read_file;
    uint64_t read_number;                   /* segment that read_file is; 0: none */
    uint64_t generations[2], keep_below[2]; /* the two checkpoints kept, the newer first; generation 0: none */
};

static inline uint32_t wal_record_bytes_max(const wal_t *wal) { return wal->config.batch_bytes_max / 2; }
static inline uint32_t wal_pad_bytes_max(const wal_t *wal) {
    return wal->config.block_bytes ? wal->config.block_bytes + FORMAT_RECORD_BYTES : 0;
}
static inline uint32_t wal_batch_room(const wal_t *wal) { return wal->config.batch_bytes_max + wal_pad_bytes_max(wal); }
static inline uint32_t wal_header_bytes(const wal_t *wal) {
    return wal->config.block_bytes > FORMAT_HEADER_ROOM ? wal->config.block_bytes : FORMAT_HEADER_ROOM;
}
/* What a segment may waste at its end, because records do not span segments. */
static inline uint32_t wal_waste_bytes_max(const wal_t *wal) {
    return FORMAT_FOOTER_BYTES + FORMAT_RECORD_BYTES + wal_record_bytes_max(wal);
}

static inline uint64_t wal_keep_from(const wal_t *wal) {
    return wal->keep_below[0] < wal->keep_below[1] ? wal->keep_below[0] : wal->keep_below[1];
}

/* ---- the ledger: see wal/ledger.c ----------------------------------------------------------------------------------- */

/* Read LOCK's ledger: sequence 0 if there is none. *strange: it holds something else. 0 or -errno. */
int ledger_read(storage_t *storage, ledger_t *ledger, bool *strange);
/* From now on `active` is there, and `created` if it is sealed. 0, or -errno, which stops the WAL; a full disk is none. */
int ledger_begun(wal_t *wal, const segment_t *active, const segment_t *created);
bool ledger_lets_go(wal_t *wal, uint64_t number); /* its file may be deleted now */
void ledger_close(wal_t *wal);                    /* closed in order: what comes next is known */

int wal_header_make(wal_t *wal, segment_header_t *header, uint64_t first_lsn, uint32_t segment_bytes);
bool wal_table_grow(wal_t *wal);   /* false: no memory for one more segment, or too many */
int64_t wal_free_look(wal_t *wal); /* free bytes of the disk, INT64_MAX if it does not say; shown in the stats */
/* After the last record was read: the disk is made to hold what was recovered, in a form that this process has synced itself, and
 * the table takes over the segments. A full disk is no error: see wal/tail.c. 0 or -errno. */
int wal_begin(wal_t *wal, recover_t *recover);
int wal_begin_late(wal_t *wal); /* WAL thread, no active segment: again, if there is room. 0, -ENOSPC, or what stops the WAL */

void *read_run(void *wal);
void wal_wake(wal_t *wal);
void wal_fail(wal_t *wal, int error); /* error: -errno. Stops everything that would become durable */
int wal_sync_data(wal_t *wal, int file);
void wal_settle(wal_t *wal); /* for tests: wait until both threads have nothing to do */

#endif
