/* fuzz_ring.c: the ring between Python and the core: any capacity, records of any size, the producer as far ahead as the
 * capacity allows, compared with a list.
 *
 * Invariant: records come out unchanged and in order. A record is refused only if it cannot fit. A dropped reservation has no
 * effect.
 */
#include "fuzz.h"
#include "base/ring.h"

#define KEPT_MAX 512u

typedef struct model {
    ring_t ring;
    uint32_t sizes[KEPT_MAX];
    uint64_t first, next; /* numbers of the oldest and of the next record */
} model_t;

static uint8_t byte_of(uint64_t number, uint32_t at) { return (uint8_t)(number * 31 + at); }

static void put(model_t *model, uint32_t size, bool commit) {
    if (model->next - model->first == KEPT_MAX) return;
    uint8_t *to = ring_reserve(&model->ring, size);
    if (model->first == model->next) CHECK(to || size > ring_record_max(&model->ring));
    if (!to) return;
    CHECK(((uintptr_t)to & 7) == 0);
    for (uint32_t i = 0; i < size; i++) to[i] = byte_of(model->next, i);
    if (!commit) return;
    ring_commit(&model->ring);
    model->sizes[model->next++ % KEPT_MAX] = size;
}

static void get(model_t *model, bool pop) {
    uint32_t size = 0;
    const uint8_t *record = ring_peek(&model->ring, &size);
    CHECK((record != NULL) == (model->first != model->next));
    if (!record) return;
    CHECK(size == model->sizes[model->first % KEPT_MAX]);
    for (uint32_t i = 0; i < size; i++) CHECK(record[i] == byte_of(model->first, i));
    if (!pop) return;
    ring_pop(&model->ring);
    model->first++;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static model_t model;
    input_t input = {data, data + size};
    memset(&model, 0, sizeof model);
    uint32_t capacity = 1u << input_byte(&input) % 14;
    int made = ring_init(&model.ring, capacity);
    CHECK((made == BQ_OK) == (capacity >= 64));
    if (made != BQ_OK) return 0;
    for (uint32_t steps = 0; steps < 2000 && input.at < input.end; steps++) {
        uint8_t what = input_byte(&input);
        if (what & 1)
            put(&model, what & 2 ? (what >> 3) * capacity / 48u : what >> 3, !(what & 4));
        else if (what & 2)
            CHECK(ring_wait_begin(&model.ring) == (model.first == model.next));
        else
            get(&model, !(what & 4));
    }
    while (model.first != model.next) get(&model, true);
    ring_free(&model.ring);
    return 0;
}
