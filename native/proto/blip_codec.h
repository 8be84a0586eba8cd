/* proto/blip_codec.h: the wire. Reads and verifies ClientCommand bodies, checks topics and filters, writes SubAck and Reply. Messages: see
 * proto/encoding.h.
 *
 * Invariant: nothing in a body is used before its bounds have been shown; all arithmetic on wire values is in uint64_t.
 */
#ifndef BQ_FRAME_H
#define BQ_FRAME_H

#include "base/topic_name.h"
#include "proto/encoding.h"

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
