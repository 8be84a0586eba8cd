/* fuzz_mqtt_codec.c: any bytes as the stream of an MQTT client: the first byte is the version, then packets.
 *
 * Invariant: the stream has memory of exactly its size, and all that an accepted packet refers to is inside it. A PUBLISH that was
 * read can be written for a subscriber, and is read again as it was.
 */
#include "../../tests/native/mqtt_reads.h"
#include "fuzz.h"

/* Write an accepted PUBLISH as a delivery with the sender's properties, and compare. */
static void deliver(const mqtt_publish_t *publish, uint8_t version) {
    uint8_t *forwarded = malloc(publish->properties.raw.size + 1u);
    CHECK(forwarded != NULL);
    const uint32_t size = publish->properties.present ? mqtt_forward_write(forwarded, &publish->properties) : 0;
    const mqtt_delivery_t delivery = {.topic = publish->topic,
                                      .properties = {forwarded, size},
                                      .payload_size = publish->payload.size,
                                      .packet_id = publish->packet_id,
                                      .version = version,
                                      .qos = publish->qos,
                                      .dup = publish->dup,
                                      .retain = publish->retain};
    const uint32_t header = mqtt_delivery_header(NULL, &delivery), whole = header + publish->payload.size;
    uint8_t *packet = malloc(whole);
    CHECK(packet != NULL && mqtt_delivery_header(packet, &delivery) == header);
    if (publish->payload.size) memcpy(packet + header, publish->payload.bytes, publish->payload.size);
    mqtt_frame_t frame;
    mqtt_publish_t again;
    int front = mqtt_frame_read(packet, whole, version, UINT32_MAX, &frame);
    CHECK(front > 0 && (uint32_t)front + frame.body_size == whole);
    CHECK(mqtt_publish_read(&frame, packet + front, version, &again) == 0);
    CHECK(again.qos == publish->qos && again.dup == publish->dup && again.retain == publish->retain);
    CHECK(again.packet_id == publish->packet_id && again.topic.size == publish->topic.size);
    CHECK(again.payload.size == publish->payload.size && again.properties.raw.size == size);
    CHECK(memcmp(again.topic.bytes, publish->topic.bytes, publish->topic.size) == 0);
    free(packet);
    free(forwarded);
}

static void deliver_first(const uint8_t *bytes, uint32_t size, uint8_t version) {
    mqtt_frame_t frame;
    mqtt_publish_t publish;
    int header = mqtt_frame_read(bytes, size, version, MQTT_TEST_PACKET_MAX, &frame);
    if (header <= 0 || frame.type != MQTT_PUBLISH || (uint64_t)header + frame.body_size > size) return;
    if (mqtt_publish_read(&frame, bytes + header, version, &publish) || !publish.topic.size) return;
    deliver(&publish, version);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    if (size == 0) return 0;
    const uint8_t version = MQTT_3_1 + data[0] % 3;
    uint8_t *stream = malloc(size - 1);
    CHECK(stream != NULL || size == 1);
    if (size > 1) memcpy(stream, data + 1, size - 1);
    mqtt_read_all(stream, (uint32_t)size - 1, version);
    deliver_first(stream, (uint32_t)size - 1, version);
    free(stream);
    return 0;
}
