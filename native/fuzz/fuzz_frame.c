/* fuzz_frame.c: any bytes as a ClientCommand body (without its length).
 *
 * Invariant: the body has memory of exactly its size, so a read outside it is detected. All fields of an accepted body can be
 * read, and a publish can be encoded as a Message.
 */
#include "proto/blip_codec.h"
#include "fuzz.h"

static uint64_t sum; /* of all bytes of the views: keeps the compiler from removing the reads */

static void read_range(const uint8_t *bytes, uint32_t size, bool terminated) {
    CHECK(bytes || size == 0);
    if (!bytes) return;
    for (uint32_t i = 0; i < size; i++) sum += bytes[i];
    CHECK(!terminated || bytes[size] == 0);
}

static void read_view(const bq_view_t *view) {
    read_range(view->topic, view->topic_size, true);
    read_range(view->payload, view->payload_size, false);
    read_range(view->client_id, view->client_id_size, true);
    read_range(view->api_key, view->api_key_size, true);
    read_range(view->group, view->group_size, true);
    CHECK((view->action <= FRAME_INFO || view->action == FRAME_ADMIN) && view->qos <= 1 && view->durable <= 1);
}

static void write_message(const bq_view_t *view) {
    uint32_t header_size = header_template_size(view->topic_size);
    uint8_t *out = malloc((size_t)header_size + view->payload_size);
    CHECK(out != NULL);
    header_template_write(out, view->topic, view->topic_size);
    header_patch(out, header_size, view->seq, view->seq, view->ttl_ms, view->payload_size);
    if (view->payload_size) memcpy(out + header_size, view->payload, view->payload_size);
    CHECK(load_be32(out) == header_size - 4 + view->payload_size && out[4] == 1);
    free(out);
}

static void write_reply(const bq_view_t *view) {
    uint32_t room = FRAME_REPLY_BYTES_MAX(view->topic_size, view->payload_size);
    uint8_t *out = malloc(room);
    CHECK(out != NULL);
    uint32_t written = frame_write_reply(out, view->seq, view->protocol, view->topic, view->topic_size, view->ttl_ms,
                                         view->payload, view->payload_size);
    CHECK(written <= room && load_be32(out) == written - 4);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    uint8_t *body = malloc(size);
    bq_view_t view, again;
    memset(&view, 0, sizeof view); /* with its padding: the views are compared as bytes */
    memset(&again, 0, sizeof again);
    CHECK(body != NULL || size == 0);
    if (size) memcpy(body, data, size);
    int code = frame_check(body, (uint32_t)size, &view);
    CHECK(code <= 0 && (code == 0 || strcmp(frame_error(code), "unknown error") != 0));
    if (code == 0) {
        read_view(&view);
        CHECK(frame_verify(body, (uint32_t)size, &again) == 0 && memcmp(&view, &again, sizeof view) == 0);
        if (view.action == FRAME_PUB) write_message(&view);
        write_reply(&view);
    }
    free(body);
    return 0;
}
