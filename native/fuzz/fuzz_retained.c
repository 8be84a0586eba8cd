/* fuzz_retained.c: retained messages are made, put, replaced, cleared and expire while replays go on: the index compared with a
 * list.
 *
 *      input      [limits] [step] ...
 *
 * Invariant: the index has exactly the messages of the list. A replay gives each message that was retained at its beginning and
 * still is, in the order of the serials, and nothing else. The pool holds exactly the counted bytes. A failed allocation changes
 * nothing.
 */
#include "base/topic_name.h"
#include "broker/retained.h"
#include "fuzz.h"
#include "scarce_memory.h"

#define MESSAGES_MAX 512u
#define MADE_MAX 4u
#define REPLAYS 3u
#define PAYLOAD_MAX 700u

static const char *const TOPICS[] = {"a", "a/b", "a/b/c", "a/", "/", "$a/b", "b", "b.c", "a.*", "c/1", "c/2", "c/3"};
static const char *const FILTERS[] = {"#", "a/#", "+", "+/+", "c/+", "b", "b.*", "$a/#", ">", "none"};

typedef struct model_message {
    retained_t *message;
    uint64_t serial, lsn, expiry;
    uint32_t topic_size, payload_size;
    uint8_t topic[TOPIC_BYTES_MAX];
    uint8_t fill, qos;
} model_message_t;

typedef struct replay {
    bool open;
    retained_cursor_t cursor;
    uint64_t seen; /* serial of the last message given */
    text_t filter;
    int syntax;
} replay_t;

typedef struct model {
    pool_t pool;
    wheel_t wheel;
    retained_index_t index;
    model_message_t messages[MESSAGES_MAX], made[MADE_MAX];
    uint32_t count, made_count;
    uint64_t serial, lsn, tick;
    replay_t replays[REPLAYS];
} model_t;

static model_message_t *model_find(model_t *model, const uint8_t *topic, uint32_t size) {
    for (uint32_t i = 0; i < model->count; i++) {
        model_message_t *message = &model->messages[i];
        if (message->topic_size == size && !memcmp(message->topic, topic, size)) return message;
    }
    return NULL;
}

static void model_remove(model_t *model, model_message_t *message) { *message = model->messages[--model->count]; }

static void message_check(const model_message_t *expected, const retained_t *message) {
    CHECK(message == expected->message && message->topic_size == expected->topic_size);
    CHECK(!memcmp(retained_topic(message), expected->topic, expected->topic_size));
    CHECK(message->payload_size == expected->payload_size && message->qos == expected->qos && message->lsn == expected->lsn);
    for (uint32_t i = 0; i < message->properties_size; i++) CHECK(retained_properties(message)[i] == 7);
    for (uint32_t i = 0; i < message->payload_size; i++) CHECK(retained_payload(message)[i] == expected->fill);
}

/* Whether the limits leave room, by the rule of the header. */
static bool model_fits(const model_t *model, const model_message_t *old, size_t size) {
    const retained_index_t *index = &model->index;
    uint64_t freed =
        old ? pool_good_size(sizeof(retained_t) + old->topic_size + old->message->properties_size + (size_t)old->payload_size)
            : 0;
    if (!old && model->count + model->made_count >= index->count_max) return false;
    return pool_good_size(size) <= freed || index->bytes - freed + pool_good_size(size) <= index->bytes_max;
}

static void make(model_t *model, input_t *input, bool scarce_now) {
    uint8_t properties[16], payload[PAYLOAD_MAX];
    text_t topic = input_text(input, TOPICS, sizeof TOPICS / sizeof *TOPICS);
    const uint8_t how = input_byte(input), fill = input_byte(input);
    const uint64_t expiry = how & 1 ? model->tick + input_byte(input) : 0;
    if (!topic.size || topic.size > TOPIC_BYTES_MAX || model->made_count == MADE_MAX) return;
    if (model->count + model->made_count >= MESSAGES_MAX - 1) return;
    memset(properties, 7, sizeof properties);
    memset(payload, fill, sizeof payload);
    retained_value_t value = {.topic = topic.bytes,
                              .topic_size = topic.size,
                              .properties = properties,
                              .properties_size = how >> 1 & 15,
                              .payload = payload,
                              .payload_size = 1 + (how >> 5) * 99u,
                              .qos = fill % 3,
                              .expiry_tick = expiry};
    const size_t size = sizeof(retained_t) + topic.size + value.properties_size + value.payload_size;
    const model_message_t *old = model_find(model, topic.bytes, topic.size);
    const bool fits = model_fits(model, old, size);
    enum bq_outcome why = BQ_OUTCOME_DONE;
    allocations_before = how & 3;
    allocations_failing = scarce_now ? 1 : 0;
    retained_t *message = retained_make(&model->index, &value, &why);
    allocations_failing = 0;
    if (old && message)
        CHECK(retained_equals(old->message, &value) ==
              (!old->expiry && !expiry && old->fill == fill && old->payload_size == value.payload_size &&
               old->message->properties_size == value.properties_size));
    CHECK(message || (fits ? scarce_now && why == BQ_OUTCOME_UNAVAILABLE : why == BQ_OUTCOME_LIMIT));
    if (!message) return;
    CHECK(fits);
    model_message_t *made = &model->made[model->made_count++];
    *made = (model_message_t){.message = message,
                              .expiry = expiry,
                              .topic_size = topic.size,
                              .payload_size = value.payload_size,
                              .fill = fill,
                              .qos = value.qos};
    memcpy(made->topic, topic.bytes, topic.size);
}

/* The oldest made message is put, as publishes are in the order of their records. */
static void put(model_t *model, bool logged) {
    if (!model->made_count) return;
    model_message_t made = model->made[0], *old = model_find(model, made.topic, made.topic_size);
    memmove(model->made, model->made + 1, --model->made_count * sizeof made);
    made.lsn = logged ? ++model->lsn : 0;
    made.serial = ++model->serial;
    retained_put(&model->index, made.message, made.lsn);
    if (old) model_remove(model, old);
    model->messages[model->count++] = made;
}

static void drop(model_t *model) {
    if (model->made_count) retained_drop(&model->index, model->made[--model->made_count].message);
}

static void clear(model_t *model, input_t *input) {
    text_t topic = input_text(input, TOPICS, sizeof TOPICS / sizeof *TOPICS);
    if (!topic.size) return;
    model_message_t *message = model_find(model, topic.bytes, topic.size);
    CHECK(retained_clear(&model->index, topic.bytes, topic.size) == (message != NULL));
    if (message) model_remove(model, message);
}

static void pass_time(model_t *model, uint64_t ticks) {
    wheel_timer_t *due;
    model->tick += ticks;
    while ((due = wheel_take(&model->wheel, model->tick))) {
        retained_t *message = (retained_t *)(void *)due;
        CHECK(message->timer.kind == TIMER_RETAINED);
        model_message_t *expected = model_find(model, message->bytes, message->topic_size);
        CHECK(expected && expected->expiry && expected->expiry <= model->tick);
        message_check(expected, message);
        model_remove(model, expected);
        retained_expired(&model->index, message);
    }
    for (uint32_t i = 0; i < model->count; i++) CHECK(!model->messages[i].expiry || model->messages[i].expiry > model->tick);
}

static void carry(model_t *model) {
    retained_t *oldest = model->index.oldest;
    if (!oldest) return;
    model_message_t *message = model_find(model, oldest->bytes, oldest->topic_size);
    message->lsn = ++model->lsn;
    retained_carried(&model->index, oldest, message->lsn);
}

static void replay_begin(model_t *model, replay_t *replay, input_t *input) {
    text_t filter = input_text(input, FILTERS, sizeof FILTERS / sizeof *FILTERS);
    const int syntax = filter_check(filter.bytes, filter.size);
    if (syntax < 0) return;
    *replay = (replay_t){.open = true, .cursor = retained_begin(&model->index), .filter = filter, .syntax = syntax};
    CHECK(replay->cursor.last == model->serial);
}

static bool is_left(const replay_t *replay, const model_message_t *message) {
    return message->serial > replay->seen && message->serial <= replay->cursor.last &&
           filter_matches(replay->syntax, replay->filter.bytes, replay->filter.size, message->topic, message->topic_size);
}

static void replay_step(model_t *model, replay_t *replay, uint32_t units) {
    if (!replay->open) return;
    const uint32_t given = units;
    const retained_t *message =
        retained_next(&model->index, &replay->cursor, replay->syntax, replay->filter.bytes, replay->filter.size, &units);
    CHECK(units <= given);
    const model_message_t *first = NULL;
    for (uint32_t i = 0; i < model->count; i++)
        if (is_left(replay, &model->messages[i]) && (!first || model->messages[i].serial < first->serial))
            first = &model->messages[i];
    if (message) {
        CHECK(first != NULL);
        message_check(first, message);
        replay->seen = message->serial;
    } else {
        CHECK(retained_done(&replay->cursor) ? !first : !units);
        replay->open = !retained_done(&replay->cursor);
    }
}

static void all_check(model_t *model) {
    const retained_index_t *index = &model->index;
    uint64_t oldest = 0;
    for (uint32_t i = 0; i < model->count; i++) {
        const model_message_t *message = &model->messages[i];
        message_check(message, retained_find(index, message->topic, message->topic_size));
        if (message->lsn && (!oldest || message->lsn < oldest)) oldest = message->lsn;
    }
    CHECK(index->count == model->count && index->made == model->made_count && index->serial == model->serial);
    CHECK((index->oldest ? index->oldest->lsn : 0) == oldest);
    CHECK(model->pool.used_bytes - model->pool.free_bytes == index->bytes + index->table_bytes);
}

static void step(model_t *model, input_t *input) {
    const uint8_t what = input_byte(input);
    replay_t *replay = &model->replays[what / 16 % REPLAYS];
    switch (what % 16) {
    case 0:
    case 1: make(model, input, false); break;
    case 2:
        make(model, input, false);
        put(model, what >= 64);
        break;
    case 3: make(model, input, true); break;
    case 4:
    case 5: put(model, what >= 64); break;
    case 6: drop(model); break;
    case 7: clear(model, input); break;
    case 8: pass_time(model, what / 16); break;
    case 9: pass_time(model, 1000); break;
    case 10: carry(model); break;
    case 11: replay_begin(model, replay, input); break;
    case 12:
    case 13: replay_step(model, replay, what / 16); break;
    case 14: replay_step(model, replay, UINT32_MAX); break;
    default:
        model->index.bytes_max = input_byte(input) * 200ull;
        model->index.count_max = input_byte(input);
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static model_t model;
    input_t input = {data, data + size};
    const hash_key_t key = hash_key_from(size); /* the same input gives the same run */
    memset(&model, 0, sizeof model);
    pool_init(&model.pool, 8, 8, 8);
    wheel_init(&model.wheel, 0);
    retained_open(&model.index, &model.pool, &model.wheel, &key);
    model.index.bytes_max = input_byte(&input) * 1000ull;
    model.index.count_max = input_byte(&input);
    for (uint32_t steps = 0; steps < 1000 && input.at < input.end; steps++) {
        step(&model, &input);
        all_check(&model);
    }
    while (model.made_count) drop(&model);
    retained_release(&model.index);
    CHECK(model.pool.used_bytes == model.pool.free_bytes && !model.wheel.armed);
    pool_release(&model.pool);
    return 0;
}
