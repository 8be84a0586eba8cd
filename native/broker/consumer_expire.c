/* broker/consumer_expire.c: see broker/consumer_expire.h. */
#include "broker/consumer_expire.h"
#include "core.h"
#include "broker/consumer_internal.h"

#define EXPIRE_GRACE_MS 60000u
#define EXPIRE_LOOKS 16u /* checks within the expiry time */
#define EXPIRE_LOOK_MS_MIN 100u
#define EXPIRE_LOOK_MS_MAX 60000u
#define EXPIRE_CONSUMERS 512u /* checked per turn */
#define EXPIRE_ENDS 32u       /* of them ended per turn */

#define THERE UINT64_MAX

/* ---- time of absence --------------------------------------------------------------------------------------------- */

void consumer_seen(bq_t *bq, consumer_t *consumer) {
    if (!consumer->durable || !bq->wal) return;
    consumer->seen_ms = timeline_now_ms(bq);
    bq->consumers.seen_changed = true;
}

void consumer_seen_write(const bq_t *bq, const consumer_t *consumer, seen_record_t *record) {
    *record = (seen_record_t){.consumer_id = consumer->id,
                              .seen_ms = consumer->members ? THERE : consumer->seen_ms,
                              .seen_wall_ms = consumer->members ? bq->wall_ms : consumer->seen_wall_ms,
                              .lag_messages = consumer_lag_messages(consumer),
                              .lag_bytes = consumer_lag_bytes(consumer),
                              .stamp_ms = consumer_stamp_ms(consumer),
                              .unsure = consumer->behind_unsure};
}

void consumer_seen_load(bq_t *bq, const uint8_t *bytes, uint64_t size) {
    for (seen_record_t record; size >= sizeof record; bytes += sizeof record, size -= sizeof record) {
        memcpy(&record, bytes, sizeof record);
        consumer_t *consumer = consumer_by_id(bq, record.consumer_id);
        if (!consumer) continue;
        consumer->seen_ms = record.seen_ms == THERE ? 0 : record.seen_ms;
        consumer->seen_wall_ms = record.seen_wall_ms;
        consumer->behind_messages = record.lag_messages;
        consumer->behind_bytes = record.lag_bytes;
        consumer->behind_stamp_ms = record.stamp_ms;
        consumer->behind_unsure = record.unsure != 0;
    }
}

uint64_t consumer_away_ms(const bq_t *bq, const consumer_t *consumer) {
    if (consumer->members) return 0;
    uint64_t seen_ms = consumer->seen_ms ? consumer->seen_ms : bq->consumers.begun_ms;
    if (!consumer->durable || !seen_ms) return UINT64_MAX;
    uint64_t now_ms = timeline_now_ms(bq);
    return now_ms > seen_ms ? now_ms - seen_ms : 0;
}

/* ---- expiry ------------------------------------------------------------------------------------------------------ */

static bool over(const bq_t *bq, const consumer_t *consumer) {
    if (!consumer->durable || consumer->members) return false;
    uint64_t away_ms = consumer_away_ms(bq, consumer);
    return away_ms != UINT64_MAX && away_ms >= bq->config.session_expiry_ms;
}

/* False: the WAL accepts nothing now, or the event ring is full. */
static bool expire(bq_t *bq, consumer_t *consumer) {
    if (!event_room(bq)) return false;
    wal_part_t part = {&consumer->id, sizeof consumer->id};
    if (wal_append(bq->wal, WAL_CONSUMER_END, 0, &part, 1, WAL_URGENT) <= 0) return false;
    bq->commit_wanted = true;
    bq->stats.sessions_expired++;
    event_consumer(bq, BQ_EV_CONSUMER_EXPIRED, consumer, NULL, 0);
    consumer_free(bq, consumer);
    return true;
}

static uint64_t look_ms(const bq_t *bq) {
    uint64_t ms = bq->config.session_expiry_ms / EXPIRE_LOOKS;
    if (ms < EXPIRE_LOOK_MS_MIN) return EXPIRE_LOOK_MS_MIN;
    return ms < EXPIRE_LOOK_MS_MAX ? ms : EXPIRE_LOOK_MS_MAX;
}

static uint64_t grace_ms(const bq_t *bq) {
    return bq->config.session_expiry_ms < EXPIRE_GRACE_MS ? bq->config.session_expiry_ms : EXPIRE_GRACE_MS;
}

/* Starts when all records found at the start are durable. Before that, a power cut could undo them, so nothing may be ended. */
static bool may_begin(bq_t *bq) {
    consumers_t *consumers = &bq->consumers;
    if (!consumers->begun_ms) {
        consumers->begun_ms = timeline_now_ms(bq) ? timeline_now_ms(bq) : 1;
        consumers->expire_due_ms = bq->now_ms + grace_ms(bq);
    }
    return bq->config.session_expiry_ms && bq->dispatched_lsn >= bq->found_lsn;
}

void consumers_expire(bq_t *bq) {
    consumers_t *consumers = &bq->consumers;
    if (!bq->wal || !may_begin(bq)) return;
    if (bq->now_ms < consumers->expire_due_ms) return;
    if (!consumers->expire_next) consumers->expire_next = consumers->all;
    uint32_t ends = 0;
    for (uint32_t looked = 0; consumers->expire_next && looked < EXPIRE_CONSUMERS; looked++) {
        consumer_t *consumer = consumers->expire_next;
        if (over(bq, consumer) && (ends++ == EXPIRE_ENDS || !expire(bq, consumer))) break;
        if (consumers->expire_next == consumer)
            consumers->expire_next = consumer->next; /* otherwise it ended, and consumer_list_forget has moved the pointer */
    }
    consumers->expire_due_ms = bq->now_ms + (consumers->expire_next ? EXPIRE_LOOK_MS_MIN : look_ms(bq));
}

uint64_t consumers_expire_due_ms(const bq_t *bq) {
    return bq->wal && bq->config.session_expiry_ms && bq->consumers.begun_ms ? bq->consumers.expire_due_ms : UINT64_MAX;
}
