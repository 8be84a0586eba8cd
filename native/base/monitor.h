/* base/monitor.h: a mutex with one condition: how the WAL's threads hand work over. The only place with a thread library's names.
 *
 * Invariant: the waits are timed by a clock that does not jump, so a wrong wall clock can neither hold a thread up nor wake it.
 */
#ifndef BQ_MONITOR_H
#define BQ_MONITOR_H

#include <pthread.h>

#include "base/bytes.h"

typedef struct monitor {
    pthread_mutex_t mutex;
    pthread_cond_t condition;
} monitor_t;

int monitor_init(monitor_t *monitor); /* BQ_OK or BQ_E_SYSTEM */
void monitor_free(monitor_t *monitor);
void monitor_enter(monitor_t *monitor);
void monitor_leave(monitor_t *monitor);
void monitor_wait(monitor_t *monitor,
                  int timeout_ms);       /* inside; -1: until monitor_signal. May return early: look again at what you wait for */
void monitor_signal(monitor_t *monitor); /* inside: wakes every waiter */

#endif
