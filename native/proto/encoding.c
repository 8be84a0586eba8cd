/* proto/encoding.c: QoS 0 messages in the encodings of all protocols. See proto/encoding.h.
 *
 * Invariant: encoding_write writes at most encoding_overhead bytes and the payload.
 */
#include "proto/encoding.h"
#include "proto/mqtt_bytes.h"
#include "proto/mqtt_codec.h"

#define VARIABLE_BYTES_MAX 4u /* of a length in MQTT */
#define EXPIRY_BYTES 5u       /* the property with its identifier */

static uint8_t version_of(enum encoding encoding) { return encoding == ENCODING_MQTT_5 ? MQTT_5 : MQTT_3_1_1; }

uint32_t encoding_template_size(enum encoding encoding, uint32_t topic_size) {
    if (encoding == ENCODING_BLIP) return header_template_size(topic_size);
    return mqtt_template_write(NULL, version_of(encoding), (mqtt_text_t){NULL, topic_size});
}

void encoding_template_write(enum encoding encoding, uint8_t *out, const uint8_t *topic, uint32_t topic_size) {
    if (encoding == ENCODING_BLIP)
        header_template_write(out, topic, topic_size);
    else
        mqtt_template_write(out, version_of(encoding), (mqtt_text_t){topic, topic_size});
}

uint32_t encoding_overhead(enum encoding encoding, uint32_t topic_size, uint32_t properties_size) {
    const message_t message = {.topic_size = topic_size, .properties_size = properties_size};
    switch (encoding) {
    case ENCODING_BLIP: return properties_size ? message_header_size(&message) : header_template_size(topic_size);
    case ENCODING_MQTT_5: return MQTT_HEADER_BYTES_MAX + 2 + topic_size + VARIABLE_BYTES_MAX + EXPIRY_BYTES + properties_size;
    default: return MQTT_HEADER_BYTES_MAX + 2 + topic_size;
    }
}

static uint32_t frame_write(uint8_t *out, const uint8_t *template, const message_t *message) {
    const uint32_t header_size = encoding_overhead(ENCODING_BLIP, message->topic_size, message->properties_size);
    if (BQ_UNLIKELY(message->properties_size)) {
        message_encode(out, message);
        message_mark_qos0(out);
        return header_size + message->payload_size;
    }
    memcpy(out, template, header_size);
    header_patch(out, header_size, message->id, message->timestamp_ms, message->ttl_ms, message->payload_size);
    if (message->payload_size) memcpy(out + header_size, message->payload, message->payload_size);
    return header_size + message->payload_size;
}

static uint32_t seconds_of(uint64_t ms) {
    const uint64_t seconds = ms / 1000 + (ms % 1000 > 0);
    return seconds < UINT32_MAX ? (uint32_t)seconds : UINT32_MAX;
}

/* The header of a message with an expiry or properties, which only MQTT 5 has. */
static uint32_t special_header(uint8_t *out, const message_t *message) {
    const mqtt_delivery_t delivery = {.topic = {message->topic, message->topic_size},
                                      .properties = {message->properties, message->properties_size},
                                      .payload_size = message->payload_size,
                                      .expiry_s = seconds_of(message->ttl_ms),
                                      .has_expiry = message->ttl_ms > 0,
                                      .version = MQTT_5};
    return mqtt_delivery_header(out, &delivery);
}

static uint32_t packet_write(enum encoding encoding, uint8_t *out, const uint8_t *template, const message_t *message) {
    uint32_t size;
    if (encoding == ENCODING_MQTT_5 && (message->ttl_ms || message->properties_size))
        size = special_header(out, message);
    else
        size = mqtt_template_header(out, false, template, encoding_template_size(encoding, message->topic_size),
                                    message->payload_size);
    core_assert(size); /* the largest message is smaller than the largest packet */
    if (message->payload_size) memcpy(out + size, message->payload, message->payload_size);
    return size + message->payload_size;
}

uint32_t encoding_write(enum encoding encoding, uint8_t *out, const uint8_t *template, const message_t *message) {
    if (encoding == ENCODING_BLIP) return frame_write(out, template, message);
    return packet_write(encoding, out, template, message);
}

uint32_t encoding_delivery_write(uint8_t *out, const encoding_delivery_t *delivery) {
    const message_t *message = &delivery->message;
    const mqtt_delivery_t packet = {.topic = {message->topic, message->topic_size},
                                    .properties = {message->properties, message->properties_size},
                                    .payload_size = message->payload_size,
                                    .expiry_s = delivery->expiry_s,
                                    .has_expiry = delivery->expiry_s > 0,
                                    .packet_id = delivery->packet_id,
                                    .version = version_of(delivery->encoding),
                                    .qos = delivery->qos,
                                    .dup = delivery->dup};
    const uint32_t size = mqtt_delivery_header(out, &packet);
    if (!size) return 0;
    if (out && message->payload_size) memcpy(out + size, message->payload, message->payload_size);
    return size + message->payload_size;
}

/* Read a packet that packet_write has written. */
static void packet_read(enum encoding encoding, const uint8_t *packet, message_t *message) {
    mqtt_reader_t reader = {packet + 1, packet + encoded_packet_size(packet)};
    mqtt_text_t topic = {0};
    uint32_t rest = 0, properties = 0;
    int error = mqtt_read_variable(&reader, &rest);
    error |= mqtt_read_binary(&reader, &topic);
    if (encoding == ENCODING_MQTT_5) error |= mqtt_read_variable(&reader, &properties);
    core_assert(!error && properties <= mqtt_left(&reader));
    reader.at += properties;
    *message = (message_t){
        .topic = topic.bytes, .topic_size = topic.size, .payload = reader.at, .payload_size = (uint32_t)mqtt_left(&reader)};
}

void encoding_read(enum encoding encoding, const uint8_t *encoded, message_t *message) {
    if (encoding == ENCODING_BLIP)
        message_read(encoded, message);
    else
        packet_read(encoding, encoded, message);
}
