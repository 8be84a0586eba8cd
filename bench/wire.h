/* wire.h: the protocols of the load generator, each as one row of functions.
 *
 * Invariant: data from a broker is checked: a frame is used only if it is complete and its lengths are consistent. Unknown data
 * ends the run with a message and is never skipped.
 */
#ifndef BENCH_WIRE_H
#define BENCH_WIRE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum {
    WIRE_TOPIC_BYTES_MAX = 64,
    WIRE_PREFIX_BYTES_MAX = 192,   /* header of a text protocol with one or two topics */
    WIRE_OVERHEAD_BYTES_MAX = 320, /* bytes of a frame in addition to its payload, for any protocol */
};

typedef enum {
    ROLE_SUBSCRIBER,
    ROLE_PUBLISHER,
    ROLE_IDLE,
    ROLE_KEEPER, /* creates what the broker stores messages for (a stream, a durable subscription); then it closes */
} role_t;

typedef struct {
    role_t role;
    unsigned number;   /* of this connection; unique within the run */
    const char *topic; /* topic or filter to subscribe to; NULL: none */
    bool wildcard;     /* topic is a filter */
    unsigned channel;  /* raw: the relay's channel */
} wire_join_t;

/* Most messages of a connection share one header: it is parsed once and then only compared. */
typedef struct {
    uint16_t prefix_size;
    uint32_t frame_size;
    uint8_t prefix[WIRE_PREFIX_BYTES_MAX];
    uint64_t acked; /* acknowledged: number of the last answer */
} wire_reader_t;

/* Offsets in a frame: of the payload, of the eight little-endian bytes that number it, and of an MQTT packet identifier. 0: it
 * has none. */
typedef struct {
    size_t payload, number, packet_id;
} wire_places_t;

enum { PACKET_IDS = 65535 }; /* of MQTT: message n has the identifier n % PACKET_IDS + 1, from n = 0 */

/* Result of a scan. take is called for the first message of each scan, or for each message if every is set. */
typedef struct wire_sink wire_sink_t;
struct wire_sink {
    uint64_t messages; /* acknowledged: answers */
    unsigned pings;    /* keep-alive requests that wire_t.pong must answer */
    const char *error; /* set when a scan returns -1 */
    bool every;
    void (*take)(wire_sink_t *sink, const uint8_t *payload, size_t size);
};

typedef struct {
    const char *name, *topic_format /* printf format for: topic, index of the connection */, *filter, *pong;
    /* Writes one publish and returns its size and the offsets in it. out has space for payload + WIRE_OVERHEAD_BYTES_MAX
     * bytes. */
    size_t (*publish)(uint8_t *out, const char *topic, const uint8_t *payload, uint32_t size, uint64_t ttl_ms,
                      wire_places_t *places);
    /* Connects at protocol level and subscribes, on a blocking socket. Returns NULL, or an error text. */
    const char *(*join)(int fd, const wire_join_t *join);
    /* Reads whole frames. Returns the bytes consumed (the rest is a partial frame), or -1. */
    ssize_t (*scan)(wire_reader_t *reader, const uint8_t *bytes, size_t size, wire_sink_t *sink);
    bool acknowledged; /* each publish is answered when it is on disk; scan reads a publisher's answers */
} wire_t;

const wire_t *wire_named(const char *name); /* NULL: unknown name */
const char *wire_names(void);               /* all names, for messages */

#endif
