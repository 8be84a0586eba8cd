/* broker/client.h: a connected client as the broker knows it: its queue, its subscriptions, its rights, and what it waits for.
 *
 *      connection_t (net/connection.h)     [ client_t | transport, input, states, timers ]
 *
 * net/ puts a client_t at the start of each connection. The broker neither reads from a client nor sends to it nor closes it: it
 * appends to the queue, marks the client dirty, and net/ sends at known points of a turn. Requests to net/ go through
 * client_ops_t, answers through protocol_ops_t (proto/protocol.h).
 *
 * Invariant: a client that is not `live` gets no message and has no subscription and no membership, except a dead one, whose
 * subscriptions and memberships end within the work limits of the next turns.
 */
#ifndef BQ_CLIENT_H
#define BQ_CLIENT_H

#include "base/bytes.h"
#include "broker/flight.h"
#include "broker/outqueue.h"
#include "broker/router.h"
#include "broker/waiters.h"

struct broker;
struct client;
struct protocol_ops;

/* Reasons to take no input from it. */
enum client_pause {
    PAUSE_ANSWER = 1, /* Python is handling a request */
    PAUSE_BLOCK = 2,  /* a subscriber's queue is full and the policy is block */
    PAUSE_OUTPUT = 4, /* it does not read its replies */
    PAUSE_EVENTS = 8, /* the event ring is full */
    PAUSE_STOPPING = 16,
    PAUSE_WAL = 32,         /* the WAL's batch is full until the next commit */
    PAUSE_SHARE = 64,       /* it used its share of this turn, or waits in line: see net/fair_share.h */
    PAUSE_UNCOMMITTED = 128 /* too many of its publishes wait for the disk; ends when none does */
};

/* Lists of clients that have data to send. The narrow list, for messages with few subscribers, is flushed first. */
enum flush_order { FLUSH_NARROW = 0, FLUSH_WIDE = 1, FLUSH_LISTS };
typedef struct flush_list {
    struct client **items;
    uint32_t count;
} flush_list_t;

/* A client of a protocol with packet ids. */
typedef struct packets {
    flights_t ids;
    uint32_t bytes_max; /* the largest packet that the client takes */
} packets_t;

typedef struct client {
    bq_conn_t handle;
    const struct protocol_ops *protocol;
    bool live;         /* its connection is open: it gets messages and its requests are taken */
    bool blocked;      /* its transport accepts no more output */
    uint8_t pause;     /* enum client_pause: reasons to take no input; 0: none */
    uint8_t dirty;     /* the flush lists it is on: one bit per enum flush_order */
    bool waiters_left; /* some publishers that waited for its full queue are woken at the next flush */
    bool wal_waiting;  /* on the list of clients that wait for the WAL */
    queue_t queue;
    uint32_t subscription_count;
    uint32_t group_count; /* queue groups it has joined; not among its subscriptions */
    struct acl *acl;      /* publish rights of its key; NULL: it may publish everything */
    subscription_t *subscriptions;
    struct member *members;                   /* its memberships in consumers */
    packets_t *packets;                       /* NULL: its deliveries have no packet ids, but ack timers */
    uint64_t pending_bytes;                   /* bytes of its publishes that wait for the disk */
    uint32_t pending_commits;                 /* number of its publishes that wait for the disk */
    uint64_t dispatch_mark;                   /* LSN of the last message it got through a consumer */
    wait_list_t waiters;                      /* publishers that wait for space in its queue */
    wait_list_t *waits_in;                    /* the list on which it waits for a full queue */
    struct client *wait_next, *wait_previous; /* in that list */
    struct client *wal_next;
    uint64_t route_mark;
    uint32_t drain_round; /* its queue was last drained for the operation with this number */
} client_t;

/* What the broker asks of net/. These functions do not close the client, and do not publish. */
typedef struct client_ops {
    client_t *(*find)(struct broker *broker, bq_conn_t handle); /* NULL: gone */
    void (*resume)(struct broker *broker, client_t *client); /* no pause is left: process its kept input, in this turn or next */
    void (*answered)(struct broker *broker, client_t *client); /* an answer that waited for the disk is in its queue */
} client_ops_t;

/* Ends its subscriptions and memberships. */
void client_leave(struct broker *broker, client_t *client);
/* The same for a dead client, and its queue too, until the work counter reaches `stop`. True: nothing is left. */
bool client_leave_some(struct broker *broker, client_t *client, uint64_t stop);

/* Tells Python that the client is not, or no longer, subscribed. The caller must have checked event_room. */
void event_unsubscribed(struct broker *broker, const client_t *client, const uint8_t *filter, uint32_t filter_size,
                        const uint8_t *group, uint32_t group_size, enum bq_outcome outcome);

static inline client_t *client_of_queue(queue_t *queue) {
    return (client_t *)(void *)((char *)queue - offsetof(client_t, queue));
}

#endif
