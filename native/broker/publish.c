/* broker/publish.c: from a publish to the queues of its subscribers.
 *
 * Frames are encoded once into the open buffer and collected in a run. A run is appended to each queue as one entry. So the work
 * per subscriber is done per run, not per message. A run has the encoding of its topic. If some targets have others, its messages
 * are encoded again when it is given to the first such target (run_forms_t).
 *
 * Invariants: the open run has one topic, whose targets do not change while the run is open: net/ closes it before the routes
 * change and before other data is appended. No function of broker/ sends: where a full queue must be drained, it sets
 * broker->full and returns, and net/ sends (net_drain) and calls it again.
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
        if (broker->open.run.buffer) {
            *error = PUBLISH_RUN_OPEN;
            return NULL;
        }
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

/* A full queue is drained before messages are dropped or a publisher waits, if its transport may accept data. So messages are
 * lost only if the client is slow, not because many publishers were read in one turn. net/ drains it, and the operation is called
 * again. Each client is drained once for an operation at most. */
static bool must_drain(broker_t *broker, client_t *target) {
    if (target->blocked || target->drain_round == broker->drain_round) return false;
    broker->full = target;
    return true;
}

static NOINLINE void push_to_slow(broker_t *broker, client_t *target, const queue_run_t *run, enum flush_order order) {
    broker->stats.work += 1 + run->count / WORK_DROPS;
    if (broker->config.overflow_policy == BQ_OVERFLOW_POLICY_BLOCK)
        queue_push(&target->queue, &broker->queues, run);
    else if (target->blocked && budget_over(broker))
        push_squeezed(broker, target, run);
    else
        queue_push_dropping(&target->queue, &broker->queues, run, broker->config.overflow_policy);
    client_mark_dirty(broker, target, order);
}

/* Appends a run to one subscriber's queue. False: not yet, its queue must be drained. */
static inline bool push_to(broker_t *broker, client_t *target, const queue_run_t *run, enum flush_order order) {
    if (BQ_UNLIKELY(target->blocked || !queue_fits(&target->queue, &broker->queues, run->count, run->size))) {
        if (must_drain(broker, target)) return false;
        push_to_slow(broker, target, run, order);
        return true;
    }
    queue_push(&target->queue, &broker->queues, run);
    client_mark_dirty(broker, target, order);
    return true;
}

static bool has_room(const broker_t *broker, const client_t *target, uint32_t messages, uint64_t bytes) {
    if (target->blocked && target->queue.messages && budget_over(broker)) return false;
    return queue_fits(&target->queue, &broker->queues, messages, bytes);
}

/* The group's next live member with room, otherwise its next live member, otherwise NULL. broker->full is set if a member must be
 * drained first; the group's turn is then unchanged. */
static client_t *group_member(broker_t *broker, consumer_t *consumer, uint32_t messages, uint64_t bytes, bool *room) {
    member_t *turn = consumer->turn;
    client_t *first = NULL;
    *room = true;
    for (uint32_t i = 0; i < consumer->member_count; i++) {
        client_t *target = consumer_turn(consumer);
        broker->stats.work++;
        if (!target) return NULL;
        if (BQ_LIKELY(has_room(broker, target, messages, bytes))) return target;
        if (must_drain(broker, target)) {
            consumer->turn = turn;
            return NULL;
        }
        if (!first) first = target;
    }
    *room = !first;
    return first;
}

/* ---- receivers with different encodings -------------------------------------------------------------------------- */

/* Messages to give to receivers: a run in the encoding of its topic, or a stored message. */
typedef struct run_source {
    const queue_run_t *run;
    topic_t *topic;
    run_forms_t *forms;
    enum encoding encoding;
    bool stored; /* with QoS 1: every receiver needs a form */
} run_source_t;

static NOINLINE bool form_make(broker_t *broker, const run_source_t *source, enum encoding encoding, queue_run_t *form) {
    const uint8_t *header = route_header(broker->routes, source->topic, encoding);
    uint8_t *const begin = header ? buffer_reserve(&broker->buffers, source->run->size) : NULL, *out = begin;
    if (!begin) return false;
    const uint8_t *from = source->run->buffer->bytes + source->run->offset;
    for (uint32_t i = 0; i < source->run->count; i++) {
        message_t message;
        encoding_read(source->encoding, from, &message);
        out += encoding_write(encoding, out, header, &message);
        from += encoded_size(source->encoding, from);
    }
    core_assert(out - begin <= (ptrdiff_t)source->run->size); /* see enum encoding */
    *form = *source->run;
    form->buffer = broker->buffers.open;
    form->offset = broker->buffers.open->used;
    form->size = (uint32_t)(out - begin);
    buffer_commit(&broker->buffers, form->size);
    broker->stats.work += form->count;
    return true;
}

/* A form may begin in a new buffer, so the buffers of the source and of all forms are held. NULL: no memory. */
static NOINLINE const queue_run_t *form_find(broker_t *broker, const run_source_t *source, enum encoding encoding) {
    run_forms_t *forms = source->forms;
    queue_run_t *form = &forms->runs[encoding];
    if (forms->made >> encoding & 1) return form;
    if (!forms->made) buffer_hold(forms->source = source->run->buffer);
    forms->made |= (uint8_t)(1u << ENCODINGS);
    if (!form_make(broker, source, encoding, form)) return NULL;
    buffer_hold(form->buffer);
    forms->made |= (uint8_t)(1u << encoding);
    return form;
}

static NOINLINE void forms_end(broker_t *broker, run_forms_t *forms) {
    for (uint32_t i = 0; i < ENCODINGS; i++)
        if (forms->made >> i & 1) buffer_let_go(&broker->buffers, forms->runs[i].buffer);
    buffer_let_go(&broker->buffers, forms->source);
    forms->made = 0;
}

/* Appends the messages to one subscriber's queue, in its encoding. False: as push_to. */
static bool push_form(broker_t *broker, client_t *target, const run_source_t *source, enum flush_order order) {
    const queue_run_t *run = source->run;
    if (source->stored || target->queue.encoding != source->encoding) run = form_find(broker, source, target->queue.encoding);
    if (BQ_LIKELY(run != NULL)) return push_to(broker, target, run, order);
    queue_refuse(&target->queue, &broker->queues, source->run->count);
    return true;
}

/* The queue group at `index` among the topic's consumers appends the messages to one live member. With `all`, a QoS 1 group gets
 * them too. False: a member must be drained first. */
static bool push_to_group(broker_t *broker, uint32_t index, const run_source_t *source, bool all) {
    bool room;
    consumer_t *consumer = source->topic->consumers[index]->consumer;
    if (!consumer->grouped || !(all || !consumer->qos)) return true;
    client_t *target = group_member(broker, consumer, source->run->count, source->run->size, &room);
    if (target) return push_form(broker, target, source, FLUSH_NARROW);
    return !broker->full;
}

static bool give_wide(broker_t *broker, const run_source_t *source) {
    const topic_t *topic = source->topic;
    const enum flush_order order = topic->target_count > WIDE_TARGETS;
    uint32_t *given = &broker->open.given;
    if (*given >= topic->target_count) return true;
    for (; *given < topic->target_count; ++*given) {
        client_t *target = topic->targets[*given];
        if (BQ_LIKELY(target->live) && !push_form(broker, target, source, order)) return false;
    }
    if (order) broker->stats.work += (uint64_t)topic->target_count * (WORK_WIDE - 1);
    return true;
}

static bool give_to_groups(broker_t *broker, const run_source_t *source) {
    const topic_t *topic = source->topic;
    uint32_t *given = &broker->open.given; /* it goes on counting behind the targets */
    if (*given < topic->target_count) *given = topic->target_count;
    for (; *given < topic->target_count + topic->consumer_count; ++*given)
        if (!push_to_group(broker, *given - topic->target_count, source, true)) return false;
    return true;
}

static NOINLINE bool give_otherwise(broker_t *broker) {
    publish_run_t *open = &broker->open;
    const run_source_t source = {
        .run = &open->run, .topic = open->topic, .forms = &open->forms, .encoding = open->topic->encoding};
    if (!give_wide(broker, &source)) return false;
    if (source.topic->grouped && !give_to_groups(broker, &source)) return false;
    if (open->forms.made) forms_end(broker, &open->forms);
    return true;
}

bool publish_run_give(broker_t *broker) {
    const queue_run_t *run = &broker->open.run;
    const topic_t *topic = broker->open.topic;
    if (BQ_UNLIKELY(topic->wide)) {
        if (!give_otherwise(broker)) return false;
    } else {
        for (uint32_t i = broker->open.given; i < topic->target_count; i++) {
            client_t *target = topic->targets[i];
            if (BQ_LIKELY(target->live) && BQ_UNLIKELY(!push_to(broker, target, run, FLUSH_NARROW))) {
                broker->open.given = i;
                return false;
            }
        }
    }
    broker->stats.work += topic->target_count;
    broker->open.run.buffer = NULL;
    broker->open.topic = NULL;
    return true;
}

uint64_t publish_ttl_ms(const broker_t *broker, uint64_t ttl_ms) {
    if (!ttl_ms) ttl_ms = broker->config.default_ttl_ms;
    return ttl_ms > broker->config.max_ttl_ms ? broker->config.max_ttl_ms : ttl_ms;
}

uint64_t publish_expiry_tick(const broker_t *broker, uint64_t from_ms, uint64_t ttl_ms) {
    return BQ_LIKELY(!ttl_ms) ? 0 : (from_ms + ttl_ms + broker->config.tick_ms - 1) / broker->config.tick_ms;
}

void publish_run_finish(broker_t *broker) {
    while (!publish_run_give(broker)) drain_skip(broker);
}

/* Block policy: whether all members of one of the topic's groups are full. Does not advance the member in turn. */
static bool group_full(broker_t *broker, const topic_t *topic, uint32_t size) {
    bool room = true;
    for (uint32_t i = 0; i < topic->consumer_count && room && !broker->full; i++) {
        consumer_t *consumer = topic->consumers[i]->consumer;
        member_t *turn = consumer->turn;
        if (consumer->grouped) group_member(broker, consumer, 1, size, &room);
        consumer->turn = turn;
    }
    return !room;
}

/* Block policy: the room in the fullest target. BLOCKED: *blocker is the list of a target that has no room for a frame of `size`
 * bytes. FULL: a target must be drained first. */
static enum publish_outcome room_for_run(broker_t *broker, const topic_t *topic, uint32_t size, uint32_t *count_max,
                                         uint32_t *size_max, wait_list_t **blocker) {
    const queue_env_t *env = &broker->queues;
    for (uint32_t i = 0; i < topic->target_count; i++) {
        client_t *target = topic->targets[i];
        if (!target->live) continue;
        const queue_t *queue = &target->queue;
        if (!queue_fits(queue, env, 1, size) && must_drain(broker, target)) return PUBLISH_FULL;
        *blocker = &target->waiters;
        if (!has_room(broker, target, 1, size)) return PUBLISH_BLOCKED;
        uint32_t messages = env->messages_max - queue->messages;
        uint64_t bytes = queue->bytes < env->bytes_max ? env->bytes_max - queue->bytes : 0;
        if (messages < *count_max) *count_max = messages;
        if (bytes < *size_max) *size_max = (uint32_t)bytes;
    }
    *blocker = &broker->group_waiters;
    bool full = topic->grouped && group_full(broker, topic, size);
    if (broker->full) return PUBLISH_FULL;
    if (full) return PUBLISH_BLOCKED;
    if (*size_max < size) *size_max = size; /* a frame above the limit is sent alone through an empty queue, see queue_fits */
    return PUBLISH_DONE;
}

/* BLOCKED: *blocker is the list to wait in. FULL: as in publish. */
static enum publish_outcome run_open(broker_t *broker, topic_t *topic, uint64_t ttl_ms, uint32_t size, wait_list_t **blocker) {
    /* A run fits an empty queue, so that a subscriber that keeps up loses nothing, for any limits and batch size. */
    const bq_config_t *config = &broker->config;
    uint32_t count_max = config->max_batch < config->subscriber_messages ? config->max_batch : config->subscriber_messages;
    if (config->run_messages && config->run_messages < count_max) count_max = config->run_messages;
    uint32_t size_max =
        config->max_batch_bytes < config->subscriber_bytes ? config->max_batch_bytes : (uint32_t)config->subscriber_bytes;
    if (broker->config.overflow_policy == BQ_OVERFLOW_POLICY_BLOCK) {
        enum publish_outcome room = room_for_run(broker, topic, size, &count_max, &size_max, blocker);
        if (room != PUBLISH_DONE) return room;
    }
    if (topic->grouped) count_max = 1; /* members get messages in turn, one by one */
    publish_run_t *open = &broker->open;
    open->topic = topic;
    open->ttl_ms = ttl_ms;
    open->given = 0;
    open->count_max = count_max;
    open->size_max = size_max > size ? size_max : size;
    const uint64_t tick = publish_expiry_tick(broker, broker->now_ms, ttl_ms);
    open->run = (queue_run_t){.buffer = broker->buffers.open, .offset = broker->buffers.open->used, .tick = tick};
    return PUBLISH_DONE;
}

/* Whether a frame of `size` bytes can be added to the open run. */
static inline bool run_takes(const publish_run_t *open, const topic_t *topic, uint64_t ttl_ms, uint32_t size) {
    return open->run.buffer && open->topic == topic && open->ttl_ms == ttl_ms && open->run.count < open->count_max &&
           size <= open->size_max - open->run.size && size <= open->run.buffer->capacity - open->run.buffer->used;
}

/* Opens a new run for a frame that does not fit the open one. NOINLINE keeps the fast path short. */
static NOINLINE enum publish_outcome run_change(broker_t *broker, topic_t *topic, uint64_t ttl_ms, uint32_t size,
                                                wait_list_t **blocker) {
    if (broker->open.run.buffer && !publish_run_give(broker)) return PUBLISH_FULL;
    if (!buffer_reserve(&broker->buffers, size)) return PUBLISH_NO_MEMORY;
    return run_open(broker, topic, ttl_ms, size, blocker);
}

/* Appends the message to the open run. */
static inline void frame_append(broker_t *broker, const topic_t *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms) {
    queue_run_t *run = &broker->open.run;
    uint8_t *out = run->buffer->bytes + run->buffer->used;
    memcpy(out, topic->header, topic->overhead);
    header_patch(out, topic->overhead, broker->next_message_id, broker->wall_ms, ttl_ms, size);
    if (size) memcpy(out + topic->overhead, payload, size);
    buffer_commit(&broker->buffers, topic->overhead + size);
    run->size += topic->overhead + size;
    run->count++;
}

/* The same in any encoding, with properties. */
static NOINLINE void message_append(broker_t *broker, const topic_t *topic, const message_t *from, uint64_t ttl_ms) {
    queue_run_t *run = &broker->open.run;
    message_t message = *from;
    message.topic = topic->name;
    message.topic_size = topic->name_size;
    message.id = broker->next_message_id;
    message.timestamp_ms = broker->wall_ms;
    message.ttl_ms = ttl_ms;
    uint32_t size = encoding_write(topic->encoding, run->buffer->bytes + run->buffer->used, topic->header, &message);
    buffer_commit(&broker->buffers, size);
    run->size += size;
    run->count++;
}

static NOINLINE enum publish_outcome topic_resolve(broker_t *broker, topic_t *topic) {
    if (broker->open.run.buffer && !publish_run_give(broker)) return PUBLISH_FULL;
    enum route_outcome outcome = route_resolve(broker->routes, topic, share_units(broker));
    if (outcome == ROUTE_READY) return PUBLISH_DONE;
    return outcome == ROUTE_LATER ? PUBLISH_LATER : PUBLISH_NO_MEMORY;
}

static inline void count_published(broker_t *broker, uint32_t size) {
    broker->next_message_id++;
    broker->stats.published++;
    broker->stats.published_bytes += size;
}

enum publish_outcome publish(broker_t *broker, topic_t *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                             wait_list_t **blocker) {
    ttl_ms = publish_ttl_ms(broker, ttl_ms);
    if (BQ_UNLIKELY(!route_is_current(broker->routes, topic))) {
        enum publish_outcome outcome = topic_resolve(broker, topic);
        if (outcome != PUBLISH_DONE) return outcome;
    }
    if (topic->target_count || topic->grouped) {
        if (BQ_UNLIKELY(!run_takes(&broker->open, topic, ttl_ms, topic->overhead + size))) {
            enum publish_outcome outcome = run_change(broker, topic, ttl_ms, topic->overhead + size, blocker);
            if (outcome != PUBLISH_DONE) return outcome;
        }
        if (BQ_LIKELY(topic->encoding == ENCODING_BLIP))
            frame_append(broker, topic, payload, size, ttl_ms);
        else
            message_append(broker, topic, &(message_t){.payload = payload, .payload_size = size}, ttl_ms);
    } else {
        broker->stats.unrouted++;
    }
    count_published(broker, size);
    return PUBLISH_DONE;
}

/* A message with properties is a run of its own. */
enum publish_outcome publish_message(broker_t *broker, topic_t *topic, const message_t *message, wait_list_t **blocker) {
    const uint64_t ttl_ms = publish_ttl_ms(broker, message->ttl_ms);
    enum publish_outcome outcome = PUBLISH_DONE;
    if (BQ_LIKELY(!message->properties_size))
        return publish(broker, topic, message->payload, message->payload_size, message->ttl_ms, blocker);
    if (!route_is_current(broker->routes, topic)) outcome = topic_resolve(broker, topic);
    if (outcome != PUBLISH_DONE) return outcome;
    if (topic->target_count || topic->grouped) {
        const uint32_t size =
            encoding_overhead(topic->encoding, topic->name_size, message->properties_size) + message->payload_size;
        outcome = run_change(broker, topic, ttl_ms, size, blocker);
        if (outcome != PUBLISH_DONE) return outcome;
        broker->open.count_max = 1;
        message_append(broker, topic, message, ttl_ms);
    } else {
        broker->stats.unrouted++;
    }
    count_published(broker, message->payload_size);
    return PUBLISH_DONE;
}

/* ---- after the commit -------------------------------------------------------------------------------------------- */

/* The topic's targets must be current. */
enum publish_outcome publish_room(broker_t *broker, const topic_t *topic, uint32_t size) {
    wait_list_t *blocker;
    uint32_t count_max = UINT32_MAX, size_max = UINT32_MAX;
    broker->stats.work += topic->target_count;
    return room_for_run(broker, topic, topic->overhead + size, &count_max, &size_max, &blocker);
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

static bool give_stored(broker_t *broker, const run_source_t *source, const pending_commit_t *pending, uint32_t i) {
    const topic_t *topic = source->topic;
    const enum flush_order order = topic->target_count > WIDE_TARGETS;
    uint32_t *given = &broker->dispatch.given;
    for (; i < topic->target_count; i = next_unserved(topic, pending, i + 1)) {
        *given = i;
        if (!push_form(broker, topic->targets[i], source, order)) return false;
    }
    for (i = *given > topic->target_count ? *given : topic->target_count;
         topic->grouped && i < topic->target_count + topic->consumer_count; i++) {
        *given = i;
        if (!push_to_group(broker, i - topic->target_count, source, pending->kind == PENDING_FOLLOW)) return false;
    }
    return true;
}

/* Sends one committed message to the QoS 0 subscribers. The WAL gives the order, so it is appended at once, as a run of its own.
 * Under the block policy the publisher has waited for room before. After false, the next call continues behind the targets that
 * have the message; it encodes the message again, for the others. Usually all subscribers have the message through their
 * consumers, and nothing is encoded. */
bool publish_pending(broker_t *broker, topic_t *topic, const pending_commit_t *pending) {
    uint32_t *given = &broker->dispatch.given, i = next_unserved(topic, pending, *given);
    broker->stats.work += topic->target_count;
    if (i >= topic->target_count && !topic->grouped) return true;
    publish_run_closed(broker);
    const queue_run_t run = {.buffer = pending->hold.buffer,
                             .offset = pending->hold.offset,
                             .size = pending->hold.size,
                             .count = 1,
                             .tick = pending->expiry_tick};
    run_forms_t forms;
    forms.made = 0;
    const run_source_t source = {.run = &run, .topic = topic, .forms = &forms, .encoding = ENCODING_BLIP, .stored = true};
    const bool done = give_stored(broker, &source, pending, i);
    if (forms.made) forms_end(broker, &forms);
    return done;
}
