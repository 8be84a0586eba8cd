/* base/monitor.h: a mutex with one condition, with which threads hand over work. POSIX: base/monitor.c, Windows:
 * base/monitor_windows.c.
 *
 * Invariant: waits are timed by a clock that does not jump, so a wrong wall clock can neither delay nor wake a thread.
 */
#ifndef BQ_MONITOR_H
#define BQ_MONITOR_H

#include "base/bytes.h"

#if defined(_WIN32)
typedef struct monitor {
    void *mutex, *condition; /* SRWLOCK and CONDITION_VARIABLE, without the system's headers */
} monitor_t;
#else
#include <pthread.h>
typedef struct monitor {
    pthread_mutex_t mutex;
    pthread_cond_t condition;
} monitor_t;
#endif

int monitor_init(monitor_t *monitor); /* BQ_OK or BQ_E_SYSTEM */
void monitor_free(monitor_t *monitor);
void monitor_enter(monitor_t *monitor);
void monitor_leave(monitor_t *monitor);
/* Call it inside. -1: wait until monitor_signal. It may return early: check the condition again. */
void monitor_wait(monitor_t *monitor, int timeout_ms);
void monitor_signal(monitor_t *monitor); /* call it inside: wakes all waiting threads */

#endif
