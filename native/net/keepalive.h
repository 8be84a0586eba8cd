/* net/keepalive.h: how the core notices that a client is gone without a word: no end of file, no reset.
 *
 *      nothing is on its way    the system's keep-alive probes, set on every socket
 *      output is on its way     acknowledgements of the peer's system, looked at while a connection is `watched`
 *      HELLO had keepalive_ms   the client sends something, a PING at least, in each such interval
 *
 * The system's own limit for output, TCP_USER_TIMEOUT, is not used: it also ends a reader whose receive window is closed for that
 * long, though its system answers every probe. A slow reader is legal; a peer that acknowledges nothing is gone.
 *
 * Invariants: a watched connection has a socket and is on the list of the core, once. A negotiated interval costs one timer, which
 * looks at heard_ms and is set again: nothing is done for each frame.
 */
#ifndef BQ_KEEPALIVE_H
#define BQ_KEEPALIVE_H

#include "base/bytes.h"
#include "broker/outqueue.h"

#define KEEPALIVE_MIN_MS 1000u /* shortest interval that a client may promise */

struct bq;
struct connection;

typedef struct keepalive {
    core_timer_t timer;                              /* looks at watched connections */
    struct connection *watched_first, *watched_last; /* the one looked at longest ago first */
    uint32_t watched_count;
} keepalive_t;

void keepalive_socket(struct bq *bq, int fd);                                            /* set the options of a new one */
void keepalive_promise(struct bq *bq, struct connection *connection, uint64_t asked_ms); /* by its HELLO */
void keepalive_begin(struct bq *bq, struct connection *connection);                      /* it is admitted: the promise counts */
void keepalive_due(struct bq *bq, struct connection *connection);                        /* its timer fired */
void keepalive_watch(struct bq *bq, struct connection *connection);                      /* it has been sent something */
void keepalive_unwatch(struct bq *bq, struct connection *connection);
void keepalive_changed(struct bq *bq); /* another keepalive_ms is set */
void keepalive_look(struct bq *bq);    /* the core's timer fired */

#endif
