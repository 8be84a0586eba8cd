/* broker/commit.h: pending commits: QoS 1 publishes and answers to durable requests that wait for the disk, in LSN order.
 *
 * Invariant: an entry leaves this queue only after wal_durable has passed its LSN, and entries leave in LSN order. So the reply
 * to the publisher and the deliveries to consumers follow the same fdatasync.
 */
#ifndef BQ_COMMIT_H
#define BQ_COMMIT_H

#include "base/bytes.h"
#include "broker/outqueue.h"
#include "proto/encoding.h"

struct broker;
struct client;
struct consumer;
struct topic;

enum pending_kind {
    PENDING_PUBLISH, /* QoS 1 */
    PENDING_FOLLOW,  /* after an uncommitted QoS 1 publish of the same connection: keeps the order; not in the WAL. With QoS 0,
                      * or with QoS 1 and without a receiver that needs the WAL; then seq is not 0 and it is answered */
    PENDING_GONE,    /* a PENDING_FOLLOW that was dispatched early */
    PENDING_SUBACK,  /* answer to a durable SUB */
    PENDING_REPLY    /* answer to an UNSUB of a durable subscription */
};

/* The changes that a pending SUB has made. They are undone if the disk fails. */
enum pending_undo {
    PENDING_UNDO_ROUTE = 1,
    PENDING_UNDO_MEMBER = 2,
    PENDING_UNDO_REGISTRATION = 4,
    PENDING_UNDO_CONSUMER = 8,
    PENDING_UNDO_FILTER = 16 /* of a session */
};

typedef struct pending_commit {
    queue_entry_t hold; /* the message, encoded for QoS 1 (publishes), or the text of the answer (PENDING_SUBACK) */
    struct pending_commit *next;
    bq_conn_t conn; /* 0: no connection gets an answer */
    uint64_t seq;
    uint64_t lsn, id;
    uint64_t timestamp_ms, ttl_ms, expiry_tick;
    uint32_t payload_size; /* PENDING_SUBACK: size of the group after the filter */
    uint16_t topic_size, properties_size;
    uint8_t kind;
    uint8_t undo;              /* PENDING_SUBACK: enum pending_undo; id: of the registration */
    struct delivery *delivery; /* of a dead letter: the original delivery */
} pending_commit_t;

/* The dispatch of a publish that stopped at a full queue. */
typedef struct pending_dispatch {
    bool begun;      /* the consumers have it */
    uint32_t stored; /* so many of them stored it */
    uint32_t given;  /* so many QoS 0 targets have it, and then queue groups */
} pending_dispatch_t;

static inline const uint8_t *pending_bytes_at(const pending_commit_t *pending) {
    return pending->hold.buffer->bytes + pending->hold.offset;
}
static inline message_t pending_message(const pending_commit_t *pending) { /* publishes only */
    message_t message;
    message_decode(pending_bytes_at(pending), &message);
    return message;
}

/* Head of a WAL_PUBLISH record. Topic, payload and properties follow. */
typedef struct publish_record {
    uint64_t id, timestamp_ms, ttl_ms;
    uint64_t mono_ms; /* clock of the writing process: gives the remaining ttl while `run` is the same */
    uint64_t run;
    uint32_t topic_size;
    uint32_t properties_size; /* after the payload; versions without properties read them as part of it */
} publish_record_t;

/* With this flag, the properties are a dead_letter_record_t and the topic has no dead-letter prefix. So the dead letter of a
 * short message is hardly larger than the message, and a WAL full of short messages can be emptied. */
#define PUBLISH_DEAD_LETTER 1u
typedef struct dead_letter_record {
    uint64_t id;               /* of the original message */
    uint32_t deliveries, over; /* over: reason is the consumer's WAL quota, not max_deliveries */
} dead_letter_record_t;

enum commit_outcome { COMMIT_PENDING, COMMIT_LATER, COMMIT_REFUSED };

/* Appends a QoS 1 publish to the WAL and queues it. COMMIT_LATER: the batch is full, retry after it is written. COMMIT_REFUSED:
 * *why. */
enum commit_outcome commit_publish(struct broker *broker, struct client *client, uint64_t seq, const message_t *message,
                                   const char **why);
struct dead_letter;
/* Appends a dead letter to the WAL and queues it; dead_letter_written reports the result. Returns the LSN, or wal_append's
 * error. */
int64_t commit_dead_letter(struct broker *broker, const struct dead_letter *letter);
/* The same when only QoS 0 subscribers match: nothing is written to the WAL. False: no memory. */
bool commit_dead_letter_follow(struct broker *broker, const struct dead_letter *letter);
/* Whether a QoS 0 publish may be queued too. False: its publisher waits. */
bool commit_follow_room(const struct broker *broker, const struct client *client);
/* The client's input waits for the next commit. */
void commit_wait(struct broker *broker, struct client *client);
/* seq 0: there is no answer. False: no memory. */
bool commit_follow(struct broker *broker, struct client *client, uint64_t seq, const message_t *message);
/* Allocates the answer before the record is appended: no record without an answer. commit_answer_wait queues it when the LSN is
 * known. The answer contains the first `size` bytes of `text`. */
pending_commit_t *commit_answer_new(struct broker *broker, struct client *client, uint64_t seq, enum pending_kind kind,
                                    const uint8_t *text, uint32_t size, uint32_t more); /* NULL: no memory */
void commit_answer_wait(struct broker *broker, struct client *client, pending_commit_t *pending, uint64_t lsn);
void commit_answer_drop(struct broker *broker, pending_commit_t *pending);
bool commit_answer(struct broker *broker, struct client *client, uint64_t seq, uint64_t lsn, enum pending_kind kind,
                   const uint8_t *text, uint32_t size);

/* Start of a turn: dispatches and answers durable entries. broker->full is set: drain that queue and call it again. */
void commit_turn(struct broker *broker);
void commit_end(struct broker *broker);   /* stop deadline reached: QoS 0 publishes no longer wait for the disk */
void commit_begin(struct broker *broker); /* end of a turn: appends acks; commits the batch when due */
int commit_open(struct broker *broker, const char *directory, const bq_wal_config_t *config, bq_wal_report_t *report);
int64_t commit_due_ms(struct broker *broker); /* milliseconds until the next timed commit; -1: none */
void commit_close(
    struct broker *broker); /* before the core is freed: writes a checkpoint, closes the WAL, refuses pending commits */
const char *commit_refusal(const struct broker *broker); /* why QoS 1 is not available now; NULL: it is */

#endif
