/* proto/mqtt_codec.c: reads the packets of clients, except CONNECT (proto/mqtt_connect.c). See proto/mqtt_codec.h. */
#include "proto/mqtt_codec.h"
#include "proto/mqtt_properties_codec.h"

/* ---- the fixed header ------------------------------------------------------------------------------------------------- */

static const struct {
    uint8_t flags; /* the only value that the type allows [MQTT-2.1.3-1]; a PUBLISH has others */
    bool of_client;
} types[16] = {
    [MQTT_CONNECT] = {0, true},   [MQTT_CONNACK] = {0, false},   [MQTT_PUBLISH] = {0, true},     [MQTT_PUBACK] = {0, true},
    [MQTT_PUBREC] = {0, true},    [MQTT_PUBREL] = {2, true},     [MQTT_PUBCOMP] = {0, true},     [MQTT_SUBSCRIBE] = {2, true},
    [MQTT_SUBACK] = {0, false},   [MQTT_UNSUBACK] = {0, false},  [MQTT_UNSUBSCRIBE] = {2, true}, [MQTT_PINGREQ] = {0, true},
    [MQTT_PINGRESP] = {0, false}, [MQTT_DISCONNECT] = {0, true}, [MQTT_AUTH] = {0, true},
};

static NOINLINE int type_check(uint8_t type, uint8_t flags, uint8_t version) {
    if (type == 0 || (type == MQTT_AUTH && version && version < MQTT_5)) return MQTT_E_TYPE;
    /* 3.1 has a DUP flag in more packets */
    if (types[type].flags != flags && version != MQTT_3_1) return MQTT_E_FLAGS;
    return types[type].of_client ? 0 : MQTT_E_SENDER;
}

int mqtt_frame_read(const uint8_t *bytes, uint32_t size, uint8_t version, uint32_t packet_bytes_max, mqtt_frame_t *frame) {
    if (size == 0) return 0;
    frame->type = bytes[0] >> 4;
    frame->flags = bytes[0] & 0x0f;
    if (BQ_UNLIKELY(frame->type != MQTT_PUBLISH)) {
        int error = type_check(frame->type, frame->flags, version);
        if (error) return error;
    }
    mqtt_reader_t reader = {bytes + 1, bytes + size};
    int error = mqtt_read_variable(&reader, &frame->body_size);
    frame->wasteful = BQ_UNLIKELY(error == MQTT_E_LENGTH && !(reader.at[-1] & 0x80));
    if (BQ_UNLIKELY(error)) {
        if (error == MQTT_E_CUT) return 0;
        if (!frame->wasteful || version >= MQTT_5) return error;
    }
    frame->header_size = (uint8_t)(reader.at - bytes);
    return BQ_UNLIKELY((uint64_t)frame->header_size + frame->body_size > packet_bytes_max) ? MQTT_E_TOO_LARGE
                                                                                           : frame->header_size;
}

static mqtt_reader_t reader_of(const mqtt_frame_t *frame, const uint8_t *body) {
    return (mqtt_reader_t){body, body + frame->body_size};
}

static int packet_id_read(mqtt_reader_t *reader, uint16_t *packet_id) {
    uint32_t value = 0;
    int error = mqtt_read_u16(reader, &value);
    *packet_id = (uint16_t)value;
    return error;
}

/* ---- PUBLISH ---------------------------------------------------------------------------------------------------------- */

static NOINLINE int publish_properties_read(mqtt_reader_t *reader, mqtt_publish_t *publish) {
    mqtt_properties_t *properties = &publish->properties;
    int error = mqtt_properties_read(reader, MQTT_PUBLISH, properties);
    if (error) return error;
    if (mqtt_has(properties, MQTT_SUBSCRIPTION_ID)) return MQTT_E_PROPERTY_SENDER; /* [MQTT-3.3.4-6] */
    if (mqtt_has(properties, MQTT_TOPIC_ALIAS) && properties->topic_alias == 0) return MQTT_E_ALIAS;
    if (mqtt_has(properties, MQTT_RESPONSE_TOPIC)) /* [MQTT-3.3.2-14] */
        return mqtt_topic_check(properties->response_topic.bytes, properties->response_topic.size, UINT16_MAX);
    return 0;
}

int mqtt_publish_read(const mqtt_frame_t *frame, const uint8_t *body, uint8_t version, mqtt_publish_t *publish) {
    mqtt_reader_t reader = reader_of(frame, body);
    publish->qos = frame->flags >> 1 & 3;
    publish->dup = frame->flags >> 3;
    publish->retain = frame->flags & 1;
    publish->packet_id = 0;
    if (BQ_UNLIKELY(publish->qos == 3)) return MQTT_E_PUBLISH_QOS;                 /* [MQTT-3.3.1-4] */
    if (BQ_UNLIKELY(publish->dup && publish->qos == 0)) return MQTT_E_PUBLISH_DUP; /* [MQTT-3.3.1-2] */
    if (BQ_UNLIKELY(mqtt_read_binary(&reader, &publish->topic))) return MQTT_E_CUT;
    if (publish->qos) {
        if (BQ_UNLIKELY(packet_id_read(&reader, &publish->packet_id))) return MQTT_E_CUT;
        if (BQ_UNLIKELY(publish->packet_id == 0)) return MQTT_E_PACKET_ID; /* [MQTT-2.2.1-3] */
    }
    if (version >= MQTT_5 && BQ_LIKELY(mqtt_left(&reader)) && BQ_LIKELY(*reader.at == 0)) {
        reader.at++;
        mqtt_properties_none(&publish->properties);
    } else if (version >= MQTT_5) {
        int error = publish_properties_read(&reader, publish);
        if (error) return error;
    } else {
        mqtt_properties_none(&publish->properties);
    }
    if (BQ_UNLIKELY(publish->topic.size == 0) && !mqtt_has(&publish->properties, MQTT_TOPIC_ALIAS)) return MQTT_E_TOPIC_EMPTY;
    publish->payload = (mqtt_text_t){reader.at, (uint32_t)mqtt_left(&reader)};
    return 0;
}

/* ---- PUBACK, PUBREC, PUBREL, PUBCOMP, DISCONNECT, AUTH ------------------------------------------------------------------ */

/* Reason codes from 0x80 on that a client may send, as bits. */
#define CODE(reason) (1ull << (MQTT_##reason - 0x80))
#define PUBLISH_CODES                                                                                                            \
    (CODE(UNSPECIFIED_ERROR) | CODE(IMPLEMENTATION_SPECIFIC_ERROR) | CODE(NOT_AUTHORIZED) | CODE(TOPIC_NAME_INVALID) |           \
     CODE(PACKET_IDENTIFIER_IN_USE) | CODE(QUOTA_EXCEEDED) | CODE(PAYLOAD_FORMAT_INVALID))
#define RELEASE_CODES CODE(PACKET_IDENTIFIER_NOT_FOUND)
#define DISCONNECT_CODES                                                                                                         \
    (CODE(UNSPECIFIED_ERROR) | CODE(MALFORMED_PACKET) | CODE(PROTOCOL_ERROR) | CODE(IMPLEMENTATION_SPECIFIC_ERROR) |             \
     CODE(TOPIC_NAME_INVALID) | CODE(RECEIVE_MAXIMUM_EXCEEDED) | CODE(TOPIC_ALIAS_INVALID) | CODE(PACKET_TOO_LARGE) |            \
     CODE(MESSAGE_RATE_TOO_HIGH) | CODE(QUOTA_EXCEEDED) | CODE(ADMINISTRATIVE_ACTION) | CODE(PAYLOAD_FORMAT_INVALID))

static bool reason_is_of_client(uint8_t type, uint8_t reason) {
    const uint64_t bit = reason >= 0x80 && reason < 0xc0 ? 1ull << (reason - 0x80) : 0;
    switch (type) {
    case MQTT_PUBACK:
    case MQTT_PUBREC: return reason == MQTT_SUCCESS || reason == MQTT_NO_MATCHING_SUBSCRIBERS || (bit & PUBLISH_CODES);
    case MQTT_PUBREL:
    case MQTT_PUBCOMP: return reason == MQTT_SUCCESS || (bit & RELEASE_CODES);
    case MQTT_DISCONNECT: return reason == MQTT_SUCCESS || reason == MQTT_DISCONNECT_WITH_WILL || (bit & DISCONNECT_CODES);
    default: return reason == MQTT_CONTINUE_AUTHENTICATION || reason == MQTT_REAUTHENTICATE;
    }
}

/* MQTT 5: a reason and properties, which a packet may end before. */
static int reason_read(mqtt_reader_t *reader, uint8_t type, mqtt_result_t *result) {
    if (mqtt_left(reader)) result->reason = *reader->at++;
    if (!reason_is_of_client(type, result->reason)) return MQTT_E_REASON;
    return mqtt_left(reader) ? mqtt_properties_read(reader, type, &result->properties) : 0;
}

int mqtt_result_read(const mqtt_frame_t *frame, const uint8_t *body, uint8_t version, mqtt_result_t *result) {
    mqtt_reader_t reader = reader_of(frame, body);
    const bool has_id = frame->type != MQTT_DISCONNECT && frame->type != MQTT_AUTH;
    mqtt_properties_none(&result->properties);
    result->packet_id = 0;
    result->reason = MQTT_SUCCESS;
    if (has_id && packet_id_read(&reader, &result->packet_id)) return MQTT_E_CUT;
    if (has_id && result->packet_id == 0) return MQTT_E_PACKET_ID;
    if (version >= MQTT_5) {
        int error = reason_read(&reader, frame->type, result);
        if (error) return error;
        const bool method = mqtt_has(&result->properties, MQTT_AUTHENTICATION_METHOD);
        if (frame->type == MQTT_AUTH && !method) return MQTT_E_AUTH_METHOD;
        if (mqtt_has(&result->properties, MQTT_SERVER_REFERENCE)) return MQTT_E_PROPERTY_SENDER;
    }
    return mqtt_left(&reader) ? MQTT_E_EXTRA : 0;
}

int mqtt_pingreq_read(const mqtt_frame_t *frame) { return frame->body_size ? MQTT_E_EXTRA : 0; }

/* ---- SUBSCRIBE, UNSUBSCRIBE ------------------------------------------------------------------------------------------- */

static void options_set(mqtt_filter_t *filter, uint8_t options) {
    filter->qos = options & 3;
    filter->no_local = options >> 2 & 1;
    filter->retain_as_published = options >> 3 & 1;
    filter->retain_handling = options >> 4 & 3;
}

static int options_check(const mqtt_filter_t *filter, uint8_t options, uint8_t version) {
    if (options & (version >= MQTT_5 ? 0xc0 : 0xfc)) return MQTT_E_OPTIONS; /* [MQTT-3.8.3-5] */
    if (filter->qos == 3) return MQTT_E_OPTION_QOS;
    if (filter->retain_handling == 3) return MQTT_E_OPTION_RETAIN;
    return filter->no_local && filter->group.size ? MQTT_E_SHARE_NO_LOCAL : 0; /* [MQTT-3.8.3-4] */
}

static int filters_read(mqtt_reader_t *reader, uint8_t type, uint8_t version, uint32_t filter_bytes_max, uint32_t *count) {
    mqtt_text_t text;
    mqtt_filter_t filter;
    uint32_t options = 0;
    for (*count = 0; mqtt_left(reader); ++*count) {
        int error = mqtt_read_binary(reader, &text);
        if (!error && type == MQTT_SUBSCRIBE) error = mqtt_read_u8(reader, &options);
        if (!error) error = mqtt_filter_check(text.bytes, text.size, filter_bytes_max, &filter);
        if (error) return error;
        if (type != MQTT_SUBSCRIBE) continue;
        options_set(&filter, (uint8_t)options);
        error = options_check(&filter, (uint8_t)options, version);
        if (error) return error;
    }
    return *count ? 0 : MQTT_E_FILTER_MISSING; /* [MQTT-3.8.3-2] */
}

int mqtt_subscribe_read(const mqtt_frame_t *frame, const uint8_t *body, uint8_t version, uint32_t filter_bytes_max,
                        mqtt_subscribe_t *subscribe) {
    mqtt_reader_t reader = reader_of(frame, body);
    mqtt_properties_none(&subscribe->properties);
    if (packet_id_read(&reader, &subscribe->packet_id)) return MQTT_E_CUT;
    if (subscribe->packet_id == 0) return MQTT_E_REQUEST_ID; /* [MQTT-2.2.1-3] */
    int error = version >= MQTT_5 ? mqtt_properties_read(&reader, frame->type, &subscribe->properties) : 0;
    if (error) return error;
    subscribe->filters = (mqtt_text_t){reader.at, (uint32_t)mqtt_left(&reader)};
    return filters_read(&reader, frame->type, version, filter_bytes_max, &subscribe->count);
}

bool mqtt_filter_next(mqtt_text_t *rest, uint8_t type, mqtt_filter_t *filter) {
    if (!rest->size) return false;
    const uint32_t size = load_be16(rest->bytes), whole = 2 + size + (type == MQTT_SUBSCRIBE);
    mqtt_filter_check(rest->bytes + 2, size, UINT16_MAX, filter);
    if (type == MQTT_SUBSCRIBE) options_set(filter, rest->bytes[2 + size]);
    rest->bytes += whole;
    rest->size -= whole;
    return true;
}
