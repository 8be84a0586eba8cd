/* guard.c: sends a few shapes of load through the core, one message after the other, so that its instructions can be counted.
 *
 *      publishers --socketpair--> the core, stepped: bq_wait, bq_turn --socketpair--> subscribers          all in this thread
 *
 * bench/guard.py builds it, runs it under callgrind and compares the counts. Run alone, it only checks that all messages
 * arrive. Each shape has its own core. Callgrind resets its counters before the measured rounds and writes their cost
 * afterwards.
 *
 * Invariant: every run executes the same instructions. Time is an argument of the core. All messages are delivered before more
 * are written. Sockets accept a whole round's output. The disk of QoS 1 is in memory. Only the WAL's threads run in parallel,
 * and each round waits for them.
 */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>
#include <valgrind/callgrind.h>

#include "proto/blip_codec.h"
#include "sim_disk.h"
#include "wire.h"

enum {
    ROUND_BYTES = 32 << 10, /* publishes; those of one publisher in one write */
    QOS1_MESSAGES = 64,     /* per round: publishes that a publisher has outstanding */
    WARM_ROUNDS = 20,
    ROUNDS = 40,
    CONNECTIONS_MAX = 128,
    FRAME_BYTES_MAX = 2048,
    STEPS_MAX = 1000 /* turns of a round before the test fails */
};

#define WALL_MS 1700000000000u /* wall clock when a core starts */

typedef struct {
    const char *name;
    uint32_t publishers, subscribers, topics, wildcards, payload_bytes, ttl_ms;
    bool single_writes, qos1;
} shape_t;

static const shape_t shapes[] = {
    {.name = "1x1/64", .publishers = 1, .subscribers = 1, .topics = 1, .payload_bytes = 64},
    {.name = "1x8/64", .publishers = 1, .subscribers = 8, .topics = 1, .payload_bytes = 64},
    {.name = "1x32/64", .publishers = 1, .subscribers = 32, .topics = 1, .payload_bytes = 64},
    {.name = "8x8/64", .publishers = 8, .subscribers = 8, .topics = 8, .payload_bytes = 64},
    {.name = "1x1/1024", .publishers = 1, .subscribers = 1, .topics = 1, .payload_bytes = 1024},
    {.name = "1x1/64, time to live", .publishers = 1, .subscribers = 1, .topics = 1, .payload_bytes = 64, .ttl_ms = 60000},
    {.name = "1x1/64, one a write", .publishers = 1, .subscribers = 1, .topics = 1, .payload_bytes = 64, .single_writes = true},
    {.name = "100 topics in turn/64", .publishers = 1, .subscribers = 100, .topics = 100, .payload_bytes = 64},
    {.name = "8 topics in turn, a wildcard/64", .publishers = 1, .wildcards = 1, .topics = 8, .payload_bytes = 64},
    {.name = "QoS 1, 1x1/64", .publishers = 1, .subscribers = 1, .topics = 1, .payload_bytes = 64, .qos1 = true},
};

typedef struct {
    const shape_t *shape;
    const wire_t *wire;
    bq_t *bq;
    uint64_t now_ms;
    /* Our ends of the socket pairs; subscribers first, then wildcards */
    int publishers[CONNECTIONS_MAX], readers[CONNECTIONS_MAX];
    uint32_t reader_count;
    uint8_t *round; /* of one publisher, encoded */
    uint32_t round_messages, message_bytes, frame_bytes;
    uint32_t answered; /* answered requests */
    uint64_t expected_bytes, received_bytes;
    uint8_t tail[CONNECTIONS_MAX][FRAME_BYTES_MAX]; /* QoS 1: bytes of a partial frame */
    uint32_t tail_bytes[CONNECTIONS_MAX];
} guard_t;

static __attribute__((noreturn, format(printf, 1, 2))) void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("guard: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

/* Replaces native/wal/storage_posix.c. One disk at a time: each shape with a WAL begins with an empty one. */
static sim_disk_t *disk;
storage_t *storage_disk(const char *directory, int *error) {
    (void)directory, (void)error;
    return sim_disk_storage(disk);
}

bool storage_present(const char *directory) {
    (void)directory;
    return true;
}

/* ---- the Python side's duties -------------------------------------------------------------------------------------- */

static void command(guard_t *guard, const bq_command_t *command, const uint8_t *text, uint32_t text_size) {
    if (bq_command(guard->bq, command, text, text_size, (const uint8_t *)"guard", command->value ? 5 : 0) != BQ_OK)
        fail("the core took no command");
}

static void answer(guard_t *guard, const bq_event_t *event) {
    bq_command_t reply = {.conn = event->conn, .seq = event->seq};
    if (event->type == BQ_EV_CLOSED) fail("a connection was closed: %.*s", (int)event->text_size, (const char *)event->text);
    if (event->type != BQ_EV_HELLO && event->type != BQ_EV_SUB) return;
    reply.type = event->type == BQ_EV_HELLO ? BQ_CMD_ADMIT : BQ_CMD_SUBSCRIBE;
    if (event->type == BQ_EV_SUB && event->value) reply.flags = BQ_SUB_QOS1, reply.value = 5;
    command(guard, &reply, event->text, event->type == BQ_EV_SUB ? event->text_size : 0);
    guard->answered++;
}

/* A turn as in the I/O thread. If nothing is ready it waits, because only the WAL's threads can change that. */
static void turn(guard_t *guard) {
    bq_event_t event;
    if (bq_wait(guard->bq, -1) < 0) fail("the core cannot wait");
    guard->now_ms++;
    bq_turn(guard->bq, guard->now_ms, WALL_MS + guard->now_ms);
    while (bq_event(guard->bq, &event) == 1) answer(guard, &event);
}

/* ---- clients -------------------------------------------------------------------------------------------------------- */

static void send_all(int fd, const uint8_t *bytes, size_t size) {
    if (send(fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT) != (ssize_t)size)
        fail("a socket did not take %zu bytes at once", size);
}

/* HELLO, SUB and ACK: action, topic, qos and seq in a table at 24, the topic behind it. */
static void request(int fd, enum frame_action action, const char *topic, uint8_t qos, uint64_t seq) {
    static const uint16_t slots[] = {16, 24, 4, 8, 0, 0, 5, 16};
    uint8_t frame[128] = {0}, *body = frame + 4;
    uint32_t size = (uint32_t)strlen(topic), end = 48 + 4 + size + 1;
    store_be32(frame, end);
    store_u32(body, 24);
    for (uint32_t i = 0; i < 8; i++) store_u16(body + 4 + 2 * i, slots[i]);
    store_u32(body + 24, 20);
    body[24 + 4] = (uint8_t)action;
    body[24 + 5] = qos;
    store_u32(body + 24 + 8, 48 - (24 + 8));
    store_u64(body + 24 + 16, seq);
    store_u32(body + 48, size);
    for (uint32_t i = 0; i < size; i++) body[52 + i] = (uint8_t)topic[i];
    send_all(fd, frame, 4 + end);
}

static int connection_new(guard_t *guard) {
    int ends[2], bytes = 1 << 20;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) < 0) fail("no socketpair");
    for (int i = 0; i < 2; i++) setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    command(guard, &(bq_command_t){.type = BQ_CMD_ADOPT, .value = (uint64_t)ends[0]}, NULL, 0);
    return ends[1];
}

static void ask(guard_t *guard, int fd, enum frame_action action, const char *topic) {
    uint32_t before = guard->answered;
    uint8_t reply[256];
    request(fd, action, topic, guard->shape->qos1, 1);
    for (int i = 0; guard->answered == before; i++) {
        if (i == STEPS_MAX) fail("a request was never answered");
        turn(guard);
    }
    for (int i = 0; recv(fd, reply, sizeof reply, MSG_DONTWAIT) <= 0; i++) {
        if (i == STEPS_MAX) fail("an answer never came");
        turn(guard);
    }
}

/* QoS 1: acknowledge each complete message received. The id is at a fixed place in the core's frames. */
static void acknowledge(guard_t *guard, uint32_t reader, const uint8_t *bytes, size_t size) {
    uint8_t *tail = guard->tail[reader];
    for (size_t i = 0; i < size; i++) {
        uint32_t kept = guard->tail_bytes[reader];
        tail[kept++] = bytes[i];
        bool whole = kept >= 4 && kept == 4 + load_be32(tail);
        if (whole) request(guard->readers[reader], FRAME_ACK, "", 0, load_u64(tail + FRAME_HEADER_BYTES + 32));
        guard->tail_bytes[reader] = whole ? 0 : kept;
        if (kept == FRAME_BYTES_MAX) fail("a frame is longer than a message of this shape");
    }
}

static void read_all(guard_t *guard) {
    static uint8_t bytes[256 << 10];
    ssize_t got;
    for (uint32_t i = 0; i < guard->reader_count; i++) {
        while ((got = recv(guard->readers[i], bytes, sizeof bytes, MSG_DONTWAIT)) > 0) {
            guard->received_bytes += (uint64_t)got;
            if (guard->shape->qos1) acknowledge(guard, i, bytes, (size_t)got);
        }
    }
    for (uint32_t i = 0; guard->shape->qos1 && i < guard->shape->publishers; i++)
        while (recv(guard->publishers[i], bytes, sizeof bytes, MSG_DONTWAIT) > 0) continue; /* Replies */
}

/* ---- shapes --------------------------------------------------------------------------------------------------------- */

/* The defaults of `blipmq start`, except for the size of its tables and for limits that would cost instructions unrelated to
 * messages. The figures in guard.json are for these settings. */
static bq_config_t config_of_guard(void) {
    bq_config_t config;
    bq_config_default(&config);
    config.memory_bytes = 0;
    config.max_connections = 1000;
    config.max_sessions = 100;
    config.max_sessions_per_key = 100;
    config.accept_rate = 0;
    config.run_messages = 0;
    config.tcp_nodelay = 0;
    return config;
}

static const bq_wal_config_t wal_config = {.max_bytes = 64 << 20, .segment_bytes = 1 << 20, .batch_bytes = 128 << 10};

static void topic_name(char *name, uint32_t topic) { snprintf(name, 32, "guard.topic.%03u", topic); }

static void round_encode(guard_t *guard, uint8_t *round, uint32_t publisher) {
    const shape_t *shape = guard->shape;
    uint8_t payload[FRAME_BYTES_MAX] = {0};
    char name[32];
    wire_places_t places;
    uint32_t each = shape->topics > shape->publishers ? shape->topics / shape->publishers : 1;
    for (uint32_t i = 0; i < guard->round_messages; i++) {
        topic_name(name, (publisher + i % each * shape->publishers) % shape->topics);
        uint8_t *at = round + (size_t)i * guard->message_bytes;
        size_t size = guard->wire->publish(at, name, payload, shape->payload_bytes, shape->ttl_ms, &places);
        if (size != guard->message_bytes) fail("messages differ in size");
    }
}

static void clients_open(guard_t *guard) {
    const shape_t *shape = guard->shape;
    char name[32];
    for (uint32_t i = 0; i < shape->subscribers + shape->wildcards; i++) {
        int fd = guard->readers[guard->reader_count++] = connection_new(guard);
        if (shape->qos1) ask(guard, fd, FRAME_HELLO, "");
        topic_name(name, i % shape->topics);
        ask(guard, fd, FRAME_SUB, i < shape->subscribers ? name : "guard.*.>");
    }
    for (uint32_t i = 0; i < shape->publishers; i++) {
        guard->publishers[i] = connection_new(guard);
        if (shape->qos1) ask(guard, guard->publishers[i], FRAME_HELLO, "");
    }
}

static void guard_open(guard_t *guard, const shape_t *shape) {
    static uint8_t sample[FRAME_BYTES_MAX + WIRE_OVERHEAD_BYTES_MAX];
    uint8_t payload[FRAME_BYTES_MAX] = {0};
    wire_places_t places;
    char name[32];
    bq_wal_report_t report;
    bq_config_t config = config_of_guard();
    *guard = (guard_t){.shape = shape, .wire = wire_named(shape->qos1 ? "blipmq1" : "blipmq"), .bq = bq_new(&config, 1)};
    if (!guard->bq || !guard->wire) fail("no core");
    if (shape->qos1) {
        disk = sim_disk_new(1);
        if (bq_wal_open(guard->bq, "", &wal_config, &report) != BQ_OK) fail("the log did not open");
    }
    topic_name(name, 0);
    uint32_t topic_size = (uint32_t)strlen(name);
    guard->message_bytes = (uint32_t)guard->wire->publish(sample, name, payload, shape->payload_bytes, shape->ttl_ms, &places);
    guard->frame_bytes =
        (shape->qos1 ? message_header_size(&(message_t){.topic_size = topic_size}) : header_template_size(topic_size)) +
        shape->payload_bytes;
    guard->round_messages = shape->qos1 ? QOS1_MESSAGES : shape->single_writes ? 8 : ROUND_BYTES / guard->message_bytes;
    guard->round_messages -= guard->round_messages % (shape->topics > shape->publishers ? shape->topics : 1);
    guard->round = malloc((size_t)guard->round_messages * guard->message_bytes + FRAME_BYTES_MAX);
    if (!guard->round) fail("out of memory");
    clients_open(guard);
}

static uint64_t round_run(guard_t *guard) {
    const shape_t *shape = guard->shape;
    uint64_t copies = (shape->subscribers + shape->topics - 1) / shape->topics + shape->wildcards;
    uint64_t delivered = 0;
    for (uint32_t at = 0; at < guard->round_messages;) {
        uint32_t count = shape->single_writes ? 1 : guard->round_messages;
        for (uint32_t i = 0; i < shape->publishers; i++) {
            round_encode(guard, guard->round, i);
            send_all(guard->publishers[i], guard->round, (size_t)count * guard->message_bytes);
            delivered += count * copies;
        }
        guard->expected_bytes += count * copies * shape->publishers * guard->frame_bytes;
        for (int step = 0; guard->received_bytes < guard->expected_bytes; step++) {
            if (step == STEPS_MAX) fail("%s: not everything was delivered", shape->name);
            turn(guard);
            read_all(guard);
        }
        at += count;
    }
    if (shape->qos1) turn(guard); /* the last acknowledgements */
    if (guard->received_bytes != guard->expected_bytes) fail("%s: more was delivered than published", shape->name);
    return delivered;
}

static void guard_close(guard_t *guard) {
    for (uint32_t i = 0; i < guard->reader_count; i++) close(guard->readers[i]);
    for (uint32_t i = 0; i < guard->shape->publishers; i++) close(guard->publishers[i]);
    bq_free(guard->bq);
    free(guard->round);
    if (guard->shape->qos1) sim_disk_free(disk);
}

int main(void) {
    static guard_t guard;
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        uint64_t delivered = 0;
        guard_open(&guard, &shapes[i]);
        for (int round = 0; round < WARM_ROUNDS; round++) round_run(&guard);
        CALLGRIND_ZERO_STATS;
        for (int round = 0; round < ROUNDS; round++) delivered += round_run(&guard);
        CALLGRIND_DUMP_STATS_AT(shapes[i].name);
        printf("%s\t%llu\n", shapes[i].name, (unsigned long long)delivered);
        fflush(stdout);
        guard_close(&guard);
    }
    return 0;
}
