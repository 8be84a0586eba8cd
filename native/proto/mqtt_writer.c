/* proto/mqtt_writer.c: writes the packets of a server. See proto/mqtt_codec.h.
 *
 * Invariant: a function that is called with `out` writes as many bytes as it returns when it is called without.
 */
#include "proto/mqtt_codec.h"
#include "proto/mqtt_properties_codec.h"

/* The size of a packet with this body; 0: it is too large for MQTT. */
static uint32_t packet_size(uint64_t body) { return body > VARIABLE_MAX ? 0 : (uint32_t)(1 + mqtt_variable_size(body) + body); }

static uint8_t *header_write(uint8_t *out, uint8_t type, uint8_t flags, uint32_t body) {
    *out++ = (uint8_t)(type << 4 | flags);
    return mqtt_write_variable(out, body);
}

/* The size of properties with their length. */
static uint64_t block_size(uint64_t properties_size) { return mqtt_variable_size(properties_size) + properties_size; }

uint32_t mqtt_connack_write(uint8_t *out, uint8_t version, bool session_present, uint8_t reason,
                            const mqtt_properties_t *properties) {
    const bool codes = version < MQTT_5;
    const int code = codes ? mqtt_connack_code_3(reason) : reason;
    const uint64_t inside = codes ? 0 : mqtt_properties_size(properties), body = 2 + (codes ? 0 : block_size(inside));
    const uint32_t size = code < 0 ? 0 : packet_size(body);
    if (!out || !size) return size;
    out = header_write(out, MQTT_CONNACK, 0, (uint32_t)body);
    *out++ = session_present && reason == MQTT_SUCCESS && version != MQTT_3_1; /* [MQTT-3.2.2-6] */
    *out++ = (uint8_t)code;
    if (!codes) mqtt_properties_write(out, properties, (uint32_t)inside);
    return size;
}

/* The reason and the properties of MQTT 5, which a packet without them ends before. */
static uint64_t tail_size(uint8_t reason, uint64_t inside) { return inside ? 1 + block_size(inside) : reason ? 1 : 0; }

static void tail_write(uint8_t *out, uint8_t reason, const mqtt_properties_t *properties, uint64_t inside) {
    if (reason || inside) *out++ = reason;
    if (inside) mqtt_properties_write(out, properties, (uint32_t)inside);
}

uint32_t mqtt_ack_write(uint8_t *out, uint8_t version, uint8_t type, uint16_t packet_id, uint8_t reason,
                        const mqtt_properties_t *properties) {
    const bool plain = version < MQTT_5;
    const uint64_t inside = plain ? 0 : mqtt_properties_size(properties), body = 2 + (plain ? 0 : tail_size(reason, inside));
    const uint32_t size = packet_size(body);
    if (!out || !size) return size;
    out = store_be16(header_write(out, type, type == MQTT_PUBREL ? 2 : 0, (uint32_t)body), packet_id);
    if (!plain) tail_write(out, reason, properties, inside);
    return size;
}

uint32_t mqtt_suback_write(uint8_t *out, uint8_t version, uint8_t type, uint16_t packet_id, const uint8_t *codes, uint32_t count,
                           const mqtt_properties_t *properties) {
    const bool older = version < MQTT_5;
    const uint64_t inside = older ? 0 : mqtt_properties_size(properties);
    if (older && type == MQTT_UNSUBACK) count = 0;
    const uint64_t body = 2 + (older ? 0 : block_size(inside)) + count;
    const uint32_t size = packet_size(body);
    if (!out || !size) return size;
    out = store_be16(header_write(out, type, 0, (uint32_t)body), packet_id);
    if (!older) out = mqtt_properties_write(out, properties, (uint32_t)inside);
    for (uint32_t i = 0; i < count; i++) *out++ = older && codes[i] > 0x80 ? 0x80 : codes[i];
    return size;
}

uint32_t mqtt_pingresp_write(uint8_t *out) {
    if (out) header_write(out, MQTT_PINGRESP, 0, 0);
    return 2;
}

uint32_t mqtt_goodbye_write(uint8_t *out, uint8_t type, uint8_t reason, const mqtt_properties_t *properties) {
    const uint64_t inside = mqtt_properties_size(properties), body = tail_size(reason, inside);
    const uint32_t size = packet_size(body);
    if (out && size) tail_write(header_write(out, type, 0, (uint32_t)body), reason, properties, inside);
    return size;
}

/* ---- PUBLISH ---------------------------------------------------------------------------------------------------------- */

uint32_t mqtt_template_write(uint8_t *out, uint8_t version, mqtt_text_t topic) {
    if (topic.size > UINT16_MAX) return 0;
    if (out) out = mqtt_write_binary(out, topic);
    if (out && version >= MQTT_5) *out = 0;
    return 2 + topic.size + (version >= MQTT_5);
}

uint32_t mqtt_template_header(uint8_t *out, bool retain, const uint8_t *header, uint32_t header_size, uint32_t payload_size) {
    const uint64_t body = (uint64_t)header_size + payload_size;
    if (body > VARIABLE_MAX) return 0;
    if (out) mqtt_write_bytes(header_write(out, MQTT_PUBLISH, retain, (uint32_t)body), header, header_size);
    return 1 + mqtt_variable_size(body) + header_size;
}

static uint64_t delivery_properties_size(const mqtt_delivery_t *delivery) {
    uint64_t size = (delivery->has_expiry ? 5u : 0u) + (delivery->topic_alias ? 3u : 0u) + (uint64_t)delivery->properties.size;
    for (uint32_t i = 0; i < delivery->subscription_id_count; i++) size += 1 + mqtt_variable_size(delivery->subscription_ids[i]);
    return size;
}

/* The expiry comes first, at a place that can be found again. The sender's properties come last, in the sender's order
 * [MQTT-3.3.2-18]. */
static uint8_t *delivery_properties_write(uint8_t *out, const mqtt_delivery_t *delivery, uint32_t size) {
    out = mqtt_write_variable(out, size);
    if (delivery->has_expiry) {
        *out++ = MQTT_MESSAGE_EXPIRY;
        store_be32(out, delivery->expiry_s);
        out += 4;
    }
    if (delivery->topic_alias) {
        *out++ = MQTT_TOPIC_ALIAS;
        out = store_be16(out, delivery->topic_alias);
    }
    for (uint32_t i = 0; i < delivery->subscription_id_count; i++) {
        *out++ = MQTT_SUBSCRIPTION_ID;
        out = mqtt_write_variable(out, delivery->subscription_ids[i]);
    }
    return mqtt_write_bytes(out, delivery->properties.bytes, delivery->properties.size);
}

uint32_t mqtt_delivery_header(uint8_t *out, const mqtt_delivery_t *delivery) {
    const bool newer = delivery->version >= MQTT_5;
    const uint64_t inside = newer ? delivery_properties_size(delivery) : 0;
    const uint64_t front = 2ull + delivery->topic.size + (delivery->qos ? 2u : 0u) + (newer ? block_size(inside) : 0);
    const uint64_t body = front + delivery->payload_size;
    if (delivery->topic.size > UINT16_MAX || inside > VARIABLE_MAX || body > VARIABLE_MAX) return 0;
    if (out) {
        const uint8_t flags = (uint8_t)(delivery->dup << 3 | delivery->qos << 1 | delivery->retain);
        out = mqtt_write_binary(header_write(out, MQTT_PUBLISH, flags, (uint32_t)body), delivery->topic);
        if (delivery->qos) out = store_be16(out, delivery->packet_id);
        if (newer) delivery_properties_write(out, delivery, (uint32_t)inside);
    }
    return (uint32_t)(1 + mqtt_variable_size(body) + front);
}

static uint32_t length_bytes(const uint8_t *at) {
    uint32_t bytes = 1;
    while (at[bytes - 1] & 0x80) bytes++;
    return bytes;
}

uint32_t mqtt_delivery_expiry_at(const uint8_t *header, uint32_t topic_size, uint8_t qos) {
    uint32_t at = 1 + length_bytes(header + 1) + 2 + topic_size + (qos ? 2 : 0);
    return at + length_bytes(header + at) + 1;
}
