/* broker/consumer_expire.c: see broker/consumer_expire.h. */
#include "broker/consumer_expire.h"
#include "broker/broker.h"
#include "broker/consumer_internal.h"

#define EXPIRE_GRACE_MS 60000u
#define EXPIRE_LOOKS 16u /* checks within the expiry time */
#define EXPIRE_LOOK_MS_MIN 100u
#define EXPIRE_LOOK_MS_MAX 60000u
#define EXPIRE_CONSUMERS 512u /* checked per turn */
#define EXPIRE_ENDS 32u       /* of them ended per turn */

#define THERE UINT64_MAX

/* ---- time of absence --------------------------------------------------------------------------------------------- */

void consumer_seen(broker_t *broker, consumer_t *consumer) {
    if (!consumer->durable || !broker->wal) return;
    consumer->seen_ms = timeline_now_ms(broker);
    broker->consumers.seen_changed = true;
}

void consumer_seen_write(const broker_t *broker, const consumer_t *consumer, seen_record_t *record) {
    *record = (seen_record_t){.consumer_id = consumer->id,
                              .seen_ms = consumer->members ? THERE : consumer->seen_ms,
                              .seen_wall_ms = consumer->members ? broker->wall_ms : consumer->seen_wall_ms,
                              .lag_messages = consumer_lag_messages(consumer),
                              .lag_bytes = consumer_lag_bytes(consumer),
                              .stamp_ms = consumer_stamp_ms(consumer),
                              .unsure = consumer->behind_unsure};
}

void consumer_seen_load(broker_t *broker, const uint8_t *bytes, uint64_t size) {
    for (seen_record_t record; size >= sizeof record; bytes += sizeof record, size -= sizeof record) {
        memcpy(&record, bytes, sizeof record);
        consumer_t *consumer = consumer_by_id(broker, record.consumer_id);
        if (!consumer) continue;
        consumer->seen_ms = record.seen_ms == THERE ? 0 : record.seen_ms;
        consumer->seen_wall_ms = record.seen_wall_ms;
        consumer->behind_messages = record.lag_messages;
        consumer->behind_bytes = record.lag_bytes;
        consumer->behind_stamp_ms = record.stamp_ms;
        consumer->behind_unsure = record.unsure != 0;
    }
}

uint64_t consumer_away_ms(const broker_t *broker, const consumer_t *consumer) {
    if (consumer->members) return 0;
    uint64_t seen_ms = consumer->seen_ms ? consumer->seen_ms : broker->consumers.begun_ms;
    if (!consumer->durable || !seen_ms) return UINT64_MAX;
    uint64_t now_ms = timeline_now_ms(broker);
    return now_ms > seen_ms ? now_ms - seen_ms : 0;
}

/* ---- expiry ------------------------------------------------------------------------------------------------------ */

static bool over(const broker_t *broker, const consumer_t *consumer) {
    if (!consumer->durable || consumer->members) return false;
    uint64_t away_ms = consumer_away_ms(broker, consumer);
    return away_ms != UINT64_MAX && away_ms >= broker->config.session_expiry_ms;
}

/* False: the WAL accepts nothing now, or the event ring is full. */
static bool expire(broker_t *broker, consumer_t *consumer) {
    if (!event_room(broker)) return false;
    wal_part_t part = {&consumer->id, sizeof consumer->id};
    if (wal_append(broker->wal, WAL_CONSUMER_END, 0, &part, 1, WAL_URGENT) <= 0) return false;
    broker->commit_wanted = true;
    broker->stats.sessions_expired++;
    event_consumer(broker, BQ_EV_CONSUMER_EXPIRED, consumer, NULL, 0);
    consumer_free(broker, consumer);
    return true;
}

static uint64_t look_ms(const broker_t *broker) {
    uint64_t ms = broker->config.session_expiry_ms / EXPIRE_LOOKS;
    if (ms < EXPIRE_LOOK_MS_MIN) return EXPIRE_LOOK_MS_MIN;
    return ms < EXPIRE_LOOK_MS_MAX ? ms : EXPIRE_LOOK_MS_MAX;
}

static uint64_t grace_ms(const broker_t *broker) {
    return broker->config.session_expiry_ms < EXPIRE_GRACE_MS ? broker->config.session_expiry_ms : EXPIRE_GRACE_MS;
}

/* Starts when all records found at the start are durable. Before that, a power cut could undo them, so nothing may be ended. */
static bool may_begin(broker_t *broker) {
    consumers_t *consumers = &broker->consumers;
    if (!consumers->begun_ms) {
        consumers->begun_ms = timeline_now_ms(broker) ? timeline_now_ms(broker) : 1;
        consumers->expire_due_ms = broker->now_ms + grace_ms(broker);
    }
    return broker->config.session_expiry_ms && broker->dispatched_lsn >= broker->found_lsn;
}

void consumers_expire(broker_t *broker) {
    consumers_t *consumers = &broker->consumers;
    if (!broker->wal || !may_begin(broker)) return;
    if (broker->now_ms < consumers->expire_due_ms) return;
    if (!consumers->expire_next) consumers->expire_next = consumers->all;
    uint32_t ends = 0;
    for (uint32_t looked = 0; consumers->expire_next && looked < EXPIRE_CONSUMERS; looked++) {
        consumer_t *consumer = consumers->expire_next;
        if (over(broker, consumer) && (ends++ == EXPIRE_ENDS || !expire(broker, consumer))) break;
        if (consumers->expire_next == consumer)
            consumers->expire_next = consumer->next; /* otherwise it ended, and consumer_list_forget has moved the pointer */
    }
    consumers->expire_due_ms = broker->now_ms + (consumers->expire_next ? EXPIRE_LOOK_MS_MIN : look_ms(broker));
}

uint64_t consumers_expire_due_ms(const broker_t *broker) {
    return broker->wal && broker->config.session_expiry_ms && broker->consumers.begun_ms ? broker->consumers.expire_due_ms
                                                                                         : UINT64_MAX;
}
