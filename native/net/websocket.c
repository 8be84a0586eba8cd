/* net/websocket.c: see net/websocket.h for the picture and the invariants. */
#include "net/websocket.h"
#include "net/net.h"
#include "net/secure.h"
#include "net/transport.h"
#include "net/transport_io.h"
#include "proto/protocol.h"

#include <errno.h>
#include <stdlib.h>

static const websocket_path_t BLIPMQ = {"/blipmq", "blipmq", &protocol_blip,
                                        "nothing is served here: the path for BlipMQ over WebSocket is /blipmq",
                                        "none of the offered subprotocols is served at this path: offer blipmq, or none"};
static const websocket_path_t MQTT = {"/mqtt", "mqtt", &protocol_mqtt,
                                      "nothing is served here: the path for MQTT over WebSocket is /mqtt",
                                      "none of the offered subprotocols is served at this path: offer mqtt, or none"};

/* ---- before the upgrade ------------------------------------------------------------------------------------------------ */

/* Stands for the protocol until the request names one: it takes no input, and nobody can be answered. */

static uint32_t none_greeting_max(const broker_t *broker) {
    (void)broker;
    return WEBSOCKET_HEAD_MAX;
}

static uint32_t none_parse(broker_t *broker, client_t *client, const uint8_t *bytes, uint32_t size) {
    (void)broker, (void)client, (void)bytes, (void)size;
    return 0;
}

static void none_answer(broker_t *broker, client_t *client, uint64_t seq, enum bq_outcome outcome, const char *why) {
    (void)broker, (void)client, (void)seq, (void)outcome, (void)why;
}

static void none_welcome(broker_t *broker, client_t *client, uint64_t seq, const uint8_t *text, uint32_t size,
                         const uint8_t *data, uint32_t data_size) {
    (void)broker, (void)client, (void)seq, (void)text, (void)size, (void)data, (void)data_size;
}

static void none_subscribed(broker_t *broker, client_t *client, uint64_t seq, const uint8_t *filter, uint32_t size) {
    (void)broker, (void)client, (void)seq, (void)filter, (void)size;
}

static void none_published(broker_t *broker, client_t *client, uint64_t seq, uint64_t id, uint64_t subscriptions, bool matched) {
    (void)broker, (void)client, (void)seq, (void)id, (void)subscriptions, (void)matched;
}

static bool none_goodbye(broker_t *broker, client_t *client, enum bq_close reason, const char *why) {
    (void)broker, (void)client, (void)reason, (void)why;
    return false;
}

static void none_forward(broker_t *broker, client_t *client, const bq_command_t *command, const uint8_t *text, uint32_t text_size,
                         const uint8_t *data, uint32_t data_size) {
    (void)broker, (void)client, (void)command, (void)text, (void)text_size, (void)data, (void)data_size;
}

static const protocol_ops_t protocol_none = {.name = "none",
                                             .late = "no HELLO in time",
                                             .silent = "",
                                             .greeting_max = none_greeting_max,
                                             .parse = none_parse,
                                             .welcome = none_welcome,
                                             .subscribed = none_subscribed,
                                             .published = none_published,
                                             .answer = none_answer,
                                             .refuse = none_answer,
                                             .goodbye = none_goodbye,
                                             .forward = none_forward};

/* ---- life -------------------------------------------------------------------------------------------------------------- */

/* Without keys too, a client stands in the admission until its request has come, so it cannot be silent without end. */
void websocket_begin(net_t *net, connection_t *connection) {
    websocket_t *websocket = pool_alloc(&net->broker.pool, sizeof *websocket);
    if (!websocket) {
        connection_close(net, connection, BQ_CLOSE_MEMORY, "no memory for a WebSocket");
        return;
    }
    memset(websocket, 0, sizeof *websocket);
    uint64_t frame_max = net->broker.config.max_frame_bytes + 4ull;
    websocket->decoder.frame_max = frame_max > WEBSOCKET_FRAME_BYTES ? frame_max : WEBSOCKET_FRAME_BYTES;
    websocket->path = connection->client.protocol == &protocol_mqtt ? &MQTT : &BLIPMQ;
    connection->websocket = websocket;
    connection->client.protocol = &protocol_none;
    net->websocket_count++;
    if (connection->unadmitted || connection->refused) return;
    timer_set(&net->broker, &connection->timer, net->broker.config.hello_timeout_ms);
    admission_enter(net, connection);
}

static void rest_free(net_t *net, websocket_t *websocket) {
    pool_free(&net->broker.pool, websocket->rest, websocket->rest_capacity);
    websocket->rest = NULL;
    websocket->rest_start = websocket->rest_size = websocket->rest_capacity = 0;
}

void websocket_end(net_t *net, connection_t *connection) {
    websocket_t *websocket = connection->websocket;
    if (!websocket) return;
    rest_free(net, websocket);
    pool_free(&net->broker.pool, websocket, sizeof *websocket);
    connection->websocket = NULL;
    net->websocket_count--;
}

bool websocket_is_open(const connection_t *connection) {
    return connection->websocket && connection->websocket->state != WEBSOCKET_HANDSHAKE;
}

void websocket_origins_set(net_t *net, const uint8_t *list, uint32_t size) {
    websocket_origins_t *origins = &net->websocket_origins;
    uint8_t *copy = size ? malloc(size) : NULL;
    if (size && !copy) return; /* the earlier list stays */
    if (size) memcpy(copy, list, size);
    free(origins->list);
    *origins = (websocket_origins_t){.list = copy, .size = size};
    for (uint32_t at = 0; at + 2 < size; at += 2u + load_u16(list + at))
        origins->any |= load_u16(list + at) == 1 && list[at + 2] == '*';
}

/* ---- output ------------------------------------------------------------------------------------------------------------ */

/* Appends bytes that must leave as they are. false: no memory; the next flush closes the connection. */
static bool rest_add(net_t *net, connection_t *connection, const uint8_t *bytes, uint32_t size) {
    websocket_t *websocket = connection->websocket;
    const uint32_t need = websocket->rest_start + websocket->rest_size + size;
    if (need > websocket->rest_capacity) {
        const uint32_t capacity = (uint32_t)pool_good_size(need);
        uint8_t *rest = pool_resize(&net->broker.pool, websocket->rest, websocket->rest_capacity, capacity);
        if (!rest) {
            connection->send_error = ENOMEM;
            client_mark_dirty(&net->broker, &connection->client, FLUSH_NARROW);
            return false;
        }
        websocket->rest = rest;
        websocket->rest_capacity = capacity;
    }
    if (size) memcpy(websocket->rest + websocket->rest_start + websocket->rest_size, bytes, size);
    websocket->rest_size += size;
    return true;
}

void websocket_output_drop(net_t *net, connection_t *connection) {
    websocket_t *websocket = connection->websocket;
    rest_free(net, websocket);
    websocket->close_sent = true;
    websocket->pong_due = false;
}

/* The connection is closing, so a Close follows the last output. */
static bool close_due(const connection_t *connection) {
    return connection->state == CONNECTION_CLOSING && connection->websocket->state != WEBSOCKET_HANDSHAKE &&
           !connection->websocket->close_sent;
}

bool websocket_output_left(const connection_t *connection) {
    const websocket_t *websocket = connection->websocket;
    if (websocket->rest_size || close_due(connection)) return true;
    return (connection->client.queue.head && !websocket->close_sent) || websocket->pong_due;
}

static uint16_t code_of(const net_t *net, const websocket_t *websocket, uint8_t close_code) {
    if (websocket->code) return websocket->code;
    if (net->broker.stopping) return WEBSOCKET_CODE_GOING_AWAY;
    switch (close_code) {
    case BQ_CLOSE_EOF:
    case BQ_CLOSE_QUIT: return WEBSOCKET_CODE_NORMAL;
    case BQ_CLOSE_FRAME: return WEBSOCKET_CODE_INVALID;
    case BQ_CLOSE_TOO_LARGE: return WEBSOCKET_CODE_TOO_LARGE;
    case BQ_CLOSE_SHUTDOWN: return WEBSOCKET_CODE_GOING_AWAY;
    case BQ_CLOSE_UNAUTH:
    case BQ_CLOSE_BROKER:
    case BQ_CLOSE_SILENT: return WEBSOCKET_CODE_POLICY;
    case BQ_CLOSE_MEMORY:
    case BQ_CLOSE_REFUSED:
    case BQ_CLOSE_CROWDED: return WEBSOCKET_CODE_OVERLOAD;
    default: return WEBSOCKET_CODE_BROKEN;
    }
}

static void close_add(net_t *net, connection_t *connection, uint8_t close_code, const char *detail) {
    websocket_t *websocket = connection->websocket;
    uint8_t frame[WEBSOCKET_CONTROL_MAX + 2];
    const uint32_t size = websocket_write_close(frame, code_of(net, websocket, close_code), detail);
    if (rest_add(net, connection, frame, size)) websocket->close_sent = true;
    websocket->pong_due = false;
}

/* A Pong and a header may stand behind the buffer for small entries. */
static uint8_t *lead_of(const net_t *net) { return net->send_buffer + SEND_BUFFER_BYTES; }

/* Keeps the parts up to the size of a frame. */
static int parts_cut(struct iovec *parts, int count, uint64_t bytes, uint64_t *payload) {
    for (int i = 0; i < count; i++) {
        if (parts[i].iov_len < bytes) {
            bytes -= parts[i].iov_len;
            continue;
        }
        parts[i].iov_len = bytes;
        *payload = WEBSOCKET_FRAME_BYTES;
        return i + 1;
    }
    return count;
}

int websocket_gather(net_t *net, connection_t *connection, struct iovec *parts, uint64_t *bytes) {
    websocket_t *websocket = connection->websocket;
    uint8_t *lead = lead_of(net);
    uint64_t payload = 0;
    int count = 0, runs = 0;
    if (!connection->client.queue.head && close_due(connection))
        close_add(net, connection, connection->close_code, connection->close_detail);
    *bytes = websocket->rest_size;
    websocket->lead_size = websocket->pong_bytes = websocket->frame_bytes = 0;
    if (websocket->rest_size)
        parts[count++] = (struct iovec){.iov_base = websocket->rest + websocket->rest_start, .iov_len = websocket->rest_size};
    if (websocket->close_sent || websocket->state == WEBSOCKET_HANDSHAKE) return count;
    if (websocket->pong_due) {
        websocket->pong_bytes = websocket_write_header(lead, WEBSOCKET_PONG, websocket->pong_size);
        memcpy(lead + websocket->pong_bytes, websocket->pong, websocket->pong_size);
        websocket->pong_bytes += websocket->pong_size;
    }
    websocket->lead_size = websocket->pong_bytes;
    if (connection->client.queue.head) {
        runs = output_gather_queue(net, connection, parts + count + 1, &payload);
        websocket->cutting = payload > WEBSOCKET_FRAME_BYTES;
        if (websocket->cutting) runs = parts_cut(parts + count + 1, runs, WEBSOCKET_FRAME_BYTES, &payload);
        websocket->lead_size += websocket_write_header(lead + websocket->lead_size, WEBSOCKET_BINARY, payload);
    }
    if (!websocket->lead_size) return count;
    websocket->frame_bytes = (uint32_t)payload;
    parts[count] = (struct iovec){.iov_base = lead, .iov_len = websocket->lead_size};
    *bytes += websocket->lead_size + payload;
    return count + 1 + runs;
}

/* Copies the part of the begun frame that has not left out of the queue. `sent`: bytes of lead and payload that have. */
static NOINLINE void frame_pin(net_t *net, connection_t *connection, uint32_t sent) {
    websocket_t *websocket = connection->websocket;
    const uint32_t lead = websocket->lead_size;
    if (sent < lead && !rest_add(net, connection, lead_of(net) + sent, lead - sent)) return;
    uint32_t skip = sent > lead ? sent - lead : 0, left = websocket->frame_bytes - skip;
    for (const queue_entry_t *entry = connection->client.queue.head; left; entry = entry->next) {
        if (skip >= entry->size) {
            skip -= entry->size;
            continue;
        }
        const uint32_t size = entry->size - skip < left ? entry->size - skip : left;
        if (!rest_add(net, connection, entry->buffer->bytes + entry->offset + skip, size)) return;
        left -= size;
        skip = 0;
    }
}

static uint64_t rest_sent(net_t *net, websocket_t *websocket, uint64_t bytes) {
    const uint32_t gone = bytes < websocket->rest_size ? (uint32_t)bytes : websocket->rest_size;
    websocket->rest_start += gone;
    websocket->rest_size -= gone;
    if (!websocket->rest_size) rest_free(net, websocket);
    return bytes - gone;
}

uint64_t websocket_sent(net_t *net, connection_t *connection, uint64_t bytes) {
    websocket_t *websocket = connection->websocket;
    if (websocket->rest_size) bytes = rest_sent(net, websocket, bytes);
    if (!bytes) return 0;
    websocket->pong_due &= !websocket->pong_bytes;
    if (bytes <= websocket->pong_bytes) { /* the frame behind the Pong has not begun */
        rest_add(net, connection, lead_of(net) + bytes, websocket->pong_bytes - (uint32_t)bytes);
        return 0;
    }
    if (BQ_UNLIKELY(bytes < (uint64_t)websocket->lead_size + websocket->frame_bytes)) frame_pin(net, connection, (uint32_t)bytes);
    if (websocket->frame_bytes) websocket->cut = websocket->cutting;
    return websocket->frame_bytes;
}

/* ---- the end ----------------------------------------------------------------------------------------------------------- */

static void http_add(net_t *net, connection_t *connection, const websocket_request_t *request, const websocket_answer_t *answer) {
    uint8_t out[WEBSOCKET_ANSWER_MAX];
    rest_add(net, connection, out, websocket_answer_write(out, request, answer));
}

/* For a client whose request has not come. */
static websocket_answer_t answer_without_request(const net_t *net, uint8_t close_code) {
    if (close_code == BQ_CLOSE_UNAUTH) return (websocket_answer_t){.status = 408, .why = "the request did not come in time"};
    if (net->broker.stopping) return (websocket_answer_t){.status = 503, .why = "the broker is shutting down"};
    return (websocket_answer_t){.status = 503, .why = "the broker has no room for this client"};
}

void websocket_last_words(net_t *net, connection_t *connection, uint8_t close_code, const char *detail) {
    websocket_t *websocket = connection->websocket;
    if (close_code == BQ_CLOSE_RESET || close_code == BQ_CLOSE_VANISHED) return;
    if (websocket->close_sent || connection->send_error || connection->client.blocked) return;
    if (websocket->state != WEBSOCKET_HANDSHAKE) {
        close_add(net, connection, close_code, detail);
    } else if ((close_code != BQ_CLOSE_EOF || net->broker.stopping) && !websocket->rest_size) {
        const websocket_answer_t answer = answer_without_request(net, close_code);
        http_add(net, connection, NULL, &answer);
        websocket->close_sent = true;
    }
    if (websocket->close_sent) connection->transport->flush(net, connection);
}

bool websocket_refuse(net_t *net, connection_t *connection) {
    const websocket_decoder_t *decoder = &connection->websocket->decoder;
    if (!decoder->reason) return false;
    net->broker.stats.frames_bad++;
    connection->websocket->code = decoder->code;
    connection_finish(net, connection, BQ_CLOSE_FRAME, decoder->reason);
    return true;
}

/* ---- input ------------------------------------------------------------------------------------------------------------- */

uint32_t websocket_input_limit(const connection_t *connection, uint32_t limit) {
    if (connection->websocket->state == WEBSOCKET_HANDSHAKE) return WEBSOCKET_HEAD_MAX - connection->in_size;
    return limit < WEBSOCKET_READ_BYTES ? limit : WEBSOCKET_READ_BYTES;
}

/* The Pong for the last Ping; an earlier one that has not left is dropped, as RFC 6455 allows. */
static void pong(net_t *net, connection_t *connection) {
    websocket_t *websocket = connection->websocket;
    memcpy(websocket->pong, websocket->decoder.control, websocket->decoder.control_size);
    websocket->pong_size = websocket->decoder.control_size;
    websocket->pong_due = true;
    client_mark_dirty(&net->broker, &connection->client, FLUSH_NARROW);
}

/* Input before the Close is still processed, and output that is queued is sent before the answer. */
static void close_received(connection_t *connection) {
    websocket_t *websocket = connection->websocket;
    uint16_t code;
    const uint16_t wrong = websocket_check_close(websocket->decoder.control, websocket->decoder.control_size, &code);
    websocket->code = wrong ? wrong : code;
    websocket->state = WEBSOCKET_DEAF;
    connection->input_ended = true;
}

/* Decodes `got` bytes behind the `kept` payload bytes, in place, and processes the payloads. */
static void frames_received(net_t *net, connection_t *connection, uint8_t *bytes, uint32_t kept, uint32_t got) {
    websocket_t *websocket = connection->websocket;
    uint8_t *to = bytes + kept, *from = to, *end = to + got;
    const uint64_t frames = websocket->decoder.frames;
    enum websocket_event event = WEBSOCKET_MORE;
    if (websocket->state == WEBSOCKET_DEAF) from = end;
    while (websocket->state == WEBSOCKET_OPEN &&
           (event = websocket_decode(&websocket->decoder, &to, &from, end)) != WEBSOCKET_MORE && event != WEBSOCKET_BAD) {
        if (event == WEBSOCKET_PINGED) pong(net, connection);
        if (event == WEBSOCKET_CLOSED) close_received(connection);
    }
    net->broker.stats.work += websocket->decoder.frames - frames;
    if (event == WEBSOCKET_BAD) {
        websocket->state = WEBSOCKET_DEAF;
        connection->input_ended = true;
    }
    input_process(net, connection, bytes, (uint32_t)(to - bytes));
    if (connection->input_ended && connection->state == CONNECTION_OPEN && !connection->client.pause)
        input_end(net, connection, 0);
}

static void upgrade(net_t *net, connection_t *connection, const websocket_path_t *path) {
    connection->websocket->state = WEBSOCKET_OPEN;
    connection->client.protocol = path->protocol;
    client_mark_dirty(&net->broker, &connection->client, FLUSH_NARROW);
    if (!connection->admitted) return; /* now its HELLO must come in time */
    wheel_remove(&net->broker.wheel, &connection->timer.wheel);
    admission_leave(net, connection);
}

/* Answers a complete request. true: the WebSocket is open. */
static bool answered(net_t *net, connection_t *connection, const websocket_request_t *request, websocket_answer_t *answer) {
    /* A key in HELLO is given by the page itself; a certificate is shown by the browser, for any page. */
    const bool strict = !net->broker.config.require_hello || (connection->secure && connection->secure->certified);
    if (!answer->status) websocket_decide(request, connection->websocket->path, &net->websocket_origins, strict, answer);
    if (answer->status == 101 && connection->refused)
        *answer = (websocket_answer_t){.status = 503, .why = "too many connections: server.max_connections is reached"};
    http_add(net, connection, request, answer);
    if (answer->status == 101) {
        upgrade(net, connection, answer->path);
        return true;
    }
    net->broker.stats.websocket_refused++;
    connection_input_drop(net, connection);
    connection_finish(net, connection, connection->refused ? BQ_CLOSE_REFUSED : BQ_CLOSE_FRAME, answer->why);
    return false;
}

void websocket_received(net_t *net, connection_t *connection, uint8_t *bytes, uint32_t kept, uint32_t got) {
    websocket_request_t request;
    websocket_answer_t answer;
    if (BQ_LIKELY(connection->websocket->state != WEBSOCKET_HANDSHAKE)) {
        frames_received(net, connection, bytes, kept, got);
        return;
    }
    const uint32_t size = kept + got, head = websocket_request_read(bytes, size, kept, &request, &answer);
    net->broker.stats.work += WORK_FRAME;
    if (!head)
        input_process(net, connection, bytes, size); /* protocol_none takes nothing: all of it is kept */
    else if (answered(net, connection, &request, &answer))
        frames_received(net, connection, bytes + head, 0, size - head);
}
