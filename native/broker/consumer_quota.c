/* broker/consumer_quota.c: see broker/consumer_quota.h. */
#include "broker/consumer_quota.h"
#include "broker/budget.h"
#include "core.h"
#include "broker/dead_letter.h"
#include "wal/span.h"
#include "broker/consumer_internal.h"

#define QUOTA_LOOK_MS 100u
#define QUOTA_STEPS 8u
#define QUOTA_SESSIONS 512u
#define QUOTA_CHECKPOINT_MS 20u
#define QUOTA_CHECKPOINT_SESSIONS 100u /* in a millisecond: a checkpoint goes through all of them */
#define QUOTA_LETTERS_MAX 32u          /* of one session that wait for the log */
#define QUOTA_TELL_MS 60000u           /* between two events about one session */

static void count(bq_t *bq, session_t *session, uint64_t id) {
    if (!session->over_untold++) session->over_first_id = id;
    session->over_last_id = id;
    session->over_quota++;
    bq->stats.over_session_log++;
}

bool session_quota_drops(bq_t *bq, session_t *session, uint64_t id) {
    if (bq->config.session_overflow != BQ_SESSION_OVERFLOW_DROP) return false;
    count(bq, session, id);
    return true;
}

bool session_quota_has_room(const bq_t *bq, const session_t *session) {
    return session->window_count < QUOTA_LETTERS_MAX && (!session->window_count || !budget_over(bq));
}

void session_quota_letter(bq_t *bq, delivery_t *delivery) {
    if (delivery->given_up) return; /* it is one already */
    delivery->over = true;
    count(bq, delivery->session, delivery->id);
    letter_send(bq, delivery);
}

/* What is in memory of it; the rest is read forward. */
static void session_cut(bq_t *bq, session_t *session, uint64_t cut_lsn) {
    if (cut_lsn > session->quota_lsn) session->quota_lsn = cut_lsn;
    for (delivery_t *delivery = session->head, *next; delivery && delivery->lsn < cut_lsn; delivery = next) {
        next = delivery->next;
        if (!delivery->given_up && session_quota_drops(bq, session, delivery->id))
            delivery_over(bq, delivery);
        else
            session_quota_letter(bq, delivery);
    }
    if (!session->behind || session->next_lsn >= cut_lsn) return;
    if (!session->members) session->skim = true;
    session_pump_later(bq, session);
}

static void tell(bq_t *bq, session_t *session) {
    if (!session->over_untold || (session->over_told_ms && bq->now_ms < session->over_told_ms + QUOTA_TELL_MS)) return;
    if (!event_room(bq)) return;
    bq_session_over_t over = {.count = session->over_untold,
                              .first_id = session->over_first_id,
                              .last_id = session->over_last_id,
                              .dropped = bq->config.session_overflow == BQ_SESSION_OVERFLOW_DROP};
    event_session(bq, BQ_EV_SESSION_OVER, session, (const uint8_t *)&over, sizeof over);
    session->over_untold = 0;
    session->over_told_ms = bq->now_ms;
}

/* Where the cut is now; 0: nowhere, the log is not that large. It is looked for again when an eighth of the quota has been written. */
static uint64_t cut_now(bq_t *bq) {
    sessions_t *sessions = &bq->sessions;
    log_span_t span;
    log_span(bq->log, &span);
    uint64_t quota = bq->config.session_log_bytes, bytes = span.count ? span.bytes[0] : 0;
    uint64_t cut_lsn = bytes > quota ? log_span_lsn(&span, quota) : 0;
    uint64_t records = span.count ? span.lsn[span.count] - (cut_lsn ? cut_lsn : span.lsn[0]) : 0;
    sessions->quota_step_lsn = records / QUOTA_STEPS + 1;
    sessions->quota_looked_lsn = bq->fanned_lsn;
    sessions->quota_tight = cut_lsn && bytes > bq->log_max_bytes / 2;
    return cut_lsn;
}

static bool look_due(const bq_t *bq) {
    const sessions_t *sessions = &bq->sessions;
    return bq->now_ms >= sessions->quota_due_ms || bq->fanned_lsn >= sessions->quota_looked_lsn + sessions->quota_step_lsn;
}

uint64_t session_quota_checkpoint_ms(const bq_t *bq) {
    if (!bq->config.session_log_bytes || !bq->sessions.quota_tight) return UINT64_MAX;
    uint64_t ms = bq->sessions.count / QUOTA_CHECKPOINT_SESSIONS;
    return ms > QUOTA_CHECKPOINT_MS ? ms : QUOTA_CHECKPOINT_MS;
}

void sessions_quota(bq_t *bq) {
    sessions_t *sessions = &bq->sessions;
    if (!bq->log || !bq->config.session_log_bytes || bq->fanned_lsn < bq->found_lsn) return;
    if (!sessions->quota_next) {
        if (!look_due(bq)) return;
        sessions->quota_due_ms = bq->now_ms + QUOTA_LOOK_MS;
        sessions->quota_cut_lsn = cut_now(bq);
        sessions->quota_next = sessions->all;
    }
    for (uint32_t looked = 0; sessions->quota_next && looked < QUOTA_SESSIONS; looked++) {
        session_t *session = sessions->quota_next;
        sessions->quota_next = session->next;
        bool holds = session->durable && session->qos && (session->head || session->behind);
        if (holds && session->floor_lsn + 1 < sessions->quota_cut_lsn) session_cut(bq, session, sessions->quota_cut_lsn);
        tell(bq, session);
    }
}

uint64_t sessions_quota_due_ms(const bq_t *bq) {
    if (!bq->log || !bq->config.session_log_bytes) return UINT64_MAX;
    return bq->sessions.quota_next ? bq->now_ms : bq->sessions.quota_due_ms;
}
