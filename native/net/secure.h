/* net/secure.h: connections that speak TLS. The core moves ciphertext; a module behind bq_secure_ops_t encrypts and decrypts.
 *
 *      socket ──recv──► in ──read──► plaintext ──► protocol        queue ──write──► out ──send──► socket
 *                                                                                    └─ what the socket does not take: unsent
 *
 *      first byte ──► handshake step ──► away: the thread bq-tls computes it ──► back ──► next step ... ──► open
 *
 * A handshake costs up to milliseconds, so the steps run in a thread of their own. A stepped core runs them itself, so that a
 * test decides their time and order.
 *
 * Invariants: a connection that is away is not polled, parsed, flushed or freed, and only the thread uses its state. Nothing more
 * of the queue is encrypted while ciphertext waits, and no input is read while UNSENT_BYTES_MAX of it wait. No byte of a failed
 * handshake reaches a protocol.
 */
#ifndef BQ_SECURE_H
#define BQ_SECURE_H

#include <stdatomic.h>

#include "base/bytes.h"
#include "base/monitor.h"
#include "base/poll.h"
#include "net/secure_ops.h"

#define RECORD_BYTES_MAX (17u << 10)   /* a record of TLS, rounded up */
#define SECURE_IN_BYTES (128u << 10)   /* read limit for ciphertext */
#define SECURE_OUT_BYTES (112u << 10)  /* room for the records of SECURE_PLAIN_BYTES */
#define SECURE_PLAIN_BYTES (96u << 10) /* plaintext per send */
/* Ciphertext of one connection; from here on its input stops. One batch of messages is less, so a client that does not read its
 * messages can still send. Only answers of TLS itself reach it. */
#define UNSENT_BYTES_MAX (SECURE_OUT_BYTES + (64u << 10))
#define SECURE_EVENTS_PER_SECOND 50u /* clients without rights must not keep Python busy */
#define WORK_RECORD 24u              /* units of work for one record, and one more for each 64 bytes: see fair_share.h */

struct net;
struct connection;

/* The TLS part of a connection, from its first byte on. */
typedef struct secure {
    const bq_secure_ops_t *ops;
    void *state;
    uint8_t *unsent; /* ciphertext that the socket did not take: unsent_size bytes from unsent_at */
    uint32_t unsent_at, unsent_size, unsent_capacity;
    bool open;      /* the handshake is done */
    bool failed;    /* nothing more can be encrypted or decrypted */
    bool ended;     /* close_notify is written */
    bool stalled;   /* nothing can be encrypted before more input: half a message of TLS itself has come */
    bool untold;    /* the event of its certificate waits for room */
    bool begun;     /* its first four bytes of plaintext have come */
    bool certified; /* the client showed a certificate, which a browser does by itself */
} secure_t;

/* One step of a handshake. */
typedef struct handshake_step {
    struct handshake_step *next;
    struct connection *connection;
    const bq_secure_ops_t *ops;
    void *state;
    int result; /* enum bq_secure_result */
    uint8_t *out;
    uint32_t out_used, in_size, in_used;
    bq_secure_error_t error; /* if it failed */
    uint8_t in[];
} handshake_step_t;

/* The worker and its two lists, which it shares with the I/O thread. */
typedef struct handshakes {
    monitor_t monitor; /* of the fields up to `ending` */
    handshake_step_t *todo, **todo_tail, *done, **done_tail;
    bool ending;
    _Atomic bool back; /* there may be something in `done` */
    poll_wake_t *wake;
    bool running;
    poll_thread_t thread;
} handshakes_t;

/* Part of the core; it exists after the first BQ_CMD_SECURE. */
typedef struct secure_core {
    const bq_secure_ops_t *ops;
    void *context;
    bool tell; /* report every handshake */
    uint8_t *in, *out;
    uint64_t told_s; /* the second in which `told` events were sent */
    uint32_t told;
    handshakes_t handshakes;
} secure_core_t;

/* net/transport_secure.c */
/* The core owns `context` from now on. */
void secure_context(struct net *net, const bq_secure_ops_t *ops, void *context, bool tell);
void secure_refused(struct net *net, const uint8_t peer[16], uint16_t port, bool address); /* a connection found no place */
bool secure_late(struct net *net, struct connection *connection); /* its time to be admitted is over; false: no handshake runs */
void secure_turn(struct net *net);
void secure_release(struct net *net); /* drops pending steps: after handshakes_stop, before connections are freed */
void secure_free(struct net *net);    /* after that */

/* net/handshake.c */
int handshakes_init(handshakes_t *handshakes, poll_wake_t *wake); /* BQ_OK or BQ_E_SYSTEM */
void handshakes_start(handshakes_t *handshakes);
void handshakes_stop(handshakes_t *handshakes); /* waits for the step that is being computed; the others stay in `todo` */
void handshakes_free(handshakes_t *handshakes, void (*drop)(handshake_step_t *step));
handshake_step_t *handshake_step_new(const uint8_t *bytes, uint32_t size); /* NULL: no memory */
void handshake_step_free(handshake_step_t *step);
void handshake_step_run(handshake_step_t *step);
void handshakes_give(handshakes_t *handshakes, handshake_step_t *step);
handshake_step_t *handshakes_take(handshakes_t *handshakes); /* all that are back, oldest first */

#endif
