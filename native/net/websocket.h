/* net/websocket.h: a layer between a transport and a protocol: the handshake over HTTP, then frames.
 *
 *      transport --bytes--> websocket --payloads, in place--> input.c --> protocol
 *      transport <--[rest][control][header][runs of the queue]-- websocket <-- queue
 *
 *      HANDSHAKE --(the request is accepted)--> OPEN --(Close came, or a frame is refused)--> DEAF
 *
 * A frame to the client announces its length, but a queue may drop messages that are not sent yet. So the part of a begun
 * frame that the transport has not taken leaves the queue at once: it is copied to `rest` and goes first. A frame covers at most
 * WEBSOCKET_FRAME_BYTES, and so does this copy.
 *
 * Invariant: bytes in `rest` are never changed or dropped, and nothing is sent before them. In HANDSHAKE the connection's input
 * buffer has the incomplete request; afterwards it has only payloads.
 */
#ifndef BQ_WEBSOCKET_H
#define BQ_WEBSOCKET_H

#include "net/connection.h"
#include "net/websocket_codec.h"
#include "net/websocket_handshake.h"

#define WEBSOCKET_FRAME_BYTES (64u << 10) /* payload of one frame to a client */
#define WEBSOCKET_READ_BYTES (128u << 10) /* read limit: decoded input should still be in the processor's cache */
#define WEBSOCKET_LEAD_BYTES 144u         /* one control frame and one header */

enum websocket_state { WEBSOCKET_HANDSHAKE, WEBSOCKET_OPEN, WEBSOCKET_DEAF };

typedef struct websocket {
    websocket_decoder_t decoder;
    const websocket_path_t *path; /* of its listener */
    uint8_t *rest;                /* bytes that go first: rest_size from rest_start */
    uint32_t rest_start, rest_size, rest_capacity;
    uint32_t lead_size;   /* of the output gathered last: a Pong and a header */
    uint32_t pong_bytes;  /* of these, the Pong */
    uint32_t frame_bytes; /* of the output gathered last: payload from the queue */
    uint16_t code;        /* close code, if the layer decided it; 0: from the connection's close code */
    uint8_t state;
    bool close_sent;                     /* its Close is in `rest` or has left: nothing follows */
    bool cut;                            /* the head of the queue is partly sent */
    bool cutting;                        /* it will be, if the output gathered last leaves */
    bool pong_due;                       /* pong[] answers the last Ping */
    uint8_t pong_size;                   /* of pong[] */
    uint8_t pong[WEBSOCKET_CONTROL_MAX]; /* payload */
} websocket_t;

struct iovec;

/* A connection that has just been opened speaks WebSocket. It is closed if there is no memory. */
void websocket_begin(struct net *net, connection_t *connection);
void websocket_end(struct net *net, connection_t *connection); /* frees the layer's memory */

/* For net/transport_io.h. */
uint32_t websocket_input_limit(const connection_t *connection, uint32_t limit);
void websocket_received(struct net *net, connection_t *connection, uint8_t *bytes, uint32_t kept, uint32_t got);
int websocket_gather(struct net *net, connection_t *connection, struct iovec *parts, uint64_t *bytes);
uint64_t websocket_sent(struct net *net, connection_t *connection, uint64_t bytes); /* returns the bytes that leave the queue */
bool websocket_output_left(const connection_t *connection);
void websocket_output_drop(struct net *net, connection_t *connection); /* nothing can be sent to a closing connection any more */

/* For the end of a connection. A connection that is closing sends a Close as its last output. websocket_last_words: it is closed
 * at once; send a Close if the transport takes it. */
bool websocket_is_open(const connection_t *connection);
/* All input has been processed: refuse the forbidden frame behind it. false: there is none */
bool websocket_refuse(struct net *net, connection_t *connection);
void websocket_last_words(struct net *net, connection_t *connection, uint8_t close_code, const char *detail);

/* server.ws_origins: [u16 size][origin] ... */
void websocket_origins_set(struct net *net, const uint8_t *list, uint32_t size);

#endif
