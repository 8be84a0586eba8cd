/* broker/consumer_quota.c: see broker/consumer_quota.h. */
#include "broker/consumer_quota.h"
#include "broker/budget.h"
#include "core.h"
#include "broker/dead_letter.h"
#include "wal/span.h"
#include "broker/consumer_internal.h"

#define QUOTA_LOOK_MS 100u
#define QUOTA_STEPS 8u
#define QUOTA_CONSUMERS 512u
#define QUOTA_CHECKPOINT_MS 20u
#define QUOTA_CHECKPOINT_CONSUMERS 100u /* in a millisecond: a checkpoint goes through all of them */
#define QUOTA_LETTERS_MAX 32u           /* of one consumer that wait for the WAL */
#define QUOTA_TELL_MS 60000u            /* between two events about one consumer */

static void count(bq_t *bq, consumer_t *consumer, uint64_t id) {
    if (!consumer->over_untold++) consumer->over_first_id = id;
    consumer->over_last_id = id;
    consumer->over_quota++;
    bq->stats.over_session_log++;
}

bool consumer_quota_drops(bq_t *bq, consumer_t *consumer, uint64_t id) {
    if (bq->config.session_overflow != BQ_SESSION_OVERFLOW_DROP) return false;
    count(bq, consumer, id);
    return true;
}

bool consumer_quota_has_room(const bq_t *bq, const consumer_t *consumer) {
    return consumer->window_count < QUOTA_LETTERS_MAX && (!consumer->window_count || !budget_over(bq));
}

void consumer_quota_letter(bq_t *bq, delivery_t *delivery) {
    if (delivery->given_up) return; /* it is one already */
    delivery->over = true;
    count(bq, delivery->consumer, delivery->id);
    letter_send(bq, delivery);
}

/* What is in memory of it; the rest is read forward. */
static void consumer_cut(bq_t *bq, consumer_t *consumer, uint64_t cut_lsn) {
    if (cut_lsn > consumer->quota_lsn) consumer->quota_lsn = cut_lsn;
    for (delivery_t *delivery = consumer->head, *next; delivery && delivery->lsn < cut_lsn; delivery = next) {
        next = delivery->next;
        if (!delivery->given_up && consumer_quota_drops(bq, consumer, delivery->id))
            delivery_over(bq, delivery);
        else
            consumer_quota_letter(bq, delivery);
    }
    if (!consumer->behind || consumer->next_lsn >= cut_lsn) return;
    if (!consumer->members) consumer->skim = true;
    consumer_pump_later(bq, consumer);
}

static void tell(bq_t *bq, consumer_t *consumer) {
    if (!consumer->over_untold || (consumer->over_told_ms && bq->now_ms < consumer->over_told_ms + QUOTA_TELL_MS)) return;
    if (!event_room(bq)) return;
    bq_consumer_over_t over = {.count = consumer->over_untold,
                               .first_id = consumer->over_first_id,
                               .last_id = consumer->over_last_id,
                               .dropped = bq->config.session_overflow == BQ_SESSION_OVERFLOW_DROP};
    event_consumer(bq, BQ_EV_CONSUMER_OVER, consumer, (const uint8_t *)&over, sizeof over);
    consumer->over_untold = 0;
    consumer->over_told_ms = bq->now_ms;
}

/* Where the cut is now; 0: nowhere, the WAL is not that large. It is looked for again when an eighth of the quota has been written. */
static uint64_t cut_now(bq_t *bq) {
    consumers_t *consumers = &bq->consumers;
    wal_span_t span;
    wal_span(bq->wal, &span);
    uint64_t quota = bq->config.session_log_bytes, bytes = span.count ? span.bytes[0] : 0;
    uint64_t cut_lsn = bytes > quota ? wal_span_lsn(&span, quota) : 0;
    uint64_t records = span.count ? span.lsn[span.count] - (cut_lsn ? cut_lsn : span.lsn[0]) : 0;
    consumers->quota_step_lsn = records / QUOTA_STEPS + 1;
    consumers->quota_looked_lsn = bq->dispatched_lsn;
    consumers->quota_tight = cut_lsn && bytes > bq->wal_max_bytes / 2;
    return cut_lsn;
}

static bool look_due(const bq_t *bq) {
    const consumers_t *consumers = &bq->consumers;
    return bq->now_ms >= consumers->quota_due_ms || bq->dispatched_lsn >= consumers->quota_looked_lsn + consumers->quota_step_lsn;
}

uint64_t consumer_quota_checkpoint_ms(const bq_t *bq) {
    if (!bq->config.session_log_bytes || !bq->consumers.quota_tight) return UINT64_MAX;
    uint64_t ms = bq->consumers.count / QUOTA_CHECKPOINT_CONSUMERS;
    return ms > QUOTA_CHECKPOINT_MS ? ms : QUOTA_CHECKPOINT_MS;
}

void consumers_quota(bq_t *bq) {
    consumers_t *consumers = &bq->consumers;
    if (!bq->wal || !bq->config.session_log_bytes || bq->dispatched_lsn < bq->found_lsn) return;
    if (!consumers->quota_next) {
        if (!look_due(bq)) return;
        consumers->quota_due_ms = bq->now_ms + QUOTA_LOOK_MS;
        consumers->quota_cut_lsn = cut_now(bq);
        consumers->quota_next = consumers->all;
    }
    for (uint32_t looked = 0; consumers->quota_next && looked < QUOTA_CONSUMERS; looked++) {
        consumer_t *consumer = consumers->quota_next;
        consumers->quota_next = consumer->next;
        bool holds = consumer->durable && consumer->qos && (consumer->head || consumer->behind);
        if (holds && consumer->floor_lsn + 1 < consumers->quota_cut_lsn) consumer_cut(bq, consumer, consumers->quota_cut_lsn);
        tell(bq, consumer);
    }
}

uint64_t consumers_quota_due_ms(const bq_t *bq) {
    if (!bq->wal || !bq->config.session_log_bytes) return UINT64_MAX;
    return bq->consumers.quota_next ? bq->now_ms : bq->consumers.quota_due_ms;
}
