/* proto/encoding.h: a message and its encoded forms, each of which is written once and shared by all its receivers.
 *
 * The broker knows message_t. It stores, counts and sends encoded bytes, but only these functions read or change them.
 *
 * Invariant: an encoded message is one frame: its header, then its payload. Its first bytes tell its size.
 */
#ifndef BQ_ENCODING_H
#define BQ_ENCODING_H

#include "base/topic_name.h"

#define FRAME_HEADER_BYTES 5u /* u32 big-endian length and the type byte of a frame to the client */

/* Independent of any protocol. The pointers refer to the bytes of the caller. */
typedef struct message {
    const uint8_t *topic, *payload;
    const uint8_t *properties; /* properties of MQTT 5 without their length; passed on unchanged; NULL, 0: none */
    uint32_t topic_size, payload_size, properties_size;
    uint64_t id;
    uint64_t timestamp_ms; /* wall clock when it was accepted */
    uint64_t ttl_ms;       /* 0: no expiry */
} message_t;

/* In this order: each has all that the ones after it need, and is not smaller. So a message can be encoded again as any later
 * one, and limits of bytes that hold for the first one hold for all. */
enum encoding {
    ENCODING_BLIP,   /* a frame of BlipMQ's own protocol: blip_codec.c */
    ENCODING_MQTT_5, /* a PUBLISH packet: mqtt_writer.c */
    ENCODING_MQTT_3, /* a PUBLISH packet of MQTT 3.1 and 3.1.1 */
    ENCODINGS
};

/* The size of a packet of MQTT: a byte, a length of seven bits a byte with the lowest first, the bytes it counts. */
static inline uint32_t encoded_packet_size(const uint8_t *encoded) {
    uint32_t rest = 0, at = 1;
    do rest |= (uint32_t)(encoded[at] & 0x7f) << 7 * (at - 1);
    while (encoded[at++] & 0x80);
    return at + rest;
}

static inline uint32_t encoded_size(enum encoding encoding, const uint8_t *encoded) {
    return BQ_LIKELY(encoding == ENCODING_BLIP) ? 4 + load_be32(encoded) : encoded_packet_size(encoded);
}

/* ---- ENCODING_BLIP, QoS 1 or with properties: written for each message ---- */

uint32_t message_header_size(const message_t *message);      /* bytes before the payload's first byte */
void message_encode(uint8_t *out, const message_t *message); /* header and payload */
const uint8_t *message_topic(const uint8_t *encoded);
void message_decode(const uint8_t *encoded, message_t *message); /* reverse of message_encode */
/* The same for every message in ENCODING_BLIP, also of a header template. */
void message_read(const uint8_t *encoded, message_t *message);
void message_mark_redelivered(uint8_t *encoded);
void message_mark_qos0(uint8_t *encoded); /* for a subscriber with QoS 0, which sends no ACK */

/* ---- QoS 0, in any encoding ---- */

/* Most of a header is the same for all messages of a topic. `template` is this part. */
uint32_t encoding_template_size(enum encoding encoding, uint32_t topic_size);
void encoding_template_write(enum encoding encoding, uint8_t *out, const uint8_t *topic, uint32_t topic_size);
/* Bytes of a message besides its payload, at most. Exact for ENCODING_BLIP. */
uint32_t encoding_overhead(enum encoding encoding, uint32_t topic_size, uint32_t properties_size);
/* Returns the bytes written: header and payload. */
uint32_t encoding_write(enum encoding encoding, uint8_t *out, const uint8_t *template, const message_t *message);
/* What a later encoding needs of a message that one of these functions has written. ENCODING_BLIP: QoS 1 too. */
void encoding_read(enum encoding encoding, const uint8_t *encoded, message_t *message);

/* ---- QoS 1, in an encoding of MQTT: a copy for one subscriber ---- */

typedef struct encoding_delivery {
    message_t message;
    uint32_t expiry_s; /* 0: never */
    uint16_t packet_id;
    uint8_t encoding, qos;
    bool dup;
} encoding_delivery_t;

/* Returns the bytes written; `out` NULL: only that. 0: MQTT has no such packet. */
uint32_t encoding_delivery_write(uint8_t *out, const encoding_delivery_t *delivery);

/* ---- ENCODING_BLIP, QoS 0: a header template, copied and patched ---- */

uint32_t header_template_size(uint32_t topic_size);                                  /* bytes before the payload's first byte */
void header_template_write(uint8_t *out, const uint8_t *topic, uint32_t topic_size); /* everything except the values below */
const uint8_t *header_template_topic(const uint8_t *header);                         /* the topic's bytes in the template */
enum message_at { MESSAGE_ID = 24, MESSAGE_TIMESTAMP = 32, MESSAGE_TTL = 40, MESSAGE_PAYLOAD = 48, MESSAGE_TOPIC = 52 };
static inline void header_renumber(uint8_t *out, uint32_t header_size, uint64_t id, uint32_t payload_size) {
    store_be32(out, header_size - 4 + payload_size);
    store_u64(out + FRAME_HEADER_BYTES + MESSAGE_ID, id);
    store_u32(out + header_size - 4, payload_size);
}
static inline void header_patch(uint8_t *out, uint32_t header_size, uint64_t id, uint64_t timestamp_ms, uint64_t ttl_ms,
                                uint32_t payload_size) {
    header_renumber(out, header_size, id, payload_size);
    store_u64(out + FRAME_HEADER_BYTES + MESSAGE_TIMESTAMP, timestamp_ms);
    store_u64(out + FRAME_HEADER_BYTES + MESSAGE_TTL, ttl_ms);
}

/* ---- properties ---- */

/* Write one user property. Returns the bytes written: PROPERTY_BYTES(...). */
#define PROPERTY_BYTES(name, value) (5u + (name) + (value))
uint32_t property_write(uint8_t *out, const char *name, const uint8_t *value, uint32_t value_size);

#endif
