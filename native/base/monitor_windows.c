/* base/monitor_windows.c: base/monitor.h by a slim lock and a condition variable, which cannot fail and need no release.
 *
 * Invariant: both are one pointer, and NULL is their initial state.
 */
#if defined(_WIN32)

#include <windows.h>

#include "base/monitor.h"

_Static_assert(sizeof(SRWLOCK) == sizeof(void *) && sizeof(CONDITION_VARIABLE) == sizeof(void *),
               "base/monitor.h declares each as a pointer");

static SRWLOCK *lock_of(monitor_t *monitor) { return (SRWLOCK *)&monitor->mutex; }
static CONDITION_VARIABLE *condition_of(monitor_t *monitor) { return (CONDITION_VARIABLE *)&monitor->condition; }

int monitor_init(monitor_t *monitor) {
    InitializeSRWLock(lock_of(monitor));
    InitializeConditionVariable(condition_of(monitor));
    return BQ_OK;
}

void monitor_free(monitor_t *monitor) { (void)monitor; }
void monitor_enter(monitor_t *monitor) { AcquireSRWLockExclusive(lock_of(monitor)); }
void monitor_leave(monitor_t *monitor) { ReleaseSRWLockExclusive(lock_of(monitor)); }
void monitor_signal(monitor_t *monitor) { WakeAllConditionVariable(condition_of(monitor)); }

void monitor_wait(monitor_t *monitor, int timeout_ms) {
    SleepConditionVariableSRW(condition_of(monitor), lock_of(monitor), timeout_ms < 0 ? INFINITE : (DWORD)timeout_ms, 0);
}

#endif
