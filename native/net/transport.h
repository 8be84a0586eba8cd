/* net/transport.h: the transport that carries a connection's bytes. A protocol does not know which one it is.
 *
 *      protocol    takes whole frames from the input; puts frames into the queue
 *      input.c     keeps partial frames                   output.c    decides when a queue is sent
 *      transport   tcp: a socket   secure: a socket with TLS   memory: events and commands, with credit
 *
 * Invariant: a connection has one transport from connection_open to connection_free. Only transport_*.c and the listener use
 * its descriptor.
 */
#ifndef BQ_TRANSPORT_H
#define BQ_TRANSPORT_H

#include "base/bytes.h"

struct net;
struct connection;

typedef struct transport_ops {
    bool (*begin)(struct net *net, struct connection *connection);    /* false: the system refuses it */
    void (*readable)(struct net *net, struct connection *connection); /* take the received input and parse it */
    void (*drain)(struct net *net, struct connection *connection);    /* discard input until its end */
    /* `bytes` of its input were parsed; may be NULL */
    void (*parsed)(struct net *net, struct connection *connection, uint32_t bytes);
    void (*interest)(struct net *net, struct connection *connection); /* its state changed: update the events it waits for */
    /* Send from the queue, at most one batch; sets `blocked`, and after a failure `send_error` */
    void (*flush)(struct net *net, struct connection *connection);
    bool (*retry)(struct net *net, struct connection *connection);   /* the event ring has space again; false: not enough */
    bool (*goodbye)(struct net *net, struct connection *connection); /* no more output; true: wait for the client's end of file */
    void (*silence)(struct net *net, struct connection *connection); /* it is dead: report no more events of it */
    void (*end)(struct net *net, struct connection *connection);     /* release its resources */
    bool (*input_waits)(const struct connection *connection);        /* there is input that was not read yet */
    bool shakes;                                                     /* a handshake comes first: see net/secure.h */
    bool acknowledged;                                               /* the system reports acknowledged output: see keepalive.c */
    uint32_t transit_ms;                                             /* how long input may be in transit inside this machine */
} transport_ops_t;

extern const transport_ops_t transport_tcp, transport_secure, transport_memory;

/* For transports over a socket: the events to wait for (enum poll_interest), and a failure with this errno. */
void transport_tcp_watch(struct net *net, struct connection *connection, uint8_t want);
void transport_tcp_failed(struct net *net, struct connection *connection, int error);

#endif
