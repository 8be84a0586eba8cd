/* broker/outqueue.c: see broker/outqueue.h for the picture and the invariants. */
#include "broker/outqueue.h"
#include "proto/encoding.h"

static uint32_t frame_size_at(const queue_t *queue, const buffer_t *buffer, uint32_t offset) {
    return encoded_size(queue->encoding, buffer->bytes + offset);
}

/* Bytes of the first `count` whole frames at `offset`. */
static uint32_t frames_size(const queue_t *queue, const buffer_t *buffer, uint32_t offset, uint32_t count) {
    uint32_t at = offset;
    for (uint32_t i = 0; i < count; i++) at += frame_size_at(queue, buffer, at);
    return at - offset;
}

static void account(queue_t *queue, queue_env_t *env, int64_t messages, int64_t bytes) {
    core_assert(messages >= 0 || queue->messages >= (uint64_t)-messages);
    core_assert(bytes >= 0 || queue->bytes >= (uint64_t)-bytes);
    queue->messages = (uint32_t)(queue->messages + messages);
    queue->bytes += (uint64_t)bytes;
    env->stats->queued_messages += (uint64_t)messages;
    env->stats->queued_bytes += (uint64_t)bytes;
}

static queue_entry_t *entry_new(queue_env_t *env, queue_t *queue, const queue_run_t *run) {
    queue_entry_t *entry = pool_alloc(env->pool, sizeof *entry);
    if (!entry) return NULL;
    entry->timer.kind = TIMER_ENTRY; /* set each field: clearing the whole entry first costs half as much again */
    entry->timer.wheel.link = NULL;
    entry->count = run->count;
    entry->tick = run->tick;
    entry->queue = queue;
    entry->other = NULL;
    entry->offset = run->offset;
    entry->size = run->size;
    entry->kept = false;
    entry->head_left = 0;
    buffer_link(run->buffer, entry);
    if (run->tick && !env->lazy_expiry) wheel_insert(env->wheel, &entry->timer.wheel, run->tick);
    return entry;
}

static void entry_insert_after(queue_t *queue, queue_entry_t *before, queue_entry_t *entry) {
    entry->previous = before;
    entry->next = before ? before->next : queue->head;
    if (before)
        before->next = entry;
    else
        queue->head = entry;
    if (entry->next)
        entry->next->previous = entry;
    else
        queue->tail = entry;
    if (!queue->oldest) queue->oldest = entry;
}

/* Removes an entry and frees it. Its messages and bytes are already accounted for. */
static void entry_free(queue_env_t *env, queue_entry_t *entry) {
    queue_t *queue = entry->queue;
    if (entry->previous)
        entry->previous->next = entry->next;
    else
        queue->head = entry->next;
    if (entry->next)
        entry->next->previous = entry->previous;
    else
        queue->tail = entry->previous;
    if (queue->oldest == entry) queue->oldest = entry->next;
    wheel_remove(env->wheel, &entry->timer.wheel);
    buffer_unlink(env->buffers, entry);
    pool_free(env->pool, entry, sizeof *entry);
}

/* Removes the entry's first `bytes`. */
static void entry_advance(queue_env_t *env, queue_entry_t *entry, uint32_t bytes) {
    entry->offset += bytes;
    entry->size -= bytes;
    buffer_shrink(env->buffers, entry->buffer, bytes);
}

static bool entry_extends(const queue_entry_t *tail, const queue_env_t *env, const queue_run_t *run) {
    return tail && tail->count && run->count && tail->buffer == run->buffer && tail->offset + tail->size == run->offset &&
           tail->tick == run->tick && tail->count + run->count <= env->entry_messages_max &&
           tail->size + run->size <= env->entry_bytes_max;
}

bool queue_push(queue_t *queue, queue_env_t *env, const queue_run_t *run) {
    queue->enqueued += run->count;
    env->stats->enqueued += run->count;
    queue_entry_t *tail = queue->tail;
    if (entry_extends(tail, env, run)) {
        tail->count += run->count;
        tail->size += run->size;
        tail->buffer->live_bytes += run->size;
    } else {
        queue_entry_t *entry = entry_new(env, queue, run);
        if (BQ_UNLIKELY(!entry)) {
            queue->dropped_queue_full += run->count;
            env->stats->dropped_queue_full += run->count;
            return false;
        }
        entry_insert_after(queue, tail, entry);
    }
    if (run->count)
        account(queue, env, run->count, run->size);
    else
        queue->control_bytes += run->size;
    return true;
}

bool queue_push_kept(queue_t *queue, queue_env_t *env, const queue_run_t *run, queue_entry_t *hold) {
    queue_entry_t *entry = entry_new(env, queue, run);
    if (!entry) return false;
    entry->kept = true;
    entry->other = hold;
    hold->other = entry;
    hold->count = run->size;
    entry_insert_after(queue, queue->tail, entry);
    return true;
}

void queue_take_back(queue_entry_t *hold, queue_env_t *env) {
    queue_entry_t *entry = hold->other;
    if (!entry) return;
    core_assert(entry->kept && entry->other == hold);
    bool begun = queue_begun(hold);
    hold->other = entry->other = NULL;
    if (!begun) entry_free(env, entry);
}

static void count_overflow(queue_t *queue, queue_env_t *env, uint32_t messages) {
    queue->dropped_queue_full += messages;
    env->stats->dropped_queue_full += messages;
}

/* Drops the first `count` messages of an entry whose first frame is not partly sent. Frees the entry if it becomes empty. */
static void entry_drop_front(queue_env_t *env, queue_entry_t *entry, uint32_t count) {
    queue_t *queue = entry->queue;
    uint32_t bytes = count == entry->count ? entry->size : frames_size(queue, entry->buffer, entry->offset, count);
    account(queue, env, -(int64_t)count, -(int64_t)bytes);
    if (count == entry->count) {
        entry_free(env, entry);
        return;
    }
    entry_advance(env, entry, bytes);
    entry->count -= count;
}

/* A partly sent frame must be completed, or the stream becomes invalid. Leaves it in its own entry, so that the messages after it
 * can be dropped. Returns the entry with the rest; NULL: there is none, or no memory. */
static queue_entry_t *entry_split_head(queue_env_t *env, queue_entry_t *entry) {
    if (entry->count <= 1) return NULL;
    uint32_t rest = entry->head_left;
    queue_run_t tail = {.buffer = entry->buffer,
                        .offset = entry->offset + rest,
                        .size = entry->size - rest,
                        .count = entry->count - 1,
                        .tick = entry->tick};
    queue_entry_t *fresh = entry_new(env, entry->queue, &tail);
    if (!fresh) return NULL;
    entry_insert_after(entry->queue, entry, fresh);
    wheel_remove(env->wheel, &entry->timer.wheel);
    entry->count = 1;
    buffer_shrink(env->buffers, entry->buffer, tail.size);
    entry->size = rest;
    return fresh;
}

static queue_entry_t *with_messages(const queue_env_t *env, queue_entry_t *entry) {
    for (; entry && !entry->count; entry = entry->next) env->stats->work++;
    return entry;
}

/* The oldest entry with messages that may be dropped. `oldest` avoids repeated walks: a full queue may start with thousands of
 * replies and QoS 1 deliveries, and each new message drops one. */
static queue_entry_t *oldest_droppable(queue_env_t *env, queue_t *queue) {
    queue_entry_t *entry = queue->oldest = with_messages(env, queue->oldest);
    if (!entry || !entry->head_left) return entry;
    queue_entry_t *rest = entry_split_head(env, entry);
    if (!rest && entry->count > 1) return with_messages(env, entry->next); /* no memory to split the entry now */
    return queue->oldest = rest ? rest : with_messages(env, entry->next);
}

/* Makes room for `messages` and `bytes` at the tail by dropping from the head. */
static void make_room(queue_t *queue, queue_env_t *env, uint32_t messages, uint64_t bytes) {
    while (!queue_fits(queue, env, messages, bytes)) {
        queue_entry_t *entry = oldest_droppable(env, queue);
        if (!entry) return;
        uint64_t over = (uint64_t)queue->messages + messages;
        over = over > env->messages_max ? over - env->messages_max : 1; /* only bytes are short: drop one message at a time */
        uint32_t count = over < entry->count ? (uint32_t)over : entry->count;
        count_overflow(queue, env, count);
        entry_drop_front(env, entry, count);
    }
}

void queue_refuse(queue_t *queue, queue_env_t *env, uint32_t messages) {
    queue->enqueued += messages;
    env->stats->enqueued += messages;
    count_overflow(queue, env, messages);
}

/* Counts how many of the run's first messages fit. */
static uint32_t fitting(const queue_t *queue, const queue_env_t *env, const queue_run_t *run, uint32_t *bytes) {
    uint32_t count = 0;
    *bytes = 0;
    while (count < run->count) {
        uint32_t next = *bytes + frame_size_at(queue, run->buffer, run->offset + *bytes);
        if (!queue_fits(queue, env, count + 1, next)) break;
        *bytes = next;
        count++;
    }
    return count;
}

static void run_cut_front(queue_run_t *run, uint32_t messages, uint32_t bytes) {
    run->offset += bytes;
    run->size -= bytes;
    run->count -= messages;
}

/* The run's last messages that fit an empty queue: drop_oldest would leave the same if they came one by one. */
static queue_run_t newest_part(const queue_t *queue, const queue_env_t *env, const queue_run_t *run) {
    queue_run_t part = *run;
    while (part.count > 1 && (part.count > env->messages_max || part.size > env->bytes_max))
        run_cut_front(&part, 1, frame_size_at(queue, part.buffer, part.offset));
    return part;
}

/* Appends the messages that fit and drops the others, one by one: a small message may fit after a large one that did not. So the
 * dropped messages do not depend on how messages are grouped into runs. */
static bool push_fitting(queue_t *queue, queue_env_t *env, queue_run_t run) {
    bool pushed = true;
    while (run.count && queue->messages < env->messages_max) {
        queue_run_t part = run;
        part.count = fitting(queue, env, &run, &part.size);
        if (part.count) pushed &= queue_push(queue, env, &part);
        run_cut_front(&run, part.count, part.size);
        if (!run.count) return pushed;
        queue_refuse(queue, env, 1);
        run_cut_front(&run, 1, frame_size_at(queue, run.buffer, run.offset));
    }
    queue_refuse(queue, env, run.count);
    return pushed;
}

bool queue_push_dropping(queue_t *queue, queue_env_t *env, const queue_run_t *run, uint32_t overflow_policy) {
    if (BQ_LIKELY(queue_fits(queue, env, run->count, run->size))) return queue_push(queue, env, run);
    if (overflow_policy == BQ_OVERFLOW_POLICY_DROP_NEW) return push_fitting(queue, env, *run);
    queue_run_t part = newest_part(queue, env, run);
    make_room(queue, env, part.count, part.size);
    /* Only a partly sent frame can still take room. It must be completed, so the oldest messages of the run are dropped. */
    while (part.count && !queue_fits(queue, env, part.count, part.size))
        run_cut_front(&part, 1, frame_size_at(queue, part.buffer, part.offset));
    queue_refuse(queue, env, run->count - part.count);
    return part.count == 0 || queue_push(queue, env, &part);
}

static void count_delivered(queue_t *queue, queue_env_t *env, uint32_t messages, uint64_t bytes) {
    queue->delivered += messages;
    env->stats->delivered += messages;
    account(queue, env, -(int64_t)messages, -(int64_t)bytes);
}

/* Only the first `bytes` of the head entry are sent: walks its frames to count the complete ones. */
static void entry_sent_partly(queue_t *queue, queue_env_t *env, queue_entry_t *entry, uint32_t bytes) {
    if (!entry->count) {
        if (!entry->kept) queue->control_bytes -= bytes;
        entry_advance(env, entry, bytes);
        return;
    }
    uint32_t left = bytes, at = entry->offset, whole = 0;
    uint32_t size = entry->head_left ? entry->head_left : frame_size_at(queue, entry->buffer, at);
    while (size <= left) {
        left -= size;
        at += size;
        whole++;
        size = frame_size_at(queue, entry->buffer, at);
    }
    entry->count -= whole;
    entry->head_left = left ? size - left : 0;
    entry_advance(env, entry, bytes);
    count_delivered(queue, env, whole, bytes);
}

/* A Reply or a QoS 1 delivery is completely sent. */
static void other_sent(queue_t *queue, queue_env_t *env, queue_entry_t *entry) {
    queue_entry_t *hold = entry->other;
    if (!entry->kept) queue->control_bytes -= entry->size;
    entry_free(env, entry);
    if (!hold) return;
    hold->other = NULL;
    env->handed(env->handed_context, hold);
}

void queue_sent(queue_t *queue, queue_env_t *env, uint64_t bytes) {
    while (bytes) {
        queue_entry_t *entry = queue->head;
        if (bytes < entry->size) {
            entry_sent_partly(queue, env, entry, (uint32_t)bytes);
            return;
        }
        bytes -= entry->size;
        if (BQ_LIKELY(entry->count)) {
            count_delivered(queue, env, entry->count, entry->size);
            entry_free(env, entry);
        } else {
            other_sent(queue, env, entry);
        }
    }
}

void queue_expire(queue_entry_t *entry, queue_env_t *env) {
    queue_t *queue = entry->queue;
    if (entry->head_left) {
        entry = entry_split_head(env, entry);
        if (!entry) return; /* only the frame that must be completed */
    }
    queue->dropped_ttl += entry->count;
    env->stats->dropped_ttl += entry->count;
    entry_drop_front(env, entry, entry->count);
}

void queue_expire_head(queue_t *queue, queue_env_t *env, uint64_t now_tick) {
    queue_entry_t *entry = queue->head;
    /* a partly sent frame must be completed even if expired; the frames after it may be dropped */
    bool begun = entry && entry->head_left;
    while (entry && (begun || (entry->tick && entry->tick <= now_tick))) {
        queue_entry_t *next = entry->next;
        if (entry->tick && entry->tick <= now_tick) queue_expire(entry, env);
        entry = next;
        begun = false;
    }
}

/* An entry without messages (a Reply, a QoS 1 delivery) does not record whether it is partly sent. `begun` tells it; such an
 * entry is completed. */
uint64_t queue_discard(queue_t *queue, queue_env_t *env, bool begun) {
    uint64_t dropped = 0;
    queue_entry_t *entry = queue->head;
    if (entry && entry->head_left) {
        queue_entry_t *rest = entry_split_head(env, entry);
        entry = rest ? rest : entry->next;
    } else if (entry && !entry->count && begun) {
        entry = entry->next;
    }
    while (entry) {
        queue_entry_t *next = entry->next;
        if (entry->count) {
            dropped += entry->count;
            account(queue, env, -(int64_t)entry->count, -(int64_t)entry->size);
        } else if (!entry->kept) {
            queue->control_bytes -= entry->size;
        }
        entry_free(env, entry);
        entry = next;
    }
    return dropped;
}

void queue_drop_kept(queue_t *queue, queue_env_t *env, bool begun) {
    queue_entry_t *entry = queue->head;
    if (entry && entry->kept && begun) entry = entry->next;
    while (entry) {
        queue_entry_t *next = entry->next;
        if (entry->kept) entry_free(env, entry);
        entry = next;
    }
}

uint64_t queue_clear(queue_t *queue, queue_env_t *env, uint32_t entries_max) {
    uint64_t dropped = 0;
    for (; queue->head && entries_max; entries_max--) {
        queue_entry_t *entry = queue->head;
        dropped += entry->count;
        if (entry->count)
            account(queue, env, -(int64_t)entry->count, -(int64_t)entry->size);
        else if (!entry->kept)
            queue->control_bytes -= entry->size;
        entry_free(env, entry);
    }
    return dropped;
}
