/* proto/blip_fast.c: publishes that equal the previous one up to the payload are compared with it instead of parsed.
 *
 * Invariant: the output is the same, byte for byte, as after parsing each publish.
 */
#include "net/net.h"
#include "proto/blip_codec.h"
#include "proto/blip_fast.h"

/* Pieces of 16 bytes at any address: one instruction each to load, compare or store. Copies are made in whole BLOCKs, so up
 * to SLACK bytes beyond the end are read and written. From COPY_BYTES on, memcpy is faster. */
#define PIECE 16u
#define BLOCK_PIECES 4u
#define BLOCK (PIECE * BLOCK_PIECES)
#define SLACK BLOCK
#define COPY_BYTES 256u
typedef uint64_t piece_t __attribute__((vector_size(PIECE)));

static inline piece_t piece_load(const uint8_t *from) {
    piece_t piece;
    memcpy(&piece, from, PIECE);
    return piece;
}

static inline void piece_store(uint8_t *to, piece_t piece) { memcpy(to, &piece, PIECE); }

static inline bool piece_any(piece_t piece) { return piece[0] | piece[1]; }

static inline void block_load(piece_t block[BLOCK_PIECES], const uint8_t *from) {
    for (uint32_t i = 0; i < BLOCK_PIECES; i++) block[i] = piece_load(from + i * PIECE);
}

static inline void block_store(uint8_t *to, const piece_t block[BLOCK_PIECES]) {
    for (uint32_t i = 0; i < BLOCK_PIECES; i++) piece_store(to + i * PIECE, block[i]);
}

static inline void blocks_copy(uint8_t *to, const uint8_t *from, uint32_t size) {
    if (size >= COPY_BYTES) {
        memcpy(to, from, size);
        return;
    }
    for (uint32_t at = 0; at < size; at += BLOCK) {
        piece_t block[BLOCK_PIECES];
        block_load(block, from + at);
        block_store(to + at, block);
    }
}

/* The publish that others are compared with, and the position of its payload. The head is everything before the payload: at
 * least PIECE bytes, including both lengths. Its first BLOCK is kept in pieces, which overlap if the head is shorter. */
typedef struct publish_model {
    const uint8_t *frame;
    uint32_t size, payload_at, payload_size; /* offsets from the start of the frame, with its length */
    uint32_t head_at[BLOCK_PIECES];
    bool payload_last;
} publish_model_t;

static publish_model_t model_of(const uint8_t *frame, const bq_view_t *view, enum frame_payload place) {
    publish_model_t model = {.frame = frame,
                             .size = 4 + load_be32(frame),
                             .payload_at = (uint32_t)(view->payload - frame),
                             .payload_size = view->payload_size,
                             .payload_last = place == PAYLOAD_LAST};
    for (uint32_t i = 0; i < BLOCK_PIECES; i++)
        model.head_at[i] = (i + 1) * PIECE < model.payload_at ? i * PIECE : model.payload_at - PIECE;
    return model;
}

static inline void head_load(piece_t head[BLOCK_PIECES], const publish_model_t *model) {
    for (uint32_t i = 0; i < BLOCK_PIECES; i++) head[i] = piece_load(model->frame + model->head_at[i]);
}

/* true: a frame with the model's size differs from it in a field other than the payload. */
static inline bool frame_differs(const publish_model_t *model, const piece_t head[BLOCK_PIECES], const uint8_t *frame) {
    piece_t differs = {0};
    for (uint32_t i = 0; i < BLOCK_PIECES; i++) differs |= head[i] ^ piece_load(frame + model->head_at[i]);
    for (uint32_t at = BLOCK; at < model->payload_at; at += PIECE) {
        uint32_t piece_at = at + PIECE < model->payload_at ? at : model->payload_at - PIECE;
        differs |= piece_load(model->frame + piece_at) ^ piece_load(frame + piece_at);
    }
    if (BQ_UNLIKELY(piece_any(differs))) return true;
    if (model->payload_last) return false;
    uint32_t end = model->payload_at + model->payload_size;
    return memcmp(model->frame + end, frame + end, model->size - end) != 0;
}

/* Make a frame of another size the model if it parses the same. No field may follow its payload, and nothing before the
 * payload may differ except the two lengths. */
static NOINLINE bool model_resize(publish_model_t *model, const uint8_t *frame, uint64_t left, uint32_t frame_bytes_max) {
    if (!model->payload_last || left < model->payload_at) return false;
    uint32_t size = load_be32(frame), payload_size = load_u32(frame + model->payload_at - 4);
    if (size > frame_bytes_max || model->payload_at + (uint64_t)payload_size > size + 4ull) return false;
    if (memcmp(model->frame + 4, frame + 4, model->payload_at - 8) != 0) return false;
    model->frame = frame;
    model->size = 4 + size;
    model->payload_size = payload_size;
    return true;
}

/* Most publishers send many messages in a row that differ only in the payload. When the first one has been parsed and has
 * joined the open run, the next ones are only compared with it and join the same way. */
NOINLINE uint32_t blip_fast_path(net_t *net, const uint8_t *first, uint32_t size, uint32_t frame_bytes_max,
                                 const bq_view_t *view) {
    enum frame_payload place = frame_payload_place(first + 4, view);
    if (place == PAYLOAD_MIXED || view->payload - first < (ptrdiff_t)PIECE) return 0;
    if (net->broker.open.topic->encoding != ENCODING_BLIP) return 0;
    publish_model_t model = model_of(first, view, place);
    queue_run_t *run = &net->broker.open.run;
    const uint32_t header_size = net->broker.open.topic->overhead, count_max = net->broker.open.count_max - run->count;
    const uint32_t buffer_room = run->buffer->capacity - run->buffer->used;
    if (buffer_room < SLACK) return 0;
    uint32_t room = net->broker.open.size_max - run->size;
    if (room > buffer_room - SLACK) room = buffer_room - SLACK;

    /* The header is a copy of the first one's. Only the id differs, and the lengths if the size differs. */
    uint8_t *const begin = run->buffer->bytes + run->buffer->used, *const header = begin - model.payload_size - header_size;
    const uint8_t *const end = first + size;
    const uint64_t first_id = net->broker.next_message_id;
    piece_t head[BLOCK_PIECES], opening[BLOCK_PIECES];
    head_load(head, &model);
    block_load(opening, header);
    uint8_t *out = begin;
    const uint8_t *frame = first + model.size;
    uint32_t count = 0;
    for (; count < count_max; count++) {
        uint64_t left = (uint64_t)(end - frame);
        if (BQ_UNLIKELY(left < model.size + SLACK || frame_differs(&model, head, frame))) {
            publish_model_t resized = model;
            if (!model_resize(&resized, frame, left, frame_bytes_max) || left < resized.size + (uint64_t)SLACK) break;
            model = resized;
            head_load(head, &model);
        }
        const uint32_t payload_size = model.payload_size, out_size = header_size + payload_size;
        if (BQ_UNLIKELY(out_size > room)) break;
        block_store(out, opening);
        for (uint32_t at = BLOCK; at < header_size; at += PIECE) piece_store(out + at, piece_load(header + at));
        header_renumber(out, header_size, first_id + count, payload_size);
        blocks_copy(out + header_size, frame + model.payload_at, payload_size);
        out += out_size;
        room -= out_size;
        frame += model.size;
    }
    uint32_t bytes = (uint32_t)(out - begin);
    buffer_commit(&net->broker.buffers, bytes);
    run->size += bytes;
    run->count += count;
    net->broker.next_message_id += count;
    net->broker.stats.published += count;
    net->broker.stats.published_bytes += bytes - (uint64_t)count * header_size;
    net->broker.stats.frames_in += count;
    return (uint32_t)(frame - first) - load_be32(first) - 4;
}
