/* broker/consumer_end.c: see broker/consumer_end.h. */
#include "broker/consumer_internal.h"
#include "broker/commit.h"
#include "broker/broker.h"
#include "broker/consumer_end.h"
#include "broker/session.h"
#include "proto/protocol.h"

/* Tells a member that the subscription to one filter has ended. Without a group, it is also in the routes for QoS 0. */
static void member_told(broker_t *broker, const consumer_t *consumer, client_t *client, const uint8_t *filter, uint32_t size) {
    if (!consumer->grouped && route_unsubscribe(broker->routes, client, client->subscriptions, filter, size)) {
        client->subscription_count--;
        client_release_waiters(broker, client);
    }
    if (client->protocol->ended)
        client->protocol->ended(broker, client, filter, size, consumer_group(consumer), consumer->group_size);
    event_unsubscribed(broker, client, filter, size, consumer_group(consumer), consumer->group_size, BQ_OUTCOME_ENDED);
    broker->stats.work++;
}

/* Removes the filters of a session one by one. False: the event ring is full. */
static bool filters_part(broker_t *broker, consumer_t *consumer, client_t *client) {
    const session_t *session = consumer->session;
    while (session->filter_count) {
        consumer_filter_t *filter = session->filters[session->filter_count - 1];
        uint32_t size;
        int syntax;
        if (!event_room(broker)) return false;
        const uint8_t *text = route_consumer_text(filter, &size, &syntax);
        member_told(broker, consumer, client, text, size);
        session_filter_remove(broker, consumer, filter);
    }
    return true;
}

/* Removes the members one by one and tells each. Returns false if the event ring is full and some members remain. */
static bool members_part(broker_t *broker, consumer_t *consumer) {
    while (consumer->members) {
        client_t *client = consumer->members->client;
        if (!event_room(broker)) return false;
        if (!consumer->session)
            member_told(broker, consumer, client, consumer->text, consumer->filter_size);
        else if (!filters_part(broker, consumer, client))
            return false;
        member_remove(broker, consumer->members);
    }
    return true;
}

static void end_append(broker_t *broker, consumer_end_t *end) {
    consumer_end_t **at = &broker->consumers.ending;
    while (*at) at = &(*at)->next;
    *at = end;
}

/* Frees the consumer whose end is in the WAL. Returns false if some members are not told yet: the next turn continues. */
static bool emptied(broker_t *broker, consumer_end_t *end) {
    consumer_t *consumer = end->consumer_id ? consumer_by_id(broker, end->consumer_id) : NULL;
    if (consumer && !members_part(broker, consumer)) return false;
    if (consumer) consumer_free(broker, consumer);
    end->consumer_id = 0;
    return true;
}

/* Ends the whole consumer. Returns the LSN, or wal_append's error. */
static int64_t end_all(broker_t *broker, consumer_t *consumer, consumer_end_t *end) {
    wal_part_t part = {&consumer->id, sizeof consumer->id};
    int64_t lsn = wal_append(broker->wal, WAL_CONSUMER_END, 0, &part, 1, WAL_URGENT);
    if (lsn <= 0) return lsn;
    end->consumer_id = consumer->id;
    emptied(broker, end);
    return lsn;
}

/* Removes one client_id from a group. Without its last one the group is not durable. *outcome: reason of a failure. */
static int64_t end_registration(broker_t *broker, consumer_t *consumer, const uint8_t *client_id, uint32_t size,
                                enum bq_outcome *outcome) {
    const registration_t *found = NULL;
    uint32_t count = 0;
    for (const registration_t *registration = consumer->registrations; registration; registration = registration->next) {
        if (!consumer_client_is(registration->client_id, registration->size, client_id, size)) continue;
        found = registration;
        count++;
    }
    *outcome = count ? BQ_OUTCOME_INVALID : BQ_OUTCOME_NOT_FOUND;
    if (count != 1) return 0;
    uint8_t texts[TOPIC_BYTES_MAX + REQUEST_BYTES_MAX]; /* copies, because the consumer may be freed */
    if (consumer->group_size > REQUEST_BYTES_MAX) return 0;
    memcpy(texts, consumer->text, consumer->filter_size);
    memcpy(texts + consumer->filter_size, consumer_group(consumer), consumer->group_size);
    uint8_t identity[REQUEST_BYTES_MAX];
    if (found->size > sizeof identity) return 0;
    memcpy(identity, found->client_id, found->size);
    consumer_request_t request = {.filter = texts,
                                  .filter_size = consumer->filter_size,
                                  .group = texts + consumer->filter_size,
                                  .group_size = consumer->group_size,
                                  .client_id = identity,
                                  .client_id_size = found->size};
    int64_t lsn = consumer_leave_append(broker, &request);
    *outcome = BQ_OUTCOME_UNAVAILABLE;
    if (lsn > 0) consumer_registrations_end(broker, &request, UINT64_MAX, true);
    return lsn;
}

bool consumer_end_by_id(broker_t *broker, uint64_t seq, uint64_t id, const uint8_t *client_id, uint32_t client_id_size) {
    consumer_end_t *end = pool_alloc(&broker->pool, sizeof *end);
    if (!end) return false;
    *end = (consumer_end_t){.seq = seq, .outcome = BQ_OUTCOME_NOT_FOUND};
    end_append(broker, end);
    consumer_t *consumer = id ? consumer_by_id(broker, id) : NULL;
    if (!consumer || !consumer->durable) return true;
    end->outcome = BQ_OUTCOME_UNAVAILABLE;
    int64_t lsn = client_id_size && consumer->grouped
                      ? end_registration(broker, consumer, client_id, client_id_size, &end->outcome)
                      : end_all(broker, consumer, end);
    if (lsn <= 0) return true;
    end->outcome = BQ_OUTCOME_DONE;
    end->lsn = (uint64_t)lsn;
    broker->commit_wanted = true;
    return true;
}

static bool on_disk(const broker_t *broker, const consumer_end_t *end) {
    return !end->lsn || wal_durable(broker->wal) >= end->lsn;
}

void consumer_end_turn(broker_t *broker) {
    consumer_end_t *end;
    while ((end = broker->consumers.ending)) {
        if (!emptied(broker, end)) return;
        bool lost = !on_disk(broker, end) && wal_state(broker->wal) == WAL_E_FAILED;
        if (!on_disk(broker, end) && !lost) return;
        enum bq_outcome outcome = lost ? BQ_OUTCOME_UNAVAILABLE : end->outcome;
        if (!event_push(broker, &(bq_event_t){.type = BQ_EV_CONSUMER_ENDED, .seq = end->seq, .code = (uint16_t)outcome})) return;
        broker->consumers.ending = end->next;
        pool_free(&broker->pool, end, sizeof *end);
    }
}

bool consumer_end_waits(const broker_t *broker) {
    const consumer_end_t *end = broker->consumers.ending;
    return end && (end->consumer_id || on_disk(broker, end));
}

void consumer_end_release(broker_t *broker) {
    while (broker->consumers.ending) {
        consumer_end_t *end = broker->consumers.ending;
        broker->consumers.ending = end->next;
        pool_free(&broker->pool, end, sizeof *end);
    }
}
