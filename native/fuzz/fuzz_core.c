/* fuzz_core.c: a whole stepped core without a WAL, with the steps of stepped.h.
 *
 * Invariant: as in stepped.h.
 */
#include "stepped.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    input_t input = {data, data + size};
    machine_t machine = {.config = config_of(&input), .now_ms = 1000, .answering = true};
    machine.bq = bq_new(&machine.config, 1);
    CHECK(machine.bq);
    for (uint32_t steps = 0; steps < STEPS_MAX && input.at < input.end; steps++) step(&machine, input_byte(&input), &input);
    finish(&machine);
    return 0;
}
