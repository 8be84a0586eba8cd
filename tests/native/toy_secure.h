/* toy_secure.h: a TLS module for tests, without cryptography: see toy_secure.c. */
#ifndef TOY_SECURE_H
#define TOY_SECURE_H

#include "net/secure_ops.h"

#define TOY_HEAD 3u                /* type, size (big-endian) */
#define TOY_RECORD_MAX (16u << 10) /* content of a record */

enum toy_type { TOY_HANDSHAKE = 1, TOY_DATA = 2, TOY_CLOSE = 3, TOY_ALERT = 4, TOY_ASK = 5 };

/* `steps`: handshake records of the client; each is answered by one with `answer_bytes` bytes. `slow_us`: the time of a step. */
void *toy_context(uint32_t steps, uint32_t answer_bytes, uint32_t slow_us);
const bq_secure_ops_t *toy_ops(void);
int64_t toy_alive(void); /* contexts and states that exist */

/* A record with this content, which is `number` in its direction. `out` has room for TOY_HEAD more bytes. Returns its size. */
uint32_t toy_record(uint8_t *out, uint8_t type, uint32_t number, const uint8_t *content, uint32_t size);

#endif
