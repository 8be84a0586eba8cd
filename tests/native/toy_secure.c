/* toy_secure.c: a TLS module for tests, behind the same table as the real one.
 *
 *      record      [type][size, 2 bytes][content, each byte XOR a value that depends on the number of the record]
 *      handshake   the client sends `steps` handshake records, and each is answered by one. A content that begins with 'F' fails
 *                  with the rest as reason, 'C' shows a certificate with the rest as its name
 *      after it    DATA, CLOSE (the end of file), ASK (answered by an ASK, like a request for new keys). With the content 'H', an
 *                  ASK is half a request: until the next ASK nothing can be written. Everything else fails
 *
 * Invariant: a lost, repeated or reordered record fails, because the numbers of both sides differ then. A state that two threads
 * use at once ends the process.
 */
#include "toy_secure.h"

#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct context {
    _Atomic int references;
    uint32_t steps, answer_bytes, slow_us;
} context_t;

typedef struct state {
    context_t *context;
    _Atomic bool busy;
    uint32_t done, answers_due, asks_due; /* handshake records of the client; answers that found no room */
    uint32_t in_number, out_number;
    uint32_t record_size, plain_at, plain_size;
    bool ended, failed, certificate, alert_due, half;
    char reason[96], subject[256];
    uint8_t record[TOY_HEAD + TOY_RECORD_MAX], plain[TOY_RECORD_MAX];
} state_t;

static _Atomic int64_t alive;

int64_t toy_alive(void) { return alive; }

static uint8_t mask(uint32_t number) { return (uint8_t)(number * 31 + 7); }

uint32_t toy_record(uint8_t *out, uint8_t type, uint32_t number, const uint8_t *content, uint32_t size) {
    out[0] = type;
    out[1] = (uint8_t)(size >> 8);
    out[2] = (uint8_t)size;
    for (uint32_t i = 0; i < size; i++) out[TOY_HEAD + i] = content[i] ^ mask(number);
    return TOY_HEAD + size;
}

static void enter(state_t *state) {
    if (atomic_exchange(&state->busy, true)) abort();
}

static int leave(state_t *state, int result) {
    atomic_store(&state->busy, false);
    return result;
}

/* ---- contexts and states ------------------------------------------------------------------------------------------------ */

void *toy_context(uint32_t steps, uint32_t answer_bytes, uint32_t slow_us) {
    context_t *context = calloc(1, sizeof *context);
    if (!context) return NULL;
    alive++;
    *context = (context_t){.references = 1, .steps = steps, .answer_bytes = answer_bytes, .slow_us = slow_us};
    return context;
}

static void toy_context_free(void *pointer) {
    context_t *context = pointer;
    if (atomic_fetch_sub(&context->references, 1) > 1) return;
    alive--;
    free(context);
}

static void *toy_open(void *pointer) {
    context_t *context = pointer;
    state_t *state = malloc(sizeof *state);
    if (!state) return NULL;
    memset(state, 0, sizeof *state);
    alive++;
    atomic_fetch_add(&context->references, 1);
    state->context = context;
    return state;
}

static void toy_close(void *pointer) {
    state_t *state = pointer;
    enter(state);
    toy_context_free(state->context);
    alive--;
    free(state);
}

/* ---- records ------------------------------------------------------------------------------------------------------------ */

static bool emit(state_t *state, bq_secure_io_t *io, uint8_t type, const uint8_t *content, uint32_t size) {
    if (io->out_size - io->out_used < TOY_HEAD + size) return false;
    io->out_used += toy_record(io->out + io->out_used, type, state->out_number++, content, size);
    return true;
}

static uint32_t wanted(const state_t *state) {
    if (state->record_size < TOY_HEAD) return TOY_HEAD;
    return TOY_HEAD + ((uint32_t)state->record[1] << 8 | state->record[2]);
}

/* BQ_SECURE_DONE: a whole record is in `record`, with its content decrypted. */
static int next_record(state_t *state, bq_secure_io_t *io) {
    while (state->record_size < TOY_HEAD || state->record_size < wanted(state)) {
        if (wanted(state) > sizeof state->record) return BQ_SECURE_FAILED;
        uint32_t left = wanted(state) - state->record_size, there = io->in_size - io->in_used;
        uint32_t size = left < there ? left : there;
        if (!size) return BQ_SECURE_WANT;
        memcpy(state->record + state->record_size, io->in + io->in_used, size);
        state->record_size += size;
        io->in_used += size;
    }
    for (uint32_t i = TOY_HEAD; i < state->record_size; i++) state->record[i] ^= mask(state->in_number);
    state->in_number++;
    return BQ_SECURE_DONE;
}

static int fail(state_t *state, bq_secure_io_t *io, const char *reason, uint32_t size) {
    if (!state->failed) {
        state->failed = state->alert_due = true;
        memcpy(state->reason, reason, size < sizeof state->reason - 1 ? size : sizeof state->reason - 1);
    }
    if (state->alert_due && emit(state, io, TOY_ALERT, (const uint8_t *)"!", 1)) state->alert_due = false;
    return BQ_SECURE_FAILED;
}

static int fail_text(state_t *state, bq_secure_io_t *io, const char *reason) {
    return fail(state, io, reason, (uint32_t)strlen(reason));
}

/* ---- the table ---------------------------------------------------------------------------------------------------------- */

/* An answer longer than a record is several of them. */
static bool answer(state_t *state, bq_secure_io_t *io) {
    static const uint8_t zeros[TOY_RECORD_MAX];
    while (state->answers_due) {
        uint32_t size = state->answers_due < TOY_RECORD_MAX ? state->answers_due : TOY_RECORD_MAX;
        if (!emit(state, io, TOY_HANDSHAKE, zeros, size)) return false;
        state->answers_due -= size;
    }
    return true;
}

static int shake(state_t *state, bq_secure_io_t *io) {
    if (state->failed) return fail_text(state, io, "");
    for (;;) {
        if (!answer(state, io)) return BQ_SECURE_FULL;
        if (state->done == state->context->steps) return BQ_SECURE_DONE;
        int result = next_record(state, io);
        if (result == BQ_SECURE_WANT) return result;
        if (result == BQ_SECURE_FAILED || state->record[0] != TOY_HANDSHAKE) return fail_text(state, io, "not a handshake");
        const char *content = (const char *)state->record + TOY_HEAD;
        uint32_t size = state->record_size - TOY_HEAD;
        state->record_size = 0;
        if (size && *content == 'F') return fail(state, io, content + 1, size - 1);
        state->certificate |= size && *content == 'C';
        if (size && *content == 'C') memcpy(state->subject, content + 1, size < sizeof state->subject ? size - 1 : 255);
        state->done++;
        state->answers_due = state->context->answer_bytes;
    }
}

static int toy_shake(void *pointer, bq_secure_io_t *io) {
    state_t *state = pointer;
    enter(state);
    if (state->context->slow_us) usleep(state->context->slow_us);
    return leave(state, shake(state, io));
}

static int read_some(state_t *state, bq_secure_io_t *io, uint8_t *into, uint32_t room, uint32_t *got) {
    if (state->failed) return fail_text(state, io, "");
    for (;;) {
        while (state->asks_due) {
            if (!emit(state, io, TOY_ASK, NULL, 0)) return BQ_SECURE_FULL;
            state->asks_due--;
        }
        if (state->plain_size) {
            *got = state->plain_size < room ? state->plain_size : room;
            memcpy(into, state->plain + state->plain_at, *got);
            state->plain_at += *got;
            state->plain_size -= *got;
            return BQ_SECURE_DONE;
        }
        if (state->ended) return BQ_SECURE_END;
        int result = next_record(state, io);
        if (result == BQ_SECURE_WANT) return result;
        if (result == BQ_SECURE_FAILED) return fail_text(state, io, "a record is too long");
        uint32_t size = state->record_size - TOY_HEAD;
        state->record_size = 0;
        switch (state->record[0]) {
        case TOY_DATA:
            memcpy(state->plain, state->record + TOY_HEAD, size);
            state->plain_at = 0;
            state->plain_size = size;
            break;
        case TOY_ASK:
            state->half = size && state->record[TOY_HEAD] == 'H';
            state->asks_due += !state->half;
            break;
        case TOY_CLOSE: state->ended = true; break;
        default: return fail_text(state, io, "a record of an unknown type");
        }
    }
}

static int toy_read(void *pointer, bq_secure_io_t *io, uint8_t *into, uint32_t room, uint32_t *got) {
    state_t *state = pointer;
    enter(state);
    return leave(state, read_some(state, io, into, room, got));
}

static int toy_write(void *pointer, bq_secure_io_t *io, const uint8_t *from, uint32_t size, uint32_t *taken) {
    state_t *state = pointer;
    enter(state);
    if (state->half) return leave(state, BQ_SECURE_WANT);
    while (*taken < size) {
        uint32_t room = io->out_size - io->out_used, part = size - *taken < TOY_RECORD_MAX ? size - *taken : TOY_RECORD_MAX;
        if (room <= TOY_HEAD) return leave(state, BQ_SECURE_FULL);
        if (part > room - TOY_HEAD) part = room - TOY_HEAD;
        emit(state, io, TOY_DATA, from + *taken, part);
        *taken += part;
    }
    return leave(state, BQ_SECURE_DONE);
}

static int toy_goodbye(void *pointer, bq_secure_io_t *io) {
    state_t *state = pointer;
    enter(state);
    return leave(state, emit(state, io, TOY_CLOSE, NULL, 0) ? BQ_SECURE_DONE : BQ_SECURE_FULL);
}

static void toy_opened(void *pointer, bq_secure_facts_t *facts) {
    state_t *state = pointer;
    memset(facts, 0, sizeof *facts);
    memcpy(facts->version, "toy", 4);
    memcpy(facts->subject, state->subject, sizeof facts->subject);
    facts->has_certificate = state->certificate;
}

static void toy_failed(void *pointer, bq_secure_error_t *error) {
    state_t *state = pointer;
    memset(error, 0, sizeof *error);
    memcpy(error->reason, state->reason, sizeof error->reason);
}

const bq_secure_ops_t *toy_ops(void) {
    static const bq_secure_ops_t ops = {.size = sizeof ops,
                                        .open = toy_open,
                                        .close = toy_close,
                                        .shake = toy_shake,
                                        .read = toy_read,
                                        .write = toy_write,
                                        .goodbye = toy_goodbye,
                                        .opened = toy_opened,
                                        .failed = toy_failed,
                                        .context_free = toy_context_free};
    return &ops;
}
