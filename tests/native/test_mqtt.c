/* test_mqtt.c: packets from standard input, each [version u8][size u32][packet], cut at every byte and changed at random.
 *
 * Invariant: each packet has memory of exactly its size, so that a sanitizer finds a read outside it.
 */
#include "check.h"
#include "mqtt_reads.h"

#define CHANGES 100
#define LONG 128u

static void run(const uint8_t *packet, uint32_t size, uint8_t version) {
    uint8_t *exact = malloc(size);
    CHECK(exact != NULL || size == 0);
    if (size) memcpy(exact, packet, size);
    mqtt_read_all(exact, size, version);
    free(exact);
}

/* The body ends early, and the length in front says so. The header is one byte and a length of one byte or more. */
static void run_shorter(const uint8_t *packet, uint32_t size, uint8_t version) {
    mqtt_frame_t frame;
    int header = mqtt_frame_read(packet, size, version, UINT32_MAX, &frame);
    if (header <= 0 || (uint64_t)header + frame.body_size != size) return;
    for (uint32_t body = 0; body < frame.body_size && body < 128; body++) {
        uint8_t *shorter = malloc(2 + body);
        CHECK(shorter != NULL);
        shorter[0] = packet[0];
        shorter[1] = (uint8_t)body;
        memcpy(shorter + 2, packet + header, body);
        mqtt_read_all(shorter, 2 + body, version);
        free(shorter);
    }
}

int main(void) {
    take_bytes();
    static uint8_t packet[1 << 16];
    uint8_t head[5];
    uint64_t random = 1, packets = 0;
    while (fread(head, 1, sizeof head, stdin) == sizeof head) {
        uint32_t size = load_u32(head + 1);
        CHECK(size <= sizeof packet && fread(packet, 1, size, stdin) == size);
        for (uint32_t have = 0; have <= size; have++) {
            if (have == LONG && size > 2 * LONG) have = size - LONG; /* the middle of a long packet is one field */
            run(packet, have, head[0]);
        }
        run_shorter(packet, size, head[0]);
        for (uint32_t change = 0; size && change < CHANGES; change++) {
            uint64_t at = random_below(&random, size);
            uint8_t before = packet[at];
            packet[at] = (uint8_t)random_next(&random);
            run(packet, size, change & 1 ? head[0] : 5);
            packet[at] = before;
        }
        packets++;
    }
    CHECK(packets > 100);
    return 0;
}
