/* net/websocket_handshake.h: the HTTP request that opens a WebSocket (RFC 6455, section 4.2), and the answers to it.
 *
 * Invariant: nothing here allocates or knows of connections. A request is read only when it is complete, and it has at most
 * WEBSOCKET_HEAD_MAX bytes.
 */
#ifndef BQ_WEBSOCKET_HANDSHAKE_H
#define BQ_WEBSOCKET_HANDSHAKE_H

#include "base/bytes.h"

#define WEBSOCKET_HEAD_MAX 8192u   /* bytes of a request */
#define WEBSOCKET_ANSWER_MAX 1024u /* bytes of an answer */
#define WEBSOCKET_SUBPROTOCOLS_MAX 16u

typedef struct websocket_text {
    const uint8_t *bytes; /* NULL: not there */
    uint32_t size;
} websocket_text_t;

/* Where the WebSockets of a listener lead: the path, the protocol behind it, and the subprotocol that a client may offer. */
typedef struct websocket_path {
    const char *path, *subprotocol;
    const struct protocol_ops *protocol;
    const char *elsewhere; /* why a request with another path is refused */
    const char *otherwise; /* and one that offers only other subprotocols */
} websocket_path_t;

typedef struct websocket_request {
    websocket_text_t method, path, host, origin, key, version;
    websocket_text_t subprotocols[WEBSOCKET_SUBPROTOCOLS_MAX];
    uint32_t subprotocol_count;
    bool upgrade, connection_upgrade, has_body;
} websocket_request_t;

/* The answer to a request: the upgrade, or an error with its cause as the body. */
typedef struct websocket_answer {
    uint16_t status; /* 101: the WebSocket is open */
    const char *why; /* static text */
    const websocket_path_t *path;
    bool subprotocol; /* the client offered that of the path */
} websocket_answer_t;

/* The origins that a browser may come from: server.ws_origins. */
typedef struct websocket_origins {
    uint8_t *list; /* [u16 size][origin] ... */
    uint32_t size;
    bool any;
} websocket_origins_t;

/* Reads the request at the front of `bytes`; the first `seen` of them were there before. Returns its size; 0: it is not
 * complete. answer->status is 0, or the error that the request is answered with. */
uint32_t websocket_request_read(const uint8_t *bytes, uint32_t size, uint32_t seen, websocket_request_t *request,
                                websocket_answer_t *answer);
/* Decides on a complete request. `strict`: a request with an Origin needs it in the list, also if the list is empty. */
void websocket_decide(const websocket_request_t *request, const websocket_path_t *path, const websocket_origins_t *origins,
                      bool strict, websocket_answer_t *answer);
/* Writes it; at most WEBSOCKET_ANSWER_MAX bytes. `request` is read for status 101 only. */
uint32_t websocket_answer_write(uint8_t *out, const websocket_request_t *request, const websocket_answer_t *answer);

#endif
