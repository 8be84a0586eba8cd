/* broker/consumer_expire.h: since when nobody is connected to a durable consumer, across restarts, and the end of those nobody comes back to.
 *
 * Absence is counted on the broker's own time T (broker/timeline.h): time off counts as far as it is known, and no wall clock is believed.
 * A checkpoint keeps it. What came after the last one is lost by a kill: checkpoints follow the coming and going of clients within
 * SEEN_CHECKPOINT_MS, and nothing expires in the first EXPIRE_GRACE_MS after a start, so that clients come back first.
 *
 * Invariant: a consumer with a connection does not expire. Its end is in the WAL before it is gone.
 */
#ifndef BQ_CONSUMER_EXPIRE_H
#define BQ_CONSUMER_EXPIRE_H

#include "base/bytes.h"

struct bq;
struct consumer;

#define SEEN_CHECKPOINT_MS 300000u

/* What a checkpoint keeps of each durable consumer, behind its record. */
typedef struct seen_record {
    uint64_t consumer_id;
    uint64_t seen_ms;      /* T when its last connection left; UINT64_MAX: one was there at the checkpoint */
    uint64_t seen_wall_ms; /* the same by the wall clock, for people */
    uint64_t lag_messages, lag_bytes, stamp_ms;
    uint32_t unsure, reserved;
} seen_record_t;

void consumer_seen(struct bq *bq, struct consumer *consumer); /* a connection has come or gone */
void consumer_seen_write(const struct bq *bq, const struct consumer *consumer, seen_record_t *record);
void consumer_seen_load(struct bq *bq, const uint8_t *bytes, uint64_t size);
uint64_t consumer_away_ms(const struct bq *bq, const struct consumer *consumer); /* UINT64_MAX: not known */

void consumers_expire(struct bq *bq);
uint64_t consumers_expire_due_ms(const struct bq *bq); /* UINT64_MAX: never */

#endif
