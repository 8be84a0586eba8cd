/* broker/consumer_internal.h: what consumer.c and the files consumer_*.c share. Nobody else includes it. */
#ifndef BQ_SESSION_INTERNAL_H
#define BQ_SESSION_INTERNAL_H

#include "broker/consumer.h"

/* Of those in the log alone it is known how many they are and how large, so that an operator can be told. */
static inline void session_behind_add(session_t *session, uint32_t size, uint64_t stamp_ms) {
    session->behind_messages++;
    session->behind_bytes += size;
    if (!session->behind_stamp_ms) session->behind_stamp_ms = stamp_ms;
}
static inline void session_behind_take(session_t *session, uint32_t size, uint64_t stamp_ms) {
    session->behind_messages -= session->behind_messages > 0;
    session->behind_bytes -= size < session->behind_bytes ? size : session->behind_bytes;
    session->behind_stamp_ms = stamp_ms;
}
static inline void session_behind_end(session_t *session) {
    session->behind = session->behind_unsure = false;
    session->behind_messages = session->behind_bytes = session->behind_stamp_ms = 0;
}

/* broker/consumer.c: the window */
void session_pump_later(struct bq *bq, session_t *session); /* at the end of this turn */
void session_pump_never(struct bq *bq, session_t *session);
void session_floor_update(struct bq *bq, session_t *session);
void session_fall_behind(struct bq *bq, session_t *session, uint64_t lsn); /* durable ones: it is in the log at `lsn` or later */
bool session_has_room(const struct bq *bq, const session_t *session, uint32_t size);
void session_window_leave(struct bq *bq, session_t *session); /* the window of a durable session goes back to the log */
delivery_t *delivery_add(struct bq *bq, session_t *session, segment_t *segment, uint32_t offset, uint32_t size, uint64_t lsn,
                         uint64_t id, uint64_t expiry_tick);                          /* NULL: no memory */
void delivery_recall(struct bq *bq, delivery_t *delivery, const past_entry_t *entry); /* it had been in the window before */
void delivery_free(struct bq *bq, delivery_t *delivery);
void delivery_dead(struct bq *bq, delivery_t *delivery); /* settled as dead-lettered */
void delivery_over(struct bq *bq, delivery_t *delivery); /* settled as dropped: over its session's quota of the log */
void delivery_wait(struct bq *bq, delivery_t *delivery); /* to be sent to whoever is next */
void delivery_left(struct bq *bq, delivery_t *delivery); /* the connection that had been handed it has ended */

/* broker/consumer_history.c */
void session_past_keep(struct bq *bq, session_t *session);
void session_past_drop(struct bq *bq, session_t *session);
bool session_past_settled(session_t *session, uint64_t lsn, past_entry_t *entry); /* else *entry: what is known of it, or zeros */
past_t *session_past_new(struct bq *bq, uint32_t count);                          /* NULL: no memory */
uint32_t session_past_count(const session_t *session, bool all);
bool session_past_tells(const session_t *session);
bool session_past_fill(const session_t *session, past_t *past, uint32_t count,
                       bool all); /* false: there is nothing, or it spans too much */

/* broker/consumer_read.c */
bool session_read_on(struct bq *bq, session_t *session); /* more from the log, if there is room; true: there are new deliveries */
struct publish_record;
bool publish_read(const uint8_t *bytes, uint32_t size, struct publish_record *record); /* false: no core wrote it */
void session_read_abandon(struct bq *bq, session_t *session);

/* broker/consumer_sweep.c: the next message is still wanted, for left_ms; 0: for ever */
void session_skimmed(const struct bq *bq, session_t *session, uint64_t left_ms);

/* broker/consumer_table.c */
session_t *session_by_id(struct bq *bq, uint64_t id);
session_t *session_new(struct bq *bq, const session_request_t *request, bq_conn_t owner); /* NULL: no memory */
void session_free(struct bq *bq, session_t *session);
void session_id_give(struct bq *bq, session_t *session, uint64_t id);
holder_t *holder_new(struct bq *bq, const uint8_t *client_id, uint32_t size, uint64_t id); /* NULL: no memory */
void holder_free(struct bq *bq, holder_t *holder);
void holder_enter(struct bq *bq, session_t *session, holder_t *holder); /* it is durable from now on */
/* Every durable subscription of that client to that filter (and group, if there is one) ends whose id is not above `id_max`.
 * Returns how many; `end` false: how many that would be. */
uint32_t session_holders_end(struct bq *bq, const session_request_t *request, uint64_t id_max, bool end);

/* broker/consumer_store.c */
#define SESSION_NEW_FLOOR UINT64_MAX /* it begins with its own record */
/* Both return the record's LSN; 0 or less: it cannot be written now. */
int64_t session_log(struct bq *bq, const session_t *session, const holder_t *holder, uint64_t session_id, uint64_t floor_lsn);
int64_t session_log_leave(struct bq *bq, const session_request_t *request);

#endif
