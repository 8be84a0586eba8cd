/* broker/consumer_end.h: ends durable consumers by an operator's command.
 *
 * Invariant: Python is told of the end only after the end is durable.
 */
#ifndef BQ_CONSUMER_END_H
#define BQ_CONSUMER_END_H

#include "base/bytes.h"

struct broker;
struct consumer;

/* An end that waits for the commit, or for room in the event ring. */
typedef struct consumer_end {
    struct consumer_end *next;
    uint64_t seq;         /* sequence number of the command */
    uint64_t lsn;         /* LSN of the record; 0: none to wait for */
    uint64_t consumer_id; /* consumer whose members are not all told yet; 0: none */
    enum bq_outcome outcome;
} consumer_end_t;

/* `client_id`: the one to remove from a queue group, with or without its key prefix; empty: the whole consumer ends. False: no
 * memory; nothing has changed. */
bool consumer_end_by_id(struct broker *broker, uint64_t seq, uint64_t id, const uint8_t *client_id, uint32_t client_id_size);
void consumer_end_turn(struct broker *broker);        /* reports ends that are durable now */
bool consumer_end_waits(const struct broker *broker); /* an end waits for room in the event ring */
void consumer_end_release(struct broker *broker);     /* before the core is freed */

#endif
