/* broker/consumer_history.c: what is remembered of deliveries when the window goes back to the WAL, so that what was acknowledged out of order
 * stays acknowledged, and tries stay counted.
 *
 *      WAL     [floor] d1 ack d2 ack ack d3 | d4 d5 ...          past: d1, d2, d3 with their tries, up to `end_lsn` (|)
 *
 * Invariant: up to end_of, whatever is neither in the window nor an entry that is still to be read back has been settled. There are no
 * more entries than deliveries were in the window when it was left.
 */
#include "broker/consumer_internal.h"
#include "core.h"

static size_t past_bytes(uint32_t count) { return sizeof(past_t) + count * sizeof(past_entry_t); }

static uint64_t end_of(const consumer_t *consumer) {
    if (consumer->past && consumer->past->end_lsn > consumer->touched_lsn) return consumer->past->end_lsn;
    return consumer->touched_lsn;
}

void consumer_past_drop(bq_t *bq, consumer_t *consumer) {
    consumer->touched_lsn = end_of(consumer);
    if (consumer->past) pool_give(&bq->pool, consumer->past, past_bytes(consumer->past->count));
    consumer->past = NULL;
}

/* There is something of it that has not been read back yet. */
static bool goes_on(const consumer_t *consumer) {
    return consumer->past && consumer->behind && consumer->past->end_lsn >= consumer->next_lsn;
}

/* How many entries have been read back. */
static uint32_t past_read(const consumer_t *consumer) {
    const past_t *past = consumer->past;
    uint32_t at = past->at;
    while (at < past->count && past->base_lsn + past->entries[at].after < consumer->next_lsn) at++;
    return at;
}

static uint64_t base_of(const consumer_t *consumer) {
    uint64_t base_lsn = consumer->behind ? consumer->next_lsn : consumer->floor_lsn + 1;
    return consumer->head && consumer->head->lsn < base_lsn ? consumer->head->lsn : base_lsn;
}

/* `all`: for the disk. Else what has been given up stays in the window, and is not to be read back. */
static bool is_past(const consumer_t *consumer, const delivery_t *delivery, uint64_t end_lsn, bool all) {
    return delivery->lsn <= end_lsn && delivery->lsn >= consumer->kept_lsn && (all || !delivery->given_up);
}

uint32_t consumer_past_count(const consumer_t *consumer, bool all) {
    uint64_t end_lsn = end_of(consumer);
    uint32_t count = goes_on(consumer) ? consumer->past->count - past_read(consumer) : 0;
    for (const delivery_t *delivery = consumer->head; delivery; delivery = delivery->next)
        count += is_past(consumer, delivery, end_lsn, all);
    return count;
}

bool consumer_past_tells(const consumer_t *consumer) {
    if (consumer->past && consumer->past->tells) return true;
    if (consumer->head && consumer->hole_lsn > consumer->head->lsn) return true;
    for (const delivery_t *delivery = consumer->head; delivery; delivery = delivery->next)
        if (delivery->deliveries > 1) return true;
    return false;
}

static past_entry_t entry_of(const delivery_t *delivery, uint64_t base_lsn) {
    uint32_t tries = delivery->deliveries < UINT16_MAX ? delivery->deliveries : UINT16_MAX;
    return (past_entry_t){.after = (uint32_t)(delivery->lsn - base_lsn),
                          .deliveries = (uint16_t)tries,
                          .flags = (delivery->redelivered ? PAST_REDELIVERED : 0) | (delivery->killed ? PAST_KILLED : 0)};
}

bool consumer_past_fill(const consumer_t *consumer, past_t *past, uint32_t count, bool all) {
    *past = (past_t){
        .base_lsn = base_of(consumer), .end_lsn = end_of(consumer), .count = count, .tells = consumer_past_tells(consumer)};
    if (past->end_lsn < past->base_lsn || past->end_lsn - past->base_lsn > UINT32_MAX) return false;
    const past_t *old = goes_on(consumer) ? consumer->past : NULL;
    const delivery_t *delivery = consumer->head;
    uint32_t from = old ? past_read(consumer) : 0;
    for (uint32_t at = 0; at < count;) { /* both are in LSN order */
        uint64_t old_lsn = old && from < old->count ? old->base_lsn + old->entries[from].after : UINT64_MAX;
        if (delivery && delivery->lsn < old_lsn) {
            if (is_past(consumer, delivery, past->end_lsn, all)) past->entries[at++] = entry_of(delivery, past->base_lsn);
            delivery = delivery->next;
        } else {
            past->entries[at] = old->entries[from++];
            past->entries[at++].after = (uint32_t)(old_lsn - past->base_lsn);
        }
    }
    return true;
}

/* The window is about to be left. Without memory for this, all that was touched comes again, and says so. */
void consumer_past_keep(bq_t *bq, consumer_t *consumer) {
    uint32_t count = consumer_past_count(consumer, false);
    uint64_t end_lsn = end_of(consumer);
    past_t *past = pool_take(&bq->pool, past_bytes(count));
    if (past && !consumer_past_fill(consumer, past, count, false)) {
        pool_give(&bq->pool, past, past_bytes(count));
        past = NULL;
    }
    consumer_past_drop(bq, consumer);
    consumer->past = past;
    consumer->touched_lsn = consumer->hole_lsn = 0; /* the past knows now, or nobody does */
    if (!past && consumer->doubtful_lsn < end_lsn) consumer->doubtful_lsn = end_lsn;
}

past_t *consumer_past_new(bq_t *bq, uint32_t count) { return pool_take(&bq->pool, past_bytes(count)); }

bool consumer_past_settled(consumer_t *consumer, uint64_t lsn, past_entry_t *entry) {
    past_t *past = consumer->past;
    *entry = (past_entry_t){0};
    if (!past || lsn > past->end_lsn) return false;
    while (past->at < past->count && past->base_lsn + past->entries[past->at].after < lsn) past->at++;
    if (past->at == past->count || past->base_lsn + past->entries[past->at].after != lsn) return true;
    *entry = past->entries[past->at];
    return false;
}
