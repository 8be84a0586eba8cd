/* base/check.h: core_assert(): an invariant that a file names at its top, looked at where it could break.
 *
 * Builds with sanitizers and the fuzz programs define BQ_CHECK: there a broken invariant ends the process at the place that broke
 * it. A release holds no instruction of it; the condition is still compiled, so that it cannot become stale, and never evaluated.
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
#define core_assert(condition) ((condition) ? (void)0 : core_assert_failed(#condition, __FILE__, __LINE__))
#else
#define core_assert(condition) ((void)sizeof(!(condition)))
#endif

#endif
