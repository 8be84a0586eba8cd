/* broker/consumer.h: a consumer: a QoS 1 subscription or a queue group, its members, its deliveries and its acknowledgements.
 *
 *      WAL    ... [ack'ed ............][floor][d] [d] [d] [d] ............................. next LSN
 *                                             \_______window________/ ^next_lsn: read back from here while `behind`
 *
 * A consumer holds a window of deliveries in LSN order. Messages that do not fit the window of a durable consumer stay in the
 * WAL and are read back when there is room, so an absent client uses disk space, not memory. Other consumers drop messages at
 * their limits.
 *
 * Invariants: every message up to floor_lsn is acknowledged, expired or given up. Every later matching message is in the window
 * or, while `behind`, in the WAL at next_lsn or later. Deliveries are first sent in LSN order, and a delivery is in its member's
 * output queue at most once. Only the floor is written to the WAL. After a crash, messages acknowledged above the floor are
 * delivered again unless a checkpoint recorded them (broker/consumer_history.c): duplicates, never a loss. They are at most two
 * windows, because sending waits for the floor to be durable. After acknowledgements out of order there may be more, because the
 * floor waits for the oldest.
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
#include "broker/wal_quota.h"

struct broker;
struct client;
struct consumer;
struct pending_commit;

/* One connection's membership in one consumer. */
typedef struct member {
    struct consumer *consumer;
    struct client *client;
    struct member *next, **link;               /* the consumer's list */
    struct member *client_next, **client_link; /* the connection's list */
    struct assignment *assignments;            /* unacknowledged deliveries, sent or queued */
    uint32_t flight_count;
    uint8_t qos; /* highest QoS it requested; for QoS 0 sending settles a delivery */
    bool alone;  /* has the last try of one delivery and gets no other meanwhile */
} member_t;

/* A delivery and one member that may acknowledge it; see broker/delivery_lookup.c. */
typedef struct assignment {
    struct delivery *delivery;
    member_t *member;
    struct assignment *chain, **chain_link;        /* hash table by (id, connection) */
    struct assignment *next;                       /* list of the delivery */
    struct assignment *member_next, **member_link; /* list of the member */
} assignment_t;

/* A client_id that keeps a durable subscription: the subscription's own, or one of a queue group. */
typedef struct registration {
    struct registration *next;
    uint64_t id; /* from the same sequence as consumer ids: the end of an older one with the same name does not apply to it */
    uint64_t record_lsn;   /* LSN of its record */
    consumer_owner_t *key; /* key whose count includes it */
    uint64_t hash;
    uint32_t size;
    uint8_t client_id[];
} registration_t;

enum delivery_place {
    DELIVERY_WAITS,  /* not sent yet */
    DELIVERY_QUEUED, /* once in its member's output queue; hold.other is the entry there */
    DELIVERY_HANDED  /* completely written to the socket; its timer is now the ack timeout, before that the expiry */
};

typedef struct delivery {
    queue_entry_t hold; /* keeps the frame's bytes, which compaction may move */
    struct consumer *consumer;
    struct delivery *next, *previous; /* in the window */
    assignment_t now;                 /* current or last member; member NULL: none */
    assignment_t *late;               /* earlier members that received it */
    uint64_t lsn, id;
    uint64_t expiry_tick;          /* 0: never */
    uint32_t deliveries;           /* how often it was handed over */
    uint8_t place;                 /* enum delivery_place */
    bool redelivered;              /* a member may have received it before */
    bool marked;                   /* the frame carries the redelivered flag */
    bool killed;                   /* the last connection that received it closed before an ack */
    bool alone;                    /* its member gets no other delivery meanwhile */
    bool given_up;                 /* not sent any more; see broker/dead_letter.h */
    bool over;                     /* over the WAL quota; see broker/wal_quota.h */
    bool dead_letter_waits;        /* its dead letter waits for room in the WAL */
    uint16_t packet_id;            /* of a client with packet ids; 0: none */
    struct pending_commit *letter; /* its dead letter, waiting for the commit */
    struct delivery *letter_next, *letter_previous;
} delivery_t;

static inline message_t delivery_message(const delivery_t *delivery) {
    message_t message;
    message_decode(delivery->hold.buffer->bytes + delivery->hold.offset, &message);
    return message;
}

/* State of the deliveries of a window that went back to the WAL; see broker/consumer_history.c. */
enum history_flags { HISTORY_REDELIVERED = 1, HISTORY_KILLED = 2 };
typedef struct history_entry {
    uint32_t after; /* LSN minus base_lsn */
    uint16_t deliveries, flags;
} history_entry_t;
typedef struct history {
    uint64_t base_lsn, end_lsn;
    uint32_t count, at; /* at: first entry not read back yet */
    bool tells;         /* has more information than one hand-over of each delivery */
    history_entry_t entries[];
} history_t;

typedef struct consumer {
    struct consumer *next, **link; /* all consumers, the newest first */
    struct consumer *name_chain, *id_chain;
    uint64_t name_hash;
    bq_conn_t owner; /* only connection of a consumer that is neither durable nor grouped; else 0 */
    struct consumer *pump_next, **pump_link;
    consumer_filter_t filter;         /* its only one, or one of a session's */
    struct session *session;          /* its filters, if it may have several; NULL: it has one. See broker/session.h */
    member_t *members, *turn;         /* turn: next member to serve */
    registration_t *registrations;    /* one for a durable subscription, one or more for a durable group; NULL: not durable */
    delivery_t *head, *tail, *cursor; /* the window; cursor: first delivery that may be sent next, NULL: none */
    uint64_t id;                      /* id in the WAL, if durable */
    uint64_t floor_lsn, floor_logged;
    uint64_t next_lsn;     /* while behind */
    uint64_t doubtful_lsn; /* after a restart: messages up to here may have been sent before */
    uint64_t kept_lsn;     /* became durable later: older messages of its window are only in memory */
    uint64_t touched_lsn;  /* highest LSN handed over or settled */
    uint64_t hole_lsn;     /* highest LSN settled before an older one */
    history_t *history;    /* NULL: none */
    uint64_t window_bytes;
    uint32_t window_count, flight_count;
    uint32_t member_count, registration_count;
    uint32_t full_at; /* every member that could take more has at least this many in flight; 0: not known */
    bool grouped, durable, behind, pumping;
    struct reader *reader; /* reads from that reader's block while the generation matches; NULL: none */
    uint32_t read_generation, read_at;
    uint32_t read_bytes;                     /* size of the next record if it exceeds a block; 0: any block size */
    uint32_t read_full;                      /* window count when it was full; 0: something has left it since */
    uint64_t read_again_ms;                  /* time before which it is not read again */
    struct consumer *read_next, **read_link; /* line for a reader; read_link NULL: not in line */
    uint8_t read_failures;                   /* consecutive */
    bool sweep;                              /* read forward without a member; see broker/consumer_sweep.c */
    uint8_t qos;                             /* highest QoS of its filters; 0: it stores no message */
    uint64_t sweep_due_ms;                   /* T of the next sweep */
    consumer_owner_t *key;                   /* key that counts it, by its creator; NULL: counted through its registrations */
    uint64_t settled, settled_logged;        /* deliveries settled in any way; the floor is appended after a change */
    uint64_t settled_safe;                   /* value of `settled` at the newest durable floor */
    uint64_t floor_record_lsn;               /* LSN of the newest floor record */
    uint64_t waited_lsn, waited_settled;     /* of an older floor record whose commit is awaited */
    uint64_t behind_messages, behind_bytes;  /* waiting in the WAL at next_lsn or later */
    uint64_t behind_stamp_ms;                /* wall clock of the oldest of them or of an earlier one; 0: not known */
    bool behind_unsure;                      /* these counts are upper limits after a restart */
    uint64_t seen_wall_ms, seen_ms;          /* when its last connection left: wall clock, and T; 0: not known */
    uint64_t quota_lsn;                      /* older messages are over its WAL quota */
    uint64_t over_untold, over_first_id, over_last_id; /* messages over the quota not yet reported to Python */
    uint64_t over_told_ms, over_quota, dropped_session_log;
    uint64_t enqueued, acked, redelivered, dropped_ttl, dropped_queue_full, dead_lettered;
    uint32_t filter_size, client_id_size, group_size;
    uint8_t text[]; /* filter (of a session: empty), client_id (if not a group), group */
} consumer_t;

static inline const uint8_t *consumer_client_id(const consumer_t *consumer) { return consumer->text + consumer->filter_size; }
static inline const uint8_t *consumer_group(const consumer_t *consumer) {
    return consumer_client_id(consumer) + consumer->client_id_size;
}

/* Limit of durable client_ids per group: each is compared at a SUB and is part of every checkpoint. */
#define GROUP_REGISTRATIONS_MAX 1024u

#define CONSUMER_SLOTS WAL_READS_MAX

/* A reader and the block that it read last; see broker/consumer_read.c. */
typedef struct reader {
    uint8_t *buffer; /* from the pool, so the budget counts it; NULL: none */
    uint32_t capacity, used;
    uint64_t first_lsn, next_lsn;
    uint64_t since_ms;   /* time of the read */
    uint32_t users;      /* consumers that read from the block */
    uint32_t generation; /* changes with each block */
    bool loaded, reading;
    consumer_t *asker; /* consumer that started the current read; NULL: none, or it has given up */
} reader_t;

#define MARKED_SLOTS 64u

/* State shared by all consumers. */
typedef struct consumers {
    consumer_t *all;
    uint32_t count;
    uint32_t
        group_registrations; /* client_ids of durable groups, without the first of each group; limits.max_sessions counts them */
    uint64_t next_id;        /* id of the newest consumer or registration */
    uint64_t next_session;   /* of the newest session; see broker/session_store.c */
    uint64_t kept_from;      /* from the newest checkpoint: the WAL may have deleted older records */
    consumer_t **names, **ids; /* hash tables by name and by id, of the same size */
    uint32_t table_size;
    assignment_t **flight; /* hash table of assignments */
    uint32_t flight_size;
    uint32_t flight_count;         /* deliveries queued or handed over */
    bool last_checkpoint;          /* the final checkpoint, which stores everything */
    consumer_t *pump, **pump_tail; /* consumers with possible work, in order of request */
    uint32_t pump_count;
    consumer_list_t list;
    reader_t readers[CONSUMER_SLOTS];
    consumer_t *read_first, **read_last;   /* line for a reader */
    uint64_t read_due_ms;                  /* time of the next check of the line */
    uint64_t read_failing;                 /* consumers whose last read failed */
    struct delivery *marked[MARKED_SLOTS]; /* by id: a delivery whose frame has the redelivered flag; others share its bytes */
    bool readers_changed;
    consumer_end_t *ending; /* oldest first */
    consumer_owner_t *owners[OWNER_CHAINS];
    consumer_t *expire_next; /* next consumer to check for expiry; NULL: the first */
    uint64_t expire_due_ms;
    consumer_t *quota_next; /* the same for the WAL quota */
    uint64_t quota_due_ms, quota_cut_lsn, quota_cut_letters_lsn, quota_looked_lsn, quota_step_lsn;
    quota_letters_t quota_letters;
    bool quota_tight;  /* the WAL is more than half full and a consumer may be over the quota */
    uint64_t begun_ms; /* T at the start, once known */
    bool seen_changed; /* a connection of a consumer came or left since the last checkpoint */
    uint64_t replayed_messages, replayed_bytes, replayed_stamp_ms; /* publishes found at the start after the checkpoint */
} consumers_t;

bool consumers_init(struct broker *broker);
void consumers_release(struct broker *broker);

/* Requests. */
typedef struct consumer_request {
    const uint8_t *filter, *client_id, *group;
    uint32_t filter_size, client_id_size, group_size;
    uint32_t subscription_id; /* of a session's filter; 0: none */
    uint8_t qos;
    bool durable, keyed; /* keyed: the limits of its key apply */
    bool session;        /* the filter is one of the client's session */
    bool no_local, retain_as_published;
} consumer_request_t;
/* False: the request was refused, the refusal was answered, and nothing has changed. *remains: the connection has the
 * subscription, also if a refused request had it before. `route_new`: this request has also added a route, which is removed if
 * the disk fails later. */
bool consumer_subscribe(struct broker *broker, struct client *client, uint64_t seq, const consumer_request_t *request,
                        bool route_new, bool *remains);
void consumer_subscribe_undo(struct broker *broker, struct client *client, const struct pending_commit *pending);

/* Ends the subscriptions of UNSUB, with their routes. *ended: false if there was none. The caller answers, unless *pending: then
 * the answer waits for the commit. False: refused because of missing room; nothing has changed. */
bool consumer_unsubscribe(struct broker *broker, struct client *client, uint64_t seq, const consumer_request_t *request,
                          bool *ended, bool *pending);
void consumer_ack(struct broker *broker, struct client *client, uint64_t id);
/* The same for a client with packet ids. `refused`: the client does not take the message, which becomes a dead letter. */
void consumer_packet_acked(struct broker *broker, struct client *client, uint16_t packet_id, uint64_t id, bool refused);
void consumer_leave_one(struct broker *broker, struct client *client); /* the first membership in its list */
void consumer_leave_all(struct broker *broker, struct client *client);

/* A message is durable: takes it into the window, or records that the WAL holds it. */
bool consumer_offer(struct broker *broker, consumer_t *consumer,
                    const struct pending_commit *pending); /* false: no room in memory */
struct client *consumer_turn(consumer_t *consumer);        /* next live member of the group; NULL: none */

void consumer_timeout(struct broker *broker, delivery_t *delivery);
void delivery_handed(void *broker, queue_entry_t *hold); /* a queue_handed: the last byte was written */
void consumer_pump_all(struct broker *broker);           /* appends floors, sends deliveries, starts reads */
void consumers_sweep(struct broker *broker);             /* reads absent consumers past expired messages */
void consumers_aged(struct broker *broker, uint64_t ms); /* messages found at the start are this much older than assumed */
uint32_t
consumers_missed(struct broker *broker,
                 const struct pending_commit *pending); /* dispatch failed: durable consumers will read the message back */
void consumer_read_finished(struct broker *broker, const wal_read_t *read);
void consumer_reads_turn(struct broker *broker);             /* serves the line for readers */
uint64_t consumer_reads_due_ms(const struct broker *broker); /* time of the next such turn; UINT64_MAX: never */

/* Recovery and checkpoints. */
bool consumer_restore(void *context, const wal_record_t *record); /* a wal_visit; context: the bq_t */
void consumer_restored(struct broker *broker);
void consumers_go_on(struct broker *broker); /* all records found at the start are durable now */
uint8_t *consumers_serialize(struct broker *broker, uint32_t *size,
                             uint64_t *keep_from); /* allocated by malloc; NULL: no memory */

#endif
