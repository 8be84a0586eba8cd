/* net/handshake.c: the thread bq-tls, which computes steps of handshakes. See net/secure.h.
 *
 * Invariant: a step is in one list at a time, or belongs to the thread that took it from a list. The thread uses the step and
 * the state of its connection, and nothing else of the core.
 */
#include "net/secure.h"

#include <stdlib.h>

#define STEP_OUT_BYTES RECORD_BYTES_MAX /* one flight; a long chain of certificates takes more */
#define STEP_OUT_BYTES_MAX (256u << 10)

/* ---- one step -------------------------------------------------------------------------------------------------------- */

handshake_step_t *handshake_step_new(const uint8_t *bytes, uint32_t size) {
    handshake_step_t *step = malloc(sizeof *step + size);
    if (!step) return NULL;
    memset(step, 0, sizeof *step);
    step->in_size = size;
    memcpy(step->in, bytes, size);
    return step;
}

void handshake_step_free(handshake_step_t *step) {
    free(step->out);
    free(step);
}

static int fail(handshake_step_t *step, const char *reason) {
    memcpy(step->error.reason, reason, strlen(reason) + 1);
    return BQ_SECURE_FAILED;
}

/* A call of the module with room for at least one record behind the output so far. */
static int shake(handshake_step_t *step, uint32_t *capacity) {
    if (*capacity - step->out_used < RECORD_BYTES_MAX) {
        uint32_t more = *capacity ? *capacity * 2 : STEP_OUT_BYTES;
        uint8_t *out = more > STEP_OUT_BYTES_MAX ? NULL : realloc(step->out, more);
        if (!out) return fail(step, "no memory for its handshake");
        step->out = out;
        *capacity = more;
    }
    bq_secure_io_t io = {.in = step->in + step->in_used,
                         .in_size = step->in_size - step->in_used,
                         .out = step->out + step->out_used,
                         .out_size = *capacity - step->out_used};
    int result = step->ops->shake(step->state, &io);
    step->in_used += io.in_used;
    step->out_used += io.out_used;
    if (result == BQ_SECURE_FAILED) step->ops->failed(step->state, &step->error);
    return result;
}

void handshake_step_run(handshake_step_t *step) {
    uint32_t capacity = 0;
    do step->result = shake(step, &capacity);
    while (step->result == BQ_SECURE_FULL);
}

/* ---- the thread ------------------------------------------------------------------------------------------------------ */

static void append(handshake_step_t ***tail, handshake_step_t *step) {
    step->next = NULL;
    **tail = step;
    *tail = &step->next;
}

static handshake_step_t *pop(handshakes_t *handshakes) {
    handshake_step_t *step = handshakes->todo;
    handshakes->todo = step->next;
    if (!handshakes->todo) handshakes->todo_tail = &handshakes->todo;
    return step;
}

/* The wake-up follows the entry in the list, so the I/O thread finds it. If the list was not empty, the I/O thread has not taken
 * it since the last wake-up. */
static void *work(void *argument) {
    handshakes_t *handshakes = argument;
    monitor_enter(&handshakes->monitor);
    for (;;) {
        while (!handshakes->todo && !handshakes->ending) monitor_wait(&handshakes->monitor, -1);
        if (handshakes->ending) break;
        handshake_step_t *step = pop(handshakes);
        monitor_leave(&handshakes->monitor);
        handshake_step_run(step);
        monitor_enter(&handshakes->monitor);
        bool first = !handshakes->done;
        append(&handshakes->done_tail, step);
        atomic_store(&handshakes->back, true);
        if (first) poll_wake_signal(handshakes->wake);
    }
    monitor_leave(&handshakes->monitor);
    return NULL;
}

int handshakes_init(handshakes_t *handshakes, poll_wake_t *wake) {
    handshakes->todo_tail = &handshakes->todo;
    handshakes->done_tail = &handshakes->done;
    handshakes->wake = wake;
    return monitor_init(&handshakes->monitor);
}

void handshakes_start(handshakes_t *handshakes) {
    handshakes->running = poll_thread_start(&handshakes->thread, "bq-tls", work, handshakes) == BQ_OK;
}

void handshakes_stop(handshakes_t *handshakes) {
    if (!handshakes->running) return;
    monitor_enter(&handshakes->monitor);
    handshakes->ending = true;
    monitor_signal(&handshakes->monitor);
    monitor_leave(&handshakes->monitor);
    poll_thread_join(&handshakes->thread);
    handshakes->running = false;
}

void handshakes_give(handshakes_t *handshakes, handshake_step_t *step) {
    monitor_enter(&handshakes->monitor);
    append(&handshakes->todo_tail, step);
    monitor_signal(&handshakes->monitor);
    monitor_leave(&handshakes->monitor);
}

handshake_step_t *handshakes_take(handshakes_t *handshakes) {
    if (!atomic_exchange(&handshakes->back, false)) return NULL;
    monitor_enter(&handshakes->monitor);
    handshake_step_t *list = handshakes->done;
    handshakes->done = NULL;
    handshakes->done_tail = &handshakes->done;
    monitor_leave(&handshakes->monitor);
    return list;
}

static void drop_all(handshake_step_t *list, void (*drop)(handshake_step_t *step)) {
    while (list) {
        handshake_step_t *next = list->next;
        drop(list);
        list = next;
    }
}

void handshakes_free(handshakes_t *handshakes, void (*drop)(handshake_step_t *step)) {
    drop_all(handshakes->todo, drop);
    drop_all(handshakes->done, drop);
    monitor_free(&handshakes->monitor);
}
