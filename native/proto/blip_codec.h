/* proto/blip_codec.h: the wire. Reads and verifies ClientCommand bodies, checks topics and filters, writes SubAck, Message and Reply.
 *
 * Invariant: nothing in a body is used before its bounds have been shown; all arithmetic on wire values is in uint64_t.
 */
#ifndef BQ_FRAME_H
#define BQ_FRAME_H

#include "base/bytes.h"

enum frame_action {
    FRAME_PUB,
    FRAME_SUB,
    FRAME_UNSUB,
    FRAME_QUIT,
    FRAME_HELLO,
    FRAME_ACK,
    FRAME_PING,
    FRAME_INFO,
    FRAME_ADMIN = 9
};

#define FRAME_TOPIC_BYTES_MAX 256u
#define FRAME_HEADER_BYTES 5u /* u32 big-endian length and the type byte of a frame to the client */

/* Verify one ClientCommand body (what follows the length): structure, every present field's bounds, action and qos range,
 * NUL-terminated strings. Topics are not read here: the publish path knows most of them already (see topic_check).
 * Returns 0, or a negative code for frame_error. View pointers point into body; absent strings and vectors are NULL, 0. */
int frame_verify(const uint8_t *body, uint32_t size, bq_view_t *view);

/* The whole check of one command, as bq_decode does it: frame_verify, then topic_check or filter_check as the action asks
 * and UTF-8 for client_id and group. PUB needs a topic, SUB and UNSUB a filter; other actions may carry none. */
int frame_check(const uint8_t *body, uint32_t size, bq_view_t *view);
int frame_check_fields(const bq_view_t *view); /* the second half of frame_check, for a view that frame_verify filled */

/* Where a verified publish has its payload. APART: nothing else that is read lies in it, so other bytes there change nothing.
 * LAST: all else lies before it, so another length of it changes nothing either. */
enum frame_payload { PAYLOAD_MIXED, PAYLOAD_APART, PAYLOAD_LAST };
enum frame_payload frame_payload_place(const uint8_t *body, const bq_view_t *view);

const char *frame_error(int code);   /* one phrase, never NULL */
bool frame_error_is_fatal(int code); /* the frame cannot be verified, so the connection must end (protocol.md) */

int topic_check(const uint8_t *topic, uint32_t size);   /* 0 or a negative code */
int filter_check(const uint8_t *filter, uint32_t size); /* 0 literal, 1 dot dialect, 2 slash dialect, or a negative code */
int levels_check(const uint8_t *name, uint32_t size,
                 uint32_t levels_max); /* 0 or a code; the first level of the broker's own topics ($dlq) is not counted */
int filter_match(const uint8_t *filter, uint32_t filter_size, const uint8_t *topic, uint32_t topic_size);
int filter_matches(int dialect, const uint8_t *filter, uint32_t filter_size, const uint8_t *topic,
                   uint32_t topic_size); /* the same for a filter that has been checked: 1 or 0 */

/* Message frames of one topic share everything up to the payload: encode that once per topic, then patch and copy. */
uint32_t message_prefix_size(uint32_t topic_size);                                  /* bytes before the payload's first byte */
void message_prefix_write(uint8_t *out, const uint8_t *topic, uint32_t topic_size); /* everything but the values below */
const uint8_t *message_prefix_name(const uint8_t *prefix);                          /* the topic's bytes inside the prefix */
enum message_at { MESSAGE_ID = 24, MESSAGE_TIMESTAMP = 32, MESSAGE_TTL = 40, MESSAGE_PAYLOAD = 48, MESSAGE_TOPIC = 52 };
static inline void message_prefix_renumber(uint8_t *out, uint32_t prefix_size, uint64_t id, uint32_t payload_size) {
    store_be32(out, prefix_size - 4 + payload_size);
    store_u64(out + FRAME_HEADER_BYTES + MESSAGE_ID, id);
    store_u32(out + prefix_size - 4, payload_size);
}
static inline void message_prefix_patch(uint8_t *out, uint32_t prefix_size, uint64_t id, uint64_t timestamp_ms, uint64_t ttl_ms,
                                        uint32_t payload_size) {
    message_prefix_renumber(out, prefix_size, id, payload_size);
    store_u64(out + FRAME_HEADER_BYTES + MESSAGE_TIMESTAMP, timestamp_ms);
    store_u64(out + FRAME_HEADER_BYTES + MESSAGE_TTL, ttl_ms);
}

/* The same for QoS 1: two more fields, so that a subscriber knows to acknowledge, and whether it may have seen it before. */
uint32_t message_qos1_prefix_size(uint32_t topic_size);
void message_qos1_write(uint8_t *out, const uint8_t *topic, uint32_t topic_size, uint64_t id, uint64_t timestamp_ms,
                        uint64_t ttl_ms, uint32_t payload_size, bool redelivered); /* all but the payload's bytes */
void message_qos1_mark_redelivered(uint8_t *frame);
void message_qos1_mark_qos0(uint8_t *frame); /* for a subscriber who has nothing to acknowledge */
const uint8_t *message_qos1_name(const uint8_t *frame);
uint32_t message_qos1_name_size(const uint8_t *frame);
const uint8_t *message_qos1_payload(const uint8_t *frame);
uint32_t message_qos1_payload_size(const uint8_t *frame);

/* A message that may have properties: MQTT 5's, without the length in front. Without any it is what message_qos1_write makes; with some
 * it has all that the functions of QoS 1 messages look for. */
typedef struct message_head {
    const uint8_t *topic, *properties;
    uint32_t topic_size, properties_size, payload_size;
    uint64_t id, timestamp_ms, ttl_ms;
} message_head_t;
void message_head_write(uint8_t *out, const message_head_t *head);
uint32_t message_properties_prefix_size(uint32_t topic_size, uint32_t properties_size);
static inline uint32_t message_head_size(const message_head_t *head) { /* bytes before the payload's first byte */
    if (BQ_LIKELY(!head->properties_size)) return message_qos1_prefix_size(head->topic_size);
    return message_properties_prefix_size(head->topic_size, head->properties_size);
}

/* One user property: its name, its value. Returns the bytes written, PROPERTY_BYTES(...) of them. */
#define PROPERTY_BYTES(name, value) (5u + (name) + (value))
uint32_t property_write(uint8_t *out, const char *name, const uint8_t *value, uint32_t value_size);
uint64_t message_qos1_timestamp(const uint8_t *frame);

/* Both return the bytes written and need FRAME_REPLY_BYTES_MAX(...) of room. */
#define FRAME_REPLY_BYTES_MAX(text, payload) (96u + (text) + (payload))
uint32_t frame_write_suback(uint8_t *out, uint64_t seq, uint16_t code, const uint8_t *topic, uint32_t topic_size,
                            const char *info);
/* The Reply to a HELLO that is admitted; keepalive_ms is left out if it is 0. */
uint32_t frame_write_welcome(uint8_t *out, uint64_t seq, const uint8_t *text, uint32_t text_size, uint64_t keepalive_ms);
/* The Reply to a QoS 1 publish: for how many subscriptions it was stored is said even if there is none. */
uint32_t frame_write_published(uint8_t *out, uint64_t seq, uint64_t id, uint64_t subscriptions);
uint32_t frame_write_reply(uint8_t *out, uint64_t seq, uint16_t code, const uint8_t *text, uint32_t text_size, uint64_t id,
                           const uint8_t *payload, uint32_t payload_size);

#endif
