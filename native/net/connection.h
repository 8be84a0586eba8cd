/* net/connection.h: one client connection: its transport, its unparsed input, its rights, and the events that it waits for.
 *
 *      OPEN --(QUIT or end of file, answers wait for the disk)--> ENDING --(all answered)--> CLOSING
 *      OPEN --(QUIT or end of file; refused; a bad frame of a client that said HELLO)------> CLOSING --(all sent)--> LINGERING
 *      OPEN --(reset, vanished; QUIT or end of file with nothing to send; bad frame)-------> DEAD
 *      CLOSING, after end of file --(all sent)--> DEAD   LINGERING --(end of file, 1 s)--> DEAD
 *
 * Invariants: no frame is parsed while pause is not 0. A connection keeps its memory address until the turn that frees it,
 * because target lists and poll results of a turn may point at it. Code that uses such a pointer checks the state first.
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
    CONNECTION_ENDING, /* its input has ended and it gets no messages; answers to it still wait for the disk */
    CONNECTION_CLOSING,
    CONNECTION_LINGERING,
    CONNECTION_DEAD
};

enum connection_pause {
    PAUSE_ANSWER = 1, /* Python is handling a request */
    PAUSE_BLOCK = 2,  /* a subscriber's queue is full and the policy is block */
    PAUSE_OUTPUT = 4, /* it does not read its replies */
    PAUSE_EVENTS = 8, /* the event ring is full */
    PAUSE_STOPPING = 16,
    PAUSE_WAL = 32,         /* the WAL's batch is full until the next commit */
    PAUSE_SHARE = 64,       /* it used its share of this turn, or waits in line: see net/fair_share.h */
    PAUSE_UNCOMMITTED = 128 /* too many of its publishes wait for the disk; ends when none does */
};

typedef struct connection {
    bq_conn_t handle;
    const struct transport_ops *transport;
    const struct protocol_ops *protocol;
    int fd; /* -1: none */
    uint8_t state;
    uint8_t pause;
    uint8_t interest; /* events registered with the poller */
    uint8_t close_code;
    bool admitted;            /* may send commands other than HELLO */
    bool hello;               /* sent HELLO and was admitted: gets Replies */
    bool trusted;             /* created by this process: needs no HELLO, whatever the settings */
    bool known;               /* Python knows it and will be told when it closes */
    bool refused;             /* over max_connections: it stays open only to be told so */
    bool broken;              /* reset while its input was paused: the poller would report this again and again */
    bool watched;             /* output sent to it may not be acknowledged yet */
    bool grace;               /* its keep-alive is overdue, but its input may still be in transit */
    bool blocked;             /* the socket (or the credit) accepts no more */
    uint8_t dirty;            /* the flush lists it is on: one bit per enum flush_list */
    bool unadmitted, silent;  /* not admitted yet; on the silent list: see net/admission.h */
    bool ready;               /* on a list of connections with input to process */
    bool heavy;               /* it used much of its share the last time */
    bool waiters_left;        /* some publishers that waited for its full queue are woken at the next flush */
    bool unread;              /* in line because its socket is readable */
    bool wal_waiting;         /* on the list of connections that wait for the WAL */
    bool retrying;            /* on the list of connections that wait for space in the event ring */
    bool input_ended;         /* no more input will come */
    bool away;                /* a step of its handshake is with the thread bq-tls: see net/secure.h */
    const char *close_detail; /* static text */
    struct secure *secure;    /* of a connection that speaks TLS, from its first byte on: see net/secure.h */
    int send_error;           /* errno: its transport failed, and the next flush closes it */
    queue_t queue;
    uint8_t *in; /* unparsed input (a partial frame, or received while paused): in_size bytes from in_start */
    uint32_t in_start, in_size, in_capacity;
    uint32_t credit_used;    /* bytes in BQ_EV_OUT events whose CREDIT has not come back */
    uint32_t input_consumed; /* bytes parsed and not yet reported by BQ_EV_CONSUMED */
    uint32_t subscription_count;
    uint32_t group_count; /* queue groups it has joined; not among its subscriptions */
    topic_t *last_topic;  /* a hint: compare the name before use */
    struct acl *acl;      /* publish rights of its key; NULL: it may publish everything */
    subscription_t *subscriptions;
    struct member *members;                       /* its memberships in consumers */
    uint64_t pending_bytes;                       /* bytes of its publishes that wait for the disk */
    uint32_t pending_commits;                     /* number of its publishes that wait for the disk */
    uint64_t dispatch_mark;                       /* LSN of the last message it got through a consumer */
    wait_list_t waiters;                          /* publishers that wait for space in its queue */
    wait_list_t *waits_in;                        /* the list on which this connection waits for a full queue */
    struct connection *wait_next, *wait_previous; /* in that list */
    uint64_t debt; /* units of work beyond its share: it skips that much work before it is served again */
    struct connection *ready_next, *retry_next, *dead_next, *wal_next;
    core_timer_t timer; /* HELLO timeout, end of lingering, keep-alive */
    struct connection *silent_prev, *silent_next;
    struct connection *watched_previous, *watched_next; /* see net/keepalive.h */
    uint64_t heard_ms;                                  /* time of its last input */
    uint64_t doubt_ms;                                  /* since when it may be gone; 0: no sign of that */
    uint32_t keepalive_ms;                              /* it promised to send something in each such interval; 0: no promise */
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
/* `passed_ms` of its time to send HELLO has passed already */
void connection_hurry(struct bq *bq, connection_t *connection, uint64_t passed_ms);

/* Its end: net/connection_end.c. */
/* Close at once; freed at the end of the turn */
void connection_close(struct bq *bq, connection_t *connection, uint8_t code, const char *detail);
/* Close after the queued output has been sent */
void connection_finish(struct bq *bq, connection_t *connection, uint8_t code, const char *detail);
/* It sends no more input: answer open requests, then close */
void connection_input_ended(struct bq *bq, connection_t *connection, uint8_t code);
void connection_answered(struct bq *bq, connection_t *connection);          /* an answer that waited for the disk has been sent */
void connection_all_sent(struct bq *bq, connection_t *connection);          /* the queue of a closing connection is empty */
void connection_end_late(struct bq *bq, connection_t *connection);          /* its time to end is over */
void connection_broken(struct bq *bq, connection_t *connection, int error); /* its socket failed with this errno */
void connection_error(struct bq *bq, connection_t *connection);             /* the poller reports an error on its socket */
/* From now on it gets only Replies: its routes and its queue are dropped */
void connection_discard(struct bq *bq, connection_t *connection);
/* require_hello was enabled, and it connected without a key */
void connection_need_hello(struct bq *bq, connection_t *connection);
/* Free everything; false: a list or event still refers to it, try again next turn */
bool connection_free(struct bq *bq, connection_t *connection);

/* Input. */
void connection_readable(struct bq *bq, connection_t *connection);
/* For transports; see net/transport_io.h too. `bytes` may be inside the connection's own buffer. input_reserve: make space in
 * that buffer; false: no memory, the connection was closed. input_end: the input ended. */
void input_process(struct bq *bq, connection_t *connection, const uint8_t *bytes, uint32_t size);
bool input_reserve(struct bq *bq, connection_t *connection, uint32_t more);
void input_end(struct bq *bq, connection_t *connection, int error);
void connection_memory_input(struct bq *bq, connection_t *connection, const uint8_t *bytes, uint32_t size);
void connection_memory_end(struct bq *bq, connection_t *connection);             /* its end of file */
void connection_credit(struct bq *bq, connection_t *connection, uint64_t bytes); /* `bytes` of its output have left */
void connection_input_drop(struct bq *bq, connection_t *connection);             /* drop unparsed input */
void connection_resume(struct bq *bq, connection_t *connection, uint8_t pause);  /* remove one reason to pause */
void connection_continue(struct bq *bq, connection_t *connection);               /* parse the kept input after a pause */

/* Output. */
/* Send at most one batch. connection_flush may close the connection, so it is called only at known points of a turn.
 * connection_send leaves that to the next connection_flush and may be called while a run is being dispatched. */
void connection_flush(struct bq *bq, connection_t *connection);
void connection_send(struct bq *bq, connection_t *connection);
/* Append a control frame to the queue. output_reserve: space for `size` bytes; NULL: the connection accepts no answers (any
 * more), or no memory. output_push: `size` bytes were written there. */
uint8_t *output_reserve(struct bq *bq, connection_t *connection, uint32_t size);
void output_push(struct bq *bq, connection_t *connection, uint32_t size);
void connection_release_waiters(struct bq *bq, connection_t *connection); /* also if its queue has no space */
void connection_update_interest(struct bq *bq, connection_t *connection);

/* true: a Reply may still be queued. */
static inline bool connection_takes_answers(const connection_t *connection) {
    return connection->state == CONNECTION_OPEN || connection->state == CONNECTION_ENDING;
}

static inline connection_t *connection_of_queue(queue_t *queue) {
    return (connection_t *)(void *)((char *)queue - offsetof(connection_t, queue));
}

#endif
