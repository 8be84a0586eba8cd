/* fuzz_promise.c: compares durable subscriptions and queue groups with a simple model of the messages that each must get.
 *
 *      input      [configuration][step][step]...
 *
 * Steps: three clients connect, subscribe, read, acknowledge and leave; one client publishes; restarts, kills, power cuts, a
 * full disk; time passes. Depending on the configuration, subscriptions expire, and there is a WAL quota with a client that
 * collects dead letters.
 *
 * Invariant at the end, when the disk works again and all clients have returned: each acknowledged publish has reached every
 * durable subscription and group that existed, whatever flags its members had. Exceptions: its time to live is over; or it
 * exceeded the quota and is a dead letter or dropped, as configured. A subscription expires only after a long time without a
 * connection. Invariant at any time: no client gets a message that was not published, whose time to live is over, or that no
 * subscription of this client matches. No message comes again after its ACK, unless the broker was killed since. A repeated
 * message is marked as redelivered. First deliveries keep the order of publishing.
 */
#include "sim_storage.h"
#include "stepped.h"
#include "wal/span.h"

enum {
    DISK_BYTES = 1 << 20,
    WAL_BYTES = 96 << 10,
    PEOPLE = 3,
    PUBLISHER = 5,
    COLLECTOR = 6,
    MESSAGES_MAX = 200,
    SUBS_MAX = 12,
    LETTERS_MAX = 64,
    QUOTA_BYTES = 24 << 10,
    SEGMENT_BYTES = 16 << 10,
    EXPIRY_MS = 1500
};

static const bq_wal_config_t wal_config = {
    .max_bytes = WAL_BYTES, .segment_bytes = SEGMENT_BYTES, .flush_interval_ms = 2, .batch_bytes = 4096, .block_bytes = 0};

static const char *const WHERE[] = {"a", "a.x", "b"};
static const char *const WANTED[] = {"a", "a.>", "b"};
static const bool MATCHES[COUNT(WANTED)][COUNT(WHERE)] = {{true, false, false}, {false, true, false}, {false, false, true}};

/* State of each message for a durable subscription or a group. */
enum had { HAD_NOTHING, HAD_SEEN, HAD_DONE };

typedef struct sub {
    uint8_t filter, group; /* group 0: none */
    uint8_t owner;         /* client, if it has no group */
    uint8_t durable;       /* bits of the clients that hold it; 0: it is not durable, or does not exist */
    uint8_t joined;        /* bits of the clients that are connected to it now */
    uint64_t seen_ms;      /* when a client was last connected to it */
    uint32_t first;        /* from this message on it must get everything, */
    uint32_t durable_from; /* but before this one only as much as its queue could hold */
    /* First deliveries come in order; in a group only per member, because members may read at different speeds */
    uint32_t newest;
    uint8_t had[MESSAGES_MAX];
    uint8_t given[MESSAGES_MAX]; /* bits of the clients that got it now and may acknowledge it */
    bool unsure[MESSAGES_MAX];   /* its ACK may have been lost by a kill */
} sub_t;

typedef struct sent {
    uint8_t topic;
    bool acknowledged, sent, dropped; /* dropped: by the full queue of a subscription that was not durable */
    bool dead;                        /* it has arrived as a dead letter */
    bool far;                         /* it has exceeded the quota, less one segment */
    uint64_t lsn;                     /* its LSN, or an earlier one */
    uint64_t id, ttl_ms, at_ms;
    uint32_t size;
} sent_t;

typedef struct model {
    machine_t machine;
    sub_t subs[SUBS_MAX];
    sent_t messages[MESSAGES_MAX];
    uint32_t count;
    uint64_t unacked[PEOPLE][64]; /* ids that a client may acknowledge */
    uint32_t unacked_count[PEOPLE];
    bool reads[PEOPLE], acks[PEOPLE];
    uint64_t seq, answer_seq;
    uint16_t answer_code;
    bool answered;
    uint32_t boot;
    uint64_t letters[LETTERS_MAX]; /* ids that the collector must acknowledge */
    uint32_t letters_count;
    bool collects;     /* the collector has subscribed on this connection */
    bool letters_lost; /* some were not collected, or were dropped and counted */
} model_t;

/* ---- received frames ---------------------------------------------------------------------------------------------- */

static uint64_t frame_field(const uint8_t *frame, uint32_t slot, uint32_t size) {
    const uint8_t *buffer = frame + FRAME_HEADER_BYTES, *table = buffer + load_u32(buffer);
    const uint8_t *vtable = table - (int32_t)load_u32(table);
    uint32_t at = 4 + 2 * slot < load_u16(vtable) ? load_u16(vtable + 4 + 2 * slot) : 0;
    if (!at) return 0;
    return size == 8 ? load_u64(table + at) : size == 2 ? load_u16(table + at) : table[at];
}

static text_t frame_vector(const uint8_t *frame, uint32_t slot) {
    const uint8_t *buffer = frame + FRAME_HEADER_BYTES, *table = buffer + load_u32(buffer);
    const uint8_t *vtable = table - (int32_t)load_u32(table);
    uint32_t at = 4 + 2 * slot < load_u16(vtable) ? load_u16(vtable + 4 + 2 * slot) : 0;
    if (!at) return (text_t){NULL, 0};
    const uint8_t *vector = table + at + load_u32(table + at);
    return (text_t){vector + 4, load_u32(vector)};
}

static uint8_t payload_byte(uint32_t number, uint32_t at) { return (uint8_t)(number * 31 + at * 7 + 1); }

/* Identify the message by its payload, and check the whole payload. */
static uint32_t message_of(model_t *model, text_t payload) {
    uint32_t number;
    CHECK(payload.size >= sizeof number);
    memcpy(&number, payload.bytes, sizeof number);
    CHECK(number < model->count && payload.size == model->messages[number].size);
    for (uint32_t at = sizeof number; at < payload.size; at++) CHECK(payload.bytes[at] == payload_byte(number, at));
    return number;
}

static void letter_came(model_t *model, const uint8_t *frame) {
    uint32_t number = message_of(model, frame_vector(frame, 1));
    sent_t *message = &model->messages[number];
    text_t topic = frame_vector(frame, 4);
    const char *where = WHERE[message->topic];
    CHECK(topic.size == 5 + strlen(where) && !memcmp(topic.bytes, "$dlq/", 5) && !memcmp(topic.bytes + 5, where, strlen(where)));
    CHECK(message->far);
    message->dead = true;
    if (model->letters_count < LETTERS_MAX) model->letters[model->letters_count++] = frame_field(frame, 0, 8);
}

static void message_came(model_t *model, uint32_t person, const uint8_t *frame) {
    uint32_t number = message_of(model, frame_vector(frame, 1));
    sent_t *message = &model->messages[number];
    uint64_t id = frame_field(frame, 0, 8);
    bool redelivered = frame_field(frame, 6, 1), expected = false, seen = false;
    CHECK(frame_field(frame, 5, 1) == 1);
    CHECK(!message->id || message->id == id);
    message->id = id;
    if (message->ttl_ms) CHECK(model->machine.now_ms < message->at_ms + message->ttl_ms + 2 * model->machine.config.tick_ms);
    for (sub_t *sub = model->subs; sub < model->subs + SUBS_MAX; sub++) {
        if (!(sub->joined >> person & 1) || !MATCHES[sub->filter][message->topic]) continue;
        expected |= sub->had[number] != HAD_DONE || sub->unsure[number];
        seen |= sub->had[number] != HAD_NOTHING;
        if (sub->had[number] == HAD_NOTHING && !sub->group) {
            CHECK(number + 1 > sub->newest);
            sub->newest = number + 1;
        }
        if (sub->had[number] == HAD_NOTHING) sub->had[number] = HAD_SEEN;
        sub->given[number] |= (uint8_t)(1u << person);
    }
    CHECK(expected);
    CHECK(!seen || redelivered);
    if (model->unacked_count[person] < COUNT(model->unacked[person])) model->unacked[person][model->unacked_count[person]++] = id;
}

static void frame_came(machine_t *machine, test_client_t *client, const uint8_t *frame, uint32_t size) {
    model_t *model = (model_t *)(void *)machine; /* machine is its first member */
    uint32_t number = client_number(machine, client);
    (void)size;
    if (frame[4] == 1 && number == 1) {
        letter_came(model, frame);
        return;
    }
    if (frame[4] == 1) {
        CHECK(number % 2 == 0 && number / 2 < PEOPLE);
        message_came(model, number / 2, frame);
        return;
    }
    uint32_t seq_slot = frame[4] == 0 ? 2 : 0, code_slot = frame[4] == 0 ? 3 : 1;
    if (frame_field(frame, seq_slot, 8) != model->answer_seq) return;
    model->answered = true;
    model->answer_code = (uint16_t)frame_field(frame, code_slot, 2);
}

/* ---- sent frames -------------------------------------------------------------------------------------------------- */

static test_client_t *client_of(model_t *model, uint32_t person) {
    return &model->machine.clients[person == PUBLISHER ? PUBLISHER : person == COLLECTOR ? 1 : 2 * person];
}

/* Send a request. Returns the code of its answer; 0xffff: no answer. */
static uint16_t ask_for(model_t *model, test_client_t *client, fields_t fields) {
    static uint8_t frame[16384];
    if (!client->open) return UINT16_MAX;
    fields.seq = model->answer_seq = ++model->seq + (1ull << 32);
    model->answered = false;
    send_input(&model->machine, client, (text_t){frame, command_encode(frame, &fields)}, 0);
    for (uint32_t turns = 0; turns < 24 && !model->answered; turns++) turn(&model->machine, turns < 6 ? 0 : 2);
    return model->answered ? model->answer_code : UINT16_MAX;
}

static text_t text_of(const char *text) { return (text_t){(const uint8_t *)text, (uint32_t)strlen(text)}; }

static void come(model_t *model, uint32_t person) {
    test_client_t *client = client_of(model, person);
    text_t none = {NULL, 0};
    if (client->open || client->attaching) return;
    client_gone(client);
    client->trusted = client->reads = client->attaching = true;
    model->machine.someone_admitted = true;
    CHECK(push(&model->machine,
               (bq_command_t){.type = BQ_CMD_ATTACH, .seq = client_number(&model->machine, client), .flags = BQ_CONN_TRUSTED},
               none, none));
    settle(&model->machine, 0, 3);
    CHECK(ask_for(model, client, (fields_t){.action = FRAME_HELLO, .protocol = 1}) == 0);
    if (person < PEOPLE) model->unacked_count[person] = 0;
}

static void part(const model_t *model, sub_t *sub, uint32_t person) {
    if (sub->joined) sub->seen_ms = model->machine.now_ms;
    sub->joined &= (uint8_t) ~(1u << person);
    for (uint32_t number = 0; number < MESSAGES_MAX; number++) sub->given[number] &= (uint8_t) ~(1u << person);
}

static void parted(model_t *model, uint32_t person) {
    for (sub_t *sub = model->subs; sub < model->subs + SUBS_MAX; sub++) part(model, sub, person);
    model->unacked_count[person] = 0;
}

static void go_away(model_t *model, uint32_t person) {
    test_client_t *client = client_of(model, person);
    text_t none = {NULL, 0};
    if (!client->open) return;
    push(&model->machine, (bq_command_t){.type = BQ_CMD_CLOSE, .conn = client->conn, .code = BQ_CLOSE_BROKER}, none, none);
    settle(&model->machine, 0, 4);
    if (person < PEOPLE) parted(model, person);
}

static sub_t *sub_find(model_t *model, uint32_t person, uint8_t filter, uint8_t group) {
    sub_t *free_one = NULL;
    for (sub_t *sub = model->subs; sub < model->subs + SUBS_MAX; sub++) {
        bool used = sub->durable || sub->joined;
        if (used && sub->filter == filter && sub->group == group && (group || sub->owner == person)) return sub;
        if (!used && !free_one) free_one = sub;
    }
    CHECK(free_one);
    *free_one = (sub_t){.filter = filter, .group = group, .owner = (uint8_t)person, .first = model->count};
    return free_one;
}

/* true: the client belongs to another subscription with the same filter. Then it is unclear which subscription a message
 * came through. */
static bool elsewhere(const model_t *model, uint32_t person, uint8_t filter, uint8_t group) {
    for (const sub_t *sub = model->subs; sub < model->subs + SUBS_MAX; sub++)
        if (sub->filter == filter && sub->group != group && ((sub->joined | sub->durable) >> person & 1)) return true;
    return false;
}

/* In a group any flags; alone only durable subscriptions, because only these have guarantees. */
static void subscribe(model_t *model, uint32_t person, uint8_t filter, uint8_t group, bool durable) {
    test_client_t *client = client_of(model, person);
    static const char *const groups[] = {"", "g", "h"};
    fields_t fields = {.action = FRAME_SUB, .qos = 1, .durable = durable, .topic = text_of(WANTED[filter])};
    if (group) fields.group = text_of(groups[group]);
    if (!client->open || elsewhere(model, person, filter, group)) return;
    sub_t *sub = sub_find(model, person, filter, group);
    bool new_one = !sub->durable && !sub->joined, was_durable = sub->durable, was_in_it = sub->joined >> person & 1;
    sub->joined |= (uint8_t)(1u << person); /* messages may come before the SubAck */
    uint16_t code = ask_for(model, client, fields);
    if (code == UINT16_MAX) { /* unknown result: as after a lost connection; the next SUB will show */
        go_away(model, person);
        return;
    }
    if (code) {
        if (!was_in_it) part(model, sub, person);
        return;
    }
    if (durable && !was_durable) sub->durable_from = model->count;
    if (durable && !was_durable && new_one) sub->first = model->count;
    if (durable) sub->durable |= (uint8_t)(1u << person);
}

static void unsubscribe(model_t *model, uint32_t person, uint8_t filter) {
    test_client_t *client = client_of(model, person);
    if (!client->open) return;
    uint16_t code = ask_for(model, client, (fields_t){.action = FRAME_UNSUB, .topic = text_of(WANTED[filter])});
    if (code == 503) return;
    CHECK(code == 0 || code == 404 || code == UINT16_MAX);
    for (sub_t *sub = model->subs; sub < model->subs + SUBS_MAX; sub++) {
        if (sub->filter != filter || (!sub->group && sub->owner != person)) continue;
        part(model, sub, person);
        sub->durable &= (uint8_t) ~(1u << person);
        if (!sub->durable && !sub->joined) *sub = (sub_t){0};
    }
}

static uint64_t wal_next_lsn(const model_t *model) {
    wal_span_t span;
    wal_span(model->machine.bq->broker.wal, &span);
    return span.lsn[span.count];
}

/* ---- messages that may be lost ------------------------------------------------------------------------------------ */

static void look_back(model_t *model) {
    wal_span_t span;
    bq_stats_t stats;
    if (!model->machine.config.session_log_bytes) return;
    wal_span(model->machine.bq->broker.wal, &span);
    core_stats(model->machine.bq, &stats);
    if (stats.dead_letters_dropped) model->letters_lost = true;
    for (uint32_t i = 0; i < model->count && span.count; i++)
        if (wal_span_bytes(&span, model->messages[i].lsn) + SEGMENT_BYTES > QUOTA_BYTES) model->messages[i].far = true;
}

/* Dead letters are collected from the first one on. A full disk may prevent it. */
static void collect(model_t *model) {
    static uint8_t frame[256];
    static const char filter[] = "$dlq/#";
    test_client_t *client = client_of(model, COLLECTOR);
    if (!model->machine.config.session_log_bytes || model->machine.config.session_overflow == BQ_SESSION_OVERFLOW_DROP) return;
    if (!client->open) model->collects = false;
    come(model, COLLECTOR);
    if (!model->collects) {
        fields_t fields = {.action = FRAME_SUB, .qos = 1, .durable = 1, .topic = text_of(filter)};
        model->collects = ask_for(model, client, fields) == 0;
        model->letters_lost |= !model->collects;
    }
    while (client->open && model->letters_count) {
        fields_t fields = {.action = FRAME_ACK, .seq = model->letters[--model->letters_count]};
        send_input(&model->machine, client, (text_t){frame, command_encode(frame, &fields)}, 0);
        turn(&model->machine, 0);
    }
}

static bool text_is(const uint8_t *bytes, uint32_t size, const char *text) {
    return size == strlen(text) && !memcmp(bytes, text, size);
}

/* A subscription has expired: no client was connected to it for a long time. */
static void ended_by_itself(model_t *model, const bq_consumer_row_t *row, const uint8_t *texts) {
    const uint8_t *group = texts + row->filter_size, *clients = group + row->group_size;
    for (sub_t *sub = model->subs; sub < model->subs + SUBS_MAX; sub++) {
        static const char *const groups[] = {"", "g", "h"};
        bool used = sub->durable || sub->joined;
        if (!used || !text_is(texts, row->filter_size, WANTED[sub->filter]) ||
            !text_is(group, row->group_size, groups[sub->group]))
            continue;
        if (!sub->group && !memchr(clients, '0' + sub->owner, row->clients_size)) continue;
        CHECK(!sub->joined && model->machine.now_ms >= sub->seen_ms + EXPIRY_MS);
        *sub = (sub_t){0};
    }
    if (text_is(texts, row->filter_size, "$dlq/#")) model->letters_lost = true;
}

static void event_came(machine_t *machine, const bq_event_t *event) {
    bq_consumer_row_t row;
    if (event->type != BQ_EV_CONSUMER_EXPIRED) return;
    CHECK(event->data_size >= sizeof row);
    memcpy(&row, event->data, sizeof row);
    ended_by_itself((model_t *)(void *)machine, &row, event->data + sizeof row);
}

/* ---- publishing and acknowledging --------------------------------------------------------------------------------- */

static void publish_one(model_t *model, uint8_t topic, uint32_t size, uint64_t ttl_ms) {
    static uint8_t payload[8192];
    if (model->count == MESSAGES_MAX) return;
    uint32_t number = model->count++;
    sent_t *message = &model->messages[number];
    *message = (sent_t){.topic = topic,
                        .sent = true,
                        .lsn = wal_next_lsn(model),
                        .ttl_ms = ttl_ms,
                        .at_ms = model->machine.now_ms + 64,
                        .size = size};
    memcpy(payload, &number, sizeof number);
    for (uint32_t at = sizeof number; at < size; at++) payload[at] = payload_byte(number, at);
    come(model, PUBLISHER);
    uint64_t dropped = model->machine.bq->broker.stats.dropped_queue_full;
    uint16_t code = ask_for(
        model, client_of(model, PUBLISHER),
        (fields_t){.action = FRAME_PUB, .qos = 1, .ttl_ms = ttl_ms, .topic = text_of(WHERE[topic]), .payload = {payload, size}});
    message->acknowledged = code == 0;
    message->dropped = model->machine.bq->broker.stats.dropped_queue_full != dropped;
    if (code == UINT16_MAX) { /* it may still be accepted later: its time to live begins then */
        message->at_ms = UINT64_MAX / 4;
        go_away(model, PUBLISHER);
    }
}

static void acknowledge(model_t *model, uint32_t person, uint32_t which) {
    static uint8_t frame[256];
    test_client_t *client = client_of(model, person);
    uint32_t *count = &model->unacked_count[person];
    if (!client->open || !*count) return;
    which %= *count;
    uint64_t id = model->unacked[person][which];
    fields_t fields = {.action = FRAME_ACK, .seq = id};
    send_input(&model->machine, client, (text_t){frame, command_encode(frame, &fields)}, 0);
    turn(&model->machine, 0);
    model->unacked[person][which] = model->unacked[person][--*count];
    for (sub_t *sub = model->subs; sub < model->subs + SUBS_MAX; sub++) {
        for (uint32_t number = 0; number < model->count; number++) {
            bool may = sub->given[number] >> person & 1;
            if (model->messages[number].id != id || !may || sub->had[number] != HAD_SEEN) continue;
            sub->had[number] = HAD_DONE;
            sub->unsure[number] = false;
        }
    }
}

/* ---- restarts ----------------------------------------------------------------------------------------------------- */

static void clock_tell(model_t *model) {
    bq_clock_t clock = {.boot_id = model->boot, .boot_ms = model->machine.now_ms, .wall_ms = model->machine.now_ms};
    push(&model->machine, (bq_command_t){.type = BQ_CMD_CLOCK}, (text_t){NULL, 0},
         (text_t){(const uint8_t *)&clock, sizeof clock});
}

static void start(model_t *model) {
    bq_wal_report_t report;
    machine_t *machine = &model->machine;
    machine->bq = bq_new(&machine->config, 1);
    CHECK(machine->bq && bq_wal_open(machine->bq, "/", &wal_config, &report) == BQ_OK);
    CHECK(report.lost_ranges == 0);
    clock_tell(model);
    turn(machine, 0);
}

static void restart(model_t *model, uint8_t how) {
    if (how % 3) sim_disk_stop_at(disk, sim_disk_changes(disk) + how % 16 / 3);
    bq_free(model->machine.bq);
    everyone_gone(&model->machine);
    model->collects = false;
    model->letters_count = 0;
    if (how % 3 == 1) {
        sim_disk_end_process(disk);
        sim_disk_heal(disk);
    } else if (how % 3 == 2) {
        sim_disk_cut(disk, 1 + how);
    }
    sim_disk_room(disk, DISK_BYTES);
    for (uint32_t person = 0; person < PEOPLE; person++) parted(model, person);
    for (sub_t *sub = model->subs; sub < model->subs + SUBS_MAX; sub++) {
        if (!sub->durable) *sub = (sub_t){0};
        for (uint32_t number = 0; number < model->count; number++) sub->unsure[number] = true;
    }
    start(model);
}

/* ---- the end ------------------------------------------------------------------------------------------------------------------ */

static void everything_is_fetched(model_t *model) {
    sim_disk_heal(disk);
    sim_disk_room(disk, DISK_BYTES);
    restart(model, 0);
    for (uint32_t person = 0; person < PEOPLE; person++) {
        come(model, person);
        model->acks[person] = true;
        for (sub_t *sub = model->subs; sub < model->subs + SUBS_MAX; sub++)
            if (sub->durable >> person & 1) subscribe(model, person, sub->filter, sub->group, true);
    }
    for (uint32_t quiet = 0; quiet < 8;) {
        bool some = false;
        settle(&model->machine, 3, 2);
        for (uint32_t person = 0; person < PEOPLE; person++) {
            test_client_t *client = client_of(model, person);
            client->reads = true;
            credit_back(&model->machine, client, client->credit_due);
            for (; model->unacked_count[person]; some = true) acknowledge(model, person, 0);
        }
        look_back(model);
        some |= model->letters_count > 0;
        collect(model);
        quiet = some ? 0 : quiet + 1;
    }
}

static bool let_go(const model_t *model, const sent_t *message) {
    const bq_config_t *config = &model->machine.config;
    if (!config->session_log_bytes || !message->far) return false;
    return config->session_overflow == BQ_SESSION_OVERFLOW_DROP || message->dead || model->letters_lost;
}

static void nothing_is_owed(const model_t *model) {
    for (const sub_t *sub = model->subs; sub < model->subs + SUBS_MAX; sub++) {
        if (!sub->durable) continue;
        for (uint32_t number = sub->first; number < model->count; number++) {
            const sent_t *message = &model->messages[number];
            bool owed = message->acknowledged && !message->ttl_ms && (!message->dropped || number >= sub->durable_from);
            if (owed && MATCHES[sub->filter][message->topic]) CHECK(sub->had[number] != HAD_NOTHING || let_go(model, message));
        }
    }
}

static void step_one(model_t *model, uint8_t what, input_t *input) {
    uint8_t more = input_byte(input);
    uint32_t person = more % PEOPLE;
    test_client_t *client = client_of(model, person);
    static const uint64_t ttls[] = {0, 0, 0, 50, 1000, 20000};
    switch (what % 16) {
    case 0: come(model, person); return;
    case 1:
    case 2:
        come(model, person);
        subscribe(model, person, (more >> 2) % COUNT(WANTED), (more >> 4) % 3, (more >> 6) || (more >> 4) % 3 == 0);
        return;
    case 3: go_away(model, person); return;
    case 4:
    case 5:
    case 6:
        publish_one(model, more % COUNT(WHERE), 8 + (more >> 2) * (more & 128 ? 24u : 2u), ttls[input_byte(input) % COUNT(ttls)]);
        return;
    case 7:
    case 8: acknowledge(model, person, more >> 2); return;
    case 9:
        for (uint32_t count = model->unacked_count[person]; count; count--) acknowledge(model, person, more >> 2);
        return;
    case 10:
        client->reads = !client->reads;
        if (client->reads) credit_back(&model->machine, client, client->credit_due);
        return;
    case 11: settle(&model->machine, input_time(input), 1 + more % 4); return;
    case 12: unsubscribe(model, person, (more >> 2) % COUNT(WANTED)); return;
    case 13: restart(model, more); return;
    case 14: sim_disk_room(disk, more & 1 ? DISK_BYTES : 8192u * (more >> 2)); return;
    default: settle(&model->machine, 1, 1 + more % 8); return;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static model_t model; /* static because it is large */
    input_t input = {data, data + size};
    memset(&model, 0, sizeof model);
    model.machine = (machine_t){
        .config = config_of(&input), .now_ms = 1000, .answering = true, .on_frame = frame_came, .on_event = event_came};
    bq_config_t *config = &model.machine.config;
    config->max_frame_bytes = 4096;
    config->max_connections = CLIENTS;
    config->max_sessions = SUBS_MAX + 2;
    config->max_deliveries = UINT32_MAX;
    config->overflow_policy = BQ_OVERFLOW_POLICY_DROP_OLDEST;
    config->memory_bytes = 0;
    config->default_ttl_ms = 0;
    config->require_hello = 0;
    config->expire_batch = 1000; /* late timers would make messages late */
    if (size > 3 && data[3] & 8) config->session_expiry_ms = EXPIRY_MS;
    if (size > 3 && data[2] & 32) config->session_log_bytes = QUOTA_BYTES;
    if (size > 3 && data[2] & 64) config->session_overflow = BQ_SESSION_OVERFLOW_DROP;
    model.boot = 1;
    disk = sim_disk_new(1);
    sim_disk_room(disk, DISK_BYTES);
    start(&model);
    for (uint32_t steps = 0; steps < STEPS_MAX && input.at < input.end; steps++) {
        look_back(&model);
        collect(&model);
        step_one(&model, input_byte(&input), &input);
    }
    everything_is_fetched(&model);
    nothing_is_owed(&model);
    finish(&model.machine);
    sim_disk_free(disk);
    return 0;
}
