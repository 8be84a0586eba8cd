/* broker/consumer.c: the window of a consumer: adding, sending and settling deliveries. The picture and the invariants are in
 * broker/consumer.h. */
#include "broker/delivery_lookup.h"
#include "broker/commit.h"
#include "broker/budget.h"
#include "broker/broker.h"

#define BACKOFF_DOUBLINGS_MAX 5u /* the ack timeout doubles up to 32 times its value */

/* ---- the window -------------------------------------------------------------------------------------------------- */

void consumer_pump_later(broker_t *broker, consumer_t *consumer) {
    if (consumer->pumping) return;
    consumers_t *consumers = &broker->consumers;
    consumer->pumping = true;
    consumer->pump_next = NULL;
    consumer->pump_link = consumers->pump_tail;
    *consumers->pump_tail = consumer;
    consumers->pump_tail = &consumer->pump_next;
    consumers->pump_count++;
}

void consumer_pump_never(broker_t *broker, consumer_t *consumer) {
    if (!consumer->pumping) return;
    consumer->pumping = false;
    *consumer->pump_link = consumer->pump_next;
    if (consumer->pump_next)
        consumer->pump_next->pump_link = consumer->pump_link;
    else
        broker->consumers.pump_tail = consumer->pump_link;
    broker->consumers.pump_count--;
}

void consumer_floor_update(broker_t *broker, consumer_t *consumer) {
    if (consumer->head && !(consumer->behind && consumer->next_lsn < consumer->head->lsn))
        consumer->floor_lsn = consumer->head->lsn - 1;
    else
        consumer->floor_lsn = consumer->behind ? consumer->next_lsn - 1 : broker->dispatched_lsn;
}

static delivery_t **marked_slot(broker_t *broker, uint64_t id) { return &broker->consumers.marked[id % MARKED_SLOTS]; }

void delivery_free(broker_t *broker, delivery_t *delivery) {
    consumer_t *consumer = delivery->consumer;
    flight_forget(broker, delivery);
    if (delivery->given_up) dead_letter_forget(broker, delivery);
    if (BQ_UNLIKELY(delivery->marked) && *marked_slot(broker, delivery->id) == delivery)
        *marked_slot(broker, delivery->id) = NULL;
    if (consumer->cursor == delivery) consumer->cursor = delivery->next;
    if (delivery->previous)
        delivery->previous->next = delivery->next;
    else
        consumer->head = delivery->next;
    if (delivery->next)
        delivery->next->previous = delivery->previous;
    else
        consumer->tail = delivery->previous;
    consumer->window_count--;
    consumer->window_bytes -= delivery->hold.size;
    wheel_remove(&broker->wheel, &delivery->hold.timer.wheel);
    buffer_unlink(&broker->buffers, &delivery->hold);
    pool_free(&broker->pool, delivery, sizeof *delivery);
}

/* Settles one delivery and counts the reason in `counter`. */
static void delivery_settle(broker_t *broker, delivery_t *delivery, uint64_t *counter, uint64_t *total) {
    consumer_t *consumer = delivery->consumer;
    (*counter)++;
    (*total)++;
    broker->stats.enqueued++; /* counted at the end, so that the sum over all outcomes is always correct */
    consumer->settled++;
    if (BQ_UNLIKELY(delivery->previous != NULL)) { /* settled before an older one */
        if (delivery->lsn > consumer->touched_lsn) consumer->touched_lsn = delivery->lsn;
        if (delivery->lsn > consumer->hole_lsn) consumer->hole_lsn = delivery->lsn;
    }
    delivery_free(broker, delivery);
    consumer_floor_update(broker, consumer);
    consumer_pump_later(broker, consumer);
}

/* Room for the deliveries in flight and as many again, so that the next ones are ready when acknowledgements come. A consumer
 * that is not durable cannot read the rest from the WAL: its window is its queue, with the usual queue limit. */
bool consumer_has_room(const broker_t *broker, const consumer_t *consumer, uint32_t size) {
    if (consumer->window_count && budget_over(broker)) return false;
    uint32_t count_max = broker->config.max_in_flight * (consumer->member_count > 1 ? consumer->member_count + 1 : 2);
    if (!consumer->durable && count_max < broker->config.subscriber_messages) count_max = broker->config.subscriber_messages;
    return consumer->window_count == 0 ||
           (consumer->window_count < count_max && consumer->window_bytes + size <= broker->config.subscriber_bytes);
}

/* Sets each field: gcc compiles clearing this size to a slow `rep stos`. The fields of a hold that only queue entries use are
 * never read. */
static inline void delivery_init(delivery_t *delivery, consumer_t *consumer, uint32_t offset, uint32_t size) {
    delivery->hold.timer.kind = TIMER_DELIVERY;
    delivery->hold.timer.wheel.next = NULL;
    delivery->hold.timer.wheel.link = NULL;
    delivery->hold.other = NULL;
    delivery->hold.offset = offset;
    delivery->hold.size = size;
    delivery->consumer = consumer;
    delivery->now.member = NULL;
    delivery->late = NULL;
    delivery->deliveries = 0;
    delivery->place = DELIVERY_WAITS;
    delivery->redelivered = delivery->marked = delivery->killed = delivery->alone = false;
    delivery->given_up = delivery->over = delivery->dead_letter_waits = false;
    delivery->packet_id = 0;
    delivery->letter = NULL;
}

/* Adds a frame in a buffer to the window, usually at the end. */
delivery_t *delivery_add(broker_t *broker, consumer_t *consumer, buffer_t *buffer, uint32_t offset, uint32_t size, uint64_t lsn,
                         uint64_t id, uint64_t expiry_tick) {
    delivery_t *delivery = pool_alloc(&broker->pool, sizeof *delivery);
    if (!delivery) return NULL;
    delivery_t *before = consumer->tail;
    /* a given-up delivery stays when the window is released */
    while (BQ_UNLIKELY(before && before->lsn > lsn)) before = before->previous;
    core_assert(!before || before->lsn < lsn); /* a message is in a window once */
    delivery_init(delivery, consumer, offset, size);
    delivery->previous = before;
    delivery->next = before ? before->next : consumer->head;
    delivery->lsn = lsn;
    delivery->id = id;
    delivery->expiry_tick = expiry_tick;
    delivery->redelivered = lsn <= consumer->doubtful_lsn;
    buffer_link(buffer, &delivery->hold);
    *(before ? &before->next : &consumer->head) = delivery;
    *(delivery->next ? &delivery->next->previous : &consumer->tail) = delivery;
    if (!consumer->cursor || consumer->cursor->lsn > lsn) consumer->cursor = delivery;
    consumer->window_count++;
    consumer->window_bytes += size;
    if (expiry_tick) wheel_insert(&broker->wheel, &delivery->hold.timer.wheel, expiry_tick);
    return delivery;
}

void delivery_recall(broker_t *broker, delivery_t *delivery, const history_entry_t *entry) {
    delivery->deliveries = entry->deliveries;
    delivery->redelivered |= entry->deliveries > 0 || entry->flags & HISTORY_REDELIVERED;
    delivery->killed = (entry->flags & HISTORY_KILLED) != 0;
    if (delivery->deliveries >= broker->config.max_deliveries) dead_letter_send(broker, delivery); /* no try is left */
}

void consumer_fall_behind(broker_t *broker, consumer_t *consumer, uint64_t lsn) {
    if (consumer->behind) return;
    consumer->behind = true;
    consumer->next_lsn = lsn;
    consumer->behind_stamp_ms = 0;
    consumer_pump_later(broker, consumer); /* needed if the window is empty: no acknowledgement will come */
}

/* The window is the queue, and deliveries in flight cannot be removed. So the new message is dropped under every policy. */
static void overflow(broker_t *broker, consumer_t *consumer) {
    consumer->dropped_queue_full++;
    broker->stats.dropped_queue_full++;
    broker->stats.enqueued++;
}

/* ---- sending ----------------------------------------------------------------------------------------------------- */

static void bytes_move(broker_t *broker, delivery_t *delivery, buffer_t *buffer, uint32_t offset) {
    buffer_unlink(&broker->buffers, &delivery->hold);
    delivery->hold.offset = offset;
    buffer_link(buffer, &delivery->hold);
    delivery->marked = true;
}

/* Writes a copy of the frame with the redelivered flag. Other consumers may still be sending the old bytes, so they stay
 * unchanged. */
static bool mark_redelivered(broker_t *broker, delivery_t *delivery) {
    delivery_t **slot = marked_slot(broker, delivery->id), *other = *slot;
    uint32_t size = delivery->hold.size;
    if (other && other->id == delivery->id && other->hold.size == size) {
        bytes_move(broker, delivery, other->hold.buffer, other->hold.offset);
        return true;
    }
    uint8_t *out = budget_over(broker) && delivery->consumer->flight_count ? NULL : shared_reserve(broker, size);
    if (!out) return false;
    memcpy(out, delivery->hold.buffer->bytes + delivery->hold.offset, size);
    message_mark_redelivered(out);
    buffer_t *buffer = broker->buffers.open;
    uint32_t offset = buffer->used;
    buffer_commit(&broker->buffers, size);
    bytes_move(broker, delivery, buffer, offset);
    *slot = delivery;
    return true;
}

/* Writes a copy of the frame for a QoS 0 member. */
static bool quiet_copy(broker_t *broker, const delivery_t *delivery, queue_run_t *run) {
    if (budget_over(broker)) { /* each group needs its own copy: wait for memory */
        consumer_pump_later(broker, delivery->consumer);
        return false;
    }
    uint8_t *out = shared_reserve(broker, run->size);
    if (!out) return false;
    memcpy(out, delivery->hold.buffer->bytes + delivery->hold.offset, run->size);
    message_mark_qos0(out);
    run->buffer = broker->buffers.open;
    run->offset = run->buffer->used;
    buffer_commit(&broker->buffers, run->size);
    return true;
}

/* ---- packets: copies for clients with packet ids ---- */

/* Seconds until the message expires, at least 1; 0: never. */
static uint32_t expiry_s(const broker_t *broker, const delivery_t *delivery) {
    if (!delivery->expiry_tick) return 0;
    uint64_t ticks = delivery->expiry_tick > broker->wheel.now ? delivery->expiry_tick - broker->wheel.now : 1;
    uint64_t seconds = (ticks * broker->config.tick_ms + 999) / 1000;
    return seconds < UINT32_MAX ? (uint32_t)seconds : UINT32_MAX;
}

static encoding_delivery_t packet_of(const broker_t *broker, const delivery_t *delivery, const client_t *client) {
    return (encoding_delivery_t){.message = delivery_message(delivery),
                                 .expiry_s = expiry_s(broker, delivery),
                                 .encoding = client->queue.encoding,
                                 .qos = 1};
}

static NOINLINE bool packet_too_large(const broker_t *broker, const delivery_t *delivery, const client_t *client) {
    const encoding_delivery_t packet = packet_of(broker, delivery, client);
    uint32_t size = encoding_delivery_write(NULL, &packet);
    return !size || size > client->packets->bytes_max;
}

/* False: no packet id is free, or no memory. */
static NOINLINE bool packet_copy(broker_t *broker, delivery_t *delivery, client_t *client, queue_run_t *run) {
    if (!flight_room(&client->packets->ids)) return false;
    if (budget_over(broker) && delivery->consumer->flight_count) return false;
    encoding_delivery_t packet = packet_of(broker, delivery, client);
    run->size = encoding_delivery_write(NULL, &packet);
    uint8_t *out = shared_reserve(broker, run->size);
    const flight_t *flight = out ? flight_add(&client->packets->ids, &broker->pool, delivery->id, 1) : NULL;
    if (!flight) {
        consumer_pump_later(broker, delivery->consumer);
        return false;
    }
    packet.packet_id = delivery->packet_id = flight->id;
    packet.message = delivery_message(delivery); /* its bytes may have moved */
    encoding_delivery_write(out, &packet);
    run->buffer = broker->buffers.open;
    run->offset = run->buffer->used;
    buffer_commit(&broker->buffers, run->size);
    return true;
}

static uint64_t ack_timeout_ms(const broker_t *broker, const delivery_t *delivery) {
    uint32_t doublings = delivery->deliveries < BACKOFF_DOUBLINGS_MAX ? delivery->deliveries : BACKOFF_DOUBLINGS_MAX;
    return (uint64_t)broker->config.ack_timeout_ms << doublings;
}

/* A message whose last connection closed before an ack, and that has one try left, is sent alone. If the connection closes again,
 * other deliveries must not be affected. */
static bool tries_alone(const broker_t *broker, const delivery_t *delivery) {
    return delivery->killed && delivery->deliveries + 1 >= broker->config.max_deliveries;
}

static bool send_to(broker_t *broker, delivery_t *delivery, member_t *member) {
    client_t *client = member->client;
    bool plain = BQ_LIKELY(!client->packets);
    if (BQ_UNLIKELY(delivery->redelivered) && plain && !delivery->marked && !mark_redelivered(broker, delivery)) return false;
    queue_run_t run = {.buffer = delivery->hold.buffer, .offset = delivery->hold.offset, .size = delivery->hold.size};
    if (BQ_UNLIKELY(!plain) && !packet_copy(broker, delivery, client, &run)) return false;
    if (BQ_UNLIKELY(!member->qos) && !quiet_copy(broker, delivery, &run)) return false;
    if (!queue_push_kept(&client->queue, &broker->queues, &run, &delivery->hold)) {
        if (!plain) flight_cancel(&client->packets->ids, delivery->packet_id);
        return false;
    }
    client_mark_dirty(broker, client, broker->flush_order);
    flight_begin(broker, delivery, member);
    broker->stats.work += WORK_DELIVERY;
    if (BQ_UNLIKELY(delivery->killed)) delivery->alone = member->alone = tries_alone(broker, delivery);
    return true;
}

void delivery_handed(void *context, queue_entry_t *hold) {
    broker_t *broker = context;
    delivery_t *delivery = (delivery_t *)(void *)hold;
    consumer_t *consumer = delivery->consumer;
    uint64_t settled = 0;
    delivery->place = DELIVERY_HANDED;
    if (delivery->lsn > consumer->touched_lsn) consumer->touched_lsn = delivery->lsn;
    if (delivery->redelivered) {
        consumer->redelivered++;
        broker->stats.redelivered++;
    }
    if (BQ_UNLIKELY(delivery->now.member->client->packets != NULL)) {
        wheel_remove(&broker->wheel, &delivery->hold.timer.wheel); /* it is sent again only to a client that comes back */
    } else if (delivery->now.member->qos) {
        timer_set(broker, &delivery->hold.timer, ack_timeout_ms(broker, delivery));
        delivery->deliveries++;
    } else {
        delivery_settle(broker, delivery, &settled, &broker->stats.delivered);
    }
}

/* The next live member with fewer than `flight_max` messages in flight; NULL: none. A group may have thousands of members: when
 * none can take more, the search is not repeated until one can. */
static member_t *member_in_turn(broker_t *broker, consumer_t *consumer, uint32_t flight_max) {
    if (flight_max <= consumer->full_at) return NULL;
    for (uint32_t i = 0; i < consumer->member_count; i++) {
        member_t *member = consumer->turn ? consumer->turn : consumer->members;
        consumer->turn = member->next;
        if (!member->client->live || member->flight_count >= flight_max || member->alone) continue;
        if (BQ_UNLIKELY(i >= WORK_MEMBERS)) broker->stats.work += i / WORK_MEMBERS;
        return member;
    }
    broker->stats.work += consumer->member_count / WORK_MEMBERS;
    consumer->full_at = flight_max;
    return NULL;
}

client_t *consumer_turn(consumer_t *consumer) {
    for (uint32_t i = 0; i < consumer->member_count; i++) {
        member_t *member = consumer->turn ? consumer->turn : consumer->members;
        consumer->turn = member->next;
        if (member->client->live) return member->client;
    }
    return NULL;
}

/* Appends one record with the floor, for any number of acks. False: the WAL accepts nothing now. */
static bool floor_append(broker_t *broker, consumer_t *consumer) {
    if (!consumer->durable || consumer->settled == consumer->settled_logged || consumer->floor_lsn <= consumer->floor_logged)
        return true;
    uint64_t ack[2] = {consumer->id, consumer->floor_lsn};
    wal_part_t part = {ack, sizeof ack};
    int64_t lsn = wal_append(broker->wal, WAL_ACK, 0, &part, 1, WAL_URGENT);
    if (lsn < 0) return false;
    consumer->floor_logged = consumer->floor_lsn;
    consumer->settled_logged = consumer->settled;
    consumer->floor_record_lsn = (uint64_t)lsn;
    return true;
}

/* After a crash, deliveries settled since the newest durable floor and those in flight are sent again. This limits them to two
 * windows. True: sending waits for a commit, which is requested here. A WAL that accepts nothing stops no delivery. */
static bool waits_for_floor(broker_t *broker, consumer_t *consumer) {
    if (!consumer->durable || wal_state(broker->wal)) return false;
    uint64_t durable = wal_durable(broker->wal);
    if (durable >= consumer->waited_lsn) { /* track one record until it is durable: newer floor records follow without end */
        consumer->settled_safe = consumer->waited_settled;
        consumer->waited_lsn = consumer->floor_record_lsn;
        consumer->waited_settled = consumer->settled_logged;
    }
    if (durable >= consumer->floor_record_lsn) consumer->settled_safe = consumer->settled_logged;
    uint64_t unsafe = consumer->settled_logged - consumer->settled_safe;
    if (consumer->floor_lsn > consumer->floor_logged) unsafe += consumer->settled - consumer->settled_logged;
    if (unsafe + consumer->flight_count < 2ull * broker->config.max_in_flight * consumer->member_count) return false;
    broker->commit_wanted |= unsafe > 0;
    return unsafe > 0;
}

/* Limited to one turn's work: the window of a group has room for each of its members. */
static void send_window(broker_t *broker, consumer_t *consumer) {
    const uint64_t stop = work_done(broker) + WORK_COMMITS;
    while (consumer->cursor && consumer->member_count) {
        delivery_t *delivery = consumer->cursor;
        if (delivery->place == DELIVERY_WAITS && !delivery->given_up) {
            if (BQ_UNLIKELY(delivery->expiry_tick && delivery->expiry_tick <= broker->wheel.now)) {
                consumer->cursor = delivery->next; /* it came back from a member after its expiry */
                consumer_timeout(broker, delivery);
                continue;
            }
            bool enough = work_done(broker) >= stop;
            if (BQ_UNLIKELY(enough) || waits_for_floor(broker, consumer)) {
                broker->commits_left |= enough;
                consumer_pump_later(broker, consumer);
                break;
            }
            member_t *member = member_in_turn(broker, consumer, tries_alone(broker, delivery) ? 1 : broker->config.max_in_flight);
            if (member && BQ_UNLIKELY(member->client->packets != NULL) && packet_too_large(broker, delivery, member->client)) {
                delivery_settle(broker, delivery, &consumer->dropped_queue_full, &broker->stats.dropped_queue_full);
                continue;
            }
            if (!member || !send_to(broker, delivery, member)) break;
        }
        consumer->cursor = delivery->next;
    }
}

/* Sends what can be sent, and reads more if the window runs low. */
static void pump(broker_t *broker, consumer_t *consumer) {
    send_window(broker, consumer);
    if (consumer->behind && consumer_read_on(broker, consumer)) send_window(broker, consumer);
}

bool consumer_offer(broker_t *broker, consumer_t *consumer, const pending_commit_t *pending) {
    for (member_t *member = consumer->members; member && !consumer->grouped; member = member->next)
        member->client->dispatch_mark = pending->lsn;
    consumer->enqueued++;
    if (consumer->behind) { /* the WAL has it at next_lsn or later */
        consumer_behind_add(consumer, pending->hold.size, pending->timestamp_ms);
        return true;
    }
    bool room = consumer_has_room(broker, consumer, pending->hold.size) && (consumer->members || !consumer->durable);
    if (room && delivery_add(broker, consumer, pending->hold.buffer, pending->hold.offset, pending->hold.size, pending->lsn,
                             pending->id, pending->expiry_tick)) {
        pump(broker, consumer); /* send now, to keep the order with later QoS 0 messages */
        return true;
    }
    if (consumer->durable) {
        consumer_fall_behind(broker, consumer, pending->lsn);
        consumer_behind_add(consumer, pending->hold.size, pending->timestamp_ms);
        return true;
    }
    overflow(broker, consumer);
    return false;
}

/* Serves as many consumers as fit one turn's work; the next turn serves the rest. */
void consumer_pump_all(broker_t *broker) {
    uint64_t stop = work_done(broker) + WORK_COMMITS;
    dead_letters_turn(broker);
    consumer_reads_turn(broker);
    for (uint32_t left = broker->consumers.pump_count; left && broker->consumers.pump; left--) {
        if (work_done(broker) >= stop) {
            broker->commits_left = true;
            return;
        }
        consumer_t *consumer = broker->consumers.pump;
        consumer_pump_never(broker, consumer);
        broker->stats.work += WORK_DELIVERY;
        pump(broker, consumer);
        if (!floor_append(broker, consumer))
            consumer_pump_later(broker, consumer); /* the WAL is full now: retry after the next commit */
    }
}

/* The clock became synchronized after the start: messages found at the start are older than assumed. */
void consumers_aged(broker_t *broker, uint64_t ms) {
    uint64_t ticks = ms / broker->config.tick_ms;
    for (consumer_t *consumer = broker->consumers.all; consumer; consumer = consumer->next) {
        consumer->sweep_due_ms = 0;
        for (delivery_t *delivery = consumer->head; delivery && delivery->lsn <= broker->found_lsn; delivery = delivery->next) {
            if (!delivery->expiry_tick) continue;
            uint64_t soonest = broker->wheel.now + 1;
            delivery->expiry_tick = delivery->expiry_tick > soonest + ticks ? delivery->expiry_tick - ticks : soonest;
            if (delivery->place == DELIVERY_HANDED) continue; /* its ack timer will check the expiry */
            wheel_remove(&broker->wheel, &delivery->hold.timer.wheel);
            wheel_insert(&broker->wheel, &delivery->hold.timer.wheel, delivery->expiry_tick);
        }
    }
}

/* ---- acknowledgements and timers --------------------------------------------------------------------------------- */

void consumer_ack(broker_t *broker, client_t *client, uint64_t id) {
    if (!client->members) return;
    assignment_t *assignment = *flight_slot(&broker->consumers, id, client);
    while (assignment) {
        delivery_t *delivery = assignment->delivery;
        bool acknowledged = delivery->id == id && assignment->member->client == client;
        assignment = assignment->chain;
        if (!acknowledged) continue;
        while (BQ_UNLIKELY(assignment && assignment->delivery == delivery))
            assignment = assignment->chain; /* of the same delivery, removed with it */
        broker->stats.delivered++;
        delivery_settle(broker, delivery, &delivery->consumer->acked, &broker->stats.acked);
    }
}

void consumer_packet_acked(broker_t *broker, client_t *client, uint16_t packet_id, uint64_t id, bool refused) {
    for (member_t *member = client->members; member; member = member->client_next)
        consumer_pump_later(broker, member->consumer); /* a packet id is free */
    assignment_t *assignment = *flight_slot(&broker->consumers, id, client);
    while (assignment && !(assignment->delivery->id == id && assignment->member->client == client &&
                           assignment->delivery->packet_id == packet_id))
        assignment = assignment->chain;
    if (!assignment) return;
    delivery_t *delivery = assignment->delivery;
    if (refused) {
        dead_letter_send(broker, delivery);
        return;
    }
    broker->stats.delivered++;
    delivery_settle(broker, delivery, &delivery->consumer->acked, &broker->stats.acked);
}

void delivery_wait(broker_t *broker, delivery_t *delivery) {
    consumer_t *consumer = delivery->consumer;
    wheel_remove(&broker->wheel, &delivery->hold.timer.wheel);
    if (delivery->expiry_tick) wheel_insert(&broker->wheel, &delivery->hold.timer.wheel, delivery->expiry_tick);
    if (!consumer->cursor || consumer->cursor->lsn > delivery->lsn) consumer->cursor = delivery;
    consumer_pump_later(broker, consumer);
}

void delivery_over(broker_t *broker, delivery_t *delivery) {
    delivery_settle(broker, delivery, &delivery->consumer->dropped_session_log, &broker->stats.dropped_session_log);
}

void delivery_dead(broker_t *broker, delivery_t *delivery) {
    delivery_settle(broker, delivery, &delivery->consumer->dead_lettered, &broker->stats.dead_lettered);
}

void delivery_left(broker_t *broker, delivery_t *delivery) {
    delivery->redelivered = true;
    delivery->killed = !delivery->packet_id;
    delivery->packet_id = 0;
    delivery_wait(broker, delivery);
    if (delivery->killed && delivery->deliveries >= broker->config.max_deliveries) dead_letter_send(broker, delivery);
}

void consumer_timeout(broker_t *broker, delivery_t *delivery) {
    consumer_t *consumer = delivery->consumer;
    bool expired = delivery->expiry_tick && delivery->expiry_tick <= broker->wheel.now;
    if (expired) {
        if (delivery->place == DELIVERY_QUEUED && queue_begun(&delivery->hold)) return; /* its ack timer will check again */
        delivery_settle(broker, delivery, &consumer->dropped_ttl, &broker->stats.dropped_ttl);
    } else if (delivery->given_up ||
               (delivery->place == DELIVERY_HANDED && delivery->deliveries >= broker->config.max_deliveries)) {
        dead_letter_send(broker, delivery);
    } else if (delivery->place == DELIVERY_HANDED) {
        flight_end(broker, delivery);
        delivery->redelivered = true;
        delivery->killed = false;
        delivery_wait(broker, delivery);
    }
}

/* No member is left: the WAL keeps the messages, so they need no memory. They are read back when a client connects, with the
 * redelivered flag if they were sent. A given-up delivery stays in memory until its dead letter is written. Messages from before
 * the consumer became durable may not be in the WAL any more: they are dropped, as for any consumer that is not durable. */
void consumer_window_leave(broker_t *broker, consumer_t *consumer) {
    consumer_read_abandon(broker, consumer); /* its messages would come before those released here */
    delivery_t *first = consumer->head;
    while (first && first->given_up) first = first->next;
    if (!first) return;
    consumer_history_keep(broker, consumer);
    consumer->behind = true;
    consumer->sweep_due_ms = 0;
    consumer->next_lsn = first->lsn > consumer->kept_lsn ? first->lsn : consumer->kept_lsn;
    consumer->behind_stamp_ms = delivery_message(first).timestamp_ms;
    for (delivery_t *delivery = first, *next; delivery; delivery = next) {
        next = delivery->next;
        if (delivery->given_up) continue;
        if (delivery->lsn < consumer->kept_lsn) {
            broker->stats.dropped_disconnect++;
            broker->stats.enqueued++;
        } else {
            consumer_behind_add(consumer, delivery->hold.size, 0);
        }
        delivery_free(broker, delivery);
    }
    consumer_floor_update(broker, consumer);
}
