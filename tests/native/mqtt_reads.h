/* mqtt_reads.h: shared by the test program and the fuzz target of the MQTT codec: read the packets of an input as a broker does.
 *
 * Invariant: all that an accepted packet refers to is inside it.
 */
#ifndef BQ_TEST_MQTT_READS_H
#define BQ_TEST_MQTT_READS_H

#include "base/topic_name.h"
#include "proto/mqtt_codec.h"
#include "proto/mqtt_error.h"

#include "check.h"

#define MQTT_TEST_PACKET_MAX 4096u
#define MQTT_TEST_TOPIC_MAX 200u

typedef struct mqtt_bounds {
    const uint8_t *from, *to;
} mqtt_bounds_t;

static inline void mqtt_inside(mqtt_bounds_t bounds, mqtt_text_t text) {
    CHECK(text.size == 0 || (text.bytes >= bounds.from && text.bytes + text.size <= bounds.to));
}

/* Every error has a reason and a phrase. */
static inline bool mqtt_failed(int code) {
    CHECK(code <= 0 && (code == 0 || (mqtt_error_reason(code) > MQTT_UNSPECIFIED_ERROR && strlen(mqtt_error_phrase(code)) > 10)));
    return code != 0;
}

static inline void mqtt_check_properties(mqtt_bounds_t bounds, const mqtt_properties_t *properties) {
    mqtt_text_t rest = properties->raw, name, value;
    mqtt_inside(bounds, rest);
    if (!properties->present) return;
    const bool content = properties->present >> MQTT_CONTENT_TYPE & 1, reason = properties->present >> MQTT_REASON_STRING & 1;
    if (content) mqtt_inside(bounds, properties->content_type);
    if (reason) mqtt_inside(bounds, properties->reason_string);
    uint32_t pairs = 0;
    for (; mqtt_user_property_next(&rest, &name, &value); pairs++) {
        mqtt_inside(bounds, name);
        mqtt_inside(bounds, value);
        CHECK(!utf8_check(name.bytes, name.size) && !utf8_check(value.bytes, value.size));
    }
    CHECK((pairs > 0) == (properties->present >> MQTT_USER_PROPERTY & 1) && rest.size == 0);
    const uint32_t size = mqtt_forward_write(NULL, properties);
    uint8_t *forwarded = malloc(size + 1u);
    CHECK(forwarded && size <= properties->raw.size && mqtt_forward_write(forwarded, properties) == size);
    free(forwarded);
}

static inline void mqtt_check_connect(const mqtt_frame_t *frame, const uint8_t *body, mqtt_bounds_t bounds) {
    mqtt_connect_t connect;
    if (mqtt_failed(mqtt_connect_read(frame, body, MQTT_TEST_TOPIC_MAX, &connect))) return;
    CHECK(connect.version == MQTT_3_1 || connect.version == MQTT_3_1_1 || connect.version == MQTT_5);
    CHECK(connect.properties.receive_maximum && connect.properties.maximum_packet_bytes && connect.will_qos < 3);
    mqtt_inside(bounds, connect.client_id);
    mqtt_inside(bounds, connect.will_topic);
    mqtt_inside(bounds, connect.will_payload);
    mqtt_inside(bounds, connect.user_name);
    mqtt_inside(bounds, connect.password);
    mqtt_check_properties(bounds, &connect.properties);
    mqtt_check_properties(bounds, &connect.will_properties);
}

static inline void mqtt_check_publish(const mqtt_frame_t *frame, const uint8_t *body, uint8_t version, mqtt_bounds_t bounds) {
    mqtt_publish_t publish;
    if (mqtt_failed(mqtt_publish_read(frame, body, version, &publish))) return;
    CHECK(publish.qos < 3 && (publish.qos > 0) == (publish.packet_id > 0));
    mqtt_inside(bounds, publish.topic);
    mqtt_inside(bounds, publish.payload);
    mqtt_check_properties(bounds, &publish.properties);
    if (mqtt_failed(mqtt_topic_check(publish.topic.bytes, publish.topic.size, MQTT_TEST_TOPIC_MAX))) return;
    mqtt_filter_t filter; /* every topic that is not a share is a filter that matches it alone */
    if (mqtt_filter_check(publish.topic.bytes, publish.topic.size, MQTT_TEST_TOPIC_MAX, &filter)) return;
    CHECK(filter.syntax == SYNTAX_LITERAL);
}

static inline void mqtt_check_subscribe(const mqtt_frame_t *frame, const uint8_t *body, uint8_t version, mqtt_bounds_t bounds) {
    mqtt_subscribe_t subscribe;
    mqtt_filter_t filter;
    uint32_t count = 0;
    if (mqtt_failed(mqtt_subscribe_read(frame, body, version, MQTT_TEST_TOPIC_MAX, &subscribe))) return;
    mqtt_inside(bounds, subscribe.filters);
    mqtt_check_properties(bounds, &subscribe.properties);
    for (mqtt_text_t rest = subscribe.filters; mqtt_filter_next(&rest, frame->type, &filter); count++) {
        mqtt_inside(bounds, filter.text);
        mqtt_inside(bounds, filter.group);
        mqtt_inside(bounds, filter.filter);
        CHECK(filter.qos < 3 && filter.retain_handling < 3 && filter.filter.size && filter.syntax != SYNTAX_DOTS);
        filter_matches(filter.syntax, filter.filter.bytes, filter.filter.size, (const uint8_t *)"a/b", 3);
    }
    CHECK(count == subscribe.count && count > 0);
}

static inline void mqtt_read_one(const mqtt_frame_t *frame, const uint8_t *body, uint8_t version) {
    const mqtt_bounds_t bounds = {body, body + frame->body_size};
    mqtt_result_t result;
    switch (frame->type) {
    case MQTT_CONNECT: mqtt_check_connect(frame, body, bounds); break;
    case MQTT_PUBLISH: mqtt_check_publish(frame, body, version, bounds); break;
    case MQTT_SUBSCRIBE:
    case MQTT_UNSUBSCRIBE: mqtt_check_subscribe(frame, body, version, bounds); break;
    case MQTT_PINGREQ: mqtt_failed(mqtt_pingreq_read(frame)); break;
    default:
        if (!mqtt_failed(mqtt_result_read(frame, body, version, &result))) mqtt_check_properties(bounds, &result.properties);
    }
}

/* Packets one after the other, until one is not whole or has a wrong header. */
static inline void mqtt_read_all(const uint8_t *bytes, uint32_t size, uint8_t version) {
    mqtt_frame_t frame;
    while (size) {
        int header = mqtt_frame_read(bytes, size, version, MQTT_TEST_PACKET_MAX, &frame);
        if (header <= 0) {
            CHECK(header == 0 || mqtt_failed(header));
            return;
        }
        const uint32_t whole = (uint32_t)header + frame.body_size;
        CHECK(whole <= MQTT_TEST_PACKET_MAX);
        if (whole > size) return;
        mqtt_read_one(&frame, bytes + header, version);
        bytes += whole;
        size -= whole;
    }
}

#endif
