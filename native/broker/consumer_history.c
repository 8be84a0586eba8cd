/* broker/consumer_history.c: keeps the state of deliveries when a window goes back to the WAL: acknowledgements out of order
 * stay valid, and tries stay counted.
 *
 *      WAL     [floor] d1 ack d2 ack ack d3 | d4 d5 ...          history: d1, d2, d3 with their tries, up to `end_lsn` (|)
 *
 * Invariant: up to end_of, every message that is neither in the window nor an entry still to be read back is settled. There are
 * at most as many entries as there were deliveries in the window.
 */
#include "broker/consumer_internal.h"
#include "broker/broker.h"

static size_t history_bytes(uint32_t count) { return sizeof(history_t) + count * sizeof(history_entry_t); }

static uint64_t end_of(const consumer_t *consumer) {
    if (consumer->history && consumer->history->end_lsn > consumer->touched_lsn) return consumer->history->end_lsn;
    return consumer->touched_lsn;
}

void consumer_history_drop(broker_t *broker, consumer_t *consumer) {
    consumer->touched_lsn = end_of(consumer);
    if (consumer->history) pool_free(&broker->pool, consumer->history, history_bytes(consumer->history->count));
    consumer->history = NULL;
}

/* Some entries have not been read back yet. */
static bool goes_on(const consumer_t *consumer) {
    return consumer->history && consumer->behind && consumer->history->end_lsn >= consumer->next_lsn;
}

/* Number of entries that have been read back. */
static uint32_t history_read(const consumer_t *consumer) {
    const history_t *history = consumer->history;
    uint32_t at = history->at;
    while (at < history->count && history->base_lsn + history->entries[at].after < consumer->next_lsn) at++;
    return at;
}

static uint64_t base_of(const consumer_t *consumer) {
    uint64_t base_lsn = consumer->behind ? consumer->next_lsn : consumer->floor_lsn + 1;
    return consumer->head && consumer->head->lsn < base_lsn ? consumer->head->lsn : base_lsn;
}

/* `all`: for a checkpoint. Otherwise without given-up deliveries, which stay in the window and are not read back. */
static bool in_history(const consumer_t *consumer, const delivery_t *delivery, uint64_t end_lsn, bool all) {
    return delivery->lsn <= end_lsn && delivery->lsn >= consumer->kept_lsn && (all || !delivery->given_up);
}

uint32_t consumer_history_count(const consumer_t *consumer, bool all) {
    uint64_t end_lsn = end_of(consumer);
    uint32_t count = goes_on(consumer) ? consumer->history->count - history_read(consumer) : 0;
    for (const delivery_t *delivery = consumer->head; delivery; delivery = delivery->next)
        count += in_history(consumer, delivery, end_lsn, all);
    return count;
}

bool consumer_history_tells(const consumer_t *consumer) {
    if (consumer->history && consumer->history->tells) return true;
    if (consumer->head && consumer->hole_lsn > consumer->head->lsn) return true;
    for (const delivery_t *delivery = consumer->head; delivery; delivery = delivery->next)
        if (delivery->deliveries > 1) return true;
    return false;
}

static history_entry_t entry_of(const delivery_t *delivery, uint64_t base_lsn) {
    uint32_t tries = delivery->deliveries < UINT16_MAX ? delivery->deliveries : UINT16_MAX;
    return (history_entry_t){.after = (uint32_t)(delivery->lsn - base_lsn),
                             .deliveries = (uint16_t)tries,
                             .flags =
                                 (delivery->redelivered ? HISTORY_REDELIVERED : 0) | (delivery->killed ? HISTORY_KILLED : 0)};
}

bool consumer_history_fill(const consumer_t *consumer, history_t *history, uint32_t count, bool all) {
    *history = (history_t){
        .base_lsn = base_of(consumer), .end_lsn = end_of(consumer), .count = count, .tells = consumer_history_tells(consumer)};
    if (history->end_lsn < history->base_lsn || history->end_lsn - history->base_lsn > UINT32_MAX) return false;
    const history_t *old = goes_on(consumer) ? consumer->history : NULL;
    const delivery_t *delivery = consumer->head;
    uint32_t from = old ? history_read(consumer) : 0;
    for (uint32_t at = 0; at < count;) { /* both are in LSN order */
        uint64_t old_lsn = old && from < old->count ? old->base_lsn + old->entries[from].after : UINT64_MAX;
        if (delivery && delivery->lsn < old_lsn) {
            if (in_history(consumer, delivery, history->end_lsn, all))
                history->entries[at++] = entry_of(delivery, history->base_lsn);
            delivery = delivery->next;
        } else {
            history->entries[at] = old->entries[from++];
            history->entries[at++].after = (uint32_t)(old_lsn - history->base_lsn);
        }
    }
    return true;
}

/* Before the window is released. Without memory for the history, all deliveries touched so far are sent again with the
 * redelivered flag. */
void consumer_history_keep(broker_t *broker, consumer_t *consumer) {
    uint32_t count = consumer_history_count(consumer, false);
    uint64_t end_lsn = end_of(consumer);
    history_t *history = pool_alloc(&broker->pool, history_bytes(count));
    if (history && !consumer_history_fill(consumer, history, count, false)) {
        pool_free(&broker->pool, history, history_bytes(count));
        history = NULL;
    }
    consumer_history_drop(broker, consumer);
    consumer->history = history;
    consumer->touched_lsn = consumer->hole_lsn = 0; /* the history has them now, or they are lost */
    if (!history && consumer->doubtful_lsn < end_lsn) consumer->doubtful_lsn = end_lsn;
}

history_t *consumer_history_new(broker_t *broker, uint32_t count) { return pool_alloc(&broker->pool, history_bytes(count)); }

bool consumer_history_settled(consumer_t *consumer, uint64_t lsn, history_entry_t *entry) {
    history_t *history = consumer->history;
    *entry = (history_entry_t){0};
    if (!history || lsn > history->end_lsn) return false;
    while (history->at < history->count && history->base_lsn + history->entries[history->at].after < lsn) history->at++;
    if (history->at == history->count || history->base_lsn + history->entries[history->at].after != lsn) return true;
    *entry = history->entries[history->at];
    return false;
}
