/* broker/waiters.h: publishers that wait for a full queue under the block policy.
 *
 * A publisher waits for one subscriber, or for room in any queue group. When there is room, waiting publishers continue in the
 * order in which they stopped, a few at a time: room for a few is not enough for ten thousand at once.
 *
 * Invariant: a connection is in a list exactly while it has PAUSE_BLOCK.
 */
#ifndef BQ_WAITERS_H
#define BQ_WAITERS_H

#include "base/bytes.h"

struct broker;
struct client;

typedef struct wait_list {
    struct client *first, *last;
} wait_list_t;

void wait_begin(struct broker *broker, wait_list_t *list, struct client *publisher);
void wait_end(struct broker *broker, struct client *publisher); /* removes it from any list; it may be in none */
/* if the full connection's queue has room again, wakes those that wait for it */
void wait_wake(struct broker *broker, struct client *full);
/* wakes all that wait for its queue or for a group of which it is a member, also if there is no room */
void client_release_waiters(struct broker *broker, struct client *client);
void wait_release(struct broker *broker, wait_list_t *list, uint32_t count_max);

#endif
