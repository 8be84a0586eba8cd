/* base/monitor.c: see base/monitor.h. By POSIX threads.
 *
 * Invariant: a failing mutex or condition is a programming error and aborts the process, because the shared data would be
 * unprotected.
 */
#if !defined(_WIN32)

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* pthread_condattr_setclock */
#endif

#include "base/monitor.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#if defined(_POSIX_CLOCK_SELECTION) && _POSIX_CLOCK_SELECTION > 0
#define HAS_CONDITION_CLOCK 1
#else
#define HAS_CONDITION_CLOCK 0 /* there, a wait takes a duration instead */
#endif

static void require(int failure) {
    if (failure) abort();
}

int monitor_init(monitor_t *monitor) {
    pthread_condattr_t attributes;
    if (pthread_mutex_init(&monitor->mutex, NULL) != 0) return BQ_E_SYSTEM;
    int failure = pthread_condattr_init(&attributes);
#if HAS_CONDITION_CLOCK
    if (!failure) failure = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
#endif
    if (!failure) failure = pthread_cond_init(&monitor->condition, &attributes);
    pthread_condattr_destroy(&attributes);
    if (!failure) return BQ_OK;
    pthread_mutex_destroy(&monitor->mutex);
    return BQ_E_SYSTEM;
}

void monitor_free(monitor_t *monitor) {
    pthread_cond_destroy(&monitor->condition);
    pthread_mutex_destroy(&monitor->mutex);
}

void monitor_enter(monitor_t *monitor) { require(pthread_mutex_lock(&monitor->mutex)); }
void monitor_leave(monitor_t *monitor) { require(pthread_mutex_unlock(&monitor->mutex)); }
void monitor_signal(monitor_t *monitor) { require(pthread_cond_broadcast(&monitor->condition)); }

void monitor_wait(monitor_t *monitor, int timeout_ms) {
    if (timeout_ms < 0) {
        require(pthread_cond_wait(&monitor->condition, &monitor->mutex));
        return;
    }
    struct timespec until = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000L};
#if !HAS_CONDITION_CLOCK
    int failure = pthread_cond_timedwait_relative_np(&monitor->condition, &monitor->mutex, &until);
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    until.tv_sec += now.tv_sec + (until.tv_nsec + now.tv_nsec) / 1000000000L;
    until.tv_nsec = (until.tv_nsec + now.tv_nsec) % 1000000000L;
    int failure = pthread_cond_timedwait(&monitor->condition, &monitor->mutex, &until);
#endif
    require(failure == ETIMEDOUT ? 0 : failure);
}

#endif
