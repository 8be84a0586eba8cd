/* net/fair_share.h: work is counted, so that no connection can stall others by its requests.
 *
 *      light connections  served as soon as they are ready
 *      heavy connections  in line, first come first served, up to WORK_LINE shares of work per turn
 *
 * A unit of work is about 50 ns: for example one visited trie node, or one run put into one queue. A connection stops after one
 * share of work; the rest of its input is kept. It goes to the end of the line and stays heavy until a service takes less than
 * a quarter of a share.
 *
 * A single request may cost more than a share, for example a message for ten thousand subscribers. It is completed, and the
 * connection then skips as many shares.
 *
 * Invariant: a connection in a list is `ready`. A connection that stopped has PAUSE_SHARE until its turn.
 */
#ifndef BQ_SHARE_H
#define BQ_SHARE_H

#include "base/bytes.h"
#include "net/connection.h"

#define WORK_SHARE 1024u                /* per service of a connection; default of the configuration */
#define WORK_LINE 2u                    /* shares per turn for the heavy connections in line */
#define WORK_LIGHT 8u                   /* shares per turn for all light connections together */
#define WORK_COMMITS (4u * WORK_SHARE)  /* per turn for commits that became durable */
#define WORK_COMMANDS (4u * WORK_SHARE) /* per turn for commands from Python */
#define WORK_ENDS (2u * WORK_SHARE)     /* per turn for connections that have ended */

#define WORK_FRAME 3u               /* reading one frame of any type */
#define WORK_QOS1 12u               /* a QoS 1 publish: WAL, pending commit, answer */
#define WORK_DELIVERY 4u            /* a message offered to a consumer */
#define WORK_MEMBERS 4u             /* number of group members checked for one unit */
#define WORK_SEND 32u               /* a system call that sends */
#define WORK_COMMAND 8u             /* a command from Python */
#define WORK_DROPS 8u               /* number of messages dropped from a queue for one unit */
#define WIDE_TARGETS 32u            /* a run with more subscribers is sent after runs with few */
#define WIDE_SENDS_MAX 64u          /* subscribers per flush of such a run */
#define WIDE_BYTES_MAX (512u << 10) /* and bytes per flush of such a run */
#define WORK_WIDE 8u                /* extra for each of them, because it must also be sent to */
#define WRITES_MAX 64u              /* sockets per turn that are writable again and are sent to at once */

typedef struct connection_list {
    connection_t *first, **tail;
} connection_list_t;

/* Connections that wait to be served, and the work count at which the current one must stop. */
typedef struct share {
    connection_list_t light, line;
    uint64_t stop;
} share_t;

void share_init(struct bq *bq);
void share_line_up(struct bq *bq, connection_t *connection); /* it has input to process */
void share_wait(struct bq *bq, connection_t *connection); /* it is heavy, or has input to process, and its socket is readable */
void share_end(struct bq *bq, connection_t *connection, uint64_t used); /* it used much of its share, or more */
void share_go_on(struct bq *bq, connection_t *connection);              /* process input it has been given */
void share_run_light(struct bq *bq);
void share_run_line(struct bq *bq);

#endif
