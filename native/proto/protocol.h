/* proto/protocol.h: the protocol of a client. The broker knows messages, subscriptions and outcomes. Only a protocol knows
 * frames and numeric codes.
 *
 * Invariant: a connection has one protocol from connection_open to connection_free. No file of the broker reads a frame, and no
 * protocol uses a descriptor.
 */
#ifndef BQ_PROTOCOL_H
#define BQ_PROTOCOL_H

#include "base/bytes.h"

struct broker;
struct client;

typedef struct protocol_ops {
    const char *name;
    bool greets;        /* its clients greet first, also where no keys are required: until then they are unadmitted */
    const char *late;   /* detail of a connection that is closed because its greeting did not come in time */
    const char *silent; /* and of one that broke its keep-alive promise */

    /* The most input, in bytes, that an unadmitted client may send before the answer to its greeting. */
    uint32_t (*greeting_max)(const struct broker *broker);
    /* Take whole frames from the front of the input. Returns the bytes taken. No frame is taken while the connection is
     * paused. */
    uint32_t (*parse)(struct broker *broker, struct client *client, const uint8_t *bytes, uint32_t size);

    /* Answers. Each is appended to the connection's queue. `seq` is the number of the request; 0: there was no request. */
    void (*welcome)(struct broker *broker, struct client *client, uint64_t seq, const uint8_t *text, uint32_t text_size,
                    const uint8_t *data, uint32_t data_size);
    void (*subscribed)(struct broker *broker, struct client *client, uint64_t seq, const uint8_t *filter, uint32_t size);
    /* A QoS 1 publish is on disk for this number of subscriptions, or need not be. `matched`: any subscriber, of any QoS. */
    void (*published)(struct broker *broker, struct client *client, uint64_t seq, uint64_t id, uint64_t subscriptions,
                      bool matched);
    /* Any other outcome. A client whose protocol version has no such answer gets none. `why` may be NULL. */
    void (*answer)(struct broker *broker, struct client *client, uint64_t seq, enum bq_outcome outcome, const char *why);
    /* The same, but a client whose protocol version has no such answer is closed. */
    void (*refuse)(struct broker *broker, struct client *client, uint64_t seq, enum bq_outcome outcome, const char *why);
    /* An operator ended its subscription. NULL: the protocol has no such packet. */
    void (*ended)(struct broker *broker, struct client *client, const uint8_t *filter, uint32_t filter_size, const uint8_t *group,
                  uint32_t group_size);
    /* Python has decided on the filters of a request. False: the event ring has no room; the command runs again. NULL: the
     * protocol has no such requests. */
    bool (*granted)(struct broker *broker, struct client *client, const uint8_t *rows, uint32_t size);
    /* The broker ends the connection for this reason. True: the client will be told, so its output must be sent first. */
    bool (*goodbye)(struct broker *broker, struct client *client, enum bq_close reason, const char *why);
    /* The connection is being freed, and with it what the protocol has stored for it. NULL: nothing. */
    void (*closed)(struct broker *broker, struct client *client);
    /* An answer from Python. Its code and texts belong to this protocol. */
    void (*forward)(struct broker *broker, struct client *client, const bq_command_t *command, const uint8_t *text,
                    uint32_t text_size, const uint8_t *data, uint32_t data_size);
} protocol_ops_t;

extern const protocol_ops_t protocol_blip, protocol_mqtt;

#endif
