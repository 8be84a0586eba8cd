/* proto/mqtt_properties.c: see proto/mqtt_properties.h. One table says for each property its type and the packets that it belongs
 * to; reading and writing follow the table.
 *
 * Invariant: a property that is accepted has its type, stands in one of its packets, and is not a second one.
 */
#include "proto/mqtt_codec.h"
#include "proto/mqtt_properties_codec.h"

enum kind { NO_PROPERTY, BIT, U16, U16_NOT_0, U32, U32_NOT_0, VARIABLE, STRING, BINARY, PAIR };

#define IN(type) (1u << MQTT_##type)
#define MESSAGE (IN(PUBLISH) | IN(WILL))
#define ACKS (IN(PUBACK) | IN(PUBREC) | IN(PUBREL) | IN(PUBCOMP) | IN(SUBACK) | IN(UNSUBACK))
#define BOTH_CONNECTS (IN(CONNECT) | IN(CONNACK))
#define ROW(property, kind, field, places) [MQTT_##property] = {kind, places, offsetof(mqtt_properties_t, field)}

static const struct row {
    uint8_t kind;
    uint16_t places;
    uint16_t field;
} rows[] = {
    ROW(PAYLOAD_FORMAT, BIT, payload_format, MESSAGE),
    ROW(MESSAGE_EXPIRY, U32, message_expiry_s, MESSAGE),
    ROW(CONTENT_TYPE, STRING, content_type, MESSAGE),
    ROW(RESPONSE_TOPIC, STRING, response_topic, MESSAGE),
    ROW(CORRELATION_DATA, BINARY, correlation_data, MESSAGE),
    ROW(SUBSCRIPTION_ID, VARIABLE, subscription_id, IN(PUBLISH) | IN(SUBSCRIBE)),
    ROW(SESSION_EXPIRY, U32, session_expiry_s, BOTH_CONNECTS | IN(DISCONNECT)),
    ROW(ASSIGNED_CLIENT_ID, STRING, assigned_client_id, IN(CONNACK)),
    ROW(SERVER_KEEP_ALIVE, U16, server_keep_alive_s, IN(CONNACK)),
    ROW(AUTHENTICATION_METHOD, STRING, authentication_method, BOTH_CONNECTS | IN(AUTH)),
    ROW(AUTHENTICATION_DATA, BINARY, authentication_data, BOTH_CONNECTS | IN(AUTH)),
    ROW(REQUEST_PROBLEM, BIT, request_problem, IN(CONNECT)),
    ROW(WILL_DELAY, U32, will_delay_s, IN(WILL)),
    ROW(REQUEST_RESPONSE, BIT, request_response, IN(CONNECT)),
    ROW(RESPONSE_INFORMATION, STRING, response_information, IN(CONNACK)),
    ROW(SERVER_REFERENCE, STRING, server_reference, IN(CONNACK) | IN(DISCONNECT)),
    ROW(REASON_STRING, STRING, reason_string, IN(CONNACK) | ACKS | IN(DISCONNECT) | IN(AUTH)),
    ROW(RECEIVE_MAXIMUM, U16_NOT_0, receive_maximum, BOTH_CONNECTS),
    ROW(TOPIC_ALIAS_MAXIMUM, U16, topic_alias_maximum, BOTH_CONNECTS),
    ROW(TOPIC_ALIAS, U16, topic_alias, IN(PUBLISH)),
    ROW(MAXIMUM_QOS, BIT, maximum_qos, IN(CONNACK)),
    ROW(RETAIN_AVAILABLE, BIT, retain_available, IN(CONNACK)),
    ROW(USER_PROPERTY, PAIR, user, BOTH_CONNECTS | MESSAGE | ACKS | IN(SUBSCRIBE) | IN(UNSUBSCRIBE) | IN(DISCONNECT) | IN(AUTH)),
    ROW(MAXIMUM_PACKET_SIZE, U32_NOT_0, maximum_packet_bytes, BOTH_CONNECTS),
    ROW(WILDCARDS_AVAILABLE, BIT, wildcards_available, IN(CONNACK)),
    ROW(SUBSCRIPTION_IDS_AVAILABLE, BIT, subscription_ids_available, IN(CONNACK)),
    ROW(SHARED_AVAILABLE, BIT, shared_available, IN(CONNACK)),
};
#define ROWS (sizeof rows / sizeof rows[0])

/* ---- reading ---------------------------------------------------------------------------------------------------------- */

static int number_read(mqtt_reader_t *reader, enum kind kind, uint32_t *value) {
    int error;
    switch (kind) {
    case BIT: error = mqtt_read_u8(reader, value); return error ? error : *value > 1 ? MQTT_E_PROPERTY_VALUE : 0;
    case U16: return mqtt_read_u16(reader, value);
    case U16_NOT_0: error = mqtt_read_u16(reader, value); break;
    case U32: return mqtt_read_u32(reader, value);
    case U32_NOT_0: error = mqtt_read_u32(reader, value); break;
    default: error = mqtt_read_variable(reader, value); break;
    }
    return error ? error : *value == 0 ? MQTT_E_PROPERTY_VALUE : 0;
}

static int property_read(mqtt_reader_t *reader, const struct row *row, mqtt_properties_t *properties) {
    uint8_t *field = (uint8_t *)properties + row->field;
    mqtt_text_t text = {NULL, 0}, name;
    uint32_t number = 0;
    int error;
    switch (row->kind) {
    case PAIR: error = mqtt_read_string(reader, &name); return error ? error : mqtt_read_string(reader, &text);
    case STRING: error = mqtt_read_string(reader, &text); break;
    case BINARY: error = mqtt_read_binary(reader, &text); break;
    default:
        error = number_read(reader, row->kind, &number);
        memcpy(field, &number, sizeof number);
        return error;
    }
    memcpy(field, &text, sizeof text);
    return error;
}

int mqtt_properties_read(mqtt_reader_t *reader, uint32_t place, mqtt_properties_t *properties) {
    uint32_t size = 0, identifier = 0;
    mqtt_properties_none(properties);
    int error = mqtt_read_variable(reader, &size);
    if (BQ_UNLIKELY(error)) return error;
    if (BQ_LIKELY(size == 0)) return 0;
    if (mqtt_left(reader) < size) return MQTT_E_CUT;
    memset(properties, 0, sizeof *properties);
    properties->raw = (mqtt_text_t){reader->at, size};
    mqtt_reader_t inside = {reader->at, reader->at + size};
    while (inside.at < inside.end) {
        error = mqtt_read_variable(&inside, &identifier);
        if (error) return error;
        if (identifier >= ROWS || rows[identifier].kind == NO_PROPERTY) return MQTT_E_PROPERTY_UNKNOWN;
        if (!(rows[identifier].places >> place & 1)) return MQTT_E_PROPERTY_PLACE;
        const uint64_t bit = 1ull << identifier;
        if (properties->present & bit && rows[identifier].kind != PAIR) return MQTT_E_PROPERTY_TWICE;
        error = property_read(&inside, &rows[identifier], properties);
        if (error) return error;
        properties->present |= bit;
    }
    reader->at = inside.end;
    return 0;
}

/* ---- properties that were read before --------------------------------------------------------------------------------- */

/* The size of the property at the front of accepted bytes; its identifier has one byte. */
static uint32_t property_size(const uint8_t *at) {
    const uint8_t *end;
    switch (rows[at[0]].kind) {
    case BIT: return 2;
    case U16:
    case U16_NOT_0: return 3;
    case U32:
    case U32_NOT_0: return 5;
    case PAIR: end = at + 3 + load_be16(at + 1); return (uint32_t)(end - at) + 2u + load_be16(end);
    case STRING:
    case BINARY: return 3u + load_be16(at + 1);
    default:
        for (end = at + 1; *end & 0x80;) end++;
        return (uint32_t)(end + 1 - at);
    }
}

static bool is_for_the_broker(uint8_t identifier) {
    return identifier == MQTT_MESSAGE_EXPIRY || identifier == MQTT_TOPIC_ALIAS || identifier == MQTT_WILL_DELAY ||
           identifier == MQTT_SUBSCRIPTION_ID;
}

uint32_t mqtt_forward_write(uint8_t *out, const mqtt_properties_t *properties) {
    const uint8_t *at = properties->raw.bytes, *end = at + properties->raw.size;
    uint32_t written = 0;
    while (at < end) {
        uint32_t size = property_size(at);
        if (!is_for_the_broker(at[0])) {
            if (out) memcpy(out + written, at, size);
            written += size;
        }
        at += size;
    }
    return written;
}

bool mqtt_user_property_next(mqtt_text_t *rest, mqtt_text_t *name, mqtt_text_t *value) {
    while (rest->size) {
        const uint8_t *at = rest->bytes;
        uint32_t size = property_size(at);
        rest->bytes += size;
        rest->size -= size;
        if (at[0] != MQTT_USER_PROPERTY) continue;
        *name = (mqtt_text_t){at + 3, load_be16(at + 1)};
        at = name->bytes + name->size;
        *value = (mqtt_text_t){at + 2, load_be16(at)};
        return true;
    }
    return false;
}

/* ---- writing ---------------------------------------------------------------------------------------------------------- */

static mqtt_text_t text_of(const mqtt_properties_t *properties, const struct row *row) {
    mqtt_text_t text;
    memcpy(&text, (const uint8_t *)properties + row->field, sizeof text);
    return text;
}

static uint32_t number_of(const mqtt_properties_t *properties, const struct row *row) {
    uint32_t number;
    memcpy(&number, (const uint8_t *)properties + row->field, sizeof number);
    return number;
}

static uint64_t property_write_size(const mqtt_properties_t *properties, const struct row *row) {
    mqtt_text_t text;
    switch (row->kind) {
    case BIT: return 2;
    case U16:
    case U16_NOT_0: return 3;
    case U32:
    case U32_NOT_0: return 5;
    case VARIABLE: return 1 + mqtt_variable_size(number_of(properties, row));
    case PAIR: return text_of(properties, row).size;
    default: text = text_of(properties, row); return text.size > UINT16_MAX ? VARIABLE_MAX + 1ull : 3ull + text.size;
    }
}

static uint8_t *property_write_one(uint8_t *out, uint8_t identifier, const mqtt_properties_t *properties) {
    const struct row *row = &rows[identifier];
    const mqtt_text_t user = properties->user;
    if (row->kind == PAIR) return mqtt_write_bytes(out, user.bytes, user.size);
    *out++ = identifier;
    if (row->kind == STRING || row->kind == BINARY) return mqtt_write_binary(out, text_of(properties, row));
    const uint32_t number = number_of(properties, row);
    switch (row->kind) {
    case BIT: *out = (uint8_t)number; return out + 1;
    case U16:
    case U16_NOT_0: return store_be16(out, number);
    case VARIABLE: return mqtt_write_variable(out, number);
    default: store_be32(out, number); return out + 4;
    }
}

uint64_t mqtt_properties_size(const mqtt_properties_t *properties) {
    uint64_t size = 0;
    if (!properties) return 0;
    for (uint32_t identifier = 1; identifier < ROWS; identifier++)
        if (properties->present >> identifier & 1) size += property_write_size(properties, &rows[identifier]);
    return size;
}

uint8_t *mqtt_properties_write(uint8_t *out, const mqtt_properties_t *properties, uint32_t size) {
    out = mqtt_write_variable(out, size);
    if (!properties) return out;
    for (uint32_t identifier = 1; identifier < ROWS; identifier++)
        if (properties->present >> identifier & 1 && identifier != MQTT_USER_PROPERTY)
            out = property_write_one(out, (uint8_t)identifier, properties);
    return properties->present >> MQTT_USER_PROPERTY & 1 ? property_write_one(out, MQTT_USER_PROPERTY, properties) : out;
}
