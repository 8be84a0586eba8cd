/* fuzz_secure.c: a stepped core with the TLS module of tests/native/toy_secure.c. The fuzzer's bytes control what clients send and
 * how it is cut, what they read, when they leave, a clock, other contexts, and failing allocations.
 *
 *      input      [configuration][step][step]...      a step: a byte for the action, a byte for the client, then its arguments
 *
 * Invariant: every client receives whole records in order, or an incomplete last one. No request of a client reaches Python
 * before its handshake is done. After the stop nothing is left in the core or in the module.
 */
#include "core.h"
#include "net/secure.h"
#include "fuzz.h"
#include "scarce_memory.h"
#include "../../tests/native/toy_secure.c"

#include <fcntl.h>
#include <sys/socket.h>

#define CLIENTS 4u
#define STEPS_MAX 300u
#define QUEUED_MAX (64u << 10)
#define ANSWER_BYTES 50000u
#define SOCKET_BYTES 4096

typedef struct test_client {
    int fd; /* -1: none */
    uint32_t sealed, opened;
    uint8_t *queued; /* records not sent yet */
    uint32_t queued_size;
    bool cuts; /* sends only on request */
    uint8_t in[TOY_HEAD + TOY_RECORD_MAX];
    uint32_t in_size;
} test_client_t;

typedef struct machine {
    bq_t *bq;
    bq_config_t config;
    uint64_t now_ms;
    test_client_t clients[CLIENTS];
    bool answering, stopped;
    uint32_t allocations_before, allocations_failing; /* for the next turn */
} machine_t;

/* ---- the Python side ------------------------------------------------------------------------------------------------------ */

static bool push(machine_t *machine, bq_command_t command, const uint8_t *text, uint32_t text_size, uint32_t data_size) {
    static const uint8_t zeros[ANSWER_BYTES];
    return bq_command(machine->bq, &command, text, text_size, zeros, data_size) == BQ_OK;
}

static void answer_request(machine_t *machine, const bq_event_t *event) {
    bq_command_t command = {.type = BQ_CMD_REPLY, .conn = event->conn, .seq = event->seq};
    const connection_t *connection = connection_find(&machine->bq->net, event->conn);
    CHECK(!connection || connection->state == CONNECTION_DEAD || connection->secure->open);
    if (event->type == BQ_EV_HELLO) command.type = BQ_CMD_ADMIT;
    if (event->type == BQ_EV_SUB) command.type = BQ_CMD_SUBSCRIBE;
    bool sub = event->type == BQ_EV_SUB;
    push(machine, command, sub ? event->text : NULL, sub ? event->text_size : 0, command.type == BQ_CMD_REPLY ? ANSWER_BYTES : 0);
}

static void handle(machine_t *machine, const bq_event_t *event) {
    switch (event->type) {
    case BQ_EV_HELLO:
    case BQ_EV_SUB:
    case BQ_EV_UNSUB:
    case BQ_EV_INFO:
    case BQ_EV_ADMIN:
        if (machine->answering) answer_request(machine, event);
        return;
    case BQ_EV_SECURE: CHECK(event->code >= BQ_HANDSHAKE_DONE && event->code <= BQ_HANDSHAKE_REFUSED_ADDRESS); return;
    case BQ_EV_STOPPED: machine->stopped = true; return;
    default: return;
    }
}

static void turn(machine_t *machine, uint64_t advance_ms) {
    bq_event_t event;
    bq_stats_t stats;
    machine->now_ms += advance_ms;
    bq_wait(machine->bq, 0);
    allocations_before = machine->allocations_before;
    allocations_failing = machine->allocations_failing;
    bq_turn(machine->bq, machine->now_ms, machine->now_ms + 1700000000000);
    machine->allocations_failing = allocations_failing = 0;
    while (bq_event(machine->bq, &event) == 1) handle(machine, &event);
    core_stats(machine->bq, &stats);
    CHECK(stats.secure_open + stats.secure_pending <= stats.connections + machine->bq->net.refused_count);
    CHECK(stats.connections <= machine->config.max_connections);
}

/* ---- clients -------------------------------------------------------------------------------------------------------------- */

static void drop(test_client_t *client) {
    if (client->fd >= 0) close(client->fd);
    free(client->queued);
    *client = (test_client_t){.fd = -1};
}

static void dial(machine_t *machine, test_client_t *client) {
    int ends[2], bytes = SOCKET_BYTES;
    if (client->fd >= 0) return;
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    for (int i = 0; i < 2; i++) {
        CHECK(fcntl(ends[i], F_SETFL, O_NONBLOCK) == 0);
        CHECK(setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes) == 0);
    }
    *client = (test_client_t){.fd = ends[0], .queued = malloc(QUEUED_MAX)};
    CHECK(client->queued);
    bq_command_t command = {.type = BQ_CMD_ADOPT, .flags = BQ_CONN_SECURE, .value = (uint64_t)ends[1]};
    if (!push(machine, command, NULL, 0, 0)) close(ends[1]);
}

static void send_queued(test_client_t *client, uint32_t size_max) {
    uint32_t size = client->queued_size < size_max ? client->queued_size : size_max;
    ssize_t sent = size && client->fd >= 0 ? send(client->fd, client->queued, size, MSG_NOSIGNAL) : 0;
    if (sent <= 0) return;
    client->queued_size -= (uint32_t)sent;
    memmove(client->queued, client->queued + sent, client->queued_size);
}

static void say(test_client_t *client, uint8_t type, text_t content) {
    if (client->fd < 0 || client->queued_size + TOY_HEAD + content.size > QUEUED_MAX) return;
    client->queued_size += toy_record(client->queued + client->queued_size, type, client->sealed++, content.bytes, content.size);
    if (!client->cuts) send_queued(client, UINT32_MAX);
}

static void say_raw(test_client_t *client, text_t bytes) {
    if (client->fd < 0 || client->queued_size + bytes.size > QUEUED_MAX || !bytes.size) return;
    memcpy(client->queued + client->queued_size, bytes.bytes, bytes.size);
    client->queued_size += bytes.size;
}

/* Whole records with the right number, in a known order of types. */
static void hear(test_client_t *client, const uint8_t *bytes, uint32_t size) {
    while (size) {
        uint32_t want = TOY_HEAD;
        if (client->in_size >= TOY_HEAD) want += (uint32_t)client->in[1] << 8 | client->in[2];
        CHECK(want <= sizeof client->in);
        uint32_t part = want - client->in_size < size ? want - client->in_size : size;
        memcpy(client->in + client->in_size, bytes, part);
        client->in_size += part;
        bytes += part;
        size -= part;
        bool whole = client->in_size >= TOY_HEAD && client->in_size == TOY_HEAD + ((uint32_t)client->in[1] << 8 | client->in[2]);
        if (!whole) continue;
        const uint8_t type = client->in[0], first = client->in[TOY_HEAD] ^ mask(client->opened);
        CHECK(type >= TOY_HANDSHAKE && type <= TOY_ASK);
        CHECK(type != TOY_HANDSHAKE || client->in_size == TOY_HEAD || first == 0);
        client->opened++;
        client->in_size = 0;
    }
}

static void take_some(test_client_t *client, uint32_t size) {
    uint8_t buffer[8192];
    if (client->fd < 0) return;
    ssize_t got = recv(client->fd, buffer, size < sizeof buffer ? size : sizeof buffer, 0);
    if (got > 0) hear(client, buffer, (uint32_t)got);
    if (got == 0) drop(client);
}

static void use_context(machine_t *machine, uint8_t steps, uint8_t size) {
    bq_command_t command = {.type = BQ_CMD_SECURE,
                            .flags = steps & 128 ? BQ_SECURE_TELL : 0,
                            .value = (uint64_t)(uintptr_t)toy_ops(),
                            .seq = (uint64_t)(uintptr_t)toy_context(steps % 4, size * 400u, 0)};
    if (!push(machine, command, NULL, 0, 0)) toy_context_free((void *)(uintptr_t)command.seq);
}

/* ---- steps ---------------------------------------------------------------------------------------------------------------- */

static void step(machine_t *machine, uint8_t what, input_t *input) {
    static const uint16_t times_ms[] = {0, 1, 10, 100, 1000, 5000};
    test_client_t *client = &machine->clients[input_byte(input) % CLIENTS];
    uint8_t how;
    switch (what % 16) {
    case 0: dial(machine, client); return;
    case 1: say(client, TOY_HANDSHAKE, input_bytes(input, input_byte(input) % 64)); return;
    case 2: say(client, TOY_DATA, input_bytes(input, input_byte(input))); return;
    case 3: say(client, TOY_CLOSE, (text_t){NULL, 0}); return;
    case 4:
        for (how = input_byte(input); how; how--) say(client, TOY_ASK, (text_t){NULL, 0});
        return;
    case 5: say_raw(client, input_bytes(input, input_byte(input))); return;
    case 6:
        if (client->fd >= 0) shutdown(client->fd, SHUT_WR);
        return;
    case 7: drop(client); return;
    case 8: take_some(client, input_byte(input) * 33u + 1); return;
    case 9: send_queued(client, input_byte(input) + 1u); return;
    case 10: client->cuts = !client->cuts; return;
    case 11:
        how = input_byte(input);
        use_context(machine, how, input_byte(input));
        return;
    case 12: machine->answering = !machine->answering; return;
    case 13:
        machine->allocations_before = input_byte(input) % 8;
        machine->allocations_failing = 1 + what / 16;
        return;
    default: turn(machine, times_ms[input_byte(input) % (sizeof times_ms / sizeof *times_ms)]); return;
    }
}

static void finish(machine_t *machine) {
    bq_stats_t stats;
    machine->answering = true;
    for (uint32_t i = 0; i < CLIENTS; i++) {
        for (uint32_t tries = 0; tries < 20; tries++) {
            send_queued(&machine->clients[i], UINT32_MAX);
            turn(machine, 1);
            take_some(&machine->clients[i], UINT32_MAX);
        }
    }
    while (!push(machine, (bq_command_t){.type = BQ_CMD_STOP, .value = 1000}, NULL, 0, 0)) turn(machine, 1);
    for (uint32_t turns = 0; turns < 100 && !machine->stopped; turns++) turn(machine, 100);
    CHECK(machine->stopped);
    for (uint32_t turns = 0; turns < 20; turns++) turn(machine, 1);
    core_stats(machine->bq, &stats);
    CHECK(stats.connections == 0 && stats.secure_open == 0 && stats.secure_pending == 0 && stats.queued_messages == 0);
    bq_free(machine->bq);
    for (uint32_t i = 0; i < CLIENTS; i++) drop(&machine->clients[i]);
    CHECK(toy_alive() == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input_t input = {data, data + size};
    machine_t machine = {.now_ms = 1000, .answering = true};
    uint8_t flags = input_byte(&input), steps = input_byte(&input), answer_size = input_byte(&input);
    bq_config_default(&machine.config);
    machine.config.require_hello = flags & 1;
    machine.config.max_connections = flags & 2 ? 2 : CLIENTS;
    machine.config.max_pending = flags & 4 ? 2 : CLIENTS;
    machine.config.memory_bytes = flags & 8 ? 600000 : 0;
    machine.config.overflow_policy = flags >> 4 & 1 ? BQ_OVERFLOW_POLICY_BLOCK : BQ_OVERFLOW_POLICY_DROP_OLDEST;
    machine.config.subscriber_messages = 20;
    machine.config.ring_bytes = 1u << 18;
    for (uint32_t i = 0; i < CLIENTS; i++) machine.clients[i].fd = -1;
    machine.bq = bq_new(&machine.config, 1);
    CHECK(machine.bq);
    use_context(&machine, steps, answer_size);
    for (uint32_t count = 0; count < STEPS_MAX && input.at < input.end; count++) step(&machine, input_byte(&input), &input);
    finish(&machine);
    return 0;
}
