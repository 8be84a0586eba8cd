/* broker/dead_letter.h: dead letters: messages delivered too often, published to `$dlq/<topic>` unchanged, with the reason as
 * properties.
 *
 * Invariant: a delivery is settled as dead-lettered when its dead letter is durable, or when no subscription matches
 * `$dlq/<topic>`. Until then it is kept, and a late acknowledgement still settles it. If the WAL stays full for
 * DEAD_LETTER_PATIENCE_MS, the delivery that keeps the oldest segment is dropped and counted; otherwise it could keep the WAL
 * full for ever.
 */
#ifndef BQ_DEAD_LETTER_H
#define BQ_DEAD_LETTER_H

#include "base/bytes.h"
#include "proto/encoding.h"

struct broker;
struct delivery;
struct dead_letter_record;

#define DEAD_LETTER_PREFIX "$dlq/"
#define DEAD_LETTER_PATIENCE_MS 30000u
#define DEAD_LETTER_PATIENCE_NEXT_MS 3000u /* after the first drops, while the WAL is still full */
#define DEAD_LETTER_DROPS_MAX 64u          /* per retry: starts at one and doubles */

#define DEAD_LETTER_PROPERTIES_BYTES_MAX (512u + TOPIC_BYTES_MAX)

typedef struct dead_letter {
    message_t message;
    struct delivery *delivery; /* the original delivery */
    bool cut;                  /* topic shortened to make room for the prefix */
} dead_letter_t;

/* Writes the properties of a dead letter read from the WAL, given the topic of the dead letter. Returns the bytes written,
 * DEAD_LETTER_PROPERTIES_BYTES_MAX at most. */
uint32_t dead_letter_properties_again(uint8_t *out, const uint8_t *topic, uint32_t topic_size,
                                      const struct dead_letter_record *record);

/* All dead letters that wait for room in the WAL. */
typedef struct dead_letters {
    struct delivery *first, *last; /* in LSN order */
    uint64_t due_ms;               /* time of the next retry */
    uint64_t refused_ms;           /* a full WAL has refused all since then; 0: no refusal */
    uint64_t patience_ms;          /* how long that may last before drops */
    uint32_t drops;                /* at the last retry */
} dead_letters_t;

void dead_letter_send(struct broker *broker,
                      struct delivery *delivery); /* written at the end of this turn, or when the WAL has room */
void dead_letter_forget(struct broker *broker, struct delivery *delivery); /* the delivery is freed */
void dead_letter_written(struct broker *broker, struct delivery *delivery, bool durable);
void dead_letters_turn(struct broker *broker);
uint64_t dead_letters_due_ms(const struct broker *broker); /* UINT64_MAX: none waits */

#endif
