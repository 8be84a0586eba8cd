/* proto/mqtt_properties.h: the properties of MQTT 5 packets.
 *
 * Invariant: a field of mqtt_properties_t is set only if the bit of its property is set in `present`.
 */
#ifndef BQ_MQTT_PROPERTIES_H
#define BQ_MQTT_PROPERTIES_H

#include "base/bytes.h"

enum mqtt_property {
    MQTT_PAYLOAD_FORMAT = 0x01,
    MQTT_MESSAGE_EXPIRY = 0x02,
    MQTT_CONTENT_TYPE = 0x03,
    MQTT_RESPONSE_TOPIC = 0x08,
    MQTT_CORRELATION_DATA = 0x09,
    MQTT_SUBSCRIPTION_ID = 0x0b,
    MQTT_SESSION_EXPIRY = 0x11,
    MQTT_ASSIGNED_CLIENT_ID = 0x12,
    MQTT_SERVER_KEEP_ALIVE = 0x13,
    MQTT_AUTHENTICATION_METHOD = 0x15,
    MQTT_AUTHENTICATION_DATA = 0x16,
    MQTT_REQUEST_PROBLEM = 0x17,
    MQTT_WILL_DELAY = 0x18,
    MQTT_REQUEST_RESPONSE = 0x19,
    MQTT_RESPONSE_INFORMATION = 0x1a,
    MQTT_SERVER_REFERENCE = 0x1c,
    MQTT_REASON_STRING = 0x1f,
    MQTT_RECEIVE_MAXIMUM = 0x21,
    MQTT_TOPIC_ALIAS_MAXIMUM = 0x22,
    MQTT_TOPIC_ALIAS = 0x23,
    MQTT_MAXIMUM_QOS = 0x24,
    MQTT_RETAIN_AVAILABLE = 0x25,
    MQTT_USER_PROPERTY = 0x26,
    MQTT_MAXIMUM_PACKET_SIZE = 0x27,
    MQTT_WILDCARDS_AVAILABLE = 0x28,
    MQTT_SUBSCRIPTION_IDS_AVAILABLE = 0x29,
    MQTT_SHARED_AVAILABLE = 0x2a
};

typedef struct mqtt_text {
    const uint8_t *bytes;
    uint32_t size;
} mqtt_text_t;

typedef struct mqtt_properties {
    uint64_t present; /* bit number P: property P */
    mqtt_text_t raw;  /* all properties as they were sent, without their length; only read, never written */
    mqtt_text_t user; /* to write: user properties, encoded one behind the other; after a read they are in `raw` */
    mqtt_text_t content_type, response_topic, correlation_data, assigned_client_id, authentication_method, authentication_data,
        response_information, server_reference, reason_string;
    uint32_t payload_format, message_expiry_s, subscription_id, session_expiry_s, server_keep_alive_s, request_problem,
        will_delay_s, request_response, receive_maximum, topic_alias_maximum, topic_alias, maximum_qos, retain_available,
        maximum_packet_bytes, wildcards_available, subscription_ids_available, shared_available;
} mqtt_properties_t;

/* The bytes of a PUBLISH's or a will's properties that are passed on to subscribers: all except its expiry, delay and alias.
 * With `out` NULL only the size is returned. */
uint32_t mqtt_forward_write(uint8_t *out, const mqtt_properties_t *properties);

/* The next user property in `rest`, which is `raw` at first. false: there are no more. */
bool mqtt_user_property_next(mqtt_text_t *rest, mqtt_text_t *name, mqtt_text_t *value);

#endif
