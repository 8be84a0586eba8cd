/* net/connection.h: one client: its socket (or the memory of the process), its unparsed input, what it may do, what it waits for.
 *
 *      OPEN --(QUIT or end of file, answers wait for the disk)--> ENDING --(all answered)--> CLOSING
 *      OPEN --(QUIT or end of file; refused; a bad frame of a client that said HELLO)------> CLOSING --(all sent)--> LINGERING
 *      OPEN --(reset, vanished; QUIT or end of file with nothing to send; bad frame)-------> DEAD
 *      CLOSING, after end of file --(all sent)--> DEAD      LINGERING --(end of file, 1 s)--> DEAD
 *
 * Invariants: no frame is parsed while pause is not 0. A connection stays where it is in memory until the turn that reaps
 * it, so that target lists and poll results of that turn may still point at it; anything that would use it checks the state.
 */
#ifndef BQ_CONNECTION_H
#define BQ_CONNECTION_H

#include "base/bytes.h"
#include "broker/outqueue.h"
#include "broker/router.h"
#include "broker/waiters.h"

enum connection_state {
    CONNECTION_FREE,
    CONNECTION_OPEN,
    CONNECTION_ENDING, /* it sends no more and gets no messages; answers to it still wait for the disk */
    CONNECTION_CLOSING,
    CONNECTION_LINGERING,
    CONNECTION_DEAD
};

enum connection_pause {
    PAUSE_ANSWER = 1, /* a request is with Python */
    PAUSE_BLOCK = 2,  /* a subscriber's queue is full and the policy is block */
    PAUSE_OUTPUT = 4, /* it does not read its replies */
    PAUSE_EVENTS = 8, /* the event ring is full */
    PAUSE_STOPPING = 16,
    PAUSE_WAL = 32,         /* the WAL's batch is full: a commit will make room */
    PAUSE_SHARE = 64,       /* it has used its share of this turn, or waits in line for the next: see net/fair_share.h */
    PAUSE_UNCOMMITTED = 128 /* too much of what it published waits for the disk: it goes on when none does */
};

typedef struct connection {
    bq_conn_t handle;
    const struct transport_ops *transport;
    const struct protocol_ops *protocol;
    int fd; /* -1: none */
    uint8_t state;
    uint8_t pause;
    uint8_t interest; /* what the poller has been told */
    uint8_t close_code;
    bool admitted;            /* may send commands other than HELLO */
    bool hello;               /* said HELLO and was admitted: gets Replies */
    bool trusted;             /* of this process: needs no HELLO, whatever the settings */
    bool known;               /* Python has heard of it and will hear of its end */
    bool refused;             /* over max_connections: only here to be told so */
    bool broken;              /* it was reset while its input stood still: the poller would report that for ever */
    bool watched;             /* something that it was sent may not have been acknowledged */
    bool grace;               /* its promise is overdue, and what it sent may still be on its way */
    bool blocked;             /* the socket (or the credit) takes no more */
    uint8_t dirty;            /* on which flush lists: enum flush_list, a bit each */
    bool unadmitted, silent;  /* not admitted yet, and in line to be pushed out: see net/admission.h */
    bool ready;               /* on a list of connections with input to go on with */
    bool heavy;               /* it used much of its share the last time */
    bool waiters_left;        /* some of those its full queue held back are woken when it is flushed next */
    bool unread;              /* in line because its socket has something */
    bool wal_waiting;         /* on the list of those that wait for the WAL */
    bool retrying;            /* on the list of those that wait for room in the event ring */
    bool input_ended;         /* no more input comes */
    const char *close_detail; /* static text */
    int send_error;           /* an errno: its transport has failed, and the next flush ends it */
    queue_t queue;
    uint8_t *in; /* input that is not a whole frame yet, or came while paused: in_size bytes from in_start */
    uint32_t in_start, in_size, in_capacity;
    uint32_t credit_used;    /* bytes in BQ_EV_OUT events whose CREDIT has not come back */
    uint32_t input_consumed; /* bytes parsed and not yet reported by BQ_EV_CONSUMED */
    uint32_t subscription_count;
    uint32_t group_count; /* queue groups it is in: they are not among its subscriptions */
    topic_t *last_topic;  /* a hint: compare the name before use */
    struct acl *acl;      /* of its key, for publishing; NULL: it may publish everything */
    subscription_t *subscriptions;
    struct member *members;                       /* its part in consumers */
    uint64_t pending_bytes;                       /* of its publishes that wait for the disk */
    uint32_t pending_commits;                     /* its publishes that wait for the disk */
    uint64_t dispatch_mark;                       /* LSN of the last message it got through a consumer */
    wait_list_t waiters;                          /* publishers that this one's full queue holds back */
    wait_list_t *waits_in;                        /* whose full queue holds this one back */
    struct connection *wait_next, *wait_previous; /* in that list */
    uint64_t debt; /* units of work it has had beyond its share: it sits out so much before it is served again */
    struct connection *ready_next, *retry_next, *dead_next, *wal_next;
    core_timer_t timer; /* HELLO in time, end of lingering */
    struct connection *silent_prev, *silent_next;
    struct connection *watched_previous, *watched_next; /* see net/keepalive.h */
    uint64_t heard_ms;                                  /* when it last sent anything */
    uint64_t doubt_ms;                                  /* since when it may be gone; 0: nothing speaks for that */
    uint32_t keepalive_ms;                              /* it has promised to send something in each such interval; 0: nothing */
    uint64_t route_mark;
    uint8_t peer[16];
    uint16_t peer_port;
} connection_t;

struct bq;
struct protocol_ops;
struct transport_ops;

/* Life. */
connection_t *connection_open(struct bq *bq, const struct transport_ops *transport, int fd, const uint8_t peer[16], uint16_t port,
                              bool trusted);                    /* NULL: no slot or memory */
connection_t *connection_find(struct bq *bq, bq_conn_t handle); /* NULL: gone */
void connection_hurry(struct bq *bq, connection_t *connection,
                      uint64_t passed_ms); /* so much of the time it has to say HELLO in is over */

/* Its end: net/connection_end.c. */
void connection_close(struct bq *bq, connection_t *connection, uint8_t code,
                      const char *detail); /* at once; reaped at the turn's end */
void connection_finish(struct bq *bq, connection_t *connection, uint8_t code,
                       const char *detail); /* after what is queued has been sent */
void connection_input_ended(struct bq *bq, connection_t *connection,
                            uint8_t code);                         /* it sends no more: answer what is open, then close */
void connection_answered(struct bq *bq, connection_t *connection); /* one of its answers has come from the disk */
void connection_all_sent(struct bq *bq, connection_t *connection); /* a closing one's queue is empty */
void connection_end_late(struct bq *bq, connection_t *connection); /* the time to end in is over */
void connection_broken(struct bq *bq, connection_t *connection, int error); /* its socket failed with this errno */
void connection_error(struct bq *bq, connection_t *connection);             /* the poller reports an error on its socket */
void connection_discard(struct bq *bq,
                        connection_t *connection); /* it gets nothing more but Replies: routes and queue are gone */
void connection_need_hello(struct bq *bq, connection_t *connection); /* require_hello is set now, and it came in without a key */
bool connection_free(
    struct bq *bq,
    connection_t *connection); /* free everything; false: some list or event still has to let go of it, try next turn */

/* Input. */
void connection_readable(struct bq *bq, connection_t *connection);
/* For transports: `bytes` may lie in the connection's own buffer; room for more there, false: none, it has been closed; the end. */
void input_process(struct bq *bq, connection_t *connection, const uint8_t *bytes, uint32_t size);
bool input_reserve(struct bq *bq, connection_t *connection, uint32_t more);
void input_end(struct bq *bq, connection_t *connection, int error);
void connection_memory_input(struct bq *bq, connection_t *connection, const uint8_t *bytes, uint32_t size);
void connection_memory_end(struct bq *bq, connection_t *connection);             /* its end of file */
void connection_credit(struct bq *bq, connection_t *connection, uint64_t bytes); /* so much of its output has left */
void connection_input_drop(struct bq *bq, connection_t *connection);             /* forget what has not been parsed */
void connection_resume(struct bq *bq, connection_t *connection, uint8_t pause);  /* end one reason to pause */
void connection_continue(struct bq *bq, connection_t *connection);               /* parse what waits, after a pause */

/* Output. */
/* One send of at most a batch. connection_flush may close the connection, so it is called at known points of a turn only;
 * connection_send leaves that to the next connection_flush, and may be called while a run is given out. */
void connection_flush(struct bq *bq, connection_t *connection);
void connection_send(struct bq *bq, connection_t *connection);
/* A control frame behind what waits. output_reserve: room for `size` bytes, NULL if it takes none (any more); output_push: so many of
 * them were written. */
uint8_t *output_reserve(struct bq *bq, connection_t *connection, uint32_t size);
void output_push(struct bq *bq, connection_t *connection, uint32_t size);
void output_sent(struct bq *bq, connection_t *connection, uint64_t bytes); /* for transports: so much of the queue has left */
void connection_release_waiters(struct bq *bq, connection_t *connection);  /* whatever room it has */
void connection_update_interest(struct bq *bq, connection_t *connection);

/* Whether a Reply may still go into its queue. */
static inline bool connection_takes_answers(const connection_t *connection) {
    return connection->state == CONNECTION_OPEN || connection->state == CONNECTION_ENDING;
}

static inline connection_t *connection_of_queue(queue_t *queue) {
    return (connection_t *)(void *)((char *)queue - offsetof(connection_t, queue));
}

#endif
