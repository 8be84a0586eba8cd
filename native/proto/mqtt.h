/* proto/mqtt.h: an MQTT client, from its CONNECT to the end of its connection. docs/MQTT.md says what is served.
 *
 *      CONNECT --(Python is asked)--> ADMIT: CONNACK, connected --(packets)--> DISCONNECT of either side, or a closed socket
 *                                 \-> REPLY: CONNACK with a reason, closed
 *
 * Files: mqtt.c has the packets and the answers, the codec is in mqtt_codec.h.
 *
 * Invariant: connection->mqtt is NULL before a valid CONNECT. A connection is `hello` from its CONNACK on. After a DISCONNECT of
 * the server, no packet is written.
 */
#ifndef BQ_MQTT_H
#define BQ_MQTT_H

#include "net/net.h"
#include "proto/mqtt_codec.h"

#define MQTT_TOPIC_BYTES_MAX 1024u

/* TAKEN; KEPT: the connection is paused, and the packet is parsed again later. A packet that closes its connection is TAKEN. */
enum mqtt_outcome { MQTT_TAKEN, MQTT_KEPT };

typedef struct mqtt {
    uint32_t packet_bytes_max; /* the largest packet that the client takes */
    uint32_t session_expiry_s; /* that the client asked for */
    uint16_t keep_alive_s;
    uint8_t version;   /* enum mqtt_version */
    bool problem_told; /* the client wants reason strings in all packets that have them */
    bool gone;         /* a DISCONNECT was written */
} mqtt_t;

#endif
