/* proto/mqtt_bytes.h: the data types of MQTT: integers, lengths of variable size, strings and binary data.
 *
 * Invariant: a read takes bytes only after it has compared its size with the bytes that are left.
 */
#ifndef BQ_MQTT_BYTES_H
#define BQ_MQTT_BYTES_H

#include "base/topic_name.h"
#include "proto/mqtt_error.h"
#include "proto/mqtt_properties.h"

#define VARIABLE_MAX 268435455u /* the largest length of variable size: four bytes of seven bits */

typedef struct mqtt_reader {
    const uint8_t *at, *end;
} mqtt_reader_t;

static inline size_t mqtt_left(const mqtt_reader_t *reader) { return (size_t)(reader->end - reader->at); }

static inline uint16_t load_be16(const uint8_t *p) { return (uint16_t)(p[0] << 8 | p[1]); }

static inline uint8_t *store_be16(uint8_t *p, uint32_t v) {
    p[0] = (uint8_t)(v >> 8);
    p[1] = (uint8_t)v;
    return p + 2;
}

static inline int mqtt_read_u8(mqtt_reader_t *reader, uint32_t *out) {
    if (BQ_UNLIKELY(mqtt_left(reader) < 1)) return MQTT_E_CUT;
    *out = *reader->at++;
    return 0;
}

static inline int mqtt_read_u16(mqtt_reader_t *reader, uint32_t *out) {
    if (BQ_UNLIKELY(mqtt_left(reader) < 2)) return MQTT_E_CUT;
    *out = load_be16(reader->at);
    reader->at += 2;
    return 0;
}

static inline int mqtt_read_u32(mqtt_reader_t *reader, uint32_t *out) {
    if (BQ_UNLIKELY(mqtt_left(reader) < 4)) return MQTT_E_CUT;
    *out = load_be32(reader->at);
    reader->at += 4;
    return 0;
}

/* A length of variable size, in as few bytes as it needs. */
static inline int mqtt_read_variable(mqtt_reader_t *reader, uint32_t *out) {
    uint32_t value = 0;
    for (uint32_t shift = 0; shift < 28; shift += 7) {
        if (BQ_UNLIKELY(reader->at == reader->end)) return MQTT_E_CUT;
        uint8_t byte = *reader->at++;
        value |= (uint32_t)(byte & 0x7f) << shift;
        if (byte & 0x80) continue;
        *out = value;
        return BQ_UNLIKELY(byte == 0 && shift) ? MQTT_E_LENGTH : 0;
    }
    return MQTT_E_LENGTH;
}

static inline int mqtt_read_binary(mqtt_reader_t *reader, mqtt_text_t *out) {
    uint32_t size = 0;
    if (BQ_UNLIKELY(mqtt_read_u16(reader, &size) || mqtt_left(reader) < size)) return MQTT_E_CUT;
    *out = (mqtt_text_t){reader->at, size};
    reader->at += size;
    return 0;
}

static inline int mqtt_read_string(mqtt_reader_t *reader, mqtt_text_t *out) {
    int error = mqtt_read_binary(reader, out);
    if (BQ_UNLIKELY(error)) return error;
    if (BQ_UNLIKELY(utf8_check(out->bytes, out->size))) return MQTT_E_UTF8;
    return BQ_UNLIKELY(out->size && memchr(out->bytes, 0, out->size)) ? MQTT_E_NUL : 0;
}

static inline uint32_t mqtt_variable_size(uint64_t value) {
    return value < 128 ? 1 : value < 16384 ? 2 : value < 2097152 ? 3 : 4;
}

static inline uint8_t *mqtt_write_variable(uint8_t *out, uint32_t value) {
    for (; value >= 128; value >>= 7) *out++ = (uint8_t)(value | 0x80);
    *out++ = (uint8_t)value;
    return out;
}

static inline uint8_t *mqtt_write_bytes(uint8_t *out, const uint8_t *bytes, uint32_t size) {
    if (size) memcpy(out, bytes, size);
    return out + size;
}

static inline uint8_t *mqtt_write_binary(uint8_t *out, mqtt_text_t text) {
    return mqtt_write_bytes(store_be16(out, text.size), text.bytes, text.size);
}

#endif
