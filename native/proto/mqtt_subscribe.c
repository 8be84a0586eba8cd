/* proto/mqtt_subscribe.c: SUBSCRIBE and UNSUBSCRIBE of a client. See proto/mqtt.h.
 *
 * Python decides on a SUBSCRIBE. Its filters go there in pieces that fit an event; the packet stays in the input until the last
 * piece is answered. UNSUBSCRIBE is done here, and Python is told.
 *
 * Invariant: each filter of a request gets one code, in the order of the filters, and then the client one answer.
 */
#include "broker/budget.h"
#include "broker/session.h"
#include "proto/mqtt.h"
#include "proto/mqtt_bytes.h"
#include "proto/mqtt_properties_codec.h"

#define PIECE_FILTERS_MAX 64u
#define ROW_HEAD 4u         /* [u8 options][u8 code][u16 size] */
#define READ_BYTES_WORK 64u /* bytes of a packet that are read again for one unit of work */

/* ---- the request ----------------------------------------------------------------------------------------------------- */

void mqtt_request_free(broker_t *broker, mqtt_t *mqtt) {
    pool_free(&broker->pool, mqtt->request.codes, mqtt->request.count);
    mqtt->request = (mqtt_request_t){0};
}

/* False: no memory; the connection has ended. */
static bool request_begin(net_t *net, connection_t *connection, uint32_t count) {
    mqtt_request_t *request = &connection->mqtt->request;
    if (request->codes) return true;
    *request = (mqtt_request_t){.codes = pool_alloc(&net->broker.pool, count), .count = count};
    if (!request->codes) mqtt_end(net, connection, MQTT_QUOTA_EXCEEDED, BQ_CLOSE_MEMORY, "no memory for a subscription");
    return request->codes != NULL;
}

static void code_add(mqtt_request_t *request, uint8_t code) { request->codes[request->done++] = code; }

static enum frame_outcome request_answer(net_t *net, connection_t *connection, uint8_t type, uint16_t packet_id) {
    mqtt_t *mqtt = connection->mqtt;
    const mqtt_request_t *request = &mqtt->request;
    const uint32_t size = mqtt_suback_write(NULL, mqtt->version, type, packet_id, request->codes, request->count, NULL);
    if (size > mqtt->packet_bytes_max)
        mqtt_end(net, connection, MQTT_PACKET_TOO_LARGE, BQ_CLOSE_FRAME,
                 "the maximum packet size of the client is too small for the answer to its filters");
    uint8_t *out = output_reserve(net, connection, size);
    if (out)
        output_push(net, connection,
                    mqtt_suback_write(out, mqtt->version, type, packet_id, request->codes, request->count, NULL));
    mqtt_request_free(&net->broker, mqtt);
    return FRAME_TAKEN;
}

/* ---- SUBSCRIBE ------------------------------------------------------------------------------------------------------- */

static uint8_t options_of(const mqtt_filter_t *filter) {
    return (uint8_t)(filter->qos | filter->no_local << 2 | filter->retain_as_published << 3 | filter->retain_handling << 4);
}

/* Sends the filters from `done` on that fit an event. */
static void piece_ask(net_t *net, connection_t *connection, const mqtt_subscribe_t *subscribe) {
    mqtt_request_t *request = &connection->mqtt->request;
    uint8_t rows[REQUEST_BYTES_MAX];
    uint32_t at = 0, index = 0, count = 0;
    mqtt_text_t rest = subscribe->filters;
    mqtt_filter_t filter;
    while (count < PIECE_FILTERS_MAX && mqtt_filter_next(&rest, MQTT_SUBSCRIBE, &filter)) {
        if (index++ < request->done) continue;
        if (filter.text.size + ROW_HEAD > sizeof rows - at) break;
        rows[at] = options_of(&filter);
        rows[at + 1] = 0;
        store_u16(rows + at + 2, (uint16_t)filter.text.size);
        memcpy(rows + at + ROW_HEAD, filter.text.bytes, filter.text.size);
        at += ROW_HEAD + filter.text.size;
        count++;
    }
    request->piece = request->done;
    connection_ask(
        net, connection,
        &(bq_event_t){
            .type = BQ_EV_MQTT_SUBSCRIBE, .seq = subscribe->packet_id, .code = (uint16_t)count, .data = rows, .data_size = at});
}

enum frame_outcome mqtt_subscribe(net_t *net, connection_t *connection, const mqtt_frame_t *frame, const uint8_t *body) {
    mqtt_subscribe_t subscribe;
    const mqtt_t *mqtt = connection->mqtt;
    const int error = mqtt_subscribe_read(frame, body, mqtt->version, MQTT_TOPIC_BYTES_MAX, &subscribe);
    if (error) return mqtt_violation(net, connection, error);
    if (mqtt_has(&subscribe.properties, MQTT_SUBSCRIPTION_ID))
        return mqtt_end(net, connection, MQTT_SUBSCRIPTION_IDENTIFIERS_NOT_SUPPORTED, BQ_CLOSE_FRAME,
                        "subscription identifiers are not served yet");
    net->broker.stats.work += frame->body_size / READ_BYTES_WORK;
    if (!request_begin(net, connection, subscribe.count)) return FRAME_TAKEN;
    if (mqtt->request.waits) {
        connection->client.pause |= PAUSE_ANSWER;
        return FRAME_KEPT;
    }
    if (mqtt->request.done == mqtt->request.count) return request_answer(net, connection, MQTT_SUBACK, subscribe.packet_id);
    piece_ask(net, connection, &subscribe);
    return FRAME_KEPT;
}

/* ---- Python's answer ------------------------------------------------------------------------------------------------- */

/* The code of a filter that Python has granted: its QoS, or why there is no subscription. */
static uint8_t subscribe_to(broker_t *broker, client_t *client, const mqtt_filter_t *filter, uint8_t options, uint8_t granted,
                            bool *route_new) {
    const uint8_t *text = filter->filter.bytes;
    const uint32_t size = filter->filter.size;
    if (filter->group.size) return MQTT_SHARED_SUBSCRIPTIONS_NOT_SUPPORTED;
    if (options & 4) return MQTT_IMPLEMENTATION_SPECIFIC_ERROR;                       /* no local */
    if (filter_check(text, size) != filter->syntax) return MQTT_TOPIC_FILTER_INVALID; /* long, or with wildcards of dots */
    if (levels_check(text, size, broker->config.max_topic_levels)) return MQTT_TOPIC_FILTER_INVALID;
    if (!budget_part(broker, route_bytes(broker->routes))) return MQTT_QUOTA_EXCEEDED;
    const int added = route_subscribe(broker->routes, client, &client->subscriptions, text, size);
    if (added < 0) return MQTT_QUOTA_EXCEEDED;
    client->subscription_count += added != 0;
    *route_new = added != 0;
    return broker->wal ? granted : MQTT_SUCCESS;
}

/* Its deliveries need packet ids. False: no memory. */
static bool packets_begin(broker_t *broker, client_t *client) {
    if (client->packets) return true;
    const mqtt_t *mqtt = connection_of(client)->mqtt;
    client->packets = pool_alloc(&broker->pool, sizeof *client->packets);
    if (!client->packets) return false;
    client->packets->bytes_max = mqtt->packet_bytes_max;
    flights_init(&client->packets->ids, flight_limit(mqtt->receive_maximum, broker->config.max_in_flight), false);
    return true;
}

/* Adds the filter to the client's session, or changes it there. The answer comes by mqtt_filter_answered, at once or after the
 * disk has it. */
static void subscribe_durably(broker_t *broker, client_t *client, mqtt_request_t *request, const mqtt_filter_t *filter,
                              uint8_t qos, bool route_new) {
    const uint64_t seq = MQTT_SEQ_SUBSCRIBE | (request->done - 1);
    const consumer_request_t wanted = {.filter = filter->filter.bytes,
                                       .filter_size = filter->filter.size,
                                       .client_id = filter->filter.bytes, /* none: the session of this connection */
                                       .qos = qos,
                                       .session = true};
    bool remains;
    request->waits++;
    if (!packets_begin(broker, client))
        mqtt_filter_answered(broker, client, seq, true);
    else if (!session_subscribe(broker, client, seq, &wanted, route_new, &remains) && route_new &&
             route_unsubscribe(broker->routes, client, client->subscriptions, wanted.filter, wanted.filter_size))
        client->subscription_count--;
}

void mqtt_filter_answered(broker_t *broker, client_t *client, uint64_t seq, bool refused) {
    (void)broker;
    mqtt_request_t *request = &connection_of(client)->mqtt->request;
    const uint32_t index = (uint32_t)seq;
    if (!request->codes || index >= request->done) return;
    core_assert(request->waits);
    request->waits--;
    if (refused) request->codes[index] = MQTT_QUOTA_EXCEEDED;
}

/* A row of the answer. False: no room to tell Python of a refusal. */
static bool row_grant(broker_t *broker, client_t *client, mqtt_request_t *request, const uint8_t *row) {
    const uint8_t granted = row[1], *text = row + ROW_HEAD;
    const uint32_t size = load_u16(row + 2);
    mqtt_filter_t filter;
    if (granted >= MQTT_UNSPECIFIED_ERROR) {
        code_add(request, granted);
        return true;
    }
    if (!event_room(broker)) return false;
    mqtt_filter_check(text, size, MQTT_TOPIC_BYTES_MAX, &filter);
    bool route_new = false;
    const uint8_t code = subscribe_to(broker, client, &filter, row[0], granted ? 1 : 0, &route_new);
    code_add(request, code);
    if (code == 1 || (code == MQTT_SUCCESS && client_session(client)))
        subscribe_durably(broker, client, request, &filter, code, route_new);
    client->pause |= PAUSE_ANSWER; /* also after an answer at once */
    if (request->codes[request->done - 1] >= MQTT_UNSPECIFIED_ERROR)
        event_unsubscribed(broker, client, text, size, NULL, 0, BQ_OUTCOME_UNAVAILABLE);
    return true;
}

bool mqtt_granted(broker_t *broker, client_t *client, const uint8_t *rows, uint32_t size) {
    connection_t *connection = connection_of(client);
    mqtt_request_t *request = connection->mqtt ? &connection->mqtt->request : NULL;
    if (!request || !request->codes || connection->state != CONNECTION_OPEN) return true; /* it has ended meanwhile */
    uint32_t index = request->piece;
    for (uint32_t at = 0; at + ROW_HEAD <= size && request->done < request->count; at += ROW_HEAD + load_u16(rows + at + 2)) {
        if (index++ < request->done) continue; /* this command runs again */
        if (!row_grant(broker, client, request, rows + at)) return false;
    }
    if (request->waits) return true; /* the last answer resumes the client */
    client_resume(broker, client, PAUSE_ANSWER);
    return true;
}

/* ---- UNSUBSCRIBE ----------------------------------------------------------------------------------------------------- */

static void session_leave(broker_t *broker, client_t *client, const mqtt_text_t *filter) {
    const consumer_request_t wanted = {
        .filter = filter->bytes, .filter_size = filter->size, .client_id = filter->bytes, .session = true};
    bool ended, pending;
    session_unsubscribe(broker, client, 0, &wanted, &ended, &pending);
}

static uint8_t unsubscribe_from(broker_t *broker, client_t *client, const mqtt_filter_t *filter) {
    if (client_session(client)) session_leave(broker, client, &filter->filter);
    if (!route_unsubscribe(broker->routes, client, client->subscriptions, filter->filter.bytes, filter->filter.size))
        return MQTT_NO_SUBSCRIPTION_EXISTED;
    client->subscription_count--;
    client_release_waiters(broker, client); /* their publishes may no longer be for this subscriber */
    event_unsubscribed(broker, client, filter->text.bytes, filter->text.size, NULL, 0, BQ_OUTCOME_DONE);
    return MQTT_SUCCESS;
}

enum frame_outcome mqtt_unsubscribe(net_t *net, connection_t *connection, const mqtt_frame_t *frame, const uint8_t *body) {
    mqtt_subscribe_t packet;
    mqtt_filter_t filter;
    mqtt_request_t *request = &connection->mqtt->request;
    const int error = mqtt_subscribe_read(frame, body, connection->mqtt->version, MQTT_TOPIC_BYTES_MAX, &packet);
    if (error) return mqtt_violation(net, connection, error);
    net->broker.stats.work += frame->body_size / READ_BYTES_WORK;
    if (!request_begin(net, connection, packet.count)) return FRAME_TAKEN;
    net_run_close(net); /* the open run belongs to the routes as they are */
    for (uint32_t index = 0; mqtt_filter_next(&packet.filters, MQTT_UNSUBSCRIBE, &filter); index++) {
        if (index < request->done) continue; /* the packet is parsed again */
        if (!event_room(&net->broker)) {
            connection->client.pause |= PAUSE_EVENTS;
            net_retry_later(net, connection);
            return FRAME_KEPT;
        }
        code_add(request, unsubscribe_from(&net->broker, &connection->client, &filter));
    }
    return request_answer(net, connection, MQTT_UNSUBACK, packet.packet_id);
}
