/* broker/consumer_list.c: see broker/consumer_list.h.
 *
 * A row is sent if its lag is at least the requested minimum, or if it keeps more of the WAL than every row before it. So the
 * consumer that keeps most is always among the rows.
 */
#include "broker/consumer_internal.h"
#include "broker/broker.h"
#include "wal/span.h"
#include "broker/consumer_list.h"

#define FRONT_BYTES_MAX 64u
#define PAGE_BYTES (12u << 10)
#define PAGE_CONSUMERS 1024u /* visited per page: bounds the walk through a page without rows */
#define GROUP_MEMBERS 64u    /* visited per consumer to find those of one key */
#define TEXT_BYTES_MAX 512u  /* of a group or client_id; a broker accepts no longer one */
#define CLIENTS_MAX 8u       /* per row of a queue group */
#define ROW_BYTES_MAX (sizeof(bq_consumer_row_t) + TOPIC_BYTES_MAX + TEXT_BYTES_MAX + CLIENTS_MAX * (2 + TEXT_BYTES_MAX) + 8)

/* ---- unsettled messages ------------------------------------------------------------------------------------------ */

uint64_t consumer_lag_messages(const consumer_t *consumer) { return consumer->window_count + consumer->behind_messages; }
uint64_t consumer_lag_bytes(const consumer_t *consumer) { return consumer->window_bytes + consumer->behind_bytes; }

uint64_t consumer_stamp_ms(const consumer_t *consumer) {
    if (consumer->head) return delivery_message(consumer->head).timestamp_ms;
    return consumer->behind_messages ? consumer->behind_stamp_ms : 0;
}

/* Age of its oldest unsettled message in milliseconds; UINT64_MAX: not known. Uses the wall clock that stamped the messages:
 * setting the clock in between makes it wrong. */
static uint64_t consumer_oldest_ms(const broker_t *broker, const consumer_t *consumer) {
    uint64_t stamp_ms = consumer_stamp_ms(consumer);
    if (!stamp_ms) return UINT64_MAX;
    return broker->wall_ms > stamp_ms ? broker->wall_ms - stamp_ms : 0;
}

static uint64_t wal_bytes_of(const consumer_t *consumer, const wal_span_t *span) {
    if (!consumer->durable || !span->count || (!consumer->head && !consumer->behind)) return 0;
    return wal_span_bytes(span, consumer->floor_lsn + 1);
}

void consumer_counts(const broker_t *broker, consumer_counts_t *counts) {
    *counts = (consumer_counts_t){0};
    for (const consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next) {
        counts->behind += consumer->behind;
        counts->absent += consumer->durable && !consumer->member_count;
        if (consumer->grouped) counts->members += consumer->member_count;
    }
}

/* ---- selection --------------------------------------------------------------------------------------------------- */

static bool holds(const uint8_t *text, uint32_t size, const uint8_t *part, uint32_t part_size) {
    for (uint32_t at = 0; at + part_size <= size; at++)
        if (!memcmp(text + at, part, part_size)) return true;
    return false;
}

/* Whether a client_id of the consumer matches. A group has several, of which the first GROUP_MEMBERS are checked; any other
 * consumer has one or none. */
static bool any_client(const consumer_t *consumer, bool (*asked)(const uint8_t *, uint32_t, const uint8_t *, uint32_t),
                       const uint8_t *part, uint32_t part_size) {
    if (!consumer->grouped)
        return consumer->client_id_size && asked(consumer_client_id(consumer), consumer->client_id_size, part, part_size);
    const registration_t *registration = consumer->registrations;
    for (uint32_t i = 0; registration && i < GROUP_MEMBERS; i++, registration = registration->next)
        if (asked(registration->client_id, registration->size, part, part_size)) return true;
    return false;
}

static bool begins(const uint8_t *text, uint32_t size, const uint8_t *part, uint32_t part_size) {
    return size >= part_size && !memcmp(text, part, part_size);
}

bool consumer_client_is(const uint8_t *identity, uint32_t identity_size, const uint8_t *client_id, uint32_t size) {
    if (identity_size < size || memcmp(identity + identity_size - size, client_id, size) != 0) return false;
    return identity_size == size || identity[identity_size - size - 1] == KEY_ENDS;
}

static bool is_exactly(const consumer_t *consumer, const consumer_list_request_t *request) {
    if (consumer->filter_size != request->find_size || memcmp(consumer->text, request->find, request->find_size) != 0)
        return false;
    if (!request->owner_size) return consumer->grouped;
    if (!consumer->grouped)
        return consumer_client_is(consumer_client_id(consumer), consumer->client_id_size, request->owner, request->owner_size);
    const registration_t *registration = consumer->registrations;
    while (registration && !consumer_client_is(registration->client_id, registration->size, request->owner, request->owner_size))
        registration = registration->next;
    return registration != NULL;
}

static bool is_found(const consumer_t *consumer, const consumer_list_request_t *request) {
    if (request->exact) return is_exactly(consumer, request);
    return !request->find_size || holds(consumer->text, consumer->filter_size, request->find, request->find_size) ||
           any_client(consumer, holds, request->find, request->find_size) ||
           holds(consumer_group(consumer), consumer->group_size, request->find, request->find_size);
}

/* Whether it belongs to the key: by a client_id with the key's prefix, or by a connection that uses the same key. */
static bool is_own(const consumer_t *consumer, const consumer_list_request_t *request, const client_t *asker) {
    if (!request->conn) return true;
    if (request->owner_size && any_client(consumer, begins, request->owner, request->owner_size)) return true;
    const member_t *member = consumer->members;
    for (uint32_t i = 0; asker && asker->acl && member && i < GROUP_MEMBERS; i++, member = member->next)
        if (member->client->acl == asker->acl) return true;
    return false;
}

/* ---- pages ------------------------------------------------------------------------------------------------------- */

static void row_fill(const broker_t *broker, const consumer_t *consumer, const wal_span_t *span, bq_consumer_row_t *row) {
    *row = (bq_consumer_row_t){.id = consumer->id,
                               .conn = consumer->members ? consumer->members->client->handle : 0,
                               .lag_messages = consumer_lag_messages(consumer),
                               .lag_bytes = consumer_lag_bytes(consumer),
                               .log_bytes = wal_bytes_of(consumer, span),
                               .oldest_ms = consumer_oldest_ms(broker, consumer),
                               .last_seen_ms = consumer->members ? broker->wall_ms : consumer->seen_wall_ms,
                               .away_ms = consumer_away_ms(broker, consumer),
                               .enqueued = consumer->enqueued,
                               .acked = consumer->acked,
                               .redelivered = consumer->redelivered,
                               .dropped_ttl = consumer->dropped_ttl,
                               .dropped_queue_full = consumer->dropped_queue_full,
                               .dead_lettered = consumer->dead_lettered,
                               .over_quota = consumer->over_quota,
                               .members = consumer->member_count,
                               .in_flight = consumer->flight_count,
                               .flags = (consumer->durable ? BQ_CONSUMER_DURABLE : 0u) |
                                        (consumer->grouped ? BQ_CONSUMER_GROUP : 0u) | (consumer->qos ? BQ_CONSUMER_QOS1 : 0u) |
                                        (consumer->behind ? BQ_CONSUMER_BEHIND : 0u) |
                                        (consumer->behind_unsure ? BQ_CONSUMER_LAG_UNSURE : 0u),
                               .clients = consumer->grouped ? consumer->registration_count : consumer->client_id_size > 0};
}

static void sums_add(bq_consumer_sums_t *sums, const bq_consumer_row_t *row) {
    sums->sessions++;
    sums->durable += (row->flags & BQ_CONSUMER_DURABLE) != 0;
    sums->absent += (row->flags & BQ_CONSUMER_DURABLE) && !row->members;
    sums->lag_messages += row->lag_messages;
    sums->lag_bytes += row->lag_bytes;
}

static uint32_t text_write(uint8_t *out, const uint8_t *text, uint32_t size) {
    if (size > TEXT_BYTES_MAX) size = TEXT_BYTES_MAX;
    if (size) memcpy(out, text, size);
    return size;
}

static uint32_t client_write(uint8_t *out, const uint8_t *text, uint32_t size) {
    uint32_t written = text_write(out + 2, text, size);
    store_u16(out, (uint16_t)written);
    return 2 + written;
}

static uint32_t row_write(uint8_t *out, bq_consumer_row_t *row, const consumer_t *consumer) {
    uint32_t at = sizeof *row;
    at += row->filter_size = text_write(out + at, consumer->text, consumer->filter_size);
    at += row->group_size = text_write(out + at, consumer_group(consumer), consumer->group_size);
    if (consumer->client_id_size)
        row->clients_size = client_write(out + at, consumer_client_id(consumer), consumer->client_id_size);
    const registration_t *registration = consumer->grouped ? consumer->registrations : NULL;
    for (uint32_t i = 0; registration && i < CLIENTS_MAX; i++, registration = registration->next)
        row->clients_size += client_write(out + at + row->clients_size, registration->client_id, registration->size);
    at += row->clients_size;
    memcpy(out, row, sizeof *row);
    memset(out + at, 0, (8 - at % 8) % 8);
    return (at + 7) & ~7u;
}

static uint32_t page_fill(broker_t *broker, const consumer_list_request_t *request, uint8_t *out) {
    consumer_list_t *list = &broker->consumers.list;
    const client_t *asker = request->conn ? client_find(broker, request->conn) : NULL;
    uint32_t used = 0;
    wal_span_t span = {.count = 0};
    if (broker->wal) wal_span(broker->wal, &span);
    for (uint32_t looked = 0; list->next && looked < PAGE_CONSUMERS && used + ROW_BYTES_MAX <= PAGE_BYTES; looked++) {
        const consumer_t *consumer = list->next;
        list->next = consumer->next;
        if (!is_found(consumer, request) || !is_own(consumer, request, asker)) continue;
        bq_consumer_row_t row;
        row_fill(broker, consumer, &span, &row);
        sums_add(&list->sums, &row);
        if (row.lag_messages < request->lag_min && row.log_bytes <= list->wal_bytes_max) continue;
        if (row.log_bytes > list->wal_bytes_max) list->wal_bytes_max = row.log_bytes;
        used += row_write(out + used, &row, consumer);
    }
    return used;
}

/* NOINLINE: the page would enlarge the stack of other commands. */
NOINLINE bool event_consumers(broker_t *broker, const consumer_list_request_t *request) {
    consumer_list_t *list = &broker->consumers.list;
    uint8_t data[sizeof(bq_consumer_sums_t) + PAGE_BYTES];
    if (!event_room(broker)) return false;
    if (request->begin) *list = (consumer_list_t){.next = broker->consumers.all, .seq = request->seq};
    if (list->seq != request->seq) list->next = NULL; /* a newer walk has ended this one */
    uint32_t used = page_fill(broker, request, data + sizeof list->sums);
    memcpy(data, &list->sums, sizeof list->sums);
    return event_push(broker, &(bq_event_t){.type = BQ_EV_CONSUMERS,
                                            .seq = request->seq,
                                            .value = list->next != NULL,
                                            .data = data,
                                            .data_size = (uint32_t)sizeof list->sums + used});
}

void consumer_list_forget(broker_t *broker, const consumer_t *consumer) {
    if (broker->consumers.list.next == consumer) broker->consumers.list.next = consumer->next;
    if (broker->consumers.expire_next == consumer) broker->consumers.expire_next = consumer->next;
    if (broker->consumers.quota_next == consumer) broker->consumers.quota_next = consumer->next;
}

NOINLINE bool event_consumer(broker_t *broker, uint16_t type, const consumer_t *consumer, const uint8_t *front,
                             uint32_t front_size) {
    uint8_t data[FRONT_BYTES_MAX + ROW_BYTES_MAX];
    bq_consumer_row_t row;
    wal_span_t span;
    wal_span(broker->wal, &span);
    row_fill(broker, consumer, &span, &row);
    if (front_size) memcpy(data, front, front_size);
    uint32_t size = front_size + row_write(data + front_size, &row, consumer);
    return event_push(broker, &(bq_event_t){.type = type, .data = data, .data_size = size});
}
