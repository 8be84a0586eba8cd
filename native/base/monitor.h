/* base/monitor.h: a mutex with one condition: how the WAL's threads hand work over. The only place with a thread library's names.
 *
 * Invariant: the waits are timed by a clock that does not jump, so a wrong wall clock can neither hold a thread up nor wake it.
 */
#ifndef BQ_GATE_H
#define BQ_GATE_H

#include <pthread.h>

#include "base/bytes.h"

typedef struct gate {
    pthread_mutex_t mutex;
    pthread_cond_t condition;
} gate_t;

int gate_init(gate_t *gate); /* BQ_OK or BQ_E_SYSTEM */
void gate_free(gate_t *gate);
void gate_enter(gate_t *gate);
void gate_leave(gate_t *gate);
void gate_wait(gate_t *gate,
               int timeout_ms); /* inside; -1: until gate_signal. May return early: look again at what you wait for */
void gate_signal(gate_t *gate); /* inside: wakes every waiter */

#endif
