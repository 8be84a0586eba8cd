/* proto/mqtt.h: an MQTT client, from its CONNECT to the end of its connection. docs/MQTT.md says what is served.
 *
 *      CONNECT --(Python is asked)--> ADMIT: CONNACK, connected --(packets)--> DISCONNECT of either side, or a closed socket
 *                                 \-> REPLY: CONNACK with a reason, closed
 *
 * Files: mqtt.c has CONNECT, the end and the answers; mqtt_publish.c PUBLISH; mqtt_subscribe.c SUBSCRIBE and UNSUBSCRIBE. The codec
 * is in mqtt_codec.h.
 *
 * Invariant: connection->mqtt is NULL before a valid CONNECT. A connection is `hello` from its CONNACK on. After a DISCONNECT of
 * the server, no packet is written.
 */
#ifndef BQ_MQTT_H
#define BQ_MQTT_H

#include "net/publishing.h"
#include "proto/mqtt_codec.h"

#define MQTT_TOPIC_BYTES_MAX 1024u
#define MQTT_ALIASES_MAX 16u     /* topic aliases of a client */
#define MQTT_UNANSWERED_MAX 256u /* publishes with QoS 1 that are not answered yet, of a client of MQTT 5 */

/* A SUBSCRIBE or UNSUBSCRIBE that is not finished: it may have to wait, and it goes to Python in pieces. */
typedef struct mqtt_request {
    uint8_t *codes; /* one for each filter; NULL: there is no such request */
    uint32_t count;
    uint32_t done;  /* so many filters have their code */
    uint32_t waits; /* so many of these may still be refused: they wait for the disk */
    uint32_t piece; /* the first filter of the piece that is with Python */
} mqtt_request_t;

typedef struct mqtt {
    uint32_t packet_bytes_max; /* the largest packet that the client takes */
    uint32_t session_expiry_s; /* that the client asked for */
    uint16_t keep_alive_s;
    uint16_t receive_maximum; /* most messages with QoS 1 that the client takes before it acknowledges one */
    uint8_t version;          /* enum mqtt_version */
    bool problem_told;        /* the client wants reason strings in all packets that have them */
    bool gone;                /* a DISCONNECT was written */
    uint16_t unanswered;      /* of its publishes with QoS 1 */
    mqtt_request_t request;
    mqtt_text_t *aliases; /* MQTT_ALIASES_MAX topics, by their alias - 1; NULL: none was used yet */
} mqtt_t;

/* The largest packet of a client. */
static inline uint32_t mqtt_packet_bytes_max(const broker_t *broker) { return broker->config.max_frame_bytes; }

/* Ends the connection because of a packet that MQTT forbids (proto/mqtt_error.h), or for any other cause. MQTT 5 clients get
 * DISCONNECT with the reason. */
enum frame_outcome mqtt_violation(net_t *net, connection_t *connection, int error);
enum frame_outcome mqtt_end(net_t *net, connection_t *connection, uint8_t reason, uint8_t close_code, const char *why);

/* Packets. */
enum frame_outcome mqtt_publish(net_t *net, connection_t *connection, const mqtt_frame_t *frame, const uint8_t *body);
enum frame_outcome mqtt_subscribe(net_t *net, connection_t *connection, const mqtt_frame_t *frame, const uint8_t *body);
enum frame_outcome mqtt_unsubscribe(net_t *net, connection_t *connection, const mqtt_frame_t *frame, const uint8_t *body);

/* Answers to a PUBLISH with QoS 1; its packet identifier is the number of the request. 0: a PUBLISH with QoS 0. */
void mqtt_published(broker_t *broker, client_t *client, uint64_t packet_id, uint64_t id, uint64_t subscriptions, bool matched);
void mqtt_not_published(broker_t *broker, client_t *client, uint64_t packet_id, enum bq_outcome outcome, const char *why);

/* Python's answer to a piece of a SUBSCRIBE: see BQ_CMD_MQTT_SUBSCRIBE. False: the event ring has no room; call it again. */
bool mqtt_granted(broker_t *broker, client_t *client, const uint8_t *rows, uint32_t size);

/* PUBACK for a message that the client got with QoS 1. */
enum frame_outcome mqtt_acknowledged(net_t *net, connection_t *connection, const mqtt_frame_t *frame, const uint8_t *body);

/* The answer to a subscription with QoS 1: see mqtt_subscribe.c. */
#define MQTT_SEQ_SUBSCRIBE (1ull << 32)
void mqtt_filter_answered(broker_t *broker, client_t *client, uint64_t seq, bool refused);

void mqtt_packets_free(broker_t *broker, client_t *client);
void mqtt_aliases_free(broker_t *broker, mqtt_t *mqtt);
void mqtt_request_free(broker_t *broker, mqtt_t *mqtt);

#endif
