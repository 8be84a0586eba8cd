/* net/websocket_codec.h: frames of RFC 6455: decoded in place, without memory of their own.
 *
 *      0               1               2 to 9           then     then
 *      FIN RSV opcode  MASK length     longer length    mask     payload
 *
 * The payloads of data frames are one stream for the protocol behind; the boundaries of messages mean nothing to it. A control
 * frame may stand between the fragments of a message, and is stored until it is complete.
 *
 * Invariant: nothing is accepted that RFC 6455 forbids a client. `to` never passes `from`.
 */
#ifndef BQ_WEBSOCKET_CODEC_H
#define BQ_WEBSOCKET_CODEC_H

#include "base/bytes.h"

#define WEBSOCKET_CONTROL_MAX 125u /* payload of a control frame */
#define WEBSOCKET_HEADER_MAX 14u   /* with a mask; without one: 10 */

enum websocket_opcode {
    WEBSOCKET_CONTINUATION = 0,
    WEBSOCKET_TEXT = 1,
    WEBSOCKET_BINARY = 2,
    WEBSOCKET_CLOSE = 8,
    WEBSOCKET_PING = 9,
    WEBSOCKET_PONG = 10
};

/* Close codes (RFC 6455, section 7.4.1, and the registry of IANA). */
enum websocket_code {
    WEBSOCKET_CODE_NORMAL = 1000,
    WEBSOCKET_CODE_GOING_AWAY = 1001,
    WEBSOCKET_CODE_PROTOCOL = 1002,
    WEBSOCKET_CODE_TEXT = 1003,
    WEBSOCKET_CODE_NONE = 1005, /* never sent: a Close without a code */
    WEBSOCKET_CODE_INVALID = 1007,
    WEBSOCKET_CODE_POLICY = 1008,
    WEBSOCKET_CODE_TOO_LARGE = 1009,
    WEBSOCKET_CODE_BROKEN = 1011,
    WEBSOCKET_CODE_OVERLOAD = 1013
};

typedef struct websocket_decoder {
    uint64_t left;      /* payload bytes of the current frame that have not come */
    uint64_t frame_max; /* longest payload of a data frame */
    uint64_t frames;    /* frames begun so far */
    uint32_t key;       /* the mask, rotated to the next payload byte */
    uint8_t opcode;     /* of the current frame */
    bool payload;       /* the header of the current frame is complete */
    bool fragmented;    /* a message has begun and not ended */
    uint8_t header_size, control_size;
    uint16_t code;      /* after WEBSOCKET_BAD: the close code */
    const char *reason; /* after WEBSOCKET_BAD: static text */
    uint8_t header[WEBSOCKET_HEADER_MAX];
    uint8_t control[WEBSOCKET_CONTROL_MAX]; /* payload of a control frame, unmasked */
} websocket_decoder_t;

enum websocket_event {
    WEBSOCKET_MORE,   /* everything is decoded */
    WEBSOCKET_PINGED, /* control[] and control_size hold the payload; so for the next two */
    WEBSOCKET_PONGED,
    WEBSOCKET_CLOSED,
    WEBSOCKET_BAD
};

/* Decode from *from on, at most up to `end`, and write the payloads of data frames at *to, which is at *from or before it.
 * Advances both. Returns at each control frame; call it again until WEBSOCKET_MORE. */
enum websocket_event websocket_decode(websocket_decoder_t *decoder, uint8_t **to, uint8_t **from, const uint8_t *end);

/* Header of a frame to a client, whole and not masked. Returns its size. */
uint32_t websocket_write_header(uint8_t *out, enum websocket_opcode opcode, uint64_t payload_size);
/* A Close; a reason that is too long is cut between two characters. At most WEBSOCKET_CONTROL_MAX + 2 bytes. */
uint32_t websocket_write_close(uint8_t *out, uint16_t code, const char *reason);

/* The payload of a client's Close: 0 if it is valid, otherwise the code to answer with. *code: its code, or
 * WEBSOCKET_CODE_NONE. */
uint16_t websocket_check_close(const uint8_t *payload, uint32_t size, uint16_t *code);

/* XOR `size` bytes with the mask, 16 at a time; `to` may overlap `from` if it is not behind it. Returns the key rotated to the
 * next byte. */
uint32_t websocket_unmask(uint8_t *to, const uint8_t *from, uint64_t size, uint32_t key);

#endif
