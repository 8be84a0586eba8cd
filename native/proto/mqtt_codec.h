/* proto/mqtt_codec.h: the packets of MQTT 3.1, 3.1.1 and 5: those of clients are verified and read in place, those of a server
 * are written. A number like [MQTT-3.1.2-3] names a statement of the specification of MQTT 5.
 *
 * Invariant: these functions keep no state, allocate nothing, and read no byte outside their arguments. A packet is accepted as
 * a whole or not at all. A function that reads returns 0, or a code of proto/mqtt_error.h; its result then is not usable.
 */
#ifndef BQ_MQTT_CODEC_H
#define BQ_MQTT_CODEC_H

#include "proto/mqtt_properties.h"

#define MQTT_HEADER_BYTES_MAX 5 /* of a fixed header */

enum mqtt_version { MQTT_UNKNOWN = 0, MQTT_3_1 = 3, MQTT_3_1_1 = 4, MQTT_5 = 5 };

enum mqtt_type {
    MQTT_CONNECT = 1,
    MQTT_CONNACK,
    MQTT_PUBLISH,
    MQTT_PUBACK,
    MQTT_PUBREC,
    MQTT_PUBREL,
    MQTT_PUBCOMP,
    MQTT_SUBSCRIBE,
    MQTT_SUBACK,
    MQTT_UNSUBSCRIBE,
    MQTT_UNSUBACK,
    MQTT_PINGREQ,
    MQTT_PINGRESP,
    MQTT_DISCONNECT,
    MQTT_AUTH
};

/* ---- packets of a client ---------------------------------------------------------------------------------------------- */

typedef struct mqtt_frame {
    uint32_t body_size; /* the remaining length */
    uint8_t type, flags;
    uint8_t header_size;
    uint8_t wasteful; /* the length has more bytes than it needs, which MQTT 5 forbids [MQTT-1.5.5-1] */
} mqtt_frame_t;

/* Read a fixed header at the front of the input, and check the type, the flags and the size of the packet. Returns its size, 0
 * if more bytes are needed, or an error. `version` is MQTT_UNKNOWN before CONNECT. */
int mqtt_frame_read(const uint8_t *bytes, uint32_t size, uint8_t version, uint32_t packet_bytes_max, mqtt_frame_t *frame);

typedef struct mqtt_connect {
    mqtt_text_t client_id, user_name, password;
    mqtt_text_t will_topic, will_payload;
    uint16_t keep_alive_s;
    uint8_t version;
    bool clean_start, has_user_name, has_password, has_will, will_retain;
    uint8_t will_qos;
    mqtt_properties_t properties; /* numbers that are not present have their defaults */
    mqtt_properties_t will_properties;
} mqtt_connect_t;

/* After an error, `version` is that of the client, or MQTT_UNKNOWN: it decides which CONNACK the client understands. */
int mqtt_connect_read(const mqtt_frame_t *frame, const uint8_t *body, uint32_t topic_bytes_max, mqtt_connect_t *connect);

typedef struct mqtt_publish {
    mqtt_text_t topic, payload;
    uint16_t packet_id; /* 0 with QoS 0 */
    uint8_t qos;
    bool dup, retain;
    mqtt_properties_t properties;
} mqtt_publish_t;

/* The syntax of the topic is not checked: it is usually that of the publish before (mqtt_topic_check). */
int mqtt_publish_read(const mqtt_frame_t *frame, const uint8_t *body, uint8_t version, mqtt_publish_t *publish);

/* PUBACK, PUBREC, PUBREL, PUBCOMP; DISCONNECT and AUTH, which have no packet id. */
typedef struct mqtt_result {
    uint16_t packet_id;
    uint8_t reason;
    mqtt_properties_t properties;
} mqtt_result_t;

int mqtt_result_read(const mqtt_frame_t *frame, const uint8_t *body, uint8_t version, mqtt_result_t *result);

typedef struct mqtt_subscribe {
    mqtt_text_t filters; /* for mqtt_filter_next */
    uint32_t count;
    uint16_t packet_id;
    mqtt_properties_t properties;
} mqtt_subscribe_t;

/* SUBSCRIBE and UNSUBSCRIBE, with the syntax of every filter. */
int mqtt_subscribe_read(const mqtt_frame_t *frame, const uint8_t *body, uint8_t version, uint32_t filter_bytes_max,
                        mqtt_subscribe_t *subscribe);

int mqtt_pingreq_read(const mqtt_frame_t *frame); /* a PINGREQ has no body */

/* ---- topics and filters ----------------------------------------------------------------------------------------------- */

typedef struct mqtt_filter {
    mqtt_text_t text;   /* as the client sent it */
    mqtt_text_t group;  /* NAME of $share/NAME/FILTER; empty: not shared */
    mqtt_text_t filter; /* FILTER of it, or the whole text */
    int syntax;         /* SYNTAX_LITERAL or SYNTAX_SLASHES of base/topic_name.h: * and > are ordinary characters */
    uint8_t qos, retain_handling;
    bool no_local, retain_as_published;
} mqtt_filter_t;

int mqtt_topic_check(const uint8_t *topic, uint32_t size, uint32_t bytes_max);
/* Sets the texts and the syntax of `filter`, and clears its options. */
int mqtt_filter_check(const uint8_t *text, uint32_t size, uint32_t bytes_max, mqtt_filter_t *filter);
/* The next filter of a packet that mqtt_subscribe_read has accepted; `rest` is its `filters` at first. `type` is that of the
 * packet. false: there are no more. */
bool mqtt_filter_next(mqtt_text_t *rest, uint8_t type, mqtt_filter_t *filter);

/* ---- packets of a server ---------------------------------------------------------------------------------------------- */

/* These functions return the size of the packet and write it to `out`, unless `out` is NULL. They return 0 if there is no such
 * packet: it would exceed the lengths of MQTT, or its version has none for this outcome. `properties` may be NULL; before
 * MQTT 5 they are ignored. */
uint32_t mqtt_connack_write(uint8_t *out, uint8_t version, bool session_present, uint8_t reason,
                            const mqtt_properties_t *properties);
/* PUBACK, PUBREC, PUBREL, PUBCOMP. The reason is left out before MQTT 5, and if it is 0 and there are no properties. */
uint32_t mqtt_ack_write(uint8_t *out, uint8_t version, uint8_t type, uint16_t packet_id, uint8_t reason,
                        const mqtt_properties_t *properties);
/* SUBACK and UNSUBACK. An UNSUBACK before MQTT 5 has no codes. */
uint32_t mqtt_suback_write(uint8_t *out, uint8_t version, uint8_t type, uint16_t packet_id, const uint8_t *codes, uint32_t count,
                           const mqtt_properties_t *properties);
uint32_t mqtt_pingresp_write(uint8_t *out);
/* DISCONNECT and AUTH, which only MQTT 5 has. */
uint32_t mqtt_goodbye_write(uint8_t *out, uint8_t type, uint8_t reason, const mqtt_properties_t *properties);

/* QoS 0 without properties: the header is the same for all subscribers of a topic except the length in front. The template is
 * that header without its first bytes: topic, and the empty properties of MQTT 5. */
uint32_t mqtt_template_write(uint8_t *out, uint8_t version, mqtt_text_t topic);
/* The header of a message with a payload of this size. The payload follows. */
uint32_t mqtt_template_header(uint8_t *out, bool retain, const uint8_t *header, uint32_t header_size, uint32_t payload_size);

/* Any other PUBLISH to a subscriber. Everything that may differ between subscribers is in front of the payload. */
typedef struct mqtt_delivery {
    mqtt_text_t topic;      /* may be empty if there is an alias */
    mqtt_text_t properties; /* from mqtt_forward_write */
    const uint32_t *subscription_ids;
    uint32_t subscription_id_count;
    uint32_t payload_size;
    uint32_t expiry_s;    /* if has_expiry */
    uint16_t packet_id;   /* if QoS is not 0 */
    uint16_t topic_alias; /* 0: none */
    uint8_t version, qos;
    bool dup, retain, has_expiry;
} mqtt_delivery_t;

uint32_t mqtt_delivery_header(uint8_t *out, const mqtt_delivery_t *delivery);
/* Offset of the four bytes of the expiry in a header of MQTT 5 that was written with has_expiry. */
uint32_t mqtt_delivery_expiry_at(const uint8_t *header, uint32_t topic_size, uint8_t qos);

#endif
