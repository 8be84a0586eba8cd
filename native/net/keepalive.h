/* net/keepalive.h: how the core detects a client that is gone without end of file or reset.
 *
 *      no output in flight        keep-alive probes of the operating system, enabled on every socket
 *      output in flight           acknowledgements of the peer's system, checked while a connection is `watched`
 *      HELLO had keepalive_ms     the client must send something, at least a PING, in each such interval
 *
 * TCP_USER_TIMEOUT is not used. It also closes a reader whose receive window stays closed for that long, although its system
 * answers every probe. A slow reader is allowed; a peer that acknowledges nothing is gone.
 *
 * Invariants: a watched connection has a socket and is on the watched list exactly once. A negotiated interval costs one timer,
 * which compares heard_ms and is set again. There is no work per frame.
 */
#ifndef BQ_KEEPALIVE_H
#define BQ_KEEPALIVE_H

#include "base/bytes.h"
#include "broker/outqueue.h"

#define KEEPALIVE_MIN_MS 1000u /* shortest interval that a client may request */

struct net;
struct connection;

typedef struct keepalive {
    core_timer_t timer;                              /* checks watched connections */
    struct connection *watched_first, *watched_last; /* the one checked longest ago is first */
    uint32_t watched_count;
} keepalive_t;

void keepalive_socket(struct net *net, int fd);                                            /* set the options of a new socket */
void keepalive_promise(struct net *net, struct connection *connection, uint64_t asked_ms); /* requested in its HELLO */
void keepalive_begin(struct net *net, struct connection *connection); /* it is admitted: its promise starts */
void keepalive_due(struct net *net, struct connection *connection);   /* its timer fired */
void keepalive_watch(struct net *net, struct connection *connection); /* output was sent to it */
void keepalive_unwatch(struct net *net, struct connection *connection);
void keepalive_changed(struct net *net); /* the setting keepalive_ms has changed */
void keepalive_look(struct net *net);    /* the core's timer fired */

#endif
