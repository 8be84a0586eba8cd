/* proto/blip.c: BlipMQ's own protocol: requests from clients and answers to them. docs/PROTOCOL.md describes the frames. */
#include "broker/commit.h"
#include "net/publishing.h"
#include "proto/blip_codec.h"
#include "proto/blip_fast.h"
#include "proto/protocol.h"

#define GROUP_BYTES_TOLD 512u
#define ENDED_TEXT "an operator ended this subscription: "

/* ---- answers --------------------------------------------------------------------------------------------------------- */

/* Reply.code of each outcome. */
static const uint16_t CODES[] = {
    [BQ_OUTCOME_DONE] = 0,          [BQ_OUTCOME_INVALID] = 400,   [BQ_OUTCOME_UNAUTHENTICATED] = 401,
    [BQ_OUTCOME_NOT_ALLOWED] = 403, [BQ_OUTCOME_NOT_FOUND] = 404, [BQ_OUTCOME_ENDED] = 410,
    [BQ_OUTCOME_TOO_LARGE] = 413,   [BQ_OUTCOME_LIMIT] = 429,     [BQ_OUTCOME_UNAVAILABLE] = 503,
};

static void reply(net_t *net, connection_t *connection, uint64_t seq, uint16_t code, const uint8_t *text, uint32_t text_size,
                  uint64_t id, const uint8_t *payload, uint32_t payload_size) {
    uint8_t *out = output_reserve(net, connection, FRAME_REPLY_BYTES_MAX(text_size, payload_size));
    if (out) output_push(net, connection, frame_write_reply(out, seq, code, text, text_size, id, payload, payload_size));
}

static void reply_text(net_t *net, connection_t *connection, uint64_t seq, enum bq_outcome outcome, const char *why) {
    if (!why) why = "";
    reply(net, connection, seq, CODES[outcome], (const uint8_t *)why, (uint32_t)strlen(why), 0, NULL, 0);
}

static void blip_welcome(broker_t *broker, client_t *client, uint64_t seq, const uint8_t *text, uint32_t text_size,
                         const uint8_t *data, uint32_t data_size) {
    (void)data, (void)data_size;
    net_t *net = net_of(broker);
    connection_t *connection = connection_of(client);
    connection->hello = true;
    uint8_t *out = output_reserve(net, connection, FRAME_REPLY_BYTES_MAX(text_size, 0));
    if (out) output_push(net, connection, frame_write_welcome(out, seq, text, text_size, connection->keepalive_ms));
}

static void blip_subscribed(broker_t *broker, client_t *client, uint64_t seq, const uint8_t *filter, uint32_t size) {
    net_t *net = net_of(broker);
    connection_t *connection = connection_of(client);
    uint8_t *out = output_reserve(net, connection, FRAME_REPLY_BYTES_MAX(size, sizeof "subscribed"));
    if (out) output_push(net, connection, frame_write_suback(out, seq, 0, filter, size, "subscribed"));
}

static void blip_published(broker_t *broker, client_t *client, uint64_t seq, uint64_t id, uint64_t subscriptions, bool matched) {
    (void)matched;
    net_t *net = net_of(broker);
    connection_t *connection = connection_of(client);
    if (!connection->hello) return;
    uint8_t *out = output_reserve(net, connection, FRAME_REPLY_BYTES_MAX(0, 0));
    if (out) output_push(net, connection, frame_write_published(out, seq, id, subscriptions));
}

static void blip_answer(broker_t *broker, client_t *client, uint64_t seq, enum bq_outcome outcome, const char *why) {
    net_t *net = net_of(broker);
    connection_t *connection = connection_of(client);
    if (connection->hello) reply_text(net, connection, seq, outcome, why);
}

/* Clients that sent HELLO get a Reply. A client of version 1.0.0 can only be closed, which the broker logs in one line. */
static void blip_refuse(broker_t *broker, client_t *client, uint64_t seq, enum bq_outcome outcome, const char *why) {
    net_t *net = net_of(broker);
    connection_t *connection = connection_of(client);
    if (connection->hello)
        reply_text(net, connection, seq, outcome, why);
    else
        connection_close(net, connection, BQ_CLOSE_FRAME, why);
}

/* A Reply that answers no request. A client that broke its keep-alive promise does not read it. */
static bool blip_goodbye(broker_t *broker, client_t *client, enum bq_close reason, const char *why) {
    if (reason == BQ_CLOSE_SILENT) return false;
    blip_answer(broker, client, 0, reason == BQ_CLOSE_UNAUTH ? BQ_OUTCOME_UNAUTHENTICATED : BQ_OUTCOME_UNAVAILABLE, why);
    return true;
}

/* A Reply that answers no request. Its payload is the filter; for a group also a line end and the group. */
static void blip_ended(broker_t *broker, client_t *client, const uint8_t *filter, uint32_t filter_size, const uint8_t *group,
                       uint32_t group_size) {
    net_t *net = net_of(broker);
    connection_t *connection = connection_of(client);
    uint8_t what[TOPIC_BYTES_MAX + 1 + GROUP_BYTES_TOLD], text[sizeof ENDED_TEXT + TOPIC_BYTES_MAX];
    const uint32_t opening = (uint32_t)sizeof ENDED_TEXT - 1;
    uint32_t size = filter_size;
    if (!connection->hello) return;
    memcpy(what, filter, filter_size);
    memcpy(text, ENDED_TEXT, opening);
    memcpy(text + opening, filter, filter_size);
    if (group_size > GROUP_BYTES_TOLD) group_size = GROUP_BYTES_TOLD;
    if (group_size) {
        what[size++] = '\n';
        memcpy(what + size, group, group_size);
        size += group_size;
    }
    reply(net, connection, 0, CODES[BQ_OUTCOME_ENDED], text, opening + filter_size, 0, what, size);
}

static void blip_forward(broker_t *broker, client_t *client, const bq_command_t *command, const uint8_t *text, uint32_t text_size,
                         const uint8_t *data, uint32_t data_size) {
    net_t *net = net_of(broker);
    connection_t *connection = connection_of(client);
    reply(net, connection, command->seq, command->code, text, text_size, command->value, data, data_size);
}

/* ---- requests ------------------------------------------------------------------------------------------------------ */

static enum frame_outcome refuse(net_t *net, connection_t *connection, uint64_t seq, enum bq_outcome outcome, const char *why) {
    blip_refuse(&net->broker, &connection->client, seq, outcome, why);
    return FRAME_TAKEN;
}

/* After such a frame the stream is not usable, or the frame exceeds a limit. Both end the connection. */
static void refuse_and_close(net_t *net, connection_t *connection, uint64_t seq, enum bq_outcome outcome, uint8_t close_code,
                             const char *why) {
    if (connection->hello) {
        reply_text(net, connection, seq, outcome, why);
        connection_finish(net, connection, close_code, why);
    } else {
        connection_close(net, connection, close_code, why);
    }
}

static enum frame_outcome bad_frame(net_t *net, connection_t *connection, uint64_t seq, int error) {
    net->broker.stats.frames_bad++;
    const char *why = frame_error(error);
    if (frame_error_is_fatal(error))
        refuse_and_close(net, connection, 0, BQ_OUTCOME_INVALID, BQ_CLOSE_FRAME, why);
    else
        refuse(net, connection, seq, BQ_OUTCOME_INVALID, why);
    return FRAME_TAKEN;
}

static message_t message_of(const bq_view_t *view) {
    return (message_t){.topic = view->topic,
                       .topic_size = view->topic_size,
                       .payload = view->payload,
                       .payload_size = view->payload_size,
                       .ttl_ms = view->ttl_ms};
}

static enum frame_outcome publish_durably(net_t *net, connection_t *connection, topic_t *topic, const bq_view_t *view) {
    const message_t message = message_of(view);
    return publishing_durably(net, connection, topic, view->seq, &message);
}

static NOINLINE enum frame_outcome publish_behind(net_t *net, connection_t *connection, const bq_view_t *view) {
    const message_t message = message_of(view);
    return publishing_behind(net, connection, view->seq, false, &message);
}

static NOINLINE enum frame_outcome publish_otherwise(net_t *net, connection_t *connection, topic_t *topic, const bq_view_t *view,
                                                     enum publish_outcome outcome, wait_list_t *blocker) {
    const message_t message = message_of(view);
    return publishing_otherwise(net, connection, topic, view->seq, &message, outcome, blocker);
}

static enum frame_outcome request_publish(net_t *net, connection_t *connection, const bq_view_t *view) {
    int error = 0;
    topic_t *topic = publish_topic(&net->broker, connection->last_topic, view->topic, view->topic_size, &error);
    if (BQ_UNLIKELY(!topic && error == PUBLISH_RUN_OPEN)) {
        net_run_close(net);
        topic = publish_topic(&net->broker, connection->last_topic, view->topic, view->topic_size, &error);
    }
    if (BQ_UNLIKELY(!topic)) {
        if (error == BQ_E_MEMORY)
            return refuse(net, connection, view->seq, BQ_OUTCOME_UNAVAILABLE, "the broker is out of memory: try again later");
        return bad_frame(net, connection, view->seq, error);
    }
    connection->last_topic = topic;
    if (BQ_UNLIKELY(connection->client.acl != NULL) && !acl_allow(connection->client.acl, topic)) {
        net->broker.stats.publishes_not_allowed++;
        return refuse(net, connection, view->seq, BQ_OUTCOME_NOT_ALLOWED, "this key may not publish to this topic");
    }
    if (BQ_UNLIKELY(view->qos && (net->broker.wal || connection->hello))) return publish_durably(net, connection, topic, view);
    if (BQ_UNLIKELY(connection->client.pending_commits)) return publish_behind(net, connection, view);
    wait_list_t *blocker = NULL;
    enum publish_outcome outcome = publish(&net->broker, topic, view->payload, view->payload_size, view->ttl_ms, &blocker);
    return BQ_LIKELY(outcome == PUBLISH_DONE) ? FRAME_PUBLISHED
                                              : publish_otherwise(net, connection, topic, view, outcome, blocker);
}

/* Pass a request to Python and stop this connection's input until the answer. */
static enum frame_outcome ask(net_t *net, connection_t *connection, bq_event_t *event) {
    /* An event that never fits into the ring would be retried without end. */
    if (event->text_size > REQUEST_BYTES_MAX || event->data_size > REQUEST_BYTES_MAX)
        return refuse(net, connection, event->seq, BQ_OUTCOME_INVALID,
                      "client_id, api_key, group and the request of INFO or ADMIN may have at most 4 KiB each");
    event->flags |= connection->hello ? 0 : BQ_EV_LEGACY;
    return connection_ask(net, connection, event) ? FRAME_TAKEN : FRAME_KEPT;
}

static enum frame_outcome request_hello(net_t *net, connection_t *connection, const bq_view_t *view) {
    if (connection->refused) {
        connection->hello = true;
        refuse_and_close(net, connection, view->seq, BQ_OUTCOME_LIMIT, BQ_CLOSE_REFUSED,
                         "too many connections: server.max_connections is reached");
        return FRAME_TAKEN;
    }
    bq_event_t event = {.type = BQ_EV_HELLO,
                        .seq = view->seq,
                        .value = view->protocol,
                        .text = view->client_id,
                        .text_size = view->client_id_size,
                        .data = view->api_key,
                        .data_size = view->api_key_size};
    enum frame_outcome outcome = ask(net, connection, &event);
    keepalive_promise(net, connection, view->keepalive_ms);
    if (connection->client.pause & PAUSE_ANSWER) admission_heard(net, connection);
    return outcome;
}

static enum frame_outcome request_subscribe(net_t *net, connection_t *connection, const bq_view_t *view) {
    int error = levels_check(view->topic, view->topic_size, net->broker.config.max_topic_levels);
    if (error) return bad_frame(net, connection, view->seq, error);
    return ask(net, connection,
               &(bq_event_t){.type = BQ_EV_SUB,
                             .seq = view->seq,
                             .value = view->qos,
                             .flags = view->durable ? BQ_EV_DURABLE : 0,
                             .text = view->topic,
                             .text_size = view->topic_size,
                             .data = view->group,
                             .data_size = view->group_size});
}

static enum frame_outcome request_json(net_t *net, connection_t *connection, const bq_view_t *view, uint16_t type) {
    if (!connection->hello) return FRAME_TAKEN; /* a legacy client cannot be answered */
    return ask(net, connection,
               &(bq_event_t){.type = type, .seq = view->seq, .data = view->payload, .data_size = view->payload_size});
}

static enum frame_outcome request(net_t *net, connection_t *connection, const bq_view_t *view) {
    if (!connection->admitted && view->action != FRAME_HELLO) {
        connection_close(net, connection, BQ_CLOSE_UNAUTH, "a command before HELLO: authentication is required");
        return FRAME_TAKEN;
    }
    if (connection->refused && view->action != FRAME_HELLO) {
        connection_close(net, connection, BQ_CLOSE_REFUSED, "too many connections: server.max_connections is reached");
        return FRAME_TAKEN;
    }
    switch (view->action) {
    case FRAME_PUB: return request_publish(net, connection, view);
    case FRAME_HELLO: return request_hello(net, connection, view);
    case FRAME_SUB: return request_subscribe(net, connection, view);
    case FRAME_UNSUB:
        return ask(net, connection,
                   &(bq_event_t){.type = BQ_EV_UNSUB,
                                 .seq = view->seq,
                                 .flags = view->keep_durable ? BQ_EV_KEEP : 0,
                                 .text = view->topic,
                                 .text_size = view->topic_size,
                                 .data = view->group,
                                 .data_size = view->group_size});
    case FRAME_INFO: return request_json(net, connection, view, BQ_EV_INFO);
    case FRAME_ADMIN: return request_json(net, connection, view, BQ_EV_ADMIN);
    case FRAME_PING: blip_answer(&net->broker, &connection->client, view->seq, BQ_OUTCOME_DONE, NULL); return FRAME_TAKEN;
    case FRAME_ACK: consumer_ack(&net->broker, &connection->client, view->seq); return FRAME_TAKEN;
    default: connection_input_ended(net, connection, BQ_CLOSE_QUIT); return FRAME_TAKEN;
    }
}

/* true: the last publish of this connection has joined the open run, and more may join it. */
static inline bool may_join_run(const net_t *net, const connection_t *connection) {
    return net->broker.open.run.count && net->broker.open.topic == connection->last_topic &&
           connection->state == CONNECTION_OPEN && !connection->client.pause;
}

/* A quick check whether the next frame may be similar, because a full comparison costs time if it is not. Topics usually
 * differ at their end. */
static inline bool followed_alike(const uint8_t *bytes, uint32_t size, uint32_t frame_size, const bq_view_t *view) {
    uint32_t topic_end = (uint32_t)(view->topic - bytes) + view->topic_size;
    return size - frame_size >= topic_end && load_u64(bytes + topic_end - 8) == load_u64(bytes + frame_size + topic_end - 8);
}

/* Process the frame at the front of `size` bytes, and similar ones after it. Returns the bytes taken; 0: parse it again
 * later. */
static uint32_t frames(net_t *net, connection_t *connection, const uint8_t *bytes, uint32_t size, uint32_t body_size) {
    bq_view_t view;
    int error = frame_verify(bytes + 4, body_size, &view);
    /* A publish's topic is checked when it enters the topic cache. All other requests are checked here. */
    if (BQ_LIKELY(!error) && view.action != FRAME_PUB) error = frame_check_fields(&view);
    if (BQ_UNLIKELY(error)) {
        bad_frame(net, connection, view.seq, error);
        return 4 + body_size;
    }
    enum frame_outcome outcome = request(net, connection, &view);
    if (outcome == FRAME_KEPT) return 0; /* it is parsed again later, and counted then */
    net->broker.stats.frames_in++;
    if (outcome != FRAME_PUBLISHED || !followed_alike(bytes, size, 4 + body_size, &view) || !may_join_run(net, connection))
        return 4 + body_size;
    return 4 + body_size + blip_fast_path(net, bytes, size, net->broker.config.max_frame_bytes, &view);
}

static void too_large(net_t *net, connection_t *connection, uint32_t size) {
    net->broker.stats.frames_bad++;
    const char *why =
        size == 0 ? "a frame of length 0" : "a frame longer than server.max_message_size_bytes allows, or another protocol";
    if (size == 0)
        refuse_and_close(net, connection, 0, BQ_OUTCOME_INVALID, BQ_CLOSE_FRAME, why);
    else
        refuse_and_close(net, connection, 0, BQ_OUTCOME_TOO_LARGE, BQ_CLOSE_TOO_LARGE, why);
}

static uint32_t blip_greeting_max(const broker_t *broker) { return broker->config.max_frame_bytes_unauth + 4; }

/* Take whole frames from the front of the input. Returns the bytes taken. */
static uint32_t blip_parse(broker_t *broker, client_t *client, const uint8_t *bytes, uint32_t size) {
    net_t *net = net_of(broker);
    connection_t *connection = connection_of(client);
    uint32_t at = 0;
    bool welcome = connection->admitted && !connection->refused;
    uint32_t limit = welcome ? net->broker.config.max_frame_bytes : net->broker.config.max_frame_bytes_unauth;
    while (size - at >= 4 && !connection->client.pause && connection->state == CONNECTION_OPEN) {
        uint32_t body_size = load_be32(bytes + at);
        if (BQ_UNLIKELY(body_size == 0 || body_size > limit)) {
            too_large(net, connection, body_size);
            break;
        }
        if (size - at - 4 < body_size) break;
        uint32_t taken = frames(net, connection, bytes + at, size - at, body_size);
        if (!taken) break;
        at += taken;
        net->broker.stats.work += WORK_FRAME;
        if (BQ_UNLIKELY(work_done(&net->broker) >= net->broker.work_stop)) publishing_share_used_up(net, connection);
    }
    return at;
}

const protocol_ops_t protocol_blip = {.name = "blip",
                                      .late = "no HELLO in time",
                                      .silent =
                                          "the client sent nothing, not even PING, for 1.5 times the keepalive_ms of its HELLO",
                                      .greeting_max = blip_greeting_max,
                                      .parse = blip_parse,
                                      .welcome = blip_welcome,
                                      .subscribed = blip_subscribed,
                                      .published = blip_published,
                                      .answer = blip_answer,
                                      .refuse = blip_refuse,
                                      .ended = blip_ended,
                                      .goodbye = blip_goodbye,
                                      .forward = blip_forward};
