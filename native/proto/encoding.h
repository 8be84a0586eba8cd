/* proto/encoding.h: a message, and how it lies in a buffer, encoded once for all who get it.
 *
 * The broker knows message_t. Encoded bytes it stores, counts, sends and hands back to these functions, which alone look into them. There
 * is one encoding so far, BlipMQ's own (blip_codec.c).
 *
 * Invariant: an encoded message is one frame: its header, then its payload, which ends it.
 */
#ifndef BQ_ENCODING_H
#define BQ_ENCODING_H

#include "base/topic_name.h"

#define FRAME_HEADER_BYTES 5u /* u32 big-endian length and the type byte of a frame to the client */

/* No protocol's: pointers into whatever holds the bytes. */
typedef struct message {
    const uint8_t *topic, *payload;
    const uint8_t *properties; /* MQTT 5's, without the length in front: the broker passes them on; NULL, 0: none */
    uint32_t topic_size, payload_size, properties_size;
    uint64_t id;
    uint64_t timestamp_ms; /* wall clock of its acceptance */
    uint64_t ttl_ms;       /* 0: for ever */
} message_t;

static inline uint32_t encoded_size(const uint8_t *encoded) { return 4 + load_be32(encoded); } /* of one frame */

/* ---- QoS 1: written for each message ---- */

uint32_t message_header_size(const message_t *message);      /* bytes before the payload's first byte */
void message_encode(uint8_t *out, const message_t *message); /* header and payload */
const uint8_t *message_topic(const uint8_t *encoded);
void message_decode(const uint8_t *encoded, message_t *message); /* what message_encode wrote; properties are left out */
void message_mark_redelivered(uint8_t *encoded);
void message_mark_qos0(uint8_t *encoded); /* for a subscriber who has nothing to acknowledge */

/* ---- QoS 0: everything up to the payload is the same for one topic: a template, patched and copied ---- */

uint32_t header_template_size(uint32_t topic_size);                                  /* bytes before the payload's first byte */
void header_template_write(uint8_t *out, const uint8_t *topic, uint32_t topic_size); /* everything but the values below */
const uint8_t *header_template_topic(const uint8_t *header);                         /* the topic's bytes inside it */
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

/* One user property: its name, its value. Returns the bytes written, PROPERTY_BYTES(...) of them. */
#define PROPERTY_BYTES(name, value) (5u + (name) + (value))
uint32_t property_write(uint8_t *out, const char *name, const uint8_t *value, uint32_t value_size);

#endif
