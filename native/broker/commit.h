/* broker/commit.h: what waits for the disk: QoS 1 publishes and the answers to durable requests, in LSN order.
 *
 * Invariant: nothing leaves this queue before wal_durable has passed its LSN, and all that does leaves in LSN order:
 * replies to publishers and deliveries to subscribers begin after the same fdatasync.
 */
#ifndef BQ_COMMIT_H
#define BQ_COMMIT_H

#include "base/bytes.h"
#include "broker/outqueue.h"
#include "proto/encoding.h"

struct bq;
struct connection;
struct consumer;
struct topic;

enum pending_kind {
    PENDING_PUBLISH, /* QoS 1 */
    PENDING_FOLLOW,  /* QoS 0 behind an unsynced QoS 1 publish of the same connection: order is kept, nothing is logged */
    PENDING_GONE,    /* one of these that did not wait any longer */
    PENDING_SUBACK,  /* to a durable subscriber */
    PENDING_REPLY    /* to the end of a durable subscription */
};

/* What a SUB whose answer waits has made: a disk that fails meanwhile takes it back. */
enum pending_undo { PENDING_UNDO_ROUTE = 1, PENDING_UNDO_MEMBER = 2, PENDING_UNDO_REGISTRATION = 4, PENDING_UNDO_CONSUMER = 8 };

typedef struct pending_commit {
    queue_entry_t hold; /* the message, encoded for QoS 1 (publishes), or the text to answer with (PENDING_SUBACK) */
    struct pending_commit *next;
    bq_conn_t conn; /* 0: nobody is answered */
    uint64_t seq;
    uint64_t lsn, id;
    uint64_t timestamp_ms, ttl_ms, expiry_tick;
    uint32_t payload_size; /* PENDING_SUBACK: of the group behind the filter */
    uint16_t topic_size, properties_size;
    uint8_t kind;
    uint8_t undo;              /* PENDING_SUBACK: enum pending_undo; id: of the registration */
    struct delivery *delivery; /* a dead letter: whose, while it waits for this */
} pending_commit_t;

static inline const uint8_t *pending_bytes_at(const pending_commit_t *pending) {
    return pending->hold.buffer->bytes + pending->hold.offset;
}
static inline message_t pending_message(const pending_commit_t *pending) { /* of a publish */
    message_t message;
    message_decode(pending_bytes_at(pending), &message);
    return message;
}

/* What WAL_PUBLISH records begin with; topic, payload and properties follow. */
typedef struct publish_record {
    uint64_t id, timestamp_ms, ttl_ms;
    uint64_t mono_ms; /* of the process that wrote it: what was left of the ttl is known while `run` is the same */
    uint64_t run;
    uint32_t topic_size;
    uint32_t properties_size; /* behind the payload: a version that knows of none takes them for the payload's end */
} publish_record_t;

/* Of a record with this flag the properties are a dead_letter_record_t: a dead letter of a short message is hardly larger than it was, so
 * that a WAL full of such can be emptied. The topic is the letter's without what comes in front. */
#define PUBLISH_DEAD_LETTER 1u
typedef struct dead_letter_record {
    uint64_t id;               /* of the message it was */
    uint32_t deliveries, over; /* over: because of its consumer's quota of the WAL */
} dead_letter_record_t;

enum commit_outcome { COMMIT_PENDING, COMMIT_LATER, COMMIT_REFUSED };

/* Log a QoS 1 publish and hold it. COMMIT_LATER: the batch is full, try when it has been written. COMMIT_REFUSED: *why. */
enum commit_outcome commit_publish(struct bq *bq, struct connection *connection, uint64_t seq, const message_t *message,
                                   const char **why);
struct dead_letter;
/* Log a dead letter and hold it; dead_letter_written says what came of it. Its LSN, or what wal_append says. */
int64_t commit_dead_letter(struct bq *bq, const struct dead_letter *letter);
/* The same for subscribers of QoS 0 alone: it is not logged. False: no memory. */
bool commit_dead_letter_follow(struct bq *bq, const struct dead_letter *letter);
/* Whether a QoS 0 publish may be held too. False: its publisher waits. */
bool commit_follow_room(const struct bq *bq, const struct connection *connection);
bool commit_follow(struct bq *bq, struct connection *connection, const message_t *message); /* false: no memory */
/* An answer is made first, so that nothing is logged that could not be answered, and held once its record has an LSN. Of `text`, the
 * first `size` bytes are what is answered with. */
pending_commit_t *commit_answer_new(struct bq *bq, struct connection *connection, uint64_t seq, enum pending_kind kind,
                                    const uint8_t *text, uint32_t size, uint32_t more); /* NULL: no memory */
void commit_answer_wait(struct bq *bq, struct connection *connection, pending_commit_t *pending, uint64_t lsn);
void commit_answer_drop(struct bq *bq, pending_commit_t *pending);
bool commit_answer(struct bq *bq, struct connection *connection, uint64_t seq, uint64_t lsn, enum pending_kind kind,
                   const uint8_t *text, uint32_t size);

void commit_turn(struct bq *bq);  /* beginning of a turn: what has become durable goes out */
void commit_end(struct bq *bq);   /* stopping, in time's name: QoS 0 publishes do not wait for a disk any longer */
void commit_begin(struct bq *bq); /* end of a turn: acks are logged, the batch is handed over if it is time */
int commit_open(struct bq *bq, const char *directory, const bq_wal_config_t *config, bq_wal_report_t *report);
int64_t commit_due_ms(struct bq *bq);            /* milliseconds to the next commit that only waits for time; -1: none */
void commit_close(struct bq *bq);                /* at the end of life: checkpoint, close the WAL, drop what is pending */
const char *commit_refusal(const struct bq *bq); /* why QoS 1 cannot be had now; NULL: it can */

#endif
