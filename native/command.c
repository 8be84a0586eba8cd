/* command.c: commands from Python to the core.
 *
 *      record    [bq_command_t][text_size, data_size, blob][text][data]       data over DATA_INLINE_MAX travels by pointer
 *
 * Invariant: commands take effect in the order in which they were pushed. A command whose answer finds no room in the event ring
 * stays at the head of its ring until there is room.
 */
#include "broker/budget.h"
#include "broker/session.h"
#include "core.h"
#include "proto/protocol.h"
#include "net/secure.h"
#include "net/transport.h"
#include "net/websocket.h"

#include <errno.h>
#include <stdlib.h>

#define DATA_INLINE_MAX 4096u
#define TEXT_MAX 4096u

typedef struct record {
    bq_command_t command;
    uint32_t text_size, data_size;
    uint8_t *blob; /* allocated by the producer with malloc, freed by the core; NULL: data follows the text */
} record_t;

/* ---- Python's side ----------------------------------------------------------------------------------------------- */

/* Room for one full INFO answer and some pending input, for any frame limit. */
static uint64_t blob_bytes_max(const bq_t *bq) { return 4ull * bq->broker.config.max_frame_bytes + (4u << 20); }

static uint8_t *blob_new(bq_t *bq, const uint8_t *data, uint32_t size) {
    uint8_t *blob = malloc(size);
    if (!blob) return NULL;
    memcpy(blob, data, size);
    atomic_fetch_add_explicit(&bq->blob_bytes, size, memory_order_relaxed);
    return blob;
}

static void blob_free(bq_t *bq, record_t *record) {
    if (!record->blob) return;
    free(record->blob);
    atomic_fetch_sub_explicit(&bq->blob_bytes, record->data_size, memory_order_relaxed);
}

int bq_command(bq_t *bq, const bq_command_t *command, const uint8_t *text, uint32_t text_size, const uint8_t *data,
               uint32_t data_size) {
    record_t record = {.command = *command, .text_size = text_size, .data_size = data_size};
    bool inlined = data_size <= DATA_INLINE_MAX;
    if (text_size > TEXT_MAX || data_size > blob_bytes_max(bq)) return BQ_E_TOO_LARGE;
    if (!inlined && atomic_load_explicit(&bq->blob_bytes, memory_order_relaxed) + data_size > blob_bytes_max(bq))
        return BQ_E_AGAIN;
    uint8_t *to = ring_reserve(&bq->commands, (uint32_t)sizeof record + text_size + (inlined ? data_size : 0));
    if (!to) return BQ_E_AGAIN;
    if (!inlined && !(record.blob = blob_new(bq, data, data_size))) return BQ_E_MEMORY; /* a reservation may be dropped */
    memcpy(to, &record, sizeof record);
    if (text_size) memcpy(to + sizeof record, text, text_size);
    if (inlined && data_size) memcpy(to + sizeof record + text_size, data, data_size);
    if (ring_commit(&bq->commands)) poll_wake_signal(&bq->command_wake);
    return BQ_OK;
}

/* ---- the core's side --------------------------------------------------------------------------------------------- */

static void set_clock(bq_t *bq, const uint8_t *bytes, uint32_t size) {
    bq_clock_t clock;
    if (size != sizeof clock) return;
    memcpy(&clock, bytes, sizeof clock);
    timeline_clock(&bq->broker, &clock);
}

static void admit(bq_t *bq, connection_t *connection, const record_t *record, const uint8_t *text, const uint8_t *data) {
    acl_t *acl = record->command.value ? acl_ref(&bq->broker.acl, record->command.value) : NULL;
    if (record->command.value && !acl) { /* refused: without its ACL the client could publish to every topic */
        connection_close(&bq->net, connection, BQ_CLOSE_MEMORY, "no memory for the ACL of its key");
        return;
    }
    acl_unref(&bq->broker.pool, connection->client.acl);
    connection->client.acl = acl;
    connection->admitted = true;
    admission_leave(&bq->net, connection);
    wheel_remove(&bq->broker.wheel, &connection->timer.wheel);
    keepalive_begin(&bq->net, connection);
    connection->client.protocol->welcome(&bq->broker, &connection->client, record->command.seq, text, record->text_size, data,
                                         record->data_size);
}

static consumer_request_t consumer_request(const record_t *record, const uint8_t *text, const uint8_t *data) {
    uint32_t client_id_size = record->command.value < record->data_size ? (uint32_t)record->command.value : record->data_size;
    bool session = record->command.flags & BQ_SUB_SESSION;
    return (consumer_request_t){.filter = text,
                                .filter_size = record->text_size,
                                .client_id = data,
                                .client_id_size = client_id_size,
                                .group = data + client_id_size,
                                .group_size = record->data_size - client_id_size,
                                .qos =
                                    (record->command.flags & BQ_SUB_QOS1) || (!session && record->command.flags & BQ_SUB_DURABLE),
                                .durable = client_id_size && record->command.flags & BQ_SUB_DURABLE,
                                .keyed = (record->command.flags & BQ_SUB_KEYED) != 0,
                                .session = session};
}

static void refuse_subscribe(bq_t *bq, connection_t *connection, uint64_t seq, enum bq_outcome outcome, const char *why) {
    connection->client.protocol->refuse(&bq->broker, &connection->client, seq, outcome, why);
    client_resume(&bq->broker, &connection->client, PAUSE_ANSWER);
}

/* Members of a group receive only from the group. Every other QoS 1 subscriber is in the routes twice: as a consumer for QoS 1
 * publishes, and as a plain subscriber for QoS 0. Returns true if the connection now has the subscription, or already had it. */
static bool subscribe_now(bq_t *bq, connection_t *connection, uint64_t seq, const consumer_request_t *request) {
    if (request->qos && !bq->broker.wal) { /* a full or failed WAL still delivers its messages */
        refuse_subscribe(bq, connection, seq, BQ_OUTCOME_UNAVAILABLE, commit_refusal(&bq->broker));
        return false;
    }
    if (!budget_part(&bq->broker, route_bytes(bq->broker.routes))) {
        refuse_subscribe(bq, connection, seq, BQ_OUTCOME_UNAVAILABLE,
                         "subscriptions use a quarter of limits.memory_bytes, their maximum: end some, or raise it");
        return false;
    }
    int added = 0;
    bool remains;
    if (!request->group_size)
        added = route_subscribe(bq->broker.routes, &connection->client, &connection->client.subscriptions, request->filter,
                                request->filter_size);
    if (added < 0) {
        bool memory = added == BQ_E_MEMORY;
        refuse_subscribe(bq, connection, seq, memory ? BQ_OUTCOME_UNAVAILABLE : BQ_OUTCOME_INVALID,
                         memory ? "the broker is out of memory: try again later" : "the filter is not valid");
        return false;
    }
    if (added) connection->client.subscription_count++;
    if (!request->group_size && !request->qos && !request->session) {
        connection->client.protocol->subscribed(&bq->broker, &connection->client, seq, request->filter, request->filter_size);
        client_resume(&bq->broker, &connection->client, PAUSE_ANSWER);
        return true;
    }
    bool in = (request->session ? session_subscribe : consumer_subscribe)(&bq->broker, &connection->client, seq, request,
                                                                          added == 1, &remains);
    if (request->group_size) wait_release(&bq->broker, &bq->broker.group_waiters, UINT32_MAX); /* the new member may have room */
    if (in) return true;
    if (added && route_unsubscribe(bq->broker.routes, &connection->client, connection->client.subscriptions, request->filter,
                                   request->filter_size))
        connection->client.subscription_count--;
    return remains || (!request->group_size && !added);
}

/* False: the event ring has no room to tell Python of a refusal. The command runs again. */
static bool subscribe(bq_t *bq, connection_t *connection, const record_t *record, const uint8_t *filter, const uint8_t *data) {
    consumer_request_t request = consumer_request(record, filter, data);
    if (connection->state != CONNECTION_OPEN) return true; /* it is closing: no answer reaches it */
    if (!event_room(&bq->broker)) return false;
    if (!subscribe_now(bq, connection, record->command.seq, &request))
        event_unsubscribed(&bq->broker, &connection->client, filter, request.filter_size, request.group, request.group_size,
                           BQ_OUTCOME_UNAVAILABLE);
    return true;
}

static bool unsubscribe(bq_t *bq, connection_t *connection, const record_t *record, const uint8_t *filter, const uint8_t *data) {
    consumer_request_t request = consumer_request(record, filter, data);
    uint64_t seq = record->command.seq;
    bool ended, pending, left = false;
    if (!event_room(&bq->broker)) return false;
    if (!(request.session ? session_unsubscribe : consumer_unsubscribe)(&bq->broker, &connection->client, seq, &request, &ended,
                                                                        &pending))
        return true;
    if (!request.group_size)
        left = route_unsubscribe(bq->broker.routes, &connection->client, connection->client.subscriptions, filter,
                                 record->text_size);
    if (left) {
        connection->client.subscription_count--;
        client_release_waiters(&bq->broker, &connection->client); /* their publishes may no longer be for this subscriber */
    }
    if (ended || left)
        event_unsubscribed(&bq->broker, &connection->client, filter, request.filter_size, request.group, request.group_size,
                           BQ_OUTCOME_DONE);
    if (pending) return true; /* the answer waits for the commit */
    client_resume(&bq->broker, &connection->client, PAUSE_ANSWER);
    if (ended || left)
        connection->client.protocol->answer(&bq->broker, &connection->client, seq, BQ_OUTCOME_DONE, NULL);
    else
        connection->client.protocol->answer(&bq->broker, &connection->client, seq, BQ_OUTCOME_NOT_FOUND,
                                            "this client has no such subscription");
    return true;
}

static bool granted(bq_t *bq, connection_t *connection, const record_t *record, const uint8_t *rows) {
    const protocol_ops_t *protocol = connection->client.protocol;
    return !protocol->granted || protocol->granted(&bq->broker, &connection->client, rows, record->data_size);
}

static void reply(bq_t *bq, connection_t *connection, const record_t *record, const uint8_t *text, const uint8_t *data) {
    const bq_command_t *command = &record->command;
    if (command->flags & BQ_REPLY_DISCARD) connection_discard(&bq->net, connection);
    connection->client.protocol->forward(&bq->broker, &connection->client, command, text, record->text_size, data,
                                         record->data_size);
    if (command->flags & BQ_REPLY_CLOSE) connection_finish(&bq->net, connection, BQ_CLOSE_BROKER, "refused by the broker");
}

/* Room for one more connection that comes from Python, not from a listener. */
static bool room_for(bq_t *bq, const endpoint_t *endpoint, const bq_peer_t *peer, bool trusted) {
    if (bq->broker.stopping || bq->net.open_count >= bq->broker.config.max_connections) return false;
    return trusted || admission_make_room(&bq->net, endpoint, peer->address, peer->port);
}

static const protocol_ops_t *protocol_of(const bq_command_t *command) {
    return command->flags & BQ_CONN_MQTT ? &protocol_mqtt : &protocol_blip;
}

/* Of a socket. */
static endpoint_t endpoint_of(const bq_command_t *command) {
    return (endpoint_t){.transport = command->flags & BQ_CONN_SECURE ? &transport_secure : &transport_tcp,
                        .protocol = protocol_of(command),
                        .websocket = command->flags & BQ_CONN_WEBSOCKET};
}

static bool attach(bq_t *bq, const record_t *record, const uint8_t *data) {
    if (!event_room(&bq->broker)) return false; /* no room for the answer: the command runs again */
    bq_peer_t peer = {0};
    if (record->data_size == sizeof peer) memcpy(&peer, data, sizeof peer);
    bool trusted = record->command.flags & BQ_CONN_TRUSTED;
    const endpoint_t endpoint = {.transport = &transport_memory, .protocol = protocol_of(&record->command)};
    connection_t *connection = room_for(bq, &endpoint, &peer, trusted)
                                   ? connection_open(&bq->net, &endpoint, -1, peer.address, peer.port, trusted)
                                   : NULL;
    event_push(
        &bq->broker,
        &(bq_event_t){.type = BQ_EV_ATTACHED, .seq = record->command.seq, .conn = connection ? connection->client.handle : 0});
    if (!connection) return true;
    connection->trusted = trusted;
    connection->known = true;
    connection_hurry(&bq->net, connection, record->command.value);
    bq->net.open_count++;
    bq->broker.stats.accepted++;
    return true;
}

static void close_for(bq_t *bq, connection_t *connection, uint8_t code) {
    connection_close(&bq->net, connection, code, code == BQ_CLOSE_VANISHED ? "the client's machine no longer answers" : NULL);
}

/* Commands for one connection. A connection that has closed meanwhile is not an error: Python will get its end event. */
static bool for_connection(bq_t *bq, const record_t *record, const uint8_t *text, const uint8_t *data) {
    connection_t *connection = connection_find(&bq->net, record->command.conn);
    if (!connection || connection->state == CONNECTION_DEAD) return true;
    switch (record->command.type) {
    case BQ_CMD_INPUT:
        connection_memory_input(&bq->net, connection, data, record->data_size);
        if (record->command.flags & BQ_INPUT_END) connection_memory_end(&bq->net, connection);
        return true;
    case BQ_CMD_CREDIT: connection_credit(&bq->net, connection, record->command.value); return true;
    case BQ_CMD_CLOSE: close_for(bq, connection, (uint8_t)record->command.code); return true;
    case BQ_CMD_ADMIT: admit(bq, connection, record, text, data); break;
    case BQ_CMD_SUBSCRIBE: return subscribe(bq, connection, record, text, data); /* these two may wait for the commit */
    case BQ_CMD_UNSUBSCRIBE: return unsubscribe(bq, connection, record, text, data);
    case BQ_CMD_MQTT_SUBSCRIBE: return granted(bq, connection, record, data);
    case BQ_CMD_REPLY: reply(bq, connection, record, text, data); break;
    default: return true; /* unknown command */
    }
    /* A Reply with seq 0 belongs to no request, so it does not end one. */
    if (record->command.type == BQ_CMD_REPLY && (record->command.flags & BQ_REPLY_UNASKED)) return true;
    admission_answered(&bq->net, connection);
    client_resume(&bq->broker, &connection->client, PAUSE_ANSWER);
    return true;
}

static void listen_at(bq_t *bq, const bq_command_t *command) {
    const endpoint_t endpoint = endpoint_of(command);
    admission_listen(&bq->net, (int)command->value, &endpoint);
}

static void adopt(bq_t *bq, const bq_command_t *command) {
    static const bq_peer_t none;
    const endpoint_t endpoint = endpoint_of(command);
    const int fd = (int)command->value;
    connection_t *connection =
        room_for(bq, &endpoint, &none, false) ? connection_open(&bq->net, &endpoint, fd, none.address, 0, false) : NULL;
    if (!connection) {
        poll_close(fd);
        return;
    }
    keepalive_socket(&bq->net, fd);
    bq->net.open_count++;
    bq->broker.stats.accepted++;
    if (endpoint.websocket) websocket_begin(&bq->net, connection);
}

static void acl(bq_t *bq, const record_t *record, const uint8_t *data) {
    const bq_command_t *command = &record->command;
    if (command->flags & BQ_ACL_END)
        acl_end(&bq->broker.acl, &bq->broker.pool, command->value);
    else
        acl_set(&bq->broker.acl, &bq->broker.pool, command->value, command->flags & BQ_ACL_ALL, data, record->data_size);
}

static const bq_secure_ops_t *table_of(const bq_command_t *command) { return (const bq_secure_ops_t *)(uintptr_t)command->value; }

static void *context_of(const bq_command_t *command) { return (void *)(uintptr_t)command->seq; }

static void secure_by(bq_t *bq, const bq_command_t *command) {
    secure_context(&bq->net, table_of(command), context_of(command), command->flags & BQ_SECURE_TELL);
}

static void publish_own(bq_t *bq, const record_t *record, const uint8_t *text, const uint8_t *data) {
    broker_t *broker = &bq->broker;
    wait_list_t *blocker = NULL;
    int error = 0;
    topic_t *topic = publish_topic(broker, NULL, text, record->text_size, &error);
    if (!topic) return;
    const message_t message = {
        .topic = topic->name, .topic_size = topic->name_size, .payload = data, .payload_size = record->data_size};
    while (publish_message(broker, topic, &message, &blocker) == PUBLISH_FULL) net_drain(&bq->net);
    drain_end(broker);
}

static bool consumers_page(bq_t *bq, const record_t *record, const uint8_t *text, const uint8_t *data) {
    return event_consumers(&bq->broker, &(consumer_list_request_t){.seq = record->command.seq,
                                                                   .lag_min = record->command.value,
                                                                   .conn = record->command.conn,
                                                                   .begin = record->command.flags & BQ_CONSUMERS_BEGIN,
                                                                   .exact = record->command.flags & BQ_CONSUMERS_EXACT,
                                                                   .find = text,
                                                                   .find_size = record->text_size,
                                                                   .owner = data,
                                                                   .owner_size = record->data_size});
}

static bool run(bq_t *bq, const record_t *record, const uint8_t *text, const uint8_t *data) {
    const bq_command_t *command = &record->command;
    switch (command->type) {
    case BQ_CMD_LISTEN: listen_at(bq, command); return true;
    case BQ_CMD_UNLISTEN: admission_unlisten(&bq->net); return true;
    case BQ_CMD_ADOPT: adopt(bq, command); return true;
    case BQ_CMD_ATTACH: return attach(bq, record, data);
    case BQ_CMD_STATS: return event_stats(bq, command->seq);
    case BQ_CMD_LIST: return event_list(bq, command->seq, command->value);
    case BQ_CMD_CONSUMERS: return consumers_page(bq, record, text, data);
    case BQ_CMD_CONSUMER_END: return consumer_end_by_id(&bq->broker, command->seq, command->value, data, record->data_size);
    case BQ_CMD_LIMITS: core_limits(bq, data, record->data_size); return true;
    case BQ_CMD_CLOCK: set_clock(bq, data, record->data_size); return true;
    case BQ_CMD_ACL: acl(bq, record, data); return true;
    case BQ_CMD_SECURE: secure_by(bq, command); return true;
    case BQ_CMD_PUBLISH: publish_own(bq, record, text, data); return true;
    case BQ_CMD_ORIGINS: websocket_origins_set(&bq->net, data, record->data_size); return true;
    case BQ_CMD_STOP: core_stop(bq, command->value, command->seq); return true;
    default: return for_connection(bq, record, text, data);
    }
}

bool command_run_all(bq_t *bq) {
    uint32_t size;
    const uint8_t *bytes;
    uint32_t count = 0;
    bq->command_waits = false;
    uint64_t stop = work_done(&bq->broker) + WORK_COMMANDS;
    while (count < COMMANDS_MAX && work_done(&bq->broker) < stop && (bytes = ring_peek(&bq->commands, &size))) {
        bq->broker.stats.work += WORK_COMMAND;
        record_t record;
        memcpy(&record, bytes, sizeof record);
        const uint8_t *text = bytes + sizeof record;
        if (record.command.type != BQ_CMD_INPUT) net_run_close(&bq->net);
        bq->command_waits = !run(bq, &record, text, record.blob ? record.blob : text + record.text_size);
        if (bq->command_waits) break; /* retry after RETRY_MS; an immediate retry would spin until Python reads events */
        blob_free(bq, &record);
        ring_pop(&bq->commands);
        count++;
    }
    net_run_close(&bq->net); /* of BQ_CMD_INPUT */
    return count > 0;
}

void command_discard_all(bq_t *bq) {
    uint32_t size;
    const uint8_t *bytes;
    while ((bytes = ring_peek(&bq->commands, &size))) {
        record_t record;
        memcpy(&record, bytes, sizeof record);
        if (record.command.type == BQ_CMD_SECURE) table_of(&record.command)->context_free(context_of(&record.command));
        blob_free(bq, &record);
        ring_pop(&bq->commands);
    }
}
