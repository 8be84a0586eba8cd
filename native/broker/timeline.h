/* broker/timeline.h: the broker's own time T in milliseconds. T never goes back, across restarts, and gives the age of messages.
 *
 *      run 1  |----------|              T = mono_ms + base of the run that wrote the record
 *      run 2                  |-----|
 *                        ^ off ^        downtime counts if it is known: same boot of the machine, or a wall clock that was
 *                                       synchronized before and after; otherwise it counts as 0
 *
 * A record stores the monotonic time and the number of its run. TIME records and checkpoints store the base of each run. If the
 * clock becomes synchronized after the start, only the base is corrected: this applies to all records of the run without
 * rewriting them.
 *
 * Invariants: T never goes back. An unsynchronized wall clock is never used. The age of a record of this run depends on the
 * monotonic clock alone.
 */
#ifndef BQ_TIMELINE_H
#define BQ_TIMELINE_H

#include "base/bytes.h"
#include "wal/wal.h"

struct broker;
struct publish_record;

#define TIMELINE_RUNS_MAX 256u /* runs with records in the WAL; an older run counts as old as the oldest of these */

typedef struct timeline_run {
    uint64_t run;
    uint64_t first_lsn;           /* its records start here or later, and end before those of the next run */
    int64_t base_ms;              /* TIMELINE_UNKNOWN: written by a version without TIME records */
    uint64_t first_ms, latest_ms; /* monotonic time of its start, and of its newest known record */
} timeline_run_t;

/* T and the clocks at one moment. */
typedef struct timeline_mark {
    uint64_t time_ms;
    bq_clock_t clock;
} timeline_mark_t;

typedef struct timeline {
    timeline_run_t runs[TIMELINE_RUNS_MAX]; /* by LSN; the last one is this process, once begun */
    uint32_t count;
    bool begun, due;              /* due: a TIME record must be written */
    timeline_mark_t last;         /* newest mark of an earlier run */
    timeline_mark_t synchronized; /* newest mark of an earlier run with a synchronized wall clock; time_ms 0: none */
    uint64_t known_ms;            /* T was at least this before this run */
    bq_clock_t clock;             /* last reported clock, and when */
    uint64_t clock_at_ms;
} timeline_t;

/* Recovery, in LSN order. Damaged or unknown data is ignored. */
void timeline_restore(struct broker *broker, uint64_t lsn, const uint8_t *bytes, uint32_t size); /* a TIME record */
void timeline_restore_publish(struct broker *broker, uint64_t lsn, const struct publish_record *record);
void timeline_load(struct broker *broker, const uint8_t *bytes, uint64_t size); /* a section of a checkpoint */

/* The checkpoint's section: its size and its bytes. Drops runs without records from `keep_from` on. */
uint32_t timeline_section_size(struct broker *broker, uint64_t keep_from);
void timeline_section_write(struct broker *broker, uint8_t *out);

void timeline_clock(struct broker *broker,
                    const bq_clock_t *clock); /* reports the current clocks; the first call begins the time line */
void timeline_begin(struct broker *broker);   /* begins it without a report: the downtime is not known */

/* Writes the TIME record if one is due. Returns 0 or the result of wal_append. On an error no publish may be appended. */
int64_t timeline_write(struct broker *broker);
static inline bool timeline_waits(const timeline_t *line) { return !line->begun || line->due; }

uint64_t timeline_now_ms(const struct broker *broker);
uint64_t timeline_age_ms(const struct broker *broker, uint64_t lsn,
                         const struct publish_record *record); /* since it was accepted */

#endif
