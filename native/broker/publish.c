/* broker/publish.c: from a publish to the queues of its subscribers.
 *
 * Frames are encoded once into the open buffer and collected in a run. A run is appended to each queue as one entry. So the work
 * per subscriber is done per run, not per message.
 *
 * Invariant: the open run has one topic, whose targets do not change while the run is open. The routes close it before a change,
 * and shared_reserve closes it before other data is appended.
 */
#include "broker/budget.h"
#include "broker/broker.h"

/* Publishers with many topics usually publish to them in the same order, so the follower of the last topic is tried before the
 * cache. */
topic_t *publish_topic_find(broker_t *broker, topic_t *last, const uint8_t *name, uint32_t size, int *error) {
    topic_t *topic = last ? last->follower : NULL;
    if (topic && topic_is(topic, name, size)) {
        topic->recent = true;
        return topic;
    }
    topic = broker->open.run.buffer ? broker->open.topic : NULL;
    if (!topic || topic == last || !topic_is(topic, name, size)) {
        topic = route_topic(broker->routes, name, size, broker->config.max_topic_levels, error);
    }
    if (topic && last) last->follower = topic;
    return topic;
}

/* Appends with limits slightly below the queue's size, so that the overflow policy shrinks the queue by a sixteenth. */
static void push_squeezed(broker_t *broker, client_t *target, const queue_run_t *run) {
    const queue_t *queue = &target->queue;
    queue_env_t squeezed = broker->queues;
    squeezed.messages_max = queue->messages - queue->messages / 16;
    squeezed.bytes_max = queue->bytes - queue->bytes / 16;
    queue_push_dropping(&target->queue, &squeezed, run, broker->config.overflow_policy);
}

/* Before messages are dropped, a full queue is flushed if its socket may accept data. So messages are lost only if the client is
 * slow, not because many publishers were read in one turn. */
static NOINLINE void push_to_slow(broker_t *broker, client_t *target, const queue_run_t *run, enum flush_order order) {
    if (!target->blocked) client_drain(broker, target);
    broker->stats.work += 1 + run->count / WORK_DROPS;
    if (broker->config.overflow_policy == BQ_OVERFLOW_POLICY_BLOCK)
        queue_push(&target->queue, &broker->queues, run);
    else if (target->blocked && budget_over(broker))
        push_squeezed(broker, target, run);
    else
        queue_push_dropping(&target->queue, &broker->queues, run, broker->config.overflow_policy);
    client_mark_dirty(broker, target, order);
}

/* Appends a run to one subscriber's queue. */
static inline void push_to(broker_t *broker, client_t *target, const queue_run_t *run, enum flush_order order) {
    if (BQ_UNLIKELY(target->blocked || !queue_fits(&target->queue, &broker->queues, run->count, run->size))) {
        push_to_slow(broker, target, run, order);
        return;
    }
    queue_push(&target->queue, &broker->queues, run);
    client_mark_dirty(broker, target, order);
}

static bool has_room(const broker_t *broker, const client_t *target, uint32_t messages, uint64_t bytes) {
    if (target->blocked && target->queue.messages && budget_over(broker)) return false;
    return queue_fits(&target->queue, &broker->queues, messages, bytes);
}

/* The group's next live member with room, otherwise its next live member, otherwise NULL. */
static client_t *group_member(broker_t *broker, consumer_t *consumer, uint32_t messages, uint64_t bytes, bool *room) {
    client_t *first = NULL;
    *room = true;
    for (uint32_t i = 0; i < consumer->member_count; i++) {
        client_t *target = consumer_turn(consumer);
        broker->stats.work++;
        if (!target) return NULL;
        if (BQ_LIKELY(has_room(broker, target, messages, bytes))) return target;
        if (!target->blocked) client_drain(broker, target);
        if (has_room(broker, target, messages, bytes)) return target;
        if (!first) first = target;
    }
    *room = !first;
    return first;
}

/* Each queue group appends the run to one live member. With `all`, QoS 1 groups get it too. */
static void push_to_groups(broker_t *broker, const topic_t *topic, const queue_run_t *run, bool all) {
    bool room;
    for (uint32_t i = 0; i < topic->consumer_count; i++) {
        consumer_t *consumer = topic->consumers[i];
        if (!consumer->grouped || !(all || !consumer->qos)) continue;
        client_t *target = group_member(broker, consumer, run->count, run->size, &room);
        if (target) push_to(broker, target, run, FLUSH_NARROW);
    }
}

static NOINLINE void give_wide(broker_t *broker, const topic_t *topic, const queue_run_t *run) {
    broker->stats.work += (uint64_t)topic->target_count * WORK_WIDE;
    for (uint32_t i = 0; i < topic->target_count; i++) {
        client_t *target = topic->targets[i];
        if (BQ_LIKELY(target->live)) push_to(broker, target, run, FLUSH_WIDE);
    }
}

void publish_run_give(broker_t *broker) {
    queue_run_t run = broker->open.run;
    topic_t *topic = broker->open.topic;
    broker->open.run.buffer = NULL;
    broker->open.topic = NULL;
    if (BQ_UNLIKELY(topic->target_count > WIDE_TARGETS)) {
        give_wide(broker, topic, &run);
    } else {
        broker->stats.work += topic->target_count;
        for (uint32_t i = 0; i < topic->target_count; i++) {
            client_t *target = topic->targets[i];
            if (BQ_LIKELY(target->live)) push_to(broker, target, &run, FLUSH_NARROW);
        }
    }
    if (BQ_UNLIKELY(topic->grouped)) push_to_groups(broker, topic, &run, true);
}

uint64_t publish_ttl_ms(const broker_t *broker, uint64_t ttl_ms) {
    if (!ttl_ms) ttl_ms = broker->config.default_ttl_ms;
    return ttl_ms > broker->config.max_ttl_ms ? broker->config.max_ttl_ms : ttl_ms;
}

uint64_t publish_expiry_tick(const broker_t *broker, uint64_t from_ms, uint64_t ttl_ms) {
    return BQ_LIKELY(!ttl_ms) ? 0 : (from_ms + ttl_ms + broker->config.tick_ms - 1) / broker->config.tick_ms;
}

/* Block policy: whether all members of one of the topic's groups are full. Does not advance the member in turn. */
static bool group_full(broker_t *broker, const topic_t *topic, uint32_t size) {
    bool room = true;
    for (uint32_t i = 0; i < topic->consumer_count && room; i++) {
        consumer_t *consumer = topic->consumers[i];
        member_t *turn = consumer->turn;
        if (consumer->grouped) group_member(broker, consumer, 1, size, &room);
        consumer->turn = turn;
    }
    return !room;
}

/* Block policy: the room in the fullest target, or the waiters of a target that has no room for a frame of `size` bytes. */
static wait_list_t *room_for_run(broker_t *broker, const topic_t *topic, uint32_t size, uint32_t *count_max, uint32_t *size_max) {
    const queue_env_t *env = &broker->queues;
    for (uint32_t i = 0; i < topic->target_count; i++) {
        client_t *target = topic->targets[i];
        if (!target->live) continue;
        const queue_t *queue = &target->queue;
        if (!queue_fits(queue, env, 1, size) && !target->blocked) client_drain(broker, target);
        if (!has_room(broker, target, 1, size)) return &target->waiters;
        uint32_t messages = env->messages_max - queue->messages;
        uint64_t bytes = queue->bytes < env->bytes_max ? env->bytes_max - queue->bytes : 0;
        if (messages < *count_max) *count_max = messages;
        if (bytes < *size_max) *size_max = (uint32_t)bytes;
    }
    if (topic->grouped && group_full(broker, topic, size)) return &broker->group_waiters;
    if (*size_max < size) *size_max = size; /* a frame above the limit is sent alone through an empty queue, see queue_fits */
    return NULL;
}

/* True: open. False: *blocker is the list to wait in. */
static bool run_open(broker_t *broker, topic_t *topic, uint64_t tick, uint32_t size, wait_list_t **blocker) {
    /* A run fits an empty queue, so that a subscriber that keeps up loses nothing, for any limits and batch size. */
    const bq_config_t *config = &broker->config;
    uint32_t count_max = config->max_batch < config->subscriber_messages ? config->max_batch : config->subscriber_messages;
    if (config->run_messages && config->run_messages < count_max) count_max = config->run_messages;
    uint32_t size_max =
        config->max_batch_bytes < config->subscriber_bytes ? config->max_batch_bytes : (uint32_t)config->subscriber_bytes;
    if (broker->config.overflow_policy == BQ_OVERFLOW_POLICY_BLOCK) {
        *blocker = room_for_run(broker, topic, size, &count_max, &size_max);
        if (*blocker) return false;
    }
    if (topic->grouped) count_max = 1; /* members get messages in turn, one by one */
    buffer_t *buffer = broker->buffers.open;
    broker->open = (publish_run_t){.topic = topic, .count_max = count_max, .size_max = size_max > size ? size_max : size};
    broker->open.run = (queue_run_t){.buffer = buffer, .offset = buffer->used, .tick = tick};
    return true;
}

/* Whether a frame of `size` bytes can be added to the open run. */
static inline bool run_takes(const publish_run_t *open, const topic_t *topic, uint64_t tick, uint32_t size) {
    return open->run.buffer && open->topic == topic && open->run.tick == tick && open->run.count < open->count_max &&
           size <= open->size_max - open->run.size && size <= open->run.buffer->capacity - open->run.buffer->used;
}

/* Opens a new run for a frame that does not fit the open one. NOINLINE keeps the fast path short. */
static NOINLINE enum publish_outcome run_change(broker_t *broker, topic_t *topic, uint64_t tick, uint32_t size,
                                                wait_list_t **blocker) {
    if (!shared_reserve(broker, size)) return PUBLISH_NO_MEMORY;
    return run_open(broker, topic, tick, size, blocker) ? PUBLISH_DONE : PUBLISH_BLOCKED;
}

static inline void frame_append(broker_t *broker, const topic_t *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms) {
    queue_run_t *run = &broker->open.run;
    uint8_t *out = run->buffer->bytes + run->buffer->used;
    memcpy(out, topic->header, topic->header_size);
    header_patch(out, topic->header_size, broker->next_message_id, broker->wall_ms, ttl_ms, size);
    if (size) memcpy(out + topic->header_size, payload, size);
    buffer_commit(&broker->buffers, topic->header_size + size);
    run->size += topic->header_size + size;
    run->count++;
}

enum publish_outcome publish(broker_t *broker, topic_t *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                             wait_list_t **blocker) {
    ttl_ms = publish_ttl_ms(broker, ttl_ms);
    uint64_t tick = publish_expiry_tick(broker, broker->now_ms, ttl_ms);
    if (BQ_UNLIKELY(!route_is_current(broker->routes, topic))) {
        enum route_outcome outcome = route_resolve(broker->routes, topic, share_units(broker));
        if (outcome != ROUTE_READY) return outcome == ROUTE_LATER ? PUBLISH_LATER : PUBLISH_NO_MEMORY;
    }
    if (topic->target_count || topic->grouped) {
        if (BQ_UNLIKELY(!run_takes(&broker->open, topic, tick, topic->header_size + size))) {
            enum publish_outcome outcome = run_change(broker, topic, tick, topic->header_size + size, blocker);
            if (outcome != PUBLISH_DONE) return outcome;
        }
        frame_append(broker, topic, payload, size, ttl_ms);
    } else {
        broker->stats.unrouted++;
    }
    broker->next_message_id++;
    broker->stats.published++;
    broker->stats.published_bytes += size;
    return PUBLISH_DONE;
}

/* ---- after the commit -------------------------------------------------------------------------------------------- */

/* The topic's targets must be current. */
bool publish_full(broker_t *broker, const topic_t *topic, uint32_t size) {
    uint32_t count_max = UINT32_MAX, size_max = UINT32_MAX;
    broker->stats.work += topic->target_count;
    return room_for_run(broker, topic, topic->header_size + size, &count_max, &size_max) != NULL;
}

/* The first target from `i` on that has not received this message through a QoS 1 consumer. */
static uint32_t next_unserved(const topic_t *topic, const pending_commit_t *pending, uint32_t i) {
    for (; i < topic->target_count; i++) {
        const client_t *target = topic->targets[i];
        bool served = pending->kind == PENDING_PUBLISH && target->dispatch_mark == pending->lsn;
        if (target->live && !served) break;
    }
    return i;
}

/* Encodes the message again for QoS 0 subscribers. False: no memory. */
static bool pending_encode(broker_t *broker, const topic_t *topic, const pending_commit_t *pending, queue_run_t *run) {
    uint32_t size = pending->properties_size ? pending->hold.size : topic->header_size + pending->payload_size;
    uint8_t *out = shared_reserve(broker, size);
    if (!out) return false;
    if (pending->properties_size) {
        memcpy(out, pending_bytes_at(pending), size);
        message_mark_qos0(out);
    } else {
        memcpy(out, topic->header, topic->header_size);
        header_patch(out, topic->header_size, pending->id, pending->timestamp_ms, pending->ttl_ms, pending->payload_size);
        if (pending->payload_size) memcpy(out + topic->header_size, pending_message(pending).payload, pending->payload_size);
    }
    *run = (queue_run_t){.buffer = broker->buffers.open,
                         .offset = broker->buffers.open->used,
                         .size = size,
                         .count = 1,
                         .tick = pending->expiry_tick};
    buffer_commit(&broker->buffers, size);
    return true;
}

/* Sends one committed message to the QoS 0 subscribers. The WAL gives the order, so it is appended at once, as a run of its own.
 * Under the block policy the publisher has waited for room before. Usually all subscribers have the message through their
 * consumers, and nothing is encoded. */
void publish_pending(broker_t *broker, topic_t *topic, const pending_commit_t *pending) {
    queue_run_t run;
    broker->stats.work += topic->target_count;
    uint32_t i = next_unserved(topic, pending, 0);
    if (i == topic->target_count && !topic->grouped) return;
    if (!pending_encode(broker, topic, pending, &run)) return; /* out of memory: QoS 0 subscribers may lose the message */
    const enum flush_order order = topic->target_count > WIDE_TARGETS;
    for (; i < topic->target_count; i = next_unserved(topic, pending, i + 1)) push_to(broker, topic->targets[i], &run, order);
    if (topic->grouped) push_to_groups(broker, topic, &run, pending->kind == PENDING_FOLLOW);
}
