/* broker/session.h: the session of a client: one consumer with any number of filters, so one window, one floor and one reading
 * position for all of them.
 *
 *      consumer_t { filter, session } -> session_t { filters: a/# at QoS 1, b/+/c at QoS 0, ... }
 *
 * A topic that several filters match is one delivery, with the highest QoS of those filters. A filter gets no message older than
 * its own subscription. The filters of a durable session are records of the WAL (broker/session_store.c).
 *
 * Invariant: each filter is in the routes once, and consumer->qos is the highest QoS of all filters.
 */
#ifndef BQ_SESSION_H
#define BQ_SESSION_H

#include "broker/consumer.h"

typedef struct session {
    consumer_filter_t **filters;
    uint32_t filter_count, filter_capacity;
    uint64_t record_lsn; /* of its newest record; 0: it is not durable */
    uint64_t route_mark; /* these three: see consumers_fold of broker/router.c */
    uint32_t route_count, route_at;
} session_t;

/* A new consumer becomes a session without filters. False: no memory. */
bool session_begin(struct broker *broker, consumer_t *consumer);
void session_release(struct broker *broker, consumer_t *consumer);

/* As consumer_subscribe and consumer_unsubscribe, for a request with `session`: the filter is added to the session of this
 * client_id (or of this connection, if it is not durable), changed, or removed. */
bool session_subscribe(struct broker *broker, struct client *client, uint64_t seq, const consumer_request_t *request,
                       bool route_new, bool *remains);
bool session_unsubscribe(struct broker *broker, struct client *client, uint64_t seq, const consumer_request_t *request,
                         bool *ended, bool *pending);
void session_subscribe_undo(struct broker *broker, struct client *client, const uint8_t *filter, uint32_t size);

/* The session of which the client is a member; NULL: none. */
consumer_t *client_session(const struct client *client);

/* Adds a filter. NULL: no memory, or it is not valid. */
consumer_filter_t *session_filter_add(struct broker *broker, consumer_t *consumer, const consumer_request_t *request);
void session_filter_remove(struct broker *broker, consumer_t *consumer, consumer_filter_t *filter);
consumer_filter_t *session_filter_find(const struct broker *broker, const consumer_t *consumer, const uint8_t *text,
                                       uint32_t size); /* NULL: none */
/* Takes QoS and options from the request. The open run must be closed. */
void session_filter_set(struct broker *broker, consumer_filter_t *filter, const consumer_request_t *request);

/* Whether a filter that is older than this LSN asks for the topic at QoS 1 or more. */
bool session_matches(const session_t *session, uint64_t lsn, const uint8_t *topic, uint32_t size);

/* For any consumer. */
static inline bool consumer_matches(const consumer_t *consumer, uint64_t lsn, const uint8_t *topic, uint32_t size) {
    if (BQ_UNLIKELY(consumer->session != NULL)) return session_matches(consumer->session, lsn, topic, size);
    return route_consumer_matches(&consumer->filter, topic, size);
}

/* broker/session_store.c. Each append returns the LSN; 0 or less: it cannot be written now. */
int64_t session_open_append(struct broker *broker, uint64_t id, const uint8_t *client_id, uint32_t size);
int64_t session_filter_append(struct broker *broker, const consumer_t *consumer, const consumer_request_t *request);
int64_t session_unfilter_append(struct broker *broker, const consumer_t *consumer, const uint8_t *filter, uint32_t size);
uint64_t session_id_next(struct broker *broker);
bool session_restore(struct broker *broker, const wal_record_t *entry); /* false: no memory */
/* The section of a checkpoint: its head, then the sessions. */
uint64_t session_section_bytes(const consumer_t *consumer);
uint8_t *session_section_write(uint8_t *out, const consumer_t *consumer, uint64_t floor_lsn); /* returns its end */
#define SESSION_SECTION_HEAD 32u
uint8_t *session_section_begin(uint8_t *out, const struct broker *broker);
bool session_section_load(struct broker *broker, const uint8_t *bytes, uint64_t size);

#endif
