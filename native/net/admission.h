/* net/admission.h: who comes in: the listeners, how fast newcomers are taken, and how many may stand inside without being admitted.
 *
 *      backlog --(a token, a descriptor, a place)--> unadmitted --(ADMIT)--> admitted
 *                                                                |
 *                                                                +--(hello_timeout_ms is over, or a newcomer needs the place)--> closed
 *
 * A connection costs whoever opens it next to nothing. So the places of those that are not admitted yet are bounded, in total and
 * for one address. When one is needed, the one that has been silent for longest is closed: a client that says HELLO at once gets
 * through. One whose HELLO is with Python is not pushed out: it is next in line, and in a storm of reconnecting clients they all are.
 *
 * Invariants: `unadmitted` counts the open connections that are not admitted, a place those of one address, and no place counts
 * none. The silent list holds those of them whose HELLO is not with Python, the one to be pushed out first at its head.
 */
#ifndef BQ_ADMISSION_H
#define BQ_ADMISSION_H

#include "base/hash.h"
#include "broker/outqueue.h"

#define LISTENERS_MAX 16

struct bq;
struct connection;

/* How many of one address are unadmitted: an IPv4 address, or the /64 that an IPv6 host has all of. */
typedef struct admission_place {
    uint8_t address[16]; /* the last 8 bytes of an IPv6 address are 0 here */
    uint32_t count;      /* 0: a free slot */
} admission_place_t;

typedef struct admission {
    int listeners[LISTENERS_MAX];
    uint32_t listener_count, first; /* first: whose turn it is to be accepted from first */
    bool look;                      /* a listener is readable, or may be */
    bool resting;                   /* the poller does not watch the listeners; the timer, or a freed descriptor, ends it */
    bool exhausted;                 /* it rests for want of descriptors or memory */
    bool told;                      /* and Python knows */
    int error;                      /* errno of that */
    core_timer_t timer;
    uint64_t tokens, filled_ms; /* thousandths of a connection that may be taken now, and when that was so */

    uint32_t unadmitted;
    struct connection *silent_first, *silent_last;
    admission_place_t *places; /* open addressing, at most half full */
    uint32_t places_mask;
    hash_key_t key;
} admission_t;

bool admission_init(struct bq *bq); /* false: no memory */
void admission_release(struct bq *bq);

/* Listeners. */
void admission_listen(struct bq *bq, int fd); /* fd is the core's from here on */
void admission_unlisten(struct bq *bq);
void admission_timeout(struct bq *bq); /* the timer has fired: look at the backlog again */
void admission_accept(struct bq *bq);  /* take who waits, at most ACCEPTS_MAX of each listener; last in a turn */
static inline void admission_look(admission_t *admission) { admission->look = true; }
static inline void admission_descriptor_freed(admission_t *admission) { admission->look |= admission->exhausted; }

/* Those inside and not admitted. */
bool admission_make_room(struct bq *bq, const uint8_t peer[16]); /* for one who will have to say HELLO; may close another */
void admission_enter(struct bq *bq, struct connection *connection);
void admission_heard(struct bq *bq, struct connection *connection);    /* its HELLO is with Python */
void admission_answered(struct bq *bq, struct connection *connection); /* and is no longer */
void admission_leave(struct bq *bq, struct connection *connection);    /* admitted or closed */

#endif
