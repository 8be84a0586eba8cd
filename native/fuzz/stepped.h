/* stepped.h: a stepped core. The fuzzer's bytes control its environment: clients that connect, send, read, are late and leave;
 * a Python side that answers, refuses or is busy; a clock; and, with a WAL, a disk that gets full or fails.
 *
 *      input      [configuration][step][step]...      a step: a byte for the action, a byte for the client, then its arguments
 *
 * Invariant, checked after every turn: the counters add up. Nothing before HELLO has an effect. At most one request of a
 * connection waits. Not more input is reported as consumed than was sent. All output consists of frames of a known type; a
 * message has a topic that matches one of the connection's own filters. A client that sent QUIT or ended its side, and had
 * enough time, has an answer to each earlier request.
 */
#ifndef BQ_FUZZ_STEPPED_H
#define BQ_FUZZ_STEPPED_H

#include "core.h"
#include "proto/blip_codec.h"
#include "fuzz.h"
#include "scarce_memory.h"

void wal_settle(wal_t *wal); /* from wal/wal_internal.h, whose names would conflict with the core's */

#define CLIENTS 6u
#define FILTERS_MAX 32u
#define STEPS_MAX 300u
#define COUNT(array) (uint32_t)(sizeof(array) / sizeof *(array))

static const char *const TOPICS[] = {"a", "a.b", "a.b.c", "s", "s/1/t", "$SYS/x", "a..b", "/", "many.1", "many.2", "\xc3\xa9.b"};
static const char *const FILTERS[] = {"a", "a.*", "a.>", ">", "s/+/t", "s/#", "#", "$SYS/#", "*", "+", "many.*", "s", "$dlq/>"};
static const char *const NAMES[] = {"", "one", "two", "#", "..", "\xff", "a name longer than most"};

typedef struct test_client {
    bq_conn_t conn;
    bool attaching, open, trusted, admitted, reads, asked;
    uint16_t ask_type;
    uint64_t ask_seq, ask_value, input_sent, consumed, credit_due, last_id;
    uint32_t ask_flags, ask_text_size, ask_data_size;
    uint8_t ask_text[REQUEST_BYTES_MAX], ask_data[REQUEST_BYTES_MAX];
    char filters[FILTERS_MAX][TOPIC_BYTES_MAX];
    uint32_t filter_sizes[FILTERS_MAX], filter_count;
    bool filters_unknown; /* more than are stored, or set without a request */
    bool answers_unknown; /* it got an answer without a request */
    bool desynchronised;  /* the core may parse other commands than intended */
    bool welcomed;        /* its HELLO was answered correctly: from now on each request must be answered */
    bool ended;           /* it sent QUIT or ended its side */
    uint64_t ended_ms;
    uint64_t requests, answers; /* requests that must be answered; Replies and SubAcks received */
    uint8_t *out;               /* bytes of a partial frame */
    uint32_t out_size, out_capacity;
} test_client_t;

typedef struct machine {
    bq_t *bq;
    bq_config_t config;
    uint64_t now_ms, id_max;
    test_client_t clients[CLIENTS];
    uint32_t allocations_before, allocations_failing; /* for the next turn */
    bool away, answering, stopped, someone_admitted;
    struct sim_disk *disk; /* NULL: no WAL */
    bool restores;         /* no core wrote the WAL, so its consumers may be inconsistent */
    /* Called for each whole frame; or NULL */
    void (*on_frame)(struct machine *machine, test_client_t *client, const uint8_t *frame, uint32_t size);
    void (*on_event)(struct machine *machine, const bq_event_t *event); /* called for events without a connection; or NULL */
} machine_t;

static bool push(machine_t *machine, bq_command_t command, text_t text, text_t data) {
    return bq_command(machine->bq, &command, text.bytes, text.size, data.bytes, data.size) == BQ_OK;
}

/* ---- output ------------------------------------------------------------------------------------------------------- */

static bool wanted(const test_client_t *client, text_t topic) {
    bool found = client->filters_unknown;
    for (uint32_t i = 0; i < client->filter_count && !found; i++)
        found = filter_match((const uint8_t *)client->filters[i], client->filter_sizes[i], topic.bytes, topic.size) == 1;
    return found;
}

static void message_check(machine_t *machine, test_client_t *client, const uint8_t *frame, uint32_t size) {
    bool qos1 = load_u32(frame + FRAME_HEADER_BYTES) == 28; /* the offset of its table: see proto/blip_codec.c */
    CHECK(qos1 || load_u32(frame + FRAME_HEADER_BYTES) == 20);
    message_t message = {.topic = header_template_topic(frame)};
    if (qos1) message_decode(frame, &message);
    text_t topic = {message.topic, load_u32(message.topic - 4)};
    CHECK(topic.size && topic.size < size && topic_check(topic.bytes, topic.size) == 0);
    CHECK(wanted(client, topic));
    client->last_id = load_u64(frame + FRAME_HEADER_BYTES + (qos1 ? 32 : 24));
    if (client->last_id > machine->id_max) machine->id_max = client->last_id;
}

static void out_add(test_client_t *client, const uint8_t *bytes, uint32_t size) {
    if (client->out_size + size > client->out_capacity) {
        client->out_capacity = (client->out_size + size) * 2;
        client->out = realloc(client->out, client->out_capacity);
        CHECK(client->out);
    }
    memcpy(client->out + client->out_size, bytes, size);
    client->out_size += size;
}

static void arrived(machine_t *machine, test_client_t *client, const uint8_t *bytes, uint32_t size) {
    uint32_t at = 0;
    out_add(client, bytes, size);
    while (client->out_size - at >= 4 && client->out_size - at - 4 >= load_be32(client->out + at)) {
        uint32_t whole = 4 + load_be32(client->out + at);
        CHECK(whole > FRAME_HEADER_BYTES && client->out[at + 4] <= 2);
        if (client->out[at + 4] == 1)
            message_check(machine, client, client->out + at, whole);
        else
            client->answers++;
        if (machine->on_frame) machine->on_frame(machine, client, client->out + at, whole);
        at += whole;
    }
    if (client->out_size - at >= 4) CHECK(load_be32(client->out + at) < 8u << 20);
    memmove(client->out, client->out + at, client->out_size - at);
    client->out_size -= at;
}

/* ---- the Python side ---------------------------------------------------------------------------------------------- */

static void admit(machine_t *machine, test_client_t *client, uint64_t seq) {
    static const char welcome[] = "welcome";
    client->admitted = client->welcomed = machine->someone_admitted = true;
    push(machine, (bq_command_t){.type = BQ_CMD_ADMIT, .conn = client->conn, .seq = seq},
         (text_t){(const uint8_t *)welcome, sizeof welcome - 1}, (text_t){NULL, 0});
}

static void filter_remember(test_client_t *client, text_t filter) {
    if (client->filter_count == FILTERS_MAX || filter.size > TOPIC_BYTES_MAX) {
        client->filters_unknown = true;
        return;
    }
    memcpy(client->filters[client->filter_count], filter.bytes, filter.size);
    client->filter_sizes[client->filter_count++] = filter.size;
}

static uint32_t client_number(const machine_t *machine, const test_client_t *client) {
    return (uint32_t)(client - machine->clients);
}

/* The client_id, then the group. Two clients share an id, so that durable subscriptions are taken over. */
static text_t subscriber_of(machine_t *machine, const test_client_t *client, uint8_t room[REQUEST_BYTES_MAX + 2]) {
    room[0] = 'c';
    room[1] = (uint8_t)('0' + client_number(machine, client) / 2);
    memcpy(room + 2, client->ask_data, client->ask_data_size);
    return (text_t){room, 2 + client->ask_data_size};
}

static void answer(machine_t *machine, test_client_t *client) {
    uint8_t room[REQUEST_BYTES_MAX + 2];
    text_t filter = {client->ask_text, client->ask_text_size}, none = {NULL, 0};
    bq_command_t command = {.conn = client->conn, .seq = client->ask_seq};
    client->asked = false;
    switch (client->ask_type) {
    case BQ_EV_HELLO: admit(machine, client, client->ask_seq); return;
    case BQ_EV_SUB:
        command.type = BQ_CMD_SUBSCRIBE;
        command.value = 2;
        command.flags =
            (client->ask_value ? BQ_SUB_QOS1 : 0u) | (client->ask_flags & BQ_EV_DURABLE ? BQ_SUB_DURABLE | BQ_SUB_QOS1 : 0u);
        filter_remember(client, filter);
        push(machine, command, filter, subscriber_of(machine, client, room));
        return;
    case BQ_EV_UNSUB:
        command.type = BQ_CMD_UNSUBSCRIBE;
        command.value = 2;
        push(machine, command, filter, subscriber_of(machine, client, room));
        return;
    default:
        command.type = BQ_CMD_REPLY;
        push(machine, command, none, (text_t){client->ask_data, client->ask_data_size});
        return;
    }
}

static void asked(machine_t *machine, test_client_t *client, const bq_event_t *event) {
    CHECK(client->open && (!client->asked || client->answers_unknown));
    CHECK(event->text_size <= REQUEST_BYTES_MAX && event->data_size <= REQUEST_BYTES_MAX);
    if (event->type != BQ_EV_HELLO) CHECK(client->admitted || client->trusted || !machine->config.require_hello);
    if (event->type == BQ_EV_SUB || event->type == BQ_EV_UNSUB) CHECK(filter_check(event->text, event->text_size) >= 0);
    client->asked = true;
    client->ask_type = event->type;
    client->ask_seq = event->seq;
    client->ask_value = event->value;
    client->ask_flags = event->flags;
    client->ask_text_size = event->text_size;
    client->ask_data_size = event->data_size;
    memcpy(client->ask_text, event->text, event->text_size);
    memcpy(client->ask_data, event->data, event->data_size);
    if (machine->answering) answer(machine, client);
}

#define ANSWER_MS 4000u /* less than the core waits for a client that does not read */

/* A client that ended its side, and was closed for no other reason, got every answer. */
static void ending_check(const machine_t *machine, const test_client_t *client, const bq_event_t *event) {
    bool in_order = event->code == BQ_CLOSE_EOF || event->code == BQ_CLOSE_QUIT;
    bool known = client->ended && !client->desynchronised && !client->answers_unknown && !event->text_size;
    if (in_order && known && machine->now_ms - client->ended_ms < ANSWER_MS) CHECK(client->answers >= client->requests);
}

static void client_gone(test_client_t *client) {
    free(client->out);
    memset(client, 0, sizeof *client);
}

static void credit_back(machine_t *machine, test_client_t *client, uint64_t bytes) {
    text_t none = {NULL, 0};
    if (bytes > client->credit_due) bytes = client->credit_due;
    if (bytes && push(machine, (bq_command_t){.type = BQ_CMD_CREDIT, .conn = client->conn, .value = bytes}, none, none))
        client->credit_due -= bytes;
}

static void attached(machine_t *machine, const bq_event_t *event) {
    test_client_t *client = &machine->clients[event->seq % CLIENTS];
    if (event->seq >= CLIENTS || !client->attaching) return; /* created by a command from the input: no client uses it */
    client->attaching = false;
    client->open = event->conn != 0;
    client->conn = event->conn;
}

static void handle(machine_t *machine, const bq_event_t *event) {
    test_client_t *client = NULL;
    for (uint32_t i = 0; i < CLIENTS; i++)
        if (machine->clients[i].open && machine->clients[i].conn == event->conn) client = &machine->clients[i];
    switch (event->type) {
    case BQ_EV_ATTACHED: attached(machine, event); return;
    case BQ_EV_STOPPED: machine->stopped = true; return;
    case BQ_EV_STATS: CHECK(event->data_size == sizeof(bq_stats_t)); return;
    case BQ_EV_LIST: CHECK(event->data_size % sizeof(bq_subscriber_t) == 0); return;
    case BQ_EV_ACCEPT: return;
    default: break;
    }
    if (!client && machine->on_event) machine->on_event(machine, event);
    if (!client) return;
    switch (event->type) {
    case BQ_EV_CLOSED:
        ending_check(machine, client, event);
        client_gone(client);
        return;
    case BQ_EV_UNSUBSCRIBED: CHECK(filter_check(event->text, event->text_size) >= 0); return;
    case BQ_EV_CONSUMED:
        client->consumed += event->value;
        CHECK(client->consumed <= client->input_sent);
        return;
    case BQ_EV_OUT:
        arrived(machine, client, event->data, event->data_size);
        client->credit_due += event->data_size;
        CHECK(client->credit_due <= CREDIT_BYTES);
        if (client->reads) credit_back(machine, client, client->credit_due);
        return;
    default: asked(machine, client, event); return;
    }
}

/* ---- turns -------------------------------------------------------------------------------------------------------- */

static void sums_check(machine_t *machine) {
    bq_stats_t s;
    core_stats(machine->bq, &s);
    uint64_t gone =
        s.delivered + s.dropped_ttl + s.dropped_queue_full + s.dropped_disconnect + s.dropped_session_log + s.dead_lettered;
    CHECK(s.enqueued == gone + s.queued_messages);
    CHECK(s.connections <= machine->config.max_connections && s.sessions <= machine->config.max_sessions);
    if (machine->config.require_hello && !machine->someone_admitted) CHECK(s.published == 0 && s.subscriptions == s.sessions);
}

/* Check one delivery: its place, its member, and its single copy in a queue. Returns true if it is in flight. */
static bool delivery_check(const consumer_t *consumer, const delivery_t *delivery) {
    const assignment_t *now = &delivery->now;
    CHECK(delivery->consumer == consumer && (!delivery->next || delivery->next->lsn > delivery->lsn));
    CHECK((delivery->place == DELIVERY_QUEUED) == (delivery->hold.other != NULL));
    CHECK(delivery->place == DELIVERY_WAITS || (now->member && now->member->consumer == consumer));
    if (delivery->hold.other) {
        CHECK(delivery->hold.other->other == &delivery->hold && delivery->hold.other->kept);
        CHECK(delivery->hold.other->queue == &now->member->client->queue);
    }
    CHECK(delivery->place != DELIVERY_HANDED || delivery->deliveries);
    CHECK(!delivery->alone || (now->member && now->member->alone));
    for (const assignment_t *late = delivery->late; late; late = late->next)
        CHECK(late->delivery == delivery && late->member != now->member && late->member->consumer == consumer);
    return delivery->place != DELIVERY_WAITS;
}

static void consumer_check(const bq_t *bq, const consumer_t *consumer) {
    uint32_t window = 0, flight = 0, members = 0, member_flight = 0, registrations = 0;
    for (const delivery_t *delivery = consumer->head; delivery; delivery = delivery->next, window++)
        flight += delivery_check(consumer, delivery);
    for (const member_t *member = consumer->members; member; member = member->next, members++) {
        member_flight += member->flight_count;
        CHECK(!member->alone || member->flight_count == 1);
        CHECK(member->client->live || connection_of(member->client)->state == CONNECTION_DEAD);
    }
    for (const registration_t *registration = consumer->registrations; registration; registration = registration->next)
        registrations++;
    CHECK(window == consumer->window_count && flight == consumer->flight_count && flight == member_flight);
    CHECK(members == consumer->member_count && registrations == consumer->registration_count &&
          (!registrations || consumer->durable));
    CHECK(!consumer->head || consumer->floor_lsn < consumer->head->lsn);
    CHECK(!consumer->behind || consumer->floor_lsn < consumer->next_lsn || consumer->head);
    CHECK(consumer->qos || !consumer->durable || !bq->broker.wal);
    for (uint32_t i = 1; consumer->history && i < consumer->history->count; i++)
        CHECK(consumer->history->entries[i - 1].after < consumer->history->entries[i].after);
}

static void consumers_check(machine_t *machine) {
    uint64_t flight = 0, more_registrations = 0, count = 0;
    for (const consumer_t *consumer = machine->bq->broker.consumers.all; consumer; consumer = consumer->next, count++) {
        consumer_check(machine->bq, consumer);
        flight += consumer->flight_count;
        more_registrations += consumer->registration_count > 1 ? consumer->registration_count - 1 : 0;
    }
    CHECK(flight == machine->bq->broker.consumers.flight_count &&
          more_registrations == machine->bq->broker.consumers.group_registrations);
    CHECK(count == machine->bq->broker.consumers.count);
}

static void turn(machine_t *machine, uint64_t advance_ms) {
    bq_event_t event;
    machine->now_ms += advance_ms;
    allocations_before = machine->allocations_before;
    allocations_failing = machine->allocations_failing;
    bq_turn(machine->bq, machine->now_ms, machine->now_ms + 1700000000000);
    machine->allocations_failing = allocations_failing = 0;
    if (machine->bq->broker.wal)
        wal_settle(machine->bq->broker.wal); /* wait for the threads, so that the same input gives the same run */
    while (!machine->away && bq_event(machine->bq, &event) == 1) handle(machine, &event);
    sums_check(machine);
    if (!machine->restores) consumers_check(machine);
}

static void settle(machine_t *machine, uint64_t advance_ms, uint32_t turns) {
    while (turns-- && !machine->stopped) turn(machine, advance_ms);
}

/* ---- input of clients --------------------------------------------------------------------------------------------- */

typedef struct fields {
    text_t topic, payload, client_id, api_key, group;
    uint64_t ttl_ms, seq, keepalive_ms;
    uint16_t protocol;
    uint8_t action, qos, durable;
} fields_t;

#define TABLE 48u /* offset of the table in command_encode */

static uint32_t vector_put(uint8_t *body, uint32_t at, uint32_t slot, uint32_t field, text_t text) {
    if (!text.size) return at;
    store_u16(body + 8 + 2 * slot, (uint16_t)field);
    store_u32(body + TABLE + field, at - TABLE - field);
    store_u32(body + at, text.size);
    memcpy(body + at + 4, text.bytes, text.size);
    body[at + 4 + text.size] = 0;
    return at + 4 + text.size + 1;
}

/* A ClientCommand with its length: vtable at 4, table at 48, vectors from 104 on. Returns the bytes written. `out` needs 124
 * bytes and the size of the texts. */
static uint32_t command_encode(uint8_t *out, const fields_t *fields) {
    uint8_t *body = out + 4;
    uint32_t at = 104;
    memset(body, 0, at);
    store_u32(body, TABLE);
    store_u16(body + 4, 38);
    store_u16(body + 6, 56);
    store_u32(body + TABLE, TABLE - 4);
    static const uint8_t scalars[][2] = {{0, 42}, {3, 4}, {4, 43}, {5, 12}, {8, 40}, {9, 44}, {16, 48}}; /* slot, offset */
    for (uint32_t i = 0; i < COUNT(scalars); i++) store_u16(body + 8 + 2 * scalars[i][0], scalars[i][1]);
    store_u64(body + TABLE + 4, fields->ttl_ms);
    store_u64(body + TABLE + 12, fields->seq);
    store_u16(body + TABLE + 40, fields->protocol);
    body[TABLE + 42] = fields->action;
    body[TABLE + 43] = fields->qos;
    body[TABLE + 44] = fields->durable;
    store_u64(body + TABLE + 48, fields->keepalive_ms);
    at = vector_put(body, at, 1, 20, fields->topic);
    at = vector_put(body, at, 2, 24, fields->payload);
    at = vector_put(body, at, 6, 28, fields->client_id);
    at = vector_put(body, at, 7, 32, fields->api_key);
    at = vector_put(body, at, 10, 36, fields->group);
    store_be32(out, at);
    return 4 + at;
}

/* Send the bytes at once, or in two parts with a turn in between. */
static void send_input(machine_t *machine, test_client_t *client, text_t bytes, uint32_t cut) {
    uint64_t before = client->conn;
    text_t none = {NULL, 0};
    while (bytes.size && client->open && client->conn == before) {
        uint32_t size = cut && cut < bytes.size ? cut : bytes.size;
        if (!push(machine, (bq_command_t){.type = BQ_CMD_INPUT, .conn = client->conn}, none, (text_t){bytes.bytes, size})) {
            client->desynchronised = true;
            return;
        }
        client->input_sent += size;
        bytes = (text_t){bytes.bytes + size, bytes.size - size};
        cut = 0;
        if (bytes.size) turn(machine, 0);
    }
}

static uint64_t input_time(input_t *input) {
    static const uint32_t times_ms[] = {0, 1, 9, 10, 50, 99, 1000, 1001, 5000, 31000, 1000000};
    return times_ms[input_byte(input) % COUNT(times_ms)];
}

static void ended(machine_t *machine, test_client_t *client) {
    if (!client->ended) client->ended_ms = machine->now_ms;
    client->ended = true;
}

static void step_command(machine_t *machine, test_client_t *client, input_t *input) {
    static uint8_t frame[160000];
    static const uint8_t payload[24000];
    uint8_t kind = input_byte(input), how = input_byte(input), big = input_byte(input);
    fields_t fields = {
        .action = kind & 7, .qos = kind >> 3 & 1, .durable = kind >> 4 & 1, .protocol = 1, .seq = input_byte(input)};
    bool names = fields.action == FRAME_SUB || fields.action == FRAME_UNSUB;
    fields.topic = names ? input_text(input, FILTERS, COUNT(FILTERS)) : input_text(input, TOPICS, COUNT(TOPICS));
    fields.payload = (text_t){payload, big < 200 ? big : (big - 200u) * 400u};
    if (how & 1) fields.group = input_text(input, NAMES, COUNT(NAMES));
    if (how & 2) fields.client_id = input_text(input, NAMES, COUNT(NAMES));
    if (how & 4) fields.api_key = input_text(input, NAMES, COUNT(NAMES));
    if (how & 8) fields.ttl_ms = input_time(input);
    if (how & 16) fields.ttl_ms = input_u64(input);
    if (fields.action == FRAME_ACK && !(how & 32)) fields.seq = client->last_id;
    if (fields.action == FRAME_HELLO) fields.keepalive_ms = fields.ttl_ms;
    uint32_t size = command_encode(frame, &fields);
    if (how & 64) {
        frame[input_byte(input) % size] ^= (uint8_t)(1u << (input_byte(input) & 7)); /* flips a bit near its front */
        client->desynchronised = true;
    }
    uint32_t cut = how & 128 ? 1 + input_byte(input) : 0;
    for (uint32_t times = kind & 32 ? 1 + (kind >> 6) * 5u : 1; times; times--) {
        bool owed = client->welcomed && !client->ended && fields.action != FRAME_ACK && fields.action != FRAME_QUIT;
        client->requests += owed && (fields.action != FRAME_PUB || fields.qos); /* QoS 0 is answered only if it is refused */
        send_input(machine, client, (text_t){frame, size}, cut);
        if (fields.action == FRAME_QUIT) ended(machine, client);
    }
}

static void step_raw(machine_t *machine, test_client_t *client, input_t *input) {
    uint8_t how = input_byte(input);
    text_t bytes = input_bytes(input, input_byte(input));
    uint8_t *copy = malloc(bytes.size + 4);
    CHECK(copy);
    store_be32(copy, bytes.size);
    if (bytes.size) memcpy(copy + 4, bytes.bytes, bytes.size);
    /* With a correct length in front, or unchanged */
    text_t all = how & 1 ? (text_t){copy, bytes.size + 4} : (text_t){copy + 4, bytes.size};
    client->desynchronised = true;
    send_input(machine, client, all, how >> 1);
    free(copy);
}

/* ---- steps ---------------------------------------------------------------------------------------------------------- */

static void step_attach(machine_t *machine, test_client_t *client, input_t *input) {
    text_t none = {NULL, 0};
    if (client->open || client->attaching) return;
    uint8_t how = input_byte(input);
    client_gone(client);
    client->trusted = how & 1;
    client->reads = !(how & 2);
    machine->someone_admitted |= client->trusted;
    client->attaching =
        push(machine,
             (bq_command_t){
                 .type = BQ_CMD_ATTACH, .seq = client_number(machine, client), .flags = client->trusted ? BQ_CONN_TRUSTED : 0},
             none, none);
    turn(machine, 0);
}

static void step_answer(machine_t *machine, test_client_t *client, input_t *input) {
    uint8_t how = input_byte(input);
    text_t none = {NULL, 0}, why = {(const uint8_t *)"no", 2};
    if (!client->asked) return;
    if (how % 4 == 0) {
        answer(machine, client);
        return;
    }
    client->asked = false;
    bq_command_t command = {.type = how % 4 == 3 ? BQ_CMD_CLOSE : BQ_CMD_REPLY, .conn = client->conn, .seq = client->ask_seq};
    command.code = 401;
    command.flags = how % 4 == 2 ? BQ_REPLY_CLOSE : 0;
    push(machine, command, why, none);
}

static void step_limits(machine_t *machine, input_t *input) {
    bq_config_t config = machine->config;
    config.subscriber_messages = 1 + input_byte(input) % 20;
    config.subscriber_bytes = 1 + 100ull * input_byte(input);
    config.overflow_policy = input_byte(input) % 4; /* 3 is invalid: rejected, nothing changes */
    text_t none = {NULL, 0}, data = {(const uint8_t *)&config, sizeof config};
    push(machine, (bq_command_t){.type = BQ_CMD_LIMITS}, none, data);
    if (config.overflow_policy <= BQ_OVERFLOW_POLICY_BLOCK) machine->config = config;
}

/* Any command without a descriptor, for any connection, including stale and invalid handles. */
static void step_record(machine_t *machine, test_client_t *client, input_t *input) {
    static const uint16_t types[] = {BQ_CMD_CREDIT,
                                     BQ_CMD_ADMIT,
                                     BQ_CMD_SUBSCRIBE,
                                     BQ_CMD_UNSUBSCRIBE,
                                     BQ_CMD_REPLY,
                                     BQ_CMD_CLOSE,
                                     BQ_CMD_STATS,
                                     BQ_CMD_LIST,
                                     BQ_CMD_LIMITS,
                                     BQ_CMD_ATTACH,
                                     BQ_CMD_ACL,
                                     0,
                                     99};
    bq_command_t command = {.type = types[input_byte(input) % COUNT(types)], .flags = input_byte(input), .seq = CLIENTS + 1};
    command.conn = client->conn ^ input_byte(input);
    command.value = input_byte(input) & 1 ? input_u64(input) : input_byte(input);
    command.code = input_byte(input) % 10;
    text_t text = input_text(input, FILTERS, COUNT(FILTERS)), data = input_text(input, NAMES, COUNT(NAMES));
    for (uint32_t i = 0; i < CLIENTS && command.type == BQ_CMD_SUBSCRIBE; i++) machine->clients[i].filters_unknown = true;
    bool lets_in = command.type == BQ_CMD_ADMIT || command.type == BQ_CMD_SUBSCRIBE || command.flags & BQ_CONN_TRUSTED;
    machine->someone_admitted |= lets_in; /* Python admits it, with or without a HELLO */
    for (uint32_t i = 0; i < CLIENTS && command.type == BQ_CMD_ADMIT; i++) machine->clients[i].admitted = true;
    /* It may end the wait for another answer, or the connection, with any code. */
    for (uint32_t i = 0; i < CLIENTS && command.type <= BQ_CMD_CLOSE; i++)
        machine->clients[i].answers_unknown |= machine->clients[i].conn == command.conn;
    if (command.type == BQ_CMD_SUBSCRIBE && filter_check(text.bytes, text.size) < 0) return;
    if (command.type == BQ_CMD_CREDIT) command.value = 0; /* any other value would break the credit window */
    push(machine, command, text, data);
}

static inline void step(machine_t *machine, uint8_t what, input_t *input) {
    test_client_t *client = &machine->clients[input_byte(input) % CLIENTS];
    text_t none = {NULL, 0};
    if (what >= 232 && what < 240) {
        machine->allocations_before = input_byte(input) % 16;
        machine->allocations_failing = what - 231;
        return;
    }
    if (what >= 224 && what < 232) { /* its end of file, possibly after commands that the core has not parsed yet */
        if (client->open &&
            push(machine, (bq_command_t){.type = BQ_CMD_INPUT, .conn = client->conn, .flags = BQ_INPUT_END}, none, none))
            ended(machine, client);
        return;
    }
    switch (what % 16) {
    case 0: step_attach(machine, client, input); return;
    case 1:
    case 2:
    case 3:
    case 4: step_command(machine, client, input); return;
    case 5: step_raw(machine, client, input); return;
    case 6: step_answer(machine, client, input); return;
    case 7: credit_back(machine, client, input_byte(input) * 97u); return;
    case 8: client->reads = !client->reads; return;
    case 9: settle(machine, input_time(input), 1); return;
    case 10: settle(machine, input_time(input), 1 + input_byte(input) % 8); return;
    case 11:
        client->answers_unknown = true; /* closed before it got all of them */
        push(machine, (bq_command_t){.type = BQ_CMD_CLOSE, .conn = client->conn, .code = BQ_CLOSE_BROKER}, none, none);
        return;
    case 12: machine->answering = !machine->answering; return;
    case 13: machine->away = !machine->away; return;
    case 14: step_limits(machine, input); return;
    default: step_record(machine, client, input); return;
    }
}

/* ---- beginning and end ---------------------------------------------------------------------------------------------- */

/* Small limits, so that a few steps reach them. All other settings have the broker's defaults. */
static bq_config_t config_of(input_t *input) {
    uint8_t flags = input_byte(input), size = input_byte(input), count = input_byte(input), frame = input_byte(input);
    bq_config_t config;
    bq_config_default(&config);
    config.memory_bytes = flags & 1 ? 400000 + 4000u * size : 0;
    config.subscriber_bytes = flags & 2 ? 1 + 64u * size : 1 << 20;
    config.default_ttl_ms = flags & 4 ? 100 : 0;
    config.max_ttl_ms = flags & 4 ? 5000 : UINT64_MAX / 4;
    config.subscriber_messages = 1 + count % 32;
    config.overflow_policy = count >> 5 & 3 ? (count >> 5 & 3) - 1u : 0;
    config.max_connections = 1 + frame % 8;
    config.max_frame_bytes = frame & 16 ? 64 + size * 4u : 1 << 20;
    config.max_frame_bytes_unauth = frame & 32 ? 64 : 1024;
    config.require_hello = flags >> 3 & 1;
    config.max_batch = 1 + (size & 15);
    config.max_batch_bytes = frame & 64 ? 1 : 65536;
    config.flush_interval_ms = flags & 16 ? 10 : 0;
    config.tick_ms = flags & 32 ? 10 : 1;
    config.buffer_bytes = frame & 128 ? 65536 : 4096;
    config.route_cache_entries = 1 + count % 3;
    config.pool_small_count = 4;
    config.pool_medium_count = 2;
    config.pool_large_count = 1;
    config.ring_bytes = 65536;
    config.flush_subscribers = 1 + size % 4;
    config.expire_batch = 1 + size % 3;
    config.lazy_expiry = flags >> 6 & 1;
    config.ack_timeout_ms = 1000;
    config.max_in_flight = 1 + count % 4;
    config.max_sessions = 1 + count % 7;
    config.max_sessions_per_key = 1 + count % 5;
    config.max_deliveries = 1 + size % 3;
    config.run_messages = flags & 128 ? 2 : 0;
    config.max_pending = 1 + size % 8;
    config.max_pending_per_address = 1 + size % 8;
    config.accept_burst = 1;
    config.max_topic_levels = 4 + frame % 8;
    config.keepalive_ms = size & 1 ? 1000 + 100u * size : 0;
    return config;
}

static void everyone_gone(machine_t *machine) {
    for (uint32_t i = 0; i < CLIENTS; i++) client_gone(&machine->clients[i]);
}

/* All clients answer and read again, then the core stops. It must stop, and nothing may be left in it. */
static void finish(machine_t *machine) {
    text_t none = {NULL, 0};
    bq_stats_t stats;
    machine->away = false;
    machine->answering = true;
    for (uint32_t i = 0; i < CLIENTS; i++) {
        test_client_t *client = &machine->clients[i];
        client->reads = true;
        settle(machine, 0, 1);
        if (client->asked) answer(machine, client);
        credit_back(machine, client, client->credit_due);
    }
    settle(machine, 1, 4);
    for (uint32_t tries = 0; tries < 50 && !push(machine, (bq_command_t){.type = BQ_CMD_STOP, .value = 1000}, none, none);
         tries++)
        settle(machine, 1, 1);
    settle(machine, 100, 100);
    CHECK(machine->stopped);
    /* Lists that are processed step by step may still hold ended connections */
    for (uint32_t turns = 0; turns < 20; turns++) turn(machine, 1);
    core_stats(machine->bq, &stats);
    CHECK(stats.queued_messages == 0 && stats.connections == 0 && stats.blocked_publishers == 0 && stats.in_flight == 0);
    bq_free(machine->bq);
    everyone_gone(machine);
}

#endif
