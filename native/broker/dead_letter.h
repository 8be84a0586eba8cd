/* broker/dead_letter.h: dead letters: messages that were delivered too often and go to `$dlq/<topic>`, as they were, with the reason beside them.
 *
 * Invariant: a delivery is settled as dead-lettered when its letter is on disk, or when there is nobody whose letter it would be.
 * Until then it is kept: an acknowledgement that comes after all settles it. One that finds no room in a WAL that stays full for
 * DEAD_LETTER_PATIENCE_MS is dropped, and counted as such, if it is what keeps the WAL's oldest segment: else it could keep the WAL full for
 * ever by itself.
 */
#ifndef BQ_DEAD_LETTER_H
#define BQ_DEAD_LETTER_H

#include "base/bytes.h"
#include "proto/encoding.h"

struct bq;
struct delivery;
struct dead_letter_record;

#define DEAD_LETTER_PREFIX "$dlq/"
#define DEAD_LETTER_PATIENCE_MS 30000u
#define DEAD_LETTER_PATIENCE_NEXT_MS 3000u /* once letters have been dropped, and the WAL is still full */
#define DEAD_LETTER_DROPS_MAX 64u          /* at one look at the WAL: one, then twice as many each time */

#define DEAD_LETTER_PROPERTIES_BYTES_MAX (512u + TOPIC_BYTES_MAX)

typedef struct dead_letter {
    message_t message;
    struct delivery *delivery; /* whose message it was */
    bool cut;                  /* its topic was too long for what comes in front */
} dead_letter_t;

/* What is said of a message beside its letter. Returns the bytes written, DEAD_LETTER_PROPERTIES_BYTES_MAX at most. */
uint32_t dead_letter_properties(uint8_t *out, const uint8_t *topic, uint32_t topic_size, uint64_t id, uint32_t deliveries,
                                bool over);
/* The same of a letter that was logged, by the letter's topic. */
uint32_t dead_letter_properties_again(uint8_t *out, const uint8_t *topic, uint32_t topic_size,
                                      const struct dead_letter_record *record);

/* All that wait for the WAL. */
typedef struct dead_letters {
    struct delivery *first, *last; /* in LSN order */
    uint64_t due_ms;               /* when they are tried again */
    uint64_t refused_ms;           /* since when a full WAL has taken none of them; 0: it has, or has not been asked */
    uint64_t patience_ms;          /* how long that may last */
    uint32_t drops;                /* at the last look */
} dead_letters_t;

void dead_letter_send(struct bq *bq, struct delivery *delivery);   /* at the end of this turn, or when the WAL takes it */
void dead_letter_forget(struct bq *bq, struct delivery *delivery); /* the delivery ends otherwise */
void dead_letter_written(struct bq *bq, struct delivery *delivery, bool durable);
void dead_letters_turn(struct bq *bq);
uint64_t dead_letters_due_ms(const struct bq *bq); /* UINT64_MAX: none waits */

#endif
