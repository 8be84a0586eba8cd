/* wal/span.h: how many bytes of WAL files follow an LSN.
 *
 * Invariant: the points are a copy. They are exact at the start of a segment; between two points the position is interpolated.
 */
#ifndef BQ_WAL_SPAN_H
#define BQ_WAL_SPAN_H

#include "wal/wal.h"

#define WAL_SPAN_POINTS 128u

typedef struct wal_span {
    uint32_t count;
    uint64_t lsn[WAL_SPAN_POINTS + 1];   /* rising */
    uint64_t bytes[WAL_SPAN_POINTS + 1]; /* from that LSN to the end of the WAL, falling; the last is 0 */
} wal_span_t;

void wal_span(wal_t *wal, wal_span_t *span);
uint64_t wal_span_bytes(const wal_span_t *span, uint64_t lsn); /* from that record to the end */
uint64_t wal_span_lsn(const wal_span_t *span, uint64_t bytes); /* the first record with at most that many bytes after it */

#endif
