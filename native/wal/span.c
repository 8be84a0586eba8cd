/* wal/span.c: see wal/span.h. */
#include "wal/span.h"
#include "wal/wal_internal.h"

/* Disk space of a segment; for the active segment, only the bytes written so far. */
static uint64_t taken(const wal_t *wal, const segment_t *segment) {
    return segment == wal->active ? segment->end : segment->file_bytes;
}

void wal_span(wal_t *wal, wal_span_t *span) {
    uint64_t behind = 0;
    span->count = 0;
    monitor_enter(&wal->table);
    uint32_t step = wal->count / WAL_SPAN_POINTS + 1;
    for (uint32_t i = 0; i < wal->count; i += step) {
        span->lsn[span->count++] = wal->segments[i]->first_lsn;
        for (uint32_t j = i; j < i + step && j < wal->count; j++) behind += taken(wal, wal->segments[j]);
        span->bytes[span->count] = behind; /* sum so far: the bytes before the next point */
    }
    uint64_t next_lsn = wal->count ? wal->segments[wal->count - 1]->next_lsn : 0;
    monitor_leave(&wal->table);
    span->lsn[span->count] = next_lsn;
    span->bytes[0] = 0;
    for (uint32_t i = 0; i <= span->count; i++) span->bytes[i] = behind - span->bytes[i];
}

/* The last point at or below an LSN. */
static uint32_t point_of(const wal_span_t *span, uint64_t lsn) {
    uint32_t low = 0, high = span->count;
    while (low < high) {
        uint32_t middle = low + (high - low + 1) / 2;
        if (span->lsn[middle] <= lsn)
            low = middle;
        else
            high = middle - 1;
    }
    return low;
}

static uint64_t part(uint64_t of, uint64_t numerator, uint64_t denominator) {
    return denominator ? (uint64_t)((double)of * (double)numerator / (double)denominator) : 0;
}

uint64_t wal_span_bytes(const wal_span_t *span, uint64_t lsn) {
    uint32_t at = point_of(span, lsn);
    if (at == span->count) return 0;
    if (lsn < span->lsn[at]) return span->bytes[at];
    uint64_t between = span->bytes[at] - span->bytes[at + 1];
    return span->bytes[at] - part(between, lsn - span->lsn[at], span->lsn[at + 1] - span->lsn[at]);
}

uint64_t wal_span_lsn(const wal_span_t *span, uint64_t bytes) {
    uint32_t at = span->count;
    while (at && span->bytes[at - 1] <= bytes) at--;
    if (!at) return span->lsn[0];
    uint64_t between = span->bytes[at - 1] - span->bytes[at], over = span->bytes[at - 1] - bytes;
    uint64_t lsn = span->lsn[at - 1] + part(span->lsn[at] - span->lsn[at - 1], over, between) + 1;
    return lsn < span->lsn[at] ? lsn : span->lsn[at];
}
