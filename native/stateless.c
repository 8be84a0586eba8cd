/* stateless.c: functions of the C API that need no broker: for tests, tools and the client.
 *
 * Invariant: each function makes one call into a base or codec function, and checks here the arguments that the called function
 * does not check (capacity, sizes).
 */
#include "base/crc32.h"
#include "proto/blip_codec.h"

int bq_decode(const uint8_t *body, uint32_t size, bq_view_t *view) { return frame_check(body, size, view); }
const char *bq_decode_error(int code) { return frame_error(code); }
int bq_topic_check(const uint8_t *topic, uint32_t size) { return topic_check(topic, size); }
int bq_filter_check(const uint8_t *filter, uint32_t size) { return filter_check(filter, size); }

int bq_filter_match(const uint8_t *filter, uint32_t filter_size, const uint8_t *topic, uint32_t topic_size) {
    return filter_match(filter, filter_size, topic, topic_size);
}

int bq_encode_message(uint8_t *out, uint32_t capacity, uint64_t id, uint64_t timestamp_ms, uint64_t ttl_ms, const uint8_t *topic,
                      uint32_t topic_size, const uint8_t *payload, uint32_t payload_size) {
    if (topic_size > TOPIC_BYTES_MAX) return BQ_E_TOO_LARGE;
    uint32_t prefix_size = header_template_size(topic_size);
    uint64_t size = (uint64_t)prefix_size + payload_size;
    if (size > capacity || size > INT32_MAX) return BQ_E_TOO_LARGE;
    header_template_write(out, topic, topic_size);
    header_patch(out, prefix_size, id, timestamp_ms, ttl_ms, payload_size);
    if (payload_size) memcpy(out + prefix_size, payload, payload_size);
    return (int)size;
}

uint32_t bq_crc32(uint32_t crc, const uint8_t *bytes, uint64_t size) { return crc32_update(crc, bytes, size); }
