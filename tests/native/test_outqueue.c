/* test_outqueue.c: the output queue compared with a list of messages, in each encoding.
 *
 *      model      [id, size, tick] [id, size, tick] ...        `begun`: bytes of the first one that are sent
 *
 * Each message carries its id in its last bytes. What was sent is read again frame by frame, so that a drop that cut a frame,
 * or that took another message than the model, is seen.
 *
 * Invariant checked: the same messages leave in the same order, whole, and the counters of the queue are those of the model.
 */
#include "check.h"
#include "broker/outqueue.h"
#include "proto/encoding.h"

#define MODEL_MAX 4096u
#define RUN_MAX 12u
#define ID_BYTES 4u
#define MESSAGES_MAX 20u
#define BYTES_MAX 30000u
#define STEPS 20000u

typedef struct item {
    uint32_t id, size;
    uint64_t tick;
} item_t;

typedef struct model {
    item_t items[MODEL_MAX];
    uint32_t count, begun;
    uint64_t bytes, delivered, dropped_ttl, dropped_queue_full;
} model_t;

static pool_t pool;
static wheel_t wheel;
static buffer_store_t buffers;
static bq_stats_t stats;
static queue_env_t env;
static queue_t queue;
static model_t model;
static uint8_t sent[1 << 20]; /* not read yet: a partial frame */
static uint32_t sent_bytes;
static uint32_t next_id, last_id;

/* ---- frames -------------------------------------------------------------------------------------------------------- */

/* Writes a frame whose last bytes are its id. `body` is what its length counts. Returns its size. */
static uint32_t frame_write(uint8_t *out, enum encoding encoding, uint32_t body, uint32_t id) {
    uint32_t at = 0;
    if (encoding == ENCODING_BLIP) {
        store_be32(out, body);
        at = 4;
    } else {
        out[at++] = 0x30;
        for (uint32_t rest = body; at == 1 || rest; rest >>= 7) out[at++] = (uint8_t)(rest & 0x7f) | (rest > 0x7f ? 0x80 : 0);
    }
    memset(out + at, 0xd5, body); /* reads as a length without an end if a walk starts inside a frame */
    store_u32(out + at + body - ID_BYTES, id);
    return at + body;
}

static uint32_t body_random(uint64_t *seed) {
    static const uint32_t bodies[] = {ID_BYTES, 20, 126, 127, 128, 129, 300, 3000, 16383, 16384, 16500};
    uint32_t count = random_below(seed, 8) ? 7 : sizeof bodies / sizeof *bodies;
    return bodies[random_below(seed, count)];
}

/* ---- the model ------------------------------------------------------------------------------------------------------ */

static void model_remove(uint32_t at) {
    model.bytes -= model.items[at].size - (at ? 0 : model.begun);
    model.count--;
    memmove(model.items + at, model.items + at + 1, (model.count - at) * sizeof *model.items);
}

static bool model_fits(uint32_t messages, uint64_t bytes) {
    if (model.count + messages > env.messages_max) return false;
    return model.bytes + bytes <= env.bytes_max || (messages == 1 && model.count == 0);
}

static void model_add(item_t item) {
    CHECK(model.count < MODEL_MAX);
    model.items[model.count++] = item;
    model.bytes += item.size;
}

static void model_refuse(uint32_t count) { model.dropped_queue_full += count; }

/* One message after the other: those that find no room are dropped. */
static void model_push_new(const item_t *items, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        if (model_fits(1, items[i].size))
            model_add(items[i]);
        else
            model_refuse(1);
    }
}

static uint64_t items_bytes(const item_t *items, uint32_t count) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < count; i++) bytes += items[i].size;
    return bytes;
}

/* The newest messages that fit an empty queue take the place of the oldest. Then only a begun message is in their way. */
static void model_push_newest(const item_t *items, uint32_t count) {
    const uint32_t first = model.begun > 0;
    uint32_t at = 0;
    while (count - at > 1 && (count - at > env.messages_max || items_bytes(items + at, count - at) > env.bytes_max)) at++;
    while (!model_fits(count - at, items_bytes(items + at, count - at)) && model.count > first) {
        model_remove(first);
        model_refuse(1);
    }
    while (at < count && !model_fits(count - at, items_bytes(items + at, count - at))) at++;
    model_refuse(at);
    for (; at < count; at++) model_add(items[at]);
}

static void model_sent(uint64_t bytes) {
    while (bytes) {
        uint32_t left = model.items[0].size - model.begun, part = bytes < left ? (uint32_t)bytes : left;
        model.bytes -= part;
        model.begun += part;
        bytes -= part;
        if (model.begun < model.items[0].size) return;
        model.items[0].size = model.begun = 0;
        model_remove(0);
        model.delivered++;
    }
}

static void model_expire(uint64_t tick) {
    for (uint32_t i = model.begun > 0; i < model.count;) {
        if (!model.items[i].tick || model.items[i].tick > tick) {
            i++;
            continue;
        }
        model_remove(i);
        model.dropped_ttl++;
    }
}

/* ---- the queue ------------------------------------------------------------------------------------------------------ */

static void push_random(uint64_t *seed, uint32_t policy) {
    static uint8_t frames[RUN_MAX * 20000];
    item_t items[RUN_MAX];
    uint32_t count = 1 + (uint32_t)random_below(seed, RUN_MAX), size = 0;
    uint64_t tick = random_below(seed, 3) ? 0 : wheel.now + 1 + random_below(seed, 5);
    for (uint32_t i = 0; i < count; i++) {
        items[i] = (item_t){.id = ++next_id, .tick = tick};
        size += items[i].size = frame_write(frames + size, queue.encoding, body_random(seed), next_id);
    }
    uint8_t *out = buffer_reserve(&buffers, size);
    CHECK(out);
    memcpy(out, frames, size);
    queue_run_t run = {.buffer = buffers.open, .offset = buffers.open->used, .size = size, .count = count, .tick = tick};
    buffer_commit(&buffers, size);
    CHECK(queue_push_dropping(&queue, &env, &run, policy));
    if (!model_fits(count, size) && policy == BQ_OVERFLOW_POLICY_DROP_OLDEST)
        model_push_newest(items, count);
    else
        model_push_new(items, count);
}

/* Reads the whole frames that were sent: their ids rise. */
static void sent_read(void) {
    uint32_t at = 0;
    while (sent_bytes - at >= 5) {
        uint32_t size = encoded_size(queue.encoding, sent + at);
        CHECK(size < 20000);
        if (sent_bytes - at < size) break;
        uint32_t id = load_u32(sent + at + size - ID_BYTES);
        CHECK(id > last_id && id <= next_id);
        last_id = id;
        at += size;
    }
    memmove(sent, sent + at, sent_bytes - at);
    sent_bytes -= at;
}

static void send_random(uint64_t *seed) {
    uint64_t queued = 0;
    for (const queue_entry_t *entry = queue.head; entry; entry = entry->next) queued += entry->size;
    uint64_t want = random_below(seed, 4) ? random_below(seed, 400) : random_below(seed, queued + 1);
    uint64_t bytes = want < queued ? want : queued, left = bytes;
    for (const queue_entry_t *entry = queue.head; left; entry = entry->next) {
        uint32_t part = left < entry->size ? (uint32_t)left : entry->size;
        memcpy(sent + sent_bytes, entry->buffer->bytes + entry->offset, part);
        sent_bytes += part;
        left -= part;
    }
    queue_sent(&queue, &env, bytes);
    model_sent(bytes);
    sent_read();
}

static void expire_random(uint64_t *seed) {
    uint64_t to = wheel.now + 1 + random_below(seed, 3);
    for (wheel_timer_t *timer; (timer = wheel_take(&wheel, to));) queue_expire((queue_entry_t *)(void *)timer, &env);
    model_expire(to);
}

static void discard(void) {
    const uint32_t kept = model.begun > 0, dropped = model.count - kept;
    CHECK(queue_discard(&queue, &env, kept) == dropped);
    while (model.count > kept) model_remove(kept);
}

static void check_agreement(void) {
    uint64_t bytes = 0;
    uint32_t messages = 0, at = 0;
    for (const queue_entry_t *entry = queue.head; entry; entry = entry->next) {
        bytes += entry->size;
        messages += entry->count;
        uint32_t offset = entry->offset;
        for (uint32_t i = 0; i < entry->count; i++, at++) {
            uint32_t size =
                i || !entry->head_left ? encoded_size(queue.encoding, entry->buffer->bytes + offset) : entry->head_left;
            offset += size;
            CHECK(at < model.count && size == model.items[at].size - (at ? 0 : model.begun));
            if (size >= ID_BYTES) CHECK(load_u32(entry->buffer->bytes + offset - ID_BYTES) == model.items[at].id);
        }
        CHECK(offset == entry->offset + entry->size);
    }
    CHECK(messages == model.count && queue.messages == model.count && queue.bytes == bytes && bytes == model.bytes);
    CHECK(queue.delivered == model.delivered && queue.dropped_ttl == model.dropped_ttl);
    CHECK(queue.dropped_queue_full == model.dropped_queue_full);
    CHECK(stats.queued_messages == queue.messages && stats.queued_bytes == queue.bytes);
}

/* Returns how many messages were dropped. */
static uint64_t test_the_queue_agrees_with_the_list(enum encoding encoding, uint32_t policy, uint64_t seed) {
    uint64_t first = seed;
    pool_init(&pool, 64, 16, 4);
    wheel_init(&wheel, 0);
    buffer_store_init(&buffers, &pool, 65536);
    stats = (bq_stats_t){0};
    queue = (queue_t){.encoding = encoding};
    model = (model_t){0};
    sent_bytes = next_id = last_id = 0;
    env = (queue_env_t){.pool = &pool,
                        .wheel = &wheel,
                        .buffers = &buffers,
                        .stats = &stats,
                        .bytes_max = BYTES_MAX,
                        .messages_max = MESSAGES_MAX,
                        .entry_messages_max = first % 2 ? 8 : 1000,
                        .entry_bytes_max = 1 << 20};
    for (uint32_t step = 0; step < STEPS; step++) {
        switch (random_below(&seed, 16)) {
        case 0: expire_random(&seed); break;
        case 1:
            if (random_below(&seed, 20) == 0) discard();
            break;
        case 2: buffer_compact(&buffers, 4096); break;
        default:
            if (random_below(&seed, 3) == 0)
                push_random(&seed, policy);
            else
                send_random(&seed);
        }
        check_agreement();
    }
    while (queue.head) queue_clear(&queue, &env, 10);
    buffer_store_release(&buffers);
    CHECK(buffers.count == 0 && wheel.armed == 0);
    pool_release(&pool);
    CHECK(model.delivered > 1000 && model.dropped_ttl > 100);
    return model.dropped_queue_full;
}

int main(void) {
    static const uint32_t policies[] = {BQ_OVERFLOW_POLICY_DROP_OLDEST, BQ_OVERFLOW_POLICY_DROP_NEW};
    for (uint32_t encoding = 0; encoding < ENCODINGS; encoding++)
        for (uint32_t i = 0; i < 2; i++)
            for (uint64_t seed = 1; seed <= 3; seed++)
                CHECK(test_the_queue_agrees_with_the_list(encoding, policies[i], seed) > 1000);
    return 0;
}
