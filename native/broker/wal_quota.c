/* broker/wal_quota.c: see broker/wal_quota.h. */
#include "broker/wal_quota.h"
#include "broker/budget.h"
#include "broker/broker.h"
#include "broker/dead_letter.h"
#include "wal/span.h"
#include "broker/consumer_internal.h"

#define QUOTA_LOOK_MS 100u
#define QUOTA_STEPS 8u
#define QUOTA_CONSUMERS 512u
#define QUOTA_CHECKPOINT_MS 20u
#define QUOTA_CHECKPOINT_CONSUMERS 100u /* per millisecond: a checkpoint visits all of them */
#define QUOTA_LETTERS_MAX 32u           /* per consumer, waiting for the WAL */
#define QUOTA_TELL_MS 60000u            /* between two events about the same consumer */
#define QUOTA_QUARTERS 3u               /* of the WAL: maximum distance from the cut to the end */
#define QUOTA_RECORD_BYTES 24u          /* record header in the WAL */
#define QUOTA_BYTES_MAX (1ull << 50)    /* larger values in a mark are invalid */

/* ---- dead letters in the WAL ------------------------------------------------------------------------------------- */

/* Removes the marks of deleted records, then merges every two marks. */
static void marks_thin(broker_t *broker) {
    quota_letters_t *letters = &broker->consumers.quota_letters;
    uint32_t first = 0, kept = 0;
    while (first + 1 < letters->count && letters->marks[first + 1].lsn <= broker->consumers.kept_from) first++;
    letters->count -= first;
    memmove(letters->marks, letters->marks + first, letters->count * sizeof *letters->marks);
    if (letters->count < QUOTA_MARKS / 2) return;
    for (uint32_t i = 0; i < letters->count; i++) {
        if (i % 2)
            letters->marks[kept - 1].bytes += letters->marks[i].bytes;
        else
            letters->marks[kept++] = letters->marks[i];
    }
    letters->count = kept;
}

void wal_quota_letter_logged(broker_t *broker, uint64_t lsn, uint64_t bytes) {
    quota_letters_t *letters = &broker->consumers.quota_letters;
    uint64_t quota = broker->config.session_log_bytes, step = broker->wal_segment_bytes;
    if (quota && quota < step) step = quota;
    if (letters->count == QUOTA_MARKS) marks_thin(broker);
    quota_mark_t *last = letters->count ? &letters->marks[letters->count - 1] : NULL;
    if (!last || (lsn > last->lsn && last->bytes >= step / (QUOTA_MARKS / 2))) {
        last = &letters->marks[letters->count++];
        *last = (quota_mark_t){.lsn = lsn};
    }
    last->bytes += QUOTA_RECORD_BYTES + ((bytes + 7) & ~7ull);
    if (lsn > letters->newest_lsn) letters->newest_lsn = lsn;
}

/* Bytes of dead letters from `lsn` on. The mark that contains `lsn` counts completely. */
static uint64_t letter_bytes(const broker_t *broker, uint64_t lsn) {
    const quota_letters_t *letters = &broker->consumers.quota_letters;
    uint64_t bytes = 0;
    for (uint32_t i = letters->count; i-- && (i + 1 == letters->count || letters->marks[i + 1].lsn > lsn);)
        bytes += letters->marks[i].bytes;
    return bytes;
}

uint32_t wal_quota_section_size(const broker_t *broker) {
    return (uint32_t)(sizeof(uint64_t) + broker->consumers.quota_letters.count * sizeof(quota_mark_t));
}

void wal_quota_section_write(const broker_t *broker, uint8_t *out) {
    const quota_letters_t *letters = &broker->consumers.quota_letters;
    memcpy(out, &letters->newest_lsn, sizeof letters->newest_lsn);
    memcpy(out + sizeof letters->newest_lsn, letters->marks, letters->count * sizeof *letters->marks);
}

void wal_quota_section_load(broker_t *broker, const uint8_t *bytes, uint64_t size) {
    quota_letters_t letters = {.count = 0};
    if (size < sizeof letters.newest_lsn) return;
    memcpy(&letters.newest_lsn, bytes, sizeof letters.newest_lsn);
    bytes += sizeof letters.newest_lsn;
    size -= sizeof letters.newest_lsn;
    for (uint64_t lsn = 0; size >= sizeof(quota_mark_t) && letters.count < QUOTA_MARKS; letters.count++) {
        quota_mark_t *mark = &letters.marks[letters.count];
        memcpy(mark, bytes, sizeof *mark);
        if (mark->lsn <= lsn || mark->bytes > QUOTA_BYTES_MAX) return; /* not written by a core */
        lsn = mark->lsn;
        bytes += sizeof *mark;
        size -= sizeof *mark;
    }
    broker->consumers.quota_letters = letters;
}

/* ---- the cut ----------------------------------------------------------------------------------------------------- */

static void count(broker_t *broker, consumer_t *consumer, uint64_t id) {
    if (!consumer->over_untold++) consumer->over_first_id = id;
    consumer->over_last_id = id;
    consumer->over_quota++;
    broker->stats.over_session_log++;
}

bool wal_quota_drops(broker_t *broker, consumer_t *consumer, uint64_t id) {
    if (broker->config.session_overflow != BQ_SESSION_OVERFLOW_DROP) return false;
    count(broker, consumer, id);
    return true;
}

bool wal_quota_has_room(const broker_t *broker, const consumer_t *consumer) {
    return consumer->window_count < QUOTA_LETTERS_MAX && (!consumer->window_count || !budget_over(broker));
}

void wal_quota_letter(broker_t *broker, delivery_t *delivery) {
    if (delivery->given_up) return; /* it is a dead letter already */
    delivery->over = true;
    count(broker, delivery->consumer, delivery->id);
    dead_letter_send(broker, delivery);
}

/* Handles the deliveries in memory here; the rest is read forward from the WAL. */
static void consumer_cut(broker_t *broker, consumer_t *consumer, uint64_t cut_lsn) {
    if (cut_lsn > consumer->quota_lsn) consumer->quota_lsn = cut_lsn;
    for (delivery_t *delivery = consumer->head, *next; delivery && delivery->lsn < cut_lsn; delivery = next) {
        next = delivery->next;
        if (!delivery->given_up && wal_quota_drops(broker, consumer, delivery->id))
            delivery_over(broker, delivery);
        else
            wal_quota_letter(broker, delivery);
    }
    if (!consumer->behind || consumer->next_lsn >= cut_lsn) return;
    if (!consumer->members) consumer->sweep = true;
    consumer_pump_later(broker, consumer);
}

static void tell(broker_t *broker, consumer_t *consumer) {
    if (!consumer->over_untold || (consumer->over_told_ms && broker->now_ms < consumer->over_told_ms + QUOTA_TELL_MS)) return;
    if (!event_room(broker)) return;
    bq_consumer_over_t over = {.count = consumer->over_untold,
                               .first_id = consumer->over_first_id,
                               .last_id = consumer->over_last_id,
                               .dropped = broker->config.session_overflow == BQ_SESSION_OVERFLOW_DROP};
    event_consumer(broker, BQ_EV_CONSUMER_OVER, consumer, (const uint8_t *)&over, sizeof over);
    consumer->over_untold = 0;
    consumer->over_told_ms = broker->now_ms;
}

/* The newest LSN with more than the quota after it, without dead letters, or with `most` bytes after it in total. 0: none. */
static uint64_t cut_of(const broker_t *broker, const wal_span_t *span, uint64_t most) {
    uint64_t quota = broker->config.session_log_bytes, bytes = quota, lsn = wal_span_lsn(span, bytes);
    for (uint64_t more; bytes < most && (more = quota + letter_bytes(broker, lsn)) > bytes;) {
        bytes = more < most ? more : most;
        lsn = wal_span_lsn(span, bytes);
    }
    return span->bytes[0] > bytes ? lsn : 0;
}

/* Finds the current cuts. They are searched again after an eighth of the quota has been written. */
static void cut_now(broker_t *broker) {
    consumers_t *consumers = &broker->consumers;
    wal_span_t span;
    wal_span(broker->wal, &span);
    uint64_t quota = broker->config.session_log_bytes, bytes = span.count ? span.bytes[0] : 0;
    uint64_t cut_lsn = bytes > quota ? cut_of(broker, &span, broker->wal_max_bytes / 4 * QUOTA_QUARTERS) : 0;
    uint64_t half = broker->wal_max_bytes / 2, most = half > quota ? half : quota;
    consumers->quota_cut_letters_lsn = bytes > most ? wal_span_lsn(&span, most) : 0;
    consumers->quota_cut_lsn = cut_lsn;
    uint64_t records = span.count ? span.lsn[span.count] - (cut_lsn ? cut_lsn : span.lsn[0]) : 0;
    consumers->quota_step_lsn = records / QUOTA_STEPS + 1;
    consumers->quota_looked_lsn = broker->dispatched_lsn;
    consumers->quota_tight = cut_lsn && bytes > broker->wal_max_bytes / 2;
}

/* The consumer's messages are dead letters. A dead letter has no dead letter of its own, so half of the WAL is kept for them. */
static bool takes_letters(const consumer_t *consumer) {
    uint32_t size = (uint32_t)sizeof DEAD_LETTER_PREFIX - 1;
    return consumer->filter_size >= size && !memcmp(consumer->text, DEAD_LETTER_PREFIX, size);
}

static bool look_due(const broker_t *broker) {
    const consumers_t *consumers = &broker->consumers;
    return broker->now_ms >= consumers->quota_due_ms ||
           broker->dispatched_lsn >= consumers->quota_looked_lsn + consumers->quota_step_lsn;
}

uint64_t wal_quota_checkpoint_ms(const broker_t *broker) {
    if (!broker->config.session_log_bytes || !broker->consumers.quota_tight) return UINT64_MAX;
    uint64_t ms = broker->consumers.count / QUOTA_CHECKPOINT_CONSUMERS;
    return ms > QUOTA_CHECKPOINT_MS ? ms : QUOTA_CHECKPOINT_MS;
}

void wal_quota_turn(broker_t *broker) {
    consumers_t *consumers = &broker->consumers;
    if (!broker->wal || !broker->config.session_log_bytes || broker->dispatched_lsn < broker->found_lsn) return;
    if (!consumers->quota_next) {
        if (!look_due(broker)) return;
        consumers->quota_due_ms = broker->now_ms + QUOTA_LOOK_MS;
        cut_now(broker);
        consumers->quota_next = consumers->all;
    }
    for (uint32_t looked = 0; consumers->quota_next && looked < QUOTA_CONSUMERS; looked++) {
        consumer_t *consumer = consumers->quota_next;
        consumers->quota_next = consumer->next;
        bool holds = consumer->durable && consumer->qos && (consumer->head || consumer->behind);
        uint64_t cut_lsn = takes_letters(consumer) ? consumers->quota_cut_letters_lsn : consumers->quota_cut_lsn;
        if (holds && consumer->floor_lsn + 1 < cut_lsn) consumer_cut(broker, consumer, cut_lsn);
        tell(broker, consumer);
    }
}

uint64_t wal_quota_due_ms(const broker_t *broker) {
    if (!broker->wal || !broker->config.session_log_bytes) return UINT64_MAX;
    return broker->consumers.quota_next ? broker->now_ms : broker->consumers.quota_due_ms;
}
