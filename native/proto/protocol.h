/* proto/protocol.h: what clients speak. The broker knows messages, subscriptions and outcomes; only a protocol knows frames and numbers.
 *
 * Invariant: a connection has one protocol from connection_open to connection_free. No file of the broker looks into a frame, and no
 * protocol looks at a descriptor.
 */
#ifndef BQ_PROTOCOL_H
#define BQ_PROTOCOL_H

#include "base/bytes.h"

struct bq;
struct connection;

typedef struct protocol_ops {
    const char *name;

    /* Take whole frames off the front of the input; returns the bytes taken. No frame is taken while the connection is paused. */
    uint32_t (*parse)(struct bq *bq, struct connection *connection, const uint8_t *bytes, uint32_t size);

    /* Answers. Each goes behind what waits in the connection's queue. `seq` is the request's own number; 0: nobody asked. */
    void (*welcome)(struct bq *bq, struct connection *connection, uint64_t seq, const uint8_t *text, uint32_t text_size);
    void (*subscribed)(struct bq *bq, struct connection *connection, uint64_t seq, const uint8_t *filter, uint32_t size);
    /* A QoS 1 publish is on disk, for so many subscriptions. */
    void (*published)(struct bq *bq, struct connection *connection, uint64_t seq, uint64_t id, uint64_t subscriptions);
    /* Any other outcome; a client that knows no such answer gets none. `why` is NULL if there is nothing to say. */
    void (*answer)(struct bq *bq, struct connection *connection, uint64_t seq, enum bq_outcome outcome, const char *why);
    /* The same, but a client that knows no such answer is closed. */
    void (*refuse)(struct bq *bq, struct connection *connection, uint64_t seq, enum bq_outcome outcome, const char *why);
    /* An operator ended its subscription. */
    void (*ended)(struct bq *bq, struct connection *connection, const uint8_t *filter, uint32_t filter_size, const uint8_t *group,
                  uint32_t group_size);
    /* Python's own answer: its code and texts are this protocol's. */
    void (*forward)(struct bq *bq, struct connection *connection, const bq_command_t *command, const uint8_t *text,
                    uint32_t text_size, const uint8_t *data, uint32_t data_size);
} protocol_ops_t;

extern const protocol_ops_t protocol_blip;

#endif
