/* wal/span.h: how much of the WAL lies behind an LSN, in bytes of its files.
 *
 * Invariant: the points are a copy, exact where a segment begins; between two of them an LSN's place is proportional.
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
uint64_t wal_span_bytes(const wal_span_t *span, uint64_t lsn); /* from that record on */
uint64_t wal_span_lsn(const wal_span_t *span, uint64_t bytes); /* the first record behind which no more than that lies */

#endif
