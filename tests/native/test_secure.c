/* test_secure.c: handshakes in the thread bq-tls while the core's own thread runs, with the module of toy_secure.c.
 *
 * Clients complete their handshake, leave in the middle of it, send what is not TLS, or are still shaking hands when the core
 * stops. The context is replaced meanwhile. ThreadSanitizer finds data races; the module ends the process if two threads use a
 * state; at the end it must have nothing left.
 */
#include "base/bytes.h"
#include "check.h"
#include "toy_secure.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#define ROUNDS 12u
#define CLIENTS 24u
#define STEPS 3u
#define ANSWER_BYTES 20000u /* two records */
#define SLOW_US 300u

enum behaviour { SERVED, LEAVES, NOT_TLS, BEHAVIOURS };

static bq_t *core;
static uint64_t failures_told;

static void command(bq_command_t given) { CHECK(bq_command(core, &given, NULL, 0, NULL, 0) == BQ_OK); }

static void use_context(void) {
    command((bq_command_t){.type = BQ_CMD_SECURE,
                           .value = (uint64_t)(uintptr_t)toy_ops(),
                           .seq = (uint64_t)(uintptr_t)toy_context(STEPS, ANSWER_BYTES, SLOW_US)});
}

static bool next_event(bq_event_t *event) {
    struct pollfd ready = {.fd = bq_event_fd(core), .events = POLLIN};
    if (bq_event(core, event) == 1) return true;
    return poll(&ready, 1, 20) >= 0 && bq_event(core, event) == 1;
}

static void take_events(void) {
    bq_event_t event;
    while (bq_event(core, &event) == 1) failures_told += event.type == BQ_EV_SECURE && event.code == BQ_HANDSHAKE_FAILED;
}

static int dial(void) {
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    struct timeval limit = {.tv_sec = 30};
    CHECK(setsockopt(ends[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    command((bq_command_t){.type = BQ_CMD_ADOPT, .flags = BQ_CONN_SECURE, .value = (uint64_t)ends[1]});
    return ends[0];
}

static void say(int client, uint8_t type, uint32_t number) {
    uint8_t record[TOY_HEAD + 16];
    uint32_t size = toy_record(record, type, number, (const uint8_t *)"sixteen bytes...", type == TOY_CLOSE ? 0 : 16);
    CHECK(send(client, record, size, MSG_NOSIGNAL) == (ssize_t)size);
}

/* The answers of the handshake, then CLOSE, then the end of file. */
static void expect_served(int client) {
    uint8_t buffer[4096], last = 0;
    uint64_t total = 0;
    ssize_t got;
    while ((got = recv(client, buffer, sizeof buffer, 0)) > 0) {
        total += (uint64_t)got;
        if (got >= (ssize_t)TOY_HEAD) last = buffer[got - (ssize_t)TOY_HEAD];
    }
    CHECK(got == 0 && last == TOY_CLOSE);
    CHECK(total == STEPS * (ANSWER_BYTES + 2ull * TOY_HEAD) + TOY_HEAD);
}

static void one_round(uint32_t number) {
    int clients[CLIENTS];
    for (uint32_t i = 0; i < CLIENTS; i++) clients[i] = dial();
    for (uint32_t i = 0; i < CLIENTS; i++) {
        enum behaviour behaviour = (i + number) % BEHAVIOURS;
        say(clients[i], behaviour == NOT_TLS ? TOY_DATA : TOY_HANDSHAKE, 0);
        for (uint32_t step = 1; behaviour == SERVED && step < STEPS; step++) say(clients[i], TOY_HANDSHAKE, step);
        if (behaviour == SERVED) say(clients[i], TOY_CLOSE, STEPS);
        if (behaviour == LEAVES) close(clients[i]);
    }
    if (number % 3 == 1) use_context();
    for (uint32_t i = 0; i < CLIENTS; i++) {
        if ((i + number) % BEHAVIOURS == SERVED) expect_served(clients[i]);
        if ((i + number) % BEHAVIOURS != LEAVES) close(clients[i]);
    }
    take_events();
}

static void stop(void) {
    bq_event_t event = {0};
    command((bq_command_t){.type = BQ_CMD_STOP, .value = 0});
    for (uint32_t tries = 0; tries < 1000 && event.type != BQ_EV_STOPPED; tries++) next_event(&event);
    CHECK(event.type == BQ_EV_STOPPED);
    CHECK(bq_join(core) == BQ_OK);
    bq_free(core);
}

int main(void) {
    bq_config_t config;
    int late[CLIENTS];
    bq_config_default(&config);
    config.max_connections = 4 * CLIENTS;
    config.max_pending = 4 * CLIENTS;
    core = bq_new(&config, 1);
    CHECK(core && bq_start(core) == BQ_OK);
    use_context();
    for (uint32_t number = 0; number < ROUNDS; number++) one_round(number);
    CHECK(failures_told > 0);
    for (uint32_t i = 0; i < CLIENTS; i++) late[i] = dial();
    for (uint32_t i = 0; i < CLIENTS; i++) say(late[i], TOY_HANDSHAKE, 0);
    usleep(3 * SLOW_US);
    stop();
    for (uint32_t i = 0; i < CLIENTS; i++) close(late[i]);
    CHECK(toy_alive() == 0);
    return 0;
}
