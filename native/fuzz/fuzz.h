/* fuzz.h: shared by the fuzz targets: CHECK from the native tests, and an input that is read from its front.
 *
 * Invariant: after its end the input continues with zeros, so every input is a valid program and none is rejected.
 */
#ifndef BQ_FUZZ_H
#define BQ_FUZZ_H

#include "base/bytes.h"
#include "../../tests/native/check.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct input {
    const uint8_t *at, *end;
} input_t;

typedef struct text {
    const uint8_t *bytes;
    uint32_t size;
} text_t;

static inline uint8_t input_byte(input_t *input) { return input->at < input->end ? *input->at++ : 0; }

static inline text_t input_bytes(input_t *input, uint32_t size) {
    uint64_t left = (uint64_t)(input->end - input->at);
    text_t text = {input->at, size < left ? size : (uint32_t)left};
    input->at += text.size;
    return text;
}

static inline uint64_t input_u64(input_t *input) {
    text_t text = input_bytes(input, 8);
    uint64_t value = 0;
    if (text.size) memcpy(&value, text.bytes, text.size);
    return value;
}

/* A text of the table, so that names coincide, or bytes of the input. */
static inline text_t input_text(input_t *input, const char *const *table, uint32_t count) {
    uint8_t pick = input_byte(input);
    if (pick >= 0xf0) return input_bytes(input, (uint32_t)input_byte(input) * (pick == 0xff ? 20 : 1));
    const char *text = table[pick % count];
    return (text_t){(const uint8_t *)text, (uint32_t)strlen(text)};
}

#endif
