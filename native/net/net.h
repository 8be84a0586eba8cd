/* net/net.h: the state of net/: connections, transports, admission and the order of service. It begins with the broker's state.
 *
 * Invariant: one thread uses it. A broker_t is always the beginning of a net_t, and a client_t that of a connection_t, so net_of
 * and connection_of cost nothing.
 */
#ifndef BQ_NET_H
#define BQ_NET_H

#include "broker/broker.h"
#include "net/admission.h"
#include "net/connection.h"
#include "net/fair_share.h"
#include "net/keepalive.h"
#include "net/websocket_handshake.h"

#define CONNECTION_CHUNK 64u
#define REFUSED_MAX 64u              /* connections over the limit that are being refused at the same time */
#define REFUSED_MS 1000u             /* time for such a connection to send HELLO */
#define ENDING_MS 30000u             /* time that a client which closed its sending side waits for answers from the disk */
#define LINGER_MS 1000u              /* time for a closed client to read its last Reply */
#define CLOSING_MS 5000u             /* time for that Reply to be sent */
#define READ_BYTES (1u << 20)        /* read limit per connection and turn */
#define READ_BYTES_ALL (4u << 20)    /* shared by all connections with input in one turn */
#define READ_BYTES_SHARE (64u << 10) /* minimum for each of them */
#define READ_BYTES_FAN (48u << 10)   /* for a connection whose last topic has several subscribers */
#define READ_BYTES_HEAVY (32u << 10) /* for a heavy connection, which cannot process more in its share of a turn */
#define READ_BYTES_OWN (256u << 10)  /* per read into a connection's own buffer for a large frame; also its growth step */
#define GATHER_BYTES                                                                                                             \
    (64u << 10) /* a shorter remainder moves to the front of the read buffer; a longer one gets a buffer of its own */
#define READ_BYTES_BLOCKING (32u << 10) /* under the block policy: bounds the unprocessed input of a blocked publisher */
#define CONTROL_BYTES_MAX (64u << 10)   /* unsent replies of one connection; above this its input stops */
#define CONTROL_BYTES_SHORT (4u << 10)  /* replaces CONTROL_BYTES_MAX over the budget */
#define CREDIT_BYTES (256u << 10)       /* unconfirmed BQ_EV_OUT bytes for each in-memory connection */
#define MEMORY_CHUNK_BYTES EVENT_DATA_MAX
#define SEND_PARTS_MAX 64
#define SEND_COPY_MAX 1024u /* up to this size copying entries costs less than a longer gather list in the kernel */
#define SEND_BUFFER_BYTES (64u << 10)

struct secure_core;

typedef struct net {
    broker_t broker;       /* must be first */
    connection_t **chunks; /* CONNECTION_CHUNK connections each, allocated when needed, never freed before the end */
    uint32_t chunk_count, slots_max;
    uint32_t *free_slots; /* a stack */
    uint32_t free_count;
    uint32_t open_count, refused_count;
    share_t share;
    connection_t *retry; /* these wait for room in the event ring */
    connection_t *dead;
    uint64_t ends_stop;    /* value of the work counter at which this turn stops ending connections */
    bool ends_left;        /* some of that work is left for the next turn */
    uint64_t input_bytes;  /* in buffers of connections with an incomplete frame */
    uint64_t turn_bytes;   /* read since the last flush */
    uint64_t flush_due_ms; /* with flush_interval_ms: time of the next flush of waiting deliveries; 0: none waits */

    poller_t poller;
    admission_t admission;
    websocket_origins_t websocket_origins;
    uint32_t websocket_count;   /* connections with that layer */
    struct secure_core *secure; /* NULL: no TLS */
    keepalive_t keepalive;
    uint32_t read_bytes; /* read limit of one connection in this turn */
    uint8_t *read_buffer, *send_buffer;
    bool parsing;   /* in check builds: a protocol takes input, so no connection may be flushed */
    bool in_thread; /* of the I/O thread: it is not a stepped core */
} net_t;

/* Poll keys: the handle of a connection, or one of these. Generations start at 1, so every handle is larger. */
enum poll_key { KEY_WAKE = 1, KEY_LISTENER = 16 };

/* net/net.c */
bool net_init(net_t *net, const bq_config_t *config, uint64_t first_message_id); /* as broker_init, which it calls */
void net_release(net_t *net);                                                    /* after commit_close; calls broker_release */
void net_retry_later(net_t *net, connection_t *connection);                      /* the event ring had no room for it */
void net_retry(net_t *net);                                                      /* once a turn */
void net_reap(net_t *net, uint64_t work);                                        /* frees dead connections, limited by work */
void net_each_open(net_t *net, void (*visit)(net_t *net, connection_t *connection));
bool net_all_sent(net_t *net); /* no connection has output in its queue */

void net_run_give(net_t *net);       /* publish_run_give, and drains full queues */
void net_flush(net_t *net);          /* sends to all clients that have data to send */
void net_flush_when_due(net_t *net); /* at the end of a turn */

/* net/output.c */
/* Sends from the full queue that stopped an operation of broker/, which is then called again. drain_end follows. */
void net_drain(net_t *net);

static inline net_t *net_of(broker_t *broker) { return (net_t *)(void *)broker; }
static inline connection_t *connection_of(client_t *client) { return (connection_t *)(void *)client; }

static inline connection_t *connection_slot(net_t *net, uint32_t slot) {
    return &net->chunks[slot / CONNECTION_CHUNK][slot % CONNECTION_CHUNK];
}

static inline bool net_has_output(const net_t *net) {
    return net->broker.dirty[FLUSH_NARROW].count | net->broker.dirty[FLUSH_WIDE].count;
}

/* Appends the open run to the queues. Called before other data is appended to the shared buffer, and before routes change. */
static inline void net_run_close(net_t *net) {
    if (net->broker.open.run.buffer) net_run_give(net);
}

/* A connection that is not heavy is served between share_begin and share_done, for one share of a turn at most. */
static inline uint64_t share_begin(net_t *net) {
    uint64_t begun = work_done(&net->broker);
    net->broker.work_stop = begun + net->broker.config.work_share;
    return begun;
}

static inline void share_done(net_t *net, connection_t *connection, uint64_t begun) {
    if (BQ_UNLIKELY(connection->client.pause & PAUSE_SHARE) ||
        work_done(&net->broker) - begun >= net->broker.config.work_share / 4)
        share_end(net, connection, work_done(&net->broker) - begun);
}

#endif
