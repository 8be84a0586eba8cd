/* fuzz_websocket.c: a client over WebSocket: any bytes, or steps of commands in frames, cut anywhere; a publisher; reads of any
 * size, so that frames are begun and queues drop.
 *
 *      input      [how][configuration: 4 bytes][step]...        how, bit 0: the request is valid and comes first
 *
 * Invariant: the request is read alike whole and in pieces, and frames are decoded alike whole and in pieces. All output is one
 * answer of HTTP, then whole frames by the rules of RFC 6455, whose payloads are whole BlipMQ frames; nothing follows a Close.
 * When everything ended, nothing is left in the core.
 */
#include "stepped.h"
#include "net/websocket_codec.h"
#include "net/websocket_handshake.h"

#include <sys/socket.h>
#include <unistd.h>

#define STREAM_MAX (1u << 22)

static const char REQUEST[] = "GET /blipmq HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                              "Sec-WebSocket-Key: c2l4dGVlbiBieXRlcyBvaw==\r\nSec-WebSocket-Version: 13\r\n\r\n";

/* ---- the parsers alone -------------------------------------------------------------------------------------------------- */

static void request_check(text_t bytes) {
    websocket_request_t request;
    websocket_answer_t answer, whole;
    uint8_t *copy = malloc(bytes.size + 1), out[WEBSOCKET_ANSWER_MAX];
    static const websocket_path_t path = {"/blipmq", "blipmq", NULL, "elsewhere", "otherwise"};
    const websocket_origins_t origins = {0};
    CHECK(copy);
    if (bytes.size) memcpy(copy, bytes.bytes, bytes.size);
    uint32_t size = websocket_request_read(copy, bytes.size, 0, &request, &whole);
    CHECK(size <= bytes.size);
    if (size) {
        websocket_decide(&request, &path, &origins, true, &whole);
        uint32_t written = websocket_answer_write(out, &request, &whole);
        CHECK(whole.status >= 101 && written < WEBSOCKET_ANSWER_MAX && out[written - 1] == '\n');
    }
    uint32_t found = 0;
    for (uint32_t seen = 0, more = 1; !found && seen < bytes.size; seen += more, more = more % 7 + 1) {
        if (more > bytes.size - seen) more = bytes.size - seen;
        found = websocket_request_read(copy, seen + more, seen, &request, &answer);
    }
    if (found && found < size) CHECK(answer.status == 400); /* refused by its first byte */
    CHECK((found != 0) == (size != 0));
    free(copy);
}

typedef struct decoded {
    uint8_t *bytes; /* of data frames, then what tells of control frames */
    uint32_t size, control;
    uint16_t code;
} decoded_t;

static decoded_t decode(text_t bytes, uint32_t most) {
    websocket_decoder_t decoder = {.frame_max = 100000};
    decoded_t result = {.bytes = malloc(bytes.size + 1)};
    enum websocket_event event = WEBSOCKET_MORE;
    for (uint32_t at = 0; at < bytes.size && event == WEBSOCKET_MORE;) {
        uint32_t size = most && most < bytes.size - at ? most : bytes.size - at;
        uint8_t *piece = malloc(size), *to = piece, *from = piece;
        memcpy(piece, bytes.bytes + at, size);
        while ((event = websocket_decode(&decoder, &to, &from, piece + size)) != WEBSOCKET_MORE && event != WEBSOCKET_BAD) {
            CHECK(to <= from && decoder.control_size <= WEBSOCKET_CONTROL_MAX);
            for (uint32_t i = 0; i < decoder.control_size; i++) result.control = result.control * 31 + decoder.control[i];
            result.control = result.control * 31 + event;
        }
        CHECK(to <= from && from <= piece + size && (event == WEBSOCKET_BAD || from == piece + size));
        memcpy(result.bytes + result.size, piece, (size_t)(to - piece));
        result.size += (uint32_t)(to - piece);
        result.code = decoder.code;
        free(piece);
        at += size;
    }
    return result;
}

static void frames_check(text_t bytes) {
    decoded_t whole = decode(bytes, 0), pieces = decode(bytes, 1), more = decode(bytes, 11);
    CHECK(whole.size == pieces.size && whole.size == more.size && whole.code == pieces.code && whole.code == more.code);
    CHECK(whole.control == pieces.control && whole.control == more.control);
    CHECK(!memcmp(whole.bytes, pieces.bytes, whole.size) && !memcmp(whole.bytes, more.bytes, whole.size));
    free(whole.bytes);
    free(pieces.bytes);
    free(more.bytes);
}

/* ---- a client ----------------------------------------------------------------------------------------------------------- */

typedef struct web {
    bq_t *bq;
    int fd;
    uint64_t now_ms;
    bq_conn_t publisher;
    bool upgraded, closed, stopped, ended;
    uint8_t *out; /* what the core sent and was not read as a whole frame */
    uint32_t out_size;
    uint8_t *stream; /* payloads that are no whole BlipMQ frame */
    uint32_t stream_size;
} web_t;

static const text_t NOTHING = {NULL, 0};

static void command(web_t *web, bq_command_t command, text_t text, text_t data) {
    bq_command(web->bq, &command, text.bytes, text.size, data.bytes, data.size);
}

static void web_event(web_t *web, const bq_event_t *event) {
    text_t text = {event->text, event->text_size};
    switch (event->type) {
    case BQ_EV_ATTACHED: web->publisher = event->conn; break;
    case BQ_EV_OUT:
        command(web, (bq_command_t){.type = BQ_CMD_CREDIT, .conn = event->conn, .value = event->data_size}, NOTHING, NOTHING);
        break;
    case BQ_EV_HELLO:
        command(web, (bq_command_t){.type = BQ_CMD_ADMIT, .conn = event->conn, .seq = event->seq}, NOTHING, NOTHING);
        break;
    case BQ_EV_SUB:
        command(web, (bq_command_t){.type = BQ_CMD_SUBSCRIBE, .conn = event->conn, .seq = event->seq}, text, NOTHING);
        break;
    case BQ_EV_UNSUB:
        command(web, (bq_command_t){.type = BQ_CMD_UNSUBSCRIBE, .conn = event->conn, .seq = event->seq}, text, NOTHING);
        break;
    case BQ_EV_INFO:
    case BQ_EV_ADMIN:
        command(web, (bq_command_t){.type = BQ_CMD_REPLY, .conn = event->conn, .seq = event->seq}, NOTHING, NOTHING);
        break;
    case BQ_EV_STOPPED: web->stopped = true; break;
    default: break;
    }
}

static void web_turn(web_t *web, uint64_t advance_ms) {
    bq_event_t event;
    web->now_ms += advance_ms;
    if (web->stopped) return;
    bq_wait(web->bq, 0);
    bq_turn(web->bq, web->now_ms, web->now_ms + 1700000000000);
    while (bq_event(web->bq, &event) == 1) web_event(web, &event);
}

static void web_send(web_t *web, const uint8_t *bytes, uint32_t size) {
    for (uint32_t tries = 0; size && tries < 4; tries++) {
        ssize_t sent = send(web->fd, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent > 0) {
            bytes += sent;
            size -= (uint32_t)sent;
            tries = 0;
        }
        web_turn(web, 0);
    }
}

/* ---- what the core sends ------------------------------------------------------------------------------------------------- */

static void payload_check(web_t *web, const uint8_t *bytes, uint32_t size) {
    memcpy(web->stream + web->stream_size, bytes, size);
    web->stream_size += size;
    uint32_t at = 0;
    while (web->stream_size - at >= 4 && web->stream_size - at - 4 >= load_be32(web->stream + at)) {
        CHECK(load_be32(web->stream + at) && web->stream[at + 4] <= 2);
        at += 4 + load_be32(web->stream + at);
    }
    if (web->stream_size - at >= 4) CHECK(load_be32(web->stream + at) < 8u << 20);
    memmove(web->stream, web->stream + at, web->stream_size - at);
    web->stream_size -= at;
}

/* Size of the whole frame at the front of the output; 0: it is not whole. */
static uint32_t frame_check_one(web_t *web, const uint8_t *out, uint32_t there) {
    if (there < 2) return 0;
    uint32_t opcode = out[0] & 15, head = 2;
    uint64_t size = out[1];
    CHECK((out[0] & 0xf0) == 0x80 && size < 128 && !web->closed);
    CHECK(opcode == WEBSOCKET_BINARY || opcode == WEBSOCKET_CLOSE || opcode == WEBSOCKET_PONG);
    CHECK(opcode == WEBSOCKET_BINARY || size < 126);
    if (size == 126) {
        if (there < 4) return 0;
        size = (uint64_t)out[2] << 8 | out[3];
        head = 4;
        CHECK(size >= 126);
    } else if (size == 127) {
        if (there < 10) return 0;
        size = (uint64_t)load_be32(out + 2) << 32 | load_be32(out + 6);
        head = 10;
        CHECK(size >= 65536);
    }
    CHECK(size <= 65536);
    if (there - head < size) return 0;
    if (opcode == WEBSOCKET_BINARY) payload_check(web, out + head, (uint32_t)size);
    if (opcode == WEBSOCKET_CLOSE) {
        uint16_t code;
        CHECK(websocket_check_close(out + head, (uint32_t)size, &code) == 0);
        web->closed = true;
    }
    return head + (uint32_t)size;
}

static void output_check(web_t *web) {
    uint32_t at = 0, size;
    if (!web->upgraded) {
        while (at + 4 <= web->out_size && memcmp(web->out + at, "\r\n\r\n", 4)) at++;
        if (at + 4 > web->out_size) return;
        CHECK(!memcmp(web->out, "HTTP/1.1 ", 9));
        if (memcmp(web->out + 9, "101", 3)) return; /* a body follows, and the end */
        web->upgraded = true;
        at += 4;
    }
    while ((size = frame_check_one(web, web->out + at, web->out_size - at))) at += size;
    memmove(web->out, web->out + at, web->out_size - at);
    web->out_size -= at;
}

static bool web_read(web_t *web, uint32_t size) {
    if (size > STREAM_MAX - web->out_size) size = STREAM_MAX - web->out_size;
    ssize_t got = recv(web->fd, web->out + web->out_size, size, MSG_DONTWAIT);
    if (got > 0) web->out_size += (uint32_t)got;
    if (got == 0) web->ended = true;
    output_check(web);
    return got > 0;
}

/* ---- steps ---------------------------------------------------------------------------------------------------------------- */

static uint32_t frame_wrap(uint8_t *out, uint8_t first, const uint8_t *bytes, uint32_t size, uint32_t key) {
    uint32_t at = websocket_write_header(out, (enum websocket_opcode)(first & 15), size);
    out[0] = first;
    out[1] |= 0x80;
    store_u32(out + at, key);
    websocket_unmask(out + at + 4, bytes, size, key);
    return at + 4 + size;
}

static void step_commands(web_t *web, input_t *input) {
    static uint8_t plain[200000], wrapped[200100];
    static const uint8_t payload[60000];
    const uint8_t kind = input_byte(input), how = input_byte(input), big = input_byte(input);
    fields_t fields = {.action = kind & 7, .protocol = 1, .seq = big, .client_id = {(const uint8_t *)"c", 1}};
    fields.topic = (text_t){(const uint8_t *)"a", 1};
    fields.payload = (text_t){payload, big < 200 ? big : (big - 200u) * 1000u};
    const uint32_t size = command_encode(plain, &fields), cut = how & 1 ? 1 + input_byte(input) % (size - 1) : size;
    uint32_t wide = frame_wrap(wrapped, cut < size ? 0x02 : 0x82, plain, cut, how * 77777u);
    if (how & 2) wide += frame_wrap(wrapped + wide, 0x80 | WEBSOCKET_PING, plain, how & 63, how);
    if (cut < size) wide += frame_wrap(wrapped + wide, 0x80, plain + cut, size - cut, how * 31u);
    if (how & 4) wrapped[input_byte(input) % wide] ^= (uint8_t)(1u << (how >> 5));
    for (uint32_t at = 0, piece = how & 8 ? 1u + input_byte(input) : wide; at < wide; at += piece)
        web_send(web, wrapped + at, piece < wide - at ? piece : wide - at);
}

static void step_publish(web_t *web, input_t *input) {
    static uint8_t frame[100000];
    static const uint8_t payload[90000];
    const uint8_t count = input_byte(input), big = input_byte(input);
    fields_t fields = {.action = FRAME_PUB, .topic = {(const uint8_t *)"a", 1}, .ttl_ms = count & 64 ? 500 : 0};
    fields.payload = (text_t){payload, big < 200 ? big * 3u : (big - 200u) * 1500u};
    text_t bytes = {frame, command_encode(frame, &fields)};
    for (uint32_t i = 0; i <= (count & 15u); i++) {
        command(web, (bq_command_t){.type = BQ_CMD_INPUT, .conn = web->publisher}, NOTHING, bytes);
        if (count & 32) web_turn(web, 0);
    }
    web_turn(web, 0);
}

static void web_step(web_t *web, input_t *input) {
    const uint8_t what = input_byte(input);
    uint8_t out[WEBSOCKET_CONTROL_MAX + 8];
    text_t bytes;
    switch (what % 8) {
    case 0:
    case 1: step_commands(web, input); return;
    case 2: step_publish(web, input); return;
    case 3:
        bytes = input_bytes(input, input_byte(input));
        web_send(web, bytes.bytes, bytes.size);
        return;
    case 4:
        bytes = input_bytes(input, input_byte(input) & 127u);
        if (bytes.size > WEBSOCKET_CONTROL_MAX) bytes.size = WEBSOCKET_CONTROL_MAX;
        web_send(web, out,
                 frame_wrap(out, (uint8_t)(0x80 | (what & 8 ? WEBSOCKET_CLOSE : WEBSOCKET_PING)), bytes.bytes, bytes.size, what));
        return;
    case 5: web_read(web, 1u + input_byte(input) * 40u); return;
    case 6: web_turn(web, input_time(input)); return;
    default:
        if (what & 8) shutdown(web->fd, SHUT_WR);
        web_turn(web, 0);
    }
}

static void web_finish(web_t *web) {
    bq_stats_t stats;
    for (uint32_t i = 0; i < 2000 && web_read(web, 1u << 16); i++) web_turn(web, 0);
    command(web, (bq_command_t){.type = BQ_CMD_STOP, .value = 1000}, NOTHING, NOTHING);
    for (uint32_t i = 0; i < 200 && !web->stopped; i++) {
        web_turn(web, 10);
        web_read(web, 1u << 16);
    }
    CHECK(web->stopped);
    while (web_read(web, 1u << 16)) {}
    if (web->upgraded && web->ended && !web->closed) CHECK(web->out_size == 0 || web->out_size < 65546);
    for (uint32_t i = 0; i < 20; i++, web->now_ms++) bq_turn(web->bq, web->now_ms, web->now_ms + 1700000000000);
    core_stats(web->bq, &stats);
    CHECK(stats.connections == 0 && stats.websockets == 0 && stats.queued_messages == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static uint8_t out[STREAM_MAX + 16], stream[STREAM_MAX + 16];
    input_t input = {data, data + size};
    int fds[2], small = 4096;
    request_check((text_t){data, (uint32_t)size});
    frames_check((text_t){data, (uint32_t)size});
    const uint8_t how = input_byte(&input);
    bq_config_t config = config_of(&input);
    web_t web = {.bq = bq_new(&config, 1), .now_ms = 1000, .out = out, .stream = stream};
    CHECK(web.bq && socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, fds) == 0);
    for (uint32_t i = 0; i < 2; i++) setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    web.fd = fds[0];
    command(&web, (bq_command_t){.type = BQ_CMD_ATTACH, .seq = 1, .flags = BQ_CONN_TRUSTED}, NOTHING, NOTHING);
    command(&web, (bq_command_t){.type = BQ_CMD_ADOPT, .value = (uint64_t)fds[1], .flags = BQ_CONN_WEBSOCKET}, NOTHING, NOTHING);
    web_turn(&web, 0);
    if (how & 1) web_send(&web, (const uint8_t *)REQUEST, sizeof REQUEST - 1);
    for (uint32_t steps = 0; steps < STEPS_MAX && input.at < input.end && !web.ended; steps++) web_step(&web, &input);
    web_finish(&web);
    bq_free(web.bq);
    close(web.fd);
    return 0;
}
