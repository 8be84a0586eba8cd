/* base/monitor.c: see base/monitor.h.
 *
 * Invariant: a failing mutex or condition is a programming error and stops the process: going on would share data unguarded.
 */
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
#define HAS_CONDITION_CLOCK 0 /* a wait takes a span of time there instead */
#endif

static void require(int failure) {
    if (failure) abort();
}

int gate_init(gate_t *gate) {
    pthread_condattr_t attributes;
    if (pthread_mutex_init(&gate->mutex, NULL) != 0) return BQ_E_SYSTEM;
    int failure = pthread_condattr_init(&attributes);
#if HAS_CONDITION_CLOCK
    if (!failure) failure = pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
#endif
    if (!failure) failure = pthread_cond_init(&gate->condition, &attributes);
    pthread_condattr_destroy(&attributes);
    if (!failure) return BQ_OK;
    pthread_mutex_destroy(&gate->mutex);
    return BQ_E_SYSTEM;
}

void gate_free(gate_t *gate) {
    pthread_cond_destroy(&gate->condition);
    pthread_mutex_destroy(&gate->mutex);
}

void gate_enter(gate_t *gate) { require(pthread_mutex_lock(&gate->mutex)); }
void gate_leave(gate_t *gate) { require(pthread_mutex_unlock(&gate->mutex)); }
void gate_signal(gate_t *gate) { require(pthread_cond_broadcast(&gate->condition)); }

void gate_wait(gate_t *gate, int timeout_ms) {
    if (timeout_ms < 0) {
        require(pthread_cond_wait(&gate->condition, &gate->mutex));
        return;
    }
    struct timespec until = {.tv_sec = timeout_ms / 1000, .tv_nsec = timeout_ms % 1000 * 1000000L};
#if !HAS_CONDITION_CLOCK
    int failure = pthread_cond_timedwait_relative_np(&gate->condition, &gate->mutex, &until);
#else
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    until.tv_sec += now.tv_sec + (until.tv_nsec + now.tv_nsec) / 1000000000L;
    until.tv_nsec = (until.tv_nsec + now.tv_nsec) % 1000000000L;
    int failure = pthread_cond_timedwait(&gate->condition, &gate->mutex, &until);
#endif
    require(failure == ETIMEDOUT ? 0 : failure);
}
