/* broker/work.h: units of work. Work is counted, so that no client can stall others by its requests.
 *
 * A unit is about 50 ns: for example one visited trie node, or one run put into one queue. net/fair_share.h serves connections
 * by shares of work and sets `work_stop`.
 *
 * Invariant: the counter never decreases.
 */
#ifndef BQ_WORK_H
#define BQ_WORK_H

#include "base/bytes.h"

#define WORK_SHARE 1024u               /* per service of a connection; default of the configuration */
#define WORK_COMMITS (4u * WORK_SHARE) /* per turn for commits that became durable */

#define WORK_QOS1 12u    /* a QoS 1 publish: WAL, pending commit, answer */
#define WORK_DELIVERY 4u /* a message offered to a consumer */
#define WORK_MEMBERS 4u  /* number of group members checked for one unit */
#define WORK_DROPS 8u    /* number of messages dropped from a queue for one unit */
#define WIDE_TARGETS 32u /* a run with more subscribers is sent after runs with few */
#define WORK_WIDE 8u     /* extra for each of them, because it must also be sent to */

#endif
