/* retained_scene.c: an index of retained messages with its pool and its wheel, for tests/test_retained.py. */
#include "base/topic_name.h"
#include "broker/retained.h"

#include <stdlib.h>

typedef struct scene {
    pool_t pool;
    wheel_t wheel;
    retained_index_t index;
} scene_t;

typedef struct view {
    const uint8_t *topic, *properties, *payload;
    uint32_t topic_size, properties_size, payload_size;
    uint32_t qos;
    uint64_t serial, lsn;
} view_t;

scene_t *scene_open(uint64_t bytes_max, uint32_t count_max) {
    scene_t *scene = calloc(1, sizeof *scene);
    const hash_key_t key = hash_key_from(12345);
    if (!scene) abort();
    pool_init(&scene->pool, 100, 100, 4);
    wheel_init(&scene->wheel, 0);
    retained_open(&scene->index, &scene->pool, &scene->wheel, &key);
    scene->index.bytes_max = bytes_max;
    scene->index.count_max = count_max;
    return scene;
}

/* Returns the bytes that were not given back to the pool. */
uint64_t scene_close(scene_t *scene) {
    retained_release(&scene->index);
    const uint64_t lost = scene->pool.used_bytes - scene->pool.free_bytes;
    pool_release(&scene->pool);
    free(scene);
    return lost;
}

retained_t *scene_make(scene_t *scene, const view_t *view, uint64_t expiry_tick) {
    enum bq_outcome why;
    const retained_value_t value = {.topic = view->topic,
                                    .topic_size = view->topic_size,
                                    .properties = view->properties,
                                    .properties_size = view->properties_size,
                                    .payload = view->payload,
                                    .payload_size = view->payload_size,
                                    .expiry_tick = expiry_tick,
                                    .qos = (uint8_t)view->qos};
    return retained_make(&scene->index, &value, &why);
}

void scene_put(scene_t *scene, retained_t *message, uint64_t lsn) { retained_put(&scene->index, message, lsn); }
void scene_drop(scene_t *scene, retained_t *message) { retained_drop(&scene->index, message); }
int scene_clear(scene_t *scene, const uint8_t *topic, uint32_t size) { return retained_clear(&scene->index, topic, size); }

uint32_t scene_pass(scene_t *scene, uint64_t tick) {
    uint32_t count = 0;
    for (wheel_timer_t *due; (due = wheel_take(&scene->wheel, tick)); count++)
        retained_expired(&scene->index, (retained_t *)(void *)due);
    return count;
}

void scene_carry(scene_t *scene, uint64_t lsn) { retained_carried(&scene->index, scene->index.oldest, lsn); }
const retained_t *scene_find(const scene_t *scene, const uint8_t *topic, uint32_t size) {
    return retained_find(&scene->index, topic, size);
}
retained_cursor_t *scene_begin(const scene_t *scene) {
    retained_cursor_t *cursor = malloc(sizeof *cursor);
    if (!cursor) abort();
    *cursor = retained_begin(&scene->index);
    return cursor;
}
/* The next message within `units` steps. *done: the replay is complete. */
const retained_t *scene_next(const scene_t *scene, retained_cursor_t *cursor, const uint8_t *filter, uint32_t size,
                             uint32_t units, int *done) {
    const retained_t *found = retained_next(&scene->index, cursor, filter_check(filter, size), filter, size, &units);
    *done = retained_done(cursor);
    return found;
}
void scene_end(retained_cursor_t *cursor) { free(cursor); }

void scene_view(const retained_t *message, view_t *view) {
    *view = (view_t){retained_topic(message),
                     retained_properties(message),
                     retained_payload(message),
                     message->topic_size,
                     message->properties_size,
                     message->payload_size,
                     message->qos,
                     message->serial,
                     message->lsn};
}

/* messages, made, bytes, bytes of tables, bytes in use of the pool, LSN of the oldest record */
void scene_counts(const scene_t *scene, uint64_t counts[6]) {
    const retained_index_t *index = &scene->index;
    counts[0] = index->count;
    counts[1] = index->made;
    counts[2] = index->bytes;
    counts[3] = index->table_bytes;
    counts[4] = scene->pool.used_bytes - scene->pool.free_bytes;
    counts[5] = index->oldest ? index->oldest->lsn : 0;
}
