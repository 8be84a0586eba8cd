/* broker/dead_letter.c: see broker/dead_letter.h for the invariant. */
#include "broker/dead_letter.h"
#include "broker/broker.h"
#include "broker/consumer_internal.h"

#include <stdio.h>

#define PREFIX_BYTES ((uint32_t)sizeof DEAD_LETTER_PREFIX - 1)
#define RETRY_FULL_MS 250u
#define RETRY_OTHER_MS 1000u
#define NUMBER_BYTES 24u

static const char TOO_OFTEN[] = "max_deliveries", OVER[] = "session_log_bytes";

/* A dead letter gets no dead letter of its own: its topic would have the same prefix again. */
static bool is_letter(const message_t *message) {
    return message->topic_size >= PREFIX_BYTES && !memcmp(message->topic, DEAD_LETTER_PREFIX, PREFIX_BYTES);
}

/* A topic near the size limit is shortened at a character; the property has the full topic. */
static uint32_t topic_write(uint8_t *out, const uint8_t *topic, uint32_t size) {
    if (size > TOPIC_BYTES_MAX - PREFIX_BYTES) size = TOPIC_BYTES_MAX - PREFIX_BYTES;
    memcpy(out, DEAD_LETTER_PREFIX, PREFIX_BYTES);
    memcpy(out + PREFIX_BYTES, topic, size);
    while (topic_check(out, PREFIX_BYTES + size)) size--;
    return PREFIX_BYTES + size;
}

static uint32_t number_property(uint8_t *out, const char *name, uint64_t number) {
    char text[NUMBER_BYTES];
    int size = snprintf(text, sizeof text, "%llu", (unsigned long long)number);
    return property_write(out, name, (const uint8_t *)text, (uint32_t)size);
}

/* Writes the properties of a dead letter. Returns the bytes written, DEAD_LETTER_PROPERTIES_BYTES_MAX at most. */
static uint32_t dead_letter_properties(uint8_t *out, const uint8_t *topic, uint32_t topic_size, uint64_t id, uint32_t deliveries,
                                       bool over) {
    const char *reason = over ? OVER : TOO_OFTEN;
    uint32_t at = property_write(out, "reason", (const uint8_t *)reason, (uint32_t)strlen(reason));
    at += property_write(out + at, "topic", topic, topic_size);
    at += number_property(out + at, "id", id);
    return at + number_property(out + at, "deliveries", deliveries);
}

uint32_t dead_letter_properties_again(uint8_t *out, const uint8_t *topic, uint32_t topic_size,
                                      const dead_letter_record_t *record) {
    uint32_t front = topic_size < PREFIX_BYTES ? topic_size : PREFIX_BYTES;
    return dead_letter_properties(out, topic + front, topic_size - front, record->id, record->deliveries, record->over != 0);
}

/* Who would receive the dead letter. If there is no memory to find out, it is written to the WAL. */
enum wanted { WANTED_BY_NOBODY, WANTED_BY_QOS0, WANTED, WANTED_LATER };

static enum wanted wanted_by(broker_t *broker, const uint8_t *name, uint32_t size) {
    int error = 0;
    topic_t *topic = publish_topic(broker, NULL, name, size, &error);
    enum route_outcome outcome = topic ? route_ready(broker->routes, topic, WORK_COMMITS) : ROUTE_NO_MEMORY;
    if (outcome != ROUTE_READY) return outcome == ROUTE_LATER ? WANTED_LATER : WANTED;
    for (uint32_t i = 0; i < topic->consumer_count; i++)
        if (topic->consumers[i]->qos) return WANTED;
    return topic->target_count || topic->grouped ? WANTED_BY_QOS0 : WANTED_BY_NOBODY;
}

/* ---- dead letters that wait for the WAL -------------------------------------------------------------------------- */

/* In LSN order over all consumers: the oldest keeps the WAL's oldest segment, so it gets free room first. */
static void line_join(broker_t *broker, delivery_t *delivery) {
    dead_letters_t *letters = &broker->dead_letters;
    delivery_t *before = letters->last;
    while (before && before->lsn > delivery->lsn) before = before->letter_previous;
    delivery->letter_previous = before;
    delivery->letter_next = before ? before->letter_next : letters->first;
    *(before ? &before->letter_next : &letters->first) = delivery;
    *(delivery->letter_next ? &delivery->letter_next->letter_previous : &letters->last) = delivery;
    delivery->dead_letter_waits = true;
    wheel_remove(&broker->wheel, &delivery->hold.timer.wheel);
}

static void line_leave(broker_t *broker, delivery_t *delivery) {
    dead_letters_t *letters = &broker->dead_letters;
    if (!delivery->dead_letter_waits) return;
    *(delivery->letter_previous ? &delivery->letter_previous->letter_next : &letters->first) = delivery->letter_next;
    *(delivery->letter_next ? &delivery->letter_next->letter_previous : &letters->last) = delivery->letter_previous;
    delivery->dead_letter_waits = false;
}

/* ---- sending ----------------------------------------------------------------------------------------------------- */

/* 0: settled, or waiting for the commit. Otherwise the reason to wait. */
static int64_t dead_letter_try(broker_t *broker, delivery_t *delivery) {
    uint8_t topic[TOPIC_BYTES_MAX], properties[DEAD_LETTER_PROPERTIES_BYTES_MAX];
    const message_t from = delivery_message(delivery);
    dead_letter_t letter = {.delivery = delivery};
    letter.message = (message_t){.topic = topic,
                                 .topic_size = topic_write(topic, from.topic, from.topic_size),
                                 .properties = properties,
                                 .properties_size = dead_letter_properties(properties, from.topic, from.topic_size, delivery->id,
                                                                           delivery->deliveries, delivery->over),
                                 .payload = from.payload,
                                 .payload_size = from.payload_size};
    letter.cut = letter.message.topic_size != PREFIX_BYTES + from.topic_size;
    enum wanted wanted = wanted_by(broker, topic, letter.message.topic_size);
    if (wanted == WANTED_LATER) return BQ_E_AGAIN;
    if (wanted == WANTED) {
        int64_t lsn = commit_dead_letter(broker, &letter);
        return lsn > 0 ? 0 : lsn;
    }
    if (wanted == WANTED_BY_QOS0 && !commit_dead_letter_follow(broker, &letter)) return BQ_E_MEMORY;
    broker->stats.dead_letters_unclaimed += wanted == WANTED_BY_NOBODY;
    delivery_dead(broker, delivery);
    return 0;
}

static void drop(broker_t *broker, delivery_t *delivery) {
    broker->stats.dead_letters_dropped++;
    delivery_dead(broker, delivery);
}

/* The oldest message in the WAL, if it waits for its dead letter: once it is written or dropped, the WAL can delete it. */
static delivery_t *letter_that_keeps_the_wal(const broker_t *broker) {
    const consumer_t *oldest = NULL;
    for (const consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next) {
        bool holds = consumer->durable && (consumer->head || consumer->behind);
        if (holds && (!oldest || consumer->floor_lsn < oldest->floor_lsn)) oldest = consumer;
    }
    return oldest && oldest->head && oldest->head->dead_letter_waits ? oldest->head : NULL;
}

/* Drops only messages that make room: the oldest are in the segment that is deleted next. */
static void drop_oldest(broker_t *broker) {
    dead_letters_t *letters = &broker->dead_letters;
    delivery_t *delivery = letter_that_keeps_the_wal(broker);
    if (!delivery) return;
    letters->drops = letters->drops ? 2 * letters->drops : 1;
    if (letters->drops > DEAD_LETTER_DROPS_MAX) letters->drops = DEAD_LETTER_DROPS_MAX;
    for (uint32_t i = 0; i < letters->drops && delivery; i++) {
        drop(broker, delivery);
        delivery = letter_that_keeps_the_wal(broker);
    }
    letters->patience_ms = DEAD_LETTER_PATIENCE_NEXT_MS;
}

/* The WAL has refused the first in line. A full WAL gets some time. */
static void refused(broker_t *broker, int64_t error) {
    dead_letters_t *letters = &broker->dead_letters;
    letters->due_ms = broker->now_ms + (error == BQ_E_AGAIN   ? broker->config.tick_ms
                                        : error == WAL_E_FULL ? RETRY_FULL_MS
                                                              : RETRY_OTHER_MS);
    if (!letters->patience_ms) letters->patience_ms = DEAD_LETTER_PATIENCE_MS; /* the WAL was full before the first dead letter */
    if (error == WAL_E_FULL && !letters->refused_ms)
        letters->refused_ms = broker->now_ms;
    else if (error == WAL_E_FULL && broker->now_ms >= letters->refused_ms + letters->patience_ms)
        drop_oldest(broker);
    else if (error != WAL_E_FULL && error != BQ_E_AGAIN)
        letters->refused_ms = 0;
}

static void taken(broker_t *broker, delivery_t *delivery) {
    line_leave(broker, delivery);
    broker->dead_letters.refused_ms = 0;
    broker->dead_letters.drops = 0;
}

/* The WAL is full for the first in line. If another one keeps the WAL full, it goes first. */
static bool overtaken(broker_t *broker, const delivery_t *first) {
    delivery_t *delivery = letter_that_keeps_the_wal(broker);
    if (!delivery || delivery == first) return false;
    const consumer_t *consumer = delivery->consumer;
    if (dead_letter_try(broker, delivery) < 0) return false;
    if (consumer->head == delivery && delivery->letter) taken(broker, delivery); /* otherwise it is settled and freed */
    return true;
}

void dead_letters_turn(broker_t *broker) {
    dead_letters_t *letters = &broker->dead_letters;
    if (!letters->first || broker->now_ms < letters->due_ms) return;
    if (!broker->wal || wal_state(broker->wal) != WAL_E_FULL) letters->patience_ms = DEAD_LETTER_PATIENCE_MS;
    for (uint64_t stop = work_done(broker) + WORK_COMMITS; letters->first && work_done(broker) < stop;) {
        broker->stats.work += WORK_QOS1;
        delivery_t *delivery = letters->first;
        if (delivery->expiry_tick && delivery->expiry_tick <= broker->wheel.now) {
            consumer_timeout(broker, delivery); /* settles it: expired */
            continue;
        }
        int64_t error = dead_letter_try(broker, delivery);
        if (error == BQ_E_TOO_LARGE || (error == WAL_E_FULL && delivery->over)) { /* the quota has to make room */
            drop(broker, delivery);
        } else if (error == WAL_E_FULL && overtaken(broker, delivery)) {
            continue;
        } else if (error < 0) {
            refused(broker, error);
            return;
        } else if (letters->first == delivery) { /* waiting for the commit */
            taken(broker, delivery);
        }
    }
}

uint64_t dead_letters_due_ms(const broker_t *broker) {
    return broker->dead_letters.first ? broker->dead_letters.due_ms : UINT64_MAX;
}

void dead_letter_send(broker_t *broker, delivery_t *delivery) {
    delivery->given_up = true;
    if (delivery->letter || delivery->dead_letter_waits) return;
    const message_t message = delivery_message(delivery);
    if (is_letter(&message)) {
        broker->stats.dead_letters_dropped += delivery->over;
        delivery_dead(broker, delivery);
        return;
    }
    if (!broker->dead_letters.first) broker->dead_letters.due_ms = broker->now_ms; /* at the end of this turn */
    line_join(broker, delivery);
}

void dead_letter_forget(broker_t *broker, delivery_t *delivery) {
    if (delivery->letter) delivery->letter->delivery = NULL;
    line_leave(broker, delivery);
}

void dead_letter_written(broker_t *broker, delivery_t *delivery, bool durable) {
    delivery->letter = NULL;
    if (durable) {
        delivery_dead(broker, delivery);
        return;
    }
    if (!broker->dead_letters.first) broker->dead_letters.due_ms = broker->now_ms + RETRY_OTHER_MS;
    line_join(broker, delivery);
}
