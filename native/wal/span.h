/* wal/span.h: how much of the log lies behind an LSN, in bytes of its files.
 *
 * Invariant: the points are a copy, exact where a segment begins; between two of them an LSN's place is proportional.
 */
#ifndef BQ_LOG_SPAN_H
#define BQ_LOG_SPAN_H

#include "wal/wal.h"

#define LOG_SPAN_POINTS 128u

typedef struct log_span {
    uint32_t count;
    uint64_t lsn[LOG_SPAN_POINTS + 1];   /* rising */
    uint64_t bytes[LOG_SPAN_POINTS + 1]; /* from that LSN to the end of the log, falling; the last is 0 */
} log_span_t;

void log_span(log_t *log, log_span_t *span);
uint64_t log_span_bytes(const log_span_t *span, uint64_t lsn); /* from that record on */
uint64_t log_span_lsn(const log_span_t *span, uint64_t bytes); /* the first record behind which no more than that lies */

#endif
