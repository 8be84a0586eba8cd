/* broker/consumer_expire.c: see broker/consumer_expire.h. */
#include "broker/consumer_expire.h"
#include "core.h"
#include "broker/consumer_internal.h"

#define EXPIRE_GRACE_MS 60000u
#define EXPIRE_LOOKS 16u /* in the time that a session may be away */
#define EXPIRE_LOOK_MS_MIN 100u
#define EXPIRE_LOOK_MS_MAX 60000u
#define EXPIRE_SESSIONS 512u /* looked at in a turn */
#define EXPIRE_ENDS 32u      /* of them, those that end */

#define THERE UINT64_MAX

/* ---- since when ------------------------------------------------------------------------------------------------------------ */

void session_seen(bq_t *bq, session_t *session) {
    if (!session->durable || !bq->log) return;
    session->seen_ms = timeline_now_ms(bq);
    bq->sessions.seen_changed = true;
}

void session_seen_write(const bq_t *bq, const session_t *session, seen_record_t *record) {
    *record = (seen_record_t){.session_id = session->id,
                              .seen_ms = session->members ? THERE : session->seen_ms,
                              .seen_wall_ms = session->members ? bq->wall_ms : session->seen_wall_ms,
                              .lag_messages = session_lag_messages(session),
                              .lag_bytes = session_lag_bytes(session),
                              .stamp_ms = session_stamp_ms(session),
                              .unsure = session->behind_unsure};
}

void session_seen_load(bq_t *bq, const uint8_t *bytes, uint64_t size) {
    for (seen_record_t record; size >= sizeof record; bytes += sizeof record, size -= sizeof record) {
        memcpy(&record, bytes, sizeof record);
        session_t *session = session_by_id(bq, record.session_id);
        if (!session) continue;
        session->seen_ms = record.seen_ms == THERE ? 0 : record.seen_ms;
        session->seen_wall_ms = record.seen_wall_ms;
        session->behind_messages = record.lag_messages;
        session->behind_bytes = record.lag_bytes;
        session->behind_stamp_ms = record.stamp_ms;
        session->behind_unsure = record.unsure != 0;
    }
}

uint64_t session_away_ms(const bq_t *bq, const session_t *session) {
    if (session->members) return 0;
    uint64_t seen_ms = session->seen_ms ? session->seen_ms : bq->sessions.begun_ms;
    if (!session->durable || !seen_ms) return UINT64_MAX;
    uint64_t now_ms = timeline_now_ms(bq);
    return now_ms > seen_ms ? now_ms - seen_ms : 0;
}

/* ---- the end ----------------------------------------------------------------------------------------------------------------- */

static bool over(const bq_t *bq, const session_t *session) {
    if (!session->durable || session->members) return false;
    uint64_t away_ms = session_away_ms(bq, session);
    return away_ms != UINT64_MAX && away_ms >= bq->config.session_expiry_ms;
}

/* False: the log takes nothing now, or there is no room to say so. */
static bool expire(bq_t *bq, session_t *session) {
    if (!event_room(bq)) return false;
    log_part_t part = {&session->id, sizeof session->id};
    if (log_append(bq->log, LOG_SESSION_END, 0, &part, 1, LOG_URGENT) <= 0) return false;
    bq->commit_wanted = true;
    bq->stats.sessions_expired++;
    event_session(bq, BQ_EV_SESSION_EXPIRED, session, NULL, 0);
    session_free(bq, session);
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

/* Begins once all that was found at the start is durable: what a power cut would take away must not be ended. */
static bool may_begin(bq_t *bq) {
    sessions_t *sessions = &bq->sessions;
    if (!sessions->begun_ms) {
        sessions->begun_ms = timeline_now_ms(bq) ? timeline_now_ms(bq) : 1;
        sessions->expire_due_ms = bq->now_ms + grace_ms(bq);
    }
    return bq->config.session_expiry_ms && bq->fanned_lsn >= bq->found_lsn;
}

void sessions_expire(bq_t *bq) {
    sessions_t *sessions = &bq->sessions;
    if (!bq->log || !may_begin(bq)) return;
    if (bq->now_ms < sessions->expire_due_ms) return;
    if (!sessions->expire_next) sessions->expire_next = sessions->all;
    uint32_t ends = 0;
    for (uint32_t looked = 0; sessions->expire_next && looked < EXPIRE_SESSIONS; looked++) {
        session_t *session = sessions->expire_next;
        if (over(bq, session) && (ends++ == EXPIRE_ENDS || !expire(bq, session))) break;
        if (sessions->expire_next == session) sessions->expire_next = session->next; /* else it has ended, and was forgotten */
    }
    sessions->expire_due_ms = bq->now_ms + (sessions->expire_next ? EXPIRE_LOOK_MS_MIN : look_ms(bq));
}

uint64_t sessions_expire_due_ms(const bq_t *bq) {
    return bq->log && bq->config.session_expiry_ms && bq->sessions.begun_ms ? bq->sessions.expire_due_ms : UINT64_MAX;
}
