/* base/sha1.h: SHA-1, for the answer to a WebSocket handshake only (RFC 6455, section 4.2.2). It protects nothing there. */
#ifndef BQ_SHA1_H
#define BQ_SHA1_H

#include "base/bytes.h"

#define SHA1_BYTES 20u

void sha1(const uint8_t *bytes, uint32_t size, uint8_t digest[SHA1_BYTES]); /* at most SHA1_INPUT_MAX bytes */
#define SHA1_INPUT_MAX 119u                                                 /* two blocks */

#endif
