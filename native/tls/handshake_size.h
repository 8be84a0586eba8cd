/* tls/handshake_size.h: the size of a client's unencrypted handshake messages, seen before OpenSSL makes room for them.
 *
 * OpenSSL takes a ClientHello of 128 KiB, and makes room for it when its first nine bytes have come. A client could occupy that
 * much memory with every connection. Encrypted messages of a handshake are certificates, which SSL_CTX_set_max_cert_list limits.
 *
 * Invariant: no message that was announced with more than HANDSHAKE_BYTES_MAX bytes reaches OpenSSL.
 */
#ifndef BQ_TLS_HANDSHAKE_SIZE_H
#define BQ_TLS_HANDSHAKE_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The longest one seen is 2 KiB, and 4 KiB more with a ticket that holds the client's certificates. */
#define HANDSHAKE_BYTES_MAX 16384u

typedef struct handshake_size {
    uint32_t record_left, message_left; /* bytes of the current record and message that have not come yet */
    struct {
        uint8_t bytes[5], size; /* the part that has come */
    } record, message;          /* their heads */
    bool over;                  /* encrypted from here on, or not TLS: nothing to see */
} handshake_size_t;

/* The next bytes of the client. False: a message is too long. */
bool handshake_size_add(handshake_size_t *seen, const uint8_t *bytes, size_t size);

#endif
