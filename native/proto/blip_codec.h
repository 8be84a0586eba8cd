/* proto/blip_codec.h: the wire format. Reads and verifies ClientCommand bodies, checks topics and filters, writes SubAck and
 * Reply. Messages: see proto/encoding.h.
 *
 * Invariant: no byte of a body is used before its bounds are checked. All arithmetic on wire values uses uint64_t.
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

/* Verify one ClientCommand body (without the length in front): its structure, the bounds of every field, the range of action
 * and qos, NUL-terminated strings. Topics are not checked here, because the publish path has checked most of them before
 * (see topic_check). Returns 0, or a negative code for frame_error. Pointers in the view point into body; absent strings and
 * vectors are NULL, 0. */
int frame_verify(const uint8_t *body, uint32_t size, bq_view_t *view);

/* The full check of one command, as in bq_decode: frame_verify, then topic_check or filter_check depending on the action,
 * then UTF-8 of client_id and group. PUB needs a topic, SUB and UNSUB need a filter, other actions need neither. */
int frame_check(const uint8_t *body, uint32_t size, bq_view_t *view);
int frame_check_fields(const bq_view_t *view); /* the second half of frame_check, for a view filled by frame_verify */

/* Position of the payload in a verified publish. APART: no other field overlaps it, so its bytes do not change other fields.
 * LAST: in addition, all other fields are before it, so its length does not change them either. */
enum frame_payload { PAYLOAD_MIXED, PAYLOAD_APART, PAYLOAD_LAST };
enum frame_payload frame_payload_place(const uint8_t *body, const bq_view_t *view);

const char *frame_error(int code);   /* one phrase, never NULL */
bool frame_error_is_fatal(int code); /* the frame cannot be verified, so the connection must end (docs/PROTOCOL.md) */

/* These functions return the bytes written and need FRAME_REPLY_BYTES_MAX(...) bytes of space. */
#define FRAME_REPLY_BYTES_MAX(text, payload) (96u + (text) + (payload))
uint32_t frame_write_suback(uint8_t *out, uint64_t seq, uint16_t code, const uint8_t *topic, uint32_t topic_size,
                            const char *info);
/* The Reply to an accepted HELLO. keepalive_ms is omitted if it is 0. */
uint32_t frame_write_welcome(uint8_t *out, uint64_t seq, const uint8_t *text, uint32_t text_size, uint64_t keepalive_ms);
/* The Reply to a QoS 1 publish. The number of subscriptions is present even if it is 0. */
uint32_t frame_write_published(uint8_t *out, uint64_t seq, uint64_t id, uint64_t subscriptions);
uint32_t frame_write_reply(uint8_t *out, uint64_t seq, uint16_t code, const uint8_t *text, uint32_t text_size, uint64_t id,
                           const uint8_t *payload, uint32_t payload_size);

#endif
