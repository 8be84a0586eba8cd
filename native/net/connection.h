/* net/connection.h: one client connection: its transport, its unparsed input, its rights, and the events that it waits for.
 *
 *      OPEN --(QUIT or end of file, answers wait for the disk)--> ENDING --(all answered)--> CLOSING
 *      OPEN --(QUIT or end of file; refused; a bad frame of a client that said HELLO)------> CLOSING --(all sent)--> LINGERING
 *      OPEN --(reset, vanished; QUIT or end of file with nothing to send; bad frame)-------> DEAD
 *      CLOSING, after end of file --(all sent)--> DEAD   LINGERING --(end of file, 1 s)--> DEAD
 *
 * Invariants: no frame is parsed while pause is not 0. A connection keeps its memory address until the turn that frees it,
 * because target lists and poll results of a turn may point at it. Code that uses such a pointer checks the state first.
 */
#ifndef BQ_CONNECTION_H
#define BQ_CONNECTION_H

#include "base/bytes.h"
#include "broker/client.h"

enum connection_state {
    CONNECTION_FREE,
    CONNECTION_OPEN,
    CONNECTION_ENDING, /* its input has ended and it gets no messages; answers to it still wait for the disk */
    CONNECTION_CLOSING,
    CONNECTION_LINGERING,
    CONNECTION_DEAD
};

/* How the clients of a listener connect. */
typedef struct endpoint {
    const struct transport_ops *transport;
    const struct protocol_ops *protocol;
    bool websocket; /* they begin with a WebSocket handshake */
} endpoint_t;

typedef struct connection {
    client_t client; /* must be first */
    const struct transport_ops *transport;
    int fd;           /* -1: none */
    uint8_t state;    /* enum connection_state; set by connection_state_set only */
    uint8_t interest; /* events registered with the poller */
    uint8_t close_code;
    bool admitted;               /* may send commands other than its greeting */
    bool hello;                  /* sent its greeting (HELLO) and was admitted: gets answers */
    bool trusted;                /* created by this process: needs no key, whatever the settings */
    bool known;                  /* Python knows it and will be told when it closes */
    bool refused;                /* over max_connections: it stays open only to be told so */
    bool broken;                 /* reset while its input was paused: the poller would report this again and again */
    bool watched;                /* output sent to it may not be acknowledged yet */
    bool grace;                  /* its keep-alive is overdue, but its input may still be in transit */
    bool unadmitted, silent;     /* not admitted yet; on the silent list: see net/admission.h */
    bool ready;                  /* on a list of connections with input to process */
    bool heavy;                  /* it used much of its share the last time */
    bool unread;                 /* in line because its socket is readable */
    bool retrying;               /* on the list of connections that wait for space in the event ring */
    bool input_ended;            /* no more input will come */
    bool away;                   /* a step of its handshake is with the thread bq-tls: see net/secure.h */
    const char *close_detail;    /* static text */
    struct mqtt *mqtt;           /* state of an MQTT client: see proto/mqtt.h; NULL: of another protocol, or not known yet */
    struct websocket *websocket; /* a layer between transport and protocol; NULL: none */
    struct secure *secure;       /* of a connection that speaks TLS, from its first byte on: see net/secure.h */
    int send_error;              /* errno: its transport failed, and the next flush closes it */
    uint8_t *in;                 /* unparsed input (a partial frame, or received while paused): in_size bytes from in_start */
    uint32_t in_start, in_size, in_capacity;
    uint32_t credit_used;    /* bytes in BQ_EV_OUT events whose CREDIT has not come back */
    uint32_t input_consumed; /* bytes parsed and not yet reported by BQ_EV_CONSUMED */
    topic_t *last_topic;     /* a hint: compare the name before use */
    uint64_t debt;           /* units of work beyond its share: it skips that much work before it is served again */
    struct connection *ready_next, *retry_next, *dead_next;
    core_timer_t timer; /* HELLO timeout, end of lingering, keep-alive */
    struct connection *silent_prev, *silent_next;
    struct connection *watched_previous, *watched_next; /* see net/keepalive.h */
    uint64_t heard_ms;                                  /* time of its last input */
    uint64_t doubt_ms;                                  /* since when it may be gone; 0: no sign of that */
    uint32_t keepalive_ms;                              /* it promised to send something in each such interval; 0: no promise */
    uint8_t peer[16];
    uint16_t peer_port;
} connection_t;

struct net;
struct transport_ops;

extern const client_ops_t connection_ops; /* what the broker asks of net/ */

/* Life. */
connection_t *connection_open(struct net *net, const endpoint_t *endpoint, int fd, const uint8_t peer[16], uint16_t port,
                              bool trusted);                      /* NULL: no slot or memory */
connection_t *connection_find(struct net *net, bq_conn_t handle); /* NULL: gone */
/* `passed_ms` of its time to send HELLO has passed already */
void connection_hurry(struct net *net, connection_t *connection, uint64_t passed_ms);

/* Its end: net/connection_end.c. */
/* Close at once; freed at the end of the turn */
void connection_close(struct net *net, connection_t *connection, uint8_t code, const char *detail);
/* Close after the queued output has been sent */
void connection_finish(struct net *net, connection_t *connection, uint8_t code, const char *detail);
/* It sends no more input: answer open requests, then close */
void connection_input_ended(struct net *net, connection_t *connection, uint8_t code);
void connection_answered(struct net *net, connection_t *connection); /* an answer that waited for the disk has been sent */
void connection_all_sent(struct net *net, connection_t *connection); /* the queue of a closing connection is empty */
void connection_end_late(struct net *net, connection_t *connection); /* its time to end is over */
void connection_broken(struct net *net, connection_t *connection, int error); /* its socket failed with this errno */
void connection_error(struct net *net, connection_t *connection);             /* the poller reports an error on its socket */
/* From now on it gets only Replies: its routes and its queue are dropped */
void connection_discard(struct net *net, connection_t *connection);
/* require_hello was enabled, and it connected without a key */
void connection_need_hello(struct net *net, connection_t *connection);
/* Free everything; false: a list or event still refers to it, try again next turn */
bool connection_free(struct net *net, connection_t *connection);

/* Input. */
void connection_readable(struct net *net, connection_t *connection);
/* For transports; see net/transport_io.h too. `bytes` may be inside the connection's own buffer. input_reserve: make space in
 * that buffer; false: no memory, the connection was closed. input_end: the input ended. */
void input_process(struct net *net, connection_t *connection, const uint8_t *bytes, uint32_t size);
bool input_reserve(struct net *net, connection_t *connection, uint32_t more);
void input_end(struct net *net, connection_t *connection, int error);
void connection_memory_input(struct net *net, connection_t *connection, const uint8_t *bytes, uint32_t size);
void connection_memory_end(struct net *net, connection_t *connection);             /* its end of file */
void connection_credit(struct net *net, connection_t *connection, uint64_t bytes); /* `bytes` of its output have left */
/* Pass a request to Python and stop this connection's input until the answer. False: no room now; the connection is paused, and
 * the request is parsed again later. */
bool connection_ask(struct net *net, connection_t *connection, bq_event_t *event);
void connection_input_drop(struct net *net, connection_t *connection); /* drop unparsed input */
void connection_continue(struct net *net, connection_t *connection);   /* parse the kept input after a pause */

/* Output. */
/* Send at most one batch. connection_flush may close the connection, so it is called only at known points of a turn.
 * Between two of these points only net_drain sends. It leaves closing to the next connection_flush. */
void connection_flush(struct net *net, connection_t *connection);
/* Append a control frame to the queue. output_reserve: space for `size` bytes; NULL: the connection accepts no answers (any
 * more), or no memory. output_push: `size` bytes were written there. */
uint8_t *output_reserve(struct net *net, connection_t *connection, uint32_t size);
void output_push(struct net *net, connection_t *connection, uint32_t size);
void connection_update_interest(struct net *net, connection_t *connection);

/* Only an open connection gets messages. */
static inline void connection_state_set(connection_t *connection, enum connection_state state) {
    connection->state = (uint8_t)state;
    connection->client.live = state == CONNECTION_OPEN;
}

/* true: a Reply may still be queued. */
static inline bool connection_takes_answers(const connection_t *connection) {
    return connection->state == CONNECTION_OPEN || connection->state == CONNECTION_ENDING;
}

#endif
