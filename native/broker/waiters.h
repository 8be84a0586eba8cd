/* broker/waiters.h: publishers that a full queue holds back, under the block policy.
 *
 * A publisher waits for one subscriber, or for any member of any queue group. When there is room again they go on in the order in
 * which they stopped, some at a time: ten thousand that all try at once would find room for a few.
 *
 * Invariant: a connection is in a list exactly while it has PAUSE_BLOCK.
 */
#ifndef BQ_WAITERS_H
#define BQ_WAITERS_H

#include "base/bytes.h"

struct bq;
struct connection;

typedef struct wait_list {
    struct connection *first, *last;
} wait_list_t;

void wait_begin(struct bq *bq, wait_list_t *list, struct connection *publisher);
void wait_end(struct bq *bq, struct connection *publisher); /* it waits no more, whatever for; it may have waited for nothing */
void wait_wake(struct bq *bq, struct connection *full);     /* those who wait for it, if its queue has room again */
void wait_release(struct bq *bq, wait_list_t *list, uint32_t count_max);

#endif
