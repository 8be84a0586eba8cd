/* broker/wal_quota.h: limits the part of the WAL that one durable consumer can keep from deletion.
 *
 *      WAL    [over the quota: released .........][cut][ session_log_bytes ..............................] end
 *             ^ floor of an absent consumer moves up to the cut
 *
 * The WAL can delete segments only before the oldest unacknowledged message. So the quota limits the distance from that message
 * to the end of the WAL, not the number of messages: one unacknowledged message keeps all that follow it. Messages before the
 * cut go to the dead letters or are dropped, oldest first, for absent and connected consumers. If the WAL is full and has no
 * room for the dead letter, the message is dropped.
 *
 * Dead letters do not count in that distance, up to three quarters of the WAL. Otherwise each dead letter, appended at the end,
 * would push the next message before the cut, until all messages are dead letters. A consumer of dead letters may use half of
 * the WAL.
 *
 * Invariant: a turn checks QUOTA_CONSUMERS consumers at most. Messages that are only in the WAL are read by the readers, in
 * their line.
 */
#ifndef BQ_WAL_QUOTA_H
#define BQ_WAL_QUOTA_H

#include "base/bytes.h"

struct broker;
struct consumer;
struct delivery;

#define QUOTA_MARKS 64u

/* Position of dead letters in the WAL: `bytes` of them between `lsn` and the next mark. */
typedef struct quota_mark {
    uint64_t lsn, bytes;
} quota_mark_t;

typedef struct quota_letters {
    quota_mark_t marks[QUOTA_MARKS]; /* in LSN order */
    uint32_t count;
    uint64_t newest_lsn; /* dead letters up to here are counted */
} quota_letters_t;

void wal_quota_letter_logged(struct broker *broker, uint64_t lsn, uint64_t bytes);
/* The same, in a checkpoint. */
uint32_t wal_quota_section_size(const struct broker *broker);
void wal_quota_section_write(const struct broker *broker, uint8_t *out);
void wal_quota_section_load(struct broker *broker, const uint8_t *bytes, uint64_t size);

void wal_quota_turn(struct broker *broker);
/* Minimum interval between checkpoints while moving floors make room in the WAL. UINT64_MAX: the usual interval. */
uint64_t wal_quota_checkpoint_ms(const struct broker *broker);
uint64_t wal_quota_due_ms(const struct broker *broker); /* UINT64_MAX: never */
/* A message of this consumer is before the cut. True: drop it; it is counted. */
bool wal_quota_drops(struct broker *broker, struct consumer *consumer, uint64_t id);
void wal_quota_letter(struct broker *broker, struct delivery *delivery);               /* otherwise it becomes a dead letter */
bool wal_quota_has_room(const struct broker *broker, const struct consumer *consumer); /* for one more dead letter */

#endif
