/* micro.c: the cost of one operation of each leaf module, in nanoseconds, without sockets or threads.
 *
 * bench/micro.py builds it with all of native/, runs it and formats a table. Run alone, it prints NAME, UNIT and nanoseconds,
 * separated by tabs.
 *
 * Invariant: each figure is the best of ROUNDS rounds, which is the least disturbed one. Results are stored in `sink`, so that
 * no operation is optimised away. Compare only figures of the same machine and run.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* clock_gettime */
#endif

#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "broker/client.h"
#include "base/crc32.h"
#include "proto/blip_codec.h"
#include "proto/mqtt_codec.h"
#include "base/pool.h"
#include "base/ring.h"
#include "broker/router.h"
#include "base/wheel.h"

#define ROUNDS 7
#define TIMERS 100000u
#define PAYLOAD_BYTES 64u

static volatile uint64_t sink;

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void report(const char *name, uint64_t (*round)(void), const char *unit) {
    double best_ns = 1e30;
    for (int i = 0; i < ROUNDS; i++) {
        uint64_t start_ns = now_ns(), operations = round();
        double ns = (double)(now_ns() - start_ns) / (double)operations;
        if (ns < best_ns) best_ns = ns;
    }
    printf("%s\t%s\t%.3f\n", name, unit, best_ns);
    fflush(stdout);
}

/* ---- the wheel ------------------------------------------------------------------------------------------------------ */

static wheel_t wheel;
static wheel_timer_t timers[TIMERS];

/* Publishes at a steady rate with one TTL: insert a few per tick, advance, and all of them expire. */
static uint64_t wheel_steady(uint64_t ttl_ticks) {
    const uint32_t per_tick = 100;
    uint64_t expired = 0;
    wheel_init(&wheel, 12345);
    for (uint32_t next = 0; next < TIMERS;) {
        for (uint32_t i = 0; i < per_tick; i++, next++) wheel_insert(&wheel, &timers[next], wheel.now + ttl_ticks);
        for (uint64_t to = wheel.now + 1; wheel_take(&wheel, to);) expired++;
    }
    for (uint64_t to = wheel.now + ttl_ticks; wheel_take(&wheel, to);) expired++;
    if (expired != TIMERS) abort();
    return TIMERS;
}

static uint64_t wheel_1_s(void) { return wheel_steady(100); }       /* of 10 ms: level 0 only */
static uint64_t wheel_60_s(void) { return wheel_steady(6000); }     /* one cascade each */
static uint64_t wheel_1_day(void) { return wheel_steady(8640000); } /* two cascades each */

/* Each timer has its own TTL, 10 ms to 80 s, so neighbours in memory are in different slots of the wheel. */
static uint64_t wheel_scattered(void) {
    uint64_t expired = 0, random = 1;
    wheel_init(&wheel, 12345);
    for (uint32_t i = 0; i < TIMERS; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        wheel_insert(&wheel, &timers[i], wheel.now + 1 + (random >> 51));
    }
    while (wheel.armed)
        for (uint64_t to = wheel.now + 1; wheel_take(&wheel, to);) expired++;
    if (expired != TIMERS) abort();
    return TIMERS;
}

static uint64_t wheel_insert_remove(void) {
    wheel_init(&wheel, 12345);
    for (uint32_t i = 0; i < TIMERS; i++) wheel_insert(&wheel, &timers[i], wheel.now + 1 + i % 5000);
    for (uint32_t i = 0; i < TIMERS; i++) wheel_remove(&wheel, &timers[i]);
    sink += wheel.armed;
    return TIMERS;
}

/* ---- the pool and the ring ------------------------------------------------------------------------------------------ */

static pool_t pool;

static uint64_t pool_take_give(void) {
    static const size_t sizes[] = {64, 96, 200, 500, 1500, 4000, 90, 65536};
    void *blocks[8];
    const uint64_t operations = 2000000;
    for (uint64_t i = 0; i < operations; i += 8) {
        for (int k = 0; k < 8; k++) blocks[k] = pool_alloc(&pool, sizes[k]);
        for (int k = 0; k < 8; k++) pool_free(&pool, blocks[k], sizes[k]);
    }
    return operations;
}

static ring_t ring;

static uint64_t ring_push_pop(void) {
    const uint64_t operations = 2000000;
    uint32_t size = 0;
    for (uint64_t i = 0; i < operations; i++) {
        store_u64(ring_reserve(&ring, 48), i);
        ring_commit(&ring);
        sink += load_u64(ring_peek(&ring, &size));
        ring_pop(&ring);
    }
    return operations;
}

/* ---- crc32 ---------------------------------------------------------------------------------------------------------- */

static uint8_t bulk[1 << 20];

static uint64_t crc32_bulk(void) {
    for (int i = 0; i < 32; i++) sink += crc32_update(0, bulk, sizeof bulk);
    return 32u * sizeof bulk;
}

static uint64_t crc32_short(void) {
    const uint64_t operations = 1000000;
    for (uint64_t i = 0; i < operations; i++) sink += crc32_update(0, bulk + (i & 1023), 100);
    return operations;
}

/* ---- frames --------------------------------------------------------------------------------------------------------- */

/* The vector "v1 publish with ttl": action, topic, payload, ttl_ms, with the layout of the flatbuffers builders. */
static const uint8_t publish[] = {0x14, 0,   0,    0,   0,    0, 0,    0, 0x0c, 0,   0x14, 0,   0,   0,   0x08, 0,    0x04, 0,
                                  0x0c, 0,   0x0c, 0,   0,    0, 0x10, 0, 0,    0,   0x20, 0,   0,   0,   0x88, 0x13, 0,    0,
                                  0,    0,   0,    0,   0x0e, 0, 0,    0, 'S',  'e', 'r',  'v', 'e', 'r', ' ',  's',  't',  'a',
                                  'r',  't', 'e',  'd', 0,    0, 0x06, 0, 0,    0,   'e',  'v', 'e', 'n', 't',  's',  0,    0};

static uint64_t verify_publish(void) {
    const uint64_t operations = 5000000;
    for (uint64_t i = 0; i < operations; i++) {
        bq_view_t view;
        if (frame_verify(publish, sizeof publish, &view) != 0) abort();
        sink += view.topic_size;
    }
    return operations;
}

static const char topic[] = "plant/7/line/3/temperature";

/* A PUBLISH of MQTT 5 with QoS 0 and 64 bytes of payload. */
static uint64_t read_mqtt_publish(void) {
    const uint64_t operations = 5000000;
    uint8_t packet[128];
    const mqtt_text_t name = {(const uint8_t *)topic, sizeof topic - 1};
    uint32_t header_size = mqtt_template_write(packet + 64, MQTT_5, name);
    uint32_t size = mqtt_template_header(packet, false, packet + 64, header_size, PAYLOAD_BYTES) + PAYLOAD_BYTES;
    for (uint64_t i = 0; i < operations; i++) {
        mqtt_frame_t frame;
        mqtt_publish_t read;
        int header = mqtt_frame_read(packet, size, MQTT_5, sizeof packet, &frame);
        if (header <= 0 || mqtt_publish_read(&frame, packet + header, MQTT_5, &read) != 0) abort();
        sink += read.topic.size;
    }
    return operations;
}

static uint64_t check_topic(void) {
    const uint64_t operations = 5000000;
    for (uint64_t i = 0; i < operations; i++) sink += (uint64_t)topic_check((const uint8_t *)topic, sizeof topic - 1);
    return operations;
}

static uint64_t match_filter(void) {
    static const char filter[] = "plant/+/line/+/temperature";
    const uint64_t operations = 2000000;
    for (uint64_t i = 0; i < operations; i++)
        sink += (uint64_t)filter_match((const uint8_t *)filter, sizeof filter - 1, (const uint8_t *)topic, sizeof topic - 1);
    return operations;
}

static uint8_t prefix[512];

/* Like the publish path: copy the topic's header template to the open buffer, patch its numbers, append the payload. */
static uint64_t encode_message(void) {
    const uint64_t operations = 5000000;
    uint32_t prefix_size = header_template_size(sizeof topic - 1);
    size_t frame_bytes = prefix_size + PAYLOAD_BYTES, at = 0;
    for (uint64_t i = 0; i < operations; i++, at += frame_bytes) {
        if (at + frame_bytes > sizeof bulk) at = 0;
        memcpy(bulk + at, prefix, prefix_size);
        header_patch(bulk + at, prefix_size, i, i, 0, PAYLOAD_BYTES);
        memcpy(bulk + at + prefix_size, publish, PAYLOAD_BYTES);
    }
    sink += bulk[at / 2];
    return operations;
}

static uint64_t encode_reply(void) {
    const uint64_t operations = 5000000;
    for (uint64_t i = 0; i < operations; i++) sink += frame_write_reply(bulk + (i & 1023), i, 0, NULL, 0, i, NULL, 0);
    return operations;
}

/* ---- routes --------------------------------------------------------------------------------------------------------- */

#define TOPICS 1000u

static routes_t *routes;
static uint64_t work;
static client_t subscribers[TOPICS];
static uint8_t names[TOPICS][32];
static uint32_t name_size;
#define LEVELS_MAX 64u

/* One subscriber per topic. Ten of them also hold one of five wildcards; each wildcard matches all topics. */
static bool routes_fill(void) {
    static const char *const wildcards[] = {"plant.>", "plant.*.line.*.t", "plant.*.line.>", "*.*.line.*.t", "plant.*.*.*.t"};
    int error = 0;
    const hash_key_t key = hash_key_from(1);
    bool well = (routes = route_new(&pool, 4096, &key, &work, NULL, NULL)) != NULL;
    for (uint32_t i = 0; well && i < TOPICS; i++) {
        name_size = (uint32_t)snprintf((char *)names[i], sizeof names[i], "plant.%02u.line.%02u.t", i / 100, i % 100);
        well = route_subscribe(routes, &subscribers[i], &subscribers[i].subscriptions, names[i], name_size) == 1 &&
               route_topic(routes, names[i], name_size, LEVELS_MAX, &error);
    }
    for (uint32_t i = 0; well && i < 10; i++) {
        const char *filter = wildcards[i % 5];
        client_t *connection = &subscribers[i];
        well = route_subscribe(routes, connection, &connection->subscriptions, (const uint8_t *)filter,
                               (uint32_t)strlen(filter)) == 1;
    }
    return well;
}

static void routes_empty(void) {
    for (uint32_t i = 0; i < TOPICS; i++)
        while (subscribers[i].subscriptions) route_leave(routes, subscribers[i].subscriptions);
    route_free(routes);
}

static uint64_t route_hit(void) {
    const uint64_t operations = 2000000;
    int error;
    for (uint64_t i = 0; i < operations; i++)
        sink += route_topic(routes, names[i * 7 % TOPICS], name_size, LEVELS_MAX, &error)->name_size;
    return operations;
}

static uint64_t route_match(void) {
    const uint64_t operations = 200000;
    int error;
    for (uint64_t i = 0; i < operations; i++) {
        topic_t *found = route_topic(routes, names[i * 7 % TOPICS], name_size, LEVELS_MAX, &error);
        if (route_resolve(routes, found, UINT32_MAX) != ROUTE_READY) abort();
        sink += found->target_count;
    }
    return operations;
}

int main(void) {
    pool_init(&pool, 2048, 256, 32);
    if (ring_init(&ring, 1 << 16) != BQ_OK || !routes_fill()) return 1;
    header_template_write(prefix, (const uint8_t *)topic, sizeof topic - 1);

    report("wheel: insert and expire, 1 s at 10 ms", wheel_1_s, "timer");
    report("wheel: insert and expire, 60 s", wheel_60_s, "timer");
    report("wheel: insert and expire, 1 day", wheel_1_day, "timer");
    report("wheel: insert and expire, scattered over 80 s", wheel_scattered, "timer");
    report("wheel: insert and remove", wheel_insert_remove, "timer");
    report("pool: take and give", pool_take_give, "block");
    report("ring: reserve, commit, peek, pop", ring_push_pop, "record");
    report("crc32: 1 MiB at a time", crc32_bulk, "byte");
    report("crc32: 100 bytes at a time", crc32_short, "100 bytes");
    report("decode: verify a publish with a time to live", verify_publish, "frame");
    report("decode: read a PUBLISH of MQTT 5, 64 bytes", read_mqtt_publish, "packet");
    report("decode: check a topic of 26 bytes", check_topic, "topic");
    report("encode: message of 64 bytes into a segment", encode_message, "frame");
    report("encode: Reply", encode_reply, "frame");
    report("route: topic to its targets, 1,000 in the cache", route_hit, "look-up");
    report("route: match a topic, 1,000 filters and 5 wildcards", route_match, "match");
    report("route: one filter with two + against a topic", match_filter, "match");

    routes_empty();
    ring_free(&ring);
    pool_release(&pool);
    return 0;
}
