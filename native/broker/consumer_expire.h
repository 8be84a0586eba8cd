/* broker/consumer_expire.h: ends durable consumers after qos1.session_expiry_ms without a connection, across restarts.
 *
 * Absence is measured in the broker's own time T (broker/timeline.h), not by a wall clock; downtime counts as far as it is
 * known. Checkpoints store when a client was last connected. A kill loses changes since the last checkpoint. Therefore a
 * checkpoint follows a connect or disconnect within SEEN_CHECKPOINT_MS, and nothing expires in the first EXPIRE_GRACE_MS after a
 * start, so that clients can reconnect first.
 *
 * Invariant: a consumer with a connection does not expire. Its end is appended to the WAL before it is freed.
 */
#ifndef BQ_CONSUMER_EXPIRE_H
#define BQ_CONSUMER_EXPIRE_H

#include "base/bytes.h"

struct broker;
struct consumer;

#define SEEN_CHECKPOINT_MS 300000u

/* Stored in a checkpoint for each durable consumer, in a section of its own. */
typedef struct seen_record {
    uint64_t consumer_id;
    uint64_t seen_ms;      /* T when its last connection left; UINT64_MAX: connected at the checkpoint */
    uint64_t seen_wall_ms; /* the same by the wall clock, for display */
    uint64_t lag_messages, lag_bytes, stamp_ms;
    uint32_t unsure, reserved;
} seen_record_t;

void consumer_seen(struct broker *broker, struct consumer *consumer); /* a connection has joined or left */
void consumer_seen_write(const struct broker *broker, const struct consumer *consumer, seen_record_t *record);
void consumer_seen_load(struct broker *broker, const uint8_t *bytes, uint64_t size);
uint64_t consumer_away_ms(const struct broker *broker, const struct consumer *consumer); /* UINT64_MAX: not known */

void consumers_expire(struct broker *broker);
uint64_t consumers_expire_due_ms(const struct broker *broker); /* UINT64_MAX: never */

#endif
