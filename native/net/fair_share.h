/* net/fair_share.h: connections are served by shares of work (broker/work.h), so that none can stall others by its requests.
 *
 *      light connections  served as soon as they are ready
 *      heavy connections  in line, first come first served, up to WORK_LINE shares of work per turn
 *
 * A connection stops after one share of work; the rest of its input is kept. It goes to the end of the line and stays heavy until
 * a service takes less than a quarter of a share.
 *
 * A single request may cost more than a share, for example a message for ten thousand subscribers. It is completed, and the
 * connection then skips as many shares.
 *
 * Invariant: a connection in a list is `ready`. A connection that stopped has PAUSE_SHARE until its turn.
 */
#ifndef BQ_SHARE_H
#define BQ_SHARE_H

#include "broker/work.h"
#include "net/connection.h"

#define WORK_LINE 2u                    /* shares per turn for the heavy connections in line */
#define WORK_LIGHT 8u                   /* shares per turn for all light connections together */
#define WORK_COMMANDS (4u * WORK_SHARE) /* per turn for commands from Python */
#define WORK_ENDS (2u * WORK_SHARE)     /* per turn for connections that have ended */

#define WORK_FRAME 3u               /* reading one frame of any type */
#define WORK_SEND 32u               /* a system call that sends */
#define WORK_COMMAND 8u             /* a command from Python */
#define WIDE_SENDS_MAX 64u          /* subscribers per flush of such a run */
#define WIDE_BYTES_MAX (512u << 10) /* and bytes per flush of such a run */
#define WRITES_MAX 64u              /* sockets per turn that are writable again and are sent to at once */

typedef struct connection_list {
    connection_t *first, **tail;
} connection_list_t;

/* Connections that wait to be served. */
typedef struct share {
    connection_list_t light, line;
} share_t;

void share_init(struct net *net);
void share_line_up(struct net *net, connection_t *connection); /* it has input to process */
void share_wait(struct net *net, connection_t *connection); /* it is heavy, or has input to process, and its socket is readable */
void share_end(struct net *net, connection_t *connection, uint64_t used); /* it used much of its share, or more */
void share_go_on(struct net *net, connection_t *connection);              /* process input it has been given */
void share_run_light(struct net *net);
void share_run_line(struct net *net);

#endif
