/* test_frame.c: frames from standard input (u32 little-endian size, bytes), each read from memory of exactly its size.
 *
 * Invariant checked: for every prefix and every single flipped bit of a frame, the reader stays inside the frame
 * (AddressSanitizer checks that), and so does the returned view. Writers stay within the space they state.
 */
#include "check.h"
#include "proto/blip_codec.h"

static uint64_t accepted, refused;

static void check_range(const uint8_t *body, uint32_t size, const uint8_t *bytes, uint32_t count, bool terminated) {
    if (!bytes) CHECK(count == 0);
    if (!bytes) return;
    CHECK(bytes >= body && bytes + count + terminated <= body + size);
    if (terminated) CHECK(bytes[count] == 0);
}

static void check_body(const uint8_t *source, uint32_t size) {
    uint8_t *body = malloc(size ? size : 1);
    bq_view_t view;
    if (size) memcpy(body, source, size);
    int code = frame_check(body, size, &view);
    if (code == 0) {
        accepted++;
        check_range(body, size, view.topic, view.topic_size, true);
        check_range(body, size, view.payload, view.payload_size, false);
        check_range(body, size, view.client_id, view.client_id_size, true);
        check_range(body, size, view.api_key, view.api_key_size, true);
        check_range(body, size, view.group, view.group_size, true);
        CHECK((view.action <= FRAME_INFO || view.action == FRAME_ADMIN) && view.qos <= 1 && view.durable <= 1);
        if (view.action == FRAME_PUB) CHECK(topic_check(view.topic, view.topic_size) == 0);
    } else {
        refused++;
        CHECK(code < 0 && strcmp(frame_error(code), "unknown error") != 0);
    }
    free(body);
}

static void check_frame(uint8_t *body, uint32_t size) {
    uint32_t step = size > 400 ? size / 200 : 1; /* long payloads add little */
    check_body(body, size);
    for (uint32_t cut = 0; cut < size; cut += step) check_body(body, cut);
    for (uint32_t bit = 0; bit < size * 8; bit += step) {
        body[bit / 8] ^= (uint8_t)(1u << bit % 8);
        check_body(body, size);
        body[bit / 8] ^= (uint8_t)(1u << bit % 8);
    }
}

static void check_input(void) {
    uint32_t size;
    while (fread(&size, sizeof size, 1, stdin) == 1) {
        CHECK(size < 1u << 24);
        uint8_t *body = malloc(size + 1);
        CHECK(fread(body, 1, size, stdin) == size);
        check_frame(body, size);
        free(body);
    }
    CHECK(accepted > 1000 && refused > 1000);
}

static void test_writers_write_no_more_bytes_than_they_reserve(void) {
    uint8_t text[300];
    memset(text, 'x', sizeof text);
    for (uint32_t size = 0; size <= 256; size++) {
        uint32_t room = FRAME_REPLY_BYTES_MAX(size + 10, 0);
        uint8_t *out = malloc(room);
        uint32_t written = frame_write_suback(out, 1, 0, text, size, "subscribed");
        CHECK(written <= room && load_be32(out) == written - 4 && out[4] == 0);
        free(out);

        room = FRAME_REPLY_BYTES_MAX(size, 300 - size);
        out = malloc(room);
        written = frame_write_reply(out, 1, 400, text, size, 2, text, 300 - size);
        CHECK(written <= room && load_be32(out) == written - 4 && out[4] == 2);
        free(out);

        uint32_t prefix_size = header_template_size(size);
        out = malloc(prefix_size);
        header_template_write(out, text, size);
        header_patch(out, prefix_size, 1, 2, 3, 77);
        CHECK(load_be32(out) == prefix_size - 4 + 77 && out[4] == 1);
        free(out);
    }
}

static void test_every_code_has_a_phrase(void) {
    CHECK(strcmp(frame_error(0), "no error") == 0);
    CHECK(strcmp(frame_error(-1), "unknown error") == 0 && strcmp(frame_error(INT32_MIN), "unknown error") == 0);
    CHECK(strcmp(frame_error(INT32_MAX), "no error") == 0);
}

int main(void) {
    take_bytes();
    check_input();
    test_writers_write_no_more_bytes_than_they_reserve();
    test_every_code_has_a_phrase();
    return 0;
}
