/* proto/mqtt.c: the protocol MQTT: the packets of a connection and the answers to them. See proto/mqtt.h. */
#include "proto/mqtt.h"
#include "proto/mqtt_bytes.h"
#include "proto/mqtt_properties_codec.h"
#include "proto/protocol.h"

#define CONNECT_BYTES_MAX 4096u /* where keys are required: a stranger's CONNECT, with its will */
#define SECOND_MS 1000u

static uint8_t version_of(const connection_t *connection) { return connection->mqtt ? connection->mqtt->version : MQTT_UNKNOWN; }

static void property_set(mqtt_properties_t *properties, enum mqtt_property property) { properties->present |= 1ull << property; }

static mqtt_properties_t reason_string(const uint8_t *why, uint32_t size) {
    mqtt_properties_t properties = {.reason_string = {why, size}};
    if (size) property_set(&properties, MQTT_REASON_STRING);
    return properties;
}

/* ---- the end ----------------------------------------------------------------------------------------------------------- */

/* Without the text, if it makes the packet larger than the client takes. False: the client has no such packet. */
static bool disconnect_write(net_t *net, connection_t *connection, uint8_t reason, const uint8_t *why, uint32_t why_size) {
    mqtt_t *mqtt = connection->mqtt;
    if (!connection->hello || mqtt->version < MQTT_5 || mqtt->gone) return false;
    mqtt_properties_t properties = reason_string(why, why_size);
    if (mqtt_goodbye_write(NULL, MQTT_DISCONNECT, reason, &properties) > mqtt->packet_bytes_max) properties.present = 0;
    const uint32_t size = mqtt_goodbye_write(NULL, MQTT_DISCONNECT, reason, &properties);
    uint8_t *out = size <= mqtt->packet_bytes_max ? output_reserve(net, connection, size) : NULL;
    if (!out) return false;
    output_push(net, connection, mqtt_goodbye_write(out, MQTT_DISCONNECT, reason, &properties));
    mqtt->gone = true;
    return true;
}

enum frame_outcome mqtt_end(net_t *net, connection_t *connection, uint8_t reason, uint8_t close_code, const char *why) {
    if (!connection->hello) {
        connection_close(net, connection, close_code, why);
        return FRAME_TAKEN;
    }
    disconnect_write(net, connection, reason, (const uint8_t *)why, (uint32_t)strlen(why));
    connection_finish(net, connection, close_code, why); /* earlier answers are sent, also to clients before MQTT 5 */
    return FRAME_TAKEN;
}

enum frame_outcome mqtt_violation(net_t *net, connection_t *connection, int error) {
    net->broker.stats.frames_bad++;
    return mqtt_end(net, connection, mqtt_error_reason(error), error == MQTT_E_TOO_LARGE ? BQ_CLOSE_TOO_LARGE : BQ_CLOSE_FRAME,
                    mqtt_error_phrase(error));
}

static bool mqtt_goodbye(broker_t *broker, client_t *client, enum bq_close reason, const char *why) {
    const uint8_t code = reason == BQ_CLOSE_SILENT     ? MQTT_KEEP_ALIVE_TIMEOUT
                         : reason == BQ_CLOSE_SHUTDOWN ? MQTT_SERVER_SHUTTING_DOWN
                                                       : MQTT_NOT_AUTHORIZED;
    return disconnect_write(net_of(broker), connection_of(client), code, (const uint8_t *)why, (uint32_t)strlen(why));
}

static void mqtt_closed(broker_t *broker, client_t *client) {
    connection_t *connection = connection_of(client);
    if (!connection->mqtt) return;
    mqtt_packets_free(broker, client);
    mqtt_aliases_free(broker, connection->mqtt);
    mqtt_request_free(broker, connection->mqtt);
    pool_free(&broker->pool, connection->mqtt, sizeof *connection->mqtt);
    connection->mqtt = NULL;
}

/* ---- CONNECT ------------------------------------------------------------------------------------------------------------- */

/* False: there is no such CONNACK, or the client takes none of this size. */
static bool connack_write(net_t *net, connection_t *connection, uint8_t version, uint32_t bytes_max, bool present, uint8_t reason,
                          const mqtt_properties_t *properties) {
    const uint32_t size = mqtt_connack_write(NULL, version, present, reason, properties);
    uint8_t *out = size && size <= bytes_max ? output_reserve(net, connection, size) : NULL;
    if (out) output_push(net, connection, mqtt_connack_write(out, version, present, reason, properties));
    return out != NULL;
}

/* CONNACK with an error, if this version has one for this reason. */
static bool connack_refuse(net_t *net, connection_t *connection, uint8_t version, uint32_t bytes_max, uint8_t reason,
                           const uint8_t *why, uint32_t why_size) {
    const mqtt_properties_t properties = reason_string(why, why_size);
    return version != MQTT_UNKNOWN && (connack_write(net, connection, version, bytes_max, false, reason, &properties) ||
                                       connack_write(net, connection, version, bytes_max, false, reason, NULL));
}

static enum frame_outcome connect_refuse(net_t *net, connection_t *connection, uint8_t version, uint8_t reason,
                                         uint8_t close_code, const char *why) {
    if (connack_refuse(net, connection, version, UINT32_MAX, reason, (const uint8_t *)why, (uint32_t)strlen(why)))
        connection_finish(net, connection, close_code, why);
    else
        connection_close(net, connection, close_code, why);
    return FRAME_TAKEN;
}

/* NULL: Python may be asked. Otherwise the reason why not. */
static const char *connect_problem(const connection_t *connection, const mqtt_connect_t *connect, uint8_t *reason) {
    if (connection->refused) {
        *reason = MQTT_QUOTA_EXCEEDED;
        return "too many connections: server.max_connections is reached";
    }
    if (mqtt_has(&connect->properties, MQTT_AUTHENTICATION_METHOD)) {
        *reason = MQTT_BAD_AUTHENTICATION_METHOD;
        return "no authentication method is served: send a user name and a password";
    }
    if (connect->has_will) {
        *reason = MQTT_SERVER_UNAVAILABLE;
        return "wills are not served yet: connect without one";
    }
    if (connect->client_id.size > REQUEST_BYTES_MAX) {
        *reason = MQTT_CLIENT_IDENTIFIER_NOT_VALID;
        return "the client identifier is longer than 4 KiB";
    }
    if (4ull + connect->user_name.size + connect->password.size + connect->will_topic.size > REQUEST_BYTES_MAX) {
        *reason = MQTT_BAD_USER_NAME_OR_PASSWORD;
        return "user name, password and the will's topic have together more than 4 KiB";
    }
    return NULL;
}

/* [u16 size][user name][u16 size][password][will topic] */
static uint32_t credentials_write(uint8_t *out, const mqtt_connect_t *connect) {
    uint8_t *at = out;
    store_u16(at, (uint16_t)connect->user_name.size);
    at = mqtt_write_bytes(at + 2, connect->user_name.bytes, connect->user_name.size);
    store_u16(at, (uint16_t)connect->password.size);
    at = mqtt_write_bytes(at + 2, connect->password.bytes, connect->password.size);
    return (uint32_t)(mqtt_write_bytes(at, connect->will_topic.bytes, connect->will_topic.size) - out);
}

/* Python decides. The password is in the event only, never in the state of the client. */
static enum frame_outcome connect_ask(net_t *net, connection_t *connection, const mqtt_connect_t *connect) {
    uint8_t credentials[REQUEST_BYTES_MAX];
    bq_event_t event = {.type = BQ_EV_MQTT_CONNECT,
                        .code = connect->version,
                        .flags = (connect->clean_start ? BQ_EV_CLEAN : 0u) | (connect->has_will ? BQ_EV_WILL : 0u) |
                                 (connect->has_user_name ? BQ_EV_USERNAME : 0u) | (connect->has_password ? BQ_EV_PASSWORD : 0u),
                        .value = connect->keep_alive_s | (uint64_t)connect->properties.session_expiry_s << 32,
                        .text = connect->client_id.bytes,
                        .text_size = connect->client_id.size,
                        .data = credentials,
                        .data_size = credentials_write(credentials, connect)};
    if (!mqtt_has(&connect->properties, MQTT_SESSION_EXPIRY)) event.value = connect->keep_alive_s;
    if (!connection_ask(net, connection, &event)) return FRAME_KEPT;
    admission_heard(net, connection);
    return FRAME_TAKEN;
}

static void connect_store(mqtt_t *mqtt, const mqtt_connect_t *connect) {
    const bool expires = mqtt_has(&connect->properties, MQTT_SESSION_EXPIRY);
    *mqtt = (mqtt_t){.version = connect->version,
                     .keep_alive_s = connect->keep_alive_s,
                     .receive_maximum = connect->version < MQTT_5 ? UINT16_MAX : connect->properties.receive_maximum,
                     .packet_bytes_max = connect->version < MQTT_5 ? UINT32_MAX : connect->properties.maximum_packet_bytes,
                     .session_expiry_s = expires ? connect->properties.session_expiry_s : 0,
                     .problem_told = connect->version >= MQTT_5 && connect->properties.request_problem};
}

static enum frame_outcome packet_connect(net_t *net, connection_t *connection, const mqtt_frame_t *frame, const uint8_t *body) {
    mqtt_connect_t connect;
    uint8_t reason = 0;
    const int error = mqtt_connect_read(frame, body, MQTT_TOPIC_BYTES_MAX, &connect);
    if (error) {
        net->broker.stats.frames_bad++;
        return connect_refuse(net, connection, connect.version, mqtt_error_reason(error), BQ_CLOSE_FRAME,
                              mqtt_error_phrase(error));
    }
    const char *problem = connect_problem(connection, &connect, &reason);
    if (problem)
        return connect_refuse(net, connection, connect.version, reason, connection->refused ? BQ_CLOSE_REFUSED : BQ_CLOSE_FRAME,
                              problem);
    if (!connection->mqtt) connection->mqtt = pool_alloc(&net->broker.pool, sizeof *connection->mqtt);
    if (!connection->mqtt)
        return connect_refuse(net, connection, connect.version, MQTT_SERVER_UNAVAILABLE, BQ_CLOSE_MEMORY,
                              "the broker is out of memory: try again later");
    connect_store(connection->mqtt, &connect);
    return connect_ask(net, connection, &connect);
}

/* What the client could not learn otherwise. */
#define MUST_BE_TOLD (1ull << MQTT_ASSIGNED_CLIENT_ID | 1ull << MQTT_SERVER_KEEP_ALIVE | 1ull << MQTT_SESSION_EXPIRY)

/* What this server serves. Properties with the default of MQTT 5 are left out. */
static mqtt_properties_t connack_properties(const net_t *net, const mqtt_t *mqtt, const bq_mqtt_admission_t *admission,
                                            mqtt_text_t assigned) {
    mqtt_properties_t properties = {.assigned_client_id = assigned,
                                    .session_expiry_s = admission->session_expiry_s,
                                    .server_keep_alive_s = admission->keepalive_s,
                                    .topic_alias_maximum = MQTT_ALIASES_MAX,
                                    .receive_maximum = MQTT_UNANSWERED_MAX,
                                    .maximum_qos = net->broker.wal ? 1 : 0,
                                    .maximum_packet_bytes = mqtt_packet_bytes_max(&net->broker)};
    property_set(&properties, MQTT_MAXIMUM_PACKET_SIZE);
    property_set(&properties, MQTT_TOPIC_ALIAS_MAXIMUM);
    if (net->broker.wal) property_set(&properties, MQTT_RECEIVE_MAXIMUM);
    property_set(&properties, MQTT_MAXIMUM_QOS);
    property_set(&properties, MQTT_RETAIN_AVAILABLE);
    property_set(&properties, MQTT_SUBSCRIPTION_IDS_AVAILABLE);
    property_set(&properties, MQTT_SHARED_AVAILABLE);
    if (assigned.size) property_set(&properties, MQTT_ASSIGNED_CLIENT_ID);
    if (admission->session_expiry_s != mqtt->session_expiry_s) property_set(&properties, MQTT_SESSION_EXPIRY);
    if (admission->flags & BQ_MQTT_KEEPALIVE) property_set(&properties, MQTT_SERVER_KEEP_ALIVE);
    return properties;
}

/* Python has admitted it. A client of MQTT 5 learns the keep-alive that the server uses; others keep theirs. */
static void mqtt_welcome(broker_t *broker, client_t *client, uint64_t seq, const uint8_t *text, uint32_t text_size,
                         const uint8_t *data, uint32_t data_size) {
    (void)seq;
    net_t *net = net_of(broker);
    connection_t *connection = connection_of(client);
    mqtt_t *mqtt = connection->mqtt;
    bq_mqtt_admission_t admission = {0};
    if (!mqtt || connection->hello) return;
    if (data_size == sizeof admission) memcpy(&admission, data, sizeof admission);
    if (mqtt->version >= MQTT_5 && admission.flags & BQ_MQTT_KEEPALIVE) mqtt->keep_alive_s = admission.keepalive_s;
    if (admission.assigned_size > text_size) admission.assigned_size = 0;
    const mqtt_text_t assigned = {text + text_size - admission.assigned_size, admission.assigned_size};
    mqtt_properties_t properties = connack_properties(net, mqtt, &admission, assigned);
    if (mqtt_connack_write(NULL, mqtt->version, false, MQTT_SUCCESS, &properties) > mqtt->packet_bytes_max)
        properties.present &= MUST_BE_TOLD; /* the others are told when the client asks for more than is served */
    if (!connack_write(net, connection, mqtt->version, mqtt->packet_bytes_max, admission.flags & BQ_MQTT_PRESENT, MQTT_SUCCESS,
                       &properties)) {
        connection_close(net, connection, BQ_CLOSE_FRAME, "the maximum packet size of the client is too small for a CONNACK");
        return;
    }
    connection->hello = true;
    client->queue.encoding = mqtt->version >= MQTT_5 ? ENCODING_MQTT_5 : ENCODING_MQTT_3;
    connection->keepalive_ms = mqtt->keep_alive_s * SECOND_MS;
    keepalive_begin(net, connection);
}

/* Python refuses its CONNECT, or ends its connection. The code is a reason code of MQTT 5. */
static void mqtt_forward(broker_t *broker, client_t *client, const bq_command_t *command, const uint8_t *text, uint32_t text_size,
                         const uint8_t *data, uint32_t data_size) {
    (void)data, (void)data_size;
    net_t *net = net_of(broker);
    connection_t *connection = connection_of(client);
    const uint8_t reason =
        command->code >= MQTT_UNSPECIFIED_ERROR && command->code <= UINT8_MAX ? (uint8_t)command->code : MQTT_UNSPECIFIED_ERROR;
    if (!connection->mqtt) return;
    if (connection->hello)
        disconnect_write(net, connection, reason, text, text_size);
    else
        connack_refuse(net, connection, connection->mqtt->version, connection->mqtt->packet_bytes_max, reason, text, text_size);
}

/* ---- packets ------------------------------------------------------------------------------------------------------------- */

static enum frame_outcome packet_pingreq(net_t *net, connection_t *connection, const mqtt_frame_t *frame) {
    const int error = mqtt_pingreq_read(frame);
    if (error) return mqtt_violation(net, connection, error);
    uint8_t *out = output_reserve(net, connection, mqtt_pingresp_write(NULL));
    if (out) output_push(net, connection, mqtt_pingresp_write(out));
    return FRAME_TAKEN;
}

/* The client ends the connection. Its earlier requests are still answered. */
static enum frame_outcome packet_disconnect(net_t *net, connection_t *connection, const mqtt_frame_t *frame,
                                            const uint8_t *body) {
    mqtt_result_t result;
    const mqtt_t *mqtt = connection->mqtt;
    const int error = mqtt_result_read(frame, body, mqtt->version, &result);
    if (error) return mqtt_violation(net, connection, error);
    if (!mqtt->session_expiry_s && mqtt_has(&result.properties, MQTT_SESSION_EXPIRY) && result.properties.session_expiry_s)
        return mqtt_end(net, connection, MQTT_PROTOCOL_ERROR, BQ_CLOSE_FRAME,
                        "DISCONNECT has a session expiry, but CONNECT had none");
    connection_input_ended(net, connection, BQ_CLOSE_QUIT);
    return FRAME_TAKEN;
}

static enum frame_outcome packet_auth(net_t *net, connection_t *connection, const mqtt_frame_t *frame, const uint8_t *body) {
    mqtt_result_t result;
    const int error = mqtt_result_read(frame, body, connection->mqtt->version, &result);
    if (error) return mqtt_violation(net, connection, error);
    return mqtt_end(net, connection, MQTT_PROTOCOL_ERROR, BQ_CLOSE_FRAME, "AUTH, but CONNECT had no authentication method");
}

static enum frame_outcome packet(net_t *net, connection_t *connection, const mqtt_frame_t *frame, const uint8_t *body) {
    if (BQ_UNLIKELY(!connection->hello)) {
        if (frame->type == MQTT_CONNECT) return packet_connect(net, connection, frame, body);
        net->broker.stats.frames_bad++;
        return mqtt_end(net, connection, MQTT_PROTOCOL_ERROR, BQ_CLOSE_FRAME, "the first packet is not CONNECT");
    }
    switch (frame->type) {
    case MQTT_PUBLISH: return mqtt_publish(net, connection, frame, body);
    case MQTT_SUBSCRIBE: return mqtt_subscribe(net, connection, frame, body);
    case MQTT_UNSUBSCRIBE: return mqtt_unsubscribe(net, connection, frame, body);
    case MQTT_PINGREQ: return packet_pingreq(net, connection, frame);
    case MQTT_DISCONNECT: return packet_disconnect(net, connection, frame, body);
    case MQTT_AUTH: return packet_auth(net, connection, frame, body);
    case MQTT_CONNECT: return mqtt_end(net, connection, MQTT_PROTOCOL_ERROR, BQ_CLOSE_FRAME, "a second CONNECT");
    case MQTT_PUBACK: return mqtt_acknowledged(net, connection, frame, body);
    default:
        return mqtt_end(net, connection, MQTT_PROTOCOL_ERROR, BQ_CLOSE_FRAME,
                        "an acknowledgement, but nothing was sent with QoS 2");
    }
}

static uint32_t mqtt_greeting_max(const broker_t *broker) {
    const uint32_t most = mqtt_packet_bytes_max(broker);
    return broker->config.require_hello && most > CONNECT_BYTES_MAX ? CONNECT_BYTES_MAX : most;
}

/* Takes whole packets from the front of the input. Returns the bytes taken. */
static uint32_t mqtt_parse(broker_t *broker, client_t *client, const uint8_t *bytes, uint32_t size) {
    net_t *net = net_of(broker);
    connection_t *connection = connection_of(client);
    const uint32_t limit = connection->hello ? mqtt_packet_bytes_max(broker) : mqtt_greeting_max(broker);
    uint32_t at = 0;
    while (at < size && !client->pause && connection->state == CONNECTION_OPEN) {
        mqtt_frame_t frame;
        const int header = mqtt_frame_read(bytes + at, size - at, version_of(connection), limit, &frame);
        if (BQ_UNLIKELY(header < 0)) mqtt_violation(net, connection, header);
        if (header <= 0 || size - at - (uint32_t)header < frame.body_size) break;
        if (packet(net, connection, &frame, bytes + at + header) == FRAME_KEPT) break;
        at += (uint32_t)header + frame.body_size;
        broker->stats.frames_in++;
        broker->stats.work += WORK_FRAME;
        if (BQ_UNLIKELY(work_done(broker) >= broker->work_stop)) publishing_share_used_up(net, connection);
    }
    return at;
}

/* ---- the table ------------------------------------------------------------------------------------------------------------ */

static void mqtt_subscribed(broker_t *broker, client_t *client, uint64_t seq, const uint8_t *filter, uint32_t size) {
    (void)filter, (void)size;
    mqtt_filter_answered(broker, client, seq, false);
}

static void mqtt_not_done(broker_t *broker, client_t *client, uint64_t seq, enum bq_outcome outcome, const char *why) {
    if (seq & MQTT_SEQ_SUBSCRIBE)
        mqtt_filter_answered(broker, client, seq, true);
    else
        mqtt_not_published(broker, client, seq, outcome, why);
}

const protocol_ops_t protocol_mqtt = {.name = "mqtt",
                                      .greets = true,
                                      .late = "no CONNECT in time",
                                      .silent = "the client sent nothing, not even PINGREQ, for 1.5 times its keep-alive",
                                      .greeting_max = mqtt_greeting_max,
                                      .parse = mqtt_parse,
                                      .welcome = mqtt_welcome,
                                      .subscribed = mqtt_subscribed,
                                      .published = mqtt_published,
                                      .answer = mqtt_not_done,
                                      .refuse = mqtt_not_done,
                                      .granted = mqtt_granted,
                                      .goodbye = mqtt_goodbye,
                                      .closed = mqtt_closed,
                                      .forward = mqtt_forward};
