/* base/check.h: core_assert() checks an invariant at the places where it could break.
 *
 * Builds with sanitizers and the fuzz programs define BQ_CHECK: a broken invariant then aborts the process at once. In a
 * release the condition is compiled, so that it stays correct code, but it is never evaluated and produces no instruction.
 */
#ifndef BQ_CHECK_H
#define BQ_CHECK_H

#ifdef BQ_CHECK
#include <stdio.h>
#include <stdlib.h>

static __attribute__((noinline, noreturn, cold, unused)) void core_assert_failed(const char *what, const char *file, int line) {
    fprintf(stderr, "%s:%d: broken invariant: %s\n", file, line, what);
    abort();
}
#define CORE_CHECKED 1
#define core_assert(condition) ((condition) ? (void)0 : core_assert_failed(#condition, __FILE__, __LINE__))
#else
#define CORE_CHECKED 0
#define core_assert(condition) ((void)sizeof(!(condition)))
#endif

#endif
