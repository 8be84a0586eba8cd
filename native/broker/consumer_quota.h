/* broker/consumer_quota.h: how much of the WAL one durable consumer may keep from being deleted.
 *
 *      WAL    [over the quota: let go ..........][cut][ session_log_bytes ..............................] end
 *             ^ floor of an absent consumer moves up to the cut
 *
 * The WAL cannot be shortened behind the oldest message that somebody has not acknowledged. So what counts is how far behind the end
 * of the WAL that message lies, not how many there are: one message nobody acknowledges would keep all that came after it. What lies
 * before the cut goes to the dead letters or is dropped, the oldest first, whether the consumer is absent or connected; of a full WAL,
 * it is dropped where its letter finds no room.
 *
 * Dead letters do not count in that distance, up to three quarters of the WAL: each is written at its end, so it would push the next
 * message before the cut, whose letter would push the next one, until all are letters. A consumer of letters has half of the WAL.
 *
 * Invariant: a turn looks at QUOTA_CONSUMERS consumers at most. What is in the WAL alone is read by the readers, in their line.
 */
#ifndef BQ_CONSUMER_QUOTA_H
#define BQ_CONSUMER_QUOTA_H

#include "base/bytes.h"

struct bq;
struct consumer;
struct delivery;

#define QUOTA_MARKS 64u

/* Where the dead letters in the WAL lie: so many bytes of them from an LSN on, up to the next mark. */
typedef struct quota_mark {
    uint64_t lsn, bytes;
} quota_mark_t;

typedef struct quota_letters {
    quota_mark_t marks[QUOTA_MARKS]; /* LSNs rise */
    uint32_t count;
    uint64_t newest_lsn; /* letters up to here are in them */
} quota_letters_t;

void consumer_quota_letter_logged(struct bq *bq, uint64_t lsn, uint64_t bytes);
/* The same in a checkpoint. */
uint32_t consumer_quota_section_size(const struct bq *bq);
void consumer_quota_section_write(const struct bq *bq, uint8_t *out);
void consumer_quota_section_load(struct bq *bq, const uint8_t *bytes, uint64_t size);

void consumers_quota(struct bq *bq);
/* While floors that the cut moves are what makes room in the WAL: how often a checkpoint may say so. UINT64_MAX: as ever. */
uint64_t consumer_quota_checkpoint_ms(const struct bq *bq);
uint64_t consumers_quota_due_ms(const struct bq *bq); /* UINT64_MAX: never */
/* A message of this consumer lies before the cut. True: it is to be dropped, and has been counted as that. */
bool consumer_quota_drops(struct bq *bq, struct consumer *consumer, uint64_t id);
void consumer_quota_letter(struct bq *bq, struct delivery *delivery);               /* else it goes to the dead letters */
bool consumer_quota_has_room(const struct bq *bq, const struct consumer *consumer); /* for one letter more */

#endif
