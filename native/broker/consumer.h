/* broker/consumer.h: a QoS 1 subscription or a queue group: whom it is for, what it has given out, what has been acknowledged.
 *
 *      WAL    ... [ack'ed ............][floor][d] [d] [d] [d] ............................. next LSN
 *                                             \_______window________/ ^next_lsn: read back from here while `behind`
 *
 * A consumer holds a window of deliveries in LSN order. What does not fit the window of a durable consumer stays in the WAL
 * and is read back when there is room: an absent client costs disk, not memory. Others drop, as their policy says.
 *
 * Invariants: every message up to floor_lsn is acknowledged, expired or given up; every later one that matches is in the
 * window, or, while `behind`, in the WAL at next_lsn or later. A delivery is first sent in LSN order, and stands in its member's
 * output queue at most once. Only the floor is logged: what was acknowledged above it comes again after a crash, as far as no
 * checkpoint tells (broker/consumer_history.c): duplicates, never a loss, and no more than two windows of them, because sending waits for the
 * WAL there (out of order they may be more: the floor waits for the gap to close).
 */
#ifndef BQ_CONSUMER_H
#define BQ_CONSUMER_H

#include "base/bytes.h"
#include "wal/wal.h"
#include "proto/encoding.h"
#include "broker/outqueue.h"
#include "broker/router.h"
#include "broker/consumer_end.h"
#include "broker/consumer_expire.h"
#include "broker/consumer_list.h"
#include "broker/consumer_owner.h"
#include "broker/consumer_quota.h"

struct bq;
struct connection;
struct consumer;
struct pending_commit;

/* One connection's part in one consumer. */
typedef struct member {
    struct consumer *consumer;
    struct connection *connection;
    struct member *next, **link;                       /* the consumer's members */
    struct member *connection_next, **connection_link; /* the connection's consumers */
    struct assignment *assignments;                    /* what it has been handed and not acknowledged, or is about to be */
    uint32_t flight_count;
    uint8_t qos; /* the highest it asked for; what one of QoS 0 is handed is settled by that */
    bool alone;  /* it tries one delivery, and gets no other before that has ended */
} member_t;

/* A delivery and one member that may acknowledge it: see broker/consumer_flight.c. */
typedef struct assignment {
    struct delivery *delivery;
    member_t *member;
    struct assignment *chain, **chain_link;        /* in the table, by (id, connection) */
    struct assignment *next;                       /* of the same delivery */
    struct assignment *member_next, **member_link; /* of the same member */
} assignment_t;

/* A client_id for which a durable subscription is kept while it is away: its own, or one of those of a queue group. */
typedef struct registration {
    struct registration *next;
    uint64_t id;           /* from the same numbers as consumers' ids: what ended an older one of that name does not end it */
    uint64_t record_lsn;   /* its record in the WAL */
    consumer_owner_t *key; /* where it is counted */
    uint64_t hash;
    uint32_t size;
    uint8_t client_id[];
} registration_t;

enum delivery_place {
    DELIVERY_WAITS,  /* to be sent */
    DELIVERY_QUEUED, /* in the output queue of its member, once: hold.other is the entry there */
    DELIVERY_HANDED  /* the socket has taken its last byte; its timer is the ack timeout, else it is the expiry */
};

typedef struct delivery {
    queue_entry_t hold; /* keeps the frame's bytes (compaction may move them) */
    struct consumer *consumer;
    struct delivery *next, *previous; /* in the window */
    assignment_t now;                 /* whom it is with, or was with last; member NULL: nobody */
    assignment_t *late;               /* others who were handed it */
    uint64_t lsn, id;
    uint64_t expiry_tick;          /* 0: never */
    uint32_t deliveries;           /* times it was handed over */
    uint8_t place;                 /* enum delivery_place */
    bool redelivered;              /* somebody may have seen it */
    bool marked;                   /* the frame says so */
    bool killed;                   /* the connection that was handed it last ended */
    bool alone;                    /* its member gets nothing else meanwhile */
    bool given_up;                 /* not sent any more: see broker/dead_letter.h */
    bool over;                     /* because of the quota of the WAL: see broker/consumer_quota.h */
    bool dead_letter_waits;        /* in line to be logged */
    struct pending_commit *letter; /* its dead letter, on its way to the disk */
    struct delivery *letter_next, *letter_previous;
} delivery_t;

static inline message_t delivery_message(const delivery_t *delivery) {
    message_t message;
    message_decode(delivery->hold.buffer->bytes + delivery->hold.offset, &message);
    return message;
}

/* What is remembered of what was in the window when it was left: see broker/consumer_history.c. */
enum history_flags { HISTORY_REDELIVERED = 1, HISTORY_KILLED = 2 };
typedef struct history_entry {
    uint32_t after; /* its LSN, from the base on */
    uint16_t deliveries, flags;
} history_entry_t;
typedef struct history {
    uint64_t base_lsn, end_lsn;
    uint32_t count, at; /* at: the first entry that may still be asked for */
    bool tells;         /* more than that each was handed over once */
    history_entry_t entries[];
} history_t;

typedef struct consumer {
    struct consumer *next, **link; /* all, the newest first */
    struct consumer *name_chain, *id_chain;
    uint64_t name_hash;
    bq_conn_t owner; /* of one that is neither durable nor grouped: its only connection; else 0 */
    struct consumer *pump_next, **pump_link;
    consumer_route_t route;
    member_t *members, *turn;         /* turn: who is served next */
    registration_t *registrations;    /* one of a durable subscription, at least one of a durable group; NULL: not durable */
    delivery_t *head, *tail, *cursor; /* the window; cursor: where to look for the next to send, NULL: nowhere */
    uint64_t id;                      /* of a durable one, for the WAL */
    uint64_t floor_lsn, floor_logged;
    uint64_t next_lsn;     /* while behind */
    uint64_t doubtful_lsn; /* after a restart: up to here it may have been sent before */
    uint64_t born_lsn;     /* what comes after this is for it; 0: it was not durable when it began */
    uint64_t kept_lsn;     /* made durable later: what its window holds from before this is in memory only */
    uint64_t touched_lsn;  /* the highest that was handed over, or settled */
    uint64_t hole_lsn;     /* the highest that was settled before an older one */
    history_t *history;    /* NULL: nothing is remembered */
    uint64_t window_bytes;
    uint32_t window_count, flight_count;
    uint32_t member_count, registration_count;
    uint32_t full_at; /* no member has fewer than so many in flight and could take one; 0: not known */
    bool grouped, durable, behind, pumping;
    struct reader *reader; /* it goes on in that one's block, if generation is still read_generation; NULL: in none */
    uint32_t read_generation, read_at;
    uint32_t read_bytes;                     /* of the record that is next, if the block was too small for it; 0: any will do */
    uint32_t read_full;                      /* deliveries in the window when no more fitted; 0: not since something left it */
    uint64_t read_again_ms;                  /* not before this */
    struct consumer *read_next, **read_link; /* in line for a reader; read_link NULL: it is not */
    uint8_t read_failures;                   /* in a row */
    bool sweep;                              /* absent, and read forward all the same: see broker/consumer_sweep.c */
    uint64_t sweep_due_ms;                   /* T when there may be something to let go of again */
    uint8_t qos;
    consumer_owner_t *key;               /* where it is counted, for who made it; NULL: it is kept for registrations, which are */
    uint64_t settled, settled_logged;    /* deliveries done with, one way or another: the floor is logged when this has moved */
    uint64_t settled_safe;               /* how many were when the newest floor that is on disk was logged */
    uint64_t floor_record_lsn;           /* of the newest floor logged */
    uint64_t waited_lsn, waited_settled; /* of an older one, whose commit is waited for */
    uint64_t behind_messages, behind_bytes; /* that wait for it in the WAL, at next_lsn or later */
    uint64_t behind_stamp_ms;               /* wall clock of the oldest of them, or of one before it; 0: not known */
    bool behind_unsure;                     /* a restart has lost count: they are at most so many */
    uint64_t seen_wall_ms, seen_ms;         /* when its last connection left it, by the wall clock and by T; 0: not known */
    uint64_t quota_lsn;                     /* what lies before this is over its quota of the WAL */
    uint64_t over_untold, over_first_id, over_last_id; /* of such, those that Python has not been told of */
    uint64_t over_told_ms, over_quota, dropped_session_log;
    uint64_t enqueued, acked, redelivered, dropped_ttl, dropped_queue_full, dead_lettered;
    uint32_t filter_size, client_id_size, group_size;
    uint8_t text[]; /* filter, client_id of one that is no group, group */
} consumer_t;

static inline const uint8_t *consumer_client_id(const consumer_t *consumer) { return consumer->text + consumer->filter_size; }
static inline const uint8_t *consumer_group(const consumer_t *consumer) {
    return consumer_client_id(consumer) + consumer->client_id_size;
}

/* A group's durable client_ids: each is compared at a SUB, and each costs a line of every checkpoint. */
#define GROUP_REGISTRATIONS_MAX 1024u

#define CONSUMER_SLOTS WAL_READS_MAX

/* One reader and the block it has read last: see broker/consumer_read.c. */
typedef struct reader {
    uint8_t *buffer; /* of the pool, so that it counts; NULL: none */
    uint32_t capacity, used;
    uint64_t first_lsn, next_lsn;
    uint64_t since_ms;   /* when it was read */
    uint32_t users;      /* consumers that go on in it */
    uint32_t generation; /* another one with each block */
    bool loaded, reading;
    consumer_t *asker; /* whose need the read under way is for; NULL: nobody's (any more) */
} reader_t;

#define MARKED_SLOTS 64u

/* What the core keeps for all consumers. */
typedef struct consumers {
    consumer_t *all;
    uint32_t count;
    uint32_t
        group_registrations;   /* client_ids of durable groups, beyond the first of each: limits.max_sessions counts them too */
    uint64_t next_id;          /* of the newest consumer or registration */
    uint64_t kept_from;        /* as the newest checkpoint says: the WAL has let go of what is older */
    consumer_t **names, **ids; /* hash tables of all, and of those with an id, of one size */
    uint32_t table_size;
    assignment_t **flight; /* hash table of who may acknowledge what */
    uint32_t flight_size;
    uint32_t flight_count;         /* deliveries that are queued or handed over */
    bool last_checkpoint;          /* the one at the end, which holds all there is to know */
    consumer_t *pump, **pump_tail; /* those that may have something to do, the first to say so first */
    uint32_t pump_count;
    consumer_list_t list;
    reader_t readers[CONSUMER_SLOTS];
    consumer_t *read_first, **read_last;   /* those in line for one */
    uint64_t read_due_ms;                  /* when they are looked at again, if nothing happens before */
    uint64_t read_failing;                 /* consumers whose last read brought nothing */
    struct delivery *marked[MARKED_SLOTS]; /* by id: one whose frame says that it comes again; others share its bytes */
    bool readers_changed;
    consumer_end_t *ending; /* the oldest first */
    consumer_owner_t *owners[OWNER_CHAINS];
    consumer_t *expire_next; /* where to go on looking for those that expire; NULL: at the first */
    uint64_t expire_due_ms;
    consumer_t *quota_next; /* the same for those over their quota of the WAL */
    uint64_t quota_due_ms, quota_cut_lsn, quota_cut_letters_lsn, quota_looked_lsn, quota_step_lsn;
    quota_letters_t quota_letters;
    bool quota_tight;  /* the WAL is more than half full, and somebody may be over the quota */
    uint64_t begun_ms; /* T at the start, once it is known */
    bool seen_changed; /* who is connected to what, since the last checkpoint */
    uint64_t replayed_messages, replayed_bytes, replayed_stamp_ms; /* at the start: publishes behind the checkpoint */
} consumers_t;

bool consumers_init(struct bq *bq);
void consumers_release(struct bq *bq);

/* Requests. */
typedef struct consumer_request {
    const uint8_t *filter, *client_id, *group;
    uint32_t filter_size, client_id_size, group_size;
    uint8_t qos;
    bool durable, keyed; /* keyed: limits of its key count */
} consumer_request_t;
/* False: it was refused and answered so, and all is as it was. *remains: the connection has the subscription (in that case too,
 * if it had it before). `route_new`: what else this request has made, to be taken back if the disk refuses it later. */
bool consumer_subscribe(struct bq *bq, struct connection *connection, uint64_t seq, const consumer_request_t *request,
                        bool route_new, bool *remains);
void consumer_subscribe_undo(struct bq *bq, struct connection *connection, const struct pending_commit *pending);

/* Ends what UNSUB of that filter ends, its route too. *ended: false if there was none. The answer is the caller's, unless *pending: it
 * waits for the disk. False: refused, for want of room, and all is as it was. */
bool consumer_unsubscribe(struct bq *bq, struct connection *connection, uint64_t seq, const consumer_request_t *request,
                          bool *ended, bool *pending);
void consumer_ack(struct bq *bq, struct connection *connection, uint64_t id);
void consumer_leave_one(struct bq *bq, struct connection *connection); /* the first of those it is in */
void consumer_leave_all(struct bq *bq, struct connection *connection);

/* A message has become durable: take it into the window, or note that it is in the WAL. */
bool consumer_offer(struct bq *bq, consumer_t *consumer,
                    const struct pending_commit *pending); /* false: it finds no room in memory */
struct connection *consumer_turn(consumer_t *consumer);    /* the group's next live member; NULL: none */

void consumer_timeout(struct bq *bq, delivery_t *delivery);
void delivery_handed(void *bq, queue_entry_t *hold); /* its last byte has left: a queue_handed */
void consumer_pump_all(struct bq *bq);               /* WAL what was settled, send what can be sent, fetch what is missing */
void consumers_sweep(struct bq *bq);                 /* absent ones let go of what has expired */
void consumers_aged(struct bq *bq, uint64_t ms);     /* what was found at the start is so much older than was known */
uint32_t
consumers_missed(struct bq *bq,
                 const struct pending_commit *pending); /* a message could not be offered: durable consumers read it back later */
void consumer_read_finished(struct bq *bq, const wal_read_t *read);
void consumer_reads_turn(struct bq *bq);             /* those in line for a reader */
uint64_t consumer_reads_due_ms(const struct bq *bq); /* when that is due; UINT64_MAX: never */

/* Recovery and checkpoints. */
bool consumer_restore(void *context, const wal_record_t *record); /* a wal_visit; context: the bq */
void consumer_restored(struct bq *bq);
void consumers_go_on(struct bq *bq); /* all that was found at the start is durable now */
uint8_t *consumers_serialize(struct bq *bq, uint32_t *size, uint64_t *keep_from); /* malloc'ed; NULL: no memory */

#endif
