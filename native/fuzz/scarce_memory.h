/* scarce_memory.h: allocations of the core that fail when a fuzz target says so.
 *
 * The core's calls of malloc and realloc come here: tests/fuzz/native.py sets the linker option. After allocations_before more
 * calls, allocations_failing ones fail. The target sets both for one turn, so only the thread that turns is concerned.
 */
#ifndef BQ_FUZZ_SCARCE_MEMORY_H
#define BQ_FUZZ_SCARCE_MEMORY_H

#include "base/bytes.h"

static _Thread_local uint32_t allocations_before, allocations_failing;

static bool scarce(void) {
    if (!allocations_failing) return false;
    if (allocations_before) {
        allocations_before--;
        return false;
    }
    allocations_failing--;
    return true;
}

void *__real_malloc(size_t size);
void *__real_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_realloc(void *old, size_t size);
void *__wrap_malloc(size_t size) { return scarce() ? NULL : __real_malloc(size); }
void *__wrap_realloc(void *old, size_t size) { return scarce() ? NULL : __real_realloc(old, size); }

#endif
