/* broker/timeline.h: the broker's own time T: milliseconds that never fall, across restarts, by which the age of a message is judged.
 *
 *      run 1  |----------|              T = mono_ms + base of the run that wrote the record
 *      run 2                  |-----|
 *                        ^ off ^        counted if it is known: the same boot of the machine, or a wall clock that was
 *                                       synchronized before and after; else it counts as nothing
 *
 * A record keeps the monotonic time and the number of its run; TIME records and checkpoints keep each run's base. So a base can be
 * corrected when the clock becomes synchronized after the start: all records of that run move with it, and none of them is touched.
 *
 * Invariants: T never falls. No wall clock is believed that was not synchronized. A record of this run is judged by the monotonic
 * clock alone.
 */
#ifndef BQ_TIMELINE_H
#define BQ_TIMELINE_H

#include "base/bytes.h"
#include "wal/wal.h"

struct bq;
struct publish_record;

#define TIMELINE_RUNS_MAX 256u /* with records in the WAL; older ones are at least as old as the oldest of these */

typedef struct timeline_run {
    uint64_t run;
    uint64_t first_lsn;           /* its records lie here or later, before those of the next run */
    int64_t base_ms;              /* TIMELINE_UNKNOWN: written by a version without TIME records */
    uint64_t first_ms, latest_ms; /* monotonic time at its start, and of its newest record that was seen */
} timeline_run_t;

/* T and the clocks at one moment. */
typedef struct timeline_mark {
    uint64_t time_ms;
    bq_clock_t clock;
} timeline_mark_t;

typedef struct timeline {
    timeline_run_t runs[TIMELINE_RUNS_MAX]; /* by LSN; the last one is this process's, once begun */
    uint32_t count;
    bool begun, due;              /* due: a TIME record has to be written */
    timeline_mark_t last;         /* the newest one of an earlier run */
    timeline_mark_t synchronized; /* the newest one of an earlier run whose wall clock was right; time_ms 0: none */
    uint64_t known_ms;            /* T was at least this before this run */
    bq_clock_t clock;             /* as told last, and when */
    uint64_t clock_at_ms;
} timeline_t;

/* Recovery: what the WAL holds, in LSN order. Damaged or foreign bytes are passed over. */
void timeline_restore(struct bq *bq, uint64_t lsn, const uint8_t *bytes, uint32_t size); /* a TIME record */
void timeline_restore_publish(struct bq *bq, uint64_t lsn, const struct publish_record *record);
void timeline_load(struct bq *bq, const uint8_t *bytes, uint64_t size); /* a checkpoint's section */

/* The checkpoint's section: its size, and its bytes. Runs without records from `keep_from` on are forgotten. */
uint32_t timeline_section_size(struct bq *bq, uint64_t keep_from);
void timeline_section_write(struct bq *bq, uint8_t *out);

void timeline_clock(struct bq *bq, const bq_clock_t *clock); /* what the clocks show now; begins the line at the first call */
void timeline_begin(struct bq *bq);                          /* nobody has told what they show: then the time off is not known */

/* Write the TIME record that is due, if any. 0, or what wal_append says: no publish may go before it. */
int64_t timeline_write(struct bq *bq);
static inline bool timeline_waits(const timeline_t *line) { return !line->begun || line->due; }

uint64_t timeline_now_ms(const struct bq *bq);
uint64_t timeline_age_ms(const struct bq *bq, uint64_t lsn, const struct publish_record *record); /* since it was accepted */

#endif
