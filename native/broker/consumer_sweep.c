/* broker/consumer_sweep.c: absent sessions let go of what has expired, so that it does not hold the log.
 *
 *      log    [expired][other topics][expired][first that is wanted] ...       an absent session's next_lsn moves up to there
 *
 * Nobody reads for an absent client, so nobody would notice that its messages have expired. While the log is more than half full,
 * those whose client is away are read forward to the first message that is still wanted. That takes the readers of everyone else, in
 * their line (broker/consumer_read.c), and is done again only when that first message has expired too.
 */
#include "core.h"
#include "broker/consumer_internal.h"

void sessions_skim(bq_t *bq) {
    uint64_t now_ms = timeline_now_ms(bq);
    for (session_t *session = bq->sessions.all; session; session = session->next) {
        if (!session->durable || !session->behind || session->members || session->skim || now_ms < session->skim_due_ms) continue;
        session->skim = true;
        session_pump_later(bq, session);
    }
}

void session_skimmed(const bq_t *bq, session_t *session, uint64_t left_ms) {
    session->skim = false;
    session->skim_due_ms = left_ms ? timeline_now_ms(bq) + left_ms : UINT64_MAX;
}
