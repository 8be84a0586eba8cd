/* net/transport.h: what carries a connection's bytes. A protocol does not know which one it is.
 *
 *      protocol    whole frames off the front of the input; frames into the queue
 *      input.c     bytes that are not a whole frame yet          output.c    when a queue is sent
 *      transport   tcp: a socket     memory: events and commands, with credit
 *
 * Invariant: a connection has one transport from connection_open to connection_free. Only transport_*.c and the listener use its
 * descriptor.
 */
#ifndef BQ_TRANSPORT_H
#define BQ_TRANSPORT_H

#include "base/bytes.h"

struct bq;
struct connection;

typedef struct transport_ops {
    bool (*begin)(struct bq *bq, struct connection *connection);                  /* false: the system refuses it */
    void (*readable)(struct bq *bq, struct connection *connection);               /* take what has come, and parse it */
    void (*drain)(struct bq *bq, struct connection *connection);                  /* throw away what has come, until its end */
    void (*parsed)(struct bq *bq, struct connection *connection, uint32_t bytes); /* of its input; NULL: nobody asks */
    void (*interest)(struct bq *bq, struct connection *connection); /* its state has changed: what it wants to be told of */
    void (*flush)(struct bq *bq, struct connection *connection);    /* send from the queue, at most a batch; sets `blocked`
                                                                     * and, failed, `send_error` */
    bool (*retry)(struct bq *bq, struct connection *connection);    /* the event ring has room again; false: not enough */
    bool (*goodbye)(struct bq *bq, struct connection *connection);  /* no output follows; true: wait for the client's end */
    void (*silence)(struct bq *bq, struct connection *connection);  /* it is dead: nothing more is wanted of it */
    void (*end)(struct bq *bq, struct connection *connection);      /* give back what it holds */
    bool (*input_waits)(const struct connection *connection);       /* something has come that has not been read */
    bool acknowledged;   /* the system tells what the peer has acknowledged: keepalive.c */
    uint32_t transit_ms; /* how long input may be on its way inside this machine */
} transport_ops_t;

extern const transport_ops_t transport_tcp, transport_memory;

#endif
