/* net/fair_share.h: work is counted, so that nobody stalls others by what it asks for.
 *
 *      light ones     served as soon as they are ready
 *      heavy ones     in line, first come first served, as many a turn as have WORK_LINE shares of work
 *
 * A unit of work is about 50 ns: a node of the trie visited, a run put into one queue. Whoever is served stops after a share of
 * them with the rest of its input kept; it goes to the end of the line, and is heavy until it has been served for less than a quarter.
 *
 * One thing asked for may be more than a share, a message for ten thousand subscribers for one. It is done, and whoever asked for it
 * sits out as many shares.
 *
 * Invariant: a connection in line, or on the list of those to go on, is `ready`; one that stopped has PAUSE_SHARE until its turn.
 */
#ifndef BQ_SHARE_H
#define BQ_SHARE_H

#include "base/bytes.h"
#include "net/connection.h"

#define WORK_SHARE 1024u                /* of one connection at a time, unless the configuration says otherwise */
#define WORK_LINE 2u                    /* shares of those in line, in one turn */
#define WORK_LIGHT 8u                   /* shares of those who are not heavy, all together, in one turn */
#define WORK_COMMITS (4u * WORK_SHARE)  /* of what has become durable, in one turn */
#define WORK_COMMANDS (4u * WORK_SHARE) /* of Python's commands */
#define WORK_ENDS (2u * WORK_SHARE)     /* of connections that have ended */

#define WORK_FRAME 3u               /* a frame that is read, whatever it asks for */
#define WORK_QOS1 12u               /* a QoS 1 publish: into the WAL, pending, answered */
#define WORK_DELIVERY 4u            /* one offered to a consumer */
#define WORK_MEMBERS 4u             /* members of a group asked in turn for one unit */
#define WORK_SEND 32u               /* a system call that sends */
#define WORK_COMMAND 8u             /* a command of Python's */
#define WORK_DROPS 8u               /* messages dropped from a queue for one unit */
#define WIDE_TARGETS 32u            /* a run for more subscribers is sent after what goes to few of them */
#define WIDE_SENDS_MAX 64u          /* so many of its subscribers in one flush, */
#define WIDE_BYTES_MAX (512u << 10) /* and until so much has been sent to them */
#define WORK_WIDE 8u                /* each of them: it is to be sent to as well */
#define WRITES_MAX 64u              /* sockets that have room again and are sent to at once, in one turn */

typedef struct connection_list {
    connection_t *first, **tail;
} connection_list_t;

/* Those that wait to be served, and the counted work at which the one being served must stop. */
typedef struct share {
    connection_list_t light, line;
    uint64_t stop;
} share_t;

void share_init(struct bq *bq);
void share_line_up(struct bq *bq, connection_t *connection); /* it has input to go on with */
void share_wait(struct bq *bq, connection_t *connection);    /* it is heavy, or has input to go on with, and can be read */
void share_end(struct bq *bq, connection_t *connection, uint64_t used); /* it was served for much of its share, or more */
void share_go_on(struct bq *bq, connection_t *connection);              /* with input it has been given */
void share_run_light(struct bq *bq);
void share_run_line(struct bq *bq);

#endif
