/* proto/mqtt_connect.c: reads CONNECT. See proto/mqtt_codec.h.
 *
 *      protocol name, version, flags, keep-alive, [properties]          [ ]: only MQTT 5
 *      client id, (will: [properties], topic, payload), (user name), (password)
 */
#include "proto/mqtt_codec.h"
#include "proto/mqtt_properties_codec.h"

enum connect_flag {
    RESERVED = 0x01,
    CLEAN = 0x02,
    WILL = 0x04,
    WILL_QOS = 0x18,
    WILL_RETAIN = 0x20,
    PASSWORD = 0x40,
    USER = 0x80
};

#define RECEIVE_MAXIMUM_DEFAULT 65535u
#define BRIDGE 0x80u /* a bridge of Mosquitto adds it to the version of 3.1 or 3.1.1 */

static int version_read(mqtt_reader_t *reader, uint8_t *version) {
    mqtt_text_t name;
    uint32_t level = 0;
    int error = mqtt_read_binary(reader, &name);
    if (!error) error = mqtt_read_u8(reader, &level);
    if (error) return error;
    const bool older = name.size == 6 && memcmp(name.bytes, "MQIsdp", 6) == 0;
    if (!older && !(name.size == 4 && memcmp(name.bytes, "MQTT", 4) == 0)) return MQTT_E_PROTOCOL_NAME; /* [MQTT-3.1.2-1] */
    if (older ? level != MQTT_3_1 : level != MQTT_3_1_1 && level != MQTT_5) {
        *version = level >= MQTT_5 && !(level & BRIDGE) ? MQTT_5 : MQTT_3_1_1;
        return MQTT_E_PROTOCOL_VERSION; /* [MQTT-3.1.2-2] */
    }
    *version = (uint8_t)level;
    return 0;
}

static int flags_set(mqtt_connect_t *connect, uint32_t flags) {
    connect->clean_start = flags & CLEAN;
    connect->has_will = flags & WILL;
    connect->will_qos = (flags & WILL_QOS) >> 3;
    connect->will_retain = flags & WILL_RETAIN;
    connect->has_user_name = flags & USER;
    connect->has_password = flags & PASSWORD;
    if (flags & RESERVED) return MQTT_E_CONNECT_FLAG;                                     /* [MQTT-3.1.2-3] */
    if (!connect->has_will && flags & (WILL_QOS | WILL_RETAIN)) return MQTT_E_WILL_FLAGS; /* [MQTT-3.1.2-11], [MQTT-3.1.2-13] */
    if (connect->will_qos == 3) return MQTT_E_WILL_QOS;                                   /* [MQTT-3.1.2-12] */
    if (connect->has_password && !connect->has_user_name && connect->version < MQTT_5)
        return MQTT_E_PASSWORD; /* 3.1.1: [MQTT-3.1.2-22] */
    return 0;
}

static int properties_read(mqtt_reader_t *reader, mqtt_connect_t *connect) {
    mqtt_properties_t *properties = &connect->properties;
    int error = connect->version < MQTT_5 ? 0 : mqtt_properties_read(reader, MQTT_CONNECT, properties);
    if (error) return error;
    if (!mqtt_has(properties, MQTT_RECEIVE_MAXIMUM)) properties->receive_maximum = RECEIVE_MAXIMUM_DEFAULT;
    if (!mqtt_has(properties, MQTT_MAXIMUM_PACKET_SIZE)) properties->maximum_packet_bytes = UINT32_MAX;
    if (!mqtt_has(properties, MQTT_REQUEST_PROBLEM)) properties->request_problem = 1;
    const bool data = mqtt_has(properties, MQTT_AUTHENTICATION_DATA);
    return data && !mqtt_has(properties, MQTT_AUTHENTICATION_METHOD) ? MQTT_E_AUTH_DATA : 0;
}

static int will_read(mqtt_reader_t *reader, uint32_t topic_bytes_max, mqtt_connect_t *connect) {
    mqtt_properties_t *properties = &connect->will_properties;
    int error = connect->version < MQTT_5 ? 0 : mqtt_properties_read(reader, MQTT_WILL, properties);
    if (!error) error = mqtt_read_binary(reader, &connect->will_topic);
    if (!error) error = mqtt_read_binary(reader, &connect->will_payload);
    if (!error) error = mqtt_topic_check(connect->will_topic.bytes, connect->will_topic.size, topic_bytes_max);
    if (!error && mqtt_has(properties, MQTT_RESPONSE_TOPIC))
        error = mqtt_topic_check(properties->response_topic.bytes, properties->response_topic.size, UINT16_MAX);
    return error;
}

int mqtt_connect_read(const mqtt_frame_t *frame, const uint8_t *body, uint32_t topic_bytes_max, mqtt_connect_t *connect) {
    mqtt_reader_t reader = {body, body + frame->body_size};
    uint32_t flags = 0, keep_alive_s = 0;
    memset(connect, 0, sizeof *connect);
    int error = version_read(&reader, &connect->version);
    if (!error && frame->wasteful && connect->version >= MQTT_5) error = MQTT_E_LENGTH;
    if (!error) error = mqtt_read_u8(&reader, &flags);
    if (!error) error = flags_set(connect, flags);
    if (!error) error = mqtt_read_u16(&reader, &keep_alive_s);
    if (!error) error = properties_read(&reader, connect);
    if (!error) error = mqtt_read_string(&reader, &connect->client_id);
    if (!error && connect->has_will) error = will_read(&reader, topic_bytes_max, connect);
    if (!error && connect->has_user_name) error = mqtt_read_string(&reader, &connect->user_name);
    if (!error && connect->has_password) error = mqtt_read_binary(&reader, &connect->password);
    if (error) return error;
    connect->keep_alive_s = (uint16_t)keep_alive_s;
    if (mqtt_left(&reader)) return MQTT_E_EXTRA;
    const bool unnamed = connect->client_id.size == 0; /* 3.1 needs a name, 3.1.1 in lasting sessions [3.1.1: MQTT-3.1.3-8] */
    return unnamed && (connect->version == MQTT_3_1 || (connect->version < MQTT_5 && !connect->clean_start)) ? MQTT_E_CLIENT_ID
                                                                                                             : 0;
}
