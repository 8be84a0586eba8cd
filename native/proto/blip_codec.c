/* proto/blip_codec.c: implements proto/blip_codec.h: FlatBuffers tables are read in place and written at fixed offsets.
 *
 *      body       [root u32]...[vtable: bytes u16, table bytes u16, slot offsets u16...]...[table: i32 back to vtable, fields]
 *      message    [u32 big-endian][1][root, vtable, table, topic][payload]     constant per topic, except for the values
 *
 * Invariant: before each read of a body, its uint64_t end offset is compared with the body's size. Nothing here allocates.
 */
#include "proto/blip_codec.h"

/* ---- errors -------------------------------------------------------------------------------------------------------- */

#define FRAME_ERRORS(X)                                                                                                          \
    X(ROOT, "no table: the root offset points outside the frame; the client may use another protocol")                           \
    X(VTABLE, "the table's vtable is outside the frame or has an impossible length")                                             \
    X(TABLE, "the table runs past the end of the frame")                                                                         \
    X(FIELD, "a field lies outside its table")                                                                                   \
    X(VECTOR, "a string or vector runs past the end of the frame")                                                               \
    X(STRING, "a string does not end with NUL")                                                                                  \
    X(ACTION, "no such action: it must be 0 to 7, or 9")                                                                         \
    X(QOS, "no such QoS: it must be 0 or 1")

#define ERROR_NAME(name, phrase) ERROR_##name,
#define ERROR_PHRASE(name, phrase) phrase,
enum { FRAME_ERRORS(ERROR_NAME) ERROR_COUNT };
static const char *const error_phrases[ERROR_COUNT] = {FRAME_ERRORS(ERROR_PHRASE)};

#define ERROR_BASE (-100) /* distinct from enum bq_error */
#define FAIL(name) (ERROR_BASE - ERROR_##name)

const char *frame_error(int code) {
    if (code > ERROR_BASE - ERROR_COUNT && code <= ERROR_BASE) return error_phrases[ERROR_BASE - code];
    return topic_error(code);
}

/* After these errors the stream is not usable. The other errors concern one request. */
bool frame_error_is_fatal(int code) { return (code <= FAIL(ROOT) && code >= FAIL(STRING)) || code == TOPIC_E_UTF8; }

/* ---- reading ------------------------------------------------------------------------------------------------------- */

enum slot {
    SLOT_ACTION,
    SLOT_TOPIC,
    SLOT_PAYLOAD,
    SLOT_TTL,
    SLOT_QOS,
    SLOT_SEQ,
    SLOT_CLIENT_ID,
    SLOT_API_KEY,
    SLOT_PROTOCOL,
    SLOT_DURABLE,
    SLOT_GROUP,
    SLOT_KEEPALIVE = 16, /* the slots between are reserved */
    SLOT_KEEP_DURABLE,
    SLOTS
};

/* A table whose bounds within the body are verified. */
struct table {
    const uint8_t *body;
    const uint8_t *slots; /* the vtable's field offsets */
    uint64_t size;        /* size of the body */
    uint64_t at;          /* offset of the table in the body */
    uint64_t bytes;       /* size of the table */
};

/* Offset of a slot's field of `width` bytes. 0: absent (offset 0 is the root offset, never a field). < 0: out of bounds. */
static inline __attribute__((always_inline)) int64_t field_at(const struct table *table, enum slot slot, uint32_t width) {
    uint64_t offset = load_u16(table->slots + 2 * slot);
    if (offset == 0) return 0;
    if (BQ_UNLIKELY(offset < 4 || offset + width > table->bytes)) return FAIL(FIELD);
    return (int64_t)(table->at + offset);
}

/* The vector to which the offset at `at` points; with `terminated`, a string. */
static inline __attribute__((always_inline)) int vector_at(const struct table *table, uint64_t at, bool terminated,
                                                           const uint8_t **bytes, uint32_t *size) {
    uint64_t offset = load_u32(table->body + at);
    uint64_t start = at + offset + 4;
    if (BQ_UNLIKELY(offset == 0 || start > table->size)) return FAIL(VECTOR);
    uint64_t length = load_u32(table->body + start - 4);
    if (BQ_UNLIKELY(start + length + terminated > table->size)) return FAIL(VECTOR);
    if (terminated && BQ_UNLIKELY(table->body[start + length] != 0)) return FAIL(STRING);
    *bytes = table->body + start;
    *size = (uint32_t)length;
    return 0;
}

/* Read one slot: return on errors, do nothing if the field is absent. */
#define READ_SCALAR(slot, width, assign)                                                                                         \
    do {                                                                                                                         \
        int64_t at = field_at(table, slot, width);                                                                               \
        if (BQ_UNLIKELY(at < 0)) return (int)at;                                                                                 \
        const uint8_t *field = table->body + at;                                                                                 \
        if (at) assign;                                                                                                          \
    } while (0)

#define READ_VECTOR(slot, terminated, name)                                                                                      \
    do {                                                                                                                         \
        int64_t at = field_at(table, slot, 4);                                                                                   \
        if (BQ_UNLIKELY(at < 0)) return (int)at;                                                                                 \
        int error = at ? vector_at(table, (uint64_t)at, terminated, &view->name, &view->name##_size) : 0;                        \
        if (BQ_UNLIKELY(error)) return error;                                                                                    \
    } while (0)

/* A vtable ends with the last slot that its table uses. Start there and fall through to the first slot. */
static inline __attribute__((always_inline)) int fields_read(const struct table *table, uint64_t slots, bq_view_t *view) {
    switch (slots < SLOTS ? slots : SLOTS) {
    case SLOT_KEEP_DURABLE + 1: READ_SCALAR(SLOT_KEEP_DURABLE, 1, view->keep_durable = *field != 0); /* fall through */
    case SLOT_KEEPALIVE + 1: READ_SCALAR(SLOT_KEEPALIVE, 8, view->keepalive_ms = load_u64(field));   /* fall through */
    case SLOT_KEEPALIVE:
    case SLOT_KEEPALIVE - 1:
    case SLOT_KEEPALIVE - 2:
    case SLOT_KEEPALIVE - 3:
    case SLOT_GROUP + 2:                                                                     /* fall through */
    case SLOT_GROUP + 1: READ_VECTOR(SLOT_GROUP, true, group);                               /* fall through */
    case SLOT_DURABLE + 1: READ_SCALAR(SLOT_DURABLE, 1, view->durable = *field != 0);        /* fall through */
    case SLOT_PROTOCOL + 1: READ_SCALAR(SLOT_PROTOCOL, 2, view->protocol = load_u16(field)); /* fall through */
    case SLOT_API_KEY + 1: READ_VECTOR(SLOT_API_KEY, true, api_key);                         /* fall through */
    case SLOT_CLIENT_ID + 1: READ_VECTOR(SLOT_CLIENT_ID, true, client_id);                   /* fall through */
    case SLOT_SEQ + 1: READ_SCALAR(SLOT_SEQ, 8, view->seq = load_u64(field));                /* fall through */
    case SLOT_QOS + 1: READ_SCALAR(SLOT_QOS, 1, view->qos = *field);                         /* fall through */
    case SLOT_TTL + 1: READ_SCALAR(SLOT_TTL, 8, view->ttl_ms = load_u64(field));             /* fall through */
    case SLOT_PAYLOAD + 1: READ_VECTOR(SLOT_PAYLOAD, false, payload);                        /* fall through */
    case SLOT_TOPIC + 1: READ_VECTOR(SLOT_TOPIC, true, topic);                               /* fall through */
    case SLOT_ACTION + 1: READ_SCALAR(SLOT_ACTION, 1, view->action = *field);                /* fall through */
    default: break;
    }
    /* 8 is reserved for streams */
    if (BQ_UNLIKELY(view->action > FRAME_INFO && view->action != FRAME_ADMIN)) return FAIL(ACTION);
    return BQ_UNLIKELY(view->qos > 1) ? FAIL(QOS) : 0;
}

/* Field by field: gcc compiles a memset of this size to `rep stos`, which takes three times as long as the rest of the
 * function. */
static inline void view_clear(bq_view_t *view) {
    view->topic = view->payload = view->client_id = view->api_key = view->group = NULL;
    view->topic_size = view->payload_size = view->client_id_size = view->api_key_size = view->group_size = 0;
    view->protocol = 0;
    view->action = view->qos = view->durable = view->keep_durable = 0;
    view->reserved[0] = view->reserved[1] = 0;
    view->ttl_ms = view->seq = view->keepalive_ms = 0;
}

int frame_verify(const uint8_t *body, uint32_t size, bq_view_t *view) {
    view_clear(view);
    if (BQ_UNLIKELY(size < 8)) return FAIL(ROOT);
    uint64_t at = load_u32(body);
    if (BQ_UNLIKELY(at < 4 || at > size - 4u)) return FAIL(ROOT);

    /* Before the body: wraps to a value larger than any size */
    uint64_t vtable = at - (uint64_t)(int64_t)(int32_t)load_u32(body + at);
    if (BQ_UNLIKELY(vtable > size - 4u)) return FAIL(VTABLE);
    uint64_t vtable_bytes = load_u16(body + vtable);
    if (BQ_UNLIKELY(vtable_bytes < 4 || vtable_bytes % 2 || vtable + vtable_bytes > size)) return FAIL(VTABLE);
    uint64_t table_bytes = load_u16(body + vtable + 2);
    if (BQ_UNLIKELY(table_bytes < 4 || at + table_bytes > size)) return FAIL(TABLE);

    struct table table = {body, body + vtable + 4, size, at, table_bytes};
    return fields_read(&table, (vtable_bytes - 4) / 2, view);
}

enum frame_payload frame_payload_place(const uint8_t *body, const bq_view_t *view) {
    if (!view->payload || !view->topic || view->client_id || view->api_key || view->group) return PAYLOAD_MIXED;
    uint64_t table = load_u32(body), vtable = table - (uint64_t)(int64_t)(int32_t)load_u32(body + table);
    uint64_t topic = (uint64_t)(view->topic - body);
    uint64_t from = (uint64_t)(view->payload - body) - 4, to = from + 4 + view->payload_size;
    const struct {
        uint64_t from, to;
    } others[] = {{table, table + load_u16(body + vtable + 2)},
                  {vtable, vtable + load_u16(body + vtable)},
                  {topic - 4, topic + view->topic_size + 1}};
    enum frame_payload place = PAYLOAD_LAST; /* the root offset is before any vector */
    for (uint32_t i = 0; i < sizeof others / sizeof others[0]; i++) {
        if (others[i].to <= from) continue;
        if (others[i].from < to) return PAYLOAD_MIXED;
        place = PAYLOAD_APART;
    }
    return place;
}

int frame_check_fields(const bq_view_t *view) {
    int error;
    switch (view->action) {
    case FRAME_PUB: error = topic_check(view->topic, view->topic_size); break;
    case FRAME_SUB:
    case FRAME_UNSUB: error = filter_check(view->topic, view->topic_size); break;
    default: error = utf8_check(view->topic, view->topic_size); break;
    }
    if (error >= 0) error = utf8_check(view->client_id, view->client_id_size);
    if (error >= 0) error = utf8_check(view->group, view->group_size);
    return error < 0 ? error : 0;
}

int frame_check(const uint8_t *body, uint32_t size, bq_view_t *view) {
    int error = frame_verify(body, size, view);
    return error < 0 ? error : frame_check_fields(view);
}

/* ---- writing ------------------------------------------------------------------------------------------------------- */

/* Fixed offsets in the frames written here. The vtable ends where the table begins, at 20. So the u64 fields from 24 on are
 * aligned to 8 from the buffer's start, as FlatBuffers requires. */
enum {
    TABLE_AT = 20,
    MESSAGE_BODY = 56,
    SUBACK_BODY = 44,
    REPLY_BODY = 52,
    QOS1_TABLE_AT = 28,
    QOS1_BODY = 68,
    PROPERTIES_BODY = 72
};
enum qos1_at {
    QOS1_ID = 32,
    QOS1_TIMESTAMP = 40,
    QOS1_TTL = 48,
    QOS1_PAYLOAD = 56,
    QOS1_TOPIC = 60,
    QOS1_QOS = 64,
    QOS1_REDELIVERED = 65,
    QOS1_PROPERTIES = 68 /* only in messages with properties; the body follows */
};
#define QOS1_PROPERTIES_VTABLE 22u /* bytes of the vtable of a message with properties: nine fields */
enum suback_at { SUBACK_SEQ = 24, SUBACK_TOPIC = 32, SUBACK_INFO = 36, SUBACK_CODE = 40 };
enum reply_at { REPLY_SEQ = 24, REPLY_ID = 32, REPLY_MESSAGE = 40, REPLY_PAYLOAD = 44, REPLY_CODE = 48 };
enum frame_type { TYPE_SUBACK, TYPE_MESSAGE, TYPE_REPLY };

/* Write the root offset, the vtable for fields at these offsets, and the table's offset to its vtable. Other bytes up to
 * `end` are zero. */
static void table_write_at(uint8_t *buffer, uint32_t table_at, const uint8_t *fields, uint32_t count, uint32_t table_end,
                           uint32_t end) {
    uint32_t vtable_bytes = 4 + 2 * count;
    uint8_t *vtable = buffer + table_at - vtable_bytes;
    memset(buffer, 0, end);
    store_u32(buffer, table_at);
    store_u16(vtable, (uint16_t)vtable_bytes);
    store_u16(vtable + 2, (uint16_t)(table_end - table_at));
    for (uint32_t slot = 0; slot < count; slot++) store_u16(vtable + 4 + 2 * slot, (uint16_t)(fields[slot] - table_at));
    store_u32(buffer + table_at, vtable_bytes);
}

static void table_write(uint8_t *buffer, const uint8_t *fields, uint32_t count, uint32_t table_end, uint32_t end) {
    table_write_at(buffer, TABLE_AT, fields, count, table_end, end);
}

/* Write a vector, and its offset into `field`. Zeros follow up to the next multiple of 4; at least one after a string. */
static uint32_t vector_write(uint8_t *buffer, uint32_t at, uint32_t field, const void *bytes, uint32_t size, bool terminated) {
    uint32_t end = at + 4 + size, next = (end + terminated + 3) & ~3u;
    store_u32(buffer + field, at - field);
    store_u32(buffer + at, size);
    if (size) memcpy(buffer + at + 4, bytes, size);
    memset(buffer + end, 0, next - end);
    return next;
}

static uint32_t frame_finish(uint8_t *out, enum frame_type type, uint32_t buffer_bytes) {
    store_be32(out, buffer_bytes + 1);
    out[4] = (uint8_t)type;
    return FRAME_HEADER_BYTES + buffer_bytes;
}

static inline uint32_t message_payload_at(uint32_t topic_size) { return (MESSAGE_BODY + 4 + topic_size + 1 + 3) & ~3u; }

uint32_t header_template_size(uint32_t topic_size) { return FRAME_HEADER_BYTES + message_payload_at(topic_size) + 4; }

void header_template_write(uint8_t *out, const uint8_t *topic, uint32_t topic_size) {
    static const uint8_t fields[] = {MESSAGE_ID, MESSAGE_PAYLOAD, MESSAGE_TIMESTAMP, MESSAGE_TTL, MESSAGE_TOPIC};
    uint8_t *buffer = out + FRAME_HEADER_BYTES;
    table_write(buffer, fields, sizeof fields, MESSAGE_BODY, MESSAGE_BODY);
    uint32_t payload_at = vector_write(buffer, MESSAGE_BODY, MESSAGE_TOPIC, topic, topic_size, true);
    vector_write(buffer, payload_at, MESSAGE_PAYLOAD, NULL, 0, false);
    frame_finish(out, TYPE_MESSAGE, payload_at + 4);
}

const uint8_t *header_template_topic(const uint8_t *header) { return header + FRAME_HEADER_BYTES + MESSAGE_BODY + 4; }

/* Write the table of a QoS 1 message. A field is absent if its offset equals the table's. */
static void message_table_write(uint8_t *buffer, const message_t *message, bool properties) {
    static const uint8_t fields[] = {QOS1_ID,        QOS1_PAYLOAD, QOS1_TIMESTAMP,   QOS1_TTL,
                                     QOS1_TOPIC,     QOS1_QOS,     QOS1_REDELIVERED, QOS1_TABLE_AT /* absent */,
                                     QOS1_PROPERTIES};
    if (properties)
        table_write_at(buffer, QOS1_TABLE_AT, fields, sizeof fields, QOS1_PROPERTIES + 4, PROPERTIES_BODY);
    else
        table_write_at(buffer, QOS1_TABLE_AT, fields, 7, QOS1_REDELIVERED + 1, QOS1_BODY);
    store_u64(buffer + QOS1_ID, message->id);
    store_u64(buffer + QOS1_TIMESTAMP, message->timestamp_ms);
    store_u64(buffer + QOS1_TTL, message->ttl_ms);
    buffer[QOS1_QOS] = 1;
}

static inline uint32_t qos1_payload_at(uint32_t topic_size) { return (QOS1_BODY + 4 + topic_size + 1 + 3) & ~3u; }
static uint32_t properties_at(uint32_t topic_size) { return (PROPERTIES_BODY + 4 + topic_size + 1 + 3) & ~3u; }

uint32_t message_header_size(const message_t *message) {
    if (BQ_LIKELY(!message->properties_size)) return FRAME_HEADER_BYTES + qos1_payload_at(message->topic_size) + 4;
    return FRAME_HEADER_BYTES + ((properties_at(message->topic_size) + 4 + message->properties_size + 3) & ~3u) + 4;
}

void message_encode(uint8_t *out, const message_t *message) {
    uint8_t *buffer = out + FRAME_HEADER_BYTES;
    const bool properties = message->properties_size > 0;
    message_table_write(buffer, message, properties);
    uint32_t at =
        vector_write(buffer, properties ? PROPERTIES_BODY : QOS1_BODY, QOS1_TOPIC, message->topic, message->topic_size, true);
    if (properties) at = vector_write(buffer, at, QOS1_PROPERTIES, message->properties, message->properties_size, false);
    store_u32(buffer + QOS1_PAYLOAD, at - QOS1_PAYLOAD);
    store_u32(buffer + at, message->payload_size);
    if (message->payload_size) memcpy(buffer + at + 4, message->payload, message->payload_size);
    frame_finish(out, TYPE_MESSAGE, at + 4 + message->payload_size);
}

void message_mark_qos0(uint8_t *encoded) { encoded[FRAME_HEADER_BYTES + QOS1_QOS] = 0; }
void message_mark_redelivered(uint8_t *encoded) { encoded[FRAME_HEADER_BYTES + QOS1_REDELIVERED] = 1; }

/* The vector to which a field's offset points. */
static inline const uint8_t *qos1_vector(const uint8_t *encoded, enum qos1_at field) {
    const uint8_t *at = encoded + FRAME_HEADER_BYTES + field;
    return at + load_u32(at);
}

const uint8_t *message_topic(const uint8_t *encoded) { return qos1_vector(encoded, QOS1_TOPIC) + 4; }

void message_decode(const uint8_t *encoded, message_t *message) {
    const uint8_t *topic = qos1_vector(encoded, QOS1_TOPIC), *payload = qos1_vector(encoded, QOS1_PAYLOAD);
    *message = (message_t){.topic = topic + 4,
                           .topic_size = load_u32(topic),
                           .payload = payload + 4,
                           .payload_size = load_u32(payload),
                           .id = load_u64(encoded + FRAME_HEADER_BYTES + QOS1_ID),
                           .timestamp_ms = load_u64(encoded + FRAME_HEADER_BYTES + QOS1_TIMESTAMP),
                           .ttl_ms = load_u64(encoded + FRAME_HEADER_BYTES + QOS1_TTL)};
    if (BQ_LIKELY(load_u32(encoded + FRAME_HEADER_BYTES + QOS1_TABLE_AT) != QOS1_PROPERTIES_VTABLE)) return;
    const uint8_t *properties = qos1_vector(encoded, QOS1_PROPERTIES);
    message->properties = properties + 4;
    message->properties_size = load_u32(properties);
}

void message_read(const uint8_t *encoded, message_t *message) {
    const uint8_t *buffer = encoded + FRAME_HEADER_BYTES, *topic = header_template_topic(encoded);
    if (load_u32(buffer) == QOS1_TABLE_AT) {
        message_decode(encoded, message);
        return;
    }
    const uint32_t topic_size = load_u32(topic - 4);
    const uint8_t *payload = buffer + message_payload_at(topic_size);
    *message = (message_t){.topic = topic,
                           .topic_size = topic_size,
                           .payload = payload + 4,
                           .payload_size = load_u32(payload),
                           .id = load_u64(buffer + MESSAGE_ID),
                           .timestamp_ms = load_u64(buffer + MESSAGE_TIMESTAMP),
                           .ttl_ms = load_u64(buffer + MESSAGE_TTL)};
}

/* Text with its size as in MQTT: 16 bits, big-endian. */

static uint8_t *property_text(uint8_t *out, const void *text, uint32_t size) {
    *out++ = (uint8_t)(size >> 8);
    *out++ = (uint8_t)size;
    if (size) memcpy(out, text, size);
    return out + size;
}

uint32_t property_write(uint8_t *out, const char *name, const uint8_t *value, uint32_t value_size) {
    uint8_t *to = out;
    *to++ = 0x26; /* user property */
    to = property_text(to, name, (uint32_t)strlen(name));
    to = property_text(to, value, value_size);
    return (uint32_t)(to - out);
}

uint32_t frame_write_suback(uint8_t *out, uint64_t seq, uint16_t code, const uint8_t *topic, uint32_t topic_size,
                            const char *info) {
    static const uint8_t fields[] = {SUBACK_TOPIC, SUBACK_INFO, SUBACK_SEQ, SUBACK_CODE};
    uint8_t *buffer = out + FRAME_HEADER_BYTES;
    table_write(buffer, fields, sizeof fields, SUBACK_CODE + 2, SUBACK_BODY);
    store_u64(buffer + SUBACK_SEQ, seq);
    store_u16(buffer + SUBACK_CODE, code);
    uint32_t at = vector_write(buffer, SUBACK_BODY, SUBACK_TOPIC, topic, topic_size, true);
    at = vector_write(buffer, at, SUBACK_INFO, info, (uint32_t)strlen(info), true);
    return frame_finish(out, TYPE_SUBACK, at);
}

enum welcome_at { WELCOME_TABLE = 28, WELCOME_SEQ = 32, WELCOME_KEEPALIVE = 40, WELCOME_MESSAGE = 48, WELCOME_CODE = 52 };

uint32_t frame_write_welcome(uint8_t *out, uint64_t seq, const uint8_t *text, uint32_t text_size, uint64_t keepalive_ms) {
    enum { NONE = WELCOME_TABLE }; /* a field at the table's own offset is absent */
    static const uint8_t fields[] = {WELCOME_SEQ, WELCOME_CODE, WELCOME_MESSAGE, NONE, NONE, NONE, WELCOME_KEEPALIVE};
    uint8_t *buffer = out + FRAME_HEADER_BYTES;
    if (!keepalive_ms) return frame_write_reply(out, seq, 0, text, text_size, 0, NULL, 0);
    table_write_at(buffer, WELCOME_TABLE, fields, sizeof fields, WELCOME_CODE + 2, WELCOME_CODE + 4);
    store_u64(buffer + WELCOME_SEQ, seq);
    store_u64(buffer + WELCOME_KEEPALIVE, keepalive_ms);
    return frame_finish(out, TYPE_REPLY, vector_write(buffer, WELCOME_CODE + 4, WELCOME_MESSAGE, text, text_size, true));
}

enum published_at {
    PUBLISHED_SEQ = 24,
    PUBLISHED_ID = 32,
    PUBLISHED_SUBSCRIPTIONS = 40,
    PUBLISHED_CODE = 48,
    PUBLISHED_BYTES = 52
};

uint32_t frame_write_published(uint8_t *out, uint64_t seq, uint64_t id, uint64_t subscriptions) {
    static const uint8_t fields[] = {PUBLISHED_SEQ, PUBLISHED_CODE, TABLE_AT, PUBLISHED_ID, TABLE_AT, PUBLISHED_SUBSCRIPTIONS};
    uint8_t *buffer = out + FRAME_HEADER_BYTES; /* a field at the table's own offset is absent */
    table_write(buffer, fields, sizeof fields, PUBLISHED_CODE + 2, PUBLISHED_BYTES);
    store_u64(buffer + PUBLISHED_SEQ, seq);
    store_u64(buffer + PUBLISHED_ID, id);
    store_u64(buffer + PUBLISHED_SUBSCRIPTIONS, subscriptions);
    return frame_finish(out, TYPE_REPLY, PUBLISHED_BYTES);
}

uint32_t frame_write_reply(uint8_t *out, uint64_t seq, uint16_t code, const uint8_t *text, uint32_t text_size, uint64_t id,
                           const uint8_t *payload, uint32_t payload_size) {
    static const uint8_t fields[] = {REPLY_SEQ, REPLY_CODE, REPLY_MESSAGE, REPLY_ID, REPLY_PAYLOAD};
    uint8_t *buffer = out + FRAME_HEADER_BYTES;
    table_write(buffer, fields, sizeof fields, REPLY_CODE + 2, REPLY_BODY);
    store_u64(buffer + REPLY_SEQ, seq);
    store_u16(buffer + REPLY_CODE, code);
    store_u64(buffer + REPLY_ID, id);
    uint32_t at = vector_write(buffer, REPLY_BODY, REPLY_MESSAGE, text, text_size, true);
    at = vector_write(buffer, at, REPLY_PAYLOAD, payload, payload_size, false);
    return frame_finish(out, TYPE_REPLY, at);
}
