#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- blocking conversation while a connection joins ---- */

static __thread char trouble[256];

static const char *troubled(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(trouble, sizeof trouble, format, arguments);
    va_end(arguments);
    return trouble;
}

static const char *write_all(int fd, const void *bytes, size_t size) {
    for (size_t done = 0; done < size;) {
        ssize_t n = write(fd, (const char *)bytes + done, size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return troubled("cannot write to the broker: %s", strerror(errno));
        done += (size_t)n;
    }
    return NULL;
}

static const char *read_all(int fd, void *bytes, size_t size, const char *what) {
    for (size_t done = 0; done < size;) {
        ssize_t n = read(fd, (char *)bytes + done, size - done);
        if (n < 0 && errno == EINTR) continue;
        if (n == 0) return troubled("the broker closed the connection while %s was awaited", what);
        if (n < 0) return troubled("no %s from the broker: %s", what, errno == EAGAIN ? "timed out" : strerror(errno));
        done += (size_t)n;
    }
    return NULL;
}

/* Read one line up to '\n', byte by byte, so that no byte after it is consumed. A longer line is truncated. */
static const char *read_line(int fd, char *line, size_t room, const char *what) {
    size_t size = 0;
    for (char byte = 0; byte != '\n';) {
        const char *error = read_all(fd, &byte, 1, what);
        if (error) return error;
        if (size + 1 < room) line[size++] = byte;
    }
    line[size] = 0;
    return NULL;
}

/* ---- numbers ---- */

static uint32_t get_u32_be(const uint8_t *at) {
    return (uint32_t)at[0] << 24 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 8 | at[3];
}
static void put_u32_be(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)(value >> 24), at[1] = (uint8_t)(value >> 16), at[2] = (uint8_t)(value >> 8), at[3] = (uint8_t)value;
}
static uint32_t get_u32_le(const uint8_t *at) {
    return (uint32_t)at[3] << 24 | (uint32_t)at[2] << 16 | (uint32_t)at[1] << 8 | at[0];
}
static uint16_t get_u16_le(const uint8_t *at) { return (uint16_t)(at[0] | at[1] << 8); }
static void put_u32_le(uint8_t *at, uint32_t value) {
    at[0] = (uint8_t)value, at[1] = (uint8_t)(value >> 8), at[2] = (uint8_t)(value >> 16), at[3] = (uint8_t)(value >> 24);
}
static void put_u16_le(uint8_t *at, uint32_t value) { at[0] = (uint8_t)value, at[1] = (uint8_t)(value >> 8); }
static void put_u16_be(uint8_t *at, uint32_t value) { at[0] = (uint8_t)(value >> 8), at[1] = (uint8_t)value; }

/* The decimal number before '\r\n'; -1: incomplete, -2: not a number of at most nine digits. *at is moved after it. */
static int64_t get_decimal_line(const uint8_t **at, const uint8_t *end) {
    int64_t value = 0;
    for (const uint8_t *byte = *at; byte < end; byte++) {
        if (*byte == '\r') {
            if (byte == *at) return -2;
            if (byte + 1 == end) return -1;
            if (byte[1] != '\n') return -2;
            *at = byte + 2;
            return value;
        }
        if (*byte < '0' || *byte > '9' || byte - *at >= 9) return -2;
        value = value * 10 + (*byte - '0');
    }
    return end - *at >= 11 ? -2 : -1;
}

/* ---- scanning: one loop for all, specialised by the compiler for each protocol's frame reader ---- */

enum { FRAME_OTHER, FRAME_MESSAGE, FRAME_ACK, FRAME_PING };
typedef struct {
    int kind;
    const uint8_t *payload;
    size_t payload_size;
} frame_t;

typedef ssize_t (*frame_reader_t)(wire_reader_t *reader, const uint8_t *at, size_t size, frame_t *frame, wire_sink_t *sink);

static inline __attribute__((always_inline)) ssize_t scan_frames(frame_reader_t read_frame, wire_reader_t *reader,
                                                                 const uint8_t *bytes, size_t size, wire_sink_t *sink) {
    size_t used = 0;
    uint64_t before = sink->messages;
    while (used < size) {
        frame_t frame = {0};
        ssize_t n = read_frame(reader, bytes + used, size - used, &frame, sink);
        if (n < 0) return -1;
        if (n == 0) break;
        used += (size_t)n;
        if (frame.kind == FRAME_MESSAGE) {
            if (sink->every || sink->messages == before) sink->take(sink, frame.payload, frame.payload_size);
            sink->messages++;
        } else if (frame.kind == FRAME_ACK)
            sink->messages++;
        else if (frame.kind == FRAME_PING)
            sink->pings++;
    }
    return (ssize_t)used;
}

static ssize_t refuse(wire_sink_t *sink, const char *error) {
    sink->error = error;
    return -1;
}

static ssize_t refuse_line(wire_sink_t *sink, const char *who, const uint8_t *at, size_t size) {
    int shown = 0;
    while (shown < 120 && (size_t)shown < size && at[shown] >= ' ') shown++;
    return refuse(sink, troubled("%s said: %.*s", who, shown, (const char *)at));
}

/* Store the header before the payload, so that the next frame with the same header needs no parsing. */
static void reader_learn(wire_reader_t *reader, const uint8_t *at, size_t prefix_size, size_t frame_size) {
    reader->prefix_size = 0;
    if (prefix_size > WIRE_PREFIX_BYTES_MAX) return;
    memcpy(reader->prefix, at, prefix_size);
    reader->prefix_size = (uint16_t)prefix_size;
    reader->frame_size = (uint32_t)frame_size;
}

static inline bool reader_knows(const wire_reader_t *reader, const uint8_t *at, size_t size) {
    return reader->prefix_size && size >= reader->frame_size && memcmp(at, reader->prefix, reader->prefix_size) == 0;
}

static ssize_t known_frame(const wire_reader_t *reader, const uint8_t *at, size_t trailer_size, frame_t *frame) {
    frame->kind = FRAME_MESSAGE;
    frame->payload = at + reader->prefix_size;
    frame->payload_size = reader->frame_size - reader->prefix_size - trailer_size;
    return reader->frame_size;
}

/* ---- BlipMQ: u32 big-endian length, then a FlatBuffer (see docs/PROTOCOL.md); to the client a type byte between the two ----
 *
 *      offset 0   root offset          4..   vtable: own size, table size, one u16 per slot (0: absent)
 *             T   table: offset to vtable, then the fields, each on a multiple of its own size; T is a multiple of 8
 *             S   strings and byte vectors: u32 size, bytes, for a string a NUL; each on a multiple of 4
 * Defaults are absent, as in the output of the reference builder. */
/* A field of size 4 is an offset to bytes; commands have no other fields of this size */
enum { BLIPMQ_BYTES = 4, BLIPMQ_SLOTS = 11 };
typedef struct {
    uint8_t slot, size;
    uint64_t value;    /* size 1, 2 or 8 */
    const void *bytes; /* BLIPMQ_BYTES; `value` is their number */
    bool text;
} blipmq_field_t;

static void put_scalar_le(uint8_t *at, uint64_t value, uint32_t size) {
    for (uint32_t i = 0; i < size; i++) at[i] = (uint8_t)(value >> 8 * i);
}

/* Fields in the order of the table. field_at returns the offset of each value from the start of out. */
static size_t blipmq_encode(uint8_t *out, const blipmq_field_t *fields, unsigned count, size_t *field_at) {
    uint8_t *body = out + 4;
    uint32_t slots = 0, table_size = 4, offsets[BLIPMQ_SLOTS];
    for (unsigned i = 0; i < count; i++) {
        if (fields[i].slot >= slots) slots = fields[i].slot + 1u;
        offsets[i] = (table_size + fields[i].size - 1u) & ~(fields[i].size - 1u);
        table_size = offsets[i] + fields[i].size;
    }
    table_size = (table_size + 3) & ~3u;
    const uint32_t vtable_size = 4 + 2 * slots, table = (4 + vtable_size + 7) & ~7u;
    uint32_t end = table + table_size;
    memset(body, 0, end);
    put_u32_le(body, table);
    put_u16_le(body + 4, vtable_size);
    put_u16_le(body + 6, table_size);
    put_u32_le(body + table, table - 4);
    for (unsigned i = 0; i < count; i++) {
        const blipmq_field_t *field = &fields[i];
        uint8_t *at = body + table + offsets[i];
        put_u16_le(body + 8 + 2 * field->slot, offsets[i]);
        field_at[i] = (size_t)(at - out);
        if (field->size != BLIPMQ_BYTES) {
            put_scalar_le(at, field->value, field->size);
            continue;
        }
        const uint32_t start = (end + 3) & ~3u, size = (uint32_t)field->value;
        memset(body + end, 0, start - end);
        put_u32_le(at, start - (table + offsets[i]));
        put_u32_le(body + start, size);
        memcpy(body + start + 4, field->bytes, size);
        field_at[i] = (size_t)(body + start + 4 - out);
        end = start + 4 + size;
        if (field->text) body[end++] = 0;
    }
    put_u32_be(out, end);
    return 4 + end;
}

static blipmq_field_t blipmq_text(uint8_t slot, const char *text) {
    return (blipmq_field_t){.slot = slot, .size = BLIPMQ_BYTES, .value = strlen(text), .bytes = text, .text = true};
}

enum { ACTION = 0, TOPIC = 1, PAYLOAD = 2, TTL_MS = 3, QOS = 4, SEQ = 5, CLIENT_ID = 6, PROTOCOL = 8, DURABLE = 9 };
enum { BLIPMQ_SUB = 1, BLIPMQ_HELLO = 4 }; /* actions; PUB is 0, the default */
enum { BLIPMQ_SUBACK = 0, BLIPMQ_MESSAGE = 1, BLIPMQ_REPLY = 2, BLIPMQ_FRAME_BYTES_MAX = 2 << 20 };

static size_t blipmq_publish(uint8_t *out, const char *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                             wire_places_t *places) {
    blipmq_field_t fields[3] = {blipmq_text(TOPIC, topic)};
    unsigned count = 1;
    if (ttl_ms) fields[count++] = (blipmq_field_t){.slot = TTL_MS, .size = 8, .value = ttl_ms};
    fields[count++] = (blipmq_field_t){.slot = PAYLOAD, .size = BLIPMQ_BYTES, .value = size, .bytes = payload};
    size_t field_at[3], frame_size = blipmq_encode(out, fields, count, field_at);
    places->payload = field_at[count - 1];
    return frame_size;
}

/* A legacy client, as in v1.0.0: no HELLO, a SubAck for SUB. */
static const char *blipmq_join(int fd, const wire_join_t *join) {
    uint8_t bytes[WIRE_OVERHEAD_BYTES_MAX], rest[WIRE_OVERHEAD_BYTES_MAX];
    if (!join->topic) return NULL;
    const blipmq_field_t fields[] = {blipmq_text(TOPIC, join->topic), {.slot = ACTION, .size = 1, .value = BLIPMQ_SUB}};
    size_t field_at[2];
    const char *error = write_all(fd, bytes, blipmq_encode(bytes, fields, 2, field_at));
    if (!error) error = read_all(fd, bytes, 5, "SubAck");
    if (error) return error;
    uint32_t size = get_u32_be(bytes);
    if (bytes[4] != BLIPMQ_SUBACK || size < 1 || size - 1 > sizeof rest)
        return troubled("SUB was answered by a frame of type %u and %u bytes, not by a SubAck", bytes[4], size);
    return read_all(fd, rest, size - 1, "the rest of SubAck");
}

/* Pointer to the slot's value of `width` bytes; NULL if it is absent or outside the buffer. */
static const uint8_t *blipmq_field(const uint8_t *body, size_t size, unsigned slot, size_t width) {
    if (size < 8) return NULL;
    uint64_t table = get_u32_le(body);
    if (table + 4 > size) return NULL;
    int64_t vtable = (int64_t)table - (int32_t)get_u32_le(body + table);
    const uint32_t entry = 4 + 2 * slot;
    if (vtable < 0 || (uint64_t)vtable + entry + 2 > size || get_u16_le(body + vtable) < entry + 2) return NULL;
    uint64_t field = table + get_u16_le(body + vtable + entry);
    return field == table || field + width > size ? NULL : body + field;
}

static bool blipmq_bytes(const uint8_t *body, size_t size, unsigned slot, frame_t *frame) {
    const uint8_t *field = blipmq_field(body, size, slot, 4);
    if (!field) return false;
    uint64_t vector = (uint64_t)(field - body) + get_u32_le(field);
    if (vector + 4 > size || vector + 4 + get_u32_le(body + vector) > size) return false;
    frame->payload = body + vector + 4;
    frame->payload_size = get_u32_le(body + vector);
    return true;
}

static inline ssize_t blipmq_frame(wire_reader_t *reader, const uint8_t *at, size_t size, frame_t *frame, wire_sink_t *sink) {
    (void)reader;
    if (size < 5) return 0;
    uint32_t frame_size = get_u32_be(at);
    if (frame_size < 1 || frame_size > BLIPMQ_FRAME_BYTES_MAX || at[4] != BLIPMQ_MESSAGE)
        return refuse(sink, troubled("a frame of type %u and %u bytes came where a Message was due", at[4], frame_size));
    if (size - 4 < frame_size) return 0;
    frame->kind = FRAME_MESSAGE;
    frame->payload = at + 5; /* the whole table; table_take finds the payload in it, for messages whose content is read */
    frame->payload_size = frame_size - 1;
    return (ssize_t)frame_size + 4;
}

/* Called between a scan and its sink: finds the payload inside a table. */
typedef struct {
    wire_sink_t sink;
    wire_sink_t *outer;
    unsigned slot;
} table_sink_t;

static void table_take(wire_sink_t *sink, const uint8_t *body, size_t size) {
    table_sink_t *inner = (table_sink_t *)sink;
    frame_t frame = {.payload = body}; /* without a readable payload it is reported as empty, which ends the run */
    blipmq_bytes(body, size, inner->slot, &frame);
    inner->outer->take(inner->outer, frame.payload, frame.payload_size);
}

static inline __attribute__((always_inline)) ssize_t scan_tables(frame_reader_t read_frame, unsigned slot, wire_reader_t *reader,
                                                                 const uint8_t *bytes, size_t size, wire_sink_t *sink) {
    table_sink_t inner = {.sink = {.every = sink->every, .take = table_take}, .outer = sink, .slot = slot};
    ssize_t used = scan_frames(read_frame, reader, bytes, size, &inner.sink);
    sink->messages += inner.sink.messages;
    if (inner.sink.error) sink->error = inner.sink.error;
    return used;
}

static ssize_t blipmq_scan(wire_reader_t *reader, const uint8_t *bytes, size_t size, wire_sink_t *sink) {
    return scan_tables(blipmq_frame, 1, reader, bytes, size, sink);
}

/* ---- raw: the relay passes on the very bytes; what arrives are PUB frames ---- */

static const char *raw_join(int fd, const wire_join_t *join) {
    const char roles[] = {[ROLE_SUBSCRIBER] = 'S', [ROLE_PUBLISHER] = 'P', [ROLE_IDLE] = 'I'};
    uint8_t bytes[3] = {(uint8_t)roles[join->role]};
    put_u16_be(bytes + 1, join->channel);
    const char *error = write_all(fd, bytes, sizeof bytes);
    if (!error) error = read_all(fd, bytes, 1, "the relay's answer");
    if (!error && bytes[0] != 'A') error = troubled("the relay answered %u", bytes[0]);
    return error;
}

static inline ssize_t raw_frame(wire_reader_t *reader, const uint8_t *at, size_t size, frame_t *frame, wire_sink_t *sink) {
    (void)reader;
    if (size < 4) return 0;
    uint32_t frame_size = get_u32_be(at);
    if (frame_size < 8 || frame_size > BLIPMQ_FRAME_BYTES_MAX)
        return refuse(sink,
                      "the relay mixed two publishers' bytes: it passes on bytes, so one channel takes one publisher, or whole "
                      "messages a write");
    if (size - 4 < frame_size) return 0;
    frame->kind = FRAME_MESSAGE;
    frame->payload = at + 4;
    frame->payload_size = frame_size;
    return (ssize_t)frame_size + 4;
}

static ssize_t raw_scan(wire_reader_t *reader, const uint8_t *bytes, size_t size, wire_sink_t *sink) {
    return scan_tables(raw_frame, 2, reader, bytes, size, sink);
}

/* ---- NATS ---- */

static size_t nats_publish(uint8_t *out, const char *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                           wire_places_t *places) {
    (void)ttl_ms;
    size_t n = (size_t)sprintf((char *)out, "PUB %s %u\r\n", topic, size);
    places->payload = n;
    memcpy(out + n, payload, size);
    memcpy(out + n + size, "\r\n", 2);
    return n + size + 2;
}

static const char *nats_join(int fd, const wire_join_t *join) {
    char line[512];
    const char *error = read_line(fd, line, sizeof line, "INFO");
    if (!error && strncmp(line, "INFO ", 5) != 0) error = troubled("a NATS server opens with INFO, this one with: %.60s", line);
    if (error) return error;
    int n =
        snprintf(line, sizeof line,
                 "CONNECT {\"verbose\":false,\"pedantic\":false,\"tls_required\":false,\"lang\":\"c\",\"version\":\"1\"}\r\n");
    if (join->topic) n += snprintf(line + n, sizeof line - (size_t)n, "SUB %s 1\r\n", join->topic);
    n += snprintf(line + n, sizeof line - (size_t)n, "PING\r\n");
    error = write_all(fd, line, (size_t)n);
    while (!error) {
        if ((error = read_line(fd, line, sizeof line, "PONG"))) return error;
        if (strncmp(line, "PONG", 4) == 0) return NULL;
        if (strncmp(line, "PING", 4) == 0)
            error = write_all(fd, "PONG\r\n", 6);
        else if (strncmp(line, "INFO", 4) != 0)
            error = troubled("nats-server said: %.120s", line);
    }
    return error;
}

/* MSG <subject> <sid> <#bytes>\r\n<payload>\r\n */
static inline ssize_t nats_frame(wire_reader_t *reader, const uint8_t *at, size_t size, frame_t *frame, wire_sink_t *sink) {
    if (reader_knows(reader, at, size)) return known_frame(reader, at, 2, frame);
    const uint8_t *line_end = memchr(at, '\n', size < 4096 ? size : 4096);
    if (!line_end) return size < 4096 ? 0 : refuse(sink, "nats-server sent a line over 4096 bytes");
    size_t line_size = (size_t)(line_end - at) + 1;
    if (line_size >= 5 && memcmp(at, "MSG ", 4) == 0) {
        const uint8_t *digits = memrchr(at, ' ', line_size);
        int64_t payload_size = digits ? (digits++, get_decimal_line(&digits, line_end + 1)) : -2;
        if (payload_size < 0) return refuse_line(sink, "nats-server", at, size);
        reader_learn(reader, at, line_size, line_size + (size_t)payload_size + 2);
        if (size < line_size + (size_t)payload_size + 2) return 0;
        frame->kind = FRAME_MESSAGE;
        frame->payload = at + line_size;
        frame->payload_size = (size_t)payload_size;
        return (ssize_t)(line_size + (size_t)payload_size + 2);
    }
    if (memcmp(at, "PING", 4) == 0)
        frame->kind = FRAME_PING;
    else if (memcmp(at, "INFO", 4) != 0 && memcmp(at, "PONG", 4) != 0)
        return refuse_line(sink, "nats-server", at, size);
    return (ssize_t)line_size;
}

static ssize_t nats_scan(wire_reader_t *reader, const uint8_t *bytes, size_t size, wire_sink_t *sink) {
    return scan_frames(nats_frame, reader, bytes, size, sink);
}

/* ---- MQTT 3.1.1 and 5, QoS 0 ---- */

static size_t mqtt_put_remaining(uint8_t *out, uint32_t value) {
    size_t n = 0;
    do {
        out[n++] = (uint8_t)((value & 127) | (value > 127 ? 128 : 0));
        value >>= 7;
    } while (value);
    return n;
}

static size_t mqtt_put_string(uint8_t *out, const char *text) {
    size_t size = strlen(text);
    put_u16_be(out, (uint32_t)size);
    memcpy(out + 2, text, size);
    return size + 2;
}

/* `more`: bytes between topic and payload, written as zeros. */
static size_t mqtt_put_publish(uint8_t *out, uint8_t first, const char *topic, size_t more, const uint8_t *payload, uint32_t size,
                               wire_places_t *places) {
    out[0] = first;
    size_t n = 1 + mqtt_put_remaining(out + 1, 2 + (uint32_t)(strlen(topic) + more) + size);
    n += mqtt_put_string(out + n, topic);
    memset(out + n, 0, more);
    places->payload = n + more;
    memcpy(out + n + more, payload, size);
    return n + more + size;
}

static size_t mqtt_publish(uint8_t *out, const char *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                           wire_places_t *places) {
    (void)ttl_ms;
    return mqtt_put_publish(out, 0x30, topic, 0, payload, size, places);
}

/* MQTT 5 has the length of the properties behind the topic: none. */
static size_t mqtt5_publish(uint8_t *out, const char *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                            wire_places_t *places) {
    (void)ttl_ms;
    return mqtt_put_publish(out, 0x30, topic, 1, payload, size, places);
}

/* A packet of at most 127 bytes behind its two-byte header. */
static const char *mqtt_read_answer(int fd, uint8_t first, uint8_t out[128], size_t *size, const char *what) {
    uint8_t head[2];
    const char *error = read_all(fd, head, sizeof head, what);
    if (error) return error;
    if (head[0] != first || head[1] > 127) return troubled("packet 0x%02x came where %s was due", head[0], what);
    *size = head[1];
    return read_all(fd, out, *size, what);
}

/* Without properties. `keep`: the session outlives the connection, and the subscription has QoS 1. */
static const char *mqtt_join_as(int fd, const wire_join_t *join, uint8_t level, const char *client_id, bool keep) {
    uint8_t out[WIRE_OVERHEAD_BYTES_MAX], answer[128];
    size_t n = 2, size;
    n += mqtt_put_string(out + n, "MQTT");
    const uint8_t rest[] = {level, keep ? 0 : 2, 0, 0, 0}; /* no keep-alive */
    size_t rest_size = level >= 5 ? 5 : 4;
    memcpy(out + n, rest, rest_size);
    n += rest_size;
    n += mqtt_put_string(out + n, client_id);
    out[0] = 0x10, out[1] = (uint8_t)(n - 2);
    const char *error = write_all(fd, out, n);
    if (!error) error = mqtt_read_answer(fd, 0x20, answer, &size, "CONNACK");
    if (error) return error;
    if (size < 2 || answer[1] != 0) return troubled("CONNECT was refused with code %u", answer[1]);
    if (!join->topic) return NULL;
    n = 4;
    if (level >= 5) out[n++] = 0;
    n += mqtt_put_string(out + n, join->topic);
    out[n++] = keep ? 1 : 0;
    out[0] = 0x82, out[1] = (uint8_t)(n - 2), out[2] = 0, out[3] = 1;
    error = write_all(fd, out, n);
    if (!error) error = mqtt_read_answer(fd, 0x90, answer, &size, "SUBACK");
    if (!error && size < 3) error = "SUBACK has no code";
    if (!error && answer[size - 1] != (keep ? 1 : 0)) error = troubled("SUBSCRIBE was answered with code %u", answer[size - 1]);
    return error;
}

/* Two load generators at the same time must not take over each other's sessions. */
static const char *mqtt_join_level(int fd, const wire_join_t *join, uint8_t level) {
    char client_id[24];
    snprintf(client_id, sizeof client_id, "b%d-%u", (int)getpid(), join->number);
    return mqtt_join_as(fd, join, level, client_id, false);
}

static const char *mqtt_join(int fd, const wire_join_t *join) { return mqtt_join_level(fd, join, 4); }
static const char *mqtt5_join(int fd, const wire_join_t *join) { return mqtt_join_level(fd, join, 5); }

/* The size of a whole packet, and of its header; 0: not all of it is there. */
static ssize_t mqtt_packet(const uint8_t *at, size_t size, size_t *header, wire_sink_t *sink) {
    uint32_t remaining = 0;
    size_t n = 1;
    for (unsigned shift = 0;; shift += 7) {
        if (n == size) return 0;
        if (shift > 21) return refuse(sink, "a remaining length of more than four bytes came");
        remaining |= (uint32_t)(at[n] & 127) << shift;
        if (!(at[n++] & 128)) break;
    }
    *header = n;
    return size - n < remaining ? 0 : (ssize_t)(n + remaining);
}

static inline ssize_t mqtt_message(wire_reader_t *reader, const uint8_t *at, size_t size, frame_t *frame, wire_sink_t *sink,
                                   size_t properties) {
    if (reader_knows(reader, at, size)) return known_frame(reader, at, 0, frame);
    size_t header;
    ssize_t whole = mqtt_packet(at, size, &header, sink);
    if (whole <= 0 || at[0] == 0xd0) return whole; /* PINGRESP */
    size_t frame_size = (size_t)whole;
    if (at[0] != 0x30 || frame_size - header < 2)
        return refuse(sink, troubled("an MQTT packet 0x%02x came where PUBLISH at QoS 0 was due", at[0]));
    size_t payload_at = header + 2 + ((size_t)at[header] << 8 | at[header + 1]) + properties;
    if (payload_at > frame_size) return refuse(sink, "an MQTT PUBLISH has a topic longer than itself");
    if (properties && at[payload_at - 1] != 0) return refuse(sink, "an MQTT PUBLISH has properties, and none was sent");
    reader_learn(reader, at, payload_at, frame_size);
    frame->kind = FRAME_MESSAGE;
    frame->payload = at + payload_at;
    frame->payload_size = frame_size - payload_at;
    return whole;
}

static inline ssize_t mqtt_frame(wire_reader_t *reader, const uint8_t *at, size_t size, frame_t *frame, wire_sink_t *sink) {
    return mqtt_message(reader, at, size, frame, sink, 0);
}

static inline ssize_t mqtt5_frame(wire_reader_t *reader, const uint8_t *at, size_t size, frame_t *frame, wire_sink_t *sink) {
    return mqtt_message(reader, at, size, frame, sink, 1);
}

static ssize_t mqtt_scan(wire_reader_t *reader, const uint8_t *bytes, size_t size, wire_sink_t *sink) {
    return scan_frames(mqtt_frame, reader, bytes, size, sink);
}

static ssize_t mqtt5_scan(wire_reader_t *reader, const uint8_t *bytes, size_t size, wire_sink_t *sink) {
    return scan_frames(mqtt5_frame, reader, bytes, size, sink);
}

/* ---- Redis ---- */

static size_t redis_publish(uint8_t *out, const char *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                            wire_places_t *places) {
    (void)ttl_ms;
    size_t n = (size_t)sprintf((char *)out, "*3\r\n$7\r\nPUBLISH\r\n$%zu\r\n%s\r\n$%u\r\n", strlen(topic), topic, size);
    places->payload = n;
    memcpy(out + n, payload, size);
    memcpy(out + n + size, "\r\n", 2);
    return n + size + 2;
}

/* Publishers request no replies, because publishers of the other protocols get none either. */
static const char *redis_join(int fd, const wire_join_t *join) {
    char line[256];
    if (!join->topic) {
        const char *text = join->role == ROLE_PUBLISHER ? "PING\r\nCLIENT REPLY OFF\r\n" : "PING\r\n";
        const char *error = write_all(fd, text, strlen(text));
        if (!error) error = read_line(fd, line, sizeof line, "PONG");
        if (!error && strncmp(line, "+PONG", 5) != 0) error = troubled("redis-server said: %.120s", line);
        return error;
    }
    const char *verb = join->wildcard ? "PSUBSCRIBE" : "SUBSCRIBE";
    int n =
        snprintf(line, sizeof line, "*2\r\n$%zu\r\n%s\r\n$%zu\r\n%s\r\n", strlen(verb), verb, strlen(join->topic), join->topic);
    const char *error = write_all(fd, line, (size_t)n);
    for (int i = 0; i < 6 && !error; i++) { /* *3, $9, subscribe, $n, topic, :1 */
        error = read_line(fd, line, sizeof line, "subscribe");
        if (!error && line[0] == '-') error = troubled("redis-server said: %.120s", line);
    }
    return error;
}

/* *3 message topic payload, or *4 pmessage pattern topic payload: each part is $size\r\n bytes\r\n */
static inline ssize_t redis_frame(wire_reader_t *reader, const uint8_t *at, size_t size, frame_t *frame, wire_sink_t *sink) {
    if (reader_knows(reader, at, size)) return known_frame(reader, at, 2, frame);
    const uint8_t *cursor = at + 1, *end = at + size, *part = NULL;
    int64_t part_size = 0, parts;
    if (at[0] != '*') return refuse_line(sink, "redis-server", at, size);
    if ((parts = get_decimal_line(&cursor, end)) == -1) return 0;
    if (parts != 3 && parts != 4) return refuse_line(sink, "redis-server", at, size);
    for (int64_t i = 0; i < parts; i++) {
        if (cursor == end) return 0;
        if (*cursor++ != '$') return refuse_line(sink, "redis-server", at, size);
        if ((part_size = get_decimal_line(&cursor, end)) == -1) return 0;
        if (part_size < 0) return refuse_line(sink, "redis-server", at, size);
        if (end - cursor < part_size + 2) return 0;
        part = cursor;
        cursor += part_size + 2;
    }
    reader_learn(reader, at, (size_t)(part - at), (size_t)(cursor - at));
    frame->kind = FRAME_MESSAGE;
    frame->payload = part;
    frame->payload_size = (size_t)part_size;
    return cursor - at;
}

static ssize_t redis_scan(wire_reader_t *reader, const uint8_t *bytes, size_t size, wire_sink_t *sink) {
    return scan_frames(redis_frame, reader, bytes, size, sink);
}

/* ---- acknowledged publishes: a window of them is outstanding, and each answer is checked against its publish ------
 *
 * A setup connection comes first and closes again: it creates what the broker stores the messages for, so that all brokers
 * store them. */

/* An answer counts only if it is newer than all earlier ones on this connection, so no publish is counted twice. */
static ssize_t ack_take(wire_reader_t *reader, uint64_t number, size_t frame_size, frame_t *frame, wire_sink_t *sink) {
    if (number <= reader->acked)
        return refuse(sink, troubled("an acknowledgement names %llu and comes after %llu", (unsigned long long)number,
                                     (unsigned long long)reader->acked));
    reader->acked = number;
    frame->kind = FRAME_ACK;
    return (ssize_t)frame_size;
}

/* BlipMQ, QoS 1: publishes are numbered from 1 (seq). A Reply with the same number and code 0 answers each. */

static size_t blipmq1_publish(uint8_t *out, const char *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                              wire_places_t *places) {
    const blipmq_field_t fields[] = {
        blipmq_text(TOPIC, topic),
        {.slot = SEQ, .size = 8},
        {.slot = PAYLOAD, .size = BLIPMQ_BYTES, .value = size, .bytes = payload},
        {.slot = QOS, .size = 1, .value = 1},
    };
    (void)ttl_ms;
    size_t field_at[4], frame_size = blipmq_encode(out, fields, 4, field_at);
    places->number = field_at[1], places->payload = field_at[2];
    return frame_size;
}

static bool blipmq_reply(const uint8_t *body, size_t size, uint64_t *seq, unsigned *code, frame_t *text) {
    const uint8_t *seq_at = blipmq_field(body, size, 0, 8), *code_at = blipmq_field(body, size, 1, 2);
    *seq = seq_at ? get_u32_le(seq_at) | (uint64_t)get_u32_le(seq_at + 4) << 32 : 0;
    *code = code_at ? get_u16_le(code_at) : 0;
    blipmq_bytes(body, size, 2, text);
    return size >= 8;
}

static const char *read_blipmq_answer(int fd, uint8_t type, const char *what) {
    uint8_t head[5], body[1024];
    uint64_t seq;
    unsigned code = 0;
    frame_t text = {0};
    const char *error = read_all(fd, head, sizeof head, what);
    if (error) return error;
    uint32_t size = get_u32_be(head) - 1;
    if (head[4] != type || size > sizeof body) return troubled("%s was answered by a frame of type %u", what, head[4]);
    if ((error = read_all(fd, body, size, what))) return error;
    if (type == BLIPMQ_REPLY && (!blipmq_reply(body, size, &seq, &code, &text) || code))
        return troubled("%s was answered by code %u: %.*s", what, code, (int)text.payload_size, (const char *)text.payload);
    const uint8_t *code_at = type == BLIPMQ_SUBACK ? blipmq_field(body, size, 3, 2) : NULL;
    if (code_at && get_u16_le(code_at)) return troubled("%s was answered by code %u", what, get_u16_le(code_at));
    return NULL;
}

static const char *blipmq1_join(int fd, const wire_join_t *join) {
    uint8_t bytes[WIRE_OVERHEAD_BYTES_MAX];
    size_t field_at[5];
    char client_id[24];
    snprintf(client_id, sizeof client_id, "b%d-%u", (int)getpid(), join->number);
    const blipmq_field_t hello[] = {blipmq_text(CLIENT_ID, join->role == ROLE_KEEPER ? "keeper" : client_id),
                                    {.slot = SEQ, .size = 8, .value = 1},
                                    {.slot = PROTOCOL, .size = 2, .value = 1},
                                    {.slot = ACTION, .size = 1, .value = BLIPMQ_HELLO}};
    const char *error = write_all(fd, bytes, blipmq_encode(bytes, hello, 4, field_at));
    if (!error) error = read_blipmq_answer(fd, BLIPMQ_REPLY, "HELLO");
    if (error || join->role != ROLE_KEEPER) return error;
    const blipmq_field_t keep[] = {blipmq_text(TOPIC, join->topic),
                                   {.slot = SEQ, .size = 8, .value = 2},
                                   {.slot = ACTION, .size = 1, .value = BLIPMQ_SUB},
                                   {.slot = QOS, .size = 1, .value = 1},
                                   {.slot = DURABLE, .size = 1, .value = 1}};
    error = write_all(fd, bytes, blipmq_encode(bytes, keep, 5, field_at));
    return error ? error : read_blipmq_answer(fd, BLIPMQ_SUBACK, "the durable subscription");
}

static inline ssize_t blipmq1_frame(wire_reader_t *reader, const uint8_t *at, size_t size, frame_t *frame, wire_sink_t *sink) {
    if (size < 5) return 0;
    uint32_t frame_size = get_u32_be(at);
    if (frame_size < 9 || frame_size > BLIPMQ_FRAME_BYTES_MAX || at[4] != BLIPMQ_REPLY)
        return refuse(sink, troubled("a frame of type %u and %u bytes came where a Reply was due", at[4], frame_size));
    if (size - 4 < frame_size) return 0;
    uint64_t seq;
    unsigned code;
    frame_t text = {0};
    blipmq_reply(at + 5, frame_size - 1, &seq, &code, &text);
    if (code)
        return refuse(sink, troubled("publish %llu was answered by code %u: %.*s", (unsigned long long)seq, code,
                                     (int)text.payload_size, (const char *)text.payload));
    if (seq != reader->acked + 1)
        return refuse(sink, troubled("publish %llu was acknowledged when %llu was due", (unsigned long long)seq,
                                     (unsigned long long)reader->acked + 1));
    return ack_take(reader, seq, (size_t)frame_size + 4, frame, sink);
}

static ssize_t blipmq1_scan(wire_reader_t *reader, const uint8_t *bytes, size_t size, wire_sink_t *sink) {
    return scan_frames(blipmq1_frame, reader, bytes, size, sink);
}

/* JetStream: a publish names its publisher's inbox. {"stream":"BENCH", "seq":N} is sent there for each stored message. */

static const char *jetstream_create(int fd) {
    static const char settings[] = "{\"name\":\"BENCH\",\"subjects\":[\"bench.>\"],\"retention\":\"limits\",\"storage\":\"file\","
                                   "\"max_consumers\":-1,\"max_msgs\":-1,\"max_bytes\":-1,\"max_age\":0,\"num_replicas\":1}";
    char line[2048];
    int n = snprintf(line, sizeof line, "SUB _INBOX.keeper 1\r\nPUB $JS.API.STREAM.CREATE.BENCH _INBOX.keeper %zu\r\n%s\r\n",
                     sizeof settings - 1, settings);
    const char *error = write_all(fd, line, (size_t)n);
    while (!error) {
        if ((error = read_line(fd, line, sizeof line, "the new stream"))) return error;
        if (strncmp(line, "MSG ", 4) != 0) continue;
        if ((error = read_line(fd, line, sizeof line, "the new stream"))) return error;
        return strstr(line, "\"error\"") ? troubled("the stream was not created: %.180s", line) : NULL;
    }
    return error;
}

static const char *jetstream_join(int fd, const wire_join_t *join) {
    char inbox[WIRE_TOPIC_BYTES_MAX];
    snprintf(inbox, sizeof inbox, "_INBOX.%05u", join->number);
    wire_join_t plain = *join;
    plain.topic = join->role == ROLE_PUBLISHER ? inbox : NULL;
    const char *error = nats_join(fd, &plain);
    return error || join->role != ROLE_KEEPER ? error : jetstream_create(fd);
}

static inline ssize_t jetstream_frame(wire_reader_t *reader, const uint8_t *at, size_t size, frame_t *frame, wire_sink_t *sink) {
    static const char sequence[] = "\"seq\":";
    wire_reader_t unlearned = {0}; /* answers differ in size, so comparing headers would not help */
    ssize_t used = nats_frame(&unlearned, at, size, frame, sink);
    if (used <= 0 || frame->kind != FRAME_MESSAGE) return used;
    const uint8_t *found = memmem(frame->payload, frame->payload_size, sequence, sizeof sequence - 1);
    const uint8_t *end = frame->payload + frame->payload_size;
    uint64_t number = 0;
    bool stream = memmem(frame->payload, frame->payload_size, "\"stream\":\"BENCH\"", 16) != NULL;
    bool bad = memmem(frame->payload, frame->payload_size, "\"error\"", 7) ||
               memmem(frame->payload, frame->payload_size, "\"duplicate\"", 11);
    if (!found || !stream || bad) return refuse_line(sink, "JetStream", frame->payload, frame->payload_size);
    for (found += sizeof sequence - 1; found < end && *found >= '0' && *found <= '9'; found++)
        number = number * 10 + (uint64_t)(*found - '0');
    return ack_take(reader, number, (size_t)used, frame, sink);
}

static ssize_t jetstream_scan(wire_reader_t *reader, const uint8_t *bytes, size_t size, wire_sink_t *sink) {
    return scan_frames(jetstream_frame, reader, bytes, size, sink);
}

/* Redis streams: the answer to XADD is the entry's id, milliseconds-number. */

static size_t xadd_publish(uint8_t *out, const char *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                           wire_places_t *places) {
    (void)ttl_ms;
    size_t n = (size_t)sprintf((char *)out, "*5\r\n$4\r\nXADD\r\n$%zu\r\n%s\r\n$1\r\n*\r\n$1\r\np\r\n$%u\r\n", strlen(topic),
                               topic, size);
    places->payload = n;
    memcpy(out + n, payload, size);
    memcpy(out + n + size, "\r\n", 2);
    return n + size + 2;
}

static const char *xadd_join(int fd, const wire_join_t *join) {
    (void)join;
    const wire_join_t silent = {.role = ROLE_IDLE}; /* replies stay enabled, because they are counted */
    return redis_join(fd, &silent);
}

/* $size\r\n<ms>-<number>\r\n */
static inline ssize_t xadd_frame(wire_reader_t *reader, const uint8_t *at, size_t size, frame_t *frame, wire_sink_t *sink) {
    enum { NUMBER_BITS = 20 }; /* up to a million entries per millisecond */
    const uint8_t *cursor = at + 1, *end = at + size;
    if (at[0] != '$') return memchr(at, '\n', size) || size > 512 ? refuse_line(sink, "redis-server", at, size) : 0;
    int64_t id_size = get_decimal_line(&cursor, end);
    if (id_size == -1) return 0;
    if (id_size < 3 || id_size > 40) return refuse_line(sink, "redis-server", at, size);
    if (end - cursor < id_size + 2) return 0;
    uint64_t part[2] = {0};
    unsigned parts = 0;
    for (int64_t i = 0; i < id_size; i++) {
        if (cursor[i] == '-')
            parts++;
        else
            part[parts] = part[parts] * 10 + (uint64_t)(cursor[i] - '0');
        if (parts > 1 || (cursor[i] != '-' && (cursor[i] < '0' || cursor[i] > '9')))
            return refuse_line(sink, "redis-server", cursor, (size_t)id_size);
    }
    if (parts != 1 || part[1] >> NUMBER_BITS) return refuse_line(sink, "redis-server", cursor, (size_t)id_size);
    return ack_take(reader, part[0] << NUMBER_BITS | part[1], (size_t)(cursor + id_size + 2 - at), frame, sink);
}

static ssize_t xadd_scan(wire_reader_t *reader, const uint8_t *bytes, size_t size, wire_sink_t *sink) {
    return scan_frames(xadd_frame, reader, bytes, size, sink);
}

/* MQTT 3.1.1, QoS 1: PUBACKs have the order of the publishes. */

static size_t mqtt1_publish(uint8_t *out, const char *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                            wire_places_t *places) {
    (void)ttl_ms;
    size_t n = mqtt_put_publish(out, 0x32, topic, 2, payload, size, places);
    places->packet_id = places->payload - 2;
    return n;
}

/* The setup connection leaves a session with a subscription behind. */
static const char *mqtt1_join(int fd, const wire_join_t *join) {
    if (join->role == ROLE_KEEPER) return mqtt_join_as(fd, join, 4, "keeper", true);
    return mqtt_join_level(fd, join, 4);
}

static inline ssize_t mqtt1_frame(wire_reader_t *reader, const uint8_t *at, size_t size, frame_t *frame, wire_sink_t *sink) {
    size_t header;
    ssize_t whole = mqtt_packet(at, size, &header, sink);
    if (whole <= 0) return whole;
    unsigned due = (unsigned)(reader->acked % PACKET_IDS) + 1;
    if (at[0] != 0x40 || whole != 4 || ((unsigned)at[2] << 8 | at[3]) != due)
        return refuse(sink, troubled("packet 0x%02x of %zd bytes came where PUBACK of %u was due", at[0], whole, due));
    return ack_take(reader, reader->acked + 1, (size_t)whole, frame, sink);
}

static ssize_t mqtt1_scan(wire_reader_t *reader, const uint8_t *bytes, size_t size, wire_sink_t *sink) {
    return scan_frames(mqtt1_frame, reader, bytes, size, sink);
}

static const wire_t wires[] = {
    {"blipmq", "bench/t%04u", "bench/#", "", blipmq_publish, blipmq_join, blipmq_scan, false},
    {"nats", "bench.t%04u", "bench.>", "PONG\r\n", nats_publish, nats_join, nats_scan, false},
    {"mqtt", "bench/t%04u", "bench/#", "", mqtt_publish, mqtt_join, mqtt_scan, false},
    {"mqtt5", "bench/t%04u", "bench/#", "", mqtt5_publish, mqtt5_join, mqtt5_scan, false},
    {"redis", "bench/t%04u", "bench/*", "", redis_publish, redis_join, redis_scan, false},
    {"raw", "bench/t%04u", "bench/#", "", blipmq_publish, raw_join, raw_scan, false},
    {"blipmq1", "bench/t%04u", "bench/#", "", blipmq1_publish, blipmq1_join, blipmq1_scan, true},
    {"jetstream", "bench.t%04u _INBOX.%05u", "", "PONG\r\n", nats_publish, jetstream_join, jetstream_scan, true},
    {"xadd", "bench/t%04u", "", "", xadd_publish, xadd_join, xadd_scan, true},
    {"mqtt1", "bench/t%04u", "bench/#", "", mqtt1_publish, mqtt1_join, mqtt1_scan, true},
};

const wire_t *wire_named(const char *name) {
    for (size_t i = 0; i < sizeof wires / sizeof wires[0]; i++)
        if (strcmp(wires[i].name, name) == 0) return &wires[i];
    return NULL;
}

const char *wire_names(void) {
    static char names[128];
    for (size_t i = 0, n = 0; i < sizeof wires / sizeof wires[0] && n < sizeof names; i++)
        n += (size_t)snprintf(names + n, sizeof names - n, i ? ", %s" : "%s", wires[i].name);
    return names;
}
