/* broker/consumer_internal.h: shared by consumer.c and the files consumer_*.c. No other file includes it. */
#ifndef BQ_CONSUMER_INTERNAL_H
#define BQ_CONSUMER_INTERNAL_H

#include "broker/consumer.h"

/* Messages that are only in the WAL are counted with their bytes, for the operator's view. */
static inline void consumer_behind_add(consumer_t *consumer, uint32_t size, uint64_t stamp_ms) {
    consumer->behind_messages++;
    consumer->behind_bytes += size;
    if (!consumer->behind_stamp_ms) consumer->behind_stamp_ms = stamp_ms;
}
static inline void consumer_behind_take(consumer_t *consumer, uint32_t size, uint64_t stamp_ms) {
    consumer->behind_messages -= consumer->behind_messages > 0;
    consumer->behind_bytes -= size < consumer->behind_bytes ? size : consumer->behind_bytes;
    consumer->behind_stamp_ms = stamp_ms;
}
static inline void consumer_behind_end(consumer_t *consumer) {
    consumer->behind = consumer->behind_unsure = false;
    consumer->behind_messages = consumer->behind_bytes = consumer->behind_stamp_ms = 0;
}

/* broker/consumer.c: the window */
void consumer_pump_later(struct broker *broker, consumer_t *consumer); /* at the end of this turn */
void consumer_pump_never(struct broker *broker, consumer_t *consumer);
void consumer_floor_update(struct broker *broker, consumer_t *consumer);
void consumer_fall_behind(struct broker *broker, consumer_t *consumer,
                          uint64_t lsn); /* durable: the WAL has the next message at `lsn` or later */
bool consumer_has_room(const struct broker *broker, const consumer_t *consumer, uint32_t size);
/* releases a durable consumer's window; the WAL keeps the messages */
void consumer_window_leave(struct broker *broker, consumer_t *consumer);
delivery_t *delivery_add(struct broker *broker, consumer_t *consumer, buffer_t *buffer, uint32_t offset, uint32_t size,
                         uint64_t lsn, uint64_t id, uint64_t expiry_tick); /* NULL: no memory */
/* restores its state from an earlier window */
void delivery_recall(struct broker *broker, delivery_t *delivery, const history_entry_t *entry);
void delivery_free(struct broker *broker, delivery_t *delivery);
void delivery_dead(struct broker *broker, delivery_t *delivery); /* settled as dead-lettered */
void delivery_over(struct broker *broker, delivery_t *delivery); /* settled as dropped: over its consumer's quota of the WAL */
void delivery_wait(struct broker *broker, delivery_t *delivery); /* makes it ready for the next member */
void delivery_left(struct broker *broker, delivery_t *delivery); /* the connection that received it has closed */

/* broker/consumer_history.c */
void consumer_history_keep(struct broker *broker, consumer_t *consumer);
void consumer_history_drop(struct broker *broker, consumer_t *consumer);
bool consumer_history_settled(consumer_t *consumer, uint64_t lsn,
                              history_entry_t *entry);                  /* false: *entry has its state, or zeros */
history_t *consumer_history_new(struct broker *broker, uint32_t count); /* NULL: no memory */
uint32_t consumer_history_count(const consumer_t *consumer, bool all);
bool consumer_history_tells(const consumer_t *consumer);
bool consumer_history_fill(const consumer_t *consumer, history_t *history, uint32_t count,
                           bool all); /* false: there is none, or the LSN range is too large */

/* broker/consumer_read.c */
bool consumer_read_on(struct broker *broker,
                      consumer_t *consumer); /* takes messages from the WAL if there is room; true: new deliveries */
struct publish_record;
bool publish_read(const uint8_t *bytes, uint32_t size, struct publish_record *record); /* false: not written by a core */
void consumer_read_abandon(struct broker *broker, consumer_t *consumer);

/* broker/consumer_sweep.c: the next message is not expired; it is valid for left_ms more, 0: for ever */
void consumer_swept(const struct broker *broker, consumer_t *consumer, uint64_t left_ms);

/* broker/consumer_table.c */
extern const char *const CONSUMER_NO_ROOM;
member_t *member_find(const consumer_t *consumer, const struct client *client);           /* NULL: it is no member */
member_t *member_add(struct broker *broker, consumer_t *consumer, struct client *client); /* NULL: no memory */
void member_remove(struct broker *broker, member_t *member);
/* By the name of the request: see name_hash. NULL: there is none. */
consumer_t *consumer_find(struct broker *broker, const struct client *client, const consumer_request_t *request);
/* Why no consumer may be added; NULL: it may. */
const char *consumer_over_limits(struct broker *broker, const consumer_request_t *request);
/* Answers a request; returns false. */
bool consumer_refuse(struct broker *broker, struct client *client, uint64_t seq, enum bq_outcome outcome, const char *why);
/* From now on the floor is durable, starting with `floor_lsn` in the record at `lsn`. */
void consumer_floor_begin(consumer_t *consumer, uint64_t floor_lsn, uint64_t lsn);
consumer_t *consumer_by_id(struct broker *broker, uint64_t id);
consumer_t *consumer_new(struct broker *broker, const consumer_request_t *request, bq_conn_t owner); /* NULL: no memory */
void consumer_free(struct broker *broker, consumer_t *consumer);
void consumer_id_assign(struct broker *broker, consumer_t *consumer, uint64_t id);
registration_t *registration_new(struct broker *broker, const uint8_t *client_id, uint32_t size,
                                 uint64_t id);                                                      /* NULL: no memory */
void registration_drop(struct broker *broker, registration_t *registration);                        /* before it is entered */
void registration_enter(struct broker *broker, consumer_t *consumer, registration_t *registration); /* makes it durable */
/* Ends every durable subscription of the client to the filter (and group, if given) with an id up to `id_max`. Returns how many;
 * with `end` false it only counts them. */
uint32_t consumer_registrations_end(struct broker *broker, const consumer_request_t *request, uint64_t id_max, bool end);

/* broker/consumer_store.c */
#define CONSUMER_NEW_FLOOR UINT64_MAX /* the floor is its own record */
/* Both return the record's LSN; 0 or less: it cannot be written now. */
int64_t consumer_record_append(struct broker *broker, const consumer_t *consumer, const registration_t *registration,
                               uint64_t consumer_id, uint64_t floor_lsn);
int64_t consumer_leave_append(struct broker *broker, const consumer_request_t *request);

#endif
