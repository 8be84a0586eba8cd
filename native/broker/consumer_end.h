/* broker/consumer_end.h: durable consumers that an operator ends, or that end because nobody was connected to them for too long.
 *
 * Invariant: Python is told that a consumer has ended once its end is on disk, not before.
 */
#ifndef BQ_CONSUMER_END_H
#define BQ_CONSUMER_END_H

#include "base/bytes.h"

struct bq;
struct consumer;

/* One end that waits for the disk, or for room among the events. */
typedef struct consumer_end {
    struct consumer_end *next;
    uint64_t seq;         /* of the command */
    uint64_t lsn;         /* of the record; 0: there is none to wait for */
    uint64_t consumer_id; /* some of its members are still to be told; 0: none */
    enum bq_outcome outcome;
} consumer_end_t;

/* `client_id`: of a queue group the one that is taken out, with or without its key in front; nothing: the whole consumer ends.
 * False: no memory to remember it by, and nothing has changed. */
bool consumer_end_by_id(struct bq *bq, uint64_t seq, uint64_t id, const uint8_t *client_id, uint32_t client_id_size);
void consumer_end_turn(struct bq *bq);        /* tell what has become durable */
bool consumer_end_waits(const struct bq *bq); /* for room among the events */
void consumer_end_release(struct bq *bq);     /* at the end of life */

#endif
