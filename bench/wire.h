/* wire.h: the protocols the load generator speaks, each as one row of functions.
 *
 * Invariant: what a broker sends is never trusted: a frame is used only once it is complete and its lengths agree, and anything
 * that is not understood ends the run with a sentence instead of being skipped.
 */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    WIRE_TOPIC_BYTES_MAX = 64,
    WIRE_PREFIX_BYTES_MAX = 192,   /* a text protocol's header with one or two topics in it */
    WIRE_OVERHEAD_BYTES_MAX = 320, /* what a frame of any protocol needs beside its payload */
};

typedef enum {
    ROLE_SUBSCRIBER,
    ROLE_PUBLISHER,
    ROLE_IDLE,
    ROLE_KEEPER, /* makes what the broker keeps messages for: a stream, a durable subscription; then it goes */
} role_t;

typedef struct {
    role_t role;
    unsigned number;   /* of this connection; unique in the run */
    const char *topic; /* topic or filter to subscribe to; NULL for none */
    bool wildcard;     /* topic is a filter */
    unsigned channel;  /* raw: the relay's channel */
} wire_join_t;

/* Messages of one connection mostly share one header: once parsed, it is only compared. */
typedef struct {
    uint16_t prefix_size;
    uint32_t frame_size;
    uint8_t prefix[WIRE_PREFIX_BYTES_MAX];
    uint64_t acked; /* acknowledged: number of the last answer */
} wire_reader_t;

/* Where in a frame its payload starts, and the eight bytes (least first) that number it; 0: it has no number. */
typedef struct {
    size_t payload, number;
} wire_places_t;

/* What a scan found. take is called for the first message of each scan, or for each one if every is set. */
typedef struct wire_sink wire_sink_t;
struct wire_sink {
    uint64_t messages; /* acknowledged: answers */
    unsigned pings;    /* keep-alive requests that want wire_t.pong */
    const char *error; /* set when a scan returns -1 */
    bool every;
    void (*take)(wire_sink_t *sink, const uint8_t *payload, size_t size);
};

typedef struct {
    const char *name, *topic_format /* of topic, number of the connection */, *filter, *pong;
    /* Writes one publish and says where things are in it; returns its size. out has payload + WIRE_OVERHEAD_BYTES_MAX bytes. */
    size_t (*publish)(uint8_t *out, const char *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                      wire_places_t *places);
    /* Greets the broker and subscribes, on a blocking socket; returns NULL, or what went wrong. */
    const char *(*join)(int fd, const wire_join_t *join);
    /* Reads whole frames; returns the bytes they took, the rest is the start of a frame, or -1. */
    ssize_t (*scan)(wire_reader_t *reader, const uint8_t *bytes, size_t size, wire_sink_t *sink);
    bool acknowledged; /* each publish is answered once it is on disk; a scan is of a publisher's answers */
} wire_t;

const wire_t *wire_named(const char *name); /* NULL: there is none */
const char *wire_names(void);               /* all of them, for people */

#endif
