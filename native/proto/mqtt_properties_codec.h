/* proto/mqtt_properties_codec.h: properties inside packets: read by the readers of packets, written by their writers. */
#ifndef BQ_MQTT_PROPERTIES_CODEC_H
#define BQ_MQTT_PROPERTIES_CODEC_H

#include "proto/mqtt_bytes.h"

#define MQTT_WILL 0u /* a place of properties, like the packet types from 1 on */

static inline bool mqtt_has(const mqtt_properties_t *properties, enum mqtt_property property) {
    return properties->present >> property & 1;
}

static inline void mqtt_properties_none(mqtt_properties_t *properties) {
    properties->present = 0;
    properties->raw = (mqtt_text_t){NULL, 0};
}

/* Read the length and the properties of a packet of type `place`, or of a will. */
int mqtt_properties_read(mqtt_reader_t *reader, uint32_t place, mqtt_properties_t *properties);

/* The size of the properties without their length. More than VARIABLE_MAX: they cannot be written. */
uint64_t mqtt_properties_size(const mqtt_properties_t *properties);
/* Write the length and the properties in the order of their identifiers, the user properties last. */
uint8_t *mqtt_properties_write(uint8_t *out, const mqtt_properties_t *properties, uint32_t size);

#endif
