/* net/admission.h: admission: the listeners, the accept rate, and the limit of connections that are not admitted yet.
 *
 *      backlog --(a token, a descriptor, a place)--> unadmitted --(ADMIT)--> admitted
 *                   |
 *                   +--(hello_timeout_ms is over, or a new connection needs the place)--> closed
 *
 * Opening a connection costs a client almost nothing. So the number of unadmitted connections is limited, in total and per
 * address. At the limit the connection that has been silent longest is closed, so a client that sends HELLO at once is
 * admitted. A connection whose HELLO Python is checking is not closed for others: its answer comes next, and during a reconnect
 * storm all of them are in this state.
 *
 * A connection that speaks TLS is unadmitted from its first moment, also if no HELLO is required: its handshake admits it then. A
 * connection whose handshake is being computed is not closed for others. A protocol whose clients always greet first
 * (protocol_ops_t.greets) leaves a connection unadmitted until its greeting is accepted.
 *
 * Invariants: `unadmitted` counts the open connections that are not admitted. A place counts those of one address; a place with
 * count 0 is free. The silent list holds the unadmitted connections whose HELLO is not with Python. The first to be closed is
 * at its head.
 */
#ifndef BQ_ADMISSION_H
#define BQ_ADMISSION_H

#include "base/hash.h"
#include "broker/outqueue.h"
#include "net/connection.h"

#define LISTENERS_MAX 16

struct net;

/* Number of unadmitted connections of one address: an IPv4 address, or the /64 network of an IPv6 host. */
typedef struct admission_place {
    uint8_t address[16]; /* the last 8 bytes of an IPv6 address are 0 */
    uint32_t count;      /* 0: a free slot */
} admission_place_t;

typedef struct listener {
    int fd;
    endpoint_t endpoint; /* of its connections */
} listener_t;

typedef struct admission {
    listener_t listeners[LISTENERS_MAX];
    uint32_t listener_count, first; /* first: index of the listener that accepts first */
    bool look;                      /* a listener may be readable */
    bool resting;                   /* the poller does not watch the listeners until the timer fires or a descriptor is freed */
    bool exhausted;                 /* it rests because descriptors or memory ran out */
    bool told;                      /* Python has been told about `exhausted` */
    int error;                      /* errno that caused `exhausted` */
    core_timer_t timer;
    uint64_t tokens, filled_ms; /* tokens: thousandths of a connection that may be accepted, at time filled_ms */

    uint32_t unadmitted;
    connection_t *silent_first, *silent_last;
    admission_place_t *places; /* open addressing, at most half full */
    uint32_t places_mask;
    hash_key_t key;
} admission_t;

bool admission_init(struct net *net); /* false: no memory */
void admission_release(struct net *net);

/* Listeners. */
/* The core owns fd from now on */
void admission_listen(struct net *net, int fd, const endpoint_t *endpoint);
void admission_unlisten(struct net *net);
void admission_timeout(struct net *net); /* the timer fired: check the backlog again */
void admission_accept(struct net *net);  /* accept, at most ACCEPTS_MAX per listener; last step of a turn */
static inline void admission_look(admission_t *admission) { admission->look = true; }
static inline void admission_descriptor_freed(admission_t *admission) { admission->look |= admission->exhausted; }

/* Connections that are not admitted. */
/* Before a connection is opened; may close another. false: refused. */
bool admission_make_room(struct net *net, const endpoint_t *endpoint, const uint8_t peer[16], uint16_t port);
void admission_enter(struct net *net, connection_t *connection);
void admission_heard(struct net *net, connection_t *connection);    /* its HELLO is with Python */
void admission_answered(struct net *net, connection_t *connection); /* Python has answered its HELLO */
void admission_leave(struct net *net, connection_t *connection);    /* admitted or closed */

#endif
